"""Two-stage dynamics of a softmax bandit: exploit what is already likely, then explore what is better.

What it shows: a policy over three actions is trained by group-relative policy gradient. a1 is common and fair, a2 rare
and best, a3 common and worthless. At first a1 rises and a3 falls while a2 hardly moves; then, as 1 - pi(a1) -> 0, the
growth of a1 stalls, a1 becomes the relatively worse one of a pair, and a2 takes over. Or it never comes back.

  Paper B: "The Debate on RLVR Reasoning Capability Boundary" (arXiv 2510.04028), section 3 and appendix C

The equations, tagged (1) to (5) in the code; the policy is pi = softmax(z / temperature):
  (1) one sampled action v of advantage A:  dz_v = eta A (1 - pi_v), dz_u = -eta A pi_u for u != v         Lemma 1
  (2) in expectation:                       E dz_v = eta pi_v (A_v - sum_u pi_u A_u)                       Theorem 1
  (3) log-probabilities:                    d log pi = (I - 1 pi^T) K dz + O(eta^2), K = J J^T the NTK     Proposition 1
  (4) group advantage:                      A_i = r_i - mean_j r_j over the G sampled actions, no std      Algorithm 1
  (5) update:                               z <- z + eta mean_i A_i (e_{a_i} - pi)                         Algorithm 1

Differs from the paper: its listing says "Apply Adam update" but prints (5); both are here, plain ascent is the default.
It prints no rewards and policies for its panels; ours stand in the figures. As in the listing, (5) lacks the factor
1 / temperature (the learning rate absorbs it); every temperature starts from the same policy. Because (4) subtracts the
mean of the G samples themselves, (5) is on average (1 - 1/G) times (2), half at G = 2: the dashed flow has that factor.

    python toy_bandit.py             # figures 1, 5, 6, 7, one on negative advantages, and a table: seconds on a CPU
    python toy_bandit.py --check     # Lemma 1, Theorem 1 and Proposition 1 against autograd and Monte Carlo
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

REWARDS, POLICY = (0.5, 1.0, 0.0), (0.475, 0.05, 0.475)  # a1 common and fair, a2 rare and best, a3 common and worthless


class InputError(ValueError):
    """Something that the user can mend: one sentence that names the argument, and the mend."""


# ------------------------------------------------------------------------------------------------------------ arguments
def arg(default, text, low=-math.inf, high=math.inf, choices=None):
    return dataclasses.field(default=default, metadata={"help": text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Args:
    out: str = arg("runs/toy_bandit", "folder for the figures and summary.json")
    runs: int = arg(250, "independent runs behind every curve and share", 1)
    steps: int = arg(4000, "updates of a run (half of it, times the temperature, in figure 6; half in figure 7)", 1)
    seed: int = arg(0, "of the sampled actions", 0)
    rewards: str = arg("", "a bandit of your own instead of the figures: its rewards, such as 0.5,1,0")
    policy: str = arg("0.475,0.05,0.475", "... and the probabilities it starts from")
    group_size: int = arg(2, "... actions in an update, G", 1)
    temperature: float = arg(1.0, "... of its softmax", 1e-3)
    lr: float = arg(0.1, "... learning rate", 1e-9)
    optimizer: str = arg("sgd", "... plain ascent, or Adam", choices=("sgd", "adam"))
    signs: str = arg("both", "... advantages that count", choices=("both", "positive", "negative"))
    check: bool = arg(
        False, "check the lemma, the theorem and the proposition instead of drawing; exit status 1 if one fails"
    )

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if not isinstance(value, str) and not low <= value <= high:
                raise InputError(f"--{f.name.replace('_', '-')} {value}: it must lie in [{low}, {high}]")


def parse_args(cls, doc, argv=None):
    """The fields of dataclass `cls` as command-line flags; returns an instance. Unknown flags are errors."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in dataclasses.fields(cls):
        how = {"help": f"{f.metadata['help']} (default: {f.default})", "default": f.default}
        if isinstance(f.default, bool):
            how["action"] = argparse.BooleanOptionalAction
        else:
            how |= {"type": type(f.default), "choices": f.metadata["choices"]}
        parser.add_argument("--" + f.name.replace("_", "-"), **how)
    return cls(**vars(parser.parse_args(argv)))


# ---------------------------------------------------------------------------------------------------------------- maths
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
    """Proposition 1: first-order change of log pi, (actions,), when tabular ascent would change the logits by dlogits.

    ntk (actions, actions) is K = J J^T with J = d logits / d parameters; None is the tabular policy, K = I.
    """
    moved = np.asarray(dlogits, dtype=float) if ntk is None else ntk @ dlogits
    return moved - np.dot(probs, moved)  # (3)


def run_bandit(
    rewards,
    init_probs,
    steps=4000,
    group_size=2,
    lr=0.1,
    temperature=1.0,
    optimizer="sgd",
    n_runs=200,
    seed=0,
    signs="both",
):
    """Algorithm 1, n_runs independent runs side by side -> probabilities (n_runs, steps + 1, actions), float32.

    optimizer "sgd" is the plain ascent (5), "adam" feeds the same gradient to Adam (0.9, 0.999, 1e-8). signs "positive"
    or "negative" drops the samples whose advantage (4) has the other sign. Each step draws rng.random((n_runs,
    group_size)) from numpy's default_rng(seed) and inverts the cumulative policy. Raises InputError on bad arguments.
    """
    rewards, start = check_bandit(rewards, init_probs, steps, group_size, lr, temperature, optimizer, n_runs, signs)
    rng, arms = np.random.default_rng(seed), np.arange(len(rewards))[:, None]
    z = np.tile(temperature * np.log(start)[:, None], n_runs)  # (actions, runs): numpy is fast along the long last axis
    first, second = np.zeros_like(z), np.zeros_like(z)  # Adam's moments
    out = np.empty((steps + 1, *z.shape), dtype=np.float32)
    for t in range(steps):
        out[t] = pi = softmax(z / temperature, axis=0)
        u = np.ascontiguousarray(rng.random((n_runs, group_size)).T)  # (G, runs)
        chosen = (u >= pi.cumsum(axis=0)[:-1, None]).sum(axis=0)  # (G, runs)
        adv = rewards[chosen] - rewards[chosen].mean(axis=0)  # (4)
        if signs != "both":
            adv = np.maximum(adv, 0) if signs == "positive" else np.minimum(adv, 0)
        taken = (adv[:, None] * (chosen[:, None] == arms)).sum(axis=0)  # sum_i A_i e_{a_i}, (actions, runs)
        grad = (taken - adv.sum(axis=0) * pi) / group_size
        if optimizer == "adam":
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
            grad = first / (1 - 0.9 ** (t + 1)) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
        z += lr * grad  # (5)
    out[steps] = softmax(z / temperature, axis=0)
    return out.transpose(2, 0, 1)


def check_bandit(rewards, init_probs, steps, group_size, lr, temperature, optimizer, n_runs, signs):
    """run_bandit's rewards and init_probs as float arrays; InputError if its arguments make no bandit."""
    rewards, probs = np.asarray(rewards, dtype=float), np.asarray(init_probs, dtype=float)
    if rewards.ndim != 1 or rewards.shape != probs.shape or len(rewards) < 2 or not np.isfinite(rewards).all():
        raise InputError(
            f"rewards {rewards} and init_probs {probs} must be two lists of numbers of one length, 2 or more"
        )
    if not (probs > 0).all() or abs(probs.sum() - 1) > 1e-6:
        raise InputError(f"init_probs {probs} must be positive and sum to 1; they sum to {probs.sum():.6g}")
    for name, value in (("steps", steps), ("group_size", group_size), ("n_runs", n_runs)):
        if value != int(value) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value}")
    if not lr > 0 or not temperature > 0:
        raise InputError(f"lr and temperature must be positive, not {lr} and {temperature}")
    if optimizer not in ("sgd", "adam") or signs not in ("both", "positive", "negative"):
        raise InputError(f"optimizer {optimizer!r} must be sgd or adam, signs {signs!r} both, positive or negative")
    return rewards, probs


def expected_flow(rewards, init_probs, steps, group_size=2, lr=0.1, temperature=1.0):
    """The same run without chance: (2) times 1 - 1/G in place of (5). Returns probabilities (steps + 1, actions)."""
    rewards, z = np.asarray(rewards, dtype=float), temperature * np.log(init_probs)
    out = np.empty((steps + 1, len(rewards)))
    for t in range(steps + 1):
        out[t] = softmax(z / temperature)
        z = z + expected_logit_update(out[t], rewards, lr * (1 - 1 / group_size))
    return out


def share_with_interval(hits):
    """Share of True in a bool array, and its 95% Wilson interval: (share, low, high)."""
    n, p, q = len(hits), float(np.mean(hits)), 1.96**2
    centre, half = (p + q / (2 * n)) / (1 + q / n), 1.96 / (1 + q / n) * np.sqrt(p * (1 - p) / n + q / (4 * n * n))
    return p, max(0.0, centre - half), min(1.0, centre + half)


def outcome(rewards, probs):
    """What became of the runs: a dict for the table. probs (runs, steps + 1, actions) of run_bandit.

    The exploration stage begins where the median probability of the most exploited arm (the best but one) peaks, if the
    median falls by more than 0.05 afterwards. A run reaches the best arm if that has more than half of the mass at the
    end, and has died if it has less than 1e-3. A run has two stages if in it the exploited arm first rises by more than
    0.05 and then falls by more than 0.05; `peaks` are the quartiles of the update in between, over such runs.
    """
    order = np.argsort(rewards)
    best, exploited = probs[:, :, order[-1]], np.median(probs[:, :, order[-2]], axis=0)
    peak = int(exploited.argmax())
    starts = peak if peak > 0 and exploited[peak] - exploited[-1] > 0.05 else None
    each = probs[:, :, order[-2]]  # (runs, steps + 1)
    two = (each.max(axis=1) - each[:, 0] > 0.05) & (each.max(axis=1) - each[:, -1] > 0.05)
    return {
        "exploration starts": starts,
        "two stages": share_with_interval(two),
        "peaks": np.quantile(each[two].argmax(axis=1), (0.25, 0.5, 0.75)).tolist() if two.any() else None,
        "reached": share_with_interval(best[:, -1] > 0.5),
        "died": share_with_interval(best[:, -1] < 1e-3),
    }


# ---------------------------------------------------------------------------------------------------------------- check
def check(seed=0):
    """Print a line for each statement with its numbers; returns True if all hold. Needs torch, for its autograd."""
    import torch  # only here: the figures start at once

    rng, ok = np.random.default_rng(seed), []

    def line(name, holds, numbers):
        ok.append(bool(holds))
        print(f"{'holds' if holds else 'FAILS'}  {name}: {numbers}")

    z = torch.tensor(rng.normal(size=6), requires_grad=True)
    pi = z.detach().softmax(0).numpy()
    error = 0.0
    for action in range(6):
        for adv in (-1.3, 0.7):
            (gradient,) = torch.autograd.grad(adv * z.log_softmax(0)[action], z)
            error = max(error, np.abs(logit_update(pi, action, adv, 0.1) - 0.1 * gradient.numpy()).max())
    line("Lemma 1 = autograd of A log pi(a)", error < 1e-14, f"largest error {error:.1e}")

    adv = rng.normal(size=6)
    (gradient,) = torch.autograd.grad((z.softmax(0) * torch.tensor(adv)).sum(), z)
    error = np.abs(expected_logit_update(pi, adv, 0.1) - 0.1 * gradient.numpy()).max()
    line("Theorem 1 = autograd of E[A]", error < 1e-14, f"largest error {error:.1e}")

    n = 400_000
    for size in (2, 8):
        draws = rng.choice(6, size=(n, size), p=pi)
        group = adv[draws] - adv[draws].mean(axis=1, keepdims=True)
        updates = np.stack([(group * (draws == v)).sum(axis=1) for v in range(6)], axis=1) / size  # the pi terms cancel
        exact = expected_logit_update(pi, adv, 1.0)
        sigma = updates.std(axis=0) / np.sqrt(n)
        off = np.abs(updates.mean(axis=0) - (1 - 1 / size) * exact) / sigma
        ratio = updates.mean(axis=0) @ exact / (exact @ exact)
        numbers = (
            f"off by {off.max():.1f} sigma at most; mean update / Theorem 1 = {ratio:.4f}, 1 - 1/G = {1 - 1 / size}"
        )
        line(f"Theorem 1 times 1 - 1/G = mean of {n:,} groups of {size}", off.max() < 4, numbers)

    x = torch.tensor(rng.normal(size=4))

    def two_layers(w):  # 4 inputs, 8 tanh units, 6 logits
        return torch.tanh(w[:32].view(8, 4) @ x) @ w[32:].view(8, 6)

    weights = torch.tensor(rng.normal(size=80) * 0.5)
    for name, net, theta in (("tabular", torch.clone, z.detach()), ("two-layer network", two_layers, weights)):
        jacobian = torch.autograd.functional.jacobian(net, theta).numpy()
        before = net(theta).log_softmax(0)
        remainders = []
        for lr in (0.02, 0.01, 0.005):
            dlogits = expected_logit_update(before.exp().numpy(), adv, lr)
            after = net(theta + torch.tensor(jacobian.T @ dlogits)).log_softmax(0)
            predicted = logprob_change(before.exp().numpy(), dlogits, jacobian @ jacobian.T)
            remainders.append(np.abs((after - before).numpy() - predicted).max())
        ratios = [remainders[i] / remainders[i + 1] for i in (0, 1)]
        numbers = (
            f"remainder {remainders[0]:.1e} at lr 0.02, divided by {ratios[0]:.2f} and {ratios[1]:.2f} as lr halves"
        )
        line(f"Proposition 1, {name}: remainder falls fourfold", all(3.6 < r < 4.4 for r in ratios), numbers)

    rewards, start = np.array([0.0, 0.4, 0.7, 1.0]), (0.4, 0.43, 0.12, 0.05)
    rates = expected_logit_update(expected_flow(rewards, start, 4000), rewards, 1.0)
    low, high = rates.min(axis=0), rates.max(axis=0)
    numbers = "rates " + ", ".join(f"{a:+.0e} to {b:+.0e}" for a, b in zip(low, high, strict=True))
    stages = (low[1:3] < 0).all() and (high[1:3] > 0).all()
    line("Figure 7: worst arm always falls, best never, middle ones turn", low[3] >= 0 > high[0] and stages, numbers)
    return all(ok)


# -------------------------------------------------------------------------------------------------------------- figures
COLOURS = ("tab:orange", "tab:green", "tab:gray", "tab:blue")


def draw_curves(path, title, panels, args):
    """Run and draw one row of bandits, or two; returns a row of the table for each. panels: [[(name, how)]], how being
    what differs from the default bandit: median over runs, 10-90% band, one run thin, the expected flow (2) dashed."""
    import matplotlib.pyplot as plt

    shape = len(panels), len(panels[0])
    size = (max(4.5 * shape[1], 9) if shape[1] > 1 else 7, 3.1 * shape[0] + 1)
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False, sharey=True)
    table = []
    for axis, (name, how) in zip(axes.flat, [panel for row in panels for panel in row], strict=True):
        how = {"rewards": REWARDS, "init_probs": POLICY, "steps": args.steps} | how
        probs = run_bandit(**({"n_runs": args.runs, "seed": args.seed} | how))
        flow = expected_flow(**{k: v for k, v in how.items() if k != "n_runs"})
        gap = {"median - flow": float(np.abs(np.median(probs, axis=0) - flow).max())}
        table.append({"figure": path.stem, "panel": name} | outcome(how["rewards"], probs) | gap)
        x = np.unique(np.linspace(0, how["steps"], 400).astype(int))
        low, median, high = np.quantile(probs[:, x], (0.1, 0.5, 0.9), axis=0)
        for arm in range(probs.shape[2]):
            axis.fill_between(x, low[:, arm], high[:, arm], color=COLOURS[arm], alpha=0.25, lw=0)
            axis.plot(x, median[:, arm], color=COLOURS[arm], lw=2, label=f"a{arm + 1}: median, 10-90% band")
            axis.plot(x, probs[0, x, arm], color=COLOURS[arm], lw=0.6)
            axis.plot(x, flow[x, arm], color="black", lw=1, ls="--", label="expected flow")
        if table[-1]["exploration starts"] is not None:
            axis.axvline(table[-1]["exploration starts"], color="black", lw=1, ls=":", label="exploration starts")
        axis.set(ylim=(0, 1), xlabel="update", title=name)
    for axis in axes[:, 0]:
        axis.set_ylabel("probability")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3 if shape[1] > 1 else 2)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return table


def draw_negative(path, args):
    """Beyond the paper: which signs of the advantage keep the best arm alive? Returns rows of the table."""
    import matplotlib.pyplot as plt

    start, table = (0.49, 0.02, 0.49), []
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained", sharex=True, sharey=True)
    for column, (optimizer, lr) in zip(axes.T, (("sgd", 1.0), ("adam", 0.1)), strict=True):
        for signs, colour in zip(("both", "positive", "negative"), ("black", "tab:blue", "tab:red"), strict=True):
            how = {"optimizer": optimizer, "lr": lr, "signs": signs, "steps": args.steps, "n_runs": args.runs}
            probs = run_bandit(REWARDS, start, seed=args.seed, **how)
            table.append({"figure": path.stem, "panel": f"{optimizer}, {signs}"} | outcome(REWARDS, probs))
            x = np.unique(np.geomspace(1, args.steps, 150).astype(int))
            low, median, high = np.quantile(probs[:, x, 1], (0.1, 0.5, 0.9), axis=0)
            column[0].fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
            column[0].plot(
                x, median, color=colour, lw=2, label=f"A of {signs} signs" if signs == "both" else f"{signs} A only"
            )
            for k, style in ((64, "-"), (1024, ":")):
                share = np.array([share_with_interval(probs[:, t, 1] > 1 / k) for t in x]).T
                column[1].fill_between(x, share[1], share[2], color=colour, alpha=0.2, lw=0)
                column[1].plot(x, share[0], style, color=colour, label=f"k = {k}, {signs}")
        column[0].set(xscale="log", ylim=(0, 1.02), title=f"{optimizer}, learning rate {lr:g}")
        column[1].set(xlabel="update")
    axes[0, 0].set_ylabel("probability of the best arm\n(median, 10-90% band)")
    axes[1, 0].set_ylabel("share of runs with it above 1/k\n(95% interval)")
    axes[0, 0].legend(loc="center left")
    axes[1, 0].legend(loc="lower left", fontsize=8)
    figure.suptitle(f"which signs of the advantage keep a rare best arm alive? start {start}, rewards {REWARDS}")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return table


def own_bandit(args, out):
    """Run the bandit of --rewards, write bandit.json, print its shares. Returns the exit status."""
    try:
        rewards, policy = ([float(x) for x in text.split(",")] for text in (args.rewards, args.policy))
    except ValueError:
        raise InputError(f"--rewards {args.rewards} --policy {args.policy}: numbers with commas between") from None
    how = {"temperature": args.temperature, "optimizer": args.optimizer, "signs": args.signs}
    how |= {"group_size": args.group_size, "lr": args.lr, "n_runs": args.runs, "seed": args.seed}
    found = outcome(rewards, run_bandit(rewards, policy, args.steps, **how))
    (out / "bandit.json").write_text(json.dumps({"args": dataclasses.asdict(args), "outcome": found}, indent=2) + "\n")
    for name in ("two stages", "reached", "died"):
        print("{:12s} {:.3f} [{:.3f}, {:.3f}] of the runs".format(name, *found[name]))
    print(
        f"exploration starts at update {found['exploration starts'] or 'never'}; all numbers in {out / 'bandit.json'}"
    )
    return 0


def main(args):
    """Draw every figure and print the table, or run one bandit, or the checks. Returns the exit status."""
    if args.check:
        return 0 if check(args.seed) else 1
    began, out, n = time.perf_counter(), Path(args.out), args.steps
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out} ({error.strerror}); choose another --out") from None
    if args.rewards:
        return own_bandit(args, out)
    matplotlib.use("Agg")
    default = f"rewards {REWARDS}, start {POLICY}"
    starts = ((0.45, 0.1, 0.45), POLICY, (0.49, 0.02, 0.49))
    rewards = ((0.3, 1.0, 0.0), (0.7, 1.0, 0.0), (0.85, 1.0, 0.0))
    rows = [[(f"start {p}", {"init_probs": p}) for p in starts], [(f"rewards {r}", {"rewards": r}) for r in rewards]]
    table = draw_curves(out / "figure1.png", f"top: rewards {REWARDS}; bottom: start {POLICY}", rows, args)
    rows = [(f"G = {g}", {"group_size": g}) for g in (2, 3, 5, 10)]
    table += draw_curves(out / "figure5.png", f"group size; {default}", [rows[:2], rows[2:]], args)
    rows = [(f"temperature {tau}", {"temperature": tau, "steps": tau * n // 2, "n_runs": 50}) for tau in (1, 2, 5, 20)]
    table += draw_curves(out / "figure6.png", f"temperature (50 runs); {default}", [rows[:2], rows[2:]], args)
    four = {"rewards": (0.0, 0.4, 0.7, 1.0), "init_probs": (0.4, 0.43, 0.12, 0.05), "steps": n // 2}
    name = "rewards {rewards}, start {init_probs}".format(**four)
    table += draw_curves(out / "figure7.png", "four actions", [[(name, four)]], args)
    table += draw_negative(out / "figure_negative.png", args)
    (out / "summary.json").write_text(json.dumps({"args": dataclasses.asdict(args), "table": table}, indent=2) + "\n")
    print("| figure | panel | exploration starts | reach the best arm | die | largest gap of median and flow |")
    print("|---|---|---|---|---|---|")
    for row in table:
        shares = ["{:.3f} [{:.3f}, {:.3f}]".format(*row[key]) for key in ("reached", "died")]
        gap = f"{row['median - flow']:.2f}" if "median - flow" in row else ""
        print(
            "|", " | ".join([row["figure"], row["panel"], str(row["exploration starts"] or "never"), *shares, gap]), "|"
        )
    print(f"{args.runs} runs a row; figures and summary.json in {out}; {time.perf_counter() - began:.1f} s")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(parse_args(Args, __doc__)))
    except (InputError, OSError) as error:
        print(f"{Path(__file__).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
