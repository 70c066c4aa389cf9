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
    "accuracy, test problems": ("test/greedy", "test/accuracy"),
    "entropy, test problems (nats)": ("test/token_entropy", "test/entropy"),
    "length, test problems (tokens)": ("test/length",),
    "two at once, per training response": ("two_at_once",),
    "one at a time, per training response": ("one_at_a_time",),
    "accuracy, training rollouts": ("accuracy",),
    "entropy, training rollouts (nats)": ("entropy",),
}
# of lines that have no style of their own; orange, blue and green are the colours of the actions
STYLES = [
    (color, line)
    for line in ("-", "--", ":")
    for color in ("black", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive")
]


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


def draw_group(axis, group, metric, style, label):
    """A line of a metric: the mean over the runs of a group, and their range. style: colour and line.

    What is of training is smoothed. One run alone has 95% intervals over problems, where it logged them.
    """
    color, line = style
    rows_of_runs = []
    for run in group:
        rows_of_runs.append([row for row in run if row.get(metric) is not None])
    steps = [row["step"] for row in rows_of_runs[0]]
    y = np.array([[row[metric] for row in rows] for rows in rows_of_runs])  # (runs, T)
    is_test = metric.startswith("test/")
    if not is_test:
        y = np.array([smoothed(run) for run in y])
    axis.plot(steps, y.mean(0), marker="o" if is_test else "", ms=2.5, lw=1.2, color=color, ls=line, label=label)
    if len(group) == 1 and is_test:
        half_widths = [row.get(f"{metric}_ci95", 0.0) for row in rows_of_runs[0]]
        axis.errorbar(steps, y.mean(0), half_widths, fmt="none", capsize=2, ecolor=color)
    axis.fill_between(steps, y.min(0), y.max(0), color=color, alpha=0.07, lw=0)


def draw(path, runs, title="", styles=None):
    """The figure. runs: {label: [the rows of metrics.jsonl, for each of its runs]}; styles: {label: (colour, line)}."""
    figure = Figure(figsize=(10.5, 5.5), layout="constrained")
    *axes, place_of_legend = figure.subplots(2, 4).flat
    for axis, (panel, metrics) in zip(axes, PANELS.items(), strict=True):
        for i, (label, group) in enumerate(runs.items()):
            metric = metric_of(group[0], metrics)
            if metric is not None:
                style = styles[label] if styles else STYLES[i % len(STYLES)]
                draw_group(axis, group, metric, style, label)
        axis.set_title(panel, fontsize=9)
        axis.set(xlabel="training step", ylim=(0, None))
        axis.grid(alpha=0.3)
    n_runs = max(len(group) for group in runs.values())
    place_of_legend.axis("off")
    legend = place_of_legend.legend(*axes[0].get_legend_handles_labels(), loc="center", fontsize=9)
    if n_runs > 1:
        legend.set_title(f"mean of {n_runs} runs; shaded: range", prop={"size": 9})
    if title:
        figure.suptitle(title, weight="bold")
    figure.savefig(path, dpi=88)


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
