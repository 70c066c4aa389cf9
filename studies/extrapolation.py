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

    python studies/extrapolation.py            # 13 minutes on two cores, after reweighting.py and negative_only.py
    python studies/extrapolation.py --quick    # pairs trained for two steps: to see that it works
"""

import argparse
import functools
import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, decide, interval, rows_of, run_all, table, trained_pairs, write_json

TAU, TAUS, GAMMAS = -0.3, (-2.0, -1.0, -0.3, -0.1), (0.1, 0.5, 1.0, 2.0)
STEPS, LAST = (40, 60, 80, 100), 140
ON_BASE, ON_RLVR = 1.0, 0.1  # the gammas that the shipped pair chose, y from the base and from RLVR
SAMPLES = 8


def summary(folder):
    """The record of a run: the rows of its test problems (first, tau, gamma, ratio, accuracy, right)."""
    rows = [row for job in rows_of(folder) if job["job"].startswith("test") for row in job["rows"]]
    keys = ("first", "tau", "gamma", "ratio", "accuracy", f"pass@{SAMPLES}", "right")
    return [{key: row[key] for key in keys if key in row} for row in rows]


def pick(rows, first, tau, gamma, samples):
    """Accuracy of each problem (N,) of one setting; tau None: everywhere, gamma None: never drawn again."""
    (row,) = [row for row in rows if (row["first"], row["tau"], row["gamma"]) == (first, tau, gamma)]
    return np.array(row["right"]) / samples


def reached_at(accuracy, steps, curve):
    """The training step at which RL's curve first reaches an accuracy; the last step if it never does."""
    best = np.maximum.accumulate(curve)
    return float(np.interp(accuracy, best + 1e-9 * np.arange(len(best)), steps))


def draw(path, grid, finals, worth):
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
    for i, (kind, rows) in enumerate(worth.items()):
        mean, half = np.array([interval(values) for values in rows.values()]).T
        x = np.arange(len(rows)) + 0.08 * i
        how = {"fmt": "o-", "ms": 4, "capsize": 3, "label": kind}
        axes[1, 0].errorbar(x, mean, np.where(np.isfinite(half), half, 0), **how)
        axes[1, 0].set_xticks(range(len(rows)), rows)
    axes[1, 0].set(title="training steps that a gamma is worth (95% over seeds)", xlabel="gamma", ylabel="steps")
    for i, (kind, rows) in enumerate(finals.items()):
        mean, half = np.array(list(rows.values())).T
        x = np.arange(len(rows)) + 0.08 * i
        how = {"fmt": "o-", "ms": 4, "capsize": 3, "label": kind}
        axes[1, 1].errorbar(x, mean, np.where(np.isfinite(half), half, 0), **how)
        axes[1, 1].set_xticks(range(len(rows)), rows)
    axes[1, 1].set(title="finished pairs: avg@8 minus RLVR's (95% over pairs and problems)", xlabel="gamma")
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
    pairs = trained_pairs(args.quick, runs)
    kinds = {name: name.rpartition("-")[0] for name in pairs}
    jobs, records = {}, {}
    for name, trained in pairs.items():
        models = {(last, setting): trained / "model" for setting in settings}
        if kinds[name] == "dapo":
            models |= {(step, "gammas"): trained / f"model_{step:06d}" for step in steps}
        for (step, setting), model in models.items():
            folder = runs / f"{name}-{step}-{setting}"
            command = f"extrapolate.py --rlvr {model} --seed {name.rpartition('-')[2]} {settings[setting]}"
            records[name, step, setting] = path = where / "extrapolation" / f"{folder.name}.json"
            jobs[path] = [(command, folder, "summary.json")], functools.partial(summary, folder)
    run_all(jobs)
    found = {key: json.loads(path.read_text()) for key, path in records.items()}
    dapo = [name for name in pairs if kinds[name] == "dapo"]
    claims = []

    def of(name, first, tau, gamma, step=last, setting="gammas"):
        return pick(found[name, step, setting], first, tau, gamma, samples)

    def rl(name, step=last, setting="gammas"):
        return of(name, "base", None, 0.0, step, setting)  # drawn again everywhere, from RLVR

    def claim(text, values, below=0.02):
        claims.append(decide(text, "avg@8", np.array(values), below=below))

    for first, gamma, name in (("base", ON_BASE, "the base"), ("rlvr", ON_RLVR, "RLVR")):
        gain = [of(p, first, TAU, gamma) - rl(p) for p in pairs]
        claim(f"selective extrapolation, y from {name}, beats RLVR", gain)
        claim(f"... because of gamma ({name})", [of(p, first, TAU, gamma) - of(p, first, TAU, 0.0) for p in pairs])
    for gamma in GAMMAS:
        gap = [of(p, "rlvr", TAU, gamma) - of(p, "rlvr", None, gamma) for p in pairs]
        claim(f"selective beats global at gamma {gamma:g}", gap)
    middle, most = ([of(p, "rlvr", tau, ON_RLVR, setting="taus") for p in pairs] for tau in (-1.0, -0.1))
    first_part = np.array(middle) - [rl(p, setting="taus") for p in pairs]
    claim("gains flatten as more positions are touched", first_part - (np.array(most) - middle), below=0.0)

    finals = {"selective, y from RLVR": {}, "global": {}, "selective, y from the base": {}}
    gates = {"selective, y from RLVR": ("rlvr", TAU), "global": ("rlvr", None)}
    worth = {kind: {} for kind in gates}
    for kind, (first, tau) in (*gates.items(), ("selective, y from the base", ("base", TAU))):
        for gamma in (0.0, *GAMMAS):
            nothing = (first, tau, gamma) == ("rlvr", None, 0.0)  # global gamma 0 is RLVR itself
            rows = [np.zeros(problems) if nothing else of(p, first, tau, gamma) - rl(p) for p in pairs]
            row = decide("", "", np.array(rows))
            finals[kind][gamma] = row["effect"], row["half"]
    curves = {p: [of(p, "base", None, None).mean(), *(rl(p, s).mean() for s in (*steps, last))] for p in dapo}

    def reached(p, accuracy):
        return reached_at(accuracy, (0, *steps, last), curves[p])

    grid = {kind: {} for kind in gates}
    for kind, (first, tau) in gates.items():
        for step in (*steps, last):
            plain = {"none": np.mean([rl(p, step).mean() for p in dapo])}
            gammas = GAMMAS if tau is None else (0.0, *GAMMAS)
            cells = {f"{g:g}": np.mean([of(p, first, tau, g, step).mean() for p in dapo]) for g in gammas}
            grid[kind][step] = {name: float(value) for name, value in (plain | cells).items()}
        for gamma in GAMMAS if tau is None else (0.0, *GAMMAS):
            what = f"{kind.split(',')[0]}, gamma {gamma:g}"
            early = {p: {s: of(p, first, tau, gamma, s) for s in steps} for p in dapo}
            gains = [np.mean([early[p][s] - rl(p, s) for s in steps], axis=0) for p in dapo]
            claim(f"extrapolating early checkpoints beats them: {what}", gains)
            if tau is not None and gamma > 0:
                more = [np.mean([early[p][s] - of(p, first, tau, 0.0, s) for s in steps], axis=0) for p in dapo]
                claim(f"... because of gamma: {what}", more)
            values = []
            for p in dapo:
                pairs_of = [(early[p][s].mean(), rl(p, s).mean()) for s in steps]
                values.append(float(np.mean([reached(p, one) - reached(p, other) for one, other in pairs_of])))
            worth[kind][f"{gamma:g}"] = values
            claims.append(decide(f"... worth of {what}", "training steps", values, below=5.0))
    print(table(claims))
    print("\n| minus RLVR's avg@8 | " + " | ".join(f"gamma {g:g}" for g in (0.0, *GAMMAS)) + " |")
    print("|---" * (len(GAMMAS) + 2) + "|")
    for kind, row in finals.items():
        print(f"| {kind} | " + " | ".join("{:+.3f} ± {:.3f}".format(*cell) for cell in row.values()) + " |")
    result = {"command": "python studies/extrapolation.py", "claims": claims, "grid": grid, "finals": finals}
    write_json(where / "extrapolation.json", result | {"worth": worth, "curves": curves})
    draw(where / "extrapolation.png", grid, finals, worth)
    print(f"\nwritten: {where / 'extrapolation.json'}, {where / 'extrapolation.png'}; a record of each run beside them")


if __name__ == "__main__":
    main()
