"""kill -9 at random moments, while a checkpoint is written as well: the run ends as if nothing had happened.

By hand, for 20 kills: KILLS=20 python -m pytest tests/test_survival.py -n 0 -s
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KILLS = int(os.environ.get("KILLS", 2))
SMALL = "--prompts-per-step 2 --mini-batch 2 --group-size 4 --gen-batch 4 --max-gen-batches 2 --max-response 64"
SMALL += " --overlong-buffer 8 --eval-every 1 --eval-problems 2 --eval-samples 2 --micro-batch 8 --device cpu --steps 5"

# One process that has imported everything forks a child for each attempt, so that an attempt costs no import.
ATTEMPTS = """
import os, random, signal, sys, time
import torch
import dapo

torch.set_num_threads(1)
dapo.draw_curves = lambda *args: None  # half of the time of so short a run
small, folder, wanted = sys.argv[1].split(), sys.argv[2], int(sys.argv[3])
out, half = folder + "/killed", folder + "/killed/checkpoint.tmp"


def start(out, *flags):
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        status = 0
        try:
            dapo.main(dapo.parse_args([*small, "--out", out, *flags]))
        except BaseException as error:
            print(repr(error), file=open(folder + "/error", "w"))
            status = 1
        os._exit(status)
    return child


began = time.time()
assert os.waitpid(start(folder + "/whole"), 0)[1] == 0
long, rng, kills, halves = time.time() - began, random.Random(0), 0, 0
while True:
    done = os.path.exists(out + "/model/config.json")
    if done and kills >= wanted:
        break
    if done:  # too quick: once more from the start, this one must be right as well
        os.rename(out, f"{out}{kills}")
    child, alive = start(out, *["--resume"] * os.path.exists(out + "/config.json")), True
    if kills < wanted:
        if kills % 2:  # every other one when a checkpoint is being written
            if os.path.exists(half):
                os.remove(half)
            while alive and not os.path.exists(half):
                alive = os.waitpid(child, os.WNOHANG)[0] == 0
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.004))
        else:
            time.sleep(rng.uniform(0.1, long / 2))
        if alive and os.waitpid(child, os.WNOHANG)[0] == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills, halves = kills + 1, halves + (kills % 2 and os.path.exists(half))
    else:
        os.waitpid(child, 0)
    assert not os.path.exists(folder + "/error"), open(folder + "/error").read()
print(kills, halves)
"""


def test_kill_9_at_random_moments(tmp_path):
    command = [sys.executable, "-c", ATTEMPTS, SMALL, str(tmp_path), str(KILLS)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert found.returncode == 0, found.stderr[-2000:]
    kills, in_checkpoints = map(int, found.stdout.split())
    runs = [path for path in tmp_path.iterdir() if path.name.startswith("killed")]
    print(f"{kills} kills, {in_checkpoints} of them while a checkpoint was written; {len(runs)} runs ended")
    assert kills == KILLS and in_checkpoints > 0 and runs
    for out in runs:
        for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (out.name, name)
        steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(6)) and not (out / "checkpoint.tmp").exists()
