"""What a newcomer meets first: other folders, second runs, other people's models and templates."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

import dapo
import delta_logp
import extrapolate
import grpo_n
import replace

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "tiny" / "base")


def test_a_script_runs_from_any_folder_and_a_second_run_is_told_what_to_do(tmp_path):
    flags = "--steps 0 --eval-problems 2 --eval-samples 1 --max-response 16 --device cpu"
    command = [sys.executable, ROOT / "dapo.py", *flags.split()]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1].startswith("wrote runs/dapo/none-seed1: open curves.png")
    assert (tmp_path / "runs/dapo/none-seed1/model/model.safetensors").exists()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 1
    (sentence,) = second.stderr.splitlines()
    assert sentence.startswith("error: runs/dapo/none-seed1 holds a run: --resume goes on with it")


def test_default_folders_never_collide():
    folders = [dapo.parse_args(f"--reweight {name}".split()).out for name in ("none", "low-prob", "dominate", "ppl")]
    folders += [grpo_n.parse_args(f"--algorithm {name}".split()).out for name in grpo_n.LR]
    folders += [script.parse_args([]).out for script in (delta_logp, replace, extrapolate)]
    folders += [script.parse_args(["--seed", "2"]).out for script in (dapo, grpo_n, delta_logp, replace, extrapolate)]
    folders.append(extrapolate.parse_args(["--theorem"]).out)
    assert len(set(folders)) == len(folders) and all(folder.startswith("runs/") for folder in folders)
    assert dapo.parse_args(["--out", "mine"]).out == "mine"


@pytest.mark.parametrize("script", [dapo, grpo_n, delta_logp, replace, extrapolate])
def test_a_used_folder_is_refused_before_anything_is_loaded(script, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"args": {}}')
    monkeypatch.setattr(script, "load_model", None)  # a call would be a TypeError
    monkeypatch.setattr(script, "load_tokenizer", None)
    with pytest.raises(ValueError, match="holds a run: --resume goes on with it"):
        script.main(script.parse_args(["--out", str(tmp_path), "--device", "cpu"]))
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: no such file"):
        flag = "--data" if script is delta_logp else "--test"
        script.main(script.parse_args([flag, "nowhere.jsonl", "--device", "cpu"]))


@pytest.mark.parametrize(
    "name", ["runs/nothing/model", "tiny/nothing", "./nothing", "/nowhere/model", "data/x", "a/b/c"]
)
def test_a_missing_folder_is_not_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(dapo, "AutoTokenizer", None)  # a call would be an AttributeError
    with pytest.raises(ValueError, match="no such folder"):
        dapo.load_tokenizer(name)


def test_the_end_of_turn_of_the_template_ends_a_response(tokenizer):
    """A base model's generation_config has <|endoftext|> alone; after <|im_end|> it would invent the next problem."""
    end_of_text = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"

    class Base:
        generation_config = GenerationConfig(eos_token_id=[end_of_text])

    assert dapo.end_ids(tokenizer, Base()) == sorted([end_of_text, end_of_turn])
    tokenizer.chat_template = None
    assert dapo.end_ids(tokenizer, Base(), Base()) == [end_of_text]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '+' }}{% endfor %}"  # ends in no special token
    assert dapo.end_ids(tokenizer, Base()) == [end_of_text]


def test_templates_that_think_or_refuse_a_system_role(tokenizer):
    tokenizer.chat_template = "{{ 'think ' if enable_thinking != false else '' }}{{ messages[0]['content'] }}"
    assert dapo.render_prompt(tokenizer, "1+1?") == "1+1?"
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuses + "<{{ messages[0]['content'] }}>"
    assert dapo.render_prompt(tokenizer, "1+1?", "Be brief.") == "<Be brief.\n\n1+1?>"
    assert dapo.render_prompt(tokenizer, "1+1?") == "<1+1?>"
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ValueError, match="the model's chat template refuses a prompt: never"):
        dapo.render_prompt(tokenizer, "1+1?")


@pytest.mark.parametrize(("scale", "top_p"), [(4.0, 0.5), (0.1, 0.9)])  # 1,024 tokens reach top-p, or do not
def test_top_k_before_the_sort_changes_nothing(scale, top_p):
    logits = scale * torch.randn(64, 3000, generator=torch.Generator().manual_seed(0))
    tokens, _, _ = dapo.sample_tokens(logits, 1.0, top_p, torch.Generator().manual_seed(1))
    ordered, order = logits.log_softmax(-1).exp().sort(dim=-1, descending=True)
    enough = (ordered[:, :1024].sum(-1) >= top_p).all()
    assert enough == (scale == 4.0)
    before = torch.zeros_like(ordered).scatter(-1, order, ordered.cumsum(-1) - ordered)  # of likelier tokens, per id
    noise = torch.empty(64, 3000).exponential_(generator=torch.Generator().manual_seed(1))
    scores = (logits.log_softmax(-1) - noise.log()).masked_fill(before >= top_p, -torch.inf)
    assert torch.equal(tokens, scores.argmax(-1))


@pytest.mark.parametrize("script", [dapo, grpo_n])
def test_evaluation_decodes_as_many_rows_as_a_rollout(script, monkeypatch, model):
    rows = []

    def count(model, tokenizer, problems, group_size, *_):
        rows.append(len(problems) * group_size)
        return [None] * rows[-1]

    monkeypatch.setattr(script, "sample_and_check", count)
    args = script.parse_args(["--gen-batch", "16", "--group-size", "8", "--device", "cpu"])
    groups = script.evaluate(model, None, [{}] * 100, 4, 1.0, 1.0, 1, args)
    assert rows == [128, 128, 128, 16] and [len(group) for group in groups] == [4] * 100
