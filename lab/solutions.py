"""Solutions of exercises.py. Try first: the ideas, equations and examples are there."""

import torch


def bandit_update(z, action, reward, baseline, lr):
    pi = torch.softmax(z, dim=0)
    advantage = reward - baseline
    new_z = z - lr * advantage * pi
    new_z[action] += lr * advantage
    return new_z


def group_advantages(rewards):
    group_size = rewards.shape[1]
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    variance = centred.square().sum(dim=1, keepdim=True) / max(group_size - 1, 1)
    advantages = centred / (variance.sqrt() + 1e-6)
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return advantages.masked_fill(equal, 0.0)


def negative_only(adv):
    return adv.clamp(max=0.0)


def dapo_loss(logp, logp_old, adv, mask, eps_low=0.2, eps_high=0.28, dual_clip=10.0):
    log_ratio = (logp - logp_old.detach()).masked_fill(mask == 0, 0.0)  # before exp, which may overflow on padding
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    term = torch.minimum(ratio * adv, clipped * adv)
    term = torch.where(adv < 0, torch.maximum(term, dual_clip * adv), term)
    n_tokens = mask.sum().clamp(min=1)
    return -(term * mask).sum() / n_tokens


def reweight_low_prob(adv, logp_old, alpha):
    weight = 1 + alpha * (1 - logp_old.exp())
    return (weight * adv).detach()


def response_dlogp(logits_base, logits_rlvr, tokens, n_prompt):
    logp_base = torch.log_softmax(logits_base, dim=-1)  # (L, V)
    logp_rlvr = torch.log_softmax(logits_rlvr, dim=-1)
    dlogp = logp_rlvr - logp_base
    predicting = dlogp[n_prompt - 1 : -1]  # (L - n_prompt, V): the rows that predict the response
    response = tokens[n_prompt:]  # (L - n_prompt,)
    return predicting.gather(-1, response.unsqueeze(-1)).squeeze(-1)


def is_replaced(dlogp, threshold):
    return dlogp < threshold


def extrapolate_logp(logp_rlvr, logp_base, gamma):
    defined = torch.isfinite(logp_rlvr) & torch.isfinite(logp_base)
    dlogp = torch.where(defined, logp_rlvr - logp_base, 0.0)
    return torch.log_softmax(logp_rlvr + gamma * dlogp, dim=-1)
