"""Shared by the tests: small random models whose logits vary with everything, so that a wrong position shows."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and so do the scripts that they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model that is not here is an error at once, not after retries

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from transformers import Qwen3Config, Qwen3ForCausalLM

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def random_qwen(vocab_size=40, seed=0, tie=True, **more):
    """A random Qwen3 whose next-token distributions are far from uniform and differ at every position."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        **more,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


@pytest.fixture(autouse=True)
def pictures_only_where_they_are_the_point(request, monkeypatch):
    """Drawing is a third of a short run. Files are made; what is in them, tests marked "pictures" and fixtures see."""
    if "pictures" not in request.keywords:
        monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).touch())


@pytest.fixture
def model():
    return random_qwen()
