"""data/prepare.py on rows in each data set's own format, made here; and what the scripts do with what it writes."""

import importlib.util
import json
import subprocess
import sys
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
