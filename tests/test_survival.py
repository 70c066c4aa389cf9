"""kill -9 at random moments, while a checkpoint is written as well: the run ends as if nothing had happened.

By hand, for 20 kills: KILLS=20 python -m pytest tests/test_survival.py -n 0 -s
"""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_runs import SMALL, assert_same_run, rows, short_problems

import dapo

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("KILLS", 2))


# ------------------------------------------------- this file as a command: it kills runs, and is no part of pytest then
def attempt(folder, name):
    """What a child does: start the run, or go on with it."""
    sys.stdout = sys.stderr = open(folder / "log", "a")
    flags = f"{SMALL} --steps 4 --eval-every 1 --train {folder}/p.jsonl --test {folder}/p.jsonl --out {folder / name}"
    if (folder / name / "config.json").exists():
        flags += " --resume"
    dapo.main(dapo.parse_args(flags.split()))


def start(folder, name):
    """A forked child has imported everything already, so that an attempt costs no import."""
    child = multiprocessing.get_context("fork").Process(target=attempt, args=(folder, name))
    child.start()
    return child


def kill_until_done(folder, wanted):
    """Make the run "whole", and "killed", which is killed `wanted` times; every second time a checkpoint is written."""
    torch.set_num_threads(1)
    dapo.load_model("tiny/base", "cpu")  # imports the code of the model, which each child would import again
    dapo.draw_curves = lambda *args: None  # half of the time of so short a run
    began = time.monotonic()
    start(folder, "whole").join()
    seconds = time.monotonic() - began
    rng = random.Random(0)
    unfinished = folder / "killed" / "checkpoint.tmp"
    kills = 0
    kills_in_checkpoints = 0
    while kills < wanted or not (folder / "killed/model/config.json").exists():
        if (
            folder / "killed/model/config.json"
        ).exists():  # done before it was killed: keep it, once more from the start
            (folder / "killed").rename(folder / f"killed-{kills}-times")
        child = start(folder, "killed")
        if kills == wanted:
            child.join()
        elif kills % 2 == 0:
            child.join(rng.uniform(0.1, seconds / 2))
        else:
            unfinished.unlink(missing_ok=True)
            while child.is_alive() and not unfinished.exists():
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.004))
        child.kill()
        child.join()
        if child.exitcode == 0:
            continue
        if child.exitcode != -9:
            sys.exit((folder / "log").read_text()[-2000:])
        if kills % 2 == 1 and unfinished.exists():
            kills_in_checkpoints += 1
        kills += 1
    print(kills, kills_in_checkpoints)


if __name__ == "__main__":
    kill_until_done(Path(sys.argv[1]), int(sys.argv[2]))


# --------------------------------------------------------------------------------------------------------- the test
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork, which Windows lacks")
def test_kill_9_at_random_moments(tmp_path):
    short_problems(tmp_path / "p.jsonl")
    command = [sys.executable, __file__, str(tmp_path), str(KILLS)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)
    assert found.returncode == 0, found.stderr[-2000:]
    kills, kills_in_checkpoints = map(int, found.stdout.split())
    runs = sorted(tmp_path.glob("killed*"))
    print(f"{kills} kills, {kills_in_checkpoints} of them while a checkpoint was written; {len(runs)} runs ended")
    assert kills == KILLS and kills_in_checkpoints > 0
    for out in runs:
        assert_same_run(out, tmp_path / "whole")
        assert [row["step"] for row in rows(out)] == list(range(5)) and not (out / "checkpoint.tmp").exists()
