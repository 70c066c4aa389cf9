"""The studies' statistics and measures, and that records decide; with STUDIES=1, their short forms from nothing."""

import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "studies" / "results"
sys.path.insert(0, str(ROOT / "studies"))
import bandit  # noqa: E402
import boundary  # noqa: E402
import claims  # noqa: E402
import common  # noqa: E402
import compare  # noqa: E402
import grpo_n_lr  # noqa: E402
import pairs  # noqa: E402
import training  # noqa: E402
from training import RunKey  # noqa: E402


# ----------------------------------------------------------------------------------------------------------- statistics
@pytest.mark.parametrize(
    ("p", "df", "quantile"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 4, 2.776),
        (0.975, 21, 2.080),
        (0.975, 120, 1.980),
        (0.95, 4, 2.132),
        (0.995, 9, 3.250),
        (0.8, 4, 0.941),
        (0.9995, 4, 8.610),
    ],
)
def test_quantiles_of_students_t_are_those_of_printed_tables(p, df, quantile):
    assert common.t_quantile(p, df) == pytest.approx(quantile, abs=0.0006)
    assert common.t_tail(quantile, df) == pytest.approx(1 - p, rel=0.002)
    assert common.t_tail(-quantile, df) == pytest.approx(p, rel=0.002)


def test_interval_is_students_t_over_models():
    x = [0.1, 0.4, 0.2, 0.5, 0.3]
    mean, half = common.interval(x)
    assert mean == pytest.approx(0.3)
    assert half == pytest.approx(2.776 * np.std(x, ddof=1) / math.sqrt(5), rel=1e-3)


def test_without_spread_nothing_is_decided():
    assert common.interval([1.0]) == (1.0, math.inf)
    assert common.interval([0.3] * 5)[1] == math.inf
    assert common.p_value([0.3] * 5, 0.0, 0.0) == 1.0
    assert common.decide("", "", "", [0.3] * 5)["label"] == "open"
    assert common.decide("", "", "", [])["label"] == "open"


def test_interval_over_models_covers_seeds_and_problems_inside_them():
    """Models, seeds inside models, problems inside models: the interval of means holds the truth 95% of the time."""
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        seeds = generator.normal(0, 0.2, (5, 1)) + generator.normal(0, 0.3, (5, 2))
        x = seeds.mean(1) + generator.normal(0, 0.4, (5, 40)).mean(1)
        mean, half = common.interval(x)
        covered.append(abs(mean) <= half)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_holm_steps_down_and_never_falls():
    assert common.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert common.holm([0.6, 0.5]) == [1.0, 1.0]
    assert common.holm([]) == []


@pytest.mark.parametrize(
    ("mean", "half_width", "label"),
    [
        (0.05, 0.04, "yes"),
        (0.02, 0.01, "yes"),
        (0.01, 0.005, "yes, but small"),
        (0.05, 0.06, "open"),
        (0.0, 0.03, "open"),
        (1.0, math.inf, "open"),
        (math.nan, math.inf, "open"),
        (0.0, 0.01, "no"),
        (-0.1, 0.05, "no"),
    ],
)
def test_labels_follow_the_rule(mean, half_width, label):
    assert common.judge(mean, half_width, 0.0, 0.02) == label
    assert common.judge(mean - 0.5, half_width, -0.5, 0.02) == label


def test_a_claim_is_decided_with_its_threshold_and_its_p():
    assert common.decide("", "", "", [0.0, 0.001, -0.001], 0.0, -0.05)["label"] == "yes"
    assert common.decide("", "", "", [-0.1, -0.101, -0.102], 0.0, -0.05)["label"] == "no"
    row = common.decide("A 1", "text", "unit", [0.1, 0.3, 0.2, math.nan], 0.05)
    assert row["effect"] == pytest.approx(0.2)
    assert row["values"] == [0.1, 0.3, 0.2]
    assert row["p"] == pytest.approx(2 * common.t_tail(0.2 / (0.1 / math.sqrt(3)), 2))
    small = common.decide("", "", "", [0.0, 0.001, -0.001, 0.0], 0.02)
    assert small["label"] == "no"
    assert small["p"] < 0.001  # of the test that it lies below what matters
    sure = [0.01, 0.02, 0.01, 0.02, 0.015]  # above 0, far below what matters: the p is of the first
    assert common.p_value(sure, 0.0, 1.0) == pytest.approx(common.p_value(sure, 0.0, 0.0))


def test_models_agree_that_lie_on_the_side_of_the_mean():
    assert common.n_agreeing([0.2, -0.1, 0.3, 0.0]) == 2
    assert common.n_agreeing([-0.2, -0.1, -0.3], above=-0.05) == 3
    assert common.n_agreeing([0.2, -0.1, 0.3], above=0.25) == 2
    assert common.n_agreeing([]) == 0


def test_a_verdict_survives_correction_and_added_rows_change_no_older_one():
    clear = [0.1, 0.11, 0.1, 0.09]
    weak = [0.1, 0.14, 0.05, 0.16]
    rows = [common.decide("", "", "", values) for values in (clear, weak)]
    p = rows[1]["p"]
    assert 0.01 < p < 0.05
    added = [common.decide("", "", "", weak, added=True) for _ in range(3)]
    claims_of_study = [added[0], *rows, *added[1:]]
    common.correct(claims_of_study)
    assert [row["verdict"] for row in rows] == ["yes", "yes"]
    assert rows[1]["p_holm"] == pytest.approx(p)
    assert [row["verdict"] for row in added] == ["open"] * 3
    assert added[0]["label"] == "yes" and not added[0]["survives"]
    assert added[0]["p_holm"] == pytest.approx(4 * p)


def test_arms_are_compared_on_the_same_model_never_by_training_seed():
    more = {(1, 1): 3.0, (1, 2): 5.0, (2, 1): 1.0, (3, 1): 9.0}
    less = {(1, 1): 1.0, (2, 1): 2.0, (2, 2): 4.0, (4, 1): 0.0}
    assert common.difference(more, less) == [3.0, -2.0]
    assert common.difference({(1, 1): 101, (2, 1): 101}, {(1, 1): 101, (2, 1): 50}, never=101) == [51]
    assert common.by_base({(1, 1): math.nan, (1, 2): 2.0, (2, 1): math.nan}) == {1: 2.0}


def test_a_table_has_one_line_for_all_rows_of_a_claim():
    values = {"a": [0.1, 0.102], "b": [0.1, 0.11], "c": [], "d": [0.3, 0.3], "e": [10, 30]}
    rows = [common.decide("A 1", "text", name, numbers) for name, numbers in values.items()]
    rows[0].update(survives=True, verdict="yes")
    for row in rows[1:]:
        row.update(survives=False, verdict="open")
    lines = common.table(rows).splitlines()
    assert len(lines) == 3
    effects = "a: +0.101 ± 0.013<br>b: +0.105 ± 0.064<br>c: no model<br>d: +0.300, no interval<br>e: +20.0 ± 127.1"
    agreeing = "2/2<br>2/2<br>-<br>2/2<br>2/2"
    verdicts = "**yes**<br>**open**<br>**open**<br>**open**<br>**open**"
    survives = "yes<br>was **yes**<br>-<br>-<br>-"
    assert lines[2] == f"| A 1 | text | {effects} | {agreeing} | {verdicts} | {survives} |"


# ------------------------------------------------------------------------------------------------------------- measures
def test_steps_to_reach_are_of_the_mean_of_five_steps():
    ramp = [0.0] * 10 + [1.0] * 10
    assert training.steps_to_reach(ramp, 0.6) == 13
    assert training.steps_to_reach(ramp, 1.0) == 15
    assert training.steps_to_reach(ramp, 1.1) == 21
    assert training.steps_to_reach([1.0] * 9, 0.6) == 5
    assert training.running_mean([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).tolist() == [1.0, 1.5, 2.0, 2.5, 3.0, 4.0]


def test_plateau_and_half_are_numbered_checkpoints_from_training_curves():
    two = [*range(25), *range(25, 0, -1), *[60] * 10]
    assert training.plateau_of({"two_at_once": two}) == 30  # steps 26 to 30 have the highest mean, but for the last
    assert training.half_of({"accuracy": [i / 60 for i in range(60)]}) == 40
    assert training.half_of({"accuracy": [0.0] * 60}) == 50


BASE = {"end": {"samples": 4, "test": [0, 1, 0, 1], "long": [0, 0], "length": 30.0, "token_entropy": 0.4}}


def run_record(**changed):
    """A record of 100 steps: guesses, then two at once, then one at a time."""
    record = {
        "accuracy": np.linspace(0, 1, 100).tolist(),
        "one_at_a_time": np.linspace(0.2, 8, 100).tolist(),
        "two_at_once": np.interp(range(100), (0, 4, 30, 99), (2, 2, 4, 1)).tolist(),
        "evaluations": {"step": [0, 50, 100], "entropy": [0.4, 0.1, 0.2], "length": [30, 40, 60]},
        "end": {"samples": 4, "test": [4, 4, 2, 2], "long": [2, 2], "length": 60.0, "token_entropy": 0.2},
        "end at top-p 0.7": {"samples": 4, "test": [4, 4, 4, 2]},
    }
    return {**record, **changed}


def test_measures_are_relative_to_the_base_and_to_the_start():
    found = training.measures(run_record(), BASE)
    assert found["accuracy at the end"] == 0.75
    assert found["accuracy at the end, top-p 0.7"] == 0.875
    assert found["gain on long problems"] == 0.5
    assert found["share of the gain carried"] == pytest.approx(0.5 / 0.625)
    assert found["log entropy at the end"] == pytest.approx(math.log(0.5))
    assert found["log entropy over its lowest"] == pytest.approx(math.log(2))
    assert found["steps to 0.6"] == 63  # the last of five steps; the policy in their middle is that of step 60
    assert found["log length at accuracy 0.6"] == pytest.approx(math.log((40 + 20 * 10 / 50) / 30))
    never = training.measures(run_record(accuracy=[0.1] * 100), BASE)
    assert never["steps to 0.6"] == 101
    assert math.isnan(never["log entropy at accuracy 0.6"])


def test_the_two_stages_are_measured_around_the_peak_of_two_at_once():
    found = training.stage_measures(run_record())
    assert found["log two at once, highest over start"] == pytest.approx(math.log(2), abs=0.06)
    assert found["log two at once, highest over end"] == pytest.approx(math.log(4), abs=0.12)
    assert found["growth after minus before"] < 0  # a straight line grows less and less in the log
    late = [0.2] * 30 + np.linspace(0.2, 8, 70).tolist()
    assert training.stage_measures(run_record(one_at_a_time=late))["growth after minus before"] > 1.5


@pytest.mark.parametrize(("script", "better"), [("dapo", "low-prob"), ("grpo_n", "grpo-n")])
def test_every_arm_is_in_a_claim_and_faster_counts_as_more(script, better):
    found = {}
    for arm in training.ARMS[script]:
        for base in (1, 2):
            speed = (2 if arm == better else 1) + 0.05 * base
            accuracy = np.linspace(0, speed, 100).tolist()
            found[RunKey(arm, base, 1)] = training.measures(run_record(accuracy=accuracy), BASE)
    asked = training.dapo_claims() if script == "dapo" else training.grpo_n_claims()
    assert set(training.ARMS[script]) <= {claim.more for claim in asked} | {claim.less for claim in asked}
    assert {claim.more for claim in asked} <= set(training.STYLES)
    steps = [claim for claim in asked if claim.measure == "steps to 0.6" and claim.more == better]
    assert len(steps) == (3 if script == "dapo" else 1)
    for claim in steps:
        assert np.mean(training.effects(claim, found)) > 20
    lines = [(row["claim"], row["measure"]) for row in training.claims_of(script, found)]
    assert len(lines) == len(set(lines))


def test_a_model_on_which_neither_arm_arrives_says_nothing_about_speed():
    steps = {("a", 1): 101, ("b", 1): 101, ("a", 2): 50, ("b", 2): 101}
    found = {RunKey(arm, base, 2): {"steps to 0.6": n} for (arm, base), n in steps.items()}
    assert training.effects(training.Claim("", "", "", "steps to 0.6", "a", "b"), found) == [51.0]


def test_lost_and_won_are_shares_of_the_problems():
    assert boundary.lost_and_won([0, 1, 7, 0, 200], [0, 0, 3, 2, 256]) == (0.2, 0.2, [1])
    assert boundary.lost_and_won([5, 5], [5, 5]) == (0.0, 0.0, [])


def test_direction_reads_its_bins():
    p = np.array([0.1, 0.25, 0.4, 0.9])
    mass = np.array([4.0, 3.0, 2.0, 1.0])
    assert pairs.mass_below(p, mass, 0.3) == pytest.approx(0.7)
    assert pairs.mass_below(p, mass, 0.5) == pytest.approx(0.9)
    assert math.isnan(pairs.mass_below(p[:0], mass[:0], 0.3))
    shares = {"< -4": 9, "-0.1 to 0.1": 9, "0.5 to 1": 1, "1 to 2": 2, ">= 4": 1}
    bins = {name: {"share": share, "p_base": 0.1 * share} for name, share in shares.items()}
    assert pairs.high_dlogp(bins, "p_base") == pytest.approx(0.9 - (2 * 0.2 + 1 * 0.1) / 3)


def test_accuracies_are_read_off_between_the_measured_ratios():
    curve = [{"ratio": ratio, "accuracy": accuracy} for ratio, accuracy in ((0.01, 0.5), (0.1, 0.75), (0.4, 1.0))]
    assert pairs.at_ratio(curve, 0.1) == pytest.approx(0.75)
    assert pairs.at_ratio(curve, 1.0) == 1.0
    assert pairs.at_ratio(curve, math.sqrt(0.001)) == pytest.approx(0.625)
    assert pairs.smallest_ratio(curve, 0.75) == pytest.approx(0.1, rel=0.02)
    assert pairs.smallest_ratio(curve, 1.1) == 1.0
    assert pairs.area([{"ratio": ratio, "accuracy": 0.3} for ratio in (0.02, 0.4)]) == pytest.approx(0.3)


def test_settings_of_the_bandit_are_decided_one_by_one():
    shares = {(0.5, 0.01): 1.0, (0.5, 0.02): 0.55, (0.8, 0.01): 0.1}
    row = bandit.decide("B 3", "text", "plain", shares, None, 100, 0.5, 0.0, 50)
    assert row["verdict"] == row["label"] == "yes: 1; no: 1; open: 1" and row["survives"]
    row = bandit.decide("B 3", "text", "plain", shares, dict.fromkeys(shares, 0.1), 100, 0.0, 0.05, 50)
    assert list(row["labels"].values()) == ["yes", "yes", "open"]
    assert bandit.wilson(1.0, 100, 1.96) == pytest.approx((0.963, 1.0), abs=0.0005)


# -------------------------------------------------------------------------------------------------------------- records
def same(found, recorded):
    """Equal, numbers to 9 digits: the last ones of a p depend on the processor's cosine."""
    if isinstance(recorded, dict):
        return set(found) == set(recorded) and all(same(found[key], value) for key, value in recorded.items())
    if isinstance(recorded, list):
        return len(found) == len(recorded) and all(map(same, found, recorded))
    if isinstance(recorded, float):
        return found == pytest.approx(recorded, rel=1e-9, abs=1e-12)
    return found == recorded


@pytest.mark.parametrize(
    ("study", "results"),
    [
        (training, ("dapo", "grpo_n")),
        (boundary, ("boundary",)),
        (pairs, ("direction", "replacement", "extrapolation")),
        (bandit, ("bandit",)),
        (grpo_n_lr, ()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_records_decide_and_nothing_runs(study, results, tmp_path, monkeypatch):
    """Without runs/ and base models, as in a fresh clone."""
    where = tmp_path / "results"
    shutil.copytree(RESULTS, where, ignore=shutil.ignore_patterns("*.png", "real"))
    for name in results:
        (where / f"{name}.json").unlink()
    args = SimpleNamespace(quick=False, bases=common.BASES, runs=tmp_path / "runs", where=where)
    monkeypatch.setattr(study, "arguments", lambda doc: args)
    monkeypatch.setattr(common, "do_job", lambda name, *_: pytest.fail(f"{name} is made again"))
    monkeypatch.setattr(common, "base_folder", lambda *_: tmp_path / "no base")
    monkeypatch.setattr(sys, "argv", [f"studies/{study.__name__}.py"])
    study.main()
    for name in results:
        decided = json.loads((where / f"{name}.json").read_text())
        assert same(decided, json.loads((RESULTS / f"{name}.json").read_text())), name


def test_without_a_record_the_base_models_are_made_first(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(common, "run_all", lambda jobs: made.extend(jobs))
    monkeypatch.setattr(common, "ROOT", tmp_path)
    args = SimpleNamespace(quick=False, bases=common.BASES)
    common.make_bases(args, RESULTS / "dapo.jsonl", ["none-1-2"])
    assert made == []
    common.make_bases(args, RESULTS / "dapo.jsonl", ["none-1-2", "missing"])
    assert [path.parent.parent.name for path in made] == ["2", "3", "4", "5"]


def test_records_have_the_names_of_the_metrics():
    n_records = {"dapo": 40, "grpo_n": 50, "boundary": 162, "pairs": 10, "bandit": 72, "grpo_n_lr": 24}
    old = ("leaps_one", "leaps_two", "leaps_jump", "leaps of one", "of two", "jumps", "at_forks", "fork", "half")
    for study, n in n_records.items():
        text = (RESULTS / f"{study}.jsonl").read_text()
        for name in old:
            assert f'"{name}"' not in text, study
        records = common.read_records(RESULTS / f"{study}.jsonl")
        assert len(records) == text.count("\n") == n
        for name, record in records.items():
            assert {"commit", "started", "ended", "resumed", "commands"} < set(record)
            if study in training.ARMS and not name.startswith("base-"):
                assert set(training.CURVES) < set(record), name


def test_the_tables_of_the_page_are_what_the_results_say(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["studies/claims.py", "--check"])
    assert claims.main() == 0, capsys.readouterr().out


def test_threads_add_records_and_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "study.jsonl"
    assert common.read_records(path) == {}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: common.add_record(path, {"name": str(i), "x": [i, math.nan]}), range(40)))
    assert common.read_records(path) == {str(i): {"x": [i, None]} for i in range(40)}
    whole = path.read_text()
    for rest in ('{"name": "40", "x"', '{"x": 1}\n', "[]\n", "\n{}\n"):
        path.write_text(whole + rest)
        with pytest.raises(SystemExit, match=r"study\.jsonl, line 4[12]: no record; delete the line, and the study"):
            common.read_records(path)
    path.write_text(whole.rstrip("\n"))  # an editor without a final newline
    common.add_record(path, {"name": "40"})
    assert len(common.read_records(path)) == 41


FAILS_AT_FIRST = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(exist_ok=True)
(out / "config.json").write_text("{}")
if "--resume" not in sys.argv:
    sys.exit("no space left")
(out / "summary.json").write_text("{}")
"""


@pytest.mark.parametrize("in_one_file", [True, False])
def test_a_failed_run_ends_the_study_and_the_same_command_goes_on(in_one_file, tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text(FAILS_AT_FIRST)
    run = common.Run(f"{script} --flag 1", tmp_path / "run", "summary.json")
    job = common.Job([run], lambda: {"x": [math.inf, math.nan, 1.5]})
    records = tmp_path / "study.jsonl" if in_one_file else None
    jobs = {"a-0.1": job} if in_one_file else {tmp_path / "a.json": job}
    with pytest.raises(SystemExit, match=r"script\.py --flag 1 --out .*run ended with status 1: no space left"):
        common.run_all(jobs, records=records)
    assert not list(tmp_path.glob("*.json*"))
    common.run_all(jobs, records=records)
    found = common.read_records(records)["a-0.1"] if in_one_file else common.read_json(tmp_path / "a.json")
    assert found["x"] == [None, None, 1.5]
    assert found["commands"] == [f"{script} --flag 1"]
    assert found["resumed"]
    assert len(found["commit"]) == 40
    assert found["started"] <= found["ended"]
    capsys.readouterr()
    common.run_all(jobs, records=records)
    assert capsys.readouterr().out == "0 of 1 runs to do\n"


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"\xff\xfe"])
def test_a_missing_or_damaged_record_is_named(tmp_path, content):
    path = tmp_path / "grpo-2-1.json"
    if content is None:
        what_to_do = "No such file.*; run the study"
    else:
        what_to_do = "not valid JSON .*; delete it"
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=rf"grpo-2-1\.json: {what_to_do}"):
        common.read_json(path)


def test_compare_draws_runs_side_by_side_and_names_a_missing_one(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = []
        for step in range(4):
            row = {"step": step, "test/greedy": 0.1 * step, "test/greedy_ci95": 0.01, "accuracy": 0.2}
            lines.append(json.dumps(row))
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    command = ["studies/compare.py", "--out", str(tmp_path / "c.png"), str(tmp_path / "a"), str(tmp_path / "b")]
    monkeypatch.setattr(sys, "argv", command)
    compare.main()
    assert (tmp_path / "c.png").exists()
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match="nothing is no run folder"):
        compare.main()


# ---------------------------------------------------------------------------------------------------------- short forms
def curves_without_numbers(record):
    return {name for name in training.CURVES if not any(value is not None for value in record[name])}


@pytest.mark.skipif("STUDIES" not in os.environ, reason="12 minutes: STUDIES=1 python -m pytest tests/test_studies.py")
def test_the_quick_forms_run_and_go_on_and_three_verdicts_are_decided_again(tmp_path):
    for name in ("training", "boundary", "pairs", "bandit", "exact", "few"):
        command = [sys.executable, f"studies/{name}.py", "--quick", "--runs", str(tmp_path)]
        first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert first.returncode == again.returncode == 0, first.stderr + again.stderr
        assert again.stdout.startswith("0 of ")
        assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    for name in claims.STUDIES:
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 10_000
    for study, name in (("dapo", "none-1-2"), ("grpo_n", "grpo-1-2")):  # a metric of another name would be missing
        quick = common.read_records(tmp_path / "results" / f"{study}.jsonl")[name]
        recorded = common.read_records(RESULTS / f"{study}.jsonl")[name]
        assert curves_without_numbers(quick) <= curves_without_numbers(recorded)
    command = [sys.executable, "tests/recompute.py", str(tmp_path / "results")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.count("same") == 3, found.stdout + found.stderr


@pytest.mark.skipif("STUDIES" not in os.environ, reason="by hand, as above")
def test_passk_runs_in_its_quick_form(tmp_path):
    command = f"studies/passk.py tiny/base --quick --runs {tmp_path}"
    found = subprocess.run([sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("\n| tiny/base ") == 2  # two settings
