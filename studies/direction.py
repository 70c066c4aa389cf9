"""Paper A, section 3.1 and figures 1b, 3, 12-15: does dlogp show what RLVR changed, where entropy and KL do not?

Runs `delta_logp.py` on six pairs of tiny/base and an RLVR model: DAPO, seeds 11 to 13 (of reweighting.py), and GRPO-N,
seeds 21 to 23 (of negative_only.py); 100 test problems, 8 responses of each model. And once more for each seed with
the base in the place of the RLVR model, on 20 training problems: the first step of training.

The rule, written before these pairs were analysed. Intervals are Student's t over the six pairs, 95%, not corrected
for the number of claims.
  dlogp tells apart   overlap of X minus overlap of dlogp, and |AUC - 1/2| of dlogp minus that of X, over tokens and
                      over responses; X: entropy of either model, mean KL. Holds above 0, does not hold below 0.02
  X hardly does       0.1 - |AUC - 1/2| of X: holds above 0, does not hold below
  changes are sparse  share of |dlogp| < 0.1 minus one half; share of the sum of |dlogp| that the top 20% of the tokens
                      hold, minus 0.8: hold above 0, do not hold below
  gradient            mass on tokens of probability below 0.5, minus one half, in a batch of the trained model and in
                      the first step of training: holds above 0, does not hold below
  high dlogp          tokens with dlogp above 0.5, and above 1, have a lower mean probability than those with |dlogp| <
                      0.1, under the base and under RLVR: holds above 0, does not hold below. (The records that are here
                      were judged by an earlier rule, "unlikely and rose", which is not what the paper says.)

    python studies/direction.py            # 3 minutes on two cores, if reweighting.py and negative_only.py have run
    python studies/direction.py --quick    # pairs trained for two steps: to see that it works
"""

import argparse
import functools
import itertools

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from common import ROOT, decide, interval, pairs_of, read_json, run_all, table, train, write_json

FIRST = "--rlvr tiny/base --data tiny/train.jsonl --problems 20"
METRICS = {"dlogp": "dlogp", "entropy_base": "entropy of the base", "entropy_rlvr": "entropy of RLVR", "kl": "mean KL"}


def summary(folder, first):
    """The record of a pair: what delta_logp.py found, and its gradient bins at the first step of training."""
    found, begin = (read_json(path / "summary.json") for path in (folder, first))
    keys = ("dlogp", "histograms", "sparsity", "kinds_base", "kinds_rlvr", "dlogp_bins", "gradient_bins")
    return {key: found[key] for key in keys if key in found} | {"gradient_bins_first": begin["gradient_bins"]}


def unlikely_mass(bins):
    """Share of the gradient mass on tokens of probability below 0.5."""
    return sum(row["mass"] for name, row in bins.items() if float(name.split()[-1]) <= 0.5)


def above(bins, least):
    """(base, RLVR): mean probability of the tokens whose dlogp is above `least`; nan where there are none."""
    rows = [row for name, row in bins.items() if name[0] != "<" and float(name.replace(">= ", "").split()[0]) >= least]
    weights = [row["share"] for row in rows]
    if not sum(weights):
        return np.nan, np.nan
    return tuple(float(np.average([row[p] or 0.0 for row in rows], weights=weights)) for p in ("p_base", "p_rlvr"))


def draw(path, found):
    """Overlap and AUC by metric, gradient mass by probability, probabilities by dlogp; dots are pairs."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    algorithms = {name.rpartition("-")[0]: f"C{i}" for i, name in enumerate(["dapo-0", "grpo-n-0"])}
    panels = {"overlap": "overlap of the histograms of tokens (1: the same)"}
    panels |= {"auc": "AUC, RLVR against base: tokens (dots), responses (crosses)"}
    for axis, (key, title) in zip(axes[0], panels.items(), strict=True):
        for i, (name, row) in enumerate(found.items()):
            x, color = np.arange(len(METRICS)) + 0.06 * (i - len(found) / 2), algorithms[name.rpartition("-")[0]]
            label = name.rpartition("-")[0]
            label = None if label in axis.get_legend_handles_labels()[1] else label  # each algorithm once
            axis.plot(x, [row["histograms"][m][key] for m in METRICS], "o", ms=5, color=color, label=label)
            if key == "auc":
                axis.plot(x, [row["histograms"][m]["auc_response"] for m in METRICS], "x", ms=6, color=color)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1.03)
        axis.set_xticks(range(len(METRICS)), METRICS.values())
    axes[0, 1].axhline(0.5, color="gray", lw=1)
    axes[0, 0].legend(fontsize=8)
    names = list(next(iter(found.values()))["gradient_bins"])
    x = np.arange(len(names))
    for key, label, shift in (("gradient_bins_first", "first step", -0.2), ("gradient_bins", "trained model", 0.2)):
        rows = [[row[key][name] for name in names] for row in found.values()]
        mass, share = (np.mean([[cell[k] for cell in row] for row in rows], axis=0) for k in ("mass", "share"))
        axes[1, 0].bar(x + shift, mass, 0.38, label=f"{label}: gradient mass")
        axes[1, 0].plot(x + shift, share, "k_", ms=12, label="share of the tokens" if shift > 0 else None)
    axes[1, 0].set(title="gradient mass by token probability, mean of the pairs", xlabel="probability", yscale="log")
    axes[1, 0].set_xticks(x, [name.replace(" to ", "-") for name in names], fontsize=8)
    axes[1, 0].legend(fontsize=8)
    names = list(next(iter(found.values()))["dlogp_bins"])
    for p, marker, label in (("p_base", "o", "base"), ("p_rlvr", "s", "RLVR")):
        values = np.array([[row["dlogp_bins"][name][p] for name in names] for row in found.values()], dtype=float)
        axes[1, 1].plot(np.arange(len(names)), values.T, marker, ms=3, color="C2" if p == "p_base" else "C3", alpha=0.6)
        mean = [np.nanmean(column) if np.isfinite(column).any() else np.nan for column in values.T]
        axes[1, 1].plot(np.arange(len(names)), mean, color="C2" if p == "p_base" else "C3", label=label)
    axes[1, 1].set(title="mean probability of tokens by dlogp (dots: pairs)", xlabel="dlogp (nats)", ylim=(0, 1.03))
    axes[1, 1].set_xticks(range(len(names)), [name.replace(" to ", "..") for name in names], fontsize=7)
    axes[1, 1].legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two pairs trained for two steps, nothing recorded")
    parser.add_argument("--runs", default="runs/studies/direction", help="folder of the runs")
    args = parser.parse_args()
    where, runs = ROOT / "studies" / "results", ROOT / args.runs
    how, where = ("--bootstrap 1 --problems 8 --samples 4", runs) if args.quick else ("--bootstrap 1", where)
    pairs = pairs_of(args.quick, runs)
    jobs, records = {}, {}
    for name, (_, trained) in pairs.items():
        seed, folder, first = name.rpartition("-")[2], runs / name, runs / f"{name}-first-step"
        analyse, begin = (f"delta_logp.py --seed {seed} {how} {x}" for x in (f"--rlvr {trained}/model", FIRST))
        commands = [(analyse, folder, "summary.json"), (begin, first, "summary.json")]
        records[name] = where / "direction" / f"{name}.json"
        jobs[records[name]] = commands, functools.partial(summary, folder, first)
    train(pairs, records)
    run_all(jobs)
    found = {name: read_json(path) for name, path in records.items()}
    claims = []

    def claim(text, measure, value, **rule):
        """Judge value(record) over the pairs."""
        values = np.array([value(row) for row in found.values()], dtype=float)
        claims.append(decide(text, measure, values[np.isfinite(values)], **rule))

    def tells(row, metric, key="auc"):
        return abs(row["histograms"][metric][key] - 0.5)

    for metric in ("entropy_base", "entropy_rlvr", "kl"):
        text = f"dlogp tells RLVR from base better than the {METRICS[metric]}"

        def overlap(row, m=metric):
            return row["histograms"][m]["overlap"] - row["histograms"]["dlogp"]["overlap"]

        claim(f"{text}: tokens, overlap", "overlap", overlap, below=0.02)
        for key, of in (("auc", "tokens"), ("auc_response", "responses")):
            better = functools.partial(lambda row, m, k: tells(row, "dlogp", k) - tells(row, m, k), m=metric, k=key)
            claim(f"{text}: {of}, AUC", "distance of the AUC from 1/2", better, below=0.02)
            hardly = functools.partial(lambda row, m, k: 0.1 - tells(row, m, k), m=metric, k=key)
            claim(f"{METRICS[metric]} hardly tells {of} apart", "0.1 - distance of the AUC", hardly)
    for source, name in (("rlvr", "RLVR's"), ("base", "the base's")):
        part = functools.partial(lambda row, s: row["dlogp"][s]["within 0.1"] - 0.5, s=source)
        claim(f"most tokens of {name} responses hardly changed", "share within 0.1 nats, minus 1/2", part)
        top = functools.partial(lambda row, s: row["sparsity"][f"size of dlogp, {s}"]["20%"] - 0.8, s=source)
        claim(f"a fifth of the tokens of {name} responses holds the change", "share of the top 20%, minus 0.8", top)
    for key, name in (("gradient_bins", "a batch of the trained model"), ("gradient_bins_first", "the first step")):
        mass = functools.partial(lambda row, k: unlikely_mass(row[k]) - 0.5, k=key)
        claim(f"most gradient mass sits on unlikely tokens: {name}", "mass below probability 0.5, minus 1/2", mass)
    for least, (i, name) in itertools.product((0.5, 1.0), enumerate(("the base", "RLVR"))):

        def less(row, x=least, i=i):
            return row["dlogp_bins"]["-0.1 to 0.1"][("p_base", "p_rlvr")[i]] - above(row["dlogp_bins"], x)[i]

        claim(
            f"tokens of dlogp > {least} are less likely than unchanged ones: {name}", "difference of probability", less
        )
    print(table(claims))
    print("\n| pair | " + " | ".join(f"{m}: overlap, AUC, of responses" for m in METRICS) + " |")
    print("|---" * (len(METRICS) + 1) + "|")
    for name, row in found.items():
        cells = ["{overlap:.3f}, {auc:.3f}, {auc_response:.3f}".format(**row["histograms"][m]) for m in METRICS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if all("fork" in row["kinds_rlvr"] for row in found.values()):
        forks = [row["kinds_rlvr"]["fork"]["share_of_abs_dlogp"] for row in found.values()]
        print("\nshare of |dlogp| that forks hold in RLVR's responses: {:.3f} ± {:.3f}".format(*interval(forks)))
    write_json(where / "direction.json", {"command": "python studies/direction.py", "claims": claims})
    draw(where / "direction.png", found)
    print(f"\nwritten: {where / 'direction.json'}, {where / 'direction.png'}; a record of each pair beside them")


if __name__ == "__main__":
    main()
