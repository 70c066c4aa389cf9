"""The tiny world: generated texts are right, the files are disjoint, the base loads as any model would."""

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dapo import is_correct, read_actions, read_problems

TINY = Path(__file__).resolve().parent.parent / "tiny"
sys.path.insert(0, str(TINY))
import make_tiny  # noqa: E402

ACTIONS = {"?*": (0.3, 0.6), "+?": (0.2, 0.7), "-?": (0.5, 0.4), "*?": (0.6, 0.3), "last": (0.9, 0.0)}
GO_ON = 0.8


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY / "base")


def python_value(chain):
    """A chain worked left to right by Python itself."""
    value, *operations = re.findall(r"[-+*]?\d+", chain)
    for operation in operations:
        value = eval(f"({value}) {operation[0]} {operation[1:]}")
    return int(value) % 100


def test_every_generated_text_is_right_and_its_actions_can_be_read_back():
    rng = random.Random(0)
    for problem in make_tiny.draw_problems(rng, 500, make_tiny.LENGTHS, set()):
        prompt = make_tiny.prompt_of(problem)
        tokens, hard = make_tiny.draw_solution(rng, problem, ACTIONS, GO_ON)
        text = "".join(tokens)
        assert is_correct(text, ",".join(str(python_value(chain)) for chain in prompt[:-1].split(",")))

        steps = re.findall(r"(\d+(?:[-+*]\d)+)=(\d+)(?:; | so | then | thus )", text)
        assert all(python_value(left) == int(result) for left, result in steps)
        n_operations = [len(re.findall(r"[-+*]", left)) for left, _ in steps]
        names = [{1: "one_at_a_time", 2: "two_at_once"}[n] for n in n_operations]
        if sum(n_operations) < sum(len(operations) for _, operations in problem):
            names.append("guess")
        actions = read_actions(prompt, text)
        assert [action.name for action in actions] == names
        assert [text[slice(*action.result)] for action in actions][: len(steps)] == [result for _, result in steps]

        hidden = []
        for left, result in steps:
            if re.fullmatch(r"\d+[-+*]\d\*\d", left):
                hidden.extend(result)
        assert [tokens[i] for i in hard] == hidden


def test_texts_take_actions_as_often_as_asked():
    """In chains of two operations, so that the first choice of each chain is known from the prompt."""
    rng = random.Random(0)
    counts = {kind: {"one_at_a_time": 0, "two_at_once": 0, "guess": 0} for kind in ("?*", "+?", "-?", "*?")}
    went_on = []  # at the start of the second chain, to which GO_ON applies
    finished = []  # at its end, to which ACTIONS["last"] applies again
    for _ in range(8000):
        problem = make_tiny.draw_problem(rng, (2,))
        tokens, _ = make_tiny.draw_solution(rng, problem, ACTIONS, GO_ON)
        actions = read_actions(make_tiny.prompt_of(problem), "".join(tokens))
        (_, operations), _ = problem
        kind = "?*" if operations[1][0] == "*" else operations[0][0] + "?"
        counts[kind][actions[0].name] += 1
        if actions[0].name == "two_at_once":
            went_on.append(actions[1].name != "guess")
            if actions[1].name == "one_at_a_time":
                finished.append(actions[2].name != "guess")
    for kind, count in counts.items():
        n = sum(count.values())
        assert n > 500
        assert count["one_at_a_time"] / n == pytest.approx(ACTIONS[kind][0], abs=0.05)
        assert count["two_at_once"] / n == pytest.approx(ACTIONS[kind][1], abs=0.05)
    assert sum(went_on) / len(went_on) == pytest.approx(GO_ON, abs=0.03)
    assert sum(finished) / len(finished) == pytest.approx(ACTIONS["last"][0], abs=0.03)


def test_problem_files_are_what_the_seed_makes(tokenizer):
    rng = random.Random(1)
    seen = set()
    test = make_tiny.draw_problems(rng, 500, make_tiny.LENGTHS, seen)
    long = make_tiny.draw_problems(rng, 500, (8,), seen)
    train = make_tiny.draw_problems(rng, 8000, make_tiny.LENGTHS, set(seen))
    for name, problems in (("train", train), ("test", test), ("long", long)):
        rows = read_problems(TINY / f"{name}.jsonl", tokenizer, 256, 99)
        expected = [(make_tiny.prompt_of(problem), make_tiny.answer_of(problem)) for problem in problems]
        assert [(row["prompt"], row["answer"]) for row in rows] == expected
        assert [tokenizer.decode(row["ids"]) for row in rows] == ["<|im_start|>" + row["prompt"] for row in rows]
    assert len({make_tiny.prompt_of(problem) for problem in train + test + long}) == 9000


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
    """What `make_tiny.py --report` prints, on 60 problems: one at a time is reliable and rare, two at once is fair."""
    model = AutoModelForCausalLM.from_pretrained(TINY / "base")
    problems = make_tiny.draw_problems(random.Random(1), 60, make_tiny.LENGTHS, set())
    table = {label: mean for label, (mean, _) in make_tiny.action_table(model, problems, "cpu").items()}
    assert table["right after one at a time"] > 0.95
    assert 0.75 < table["right after two at once where the second operation is + or -"] < 0.92
    assert table["right after two at once where the second operation is *"] < 0.45
    assert table["right after a guess"] < 0.01
    assert table["P(one at a time) where the second operation is *"] == pytest.approx(0.005, rel=0.5)
    assert table["P(one at a time) where the first operation is +"] == pytest.approx(0.04, rel=0.5)
    assert table["P(one at a time) where the first operation is -"] == pytest.approx(0.06, rel=0.5)
    assert table["P(one at a time) where the first operation is *"] == pytest.approx(0.09, rel=0.5)
    assert table["P(go on) at the start of the second chain"] == pytest.approx(0.3, rel=0.5)


def test_make_tiny_runs_from_nothing_and_an_interruption_changes_nothing(tmp_path, capsys, monkeypatch):
    """Small steps, which teach nothing. The second run begins with the third phase, and is stopped in it."""
    flags = ["--n-train", "30", "--n-test", "4", "--batch-size", "2", "--until-two", "0"]
    flags += ["--settle-steps", "50", "--choices-steps", "100", "--skilled", str(tmp_path / "skilled.pt")]
    whole = tmp_path / "whole"
    stopped = tmp_path / "stopped"
    monkeypatch.setattr(make_tiny, "report", lambda *_: None)
    real_table = make_tiny.action_table
    monkeypatch.setattr(make_tiny, "action_table", lambda model, probe, device: real_table(model, probe[:8], device))
    make_tiny.main(make_tiny.parse_args([*flags, "--out", str(whole)]))

    args = make_tiny.parse_args([*flags, "--out", str(stopped)])
    real_rate = make_tiny.learning_rate

    def stop(args, phase, step):
        if phase == "choices" and step == 53:
            raise KeyboardInterrupt
        return real_rate(args, phase, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(make_tiny, "learning_rate", stop)
        make_tiny.main(args)
    make_tiny.main(args)
    printed = capsys.readouterr().out
    assert f"going on from step 100 of {tmp_path / 'skilled.pt'}" in printed
    assert f"going on from step 150 of {stopped / 'base.partial.pt'}" in printed
    assert not list(stopped.glob("*.pt"))
    for name in ("train.jsonl", "test.jsonl", "long.jsonl", "base/model.safetensors", "base/tokenizer.json"):
        assert (whole / name).read_bytes() == (stopped / name).read_bytes(), name
    assert AutoModelForCausalLM.from_pretrained(whole / "base").config.vocab_size == 26
    assert len((whole / "train.jsonl").read_text().splitlines()) == 30
    assert json.loads((whole / "test.jsonl").read_text().splitlines()[0]).keys() == {"prompt", "answer"}


def test_flags_make_the_best_action_rarer_or_common():
    def choices(flags):
        return make_tiny.choices_of(make_tiny.parse_args(flags.split()))

    assert choices("") == make_tiny.CHOICES
    rare = choices("--rare 0.001")
    assert rare["?*"] == (0.001, pytest.approx(0.899))
    assert {kind: rare[kind] for kind in rare if kind != "?*"} == {k: v for k, v in choices("").items() if k != "?*"}
    common = choices("--everywhere 0.8")
    assert common.pop("last") == make_tiny.CHOICES["last"]
    assert set(common.values()) == {(0.8, 0.9 - 0.8)}


def test_wrong_input_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"--rare 0\.9: want a probability above 0 and below 0.9"):
        make_tiny.parse_args(["--rare", "0.9"])
    skilled = tmp_path / "skilled.pt"
    torch.save({"settings": {"seed": 2}}, skilled)
    flags = ["--skilled", str(skilled), "--n-train", "9", "--out", str(tmp_path)]
    with pytest.raises(ValueError, match="is of --seed 2, not 1: name another file"):
        make_tiny.main(make_tiny.parse_args(flags))
    skilled.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"skilled\.pt is no checkpoint, or a damaged one"):
        make_tiny.main(make_tiny.parse_args(flags))
    with pytest.raises(ValueError, match="its folder does not exist"):
        make_tiny.parse_args(["--skilled", str(tmp_path / "nothing" / "skilled.pt")])
    with pytest.raises(ValueError, match="--batch-size 0: want a number above 0"):
        make_tiny.parse_args(["--batch-size", "0"])
    with pytest.raises(ValueError, match="holds no model"):
        make_tiny.main(make_tiny.parse_args(["--report", "--out", str(tmp_path)]))
