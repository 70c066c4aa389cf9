"""What the studies share: running commands two at a time, resuming them, intervals over seeds, and the verdict.

The studies call the six scripts as a reader would, from the command line, and read the files that they wrote.
"""

import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# 97.5% quantiles of Student's t for 1, 2, ... 20 degrees of freedom
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
T975 += (2.120, 2.110, 2.101, 2.093, 2.086)


def run_all(jobs, workers=2):
    """Do jobs, {record: (commands, summary)}, `workers` at a time; a record is a JSON file below studies/results.

    commands are (script and flags, folder, file that shows it is done), run one after the other, single-threaded; then
    summary() goes into the record (None: the record is a file that the run itself leaves). A job with a record is not
    done again; a run that was begun goes on from its last checkpoint. A failed command ends the study with its last
    words, as does ctrl-C: the same command goes on from there.
    """
    todo, env = {path: job for path, job in jobs.items() if not path.exists()}, os.environ | {"OMP_NUM_THREADS": "1"}

    def work(path, commands, summary):
        for command, folder, done in commands:
            if (folder / done).exists():
                continue
            resume = ["--resume"] if (folder / "config.json").exists() and "toy_bandit" not in command else []
            line = [sys.executable, *command.split(), *resume, "--out", str(folder)]
            found = subprocess.run(line, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if found.returncode:
                words = " ".join(found.stderr.decode(errors="replace").strip().splitlines()[-3:])
                return f"{command} --out {folder} ended with status {found.returncode}: {words}"
        if summary:
            write_json(path, summary())
        print(f"{commands[0][1].name}: done", flush=True)
        return None

    print(f"{len(todo)} of {len(jobs)} runs to do", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(work, path, *job) for path, job in todo.items()]
        try:
            for future in futures:
                if problem := future.result():
                    raise SystemExit(f"{problem}\nthe same command goes on from here")
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                print("stopped; the same command goes on from here", file=sys.stderr)
                raise SystemExit(130) from None
            raise


def pairs_of(quick, runs):
    """{name: (command, folder)} of the RLVR models that direction.py, replacement.py and extrapolation.py look at.

    DAPO's are those of reweighting.py, GRPO-N's those of negative_only.py: whichever study comes first trains them.
    """
    dapo, grpo_n = (
        "--reweight none --alpha 0.2 --save-every 20",
        "--algorithm grpo-n --lr 1e-4 --entropy-coef 0 --passk-samples 0",
    )
    commands, at = {}, ROOT / "runs" / "studies"
    for s in (11, 12, 13):
        commands[f"dapo-{s}"] = f"dapo.py {dapo} --seed {s}", at / "reweighting" / f"none-{s}"
    for s in (21, 22, 23):
        train = f"grpo_n.py {grpo_n} --eval-every 140 --save-every 70 --seed {s}"
        commands[f"grpo-n-{s}"] = train, at / "negative_only" / f"grpo-n-{s}"
    if quick:
        short = "--seed 1 --steps 2 --save-every 1 --prompts-per-step 2 --mini-batch 2 --gen-batch 2 --eval-problems 4"
        at = runs.parent / "quick_pairs"
        commands = {"dapo-1": (f"dapo.py --max-gen-batches 2 {short}", at / "dapo-1")}
        train = f"grpo_n.py --algorithm grpo-n --passk-samples 0 {short}"
        commands["grpo-n-1"] = train, at / "grpo-n-1"
    return commands


def train(pairs, records):
    """Train the models of pairs_of() that records, {(name, ...) or name: path}, still need."""
    wanted = {key if isinstance(key, str) else key[0] for key, path in records.items() if not path.exists()}
    ends = {folder / "model" / "config.json": (command, folder) for command, folder in map(pairs.get, sorted(wanted))}
    run_all({path: ([(*how, "model/config.json")], None) for path, how in ends.items()})


def rows_of(folder):
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (ROOT / folder / "metrics.jsonl").read_text().splitlines()]


def interval(x):
    """(mean, half-width of its 95% interval) over seeds, Student's t; half-width infinite for one seed."""
    x = np.asarray(x, dtype=float)
    half = T975[len(x) - 2] * x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.inf
    return float(x.mean()), float(half)


def interval_two_way(x):
    """(mean, half-width of its 95% interval) of (pairs, problems): both are samples, and neither cell is independent.

    Clustered both ways: the variance over pairs (Student's t) and the one over problems (normal) are added, which
    counts their intersection twice and is therefore on the safe side (Cameron, Gelbach and Miller 2011, eq. 2.10).
    """
    x = np.asarray(x, dtype=float)
    mean, pairs = interval(x.mean(axis=1))
    problems = 1.96 * x.mean(axis=0).std(ddof=1) / np.sqrt(x.shape[1]) if x.shape[1] > 1 else np.inf
    return mean, float(np.hypot(pairs, problems))


def judge(mean, half, below, above=0.0):
    """The verdict on "the effect exceeds `above`", for an effect whose sign is turned so that more is what is claimed.

    holds: the interval lies above `above`. does not hold: it lies below `below`, the smallest effect worth the name.
    """
    if mean - half > above:
        return "holds"
    return "does not hold" if mean + half < below else "undecided"


def decide(text, measure, values, above=0.0, below=0.0):
    """A claim as a row of a study's JSON: its effect, and judge()'s verdict. values: (seeds,), or (pairs, problems)."""
    values = np.asarray(values, dtype=float)
    mean, half = (
        interval_two_way(values) if values.ndim == 2 else interval(values) if len(values) else (math.nan, math.inf)
    )
    each = values.mean(axis=1) if values.ndim == 2 else values
    row = {"claim": text, "measure": measure, "effect": mean, "half": half, "values": each.round(6).tolist()}
    return row | {"verdict": judge(mean, half, below, above)}


def table(claims):
    """The rows of decide() as a markdown table."""
    lines = ["", "| claim | measure | effect (95%) | n | verdict |", "|---|---|---|---|---|"]
    for row in claims:
        cells = row["claim"], row["measure"], f"{row['effect']:+.3f} ± {row['half']:.3f}", str(len(row["values"]))
        lines.append(f"| {' | '.join(cells)} | {row['verdict']} |")
    return "\n".join(lines)


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(text + "\n")
        os.replace(path.with_suffix(".tmp"), path)
    except OSError as error:
        raise SystemExit(f"{path}: {error.strerror}; mend that, and the same command goes on from the runs") from None
