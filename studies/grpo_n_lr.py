"""The learning rate of each algorithm of grpo_n.py in the tiny world: a short sweep, judged on training problems.

Runs `grpo_n.py` for 60 steps for every algorithm and rate, two single-threaded runs side by side, and prints accuracy,
entropy at the end, measured on the last 200 training problems (the test set is left alone), and leaps in the last
training responses. The rate with the best pass@1 is the one to take. Runs that are there already are not run again.
One seed: this decides no claim.

    python studies/grpo_n_lr.py            # about 14 minutes on two cores; writes studies/results/grpo_n_lr.json
    python studies/grpo_n_lr.py --quick    # two rates of GSPO-N, two steps, to see that it works
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RATES = {
    "grpo": (3e-5, 1e-4, 3e-4),
    "grpo-n": (1e-5, 3e-5, 1e-4, 3e-4),
    "gspo": (3e-5, 1e-4, 3e-4),
    "gspo-n": (3e-5, 1e-4, 3e-4),
}


def train(algorithm, lr, out, steps, validation):
    """The last row of the run's metrics, from a finished run or from a new one."""
    if not (out / "model").exists():
        flags = (
            f"--algorithm {algorithm} --lr {lr} --entropy-coef 0 --steps {steps} --eval-every {steps} --passk-samples 0"
        )
        flags += " --eps-low 3e-4 --eps-high 4e-4" * algorithm.startswith("gspo")
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
    base, steps = ROOT / args.out, 2 if args.quick else 60
    base.mkdir(parents=True, exist_ok=True)
    lines = (ROOT / "tiny" / "train.jsonl").read_text().splitlines()[-20 if args.quick else -200 :]
    (base / "validation.jsonl").write_text("\n".join(lines) + "\n")
    jobs = [(algorithm, lr) for algorithm, rates in RATES.items() for lr in rates]
    jobs = jobs[-2:] if args.quick else jobs
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(train, a, lr, base / f"{a}-{lr:g}-{steps}", steps, base / "validation.jsonl") for a, lr in jobs
        ]
        rows = [future.result() for future in futures]
    keys = "test/pass@1 test/pass@1_ci95 test/greedy test/greedy_ci95 test/token_entropy test/length".split()
    keys += ["leaps_one", "leaps_two", "leaps_jump"]  # of the last training responses
    table = []
    for (algorithm, lr), row in zip(jobs, rows, strict=True):
        table.append(
            {"algorithm": algorithm, "lr": lr} | {key.removeprefix("test/"): row.get(key, 0.0) for key in keys}
        )
    print(
        "| algorithm | lr | pass@1 | greedy | entropy (nats) | length | leaps of one | of two | jumps |\n|" + "---|" * 9
    )
    for r in table:
        scores = [f"{r[key]:.3f} ± {r[key + '_ci95']:.3f}" for key in ("pass@1", "greedy")]
        numbers = [f"{r[key]:.2f}" for key in ("token_entropy", "length", "leaps_one", "leaps_two", "leaps_jump")]
        print("|", " | ".join([r["algorithm"], f"{r['lr']:g}", *scores, *numbers]), "|")
    if not args.quick:
        results = ROOT / "studies" / "results"
        results.mkdir(exist_ok=True)
        (results / "grpo_n_lr.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
