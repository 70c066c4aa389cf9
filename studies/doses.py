"""Is a rare best action why a model stalls? Its rarity is made the independent variable; a bandit predicts the course.

Paper B says that a best action waits because it is rare. In the tiny world, one at a time is rarest where the second
operation is `*`. So worlds differ in how rare it is there in the last phase of pre-training (`make_tiny.py --rare`).
Up to that phase, all worlds of a seed are one model: they share its arithmetic. On each, `dapo.py` runs with its
defaults, 100 steps, seed 2, and saves a model every 10 steps.

The rule, written before the runs. Unit: a pre-training seed (1, 2, 3). Interval, verdict and Holm as in common.py.
  worlds       rarity 0.001, 0.002, 0.005, 0.01, 0.02, 0.05 with seed 1; 0.001, 0.005, 0.05 with seeds 2 and 3. "Shown":
               the same six with seed 1 and `--hide-above 1`, so that two at once is more often right there
  controls     two worlds without a rare best action: P(one at a time) = 0.45 and 0.8 wherever two operations are left
  turn         of a kind of choice: the training step at which P(one at a time) crosses 1/2, by action_table of
               make_tiny.py, log-odds linear between the saved models; 101 if it never does
  P            P(one at a time) of the base model where the second operation is `*`, from the same table
  rarer is later        minus the slope of log(turn there) over log P. Above 0, 0.1 matters
  but not so much       that slope minus the slope of the prediction, see below. Above 0, 0.25 matters
  stall        the most steps in a row, before the accuracy (mean of five steps) reaches 0.8, in which it grows by less
               than 0.05. In a control: 10 minus the stall, above 0: no stall
  prediction   each kind of choice is a bandit of its own, with the base model's P(actions), and P(right | action) as
               its rewards. It follows `expected_flow` of toy_bandit.py, groups of 16. One constant turns an update
               into training steps: fitted on the world 0.005, seed 1, as the geometric mean over its kinds of turn /
               predicted turn. That world is then left out
  the order    share of the six pairs of kinds that turn in the predicted order. Above 0.5, 0.25 matters
  when         share of the kinds that turn within a factor of two of the prediction. Above 0.5, 0.25 matters
  boundary     problems with p = 0 at temperature 0.6, top-p 0.95, and pass@256 there, of the base, at the plateau and
               at the end (p of exact.py, 40 problems). A description
Known before: all of this for tiny/base (docs/dapo.md has its table): there the kinds do not turn in the predicted
order, which the other models may repeat. And when two at once peaks on five base models, whose P is 0.003 to 0.010.

    python studies/doses.py            # 3 hours of one core; goes on where it was interrupted
    python studies/doses.py --quick    # runs of two steps: to see that it works
"""

import functools
import math
import sys
from typing import NamedTuple

import numpy as np
import torch
from common import ROOT, Job, Run, arguments, decide, finish, read_jsonl, read_records, rounded, run_all
from exact import PAPER, SETTINGS, load, pass_at, probabilities, read_problem
from matplotlib.figure import Figure
from training import CURVES, plateau_of, running_mean

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tiny"))
from make_tiny import (
    HIDE_ABOVE,
    RIGHT_AFTER_GUESS,
    RIGHT_AFTER_ONE,
    RIGHT_AFTER_TWO,
    RIGHT_AFTER_TWO_PRODUCT,
    WHERE,
    action_table,
)

from toy_bandit import expected_flow

# ------------------------------------------------------------------------------------------------------------- settings
KINDS = ("?*", "+?", "-?", "*?")  # of choices, as in make_tiny.py
STEPS = 100
EVERY = 10  # steps between the saved models
UPDATES = 5_000  # of a prediction
LR = 0.5  # of a prediction; only the product of both counts
GROUP = 16


class World(NamedTuple):
    """A base model; its name is that of its record."""

    seed: int
    rare: float | None = None  # P(one at a time) where the second operation is *
    shown: bool = False  # are results of two at once there not hidden in pre-training?
    everywhere: float | None = None  # a control: P(one at a time) at each choice

    def __str__(self):
        if self.everywhere is not None:
            return f"everywhere-{self.everywhere:g}-{self.seed}"
        return f"rare-{self.rare:g}-{'shown-' if self.shown else ''}{self.seed}"


FITTED = World(1, 0.005)


def worlds(quick):
    """All worlds, those first that say most."""
    if quick:
        return [FITTED, World(1, 0.05), World(1, everywhere=0.45)]
    found = [World(1, rare) for rare in (0.005, 0.001, 0.05, 0.02, 0.002, 0.01)]
    found += [World(1, everywhere=p) for p in (0.45, 0.8)]
    found += [World(seed, rare) for seed in (2, 3) for rare in (0.005, 0.001, 0.05)]
    found += [World(1, rare, shown=True) for rare in (0.005, 0.001, 0.05, 0.02, 0.002, 0.01)]
    return found


# ----------------------------------------------------------------------------------------------------------------- jobs
def job_of(world, args):
    """The Job of a world: its base model, a run of dapo.py, and the record."""
    folder = args.runs / "doses" / str(world)
    hide_above = 1 if world.shown else HIDE_ABOVE
    skilled = args.runs / "doses" / f"skilled-{world.seed}.pt"
    command = f"tiny/make_tiny.py --seed {world.seed} --hide-above {hide_above} --skilled {skilled} --no-report"
    if world.everywhere is None:
        command += f" --rare {world.rare}"
    else:
        command += f" --everywhere {world.everywhere}"
    if args.quick:
        command += " --n-train 30 --n-test 8 --batch-size 2 --until-two 0 --settle-steps 50 --choices-steps 50"
    pretraining = Run(command, folder / "world", "base/tokenizer_config.json")
    data = folder / "world"
    steps, every = (2, 1) if args.quick else (STEPS, EVERY)
    command = f"dapo.py --model {data}/base --train {data}/train.jsonl --test {data}/test.jsonl --seed 2"
    command += f" --steps {steps} --save-every {every} --eval-every {every} --eval-problems 4 --eval-samples 1"
    if args.quick:
        command += " --prompts-per-step 2 --mini-batch 2 --gen-batch 4"
    training = Run(command, folder / "run", "model/tokenizer_config.json")
    return Job([pretraining, training], functools.partial(record_of, folder, steps, every, args.quick))


def record_of(folder, steps, every, quick):
    """Training curves, action_table of base and saved models, exact p of base, plateau and end."""
    training = read_jsonl(folder / "run" / "metrics.jsonl")[1:]  # step 0 only evaluates
    record = {name: rounded(row.get(name) for row in training) for name in CURVES}
    record["plateau"] = plateau_of(record, every)
    rows = read_jsonl(folder / "world" / "test.jsonl")
    problems = [read_problem(row["prompt"]) for row in rows]
    record["tables"] = {}
    record["p"] = {}
    for step in range(0, steps + 1, every):
        path = folder / "world" / "base" if step == 0 else folder / "run" / f"model_{step:06d}"
        model, _ = load(path)
        table = action_table(model, problems[: 8 if quick else 60], "cpu")
        record["tables"][str(step)] = {label: round(float(mean), 5) for label, (mean, _) in table.items()}
        if step in (0, record["plateau"], steps):
            p = probabilities(model, problems[: 4 if quick else 40])[SETTINGS.index(PAPER)]
            record["p"][str(step)] = [float(f"{value:.4g}") for value in p]
    return record


# ------------------------------------------------------------------------------------------------------------- measures
def turns(record):
    """{kind: training step at which P(one at a time) crosses 1/2}; the last step plus 1 if it does not."""
    steps = [int(step) for step in record["tables"]]
    found = {}
    for kind in KINDS:
        p = [table[f"P(one at a time) {WHERE[kind]}"] for table in record["tables"].values()]
        log_odds = [math.log(x / (1 - x)) for x in np.clip(p, 1e-6, 1 - 1e-6)]
        found[kind] = crossing(steps, log_odds)
    return found


def crossing(times, values):
    """Where a line through (times, values) first reaches 0: times[0] if it starts there, times[-1] + 1 if never."""
    if values[0] >= 0:
        return float(times[0])
    for i in range(1, len(values)):
        if values[i] >= 0:
            part = -values[i - 1] / (values[i] - values[i - 1])
            return float(times[i - 1] + part * (times[i] - times[i - 1]))
    return float(times[-1] + 1)


def stall(accuracy):
    """The most steps in a row, before its mean over five steps reaches 0.8, in which accuracy grows by below 0.05."""
    means = running_mean(accuracy)
    end = next((i for i, mean in enumerate(means) if mean >= 0.8), len(means))
    longest = 0
    for first in range(end):
        for last in range(first + longest, end):
            if means[last] - means[first] < 0.05:
                longest = max(longest, last - first)
    return longest


def slope(x, y):
    """Least-squares slope of log y over log x; nan for fewer than two points."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else math.nan


# ---------------------------------------------------------------------------------------------------------- predictions
def probs_and_rewards(table):
    """For each of KINDS, (P(guess), P(one at a time), P(two at once)) and P(right | action): two arrays (4, 3)."""
    probs = []
    rewards = []
    for kind in KINDS:
        guess = table[f"P(guess) {WHERE[kind]}"]
        one = table[f"P(one at a time) {WHERE[kind]}"]
        probs.append([guess, one, 1 - guess - one])
        two = RIGHT_AFTER_TWO_PRODUCT if kind == "?*" else RIGHT_AFTER_TWO
        rewards.append([table[RIGHT_AFTER_GUESS], table[RIGHT_AFTER_ONE], table[two]])
    return np.array(probs), np.array(rewards)


def predicted_turns(table, updates=UPDATES):
    """{kind: update at which P(one at a time) reaches 1/2} from the base's action_table; updates + 1 if never."""
    found = {}
    for kind, probs, rewards in zip(KINDS, *probs_and_rewards(table), strict=True):
        one = expected_flow(rewards, probs, updates, group_size=GROUP, lr=LR)[:, 1]  # (updates + 1,)
        found[kind] = int(np.argmax(one > 0.5)) if (one > 0.5).any() else updates + 1
    return found


def constant(result):
    """Training steps to an update: the geometric mean over kinds of the turn / the predicted turn of a Result."""
    ratios = [result.turns[kind] / result.predicted[kind] for kind in KINDS]
    return float(np.exp(np.mean(np.log(ratios))))


def share_in_order(result):
    """Of the pairs of kinds that turn at different times in both, the share in the predicted order; nan without one."""
    hits = []
    for i, kind in enumerate(KINDS):
        for other in KINDS[:i]:
            seen = result.turns[kind] - result.turns[other]
            predicted = result.predicted[kind] - result.predicted[other]
            if seen != 0 and predicted != 0:
                hits.append((seen > 0) == (predicted > 0))
    return float(np.mean(hits)) if hits else math.nan


def share_in_time(result, steps_per_update):
    """The share of the kinds that turn within a factor of two of the prediction."""
    ratios = [result.turns[kind] / (steps_per_update * result.predicted[kind]) for kind in KINDS]
    return float(np.mean([0.5 <= ratio <= 2 for ratio in ratios]))


# ------------------------------------------------------------------------------------------------------- claims, figure
class Result(NamedTuple):
    """A world's record and what follows from it."""

    p: float  # of one at a time where the second operation is *, base model
    turns: dict  # {kind: training step}
    predicted: dict  # {kind: update}
    stall: int  # training steps
    record: dict


def result_of(record, updates):
    """The Result of a record."""
    table = record["tables"]["0"]
    p = table[f"P(one at a time) {WHERE['?*']}"]
    return Result(p, turns(record), predicted_turns(table, updates), stall(record["accuracy"]), record)


def claims_of(results):
    """All claims, decided. results: {World: Result}; FITTED is among them."""
    steps_per_update = constant(results[FITTED])
    doses = {world: result for world, result in results.items() if world.everywhere is None}
    claims = []
    for shown in (False, True):
        name = "shown" if shown else "hidden"
        series = {}  # {seed: its results}
        for world, result in doses.items():
            if world.shown == shown:
                series.setdefault(world.seed, []).append(result)
        steps = []
        predicted = []
        for part in series.values():
            p = [result.p for result in part]
            steps.append(slope(p, [result.turns["?*"] for result in part]))
            predicted.append(slope(p, [result.predicted["?*"] for result in part]))
        claims.append(decide("B 3", "rarer is later (minus the slope)", name, [-x for x in steps], 0.1))
        more = [x - y for x, y in zip(steps, predicted, strict=True)]
        claims.append(decide("B 3 (ours)", "but less than in a bandit (difference of slopes)", name, more, 0.25))
    stalls = [10 - result.stall for world, result in results.items() if world.everywhere is not None]
    claims.append(decide("B 3", "without a rare best action no stall (10 minus its steps)", "controls", stalls))
    order = by_seed(doses, share_in_order)
    claims.append(decide("B 3 (ours)", "the kinds turn in the predicted order", "share", order, 0.25, above=0.5))
    in_time = by_seed(doses, lambda result: share_in_time(result, steps_per_update))
    claims.append(decide("B 3 (ours)", "and when it is predicted", "share", in_time, 0.25, above=0.5))
    return claims


def by_seed(doses, measure):
    """For each seed, the mean of a measure over its worlds but FITTED; nan is left out."""
    found = {}
    for world, result in doses.items():
        value = measure(result)
        if world != FITTED and math.isfinite(value):
            found.setdefault(world.seed, []).append(value)
    return [float(np.mean(values)) for values in found.values()]


def print_worlds(results):
    """A line for each world: P, turns, stall, what was predicted, the boundary."""
    steps_per_update = constant(results[FITTED])
    print("| world | P | turns at ?*, +?, -?, *? | predicted | stall | p = 0: base, plateau, end | pass@256 |")
    print("|---|---|---|---|---|---|---|")
    for world, result in results.items():
        cells = [str(world), f"{result.p:.4f}", ", ".join(f"{turn:.0f}" for turn in result.turns.values())]
        cells.append(", ".join(f"{steps_per_update * update:.0f}" for update in result.predicted.values()))
        cells.append(str(result.stall))
        p = [np.array(values) for values in result.record["p"].values()]
        cells.append(", ".join(str(int(np.sum(x == 0))) for x in p))
        cells.append(", ".join(f"{pass_at(x, 256):.2f}" for x in p))
        print(f"| {' | '.join(cells)} |")
    print()


def draw(path, results):
    """Left: when the rare action takes over, over how rare it is. Right: accuracy over training, a line a world."""
    steps_per_update = constant(results[FITTED])
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    doses = {world: result for world, result in results.items() if world.everywhere is None and not world.shown}
    for seed, marker in ((1, "o"), (2, "s"), (3, "^")):
        part = sorted((result.p, result.turns["?*"]) for world, result in doses.items() if world.seed == seed)
        if part:
            left.loglog(*zip(*part, strict=True), marker, color="tab:orange", label=f"language model {seed}")
    line = sorted((result.p, steps_per_update * result.predicted["?*"]) for result in doses.values())
    left.loglog(*zip(*line, strict=True), "--", color="black", label="predicted by a bandit")
    left.axhline(STEPS, color="lightgray", lw=1)
    left.set(xlabel="P(one at a time) where the second operation is *, before", ylabel="training step of passing 1/2")
    left.legend(fontsize=8)
    first_seed = sorted((result.p, world) for world, result in doses.items() if world.seed == 1)
    for i, (p, world) in enumerate(first_seed):
        shade = 0.25 + 0.75 * i / max(1, len(first_seed) - 1)
        means = running_mean(results[world].record["accuracy"])
        right.plot(range(1, len(means) + 1), means, color="tab:orange", alpha=shade, label=f"{p:.4f}")
    for world, result in results.items():
        if world.everywhere is not None:
            means = running_mean(result.record["accuracy"])
            right.plot(range(1, len(means) + 1), means, color="gray", ls="--", label=f"{world.everywhere:g} everywhere")
    right.set(xlabel="training step", ylabel="accuracy of sampled responses", ylim=(0, 1))
    right.legend(title="P(one at a time), before", fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle("The rarer the best action, the later it takes over", weight="bold")
    figure.savefig(path, dpi=92)


def main():
    args = arguments(__doc__)
    torch.set_num_threads(1)
    path = args.where / "doses.jsonl"
    (args.runs / "doses").mkdir(parents=True, exist_ok=True)
    jobs = {str(world): job_of(world, args) for world in worlds(args.quick)}
    first_of_seed = {}
    for world in worlds(args.quick):
        first_of_seed.setdefault(world.seed, str(world))
    run_all({name: jobs[name] for name in first_of_seed.values()}, records=path)  # these write the skilled models
    run_all(jobs, records=path)

    records = read_records(path)
    updates = 200 if args.quick else UPDATES
    results = {world: result_of(records[str(world)], updates) for world in worlds(args.quick)}
    print_worlds(results)
    finish(args, "doses", claims_of(results), draw, results)


if __name__ == "__main__":
    main()
