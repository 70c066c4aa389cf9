"""Whole runs of dapo.py on tiny/base: what it writes, what must not change a bit of it, bad input, learning."""

import dataclasses
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import dapo
import grpo_n

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--prompts-per-step 2 --mini-batch 1 --group-size 8 --gen-batch 8 --max-response 32 --overlong-buffer 8"
SMALL += " --micro-batch 5 --eval-every 2 --eval-problems 2 --eval-samples 2 --device cpu"


def short_problems(path):
    """Write the 64 shortest training problems, whose responses are short and sometimes right; returns the path."""
    lines = (ROOT / "tiny/train.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(sorted(lines, key=len)[:64]))
    return path


def rows(out, name="metrics.jsonl"):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def keep_copies(patch, script, folder):
    """Copy the run's folder to "after-STEP" in `folder` after each checkpoint, as a kill there would leave it."""
    save = script.save_checkpoint

    def save_and_copy(path, state):
        save(path, state)
        shutil.copytree(path.parent, folder / f"after-{state['metrics'][-1]['step']}")

    patch.setattr(script, "save_checkpoint", save_and_copy)


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return short_problems(tmp_path_factory.mktemp("problems") / "short.jsonl")


def run(problems, out, flags):
    """A small run; returns the rows of its metrics.jsonl."""
    files = f"--train {problems} --test {problems} --out {out}"
    dapo.main(dapo.parse_args(f"{SMALL} {files} {flags}".split()))
    return rows(out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, problems):
    """An uninterrupted run of four steps; beside it the folders "after-0", "after-2", "after-4"."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        keep_copies(patch, dapo, folder)
        run(problems, folder / "whole", "--steps 4 --save-every 2")
    return folder / "whole"


def without_test(row):
    return {name: value for name, value in row.items() if not name.startswith("test/")}


def assert_same_run(out, whole):
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def moved(out):
    """Share of the weights that differ from tiny/base."""
    after = load_file(out / "model/model.safetensors")
    before = load_file(ROOT / "tiny/base/model.safetensors")
    assert after.keys() == before.keys()
    changed = sum((after[name] != before[name]).sum().item() for name in before)
    return changed / sum(tensor.numel() for tensor in before.values())


# ------------------------------------------------------------------------------------------------------- what it writes
def test_a_run_writes_what_it_promises(whole):
    names = "checkpoint.pt config.json curves.png metrics.jsonl model model_000002 model_000004 samples.jsonl"
    assert sorted(path.name for path in whole.iterdir()) == names.split()
    assert [row["step"] for row in rows(whole)] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in rows(whole) if "test/accuracy" in row] == [0, 2, 4]
    assert [row["step"] for row in rows(whole, "samples.jsonl")] == [0, 0, 2, 2, 4, 4]
    config = json.loads((whole / "config.json").read_text())
    assert config["args"]["group_size"] == 8 and config["torch"] == torch.__version__
    assert AutoTokenizer.from_pretrained(whole / "model").chat_template
    assert AutoModelForCausalLM.from_pretrained(whole / "model").dtype == torch.float32
    assert (whole / "curves.png").stat().st_size > 20_000


def test_every_logged_metric_is_explained_and_every_explained_one_is_logged(whole):
    table = (ROOT / "docs/dapo.md").read_text().split("## What is logged")[1].split("\n## ")[0]
    explained = set()
    for line in table.splitlines():
        if line.startswith("| `"):
            explained.update(re.findall(r"`([^`]+)`", line.split("|")[1]))
    logged = {name for row in rows(whole) for name in row}
    assert logged - {"step"} == explained


ACTIONS = {"guess": 0.5, "two_at_once": 1.0, "one_at_a_time": 0.5}
KINDS = {"kind/second (larger)": 0.4, "kind/first (larger)": 0.2}


@pytest.mark.parametrize("script", [dapo, grpo_n], ids=["dapo", "grpo_n"])
@pytest.mark.parametrize(
    ("more", "title", "heights"),
    [
        (
            ACTIONS,
            "share of the actions in training responses",
            {"guess": 0.25, "two at once": 0.5, "one at a time": 0.25},
        ),
        (KINDS, "share of responses whose answer is the ...", {"first (larger)": 0.2, "second (larger)": 0.4}),
        ({}, "share of tokens that the clip cuts off", {"below the range": 0.01, "above it": 0.02}),
    ],
)
def test_the_fourth_panel_of_the_curves(script, more, title, heights, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
    metrics = [{"step": 0, "test/accuracy": 0.1, "test/accuracy_ci95": 0.05}]
    for step in (1, 2):
        metrics.append({"step": step, "accuracy": 0.2, "clip_low": 0.01, "clip_high": 0.02, **more})
    script.draw_curves("curves.png", metrics, "a run")
    axis = figures[0].axes[3]
    assert axis.get_title() == title
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(heights)
    drawn = {line.get_label(): line.get_ydata()[-1] for line in axis.lines}
    for area in axis.collections:  # stacked
        y = area.get_paths()[0].vertices[:, 1]
        drawn[area.get_label()] = y.max() - y.min()
    assert drawn == pytest.approx(heights)
    script.draw_curves("curves.png", metrics[:1], "a run with --steps 0")
    assert figures[1].axes[3].get_legend() is None


# ------------------------------------------------------------------------------------------------ what an update does
def test_rewards_are_plus_and_minus_1_with_the_punishment_and_the_rate_warms_up(whole):
    trained = rows(whole)[1:]
    for row in trained:
        assert 2 * row["accuracy"] - 2 < row["reward"] < 2 * row["accuracy"] - 1  # some are longer than 32 - 8 tokens
        assert row["groups"] == 2 <= row["prompts_sampled"]
    assert [row["lr"] for row in trained] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5])


def test_one_update_has_ratio_1_and_moves_nearly_every_weight(problems, tmp_path, whole):
    """Old log-probs from other code or batches give a ratio near 1, not exactly 1."""
    row = run(problems, tmp_path / "run", "--steps 1 --mini-batch 2 --lr 1e-6 --warmup-steps 0")[1]
    assert row["ratio"] == pytest.approx(1, abs=1e-6)  # a sum of the micro-batches' shares: one rounding each
    assert row["kl"] == row["clip_low"] == row["clip_high"] == 0.0
    assert moved(tmp_path / "run") > 0.9
    assert all(row["kl"] > 0 for row in rows(whole)[1:])  # the second mini-batch of a step has another policy


def test_reweightings_reach_the_loss(problems, tmp_path):
    """At ratio 1, (3) adds to every token's term of the loss what (4) takes from it; (5) does neither."""
    loss = {}
    for kind in ("none", "low-prob", "dominate", "ppl"):
        flags = f"--steps 1 --mini-batch 2 --reweight {kind} --alpha 0.5"
        loss[kind] = run(problems, tmp_path / kind, flags)[1]["loss"]
    assert loss["low-prob"] + loss["dominate"] == pytest.approx(2 * loss["none"], abs=1e-5)
    assert len({round(value, 4) for value in loss.values()}) == 4


@pytest.mark.parametrize("kind", ["low-prob", "dominate", "ppl"])
def test_alpha_zero_trains_bit_for_bit_like_dapo(kind, problems, tmp_path, whole):
    row = run(problems, tmp_path / "run", f"--steps 1 --reweight {kind} --alpha 0")[1]
    assert without_test(row) == without_test(rows(whole)[1])  # grad_norm is that of two optimiser steps


def test_micro_batch_and_checkpointing_change_only_rounding(problems, tmp_path, whole):
    """A loss divided by the tokens of the micro-batch, or by their number, would show."""
    row = run(problems, tmp_path / "run", "--steps 1 --micro-batch 1 --gradient-checkpointing")[1]
    for name, value in without_test(rows(whole)[1]).items():
        assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_greedy_rollouts_teach_nothing_and_the_run_goes_on(problems, tmp_path, whole):
    """So little top-p that the responses to a prompt are equal; the evaluation keeps to the full softmax."""
    base, row = run(problems, tmp_path / "run", "--steps 1 --rollout-top-p 1e-6")
    assert row["groups"] == 0 and row["prompts_sampled"] == 24 and "loss" not in row  # ten times 2, by eights
    assert moved(tmp_path / "run") == 0 and base == rows(whole)[0]


def test_it_learns(tmp_path):
    """Six steps on four problems: from one right answer in ten to more than half, in three seeds out of three."""
    lines = (ROOT / "tiny/train.jsonl").read_text().splitlines(keepends=True)
    problems = tmp_path / "four.jsonl"
    problems.write_text("".join([line for line in lines if len(json.loads(line)["prompt"]) < 17][:4]))
    flags = "--steps 6 --prompts-per-step 4 --mini-batch 4 --group-size 16 --gen-batch 4 --lr 5e-4 --warmup-steps 0"
    flags += " --max-response 48 --eval-every 6 --eval-problems 4 --eval-samples 16 --micro-batch 64"
    first, *_, last = run(problems, tmp_path / "run", flags)
    assert first["test/accuracy"] < 0.25 and last["test/accuracy"] > 0.5


# ------------------------------------------------------------------------------------------- evaluating and resuming
def test_evaluation_leaves_training_bit_identical(problems, tmp_path, whole):
    row = run(problems, tmp_path / "run", "--steps 1 --eval-samples 3")[1]
    assert without_test(row) == without_test(rows(whole)[1])


def test_resume_is_bit_identical(problems, whole):
    out = shutil.copytree(whole.parent / "after-2", whole.parent / "resumed")
    run(problems, out, "--steps 4 --save-every 2 --resume")
    assert_same_run(out, whole)


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(problems, whole, monkeypatch):
    real = dapo.dapo_loss

    def broken(*args, **kwargs):
        loss, stats = real(*args, **kwargs)
        return loss * float("nan"), stats

    monkeypatch.setattr(dapo, "dapo_loss", broken)
    out = shutil.copytree(whole.parent / "after-0", whole.parent / "not-finite")
    before = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match="the gradient is not finite"):
        run(problems, out, "--steps 1 --save-every 2 --resume")
    assert (out / "checkpoint.pt").read_bytes() == before and not (out / "model").exists()


def test_the_order_of_training_is_whole_epochs_and_does_not_depend_on_how_many_steps_follow():
    order = dapo.training_order(7, 20, seed=1)
    assert len(order) >= 20 and sorted(order[:7]) == sorted(order[7:14]) == list(range(7)) and order[:7] != order[7:14]
    assert dapo.training_order(7, 9, seed=1) == order[:14]
    assert dapo.training_order(7, 20, seed=2) != order
    assert dapo.training_order(1, 3, seed=1) == [0, 0, 0]


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("script", [dapo, grpo_n], ids=["dapo", "grpo_n"])
@pytest.mark.parametrize(
    "flags",
    ["--group-size 1", "--mini-batch 3", "--temperature 0", "--lr nan", "--eval-every 0", "--seed -1", "--eps-low -1"],
)
def test_impossible_flags_raise_a_sentence_that_names_them(script, flags):
    with pytest.raises(ValueError, match=flags.split()[0]):
        script.parse_args(flags.split())


GOOD = {"prompt": "1+1+1+1?", "answer": "4"}
BAD = {  # flags, and what the sentence says
    "--train nowhere.jsonl": "nowhere.jsonl",
    "--train tiny": "'tiny'",
    "--test {tmp}/notjson.jsonl": "notjson.jsonl, line 2: want",
    "--train {tmp}/surrogate.jsonl": 'surrogate.jsonl, line 1: "prompt" is not UTF-8',
    "--train {tmp}/latin.jsonl": 'latin.jsonl, line 1: "answer" is not UTF-8',
    "--train {tmp}/long.jsonl": "long.jsonl: no prompt fits into 224 tokens",
    "--train {tmp}/letters.jsonl": 'letters.jsonl, line 1: "prompt" has characters',
    "--model tiny/nothing": "--model tiny/nothing",
    "--model tiny": "--model tiny: ",
    "--model {tmp}/pickled": "its weights are not in .safetensors files",
    "--verifier math-verify": "math_verify",
    "--overlong-buffer 99": "--overlong-buffer",
    "--rollout-top-p 0": "--rollout-top-p 0.0",
    "--device cuda": "--device cuda",
    "--out {tmp}/good.jsonl/run": "good.jsonl",
    "--out {tmp}/full": "No space left",
    "--out {tmp}/full-later": "No space left",
    "--out {tmp}/older": "--resume goes on with it, --out or --seed starts another",
    "--out {tmp}/older --resume": "began with --removed-flag auto",
    "--out {tmp}/other --resume --lr 1e-3": "began with --lr 0.0002",
    "--resume": "holds no run",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    files = {
        "good": json.dumps(GOOD),
        "notjson": json.dumps(GOOD) + "\nnot json\n",
        "surrogate": json.dumps(GOOD | {"prompt": "1+1\ud800?"}),
        "long": json.dumps(GOOD | {"prompt": "1" + "+1" * 200 + "?"}),
        "letters": json.dumps(GOOD | {"prompt": "What is 1+1?"}),
    }
    for name, text in files.items():
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "latin.jsonl").write_bytes('{"prompt": "1+1?", "answer": "é"}'.encode("latin-1"))
    for name, args in {"older": {"removed_flag": "auto"}, "other": {"lr": 2e-4}}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"args": args}))
    for name, file in {"full": "metrics.jsonl", "full-later": "checkpoint.tmp"}.items():
        (folder / name).mkdir()
        if Path("/dev/full").exists():  # else the tests that need it are skipped
            (folder / name / file).symlink_to("/dev/full")
    shutil.copytree(ROOT / "tiny/base", folder / "pickled")
    (folder / "pickled/model.safetensors").unlink()
    torch.save({}, folder / "pickled/pytorch_model.bin")
    return folder


def message_of(argv, monkeypatch):
    """What the command, run in this process, exits with; anything but SystemExit would be a traceback."""
    monkeypatch.setattr(sys, "argv", ["dapo.py", *argv])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path("dapo.py", run_name="__main__")
    return caught.value.code


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_sentence(bad, tmp_path, flags, monkeypatch):
    if "full" in flags and not Path("/dev/full").exists():
        pytest.skip("this platform has no /dev/full")
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not installed
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = f"{SMALL} --steps 0 --train {bad}/good.jsonl --test {bad}/good.jsonl --out {tmp_path / 'run'}"
    message = message_of([*small.split(), *flags.format(tmp=bad).split()], monkeypatch)
    assert message.startswith("error: ") and BAD[flags] in message and "\n" not in message and len(message) < 400


def test_running_out_of_gpu_memory_and_ctrl_c_are_one_sentence(tmp_path, monkeypatch):
    for error, says in ((torch.OutOfMemoryError("CUDA out of memory"), "memory"), (KeyboardInterrupt(), "--resume")):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
        assert says in message_of(["--out", str(tmp_path / "run")], monkeypatch)


def test_the_command_prints_one_line_and_exits_with_1():
    found = subprocess.run([sys.executable, "dapo.py", "--group-size", "1"], capture_output=True, text=True)
    assert found.returncode == 1 and found.stdout == ""
    assert re.fullmatch(r"error: --group-size 1: .*\n", found.stderr)


def test_what_a_model_writes_does_nothing_to_the_terminal(problems, tmp_path, monkeypatch, capsys):
    text = "\x1b]0;title\x07\x1b[2J\r\n\u202e"
    real = dapo.sample_and_check

    def hostile(*args):
        return [dataclasses.replace(response, text=text) for response in real(*args)]

    monkeypatch.setattr(dapo, "sample_and_check", hostile)
    run(problems, tmp_path / "run", "--steps 0")
    shown = capsys.readouterr().out
    assert r"\x1b]0;title\x07\x1b[2J\r\n\u202e" in shown and "\x1b]0" not in shown and "\u202e" not in shown
