"""The maths of the two trainers; test_grpo_n.py has what only GRPO and GSPO compute. Tests say what slip they catch."""

import ast
import inspect
import math
from functools import partial

import pytest
import torch
from conftest import random_qwen
from torch.utils.checkpoint import checkpoint

import dapo
import grpo_n
from dapo import dapo_loss, group_advantages, overlong_penalty, reweight_dominate, reweight_low_prob, reweight_ppl
from grpo_n import grpo_loss

gspo_loss = partial(grpo_loss, gspo=True)
all_losses = pytest.mark.parametrize("loss_of", [dapo_loss, grpo_loss, gspo_loss], ids=["dapo", "grpo", "gspo"])


def batch(n=6, t=5, seed=0):
    """logp, logp_old, adv, mask, (n, t) each, of a random ragged batch; logp has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    logp_old = torch.log_softmax(torch.randn(n, t, 4, generator=generator), -1)[..., 0]
    logp = (logp_old + 0.4 * torch.randn(n, t, generator=generator)).requires_grad_()
    lengths = torch.randint(1, t + 1, (n, 1), generator=generator)
    adv = torch.randn(n, 1, generator=generator).expand(n, t)
    return logp, logp_old, adv, (torch.arange(t) < lengths).float()


def grouped(*tensors):
    """Tensors of a batch of six as two groups of three."""
    return [x.detach().reshape(2, 3, -1) for x in tensors]


# ------------------------------------------------------------------------------------------------ advantages, rewards
@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3, -1.0])
def test_equal_rewards_give_exactly_zero(value):
    """Rounding over 1e-8 or so would make 0.8 of it; the std of one sample would be nan."""
    for size in range(1, 17):
        assert torch.equal(group_advantages(torch.full((3, size), value)), torch.zeros(3, size)), size


def test_group_advantages_by_hand_with_n_minus_1():
    adv = group_advantages(torch.tensor([[1.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]]))
    second = 1 / math.sqrt(4 / 3)  # the standard deviations are 1 and sqrt(4/3)
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5], [second, second, -second, -second]])
    assert torch.allclose(adv, expected, atol=1e-5)


def test_overlong_penalty_by_hand():
    lengths = torch.tensor([0, 96, 97, 112, 128, 500])
    expected = torch.tensor([0.0, 0.0, -1 / 32, -0.5, -1.0, -1.0])
    assert torch.equal(overlong_penalty(lengths, 128, 32), expected)
    assert overlong_penalty(torch.tensor([128, 129]), 128, 0).tolist() == [0.0, -1.0]


# --------------------------------------------------------------------------------------------------------- reweighting
def test_alpha_zero_changes_no_bit():
    _, logp_old, adv, mask = batch()
    adv_3d, logp_3d, mask_3d = grouped(adv, logp_old, mask)
    assert torch.equal(reweight_low_prob(adv, logp_old, 0.0), adv)
    assert torch.equal(reweight_dominate(adv, logp_old, 0.0), adv)
    assert torch.equal(reweight_ppl(adv_3d, logp_3d, mask_3d, 0.0), adv_3d)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_token_weights_by_hand(sign, alpha):
    logp_old = torch.log(torch.tensor([[1e-6, 0.25, 1.0]]))
    adv = torch.full((1, 3), sign)
    more = torch.tensor([[1 + alpha, 1 + 0.75 * alpha, 1.0]])
    less = torch.tensor([[1 - alpha, 1 - 0.75 * alpha, 1.0]])
    assert torch.allclose(reweight_low_prob(adv, logp_old, alpha), sign * more, atol=1e-5)
    assert torch.allclose(reweight_dominate(adv, logp_old, alpha), sign * less, atol=1e-5)


def test_response_weights_by_hand_ignore_padding():
    logp_old = torch.tensor([[[-1.0, -1.0, -99.0], [-3.0, -99.0, -99.0]]])
    mask = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    ones = torch.ones(1, 2, 3)
    # log-perplexities 1 and 3: mean 2, standard deviation 1 with n, so z is -1 and 1
    assert torch.allclose(reweight_ppl(ones, logp_old, mask, 0.5)[0, :, 0], torch.tensor([1.5, 0.5]))
    assert torch.equal(reweight_ppl(ones, torch.full((1, 2, 3), -0.7), mask, 0.5), ones)


def test_no_gradient_flows_through_a_weight():
    logp_old = torch.randn(2, 3, 4).sub(3).requires_grad_()
    ones = torch.ones(2, 3, 4)
    assert not reweight_low_prob(ones, logp_old, 0.5).requires_grad
    assert not reweight_dominate(ones, logp_old, 0.5).requires_grad
    assert not reweight_ppl(ones, logp_old, ones, 0.5).requires_grad


# --------------------------------------------------------------------------------------------------------- the losses
def check_one_token(loss_of, adv, ratio, value, gradient, clip):
    """The objective of one token, its derivative with respect to logp, and the share that counts its clip, if any."""
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss, stats = loss_of(logp, torch.zeros(1, 1), torch.tensor([[adv]]), torch.ones(1, 1), 0.2, 0.28)
    loss.backward()
    assert -loss.item() == pytest.approx(value) and -logp.grad.item() == pytest.approx(gradient)
    for name in stats:
        if name.startswith("clip"):
            assert stats[name] == (1.0 if name == clip else 0.0), name


@all_losses
@pytest.mark.parametrize(
    ("adv", "ratio", "value", "gradient", "clip"),
    [
        (1.0, 0.5, 0.5, 0.5, None),
        (1.0, 1.0, 1.0, 1.0, None),
        (1.0, 1.5, 1.28, 0.0, "clip_high"),
        (1.0, 12.0, 1.28, 0.0, "clip_high"),
        (-1.0, 0.5, -0.8, 0.0, "clip_low"),
        (-1.0, 1.0, -1.0, -1.0, None),
        (-1.0, 1.5, -1.5, -1.5, None),
    ],
)
def test_the_sign_of_the_advantage_decides_which_clip_acts(loss_of, adv, ratio, value, gradient, clip):
    """Seven copies in one well-known repository clip the wrong side where A < 0."""
    check_one_token(loss_of, adv, ratio, value, gradient, clip)


def test_only_dapo_bounds_a_large_ratio_where_the_advantage_is_negative():
    check_one_token(dapo_loss, -1.0, 12.0, -10.0, 0.0, "clip_dual")
    check_one_token(grpo_loss, -1.0, 12.0, -12.0, -12.0, None)
    check_one_token(gspo_loss, -1.0, 12.0, -12.0, -12.0, None)


@all_losses
def test_an_overflowing_ratio_is_clipped_without_nan(loss_of):
    logp = torch.full((1, 2), 100.0, requires_grad=True)  # exp(100) is inf in fp32
    loss, stats = loss_of(logp, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), 0.2, 0.2)
    loss.backward()
    assert -loss.item() == pytest.approx(1.2) and torch.equal(logp.grad, torch.zeros(1, 2)) and stats["clip_high"] == 1


@all_losses
def test_everything_masked_is_zero_without_nan(loss_of):
    _, logp_old, adv, mask = batch()
    wild = torch.full_like(logp_old, math.inf).requires_grad_()  # what stands on padding must not matter
    loss, stats = loss_of(wild, logp_old, adv, torch.zeros_like(mask))
    loss.backward()
    assert loss.item() == 0 and torch.equal(wild.grad, torch.zeros_like(wild))
    assert all(value.item() == 0 for value in stats.values())


def test_clip_shares_count_the_tokens_without_gradient():
    logp, logp_old, adv, mask = batch(40, 7)
    loss, stats = dapo_loss(logp, logp_old, adv, mask, 0.1, 0.15, 1.5)
    loss.backward()
    frozen = (((logp.grad == 0) & (mask == 1)).sum() / mask.sum()).item()
    assert frozen > 0.1
    assert (stats["clip_high"] + stats["clip_low"] + stats["clip_dual"]).item() == pytest.approx(frozen)


@all_losses
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up_to_the_step(loss_of, size):
    """Dividing by the size of the micro-batch gives other gradients; a metric of the last one, other metrics."""
    logp, logp_old, adv, mask = batch()

    def loss_and_stats(rows):
        tensors = (logp[rows], logp_old[rows], adv[rows], mask[rows])
        if loss_of is dapo_loss:
            return dapo_loss(*tensors, n_tokens=mask.sum())
        return loss_of(*tensors, logp_ref=logp_old[rows] - 0.1, kl_coef=0.3, n_sequences=6)

    whole, whole_stats = loss_and_stats(torch.arange(6))
    total = 0.0
    stats = dict.fromkeys(whole_stats, 0.0)
    for rows in torch.randperm(6, generator=torch.Generator().manual_seed(1)).split(size):
        loss, part = loss_and_stats(rows)
        total = total + loss
        for name in stats:
            stats[name] += part[name].item()
    (gradient,) = torch.autograd.grad(whole, logp)
    assert torch.allclose(torch.autograd.grad(total, logp)[0], gradient, atol=1e-7)
    for name, value in whole_stats.items():
        assert stats[name] == pytest.approx(value.item(), abs=1e-6), name


def test_hand_computed_batch():
    """Every token counts 1/3: weights of 1/length or 1/T, and what stands on padding, would show."""
    logp = torch.log(torch.tensor([[1.1, 2.0, 7.0], [0.5, 7.0, 7.0]])).requires_grad_()
    adv = torch.tensor([[1.0], [-2.0]]).expand(2, 3)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    loss, stats = dapo_loss(logp, torch.zeros(2, 3), adv, mask)
    loss.backward()
    assert loss.item() == pytest.approx(-(1.1 + 1.28 - 2 * 0.8) / 3)
    assert torch.allclose(-logp.grad, torch.tensor([[1.1 / 3, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert stats["ratio"].item() == pytest.approx((1.1 + 2.0 + 0.5) / 3)
    k3 = (0.1 - math.log(1.1)) + (1.0 - math.log(2.0)) + (-0.5 - math.log(0.5))
    assert stats["kl"].item() == pytest.approx(k3 / 3, rel=1e-5)


# ------------------------------------------------------------------------------------------------- what callers pass
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_a_mask_may_be_of_any_dtype(model, dtype):
    """TRL's masks are integers, others' are bool."""
    logp, logp_old, adv, mask = batch()
    other = mask.to(dtype)
    for loss_of in (dapo_loss, grpo_loss, gspo_loss):
        expected, _ = loss_of(logp, logp_old, adv, mask)
        loss, _ = loss_of(logp, logp_old, adv, other)
        assert loss.item() == pytest.approx(expected.item())
    adv_3d, logp_3d, mask_3d, other_3d = grouped(adv, logp_old, mask, other)
    reweighted = reweight_ppl(adv_3d, logp_3d, other_3d, 0.5)
    assert torch.allclose(reweighted.float(), reweight_ppl(adv_3d, logp_3d, mask_3d, 0.5))
    tokens = torch.randint(3, 40, mask.shape)
    assert_same(dapo.token_logprobs(model, tokens, other), dapo.token_logprobs(model, tokens, mask))


def test_shapes_that_would_broadcast_raise(model):
    """Advantages of shape (N,) where N == T would be read as one for each token: a wrong number, and no error."""
    logp, logp_old, adv, mask = batch(5, 5)
    first = 0 * mask[:, 0]  # (N,)
    for loss_of in (dapo_loss, grpo_loss, gspo_loss):
        for arguments in ((logp, first, adv, mask), (logp, logp_old, first, mask), (logp, logp_old, adv, first)):
            with pytest.raises(ValueError, match="one shape"):
                loss_of(*arguments)
    for reweight in (reweight_low_prob, reweight_dominate):
        with pytest.raises(ValueError, match="one shape"):
            reweight(first, logp_old, 0.2)
    with pytest.raises(ValueError, match="one shape"):
        reweight_ppl(first, logp_old, mask, 0.2)
    with pytest.raises(ValueError, match="one shape"):
        dapo.token_logprobs(model, torch.ones(5, 5, dtype=torch.long), first)


def test_inputs_stay_as_they_were():
    logp, logp_old, adv, mask = batch()
    adv = adv.clone()
    inputs = [logp, logp_old, adv, mask]
    copies = [x.detach().clone() for x in inputs]
    dapo_loss(logp, logp_old, adv, mask)
    grpo_loss(logp, logp_old, adv, mask, logp_ref=logp_old, kl_coef=0.1)
    gspo_loss(logp, logp_old, adv, mask, logp_ref=logp_old, kl_coef=0.1)
    group_advantages(adv)
    grpo_n.negative_only(adv)
    grpo_n.positive_only(adv)
    reweight_low_prob(adv, logp_old, 0.3)
    reweight_dominate(adv, logp_old, 0.3)
    reweight_ppl(*grouped(adv, logp_old, mask), 0.3)
    overlong_penalty(adv, 3, 1)
    dapo.sample_tokens(adv, 0.7, 0.5)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


# --------------------------------------------------------------------------------------------------------- paste test
def paste(script, names, **modules):
    """A namespace that holds nothing but the named functions and modules, as in somebody's empty file."""
    for name in names:
        exec(compile(ast.parse(inspect.getsource(getattr(script, name))), name, "exec"), modules)
    return modules


PASTED = [  # the function, and what it calls
    (dapo, "group_advantages", []),
    (dapo, "overlong_penalty", []),
    (dapo, "reweight_low_prob", []),
    (dapo, "reweight_dominate", []),
    (dapo, "reweight_ppl", ["group_advantages"]),
    (dapo, "dapo_loss", []),
    (grpo_n, "negative_only", []),
    (grpo_n, "positive_only", []),
    (grpo_n, "kl_k3", []),
    (grpo_n, "grpo_loss", ["kl_k3"]),
    (dapo, "rollout", ["sample_tokens"]),
    (dapo, "token_logprobs", []),
]


@pytest.mark.parametrize(("script", "name", "calls"), PASTED, ids=lambda x: x if isinstance(x, str) else "")
def test_each_function_works_pasted_alone(script, name, calls):
    logp, logp_old, adv, mask = batch()
    arguments = {
        "group_advantages": (adv,),
        "overlong_penalty": (mask.sum(1), 4, 2),
        "reweight_low_prob": (adv, logp_old, 0.2),
        "reweight_dominate": (adv, logp_old, 0.2),
        "reweight_ppl": (*grouped(adv, logp_old, mask), 0.2),
        "dapo_loss": (logp, logp_old, adv, mask),
        "negative_only": (adv,),
        "positive_only": (adv,),
        "kl_k3": (logp, logp_old),
        "grpo_loss": (logp, logp_old, adv, mask),
        "rollout": (random_qwen(), [[5, 6, 7], [8]], 4, 9, [1, 2], None, 0.7, 0.9),
        "token_logprobs": (random_qwen(), torch.randint(3, 40, (6, 5)), mask),
    }[name]
    needs = {"checkpoint": checkpoint} if name == "token_logprobs" else {}
    pasted = paste(script, [*calls, name], torch=torch, **needs)[name]
    torch.manual_seed(0)
    ours = getattr(script, name)(*arguments)
    torch.manual_seed(0)
    theirs = pasted(*arguments)
    assert_same(ours, theirs)


def assert_same(ours, theirs):
    """Equality of what a function returns: a tensor, or a tuple or a dict of them."""
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    elif isinstance(ours, dict):
        assert_same(tuple(ours.values()), tuple(theirs.values()))
    else:
        for x, y in zip(ours, theirs, strict=True):
            assert_same(x, y)
