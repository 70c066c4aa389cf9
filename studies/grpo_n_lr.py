"""The learning rate of each algorithm of grpo_n.py in the tiny world: a short sweep, judged on training problems.

Runs `grpo_n.py` for 40 steps for every algorithm, rate and seed, all from tiny/base. Prints accuracy and entropy at the
end, measured on the last 200 training problems (the test set is left alone), and the actions in the last training
responses. The rate with the best pass@1, mean over both seeds, is the algorithm's default. Two seeds of one base model:
this decides no claim.

    python studies/grpo_n_lr.py            # 50 minutes on two cores; goes on where it was interrupted
    python studies/grpo_n_lr.py --quick    # two rates of GSPO-N, two steps, to see that it works
"""

import functools
from typing import NamedTuple

import numpy as np
from common import ROOT, Job, Run, arguments, read_jsonl, read_records, run_all

# ------------------------------------------------------------------------------------------------------------- settings
ALGORITHMS = ("grpo", "grpo-n", "gspo", "gspo-n")
RATES = (1e-4, 2e-4, 4e-4)
SEEDS = (1, 2)
COLUMNS = {  # of the table and of a record: name in metrics.jsonl
    "pass@1": "test/pass@1",
    "greedy": "test/greedy",
    "entropy (nats)": "test/token_entropy",
    "length": "test/length",
    "one at a time": "one_at_a_time",
    "two at once": "two_at_once",
    "guess": "guess",
}


class RunKey(NamedTuple):
    """Which run of grpo_n.py."""

    algorithm: str
    lr: float
    seed: int


# ----------------------------------------------------------------------------------------------------------------- jobs
def run_keys(quick):
    """All runs, a list of RunKey."""
    if quick:
        return [RunKey("gspo-n", 2e-4, 1), RunKey("gspo-n", 4e-4, 1)]
    keys = []
    for algorithm in ALGORITHMS:
        for lr in RATES:
            for seed in SEEDS:
                keys.append(RunKey(algorithm, lr, seed))
    return keys


def run_name(key):
    """RunKey("grpo", 1e-4, 1) -> "grpo-0.0001-1", the name of its record."""
    return f"{key.algorithm}-{key.lr:g}-{key.seed}"


def write_validation(path, quick):
    """Write the last training problems to a file of their own."""
    n = 20 if quick else 200
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()[-n:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def training_job(key, validation, args):
    """The Job of a run, judged on the problems of the file `validation`."""
    steps = 2 if args.quick else 40
    flags = f"--algorithm {key.algorithm} --lr {key.lr} --seed {key.seed} --steps {steps} --eval-every {steps}"
    flags += f" --eval-problems 0 --passk-samples 0 --test {validation}"
    if args.quick:
        flags += " --prompts-per-step 2 --mini-batch 2"
    folder = args.runs / "grpo_n_lr" / run_name(key)
    run = Run(f"grpo_n.py {flags}", folder, "model/config.json")
    return Job([run], functools.partial(last_row, folder))


def last_row(folder):
    """The record of a run: the last row of its metrics, by column of the table."""
    row = read_jsonl(folder / "metrics.jsonl")[-1]
    return {column: row.get(metric, 0.0) for column, metric in COLUMNS.items()}


# ---------------------------------------------------------------------------------------------------------------- table
def print_table(records):
    """Print a line for each algorithm and rate, means over seeds. records: {RunKey: record}."""
    rows_of_rate = {}  # a row for each seed
    for key, record in records.items():
        rows_of_rate.setdefault((key.algorithm, key.lr), []).append(record)
    print(f"| algorithm | lr | pass@1 of each seed | {' | '.join(COLUMNS)} |")
    print(f"|---|---|---|{'|'.join('---' for _ in COLUMNS)}|")
    for (algorithm, lr), rows in rows_of_rate.items():
        cells = [algorithm, f"{lr:g}", ", ".join(f"{row['pass@1']:.3f}" for row in rows)]
        for column in COLUMNS:
            cells.append(f"{np.mean([row[column] for row in rows]):.3f}")
        print(f"| {' | '.join(cells)} |")


def main():
    args = arguments(__doc__)
    validation = args.runs / "grpo_n_lr" / "validation.jsonl"
    write_validation(validation, args.quick)
    keys = run_keys(args.quick)
    path = args.where / "grpo_n_lr.jsonl"
    run_all({run_name(key): training_job(key, validation, args) for key in keys}, records=path)
    records = read_records(path)
    print_table({key: records[run_name(key)] for key in keys})


if __name__ == "__main__":
    main()
