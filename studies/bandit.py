"""Paper B, section 3 and figures 1, 5, 6: when do the two stages appear in a bandit, and when is the best action lost?

Runs `toy_bandit.py` for three actions. One is common and fair (reward 0.2, 0.5 or 0.8). The best one (reward 1) is
rare: it starts at 0.01, 0.02, 0.05 or 0.2. The third is worthless. It shares the rest equally with the common one. A
setting has 100 runs. Plain ascent has 200,000 updates, times the temperature, so that runs end with the best action
reached (above 1/2) or lost (below 1e-9), and not on the way. Adam, which the paper's listing names, has 20,000.
Quantiles of the last probability of the best action are in the records.

The rule, written before the runs. Its wording has changed since, its meaning has not. Settings are a designed grid, no
sample. So each is decided on its own, with Wilson's interval over runs (Newcombe's for a difference of shares), and the
table counts them; labels as in common.py. The verdict is the label at 0.05 over the number of all decisions
(Bonferroni). It survives correction if every setting has that label at 0.05, too.
  two stages   share of runs in which the common action rises and then falls by more than 0.05, the best one starting
               below 0.1: above 1/2 ("appears to unfold": in most runs)
  reached      share of runs that end with the best action above 1/2: above 1/2 (ours)
  as often     with larger groups or temperature: that share minus plain ascent's: above -0.1 (figures 5, 6: they stay).
               That they are smoother shows in the quartiles of the update of the peak, in the records: no verdict
  negative     share reached under negative only minus that under both signs: above -0.1 (ours). Amended after the runs:
               of shares lost, as it was, nothing can come, as no run of either is below 1e-9
Expected before the runs: 100 runs decide a share that is 0.1 from 1/2, and a difference of 0.14. After correction for
all decisions (z = 3.5) a difference would have to be above 0: "as often" cannot survive it.

    python studies/bandit.py            # 20 minutes on two cores
    python studies/bandit.py --quick    # few runs and updates: to see that it works
"""

import functools
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from common import Job, Run, arguments, finish, judge, n_agreeing, read_json, read_records, run_all
from matplotlib.figure import Figure


# ------------------------------------------------------------------------------------------------------------- settings
class Variant(NamedTuple):
    """A way to train: its name in the table, its flags, and the updates of a run."""

    name: str
    flags: str
    updates: int


class Setting(NamedTuple):
    """A bandit of the grid: the common action's reward, and the best action's probability at the start."""

    fair: float
    start: float


VARIANTS = [
    Variant("plain", "", 200_000),
    Variant("Adam", "--optimizer adam", 20_000),
    Variant("G = 8", "--group-size 8", 200_000),
    Variant("temperature 2", "--temperature 2", 400_000),
    Variant("plain, negative only", "--signs negative", 200_000),
    Variant("Adam, negative only", "--signs negative --optimizer adam", 20_000),
]
FAIR = (0.2, 0.5, 0.8)
STARTS = (0.01, 0.02, 0.05, 0.2)
GRID = [Setting(fair, start) for fair in FAIR for start in STARTS]
RARE = [setting for setting in GRID if setting.start < 0.1]
DECISIONS = 6 * len(RARE) + 4 * len(GRID)  # of main(), for Bonferroni's correction


# ----------------------------------------------------------------------------------------------------------------- runs
def record_name(variant, setting):
    """Variant "Adam, negative only", Setting(0.5, 0.01) -> "Adam-negative-only-0.5-0.01", the name of its record."""
    name = variant.name.replace(", ", "-").replace(" = ", "").replace(" ", "-")
    return f"{name}-{setting.fair}-{setting.start}"


def bandit_job(variant, setting, args):
    """The Job of 100 runs of toy_bandit.py; --quick takes 10, with a thousandth of the updates."""
    n_runs = 10 if args.quick else 100
    updates = variant.updates // 1000 if args.quick else variant.updates
    seed = 2000 + 20 * VARIANTS.index(variant) + GRID.index(setting)
    common_start = (1 - setting.start) / 2  # of the common and of the worthless action
    command = f"toy_bandit.py --rewards {setting.fair},1,0 --policy {common_start},{setting.start},{common_start}"
    if variant.flags:
        command += f" {variant.flags}"
    command += f" --runs {n_runs} --steps {updates} --seed {seed}"
    folder = args.runs / "bandit" / record_name(variant, setting)
    run = Run(command, folder, "summary.json")
    return Job([run], functools.partial(first_row, folder / "summary.json"))


def first_row(path):
    """The row of the only bandit of a summary.json."""
    return read_json(path)["table"][0]


# ------------------------------------------------------------------------------------------------------------ decisions
def wilson(share, n, z):
    """Wilson's interval (low, high) of a share of n runs, z standard errors to each side."""
    centre = share + z * z / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def newcombe(share, other, n, z):
    """Newcombe's interval (low, high) of the difference share - other of two shares of n runs each."""
    low, high = wilson(share, n, z)
    other_low, other_high = wilson(other, n, z)
    below = np.hypot(share - low, other_high - other)
    above = np.hypot(high - share, other - other_low)
    return share - other - below, share - other + above


def labels_at(level, shares, others, n, above, matters):
    """The label of each setting, a list, from intervals that miss with probability `level`; others: see decide()."""
    z = NormalDist().inv_cdf(1 - level / 2)
    labels = []
    for setting, share in shares.items():
        if others is None:
            low, high = wilson(share, n, z)
        else:
            low, high = newcombe(share, others[setting], n, z)
        labels.append(judge((low + high) / 2, (high - low) / 2, above, matters))
    return labels


def counted(labels):
    """A list of labels as a text: the only one there is, or how often each."""
    if len(set(labels)) == 1:
        return labels[0]
    kinds = ("yes", "yes, but small", "no", "open")
    return "; ".join(f"{kind}: {labels.count(kind)}" for kind in kinds if kind in labels)


def decide(paper, text, variant, shares, others, n, above, matters, many):
    """A row of bandit.json: each setting is decided on its own.

    shares: {setting: share of n runs}. others: None, or shares to subtract. many: number of all decisions.
    """
    labels = labels_at(0.05, shares, others, n, above, matters)
    verdicts = labels_at(0.05 / many, shares, others, n, above, matters)
    effects = shares
    if others is not None:
        effects = {setting: share - others[setting] for setting, share in shares.items()}
    values = [round(effect, 3) for effect in effects.values()]
    return {
        "paper": paper,
        "claim": text,
        "measure": variant,
        "effect": f"{min(values):+.2f} to {max(values):+.2f}",
        "above": above,
        "matters": matters,
        "values": values,
        "agreeing": n_agreeing(values, above),
        "labels": {str(tuple(setting)): label for setting, label in zip(shares, labels, strict=True)},
        "label": counted(labels),
        "survives": labels == verdicts and set(labels) != {"open"},
        "verdict": counted(verdicts),
    }


# --------------------------------------------------------------------------------------------------------------- figure
def draw(path, found):
    """Shares of runs over the best action's start: a line for each variant, the common action's reward being 0.5."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = {"two stages": "runs that show two stages", "reached": "runs that end with the best action"}
    styles = [
        ("black", "-"),
        ("tab:red", "-"),
        ("tab:purple", "-"),
        ("tab:brown", "-"),
        ("black", ":"),
        ("tab:red", ":"),
    ]
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for i, (variant, (color, line)) in enumerate(zip(VARIANTS, styles, strict=True)):
            x = np.array(STARTS) * 1.02**i  # side by side, so that equal shares can be told apart
            y = [found[variant.name, Setting(0.5, start)][key][0] for start in STARTS]
            axis.semilogx(x, y, marker="o", ms=3.5, color=color, ls=line, label=variant.name)
        axis.set(title=title, xlabel="best action's probability at the start", ylim=(-0.03, 1.03))
        axis.set_xticks(STARTS, [f"{start:g}" for start in STARTS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="share of 100 runs")
    title = "ways to train; the common action's reward is 0.5"
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, title=title)
    title = "A rare best action is found in two stages, but hardly by plain ascent on mistakes alone"
    figure.suptitle(title, weight="bold")
    figure.savefig(path, dpi=92)


def main():
    args = arguments(__doc__)
    n = 10 if args.quick else 100
    names = {}  # (name of a variant, setting) -> name of the record
    jobs = {}
    for variant in VARIANTS:
        for setting in GRID:
            name = record_name(variant, setting)
            names[variant.name, setting] = name
            jobs[name] = bandit_job(variant, setting, args)
    path = args.where / "bandit.jsonl"
    run_all(jobs, records=path)
    records = read_records(path)
    found = {key: records[name] for key, name in names.items()}

    def shares(name, key, settings):
        return {setting: found[name, setting][key][0] for setting in settings}

    claims = []
    for name in ("plain", "Adam", "G = 8", "temperature 2"):
        two_stages = shares(name, "two stages", RARE)
        text = "two stages in over half of the runs (best action rare)"
        claims.append(decide("B 3, fig. 1", text, name, two_stages, None, n, 0.5, 0.0, DECISIONS))
        if name in ("plain", "Adam"):
            reached = shares(name, "reached", GRID)
            text = "over half reach the best action"
            claims.append(decide("B 3 (ours)", text, name, reached, None, n, 0.5, 0.0, DECISIONS))
            negative = shares(f"{name}, negative only", "reached", GRID)
            text = "mistakes alone reach it as often (0.1 fewer at most)"
            claims.append(decide("B 3 (ours)", text, name, negative, reached, n, -0.1, 0.0, DECISIONS))
        else:
            plain = shares("plain", "two stages", RARE)
            text = "two stages as often as plain (0.1 fewer at most)"
            claims.append(decide("B 3, figs. 5, 6", text, name, two_stages, plain, n, -0.1, 0.0, DECISIONS))
    finish(args, "bandit", claims, draw, found)


if __name__ == "__main__":
    main()
