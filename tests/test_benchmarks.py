"""The benchmarks run, and their competitors do the same work."""

import importlib.util
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import random_qwen

import dapo

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)


LENGTHS = [2, 7, 3, 5, 9, 2]


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_forced_lengths_end_every_row_where_they_say(monkeypatch, cuda_graph):
    force, original = bench.ForcedLengths(LENGTHS, eos_id=1), dapo.sample_tokens
    monkeypatch.setattr(dapo, "sample_tokens", lambda logits, *rest: original(force(logits), *rest))
    how = {"generator": torch.Generator().manual_seed(0), "cuda_graph": cuda_graph}
    out = dapo.rollout(random_qwen(), [[5, 6], [7]], 3, 20, [1], 0, **how)
    assert out["mask"].sum(1).tolist() == LENGTHS and out["finished"].all()


def test_generate_ends_at_the_same_lengths():
    model, force = random_qwen(), bench.ForcedLengths(LENGTHS, eos_id=1)
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: force(out))
    ids = torch.tensor([[5, 6], [7, 8]])
    how = {"do_sample": True, "top_k": 0, "num_return_sequences": 3, "max_new_tokens": 20}
    out = model.generate(input_ids=ids, attention_mask=ids * 0 + 1, eos_token_id=1, pad_token_id=0, **how)[:, 2:]
    assert [row.tolist().index(1) + 1 for row in out] == LENGTHS


def test_decoding_bytes_count_weights_and_live_rows():
    model = random_qwen()  # 2 layers x 2 heads x 8 numbers, keys and values, fp32
    weights, token = 4 * sum(p.numel() for p in model.parameters()), 4 * 2 * 2 * 2 * 8
    step_by_step = sum(weights + token * sum(3 + t for n in LENGTHS if n > t) for t in range(1, 9))
    assert bench.decoding_bytes(model, [[5, 6, 7]] * 2, LENGTHS, 3) == pytest.approx(step_by_step)


@pytest.mark.parametrize(
    ("name", "more"), [("rollout", {"model": "tiny/base"}), ("analysis", {"model": ""}), ("update", {"model": "small"})]
)
def test_a_benchmark_runs(monkeypatch, name, more):
    monkeypatch.setattr(bench, "random_model", lambda name: random_qwen(vocab_size=151_000))
    result = bench.BENCHMARKS[name](Namespace(rounds=1, rows=8, tokens=8, **more))
    assert all(row["ratio"] > 0 and len(row["rounds"]) == 1 for row in result.values())
