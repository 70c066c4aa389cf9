"""Whole runs of dapo.py on tiny/base: files, resuming, bad input, learning (numbers: the list of known bugs)."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import dapo

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--prompts-per-step 4 --mini-batch 2 --group-size 4 --gen-batch 8 --max-gen-batches 4 --max-response 48"
SMALL += " --overlong-buffer 8 --eval-every 2 --eval-problems 4 --eval-samples 2 --checkpoint-every 2 --micro-batch 6"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(out, flags="", small=SMALL):
    return dapo.main(dapo.parse_args(dapo.Args, "", f"{small} --out {out} {flags}".split()))


def rows(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (Path(out) / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    before = os.getcwd()
    os.chdir(ROOT)
    assert run(out, "--steps 4 --save-every 2") == 0
    os.chdir(before)
    return out


def same_files(a, b):
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_run_writes_what_it_promises(whole):
    names = "config.json metrics.jsonl samples.jsonl timing.jsonl curves.png checkpoint/step_000004/trainer.pt"
    for name in [*names.split(), "model/model.safetensors", "model_000002/model.safetensors", "model_000004"]:
        assert (whole / name).exists(), name
    assert [row["step"] for row in rows(whole)] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in rows(whole) if "test/avg@2" in row] == [0, 2, 4]
    config = json.loads((whole / "config.json").read_text())
    assert config["args"]["group_size"] == 4 and config["versions"]["torch"] == torch.__version__
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    assert AutoTokenizer.from_pretrained(whole / "model").chat_template
    trained, base = load_file(whole / "model/model.safetensors"), load_file(ROOT / "tiny/base/model.safetensors")
    assert trained.keys() == base.keys() and model.dtype == torch.float32


def test_16_first_ratio_is_exactly_one_and_the_second_is_not(tmp_path):
    assert run(tmp_path / "one", "--steps 1 --mini-batch 4 --lr 1e-3 --warmup-steps 0") == 0
    first = rows(tmp_path / "one")[1]
    assert first["ratio"] == pytest.approx(1, abs=1e-6)  # a sum of micro-batches' shares: one rounding each
    assert first["kl"] == first["clip_low"] == first["clip_high"] == 0.0
    assert run(tmp_path / "two", "--steps 1 --mini-batch 2 --lr 1e-3 --warmup-steps 0 --max-gen-batches 20") == 0
    second = rows(tmp_path / "two")[1]
    assert abs(second["ratio"] - 1) > 1e-5 and second["kl"] > 1e-7
    assert first["sampler_gap"] < 1e-5


def test_17_one_step_moves_nearly_every_parameter(tmp_path):
    assert run(tmp_path / "run", "--steps 1 --lr 1e-6 --warmup-steps 0") == 0
    after, before = (load_file(p / "model.safetensors") for p in (tmp_path / "run/model", ROOT / "tiny/base"))
    moved = [(after[k] != before[k]).float().mean().item() for k in before]
    assert np.mean(moved) > 0.9


def test_24_alpha_zero_trains_bit_for_bit_like_dapo(tmp_path, whole):
    for kind in ("low-prob", "dominate", "ppl"):
        assert run(tmp_path / kind, f"--steps 2 --reweight {kind} --alpha 0") == 0
        lines = [(p / "metrics.jsonl").read_text().splitlines()[:3] for p in (tmp_path / kind, whole)]
        assert lines[0] == lines[1] and len(lines[0]) == 3
    assert run(tmp_path / "on", "--steps 2 --reweight low-prob --alpha 0.5") == 0
    assert rows(tmp_path / "on")[1]["grad_norm"] != rows(whole)[1]["grad_norm"]


def test_28_evaluation_leaves_training_bit_identical(tmp_path, whole):
    assert run(tmp_path / "run", "--steps 4 --eval-every 3 --eval-samples 3") == 0
    for row, other in zip(rows(whole), rows(tmp_path / "run"), strict=True):
        assert {k: v for k, v in row.items() if "test/" not in k} == {
            k: v for k, v in other.items() if "test/" not in k
        }


def test_12_micro_batch_and_checkpointing_change_only_rounding(tmp_path, whole):
    assert run(tmp_path / "run", "--steps 1 --micro-batch 1 --gradient-checkpointing") == 0
    for key, value in rows(whole)[1].items():
        assert rows(tmp_path / "run")[1][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_29_resume_is_bit_identical(tmp_path, whole):
    out = tmp_path / "run"
    assert run(out, "--steps 2") == 0
    assert run(out, "--steps 4 --resume") == 0
    same_files(out, whole)


KILLED = """
import os, signal, sys, dapo
write = dapo.append_row
def write_and_die(path, row):
    write(path, row)
    if path.name == "metrics.jsonl" and row["step"] == 3:
        with open(path, "a") as file:
            file.write('{"step": 4, "cut sh')  # what a kill in mid-write leaves
        os.kill(os.getpid(), signal.SIGKILL)
dapo.append_row = write_and_die
dapo.main(dapo.parse_args(dapo.Args, "", sys.argv[1:]))
"""


def test_29_resume_after_kill_9_in_mid_run(tmp_path, whole):
    out = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, *f"{SMALL} --out {out} --steps 4".split()]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    assert [p.name for p in (out / "checkpoint").iterdir()] == ["step_000002"]
    assert run(out, "--steps 4 --resume") == 0
    same_files(out, whole)


def test_ctrl_c_saves_and_resumes(tmp_path, whole, monkeypatch):
    out, steps = tmp_path / "run", []
    describe = dapo.describe

    def interrupting(parts):  # ctrl-C in the middle of step 1
        if "reward" in parts[0] and not steps:
            steps.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return describe(parts)

    monkeypatch.setattr(dapo, "describe", interrupting)
    assert run(out, "--steps 4 --checkpoint-every 100") == 130
    assert [row["step"] for row in rows(out)] == [0, 1] and (out / "curves.png").exists()
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    assert run(out, "--steps 4 --resume") == 0
    same_files(out, whole)


def test_resume_before_the_first_checkpoint_starts_over(tmp_path, whole):
    out = tmp_path / "run"
    assert run(out, "--steps 2 --checkpoint-every 100") == 0
    for folder in (out / "checkpoint").iterdir():
        folder.rename(folder.with_suffix(".tmp"))  # as if the kill had come while it was written
    assert run(out, "--steps 4 --resume") == 0
    same_files(out, whole)


def test_no_informative_group_is_logged_and_survived(tmp_path):
    problems = tmp_path / "impossible.jsonl"
    problems.write_text(json.dumps({"prompt": "1+1+1+1+1?", "answer": "no number"}) + "\n")
    assert run(tmp_path / "run", f"--steps 1 --train {problems}") == 0  # a file of one row, too
    row = rows(tmp_path / "run")[1]
    assert row["groups"] == 0 and row["prompts_sampled"] == 16 and "loss" not in row
    after, before = (load_file(p / "model.safetensors") for p in (tmp_path / "run/model", ROOT / "tiny/base"))
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_one_token_responses(tmp_path):
    assert run(tmp_path / "run", "--steps 1 --max-response 1 --overlong-buffer 0") == 0
    assert rows(tmp_path / "run")[1]["length"] == 1.0


def test_top_p_rollouts_are_scored_by_the_full_softmax(tmp_path):
    assert run(tmp_path / "run", "--steps 1 --rollout-top-p 0.7 --mini-batch 4") == 0
    row = rows(tmp_path / "run")[1]
    assert row["kl"] == 0.0 and row["sampler_gap"] < 1e-5


def test_it_learns(tmp_path):
    """Thirty small steps from the base raise accuracy in training well beyond its noise."""
    flags = "--steps 30 --prompts-per-step 8 --mini-batch 8 --group-size 8 --gen-batch 16 --max-response 64 --lr 3e-4"
    assert run(tmp_path / "run", f"{flags} --eval-every 30 --eval-problems 60 --warmup-steps 0", small="") == 0
    found = rows(tmp_path / "run")
    early, late = (np.mean([row["accuracy"] for row in part]) for part in (found[1:6], found[-5:]))
    assert late > early + 0.05
    assert found[-1]["test/length"] > found[0]["test/length"]


BAD = {
    "--train nowhere.jsonl": "nowhere.jsonl",
    "--train {tmp}/empty.jsonl": "empty.jsonl",
    "--test {tmp}/notjson.jsonl": "notjson.jsonl, line 2",
    "--train {tmp}/noanswer.jsonl": 'noanswer.jsonl, line 1: "answer"',
    "--train {tmp}/long.jsonl": "long.jsonl, line 1",
    "--train {tmp}/letters.jsonl": "vocabulary",
    "--model tiny/nothing": "tiny/nothing",
    "--model tiny": "tiny",
    "--model /nowhere/at/all": "/nowhere/at/all",
    "--group-size 1": "--group-size",
    "--group-size 0": "--group-size",
    "--mini-batch 3": "--mini-batch",
    "--overlong-buffer 99": "--overlong-buffer",
    "--rollout-top-p 0": "--rollout-top-p",
    "--temperature 0": "--temperature",
    "--lr nan": "--lr",
    "--out {tmp}/empty.jsonl/run": "--out",
    "--resume": "--resume",
    "--device tpu": "--device",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_sentence(tmp_path, flags):
    good = {"prompt": "1+1+1+1?", "answer": "4"}
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "notjson.jsonl").write_text(json.dumps(good) + "\nnot json\n")
    (tmp_path / "noanswer.jsonl").write_text('{"prompt": "1+1?"}\n')
    (tmp_path / "long.jsonl").write_text(json.dumps(good | {"prompt": "1" + "+1" * 200 + "?"}) + "\n")
    (tmp_path / "letters.jsonl").write_text(json.dumps(good | {"prompt": "What is 1+1?"}) + "\n")
    with pytest.raises(dapo.InputError) as error:
        run(tmp_path / "run", flags.format(tmp=tmp_path))
    message = str(error.value)
    assert BAD[flags] in message and "\n" not in message and len(message) < 400


def test_a_second_run_on_the_same_folder_must_say_what_it_wants(whole, tmp_path):
    for flags, says in (("--steps 4", "--overwrite"), ("--steps 4 --resume --lr 1e-3", "--lr 0.0001")):
        with pytest.raises(dapo.InputError, match=says):
            run(whole, flags)
    assert run(tmp_path / "run", "--steps 1") == 0
    assert run(tmp_path / "run", "--steps 1 --overwrite") == 0


@pytest.mark.parametrize("argument", ["--train nowhere.jsonl", "--no-such-flag", "--group-size 1"])
def test_the_command_itself_exits_with_2_and_no_traceback(argument):
    command = [sys.executable, "dapo.py", *argument.split()]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and "Traceback" not in found.stderr and "dapo.py: error:" in found.stderr
    if "no-such" not in argument:
        assert len(found.stderr.strip().splitlines()) == 1


def test_every_argument_has_a_help_text():
    assert all(f.metadata["help"] for f in dataclasses.fields(dapo.Args))


# ------------------------------------------------------------------------------------------------------------ survival
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(whole, tmp_path, monkeypatch):
    real, calls = dapo.dapo_loss, []

    def broken(*args, **more):
        loss, stats = real(*args, **more)
        calls.append(1)
        return (loss * float("nan") if len(calls) == poisoned else loss), stats

    monkeypatch.setattr(dapo, "dapo_loss", lambda *args, **more: (calls.append(1), real(*args, **more))[1])
    assert run(tmp_path / "count", "--steps 2") == 0
    poisoned, calls = len(calls) + 1, []  # the first micro-batch of step 3
    monkeypatch.setattr(dapo, "dapo_loss", broken)
    out = tmp_path / "run"
    with pytest.raises(dapo.InputError, match=r"step 3: the norm of the gradient is nan.*bad_batch\.pt"):
        run(out, "--steps 4 --save-every 2 --checkpoint-every 1")
    batch = torch.load(out / "bad_batch.pt", weights_only=True)
    assert batch["tokens"].shape == batch["mask"].shape == batch["adv"].shape == batch["logp_old"].shape
    assert len(rows(out)) == 3 and sorted(path.name for path in (out / "checkpoint").iterdir())[-1] == "step_000002"
    monkeypatch.setattr(dapo, "dapo_loss", real)
    assert run(out, "--steps 4 --save-every 2 --checkpoint-every 1 --resume") == 0
    same_files(out, whole)


@pytest.mark.parametrize("name", ["trainer.pt", "model.safetensors", "config.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(whole, tmp_path, name):
    out = tmp_path / "run"
    assert run(out, "--steps 3 --save-every 2 --checkpoint-every 1") == 0
    damaged = out / "checkpoint" / "step_000003"
    data = (damaged / name).read_bytes()
    (damaged / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(dapo.InputError, match=r"step_000003 is damaged .* delete that folder .*step_000002"):
        run(out, "--steps 4 --save-every 2 --resume")
    shutil.rmtree(damaged)
    assert run(out, "--steps 4 --save-every 2 --resume") == 0
    same_files(out, whole)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint(whole, tmp_path, monkeypatch):
    real, saved = torch.save, []

    def full(what, path):
        saved.append(path)
        if len(saved) == 3:
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
        return real(what, path)

    monkeypatch.setattr(torch, "save", full)
    out = tmp_path / "run"
    with pytest.raises(OSError, match=r"cannot write .*step_000003\.tmp"):
        run(out, "--steps 4 --save-every 2 --checkpoint-every 1")
    monkeypatch.setattr(torch, "save", real)
    assert run(out, "--steps 4 --save-every 2 --checkpoint-every 1 --resume") == 0
    same_files(out, whole)


def test_a_second_process_on_the_same_folder_is_refused(tmp_path):
    """A lock that the kernel lets go with its process: nothing to clean up after kill -9."""
    out = tmp_path / "run"
    command = [sys.executable, "dapo.py", *f"{SMALL} --steps 100000 --eval-every 100000 --out {out}".split()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        try:
            while not (out / "config.json").exists():
                assert first.poll() is None
                time.sleep(0.1)
            for flags in ("", "--resume", "--overwrite"):
                with pytest.raises(dapo.InputError, match="another run is using"):
                    run(out, f"--steps 100000 --eval-every 100000 {flags}")
        finally:
            first.kill()
    assert run(out, "--steps 1 --overwrite") == 0 and run(out, "--steps 2 --resume") == 0


def test_overwrite_leaves_nothing_of_the_run_before(tmp_path):
    assert run(tmp_path, "--steps 2 --save-every 1") == 0
    assert run(tmp_path, "--steps 1 --overwrite") == 0
    assert not (tmp_path / "model_000001").exists() and not (tmp_path / "checkpoint" / "step_000002").exists()
    assert [row["step"] for row in rows(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    ("where", "mend"),
    [("sample_tokens", "--gen-batch"), ("token_logprobs", "--micro-batch"), ("load_model", "--model")],
)
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_running_out_of_memory_names_the_flag_to_lower(tmp_path, monkeypatch, where, mend, kind):
    def full(*args, **more):
        raise kind("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")  # torch's words

    place = (dapo.AutoModelForCausalLM, "from_pretrained") if where == "load_model" else (dapo, where)
    monkeypatch.setattr(*place, full)
    with pytest.raises(kind) as error:
        run(tmp_path / "run", "--steps 1")
    sentence = dapo.explain(error.value, tmp_path, "it goes on", dapo.MENDS)
    assert sentence.startswith("out of memory: ") and mend in sentence and sentence.endswith("; it goes on")
    assert dapo.explain(RuntimeError("a bug"), tmp_path, "", dapo.MENDS) is None


def test_memory_that_ran_out_is_resumed_with_smaller_batches(tmp_path):
    assert run(tmp_path, "--steps 1") == 0
    assert run(tmp_path, "--steps 2 --resume --micro-batch 2 --gen-batch 4 --gradient-checkpointing") == 0


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", [2, 3])
def test_estimated_activations_are_those_that_the_update_keeps(bf16, checkpointing, family):
    """Counts the bytes of all tensors that autograd holds, weights aside, for the widths of real models."""
    shape = {"vocab_size": 200, "num_hidden_layers": 3, "tie_word_embeddings": True}
    if family == 2:  # Qwen2.5-0.5B
        heads = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
        model = Qwen2ForCausalLM(Qwen2Config(**shape, **heads))
    else:  # Qwen3-0.6B
        heads = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8}
        model = Qwen3ForCausalLM(Qwen3Config(**shape, **heads, head_dim=128))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    weights, kept, rows, context = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}, 2, 256

    def count(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights and x.shape[::-1] not in {p.shape for p in model.parameters()}:
            kept[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    tokens, mask = torch.randint(200, (rows, context)), torch.ones(rows, context)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            dapo.token_logprobs(model, tokens, mask)
    held = sum(size for size, _ in kept.values())
    need = dapo.estimate_memory([model], bf16, 1, context, rows, checkpointing)
    logits, kept_only = 20 * rows * context * 200, need["activations"]
    if checkpointing:  # the estimate adds one layer, which is there again while its gradient is computed
        kept_only -= (dapo.estimate_memory([model], bf16, 1, context, rows)["activations"] - logits) / 3
    assert kept_only - logits == pytest.approx(held, rel=0.2)
    assert need["weights"] == sum(p.numel() for p in model.parameters()) * (6 if bf16 else 4)
    assert need["at most"] == sum(need[k] for k in ("weights", "gradients and AdamW", "activations"))


def test_what_a_model_writes_does_nothing_to_the_terminal():
    text = "\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202eGröße 😀 \\boxed{1}"
    shown = dapo.printable(text)
    assert shown == r"\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202eGröße 😀 \boxed{1}" and shown.isprintable()
