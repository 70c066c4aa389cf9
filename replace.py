"""Selective token replacement: at which few positions must the base model take RLVR's token to become as good?

What it shows: two models decode one response. The base draws every token; where a criterion fires, the token is drawn
again from the RLVR model, and both go on from the same prefix. A criterion that needs few replacements to make the base
as good as the RLVR model points at the tokens that matter. And in reverse: how few of the base's tokens ruin RLVR's?

  Paper A: "On the Direction of RLVR Updates for LLM Reasoning" (arXiv 2603.22117), section 3.2 and appendix A.2

The equations, tagged in the code. A token y that the base has drawn is replaced if its score passes a threshold:
  (1) entropy        H(pi_base); entropy-rlvr: H(pi_RL)                                                 Algorithm 1
  (2) kl             (KL(RL||base) + KL(base||RL)) / 2; kl-forward: the first, kl-reverse: the second   appendix A.2
  (3) dlogp          log pi_base(y) - log pi_RL(y), which is -dlogp(y): fires where dlogp(y) < tau      Algorithm 1
  (4) random         a uniform number: fires with probability rho                                       Algorithm 1
  (5) replacement    y ~ pi_RL                                                                          Algorithm 1
Thresholds are calibrated on other problems, so that all criteria replace the same shares of tokens.

Differs from the released code: everything is over the full vocabulary, where it sees 50 log-probs of each model; each
row and position has noise of its own, where it seeds every one-token request alike. Top-p is 1 by default, not 0.7.

    python replace.py                                    # tiny pair on two CPU cores, 7 minutes
    python replace.py --base Qwen/Qwen2.5-1.5B --rlvr Open-Reasoner-Zero/Open-Reasoner-Zero-1.5B --top-p 0.7 \\
        --test data/aime24/test.jsonl --train data/math/train.jsonl --max-response 8192 --rows 128           # one GPU
"""

import argparse
import functools
import itertools
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
    base: str = "tiny/base"  # base model: a folder, or a name on the hub
    rlvr: str = "tiny/rlvr"  # the model that RLVR made of it; its tokenizer and chat template serve both
    test: str = "tiny/test.jsonl"  # problems, one {"prompt": ..., "answer": ...} a line
    train: str = "tiny/train.jsonl"  # problems on which the thresholds are calibrated, same format
    out: str = "runs/replace/default"  # folder of this run
    resume: bool = False  # go on after the last criterion that --out holds
    seed: int = 1  # of sampling and of the bootstrap
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"  # in bf16 on cuda
    verifier: Literal["exact", "math-verify"] = "exact"  # of final answers; math-verify needs its package
    # what is compared
    criteria: str = "dlogp,kl,entropy,random,kl-forward,kl-reverse,entropy-rlvr"  # criteria, in this order
    reverse: str = "dlogp,random"  # criteria by which the base's tokens go into RLVR's responses; empty: none
    ratios: str = "0.02,0.05,0.1,0.15,0.2,0.3"  # target shares of replaced tokens
    # decoding, calibration and statistics
    problems: int = 100  # the first N problems of --test; 0: all
    samples: int = 4  # responses to a problem: avg@n
    rows: int = 1600  # responses decoded side by side: all ratios of a criterion, for as many problems as fit
    max_response: int = 128  # response limit, in tokens
    temperature: float = 1.0  # of both models
    top_p: float = 1.0  # nucleus (the paper: 0.7)
    calibration_problems: int = 48  # problems of --train that a threshold is calibrated on
    calibration_passes: int = 2  # passes over them after the first
    bootstrap: int = 2000  # resamples of the problems behind each interval

    def __post_init__(self):
        above_0 = "samples rows max_response temperature top_p calibration_problems bootstrap"
        if not (re.fullmatch(r"(0\.\d+,)*0\.\d+", self.ratios) and all(getattr(self, x) > 0 for x in above_0.split())):
            sys.exit(f"error: want --ratios between 0 and 1, such as 0.05,0.1; {above_0.replace(' ', ', ')} above 0")
        if unknown := {*f"{self.criteria},{self.reverse}".split(",")} - {*SCORES, ""}:
            sys.exit(f"error: there is no criterion {min(unknown)!r}; there are {', '.join(SCORES)}")
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
def kl_divergence(logp_p, logp_q):
    """KL(p || q) in nats, of log-probs (..., V) both -> (...). Ids that p never takes count as 0, whatever q does.

    Infinite where p takes what q never does. Rounding may leave -1e-7 for equal distributions; that is cut to 0.
    """
    terms = logp_p.exp() * (logp_p - logp_q)  # (2)
    return terms.masked_fill(logp_p.exp() == 0, 0.0).sum(-1).clamp(min=0.0)


# log-probs (N, V) of base and RLVR at the same prefixes, and the ids (N,) that the base drew -> scores (N,)
SCORES = {
    "dlogp": lambda base, rlvr, y: (base - rlvr).gather(-1, y[:, None])[:, 0],  # (3), RLVR made y less likely
    "kl": lambda base, rlvr, y: (kl_divergence(rlvr, base) + kl_divergence(base, rlvr)) / 2,  # whatever was drawn
    "entropy": lambda base, rlvr, y: torch.special.entr(base.exp()).sum(-1),  # (1), the base does not know how to go on
    "random": lambda base, rlvr, y: torch.rand(y.shape, device=y.device),  # (4)
    "kl-forward": lambda base, rlvr, y: kl_divergence(rlvr, base),  # the RLVR model would take what the base would not
    "kl-reverse": lambda base, rlvr, y: kl_divergence(base, rlvr),  # the base would take what the RLVR model would not
    "entropy-rlvr": lambda base, rlvr, y: torch.special.entr(rlvr.exp()).sum(-1),  # (1), nor does the RLVR model
}
FIGURE_2 = ("dlogp", "kl", "entropy", "random")


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


def decode_two(base, rlvr, prompts, score, thresholds, max_new_tokens, eos_ids, n_vocab=None, **sampling):
    """Two models decode one response (paper A, Algorithm 1): draw y from the base; where its score exceeds the
    threshold, draw y again from the RLVR model. Both are fed the same tokens, each with a cache of its own.

    prompts: B lists of ids; thresholds: (K,), for the K copies of every prompt, so N = B * K rows in group order; inf
    never fires, -inf always. score(logp_base, logp_rlvr, tokens) -> (n,) sees log-probs (n, V) at temperature 1.
    Where nothing fires the second draw takes no noise: tokens are then those of dapo.py's rollout.
    Returns tensors (N, T), T the longest response: tokens; mask, 1 up to the end; replaced, of bool; scores before it.
    """
    decoders = [next_logits(model, prompts, len(thresholds), n_vocab) for model in (base, rlvr)]
    logits, device = [next(decoder) for decoder in decoders], base.device  # of the base and of RLVR, (n, V) each
    thresholds = torch.as_tensor(thresholds, dtype=torch.float32, device=device).repeat(len(prompts))  # (N,)
    live, stops = torch.arange(len(thresholds), device=device), torch.tensor(eos_ids, device=device)
    tokens = torch.zeros(len(live), max_new_tokens, dtype=torch.long, device=device)
    replaced, (mask, scores) = tokens < 0, torch.zeros(2, len(live), max_new_tokens, device=device)
    for t in range(max_new_tokens):  # live: the rows still in the batch
        new, _, _ = sample_tokens(logits[0], **sampling)
        logp = [torch.log_softmax(x.float(), dim=-1) for x in logits]
        scores[live, t] = y_score = score(*logp, new)
        fires = y_score > thresholds[live]
        if fires.any():
            new[fires], _, _ = sample_tokens(logits[1][fires], **sampling)  # (5)
        tokens[live, t], mask[live, t], replaced[live, t] = new, 1.0, fires
        stopped = torch.isin(new, stops)
        if stopped.all() or t + 1 == max_new_tokens:
            break
        keep = (~stopped).nonzero()[:, 0]
        live, logits = live[keep], [decoder.send((keep, new[keep])) for decoder in decoders]
    return tuple(x[:, : t + 1] for x in (tokens, mask, replaced, scores))


def calibrate(decode, targets, passes):
    """Thresholds (K,) at which shares `targets` of the tokens are replaced: quantiles of the score, found by iteration.

    decode(thresholds, number of the pass) -> for each threshold, the scores of all tokens drawn. The first pass
    replaces nothing; but replaced tokens lead to other prefixes with other scores, so each further pass decodes at the
    last quantiles, and the next ones are those of the last two such passes together.
    """
    thresholds, last = [], decode([math.inf], 0) * len(targets)
    for number in range(passes + 1):
        new = decode(thresholds, number) if number > 0 else last
        both = [np.hstack(pair) for pair in zip(last, new, strict=True)] if number > 1 else new
        thresholds, last = [float(np.quantile(x, 1 - target)) for x, target in zip(both, targets, strict=True)], new
    return thresholds


def compare(rlvr, curves, resamples, seed):
    """How criteria compare: {criterion or "one - other": {"enough", "area", "area_ci95"}}, from {criterion: points}.

    enough: the smallest measured ratio whose accuracy is within the noise of RLVR's, a point as well: the 95% interval
    of the difference, paired by problem, reaches 0. area: mean accuracy over log ratio, where all curves are defined.
    """
    table, areas, n = {}, {}, len(rlvr["right"])
    draws = np.vstack([np.arange(n), np.random.default_rng(seed).integers(n, size=(resamples, n))])  # (1 + R, P)
    # an increasing axis for each curve; a measured ratio of 0 has no logarithm
    x = {name: np.log(np.maximum.accumulate([max(1e-6, p["ratio"]) for p in curve])) for name, curve in curves.items()}
    low, high = max((log[0] for log in x.values()), default=0), min((log[-1] for log in x.values()), default=0)
    for name, curve in curves.items():
        means = np.array([np.array(point["right"])[draws].mean(axis=1) for point in [rlvr, *curve]])  # (1 + K, 1 + R)
        lead = np.quantile(means[0, 1:] - means[1:, 1:], 0.025, axis=1)  # (K,): of RLVR, at least
        table[name] = {"enough": min((p["ratio"] for p, y in zip(curve, lead, strict=True) if y <= 0), default=None)}
        if low < high:
            areas[name] = np.array([np.interp(np.linspace(low, high, 200), x[name], y).mean() for y in means[1:].T])
    for one, other in itertools.pairwise(name for name in FIGURE_2 if name in areas):
        areas[f"{one} - {other}"] = areas[one] - areas[other]
    for name, area in areas.items():
        table[name] = table.get(name, {}) | {"area": area[0], "area_ci95": [*np.quantile(area[1:], [0.025, 0.975])]}
    return table


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


def at_fork(prompt, pieces):
    r"""Which tokens of a tiny-world response, strings, choose how far to leap: (T,) of bool; any other text has none.
    They start a step (or \boxed{ and a guess) or, as long as the chain has operations left, follow an operand.
    """
    left = [len(re.findall("[-+*]", x)) for x in prompt.split(",") if re.fullmatch(r"(\d+([-+*]\d)+[,?]){2}", prompt)]
    text, end, forks = "".join(pieces), 0, []  # left: operations of each chain that are not folded yet
    while left and (step := re.compile(r"\d{1,3}((?:[-+*]\d)+)=\d{1,3}(?:; | [a-z]+ )|\\boxed\{\d").match(text, end)):
        folded, end = len(step[1] or "") // 2, step.end()
        forks += [step.start(), *(step.start(1) + 2 * i for i in range(1, min(folded, left[0] - 1) + 1))]
        left = [left[0] - folded, *left[1:]] if left[0] > folded else left[1:]
    return np.isin(np.cumsum([0, *map(len, pieces)])[:-1], forks)


# --------------------------------------------------------------------------------------------------------- experiment
def decode_problems(problems, thresholds, seed, job, pair, score, tokenizer, args):
    """args.samples responses to every problem at K thresholds: yields K points of a curve, each with all scores."""
    ends = np.hstack([tokenizer.eos_token_id, *(model.generation_config.eos_token_id for model in pair)]).tolist()
    limits, copies = (args.max_response, sorted({*ends} - {None}), len(tokenizer)), np.repeat(thresholds, args.samples)
    size, piece = max(1, args.rows // len(copies)), functools.cache(lambda i: tokenizer.decode([i]))
    arms, sampling = [[] for _ in thresholds], {"temperature": args.temperature, "top_p": args.top_p}
    for i in tqdm(range(0, len(problems), size), desc=job, unit="batch", leave=False):
        sampling["generator"] = torch.Generator(args.device).manual_seed(seed * 1_000_003 + i)
        out = decode_two(*pair, [x["ids"] for x in problems[i : i + size]], score, copies, *limits, **sampling)
        tokens, mask, replaced, scores = (x.cpu().numpy() for x in out)
        for row, n in enumerate(mask.sum(axis=1).astype(int)):
            problem, ids = problems[i + row // len(copies)], tokens[row, :n].tolist()
            text, pieces = tokenizer.decode(ids, skip_special_tokens=True), list(map(piece, ids))
            response = problem | {"right": is_correct(text, problem["answer"], args.verifier), "tokens": pieces}
            response |= {"replaced": replaced[row, :n], "score": scores[row, :n]}
            arms[row % len(copies) // args.samples].append(response | {"fork": at_fork(problem["prompt"], pieces)})
    for arm in arms:
        right = np.reshape([response["right"] for response in arm], (-1, args.samples)).mean(axis=1)  # (P,)
        half = 1.96 * right.std(ddof=len(right) > 1) / len(right) ** 0.5  # of the 95% interval, normal
        replaced, forks, scores = (np.hstack([response[k] for response in arm]) for k in ("replaced", "fork", "score"))
        point = {"ratio": replaced.mean(), "accuracy": right.mean(), "accuracy_ci95": half, "right": right}
        point |= {"at_forks": forks[replaced].mean() if replaced.any() else None, "samples": arm[:: args.samples][:5]}
        yield point, scores


def run_job(job, seed, models, tokenizer, train, test, args):
    """The points of a curve: of a criterion at all ratios, with changed roles after "reverse-", or of both models."""
    criterion, targets = job.removeprefix("reverse-"), sorted(map(float, args.ratios.split(",")))
    pair, score = models if criterion == job else models[::-1], SCORES.get(criterion, SCORES["dlogp"])
    decode = functools.partial(decode_problems, job=job, pair=pair, score=score, tokenizer=tokenizer, args=args)
    torch.manual_seed(seed + 10)  # of the criterion "random"
    if job == "base and RLVR":  # nothing is replaced, and everything
        targets, taus = [0.0, 1.0], [math.inf, -math.inf]
    elif criterion == "random":
        taus = [1 - target for target in targets]
    else:
        taus = calibrate(lambda x, i: [s for _, s in decode(train, x, seed + 1 + i)], targets, args.calibration_passes)
    points = [point for point, _ in decode(test, taus, seed)]
    return [{"target": x, "threshold": str(y)} | point for x, y, point in zip(targets, taus, points, strict=True)]


def draw(path, panels, results, title):
    """Accuracy against the share of replaced tokens (figures 2 and 6), with 95% intervals: panels {title: jobs}."""
    figure = Figure(figsize=(1 + 4.5 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, jobs) in zip(axes, panels.items(), strict=True):
        for end, label, color in zip(results["base and RLVR"], ("base", "RLVR"), ("gray", "black"), strict=True):
            mean, half = end["accuracy"], end["accuracy_ci95"]
            axis.axhline(mean, color=color, lw=1, ls="--", label=label)
            axis.axhspan(mean - half, mean + half, color=color, alpha=0.12, lw=0)
        for job in jobs:  # a ratio of 0 is the base's line
            points = [(100 * p["ratio"], p["accuracy"], p["accuracy_ci95"]) for p in results[job] if p["ratio"] > 0]
            color = f"C{[*SCORES].index(job.removeprefix('reverse-'))}"
            axis.errorbar(*np.reshape(points, (-1, 3)).T, fmt="o-", ms=4, capsize=2, label=job, color=color)
        axis.set(xscale="log", xlabel="replaced tokens (%, measured)", ylabel="share right", ylim=(0, 1), title=name)
        axis.set_xticks((1, 2, 5, 10, 20, 40), (1, 2, 5, 10, 20, 40))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main(args):
    # ---- models and problems first: what is wrong with them shows before anything runs
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, and every decoding step is a new shape
    names, dtype = (args.base, args.rlvr), torch.bfloat16 if args.device == "cuda" else torch.float32
    other, tokenizer = map(AutoTokenizer.from_pretrained, names)
    if differ := sorted(other.get_vocab().items() ^ tokenizer.get_vocab().items()):
        sys.exit(f"error: {args.base} and {args.rlvr} do not share a vocabulary: {differ[:2]}; RLVR starts from --base")
    models = [AutoModelForCausalLM.from_pretrained(x, dtype=dtype, use_safetensors=True).to(args.device) for x in names]
    limit = min(model.config.max_position_embeddings for model in models) - args.max_response
    test = read_problems(args.test, tokenizer, limit)[: args.problems or None]
    train = read_problems(args.train, tokenizer, limit)[: args.calibration_problems]

    # ---- the run folder, and the curves that --resume goes on from
    out, config, saved = Path(args.out), Path(args.out, "config.json"), Path(args.out, "results.json")
    if args.resume != config.exists():
        sys.exit(f"error: {out} holds {'no' * args.resume or 'a'} run: --resume goes on with one, --out names another")
    before = json.loads(config.read_text())["args"] if args.resume else {}
    changed = {k: v for k, v in before.items() if v != getattr(args, k, None) and k not in ("resume", "out", "rows")}
    if changed:
        sys.exit(f"error: --resume: {out} was started with {changed}; give the same, or another --out")
    out.mkdir(parents=True, exist_ok=True)
    about = {"args": asdict(args), "torch": torch.__version__, "transformers": transformers.__version__}
    config.write_text(json.dumps(about, indent=2) + "\n")
    results = json.loads(saved.read_text()) if saved.exists() else {}

    # ---- calibrate and decode each criterion
    forward = [name for name in args.criteria.split(",") if name]
    backward = [f"reverse-{name}" for name in args.reverse.split(",") if name]
    print(f"| accuracy (ratio) | {args.ratios.replace(',', ' | ')} |\n|---{'|---' * len(args.ratios.split(','))}|")
    for j, job in enumerate(["base and RLVR", *forward, *backward]):
        if job not in results:
            results[job] = run_job(job, args.seed * 1000 + 20 * j, models, tokenizer, train, test, args)
            (out / "results.tmp").write_text(json.dumps(results, default=lambda array: array.tolist()))
            (out / "results.tmp").replace(saved)  # a kill leaves the old results or the new
        cells = [f"{p['accuracy']:.3f} ± {p['accuracy_ci95']:.3f} ({p['ratio']:.3f})" for p in results[job]]
        tqdm.write(f"| {job} | {' | '.join(cells)} |")

    # ---- compare and draw
    table = compare(results["base and RLVR"][1], {job: results[job] for job in forward}, args.bootstrap, args.seed)
    (out / "summary.json").write_text(json.dumps(table, indent=2) + "\n")
    print("\n| | smallest ratio within RLVR's noise | area | share of replacements at forks |\n|---|---|---|---|")
    for name, row in table.items():
        enough = f"{row['enough']:.3f}" if row.get("enough") is not None else "none" if name in results else ""
        area = "{:.3f} [{:.3f}, {:.3f}]".format(row["area"], *row["area_ci95"]) if "area" in row else ""
        forks = ["-" if p["at_forks"] is None else f"{p['at_forks']:.2f}" for p in results.get(name, [])]
        print(f"| {name} | {enough} | {area} | {', '.join(forks)} |")
    panels = {"paper A, figure 2": [job for job in forward if job in FIGURE_2]}
    panels["other magnitudes (figure 6)"] = [job for job in forward if job == "kl" or job not in FIGURE_2]
    panels["base's tokens put into RLVR's responses"] = backward
    title = f"{args.base} and {args.rlvr}: {len(test)} problems x {args.samples} responses, top-p {args.top_p:g}"
    draw(out / "replace.png", {name: jobs for name, jobs in panels.items() if jobs}, results, title)


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on after the last finished criterion")
    except (OSError, ImportError, torch.OutOfMemoryError) as error:  # no such file, full disk, missing package, memory
        sys.exit(f"error: {' '.join(str(error).split())[:300]}")
