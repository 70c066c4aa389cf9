"""The verifier, the reader of problem files, and what is read from a response's text (bug 23 of the list)."""

import importlib.machinery
import json
import sys
import time
import types

import numpy as np
import pytest

import dapo
from dapo import (
    InputError,
    as_number,
    check_answers,
    count_leaps,
    extract_answer,
    is_correct,
    problem_at,
    read_problems,
    verifier_problems,
)

BOX = "so \\boxed{%s}."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no box, but 42", None),
        ("", None),
        ("\\boxed{}", ""),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("\\boxed {\\frac{1}{2}} end", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\text{a}} }", "\\text{a}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("{\\boxed{x_{1}}}", "x_{1}"),
        ("boxed{3}", None),
    ],
)
def test_extract_answer(text, found):
    assert extract_answer(text) == found


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("1/2", "0.5"),
        ("\\frac12", "0.5"),
        ("\\frac{1}{2}", "\\dfrac{2}{4}"),
        ("\\tfrac 1 2", "1/2"),
        ("-\\frac{1}{2}", "-0.5"),
        ("\\frac{-1}{2}", "-.5"),
        ("1\\frac{1}{2}", "3/2"),
        ("1 1/2", "1.5"),
        ("1,000", "1000"),
        ("1{,}234{,}567.50", "1234567.5"),
        ("1\\,000", "1000"),
        ("068", "68"),
        ("+7", "7"),
        ("-0", "0"),
        ("5.", "5"),
        ("\u22123", "-3"),
        ("$42$", "42"),
        ("\\$18", "18"),
        ("12\\text{ cm}", "12"),
        ("12 \\mathrm{cm}^2", "12"),
        ("12 cm", "12\\text{cm}"),
        ("50\\%", "50"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90"),
        ("\\text{yes}", "yes"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("\\text{(B)}", "(B)"),
        ("x^2 + 1", "x^2+1"),
        ("\\dfrac{x}{2}", "\\frac{x}{2}"),
        ("99**98**97", "99**98**97"),
    ],
)
def test_equal_answers(said, answer):
    assert is_correct(BOX % said, answer) and is_correct(BOX % answer, said)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("", "12"),
        (" ", "12"),
        ("512", "12"),
        ("12", "512"),
        ("1.2", "12"),
        ("1,2", "12"),
        ("1 2", "12"),
        ("12, 13", "12"),
        ("11/2", "1 1/2"),
        ("11/2", "1\\frac{1}{2}"),
        ("12\\text{ cm}", "12\\text{ m}"),
        ("2m", "2"),
        ("2 pi", "2"),
        ("2x", "2"),
        ("0.333", "1/3"),
        ("1/0", "0"),
        ("1/0", "2/0"),
        ("50%", "0.5"),
        ("x+\\frac{1}{2}", "\\frac{x+1}{2}"),
        ("1e3", "1000"),
        ("--3", "3"),
        ("A", "B"),
        ("(1,2)", "(1,3)"),
        ("{12", "12"),
    ],
)
def test_different_answers(said, answer):
    assert not is_correct(BOX % said, answer)


def test_the_last_box_counts_and_nothing_outside_it():
    assert is_correct("\\boxed{3} no, \\boxed{4}", "4") and not is_correct("\\boxed{4} no, \\boxed{3}", "4")
    assert not is_correct("the answer is 4", "4") and not is_correct("", "4")


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{99**98**97}",
        "\\boxed{" + "9" * 100_000 + "}",
        "\\boxed{" * 50_000,
        "{" * 500_000 + "}" * 500_000,
        "\\boxed" + " " * 200_000 + "{1}",
        "\\boxed{" + "1," * 400 + "}",
        "\\boxed{" + "1" * 100 + "/" + "3" * 100 + "}",
        "\\boxed{" + "\\text{" * 150 + "}" * 150 + "}",
        "\\boxed{__import__('os').system('sleep 9')}",
        "\\boxed{\x00\ud800}",
    ],
)
def test_23_hostile_text_is_wrong_and_quick(text):
    began = time.perf_counter()
    assert not is_correct(text, "12")
    assert time.perf_counter() - began < 0.1


def test_as_number_never_takes_text_for_a_number():
    for text in ("", "x", "1 2 3", "1/2/3", "1.2.3", ".", "-", "/", "1,00", "\\frac{1}{x}", "nan", "inf", "1_000", "²"):
        assert as_number(text) is None


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("44+8=52;52-3=49;49*2=98;\\boxed{98}", (3, 0, 0)),
        ("44+8-3=49;49*2=98;\\boxed{98}", (1, 1, 0)),
        ("\\boxed{98}", (0, 0, 1)),
        ("44+8=52;\\boxed{98}", (1, 0, 1)),
        ("44+8-3*2=98;\\boxed{98}", (0, 0, 1)),
        ("We get 3 + 4 = 7, so \\boxed{7}.", (0, 0, 0)),
        ("44+8=", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_count_leaps(text, counts):
    assert count_leaps(text) == counts


def test_problem_order_is_a_new_permutation_each_epoch():
    epochs = [[problem_at(i, 10, 3) for i in range(e * 10, e * 10 + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len(set(map(tuple, epochs))) == 3
    assert problem_at(25, 10, 3) == epochs[2][5] and [problem_at(i, 10, 4) for i in range(10)] != epochs[0]


GOOD = json.dumps({"prompt": "1+1?", "answer": "2"})


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "is empty"),
        ([GOOD, "{not json"], "line 2"),
        ([GOOD, GOOD, '{"prompt": "1+1?"}'], "line 3"),
        (['{"prompt": "1+1?", "answer": ""}'], "line 1"),
        (['{"prompt": "1+1?", "answer": 2}'], "line 1"),
        (["[1, 2]"], "line 1"),
        (["null"], "line 1"),
        ([GOOD, "", GOOD], "line 2"),
        (["[" * 100_000], "line 1"),
    ],
)
def test_bad_problem_files_name_file_and_line(tmp_path, lines, says):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(InputError) as error:
        read_problems(path)
    assert says in str(error.value) and "problems.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_problem_files_keep_line_separators_inside_strings(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(
        json.dumps({"prompt": "a\u2028b\x0bc", "answer": "2"}, ensure_ascii=False).replace("\x0b", "\\u000b")
    )
    assert read_problems(path)[0]["prompt"] == "a\u2028b\x0bc"


def test_verifier_never_raises_on_random_text():
    rng = np.random.default_rng(0)
    pieces = [
        "\\boxed{",
        "{",
        "}",
        "\\frac",
        "\\text{",
        "1",
        "0",
        ",",
        ".",
        "/",
        "-",
        " ",
        "%",
        "$",
        "x",
        "^",
        "\\",
        "cm",
    ]
    for _ in range(3000):
        text = "".join(rng.choice(pieces, size=rng.integers(1, 25)))
        is_correct("\\boxed{" + text + "}", "".join(rng.choice(pieces, size=3)))
        is_correct(text, "1")


# -------------------------------------------------------------------------------------------------------- math-verify
LATEX_PAIRS = [  # equal as mathematics, not as strings
    (r"\boxed{x^2 + 2x + 1}", r"(x+1)^2"),
    (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}"),
    (r"\boxed{(1, 2)}", r"(1,\,2)"),
    (r"first \boxed{7}, no: \boxed{2\pi}", r"\pi + \pi"),
]


@pytest.mark.parametrize(("text", "answer"), LATEX_PAIRS)
def test_math_verify_decides_where_exact_says_no(text, answer):
    pytest.importorskip("math_verify", reason="needs: pip install -r requirements-extras.txt")
    assert check_answers([text], [answer], "math-verify") == ["right"]
    assert check_answers([text, "no box"], ["17", "17"], "math-verify") == ["wrong", "wrong"]


def test_math_verify_is_not_asked_where_exact_says_yes(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # an import of it would fail
    assert check_answers([r"\boxed{4}"], ["4"]) == ["right"] and check_answers([r"\boxed{5}"], ["4"]) == ["wrong"]


def fake_math_verify(monkeypatch, parse):
    class TimeoutException(BaseException):  # as in the package
        pass

    package, errors = types.ModuleType("math_verify"), types.ModuleType("math_verify.errors")
    package.parse = lambda text, **how: parse(text, TimeoutException)
    package.LatexExtractionConfig, package.verify = object, lambda gold, said, raise_on_error: gold == said
    errors.TimeoutException, package.__spec__ = TimeoutException, importlib.machinery.ModuleSpec("math_verify", None)
    monkeypatch.setitem(sys.modules, "math_verify", package)
    monkeypatch.setitem(sys.modules, "math_verify.errors", errors)


def test_failures_and_time_outs_are_wrong_and_counted(monkeypatch):
    def parse(text, timeout):
        if "late" in text:
            raise timeout("5 seconds are over")
        if "broken" in text:
            raise RecursionError("as sympy does")
        return [] if "unread" in text else [text.lower()]

    fake_math_verify(monkeypatch, parse)
    texts = [rf"\boxed{{{x}}}" for x in ("late", "broken", "unread", "A", "B", "a")] + ["no box"]
    verdicts = check_answers(texts, ["a"] * 7, "math-verify")
    assert verdicts == ["timed out", "failed", "failed", "right", "wrong", "right", "wrong"]
    assert verifier_problems(verdicts) == {"verifier_failed": 2 / 7, "verifier_timed_out": 1 / 7}
    assert verifier_problems(["right", "wrong"]) == {}


def test_metrics_of_a_run_count_them(monkeypatch, tmp_path):
    fake_math_verify(monkeypatch, lambda text, timeout: [] if "7" in text else [text])
    flags = "--steps 1 --prompts-per-step 4 --mini-batch 2 --gen-batch 4 --max-gen-batches 1 --eval-problems 4"
    flags += f" --eval-samples 2 --max-response 32 --overlong-buffer 0 --verifier math-verify --out {tmp_path}"
    assert dapo.main(dapo.parse_args(dapo.Args, "", flags.split())) == 0
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 0 < rows[1]["verifier_failed"] < 1 and "verifier_timed_out" not in rows[1]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(dapo.InputError, match="pip install math-verify"):
        dapo.require_verifier("math-verify")
    dapo.require_verifier("exact")
