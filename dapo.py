"""DAPO, and low-probability tokens: reinforcement learning with verifiable rewards in one file.

What it shows: a base model that is right one time in ten learns to be right most of the time, from nothing but a
checker of final answers. Responses grow, entropy falls, and in the tiny world two stages are in plain sight: the common
fair habit is exploited first, then the rare better one takes over. `--reweight low-prob` is the method of paper A.

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), section 4.2
  DAPO:    "DAPO: An Open-Source LLM Reinforcement Learning System at Scale" (arXiv 2503.14476)

The equations, tagged (1) to (8) in the code:
  (1) R_i = +1 if the final answer is right, else -1, plus the soft overlong punishment in [-1, 0]      DAPO eq. 7, 13
  (2) A_i = (R_i - mean R) / std R over the G responses to one prompt, the same for every token         DAPO eq. 9
  (3) A_it <- (1 + alpha (1 - pi_old(y_it))) A_it        --reweight low-prob                            paper A, 4.2
  (4) A_it <- (alpha pi_old(y_it) + 1 - alpha) A_it      --reweight dominate                            arXiv 2505.12929
  (5) A_i  <- (1 - alpha z_i) A_i                        --reweight ppl, z_i the log-perplexity of response i,
                                                         normalised in its group                        Deng et al. 2025
  (6) w_it = pi(y_it) / pi_old(y_it)                                                                    DAPO eq. 9
  (7) J = 1 / (sum_i |y_i|) sum_i sum_t min(w A, clip(w, 1 - eps_low, 1 + eps_high) A)                  DAPO eq. 8
  (8) where A < 0, the term of (7) is at least c A: "dual clip"                                         released code
Prompts that are all right or all wrong are replaced by fresh ones (dynamic sampling, DAPO eq. 11).

Differs from the paper and its released code: the defaults are sized for the tiny model (docs/dapo.md has the paper's);
bf16 autocast over fp32 parameters, not bf16 parameters; the old log-probs come from the same code on the same
micro-batches as the update, so that the first ratio is exactly 1.

    python dapo.py                                                # tiny Qwen3 on two CPU cores, about 5 minutes
    python dapo.py --reweight low-prob --alpha 0.2 --out runs/dapo/low-prob
    python dapo.py --model Qwen/Qwen2.5-0.5B-Instruct --train data/gsm8k/train.jsonl --test data/gsm8k/test.jsonl \\
        --max-response 1024 --overlong-buffer 256 --lr 1e-6 --micro-batch 8 --gradient-checkpointing    # one GPU
"""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import platform
import re
import shutil
import signal
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
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class InputError(ValueError):
    """Something that the user can mend: one sentence that names the file or flag, and the mend."""


# ----------------------------------------------------------------------------------------------------------- arguments
def arg(default, text, low=-math.inf, high=math.inf, choices=None):
    return dataclasses.field(default=default, metadata={"help": text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Args:
    model: str = arg("tiny/base", "base model: a folder, or a name on the hub")
    train: str = arg("tiny/train.jsonl", 'training problems, one {"prompt": ..., "answer": ...} a line')
    test: str = arg("tiny/test.jsonl", "test problems, same format")
    out: str = arg("runs/dapo/default", "folder of this run")
    resume: bool = arg(False, "go on from the last checkpoint in --out")
    overwrite: bool = arg(False, "delete the run that --out holds")
    seed: int = arg(1, "of sampling and data order", 0)
    device: str = arg("auto", "auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = arg("auto", "autocast; auto is bf16 on CUDA, else fp32", choices=("auto", "fp32", "bf16"))
    cuda_graph: bool = arg(True, "on CUDA, decode by replaying a CUDA graph; no effect on a CPU")
    verifier: str = arg("exact", "of final answers; math-verify needs its package", choices=("exact", "math-verify"))
    # the objective
    reweight: str = arg("none", "equations (3), (4), (5)", choices=("none", "low-prob", "dominate", "ppl"))
    alpha: float = arg(0.2, "strength of --reweight; 0 is DAPO, bit for bit", 0, 1)
    eps_low: float = arg(0.2, "lower clip range", 0, 1)
    eps_high: float = arg(0.28, "upper clip range (clip-higher)", 0)
    dual_clip: float = arg(10.0, "bound c on the ratio where the advantage is negative", 1)
    # rollouts
    steps: int = arg(140, "rollout steps in all", 1)
    prompts_per_step: int = arg(32, "prompts trained on in a step", 1)
    group_size: int = arg(8, "responses to a prompt, G", 1)
    max_gen_batches: int = arg(10, "sample at most this many times --prompts-per-step, then train on what is there", 1)
    gen_batch: int = arg(32, "prompts decoded side by side", 1)
    max_response: int = arg(128, "response limit L_max, in tokens", 1)
    overlong_buffer: int = arg(32, "L_cache, the last tokens of the limit: the punishment grows to -1 there", 0)
    temperature: float = arg(1.0, "of sampling and of every log-prob", 1e-3)
    rollout_top_p: float = arg(1.0, "nucleus of the rollouts (figure 3c); scored by the full softmax", 1e-6, 1)
    # optimisation
    lr: float = arg(1e-4, "learning rate of AdamW", 0)
    warmup_steps: int = arg(10, "rollout steps of linear warm-up", 0)
    weight_decay: float = arg(0.1, "decoupled weight decay", 0)
    max_grad_norm: float = arg(1.0, "gradient clipping", 0)
    mini_batch: int = arg(16, "prompts in an optimiser step", 1)
    micro_batch: int = arg(32, "responses in one forward and backward pass: memory and speed, not the gradient", 1)
    gradient_checkpointing: bool = arg(False, "recompute activations in the backward pass")
    # evaluation and files
    eval_every: int = arg(20, "steps between evaluations; also before the first and after the last", 1)
    eval_problems: int = arg(0, "evaluate on the first N test problems; 0: all", 0)
    eval_samples: int = arg(8, "responses to a test problem: avg@n, and pass@k up to k = n", 1)
    eval_top_p: float = arg(1.0, "nucleus of the evaluation (the paper: 0.7)", 1e-6, 1)
    checkpoint_every: int = arg(20, "steps between checkpoints; the last two are kept", 1)
    save_every: int = arg(0, "keep a numbered model every N steps; 0: only the last", 0)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if not isinstance(value, str) and not low <= value <= high:
                raise InputError(f"--{f.name.replace('_', '-')} {value}: it must lie in [{low}, {high}]")
        if self.group_size < 2:
            raise InputError("--group-size 1: a group of one has no relative advantage; take at least 2")
        if self.prompts_per_step % self.mini_batch:
            raise InputError("--prompts-per-step must be a multiple of --mini-batch")
        if self.overlong_buffer > self.max_response:
            raise InputError("--overlong-buffer must not exceed --max-response")
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
def group_advantages(rewards):
    """Rewards normalised in their group (DAPO eq. 9): (B, G) -> (B, G).

    Sample standard deviation (n - 1) plus 1e-6, as in the released code. A group of equal rewards, or of one response,
    gets exactly 0, where a division of rounding noise by 1e-6 would not.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return (centred / (std + 1e-6)).masked_fill(equal, 0.0)  # (2)


def overlong_penalty(lengths, max_len, buffer):
    """Soft overlong punishment (DAPO eq. 13): lengths in tokens, any shape -> floats in [-1, 0], same shape.

    0 up to max_len - buffer, linearly down to -1 at max_len, -1 beyond. With buffer 0 it steps from 0 to -1.
    """
    if buffer == 0:
        return -(lengths > max_len).float()
    return -((lengths - (max_len - buffer)).float() / buffer).clamp(0.0, 1.0)  # (1)


def reweight_low_prob(adv, logp_old, alpha):
    """Paper A, section 4.2: unlikely tokens count more, whatever the sign. (..., T) both -> (..., T), detached."""
    return (adv * (1 + alpha * (1 - logp_old.exp()))).detach()  # (3)


def reweight_dominate(adv, logp_old, alpha):
    """The baseline of arXiv 2505.12929: unlikely tokens count less. adv, logp_old (..., T) -> (..., T), detached."""
    return (adv * (alpha * logp_old.exp() + (1 - alpha))).detach()  # (4)


def reweight_ppl(adv, logp_old, mask, alpha):
    """The baseline of Deng et al. 2025: surprising responses count less. All (B, G, T) -> (B, G, T), detached.

    A response's log-perplexity is its mean negative log-prob over mask, normalised in its group as in (2); responses
    that are all equally perplexing keep their advantages.
    """
    log_ppl = -(logp_old * mask).sum(-1) / mask.sum(-1).clamp(min=1)  # (B, G)
    centred = log_ppl - log_ppl.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / max(log_ppl.shape[1] - 1, 1)).sqrt()
    z = torch.where(std > 1e-6, centred / std.clamp(min=1e-6), torch.zeros_like(centred))
    return (adv * (1 - alpha * z).unsqueeze(-1)).detach()  # (5)


def dapo_loss(logp, logp_old, adv, mask, eps_low=0.2, eps_high=0.28, dual_clip=10.0, n_tokens=None):
    """Clipped token-level objective with clip-higher and dual clip (DAPO eq. 8), negated: (N, T) each -> (loss, stats).

    mask is 1 on response tokens. The sum over tokens is divided by n_tokens, default mask.sum(); a micro-batch passes
    the count of its whole optimiser step, and the gradients of the micro-batches then add up to the step's. So do the
    stats, sums over tokens divided by n_tokens: `clip_low`, `clip_high`, `clip_dual`, the shares of tokens whose
    gradient that clip set to 0; `ratio`, the mean of (6); `kl`, the k3 estimate of KL(old || new) in nats a token.
    """
    n_tokens = mask.sum().clamp(min=1) if n_tokens is None else n_tokens
    log_ratio = (logp - logp_old.detach()).masked_fill(mask == 0, 0.0)
    ratio = log_ratio.exp()  # (6)
    objective = torch.min(ratio * adv, ratio.clamp(1 - eps_low, 1 + eps_high) * adv)  # (7)
    objective = torch.where(adv < 0, torch.max(objective, dual_clip * adv), objective)  # (8)
    loss = -objective.masked_fill(mask == 0, 0.0).sum() / n_tokens
    with torch.no_grad():
        stats = {
            "clip_low": (adv < 0) & (ratio < 1 - eps_low),
            "clip_high": (adv > 0) & (ratio > 1 + eps_high),
            "clip_dual": (adv < 0) & (ratio > dual_clip),
            "ratio": ratio,
            "kl": ratio - 1 - log_ratio,
        }
        return loss, {name: value.masked_fill(mask == 0, 0).sum() / n_tokens for name, value in stats.items()}


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


def pass_at_k(n, c, k):
    """Unbiased pass@k = 1 - C(n - c, k) / C(n, k) (paper B, section 4); c of n samples are right: arrays or numbers."""
    n, c = np.broadcast_arrays(n, c)
    if k < 1 or np.any(k > n) or np.any(c > n) or np.any(c < 0):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n; got k = {k}, n = {n}, c = {c}")
    miss = [
        np.prod(1.0 - k / np.arange(m - s + 1, m + 1)) if m - s >= k else 0.0
        for m, s in np.stack([n, c], -1).reshape(-1, 2)
    ]
    return 1.0 - np.reshape(miss, n.shape)


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


def token_logprobs(model, tokens, mask, temperature=1.0, n_vocab=None, chunk=None, attention_mask=None):
    """Log-prob of each token whose mask is 1, given all before it: (N, L) -> (N, L), 0 elsewhere. Differentiable.

    Entry [i, t] belongs to tokens[i, t]. Right-padded rows need no attention mask under causal attention; left-padded
    ones do: attention_mask (N, L). The head and the fp32 log-softmax at `temperature`, over ids below n_vocab, see
    `chunk` tokens at a time (default: 2^27 logits, at most 4,096 tokens) and are recomputed in the backward pass: no
    (tokens, vocabulary) tensor is kept.
    """
    chunk = chunk or max(1, min(4096, 2**27 // model.config.vocab_size))

    def head(hidden, targets):
        logits = model.get_output_embeddings()(hidden)[:, :n_vocab].float() / temperature  # (chunk, V)
        return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)

    position = None if attention_mask is None else (attention_mask.cumsum(1) - 1).clamp(min=0)
    states = model.base_model(tokens, attention_mask=attention_mask, position_ids=position, use_cache=False)[0]
    scored = mask[:, 1:] != 0  # the state at t - 1 predicts the token at t
    states, targets = states[:, :-1][scored], tokens[:, 1:][scored]  # (M, H), (M,)
    pairs = zip(states.split(chunk), targets.split(chunk), strict=True)
    parts = [checkpoint(head, *pair, use_reentrant=False) for pair in pairs]
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(
        torch.nn.functional.pad(scored, (1, 0)), torch.cat(parts)
    )


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


def count_leaps(text):
    r"""(leaps of one, leaps of two, jumps) in a response of the tiny world, such as "44+8=52;52-3*2=98;\boxed{98}".

    A step "v+a=w;" folds one operation, "v+a*b=w;" two. A jump is a step that folds more, or a final \boxed{} that does
    not repeat the last step's result. A text without such steps or such a box gives (0, 0, 0).
    """
    steps = re.findall(r"(\d{1,3}(?:[-+*]\d){1,20})=(\d{1,3});", text)
    folds = [len(re.findall(r"[-+*]", left)) for left, _ in steps]
    box = re.search(r"(?:^|;)\\boxed\{(\d{1,3})\}$", text)
    jump = box is not None and (not steps or steps[-1][1] != box[1])
    return folds.count(1), folds.count(2), sum(n > 2 for n in folds) + jump


def problem_at(cursor, n, seed):
    """Index, below n, of the cursor-th problem drawn: a new permutation each epoch, fixed by the arguments alone."""
    return int(np.random.default_rng([seed, cursor // n]).permutation(n)[cursor % n])


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


def describe(parts):
    """What both training and evaluation log about sampled responses: a dict of floats."""
    n_tokens = sum(part["length"].sum().item() for part in parts)
    texts = [text for part in parts for text in part["texts"]]
    metrics = {
        "accuracy": sum(part["right"].sum().item() for part in parts) / len(texts),
        "length": n_tokens / len(texts),
        "truncated": sum((~part["finished"]).sum().item() for part in parts) / len(texts),
        "entropy": sum(part["entropy"].sum().item() for part in parts) / n_tokens,
    }
    metrics |= verifier_problems([verdict for part in parts for verdict in part["verdicts"]])
    leaps = np.mean([count_leaps(text) for text in texts], axis=0)
    names = ("leaps_one", "leaps_two", "leaps_jump")
    return metrics | (dict(zip(names, leaps.tolist(), strict=True)) if leaps.any() else {})


def evaluate(model, tokenizer, problems, prompts, samples, chunk, seed, **decoding):
    """Metrics of `samples` responses to every problem, decoded `chunk` problems at a time, and a few rows to read.

    avg@n and pass@k come with the half-width of a 95% interval over problems (normal). Draws from a generator of its
    own: training goes on as if no evaluation had taken place.
    """
    decoding["generator"] = torch.Generator(model.device).manual_seed(seed + 1_000_003)
    cuts = [slice(i, i + chunk) for i in range(0, len(problems), chunk)]
    parts = [sample_and_check(model, tokenizer, problems[c], prompts[c], samples, **decoding) for c in cuts]
    right = torch.cat([part["right"] for part in parts]).sum(1).numpy()
    scores = {f"avg@{samples}": right / samples}
    scores |= {f"pass@{2**i}": pass_at_k(samples, right, 2**i) for i in range(1, samples.bit_length())}
    metrics = {f"test/{name}": value for name, value in describe(parts).items() if name != "accuracy"}
    for name, x in scores.items():
        half = 1.96 * x.std(ddof=1) / math.sqrt(len(x)) if len(x) > 1 else 0.0
        metrics |= {f"test/{name}": x.mean().item(), f"test/{name}_ci95": float(half)}
    texts = [text for part in parts for text in part["texts"]][: 5 * samples : samples]
    return metrics, [problem | {"response": text} for problem, text in zip(problems, texts, strict=False)]


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


def keep_rows_up_to(path, step):
    """Drop the rows after `step` and a last line that a kill cut short: the resumed run writes them again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
        write_text(path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))


def save_model(folder, model, tokenizer, trainer=None):
    """A folder for from_pretrained, and trainer.pt if given; written under a temporary name, then renamed."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if trainer is not None:
            torch.save(trainer, temporary / "trainer.pt")
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
        raise OSError(f"cannot write {temporary}: {str(error).splitlines()[0][:100]}") from None
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def read_checkpoint(folders, device):
    """(tokenizer, model, trainer) of the last of the checkpoint folders; InputError names it if it is damaged."""
    *before, last = folders
    try:
        return *load_model(str(last), device), torch.load(last / "trainer.pt", map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a cut or overwritten file makes its reader raise
        mend = f"delete that folder to go on from {before[-1]}" if before else "start again with --overwrite"
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"the checkpoint {last} is damaged ({type(error).__name__}: {reason}); {mend}") from None


def stop_at_bad_batch(out, step, norm, batch):
    """Keep the batch whose gradient is nan or infinite, and stop with a sentence about it."""
    torch.save(batch, out / "bad_batch.pt")
    raise InputError(
        f"step {step}: the norm of the gradient is {norm.item()}; the weights and the last checkpoint are as they were "
        f"before, the batch is in {out / 'bad_batch.pt'}; a lower --lr may help"
    )


def draw_curves(path, rows, title):
    """Accuracy, entropy, response length and, where responses have such steps, leaps in a response, over training."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    avg, *pass_k = [key for key in rows[0] if re.fullmatch(r"test/(avg|pass)@\d+", key)]
    panels = {
        "share of responses right": {"accuracy": "training", avg: avg} | {key: key for key in pass_k[-1:]},
        "entropy (nats a token)": {"entropy": "training", "test/entropy": "test"},
        "response length (tokens)": {"length": "training", "test/length": "test"},
        "leaps in a training response": {"leaps_jump": "jumps (a guess)", "leaps_two": "of two", "leaps_one": "of one"},
    }
    panels = {name: keys for name, keys in panels.items() if any(key in row for row in rows for key in keys)}
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (name, keys) in zip(axes.flat, panels.items(), strict=False):
        for key, label in keys.items():
            points = [(row["step"], row[key], row.get(f"{key}_ci95", 0.0)) for row in rows if key in row]
            x, y, half = np.array(points).reshape(-1, 3).T
            if key.startswith("test/"):
                axis.errorbar(x, y, half, fmt="o-", ms=3, capsize=2, label=label)
            elif len(x):  # thin, and its running mean over a twentieth of the steps
                window = np.ones(max(1, len(x) // 20))
                mean = np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")
                axis.plot(x, y, color=axis.plot(x, mean, label=label)[0].get_color(), alpha=0.3, lw=0.7)
        axis.set(title=name, xlabel="training step", ylim=(0, 1 if "share" in name else None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# ------------------------------------------------------------------------------------------------------------ the loop
def main(args):
    """Train, evaluate, save. Returns the exit status: 0, or 130 after ctrl-C."""
    transformers.utils.logging.disable_progress_bar()
    train, test = read_problems(args.train), read_problems(args.test)[: args.eval_problems or None]
    require_verifier(args.verifier)
    device = pick_device(args.device)
    out = open_run(args, torch.cuda.get_device_name(device) if device.type == "cuda" else device.type)
    saved = sorted((out / "checkpoint").glob("step_??????")) if args.resume else []
    tokenizer, model, trainer = read_checkpoint(saved, device) if saved else (*load_model(args.model, device), None)
    limit = model.config.max_position_embeddings - args.max_response
    train_ids = encode_prompts(tokenizer, train, args.train, limit)
    test_ids = encode_prompts(tokenizer, test, args.test, limit)
    n_vocab, eos_ids, G = len(tokenizer), eos_token_ids(model, tokenizer), args.group_size
    pad_id = eos_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    decoding = {"max_new_tokens": args.max_response, "eos_ids": eos_ids, "pad_id": pad_id, "n_vocab": n_vocab}
    decoding |= {"temperature": args.temperature, "cuda_graph": args.cuda_graph and device.type == "cuda"}
    decoding["verifier"] = args.verifier
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    bf16 = args.dtype == "bf16" or (args.dtype == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    generator = torch.Generator(device).manual_seed(args.seed)
    done, cursor = -1, 0  # the last step in the log (0 is the evaluation of the base), and the problems drawn so far
    if trainer:
        done, cursor = trainer["step"], trainer["cursor"]
        optimizer.load_state_dict(trainer["optimizer"])
        generator.set_state(trainer["generator"])
    for name in ("metrics.jsonl", "samples.jsonl", "timing.jsonl"):
        keep_rows_up_to(out / name, done)
    size, updates = sum(p.numel() for p in model.parameters()), args.prompts_per_step // args.mini_batch
    print(f"{args.model}: {size:,} parameters on {device}, {'bf16 autocast' if bf16 else 'fp32'}; writing to {out}")
    print(f"{len(train):,} training and {len(test):,} test problems; a step: {updates} updates on", end=" ")
    print(f"{args.prompts_per_step} prompts x {G} responses of at most {args.max_response} tokens", end="")
    print(f", so at most {args.prompts_per_step * G * args.max_response:,} tokens")
    context = max(map(len, train_ids + test_ids)) + args.max_response
    sizes = (args.gen_batch * G, context, args.micro_batch, args.gradient_checkpointing)
    need = estimate_memory([model], bf16, *sizes)
    parts = ", ".join(f"{what} {size / 2**20:,.0f}" for what, size in need.items())
    print(f"memory, estimated in MiB: {parts}", flush=True)

    def logp_of(rows, width):
        with autocast:
            return token_logprobs(model, tokens[rows, :width], mask[rows, :width], args.temperature, n_vocab)

    def test_policy(step):
        chunk = max(1, args.gen_batch * G // args.eval_samples)
        how = decoding | {"top_p": args.eval_top_p}
        with autocast:
            found, examples = evaluate(model, tokenizer, test, test_ids, args.eval_samples, chunk, args.seed, **how)
        for example in examples:
            append_row(out / "samples.jsonl", {"step": step} | example)
        score, shown = found[f"test/avg@{args.eval_samples}"], examples[0]
        asked, said = printable(shown["prompt"][-60:]), printable(shown["response"][-90:])
        tqdm.write(f"step {step:4d}   test {score:.3f}   {asked} -> {said}")
        return found

    stopping = False

    def stop_after_step(signum, frame):
        nonlocal stopping
        stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.write("stopping after this step (ctrl-C again: at once, back to the last checkpoint)")

    signal.signal(signal.SIGINT, stop_after_step)
    if done < 0:
        clock, done = time.perf_counter(), 0
        append_row(out / "metrics.jsonl", {"step": 0} | test_policy(0))
        append_row(out / "timing.jsonl", {"step": 0, "evaluate": time.perf_counter() - clock})
    bar = tqdm(total=args.steps, initial=done, desc="dapo", unit="step")
    for step in range(done + 1, args.steps + 1):
        clock = [time.perf_counter()]

        # ---- 1. sample and score, until enough groups can teach: 0 < #right < G (dynamic sampling, DAPO eq. 11)
        parts, groups, most = [], [], args.max_gen_batches * args.prompts_per_step
        while len(groups) < args.prompts_per_step and len(parts) * args.gen_batch < most:
            batch = [problem_at(cursor + i, len(train), args.seed) for i in range(args.gen_batch)]
            cursor += args.gen_batch
            prompts, problems = [train_ids[i] for i in batch], [train[i] for i in batch]
            how = decoding | {"top_p": args.rollout_top_p, "generator": generator}
            with autocast:
                part = sample_and_check(model, tokenizer, problems, prompts, G, **how)
            penalty = overlong_penalty(part["length"], args.max_response, args.overlong_buffer)
            part["reward"] = 2.0 * part["right"] - 1 + penalty  # (1), (B, G)
            for b, n_right in enumerate(part["right"].sum(1).tolist()):
                if 0 < n_right < G:
                    rows = slice(b * G, (b + 1) * G)
                    sampled = part["logp"][rows][part["mask"][rows] != 0]  # as the sampler saw them
                    groups.append((prompts[b], part["ids"][rows], part["reward"][b], sampled))
            parts.append(part)
        groups = groups[: args.prompts_per_step]
        row = {"step": step, "reward": torch.cat([part["reward"] for part in parts]).mean().item()} | describe(parts)
        row |= {"prompts_sampled": len(parts) * args.gen_batch, "groups": len(groups)}
        clock.append(time.perf_counter())

        if groups:
            # ---- 2. advantage: normalised in its group, reweighted by the probability that each token had
            prompts = [prompt for prompt, *_ in groups for _ in range(G)]
            tokens, mask = pack(prompts, [ids for group in groups for ids in group[1]], pad_id, device)  # (N, L)
            plan = micro_batches(mask, args.mini_batch * G, args.micro_batch)
            logp_old = torch.zeros_like(mask)
            for rows, width in (micro for mini in plan for micro in mini):
                with torch.no_grad():
                    logp_old[rows, :width] = logp_of(rows, width)
            row["sampler_gap"] = (torch.cat([group[3] for group in groups]) - logp_old[mask != 0]).abs().mean().item()
            adv = group_advantages(torch.stack([reward for _, _, reward, _ in groups])).to(device)  # (B, G)
            adv = adv[:, :, None].repeat(1, 1, mask.shape[1])  # (B, G, L)
            if args.reweight == "low-prob":
                adv = reweight_low_prob(adv, logp_old.view_as(adv), args.alpha)
            elif args.reweight == "dominate":
                adv = reweight_dominate(adv, logp_old.view_as(adv), args.alpha)
            elif args.reweight == "ppl":
                adv = reweight_ppl(adv, logp_old.view_as(adv), mask.view_as(adv), args.alpha)
            adv = adv.view_as(mask)  # (N, L)
            clock.append(time.perf_counter())

            # ---- 3. update: an optimiser step a mini-batch, its loss normalised by the tokens of all its micro-batches
            optimizer.param_groups[0]["lr"] = row["lr"] = args.lr * min(1.0, step / max(1, args.warmup_steps))
            sums = Counter()
            for mini in plan:
                n_tokens = sum(mask[rows].sum() for rows, _ in mini)
                for rows, width in mini:
                    old, a, m = (x[rows, :width] for x in (logp_old, adv, mask))
                    clips = (args.eps_low, args.eps_high, args.dual_clip)
                    loss, stats = dapo_loss(logp_of(rows, width), old, a, m, *clips, n_tokens)
                    loss.backward()
                    sums.update({name: value.item() for name, value in (stats | {"loss": loss}).items()})
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
                sums["grad_norm"] += norm.item()
                if not math.isfinite(norm):  # nan or inf stops here, before it reaches the weights
                    stop_at_bad_batch(
                        out, step, norm, {"tokens": tokens, "mask": mask, "adv": adv, "logp_old": logp_old}
                    )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            row |= {name: value / len(plan) for name, value in sums.items()}
        clock += [time.perf_counter()] * (4 - len(clock))

        # ---- 4. evaluate, log, save
        if step % args.eval_every == 0 or step == args.steps:
            row |= test_policy(step)
        append_row(out / "metrics.jsonl", row)
        seconds = np.diff([*clock, time.perf_counter()]).round(4).tolist()
        phases = zip(("rollout", "score", "update", "evaluate"), seconds, strict=True)
        append_row(out / "timing.jsonl", {"step": step} | dict(phases))
        bar.update()
        shown = {k: f"{row[k]:.3g}" for k in ("accuracy", "length", "entropy", "grad_norm") if k in row}
        bar.set_postfix(shown | {"last step": f"{sum(seconds):.1f} s"})
        if args.save_every and step % args.save_every == 0:
            save_model(out / f"model_{step:06d}", model, tokenizer)
        if stopping or step % args.checkpoint_every == 0 or step == args.steps:
            trainer = {"step": step, "cursor": cursor, "optimizer": optimizer.state_dict()}
            trainer["generator"] = generator.get_state()
            save_model(out / "checkpoint" / f"step_{step:06d}", model, tokenizer, trainer)
            for old in sorted((out / "checkpoint").glob("step_??????"))[:-2]:
                shutil.rmtree(old)
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            draw_curves(out / "curves.png", rows, f"dapo.py, {args.model}, reweight {args.reweight}, seed {args.seed}")
        if stopping:
            bar.close()
            print(f"stopped after step {step}; the same command with --resume goes on from here")
            return 130
    bar.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    save_model(out / "model", model, tokenizer)
    final = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    print("\n".join(f"{name:22s} {value:.4f}" for name, value in final.items() if name.startswith("test/")))
    print(f"figure {out / 'curves.png'}; model {out / 'model'}; every number {out / 'metrics.jsonl'}")
    return 0


KEPT = "the last checkpoint stands, and --resume goes on from it"
MENDS = {  # of memory that runs out in the function, or in one that it calls
    "load_model": "choose a smaller --model",
    "rollout": "lower --gen-batch",
    "main": "lower --micro-batch, or add --gradient-checkpointing",
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
        sys.exit(130)
