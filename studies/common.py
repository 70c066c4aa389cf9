"""What the studies share: five models, running commands two at a time, statistics, the verdict, files.

The studies call the six scripts as a reader would, from the command line, and read the files that they wrote. How every
claim is decided:
  unit        a base model, pre-trained from its own seed, with problem files of its own; there are five. A measure is
              averaged over problems and training seeds inside a model. Two arms are compared on the same base model,
              never by training seed
  interval    mean over the models and 95% interval of Student's t. Problems and training seeds are nested in models, so
              it covers them, too. Without spread (a ceiling, or one model alone) there is none
  label       of "the effect exceeds the threshold `above`, and `matters` more is the smallest excess that matters":
                yes             the interval lies above the threshold, the mean at or above threshold + matters
                yes, but small  the interval lies above the threshold, the mean below threshold + matters
                no              the interval does not lie above the threshold, but below threshold + matters: an effect
                                that matters is excluded
                open            neither, or no interval
  correction  Holm's, within a study. One p for each row: twice that of the one-sided t test behind the label (against
              the threshold, or against threshold + matters), for "open" the smaller of both
  verdict     the label where the corrected p is below 0.05 ("survives correction"), else open: a "yes" and a "no" have
              to survive alike
  agreeing    on how many models the effect lies on the same side of the threshold as the mean. Five models can give a
              two-sided sign-flip test no p below 2 / 2^5 = 0.0625: no 95% verdict here stands without normality
Unit, interval, p and correction were fixed before the runs. Amended with all records of dapo.py there: for a row that
is not open, p is that of its own side (it was the smaller of both; one row changed).

The four labels came after the runs. Before, rows were "holds", "does not hold" or "undecided", and correction stood
beside them and changed nothing. By the rule above 29 of 77 "holds" became open and 48 yes, 20 of 40 "does not hold"
became open and 20 no; the 53 "undecided" are open. In bandit.py, which corrects in its own way, 4 rows of 10 changed.
Rows with "added": true were added after the runs, too, and their paper cell says so. They are corrected together with
all rows of their study, the others without them: no added row changes an older verdict.
"""

import argparse
import functools
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
BASES = (1, 2, 3, 4, 5)  # pre-training seeds of the base models; 1 is tiny/ itself
ADDING = threading.Lock()  # held while a file of records is rewritten


# ------------------------------------------------------------------------------------------------- base models and runs
class Run(NamedTuple):
    """One command of a job. With a config.json in the folder it was begun; with the last file it is done."""

    command: str  # script and flags, without --out
    folder: Path  # its --out
    last_file: str  # name of the file in the folder that the script writes last


class Job(NamedTuple):
    """What makes a record: the runs, one after the other, then summary(), a dict that goes into the record."""

    runs: list[Run]
    summary: Callable | None  # None: the last run writes the record itself


def arguments(doc, switches=None):
    """The flags of every study, and two more fields. switches: {flag: help} of flags that this study alone has.

    where: the folder for records, results and figures. bases: the pre-training seeds of the base models.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny runs, recorded below --runs: to see that it works")
    parser.add_argument("--runs", default="runs/studies", help="folder of the runs of all studies")
    for flag, text in (switches or {}).items():
        parser.add_argument(flag, action="store_true", help=text)
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


def make_bases(args, path, names):
    """Pre-train the base models that are not there, 10 minutes of one core each, if a record is missing in the file."""
    recorded = read_records(path)
    if args.quick or all(name in recorded for name in names):
        return
    jobs = {}
    for base in args.bases:
        if base != 1:
            run = Run(f"tiny/make_tiny.py --seed {base}", base_folder(base), "base/tokenizer_config.json")
            jobs[run.folder / run.last_file] = Job([run], None)
    if not all(path.exists() for path in jobs):
        run_all(jobs)


def run_all(jobs, workers=2, records=None):
    """Do jobs, {name of the record: Job}, `workers` at a time. records: the file that gets the records.

    Without that file, jobs are {path: Job}, and a path is a file that the job makes: its last run, or summary() (JSON).

    A job with a record is not done again. A run that was begun goes on from its last checkpoint. A failed command ends
    the study with its last words, as does ctrl-C: the same command goes on from there.
    """
    if records is None:
        done = [path for path in jobs if path.exists()]
    else:
        done = read_records(records)
    todo = {name: job for name, job in jobs.items() if name not in done}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(f"{len(todo)} of {len(jobs)} runs to do", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        try:
            futures = [pool.submit(do_job, name, job, commit, records) for name, job in todo.items()]
            for future in futures:
                future.result()
        except KeyboardInterrupt:
            raise SystemExit("stopped; the same command goes on from here") from None
        finally:
            pool.shutdown(cancel_futures=True)


def do_job(name, job, commit, records=None):
    """Do the runs of a Job, single-threaded, and write its record: commit, times, commands and the summary.

    name, records: see run_all().
    """
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
        record = {
            "commit": commit,
            "started": started,
            "resumed": resumed,
            "ended": now(),
            "commands": [run.command.replace(f"{ROOT}/", "") for run in job.runs],
            **job.summary(),
        }
        if records is None:
            write_json(name, record)
        else:
            add_record(records, {"name": name, **record})
    print(f"{name.stem if records is None else name}: done", flush=True)


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
    """(mean, half-width of its 95% interval) of one number for each model; inf where there is no spread."""
    x = np.asarray(x, dtype=float)
    mean = float(x.mean()) if len(x) > 0 else math.nan
    if no_spread(x):
        return mean, math.inf
    return mean, float(t_quantile(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)


def p_value(x, above, matters):
    """Twice the p of the one-sided t test behind the label of numbers x, one for each model.

    The test is that the mean exceeds `above` (yes), or that it lies below above + matters (no). Where the label is
    open, the smaller p of both; where there is no spread, 1.
    """
    x = np.asarray(x, dtype=float)
    if no_spread(x):
        return 1.0
    df = len(x) - 1
    standard_error = x.std(ddof=1) / len(x) ** 0.5
    t = (x.mean() - above) / standard_error
    if t <= t_quantile(0.975, df):  # no, or open
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


def judge(mean, half_width, above=0.0, matters=0.0):
    """The label of "the effect exceeds `above`", before any correction; see the top of this file."""
    if mean - half_width > above:
        if mean >= above + matters:
            return "yes"
        return "yes, but small"
    if mean + half_width < above + matters:
        return "no"
    return "open"


def n_agreeing(values, above=0.0):
    """How many of the numbers lie on the same side of the threshold `above` as their mean."""
    if len(values) == 0:
        return 0
    sides = np.sign(np.subtract(values, above))
    return int(np.sum(sides == np.sign(np.mean(values) - above)))


def by_base(values):
    """{(base, seed): number} -> {base: mean over its seeds}; nan is left out, and a base with nothing else."""
    numbers = {}
    for (base, _), x in values.items():
        if math.isfinite(x):
            numbers.setdefault(base, []).append(x)
    return {base: float(np.mean(xs)) for base, xs in sorted(numbers.items())}


def difference(more, less, never=None):
    """by_base() of one arm minus that of another: of base models that both have and where not both are `never`."""
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


def decide(paper, text, measure, values, matters=0.0, above=0.0, added=False):
    """A claim as a row of a study's JSON, before correction.

    paper: "A 4.2"; values: the effect on each model, more is what is claimed; added: after the runs. See finish().
    """
    values = [float(x) for x in values if math.isfinite(x)]
    mean, half_width = interval(values)
    return {
        "paper": paper,
        "claim": text,
        "measure": measure,
        "effect": mean,
        "half_width": half_width,
        "above": above,
        "matters": matters,
        "values": np.round(values, 5).tolist(),
        "agreeing": n_agreeing(values, above),
        "added": added,
        "p": p_value(values, above, matters),
        "label": judge(mean, half_width, above, matters),
    }


def correct(claims):
    """Add p_holm, survives and verdict to the rows of a study, see decide() and the top of this file."""
    old = [row for row in claims if not row["added"]]
    for family in (claims, old):  # first with the added rows, then again without them
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
            row["survives"] = row["label"] != "open" and p < 0.05
            row["verdict"] = row["label"] if row["survives"] else "open"


# ---------------------------------------------------------------------------------------------------------------- files
def table(claims):
    """A study's claims as Markdown, one line for all rows of a claim."""
    head = ["paper", "claim", "effect, 95%", "models agreeing", "verdict", "survives correction"]
    rows_of_claim = {}
    for row in claims:
        rows_of_claim.setdefault(row["claim"], []).append(claim_cells(row))
    lines = [head, ["---"] * len(head)]
    for rows in rows_of_claim.values():
        lines.append(merged(rows))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def claim_cells(row):
    """The cells of one row of a claim, texts. row: see decide(); what was not finite may be None, as in JSON."""
    if row["survives"]:
        survives = "yes"
    elif row["label"] == "open":
        survives = "-"
    else:
        survives = f"was **{row['label']}**"
    agreeing = f"{row['agreeing']}/{len(row['values'])}" if row["values"] else "-"
    verdict = f"**{row['verdict']}**"
    return [row["paper"], row["claim"], f"{row['measure']}: {effect_text(row)}", agreeing, verdict, survives]


def effect_text(row):
    """The effect of a row with its interval, where there is one."""
    effect = row["effect"]
    if isinstance(effect, str):  # bandit.py says "-1.00 to +0.00"
        return effect
    if effect is None or math.isnan(effect):
        return "no model"
    half_width = row["half_width"]
    if half_width is None or math.isinf(half_width):
        return f"{effect:+.3f}, no interval"
    digits = 1 if half_width >= 1 else 3
    return f"{effect:+.{digits}f} ± {half_width:.{digits}f}"


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


def read_records(path):
    """{name: record} of a study's JSONL file of records, one a line, each with its "name"; {} without the file.

    A damaged line ends the study with its number and what to do.
    """
    if not path.exists():
        return {}
    records = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
            records[record.pop("name")] = record
        except (ValueError, TypeError, AttributeError, KeyError):
            message = f"{path}, line {number}: no record; delete the line, and the study makes that record again"
            raise SystemExit(message) from None
    return records


def add_record(path, record):
    """Add a record, a dict with a "name", to a JSONL file of records: rewritten under a temporary name, then renamed.

    Threads may do so at the same time, processes may not.
    """
    with ADDING:
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):
            text += "\n"
        write_text(path, text + to_json(record) + "\n")


def write_json(path, result):
    """Write JSON; a list of numbers is one line."""
    text = to_json(result, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)  # innermost lists
    write_text(path, text + "\n")


def to_json(result, indent=None):
    """JSON as text; what is not finite becomes null."""
    return re.sub(r"-?Infinity|NaN", "null", json.dumps(result, indent=indent))


def write_text(path, text):
    """Write a file under a temporary name, then rename it: whoever reads it finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


def draw_effects(path, claims, title):
    """Draw the effects of a study's claims with their intervals; gray where the verdict is open."""
    rows_of_claim = {}
    for row in claims:
        rows_of_claim.setdefault(row["claim"], []).append(row)
    figure = Figure(figsize=(9, 1.1 + 0.19 * (len(claims) + len(rows_of_claim))), layout="constrained")
    axis = figure.subplots()
    y = 0
    ticks = []
    labels = []
    for claim, rows in rows_of_claim.items():
        ticks.append(y)
        labels.append(claim)
        for row in rows:
            y += 1
            ticks.append(y)
            labels.append(f"{row['measure']}      ")
            half_width = row["half_width"] if math.isfinite(row["half_width"]) else 0.0
            color = "darkgray" if row["verdict"] == "open" else "black"
            axis.errorbar(row["effect"], y, xerr=half_width, fmt="o", ms=4, capsize=2, color=color)
            axis.plot(row["above"], y, "|", color="tab:red", ms=11, mew=2)
        y += 1
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(y, -1)
    axis.grid(alpha=0.3, axis="x")
    figure.supxlabel("effect: mean over five models and 95% interval (gray: open; red: threshold)", fontsize=10)
    figure.suptitle(title, weight="bold")
    figure.savefig(path, dpi=92)


def finish(args, name, claims, draw, *data):
    """Correct the verdicts of a study for their number, print its table, write its JSON and, by draw(path, *data), its
    figure.

    claims: see decide(); those of bandit.py have their verdicts already.
    """
    if "p" in claims[0]:
        correct(claims)
    print(table(claims))
    write_json(args.where / f"{name}.json", {"command": f"python {sys.argv[0]}", "claims": claims})
    draw(args.where / f"{name}.png", *data)
    print(f"\nwritten: {name}.json and {name}.png in {args.where}, beside the records")
