"""The learning rate of each algorithm of grpo_n.py in the tiny world: a short sweep, judged on training problems.

Runs `grpo_n.py` for 40 steps for every algorithm, rate and seed, all from tiny/base, and prints accuracy and entropy at
the end, measured on the last 200 training problems (the test set is left alone), and leaps in the last training
responses. The rate with the best pass@1, mean over both seeds, is the algorithm's default. Two seeds of one base: this
decides no claim.

    python studies/grpo_n_lr.py            # 50 minutes on two cores; goes on where it was interrupted
    python studies/grpo_n_lr.py --quick    # two rates of GSPO-N, two steps, to see that it works
"""

import functools
import itertools
import json

import numpy as np
from common import ROOT, arguments, read_json, run_all

ALGORITHMS, RATES, SEEDS = ("grpo", "grpo-n", "gspo", "gspo-n"), (1e-4, 2e-4, 4e-4), (1, 2)
COLUMNS = {"pass@1": "test/pass@1", "greedy": "test/greedy", "entropy (nats)": "test/token_entropy"}
COLUMNS |= {"length": "test/length", "leaps of one": "leaps_one", "of two": "leaps_two", "jumps": "leaps_jump"}


def last_row(folder):
    """The last row of a run's metrics, by column of the table."""
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {column: row.get(key, 0.0) for column, key in COLUMNS.items()}


def main():
    args = arguments(__doc__)
    folder, steps = args.runs / "grpo_n_lr", 2 if args.quick else 40
    folder.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()[-20 if args.quick else -200 :]
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")
    fixed = f"--steps {steps} --eval-every {steps} --eval-problems 0 --passk-samples 0 --test {folder}/validation.jsonl"
    fixed += " --prompts-per-step 2 --mini-batch 2" * args.quick
    runs = [*itertools.product(ALGORITHMS, RATES, SEEDS)]
    jobs, records = {}, {}
    for algorithm, lr, seed in runs[-4::2] if args.quick else runs:
        name = f"{algorithm}-{lr:g}-{seed}"
        command = f"grpo_n.py --algorithm {algorithm} --lr {lr} --seed {seed} {fixed}", folder / name
        jobs[args.where / "grpo_n_lr" / f"{name}.json"] = (
            [(*command, "model/config.json")],
            functools.partial(last_row, folder / name),
        )
        records.setdefault((algorithm, lr), []).append(args.where / "grpo_n_lr" / f"{name}.json")
    run_all(jobs)
    print("| algorithm | lr | pass@1 of each seed |", " | ".join(COLUMNS), "|\n|" + "---|" * (3 + len(COLUMNS)))
    for (algorithm, lr), paths in records.items():
        rows = [read_json(path) for path in paths]
        means = [f"{np.mean([row[column] for row in rows]):.3f}" for column in COLUMNS]
        seeds = ", ".join(f"{row['pass@1']:.3f}" for row in rows)
        print(f"| {algorithm} | {lr:g} | {seeds} |", " | ".join(means), "|")


if __name__ == "__main__":
    main()
