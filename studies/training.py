"""Training, decided over five models: reweighting and filtering (paper A), learning from mistakes alone (paper B).

`dapo` trains `dapo.py` with four weightings (alpha 0.2) and with three values of top-p in the rollouts. `grpo_n` trains
`grpo_n.py` with four algorithms at one rate, paper B's clip 0.2, entropy bonus 1e-4 and four updates a rollout, and
with one thing changed: no bonus, GSPO's own narrow clip, eight updates. 100 steps each, all on the same five base
models.

The rule, written before the runs; unit, interval, verdict and Holm as in common.py, for each of the two separately. Its
wording has changed since, its meaning has not.
  steps to 0.3, 0.6, 0.8   the first step at which the running mean over five steps of the accuracy of training rollouts
                           is there; a run that never is counts as steps + 1, so that differences are cut. 10 matter: a
                           tenth of the run. Not for top-p: its rollouts are another distribution
  accuracy at the end      of the last model, 150 test problems, 4 samples, full softmax. 0.02 matters: smaller gains no
                           table of the papers calls one. For arms of dapo.py also at top-p 0.7: most errors of a
                           finished model come from the tail of the distribution, which rollouts at top-p never saw
  entropy, length          log of the value over the base model's on test problems, at the end and at the middle of the
                           five steps at which the training accuracy reaches 0.6 (interpolated between evaluations; a
                           run that never does is left out). 0.1 matters, 10%; for lengths 0.03, two tokens of 68
  entropy rises again      log of the entropy at the end over its lowest evaluation: above 0.05, as the lowest of eleven
                           noisy numbers lies below the last by construction; 0.05 more matters
  competitive              steps to 0.6, GRPO's minus its own, above -10; accuracy at the end minus GRPO's, above -0.02.
                           All at one rate, GRPO's own being four times as high, and after 100 steps, where accuracy
                           may still rise by 0.005 a step: the first decides
  two stages               how often a rollout has two at once (running mean): log of the highest over the start, and
                           over the end, above log 1.25, as the highest of noisy numbers exceeds both by some percent.
                           One at a time: growth in log in the n steps after that step minus growth in the n before it,
                           n as large as the run allows. All relative to the start
  longer problems          gain over the base model on long.jsonl (16 operations; training has 4 to 12), above 0.05; and
                           as a share of the gain on test problems, above 0.5
Nearly guaranteed by construction, and no claim: accuracy ends above the base model's; top-p 0.95 excludes a token that
likelier ones of 0.95 precede, and the best action starts at 0.003 to 0.08; one at a time grows more in the 80 steps
after that peak than in the 20 before.
Amended when the five runs of none, seed 2, were there and no other: the middle of the five steps (it was the last),
top-p 0.7 for all arms of dapo.py, the equal n of one at a time, and no difference in steps where neither arm arrives.

Expected before the runs, from pilots: five models can decide 9, 11 and 24 steps to 0.3, 0.6 and 0.8, and 0.028 of
accuracy. A second training seed of four arms was planned. It was cut for time when 43 of 80 runs were recorded (23 and
20), some of them looked at, and no verdict was there. So the spread over models is that of model and seed together.

The plateau is the part of a run in which accuracy stalls while two at once is exploited. Rate and mini-batch of
grpo_n.py are from pilots (base model 1, seed 101): at two updates a rollout GRPO-N leaves the plateau only after step
100, at four it is right 0.73 of the time there.

    python studies/training.py            # 6 hours on two cores; goes on where it was interrupted
    python studies/training.py --quick    # five arms of two steps: to see that it works
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from common import (
    Job,
    Run,
    arguments,
    base_folder,
    decide,
    difference,
    finish,
    make_bases,
    read_json,
    read_jsonl,
    read_records,
    rounded,
    run_all,
)
from compare import draw

# ------------------------------------------------------------------------------------------------------------- settings
GRPO_N_FLAGS = "--lr 1e-4 --mini-batch 4 --passk-samples 0"  # by studies/grpo_n_lr.py the -N variants tolerate no more
ARMS = {  # of each script, and its flags
    "dapo": {
        "none": "--reweight none",
        "low-prob": "--reweight low-prob",
        "dominate": "--reweight dominate",
        "ppl": "--reweight ppl",
        "top-p 0.95": "--rollout-top-p 0.95",
        "top-p 0.9": "--rollout-top-p 0.9",
        "top-p 0.7": "--rollout-top-p 0.7",
    },
    "grpo_n": {
        "grpo": "--algorithm grpo",
        "grpo-n": "--algorithm grpo-n",
        "gspo": "--algorithm gspo",
        "gspo-n": "--algorithm gspo-n",
        "grpo, no bonus": "--algorithm grpo --entropy-coef 0",
        "grpo-n, no bonus": "--algorithm grpo-n --entropy-coef 0",
        "grpo, 8 updates": "--algorithm grpo --mini-batch 2",
        "grpo-n, 8 updates": "--algorithm grpo-n --mini-batch 2",
        "gspo, narrow clip": "--algorithm gspo --eps-low 3e-4 --eps-high 4e-4",
    },
}
QUICK_ARMS = {"dapo": ("none", "low-prob", "top-p 0.7"), "grpo_n": ("grpo", "grpo-n")}
TOP_P_ARMS = ("top-p 0.95", "top-p 0.9", "top-p 0.7")
NAMES = {  # of arms in tables and figures; others have their own
    "none": "DAPO",
    "dominate": "Dominate",
    "ppl": "PPL",
    "grpo": "GRPO",
    "grpo-n": "GRPO-N",
    "gspo": "GSPO",
    "gspo-n": "GSPO-N",
    "grpo, no bonus": "GRPO, no bonus",
    "grpo-n, no bonus": "GRPO-N, no bonus",
    "grpo, 8 updates": "GRPO, 8 updates",
    "grpo-n, 8 updates": "GRPO-N, 8 updates",
    "gspo, narrow clip": "GSPO, narrow clip",
}
SEEDS = (2,)  # of training
STEPS = 100
N_TEST = 150  # problems at the end, and the longer ones
N_LONG = 100
SAMPLES = 4  # responses to each of them
LEVELS = (0.3, 0.6, 0.8)  # accuracies that a run reaches
MATCHED = 0.6  # where runs are compared at equal accuracy
CURVES = (  # of metrics.jsonl; None where a script does not log one
    "accuracy",
    "entropy",
    "length",
    "one_at_a_time",
    "two_at_once",
    "guess",
    "clip_low",
    "clip_high",
    "truncated",
    "active",
    "kl_ref",
    "prompts_sampled",
)
EVALUATIONS = {  # name in a record: names in metrics.jsonl, dapo.py's and grpo_n.py's
    "accuracy": ("test/accuracy", "test/pass@1"),
    "entropy": ("test/entropy", "test/token_entropy"),
    "length": ("test/length",),
}


class RunKey(NamedTuple):
    """Which run of a script. A base model, which is evaluated only, is RunKey("base", base, 0)."""

    arm: str
    base: int  # pre-training seed
    seed: int  # of training


# ----------------------------------------------------------------------------------------------------------------- jobs
def run_keys(script, args, arms=None):
    """The runs of a script, a list of RunKey. arms: of these alone, without the base models; default: of all."""
    with_bases = arms is None
    if arms is None:
        arms = QUICK_ARMS[script] if args.quick else ARMS[script]
    keys = [RunKey(arm, base, seed) for seed, base, arm in itertools.product(SEEDS, args.bases, arms)]
    if with_bases:
        keys += [RunKey("base", base, 0) for base in args.bases]
    return keys


def folder_of(script, key, args):
    """The folder of a run."""
    if key.arm == "base":
        return args.runs / run_name(key)
    return args.runs / script / run_name(key)


def run_name(key):
    """RunKey("gspo, narrow clip", 1, 2) -> "gspo-narrow-clip-1-2", the name of its record."""
    if key.arm == "base":
        return f"base-{key.base}"
    arm = key.arm.replace(", ", "-").replace(" ", "-")
    return f"{arm}-{key.base}-{key.seed}"


def training_command(script, key, args):
    """Script and flags of a run."""
    flags = ARMS[script][key.arm]
    if script == "grpo_n":
        flags = f"{GRPO_N_FLAGS} {flags}"
    if args.quick:
        flags += " --steps 2 --prompts-per-step 2 --mini-batch 2 --gen-batch 4"
        flags += " --eval-every 1 --save-every 1 --eval-problems 4"
    else:
        flags += f" --steps {STEPS} --eval-every 10 --save-every 10 --eval-problems 100"
    data = base_folder(key.base, args.quick)
    files = f"--model {data}/base --train {data}/train.jsonl --test {data}/test.jsonl"
    return f"{script}.py {flags} --eval-samples 2 --seed {key.seed} {files}"


def final_problems(base, args):
    """The file with the test and then the long problems that models made of a base model answer at the end."""
    path = args.runs / f"problems-{base}.jsonl"
    if not path.exists():
        data = base_folder(base, args.quick)
        n_test = 6 if args.quick else N_TEST
        n_long = 4 if args.quick else N_LONG
        test = (data / "test.jsonl").read_text().splitlines()[:n_test]
        long = (data / "long.jsonl").read_text().splitlines()[:n_long]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(test + long) + "\n")
    return path


def final_run(model, base, folder, top_p, args):
    """The run of grpo_n.py that counts a model's right responses to the problems of final_problems."""
    problems = final_problems(base, args)
    flags = f"--steps 0 --kl-coef 0 --eval-problems 1 --max-response 192 --gen-batch 128 --passk-samples {SAMPLES}"
    command = f"grpo_n.py --model {model} --train {problems} --test {problems} {flags} --passk-problems 0"
    return Run(f"{command} --passk-top-p {top_p}", folder, "passk.json")


def training_job(script, key, args):
    """The Job of a run: train, then count right responses; for dapo.py at top-p 0.7, too."""
    folder = folder_of(script, key, args)
    model = folder / "model"
    end = folder.with_name(f"{folder.name}-end")
    runs = [
        Run(training_command(script, key, args), folder, "model/tokenizer_config.json"),
        final_run(model, key.base, end, 1.0, args),
    ]
    end_at_top_p = None
    if script == "dapo":
        end_at_top_p = folder.with_name(f"{folder.name}-end-0.7")
        runs.append(final_run(model, key.base, end_at_top_p, 0.7, args))
    return Job(runs, functools.partial(run_summary, folder, end, end_at_top_p))


def base_job(script, key, args):
    """The Job of a base model: count its right responses."""
    folder = folder_of(script, key, args)
    run = final_run(base_folder(key.base, args.quick) / "base", key.base, folder, 1.0, args)
    return Job([run], functools.partial(base_summary, folder))


def jobs_of(script, keys, args):
    """{name of the record: Job} of runs, None where the record is there. Makes the base models if one is missing."""
    path = args.where / f"{script}.jsonl"
    make_bases(args, path, [run_name(key) for key in keys])
    recorded = read_records(path)
    jobs = {}
    for key in keys:
        name = run_name(key)
        if name in recorded:
            jobs[name] = None  # nothing to do, and perhaps no base model to do it with
        elif key.arm == "base":
            jobs[name] = base_job(script, key, args)
        else:
            jobs[name] = training_job(script, key, args)
    return jobs


def run_missing(script, keys, args):
    """Do the runs that have no record; {RunKey: record} of all."""
    path = args.where / f"{script}.jsonl"
    run_all(jobs_of(script, keys, args), records=path)
    records = read_records(path)
    return {key: records[run_name(key)] for key in keys}


# -------------------------------------------------------------------------------------------------------------- records
def final_counts(folder):
    """Right responses to each test problem and to each long one, at the end; means over the test problems."""
    (problems,) = read_json(folder / "passk.json")["models"].values()  # of one model
    n_test = round(len(problems) * N_TEST / (N_TEST + N_LONG))
    test = problems[:n_test]
    long = problems[n_test:]
    return {
        "samples": SAMPLES,
        "test": [problem["right"] for problem in test],
        "long": [problem["right"] for problem in long],
        "length": round(float(np.mean([problem["length"] for problem in test])), 5),
        "token_entropy": round(float(np.mean([problem["token_entropy"] for problem in test])), 5),
    }


def base_summary(folder):
    """The record of a base model."""
    return {"end": final_counts(folder)}


def run_summary(folder, end, end_at_top_p):
    """The record of a run: its curves over steps, its evaluations, the counts at the end. Folders, the last or None."""
    metrics = read_jsonl(folder / "metrics.jsonl")
    training = metrics[1:]  # step 0 only evaluates
    record = {name: rounded(row.get(name) for row in training) for name in CURVES}
    tests = [row for row in metrics if "test/length" in row]
    evaluations = {"step": [row["step"] for row in tests]}
    for name, keys in EVALUATIONS.items():
        (key,) = [key for key in keys if key in tests[0]]
        evaluations[name] = rounded(row[key] for row in tests)
    for name in ("greedy", "answer_entropy"):  # of grpo_n.py
        evaluations[name] = rounded(row.get(f"test/{name}") for row in tests)
    record["evaluations"] = evaluations
    record["end"] = final_counts(end)
    if end_at_top_p is not None:
        record["end at top-p 0.7"] = final_counts(end_at_top_p)
    return record


# ------------------------------------------------------------------------------------------------------------- measures
def running_mean(x, window=5):
    """Mean of the last `window` values, or of as many as there are: (T,) -> (T,)."""
    sums = np.cumsum([0.0, *x])
    means = []
    for i in range(1, len(x) + 1):
        start = max(0, i - window)
        means.append((sums[i] - sums[start]) / (i - start))
    return np.array(means)


def steps_to_reach(accuracy, level, window=5):
    """The first step, from 1, at which the mean of `window` steps is at least `level`; steps + 1 if none is."""
    means = running_mean(accuracy, window)
    for step in range(window, len(accuracy) + 1):
        if means[step - 1] >= level:
            return step
    return len(accuracy) + 1


def plateau_of(record, every=10):
    """The numbered checkpoint, not the last, at which two at once is most frequent: from training curves alone."""
    means = running_mean(record["two_at_once"])
    return max(range(every, len(means), every), key=lambda step: means[step - 1])


def half_of(record, every=10):
    """The first numbered checkpoint, not the last, at which the training accuracy (running mean) is half: 0.5."""
    reached = steps_to_reach(record["accuracy"], 0.5, min(5, every))
    checkpoint = math.ceil(reached / every) * every
    last = (len(record["accuracy"]) - 1) // every * every
    return min(last, checkpoint)


def share_right(counts, problems):
    """Share of right responses; counts: see final_counts; problems: "test" or "long"."""
    return np.mean(counts[problems]) / counts["samples"]


def stage_measures(record):
    """The two stages: {measure: number}, all in log."""
    one = running_mean(record["one_at_a_time"]) + 1e-3  # in a response; 1e-3, as 0 has no logarithm
    two = running_mean(record["two_at_once"]) + 1e-3
    start = min(4, len(two) - 1)  # the first mean of five steps
    peak = 0
    if len(two) > 4:
        peak = int(two[4:].argmax()) + 4
    n = min(peak - start, len(one) - 1 - peak)
    return {
        "log two at once, highest over start": math.log(two[peak] / two[start]),
        "log two at once, highest over end": math.log(two[peak] / two[-1]),
        "growth after minus before": math.log(one[peak + n] * one[peak - n] / one[peak] ** 2),
    }


def measures(record, base):
    """{measure: number} of a run; `base`: the record of its base model. nan where a run has no such number."""
    end = record["end"]
    evaluations = record["evaluations"]
    found = {}
    for level in LEVELS:
        found[f"steps to {level}"] = steps_to_reach(record["accuracy"], level)
    gain = share_right(end, "test") - share_right(base["end"], "test")
    long_gain = share_right(end, "long") - share_right(base["end"], "long")
    found["accuracy at the end"] = share_right(end, "test")
    found["gain on long problems"] = long_gain
    found["share of the gain carried"] = long_gain / gain if gain > 0.05 else math.nan
    if "end at top-p 0.7" in record:
        found["accuracy at the end, top-p 0.7"] = share_right(record["end at top-p 0.7"], "test")

    reached = found[f"steps to {MATCHED}"]
    middle = reached - 3  # the middle of the five policies that sampled those five steps
    for name, final_name in (("entropy", "token_entropy"), ("length", "length")):
        found[f"log {name} at the end"] = math.log(end[final_name] / base["end"][final_name])
        found[f"log {name} at accuracy {MATCHED}"] = math.nan
        if reached <= len(record["accuracy"]):
            value = np.interp(middle, evaluations["step"], evaluations[name])
            found[f"log {name} at accuracy {MATCHED}"] = math.log(value / evaluations[name][0])
    found["log entropy over its lowest"] = math.log(evaluations["entropy"][-1] / min(evaluations["entropy"]))
    return {**found, **stage_measures(record)}


# --------------------------------------------------------------------------------------------------------------- claims
class Claim(NamedTuple):
    """That `more` exceeds `less`, or 0, in a measure by more than `above`. For steps: that it takes fewer."""

    paper: str
    text: str
    line: str  # what tells it from other claims of the same text
    measure: str
    more: str  # an arm
    less: str | None = None  # another; None: 0
    matters: float = 0.0
    above: float = 0.0
    is_below: bool = False  # that it is below 0


ACCURACY = "accuracy at the end"
ACCURACY_TOP_P = f"{ACCURACY}, top-p 0.7"
STEPS_TO_MATCHED = f"steps to {MATCHED}"
ENTROPY = "log entropy at the end"
ENTROPY_MATCHED = f"log entropy at accuracy {MATCHED}"
OVER_LOWEST = "log entropy over its lowest"


def dapo_claims():
    """The claims about dapo.py's arms: a list of Claim."""
    claims = []
    for other in ("none", "dominate", "ppl"):
        for level in (0.6, 0.8):
            text = "low-prob is faster (steps)"
            line = f"than {NAMES[other]}, to {level}"
            claims.append(Claim("A 4.2 (ours)", text, line, f"steps to {level}", "low-prob", other, matters=10))
        for measure in (ACCURACY, ACCURACY_TOP_P):
            text = "low-prob is more accurate"
            line = f"than {NAMES[other]}"
            if measure == ACCURACY_TOP_P:
                line += ", top-p 0.7"
            claims.append(Claim("A 4.2, fig. 5a", text, line, measure, "low-prob", other, matters=0.02))
    for at in ("at the end", f"at accuracy {MATCHED}"):
        entropy = f"log entropy {at}"
        length = f"log length {at}"
        text = "low-prob keeps more entropy than DAPO"
        claims.append(Claim("(ours)", text, at, entropy, "low-prob", "none", matters=0.1))
        text = "Dominate keeps less entropy than DAPO"
        claims.append(Claim("A 4.2, fig. 5b", text, at, entropy, "none", "dominate", matters=0.1))
        text = "low-prob answers longer than DAPO"
        claims.append(Claim("A 4.2, fig. 5c", text, at, length, "low-prob", "none", matters=0.03))
    text = "low-prob's entropy rises again"
    line = "end over lowest"
    claims.append(Claim("A 4.2, fig. 5b", text, line, OVER_LOWEST, "low-prob", matters=0.05, above=0.05))
    for measure in (ACCURACY, ACCURACY_TOP_P):
        suffix = ", tested at 0.7" if measure == ACCURACY_TOP_P else ""
        for arm in TOP_P_ARMS:
            text = "filtered rollouts cost accuracy"
            claims.append(Claim("A 3.3, fig. 3c", text, f"{arm}{suffix}", measure, "none", arm, matters=0.02))
        for larger, smaller in itertools.pairwise(TOP_P_ARMS):
            text = "the more they are filtered, the more"
            line = f"{smaller} than {larger}{suffix}".replace("top-p ", "")
            claims.append(Claim("A 3.3, fig. 3c", text, line, measure, larger, smaller, matters=0.02))
    return claims


def grpo_n_claims():
    """The claims about grpo_n.py's arms: a list of Claim."""
    more_entropy = "more entropy than GRPO, at the end"
    more_entropy_matched = f"more entropy than GRPO, at accuracy {MATCHED}"
    accurate = "at most 0.02 less accurate than GRPO"
    fast = f"at most 10 steps later than GRPO to {MATCHED}"
    in_table = "B 4, tables 1-3"
    in_figure = "B 4, fig. 2"
    in_both = "B 4, fig. 2, table 4"
    claims = []
    for arm in ("grpo-n", "gspo", "gspo-n"):
        name = NAMES[arm]
        claims.append(Claim(in_both, more_entropy, name, ENTROPY, arm, "grpo", matters=0.1))
        claims.append(Claim("(ours)", more_entropy_matched, name, ENTROPY_MATCHED, arm, "grpo", matters=0.1))
        claims.append(Claim(in_table, accurate, name, ACCURACY, arm, "grpo", above=-0.02))
        claims.append(Claim("(ours)", fast, name, STEPS_TO_MATCHED, arm, "grpo", above=-10))
        text = "entropy rises again"
        claims.append(Claim(in_figure, text, name, OVER_LOWEST, arm, matters=0.05, above=0.05))
    text = "GRPO's entropy does not rise"
    claims.append(Claim(in_figure, text, "end over lowest", OVER_LOWEST, "grpo", above=-0.05, is_below=True))
    text = "GRPO-N ends above the base model's entropy"
    claims.append(Claim("B 4, fig. 2", text, "log ratio", ENTROPY, "grpo-n", matters=0.1))
    for change in ("no bonus", "8 updates"):
        arms = (f"grpo-n, {change}", f"grpo, {change}")
        line = f"GRPO-N, {change}"
        claims.append(Claim(in_both, more_entropy, line, ENTROPY, *arms, matters=0.1))
        claims.append(Claim("(ours)", more_entropy_matched, line, ENTROPY_MATCHED, *arms, matters=0.1))
        claims.append(Claim("(ours)", fast, line, STEPS_TO_MATCHED, *arms, above=-10))
        claims.append(Claim(in_table, accurate, line, ACCURACY, *arms, above=-0.02))
    text = "clip 0.2 trains GSPO better than its own clip"
    arms = ("gspo", "gspo, narrow clip")
    claims.append(Claim("(ours)", text, f"steps to {MATCHED}", STEPS_TO_MATCHED, *arms, matters=10))
    claims.append(Claim("(ours)", text, "accuracy", ACCURACY, *arms, matters=0.02))
    text = "the bonus keeps GRPO's entropy"
    arms = ("grpo", "grpo, no bonus")
    claims.append(Claim("(ours)", text, "at the end", ENTROPY, *arms, matters=0.1))
    claims.append(Claim("(ours)", text, f"at accuracy {MATCHED}", ENTROPY_MATCHED, *arms, matters=0.1))
    return claims


def shared_claims(arm):
    """The claims about one arm of either script: a list of Claim."""
    ours = "B 3 (ours)"
    quarter = math.log(1.25)
    highest = "log two at once, highest over"
    name = NAMES[arm]
    rises = Claim(ours, "two at once rises first", name, f"{highest} start", arm, matters=quarter, above=quarter)
    falls = Claim(ours, "then it falls", name, f"{highest} end", arm, matters=quarter, above=quarter)
    grows = Claim(ours, "then one at a time rises faster", name, "growth after minus before", arm, matters=quarter)
    text = "gains over 0.05 on longer problems"
    longer = Claim("(ours)", text, name, "gain on long problems", arm, matters=0.05, above=0.05)
    text = "over half of its gain on test problems"
    half = Claim("(ours)", text, name, "share of the gain carried", arm, matters=0.1, above=0.5)
    return [rises, falls, grows, longer, half]


def effects(claim, found):
    """The effect of a Claim on each base model, a list. found: {RunKey: measures}."""
    sign = -1 if claim.is_below or claim.measure.startswith("steps") else 1
    more = {}  # {(base, seed): number}
    less = {}
    for key, row in found.items():
        if key.arm == claim.more:
            more[key.base, key.seed] = sign * row[claim.measure]
        elif key.arm == claim.less:
            less[key.base, key.seed] = sign * row[claim.measure]
    if claim.less is None:
        less = dict.fromkeys(more, 0.0)
    return difference(more, less, never=-(STEPS + 1))


def claims_of(script, found):
    """The claims of a script, decided, of the arms that were run. found: {RunKey: measures}."""
    if script == "dapo":
        claims = [*dapo_claims(), *shared_claims("none")]
    else:
        claims = [*grpo_n_claims(), *shared_claims("grpo"), *shared_claims("grpo-n")]
    arms = {key.arm for key in found}
    rows = []
    for claim in claims:
        if claim.more in arms and (claim.less is None or claim.less in arms):
            values = effects(claim, found)
            rows.append(decide(claim.paper, claim.text, claim.line, values, claim.matters, claim.above))
    return rows


def print_order(found):
    """The weightings of dapo.py in the order of their mean accuracy at the end. found: {RunKey: measures}."""
    for measure in (ACCURACY, ACCURACY_TOP_P):
        means = {}
        for arm in ("none", "low-prob", "dominate", "ppl"):
            values = [row[measure] for key, row in found.items() if key.arm == arm]
            if values:
                means[NAMES.get(arm, arm)] = np.mean(values)
        order = sorted(means, key=means.get, reverse=True)
        print(f"{measure}: {', '.join(f'{name} {means[name]:.3f}' for name in order)}")


# --------------------------------------------------------------------------------------------------------------- figure
TITLES = {
    "dapo": "Reweighting changes little. Without unlikely tokens (top-p 0.9, 0.7) accuracy stalls",
    "grpo_n": "Learning from mistakes alone (GRPO-N, GSPO-N) and from both signs (GRPO, GSPO)",
}
STYLES = {  # (colour, line) of each arm; orange, blue and green are the colours of the actions
    "none": ("black", "-"),
    "low-prob": ("tab:red", "-"),
    "dominate": ("tab:purple", "-"),
    "ppl": ("tab:brown", "-"),
    "top-p 0.95": ("tab:olive", "-"),
    "top-p 0.9": ("tab:olive", "--"),
    "top-p 0.7": ("tab:olive", ":"),
    "grpo": ("black", "-"),
    "grpo, no bonus": ("black", "--"),
    "grpo, 8 updates": ("black", ":"),
    "grpo-n": ("tab:red", "-"),
    "grpo-n, no bonus": ("tab:red", "--"),
    "grpo-n, 8 updates": ("tab:red", ":"),
    "gspo": ("tab:purple", "-"),
    "gspo, narrow clip": ("tab:purple", "--"),
    "gspo-n": ("tab:brown", "-"),
}


def metrics_rows(record, arm):
    """A record as rows of metrics.jsonl. At top-p without the rollouts, which are drawn from less."""
    rows = []
    for i in range(len(record["accuracy"])):
        row = {"step": i + 1}
        if arm not in TOP_P_ARMS:
            for name in CURVES:
                row[name] = record[name][i]
        rows.append(row)
    evaluations = record["evaluations"]
    for i, step in enumerate(evaluations["step"]):
        row = {"step": step}
        for name in EVALUATIONS:
            row[f"test/{name}"] = evaluations[name][i]
        rows.append(row)
    return rows


def main():
    args = arguments(__doc__)
    for script in ARMS:
        records = run_missing(script, run_keys(script, args), args)
        found = {}
        curves = {}
        styles = {}
        for key, record in records.items():
            if key.arm != "base":
                found[key] = measures(record, records[RunKey("base", key.base, 0)])
                name = NAMES.get(key.arm, key.arm)
                curves.setdefault(name, []).append(metrics_rows(record, key.arm))
                styles[name] = STYLES[key.arm]
        finish(args, script, claims_of(script, found), draw, curves, TITLES[script], styles)
        if script == "dapo":
            print_order(found)
        for key, row in found.items():
            print(*key, {name: round(float(x), 3) for name, x in row.items()})


if __name__ == "__main__":
    main()
