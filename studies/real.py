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
  control      dapo, seeds 1 and 2, 30 steps, the answer of every training problem drawn from its two numbers. What is boxed is then right half of the time, whichever it is. Expected: no stage two. Stage one is open
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

    python studies/real.py            # hours on two cores; goes on where it was interrupted
    python studies/real.py --quick    # runs of two steps: to see that it works
"""

import functools
import json
import random
from typing import NamedTuple

from common import ROOT, Job, Run, arguments, read_jsonl, run_all

# ------------------------------------------------------------------------------------------------------------- settings
MODEL = ROOT / "data" / "smollm2"
PROBLEMS = ROOT / "data" / "larger"
STALLED = 8  # the training step whose model is the stalled one
SIZES = "--prompts-per-step 8 --group-size 8 --mini-batch 4 --micro-batch 16 --max-response 20"
SETTINGS = f"{SIZES} --lr 2e-5 --warmup-steps 2 --eval-every 5 --eval-problems 0 --eval-samples 1"


class RunKey(NamedTuple):
    """Which training run."""

    arm: str  # "dapo", "control", "grpo" or "grpo-n"
    seed: int


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
        command = f"dapo.py --overlong-buffer 4 --save-every {STALLED}"
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


def main(args):
    for folder, name in ((MODEL, "smollm2"), (PROBLEMS, "larger")):
        if not folder.exists():
            raise SystemExit(f"{folder} is missing; run: python data/prepare.py {name}")
    random_answers = args.runs / "real" / "random_answers.jsonl"
    write_random_answers(random_answers)
    jobs = {}
    for key in run_keys(args.quick):
        record = args.where / "real" / f"{key.arm}-{key.seed}.json"
        jobs[record] = training_job(key, random_answers, args)
    run_all(jobs)


if __name__ == "__main__":
    main(arguments(__doc__))
