"""The two pictures of the README, drawn from finished runs; a run of the real model, from its record; slides.

    python studies/pictures.py two-stages    # after python dapo.py; the real model's run is in studies/results
    python studies/pictures.py dlogp         # after python delta_logp.py
    python studies/pictures.py real --real dapo-2 --out runs/real.png
    python studies/pictures.py slides        # four pictures for slides, after both; --tiny runs/lab/dapo: of the lab

two-stages: the shares of the actions over training, stacked, of a bandit (run here, a second), of the tiny model and of
SmolLM2-135M. What is rare and best at first is orange, common and fair is blue, worthless is green. Accuracy is above.
Dashed: where blue is highest (mean of five updates or steps). real.py defines the shares of the real model.
dlogp: a wrong response of the base and a right one of the RLVR model to one problem, a bar of dlogp over every token.
It is the first problem of the run that has both, short enough for the picture and the base's not too short; of each
model the longest such response.
slides: bandit.svg (run here), two_stages.svg, dlogp.svg and replacement.svg (five models, from studies/results). Their
text stays text, so that a slide can change it.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
from common import ROOT, read_json, read_jsonl, read_records
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from pairs import COLORS as CRITERION_COLORS
from pairs import CRITERIA
from real import accuracy_of, draw_runs, key_of, shares_of

COLORS = {"worthless": "tab:green", "common": "tab:blue", "best": "tab:orange"}
MAX_LENGTH = 64  # of a response that fits into the picture, in characters


# ----------------------------------------------------------------------------------------------------------- two stages
def bandit_panel(path=None):
    """(updates, {colour name: share}, expected reward) of the default bandit: the mean over 250 runs.

    path: where to draw it, as toy_bandit.py does; None: nowhere.
    """
    sys.path.insert(0, str(ROOT))
    import toy_bandit

    settings = toy_bandit.bandit_settings(toy_bandit.parse_args([]))
    bandit = toy_bandit.Bandit("", "", "", settings)
    row, curves = toy_bandit.run(bandit)
    if path is not None:
        toy_bandit.draw_bandit(path, bandit, row, curves)
    common, best, worthless = curves.mean.T
    return curves.updates, {"worthless": worthless, "common": common, "best": best}, curves.mean @ toy_bandit.REWARDS


def tiny_panel(path):
    """(steps, {colour name: share of all actions}, accuracy) of a run of dapo.py in the tiny world."""
    rows = [row for row in read_jsonl(path) if row["step"] > 0]
    shares = {"worthless": [], "common": [], "best": []}
    for row in rows:
        total = row["guess"] + row["two_at_once"] + row["one_at_a_time"]
        shares["worthless"].append(row["guess"] / total)
        shares["common"].append(row["two_at_once"] / total)
        shares["best"].append(row["one_at_a_time"] / total)
    return [row["step"] for row in rows], shares, [row["accuracy"] for row in rows]


def real_panel(rows):
    """(steps, {colour name: share of all responses}, accuracy) of a run of real.py, rows of its metrics."""
    rows = [row for row in rows if row["step"] > 0]
    shares = {"worthless": [], "common": [], "best": []}
    for row in rows:
        share = shares_of(row)
        shares["worthless"].append(share["neither"])
        shares["common"].append(share["blind"])
        shares["best"].append(share["compares"])
    return [row["step"] for row in rows], shares, [accuracy_of(row) for row in rows]


def draw_two_stages(path, tiny, real):
    """Draw bandit, tiny and real model side by side. tiny: a metrics.jsonl; real: rows of another."""
    panels = [
        ("A bandit with three actions", "update", bandit_panel()),
        ("A tiny language model", "training step", tiny_panel(tiny)),
        ("A real one (135M parameters)", "training step", real_panel(real)),
    ]
    labels = [
        ("worthless", "common and fair", "rare and best"),
        ("guesses", "two operations at once", "one operation at a time"),
        ("boxes neither number", "boxes one without comparing", "compares the numbers"),
    ]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    grid = figure.subplots(2, 3, height_ratios=(1, 2.2), sharex="col")
    for column, (title, x_label, (x, shares, accuracy)) in enumerate(panels):
        above, below = grid[:, column]
        above.plot(x, accuracy, color="black")
        above.set(title=title, ylim=(0, 1))
        above.grid(alpha=0.3)
        below.stackplot(x, [shares[name] for name in COLORS], colors=list(COLORS.values()), alpha=0.85)
        below.set(xlabel=x_label, xlim=(x[0], x[-1]), ylim=(0, 1))
        smooth = np.convolve(shares["common"], np.ones(5) / 5, "valid")  # [i]: mean around x[i + 2]
        for axis in (above, below):
            axis.axvline(x[smooth.argmax() + 2], color="black", ls="--", lw=1)
        patches = [Patch(color=color, alpha=0.85) for color in COLORS.values()]
        below.legend(patches[::-1], labels[column][::-1], loc="upper center", bbox_to_anchor=(0.5, -0.25), fontsize=9)
    grid[0, 0].set(ylabel="reward", xscale="log")
    grid[0, 1].set(ylabel="accuracy")
    grid[1, 0].set(ylabel="share of the actions")
    figure.suptitle("First the common action is exploited. Then the rare best one takes over.", weight="bold")
    figure.savefig(path, dpi=92)


# ---------------------------------------------------------------------------------------------------------------- dlogp
def pick_responses(folder):
    """(problem, {"base" or "rlvr": (tokens as texts, dlogp of each)}) of a run of delta_logp.py; see the top."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(read_json(folder / "config.json")["args"]["rlvr"])
    found = {}  # {problem: {source: its longest response that fits, a number and a row}}
    for i, row in enumerate(read_jsonl(folder / "responses.jsonl")):
        wanted = row["right"] == (row["source"] == "rlvr")
        if wanted and len(row["response"]) <= MAX_LENGTH:
            pair = found.setdefault(row["prompt"], {})
            if row["source"] not in pair or len(row["response"]) > len(pair[row["source"]][1]["response"]):
                pair[row["source"]] = (i, row)
    with np.load(folder / "tokens.npz") as file:
        owners = file["response"]
        dlogp = file["dlogp"]
    for problem, pair in found.items():
        if len(pair) < 2 or len(pair["base"][1]["response"]) < MAX_LENGTH / 2:
            continue
        tokens = {}
        for source, (i, row) in pair.items():
            pieces = [tokenizer.decode([token]) for token in row["response_ids"]]
            tokens[source] = (pieces, dlogp[owners == i])
        return problem, tokens
    raise SystemExit(f"{folder}: no problem has a wrong response of the base and a right one of RLVR that fit")


def draw_dlogp(path, folder):
    """Draw one problem of a run of delta_logp.py: a bar of dlogp over every token of two responses."""
    problem, tokens = pick_responses(folder)
    largest = max(np.abs(dlogp).max() for _, dlogp in tokens.values())
    titles = {"base": "The base model, wrong", "rlvr": "After RLVR, right"}
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axis, (source, title) in zip(figure.subplots(2, 1), titles.items(), strict=True):
        x = 0
        for piece, value in zip(*tokens[source], strict=True):
            text = piece.replace("\\boxed", "box").replace("<|im_end|>", "end")
            style = {"color": "tab:red" if value > 0 else "tab:blue"}
            axis.bar(x + len(text) / 2, value, 0.9, **style)
            if abs(value) > 1:
                style["weight"] = "bold"
            else:
                style["color"] = "black"
            axis.text(x + len(text) / 2, -1.4 * largest, text, ha="center", family="monospace", **style)
            x += len(text)
        axis.axhline(0, color="black", lw=0.8)
        axis.set(title=title, ylabel="dlogp (nats)", xlim=(-0.5, MAX_LENGTH + 3), ylim=(-1.1 * largest, 1.1 * largest))
        axis.set_xticks([])
    patches = [Patch(color="tab:red"), Patch(color="tab:blue")]
    labels = ["RLVR made this token more likely", "RLVR made it less likely"]
    figure.legend(patches, labels, loc="outside lower center", ncols=2)
    figure.suptitle(f"A few tokens hold the change. The problem: {problem}", weight="bold")
    figure.savefig(path, dpi=92)


# ---------------------------------------------------------------------------------------------------------- replacement
def draw_replacement(path, records):
    """Draw accuracy over the share of replaced tokens at top-p 1. records: those of pairs.py, {name: record}."""
    runs = [record["replacement 1.0"] for name, record in records.items() if name.endswith("-end")]
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axis = figure.subplots()
    for number, (label, color) in enumerate((("the base alone", "gray"), ("RLVR alone", "black"))):
        accuracy = np.mean([run["base and RLVR"][number]["accuracy"] for run in runs])
        axis.axhline(accuracy, color=color, ls="--", lw=1.5, label=label)
    for criterion, name in CRITERIA.items():
        style = {"color": CRITERION_COLORS[criterion]}
        ratios = np.array([[100 * point["ratio"] for point in run[criterion]] for run in runs])  # (models, targets)
        accuracies = np.array([[point["accuracy"] for point in run[criterion]] for run in runs])
        for x, y in zip(ratios, accuracies, strict=True):
            axis.plot(x, y, lw=0.6, alpha=0.6, **style)
        axis.plot(ratios.mean(axis=0), accuracies.mean(axis=0), "o-", lw=2.5, label=f"replaced by {name}", **style)
    axis.set(xlabel="tokens of the base that RLVR replaces (%)", ylabel="accuracy", xscale="log", ylim=(0, 1))
    axis.set_xticks([2, 5, 10, 15, 20, 30], ["2", "5", "10", "15", "20", "30"])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    legend = "thick: mean of five models; thin: each of them"
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, title=legend)
    title = "Few tokens, chosen by dlogp, make the base as good as RLVR"
    figure.suptitle(title, weight="bold")
    figure.savefig(path, dpi=92)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=("two-stages", "dlogp", "real", "slides"))
    parser.add_argument("--tiny", default=ROOT / "runs/dapo/none-seed1", type=Path, help="folder of a run of dapo.py")
    parser.add_argument("--pair", default=ROOT / "runs/delta_logp/seed1", type=Path, help="of a run of delta_logp.py")
    parser.add_argument("--real", default="dapo-1", help="name of a record of real.py")
    parser.add_argument("--out", default="", help="the picture, by default in docs/figures; the folder of slides")
    args = parser.parse_args()
    if args.out:
        path = Path(args.out)
    elif args.picture == "slides":
        path = ROOT / "runs/slides"
    else:
        path = ROOT / "docs/figures" / f"{args.picture.replace('-', '_')}.png"
    runs = read_records(ROOT / "studies/results/real.jsonl")
    runs = {name: record["metrics"] for name, record in runs.items() if "metrics" in record}
    if args.real not in runs:
        raise SystemExit(f"--real {args.real}: no such run; there are {', '.join(sorted(runs))}")
    tiny = args.tiny / "metrics.jsonl"
    tokens = args.pair / "tokens.npz"
    needed = {"real": [path.parent], "two-stages": [tiny], "dlogp": [tokens], "slides": [tiny, tokens]}
    for file in needed[args.picture]:
        if not file.exists():
            raise SystemExit(f"{file} is missing: see --help")
    if args.picture == "real":
        draw_runs(path, {key_of(args.real): runs[args.real]})
    elif args.picture == "two-stages":
        draw_two_stages(path, tiny, runs[args.real])
    elif args.picture == "dlogp":
        draw_dlogp(path, args.pair)
    else:
        path.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context({"svg.fonttype": "none"}):  # text as text
            bandit_panel(path / "bandit.svg")
            draw_two_stages(path / "two_stages.svg", tiny, runs[args.real])
            draw_dlogp(path / "dlogp.svg", args.pair)
            draw_replacement(path / "replacement.svg", read_records(ROOT / "studies/results/pairs.jsonl"))
    print(f"written: {path}")


if __name__ == "__main__":
    main()
