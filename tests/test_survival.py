"""kill -9 at 20 random moments, while a checkpoint is written as well: the run ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--prompts-per-step 2 --mini-batch 2 --group-size 4 --gen-batch 4 --max-gen-batches 2 --max-response 32"
SMALL += " --overlong-buffer 8 --eval-every 3 --eval-problems 2 --eval-samples 2 --checkpoint-every 1 --micro-batch 8"

# One process that has imported everything forks a child for each attempt, so that an attempt costs no import.
ATTEMPTS = """
import os, random, signal, sys, time
import torch
import dapo

torch.set_num_threads(1)
dapo.draw_curves = lambda *args: None  # half of the time of so short a run
small, folder = sys.argv[1].split(), sys.argv[2]

def start(out, *flags):
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        try:
            status = dapo.main(dapo.parse_args(dapo.Args, "", [*small, "--out", out, *flags]))
        except BaseException as error:
            print(repr(error), file=open(folder + "/error", "w"))
            status = 1
        os._exit(status)
    return child

def writing(since):  # a temporary folder that this attempt made, not one that a kill left behind
    found = os.scandir(out + "/checkpoint") if os.path.exists(out + "/checkpoint") else []
    return any(entry.name.endswith(".tmp") and entry.stat().st_mtime > since for entry in found)

out, began = folder + "/killed", time.time()
assert os.waitpid(start(folder + "/whole"), 0)[1] == 0
long, rng, kills, halves = time.time() - began, random.Random(0), 0, 0
while True:
    done = os.path.exists(out + "/model/config.json")
    if done and kills >= 20:
        break
    if done:  # too quick: once more from the start, this one must be right as well
        os.rename(out, f"{out}{kills}")
    resume = ["--resume"] if os.path.exists(out + "/config.json") else ["--overwrite"]
    child, since = start(out, *resume), time.time()
    if kills < 20:
        if kills % 2:  # every other one when a checkpoint is being written
            while not writing(since) and os.waitpid(child, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.01))
        else:
            time.sleep(rng.uniform(0.1, long / 4))
        try:
            alive = os.waitpid(child, os.WNOHANG)[0] == 0
        except ChildProcessError:
            alive = False
        if alive:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            kills, halves = kills + 1, halves + writing(since)
    else:
        os.waitpid(child, 0)
    assert not os.path.exists(folder + "/error"), open(folder + "/error").read()
print(kills, halves)
"""


def test_kill_9_at_twenty_random_moments(tmp_path):
    command = [sys.executable, "-c", ATTEMPTS, f"{SMALL} --steps 8", str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert found.returncode == 0, found.stderr[-2000:]
    kills, in_checkpoints = map(int, found.stdout.split())
    print(f"{kills} kills, {in_checkpoints} of them while a checkpoint was written")
    runs = [path for path in tmp_path.iterdir() if path.name.startswith("killed")]
    assert kills == 20 and in_checkpoints >= 3 and runs
    for out in runs:
        for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (out.name, name)
        steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(9)) and not list(os.scandir(out / "checkpoint"))[2:]
