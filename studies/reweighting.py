"""Paper A, section 4.2 and figures 3c and 5: does it help to weigh unlikely tokens more, and are they needed at all?

Trains `dapo.py` with --reweight none, low-prob, dominate and ppl (alpha 0.2, seeds 11 to 15) and with --rollout-top-p
0.95, 0.9 and 0.7 (seeds 11 to 13; 1.0 is "none"), all from tiny/base, otherwise the default command: 140 steps.

The rule, written before these seeds were run:
  accuracy   avg@8 on all 500 test problems, full softmax, mean of the evaluations at steps 100, 120 and 140
  entropy, length    of the same three evaluations; entropies are compared as log-ratios
  effect     differences paired by seed; their mean, with the 95% interval of Student's t over seeds
  verdict    "holds": the interval lies on the claimed side of 0. "does not hold": it excludes an effect of the claimed
             sign and of at least 0.02 in accuracy, 5% in entropy, 1 token in length. Else "undecided".
Intervals are not corrected for the number of claims. Filtering might hurt only because these models are then tested
with the full softmax; so the final models are also sampled at the paper's --top-p 0.7, and that decides as well.

    python studies/reweighting.py            # two and a quarter hours on two cores; goes on where it was interrupted
    python studies/reweighting.py --quick    # three runs of two steps: to see that it works
"""

import argparse
import functools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, decide, interval, read_json, rows_of, run_all, table, write_json

SCHEMES = ("none", "low-prob", "dominate", "ppl")
NUCLEI = (0.95, 0.9, 0.7)
SEEDS, NUCLEUS_SEEDS = (11, 12, 13, 14, 15), (11, 12, 13)
LAST = (100, 120, 140)  # the evaluations that count
MEASURES = ("accuracy", "entropy", "length")


def summary(folder, nucleus):
    """What a run leaves in its record: {measure: {step: value}} of the evaluations, and the accuracy at top-p 0.7."""
    names = {"accuracy": "test/avg@8", "entropy": "test/entropy", "length": "test/length"}
    rows = [row for row in rows_of(folder) if "test/avg@8" in row]
    found = {name: {row["step"]: row[key] for row in rows} for name, key in names.items()}
    (model,) = read_json(nucleus / "passk.json")["models"].values()
    return found | {"accuracy at top-p 0.7": float(np.mean([problem["pass@1"] for problem in model]))}


def draw(path, curves, seeds):
    """Accuracy, entropy and length over training: reweighting above, --rollout-top-p below."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), layout="constrained", sharex=True, sharey="col")
    rows = (SCHEMES, ("none", *map(str, NUCLEI)))
    titles = {
        "accuracy": "test avg@8",
        "entropy": "token entropy on the test set (nats)",
        "length": "response length (tokens)",
    }
    for kinds, line in zip(rows, axes, strict=True):
        for axis, (measure, title) in zip(line, titles.items(), strict=True):
            for kind in [kind for kind in kinds if kind in seeds]:
                runs = [curves[kind, seed][measure] for seed in seeds[kind]]
                x = sorted(runs[0], key=int)
                mean, half = np.array([interval([run[step] for run in runs]) for step in x]).T
                label = kind if kinds is SCHEMES else f"top-p {1.0 if kind == 'none' else kind}"
                x = [int(step) for step in x]
                axis.plot(x, mean, "o-", ms=3, label=f"{label} ({len(runs)} seeds)")
                if len(runs) > 1:
                    axis.fill_between(x, mean - half, mean + half, alpha=0.15)
            axis.set(title=title, xlabel="training step")
            axis.grid(alpha=0.3)
        line[0].set_ylim(0, 1)
        line[1].set_ylim(0, None)
        line[0].legend()
    figure.suptitle(
        "dapo.py from tiny/base: --reweight (above), --rollout-top-p (below); mean and 95% interval over seeds"
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs of two steps, nothing recorded")
    parser.add_argument("--runs", default="runs/studies/reweighting", help="folder of the runs")
    args = parser.parse_args()
    runs, last = ROOT / args.runs, (2,) if args.quick else LAST
    seeds = dict.fromkeys(SCHEMES, SEEDS) | {str(p): NUCLEUS_SEEDS for p in NUCLEI}
    short, sample = "--save-every 20", "--passk-samples 8 --passk-problems 0"
    where = ROOT / "studies" / "results"
    if args.quick:
        seeds, where = {"none": (1,), "0.9": (1,)}, runs
        short = "--steps 2 --prompts-per-step 2 --mini-batch 2 --gen-batch 4 --max-gen-batches 2 --eval-problems 10"
        sample = "--passk-samples 8 --passk-problems 10"
    flags = {kind: f"--reweight {kind} --alpha 0.2" for kind in SCHEMES}
    flags |= {str(p): f"--rollout-top-p {p}" for p in NUCLEI}
    pairs = sorted(((kind, seed) for kind in seeds for seed in seeds[kind]), key=lambda pair: pair[1])
    records = {(kind, seed): where / "reweighting" / f"{kind}-{seed}.json" for kind, seed in pairs}
    jobs = {}
    for (kind, seed), path in records.items():
        folder, nucleus = runs / path.stem, runs / f"{path.stem}-at-0.7"
        train = f"dapo.py {flags[kind]} --seed {seed} {short}"
        test = f"grpo_n.py --steps 0 --eval-problems 1 --kl-coef 0 {sample} --passk-top-p 0.7 --seed {seed}"
        commands = [(train, folder, "model/config.json"), (f"{test} --model {folder / 'model'}", nucleus, "passk.json")]
        jobs[path] = commands, functools.partial(summary, folder, nucleus)
    run_all(jobs)
    curves = {pair: read_json(path) for pair, path in records.items()}
    score = {pair: {m: np.mean([c[m][str(t)] for t in last]) for m in MEASURES} for pair, c in curves.items()}
    for pair, c in curves.items():
        score[pair]["accuracy at top-p 0.7"] = c["accuracy at top-p 0.7"]

    claims = []

    def claim(text, measure, more, less, below):
        """Judge whether `more` exceeds `less` in `measure`, paired by seed."""
        if more not in seeds or less not in seeds:  # the short form
            return
        log = np.log if measure == "entropy" else float
        pairs = [(score[more, s], score[less, s]) for s in seeds[more] if s in seeds[less]]
        values = [log(one[measure]) - log(other[measure]) for one, other in pairs]
        claims.append(decide(text, f"log {measure}" if measure == "entropy" else measure, values, below=below))

    for other in ("none", "dominate", "ppl"):
        claim(f"low-prob is more accurate than {other}", "accuracy", "low-prob", other, 0.02)
    claim("Dominate's entropy is below DAPO's", "entropy", "none", "dominate", np.log(1.05))
    claim("low-prob's entropy is above DAPO's", "entropy", "low-prob", "none", np.log(1.05))
    claim("low-prob's responses are longer than DAPO's", "length", "low-prob", "none", 1.0)
    for measure in ("accuracy", "accuracy at top-p 0.7"):
        for p in map(str, NUCLEI):
            claim(f"rollouts at top-p {p} hurt", measure, "none", p, 0.02)
        for large, small in (("0.95", "0.9"), ("0.9", "0.7")):
            claim(f"top-p {small} hurts more than {large}", measure, large, small, 0.02)
    print(table(claims))
    print("\n| run | accuracy | at top-p 0.7 | entropy (nats) | length (tokens) |\n|---|---|---|---|---|")
    for kind in seeds:
        cells = []
        for measure in ("accuracy", "accuracy at top-p 0.7", "entropy", "length"):
            cells.append("{:.3f} ± {:.3f}".format(*interval([score[kind, s][measure] for s in seeds[kind]])))
        print(f"| {kind} | " + " | ".join(cells) + " |")
    write_json(where / "reweighting.json", {"command": "python studies/reweighting.py", "claims": claims})
    draw(where / "reweighting.png", curves, seeds)
    print(f"\nwritten: {where / 'reweighting.json'}, {where / 'reweighting.png'}; a record of each run beside them")


if __name__ == "__main__":
    main()
