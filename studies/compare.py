"""Training curves of several runs side by side: accuracy, entropy, response length and actions, one line for each run.

Reads the metrics.jsonl of the run folders of dapo.py or grpo_n.py, and nothing else.

    python studies/compare.py runs/grpo_n/grpo runs/grpo_n/grpo-n runs/grpo_n/gspo runs/grpo_n/gspo-n
"""

import argparse
from pathlib import Path

import numpy as np
from common import read_jsonl
from matplotlib.figure import Figure

PANELS = {  # title: the metrics that it may show, of each run the first that it has
    "test accuracy": ("test/greedy", "test/accuracy"),
    "token entropy on the test set (nats)": ("test/token_entropy", "test/entropy"),
    "response length on the test set (tokens)": ("test/length",),
    "leaps of two in a training response": ("two_at_once",),
    "leaps of one in a training response": ("one_at_a_time",),
    "accuracy in training": ("accuracy",),
}


def metric_of(run, metrics):
    """The first of the metrics that a run, the rows of its metrics.jsonl, has; None if it has none of them."""
    for metric in metrics:
        if any(metric in row for row in run):
            return metric
    return None


def smoothed(y):
    """Moving average over a tenth of the steps, narrower at both ends: (T,) -> (T,)."""
    window = np.ones(max(1, len(y) // 10))
    return np.convolve(y, window, "same") / np.convolve(np.ones(len(y)), window, "same")


def draw_group(axis, group, metric, color, label):
    """A line of a metric: the mean over the runs of a group, and their range.

    What is of training is smoothed. One run alone has 95% intervals over problems, where it logged them.
    """
    rows_of_runs = []
    for run in group:
        rows_of_runs.append([row for row in run if row.get(metric) is not None])
    steps = [row["step"] for row in rows_of_runs[0]]
    y = np.array([[row[metric] for row in rows] for rows in rows_of_runs])  # (runs, T)
    half_widths = None
    if len(group) == 1:
        half_widths = [row.get(f"{metric}_ci95", 0.0) for row in rows_of_runs[0]]
    style = "o-"
    if not metric.startswith("test/"):
        style = "-"
        y = np.array([smoothed(run) for run in y])
    axis.errorbar(steps, y.mean(0), half_widths, fmt=style, ms=3, capsize=2, color=color, label=label)
    axis.fill_between(steps, y.min(0), y.max(0), color=color, alpha=0.1, lw=0)


def draw(path, runs):
    """The figure. runs: {label: [the rows of metrics.jsonl, for each of its runs]}."""
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (title, metrics) in zip(axes.flat, PANELS.items(), strict=True):
        for i, (label, group) in enumerate(runs.items()):
            metric = metric_of(group[0], metrics)
            if metric is not None:
                draw_group(axis, group, metric, f"C{i}", label)
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
    for folder in args.runs:
        path = Path(folder) / "metrics.jsonl"
        if not path.exists():
            raise SystemExit(f"compare.py: error: {folder} is no run folder: there is no {path}")
        runs[Path(folder).name] = [read_jsonl(path)]
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    draw(args.out, runs)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
