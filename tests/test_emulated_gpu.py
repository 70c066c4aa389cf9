"""The scripts' `main` with --device cuda, on the pretended GPU of emulated.py, and what that emulation catches.

It would have caught positions fed as token ids, generators of the other device, a forgotten .cpu(), and gradient
checkpointing that never ran. It cannot tell how fast a real GPU is, nor how its kernels round.
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
from torch.utils.checkpoint import checkpoint
from transformers.utils import import_utils

ROOT = Path(__file__).resolve().parent.parent
TRAIN = "--prompts-per-step 2 --mini-batch 2 --group-size 8 --gen-batch 4 --max-response 40 --eval-every 1 --steps 1"
TRAIN += " --eval-problems 2 --eval-samples 1 --micro-batch 8 --train {tmp}/p.jsonl --test {tmp}/p.jsonl"
PAIR = "--base tiny/base --rlvr tiny/rlvr --max-response 16 --samples 2 --bootstrap 5"
TRAINERS = {
    "dapo": f"{TRAIN} --overlong-buffer 4 --max-gen-batches 4",
    "grpo_n": f"{TRAIN} --passk-samples 2 --passk-problems 1",
}
ANALYSES = {
    "delta_logp": f"{PAIR} --data {{tmp}}/p.jsonl --problems 4 --micro-batch 3",
    "replace": f"{PAIR} --test {{tmp}}/p.jsonl --train {{tmp}}/p.jsonl --problems 4 --calibration-problems 4"
    " --criteria dlogp,random --ratios 0.2 --reverse dlogp",
    "extrapolate": f"{PAIR} --test {{tmp}}/p.jsonl --train {{tmp}}/p.jsonl --problems 4 --train-problems 4"
    " --taus=-0.1 --gammas 0.5",
}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    problems = sorted((ROOT / "tiny" / "train.jsonl").read_text().splitlines()[:40], key=len)
    (tmp_path / "p.jsonl").write_text("\n".join(problems[:8]))


def script(name, changes=()):
    """The script as a module of its own, after textual changes [(old, new)]."""
    path = ROOT / f"{name}.py"
    source, module = path.read_text(encoding="utf-8"), types.ModuleType(name)
    for old, new in changes:
        assert old in source, f"{path.name} no longer has {old!r}: adapt this test"
        source = source.replace(old, new, 1)
    module.__file__ = str(path)
    sys.modules.setdefault(name, module)  # dataclasses look there
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def run(module, tmp_path, more="", out="run"):
    """main of the script on the pretended GPU; returns the folder of its run."""
    flags = (TRAINERS | ANALYSES)[module.__name__].format(tmp=tmp_path)
    with emulated.cuda():
        module.main(module.parse_args(f"{flags} --device cuda --out {tmp_path / out} {more}".split()))
    return tmp_path / out


def first_update(out):
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return next(row for row in rows if "grad_norm" in row)


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


MISTAKES = {
    "a mask on the CPU": (lambda: gpu(3) * torch.ones(3), "same device"),
    "a mask on the CPU, in place": (lambda: gpu(3).mul_(torch.ones(3)), "same device"),
    "the CPU's tensor written": (lambda: torch.ones(3).add_(gpu(3)), "same device"),
    "a number of the CPU written": (lambda: torch.ones(()).add_(gpu(())), "same device"),
    "results collected on the CPU": (lambda: torch.zeros(3, 2).index_put_((torch.arange(3),), gpu(3, 2)), "same dev"),
    "a mask of the GPU on the CPU's tensor": (lambda: torch.ones(3)[gpu(3) > 0], "same device"),
    "cat": (lambda: torch.cat([gpu(3), torch.ones(3)]), "same device"),
    "stack of numbers": (lambda: torch.stack([gpu(()), torch.ones(())]), "same device"),
    "gather": (lambda: gpu(3).gather(0, torch.tensor([1])), "same device"),
    "a generator of the CPU": (lambda: gpu(3).exponential_(generator=torch.Generator()), "generator"),
    "a generator of the GPU": (lambda: torch.rand(3, generator=torch.Generator("cuda")), "generator"),
    "the state of a generator on the GPU": (lambda: torch.Generator("cuda").set_state(gpu(5).byte()), "ByteTensor"),
    "numpy()": (lambda: gpu(3).numpy(), "numpy"),
    "a forgotten .cpu()": (lambda: np.asarray(gpu(3)), "numpy"),
    "a list of tensors into numpy": (lambda: np.array([gpu(3), gpu(3)]), "numpy"),
    "an id out of range": (lambda: torch.nn.Embedding(22, 4).to("cuda")(torch.tensor([22], device="cuda")), "range"),
    "ids on the CPU": (lambda: random_qwen().to("cuda")(torch.tensor([[5, 6]])), "same device"),
    "a model left on the CPU": (lambda: random_qwen()(torch.tensor([[5, 6]], device="cuda")), "same device"),
    "in the backward pass": (lambda: WrongBackward.apply(gpu(3).requires_grad_()).sum().backward(), "same device"),
    "a mask without device": (lambda: gpu(3, 3).masked_fill(torch.ones(3, 3).triu() > 0, 0.0), "same device"),
    "weights on two devices": (lambda: torch.nn.functional.linear(gpu(2), torch.ones(4, 2)), "same device"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_emulation_catches(name):
    mistake, says = MISTAKES[name]
    with emulated.cuda(), pytest.raises((RuntimeError, TypeError, IndexError), match=says):
        mistake()


def test_the_emulation_allows_what_cuda_allows(tmp_path):
    with emulated.cuda():
        x, cpu = torch.arange(6.0, device="cuda").view(2, 3), torch.arange(2)
        made = [
            x + 1,
            x[0],
            x.T,
            x[cpu],
            x[:, torch.tensor([True, False, True])],
            x * torch.tensor(2.0),
            x.float().cuda(),
        ]
        made += [x.new_ones(2), x.new_tensor([1]), torch.zeros_like(x), torch.tensor([1], device=x.device), x.clone()]
        made += [
            torch.where(x > 1, x, 0.0),
            x.masked_fill(x > 1, -1.0),
            cpu.to(x),
            cpu.to("cuda"),
            torch.zeros(3).copy_(x[0]).cuda(),
        ]
        made += [torch.as_tensor(cpu, device="cuda"), torch.randn(3, device="cuda", generator=torch.Generator("cuda"))]
        assert all(y.device == torch.device("cuda:0") and y.is_cuda and not y.is_cpu for y in made)
        x[0, :2] = cpu.float()
        x[:, cpu] = 5.0
        back = [cpu, x.cpu(), x.to("cpu"), torch.zeros_like(x, device="cpu"), cpu.float().copy_(x[0, :2]), x.to(cpu)]
        assert all(y.device == torch.device("cpu") and not y.is_cuda for y in back)
        assert x.cpu().numpy().sum() == 27.0 and x.tolist()[0][0] == 5.0 and x.sum().item() == 27.0
        torch.save({"x": x, "state": torch.Generator("cuda").get_state()}, tmp_path / "saved")
        saved = torch.load(tmp_path / "saved", map_location="cpu")
        assert not saved["x"].is_cuda and torch.Generator("cuda").set_state(saved["state"])
        assert torch.load(tmp_path / "saved", map_location="cuda")["state"].is_cuda
    assert not torch.cuda.is_available() and x.device.type == "cpu" and type(torch.Generator()) is torch.Generator
    assert import_utils.is_torch_cuda_available() is False


def test_autocast_and_recomputed_layers_stay_on_the_pretended_gpu():
    def layer(x):
        assert torch.is_autocast_enabled("cuda")
        return linear(x) * torch.arange(4, device=x.device)

    with emulated.cuda():
        linear, x = torch.nn.Linear(4, 4).to("cuda"), gpu(2, 4).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):
            y = checkpoint(layer, x, use_reentrant=False)
            assert linear(x).dtype == torch.bfloat16
        y.sum().backward()
        assert x.grad.is_cuda and linear.weight.grad.is_cuda and linear.weight.grad.dtype == torch.float32
        optimizer = torch.optim.AdamW(linear.parameters(), fused=True)
        torch.nn.utils.clip_grad_norm_(linear.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        assert all(value.is_cuda for state in optimizer.state.values() for value in state.values())


# ------------------------------------------------------------------------------------------------- the scripts' main
@pytest.mark.parametrize("name", ["dapo"])  # grpo_n.py's main runs below
def test_main_runs_end_to_end_and_resumes_with_equal_bytes(name, tmp_path):
    whole = run(script(name), tmp_path, "--steps 2")
    row = first_update(whole)
    assert row["grad_norm"] > 0 and 1e-5 < row["sampler_gap"] < 0.1  # bf16 samples, autocast scores
    run(script(name), tmp_path, out="resumed")
    resumed = run(script(name), tmp_path, "--steps 2 --resume", out="resumed")
    for file in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file
    trained, base = load_file(whole / "model/model.safetensors"), load_file(ROOT / "tiny/base/model.safetensors")
    assert all(x.dtype == torch.float32 for x in trained.values()) and (whole / "curves.png").exists()
    flags = f"{TRAINERS[name].format(tmp=tmp_path)} --steps 2 --device cpu --out {whole} --resume"
    with pytest.raises(SystemExit, match="'device': 'cuda'"):  # a CPU's generator cannot go on from a GPU's
        script(name).main(script(name).parse_args(flags.split()))
    assert np.mean([(trained[key] != base[key]).float().mean().item() for key in base]) > 0.9


@pytest.mark.parametrize("name", ANALYSES)
def test_main_of_an_analysis_runs_end_to_end_in_bf16(name, tmp_path, monkeypatch):
    module, dtypes = script(name), []
    load = module.AutoModelForCausalLM.from_pretrained

    def spy(*args, **kwargs):
        dtypes.append(kwargs["dtype"])
        return load(*args, **kwargs)

    monkeypatch.setattr(module.AutoModelForCausalLM, "from_pretrained", spy)
    out = run(module, tmp_path)
    assert dtypes == [torch.bfloat16] * 2 and (out / "config.json").exists() and list(out.glob("*.png"))


@pytest.mark.parametrize("name", TRAINERS)
def test_a_bf16_copy_samples_and_fp32_weights_are_trained(name, tmp_path, monkeypatch):
    module, models = script(name), {}

    def spy(function, dtype):
        def wrapper(model, *args, **kwargs):
            key = "sampler" if dtype == torch.bfloat16 else "policy" if model.training else "reference"
            assert {p.dtype for p in model.parameters()} == {dtype} and model.device.type == "cuda"
            assert model.model.rotary_emb.inv_freq.dtype == torch.float32
            if models.setdefault(key, model) is model and key == "sampler" and "policy" in models:
                assert not model.training  # and it has the policy's weights at every use
                pairs = zip(model.parameters(), models["policy"].parameters(), strict=True)
                assert all(torch.equal(x, y.to(torch.bfloat16)) for x, y in pairs)
            return function(model, *args, **kwargs)

        monkeypatch.setattr(module, function.__name__, wrapper)

    spy(module.rollout, torch.bfloat16)
    spy(module.token_logprobs, torch.float32)
    run(module, tmp_path, "--steps 2 --lr 1e-3 --warmup-steps 0")
    assert models.keys() >= {"sampler", "policy"}
    for model in models.values():
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # still tied


@pytest.mark.parametrize("name", ["dapo"])  # the loop of grpo_n.py is the same
def test_gradient_checkpointing_saves_memory_on_the_scripts_own_path(name, tmp_path):
    """What autograd keeps in the script's own update, weights aside; without train mode nothing would be saved."""

    def kept(flags="", changes=()):
        total = 0

        def count(x):
            nonlocal total
            total += 0 if x.is_leaf and x.requires_grad else x.numel() * x.element_size()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            out = run(script(name, changes), tmp_path, flags, out=f"run{len(list(tmp_path.iterdir()))}")
        return total, first_update(out)

    (plain, row), (saved, other) = kept(), kept("--gradient-checkpointing")
    assert saved < plain / 4 and other["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-3)
    assert kept("--gradient-checkpointing", [("policy.train()", "policy.eval()")])[0] > plain / 2


PLANTED = [  # (where it stands, what a tired author writes)
    ("for p in prompts], device=device)  # (B, W)", "for p in prompts])  #"),
    ("+ [1] * len(p) for p in prompts], device=device)", "+ [1] * len(p) for p in prompts])"),
    ("torch.arange(len(logits), device=device)", "torch.arange(len(logits))"),
    ("torch.tensor(eos_ids, device=device)", "torch.tensor(eos_ids)"),
    ("dtype=torch.long, device=device)", "dtype=torch.long)"),
    ("torch.zeros(3, len(live), max_new_tokens, device=device)", "torch.zeros(3, len(live), max_new_tokens)"),
    ("attention.new_ones(len(new), 1)", "torch.ones(len(new), 1)"),
    ('"input_ids": new[:, None]', '"input_ids": position + 20'),  # positions as ids: past a vocabulary of 26
    ("tokens.to(device), mask.to(device)", "tokens, mask.to(device)"),
    ("tokens.to(device), mask.to(device)", "tokens.to(device), mask"),
    ("torch.Generator(device)", "torch.Generator()"),
    ("torch.Generator(model.device)", "torch.Generator()"),
    ("dtype=torch.bfloat16, use_safetensors=True).to(device)", "dtype=torch.bfloat16, use_safetensors=True)"),
    ("policy.train()", "policy.cpu().train()"),
    ('for x in r["logp"]], device=device)', 'for x in r["logp"]])'),
    ("for group in groups], device=device)", "for group in groups])"),
    ("seen - logp_old[mask != 0]", "seen - np.asarray(logp_old[mask != 0])"),
]


@pytest.mark.parametrize("change", PLANTED, ids=[new for _, new in PLANTED])
def test_a_mistake_planted_in_dapo_stops_its_run(change, tmp_path):
    with pytest.raises((RuntimeError, TypeError, IndexError), match=r"same device|generator|numpy|range"):
        run(script("dapo", [change]), tmp_path)
