"""Tables 1 to 4 of paper B for any number of checkpoints: pass@k up to k = 256, answer-level and token-level entropy.

Calls `grpo_n.py --steps 0` for each model at two settings (temperature 1.0 with the full softmax, and the paper's 0.6
with top-p 0.95), reads what it wrote, and prints means with 95% intervals over problems. The first model is the one to
compare with: each other model's line is followed by its difference to the first, paired by problem. What was sampled
already is not sampled again. Of the numbered models of one run, the picture has pass@k over training steps.

    python studies/passk.py tiny/base tiny/rlvr                            # 4 minutes on two cores
    python studies/passk.py tiny/base runs/dapo/numbered/model_0*          # dapo.py --save-every 10: ... minutes
    python studies/passk.py tiny/base tiny/rlvr --quick      # 16 samples to 20 problems
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ((1.0, 1.0), (0.6, 0.95))  # (temperature, top-p); the second is the paper's


def sample(model, temperature, top_p, args):
    """{measure: values over problems} of one model at one setting, from disk if it is there."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", model).strip("-")
    out = ROOT / args.runs / f"{name}-t{temperature}-p{top_p}-n{args.samples}-{args.problems}"
    if not (out / "passk.json").exists():
        flags = f"--steps 0 --passk-samples {args.samples} --passk-problems {args.problems} --passk-temperature"
        flags += f" {temperature} --passk-top-p {top_p} --kl-coef 0 --eval-problems 1 --test {args.test}"
        flags += f" --train {args.test}"  # read, and not used
        flags += " --resume" * (out / "config.json").exists()
        command = [sys.executable, "grpo_n.py", *flags.split(), "--model", model, "--out", str(out)]
        if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"{model} could not be sampled: see the message above")
    problems = json.loads((out / "passk.json").read_text())["models"][model]
    return {
        key: [problem[key] for problem in problems]
        for key in problems[0]
        if key not in ("prompt", "answer", "response")
    }


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
    parser.add_argument("--out", default="studies/results/passk", help="the result: OUT.json and OUT.png")
    parser.add_argument("--quick", action="store_true", help="16 samples to 20 problems, result beside the runs")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.problems, args.out = 16, 20, f"{args.runs}/quick"
    ks, result = [2**i for i in range(args.samples.bit_length())], {}
    numbers = [0, *(int(match[1]) for model in args.models[1:] if (match := re.search(r"model_(\d+)/?$", model)))]
    numbers = numbers if len(numbers) == len(args.models) > 2 else None  # training steps, the base at 0
    figure, axes = plt.subplots(1, len(SETTINGS), figsize=(10, 4), layout="constrained", sharey=True)
    for axis, (temperature, top_p) in zip(axes, SETTINGS, strict=True):
        setting = f"temperature {temperature:g}, top-p {top_p:g}"
        found = {model: sample(model, temperature, top_p, args) for model in args.models}
        first = found[args.models[0]]
        print(f"\n{setting}: pass@k\n\n| model | " + " | ".join(map(str, ks)) + " |\n|---|" + "---|" * len(ks))
        result[setting] = {}
        for model, one in found.items():
            rows = {"": one} if one is first else {"": one, " - first": {k: np.subtract(one[k], first[k]) for k in one}}
            for suffix, values in rows.items():
                cells = [mean_and_half(values[f"pass@{k}"]) for k in ks]
                sign = "+" if suffix else ""
                print(f"| {model}{suffix} | " + " | ".join(f"{m:{sign}.3f} ± {h:.3f}" for m, h in cells) + " |")
                result[setting][model + suffix] = {f"pass@{k}": c for k, c in zip(ks, cells, strict=True)}
            cells = [result[setting][model][f"pass@{k}"] for k in ks]
            if not numbers:
                axis.errorbar(ks, *zip(*cells, strict=True), fmt="o-", ms=3, capsize=2, label=model)
        print("\n| model | answer entropy (nats) | token entropy (nats) | tokens a response |\n|---|---|---|---|")
        for model, one in found.items():
            cells = {key: mean_and_half(one[key]) for key in ("answer_entropy", "token_entropy", "length")}
            result[setting][model] |= cells
            print(f"| {model} | " + " | ".join(f"{m:.3f} ± {h:.3f}" for m, h in cells.values()) + " |")
        if numbers:
            for k in ks[::2]:
                curve = [result[setting][model][f"pass@{k}"] for model in args.models]
                line = axis.errorbar(numbers, *zip(*curve, strict=True), fmt="o-", ms=3, capsize=2, label=f"k = {k}")[0]
                axis.axhline(curve[0][0], lw=0.8, ls=":", color=line.get_color())  # the base
            axis.set(xlabel="training step")
        else:
            axis.set_xscale("log", base=2)
            axis.set_xticks(ks, ks)
            axis.set(xlabel="k, samples a problem")
        axis.set(title=setting, ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("pass@k")
    axes[0].legend()
    target = ROOT / args.out
    target.parent.mkdir(parents=True, exist_ok=True)
    about = {"models": args.models, "samples": args.samples, "problems": args.problems, "settings": result}
    target.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")
    figure.savefig(target.with_suffix(".png"), dpi=110)
    print(f"\nwritten: {target.with_suffix('.json')}, {target.with_suffix('.png')}")


if __name__ == "__main__":
    main()
