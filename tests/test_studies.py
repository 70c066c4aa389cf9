"""The studies run in their short form and resume from their records; intervals and verdicts follow their rule."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "studies"))
import claims  # noqa: E402
import common  # noqa: E402
import direction  # noqa: E402
import extrapolation  # noqa: E402
import negative_only  # noqa: E402
import replacement  # noqa: E402


def test_interval_is_students_t():
    x = [0.1, 0.4, 0.2, 0.5, 0.3]
    mean, half = common.interval(x)
    assert mean == pytest.approx(0.3) and half == pytest.approx(2.776 * np.std(x, ddof=1) / math.sqrt(5))
    assert common.interval([1.0]) == (1.0, math.inf)


def test_the_quantiles_leave_two_and_a_half_percent_above():
    """Against draws of Student's t: a normal over the root of a chi-square."""
    torch.manual_seed(0)
    for df, quantile in enumerate(common.T975, start=1):
        draws = torch.distributions.StudentT(float(df)).sample((1_000_000,))
        assert (draws > quantile).double().mean().item() == pytest.approx(0.025, abs=0.0006)


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [(0.05, 0.04, "holds"), (0.05, 0.06, "undecided"), (0.0, 0.01, "does not hold"), (-0.1, 0.05, "does not hold")]
    + [(0.0, 0.03, "undecided"), (1.0, math.inf, "undecided")],
)
def test_verdicts_follow_the_rule(mean, half, verdict):
    assert common.judge(mean, half, below=0.02) == verdict


def test_two_way_intervals_cover_the_mean_that_pairs_and_problems_share():
    """Effects of 6 pairs and of 100 problems: the interval holds the truth at least 95% of the time."""
    generator, covered = np.random.default_rng(0), []
    for _ in range(400):
        x = generator.normal(0, 0.1, (6, 1)) + generator.normal(0, 0.4, (1, 100)) + generator.normal(0, 0.3, (6, 100))
        mean, half = common.interval_two_way(x)
        covered.append(abs(mean) <= half)
    assert 0.94 <= np.mean(covered) <= 0.995
    assert (
        common.interval_two_way(np.ones((6, 100)))[1] == 0 and common.interval_two_way(np.ones((1, 9)))[1] == math.inf
    )


def test_a_claim_without_values_is_undecided_and_its_threshold_is_kept():
    assert common.decide("", "", [])["verdict"] == "undecided"
    assert common.decide("", "", [0.0, 0.001, -0.001], above=-0.05, below=-0.05)["verdict"] == "holds"
    assert common.decide("", "", [-0.1, -0.101, -0.102], above=-0.05, below=-0.05)["verdict"] == "does not hold"
    row = common.decide("text", "unit", np.full((3, 5), 0.1))
    assert row["effect"] == pytest.approx(0.1) and row["values"] == [0.1, 0.1, 0.1]
    assert "| text | unit | +0.100 ± 0.000 | 3 | holds |" in common.table([row])


def test_leaps_of_one_lead_by_the_difference_of_the_first_means_above_one():
    ramp = [0.0] * 50 + [2.0] * 50  # the mean of ten steps passes 1 with the sixth step above it
    assert negative_only.first_above(ramp, 1.0) == 56 and negative_only.first_above([0.0] * 100, 1.0) == 100
    run = {"leaps_one": ramp, "leaps_two": [2.0] * 100, "accuracy": [0.5] * 100, "entropy": [0.2] * 50 + [0.1] * 50}
    run |= {"test": {"test/avg@4": 0.7}, "pass@k": {"50": {"pass@256": 0.9}, "100": {"pass@256": 0.95}}}
    found = negative_only.scores(run, {"pass@256": 1.0}, 100)
    assert found["steps that they lead by"] == 10 - 56
    assert found["log of entropy over its lowest"] == pytest.approx(0, abs=1e-9)
    assert math.isnan(found["log entropy at accuracy 0.55"])
    assert found["pass@256 lost at half of the steps"] == pytest.approx(0.1)
    assert found["pass@256 gained from there"] == pytest.approx(0.05)
    reached = negative_only.scores(run | {"accuracy": [0.1] * 60 + [0.9] * 40}, {"pass@256": 1.0}, 100)
    assert reached["log entropy at accuracy 0.55"] == pytest.approx(math.log(0.1))


def test_direction_reads_its_bins():
    bins = {f"{i / 10:.1f} to {(i + 1) / 10:.1f}": {"mass": 0.1, "share": 0.1} for i in range(10)}
    assert direction.unlikely_mass(bins) == pytest.approx(0.5)
    rows = {"< -4": 9, "-1 to -0.5": 9, "0.5 to 1": 1, "1 to 2": 2, ">= 4": 1}
    bins = {name: {"share": share, "p_base": 0.1 * share, "p_rlvr": 0.9} for name, share in rows.items()}
    assert direction.above(bins, 1.0) == (pytest.approx((2 * 0.2 + 1 * 0.1) / 3), pytest.approx(0.9))
    assert direction.above(bins, 0.5)[0] == pytest.approx((0.1 + 2 * 0.2 + 0.1) / 4)


def test_accuracies_are_read_off_between_the_measured_ratios():
    rows = [{"ratio": r, "right": [a, 1.0]} for r, a in ((0.01, 0.0), (0.1, 0.5), (0.4, 1.0))]
    assert replacement.at_ratio(rows, 0.1).tolist() == pytest.approx([0.5, 1.0])
    assert replacement.at_ratio(rows, math.sqrt(0.001)).tolist() == pytest.approx([0.25, 1.0])
    assert replacement.smallest(rows, 0.75) == pytest.approx(0.1, rel=0.02)  # mean of 0.5 and 1
    assert replacement.smallest(rows, 1.1) == 1.0
    flat = [{"ratio": r, "right": [0.3]} for r in (0.02, 0.4)]
    assert replacement.mean_over_log_ratio(flat) == pytest.approx([0.3])


def test_a_gamma_is_worth_the_steps_that_rl_needs():
    steps, curve = (0, 40, 60, 140), (0.1, 0.5, 0.45, 0.9)  # the dip does not count
    assert extrapolation.reached_at(0.3, steps, curve) == pytest.approx(20)
    assert extrapolation.reached_at(0.7, steps, curve) == pytest.approx(100, abs=0.1)
    assert extrapolation.reached_at(1.0, steps, curve) == 140


def test_the_tables_of_the_pages_are_what_the_results_say():
    found = subprocess.run([sys.executable, "studies/claims.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_claim_of_a_study_is_in_the_table():
    for study, statements in claims.STATEMENTS.items():
        rows = json.loads((ROOT / "studies" / "results" / f"{study}.json").read_text())["claims"]
        shown = {row["claim"] for pattern in statements.values() for _, row in claims.rows_for(rows, pattern)}
        missing = {row["claim"] for row in rows} - shown
        assert not missing


def test_verdicts_that_differ_name_what_they_are_about():
    rows = [("G = 4", {"verdict": "holds"}), ("G = 8", {"verdict": "undecided"}), ("G = 16", {"verdict": "holds"})]
    assert claims.verdict_of(rows) == "holds: G = 4, G = 16; undecided: G = 8"
    assert claims.verdict_of(rows[:1]) == "holds"


def test_a_failed_run_ends_the_study_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = ("toy_bandit.py --rewards x", tmp_path / "run", "summary.json")
    with pytest.raises(SystemExit, match=r"--rewards"):
        common.run_all({tmp_path / "a.json": ([command], dict)})
    assert not (tmp_path / "a.json").exists()


def test_numbers_that_are_not_finite_are_null(tmp_path):
    common.write_json(tmp_path / "a.json", {"x": [math.inf, -math.inf, math.nan, 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, None, None, 1.5]}


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe"])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "grpo-21.json").write_bytes(content)
    with pytest.raises(SystemExit, match=r"grpo-21\.json: not valid JSON .*; delete it"):
        common.read_json(tmp_path / "grpo-21.json")


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"bandit\.json: No such file.*; run the study"):
        common.read_json(tmp_path / "bandit.json")


def test_a_record_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(SystemExit, match=r"a\.json: .*; mend that"):
        common.write_json(tmp_path / "results" / "a.json", {})


@pytest.mark.skipif(
    "STUDIES" not in os.environ, reason="eight minutes: STUDIES=1 python -m pytest tests/test_studies.py"
)
@pytest.mark.parametrize("name", claims.STUDIES)
def test_the_quick_form_runs_and_goes_on_from_its_records(name, tmp_path):
    runs = tmp_path / name
    command = [sys.executable, f"studies/{name}.py", "--quick", "--runs", str(runs)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert (runs / f"{name}.png").stat().st_size > 10_000 and (runs / f"{name}.json").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.startswith("0 of ")
    assert again.stdout.rpartition("runs to do\n")[2] == first.stdout.rpartition("done\n")[2]


@pytest.mark.skipif("STUDIES" not in os.environ, reason="by hand, as above")
def test_passk_runs_in_its_quick_form(tmp_path):
    command = f"studies/passk.py tiny/base --quick --runs {tmp_path}"
    found = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n| tiny/base ") == 4  # pass@k and entropies at two settings


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
