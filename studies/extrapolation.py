"""Paper A, section 4.1, figure 4 and table 1, and a picture the paper does not have: is extrapolation worth training?

Runs `extrapolate.py` with gates tau -0.3 and everywhere (global) and gamma 0.1, 0.5, 1 and 2 on six finished pairs of
tiny/base and an RLVR model: DAPO, seeds 11 to 13 (of reweighting.py), and GRPO-N, seeds 21 to 23 (of negative_only.py);
on their DAPO checkpoints of steps 40, 60, 80 and 100; and once more on the finished pairs with gamma 0.1 and taus -2,
-1, -0.3 and -0.1. 100 test problems, 8 responses, temperature 1, top-p 1. Nothing is chosen on these pairs: tau and
gamma are what the shipped pair (seed 1) chose on training problems, -0.3 with 1 on the base and 0.1 on RLVR.

The rule, written before these pairs were decoded. Effects are in avg@8, paired by problem; intervals, 95%, are
clustered by pair (Student's t) and by problem (normal), the two added in squares. They are not corrected for the number
of claims. y is drawn by RLVR where not said otherwise.
  beats RLVR          selective extrapolation minus RLVR, y from either: holds above 0, does not hold below 0.02
  because of gamma    the same minus gamma 0 at the same gate (a second draw alone): likewise
  selective / global  at the same gamma: likewise
  flattens            gain from touching the positions of tau -1, minus the further gain of tau -0.1, gamma 0.1:
                      holds above 0, does not hold below 0
  early checkpoints   extrapolated minus the checkpoint itself, and minus gamma 0 at the same gate, mean over steps 40
                      to 100, DAPO: hold above 0, do not hold below 0.02
  worth of a gamma    training steps: the step at which RL alone, of the same seed, reaches the extrapolated accuracy
                      (interpolated between 0, 40, 60, 80, 100 and 140, running maximum), minus the checkpoint's own;
                      mean over steps 40 to 100; at 140 it is cut, so that 40 to 100 are the most it can be. Student's
                      t over the three seeds; holds above 0, does not hold below 5

    python studies/extrapolation.py            # 14 minutes on two cores, after reweighting.py and negative_only.py
    python studies/extrapolation.py --quick    # pairs trained for two steps: to see that it works
"""

import argparse
import functools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import (
    ROOT,
    decide,
    interval,
    interval_two_way,
    pairs_of,
    read_json,
    run_all,
    table,
    train,
    write_json,
)

TAU, TAUS, GAMMAS = -0.3, (-2.0, -1.0, -0.3, -0.1), (0.1, 0.5, 1.0, 2.0)
STEPS, LAST = (40, 60, 80, 100), 140
GATES = {"selective, y from RLVR": ("rlvr", TAU), "global": ("rlvr", None)}
ON_BASE, ON_RLVR = 1.0, 0.1  # the gammas that the shipped pair chose, y from the base and from RLVR
SAMPLES = 8


def summary(folder, samples):
    """The record of a run: the rows of its test problems; `right` becomes the share of a problem's responses."""
    rows = read_json(folder / "summary.json")
    keys = ("first", "tau", "gamma", "ratio", "accuracy", f"pass@{samples}")
    return [{key: row[key] for key in keys} | {"right": [n / samples for n in row["right"]]} for row in rows]


def accuracy(record, first="base", tau=None, gamma=0.0):
    """Accuracy of each problem (N,) under one setting; the default, drawn again everywhere with gamma 0, is RLVR."""
    (row,) = [row for row in record if (row["first"], row["tau"], row["gamma"]) == (first, tau, gamma)]
    return np.array(row["right"])


def reached_at(value, steps, curve):
    """The training step at which RL's curve first reaches an accuracy; the last step if it never does."""
    best = np.maximum.accumulate(curve)
    return float(np.interp(value, best + 1e-9 * np.arange(len(best)), steps))


def judge_finished(records, over_taus):
    """Claims about the finished pairs, and their gain over RLVR: {kind: {gamma: (mean, half)}}."""
    rlvr, claims, gains = np.array([accuracy(record) for record in records]), [], {}  # (pairs, N)

    def at(first, tau, gamma, of=records):
        return np.array([accuracy(record, first, tau, gamma) for record in of])

    def claim(text, values, below=0.02):
        claims.append(decide(text, "avg@8", values, below=below))

    for first, gamma, name in (("base", ON_BASE, "the base"), ("rlvr", ON_RLVR, "RLVR")):
        claim(f"selective extrapolation, y from {name}, beats RLVR", at(first, TAU, gamma) - rlvr)
        claim(f"... because of gamma ({name})", at(first, TAU, gamma) - at(first, TAU, 0.0))
    for gamma in GAMMAS:
        claim(f"selective beats global at gamma {gamma:g}", at("rlvr", TAU, gamma) - at("rlvr", None, gamma))
    few, many = at("rlvr", -1.0, ON_RLVR, over_taus), at("rlvr", -0.1, ON_RLVR, over_taus)
    further = (few - np.array([accuracy(record) for record in over_taus])) - (many - few)
    claim("gains flatten as more positions are touched", further, below=0.0)
    for kind, (first, tau) in (GATES | {"selective, y from the base": ("base", TAU)}).items():
        strengths = GAMMAS if tau is None else (0.0, *GAMMAS)
        gains[kind] = {f"{g:g}": interval_two_way(at(first, tau, g) - rlvr) for g in strengths}
    return claims, gains


def judge_early(records, steps, last):
    """Claims about checkpoints, {(name, step): record}; also the accuracies of the figure, the worths, RL's curves."""
    names = sorted({name for name, _ in records})
    when = (0, *steps, last)
    curves = {}  # of RL alone, the base first
    for name in names:
        after = [accuracy(records[name, step]).mean() for step in when[1:]]
        curves[name] = [accuracy(records[name, last], gamma=None).mean(), *after]
    claims, grid, worth = [], {kind: {} for kind in GATES}, {kind: {} for kind in GATES}

    def mean_over_steps(gate, gamma, minus):
        """Difference to another setting at the same checkpoint, (seeds, N)."""
        rows = [[accuracy(r, *gate, gamma) - accuracy(r, *minus) for r in seed] for seed in checkpoints]
        return np.mean(rows, axis=1)

    checkpoints = [[records[name, step] for step in steps] for name in names]
    for kind, gate in GATES.items():
        strengths = GAMMAS if gate[1] is None else (0.0, *GAMMAS)
        for step in when[1:]:
            cells = {"none": [accuracy(records[name, step]) for name in names]}
            cells |= {f"{g:g}": [accuracy(records[name, step], *gate, g) for name in names] for g in strengths}
            grid[kind][step] = {name: float(np.mean(values)) for name, values in cells.items()}
        for gamma in strengths:
            what = f"{kind.split(',')[0]}, gamma {gamma:g}"
            text = f"extrapolating early checkpoints beats them: {what}"
            claims.append(decide(text, "avg@8", mean_over_steps(gate, gamma, ("base", None, 0.0)), below=0.02))
            if gate[1] is not None and gamma > 0:
                more = mean_over_steps(gate, gamma, (*gate, 0.0))
                claims.append(decide(f"... because of gamma: {what}", "avg@8", more, below=0.02))
            saved = []
            for name, seed in zip(names, checkpoints, strict=True):
                ends = [[accuracy(r, *gate, gamma).mean(), accuracy(r).mean()] for r in seed]
                steps_of = [[reached_at(x, when, curves[name]) for x in pair] for pair in ends]
                saved.append(float(np.mean([one - own for one, own in steps_of])))
            worth[kind][f"{gamma:g}"] = saved
            claims.append(decide(f"... worth of {what}", "training steps", saved, below=5.0))
    return claims, grid, worth, curves


def draw(path, grid, gains, worth):
    """Accuracy over (checkpoint, gamma) for both gates, steps that a gamma is worth, gain of the finished pairs."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for axis, (kind, cells) in zip(axes[0], grid.items(), strict=True):
        steps, gammas = list(cells), list(next(iter(cells.values())))
        values = np.array([[cells[step][gamma] for step in steps] for gamma in gammas])
        image = axis.imshow(values, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis")
        for (i, j), value in np.ndenumerate(values):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
        axis.set(title=f"{kind}: avg@8, mean of the DAPO seeds", xlabel="checkpoint (training step)")
        axis.set_xticks(range(len(steps)), steps)
        axis.set_yticks(range(len(gammas)), gammas)
        figure.colorbar(image, ax=axis)
    positions = {f"{gamma:g}": i for i, gamma in enumerate((0.0, *GAMMAS))}
    averaged = {kind: {g: interval(values) for g, values in rows.items()} for kind, rows in worth.items()}
    for axis, panel in zip(axes[1], (averaged, gains), strict=True):
        for i, (kind, rows) in enumerate(panel.items()):
            mean, half = np.array(list(rows.values())).T
            x = [positions[gamma] + 0.08 * i for gamma in rows]
            how = {"fmt": "o-", "ms": 4, "capsize": 3, "label": kind}
            axis.errorbar(x, mean, np.where(np.isfinite(half), half, 0), **how)
        axis.set_xticks(range(len(positions)), positions)
    axes[1, 0].set(title="training steps that a gamma is worth (95% over seeds)", xlabel="gamma", ylabel="steps")
    axes[1, 1].set(title="finished pairs: avg@8 minus RLVR's (95%)", xlabel="gamma")
    for axis in axes[1]:
        axis.axhline(0, color="gray", lw=1)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("gamma")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two pairs trained for two steps, nothing recorded")
    parser.add_argument("--runs", default="runs/studies/extrapolation", help="folder of the runs")
    args = parser.parse_args()
    where, runs = ROOT / "studies" / "results", ROOT / args.runs
    problems, samples, steps, last = 100, SAMPLES, STEPS, LAST
    if args.quick:
        where, problems, samples, steps, last = runs, 4, 2, (1,), 2
    how = f"--problems {problems} --samples {samples} --train-problems 1 --bootstrap 100"
    settings = {"gammas": f"{how} --taus={TAU:g} --gammas {','.join(f'{g:g}' for g in GAMMAS)}"}
    settings["taus"] = f"{how} --taus={','.join(f'{t:g}' for t in TAUS)} --gammas {ON_RLVR:g}"
    pairs = pairs_of(args.quick, runs)
    kinds = {name: name.rpartition("-")[0] for name in pairs}
    jobs, records = {}, {}
    for name, (_, trained) in pairs.items():
        models = {(last, setting): trained / "model" for setting in settings}
        if kinds[name] == "dapo":
            models |= {(step, "gammas"): trained / f"model_{step:06d}" for step in steps}
        for (step, setting), model in models.items():
            folder = runs / f"{name}-{step}-{setting}"
            command = f"extrapolate.py --rlvr {model} --seed {name.rpartition('-')[2]} {settings[setting]}"
            records[name, step, setting] = path = where / "extrapolation" / f"{folder.name}.json"
            jobs[path] = [(command, folder, "summary.json")], functools.partial(summary, folder, samples)
    train(pairs, records)
    run_all(jobs)
    found = {key: read_json(path) for key, path in records.items()}
    finished, over_taus = ([found[name, last, setting] for name in pairs] for setting in settings)
    claims, gains = judge_finished(finished, over_taus)
    early = {(name, step): record for (name, step, kind), record in found.items() if kind == "gammas"}
    early = {(name, step): record for (name, step), record in early.items() if kinds[name] == "dapo"}
    more, grid, worth, curves = judge_early(early, steps, last)
    claims += more
    print(table(claims))
    print("\navg@8 minus RLVR's, the finished pairs:")
    for kind, row in gains.items():
        print(f"- {kind}: " + ", ".join("gamma {}: {:+.3f} ± {:.3f}".format(g, *cell) for g, cell in row.items()))
    result = {"command": "python studies/extrapolation.py", "claims": claims, "grid": grid, "gains": gains}
    write_json(where / "extrapolation.json", result | {"worth": worth, "curves": curves})
    draw(where / "extrapolation.png", grid, gains, worth)
    print(f"\nwritten: {where / 'extrapolation.json'}, {where / 'extrapolation.png'}; a record of each run beside them")


if __name__ == "__main__":
    main()
