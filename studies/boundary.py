"""Does training shrink or expand what a model can solve, and when? Paper B, sections 3 and 4, tables 1 to 3.

256 responses to each of 40 test problems, counts kept, by every base model and by models of training.py (seed 2):
plateau and end of four algorithms, at temperature 1 and at the paper's 0.6 with top-p 0.95; of GRPO and GRPO-N also
eight checkpoints at temperature 1. On the plateau accuracy stalls while two at once is exploited. It is chosen from
training curves alone: the numbered checkpoint, not the last, with the most two at once (plateau_of in training.py).

The rule, written before the runs; unit, interval, verdict and Holm as in common.py. Its wording has changed since, its
meaning has not. A problem is solvable if at least 1 of 256 is right. Lost: solvable by the base model, not by the
trained one. Won: the other way round. Both are shares of the problems. Whether it is 0 or 1 of 256 is chance in part,
so the base model is sampled twice: what it loses against itself is the floor. A table prints how often it was right on
what was lost. 0.05 matters: 2 problems of 40. Above 0 if not said otherwise:
  early training shrinks   pass@256 of the base model minus the plateau's (lost minus won): section 3, remark 3, "may"
  some are lost early      share lost at the plateau minus the floor (ours)
  more training expands    pass@256 at the end minus the plateau's: remark 4, with "may"
  competitive at k = 1     pass@1 at the end minus GRPO's at the paper's setting, above -0.02 (tables 1 to 3)
  more answer entropy      at the end minus GRPO's, at the paper's setting, in nats; 0.1 matters. Table 4: -N variants
                           above GRPO, GSPO below it. Table 4 must be in bits, as it has 6.06 where 256 samples cannot
                           exceed ln 256 = 5.55 nats: GRPO's loss on AMC23, 0.9 of 2.6, is 0.62 of 1.78 nats
Nearly guaranteed by construction, and no claim: trained models win at k = 1. A model that is right every second time
has pass@256 = 1: if training succeeds at all, the end is above a base model of 0.6 to 0.85, and two such ends do not
differ. So the paper's text ("for every value of k"; true in table 1, but in tables 2 and 3 GRPO-N ends below the base
model: Llama 92.5 to 100, MATH-500 72.2 to 88.0) cannot be put to the test here; the table has the numbers.

Added after the runs. Printed only: the early loss at 0.6/0.95 against the base model's second sample. A row:
  the decoder's loss       change of pass@256 from the base model to the plateau at temperature 1 minus that at
                           0.6/0.95, same checkpoints and problems, both samples of the base model pooled. 0.05 matters

Expected before the runs: with 40 problems of which a tenth change sides, five models can decide 0.1, but not 0.05.

    python studies/boundary.py            # 70 minutes on two cores, after training.py
    python studies/boundary.py --quick    # 4 samples, models of two steps
"""

import functools
from typing import NamedTuple

import numpy as np
from common import (
    Job,
    Run,
    arguments,
    base_folder,
    decide,
    finish,
    interval,
    make_bases,
    read_json,
    read_records,
    rounded,
    run_all,
)
from matplotlib.figure import Figure
from training import NAMES, QUICK_ARMS, SEEDS, STYLES, RunKey, folder_of, plateau_of, run_keys, run_missing


# ------------------------------------------------------------------------------------------------------------- settings
class Setting(NamedTuple):
    """How responses are sampled."""

    temperature: float
    top_p: float

    def __str__(self):
        return f"{self.temperature:g}/{self.top_p:g}"


class Size(NamedTuple):
    """How much is sampled, of which models."""

    samples: int  # responses to a problem
    problems: int
    checkpoint_every: int  # steps between the numbered models of a run
    last: int  # the last of these


FULL_SOFTMAX = Setting(1.0, 1.0)
PAPER = Setting(0.6, 0.95)
SETTINGS = (FULL_SOFTMAX, PAPER)
FULL_SIZE = Size(samples=256, problems=40, checkpoint_every=10, last=100)
QUICK_SIZE = Size(samples=4, problems=4, checkpoint_every=1, last=2)
ARMS = ("grpo", "grpo-n", "gspo", "gspo-n")  # of training.py
TRACKED = ("grpo", "grpo-n")  # of these, more checkpoints
CHECKPOINTS = (10, 20, 30, 40, 50, 60, 80, 100)
AGAIN = -1  # the "step" of a base model's second sample; that of its first is 0


class ModelKey(NamedTuple):
    """A model at a setting."""

    arm: str  # or "base"
    base: int
    step: int  # of training; a base model's: 0 or AGAIN
    setting: Setting


# ----------------------------------------------------------------------------------------------------------------- jobs
def model_keys(args, arms, plateaus, size):
    """All models that are sampled, a list of ModelKey. plateaus: {(arm, base): step}."""
    keys = []
    for base in args.bases:
        for step in (0, AGAIN):
            for setting in SETTINGS:
                keys.append(ModelKey("base", base, step, setting))
    for (arm, base), plateau in plateaus.items():
        for step in (plateau, size.last):
            for setting in SETTINGS:
                keys.append(ModelKey(arm, base, step, setting))
        if arm in TRACKED and not args.quick:
            for step in CHECKPOINTS:
                keys.append(ModelKey(arm, base, step, FULL_SOFTMAX))
    return list(dict.fromkeys(keys))  # plateau and end are checkpoints, too


def model_name(key):
    """ModelKey("base", 1, AGAIN, PAPER) -> "base-1-again-t0.6", the name of its record."""
    step = "again" if key.step == AGAIN else key.step
    return f"{key.arm}-{key.base}-{step}-t{key.setting.temperature:g}"


def model_job(key, args, size):
    """The Job that samples from a model."""
    data = base_folder(key.base, args.quick)
    if key.arm == "base":
        model = data / "base"
    else:
        model = folder_of("grpo_n", RunKey(key.arm, key.base, SEEDS[0]), args) / f"model_{key.step:06d}"
    seed = 2 if key.step == AGAIN else 1
    flags = f"--steps 0 --kl-coef 0 --eval-problems 1 --gen-batch 64 --seed {seed} --model {model}"
    flags += f" --passk-temperature {key.setting.temperature} --passk-top-p {key.setting.top_p}"
    flags += f" --passk-samples {size.samples} --passk-problems {size.problems}"
    flags += f" --train {data}/test.jsonl --test {data}/test.jsonl"
    folder = args.runs / "boundary" / model_name(key)
    run = Run(f"grpo_n.py {flags}", folder, "passk.json")
    return Job([run], functools.partial(model_summary, folder, size.samples))


def model_summary(folder, samples):
    """The record of a model at a setting: how many of its responses to each problem were right; entropies, in nats."""
    (problems,) = read_json(folder / "passk.json")["models"].values()  # of one model
    return {
        "samples": samples,
        "right": [problem["right"] for problem in problems],
        "answer_entropy": rounded(problem["answer_entropy"] for problem in problems),
        "token_entropy": rounded(problem["token_entropy"] for problem in problems),
    }


# ------------------------------------------------------------------------------------------------------------- measures
def lost_and_won(base, model):
    """(share lost, share won, the base model's counts of what was lost) of two lists of counts, a problem each."""
    base = np.array(base)
    model = np.array(model)
    lost = (base > 0) & (model == 0)
    won = (base == 0) & (model > 0)
    return float(lost.mean()), float(won.mean()), base[lost].tolist()


def measures(record, base):
    """The measures of a model, a dict. base: the record of its base model's first sample at that setting."""
    right = np.array(record["right"])
    lost, won, lost_counts = lost_and_won(base["right"], record["right"])
    return {
        "pass@1": float(right.mean()) / record["samples"],
        "solved": float((right > 0).mean()),  # pass@k with all samples, k = 256
        "answer entropy": float(np.mean(record["answer_entropy"])),
        "lost": lost,
        "won": won,
        "lost counts": lost_counts,  # how many responses of the base model were right
    }


def over_bases(found, measure, arm, steps, setting):
    """A measure of an arm's models, one for each base model: array (bases,).

    found: {ModelKey: measures}. steps: {base: step}.
    """
    return np.array([found[ModelKey(arm, base, step, setting)][measure] for base, step in steps.items()])


def early_change(found, arm, plateau, setting):
    """pass@k on the plateau minus that of the base model's two samples: array (bases,). plateau: {base: step}."""
    first = over_bases(found, "solved", "base", dict.fromkeys(plateau, 0), setting)
    again = over_bases(found, "solved", "base", dict.fromkeys(plateau, AGAIN), setting)
    return over_bases(found, "solved", arm, plateau, setting) - (first + again) / 2


def lost_to_the_decoder(records, arm, plateau):
    """(how many problems a sample of the base model solves and the plateau does not, at the paper's setting, how many
    of these the plateau solves at temperature 1). records: {name: record}. plateau: {base: step}.
    """
    n_lost = 0
    n_solved = 0
    for base, step in plateau.items():
        first = np.array(records[model_name(ModelKey("base", base, 0, PAPER))]["right"])
        again = np.array(records[model_name(ModelKey("base", base, AGAIN, PAPER))]["right"])
        on_plateau = np.array(records[model_name(ModelKey(arm, base, step, PAPER))]["right"])
        full_softmax = np.array(records[model_name(ModelKey(arm, base, step, FULL_SOFTMAX))]["right"])
        lost = (first + again > 0) & (on_plateau == 0)
        n_lost += int(lost.sum())
        n_solved += int((lost & (full_softmax > 0)).sum())
    return n_lost, n_solved


def print_table(found, samples):
    """Print the measures of every model as a Markdown table. found: {ModelKey: measures}."""
    print(f"\n| model | pass@1 | pass@{samples} | lost | won | right by the base model, of the lost |")
    print("|---|---|---|---|---|---|")
    for key, row in found.items():
        model = f"{key.arm}, model {key.base}, step {key.step}, {key.setting}"
        shares = f"{row['pass@1']:.3f} | {row['solved']:.3f} | {row['lost']:.3f} | {row['won']:.3f}"
        print(f"| {model} | {shares} | {row['lost counts']} |")


# --------------------------------------------------------------------------------------------------------------- claims
def claims_of(found, bases, arms, plateaus, size):
    """All claims, decided. found: {ModelKey: measures}."""
    start = dict.fromkeys(bases, 0)
    again = dict.fromkeys(bases, AGAIN)
    end = dict.fromkeys(bases, size.last)
    claims = []
    for setting in SETTINGS:
        for arm in arms:
            line = f"{NAMES[arm]}, {setting}"
            plateau = {base: plateaus[arm, base] for base in bases}
            solved_at_start = over_bases(found, "solved", "base", start, setting)
            solved_on_plateau = over_bases(found, "solved", arm, plateau, setting)
            solved_at_end = over_bases(found, "solved", arm, end, setting)
            lost = over_bases(found, "lost", arm, plateau, setting)
            floor = over_bases(found, "lost", "base", again, setting)
            text = f"early training shrinks pass@{size.samples}"
            claims.append(decide("B 3, remark 3", text, line, solved_at_start - solved_on_plateau, 0.05))
            text = "some problems are lost early (share, minus floor)"
            claims.append(decide("B 3 (ours)", text, line, lost - floor, 0.05))
            text = f"more training expands pass@{size.samples} again"
            claims.append(decide("B 3, remark 4", text, line, solved_at_end - solved_on_plateau, 0.05))
    for arm in arms:
        if arm == "grpo":
            continue
        pass_1 = over_bases(found, "pass@1", arm, end, PAPER) - over_bases(found, "pass@1", "grpo", end, PAPER)
        text = f"at most 0.02 less accurate than GRPO, {PAPER}"
        claims.append(decide("B 4, tables 1-3", text, NAMES[arm], pass_1, above=-0.02))
        entropy = over_bases(found, "answer entropy", arm, end, PAPER)
        entropy_of_grpo = over_bases(found, "answer entropy", "grpo", end, PAPER)
        if arm == "gspo":
            text = f"less answer entropy than GRPO, {PAPER} (nats)"
            effect = entropy_of_grpo - entropy
        else:
            text = f"more answer entropy than GRPO, {PAPER} (nats)"
            effect = entropy - entropy_of_grpo
        claims.append(decide("B 4, table 4", text, NAMES[arm], effect, 0.1))
    for arm in arms:
        plateau = {base: plateaus[arm, base] for base in bases}
        difference = early_change(found, arm, plateau, FULL_SOFTMAX) - early_change(found, arm, plateau, PAPER)
        text = f"the early loss is the decoder's (change at {FULL_SOFTMAX} minus {PAPER})"
        claims.append(decide("(ours, added)", text, NAMES[arm], difference, 0.05, added=True))
    return claims


# --------------------------------------------------------------------------------------------------------------- figure
def draw(path, found, bases, arms, plateaus, last):
    """Solvable problems over training; shares lost and won at plateau and end at both settings."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.25))
    above = figure.add_subplot(grid[0, :])
    left = figure.add_subplot(grid[1, 0])
    right = figure.add_subplot(grid[1, 1], sharex=left, sharey=left)
    for arm in [arm for arm in arms if arm in TRACKED]:
        steps = [0]
        for step in sorted({*CHECKPOINTS, last}):
            if ModelKey(arm, bases[0], step, FULL_SOFTMAX) in found:
                steps.append(step)
        solved = []  # (bases, steps)
        for base in bases:
            keys = [ModelKey("base", base, 0, FULL_SOFTMAX)]
            keys += [ModelKey(arm, base, step, FULL_SOFTMAX) for step in steps[1:]]
            solved.append([found[key]["solved"] for key in keys])
        color, _ = STYLES[arm]
        above.plot(steps, np.transpose(solved), color=color, lw=0.7, alpha=0.5)
        above.plot(steps, np.mean(solved, 0), "o-", color=color, label=f"{NAMES[arm]}, mean of five models")
    title = "Problems solved with 256 responses, temperature 1, top-p 1 (thin: one model)"
    above.set(title=title, xlabel="training step", ylabel="share of problems", ylim=(0.5, 1.02))
    above.grid(alpha=0.3)
    above.legend()

    for axis, setting in zip((left, right), SETTINGS, strict=True):
        bars = {"base model again": [ModelKey("base", base, AGAIN, setting) for base in bases]}
        for arm in arms:
            bars[f"{NAMES[arm]}, plateau"] = [ModelKey(arm, base, plateaus[arm, base], setting) for base in bases]
            bars[f"{NAMES[arm]}, end"] = [ModelKey(arm, base, last, setting) for base in bases]
        for y, keys in enumerate(bars.values()):
            shares = np.array([[-found[key]["lost"], found[key]["won"]] for key in keys])  # (bases, 2)
            axis.barh([y, y], shares.mean(0), color=["tab:gray", "tab:red"])
            axis.plot(shares, np.full_like(shares, y), "k.", ms=3)
            axis.plot(shares.sum(1).mean(), y, "wD", mec="k", ms=5)
        axis.set_yticks(range(len(bars)), list(bars), fontsize=9)
        axis.set(title=f"temperature {setting.temperature:g}, top-p {setting.top_p:g}")
        axis.grid(alpha=0.3, axis="x")
    left.invert_yaxis()
    right.tick_params(labelleft=False)
    label = "share of problems that only the base model solves (gray, left) or only the trained one (red, right)"
    figure.supxlabel(f"{label}\ndots: models; diamond: red minus gray", fontsize=9.5)
    title = "Problems that GRPO loses and wins, at two sampling settings"
    figure.suptitle(title, weight="bold")
    figure.savefig(path, dpi=92)


def main():
    args = arguments(__doc__)
    arms = ARMS
    size = FULL_SIZE
    if args.quick:
        arms = QUICK_ARMS["grpo_n"]
        size = QUICK_SIZE

    # ---- the models of training.py, and their plateaus
    plateaus = {}
    for run, record in run_missing("grpo_n", run_keys("grpo_n", args, arms), args).items():
        plateaus[run.arm, run.base] = plateau_of(record, size.checkpoint_every)

    # ---- sample
    path = args.where / "boundary.jsonl"
    keys = model_keys(args, arms, plateaus, size)
    make_bases(args, path, [model_name(key) for key in keys])
    run_all({model_name(key): model_job(key, args, size) for key in keys}, records=path)

    # ---- measure and decide
    records = read_records(path)
    found = {}
    for key in keys:
        first_sample = records[model_name(ModelKey("base", key.base, 0, key.setting))]
        found[key] = measures(records[model_name(key)], first_sample)
    print_table(found, size.samples)
    plateau_of_grpo = {base: plateaus["grpo", base] for base in args.bases}
    solved_again = over_bases(found, "solved", "base", dict.fromkeys(args.bases, AGAIN), PAPER)
    mean, half_width = interval(solved_again - over_bases(found, "solved", "grpo", plateau_of_grpo, PAPER))
    print(f"\nearly loss of GRPO at {PAPER}, base model sampled again: {mean:+.3f} ± {half_width:.3f}")
    for setting in SETTINGS:
        mean, half_width = interval(early_change(found, "grpo", plateau_of_grpo, setting))
        print(f"early change of GRPO at {setting}, both samples of the base model: {mean:+.3f} ± {half_width:.3f}")
    n_lost, n_solved = lost_to_the_decoder(records, "grpo", plateau_of_grpo)
    print(f"of {n_lost} problems that GRPO loses early at {PAPER}, it solves {n_solved} at {FULL_SOFTMAX}\n")
    claims = claims_of(found, args.bases, arms, plateaus, size)
    finish(args, "boundary", claims, draw, found, args.bases, arms, plateaus, size.last)


if __name__ == "__main__":
    main()
