"""studies/speed.py runs in its quick form, its competitors do the same work, and its bounds are counted right."""

import contextlib
import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace

import emulated
import pytest
import torch
from conftest import random_qwen
from torch.utils.flop_counter import FlopCounterMode

import dapo

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("speed", ROOT / "studies" / "speed.py")
speed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(speed)


def response(prompt, ids, reward):
    """A dapo.Response of which speed.py reads the prompt's ids, its own ids and the reward."""
    return dapo.Response({"ids": prompt}, ids, "", 0.0, False, reward, True)


RESPONSES = [response([5] * (i + 1), [6] * (8 - i % 4), float(i % 2)) for i in range(16)]


def test_generate_samples_what_rollout_samples():
    """Mean response lengths of the two competitors agree: the same distribution, and the end counts in both."""
    model = random_qwen()
    prompts = [[5, 6, 7], [8]]
    torch.manual_seed(0)
    theirs = speed.generate(model, prompts, 300, 12, [1, 2, 3]).sum(1).double()
    ours = dapo.rollout(model, prompts, 300, 12, [1, 2, 3])["mask"].sum(1).double()
    for a, b in zip(theirs.split(300), ours.split(300), strict=True):
        assert abs(a.mean() - b.mean()) < 4 * math.sqrt((a.var() + b.var()) / 300)


def test_race_divides_seconds_a_token(monkeypatch):
    seconds = iter([9, 9, 6, 1])  # a round that warms up, a round that counts: 6 s for 2 tokens against 1 s for 3
    monkeypatch.setattr(speed, "timed", lambda work: (next(seconds), work()))
    row = speed.race(lambda: 2, lambda: 3, SimpleNamespace(quick=True))
    assert row["ratio"] == pytest.approx(9) and row["tokens_per_second"] == pytest.approx(3)


def test_update_is_dapos_and_keeps_gradients():
    """Two optimiser steps that move the policy to the rewarded responses, whatever the micro-batch."""
    norms = []
    for micro_batch in (3, 16):
        model = random_qwen()
        speed.update(model, torch.optim.SGD(model.parameters(), lr=0.0), RESPONSES, micro_batch)
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert norms[0].norm() > 0 and torch.allclose(*norms, atol=1e-5)
    tokens, mask, _ = dapo.make_batches(RESPONSES, 16, 16)
    before = dapo.token_logprobs(model, tokens, mask)[0].sum(1)
    speed.update(model, torch.optim.SGD(model.parameters(), lr=0.1), RESPONSES, 16)
    gain = dapo.token_logprobs(model, tokens, mask)[0].sum(1) - before
    assert gain[1::2].mean() > gain[::2].mean()


def test_bounds_count_weights_live_rows_and_products():
    model = random_qwen()  # 2 layers x 2 heads x 8 numbers, keys and values, fp32
    weights = 4 * sum(p.numel() for p in model.parameters())
    token = 4 * 2 * 2 * 2 * 8
    in_cache = []  # at each position, the tokens of the rows that have not ended
    for t in range(1, 8):
        in_cache.append(sum(len(r.problem["ids"]) + t for r in RESPONSES if len(r.ids) > t))
    expected = sum(weights + token * tokens for tokens in in_cache)
    assert speed.bytes_to_decode(model, RESPONSES) == pytest.approx(expected)
    assert speed.memory_to_train(model, 16, 30) == 16 * model.num_parameters() + token * 16 * 30
    alike = [response([5, 6], [7, 8], float(i % 2)) for i in range(16)]  # no padding
    with FlopCounterMode(display=False) as counter:
        speed.update(model, torch.optim.SGD(model.parameters(), lr=0.0), alike, 16)
    assert counter.get_total_flops() == pytest.approx(speed.flop_to_update(model, alike), rel=0.1)


@pytest.mark.parametrize("name", ["rollout", "two", "bandit"])  # memory, in a process of its own, by hand
def test_a_measurement_runs(name, tmp_path, monkeypatch):
    speed.main([name, "--quick", "--out", str(tmp_path)])
    rows = json.loads(next(tmp_path.glob("speed-*-quick-cpu.json")).read_text())["rows"]
    assert rows and all(0 < row["least"] <= row["ratio"] <= row["most"] for row in rows.values())


def test_step_against_trl_runs(tmp_path):
    pytest.importorskip("trl")
    test_a_measurement_runs("step", tmp_path, None)


@pytest.mark.parametrize(("device", "status"), [("cpu", 1), ("cuda", 0)])
def test_gpu_runs_in_its_quick_form(device, status, tmp_path, monkeypatch):
    """On the CPU, and on a pretended GPU; the two commands are parsed, as what they run has tests of its own."""
    commands = []

    def run(command, **_):
        commands.append(command[1:])
        return SimpleNamespace(returncode=status, stdout="", stderr="")

    monkeypatch.setattr(speed.subprocess, "run", run)
    monkeypatch.setattr(speed, "DEVICE", device)
    monkeypatch.setattr(speed.torch, "compile", lambda function, **_: function)
    with emulated.cuda() if device == "cuda" else contextlib.nullcontext():
        if device == "cuda":
            monkeypatch.setattr(speed, "generate", lambda *_: None)  # not emulated: transformers' own decoding,
            monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a pretended GPU")  # and what only measures
            monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
            monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
        assert speed.main(["gpu", "--quick", "--out", str(tmp_path)]) == status
    rows = json.loads(next(tmp_path.glob("speed-gpu-quick-*.json")).read_text())["rows"]
    assert [*rows][:2] == ["gpu-marked tests", "default dapo.py"]
    assert len(rows) == 7
    assert commands[0] == ["-m", "pytest", "-m", "gpu"]
    assert commands[1][0] == "dapo.py"
    dapo.parse_args(commands[1][1:])
    for row in list(rows.values())[2:]:
        assert row["MFU"] > 0 and row["share of bandwidth bound"] > 0 and row["rollout, seconds"] > 0
    assert rows["32 rows, 16 tokens, eager"]["table GB"] > rows["16 rows, 16 tokens, eager"]["table GB"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no GPU")
def test_gpu_without_a_gpu_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no CUDA device"):
        speed.main(["gpu", "--out", str(tmp_path)])
