"""lab/bugs.py: each fault is one line that trains, nothing betrays it, the page has what was measured."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import dapo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

import bugs

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/bugs.md").read_text()
each_fault = pytest.mark.parametrize("number", bugs.BUGS)


def command(*words, cwd=ROOT):
    """The finished process of python lab/bugs.py WORDS."""
    line = [sys.executable, str(ROOT / "lab/bugs.py"), *map(str, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True)


def main(*words):
    bugs.main(bugs.parse_args([str(word) for word in words]))


# ------------------------------------------------------------------------------------------------------------- planting
@each_fault
def test_a_fault_is_one_line_that_compiles(number):
    healthy = (ROOT / "dapo.py").read_text().splitlines()
    planted = bugs.plant(number).splitlines()
    changed = [(old, new) for old, new in zip(healthy, planted, strict=True) if old != new]
    assert len(changed) == 2  # the folder of tiny/, and the fault
    assert changed[0] == ("HERE = Path(__file__).resolve().parent", f'HERE = Path("{ROOT.as_posix()}")')
    bug = bugs.BUGS[number]
    assert [line.strip() for line in changed[1]] == [bug.healthy, bug.faulty]
    compile("\n".join(planted), "planted", "exec")


def test_names_and_lines_differ():
    for field in ("name", "faulty", "about"):
        assert len({getattr(bug, field) for bug in bugs.BUGS.values()}) == len(bugs.BUGS) >= 12
    assert list(bugs.BUGS) == list(range(1, len(bugs.BUGS) + 1))


def test_a_line_must_stand_there_exactly_once():
    assert bugs.replace_line("a = 1\n  b = 2\n", "b = 2", "b = 3") == "a = 1\n  b = 3\n"
    for source in ("b = 2\nb = 2", "a = 1"):
        with pytest.raises(ValueError, match="once is wanted: b = 2"):
            bugs.replace_line(source, "b = 2", "b = 3")


def test_random_does_not_tell_and_reveal_does(tmp_path, capsys):
    main("--plant", "random", "--out", tmp_path)
    said = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["planted.py"]
    for bug in bugs.BUGS.values():
        assert bug.name not in said and bug.faulty not in said
    main("--reveal", "--out", tmp_path)
    said = capsys.readouterr().out
    number = int(re.match(r"fault (\d+), ", said)[1])
    bug = bugs.BUGS[number]
    assert (tmp_path / "planted.py").read_text() == bugs.plant(number)
    assert bug.name in said and bug.about in said and re.search(rf"^-\s*{re.escape(bug.healthy)}$", said, re.M)
    assert re.search(rf"^\+\s*{re.escape(bug.faulty)}$", said, re.M)


@each_fault
def test_every_fault_is_revealed(number, tmp_path):
    main("--plant", number, "--out", tmp_path)
    assert bugs.reveal(tmp_path / "planted.py").startswith(f"fault {number}, {bugs.BUGS[number].name}.")


def test_random_means_random(tmp_path):
    planted = set()
    for _ in range(20):
        main("--plant", "random", "--out", tmp_path)
        planted.add((tmp_path / "planted.py").read_text())
    assert len(planted) > 3


def test_what_is_wrong_is_one_sentence(tmp_path, capsys):
    with pytest.raises(ValueError, match="no such file; --plant random makes it"):
        main("--reveal", "--out", tmp_path)
    (tmp_path / "planted.py").write_text(bugs.read_script())
    with pytest.raises(ValueError, match=r"not dapo\.py with one of these faults"):
        main("--reveal", "--out", tmp_path)
    (tmp_path / "planted").mkdir()
    with pytest.raises(ValueError, match="holds the run of an earlier fault"):
        main("--plant", 1, "--out", tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        main("--symptoms", tmp_path / "nowhere")
    for words in (["--plant", "99"], ["--plant", "one"], [], ["--symptoms", "a", "b", "c"]):
        with pytest.raises(SystemExit):
            bugs.parse_args(words)
    assert "want a number from 1 to" in capsys.readouterr().err
    found = command("--reveal", "--out", tmp_path / "nowhere")
    assert found.returncode == 1 and found.stderr.startswith("error: ") and found.stderr.count("\n") == 1


def test_a_planted_copy_trains(tmp_path):
    """Two steps of the longest way: a file in another folder, started from a third one."""
    main("--plant", 15, "--out", tmp_path)
    flags = "--steps 2 --prompts-per-step 2 --mini-batch 1 --gen-batch 8 --max-response 48 --eval-problems 2 --seed 1"
    line = [sys.executable, str(tmp_path / "planted.py"), *flags.split(), "--device", "cpu", "--out", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and all(row["grad_norm"] > 0 for row in rows[1:])


# -------------------------------------------------------------------------------------------------- what catches faults
def plain_update(policy, responses, args):
    """Train as dapo.py does on responses of one step, in the plainest way: one response at a time, without padding."""
    optimizer = torch.optim.AdamW(policy.parameters(), args.lr / args.warmup_steps, weight_decay=args.weight_decay)
    group_size = args.group_size

    def score(response):
        ids = torch.tensor([response.problem["ids"] + response.ids])
        start = len(response.problem["ids"])
        logits = policy(ids).logits[0, start - 1 : -1] / args.temperature
        return logits.log_softmax(-1)[torch.arange(len(response.ids)), ids[0, start:]]

    with torch.no_grad():
        old = [score(response) for response in responses]
    adv = []
    for first in range(0, len(responses), group_size):
        rewards = torch.tensor([response.reward for response in responses[first : first + group_size]])
        adv += ((rewards - rewards.mean()) / (rewards.std() + 1e-6)).tolist()
    size = args.mini_batch * group_size
    for first in range(0, len(responses), size):
        rows = range(first, first + size)
        n_tokens = sum(len(responses[i].ids) for i in rows)
        optimizer.zero_grad()
        for i in rows:
            ratio = (score(responses[i]) - old[i]).exp()
            terms = torch.min(ratio * adv[i], ratio.clamp(1 - args.eps_low, 1 + args.eps_high) * adv[i])
            (-terms.sum() / n_tokens).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()


def test_an_update_is_that_of_a_plain_loop(tmp_path, monkeypatch):
    """Two optimiser steps of dapo.main, against code that shares nothing with it; so faults 10 to 13 and 15 show."""
    trained = []
    make_batches = dapo.make_batches

    def keep_responses(responses, *sizes):
        trained.extend(responses)
        return make_batches(responses, *sizes)

    monkeypatch.setattr(dapo, "make_batches", keep_responses)
    flags = "--steps 1 --prompts-per-step 4 --mini-batch 2 --micro-batch 5 --warmup-steps 2 --temperature 0.8 --lr 1e-3"
    flags += " --eval-problems 1 --eval-samples 1 --device cpu"
    args = dapo.parse_args([*flags.split(), "--out", str(tmp_path / "run")])
    dapo.main(args)
    policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    before = {name: weight.clone() for name, weight in policy.state_dict().items()}
    plain_update(policy, trained, args)
    after = load_file(tmp_path / "run/model/model.safetensors")
    moved = 0.0
    apart = 0.0
    for name, weight in after.items():
        moved += (weight - before[name]).square().sum().item()
        apart += (weight - policy.state_dict()[name]).square().sum().item()
    assert (apart / moved) ** 0.5 < 0.05  # AdamW makes much of rounding, where a gradient is nearly 0


def test_the_tests_that_catch_faults_exist():
    for bug in bugs.BUGS.values():
        path, name = bug.caught_by.split("::")
        assert f"\ndef {name}(" in (ROOT / path).read_text()


# ------------------------------------------------------------------------------------------------ records and the page
def numbers_like(value, key=None):
    """Six healthy runs in which every number is `value` plus a small spread; `key` is shifted if it is given."""
    keys = [(name, when) for name in bugs.SERIES for when in ("early", "late")]
    return [{k: value + 0.01 * i + (1.0 if k == key else 0.0) for k in keys} for i in range(6)]


def test_the_rule_wants_all_seeds_on_one_side_and_half_a_width_away():
    healthy = numbers_like(0.5)
    assert bugs.find_symptoms(healthy[:3], healthy) == {}
    for key in (("entropy", "early"), ("kl", "late")):
        found = bugs.find_symptoms(numbers_like(0.5, key)[:3], healthy)
        assert list(found) == [key] and found[key] > 0
        lower = bugs.find_symptoms(healthy[:3], numbers_like(0.5, key))
        assert list(lower) == [key] and lower[key] < 0
    for shift, seen in ((0.070, False), (0.080, True)):  # the range is 0.50 to 0.55, and half of its width 0.025
        runs = [{**run, ("clip", "late"): 0.5 + shift} for run in healthy[:3]]
        assert (("clip", "late") in bugs.find_symptoms(runs, healthy)) == seen
    one_inside = [{**run, ("clip", "late"): value} for run, value in zip(healthy, (0.9, 0.9, 0.52), strict=False)]
    assert bugs.find_symptoms(one_inside, healthy) == {}


def test_the_first_difference_is_named():
    healthy = bugs.read_records()["healthy", 1]
    assert bugs.first_difference(healthy, healthy) == "nowhere"
    for name, place in (("test/length", "base model"), ("length", "rollouts"), ("loss", "update")):
        other = {**healthy, name: [0.123, *healthy[name][1:]]}
        assert bugs.first_difference(other, healthy) == place


def test_every_run_is_recorded():
    wanted = {("healthy", seed) for seed in (*bugs.HEALTHY_SEEDS, *bugs.CONTROL_SEEDS)}
    wanted |= {(bug.name, seed) for bug in bugs.BUGS.values() for seed in bugs.BUG_SEEDS}
    assert set(bugs.read_records()) == wanted
    assert len(bugs.RECORDS.read_text().splitlines()) == len(wanted)


def test_a_range_has_the_digits_that_tell_its_ends_apart():
    for values, shown in (([0.113, 0.176], "0.11–0.18"), ([0.9965, 1.0007], "0.9965–1.001"), ([0.0, 0.0], "0")):
        assert bugs.show_range(values) == shown


def test_the_page_has_what_was_measured():
    records = bugs.read_records()
    for lines in (bugs.healthy_table(records), bugs.suspects_table(records), bugs.faults_table(records)):
        assert len(lines) > 5
        for line in lines:
            assert f"\n{line}\n" in PAGE, line
    assert len(re.findall(r"^\| \d+ ", PAGE, re.M)) == len(bugs.BUGS)
    assert bugs.SETTINGS in " ".join(PAGE.split())
    assert len(PAGE.split()) <= 1000


def test_the_control_has_no_symptom():
    assert bugs.symptoms_of(bugs.read_records(), 0) == {}


def test_a_run_is_compared(tmp_path, capsys):
    """A row for each step with the numbers of a record: what the run shows is what the rule says."""
    for name, folder in (("healthy", "healthy"), (bugs.BUGS[6].name, "faulty")):
        curves = bugs.read_records()[name, 1]
        rows = [{"step": 0} | {key: curves[key][0] for key in curves if key.startswith("test/")}]
        for i in range(6):
            row = {key: curves[key][i] for key in curves if not key.startswith("test/")}
            rows.append({"step": i + 1, "clip_low": row["clip"], "clip_high": 0.0} | row)
        rows[-1] |= {key: curves[key][1] for key in curves if key.startswith("test/")}
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main("--symptoms", tmp_path / "faulty", tmp_path / "healthy")
    said = capsys.readouterr().out
    assert "kl early: 0 is lower than healthy, " in said and "healthy: update\nstep 1, over that of" in said
    assert said.endswith("healthy: loss 0.984, kl 0, grad_norm 1.26\n")
    main("--symptoms", tmp_path / "healthy")
    assert capsys.readouterr().out == "no number lies outside the healthy range\n"
    (tmp_path / "healthy/metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match="want a finished run of 6 steps"):
        main("--symptoms", tmp_path / "healthy")
