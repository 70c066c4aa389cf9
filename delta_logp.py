"""What RLVR changed, token by token: the signed log-probability difference between a base model and its RLVR model.

Both models answer the same problems, and both score every token of both answers. Entropy and KL say where two models
differ, dlogp also in which direction. Most tokens have not changed at all; in the tiny world, the few that have sit at
the forks (how far to leap?) and not in the arithmetic. The run ends with a page of coloured tokens.

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), sections 3.1 and 3.3

  (1) dlogp(y_t) = log pi_RL(y_t | x, y_<t) - log pi_base(y_t | x, y_<t), of a token, in nats           eq. 1
  (2) H = -sum_v pi_v log pi_v, of base and of RL, v over the whole vocabulary                          section 3.1
  (3) KL(RL||base) = sum_v pi_RL,v log (pi_RL,v / pi_base,v), KL(base||RL), and their mean              section 3.1
  (4) |dJ/dz|_1 = |w A| 2 (1 - pi(y_t)), the gradient coefficient: z logits of an unclipped token,      lemma, 3.3
      w its importance ratio, A its advantage
  (5) overlap = sum over bins of min(share of RL's tokens, share of base's tokens), 1: no difference    ours
      AUC = P(a token of RL's has the larger value), 1/2: no difference

The sign of (1) is no surprise: over RL's own tokens its expectation is KL(RL||base) >= 0, over the base's own tokens
-KL(base||RL) <= 0. How far the histograms part, and at how few tokens, is what one has to measure. The paper does so by
eye; overlap and AUC have 95% intervals, by bootstrap over problems, as what answers one problem is not independent.

    python delta_logp.py                       # tiny pair on two CPU cores, under a minute
    python delta_logp.py --check               # the lemma (4) against autograd on the RLVR model's own logits
    python delta_logp.py --base Qwen/Qwen2.5-1.5B --rlvr Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B \\
        --data data/aime24/test.jsonl --max-response 4096 --micro-batch 4                                    # one GPU
"""

import argparse
import html
import itertools
import json
import re
import sys
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import matplotlib
import numpy as np
import torch
import transformers
from matplotlib.figure import Figure
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

SOURCES = ("base", "rlvr")  # who wrote a response
METRICS = ("dlogp", "entropy_base", "entropy_rlvr", "kl", "kl_rlvr_base", "kl_base_rlvr")  # of a token, in nats


@dataclass
class Args:
    base: str = "tiny/base"  # base model: a folder, or a name on the hub
    rlvr: str = "tiny/rlvr"  # the model that RLVR made of it; its tokenizer and chat template serve both
    data: str = "tiny/test.jsonl"  # problems, one {"prompt": ..., "answer": ...} a line
    responses: str = ""  # score these responses instead of sampling: the format of responses.jsonl
    out: str = "runs/delta_logp/default"  # folder of this run
    resume: bool = False  # go on with the responses that --out holds
    seed: int = 1  # of sampling and of the bootstrap
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"  # in bf16 on cuda
    verifier: Literal["exact", "math-verify"] = "exact"  # of final answers; math-verify needs its package
    problems: int = 100  # the first N problems of --data; 0: all
    samples: int = 8  # responses of each model to a problem
    gen_batch: int = 32  # prompts decoded side by side
    max_response: int = 128  # response limit, in tokens
    temperature: float = 1.0  # of sampling and of every log-prob
    micro_batch: int = 64  # responses scored in one forward pass
    bootstrap: int = 200  # resamples of the problems behind each interval
    show: int = 4  # problems whose responses are drawn token by token
    check: bool = False  # check the lemma (4) against autograd instead; exit status 1 if it fails

    def __post_init__(self):
        above_0 = "samples gen_batch max_response temperature micro_batch bootstrap"
        if not all(getattr(self, name) > 0 for name in above_0.split()):
            sys.exit(f"error: {above_0.replace(' ', ', ')} must be above 0")
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


def gradient_coefficient(logp, adv, ratio=1.0):
    """l1 norm of the policy gradient with respect to an unclipped token's logits (paper A, lemma): (...) -> (...).

    Of its log-prob, advantage and importance ratio. Unlikely tokens get up to 2 |ratio * adv|, certain ones nothing.
    """
    return (ratio * adv).abs() * 2 * -torch.expm1(logp)  # (4)


def lemma_error(logits, tokens, seed=0):
    """Largest relative difference between (4) and the l1 norm that autograd finds: logits (N, V), ids (N,) -> float.

    In float64, as 1 - pi cancels; without tokens of 1 - pi < 1e-9. Advantages and importance ratios are random.
    """
    logits = logits.detach().double().requires_grad_()
    logp = torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None])[:, 0]
    adv, log_ratio = torch.randn(2, len(tokens), generator=torch.Generator().manual_seed(seed)).to(logits)
    ratio = (logp - (logp.detach() - 0.05 * log_ratio)).exp()  # pi / pi_old of the unclipped objective w A
    (gradient,) = torch.autograd.grad((ratio * adv).sum(), logits)
    expected, keep = gradient_coefficient(logp.detach(), adv, ratio.detach()), -torch.expm1(logp.detach()) > 1e-9
    return ((gradient.abs().sum(-1) - expected).abs() / expected)[keep].max().item()


def group_advantages(rewards):
    """Rewards normalised in their group (DAPO eq. 9): (B, G) -> (B, G); equal rewards give exactly 0."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    std = (centred.square().sum(dim=1, keepdim=True) / max(rewards.shape[1] - 1, 1)).sqrt()
    equal = rewards.amax(dim=1, keepdim=True) == rewards.amin(dim=1, keepdim=True)
    return (centred / (std + 1e-6)).masked_fill(equal, 0.0)  # n - 1 and 1e-6 as in the released code


def histogram_overlap(a, b, weights_a, weights_b, edges):
    """Overlap of two samples' weighted histograms, in [0, 1]; values beyond the edges count in the outermost bins."""
    a, b = (np.clip(x, edges[0], edges[-1]) for x in (a, b))
    a, b = np.histogram(a, edges, weights=weights_a)[0], np.histogram(b, edges, weights=weights_b)[0]
    return np.minimum(a / a.sum(), b / b.sum()).sum()  # (5)


def auc(a, b, weights_a, weights_b):
    """P(x > y) + P(x = y) / 2, x drawn from a and y from b: the area under the ROC curve of telling a from b."""
    order = np.argsort(b)
    below = np.concatenate([[0.0], np.cumsum(weights_b[order])])
    left, right = (below[np.searchsorted(b[order], a, side=side)] for side in ("left", "right"))
    return np.average((left + right) / 2, weights=weights_a) / below[-1]  # (5)


def held_by_top(values, share):
    """Share of sum |values| that the largest `share` (0 to 1) of the values hold; 0 if they are all 0."""
    held = np.concatenate([[0.0], np.cumsum(np.sort(np.abs(values))[::-1], dtype=float)])
    return np.interp(share * len(values), np.arange(len(held)), held) / (held[-1] or 1.0)


# ------------------------------------------------------------------------------------------ model: sampling and scoring
@torch.no_grad()
def sample(model, prompts, copies, max_new_tokens, eos_ids, n_vocab, temperature, generator):
    """Sample `copies` responses to each of B prompts (lists of ids), as `rollout` of dapo.py does: N = B * copies lists
    of ids, in group order, one of eos_ids included. Ids from n_vocab on, which pad the embedding matrix, are not drawn.
    """
    width, device, cache = max(map(len, prompts)), model.device, None
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)  # (B, W), left-padded
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    position = (attention.cumsum(1) - 1).clamp(min=0)  # padding must not shift positions
    ids, attention, position = (x.repeat_interleave(copies, dim=0) for x in (ids, attention, position))
    live, stops = [[] for _ in ids], torch.tensor(eos_ids, device=device)
    responses = [*live]  # the same lists: `live` loses those that have ended
    for _ in range(max_new_tokens):
        inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": position, "past_key_values": cache}
        out = model(**inputs, use_cache=True, logits_to_keep=1)
        logp, cache = torch.log_softmax(out.logits[:, -1, :n_vocab].float() / temperature, dim=-1), out.past_key_values
        noise = torch.empty_like(logp).exponential_(generator=generator).log()
        ids = (logp - noise).argmax(-1, keepdim=True)  # Gumbel-max: an exact draw from the full softmax
        for response, new in zip(live, ids[:, 0].tolist(), strict=True):
            response.append(new)
        keep = (~torch.isin(ids[:, 0], stops)).nonzero()[:, 0]  # rows that have ended leave batch and cache
        if len(keep) == 0:
            break
        cache.batch_select_indices(keep)
        live, ids = [live[i] for i in keep.tolist()], ids[keep]
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)[keep]
        position = position[keep, -1:] + 1
    return responses


@torch.no_grad()
def score_pair(base, rlvr, rows, temperature=1.0, n_vocab=None, chunk=512):
    """What both models say of the M response tokens of rows, row by row: {name: (M,)}, fp32, in nats.

    rows: dicts with lists of ids, "ids" of the prompt and "response_ids". Names: logp_base and logp_rlvr, of the token,
    and METRICS, over all ids below n_vocab. Logits exist for `chunk` tokens at a time; no tensor exceeds (chunk, V).
    For models whose logits are what the head returns (Qwen, Llama; not Gemma 2, Cohere, Granite).
    """
    tokens = [torch.tensor(row["ids"] + row["response_ids"]) for row in rows]
    scored = [torch.arange(1, len(x)) >= len(row["ids"]) for x, row in zip(tokens, rows, strict=True)]
    tokens, scored = (pad_sequence(x, batch_first=True).to(base.device) for x in (tokens, scored))  # (N, L), (N, L - 1)
    states = [model.base_model(tokens, use_cache=False)[0][:, :-1][scored].split(chunk) for model in (base, rlvr)]
    chunks = []
    for *pair, y in zip(*states, tokens[:, 1:][scored].split(chunk), strict=True):  # the state before y predicts y
        logits = (m.get_output_embeddings()(x)[:, :n_vocab].float() for m, x in zip((base, rlvr), pair, strict=True))
        old, new = (torch.log_softmax(x / temperature, dim=-1) for x in logits)
        forward, backward = kl_divergence(new, old), kl_divergence(old, new)
        logp = {"logp_base": old.gather(-1, y[:, None])[:, 0], "logp_rlvr": new.gather(-1, y[:, None])[:, 0]}
        metrics = delta_logp(old, new, y), entropy(old), entropy(new), (forward + backward) / 2, forward, backward
        chunks.append(logp | dict(zip(METRICS, metrics, strict=True)))
    return {name: torch.cat([metrics[name] for metrics in chunks]).cpu() for name in chunks[0]}


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


def read_responses(path, tokenizer, context, verifier):
    """Rows of read_problems with "response", a text, and "source", "base" or "rlvr"; adds "response_ids" (the tokens of
    the text and an end) and "right" where they are missing.
    """
    rows, known = read_problems(path, tokenizer, context), {*range(len(tokenizer))} - {tokenizer.unk_token_id}
    for number, row in enumerate(rows, start=1):
        if row.get("source") not in SOURCES or not isinstance(row.get("response"), str):
            sys.exit(f'error: {path}, line {number}: want "response": "..." and "source": "base" or "rlvr"')
        text, room = row["response"].encode("utf-8", "replace").decode(), context - len(row["ids"])
        if "response_ids" not in row:
            row["response_ids"] = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = row["response_ids"]
        if not (isinstance(ids, list) and 0 < len(ids) <= room and all(isinstance(i, int) and i in known for i in ids)):
            sys.exit(f"error: {path}, line {number}: want a response of 1 to {room} tokens that the vocabulary has")
        row["right"] = bool(row["right"]) if "right" in row else is_correct(text, row["answer"], verifier)
    if {row["source"] for row in rows} != {*SOURCES}:
        sys.exit(f'error: {path}: want responses of both sources, "base" and "rlvr"')
    return rows


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


def token_kinds(prompt, pieces):
    r"""What each token (a string) of a tiny-world response is for: (T,) of strings, all "" for any other text.

    "fork" chooses how far to leap: the start of a step or of \boxed{ and a guess, and what follows an operand while
    the chain has operations left. "arithmetic": digits of a result. "connective": how a step ends, of no consequence.
    "copy": all else, which repeats the problem or is punctuation.
    """
    text, end, tiny = "".join(pieces), 0, re.fullmatch(r"(\d{1,3}([-+*]\d)+[,?]){2}", prompt)
    kinds = np.full(len(text) + 1, "copy" if tiny else "", dtype="<U10")
    left = [len(re.findall(r"[-+*]", chain)) for chain in prompt.split(",")]  # operations of each chain
    leap = re.compile(r"\d{1,3}((?:[-+*]\d)+)=(\d{1,3})(; | [a-z]+ )|\\boxed\{([\d,]+)")
    while tiny and (step := leap.match(text, end)):
        folded = len(step[1] or "") // 2
        if left:
            starts = [step.start(1) + 2 * i for i in range(1, min(folded, left[0] - 1) + 1)]
            kinds[[end, *starts]] = "fork"
        if left or folded:  # else the box repeats what was worked out
            kinds[slice(*step.span(2 if folded else 4))] = "arithmetic"
        if folded:
            kinds[step.start(3)] = "connective"
            left = [left[0] - folded, *left[1:]] if left and left[0] > folded else left[1:]
        end = step.end()
    return kinds[np.cumsum([0, *map(len, pieces)])[:-1]]


# --------------------------------------------------------------------------------------------------- experiment: tables
def flatten(rows):
    """{name: array (M,) over the tokens of all scored rows}; "adv" is the advantage in a training batch of RLVR's own
    groups, 0 on the base's tokens, and "coefficient" is (4) at importance ratio 1, as in a step's first mini-batch.
    """
    lengths, groups, problems = [len(row["response_ids"]) for row in rows], {}, {}
    for row in rows:
        row["problem"] = problems.setdefault((row.get("system"), row["prompt"]), len(problems))  # counts from 0
        groups.setdefault((row["source"], row["problem"]), []).append(row)
    for (source, _), group in groups.items():
        rewards = torch.tensor([[float(row["right"] and source == "rlvr") for row in group]])
        for row, adv in zip(group, group_advantages(rewards)[0].tolist(), strict=True):
            row["adv"] = adv
    names = ("response_ids", "kind", "logp_base", "logp_rlvr", *METRICS)
    tokens = {name: np.concatenate([row[name] for row in rows]) for name in names}
    tokens |= {name: np.repeat([row[name] for row in rows], lengths) for name in ("source", "problem", "adv")}
    logp, adv = torch.from_numpy(tokens["logp_rlvr"]), torch.from_numpy(tokens["adv"])
    tokens["coefficient"] = gradient_coefficient(logp, adv).numpy()
    return tokens | {"response": np.repeat(np.arange(len(rows)), lengths)}  # the line of responses.jsonl, from 0


def compare_sources(tokens, metric, edges, resamples, seed):
    """Overlap and AUC of RLVR's tokens against the base's by one metric (figure 1b), and the AUC of its mean over a
    response, with 95% percentile intervals; a problem that is drawn twice counts twice, with all its responses.
    """
    of = [tokens["source"] == source for source in ("rlvr", "base")]
    values = [tokens[metric][k] for k in of]
    owners = [np.unique(tokens["response"][k], return_inverse=True)[1] for k in of]  # 0 .. R - 1, of each token
    first = [np.unique(owner, return_index=True)[1] for owner in owners]  # token of each response
    problems = [tokens["problem"][k][i] for k, i in zip(of, first, strict=True)]  # of each response
    means = [np.bincount(owner, x) / np.bincount(owner) for x, owner in zip(values, owners, strict=True)]

    def statistics(times):  # how often each problem was drawn: (P,)
        of_responses = [times[problem] for problem in problems]
        of_tokens = [n[owner] for n, owner in zip(of_responses, owners, strict=True)]
        return histogram_overlap(*values, *of_tokens, edges), auc(*values, *of_tokens), auc(*means, *of_responses)

    rng, row, once = np.random.default_rng(seed), {}, np.ones(tokens["problem"].max() + 1)
    resampled = rng.multinomial(len(once), once / len(once), size=resamples).astype(float)
    both = [times for times in resampled if all(times[problem].any() for problem in problems)]  # has either source
    draws = [statistics(times) for times in both or [once]]
    ends = np.quantile(draws, [0.025, 0.975], axis=0).T.tolist()
    for name, value, ci95 in zip(("overlap", "auc", "auc_response"), statistics(once), ends, strict=True):
        row |= {name: value, f"{name}_ci95": ci95}
    return row


def summarise(tokens, edges, args):
    """The tables of summary.json, {table: {row: {column: number}}}, of tokens, {name: array (M,)}; edges: by metric."""
    d, problem, mass = tokens["dlogp"].astype(float), tokens["problem"], tokens["coefficient"]
    p_base, p_rlvr, size = np.exp(tokens["logp_base"]), np.exp(tokens["logp_rlvr"]), np.abs(d)
    of, tables = {source: tokens["source"] == source for source in SOURCES}, {"dlogp": {}}
    for source, k in of.items():
        x = d[k]
        row = {"tokens": len(x), "responses": len(set(tokens["response"][k])), "mean": x.mean()}
        row |= {"skewness": ((x - x.mean()) ** 3).mean() / (x.std() ** 3 or 1), "within 0.1": (abs(x) < 0.1).mean()}
        tables["dlogp"][source] = row | {"above 1": (x > 1).mean(), "below -1": (x < -1).mean()}
    tables["histograms"] = {m: compare_sources(tokens, m, edges[m], args.bootstrap, args.seed) for m in METRICS}
    tables["dlogp_bins"], limits = {}, (-4, -2, -1, -0.5, -0.1, 0.1, 0.5, 1, 2, 4)
    names = [f"< {limits[0]}", *(f"{a} to {b}" for a, b in itertools.pairwise(limits)), f">= {limits[-1]}"]
    for i, name in enumerate(names):
        if (k := np.digitize(d, limits) == i).any():
            row = {"share": k.mean(), "p_base": p_base[k].mean(), "p_rlvr": p_rlvr[k].mean()}
            tables["dlogp_bins"][name] = row
    tables["gradient_bins"], batch = {}, tokens["adv"] != 0
    for i in range(10 * batch.any()):
        k = batch & (np.minimum(p_rlvr * 10, 9).astype(int) == i)
        row = {"share": k.sum() / batch.sum(), "mass": mass[k].sum() / mass.sum()}
        tables["gradient_bins"][f"{i / 10} to {(i + 1) / 10}"] = row
    tables["sparsity"] = {f"size of dlogp, {source}": {"20%": held_by_top(d[k], 0.2)} for source, k in of.items()}
    for source, kind in itertools.product(SOURCES, ("fork", "arithmetic", "connective", "copy")):
        table, n = tables.setdefault(f"kinds_{source}", {}), len(set(problem[of[source]]))
        if (k := of[source] & (tokens["kind"] == kind)).any():
            total, count, mean = np.bincount(problem[k], size[k]), np.bincount(problem[k]), size[k].mean()
            error = (((total - mean * count) ** 2).sum() * n / max(n - 1, 1)) ** 0.5 / k.sum()
            row = {"share": k.sum() / of[source].sum(), "mean_abs_dlogp": mean, "standard_error": error}
            table[kind] = row | {"share_of_abs_dlogp": size[k].sum() / (size[of[source]].sum() or 1)}
    return tables


def print_table(title, table):
    """A Markdown table of {row: {column: number, or interval}}."""
    columns = next(iter(table.values()))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name, row in table.items():
        print("|", " | ".join([name, *(str(np.round(x, 3)) for x in row.values())]), "|")


# -------------------------------------------------------------------------------------------------- experiment: figures
def draw(path, panels, title, columns=1, size=(5, 3.5)):
    """A figure with a panel for each of {label of the x-axis: function that draws on an axis}."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    for axis, (label, panel) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=True):
        axis.grid(alpha=0.3)
        axis.set_xlabel(label)
        panel(axis)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def draw_figures(out, tokens, tables, edges, title):
    """Figures 1b, 3a and 3b of the paper; arguments as of and from `summarise`."""

    def histogram(axis, metric):
        for source, color in zip(SOURCES, ("tab:blue", "tab:red"), strict=True):
            values = np.clip(tokens[metric][tokens["source"] == source], edges[metric][0], edges[metric][-1])
            axis.hist(values, edges[metric], density=True, alpha=0.5, color=color, label=f"responses of {source}")
        axis.set(yscale="log", ylabel="density of tokens")

    def gradient(axis):
        for sign, label in ((1, "A > 0"), (-1, "A < 0")):
            batch = tokens["adv"] * sign > 0  # RLVR's groups with right and wrong responses
            axis.scatter(np.exp(tokens["logp_rlvr"][batch]), tokens["coefficient"][batch], s=5, alpha=0.4, label=label)
        axis.set_ylabel("gradient coefficient |wA| 2 (1 - pi)")

    def bars(axis, table, columns):
        for i, name in enumerate(columns):
            axis.bar(np.arange(len(table)) + 0.4 * i, [row[name] for row in table.values()], 0.4, label=name)
        axis.set_xticks(range(len(table)), table, rotation=30, ha="right")

    draw(out / "histograms.png", {f"{m} (nats)": partial(histogram, metric=m) for m in METRICS}, title, 3)
    panels = {"probability of the token (figure 3a)": gradient}
    panels["probability of the token"] = partial(bars, table=tables["gradient_bins"], columns=("share", "mass"))
    panels["dlogp (nats, figure 3b)"] = partial(bars, table=tables["dlogp_bins"], columns=("p_base", "p_rlvr"))
    draw(out / "figure_3.png", panels, title, 3)


def token_color(value, limit=4.0):
    """(background, text) colours of a dlogp in nats: blue fell, red rose."""
    color = matplotlib.colormaps["RdBu_r"](0.5 + 0.5 * min(max(value / limit, -1), 1))
    return matplotlib.colors.to_hex(color), "white" if np.dot(color[:3], (0.299, 0.587, 0.114)) < 0.5 else "black"


def draw_tokens(axis, examples, width=100):
    """Responses with every token on the colour of its dlogp, as far as `width` characters."""
    style = {"fontsize": 9, "va": "center", "parse_math": False}
    for y, row in enumerate(examples):
        axis.text(0, 3 * y + 0.5, row["title"], **style)
        starts = np.cumsum([0, *map(len, row["pieces"])])
        for x, piece, value in zip(starts[:-1][starts[1:] <= width], row["pieces"], row["dlogp"], strict=False):
            back, front = token_color(value)
            axis.barh(3 * y + 1.5, len(piece), 1, x, color=back, edgecolor="white", lw=0.6)
            axis.text(x + len(piece) / 2, 3 * y + 1.5, piece, color=front, family="monospace", ha="center", **style)
    axis.set(xlim=(0, width), ylim=(3 * len(examples), 0))
    axis.axis("off")


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>What RLVR changed, token by token</title><style>
body { font: 15px/2 monospace; max-width: 60rem; margin: 2rem auto; padding-bottom: 12rem; overflow-wrap: anywhere }
span { padding: 2px 0; border-right: 1px solid white; white-space: pre-wrap }
span:focus::after { content: attr(title); position: fixed; left: 0; bottom: 0; padding: 1rem; white-space: pre;
  line-height: 1.2; background: white; color: black; border: 2px solid }
</style><h1>What RLVR changed, token by token</h1><p>The colour of a token is its dlogp = log &pi;<sub>RLVR</sub>
&minus; log &pi;<sub>base</sub>: blue tokens became less likely, red ones more. Point at one, or reach it with the tab
key, for all its numbers.</p>"""


def write_page(path, examples):
    """One self-contained HTML file: every token on the colour of its dlogp, all that is known of it as its title."""
    page = PAGE
    for row in examples:
        page += f"\n<h2>{html.escape(row['title'])}</h2><p>"
        for t, piece in enumerate(row["pieces"]):
            back, front = token_color(row["dlogp"][t])
            numbers = [f"{name:13}{row[name][t]:+.4f}" for name in ("logp_base", "logp_rlvr", *METRICS)]
            title = html.escape("\n".join([f"token {t}: {piece} (id {row['response_ids'][t]})", *numbers]))
            style = f"background:{back};color:{front}"
            page += f'<span tabindex="0" style="{style}" title="{title}">{html.escape(piece)}</span>'
    path.write_text(page, encoding="utf-8")


def pick_examples(rows, n):
    """A response of each model to the first n prompts that RLVR gets right and the base wrong, then to any others; with
    a title, and pieces that can be printed.
    """
    groups, pairs = {}, []
    for row in rows:
        groups.setdefault(row["prompt"], {source: [] for source in SOURCES})[row["source"]].append(row)
    for base, rlvr in (group.values() for group in groups.values() if all(group.values())):
        pairs.append([min(base, key=lambda row: row["right"]), max(rlvr, key=lambda row: row["right"])])
    pairs.sort(key=lambda pair: pair[0]["right"] >= pair[1]["right"])
    examples = [row for pair in pairs[:n] for row in pair]
    for row in examples:
        row["pieces"] = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in piece) for piece in row["pieces"]]
        verdict = f"{row['source']}, {'right' if row['right'] else 'wrong'}"
        row["title"] = f"{verdict}: {row['prompt'][-80:]!r}, answer {row['answer']!r}"
    return examples


def check(model, problems, limits, seed):
    """The lemma (4) on the model's own logits, against autograd; exit status 1 if it fails."""
    generator, logits, tokens = torch.Generator(model.device).manual_seed(seed), [], []
    prompts = [problem["ids"] for problem in problems[:64]]
    for prompt, response in zip(prompts, sample(model, prompts, 1, *limits, generator), strict=True):
        ids = torch.tensor([prompt + response], device=model.device)
        with torch.no_grad():
            logits.append(model(ids).logits[0, len(prompt) - 1 : -1, : limits[2]].float() / limits[3])
        tokens.append(ids[0, len(prompt) :])
    logits, tokens = torch.cat(logits)[:2048], torch.cat(tokens)[:2048]
    error = lemma_error(logits, tokens, seed)
    print(f"lemma (4): l1 norm = |wA| 2 (1 - pi) on {len(tokens)} tokens: largest relative error {error:.1e}")
    if error > 1e-6:
        sys.exit("error: the lemma FAILS")


def open_run(args):
    """Make the run folder with its config.json; returns the responses that --resume goes on with."""
    out, config, saved = Path(args.out), Path(args.out, "config.json"), Path(args.out, "responses.jsonl")
    if args.resume != config.exists():
        sys.exit(f"error: {out} holds {'no' * args.resume or 'a'} run: --resume goes on with one, --out names another")
    before = json.loads(config.read_text())["args"] if args.resume else {}
    free = ("resume", "out", "micro_batch", "show", "bootstrap")
    if changed := {k: v for k, v in before.items() if v != getattr(args, k, None) and k not in free}:
        sys.exit(f"error: --resume: {out} was started with {changed}; give the same, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    about = {"args": asdict(args), "torch": torch.__version__, "transformers": transformers.__version__}
    config.write_text(json.dumps(about, indent=2) + "\n")
    return [json.loads(line) for line in saved.read_text().splitlines()] if saved.exists() else []


def main(args):
    """Sample, score, count, draw."""
    # ---- models and problems first: what is wrong with them shows before anything runs
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and every decoding step is a new shape
    names, dtype = (args.base, args.rlvr), torch.bfloat16 if args.device == "cuda" else torch.float32
    other, tokenizer = map(AutoTokenizer.from_pretrained, names)
    if differ := sorted(other.get_vocab().items() ^ tokenizer.get_vocab().items()):
        sys.exit(f"error: {args.base} and {args.rlvr} do not share a vocabulary: {differ[:2]}; RLVR starts from --base")
    models = [AutoModelForCausalLM.from_pretrained(x, dtype=dtype, use_safetensors=True).to(args.device) for x in names]
    ends = np.hstack([tokenizer.eos_token_id, *(model.generation_config.eos_token_id for model in models)]).tolist()
    limits = args.max_response, sorted({*ends} - {None}), len(tokenizer), args.temperature
    context = min(model.config.max_position_embeddings for model in models)
    problems = read_problems(args.data, tokenizer, context - args.max_response)[: args.problems or None]
    if args.check:
        return check(models[1], problems, limits, args.seed)
    given = read_responses(args.responses, tokenizer, context, args.verifier) if args.responses else []
    out, rows = Path(args.out), open_run(args) + given

    # ---- sample: both models answer the same problems, a batch of them at a time
    n_batches = -(-len(problems) // args.gen_batch)
    for number, source in enumerate(SOURCES if not given else ()):
        done = sum(row["source"] == source for row in rows) // args.samples  # problems, in the run that is resumed
        for i in tqdm(range(done, len(problems), args.gen_batch), desc=f"sample, {source}", unit="batch"):
            batch, seed = problems[i : i + args.gen_batch], number * n_batches + i // args.gen_batch
            generator = torch.Generator(args.device).manual_seed(args.seed * 1_000_003 + seed)
            responses = sample(models[number], [problem["ids"] for problem in batch], args.samples, *limits, generator)
            for k, ids in enumerate(responses):
                problem, text = batch[k // args.samples], tokenizer.decode(ids, skip_special_tokens=True)
                right = is_correct(text, problem["answer"], args.verifier)
                rows.append(problem | {"source": source, "response": text, "right": right, "response_ids": ids})
            (out / "responses.tmp").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (out / "responses.tmp").replace(out / "responses.jsonl")  # a kill leaves the old file or the new

    # ---- score: both models on the same tokens, in batches of like length
    ordered = sorted(rows, key=lambda row: len(row["ids"] + row["response_ids"]))
    for i in tqdm(range(0, len(rows), args.micro_batch), desc="score", unit="batch"):
        batch = ordered[i : i + args.micro_batch]
        for name, x in score_pair(*models, batch, args.temperature, len(tokenizer)).items():
            for row, values in zip(batch, x.split([len(row["response_ids"]) for row in batch]), strict=True):
                row[name] = values.numpy()
    for row in rows:
        row["pieces"] = [tokenizer.decode([i]) for i in row["response_ids"]]
        row["kind"] = token_kinds(row["prompt"], row["pieces"])
    tokens = flatten(rows)
    np.savez_compressed(out / "tokens.npz", **tokens)

    # ---- count and draw
    edges = {}
    for metric in METRICS:
        low, high = np.quantile(tokens[metric], [0.0005, 0.9995])
        edges[metric] = np.linspace(low, max(high, low + 1e-6), 81)
    tables, examples = summarise(tokens, edges, args), pick_examples(rows, args.show)
    (out / "summary.json").write_text(json.dumps(tables, indent=2, default=float) + "\n")
    for name, table in tables.items():
        if table:
            print_table(name, table)
    title = f"{args.base} and {args.rlvr}, {len(rows):,} responses, {len(tokens['kind']):,} tokens"
    draw_figures(out, tokens, tables, edges, title)
    draw(out / "tokens.png", {"": partial(draw_tokens, examples=examples)}, "", size=(10, 0.8 + 0.6 * len(examples)))
    write_page(out / "tokens.html", examples)
    print(f"\nfigures, tokens.html, tokens.npz and summary.json are in {out}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; what was sampled is kept, and --resume goes on from it")
    except (OSError, ImportError, torch.OutOfMemoryError) as error:  # no such file, full disk, missing package, memory
        sys.exit(f"error: {' '.join(str(error).split())[:300]}")
