"""The verifier, the reader of problem files, and what is read from a response's text (bug 23 of the list)."""

import json
import time

import numpy as np
import pytest

from dapo import InputError, as_number, count_leaps, extract_answer, is_correct, problem_at, read_problems

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
