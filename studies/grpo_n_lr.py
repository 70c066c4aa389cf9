"""The learning rate of each algorithm of grpo_n.py in the tiny world: a short sweep, judged on training problems.

Runs `grpo_n.py` for 60 steps for every algorithm, rate and seed, two single-threaded runs side by side, and prints
accuracy and entropy at the end, measured on the last 200 training problems (the test set is left alone), and leaps in
the last training responses. The rate with the best pass@1, mean over both seeds, is the algorithm's default. Runs that
are there already are not run again. Two seeds of one base: this decides no claim.

    python studies/grpo_n_lr.py            # 25 minutes on two cores; writes studies/results/grpo_n_lr.json
    python studies/grpo_n_lr.py --quick    # one rate of GSPO-N, two steps, to see that it works
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ALGORITHMS, RATES, SEEDS = ("grpo", "grpo-n", "gspo", "gspo-n"), (1e-4, 2e-4, 4e-4), (1, 2)
KEYS = {  # column: key of metrics.jsonl
    "pass@1": "test/pass@1",
    "greedy": "test/greedy",
    "entropy (nats)": "test/token_entropy",
    "length": "test/length",
    "leaps of one": "leaps_one",
    "of two": "leaps_two",
    "jumps": "leaps_jump",
}


def train(algorithm, lr, seed, out, steps, validation):
    """The last row of the run's metrics, from a finished run or from a new one."""
    if not (out / "model").exists():
        flags = f"--algorithm {algorithm} --lr {lr} --seed {seed} --steps {steps} --eval-every {steps}"
        flags += " --eval-problems 0 --passk-samples 0"
        flags += " --prompts-per-step 4 --mini-batch 2 --gen-batch 4" * (steps == 2)  # --quick
        flags += " --resume" * (out / "config.json").exists()
        command = [sys.executable, "grpo_n.py", *flags.split(), "--test", str(validation), "--out", str(out)]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        found = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True)
        if found.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{found.stderr[-2000:]}")
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs of two steps, 20 problems, nothing recorded")
    parser.add_argument("--out", default="runs/studies/grpo_n_lr", help="folder of the runs")
    args = parser.parse_args()
    folder, steps = ROOT / args.out, 2 if args.quick else 60
    folder.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()[-20 if args.quick else -200 :]
    (folder / "validation.jsonl").write_text("\n".join(lines) + "\n")
    jobs = [(algorithm, lr, seed) for algorithm in ALGORITHMS for lr in RATES for seed in SEEDS]
    jobs = jobs[-2:] if args.quick else jobs
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(train, *job, folder / "{}-{:g}-{}".format(*job), steps, folder / "validation.jsonl")
            for job in jobs
        ]
        rows = [future.result() for future in futures]
    table = {}
    for (algorithm, lr, _), row in zip(jobs, rows, strict=True):
        runs = table.setdefault(f"{algorithm} {lr:g}", {column: [] for column in KEYS})
        for column, key in KEYS.items():
            runs[column].append(row.get(key, 0.0))
    print("| algorithm and lr | pass@1 of each seed |", " | ".join(KEYS), "|\n|" + "---|" * (2 + len(KEYS)))
    for name, runs in table.items():
        seeds = ", ".join(f"{value:.3f}" for value in runs["pass@1"])
        print(f"| {name} | {seeds} |", " | ".join(f"{np.mean(values):.3f}" for values in runs.values()), "|")
    if not args.quick:
        results = ROOT / "studies" / "results"
        results.mkdir(exist_ok=True)
        (results / "grpo_n_lr.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
