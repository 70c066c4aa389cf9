"""Training curves of several runs side by side: accuracy, entropy, response length and leaps, one line for each run.

Reads the metrics.jsonl of the run folders of dapo.py or grpo_n.py, and nothing else.

    python studies/compare.py runs/grpo_n/grpo runs/grpo_n/grpo-n runs/grpo_n/gspo runs/grpo_n/gspo-n
"""

import argparse
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

PANELS = {
    "test accuracy (95% over problems)": r"test/greedy|test/avg@\d+",
    "token entropy on the test set (nats)": "test/(token_)?entropy",
    "response length on the test set (tokens)": "test/length",
    "leaps of two in a training response": "leaps_two",
    "leaps of one in a training response": "leaps_one",
    "accuracy in training": "accuracy",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--out", default="runs/compare.png", help="the figure")
    args = parser.parse_args()
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for run in args.runs:
        path = Path(run) / "metrics.jsonl"
        if not path.exists():
            raise SystemExit(f"compare.py: error: {run} is no run folder: there is no {path}")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for axis, (title, pattern) in zip(axes.flat, PANELS.items(), strict=True):
            keys = sorted({k for row in rows for k in row if re.fullmatch(pattern, k)}, reverse=True)  # greedy first
            for key in keys[:1]:
                points = [(row["step"], row[key], row.get(f"{key}_ci95", 0.0)) for row in rows if key in row]
                x, y, half = np.array(points).T
                if key.startswith("test/"):
                    axis.errorbar(x, y, half, fmt="o-", ms=3, capsize=2, label=Path(run).name)
                else:  # a running mean over a tenth of the steps
                    window = np.ones(max(1, len(x) // 10))
                    y = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
                    axis.plot(x, y, label=Path(run).name)
            axis.set(title=title, xlabel="training step", ylim=(0, None))
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
