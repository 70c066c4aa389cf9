"""The path of real models: a byte-level BPE with Qwen's chat template, a vocabulary that is mostly padding, two ids
that end a text, checkpoints in bf16, tied and untied heads, Qwen2 and Qwen3. Weights are random.
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
import delta_logp
import extrapolate
import grpo_n
import replace

ROOT = Path(__file__).resolve().parent.parent
VOCAB = 2048  # of the model; the tokenizer has 400
SYSTEM = "You are a helpful assistant."
TEMPLATE = (  # the shape of Qwen2.5's: a default system text, then the turns
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
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


def random_model(kind):
    torch.manual_seed(0)
    if kind == "qwen2-tied":
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False))
    with torch.no_grad():  # far enough from uniform for a wrong position to show
        model.get_output_embeddings().weight[:400] *= 5
    # id 2 is <|im_end|>, id 0 is <|endoftext|>; what else stands here must not matter
    model.generation_config = GenerationConfig(eos_token_id=[2, 0], do_sample=True, top_k=1, repetition_penalty=9.0)
    return model.to(torch.bfloat16)


@pytest.fixture(scope="module", params=["qwen2-tied", "qwen3-untied"])
def pair(request, tmp_path_factory):
    """A folder with base/ and rlvr/, both in bf16, and problems.jsonl, prompts of very different length."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = byte_level_tokenizer()
    model = random_model(request.param)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * parameter.std() / 10
    model.save_pretrained(folder / "rlvr")
    tokenizer.save_pretrained(folder / "rlvr")
    rows = [
        {"prompt": "1+1?", "answer": "4"},
        {"prompt": "What is six times seven? " * 12, "answer": "4", "system": "Answer in a box."},
        {"prompt": "Compute $\\frac{1}{2}$ of 8: Größe 😀", "answer": "4"},
        {"prompt": "2?", "answer": "4"},
    ]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_weights_of_a_bf16_file_are_loaded_in_fp32(pair):
    model = dapo.load_model(pair / "base", "cpu")
    stored = AutoModelForCausalLM.from_pretrained(pair / "base", dtype="auto")
    assert stored.dtype == torch.bfloat16
    for (name, x), (_, y) in zip(stored.named_parameters(), model.named_parameters(), strict=True):
        assert y.dtype == torch.float32 and torch.equal(x.float(), y), name
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (model.config.model_type == "qwen2")


@pytest.mark.parametrize("pair", ["qwen2-tied"], indirect=True)
def test_prompts_are_in_the_chat_template_with_special_tokens_once(pair):
    tokenizer = AutoTokenizer.from_pretrained(pair / "base")
    file = pair / "problems.jsonl"
    rows = [row["ids"] for row in dapo.read_problems(file, tokenizer, 2000, 1)]
    texts = [tokenizer.decode(row) for row in rows]
    asked = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert texts[0] == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{asked}"
    assert texts[1].startswith("<|im_start|>system\nAnswer in a box.<|im_end|>\n<|im_start|>user\nWhat is six")
    assert "😀" in texts[2] and len(rows[1]) > 4 * len(rows[0])
    assert rows[0].count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert len(dapo.read_problems(file, tokenizer, 100, 1)) == len(rows) - 1  # the second prompt is too long
    tokenizer.chat_template = None
    plain = [tokenizer.decode(row["ids"]) for row in dapo.read_problems(file, tokenizer, 2000, 1)]
    assert plain[0] == "1+1?" and plain[1].startswith("Answer in a box.\n\nWhat is six")


@pytest.mark.parametrize("pair", ["qwen2-tied"], indirect=True)
@torch.no_grad()
def test_rollouts_end_at_either_id_and_never_draw_padding(pair):
    tokenizer = AutoTokenizer.from_pretrained(pair / "base")
    model = dapo.load_model(pair / "base", "cpu")
    model.get_output_embeddings().weight[[0, 2]] *= 5  # ends come sooner
    problems = dapo.read_problems(pair / "problems.jsonl", tokenizer, 2000, 1)
    args = SimpleNamespace(verifier="exact", max_response=25, overlong_buffer=8)
    generator = torch.Generator().manual_seed(0)
    sampled = dapo.sample_and_check(model, tokenizer, problems, 8, 1.0, 1.0, generator, args)
    assert {response.ids[-1] for response in sampled if response.finished} == {0, 2}  # kept as the last token
    for response in sampled:
        assert not {0, 2} & set(response.ids[:-1]) and "<|im_end|>" not in response.text
        assert response.finished or len(response.ids) == 25
        assert max(response.ids) < len(tokenizer) < VOCAB
    assert len({len(response.ids) for response in sampled}) > 5
    # what the sampler saw is what the scorer finds: padded on the left, and on the right
    tokens, mask, _ = dapo.make_batches(sampled, 32, 32)
    seen = torch.tensor([response.entropy for response in sampled])
    _, entropy = dapo.token_logprobs(model, tokens, mask, n_vocab=len(tokenizer))
    assert torch.allclose(entropy.sum(1), seen, atol=1e-3)
    _, with_padding_ids = dapo.token_logprobs(model, tokens, mask)
    assert not torch.allclose(with_padding_ids.sum(1), seen, atol=1e-1)  # they do have probability


TRAIN = "--model {base} --train {problems} --test {problems} --steps 2 --prompts-per-step 4 --mini-batch 4"
TRAIN += " --gen-batch 4 --micro-batch 3 --group-size 4 --eval-samples 2 --lr 1e-3"
PAIR = "--base {base} --rlvr {rlvr} --samples 2 --bootstrap 5"
FLAGS = {
    "dapo": f"{TRAIN} --overlong-buffer 4 --reweight low-prob",
    "grpo_n": f"{TRAIN} --algorithm grpo-n --passk-samples 4",
    "delta_logp": f"{PAIR} --data {{problems}}",
    "replace": f"{PAIR} --train {{problems}} --test {{problems}} --criteria dlogp,kl --ratios 0.2 --reverse dlogp"
    " --calibration-problems 4",
    "extrapolate": f"{PAIR} --train {{problems}} --test {{problems}} --taus=-0.1 --gammas 0.5 --train-problems 4",
}


@pytest.mark.filterwarnings("ignore:Glyph")  # random bytes have no glyphs
@pytest.mark.parametrize(
    ("pair", "script"),
    [
        ("qwen2-tied", grpo_n),
        ("qwen2-tied", replace),
        ("qwen2-tied", delta_logp),
        ("qwen3-untied", dapo),
        ("qwen3-untied", extrapolate),
    ],
    indirect=["pair"],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_script_runs_end_to_end(pair, script, tmp_path, monkeypatch):
    counter = iter(range(10**9))  # a random model is never right: every third response counts as such
    monkeypatch.setattr(script, "is_correct", lambda *_: next(counter) % 3 == 0)
    run = tmp_path / "run"
    flags = FLAGS[script.__name__].format(base=pair / "base", rlvr=pair / "rlvr", problems=pair / "problems.jsonl")
    script.main(script.parse_args(f"{flags} --max-response 12 --seed 3 --device cpu --out {run}".split()))
    assert (run / "config.json").exists() and list(run.glob("*.png"))
    if script in (dapo, grpo_n):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert len(rows) == 3 and all(row["grad_norm"] > 0 for row in rows[1:])
        assert rows[1]["ratio"] == pytest.approx(1.0, abs=1e-6)  # one optimiser step: nothing has moved
        trained = AutoModelForCausalLM.from_pretrained(run / "model")
        assert trained.dtype == torch.float32 and sorted(trained.generation_config.eos_token_id) == [0, 2]
        assert trained.config.tie_word_embeddings == (trained.config.model_type == "qwen2")
        assert AutoTokenizer.from_pretrained(run / "model").chat_template == TEMPLATE
