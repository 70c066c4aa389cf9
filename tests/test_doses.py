"""studies/doses.py: its measures on known numbers, its prediction, its commands, a record of the shipped models."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "studies"))
import doses  # noqa: E402
import make_tiny  # noqa: E402
from make_tiny import RIGHT_AFTER_GUESS, RIGHT_AFTER_ONE, RIGHT_AFTER_TWO, RIGHT_AFTER_TWO_PRODUCT, WHERE  # noqa: E402

import dapo  # noqa: E402


def table_of(p_one):
    """An action_table with these P(one at a time), {kind: p}; a tenth guesses."""
    table = {RIGHT_AFTER_GUESS: 0.0, RIGHT_AFTER_ONE: 1.0, RIGHT_AFTER_TWO: 0.9, RIGHT_AFTER_TWO_PRODUCT: 0.1}
    for kind, p in p_one.items():
        table[f"P(one at a time) {WHERE[kind]}"] = p
        table[f"P(guess) {WHERE[kind]}"] = 0.1
    return table


def result_with(turns, predicted, p=0.005, accuracy=(0.1,) * 20):
    record = {"accuracy": list(accuracy), "p": {"0": [0.5], "10": [0.0], "100": [0.9]}}
    return doses.Result(p, turns, predicted, doses.stall(accuracy), record)


def test_the_turn_is_where_log_odds_cross_0():
    assert doses.crossing([0, 10, 20], [-3.0, -1.0, 3.0]) == 12.5
    assert doses.crossing([0, 10], [0.0, 1.0]) == 0
    assert doses.crossing([0, 10, 20], [-3.0, -2.0, -1.0]) == 21
    tables = {}
    for step, p in ((0, 0.01), (10, 0.5), (20, 0.9)):
        tables[str(step)] = table_of({"?*": p, "+?": 0.6, "-?": 0.1, "*?": 1.0})
    turns = doses.turns({"tables": tables})
    assert turns == {"?*": pytest.approx(10), "+?": 0, "-?": 21, "*?": 0}


def test_a_stall_is_the_longest_stretch_without_growth():
    rise = [i / 50 for i in range(50)]
    assert doses.stall(rise) <= 5
    flat = [0.3] * 30
    assert 26 <= doses.stall(rise[:15] + flat + rise[15:]) <= 34
    assert doses.stall(rise + [1.0] * 100) <= 5  # what comes after 0.8 is no stall
    assert doses.stall([0.1] * 40) >= 35


def test_the_slope_is_of_logarithms():
    assert doses.slope([0.001, 0.01, 0.1], [100, 10, 1]) == pytest.approx(-1)
    assert math.isnan(doses.slope([0.01], [3]))


def test_a_rarer_or_less_useful_action_is_predicted_to_turn_later():
    predicted = doses.predicted_turns(table_of({"?*": 0.05, "+?": 0.05, "-?": 0.02, "*?": 0.6}))
    assert predicted["*?"] == 0
    assert 0 < predicted["?*"] < predicted["+?"] < predicted["-?"]
    assert doses.predicted_turns(table_of(dict.fromkeys(doses.KINDS, 0.001)), updates=10)["?*"] == 11


def test_order_and_time_are_shares():
    result = result_with({"?*": 10, "+?": 20, "-?": 30, "*?": 40}, {"?*": 1, "+?": 2, "-?": 3, "*?": 4})
    assert doses.constant(result) == pytest.approx(10)
    assert doses.share_in_order(result) == 1
    assert doses.share_in_time(result, 10) == 1
    assert doses.share_in_time(result, 100) == 0
    other = result_with(result.turns, {"?*": 9, "+?": 2, "-?": 3, "*?": 4})
    assert doses.share_in_order(other) == 0.5  # three pairs of six
    assert doses.share_in_time(other, 10) == 0.75
    tied = result_with(dict.fromkeys(doses.KINDS, 101), result.predicted)
    assert math.isnan(doses.share_in_order(tied))


def test_claims_follow_the_rule():
    results = {}
    for world in doses.worlds(quick=False):
        p = world.rare or world.everywhere
        turns = {"?*": 1 / p**0.5, "+?": 40, "-?": 30, "*?": 20}
        accuracy = [i / 30 for i in range(40)] if world.everywhere else [0.1] * 40
        results[world] = result_with(turns, {"?*": 1 / p, "+?": 40, "-?": 30, "*?": 20}, p, accuracy)
    claims = {(row["claim"], row["measure"]): row for row in doses.claims_of(results)}
    assert len(claims) == 7
    later = claims["rarer is later (minus the slope)", "hidden"]
    assert (
        later["values"] == pytest.approx([0.5] * 3)
        and len(claims["rarer is later (minus the slope)", "shown"]["values"]) == 1
    )
    assert claims["but less than in a bandit (difference of slopes)", "hidden"]["effect"] == pytest.approx(0.5)
    stall = claims["without a rare best action no stall (10 minus its steps)", "controls"]
    assert min(stall["values"]) > 5 and len(stall["values"]) == 2
    assert len(claims["the kinds turn in the predicted order", "share"]["values"]) == 3


def test_the_commands_of_a_world_are_accepted(tmp_path):
    (tmp_path / "doses").mkdir()  # main() makes it
    for quick in (True, False):
        args = SimpleNamespace(runs=tmp_path, quick=quick)
        for world in doses.worlds(quick):
            pretraining, training = doses.job_of(world, args).runs
            made = make_tiny.parse_args(pretraining.command.split()[1:])
            assert (made.seed, made.rare, made.everywhere) == (world.seed, world.rare, world.everywhere)
            assert made.hide_above == (1 if world.shown else make_tiny.HIDE_ABOVE)
            run = dapo.parse_args(training.command.split()[1:])
            assert run.model == f"{pretraining.folder}/base" and run.steps == (2 if quick else 100)
    assert len({str(world) for world in doses.worlds(False)}) == len(doses.worlds(False)) == 20


def test_a_record_reads_the_base_and_every_saved_model(tmp_path):
    """The shipped models stand for a base and what a run of one step made of it."""
    (tmp_path / "world").symlink_to(ROOT / "tiny")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model_000001").symlink_to(ROOT / "tiny" / "rlvr")
    rows = [
        {"step": 0},
        {"step": 1, "accuracy": 0.5, "two_at_once": 1.0},
        {"step": 2, "accuracy": 0.7, "two_at_once": 0.5},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = doses.record_of(tmp_path, steps=1, every=1, quick=True)
    assert record["accuracy"] == [0.5, 0.7] and record["plateau"] == 1
    before, after = record["tables"].values()
    label = f"P(one at a time) {WHERE['?*']}"
    assert before[label] < 0.02 and after[label] > 0.9
    assert np.mean(record["p"]["1"]) > np.mean(record["p"]["0"]) and len(record["p"]["0"]) == 4
    result = doses.result_of(record, updates=5_000)
    assert result.turns["?*"] < 1 and result.predicted["?*"] > 100
