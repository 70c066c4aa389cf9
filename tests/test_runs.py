"""Whole runs of dapo.py on tiny/base: files, resuming, bad input, learning (numbers: the list of known bugs)."""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import dapo

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--prompts-per-step 4 --mini-batch 2 --group-size 4 --gen-batch 8 --max-gen-batches 4 --max-response 64"
SMALL += " --overlong-buffer 8 --eval-every 2 --eval-problems 2 --eval-samples 2 --micro-batch 6 --device cpu"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(out, flags="", small=SMALL):
    dapo.main(dapo.parse_args(f"{small} --out {out} {flags}".split()))


def rows(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (Path(out) / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    before = os.getcwd()
    os.chdir(ROOT)
    run(out, "--steps 4 --save-every 2")
    os.chdir(before)
    return out


def same_files(a, b):
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_a_run_writes_what_it_promises(whole):
    names = "config.json metrics.jsonl samples.jsonl curves.png checkpoint.pt model model_000002 model_000004"
    assert sorted(path.name for path in whole.iterdir()) == sorted(names.split())
    assert [row["step"] for row in rows(whole)] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in rows(whole) if "test/avg@2" in row] == [0, 2, 4]
    config = json.loads((whole / "config.json").read_text())
    assert config["args"]["group_size"] == 4 and config["torch"] == torch.__version__
    assert AutoTokenizer.from_pretrained(whole / "model").chat_template
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    trained, base = load_file(whole / "model/model.safetensors"), load_file(ROOT / "tiny/base/model.safetensors")
    assert trained.keys() == base.keys() and model.dtype == torch.float32
    assert (whole / "curves.png").stat().st_size > 20_000


def test_16_first_ratio_is_exactly_one_and_the_second_is_not(tmp_path):
    run(tmp_path / "one", "--steps 1 --mini-batch 4 --lr 1e-3 --warmup-steps 0")
    first = rows(tmp_path / "one")[1]
    assert first["ratio"] == pytest.approx(1, abs=1e-6)  # a sum of micro-batches' shares: one rounding each
    assert first["kl"] == first["clip_low"] == first["clip_high"] == 0.0
    run(tmp_path / "two", "--steps 1 --mini-batch 2 --lr 1e-3 --warmup-steps 0 --max-gen-batches 20")
    second = rows(tmp_path / "two")[1]
    assert abs(second["ratio"] - 1) > 1e-5 and second["kl"] > 1e-7
    assert first["sampler_gap"] < 1e-5


def test_17_one_step_moves_nearly_every_parameter(tmp_path):
    run(tmp_path / "run", "--steps 1 --lr 1e-6 --warmup-steps 0")
    after, before = (load_file(p / "model.safetensors") for p in (tmp_path / "run/model", ROOT / "tiny/base"))
    moved = [(after[k] != before[k]).float().mean().item() for k in before]
    assert np.mean(moved) > 0.9


def test_24_alpha_zero_trains_bit_for_bit_like_dapo(tmp_path, whole):
    for kind in ("low-prob", "dominate", "ppl"):  # the norm of the gradient is that of two optimiser steps
        run(tmp_path / kind, f"--steps 1 --reweight {kind} --alpha 0 --eval-problems 1")
        row, other = rows(tmp_path / kind)[1], rows(whole)[1]
        assert all(row[key] == other[key] for key in other) and len(other) > 15
    run(tmp_path / "on", "--steps 1 --reweight low-prob --alpha 0.5")
    assert rows(tmp_path / "on")[1]["grad_norm"] != rows(whole)[1]["grad_norm"]


def test_28_evaluation_leaves_training_bit_identical(tmp_path, whole):
    run(tmp_path / "run", "--steps 2 --eval-every 3 --eval-samples 3")
    for row, other in zip(rows(whole)[:3], rows(tmp_path / "run"), strict=True):
        assert {k: v for k, v in row.items() if "test/" not in k} == {
            k: v for k, v in other.items() if "test/" not in k
        }


def test_12_micro_batch_and_checkpointing_change_only_rounding(tmp_path, whole):
    run(tmp_path / "run", "--steps 1 --micro-batch 1 --gradient-checkpointing")
    for key, value in rows(whole)[1].items():
        assert rows(tmp_path / "run")[1][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key


def test_29_resume_is_bit_identical(tmp_path, whole):
    out = tmp_path / "run"
    run(out, "--steps 2")
    run(out, "--steps 4 --resume")
    same_files(out, whole)


def test_no_informative_group_is_logged_and_survived(tmp_path):
    problems = tmp_path / "impossible.jsonl"
    problems.write_text(json.dumps({"prompt": "1+1+1+1+1?", "answer": "no number"}) + "\n")
    run(tmp_path / "run", f"--steps 1 --train {problems}")  # a file of one row, too
    row = rows(tmp_path / "run")[1]
    assert row["groups"] == 0 and row["prompts_sampled"] == 16 and "loss" not in row
    after, before = (load_file(p / "model.safetensors") for p in (tmp_path / "run/model", ROOT / "tiny/base"))
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_one_token_responses(tmp_path):
    run(tmp_path / "run", "--steps 1 --max-response 1 --overlong-buffer 0")
    assert rows(tmp_path / "run")[1]["length"] == 1.0


def test_top_p_rollouts_are_scored_by_the_full_softmax(tmp_path):
    run(tmp_path / "run", "--steps 1 --rollout-top-p 0.7 --mini-batch 4")
    row = rows(tmp_path / "run")[1]
    assert row["kl"] == 0.0 and row["sampler_gap"] < 1e-5


def test_it_learns(tmp_path):
    """Ten steps on four short problems: from one right answer in ten to three in four, in three seeds out of three."""
    short = [line for line in (ROOT / "tiny/train.jsonl").open() if len(json.loads(line)["prompt"]) < 17]
    (tmp_path / "four.jsonl").write_text("".join(short[:4]))
    flags = "--steps 10 --prompts-per-step 4 --mini-batch 4 --group-size 16 --gen-batch 4 --max-gen-batches 2 --lr 5e-4"
    flags += " --max-response 64 --overlong-buffer 8 --warmup-steps 0 --eval-every 10 --eval-samples 16"
    run(tmp_path / "run", f"{flags} --train {tmp_path}/four.jsonl --test {tmp_path}/four.jsonl --device cpu", small="")
    first, *_, last = rows(tmp_path / "run")
    assert first["test/avg@16"] < 0.2 and last["test/avg@16"] > 0.6


def test_a_resumed_run_whose_rows_held_zeros_and_negatives(tmp_path, whole):
    """38: a checkpoint must hold plain numbers only, and a sum must not drop what is not positive."""
    saved = torch.load(whole / "checkpoint.pt", weights_only=True)
    assert saved["log"]["metrics"] == rows(whole) and saved["log"]["samples"] == rows(whole, "samples.jsonl")
    first = rows(whole)[1]
    assert first["clip_low"] == first["clip_dual"] == 0.0 and any(row.get("loss", 0) < 0 for row in rows(whole))


# ------------------------------------------------------------------------------------------------------------ bad input
GOOD = {"prompt": "1+1+1+1?", "answer": "4"}
FILES = {
    "good": json.dumps(GOOD),
    "empty": "",
    "notjson": json.dumps(GOOD) + "\nnot json\n",
    "noanswer": '{"prompt": "1+1?"}\n',
    "blank": json.dumps(GOOD) + "\n\n" + json.dumps(GOOD),
    "emptyanswer": json.dumps(GOOD | {"answer": " "}),
    "number": json.dumps(GOOD | {"answer": 4}),
    "surrogate": json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"prompt": "1+1\ud800?"}),
    "long": json.dumps(GOOD | {"prompt": "1" + "+1" * 200 + "?"}),
    "letters": json.dumps(GOOD | {"prompt": "What is 1+1?"}),
}
BAD = {
    "--train nowhere.jsonl": "nowhere.jsonl",
    "--train tiny": "'tiny'",
    "--train {tmp}/empty.jsonl": "empty.jsonl, line 1: want",
    "--test {tmp}/notjson.jsonl": "notjson.jsonl, line 2: want",
    "--train {tmp}/noanswer.jsonl": "noanswer.jsonl, line 1: want",
    "--train {tmp}/blank.jsonl": "blank.jsonl, line 2: want",
    "--test {tmp}/emptyanswer.jsonl": "emptyanswer.jsonl, line 1: want",
    "--train {tmp}/number.jsonl": "number.jsonl, line 1: want",
    "--train {tmp}/surrogate.jsonl": "surrogate.jsonl, line 2: want",
    "--train {tmp}/latin.jsonl": "latin.jsonl, line 1: want",
    "--train {tmp}/long.jsonl": "long.jsonl, line 1: the prompt exceeds",
    "--train {tmp}/letters.jsonl": "letters.jsonl, line 1: the prompt has characters",
    "--model tiny/nothing": "--model tiny/nothing",
    "--model tiny": "--model tiny: ",
    "--model /nowhere/at/all": "--model /nowhere/at/all",
    "--model {tmp}/pickled": "model.safetensors",
    "--verifier math-verify": "math_verify",
    "--group-size 1": "--group-size",
    "--mini-batch 3": "--mini-batch",
    "--overlong-buffer 99": "--overlong-buffer",
    "--rollout-top-p 0": "--rollout-top-p 0.0",
    "--temperature 0": "--temperature",
    "--lr nan": "--lr nan",
    "--eval-every 0": "--eval-every 0",
    "--seed -1": "--seed -1",
    "--out {tmp}/good.jsonl/run": "good.jsonl",
    "--out {tmp}/full": "No space left",
    "--out {tmp}/full-later": "No space left",
    "--out {tmp}/whole": "--resume goes on with one, --out names another",
    "--out {tmp}/whole --resume --lr 1e-3": "started with {{'lr': 0.0002}}",
    "--out {tmp}/older --resume": "started with {{'cuda_graph': 'auto'}}",
    "--resume": "holds no run",
    "--device cuda": "--device cuda",
    "--device tpu": "--device",
    "--no-such-flag": "--no-such-flag",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory, whole):
    folder = tmp_path_factory.mktemp("bad")
    for name, text in FILES.items():
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "latin.jsonl").write_bytes('{"prompt": "1+1?", "answer": "é"}'.encode("latin-1"))
    for name, file in (("full", "metrics.jsonl"), ("full-later", "checkpoint.tmp")):
        (folder / name).mkdir()
        (folder / name / file).symlink_to("/dev/full")
    shutil.copytree(ROOT / "tiny/base", folder / "pickled")
    (folder / "pickled/model.safetensors").unlink()
    torch.save({}, folder / "pickled/pytorch_model.bin")
    (folder / "older").mkdir()
    (folder / "older/config.json").write_text('{"args": {"cuda_graph": "auto"}}')
    shutil.copytree(whole, folder / "whole")
    return folder


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_sentence(bad, tmp_path, flags, monkeypatch, capsys):
    """The command itself, in this process: anything but SystemExit would be a traceback."""
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = (
        SMALL.replace("--eval-problems 2", "--eval-problems 1") + f" --train {bad}/good.jsonl --test {bad}/good.jsonl"
    )
    if "older" not in flags and "whole" not in flags:
        small += f" --steps 0 --out {tmp_path / 'run'}"
    elif "lr" in flags:
        small = SMALL + " --save-every 2"
    monkeypatch.setattr(sys, "argv", ["dapo.py", *f"{small} {flags}".format(tmp=bad).split()])
    with pytest.raises(SystemExit) as error:
        runpy.run_path("dapo.py", run_name="__main__")
    message = error.value.code if isinstance(error.value.code, str) else capsys.readouterr().err.strip().split("\n")[-1]
    assert error.value.code not in (0, None) and "error: " in message
    assert BAD[flags].format() in message and "\n" not in message and len(message) < 400


def test_running_out_of_gpu_memory_and_ctrl_c_are_one_sentence(tmp_path, monkeypatch):
    for error, says in ((torch.OutOfMemoryError("CUDA out of memory"), "memory"), (KeyboardInterrupt(), "--resume")):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
        monkeypatch.setattr(sys, "argv", ["dapo.py", "--out", str(tmp_path / "run")])
        with pytest.raises(SystemExit, match=says):
            runpy.run_path("dapo.py", run_name="__main__")


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(whole, tmp_path, monkeypatch):
    real, calls = dapo.dapo_loss, []

    def broken(*args, **kwargs):
        loss, stats = real(*args, **kwargs)
        calls.append(loss)
        return (loss * float("nan") if len(calls) == 3 else loss), stats

    monkeypatch.setattr(dapo, "dapo_loss", broken)
    with pytest.raises(RuntimeError, match="non-finite"):
        run(tmp_path / "run", "--steps 4 --save-every 2")
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    run(tmp_path / "run", "--steps 4 --save-every 2 --resume")
    same_files(tmp_path / "run", whole)


def test_what_a_model_writes_does_nothing_to_the_terminal(tmp_path, monkeypatch, capsys):
    text = "\x1b]0;title\x07\x1b[2J\r\n\u202e"
    real = dapo.sample_and_check
    monkeypatch.setattr(dapo, "sample_and_check", lambda *a: [r | {"text": text} for r in real(*a)])
    run(tmp_path / "run", "--steps 0")
    shown = capsys.readouterr().out
    assert r"\x1b]0;title\x07\x1b[2J\r\n\u202e" in shown and "\x1b]0" not in shown and "\u202e" not in shown


def test_every_argument_has_a_help_text(capsys):
    with pytest.raises(SystemExit):
        dapo.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("(default: ") == len(dapo.fields(dapo.Args)) and "figure 3c" in shown
