"""GRPO, GSPO and their -N variants (numbers: the list of known bugs)."""

import ast
import inspect
import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_qwen

import dapo
import grpo_n
from grpo_n import answer_entropy, group_advantages, grpo_loss, kl_k3, negative_only, pass_at_k, token_logprobs

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--steps 2 --prompts-per-step 4 --mini-batch 2 --group-size 4 --gen-batch 3 --max-response 112 --eval-every 2"
SMALL += " --eval-problems 4 --eval-samples 2 --micro-batch 6 --passk-samples 4 --passk-problems 5"


def gspo_loss(*args, **kwargs):
    return grpo_loss(*args, **kwargs, gspo=True)


def batch(n=6, t=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    logp_old = torch.log_softmax(torch.randn(n, t, 4, generator=g), -1)[..., 0]
    logp = (logp_old + 0.4 * torch.randn(n, t, generator=g)).requires_grad_()
    lengths = torch.randint(1, t + 1, (n, 1), generator=g)
    return logp, logp_old, torch.randn(n, 1, generator=g).expand(n, t), (torch.arange(t) < lengths).float()


# -------------------------------------------------------------------------------------------------------- the losses
@pytest.mark.parametrize("loss_of", [grpo_loss, gspo_loss], ids=["grpo", "gspo"])
@pytest.mark.parametrize(
    ("adv", "ratio", "value", "gradient"),
    [
        (1.0, 0.5, 0.5, 0.5),
        (1.0, 1.0, 1.0, 1.0),
        (1.0, 1.5, 1.2, 0.0),
        (1.0, 12.0, 1.2, 0.0),
        (-1.0, 0.5, -0.8, 0.0),
        (-1.0, 1.0, -1.0, -1.0),
        (-1.0, 1.5, -1.5, -1.5),
        (-1.0, 12.0, -12.0, -12.0),
    ],
)
def test_10_11_clip_truth_table(loss_of, adv, ratio, value, gradient):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, stats = loss_of(logp, torch.zeros(1, 1), torch.tensor([[adv]]), torch.ones(1, 1))
    loss.backward()
    assert -loss.item() == pytest.approx(value) and -logp.grad.item() == pytest.approx(gradient)
    assert stats["clip_low"] + stats["clip_high"] == (gradient == 0.0)


@pytest.mark.parametrize("loss_of", [grpo_loss, gspo_loss], ids=["grpo", "gspo"])
def test_10_an_overflowing_ratio_is_clipped_without_nan(loss_of):
    logp = torch.full((1, 2), 100.0, requires_grad=True)  # exp(100) is inf in fp32
    loss, stats = loss_of(logp, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2))
    loss.backward()
    assert -loss.item() == pytest.approx(1.2) and torch.equal(logp.grad, torch.zeros(1, 2)) and stats["clip_high"] == 1


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("loss_of", [grpo_loss, gspo_loss])
def test_12_30_micro_batches_add_up_to_the_step(loss_of, size):
    logp, logp_old, adv, mask = batch()
    how = {"logp_ref": logp_old - 0.1, "kl_coef": 0.3}
    whole, whole_stats = loss_of(logp, logp_old, adv, mask, **how)
    (gradient,) = torch.autograd.grad(whole, logp)
    total, stats = 0.0, Counter()
    for rows in torch.randperm(6, generator=torch.Generator().manual_seed(1)).split(size):
        part = {"logp_ref": how["logp_ref"][rows], "kl_coef": 0.3, "n_sequences": 6}
        loss, more = loss_of(logp[rows], logp_old[rows], adv[rows], mask[rows], **part)
        total = total + loss
        stats.update({k: v.item() for k, v in more.items()})
    assert torch.allclose(torch.autograd.grad(total, logp)[0], gradient, atol=1e-7)
    assert all(stats[k] == pytest.approx(v.item(), abs=1e-6) for k, v in whole_stats.items())


def test_14_a_token_weighs_one_over_its_own_response_length():
    logp = torch.zeros(2, 8, requires_grad=True)
    mask = (torch.arange(8) < torch.tensor([[2], [8]])).float()
    for loss_of in (grpo_loss, gspo_loss):
        (gradient,) = torch.autograd.grad(loss_of(logp, torch.zeros(2, 8), torch.ones(2, 8), mask)[0], logp)
        assert torch.allclose(-gradient, mask / torch.tensor([[4.0], [16.0]]))


def test_15_gspo_is_the_plain_sequence_formula_and_ignores_padding():
    logp, logp_old, adv, mask = batch()
    lengths = mask.sum(1).int().tolist()
    terms = []
    for i, n in enumerate(lengths):
        ratio = torch.exp((logp[i, :n] - logp_old[i, :n]).sum() / n)
        terms.append(torch.minimum(ratio * adv[i, 0], ratio.clamp(0.9, 1.15) * adv[i, 0]))
    (plain,) = torch.autograd.grad(-torch.stack(terms).mean(), logp)
    (ours,) = torch.autograd.grad(gspo_loss(logp, logp_old, adv, mask, 0.1, 0.15)[0], logp)
    assert torch.allclose(ours, plain, atol=1e-7)
    padding = (logp, 3.0), (logp_old, -7.0), (adv, math.nan), (mask, 0)
    wide = [torch.nn.functional.pad(x, (0, 9), value=value) for x, value in padding]
    (padded,) = torch.autograd.grad(gspo_loss(*wide, 0.1, 0.15)[0], logp)
    assert torch.equal(padded, ours)


@pytest.mark.parametrize("loss_of", [grpo_loss, gspo_loss])
def test_13_everything_masked_is_zero_without_nan(loss_of):
    logp, logp_old, adv, mask = batch()
    wild = torch.full_like(logp, math.inf).requires_grad_()
    loss, stats = loss_of(wild, logp_old, adv, torch.zeros_like(mask), logp_ref=logp_old, kl_coef=0.1)
    loss.backward()
    assert loss.item() == 0 and torch.equal(wild.grad, torch.zeros_like(wild))
    assert all(value.item() == 0 for value in stats.values())


def test_grpo_equals_dapo_where_the_objectives_coincide():
    """One response length, equal clip ranges, no dual clip, no KL: the same loss, gradient and stats."""
    logp, logp_old, adv, _ = batch()
    mask = torch.ones_like(logp_old)
    ours, our_stats = grpo_loss(logp, logp_old, adv, mask, 0.2)
    theirs, their_stats = dapo.dapo_loss(logp, logp_old, adv, mask, 0.2, 0.2, dual_clip=1e9)
    assert torch.allclose(ours, theirs, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logp, retain_graph=True)[0] for loss in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-7)
    assert all(torch.allclose(our_stats[k], their_stats[k], atol=1e-6) for k in our_stats)


# ------------------------------------------------------------------------------------------------------ negative only
def test_25_negative_only_masks_after_the_whole_group_was_normalised():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 0], [1.0, 1, 1, 1], [0.0, 0, 0, 0]])
    adv = group_advantages(rewards)
    kept = negative_only(adv)
    assert torch.equal(kept[adv < 0], adv[adv < 0]) and (kept[adv >= 0] == 0).all()
    assert kept[1].tolist().count(0) == 3 and kept[2:].abs().sum() == 0


@pytest.mark.parametrize("loss_of", [grpo_loss, gspo_loss])
def test_25_all_correct_group_has_no_gradient(loss_of):
    logp, logp_old, _, mask = batch(4)
    adv = negative_only(group_advantages(torch.ones(1, 4))).view(4, 1).expand_as(mask)
    loss, _ = loss_of(logp, logp_old, adv, mask)
    loss.backward()
    assert torch.equal(logp.grad, torch.zeros_like(logp))


def test_25_denominators_stay_those_of_the_whole_group():
    logp = torch.zeros(4, 3, requires_grad=True)
    adv = group_advantages(torch.tensor([[1.0, 1.0, 0.0, 0.0]])).view(4, 1).expand(4, 3)
    both, _ = grpo_loss(logp, torch.zeros(4, 3), adv, torch.ones(4, 3))
    negative, _ = grpo_loss(logp, torch.zeros(4, 3), negative_only(adv), torch.ones(4, 3))
    whole, part = (torch.autograd.grad(loss, logp)[0] for loss in (both, negative))
    assert torch.equal(part[2:], whole[2:]) and torch.equal(part[:2], torch.zeros(2, 3))


# ----------------------------------------------------------------------------------------------------- KL, entropies
def test_21_k3_has_the_value_and_gradient_of_the_true_kl():
    """Three arms, enumerated: E[k3] and its gradient against KL(pi || ref); the expected gradient of k1 is zero."""
    z = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.tensor([0.31, -0.22, 0.12], dtype=torch.float64), 0)
    logp = torch.log_softmax(z, 0)
    p = logp.exp().detach()
    true = (logp.exp() * (logp - ref)).sum()
    (true_gradient,) = torch.autograd.grad(true, z, retain_graph=True)
    assert (p * kl_k3(logp, ref)).sum().item() == pytest.approx(true.item(), rel=1e-9)
    (ours,) = torch.autograd.grad((p * kl_k3(logp, ref)).sum(), z, retain_graph=True)
    (k1,) = torch.autograd.grad((p * (logp - ref)).sum(), z)
    assert torch.allclose(ours, true_gradient, rtol=0.05, atol=1e-6) and k1.abs().max() < 1e-12
    assert true_gradient.abs().max() > 1e-3
    assert (kl_k3(torch.randn(1000) - 2, torch.randn(1000) - 2) >= 0).all()


def test_kl_inside_the_losses_is_kl_k3():
    logp, logp_old, adv, mask = batch()
    ref = logp_old - 0.2
    lengths = mask.sum(1)
    expected = ((kl_k3(logp, ref) * mask).sum(1) / lengths).mean()
    for loss_of in (grpo_loss, gspo_loss):
        with_kl, stats = loss_of(logp, logp_old, adv, mask, logp_ref=ref, kl_coef=0.5)
        without, _ = loss_of(logp, logp_old, adv, mask)
        assert (with_kl - without).item() == pytest.approx(0.5 * expected.item(), rel=1e-4)
        assert stats["kl_ref"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_entropy_bonus_is_the_mean_entropy_over_the_tokens_of_the_optimiser_step(tmp_path, monkeypatch):
    """Equation (8), through the script's own path: the loss that is logged falls by c times that mean."""
    entropies, real = [], grpo_n.token_logprobs

    def recorded(*args, **kwargs):
        logp, entropy = real(*args, **kwargs)
        if torch.is_grad_enabled():
            entropies.append((entropy.sum().item(), args[2].sum().item()))
        return logp, entropy

    monkeypatch.setattr(grpo_n, "token_logprobs", recorded)
    flags = "--steps 1 --passk-samples 0 --model tiny/rlvr --mini-batch 4 --entropy-coef"
    run(tmp_path / "off", f"{flags} 0")
    entropies.clear()
    run(tmp_path / "on", f"{flags} 0.5")
    bonus = 0.5 * sum(total for total, _ in entropies) / sum(n for _, n in entropies)
    off, on = (rows(tmp_path / name)[1]["loss"] for name in ("off", "on"))
    assert bonus > 0.01 and off - on == pytest.approx(bonus, rel=1e-4)


def test_answer_entropy_by_hand():
    assert answer_entropy(["1", "1", "1"]) == 0 and answer_entropy([]) == 0
    assert answer_entropy(["1", "2", None, None]) == pytest.approx(1.5 * math.log(2))
    assert answer_entropy(list("abcd")) == pytest.approx(math.log(4))


@pytest.mark.parametrize("chunk", [3, 4096])
def test_token_entropy_against_float64_and_its_gradient(chunk):
    model = random_qwen()
    tokens, mask = torch.randint(3, 30, (3, 9)), (torch.arange(9) >= torch.tensor([[2], [4], [1]])).float()
    _, ours = token_logprobs(model, tokens, mask, temperature=0.7, n_vocab=30, chunk=chunk)
    logp = torch.log_softmax(model(input_ids=tokens).logits[..., :30].double() / 0.7, -1)
    plain = torch.nn.functional.pad(-(logp.exp() * logp).sum(-1)[:, :-1], (1, 0)) * mask
    assert torch.allclose(ours.double(), plain, atol=1e-4)
    ours.sum().backward()
    a = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    plain.sum().backward()
    assert all(torch.allclose(x, p.grad, rtol=1e-2, atol=1e-3) for x, p in zip(a, model.parameters(), strict=True))


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if k > n or c > n:
            with pytest.raises(ValueError, match="1 <= k <= n"):
                pass_at_k(n, c, k)
            continue
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(4096, 1, 2048) == 0.5 and pass_at_k(256, 3, 1) == pytest.approx(3 / 256)


@pytest.mark.parametrize("name", ["negative_only", "kl_k3", "grpo_loss", "group_advantages"])
def test_each_function_works_pasted_alone(name):
    namespace = {"torch": torch}
    for part in {"kl_k3", name}:  # the loss calls kl_k3
        exec(compile(ast.parse(inspect.getsource(getattr(grpo_n, part))), part, "exec"), namespace)
    logp, logp_old, adv, mask = batch()
    arguments = {"negative_only": (adv,), "kl_k3": (logp, logp_old), "group_advantages": (adv,)}
    out = namespace[name](*arguments.get(name, (logp, logp_old, adv, mask)))
    assert torch.isfinite(out[0] if isinstance(out, tuple) else out).all()


# ---------------------------------------------------------------------------------------------------------- whole runs
def run(out, flags="", small=SMALL):
    grpo_n.main(grpo_n.parse_args(f"{small} --out {out} {flags}".split()))


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("algorithm", ["grpo", "gspo-n"])
def test_every_algorithm_runs_and_compares_base_and_trained_model(tmp_path, algorithm):
    out = tmp_path / "run"
    run(out, f"--algorithm {algorithm} --model tiny/rlvr")
    last = rows(out)[-1]
    assert 0 <= last["test/greedy"] <= 1 and last["kl_ref"] >= 0 and np.isfinite(last["loss"])
    found = json.loads((out / "passk.json").read_text())
    assert found["samples"] == 4 and list(found["models"]) == ["tiny/rlvr", str(out / "model")]
    for problems in found["models"].values():
        assert len(problems) == 5 and all(p["pass@1"] == p["right"] / 4 for p in problems)
    assert (out / "curves.png").exists() and (out / "model").is_dir()


def test_the_minus_n_variants_train_on_fewer_responses(tmp_path):
    how = "--steps 1 --passk-samples 0 --model tiny/rlvr --max-response 128 --eval-problems 1"
    for name, algorithm in (("a", "grpo"), ("b", "grpo-n")):
        run(tmp_path / name, f"{how} --algorithm {algorithm}")
    both, negative = (rows(tmp_path / x)[1] for x in "ab")
    assert 0 < negative["active"] < both["active"] and both["accuracy"] == negative["accuracy"]


def test_29_resume_is_bit_identical(tmp_path):
    run(tmp_path / "whole", "--steps 2 --eval-every 1 --passk-samples 0")
    run(tmp_path / "run", "--steps 1 --eval-every 1 --passk-samples 0")
    run(tmp_path / "run", "--steps 2 --eval-every 1 --passk-samples 0 --resume")
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_steps_0_evaluates_a_checkpoint(tmp_path):
    run(tmp_path / "run", "--steps 0 --model tiny/rlvr")
    found = json.loads((tmp_path / "run/passk.json").read_text())
    assert list(found["models"]) == ["tiny/rlvr"] and len(rows(tmp_path / "run")) == 1


@pytest.mark.parametrize("flags", ["--group-size 1", "--mini-batch 3", "--temperature 0", "--gen-batch 0"])
def test_impossible_flags(tmp_path, flags):
    with pytest.raises(SystemExit, match="error: "):
        run(tmp_path / "run", flags)


def test_each_algorithm_has_a_learning_rate_of_its_own():
    assert grpo_n.Args(algorithm="grpo-n").lr == grpo_n.LR["grpo-n"] and grpo_n.Args(lr=0.5).lr == 0.5
