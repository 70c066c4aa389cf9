"""The scripts' `main` with --device cuda, on the pretended GPU of emulated.py, and mistakes that this catches.

It cannot tell how fast a real GPU is, nor how its kernels round.
"""

import json
import sys
import types
from pathlib import Path

import emulated
import numpy as np
import pytest
import torch
from conftest import random_qwen
from safetensors.torch import load_file
from transformers.utils import import_utils

ROOT = Path(__file__).resolve().parent.parent
TRAIN = "--steps 1 --prompts-per-step 2 --mini-batch 1 --group-size 4 --gen-batch 2 --micro-batch 3 --max-response 24"
TRAIN += " --eval-every 1 --eval-problems 2 --eval-samples 1 --train {problems} --test {problems}"
PAIR = "--max-response 12 --samples 2 --bootstrap 5 --problems 2"
FLAGS = {
    "dapo": TRAIN,
    "grpo_n": f"{TRAIN} --algorithm grpo-n --passk-samples 2 --passk-problems 1",
    "delta_logp": f"{PAIR} --data {{problems}} --micro-batch 3",
    "replace": f"{PAIR} --test {{problems}} --train {{problems}} --calibration-problems 2 --calibration-passes 1"
    " --criteria dlogp,random,speculative --ratios 0.2 --reverse dlogp",
    "extrapolate": f"{PAIR} --test {{problems}} --train {{problems}} --train-problems 2 --taus=-0.1 --gammas 0.5",
}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    rows = sorted((ROOT / "tiny" / "train.jsonl").read_text().splitlines()[:40], key=len)
    (tmp_path / "problems.jsonl").write_text("\n".join(rows[:8]))


def script(name, old="", new=""):
    """The script as a module of its own, with `old` replaced by `new` in its text."""
    source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert old in source, f"{name}.py no longer has {old!r}: adapt this test"
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / f"{name}.py")
    sys.modules.setdefault(name, module)  # dataclasses look there
    exec(compile(source.replace(old, new, 1), module.__file__, "exec"), module.__dict__)
    return module


def run(module, tmp_path, more="", out="run"):
    """main of the script on the pretended GPU; returns the folder of its run. Half of the responses count as right."""
    module.is_correct = lambda text, *_: sum(map(ord, text)) % 2 == 0
    flags = FLAGS[module.__name__].format(problems=tmp_path / "problems.jsonl")
    with emulated.cuda():
        module.main(module.parse_args(f"{flags} --device cuda --out {tmp_path / out} {more}".split()))
    return tmp_path / out


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --------------------------------------------------------------------------------------------------- the emulation
class WrongBackward(torch.autograd.Function):
    weights = torch.ones(3)

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * WrongBackward.weights


def gpu(*shape):
    return torch.ones(*shape, device="cuda")


def autocast():
    with torch.autocast("cuda", torch.bfloat16):
        torch.nn.functional.linear(gpu(2), gpu(4, 2))


MISTAKES = {
    "a mask on the CPU": (lambda: gpu(3) * torch.ones(3), "same device"),
    "a number of the CPU written": (lambda: torch.ones(()).add_(gpu(())), "same device"),
    "results collected on the CPU": (lambda: torch.zeros(3, 2).index_put_((torch.arange(3),), gpu(3, 2)), "same dev"),
    "a mask of the GPU on the CPU's tensor": (lambda: torch.ones(3)[gpu(3) > 0], "same device"),
    "stack of numbers": (lambda: torch.stack([gpu(()), torch.ones(())]), "same device"),
    "a model left on the CPU": (lambda: random_qwen()(torch.tensor([[5, 6]], device="cuda")), "same device"),
    "in the backward pass": (lambda: WrongBackward.apply(gpu(3).requires_grad_()).sum().backward(), "same device"),
    "a generator of the CPU": (lambda: gpu(3).exponential_(generator=torch.Generator()), "generator"),
    "a generator of the GPU": (lambda: torch.rand(3, generator=torch.Generator("cuda")), "generator"),
    "the state of a generator on the GPU": (lambda: torch.Generator("cuda").set_state(gpu(5).byte()), "ByteTensor"),
    "a forgotten .cpu()": (lambda: np.asarray(gpu(3)), "numpy"),
    "a list of tensors into numpy": (lambda: np.array([gpu(3), gpu(3)]), "numpy"),
    "a bf16 model": (lambda: random_qwen().bfloat16().to("cuda"), "fp32"),
    "a bf16 copy made there": (lambda: random_qwen().to("cuda").to(torch.bfloat16), "fp32"),
    "an fp64 model": (lambda: random_qwen().to("cuda").double()(torch.tensor([[5]], device="cuda")), "fp32"),
    "fp64 into a layer": (lambda: torch.nn.SiLU()(gpu(3).double()), "fp32"),
    "16 bits made there": (lambda: torch.tensor([1.0], dtype=torch.float16, device="cuda"), "fp32"),
    "autocast": (autocast, "fp32"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_emulation_catches(name):
    mistake, says = MISTAKES[name]
    with emulated.cuda(), pytest.raises((RuntimeError, TypeError), match=says):
        mistake()


def test_the_emulation_allows_what_cuda_allows(tmp_path):
    with emulated.cuda():
        x = torch.arange(6.0, device="cuda").view(2, 3)
        cpu = torch.arange(2)
        there = [
            x[0],
            x.T,
            x[cpu],
            x[:, torch.tensor([True, False, True])],
            x * torch.tensor(2.0),
            x.new_ones(2),
            x.new_tensor([1]),
            torch.zeros_like(x),
            torch.tensor([1], device=x.device),
            torch.as_tensor(cpu, device="cuda"),
            torch.randn(3, device="cuda", generator=torch.Generator("cuda")),
            x.masked_fill(x > 1, -1.0),
            cpu.to(x),
            cpu.cuda(),
        ]
        assert all(y.device == torch.device("cuda:0") and y.is_cuda and not y.is_cpu for y in there)
        x[0, :2] = cpu.float()
        x[:, cpu] = 5.0
        back = [cpu, x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), cpu.float().copy_(x[0, :2]), x.to(cpu)]
        assert all(y.device == torch.device("cpu") and not y.is_cuda for y in back)
        assert x.cpu().numpy().sum() == 27.0 and x.tolist()[0][0] == 5.0 and x.sum().item() == 27.0
        torch.save({"x": x, "state": torch.Generator("cuda").get_state()}, tmp_path / "saved")
        saved = torch.load(tmp_path / "saved", map_location="cpu")
        assert not saved["x"].is_cuda and torch.Generator("cuda").set_state(saved["state"])
    assert not torch.cuda.is_available() and x.device.type == "cpu" and type(torch.Generator()) is torch.Generator
    assert import_utils.is_torch_cuda_available() is False


# ------------------------------------------------------------------------------------------------- the scripts' main
def test_dapo_resumes_with_equal_bytes_and_checkpointing_saves_memory(tmp_path):
    kept = []  # numbers that autograd keeps for the backward passes of a run, weights aside

    def count(x):
        if not (x.is_leaf and x.requires_grad):
            kept[-1] += x.numel()
        return x

    def counted_run(module, more, out):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            return run(module, tmp_path, more, out)

    whole = counted_run(script("dapo"), "--steps 2", "whole")
    resumed = counted_run(script("dapo"), "", "resumed")
    counted_run(script("dapo"), "--steps 2 --resume --gradient-checkpointing", "resumed")
    for file in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file
    step_2 = kept[0] - kept[1]
    assert kept[2] < step_2 / 4  # without train mode nothing would be saved

    rows = read_rows(whole / "metrics.jsonl")
    trained = load_file(whole / "model/model.safetensors")
    base = load_file(ROOT / "tiny/base/model.safetensors")
    assert [row["grad_norm"] > 0 for row in rows[1:]] == [True, True] and (whole / "curves.png").exists()
    assert np.mean([(trained[key] != base[key]).float().mean().item() for key in base]) > 0.9
    with pytest.raises(ValueError, match="--device cuda"):  # a CPU's generator cannot go on from a GPU's
        run(script("dapo"), tmp_path, "--resume --device cpu", "whole")


def test_grpo_n_runs_with_reference_and_pass_at_k(tmp_path):
    out = run(script("grpo_n"), tmp_path)
    row = read_rows(out / "metrics.jsonl")[-1]
    passk = json.loads((out / "passk.json").read_text())
    assert row["grad_norm"] > 0 and 0 < row["active"] < 1 and row["kl_ref"] >= 0
    assert list(passk["models"]) == ["tiny/base", "run/model"]


@pytest.mark.parametrize("name", ["delta_logp", "replace", "extrapolate"])
def test_an_analysis_runs_end_to_end(name, tmp_path):
    out = run(script(name), tmp_path)
    assert (out / "config.json").exists() and list(out.glob("*.png"))


def test_the_lemma_is_checked_in_fp64_outside_of_the_model(tmp_path, capsys):
    run(script("delta_logp"), tmp_path, "--check")
    assert "largest relative error" in capsys.readouterr().out


UPDATE = "logp = token_logprobs(policy, *inputs)[0]"
PLANTED = {  # a mistake: (where it stands in dapo.py, what a tired author writes)
    "prompts on the CPU": ("list(p) for p in prompts], device=device)", "list(p) for p in prompts])"),
    "results on the CPU": ("logp = torch.zeros(n_rows, max_new_tokens, device=device)", "logp = torch.zeros(8, 24)"),
    "live rows on the CPU": ("torch.arange(n_rows, device=device)", "torch.arange(n_rows)"),
    "attention on the CPU": ("attention.new_ones(len(new), 1)", "torch.ones(len(new), 1)"),
    "positions as ids": ("input_ids=new[:, None]", "input_ids=position + 20"),  # past a vocabulary of 26
    "the CPU's generator": ("torch.Generator(device)", "torch.Generator()"),
    "the model on the CPU": ("return model.to(device)", "return model"),
    "the mask on the CPU": ("mask = mask.to(device)", "mask = mask"),
    "rewards on the CPU": ("for response in responses], device=device)", "for response in responses])"),
    "a model in bf16": ("dtype=torch.float32", "dtype=torch.bfloat16"),
    "an update under autocast": (UPDATE, f"with torch.autocast(device, torch.bfloat16): {UPDATE}"),
    "a softmax in bf16": ("log_softmax(logits.float()", "log_softmax(logits.bfloat16()"),
    "a forward pass in fp64": ("return model.to(device)", "return model.to(device).double()"),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_mistake_planted_in_dapo_stops_its_run(mistake, tmp_path):
    with pytest.raises((RuntimeError, TypeError, IndexError), match=r"same device|generator|range|fp32"):
        run(script("dapo", *PLANTED[mistake]), tmp_path)
