"""What the studies share: the bases, running commands two at a time, intervals over bases, the verdict, files.

The studies call the six scripts as a reader would, from the command line, and read the files that they wrote. How every
claim is decided, written before the runs:
  unit        a base (a pre-training seed, with problem files of its own). A measure is averaged over problems and
              training seeds inside a base; two arms are compared on the same base, never by training seed
  interval    mean over bases and 95% interval of Student's t. Problems and training seeds are nested in bases, so it
              covers them, too
  verdict     of "the effect exceeds `above`". holds: the interval lies above it. Else, does not hold: the interval
              excludes an effect of above + matters, the smallest that matters. Else undecided
  correction  Holm within a study: one p a claim, twice that of the one-sided test behind the verdict, of undecided ones
              the smaller of both, against `above` and above + matters. It stands beside the verdict and does not change
              it. (Amended with all records of dapo.py there: it was the smaller for all. One row changed)
  power       smallest_decidable(sd): the effect that five bases show with probability 0.8, (t.975 + t.8) sd / sqrt(5);
              tables give it for the sd that was found
  no spread   bases that all give the same number (a ceiling) have no interval: undecided
"""

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
BASES = (1, 2, 3, 4, 5)  # pre-training seeds; 1 is tiny/ itself


# ------------------------------------------------------------------------------------------------------- bases and runs
def arguments(doc):
    """The flags of every study; `where` is the folder for the records, the result and the figure."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny runs, recorded below --runs: to see that it works")
    parser.add_argument("--runs", default="runs/studies", help="folder of the runs of all studies")
    args = parser.parse_args()
    args.runs = ROOT / args.runs
    args.where = args.runs / "results" if args.quick else ROOT / "studies" / "results"
    args.bases = (1, 2) if args.quick else BASES  # in the quick form, tiny/ stands for both
    return args


def base_folder(base, quick=False):
    """Folder with base/, train.jsonl, test.jsonl and long.jsonl."""
    return ROOT / "tiny" if base == 1 or quick else ROOT / "runs" / "bases" / str(base)


def make_bases(args, records):
    """Pre-train the bases that are not there, if one of the records is missing: 10 minutes of one core each."""
    if args.quick or all(record.exists() for record in records):
        return
    folders, done = {base: base_folder(base) for base in args.bases if base != 1}, "base/tokenizer_config.json"
    jobs = {f / done: ([(f"tiny/make_tiny.py --seed {base}", f, done)], None) for base, f in folders.items()}
    if any(not path.exists() for path in jobs):
        run_all(jobs)


def run_all(jobs, workers=2):
    """Do jobs, {record: (commands, summary)}, `workers` at a time; a record is a JSON file.

    commands are (script and flags, folder, file that shows it is done), run one after the other, single-threaded; then
    summary(), a dict, goes into the record with commit, times and commands (None: the run itself leaves the record). A
    job with a record is not done again; a run that was begun goes on from its last checkpoint. A failed command ends
    the study with its last words, as does ctrl-C: the same command goes on from there.
    """
    todo, env = {path: job for path, job in jobs.items() if not path.exists()}, os.environ | {"OMP_NUM_THREADS": "1"}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    def work(path, commands, summary):
        about = {"commit": commit, "started": datetime.now(UTC).isoformat(timespec="seconds"), "resumed": False}
        for command, folder, done in commands:
            about["resumed"] |= (begun := (folder / "config.json").exists())
            if (folder / done).exists():
                continue
            line = [sys.executable, *command.split(), *["--resume"] * begun, "--out", str(folder)]
            run = subprocess.run(line, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if run.returncode:
                words = " ".join(run.stderr.decode(errors="replace").strip().splitlines()[-3:])
                raise SystemExit(f"{command} --out {folder} ended with status {run.returncode}: {words}")
        if summary:
            about |= {"ended": datetime.now(UTC).isoformat(timespec="seconds")}
            about |= {"commands": [command.replace(f"{ROOT}/", "") for command, _, _ in commands]}
            write_json(path, about | summary())
        print(f"{path.stem}: done", flush=True)

    print(f"{len(todo)} of {len(jobs)} runs to do", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(work, path, *job) for path, job in todo.items()]:
                future.result()
        except KeyboardInterrupt:
            raise SystemExit("stopped; the same command goes on from here") from None
        finally:
            pool.shutdown(cancel_futures=True)


# ----------------------------------------------------------------------------------------------------------- statistics
@functools.cache
def students_t(df):
    """Student's t on a grid, (t, P(T <= t)): with t = sqrt(df) tan(a), the density of a is cos(a)^(df - 1)."""
    a = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    below = np.cumsum(np.cos((a[1:] + a[:-1]) / 2) ** (df - 1))
    return math.sqrt(df) * np.tan(a), np.concatenate([[0.0], below / below[-1]])


def t_tail(t, df):
    """P(T > t) of Student's t with df degrees of freedom."""
    return float(np.interp(-t, *students_t(df)))


def t_quantile(p, df):
    """The t that T exceeds with probability 1 - p."""
    return float(np.interp(p, *students_t(df)[::-1]))


def interval(x):
    """(mean, half-width of its 95% interval) of one number a base; infinite for one base, or if all are equal."""
    x = np.asarray(x, dtype=float)
    if len(x) < 2 or np.ptp(x) < 1e-9:
        return float(x.mean()) if len(x) else math.nan, math.inf
    return float(x.mean()), float(t_quantile(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)


def smallest_decidable(sd, n=5, power=0.8):
    """The smallest effect whose 95% interval over n bases excludes 0 with that probability; sd between bases."""
    return (t_quantile(0.975, n - 1) + t_quantile(power, n - 1)) * sd / n**0.5


def p_value(x, above, matters):
    """Twice the p of the one-sided t test behind the verdict: that the mean exceeds `above` (holds) or lies below
    above + matters (does not hold); the smaller of both where it is undecided.
    """
    x = np.asarray(x, dtype=float)
    if len(x) < 2 or np.ptp(x) < 1e-9:
        return 1.0
    error = x.std(ddof=1) / len(x) ** 0.5
    exceeds, falls_short = (x.mean() - above) / error, (above + matters - x.mean()) / error
    holds = exceeds > t_quantile(0.975, len(x) - 1)
    return min(1.0, 2 * t_tail(exceeds if holds else max(exceeds, falls_short), len(x) - 1))


def holm(p_values):
    """Holm's step-down adjustment of a list of p-values, in its order."""
    order, adjusted, largest = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def judge(mean, half, above=0.0, matters=0.0):
    """The verdict on "the effect exceeds `above`"; see the top of this file."""
    if mean - half > above:
        return "holds"
    return "does not hold" if mean + half < above + matters else "undecided"


def by_base(values):
    """{(base, seed): number} -> {base: mean over its seeds}; a base all of whose numbers are nan is left out."""
    found = {}
    for (base, _), x in values.items():
        found.setdefault(base, []).append(x)
    means = {base: np.mean([x for x in xs if math.isfinite(x)] or [math.nan]) for base, xs in found.items()}
    return {base: float(x) for base, x in sorted(means.items()) if math.isfinite(x)}


def difference(more, less, never=None):
    """by_base() of one arm minus that of another, over the bases that both have and where not both are `never`."""
    more, less = by_base(more), by_base(less)
    return [x - less[base] for base, x in more.items() if base in less and not x == less[base] == never]


def decide(paper, text, measure, values, matters=0.0, above=0.0):
    """A claim as a row of a study's JSON. paper: "A 4.2"; values: the effect on each base, more is what is claimed."""
    values = [float(x) for x in values if math.isfinite(x)]
    mean, half = interval(values)
    row = {"paper": paper, "claim": text, "measure": measure, "effect": mean, "half": half, "above": above}
    row |= {"matters": matters, "values": np.round(values, 5).tolist(), "p": p_value(values, above, matters)}
    row["decidable"] = smallest_decidable(np.std(values, ddof=1), len(values)) if len(values) > 1 else math.nan
    return row | {"verdict": judge(mean, half, above, matters)}


# ---------------------------------------------------------------------------------------------------------------- files
def table(claims, first=None):
    """A study's claims as markdown, one line for all measures of a claim; first: what the first world said, a dict."""
    head, lines = ["paper", "claim", "measure: effect, 95% (n)", "above; matters; decidable"], {}
    head += ["verdict", "after correction"] + ["first world"] * bool(first)
    for row in claims:
        effect, decidable = row["effect"], row.get("decidable")
        if not isinstance(effect, str):
            effect = "{:+.3f} ± {:.3f}".format(*(math.nan if row[k] is None else row[k] for k in ("effect", "half")))
        cells = [row["paper"], row["claim"], f"{row['measure']}: {effect} ({len(row['values'])})"]
        cells.append(f"{row['above']:.2g}; {row['matters']:.2g}" + f"; {decidable or 0:.2g}" * (decidable is not None))
        cells += [row["verdict"], "stays" if row["survives"] else "-"]
        starts = [claim for claim in first or () if row["claim"].startswith(claim)]
        cells += [first[max(starts, key=len)] if starts else "not asked"] * bool(first)
        lines.setdefault(row["claim"], []).append(cells)
    lines = [["<br>".join(x if len(set(x)) > 1 else x[:1]) for x in zip(*line, strict=True)] for line in lines.values()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines])


def rounded(x, digits=4):
    """A list of numbers, short enough for a record; None where there is none."""
    return [None if value is None else round(float(value), digits) for value in x]


def read_json(path):
    """What a JSON file holds; one that is missing or damaged ends the study with its name and what to do."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}; run the study that makes it") from None
    except ValueError as error:
        raise SystemExit(f"{path}: not valid JSON ({error}); delete it, and the study makes it again") from None


def write_json(path, result):
    """JSON, under a temporary name, then renamed; a list of numbers is one line; what is not finite becomes null."""
    text = re.sub(r"-?Infinity|NaN", "null", json.dumps(result, indent=1))
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(text + "\n")
    os.replace(path.with_suffix(".tmp"), path)


def forest(path, claims):
    """The effects of a study's claims with their intervals."""
    figure = Figure(figsize=(9, 0.9 + 0.24 * len(claims)), layout="constrained")
    axis, y = figure.subplots(), range(len(claims))
    half = [row["half"] if math.isfinite(row["half"]) else 0.0 for row in claims]
    axis.errorbar([row["effect"] for row in claims], y, xerr=half, fmt="o", ms=4, capsize=2)
    axis.plot([row["above"] for row in claims], y, "|", color="gray", ms=9)
    axis.plot([row["above"] + row["matters"] for row in claims], y, "k|", ms=5)
    marks = ["" if math.isfinite(row["half"]) else ", no interval" for row in claims]
    labels = [f"{row['claim']} ({row['measure']}{mark})" for row, mark in zip(claims, marks, strict=True)]
    axis.set_yticks(y, labels, fontsize=7)
    axis.invert_yaxis()
    figure.supxlabel("effect, 95% interval over bases; gray: threshold; black: smallest that matters", fontsize=9)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def finish(args, name, claims, draw=forest, *about):
    """Correct the verdicts of a study for their number, print its table, write its JSON and its figure."""
    for row, p in zip(claims, holm([row.get("p", 1.0) for row in claims]), strict=True):
        if "p" in row:  # not bandit.py's, which corrects its own
            row |= {"p_holm": p, "survives": row["verdict"] != "undecided" and p < 0.05}
    print(table(claims))
    write_json(args.where / f"{name}.json", {"command": f"python {sys.argv[0]}", "claims": claims})
    draw(args.where / f"{name}.png", *(about or [claims]))
    print(f"\nwritten: {name}.json, {name}.png and a record of each run in {args.where}")
