r"""Selective token replacement: how few of RLVR's tokens must the base model take to become as good?

What it shows: two models decode one response. The base draws every token. Where a criterion fires, the token is
resampled from the RLVR model, and both models go on from the same prefix. The criterion that needs the fewest
replacements points at the tokens that matter. In reverse: how few of the base's tokens ruin RLVR's responses?

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), section 3.2 and appendix A.2

The equations, tagged (1) to (5) in the code. A criterion scores the token y that the base has drawn. It fires where
the score is above a threshold:
  (1) dlogp          -dlogp(y), where dlogp(y) = log pi_RL(y) - log pi_base(y)                          Algorithm 1
  (2) entropy        H(pi_base); entropy-rlvr: H(pi_RL)                                                 Algorithm 1
  (3) kl             (KL(RL||base) + KL(base||RL)) / 2; kl-forward: the first, kl-reverse: the second   3.2; A.2
  (4) random         a uniform number between 0 and 1                                                   Algorithm 1
  (5) replacement    y ~ pi_RL                                                                          Algorithm 1
Thresholds are calibrated on other problems, so that all criteria replace the same shares of tokens.

The theory, not in the paper: `speculative` has no threshold. It is the rule of speculative decoding (Leviathan et al.,
arXiv 2211.17192; Chen et al., arXiv 2302.01318), one token at a time:
  (6) keep y with probability min(1, pi_RL(y) / pi_base(y))                                      2211.17192, section 2.3
  (7) else draw it from max(0, pi_RL - pi_base), normalised                                      2211.17192, section 2.3
Each token is then distributed exactly as RLVR's. The share that is replaced is in expectation
  (8) TV(pi_base, pi_RL) = sum_v max(0, pi_RL,v - pi_base,v), averaged over the positions        2211.17192, section 3
and no other exact rule replaces fewer. A threshold may replace fewer tokens, because it need not be exact.

Differs from the released code: distributions are over the full vocabulary; there they are 50 log-probs of each model.
There a token can only be replaced by one of the base's likeliest 50. Each row and position has noise of its own; there
every one-token request has the same seed. The ratio pools all tokens; there it is the mean of each response's own
ratio. Top-p is 1, not 0.7.
All is fp32, on a GPU too: in bf16 the threshold dlogp < -0.1 would be wrong at 9% of the tokens (docs/gpu.md).

    python replace.py                                    # tiny pair on two CPU cores, 7 minutes
    python replace.py --base Qwen/Qwen2.5-Math-1.5B --rlvr sail/Qwen2.5-Math-1.5B-Oat-Zero --top-p 0.7 \
        --test data/math500/test.jsonl --train data/math/train.jsonl --max-response 2048 --rows 96           # one GPU
"""

import itertools
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

FIGURE_2 = ("dlogp", "kl", "entropy", "random")  # the criteria of the paper's figure 2

HERE = Path(__file__).resolve().parent


@dataclass
class Args:
    base: str = HfArg(default=str(HERE / "tiny/base"), help="base model: a folder, or a name on the hub")
    rlvr: str = HfArg(default=str(HERE / "tiny/rlvr"), help="the model that RLVR made of it; its tokenizer serves both")
    test: str = HfArg(default=str(HERE / "tiny/test.jsonl"), help='problems, one {"prompt": ..., "answer": ...} a line')
    train: str = HfArg(
        default=str(HERE / "tiny/train.jsonl"), help="problems that calibrate the thresholds, in the same format"
    )
    out: str = HfArg(default="", help="folder of this run; by default runs/replace/seed<seed>")
    resume: bool = HfArg(default=False, help="go on after the last criterion that --out holds")
    seed: int = HfArg(default=1, help="random seed of sampling and of the bootstrap")
    device: Literal["cpu", "cuda"] = HfArg(default="cuda" if torch.cuda.is_available() else "cpu", help="where to run")
    verifier: Literal["exact", "math-verify"] = HfArg(
        default="exact", help="math-verify needs the package of that name"
    )
    # what is compared
    criteria: str = HfArg(
        default="dlogp,kl,entropy,random,kl-forward,kl-reverse,entropy-rlvr,speculative",
        help="criteria, in this order; speculative, which has no threshold, comes last",
    )
    reverse: str = HfArg(
        default="dlogp,random", help="criteria that put the base's tokens into RLVR's responses; empty: none"
    )
    ratios: str = HfArg(default="0.02,0.05,0.1,0.15,0.2,0.3", help="shares of tokens to replace")
    # decoding
    problems: int = HfArg(default=100, help="the first N problems of --test; 0: all")
    samples: int = HfArg(default=4, help="responses to a problem")
    rows: int = HfArg(default=1600, help="responses decoded side by side, all ratios of a criterion together")
    max_response: int = HfArg(default=128, help="response limit, in tokens")
    temperature: float = HfArg(default=1.0, help="temperature of sampling; scores are those of temperature 1")
    top_p: float = HfArg(default=1.0, help="top-p of sampling (the paper: 0.7)")
    # calibration and statistics
    calibration_problems: int = HfArg(default=48, help="calibrate on the first N problems of --train")
    calibration_passes: int = HfArg(default=2, help="passes over them after the first")
    bootstrap: int = HfArg(default=2000, help="resamples of the problems behind each interval of an area")

    def __post_init__(self):
        for name in "samples rows max_response temperature top_p calibration_problems bootstrap".split():
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: want a number above 0")
        for name in "seed problems calibration_passes".split():
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: want 0 or more")
        if not all(0 < ratio < 1 for ratio in parse_numbers(self.ratios)):
            raise ValueError(f"--ratios {self.ratios}: want numbers between 0 and 1, such as 0.05,0.1")
        for flag, names, known in (
            ("--criteria", self.criteria, [*SCORES, "speculative"]),
            ("--reverse", self.reverse, [*SCORES]),
        ):
            for name in names.split(","):
                if name and name not in known:
                    raise ValueError(f"{flag}: there is no criterion {name!r}; there are {', '.join(known)}")
        if not self.out:
            self.out = f"runs/replace/seed{self.seed}"
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


def sampling_logp(logits, temperature=1.0, top_p=1.0):
    """Log-probs of what one samples from: logits (N, V), a temperature above 0 -> (N, V), -inf beyond top-p.

    Top-p keeps the smallest set of likeliest tokens whose probability reaches top_p; what is left is normalised again.
    """
    logp = torch.log_softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = logp.exp().sort(dim=-1, descending=True)
        probability_before = ordered.cumsum(-1) - ordered
        beyond = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, order, probability_before >= top_p)
        logp = torch.log_softmax(logp.masked_fill(beyond, -torch.inf), dim=-1)
    return logp


def speculative_tokens(logp_base, logp_rlvr, generator=None):
    """The base draws tokens, as many as possible are kept, and all are distributed as RLVR's (speculative decoding).

    logp_base, logp_rlvr: log-probs (N, V) of what each model samples from, cut by top-p already if it is in use.
    Returns tokens (N,); replaced (N,), bool; total_variation (N,), the probability that a token is replaced.
    A replaced token always changes: one that RLVR made less likely has no probability in the residual.
    Sources: Leviathan et al. (arXiv 2211.17192), algorithm 1; Chen et al. (arXiv 2302.01318), algorithm 2.
    """
    p_base = logp_base.exp()
    p_rlvr = logp_rlvr.exp()
    tokens = torch.multinomial(p_base, 1, generator=generator)  # (N, 1)
    keep = (p_rlvr / p_base).gather(-1, tokens)[:, 0]  # (N,): kept with this probability, always if above 1
    residual = (p_rlvr - p_base).clamp(min=0)  # (N, V)
    total_variation = residual.sum(-1)  # (8)
    uniform = torch.rand(len(keep), generator=generator, device=keep.device)  # from 0 to 1, never 1 itself
    replaced = (uniform >= keep) & (total_variation > 0)  # (6); equal up to rounding, they may leave no residual
    if replaced.any():
        tokens[replaced] = torch.multinomial(residual[replaced], 1, generator=generator)  # (7); it normalises
    return tokens[:, 0], replaced, total_variation


# A criterion: log-probs (N, V) of base and RLVR after the same prefixes, and the ids (N,) that the base drew -> (N,).
def score_dlogp(logp_base, logp_rlvr, tokens):
    """High where RLVR made the drawn token less likely: -dlogp, in nats."""
    return -delta_logp(logp_base, logp_rlvr, tokens)


def score_kl(logp_base, logp_rlvr, tokens):
    """High where the models differ, whatever was drawn: mean of both KL divergences, in nats."""
    return (kl_divergence(logp_rlvr, logp_base) + kl_divergence(logp_base, logp_rlvr)) / 2


def score_entropy(logp_base, logp_rlvr, tokens):
    """High where the base is uncertain how to go on, in nats."""
    return entropy(logp_base)


def score_random(logp_base, logp_rlvr, tokens):
    """A uniform number between 0 and 1, from PyTorch's global generator."""
    return torch.rand(tokens.shape, device=tokens.device)  # (4)


def score_kl_forward(logp_base, logp_rlvr, tokens):
    """KL(RLVR || base), in nats: high where RLVR would take what the base would not."""
    return kl_divergence(logp_rlvr, logp_base)


def score_kl_reverse(logp_base, logp_rlvr, tokens):
    """KL(base || RLVR), in nats: high where the base would take what RLVR would not."""
    return kl_divergence(logp_base, logp_rlvr)


def score_entropy_rlvr(logp_base, logp_rlvr, tokens):
    """High where the RLVR model is uncertain how to go on, in nats."""
    return entropy(logp_rlvr)


SCORES = {
    "dlogp": score_dlogp,
    "kl": score_kl,
    "entropy": score_entropy,
    "random": score_random,
    "kl-forward": score_kl_forward,
    "kl-reverse": score_kl_reverse,
    "entropy-rlvr": score_entropy_rlvr,
}


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
    score,
    thresholds,
    max_new_tokens,
    eos_ids,
    n_vocab=None,
    temperature=1.0,
    top_p=1.0,
    generator=None,
):
    """Two models decode one response (paper A, Algorithm 1). The base draws every token; where its score is above the
    threshold, the token is resampled from the RLVR model. Both models are fed the same tokens.

    prompts: B lists of ids. score: a criterion such as score_dlogp; it sees log-probs of temperature 1. thresholds:
    (K,), one for each of the K copies of a prompt; inf never fires, -inf always. The rest is as in dapo.py's rollout.
    Where nothing fires, no noise is drawn for a second token: the tokens are those of rollout.
    score "speculative": speculative_tokens decides; of thresholds only their number K counts, and temperature is above
    0. Its scores are the total variation at each position.
    Returns a dict of tensors, N = B * K rows in group order, T tokens of the longest response:
      tokens (N, T), the ending id included; mask (N, T), 1 on response tokens; replaced (N, T), bool; scores (N, T),
      of the tokens that the base drew.
    """
    device = base.device
    base_decoder = Decoder(base, prompts, len(thresholds), n_vocab)
    rlvr_decoder = Decoder(rlvr, prompts, len(thresholds), n_vocab)
    base_logits = base_decoder.logits  # (N, V)
    rlvr_logits = rlvr_decoder.logits  # (N, V)
    n_rows = len(prompts) * len(thresholds)
    row_thresholds = torch.tensor(thresholds, dtype=torch.float32, device=device).repeat(len(prompts))  # (N,)
    tokens = torch.zeros(n_rows, max_new_tokens, dtype=torch.long, device=device)
    mask = torch.zeros(n_rows, max_new_tokens, device=device)
    replaced = torch.zeros(n_rows, max_new_tokens, dtype=torch.bool, device=device)
    scores = torch.zeros(n_rows, max_new_tokens, device=device)
    stops = torch.tensor(eos_ids, device=device)
    live = torch.arange(n_rows, device=device)  # the rows still in the batch
    for t in range(max_new_tokens):
        if score == "speculative":
            base_logp = sampling_logp(base_logits, temperature, top_p)
            rlvr_logp = sampling_logp(rlvr_logits, temperature, top_p)
            new, fires, new_scores = speculative_tokens(base_logp, rlvr_logp, generator)
        else:
            new, _, _ = sample_tokens(base_logits, temperature, top_p, generator)
            base_logp = torch.log_softmax(base_logits.float(), dim=-1)
            rlvr_logp = torch.log_softmax(rlvr_logits.float(), dim=-1)
            new_scores = score(base_logp, rlvr_logp, new)
            fires = new_scores > row_thresholds[live]
            if fires.any():
                new[fires], _, _ = sample_tokens(rlvr_logits[fires], temperature, top_p, generator)  # (5)
        tokens[live, t] = new
        mask[live, t] = 1.0
        replaced[live, t] = fires
        scores[live, t] = new_scores
        ended = torch.isin(new, stops)
        if ended.all() or t + 1 == max_new_tokens:
            break
        keep = (~ended).nonzero()[:, 0]
        live = live[keep]
        base_logits = base_decoder.step(keep, new[keep])
        rlvr_logits = rlvr_decoder.step(keep, new[keep])
    longest = t + 1
    return {
        "tokens": tokens[:, :longest],
        "mask": mask[:, :longest],
        "replaced": replaced[:, :longest],
        "scores": scores[:, :longest],
    }


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


def at_choices(prompt, pieces):
    """Which tokens of a tiny-world response make a choice: its tokens as strings -> a list of bool, one for each."""
    choices = set()  # positions in the text
    for action in read_actions(prompt, "".join(pieces)):
        choices.update(action.choices)
    found = []
    start = 0
    for piece in pieces:
        found.append(start in choices)
        start += len(piece)
    return found


# --------------------------------------------------------------------------------------------------------- experiment
@dataclass
class Response:
    problem: dict  # a row of read_problems
    pieces: list  # the text of each token, the ending one included
    scores: np.ndarray  # (T,): of each token that the base drew
    replaced: list  # bool, one for each token
    right: bool


def decode_problems(problems, thresholds, seed, job, base, rlvr, score, tokenizer, args):
    """--samples responses to every problem at each of K thresholds -> K lists of Response, in the problems' order."""
    copies = np.repeat(thresholds, args.samples).tolist()
    batch_size = max(1, args.rows // len(copies))
    eos_ids = end_ids(tokenizer, base, rlvr)
    responses = [[] for _ in thresholds]
    for start in tqdm(range(0, len(problems), batch_size), desc=job, unit="batch", leave=False):
        batch = problems[start : start + batch_size]
        out = decode_two(
            base,
            rlvr,
            [problem["ids"] for problem in batch],
            score,
            copies,
            args.max_response,
            eos_ids,
            n_vocab=len(tokenizer),
            temperature=args.temperature,
            top_p=args.top_p,
            generator=torch.Generator(args.device).manual_seed(seed * 1_000_003 + start),
        )
        out = {name: tensor.cpu() for name, tensor in out.items()}
        piece_of = {token: tokenizer.decode([token]) for token in out["tokens"].unique().tolist()}
        lengths = out["mask"].sum(1).int()  # (N,)
        for i, length in enumerate(lengths.tolist()):
            problem = batch[i // len(copies)]
            k = i % len(copies) // args.samples
            ids = out["tokens"][i, :length].tolist()
            pieces = [piece_of[token] for token in ids]
            scores = out["scores"][i, :length].numpy()
            replaced = out["replaced"][i, :length].tolist()
            text = tokenizer.decode(ids, skip_special_tokens=True)
            right = is_correct(text, problem["answer"], args.verifier)
            responses[k].append(Response(problem, pieces, scores, replaced, right))
    return responses


def calibrate(decode, targets, passes):
    """Thresholds (K,) at which shares `targets` of the tokens are replaced: quantiles of the score, found by iteration.

    decode(thresholds, number of the pass) -> for each threshold, the scores of all tokens drawn. The first pass
    replaces nothing. But replaced tokens lead to other prefixes with other scores. So each further pass decodes at the
    last quantiles; the next ones are those of the last two such passes together.
    """
    (scores,) = decode([math.inf], 0)
    thresholds = [float(np.quantile(scores, 1 - target)) for target in targets]
    last = []  # for each threshold, the scores of the pass before
    for number in range(1, passes + 1):
        new = decode(thresholds, number)
        thresholds = []
        for k, target in enumerate(targets):
            scores = new[k]
            if last:
                scores = np.concatenate([last[k], new[k]])
            thresholds.append(float(np.quantile(scores, 1 - target)))
        last = new
    return thresholds


def mean_and_ci95(values):
    """Mean over problems, and the half-width of its 95% interval (normal); 0 for a single problem."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, 0.0
    return mean, 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5


def curve_point(target, threshold, responses, samples):
    """A point of a curve as results.json holds it, from all responses at one threshold, in the problems' order."""
    right = []  # share of right responses to each problem
    for first in range(0, len(responses), samples):
        group = responses[first : first + samples]
        right.append(sum(response.right for response in group) / samples)
    accuracy, accuracy_ci95 = mean_and_ci95(right)
    n_tokens = 0
    n_replaced = 0
    n_replaced_at_choices = 0
    examples = []  # the first response to each of the first five problems
    for i, response in enumerate(responses):
        choices = at_choices(response.problem["prompt"], response.pieces)
        n_tokens += len(response.pieces)
        for replaced, at_choice in zip(response.replaced, choices, strict=True):
            if replaced:
                n_replaced += 1
                n_replaced_at_choices += at_choice
        if i % samples == 0 and i < 5 * samples:
            examples.append(
                {
                    **response.problem,
                    "right": response.right,
                    "tokens": response.pieces,
                    "replaced": response.replaced,
                    "score": response.scores.tolist(),
                    "at_choice": choices,
                }
            )
    return {
        "target": target,
        "threshold": None if threshold is None else str(threshold),  # inf is no JSON
        "ratio": n_replaced / n_tokens,
        "accuracy": accuracy,
        "accuracy_ci95": accuracy_ci95,
        "right": right,
        "at_choices": n_replaced_at_choices / n_replaced if n_replaced else None,
        "samples": examples,
    }


def curve_points(job, seed, base, rlvr, tokenizer, train, test, args):
    """The points of a curve, as results.json holds them. job: "base and RLVR", a criterion, or "reverse-" and one.

    "speculative" has one point, without target and threshold; its "total_variation" is the mean over all tokens.
    """
    if job == "speculative":
        (responses,) = decode_problems(test, [0.0], seed, job, base, rlvr, job, tokenizer, args)
        point = curve_point(None, None, responses, args.samples)
        point["total_variation"] = float(np.mean(np.concatenate([response.scores for response in responses])))
        return [point]
    torch.manual_seed(seed + 10)  # of score_random
    criterion = "dlogp" if job == "base and RLVR" else job.removeprefix("reverse-")
    score = SCORES[criterion]
    if job.startswith("reverse-"):  # the same with the models' roles exchanged
        base, rlvr = rlvr, base

    def decode(thresholds, number):
        responses = decode_problems(train, thresholds, seed + 1 + number, job, base, rlvr, score, tokenizer, args)
        return [np.concatenate([response.scores for response in of_threshold]) for of_threshold in responses]

    targets = parse_numbers(args.ratios)
    if job == "base and RLVR":  # nothing is replaced, and everything
        targets = [0.0, 1.0]
        thresholds = [math.inf, -math.inf]
    elif criterion == "random":
        thresholds = [1 - target for target in targets]
    else:
        thresholds = calibrate(decode, targets, args.calibration_passes)
    responses = decode_problems(test, thresholds, seed, job, base, rlvr, score, tokenizer, args)
    points = []
    for target, threshold, of_threshold in zip(targets, thresholds, responses, strict=True):
        points.append(curve_point(target, threshold, of_threshold, args.samples))
    return points


def ratio_that_reaches(log_ratios, accuracies, level):
    """The smallest ratio at which a curve (K,) reaches an accuracy, linear in log ratio between points; else inf."""
    if accuracies[0] >= level:
        return math.exp(log_ratios[0])
    for k in range(1, len(accuracies)):
        if accuracies[k] >= level:
            return math.exp(np.interp(level, accuracies[k - 1 : k + 1], log_ratios[k - 1 : k + 1]))
    return math.inf


def none_if_infinite(number):
    """A number as JSON has it: inf is None there."""
    return float(number) if math.isfinite(number) else None


def area_and_ci95(areas):
    """{"area", "area_ci95"} of (1 + R,) areas: that of all problems first, then those of R resamples of them."""
    return {"area": float(areas[0]), "area_ci95": np.quantile(areas[1:], [0.025, 0.975]).tolist()}


def comparison_table(rlvr, curves, resamples, seed):
    """How criteria compare: {criterion or "one - other": {"enough", "within 0.05", "area", and their intervals}}.

    rlvr: a point; curves: {criterion: points in the order of their ratios}.
    enough: the smallest measured ratio whose accuracy is within the noise of RLVR's: the 95% interval of the
    difference, paired by problem, reaches 0. None if there is none.
    within 0.05: the smallest ratio, interpolated, whose accuracy is RLVR's minus 0.05; None if none is measured.
    area: mean accuracy over log ratio, where all curves are defined; with its 95% interval (bootstrap over problems).
    """
    if not curves:
        return {}
    n = len(rlvr["right"])
    resampled = np.random.default_rng(seed).integers(n, size=(resamples, n))
    problems = np.vstack([np.arange(n), resampled])  # (1 + R, P): all problems first, then the resamples of them
    rlvr_means = np.array(rlvr["right"])[problems].mean(axis=1)  # (1 + R,)
    means = {}  # of each curve: (K, 1 + R)
    log_ratios = {}  # of each curve: (K,), never falling; a measured ratio of 0 has no logarithm
    table = {}
    for name, curve in curves.items():
        means[name] = np.array([np.array(point["right"])[problems].mean(axis=1) for point in curve])
        log_ratios[name] = np.log(np.maximum.accumulate([max(1e-6, point["ratio"]) for point in curve]))
        enough = []
        for point, point_means in zip(curve, means[name], strict=True):
            lead_of_rlvr = np.quantile(rlvr_means[1:] - point_means[1:], 0.025)
            if lead_of_rlvr <= 0:
                enough.append(point["ratio"])
        reached = []  # in all problems and in each resample
        for point_means, rlvr_mean in zip(means[name].T, rlvr_means, strict=True):
            reached.append(ratio_that_reaches(log_ratios[name], point_means, rlvr_mean - 0.05))
        interval = np.quantile(reached[1:], [0.025, 0.975], method="nearest")  # no mean of a ratio and inf
        table[name] = {
            "enough": min(enough, default=None),
            "within 0.05": none_if_infinite(reached[0]),
            "within 0.05_ci95": [none_if_infinite(bound) for bound in interval],
        }

    low = max(log_ratio[0] for log_ratio in log_ratios.values())
    high = min(log_ratio[-1] for log_ratio in log_ratios.values())
    if low >= high:  # there is no ratio at which all curves are defined
        return table
    grid = np.linspace(low, high, 200)
    areas = {}  # of each curve: (1 + R,)
    for name in curves:
        heights = [np.interp(grid, log_ratios[name], accuracies).mean() for accuracies in means[name].T]
        areas[name] = np.array(heights)
        table[name].update(area_and_ci95(areas[name]))
    for one, other in itertools.pairwise(name for name in FIGURE_2 if name in areas):
        table[f"{one} - {other}"] = area_and_ci95(areas[one] - areas[other])
    return table


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


def draw_curves(path, panels, results, title):
    """Draw accuracy against the share of replaced tokens, with 95% intervals: panels {title: jobs}."""
    labels = {
        "dlogp": "dlogp: RLVR made the token less likely",
        "kl": "KL, mean of both directions",
        "entropy": "entropy of the base",
        "random": "random positions",
        "kl-forward": "KL(RLVR || base)",
        "kl-reverse": "KL(base || RLVR)",
        "entropy-rlvr": "entropy of RLVR",
    }
    colors = {
        "dlogp": "tab:red",
        "kl": "tab:purple",
        "entropy": "tab:brown",
        "random": "tab:olive",
        "kl-forward": "tab:pink",
        "kl-reverse": "tab:cyan",
        "entropy-rlvr": "goldenrod",
    }
    figure = Figure(figsize=(0.9 + 3.3 * max(2, len(panels)), 5.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    base, rlvr = results["base and RLVR"]
    legend = {}  # {name: handle}, one for all panels
    for axis, (name, jobs) in zip(axes, panels.items(), strict=True):
        for point, label, color in ((base, "base model alone", "gray"), (rlvr, "RLVR model alone", "black")):
            low = point["accuracy"] - point["accuracy_ci95"]
            high = point["accuracy"] + point["accuracy_ci95"]
            axis.axhline(point["accuracy"], color=color, lw=1.5, ls="--", label=label)
            axis.axhspan(low, high, color=color, alpha=0.12, lw=0)
        for job in jobs:
            if job == "speculative":
                (point,) = results[job]
                style = {"color": "black", "ls": ":", "lw": 1.5}
                percent = 100 * point["total_variation"]
                axis.axvline(percent, label=f"speculative, exact: E[TV] = {percent:.1f}%", **style)
                continue
            criterion = job.removeprefix("reverse-")
            points = [point for point in results[job] if point["ratio"] > 0]  # a ratio of 0 has no logarithm
            x = [100 * point["ratio"] for point in points]
            y = [point["accuracy"] for point in points]
            half_widths = [point["accuracy_ci95"] for point in points]
            style = {"fmt": "o-", "ms": 4, "capsize": 2, "color": colors[criterion]}
            axis.errorbar(x, y, half_widths, label=labels[criterion], **style)
        axis.set_title(name, fontsize=11)
        axis.set(xlabel="replaced tokens (%)", ylim=(0, 1), xscale="log")
        axis.set_xticks((1, 2, 5, 10, 20, 40), (1, 2, 5, 10, 20, 40))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        handles, names = axis.get_legend_handles_labels()
        legend.update(zip(names, handles, strict=True))
    axes[0].set_ylabel("accuracy: share of responses that are right")
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3, fontsize=10)
    figure.suptitle(f"How accuracy changes when some tokens come from the other model\n{title}", fontsize=12)
    figure.savefig(path, dpi=110)


def main(args):
    # ---- models and problems first, so that errors come early
    check_run(args)
    transformers.utils.logging.disable_progress_bar()
    # cuDNN's attention would plan anew for every shape, and every decoded token is a new shape
    torch.backends.cuda.enable_cudnn_sdp(False)
    out = Path(args.out)
    base, rlvr, tokenizer = load_pair(args.base, args.rlvr, args.device)
    context = min(base.config.max_position_embeddings, rlvr.config.max_position_embeddings)
    test = read_problems(args.test, tokenizer, context, args.max_response)[: args.problems or None]
    train = read_problems(args.train, tokenizer, context, args.max_response)[: args.calibration_problems]
    results = open_run(args)

    # ---- calibrate and decode each criterion
    criteria = [name for name in args.criteria.split(",") if name]
    reverse = [f"reverse-{name}" for name in args.reverse.split(",") if name]
    ratios = parse_numbers(args.ratios)
    print(f"| accuracy (ratio) | {' | '.join(str(ratio) for ratio in ratios)} |")
    print(f"|---|{'|'.join('---' for _ in ratios)}|")
    jobs = ["base and RLVR", *(name for name in criteria if name != "speculative"), *reverse]
    if "speculative" in criteria:  # last, so that the others draw the same numbers with it and without
        jobs.append("speculative")
    for number, job in enumerate(jobs):
        if job not in results:
            seed = args.seed * 1000 + 20 * number
            results[job] = curve_points(job, seed, base, rlvr, tokenizer, train, test, args)
            save_results(out / "results.json", results)
        cells = [job]
        for point in results[job]:
            cells.append(f"{point['accuracy']:.3f} ± {point['accuracy_ci95']:.3f} ({point['ratio']:.3f})")
        tqdm.write(f"| {' | '.join(cells)} |")

    # ---- compare the criteria with each other
    rlvr_point = results["base and RLVR"][1]
    curves = {name: results[name] for name in criteria if name != "speculative"}
    table = comparison_table(rlvr_point, curves, args.bootstrap, args.seed)
    columns = ["", "smallest ratio within RLVR's noise", "ratio of RLVR's accuracy - 0.05", "area"]
    print(f"\n| {' | '.join(columns)} | share of the replacements at choices |\n|---|---|---|---|---|")
    for name, row in table.items():
        cells = [name, "", "", "", ""]
        if name in curves:
            cells[1] = "none" if row["enough"] is None else f"{row['enough']:.3f}"
            low, high = (f"{bound:.3f}" if bound is not None else "none" for bound in row["within 0.05_ci95"])
            reached = row["within 0.05"]
            cells[2] = f"{reached:.3f} [{low}, {high}]" if reached is not None else "none"
            shares = [point["at_choices"] for point in curves[name]]
            cells[4] = ", ".join("-" if share is None else f"{share:.2f}" for share in shares)
        if "area" in row:
            low, high = row["area_ci95"]
            cells[3] = f"{row['area']:.3f} [{low:.3f}, {high:.3f}]"
        print(f"| {' | '.join(cells)} |")
    if "speculative" in criteria:
        (point,) = results["speculative"]
        table["speculative"] = {name: point[name] for name in ("ratio", "total_variation", "accuracy", "accuracy_ci95")}
        print(
            f"\nspeculative: RLVR's distribution exactly, with {point['ratio']:.3f} of the tokens replaced;"
            f" {point['total_variation']:.3f} expected from the distributions"
        )
    (out / "summary.json").write_text(json.dumps(table, indent=2) + "\n")

    # ---- draw
    panels = {
        "The base takes RLVR's tokens (figure 2)": [name for name in criteria if name in (*FIGURE_2, "speculative")],
        "The same by other measures (figure 6)": [name for name in criteria if name == "kl" or name not in FIGURE_2],
        "RLVR takes the base's tokens": reverse,
    }
    panels = {name: jobs for name, jobs in panels.items() if jobs}
    pair = f"{short_name(args.base)} and {short_name(args.rlvr)}"
    title = f"{pair}: {len(test)} problems x {args.samples} responses, top-p {args.top_p:g}"
    draw_curves(out / "replace.png", panels, results, title)
    print(f"\nwrote {out}: open replace.png; summary.json and results.json have the numbers")


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on after the last finished job")
    except torch.OutOfMemoryError:
        sys.exit("error: out of GPU memory; lower --rows, and go on with --resume")
    except (OSError, ValueError, ImportError) as error:  # no such file, full disk, wrong input, missing package
        sys.exit(f"error: {' '.join(str(error).split())[:500]}")
