"""Extrapolation: why going beyond RLVR in its own direction should help, and whether it does, without any training.

What it shows: `--theorem` trains tabular softmax policies by natural policy gradient and goes on in the same direction:
expected reward rises, always, and the file shows where that guarantee ends. Without the flag, two models decode one
response: where RLVR made a token less likely, it is drawn again, not from the RLVR model but from beyond it.

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), section 4.1 and its appendix

The equations, tagged (1) to (6) in the code:
  (1) log pi_ext = log pi_RL + gamma dlogp - log Z, dlogp = log pi_RL - log pi_base                     eq. of 4.1
  (2) selective: only where dlogp(y) < tau, for y from the base, or from RL itself; elsewhere keep y    section 4.1
  (3) NPG: theta <- theta + eta F^+ grad E[R], F = diag(pi) - pi pi^T the Fisher matrix of softmax      appendix
  (4) which is theta + eta A up to a constant, A(y) = R(y) - E_pi[R]                                    appendix
  (5) theorem: E_ext[R] >= E_RL[R] for gamma > 0, equal if and only if R is constant                    appendix
  (6) because d/dgamma E_ext[R] = eta T Var_ext(R) >= 0 after T steps                                   appendix

Differs from the released code: everything is over the full vocabulary. As there, the temperature divides the mixed
logits, and then top-p cuts. gamma and tau are chosen on training problems; test problems are only reported on.

    python extrapolate.py --theorem                      # the theorem and where it ends: seconds on a CPU
    python extrapolate.py                                # tiny pair on two CPU cores, under 6 minutes
    python extrapolate.py --base Qwen/Qwen2.5-1.5B --rlvr Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B --top-p 0.7 \\
        --test data/aime24/test.jsonl --train data/math/train.jsonl --gammas 0.05,0.1,0.2 --taus=-0.3,-0.4 \\
        --max-response 8192 --rows 128                                                                       # one GPU
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


class InputError(ValueError):
    """Something that the user can mend: one sentence that names the file or flag, and the mend."""


# ----------------------------------------------------------------------------------------------------------- arguments
def arg(default, text, low=-math.inf, high=math.inf, choices=None):
    return dataclasses.field(default=default, metadata={"help": text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Args:
    theorem: bool = arg(False, "check the theorem instead; exit status 1 if it fails")
    theorem_problems: int = arg(2100, "random problems that the theorem is checked on", 7)
    base: str = arg("tiny/base", "base model: a folder, or a name on the hub")
    rlvr: str = arg("tiny/rlvr", "the model that RLVR made of it")
    tokenizer: str = arg("", "whose tokenizer and chat template both models see; empty: that of --rlvr")
    test: str = arg("tiny/test.jsonl", 'problems, one {"prompt": ..., "answer": ...} a line')
    train: str = arg("tiny/train.jsonl", "problems on which gamma and tau are chosen, same format")
    out: str = arg("runs/extrapolate/default", "folder of this run")
    resume: bool = arg(False, "go on after the last job that --out holds")
    overwrite: bool = arg(False, "delete the run that --out holds")
    seed: int = arg(1, "of sampling and of the bootstrap", 0)
    device: str = arg("auto", "auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = arg("auto", "autocast; auto is bf16 on CUDA, else fp32", choices=("auto", "fp32", "bf16"))
    cuda_graph: bool = arg(True, "on CUDA, decode by replaying a CUDA graph; no effect on a CPU")
    verifier: str = arg("exact", "of final answers; math-verify needs its package", choices=("exact", "math-verify"))
    # what is compared
    gammas: str = arg("0.1,0.25,0.5,1,2", "strengths of extrapolation")
    taus: str = arg("-2,-1,-0.3,-0.1", "gates: extrapolate where dlogp(y) < tau (write --taus=-2,-1)")
    # decoding
    problems: int = arg(300, "the first N problems of --test; 0: all", 0)
    train_problems: int = arg(64, "the first N problems of --train", 1)
    samples: int = arg(8, "responses to a problem: avg@n, and pass@k up to k = n", 1)
    rows: int = arg(1600, "responses decoded side by side: all settings, for as many problems as fit", 1)
    max_response: int = arg(128, "response limit, in tokens", 1)
    temperature: float = arg(1.0, "of both models", 1e-3)
    top_p: float = arg(1.0, "nucleus (the paper: 0.7)", 1e-6, 1)
    bootstrap: int = arg(2000, "resamples of the problems behind each interval", 1)

    def __post_init__(self):
        for f in dataclasses.fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if not isinstance(value, str) and not low <= value <= high:
                raise InputError(f"--{f.name.replace('_', '-')} {value}: it must lie in [{low}, {high}]")
        for name, sign, kind in (("gammas", 1, "positive"), ("taus", -1, "negative")):
            try:
                values = [float(x) * sign for x in getattr(self, name).split(",")]
            except ValueError:
                values = []
            if not values or not all(0 < x < math.inf for x in values):
                raise InputError(f"--{name} {getattr(self, name)}: it must be {kind} numbers with commas between them")
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
def extrapolate_logp(logp_rlvr, logp_base, gamma):
    """log pi_RL + gamma dlogp - log Z (paper A, 4.1): log-probs (..., V) both -> (..., V), normalised.

    gamma, a number or (..., 1): 0 is the RLVR model, -1 the base, above 0 beyond RLVR. Where either log-prob is -inf,
    dlogp is undefined and taken as 0: no nan, and nothing that the RLVR model excludes comes back.
    """
    dlogp = torch.where(torch.isfinite(logp_rlvr) & torch.isfinite(logp_base), logp_rlvr - logp_base, 0.0)
    return torch.log_softmax(logp_rlvr + gamma * dlogp, dim=-1)  # (1)


def delta_logp(logp_base, logp_rlvr, tokens):
    """log pi_RLVR - log pi_base of the tokens (paper A, eq. 1): log-probs (..., V), ids (...) -> (...), in nats."""
    index = tokens.unsqueeze(-1)
    return (logp_rlvr.gather(-1, index) - logp_base.gather(-1, index)).squeeze(-1)


def score_dlogp(logp_base, logp_rlvr, tokens):
    """RLVR made the drawn token less likely: -dlogp (paper A, Algorithm 1). A score above -tau means dlogp < tau."""
    return -delta_logp(logp_base, logp_rlvr, tokens)  # (2)


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


def policy_gradient(theta, rewards):
    """Exact gradient of E[R] under pi = softmax(theta), with respect to theta: (..., V) both -> (..., V)."""
    pi = torch.softmax(theta, dim=-1)
    return pi * (rewards - (pi * rewards).sum(-1, keepdim=True))


def sampled_gradient(theta, rewards, group_size, generator=None):
    """The same, estimated from group_size actions a problem and their group mean: (P, V) both -> (P, V)."""
    pi = torch.softmax(theta, dim=-1)
    actions = torch.multinomial(pi, group_size, replacement=True, generator=generator)  # (P, G)
    adv = rewards.gather(-1, actions)
    adv = (adv - adv.mean(-1, keepdim=True)) / group_size
    return torch.zeros_like(pi).scatter_add(-1, actions, adv) - adv.sum(-1, keepdim=True) * pi


def natural_gradient(theta, gradient):
    """F^+ gradient, F = diag(pi) - pi pi^T the Fisher matrix of softmax(theta): (..., V) both -> (..., V).

    The pseudo-inverse, as F has no inverse: adding a constant to theta changes nothing. The diagonal pi (1 - pi) is
    taken as the sum of its row's other entries; by subtraction, rounding would give that direction an eigenvalue.
    """
    pi = torch.softmax(theta, dim=-1)
    others = pi.unsqueeze(-1) * pi.unsqueeze(-2) * (1 - torch.eye(pi.shape[-1], dtype=pi.dtype, device=pi.device))
    fisher = torch.diag_embed(others.sum(-1)) - others
    return (torch.linalg.pinv(fisher, hermitian=True) @ gradient.unsqueeze(-1)).squeeze(-1)


def npg_step(theta, rewards, lr):
    """One step of exact natural policy gradient on a tabular softmax policy (paper A, appendix): (..., V) -> (..., V).

    theta and rewards (..., V), lr a number or (..., 1). Computed from the Fisher matrix, not from the closed form (4).
    """
    return theta + lr * natural_gradient(theta, policy_gradient(theta, rewards))  # (3)


def expected_reward(logp, rewards):
    """E[R] of log-probs (..., V) and rewards (..., V): (...)."""
    return (logp.exp() * rewards).sum(-1)


def gain_of(theta, theta_0, rewards, gamma):
    """E[R] of the extrapolated policy minus that of softmax(theta): (..., V) three times, gamma (..., 1) -> (...)."""
    logp, logp_0 = torch.log_softmax(theta, dim=-1), torch.log_softmax(theta_0, dim=-1)
    return expected_reward(extrapolate_logp(logp, logp_0, gamma), rewards) - expected_reward(logp, rewards)


# -------------------------------------------------------------------------------------------- the theorem, in numbers
def random_problems(n, n_actions, generator):
    """(theta, rewards), both (n, n_actions) float64: random base policies, rewards uniform on [0, 1]."""
    draw = {"generator": generator, "dtype": torch.float64}
    return 1.5 * torch.randn(n, n_actions, **draw), torch.rand(n, n_actions, **draw)


def check_theorem(n, seed, sizes=(2, 3, 5, 10, 30, 100, 200)):
    """(3) to (6) on n random problems of 2 to 200 actions: a dict of counts and largest errors.

    npg_error: largest difference of a probability between NPG by the Fisher matrix and by the closed form (4).
    violations: problems whose reward falls by more than rounding. derivative_error: of (6) against autograd, relative
    to the largest derivative of the problem's batch. constant: largest |gain| where the reward is constant.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {"problems": 0, "violations": 0, "npg_error": 0.0, "least_gain": math.inf, "derivative_error": 0.0}
    found["constant"] = 0.0
    for n_actions in sizes:
        theta_0, rewards = random_problems(n // len(sizes), n_actions, generator)
        uniform = torch.rand(3, len(theta_0), 1, generator=generator, dtype=torch.float64)
        lr, gamma = 10 ** (2 * uniform[0] - 2), (10 ** (3 * uniform[1] - 2)).requires_grad_()  # 0.01 to 1, 0.01 to 10
        steps = 1 + int(uniform[2, 0] * 10)
        theta, closed = theta_0, theta_0
        for _ in range(steps):
            theta = npg_step(theta, rewards, lr)
            closed = closed + lr * (rewards - expected_reward(torch.log_softmax(closed, -1), rewards)[:, None])  # (4)
        gain = gain_of(theta, theta_0, rewards, gamma)  # (5)
        (slope,) = torch.autograd.grad(gain.sum(), gamma)
        pi = extrapolate_logp(torch.log_softmax(theta, -1), torch.log_softmax(theta_0, -1), gamma).exp().detach()
        mean = (pi * rewards).sum(-1, keepdim=True)
        variance = (pi * (rewards - mean) ** 2).sum(-1, keepdim=True)
        same = torch.full_like(rewards, 0.7)
        gain, stays = gain.detach(), gain_of(npg_step(theta_0, same, lr), theta_0, same, gamma).detach()
        errors = {
            "npg_error": (torch.softmax(theta, -1) - torch.softmax(closed, -1)).abs().max(),
            "derivative_error": (slope - lr * steps * variance).abs().max() / slope.abs().max(),  # (6)
            "constant": stays.abs().max(),
        }
        found |= {name: max(found[name], value.item()) for name, value in errors.items()}
        found["problems"] += len(gain)
        found["violations"] += int((gain < -1e-12).sum())
        found["least_gain"] = min(found["least_gain"], gain.min().item())
    return found


def beyond_the_theorem(n, seed, n_actions=10, steps=20, lr=0.2, gamma=1.0):
    """Where the guarantee ends: {setting: (n,) gains at gamma}, on n random problems of n_actions actions.

    Settings: "exact NPG"; "G = 2" and so on, the natural gradient of a gradient sampled from G actions a step; "plain
    gradient", exact but not natural; "correlation 0.9" and so on, the gain in a test reward that has this correlation
    with the training reward.
    """
    generator = torch.Generator().manual_seed(seed)
    theta_0, rewards = random_problems(n, n_actions, generator)

    def train(direction):
        theta = theta_0
        for _ in range(steps):
            theta = theta + lr * direction(theta)
        return theta

    def natural(theta, group_size):
        return natural_gradient(theta, sampled_gradient(theta, rewards, group_size, generator))

    exact = train(lambda theta: natural_gradient(theta, policy_gradient(theta, rewards)))
    gains = {"exact NPG": gain_of(exact, theta_0, rewards, gamma)}
    for group_size in (256, 64, 16, 8, 4, 2):
        theta = train(lambda theta, group_size=group_size: natural(theta, group_size))
        gains[f"G = {group_size}"] = gain_of(theta, theta_0, rewards, gamma)
    plain = train(lambda theta: n_actions * policy_gradient(theta, rewards))  # times n_actions: a step of like size
    gains["plain gradient"] = gain_of(plain, theta_0, rewards, gamma)
    other = torch.rand(rewards.shape, generator=generator, dtype=torch.float64)
    for rho in (0.9, 0.5, 0.0):
        test = rho * (rewards - 0.5) + math.sqrt(1 - rho**2) * (other - 0.5)
        gains[f"correlation {rho:g}"] = gain_of(exact, theta_0, test, gamma)
    return {name: gain.numpy() for name, gain in gains.items()}


def draw_theorem(path, seed):
    """Gain against gamma where the theorem holds, and the distribution of the gain at gamma = 1 where it does not."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    theta_0, rewards = random_problems(400, 10, torch.Generator().manual_seed(seed))
    theta = theta_0
    for _ in range(20):
        theta = npg_step(theta, rewards, 0.2)
    gammas = np.concatenate([[0.0], np.geomspace(0.01, 10, 60)])
    gain = np.stack([gain_of(theta, theta_0, rewards, gamma).numpy() for gamma in gammas])  # (gammas, problems)
    gains = beyond_the_theorem(1000, seed)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4), layout="constrained", width_ratios=[2, 3])
    left.plot(gammas, gain[:, :40], color="tab:blue", lw=0.6, alpha=0.4)
    left.plot(gammas, np.median(gain, axis=1), color="black", label="median of 400 problems")
    left.set(title="exact NPG: never below 0", xlabel="gamma", ylabel="gain in expected reward")
    left.set_xscale("symlog", linthresh=0.1)
    left.set_xticks([0, 0.1, 1, 10], ["0", "0.1", "1", "10"])
    left.legend()
    right.boxplot(list(gains.values()), whis=(5, 95), showfliers=False, medianprops={"color": "black"})
    top = right.get_ylim()[1]
    for i, values in enumerate(gains.values(), start=1):
        right.text(i, 1.03 * top, f"{(values < -1e-12).mean():.0%}", ha="center", fontsize=9, color="tab:red")
    right.set_ylim(None, 1.15 * top)
    right.set_xticks(range(1, 1 + len(gains)), list(gains), rotation=35, ha="right")
    right.set_title(
        "where it ends: gain at gamma = 1, whiskers 5 and 95%\n(red: share of problems that lose)", fontsize=11
    )
    for axis in (left, right):
        axis.axhline(0, color="tab:red", lw=0.8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return gains


def theorem(args):
    """Print the check, the table of where it ends, and draw both. Returns the exit status: 1 if the theorem fails."""
    began, out = time.perf_counter(), Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out} ({error.strerror}); choose another --out") from None
    found = check_theorem(args.theorem_problems, args.seed)
    holds = found["violations"] == 0 and max(found[key] for key in ("npg_error", "derivative_error", "constant")) < 1e-6
    print(f"{found['problems']} random problems: 2 to 200 actions, 1 to 10 steps, lr 0.01 to 1, gamma 0.01 to 10")
    print(f"(4) NPG by the Fisher matrix against theta + eta A: largest difference {found['npg_error']:.1e}")
    print(f"(5) reward falls in {found['violations']} of them; least gain {found['least_gain']:.1e}")
    print(f"    constant reward: largest gain {found['constant']:.1e}")
    print(f"(6) d/dgamma E[R] by autograd against eta T Var(R): largest relative error {found['derivative_error']:.1e}")
    gains = draw_theorem(out / "theorem.png", args.seed)
    print("\n| 1,000 problems of 10 actions, gamma = 1 | mean gain | share that loses |\n|---|---|---|")
    rows = {name: {"mean": x.mean(), "loses": (x < -1e-12).mean()} for name, x in gains.items()}
    for name, row in rows.items():
        half = 1.96 * gains[name].std(ddof=1) / math.sqrt(len(gains[name]))
        share = 1.96 * math.sqrt(row["loses"] * (1 - row["loses"]) / len(gains[name]))
        print(f"| {name} | {row['mean']:+.4f} ± {half:.4f} | {row['loses']:.3f} ± {share:.3f} |")
    write_text(out / "theorem.json", json.dumps({"check": found, "beyond": rows}, indent=2) + "\n")
    verdict, seconds = "holds" if holds else "FAILS", time.perf_counter() - began
    print(f"the theorem {verdict}; figure {out / 'theorem.png'}; {seconds:.0f} s")
    return 0 if holds else 1


# ---------------------------------------------------------------------------------- statistics: arrays over problems
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


def mean_and_half(x):
    """Mean of x (P,), a value for each problem, and the half-width of its 95% interval (normal)."""
    return float(np.mean(x)), float(1.96 * np.std(x, ddof=1) / math.sqrt(len(x))) if len(x) > 1 else 0.0


def bootstrap_means(values, resamples, seed):
    """Means over problems drawn with replacement, the same problems for every row: (K, P) -> (resamples, K)."""
    draws = np.random.default_rng(seed).integers(values.shape[1], size=(resamples, values.shape[1]))
    return np.stack([values[:, draw].mean(axis=1) for draw in draws])


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


def describe_arms(parts, n_arms, samples):
    """A row for each arm of what decode_arms yields: ratio, length, avg@n, pass@k, `right` (a count a problem)."""
    right, counts, first = [], np.zeros((n_arms, 2)), []  # counts: tokens, and tokens drawn again
    verdicts = [[] for _ in range(n_arms)]
    for part in parts:
        for k in range(n_arms):
            verdicts[k] += part["verdicts"][:, k].flatten().tolist()
        right.append(part["right"].sum(axis=2))
        counts += np.stack([part[name].sum(axis=(0, 2, 3)) for name in ("mask", "replaced")], axis=-1)
        first += [part["texts"][0, :, 0]] if not first else []
    right, rows = np.concatenate(right).T, []  # (K, P)
    for k, (n, replaced) in enumerate(counts):
        mean, half = mean_and_half(right[k] / samples)
        row = {"ratio": replaced / n, "length": n / right[k].size / samples, "accuracy": mean, "accuracy_ci95": half}
        row |= {
            f"pass@{2**i}": float(pass_at_k(samples, right[k], 2**i).mean()) for i in range(1, samples.bit_length())
        }
        row |= verifier_problems(verdicts[k])
        rows.append(row | {"right": right[k].tolist(), "example": first[0][k]})
    return rows


def settings(first, taus, gammas):
    """Arms of a job as dicts: gates x strengths, y drawn from `first`. tau None: drawn again everywhere (global)."""
    return [{"first": first, "tau": tau, "gamma": gamma} for tau in taus for gamma in gammas]


def threshold_of(arm):
    """The threshold on the score -dlogp(y) that an arm stands for: dlogp(y) < tau, everywhere, or nowhere."""
    if arm["gamma"] is None:
        return math.inf
    return -math.inf if arm["tau"] is None else -arm["tau"]


def choose(on_base, on_rlvr):
    """The settings of best accuracy, of equal ones the weakest: {"base": row, "rlvr": row, "global": row}.

    on_base, on_rlvr: rows of the two training jobs. gamma 0 is replacement, not extrapolation, and is never chosen.
    """
    families = {
        "base": [row for row in on_base if row["gamma"] > 0],
        "rlvr": [row for row in on_rlvr if row["gamma"] > 0 and row["tau"] is not None],
        "global": [row for row in on_rlvr if row["gamma"] > 0 and row["tau"] is None],
    }

    def rank(row):
        return row["accuracy"], -row["gamma"], -row["ratio"]

    return {name: max(rows, key=rank) for name, rows in families.items()}


def paired(rows, reference, samples, resamples, seed):
    """Differences to `reference`, paired by problem, with 95% bootstrap intervals over problems: added to each row.

    diff and diff_ci95: of avg@n; pass_diff and pass_diff_ci95: of pass@n. Returns the rows.
    """
    for row in rows:
        one, other = (np.array(x["right"]) for x in (row, reference))
        values = np.stack([(one - other) / samples, (one > 0).astype(float) - (other > 0)])  # (2, P)
        low, high = np.quantile(bootstrap_means(values, resamples, seed), [0.025, 0.975], axis=0)
        for name, mean, *interval in zip(("diff", "pass_diff"), values.mean(axis=1), low, high, strict=True):
            row |= {name: float(mean), f"{name}_ci95": [float(x) for x in interval]}
    return rows


def draw_accuracy(path, found, chosen, samples, title):
    """Figure 4, selective against global, and table 1: avg@n minus RLVR's, paired by problem, with 95% intervals."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained", sharey=True)
    (base, _, *on_base), on_rlvr = found["test on base"], found["test on rlvr"]
    tau, gamma = chosen["rlvr"]["tau"], chosen["rlvr"]["gamma"]
    over_tau = [row for row in on_rlvr if row["tau"] is not None and row["gamma"] == gamma]
    curves = [
        (axes[0], on_base, f"selective, dlogp < {chosen['base']['tau']:g}"),
        (axes[1], [row for row in on_rlvr if row["tau"] == tau], f"selective, dlogp < {tau:g}"),
        (axes[1], [row for row in on_rlvr if row["tau"] is None], "global: every token"),
        (axes[2], sorted(over_tau, key=lambda row: row["ratio"]), f"gamma {gamma:g}"),
    ]
    gammas, floor = sorted({row["gamma"] for row in on_base}), -0.15
    for k, (axis, rows, label) in enumerate(curves):
        color = f"C{int(k == 2)}"
        x = [100 * row["ratio"] if axis is axes[2] else gammas.index(row["gamma"]) for row in rows]
        y, low, high = np.array([(row["diff"], *row["diff_ci95"]) for row in rows]).T
        axis.errorbar(x, y, (y - low, high - y), fmt="o-", ms=4, capsize=2, label=label, color=color)
        for at, value in zip(x, y, strict=True):
            if value < floor:
                axis.text(at, floor, f"{value:+.2f} ", ha="right", va="bottom", fontsize=8, color=color)
    titles = ("y from the base (figure 4)", "y from RLVR: selective or global?", "y from RLVR, over tau (table 1)")
    for axis, name in zip(axes, titles, strict=True):
        axis.axhline(0, color="black", lw=1, ls="--", label="RLVR")
        axis.set(title=name, ylim=(floor, 0.12))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower left")
    for axis in axes[:2]:
        axis.set_xlabel("gamma of the second draw (0: from RLVR)")
        axis.set_xticks(range(len(gammas)), [f"{value:g}" for value in gammas])
    axes[2].set_xlabel("tokens drawn again (%), for tau = " + ", ".join(f"{row['tau']:g}" for row in curves[3][1]))
    axes[0].set_ylabel(f"avg@{samples} minus RLVR's, paired by problem")
    figure.suptitle(f"{title} (base: {base['diff']:+.2f})")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def print_rows(title, rows, samples):
    """Rows of a job as a Markdown table."""
    has_diff = "diff" in rows[0]
    head = ["y from", "tau", "gamma", "drawn again", f"avg@{samples}"]
    head += [f"pass@{samples}"] if samples > 1 else []
    head += ["avg - RLVR, paired", "pass - RLVR, paired"] if has_diff else []
    print(f"\n{title}\n\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        tau = "" if row["tau"] is None else f"{row['tau']:g}"
        cells = [row["first"], tau, "" if row["gamma"] is None else f"{row['gamma']:g}", f"{row['ratio']:.3f}"]
        cells += [f"{row['accuracy']:.3f} ± {row['accuracy_ci95']:.3f}"]
        cells += [f"{row[f'pass@{2 ** (samples.bit_length() - 1)}']:.3f}"] if samples > 1 else []
        if has_diff:
            for name in ("diff", "pass_diff"):
                cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(row[name], *row[f"{name}_ci95"]))
        print("| " + " | ".join(cells) + " |")


# ------------------------------------------------------------------------------------------------------------ the run
def main(args):
    """Choose gamma and tau on training problems, decode the test problems, compare. Returns the exit status."""
    if args.theorem:
        return theorem(args)
    began = time.perf_counter()
    transformers.utils.logging.disable_progress_bar()
    data = {"train": read_problems(args.train)[: args.train_problems]}
    data["test"] = read_problems(args.test)[: args.problems or None]
    require_verifier(args.verifier)
    device = pick_device(args.device)
    models, tokenizer, ids = load_models((args.base, args.rlvr), args.tokenizer, device)
    pair = (models[args.base], models[args.rlvr])
    context = min(model.config.max_position_embeddings for model in pair)
    prompts = {
        name: encode_prompts(tokenizer, problems, getattr(args, name), context - args.max_response)
        for name, problems in data.items()
    }
    decoding = ids | {"max_new_tokens": args.max_response, "temperature": args.temperature, "top_p": args.top_p}
    decoding |= {"cuda_graph": args.cuda_graph and device.type == "cuda", "verifier": args.verifier}
    bf16 = args.dtype == "bf16" or (args.dtype == "auto" and device.type == "cuda")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    taus, gammas = sorted(map(float, args.taus.split(","))), sorted(map(float, args.gammas.split(",")))
    out = open_run(args, torch.cuda.get_device_name(device) if device.type == "cuda" else device.type)
    for name, model in models.items():
        size = sum(p.numel() for p in model.parameters())
        print(f"{name}: {size:,} parameters on {device}, {'bf16 autocast' if bf16 else 'fp32'}")
    longest = max(map(len, prompts["test"] + prompts["train"])) + args.max_response
    need = estimate_memory([*models.values()], bf16, args.rows, longest)
    parts = ", ".join(f"{what} {size / 2**20:,.0f}" for what, size in need.items())
    print(f"memory, estimated in MiB: {parts}", flush=True)
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    done = {row["job"]: row["rows"] for row in (json.loads(line) for line in lines if line.endswith("}"))}
    write_text(out / "metrics.jsonl", "".join(json.dumps({"job": j, "rows": r}) + "\n" for j, r in done.items()))

    def decode(job, arms):
        """The rows of a job, a dict for each arm, from metrics.jsonl if it is finished there."""
        if job not in done:
            clock, problems = time.perf_counter(), data[job.split()[0]]
            pairs = [(threshold_of(arm), arm["gamma"] or 0.0) for arm in arms]
            seed = args.seed * 1000 + ("train on base", "train on rlvr", "test on base", "test on rlvr").index(job)
            how = {"samples": args.samples, "rows": args.rows, "desc": job, "seed": seed, "score": score_dlogp}
            how |= decoding | {"first": arms[0]["first"]}
            with autocast:
                parts = decode_arms(pair, tokenizer, problems, prompts[job.split()[0]], pairs, **how)
                found = describe_arms(parts, len(arms), args.samples)
            done[job] = [arm | row for arm, row in zip(arms, found, strict=True)]
            append_row(out / "metrics.jsonl", {"job": job, "rows": done[job]})
            append_row(out / "timing.jsonl", {"job": job, "seconds": round(time.perf_counter() - clock, 2)})
        return done[job]

    # ---- 1. choose gamma and tau, on training problems
    on_base = decode("train on base", settings("base", taus, [0.0, *gammas]))
    on_rlvr = decode("train on rlvr", settings("rlvr", [*taus, None], gammas))
    chosen = choose(on_base, on_rlvr)
    tau, gamma = chosen["rlvr"]["tau"], chosen["rlvr"]["gamma"]
    for name, row in chosen.items():
        gate = "everywhere" if row["tau"] is None else f"tau {row['tau']:g}"
        tqdm.write(f"chosen on {len(data['train'])} training problems, on {name}: {gate}, gamma {row['gamma']:g}")

    # ---- 2. report on test problems: the curves through the chosen setting, and the ends
    ends = [{"first": "base", "tau": None, "gamma": None}, {"first": "base", "tau": None, "gamma": 0.0}]  # base, RLVR
    test_base = decode("test on base", ends + settings("base", [chosen["base"]["tau"]], [0.0, *gammas]))
    through = settings("rlvr", [tau], [0.0, *gammas]) + settings("rlvr", [None], gammas)  # gamma 0: just a second draw
    through += settings("rlvr", [x for x in taus if x != tau], [gamma])
    test_rlvr = decode("test on rlvr", through)
    reference = test_base[1]
    paired(test_base + test_rlvr, reference, args.samples, args.bootstrap, args.seed)
    replaced = next(row for row in test_base if row["tau"] is not None and row["gamma"] == 0)
    second = next(row for row in test_rlvr if row["gamma"] == 0)
    best = {
        "base": test_base[0],
        "RLVR": reference,
        "replace": replaced,
        "extrapolate on base": next(row for row in test_base[3:] if row["gamma"] == chosen["base"]["gamma"]),
        "second draw on RLVR": second,
        "extrapolate on RLVR": next(row for row in test_rlvr if (row["tau"], row["gamma"]) == (tau, gamma)),
        "global on RLVR": next(
            row for row in test_rlvr if row["tau"] is None and row["gamma"] == chosen["global"]["gamma"]
        ),
    }
    summary = {name: {key: row[key] for key in row if key not in ("right", "example")} for name, row in best.items()}
    for name, other in (("extrapolate on base", "replace"), ("extrapolate on RLVR", "second draw on RLVR")):
        (gap,) = paired([dict(best[name])], best[other], args.samples, args.bootstrap, args.seed)
        summary[f"{name} - {other}"] = {key: gap[key] for key in ("diff", "diff_ci95", "pass_diff", "pass_diff_ci95")}
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    title = f"{args.base} and {args.rlvr}: {len(data['test'])} test problems x {args.samples} responses, "
    title += f"temperature {args.temperature:g}, top-p {args.top_p:g}"
    draw_accuracy(out / "extrapolate.png", done, chosen, args.samples, title)
    print_rows(
        "y from the base: base, RLVR, then replacement and extrapolation at the same gate", test_base, args.samples
    )
    print_rows("y from the RLVR model: selective, global, and over tau", test_rlvr, args.samples)
    print(f"\nchosen on training problems, reported on {len(data['test'])} test problems (avg@{args.samples}, paired)")
    for name, row in summary.items():
        level = f"{row['accuracy']:.3f} ± {row['accuracy_ci95']:.3f}   - RLVR" if "accuracy" in row else ""
        print(f"  {name:42s} {level} " + "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["diff"], *row["diff_ci95"]))
    print(f"\n{printable(data['test'][0]['prompt'][-80:])}   answer {data['test'][0]['answer']}")
    for name, row in best.items():
        print(f"  {name:20s} {printable(row['example'][:300])}")
    print(f"figure and every number are in {out}; {time.perf_counter() - began:.0f} s")
    return 0


KEPT = "finished jobs are kept, and --resume goes on from them"
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
        print("\nstopped; finished jobs are kept, and the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
