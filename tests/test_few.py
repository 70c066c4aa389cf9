"""studies/few.py: its measures on curves that are known, and its commands."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "studies"))
import common  # noqa: E402
import few  # noqa: E402

import dapo  # noqa: E402
import replace  # noqa: E402


def curve(*points):
    """Points (ratio, accuracy) of a criterion."""
    return [{"ratio": ratio, "accuracy": accuracy} for ratio, accuracy in points]


def record(dlogp=0.08):
    """RLVR is right 0.9 of the time; each curve is at 0.85 at the named share."""
    exact = {"ratio": 0.12, "accuracy": 0.91, "total_variation": 0.1, "at_choices": 0.8}
    return {
        "base and RLVR": curve((0.0, 0.1), (1.0, 0.9)),
        "dlogp": curve((0.02, 0.1), (dlogp, 0.85), (0.3, 0.95)),
        "kl": curve((0.02, 0.1), (0.2, 0.85), (0.3, 0.9)),
        "entropy": curve((0.02, 0.1), (0.3, 0.5)),
        "speculative": [exact],
    }


def test_the_share_is_where_accuracy_is_rlvrs_minus_a_twentieth():
    row = few.measures(record())
    assert row["dlogp"] == pytest.approx(0.08, rel=0.02) and row["kl"] == pytest.approx(0.2, rel=0.02)
    assert row["entropy"] == 1.0
    assert (row["rlvr"], row["E[TV]"], row["exact"], row["at choices"]) == (0.9, 0.1, 0.91, 0.8)


def test_claims_compare_with_the_exact_rule():
    claims = {row["measure"]: row for row in few.claims_of([few.measures(record(x)) for x in (0.08, 0.07, 0.06)])}
    assert (
        claims["dlogp"]["effect"] == pytest.approx(math.log(0.1 / 0.07), abs=0.02) and claims["dlogp"]["agreeing"] == 3
    )
    assert claims["KL"]["effect"] == pytest.approx(math.log(2), abs=0.02)
    assert claims["base entropy"]["effect"] == pytest.approx(math.log(10), abs=0.02)
    assert claims["speculative"]["effect"] == pytest.approx(0.3)


def test_a_pair_in_which_nothing_is_replaced_has_no_part_at_choices():
    equal = record()
    equal["speculative"][0].update(ratio=0.0, at_choices=None)
    few.print_pairs({1: few.measures(equal)})
    claims = few.claims_of([few.measures(equal), few.measures(record())])
    assert claims[-1]["values"] == pytest.approx([0.3])


def test_the_records_decide():
    records = common.read_records(ROOT / "studies" / "results" / "few.jsonl")
    rows = few.claims_of([few.measures(record) for record in records.values()])
    common.correct(rows)
    stored = common.read_json(ROOT / "studies" / "results" / "few.json")["claims"]
    assert [row["verdict"] for row in rows] == [row["verdict"] for row in stored]
    for row, old in zip(rows, stored, strict=True):
        assert row["values"] == pytest.approx(old["values"], abs=1e-4), row["measure"]


def test_the_commands_of_a_pair_are_accepted(tmp_path):
    for quick in (True, False):
        args = SimpleNamespace(runs=tmp_path, quick=quick)
        training, replacement = few.job_of(1, args).runs
        assert dapo.parse_args(training.command.split()[1:]).steps == (2 if quick else 100)
        parsed = replace.parse_args(replacement.command.split()[1:])
        assert parsed.rlvr == f"{training.folder}/model" and "speculative" in parsed.criteria
        assert parsed.top_p == 1.0 and not parsed.reverse


@pytest.mark.pictures
def test_the_figure(tmp_path):
    few.draw(tmp_path / "few.png", {1: few.measures(record()), 2: few.measures(record(0.06))})
    assert (tmp_path / "few.png").stat().st_size > 10_000
