"""docs/snippets: functions are those of the scripts, TRL's loss comes back where nothing is changed, and it trains."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_maths import batch

import dapo
import grpo_n

ROOT = Path(__file__).resolve().parent.parent
SNIPPET = ROOT / "docs" / "snippets" / "trl_reweight.py"


def pasted(name):
    """The snippet's function in a namespace that holds nothing else."""
    (function,) = [node for node in ast.parse(SNIPPET.read_text()).body if getattr(node, "name", "") == name]
    namespace = {}
    exec(compile(ast.unparse(function), name, "exec"), namespace)
    return namespace[name]


def test_the_functions_run_pasted_alone_and_are_those_of_the_scripts():
    _, logp_old, adv, _ = batch(5, 5)
    reweight = pasted("reweight_low_prob")
    for alpha in (0.0, 0.2, 1.0):
        assert torch.equal(reweight(adv, logp_old, alpha), dapo.reweight_low_prob(adv, logp_old, alpha))
    with pytest.raises(ValueError, match="one shape"):
        reweight(adv[:, 0], logp_old, 0.2)
    assert torch.equal(pasted("negative_only")(adv), grpo_n.negative_only(adv))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """(the snippet's module, its trainer on tiny/base with alpha 0)."""
    pytest.importorskip("trl", reason="needs: pip install -r requirements-extras.txt")
    sys.path.insert(0, str(SNIPPET.parent))
    import trl_reweight
    from datasets import Dataset
    from trl import GRPOConfig

    config = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        num_generations=4,
        per_device_train_batch_size=8,
        max_completion_length=12,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
    )
    problems = Dataset.from_list([{"prompt": "1+1+1+1?", "answer": "4"}] * 8)
    model = str(ROOT / "tiny/base")
    ours = trl_reweight.ReweightedTrainer(
        model=model, reward_funcs=trl_reweight.reward, args=config, train_dataset=problems, alpha=0.0
    )
    ours.current_gradient_accumulation_steps = 1
    ours.args.steps_per_generation = 1
    return trl_reweight, ours


def logp_of(model, inputs):
    """Log-probs of the completions, (B, T), and their mask, by our own function."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([torch.zeros_like(inputs["prompt_ids"]), inputs["completion_mask"]], 1)
    logp, _ = dapo.token_logprobs(model, ids, mask)
    return logp[:, 6:], mask[:, 6:]


def trl_batch(model, with_old):
    """What TRL passes to a loss: 8 prompts of 6 tokens, completions of 1 to 12."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 20, (8, 18), generator=generator)
    mask = (torch.arange(12) < torch.randint(1, 13, (8, 1), generator=generator)).long()
    inputs = {
        "prompt_ids": ids[:, :6],
        "prompt_mask": torch.ones(8, 6, dtype=torch.long),
        "completion_ids": ids[:, 6:],
        "completion_mask": mask,
        "num_items_in_batch": mask.sum(),
        "advantages": dapo.group_advantages(torch.randn(2, 4, generator=generator)).flatten(),
    }
    if with_old:  # the policy has moved since: ratios on both sides of both clips
        with torch.no_grad():
            logp, _ = logp_of(model, inputs)
        inputs["old_per_token_logps"] = logp + torch.randn(logp.shape, generator=generator) / 3
    return inputs


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("with_old", [False, True])
def test_alpha_0_is_the_loss_of_trl_and_both_are_ours(trainer, with_old):
    module, ours = trainer
    model = ours.model.train()
    inputs = trl_batch(model, with_old)

    def loss_here(alpha, negative):
        """dapo_loss of advantages that our functions reweighted; TRL has no dual clip here."""
        logp, mask = logp_of(model, inputs)
        logp_old = inputs.get("old_per_token_logps", logp.detach())
        adv = inputs["advantages"][:, None].expand_as(logp)
        if negative:
            adv = grpo_n.negative_only(adv)
        adv = dapo.reweight_low_prob(adv, logp_old, alpha)
        loss, _ = dapo.dapo_loss(logp, logp_old, adv, mask, dual_clip=1e9)
        return loss

    theirs = module.GRPOTrainer._compute_loss(ours, model, inputs)
    their_gradient = gradient(model, theirs)
    for alpha, negative in ((0.0, False), (0.5, False), (0.0, True), (0.5, True)):
        ours.alpha = alpha
        ours.negative = negative
        snippet = ours._compute_loss(model, inputs)
        here = loss_here(alpha, negative)
        assert abs(snippet - here) < 1e-6
        if alpha == 0 and not negative:
            assert abs(snippet - theirs) < 1e-6
            for loss in (snippet, here):
                assert (gradient(model, loss) - their_gradient).norm() < 1e-4 * their_gradient.norm()
        else:
            assert abs(snippet - theirs) > 1e-4


def test_it_trains_in_two_processes(tmp_path):
    pytest.importorskip("trl", reason="needs: pip install -r requirements-extras.txt")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(SNIPPET)]
    command += ["--steps", "1", "--max-response", "48", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    before = (ROOT / "tiny/base/model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() != before
    (line,) = [line for line in found.stdout.splitlines() if "num_tokens" in line]
    tokens = int(ast.literal_eval(line)["num_tokens"])
    assert tokens > 4500  # 64 responses in each process, about 50 tokens each with their prompt
