"""What the update of dapo.py keeps: the entropy that it does not use must not live on to the backward pass."""

import gc
import weakref
from pathlib import Path

import dapo

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--steps 1 --prompts-per-step 2 --mini-batch 2 --group-size 4 --gen-batch 2 --max-response 16"
SMALL += " --eval-problems 1 --eval-samples 1 --device cpu"


def test_an_unused_entropy_is_gone_before_the_backward_pass(tmp_path, monkeypatch):
    """Kept in a variable, it would hold the recomputed softmax of every chunk: (tokens, vocabulary), twice, in fp32."""
    monkeypatch.chdir(ROOT)
    scored = []
    alive = []
    token_logprobs = dapo.token_logprobs
    dapo_loss = dapo.dapo_loss

    def noting_token_logprobs(*args, **kwargs):
        logp, entropy = token_logprobs(*args, **kwargs)
        scored.append(weakref.ref(entropy))
        return logp, entropy

    def noting_loss(*args, **kwargs):
        gc.collect()
        alive.append(scored[-1]() is not None)
        return dapo_loss(*args, **kwargs)

    monkeypatch.setattr(dapo, "token_logprobs", noting_token_logprobs)
    monkeypatch.setattr(dapo, "dapo_loss", noting_loss)
    monkeypatch.setattr(dapo, "is_correct", lambda text, *_: sum(map(ord, text)) % 2 == 0)  # half of them: all teach
    dapo.main(dapo.parse_args([*SMALL.split(), "--out", str(tmp_path / "run")]))
    assert alive and not any(alive)
