"""What check.py knows: inputs with their right answers, and the wrong versions that people really write. SPOILERS.

For each exercise:
  CASES      inputs, the right answer in numbers, and the same in words. The first is the example of the docstring or
             something simpler, so that one mistake shows at a time. tests/test_lab.py computes the numbers with the
             six scripts.
  SENTENCES  {name of a mistake: what the student is told}
  wrong_...  what a function with that mistake returns
  ..._gradient   what else has to hold (exercises 4 and 5): a sentence, or "" where all is well
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

INF = math.inf


class Case(NamedTuple):
    inputs: dict  # {parameter: value}, in the order of the parameters
    expected: torch.Tensor
    words: str  # what is expected; follows "returns [...], but"
    exact: bool = False  # no tolerance for rounding


class Exercise(NamedTuple):
    name: str  # of the function
    cases: list[Case]
    sentences: dict  # {mistake: sentence}
    wrong: Callable  # (mistake, *inputs) -> what a function with that mistake returns
    gradient: Callable | None = None  # function -> sentence


def table(*rows):
    """A tensor of floats, of one row or more: table([1, 2], [3, 4])."""
    return torch.tensor(rows, dtype=torch.float32)


def numbers(*values):
    """A tensor of floats with one dimension."""
    return torch.tensor(values, dtype=torch.float32)


# -------------------------------------------------------------------------------------------- exercise 1: bandit_update
BANDIT_CASES = [
    Case(
        {"z": numbers(0.0, 0.0, 0.6931), "action": 2, "reward": 0.5, "baseline": 0.75, "lr": 0.4},
        numbers(0.025, 0.025, 0.6431),
        "the docstring gets [0.025, 0.025, 0.6431] by hand",
    ),
    Case(
        {"z": numbers(1.0, -1.0, 0.5, 2.0), "action": 0, "reward": 1.0, "baseline": 0.25, "lr": 0.1},
        numbers(1.058184, -1.002276, 0.489801, 1.954291),
        "a reward above the baseline must raise the logit of the sampled action and lower all others",
    ),
    Case(
        {"z": numbers(1.0, -1.0, 0.5), "action": 1, "reward": 0.5, "baseline": 0.5, "lr": 0.1},
        numbers(1.0, -1.0, 0.5),
        "a reward equal to the baseline must change nothing",
    ),
]

BANDIT_SENTENCES = {
    "no baseline": "The baseline is not used: the advantage is the reward minus the baseline.",
    "descent": "Everything moves in the wrong direction: check the sign of the advantage and of the update.",
    "only the sampled action": "Only the logit of the sampled action changes; every other one must change too, in"
    " proportion to its own probability.",
    "no 1 - pi": "The logit of the sampled action changes too much: its own probability has to be taken into account.",
    "others alike": "The other logits change by the probability of the sampled action; each must change by its own.",
    "others along": "The other logits move in the same direction as the sampled one; they must move the other way.",
    "logits as probabilities": "The equation needs probabilities, but the logits are used as they are: pi is the"
    " softmax of z.",
    "gradient of pi": "The whole update is multiplied by the probability of the sampled action: that is the gradient of"
    " pi, and the equation has the gradient of log pi.",
    "no lr": "The learning rate is not used.",
    "change alone": "You return the change of the logits; the new logits are wanted, old ones plus change.",
    "probabilities": "You return probabilities; the new logits are wanted.",
}


def wrong_bandit_update(mistake, z, action, reward, baseline, lr):
    """What bandit_update returns with a mistake of BANDIT_SENTENCES."""
    pi = torch.softmax(z, dim=0)
    sampled = torch.zeros_like(z)
    sampled[action] = 1.0
    lr_adv = lr * (reward - baseline)
    if mistake == "no baseline":
        return z + lr * reward * (sampled - pi)
    if mistake == "descent":
        return z - lr_adv * (sampled - pi)
    if mistake == "only the sampled action":
        return z + lr_adv * sampled * (1 - pi)
    if mistake == "no 1 - pi":
        return z + lr_adv * torch.where(sampled == 1, 1.0, -pi)
    if mistake == "others alike":
        return z + lr_adv * (sampled - pi[action])
    if mistake == "others along":
        return z + lr_adv * torch.where(sampled == 1, 1 - pi, pi)
    if mistake == "logits as probabilities":
        return z + lr_adv * (sampled - z)
    if mistake == "gradient of pi":
        return z + lr_adv * pi[action] * (sampled - pi)
    if mistake == "no lr":
        return z + (reward - baseline) * (sampled - pi)
    if mistake == "change alone":
        return lr_adv * (sampled - pi)
    if mistake == "probabilities":
        return torch.softmax(z + lr_adv * (sampled - pi), dim=0)
    raise ValueError(mistake)


# ----------------------------------------------------------------------------------------- exercise 2: group_advantages
ADVANTAGES_CASES = [
    Case(
        {"rewards": table([1, 0, 0, 0], [4, 0, 0, 0])},
        table([1.5, -0.5, -0.5, -0.5], [1.5, -0.5, -0.5, -0.5]),
        "the docstring gets [1.5, -0.5, -0.5, -0.5] for both groups, by hand",
    ),
    Case(
        {"rewards": table([0, 1, 2, 3, 10])},
        table([-0.807607, -0.555230, -0.302853, -0.050475, 1.716165]),
        "the advantages of a group must add up to 0, and their squares to G - 1",
    ),
    Case(
        {"rewards": table([1, 1, 1], [0, 1, 0])},
        table([0.0, 0.0, 0.0], [-0.577349, 1.154699, -0.577349]),
        "a group of equal rewards must give exactly 0, and other groups must not change because of it",
    ),
    Case(
        {"rewards": torch.full((1, 11), 0.7)},
        torch.zeros(1, 11),
        "equal rewards must give exactly 0: rounding makes their mean differ a little from 0.7, so compare the rewards"
        " with each other, not with the mean",
        exact=True,
    ),
    Case(
        {"rewards": table([1.0], [0.5])},
        table([0.0], [0.0]),
        "a group of one response has nothing to be compared with and must give exactly 0",
        exact=True,
    ),
]

ADVANTAGES_SENTENCES = {
    "std with G": "The standard deviation divides by G; the equation divides by G - 1.",
    "no std": "The advantages are not divided by the standard deviation.",
    "variance": "You divide by the variance; the standard deviation is its square root.",
    "no mean": "The mean of the group is not subtracted.",
    "mean minus reward": "The sign is wrong: the best response must have the largest advantage.",
    "whole batch": "Mean and standard deviation are those of the whole batch; each row is a group with its own.",
    "std of the batch": "The standard deviation is that of the whole batch; each row is a group with its own.",
    "wrong dimension": "Responses to different prompts are compared with each other: a group is a row, not a column.",
    "mean of the others": "Each reward is compared with the mean of the other rewards; here the mean includes itself.",
    "no 0 for equal rewards": "A group of equal rewards gives nan, because 0 is divided by 0; it must give exactly 0.",
    "nan for one response": "A group of one response gives nan, because its standard deviation divides by G - 1 = 0; it"
    " must give exactly 0.",
}


def wrong_group_advantages(mistake, rewards):
    """What group_advantages returns with a mistake of ADVANTAGES_SENTENCES."""
    group_size = rewards.shape[1]
    mean = rewards.mean(dim=1, keepdim=True)
    squares = (rewards - mean).square()
    std = (squares.sum(dim=1, keepdim=True) / max(group_size - 1, 1)).sqrt() + 1e-6
    if mistake == "std with G":
        return (rewards - mean) / (squares.mean(dim=1, keepdim=True).sqrt() + 1e-6)
    if mistake == "no std":
        return rewards - mean
    if mistake == "variance":
        return (rewards - mean) / (std**2 + 1e-6)
    if mistake == "no mean":
        return rewards / std
    if mistake == "mean minus reward":
        return (mean - rewards) / std
    if mistake == "whole batch":
        return (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    if mistake == "std of the batch":
        return (rewards - mean) / (rewards.std() + 1e-6)
    if mistake == "wrong dimension":
        return (rewards - rewards.mean(dim=0)) / (rewards.std(dim=0) + 1e-6)
    if mistake == "mean of the others":
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / max(group_size - 1, 1)
        return (rewards - others) / std
    equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    if mistake == "no 0 for equal rewards":
        return ((rewards - mean) / std).masked_fill(equal, math.nan)
    if mistake == "nan for one response":
        return ((rewards - mean) / std).masked_fill(equal, math.nan if group_size == 1 else 0.0)
    raise ValueError(mistake)


# -------------------------------------------------------------------------------------------- exercise 3: negative_only
NEGATIVE_CASES = [
    Case(
        {"adv": numbers(1.5, -0.5, -0.5, -0.5)},
        numbers(0.0, -0.5, -0.5, -0.5),
        "positive advantages must become 0 and negative ones must stay as they are",
    ),
    Case(
        {"adv": table([1.0, 0.0, -2.0, 0.5], [-0.25, -0.75, 3.0, -1.25])},
        table([0.0, 0.0, -2.0, 0.0], [-0.25, -0.75, 0.0, -1.25]),
        "positive advantages must become 0 and negative ones must stay as they are, for any shape",
    ),
    Case(
        {"adv": numbers(0.0, 2.0, 0.5)},
        numbers(0.0, 0.0, 0.0),
        "without a negative advantage everything must be 0",
    ),
]

NEGATIVE_SENTENCES = {
    "recentred": "The mean is subtracted after the positive advantages were set to 0; nothing may be shifted then.",
    "rescaled": "The result is divided by its standard deviation; nothing may be scaled after that masking.",
    "divided by their number": "The result is scaled by the share of negative advantages; nothing may be scaled.",
    "positive kept": "You keep the positive advantages; the negative ones are wanted.",
    "sign lost": "The negative advantages have become positive: their sign must stay.",
    "mask": "You return where advantages are negative; their values are wanted.",
    "minus one": "Negative advantages have become -1; their values must stay.",
    "selected": "You return only the negative entries; the shape must stay, with 0 in the other places.",
    "nothing done": "The positive advantages are still there; they must become 0.",
    "nan": "The other advantages have become nan or -inf; they must become 0.",
}


def wrong_negative_only(mistake, adv):
    """What negative_only returns with a mistake of NEGATIVE_SENTENCES."""
    kept = torch.where(adv < 0, adv, 0.0)
    if mistake == "recentred":
        return kept - kept.mean(dim=-1, keepdim=True)
    if mistake == "rescaled":
        return kept / (kept.std(dim=-1, keepdim=True) + 1e-6)
    if mistake == "divided by their number":
        return kept / (adv < 0).float().mean(dim=-1, keepdim=True).clamp(min=1e-6)
    if mistake == "positive kept":
        return adv.clamp(min=0.0)
    if mistake == "sign lost":
        return -kept
    if mistake == "mask":
        return (adv < 0).float()
    if mistake == "minus one":
        return torch.where(adv < 0, -1.0, 0.0)
    if mistake == "selected":
        return adv[adv < 0]
    if mistake == "nothing done":
        return adv.clone()
    if mistake == "nan":
        return adv.masked_fill(adv >= 0, math.nan)
    raise ValueError(mistake)


# ------------------------------------------------------------------------------------------------ exercise 4: dapo_loss
def one_token(ratio, adv, loss, words, **clips):
    """A case of one response with one token, of old probability 0.04. clips: eps_low and so on, or the defaults."""
    inputs = {
        "logp": table([math.log(0.04 * ratio)]),
        "logp_old": table([math.log(0.04)]),
        "adv": table([adv]),
        "mask": table([1.0]),
        **clips,
    }
    return Case(inputs, torch.tensor(loss), f"one token of ratio {ratio:g} and advantage {adv:g} {words}")


DAPO_EXAMPLE = {
    "logp": torch.log(table([0.55, 0.75, 0.5], [0.25, 0.9, 0.9])),
    "logp_old": torch.log(table([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])),
    "adv": table([1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]),
    "mask": table([1.0, 1.0, 1.0], [1.0, 0.0, 0.0]),
}
DAPO_GRADIENT = table([-1.1 / 4, 0.0, -1.0 / 4], [0.0, 0.0, 0.0])  # of the loss of the example
DAPO_OVERFLOW = {**DAPO_EXAMPLE, "logp": torch.tensor([[-0.5, -0.5, -0.5], [-0.5, 100.0, INF]])}

DAPO_CASES = [
    one_token(1.1, 0.5, -0.55, "is inside the clip range: the loss must be minus their product"),
    one_token(1.5, 1.0, -1.28, "must be clipped to the ratio 1 + eps_high"),
    one_token(0.5, -1.0, 0.8, "must be clipped to the ratio 1 - eps_low"),
    one_token(1.5, -1.0, 1.5, "must not be clipped: its term is already the smaller one"),
    one_token(0.5, 1.0, -0.5, "must not be clipped: its term is already the smaller one"),
    one_token(20.0, -1.0, 10.0, "must be raised to dual_clip times the advantage"),
    one_token(20.0, 1.0, -1.28, "must be clipped to the ratio 1 + eps_high"),
    one_token(1.7, 1.0, -1.5, "must be clipped with the eps_high that is passed", eps_low=0.1, eps_high=0.5),
    one_token(4.0, -1.0, 3.0, "must use the dual_clip that is passed", eps_low=0.1, eps_high=0.5, dual_clip=3.0),
    Case(
        DAPO_EXAMPLE,
        torch.tensor(-0.445),
        "the docstring gets -0.445 by hand: one sum over all response tokens, divided once by their number",
    ),
    Case(
        {**DAPO_EXAMPLE, "mask": torch.zeros(2, 3)},
        torch.tensor(0.0),
        "a mask of zeros everywhere must give a loss of 0",
    ),
    Case(
        DAPO_OVERFLOW,
        torch.tensor(-0.303265),
        "padding must not matter: there exp overflows, and inf * 0 is nan, so set the log-ratio to 0 before exp",
    ),
]

DAPO_SENTENCES = {
    "not exponentiated": "The ratio is a difference of log-probs; it must be exponentiated.",
    "quotient of log-probs": "The ratio divides log-probs; it is the quotient of the probabilities.",
    "difference of probabilities": "The ratio subtracts the probabilities; it divides the new one by the old one.",
    "inverted ratio": "The ratio is upside down: the new probability is divided by the old one.",
    "no ratio": "The log-prob itself stands in place of the ratio; the old policy is not used.",
    "not negated": "The sign is wrong: an optimiser minimises, so the loss is minus the objective.",
    "max": "The larger of both terms is taken: where the advantage is negative, this clips on the wrong side. The"
    " equation takes the smaller one.",
    "min of the ratios": "The smaller ratio is taken first and then multiplied by the advantage; take the smaller of"
    " both products.",
    "clip alone": "The clipped ratio alone is used: a token that has moved in the wrong direction gets no gradient."
    " Take the smaller of the clipped and the unclipped term.",
    "no clip": "The ratio is not clipped.",
    "no lower clip": "The ratio is not clipped at 1 - eps_low, which matters where the advantage is negative.",
    "no upper clip": "The ratio is not clipped at 1 + eps_high, which matters where the advantage is positive.",
    "eps swapped": "eps_low and eps_high are swapped: the range is from 1 - eps_low to 1 + eps_high.",
    "eps_low twice": "eps_low is used on both sides; the upper side has eps_high.",
    "log-ratio clipped": "The logarithm of the ratio is clipped; the ratio itself has to be clipped to 1 - eps_low and"
    " 1 + eps_high.",
    "clip around 0": "The ratio is clipped to -eps_low and eps_high; the range lies around 1.",
    "no dual clip": "The dual clip is missing: a large ratio with a negative advantage must be bounded.",
    "dual clip everywhere": "The dual clip acts on positive advantages too; it is for negative ones alone.",
    "dual clip with min": "The dual clip takes the smaller value and so lowers every term of negative advantage; it"
    " must raise those that are too low.",
    "fixed constants": "The clip uses 0.2, 0.28 and 10 whatever is passed: use the arguments.",
    "each response alone": "Each response is divided by its own length, as in GRPO; DAPO divides once, by the number of"
    " all response tokens.",
    "padding counted": "The sum is divided by the number of all positions; padding must not count.",
    "mask ignored": "The mask is ignored: padding counts in the sum and in the number of tokens.",
    "mask below alone": "The mask is missing in the sum: padding adds to the loss.",
    "by responses": "The sum is divided by the number of responses; divide by the number of response tokens.",
    "sum": "The sum is not divided by the number of response tokens.",
    "empty mask": "A mask of zeros everywhere gives nan, because 0 is divided by 0; it must give 0.",
}


def wrong_dapo_loss(mistake, logp, logp_old, adv, mask, eps_low=0.2, eps_high=0.28, dual_clip=10.0):
    """What dapo_loss returns with a mistake of DAPO_SENTENCES."""
    if mistake not in DAPO_SENTENCES:
        raise ValueError(mistake)
    if mistake == "fixed constants":
        eps_low = 0.2
        eps_high = 0.28
        dual_clip = 10.0
    elif mistake == "eps swapped":
        (eps_low, eps_high) = (eps_high, eps_low)
    elif mistake == "eps_low twice":
        eps_high = eps_low

    ratio = (logp - logp_old).exp()
    if mistake == "not exponentiated":
        ratio = logp - logp_old
    elif mistake == "quotient of log-probs":
        ratio = logp / logp_old
    elif mistake == "difference of probabilities":
        ratio = logp.exp() - logp_old.exp()
    elif mistake == "inverted ratio":
        ratio = (logp_old - logp).exp()
    elif mistake == "no ratio":
        ratio = logp

    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    if mistake == "log-ratio clipped":
        clipped = (logp - logp_old).clamp(-eps_low, eps_high).exp()
    elif mistake == "clip around 0":
        clipped = ratio.clamp(-eps_low, eps_high)
    elif mistake == "no lower clip":
        clipped = ratio.clamp(max=1 + eps_high)
    elif mistake == "no upper clip":
        clipped = ratio.clamp(min=1 - eps_low)

    term = torch.minimum(ratio * adv, clipped * adv)
    if mistake == "max":
        term = torch.maximum(ratio * adv, clipped * adv)
    elif mistake == "min of the ratios":
        term = torch.minimum(ratio, clipped) * adv
    elif mistake == "clip alone":
        term = clipped * adv
    elif mistake in ("no clip", "no ratio"):
        term = ratio * adv

    if mistake == "dual clip everywhere":
        term = torch.maximum(term, dual_clip * adv)
    elif mistake == "dual clip with min":
        term = torch.where(adv < 0, torch.minimum(term, dual_clip * adv), term)
    elif mistake not in ("no dual clip", "no ratio"):
        term = torch.where(adv < 0, torch.maximum(term, dual_clip * adv), term)

    total = (term * mask).sum()
    n_tokens = mask.sum().clamp(min=1)
    if mistake == "not negated":
        return total / n_tokens
    if mistake == "each response alone":
        return -((term * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()
    if mistake == "padding counted":
        return -total / mask.numel()
    if mistake == "mask ignored":
        return -term.mean()
    if mistake == "mask below alone":
        return -term.sum() / n_tokens
    if mistake == "by responses":
        return -total / len(mask)
    if mistake == "sum":
        return -total
    if mistake == "empty mask":
        return -total / mask.sum()
    return -total / n_tokens


def dapo_gradient(function):
    """The gradient of the example, and of the same where exp overflows on padding."""
    for inputs in (DAPO_EXAMPLE, DAPO_OVERFLOW):
        logp = inputs["logp"].clone().requires_grad_()
        logp_old = inputs["logp_old"].clone().requires_grad_()
        loss = function(logp, logp_old, inputs["adv"], inputs["mask"])
        if loss.requires_grad:
            loss.backward()
        if logp.grad is None or (logp.grad == 0).all():
            return "The loss is right, but no gradient flows into logp: is it detached somewhere?"
        if logp_old.grad is not None and (logp_old.grad != 0).any():
            return "The loss is right, but a gradient flows into logp_old: the old policy is a constant, so detach it."
        if logp.grad.isnan().any():
            return (
                "The loss is right, but its gradient is nan, because exp overflows on padding: set the log-ratio to 0"
                " there before exp."
            )
        if inputs is DAPO_EXAMPLE and not torch.allclose(logp.grad, DAPO_GRADIENT, atol=1e-4):
            return (
                "The loss is right, but its gradient is not: it must be 0 for clipped tokens, and minus w * A divided"
                " by the number of tokens for the others; is a part detached?"
            )
    return ""


# ---------------------------------------------------------------------------------------- exercise 5: reweight_low_prob
REWEIGHT_CASES = [
    Case(
        {
            "adv": table([1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]),
            "logp_old": torch.log(table([0.25, 0.5, 1.0], [0.25, 0.5, 1.0])),
            "alpha": 0.2,
        },
        table([1.15, 1.1, 1.0], [-2.3, -2.2, -2.0]),
        "the docstring gets [[1.15, 1.1, 1], [-2.3, -2.2, -2]]: weights lie between 1 and 1 + alpha, for both signs",
    ),
    Case(
        {"adv": numbers(0.5, -1.5, 3.0), "logp_old": torch.log(numbers(0.1, 0.8, 0.4)), "alpha": 1.0},
        numbers(0.95, -1.8, 4.8),
        "with alpha = 1 a token of probability p must weigh 2 - p, for any shape",
    ),
    Case(
        {"adv": numbers(0.3, -1.7), "logp_old": torch.log(numbers(0.1, 0.7)), "alpha": 0.0},
        numbers(0.3, -1.7),
        "alpha = 0 must return the advantages exactly as they are",
        exact=True,
    ),
]

REWEIGHT_SENTENCES = {
    "dominate": "Unlikely tokens count less, as in the baseline Dominate; they must count more.",
    "likely up": "Likely tokens count more: the weight must grow with 1 - p, not with p.",
    "logp for p": "The log-prob stands where the equation has the probability.",
    "no 1 +": "A token of probability 1 has weight 0; its weight must be 1.",
    "added": "The weight is added to the advantage; it must be multiplied.",
    "weight alone": "You return the weights; the weighted advantages are wanted.",
    "sign lost": "Negative advantages have become positive: their sign must stay.",
    "positive alone": "Only positive advantages are reweighted; negative ones must be too.",
    "negative alone": "Only negative advantages are reweighted; positive ones must be too.",
    "normalised": "The weights are divided by their mean; the paper does not renormalise.",
    "no alpha": "alpha is not used.",
    "one weight a response": "All tokens of a response have the same weight; each token must have its own.",
}


def wrong_reweight_low_prob(mistake, adv, logp_old, alpha):
    """What reweight_low_prob returns with a mistake of REWEIGHT_SENTENCES."""
    p = logp_old.exp()
    weight = 1 + alpha * (1 - p)
    if mistake == "dominate":
        return (1 - alpha * (1 - p)) * adv
    if mistake == "likely up":
        return (1 + alpha * p) * adv
    if mistake == "logp for p":
        return (1 + alpha * (1 - logp_old)) * adv
    if mistake == "no 1 +":
        return alpha * (1 - p) * adv
    if mistake == "added":
        return adv + weight
    if mistake == "weight alone":
        return weight
    if mistake == "sign lost":
        return weight * adv.abs()
    if mistake == "positive alone":
        return torch.where(adv > 0, weight * adv, adv)
    if mistake == "negative alone":
        return torch.where(adv < 0, weight * adv, adv)
    if mistake == "normalised":
        return weight / weight.mean(dim=-1, keepdim=True) * adv
    if mistake == "no alpha":
        return (1 + (1 - p)) * adv
    if mistake == "one weight a response":
        return (1 + alpha * (1 - p.mean(dim=-1, keepdim=True))) * adv
    raise ValueError(mistake)


def reweight_gradient(function):
    """Whether the result is detached."""
    adv = numbers(1.0, -2.0).requires_grad_()
    logp_old = torch.log(numbers(0.25, 0.5)).requires_grad_()
    if function(adv, logp_old, 0.2).requires_grad:
        return (
            "The values are right, but a gradient flows through the weights: they are constants, so detach the result."
        )
    return ""


# ------------------------------------------------------------------------------------------- exercise 6: response_dlogp
DLOGP_CASES = [
    Case(
        {
            "logits_base": torch.log(table([2, 1, 1], [1, 1, 2], [1, 2, 1], [1, 1, 2])),
            "logits_rlvr": torch.log(table([1, 2, 1], [2, 5, 1], [6, 1, 1], [1, 6, 1])),
            "tokens": torch.tensor([1, 0, 2, 0]),
            "n_prompt": 2,
        },
        numbers(-1.386294, 1.098612),
        "the docstring gets [-1.386, 1.099] by hand",
    ),
    Case(
        {
            "logits_base": table([0, 1, 2, 0], [3, 0, 1, 1], [0, 0, 2, 1], [1, 2, 0, 0], [2, 2, 0, 1]),
            "logits_rlvr": table([1, 1, 0, 0], [0, 0, 3, 1], [2, 0, 0, 1], [0, 1, 1, 2], [1, 0, 0, 3]),
            "tokens": torch.tensor([2, 1, 2, 3, 0]),
            "n_prompt": 1,
        },
        numbers(0.487403, 2.066981, 0.0, -1.132712),
        "the first token of the response is predicted by the last row of the prompt",
    ),
    Case(
        {
            "logits_base": table([0, 1, 2], [5, 3, 4], [9, 7, 8]),
            "logits_rlvr": table([7, 8, 9], [2, 0, 1], [2, 0, 1]),
            "tokens": torch.tensor([0, 2, 1]),
            "n_prompt": 1,
        },
        numbers(0.0, 0.0),
        "a constant added to all logits of a row changes no probability, so dlogp must be 0",
    ),
    Case(
        {
            "logits_base": table([0, 150], [0, 0]),
            "logits_rlvr": table([0, 120], [0, 0]),
            "tokens": torch.tensor([1, 0]),
            "n_prompt": 1,
        },
        numbers(30.0),
        "large logits must not end in inf or nan: a probability that rounds to 0 has no log, so use torch.log_softmax",
    ),
]

DLOGP_SENTENCES = {
    "no shift": "The log-probs are off by one: row t of the logits predicts token t + 1, not token t.",
    "wrong shift": "The shift is the wrong way round: row t of the logits predicts token t + 1, not token t - 1.",
    "both shifted": "Rows and tokens are shifted together, which is no shift: row t predicts token t + 1.",
    "sign": "The sign is wrong: dlogp is the RLVR model's log-prob minus the base's.",
    "no softmax": "The logits are used as log-probs; they need a log-softmax first.",
    "probabilities": "You subtract probabilities; dlogp is a difference of log-probs.",
    "ratio": "You return the ratio of the probabilities; dlogp is its logarithm.",
    "softmax over positions": "The softmax runs over the positions; it must run over the vocabulary, the last one.",
    "likeliest": "You score the likeliest token of each position; score the token that stands in the text.",
    "prompt too": "The tokens of the prompt are scored too; only those of the response are wanted.",
    "first missing": "The first token of the response is missing: the last row of the prompt predicts it.",
    "log of softmax": "The log of a softmax gives inf or nan for large logits, because a probability rounds to 0: use"
    " torch.log_softmax.",
    "sum": "You return one number for the whole response; one for each of its tokens is wanted.",
    "whole rows": "You return a number for every token of the vocabulary; pick the one that stands in the text.",
}


def wrong_response_dlogp(mistake, logits_base, logits_rlvr, tokens, n_prompt):
    """What response_dlogp returns with a mistake of DLOGP_SENTENCES."""

    def pick(scores, rows, targets):
        return scores[rows].gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    base = torch.log_softmax(logits_base, dim=-1)
    rlvr = torch.log_softmax(logits_rlvr, dim=-1)
    predicting = slice(n_prompt - 1, -1)
    response = tokens[n_prompt:]
    if mistake == "no shift":
        return pick(rlvr - base, slice(n_prompt, None), response)
    if mistake == "wrong shift":
        return pick(rlvr - base, slice(n_prompt, None), tokens[n_prompt - 1 : -1])
    if mistake == "both shifted":
        return pick(rlvr - base, predicting, tokens[n_prompt - 1 : -1])
    if mistake == "sign":
        return pick(base - rlvr, predicting, response)
    if mistake == "no softmax":
        return pick(logits_rlvr - logits_base, predicting, response)
    if mistake == "probabilities":
        return pick(rlvr.exp() - base.exp(), predicting, response)
    if mistake == "ratio":
        return pick((rlvr - base).exp(), predicting, response)
    if mistake == "softmax over positions":
        columns = torch.log_softmax(logits_rlvr, dim=0) - torch.log_softmax(logits_base, dim=0)
        return pick(columns, predicting, response)
    if mistake == "likeliest":
        return (rlvr.amax(dim=-1) - base.amax(dim=-1))[predicting]
    if mistake == "prompt too":
        return pick(rlvr - base, slice(None, -1), tokens[1:])
    if mistake == "first missing":
        return pick(rlvr - base, slice(n_prompt, -1), tokens[n_prompt + 1 :])
    if mistake == "log of softmax":
        logs = torch.softmax(logits_rlvr, dim=-1).log() - torch.softmax(logits_base, dim=-1).log()
        return pick(logs, predicting, response)
    if mistake == "sum":
        return pick(rlvr - base, predicting, response).sum()
    if mistake == "whole rows":
        return (rlvr - base)[predicting]
    raise ValueError(mistake)


# ---------------------------------------------------------------------------------------------- exercise 7: is_replaced
REPLACED_CASES = [
    Case(
        {"dlogp": numbers(-2.0, -0.5, -0.1, 0.0, 0.2, 1.2), "threshold": -0.3},
        torch.tensor([True, True, False, False, False, False]),
        "exactly the tokens of dlogp below the threshold are replaced",
    ),
    Case(
        {"dlogp": table([-1.5, 0.5, 2.0], [-0.5, -1.25, 0.0]), "threshold": -1.0},
        torch.tensor([[True, False, False], [False, True, False]]),
        "exactly the tokens of dlogp below the threshold are replaced, for any shape",
    ),
    Case(
        {"dlogp": numbers(-0.5, -0.75, 0.5), "threshold": -0.5},
        torch.tensor([False, True, False]),
        "a token exactly at the threshold stays",
    ),
    Case(
        {"dlogp": numbers(-9.0, 0.0, 9.0), "threshold": -INF},
        torch.tensor([False, False, False]),
        "a threshold of -inf must replace nothing",
    ),
    Case(
        {"dlogp": numbers(-9.0, 0.0, 9.0), "threshold": INF},
        torch.tensor([True, True, True]),
        "a threshold of inf must replace every token",
    ),
]

REPLACED_SENTENCES = {
    "greater": "The comparison is the wrong way round: tokens of dlogp below the threshold are replaced.",
    "kept": "You mark the tokens that are kept; the replaced ones are wanted.",
    "less or equal": "A token exactly at the threshold is replaced; it must stay.",
    "size": "The size of dlogp is compared, whatever its sign: tokens that RLVR likes more would be replaced too.",
    "liked more": "You replace the tokens that RLVR likes more than the base; replace those that it likes less.",
    "threshold negated": "The sign of the threshold is turned: it is negative already, so compare with it as it is.",
    "zero": "The threshold is not used: every token that RLVR likes less is replaced.",
    "exponentiated": "dlogp is exponentiated before the comparison; the threshold is for dlogp itself.",
    "positions": "You return the positions of the replaced tokens; True or False is wanted for each token.",
    "values": "You return the values of dlogp below the threshold; True or False is wanted for each token.",
}


def wrong_is_replaced(mistake, dlogp, threshold):
    """What is_replaced returns with a mistake of REPLACED_SENTENCES."""
    if mistake == "greater":
        return dlogp > threshold
    if mistake == "kept":
        return dlogp >= threshold
    if mistake == "less or equal":
        return dlogp <= threshold
    if mistake == "size":
        return dlogp.abs() > abs(threshold)
    if mistake == "liked more":
        return dlogp > -threshold
    if mistake == "threshold negated":
        return dlogp < -threshold
    if mistake == "zero":
        return dlogp < 0
    if mistake == "exponentiated":
        return dlogp.exp() < threshold
    if mistake == "positions":
        return (dlogp < threshold).nonzero().squeeze(-1)
    if mistake == "values":
        return dlogp[dlogp < threshold]
    raise ValueError(mistake)


# ----------------------------------------------------------------------------------------- exercise 8: extrapolate_logp
EXTRAPOLATE_CASES = [
    Case(
        {
            "logp_rlvr": torch.log(numbers(0.5, 0.25, 0.25)),
            "logp_base": torch.log(numbers(0.25, 0.5, 0.25)),
            "gamma": 1.0,
        },
        numbers(-0.318454, -2.397895, -1.704748),
        "the docstring gets [-0.3185, -2.398, -1.705] by hand",
    ),
    Case(
        {
            "logp_rlvr": torch.log(table([0.7, 0.2, 0.1], [0.2, 0.2, 0.6])),
            "logp_base": torch.log(table([0.3, 0.6, 0.1], [0.4, 0.1, 0.5])),
            "gamma": 0.5,
        },
        table([-0.183581, -2.409299, -2.553140], [-2.034389, -1.341242, -0.498043]),
        "the probabilities of each row must add up to 1",
    ),
    Case(
        {
            "logp_rlvr": torch.log(numbers(0.7, 0.2, 0.1)),
            "logp_base": torch.log(numbers(0.3, 0.6, 0.1)),
            "gamma": 0.0,
        },
        torch.log(numbers(0.7, 0.2, 0.1)),
        "gamma = 0 must give the RLVR model",
    ),
    Case(
        {
            "logp_rlvr": torch.log(numbers(0.7, 0.2, 0.1)),
            "logp_base": torch.log(numbers(0.3, 0.6, 0.1)),
            "gamma": -1.0,
        },
        torch.log(numbers(0.3, 0.6, 0.1)),
        "gamma = -1 must give the base",
    ),
    Case(
        {
            "logp_rlvr": torch.log(numbers(0.5, 0.25, 0.25, 0.0, 0.0)),
            "logp_base": torch.log(numbers(0.25, 0.25, 0.0, 0.5, 0.0)),
            "gamma": 1.0,
        },
        numbers(-0.405465, -1.791759, -1.791759, -INF, -INF),
        "where a log-prob is -inf, dlogp must be taken as 0, so that nothing is nan",
    ),
    Case(
        {
            "logp_rlvr": torch.log(numbers(0.5, 0.25, 0.25, 0.0, 0.0)),
            "logp_base": torch.log(numbers(0.25, 0.25, 0.0, 0.5, 0.0)),
            "gamma": 0.0,
        },
        torch.log(numbers(0.5, 0.25, 0.25, 0.0, 0.0)),
        "gamma = 0 must give the RLVR model also where a log-prob is -inf; 0 * inf is nan",
    ),
]

EXTRAPOLATE_SENTENCES = {
    "not normalised": "The result is not normalised: the probabilities do not add up to 1.",
    "from the base": "You start from the base; extrapolation starts from the RLVR model and goes on.",
    "sign": "You move back towards the base; dlogp must point from the base to the RLVR model.",
    "swapped": "The two models are swapped: the RLVR model is the first argument.",
    "dlogp alone": "The RLVR model's own log-prob is missing: only gamma times dlogp is there.",
    "base not used": "The base is not used: the RLVR model is only made sharper.",
    "probabilities returned": "You return probabilities; log-probs are wanted.",
    "mixed probabilities": "You extrapolate the probabilities; the equation extrapolates the log-probs.",
    "divided by the sum": "You divide the log-probs by their sum; the probabilities have to be divided by theirs.",
    "divided by Z": "You divide the log-probs by Z; a division of probabilities is a difference of their logs.",
    "minus Z": "You subtract Z from the log-probs; its logarithm has to be subtracted.",
    "largest subtracted": "You subtract the largest log-prob; that does not make the probabilities add up to 1.",
    "wrong dimension": "The normalisation runs over the rows; it must run over the vocabulary, the last dimension.",
    "gamma not used": "gamma is not used.",
    "nan": "A token of probability 0 gives nan, because -inf - (-inf) is nan: take its dlogp as 0.",
}


def wrong_extrapolate_logp(mistake, logp_rlvr, logp_base, gamma):
    """What extrapolate_logp returns with a mistake of EXTRAPOLATE_SENTENCES."""
    defined = torch.isfinite(logp_rlvr) & torch.isfinite(logp_base)
    dlogp = torch.where(defined, logp_rlvr - logp_base, 0.0)
    mixed = logp_rlvr + gamma * dlogp
    if mistake == "not normalised":
        return mixed
    if mistake == "from the base":
        return torch.log_softmax(logp_base + gamma * dlogp, dim=-1)
    if mistake == "sign":
        return torch.log_softmax(logp_rlvr - gamma * dlogp, dim=-1)
    if mistake == "swapped":
        return torch.log_softmax(logp_base - gamma * dlogp, dim=-1)
    if mistake == "dlogp alone":
        return torch.log_softmax(gamma * dlogp, dim=-1)
    if mistake == "base not used":
        return torch.log_softmax((1 + gamma) * logp_rlvr, dim=-1)
    if mistake == "probabilities returned":
        return torch.softmax(mixed, dim=-1)
    if mistake == "mixed probabilities":
        p = logp_rlvr.exp() + gamma * (logp_rlvr.exp() - logp_base.exp())
        return torch.log(p / p.sum(dim=-1, keepdim=True))
    if mistake == "divided by the sum":
        return mixed / mixed.sum(dim=-1, keepdim=True)
    if mistake == "divided by Z":
        return mixed / mixed.exp().sum(dim=-1, keepdim=True)
    if mistake == "minus Z":
        return mixed - mixed.exp().sum(dim=-1, keepdim=True)
    if mistake == "largest subtracted":
        return mixed - mixed.amax(dim=-1, keepdim=True)
    if mistake == "wrong dimension":
        return torch.log_softmax(mixed, dim=0)
    if mistake == "gamma not used":
        return torch.log_softmax(logp_rlvr + dlogp, dim=-1)
    if mistake == "nan":
        return torch.log_softmax(logp_rlvr + gamma * (logp_rlvr - logp_base), dim=-1)
    raise ValueError(mistake)


# ----------------------------------------------------------------------------------------------------------------- all
EXERCISES = {  # {number: exercise}
    1: Exercise("bandit_update", BANDIT_CASES, BANDIT_SENTENCES, wrong_bandit_update),
    2: Exercise("group_advantages", ADVANTAGES_CASES, ADVANTAGES_SENTENCES, wrong_group_advantages),
    3: Exercise("negative_only", NEGATIVE_CASES, NEGATIVE_SENTENCES, wrong_negative_only),
    4: Exercise("dapo_loss", DAPO_CASES, DAPO_SENTENCES, wrong_dapo_loss, dapo_gradient),
    5: Exercise("reweight_low_prob", REWEIGHT_CASES, REWEIGHT_SENTENCES, wrong_reweight_low_prob, reweight_gradient),
    6: Exercise("response_dlogp", DLOGP_CASES, DLOGP_SENTENCES, wrong_response_dlogp),
    7: Exercise("is_replaced", REPLACED_CASES, REPLACED_SENTENCES, wrong_is_replaced),
    8: Exercise("extrapolate_logp", EXTRAPOLATE_CASES, EXTRAPOLATE_SENTENCES, wrong_extrapolate_logp),
}
