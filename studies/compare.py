"""Training curves of several runs side by side: accuracy, entropy, response length and leaps, one line for each run.

Reads the metrics.jsonl of the run folders of dapo.py or grpo_n.py, and nothing else.

    python studies/compare.py runs/grpo_n/grpo runs/grpo_n/grpo-n runs/grpo_n/gspo runs/grpo_n/gspo-n
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

PANELS = {
    "test accuracy": r"test/greedy|test/avg@\d+",
    "token entropy on the test set (nats)": "test/(token_)?entropy",
    "response length on the test set (tokens)": "test/length",
    "leaps of two in a training response": "leaps_two",
    "leaps of one in a training response": "leaps_one",
    "accuracy in training": "accuracy",
}


def draw(path, runs):
    """runs: {label: [the rows of metrics.jsonl, for each of its runs]}. A line is the mean over runs, smoothed over a
    tenth of the steps where it is of training; bars are 95% intervals over problems, shades the range over runs.
    """
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (title, pattern) in zip(axes.flat, PANELS.items(), strict=True):
        for i, (label, group) in enumerate(runs.items()):
            key = max((key for row in group[0] for key in row if re.fullmatch(pattern, key)), default=None)
            if key is None:
                continue
            test = key.startswith("test/")  # greedy, where there is avg@n, too
            rows = [[row for row in run if row.get(key) is not None] for run in group]
            x, y = [row["step"] for row in rows[0]], np.array([[row[key] for row in run] for run in rows])
            half = [row.get(f"{key}_ci95", 0.0) for row in rows[0]] if len(rows) == 1 else None
            if not test:
                window = np.ones(max(1, len(x) // 10))
                y = np.array([np.convolve(run, window, "same") for run in y])
                y = y / np.convolve(np.ones(len(x)), window, "same")
            axis.errorbar(x, y.mean(0), half, fmt="o-" if test else "-", ms=3, capsize=2, color=f"C{i}", label=label)
            axis.fill_between(x, y.min(0), y.max(0), color=f"C{i}", alpha=0.1, lw=0)
        axis.set(title=title, xlabel="training step", ylim=(0, None))
        axis.grid(alpha=0.3)
    if len(runs) > 5:  # in the panel it would hide the curves
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    else:
        axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--out", default="runs/compare.png", help="the figure")
    args = parser.parse_args()
    runs = {}
    for run in args.runs:
        path = Path(run) / "metrics.jsonl"
        if not path.exists():
            raise SystemExit(f"compare.py: error: {run} is no run folder: there is no {path}")
        runs[Path(run).name] = [[json.loads(line) for line in path.read_text().splitlines()]]
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    draw(args.out, runs)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
