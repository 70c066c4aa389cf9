"""Two-stage dynamics of a softmax bandit: exploit what is already likely, then explore what is better.

What it shows: a policy over three actions is trained by group-relative policy gradient. a1 is common and fair, a2 rare
and best, a3 common and worthless. At first a1 rises and a3 falls while a2 hardly moves; then, as 1 - pi(a1) -> 0, the
growth of a1 stalls, a1 becomes the relatively worse one of a pair, and a2 takes over.

  Paper B: "The Debate on RLVR Reasoning Capability Boundary" (arXiv 2510.04028), section 3 and appendix C

The equations, tagged (1) to (6) in the code; pi = softmax(z / temperature), in (1) to (4) at temperature 1:
  (1) one sampled action v of advantage A:  dz_v = eta A (1 - pi_v), dz_u = -eta A pi_u for u != v         Lemma 1
  (2) in expectation:                       E dz_v = eta pi_v (A_v - sum_u pi_u A_u)                       Theorem 1
  (3) log-probabilities:                    d log pi = (I - 1 pi^T) K dz + O(eta^2), K = J J^T the NTK     Proposition 1
  (4) the same after (1), with K = I:       d log pi_u = eta A ([u = v] - pi_u - pi_v + sum_w pi_w^2)      (1) in (3)
  (5) group advantage:                      A_i = r_i - mean_j r_j over the G sampled actions, no std      Algorithm 1
  (6) update:                               z <- z + eta mean_i A_i (e_{a_i} - pi)                         Algorithm 1

Differs from the paper: its listing says "Apply Adam update" but prints (6); both are here, plain ascent is the default.
Its panels name no rewards and policies, ours do. As (5) subtracts the samples' own mean, (6) averages 1 - 1/G of (2).

    python toy_bandit.py             # figures 1, 5, 6, 7, Adam, one sign of advantage; a table: a minute on one core
    python toy_bandit.py --check     # the equations against autograd, finite differences, every possible group
"""

import argparse
import itertools
import json
import re
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from matplotlib.figure import Figure

REWARDS, POLICY = (0.5, 1.0, 0.0), (0.475, 0.05, 0.475)  # a1 common and fair, a2 rare and best, a3 common and worthless


@dataclass
class Args:
    out: str = "runs/toy_bandit"  # folder for the figures and summary.json
    runs: int = 250  # independent runs behind every curve and share; 50 in figure 6
    steps: int = 20_000  # updates in figure 1; half, a fifth or a tenth (times the temperature) in the others
    seed: int = 0  # of the sampled actions
    check: bool = False  # check the equations instead of drawing; exit status 1 if one fails
    rewards: str = ""  # a bandit of your own instead of the figures: its rewards, such as 0.5,1,0
    policy: str = "0.475,0.05,0.475"  # ... and the probabilities it starts from
    group_size: int = 2  # ... actions in an update, G
    temperature: float = 1.0  # ... of its softmax
    lr: float = 0.1  # ... learning rate, eta
    optimizer: Literal["sgd", "adam"] = "sgd"  # ... plain ascent, or Adam
    signs: Literal["both", "positive", "negative"] = "both"  # ... advantages that count


def parse_args(argv=None):
    """The fields of Args as flags, the comment behind each as its help text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", Path(__file__).read_text("utf-8"), re.MULTILINE))
    for f in fields(Args):
        kind = {"type": type(f.default), "choices": get_args(f.type) or None}
        kind = {"action": "store_true"} if f.type is bool else kind | {"default": f.default}
        help_text = f"{comments[f.name]} (default: {f.default})"
        parser.add_argument("--" + f.name.replace("_", "-"), help=help_text, **kind)
    return Args(**vars(parser.parse_args(argv)))


# -------------------------------------------------------------------------------------------- maths: numpy arrays alone
def softmax(z, axis=-1):
    """Over one axis."""
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def logit_update(probs, action, adv, lr):
    """Lemma 1: change of the logits (actions,) after one gradient step on adv * log pi(action). probs (actions,)."""
    dlogits = -lr * adv * np.asarray(probs, dtype=float)  # (1), u != v
    dlogits[action] += lr * adv  # (1), v
    return dlogits


def expected_logit_update(probs, adv, lr):
    """Theorem 1: the mean of Lemma 1 over actions drawn from probs. probs, adv (..., actions) -> (..., actions)."""
    probs, adv = np.asarray(probs, dtype=float), np.asarray(adv, dtype=float)
    return lr * probs * (adv - (probs * adv).sum(axis=-1, keepdims=True))  # (2)


def logprob_change(probs, dlogits, ntk=None):
    """Proposition 1: first-order change of log pi, (actions,), for dlogits of a table. ntk: K or None for I."""
    moved = np.asarray(dlogits, dtype=float) if ntk is None else ntk @ dlogits
    return moved - np.dot(probs, moved)  # (3)


def sampled_logprob_change(probs, action, adv, lr):
    """First-order change of log pi, (actions,), after Lemma 1: where one action has most of the mass, punishing another
    one lowers the rare ones although their logits rise, as the likely action takes what is set free."""
    probs = np.asarray(probs, dtype=float)
    return lr * adv * (np.eye(len(probs))[action] - probs - probs[action] + (probs**2).sum())  # (4)


def run_bandit(
    rewards, init_probs, steps=4000, group_size=2, lr=0.1, temperature=1.0, n_runs=200, seed=0, signs="both", beta1=None
):
    """Algorithm 1, n_runs independent runs side by side -> probabilities (n_runs, steps + 1, actions), float32.

    signs "positive" or "negative" drops samples whose advantage (5) has the other sign. beta1 None is plain ascent, a
    number Adam with (beta1, 0.999, 1e-8). An update draws rng.random((n_runs, group_size)), rng = default_rng(seed),
    and inverts the cumulative policy. ValueError: arguments that make no bandit.
    """
    if not (np.min(init_probs) > 0 and abs(sum(init_probs) - 1) < 1e-6 and len(rewards) == len(init_probs)):
        raise ValueError(f"want probabilities above 0 with sum 1, not {init_probs}, and as many rewards, not {rewards}")
    if not (min(steps, group_size, n_runs) >= 1 and np.min([lr, temperature]) > 0 and np.isfinite(rewards).all()):
        raise ValueError("want a step, a run, a group size of 1 or more; lr and temperature above 0; finite rewards")
    rng, arms, rewards = np.random.default_rng(seed), np.arange(len(rewards))[:, None], np.asarray(rewards, dtype=float)
    z = np.tile(temperature * np.log(init_probs)[:, None], n_runs)  # (actions, runs): fast along the long last axis
    first, second, probs = np.zeros_like(z), np.zeros_like(z), np.empty((steps + 1, *z.shape), dtype=np.float32)
    for t in range(steps):
        probs[t] = pi = softmax(z / temperature, axis=0)
        u = np.ascontiguousarray(rng.random((n_runs, group_size)).T)  # (G, runs)
        chosen = (u >= pi.cumsum(axis=0)[:-1, None]).sum(axis=0)  # (G, runs)
        adv = rewards[chosen] - rewards[chosen].mean(axis=0)  # (5)
        if signs != "both":
            adv = {"positive": np.maximum, "negative": np.minimum}[signs](adv, 0)
        taken = (adv[:, None] * (chosen[:, None] == arms)).sum(axis=0)  # sum_i A_i e_{a_i}, (actions, runs)
        grad = (taken - adv.sum(axis=0) * pi) / group_size
        if beta1 is not None:
            first, second = beta1 * first + (1 - beta1) * grad, 0.999 * second + 0.001 * grad**2
            grad = first / (1 - beta1 ** (t + 1)) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
        z += lr * grad  # (6)
    probs[steps] = softmax(z / temperature, axis=0)
    return probs.transpose(2, 0, 1)


def expected_flow(rewards, init_probs, steps, group_size=2, lr=0.1, temperature=1.0, signs="both"):
    """Plain ascent without chance, (2) of E[A_i | a_i = v] in place of (6) -> probabilities (steps + 1, actions)."""
    if signs != "both" and group_size != 2:
        raise ValueError("the expected flow of one sign of the advantage is known for a group size of 2 only")
    z, probs = temperature * np.log(init_probs), np.empty((steps + 1, len(rewards)))
    ahead = np.subtract.outer(rewards, rewards)  # r_v - r_u
    ahead = {"both": ahead, "positive": np.maximum(ahead, 0), "negative": np.minimum(ahead, 0)}[signs]
    for t in range(steps + 1):
        probs[t] = pi = softmax(z / temperature)
        z = z + expected_logit_update(pi, (1 - 1 / group_size) * ahead @ pi, lr)
    return probs


def share_with_interval(hits):
    """Share of True in a bool array, and its 95% Wilson interval: (share, low, high)."""
    n, p, q = len(hits), float(np.mean(hits)), 1.96**2
    centre, half = (p + q / (2 * n)) / (1 + q / n), 1.96 / (1 + q / n) * np.sqrt(p * (1 - p) / n + q / (4 * n * n))
    return p, max(0.0, centre - half), min(1.0, centre + half)


def outcome(rewards, probs):
    """What became of the runs: a dict for the table. probs (runs, steps + 1, actions) of run_bandit.

    Exploration starts where the median probability of the exploited arm (the best but one) peaks, if it then falls by
    more than 0.05. A run has two stages if its own rises and then falls by so much; `peaks`: quartiles of the update
    between. It ends with the best arm reached (above 1/2) or lost (below 1e-9); `best`: 5, 50, 95% over the runs.
    """
    best, exploited = (probs[:, :, arm] for arm in np.argsort(rewards)[:-3:-1])  # (runs, steps + 1)
    median, highest = np.median(exploited, axis=0), exploited.max(axis=1)
    start = int(median.argmax())
    two = (highest - exploited[:, 0] > 0.05) & (highest - exploited[:, -1] > 0.05)
    return {
        "exploration starts": start if start > 0 and median[start] - median[-1] > 0.05 else None,
        "two stages": share_with_interval(two),
        "peaks": np.quantile(exploited[two].argmax(axis=1), (0.25, 0.5, 0.75)).tolist() if two.any() else [],
        "reached": share_with_interval(best[:, -1] > 0.5),
        "lost": share_with_interval(best[:, -1] < 1e-9),
        "best": np.quantile(best[:, -1], (0.05, 0.5, 0.95)).tolist(),
    }


# ---------------------------------------------------------------------------------------------------------------- check
def check(seed=0):
    """Print a line for each statement with its numbers; returns True if all hold. Needs torch, for its autograd."""
    import torch  # only here: the figures start at once

    rng, lines, gradient = np.random.default_rng(seed), [], torch.autograd.functional.jacobian
    z, rewards = torch.tensor(rng.normal(size=6)), rng.normal(size=6)
    pi, score = z.softmax(0).numpy(), gradient(lambda z: z.log_softmax(0), z).numpy()  # score[a] = d log pi(a) / dz
    error = np.abs([logit_update(pi, a, adv, 0.1) - 0.1 * adv * score[a] for a in range(6) for adv in (-1, 1)]).max()
    lines += [(error < 1e-14, f"Lemma 1 = autograd of A log pi(a): largest error {error:.1e}")]
    exact = expected_logit_update(pi, rewards, 1.0)
    error = np.abs(exact - gradient(lambda z: z.softmax(0) @ torch.tensor(rewards), z).numpy()).max()
    lines += [(error < 1e-14, f"Theorem 1 = autograd of E[A]: largest error {error:.1e}")]
    for size in (2, 4):
        mean = np.zeros(6)
        for group in map(list, itertools.product(range(6), repeat=size)):
            adv = rewards[group] - rewards[group].mean()  # (5)
            mean += pi[group].prod() * sum(logit_update(pi, a, adv[i], 1 / size) for i, a in enumerate(group))  # (6)
        error, text = np.abs(mean - (1 - 1 / size) * exact).max(), f"of (6) over all {6**size} groups of {size}"
        lines += [(error < 1e-14, f"mean {text} = {1 - 1 / size} Theorem 1: largest error {error:.1e}")]
    start = np.array([0.9, 0.01, 0.09])  # an action, its advantage, a bystander whose logit and probability may part
    for action, adv, arm in ((2, -1.0, 1), (1, 1.0, 2), (0, -1.0, 1)):
        change, dz = sampled_logprob_change(start, action, adv, 1.0), logit_update(start, action, adv, 1e-6)
        measured = np.log(softmax(np.log(start) + dz) / softmax(np.log(start) - dz)) / 2e-6
        error, logit, prob = np.abs(change - measured).max(), 1e6 * dz[arm], start[arm] * change[arm]
        text = f"at pi {start}, A = {adv:+.0f} on a{action + 1} moves the logit of a{arm + 1} by {logit:+.4f} eta"
        text = f"(4) = finite differences: largest error {error:.1e}; {text}, its probability by {prob:+.4f} eta"
        lines += [(error < 1e-8 and (logit * prob < 0) == (action != 0), text)]
    inputs, weights = torch.tensor(rng.normal(size=4)), torch.tensor(rng.normal(size=80) * 0.5)
    network = "two-layer network", lambda w: torch.tanh(w[:32].view(8, 4) @ inputs) @ w[32:].view(8, 6), weights
    for name, logits_of, theta in (("tabular", torch.clone, z), network):  # logits as a function of the parameters
        jacobian, before, remainder = gradient(logits_of, theta).numpy(), logits_of(theta).log_softmax(0).numpy(), []
        for lr in (0.02, 0.01):
            dlogits = expected_logit_update(np.exp(before), rewards, lr)
            after = logits_of(theta + torch.tensor(jacobian.T @ dlogits)).log_softmax(0).numpy()
            remainder += [np.abs(after - before - logprob_change(np.exp(before), dlogits, jacobian @ jacobian.T)).max()]
        ratio, text = remainder[0] / remainder[1], f"Proposition 1, {name}: remainder {remainder[0]:.1e} at eta = 0.02"
        lines += [(3.6 < ratio < 4.4, f"{text}, divided by {ratio:.2f} as eta halves")]
    print("\n".join(f"{'holds' if holds else 'FAILS'}  {text}" for holds, text in lines))
    return all(holds for holds, _ in lines)


# -------------------------------------------------------------------------------------------------------------- figures
def bandits(args):
    """What to run, each a row of the table: [(figure, panel, way to train where a panel has several, settings)]."""
    if args.rewards:
        rewards, policy = ([float(x) for x in text.split(",")] for text in (args.rewards, args.policy))
        settings = {name: getattr(args, name) for name in ("steps", "group_size", "temperature", "lr", "signs")}
        settings |= {"rewards": rewards, "init_probs": policy, "beta1": {"adam": 0.9}.get(args.optimizer)}
        return [("bandit", f"rewards {rewards}, start {policy}", "", settings)]
    n, rare, signs = args.steps, (0.49, 0.02, 0.49), ("both", "positive", "negative")
    panels = {f"start {p}": {"init_probs": p} for p in ((0.45, 0.1, 0.45), POLICY, rare)}
    panels |= {f"rewards {r}": {"rewards": r} for r in ((0.3, 1.0, 0.0), (0.7, 1.0, 0.0), (0.85, 1.0, 0.0))}
    runs = [("figure1", name, "", panel) for name, panel in panels.items()]
    runs += [("figure5", f"G = {size}", "", {"group_size": size, "steps": n // 5}) for size in (2, 3, 5, 10)]
    for tau in (1, 2, 5, 20):
        runs += [("figure6", f"temperature {tau}", "", {"temperature": tau, "steps": tau * n // 10, "n_runs": 50})]
    four = {"rewards": (0.0, 0.4, 0.7, 1.0), "init_probs": (0.4, 0.43, 0.12, 0.05), "steps": n // 10}
    runs += [("figure7", "rewards {rewards}, start {init_probs}".format(**four), "", four)]
    ways = {"plain ascent": {}} | {f"Adam, beta1 {beta1}": {"beta1": beta1} for beta1 in (0.0, 0.9, 0.99)}
    runs += [("figure_adam", p, way, panels[p] | ways[way] | {"steps": n // 2}) for p in panels for way in ways]
    for name, settings in (("sgd, lr 1", {"lr": 1.0}), ("adam, lr 0.1", {"beta1": 0.9})):
        settings |= {"init_probs": rare, "steps": n // 2}
        runs += [("figure_negative", f"{name}, start {rare}", s, settings | {"signs": s}) for s in signs]
    return runs


def draw(path, runs, args):
    """Run and draw the bandits of a figure: medians with 10-90% bands, run 0 thin. Returns their rows of the table."""
    table, panels = [], list(dict.fromkeys(panel for _, panel, *_ in runs))
    columns = {4: 2, 6: 3}.get(len(panels), len(panels))
    figure = Figure(figsize=(max(4.5 * columns, 8), 3 * len(panels) / columns + 1), layout="constrained")
    axes = dict(zip(panels, figure.subplots(len(panels) // columns, columns, squeeze=False).flat, strict=True))
    for i, (name, panel, way, settings) in enumerate(runs):
        bandit, axis = {"rewards": REWARDS, "init_probs": POLICY, "steps": args.steps} | settings, axes[panel]
        probs = run_bandit(**{"n_runs": args.runs, "seed": args.seed} | bandit)
        flow = expected_flow(**{key: value for key, value in bandit.items() if key not in ("n_runs", "beta1")})
        best, gap = int(np.argmax(bandit["rewards"])), float(np.abs(np.median(probs, axis=0) - flow).max())
        row = {"figure": name, "panel": f"{panel}, {way}".removesuffix(", "), "updates": bandit["steps"]}
        table += [row | outcome(bandit["rewards"], probs) | {"flow": flow[-1, best], "gap": gap}]
        x = np.unique(np.geomspace(1, bandit["steps"], 300).astype(int))
        for arm in [best] if way else range(probs.shape[2]):
            colour = f"C{i % (len(runs) // len(panels)) if way else arm}"
            low, median, high = np.quantile(probs[:, x, arm], (0.1, 0.5, 0.9), axis=0)
            axis.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            axis.plot(x, median, color=colour, label=f"a{arm + 1} {way}")
            axis.plot(x, probs[0, x, arm], color=colour, lw=0 if way else 0.6)
            axis.plot(x, flow[x, arm], "--", color=colour if way else "black", lw=1)
        axis.set(title=panel, xlabel="update", ylabel="probability", xscale="log", yscale="log" if way else "linear")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(f"median, 10-90% of runs; dashed: expected flow\nby default rewards {REWARDS}, start {POLICY}")
    figure.savefig(path, dpi=100)
    return table


def main(args):
    """Check; or draw the figures and print their table, or with --rewards those of one bandit."""
    if args.check:
        sys.exit(not check(args.seed))
    out, table = Path(args.out), []
    out.mkdir(parents=True, exist_ok=True)
    for name, runs in itertools.groupby(bandits(args), key=lambda run: run[0]):
        table += draw(out / f"{name}.png", list(runs), args)
    (out / "summary.json").write_text(json.dumps({"args": asdict(args), "table": table}, indent=2) + "\n")
    columns = "figure", "panel", "updates", "exploration starts", "peaks", "reached", "best", "flow", "gap"
    print("|", " | ".join(columns), "|\n" + "|---" * len(columns) + "|")
    for row in table:
        numbers = [" ".join(f"{x:.4g}" for x in np.atleast_1d(row[name])) for name in columns[4:]]
        print("|", " | ".join([*(str(row[name]) for name in columns[:4]), *numbers]), "|")
    print(f"{args.runs} runs a row; None: not within its updates; figures and summary.json in {out}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except (OSError, ValueError) as error:  # a folder that cannot be written; rewards and probabilities that do not fit
        sys.exit(f"error: {error}; --help names the flags")
