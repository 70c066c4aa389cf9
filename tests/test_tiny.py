"""The tiny world: generated texts are right, the files are disjoint, the base loads as any model would."""

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dapo import LEAPS, is_correct, read_problems

TINY = Path(__file__).resolve().parent.parent / "tiny"
sys.path.insert(0, str(TINY))
import make_tiny  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY / "base")


def test_every_generated_text_is_right_and_its_leaps_can_be_read_back():
    rng = random.Random(0)
    for _ in range(500):
        problem = make_tiny.draw_problem(rng)
        leaps = make_tiny.draw_solution(rng, *problem, 0.3, 0.4)
        text, value = "".join(leaps), str(problem[0])
        for step in leaps[:-1]:
            left, right = step.rstrip(";").split("=")
            head, operations = re.match(r"(\d+)(.*)", left).groups()
            assert head == value and make_tiny.answer_of(int(head), re.findall(r"[-+*]\d", operations)) == int(right)
            value = right
        assert is_correct(text, str(make_tiny.answer_of(*problem)))
        folded = [len(re.findall(r"[-+*]", step)) for step in leaps[:-1]]
        one, two, jump = (len(re.findall(leap, text)) for leap in LEAPS.values())
        assert (one, two) == (folded.count(1), folded.count(2))
        assert sum(folded) == len(problem[1]) or jump or leaps[-1] == f"\\boxed{{{value}}}"


def test_arithmetic_against_python():
    assert make_tiny.answer_of(3, ["-9"]) == 94 and make_tiny.answer_of(50, ["*3", "+7"]) == 57
    assert make_tiny.prompt_of(44, ["+8", "*2"]) == "44+8*2?"


def test_problem_files_are_what_the_seed_makes(tokenizer):
    train, test = make_tiny.draw_problem_files(1, 8000, 500)
    for name, problems in (("train", train), ("test", test)):
        rows = read_problems(TINY / f"{name}.jsonl", tokenizer, 99)
        assert [(r["prompt"], r["answer"]) for r in rows] == [
            (make_tiny.prompt_of(*p), str(make_tiny.answer_of(*p))) for p in problems
        ]
        assert [tokenizer.decode(r["ids"]) for r in rows] == ["<|im_start|>" + r["prompt"] for r in rows]
    assert len({make_tiny.prompt_of(*p) for p in train + test}) == 8500


def test_tokenizer_has_one_token_a_character_and_a_chat_template(tokenizer):
    text = "44+8-3*2=98;\\boxed{98}?"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text) - len("\\boxed{") + 1 and tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id in tokenizer("x")["input_ids"]
    assert len(tokenizer) == 22 and tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["base", "rlvr"])
def test_shipped_models_are_small_and_load(name, tokenizer):
    folder = TINY / name
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen3" and model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer) == len(AutoTokenizer.from_pretrained(folder))


def test_the_base_is_a_good_subject(tokenizer):
    """What `make_tiny.py --report` prints, on 60 problems: one is reliable and rare, two is fair, a jump is a guess."""
    model = AutoModelForCausalLM.from_pretrained(TINY / "base")
    table = make_tiny.leap_table(model, tokenizer, make_tiny.draw_problem_files(1, 0, 60)[1], "cpu")
    assert table["right after one"][0] > 0.95 and 0.65 < table["right after two"][0] < 0.9
    assert table["right after jump"][0] < 0.12 and table["choose one"][0] < 0.07
    assert sum(table[f"choose {leap}"][0] for leap in ("one", "two", "jump")) == pytest.approx(1, abs=1e-6)


def test_make_tiny_runs_from_nothing_and_goes_on_after_an_interruption(tmp_path, capsys):
    """One hundred small steps of pre-training (which teach nothing), saved, then continued to the end."""
    flags = ["--n-train", "30", "--n-test", "4", "--batch-size", "2", "--until-two", "0"]
    flags += ["--settle-steps", "2", "--fork-steps", "2", "--out", str(tmp_path)]
    command = [str(TINY / "make_tiny.py"), *flags]
    before, sys.argv = sys.argv, command
    try:
        make_tiny.main()
    finally:
        sys.argv = before
    assert "right after two" in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base").config.vocab_size == 22
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 30
    assert json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0]).keys() == {"prompt", "answer"}
