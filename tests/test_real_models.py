"""The path of real models: a byte-level BPE with Qwen's chat template, a vocabulary of 151,936 that is mostly padding,
several end-of-text ids, checkpoints in bf16, tied and untied heads, Qwen2 and Qwen3. Weights are random.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import dapo
import extrapolate
import grpo_n
import replace

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {module.__name__: module for module in (dapo, grpo_n, replace, extrapolate)}
SYSTEM = "You are a helpful assistant."
TEMPLATE = (  # the shape of Qwen2.5's: a default system text, then the turns
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = {  # tied and untied, with one key-value head and with several
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3-untied": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": False, "head_dim": 8}),
}


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def byte_level_tokenizer():
    """As Qwen's: bytes, merges, no unknown token; ends with <|im_end|> in chats and with <|endoftext|> else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    text = (ROOT / "LICENSE").read_text()  # a text that is never edited: the tokens that are drawn depend on it
    tokenizer.train_from_iterator([text, r"\boxed{12} \boxed{34}"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    return fast


def checkpoint(folder, kind, tokenizer, seed):
    model_class, config_class, more = KINDS[kind]
    shape = {"vocab_size": 151_936, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048} | more
    torch.manual_seed(seed)
    model = model_class(config_class(**shape))
    with torch.no_grad():  # far enough from uniform for a wrong position to show
        model.get_output_embeddings().weight[:400] *= 5
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(eos_token_id=ends, do_sample=True, top_k=1, repetition_penalty=9.0)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request, tmp_path_factory):
    """(base, RLVR model, problems): folders with bf16 weights, and a file of prompts of very different length."""
    folder, tokenizer = tmp_path_factory.mktemp(request.param), byte_level_tokenizer()
    base = checkpoint(folder / "base", request.param, tokenizer, 0)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * p.std() / 10
    model.save_pretrained(folder / "rlvr")
    tokenizer.save_pretrained(folder / "rlvr")
    texts = ["1+1?", "What is six times seven, if anything? " * 12, "Compute $\\frac{1}{2}$ of 8: Größe 😀", "2?"]
    rows = [{"prompt": text, "answer": "4"} for text in texts]
    rows[1]["system"] = "Answer in a box."
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "base", folder / "rlvr", folder / "problems.jsonl"


def load(folder):
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_weights_are_fp32_copies_of_the_bf16_file(pair, tmp_path):
    flags = f"--model {pair[0]} --train {pair[2]} --test {pair[2]} --steps 0 --max-response 4 --overlong-buffer 0"
    dapo.main(dapo.parse_args(f"{flags} --device cpu --out {tmp_path / 'run'}".split()))
    stored = AutoModelForCausalLM.from_pretrained(pair[0], dtype="auto")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model", dtype="auto")
    assert stored.dtype == torch.bfloat16 and model.dtype == torch.float32
    for (name, x), (_, y) in zip(stored.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(x.float(), y), name
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_prompts_are_in_the_chat_template_with_special_tokens_once(pair):
    tokenizer, _ = load(pair[0])
    rows = [row["ids"] for row in dapo.read_problems(pair[2], tokenizer, 2000)]
    first, second = (tokenizer.decode(row) for row in rows[:2])
    assert first == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert second.startswith("<|im_start|>system\nAnswer in a box.<|im_end|>\n<|im_start|>user\nWhat is six")
    assert "😀" in tokenizer.decode(rows[2]) and len(rows[1]) > 4 * len(rows[0])
    assert sum(i == tokenizer.convert_tokens_to_ids("<|im_start|>") for i in rows[0]) == 3
    with pytest.raises(SystemExit, match=r"line 2: the prompt exceeds 100 tokens"):
        dapo.read_problems(pair[2], tokenizer, 100)
    tokenizer.chat_template = None
    plain = [tokenizer.decode(row["ids"]) for row in dapo.read_problems(pair[2], tokenizer, 2000)]
    assert plain[0] == "1+1?" and plain[1].startswith("Answer in a box.\n\nWhat is six")


@pytest.mark.parametrize("pair", ["qwen2-tied"], indirect=True)
@torch.no_grad()
def test_8_27_rollouts_end_at_either_id_and_never_draw_padding(pair):
    tokenizer, model = load(pair[0])
    model.get_output_embeddings().weight[[0, 2]] *= 5  # ends come sooner
    problems, args = dapo.read_problems(pair[2], tokenizer, 2000), SimpleNamespace(verifier="exact")
    args.max_response, args.overlong_buffer, args.temperature = 25, 8, 1.0
    sampled = dapo.sample_and_check(model, tokenizer, problems, 8, 1.0, torch.Generator().manual_seed(0), args)
    lengths = [len(r["ids"]) for r in sampled]
    assert {r["ids"][-1] for r in sampled if r["finished"]} == {0, 2}  # both ends occur, kept as the last token
    assert all(not {0, 2} & set(r["ids"][:-1]) and "<|im_end|>" not in r["text"] for r in sampled)
    assert all(r["finished"] or len(r["ids"]) == 25 for r in sampled) and len(set(lengths)) > 5
    assert max(max(r["ids"]) for r in sampled) < len(tokenizer) < 151_936
    # what the sampler saw is what the scorer finds: unpadded, left-padded and right-padded alike
    tokens, mask, _ = dapo.pack(sampled, 32, 32)
    logp, entropy = dapo.token_logprobs(model, tokens, mask, n_vocab=len(tokenizer))
    assert torch.allclose(logp[mask == 1], torch.tensor([x for r in sampled for x in r["logp"]]), atol=1e-4)
    assert torch.allclose(entropy.sum(1), torch.tensor([r["entropy"] for r in sampled]), atol=1e-2)
    free, _ = dapo.token_logprobs(model, tokens, mask)
    assert not torch.allclose(free[mask == 1], logp[mask == 1], atol=1e-4)  # padding ids do have mass


COMMON = "--max-response 12 --seed 3 --device cpu"
TRAIN = "--steps 2 --prompts-per-step 4 --mini-batch 2 --gen-batch 4 --micro-batch 3 --eval-samples 2 --lr 1e-3"
FLAGS = {
    "dapo": f"{TRAIN} --overlong-buffer 4 --group-size 4 --max-gen-batches 1 --reweight low-prob",
    "grpo_n": f"{TRAIN} --algorithm grpo-n --group-size 4 --passk-samples 4",
    "replace": "--samples 2 --criteria dlogp,kl --ratios 0.2 --reverse dlogp --calibration-problems 4 --bootstrap 5",
    "extrapolate": "--samples 2 --taus=-0.1 --gammas 0.5 --train-problems 4 --bootstrap 5",
}


@pytest.mark.filterwarnings("ignore:Glyph")  # random bytes have no glyphs
@pytest.mark.parametrize(
    ("pair", "name"),
    [("qwen2-tied", "grpo_n"), ("qwen2-tied", "replace"), ("qwen3-untied", "dapo"), ("qwen3-untied", "extrapolate")],
    indirect=["pair"],
)
def test_every_script_runs_end_to_end(pair, name, tmp_path, monkeypatch):
    script, (base, rlvr, problems) = SCRIPTS[name], pair
    right = iter(range(10**9))  # a random model is never right: every third response counts as such
    monkeypatch.setattr(script, "is_correct", lambda *_: next(right) % 3 == 0)
    models = f"--model {base}" if name in ("dapo", "grpo_n") else f"--base {base} --rlvr {rlvr}"
    flags = f"{models} --train {problems} --test {problems} {COMMON} {FLAGS[name]} --out {tmp_path / 'run'}"
    script.main(script.parse_args(flags.split()))
    assert (tmp_path / "run" / "config.json").exists() and list((tmp_path / "run").glob("*.png"))
    if name in ("dapo", "grpo_n"):
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 3 and all(row["grad_norm"] > 0 and row["sampler_gap"] < 1e-5 for row in rows[1:])
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
        assert trained.dtype == torch.float32 and sorted(trained.generation_config.eos_token_id) == [0, 2]
        assert trained.config.tie_word_embeddings == ("tied" in base.parent.name and "untied" not in base.parent.name)
        assert AutoTokenizer.from_pretrained(tmp_path / "run" / "model").chat_template == TEMPLATE
