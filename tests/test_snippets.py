"""docs/snippets: functions are those of the scripts, TRL's loss comes back where nothing is changed, and it trains."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dapo
import grpo_n

ROOT = Path(__file__).resolve().parent.parent
SNIPPET = ROOT / "docs" / "snippets" / "trl_reweight.py"


def code_of(path, name):
    (function,) = [x for x in ast.parse(path.read_text()).body if isinstance(x, ast.FunctionDef) and x.name == name]
    function.body = function.body[1:]  # the docstring
    return ast.dump(function)


@pytest.mark.parametrize(("script", "name"), [("dapo.py", "reweight_low_prob"), ("grpo_n.py", "negative_only")])
def test_the_pasted_functions_are_those_of_the_scripts(script, name):
    same = code_of(ROOT / script, name) == code_of(SNIPPET, name)
    assert same


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """(the snippet's module, its trainer on tiny/base with alpha 0)."""
    pytest.importorskip("trl", reason="needs: pip install -r requirements-extras.txt")
    sys.path.insert(0, str(SNIPPET.parent))
    import trl_reweight
    from datasets import Dataset
    from trl import GRPOConfig

    out = str(tmp_path_factory.mktemp("trl"))
    config = {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "num_generations": 4}
    config |= {"per_device_train_batch_size": 8, "use_cpu": True, "report_to": [], "output_dir": out, "bf16": False}
    config |= {"gradient_checkpointing": False, "max_completion_length": 12}
    rows = [{"prompt": "1+1+1+1?", "answer": "4"}] * 8
    how = {"args": GRPOConfig(**config), "train_dataset": Dataset.from_list(rows), "alpha": 0.0}
    return trl_reweight, trl_reweight.ReweightedTrainer(
        model=str(ROOT / "tiny/base"), reward_funcs=trl_reweight.reward, **how
    )


def batch(model, with_old):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (8, 18), generator=generator)
    mask = (torch.arange(12) < torch.randint(1, 13, (8, 1), generator=generator)).long()
    inputs = {"prompt_ids": ids[:, :6], "prompt_mask": torch.ones(8, 6, dtype=torch.long), "completion_ids": ids[:, 6:]}
    inputs |= {"completion_mask": mask, "num_items_in_batch": mask.sum()}
    inputs["advantages"] = dapo.group_advantages(torch.randn(2, 4, generator=generator)).flatten()
    if with_old:  # the policy has moved since: ratios on both sides of both clips
        full = torch.cat([torch.zeros(8, 6), mask.float()], 1)
        with torch.no_grad():
            logp = dapo.token_logprobs(model, ids, full)[0][:, 6:]
        inputs["old_per_token_logps"] = logp + torch.randn(logp.shape, generator=generator) / 3
    return inputs


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("with_old", [False, True])
def test_alpha_0_is_the_loss_of_trl_and_both_are_ours(trainer, with_old):
    module, ours = trainer
    model, inputs = ours.model.train(), batch(ours.model, with_old)
    ours.current_gradient_accumulation_steps = ours.args.steps_per_generation = 1
    ours.alpha, ours.negative = 0.0, False
    theirs = module.GRPOTrainer._compute_loss(ours, model, inputs)
    snippet = ours._compute_loss(model, inputs)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([torch.zeros(8, 6), inputs["completion_mask"].float()], 1)
    logp = dapo.token_logprobs(model, ids, mask)[0][:, 6:]
    old = inputs.get("old_per_token_logps", logp.detach())
    adv, mask = inputs["advantages"][:, None].expand_as(logp), mask[:, 6:]
    here, _ = dapo.dapo_loss(logp, old, adv, mask, dual_clip=1e9)  # TRL has no dual clip here
    print("differences of the losses:", (snippet - theirs).item(), (here - theirs).item())
    grads = [gradient(model, loss) for loss in (theirs, snippet, here)]
    for loss, grad in ((snippet, grads[1]), (here, grads[2])):
        assert abs(loss - theirs) < 1e-6 and (grad - grads[0]).norm() < 1e-4 * grads[0].norm()
    # with alpha, the snippet is our loss of reweighted advantages, and no longer theirs
    for alpha, negative in ((0.5, False), (0.0, True), (0.5, True)):
        ours.alpha, ours.negative = alpha, negative
        changed = dapo.reweight_low_prob(grpo_n.negative_only(adv) if negative else adv, old, alpha)
        logp = dapo.token_logprobs(model, ids, torch.cat([torch.zeros(8, 6), mask], 1))[0][:, 6:]
        here, _ = dapo.dapo_loss(logp, old, changed, mask, dual_clip=1e9)
        snippet = ours._compute_loss(model, inputs)
        assert abs(snippet - here) < 1e-6 and abs(snippet - theirs) > 1e-4


def test_it_trains_in_two_processes(tmp_path):
    pytest.importorskip("trl", reason="needs: pip install -r requirements-extras.txt")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(SNIPPET), "--steps", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*command, "--max-response", "48", "--out", str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert (tmp_path / "model.safetensors").exists() and json.loads((tmp_path / "config.json").read_text())
    one = ROOT / "tiny/base/model.safetensors"
    assert (tmp_path / "model.safetensors").read_bytes() != one.read_bytes()
    lines = [line for line in found.stdout.splitlines() if "num_tokens" in line]
    tokens = int(ast.literal_eval(lines[0])["num_tokens"])
    assert tokens > 64 * 8 * 2  # 64 responses a process and generation; one process would have half the tokens
