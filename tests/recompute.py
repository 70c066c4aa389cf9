"""Decide three claims of docs/tables.md again, from the records of the runs alone and without any code of the studies.

python tests/recompute.py            # exit status 1 if an effect, an interval or a label (before correction) differs
"""

import itertools
import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev

RESULTS = Path(__file__).resolve().parent.parent / "studies" / "results"
T_QUANTILE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469}  # 97.5%, from a printed table
TWO_AT_ONCE = "two_at_once"  # as the records call it


def five_step_mean(values, step):
    """Mean of the five values up to a step, which counts from 1."""
    return fmean(values[max(0, step - 5) : step])


def steps_to(accuracy, level):
    """The first step at which the five-step mean reaches a level, one more than there are where it never does."""
    for step in range(5, len(accuracy) + 1):
        if five_step_mean(accuracy, step) >= level:
            return step
    return len(accuracy) + 1


def speed(records, bases):
    """dapo: how many steps earlier low-prob reaches 0.6 than none, on each base model."""
    runs = records("dapo")
    effects = []
    for base in bases:
        mean = {}
        for arm in ("none", "low-prob"):
            of_arm = [run for name, run in runs.items() if name.startswith(f"{arm}-{base}-")]
            mean[arm] = fmean(steps_to(run["accuracy"], 0.6) for run in of_arm)
        effects.append(mean["none"] - mean["low-prob"])
    return effects


def plateau_of(run):
    """The evaluated step, not the last, at which the five-step mean of two at once is highest; the first of equals."""
    counts = run[TWO_AT_ONCE]
    every = 10 if len(counts) > 10 else 1
    return max(range(every, len(counts), every), key=lambda step: five_step_mean(counts, step))


def shrinkage(records, bases):
    """boundary: share of problems with a right response of the base model, minus that of GRPO on its plateau."""
    solved = records("boundary")
    runs = records("grpo_n")
    effects = []
    for base in bases:
        plateau = plateau_of(runs[f"grpo-{base}-2"])
        before = fmean(n_right > 0 for n_right in solved[f"base-{base}-0-t1"]["right"])
        on_it = fmean(n_right > 0 for n_right in solved[f"grpo-{base}-{plateau}-t1"]["right"])
        effects.append(before - on_it)
    return effects


def interpolate(points, x):
    """The value at x of a line through points (x, y); beyond the ends, that of the end."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    if x < points[0][0]:
        return points[0][1]
    return points[-1][1]


def mean_accuracy(curve):
    """Mean over the log of the ratio, 0.05 to 0.3, of the accuracy between the points of a curve."""
    points = [(math.log(max(1e-6, point["ratio"])), fmean(point["right"])) for point in curve]
    low = math.log(0.05)
    width = (math.log(0.3) - low) / 2000
    return fmean(interpolate(points, low + width * (i + 0.5)) for i in range(2000))


def order(records, bases):
    """replacement: mean accuracy, as above, of dlogp minus that of KL."""
    pairs = records("pairs")
    curves = [pairs[f"{base}-end"]["replacement 1.0"] for base in bases]
    return [mean_accuracy(curve["dlogp"]) - mean_accuracy(curve["kl"]) for curve in curves]


CLAIMS = [  # study, how its claim begins, its measure; the effect on each base model, the smallest that matters
    ("dapo", "low-prob is faster", "than DAPO, to 0.6", speed, 10),
    ("boundary", "early training shrinks", "GRPO, 1/1", shrinkage, 0.05),
    ("replacement", "dlogp beats KL", "end, top-p 1", order, 0.02),
]


def label_of(mean, half_width, matters):
    if mean > half_width:
        return "yes" if mean >= matters else "yes, but small"
    if mean + half_width < matters:
        return "no"
    return "open"


def main(results):
    def records(study):
        rows = [json.loads(line) for line in (results / f"{study}.jsonl").read_text().splitlines()]
        return {row["name"]: row for row in rows}

    bases = sorted({name.split("-")[0] for name in records("pairs")})
    all_same = True
    for study, claim, measure, effect_of, matters in CLAIMS:
        if not (results / f"{study}.json").exists():
            print(f"not run yet  {study}: {claim}")
            continue
        rows = json.loads((results / f"{study}.json").read_text())["claims"]
        (row,) = [row for row in rows if row["claim"].startswith(claim) and row["measure"] == measure]
        effects = effect_of(records, bases)
        mean = fmean(effects)
        half_width = T_QUANTILE[len(effects) - 1] * stdev(effects) / math.sqrt(len(effects))
        if half_width == 0:  # no spread: open
            half_width = math.inf
        label = label_of(mean, half_width, matters)
        recorded = math.inf if row["half_width"] is None else row["half_width"]
        same_half_width = half_width == recorded or abs(half_width - recorded) < 0.01
        same = abs(mean - row["effect"]) < 0.002 and same_half_width and label == row["label"]
        all_same = all_same and same
        word = "same" if same else "DIFFERS"
        print(f"{word}  {study}: {claim}: {mean:+.4f} ± {half_width:.4f}, {label}; {row['label']}")
    return 0 if all_same else 1


if __name__ == "__main__":
    sys.exit(main(RESULTS if len(sys.argv) == 1 else Path(sys.argv[1])))
