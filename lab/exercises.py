"""Eight exercises: the ideas of the two papers. Each is a function of a few lines that you write yourself.

Replace a line that raises NotImplementedError by your code, then run

    python lab/check.py        # all exercises
    python lab/check.py 4      # one exercise

All you need is torch. A loop is fine where you do not know the function of PyTorch that saves it. No function may
change its inputs: return new tensors. `log` is the natural logarithm. A log-prob is the log of a probability.

Sizes in the docstrings: V actions, or tokens of the vocabulary; B prompts; G responses to each prompt (its group);
N responses; T tokens of the longest of them; L tokens of a text. (..., V) is any shape whose last dimension has size V.

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117)
  Paper B: "The Debate on RLVR Reasoning Capability Boundary" (arXiv 2510.04028)
  DAPO:    "DAPO: An Open-Source LLM Reinforcement Learning System at Scale" (arXiv 2503.14476)
"""

import torch  # noqa: F401 (your functions will use it)


def bandit_update(z, action, reward, baseline, lr):
    """New logits of a softmax bandit after one sampled action.

    Idea: If the reward is above the baseline, the logit of the sampled action rises and all other logits fall.
    If it is below, the logit of the sampled action falls and all others rise, the likely ones most.

    Equation (paper B, section 3: Lemma 1, and the baseline of Algorithm 1):
        pi  = softmax(z)
        A   = reward - baseline                      the advantage
        z_a <- z_a + lr * A * (1 - pi_a)             a: the sampled action
        z_u <- z_u - lr * A * pi_u                   u: every other action
    In Algorithm 1 the baseline is the mean reward of a group of sampled actions. Here it is given.

    Shapes: z (V,), floats. action: an int, 0 to V - 1. reward, baseline, lr: numbers. Returns the new logits (V,).

    Example: these logits mean pi = [0.25, 0.25, 0.5]. A = 0.5 - 0.75 = -0.25, so lr * A = -0.1.
    Action 2 was sampled: 0.6931 - 0.1 * (1 - 0.5) = 0.6431. Each other action: 0 + 0.1 * 0.25 = 0.025.

    >>> bandit_update(torch.tensor([0.0, 0.0, 0.6931]), action=2, reward=0.5, baseline=0.75, lr=0.4)
    tensor([0.0250, 0.0250, 0.6431])

    Useful: torch.softmax with dim=0, Tensor.clone
    """
    raise NotImplementedError("exercise 1: bandit_update")


def group_advantages(rewards):
    """Advantages of responses: each reward compared with the mean of its group.

    Idea: A response is good if it is better than the average response to the same prompt. So each group is shifted
    to mean 0 and scaled to standard deviation 1.

    Equation (paper B, section 2, as in GRPO; DAPO, equation 9):
        A_i = (r_i - mean) / (std + 0.000001)        mean and std over the G rewards of the group
        std = sqrt( sum_i (r_i - mean)^2 / (G - 1) )
    Where all rewards of a group are equal, A_i is exactly 0, also for a group of one. The equation alone cannot promise
    that: computers round, so the mean of ten rewards of 0.7 is not exactly 0.7.

    Shapes: rewards (B, G), floats, a group in each row. Returns (B, G).

    Example: the second group has mean 1. The squares add up to 9 + 1 + 1 + 1 = 12, so std = sqrt(12 / 3) = 2.
    The best response has (4 - 1) / 2 = 1.5. The first group is the second one divided by 4: the advantages are equal.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000],
            [ 1.5000, -0.5000, -0.5000, -0.5000]])

    Useful: Tensor.mean, Tensor.std, Tensor.amax and Tensor.amin, with dim=1 and keepdim=True; Tensor.masked_fill
    """
    raise NotImplementedError("exercise 2: group_advantages")


def negative_only(adv):
    """Advantages of GRPO-N: those below 0 stay, all others become 0.

    Idea: The model learns from its mistakes alone. Its good responses still count in the mean and the std of the group,
    which were computed before; after that they give no gradient.

    Equation (paper B, appendix B.5):
        A_i <- A_i * 1[A_i < 0]                      1[...]: 1 where true, 0 where false
    Nothing is shifted or scaled afterwards.

    Shapes: adv of any shape, floats. Returns the same shape.

    Example: 1.5 is positive and becomes 0. The others are negative and stay.

    >>> negative_only(torch.tensor([1.5, -0.5, -0.5, -0.5]))
    tensor([ 0.0000, -0.5000, -0.5000, -0.5000])

    Useful: Tensor.clamp, or torch.where
    """
    raise NotImplementedError("exercise 3: negative_only")


def dapo_loss(logp, logp_old, adv, mask, eps_low=0.2, eps_high=0.28, dual_clip=10.0):
    """The clipped loss of DAPO.

    Idea: A token's probability is raised where its advantage is positive and lowered where it is negative. A token that
    has already moved far in this direction is clipped, which means that it gives no gradient.

    Equation (DAPO, equation 8; the dual clip is in paper A's released code). For each token of advantage A:
        w      = pi / pi_old                         the ratio of new and old probability
        term   = min( w * A, clip(w, 1 - eps_low, 1 + eps_high) * A )
        term   = max( term, dual_clip * A )          only where A < 0: the dual clip
        loss   = - (sum of the terms of all response tokens) / (number of response tokens)
    clip(w, a, b) is w, but a where w is below a, and b where w is above b.
    The sum and the number are over all N responses together. So a long response counts more than a short one.
    The old policy is a constant: no gradient flows into logp_old.

    Shapes: logp, logp_old, adv, mask (N, T), floats. logp and logp_old are log-probs of the tokens under the new and
    the old policy, adv is A. mask is 1 on response tokens and 0 on padding. On padding logp and logp_old may hold
    anything, even values whose ratio is inf; inf * 0 is nan. Returns the loss, a tensor of shape (). Where mask is 0
    everywhere, the loss is 0.

    Example: the ratios are [1.1, 1.5, 1.0] and [0.5, padding, padding]. 1.5 is clipped to 1.28. In the second response
    min(-2 * 0.5, -2 * 0.8) = -1.6. The loss is -(1.1 + 1.28 + 1.0 - 1.6) / 4 = -0.445.

    >>> logp = torch.log(torch.tensor([[0.55, 0.75, 0.5], [0.25, 0.9, 0.9]]))
    >>> logp_old = torch.log(torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]))
    >>> adv = torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]])
    >>> mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    >>> dapo_loss(logp, logp_old, adv, mask)
    tensor(-0.4450)

    Useful: Tensor.exp, Tensor.clamp, torch.minimum, torch.maximum, torch.where, Tensor.detach, Tensor.masked_fill
    """
    raise NotImplementedError("exercise 4: dapo_loss")


def reweight_low_prob(adv, logp_old, alpha):
    """Advantages in which unlikely tokens count more.

    Idea: Rare tokens are the ones that explore, so they should weigh more than common ones. That holds for rewarded and
    for punished tokens alike.

    Equation (paper A, section 4.2):
        A_t <- (1 + alpha * (1 - p_t)) * A_t         p_t: probability of the token under the old policy
    The weights are constants: the result has no gradient.

    Shapes: adv, logp_old (..., T), floats. logp_old holds log p_t. alpha: a number. Returns (..., T).

    Example: alpha = 0.2, and the tokens have p = [0.25, 0.5, 1.0]. The weight of the first is 1 + 0.2 * 0.75 = 1.15.

    >>> adv = torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, -2.0]])
    >>> logp_old = torch.log(torch.tensor([[0.25, 0.5, 1.0], [0.25, 0.5, 1.0]]))
    >>> reweight_low_prob(adv, logp_old, alpha=0.2)
    tensor([[ 1.1500,  1.1000,  1.0000],
            [-2.3000, -2.2000, -2.0000]])

    Useful: Tensor.exp, Tensor.detach
    """
    raise NotImplementedError("exercise 5: reweight_low_prob")


def response_dlogp(logits_base, logits_rlvr, tokens, n_prompt):
    """dlogp of each token of a response: how much more likely RLVR made it.

    Idea: dlogp is positive where RLVR made a token more likely and negative where it made it less likely. Both models
    read the same text, the prompt and then the response, and both score every token of it.

    Equation (paper A, equation 1), for every token y_t of the response:
        dlogp_t = log pi_RLVR(y_t | all tokens before it) - log pi_base(y_t | all tokens before it)
    Row t of the logits is what a model says after it has read tokens 0 to t. So row t predicts token t + 1.

    Shapes: tokens (L,), ints: n_prompt tokens of the prompt (1 or more), then the response. logits_base and logits_rlvr
    (L, V), floats: scores before the softmax. Returns (L - n_prompt,): one number for each token of the response.
    Logits may be large. Then a softmax rounds to 0, and its log is -inf; torch.log_softmax has no such problem.

    Example: the response is [2, 0]. Row 1 predicts its token 2. That row of the base is log [1, 1, 2], so its softmax
    is [0.25, 0.25, 0.5]; RLVR's is [0.25, 0.625, 0.125]. So dlogp = log(0.125 / 0.5) = -1.386. Row 2 predicts token 0:
    base 1 / 4, RLVR 6 / 8, so dlogp = log 3 = 1.099. Rows 0 and 3 are not needed.

    >>> base = torch.log(torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]]))
    >>> rlvr = torch.log(torch.tensor([[1.0, 2.0, 1.0], [2.0, 5.0, 1.0], [6.0, 1.0, 1.0], [1.0, 6.0, 1.0]]))
    >>> response_dlogp(base, rlvr, torch.tensor([1, 0, 2, 0]), n_prompt=2)
    tensor([-1.3863,  1.0986])

    Useful: torch.log_softmax; then Tensor.gather, or a loop over the tokens of the response
    """
    raise NotImplementedError("exercise 6: response_dlogp")


def is_replaced(dlogp, threshold):
    """Which tokens of the base model are replaced by a token of the RLVR model.

    Idea: The base draws every token. Where RLVR has made the drawn token much less likely, it is thrown away and the
    RLVR model draws a token in its place.

    Equation (paper A, section 3.2, Algorithm 1):
        replaced where dlogp(y) < threshold          dlogp(y) = log pi_RLVR(y) - log pi_base(y), see exercise 6
    The threshold is usually negative. A token exactly at the threshold stays. -inf replaces nothing, inf everything.

    Shapes: dlogp of any shape, floats. threshold: a number. Returns the same shape, dtype bool.

    Example: only -2.0 and -0.5 are below -0.3. The token of dlogp 1.2 is one that RLVR likes even more than the base.

    >>> is_replaced(torch.tensor([-2.0, -0.5, -0.1, 0.0, 0.2, 1.2]), threshold=-0.3)
    tensor([ True,  True, False, False, False, False])

    Useful: a comparison of a tensor with a number gives a tensor of dtype bool
    """
    raise NotImplementedError("exercise 7: is_replaced")


def extrapolate_logp(logp_rlvr, logp_base, gamma):
    """Log-probs beyond the RLVR model, in the direction from the base to it.

    Idea: RLVR moved each log-prob by dlogp. Go on by gamma times that move, then make the result a distribution again.

    Equation (paper A, section 4.1):
        log pi_ext = log pi_RLVR + gamma * dlogp - log Z      dlogp = log pi_RLVR - log pi_base
        Z = sum over the vocabulary of pi_RLVR * exp(gamma * dlogp)
    gamma = 0 is the RLVR model, gamma = -1 is the base, gamma > 0 is beyond RLVR.
    Where either log-prob is -inf (probability 0), dlogp has no value; take it as 0. Note that -inf - (-inf) is nan.

    Shapes: logp_rlvr and logp_base (..., V), floats. Mind the order: RLVR comes first. gamma: a number.
    Returns (..., V).

    Example: gamma = 1, so pi_RLVR * pi_RLVR / pi_base = [1, 0.125, 0.25]. These add up to Z = 1.375.
    The first probability is 1 / 1.375 = 0.7273, and log 0.7273 = -0.3185.

    >>> logp_rlvr = torch.log(torch.tensor([0.5, 0.25, 0.25]))
    >>> logp_base = torch.log(torch.tensor([0.25, 0.5, 0.25]))
    >>> extrapolate_logp(logp_rlvr, logp_base, gamma=1.0)
    tensor([-0.3185, -2.3979, -1.7047])

    Useful: torch.log_softmax, torch.isfinite, torch.where
    """
    raise NotImplementedError("exercise 8: extrapolate_logp")
