"""studies/real.py: the stages that its rule finds, where a change stands, the answers of the control, the figure."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "studies"))
import real  # noqa: E402


def row(step, first_larger, first_smaller, second_larger, second_smaller):
    return {
        "step": step,
        "kind/first (larger)": first_larger,
        "kind/first (smaller)": first_smaller,
        "kind/second (larger)": second_larger,
        "kind/second (smaller)": second_smaller,
        "test/length": 8.0,
        "test/accuracy": step / 10,
    }


RUN = [  # boxes hardly anything, then the first number, then the larger one
    row(0, 0.9, 0.9, 0.9, 0.9),  # before training: does not count
    row(1, 0.1, 0.1, 0.1, 0.1),
    row(2, 0.8, 0.3, 0.2, 0.1),  # P(first) 0.55, accuracy 0.5
    row(3, 0.8, 0.6, 0.1, 0.1),  # P(first) 0.7: stage one; accuracy 0.45
    row(4, 0.8, 0.3, 0.6, 0.1),  # accuracy 0.7
    row(5, 0.9, 0.1, 0.85, 0.1),  # stage two
    row(6, 0.9, 0.1, 0.2, 0.1),  # accuracy 0.55, after stage two: no stall
]


def test_the_rule_before_the_runs_finds_the_first_steps():
    found = real.stages_of(RUN)
    rule = found["before the runs"]
    assert (rule["stage one"], rule["stage two"], rule["both stages"], rule["stall"]) == (3, 5, True, 2)
    assert found["test accuracy"][6] == 0.6
    without_stage_two = real.stages_of(RUN[:5])["before the runs"]
    assert (without_stage_two["stage two"], without_stage_two["both stages"]) == (None, False)


def test_a_run_that_turns_from_one_number_to_the_other_passes_the_first_rule_alone():
    turning = [row(step, 0.9, 0.9, 0.1, 0.1) for step in range(1, 8)] + [row(8, 0.1, 0.1, 0.9, 0.9)] * 8
    found = real.stages_of(turning)
    assert found["before the runs"]["both stages"]
    assert found["amended"] == {"stage one": 5, "stage two": None, "both stages": False, "stall": 15}


def test_the_amended_rule_wants_five_steps():
    comparing = [row(step, 0.5, 0.5, 0.5, 0.5) for step in range(1, 7)]
    comparing += [row(step, 0.9, 0.1, 0.9, 0.1) for step in range(7, 13)]  # compares: 0.8
    found = real.stages_of(comparing)["amended"]
    assert (found["stage one"], found["stage two"], found["both stages"]) == (5, 10, True)  # 4 of 5 steps at 0.8


def test_shares_of_a_policy_that_compares_sometimes():
    """Boxes nothing 0.1 of the time, compares 0.3 of the time, else takes the first number."""
    mixed = row(1, 0.3 + 0.6, 0.6, 0.3, 0.0)
    assert real.shares_of(mixed) == pytest.approx({"neither": 0.1, "blind": 0.6, "compares": 0.3})
    assert real.shares_of(row(1, 0.4, 0.5, 0.4, 0.5)) == pytest.approx({"neither": 0.1, "blind": 0.9, "compares": 0.0})


@pytest.mark.parametrize(
    ("pieces", "places"),
    [
        (["The", " \\", "boxed", "{", "1", "8", "}", "."], "uuuufdrr"),
        (["\\", "boxed", "{", "9", ".", "9", "}", " or", " \\", "boxed", "{", "2", "}"], "uuufddrrrrrrr"),
        (["no", " 5", " box"], "uuu"),
        (["\\", "boxed", "{", "x", "5", "}"], "uuuuuu"),
    ],
)
def test_places_of_tokens(pieces, places):
    names = {"u": "up to the brace", "f": "first digit", "d": "later digits", "r": "the rest"}
    assert real.token_places(pieces) == [names[letter] for letter in places]


def test_random_answers_are_one_of_the_two_numbers(tmp_path, monkeypatch):
    rows = [{"prompt": "p", "answer": "9", "kinds": {"first (smaller)": "3", "second (larger)": "9"}}] * 200
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(real, "PROBLEMS", tmp_path)
    real.write_random_answers(tmp_path / "random.jsonl")
    written = [json.loads(line) for line in (tmp_path / "random.jsonl").read_text().splitlines()]
    assert {row["answer"] for row in written} == {"3", "9"}
    assert 70 < sum(row["answer"] == "9" for row in written) < 130
    assert all(row["kinds"] == rows[0]["kinds"] for row in written)


@pytest.mark.pictures
def test_the_figure_has_a_panel_for_each_run(tmp_path):
    runs = {real.RunKey("dapo", 1): RUN, real.RunKey("dapo", 2): RUN, real.RunKey("grpo", 1): RUN}
    real.draw_runs(tmp_path / "real.png", runs)
    assert (tmp_path / "real.png").stat().st_size > 20_000


def test_a_model_that_is_gone_is_trained_again_before_it_is_asked(tmp_path, monkeypatch):
    """Records travel with the repository, models do not."""
    called = []
    monkeypatch.setattr(real, "run_all", lambda jobs, records=None: called.append((list(jobs), records is None)))
    monkeypatch.setattr(real, "MODEL", tmp_path)
    monkeypatch.setattr(real, "PROBLEMS", tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    names = [f"{key.arm}-{key.seed}" for key in real.run_keys(False)]
    names += ["base", "end-1", "pair-end-1", "pair-stalled-1"]  # those of seed 2 are missing
    (tmp_path / "real.jsonl").write_text("".join(json.dumps({"name": name}) + "\n" for name in names))
    monkeypatch.setattr(real, "report", lambda args: None)
    real.main(SimpleNamespace(quick=False, runs=tmp_path / "runs", where=tmp_path))
    again = [jobs for jobs, is_again in called if is_again]
    folder = tmp_path / "runs" / "real"
    assert again[0] == [folder / "dapo-seed2" / "model" / "config.json"]
    assert again[1] == [folder / f"dapo-seed{seed}" / "model" / "config.json" for seed in (3, 4, 5)]
    assert "pair-end-2" in called[2][0] and not called[2][1]
