"""Does training shrink or expand what a model can solve? p(right) of every problem, computed instead of sampled.

Whether a tiny-world response is right depends on its actions alone: a result after an action is right nearly always or
nearly never. So all right responses to a problem can be listed, some hundred of them: at each choice one operation or
two at once, and at each the box with the right answer, which is a guess if operations are left. A forward pass over
each of them gives its probability at any temperature and top-p, and p(right) is their sum. Of the connectives, which
mean the same, one is drawn into the text, and the probabilities of all four are summed where it stands. A response
with a wrong number that ends right, or in another form, is left out. So p is a lower bound, but for the chance of the
drawn connectives. Whether greedy decoding is right is decided by decoding.

The rule, written before the runs; unit, interval, verdict and Holm as in common.py, one family. Arms: GRPO, GRPO-N,
positive-only (`grpo_n.py --algorithm grpo-p`), four updates a rollout, and DAPO with its defaults; 100 steps, seed 2.
Models: the base and those of steps 10, 20, ..., 100. Problems: the first 40 test problems, each base has its own.
Settings: temperature 1; 0.6; 0.6 with top-p 0.95, which the paper takes. The plateau is plateau_of in training.py: the
numbered checkpoint, not the last, at which training responses have most two at once.
  rate         of GRPO, GRPO-N and positive-only the best of three, by pass@1 on the last 200 training problems of base
               model 1 after 60 steps, seed 1. A best rate at the edge of the three: one more rate beyond it is run,
               and again, until the best one is inside
  problems fall       the largest share, over the checkpoints, of problems with p below half of the base's: above 0.05,
                      0.05 matters. At temperature 1 and at the paper's setting
  and recover         of the problems that fell so at some checkpoint: the share with p at the end at or above the
                      base's. Above 0.5, 0.25 matters. A model where none fell has no such number
  lost to the cut     the share of problems with p = 0 at the paper's setting: the plateau's minus the base's. Above 0,
                      0.05 matters
  the loss is the cut's       at the paper's setting, of the sum of all falls in pass@256 from base to plateau, the part
                              of problems with p = 0 at the plateau. Above 0.5, 0.25 matters. Without a fall, no number
  no loss without it          pass@256 at 0.6 without top-p: the plateau's minus the base's. Above 0, 0.02 matters
  the base wins in the end    pass@(10^6): the base's minus the end's, at temperature 1 and at 0.6. Above 0, 0.02
                              matters
  worst problems      mean log10 of p at temperature 1 over the tenth of the problems with the smallest p of that model,
                      at equal mean p: 0.6, or the lower of what both arms reach; log10 p is linear between
                      checkpoints. GRPO-N's, and positive-only's, minus GRPO's: above 0, 0.3 matters (a factor of 2)
  right for wrong reasons     of the right responses that are sampled at temperature 1 from the model at the end, the
                              share that is not on the list. Below 0.05, 0.05 matters
Added after the runs of base model 1, a description: how often base models and ends are right when they are made to take
one operation at a time everywhere, and at which tokens they lose the rest (lost_nats).
The check, printed as a table: exact against 256 samples to the same 40 problems, of the bases and of steps 20 and 100;
three more draws of the connectives; the share of right samples that are not on the list. It also prints what
boundary.py sampled from base model 1, which is tiny/base.
Known before: the trial in which this was tried out, 40 problems of one GRPO run, steps 10 to 40, and boundary.py. In
the trial problems with p = 0 at the paper's setting went from 13 to 17 by step 20, and every problem with p > 0 under
both rose; pass@256 at 0.6 rose from 0.687 to 0.747; at temperature 1, 4 problems fell at step 20 and none at step 30.

    python studies/exact.py            # 7 hours of one core; goes on where it was interrupted
    python studies/exact.py --recorded # seconds: judges the arms whose runs are all recorded
    python studies/exact.py --quick    # runs of two steps: to see that it works
"""

import functools
import math
import random
import re
import sys
from typing import NamedTuple

import numpy as np
import torch
from common import (
    ROOT,
    Job,
    Run,
    arguments,
    base_folder,
    decide,
    finish,
    interval,
    make_bases,
    read_jsonl,
    read_records,
    rounded,
    run_all,
)
from grpo_n_lr import write_validation
from matplotlib.figure import Figure
from training import CURVES, plateau_of, steps_to_reach
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tiny"))
from make_tiny import CONNECTIVES, IDS, answer_of, apply, prompt_tokens, sample

from dapo import is_correct


# ------------------------------------------------------------------------------------------------------------- settings
class Setting(NamedTuple):
    """How responses are sampled."""

    temperature: float
    top_p: float

    def __str__(self):
        return f"{self.temperature:g}/{self.top_p:g}"


FULL_SOFTMAX = Setting(1.0, 1.0)
NO_CUT = Setting(0.6, 1.0)
PAPER = Setting(0.6, 0.95)
SETTINGS = (FULL_SOFTMAX, NO_CUT, PAPER)
ARMS = ("grpo", "grpo-n", "grpo-p", "dapo")
NAMES = {"grpo": "GRPO", "grpo-n": "GRPO-N", "grpo-p": "positive only", "dapo": "DAPO"}
RATES = {  # the first three of each arm of grpo_n.py, around its default
    "grpo": (2e-4, 4e-4, 8e-4),
    "grpo-n": (5e-5, 1e-4, 2e-4),
    "grpo-p": (2e-4, 4e-4, 8e-4),
}
MAX_TOKENS = 128  # of a response, the default of the scripts
CONNECTIVE = None  # stands for any connective in a listed response
KS = np.unique(np.round(np.logspace(0, 6, 61)).astype(int))  # 1 to 10^6
CHECKED_AT = (20, 100)  # training steps whose models are sampled, too


class Size(NamedTuple):
    """How much is run."""

    problems: int
    steps: int
    every: int  # steps between the numbered models
    samples: int  # to a problem, for the check
    rate_steps: int


FULL_SIZE = Size(problems=40, steps=100, every=10, samples=256, rate_steps=60)
QUICK_SIZE = Size(problems=4, steps=2, every=1, samples=8, rate_steps=2)


# --------------------------------------------------------------------------------------------------- right responses
def read_problem(prompt):
    """A prompt as make_tiny.py writes problems: "63*2-2,77-7?" -> [(63, ["*2", "-2"]), (77, ["-7"])]."""
    problem = []
    for chain in prompt.rstrip("?").split(","):
        start = re.match(r"\d+", chain)[0]
        problem.append((int(start), re.findall(r"[-+*]\d", chain)))
    return problem


def right_responses(problem):
    """All right responses to a problem: lists of tokens, of the response and its end; None stands for a connective."""
    box = ["\\boxed{", *answer_of(problem), "}", "<|im_end|>"]
    found = []

    def extend(tokens, chain, value, operations):
        found.append([*tokens, *box])  # a guess if operations are left
        if not operations:
            chain += 1
            if chain == len(problem):
                return
            value, operations = problem[chain]
        for n in (1, 2):
            if n <= len(operations):
                result = apply(value, operations[:n])
                statement = [*f"{value}{''.join(operations[:n])}={result}", CONNECTIVE]
                extend([*tokens, *statement], chain, result, operations[n:])

    extend([], 0, *problem[0])
    return [response for response in found if len(response) <= MAX_TOKENS]


def response_logps(logits, tokens, is_connective, setting):
    """Log-probability of each response at a setting: (N,), in nats.

    logits (N, T, V) predict tokens (N, T), -1 outside the responses. is_connective (N, T): all connectives count.
    """
    logp = (logits / setting.temperature).log_softmax(-1)  # (N, T, V)
    if setting.top_p < 1:
        ordered, order = logp.exp().sort(dim=-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= setting.top_p  # likelier tokens have top_p already
        logp = logp.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf).log_softmax(-1)
    of_token = logp.gather(-1, tokens.clamp(min=0)[..., None])[..., 0]  # (N, T)
    connectives = [IDS[connective] for connective in CONNECTIVES]
    of_token = torch.where(is_connective, logp[..., connectives].logsumexp(-1), of_token)
    return of_token.masked_fill(tokens < 0, 0.0).double().sum(-1)


@torch.no_grad()
def probabilities(model, problems, seed=0, batch=64):
    """p(right) of each problem at each of SETTINGS: (settings, problems). The top of this file says what it leaves out.

    problems: see read_problem. seed: of the connectives in the text. batch: responses in a forward pass.
    """
    rng = random.Random(seed)
    rows = []  # (index of the problem, length of the prompt, tokens of prompt and response)
    for index, problem in enumerate(problems):
        prompt = prompt_tokens(problem)
        rows.extend((index, len(prompt), [*prompt, *response]) for response in right_responses(problem))
    rows.sort(key=lambda row: len(row[2]))
    found = np.zeros((len(SETTINGS), len(problems)))
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        width = len(part[-1][2])
        inputs = torch.full((len(part), width), IDS["<|endoftext|>"])
        targets = torch.full((len(part), width), -1)
        is_connective = torch.zeros((len(part), width), dtype=torch.bool)
        for i, (_, n_prompt, tokens) in enumerate(part):
            for t, token in enumerate(tokens):
                if token is CONNECTIVE:
                    is_connective[i, t] = True
                    token = rng.choices(list(CONNECTIVES), list(CONNECTIVES.values()))[0]
                inputs[i, t] = IDS[token]
            targets[i, n_prompt : len(tokens)] = inputs[i, n_prompt : len(tokens)]
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits  # (N, T, V)
        for row, setting in enumerate(SETTINGS):
            logps = response_logps(logits, targets[:, 1:], is_connective[:, 1:], setting)
            np.add.at(found[row], [index for index, _, _ in part], logps.exp().numpy())
    return found


@torch.no_grad()
def lost_nats(model, problem):
    """-log p(right) at temperature 1 of a model that is made to take one operation at a time wherever it has a choice.

    It cannot box before the end of the second chain, nor take two at once. All else it has to do itself. Returns the
    nats that it loses at each kind of token: {"copy": numbers and operations, "result": digits, "end": the rest}.
    """
    tokens = prompt_tokens(problem)
    kinds = ["prompt"] * len(tokens)
    first_tokens = []  # positions of the first token of each statement: there the box is forbidden

    def write(text, kind):
        tokens.extend(text)
        kinds.extend([kind] * len(text))

    for value, operations in problem:
        for i, operation in enumerate(operations):
            first_tokens.append(len(tokens))
            result = apply(value, [operation])
            write(f"{value}{operation}", "copy")
            write("=", "forced" if i < len(operations) - 1 else "end")  # forced: a second operation could follow
            write(str(result), "result")
            write([next(iter(CONNECTIVES))], "end")
            value = result
    write(["\\boxed{", *answer_of(problem), "}", "<|im_end|>"], "end")
    ids = torch.tensor([[IDS[token] for token in tokens]])
    p = model(input_ids=ids[:, :-1], use_cache=False).logits[0].softmax(-1).double()  # row t predicts token t + 1
    lost = {"copy": 0.0, "result": 0.0, "end": 0.0}
    for t, kind in enumerate(kinds):
        if kind not in lost:
            continue
        if tokens[t] in CONNECTIVES:
            factor = sum(p[t - 1, IDS[connective]] for connective in CONNECTIVES)
        else:
            factor = p[t - 1, ids[0, t]]
        if t in first_tokens:
            factor = factor / (1 - p[t - 1, IDS["\\boxed{"]])
        lost[kind] -= math.log(factor)
    return lost


def is_listed(text, problem):
    """Is a response's text one of right_responses(problem)?"""
    lines = {"".join(token or "; " for token in response[:-1]) for response in right_responses(problem)}
    return re.sub(r" [a-z]+ ", "; ", text) in lines


# ----------------------------------------------------------------------------------------------------------------- jobs
def load(folder):
    """(model, tokenizer) of a folder."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def first_problems(base, n, args, name="test"):
    """The first n problems of a base model's test.jsonl or long.jsonl: see read_problem."""
    rows = read_jsonl(base_folder(base, args.quick) / f"{name}.jsonl")[:n]
    return [read_problem(row["prompt"]) for row in rows]


def sampled_counts(model, tokenizer, problems, n, setting):
    """Of n responses to each problem: {"right": how many are right, "unlisted": of these, how many are not listed}."""
    responses = sample(model, problems, n, setting.temperature, setting.top_p, seed=1, limit=MAX_TOKENS)
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    counts = {"right": [], "unlisted": []}
    for i, problem in enumerate(problems):
        right = [text for text in texts[i * n : (i + 1) * n] if is_correct(text, answer_of(problem))]
        counts["right"].append(len(right))
        counts["unlisted"].append(sum(not is_listed(text, problem) for text in right))
    return counts


def model_record(folder, problems, samples=0, draws=1):
    """What is recorded of one model: p at each setting, greedy, and perhaps the check. samples: to a problem."""
    model, tokenizer = load(folder)
    record = {"p": {}, "greedy": []}
    for seed in range(draws):
        found = probabilities(model, problems, seed)
        for setting, p in zip(SETTINGS, found, strict=True):
            key = str(setting) if seed == 0 else f"{setting}, draw {seed}"
            record["p"][key] = [float(f"{value:.4g}") for value in p]
    record["greedy"] = sampled_counts(model, tokenizer, problems, 1, Setting(0.0, 1.0))["right"]
    if samples > 0:
        record["samples"] = samples
        for setting in (FULL_SOFTMAX, PAPER):
            record[f"sampled at {setting}"] = sampled_counts(model, tokenizer, problems, samples, setting)
    return record


def base_record(base, size, args):
    """The record of a base model."""
    problems = first_problems(base, size.problems, args)
    return {"models": {"0": model_record(base_folder(base, args.quick) / "base", problems, size.samples, draws=4)}}


def ceiling_record(folder, base, args):
    """How often a model is right with the best choices alone, on test problems and long ones; nats lost on test."""
    model, _ = load(folder)
    record = {}
    for name in ("test", "long"):
        problems = first_problems(base, 4 if args.quick else 100, args, name)
        lost = [lost_nats(model, problem) for problem in problems]
        record[name] = float(f"{np.mean([math.exp(-sum(nats.values())) for nats in lost]):.3g}")
        if name == "test":
            record["nats"] = {kind: round(float(np.mean([nats[kind] for nats in lost])), 4) for kind in lost[0]}
    return record


def run_record(folder, base, size, args):
    """The record of a training run: its curves, and each of its numbered models."""
    problems = first_problems(base, size.problems, args)
    training = read_jsonl(folder / "metrics.jsonl")[1:]  # step 0 only evaluates
    record = {name: rounded(row.get(name) for row in training) for name in CURVES}
    record["models"] = {}
    for step in range(size.every, size.steps + 1, size.every):
        samples = size.samples if args.quick or step in CHECKED_AT else 0
        record["models"][str(step)] = model_record(folder / f"model_{step:06d}", problems, samples)
    return record


def rate_job(arm, rate, size, args):
    """The Job of a short run at one rate, judged on training problems that it does not see."""
    validation = args.runs / "grpo_n_lr" / "validation.jsonl"
    flags = f"--algorithm {arm} --lr {rate:g} --mini-batch 4 --seed 1 --steps {size.rate_steps} --passk-samples 0"
    flags += f" --eval-every {size.rate_steps} --eval-problems 0 --test {validation}"
    if args.quick:
        flags += " --prompts-per-step 2 --mini-batch 2 --eval-problems 4"
    folder = args.runs / "exact" / f"rate-{arm}-{rate:g}"
    run = Run(f"grpo_n.py {flags}", folder, "model/tokenizer_config.json")
    return Job([run], lambda: {"pass@1": read_jsonl(folder / "metrics.jsonl")[-1]["test/pass@1"]})


def best_rates(size, args):
    """{arm: its best rate}, after the runs that this needs: see "rate" at the top."""
    path = args.where / "exact.jsonl"
    write_validation(args.runs / "grpo_n_lr" / "validation.jsonl", args.quick)
    best = {}
    for arm, first_rates in RATES.items():
        rates = list(first_rates[:1] if args.quick else first_rates)
        while arm not in best:
            jobs = {f"rate-{arm}-{rate:g}": rate_job(arm, rate, size, args) for rate in rates}
            run_all(jobs, args.workers, path)
            records = read_records(path)
            accuracies = [records[f"rate-{arm}-{rate:g}"]["pass@1"] for rate in rates]
            print(f"{arm}: pass@1", dict(zip(rates, accuracies, strict=True)))
            i = int(np.argmax(accuracies))
            if args.quick or 0 < i < len(rates) - 1:
                best[arm] = rates[i]
            elif i == 0:
                rates.insert(0, rates[0] / 2)
            else:
                rates.append(rates[-1] * 2)
    return best


def training_job(arm, base, rates, size, args):
    """The Job of a training run and of the p of its models."""
    data = base_folder(base, args.quick)
    if arm == "dapo":
        command = "dapo.py"
    else:
        command = f"grpo_n.py --algorithm {arm} --lr {rates[arm]:g} --mini-batch 4 --passk-samples 0"
    command += f" --model {data}/base --train {data}/train.jsonl --test {data}/test.jsonl --seed 2 --steps {size.steps}"
    command += f" --save-every {size.every} --eval-every {size.every} --eval-problems 4 --eval-samples 1"
    if args.quick:
        command += " --prompts-per-step 2 --mini-batch 2 --gen-batch 4"
    folder = args.runs / "exact" / f"{arm}-{base}"
    run = Run(command, folder, "model/tokenizer_config.json")
    return Job([run], functools.partial(run_record, folder, base, size, args))


# ------------------------------------------------------------------------------------------------------------- measures
class Curve(NamedTuple):
    """p(right) over training, of one run."""

    steps: list  # 0, then the numbered models; S of them
    p: dict  # {setting: (S, problems)}
    plateau: int  # index into steps
    unlisted: float  # share of the right samples at the end, at temperature 1


def curve_of(record, base, size):
    """The Curve of a run's record; base: that of its base model."""
    models = {**base["models"], **record["models"]}
    steps = [int(step) for step in models]
    p = {}
    for setting in SETTINGS:
        p[setting] = np.array([model["p"][str(setting)] for model in models.values()])
    counts = models[str(size.steps)][f"sampled at {FULL_SOFTMAX}"]
    unlisted = sum(counts["unlisted"]) / max(1, sum(counts["right"]))
    return Curve(steps, p, steps.index(plateau_of(record, size.every)), unlisted)


def pass_at(p, k):
    """The chance that k responses hold a right one, mean over problems: p (problems,) -> a number."""
    return float(np.mean(-np.expm1(k * np.log1p(-np.clip(p, 0, 1 - 1e-12)))))


def base_wins_from(p, base):
    """The smallest of KS at which the base model's pass@k is above that of p; None if there is none."""
    for k in KS:
        if pass_at(base, k) > pass_at(p, k) + 1e-9:
            return int(k)
    return None


def fallen(curve, setting):
    """(S, problems): is p below half of the base's?"""
    p = curve.p[setting]
    return p < 0.5 * p[0]


def share_recovered(curve, setting):
    """Of the problems that fell at some checkpoint, the share with p at the end at or above the base's; nan if none."""
    p = curve.p[setting]
    fell = fallen(curve, setting).any(0)
    if not fell.any():
        return math.nan
    return float(np.mean(p[-1, fell] >= p[0, fell]))


def share_cut(curve):
    """Of the falls in pass@256 from base to plateau at the paper's setting, the part with p = 0 there; nan if none."""
    p = curve.p[PAPER]
    solved = 1 - (1 - np.clip(p, 0, 1)) ** 256
    falls = np.maximum(0.0, solved[0] - solved[curve.plateau])
    if falls.sum() == 0:
        return math.nan
    return float(falls[p[curve.plateau] == 0].sum() / falls.sum())


def worst_tenth(curve, level):
    """Mean log10 p at temperature 1 of the tenth of the problems with the smallest p, where mean p reaches `level`."""
    log_p = np.log10(curve.p[FULL_SOFTMAX])  # (S, problems)
    means = curve.p[FULL_SOFTMAX].mean(1)
    after = int(np.argmax(means >= level))  # the first checkpoint that is there
    if after > 0:
        weight = (level - means[after - 1]) / (means[after] - means[after - 1])
        log_p = weight * log_p[after] + (1 - weight) * log_p[after - 1]
    else:
        log_p = log_p[0]
    n = math.ceil(len(log_p) / 10)
    return float(np.sort(log_p)[:n].mean())


def worst_difference(one, other):
    """worst_tenth of one Curve minus that of another, at equal mean p."""
    level = min(0.6, *[curve.p[FULL_SOFTMAX].mean(1).max() for curve in (one, other)])
    return worst_tenth(one, level) - worst_tenth(other, level)


# --------------------------------------------------------------------------------------------------------------- claims
def claims_of(curves, bases):
    """All claims, decided. curves: {(arm, base): Curve}; a base without its run is left out."""
    claims = []
    for arm in ARMS:
        runs = [curves[arm, base] for base in bases if (arm, base) in curves]
        if not runs:
            continue
        name = NAMES[arm]
        for setting in (FULL_SOFTMAX, PAPER):
            shares = [fallen(curve, setting).mean(1).max() for curve in runs]
            text = "problems fall below half of the base's p (largest share)"
            claims.append(decide("B 3", text, f"{name}, {setting}", shares, 0.05, above=0.05))
            text = "the fallen recover (share)"
            shares = [share_recovered(curve, setting) for curve in runs]
            claims.append(decide("B 3, remark 4", text, f"{name}, {setting}", shares, 0.25, above=0.5))
        cut = [np.mean(curve.p[PAPER][curve.plateau] == 0) - np.mean(curve.p[PAPER][0] == 0) for curve in runs]
        claims.append(decide("(ours)", f"problems are lost to the cut at {PAPER}, plateau", name, cut, 0.05))
        shares = [share_cut(curve) for curve in runs]
        claims.append(
            decide("(ours)", f"the early loss at {PAPER} is the cut's (share)", name, shares, 0.25, above=0.5)
        )
        gain = [pass_at(curve.p[NO_CUT][curve.plateau], 256) - pass_at(curve.p[NO_CUT][0], 256) for curve in runs]
        claims.append(decide("(ours)", f"no loss in pass@256 at {NO_CUT}, plateau", name, gain, 0.02))
        for setting in (FULL_SOFTMAX, NO_CUT):
            losses = [pass_at(curve.p[setting][0], 10**6) - pass_at(curve.p[setting][-1], 10**6) for curve in runs]
            text = "the base wins at k = 10^6, end"
            claims.append(decide("B 3", text, f"{name}, {setting}", losses, 0.02))
        unlisted = [0.05 - curve.unlisted for curve in runs]
        text = "fewer than 0.05 of the right responses are right for wrong reasons (0.05 minus share)"
        claims.append(decide("(ours)", text, name, unlisted, 0.0))
    for arm in ("grpo-n", "grpo-p"):
        both = [base for base in bases if (arm, base) in curves and ("grpo", base) in curves]
        if both:
            values = [worst_difference(curves[arm, base], curves["grpo", base]) for base in both]
            text = "better than GRPO on the worst tenth of the problems, at equal accuracy (log10 p)"
            claims.append(decide("B 4 (ours)", text, NAMES[arm], values, 0.3))
    return claims


# ------------------------------------------------------------------------------------------------------ tables, figure
def print_check(records):
    """The check: exact p against samples, draws of the connectives, right samples that are not listed."""
    for name, sampled in read_records(ROOT / "studies" / "results" / "boundary.jsonl").items():
        setting = {"t1": FULL_SOFTMAX, "t0.6": PAPER}[name.rpartition("-")[2]]
        if name.startswith("base-1-") and "base-1" in records:
            p = np.array(records["base-1"]["models"]["0"]["p"][str(setting)])
            right = np.array(sampled["right"][: len(p)]) / sampled["samples"]
            gap = np.abs(right - p).max()
            print(f"boundary.py, {name}: sampled {right.mean():.4f}, exact {p.mean():.4f}, largest gap {gap:.3f}")
    print("\n| model | setting | exact | sampled | largest gap | beyond 3 errors | other draws | unlisted |")
    print("|---|---|---|---|---|---|---|---|")
    for name, record in records.items():
        for step, model in record.get("models", {}).items():
            for setting in (FULL_SOFTMAX, PAPER):
                counts = model.get(f"sampled at {setting}")
                if counts is None:
                    continue
                n = model["samples"]
                p = np.array(model["p"][str(setting)])
                sampled = np.array(counts["right"]) / n
                errors = np.sqrt(np.maximum(p * (1 - p), 1 / n / 4) / n)
                beyond = int(np.sum(np.abs(sampled - p) > 3 * errors))
                draws = [np.mean(q) for key, q in model["p"].items() if key.startswith(f"{setting}, draw")]
                spread = max((abs(mean - p.mean()) for mean in draws), default=None)
                cells = [f"{name}, step {step}", str(setting), f"{p.mean():.4f}", f"{sampled.mean():.4f}"]
                cells += [f"{np.abs(sampled - p).max():.3f}", f"{beyond} of {len(p)}"]
                cells.append("-" if spread is None else f"± {spread:.4f}")
                cells.append(f"{sum(counts['unlisted'])} of {sum(counts['right'])}")
                print(f"| {' | '.join(cells)} |")


def print_ceilings(records):
    """A line for each model: how often it is right with the best choices alone, and where it loses the rest."""
    print("\n| one at a time everywhere | right | on longer problems | nats lost: copying | results | the rest |")
    print("|---|---|---|---|---|---|")
    for name, record in records.items():
        if name.startswith("ceiling-"):
            nats = " | ".join(f"{value:.3f}" for value in record["nats"].values())
            print(f"| {name.removeprefix('ceiling-')} | {record['test']} | {record['long']} | {nats} |")


def print_curves(curves):
    """A line for each model and setting: mean p, pass@k, where the base is ahead, how many problems fell."""
    print("\n| run | step | setting | mean p | pass@256 | pass@10^6 | base ahead from k | fell below half | p = 0 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (arm, base), curve in curves.items():
        for i, step in enumerate(curve.steps):
            for setting in SETTINGS:
                p = curve.p[setting][i]
                cells = [f"{NAMES[arm]}, model {base}", str(step), str(setting), f"{p.mean():.3f}"]
                cells += [f"{pass_at(p, 256):.3f}", f"{pass_at(p, 10**6):.3f}"]
                cells.append(str(base_wins_from(p, curve.p[setting][0]) or "-"))
                cells += [str(int(fallen(curve, setting)[i].sum())), str(int(np.sum(p == 0)))]
                print(f"| {' | '.join(cells)} |")


def print_arms(records, curves):
    """A line for each arm: how fast and how far it goes. A description: mean over base models and 95% interval."""
    print(
        "\n| arm | steps to accuracy 0.6 | mean p, end | entropy, end | fell at most, 0.6/1 | smallest p, end, median |"
    )
    print("|---|---|---|---|---|---|")
    for arm in ARMS:
        parts = [(records[f"{arm}-{base}"], curve) for (name, base), curve in curves.items() if name == arm]
        if not parts:
            continue
        values = {
            "steps": [steps_to_reach(record["accuracy"], 0.6, 5) for record, _ in parts],
            "p": [curve.p[FULL_SOFTMAX][-1].mean() for _, curve in parts],
            "entropy": [np.mean(record["entropy"][-5:]) for record, _ in parts],
            "fell": [fallen(curve, NO_CUT).mean(1).max() for _, curve in parts],
        }
        mean, half_width = interval(values["steps"])
        cells = [NAMES[arm], f"{mean:.0f} ± {half_width:.0f}"]
        for name in ("p", "entropy", "fell"):
            mean, half_width = interval(values[name])
            cells.append(f"{mean:.3f} ± {half_width:.3f}")
        smallest = np.median([curve.p[FULL_SOFTMAX][-1].min() for _, curve in parts])
        cells.append(f"{smallest:.1g}")
        print(f"| {' | '.join(cells)} |")


def draw(path, curves):
    """p of each problem under base, plateau and end of one run, without and with top-p; pass@k over k.

    curves: {(arm, base): Curve}, of which the first is drawn.
    """
    (arm, base), curve = next(iter(curves.items()))
    figure = Figure(figsize=(9, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    order = np.argsort(curve.p[NO_CUT][0])
    models = {  # label: (index, colour, marker)
        "base": (0, "tab:gray", "o"),
        f"step {curve.steps[curve.plateau]}, on the plateau": (curve.plateau, "black", "x"),
        f"step {curve.steps[-1]}, the end": (-1, "tab:red", "."),
    }
    floor = 1e-9  # p = 0 is drawn here
    for axis, setting in zip(axes[0], (NO_CUT, PAPER), strict=True):
        for label, (i, color, marker) in models.items():
            p = curve.p[setting][i][order]
            axis.semilogy(np.maximum(p, floor), marker, color=color, ms=8 if i == 0 else 5, mfc="none", label=label)
        cut = "all tokens" if setting.top_p == 1 else f"top-p {setting.top_p:g}"
        axis.set(title=f"temperature {setting.temperature:g}, {cut}", ylim=(floor / 3, 2))
        axis.set(xlabel="problems, sorted by the base's p (left)", ylabel="p(right) of a problem")
        axis.set_yticks([floor, 1e-6, 1e-4, 1e-2, 1], ["0", "$10^{-6}$", "$10^{-4}$", "0.01", "1"])
        axis.grid(alpha=0.3)
    axes[0, 0].legend(loc="lower right")
    for axis, setting in zip(axes[1], (NO_CUT, PAPER), strict=True):
        for i, color, _ in models.values():
            axis.semilogx(KS, [pass_at(curve.p[setting][i], k) for k in KS], color=color)
        axis.set(xlabel="k, responses to a problem", ylabel="pass@k", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    title = f"{NAMES[arm]}, model {base}: p of each problem, computed. 0: top-p cuts every listed response"
    figure.suptitle(title, weight="bold")
    figure.savefig(path, dpi=92)


def do_runs(size, args, path):
    """Do all runs that are not recorded in the file `path`."""
    names = [f"{kind}-{base}" for base in args.bases for kind in ("base", *ARMS)]
    names += [f"ceiling-{name}" for name in names]
    rates = best_rates(size, args)
    make_bases(args, path, names)
    jobs = {}
    for base in args.bases:
        jobs[f"base-{base}"] = Job([], functools.partial(base_record, base, size, args))
        folder = base_folder(base, args.quick) / "base"
        jobs[f"ceiling-base-{base}"] = Job([], functools.partial(ceiling_record, folder, base, args))
        for arm in ARMS:
            job = training_job(arm, base, rates, size, args)
            jobs[f"{arm}-{base}"] = job
            folder = job.runs[0].folder / "model"
            jobs[f"ceiling-{arm}-{base}"] = Job(job.runs, functools.partial(ceiling_record, folder, base, args))
    run_all(jobs, args.workers, path)


def main():
    args = arguments(__doc__, {"--recorded": "run nothing; judge the arms whose runs are all recorded"})
    args.workers = 2
    torch.set_num_threads(1)
    size = QUICK_SIZE if args.quick else FULL_SIZE
    path = args.where / "exact.jsonl"
    if not args.recorded:
        do_runs(size, args, path)

    records = read_records(path)
    curves = {}
    for arm in ARMS:
        missing = [base for base in args.bases if f"{arm}-{base}" not in records]
        if missing:  # with --recorded
            print(f"{NAMES[arm]} is left out: no record of base model {', '.join(map(str, missing))}")
            continue
        for base in args.bases:
            curves[arm, base] = curve_of(records[f"{arm}-{base}"], records[f"base-{base}"], size)
    if not curves:
        raise SystemExit(f"{path} has no arm with all its records; leave out --recorded")
    print_check(records)
    print_ceilings(records)
    print_curves(curves)
    print_arms(records, curves)
    print()
    finish(args, "exact", claims_of(curves, args.bases), draw, curves)


if __name__ == "__main__":
    main()
