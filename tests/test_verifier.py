"""The verifier, the reader of problem files, and what is read from a response's text (bug 23 of the list)."""

import json
import re
import sys
import time
import types
from fractions import Fraction

import numpy as np
import pytest

import dapo
from dapo import canonical, extract_answer, is_correct, read_problems

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
        ("12 cm", "12\\text{cm}"),
        ("50\\%", "50"),
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
        # mixed numbers, units and degrees are for --verifier math-verify
        ("1\\frac{1}{2}", "3/2"),
        ("1 1/2", "1.5"),
        ("12\\text{ cm}", "12"),
        ("12 \\mathrm{cm}^2", "12"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90"),
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


def test_canonical_never_takes_text_for_a_number():
    texts = [
        "",
        "x",
        "1 2 3",
        "1/2/3",
        "1.2.3",
        ".",
        "-",
        "/",
        "1/0",
        "\\frac{1}{x}",
        "nan",
        "inf",
        "1_000",
        "²",
        "1e9",
    ]
    for text in [*texts, "1,00", "1,2", "12,34", "1e999999999", "9" * 200]:
        assert isinstance(canonical(text), str), text
    for text, value in (
        ("1,000", 1000),
        ("-.5", Fraction(-1, 2)),
        ("\\frac12", Fraction(1, 2)),
        ("068", 68),
        ("+7.", 7),
    ):
        assert canonical(text) == value and isinstance(canonical(text), Fraction)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("63*2=26; 26-2=24 so 77-7=70 then 70+2=72 thus \\boxed{24,72}", (4, 0, 0)),
        ("63*2-2=24; 77-7=70 then 70+2=72 so \\boxed{24,72}", (2, 1, 0)),
        ("\\boxed{24,72}", (0, 0, 1)),
        ("63*2-2=24; \\boxed{24,72}", (0, 1, 1)),
        ("63*2-2+1=25; 77-7=70; \\boxed{25,70}", (1, 0, 1)),
        ("We get 3 + 4 = 7, so \\boxed{7}.", (0, 0, 0)),
        ("44+8=", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_leaps(text, counts):
    """How many steps of one, two and more operations; a box that does not repeat the last result counts as more."""
    assert tuple(len(re.findall(leap, text)) for leap in dapo.LEAPS.values()) == counts


class Characters:
    """As much of a tokenizer as the reader asks for: a token a character, no chat template."""

    eos_token_id, unk_token_id, chat_template = 1, 0, None

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(x) for x in text]}


GOOD = json.dumps({"prompt": "1+1?", "answer": "2"})


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "line 1"),
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
    with pytest.raises(SystemExit) as error:
        read_problems(path, Characters(), 99)
    message = error.value.code
    assert message.startswith(f"error: {path}, ") and says in message and "\n" not in message and len(message) < 300


def test_problem_files_keep_line_separators_inside_strings(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(
        json.dumps({"prompt": "a\u2028b\x0bc", "answer": "2"}, ensure_ascii=False).replace("\x0b", "\\u000b")
    )
    assert read_problems(path, Characters(), 99)[0]["prompt"] == "a\u2028b\x0bc"


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
    (r"first \boxed{7}, no: \boxed{2\pi}", r"\pi + \pi"),
]


@pytest.mark.parametrize(("text", "answer"), LATEX_PAIRS)
def test_math_verify_decides_where_exact_says_no(text, answer):
    pytest.importorskip("math_verify", reason="needs: pip install -r requirements-extras.txt")
    assert is_correct(text, answer, "math-verify") and not is_correct(text, answer)
    assert not is_correct(text, "17", "math-verify") and not is_correct("no box", "17", "math-verify")


@pytest.mark.parametrize("text", ["99**98**97", "9" * 900, "{" * 300, "\\frac" * 150, "x^" * 400, "\x00\ud800", "1/0"])
def test_math_verify_survives_hostile_text(text):
    pytest.importorskip("math_verify", reason="needs: pip install -r requirements-extras.txt")
    began = time.perf_counter()
    assert is_correct(rf"\boxed{{{text}}}", "12", "math-verify") is False
    assert time.perf_counter() - began < 12  # its own limits: 5 seconds to read, 5 to compare


def test_math_verify_is_not_asked_where_exact_says_yes(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # an import of it would fail
    assert is_correct(r"\boxed{4}", "4", "math-verify") and not is_correct("no box", "4", "math-verify")
    with pytest.raises(ImportError, match="math_verify"):
        is_correct(r"\boxed{5}", "4", "math-verify")


def test_a_run_uses_the_verifier_that_it_was_given(monkeypatch, tmp_path):
    package = types.ModuleType("math_verify")
    package.parse, package.verify = str, lambda gold, said: True
    monkeypatch.setitem(sys.modules, "math_verify", package)
    flags = "--steps 0 --eval-problems 4 --eval-samples 8 --max-response 128 --verifier math-verify --device cpu"
    dapo.main(dapo.parse_args([*flags.split(), "--out", str(tmp_path / "run")]))
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["test/avg@8"] > 0.8  # every box counts as right
