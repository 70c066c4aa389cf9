"""The benchmarks run, and their competitors do the same work."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import random_qwen

from dapo import rollout

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


def test_forced_lengths_end_every_row_where_they_say():
    model, lengths = random_qwen(), [2, 7, 3, 5, 9, 2]
    bench.ForcedLengths(model, lengths, eos_id=1)
    out = rollout(model, [[5, 6], [7]], 3, 20, [1], 0, generator=torch.Generator().manual_seed(0))
    assert out["mask"].sum(1).tolist() == lengths and out["finished"].all()


def test_generate_ends_at_the_same_lengths():
    model, lengths = random_qwen(), [2, 7, 3, 5, 9, 2]
    bench.ForcedLengths(model, lengths, eos_id=1)
    ids = torch.tensor([[5, 6], [7, 8]])
    how = {"do_sample": True, "top_k": 0, "num_return_sequences": 3, "max_new_tokens": 20}
    out = model.generate(input_ids=ids, attention_mask=ids * 0 + 1, eos_token_id=1, pad_token_id=0, **how)[:, 2:]
    assert [row.tolist().index(1) + 1 for row in out] == lengths


@pytest.mark.parametrize(("name", "more"), [("rollout", {"model": "tiny/base"}), ("analysis", {"model": ""})])
def test_a_benchmark_runs(name, more):
    result = bench.BENCHMARKS[name](Namespace(rounds=1, rows=8, tokens=8, **more))
    assert all(row["ratio"] > 0 and len(row["rounds"]) == 1 for row in result.values())
