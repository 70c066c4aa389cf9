"""Selective token replacement: at which few positions must the base model take RLVR's token to become as good?

What it shows: two models decode one response. The base model draws every token; where a criterion fires, the token is
drawn again from the RLVR model, and both go on from the same prefix. Some criteria need a third of the tokens to make
the base as good as the RLVR model, some a tenth, and random ones hardly help: that tells which criterion points at the
tokens that matter. The reverse is here as well: how few of the base's tokens does it take to ruin the RLVR model?

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), section 3.2 and appendix A.2

The equations, tagged (1) to (5) in the code. A token y drawn from the base is replaced if its score passes a threshold:
  (1) entropy        H(pi_base); entropy-rlvr: H(pi_RL)                                                 Algorithm 1
  (2) kl             (KL(RL||base) + KL(base||RL)) / 2; kl-forward: the first, kl-reverse: the second   appendix A.2
  (3) dlogp          -dlogp(y) = log pi_base(y) - log pi_RL(y): fires where dlogp(y) < tau              Algorithm 1
  (4) random         a uniform number: fires with probability rho                                       Algorithm 1
  (5) replacement    y ~ pi_RL, which is gamma = 0 of log pi_RL + gamma dlogp - log Z                   eq. of 4.1
Criteria are compared at matched ratios: for each target the threshold is calibrated on other problems, and what is
plotted is the ratio that occurred.

Differs from the released code: everything is over the full vocabulary, where it sees 50 log-probs of each model; each
row and position has noise of its own, where it seeds every one-token request alike. As there, the temperature divides
before top-p cuts; scores are those of temperature 1. The defaults (top-p 1, 128 tokens) suit the tiny model.

    python replace.py                                    # tiny pair on two CPU cores, under 4 minutes
    python replace.py --criteria dlogp,random --out runs/replace/short
    python replace.py --base Qwen/Qwen2.5-1.5B --rlvr Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B --top-p 0.7 \\
        --test data/aime24/test.jsonl --train data/math/train.jsonl --max-response 8192 --rows 128           # one GPU
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import matplotlib
import numpy as np
import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MAIN = ("dlogp", "kl", "entropy", "random")  # the criteria of figure 2


class InputError(ValueError):
    """Something that the user can mend: one sentence that names the file or flag, and the mend."""


# ----------------------------------------------------------------------------------------------------------- arguments
def arg(default, text, low=-math.inf, high=math.inf, choices=None):
    return dataclasses.field(default=default, metadata={"help": text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Args:
    base: str = arg("tiny/base", "base model: a folder, or a name on the hub")
    rlvr: str = arg("tiny/rlvr", "the model that RLVR made of it")
    tokenizer: str = arg("", "whose tokenizer and chat template both models see; empty: that of --rlvr")
    test: str = arg("tiny/test.jsonl", 'problems, one {"prompt": ..., "answer": ...} a line')
    train: str = arg("tiny/train.jsonl", "problems on which the thresholds are calibrated, same format")
    out: str = arg("runs/replace/default", "folder of this run")
    resume: bool = arg(False, "go on after the last criterion that --out holds")
    overwrite: bool = arg(False, "delete the run that --out holds")
    seed: int = arg(1, "of sampling and of the bootstrap", 0)
    device: str = arg("auto", "auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = arg("auto", "autocast; auto is bf16 on CUDA, else fp32", choices=("auto", "fp32", "bf16"))
    cuda_graph: bool = arg(True, "on CUDA, decode by replaying a CUDA graph; no effect on a CPU")
    verifier: str = arg("exact", "of final answers; math-verify needs its package", choices=("exact", "math-verify"))
    # what is compared
    criteria: str = arg("dlogp,kl,entropy,random,kl-forward,kl-reverse,entropy-rlvr", "criteria, in this order")
    reverse: str = arg("dlogp,random", "criteria by which the base's tokens go into RLVR's responses; empty: none")
    ratios: str = arg("0.01,0.02,0.05,0.1,0.15,0.2,0.3,0.4", "target shares of replaced tokens")
    # decoding
    problems: int = arg(100, "the first N problems of --test; 0: all", 0)
    samples: int = arg(8, "responses to a problem: avg@n", 1)
    rows: int = arg(1600, "responses decoded side by side: all ratios of a criterion, for as many problems as fit", 1)
    max_response: int = arg(128, "response limit, in tokens", 1)
    temperature: float = arg(1.0, "of both models", 1e-3)
    top_p: float = arg(1.0, "nucleus (the paper: 0.7)", 1e-6, 1)
    # calibration and statistics
    calibration_problems: int = arg(48, "problems of --train that a threshold is calibrated on", 1)
    calibration_passes: int = arg(3, "passes over them after the first", 0)
    bootstrap: int = arg(2000, "resamples of the problems behind each interval", 1)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if not isinstance(value, str) and not low <= value <= high:
                raise InputError(f"--{f.name.replace('_', '-')} {value}: it must lie in [{low}, {high}]")
        for name in ("criteria", "reverse"):
            for criterion in filter(None, getattr(self, name).split(",")):
                if criterion not in SCORES:
                    raise InputError(f"--{name}: there is no criterion {criterion!r}; there are {', '.join(SCORES)}")
        try:
            ratios = [float(x) for x in self.ratios.split(",")]
        except ValueError:
            ratios = [0.0]
        if not all(0 < x < 1 for x in ratios) or sorted(set(ratios)) != ratios:
            raise InputError(f"--ratios {self.ratios}: it must be increasing shares between 0 and 1, such as 0.05,0.1")
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite exclude each other")


def parse_args(cls, doc, argv=None):
    """The fields of dataclass `cls` as command-line flags; returns an instance. Unknown flags are errors."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in dataclasses.fields(cls):
        how = {"help": f"{f.metadata['help']} (default: {f.default})", "default": f.default}
        if isinstance(f.default, bool):
            how["action"] = argparse.BooleanOptionalAction
        else:
            how |= {"type": type(f.default), "choices": f.metadata["choices"]}
        parser.add_argument("--" + f.name.replace("_", "-"), **how)
    return cls(**vars(parser.parse_args(argv)))


# ------------------------------------------------------------------------------------------------ maths: tensors alone
def delta_logp(logp_base, logp_rlvr, tokens):
    """log pi_RLVR - log pi_base of the tokens (paper A, eq. 1): log-probs (..., V), ids (...) -> (...), in nats."""
    index = tokens.unsqueeze(-1)
    return (logp_rlvr.gather(-1, index) - logp_base.gather(-1, index)).squeeze(-1)  # (3)


def entropy(logp):
    """Entropy in nats of distributions given as log-probs: (..., V) -> (...). An id of log-prob -inf counts as 0."""
    return torch.special.entr(logp.exp()).sum(-1)  # (1)


def kl_divergence(logp_p, logp_q):
    """KL(p || q) in nats, of log-probs (..., V) both -> (...). Ids that p never takes count as 0, whatever q does.

    Infinite where p takes what q never does. Rounding may leave -1e-7 for equal distributions; that is cut to 0.
    """
    terms = logp_p.exp() * (logp_p - logp_q)  # (2)
    return terms.masked_fill(logp_p == -torch.inf, 0.0).sum(-1).clamp(min=0.0)


# The criteria: log-probs (N, V) of base and RLVR at the same prefixes, and the ids (N,) that were drawn -> scores (N,).
def score_entropy(logp_base, logp_rlvr, tokens):
    """The base does not know how to go on (paper A, Algorithm 1)."""
    return entropy(logp_base)


def score_entropy_rlvr(logp_base, logp_rlvr, tokens):
    """The RLVR model does not know how to go on (paper A, appendix A.2)."""
    return entropy(logp_rlvr)


def score_kl_forward(logp_base, logp_rlvr, tokens):
    """KL(RLVR || base): the RLVR model would take what the base would not (paper A, appendix A.2)."""
    return kl_divergence(logp_rlvr, logp_base)


def score_kl_reverse(logp_base, logp_rlvr, tokens):
    """KL(base || RLVR): the base would take what the RLVR model would not (paper A, appendix A.2)."""
    return kl_divergence(logp_base, logp_rlvr)


def score_kl(logp_base, logp_rlvr, tokens):
    """Mean of the two KLs: the models differ, whatever was drawn (paper A, Algorithm 1)."""
    return (kl_divergence(logp_rlvr, logp_base) + kl_divergence(logp_base, logp_rlvr)) / 2  # (2)


def score_dlogp(logp_base, logp_rlvr, tokens):
    """RLVR made the drawn token less likely: -dlogp (paper A, Algorithm 1). A score above -tau means dlogp < tau."""
    return -delta_logp(logp_base, logp_rlvr, tokens)  # (3)


def score_random(logp_base, logp_rlvr, tokens, generator=None):
    """The baseline: uniform on [0, 1), so that a threshold of 1 - rho fires with probability rho."""
    return torch.rand(tokens.shape, generator=generator, device=tokens.device)  # (4)


SCORES = {
    "dlogp": score_dlogp,
    "kl": score_kl,
    "entropy": score_entropy,
    "random": score_random,
    "kl-forward": score_kl_forward,
    "kl-reverse": score_kl_reverse,
    "entropy-rlvr": score_entropy_rlvr,
}


def extrapolate_logp(logp_rlvr, logp_base, gamma):
    """log pi_RL + gamma dlogp - log Z (paper A, 4.1): log-probs (..., V) both -> (..., V), normalised.

    gamma, a number or (..., 1): 0 is the RLVR model, -1 the base, above 0 beyond RLVR. Where either log-prob is -inf,
    dlogp is undefined and taken as 0: no nan, and nothing that the RLVR model excludes comes back.
    """
    dlogp = torch.where(torch.isfinite(logp_rlvr) & torch.isfinite(logp_base), logp_rlvr - logp_base, 0.0)
    return torch.log_softmax(logp_rlvr + gamma * dlogp, dim=-1)  # (5)


def sample_tokens(logits, temperature=1.0, top_p=1.0, generator=None):
    """Draw one token a row from softmax(logits / temperature), cut to its nucleus if top_p < 1. logits (N, V).

    Returns (tokens, logp, entropy), (N,) each: log-prob and entropy, in nats, of the full softmax at that temperature,
    before the cut. Temperature 0 is greedy; its logp and entropy are those of temperature 1.
    """
    logp = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    entropy = torch.special.entr(logp.exp()).sum(-1)
    scores = logp
    if top_p < 1:  # the smallest set of likeliest tokens whose probability reaches top_p
        ordered, order = logp.exp().sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        scores = logp.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -math.inf)
    if temperature > 0:  # Gumbel-max: the argmax of log-prob + Gumbel noise is an exact draw
        scores = scores - torch.empty_like(logp).exponential_(generator=generator).log()
    tokens = scores.argmax(-1)
    return tokens, logp.gather(-1, tokens[:, None])[:, 0], entropy


# ---------------------------------------------------------------------------------- statistics: arrays over problems
def mean_and_half(x):
    """Mean of x (P,), a value for each problem, and the half-width of its 95% interval (normal)."""
    return float(np.mean(x)), float(1.96 * np.std(x, ddof=1) / math.sqrt(len(x))) if len(x) > 1 else 0.0


def bootstrap_means(values, resamples, seed):
    """Means over problems drawn with replacement, the same problems for every row: (K, P) -> (resamples, K)."""
    draws = np.random.default_rng(seed).integers(values.shape[1], size=(resamples, values.shape[1]))
    return np.stack([values[:, draw].mean(axis=1) for draw in draws])


def area_under(ratio, accuracy, low, high):
    """Mean height of the curve accuracy (..., K) over log ratio (K,), increasing, between low and high: (...)."""
    x = np.linspace(math.log(low), math.log(high), 200)
    at = np.clip(np.searchsorted(np.log(ratio), x) - 1, 0, len(ratio) - 2)
    left, right = np.log(ratio)[at], np.log(ratio)[at + 1]
    weight = np.clip((x - left) / (right - left), 0, 1)
    return (accuracy[..., at] * (1 - weight) + accuracy[..., at + 1] * weight).mean(axis=-1)


# --------------------------------------------------------------------------------------------------- model in and out
def load_model(name, device):
    """(tokenizer, model) with fp32 parameters: in bf16, steps of 1e-6 round away. Reads safetensors only."""
    try:
        is_path = Path(name).exists() or ("/" in name and Path(name).parent.is_dir())  # else a name on the hub
        if is_path and not Path(name, "config.json").exists():
            raise OSError("there is no such folder, or no config.json in it")
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise InputError(f"no model at '{name}': {' '.join(str(error).split())[:200]}") from None
    return tokenizer, model.to(device)


def pick_device(name):
    """The torch.device of that name; "auto" is CUDA where there is one, else the CPU."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} is not to be had here: {str(error).splitlines()[0]}") from None
    return device


def eos_token_ids(model, tokenizer):
    """Every id that ends a response: base models stop at <|endoftext|>, chat models at <|im_end|>."""
    ids = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])}
    return sorted(ids - {None})


def require_same_vocabulary(tokenizers, models):
    """n_vocab, if all tokenizers map the same tokens to the same ids and the models have a row for each of them.

    tokenizers and models: {name: object}. Compared token by token: two vocabularies of one size can still differ.
    """
    (first, one), *others = ((name, tokenizer.get_vocab()) for name, tokenizer in tokenizers.items())
    for name, other in others:
        differ = sorted(t for t in one.keys() | other.keys() if one.get(t) != other.get(t))
        if differ:
            t = differ[0]
            raise InputError(
                f"{first} and {name} do not share a vocabulary ({len(differ)} tokens differ: {t!r} is {one.get(t)} in "
                f"one, {other.get(t)} in the other); take the base model that the RLVR model was trained from"
            )
    for name, model in models.items():
        rows = model.get_output_embeddings().weight.shape[0]
        if rows <= max(one.values()):
            raise InputError(f"{name} has logits for {rows} tokens, its tokenizer ids up to {max(one.values())}")
    return max(one.values()) + 1


def estimate_memory(models, bf16, rows, context, train_rows=0, checkpointing=False, idle=0):
    """{what: bytes} of memory that a run will hold, an estimate: `rows` sequences of `context` tokens decoded by all
    models; with train_rows, a micro-batch of as many in the update of the first; `idle` further copies of it.

    Activations are those of Qwen2 and Qwen3, within a fifth (a test counts them); logits count as five fp32 copies.
    "at most": what stays, and the larger of decoding and updating.
    """
    size, found = 2 if bf16 else 4, Counter()
    for i, model in enumerate(models):
        c, n = model.config, sum(p.numel() for p in model.parameters())
        head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        q, kv = c.num_attention_heads * head, c.num_key_value_heads * head
        found["weights"] += n * (6 if bf16 else 4) * (1 + idle * (i == 0))  # fp32, and autocast's copies
        found["cache"] += 2 * c.num_hidden_layers * kv * size * rows * context
        found["logits"] = max(found["logits"], 20 * c.vocab_size * rows)
        if train_rows and i == 0:
            layer, kept = 26 * c.hidden_size + 4 * size * (c.intermediate_size + q + kv), 4 * c.hidden_size
            layers = layer + kept * c.num_hidden_layers if checkpointing else layer * c.num_hidden_layers
            found["gradients and AdamW"] = 12 * n
            tokens, layers = train_rows * context, layers + 12 * c.hidden_size  # and what the head holds
            found["activations"] = tokens * layers + 20 * min(2**27, tokens * c.vocab_size)
    stays = found["weights"] + found["gradients and AdamW"]
    return found | {"at most": stays + max(found["cache"] + found["logits"], found["activations"])}


def explain(error, out, kept, mends):
    """The sentence for what ends a run: bad input, a full disk, memory that ran out; None for any other error.

    kept: what is not lost. mends: {function: mend} for memory; the first function on the way to the error counts, and
    "main" is on every way.
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error}{'' if error.filename or error.errno is None else f', in {out}'}; {kept}"
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error):
        names = {frame.name for frame in traceback.extract_tb(error.__traceback__)} | {"main"}
        return f"out of memory: {next(mend for name, mend in mends.items() if name in names)}; {kept}"
    return None


def encode_prompts(tokenizer, problems, path, limit):
    """Token ids of every prompt, behind its "system" text if there is one, in the tokenizer's chat template if any.

    A prompt of more than `limit` tokens, or with characters that the vocabulary lacks, is an InputError with its line.
    """
    rows = []
    for line, problem in enumerate(problems, start=1):
        chat, keys = tokenizer.chat_template is not None, ("system", "prompt") if problem.get("system") else ("prompt",)
        text = "\n\n".join(problem[key] for key in keys)
        if chat:
            roles = {"system": "system", "prompt": "user"}
            messages = [{"role": roles[key], "content": problem[key]} for key in keys]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=not chat)["input_ids"]
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
            raise InputError(f"{path}, line {line}: the prompt has characters that the model's vocabulary lacks")
        if len(ids) > limit:
            raise InputError(
                f"{path}, line {line}: the prompt has {len(ids)} tokens, but the model's context less --max-response "
                f"leaves {limit}; shorten the prompt or lower --max-response"
            )
        rows.append(ids)
    return rows


def load_models(names, tokenizer, device):
    """({name: model}, tokenizer, ids): models of one vocabulary, in eval mode, on `device`.

    tokenizer: the name of another model whose tokenizer and chat template to use, or "" for those of names[1], the RLVR
    model. ids: eos_ids (those of all models), pad_id and n_vocab, as `rollout` takes them.
    """
    loaded = {name: load_model(name, device) for name in dict.fromkeys(names)}
    models, tokenizers = ({name: one[i] for name, one in loaded.items()} for i in (1, 0))
    if tokenizer and tokenizer not in tokenizers:
        tokenizers[tokenizer] = load_model(tokenizer, "cpu")[0]
    n_vocab, chosen = require_same_vocabulary(tokenizers, models), tokenizers[tokenizer or names[1]]
    eos_ids = sorted({i for model in models.values() for i in eos_token_ids(model.eval(), chosen)})
    pad_id = eos_ids[0] if chosen.pad_token_id is None else chosen.pad_token_id
    return models, chosen, {"eos_ids": eos_ids, "pad_id": pad_id, "n_vocab": n_vocab}


class FixedCache:
    """Keys and values of all layers, with room for `room` tokens, written in place: what a CUDA graph can read.

    Takes over rows (n,) and the first `used` columns of another cache's kv: (keys, values) of each layer, (N, heads,
    length, size) both. The next token is written to column `at`.
    """

    def __init__(self, kv, rows, used, room):
        device = kv[0][0].device
        self.kv, self.at = kv, torch.tensor([used], device=device)
        for i, layer in enumerate(kv):  # layer by layer, so that no second cache lies beside the first
            low = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else layer[0].dtype
            kv[i] = [x.new_zeros(len(rows), x.shape[1], room, x.shape[3], dtype=low) for x in layer]
            for new, x in zip(kv[i], layer, strict=True):
                new[:, :, :used] = x[rows, :, :used]

    def update(self, keys, values, layer, *_, **__):
        """What the attention of each layer calls: write the new token, return all columns (a mask hides the rest)."""
        for held, new in zip(self.kv[layer], (keys, values), strict=True):
            held.index_copy_(2, self.at, new.to(held.dtype))
        return self.kv[layer]

    def get_seq_length(self, *_):
        """Not asked where positions and mask are given; some versions of transformers ask all the same."""
        return 0


class Decoder:
    """Next-token logits of a model, step by step, for N = len(prompts) * copies rows: a prompt is read once, and its
    cache repeated for its copies. `logits` (N, V) are those of the first response token.

    Eager, a row that has ended leaves batch and cache. With cuda_graph, one launch replays the whole step, where eager
    PyTorch pays Python and a launch for each kernel of every layer: the cache is fixed, rows that have ended stay in
    it until they are half, its room doubles when full, and either is a new capture. On a CPU that path runs uncaptured.
    """

    def __init__(self, model, prompts, copies, pad_id, max_new_tokens, cuda_graph=False):
        width, device = max(map(len, prompts)), model.device
        ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        position = (attention.cumsum(1) - 1).clamp(min=0)  # left padding must not shift positions
        out = model(input_ids=ids, attention_mask=attention, position_ids=position, use_cache=True, logits_to_keep=1)
        self.model, self.cache, self.longest = model, out.past_key_values, width + max_new_tokens
        self.cache.batch_repeat_interleave(copies)
        self.logits, self.attention, self.position = (
            x.repeat_interleave(copies, dim=0) for x in (out.logits[:, -1], attention, position[:, -1:])
        )
        self.fixed = cuda_graph and not any(self.cache.is_sliding)  # a sliding window would need a mask of its own
        self.rows = torch.arange(len(self.attention), device=device)  # of the fixed cache: where each row is in it
        self.replay = None

    def keep(self, rows):
        """Go on with these rows alone: (n,) indices."""
        self.attention, self.position, self.rows = self.attention[rows], self.position[rows], self.rows[rows]
        if not self.fixed:
            self.cache.batch_select_indices(rows)

    def step(self, tokens):
        """Logits (n, V) of what follows `tokens` (n,), the last token of each row."""
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
        self.position = self.position + 1
        if not self.fixed:
            how = {"attention_mask": self.attention, "position_ids": self.position, "past_key_values": self.cache}
            return self.model(input_ids=tokens[:, None], use_cache=True, **how).logits[:, -1]
        n, used = self.attention.shape
        if self.replay is None or used > self.mask.shape[-1] or (len(self.mask) > 8 and n <= len(self.mask) // 2):
            self.capture(n, used)
        self.ids[self.rows, 0], self.where[self.rows] = tokens, self.position
        self.mask[..., used - 1] = True
        self.cache.at.fill_(used - 1)
        self.replay()
        return self.out[self.rows]

    def capture(self, n, used):
        """Leave ended rows behind, make room for as many tokens again, and record the step over the new buffers."""
        self.replay = None  # frees the graph before
        room = -(-min(2 * used, self.longest) // 64) * 64  # a multiple of 64, for the attention kernels
        old = self.cache.kv if isinstance(self.cache, FixedCache) else [(x.keys, x.values) for x in self.cache.layers]
        self.cache = FixedCache(old, self.rows, used - 1, room)
        self.rows = torch.arange(n, device=self.rows.device)
        self.ids, self.where = (self.position.clone() for _ in range(2))  # (n, 1) both, filled before each replay
        self.mask = torch.nn.functional.pad(self.attention.bool(), (0, room - used))[:, None, None]  # (n, 1, 1, room)
        how = {"attention_mask": self.mask, "position_ids": self.where, "past_key_values": self.cache}

        def run():
            self.out = self.model(input_ids=self.ids, use_cache=True, **how).logits[:, -1]

        self.replay = run
        if self.rows.is_cuda:
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                run()  # warm-up: libraries set themselves up, and autocast casts the weights, outside the graph
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                run()
            self.replay = graph.replay


@torch.no_grad()
def decode_two(
    base,
    rlvr,
    prompts,
    score,
    threshold,
    gamma,
    max_new_tokens,
    eos_ids,
    pad_id,
    temperature=1.0,
    top_p=1.0,
    first="base",
    n_vocab=None,
    generator=None,
    cuda_graph=False,
):
    """Two models decode one response (paper A, Algorithm 1): draw y from the model `first`; where its score exceeds the
    threshold, draw y again from log pi_RL + gamma dlogp - log Z. A cache for each model, both fed the same tokens.

    prompts: B lists of ids; threshold and gamma: (K,) each, for the K copies of every prompt; so N = B * K rows, in
    group order. inf never fires, -inf always. gamma 0 puts in RLVR's token, -1 the base's, above 0 one beyond RLVR's.
    score(logp_base, logp_rlvr, tokens) -> (n,) sees the log-probs (n, V) at temperature 1; what is drawn from is
    divided by temperature, then cut to its nucleus top_p. Ids from n_vocab on, which pad the embedding matrices, are
    left out. A row that draws one of eos_ids leaves both caches.
    A second draw takes noise only where something fires: if nothing does, the tokens are those of `rollout`.
    Returns tensors of N rows, T the longest response; all but `finished` (N,) are (N, T), right-padded:
      tokens    response ids, EOS included, then pad_id      mask    1 on response tokens, by position
      replaced  True where the second draw was taken         score   of the token drawn first
    """
    decoders = [Decoder(model, prompts, len(threshold), pad_id, max_new_tokens, cuda_graph) for model in (base, rlvr)]
    logits = [decoder.logits[:, :n_vocab] for decoder in decoders]  # base's, RLVR's
    n, device = len(logits[0]), base.device
    threshold, gamma = (torch.as_tensor(x, device=device).float().repeat(len(prompts)) for x in (threshold, gamma))
    tokens = torch.full((n, max_new_tokens), pad_id, device=device)
    mask, scores = (torch.zeros(n, max_new_tokens, device=device) for _ in range(2))
    replaced = torch.zeros(n, max_new_tokens, dtype=torch.bool, device=device)
    finished, live = torch.zeros(n, dtype=torch.bool, device=device), torch.arange(n, device=device)
    stops = torch.tensor(eos_ids, device=device)
    for t in range(max_new_tokens):  # live: the output row of each row still in the batch
        new, _, _ = sample_tokens(logits[first == "rlvr"], temperature, top_p, generator)
        logp = [torch.log_softmax(x.float(), dim=-1) for x in logits]
        scores[live, t] = value = score(*logp, new)
        fire = (value > threshold[live]).nonzero()[:, 0]
        if len(fire):
            mixed = extrapolate_logp(logp[1][fire], logp[0][fire], gamma[live][fire, None])
            new[fire], _, _ = sample_tokens(mixed, temperature, top_p, generator)
            replaced[live[fire], t] = True
        tokens[live, t], mask[live, t] = new, 1.0
        stopped = torch.isin(new, stops)
        if stopped.any():
            finished[live[stopped]] = True
            keep = (~stopped).nonzero()[:, 0]
            live, new = live[keep], new[keep]
            for decoder in decoders:
                decoder.keep(keep)
        if len(live) == 0 or t + 1 == max_new_tokens:
            break
        logits = [decoder.step(new)[:, :n_vocab] for decoder in decoders]
    result = {"tokens": tokens, "mask": mask, "replaced": replaced, "score": scores}
    return {name: x[:, : t + 1] for name, x in result.items()} | {"finished": finished}


# ----------------------------------------------------------------------------------------------- the task and verifier
def read_problems(path):
    """Rows {"prompt": str, "answer": str} of a JSONL file, perhaps with "system"; InputError names file and line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")  # not at U+2028, as splitlines would
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read problems from {path}: {getattr(error, 'strerror', None) or error}") from None
    if lines == [""]:
        raise InputError(f'{path} is empty: it needs a line {{"prompt": "...", "answer": "..."}} for every problem')
    problems = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
        except (ValueError, RecursionError):
            raise InputError(f"{path}, line {number}: this is not JSON: {line[:40]!r}") from None
        for key in ("prompt", "answer"):
            if not isinstance(row, dict) or not isinstance(row.get(key), str) or not row[key].strip():
                raise InputError(f'{path}, line {number}: "{key}" is missing, or not a string with something in it')
        if not isinstance(row.get("system", ""), str):
            raise InputError(f'{path}, line {number}: "system", which may be left out, is not a string')
        problems.append(row)
    return problems


def extract_answer(text):
    r"""What stands in the last balanced \boxed{...} of the last 20,000 characters; None if there is none."""
    text, opened, found = text[-20_000:], [], None
    for brace in re.finditer(r"\\boxed\s*\{|\\.|[{}]", text, re.DOTALL):  # one pass and a stack: linear time
        if brace[0] == "}":
            start = opened.pop() if opened else None
            if start is not None and (found is None or start > found[0]):
                found = start, brace.start()
        elif brace[0].endswith("{") and brace[0] != "\\{":
            opened.append(brace.end() if brace[0] != "{" else None)
    return None if found is None else text[slice(*found)].strip()


def normalize_answer(answer):
    r"""One spelling for what LaTeX writes in many: no $, no spacing, no \left, \frac{a}{b} for \dfrac and \frac12."""
    s = answer.replace("\u2212", "-").replace("\\$", "").replace("$", "").replace("\\%", "%").replace("{,}", ",")
    s = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;: ]|~|\^?(?:\\circ(?![a-zA-Z])|\{\\circ\})|°", "", s)
    s = re.sub(
        r"\\[dt]?frac(?![a-zA-Z])\s*(?:([0-9])\s*([0-9]))?",
        lambda m: r"\frac" + (f"{{{m[1]}}}{{{m[2]}}}" if m[1] else ""),
        s,
    )
    return re.sub(r"\s+", " ", s).strip().removesuffix(".")


_DECIMAL = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,100})(?:\.[0-9]{0,100})?|\.[0-9]{1,100})"
_NUMBER = re.compile(rf"([+-]?) ?(?:([0-9]{{1,100}}) (?=.*/))?({_DECIMAL})(?: ?/ ?({_DECIMAL}))?")  # 1,000  .5  1 2/3
_WORDS = "cm|mm|km|kg|inches|feet|miles|hours|minutes|seconds|days|years|degrees|dollars|cents|units|square units"
_UNIT = re.compile(rf"(?: ?\\(?:text|textrm|mathrm|mbox)\{{([^{{}}]*)\}}| ({_WORDS}))(?:\^\{{?[23]\}}?)?$| ?%$")


def as_number(answer):
    r"""(exact value, unit) of a plain number, fraction or mixed number; None of anything else. Nothing is evaluated.

    Units count as such only behind a number, and only if they cannot be a factor: \text{...}, %, a short list of words.
    """
    unit = _UNIT.search(answer)
    plain = re.sub(r"\\frac ?\{([^{}]*)\} ?\{([^{}]*)\}", r" \1/\2", answer[: unit.start()] if unit else answer)
    number = _NUMBER.fullmatch(plain.strip())
    if number is None:
        return None
    whole, top, bottom = (
        Fraction(x.replace(",", "").removesuffix(".")) for x in (number[2] or "0", number[3], number[4] or "1")
    )
    if bottom == 0:
        return None
    value = whole + top / bottom
    return (-value if number[1] == "-" else value), (re.sub(r"\\[a-z]+|[{} ]", "", unit[0]) if unit else "")


def is_correct(text, answer):
    r"""Does the last \boxed{} of text hold the answer? Numbers are equal as rationals: 1/2 = 0.5 = \frac12, 068 = 68.

    What is not a plain number is compared as a string, normalised, without spaces and \text{}. Reads, never evaluates:
    every call takes time linear in the text.
    """
    found = extract_answer(text)
    if not found or len(found) > 1000:
        return False
    found, answer = normalize_answer(found), normalize_answer(answer)
    left, right = as_number(found), as_number(answer)
    if left and right:
        return left[0] == right[0] and (left[1] == right[1] or "" in (left[1], right[1]))
    plain = [re.sub(r"\\(?:text|mathrm|mbox)(?:bf|rm)?\{([^{}]*)\}", r"\1", s) for s in (found, answer)]
    found, answer = (re.sub(r"(?<![0-9]) | (?![0-9])", "", s) for s in plain)  # "1 2" is not "12"
    return found == answer != ""


def check_answers(texts, answers, verifier="exact"):
    """For each text "right" or "wrong", or "failed" or "timed out", which count as wrong.

    exact: is_correct. math-verify: where that says no, the package of this name decides whether the last box and the
    answer are equal as LaTeX, in 5 seconds at most; what it cannot read has failed.
    """
    verdicts = ["right" if is_correct(*pair) else "wrong" for pair in zip(texts, answers, strict=True)]
    if verifier == "exact":
        return verdicts
    import math_verify
    from math_verify.errors import TimeoutException

    how = {"extraction_config": [math_verify.LatexExtractionConfig()], "fallback_mode": "no_fallback"}
    for i, found in enumerate(map(extract_answer, texts)):
        if verdicts[i] == "right" or not found:
            continue
        try:
            gold, said = (math_verify.parse(rf"\boxed{{{x}}}", **how, raise_on_error=True) for x in (answers[i], found))
            equal = gold and said and math_verify.verify(gold, said, raise_on_error=True)
            verdicts[i] = "right" if equal else "wrong" if gold and said else "failed"
        except TimeoutException:
            verdicts[i] = "timed out"
        except Exception:  # whatever its parser, or sympy, makes of what a model wrote
            verdicts[i] = "failed"
    return verdicts


def verifier_problems(verdicts):
    """{"verifier_failed": share, "verifier_timed_out": share} of the verdicts; left out where it is 0."""
    names, n = {"failed": "verifier_failed", "timed out": "verifier_timed_out"}, len(verdicts)
    return {name: list(verdicts).count(kind) / n for kind, name in names.items() if kind in verdicts}


def require_verifier(name):
    """InputError if the package that --verifier asks for is missing."""
    if name == "math-verify" and importlib.util.find_spec("math_verify") is None:
        raise InputError("--verifier math-verify needs a package that is missing: pip install math-verify")


def token_kinds(prompt, pieces):
    r"""What each token of a tiny-world response is for: "fork", "arithmetic" or "copy"; [] for a text of another form.

    pieces: the tokens as strings. At a fork the writer chooses how far to leap: at the start of a step (a digit, or
    \boxed{ and a guess) and after an operand (= or one operation more), unless no operation is left to choose. The
    digits of a result are arithmetic; all else repeats the problem or an earlier result, or is punctuation.
    """
    if not re.fullmatch(r"\d{1,3}(?:[-+*]\d)+\?", prompt):
        return []
    text, opened, end, at = "".join(pieces), len(re.findall(r"[-+*]", prompt)), 0, {}
    while step := re.compile(r"\d{1,3}((?:[-+*]\d)+)=(\d{1,3});").match(text, end):
        folded = len(step[1]) // 2
        forks = [step.start()] + [step.start(1) + 2 * i for i in range(1, min(folded, opened - 1) + 1)]
        at |= dict.fromkeys(forks if opened > 0 else [], "fork")
        at |= dict.fromkeys(range(step.start(2), step.end(2)), "arithmetic")
        opened, end = opened - folded, step.end()
    if opened > 0 and (jump := re.compile(r"(\\boxed\{)(\d+)").match(text, end)):
        at |= {jump.start(): "fork"} | dict.fromkeys(range(jump.start(2), jump.end(2)), "arithmetic")
    starts = np.cumsum([0] + [len(piece) for piece in pieces])[:-1]
    return [at.get(start, "copy") for start in starts.tolist()]


def decode_arms(
    models, tokenizer, problems, prompts, arms, samples, rows, desc, seed, score, verifier="exact", **decoding
):
    """decode_two of every problem under K arms, `samples` times each, `rows` rows at a time; yields a dict a batch.

    arms: K pairs (threshold, gamma). A batch has `problems`, a slice; tokens, mask, replaced, score and finished of
    decode_two as (problems, K, samples, ...) arrays; texts, verdicts and right as (problems, K, samples) arrays. Every
    batch draws from a generator of its own.
    """
    each = max(1, rows // (len(arms) * samples))
    threshold, gamma = (torch.tensor(x).repeat_interleave(samples) for x in zip(*arms, strict=True))
    for i in tqdm(range(0, len(problems), each), desc=desc, unit="batch", leave=False):
        cut = slice(i, i + each)
        generator = torch.Generator(models[0].device).manual_seed(seed * 1_000_003 + i)
        part = decode_two(*models, prompts[cut], score, threshold, gamma, generator=generator, **decoding)
        lengths = part["mask"].sum(1).long().tolist()
        ids = [row[:n] for row, n in zip(part["tokens"].tolist(), lengths, strict=True)]
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        answers = [problem["answer"] for problem in problems[cut] for _ in threshold]
        verdicts, shape = np.array(check_answers(texts, answers, verifier)), (-1, len(arms), samples)
        part = {name: x.cpu().numpy().reshape(*shape, *x.shape[1:]) for name, x in part.items()}
        part |= {"problems": cut, "texts": np.reshape(texts, shape), "verdicts": verdicts.reshape(shape)}
        yield part | {"right": part["verdicts"] == "right"}


def calibrate(decode, targets, passes):
    """Thresholds (K,) at which shares `targets` of the tokens are replaced: quantiles of the score, found by iteration.

    decode(thresholds, number of the pass) -> for each threshold, the scores of all tokens drawn. The first quantiles
    are those of a pass without replacements; but replaced tokens lead to other prefixes with other scores, so each
    further pass decodes at the last quantiles, and the next ones are those of the last two passes together.
    """
    last = decode([math.inf], 0) * len(targets)
    thresholds = [float(np.quantile(scores, 1 - target)) for scores, target in zip(last, targets, strict=True)]
    for number in range(1, passes + 1):
        new = decode(thresholds, number)
        both = new if number == 1 else [np.concatenate(pair) for pair in zip(last, new, strict=True)]
        thresholds = [float(np.quantile(scores, 1 - target)) for scores, target in zip(both, targets, strict=True)]
        last = new
    return thresholds


# ---------------------------------------------------------------------------------------------------- files and figure
def printable(text):
    """Text of a model for the terminal: control characters, line breaks too, become escapes and do nothing."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def lock(folder):
    """Hold `folder` for this process until it ends, however it ends; InputError if another process does.

    Where there is no fcntl (Windows), nothing is locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(f"cannot write to the run folder {folder} ({error.strerror}); choose another --out") from None
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(
            f"another run is using {folder} ({error.strerror}); wait for it, or choose another --out"
        ) from None


def open_run(args, device):
    """Make the run folder and its config.json, or check that --resume goes on with the same experiment."""
    out, config, asked = Path(args.out), Path(args.out) / "config.json", dataclasses.asdict(args)
    if args.resume and not config.exists():
        raise InputError(f"--resume: {out} holds no run (there is no {config})")
    lock(out)
    if args.resume:
        before = json.loads(config.read_text())["args"]
        free = {"resume", "overwrite", "out", "steps", "save_every", "checkpoint_every", "micro_batch", "bootstrap"}
        free |= {"gen_batch", "rows", "gradient_checkpointing", "cuda_graph"}  # changed when memory ran out
        other = [k for k in asked if k not in free and before.get(k) != asked[k]]
        if other:
            flags = ", ".join(f"--{k.replace('_', '-')} {before.get(k)}" for k in other)
            raise InputError(f"--resume: {out} was started with {flags}; give the same, or another --out")
    elif any((out / name).exists() for name in ("metrics.jsonl", "responses.jsonl")) and not args.overwrite:
        raise InputError(f"{out} already holds a run; add --resume to go on, --overwrite to lose it, or another --out")
    elif config.exists():
        for path in set(out.iterdir()) - {out / "lock"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, np)}
    versions["python"] = platform.python_version()
    about = {"args": asked, "versions": versions, "git_commit": commit or None, "device": device}
    try:
        write_text(config, json.dumps(about, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"cannot write to the run folder {out} ({error.strerror}); choose another --out") from None
    return out


def write_text(path, text):
    """Write under a temporary name, then rename: readers see the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def append_row(path, row):
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def show_replaced(pieces, replaced):
    """A response as text, the replaced tokens in [brackets]: lists of T strings and T flags."""
    return "".join(f"[{piece}]" if flag else piece for piece, flag in zip(pieces, replaced, strict=True))


def draw_ratios(path, panels, ends, title):
    """Accuracy against the share of replaced tokens (figures 2 and 6), with 95% intervals over problems.

    panels: {title: {criterion: rows of metrics.jsonl}}; ends: {label: (accuracy, half-width)}, drawn as lines.
    """
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(1 + 4.5 * len(panels), 4.2), layout="constrained", sharey=True, squeeze=False
    )
    for axis, (name, curves) in zip(axes[0], panels.items(), strict=True):
        for (label, (mean, half)), color in zip(ends.items(), ("gray", "black"), strict=True):
            axis.axhline(mean, color=color, lw=1, ls="--", label=label)
            axis.axhspan(mean - half, mean + half, color=color, alpha=0.12, lw=0)
        for criterion, rows in curves.items():
            points = [(row["ratio"], row["accuracy"], row["accuracy_ci95"]) for row in rows if row["ratio"] > 0]
            x, y, half = np.array(points).reshape(-1, 3).T  # a ratio of 0 is the base's line
            color = f"C{list(SCORES).index(criterion.removeprefix('reverse-'))}"
            axis.errorbar(100 * x, y, half, fmt="o-", ms=4, capsize=2, label=criterion, color=color)
        axis.set(xscale="log", title=name, xlabel="replaced tokens (% of all, measured)", ylim=(0, 1))
        ticks = [100 * row["target"] for row in rows]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("share of responses right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def compare(everything, curves, resamples, seed):
    """How the criteria compare: {criterion: row} and {"a - b": row}, from {criterion: rows of metrics.jsonl}.

    everything: the row of the RLVR model. enough: the smallest measured ratio whose accuracy is within the noise of
    RLVR's (the 95% interval of the difference, paired by problem, reaches 0). area: mean accuracy over log ratio, where
    all curves are defined.
    """
    table, areas, differences = {}, {}, {}
    if not curves:
        return table, differences
    least = 1e-6  # a curve may begin at a measured ratio of 0, which has no logarithm
    low, high = (pick(max(least, rows[i]["ratio"]) for rows in curves.values()) for pick, i in ((max, 0), (min, -1)))
    for name, rows in curves.items():
        values = np.array([row["right"] for row in [everything, *rows]])  # (1 + K, P)
        means = bootstrap_means(values, resamples, seed)  # the same problems for every criterion: paired
        lead = np.quantile(means[:, :1] - means[:, 1:], 0.025, axis=0)  # of RLVR over each ratio
        enough = [row["ratio"] for row, x in zip(rows, lead, strict=True) if x <= 0]
        table[name] = {"enough": min(enough, default=None)}
        if len(rows) > 1 and low < high:
            ratio = np.maximum.accumulate([max(least, row["ratio"]) for row in rows]) * (
                1 + 1e-9 * np.arange(len(rows))
            )
            areas[name] = area_under(ratio, np.vstack([values[1:].mean(axis=1), means[:, 1:]]), low, high)
            interval = np.quantile(areas[name][1:], [0.025, 0.975])
            table[name] |= {"area": float(areas[name][0]), "area_ci95": interval.tolist()}
    for one, other in (("dlogp", "kl"), ("kl", "entropy"), ("entropy", "random")):
        if one in areas and other in areas:
            gap = areas[one] - areas[other]
            interval = np.quantile(gap[1:], [0.025, 0.975])
            differences[f"{one} - {other}"] = {"area": float(gap[0]), "area_ci95": interval.tolist()}
    return table, differences


def print_tables(curves, table, differences, ends):
    """The curves, the comparison of the criteria and the differences, as Markdown."""
    print("\n" + ", ".join(f"{label} {mean:.3f} ± {half:.3f}" for label, (mean, half) in ends.items()))
    print("\naccuracy (share of tokens that was replaced), by target")
    for i, (name, rows) in enumerate(curves.items()):
        if i == 0:
            print("\n| | " + " | ".join(f"{row['target']:g}" for row in rows) + " |\n|---|" + "---|" * len(rows))
        cells = [f"{row['accuracy']:.3f} ± {row['accuracy_ci95']:.3f} ({row['ratio']:.3f})" for row in rows]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| | smallest ratio within the noise of RLVR | area | share of replacements at forks, by target |")
    print("|---|---|---|---|")
    for name, row in table.items():
        enough = "none" if row["enough"] is None else f"{row['enough']:.3f}"
        area = "{:.3f} [{:.3f}, {:.3f}]".format(row["area"], *row["area_ci95"]) if "area" in row else ""
        forks = ", ".join("-" if one["at_forks"] is None else f"{one['at_forks']:.2f}" for one in curves[name])
        print(f"| {name} | {enough} | {area} | {forks} |")
    print("\n| difference of areas | paired by problem |\n|---|---|")
    for name, row in differences.items():
        print(f"| {name} | " + "{:+.3f} [{:+.3f}, {:+.3f}] |".format(row["area"], *row["area_ci95"]))


def finished_rows(out, jobs):
    """{criterion: rows} of the jobs that metrics.jsonl holds in full; rows of others leave both files."""
    found, files = {}, {}
    for name in ("metrics.jsonl", "samples.jsonl"):
        lines = (out / name).read_text().splitlines() if (out / name).exists() else []
        files[name] = [json.loads(line) for line in lines if line.endswith("}")]
    for row in files["metrics.jsonl"]:
        found.setdefault(row["criterion"], []).append(row)
    whole = [names for names in jobs.values() if all(len(found.get(name, [])) == names.count(name) for name in names)]
    complete = {name for names in whole for name in names}
    for name, rows in files.items():
        write_text(out / name, "".join(json.dumps(row) + "\n" for row in rows if row["criterion"] in complete))
    return {name: rows for name, rows in found.items() if name in complete}


def count_arms(parts, problems, names, targets, thresholds, piece):
    """(rows for metrics.jsonl, one an arm; rows for samples.jsonl, one an arm and problem) of what decode_arms yields.

    piece(id) is a token as a string. A row's `right` is the share of right responses to each problem.
    """
    right, counts, samples = [], np.zeros((len(names), 3)), []  # counts: tokens, replaced, replaced at a fork
    verdicts = [[] for _ in names]
    for part in parts:
        right.append(part["right"].mean(axis=2))
        for b, k, s in np.ndindex(part["right"].shape):
            verdicts[k].append(str(part["verdicts"][b, k, s]))
            problem, n = problems[part["problems"]][b], int(part["mask"][b, k, s].sum())
            pieces = [piece(i) for i in part["tokens"][b, k, s, :n].tolist()]
            replaced = part["replaced"][b, k, s, :n]
            kinds = np.array(token_kinds(problem["prompt"], pieces) or [""] * n)
            counts[k] += n, replaced.sum(), (replaced & (kinds == "fork")).sum()
            if s == 0:
                row = {"criterion": names[k], "target": targets[k], "right": bool(part["right"][b, k, s])}
                row |= {"prompt": problem["prompt"], "answer": problem["answer"], "response": part["texts"][b, k, s]}
                samples.append(row | {"tokens": pieces, "replaced": replaced.nonzero()[0].tolist()})
    rows, right = [], np.concatenate(right).T  # (K, P)
    for k, (n, replaced, forks) in enumerate(counts):
        mean, half = mean_and_half(right[k])
        row = {"criterion": names[k], "target": targets[k], "ratio": replaced / n, "accuracy": mean}
        row |= {"accuracy_ci95": half, "at_forks": forks / replaced if replaced else None}
        row |= {"threshold": thresholds[k] if math.isfinite(thresholds[k]) else None, "right": right[k].tolist()}
        rows.append(row | verifier_problems(verdicts[k]))
    return rows, samples


# ------------------------------------------------------------------------------------------------------------ the run
def main(args):
    """Calibrate and decode each criterion, compare, draw. Returns the exit status."""
    began = time.perf_counter()
    transformers.utils.logging.disable_progress_bar()
    test = read_problems(args.test)[: args.problems or None]
    train = read_problems(args.train)[: args.calibration_problems]
    require_verifier(args.verifier)
    device = pick_device(args.device)
    models, tokenizer, ids = load_models((args.base, args.rlvr), args.tokenizer, device)
    base, rlvr = models[args.base], models[args.rlvr]
    context = min(model.config.max_position_embeddings for model in models.values())
    test_ids = encode_prompts(tokenizer, test, args.test, context - args.max_response)
    train_ids = encode_prompts(tokenizer, train, args.train, context - args.max_response)
    decoding = ids | {"max_new_tokens": args.max_response, "temperature": args.temperature, "top_p": args.top_p}
    decoding |= {"cuda_graph": args.cuda_graph and device.type == "cuda", "verifier": args.verifier}
    bf16 = args.dtype == "bf16" or (args.dtype == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    targets = [float(x) for x in args.ratios.split(",")]
    out = open_run(args, torch.cuda.get_device_name(device) if device.type == "cuda" else device.type)
    for name, model in models.items():
        size = sum(p.numel() for p in model.parameters())
        print(f"{name}: {size:,} parameters on {device}, {'bf16 autocast' if bf16 else 'fp32'}")
    longest = max(map(len, test_ids + train_ids)) + args.max_response
    need = estimate_memory([*models.values()], bf16, args.rows, longest)
    parts = ", ".join(f"{what} {size / 2**20:,.0f}" for what, size in need.items())
    print(f"memory, estimated in MiB: {parts}", flush=True)
    piece = functools.cache(lambda i: tokenizer.decode([i]))

    # A job is a criterion at all ratios. The first one replaces nothing, and everything: the base, and the RLVR model.
    jobs = {"ends": ("none", "all")}
    jobs |= {name: (name,) * len(targets) for name in args.criteria.split(",") if name}
    jobs |= {f"reverse-{name}": (f"reverse-{name}",) * len(targets) for name in args.reverse.split(",") if name}
    found = finished_rows(out, jobs)
    for j, (job, names) in enumerate(jobs.items()):
        if all(name in found for name in names):
            continue
        clock, seed = time.perf_counter(), args.seed * 1000 + 20 * j
        pair = (rlvr, base) if job.startswith("reverse-") else (base, rlvr)  # the roles change, in the score as well
        score = SCORES["dlogp" if job == "ends" else job.removeprefix("reverse-")]
        if score is score_random:
            score = functools.partial(score_random, generator=torch.Generator(device).manual_seed(seed + 10))
        common = {"samples": args.samples, "rows": args.rows, "score": score} | decoding

        # ---- 1. calibrate: the thresholds that give the target ratios on training problems
        def scores_of(thresholds, number, job=job, pair=pair, common=common, seed=seed):
            arms, found = [(threshold, 0.0) for threshold in thresholds], [[] for _ in thresholds]
            how = common | {"desc": f"{job}: calibration", "seed": seed + 1 + number}
            for part in decode_arms(pair, tokenizer, train, train_ids, arms, **how):
                for k, scores in enumerate(found):
                    scores.append(part["score"][:, k][part["mask"][:, k] > 0])
            return [np.concatenate(scores) for scores in found]

        with autocast:
            if job == "ends":
                wanted, thresholds = [0.0, 1.0], [math.inf, -math.inf]
            elif isinstance(score, functools.partial):  # random: the threshold is known
                wanted, thresholds = targets, [1 - target for target in targets]
            else:
                wanted, thresholds = targets, calibrate(scores_of, targets, args.calibration_passes)

            # ---- 2. decode the test problems at all thresholds, as rows of one batch
            arms = [(threshold, 0.0) for threshold in thresholds]
            parts = decode_arms(pair, tokenizer, test, test_ids, arms, desc=job, seed=seed, **common)
            rows, samples = count_arms(parts, test, names, wanted, thresholds, piece)
        for file, new in (("samples.jsonl", samples), ("metrics.jsonl", rows)):
            with open(out / file, "a") as opened:
                opened.write("".join(json.dumps(row) + "\n" for row in new))
        append_row(out / "timing.jsonl", {"job": job, "seconds": round(time.perf_counter() - clock, 2)})
        for row in rows:
            found.setdefault(row["criterion"], []).append(row)
        points = "  ".join(f"{row['ratio']:.3f}: {row['accuracy']:.3f}" for row in rows)
        tqdm.write(f"{job:14s} replaced share: accuracy  {points}")

    # ---- 3. compare and draw
    found = {name: found[name] for names in jobs.values() for name in dict.fromkeys(names)}
    curves = {name: rows for name, rows in found.items() if name not in ("none", "all")}
    forward = {name: rows for name, rows in curves.items() if not name.startswith("reverse-")}
    backward = {name: rows for name, rows in curves.items() if name.startswith("reverse-")}
    table, differences = compare(found["all"][0], forward, args.bootstrap, args.seed)
    write_text(out / "summary.json", json.dumps({"criteria": table, "differences": differences}, indent=2) + "\n")
    ends = {label: mean_and_half(found[name][0]["right"]) for label, name in (("base", "none"), ("RLVR", "all"))}
    title = f"{args.base} and {args.rlvr}: {len(test)} problems x {args.samples} responses,\n"
    title += f"temperature {args.temperature:g}, top-p {args.top_p:g}"
    panels = {
        "paper A, figure 2": {name: rows for name, rows in forward.items() if name in MAIN},
        "other magnitudes (figure 6)": {n: rows for n, rows in forward.items() if n == "kl" or n not in MAIN},
    }
    if forward:
        draw_ratios(out / "replace.png", {name: rows for name, rows in panels.items() if rows}, ends, title)
    if backward:
        panel = {"the reverse: base's tokens put into RLVR's responses": backward}
        draw_ratios(out / "reverse.png", panel, ends, title)
    print_tables(curves, table, differences, ends)
    print(f"\n{printable(test[0]['prompt'][-80:])}   answer {test[0]['answer']}; replaced tokens in [brackets]")
    with open(out / "samples.jsonl") as file:
        for row in (row for row in map(json.loads, file) if row["prompt"] == test[0]["prompt"]):
            if row["criterion"] in ("none", "dlogp", "random") and row["target"] in (0, targets[len(targets) // 2]):
                text = show_replaced(row["tokens"], [i in row["replaced"] for i in range(len(row["tokens"]))])
                print(f"  {row['criterion']:6s} {'right' if row['right'] else 'wrong'}  {printable(text[:300])}")
    print(f"figures, samples.jsonl and every number are in {out}; {time.perf_counter() - began:.0f} s")
    return 0


KEPT = "finished criteria are kept, and --resume goes on from them"
MENDS = {"load_model": "choose smaller models", "main": "lower --rows"}  # of memory that runs out in the function


if __name__ == "__main__":
    flags = None
    try:
        flags = parse_args(Args, __doc__)
        sys.exit(main(flags))
    except Exception as error:
        sentence = explain(error, flags and flags.out, KEPT, MENDS)
        if sentence is None:
            raise
        print(f"{Path(__file__).name}: error: {sentence}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; finished criteria are kept, and the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
