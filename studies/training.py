"""Training, decided over bases: reweighting and filtering (paper A), learning from mistakes alone (paper B).

`dapo` trains `dapo.py` with four weightings (alpha 0.2) and three nuclei of the rollouts; `grpo_n` trains `grpo_n.py`
with four algorithms at one rate, paper B's clip 0.2, entropy bonus 1e-4 and four updates a rollout, and with one thing
changed: no bonus, GSPO's own narrow clip, eight updates. 100 steps each, all on the same five bases.

The rule, written before the runs; unit, interval, verdict and Holm as in common.py, for each of the two separately.
  steps to 0.3, 0.6, 0.8   the first step at which the running mean over five steps of the accuracy of training rollouts
                           is there; a run that never is counts as steps + 1, so that differences are cut. 10 matter: a
                           tenth of the run. Not for nuclei: their rollouts are another distribution
  accuracy at the end      of the last model, 150 test problems, 4 samples, full softmax. 0.02 matters: smaller gains no
                           table of the papers calls one. For arms of dapo.py also at top-p 0.7: of a finished model
                           most errors are of the sampling's tail, which nuclei never saw, and entropy itself costs some
  entropy, length          log of the value over the base's on test problems, at the end and at the middle of the five
                           steps at which the training accuracy reaches 0.6 (interpolated between evaluations; a run
                           that never does is left out). 0.1 matters, 10%; for lengths 0.03, two tokens of 68
  entropy rises again      log of the entropy at the end over its lowest evaluation: above 0.05, as the lowest of eleven
                           noisy numbers lies below the last by construction; 0.05 more matters
  competitive              steps to 0.6, GRPO's minus its own, above -10; accuracy at the end minus GRPO's, above -0.02.
                           All at one rate, GRPO's own being four times as high, and after 100 steps, where accuracy
                           may still rise by 0.005 a step: the first decides
  two stages               leaps of two in a rollout (running mean): log of their highest over the start, and over the
                           end, above log 1.25, as the highest of noisy numbers exceeds both by some percent; leaps of
                           one: growth in log in the n steps after that step minus growth in the n before it, n as large
                           as the run allows. All relative to the start
  longer problems          gain over the base on long.jsonl (16 operations; training has 4 to 12), above 0.05; and as a
                           share of the gain on test problems, above 0.5
Nearly guaranteed by construction, and no claim: accuracy ends above the base's; a nucleus of 0.95 has no token that
likelier ones of 0.95 precede, and the best leap starts at 0.003 to 0.08; leaps of one grow more in the 80 steps after
that peak than in the 20 before.
Amended when the five runs of none, seed 2, were there and no other: the middle of the five steps (it was the last),
top-p 0.7 for all arms of dapo.py, the equal n of leaps of one, and no difference in steps where neither arm arrives.

Power, from pilots (dapo.py, none, seed 1, which is not run again): steps to 0.3, 0.6, 0.8 of the five bases have sd 4,
5 and 10, accuracy at the end 0.012. Two arms that vary so and independently differ by smallest_decidable(1.4 sd) = 9,
11, 24 steps and 0.028: 10 steps can just be decided up to 0.6, hardly at 0.8 unless bases are slow in both arms alike;
0.02 cannot, effects of the first world (0.04 to 0.07) can. Pilots of grpo_n.py's rate and mini-batch: base 1, seed 101
(at two updates a rollout GRPO-N leaves the plateau only after step 100, at four it has 0.73 there). More bases, and a
second training seed, are beyond the budget: not run. Four arms were to have that seed; it was cut for time when 43 of
80 runs were recorded (23 and 20), some of them looked at, and no verdict was there. So the spread over bases is that
of base and seed together.

    python studies/training.py            # 6 hours on two cores; goes on where it was interrupted
    python studies/training.py --quick    # five arms of two steps: to see that it works
"""

import functools
import itertools
import json
import math
import re

import numpy as np
from common import arguments, base_folder, decide, difference, finish, make_bases, read_json, rounded, run_all
from compare import draw

GRPO = "--lr 1e-4 --mini-batch 4 --passk-samples 0"  # by studies/grpo_n_lr.py the -N variants tolerate no more
SEEDS = (2,)  # of training
FOUR, TWO = ("grpo", "grpo-n", "gspo", "gspo-n"), ("grpo", "grpo-n")
ARMS = {"dapo": {name: f"--reweight {name}" for name in ("none", "low-prob", "dominate", "ppl")}}
ARMS["dapo"] |= {f"top-p {top_p}": f"--rollout-top-p {top_p}" for top_p in (0.95, 0.9, 0.7)}
ARMS["grpo_n"] = {name: f"--algorithm {name}" for name in FOUR}
ARMS["grpo_n"] |= {f"{name}, no bonus": f"--algorithm {name} --entropy-coef 0" for name in TWO}
ARMS["grpo_n"] |= {f"{name}, 8 updates": f"--algorithm {name} --mini-batch 2" for name in TWO}
ARMS["grpo_n"] |= {"gspo, narrow clip": "--algorithm gspo --eps-low 3e-4 --eps-high 4e-4"}
QUICK = {"dapo": ("none", "low-prob", "top-p 0.7"), "grpo_n": TWO}
STEPS, N_TEST, N_LONG, SAMPLES = 100, 150, 100, 4
LEVELS, MATCHED = (0.3, 0.6, 0.8), 0.6
CURVES = ("accuracy", "entropy", "length", "leaps_one", "leaps_two", "leaps_jump", "clip_low", "clip_high")
CURVES += ("truncated", "active", "kl_ref", "prompts_sampled")


# -------------------------------------------------------------------------------------------------------- runs, records
def at_end(model, base, args, top_p=1.0):
    """Flags of grpo_n.py that count right responses to test and long problems, a file of both for each base."""
    path, n_test, n_long = args.runs / f"problems-{base}.jsonl", *((6, 4) if args.quick else (N_TEST, N_LONG))
    folder = base_folder(base, args.quick)
    if not path.exists():
        lines = [(folder / f"{name}.jsonl").read_text().splitlines() for name in ("test", "long")]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines[0][:n_test] + lines[1][:n_long]) + "\n")
    flags = f"--steps 0 --kl-coef 0 --eval-problems 1 --max-response 192 --gen-batch 128 --passk-samples {SAMPLES}"
    return f"grpo_n.py --model {model} --train {path} --test {path} {flags} --passk-problems 0 --passk-top-p {top_p}"


def counts(folder):
    """What a model did at the end: counts of right responses and means over test problems; long problems apart."""
    (problems,) = read_json(folder / "passk.json")["models"].values()
    n_test = round(len(problems) * N_TEST / (N_TEST + N_LONG))
    found = {"samples": SAMPLES, "test": [p["right"] for p in problems[:n_test]]}
    found |= {"long": [p["right"] for p in problems[n_test:]]}
    means = {name: float(np.mean([p[name] for p in problems[:n_test]])) for name in ("length", "token_entropy")}
    return found | {name: round(x, 5) for name, x in means.items()}


def summary(folder, at_top_p):
    """The record of a run: its curves over steps, its evaluations, the counts at the end."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {name: rounded(row.get(name) for row in rows[1:]) for name in CURVES}
    tests = [row for row in rows if "test/length" in row]
    found["evaluations"] = {"step": [row["step"] for row in tests]}
    for name, pattern in {"accuracy": "avg@2|pass@1", "entropy": "(token_)?entropy", "length": "length"}.items():
        (key,) = (key for key in tests[0] if re.fullmatch(f"test/({pattern})", key))
        found["evaluations"][name] = rounded(row[key] for row in tests)
    for name in ("greedy", "answer_entropy"):
        found["evaluations"][name] = rounded(row.get(f"test/{name}") for row in tests)
    found["end"] = counts(folder.with_name(f"{folder.name}-end"))
    return found | ({"end at top-p 0.7": counts(folder.with_name(f"{folder.name}-end-0.7"))} if at_top_p else {})


def jobs_of(script, args, wanted=None):
    """(jobs for run_all, {(arm, base, seed): record}, {(arm, base, seed): folder of the run}) of a script.

    wanted: these arms alone; None: all. A base itself is ("base", base, 0). Makes the bases if a record is missing.
    """
    jobs, records, folders = {}, {}, {}
    size = "--steps 2 --prompts-per-step 2 --mini-batch 2 --gen-batch 4 --eval-every 1 --save-every 1 --eval-problems 4"
    size = size if args.quick else f"--steps {STEPS} --eval-every 10 --save-every 10 --eval-problems 100"
    size += " --max-gen-batches 2" * (args.quick and script == "dapo")
    arms = wanted or (QUICK if args.quick else ARMS)[script]
    for seed, base, arm in itertools.product(SEEDS, args.bases, arms):
        name = f"{arm}-{base}-{seed}".replace(", ", "-").replace(" ", "-")
        folders[arm, base, seed] = args.runs / script / name
        records[arm, base, seed] = args.where / script / f"{name}.json"
    for base in args.bases if wanted is None else ():
        folders["base", base, 0] = args.runs / f"base-{base}"
        records["base", base, 0] = args.where / script / f"base-{base}.json"
    make_bases(args, records.values())
    for (arm, base, seed), record in records.items():
        data, folder, at_top_p = base_folder(base, args.quick), folders[arm, base, seed], script == "dapo"
        if record.exists():
            jobs[record] = None  # nothing to do, and perhaps no base to do it with
        elif arm == "base":
            command = (at_end(data / "base", base, args), folder, "passk.json")
            jobs[record] = [command], functools.partial(lambda path: {"end": counts(path)}, folder)
        else:
            train = f"{script}.py {GRPO * (script == 'grpo_n')} {ARMS[script][arm]} {size} --eval-samples 2"
            train += f" --seed {seed} --model {data}/base --train {data}/train.jsonl --test {data}/test.jsonl"
            commands = [(train, folder, "model/tokenizer_config.json")]
            for suffix, top_p in (("-end", 1.0), ("-end-0.7", 0.7))[: 1 + at_top_p]:
                test = at_end(folder / "model", base, args, top_p)
                commands.append((test, folder.with_name(folder.name + suffix), "passk.json"))
            jobs[record] = commands, functools.partial(summary, folder, at_top_p)
    return jobs, records, folders


# ------------------------------------------------------------------------------------------------------------- measures
def running_mean(x, window=5):
    """Mean of the last `window` values, or of as many as there are: (T,) -> (T,)."""
    sums = np.cumsum([0.0, *x])
    return np.array([(sums[i] - sums[max(0, i - window)]) / min(i, window) for i in range(1, len(x) + 1)])


def steps_to_reach(accuracy, level, window=5):
    """The first step, from 1, at which the mean of `window` steps is at least `level`; steps + 1 if none is."""
    reached = np.flatnonzero(running_mean(accuracy, window)[window - 1 :] >= level)
    return int(reached[0]) + window if len(reached) else len(accuracy) + 1


def plateau_of(record, every=10):
    """The numbered checkpoint, not the last, at which leaps of two are at their highest: from training curves alone."""
    two = running_mean(record["leaps_two"])[every - 1 : len(record["leaps_two"]) - 1 : every]
    return every * (1 + int(two.argmax()))


def half_of(record, every=10):
    """The first numbered checkpoint, not the last, at which the training accuracy (running mean) is half: 0.5."""
    last = (len(record["accuracy"]) - 1) // every * every
    return min(last, -(-steps_to_reach(record["accuracy"], 0.5, min(5, every)) // every) * every)


def measures(record, base):
    """{measure: number} of a run; `base`: the record of its base."""
    found, evals, end = {}, record["evaluations"], record["end"]
    share = {name: np.mean(end[name]) / end["samples"] for name in ("test", "long")}
    before = {name: np.mean(base["end"][name]) / base["end"]["samples"] for name in ("test", "long")}
    found |= {f"steps to {level}": steps_to_reach(record["accuracy"], level) for level in LEVELS}
    found |= {"accuracy at the end": share["test"], "gain on long problems": share["long"] - before["long"]}
    gain = share["test"] - before["test"]
    found["share of the gain carried"] = found["gain on long problems"] / gain if gain > 0.05 else math.nan
    if other := record.get("end at top-p 0.7"):
        found["accuracy at the end, top-p 0.7"] = np.mean(other["test"]) / other["samples"]
    for name, key in (("entropy", "token_entropy"), ("length", "length")):
        found[f"log {name} at the end"] = math.log(end[key] / base["end"][key])
        middle = found[f"steps to {MATCHED}"] - 3  # of the policies that drew those five steps
        at = np.interp(middle, evals["step"], evals[name])
        reached = found[f"steps to {MATCHED}"] <= len(record["accuracy"])
        found[f"log {name} at accuracy {MATCHED}"] = math.log(at / evals[name][0]) if reached else math.nan
    found["log entropy over its lowest"] = math.log(evals["entropy"][-1] / min(evals["entropy"]))
    one, two = (running_mean([x or 0.0 for x in record[f"leaps_{name}"]]) + 1e-3 for name in ("one", "two"))
    first, peak = min(4, len(two) - 1), int(two[4:].argmax()) + 4 if len(two) > 4 else 0
    found |= {"log leaps of two, highest over start": math.log(two[peak] / two[first])}
    found |= {"log leaps of two, highest over end": math.log(two[peak] / two[-1])}
    n = min(peak - first, len(one) - 1 - peak)
    found["growth after minus before"] = math.log(one[peak + n] * one[peak - n] / one[peak] ** 2)
    return found


# --------------------------------------------------------------------------------------------------------------- claims
def claims_of(script, found):
    """The claims of a script. found: {(arm, base, seed): measures}."""
    claims, arms, quarter = [], {arm for arm, _, _ in found}, math.log(1.25)

    def claim(paper, text, measure, more, less=None, matters=0.0, above=0.0, sign=1):
        """Does `more` exceed `less`, or 0, in a measure? For steps: is it faster? sign -1: is it below?"""
        if {more, less or more} <= arms:
            sign = -1 if measure.startswith("steps") else sign
            values = {key: sign * row.get(measure, math.nan) for key, row in found.items()}
            a, b = ({key[1:]: x for key, x in values.items() if key[0] == arm} for arm in (more, less))
            effect = difference(a, b or dict.fromkeys(a, 0.0), never=-STEPS - 1)
            claims.append(decide(paper, text, measure, effect, matters, above))

    end, matched, accuracy = "at the end", f"at accuracy {MATCHED}", "accuracy at the end"
    lowest, highest = "log entropy over its lowest", "log leaps of two, highest over"
    if script == "dapo":
        for other in ("none", "dominate", "ppl"):
            for level in LEVELS[1:]:
                claim("A 4.2 (ours: speed)", f"low-prob before {other}", f"steps to {level}", "low-prob", other, 10)
            for measure in (accuracy, f"{accuracy}, top-p 0.7"):
                claim("A 4.2, fig. 5a", f"low-prob is more accurate than {other}", measure, "low-prob", other, 0.02)
        for at in (end, matched):
            text = "low-prob keeps more entropy than DAPO"
            claim("A 4.2, fig. 5b", text, f"log entropy {at}", "low-prob", "none", 0.1)
            claim("A 4.2, fig. 5b", "Dominate has less entropy", f"log entropy {at}", "none", "dominate", 0.1)
            claim("A 4.2, fig. 5c", "low-prob answers longer", f"log length {at}", "low-prob", "none", 0.03)
        claim("A 4.2, fig. 5b", "low-prob's entropy recovers", lowest, "low-prob", None, 0.05, 0.05)
        nuclei = [arm for arm in ARMS["dapo"] if arm.startswith("top-p")]
        for measure in (accuracy, f"{accuracy}, top-p 0.7"):
            for nucleus in nuclei:
                claim("A 3.3, fig. 3c", f"{nucleus} hurts", measure, "none", nucleus, 0.02)
            for larger, smaller in itertools.pairwise(nuclei):
                claim("A 3.3, fig. 3c", f"{smaller} hurts more than {larger}", measure, larger, smaller, 0.02)
    else:
        for arm in ("grpo-n", "gspo", "gspo-n"):
            claim("B 4, fig. 2, table 4", f"{arm} has more entropy than grpo", f"log entropy {end}", arm, "grpo", 0.1)
            claim("(ours)", f"{arm} has more entropy than grpo", f"log entropy {matched}", arm, "grpo", 0.1)
            claim("B 4, tables 1-3", f"{arm} is competitive", accuracy, arm, "grpo", 0.0, -0.02)
            claim("(ours)", f"{arm} is competitive", f"steps to {MATCHED}", arm, "grpo", 0.0, -10)
            claim("B 4, fig. 2", f"{arm}'s entropy rises again", lowest, arm, None, 0.05, 0.05)
        claim("B 4, fig. 2", "grpo's entropy does not rise", lowest, "grpo", None, 0.0, -0.05, -1)
        text = "grpo-n ends above the base's entropy"
        claim("B fig. 2; not table 4, AIME25", text, f"log entropy {end}", "grpo-n", None, 0.1)
        for change in ("no bonus", "8 updates"):
            pair = f"grpo-n, {change}", f"grpo, {change}"
            for at in (end, matched):
                claim("B 4, fig. 2", f"{change}: grpo-n has more entropy", f"log entropy {at}", *pair, 0.1)
            claim("(ours)", f"{change}: grpo-n is competitive", f"steps to {MATCHED}", *pair, 0.0, -10)
            claim("B 4, tables 1-3", f"{change}: grpo-n is competitive", accuracy, *pair, 0.0, -0.02)
        for measure, matters in ((f"steps to {MATCHED}", 10), (accuracy, 0.02)):
            text = "clip 0.2 trains GSPO better than its own"
            claim("(ours)", text, measure, "gspo", "gspo, narrow clip", matters)
        for at in (end, matched):
            claim("(ours)", "the bonus keeps entropy", f"log entropy {at}", "grpo", "grpo, no bonus", 0.1)
    for arm in ("none", "grpo", "grpo-n"):
        claim("B 3 (ours: habits)", f"{arm}: leaps of two grow first", f"{highest} start", arm, None, quarter, quarter)
        claim("B 3 (ours: habits)", f"{arm}: then they fall", f"{highest} end", arm, None, quarter, quarter)
        claim("B 3 (ours: habits)", f"{arm}: leaps of one grow then", "growth after minus before", arm, None, quarter)
        claim("(ours)", f"{arm} carries to longer problems", "gain on long problems", arm, None, 0.05, 0.05)
        claim("(ours)", f"{arm} carries half of it", "share of the gain carried", arm, None, 0.1, 0.5)
    return claims


def rows_of(record, arm):
    """A record's curves as rows of metrics.jsonl, for the figure; nuclei without their rollouts, drawn from less."""
    n, names = len(record["accuracy"]), () if arm.startswith("top-p") else CURVES
    rows = [{"step": i} | {name: record[name][i - 1] for name in names} for i in range(1, 1 + n)]
    evaluations = [record["evaluations"][name] for name in ("step", "accuracy", "entropy", "length")]
    keys = ("step", "test/avg@2", "test/entropy", "test/length")
    return rows + [dict(zip(keys, row, strict=True)) for row in zip(*evaluations, strict=True)]


def main():
    args = arguments(__doc__)
    for script in ARMS:
        jobs, paths, _ = jobs_of(script, args)
        run_all(jobs)
        records = {key: read_json(path) for key, path in paths.items()}
        runs = {key: record for key, record in records.items() if key[0] != "base"}
        found = {key: measures(record, records["base", key[1], 0]) for key, record in runs.items()}
        curves = {arm: [rows_of(r, arm) for key, r in runs.items() if key[0] == arm] for arm, _, _ in runs}
        finish(args, script, claims_of(script, found), draw, curves)
        for key, row in found.items():
            print(*key, {name: round(float(x), 3) for name, x in row.items()})


if __name__ == "__main__":
    main()
