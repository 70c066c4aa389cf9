"""Tables 1 to 4 of paper B for any number of checkpoints: pass@k up to k = 256, answer-level and token-level entropy.

Calls `grpo_n.py --steps 0` for each model at two settings (temperature 1.0 with the full softmax, and the paper's 0.6
with top-p 0.95), two at a time, reads what it wrote, and prints means with 95% intervals over problems. The first model
is the one to compare with: each other model's line is followed by its difference to the first, paired by problem. What
was sampled already is not sampled again. Of the numbered models of one run, the picture has pass@k over training steps.

    python studies/passk.py tiny/base tiny/rlvr                            # 3 minutes on two cores
    python studies/passk.py tiny/base runs/dapo/base1/model_0*             # of dapo.py --save-every 10
    python studies/passk.py tiny/base tiny/rlvr --quick                    # 16 samples to 20 problems
"""

import argparse
import re
from typing import NamedTuple

import numpy as np
from common import ROOT, Job, Run, read_json, run_all, write_json
from matplotlib.figure import Figure


class Setting(NamedTuple):
    """How responses are sampled."""

    temperature: float
    top_p: float

    def __str__(self):
        return f"temperature {self.temperature:g}, top-p {self.top_p:g}"


SETTINGS = (Setting(1.0, 1.0), Setting(0.6, 0.95))  # the second is the paper's


# ------------------------------------------------------------------------------------------------------------- sampling
def run_of(model, setting, args):
    """The run of grpo_n.py that samples from a model."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-")
    folder = f"{name}-t{setting.temperature}-p{setting.top_p}-n{args.samples}-{args.problems}"
    flags = f"--steps 0 --passk-samples {args.samples} --passk-problems {args.problems}"
    flags += f" --passk-temperature {setting.temperature} --passk-top-p {setting.top_p}"
    flags += f" --kl-coef 0 --eval-problems 1 --test {args.test}"
    flags += f" --train {args.test} --model {model}"  # --train is read, and not used
    return Run(f"grpo_n.py {flags}", ROOT / args.runs / folder, "passk.json")


def sample(args):
    """{(setting, model): results}, from disk what is there. results: a dict for each problem, see grpo_n.py."""
    paths = {}
    jobs = {}
    for setting in SETTINGS:
        for model in args.models:
            run = run_of(model, setting, args)
            path = run.folder / run.last_file
            paths[setting, model] = path
            jobs[path] = Job([run], None)
    run_all(jobs)
    found = {}
    for key, path in paths.items():
        (problems,) = read_json(path)["models"].values()  # of one model
        found[key] = problems
    return found


# ------------------------------------------------------------------------------------------------------------- measures
def mean_and_half(x):
    """Mean and half-width of the 95% interval over problems."""
    x = np.asarray(x, dtype=float)
    return x.mean(), 1.96 * x.std(ddof=1) / np.sqrt(len(x))


def rows_of(found, setting, models, columns):
    """{label: {column: (mean, half-width)}} at a setting: each model, and its difference to the first model."""
    rows = {}
    for model in models:
        own = {column: [problem[column] for problem in found[setting, model]] for column in columns}
        rows[model] = {column: mean_and_half(own[column]) for column in columns}
        if model == models[0]:
            first = own
        else:
            differences = {column: np.subtract(own[column], first[column]) for column in columns}
            rows[f"{model} - first"] = {column: mean_and_half(differences[column]) for column in columns}
    return rows


def steps_of(models):
    """Training steps of numbered models such as "runs/x/model_000010", the first model's being 0; None of others."""
    steps = [0]
    for model in models[1:]:
        number = re.search(r"model_(\d+)/?$", model)
        if number is None:
            return None
        steps.append(int(number[1]))
    if len(steps) <= 2:  # one numbered model alone makes no curve
        return None
    return steps


# ----------------------------------------------------------------------------------------------------- table and figure
def print_table(title, rows, columns):
    """Print {label: {column: (mean, half-width)}} as a Markdown table."""
    print(f"\n| {title} | {' | '.join(columns)} |")
    print(f"|---|{'|'.join('---' for _ in columns)}|")
    for label, row in rows.items():
        cells = []
        for mean, half_width in row.values():
            no_interval = half_width == 0  # all problems give the same number
            cells.append(f"{mean:.3f}" if no_interval else f"{mean:.3f} ± {half_width:.3f}")
        print(f"| {label} | {' | '.join(cells)} |")


def draw_over_steps(axis, rows, models, steps, ks):
    """pass@k over training steps, a line for every other k; dotted: the first model's."""
    for k in ks[::2]:
        means = [rows[model][f"pass@{k}"][0] for model in models]
        half_widths = [rows[model][f"pass@{k}"][1] for model in models]
        bars = axis.errorbar(steps, means, half_widths, fmt="o-", ms=3, capsize=2, label=f"k = {k}")
        axis.axhline(means[0], lw=0.8, ls=":", color=bars[0].get_color())
    axis.set(xlabel="training step")


def draw_over_k(axis, rows, models, ks):
    """pass@k over k, a line for every model."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, ks)
    for model in models:
        means = [rows[model][f"pass@{k}"][0] for k in ks]
        half_widths = [rows[model][f"pass@{k}"][1] for k in ks]
        axis.errorbar(ks, means, half_widths, fmt="o-", ms=3, capsize=2, label=model)
    axis.set(xlabel="k, samples a problem")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders or hub names; the first is compared with")
    parser.add_argument("--test", default="tiny/test.jsonl", help="problems")
    parser.add_argument("--problems", type=int, default=100, help="the first N of them; 0: all")
    parser.add_argument("--samples", type=int, default=256, help="responses to a problem, n; a power of two")
    parser.add_argument("--runs", default="runs/studies/passk", help="folder of what was sampled")
    parser.add_argument("--out", default="runs/passk", help="the result: OUT.json and OUT.png")
    parser.add_argument("--quick", action="store_true", help="16 samples to 20 problems, result beside the runs")
    args = parser.parse_args()
    if args.quick:
        args.samples = 16
        args.problems = 20
        args.out = f"{args.runs}/quick"
    ks = [2**i for i in range(args.samples.bit_length())]
    columns = [f"pass@{k}" for k in ks] + ["answer_entropy", "token_entropy", "length"]  # nats, tokens
    steps = steps_of(args.models)
    found = sample(args)

    tables = {}
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, len(SETTINGS), sharey=True)
    for axis, setting in zip(axes, SETTINGS, strict=True):
        rows = rows_of(found, setting, args.models, columns)
        tables[str(setting)] = rows
        print_table(setting, rows, columns)
        if steps is None:
            draw_over_k(axis, rows, args.models, ks)
        else:
            draw_over_steps(axis, rows, args.models, steps, ks)
        axis.set(title=str(setting), ylim=(0, 1.02), ylabel="pass@k")
        axis.grid(alpha=0.3)
        axis.legend()
    target = ROOT / args.out
    about = {"models": args.models, "samples": args.samples, "problems": args.problems, "settings": tables}
    write_json(target.with_suffix(".json"), about)
    figure.savefig(target.with_suffix(".png"), dpi=110)
    print(f"\nwritten: {target.with_suffix('.json')}, {target.with_suffix('.png')}")


if __name__ == "__main__":
    main()
