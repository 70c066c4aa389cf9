"""Paper B, sections 2 and 4: what is different when only what failed gives a gradient?

Trains `grpo_n.py` with grpo, grpo-n, gspo and gspo-n at one learning rate (1e-4; the paper has one for all, too), and
with grpo at 3e-4, the rate of its own that studies/grpo_n_lr.py chose: at that one GRPO has saturated by the end. All
from tiny/base, seeds 21 to 23, otherwise the default command: 140 steps. Steps 70 and 140 of each run are sampled 256
times on 48 test problems at the paper's temperature 0.6 and top-p 0.95, and so is the base.

The rule, written before these seeds were run. Effects are of one seed each, differences are paired by seed; intervals
are Student's t over the three seeds, 95%, and not corrected for the number of claims.
  entropy     of training responses, nats a token, mean of the last 10 steps; compared as log-ratios
              "X keeps more than GRPO": holds above 0; does not hold where 5% and more are excluded; both GRPOs
              "X regains": log(entropy at the end / its lowest mean of 10 consecutive steps): holds above log 1.1, does
              not hold below
              The same at equal accuracy: entropy of the first 10 steps whose mean training accuracy is 0.55 or more
              (seeds where a run gets there never are left out)
  k = 1       avg@4 on all 500 test problems at the end: "competitive" if X - GRPO lies above -0.05, not if below
  k = 256     pass@256 minus the base's: "GRPO is at or below": holds below +0.02, does not hold above;
              "X is at or above" for the others: holds above -0.02, does not hold below
  leap of one in training responses, means of 10 steps: step at which it first exceeds 1 a response minus the step at
              which leaps of two do (the last step where neither happens): "first" holds below 0, does not hold above
  prolonged   pass@256: "early training shrinks" base minus step 70, "more training expands" step 140 minus step 70:
              hold above 0, do not hold below 0.02

    python studies/negative_only.py            # about an hour on two cores; goes on where it was interrupted
    python studies/negative_only.py --quick    # two runs of four steps: to see that it works
"""

import argparse
import functools
import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, decide, interval, read_json, rows_of, run_all, table, write_json

ARMS = {a: f"--algorithm {a} --lr 1e-4 --entropy-coef 0" for a in ("grpo", "grpo-n", "gspo", "gspo-n")}
ARMS["grpo 3e-4"] = "--algorithm grpo --lr 3e-4 --entropy-coef 0"
for arm in ("gspo", "gspo-n"):
    ARMS[arm] += " --eps-low 3e-4 --eps-high 4e-4"  # the GSPO paper's range; paper B has 0.2 for all
BOTH = ("grpo", "grpo 3e-4")
SEEDS, STEPS = (21, 22, 23), 140
CURVES = ("accuracy", "entropy", "leaps_one", "leaps_two", "length")
WINDOW = 10  # steps
K = "pass@256"


def pass_at(folder):
    """{"pass@1": mean over problems, ...} of a folder that grpo_n.py --steps 0 filled."""
    (model,) = read_json(folder / "passk.json")["models"].values()
    return {key: float(np.mean([problem[key] for problem in model])) for key in model[0] if key.startswith("pass@")}


def summary(folder, sampled):
    """What a run leaves in its record: training curves, the last evaluation, pass@k at each of the sampled steps."""
    rows = rows_of(folder)
    found = {name: [round(row.get(name, 0.0), 5) for row in rows[1:]] for name in CURVES}
    names = {"test/avg@4": "test/pass@1", "test/entropy": "test/token_entropy"}  # the records' names, the run's names
    names |= {name: name for name in ("test/greedy", "test/length")}
    found["test"] = {name: rows[-1][key] for name, key in names.items()}
    return found | {"pass@k": {step: pass_at(path) for step, path in sampled.items()}}


def smooth(values):
    """Means of WINDOW consecutive values; of all of them where there are fewer."""
    window = min(WINDOW, len(values))
    return np.convolve(values, np.ones(window) / window, "valid")


def first_above(values, level):
    """The first step (from 1) at which the mean of the WINDOW steps up to it exceeds level; the last if none does."""
    above = smooth(values) > level
    return int(np.argmax(above)) + len(values) - len(above) + 1 if above.any() else len(values)


def scores(run, base, steps):
    """{measure: value} of one run, to be compared with the same measure of another; nan where it has none."""
    entropy, reached = smooth(run["entropy"]), smooth(run["accuracy"]) >= 0.55
    middle, end = (run["pass@k"][str(step)][K] for step in (steps // 2, steps))
    return {
        "log entropy": math.log(entropy[-1]),
        "log entropy at accuracy 0.55": math.log(entropy[np.argmax(reached)]) if reached.any() else math.nan,
        "log of entropy over its lowest": math.log(entropy[-1] / entropy.min()),
        "avg@4": run["test"]["test/avg@4"],
        "steps that they lead by": first_above(run["leaps_two"], 1) - first_above(run["leaps_one"], 1),
        K: end,
        f"{K} over the base's": end - base[K],
        f"{K} lost at half of the steps": base[K] - middle,
        f"{K} gained from there": end - middle,
    }


def draw(path, runs, seeds):
    """Training curves above (one thin line a seed, their mean thick), pass@k over k and over training below."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    titles = {"accuracy": "accuracy in training", "entropy": "token entropy in training (nats)"}
    titles |= {"leaps_two": "leaps of two in a training response", "leaps_one": "leaps of one in a training response"}
    colors = dict(zip(ARMS, ("C0", "C1", "C2", "C3", "C4"), strict=True))
    shown = [arm for arm in ARMS if (arm, seeds[0]) in runs]
    for axis, (name, title) in zip(axes.flat, titles.items(), strict=False):
        for arm in shown:
            lines = np.array([smooth(runs[arm, seed][name]) for seed in seeds])
            x = np.arange(lines.shape[1]) + len(runs[arm, seeds[0]][name]) - lines.shape[1] + 1
            axis.plot(x, lines.T, color=colors[arm], lw=0.5, alpha=0.6)
            axis.plot(x, lines.mean(0), color=colors[arm], label=arm if "3e-4" in arm else f"{arm}, 1e-4")
        axis.set(title=title, xlabel="training step")
        axis.set(yscale="log") if name == "entropy" else axis.set_ylim(0, None)
    axes[0, 1].set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.4], ["0.01", "0.02", "0.05", "0.1", "0.2", "0.4"])
    axes[0, 1].minorticks_off()
    axes[0, 0].legend(fontsize=8)
    base = [runs["base", seed] for seed in seeds]
    ks = [int(name.removeprefix("pass@")) for name in base[0]]
    late = max(runs[shown[0], seeds[0]]["pass@k"], key=int)
    curves = {"base": base} | {arm: [runs[arm, seed]["pass@k"][late] for seed in seeds] for arm in shown}
    for arm, found in curves.items():
        mean, half = np.array([interval([one[f"pass@{k}"] for one in found]) for k in ks]).T
        how = {"fmt": "o-", "ms": 3, "capsize": 2, "color": colors.get(arm, "black"), "label": arm}
        axes[1, 1].errorbar(ks, mean, np.where(np.isfinite(half), half, 0), **how)
    axes[1, 1].set(title="pass@k at the end (95% over seeds)", xlabel="k, samples a problem", ylim=(0, 1.03))
    axes[1, 1].legend(fontsize=8)
    axes[1, 1].set_xscale("log", base=2)
    axes[1, 1].set_xticks(ks[::2], ks[::2])
    for i, arm in enumerate(shown):
        steps = sorted(runs[arm, seeds[0]]["pass@k"], key=int)
        values = [[one[K] for one in base], *([runs[arm, s]["pass@k"][t][K] for s in seeds] for t in steps)]
        x = np.array([0, *map(int, steps)]) + (i - 2) * 1.5  # side by side
        axes[1, 2].plot(x, [np.mean(v) for v in values], color=colors[arm])
        axes[1, 2].plot(x, values, "o", ms=3, color=colors[arm])
    axes[1, 2].set(title=f"{K} over training (dots: seeds)", xlabel="training step", xticks=[0, *map(int, steps)])
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.suptitle("grpo_n.py from tiny/base: four algorithms at lr 1e-4, and GRPO at 3e-4")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs of four steps, nothing recorded")
    parser.add_argument("--runs", default="runs/studies/negative_only", help="folder of the runs")
    args = parser.parse_args()
    where, runs = ROOT / "studies" / "results", ROOT / args.runs
    arms, seeds, steps, short = tuple(ARMS), SEEDS, STEPS, f"--eval-every {STEPS} --save-every {STEPS // 2}"
    sample = "--passk-samples 256 --passk-problems 48"
    if args.quick:
        where, arms, seeds, steps = runs, ("grpo", "grpo-n"), (1,), 4
        short = "--steps 4 --prompts-per-step 2 --mini-batch 2 --gen-batch 2 --eval-problems 4 --save-every 2"
        sample = "--passk-samples 256 --passk-problems 2"
    test = f"grpo_n.py --steps 0 --eval-problems 1 {sample} --passk-temperature 0.6 --passk-top-p 0.95"
    jobs, records = {}, {}
    for seed in seeds:
        sampled = runs / f"base-{seed}-passk"
        records["base", seed] = path = where / "negative_only" / f"base-{seed}.json"
        jobs[path] = [(f"{test} --seed {seed}", sampled, "passk.json")], functools.partial(pass_at, sampled)
        for arm in arms:
            records[arm, seed] = path = where / "negative_only" / f"{arm.replace(' ', '-')}-{seed}.json"
            folder = runs / path.stem
            commands = [(f"grpo_n.py {ARMS[arm]} --passk-samples 0 --seed {seed} {short}", folder, "model/config.json")]
            sampled = {step: runs / f"{path.stem}-passk-{step}" for step in (steps // 2, steps)}
            for step, out in sampled.items():
                commands.append((f"{test} --seed {seed} --model {folder}/model_{step:06d}", out, "passk.json"))
            jobs[path] = commands, functools.partial(summary, folder, sampled)
    run_all(jobs)
    found = {key: read_json(path) for key, path in records.items()}
    score = {(arm, s): scores(found[arm, s], found["base", s], steps) for arm in arms for s in seeds}
    claims, log5 = [], math.log(1.05)

    def claim(text, measure, arm, other=None, sign=1, **rule):
        """Judge `measure` of an arm, or its difference to another's, over seeds; seeds without it are left out."""
        values = [score[arm, s][measure] - (score[other, s][measure] if other else 0) for s in seeds]
        values = [sign * value for value in values if not math.isnan(value)]
        claims.append(decide(text, f"minus {measure}" if sign < 0 else measure, values, **rule))

    for arm in [arm for arm in arms if arm not in BOTH]:
        for grpo in [grpo for grpo in BOTH if grpo in arms]:
            claim(f"{arm} ends with more entropy than {grpo}", "log entropy", arm, grpo, below=log5)
            text = f"{arm} has more entropy than {grpo} at equal accuracy"
            claim(text, "log entropy at accuracy 0.55", arm, grpo, below=log5)
            claim(f"{arm} is competitive with {grpo} at k = 1", "avg@4", arm, grpo, above=-0.05, below=-0.05)
            claim(f"{arm} has more than {grpo} at k = 256", K, arm, grpo, below=0.02)
    for arm in arms:
        rule = {"above": math.log(1.1), "below": math.log(1.1)}
        claim(f"{arm} regains entropy", "log of entropy over its lowest", arm, **rule)
        side, sign = ("below", -1) if arm in BOTH else ("above", 1)
        text = f"{arm} is at or {side} the base at k = 256"
        claim(text, f"{K} over the base's", arm, sign=sign, above=-0.02, below=-0.02)
        claim(f"leaps of one come first under {arm}", "steps that they lead by", arm)
        text = f"early training with {arm} shrinks what the base can"
        claim(text, f"{K} lost at half of the steps", arm, below=0.02)
        claim(f"more training with {arm} expands it", f"{K} gained from there", arm, below=0.02)
    print(table(claims))
    print(f"\n| run | avg@4 | greedy | entropy (nats) | pass@1 | {K} |\n|---|---|---|---|---|---|")
    for arm in arms:
        values = [[found[arm, s]["test"][name] for s in seeds] for name in ("test/avg@4", "test/greedy")]
        values += [[np.mean(found[arm, s]["entropy"][-WINDOW:]) for s in seeds]]
        values += [[found[arm, s]["pass@k"][str(steps)][k] for s in seeds] for k in ("pass@1", K)]
        print(f"| {arm} | " + " | ".join("{:.3f} ± {:.3f}".format(*interval(v)) for v in values) + " |")
    base = [[found["base", s][k] for s in seeds] for k in ("pass@1", K)]
    print("| base | | | | " + " | ".join("{:.3f} ± {:.3f}".format(*interval(v)) for v in base) + " |")
    write_json(where / "negative_only.json", {"command": "python studies/negative_only.py", "claims": claims})
    draw(where / "negative_only.png", found, seeds)
    print(f"\nwritten: {where / 'negative_only.json'}, {where / 'negative_only.png'}; a record of each run beside them")


if __name__ == "__main__":
    main()
