"""What the studies share: running commands two at a time, resuming them, intervals over seeds, and the verdict.

The studies call the six scripts as a reader would, from the command line, and read the files that they wrote.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# 97.5% quantiles of Student's t for 1, 2, ... degrees of freedom
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def run_all(jobs, workers=2):
    """Run jobs, (command, folder, file that shows it is done), `workers` single-threaded processes at a time.

    What is done is not run again; a run with a checkpoint goes on from it; another one starts anew. A failed command
    ends the study with its last words, and so does ctrl-C: the same command goes on from there.
    """
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(job):
        command, folder, done = job
        folder = ROOT / folder
        if (folder / done).exists():
            return None
        resumable = any((folder / "checkpoint").glob("step_??????"))
        how = ["--resume" if resumable else "--overwrite", "--out", str(folder)]
        found = subprocess.run(
            [sys.executable, *command.split(), *how],
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        print(f"{folder.name}: {'done' if found.returncode == 0 else 'stopped'}", flush=True)
        if found.returncode:
            words = found.stderr.decode(errors="replace").strip().splitlines()[-3:]
            return f"{command} --out {folder} ended with status {found.returncode}: " + " ".join(words)
        return None

    print(
        f"{sum(not (ROOT / folder / done).exists() for _, folder, done in jobs)} of {len(jobs)} runs to do", flush=True
    )
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            for future in futures:
                if problem := future.result():
                    raise SystemExit(f"{problem}\nthe same command goes on from here")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def rows_of(folder):
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (ROOT / folder / "metrics.jsonl").read_text().splitlines()]


def interval(x):
    """(mean, half-width of its 95% interval) over seeds, Student's t; half-width infinite for one seed."""
    x = np.asarray(x, dtype=float)
    half = T975[len(x) - 2] * x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.inf
    return float(x.mean()), float(half)


def judge(mean, half, margin):
    """The verdict on "the effect is positive", for an effect whose sign is turned so that positive is what is claimed.

    holds: the interval lies above 0. does not hold: it lies below `margin`, the smallest effect worth the name.
    """
    if mean - half > 0:
        return "holds"
    return "does not hold" if mean + half < margin else "undecided"


def write_result(path, result):
    """JSON, under a temporary name first; infinite numbers become null."""
    text = json.dumps(result, indent=1).replace("Infinity", "null")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text(text + "\n")
    os.replace(path.with_suffix(".tmp"), path)
    print(f"written: {path}")
