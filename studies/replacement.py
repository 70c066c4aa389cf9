"""Paper A, section 3.2 and figure 2: at which few tokens must the base take RLVR's, and which criterion finds them?

Runs `replace.py` with dlogp, mean KL, entropy of the base and random replacement on six pairs of tiny/base and an RLVR
model: DAPO, seeds 11 to 13 (of reweighting.py), and GRPO-N, seeds 21 to 23 (of negative_only.py); seven target ratios,
100 test problems, 8 responses each, temperature 1, top-p 1.

The rule, written before these pairs were decoded. Accuracies are compared at matched ratios, interpolated in the log
of the *measured* ratio. Intervals, 95%, are clustered by pair (Student's t) and by problem (normal), the two added in
squares; where only pairs count, Student's t. They are not corrected for the number of claims.
  order               mean accuracy over log ratio from 0.05 to 0.3, of one criterion minus the next: holds above 0,
                      does not hold below 0.02
  fewest              smallest ratio, on a fine grid, at which the accuracy is RLVR's minus 0.05 or more (1 if none
                      is); log of KL's, and entropy's, over dlogp's: holds above 0, does not hold below log 1.1
  a third is enough   accuracy at ratio 1/3 minus RLVR's: holds above -0.05, does not hold below

    python studies/replacement.py            # 6 minutes on two cores, if reweighting.py and negative_only.py have run
    python studies/replacement.py --quick    # pairs trained for two steps: to see that it works
"""

import argparse
import functools
import itertools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, decide, interval_two_way, pairs_of, read_json, run_all, table, train, write_json

CRITERIA = ("dlogp", "kl", "entropy", "random")
MATCHED = (0.05, 0.1, 0.15, 0.2, 0.3)


def summary(folder):
    """The record of a pair: {criterion: points of results.json}; "none" is the base, "all" the RLVR model."""
    curves = read_json(folder / "results.json")
    base, rlvr = curves.pop("base and RLVR")
    keys = ("target", "ratio", "accuracy", "at_forks", "right")
    curves = {"none": [base], "all": [rlvr]} | curves
    return {name: [{key: point[key] for key in keys} for point in curve] for name, curve in curves.items()}


def at_ratio(rows, ratio):
    """Accuracy of each problem (N,) at a ratio, interpolated in the log of the measured ratio."""
    x = np.log(np.maximum.accumulate([max(1e-6, row["ratio"]) for row in rows])) + 1e-9 * np.arange(len(rows))
    right = np.array([row["right"] for row in rows], dtype=float)  # (K, N)
    return np.array([np.interp(np.log(ratio), x, column) for column in right.T])


def mean_over_log_ratio(rows):
    """Mean accuracy of each problem (N,) over the log of the ratio, from the first to the last of MATCHED."""
    grid = np.geomspace(MATCHED[0], MATCHED[-1], 101)
    return np.mean([at_ratio(rows, ratio) for ratio in grid], axis=0)


def smallest(rows, level):
    """The smallest ratio on a fine grid at which the accuracy over all problems reaches `level`; 1 if none does."""
    grid = np.geomspace(max(1e-6, rows[0]["ratio"]), max(1e-6, rows[-1]["ratio"]), 201)
    reached = [ratio for ratio in grid if at_ratio(rows, ratio).mean() >= level]
    return float(reached[0]) if reached else 1.0


def draw(path, found, claims):
    """Curves of each pair, one panel an algorithm; differences of neighbouring criteria at matched ratios."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.3), layout="constrained")
    for axis, kind in zip(axes, ("dapo", "grpo-n"), strict=False):
        pairs = [row for name, row in found.items() if name.startswith(kind)]
        for i, criterion in enumerate(CRITERIA):
            for j, row in enumerate(pairs):
                points = [(max(1e-4, r["ratio"]), r["accuracy"]) for r in row[criterion]]
                axis.plot(*zip(*points, strict=True), "o-", ms=2, color=f"C{i}", lw=1, label=None if j else criterion)
        for end, style, label in (("all", "--", "RLVR"), ("none", ":", "base")):
            level = np.mean([row[end][0]["accuracy"] for row in pairs])
            axis.axhline(level, ls=style, color="black", lw=1, label=label)
        title = f"{kind}: {len(pairs)} pairs"
        axis.set(title=title, xscale="log", xlabel="share of replaced tokens, measured", ylabel="avg@8", ylim=(0, 1))
        axis.set_xticks((0.02, 0.05, 0.1, 0.2, 0.4), (0.02, 0.05, 0.1, 0.2, 0.4))
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    for i, (one, other) in enumerate(itertools.pairwise(CRITERIA)):
        rows = [claims["matched"][f"{one} - {other}"][str(ratio)] for ratio in MATCHED]
        half = [row[1] if np.isfinite(row[1]) else 0 for row in rows]
        x = np.array(MATCHED) * (1 + 0.03 * (i - 1))  # side by side
        axes[2].errorbar(x, [row[0] for row in rows], half, fmt="o-", ms=3, capsize=2, label=f"{one} - {other}")
    axes[2].axhline(0, color="gray", lw=1)
    axes[2].set(title="difference in avg@8 at matched ratios (95%)", xscale="log", xlabel="share of replaced tokens")
    axes[2].set_xticks(MATCHED, MATCHED)
    axes[2].minorticks_off()
    axes[2].legend(fontsize=8)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two pairs trained for two steps, nothing recorded")
    parser.add_argument("--runs", default="runs/studies/replacement", help="folder of the runs")
    args = parser.parse_args()
    where, runs = ROOT / "studies" / "results", ROOT / args.runs
    how = f"--criteria {','.join(CRITERIA)} --reverse , --bootstrap 100 --ratios 0.02,0.05,0.1,0.15,0.2,0.3,0.4"
    how += " --calibration-problems 32 --calibration-passes 1"  # accuracies are read off at the measured ratios
    if args.quick:
        where, how = runs, f"{how} --problems 4 --samples 2 --calibration-problems 4"
    pairs = pairs_of(args.quick, runs)
    jobs, records = {}, {}
    for name, (_, trained) in pairs.items():
        seed, folder = name.rpartition("-")[2], runs / name
        decode = (f"replace.py --rlvr {trained}/model --seed {seed} {how}", folder, "summary.json")
        records[name] = where / "replacement" / f"{name}.json"
        jobs[records[name]] = [decode], functools.partial(summary, folder)
    train(pairs, records)
    run_all(jobs)
    found = {name: read_json(path) for name, path in records.items()}
    area = {c: np.array([mean_over_log_ratio(row[c]) for row in found.values()]) for c in CRITERIA}  # (pairs, N)
    rlvr = np.array([row["all"][0]["right"] for row in found.values()], dtype=float)
    claims = []
    for one, other in (*itertools.pairwise(CRITERIA), ("dlogp", "entropy")):
        claims.append(decide(f"{one} beats {other}", "mean avg@8 over log ratio", area[one] - area[other], below=0.02))
    enough = {c: [smallest(row[c], row["all"][0]["accuracy"] - 0.05) for row in found.values()] for c in CRITERIA}
    for other in ("kl", "entropy"):
        logs, text = np.log(enough[other]) - np.log(enough["dlogp"]), f"dlogp needs fewer replacements than {other}"
        claims.append(decide(text, "log of the ratio that is enough", logs, below=np.log(1.1)))
    for criterion in CRITERIA[:3]:
        third = np.array([at_ratio(row[criterion], 1 / 3) for row in found.values()])
        text = f"a third of the tokens is enough, by {criterion}"
        claims.append(decide(text, "avg@8 minus RLVR's", third - rlvr, above=-0.05, below=-0.05))
    matched = {}
    for one, other in itertools.pairwise(CRITERIA):
        gaps = {r: np.array([at_ratio(p[one], r) - at_ratio(p[other], r) for p in found.values()]) for r in MATCHED}
        matched[f"{one} - {other}"] = {str(r): interval_two_way(gap) for r, gap in gaps.items()}
    print(table(claims))
    print("\n| avg@8 at matched ratios | " + " | ".join(map(str, MATCHED)) + " |")
    print("|---" * (len(MATCHED) + 1) + "|")
    for name, row in matched.items():
        print(f"| {name} | " + " | ".join("{:+.3f} ± {:.3f}".format(*cell) for cell in row.values()) + " |")
    print("\n| pair | base | RLVR | " + " | ".join(f"{c}: enough" for c in CRITERIA) + " |")
    print("|---" * (len(CRITERIA) + 3) + "|")
    for i, (name, row) in enumerate(found.items()):
        ends = " | ".join(f"{row[end][0]['accuracy']:.3f}" for end in ("none", "all"))
        print(f"| {name} | {ends} | " + " | ".join(f"{enough[c][i]:.3f}" for c in CRITERIA) + " |")
    print("\nenough, geometric mean:", {c: round(float(np.exp(np.mean(np.log(x)))), 3) for c, x in enough.items()})
    result = {"command": "python studies/replacement.py", "claims": claims, "matched": matched, "enough": enough}
    write_json(where / "replacement.json", result)
    draw(where / "replacement.png", found, result)
    print(f"\nwritten: {where / 'replacement.json'}, {where / 'replacement.png'}; a record of each pair beside them")


if __name__ == "__main__":
    main()
