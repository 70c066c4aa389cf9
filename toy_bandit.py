"""Two-stage dynamics of a softmax bandit: exploit what is already likely, then explore what is better.

What it shows: a policy over three actions is trained by a group-relative policy gradient. Action a1 is common and fair,
a2 is rare and best, a3 is common and worthless. At first a1 rises, a3 falls and a2 hardly moves: exploitation. Then
1 - pi(a1) is small, so the growth of a1 stalls. Next to a2, a1 is now the worse one, and a2 takes over: exploration.

  Paper B: "The Debate on RLVR Reasoning Capability Boundary" (arXiv 2510.04028), section 3 and appendix C

The equations, tagged (1) to (6) in the code; pi = softmax(z / temperature), in (1) to (4) at temperature 1:
  (1) one sampled action v of advantage A:  dz_v = eta A (1 - pi_v), dz_u = -eta A pi_u for u != v         Lemma 1
  (2) in expectation:                       E dz_v = eta pi_v (A_v - sum_u pi_u A_u)                       Theorem 1
  (3) log-probabilities:                    d log pi = (I - 1 pi^T) K dz + O(eta^2), K = J J^T the NTK     Proposition 1
  (4) the same after (1), with K = I:       d log pi_u = eta A ([u = v] - pi_u - pi_v + sum_w pi_w^2)      (1) in (3)
  (5) group advantage:                      A_i = r_i - mean_j r_j over the G sampled actions, no std      Algorithm 1
  (6) update:                               z <- z + eta mean_i A_i (e_{a_i} - pi)                         Algorithm 1

Differs from the paper: its listing says "Apply Adam update" but prints (6). Both are here; plain ascent is the default.
Its panels name no rewards and no start; ours do. As (5) subtracts the samples' own mean, (6) averages 1 - 1/G of (2).
It writes delta z both for the update and for eta times the gradient; here dz is the update, which the kernel K changes
where the logits are not the parameters. Its printed softmax sums over j != i, which is no distribution; ours sums over
all j.

    python toy_bandit.py              # one bandit, its picture and a table: two seconds on one core
    python toy_bandit.py --figures    # the paper's figures 1, 5, 6, 7, and Adam, and one sign of advantage: a minute
    python toy_bandit.py --check      # the equations against autograd, finite differences, every possible group
"""

import argparse
import itertools
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

REWARDS = (0.5, 1.0, 0.0)  # a1 is fair, a2 is best, a3 is worthless
POLICY = (0.475, 0.05, 0.475)  # at the start a1 and a3 are common, a2 is rare
OPTIMIZERS = ("sgd", "adam")
SIGNS = ("both", "positive", "negative")


def parse_args(argv=None):
    """Command line -> namespace. A flag that would have no effect is an error."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rewards", type=parse_numbers, default=REWARDS, help="reward of each action, such as 0.5,1,0")
    parser.add_argument("--policy", type=parse_numbers, default=POLICY, help="probability of each action at the start")
    parser.add_argument("--steps", type=int, default=4000, help="updates of a run; for --figures, of a run of figure 5")
    parser.add_argument("--group-size", type=int, default=2, help="sampled actions in an update, G")
    parser.add_argument("--lr", type=float, default=0.1, help="learning rate, eta")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of the softmax")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="plain gradient ascent, or Adam")
    parser.add_argument("--signs", choices=SIGNS, default="both", help="sign of the advantages that count")
    parser.add_argument("--runs", type=int, default=250, help="independent runs of a bandit, side by side")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sampled actions")
    parser.add_argument("--out", default="runs/toy_bandit/default", help="folder of the picture and of summary.json")
    parser.add_argument("--figures", action="store_true", help="draw the paper's figures instead of one bandit")
    parser.add_argument("--check", action="store_true", help="check the equations instead; exit status 1 if one fails")
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error(f"--seed is 0 or more, not {args.seed}")
    for name, value in vars(args).items():
        flag = "--" + name.replace("_", "-")
        changed = value != parser.get_default(name)
        if args.check and changed and name not in ("check", "seed"):
            parser.error(f"{flag} has no effect with --check: leave it out")
        if args.figures and changed and name not in ("figures", "steps", "runs", "seed", "out"):
            parser.error(f"{flag} has no effect with --figures, whose bandits are fixed: leave one of them out")
    return args


def parse_numbers(text):
    """Numbers with commas between them: "0.5,1,0" -> (0.5, 1.0, 0.0)."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        message = f"want numbers with commas between them, such as 0.5,1,0, not {text!r}"
        raise argparse.ArgumentTypeError(message) from None


# -------------------------------------------------------------------------------------------- maths: numpy arrays alone
def softmax(z, axis=-1):
    """Probabilities of logits, over one axis: an array of the same shape."""
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def logit_update(probs, action, adv, lr):
    """Lemma 1: change of the logits, (actions,), after one update along adv * log pi(action). probs (actions,)."""
    dlogits = -lr * adv * np.asarray(probs, dtype=float)  # (1), u != v
    dlogits[action] += lr * adv  # (1), v
    return dlogits


def expected_logit_update(probs, adv, lr):
    """Theorem 1: the mean of Lemma 1 over actions drawn from probs. probs, adv (..., actions) -> (..., actions)."""
    probs = np.asarray(probs, dtype=float)
    adv = np.asarray(adv, dtype=float)
    return lr * probs * (adv - (probs * adv).sum(axis=-1, keepdims=True))  # (2)


def logprob_change(probs, dlogits, ntk=None):
    """Proposition 1: first-order change of log pi, (actions,), for dlogits of a table. ntk: K or None for I."""
    moved = np.asarray(dlogits, dtype=float) if ntk is None else ntk @ dlogits
    return moved - np.dot(probs, moved)  # (3)


def sampled_logprob_change(probs, action, adv, lr):
    """First-order change of log pi, (actions,), after Lemma 1. probs (actions,).

    Where one action has most of the probability, punishing another one makes the rare ones less probable, although
    their logits rise: the likely action takes what is set free.
    """
    probs = np.asarray(probs, dtype=float)
    return lr * adv * (np.eye(len(probs))[action] - probs - probs[action] + (probs**2).sum())  # (4)


def run_bandit(
    rewards, init_probs, steps=4000, group_size=2, lr=0.1, temperature=1.0, n_runs=200, seed=0, signs="both", beta1=None
):
    """Algorithm 1, n_runs independent runs side by side -> probabilities (n_runs, steps + 1, actions), float32.

    signs "positive" or "negative" drops samples whose advantage (5) has the other sign. beta1 None is plain ascent, a
    number is Adam with (beta1, 0.999, 1e-8). Each update draws rng.random((n_runs, group_size)) of
    rng = default_rng(seed) and inverts the cumulative policy. Raises ValueError for arguments that make no bandit.
    """
    if len(rewards) < 2 or len(rewards) != len(init_probs):
        raise ValueError(f"want two or more rewards, and as many probabilities, not {rewards} and {init_probs}")
    if not (min(init_probs) > 0 and abs(sum(init_probs) - 1) < 1e-6):
        raise ValueError(f"want probabilities above 0 that add up to 1, not {init_probs}")
    if not np.isfinite(rewards).all():
        raise ValueError(f"want finite rewards, not {rewards}")
    if min(steps, group_size, n_runs) < 1:
        raise ValueError(f"want 1 or more updates, actions in a group and runs, not {steps}, {group_size} and {n_runs}")
    if not (0 < lr < math.inf and 0 < temperature < math.inf):
        raise ValueError(f"want a learning rate and a temperature above 0, not {lr} and {temperature}")
    if signs not in SIGNS:
        raise ValueError(f"want signs both, positive or negative, not {signs!r}")
    if beta1 is not None and not 0 <= beta1 < 1:
        raise ValueError(f"want a beta1 of 0 or more and below 1, not {beta1}")

    rng = np.random.default_rng(seed)
    rewards = np.asarray(rewards, dtype=float)
    actions = np.arange(len(rewards))[:, None]  # (actions, 1)
    z = np.tile(temperature * np.log(init_probs)[:, None], n_runs)  # (actions, runs): fast along the long last axis
    first_moment = np.zeros_like(z)
    second_moment = np.zeros_like(z)
    probs = np.empty((steps + 1, *z.shape), dtype=np.float32)
    for t in range(steps):
        pi = softmax(z / temperature, axis=0)  # (actions, runs)
        probs[t] = pi
        # Sample G actions in each run: the first whose cumulative probability is above a uniform number.
        uniform = np.ascontiguousarray(rng.random((n_runs, group_size)).T)  # (G, runs)
        cumulative = pi.cumsum(axis=0)[:-1]  # (actions - 1, runs); the last would be 1
        chosen = (uniform >= cumulative[:, None]).sum(axis=0)  # (G, runs)
        # Compare each with its group.
        adv = rewards[chosen] - rewards[chosen].mean(axis=0)  # (5), (G, runs)
        if signs == "positive":
            adv = np.maximum(adv, 0)
        elif signs == "negative":
            adv = np.minimum(adv, 0)
        # Update the logits.
        is_chosen = chosen[:, None] == actions  # (G, actions, runs)
        adv_of_action = (adv[:, None] * is_chosen).sum(axis=0)  # sum_i A_i e_{a_i}, (actions, runs)
        gradient = (adv_of_action - adv.sum(axis=0) * pi) / group_size  # mean_i A_i (e_{a_i} - pi)
        if beta1 is not None:
            first_moment = beta1 * first_moment + (1 - beta1) * gradient
            second_moment = 0.999 * second_moment + 0.001 * gradient**2
            unbiased_first = first_moment / (1 - beta1 ** (t + 1))
            unbiased_second = second_moment / (1 - 0.999 ** (t + 1))
            gradient = unbiased_first / (np.sqrt(unbiased_second) + 1e-8)
        z += lr * gradient  # (6)
    probs[steps] = softmax(z / temperature, axis=0)
    return probs.transpose(2, 0, 1)


def expected_flow(rewards, init_probs, steps, group_size=2, lr=0.1, temperature=1.0, signs="both"):
    """Plain ascent without chance -> probabilities (steps + 1, actions).

    (6) is replaced by its mean: (2) with the mean advantage of each action in a group. Raises ValueError where that
    mean is not known: for one sign of the advantage, unless the group size is 2.
    """
    if signs != "both" and group_size != 2:
        raise ValueError("the expected flow of one sign of the advantage is known for a group size of 2 only")
    difference = np.subtract.outer(rewards, rewards)  # r_v - r_u
    if signs == "positive":
        difference = np.maximum(difference, 0)
    elif signs == "negative":
        difference = np.minimum(difference, 0)
    z = temperature * np.log(init_probs)
    probs = np.empty((steps + 1, len(rewards)))
    for t in range(steps + 1):
        pi = softmax(z / temperature)
        probs[t] = pi
        mean_adv = (1 - 1 / group_size) * difference @ pi  # E[A_i | a_i = v], (actions,)
        z = z + expected_logit_update(pi, mean_adv, lr)
    return probs


def share_with_interval(hits):
    """Share of True in a bool array (n,), and its 95% Wilson interval: (share, low, high)."""
    n = len(hits)
    share = float(np.mean(hits))
    z_squared = 1.96**2
    centre = (share + z_squared / (2 * n)) / (1 + z_squared / n)
    half = 1.96 / (1 + z_squared / n) * np.sqrt(share * (1 - share) / n + z_squared / (4 * n * n))
    return share, max(0.0, centre - half), min(1.0, centre + half)


def outcome(rewards, probs):
    """What became of the runs: a dict for the table. probs (runs, steps + 1, actions) of run_bandit.

    The exploited action is the best but one. Exploration starts where its median probability peaks, if that then falls
    by more than 0.05. A run has two stages if its own probability rises and then falls by so much; `peaks` are the
    quartiles of the update between. The best action ends reached (above 1/2) or lost (below 1e-9); `best`: its
    probability at the end, in 5, 50 and 95% of the runs.
    """
    best_first = np.argsort(rewards)[::-1]
    best = probs[:, :, best_first[0]]  # (runs, steps + 1)
    exploited = probs[:, :, best_first[1]]  # (runs, steps + 1)
    median = np.median(exploited, axis=0)
    start = int(median.argmax())
    explores = start > 0 and median[start] - median[-1] > 0.05
    highest = exploited.max(axis=1)
    two_stages = (highest - exploited[:, 0] > 0.05) & (highest - exploited[:, -1] > 0.05)  # (runs,)
    peaks = []
    if two_stages.any():
        peaks = np.quantile(exploited[two_stages].argmax(axis=1), (0.25, 0.5, 0.75)).tolist()
    return {
        "exploration starts": start if explores else None,
        "two stages": share_with_interval(two_stages),
        "peaks": peaks,
        "reached": share_with_interval(best[:, -1] > 0.5),
        "lost": share_with_interval(best[:, -1] < 1e-9),
        "best": np.quantile(best[:, -1], (0.05, 0.5, 0.95)).tolist(),
    }


# ----------------------------------------------------------------------------------------------------------------- runs
class Bandit(NamedTuple):
    """One bandit, a row of the table."""

    figure: str  # name of its picture
    panel: str  # title of its panel there
    label: str  # its curve, in a panel that compares several bandits; else empty
    settings: dict  # keyword arguments of run_bandit


class Curves(NamedTuple):
    """What a picture shows of a bandit, at some of its updates: arrays (updates, actions)."""

    updates: np.ndarray  # (updates,)
    mean: np.ndarray  # over the runs
    low: np.ndarray  # 10% of the runs are below
    median: np.ndarray
    high: np.ndarray  # 10% of the runs are above
    first_run: np.ndarray
    flow: np.ndarray | None  # the expected flow, where it is known


def bandit_settings(args):
    """Keyword arguments of run_bandit, from the flags."""
    return {
        "rewards": args.rewards,
        "init_probs": args.policy,
        "steps": args.steps,
        "group_size": args.group_size,
        "lr": args.lr,
        "temperature": args.temperature,
        "n_runs": args.runs,
        "seed": args.seed,
        "signs": args.signs,
        "beta1": 0.9 if args.optimizer == "adam" else None,
    }


def paper_bandits(default):
    """The bandits of the paper's figures 1, 5, 6 and 7 and of two figures of ours: a list of Bandit.

    default: settings of the flags. Most figures have a multiple of its updates, as their bandits are slower or faster.
    """
    steps = default["steps"]
    rare = (0.49, 0.02, 0.49)
    panels = {}  # of figure 1: title -> settings
    for policy in ((0.45, 0.1, 0.45), POLICY, rare):
        panels[f"a2 starts at {policy[1]:g}"] = {**default, "init_probs": policy}
    for fair in (0.3, 0.7, 0.85):
        panels[f"a1 has reward {fair:g}"] = {**default, "rewards": (fair, 1.0, 0.0)}

    bandits = []
    for panel, settings in panels.items():
        bandits.append(Bandit("figure1", panel, "", {**settings, "steps": 5 * steps}))
    for size in (2, 3, 5, 10):
        bandits.append(Bandit("figure5", f"groups of {size}", "", {**default, "group_size": size}))
    for temperature in (1, 2, 5, 20):
        settings = {**default, "temperature": temperature, "steps": temperature * steps // 2}
        bandits.append(Bandit("figure6", f"temperature {temperature}", "", settings))
    four_actions = {
        **default,
        "rewards": (0.0, 0.4, 0.7, 1.0),
        "init_probs": (0.4, 0.43, 0.12, 0.05),
        "steps": steps // 2,
    }
    panel = "rewards 0, 0.4, 0.7, 1; start 0.4, 0.43, 0.12, 0.05"
    bandits.append(Bandit("figure7", panel, "", four_actions))
    for panel, settings in panels.items():
        settings = {**settings, "steps": 5 * steps // 2}
        bandits.append(Bandit("figure_adam", panel, "plain ascent", settings))
        for beta1 in (0.0, 0.9, 0.99):
            bandits.append(Bandit("figure_adam", panel, f"Adam, beta1 {beta1:g}", {**settings, "beta1": beta1}))
    long_and_rare = {**default, "init_probs": rare, "steps": 5 * steps // 2}
    for panel, settings in (
        ("plain ascent, learning rate 1", {**long_and_rare, "lr": 1.0}),
        ("Adam, learning rate 0.1", {**long_and_rare, "beta1": 0.9}),
    ):
        for signs, label in (("both", "both signs"), ("positive", "positive only"), ("negative", "negative only")):
            bandits.append(Bandit("figure_negative", panel, label, {**settings, "signs": signs}))
    return bandits


def known_flow(settings):
    """The expected flow of run_bandit's settings, (steps + 1, actions); None where it is not known, as under Adam."""
    if settings["beta1"] is not None:
        return None
    if settings["signs"] != "both" and settings["group_size"] != 2:
        return None
    names = ("rewards", "init_probs", "steps", "group_size", "lr", "temperature", "signs")
    return expected_flow(**{name: settings[name] for name in names})


def run(bandit):
    """Run a Bandit -> its row of the table, a dict, and its Curves."""
    settings = bandit.settings
    probs = run_bandit(**settings)
    flow = known_flow(settings)
    updates = np.unique(np.geomspace(1, settings["steps"], 300).astype(int))
    low, median, high = np.quantile(probs[:, updates], (0.1, 0.5, 0.9), axis=0)
    curves = Curves(
        updates=updates,
        mean=probs[:, updates].mean(axis=0),
        low=low,
        median=median,
        high=high,
        first_run=probs[0, updates],
        flow=None if flow is None else flow[updates],
    )
    flow_end = None
    gap = None
    if flow is not None:
        best = np.argsort(settings["rewards"])[-1]
        flow_end = float(flow[-1, best])
        gap = float(np.abs(np.median(probs, axis=0) - flow).max())
    row = {
        "figure": bandit.figure,
        "panel": f"{bandit.panel}, {bandit.label}" if bandit.label else bandit.panel,
        "updates": settings["steps"],
        **outcome(settings["rewards"], probs),
        "flow": flow_end,
        "gap": gap,
    }
    return row, curves


# ---------------------------------------------------------------------------------------------------------------- check
def check(seed=0):
    """Print a line for each statement with its numbers; returns True if all hold. Needs torch, for its autograd."""
    import torch  # only here: the figures start at once

    jacobian_of = torch.autograd.functional.jacobian
    rng = np.random.default_rng(seed)
    z = torch.tensor(rng.normal(size=6))
    rewards = rng.normal(size=6)
    pi = z.softmax(0).numpy()
    lines = []  # (holds, text)

    # ---- Lemma 1
    score = jacobian_of(lambda z: z.log_softmax(0), z).numpy()  # score[a] = d log pi(a) / dz
    error = 0.0
    for action in range(6):
        for adv in (-1, 1):
            difference = logit_update(pi, action, adv, 0.1) - 0.1 * adv * score[action]
            error = max(error, np.abs(difference).max())
    lines.append((error < 1e-14, f"Lemma 1 = autograd of A log pi(a): largest error {error:.1e}"))

    # ---- Theorem 1
    exact = expected_logit_update(pi, rewards, 1.0)
    gradient = jacobian_of(lambda z: z.softmax(0) @ torch.tensor(rewards), z).numpy()
    error = np.abs(exact - gradient).max()
    lines.append((error < 1e-14, f"Theorem 1 = autograd of E[A]: largest error {error:.1e}"))

    # ---- Algorithm 1: the mean update over all groups
    for size in (2, 4):
        mean = np.zeros(6)
        for group in itertools.product(range(6), repeat=size):
            group_rewards = rewards[list(group)]
            advs = group_rewards - group_rewards.mean()  # (5)
            update = np.zeros(6)
            for action, adv in zip(group, advs, strict=True):
                update += logit_update(pi, action, adv, 1 / size)  # (6)
            mean += pi[list(group)].prod() * update
        factor = 1 - 1 / size
        error = np.abs(mean - factor * exact).max()
        text = f"mean of (6) over all {6**size} groups of {size} = {factor} Theorem 1: largest error {error:.1e}"
        lines.append((error < 1e-14, text))

    # ---- (4): an action, its advantage, and a bystander whose logit and probability may part
    start = np.array([0.9, 0.01, 0.09])
    for action, adv, bystander in ((2, -1.0, 1), (1, 1.0, 2), (0, -1.0, 1)):
        change = sampled_logprob_change(start, action, adv, 1.0)
        dz = logit_update(start, action, adv, 1e-6)
        measured = np.log(softmax(np.log(start) + dz) / softmax(np.log(start) - dz)) / 2e-6
        error = np.abs(change - measured).max()
        logit = 1e6 * dz[bystander]
        prob = start[bystander] * change[bystander]
        parts = logit * prob < 0
        text = f"(4) = finite differences: largest error {error:.1e}; at pi {start}, A = {adv:+.0f} on a{action + 1}"
        text += f" moves the logit of a{bystander + 1} by {logit:+.4f} eta, its probability by {prob:+.4f} eta"
        lines.append((error < 1e-8 and parts == (action != 0), text))

    # ---- Proposition 1: logits as a function of parameters
    inputs = torch.tensor(rng.normal(size=4))
    weights = torch.tensor(rng.normal(size=80) * 0.5)

    def network(w):
        return torch.tanh(w[:32].view(8, 4) @ inputs) @ w[32:].view(8, 6)

    for name, logits_of, theta in (("tabular", torch.clone, z), ("two-layer network", network, weights)):
        jacobian = jacobian_of(logits_of, theta).numpy()
        before = logits_of(theta).log_softmax(0).numpy()
        remainders = []
        for lr in (0.02, 0.01):
            dlogits = expected_logit_update(np.exp(before), rewards, lr)
            after = logits_of(theta + torch.tensor(jacobian.T @ dlogits)).log_softmax(0).numpy()
            predicted = logprob_change(np.exp(before), dlogits, jacobian @ jacobian.T)
            remainders.append(np.abs(after - before - predicted).max())
        ratio = remainders[0] / remainders[1]
        text = (
            f"Proposition 1, {name}: remainder {remainders[0]:.1e} at eta = 0.02, divided by {ratio:.2f} as eta halves"
        )
        lines.append((3.6 < ratio < 4.4, text))

    for holds, text in lines:
        print(f"{'holds' if holds else 'FAILS'}  {text}")
    return all(holds for holds, _ in lines)


# -------------------------------------------------------------------------------------------------------------- figures
def action_roles(rewards, policy):
    """A role for each action: a list such as ["common and fair", "rare and best", "common and worthless"]."""
    roles = []
    for reward, prob in zip(rewards, policy, strict=True):
        often = "rare" if prob < 0.5 / len(policy) else "common"  # rare: less than half of an equal share
        if reward == max(rewards):
            quality = "best"
        elif reward > min(rewards):
            quality = "fair"
        elif reward == 0:
            quality = "worthless"
        else:
            quality = "worst"
        roles.append(f"{often} and {quality}")
    return roles


def action_colors(rewards, policy):
    """A colour for each action: orange the best, green the worst, blue the most common of the others."""
    worst_first = np.argsort(rewards)
    colors = [""] * len(rewards)
    others = sorted(worst_first[1:-1], key=lambda action: policy[action], reverse=True)
    for action, color in zip(others, itertools.cycle(["tab:blue", "tab:purple", "tab:brown", "tab:pink"])):
        colors[action] = color
    colors[worst_first[0]] = "tab:green"
    colors[worst_first[-1]] = "tab:orange"
    return colors


def shows_two_stages(bandit, row):
    """Whether most runs first exploit a fair action and then reach the best one, which was rare."""
    roles = action_roles(bandit.settings["rewards"], bandit.settings["init_probs"])
    in_most_runs = row["two stages"][0] > 0.5 and row["reached"][0] > 0.5
    return in_most_runs and "rare and best" in roles and any(role.endswith("fair") for role in roles)


def draw_actions(axis, bandit, curves):
    """Draw the probability of every action: median and 10-90% band; run 0 thin, the expected flow dashed."""
    roles = action_roles(bandit.settings["rewards"], bandit.settings["init_probs"])
    colors = action_colors(bandit.settings["rewards"], bandit.settings["init_probs"])
    for action, (role, color) in enumerate(zip(roles, colors, strict=True)):
        label = f"a{action + 1}: {role}"
        axis.fill_between(curves.updates, curves.low[:, action], curves.high[:, action], color=color, alpha=0.2, lw=0)
        axis.plot(curves.updates, curves.median[:, action], color=color, lw=2, label=label)
        axis.plot(curves.updates, curves.first_run[:, action], color=color, lw=0.5)
    if curves.flow is not None:
        for action in range(len(roles)):
            label = "expected flow, without chance" if action == 0 else None
            axis.plot(curves.updates, curves.flow[:, action], "--", color="black", lw=0.8, label=label)
    axis.set(xlabel="update", ylabel="probability", xscale="log", ylim=(-0.02, 1.02))


def draw_bandit(path, bandit, row, curves):
    """Draw one bandit: its shares stacked, worst action at the bottom, and beside them its probabilities."""
    rewards = bandit.settings["rewards"]
    n_runs = bandit.settings["n_runs"]
    roles = action_roles(rewards, bandit.settings["init_probs"])
    colors = action_colors(rewards, bandit.settings["init_probs"])
    figure = Figure(figsize=(8.3, 4), layout="constrained")
    left, right = figure.subplots(1, 2)

    bottom = np.zeros(len(curves.updates))
    for action in np.argsort(rewards):
        top = bottom + curves.mean[:, action]
        label = f"a{action + 1}: {roles[action]}, reward {float(rewards[action])}"
        left.fill_between(curves.updates, bottom, top, color=colors[action], alpha=0.85, lw=0, label=label)
        bottom = top
    last = max(2, bandit.settings["steps"])
    left.set(title=f"Share of each action (mean of {n_runs} runs)", ylabel="mean probability, stacked")
    left.set(xlabel="update", xscale="log", xlim=(1, last), ylim=(0, 1))
    title = "Probability of each action over training"
    if shows_two_stages(bandit, row):
        title = "The fair action is exploited, then the rare best one takes over"
        start = row["exploration starts"]
        if start is not None:
            left.axvline(start, color="black", ls="--", lw=1)
            position = math.log(start) / math.log(last)  # of the line: 0 at the left, 1 at the right
            if 0.22 < position < 0.78:  # there is room for words on both sides
                style = {"color": "white", "weight": "bold", "fontsize": 9, "transform": left.transAxes}
                left.text(position - 0.02, 0.6, "1. exploit", ha="right", **style)
                left.text(position + 0.02, 0.6, "2. explore", ha="left", **style)

    draw_actions(right, bandit, curves)
    right.set(title="Median, 10-90% band, one run (thin)", xlim=(1, last))
    if curves.flow is not None:
        left.plot([], [], "--", color="black", lw=0.8, label="expected flow, without chance")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    figure.suptitle(title, weight="bold")
    figure.savefig(path, dpi=100)


def figure_title(figure, rows):
    """Title of one of the paper's figures: what it shows, where its rows bear that out, and else what it compares."""
    starts = [math.inf if row["exploration starts"] is None else row["exploration starts"] for row in rows]
    reached = [row["reached"][0] for row in rows]
    if figure == "figure1":
        if is_rising(starts[:3]) and is_rising(starts[3:]):
            return "The rarer the best action and the better the fair one, the longer exploitation lasts"
        return "Three starts and three rewards of the fair action"
    if figure == "figure5":
        if is_rising(starts[::-1]):
            return "In larger groups exploration starts earlier"
        return "Groups of 2, 3, 5 and 10 actions"
    if figure == "figure6":
        if is_rising(starts):
            return "The same two stages at every temperature, later where it is higher"
        return "Temperatures 1, 2, 5 and 20"
    if figure == "figure7":
        if starts[0] < math.inf and reached[0] > 0.5:
            return "A fair action rises and falls before the best of four takes over"
        return "Four actions"
    if figure == "figure_adam":
        earlier = []
        for i in range(0, len(starts), 4):  # the four rows of a panel
            plain, *adam = starts[i : i + 4]
            earlier.append(max(adam) < plain)
        if all(earlier):
            return "Adam explores earlier than plain ascent, at each momentum (beta1)"
        return "Probability of the best action (a2) under plain ascent and under Adam"
    if reached[2] < 0.5 < reached[5]:  # negative advantages: plain ascent, Adam
        return "With negative advantages alone, Adam reaches the best action (a2), plain ascent does not"
    return "Probability of the best action (a2) by the sign of the advantages that count"


def is_rising(numbers):
    """Whether each number is above the one before: [1, 2, 4] -> True."""
    return all(later > earlier for earlier, later in itertools.pairwise(numbers))


def draw_figure(path, bandits, rows, all_curves):
    """Draw one of the paper's figures: lists of its Bandits, rows and Curves.

    A panel has all actions of one bandit, or the best action of several.
    """
    panels = list(dict.fromkeys(bandit.panel for bandit in bandits))  # titles, in order
    columns = len(panels)
    if columns == 4:
        columns = 2
    elif columns == 6:
        columns = 3
    figure = Figure(figsize=(8.3, 2.3 * len(panels) / columns + 1.4), layout="constrained")
    axes = figure.subplots(len(panels) // columns, columns, sharex=True, sharey=True, squeeze=False).ravel()
    axis_of = dict(zip(panels, axes, strict=True))
    # Colours of bandits that are compared: none of the three that stand for actions.
    labels = list(dict.fromkeys(bandit.label for bandit in bandits))
    color_of = dict(zip(labels, ["black", "tab:purple", "tab:red", "tab:cyan"], strict=False))
    for bandit, curves in zip(bandits, all_curves, strict=True):
        axis = axis_of[bandit.panel]
        if bandit.label == "":
            draw_actions(axis, bandit, curves)
        else:
            best = np.argsort(bandit.settings["rewards"])[-1]
            color = color_of[bandit.label]
            axis.fill_between(curves.updates, curves.low[:, best], curves.high[:, best], color=color, alpha=0.2, lw=0)
            axis.plot(curves.updates, curves.median[:, best], color=color, label=bandit.label)
            if curves.flow is not None:
                axis.plot(curves.updates, curves.flow[:, best], "--", color=color, lw=1)
            axis.set(xlabel="update", ylabel="probability of a2 (best)", xscale="log", yscale="log")
        axis.set_title(bandit.panel, fontsize=10)
        axis.label_outer()
    lines = f"median of {bandits[0].settings['n_runs']} runs, band of 10-90%"
    if labels == [""]:
        lines += ", one run (thin)"
    else:
        axes[0].plot([], [], "--", color="gray", lw=1, label="expected flow, without chance")
    handles, names = axes[0].get_legend_handles_labels()
    ncols = 2 if len(names) == 4 else 3
    figure.legend(handles, names, title=lines, loc="outside lower center", ncols=ncols, fontsize=9)
    figure.suptitle(figure_title(bandits[0].figure, rows), weight="bold", fontsize=11)
    figure.savefig(path, dpi=100)


# ----------------------------------------------------------------------------------------------------------------- main
def print_outcome(bandit, row, curves):
    """Print what became of one bandit: a line for each action, then a sentence for each finding."""
    settings = bandit.settings
    roles = action_roles(settings["rewards"], settings["init_probs"])
    print(f"{settings['n_runs']} runs of {settings['steps']} updates")
    print(f"{'':26}  reward  start  at the end: 10%  median     90% of the runs")
    for action, role in enumerate(roles):
        name = f"a{action + 1}: {role}"
        start = f"{settings['rewards'][action]:6.3g}  {settings['init_probs'][action]:5.3f}"
        end = f"{curves.low[-1, action]:15.4f}  {curves.median[-1, action]:6.4f}  {curves.high[-1, action]:6.4f}"
        print(f"{name:26}  {start}  {end}")
    best_first = np.argsort(settings["rewards"])[::-1]
    best = f"a{best_first[0] + 1}"
    second = f"a{best_first[1] + 1}"
    print(f"two stages, {second} rises and then falls: in {row['two stages'][0]:.0%} of the runs")
    if row["peaks"]:
        low, median, high = row["peaks"]
        print(f"{second} peaks at update {median:.0f} in the median of these runs (quartiles {low:.0f} and {high:.0f})")
    if row["exploration starts"] is not None:
        print(f"exploration starts at update {row['exploration starts']}, where the median of {second} peaks")
    share, low, high = row["reached"]
    print(f"{best} ends above 1/2: in {share:.0%} of the runs (95% interval {low:.1%} to {high:.1%})")
    if row["gap"] is None:
        print("expected flow: not known for Adam, nor for one sign of the advantage unless --group-size is 2")
    else:
        print(
            f"expected flow: {best} ends at {row['flow']:.4f}; its largest distance from a median is {row['gap']:.3f}"
        )


def print_row(row):
    """Print the row of a bandit as a line of a markdown table."""
    cells = [row["figure"], row["panel"], row["updates"], row["exploration starts"]]
    for name in ("peaks", "reached", "best"):
        cells.append(" ".join(f"{number:.4g}" for number in row[name]))
    for name in ("flow", "gap"):
        cells.append(None if row[name] is None else f"{row[name]:.4g}")
    texts = ["-" if cell in (None, "") else str(cell) for cell in cells]
    print(f"| {' | '.join(texts)} |", flush=True)


def main(args):
    """Check the equations, or run and draw one bandit, or those of the paper's figures."""
    if args.check:
        if not check(args.seed):
            raise ValueError("an equation FAILS, see above")
        return
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    settings = bandit_settings(args)
    table = []
    if args.figures:
        bandits = paper_bandits(settings)
        print("| figure | panel | updates | exploration starts | peaks | reached | best | flow | gap |")
        print("|---|---|---|---|---|---|---|---|---|")
        for figure in dict.fromkeys(bandit.figure for bandit in bandits):
            drawn = [bandit for bandit in bandits if bandit.figure == figure]
            rows = []
            all_curves = []
            for bandit in drawn:
                row, curves = run(bandit)
                print_row(row)
                rows.append(row)
                all_curves.append(curves)
            draw_figure(out / f"{figure}.png", drawn, rows, all_curves)
            table.extend(rows)
        written = f"the pictures figure*.png and summary.json in {out}"
    else:
        panel = f"rewards {args.rewards}, start {args.policy}"
        bandit = Bandit("bandit", panel, "", settings)
        row, curves = run(bandit)
        print_outcome(bandit, row, curves)
        draw_bandit(out / "bandit.png", bandit, row, curves)
        table.append(row)
        written = f"the picture {out / 'bandit.png'}, and summary.json beside it"
    (out / "summary.json").write_text(json.dumps({"args": vars(args), "table": table}, indent=2) + "\n")
    print(f"written: {written}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped")
    except (OSError, ValueError, MemoryError) as error:  # no folder to write to, a wrong flag, too many updates
        sys.exit(f"error: {error}")
