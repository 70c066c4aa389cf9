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
from delta_logp import token_kinds

TINY = Path(__file__).resolve().parent.parent / "tiny"
sys.path.insert(0, str(TINY))
import make_tiny  # noqa: E402

HABIT = dict.fromkeys(make_tiny.FORK, (0.3, 0.6)) | {"half": 0.9, "last": (0.9, 0.0)}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY / "base")


def python_value(chain):
    """A chain worked left to right by Python itself."""
    value, *operations = re.findall(r"[-+*]?\d+", chain)
    for operation in operations:
        value = eval(f"({value}) {operation[0]} {operation[1:]}")
    return int(value) % 100


def test_every_generated_text_is_right_and_its_leaps_can_be_read_back():
    rng = random.Random(0)
    for problem in make_tiny.draw_problems(rng, 500, make_tiny.LENGTHS, set()):
        prompt, (tokens, _) = make_tiny.prompt_of(problem), make_tiny.draw_solution(rng, problem, HABIT)
        text = "".join(tokens)
        assert is_correct(text, ",".join(str(python_value(chain)) for chain in prompt[:-1].split(",")))
        steps = re.findall(r"(\d+(?:[-+*]\d)+)=(\d+)(; | so | then | thus )", text)
        assert all(python_value(left) == int(right) for left, right, _ in steps)
        folded = [len(re.findall(r"[-+*]", left)) for left, *_ in steps]
        one, two, jump = (len(re.findall(leap, text)) for leap in LEAPS.values())
        assert (one, two) == (folded.count(1), folded.count(2)) and jump in (0, 1)
        if not jump:  # worked to the end, or the last number happens to be right
            assert sum(folded) == sum(len(operations) for _, operations in problem) or len(steps) > 0
        kinds = token_kinds(prompt, [*tokens, "<|im_end|>"])
        assert list(kinds).count("connective") == len(steps) and kinds[0] == "fork"


def test_problem_files_are_what_the_seed_makes(tokenizer):
    rng, seen = random.Random(1), set()
    test = make_tiny.draw_problems(rng, 500, make_tiny.LENGTHS, seen)
    long = make_tiny.draw_problems(rng, 500, (8,), seen)
    train = make_tiny.draw_problems(rng, 8000, make_tiny.LENGTHS, set(seen))
    for name, problems in (("train", train), ("test", test), ("long", long)):
        rows = read_problems(TINY / f"{name}.jsonl", tokenizer, 99)
        assert [(r["prompt"], r["answer"]) for r in rows] == [
            (make_tiny.prompt_of(p), make_tiny.answer_of(p)) for p in problems
        ]
        assert [tokenizer.decode(r["ids"]) for r in rows] == ["<|im_start|>" + r["prompt"] for r in rows]
    assert len({make_tiny.prompt_of(p) for p in train + test + long}) == 9000


def test_tokenizer_has_one_token_a_character_and_connective_and_a_chat_template(tokenizer):
    text = "63*2-2=24; 77-7=70 then 70+2=72 so \\boxed{24,72}"
    ids = tokenizer(text)["input_ids"]
    pieces = re.findall(r"\\boxed\{|; | [a-z]+ |.", text)
    assert len(ids) == len(pieces) and tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id in tokenizer("x")["input_ids"]
    assert len(tokenizer) == 26 and tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["base", "rlvr"])
def test_shipped_models_are_small_and_load(name, tokenizer):
    folder = TINY / name
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen3" and model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer) == len(AutoTokenizer.from_pretrained(folder))


def test_the_base_is_a_good_subject():
    """What `make_tiny.py --report` prints, on 60 problems: one is reliable and rare, two is fair, a jump is a guess."""
    model = AutoModelForCausalLM.from_pretrained(TINY / "base")
    problems = make_tiny.draw_problems(random.Random(1), 60, make_tiny.LENGTHS, set())
    table = {name: mean for name, (mean, _) in make_tiny.leap_table(model, problems, "cpu").items()}
    assert table["right after one"] > 0.95 and 0.75 < table["right after two"] < 0.92
    assert table["right after two at ?*"] < 0.45 and table["right after jump"] < 0.01
    assert all(table[name] == pytest.approx(aim, rel=0.5) for name, aim in make_tiny.AIMS.items())


def test_make_tiny_runs_from_nothing_and_goes_on_after_an_interruption(tmp_path, capsys, monkeypatch):
    """Fifty small steps a phase (which teach nothing), one phase of them after a restart."""
    flags = ["--n-train", "30", "--n-test", "4", "--batch-size", "2", "--until-two", "0"]
    flags += ["--settle-steps", "2", "--fork-steps", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["make_tiny.py", *flags])
    monkeypatch.setattr(make_tiny, "report", lambda *_: None)
    real, left = make_tiny.leap_table, [2]

    def stop(*args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_tiny, "leap_table", stop)
        make_tiny.main()
    make_tiny.main()
    assert "going on from step 100" in capsys.readouterr().out and not (tmp_path / "base.partial.pt").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "base").config.vocab_size == 26
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 30
    assert json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0]).keys() == {"prompt", "answer"}
