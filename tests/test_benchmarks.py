"""The benchmarks run in their quick form, and their competitors do the same work."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import random_qwen

import dapo

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


def test_generate_samples_what_rollout_samples():
    """Mean response lengths of the two competitors agree: the same distribution, and the end counts in both."""
    model, prompts = random_qwen(), [[5, 6, 7], [8]]
    torch.manual_seed(0)
    theirs = bench.generate(model, prompts, 300, 12, [1, 2, 3])["mask"].sum(1).double()
    ours = dapo.rollout(model, prompts, 300, 12, [1, 2, 3])["mask"].sum(1).double()
    for a, b in zip(theirs.split(300), ours.split(300), strict=True):
        assert abs(a.mean() - b.mean()) < 4 * math.sqrt((a.var() + b.var()) / 300)


@pytest.mark.parametrize("name", ["rollout", "two", "bandit", "gpu"])
def test_a_benchmark_runs(name, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.torch, "compile", lambda function, dynamic: function)  # a minute of a compiler
    bench.main([name, "--quick", "--rounds", "1", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert rows and all(value > 0 for row in rows.values() for value in row.values() if isinstance(value, float))
