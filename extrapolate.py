r"""Extrapolation: why going beyond RLVR in its own direction should help, and whether it does, without any training.

What it shows: `--theorem` trains tabular softmax policies by natural policy gradient and goes on in the same direction.
The expected reward rises, always. Then it shows where that guarantee ends. Without the flag, two models decode one
response. Where RLVR made a token less likely, it is resampled: not from the RLVR model, but from beyond it.

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), section 4.1 and its appendix

The equations, tagged (1) to (5) in the code:
  (1) log pi_ext = log pi_RL + gamma dlogp - log Z, dlogp = log pi_RL - log pi_base                     eq. of 4.1
  (2) selective: only where dlogp(y) < tau, for y from the base, or from RL itself; elsewhere keep y    section 4.1
  (3) NPG: theta <- theta + eta F^+ grad E[R], F = diag(pi) - pi pi^T the Fisher matrix of softmax      appendix
  (4) which is theta + eta (R - E[R]): theta_0 + eta T R after T steps, up to a constant                appendix
  (5) theorem: E_ext[R] >= E_RL[R] for gamma > 0, because d/dgamma E_ext[R] = eta T Var_ext(R) >= 0     appendix

The theorem is about a table of whole responses. Decoding goes token by token, and resamples only below a threshold.
That alone gives unlikely tokens a second draw, whatever gamma is. Hence the control: gamma 0 at the same threshold.

Differs from the released code: distributions are over the full vocabulary. As there, the temperature divides the mixed
logits, then top-p cuts.
All is fp32, on a GPU too: in bf16 the threshold dlogp < -0.1 would be wrong at 9% of the tokens (docs/gpu.md).

    python extrapolate.py --theorem                      # the theorem and where it ends: seconds on a CPU
    python extrapolate.py                                # tiny pair on two CPU cores, 6 minutes
    python extrapolate.py --base Qwen/Qwen2.5-Math-1.5B --rlvr sail/Qwen2.5-Math-1.5B-Oat-Zero --top-p 0.7 \
        --test data/math500/test.jsonl --train data/math/train.jsonl --max-response 2048 --rows 96       # one GPU
"""

import json
import math
import re
import sys
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.hf_argparser import HfArg

HERE = Path(__file__).resolve().parent


@dataclass
class Args:
    theorem: bool = HfArg(default=False, help="check the theorem instead; exit status 1 if it fails")
    base: str = HfArg(default=str(HERE / "tiny/base"), help="base model: a folder, or a name on the hub")
    rlvr: str = HfArg(default=str(HERE / "tiny/rlvr"), help="the model that RLVR made of it; its tokenizer serves both")
    test: str = HfArg(default=str(HERE / "tiny/test.jsonl"), help='problems, one {"prompt": ..., "answer": ...} a line')
    train: str = HfArg(
        default=str(HERE / "tiny/train.jsonl"), help="problems to choose gamma and tau on, in the same format"
    )
    out: str = HfArg(default="", help="folder of this run; by default runs/extrapolate/seed<seed>")
    resume: bool = HfArg(default=False, help="go on after the last job that --out holds")
    seed: int = HfArg(default=1, help="random seed of sampling and of the bootstrap")
    device: Literal["cpu", "cuda"] = HfArg(default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    verifier: Literal["exact", "math-verify"] = HfArg(
        default="exact", help="math-verify needs the package of that name"
    )
    # what is compared
    gammas: str = HfArg(default="0.1,0.25,0.5,1,2", help="strengths of extrapolation")
    taus: str = HfArg(default="-2,-1,-0.3,-0.1", help="thresholds: resample where dlogp < tau; write --taus=-2,-1")
    # decoding
    problems: int = HfArg(default=200, help="the first N problems of --test; 0: all")
    train_problems: int = HfArg(default=64, help="choose gamma and tau on the first N problems of --train")
    samples: int = HfArg(default=4, help="responses to a problem")
    rows: int = HfArg(default=1600, help="responses decoded side by side, all settings of a problem together")
    max_response: int = HfArg(default=128, help="response limit, in tokens")
    temperature: float = HfArg(default=1.0, help="temperature of sampling; dlogp is that of temperature 1")
    top_p: float = HfArg(default=1.0, help="top-p of sampling (the paper: 0.7)")
    # statistics
    bootstrap: int = HfArg(default=2000, help="resamples of the problems behind each interval of a difference")

    def __post_init__(self):
        for name in "train_problems samples rows max_response temperature top_p bootstrap".split():
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: want a number above 0")
        for name in "seed problems".split():
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: want 0 or more")
        if not all(0 < gamma < math.inf for gamma in parse_numbers(self.gammas)):
            raise ValueError(f"--gammas {self.gammas}: want numbers above 0, such as --gammas 0.5,1")
        if not all(-math.inf < tau < 0 for tau in parse_numbers(self.taus)):
            raise ValueError(f"--taus {self.taus}: want numbers below 0, such as --taus=-2,-1")
        if not self.out and self.theorem:
            self.out = f"runs/extrapolate/theorem-seed{self.seed}"
        elif not self.out:
            self.out = f"runs/extrapolate/seed{self.seed}"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch finds no CUDA device here")


def parse_args(argv=None):
    """Command line -> Args: every field is a flag."""
    parser = HfArgumentParser(Args, description=__doc__.splitlines()[0])
    return Args(**vars(parser.parse_args(argv)))


def parse_numbers(text):
    """Numbers in rising order: "0.2,0.1" -> [0.1, 0.2]. Raises ValueError where a part is no number."""
    try:
        return sorted(float(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"want numbers with commas between them, not {text!r}") from None


# ------------------------------------------------------------------------------------------------ maths: tensors alone
def extrapolate_logp(logp_rlvr, logp_base, gamma):
    """log pi_RL + gamma dlogp - log Z (paper A, 4.1): log-probs (..., V) both -> (..., V), normalised.

    gamma, a number or (..., 1): 0 is the RLVR model, -1 the base, above 0 beyond RLVR. Where either log-prob is -inf,
    dlogp is undefined and taken as 0: no nan, and nothing that the RLVR model excludes comes back.
    """
    defined = torch.isfinite(logp_rlvr) & torch.isfinite(logp_base)
    dlogp = torch.where(defined, logp_rlvr - logp_base, 0.0)
    return torch.log_softmax(logp_rlvr + gamma * dlogp, dim=-1)  # (1)


def gain_of(theta, theta_0, rewards, gamma):
    """E[R] of the extrapolated policy minus that of softmax(theta): (..., V) three times, gamma (..., 1) -> (...)."""
    logp = torch.log_softmax(theta, dim=-1)
    logp_0 = torch.log_softmax(theta_0, dim=-1)
    logp_ext = extrapolate_logp(logp, logp_0, gamma)
    return ((logp_ext.exp() - logp.exp()) * rewards).sum(-1)  # (5)


def policy_gradient(theta, rewards):
    """Exact gradient of E[R] under pi = softmax(theta), with respect to theta: (..., V) both -> (..., V)."""
    pi = torch.softmax(theta, dim=-1)
    return pi * (rewards - (pi * rewards).sum(-1, keepdim=True))


def natural_gradient(theta, gradient):
    """F^+ gradient, F = diag(pi) - pi pi^T the Fisher matrix of softmax(theta): (..., V) both -> (..., V)."""
    pi = torch.softmax(theta, dim=-1)
    different = 1 - torch.eye(pi.shape[-1], dtype=pi.dtype, device=pi.device)
    products = pi.unsqueeze(-1) * pi.unsqueeze(-2) * different  # pi_v pi_w, 0 on the diagonal
    fisher = torch.diag_embed(products.sum(-1)) - products  # pi_v (1 - pi_v) as a sum: rows must add up to exactly 0
    return (torch.linalg.pinv(fisher, hermitian=True) @ gradient.unsqueeze(-1)).squeeze(-1)


def sampled_advantages(theta, rewards, group_size, generator=None):
    """(4) from group_size (2 or more) sampled actions, unbiased: F^+ times the sampled gradient; (P, V) -> (P, V)."""
    pi = torch.softmax(theta, dim=-1)
    actions = torch.multinomial(pi, group_size, replacement=True, generator=generator)  # (P, G)
    adv = rewards.gather(-1, actions)  # (P, G)
    adv = (adv - adv.mean(-1, keepdim=True)) / (group_size - 1)  # not G: the mean holds the sample itself
    return torch.zeros_like(pi).scatter_add(-1, actions, adv) / pi


# --------------------------------------------------------------------------------------- the theorem, and where it ends
def random_problems(n, n_actions, generator):
    """(theta, rewards), both (n, n_actions) float64: random base policies, rewards uniform on [0, 1]."""
    theta = 1.5 * torch.randn(n, n_actions, generator=generator, dtype=torch.float64)
    rewards = torch.rand(n, n_actions, generator=generator, dtype=torch.float64)
    return theta, rewards


def check_theorem(n, seed, sizes=(2, 3, 5, 10, 30, 100, 200)):
    """(3) to (5) on n random problems of these numbers of actions.

    Returns the gains (n,), the largest error of (4), in probability, and the largest relative error of the slope (5).
    """
    generator = torch.Generator().manual_seed(seed)
    gains = []
    npg_errors = []
    slope_errors = []
    for n_actions in sizes:
        theta_0, rewards = random_problems(n // len(sizes), n_actions, generator)  # (P, V) both
        uniform = torch.rand(3, len(theta_0), 1, generator=generator, dtype=torch.float64)
        lr = 10 ** (2 * uniform[0] - 2)  # (P, 1), from 0.01 to 1
        gamma = 10 ** (3 * uniform[1] - 2)  # (P, 1), from 0.01 to 10
        gamma.requires_grad_()
        steps = 1 + int(10 * uniform[2, 0])
        theta = theta_0
        for _ in range(steps):
            theta = theta + lr * natural_gradient(theta, policy_gradient(theta, rewards))  # (3)
        closed_form = theta_0 + lr * steps * rewards  # (4)
        npg_errors.append((torch.softmax(theta, -1) - torch.softmax(closed_form, -1)).abs().max().item())
        gain = gain_of(theta, theta_0, rewards, gamma)
        slope = torch.autograd.grad(gain.sum(), gamma)[0]
        pi_ext = torch.softmax(theta + gamma.detach() * (theta - theta_0), -1)
        mean = (pi_ext * rewards).sum(-1, keepdim=True)
        variance = (pi_ext * (rewards - mean) ** 2).sum(-1, keepdim=True)
        slope_error = (slope - lr * steps * variance).abs().max() / slope.abs().max()  # (5)
        slope_errors.append(slope_error.item())
        gains.append(gain.detach())
    return torch.cat(gains), max(npg_errors), max(slope_errors)


class WorstStop(NamedTuple):
    """The problem and the training step at which stopping loses most; actions from the best to the worst."""

    rewards: torch.Tensor  # (3,)
    pi: torch.Tensor  # (steps + 1, 3): the policy, had training stopped there
    pi_ext: torch.Tensor  # (steps + 1, 3): the same, extrapolated with gamma 1
    step: int
    gain: float  # of expected reward at that step
    share_losing: float  # of all problems: those that have a step at which stopping loses


def find_worst_stop(n, seed, steps=300, lr=2.0):
    """Exact plain gradient, not natural, on n random problems of 3 actions: where (5) fails worst, a WorstStop."""
    theta_0, rewards = random_problems(n, 3, torch.Generator().manual_seed(seed))
    path = [theta_0]
    for _ in range(steps):
        path.append(path[-1] + lr * policy_gradient(path[-1], rewards))
    path = torch.stack(path)  # (steps + 1, n, 3)
    gains = gain_of(path, theta_0, rewards, 1.0)  # (steps + 1, n)
    step, worst = divmod(gains.argmin().item(), n)
    order = rewards[worst].argsort(descending=True)
    theta = path[:, worst, order]  # (steps + 1, 3)
    return WorstStop(
        rewards=rewards[worst, order],
        pi=torch.softmax(theta, -1),
        pi_ext=torch.softmax(2 * theta - theta[0], -1),
        step=step,
        gain=gains.min().item(),
        share_losing=(gains.amin(0) < -1e-12).double().mean().item(),
    )


def draw_theorem(path, stop):
    """Draw the probabilities of the best and the fair action of a WorstStop over training."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axis = figure.subplots()
    for action, name, color in ((0, "best", "tab:orange"), (1, "fair", "tab:blue")):
        label = f"{name} action (reward {stop.rewards[action]:.2f}), trained until this step"
        axis.plot(stop.pi[:, action].numpy(), color=color, label=label)
        axis.plot(stop.pi_ext[:, action].numpy(), "--", color=color, label=f"{name} action, then extrapolated")
    label = f"the worst step to stop: extrapolation changes\nthe expected reward by {stop.gain:+.4f}"
    axis.axvline(stop.step, color="black", lw=1, ls=":", label=label)
    axis.set(
        title="Stopped while the fair action is exploited,\nextrapolation leads away from the best action",
        xlabel="training step at which plain gradient ascent stops",
        ylabel="probability of the action",
    )
    axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(path, dpi=110)


def run_theorem(out, seed):
    """Check the theorem and show where it ends. Raises ValueError if it fails."""
    gains, npg_error, slope_error = check_theorem(2100, seed)
    print(f"2,100 random problems: {(gains < -1e-12).sum()} lose, least gain {gains.min():.1e}")
    print(f"largest error of (4): {npg_error:.1e}, relative error of the slope in (5): {slope_error:.1e}")
    if not (gains.min() > -1e-12 and npg_error < 1e-6 and slope_error < 1e-6):
        raise ValueError("the theorem FAILS")

    # ---- advantages that are sampled, not exact
    print("\n| 1,000 problems of 10 actions, gamma 1: advantages sampled from | mean gain | share that loses |")
    print("|---|---|---|")
    generator = torch.Generator().manual_seed(seed)
    theta_0, rewards = random_problems(1000, 10, generator)
    for group_size in (256, 64, 16, 8, 4, 2):
        theta = theta_0
        for _ in range(20):
            theta = theta + 0.2 * sampled_advantages(theta, rewards, group_size, generator)
        gain = gain_of(theta, theta_0, rewards, 1.0)
        print(f"| {group_size} actions | {gain.mean():+.4f} | {(gain < -1e-12).double().mean():.3f} |")

    # ---- plain gradient: while the common fair action is exploited, the rare best one rises more slowly
    stop = find_worst_stop(1000, seed)
    print(f"\nplain gradient on 1,000 problems of 3 actions: {stop.share_losing:.1%} lose if stopped at the wrong step")
    print("| the worst of them | best action | fair action | bad action |")
    print("|---|---|---|---|")
    rows = {
        "reward": stop.rewards,
        "probability before training": stop.pi[0],
        f"stopped at step {stop.step}": stop.pi[stop.step],
        "extrapolated from there": stop.pi_ext[stop.step],
    }
    for name, values in rows.items():
        print(f"| {name} | {values[0]:.3f} | {values[1]:.3f} | {values[2]:.3f} |")
    print(f"gain of expected reward: {stop.gain:+.4f}")
    out.mkdir(parents=True, exist_ok=True)
    draw_theorem(out / "theorem.png", stop)
    print(f"\nthe theorem holds; figure {out / 'theorem.png'}")


# -------------------------------------------------------------------------------------------- model: decoding with two
def short_name(path):
    """The last two parts of a path, or a name on the hub, for titles: /home/me/rlvr/tiny/base -> tiny/base"""
    return "/".join(Path(path).parts[-2:])


def load_tokenizer(name):
    """The tokenizer of a folder or of the hub. Raises ValueError where there is none."""
    if not Path(name).exists() and (name.count("/") != 1 or name.startswith((".", "~", "runs/", "tiny/", "data/"))):
        raise ValueError(f"{name}: no such folder")  # else the hub is asked, which takes its time where there is none
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def load_model(name, device):
    """A model of a folder or of the hub, in fp32. Raises ValueError where there is none, or no .safetensors file."""
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        if "safetensors" in str(error):
            error = "its weights are not in .safetensors files; others, such as .bin, may run code when they are loaded"
        raise ValueError(f"{name}: {error}") from None
    return model.to(device)


def load_pair(base_name, rlvr_name, device):
    """Two models of one vocabulary, and the tokenizer of the second, which serves both.

    Raises ValueError where a name is neither a folder with a model nor on the hub, and where the vocabularies differ.
    """
    models = []
    tokenizers = []
    for flag, name in (("--base", base_name), ("--rlvr", rlvr_name)):
        try:
            tokenizers.append(load_tokenizer(name))
            models.append(load_model(name, device))
        except ValueError as error:
            raise ValueError(f"{flag} {error}") from None
    differ = sorted(tokenizers[0].get_vocab().items() ^ tokenizers[1].get_vocab().items())
    if differ:
        raise ValueError(
            f"{base_name} and {rlvr_name} do not share a vocabulary: {differ[:2]}; RLVR must start from --base"
        )
    return models[0], models[1], tokenizers[1]


def sample_tokens(logits, temperature=1.0, top_p=1.0, generator=None):
    """Draw one token per row from softmax(logits / temperature), cut to top-p: logits (N, V) -> three tensors (N,).

    Returns tokens, logp and entropy. The last two are of the full softmax at that temperature, before the cut, in
    nats. Temperature 0 is greedy; its logp and entropy are those of temperature 1.
    """
    logp = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # (N, V)
    entropy = torch.special.entr(logp.exp()).sum(-1)
    scores = logp
    if top_p < 1:  # keep the smallest set of likeliest tokens whose probability reaches top_p
        ordered, order = logp.exp().topk(min(1024, logp.shape[-1]))
        if (ordered.sum(-1) < top_p).any():  # a full sort takes several times as long, and is hardly ever needed
            ordered, order = logp.exp().sort(dim=-1, descending=True)
        probability_before = ordered.cumsum(-1) - ordered
        beyond = torch.ones_like(logp, dtype=torch.bool).scatter(-1, order, probability_before >= top_p)
        scores = logp.masked_fill(beyond, -torch.inf)
    if temperature > 0:  # Gumbel-max: the argmax of log-prob + Gumbel noise, -log(exponential noise), is an exact draw
        noise = torch.empty_like(logp).exponential_(generator=generator)
        scores = scores - noise.log()
    tokens = scores.argmax(-1)
    return tokens, logp.gather(-1, tokens[:, None])[:, 0], entropy


def end_ids(tokenizer, *models):
    """The ids that end a response: the tokenizer's, each model's, and the one that ends a turn of the chat template.

    A base model may end with <|endoftext|> alone, and run on after the <|im_end|> of a template that it was given.
    """
    ids = {tokenizer.eos_token_id}
    for model in models:
        eos = model.generation_config.eos_token_id  # an id, a list of ids, or None
        ids.update(eos if isinstance(eos, list) else [eos])
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": "QUESTION"}, {"role": "assistant", "content": "ANSWER"}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        behind = tokenizer(text.rpartition("ANSWER")[2], add_special_tokens=False)["input_ids"]
        if behind and behind[0] in tokenizer.added_tokens_decoder:  # a special token, not a space or a line break
            ids.add(behind[0])
    return sorted(ids - {None})


class Decoder:
    """One model that decodes `copies` responses to each of B prompts, token by token; the caller chooses the tokens.

    `logits` are those of the next token: (N, V), N = B * copies rows in group order, as long as all rows go on.
    prompts: lists of ids. n_vocab: ids from there on, which pad the embedding matrix, are left out.
    """

    @torch.no_grad()
    def __init__(self, model, prompts, copies, n_vocab=None):
        """Read every prompt once, padded on the left; then repeat what was read for its copies."""
        self.model = model
        self.n_vocab = n_vocab
        device = model.device
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, W)
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)  # (B, W)
        position = (attention.cumsum(1) - 1).clamp(min=0)  # padding must not shift positions
        out = model(input_ids=ids, attention_mask=attention, position_ids=position, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        self.cache.batch_repeat_interleave(copies)
        self.logits = out.logits[:, -1, :n_vocab].repeat_interleave(copies, dim=0)  # (N, V)
        self.attention = attention.repeat_interleave(copies, dim=0)  # (N, W)
        self.position = position[:, -1:].repeat_interleave(copies, dim=0)  # (N, 1)

    @torch.no_grad()
    def step(self, keep, tokens):
        """Go on with the n rows `keep`, an index of rows (n,), fed with their next `tokens` (n,) -> logits (n, V)."""
        if len(keep) < len(self.logits):  # rows that have ended leave the batch and the cache
            self.attention = self.attention[keep]
            self.position = self.position[keep]
            self.cache.batch_select_indices(keep)
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(tokens), 1)], dim=1)
        self.position = self.position + 1
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.attention,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = out.logits[:, -1, : self.n_vocab]
        return self.logits


def decode_two(
    base,
    rlvr,
    prompts,
    taus,
    gammas,
    max_new_tokens,
    eos_ids,
    n_vocab=None,
    first="base",
    temperature=1.0,
    top_p=1.0,
    generator=None,
):
    """Two models decode one response (paper A, 4.1). The model `first`, "base" or "rlvr", draws every token y. Where
    dlogp(y) < tau, the token is resampled from (1). Both models are fed the same tokens.

    prompts: B lists of ids. taus, gammas: (K,) both, one for each of the K copies of a prompt; tau -inf never fires,
    inf always. dlogp is that of temperature 1. The rest is as in dapo.py's rollout.
    Where nothing fires, no noise is drawn for a second token: the tokens are those of rollout.
    Returns a dict of tensors, N = B * K rows in group order, T tokens of the longest response:
      tokens (N, T), the ending id included; mask (N, T), 1 on response tokens; replaced (N, T), bool.
    Raises ValueError where `first` is no model.
    """
    if first not in ("base", "rlvr"):
        raise ValueError(f'want first to be "base" or "rlvr", not {first!r}')
    device = base.device
    base_decoder = Decoder(base, prompts, len(taus), n_vocab)
    rlvr_decoder = Decoder(rlvr, prompts, len(taus), n_vocab)
    base_logits = base_decoder.logits  # (N, V)
    rlvr_logits = rlvr_decoder.logits  # (N, V)
    n_rows = len(prompts) * len(taus)
    row_taus = torch.tensor(taus, dtype=torch.float32, device=device).repeat(len(prompts))  # (N,)
    row_gammas = torch.tensor(gammas, dtype=torch.float32, device=device).repeat(len(prompts))  # (N,)
    tokens = torch.zeros(n_rows, max_new_tokens, dtype=torch.long, device=device)
    mask = torch.zeros(n_rows, max_new_tokens, device=device)
    replaced = torch.zeros(n_rows, max_new_tokens, dtype=torch.bool, device=device)
    stops = torch.tensor(eos_ids, device=device)
    live = torch.arange(n_rows, device=device)  # the rows still in the batch
    for t in range(max_new_tokens):
        first_logits = base_logits if first == "base" else rlvr_logits
        new, _, _ = sample_tokens(first_logits, temperature, top_p, generator)
        base_logp = torch.log_softmax(base_logits.float(), dim=-1)
        rlvr_logp = torch.log_softmax(rlvr_logits.float(), dim=-1)
        dlogp = (rlvr_logp - base_logp).gather(-1, new[:, None])[:, 0]
        fires = dlogp < row_taus[live]  # (2)
        if fires.any():
            mixed = extrapolate_logp(rlvr_logp[fires], base_logp[fires], row_gammas[live[fires], None])
            new[fires], _, _ = sample_tokens(mixed, temperature, top_p, generator)
        tokens[live, t] = new
        mask[live, t] = 1.0
        replaced[live, t] = fires
        ended = torch.isin(new, stops)
        if ended.all() or t + 1 == max_new_tokens:
            break
        keep = (~ended).nonzero()[:, 0]
        live = live[keep]
        base_logits = base_decoder.step(keep, new[keep])
        rlvr_logits = rlvr_decoder.step(keep, new[keep])
    longest = t + 1
    return {"tokens": tokens[:, :longest], "mask": mask[:, :longest], "replaced": replaced[:, :longest]}


# ----------------------------------------------------------------------------------------- task: problems and verifier
def render_prompt(tokenizer, prompt, system=""):
    """The text that the model reads: in the tokenizer's chat template if it has one, where Qwen3 then does not think.

    Raises ValueError where the template refuses the messages.
    """
    from jinja2 import TemplateError  # comes with torch

    together = f"{system}\n\n{prompt}" if system else prompt
    if tokenizer.chat_template is None:
        return together
    one_message = [{"role": "user", "content": together}]
    if system:
        two_messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    else:
        two_messages = one_message
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    try:
        return tokenizer.apply_chat_template(two_messages, **options)
    except (TemplateError, TypeError, ValueError):  # some templates have no system role
        try:
            return tokenizer.apply_chat_template(one_message, **options)
        except (TemplateError, TypeError, ValueError) as error:
            raise ValueError(f"the model's chat template refuses a prompt: {error}") from error


def read_problems(path, tokenizer, context, max_response):
    """Problems of a JSONL file, a list of dicts: "prompt", "answer" and perhaps "system", texts, and "kinds", {name:
    text}, as in the file; and "ids", the prompt in tokens, in the tokenizer's chat template if it has one.

    A number as answer is read as text. Prompts that leave less than max_response of `context` tokens are left out, and
    counted on the screen. Raises ValueError: for other rows, naming file, line and reason, and where no prompt is left.
    """
    limit = context - max_response
    if limit < 1:
        raise ValueError(f"--max-response {max_response} leaves no room for a prompt: the context is {context} tokens")
    problems = []
    lines = Path(path).read_text("utf-8-sig", "surrogateescape").rstrip("\n").split("\n")  # not splitlines: U+2028
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ValueError(f'{where}: want {{"prompt": "...", "answer": "..."}}, got {line[:40]!r}')
        if isinstance(row.get("answer"), (int, float)) and not isinstance(row["answer"], bool):
            row["answer"] = str(row["answer"])
        for key in ("prompt", "answer", "system"):
            value = row.get(key, "" if key == "system" else None)
            if value is None:
                raise ValueError(f'{where}: "{key}" is missing')
            if not isinstance(value, str):
                raise ValueError(f'{where}: "{key}" must be a text in quotes, not {json.dumps(value)[:40]}')
            if key != "system" and not value.strip():
                raise ValueError(f'{where}: "{key}" is empty')
            if not value.isascii() and re.search("[\ud800-\udfff]", value):
                raise ValueError(f'{where}: "{key}" is not UTF-8')
        kinds = row.get("kinds", {})
        if not isinstance(kinds, dict) or not all(isinstance(answer, str) for answer in kinds.values()):
            raise ValueError(f'{where}: "kinds" must be {{"a name": "an answer in quotes", ...}}')
        text = render_prompt(tokenizer, row["prompt"], row.get("system", ""))
        row["ids"] = tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
        if tokenizer.unk_token_id in row["ids"]:
            raise ValueError(f'{where}: "prompt" has characters that the model\'s vocabulary lacks')
        if len(row["ids"]) <= limit:
            problems.append(row)
    n_left_out = len(lines) - len(problems)
    room = f"{limit} tokens, the context of {context} less --max-response {max_response}"
    if not problems:
        raise ValueError(f"{path}: no prompt fits into {room}")
    if n_left_out > 0:
        print(f"{path}: left out {n_left_out} of {len(lines)} prompts, which do not fit into {room}")
    return problems


def extract_answer(text):
    r"""What stands in the last \boxed{...} whose braces are balanced; None if there is none.

    "so \boxed{\frac{1}{2}}." -> "\frac{1}{2}". Only the last 20,000 characters are read. \{ and \} are no braces.
    """
    text = text[-20_000:]
    still_open = []  # the braces that are not closed yet, as matches
    last = -1
    answer = None
    for match in re.finditer(r"\\boxed\s*\{|\\.|[{}]", text, re.DOTALL):
        if match[0] == "{" or match[0].startswith("\\boxed"):
            still_open.append(match)
        elif match[0] == "}" and still_open:
            opening = still_open.pop()
            if opening[0] != "{" and opening.start() > last:  # a box, further on than the last one
                last = opening.start()
                answer = text[opening.end() : match.start()].strip()
    return answer


TEX_SPACE = r"(?:\s|~|\\[,;:! ])"  # as it stands in an answer
NO_UNITS = (  # words behind a number that change it
    "or and to base dozen half halves third thirds quarter quarters tenths hundredths thousandths hundred hundreds"
    " thousand thousands million millions billion billions trillion e i k n x y z pi"
).split()


def read_number(text):
    r"""A plain number as a Fraction; None for any other text.

    -.50 = -1/2;  1,000 = 1\,000 = 1000;  1/2 = \frac{1}{2} = \frac12. None for "1, 200", for "0,500", for "2 1/2".
    """
    negative = text.startswith("-")
    if text.startswith(("-", "+")):
        text = text[1:].strip()
    fraction = re.fullmatch(r"\\frac\s*(\d|\{[^{}]*\})\s*(\d|\{[^{}]*\})", text)  # TeX takes a digit or a braced group
    if fraction:
        above = fraction[1].strip("{ }")
        below = fraction[2].strip("{ }")
        if above.startswith("-"):
            negative = not negative
            above = above[1:]
    elif text.count("/") == 1:
        above, below = text.split("/")
    elif re.fullmatch(r"[1-9][0-9]{0,2}((,[0-9]{3})+|(\\[,;:! ][0-9]{3})+)(\.[0-9]*)?", text):  # groups of three
        above = re.sub(r"[^0-9.]", "", text)
        below = "1"
    else:
        above = text
        below = "1"
    for part in (above, below):
        if not re.fullmatch(r"\s*([0-9]{1,100}(\.[0-9]{0,100})?|\.[0-9]{1,100})\s*", part):
            return None
    if Fraction(below) == 0:
        return None
    number = Fraction(above) / Fraction(below)
    return -number if negative else number


def remove_unit(text):
    r"""Text without the units at its end: 48^\circ -> 48    12\text{ cm}^2 -> 12    5\% -> 5    5\text{ or }6 stays."""
    in_words = r"\\(?:text|textrm|mathrm|mbox|rm)\{[^{}0-9]*[a-zA-Z][^{}0-9]*\}(?:\^\{?-?[0-9]\}?)?"
    unit = rf"\\?%|\^\{{?\\circ\}}?[CF]?|°[CF]?|\\degrees?|degrees?|percent|/?{in_words}"
    rest = re.sub(rf"(?:{TEX_SPACE}*(?:{unit}))+$", "", text)
    words = re.findall("[a-zA-Z]+", text[len(rest) :])
    if any(word in NO_UNITS for word in words):
        return text
    return rest


def normalize_answer(answer):
    r"""What two equal answers share: a Fraction for a plain number, perhaps with a unit, else a text without spaces.

    \text{}, \left, \right, and dollars and percent signs at the ends do not count. Two answers are equal if their
    normal forms are. Larger questions, such as x+1 against 1+x or 3/2 against 1 1/2, are for --verifier math-verify.
    """
    text = answer.replace("\u2212", "-")
    text = text.replace("\\\\", "\0")  # a row break of a matrix, which must not read as a space
    text = re.sub(r"\\(left|right)(?![a-zA-Z])", "", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = text.replace("{,}", ",").replace(",\\!", ",")
    text = re.sub(rf"^(?:{TEX_SPACE}|\\?\$)+", "", text)
    text = re.sub(rf"(?:{TEX_SPACE}|\\?[$%])*\.?(?:{TEX_SPACE}|\\?[$%])*$", "", text)
    text = re.sub(r"^\\(?:text|textrm|mathrm|mbox)\{([^{}]*)\}$", r"\1", text).strip()
    number = read_number(remove_unit(text))
    if number is not None:
        return number
    text = re.sub(r"\\(?:text|textrm|mathrm|mbox)\{([^{}]*)\}", r"\1", text)
    text = re.sub(TEX_SPACE, " ", text)
    return re.sub(r"(?<!\d) +| +(?!\d)", "", text)  # "1 2" is not "12"


def is_correct(text, answer, verifier="exact"):
    r"""Does the last \boxed{} of text hold the answer, as number or text? If not, "math-verify" asks that package."""
    said = extract_answer(text)
    if not said or len(said) > 1000:
        return False
    if normalize_answer(said) == normalize_answer(answer):
        return True
    if verifier == "math-verify":
        from math_verify import parse, verify  # reads LaTeX; stops after 5 seconds

        return verify(parse(rf"\boxed{{{answer}}}"), parse(rf"\boxed{{{said}}}"))
    return False


# --------------------------------------------------------------------------------------------------------- experiment
class Arm(NamedTuple):
    """A setting of decode_two that is compared with others."""

    first: str  # which model draws y: "base" or "rlvr"
    tau: float | None  # y is resampled where dlogp(y) < tau; None: everywhere
    gamma: float | None  # from (1) with this gamma; None: y is never resampled


def decode_arms(problems, arms, seed, job, base, rlvr, tokenizer, args):
    """--samples responses to every problem under each of K arms with the same `first` -> a row (dict) for each arm.

    A row holds the arm; "ratio", the share of tokens that were resampled; "right", the number of right responses to
    each problem; "example", the first response to the first problem. Every batch has a generator of its own.
    """
    taus = []
    gammas = []
    for arm in arms:
        tau = arm.tau
        if arm.gamma is None:
            tau = -math.inf  # never fires
        elif arm.tau is None:
            tau = math.inf  # always fires
        taus.extend([tau] * args.samples)
        gammas.extend([arm.gamma or 0.0] * args.samples)
    batch_size = max(1, args.rows // len(taus))
    eos_ids = end_ids(tokenizer, base, rlvr)
    n_right = np.zeros((len(arms), len(problems)), dtype=int)
    n_tokens = [0 for _ in arms]
    n_replaced = [0 for _ in arms]
    examples = [None for _ in arms]
    for start in tqdm(range(0, len(problems), batch_size), desc=job, unit="batch", leave=False):
        batch = problems[start : start + batch_size]
        out = decode_two(
            base,
            rlvr,
            [problem["ids"] for problem in batch],
            taus,
            gammas,
            args.max_response,
            eos_ids,
            n_vocab=len(tokenizer),
            first=arms[0].first,
            temperature=args.temperature,
            top_p=args.top_p,
            generator=torch.Generator(args.device).manual_seed(seed * 1_000_003 + start),
        )
        out = {name: tensor.cpu() for name, tensor in out.items()}
        lengths = out["mask"].sum(1).int()  # (N,)
        for i, length in enumerate(lengths.tolist()):
            p = start + i // len(taus)
            k = i % len(taus) // args.samples
            text = tokenizer.decode(out["tokens"][i, :length].tolist(), skip_special_tokens=True)
            n_right[k, p] += is_correct(text, problems[p]["answer"], args.verifier)
            n_tokens[k] += length
            n_replaced[k] += out["replaced"][i].sum().item()
            if examples[k] is None:
                examples[k] = text
    rows = []
    for k, arm in enumerate(arms):
        rows.append(
            {
                **arm._asdict(),
                "ratio": n_replaced[k] / n_tokens[k],
                "right": n_right[k].tolist(),
                "example": examples[k],
            }
        )
    return rows


def mean_and_ci95(values):
    """Mean over problems, and the half-width of its 95% interval (normal); 0 for a single problem."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, 0.0
    return mean, 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5


def mean_and_bootstrap_ci95(values, resampled):
    """Mean of values (P,), and its 95% interval over resamples of the problems, indices (R, P)."""
    return float(values.mean()), np.quantile(values[resampled].mean(axis=1), [0.025, 0.975]).tolist()


def paired_metrics(row, reference, args):
    """accuracy and pass@n of a row of decode_arms, and both minus those of a reference row, paired by problem."""
    right = np.array(row["right"])  # (P,), right responses to each problem
    reference_right = np.array(reference["right"])  # (P,)
    accuracy, accuracy_ci95 = mean_and_ci95(right / args.samples)
    resampled = np.random.default_rng(args.seed).integers(len(right), size=(args.bootstrap, len(right)))
    diff, diff_ci95 = mean_and_bootstrap_ci95((right - reference_right) / args.samples, resampled)
    pass_diff, pass_diff_ci95 = mean_and_bootstrap_ci95((right > 0) * 1.0 - (reference_right > 0), resampled)
    return {
        "accuracy": accuracy,
        "accuracy_ci95": accuracy_ci95,
        f"pass@{args.samples}": float((right > 0).mean()),
        "diff": diff,
        "diff_ci95": diff_ci95,
        "pass_diff": pass_diff,
        "pass_diff_ci95": pass_diff_ci95,
    }


def best_arm(arms, rows):
    """The arm with the most right responses; of equal ones the weakest: least gamma, then fewest tokens resampled."""
    return max(arms, key=lambda arm: (sum(rows[arm]["right"]), -arm.gamma, -rows[arm]["ratio"]))


def check_run(args):
    """Raises ValueError, before anything is loaded, for a missing file and for a folder that does not fit --resume."""
    for flag, path in (("--test", args.test), ("--train", args.train)):
        if not Path(path).exists():
            raise ValueError(f"{flag} {path}: no such file")
    config = Path(args.out) / "config.json"
    if args.resume and not config.exists():
        raise ValueError(f"--resume: {args.out} holds no run; leave out --resume to start one there")
    if config.exists() and not args.resume:
        raise ValueError(f"{args.out} holds a run: --resume goes on with it, --out or --seed starts another")
    if args.resume:
        before = json.loads(config.read_text())["args"]
        may_change = ["resume", "out", "rows"]
        now = asdict(args)
        for name in {**before, **now}:
            if name not in may_change and before.get(name) != now.get(name):
                flag = f"--{name.replace('_', '-')} {before.get(name)}"
                raise ValueError(f"--resume: {args.out} began with {flag}; give the same, or another --out")


def open_run(args):
    """Make the run folder with its config.json; returns the finished jobs that --resume goes on from, {} at first."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    about = {"args": asdict(args), "torch": torch.__version__, "transformers": transformers.__version__}
    (out / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    if args.resume and (out / "results.json").exists():
        return json.loads((out / "results.json").read_text())
    return {}


def save_results(path, results):
    """Save under another name first: a kill leaves the old results or the new ones, never half of one."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(results) + "\n")
    unfinished.replace(path)


def interval_text(mean, interval):
    """(0.1, [0, 0.2]) -> "+0.100 [+0.000, +0.200]"."""
    return f"{mean:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def draw_curve(axis, x, rows, label, color, limit=0.15):
    """Draw accuracies minus RLVR's, of rows with paired_metrics, with their 95% intervals.

    What lies beyond `limit` stands at the edge of the panel, as a number.
    """
    y = np.array([row["diff"] for row in rows])
    low = np.array([row["diff_ci95"][0] for row in rows])
    high = np.array([row["diff_ci95"][1] for row in rows])
    axis.errorbar(x, y, (y - low, high - y), fmt="o-", ms=4, capsize=2, label=label, color=color)
    for position, value in zip(x, y, strict=True):
        if abs(value) > limit:
            edge = np.sign(value) * 0.93 * limit
            axis.text(position, edge, f"{value:+.2f}", color=color, ha="center", va="center", fontsize=9)
    axis.set(ylim=(-limit, limit))
    axis.margins(x=0.08)


def draw_panels(path, rows, from_base, from_rlvr, everywhere, over_tau, args):
    """Draw accuracies minus RLVR's: over gamma with y from the base, over gamma with y from RLVR, over tau.

    rows: {arm: row with paired_metrics}; the others are lists of the arms of a curve.
    """
    figure = Figure(figsize=(10.8, 4.9), layout="constrained")
    base_axis, rlvr_axis, tau_axis = figure.subplots(1, 3, sharey=True)
    gamma_curves = [
        (base_axis, from_base, f"resampled where dlogp < {from_base[0].tau:g}", "tab:red"),
        (rlvr_axis, from_rlvr, f"resampled where dlogp < {from_rlvr[0].tau:g}", "tab:red"),
        (rlvr_axis, everywhere, "resampled everywhere", "tab:purple"),
    ]
    for axis, arms, label, color in gamma_curves:
        draw_curve(axis, [f"{arm.gamma:g}" for arm in arms], [rows[arm] for arm in arms], label, color)
        axis.set(xlabel="gamma: how far beyond RLVR\n(0: resampled from RLVR itself)")
    tau_names = [f"{arm.tau:g}\n{rows[arm]['ratio']:.1%}" for arm in over_tau]
    label = f"resampled with gamma {over_tau[0].gamma:g}"
    draw_curve(tau_axis, tau_names, [rows[arm] for arm in over_tau], label, "tab:red")
    tau_axis.set(xlabel="threshold of dlogp,\nand share of the tokens resampled")
    base_axis.set_title("The base model draws (figure 4)", fontsize=11)
    rlvr_axis.set_title("The RLVR model draws", fontsize=11)
    tau_axis.set_title("The RLVR model draws (table 1)", fontsize=11)
    base_axis.set_ylabel("accuracy minus that of RLVR alone")
    for axis in (base_axis, rlvr_axis, tau_axis):
        axis.axhline(0, color="black", lw=1.5, ls="--", label="RLVR model alone")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    pair = f"{short_name(args.base)} and {short_name(args.rlvr)}"
    figure.suptitle(
        f"Is extrapolation better than RLVR? Above the dashed line it is\n"
        f"{pair}, temperature {args.temperature:g}, top-p {args.top_p:g}",
        fontsize=12,
    )
    figure.savefig(path, dpi=110)


def main(args):
    """Choose gamma and tau on training problems, decode the test problems, compare."""
    out = Path(args.out)
    if args.theorem:
        run_theorem(out, args.seed)
        return

    # ---- models and problems first, so that errors come early
    check_run(args)
    transformers.utils.logging.disable_progress_bar()
    # cuDNN's attention would plan anew for every shape, and every decoded token is a new shape
    torch.backends.cuda.enable_cudnn_sdp(False)
    base, rlvr, tokenizer = load_pair(args.base, args.rlvr, args.device)
    context = min(base.config.max_position_embeddings, rlvr.config.max_position_embeddings)
    train = read_problems(args.train, tokenizer, context, args.max_response)[: args.train_problems]
    test = read_problems(args.test, tokenizer, context, args.max_response)[: args.problems or None]
    results = open_run(args)

    def decode(number, job, problems, arms):
        """{arm: row} of a job: from `results` if it is finished there."""
        if job not in results:
            seed = args.seed * 1000 + number
            results[job] = decode_arms(problems, arms, seed, job, base, rlvr, tokenizer, args)
            save_results(out / "results.json", results)
        return dict(zip(arms, results[job], strict=True))

    # ---- choose gamma and tau on training problems
    taus = parse_numbers(args.taus)
    gammas = parse_numbers(args.gammas)
    on_base = [Arm("base", tau, gamma) for tau in taus for gamma in [0.0, *gammas]]
    on_rlvr = [Arm("rlvr", tau, gamma) for tau in [*taus, None] for gamma in gammas]
    base_rows = decode(0, "train on base", train, on_base)
    rlvr_rows = decode(1, "train on rlvr", train, on_rlvr)
    best_on_base = best_arm([arm for arm in on_base if arm.gamma > 0], base_rows)
    best_on_rlvr = best_arm([arm for arm in on_rlvr if arm.tau is not None], rlvr_rows)
    best_everywhere = best_arm([arm for arm in on_rlvr if arm.tau is None], rlvr_rows)

    # ---- decode test problems: the base, RLVR, and the curves through the chosen arms
    base_alone = Arm("base", None, None)
    rlvr_alone = Arm("base", None, 0.0)  # y from the base, resampled everywhere
    from_base = [Arm("base", best_on_base.tau, gamma) for gamma in [0.0, *gammas]]
    from_rlvr = [Arm("rlvr", best_on_rlvr.tau, gamma) for gamma in [0.0, *gammas]]
    everywhere = [Arm("rlvr", None, gamma) for gamma in gammas]
    over_tau = [Arm("rlvr", tau, best_on_rlvr.gamma) for tau in taus]
    rows = decode(2, "test on base", test, [base_alone, rlvr_alone, *from_base])
    once = list(dict.fromkeys([*from_rlvr, *everywhere, *over_tau]))  # an arm may be in two curves
    rows.update(decode(3, "test on rlvr", test, once))

    # ---- compare with RLVR
    n = args.samples
    print(f"\n| y from | tau | gamma | resampled | accuracy | pass@{n} | accuracy - RLVR's | pass@{n} - RLVR's |")
    print("|---" * 8 + "|")
    rows = {arm: {**row, **paired_metrics(row, rows[rlvr_alone], args)} for arm, row in rows.items()}
    for arm, row in rows.items():
        cells = [
            arm.first,
            "" if arm.tau is None else str(arm.tau),
            "" if arm.gamma is None else str(arm.gamma),
            f"{row['ratio']:.3f}",
            f"{row['accuracy']:.3f} ± {row['accuracy_ci95']:.3f}",
            f"{row[f'pass@{n}']:.3f}",
            interval_text(row["diff"], row["diff_ci95"]),
            interval_text(row["pass_diff"], row["pass_diff_ci95"]),
        ]
        print(f"| {' | '.join(cells)} |")

    # ---- compare with gamma 0 at the same threshold: is it gamma, or the second draw alone?
    print(f"\nchosen on {len(train)} training problems; on {len(test)} test problems, minus gamma 0 at the same tau:")
    for best in (best_on_base, best_on_rlvr, best_everywhere):
        control = rlvr_alone if best.tau is None else Arm(best.first, best.tau, 0.0)
        metrics = paired_metrics(rows[best], rows[control], args)
        rows[best]["minus_gamma_0"] = metrics
        where = "everywhere" if best.tau is None else f"tau {best.tau}"
        difference = interval_text(metrics["diff"], metrics["diff_ci95"])
        print(f"  y from {best.first}, {where}, gamma {best.gamma}: {difference}")
    (out / "summary.json").write_text(json.dumps(list(rows.values()), indent=2) + "\n")
    draw_panels(out / "extrapolate.png", rows, from_base, from_rlvr, everywhere, over_tau, args)
    print(f"\nwrote {out}: open extrapolate.png; summary.json has the numbers")


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on after the last finished job")
    except torch.OutOfMemoryError:
        sys.exit("error: out of GPU memory; lower --rows, and go on with --resume")
    except (OSError, ValueError, ImportError) as error:  # no such file, full disk, wrong input, missing package
        sys.exit(f"error: {' '.join(str(error).split())[:500]}")
