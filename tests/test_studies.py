"""The studies run in their short form and resume from their records; intervals and verdicts follow their rule."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "studies"))
import common  # noqa: E402


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


def test_a_failed_run_ends_the_study_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = ("dapo.py --train nowhere.jsonl", tmp_path / "run", "model/config.json")
    with pytest.raises(SystemExit, match=r"nowhere\.jsonl"):
        common.run_all({tmp_path / "a.json": ([command], dict)})
    assert not (tmp_path / "a.json").exists()


def test_numbers_that_are_not_finite_are_null(tmp_path):
    common.write_json(tmp_path / "a.json", {"x": [math.inf, -math.inf, math.nan, 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, None, None, 1.5]}


@pytest.mark.parametrize(
    "name", ["reweighting", "bandit", "negative_only", "direction", "replacement", "extrapolation"]
)
def test_the_quick_form_runs_and_goes_on_from_its_records(tmp_path, name):
    command = [sys.executable, f"studies/{name}.py", "--quick", "--runs", str(tmp_path)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000 and (tmp_path / f"{name}.json").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.startswith("0 of ")
    assert again.stdout.partition("\n\n")[2] == first.stdout.partition("\n\n")[2]
