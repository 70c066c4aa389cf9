"""Decide three claims of docs/claims.md again, from the records of the runs alone and without any code of the studies.

python tests/recompute.py            # exit status 1 if an effect, an interval or a verdict differs
"""

import itertools
import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev

RESULTS = Path(__file__).resolve().parent.parent / "studies" / "results"
T = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469}  # 97.5%, from a printed table


def five_step_mean(x, step):
    """Mean of the five values up to a step, which counts from 1."""
    return fmean(x[max(0, step - 5) : step])


def steps_to(run, level):
    n = len(run["accuracy"])
    return next((t for t in range(5, n + 1) if five_step_mean(run["accuracy"], t) >= level), n + 1)


def speed(records, bases):
    """dapo: how many steps earlier low-prob reaches 0.6 than none, on each base."""

    def mean(arm, base):
        return fmean(steps_to(run, 0.6) for name, run in records("dapo").items() if name.startswith(f"{arm}-{base}-"))

    return [mean("none", base) - mean("low-prob", base) for base in bases]


def shrinkage(records, bases):
    """boundary: share of problems with a right response of the base, minus that of GRPO at its most leaps of two."""
    effect = []
    for base in bases:
        two, solved = records("grpo_n")[f"grpo-{base}-2"]["leaps_two"], records("boundary")
        every = 10 if len(two) > 10 else 1
        plateau = max(range(every, len(two), every), key=lambda t: (five_step_mean(two, t), -t))
        shares = [
            fmean(c > 0 for c in solved[name]["right"]) for name in (f"base-{base}-0-t1", f"grpo-{base}-{plateau}-t1")
        ]
        effect.append(shares[0] - shares[1])
    return effect


def order(records, bases):
    """replacement: mean accuracy over the log of the ratio, 0.05 to 0.3, of dlogp minus that of KL; trapezoids."""

    def area(curve):
        points = [(math.log(max(1e-6, p["ratio"])), fmean(p["right"])) for p in curve]

        def at(x):
            for (x0, y0), (x1, y1) in itertools.pairwise(points):
                if x0 <= x < x1:
                    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
            return points[0][1] if x < points[0][0] else points[-1][1]

        low, high, n = math.log(0.05), math.log(0.3), 2000
        return fmean(at(low + (high - low) * (i + 0.5) / n) for i in range(n))

    curves = [records("pairs")[f"{base}-end"]["replacement 1.0"] for base in bases]
    return [area(curve["dlogp"]) - area(curve["kl"]) for curve in curves]


CLAIMS = {  # study, claim, how its measure begins: the effect on each base, the smallest that matters
    ("dapo", "low-prob before none", "steps to 0.6"): (speed, 10),
    ("boundary", "early training shrinks: grpo", "pass@"): (shrinkage, 0.05),
    ("replacement", "dlogp beats kl", "accuracy, end, top-p 1"): (order, 0.02),
}


def main(results):
    def records(study):
        return {path.stem: json.loads(path.read_text()) for path in sorted((results / study).glob("*.json"))}

    bases, same = sorted({name.split("-")[0] for name in records("pairs")}), []
    for (study, text, measure), (effect, matters) in CLAIMS.items():
        if not (results / f"{study}.json").exists():
            print(f"not run yet  {study}: {text}")
            continue
        rows = json.loads((results / f"{study}.json").read_text())["claims"]
        row = next(r for r in rows if r["claim"] == text and r["measure"].startswith(measure))
        x = effect(records, bases)
        mean, half = fmean(x), T[len(x) - 1] * stdev(x) / math.sqrt(len(x)) or math.inf  # no spread: undecided
        verdict = "holds" if mean > half else "does not hold" if mean + half < matters else "undecided"
        there = math.inf if row["half"] is None else row["half"]
        close = abs(mean - row["effect"]) < 0.002 and (half == there or abs(half - there) < 0.01)
        close = close and verdict == row["verdict"]
        same.append(close)
        about = f"{mean:+.4f} ± {half:.4f}, {verdict}; {row['verdict']}"
        print(f"{'same' if close else 'DIFFERS'}  {study}: {text}: {about}")
    return int(not all(same))


if __name__ == "__main__":
    sys.exit(main(RESULTS if len(sys.argv) == 1 else Path(sys.argv[1])))
