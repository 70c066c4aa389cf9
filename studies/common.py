"""What the studies share: the bases, running commands two at a time, intervals over bases, the verdict, files.

The studies call the six scripts as a reader would, from the command line, and read the files that they wrote. How every
claim is decided, written before the runs:
  unit        a base: a model pre-trained from a seed of its own, with problem files of its own. A measure is averaged
              over problems and training seeds inside a base; two arms are compared on the same base, never by training
              seed
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
BASES = (1, 2, 3, 4, 5)  # pre-training seeds; 1 is tiny/ itself


# ------------------------------------------------------------------------------------------------------- bases and runs
class Run(NamedTuple):
    """One command of a job. With a config.json in the folder it was begun; with the last file it is done."""

    command: str  # script and flags, without --out
    folder: Path  # its --out
    last_file: str  # name of the file in the folder that the script writes last


class Job(NamedTuple):
    """What makes a record: the runs, one after the other, then summary(), a dict that goes into the record."""

    runs: list[Run]
    summary: Callable | None  # None: the last run writes the record itself


def arguments(doc):
    """The flags of every study, and two more fields.

    where: the folder for records, result and figure. bases: the seeds of the base models.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny runs, recorded below --runs: to see that it works")
    parser.add_argument("--runs", default="runs/studies", help="folder of the runs of all studies")
    args = parser.parse_args()
    args.runs = ROOT / args.runs
    if args.quick:
        args.where = args.runs / "results"
        args.bases = (1, 2)  # tiny/ stands for both
    else:
        args.where = ROOT / "studies" / "results"
        args.bases = BASES
    return args


def base_folder(base, quick=False):
    """Folder with base/, train.jsonl, test.jsonl and long.jsonl."""
    if base == 1 or quick:
        return ROOT / "tiny"
    return ROOT / "runs" / "bases" / str(base)


def make_bases(args, records):
    """Pre-train the bases that are not there, if one of the records is missing: 10 minutes of one core each."""
    if args.quick or all(record.exists() for record in records):
        return
    jobs = {}
    for base in args.bases:
        if base != 1:
            run = Run(f"tiny/make_tiny.py --seed {base}", base_folder(base), "base/tokenizer_config.json")
            jobs[run.folder / run.last_file] = Job([run], None)
    if not all(path.exists() for path in jobs):
        run_all(jobs)


def run_all(jobs, workers=2):
    """Do jobs, {path of the record: Job}, `workers` at a time. A record is a JSON file.

    A job with a record is not done again. A run that was begun goes on from its last checkpoint. A failed command ends
    the study with its last words, as does ctrl-C: the same command goes on from there.
    """
    todo = {record: job for record, job in jobs.items() if not record.exists()}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(f"{len(todo)} of {len(jobs)} runs to do", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(do_job, record, job, commit) for record, job in todo.items()]
            for future in futures:
                future.result()
        except KeyboardInterrupt:
            raise SystemExit("stopped; the same command goes on from here") from None
        finally:
            pool.shutdown(cancel_futures=True)


def do_job(record, job, commit):
    """Do the runs of a Job, single-threaded, and write its record: commit, times, commands and the summary."""
    started = now()
    resumed = False
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for run in job.runs:
        line = [sys.executable, *run.command.split(), "--out", str(run.folder)]
        if (run.folder / "config.json").exists():
            resumed = True
            line.append("--resume")
        if (run.folder / run.last_file).exists():
            continue
        ended = subprocess.run(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if ended.returncode != 0:
            last_words = " ".join(ended.stderr.decode(errors="replace").strip().splitlines()[-3:])
            raise SystemExit(f"{run.command} --out {run.folder} ended with status {ended.returncode}: {last_words}")
    if job.summary is not None:
        about = {
            "commit": commit,
            "started": started,
            "resumed": resumed,
            "ended": now(),
            "commands": [run.command.replace(f"{ROOT}/", "") for run in job.runs],
        }
        write_json(record, {**about, **job.summary()})
    print(f"{record.stem}: done", flush=True)


def now():
    """Date and time in UTC, to the second, as text."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# ----------------------------------------------------------------------------------------------------------- statistics
@functools.cache
def students_t(df):
    """Student's t on a grid, (t, P(T <= t)): with t = sqrt(df) tan(a), the density of a is cos(a)^(df - 1)."""
    a = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    middles = (a[1:] + a[:-1]) / 2
    below = np.cumsum(np.cos(middles) ** (df - 1))
    return math.sqrt(df) * np.tan(a), np.concatenate([[0.0], below / below[-1]])


def t_tail(t, df):
    """P(T > t) of Student's t with df degrees of freedom."""
    grid, probability_below = students_t(df)
    return float(np.interp(-t, grid, probability_below))


def t_quantile(p, df):
    """The t that T exceeds with probability 1 - p."""
    grid, probability_below = students_t(df)
    return float(np.interp(p, probability_below, grid))


def no_spread(x):
    """Whether there is one number alone, or none, or all are equal: then there is no interval."""
    return len(x) < 2 or np.ptp(x) < 1e-9


def interval(x):
    """(mean, half-width of its 95% interval) of one number for each base; inf where there is no spread."""
    x = np.asarray(x, dtype=float)
    mean = float(x.mean()) if len(x) > 0 else math.nan
    if no_spread(x):
        return mean, math.inf
    return mean, float(t_quantile(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)


def smallest_decidable(sd, n=5, power=0.8):
    """The smallest effect whose 95% interval over n bases excludes 0 with that probability; sd between bases."""
    return (t_quantile(0.975, n - 1) + t_quantile(power, n - 1)) * sd / n**0.5


def p_value(x, above, matters):
    """Twice the p of the one-sided t test behind the verdict on numbers x, one for each base.

    The test is that the mean exceeds `above` (holds), or that it lies below above + matters (does not hold). Where
    neither holds, the smaller p of both; where there is no spread, 1.
    """
    x = np.asarray(x, dtype=float)
    if no_spread(x):
        return 1.0
    df = len(x) - 1
    standard_error = x.std(ddof=1) / len(x) ** 0.5
    t = (x.mean() - above) / standard_error
    if t <= t_quantile(0.975, df):  # does not hold, or undecided
        t = max(t, (above + matters - x.mean()) / standard_error)
    return min(1.0, 2 * t_tail(t, df))


def holm(p_values):
    """Holm's step-down adjustment of a list of p-values, in its order."""
    n = len(p_values)
    adjusted = [0.0] * n
    largest = 0.0
    for rank, i in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (n - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def judge(mean, half, above=0.0, matters=0.0):
    """The verdict on "the effect exceeds `above`"; see the top of this file."""
    if mean - half > above:
        return "holds"
    if mean + half < above + matters:
        return "does not hold"
    return "undecided"


def by_base(values):
    """{(base, seed): number} -> {base: mean over its seeds}; nan is left out, and a base that has nothing else."""
    numbers = {}
    for (base, _), x in values.items():
        if math.isfinite(x):
            numbers.setdefault(base, []).append(x)
    return {base: float(np.mean(xs)) for base, xs in sorted(numbers.items())}


def difference(more, less, never=None):
    """by_base() of one arm minus that of another, over the bases that both have and where not both are `never`."""
    more = by_base(more)
    less = by_base(less)
    effects = []
    for base, x in more.items():
        if base not in less:
            continue
        both_never = x == never and less[base] == never
        if not both_never:
            effects.append(x - less[base])
    return effects


def decide(paper, text, measure, values, matters=0.0, above=0.0):
    """A claim as a row of a study's JSON. paper: "A 4.2"; values: the effect on each base, more is what is claimed."""
    values = [float(x) for x in values if math.isfinite(x)]
    mean, half = interval(values)
    decidable = math.nan
    if len(values) > 1:
        decidable = smallest_decidable(np.std(values, ddof=1), len(values))
    return {
        "paper": paper,
        "claim": text,
        "measure": measure,
        "effect": mean,
        "half": half,
        "above": above,
        "matters": matters,
        "values": np.round(values, 5).tolist(),
        "p": p_value(values, above, matters),
        "decidable": decidable,
        "verdict": judge(mean, half, above, matters),
    }


# ---------------------------------------------------------------------------------------------------------------- files
def table(claims, first=None):
    """A study's claims as markdown, one line for all measures of a claim; first: what the first world said, a dict."""
    head = ["paper", "claim", "measure: effect, 95% (n)", "above; matters; decidable", "verdict", "after correction"]
    if first:
        head.append("first world")
    rows_of_claim = {}
    for row in claims:
        cells = claim_cells(row)
        if first:
            cells.append(first_world(row["claim"], first))
        rows_of_claim.setdefault(row["claim"], []).append(cells)
    lines = [head, ["---"] * len(head)]
    for rows in rows_of_claim.values():
        lines.append(merged(rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def claim_cells(row):
    """The cells of one measure of a claim, texts. row: see decide(); what was not finite may be None, as in JSON."""
    effect = row["effect"]
    if not isinstance(effect, str):  # bandit.py says "-1.00 to +0.00"
        mean = math.nan if row["effect"] is None else row["effect"]
        half = math.nan if row["half"] is None else row["half"]
        effect = f"{mean:+.3f} ± {half:.3f}"
    sizes = f"{row['above']:.2g}; {row['matters']:.2g}"
    if row.get("decidable") is not None:
        sizes += f"; {row['decidable']:.2g}"
    after_correction = "stays" if row["survives"] else "-"
    measure = f"{row['measure']}: {effect} ({len(row['values'])})"
    return [row["paper"], row["claim"], measure, sizes, row["verdict"], after_correction]


def first_world(claim, first):
    """What the first world said of a claim: the text of {how a claim begins: text} that fits it best."""
    starts = [start for start in first if claim.startswith(start)]
    if not starts:
        return "not asked"
    return first[max(starts, key=len)]


def merged(rows):
    """Several rows of cells as one: cells that differ stand below each other."""
    cells = []
    for column in zip(*rows, strict=True):
        if len(set(column)) == 1:
            cells.append(column[0])
        else:
            cells.append("<br>".join(column))
    return cells


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


def read_jsonl(path):
    """The rows of a JSONL file, such as a run's metrics.jsonl: a list."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_json(path, result):
    """JSON, under a temporary name, then renamed; a list of numbers is one line; what is not finite becomes null."""
    text = re.sub(r"-?Infinity|NaN", "null", json.dumps(result, indent=1))
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)  # innermost lists
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def forest(path, claims):
    """The effects of a study's claims with their intervals."""
    figure = Figure(figsize=(9, 0.9 + 0.24 * len(claims)), layout="constrained")
    axis = figure.subplots()
    y = range(len(claims))
    half_widths = []
    labels = []
    for row in claims:
        if math.isfinite(row["half"]):
            half_widths.append(row["half"])
            labels.append(f"{row['claim']} ({row['measure']})")
        else:
            half_widths.append(0.0)
            labels.append(f"{row['claim']} ({row['measure']}, no interval)")
    axis.errorbar([row["effect"] for row in claims], y, xerr=half_widths, fmt="o", ms=4, capsize=2)
    axis.plot([row["above"] for row in claims], y, "|", color="gray", ms=9)
    axis.plot([row["above"] + row["matters"] for row in claims], y, "k|", ms=5)
    axis.set_yticks(y, labels, fontsize=7)
    axis.invert_yaxis()
    figure.supxlabel("effect, 95% interval over bases; gray: threshold; black: smallest that matters", fontsize=9)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def finish(args, name, claims, draw=None, *data):
    """Correct the verdicts of a study for their number, print its table, write its JSON and its figure.

    draw(path, *data) makes the figure; without it, forest() of the claims.
    """
    corrected = holm([row.get("p", 1.0) for row in claims])
    for row, p in zip(claims, corrected, strict=True):
        if "p" in row:  # not bandit.py's, which corrects its own
            row["p_holm"] = p
            row["survives"] = row["verdict"] != "undecided" and p < 0.05
    print(table(claims))
    write_json(args.where / f"{name}.json", {"command": f"python {sys.argv[0]}", "claims": claims})
    figure = args.where / f"{name}.png"
    if draw is None:
        forest(figure, claims)
    else:
        draw(figure, *data)
    print(f"\nwritten: {name}.json, {name}.png and a record of each run in {args.where}")
