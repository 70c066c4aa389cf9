r"""What RLVR changed, token by token: the signed log-probability difference between a base model and its RLVR model.

What it shows: both models answer the same problems, and both score every token of both answers. Entropy and KL say
where the models differ; dlogp also says in which direction. Most tokens have not changed at all. In the tiny world
(tiny/README.md) nearly all of the change is at the choices: compute one operation at a time, or two at once? Hardly any
of it is in the arithmetic. The run ends with a page of coloured tokens.

  The paper ("paper A" in README.md): "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117),
  sections 2, 3.1 and 3.3

The equations, tagged (1) to (6) in the code:
  (1) dlogp(y_t) = log pi_RL(y_t | x, y_<t) - log pi_base(y_t | x, y_<t), of a token, in nats           eq. 1
  (2) H = -sum_v pi_v log pi_v, of base and of RL, v over the whole vocabulary                          section 2
  (3) KL(RL||base) = sum_v pi_RL,v log(pi_RL,v / pi_base,v), KL(base||RL), and the mean of both         section 2
      J = w A: the objective of an unclipped token y_t, with importance ratio w = pi(y_t) / pi_old(y_t), advantage A
      z: the logits at that position, pi = softmax(z)
  (4) |dJ/dz|_1 = |w A| 2 (1 - pi(y_t)), the gradient coefficient of the token                          lemma in 3.3
  (5) overlap = sum over bins of min(share of RL's tokens, share of the base's tokens)                  ours
      AUC = P(x > y) + P(x = y) / 2, x: the value of a token of RL's, y: of a token of the base's
      two equal distributions have overlap 1 and AUC 1/2

The sign of the mean of (1) is no surprise. It follows from (1) and (3):
  for y ~ pi_RL:    E[dlogp(y)] =  KL(RL||base) >= 0
  for y ~ pi_base:  E[dlogp(y)] = -KL(base||RL) <= 0
What has to be measured is how far the two histograms part, and at how few tokens.

That dlogp tells the models apart is nearly guaranteed, too. Over a whole response it sums to
  (6) log pi_RL(response | x) - log pi_base(response | x), the exact log-likelihood ratio
By the Neyman-Pearson lemma no measure of a response has a larger expected AUC: this AUC is the bound for all others.
Of one token, dlogp is the exact log-likelihood ratio given the tokens before it. Pooled tokens have no such bound,
because the tokens before them differ as well.

Differences from the paper:
  - The paper compares histograms by eye. Here overlap, AUC and the sizes by kind have 95% intervals. They are
    bootstraps over problems, because the responses to one problem are not independent.
  - All is fp32, on a GPU too: in bf16 most of a small dlogp would be rounding, because neighbouring bf16 numbers
    near 25 are 0.125 apart (docs/gpu.md).

    python delta_logp.py                       # tiny pair on two CPU cores, under a minute
    python delta_logp.py --check               # the lemma (4) against autograd, on random logits
    python delta_logp.py --base Qwen/Qwen2.5-Math-1.5B --rlvr sail/Qwen2.5-Math-1.5B-Oat-Zero \
        --data data/math500/test.jsonl --max-response 2048 --micro-batch 8                                    # one GPU
"""

import html
import itertools
import json
import math
import re
import sys
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib
import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.hf_argparser import HfArg

SOURCES = ("base", "rlvr")  # the model that wrote a response
METRICS = ("dlogp", "entropy_base", "entropy_rlvr", "kl", "kl_rlvr_base", "kl_base_rlvr")  # of a token, in nats
KINDS = ("choice", "arithmetic", "connective", "copy")  # of a token in the tiny world, see token_kinds
N_EXAMPLES = 4  # problems whose responses are drawn token by token

HERE = Path(__file__).resolve().parent


@dataclass
class Args:
    base: str = HfArg(default=str(HERE / "tiny/base"), help="base model: a folder, or a name on the hub")
    rlvr: str = HfArg(default=str(HERE / "tiny/rlvr"), help="the model that RLVR made of it; its tokenizer serves both")
    data: str = HfArg(default=str(HERE / "tiny/test.jsonl"), help='problems, one {"prompt": ..., "answer": ...} a line')
    responses: str = HfArg(
        default="", help="score the responses of this file, in the format of responses.jsonl, instead of sampling"
    )
    out: str = HfArg(default="", help="folder of this run; by default runs/delta_logp/seed<seed>")
    resume: bool = HfArg(default=False, help="go on with the responses that --out holds")
    seed: int = HfArg(default=1, help="random seed of sampling and of the bootstrap")
    device: Literal["cpu", "cuda"] = HfArg(default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    verifier: Literal["exact", "math-verify"] = HfArg(
        default="exact", help="math-verify needs the package of that name"
    )
    check: bool = HfArg(default=False, help="check the lemma (4) against autograd instead; exit status 1 if it fails")
    # sampling and scoring
    problems: int = HfArg(default=100, help="the first N problems of --data; 0: all")
    samples: int = HfArg(default=8, help="responses of each model to a problem")
    gen_batch: int = HfArg(default=32, help="prompts decoded side by side")
    max_response: int = HfArg(default=128, help="response limit, in tokens")
    temperature: float = HfArg(default=1.0, help="temperature of sampling and of every log-prob")
    micro_batch: int = HfArg(default=64, help="responses scored in one forward pass")
    # statistics
    bootstrap: int = HfArg(default=200, help="resamples of the problems behind each interval")

    def __post_init__(self):
        for name in "samples gen_batch max_response temperature micro_batch bootstrap".split():
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: want a number above 0")
        for name in "seed problems".split():
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: want 0 or more")
        if not self.out:
            self.out = f"runs/delta_logp/seed{self.seed}"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch finds no CUDA device here")


def parse_args(argv=None):
    """Command line -> Args: every field is a flag."""
    parser = HfArgumentParser(Args, description=__doc__.splitlines()[0])
    return Args(**vars(parser.parse_args(argv)))


# ------------------------------------------------------------------------------------------------ maths: tensors alone
def delta_logp(logp_base, logp_rlvr, tokens):
    """log pi_RLVR - log pi_base of the tokens (paper A, eq. 1): log-probs (..., V), ids (...) -> (...), in nats."""
    return (logp_rlvr - logp_base).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)  # (1)


def entropy(logp):
    """Entropy in nats of distributions given as log-probs: (..., V) -> (...). An id of log-prob -inf counts as 0."""
    return torch.special.entr(logp.exp()).sum(-1)  # (2)


def kl_divergence(logp_p, logp_q):
    """KL(p || q) in nats, of log-probs (..., V) both -> (...). Ids that p never takes count as 0, whatever q does.

    Infinite where p takes what q never does. Rounding may leave -1e-7 for equal distributions; that is cut to 0.
    """
    terms = logp_p.exp() * (logp_p - logp_q)  # (3)
    return terms.masked_fill(logp_p.exp() == 0, 0.0).sum(-1).clamp(min=0.0)


def group_advantages(rewards):
    """Rewards normalised in their group (GRPO; DAPO eq. 9): (B, G) -> (B, G). Equal rewards give exactly 0."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    advantages = centred / (std + 1e-6)  # std divides by G - 1; that and 1e-6 as in the paper's released code
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return advantages.masked_fill(equal, 0.0)  # rounding would leave tiny values


def gradient_coefficient(logp, adv, ratio=1.0):
    """l1 norm of the policy gradient with respect to an unclipped token's logits (lemma in 3.3): (...) -> (...).

    logp, adv, ratio: log-prob, advantage and importance ratio of the token. Unlikely tokens get up to 2 |ratio * adv|,
    certain ones 0. Raises ValueError where logp and adv differ in shape.
    """
    if logp.shape != adv.shape:
        raise ValueError(f"want logp and adv of one shape, not {tuple(logp.shape)} and {tuple(adv.shape)}")
    return (ratio * adv).abs() * 2 * -torch.expm1(logp)  # (4)


def lemma_error(logits, tokens, seed=0):
    """Largest relative difference between (4) and the l1 norm that autograd finds: logits (N, V), ids (N,) -> float.

    Advantages and importance ratios are random. In float64, because 1 - pi cancels; without tokens of 1 - pi <= 1e-9.
    Raises ValueError where no other token is left.
    """
    logits = logits.detach().double().requires_grad_()
    logp = torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None])[:, 0]
    noise = torch.randn(2, len(tokens), generator=torch.Generator().manual_seed(seed)).to(logits)
    adv = noise[0]
    logp_old = logp.detach() - 0.05 * noise[1]
    ratio = (logp - logp_old).exp()
    (gradient,) = torch.autograd.grad((ratio * adv).sum(), logits)  # of the unclipped objective w A
    found = gradient.abs().sum(-1)
    expected = gradient_coefficient(logp.detach(), adv, ratio.detach())
    uncertain = -torch.expm1(logp.detach()) > 1e-9
    if not uncertain.any():
        raise ValueError("the lemma (4) cannot be checked: every token has probability 1")
    return ((found - expected).abs() / expected)[uncertain].max().item()


def check_lemma(seed):
    """Print the largest error of (4) on random tokens, drawn from nearly uniform to nearly certain distributions.

    Raises ValueError where it is above 1e-6.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([0.1, 1.0, 3.0, 5.0]).repeat_interleave(500)  # (2000,): of the logits
    logits = scales[:, None] * torch.randn(2000, 100, generator=generator)  # (2000, 100)
    tokens = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]  # (2000,)
    error = lemma_error(logits, tokens, seed)
    print(f"lemma (4): l1 norm = |wA| 2 (1 - pi) on {len(tokens)} tokens: largest relative error {error:.1e}")
    if error > 1e-6:
        raise ValueError("the lemma (4) fails: the error is above 1e-6")


def histogram_overlap(a, b, weights_a, weights_b, edges):
    """Overlap of the weighted histograms of two samples, (A,) and (B,), in [0, 1].

    Values beyond the edges count in the outermost bins. Equal distributions have overlap 1. Two finite samples of one
    distribution have somewhat less, because chance fills their bins differently.
    """
    counts_a, _ = np.histogram(np.clip(a, edges[0], edges[-1]), edges, weights=weights_a)
    counts_b, _ = np.histogram(np.clip(b, edges[0], edges[-1]), edges, weights=weights_b)
    return np.minimum(counts_a / counts_a.sum(), counts_b / counts_b.sum()).sum()  # (5)


def auc(a, b, weights_a, weights_b):
    """P(x > y) + P(x = y) / 2, for x drawn from a (A,) and y from b (B,) by weight: the area under the ROC curve.

    Equal distributions have 1/2, because a tie counts half. The code uses
    (y < x) + (y = x) / 2 = ((y < x) + (y <= x)) / 2.
    """
    order = np.argsort(b)
    ordered = b[order]
    cumulative_weight = np.concatenate([[0.0], np.cumsum(weights_b[order])])  # [i]: of the i smallest values of b
    below = cumulative_weight[np.searchsorted(ordered, a, side="left")]  # (A,): weight of y < x
    not_above = cumulative_weight[np.searchsorted(ordered, a, side="right")]  # (A,): weight of y <= x
    return np.average((below + not_above) / 2, weights=weights_a) / cumulative_weight[-1]  # (5)


def held_by_top(values, share):
    """The share of sum |values| that the largest `share` of the values, from 0 to 1, hold; 0 if all are 0."""
    ordered = np.sort(np.abs(values))[::-1]
    held = np.concatenate([[0.0], np.cumsum(ordered, dtype=float)])  # [i]: by the i largest
    if held[-1] == 0:
        return 0.0
    return np.interp(share * len(values), np.arange(len(held)), held) / held[-1]


# ------------------------------------------------------------------------------------------ model: sampling and scoring
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


@torch.no_grad()
def rollout(
    model, prompts, group_size, max_new_tokens, eos_ids, n_vocab=None, temperature=1.0, top_p=1.0, generator=None
):
    """Sample group_size responses to each of B prompts, with the log-prob of every token.

    prompts: lists of ids. eos_ids: the ids that end a response. n_vocab: ids at or above it only pad the embedding
    matrix and are never drawn. temperature, top_p, generator: as in sample_tokens; generation_config has no say.
    Returns a dict of tensors, N = B * group_size rows in group order, T tokens of the longest response:
      tokens (N, T), the ending id included; mask (N, T), 1 on response tokens; logp and entropy (N, T), of the full
      softmax, in nats; finished (N,), False where max_new_tokens cut the response.
    """
    was_training = model.training
    model.eval()  # in train mode, gradient checkpointing would switch the cache off
    device = model.device

    # ---- read every prompt once, padded on the left; then repeat what was read for its group
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, W)
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)  # (B, W)
    position = (attention.cumsum(1) - 1).clamp(min=0)  # padding must not shift positions
    out = model(input_ids=ids, attention_mask=attention, position_ids=position, use_cache=True, logits_to_keep=1)
    cache = out.past_key_values
    cache.batch_repeat_interleave(group_size)
    logits = out.logits[:, -1].repeat_interleave(group_size, dim=0)  # (N, V)
    attention = attention.repeat_interleave(group_size, dim=0)  # (N, W)
    position = position[:, -1:].repeat_interleave(group_size, dim=0)  # (N, 1)

    # ---- draw a token for every row that has not ended, until none is left
    n_rows = len(prompts) * group_size
    tokens = torch.zeros(n_rows, max_new_tokens, dtype=torch.long, device=device)
    mask = torch.zeros(n_rows, max_new_tokens, device=device)
    logp = torch.zeros(n_rows, max_new_tokens, device=device)
    entropy = torch.zeros(n_rows, max_new_tokens, device=device)
    finished = torch.zeros(n_rows, dtype=torch.bool, device=device)
    stops = torch.tensor(eos_ids, device=device)
    live = torch.arange(n_rows, device=device)  # the rows still in the batch
    for t in range(max_new_tokens):
        new, new_logp, new_entropy = sample_tokens(logits[:, :n_vocab], temperature, top_p, generator)
        tokens[live, t] = new
        mask[live, t] = 1.0
        logp[live, t] = new_logp
        entropy[live, t] = new_entropy
        ended = torch.isin(new, stops)
        finished[live[ended]] = True
        if ended.all() or t + 1 == max_new_tokens:
            break
        if ended.any():  # rows that have ended leave the batch and the cache
            keep = (~ended).nonzero()[:, 0]
            live = live[keep]
            new = new[keep]
            attention = attention[keep]
            position = position[keep]
            cache.batch_select_indices(keep)
        attention = torch.cat([attention, attention.new_ones(len(new), 1)], dim=1)
        position = position + 1
        out = model(
            input_ids=new[:, None],
            attention_mask=attention,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits = out.logits[:, -1]
    model.train(was_training)
    longest = t + 1
    return {
        "tokens": tokens[:, :longest],
        "mask": mask[:, :longest],
        "logp": logp[:, :longest],
        "entropy": entropy[:, :longest],
        "finished": finished,
    }


@torch.no_grad()
def score_pair(base, rlvr, tokens, mask, temperature=1.0, n_vocab=None, chunk=512):
    """What both models say of each token whose mask is 1, given all before it -> {name: (N, L)}, in nats.

    tokens, mask (N, L), right-padded, the mask of any dtype; entry [i, t] belongs to tokens[i, t] and is 0 where the
    mask is 0. Names: logp_base, logp_rlvr and dlogp, of the token; the other METRICS, over all ids below n_vocab.
    Logits exist for `chunk` tokens at a time, so that no tensor of all tokens times the vocabulary is made. For models
    whose logits are what the head returns (Qwen, Llama), not for those that scale or cap them afterwards (Gemma 2,
    Cohere, Granite).
    Raises ValueError where the shapes differ.
    """
    if tokens.shape != mask.shape:
        raise ValueError(f"want tokens and mask of one shape, not {tuple(tokens.shape)} and {tuple(mask.shape)}")
    base_states = base.base_model(tokens, use_cache=False)[0]  # (N, L, hidden); causal: right padding needs no mask
    rlvr_states = rlvr.base_model(tokens, use_cache=False)[0]
    scored = mask[:, 1:] != 0  # (N, L - 1): the state at t - 1 predicts the token at t
    base_chunks = base_states[:, :-1][scored].split(chunk)
    rlvr_chunks = rlvr_states[:, :-1][scored].split(chunk)
    target_chunks = tokens[:, 1:][scored].split(chunk)
    parts = {name: [] for name in ("logp_base", "logp_rlvr", *METRICS)}
    for base_hidden, rlvr_hidden, targets in zip(base_chunks, rlvr_chunks, target_chunks, strict=True):
        base_logits = base.get_output_embeddings()(base_hidden)[:, :n_vocab].float() / temperature  # (chunk, V)
        rlvr_logits = rlvr.get_output_embeddings()(rlvr_hidden)[:, :n_vocab].float() / temperature
        logp_base = torch.log_softmax(base_logits, dim=-1)
        logp_rlvr = torch.log_softmax(rlvr_logits, dim=-1)
        kl_rlvr_base = kl_divergence(logp_rlvr, logp_base)
        kl_base_rlvr = kl_divergence(logp_base, logp_rlvr)
        parts["logp_base"].append(logp_base.gather(-1, targets[:, None])[:, 0])
        parts["logp_rlvr"].append(logp_rlvr.gather(-1, targets[:, None])[:, 0])
        parts["dlogp"].append(delta_logp(logp_base, logp_rlvr, targets))
        parts["entropy_base"].append(entropy(logp_base))
        parts["entropy_rlvr"].append(entropy(logp_rlvr))
        parts["kl"].append((kl_rlvr_base + kl_base_rlvr) / 2)
        parts["kl_rlvr_base"].append(kl_rlvr_base)
        parts["kl_base_rlvr"].append(kl_base_rlvr)
    where = torch.nn.functional.pad(scored, (1, 0))  # (N, L)
    zeros = torch.zeros(tokens.shape, device=tokens.device)
    return {name: zeros.masked_scatter(where, torch.cat(values)) for name, values in parts.items()}


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


# -------------------------------------------------------------- the tiny world alone: what did the writer choose to do?
class Action(NamedTuple):
    """What the writer of a tiny-world response did at a choice; positions are indices into the response's text."""

    name: str  # "one_at_a_time", "two_at_once", or "guess": the box while operations are left, or three at once
    choices: list  # positions where the writer chose one of these actions
    result: tuple  # (start, end) of the number that the action computes
    connective: int | None  # position of the connective that ends the action; the box has none


def read_actions(prompt, text):
    r"""The actions of a tiny-world response, in order; none for any other prompt. Ends where the text is malformed.

    The text "63*2-2=24; 77-7=70 so \boxed{24,71}" answers the prompt "63*2-2,77-7+2-1?", modulo 100. Its actions:
      two_at_once    63*2-2   choices [0, 4]    result (7, 9)    connective 9
      one_at_a_time  77-7     choices [11, 15]  result (16, 18)  connective 18
      guess          the box  choices [22]      result (29, 34)  connective None: 70+2-1 was not written
    A box with no operations left is no action.
    """
    actions = []
    if not re.fullmatch(r"\d{1,3}([-+*]\d)+,\d{1,3}([-+*]\d)+\?", prompt):
        return actions
    operations_left = [len(re.findall(r"[-+*]", chain)) for chain in prompt.split(",")]  # of each chain not finished
    pattern = re.compile(r"\d{1,3}((?:[-+*]\d)+)=(\d{1,3})(; | [a-z]+ )|\\boxed\{([\d,]+)")
    match = pattern.match(text)
    while match:
        operations, _, _, boxed = match.groups()
        if boxed:
            if operations_left:
                actions.append(Action("guess", [match.start()], match.span(4), None))
        else:
            n_done = len(operations) // 2
            choices = []
            if operations_left:
                choices.append(match.start())  # before the action
            for i in range(1, n_done + 1):  # and after each of its operations, while the chain has more
                if not operations_left:
                    break
                operations_left[0] -= 1
                if operations_left[0] == 0:
                    operations_left.pop(0)
                    break
                choices.append(match.start(1) + 2 * i)
            name = {1: "one_at_a_time", 2: "two_at_once"}.get(n_done, "guess")
            actions.append(Action(name, choices, match.span(2), match.start(3)))
        match = pattern.match(text, match.end())
    return actions


def token_kinds(prompt, pieces):
    """What each token of a tiny-world response is for, a list of strings; "" for each token after any other prompt.

    pieces: the tokens' texts. Kinds: "choice", where the writer chose an action; "arithmetic", the digits of a result;
    "connective", which ends an action and has no consequence; "copy", all else: the problem's text, and punctuation.
    """
    if not re.fullmatch(r"(\d{1,3}([-+*]\d)+[,?]){2}", prompt):
        return [""] * len(pieces)
    kind_at = {}  # of the positions in the text that are not "copy"
    for action in read_actions(prompt, "".join(pieces)):
        for position in action.choices:
            kind_at[position] = "choice"
        for position in range(*action.result):
            kind_at[position] = "arithmetic"
        if action.connective is not None:
            kind_at[action.connective] = "connective"
    kinds = []
    position = 0
    for piece in pieces:
        kinds.append(kind_at.get(position, "copy"))
        position += len(piece)
    return kinds


# ---------------------------------------------------------------------------------------------- experiment: responses
@dataclass
class Response:
    problem: dict  # a row of read_problems
    source: str  # the model that wrote it: "base" or "rlvr"
    ids: list  # its tokens, the ending one included
    text: str  # the same, decoded
    right: bool
    pieces: list = field(default_factory=list)  # the text of each token, once it is scored
    scores: dict = field(default_factory=dict)  # {name: array (T,)}, once it is scored: see score_pair


def sample_responses(model, source, tokenizer, problems, eos_ids, generator, args):
    """args.samples responses to each problem, checked -> list of Response, in group order."""
    out = rollout(
        model,
        [problem["ids"] for problem in problems],
        args.samples,
        args.max_response,
        eos_ids,
        n_vocab=len(tokenizer),
        temperature=args.temperature,
        generator=generator,
    )
    lengths = out["mask"].sum(1).int()  # (N,)
    responses = []
    for i, length in enumerate(lengths.tolist()):
        problem = problems[i // args.samples]
        ids = out["tokens"][i, :length].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        right = is_correct(text, problem["answer"], args.verifier)
        responses.append(Response(problem, source, ids, text, right))
    return responses


def read_responses(path, tokenizer, context, verifier):
    """Responses of a JSONL file, in its order -> list of Response.

    A row is one of read_problems with "response", a text, and "source", "base" or "rlvr". "response_ids", its tokens,
    are those of the text and an end where they are missing; "right" is then what the verifier says. Raises ValueError,
    which names file and line, for other rows, for ids outside the vocabulary, and where prompt and response together
    exceed `context` tokens; also where one of the sources has no response. Rows whose prompt alone fills `context` are
    left out, and counted on the screen.
    """
    known = set(range(len(tokenizer)))
    rows = read_problems(path, tokenizer, math.inf, 0)  # without a limit: one row for every line of the file
    n_left_out = 0
    responses = []
    for number, row in enumerate(rows, start=1):
        where = f"{path}, line {number}"
        room = context - len(row["ids"])
        if room < 1:
            n_left_out += 1
            continue
        if row.get("source") not in SOURCES or not isinstance(row.get("response"), str):
            raise ValueError(f'{where}: want "response": "..." and "source": "base" or "rlvr"')
        text = row["response"].encode("utf-8", "replace").decode()
        if "response_ids" in row:
            ids = row["response_ids"]
            unknown = None  # what stands for unknown text may be an end as well, which a model may draw
        else:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            unknown = tokenizer.unk_token_id
        fits = isinstance(ids, list) and 0 < len(ids) <= room
        if not fits or not all(isinstance(i, int) and i in known and i != unknown for i in ids):
            raise ValueError(f"{where}: want a response of 1 to {room} tokens that the vocabulary has")
        if "right" in row:
            right = bool(row["right"])
        else:
            right = is_correct(text, row["answer"], verifier)
        responses.append(Response(row, row["source"], ids, text, right))
    if n_left_out > 0:
        print(f"{path}: left out {n_left_out} of {len(rows)} responses: the prompt fills the context, {context} tokens")
    if {response.source for response in responses} != set(SOURCES):
        raise ValueError(f'{path}: want responses of both sources, "base" and "rlvr"')
    return responses


def check_run(args):
    """Raises ValueError, before anything is loaded, for a missing file and for a folder that does not fit --resume."""
    for flag, path in (("--data", args.data), ("--responses", args.responses)):
        if path and not Path(path).exists():
            raise ValueError(f"{flag} {path}: no such file")
    config = Path(args.out) / "config.json"
    if args.resume and not config.exists():
        raise ValueError(f"--resume: {args.out} holds no run; leave out --resume to start one there")
    if config.exists() and not args.resume:
        raise ValueError(f"{args.out} holds a run: --resume goes on with it, --out or --seed starts another")
    if args.resume:
        before = json.loads(config.read_text())["args"]
        may_change = ["resume", "out", "micro_batch", "bootstrap"]
        now = asdict(args)
        for name in {**before, **now}:
            if name not in may_change and before.get(name) != now.get(name):
                flag = f"--{name.replace('_', '-')} {before.get(name)}"
                raise ValueError(f"--resume: {args.out} began with {flag}; give the same, or another --out")


def open_run(args):
    """Make the run folder with its config.json; returns the responses that --resume goes on with, [] at first."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    about = {"args": asdict(args), "torch": torch.__version__, "transformers": transformers.__version__}
    (out / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    responses = []
    if args.resume and (out / "responses.jsonl").exists():
        for line in (out / "responses.jsonl").read_text().splitlines():
            row = json.loads(line)
            responses.append(Response(row, row["source"], row["response_ids"], row["response"], row["right"]))
    return responses


def write_jsonl(path, rows):
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_responses(path, responses):
    """Save under another name first: a kill leaves the old file or the new one, never half of one."""
    rows = []
    for response in responses:
        rows.append(
            {
                **response.problem,
                "source": response.source,
                "response": response.text,
                "right": response.right,
                "response_ids": response.ids,
            }
        )
    unfinished = path.with_suffix(".tmp")
    write_jsonl(unfinished, rows)
    unfinished.replace(path)


def pad_responses(responses):
    """tokens and mask, (N, L) both: prompt and response, padded on the right; the mask is 1 on the response."""
    lengths = [len(response.problem["ids"]) + len(response.ids) for response in responses]
    tokens = torch.zeros(len(responses), max(lengths), dtype=torch.long)
    mask = torch.zeros(len(responses), max(lengths))
    for i, response in enumerate(responses):
        tokens[i, : lengths[i]] = torch.tensor(response.problem["ids"] + response.ids)
        mask[i, len(response.problem["ids"]) : lengths[i]] = 1.0
    return tokens, mask


# -------------------------------------------------------------------------------------------------- experiment: tables
def question(response):
    """What tells problems apart: (system prompt, prompt)."""
    return response.problem.get("system", ""), response.problem["prompt"]


def problem_numbers(responses):
    """For each response the number of its problem, from 0 in the order of their first response."""
    number_of = {}
    numbers = []
    for response in responses:
        problem = question(response)
        number_of.setdefault(problem, len(number_of))
        numbers.append(number_of[problem])
    return numbers


def training_advantages(responses):
    """The advantage of each response in a training batch of RLVR's responses, rewards 1 and 0; the base's have 0."""
    groups = {}  # {problem: indices of RLVR's responses to it}
    for i, problem in enumerate(problem_numbers(responses)):
        if responses[i].source == "rlvr":
            groups.setdefault(problem, []).append(i)
    advantages = [0.0] * len(responses)
    for group in groups.values():
        rewards = torch.tensor([[float(responses[i].right) for i in group]])  # (1, G)
        for i, advantage in zip(group, group_advantages(rewards)[0].tolist(), strict=True):
            advantages[i] = advantage
    return advantages


def token_arrays(responses):
    """All tokens of scored responses, as tokens.npz holds them: {name: array (M,)}.

    response: number of the response, from 0, in the order of `responses`. problem: number of the problem, from 0.
    adv: see training_advantages. coefficient: (4) at importance ratio 1, as in the first mini-batch of a step. The
    rest: see score_pair, token_kinds.
    """
    lengths = [len(response.ids) for response in responses]
    kinds = [token_kinds(response.problem["prompt"], response.pieces) for response in responses]
    tokens = {
        "response": np.repeat(np.arange(len(responses)), lengths),
        "source": np.repeat([response.source for response in responses], lengths),
        "problem": np.repeat(problem_numbers(responses), lengths),
        "response_ids": np.concatenate([response.ids for response in responses]),
        "kind": np.concatenate(kinds),
        "adv": np.repeat(training_advantages(responses), lengths),
    }
    for name in ("logp_base", "logp_rlvr", *METRICS):
        tokens[name] = np.concatenate([response.scores[name] for response in responses])
    coefficient = gradient_coefficient(torch.from_numpy(tokens["logp_rlvr"]), torch.from_numpy(tokens["adv"]))
    tokens["coefficient"] = coefficient.numpy()
    return tokens


class Sample(NamedTuple):
    """One metric on the responses of one model: M tokens, R responses."""

    values: np.ndarray  # (M,)
    owners: np.ndarray  # (M,): the response of each token, from 0 to R - 1
    means: np.ndarray  # (R,): mean over the tokens of each response
    sums: np.ndarray  # (R,): sum over them
    problems: np.ndarray  # (R,): number of the problem that each response answers


def sample_of(tokens, source, metric):
    """The Sample of a source, from tokens as in tokens.npz."""
    of_source = tokens["source"] == source
    values = tokens[metric][of_source]
    _, first, owners = np.unique(tokens["response"][of_source], return_index=True, return_inverse=True)
    sums = np.bincount(owners, values)  # (6), of dlogp
    means = sums / np.bincount(owners)
    return Sample(values, owners, means, sums, tokens["problem"][of_source][first])


def separation(rlvr, base, times, edges):
    """Overlap, and AUC of tokens, means and sums over responses. Problem i of the Samples counts times[i] times."""
    rlvr_weights = times[rlvr.problems]  # of each response
    base_weights = times[base.problems]
    weights = (rlvr_weights[rlvr.owners], base_weights[base.owners])  # of each token
    overlap = histogram_overlap(rlvr.values, base.values, *weights, edges)
    auc_token = auc(rlvr.values, base.values, *weights)
    auc_response = auc(rlvr.means, base.means, rlvr_weights, base_weights)
    auc_sum = auc(rlvr.sums, base.sums, rlvr_weights, base_weights)
    return overlap, auc_token, auc_response, auc_sum


def resample_problems(n_problems, resamples, seed):
    """The bootstrap draws as many problems as there are, with replacement -> (resamples, P): how often each is drawn.

    A problem that is drawn twice counts twice, with all its responses.
    """
    chances = np.full(n_problems, 1 / n_problems)
    return np.random.default_rng(seed).multinomial(n_problems, chances, size=resamples).astype(float)


def comparison_row(tokens, metric, edges, resampled):
    """How far RLVR's tokens and the base's differ by one metric (figure 1b), with 95% intervals: a row of the table.

    "auc_response" is the AUC of the mean over a response, "auc_sum" that of the sum. The auc_sum of dlogp is the bound:
    no measure of a response tells more in expectation (6). resampled: see resample_problems.
    """
    rlvr = sample_of(tokens, "rlvr", metric)
    base = sample_of(tokens, "base", metric)
    every_problem_once = np.ones(resampled.shape[1])  # (P,)
    overlap, auc_token, auc_response, auc_sum = separation(rlvr, base, every_problem_once, edges)
    draws = []
    for times in resampled:
        if times[rlvr.problems].any() and times[base.problems].any():  # else one source has no response in this draw
            draws.append(separation(rlvr, base, times, edges))
    if not draws:
        draws.append((overlap, auc_token, auc_response, auc_sum))
    ci95 = np.quantile(draws, [0.025, 0.975], axis=0)  # (2, 4)
    return {
        "overlap": overlap,
        "overlap_ci95": ci95[:, 0].tolist(),
        "auc": auc_token,
        "auc_ci95": ci95[:, 1].tolist(),
        "auc_response": auc_response,
        "auc_response_ci95": ci95[:, 2].tolist(),
        "auc_sum": auc_sum,
        "auc_sum_ci95": ci95[:, 3].tolist(),
    }


def dlogp_row(tokens, source):
    """How dlogp is distributed over the tokens of a source: a row of the table."""
    of_source = tokens["source"] == source
    dlogp = tokens["dlogp"][of_source].astype(float)
    std_cubed = dlogp.std() ** 3
    return {
        "tokens": len(dlogp),
        "responses": len(set(tokens["response"][of_source])),
        "mean": dlogp.mean(),
        "skewness": ((dlogp - dlogp.mean()) ** 3).mean() / std_cubed if std_cubed > 0 else 0.0,
        "within 0.1": (np.abs(dlogp) < 0.1).mean(),
        "above 1": (dlogp > 1).mean(),
        "below -1": (dlogp < -1).mean(),
    }


def dlogp_bins(tokens):
    """Share of the tokens and their mean probability under both models, by bin of dlogp (figure 3b): a table."""
    limits = (-4, -2, -1, -0.5, -0.1, 0.1, 0.5, 1, 2, 4)
    names = [f"< {limits[0]}"]
    for low, high in itertools.pairwise(limits):
        names.append(f"{low} to {high}")
    names.append(f">= {limits[-1]}")
    number = np.digitize(tokens["dlogp"].astype(float), limits)  # (M,)
    table = {}
    for i, name in enumerate(names):
        of_bin = number == i
        if of_bin.any():
            table[name] = {
                "share": of_bin.mean(),
                "p_base": np.exp(tokens["logp_base"])[of_bin].mean(),
                "p_rlvr": np.exp(tokens["logp_rlvr"])[of_bin].mean(),
            }
    return table


def gradient_bins(tokens):
    """Shares of the tokens and of the gradient, by bin of RLVR's probability (figure 3a): a table.

    Of the training batch alone: RLVR's groups with right and wrong responses. Without such a group the table is empty.
    """
    in_batch = tokens["adv"] != 0
    if not in_batch.any():
        return {}
    mass = tokens["coefficient"]
    number = np.minimum(np.exp(tokens["logp_rlvr"]) * 10, 9).astype(int)  # (M,)
    table = {}
    for i in range(10):
        of_bin = in_batch & (number == i)
        table[f"{i / 10} to {(i + 1) / 10}"] = {
            "share": of_bin.sum() / in_batch.sum(),
            "mass": mass[of_bin].sum() / mass.sum(),
        }
    return table


def ratio_ci95(ratio, above, below, resampled):
    """95% interval of ratio = sum of above / sum of below, where above and below (P,) are sums over each problem.

    Draws in which the sum of below is 0 are left out. resampled: see resample_problems.
    """
    drawn_above = resampled @ above  # (resamples,)
    drawn_below = resampled @ below
    defined = drawn_below > 0
    if not defined.any():
        return [ratio, ratio]
    return np.quantile(drawn_above[defined] / drawn_below[defined], [0.025, 0.975]).tolist()


def kinds_table(tokens, source, resampled):
    """Size of dlogp by kind of token, in the responses of a source: a table, empty where tokens have no kinds.

    With 95% intervals. "share_of_abs_dlogp" is the kind's share of the change: of the sum of |dlogp| over all tokens.
    """
    of_source = tokens["source"] == source
    problem = tokens["problem"]
    n_problems = resampled.shape[1]
    size = np.abs(tokens["dlogp"].astype(float))
    total = size[of_source].sum()
    totals = np.bincount(problem[of_source], size[of_source], n_problems)  # (P,)
    table = {}
    for kind in KINDS:
        of_kind = of_source & (tokens["kind"] == kind)
        if not of_kind.any():
            continue
        mean = size[of_kind].mean()
        share = size[of_kind].sum() / total if total > 0 else 0.0
        sums = np.bincount(problem[of_kind], size[of_kind], n_problems)  # (P,)
        counts = np.bincount(problem[of_kind], minlength=n_problems)  # (P,)
        table[kind] = {
            "share": of_kind.sum() / of_source.sum(),
            "mean_abs_dlogp": mean,
            "mean_abs_dlogp_ci95": ratio_ci95(mean, sums, counts, resampled),
            "share_of_abs_dlogp": share,
            "share_of_abs_dlogp_ci95": ratio_ci95(share, sums, totals, resampled),
        }
    return table


def summary_tables(tokens, edges, resamples, seed):
    """What summary.json holds: {table: {row: {column: number or interval}}}. edges: of the bins, by metric."""
    resampled = resample_problems(tokens["problem"].max() + 1, resamples, seed)
    sparsity = {}
    for source in SOURCES:
        dlogp = tokens["dlogp"][tokens["source"] == source].astype(float)
        sparsity[f"size of dlogp, {source}"] = {"20%": held_by_top(dlogp, 0.2)}
    return {
        "dlogp": {source: dlogp_row(tokens, source) for source in SOURCES},
        "histograms": {name: comparison_row(tokens, name, edges[name], resampled) for name in METRICS},
        "dlogp_bins": dlogp_bins(tokens),
        "gradient_bins": gradient_bins(tokens),
        "sparsity": sparsity,
        "kinds_base": kinds_table(tokens, "base", resampled),
        "kinds_rlvr": kinds_table(tokens, "rlvr", resampled),
    }


def print_table(title, table):
    """Print {row: {column: number or interval}} as a Markdown table."""
    columns = list(next(iter(table.values())))
    print(f"\n{title}\n")
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    for name, row in table.items():
        cells = [str(np.round(value, 3)) for value in row.values()]
        print(f"| {name} | {' | '.join(cells)} |")


# -------------------------------------------------------------------------------------------------- experiment: figures
def histogram_edges(values):
    """Edges (81,) of 80 bins that leave out the outermost 0.05% of the values on either side."""
    low, high = np.quantile(values, [0.0005, 0.9995])
    return np.linspace(low, max(high, low + 1e-6), 81)


def draw_histograms(path, tokens, edges, table, title):
    """Draw figures 1b and 12 to 15: each metric on RLVR's tokens and on the base's. table: see comparison_row."""
    labels = {  # name of the panel, and of its axis
        "dlogp": ("dlogp", "dlogp (nats)"),
        "entropy_base": ("entropy of the base model", "entropy (nats)"),
        "entropy_rlvr": ("entropy of the RLVR model", "entropy (nats)"),
        "kl": ("KL, mean of both directions", "KL (nats)"),
        "kl_rlvr_base": ("KL(RLVR || base)", "KL (nats)"),
        "kl_base_rlvr": ("KL(base || RLVR)", "KL (nats)"),
    }
    distance = {metric: abs(table[metric]["auc"] - 0.5) for metric in METRICS}
    best = max(distance, key=distance.get)
    bound = table["dlogp"]["auc_sum"]
    verdict = f"{labels[best][0]} tells it best" if distance[best] > 0.02 else "no measure tells it"
    figure = Figure(figsize=(10.5, 6.8), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, metric in zip(axes.flat, METRICS, strict=True):
        bins = edges[metric]
        for source, label, color in (("base", "base model", "gray"), ("rlvr", "RLVR model", "tab:red")):
            values = np.clip(tokens[metric][tokens["source"] == source], bins[0], bins[-1])
            axis.hist(values, bins, density=True, alpha=0.5, color=color, label=f"tokens that the {label} wrote")
        name, xlabel = labels[metric]
        axis.set_title(f"{name}\nAUC {table[metric]['auc']:.2f}, overlap {table[metric]['overlap']:.2f}", fontsize=11)
        axis.set(xlabel=xlabel, yscale="log")
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("density of tokens (log scale)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=11)
    figure.suptitle(
        f"Which model wrote a token? By AUC, {verdict}\n"
        f"{title}; a measure that tells nothing has AUC 0.5 and overlap 1\n"
        f"Of a whole response, dlogp sums to the exact likelihood ratio: AUC {bound:.2f}, the bound",
        fontsize=12,
    )
    figure.savefig(path, dpi=110)


def draw_bars(axis, table, columns):
    """Draw some columns of a table, {key: (label, color)}, side by side for each row."""
    for i, (key, (label, color)) in enumerate(columns.items()):
        heights = [row[key] for row in table.values()]
        axis.bar(np.arange(len(table)) + 0.4 * i, heights, 0.4, label=label, color=color)
    axis.set_xticks(np.arange(len(table)) + 0.2, list(table), rotation=30, ha="right")


def draw_figure_3(path, tokens, tables, title):
    """Draw figures 3a and 3b: the gradient by probability, in the training batch, and probabilities by dlogp."""
    figure = Figure(figsize=(10.5, 7.6), layout="constrained")
    axes = figure.subplot_mosaic([["coefficient", "gradient"], ["probability", "probability"]])
    right = tokens["adv"] > 0
    wrong = tokens["adv"] < 0
    for chosen, verdict, color in ((right, "right (A > 0)", "tab:purple"), (wrong, "wrong (A < 0)", "tab:brown")):
        x = np.exp(tokens["logp_rlvr"][chosen])
        y = tokens["coefficient"][chosen]
        axes["coefficient"].scatter(x, y, s=5, alpha=0.4, label=f"in responses that are {verdict}", color=color)
    axes["coefficient"].set_title("Unlikely tokens get the largest gradients (figure 3a)")
    axes["coefficient"].set(xlabel="probability p under the RLVR model", ylabel="gradient |A| 2 (1 - p) of a token")
    shares = {"share": ("of all tokens", "tab:cyan"), "mass": ("of the whole gradient", "tab:olive")}
    draw_bars(axes["gradient"], tables["gradient_bins"], shares)
    if tables["gradient_bins"]:
        unlikely = list(tables["gradient_bins"].values())[:5]
        share = sum(row["share"] for row in unlikely)
        mass = sum(row["mass"] for row in unlikely)
        axes["gradient"].set_title(f"{share:.0%} of tokens (p < 0.5) have {mass:.0%} of the gradient")
    else:
        axes["gradient"].set_title("No gradient: no problem has right and wrong responses")
    axes["gradient"].set(xlabel="probability p under the RLVR model", ylabel="share")
    probabilities = {"p_base": ("under the base model", "gray"), "p_rlvr": ("under the RLVR model", "tab:red")}
    draw_bars(axes["probability"], tables["dlogp_bins"], probabilities)
    axes["probability"].set_title("How likely the tokens that changed are, before and after RLVR (figure 3b)")
    axes["probability"].set(xlabel="dlogp (nats): less likely on the left, more likely on the right")
    axes["probability"].set(ylabel="mean probability", ylim=(0, 1.3), yticks=np.linspace(0, 1, 6))
    for axis in axes.values():
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9, loc="upper center")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def pick_examples(responses, n_problems):
    """A response of each model to n_problems: a wrong one of the base and a right one of RLVR, where there are such.

    Problems that have both come first. So the examples are not typical.
    """
    groups = {}  # {problem: {source: list of Response}}
    for response in responses:
        group = groups.setdefault(question(response), {"base": [], "rlvr": []})
        group[response.source].append(response)
    learnt = []
    others = []
    for group in groups.values():
        if not group["base"] or not group["rlvr"]:
            continue
        base = min(group["base"], key=lambda response: response.right)
        rlvr = max(group["rlvr"], key=lambda response: response.right)
        if rlvr.right and not base.right:
            learnt.append((base, rlvr))
        else:
            others.append((base, rlvr))
    examples = []
    for base, rlvr in (learnt + others)[:n_problems]:
        examples.append(base)
        examples.append(rlvr)
    return examples


def author_and_verdict(response):
    """Who wrote a response, and is it right: "base model: wrong"."""
    model = "base model" if response.source == "base" else "RLVR model"
    verdict = "right" if response.right else "wrong"
    return f"{model}: {verdict}"


def printable(text):
    r"""The text, its line breaks and the like as escapes: "1,\t2" with a tab -> "1,\\t2"."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def token_colors(dlogp, limit=4.0):
    """Background and text colour of a token: blue where RLVR made it less likely, red where more; full at `limit`."""
    share = min(max(dlogp / limit, -1), 1)
    background = matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * share)
    brightness = np.dot(background[:3], (0.299, 0.587, 0.114))
    return matplotlib.colors.to_hex(background), "white" if brightness < 0.5 else "black"


def draw_tokens(path, examples, width=100):
    """Draw responses, every token on the colour of its dlogp, as far as `width` characters; "..." where more follow."""
    figure = Figure(figsize=(10.5, 1.5 + 0.46 * len(examples)), layout="constrained")
    axis = figure.subplots()
    style = {"fontsize": 9.5, "va": "center", "parse_math": False}
    y = 0
    asked = None  # the question of the row above
    for response in examples:
        if question(response) != asked:
            asked = question(response)
            y += 1.8
            prompt = printable(response.problem["prompt"][-80:])
            problem = f"problem {prompt}    answer {printable(response.problem['answer'][:40])}"
            axis.text(-16, y - 1.2, problem, weight="bold", **style)
        axis.text(-16, y, author_and_verdict(response), **style)
        x = 0
        for token, dlogp in zip(response.pieces, response.scores["dlogp"], strict=True):
            piece = printable(token)
            if x + len(piece) > width:
                axis.text(x + 0.5, y, "...", **style)
                break
            background, color = token_colors(dlogp)
            axis.barh(y, len(piece), 1, x, color=background, edgecolor="white", lw=0.6)
            axis.text(x + len(piece) / 2, y, piece, color=color, family="monospace", ha="center", **style)
            x += len(piece)
        y += 1.25
    axis.set(xlim=(-16, width + 2), ylim=(max(y, 1), -0.2))
    axis.axis("off")
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-4, 4), "RdBu_r")  # as in token_colors
    bar = figure.colorbar(scale, ax=axis, location="bottom", extend="both", shrink=0.5, aspect=40, pad=0.01)
    bar.set_label("dlogp of a token (nats)")
    figure.suptitle(
        "Red: RLVR made this token more likely. Blue: less likely. White: hardly changed.\n"
        "Not a random choice: problems with a wrong response of the base and a right one of RLVR come first.",
        fontsize=12,
    )
    figure.savefig(path, dpi=110)


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>What RLVR changed, token by token</title><style>
body { font: 15px/2 monospace; max-width: 60rem; margin: 2rem auto; padding-bottom: 12rem; overflow-wrap: anywhere }
span { padding: 2px 0; border-right: 1px solid white; white-space: pre-wrap }
span:focus::after { content: attr(title); position: fixed; left: 0; bottom: 0; padding: 1rem; white-space: pre;
  line-height: 1.2; background: white; color: black; border: 2px solid }
</style><h1>What RLVR changed, token by token</h1><p>The colour of a token is its dlogp = log &pi;<sub>RLVR</sub>
&minus; log &pi;<sub>base</sub>: blue tokens became less likely, red ones more. Point at one, or reach it with the tab
key, for all its numbers. The problems are not a random choice: those with a wrong response of the base and a right one
of RLVR come first.</p>"""


def write_page(path, examples):
    """Write one self-contained HTML file: every token on the colour of its dlogp, its numbers as its title."""
    page = PAGE
    for response in examples:
        asked = f"{response.problem['prompt'][-80:]!r}, answer {response.problem['answer']!r}"
        page += f"\n<h2>{html.escape(f'{author_and_verdict(response)}. Problem {asked}')}</h2><p>"
        for t, token in enumerate(response.pieces):
            piece = printable(token)
            lines = [f"token {t}: {piece} (id {response.ids[t]})"]
            for name in ("logp_base", "logp_rlvr", *METRICS):
                lines.append(f"{name:13}{response.scores[name][t]:+.4f}")
            background, color = token_colors(response.scores["dlogp"][t])
            title = html.escape("\n".join(lines))
            style = f"background:{background};color:{color}"
            page += f'<span tabindex="0" style="{style}" title="{title}">{html.escape(piece)}</span>'
    path.write_text(page, encoding="utf-8")


def main(args):
    if args.check:
        check_lemma(args.seed)
        return

    # ---- models and problems first, so that errors come early
    check_run(args)
    transformers.utils.logging.disable_progress_bar()
    # cuDNN's attention is off: it plans anew for every shape of its input, and every decoded token is a new shape
    torch.backends.cuda.enable_cudnn_sdp(False)
    out = Path(args.out)
    device = args.device
    base, rlvr, tokenizer = load_pair(args.base, args.rlvr, device)
    models = {"base": base, "rlvr": rlvr}
    context = min(base.config.max_position_embeddings, rlvr.config.max_position_embeddings)
    problems = read_problems(args.data, tokenizer, context, args.max_response)[: args.problems or None]
    eos_ids = end_ids(tokenizer, base, rlvr)
    given = []
    if args.responses:
        given = read_responses(args.responses, tokenizer, context, args.verifier)
    saved = open_run(args)

    # ---- 1. sample: both models answer the same problems, a batch of them at a time
    if args.responses:
        responses = given
    else:
        responses = saved
        n_batches = math.ceil(len(problems) / args.gen_batch)
        for number, source in enumerate(SOURCES):
            n_saved = sum(response.source == source for response in responses)
            n_done = n_saved // args.samples  # problems that were answered before --resume
            for start in tqdm(range(n_done, len(problems), args.gen_batch), desc=f"sample, {source}", unit="batch"):
                # each batch has a generator of its own, so that a resumed run draws what an unbroken one would have;
                # the large factor keeps the batches of two seeds apart
                batch_number = number * n_batches + start // args.gen_batch
                generator = torch.Generator(device).manual_seed(args.seed * 1_000_003 + batch_number)
                batch = problems[start : start + args.gen_batch]
                model = models[source]
                responses.extend(sample_responses(model, source, tokenizer, batch, eos_ids, generator, args))
                save_responses(out / "responses.jsonl", responses)

    # ---- 2. score: both models on the same tokens, in batches of similar length
    by_length = sorted(responses, key=lambda response: len(response.problem["ids"]) + len(response.ids))
    for start in tqdm(range(0, len(by_length), args.micro_batch), desc="score", unit="batch"):
        batch = by_length[start : start + args.micro_batch]
        padded, mask = pad_responses(batch)
        scores = score_pair(base, rlvr, padded.to(device), mask.to(device), args.temperature, len(tokenizer))
        for name, tensor in scores.items():
            values = tensor.cpu()  # (N, L)
            for i, response in enumerate(batch):
                response.scores[name] = values[i][mask[i] != 0].numpy()
        for response in batch:
            response.pieces = [tokenizer.decode([token]) for token in response.ids]
    tokens = token_arrays(responses)
    np.savez_compressed(out / "tokens.npz", **tokens)

    # ---- 3. count
    edges = {metric: histogram_edges(tokens[metric]) for metric in METRICS}
    tables = summary_tables(tokens, edges, args.bootstrap, args.seed)
    (out / "summary.json").write_text(json.dumps(tables, indent=2, default=float) + "\n")
    for name, table in tables.items():
        if table:
            print_table(name, table)
    bound = tables["histograms"]["dlogp"]["auc_sum"]
    print(
        f"\nthe bound for whole responses, by the Neyman-Pearson lemma: AUC {bound:.3f}, auc_sum of dlogp, which is the"
        " exact log-likelihood ratio"
    )

    # ---- 4. draw
    pair = f"{short_name(args.base)} and {short_name(args.rlvr)}"
    title = f"{pair}, {len(responses):,} responses, {len(tokens['kind']):,} tokens"
    draw_histograms(out / "histograms.png", tokens, edges, tables["histograms"], title)
    draw_figure_3(out / "figure_3.png", tokens, tables, title)
    examples = pick_examples(responses, N_EXAMPLES)
    draw_tokens(out / "tokens.png", examples)
    write_page(out / "tokens.html", examples)
    print(f"\nwrote {out}: open tokens.html and histograms.png; summary.json and tokens.npz have the numbers")


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from the last batch of responses")
    except torch.OutOfMemoryError:
        sys.exit(
            "error: out of GPU memory; in scoring: lower --micro-batch, and go on with --resume;"
            " in sampling: lower --gen-batch, and start again with another --out"
        )
    except (OSError, ValueError, ImportError) as error:  # no such file, full disk, wrong input, missing package
        sys.exit(f"error: {' '.join(str(error).split())[:500]}")
