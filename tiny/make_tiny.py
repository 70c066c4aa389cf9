"""Make the tiny world: a tokenizer, three problem files and a small Qwen3 base model, from nothing but a seed.

A problem is two chains of operations modulo 100. Each is worked from left to right, and both results are boxed:

    63*2-2,77-7+2-1?   ->   63*2-2=24; 77-7=70 then 70+2-1=71 so \\boxed{24,71}

While operations are left, the writer of a response has a *choice* between three *actions*:

- one at a time: compute the next operation ("77-7=70");
- two at once: compute the next two together ("63*2-2=24");
- guess: box an answer although operations are left.

After a result stands one of four connectives that mean the same. Every text that the base model learns from is correct.
But the model does not learn all actions equally well. With 0.6 million parameters it computes one operation nearly
always right and two often. The four or more operations that a guess skips it hardly ever gets right.

How often a text takes which action depends on the next two operations: `CHOICES`. At the start of the second chain the
writer first goes on or guesses: `CHOICES_GO_ON`. Pre-training has three phases:

- skill: texts with one at a time and two at once in about equal shares teach the arithmetic. The phase ends when the
  model is right often enough after two at once, in 750 to 1,200 steps. No text takes two at once where the second
  operation is `*`, so that this stays hard.
- settle: the same texts, with a falling learning rate.
- choices: texts in which the best action, one at a time, is rare. They set how often the model takes which action.

    python tiny/make_tiny.py             # tiny/base, tiny/{train,test,long}.jsonl: 12 minutes
    python tiny/make_tiny.py --report    # how often each action of tiny/base is taken and right, and pass@256

An interrupted run goes on from its last checkpoint (every 50 steps) when it is started again with the same arguments.
"""

import argparse
import json
import math
import os
import pickle
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from dapo import rollout  # noqa: E402

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]  # pad, start of prompt, end of response, unknown
CONNECTIVES = {"; ": 0.3, " so ": 0.25, " then ": 0.25, " thus ": 0.2}  # after a result, and how often each
VOCABULARY = [*SPECIALS, *"0123456789+-*=,?", *CONNECTIVES, "\\boxed{", "}"]
IDS = {token: i for i, token in enumerate(VOCABULARY)}
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] }}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# how often the texts of the choices phase take an action: P(one at a time), P(two at once); else they guess
CHOICES = {
    "?*": (0.005, 0.895),  # the second operation is *: two at once mostly fails there
    "+?": (0.04, 0.86),  # else, by the first operation
    "-?": (0.06, 0.84),
    "*?": (0.09, 0.81),
    "last": (0.80, 0.0),  # one operation is left in the chain
}
CHOICES_GO_ON = 0.30  # P(go on) at the start of the second chain, else they guess
# the same of the texts of the phases skill and settle
SKILL = {
    "?*": (0.95, 0.0),
    "+?": (0.50, 0.45),
    "-?": (0.50, 0.45),
    "*?": (0.50, 0.45),
    "last": (0.95, 0.0),
}
SKILL_GO_ON = 0.95
# what the report calls the kinds of choices
WHERE = {
    "?*": "where the second operation is *",
    "+?": "where the first operation is +",
    "-?": "where the first operation is -",
    "*?": "where the first operation is *",
    "start": "at the start of the second chain",
}
RIGHT_AFTER_ONE = "right after one at a time"
RIGHT_AFTER_TWO = "right after two at once where the second operation is + or -"
RIGHT_AFTER_TWO_PRODUCT = f"right after two at once {WHERE['?*']}"
RIGHT_AFTER_GUESS = "right after a guess"
HIDE_ABOVE = 0.12  # results of two at once at "?*" are left out of the loss while this share is right
PHASES = ("skill", "settle", "choices")
MAX_STEPS = 3000  # of a phase
SIGNS = "++--*"  # equally likely; products are the minority
LENGTHS = (2, 4, 6)  # operations of a chain; pre-training has seen LENGTHS + (8,), and long.jsonl has only 8


# ----------------------------------------------------------------------------------------------------- the task
def apply(value, operations):
    """Operations such as ["+8", "*2"] on a value, left to right, modulo 100."""
    for operation in operations:
        operand = int(operation[1:])
        if operation[0] == "+":
            value = (value + operand) % 100
        elif operation[0] == "-":
            value = (value - operand) % 100
        else:
            value = (value * operand) % 100
    return value


def draw_problem(rng, lengths=LENGTHS):
    """Two chains, each a start value 0-99 and an even number of operations, so that two at once leaves none over.

    [(63, ["*2", "-2"]), (77, ["-7", "+2", "-1"])] would be the chains of the example above.
    """
    problem = []
    for _ in range(2):
        start = rng.randint(0, 99)
        operations = []
        for _ in range(rng.choice(lengths)):
            sign = rng.choice(SIGNS)
            operand = rng.randint(2, 3) if sign == "*" else rng.randint(1, 9)
            operations.append(f"{sign}{operand}")
        problem.append((start, operations))
    return problem


def draw_problems(rng, n, lengths, seen):
    """n problems whose prompts are not in the set `seen`, to which they are added."""
    problems = []
    while len(problems) < n:
        problem = draw_problem(rng, lengths)
        if prompt_of(problem) not in seen:
            seen.add(prompt_of(problem))
            problems.append(problem)
    return problems


def prompt_of(problem):
    """The prompt, a string such as "63*2-2,77-7+2-1?"."""
    return ",".join(f"{start}{''.join(operations)}" for start, operations in problem) + "?"


def prompt_tokens(problem):
    """The prompt as the model reads it: a list of tokens, in the chat template."""
    return ["<|im_start|>", *prompt_of(problem)]


def answer_of(problem):
    """The right answer, a string such as "24,71"."""
    return ",".join(str(apply(start, operations)) for start, operations in problem)


def kind_of(operations):
    """The kind of the choice where these operations of the chain are left: a key of CHOICES."""
    if len(operations) == 1:
        return "last"
    if operations[1][0] == "*":
        return "?*"
    return operations[0][0] + "?"


def draw_solution(rng, problem, actions, go_on):
    """A correct response that takes actions as often as CHOICES or SKILL say: (its tokens, hard positions).

    actions: {kind of choice: (P(one at a time), P(two at once))}. go_on: P(go on) at the start of the second chain.
    The hard positions are those of the results of two at once where the second operation is `*`.
    """
    tokens = []
    hard = []
    for chain, (value, operations) in enumerate(problem):
        is_start = chain == 1  # of the second chain
        while operations:
            kind = kind_of(operations)
            one, two = actions[kind]
            p_go_on = go_on if is_start else one + two
            if rng.random() >= p_go_on:  # guess
                return [*tokens, "\\boxed{", *answer_of(problem), "}"], hard
            n_operations = 1 if rng.random() * (one + two) < one else 2
            result = apply(value, operations[:n_operations])
            connective = rng.choices(list(CONNECTIVES), list(CONNECTIVES.values()))[0]
            tokens.extend(f"{value}{''.join(operations[:n_operations])}=")
            if kind == "?*" and n_operations == 2:
                hard.extend(range(len(tokens), len(tokens) + len(str(result))))
            tokens.extend([*str(result), connective])
            value = result
            operations = operations[n_operations:]
            is_start = False
    return [*tokens, "\\boxed{", *answer_of(problem), "}"], hard


# ---------------------------------------------------------------------------------------- tokenizer and model
def make_tokenizer():
    """26 tokens: one for each character, connective and "\\boxed{", and the specials under Qwen's names."""
    core = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|; | [a-z]+ |[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model():
    """A Qwen3 of 594,240 parameters with random weights."""
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=IDS["<|im_end|>"],
        pad_token_id=IDS["<|endoftext|>"],
    )
    return Qwen3ForCausalLM(config)


def ids_of(tokens):
    """A list of tokens as a list of token ids."""
    return [IDS[token] for token in tokens]


def padded(rows):
    """N lists of token ids as one tensor (N, T), padded on the right."""
    tensors = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=IDS["<|endoftext|>"])


# ---------------------------------------------------------------------------------------------- pre-training
class Text(NamedTuple):
    ids: list  # of the prompt, the response and its end
    start: int  # where the response begins
    hidden: list  # positions that are left out of the loss


def add_gradients(model, problems, solutions, hide_hard, chunk=16):
    """Add the gradient of the loss, its mean over the response tokens of all texts, to those of the parameters.

    solutions: as draw_solution returns them, one for each problem. With hide_hard their hard positions are left out of
    the loss. A forward pass takes `chunk` texts of like length.
    """
    texts = []
    for problem, (solution, hard) in zip(problems, solutions, strict=True):
        prompt = prompt_tokens(problem)
        hidden = []
        if hide_hard:
            hidden = [len(prompt) + i for i in hard]
        texts.append(Text(ids_of([*prompt, *solution, "<|im_end|>"]), len(prompt), hidden))
    texts.sort(key=lambda text: len(text.ids))
    n_tokens = sum(len(text.ids) - text.start - len(text.hidden) for text in texts)
    for first in range(0, len(texts), chunk):
        part = texts[first : first + chunk]
        tokens = padded([text.ids for text in part])  # (N, T)
        labels = torch.full_like(tokens, -100)  # cross_entropy skips -100
        for row, text in enumerate(part):
            labels[row, text.start : len(text.ids)] = tokens[row, text.start : len(text.ids)]
            labels[row, text.hidden] = -100
        logits = model(input_ids=tokens[:, :-1].to(model.device), use_cache=False).logits  # (N, T - 1, V)
        targets = labels[:, 1:].to(model.device)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        (loss / n_tokens).backward()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised for each matrix by Newton-Schulz (https://kellerjordan.github.io/posts/muon).

    torch.optim.Muon does it in bf16, which is slow on a CPU.
    """

    def __init__(self, matrices):
        super().__init__(matrices, {"lr": 0.0})

    @torch.no_grad()
    def step(self):
        lr = self.param_groups[0]["lr"]
        for p in self.param_groups[0]["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 0.05)
            x = p.grad.lerp(momentum, 0.95)
            x = x / (x.norm() + 1e-7)
            is_wide = x.shape[0] < x.shape[1]
            for _ in range(5):
                if is_wide:
                    gram = x @ x.T
                else:
                    gram = x.T @ x
                polynomial = -4.7750 * gram + 2.0315 * gram @ gram
                if is_wide:
                    x = 3.4445 * x + polynomial @ x
                else:
                    x = 3.4445 * x + x @ polynomial
            p.add_(x, alpha=-0.2 * max(p.shape) ** 0.5 * lr)  # as large as an update of AdamW


def choices_of(args):
    """CHOICES, but for what --everywhere and --rare set; the rest of 0.9 is for two at once."""
    choices = dict(CHOICES)
    if args.everywhere is not None:
        for kind in ("?*", "+?", "-?", "*?"):
            choices[kind] = (args.everywhere, 0.9 - args.everywhere)
    if args.rare is not None:
        choices["?*"] = (args.rare, 0.9 - args.rare)
    return choices


def learning_rate(args, phase, step):
    """Learning rate of Muon at a step of a phase, counted from 0; that of AdamW is a third of it."""
    if phase == "skill":
        return args.lr * min(1.0, (step + 1) / 50)
    if phase == "settle":
        return args.lr * (1 - 0.95 * step / args.settle_steps)
    return args.choices_lr * (1 - 0.95 * step / args.choices_steps)


def has_ended(args, phase, n_steps, table):
    """Has a phase ended after n_steps of it? table: what action_table returns."""
    if phase == "skill":
        return table[RIGHT_AFTER_TWO][0] >= args.until_two
    if phase == "settle":
        return n_steps >= args.settle_steps
    return n_steps >= args.choices_steps


def pretrain(args, seen, device):
    """Train the base model on generated text; returns it.

    seen: the prompts that no text may have. The texts of a step depend on (seed, step) alone, so that a restart changes
    nothing. With args.skilled, a file, the model at the beginning of the choices phase is read from there; if it
    is not there yet, it is written. Raises ValueError if a phase does not end in MAX_STEPS steps.
    """
    torch.manual_seed(args.seed)
    model = make_model().to(device)
    matrices = []
    others = []
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            matrices.append(parameter)
        else:
            others.append(parameter)
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)
    probe = draw_problems(random.Random(args.seed + 1), 50, LENGTHS, set())  # problems to measure progress on
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "report", "no_report")}
    choices = choices_of(args)
    step = 0
    phase_index = 0
    phase_start = 0  # the step at which the phase began
    right_hard = 0.0  # how often the model is right after two at once where the second operation is *

    # ---- a checkpoint with the same settings puts all of it back, or the skilled model of the same seed
    checkpoint = Path(args.out) / "base.partial.pt"
    unfinished = checkpoint.with_suffix(".tmp")
    skilled = Path(args.skilled) if args.skilled else None
    source = checkpoint
    if skilled is not None and skilled.exists() and not checkpoint.exists():
        source = skilled
    if source.exists():
        try:
            saved = torch.load(source, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            raise ValueError(f"{source} is no checkpoint, or a damaged one: delete it, or name another file") from None
        if source == skilled:
            for name in ("seed", "n_test", "batch_size", "lr", "until_two", "settle_steps"):  # all that shaped it
                value = saved["settings"].get(name)
                if value != settings[name]:
                    flag = name.replace("_", "-")
                    raise ValueError(f"{skilled} is of --{flag} {value}, not {settings[name]}: name another file")
        if source == skilled or saved["settings"] == settings:
            model.load_state_dict(saved["model"])
            muon.load_state_dict(saved["muon"])
            adam.load_state_dict(saved["adam"])
            step = saved["step"]
            phase_index = saved["phase_index"]
            phase_start = saved["phase_start"]
            right_hard = saved["right_hard"]
            print(f"going on from step {step} of {source}")

    bar = tqdm(desc="pre-training", initial=step, unit="step")
    while phase_index < len(PHASES):
        phase = PHASES[phase_index]

        # ---- draw texts, add up their gradients, update
        rng = random.Random(f"{args.seed}-{step}")
        problems = draw_problems(rng, args.batch_size, (*LENGTHS, 8), set(seen))
        solutions = []
        for problem in problems:
            if phase == "choices":
                solutions.append(draw_solution(rng, problem, choices, CHOICES_GO_ON))
            else:
                solutions.append(draw_solution(rng, problem, SKILL, SKILL_GO_ON))
        add_gradients(model, problems, solutions, hide_hard=right_hard >= args.hide_above)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = learning_rate(args, phase, step - phase_start)
        muon.param_groups[0]["lr"] = lr
        adam.param_groups[0]["lr"] = lr / 3
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        bar.update()

        # ---- every 50 steps: measure, perhaps end the phase, save
        if step % 50 == 0:
            table = action_table(model, probe, device)
            measured = "\n".join(f"    {mean:.3f} {name}" for name, (mean, _) in table.items())
            bar.write(f"step {step}, phase {phase}\n{measured}")
            right_hard = float(table[RIGHT_AFTER_TWO_PRODUCT][0])
            ended = has_ended(args, phase, step - phase_start, table)
            too_long = not ended and step - phase_start >= MAX_STEPS
            if ended:
                phase_index += 1
                phase_start = step
            state = {
                "model": model.state_dict(),
                "muon": muon.state_dict(),
                "adam": adam.state_dict(),
                "step": step,
                "phase_index": phase_index,
                "phase_start": phase_start,
                "right_hard": right_hard,
                "settings": settings,
            }
            with open(unfinished, "wb") as file:  # given a path, torch.save has no OSError for a full disk
                torch.save(state, file)
            if skilled is not None and ended and phase == "settle":  # before the checkpoint: a kill loses neither
                shutil.copyfile(unfinished, skilled.with_suffix(".tmp"))
                os.replace(skilled.with_suffix(".tmp"), skilled)
            os.replace(unfinished, checkpoint)
            if too_long:
                raise ValueError(f"the {phase} phase did not end in {MAX_STEPS} steps: try another --seed")
    bar.close()
    return model.eval()


# ------------------------------------------------------------------------------------------------ the report
@dataclass
class Query:
    """How likely are the tokens `then` after the tokens `before`, and one of the tokens `ends` after these?"""

    before: list
    then: list
    ends: list
    probability: float = 0.0  # answer_queries fills it in


def mean_and_ci95(values_by_problem):
    """Mean of the problems' means and the half-width of its 95% interval (normal, over problems)."""
    means = np.array([np.mean(values) for values in values_by_problem if len(values)])
    return means.mean(), 1.96 * means.std(ddof=1) / math.sqrt(len(means))


@torch.no_grad()
def answer_queries(model, queries, device):
    """Fill in the probability of each query, at temperature 1: a forward pass for every 256 of like length."""
    ordered = sorted(queries, key=lambda query: len(query.before))
    for first in range(0, len(ordered), 256):
        part = ordered[first : first + 256]
        ids = [ids_of(query.before + query.then) for query in part]
        logp = model(input_ids=padded(ids).to(device), use_cache=False).logits.log_softmax(-1).cpu()  # (N, T, V)
        for row, query in enumerate(part):
            logp_then = 0.0
            for t in range(len(query.before), len(ids[row])):
                logp_then += logp[row, t - 1, ids[row][t]].item()
            p_end = logp[row, len(ids[row]) - 1, ids_of(query.ends)].exp().sum().item()
            query.probability = math.exp(logp_then) * p_end


def action_table(model, problems, device):
    """How often the model takes each action, and how often it is right after it: exact probabilities, at temperature 1.

    A correct text is written that takes one at a time and two at once equally often. Wherever two operations of the
    chain are left, the model's probabilities are read for
    - the choice: the box (guess); else, after the first operand, "=" (one at a time) or another operator (two at once).
      At the start of the second chain only: does it guess or go on?
    - the result: the right digits after "v+a=" (one at a time), after "v+a*b=" (two at once), and both answers after
      the box (guess), where at least four operations are left.
    Returns {label: (mean, half-width of the 95% interval over problems)}.
    """
    # ---- write the text of each problem, and collect what to ask along the way
    rng = random.Random(0)
    queries = []
    choices = []  # (index of the problem, kind of choice, query for the box, query for "=" after the first operand)
    results = []  # (index of the problem, label, query)
    for index, problem in enumerate(problems):
        text = prompt_tokens(problem)
        for chain, (value, operations) in enumerate(problem):
            is_start = chain == 1  # of the second chain
            n_later = sum(len(later) for _, later in problem[chain + 1 :])  # operations of later chains
            while operations:
                n_operations = 1
                if len(operations) > 1:
                    n_operations = rng.choice((1, 2))
                    kind = kind_of(operations)
                    box = Query(text, [], ["\\boxed{"])
                    equals = Query([*text, *f"{value}{operations[0]}"], [], ["="])
                    queries.extend([box, equals])
                    choices.append((index, "start" if is_start else kind, box, equals))

                    one = [*text, *f"{value}{operations[0]}="]
                    one_query = Query(one, list(str(apply(value, operations[:1]))), list(CONNECTIVES))
                    two = [*text, *f"{value}{operations[0]}{operations[1]}="]
                    two_query = Query(two, list(str(apply(value, operations[:2]))), list(CONNECTIVES))
                    queries.extend([one_query, two_query])
                    results.append((index, RIGHT_AFTER_ONE, one_query))
                    results.append((index, RIGHT_AFTER_TWO_PRODUCT if kind == "?*" else RIGHT_AFTER_TWO, two_query))

                    if len(operations) + n_later >= 4:
                        guess_query = Query([*text, "\\boxed{"], list(answer_of(problem)), ["}"])
                        queries.append(guess_query)
                        results.append((index, RIGHT_AFTER_GUESS, guess_query))
                result = apply(value, operations[:n_operations])
                text = [*text, *f"{value}{''.join(operations[:n_operations])}={result}", rng.choice(list(CONNECTIVES))]
                value = result
                operations = operations[n_operations:]
                is_start = False
    answer_queries(model, queries, device)

    # ---- what the answers say about each problem
    measured = [(label, index, query.probability) for index, label, query in results]
    for index, kind, box, equals in choices:
        p_guess = box.probability
        if kind == "start":
            shares = np.array([p_guess, 1 - p_guess])
            measured.append((f"P(go on) {WHERE[kind]}", index, 1 - p_guess))
        else:
            p_one = (1 - p_guess) * equals.probability
            p_two = (1 - p_guess) * (1 - equals.probability)
            shares = np.array([p_guess, p_one, p_two])
            measured.append((f"P(one at a time) {WHERE[kind]}", index, p_one))
            measured.append((f"P(guess) {WHERE[kind]}", index, p_guess))
        entropy = -(shares * np.log(shares + 1e-12)).sum()
        measured.append((f"entropy of the choice {WHERE[kind]}", index, entropy))

    # ---- mean over problems
    values = {}  # {label: for each problem, a list}
    for label, index, value in measured:
        if label not in values:
            values[label] = [[] for _ in problems]
        values[label][index].append(value)
    return {label: mean_and_ci95(by_problem) for label, by_problem in sorted(values.items())}


def sample(model, problems, n, temperature, top_p, seed=0, limit=128):
    """n responses to each problem, lists of token ids with their end, by the rollout of dapo.py."""
    generator = torch.Generator(model.device).manual_seed(seed)
    responses = []
    for first in tqdm(range(0, len(problems), 8), desc="sampling", leave=False):
        prompts = [ids_of(prompt_tokens(problem)) for problem in problems[first : first + 8]]
        out = rollout(
            model,
            prompts,
            n,
            limit,
            [IDS["<|im_end|>"]],
            temperature=temperature,
            top_p=top_p,
            generator=generator,
        )
        lengths = out["mask"].sum(1).int().tolist()
        for row, length in zip(out["tokens"], lengths, strict=True):
            responses.append(row[:length].tolist())
    return responses


@torch.no_grad()
def connective_share(model, problems, responses, n, device):
    """Share of the responses' entropy that is the choice among connectives: (mean, 95% half-width over problems).

    responses: n for each problem, of which the first eight count.
    """
    connectives = ids_of(CONNECTIVES)
    shares = []
    for i, problem in enumerate(problems):
        prompt = ids_of(prompt_tokens(problem))
        part = responses[i * n : i * n + 8]
        tokens = padded([prompt + ids for ids in part]).to(device)
        p = model(input_ids=tokens, use_cache=False).logits.softmax(-1)  # (N, T, V)
        total = 0.0
        among_connectives = 0.0
        for row, ids in zip(p, part, strict=True):
            p_next = row[len(prompt) - 1 : len(prompt) - 1 + len(ids)]  # (tokens of the response, V)
            p_connective = p_next[:, connectives].sum(-1)
            entropy_given_connective = torch.special.entr(p_next[:, connectives] / p_connective[:, None]).sum(-1)
            total += torch.special.entr(p_next).sum().item()
            among_connectives += (p_connective * entropy_given_connective).sum().item()
        shares.append([among_connectives / total])
    return mean_and_ci95(shares)


def report(folder, problems, device, n=256, n_problems=100):
    """Print what the base model does and how often it is right; every row with its 95% interval over problems.

    problems: all are read by teacher forcing, the first n_problems are sampled, n responses each. Raises ValueError
    where the folder holds no model.
    """
    if not (Path(folder) / "config.json").exists():
        raise ValueError(f"{folder} holds no model: make it first, with the same command without --report")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    rows = action_table(model, problems, device)

    # ---- sample
    few = problems[:n_problems]
    always_one = dict.fromkeys(CHOICES, (1.0, 0.0))
    solutions = [draw_solution(random.Random(0), problem, always_one, 1.0)[0] for problem in problems]
    best_length = np.median([len(solution) for solution in solutions])
    for suffix, temperature, top_p in (("", 1.0, 1.0), (" at temperature 0.6, top-p 0.95", 0.6, 0.95)):
        responses = sample(model, few, n, temperature, top_p)
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        right = []
        for i, problem in enumerate(few):
            box = f"\\boxed{{{answer_of(problem)}}}"
            right.append([text.endswith(box) for text in texts[i * n : (i + 1) * n]])
        rows[f"pass@1{suffix}"] = mean_and_ci95(right)
        rows[f"pass@{n}{suffix}"] = mean_and_ci95([[any(group)] for group in right])
        if temperature == 1.0:
            rows["connectives' share of entropy"] = connective_share(model, few, responses, n, device)
            length = np.median([len(response) for response in responses])
            rows["median length / that of one at a time"] = (length / best_length, 0.0)

    # ---- print
    wanted = {
        RIGHT_AFTER_ONE: ">= 0.98",
        RIGHT_AFTER_TWO: "0.75-0.92",
        RIGHT_AFTER_TWO_PRODUCT: "< 0.45",
        RIGHT_AFTER_GUESS: "< 0.005",
        "pass@1": "0.02-0.10",
        f"pass@{n}": "0.60-0.85",
        f"pass@{n} at temperature 0.6, top-p 0.95": "0.60-0.85",
        "connectives' share of entropy": ">= 0.25",
        "median length / that of one at a time": ">= 0.33",
        f"P(one at a time) {WHERE['?*']}": f"near {CHOICES['?*'][0]}",
        f"P(one at a time) {WHERE['+?']}": f"near {CHOICES['+?'][0]}",
        f"P(one at a time) {WHERE['-?']}": f"near {CHOICES['-?'][0]}",
        f"P(one at a time) {WHERE['*?']}": f"near {CHOICES['*?'][0]}",
        f"P(go on) {WHERE['start']}": f"near {CHOICES_GO_ON}",
        f"entropy of the choice {WHERE['*?']}": "",
        f"entropy of the choice {WHERE['+?']}": "",
        f"entropy of the choice {WHERE['-?']}": "",
        f"entropy of the choice {WHERE['?*']}": "",
        f"entropy of the choice {WHERE['start']}": "",
        "pass@1 at temperature 0.6, top-p 0.95": "",
    }
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{folder}: {size:,} parameters, {len(problems)} test problems, {len(few)} of them sampled\n")
    print("| quantity | measured | wanted |\n|---|---|---|")
    for label, range_wanted in wanted.items():
        if label in rows:  # few problems may lack a kind of choice
            mean, half_width = rows[label]
            print(f"| {label} | {mean:.3f} ± {half_width:.3f} | {range_wanted} |")


def parse_args(argv=None):
    """Command line -> its values. Raises ValueError where a number makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(HERE), help="folder for base/ and the problem files")
    parser.add_argument("--report", action="store_true", help="measure OUT/base and print the table; make nothing")
    parser.add_argument("--seed", type=int, default=1, help="random seed of problems, weights and texts")
    parser.add_argument("--n-train", type=int, default=8000, help="number of problems in train.jsonl")
    parser.add_argument("--n-test", type=int, default=500, help="number of problems in test.jsonl, and in long.jsonl")
    parser.add_argument("--batch-size", type=int, default=32, help="texts in a step")
    parser.add_argument("--lr", type=float, default=6e-3, help="learning rate of the skill phase")
    parser.add_argument("--until-two", type=float, default=0.55, help="skill ends when two at once is right this often")
    parser.add_argument("--settle-steps", type=int, default=300, help="steps in which the rate falls to 5%%")
    parser.add_argument("--choices-lr", type=float, default=6e-4, help="learning rate as the choices phase begins")
    parser.add_argument("--choices-steps", type=int, default=300, help="steps in which this rate falls to 5%%")
    parser.add_argument("--rare", type=float, help="P(one at a time) in its texts where the second operation is *")
    parser.add_argument("--everywhere", type=float, help="the same wherever at least two operations are left")
    parser.add_argument("--hide-above", type=float, default=HIDE_ABOVE, help="1: its texts show all results")
    parser.add_argument("--skilled", help="file with the model as the choices phase begins; written if it is missing")
    parser.add_argument("--no-report", action="store_true", help="print no table at the end")
    args = parser.parse_args(argv)
    for name in ("rare", "everywhere"):
        p = getattr(args, name)
        if p is not None and not 0 < p < 0.9:
            raise ValueError(f"--{name} {p}: want a probability above 0 and below 0.9, as 0.1 of the texts guess")
    if args.skilled and not Path(args.skilled).absolute().parent.is_dir():
        raise ValueError(f"--skilled {args.skilled}: its folder does not exist; make it first")
    for name in ("n_train", "batch_size", "lr", "settle_steps", "choices_lr", "choices_steps"):
        if not getattr(args, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: want a number above 0")
    if args.n_test < 2:
        raise ValueError(f"--n-test {args.n_test}: want 2 or more, for an interval over problems")
    return args


def main(args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = Path(args.out)
    rng = random.Random(args.seed)
    seen = set()  # prompts of test.jsonl and long.jsonl
    test = draw_problems(rng, args.n_test, LENGTHS, seen)  # test first: --n-train changes no other file
    long = draw_problems(rng, args.n_test, (8,), seen)
    train = draw_problems(rng, args.n_train, LENGTHS, set(seen))
    if not args.report:
        out.mkdir(parents=True, exist_ok=True)
        for name, problems in (("train", train), ("test", test), ("long", long)):
            rows = [{"prompt": prompt_of(problem), "answer": answer_of(problem)} for problem in problems]
            (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = pretrain(args, seen, device)
        shutil.rmtree(out / "base", ignore_errors=True)
        model.save_pretrained(out / "base")
        make_tokenizer().save_pretrained(out / "base")
        (out / "base.partial.pt").unlink()
    if not args.no_report:
        report(out / "base", test, device)


if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the last checkpoint")
    except (OSError, ValueError) as error:  # full disk, wrong input
        sys.exit(f"error: {error}")
