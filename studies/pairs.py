"""What RLVR changed, at how few tokens, and what lies beyond it: paper A, sections 3.1 to 3.3 and 4.1.

Runs `delta_logp.py`, `replace.py` and `extrapolate.py` on each base with two models that training.py made of it
(`dapo.py`, none, seed 2): the end, and half learnt, the first numbered checkpoint at which the accuracy of training
rollouts (running mean of five steps) is 0.5. The last two run at top-p 1 and at the paper's 0.7. `delta_logp.py` runs
once more with the base as both models, on training problems: the first step of training.

The rule, written before the runs; unit, interval, verdict and Holm as in common.py, for each of the three separately.
direction (100 problems x 8), all above 0
  dlogp tells apart   |AUC - 1/2| of dlogp minus that of X, RLVR's tokens against the base's, and of whole responses
                      (ours); X: either entropy, mean KL. 0.02 matters, a fifth of what entropy itself may have:
  X hardly does       0.1 - |AUC - 1/2| of X, tokens ("overlap" in the paper; 0.1 is ours)
  sparse              share of |dlogp| < 0.1, minus 1/2; share of sum |dlogp| in the top fifth, minus 0.8 (ours)
  gradient            mass on tokens of probability below 0.2, 0.3, 0.5, minus 1/2, in a batch of the trained model and
                      in the first step: three cuts, as the verdict turns on them; and the same (ours) without the
                      connectives, four synonyms that have a fourth each and decide nothing
  high dlogp          mean probability under RLVR of tokens with |dlogp| < 0.1 minus that of dlogp > 1
replacement (60 x 4, accuracies interpolated in the log of the measured ratio)
  order               mean accuracy over log ratio, 0.05 to 0.3, one criterion minus the next: 0.02 matters
  fewest              log of the smallest ratio at which the accuracy is RLVR's minus 0.05 (1 if none is), KL's over
                      dlogp's: log 1.1 matters, a tenth fewer tokens
  30% are enough      accuracy of dlogp at ratio 0.3 minus RLVR's: above -0.05
extrapolation (80 x 4; gamma, tau chosen by the script on 40 training problems): 0.02 matters, the paper's gains
  beats RLVR          selective extrapolation minus RLVR, y from the base and from RLVR
  because of gamma    minus gamma 0 at the same gate; for y from the base the paper's own control, for RLVR ours
  selective / global  each at its chosen gamma, y from RLVR (ours)
  rises, flattens     y from RLVR at the chosen gamma (table 1): tau -0.3, the paper's, minus RLVR; and tau -0.1 minus
                      tau -0.3, below 0.02
  no room             where RLVR is right 0.98 of the time, mean over bases, nothing above is asked
Nearly guaranteed by construction, and no claim: the sign of the mean dlogp (a KL, and minus a KL); that dlogp > 1 is
unlikely under the base (below 1 / e); that random replaces worst; that a second draw of what RLVR made unlikely does
not hurt a half-learnt model.
Amended when the records of bases 1 and 2 were there: the cut at 0.2, connectives apart, high dlogp under RLVR alone
and half learnt, too, global at its own gamma, rises and flattens at fixed tau, no room, no row for entropy against
random.

Power, from the first world's sd of pairs: order 0.03 to 0.05 (smallest_decidable 0.05 to 0.08; it was 0.17 to 0.26);
beats RLVR 0.03 to 0.05: gains of 0.02, the paper's, five bases cannot decide, only gains of 0.05 as of half-learnt
models. More gammas and gates would not help and are not run.

    python studies/pairs.py            # 50 minutes on two cores, after training.py
    python studies/pairs.py --quick    # models of two steps: to see that it works
"""

import functools
import itertools

import numpy as np
from common import arguments, base_folder, decide, finish, make_bases, read_json, rounded, run_all
from matplotlib.figure import Figure
from training import SEEDS, half_of, jobs_of

TOP_PS, MODELS = (1.0, 0.7), ("end", "half")
CRITERIA, CUTS = ("dlogp", "kl", "entropy", "random"), (0.2, 0.3, 0.5)
RATIOS, TAUS = "0.02,0.05,0.1,0.15,0.2,0.3", "-2,-1,-0.3,-0.1"
METRICS = {"entropy_base": "entropy of the base", "entropy_rlvr": "entropy of RLVR", "kl": "mean KL"}


# -------------------------------------------------------------------------------------------------------- runs, records
def summary(folders):
    """The record of a model of a base: what the scripts found, shares right of each problem."""
    direction = read_json(folders["direction"] / "summary.json")
    found = {key: direction[key] for key in ("dlogp", "histograms", "sparsity", "dlogp_bins")}
    found["gradient"] = gradient(folders["direction"])
    if "first" in folders:
        found["gradient, first step"] = gradient(folders["first"])
    for top_p in TOP_PS:
        found[f"replacement {top_p}"] = curves = read_json(folders["replace", top_p] / "results.json")
        for point in itertools.chain(*curves.values()):
            del point["samples"], point["threshold"]
            point |= {"right": rounded(point["right"], 2)}
        found[f"extrapolation {top_p}"] = rows = read_json(folders["extrapolate", top_p] / "summary.json")
        for row in rows:
            row["chosen"] = "minus_gamma_0" in row
            for key in row.keys() - {"first", "tau", "gamma", "ratio", "right", "accuracy", "chosen"}:
                del row[key]
    return found


def gradient(folder):
    """{tokens: {cut: share of the gradient mass on tokens of RLVR's probability below it}} of a scored batch."""
    with np.load(folder / "tokens.npz") as file:
        kind, p, mass, batch = file["kind"], np.exp(file["logp_rlvr"]), file["coefficient"], file["adv"] != 0
    takes = {"all tokens": batch, "no connectives": batch & (kind != "connective")}
    return {name: {str(cut): below(p[k], mass[k], cut) for cut in CUTS} for name, k in takes.items()}


def jobs_for(model, base, step, args):
    """(record, job) of a model: "end" or "half", the checkpoint `step` of none, seed 2."""
    data, out = base_folder(base, args.quick), args.runs / "pairs" / f"{base}-{model}"
    rlvr = args.runs / "dapo" / f"none-{base}-{SEEDS[0]}" / f"model_{step:06d}"
    n, first, replace, extrapolate = "--problems 100", "--problems 20", "--problems 60 --samples 4", "--problems 80"
    replace += " --calibration-problems 24 --calibration-passes 2"
    extrapolate += " --samples 4 --train-problems 40 --gammas 0.1,0.5,1,2"
    if args.quick:
        n = first = "--problems 8 --samples 4"
        replace = "--problems 4 --samples 2 --calibration-problems 2 --calibration-passes 1"
        extrapolate = "--problems 4 --samples 2 --train-problems 2 --gammas 0.5,1"
    folders = {"direction": out} | ({"first": out.with_name(f"{base}-first")} if model == "end" else {})
    score, both = f"delta_logp.py --base {data}/base --bootstrap 1", f"--base {data}/base --rlvr {rlvr}"
    commands = [(f"{score} --rlvr {rlvr} --data {data}/test.jsonl {n}", folders["direction"])]
    if model == "end":
        commands += [(f"{score} --rlvr {data}/base --data {data}/train.jsonl {first}", folders["first"])]
    both += f" --test {data}/test.jsonl --train {data}/train.jsonl --bootstrap 100"
    for top_p in TOP_PS:
        folders |= {(x, top_p): out.with_name(f"{base}-{model}-{x}-{top_p}") for x in ("replace", "extrapolate")}
        flags = f"--top-p {top_p} {replace} --criteria {','.join(CRITERIA)} --reverse= --ratios {RATIOS}"
        commands.append((f"replace.py {both} {flags}", folders["replace", top_p]))
        flags = f"--top-p {top_p} {extrapolate} --taus={TAUS}"
        commands.append((f"extrapolate.py {both} {flags}", folders["extrapolate", top_p]))
    commands = [(*command, "summary.json") for command in commands]
    return args.where / "pairs" / f"{base}-{model}.json", (commands, functools.partial(summary, folders))


# ------------------------------------------------------------------------------------------------------------- measures
def below(p, mass, cut):
    """Share of the mass on tokens of probability below the cut; nan without tokens."""
    return round(float(mass[p < cut].sum() / mass.sum()), 4) if len(mass) else float("nan")


def high_dlogp(bins, p="p_rlvr", least=1.0):
    """Mean probability of tokens of |dlogp| < 0.1 minus that of dlogp of `least` or more; nan if there are none."""
    rows = [row for name, row in bins.items() if name[0] != "<" and float(name.split()[name[0] == ">"]) >= least]
    shares = [row["share"] for row in rows]
    return bins["-0.1 to 0.1"][p] - np.average([row[p] for row in rows], weights=shares) if rows else np.nan


def at_ratio(curve, ratio):
    """Accuracy at a ratio, interpolated in the log of the measured ratio of the points of a curve."""
    x = np.log(np.maximum.accumulate([max(1e-6, point["ratio"]) for point in curve])) + 1e-9 * np.arange(len(curve))
    return float(np.interp(np.log(ratio), x, [point["accuracy"] for point in curve]))


def area(curve):
    """Mean accuracy over the log of the ratio from 0.05 to 0.3."""
    return float(np.mean([at_ratio(curve, ratio) for ratio in np.geomspace(0.05, 0.3, 101)]))


def smallest(curve, level):
    """The smallest ratio on a fine grid at which the accuracy is at least `level`; 1 if none is."""
    grid = np.geomspace(max(1e-6, curve[0]["ratio"]), max(1e-6, curve[-1]["ratio"]), 201)
    return float(next((ratio for ratio in grid if at_ratio(curve, ratio) >= level), 1.0))


def gains(found):
    """{measure: number} of the extrapolation of a pair, differences of accuracies."""
    at = {(row["first"], row["tau"], row["gamma"]): row["accuracy"] for row in found}
    base, rlvr, everywhere = ((row["first"], row["tau"], row["gamma"]) for row in found if row["chosen"])
    level, middle, wide = at["base", None, 0.0], at["rlvr", -0.3, rlvr[2]], at["rlvr", -0.1, rlvr[2]]
    return {
        "level": level,
        "selective, y from the base, beats RLVR": at[base] - level,
        "... because of gamma": at[base] - at[(*base[:2], 0.0)],
        "selective, y from RLVR, beats RLVR": at[rlvr] - level,
        "... because of gamma (y from RLVR)": at[rlvr] - at[(*rlvr[:2], 0.0)],
        "selective beats global": at[rlvr] - at[everywhere],
        "rises to a moderate gate": middle - level,
        "then flattens": middle - wide,
    }


# --------------------------------------------------------------------------------------------------------------- claims
def direction_claims(found):
    """found: {(base, model): record}."""
    claims = []

    def claim(paper, text, measure, value, model="end", matters=0.0):
        """value(record, *further), of the model's records; value is (function, *further)."""
        values = [value[0](record, *value[1:]) for (_, m), record in found.items() if m == model]
        claims.append(decide(paper, text, measure + ", half learnt" * (model != "end"), values, matters))

    def tells(record, metric, key="auc"):
        return abs(record["histograms"][metric][key] - 0.5)

    def better(record, metric, key="auc"):
        return tells(record, "dlogp", key) - tells(record, metric, key)

    fig, distance = "A 3.1, fig. 1b", "distance of AUC from 1/2"
    for m, name in METRICS.items():
        for model in MODELS:
            claim(fig, f"dlogp tells tokens apart better than {name}", distance, (better, m), model, 0.02)
        claim("(ours)", f"... whole responses better than {name}", distance, (better, m, "auc_response"), matters=0.02)
        claim(fig, f"{name} hardly does", f"0.1 minus {distance}", (lambda r, m: 0.1 - tells(r, m), m))
    for of in ("rlvr", "base"):
        same, top = lambda r, of: r["dlogp"][of]["within 0.1"] - 0.5, lambda r, k: r["sparsity"][k]["20%"] - 0.8
        claim("A 3.1", f"most tokens of {of} hardly changed", "share within 0.1, minus 1/2", (same, of))
        text = f"a fifth of {of}'s tokens holds the change"
        claim("(ours)", text, "its share, minus 0.8", (top, f"size of dlogp, {of}"))
    for key, name in (("gradient, first step", "first step"), ("gradient", "trained model")):
        for cut, tokens in itertools.product(CUTS, ("all tokens", "no connectives")):
            mass = lambda r, k, tokens, cut: r[k][tokens][str(cut)] - 0.5  # noqa: E731
            text = f"most gradient mass is on unlikely tokens: {name}"
            paper, text = ("A 3.3, fig. 3a", text) if tokens == "all tokens" else ("(ours)", f"{text}, {tokens}")
            claim(paper, text, f"mass below {cut}, minus 1/2", (mass, key, tokens, cut))
    for model in MODELS:
        text, less = "tokens of dlogp > 1 are less likely than unchanged ones", lambda r: high_dlogp(r["dlogp_bins"])
        claim("A 3.3, fig. 3b", text, "p_rlvr", (less,), model)
    return claims


def decoding_claims(found):
    """(claims of replacement, claims of extrapolation)."""
    replacement, extrapolation, fig = [], [], "A 3.2, fig. 2"
    for model, top_p in itertools.product(MODELS, TOP_PS):
        at, records = f"{model}, top-p {top_p:g}", [record for (_, m), record in found.items() if m == model]
        curves = [record[f"replacement {top_p}"] for record in records]
        for more, less in itertools.pairwise(CRITERIA[:3]):
            values = [area(c[more]) - area(c[less]) for c in curves]
            replacement.append(decide(fig, f"{more} beats {less}", f"accuracy, {at}", values, 0.02))
        levels = [c["base and RLVR"][1]["accuracy"] for c in curves]
        kl, dlogp = ([smallest(c[x], y - 0.05) for c, y in zip(curves, levels, strict=True)] for x in ("kl", "dlogp"))
        row = decide(fig, "dlogp needs fewer than KL", f"log ratio, {at}", np.log(kl) - np.log(dlogp), np.log(1.1))
        replacement.append(row | {"enough": rounded(dlogp)})
        values = [at_ratio(c["dlogp"], 0.3) - y for c, y in zip(curves, levels, strict=True)]
        replacement.append(decide("A 3.2", "30% are enough", f"accuracy minus RLVR's, {at}", values, 0.0, -0.05))
        rows = [gains(record[f"extrapolation {top_p}"]) for record in records]
        if np.mean([row.pop("level") for row in rows]) < 0.98:
            for text in rows[0]:
                paper = "A 4.1 (ours)" if "y from RLVR)" in text or "global" in text else "A 4.1"
                above, values = -0.02 if text == "then flattens" else 0.0, [row[text] for row in rows]
                extrapolation.append(decide(paper, text, f"accuracy, {at}", values, 0.02 + above, above))
    return replacement, extrapolation


def draw(path, found):
    """Accuracy minus RLVR's over the replaced share: a panel for each model and top-p, a thin line for each base."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for axis, (model, top_p) in zip(axes.flat, itertools.product(MODELS, TOP_PS), strict=True):
        for (j, curves), (i, name) in itertools.product(
            enumerate(r[f"replacement {top_p}"] for (_, m), r in found.items() if m == model), enumerate(CRITERIA)
        ):
            x, y = zip(*((point["ratio"], point["accuracy"]) for point in curves[name]), strict=True)
            y = np.array(y) - curves["base and RLVR"][1]["accuracy"]
            axis.plot(x, y, "o-", ms=2, lw=0.8, color=f"C{i}", label=None if j else name)
        axis.axhline(-0.05, color="gray", lw=0.8, ls=":")
        axis.set(title=f"{model}, top-p {top_p:g}", ylabel="accuracy minus RLVR's (dotted: -0.05)")
        axis.set(xlabel="replaced share of tokens")
        axis.set_xscale("log")
        axis.set_xticks([0.02, 0.05, 0.1, 0.2, 0.3], ["0.02", "0.05", "0.1", "0.2", "0.3"])
        axis.minorticks_off()
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main():
    args = arguments(__doc__)
    jobs, paths, _ = jobs_of("dapo", args, wanted=("none",))
    run_all(jobs)
    trained = {base: read_json(path) for (_, base, _), path in paths.items()}
    every, jobs, paths = 1 if args.quick else 10, {}, {}
    for base, record in trained.items():
        for model, step in (("end", len(record["accuracy"])), ("half", half_of(record, every))):
            paths[base, model], job = jobs_for(model, base, step, args)
            jobs[paths[base, model]] = job
    make_bases(args, jobs)
    run_all(jobs)
    found = {key: read_json(path) for key, path in paths.items()}
    replacement, extrapolation = decoding_claims(found)
    finish(args, "direction", direction_claims(found))
    finish(args, "replacement", replacement, draw, found)
    finish(args, "extrapolation", extrapolation)


if __name__ == "__main__":
    main()
