"""What the update of dapo.py keeps: the entropy that it does not use must not live on to the backward pass."""

import gc
import weakref
from pathlib import Path

import dapo

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--steps 1 --prompts-per-step 2 --mini-batch 2 --group-size 8 --gen-batch 8 --max-gen-batches 4 --micro-batch 8"
SMALL += " --overlong-buffer 8 --max-response 128 --eval-problems 1 --eval-samples 1 --device cpu --model tiny/rlvr"


def test_an_unused_entropy_is_gone_before_the_backward_pass(tmp_path, monkeypatch):
    """Kept in a variable, it would hold the recomputed softmax of every chunk: (tokens, vocabulary), twice, in fp32."""
    monkeypatch.chdir(ROOT)
    scored, alive, token_logprobs, dapo_loss = [], [], dapo.token_logprobs, dapo.dapo_loss

    def score(*args, **kwargs):
        logp, entropy = token_logprobs(*args, **kwargs)
        scored.append(weakref.ref(entropy))
        return logp, entropy

    def loss(*args, **kwargs):
        gc.collect()
        alive.append(scored[-1]() is not None)
        return dapo_loss(*args, **kwargs)

    monkeypatch.setattr(dapo, "token_logprobs", score)
    monkeypatch.setattr(dapo, "dapo_loss", loss)
    dapo.main(dapo.parse_args([*SMALL.split(), "--out", str(tmp_path / "run")]))
    assert alive and not any(alive)
