"""The maths of dapo.py. Numbers in the names refer to the list of known bugs of the field that each test catches."""

import ast
import inspect
import math

import pytest
import torch
from conftest import random_qwen
from torch.utils.checkpoint import checkpoint

import dapo
from dapo import (
    dapo_loss,
    group_advantages,
    overlong_penalty,
    reweight_dominate,
    reweight_low_prob,
    reweight_ppl,
)

MATHS = "group_advantages overlong_penalty reweight_low_prob reweight_dominate reweight_ppl dapo_loss".split()


def batch(n=6, t=5, seed=0, ragged=True):
    """logp, logp_old, adv, mask of a random batch; logp has a gradient."""
    g = torch.Generator().manual_seed(seed)
    logp_old = torch.log_softmax(torch.randn(n, t, 4, generator=g), -1)[..., 0]
    logp = (logp_old + 0.4 * torch.randn(n, t, generator=g)).requires_grad_()
    lengths = torch.randint(1, t + 1, (n, 1), generator=g) if ragged else torch.full((n, 1), t)
    return logp, logp_old, torch.randn(n, 1, generator=g).expand(n, t), (torch.arange(t) < lengths).float()


# ------------------------------------------------------------------------------------------------ advantages, rewards
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3, -1.0])
@pytest.mark.parametrize("size", range(1, 17))
def test_9_equal_rewards_give_exactly_zero(value, size):
    assert torch.equal(group_advantages(torch.full((3, size), value)), torch.zeros(3, size))


def test_group_advantages_by_hand():
    adv = group_advantages(torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]))
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5], [1 / math.sqrt(4 / 3), 1, -1, -1]])  # std 1 and sqrt(4/3), n - 1
    expected[1, 1:] = torch.tensor([1, -1, -1]) / math.sqrt(4 / 3)
    assert torch.allclose(adv, expected, atol=1e-5)


def test_overlong_penalty_by_hand():
    lengths = torch.tensor([0, 96, 97, 112, 128, 500])
    expected = torch.tensor([0.0, 0.0, -1 / 32, -0.5, -1.0, -1.0])
    assert torch.equal(overlong_penalty(lengths, 128, 32), expected)
    assert overlong_penalty(torch.tensor([128, 129]), 128, 0).tolist() == [0.0, -1.0]


# --------------------------------------------------------------------------------------------------------- reweighting
def test_24_alpha_zero_is_dapo_bit_for_bit():
    _, logp_old, adv, mask = batch()
    grouped = [x.reshape(2, 3, -1) for x in (adv, logp_old, mask)]
    assert torch.equal(reweight_low_prob(adv, logp_old, 0.0), adv)
    assert torch.equal(reweight_dominate(adv, logp_old, 0.0), adv)
    assert torch.equal(reweight_ppl(*grouped, 0.0), grouped[0])


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0])
def test_24_low_prob_weights_use_the_old_probability_and_both_signs(alpha):
    logp_old = torch.log(torch.tensor([[1e-6, 0.25, 1.0]]))
    for sign in (1.0, -1.0):
        weights = reweight_low_prob(torch.full((1, 3), sign), logp_old, alpha) * sign
        assert torch.allclose(weights, torch.tensor([[1 + alpha, 1 + 0.75 * alpha, 1.0]]), atol=1e-5)
        weights = reweight_dominate(torch.full((1, 3), sign), logp_old, alpha) * sign
        assert torch.allclose(weights, torch.tensor([[1 - alpha, 1 - 0.75 * alpha, 1.0]]), atol=1e-5)


def test_24_no_gradient_through_the_weight():
    logp_old = torch.randn(2, 3, 4).sub(3).requires_grad_()
    ones = torch.ones(2, 3, 4)
    for out in (
        reweight_low_prob(ones, logp_old, 0.5),
        reweight_dominate(ones, logp_old, 0.5),
        reweight_ppl(ones, logp_old, ones, 0.5),
    ):
        assert not out.requires_grad


def test_reweight_ppl_by_hand_ignores_padding():
    logp_old = torch.tensor([[[-1.0, -1.0, -99.0], [-3.0, -99.0, -99.0]]])
    mask = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    out = reweight_ppl(torch.ones(1, 2, 3), logp_old, mask, 0.5)
    z = 1 / math.sqrt(2)  # log-perplexities 1 and 3: mean 2, sample std sqrt(2)
    assert torch.allclose(out[0, :, 0], torch.tensor([1 + 0.5 * z, 1 - 0.5 * z]))
    same = reweight_ppl(torch.ones(1, 2, 3), torch.full((1, 2, 3), -0.7), mask, 0.5)
    assert torch.equal(same, torch.ones(1, 2, 3))


# --------------------------------------------------------------------------------------------------------- the loss
@pytest.mark.parametrize(
    ("adv", "ratio", "value", "gradient"),
    [  # objective min(w A, clip(w) A), at least 10 A where A < 0; its derivative with respect to logp is w A or 0
        (1.0, 0.5, 0.5, 0.5),
        (1.0, 1.0, 1.0, 1.0),
        (1.0, 1.5, 1.28, 0.0),
        (1.0, 12.0, 1.28, 0.0),
        (-1.0, 0.5, -0.8, 0.0),
        (-1.0, 1.0, -1.0, -1.0),
        (-1.0, 1.5, -1.5, -1.5),
        (-1.0, 12.0, -10.0, 0.0),
    ],
)
def test_10_11_clip_truth_table(adv, ratio, value, gradient):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, stats = dapo_loss(logp, torch.zeros(1, 1), torch.tensor([[adv]]), torch.ones(1, 1))
    loss.backward()
    assert -loss.item() == pytest.approx(value)
    assert -logp.grad.item() == pytest.approx(gradient)
    assert sum(stats[k].item() for k in ("clip_high", "clip_low", "clip_dual")) == (1.0 if gradient == 0.0 else 0.0)
    assert stats["clip_dual"] == (adv < 0 and ratio > 10)


def test_10_11_an_overflowing_ratio_is_clipped_without_nan():
    logp = torch.tensor([[100.0, 100.0]], requires_grad=True)  # exp(100) is inf in fp32
    loss, stats = dapo_loss(logp, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2))
    loss.backward()
    assert -loss.item() == pytest.approx((1.28 - 10) / 2) and torch.equal(logp.grad, torch.zeros(1, 2))
    assert stats["clip_high"] == stats["clip_dual"] == 0.5


def test_11_clip_shares_count_the_tokens_without_gradient():
    logp, logp_old, adv, mask = batch(40, 7)
    loss, stats = dapo_loss(logp, logp_old, adv, mask, 0.1, 0.15, 1.5)
    loss.backward()
    frozen = ((logp.grad == 0) & (mask == 1)).sum() / mask.sum()
    assert frozen > 0.1
    assert sum(stats[k] for k in ("clip_high", "clip_low", "clip_dual")) == pytest.approx(frozen.item())


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_12_30_micro_batches_add_up_to_the_step(size):
    logp, logp_old, adv, mask = batch()
    whole, whole_stats = dapo_loss(logp, logp_old, adv, mask)
    (gradient,) = torch.autograd.grad(whole, logp)
    total, stats = 0.0, dict.fromkeys(whole_stats, 0.0)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    for rows in order.split(size):
        loss, part = dapo_loss(logp[rows], logp_old[rows], adv[rows], mask[rows], n_tokens=mask.sum())
        total = total + loss
        stats = {k: stats[k] + part[k] for k in stats}
    assert torch.allclose(torch.autograd.grad(total, logp)[0], gradient, atol=1e-7)
    assert all(torch.allclose(stats[k], whole_stats[k], atol=1e-6) for k in stats)


def test_13_hand_computed_batch():
    logp_old = torch.zeros(2, 3)
    logp = torch.log(torch.tensor([[1.1, 2.0, 7.0], [0.5, 7.0, 7.0]]))
    adv = torch.tensor([[1.0], [-2.0]]).expand(2, 3)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    loss, stats = dapo_loss(logp, logp_old, adv, mask)
    assert loss.item() == pytest.approx(-(1.1 + 1.28 - 2 * 0.8) / 3)
    assert stats["ratio"].item() == pytest.approx((1.1 + 2.0 + 0.5) / 3)


def test_13_everything_masked_is_zero_without_nan():
    logp, logp_old, adv, _ = batch()
    wild = torch.full_like(logp, math.inf).requires_grad_()  # what stands on padding must not matter
    for x in (logp, wild):
        loss, stats = dapo_loss(x, logp_old, adv, torch.zeros_like(logp_old))
        loss.backward()
        assert loss.item() == 0 and torch.equal(x.grad, torch.zeros_like(x))
        assert all(value.item() == 0 for value in stats.values())


def test_14_every_token_weighs_the_same_whatever_its_response_length():
    logp = torch.zeros(2, 8, requires_grad=True)
    mask = (torch.arange(8) < torch.tensor([[2], [8]])).float()
    loss, _ = dapo_loss(logp, torch.zeros(2, 8), torch.ones(2, 8), mask)
    loss.backward()
    assert torch.allclose(-logp.grad, mask / 10)


def test_20_inputs_stay_as_they_were():
    logp, logp_old, adv, mask = batch()
    adv = adv.clone()
    grouped = [x.detach().reshape(2, 3, -1).clone() for x in (adv, logp_old, mask)]
    inputs = [logp, logp_old, adv, mask, *grouped]
    copies = [x.detach().clone() for x in inputs]
    dapo_loss(logp, logp_old, adv, mask)
    group_advantages(adv)
    reweight_low_prob(adv, logp_old, 0.3)
    reweight_dominate(adv, logp_old, 0.3)
    reweight_ppl(*grouped, 0.3)
    overlong_penalty(adv, 3, 1)
    dapo.sample_tokens(adv, 0.7, 0.5)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


def test_gradient_of_the_loss_is_the_policy_gradient():
    """At ratio 1 the gradient of (7) is that of the mean of A log pi over tokens: against autograd in float64."""
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(5, (3, 4, 1))
    logp = torch.log_softmax(logits, -1).gather(-1, tokens)[..., 0]
    adv = torch.randn(3, 1, dtype=torch.float64).expand(3, 4)
    loss, stats = dapo_loss(logp, logp.detach(), adv, torch.ones(3, 4))
    ours = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    plain = torch.autograd.grad(-(adv * logp).mean(), logits)[0]
    assert torch.allclose(ours, plain, atol=1e-12) and stats["ratio"] == 1 and stats["kl"] == 0


# --------------------------------------------------------------------------------------------------------- paste test
def paste(names, **modules):
    """A namespace that holds nothing but the named functions and modules, as in somebody's empty file."""
    for name in names:
        exec(compile(ast.parse(inspect.getsource(getattr(dapo, name))), name, "exec"), modules)
    return modules


@pytest.mark.parametrize("name", MATHS)
def test_each_function_works_pasted_alone(name):
    pasted = paste(["group_advantages", name] if name == "reweight_ppl" else [name], torch=torch)[name]
    logp, logp_old, adv, mask = batch()
    arguments = {
        "group_advantages": (adv,),
        "overlong_penalty": (mask.sum(1), 4, 2),
        "reweight_low_prob": (adv, logp_old, 0.2),
        "reweight_dominate": (adv, logp_old, 0.2),
        "reweight_ppl": (*(x.reshape(2, 3, -1) for x in (adv, logp_old, mask)), 0.2),
        "dapo_loss": (logp, logp_old, adv, mask),
    }[name]
    ours, theirs = getattr(dapo, name)(*arguments), pasted(*arguments)
    for x, y in zip(ours, theirs, strict=True) if name == "dapo_loss" else [(ours, theirs)]:
        assert all(torch.equal(x[k], y[k]) for k in x) if isinstance(x, dict) else torch.equal(x, y)


def test_rollout_and_sample_tokens_run_pasted_into_an_empty_file():
    pasted, model = paste(["sample_tokens", "rollout"], torch=torch), random_qwen()
    ours, theirs = (
        function(model, [[5, 6, 7], [8]], 4, 9, [1, 2], temperature=0.7, top_p=0.9, generator=torch.Generator())
        for function in (dapo.rollout, pasted["rollout"])
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and theirs["mask"].sum() > 8


def test_token_logprobs_runs_pasted_into_an_empty_file():
    pasted, model = paste(["token_logprobs"], torch=torch, checkpoint=checkpoint)["token_logprobs"], random_qwen()
    tokens, mask = torch.randint(3, 40, (3, 9)), torch.ones(3, 9)
    for ours, theirs in zip(dapo.token_logprobs(model, tokens, mask), pasted(model, tokens, mask), strict=True):
        assert torch.equal(ours, theirs) and theirs.requires_grad
