"""Extrapolation: why going beyond RLVR in its own direction should help, and whether it does, without any training.

`--theorem` trains tabular softmax policies by natural policy gradient and goes on in the same direction: expected
reward rises, always; and it shows where that guarantee ends. Without the flag, two models decode one response: where
RLVR made a token less likely, it is drawn again, not from the RLVR model but from beyond it.

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), section 4.1 and its appendix

  (1) log pi_ext = log pi_RL + gamma dlogp - log Z, dlogp = log pi_RL - log pi_base                     eq. of 4.1
  (2) selective: only where dlogp(y) < tau, for y from the base, or from RL itself; elsewhere keep y    section 4.1
  (3) NPG: theta <- theta + eta F^+ grad E[R], F = diag(pi) - pi pi^T the Fisher matrix of softmax      appendix
  (4) which is theta + eta (R - E[R]): theta_0 + eta T R after T steps, up to a constant                appendix
  (5) theorem: E_ext[R] >= E_RL[R] for gamma > 0, because d/dgamma E_ext[R] = eta T Var_ext(R) >= 0     appendix

The theorem is about a table of whole responses; decoding goes token by token, through a gate. The gate alone gives
unlikely tokens a second draw: hence the control, gamma 0 at the same gate, the paper's own for y from the base. As in
the released code, the temperature divides the mixed logits, then top-p cuts; unlike there, over the full vocabulary.

    python extrapolate.py --theorem              # the theorem and where it ends: seconds on a CPU
    python extrapolate.py                        # tiny pair on two CPU cores, 6 minutes
    python extrapolate.py --base Qwen/Qwen2.5-1.5B --rlvr Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B --top-p 0.7 \\
        --test data/aime24/test.jsonl --train data/math/train.jsonl --max-response 8192 --rows 128       # one GPU
"""

import argparse
import json
import math
import re
import sys
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Args:
    theorem: bool = False  # check the theorem instead; exit status 1 if it fails
    base: str = "tiny/base"  # base model: a folder, or a name on the hub
    rlvr: str = "tiny/rlvr"  # the model that RLVR made of it; both models see its tokenizer and chat template
    test: str = "tiny/test.jsonl"  # problems, one {"prompt": ..., "answer": ...} a line
    train: str = "tiny/train.jsonl"  # problems on which gamma and tau are chosen, same format
    out: str = "runs/extrapolate/default"  # folder of this run
    resume: bool = False  # go on after the last job that --out holds
    seed: int = 1  # of sampling and of the bootstrap
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"  # in bf16 on cuda
    verifier: Literal["exact", "math-verify"] = "exact"  # of final answers; math-verify needs its package
    gammas: str = "0.1,0.25,0.5,1,2"  # strengths of extrapolation
    taus: str = "-2,-1,-0.3,-0.1"  # gates: extrapolate where dlogp(y) < tau (write --taus=-2,-1)
    problems: int = 200  # the first N problems of --test; 0: all
    train_problems: int = 64  # the first N problems of --train
    samples: int = 4  # responses to a problem, n of avg@n and pass@n
    rows: int = 1600  # responses decoded side by side: all settings, for as many problems as fit
    max_response: int = 128  # response limit, in tokens
    temperature: float = 1.0  # of both models
    top_p: float = 1.0  # nucleus (the paper: 0.7)
    bootstrap: int = 2000  # resamples of the problems behind each interval

    def __post_init__(self):
        above_0 = "train_problems samples rows max_response temperature top_p bootstrap"
        number = r"(?=[\d.]*[1-9])(\d+\.?\d*|\.\d+)"  # and not 0
        numbers = re.fullmatch(rf"{number}(,{number})*;-{number}(,-{number})*", f"{self.gammas};{self.taus}")
        if not (numbers and all(getattr(self, name) > 0 for name in above_0.split())):
            sys.exit(f"error: want --gammas such as 0.5,1 and --taus=-2,-1; {above_0.replace(' ', ', ')} above 0")
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


# ------------------------------------------------------------------------------------------------- maths: tensors alone
def extrapolate_logp(logp_rlvr, logp_base, gamma):
    """log pi_RL + gamma dlogp - log Z (paper A, 4.1): log-probs (..., V) both -> (..., V), normalised.

    gamma, a number or (..., 1): 0 is the RLVR model, -1 the base, above 0 beyond RLVR. Where either log-prob is -inf,
    dlogp is undefined and taken as 0: no nan, and nothing that the RLVR model excludes comes back.
    """
    dlogp = torch.where(torch.isfinite(logp_rlvr) & torch.isfinite(logp_base), logp_rlvr - logp_base, 0.0)
    return torch.log_softmax(logp_rlvr + gamma * dlogp, dim=-1)  # (1)


def gain_of(theta, theta_0, rewards, gamma):
    """E[R] of the extrapolated policy minus that of softmax(theta): (..., V) three times, gamma (..., 1) -> (...)."""
    logp, logp_0 = torch.log_softmax(theta, dim=-1), torch.log_softmax(theta_0, dim=-1)
    return ((extrapolate_logp(logp, logp_0, gamma).exp() - logp.exp()) * rewards).sum(-1)  # (5)


def policy_gradient(theta, rewards):
    """Exact gradient of E[R] under pi = softmax(theta), with respect to theta: (..., V) both -> (..., V)."""
    pi = torch.softmax(theta, dim=-1)
    return pi * (rewards - (pi * rewards).sum(-1, keepdim=True))


def natural_gradient(theta, gradient):
    """F^+ gradient, F = diag(pi) - pi pi^T the Fisher matrix of softmax(theta): (..., V) both -> (..., V)."""
    pi = torch.softmax(theta, dim=-1)
    others = pi.unsqueeze(-1) * pi.unsqueeze(-2) * (1 - torch.eye(pi.shape[-1], dtype=pi.dtype, device=pi.device))
    fisher = torch.diag_embed(others.sum(-1)) - others  # 1 - pi as a sum: rows that sum to exactly 0 have one F^+
    return (torch.linalg.pinv(fisher, hermitian=True) @ gradient.unsqueeze(-1)).squeeze(-1)


def sampled_advantages(theta, rewards, group_size, generator=None):
    """(4) from group_size (2 or more) sampled actions, unbiased: F^+ times the sampled gradient; (P, V) -> (P, V)."""
    pi = torch.softmax(theta, dim=-1)
    actions = torch.multinomial(pi, group_size, replacement=True, generator=generator)  # (P, G)
    adv = rewards.gather(-1, actions)
    adv = (adv - adv.mean(-1, keepdim=True)) / (group_size - 1)  # not G: the mean holds the sample itself
    return torch.zeros_like(pi).scatter_add(-1, actions, adv) / pi


# --------------------------------------------------------------------------------------- the theorem, and where it ends
def random_problems(n, n_actions, generator):
    """(theta, rewards), both (n, n_actions) float64: random base policies, rewards uniform on [0, 1]."""
    like = {"generator": generator, "dtype": torch.float64}
    return 1.5 * torch.randn(n, n_actions, **like), torch.rand(n, n_actions, **like)


def check_theorem(n, seed, sizes=(2, 3, 5, 10, 30, 100, 200)):
    """(3) to (5) on n random problems: gains (n,), largest error of (4) and relative error of the slope in (5)."""
    generator, gains, errors = torch.Generator().manual_seed(seed), [], []
    for n_actions in sizes:
        theta_0, rewards = random_problems(n // len(sizes), n_actions, generator)
        uniform = torch.rand(3, len(theta_0), 1, generator=generator, dtype=torch.float64)
        lr, gamma = 10 ** (2 * uniform[0] - 2), (10 ** (3 * uniform[1] - 2)).requires_grad_()  # 0.01 to 1, 0.01 to 10
        theta, steps = theta_0, 1 + int(uniform[2, 0] * 10)
        for _ in range(steps):
            theta = theta + lr * natural_gradient(theta, policy_gradient(theta, rewards))  # (3)
        npg_error = torch.softmax(theta, -1) - torch.softmax(theta_0 + lr * steps * rewards, -1)  # (4)
        gains.append(gain_of(theta, theta_0, rewards, gamma))
        (slope,) = torch.autograd.grad(gains[-1].sum(), gamma)
        pi = torch.softmax(theta + gamma.detach() * (theta - theta_0), -1)
        variance = (pi * (rewards - (pi * rewards).sum(-1, keepdim=True)) ** 2).sum(-1, keepdim=True)
        slope_error = (slope - lr * steps * variance) / slope.abs().max()  # (5)
        errors.append([npg_error.abs().max(), slope_error.abs().max()])
    return torch.cat(gains).detach().numpy(), *np.max(errors, axis=0)


def stopped_exploiting(n, seed, steps=300, lr=2.0):
    """Plain gradient on n random problems of 3 actions: the problem and the step to stop at for which (5) fails worst.

    Returns its rewards (3,), pi and pi_ext (steps + 1, 3), best action first; step and gain; share of losing problems.
    """
    theta_0, rewards = random_problems(n, 3, torch.Generator().manual_seed(seed))
    path = [theta_0]
    for _ in range(steps):
        path.append(path[-1] + lr * policy_gradient(path[-1], rewards))
    gains = gain_of(torch.stack(path), theta_0, rewards, 1.0)  # (steps + 1, n)
    step, worst = divmod(gains.argmin().item(), n)
    order = rewards[worst].argsort(descending=True)
    theta = torch.stack(path)[:, worst, order]
    pi, pi_ext = (torch.softmax(x, -1).numpy() for x in (theta, 2 * theta - theta[0]))
    return rewards[worst, order].numpy(), pi, pi_ext, step, gains.min().item(), np.mean(gains.numpy().min(0) < -1e-12)


def theorem(out, seed):
    """Check the theorem and show where it ends; exit status 1 if it fails."""
    gains, npg_error, slope_error = check_theorem(2100, seed)
    print(f"2,100 random problems: {np.sum(gains < -1e-12)} lose, least gain {gains.min():.1e}")
    print(f"largest error of (4): {npg_error:.1e}, relative error of the slope in (5): {slope_error:.1e}")
    if not (gains.min() > -1e-12 and max(npg_error, slope_error) < 1e-6):
        sys.exit("error: the theorem FAILS")

    print("\n| 1,000 problems of 10 actions, gamma 1: advantages sampled from | mean gain | share that loses |")
    print("|---|---|---|")
    generator = torch.Generator().manual_seed(seed)
    theta_0, rewards = random_problems(1000, 10, generator)
    for size in (256, 64, 16, 8, 4, 2):
        theta = theta_0
        for _ in range(20):
            theta = theta + 0.2 * sampled_advantages(theta, rewards, size, generator)
        gain = gain_of(theta, theta_0, rewards, 1.0)
        print(f"| {size} actions | {gain.mean():+.4f} | {(gain < -1e-12).double().mean():.3f} |")

    # while the common fair action is exploited, the rare best one rises more slowly: extrapolation leads away from it
    rewards, pi, pi_ext, step, loss, share = stopped_exploiting(1000, seed)
    shown = np.round([rewards, pi[0], pi[step], pi_ext[step]], 3)
    print(f"\nplain gradient on 1,000 problems of 3 actions: {share:.1%} lose if stopped at the wrong step; the worst:")
    print("  R {}, start {}, stopped at step {}: {}, extrapolated {}".format(*shown[:2], step, *shown[2:]))
    print(f"  gain {loss:+.4f}")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for action, name in enumerate(("best", "fair")):
        axis.plot(pi[:, action], color=f"C{action}", label=f"{name} action, R = {rewards[action]:.2f}")
        axis.plot(pi_ext[:, action], "--", color=f"C{action}", label=f"{name}, extrapolated")
    axis.axvline(step, color="tab:red", lw=1, label=f"gain {loss:+.4f}")
    axis.set(title="where it ends: plain gradient", xlabel="step at which training stops", ylabel="probability")
    axis.legend(fontsize=8)
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "theorem.png", dpi=110)
    print(f"\nthe theorem holds; figure {out / 'theorem.png'}")


# ----------------------------------------------------------------------------------------------- model: decoding by two
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
def next_logits(model, prompts, copies, n_vocab=None):
    """A generator that decodes `copies` rows for each of B prompts (lists of ids): N = B * copies rows in group order.

    It yields the logits (N, n_vocab) of the next token, and is sent (keep, tokens): the indices (n,) of the rows that
    go on, the others leave batch and cache, and the token (n,) that each goes on with; then it yields (n, n_vocab).
    Ids from n_vocab on, which pad the embedding matrix, are left out.
    """
    width, device = max(map(len, prompts)), model.device
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, W), left-padded
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    position = (attention.cumsum(1) - 1).clamp(min=0)  # padding must not shift positions
    out = model(input_ids=ids, attention_mask=attention, position_ids=position, use_cache=True, logits_to_keep=1)
    cache, state = out.past_key_values, (out.logits[:, -1], attention, position[:, -1:])
    cache.batch_repeat_interleave(copies)  # a prompt is read once, whatever the group
    logits, attention, position = (x.repeat_interleave(copies, dim=0) for x in state)
    while True:
        keep, tokens = yield logits[:, :n_vocab]
        if len(keep) < len(logits):
            attention, position = attention[keep], position[keep]
            cache.batch_select_indices(keep)
        attention, position = torch.cat([attention, attention.new_ones(len(tokens), 1)], dim=1), position + 1
        inputs = {"input_ids": tokens[:, None], "attention_mask": attention, "position_ids": position}
        logits = model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]


def decode_two(base, rlvr, prompts, taus, gammas, max_new_tokens, eos_ids, n_vocab=None, first="base", **sampling):
    """Two models decode one response (paper A, 4.1): draw y from `first`, "base" or "rlvr"; where dlogp(y) < tau, draw
    y again from (1). Both are fed the same tokens, each with a cache of its own.

    prompts: B lists of ids; taus, gammas: (K,), for the K copies of every prompt, so N = B * K rows in group order; tau
    -inf never fires, inf always. dlogp is that of temperature 1; sampling: as of sample_tokens, for both draws.
    Returns tensors, T the longest response: tokens (N, T); replaced (N, T), bool: drawn again; lengths (N,).
    """
    decoders = [next_logits(model, prompts, len(taus), n_vocab) for model in (base, rlvr)]
    logits, device = [next(decoder) for decoder in decoders], base.device  # of the base and of RLVR, (n, V) each
    taus, gammas = torch.tensor([taus, gammas], dtype=torch.float32, device=device).repeat(1, len(prompts))  # (N,)
    live, stops = torch.arange(len(taus), device=device), torch.tensor(eos_ids, device=device)
    tokens, lengths = torch.zeros(len(live), max_new_tokens, dtype=torch.long, device=device), torch.zeros_like(live)
    replaced = tokens > 0
    for t in range(max_new_tokens):  # live: the rows still in the batch
        new, _, _ = sample_tokens(logits[first == "rlvr"], **sampling)
        logp_base, logp_rlvr = (torch.log_softmax(x.float(), dim=-1) for x in logits)
        fires = (logp_rlvr - logp_base).gather(-1, new[:, None])[:, 0] < taus[live]  # (2)
        if fires.any():
            mixed = extrapolate_logp(logp_rlvr[fires], logp_base[fires], gammas[live[fires], None])
            new[fires], _, _ = sample_tokens(mixed, **sampling)
        tokens[live, t], replaced[live, t], lengths[live] = new, fires, t + 1
        stopped = torch.isin(new, stops)
        if stopped.all() or t + 1 == max_new_tokens:
            break
        keep = (~stopped).nonzero()[:, 0]
        live, logits = live[keep], [decoder.send((keep, new[keep])) for decoder in decoders]
    return tokens[:, : t + 1], replaced[:, : t + 1], lengths


# ------------------------------------------------------------------------------------------ task: problems and verifier
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


# ----------------------------------------------------------------------------------------------------------- experiment
def decode_arms(models, tokenizer, problems, arms, seed, job, args):
    """decode_two of every problem under K arms (first, tau, gamma), --samples times each; a row (dict) for each arm.

    tau None: drawn again everywhere (global); gamma None: nowhere. `right` counts the right responses to each problem.
    Every batch, of --rows responses, has a generator of its own.
    """
    ends = np.hstack([tokenizer.eos_token_id, *(model.generation_config.eos_token_id for model in models)]).tolist()
    limits = args.max_response, sorted({*ends} - {None}), len(tokenizer)
    sampling = {"temperature": args.temperature, "top_p": args.top_p, "first": arms[0][0]}
    gates = [-math.inf if gamma is None else math.inf if tau is None else tau for _, tau, gamma in arms]
    taus, gammas = np.repeat([gates, [gamma or 0.0 for _, _, gamma in arms]], args.samples, axis=1).tolist()
    batch, texts, counts = max(1, args.rows // len(taus)), [], []
    for i in tqdm(range(0, len(problems), batch), desc=job, unit="batch", leave=False):
        prompts = [problem["ids"] for problem in problems[i : i + batch]]
        generator = torch.Generator(models[0].device).manual_seed(seed * 1_000_003 + i)
        out = decode_two(*models, prompts, taus, gammas, *limits, generator=generator, **sampling)
        for j, (ids, replaced, n) in enumerate(zip(*(x.tolist() for x in out), strict=True)):
            texts.append(tokenizer.decode(ids[:n], skip_special_tokens=True))
            right = is_correct(texts[-1], problems[i + j // len(taus)]["answer"], args.verifier)
            counts.append((right, n, sum(replaced)))
    counts, rows = np.reshape(counts, (len(problems), len(arms), args.samples, 3)).sum(2), []  # (P, K, 3)
    for k, (first, tau, gamma) in enumerate(arms):
        right, n_tokens, n_replaced = counts[:, k].T  # (P,) each
        row = {"first": first, "tau": tau, "gamma": gamma, "ratio": n_replaced.sum() / n_tokens.sum()}
        rows.append(row | {"right": right.tolist(), "example": texts[k * args.samples]})
    return rows


def compare(row, reference, args):
    """avg@n (± 95%, normal) and pass@n of a row; its differences to `reference`, paired by problem (bootstrap)."""
    right, other = np.array(row["right"]), np.array(reference["right"])  # (P,) each
    half = 1.96 * np.std(right / args.samples, ddof=min(1, len(right) - 1)) / len(right) ** 0.5
    found = {"accuracy": right.mean() / args.samples, "accuracy_ci95": half, f"pass@{args.samples}": (right > 0).mean()}
    draws = np.random.default_rng(args.seed).integers(len(right), size=(args.bootstrap, len(right)))
    for key, gaps in ("diff", (right - other) / args.samples), ("pass_diff", (right > 0) * 1.0 - (other > 0)):
        ends = np.quantile(gaps[draws].mean(1), [0.025, 0.975])
        found |= {key: gaps.mean(), f"{key}_ci95": ends.tolist()}
    return found


def open_run(args):
    """Make the run folder with its config.json; returns the finished jobs that --resume goes on from."""
    out, config, saved = Path(args.out), Path(args.out, "config.json"), Path(args.out, "results.json")
    if args.resume != config.exists():
        sys.exit(f"error: {out} holds {'no' * args.resume or 'a'} run: --resume goes on with one, --out names another")
    before = json.loads(config.read_text())["args"] if args.resume else {}
    if changed := {k: v for k, v in before.items() if v != getattr(args, k) and k not in ("resume", "out", "rows")}:
        sys.exit(f"error: --resume: {out} was started with {changed}; give the same, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    about = {"args": asdict(args), "torch": torch.__version__, "transformers": transformers.__version__}
    config.write_text(json.dumps(about, indent=2) + "\n")
    return json.loads(saved.read_text()) if saved.exists() else {}


def draw(path, curves, at, args):
    """avg@n minus RLVR's, with paired 95% intervals: curves {title: {label: arms}}, at {arm: row}."""
    figure = Figure(figsize=(4.8 * len(curves), 4.4), layout="constrained")
    for axis, (title, arms_of) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        over_tau = "over tau" in title
        for label, arms in arms_of.items():
            x = [100 * at[arm]["ratio"] if over_tau else f"{arm[2]:g}" for arm in arms]
            y, low, high = np.array([(at[arm]["diff"], *at[arm]["diff_ci95"]) for arm in arms]).T
            axis.errorbar(x, y, (y - low, high - y), fmt="o-", ms=4, capsize=2, label=label)
        axis.axhline(0, color="black", lw=1, ls="--", label="RLVR")
        axis.set(title=title, ylim=(-0.15, 0.15), ylabel=f"avg@{args.samples} minus RLVR's (cut at 0.15)")
        axis.set_xlabel(f"drawn again (%), tau {args.taus}" if over_tau else "gamma of the second draw (0: from RLVR)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(f"{args.base} and {args.rlvr}, temperature {args.temperature:g}, top-p {args.top_p:g}")
    figure.savefig(path, dpi=110)


def main(args):
    """Choose gamma and tau on training problems, decode the test problems, compare."""
    if args.theorem:
        return theorem(Path(args.out), args.seed)
    # ---- models and problems first: what is wrong with them shows before anything runs
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and every decoding step is a new shape
    names, dtype = (args.base, args.rlvr), torch.bfloat16 if args.device == "cuda" else torch.float32
    other, tokenizer = map(AutoTokenizer.from_pretrained, names)
    if other.get_vocab() != tokenizer.get_vocab():
        sys.exit(f"error: {args.base} and {args.rlvr} differ in vocabulary: take the base that RLVR started from")
    models = [AutoModelForCausalLM.from_pretrained(x, dtype=dtype, use_safetensors=True).to(args.device) for x in names]
    limit = min(model.config.max_position_embeddings for model in models) - args.max_response
    train = read_problems(args.train, tokenizer, limit)[: args.train_problems]
    test = read_problems(args.test, tokenizer, limit)[: args.problems or None]
    out, results = Path(args.out), open_run(args)

    def decode(job, problems, arms):  # {arm: row} of a job, from results.json if it is finished there
        if job not in results:
            results[job] = decode_arms(models, tokenizer, problems, arms, args.seed * 1000 + len(results), job, args)
            (out / "results.tmp").write_text(json.dumps(results, indent=1) + "\n")
            (out / "results.tmp").replace(out / "results.json")  # a kill leaves the old results or the new
        return dict(zip(arms, results[job], strict=True))

    # ---- choose gamma and tau on training problems: the most right responses, of equals the weakest
    def choose(rows):
        return max(rows, key=lambda arm: (sum(rows[arm]["right"]), -arm[2], -rows[arm]["ratio"]))

    taus, gammas = (sorted(map(float, text.split(","))) for text in (args.taus, args.gammas))
    on_base = decode("train on base", train, [("base", t, g) for t in taus for g in (0.0, *gammas)])
    on_rlvr = decode("train on rlvr", train, [("rlvr", t, g) for t in (*taus, None) for g in gammas])
    best_base = choose({arm: row for arm, row in on_base.items() if arm[2] > 0})
    best_rlvr = choose({arm: row for arm, row in on_rlvr.items() if arm[1] is not None})
    best_global = choose({arm: row for arm, row in on_rlvr.items() if arm[1] is None})

    # ---- decode test problems: the base, RLVR, and the curves through the chosen settings
    rlvr = ("base", None, 0.0)  # y from the base, drawn again everywhere
    from_base, from_rlvr = ([(*best[:2], g) for g in (0.0, *gammas)] for best in (best_base, best_rlvr))
    everywhere, over_tau = [("rlvr", None, g) for g in gammas], [("rlvr", t, best_rlvr[2]) for t in taus]
    at = decode("test on base", test, [("base", None, None), rlvr, *from_base])
    at |= decode("test on rlvr", test, [*dict.fromkeys(from_rlvr + everywhere + over_tau)])

    # ---- compare with RLVR, and with gamma 0 at the same gate: is it gamma, or the second draw alone?
    n, interval = args.samples, "{:+.3f} [{:+.3f}, {:+.3f}]".format
    print(f"\n| y from | tau | gamma | drawn again | avg@{n} | pass@{n} | avg - RLVR, paired | pass - RLVR, paired |")
    print("|---" * 8 + "|")
    for arm, row in at.items():
        row |= compare(row, at[rlvr], args)
        numbers = f"{row['ratio']:.3f} | {row['accuracy']:.3f} ± {row['accuracy_ci95']:.3f} | {row[f'pass@{n}']:.3f}"
        gaps = [interval(row[key], *row[f"{key}_ci95"]) for key in ("diff", "pass_diff")]
        print("|", " | ".join(["" if x is None else str(x) for x in arm] + [numbers, *gaps]), "|")
    print(f"\nchosen on {len(train)} training problems; on {len(test)} test problems, minus gamma 0 at the same gate:")
    for best in (best_base, best_rlvr, best_global):
        control = rlvr if best[1] is None else (*best[:2], 0.0)
        gap = at[best]["minus_gamma_0"] = compare(at[best], at[control], args)
        print("  y from {}, tau {}, gamma {}: ".format(*best) + interval(gap["diff"], *gap["diff_ci95"]))
    (out / "summary.json").write_text(json.dumps([*at.values()], indent=1) + "\n")
    curves = {"y from the base (figure 4)": {f"selective, dlogp < {best_base[1]:g}": from_base}}
    selective = {f"selective, dlogp < {best_rlvr[1]:g}": from_rlvr}
    curves["y from RLVR: selective or global?"] = selective | {"global": everywhere}
    curves["y from RLVR, over tau (table 1)"] = {f"gamma {best_rlvr[2]:g}": over_tau}
    draw(out / "extrapolate.png", curves, at, args)
    print(f"\nfigure and every number are in {out}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; finished jobs are kept, and --resume goes on from them")
    except (OSError, ImportError, torch.OutOfMemoryError) as error:  # no such file, full disk, missing package, memory
        sys.exit(f"error: {' '.join(str(error).split())[:300]}")
