"""Both stages in a real language model: SmolLM2-135M-Instruct learns to say which of two numbers is larger.

The problems are those of `data/prepare.py larger`: "Which is larger? \\boxed{18} or \\boxed{29}". A response boxes the
first number, the second one, or neither. `dapo.py` and `grpo_n.py` count these kinds over all responses that a training
step samples, apart for problems whose first number is larger and for those whose second one is.

The rule, written before the runs. Both orders weigh the same: P(first) is the mean of the shares "first (larger)" and
"first (smaller)", accuracy that of "first (larger)" and "second (larger)".
  stage one    P(first) is above 0.6 at some step
  stage two    a later step has "second (larger)" above 0.8
  both stages  a seed shows them if the first such steps come in this order
  stall        the number of steps before stage two (or the end) with accuracy from 0.4 to 0.6
  arms         dapo: five seeds, 40 steps of seed 1 and 30 of the others. grpo, grpo-n: seeds 1 to 3, 30 steps. Flags
               are the trial's, untuned; three seeds of it showed both stages, so that dapo is no blind test of them
  control      dapo, seeds 1 and 2, 30 steps, the answer of every training problem drawn from its two numbers. What is
               boxed is then right half of the time, whichever it is. Expected: no stage two. Stage one is open
  unseen       the end of each dapo seed, and the base, on numbers of two digits that no problem had, of three digits,
               and decimals such as 9.9 and 9.11; 200 responses each, the two orders apart. A description, no claim
The pairs: base and the end, base and the stalled model, which is step 8 of every dapo seed, wherever that falls.
  order        replace.py, 40 problems x 4: area (mean accuracy over log ratio, 0.05 to 0.4) of dlogp minus KL, KL minus
               entropy, entropy minus random: yes if the 95% interval over the five seeds (Student's t) is above 0, and
               "yes, but small" where it is below 0.02. The unit is a training seed of one model, one task
  few          the smallest ratio of dlogp whose accuracy is RLVR's minus 0.05. A description
  where        delta_logp.py, 100 problems x 4: of the sum of |dlogp| over RLVR's responses, the shares of the tokens up
               to the brace of the box, of the first digit, of later digits, and of the rest. A description
Known before: the trial of seed 1 of `dapo.py` (all of it, replacement too), and parts of two more.

Amended with the records of dapo, seeds 1 and 2, and of the control, seed 1: this rule does not hold water. The control
passes it, without anything to compare: it turns from the first number to the second, so that "second (larger)" is high.
(A rule for "either number", added at step 5 of the first two runs, has the same fault; it is gone.) Instead:
  shares       who picks a number without comparing boxes the smaller one as often as the larger one, if both orders
               weigh the same. So "without comparing" is twice the share of the smaller number, "compares" the rest of
               the boxed numbers
  stage one    the mean of "without comparing" over five steps is above 0.6; its step is the last of the five
  stage two    the same later with "compares" above 0.5
For the other ten runs this is a rule before the run. Tables give both.

    python studies/real.py            # hours on two cores; goes on where it was interrupted
    python studies/real.py --quick    # runs of two steps: to see that it works
"""

import functools
import itertools
import json
import random
from typing import NamedTuple

import numpy as np
from common import ROOT, Job, Run, arguments, interval, judge, read_json, read_jsonl, read_records, run_all, write_json
from matplotlib.figure import Figure
from pairs import smallest_ratio

# ------------------------------------------------------------------------------------------------------------- settings
MODEL = ROOT / "data" / "smollm2"
PROBLEMS = ROOT / "data" / "larger"
STALLED = 8  # the training step whose model is the stalled one
UNSEEN = ("test", "two-digits", "three-digits", "decimals")  # problem files that no run trained on
CRITERIA = ("dlogp", "kl", "entropy", "random")  # of replacement
SIZES = "--prompts-per-step 8 --group-size 8 --mini-batch 4 --micro-batch 16 --max-response 20"
SETTINGS = f"{SIZES} --lr 2e-5 --warmup-steps 2 --eval-every 5 --eval-problems 0 --eval-samples 1"


ARMS = {  # arm: its name in table and figure
    "dapo": "DAPO",
    "control": "random answers",
    "grpo": "GRPO",
    "grpo-n": "GRPO-N",
}
SHARES = {  # of the responses: name in the figure, colour
    "neither": ("boxes neither number", "tab:green"),
    "blind": ("boxes one without comparing", "tab:blue"),
    "compares": ("compares", "tab:orange"),
}


class RunKey(NamedTuple):
    """Which training run."""

    arm: str  # one of ARMS
    seed: int


def key_of(name):
    """The RunKey of a record: "dapo-1" -> RunKey("dapo", 1)."""
    arm, _, seed = name.rpartition("-")
    return RunKey(arm, int(seed))


def run_keys(quick):
    """All training runs, a list of RunKey, in the order in which they are done."""
    if quick:
        return [RunKey("dapo", 1), RunKey("control", 1), RunKey("grpo-n", 1)]
    keys = [RunKey("dapo", 1), RunKey("dapo", 2), RunKey("control", 1)]
    keys += [RunKey("dapo", 3), RunKey("grpo-n", 1), RunKey("grpo", 1), RunKey("dapo", 4), RunKey("dapo", 5)]
    keys += [RunKey("control", 2), RunKey("grpo-n", 2), RunKey("grpo", 2), RunKey("grpo-n", 3), RunKey("grpo", 3)]
    return keys


# ----------------------------------------------------------------------------------------------------------------- jobs
def write_random_answers(path, seed=0):
    """Write the training problems with answers drawn at random from the two numbers; the kinds stay as they are."""
    rng = random.Random(seed)
    lines = []
    for row in read_jsonl(PROBLEMS / "train.jsonl"):
        row["answer"] = rng.choice(list(row["kinds"].values()))
        lines.append(json.dumps(row) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


def training_job(key, random_answers, args):
    """The Job of a training run; random_answers: the file that the control trains on."""
    steps = 40 if key == RunKey("dapo", 1) else 30
    train = random_answers if key.arm == "control" else PROBLEMS / "train.jsonl"
    if key.arm in ("dapo", "control"):
        command = f"dapo.py --overlong-buffer 4 --save-every {2 if args.quick else STALLED}"
    else:
        command = f"grpo_n.py --algorithm {key.arm} --passk-samples 0"
    command += f" --model {MODEL} --train {train} --test {PROBLEMS}/test.jsonl --seed {key.seed} {SETTINGS}"
    if args.quick:
        steps = 2
        command += " --prompts-per-step 2 --mini-batch 2 --gen-batch 2 --group-size 4 --eval-problems 2"
    folder = folder_of(key, args)
    run = Run(f"{command} --steps {steps}", folder, "model/config.json")
    return Job([run], functools.partial(training_record, folder))


def folder_of(key, args):
    """The folder of a training run."""
    return args.runs / "real" / f"{key.arm}-seed{key.seed}"


def training_record(folder):
    """What the record of a training run holds: the rows of its metrics.jsonl, rounded."""
    rows = []
    for row in read_jsonl(folder / "metrics.jsonl"):
        rows.append({name: round(value, 5) for name, value in row.items()})
    return {"metrics": rows}


def unseen_job(name, model, args):
    """The Job that asks a model, called `name`, the problems of UNSEEN, once each."""
    runs = []
    for problems in UNSEEN:
        command = f"dapo.py --steps 0 --model {model} --train {PROBLEMS}/train.jsonl --test {PROBLEMS}/{problems}.jsonl"
        command += f" --max-response 20 --overlong-buffer 4 --eval-problems {4 if args.quick else 0} --eval-samples 1"
        runs.append(Run(command, args.runs / "real" / f"{name}-{problems}", "model/config.json"))
    return Job(runs, functools.partial(unseen_record, runs))


def unseen_record(runs):
    """What the record of unseen_job holds: {problems: {metric: value}}, of the kinds of answers and the length."""
    record = {}
    for problems, run in zip(UNSEEN, runs, strict=True):
        row = read_jsonl(run.folder / "metrics.jsonl")[0]
        record[problems] = {}
        for name, value in row.items():
            if "kind/" in name or name == "test/length":
                record[problems][name.removeprefix("test/")] = round(value, 5)
    return {"unseen": record}


def pair_job(name, rlvr, args):
    """The Job that compares the base with the model in the folder `rlvr`; name: of the pair."""
    folder = args.runs / "real" / name
    files = f"--base {MODEL} --rlvr {rlvr} --max-response 20"
    direction = f"delta_logp.py {files} --data {PROBLEMS}/test.jsonl --samples 4 --gen-batch 16 --micro-batch 16"
    direction += f" --problems {4 if args.quick else 100} --bootstrap 200"
    replacement = f"replace.py {files} --test {PROBLEMS}/test.jsonl --train {PROBLEMS}/train.jsonl"
    replacement += f" --criteria {','.join(CRITERIA)} --reverse= --ratios 0.05,0.1,0.2,0.4 --rows 160"
    if args.quick:
        replacement += " --problems 4 --samples 2 --calibration-problems 2 --calibration-passes 1"
    else:
        replacement += " --problems 40 --samples 4 --calibration-problems 24 --calibration-passes 2"
    runs = [
        Run(direction, folder / "delta_logp", "tokens.html"),
        Run(replacement, folder / "replace", "summary.json"),
    ]
    return Job(runs, functools.partial(pair_record, folder))


def pair_record(folder):
    """What the record of a pair holds: where the change stands, and how few tokens are enough."""
    curves = {}
    for name, points in read_json(folder / "replace" / "results.json").items():
        curves[name] = [{key: point[key] for key in ("ratio", "accuracy", "accuracy_ci95")} for point in points]
    return {
        "change": change_by_place(folder / "delta_logp"),
        "curves": curves,
        "comparison": read_json(folder / "replace" / "summary.json"),
    }


def change_by_place(folder):
    """{place: share of the sum of |dlogp| over RLVR's responses that it holds, and share of their tokens}.

    Places: up to the brace of the first box, its first digit, later digits, the rest.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    sizes = {"up to the brace": [], "first digit": [], "later digits": [], "the rest": []}
    with np.load(folder / "tokens.npz") as file:
        of_rlvr = file["source"] == "rlvr"  # (M,) as all others
        owners = file["response"][of_rlvr]
        ids = file["response_ids"][of_rlvr]
        change = np.abs(file["dlogp"][of_rlvr])
    for owner in np.unique(owners):
        pieces = [tokenizer.decode([token]) for token in ids[owners == owner]]
        for place, size in zip(token_places(pieces), change[owners == owner], strict=True):
            sizes[place].append(size)
    total = sum(sum(values) for values in sizes.values())
    shares = {}
    for place, values in sizes.items():
        shares[place] = {"change": round(float(sum(values) / total), 4), "tokens": round(len(values) / len(ids), 4)}
    return shares


def token_places(pieces):
    """The place of each token of a response, see change_by_place: a list of texts. pieces: its tokens, as texts."""
    places = []
    place = "up to the brace"
    written = ""  # what stands before the token
    for piece in pieces:
        is_digit = piece.strip() != "" and piece.strip() in "0123456789."
        if place == "up to the brace":
            if is_digit and written.endswith("boxed{"):
                place = "first digit"
        elif is_digit and place != "the rest":
            place = "later digits"
        else:
            place = "the rest"
        places.append(place)
        written += piece
    return places


# ------------------------------------------------------------------------------------------------------------- measures
def accuracy_of(row):
    """Share of right responses in a row of metrics; both orders of the numbers weigh the same."""
    return (row["kind/first (larger)"] + row["kind/second (larger)"]) / 2


def shares_of(row):
    """{name of SHARES: share} of all responses in a row of metrics; see "shares" at the top."""
    larger = accuracy_of(row)
    smaller = (row["kind/first (smaller)"] + row["kind/second (smaller)"]) / 2
    compares = max(0.0, larger - smaller)
    blind = larger + smaller - compares
    return {"neither": max(0.0, 1 - larger - smaller), "blind": blind, "compares": compares}


def first_stages(rows):
    """(step of stage one, step of stage two) by the rule before the runs; None for one that does not come."""
    one = [row["step"] for row in rows if (row["kind/first (larger)"] + row["kind/first (smaller)"]) / 2 > 0.6]
    two = [row["step"] for row in rows if row["kind/second (larger)"] > 0.8]
    return min(one, default=None), min(two, default=None)


def amended_stages(rows):
    """(step of stage one, step of stage two) by the amended rule; None for one that does not come."""
    stage_one = None
    for i in range(4, len(rows)):
        shares = [shares_of(row) for row in rows[i - 4 : i + 1]]
        if stage_one is None and np.mean([share["blind"] for share in shares]) > 0.6:
            stage_one = rows[i]["step"]
        if stage_one is not None and np.mean([share["compares"] for share in shares]) > 0.5:
            return stage_one, rows[i]["step"]
    return stage_one, None


def stages_of(rows):
    """What both rules say of the rows of a run's metrics: a dict. A stage that does not come is None."""
    trained = [row for row in rows if row["step"] > 0]
    found = {}
    for rule, stages in (("before the runs", first_stages), ("amended", amended_stages)):
        one, two = stages(trained)
        both = one is not None and two is not None and one < two
        before = [row for row in trained if two is None or row["step"] < two]
        stall = sum(0.4 <= accuracy_of(row) <= 0.6 for row in before)
        found[rule] = {"stage one": one, "stage two": two, "both stages": both, "stall": stall}
    found["test accuracy"] = {}  # {step: accuracy}
    for row in rows:
        if "test/length" in row:
            accuracy = row["test/accuracy"] if "test/accuracy" in row else row["test/pass@1"]
            found["test accuracy"][row["step"]] = accuracy
    return found


# --------------------------------------------------------------------------------------------------------------- figure
def draw_run(axis, rows, title):
    """Stack the shares of the responses, and draw the accuracy."""
    trained = [row for row in rows if row["step"] > 0]
    steps = [row["step"] for row in trained]
    shares = [shares_of(row) for row in trained]
    layers = [[share[name] for share in shares] for name in SHARES]
    labels = [label for label, _ in SHARES.values()]
    colors = [color for _, color in SHARES.values()]
    axis.stackplot(steps, layers, labels=labels, colors=colors, alpha=0.85)
    axis.plot(steps, [accuracy_of(row) for row in trained], "k-", lw=1.5, label="accuracy")
    axis.set(title=title, xlim=(steps[0], steps[-1]), ylim=(0, 1))


def draw_runs(path, runs):
    """A panel for each training run, a row for each arm. runs: {RunKey: rows of its metrics}."""
    arms = [arm for arm in ARMS if any(key.arm == arm for key in runs)]
    n_columns = max(sum(key.arm == arm for key in runs) for arm in arms)
    figure = Figure(figsize=(9, 1.2 + 1.7 * len(arms)), layout="constrained")
    grid = figure.subplots(len(arms), n_columns, squeeze=False, sharey=True)
    for axes, arm in zip(grid, arms, strict=True):
        keys = sorted(key for key in runs if key.arm == arm)
        for axis, key in zip(axes, keys, strict=False):
            draw_run(axis, runs[key], f"{ARMS[arm]}, seed {key.seed}")
        for axis in axes[len(keys) :]:
            axis.axis("off")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    figure.supxlabel("training step")
    figure.supylabel("share of responses")
    figure.savefig(path, dpi=92)


# --------------------------------------------------------------------------------------------------------------- report
def print_table(head, rows):
    """A Markdown table, if it has rows; its cells are texts."""
    if not rows:
        return
    for cells in [head, ["---"] * len(head), *rows]:
        print(f"| {' | '.join(cells)} |")
    print()


def report(args):
    """Decide by the rule what the records that are there say: prints tables, writes real.json and real.png."""
    runs = {}
    pairs = {}
    unseen = {}
    for name, record in read_records(args.where / "real.jsonl").items():
        if "metrics" in record:
            runs[key_of(name)] = record["metrics"]
        elif "curves" in record:
            pairs[name] = record
        else:
            unseen[name] = record["unseen"]
    if not runs:
        return

    stages = {}
    rows = []
    for key in sorted(runs, key=lambda key: (list(ARMS).index(key.arm), key.seed)):
        stages[key] = stages_of(runs[key])
        tested = stages[key]["test accuracy"]
        last = max(tested)
        cells = [ARMS[key.arm], str(key.seed)]
        for rule in ("amended", "before the runs"):
            found = stages[key][rule]
            cells += [str(found[name]) for name in ("stage one", "stall", "stage two")]
            cells.append("yes" if found["both stages"] else "no")
        cells.append(f"{tested[0]:.2f} to {tested[last]:.2f} at step {last}")
        rows.append(cells)
    names = ["stage one, at step", "steps of the stall", "stage two, at step", "both stages"]
    head = ["run", "seed", *names, *[f"{name} (rule before the runs)" for name in names], "test accuracy"]
    print_table(head, rows)

    kinds = ("first (larger)", "second (larger)")
    rows = []
    for name, sets in unseen.items():
        for problems, record in sets.items():
            rows.append([name, problems, *(f"{record[f'kind/{kind}']:.2f}" for kind in kinds)])
    print_table(["model", "problems", "right, first is larger", "right, second is larger"], rows)

    rows = []
    differences = {}  # {(which RLVR, "dlogp - kl"): {pair: area}}
    for name, record in pairs.items():
        rlvr = record["curves"]["base and RLVR"][1]["accuracy"]
        few = smallest_ratio(record["curves"]["dlogp"], rlvr - 0.05)
        places = [f"{place}: {share['change']:.2f}" for place, share in record["change"].items()]
        cells = [name, f"{rlvr:.2f}", f"{few:.2f}", ", ".join(places)]
        for one, other in itertools.pairwise(CRITERIA):
            row = record["comparison"].get(f"{one} - {other}")
            if row is None:
                cells.append("-")
                continue
            low, high = row["area_ci95"]
            cells.append(f"{row['area']:+.2f} [{low:.2f}, {high:.2f}]")
            differences.setdefault((name.split("-")[1], f"{one} - {other}"), []).append(row["area"])
        rows.append(cells)
    names = [f"{one} - {other}" for one, other in itertools.pairwise(CRITERIA)]
    print_table(["pair", "accuracy of RLVR", "dlogp: share that is enough", "where the change stands", *names], rows)

    claims = []
    for (model, name), areas in differences.items():
        mean, half = interval(areas)
        claims.append(
            {
                "pair": f"base and {model}",
                "area": name,
                "mean": mean,
                "half": half,
                "seeds above 0": sum(area > 0 for area in areas),
                "seeds": len(areas),
                "verdict": judge(mean, half, 0.0, 0.02),
            }
        )
    for row in claims:
        effect = f"{row['mean']:+.3f} ± {row['half']:.3f}" if np.isfinite(row["half"]) else f"{row['mean']:+.3f}"
        agreeing = f"above 0 on {row['seeds above 0']} of {row['seeds']} seeds"
        print(f"{row['pair']}, {row['area']}: {effect}, {agreeing}: {row['verdict']}")
    decided = {f"{key.arm}-{key.seed}": found for key, found in stages.items()}
    write_json(args.where / "real.json", {"command": "python studies/real.py", "stages": decided, "order": claims})
    draw_runs(args.where / "real.png", runs)


def model_jobs(key, args):
    """{name: Job} of what the models of a training run of dapo are asked: its end, and the stalled one."""
    end = folder_of(key, args) / "model"
    stalled = folder_of(key, args) / f"model_{2 if args.quick else STALLED:06d}"
    return {
        f"pair-end-{key.seed}": pair_job(f"pair-end-{key.seed}", end, args),
        f"end-{key.seed}": unseen_job(f"end-{key.seed}", end, args),
        f"pair-stalled-{key.seed}": pair_job(f"pair-stalled-{key.seed}", stalled, args),
    }


def main(args):
    random_answers = args.runs / "real" / "random_answers.jsonl"
    records = args.where / "real.jsonl"
    keys = run_keys(args.quick)
    waves = [keys[:3], keys[3:]]  # of the first three training runs, all is done before the others begin
    training = {key: training_job(key, random_answers, args) for key in keys}
    asked = {key: model_jobs(key, args) for key in keys if key.arm == "dapo"}
    names = ["base", *(f"{key.arm}-{key.seed}" for key in keys)]
    names += [name for jobs in asked.values() for name in jobs]
    if not all(name in read_records(records) for name in names):
        for folder, name in ((MODEL, "smollm2"), (PROBLEMS, "larger")):
            if not folder.exists():
                raise SystemExit(f"{folder} is missing; run: python data/prepare.py {name}")
        write_random_answers(random_answers)
    for wave in waves:
        run_all({f"{key.arm}-{key.seed}": training[key] for key in wave}, records=records)
        done = read_records(records)
        jobs = {"base": unseen_job("base", MODEL, args)}
        models = {}  # {file: Job} of models that are asked something and perhaps are gone: those are trained again
        for key in wave:
            if key.arm == "dapo":
                jobs.update(asked[key])
                if not all(name in done for name in asked[key]):
                    models[folder_of(key, args) / "model" / "config.json"] = Job(training[key].runs, None)
        run_all(models)
        run_all(jobs, records=records)
    report(args)


if __name__ == "__main__":
    main(arguments(__doc__))
