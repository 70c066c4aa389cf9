"""What RLVR changed, at how few tokens, and what lies beyond it: paper A, sections 3.1 to 3.3 and 4.1.

Runs `delta_logp.py`, `replace.py` and `extrapolate.py` on each base model with two models that training.py made of it
(`dapo.py`, none, seed 2): the end, and the half-trained model, the first numbered checkpoint at which the accuracy of
training rollouts (running mean of five steps) is 0.5. The last two scripts run at top-p 1 and at the paper's 0.7.
`delta_logp.py` runs once more with the base model as both models, on training problems: the first step of training.

The rule, written before the runs; unit, interval, verdict and Holm as in common.py, for each of the three separately.
Its wording has changed since, its meaning has not.
direction (100 problems x 8), all above 0
  dlogp tells apart   |AUC - 1/2| of dlogp minus that of X, RLVR's tokens against the base model's, and of whole
                      responses (ours); X: either entropy, mean KL. 0.02 matters, a fifth of what X itself may have:
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
  beats RLVR          selective extrapolation minus RLVR, y from the base model and from RLVR
  because of gamma    minus gamma 0 at the same threshold; for y from the base model the paper's own control, else ours
  selective / global  each at its chosen gamma, y from RLVR (ours)
  rises, flattens     y from RLVR at the chosen gamma (table 1): tau -0.3, the paper's, minus RLVR; and tau -0.1 minus
                      tau -0.3, below 0.02
  no room             where RLVR is right 0.98 of the time, mean over models, nothing above is asked
Nearly guaranteed by construction, and no claim: the sign of the mean dlogp (a KL, and minus a KL); that dlogp > 1 is
unlikely under the base model (below 1 / e); that random replaces worst; that what RLVR made unlikely, resampled, does
not hurt a half-trained model. Nearly guaranteed although a row asks it: for whole responses the sum of dlogp is the
log-likelihood ratio of the two models, and by the Neyman-Pearson lemma nothing tells them apart better; its mean over
tokens, which is judged, and single tokens are favoured by the same fact.
Amended when the records of base models 1 and 2 were there: the cut at 0.2, connectives apart, high dlogp under RLVR
alone and half-trained, too, global at its own gamma, rises and flattens at fixed tau, no room, no row for entropy
against random.

Added after the runs (rows that say so):
  overlap             common area of the histograms of X minus that of dlogp's, RLVR's tokens against the base model's.
                      0.02 matters
  gradient            as above, in a batch of the half-trained model (figure 3a is of an intermediate checkpoint)
  entropy             order, as above: entropy minus random
  surpasses           accuracy of dlogp at ratio 0.3 minus RLVR's, above 0 (the paper: it does not). 0.02 matters

Expected before the runs: five models can decide 0.05 to 0.08 of "order", and gains of 0.05 in "beats RLVR", not 0.02.

    python studies/pairs.py            # 50 minutes on two cores, after training.py
    python studies/pairs.py --quick    # models of two steps: to see that it works
"""

import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import (
    Job,
    Run,
    arguments,
    base_folder,
    decide,
    draw_effects,
    finish,
    make_bases,
    read_json,
    read_records,
    rounded,
    run_all,
)
from matplotlib.figure import Figure
from training import SEEDS, RunKey, folder_of, half_of, run_keys, run_missing

# ------------------------------------------------------------------------------------------------------------- settings
MODELS = ("end", "half-trained")
TOP_PS = (1.0, 0.7)
METRICS = {"entropy_base": "base entropy", "entropy_rlvr": "RLVR entropy", "kl": "KL"}
CUTS = (0.2, 0.3, 0.5)  # probabilities
CRITERIA = {"dlogp": "dlogp", "kl": "KL", "entropy": "base entropy", "random": "random positions"}  # of replacement
COLORS = {"dlogp": "tab:red", "kl": "tab:purple", "entropy": "tab:brown", "random": "tab:olive"}
LEGEND = "what decides where a token is replaced (one line a model)"
RATIOS = "0.02,0.05,0.1,0.15,0.2,0.3"
TAUS = "-2,-1,-0.3,-0.1"
FULL_FLAGS = {
    "direction": "--problems 100",
    "first step": "--problems 20",
    "replace": "--problems 60 --samples 4 --calibration-problems 24 --calibration-passes 2",
    "extrapolate": "--problems 80 --samples 4 --train-problems 40 --gammas 0.1,0.5,1,2",
}
QUICK_FLAGS = {
    "direction": "--problems 8 --samples 4",
    "first step": "--problems 8 --samples 4",
    "replace": "--problems 4 --samples 2 --calibration-problems 2 --calibration-passes 1",
    "extrapolate": "--problems 4 --samples 2 --train-problems 2 --gammas 0.5,1",
}


class PairKey(NamedTuple):
    """Which pair of base model and RLVR model."""

    base: int  # pre-training seed
    model: str  # RLVR: one of MODELS


class Folders(NamedTuple):
    """Where the scripts wrote about a pair."""

    direction: Path
    first_step: Path | None  # of the end alone
    replace: dict  # {top-p: folder}
    extrapolate: dict  # {top-p: folder}


# ----------------------------------------------------------------------------------------------------------------- jobs
def pair_name(pair):
    """PairKey(1, "end") -> "1-end", the name of its record."""
    return f"{pair.base}-{pair.model}"


def folders_of(pair, args):
    """The Folders of a pair."""
    name = pair_name(pair)
    folder = args.runs / "pairs"
    return Folders(
        direction=folder / name,
        first_step=folder / f"{pair.base}-first" if pair.model == "end" else None,
        replace={top_p: folder / f"{name}-replace-{top_p}" for top_p in TOP_PS},
        extrapolate={top_p: folder / f"{name}-extrapolate-{top_p}" for top_p in TOP_PS},
    )


def pair_job(pair, step, args):
    """The Job of a pair; step: of the checkpoint that is its RLVR."""
    flags = QUICK_FLAGS if args.quick else FULL_FLAGS
    data = base_folder(pair.base, args.quick)
    rlvr = folder_of("dapo", RunKey("none", pair.base, SEEDS[0]), args) / f"model_{step:06d}"
    folders = folders_of(pair, args)

    score = f"delta_logp.py --base {data}/base --bootstrap 1"
    command = f"{score} --rlvr {rlvr} --data {data}/test.jsonl {flags['direction']}"
    runs = [Run(command, folders.direction, "summary.json")]
    if folders.first_step is not None:
        command = f"{score} --rlvr {data}/base --data {data}/train.jsonl {flags['first step']}"
        runs.append(Run(command, folders.first_step, "summary.json"))

    files = f"--base {data}/base --rlvr {rlvr} --test {data}/test.jsonl --train {data}/train.jsonl --bootstrap 100"
    for top_p in TOP_PS:
        command = f"replace.py {files} --top-p {top_p} {flags['replace']}"
        command += f" --criteria {','.join(CRITERIA)} --reverse= --ratios {RATIOS}"
        runs.append(Run(command, folders.replace[top_p], "summary.json"))
        command = f"extrapolate.py {files} --top-p {top_p} {flags['extrapolate']} --taus={TAUS}"
        runs.append(Run(command, folders.extrapolate[top_p], "summary.json"))
    return Job(runs, functools.partial(pair_summary, folders))


# -------------------------------------------------------------------------------------------------------------- records
def pair_summary(folders):
    """The record of a pair: what the scripts found, with the right responses to each problem."""
    summary = read_json(folders.direction / "summary.json")
    record = {name: summary[name] for name in ("dlogp", "histograms", "sparsity", "dlogp_bins")}
    record["gradient"] = gradient_shares(folders.direction)
    if folders.first_step is not None:
        record["gradient, first step"] = gradient_shares(folders.first_step)
    for top_p in TOP_PS:
        record[f"replacement {top_p}"] = replacement_curves(folders.replace[top_p])
        record[f"extrapolation {top_p}"] = extrapolation_rows(folders.extrapolate[top_p])
    return record


def gradient_shares(folder):
    """{tokens: {cut: share of the gradient mass on tokens of RLVR's probability below it}} of a scored batch."""
    with np.load(folder / "tokens.npz") as file:
        in_batch = file["adv"] != 0  # (M,) as all others
        p = np.exp(file["logp_rlvr"])
        mass = file["coefficient"]
        subsets = {"all tokens": in_batch, "no connectives": in_batch & (file["kind"] != "connective")}
    shares = {}
    for name, subset in subsets.items():
        shares[name] = {str(cut): mass_below(p[subset], mass[subset], cut) for cut in CUTS}
    return shares


def mass_below(p, mass, cut):
    """Share of the mass on tokens of probability below the cut; nan without tokens."""
    if len(mass) == 0:
        return float("nan")
    return round(float(mass[p < cut].sum() / mass.sum()), 4)


def replacement_curves(folder):
    """{criterion, or "base and RLVR": points of its curve}, of replace.py."""
    curves = {}
    for name, points in read_json(folder / "results.json").items():
        curves[name] = []
        for point in points:
            kept = {key: point[key] for key in ("target", "ratio", "accuracy", "accuracy_ci95")}
            kept["right"] = rounded(point["right"], 2)
            kept["at_choices"] = point["at_choices"]
            if "total_variation" in point:
                kept["total_variation"] = point["total_variation"]
            curves[name].append(kept)
    return curves


def extrapolation_rows(folder):
    """The arms of extrapolate.py; "chosen": its choice on training problems, y from base, RLVR, everywhere."""
    rows = []
    for row in read_json(folder / "summary.json"):
        kept = {key: row[key] for key in ("first", "tau", "gamma", "ratio", "right", "accuracy")}
        kept["chosen"] = "minus_gamma_0" in row
        rows.append(kept)
    return rows


# ------------------------------------------------------------------------------------------------------------- measures
def tells_apart(record, metric, auc="auc"):
    """How well a metric tells RLVR's tokens from the base model's: |AUC - 1/2|. auc: "auc_response" for responses."""
    return abs(record["histograms"][metric][auc] - 0.5)


def dlogp_advantage(record, metric, auc="auc"):
    """How much better than a metric dlogp tells them apart."""
    return tells_apart(record, "dlogp", auc) - tells_apart(record, metric, auc)


def overlap_advantage(record, metric):
    """How much more than dlogp's the histograms of a metric of RLVR's and of the base model's tokens overlap."""
    return record["histograms"][metric]["overlap"] - record["histograms"]["dlogp"]["overlap"]


def mass_minus_half(record, batch, tokens, cut):
    """Share of the gradient mass below a cut, minus 1/2; nan where a record has null, without tokens."""
    share = record[batch][tokens][str(cut)]
    if share is None:
        return np.nan
    return share - 0.5


def bin_start(name):
    """Where a bin of dlogp begins: "1 to 2" -> 1.0, ">= 4" -> 4.0, "< -4" -> -inf."""
    if name.startswith("<"):
        return -np.inf
    return float(name.removeprefix(">= ").split(" to ")[0])


def high_dlogp(bins, p="p_rlvr"):
    """Mean probability of tokens of |dlogp| < 0.1 minus that of dlogp of 1 or more; nan if there are none."""
    high = [row for name, row in bins.items() if bin_start(name) >= 1]
    if not high:
        return np.nan
    mean = np.average([row[p] for row in high], weights=[row["share"] for row in high])
    return bins["-0.1 to 0.1"][p] - mean


def at_ratio(curve, ratio):
    """Accuracy at a ratio, interpolated in the log of the measured ratio of the points of a curve."""
    ratios = np.maximum.accumulate([max(1e-6, point["ratio"]) for point in curve])
    x = np.log(ratios) + 1e-9 * np.arange(len(curve))  # strictly rising
    return float(np.interp(np.log(ratio), x, [point["accuracy"] for point in curve]))


def area(curve):
    """Mean accuracy over the log of the ratio from 0.05 to 0.3."""
    return float(np.mean([at_ratio(curve, ratio) for ratio in np.geomspace(0.05, 0.3, 101)]))


def smallest_ratio(curve, level):
    """The smallest ratio on a fine grid at which the accuracy is at least `level`; 1 if none is."""
    first = max(1e-6, curve[0]["ratio"])
    last = max(1e-6, curve[-1]["ratio"])
    for ratio in np.geomspace(first, last, 201):
        if at_ratio(curve, ratio) >= level:
            return float(ratio)
    return 1.0


# what is claimed of extrapolation
BEATS_FROM_BASE = "selective, y from the base, beats RLVR"
GAMMA_FROM_BASE = "... because of gamma (y from the base)"
BEATS_FROM_RLVR = "selective, y from RLVR, beats RLVR"
GAMMA_FROM_RLVR = "... because of gamma (y from RLVR)"
BEATS_GLOBAL = "selective beats global"
RISES = "threshold -0.3 beats RLVR"
FLATTENS = "threshold -0.1 gains less than 0.02 more"


class Arm(NamedTuple):
    """A setting of extrapolate.py."""

    first: str  # which model draws y
    tau: float | None  # y is resampled where dlogp(y) < tau; None: everywhere
    gamma: float | None


RLVR_ALONE = Arm("base", None, 0.0)  # gamma 0 everywhere


def arm_of(row):
    """The Arm of a row of extrapolation_rows."""
    return Arm(row["first"], row["tau"], row["gamma"])


def accuracies(rows):
    """{Arm: accuracy} of extrapolation_rows."""
    return {arm_of(row): row["accuracy"] for row in rows}


def gains(rows):
    """{measure: number} of the extrapolation of a pair, differences of accuracies. rows: see extrapolation_rows."""
    accuracy = accuracies(rows)
    from_base, from_rlvr, everywhere = [arm_of(row) for row in rows if row["chosen"]]
    rlvr = accuracy[RLVR_ALONE]
    moderate = accuracy[Arm("rlvr", -0.3, from_rlvr.gamma)]
    wide = accuracy[Arm("rlvr", -0.1, from_rlvr.gamma)]
    return {
        BEATS_FROM_BASE: accuracy[from_base] - rlvr,
        GAMMA_FROM_BASE: accuracy[from_base] - accuracy[from_base._replace(gamma=0.0)],
        BEATS_FROM_RLVR: accuracy[from_rlvr] - rlvr,
        GAMMA_FROM_RLVR: accuracy[from_rlvr] - accuracy[from_rlvr._replace(gamma=0.0)],
        BEATS_GLOBAL: accuracy[from_rlvr] - accuracy[everywhere],
        RISES: moderate - rlvr,
        FLATTENS: moderate - wide,
    }


# --------------------------------------------------------------------------------------------------------------- claims
def records_of(found, model):
    """The records of a model, one for each base model. found: {PairKey: record}."""
    return [record for pair, record in found.items() if pair.model == model]


def gradient_claims(batch, name, records, added=False):
    """The claims that most of the gradient mass of a batch is on unlikely tokens: two for each cut."""
    suffix = ", added" if added else ""
    claims = []
    for cut in CUTS:
        text = f"most gradient mass is on unlikely tokens: {name}"
        values = [mass_minus_half(record, batch, "all tokens", cut) for record in records]
        claims.append(decide(f"A 3.3, fig. 3a{suffix}", text, f"below {cut}", values, added=added))
        text = f"... without connectives: {name}"
        values = [mass_minus_half(record, batch, "no connectives", cut) for record in records]
        claims.append(decide(f"(ours{suffix})", text, f"below {cut}", values, added=added))
    return claims


def direction_claims(found):
    """The claims of direction, decided. found: {PairKey: record}."""
    claims = []
    end = records_of(found, "end")
    half_trained = records_of(found, "half-trained")

    for metric, name in METRICS.items():
        text = "dlogp tells tokens apart better (AUC) than"
        values = [dlogp_advantage(record, metric) for record in end]
        claims.append(decide("A 3.1, fig. 1b", text, name, values, 0.02))
        values = [dlogp_advantage(record, metric) for record in half_trained]
        claims.append(decide("A 3.1, fig. 1b", text, f"{name}, half-trained", values, 0.02))
        text = "dlogp tells whole responses apart better than"
        values = [dlogp_advantage(record, metric, "auc_response") for record in end]
        claims.append(decide("(ours)", text, name, values, 0.02))
        text = "others hardly tell them apart (0.1 minus AUC's distance from 1/2)"
        values = [0.1 - tells_apart(record, metric) for record in end]
        claims.append(decide("A 3.1, fig. 1b", text, name, values))

    for source, name in (("rlvr", "RLVR"), ("base", "base")):
        text = "most tokens hardly changed (share within 0.1, minus 1/2)"
        values = [record["dlogp"][source]["within 0.1"] - 0.5 for record in end]
        claims.append(decide("A 3.1", text, f"{name} responses", values))
        text = "a fifth of the tokens holds 0.8 of the change (share, minus 0.8)"
        values = [record["sparsity"][f"size of dlogp, {source}"]["20%"] - 0.8 for record in end]
        claims.append(decide("(ours)", text, f"{name} responses", values))

    claims += gradient_claims("gradient, first step", "first step", end)
    claims += gradient_claims("gradient", "trained model", end)

    text = "tokens of dlogp > 1 are less likely than unchanged ones"
    values = [high_dlogp(record["dlogp_bins"]) for record in end]
    claims.append(decide("A 3.3, fig. 3b", text, "end", values))
    values = [high_dlogp(record["dlogp_bins"]) for record in half_trained]
    claims.append(decide("A 3.3, fig. 3b", text, "half-trained", values))

    for metric, name in METRICS.items():
        for model, records in (("", end), (", half-trained", half_trained)):
            text = "dlogp's histograms overlap less than those of"
            values = [overlap_advantage(record, metric) for record in records]
            claims.append(decide("A 3.1, fig. 1b, added", text, f"{name}{model}", values, 0.02, added=True))
    return claims + gradient_claims("gradient", "half-trained model", half_trained, added=True)


def replacement_claims(found):
    """The claims of replacement, decided. found: {PairKey: record}."""
    claims = []
    added = []
    for model, top_p in itertools.product(MODELS, TOP_PS):
        setting = f"{model}, top-p {top_p:g}"
        curves_of_base = [record[f"replacement {top_p}"] for record in records_of(found, model)]
        rlvr = [curves["base and RLVR"][1]["accuracy"] for curves in curves_of_base]

        for more, less in itertools.pairwise(CRITERIA):
            text = f"{CRITERIA[more]} beats {CRITERIA[less]}"
            values = [area(curves[more]) - area(curves[less]) for curves in curves_of_base]
            if less == "random":
                added.append(decide("A 3.2, added", text, setting, values, 0.02, added=True))
            else:
                claims.append(decide("A 3.2, fig. 2", text, setting, values, 0.02))

        kl_ratios = []
        dlogp_ratios = []
        at_30_percent = []
        for curves, accuracy in zip(curves_of_base, rlvr, strict=True):
            kl_ratios.append(smallest_ratio(curves["kl"], accuracy - 0.05))
            dlogp_ratios.append(smallest_ratio(curves["dlogp"], accuracy - 0.05))
            at_30_percent.append(at_ratio(curves["dlogp"], 0.3) - accuracy)
        values = np.log(kl_ratios) - np.log(dlogp_ratios)
        row = decide("A 3.2, fig. 2", "dlogp needs fewer tokens than KL (log ratio)", setting, values, np.log(1.1))
        row["enough"] = rounded(dlogp_ratios)
        claims.append(row)
        text = "30% of the tokens come within 0.05 of RLVR"
        claims.append(decide("A 3.2", text, setting, at_30_percent, above=-0.05))
        text = "30% of the tokens surpass RLVR"
        added.append(decide("A 3.2, added", text, setting, at_30_percent, 0.02, added=True))
    return claims + added


def extrapolation_claims(found):
    """The claims of extrapolation, decided, where there is room above RLVR. found: {PairKey: record}."""
    claims = []
    for model, top_p in itertools.product(MODELS, TOP_PS):
        rows_of_base = [record[f"extrapolation {top_p}"] for record in records_of(found, model)]
        if np.mean([accuracies(rows)[RLVR_ALONE] for rows in rows_of_base]) >= 0.98:
            continue
        gains_of_base = [gains(rows) for rows in rows_of_base]
        for text in gains_of_base[0]:
            paper = "A 4.1"
            if text in (GAMMA_FROM_RLVR, BEATS_GLOBAL):
                paper = "A 4.1 (ours)"
            above = 0.0
            matters = 0.02
            if text == FLATTENS:  # by less than 0.02
                above = -0.02
                matters = 0.0
            values = [base_gains[text] for base_gains in gains_of_base]
            claims.append(decide(paper, text, f"{model}, top-p {top_p:g}", values, matters, above))
    return claims


# --------------------------------------------------------------------------------------------------------------- figure
def draw_replacement(path, found):
    """Accuracy minus RLVR's over the replaced share: a panel for each model and top-p, a thin line for each model."""
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    names = {"end": "finished model", "half-trained": "half-trained model"}
    for axis, (model, top_p) in zip(axes.flat, itertools.product(MODELS, TOP_PS), strict=True):
        for number, record in enumerate(records_of(found, model)):
            curves = record[f"replacement {top_p}"]
            rlvr = curves["base and RLVR"][1]["accuracy"]
            for criterion, name in CRITERIA.items():
                x = [100 * point["ratio"] for point in curves[criterion]]
                y = [point["accuracy"] - rlvr for point in curves[criterion]]
                label = name if number == 0 else None  # once in the legend
                axis.plot(x, y, "o-", ms=2, lw=0.9, color=COLORS[criterion], label=label)
        axis.axhline(0, color="black", lw=1, ls="--")
        axis.axhline(-0.05, color="gray", lw=1, ls=":")
        axis.set(title=f"{names[model]}, top-p {top_p:g}")
        axis.set_xscale("log")
        axis.set_xticks([2, 5, 10, 15, 20, 30], ["2", "5", "10", "15", "20", "30"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set(xlabel="replaced tokens (%)")
    figure.supylabel("accuracy minus RLVR's (dotted: -0.05)", fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, title=LEGEND)
    title = "How many tokens must be RLVR's to reach its accuracy (dashed)?"
    figure.suptitle(title, weight="bold")
    figure.savefig(path, dpi=92)


def main():
    args = arguments(__doc__)
    checkpoint_every = 1 if args.quick else 10

    # ---- the models of training.py
    steps = {}  # {PairKey: step of the checkpoint that is its RLVR}
    for run, record in run_missing("dapo", run_keys("dapo", args, ["none"]), args).items():
        steps[PairKey(run.base, "end")] = len(record["accuracy"])
        steps[PairKey(run.base, "half-trained")] = half_of(record, checkpoint_every)

    # ---- run and decide
    path = args.where / "pairs.jsonl"
    make_bases(args, path, [pair_name(pair) for pair in steps])
    run_all({pair_name(pair): pair_job(pair, step, args) for pair, step in steps.items()}, records=path)
    records = read_records(path)
    found = {pair: records[pair_name(pair)] for pair in steps}
    claims = direction_claims(found)
    finish(args, "direction", claims, draw_effects, claims, "dlogp shows what changed, and few tokens hold the change")
    finish(args, "replacement", replacement_claims(found), draw_replacement, found)
    claims = extrapolation_claims(found)
    finish(args, "extrapolation", claims, draw_effects, claims, "Whether extrapolation beats RLVR stays open")


if __name__ == "__main__":
    main()
