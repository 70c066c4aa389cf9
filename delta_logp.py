"""What RLVR changed, token by token: the signed log-probability difference between a base model and its RLVR model.

What it shows: entropy and KL say where two models differ, dlogp also says in which direction. Both models answer the
same problems; both score every token of both answers. Most tokens have not changed at all; in the tiny world, the few
that have sit at the forks (how far to leap?) and not in the arithmetic. The run ends with a page of coloured tokens.

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), sections 3.1 and 3.3

The equations, tagged (1) to (5) in the code; pi is the softmax over the whole vocabulary, y_t the token at hand:
  (1) dlogp(y_t) = log pi_RL(y_t | x, y_<t) - log pi_base(y_t | x, y_<t)                                eq. 1
  (2) H = -sum_v pi_v log pi_v, of base and of RL                                                       section 3.1
  (3) KL(RL||base) = sum_v pi_RL,v log (pi_RL,v / pi_base,v), KL(base||RL), and their mean              section 3.1
  (4) |dJ/dz|_1 = |w A| 2 (1 - pi(y_t)), the gradient coefficient: z are the logits of an unclipped     lemma, 3.3
      token, w its importance ratio, A its advantage
  (5) overlap = sum over bins of min(share of RL's tokens, share of base's tokens), 1 where the two     ours
      histograms coincide; AUC = P(a token of RL's has the larger value), 1/2 where it says nothing
In expectation the sign of (1) is no surprise: over RL's own tokens its mean is KL(RL||base) >= 0, over the base's own
tokens it is -KL(base||RL) <= 0. How far the histograms part, and at how few tokens, is what one has to measure.

Differs from the paper: where it compares histograms by eye, overlap and AUC have 95% intervals, by bootstrap over
responses, as the tokens of one response are not independent. Everything is over the full vocabulary, in fp32.

    python delta_logp.py                       # tiny pair on two CPU cores, under a minute
    python delta_logp.py --check               # the lemma (4) against autograd on the RLVR model's own logits
    python delta_logp.py --base Qwen/Qwen2.5-1.5B --rlvr Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B \\
        --data data/aime24/test.jsonl --max-response 4096 --micro-batch 4                                    # one GPU
"""

import argparse
import dataclasses
import html
import importlib.util
import itertools
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

SOURCES = ("base", "rlvr")  # who wrote a response
METRICS = {  # of token_metrics, as the figures call them
    "dlogp": "dlogp (nats)",
    "entropy_base": "entropy of base (nats)",
    "entropy_rlvr": "entropy of RLVR (nats)",
    "kl": "mean KL (nats)",
    "kl_rlvr_base": "KL(RLVR || base) (nats)",
    "kl_base_rlvr": "KL(base || RLVR) (nats)",
}


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
    data: str = arg("tiny/test.jsonl", 'problems, one {"prompt": ..., "answer": ...} a line')
    responses: str = arg("", "score these responses instead of sampling: the format of responses.jsonl")
    out: str = arg("runs/delta_logp/default", "folder of this run")
    resume: bool = arg(False, "go on with the responses that --out already holds")
    overwrite: bool = arg(False, "delete the run that --out holds")
    seed: int = arg(1, "of sampling and of the bootstrap", 0)
    device: str = arg("auto", "auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = arg("auto", "autocast; auto is bf16 on CUDA, else fp32", choices=("auto", "fp32", "bf16"))
    cuda_graph: bool = arg(True, "on CUDA, decode by replaying a CUDA graph; no effect on a CPU")
    verifier: str = arg("exact", "of final answers; math-verify needs its package", choices=("exact", "math-verify"))
    # sampling
    problems: int = arg(100, "the first N problems of --data; 0: all", 0)
    samples: int = arg(8, "responses of each model to a problem", 1)
    gen_batch: int = arg(32, "prompts decoded side by side", 1)
    max_response: int = arg(128, "response limit, in tokens", 1)
    temperature: float = arg(1.0, "of sampling and of every log-prob", 1e-3)
    # scoring
    micro_batch: int = arg(64, "responses in one forward pass", 1)
    chunk: int = arg(512, "tokens whose distributions are held at once", 1)
    # the training batch of figure 3a
    checkpoint: str = arg("", "the model that samples the training batch of figure 3a; empty: --rlvr")
    train: str = arg("", "the problems of that batch; empty: those of --data")
    batch_prompts: int = arg(32, "prompts in that batch, all of them with right and wrong responses", 1)
    batch_group: int = arg(8, "responses to each of them", 2)
    # statistics and figures
    bootstrap: int = arg(200, "resamples of the responses behind each interval; 0: no intervals", 0)
    bins: int = arg(80, "bins of the histograms", 2)
    show: int = arg(4, "problems whose responses are drawn token by token", 0)
    color_limit: float = arg(4.0, "dlogp, in nats, at which the colour scale ends", 1e-3)
    check: bool = arg(False, "check the lemma against autograd instead; exit status 1 if it fails")

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if not isinstance(value, str) and not low <= value <= high:
                raise InputError(f"--{f.name.replace('_', '-')} {value}: it must lie in [{low}, {high}]")
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        if self.resume and self.responses:
            raise InputError("--resume goes on with sampling; with --responses there is nothing to sample")


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
    return (logp_rlvr.gather(-1, index) - logp_base.gather(-1, index)).squeeze(-1)  # (1)


def entropy(logp):
    """Entropy in nats of distributions given as log-probs: (..., V) -> (...). An id of log-prob -inf counts as 0."""
    return torch.special.entr(logp.exp()).sum(-1)  # (2)


def kl_divergence(logp_p, logp_q):
    """KL(p || q) in nats, of log-probs (..., V) both -> (...). Ids that p never takes count as 0, whatever q does.

    Infinite where p takes what q never does. Rounding may leave -1e-7 for equal distributions; that is cut to 0.
    """
    terms = logp_p.exp() * (logp_p - logp_q)  # (3)
    return terms.masked_fill(logp_p == -torch.inf, 0.0).sum(-1).clamp(min=0.0)


def token_metrics(logits_base, logits_rlvr, tokens):
    """What two models say of the same N tokens: logits (N, V) both, of any dtype, and ids (N,) -> dict of (N,) fp32.

    logp_base, logp_rlvr  log-prob of the token            dlogp                       their difference (1)
    entropy_base, entropy_rlvr  in nats (2)                kl_rlvr_base, kl_base_rlvr, and kl, their mean (3)
    The softmax is over all V in fp32. Needs room for about five (N, V) tensors: pass the tokens in chunks.
    """
    base, rlvr = (torch.log_softmax(logits.float(), dim=-1) for logits in (logits_base, logits_rlvr))
    kl_rlvr_base, kl_base_rlvr = kl_divergence(rlvr, base), kl_divergence(base, rlvr)
    return {
        "logp_base": base.gather(-1, tokens[:, None])[:, 0],
        "logp_rlvr": rlvr.gather(-1, tokens[:, None])[:, 0],
        "dlogp": delta_logp(base, rlvr, tokens),
        "entropy_base": entropy(base),
        "entropy_rlvr": entropy(rlvr),
        "kl_rlvr_base": kl_rlvr_base,
        "kl_base_rlvr": kl_base_rlvr,
        "kl": (kl_rlvr_base + kl_base_rlvr) / 2,
    }


def gradient_coefficient(logp, adv, ratio=1.0):
    """l1 norm of the policy gradient with respect to an unclipped token's logits (paper A, lemma): (...) -> (...).

    logp is the token's log-prob at the temperature of the softmax, adv its advantage, ratio its importance ratio, 1 in
    the first mini-batch of a step. Unlikely tokens get up to twice |ratio * adv|, certain ones nothing.
    """
    return (ratio * adv).abs() * 2 * -torch.expm1(logp)  # (4)


def group_advantages(rewards):
    """Rewards normalised in their group (DAPO eq. 9): (B, G) -> (B, G).

    Sample standard deviation (n - 1) plus 1e-6, as in the released code. A group of equal rewards, or of one response,
    gets exactly 0, where a division of rounding noise by 1e-6 would not.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return (centred / (std + 1e-6)).masked_fill(equal, 0.0)


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


# ------------------------------------------------------------------------------------ statistics: arrays over tokens
def histogram_overlap(a, b, bins, weights_a=None, weights_b=None):
    """Overlap coefficient of two samples' histograms, in [0, 1]: sum over bins of min(share of a, share of b).

    bins: edges (K + 1,), or a number of equal bins from the least to the largest value. Values beyond the edges count
    in the outermost bins. Weights (as of a bootstrap) go with the values; an empty sample raises ValueError.
    """
    if len(a) == 0 or len(b) == 0:
        raise ValueError("an overlap needs two samples that are not empty")
    edges = np.histogram_bin_edges(np.concatenate([a, b]), bins) if np.ndim(bins) == 0 else np.asarray(bins)
    shares = []
    for values, weights in ((a, weights_a), (b, weights_b)):
        counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges, weights=weights)[0]
        shares.append(counts / counts.sum())
    return float(np.minimum(*shares).sum())  # (5)


def auc(a, b, weights_a=None, weights_b=None):
    """P(x > y) + P(x = y) / 2, x drawn from a and y from b: the area under the ROC curve of telling a from b."""
    if len(a) == 0 or len(b) == 0:
        raise ValueError("an AUC needs two samples that are not empty")
    order = np.argsort(b)
    below = np.concatenate([[0.0], np.cumsum(np.ones(len(b)) if weights_b is None else weights_b[order])])
    left, right = (below[np.searchsorted(b[order], a, side=side)] for side in ("left", "right"))
    return float(np.average((left + right) / 2, weights=weights_a) / below[-1])  # (5)


def bootstrap_interval(statistic, a, b, owner_a, owner_b, resamples, seed):
    """95% percentile interval of statistic(a, b, weights_a, weights_b), responses drawn with replacement.

    owner_*: the response, 0 .. R-1, of each value. A value's weight is how often its response was drawn. (low, high);
    None without resamples.
    """
    if resamples == 0:
        return None
    rng, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        sizes = [owner.max() + 1 for owner in (owner_a, owner_b)]
        times = [rng.multinomial(size, np.full(size, 1 / size)).astype(float) for size in sizes]
        draws.append(statistic(a, b, times[0][owner_a], times[1][owner_b]))
    return tuple(np.quantile(draws, [0.025, 0.975]).tolist())


def held_by_top(values, share):
    """Share of sum |values| that the largest `share` (0 to 1, an array) of the values hold; 0 if they are all 0."""
    largest = np.sort(np.abs(values))[::-1].astype(float)
    held = np.concatenate([[0.0], np.cumsum(largest)])
    return np.interp(np.asarray(share) * len(largest), np.arange(len(held)), held) / (held[-1] or 1.0)


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
def rollout(
    model,
    prompts,
    group_size,
    max_new_tokens,
    eos_ids,
    pad_id,
    temperature=1.0,
    top_p=1.0,
    n_vocab=None,
    generator=None,
    cuda_graph=False,
):
    """Sample group_size responses to each of B prompts (lists of ids), keeping what each token was drawn from.

    A prompt is read once and its cache repeated for the group; a row that draws one of eos_ids leaves. See Decoder.
    Tokens come from the full softmax at `temperature` (generation_config is not consulted) or its nucleus top_p; ids
    from n_vocab on, which pad the embedding matrix, are never drawn. Returns tensors of N = B * group_size rows in
    group order, T the longest response; all but `finished` are (N, T), right-padded:
      tokens    response ids, EOS included, then pad_id      mask      1 on response tokens, by position
      logp      log-prob of the token, full softmax          entropy   of that softmax, in nats
      finished  (N,) False where max_new_tokens cut the response
    """
    was_training = model.training
    model.eval()  # in train mode, gradient checkpointing would switch the cache off
    decoder = Decoder(model, prompts, group_size, pad_id, max_new_tokens, cuda_graph)
    logits, n, device = decoder.logits, len(decoder.logits), model.device
    tokens = torch.full((n, max_new_tokens), pad_id, device=device)
    mask, logp, entropy = (torch.zeros(n, max_new_tokens, device=device) for _ in range(3))
    finished, live = torch.zeros(n, dtype=torch.bool, device=device), torch.arange(n, device=device)
    stops = torch.tensor(eos_ids, device=device)
    for t in range(max_new_tokens):  # live: the output row of each row still in the batch
        if n_vocab is not None:
            logits[:, n_vocab:] = -math.inf
        new, logp[live, t], entropy[live, t] = sample_tokens(logits, temperature, top_p, generator)
        tokens[live, t], mask[live, t] = new, 1.0
        stopped = torch.isin(new, stops)
        if stopped.any():
            finished[live[stopped]] = True
            keep = (~stopped).nonzero()[:, 0]
            live, new = live[keep], new[keep]
            decoder.keep(keep)
        if len(live) == 0 or t + 1 == max_new_tokens:
            break
        logits = decoder.step(new)
    model.train(was_training)
    result = {"tokens": tokens, "mask": mask, "logp": logp, "entropy": entropy}
    return {name: x[:, : t + 1] for name, x in result.items()} | {"finished": finished}


def pack(prompts, responses, pad_id, device="cpu"):
    """Join N prompts and N responses, lists of ids, into right-padded tokens (N, L) and mask (N, L), 1 on responses."""
    rows = [list(prompt) + list(response) for prompt, response in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=device)
    start, stop = (torch.tensor([len(x) for x in xs], device=device)[:, None] for xs in (prompts, rows))
    column = torch.arange(width, device=device)
    return tokens, ((start <= column) & (column < stop)).float()


def micro_batches(mask, mini, micro):
    """Cut N rows into mini-batches of `mini`, in order, and each of them into micro-batches of rows of like length.

    Returns a list of mini-batches, each a list of (row indices, width): width is where the longest of the rows ends.
    """
    ends = [int(row.nonzero()[-1]) + 1 for row in mask]
    plan = []
    for i in range(0, len(ends), mini):
        rows = sorted(range(i, min(i + mini, len(ends))), key=lambda row: ends[row])
        parts = [rows[j : j + micro] for j in range(0, len(rows), micro)]
        plan.append([(part, ends[part[-1]]) for part in parts])
    return plan


@torch.no_grad()
def score_pair(base, rlvr, tokens, mask, temperature=1.0, n_vocab=None, chunk=512):
    """token_metrics of every token whose mask is 1, under both models: right-padded (N, L) -> dict of (M,), row by row.

    The states of all tokens are kept, (M, hidden); logits exist for `chunk` tokens at a time, so the largest tensor has
    chunk * vocabulary entries. Ids from n_vocab on, which pad the embedding matrix, get no probability.
    """
    scored = mask[:, 1:] != 0  # the state at t - 1 predicts the token at t
    targets = tokens[:, 1:][scored]  # (M,)
    states = [model.base_model(tokens, use_cache=False)[0][:, :-1][scored].split(chunk) for model in (base, rlvr)]
    parts = []
    for state_base, state_rlvr, target in zip(*states, targets.split(chunk), strict=True):
        logits = [
            model.get_output_embeddings()(state)[:, :n_vocab].float() / temperature  # (chunk, V)
            for model, state in ((base, state_base), (rlvr, state_rlvr))
        ]
        parts.append(token_metrics(*logits, target))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def lemma_error(model, tokens, mask, temperature, n_vocab, seed, most=2048):
    """Largest relative difference between (4) and the l1 norm that autograd finds, on the model's own logits.

    float64 from the logits on, as 1 - pi cancels; tokens with 1 - pi < 1e-9 are left out. Advantages and importance
    ratios are drawn at random. Returns (error, number of tokens).
    """
    with torch.no_grad():
        states = model.base_model(tokens, use_cache=False)[0][:, :-1][mask[:, 1:] != 0][:most]
        logits = (model.get_output_embeddings()(states)[:, :n_vocab].double() / temperature).requires_grad_()
    targets = tokens[:, 1:][mask[:, 1:] != 0][:most, None]
    rng = torch.Generator().manual_seed(seed)
    adv, log_ratio = (torch.randn(len(targets), generator=rng).to(logits) * scale for scale in (1.0, 0.05))
    logp = torch.log_softmax(logits, dim=-1).gather(-1, targets)[:, 0]
    ratio = (logp - (logp.detach() - log_ratio)).exp()  # pi / pi_old of the unclipped objective w A
    (gradient,) = torch.autograd.grad((ratio * adv).sum(), logits)
    expected = gradient_coefficient(logp.detach(), adv, ratio.detach())
    keep = -torch.expm1(logp.detach()) > 1e-9
    return ((gradient.abs().sum(-1) - expected).abs() / expected)[keep].max().item(), int(keep.sum())


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


def sample_and_check(model, tokenizer, problems, prompts, group_size, verifier="exact", **decoding):
    """`rollout`, decoded and verified: adds ids, texts and verdicts (N each), right (B, G) bool and length (B, G)."""
    part = rollout(model, prompts, group_size, **decoding)
    lengths = part["mask"].sum(1).long().cpu()
    ids = [row[:n] for row, n in zip(part["tokens"].tolist(), lengths.tolist(), strict=True)]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    verdicts = check_answers(texts, [problem["answer"] for problem in problems for _ in range(group_size)], verifier)
    right = torch.tensor([verdict == "right" for verdict in verdicts]).view(-1, group_size)
    part |= {"ids": ids, "texts": texts, "verdicts": verdicts, "right": right}
    return part | {"length": lengths.view(-1, group_size)}


def sample_training_batch(model, tokenizer, problems, prompts, n_groups, group_size, chunk, **decoding):
    """Groups of a DAPO step: prompts with right and wrong responses, until there are n_groups or the problems end.

    Returns a dict of (M,) tensors over the tokens of those responses: logp, as sampled, and adv, normalised in its
    group (with 0 or 1 as the reward: the advantage does not depend on its scale). {} if every group is all right or all
    wrong: then there is no gradient.
    """
    found, n = {"logp": [], "adv": []}, 0
    for i in range(0, len(problems), chunk):
        part = sample_and_check(
            model, tokenizer, problems[i : i + chunk], prompts[i : i + chunk], group_size, **decoding
        )
        adv = group_advantages(part["right"].float()).to(part["mask"].device).view(-1, 1)  # (N, 1)
        for b in ((part["right"].sum(1) % group_size) != 0).nonzero()[:, 0].tolist()[: n_groups - n]:
            rows = slice(b * group_size, (b + 1) * group_size)
            scored = part["mask"][rows] != 0
            found["logp"].append(part["logp"][rows][scored])
            found["adv"].append(adv[rows].expand_as(scored)[scored])
            n += 1
        if n == n_groups:
            break
    return {name: torch.cat(values) for name, values in found.items()} if n else {}


def read_responses(path, tokenizer, n_vocab, verifier="exact"):
    """Rows {"prompt", "response", "source": "base" or "rlvr"} of a JSONL file, perhaps with "ids", "answer", "right".

    "ids" are the token ids of the response; without them the text is tokenised and the end-of-text token added.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read responses from {path}: {getattr(error, 'strerror', None) or error}") from None
    if lines == [""]:
        raise InputError(f'{path} is empty: it needs a line {{"prompt", "response", "source"}} for every response')
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
        except (ValueError, RecursionError):
            raise InputError(f"{path}, line {number}: this is not JSON: {line[:40]!r}") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("prompt", "response")):
            raise InputError(f'{path}, line {number}: "prompt" or "response" is missing, or not a string')
        if row.get("source") not in SOURCES:
            raise InputError(f'{path}, line {number}: "source" must be "base" or "rlvr", who wrote the response')
        if "ids" not in row:
            row["ids"] = tokenizer(row["response"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in row["ids"]:
                raise InputError(f"{path}, line {number}: the response has characters that the vocabulary lacks")
        if not isinstance(row["ids"], list) or not all(type(i) is int and 0 <= i < n_vocab for i in row["ids"]):
            raise InputError(f'{path}, line {number}: "ids" must be a list of token ids below {n_vocab}')
        if not row["ids"]:
            raise InputError(f'{path}, line {number}: "ids" is empty; leave out responses without a token')
        if "right" not in row and isinstance(row.get("answer"), str):
            (verdict,) = check_answers([row["response"]], [row["answer"]], verifier)
            row["right"] = verdict == "right"
        rows.append(row)
    for source in SOURCES:
        if all(row["source"] != source for row in rows):
            raise InputError(f'{path} has no response with "source": "{source}"; the comparison needs both')
    return rows


# ---------------------------------------------------------------------------------------------------- files and figure
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


def pyplot():
    """matplotlib.pyplot, drawing into files."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_histograms(path, values, edges, title):
    """Figures 1b and 12-15: RLVR's tokens against the base's for every metric. values: {metric: {source: (M,)}}."""
    plt = pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(10.5, 6), layout="constrained")
    for axis, (name, label) in zip(axes.flat, METRICS.items(), strict=True):
        for source, color in zip(SOURCES, ("tab:blue", "tab:red"), strict=True):
            clipped = np.clip(values[name][source], edges[name][0], edges[name][-1])
            axis.hist(clipped, edges[name], density=True, alpha=0.5, color=color, label=f"responses of {source}")
        axis.set(yscale="log", xlabel=label, ylabel="density of tokens")
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_probabilities(path, rows, title):
    """Figure 3b: what the tokens in a bin of dlogp are like. rows: of dlogp_bins."""
    plt = pyplot()
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5.5), layout="constrained", sharex=True, height_ratios=[2, 1]
    )
    x = np.arange(len(rows))
    top.bar(x - 0.2, [row["p_base"] for row in rows.values()], 0.4, color="tab:blue", label="base")
    top.bar(x + 0.2, [row["p_rlvr"] for row in rows.values()], 0.4, color="tab:red", label="RLVR")
    top.set(ylabel="mean probability of the token", ylim=(0, 1), title=title)
    top.legend()
    bottom.bar(x, [row["share"] for row in rows.values()], 0.8, color="tab:gray")
    bottom.set(yscale="log", ylabel="share of tokens", xlabel="dlogp (nats)", ylim=(None, 1.5))
    bottom.set_xticks(x, list(rows), rotation=30, ha="right")
    for axis in (top, bottom):
        axis.grid(alpha=0.3, axis="y")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_gradient(path, batch, rows, title):
    """Figure 3a: token probability against gradient coefficient, and who holds the mass. rows: of gradient_bins."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for sign, color, name in ((1, "tab:green", "A > 0"), (-1, "tab:orange", "A < 0")):
        keep = np.sign(batch["adv"]) == sign
        left.scatter(batch["p"][keep], batch["coefficient"][keep], s=5, alpha=0.4, color=color, label=name)
    left.set(xlabel="probability of the token", ylabel="gradient coefficient |wA| 2 (1 - pi)")
    left.legend()
    x = np.arange(len(rows))
    right.bar(x - 0.2, [row["share"] for row in rows.values()], 0.4, color="tab:gray", label="share of the tokens")
    right.bar(
        x + 0.2, [row["mass"] for row in rows.values()], 0.4, color="tab:purple", label="share of the gradient mass"
    )
    right.set(yscale="log", ylim=(None, 2), xlabel="probability of the token")
    right.set_xticks(x, list(rows), rotation=45, ha="right")
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_sparsity(path, curves, title):
    """Share of the total |dlogp| and mean KL that the top x of tokens hold. curves: {label: (M,) values}."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    share = np.concatenate([[0.0], np.geomspace(1e-3, 1, 200)])
    for label, values in curves.items():
        axis.plot(100 * share, 100 * held_by_top(values, share), label=label, ls="--" if "KL" in label else "-")
    axis.plot(100 * share, 100 * share, color="gray", lw=0.8, ls=":", label="if all tokens had changed alike")
    axis.set(xscale="log", xlim=(0.1, 100), ylim=(0, 101), title=title)
    axis.set(xlabel="top x% of the tokens", ylabel="% of the total that they hold")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def token_color(value, limit):
    """(background, text) colours as #rrggbb for a dlogp on the scale -limit .. limit: blue fell, red rose."""
    color = matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * float(np.clip(value / limit, -1, 1)))
    dark = np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.5
    return matplotlib.colors.to_hex(color), "#ffffff" if dark else "#000000"


def draw_tokens(path, examples, limit, width=100, most=6):
    """Responses with every token on the colour of its dlogp, base's above RLVR's. examples: of pick_examples.

    Lines hold `width` characters; a response is cut after `most` lines (the HTML page has all of it).
    """
    plt = pyplot()
    lines = []  # each a list of (x, text, dlogp); the title of a response has none
    for row in examples:
        lines += [[], [(0, f"{row['title']}: {row['prompt'][-80:]}", None)]]
        response, x = [[]], 0
        for piece, value in zip(row["pieces"], row["dlogp"], strict=True):
            text = visible(piece)
            if x + len(text) > width and x > 0:
                response.append([])
                x = 0
            response[-1].append((x, text, value))
            x += len(text)
        lines += response[:most] + ([[(0, "...", None)]] if len(response) > most else [])
    figure, axis = plt.subplots(figsize=(10, 0.8 + 0.2 * len(lines)), layout="constrained")
    axis.set(xlim=(0, width), ylim=(len(lines), 0))
    axis.axis("off")
    for y, line in enumerate(lines):
        for x, text, value in line:
            if value is None:
                axis.text(x, y + 0.5, text, fontsize=9, va="center", parse_math=False)
                continue
            back, front = token_color(value, limit)
            axis.add_patch(plt.Rectangle((x, y), len(text), 1, facecolor=back, edgecolor="white", lw=0.6))
            how = {"color": front, "fontsize": 9, "ha": "center", "va": "center", "family": "monospace"}
            axis.text(x + len(text) / 2, y + 0.5, text, parse_math=False, **how)
    scale = plt.cm.ScalarMappable(plt.Normalize(-limit, limit), "RdBu_r")
    label = "dlogp (nats): blue tokens became less likely under RLVR, red ones more likely"
    figure.colorbar(scale, ax=axis, orientation="horizontal", fraction=0.04, aspect=60, pad=0.03, label=label)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def printable(text):
    """Text of a model for the terminal: control characters, line breaks too, become escapes and do nothing."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def visible(piece):
    """A token's text with its white space shown, and other control characters as escapes."""
    return printable(piece.replace("\n", "\u21b5").replace("\t", "\u21e5").replace(" ", "\u00b7")) or "\u2205"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What RLVR changed, token by token</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111 }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 0; overflow-wrap: anywhere }} h3 {{ font-size: .9rem; margin: .8rem 0 .2rem }}
.response {{ font: 15px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }}
.t {{ padding: .15em 0; border-right: 1px solid #fff; cursor: default }}
.t:hover, .t:focus {{ outline: 2px solid #111; outline-offset: -1px }}
#scale {{ height: 1rem; background: linear-gradient(to right, {gradient}) }}
#ticks {{ display: flex; justify-content: space-between; font-size: .85rem }}
#tip {{ position: fixed; display: none; padding: .5rem .7rem; background: #111; color: #fff; pointer-events: none;
  font: 13px/1.4 ui-monospace, monospace; white-space: pre; border-radius: .3rem; z-index: 1 }}
</style></head><body>
<h1>What RLVR changed, token by token</h1>
<p>{about} The colour of a token is its dlogp = log&nbsp;&pi;<sub>RLVR</sub> &minus; log&nbsp;&pi;<sub>base</sub>:
blue tokens became less likely, red ones more likely. Point at a token, or reach it with the tab key, for all its
numbers.</p>
<div id="scale"></div><div id="ticks"><span>&le; {low}</span><span>dlogp = 0 nats</span><span>&ge; +{high}</span></div>
{body}
<div id="tip" role="tooltip"></div>
<script>
const tip = document.getElementById("tip");
function show(event) {{
  const token = event.target.closest(".t");
  tip.style.display = token ? "block" : "none";
  if (!token) return;
  tip.textContent = token.dataset.tip;
  const box = token.getBoundingClientRect(), size = tip.getBoundingClientRect();
  const below = box.bottom + 6 + size.height < innerHeight;
  tip.style.left = Math.max(4, Math.min(box.left, innerWidth - size.width - 4)) + "px";
  tip.style.top = (below ? box.bottom + 6 : Math.max(4, box.top - size.height - 6)) + "px";
}}
for (const name of ["mouseover", "focusin"]) document.addEventListener(name, show);
document.addEventListener("scroll", () => tip.style.display = "none", true);
</script></body></html>
"""


def write_page(path, examples, about, limit):
    """One self-contained HTML file: every token of the examples coloured by dlogp, all its metrics on hover."""
    parts, prompt = [], None
    for row in examples:
        if row["prompt"] != prompt:
            prompt = row["prompt"]
            parts.append(f"<section><h2>{html.escape(prompt)}</h2></section>")
        parts.append(f'<h3>{html.escape(row["title"])}</h3><div class="response">')
        for i, piece in enumerate(row["pieces"]):
            back, front = token_color(row["dlogp"][i], limit)
            lines = [f"token {i}: {visible(piece)} (id {row['ids'][i]})"]
            lines += [f"{name:13s} {row['metrics'][name][i]:+.4f}" for name in row["metrics"]]
            tip = html.escape("\n".join(lines)).replace("\n", "&#10;")
            text = html.escape(visible(piece)) + "\n" * piece.count("\n")
            style = f"background:{back};color:{front}"
            parts.append(f'<span class="t" tabindex="0" style="{style}" data-tip="{tip}">{text}</span>')
        parts.append("</div>")
    gradient = ", ".join(token_color(x, 1)[0] for x in np.linspace(-1, 1, 11))
    ends = {"low": f"{-limit:g}", "high": f"{limit:g}"}
    write_text(path, PAGE.format(gradient=gradient, about=html.escape(about), body="".join(parts), **ends))


# ------------------------------------------------------------------------------------------------------- the analyses
def dlogp_bins(dlogp, logp_base, logp_rlvr):
    """Figure 3b in numbers: a row for each bin of dlogp, with its share of the tokens and the mean probabilities."""
    edges = [-math.inf, -4, -2, -1, -0.5, -0.1, 0.1, 0.5, 1, 2, 4, math.inf]
    rows = {}
    for low, high in itertools.pairwise(edges):
        keep = (low <= dlogp) & (dlogp < high)
        name = f"< {high:g}" if low == -math.inf else f">= {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        means = [float(np.exp(x[keep]).mean()) if keep.any() else 0.0 for x in (logp_base, logp_rlvr)]
        rows[name] = {"share": float(keep.mean()), "p_base": means[0], "p_rlvr": means[1]}
    return rows


def gradient_bins(p, coefficient):
    """Figure 3a in numbers: a row for each tenth of token probability, with its share of tokens and gradient mass."""
    which = np.minimum((p * 10).astype(int), 9)
    count, mass = np.bincount(which, minlength=10), np.bincount(which, coefficient, minlength=10)
    rows = {"share": count / len(p), "mass": mass / mass.sum()}
    return {f"{i / 10:.1f} to {(i + 1) / 10:.1f}": {key: float(x[i]) for key, x in rows.items()} for i in range(10)}


def compare_sources(values, owners, edges, args):
    """Figure 1b in numbers, a row for each metric: overlap and AUC of RLVR's tokens against the base's, intervals.

    auc_response is the AUC of the mean over a response instead of single tokens. values {metric: {source: (M,)}};
    owners {source: (M,)}, the response of each token.
    """
    rows = {}
    for name in METRICS:
        a, b, own_a, own_b = values[name]["rlvr"], values[name]["base"], owners["rlvr"], owners["base"]
        means = [np.bincount(own, x) / np.bincount(own) for x, own in ((a, own_a), (b, own_b))]
        each = [np.arange(len(x)) for x in means]

        def overlap(x, y, wx=None, wy=None, edges=edges[name]):
            return histogram_overlap(x, y, edges, wx, wy)

        rows[name] = row = {}
        for key, statistic, sample in (
            ("overlap", overlap, (a, b, own_a, own_b)),
            ("auc", auc, (a, b, own_a, own_b)),
            ("auc_response", auc, (*means, *each)),
        ):
            row[key] = statistic(*sample[:2])
            row[f"{key}_ci95"] = bootstrap_interval(statistic, *sample, args.bootstrap, args.seed)
    return rows


def kinds_table(kind, dlogp, owner):
    """Mean |dlogp| at forks and elsewhere: {kind: share of tokens, mean |dlogp| and its standard error over responses,
    share of the total |dlogp|}. kind (M,) strings, owner (M,) the response of each token."""
    rows, size = {}, np.abs(dlogp).astype(float)
    for name in ("fork", "arithmetic", "copy"):
        keep = kind == name
        if keep.any():
            n, total = (np.bincount(owner[keep], w, owner.max() + 1) for w in (np.ones(keep.sum()), size[keep]))
            mean, responses = total.sum() / n.sum(), len(n)
            error = math.sqrt(((total - mean * n) ** 2).sum() * responses / max(responses - 1, 1)) / n.sum()
            rows[name] = {"share": float(keep.mean()), "mean_abs_dlogp": float(mean), "standard_error": error}
            rows[name]["share_of_abs_dlogp"] = float(size[keep].sum() / size.sum()) if size.any() else 0.0
    return rows


def print_table(title, rows):
    """A Markdown table of {name: {column: number, pair or None}}."""
    if not rows:
        return
    columns = [key for key in next(iter(rows.values())) if not key.endswith("_ci95")]
    print(f"\n{title}\n\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in rows.items():
        cells = []
        for key in columns:
            interval = row.get(f"{key}_ci95")
            cell = f"{row[key]:,}" if isinstance(row[key], int) else f"{row[key]:.3f}"
            cells.append(cell + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""))
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_summary(summary):
    """Every table of summary.json."""
    print_table("dlogp over the responses of each model", summary["dlogp"])
    print_table("RLVR's tokens against the base's, by one metric alone (figure 1b)", summary["histograms"])
    print_table("tokens by dlogp (figure 3b)", summary["dlogp_bins"])
    print_table("gradient mass by token probability (figure 3a)", summary.get("gradient_bins"))
    print_table("share of the total held by the top x% of tokens", summary["sparsity"])
    for name, rows in summary["kinds"].items():
        print_table(f"forks and other tokens, responses of {name}", rows)


def pick_examples(rows, pieces, metrics, start, n):
    """The first n prompts that RLVR gets right and the base wrong (then any others): a response of each model to them.

    rows: of read_responses; pieces: its tokens as strings; metrics {name: (M,)}; start: where each response begins.
    """
    by_prompt = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(row["prompt"], {source: [] for source in SOURCES})[row["source"]].append(i)
    chosen = []
    for prompt, found in by_prompt.items():
        if all(found.values()):
            wrong = [i for i in found["base"] if rows[i].get("right") is False]
            right = [i for i in found["rlvr"] if rows[i].get("right")]
            chosen.append((not (wrong and right), prompt, (wrong or found["base"])[0], (right or found["rlvr"])[0]))
    examples = []
    for _, prompt, *pair in sorted(chosen, key=lambda one: one[0])[:n]:
        for i in pair:
            row, cut = rows[i], slice(start[i], start[i + 1])
            verdict = {True: ", right", False: ", wrong", None: ""}[row.get("right")]
            answer = f", answer {row['answer']}" if "answer" in row else ""
            title = f"{row['source']}{verdict}"
            one = {"prompt": prompt + answer, "title": title, "pieces": pieces[i], "ids": row["ids"]}
            examples.append(one | {"dlogp": metrics["dlogp"][cut], "metrics": {k: x[cut] for k, x in metrics.items()}})
    return examples


def sample_responses(path, models, tokenizer, problems, prompts, args, **decoding):
    """Append args.samples responses of each model to each problem to `path`, a chunk of problems at a time.

    Each chunk draws from a generator of its own, so that chunks which are there already can be skipped.
    """
    plan = [
        (source, slice(i, i + args.gen_batch)) for source in SOURCES for i in range(0, len(problems), args.gen_batch)
    ]
    lines = [x for x in path.read_text().splitlines() if x.endswith("}")] if path.exists() else []
    ends = np.cumsum([len(problems[cut]) * args.samples for _, cut in plan]).tolist()
    done = sum(end <= len(lines) for end in ends)
    write_text(path, "".join(line + "\n" for line in lines[: ([0] + ends)[done]]))
    for k, (source, cut) in enumerate(tqdm(plan, desc="sample", unit="batch", initial=done)):
        if k < done:
            continue
        decoding["generator"] = torch.Generator(models[source].device).manual_seed(args.seed * 1_000_003 + k)
        part = sample_and_check(models[source], tokenizer, problems[cut], prompts[cut], args.samples, **decoding)
        with open(path, "a") as file:
            for i, ids in enumerate(part["ids"]):
                problem = problems[cut][i // args.samples]
                row = {key: problem[key] for key in ("system", "prompt", "answer") if key in problem}
                row |= {"source": source, "right": part["right"].flatten()[i].item(), "response": part["texts"][i]}
                row |= {"verifier": part["verdicts"][i]} if part["verdicts"][i] in ("failed", "timed out") else {}
                file.write(json.dumps(row | {"ids": ids}) + "\n")


def score_responses(models, prompts, responses, args, pad_id, n_vocab):
    """score_pair of N responses, lists of ids, in micro-batches of like length: {name: (M,) array}, in their order."""
    base, rlvr = models[args.base], models[args.rlvr]
    tokens, mask = pack(prompts, responses, pad_id, base.device)
    start = np.cumsum([0] + [len(ids) for ids in responses])
    (plan,), metrics = micro_batches(mask, len(responses), args.micro_batch), {}
    for rows, width in tqdm(plan, desc="score", unit="batch"):
        part = (tokens[rows, :width], mask[rows, :width], args.temperature, n_vocab, args.chunk)
        place = np.concatenate([np.arange(start[i], start[i + 1]) for i in rows])
        for name, values in score_pair(base, rlvr, *part).items():
            metrics.setdefault(name, np.zeros(start[-1], np.float32))[place] = values.cpu().numpy()
    return metrics


def summarise(metrics, source, owner, kind, args):
    """The numbers of every figure but 3a, and what to draw: (summary, values, edges). Arrays are (M,), over tokens."""
    of = {name: source == name for name in SOURCES}
    owners = {name: np.unique(owner[of[name]], return_inverse=True)[1] for name in SOURCES}
    values = {name: {one: metrics[name][of[one]].astype(float) for one in SOURCES} for name in METRICS}
    edges = {}
    for name in METRICS:
        low, high = np.quantile(metrics[name], [0.0005, 0.9995])
        edges[name] = np.linspace(low, max(high, low + 1e-6), args.bins + 1)
    summary = {"dlogp": {}, "histograms": compare_sources(values, owners, edges, args), "sparsity": {}, "kinds": {}}
    for name in SOURCES:
        d = values["dlogp"][name]
        summary["dlogp"][name] = {"tokens": len(d), "responses": int(owners[name].max()) + 1, "mean": d.mean()}
        summary["dlogp"][name] |= {
            "skewness": ((d - d.mean()) ** 3).mean() / d.std() ** 3 if d.std() > 0 else 0.0,
            "within 0.1": (np.abs(d) < 0.1).mean(),
            "above 1": (d > 1).mean(),
            "below -1": (d < -1).mean(),
        }
        for label, x in (("size of dlogp", d), ("mean KL", values["kl"][name])):
            shares = held_by_top(x, [0.01, 0.05, 0.1, 0.2]).tolist()
            summary["sparsity"][f"{label}, {name}"] = dict(zip(("1%", "5%", "10%", "20%"), shares, strict=True))
        summary["kinds"][name] = kinds_table(kind[of[name]], d, owners[name])
    summary["dlogp_bins"] = dlogp_bins(metrics["dlogp"], metrics["logp_base"], metrics["logp_rlvr"])
    return summary, values, edges


# ------------------------------------------------------------------------------------------------------------ the run
def main(args):
    """Sample, score, count, draw. Returns the exit status."""
    began = time.perf_counter()
    transformers.utils.logging.disable_progress_bar()
    problems = read_problems(args.data)[: args.problems or None]
    train = read_problems(args.train) if args.train else problems
    require_verifier(args.verifier)
    device, checkpoint = pick_device(args.device), args.checkpoint or args.rlvr
    models, tokenizer, ids = load_models((args.base, args.rlvr, checkpoint), args.tokenizer, device)
    context = min(model.config.max_position_embeddings for model in models.values())
    prompts = encode_prompts(tokenizer, problems, args.data, context - args.max_response)
    train_prompts = encode_prompts(tokenizer, train, args.train or args.data, context - args.max_response)
    decoding = ids | {"max_new_tokens": args.max_response, "temperature": args.temperature}
    decoding |= {"cuda_graph": args.cuda_graph and device.type == "cuda", "verifier": args.verifier}
    bf16 = args.dtype == "bf16" or (args.dtype == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    if args.check:
        decoding["generator"] = torch.Generator(device).manual_seed(args.seed)
        with autocast:
            part = sample_and_check(models[args.rlvr], tokenizer, problems[:16], prompts[:16], 4, **decoding)
        tokens, mask = pack([x for x in prompts[:16] for _ in range(4)], part["ids"], ids["pad_id"], device)
        error, n = lemma_error(models[args.rlvr], tokens, mask, args.temperature, ids["n_vocab"], args.seed)
        print(f"lemma (4): l1 norm = |wA| 2 (1 - pi) on {n} tokens of {args.rlvr}: largest relative error {error:.1e}")
        return 0 if error < 1e-6 else 1

    # ---- 1. sample: both models answer the same problems
    given = read_responses(args.responses, tokenizer, ids["n_vocab"], args.verifier) if args.responses else []
    out = open_run(args, torch.cuda.get_device_name(device) if device.type == "cuda" else device.type)
    for name, model in models.items():
        size = sum(p.numel() for p in model.parameters())
        print(f"{name}: {size:,} parameters on {device}, {'bf16 autocast' if bf16 else 'fp32'}")
    longest = max(map(len, prompts)) + args.max_response
    need = estimate_memory([*models.values()], bf16, args.gen_batch * args.samples, longest)
    parts = ", ".join(f"{what} {size / 2**20:,.0f}" for what, size in need.items())
    print(f"memory, estimated in MiB: {parts}", flush=True)
    path = out / "responses.jsonl"
    if args.responses:
        write_text(path, "".join(json.dumps(row) + "\n" for row in given))
    else:
        pair = dict(zip(SOURCES, (models[args.base], models[args.rlvr]), strict=True))
        with autocast:
            sample_responses(path, pair, tokenizer, problems, prompts, args, **decoding)
    rows = read_responses(path, tokenizer, ids["n_vocab"])
    asked = encode_prompts(tokenizer, rows, path, context)
    for line, (prompt, row) in enumerate(zip(asked, rows, strict=True), start=1):
        if len(prompt) + len(row["ids"]) > context:
            raise InputError(f"{path}, line {line}: prompt and response exceed the model's context of {context} tokens")

    # ---- 2. score: both models on the same tokens, at the same temperature
    responses = [row["ids"] for row in rows]
    with autocast:
        metrics = score_responses(models, asked, responses, args, ids["pad_id"], ids["n_vocab"])
    pieces = [[tokenizer.decode([i]) for i in response] for response in responses]
    lengths = [len(response) for response in responses]
    source = np.repeat([row["source"] for row in rows], lengths)
    owner = np.repeat(np.arange(len(rows)), lengths)  # of each token: the line of its response, from 0
    kind = [token_kinds(row["prompt"], one) or [""] * len(one) for row, one in zip(rows, pieces, strict=True)]
    kind = np.concatenate(kind)
    with open(out / "tokens.npz.tmp", "wb") as file:
        token_ids = np.concatenate(responses)
        np.savez_compressed(file, response=owner, source=source, id=token_ids, kind=kind, **metrics)
    os.replace(out / "tokens.npz.tmp", out / "tokens.npz")

    # ---- 3. count and draw
    summary, values, edges = summarise(metrics, source, owner, kind, args)
    title = f"{args.base} and {args.rlvr}, {len(rows):,} responses, {len(owner):,} tokens"
    draw_histograms(out / "histograms.png", values, edges, title)
    draw_probabilities(out / "probabilities.png", summary["dlogp_bins"], title)
    named = (("|dlogp|", "dlogp"), ("mean KL", "kl"))
    curves = {f"{label}, responses of {one}": values[name][one] for one in SOURCES for label, name in named}
    draw_sparsity(out / "sparsity.png", curves, title)
    examples = pick_examples(rows, pieces, metrics, np.cumsum([0] + lengths), args.show)
    if examples:
        draw_tokens(out / "tokens.png", examples, args.color_limit)
        write_page(out / "tokens.html", examples, f"Base: {args.base}. RLVR model: {args.rlvr}.", args.color_limit)
    decoding["generator"] = torch.Generator(device).manual_seed(args.seed)
    sizes = (args.batch_prompts, args.batch_group, args.gen_batch)
    with autocast:
        batch = sample_training_batch(models[checkpoint], tokenizer, train, train_prompts, *sizes, **decoding)
    if batch:
        batch |= {"p": batch["logp"].exp(), "coefficient": gradient_coefficient(batch["logp"], batch["adv"])}
        batch = {name: x.double().cpu().numpy() for name, x in batch.items()}
        summary["gradient_bins"] = gradient_bins(batch["p"], batch["coefficient"])
        text = f"groups of {args.batch_group} with right and wrong responses, sampled by {checkpoint}"
        draw_gradient(out / "gradient.png", batch, summary["gradient_bins"], f"{text}: {len(batch['p']):,} tokens")
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    print_summary(summary)
    if not batch:
        print(f"figure 3a is left out: every group that {checkpoint} sampled is all right or all wrong: no gradient")
    print(f"figures, tokens.html, tokens.npz and summary.json are in {out}; {time.perf_counter() - began:.0f} s")
    return 0


KEPT = "what was sampled is kept, and --resume goes on from it"
MENDS = {  # of memory that runs out in the function, or in one that it calls
    "load_model": "choose smaller models",
    "rollout": "lower --gen-batch",
    "main": "lower --micro-batch or --chunk",
}


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
        print(
            "\nstopped; what was sampled is kept, and the same command with --resume goes on from it", file=sys.stderr
        )
        sys.exit(130)
