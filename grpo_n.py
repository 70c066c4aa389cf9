r"""GRPO and GSPO, and learning from mistakes alone: only relative-negative responses give a gradient (GRPO-N, GSPO-N).

What it shows: an algorithm that only lowers what failed does not tell the policy what to repeat. The logit of a failed
token falls, and all others rise in proportion to their probability. So the entropy need not collapse. `--algorithm
grpo-n` and `gspo-n` differ from their parents by one line and by the default learning rate. `--algorithm grpo-p` is the
counterpart: only right responses give a gradient. `diff dapo.py grpo_n.py` shows what differs from DAPO.

  Paper B: "The Debate on RLVR Reasoning Capability Boundary" (arXiv 2510.04028), sections 2 and 4, appendices B.5, C
  GRPO:    "DeepSeekMath" (arXiv 2402.03300)        GSPO: "Group Sequence Policy Optimization" (arXiv 2507.18071)

The equations, tagged (1) to (9) in the code:
  (1) R_i = 1 if the final answer is right, else 0                                                    paper B, section 2
  (2) A_i = (R_i - mean R) / std R over the G responses to one prompt, the same for every token       paper B, section 2
  (3) A_i <- A_i 1[A_i < 0] for the -N variants, after (2): the denominators stay those of the group  paper B, app. B.5
  (4) w_it = pi(y_it) / pi_old(y_it)                                                                  GRPO
  (5) J = 1/G sum_i 1/|y_i| sum_t min(w_it A_i, clip(w_it, 1 - eps, 1 + eps) A_i)                     GRPO
  (6) w_i = exp(1/|y_i| sum_t log(pi(y_it) / pi_old(y_it))), and (5) with w_i for every w_it          GSPO
  (7) - beta KL(pi || pi_ref), estimated by pi_ref/pi - log(pi_ref/pi) - 1 for each token ("k3")      GRPO
  (8) + c H: entropy bonus, the entropy of each token over the full vocabulary                        paper B, app. C.2
  (9) pass@k = E_x[1 - C(n - c, k) / C(n, k)], c of n responses right                                 paper B, section 4

Differences from paper B:
  - The defaults are sized for the tiny model (docs/grpo_n.md has the paper's, and the sweep that chose the rates).
  - (7) and (8) are averaged like (5), over a response's tokens, then over responses; the paper does not say how.
  - GSPO's own paper clips w_i at --eps-low 3e-4 --eps-high 4e-4, paper B at 0.2.
  - All is fp32, on a GPU too, and the model that samples is the one that is trained. In bf16 a weight update of 1e-6
    would be rounded away: neither the samples nor the ratio would change (docs/gpu.md).
  - The old log-probs are not the rollout's: decoding with a cache rounds differently. `token_logprobs` computes them
    anew before the update, on its micro-batches. So in the first optimiser step of a step every ratio is exactly 1.

    python grpo_n.py                                     # GRPO on the tiny Qwen3, two CPU cores
    python grpo_n.py --algorithm grpo-n --out runs/grpo_n/grpo-n
    python grpo_n.py --steps 0 --model tiny/rlvr --out runs/grpo_n/evaluate-rlvr        # pass@k of a checkpoint
    python grpo_n.py --model Qwen/Qwen2.5-0.5B-Instruct --train data/math/train.jsonl --test data/math500/test.jsonl \
        --max-response 1024 --lr 1e-6 --micro-batch 8 --gradient-checkpointing          # one GPU
"""

import json
import math
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.hf_argparser import HfArg

HERE = Path(__file__).resolve().parent
MAX_GRAD_NORM = 1.0  # gradients are clipped to this norm, as in the released code
LR = {"grpo": 4e-4, "grpo-n": 1e-4, "grpo-p": 4e-4, "gspo": 4e-4, "gspo-n": 1e-4}  # tiny model: studies/grpo_n_lr.py


@dataclass
class Args:
    algorithm: Literal["grpo", "grpo-n", "grpo-p", "gspo", "gspo-n"] = HfArg(
        default="grpo", help="-n: negative advantages only; -p: positive ones only"
    )
    model: str = HfArg(default=str(HERE / "tiny/base"), help="base model: a folder, or a name on the hub")
    train: str = HfArg(
        default=str(HERE / "tiny/train.jsonl"), help='training problems, one {"prompt": ..., "answer": ...} a line'
    )
    test: str = HfArg(default=str(HERE / "tiny/test.jsonl"), help="test problems, in the same format")
    out: str = HfArg(default="", help="folder of this run; by default runs/grpo_n/<algorithm>-seed<seed>")
    resume: bool = HfArg(default=False, help="go on from the checkpoint in --out")
    seed: int = HfArg(default=1, help="random seed of sampling and data order")
    device: Literal["cpu", "cuda"] = HfArg(default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    verifier: Literal["exact", "math-verify"] = HfArg(
        default="exact", help="math-verify needs the package of that name"
    )
    # the objective
    eps_low: float = HfArg(default=0.2, help="lower clip range of the ratio")
    eps_high: float = HfArg(default=0.2, help="upper clip range of the ratio")
    kl_coef: float = HfArg(default=1e-3, help="beta of the KL to the frozen base model; 0: none")
    entropy_coef: float = HfArg(default=1e-4, help="c of the entropy bonus")
    # rollouts
    steps: int = HfArg(default=140, help="training steps: sample, then update; --steps 0 only evaluates --model")
    prompts_per_step: int = HfArg(default=16, help="prompts that a step trains on")
    group_size: int = HfArg(default=8, help="responses to a prompt, G")
    gen_batch: int = HfArg(default=16, help="prompts decoded side by side")
    max_response: int = HfArg(default=128, help="response limit, in tokens")
    temperature: float = HfArg(default=1.0, help="temperature of sampling and of every log-prob")
    # optimisation
    lr: float = HfArg(default=0.0, help="learning rate of AdamW; 0: the algorithm's own, LR above")
    warmup_steps: int = HfArg(default=10, help="training steps of linear warm-up")
    weight_decay: float = HfArg(default=0.1, help="decoupled weight decay")
    mini_batch: int = HfArg(default=8, help="prompts in an optimiser step")
    micro_batch: int = HfArg(default=32, help="responses in a forward and backward pass; changes memory only")
    gradient_checkpointing: bool = HfArg(default=False, help="save memory: recompute activations in the backward pass")
    # evaluation and files
    eval_every: int = HfArg(default=20, help="steps between evaluations; each also writes a checkpoint")
    eval_problems: int = HfArg(default=150, help="evaluate on the first N test problems; 0: all")
    eval_samples: int = HfArg(default=4, help="responses to a test problem")
    passk_samples: int = HfArg(default=64, help="responses per problem for pass@k of base and trained model; 0: none")
    passk_problems: int = HfArg(default=100, help="pass@k on the first N test problems; 0: all")
    passk_temperature: float = HfArg(default=1.0, help="temperature of pass@k (the paper: 0.6)")
    passk_top_p: float = HfArg(default=1.0, help="top-p of pass@k (the paper: 0.95)")
    save_every: int = HfArg(default=0, help="keep a numbered model every N steps; 0: only the last model")

    def __post_init__(self):
        if self.lr == 0:
            self.lr = LR[self.algorithm]
        above_0 = "prompts_per_step gen_batch max_response temperature lr mini_batch micro_batch"
        for name in f"{above_0} eval_every eval_samples passk_temperature passk_top_p".split():
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: want a number above 0")
        at_least_0 = "seed eps_low eps_high kl_coef entropy_coef steps warmup_steps weight_decay"
        for name in f"{at_least_0} eval_problems passk_samples passk_problems save_every".split():
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: want 0 or more")
        if self.group_size < 2:
            raise ValueError(f"--group-size {self.group_size}: want 2 or more, to compare responses with each other")
        if self.prompts_per_step % self.mini_batch != 0:
            raise ValueError(f"--mini-batch {self.mini_batch}: does not divide --prompts-per-step")
        if not self.out:
            self.out = f"runs/grpo_n/{self.algorithm}-seed{self.seed}"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device cuda: PyTorch finds no CUDA device here")


def parse_args(argv=None):
    """Command line -> Args: every field is a flag."""
    parser = HfArgumentParser(Args, description=__doc__.splitlines()[0])
    return Args(**vars(parser.parse_args(argv)))


# ------------------------------------------------------------------------------------------------ maths: tensors alone
def group_advantages(rewards):
    """Rewards normalised in their group (GRPO; DAPO eq. 9): (B, G) -> (B, G). Equal rewards give exactly 0."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    advantages = centred / (std + 1e-6)  # (2); its std divides by G - 1; that and 1e-6 as released
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return advantages.masked_fill(equal, 0.0)  # rounding would leave tiny values


def negative_only(adv):
    """Keep the advantages below 0, set the rest to 0 (paper B, appendix B.5): any shape -> same shape.

    Takes advantages that were normalised over the whole group; nothing is recentred or rescaled afterwards.
    """
    return adv * (adv < 0)  # (3)


def positive_only(adv):
    """Keep the advantages above 0, set the rest to 0: any shape -> same shape. The counterpart of negative_only.

    What is left raises the right responses and nothing else, as rejection sampling does: positive sample reinforcement,
    "PSR" (arXiv 2506.01347).
    """
    return adv * (adv > 0)


def kl_k3(logp, logp_ref):
    """The k3 estimate of KL(pi || pi_ref) for each token drawn from pi: any shape -> same shape, in nats.

    Its expected gradient on samples of pi is exactly that of KL(pi_ref || pi), which to first order in log pi_ref / pi
    is that of KL(pi || pi_ref). The gradient of the log-ratio alone ("k1") is zero in expectation.
    """
    log_ratio = logp_ref.detach() - logp
    return log_ratio.exp() - log_ratio - 1  # (7)


def grpo_loss(
    logp,
    logp_old,
    adv,
    mask,
    eps_low=0.2,
    eps_high=0.2,
    logp_ref=None,
    kl_coef=0.0,
    entropy=None,
    entropy_coef=0.0,
    n_sequences=None,
    gspo=False,
):
    """Sequence-mean clipped objective (GRPO; GSPO), negated -> (loss, stats).

    logp, logp_old, adv, mask, logp_ref, entropy: (N, T) each; mask is 1 on response tokens, of any dtype. Each response
    is averaged over its own tokens, then responses over n_sequences, default N. For a micro-batch, pass the number of
    its whole optimiser step: then the gradients and stats of the micro-batches add up to those of the step. With
    kl_coef > 0 the k3-KL to logp_ref is subtracted from the objective; entropy_coef times the entropy is added to it.
    stats, weighted like the loss: clip_low and clip_high, the shares whose gradient the clip set to zero; ratio; kl,
    the k3 estimate of KL(old || new), in nats; kl_ref. Raises ValueError where the shapes differ.
    """
    if not logp.shape == logp_old.shape == adv.shape == mask.shape:
        raise ValueError(f"want one shape, not {logp.shape}, {logp_old.shape}, {adv.shape}, {mask.shape}")
    if logp_ref is not None and logp_ref.shape != logp.shape:
        raise ValueError(f"want logp_ref of the shape of logp, {logp.shape}, not {logp_ref.shape}")
    outside = mask == 0
    if n_sequences is None:
        n_sequences = len(logp)
    n_tokens = mask.sum(1, keepdim=True).clamp(min=1)  # (N, 1)
    weight = mask / n_tokens / n_sequences  # (N, T): 1/|y_i| 1/G
    logp = logp.masked_fill(outside, 0.0)
    logp_old = logp_old.detach().masked_fill(outside, 0.0)
    adv = adv.masked_fill(outside, 0.0)
    log_ratio = logp - logp_old
    if gspo:
        log_ratio = log_ratio.sum(1, keepdim=True) / n_tokens  # (6), (N, 1)
    ratio = log_ratio.clamp(max=20).exp()  # (4); above 88, exp is inf, and 0 * inf is nan
    clipped = ratio.clamp(1 - eps_low, 1 + eps_high)
    objective = torch.min(ratio * adv, clipped * adv)  # (5)
    per_token = {
        "clip_low": (adv < 0) & (ratio < 1 - eps_low),
        "clip_high": (adv > 0) & (ratio > 1 + eps_high),
        "ratio": ratio,
        "kl": kl_k3(logp_old, logp),
    }
    if kl_coef > 0:
        per_token["kl_ref"] = kl_k3(logp, logp_ref.masked_fill(outside, 0.0))
        objective = objective - kl_coef * per_token["kl_ref"]
    if entropy_coef > 0:
        objective = objective + entropy_coef * entropy  # (8)
    loss = -(objective * weight).sum()
    stats = {name: (x.detach() * weight).sum() for name, x in per_token.items()}
    return loss, stats


def pass_at_k(n, c, k):
    """Unbiased pass@k (paper B, section 4): the chance that k of n samples, c of them right, hold a right one.

    Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n; got k = {k}, n = {n}, c = {c}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)  # (9)


def answer_entropy(answers):
    """Entropy in nats of the distinct answers to one prompt (paper B, table 4); None, an unreadable one, is a class."""
    counts = torch.tensor(list(Counter(answers).values()), dtype=torch.float64)
    return torch.special.entr(counts / len(answers)).sum().item()


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


def token_logprobs(model, tokens, mask, temperature=1.0, n_vocab=None, chunk=None):
    """Log-prob of each token whose mask is 1, given all before it, and the entropy of its softmax; differentiable.

    tokens, mask (N, L), right-padded, the mask of any dtype -> logp and entropy, (N, L) each, in nats: entry [i, t]
    belongs to tokens[i, t] and is 0 where the mask is 0. The head and the softmax over the ids below n_vocab see
    `chunk` tokens at a time (default: 4096, or 2^27 logits) and are recomputed in the backward pass: no tensor of all
    tokens times the vocabulary is kept. For models whose logits are what the head returns (Qwen, Llama), not for those
    that scale or cap them afterwards (Gemma 2, Cohere, Granite). Raises ValueError where the shapes differ.
    """
    if tokens.shape != mask.shape:
        raise ValueError(f"want tokens and mask of one shape, not {tuple(tokens.shape)} and {tuple(mask.shape)}")
    if chunk is None:
        chunk = max(1, min(4096, 2**27 // model.config.vocab_size))

    def score(hidden, targets):
        logits = model.get_output_embeddings()(hidden)[:, :n_vocab].float() / temperature  # (chunk, V)
        log_z = logits.logsumexp(-1)
        logp = logits.gather(-1, targets[:, None])[:, 0] - log_z
        entropy = log_z - (logits.softmax(-1) * logits).sum(-1)
        return logp, entropy

    states = model.base_model(tokens, use_cache=False)[0]  # (N, L, hidden); causal: right padding needs no mask
    scored = mask[:, 1:] != 0  # (N, L - 1): the state at t - 1 predicts the token at t
    hidden_chunks = states[:, :-1][scored].split(chunk)
    target_chunks = tokens[:, 1:][scored].split(chunk)
    logp_chunks = []
    entropy_chunks = []
    for hidden, targets in zip(hidden_chunks, target_chunks, strict=True):
        logp, entropy = checkpoint(score, hidden, targets, use_reentrant=False)
        logp_chunks.append(logp)
        entropy_chunks.append(entropy)
    where = torch.nn.functional.pad(scored, (1, 0))  # (N, L)
    zeros = torch.zeros(tokens.shape, device=tokens.device)
    return zeros.masked_scatter(where, torch.cat(logp_chunks)), zeros.masked_scatter(where, torch.cat(entropy_chunks))


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


def count_actions(responses):
    """{action: mean number in a response} over a list of Response; empty where there are none, as with other data."""
    counts = {"one_at_a_time": 0, "two_at_once": 0, "guess": 0}
    for response in responses:
        for action in read_actions(response.problem["prompt"], response.text):
            counts[action.name] += 1
    if not any(counts.values()):
        return {}
    return {name: count / len(responses) for name, count in counts.items()}


# --------------------------------------------------------------------------------------------------------- experiment
@dataclass
class Response:
    problem: dict  # a row of read_problems
    ids: list  # the sampled tokens, the ending one included
    text: str  # the same, decoded
    entropy: float  # sum over its tokens, in nats
    right: bool
    reward: float
    finished: bool  # False where --max-response cut it


def sample_and_check(model, tokenizer, problems, group_size, temperature, top_p, generator, args):
    """Sample group_size responses to each problem, check and reward them -> list of Response, in group order."""
    out = rollout(
        model,
        [problem["ids"] for problem in problems],
        group_size,
        args.max_response,
        end_ids(tokenizer, model),
        n_vocab=len(tokenizer),
        temperature=temperature,
        top_p=top_p,
        generator=generator,
    )
    out = {name: tensor.cpu() for name, tensor in out.items()}
    lengths = out["mask"].sum(1).int()  # (N,)
    responses = []
    for i, length in enumerate(lengths.tolist()):
        problem = problems[i // group_size]
        ids = out["tokens"][i, :length].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        right = is_correct(text, problem["answer"], args.verifier)
        reward = 1.0 if right else 0.0  # (1); other rewards go here
        entropy = out["entropy"][i, :length].sum().item()
        finished = out["finished"][i].item()
        responses.append(Response(problem, ids, text, entropy, right, reward, finished))
    return responses


def count_kinds(responses):
    """{"kind/NAME": share} over a list of Response; empty where no problem has "kinds", {NAME: answer}.

    The share is that of the responses to problems with a kind of this NAME whose box holds its answer.
    """
    given = {}  # {name: a bool for each of these responses}
    for response in responses:
        for name, answer in response.problem.get("kinds", {}).items():
            given.setdefault(f"kind/{name}", []).append(is_correct(response.text, answer))
    return {name: sum(bools) / len(bools) for name, bools in given.items()}


def response_metrics(responses):
    """What training and evaluation log about a list of Response: a dict of floats."""
    n_tokens = sum(len(response.ids) for response in responses)
    return {
        "accuracy": sum(response.right for response in responses) / len(responses),
        "length": n_tokens / len(responses),
        "truncated": sum(not response.finished for response in responses) / len(responses),
        "entropy": sum(response.entropy for response in responses) / n_tokens,
        **count_actions(responses),
        **count_kinds(responses),
    }


def evaluate(model, tokenizer, problems, samples, temperature, top_p, seed, args):
    """`samples` responses to every problem -> a list with a group, a list of Response, for each problem.

    The generator is its own: training goes on as if no evaluation had taken place.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    groups = []
    width = max(1, args.gen_batch * args.group_size // samples)  # as many rows side by side as in a rollout
    for start in tqdm(range(0, len(problems), width), desc=f"{samples} samples a problem", leave=False):
        batch = problems[start : start + width]
        responses = sample_and_check(model, tokenizer, batch, samples, temperature, top_p, generator, args)
        for first in range(0, len(responses), samples):
            groups.append(responses[first : first + samples])
    return groups


def mean_and_ci95(values):
    """Mean over problems, and the half-width of its 95% interval (normal); 0 for a single problem."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, 0.0
    return mean, 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5


def problem_result(group):
    """What tables 1 to 4 of paper B need about one problem: a dict, from its list of Response."""
    n_right = sum(response.right for response in group)
    n_tokens = sum(len(response.ids) for response in group)
    answers = []
    for response in group:
        said = extract_answer(response.text)
        answers.append(None if said is None else normalize_answer(said))
    result = {
        "prompt": group[0].problem["prompt"],
        "answer": group[0].problem["answer"],
        "response": group[0].text,
        "right": n_right,
        "length": n_tokens / len(group),
        "answer_entropy": answer_entropy(answers),  # over the distinct answers, in nats
        "token_entropy": sum(response.entropy for response in group) / n_tokens,  # over all tokens, in nats
    }
    k = 1
    while k <= len(group):
        result[f"pass@{k}"] = pass_at_k(len(group), n_right, k)
        k *= 2
    return result


def make_batches(responses, rows_per_update, rows_per_pass):
    """Responses in one padded tensor, and the rows that each update takes.

    Returns tokens and mask, (N, L) both: prompt and response, padded on the right; the mask is 1 on the response. Then
    a list of mini-batches, one optimiser step each, of `rows_per_update` rows. A mini-batch is a list of micro-batches
    (rows, width), one forward and backward pass each: at most `rows_per_pass` rows of similar length, and the length of
    the longest of them.
    """
    lengths = [len(response.problem["ids"]) + len(response.ids) for response in responses]
    tokens = torch.zeros(len(responses), max(lengths), dtype=torch.long)
    mask = torch.zeros(len(responses), max(lengths))
    for i, response in enumerate(responses):
        tokens[i, : lengths[i]] = torch.tensor(response.problem["ids"] + response.ids)
        mask[i, len(response.problem["ids"]) : lengths[i]] = 1.0
    mini_batches = []
    for start in range(0, len(responses), rows_per_update):
        rows = list(range(start, min(start + rows_per_update, len(responses))))
        rows.sort(key=lambda row: lengths[row])
        micro_batches = []
        for first in range(0, len(rows), rows_per_pass):
            part = rows[first : first + rows_per_pass]
            micro_batches.append((part, lengths[part[-1]]))
        mini_batches.append(micro_batches)
    return tokens, mask, mini_batches


def training_order(n_problems, n_needed, seed):
    """Indices of at least n_needed training problems, in the order of training: every epoch is a permutation of all."""
    order = []
    epoch = 0
    while len(order) < n_needed:
        order.extend(np.random.default_rng([seed, epoch]).permutation(n_problems).tolist())
        epoch += 1
    return order


def check_run(args):
    """Raises ValueError, before anything is loaded, for a missing file and for a folder that does not fit --resume."""
    for flag, path in (("--train", args.train), ("--test", args.test)):
        if not Path(path).exists():
            raise ValueError(f"{flag} {path}: no such file")
    config = Path(args.out) / "config.json"
    if args.resume and not config.exists():
        raise ValueError(f"--resume: {args.out} holds no run; leave out --resume to start one there")
    if config.exists() and not args.resume:
        raise ValueError(f"{args.out} holds a run: --resume goes on with it, --out or --seed starts another")
    if args.resume:
        before = json.loads(config.read_text())["args"]
        may_change = ["resume", "out", "steps", "save_every", "gen_batch", "micro_batch", "gradient_checkpointing"]
        now = asdict(args)
        for name in {**before, **now}:
            if name not in may_change and before.get(name) != now.get(name):
                flag = f"--{name.replace('_', '-')} {before.get(name)}"
                raise ValueError(f"--resume: {args.out} began with {flag}; give the same, or another --out")


def open_run(args):
    """Make the run folder with its config.json; returns the checkpoint that --resume goes on from, or None."""
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    about = {"args": asdict(args), "torch": torch.__version__, "transformers": transformers.__version__}
    (out / "config.json").write_text(json.dumps(about, indent=2) + "\n")
    if (out / "checkpoint.pt").exists():
        return torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    return None


def write_jsonl(path, rows):
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_checkpoint(path, state):
    """Save under another name first: a kill leaves the old checkpoint or the new one, never half of one."""
    unfinished = path.with_suffix(".tmp")
    with open(unfinished, "wb") as file:  # an open file, so that a full disk raises OSError
        torch.save(state, file)
    unfinished.replace(path)


def draw_curves(path, rows, title):
    """Draw what the rows of metrics.jsonl have, of either trainer, over training steps."""
    panels = {
        "share of responses right": {
            "accuracy": "training rollouts",
            "test/accuracy": "test problems",
            "test/pass@1": "test problems",
            "test/greedy": "test problems, greedy",
        },
        "entropy (nats per token)": {
            "entropy": "training rollouts",
            "test/entropy": "test problems",
            "test/token_entropy": "test problems",
        },
        "response length (tokens)": {"length": "training rollouts", "test/length": "test problems"},
    }
    colors = {"training rollouts": "tab:gray", "test problems": "black", "test problems, greedy": "tab:red"}
    with_actions = [row for row in rows if "guess" in row and row["step"] > 0]
    kinds = sorted({key for row in rows for key in row if key.startswith("kind/")})
    if kinds and not with_actions:
        panels["share of responses whose answer is the ..."] = {key: key.removeprefix("kind/") for key in kinds}
    elif not with_actions:
        panels["share of tokens that the clip cuts off"] = {"clip_low": "below the range", "clip_high": "above it"}

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2).flat
    for axis, (name, keys) in zip(axes, panels.items(), strict=False):
        axis.set_prop_cycle(color=["tab:purple", "tab:brown", "tab:pink", "tab:olive"])  # of what is not in colors
        for key, label in keys.items():
            measured = [row for row in rows if key in row]
            if not measured:
                continue
            style = {"ms": 3, "lw": 1.2, "label": label, "color": colors.get(label)}
            steps = [row["step"] for row in measured]
            values = [row[key] for row in measured]
            if f"{key}_ci95" in measured[0]:
                axis.errorbar(steps, values, [row[f"{key}_ci95"] for row in measured], fmt="o-", **style)
            else:
                axis.plot(steps, values, "o-" if key.startswith("test/") else "-", **style)
        axis.set(title=name, xlabel="training step", ylim=(0, None))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:  # none with --steps 0
            axis.legend()
    if with_actions:  # the tiny world
        actions = {"guess": "tab:green", "two_at_once": "tab:blue", "one_at_a_time": "tab:orange"}
        totals = [sum(row[name] for name in actions) for row in with_actions]
        steps = [row["step"] for row in with_actions]
        shares = [[row[name] / total for row, total in zip(with_actions, totals, strict=True)] for name in actions]
        names = [name.replace("_", " ") for name in actions]
        axes[3].stackplot(steps, shares, labels=names, colors=list(actions.values()), alpha=0.85)
        axes[3].set(title="share of the actions in training responses", xlabel="training step", ylim=(0, 1))
        axes[3].margins(x=0)
        axes[3].legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main(args):
    # ---- models and problems first, so that errors come early
    check_run(args)
    transformers.utils.logging.disable_progress_bar()
    # cuDNN's attention would plan anew for every shape, and every decoded token is a new shape
    torch.backends.cuda.enable_cudnn_sdp(False)
    out = Path(args.out)
    device = args.device
    G = args.group_size
    try:
        tokenizer = load_tokenizer(args.model)
        policy = load_model(args.model, device)
    except ValueError as error:
        raise ValueError(f"--model {error}") from None
    reference = load_model(args.model, device) if args.kl_coef > 0 else None
    context = policy.config.max_position_embeddings
    train = read_problems(args.train, tokenizer, context, args.max_response)
    test = read_problems(args.test, tokenizer, context, args.max_response)
    saved = open_run(args)

    # ---- optimiser, data order, generator, log; a checkpoint puts all of them back
    if args.gradient_checkpointing:
        policy.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(policy.parameters(), args.lr, weight_decay=args.weight_decay, fused=device == "cuda")
    generator = torch.Generator(device).manual_seed(args.seed)
    order = training_order(len(train), args.steps * args.prompts_per_step, args.seed)
    cursor = 0  # how many problems of `order` were sampled
    metrics = []
    samples = []
    if saved:
        policy.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        cursor = saved["cursor"]
        metrics = saved["metrics"]
        samples = saved["samples"]
        saved = None  # frees its memory

    first_step = len(metrics)
    bar = tqdm(range(first_step, args.steps + 1), initial=first_step, total=args.steps + 1, unit="step")
    for step in bar:
        row = {"step": step}
        responses = []
        if step > 0:  # step 0 only evaluates the base model
            # ---- 1. sample and check a fixed number of groups, whether they can teach or not: no dynamic sampling
            end = cursor + args.prompts_per_step
            while cursor < end:
                problems = [train[i] for i in order[cursor : min(cursor + args.gen_batch, end)]]
                cursor += len(problems)
                sampling = (args.temperature, 1.0, generator)  # no top-p
                responses.extend(sample_and_check(policy, tokenizer, problems, G, *sampling, args))
            row["reward"] = sum(response.reward for response in responses) / len(responses)
            row.update(response_metrics(responses))

        if responses:
            # ---- 2. old log-probs, then advantages
            tokens, mask, mini_batches = make_batches(responses, args.mini_batch * G, args.micro_batch)
            tokens = tokens.to(device)  # (N, L)
            mask = mask.to(device)  # (N, L)
            logp_old = torch.zeros_like(mask)
            logp_ref = torch.zeros_like(mask)
            policy.train()  # gradient checkpointing works in train mode only
            for micro_batches in mini_batches:
                for rows, width in micro_batches:
                    inputs = (tokens[rows, :width], mask[rows, :width], args.temperature, len(tokenizer))
                    with torch.no_grad():
                        logp_old[rows, :width], _ = token_logprobs(policy, *inputs)
                        if reference is not None:
                            logp_ref[rows, :width], _ = token_logprobs(reference, *inputs)
            rewards = torch.tensor([response.reward for response in responses], device=device).view(-1, G)  # (B, G)
            adv = group_advantages(rewards)  # (B, G)
            if args.algorithm.endswith("-n"):
                adv = negative_only(adv)
            elif args.algorithm.endswith("-p"):
                adv = positive_only(adv)
            row["active"] = (adv != 0).float().mean().item()  # share of the responses that give a gradient
            adv = adv.view(-1, 1).expand_as(mask)  # (N, L)

            # ---- 3. update: an optimiser step per mini-batch; all its micro-batches divide by the same count
            lr = args.lr * min(1.0, step / max(1, args.warmup_steps))
            optimizer.param_groups[0]["lr"] = lr
            totals = {"grad_norm": 0.0}
            for micro_batches in mini_batches:
                n_sequences = sum(len(rows) for rows, _ in micro_batches)
                for rows, width in micro_batches:
                    inputs = (tokens[rows, :width], mask[rows, :width], args.temperature, len(tokenizer))
                    logp, entropy = token_logprobs(policy, *inputs)
                    loss, stats = grpo_loss(
                        logp,
                        logp_old[rows, :width],
                        adv[rows, :width],
                        mask[rows, :width],
                        args.eps_low,
                        args.eps_high,
                        logp_ref[rows, :width],
                        args.kl_coef,
                        entropy,
                        args.entropy_coef,
                        n_sequences,
                        gspo=args.algorithm.startswith("gspo"),
                    )
                    loss.backward()
                    stats["loss"] = loss.detach()
                    for name, value in stats.items():
                        totals[name] = totals.get(name, 0.0) + value.item()
                norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)
                if not norm.isfinite():
                    raise ValueError(f"step {step}: the gradient is not finite; a lower --lr may help")
                totals["grad_norm"] += norm.item()
                optimizer.step()
                optimizer.zero_grad()
            row["lr"] = lr
            for name, total in totals.items():
                row[name] = total / len(mini_batches)  # the mean over the optimiser steps
            if device == "cuda" and step == max(first_step, 1):
                tqdm.write(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")

        # ---- 4. evaluate
        at_checkpoint = step % args.eval_every == 0 or step == args.steps
        if at_checkpoint:
            problems = test[: args.eval_problems or None]
            seed = args.seed + 1_000_003
            groups = evaluate(policy, tokenizer, problems, args.eval_samples, args.temperature, 1.0, seed, args)
            results = [problem_result(group) for group in groups]
            for name in results[0]:
                if name not in ("prompt", "answer", "response", "right"):
                    mean, ci95 = mean_and_ci95([result[name] for result in results])
                    row[f"test/{name}"] = mean
                    row[f"test/{name}_ci95"] = ci95
            greedy = evaluate(policy, tokenizer, problems, 1, 0.0, 1.0, seed, args)
            row["test/greedy"], row["test/greedy_ci95"] = mean_and_ci95([group[0].right for group in greedy])
            for result in results[:5]:
                samples.append({"step": step, **result})
            tqdm.write(f"step {step:4d}   {problems[0]['prompt'][-60:]!r} -> {groups[0][0].text[-90:]!r}")

        # ---- 5. log and save; the checkpoint comes last
        metrics.append(row)
        write_jsonl(out / "metrics.jsonl", metrics)
        write_jsonl(out / "samples.jsonl", samples)
        bar.set_postfix(
            {key: f"{row[key]:.3g}" for key in ("accuracy", "length", "entropy", "grad_norm") if key in row}
        )
        if step > 0 and args.save_every > 0 and step % args.save_every == 0:
            policy.save_pretrained(out / f"model_{step:06d}")
            tokenizer.save_pretrained(out / f"model_{step:06d}")
        if step == args.steps:
            policy.save_pretrained(out / "model")
            tokenizer.save_pretrained(out / "model")
        if at_checkpoint:
            draw_curves(
                out / "curves.png",
                metrics,
                f"grpo_n.py on {short_name(args.model)}, --algorithm {args.algorithm}, --seed {args.seed}",
            )
            state = {
                "model": policy.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "cursor": cursor,
                "metrics": metrics,
                "samples": samples,
            }
            save_checkpoint(out / "checkpoint.pt", state)

    # ---- 6. pass@k, answer-level and token-level entropy of the base and of the trained model
    names = []
    if args.passk_samples > 0:
        names.append(args.model)
        if args.steps > 0:
            names.append(str(out / "model"))
    results_of = {}
    for name in names:
        model = load_model(name, device)
        problems = test[: args.passk_problems or None]
        sampling = (args.passk_samples, args.passk_temperature, args.passk_top_p, args.seed + 2_000_003)
        results = [problem_result(group) for group in evaluate(model, tokenizer, problems, *sampling, args)]
        results_of[short_name(name)] = results
        for key in results[0]:
            if key.startswith("pass@") or key.endswith("entropy"):
                mean, ci95 = mean_and_ci95([result[key] for result in results])
                print(f"{short_name(name)}  {key:15s} {mean:.3f} ± {ci95:.3f}")
        table = {"samples": args.passk_samples, "models": results_of}
        (out / "passk.json").write_text(json.dumps(table) + "\n")
    print(f"wrote {out}: open curves.png; metrics.jsonl has the numbers, samples.jsonl responses, model/ the model")


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on from the last checkpoint")
    except torch.OutOfMemoryError:
        sys.exit("error: out of GPU memory; lower --micro-batch or --gen-batch, and go on with --resume")
    except (OSError, ValueError, ImportError) as error:  # no such file, full disk, wrong input, missing package
        sys.exit(f"error: {' '.join(str(error).split())[:500]}")
