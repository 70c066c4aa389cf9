"""The verifier, the reader of problem files, and what is read from the text of a response."""

import json
import random
import sys
import time
import types
from fractions import Fraction

import numpy as np
import pytest

import dapo
import grpo_n
from dapo import extract_answer, is_correct, normalize_answer, read_actions, read_problems

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


EQUAL = [
    # fractions and decimals
    ("1/2", "0.5"),
    ("\\frac12", "0.5"),
    ("\\frac{1}{2}", "\\dfrac{2}{4}"),
    ("\\tfrac 1 2", "1/2"),
    ("\\frac{ 1 }{ 2 }", "0.5"),
    ("\\frac{12}3", "4"),
    ("\\frac1{23}", "1/23"),
    ("-\\frac{1}{2}", "-0.5"),
    ("\\frac{-1}{2}", "-.5"),
    ("1 / 2", "1/2"),
    ("3.50", "7/2"),
    ("5.", "5"),
    # signs
    ("068", "68"),
    ("+7", "7"),
    ("-0", "0"),
    ("- 3", "-3"),
    ("\u22123", "-3"),
    # grouped digits
    ("1,000", "1000"),
    ("1{,}234{,}567.50", "1234567.5"),
    ("10,\\!000", "10000"),
    ("10{,}000", "10000"),
    ("1\\,000", "1000"),
    ("1\\ 000", "1000"),
    # dollars and percent at the ends
    ("$42$", "42"),
    ("\\$18", "18"),
    ("\\$1,000", "1000"),
    ("$\\frac{1}{2}$", ".5"),
    ("50\\%", "50"),
    # units
    ("48", "48^\\circ"),
    ("90^{\\circ}", "90"),
    ("48°", "48"),
    ("180\\degree", "180"),
    ("20^\\circ\\text{C}", "20"),
    ("100", "100\\text{ square units}"),
    ("12\\text{ cm}", "12"),
    ("12\\text{ cm.}", "12"),
    ("12 \\mathrm{cm}^2", "12"),
    ("12\\mbox{ inches}^2", "12"),
    ("5 \\text{ m/s}", "5"),
    ("5\\text{ m}^3/\\text{s}", "5"),
    ("\\frac{1}{2}\\text{ mile}", "0.5"),
    ("1,000,000\\text{ people}", "1000000"),
    # texts
    ("\\text{yes}", "yes"),
    ("\\text{12}", "12"),
    ("\\left( 1, 2 \\right)", "(1,2)"),
    ("\\text{(B)}", "(B)"),
    ("x^2 + 1", "x^2+1"),
    ("\\dfrac{x}{2}", "\\frac{x}{2}"),
    ("2\\ 1/2", "2 1/2"),
    ("99**98**97", "99**98**97"),
    ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    ("\\begin{pmatrix}1\\\\ 2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
]
DIFFERENT = [
    ("", "12"),
    (" ", "12"),
    ("512", "12"),
    ("12", "512"),
    ("1.2", "12"),
    ("0.333", "1/3"),
    ("1/0", "0"),
    ("1/0", "2/0"),
    ("50%", "0.5"),
    ("--3", "3"),
    ("10^2", "10"),
    ("{12", "12"),
    # lists, and commas that group nothing
    ("1,2", "12"),
    ("1 2", "12"),
    ("12, 13", "12"),
    ("1, 200", "1200"),
    ("1,\\ 200", "1200"),
    ("1 200", "1200"),
    ("0,500", "500"),
    ("12,34", "1234"),
    ("1,0000", "10000"),
    ("1000,000", "1000000"),
    ("1.234,567", "1234567"),
    ("1.234,567", "1.234567"),
    ("1.000.000", "1000000"),
    ("1,000\\,000", "1000000"),
    ("2,100/3", "700"),
    ("2, 100/3", "2100/3"),
    ("1. 5", "1.5"),
    # spaces and signs inside
    ("2\\ 1/2", "21/2"),
    ("1\\,2", "12"),
    ("1\\!2", "12"),
    ("1~2", "12"),
    ("2\\%5", "25"),
    ("2$5", "25"),
    ("1\\text{2}", "12"),
    # fractions without braces: TeX takes one digit each
    ("\\frac123", "1/23"),
    ("\\frac123", "12/3"),
    ("\\frac1234", "12/34"),
    # what is no unit
    ("5\\text{ million}", "5"),
    ("2\\text{ or }3", "2"),
    ("2\\text{ or more}", "2"),
    ("3\\mathrm{i}", "3"),
    ("101\\text{ (base 2)}", "101"),
    ("2x", "2"),
    ("2 pi", "2"),
    # left to --verifier math-verify
    ("11/2", "1 1/2"),
    ("11/2", "1\\frac{1}{2}"),
    ("1\\frac12", "3/2"),
    ("1 1/2", "1.5"),
    ("1e3", "1000"),
    ("x=5", "5"),
    ("x+\\frac{1}{2}", "\\frac{x+1}{2}"),
    ("A", "B"),
    ("(1,2)", "(1,3)"),
]


@pytest.mark.parametrize(("said", "answer"), EQUAL)
def test_equal_answers(said, answer):
    assert is_correct(BOX % said, answer) and is_correct(BOX % answer, said)


@pytest.mark.parametrize(("said", "answer"), DIFFERENT)
def test_different_answers(said, answer):
    assert not is_correct(BOX % said, answer)


def spelled(rng, number):
    """A random spelling of an integer: grouped, decimal or as a fraction, with a unit, a sign or dollars."""
    size = abs(number)
    factor = rng.randrange(2, 9)
    command = rng.choice(["\\frac", "\\dfrac", "\\tfrac"])
    text = rng.choice([
        str(size),
        f"{size}.{'0' * rng.randrange(3)}",
        f"{size * factor}/{factor}",
        f"{command}{{{size * factor}}}{{{factor}}}",
        f"{size:,}".replace(",", rng.choice([",", "{,}", ",\\!", "\\,", "\\;", "\\ "])),
    ])  # fmt: skip
    units = ["", "\\%", "^\\circ", "^{\\circ}", "\\text{ cm}", "\\mbox{ inches}^2", "\\,\\mathrm{kg}", "\\text{ m}^{3}"]
    sign = "-" if number < 0 else rng.choice(["", "+"])
    return rng.choice(["%s", "$%s$", " %s ", "%s.", "\\,%s"]) % (sign + text + rng.choice(units))


def test_spellings_of_one_number_agree():
    rng = random.Random(0)
    for _ in range(20_000):
        number = rng.randrange(10 ** rng.randrange(1, 9)) * rng.choice([1, -1])
        text = spelled(rng, number)
        assert normalize_answer(text) == number, text


def test_no_punctuation_joins_two_numbers():
    """A wrong number must not become a right one: only groups of three digits, well separated, are one number."""
    rng = random.Random(0)
    between = [", ", "; ", ":", "'", "_", " ", "\\quad ", ",,", ". ", "\\%", "$", "^", "\\\\", "~", ",\\ ", "{}", "&"]
    between += ["\\text{ and }", "\\text{}", "\\, \\,", "%", "\\$"]
    ends = ["0", "5", "00", "000", "500", "1234", "12/3", "2.5", "\\frac12", "100/3"]
    for _ in range(20_000):
        first = rng.choice(["", "-"]) + rng.choice(["0", "1", "12", "123", "1234", "05"])
        text = first + rng.choice(between) + rng.choice(ends)
        assert isinstance(normalize_answer(text), str), text
    for _ in range(20_000):
        first = str(rng.randrange(10 ** rng.randrange(1, 6)))
        last = "".join(rng.choice("0123456789") for _ in range(rng.randrange(1, 6)))
        found = normalize_answer(first + rng.choice([",", "{,}", ",\\!", "\\,", "\\ "]) + last)
        if len(first) <= 3 and first != "0" and len(last) == 3:
            assert found == int(first + last)
        else:
            assert isinstance(found, str)


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
        "\\boxed{1" + " ^\\circ" * 120 + "x}",
        "\\boxed{1" + "\\text{a}" * 120 + "x}",
        "\\boxed{" + "\\, " * 300 + "}",
        "\\boxed{__import__('os').system('sleep 9')}",
        "\\boxed{\x00\ud800}",
    ],
)
def test_hostile_text_is_wrong_and_quick(text):
    began = time.perf_counter()
    assert not is_correct(text, "12")
    assert time.perf_counter() - began < 0.1


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


def test_only_plain_numbers_become_numbers():
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
        assert isinstance(normalize_answer(text), str), text
    numbers = {"1,000": 1000, "-.5": Fraction(-1, 2), "\\frac12": Fraction(1, 2), "068": 68, "+7.": 7}
    for text, value in numbers.items():
        assert normalize_answer(text) == value and isinstance(normalize_answer(text), Fraction)


PROMPT = "63*2-2,77-7+2-1?"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("63*2=26; 26-2=24 so 77-7=70 then 70+2=72 thus 72-1=71; \\boxed{24,71}", "one one one one one"),
        ("63*2-2=24; 77-7=70 then 70+2-1=71 so \\boxed{24,71}", "two one two"),
        ("\\boxed{24,71}", "guess"),
        ("63*2-2=24; \\boxed{24,71}", "two guess"),
        ("63*2-2=24; 77-7+2-1=71; \\boxed{24,71}", "two guess"),
        ("We get 3 + 4 = 7, so \\boxed{7}.", ""),
        ("44+8=", ""),
        ("", ""),
    ],
)
def test_actions_of_a_tiny_world_response(text, names):
    full = {"one": "one_at_a_time", "two": "two_at_once", "guess": "guess"}
    assert [action.name for action in read_actions(PROMPT, text)] == [full[name] for name in names.split()]
    assert read_actions("What is 44+8-3?", text) == []


def test_positions_of_actions():
    text = "63*2-2=24; 77-7=70 so \\boxed{24,71}"
    two, one, guess = read_actions(PROMPT, text)
    assert two.choices == [0, 4] and two.connective == text.index("; ") and text[slice(*two.result)] == "24"
    assert one.choices == [11, 15] and one.connective == text.index(" so ") and text[slice(*one.result)] == "70"
    assert guess.choices == [text.index("\\boxed")] and text[slice(*guess.result)] == "24,71"


@pytest.mark.parametrize("script", [dapo, grpo_n], ids=["dapo", "grpo_n"])
def test_shares_of_kinds_are_among_the_problems_that_have_them(script):
    smaller_first = {"prompt": "4 or 14?", "kinds": {"first (smaller)": "4", "second (larger)": "14"}}
    larger_first = {"prompt": "9 or 5?", "kinds": {"first (larger)": "9", "second (smaller)": "5"}}
    responses = []
    for problem, text in (
        (smaller_first, "\\boxed{4}"),
        (smaller_first, "\\boxed{14}"),
        (smaller_first, "14.0: \\boxed{14.0}"),  # the same number
        (smaller_first, "4 or 14"),  # no box
        (larger_first, "\\boxed{4} is out, \\boxed{5}"),  # the last box counts
        ({"prompt": "1+1?"}, "\\boxed{2}"),  # no kinds
    ):
        responses.append(types.SimpleNamespace(problem=problem, text=text))
    assert script.count_kinds(responses) == {
        "kind/first (smaller)": 0.25,
        "kind/second (larger)": 0.5,
        "kind/first (larger)": 0.0,
        "kind/second (smaller)": 1.0,
    }
    assert script.count_kinds(responses[-1:]) == {}


# -------------------------------------------------------------------------------------------------------- problem files
class Characters:
    """As much of a tokenizer as the reader asks for: a token a character, no chat template."""

    eos_token_id = 1
    unk_token_id = 0
    chat_template = None

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(x) for x in text]}


GOOD = json.dumps({"prompt": "1+1?", "answer": "2"})


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "line 1: want {"),
        ([GOOD, "{not json"], "line 2: want {"),
        ([GOOD, GOOD, '{"prompt": "1+1?"}'], 'line 3: "answer" is missing'),
        (['{"answer": "2"}'], 'line 1: "prompt" is missing'),
        (['{"prompt": "1+1?", "answer": ""}'], 'line 1: "answer" is empty'),
        (['{"prompt": " ", "answer": "2"}'], 'line 1: "prompt" is empty'),
        (['{"prompt": 2, "answer": "2"}'], 'line 1: "prompt" must be a text'),
        (['{"prompt": "1+1?", "answer": true}'], 'line 1: "answer" must be a text'),
        (['{"prompt": "1+1?", "answer": ["2"]}'], 'line 1: "answer" must be a text'),
        (['{"prompt": "1+1?", "answer": "2", "system": 3}'], 'line 1: "system" must be a text'),
        ([GOOD, '{"prompt": "1+1?", "answer": "2", "kinds": ["2"]}'], 'line 2: "kinds" must be {"a name": "an answer'),
        (['{"prompt": "1+1?", "answer": "2", "kinds": {"even": 2}}'], 'line 1: "kinds" must be {"a name": "an answer'),
        (["[1, 2]"], "line 1: want {"),
        (["null"], "line 1: want {"),
        ([GOOD, "", GOOD], "line 2: want {"),
        (["[" * 100_000], "line 1: want {"),
    ],
)
def test_bad_problem_files_name_file_line_key_and_reason(tmp_path, lines, says):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(ValueError) as error:
        read_problems(path, Characters(), 99, 9)
    message = str(error.value)
    assert message.startswith(f"{path}, {says}") and "\n" not in message and len(message) < 300


def test_problem_files_as_people_write_them(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + b'{"prompt": "1+1?", "answer": 2}\r\n{"prompt": "a\\u000bb", "answer": 2.5}\r\n\r\n'
    )
    rows = read_problems(path, Characters(), 99, 9)
    assert [row["answer"] for row in rows] == ["2", "2.5"] and rows[1]["prompt"] == "a\x0bb"
    path.write_text(json.dumps({"prompt": "a\u2028b", "answer": "2"}, ensure_ascii=False))
    assert read_problems(path, Characters(), 99, 9)[0]["prompt"] == "a\u2028b"
    path.write_bytes(b'{"prompt": "\xff", "answer": "2"}')
    with pytest.raises(ValueError, match='line 1: "prompt" is not UTF-8'):
        read_problems(path, Characters(), 99, 9)


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path, capsys):
    path = tmp_path / "problems.jsonl"
    path.write_text(f"{GOOD}\n" + json.dumps({"prompt": "1" * 50, "answer": "2"}))
    assert len(read_problems(path, Characters(), 60, 20)) == 1
    assert "left out 1 of 2 prompts" in capsys.readouterr().out
    assert len(read_problems(path, Characters(), 70, 20)) == 2 and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"no prompt fits .* context of 22 less --max-response 20"):
        read_problems(path, Characters(), 22, 20)
    with pytest.raises(ValueError, match="--max-response 4096 leaves no room for a prompt: the context is 256 tokens"):
        read_problems(path, Characters(), 256, 4096)


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
    package.parse = str
    package.verify = lambda gold, said: True
    monkeypatch.setitem(sys.modules, "math_verify", package)
    flags = "--steps 0 --eval-problems 4 --eval-samples 8 --max-response 128 --verifier math-verify --device cpu"
    dapo.main(dapo.parse_args([*flags.split(), "--out", str(tmp_path / "run")]))
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["test/accuracy"] > 0.8  # every box counts as right
