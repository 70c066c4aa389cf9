"""The studies' statistics and measures; with STUDIES=1, their short forms and that they go on from their records."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "studies"))
import bandit  # noqa: E402
import boundary  # noqa: E402
import claims  # noqa: E402
import common  # noqa: E402
import pairs  # noqa: E402
import training  # noqa: E402


# ----------------------------------------------------------------------------------------------------------- statistics
@pytest.mark.parametrize(
    ("p", "df", "quantile"),
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 4, 2.776), (0.975, 21, 2.080), (0.975, 120, 1.980)]
    + [(0.95, 4, 2.132), (0.995, 9, 3.250), (0.8, 4, 0.941), (0.9995, 4, 8.610)],
)
def test_quantiles_of_students_t_are_those_of_printed_tables(p, df, quantile):
    assert common.t_quantile(p, df) == pytest.approx(quantile, abs=0.0006)
    assert common.t_tail(quantile, df) == pytest.approx(1 - p, rel=0.002)
    assert common.t_tail(-quantile, df) == pytest.approx(p, rel=0.002)


def test_interval_is_students_t_over_bases():
    x = [0.1, 0.4, 0.2, 0.5, 0.3]
    mean, half = common.interval(x)
    assert mean == pytest.approx(0.3) and half == pytest.approx(2.776 * np.std(x, ddof=1) / math.sqrt(5), rel=1e-3)
    assert common.interval([1.0]) == (1.0, math.inf) and common.interval([0.3] * 5)[1] == math.inf  # no spread
    assert common.p_value([0.3] * 5, 0.0, 0.0) == 1.0
    tiny_effect = [0.01, 0.02, 0.01, 0.02, 0.015]  # above 0, far below what matters: the p is of the verdict, "holds"
    assert common.p_value(tiny_effect, 0.0, 1.0) == pytest.approx(common.p_value(tiny_effect, 0.0, 0.0))


def test_interval_over_bases_covers_seeds_and_problems_inside_them():
    """Bases, seeds inside bases, problems inside bases: the interval of base means holds the truth 95% of the time."""
    generator, covered = np.random.default_rng(0), []
    for _ in range(2000):
        seeds = generator.normal(0, 0.2, (5, 1)) + generator.normal(0, 0.3, (5, 2))
        x = seeds.mean(1) + generator.normal(0, 0.4, (5, 40)).mean(1)
        mean, half = common.interval(x)
        covered.append(abs(mean) <= half)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_the_smallest_decidable_effect_is_found_four_times_in_five():
    generator, effect = np.random.default_rng(0), common.smallest_decidable(0.05)
    assert effect == pytest.approx((2.776 + 0.941) * 0.05 / math.sqrt(5), rel=1e-3)
    draws = [common.interval(generator.normal(effect, 0.05, 5)) for _ in range(2000)]
    assert np.mean([mean - half > 0 for mean, half in draws]) == pytest.approx(0.8, abs=0.04)


def test_holm_steps_down_and_never_falls():
    assert common.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert common.holm([0.6, 0.5]) == [1.0, 1.0] and common.holm([]) == []


def test_holm_errs_in_one_family_of_twenty():
    generator, wrong = np.random.default_rng(0), []
    for _ in range(1000):
        p = [common.p_value(generator.normal(0, 1, 5), 0.0, 0.0) for _ in range(10)]
        wrong.append(min(common.holm(p)) < 0.05)
    assert np.mean(wrong) < 0.07


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [(0.05, 0.04, "holds"), (0.05, 0.06, "undecided"), (0.0, 0.01, "does not hold"), (-0.1, 0.05, "does not hold")]
    + [(0.0, 0.03, "undecided"), (0.01, 0.005, "holds"), (1.0, math.inf, "undecided")],
)
def test_verdicts_follow_the_rule(mean, half, verdict):
    assert common.judge(mean, half, 0.0, 0.02) == verdict
    assert common.judge(mean - 0.5, half, -0.5, 0.02) == verdict


def test_a_claim_is_decided_with_its_threshold_and_its_p():
    assert common.decide("", "", "", [])["verdict"] == "undecided"
    assert common.decide("", "", "", [0.0, 0.001, -0.001], 0.0, -0.05)["verdict"] == "holds"
    assert common.decide("", "", "", [-0.1, -0.101, -0.102], 0.0, -0.05)["verdict"] == "does not hold"
    row = common.decide("A 1", "text", "unit", [0.1, 0.3, 0.2, math.nan], 0.05)
    assert row["effect"] == pytest.approx(0.2) and row["values"] == [0.1, 0.3, 0.2]
    assert row["p"] == pytest.approx(2 * common.t_tail(0.2 / (0.1 / math.sqrt(3)), 2))
    low = common.decide("", "", "", [0.0, 0.001, -0.001, 0.0], 0.02)  # small: the other test decides
    assert low["verdict"] == "does not hold" and low["p"] < 0.001


def test_arms_are_compared_on_the_same_base_never_by_training_seed():
    more = {(1, 1): 3.0, (1, 2): 5.0, (2, 1): 1.0, (3, 1): 9.0}
    less = {(1, 1): 1.0, (2, 1): 2.0, (2, 2): 4.0, (4, 1): 0.0}
    assert common.difference(more, less) == [3.0, -2.0]
    assert common.difference({(1, 1): 101, (2, 1): 101}, {(1, 1): 101, (2, 1): 50}, never=101) == [51]
    assert common.by_base({(1, 1): math.nan, (1, 2): 2.0, (2, 1): math.nan}) == {1: 2.0}


def test_a_table_has_one_line_for_all_measures_of_a_claim():
    rows = [common.decide("A 1", "text", unit, [0.1, 0.102], 0.05) | {"survives": unit == "a"} for unit in ("a", "b")]
    lines = common.table(rows, {"te": "old", "tex": "older", "other": ""}).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| A 1 | text | a: +0.101 ± 0.013 (2)<br>b: +0.101 ± 0.013 (2) |")
    assert lines[2].endswith("| 0; 0.05; 0.014 | holds | stays<br>- | older |")


# ------------------------------------------------------------------------------------------------------------- measures
def test_steps_to_reach_are_of_the_mean_of_five_steps():
    ramp = [0.0] * 10 + [1.0] * 10
    assert training.steps_to_reach(ramp, 0.6) == 13 and training.steps_to_reach(ramp, 1.0) == 15
    assert training.steps_to_reach(ramp, 1.1) == 21 and training.steps_to_reach([1.0] * 9, 0.6) == 5
    assert training.running_mean([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]


def test_plateau_and_half_are_numbered_checkpoints_from_training_curves():
    record = {"leaps_two": [*range(25), *range(25, 0, -1), *[60] * 10], "accuracy": [i / 60 for i in range(60)]}
    assert training.plateau_of(record) == 30  # steps 26 to 30 have the highest mean; step 60 is the last, out
    assert training.half_of(record) == 40 and training.half_of(record | {"accuracy": [0.0] * 60}) == 50


def run_record(**changed):
    """A record of 100 steps: jumps, then leaps of two, then of one."""
    accuracy = np.linspace(0, 1, 100)
    two = np.interp(range(100), (0, 4, 30, 99), (2, 2, 4, 1))
    record = {"accuracy": accuracy.tolist(), "leaps_two": two.tolist(), "leaps_one": np.linspace(0.2, 8, 100).tolist()}
    record["evaluations"] = {"step": [0, 50, 100], "entropy": [0.4, 0.1, 0.2], "length": [30, 40, 60]}
    record["end"] = {"samples": 4, "test": [4, 4, 2, 2], "long": [2, 2], "length": 60.0, "token_entropy": 0.2}
    return record | changed


BASE = {"end": {"samples": 4, "test": [0, 1, 0, 1], "long": [0, 0], "length": 30.0, "token_entropy": 0.4}}


def test_measures_are_relative_to_the_base_and_to_the_start():
    found = training.measures(run_record(), BASE)
    assert found["accuracy at the end"] == 0.75 and found["gain on long problems"] == 0.5
    assert found["share of the gain carried"] == pytest.approx(0.5 / 0.625)
    assert found["log entropy at the end"] == pytest.approx(math.log(0.5))
    step = found["steps to 0.6"]  # the mean of five steps up to it
    assert step == 63 and found["log length at accuracy 0.6"] == pytest.approx(math.log((40 + 20 * 10 / 50) / 30))
    assert found["log entropy over its lowest"] == pytest.approx(math.log(2))
    assert found["log leaps of two, highest over start"] == pytest.approx(math.log(2), abs=0.06)
    assert found["log leaps of two, highest over end"] == pytest.approx(math.log(4), abs=0.12)
    assert found["growth after minus before"] < 0  # as fast a line, so less in the log
    late = [0.2] * 30 + np.linspace(0.2, 8, 70).tolist()
    assert training.measures(run_record(leaps_one=late), BASE)["growth after minus before"] > 1.5
    never = training.measures(run_record(accuracy=[0.1] * 100), BASE)
    assert never["steps to 0.6"] == 101 and math.isnan(never["log entropy at accuracy 0.6"])


@pytest.mark.parametrize("script", training.ARMS)
def test_every_arm_is_in_a_claim_and_faster_counts_as_more(script):
    better, found = ("low-prob", "grpo-n"), {}
    for arm, base in itertools.product(training.ARMS[script], (1, 2)):
        accuracy = np.linspace(0, (2 if arm in better else 1) + 0.05 * base, 100).tolist()
        found[arm, base, 1] = training.measures(run_record(accuracy=accuracy), BASE)
    rows = training.claims_of(script, found)
    text = " ".join(row["claim"] + row["measure"] for row in rows)
    assert all(arm.split(",")[-1].strip() in text for arm in training.ARMS[script] if arm != "gspo, narrow clip")
    steps = [row for row in rows if row["measure"] == "steps to 0.6" and row["claim"].startswith(better)]
    assert steps and all(row["effect"] > 20 and row["verdict"] == "holds" for row in steps)


def test_lost_and_won_are_shares_of_the_problems():
    assert boundary.lost_and_won([0, 1, 7, 0, 200], [0, 0, 3, 2, 256]) == (0.2, 0.2, [1])
    assert boundary.lost_and_won([5, 5], [5, 5]) == (0.0, 0.0, [])


def test_direction_reads_its_bins():
    p, mass = np.array([0.1, 0.25, 0.4, 0.9]), np.array([4.0, 3.0, 2.0, 1.0])
    assert pairs.below(p, mass, 0.3) == pytest.approx(0.7) and pairs.below(p, mass, 0.5) == pytest.approx(0.9)
    assert math.isnan(pairs.below(p[:0], mass[:0], 0.3))
    shares = {"< -4": 9, "-0.1 to 0.1": 9, "0.5 to 1": 1, "1 to 2": 2, ">= 4": 1}
    bins = {name: {"share": share, "p_base": 0.1 * share} for name, share in shares.items()}
    assert pairs.high_dlogp(bins, "p_base") == pytest.approx(0.9 - (2 * 0.2 + 1 * 0.1) / 3)


def test_accuracies_are_read_off_between_the_measured_ratios():
    curve = [{"ratio": r, "accuracy": a} for r, a in ((0.01, 0.5), (0.1, 0.75), (0.4, 1.0))]
    assert pairs.at_ratio(curve, 0.1) == pytest.approx(0.75) and pairs.at_ratio(curve, 1.0) == 1.0
    assert pairs.at_ratio(curve, math.sqrt(0.001)) == pytest.approx(0.625)
    assert pairs.smallest(curve, 0.75) == pytest.approx(0.1, rel=0.02) and pairs.smallest(curve, 1.1) == 1.0
    assert pairs.area([{"ratio": r, "accuracy": 0.3} for r in (0.02, 0.4)]) == pytest.approx(0.3)


def test_settings_of_the_bandit_are_decided_one_by_one():
    shares = {(0.5, 0.01): 1.0, (0.5, 0.02): 0.55, (0.8, 0.01): 0.1}
    row = bandit.decide("B 3", "text", "plain", shares, None, 100, 0.5, 0.0, 50)
    assert row["verdict"] == "holds: 1; does not hold: 1; undecided: 1" and row["survives"]
    row = bandit.decide("B 3", "text", "plain", shares, dict.fromkeys(shares, 0.1), 100, 0.0, 0.05, 50)
    assert list(row["verdicts"].values()) == ["holds", "holds", "undecided"]
    assert bandit.wilson(1.0, 100, 1.96) == pytest.approx((0.963, 1.0), abs=0.0005)


# ---------------------------------------------------------------------------------------------------------------- files
def test_the_tables_of_the_page_are_what_the_results_say():
    found = subprocess.run([sys.executable, "studies/claims.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert len((ROOT / "docs" / "claims.md").read_text().splitlines()) <= 250


def test_what_the_first_world_said_is_known_for_every_study():
    first = json.loads((ROOT / "studies" / "first_world.json").read_text())
    assert set(first) == set(claims.STUDIES)


@pytest.mark.parametrize("script", training.ARMS)
def test_with_every_record_there_no_base_is_made_and_nothing_runs(tmp_path, monkeypatch, script):
    made = []
    monkeypatch.setattr(common, "run_all", lambda jobs: made.append(jobs))
    monkeypatch.setattr(common, "base_folder", lambda *_: tmp_path / "no base")
    monkeypatch.setattr(training, "base_folder", common.base_folder)
    args = SimpleNamespace(quick=False, bases=common.BASES, runs=tmp_path, where=ROOT / "studies" / "results")
    jobs, records, _ = training.jobs_of(script, args)
    assert not made and len(records) == len(jobs) == 5 * (1 + len(training.ARMS[script])) and not any(jobs.values())
    args.where = tmp_path / "results"
    with pytest.raises(FileNotFoundError, match="no base"):  # the bases were asked for; this run_all makes none
        training.jobs_of(script, args)
    assert len(made) == 1 and len(made[0]) >= 1


def test_a_failed_run_ends_the_study_with_its_last_words(tmp_path):
    command = ("toy_bandit.py --rewards x", tmp_path / "run", "summary.json")
    with pytest.raises(SystemExit, match=r"--rewards"):
        common.run_all({tmp_path / "a.json": ([command], dict)})
    assert not (tmp_path / "a.json").exists()


def test_a_record_says_what_made_it_and_when(tmp_path):
    command = ("toy_bandit.py --rewards 1,0 --policy 0.5,0.5 --steps 20 --runs 2", tmp_path / "run", "summary.json")
    common.run_all({tmp_path / "a.json": ([command], lambda: {"x": [math.inf, math.nan, 1.5]})})
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["x"] == [None, None, 1.5] and record["commands"] == [command[0]] and not record["resumed"]
    assert len(record["commit"]) == 40 and record["started"] <= record["ended"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"\xff\xfe"])
def test_a_missing_or_damaged_record_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "grpo-2-1.json").write_bytes(content)
    with pytest.raises(
        SystemExit, match=r"grpo-2-1\.json: (not valid JSON .*; delete it|No such file.*; run the study)"
    ):
        common.read_json(tmp_path / "grpo-2-1.json")


@pytest.mark.skipif("STUDIES" not in os.environ, reason="12 minutes: STUDIES=1 python -m pytest tests/test_studies.py")
def test_the_quick_forms_run_and_go_on_and_three_verdicts_are_decided_again(tmp_path):
    for name in ("training", "boundary", "pairs", "bandit"):
        command = [sys.executable, f"studies/{name}.py", "--quick", "--runs", str(tmp_path)]
        first, again = (subprocess.run(command, cwd=ROOT, capture_output=True, text=True) for _ in range(2))
        assert first.returncode == again.returncode == 0, first.stderr + again.stderr
        assert again.stdout.startswith("0 of ") and again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    for name in claims.STUDIES:
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 10_000
    command = [sys.executable, "tests/recompute.py", str(tmp_path / "results")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.count("same") == 3, found.stdout + found.stderr


@pytest.mark.skipif("STUDIES" not in os.environ, reason="by hand, as above")
def test_passk_runs_in_its_quick_form(tmp_path):
    command = f"studies/passk.py tiny/base --quick --runs {tmp_path}"
    found = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n| tiny/base ") == 2  # two settings


def test_compare_draws_runs_side_by_side_and_names_a_missing_one(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [{"step": i, "test/greedy": 0.1 * i, "test/greedy_ci95": 0.01, "accuracy": 0.2} for i in range(4)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    command = [sys.executable, ROOT / "studies/compare.py", str(tmp_path / "a"), str(tmp_path / "b")]
    found = subprocess.run([*command, "--out", str(tmp_path / "c.png")], capture_output=True, text=True)
    assert found.returncode == 0 and (tmp_path / "c.png").exists(), found.stderr
    found = subprocess.run([*command, str(tmp_path / "nothing")], capture_output=True, text=True)
    assert found.returncode == 1 and "nothing is no run folder" in found.stderr and "Traceback" not in found.stderr
