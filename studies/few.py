"""Can a threshold make the base model as good as RLVR with fewer tokens than an exact rule? Five pairs.

`replace.py --criteria speculative` draws every token exactly as RLVR does, and replaces as few tokens as any exact rule
can: E[TV], the mean total variation distance of both models. A threshold on dlogp, KL or entropy is not exact. It only
has to reach RLVR's accuracy.

The rule, written before the runs; unit, interval, verdict and Holm as in common.py. Pairs: each base model and what
`dapo.py` makes of it in 100 steps with its defaults, seed 2. 60 test problems x 4 responses, top-p 1.
  share        the smallest share of replaced tokens at which a criterion's accuracy is RLVR's minus 0.05 (accuracy
               linear in the log of the measured share; 1 if none is), as in pairs.py
  dlogp stays below    log(E[TV] / share of dlogp), above 0. log 1.1 matters, a tenth fewer tokens
  KL lies above        log(share of KL / E[TV]), above 0. log 1.1 matters; entropy alike
  at choices           the part of the speculative replacements that stand at choices, minus 1/2. 0.1 matters
The check: the speculative accuracy minus RLVR's is 0 but for chance; printed.
Added after the runs, printed: dlogp's share for all of RLVR's accuracy, which an exact rule has.
Known before: the shipped pair (docs/replace.md), where E[TV] is 0.123 and the shares 0.096, 0.25 and above 0.3; and the
curves of dlogp, KL and entropy on the same five pairs (pairs.py), but no E[TV] of them.

    python studies/few.py            # an hour of one core, with the training; goes on where it was interrupted
    python studies/few.py --quick    # runs of two steps: to see that it works
"""

import functools
import math

import numpy as np
from common import Job, Run, arguments, base_folder, decide, finish, make_bases, read_records, run_all
from matplotlib.figure import Figure
from pairs import COLORS, CRITERIA, replacement_curves, smallest_ratio

SCORES = ("dlogp", "kl", "entropy")
FLAGS = "--problems 60 --samples 4 --calibration-problems 24 --calibration-passes 2 --bootstrap 100"
FLAGS += " --ratios 0.02,0.05,0.1,0.15,0.2,0.3"
QUICK_FLAGS = "--problems 4 --samples 2 --calibration-problems 2 --calibration-passes 1 --bootstrap 5 --ratios 0.1,0.3"


def job_of(base, args):
    """The Job of a pair: the training, then replace.py."""
    data = base_folder(base, args.quick)
    folder = args.runs / "few"
    steps = 2 if args.quick else 100
    command = f"dapo.py --model {data}/base --train {data}/train.jsonl --test {data}/test.jsonl --seed 2"
    command += f" --steps {steps} --eval-every {steps} --eval-problems 4 --eval-samples 1"
    if args.quick:
        command += " --prompts-per-step 2 --mini-batch 2 --gen-batch 4"
    training = Run(command, folder / f"dapo-{base}", "model/tokenizer_config.json")
    command = f"replace.py --base {data}/base --rlvr {training.folder}/model --test {data}/test.jsonl"
    command += f" --train {data}/train.jsonl --criteria {','.join(SCORES)},speculative --reverse= "
    command += QUICK_FLAGS if args.quick else FLAGS
    replacement = Run(command, folder / f"replace-{base}", "summary.json")
    return Job([training, replacement], functools.partial(replacement_curves, replacement.folder))


def measures(record):
    """Of a pair: accuracies, E[TV], the part at choices, each score's share, and dlogp's for all of RLVR's accuracy."""
    rlvr = record["base and RLVR"][1]["accuracy"]
    (exact,) = record["speculative"]
    found = {
        "rlvr": rlvr,
        "E[TV]": exact["total_variation"],
        "exact": exact["accuracy"],
        "at choices": math.nan if exact["at_choices"] is None else exact["at_choices"],  # None: nothing replaced
    }
    for name in SCORES:
        found[name] = smallest_ratio(record[name], rlvr - 0.05)
    found["dlogp, all"] = smallest_ratio(record["dlogp"], rlvr)
    return found


def claims_of(found):
    """All claims, decided. found: measures() of each pair."""
    matters = math.log(1.1)
    below = [math.log(row["E[TV]"] / row["dlogp"]) for row in found]
    claims = [decide("(ours)", "the threshold stays below E[TV] (log ratio)", CRITERIA["dlogp"], below, matters)]
    for name in ("kl", "entropy"):
        above = [math.log(row[name] / row["E[TV]"]) for row in found]
        claims.append(decide("(ours)", "the threshold lies above E[TV] (log ratio)", CRITERIA[name], above, matters))
    at_choices = [row["at choices"] - 0.5 for row in found]
    text = "most exact replacements are at choices (share, minus 1/2)"
    claims.append(decide("(ours)", text, "speculative", at_choices, 0.1))
    return claims


def print_pairs(found):
    """A line for each pair."""
    print(
        "| model | RLVR is right | the exact rule | E[TV] | dlogp | KL | entropy | dlogp for all | exact: at choices |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for base, row in found.items():
        cells = [str(base)] + [
            f"{row[name]:.3f}" for name in ("rlvr", "exact", "E[TV]", *SCORES, "dlogp, all", "at choices")
        ]
        print(f"| {' | '.join(cells)} |")
    print()


def draw(path, found):
    """For each pair: E[TV], and the share at which each score reaches RLVR's accuracy minus 0.05."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(found))
    for shift, name in zip((-0.2, 0, 0.2), SCORES, strict=True):
        shares = [min(0.32, row[name]) for row in found.values()]
        axis.plot(shares, places + shift, "o", color=COLORS[name], label=CRITERIA[name])
    for place, row in zip(places, found.values(), strict=True):
        label = "E[TV], the exact rule" if place == 0 else None
        axis.plot([row["E[TV]"]] * 2, [place - 0.35, place + 0.35], color="black", label=label)
    axis.invert_yaxis()
    axis.set_yticks(places, [f"model {base}" for base in found])
    axis.set(xlabel="share of replaced tokens that reaches RLVR's accuracy minus 0.05 (0.32: more than 0.3)")
    axis.set(xlim=(0, 0.34))
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize=8)
    figure.suptitle("How few tokens are enough?", weight="bold")
    figure.savefig(path, dpi=92)


def main():
    args = arguments(__doc__)
    path = args.where / "few.jsonl"
    jobs = {str(base): job_of(base, args) for base in args.bases}
    make_bases(args, path, list(jobs))
    run_all(jobs, records=path)
    records = read_records(path)
    found = {base: measures(records[str(base)]) for base in args.bases}
    print_pairs(found)
    finish(args, "few", claims_of(list(found.values())), draw, found)


if __name__ == "__main__":
    main()
