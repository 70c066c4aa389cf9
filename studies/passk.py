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

import numpy as np
from common import ROOT, read_json, run_all, write_json
from matplotlib.figure import Figure

SETTINGS = ((1.0, 1.0), (0.6, 0.95))  # (temperature, top-p); the second is the paper's


def sample(args):
    """{(setting, model): {measure: values over problems}}, from disk what is there."""
    jobs, paths = {}, {}
    for temperature, top_p in SETTINGS:
        for model in args.models:
            name = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-")
            out = ROOT / args.runs / f"{name}-t{temperature}-p{top_p}-n{args.samples}-{args.problems}"
            flags = f"--steps 0 --passk-samples {args.samples} --passk-problems {args.problems} --passk-temperature"
            flags += f" {temperature} --passk-top-p {top_p} --kl-coef 0 --eval-problems 1 --test {args.test}"
            command = f"grpo_n.py {flags} --train {args.test} --model {model}"  # --train is read, and not used
            paths[(temperature, top_p), model] = out / "passk.json"
            jobs[out / "passk.json"] = [(command, out, "passk.json")], None
    run_all(jobs)
    found = {}
    for key, path in paths.items():
        (problems,) = read_json(path)["models"].values()
        measures = [measure for measure, value in problems[0].items() if isinstance(value, (int, float))]
        found[key] = {measure: [problem[measure] for problem in problems] for measure in measures}
    return found


def mean_and_half(x):
    """Mean and half-width of the 95% interval over problems."""
    x = np.asarray(x, dtype=float)
    return x.mean(), 1.96 * x.std(ddof=1) / np.sqrt(len(x))


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
        args.samples, args.problems, args.out = 16, 20, f"{args.runs}/quick"
    numbers = [re.search(r"model_(\d+)/?$", model) for model in args.models[1:]]
    steps = [0, *(int(number[1]) for number in numbers)] if len(numbers) > 1 and all(numbers) else None
    found, ks, result = sample(args), [2**i for i in range(args.samples.bit_length())], {}
    columns = [*(f"pass@{k}" for k in ks), "answer_entropy", "token_entropy", "length"]  # nats, tokens
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, setting in zip(figure.subplots(1, len(SETTINGS), sharey=True), SETTINGS, strict=True):
        name, first, rows = "temperature {:g}, top-p {:g}".format(*setting), found[setting, args.models[0]], {}
        for model in args.models:
            own = found[setting, model]
            rows[model] = {column: mean_and_half(own[column]) for column in columns}
            if own is not first:
                less = {column: np.subtract(own[column], first[column]) for column in columns}
                rows[f"{model} - first"] = {column: mean_and_half(less[column]) for column in columns}
        print(f"\n| {name} | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
        for label, row in rows.items():
            print(f"| {label} | " + " | ".join(f"{mean:.3f} ± {half:.3f}" for mean, half in row.values()) + " |")
        if steps:
            lines = {f"k = {k}": [rows[model][f"pass@{k}"] for model in args.models] for k in ks[::2]}
        else:
            lines = {model: [rows[model][f"pass@{k}"] for k in ks] for model in args.models}
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, ks)
        for label, cells in lines.items():
            line = axis.errorbar(steps or ks, *zip(*cells, strict=True), fmt="o-", ms=3, capsize=2, label=label)[0]
            if steps:
                axis.axhline(cells[0][0], lw=0.8, ls=":", color=line.get_color())  # the first model
        xlabel = "training step" if steps else "k, samples a problem"
        axis.set(title=name, ylim=(0, 1.02), ylabel="pass@k", xlabel=xlabel)
        axis.grid(alpha=0.3)
        axis.legend()
        result[name] = rows
    target = ROOT / args.out
    about = {"models": args.models, "samples": args.samples, "problems": args.problems, "settings": result}
    write_json(target.with_suffix(".json"), about)
    figure.savefig(target.with_suffix(".png"), dpi=110)
    print(f"\nwritten: {target.with_suffix('.json')}, {target.with_suffix('.png')}")


if __name__ == "__main__":
    main()
