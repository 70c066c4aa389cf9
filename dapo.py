"""DAPO, and low-probability tokens: reinforcement learning with verifiable rewards in one file.

What it shows: a base model that is right one time in fifteen learns to be right nearly always, from nothing but a
checker of final answers. In the tiny world two stages are in plain sight: the common fair habit is exploited first,
then the rare better one takes over. `--reweight low-prob` is the method of paper A.

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), section 4.2
  DAPO:    "DAPO: An Open-Source LLM Reinforcement Learning System at Scale" (arXiv 2503.14476)

The equations, tagged (1) to (8) in the code:
  (1) R_i = +1 if the final answer is right, else -1, plus the soft overlong punishment in [-1, 0]      DAPO eq. 7, 13
  (2) A_i = (R_i - mean R) / std R over the G responses to one prompt, the same for every token         DAPO eq. 9
  (3) A_it <- (1 + alpha (1 - pi_old(y_it))) A_it        --reweight low-prob                            paper A, 4.2
  (4) A_it <- (alpha pi_old(y_it) + 1 - alpha) A_it      --reweight dominate                            arXiv 2505.12929
  (5) A_i  <- (1 - alpha z_i) A_i                        --reweight ppl, z_i: (2) of the log-perplexity Deng et al. 2025
  (6) w_it = pi(y_it) / pi_old(y_it)                                                                    DAPO eq. 9
  (7) J = 1 / (sum_i |y_i|) sum_i sum_t min(w A, clip(w, 1 - eps_low, 1 + eps_high) A)                  DAPO eq. 8
  (8) where A < 0, the term of (7) is at least c A: "dual clip"                                         released code

Differs from the paper and its released code: the defaults are sized for the tiny model (docs/dapo.md has the paper's);
fp32 parameters under bf16 autocast, not bf16 parameters; the old log-probs come from the code and micro-batches of the
update, so that the first ratio is exactly 1.

    python dapo.py                                                # tiny Qwen3 on two CPU cores, 5 minutes
    python dapo.py --model Qwen/Qwen2.5-0.5B-Instruct --train data/gsm8k/train.jsonl --test data/gsm8k/test.jsonl \\
        --max-response 1024 --overlong-buffer 256 --lr 1e-6 --micro-batch 8 --gradient-checkpointing    # one GPU
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Args:
    model: str = "tiny/base"  # base model: a folder, or a name on the hub
    train: str = "tiny/train.jsonl"  # training problems, one {"prompt": ..., "answer": ...} a line
    test: str = "tiny/test.jsonl"  # test problems, same format
    out: str = "runs/dapo/default"  # folder of this run
    resume: bool = False  # go on from the checkpoint in --out
    seed: int = 1  # of sampling and data order
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"  # in bf16 on cuda
    verifier: Literal["exact", "math-verify"] = "exact"  # of final answers; math-verify needs its package
    # the objective
    reweight: Literal["none", "low-prob", "dominate", "ppl"] = "none"  # equations (3), (4), (5)
    alpha: float = 0.2  # strength of --reweight; 0 is DAPO, bit for bit
    eps_low: float = 0.2  # lower clip range
    eps_high: float = 0.28  # upper clip range (clip-higher)
    dual_clip: float = 10.0  # bound c on the ratio where the advantage is negative
    # rollouts
    steps: int = 100  # rollout steps in all
    prompts_per_step: int = 16  # prompts trained on in a step
    group_size: int = 8  # responses to a prompt, G
    gen_batch: int = 16  # prompts decoded side by side
    max_gen_batches: int = 10  # sample at most this many times --prompts-per-step, then train on what is there
    max_response: int = 128  # response limit L_max, in tokens
    overlong_buffer: int = 16  # L_cache, the last tokens of the limit: the punishment grows to -1 there
    temperature: float = 1.0  # of sampling and of every log-prob
    rollout_top_p: float = 1.0  # nucleus of the rollouts (figure 3c); scored by the full softmax
    # optimisation
    lr: float = 2e-4  # learning rate of AdamW
    warmup_steps: int = 10  # rollout steps of linear warm-up
    weight_decay: float = 0.1  # decoupled weight decay
    max_grad_norm: float = 1.0  # gradient clipping
    mini_batch: int = 8  # prompts in an optimiser step
    micro_batch: int = 32  # responses in one forward and backward pass: memory and speed, not the gradient
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    # evaluation and files
    eval_every: int = 10  # steps between evaluations, each with a checkpoint; also before the first step
    eval_problems: int = 150  # evaluate on the first N test problems; 0: all
    eval_samples: int = 4  # responses to a test problem, n of avg@n
    eval_top_p: float = 1.0  # nucleus of the evaluation (the paper: 0.7)
    save_every: int = 0  # keep a numbered model every N steps; 0: only the last

    def __post_init__(self):
        may_be_0 = "seed alpha eps_low steps overlong_buffer warmup_steps weight_decay eval_problems save_every".split()
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self) if f.type in (int, float)):
            if not (value > 0 or (value == 0 and name in may_be_0)):
                sys.exit(f"error: --{name.replace('_', '-')} {value}: too small")
        if self.group_size < 2 or self.prompts_per_step % self.mini_batch or self.overlong_buffer > self.max_response:
            sys.exit(
                "error: want --group-size 2 or more, --prompts-per-step a multiple of --mini-batch, "
                "--overlong-buffer at most --max-response"
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            sys.exit("error: --device cuda: PyTorch finds no CUDA device here")


def parse_args(argv=None):
    """The fields of Args as flags, the comment behind each as its help text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", Path(__file__).read_text("utf-8"), re.MULTILINE))
    for f in fields(Args):
        kind = {"type": type(f.default), "choices": get_args(f.type) or None}
        kind = {"action": "store_true"} if f.type is bool else kind | {"default": f.default}
        help_text = f"{comments[f.name]} (default: {f.default})"
        parser.add_argument("--" + f.name.replace("_", "-"), help=help_text, **kind)
    return Args(**vars(parser.parse_args(argv)))


# ------------------------------------------------------------------------------------------------ maths: tensors alone
def group_advantages(rewards):
    """Rewards normalised in their group (DAPO eq. 9): (B, G) -> (B, G); equal rewards give exactly 0."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return (centred / (std + 1e-6)).masked_fill(equal, 0.0)  # (2), with n - 1 and 1e-6 as in the released code


def overlong_penalty(lengths, max_len, buffer):
    """Soft overlong punishment (DAPO eq. 13), any shape: 0 up to max_len - buffer tokens, linearly to -1 at max_len."""
    return -((lengths - (max_len - buffer)).float() / max(buffer, 1)).clamp(0.0, 1.0)  # (1)


def reweight_low_prob(adv, logp_old, alpha):
    """Paper A, section 4.2: unlikely tokens count more, whatever the sign. (..., T) both -> (..., T), detached."""
    return (adv * (1 + alpha * (1 - logp_old.exp()))).detach()  # (3)


def reweight_dominate(adv, logp_old, alpha):
    """The baseline of arXiv 2505.12929: unlikely tokens count less. adv, logp_old (..., T) -> (..., T), detached."""
    return (adv * (alpha * logp_old.exp() + (1 - alpha))).detach()  # (4)


def reweight_ppl(adv, logp_old, mask, alpha):
    """The baseline of Deng et al. 2025: surprising responses count less. All (B, G, T) -> (B, G, T), detached."""
    log_ppl = -(logp_old * mask).sum(-1) / mask.sum(-1).clamp(min=1)  # (B, G)
    return (adv * (1 - alpha * group_advantages(log_ppl)).unsqueeze(-1)).detach()  # (5), normalised as in (2)


def dapo_loss(logp, logp_old, adv, mask, eps_low=0.2, eps_high=0.28, dual_clip=10.0, n_tokens=None):
    """Clipped token-level objective with clip-higher and dual clip (DAPO eq. 8), negated: (N, T) each -> (loss, stats).

    Sums over the tokens where mask is 1 are divided by n_tokens, default mask.sum(): a micro-batch passes the count of
    its whole optimiser step, so that gradients and stats of the micro-batches add up to the step's. Stats: the shares
    of tokens whose gradient a clip set to 0; `ratio`, the mean of (6); `kl`, the k3 estimate of KL(old || new), nats.
    """
    n_tokens = mask.sum().clamp(min=1) if n_tokens is None else n_tokens
    log_ratio = (logp - logp_old.detach()).masked_fill(mask == 0, 0.0)
    ratio = log_ratio.clamp(max=20).exp()  # (6); beyond 88 exp is inf, and a clipped token's gradient 0 * inf
    objective = torch.min(ratio * adv, ratio.clamp(1 - eps_low, 1 + eps_high) * adv)  # (7)
    objective = torch.where(adv < 0, torch.max(objective, dual_clip * adv), objective)  # (8)
    loss = -objective.masked_fill(mask == 0, 0.0).sum() / n_tokens
    stats = {
        "clip_low": (adv < 0) & (ratio < 1 - eps_low),
        "clip_high": (adv > 0) & (ratio > 1 + eps_high),
        "clip_dual": (adv < 0) & (ratio > dual_clip),
        "ratio": ratio,
        "kl": ratio - 1 - log_ratio,
    }
    return loss, {name: value.detach().masked_fill(mask == 0, 0).sum() / n_tokens for name, value in stats.items()}


# ------------------------------------------------------------------------------------------ model: sampling and scoring
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
        scores = logp.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if temperature > 0:  # Gumbel-max: the argmax of log-prob + Gumbel noise is an exact draw
        scores = scores - torch.empty_like(logp).exponential_(generator=generator).log()
    tokens = scores.argmax(-1)
    return tokens, logp.gather(-1, tokens[:, None])[:, 0], entropy


@torch.no_grad()
def rollout(model, prompts, group_size, max_new_tokens, eos_ids, n_vocab=None, **sampling):
    """Sample group_size responses to each of B prompts (lists of ids), keeping what each token was drawn from.

    sampling: temperature, top_p and generator of sample_tokens; generation_config is not consulted. Ids from n_vocab
    on, which pad the embedding matrix, are never drawn. Returns tensors of N = B * group_size rows in group order, T
    the longest response: tokens (N, T), one of eos_ids included; mask (N, T), 1 on response tokens; logp and entropy
    (N, T), of the full softmax; finished (N,), False where max_new_tokens cut the response.
    """
    was_training, width, device = model.training, max(map(len, prompts)), model.device
    model.eval()  # in train mode, gradient checkpointing would switch the cache off
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, W), left-padded
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    position = (attention.cumsum(1) - 1).clamp(min=0)  # padding must not shift positions
    out = model(input_ids=ids, attention_mask=attention, position_ids=position, use_cache=True, logits_to_keep=1)
    cache, state = out.past_key_values, (out.logits[:, -1], attention, position[:, -1:])
    cache.batch_repeat_interleave(group_size)  # a prompt is read once, whatever the group
    logits, attention, position = (x.repeat_interleave(group_size, dim=0) for x in state)
    live, stops = torch.arange(len(logits), device=device), torch.tensor(eos_ids, device=device)
    tokens, finished = torch.zeros(len(live), max_new_tokens, dtype=torch.long, device=device), live < 0
    mask, logp, entropy = torch.zeros(3, len(live), max_new_tokens, device=device)
    for t in range(max_new_tokens):  # live: the rows still in the batch
        new, logp[live, t], entropy[live, t] = sample_tokens(logits[:, :n_vocab], **sampling)
        tokens[live, t], mask[live, t] = new, 1.0
        stopped = torch.isin(new, stops)
        finished[live[stopped]] = True
        if stopped.all() or t + 1 == max_new_tokens:
            break
        if stopped.any():  # rows that have ended leave batch and cache
            keep = (~stopped).nonzero()[:, 0]
            live, new, attention, position = (x[keep] for x in (live, new, attention, position))
            cache.batch_select_indices(keep)
        attention, position = torch.cat([attention, attention.new_ones(len(new), 1)], dim=1), position + 1
        inputs = {"input_ids": new[:, None], "attention_mask": attention, "position_ids": position}
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]
    model.train(was_training)
    columns = {"tokens": tokens, "mask": mask, "logp": logp, "entropy": entropy}
    return {name: x[:, : t + 1] for name, x in columns.items()} | {"finished": finished}


def token_logprobs(model, tokens, mask, temperature=1.0, n_vocab=None, chunk=None):
    """Log-prob of each token whose mask is 1, given all before it, and the entropy of its softmax; differentiable.

    tokens, mask (N, L), right-padded -> (logp, entropy), (N, L) each: entry [i, t] belongs to tokens[i, t], 0 where
    mask is 0. The head and the fp32 softmax over ids below n_vocab see `chunk` tokens at a time (default: 2^27 logits)
    and are recomputed in the backward pass: no (tokens, vocabulary) tensor is kept. For models whose logits are what
    the head returns (Qwen, Llama), not for those that scale or cap it afterwards (Gemma 2, Cohere, Granite).
    """
    chunk = chunk or max(1, min(4096, 2**27 // model.config.vocab_size))

    def head(hidden, targets):
        logits = model.get_output_embeddings()(hidden)[:, :n_vocab].float() / temperature  # (chunk, V)
        log_z = logits.logsumexp(-1)
        return logits.gather(-1, targets[:, None])[:, 0] - log_z, log_z - (logits.softmax(-1) * logits).sum(-1)

    states = model.base_model(tokens, use_cache=False)[0]  # causal attention: right padding needs no mask
    scored = mask[:, 1:] != 0  # the state at t - 1 predicts the token at t
    pairs = zip(states[:, :-1][scored].split(chunk), tokens[:, 1:][scored].split(chunk), strict=True)
    parts = [checkpoint(head, *pair, use_reentrant=False) for pair in pairs]
    where = torch.nn.functional.pad(scored, (1, 0))
    return tuple(torch.zeros_like(mask).masked_scatter(where, torch.cat(x)) for x in zip(*parts, strict=True))


def pack(responses, mini, micro):
    """Responses as right-padded tokens and mask, (N, L) both, and the plan of an update: mini-batches of `mini` rows,
    each a list of micro-batches (row indices, width) of at most `micro` rows of like length.
    """
    ends, plan = [len(r["prompt"]) + len(r["ids"]) for r in responses], []
    tokens, mask = torch.zeros(len(ends), max(ends), dtype=torch.long), torch.zeros(len(ends), max(ends))
    for i, r in enumerate(responses):
        tokens[i, : ends[i]], mask[i, len(r["prompt"]) : ends[i]] = torch.tensor(r["prompt"] + r["ids"]), 1.0
    for i in range(0, len(ends), mini):
        rows = sorted(range(i, min(i + mini, len(ends))), key=lambda row: ends[row])
        parts = [rows[j : j + micro] for j in range(0, len(rows), micro)]
        plan.append([(part, ends[part[-1]]) for part in parts])
    return tokens, mask, plan


# ----------------------------------------------------------------------------------------- task: problems and verifier
def read_problems(path, tokenizer, limit):
    """Rows {"prompt": str, "answer": str} of a JSONL file, perhaps with "system"; adds "ids", the prompt in at most
    `limit` tokens, in the tokenizer's chat template if it has one.
    """
    problems, chat = [], tokenizer.chat_template is not None
    lines = Path(path).read_text("utf-8", "surrogateescape").rstrip("\n").split("\n")  # splitlines would cut at U+2028
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            roles = {"system": row.get("system", ""), "user": row["prompt"]}
            "".join([row["answer"], *roles.values()]).encode()  # fails where it is not UTF-8
            if not row["prompt"].strip() or not row["answer"].strip():
                raise ValueError("empty")
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            sys.exit(f'error: {path}, line {number}: want {{"prompt": "...", "answer": "..."}}, got {line[:40]!r}')
        messages = [{"role": role, "content": text} for role, text in roles.items() if text]
        text = "\n\n".join(message["content"] for message in messages)
        if chat:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        row["ids"] = tokenizer(text, add_special_tokens=not chat)["input_ids"]
        if tokenizer.unk_token_id in row["ids"]:
            sys.exit(f"error: {path}, line {number}: the prompt has characters that the model's vocabulary lacks")
        if len(row["ids"]) > limit:
            sys.exit(f"error: {path}, line {number}: the prompt exceeds {limit} tokens, context less --max-response")
        problems.append(row)
    return problems


def extract_answer(text):
    r"""What stands in the last balanced \boxed{...}, braces at most five deep, of the last 20,000 characters."""
    inner = r"[^{}]*+"
    for _ in range(4):
        inner = rf"(?:[^{{}}]|\{{{inner}\}})*+"
    boxes = re.findall(rf"\\boxed\s*\{{(?=({inner})\}})", text[-20_000:])
    return boxes[-1].strip() if boxes else None


def canonical(answer):
    r"""A Fraction of a plain number (1,000  .5  1/2  \frac12), else the text without spaces, $, %, \left and \text."""
    s = re.sub(r"\\(?:left|right)(?![a-z])|\\[,;:! ]|\\?[$%]", "", answer.replace("\u2212", "-").replace("{,}", ","))
    s = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r"\1", s.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    s = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", s).removesuffix(".")  # "1 2" is not "12"
    number = re.sub(r"^([+-]?)\\frac\{?(-?\d+?)\}?\s*\{?(\d+)\}?$", r"\1\2/\3", s)
    number = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", number)
    try:
        return Fraction(number) if re.fullmatch(r"[-+]?[0-9./]{1,100}", number) else s
    except (ValueError, ZeroDivisionError):  # 1.2.3, 1/0
        return s


def is_correct(text, answer, verifier="exact"):
    r"""Does the last \boxed{} of text hold the answer, as number or text? "math-verify" asks that package where not."""
    said = extract_answer(text)
    if not said or len(said) > 1000:
        return False
    if verifier == "math-verify" and canonical(said) != canonical(answer):
        from math_verify import parse, verify  # reads LaTeX; stops after 5 seconds

        return verify(parse(rf"\boxed{{{answer}}}"), parse(rf"\boxed{{{said}}}"))
    return canonical(said) == canonical(answer)


# --------------------------------------------------------------------------------------------------------- experiment
LEAPS = {  # habits of the tiny world, counted in responses: "63*2-2=24; 77-7=70 so ..." has leaps of two and of one
    "leaps_one": r"(?<![-+*\d])\d{1,3}[-+*]\d=\d{1,3}[; ]",
    "leaps_two": r"(?<![-+*\d])\d{1,3}(?:[-+*]\d){2}=\d{1,3}[; ]",
    "leaps_jump": r"(?:[-+*]\d){3,20}=\d{1,3}[; ]"  # or a box whose second number is not the last result
    r"|(?:^|=(\d{1,3})(?:; | [a-z]+ ))\\boxed\{(?!\d{1,3},\1\})\d{1,3},\d{1,3}\}$",
}


def sample_and_check(model, tokenizer, problems, group_size, top_p, generator, args):
    """group_size responses to each problem, decoded, checked and rewarded: a dict for each response, in group order."""
    ends = np.atleast_1d(model.generation_config.eos_token_id).tolist()  # a chat model has two: <|im_end|> as well
    limits = args.max_response, sorted({tokenizer.eos_token_id, *ends} - {None}), len(tokenizer)
    sampling = {"temperature": args.temperature, "top_p": top_p, "generator": generator}
    out = rollout(model, [problem["ids"] for problem in problems], group_size, *limits, **sampling)
    out, responses = {name: x.cpu() for name, x in out.items()}, []
    penalties = overlong_penalty(out["mask"].sum(1), args.max_response, args.overlong_buffer)
    for i, n in enumerate(out["mask"].sum(1).int().tolist()):
        problem, ids = problems[i // group_size], out["tokens"][i, :n].tolist()
        response = {"prompt": problem["ids"], "ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)}
        response |= {"logp": out["logp"][i, :n].tolist(), "entropy": out["entropy"][i, :n].sum().item()}
        response |= {"right": is_correct(response["text"], problem["answer"], args.verifier)}
        response |= {"reward": 2.0 * response["right"] - 1 + penalties[i].item()}  # (1)
        responses.append(response | {"finished": out["finished"][i].item()})
    return responses


def describe(responses):
    """What training and evaluation log about sampled responses: a dict of floats."""
    n, n_tokens = len(responses), sum(len(r["ids"]) for r in responses)
    metrics = {"accuracy": sum(r["right"] for r in responses) / n, "length": n_tokens / n}
    metrics["truncated"] = sum(not r["finished"] for r in responses) / n
    metrics["entropy"] = sum(r["entropy"] for r in responses) / n_tokens
    leaps = {name: sum(len(re.findall(leap, r["text"])) for r in responses) / n for name, leap in LEAPS.items()}
    return metrics | (leaps if any(leaps.values()) else {})


def evaluate(model, tokenizer, problems, args):
    """(metrics, rows to read) of --eval-samples responses to every problem, with a 95% interval over problems (normal).

    The generator is its own: training goes on as if no evaluation had taken place.
    """
    responses, generator = [], torch.Generator(model.device).manual_seed(args.seed + 1_000_003)
    for i in range(0, len(problems), args.gen_batch):
        part = problems[i : i + args.gen_batch]
        responses += sample_and_check(model, tokenizer, part, args.eval_samples, args.eval_top_p, generator, args)
    metrics = {f"test/{name}": value for name, value in describe(responses).items() if name != "accuracy"}
    right = torch.tensor([r["right"] for r in responses]).view(len(problems), -1).double().mean(1)
    half = 1.96 * right.std().item() / len(right) ** 0.5 if len(right) > 1 else 0.0
    metrics |= {f"test/avg@{args.eval_samples}": right.mean().item(), f"test/avg@{args.eval_samples}_ci95": half}
    examples = zip(problems[:5], responses[:: args.eval_samples], strict=False)
    return metrics, [{"prompt": p["prompt"], "answer": p["answer"], "response": r["text"]} for p, r in examples]


def open_run(args):
    """Make the run folder with its config.json; returns the checkpoint that --resume goes on from, or None."""
    out, config, saved = Path(args.out), Path(args.out, "config.json"), Path(args.out, "checkpoint.pt")
    if args.resume != config.exists():
        sys.exit(f"error: {out} holds {'no' * args.resume or 'a'} run: --resume goes on with one, --out names another")
    before = json.loads(config.read_text())["args"] if args.resume else {}
    free = ["resume", "out", "steps", "save_every", "gen_batch", "micro_batch", "gradient_checkpointing"]
    changed = {k: v for k, v in before.items() if v != getattr(args, k, None) and k not in free}
    if changed:
        sys.exit(f"error: --resume: {out} was started with {changed}; give the same, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    about = {"args": asdict(args), "torch": torch.__version__, "transformers": transformers.__version__}
    config.write_text(json.dumps(about, indent=2) + "\n")
    return torch.load(saved, map_location="cpu", weights_only=True) if saved.exists() else None


def draw_curves(path, rows, title):
    """Accuracy, entropy, response length and, in the tiny world, leaps in a response, over training steps."""
    panels = {"share of responses right": r"accuracy|test/avg@\d+", "entropy (nats a token)": "(test/)?entropy"}
    panels |= {"response length (tokens)": "(test/)?length", "leaps in a training response": "leaps_.*"}
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axis, (name, pattern) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for key in (key for key in rows[-1] if re.fullmatch(pattern, key)):
            points = np.array([(row["step"], row[key], row.get(f"{key}_ci95", 0.0)) for row in rows if key in row])
            axis.errorbar(*points.T, fmt="o-" if "test/" in key else "-", ms=3, lw=1.2, label=key)
        axis.set(title=name, xlabel="training step", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(handles=axis.containers)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main(args):
    # ---- models and problems first: what is wrong with them shows before anything runs
    transformers.utils.logging.disable_progress_bar()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and every decoding step is a new shape
    device, G, out = args.device, args.group_size, Path(args.out)
    load = AutoModelForCausalLM.from_pretrained
    try:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        policy = load(args.model, dtype=torch.float32, use_safetensors=True).to(device)  # bf16 would round 1e-6 away
    except (OSError, ValueError) as error:  # neither a folder with a model nor a name on the hub
        sys.exit(f"error: --model {args.model}: {' '.join(str(error).split())[:200]}")
    bf16 = device == "cuda"  # a bf16 copy samples there, and the update runs under autocast
    sampler = load(args.model, dtype=torch.bfloat16, use_safetensors=True).to(device) if bf16 else policy
    limit = policy.config.max_position_embeddings - args.max_response
    train, test = (read_problems(path, tokenizer, limit) for path in (args.train, args.test))
    test, saved = test[: args.eval_problems or None], open_run(args)

    # ---- optimiser, data order, generator, log; a checkpoint puts all of them back
    if args.gradient_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    autocast = torch.autocast(device, torch.bfloat16, enabled=bf16)
    optimizer = torch.optim.AdamW(policy.parameters(), args.lr, weight_decay=args.weight_decay, fused=device == "cuda")
    generator = torch.Generator(device).manual_seed(args.seed)
    epochs = 2 + args.steps * args.max_gen_batches * args.prompts_per_step // len(train)
    order = np.concatenate([np.random.default_rng([args.seed, e]).permutation(len(train)) for e in range(epochs)])
    cursor, log = 0, {"metrics": [], "samples": []}
    if saved:
        policy.load_state_dict(saved["model"])
        sampler.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        cursor, log = saved["cursor"], saved["log"]

    done = len(log["metrics"])
    bar = tqdm(range(done, args.steps + 1), initial=done, total=args.steps + 1, desc="dapo", unit="step")
    for step in bar:  # step 0 evaluates the base
        # ---- 1. sample and check, until enough groups can teach: 0 < #right < G (dynamic sampling, DAPO eq. 11)
        row, sampled, groups, wanted = {"step": step}, [], [], args.prompts_per_step if step else 0
        while len(groups) < wanted and len(sampled) < args.max_gen_batches * wanted * G:
            problems, cursor = [train[i] for i in order[cursor : cursor + args.gen_batch]], cursor + args.gen_batch
            batch = sample_and_check(sampler, tokenizer, problems, G, args.rollout_top_p, generator, args)
            sampled += batch
            batch = [batch[i : i + G] for i in range(0, len(batch), G)]
            groups += [group for group in batch if 0 < sum(r["right"] for r in group) < G]
        groups = groups[:wanted]
        if sampled:
            row |= {"reward": sum(r["reward"] for r in sampled) / len(sampled)} | describe(sampled)
            row |= {"prompts_sampled": len(sampled) // G, "groups": len(groups)}

        if groups:
            # ---- 2. advantage: normalised in its group, reweighted by the probability that each token had
            responses = [r for group in groups for r in group]
            tokens, mask, plan = pack(responses, args.mini_batch * G, args.micro_batch)
            tokens, mask = tokens.to(device), mask.to(device)  # (N, L)
            logp_old = torch.zeros_like(mask)
            policy.train()  # gradient checkpointing works in train mode only
            for rows, width in (micro for mini in plan for micro in mini):
                t, m = tokens[rows, :width], mask[rows, :width]
                with torch.no_grad(), autocast:
                    logp_old[rows, :width] = token_logprobs(policy, t, m, args.temperature, len(tokenizer))[0]
            seen = torch.tensor([x for r in responses for x in r["logp"]], device=device)  # by the sampler
            row["sampler_gap"] = (seen - logp_old[mask != 0]).abs().mean().item()
            adv = group_advantages(torch.tensor([[r["reward"] for r in group] for group in groups], device=device))
            adv = adv[:, :, None].repeat(1, 1, mask.shape[1])  # (B, G, L)
            if args.reweight == "low-prob":
                adv = reweight_low_prob(adv, logp_old.view_as(adv), args.alpha)
            elif args.reweight == "dominate":
                adv = reweight_dominate(adv, logp_old.view_as(adv), args.alpha)
            elif args.reweight == "ppl":
                adv = reweight_ppl(adv, logp_old.view_as(adv), mask.view_as(adv), args.alpha)
            adv = adv.view_as(mask)  # (N, L)

            # ---- 3. update: an optimiser step a mini-batch, its loss normalised by the tokens of all its micro-batches
            optimizer.param_groups[0]["lr"] = row["lr"] = args.lr * min(1.0, step / max(1, args.warmup_steps))
            sums = Counter()
            for mini in plan:
                n_tokens = sum(mask[rows].sum() for rows, _ in mini)
                for rows, width in mini:
                    t, m, old, a = (x[rows, :width] for x in (tokens, mask, logp_old, adv))
                    with autocast:
                        # [0] alone: an entropy that lives on holds each chunk's softmax until the backward pass
                        logp = token_logprobs(policy, t, m, args.temperature, len(tokenizer))[0]
                    loss, stats = dapo_loss(logp, old, a, m, args.eps_low, args.eps_high, args.dual_clip, n_tokens)
                    loss.backward()
                    sums.update({name: value.item() for name, value in (stats | {"loss": loss}).items()})
                norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm, error_if_nonfinite=True)
                sums["grad_norm"] += norm.item()
                optimizer.step()
                optimizer.zero_grad()
            row |= {name: value / len(plan) for name, value in sums.items()}
            sampler.load_state_dict(policy.state_dict())
            if device == "cuda" and step == max(done, 1):
                tqdm.write(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")

        # ---- 4. evaluate, log, save; the checkpoint comes last, under another name first: a kill leaves old or new
        at_checkpoint = step % args.eval_every == 0 or step == args.steps
        if at_checkpoint:
            metrics, examples = evaluate(sampler, tokenizer, test, args)
            row, log["samples"] = row | metrics, log["samples"] + [{"step": step} | example for example in examples]
            tqdm.write(f"step {step:4d}   {examples[0]['prompt'][-60:]!r} -> {examples[0]['response'][-90:]!r}")
        log["metrics"].append(row)
        for name, rows in log.items():
            (out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
        bar.set_postfix({k: f"{row[k]:.3g}" for k in ("accuracy", "length", "entropy", "grad_norm") if k in row})
        numbered = step > 0 and args.save_every > 0 and step % args.save_every == 0
        for folder in [f"model_{step:06d}"] * numbered + ["model"] * (step == args.steps):
            policy.save_pretrained(out / folder)
            tokenizer.save_pretrained(out / folder)
        if at_checkpoint:
            draw_curves(out / "curves.png", log["metrics"], f"dapo.py {args.model}: {args.reweight}, seed {args.seed}")
            state = {"model": policy.state_dict(), "optimizer": optimizer.state_dict(), "log": log, "cursor": cursor}
            with open(out / "checkpoint.tmp", "wb") as file:  # given a path, torch.save has no OSError for a full disk
                torch.save(state | {"generator": generator.get_state()}, file)
            (out / "checkpoint.tmp").replace(out / "checkpoint.pt")


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from the last checkpoint")
    except torch.OutOfMemoryError:
        sys.exit("error: out of GPU memory; lower --micro-batch or --gen-batch, and go on with --resume")
    except (OSError, ImportError) as error:  # no such file, full disk, missing package
        sys.exit(f"error: {' '.join(str(error).split())[:300]}")
