"""Make the tiny world: a tokenizer, three problem files and a small Qwen3 base model, from nothing but a seed.

A problem is two chains of operations modulo 100, worked left to right, one chain after the other, both results boxed:

    63*2-2,77-7+2-1?   ->   63*2-2=24; 77-7=70 then 70+2-1=71 so \\boxed{24,71}

A response is a series of *leaps*. At every fork the writer may fold one operation ("77-7=70"), fold two at once
("63*2-2=24"), or jump straight to the box with operations still open. After a leap comes one of four connectives that
mean the same. Every text that the base model learns from is correct; the leaps differ in reliability because a model of
0.6 million parameters does one operation in its head nearly always, two often, and the four or more that a jump skips
hardly ever. Two whose second is a product it is not taught. How often which leap is taken depends on the next two
operations, and between the chains there is one more choice, to go on or to guess: `FORK`. Pre-training has three
phases:

- skill: texts with many leaps of one and of two teach the arithmetic, until the model is right often enough after two,
  which takes 750 to 1,200 steps. Two are never folded where the second is a product, so that this stays hard;
- settle: the same with a falling learning rate;
- fork: texts in which the best leap (one) is rare, by kind, set the *habit* at the forks.

    python tiny/make_tiny.py             # tiny/base, tiny/{train,test,long}.jsonl: 12 minutes
    python tiny/make_tiny.py --report    # how reliable each leap of tiny/base is, how often chosen, pass@256

An interrupted run goes on from its last checkpoint (every 50 steps) when it is started again with the same arguments.
"""

import argparse
import json
import math
import os
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from dapo import rollout  # noqa: E402

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]  # pad, start of prompt, end of response, unknown
CONNECTIVES = {"; ": 0.3, " so ": 0.25, " then ": 0.25, " thus ": 0.2}  # after a leap, whatever comes next
VOCABULARY = [*SPECIALS, *"0123456789+-*=,?", *CONNECTIVES, "\\boxed{", "}"]
IDS = {token: i for i, token in enumerate(VOCABULARY)}
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] }}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# the habits that the fork phase teaches, by the next two operations: P(fold one), P(fold two), else jump;
# "last": with one operation open in the chain; "half": P(go on) when the first chain is finished, else jump
FORK = {
    "?*": (0.005, 0.895),  # the second is a product: folding two mostly fails
    "+?": (0.04, 0.86),
    "-?": (0.06, 0.84),
    "*?": (0.09, 0.81),
    "last": (0.80, 0.0),
    "half": 0.30,
}
SKILL = dict.fromkeys(FORK, (0.50, 0.45)) | {"?*": (0.95, 0.0), "last": (0.95, 0.0), "half": 0.95}
AIMS = {f"choose one at {kind}": FORK[kind][0] for kind in ("?*", "+?", "-?", "*?")} | {"go on at half": FORK["half"]}
HARD = 0.12  # the fork phase does not teach the results of folding two at "?*" while they are right this often
MAX_STEPS = 3000  # of a phase
SIGNS = "++--*"  # equally likely; products are the minority
LENGTHS = (2, 4, 6)  # operations of a chain; pre-training has seen LENGTHS + (8,), and long.jsonl has only 8


# ----------------------------------------------------------------------------------------------------- the task
def apply(value, operations):
    """Operations such as ["+8", "*2"] on a value, left to right, modulo 100."""
    for operation in operations:
        operand = int(operation[1:])
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[operation[0]] % 100
    return value


def draw_problem(rng, lengths=LENGTHS):
    """Two chains, each a start value 0-99 and an even number of operations, so that twos leave none over."""

    def operation():
        sign = rng.choice(SIGNS)
        return sign + str(rng.randint(2, 3) if sign == "*" else rng.randint(1, 9))

    return [(rng.randint(0, 99), [operation() for _ in range(rng.choice(lengths))]) for _ in range(2)]


def prompt_of(problem):
    return ",".join(f"{start}{''.join(operations)}" for start, operations in problem) + "?"


def answer_of(problem):
    return ",".join(str(apply(*chain)) for chain in problem)


def kind_of(operations):
    return "?*" if operations[1][0] == "*" else operations[0][0] + "?"


def draw_solution(rng, problem, habit):
    """A correct response with the habits of FORK or SKILL: (tokens, positions of the results of two at "?*")."""
    tokens, hard = [], []
    for chain, (value, operations) in enumerate(problem):
        half = chain == 1
        while operations:
            one, two = habit["last" if len(operations) == 1 else kind_of(operations)]
            if rng.random() >= (habit["half"] if half else one + two):
                return [*tokens, "\\boxed{", *answer_of(problem), "}"], hard
            n, half = 1 if rng.random() * (one + two) < one else 2, False
            result = apply(value, operations[:n])
            connective = rng.choices([*CONNECTIVES], [*CONNECTIVES.values()])[0]
            tokens += f"{value}{''.join(operations[:n])}="
            if n == 2 and kind_of(operations) == "?*":
                hard += range(len(tokens), len(tokens) + len(str(result)))
            tokens += [*str(result), connective]
            value, operations = result, operations[n:]
    return [*tokens, "\\boxed{", *answer_of(problem), "}"], hard


def draw_problems(rng, n, lengths, seen):
    """n problems whose prompts are not in the set `seen`, to which they are added."""
    problems = []
    while len(problems) < n:
        problem = draw_problem(rng, lengths)
        if prompt_of(problem) not in seen:
            seen.add(prompt_of(problem))
            problems.append(problem)
    return problems


# ---------------------------------------------------------------------------------------- tokenizer and model
def make_tokenizer():
    """26 tokens: one for each character, connective and "\\boxed{", and the specials under Qwen's names."""
    core = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|; | [a-z]+ |[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    pad, _, eos, unk = SPECIALS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        additional_special_tokens=["<|im_start|>"],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model():
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


def padded(rows):
    """Lists of token ids as one tensor, filled up with the padding token."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, IDS["<|endoftext|>"])


def text_loss_backward(model, problems, solutions, mute_hard, chunk=16):
    """Add the gradient of the mean loss of a response token, all or all but the hard ones, by chunks of like length."""
    texts = []
    for problem, (solution, hard) in zip(problems, solutions, strict=True):
        prompt = ["<|im_start|>", *prompt_of(problem)]
        ids = [IDS[token] for token in [*prompt, *solution, "<|im_end|>"]]
        texts.append((ids, len(prompt), [len(prompt) + i for i in hard if mute_hard]))
    texts.sort(key=lambda text: len(text[0]))
    n_tokens = sum(len(ids) - start - len(muted) for ids, start, muted in texts)
    for i in range(0, len(texts), chunk):
        part = texts[i : i + chunk]
        tokens = padded([ids for ids, _, _ in part])
        labels = torch.full_like(tokens, -100)
        for row, (ids, start, muted) in enumerate(part):
            labels[row, start : len(ids)] = tokens[row, start : len(ids)]
            labels[row, muted] = -100
        logits = model(input_ids=tokens[:, :-1].to(model.device), use_cache=False).logits
        labels = labels[:, 1:].to(model.device)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        (loss / n_tokens).backward()


# ---------------------------------------------------------------------------------------------- pre-training
class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised for each matrix by Newton-Schulz; torch.optim.Muon does it in bf16, slow on a CPU."""

    def __init__(self, matrices):
        super().__init__(matrices, {"lr": 0.0})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 0.05)
            x = p.grad.lerp(momentum, 0.95)
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                a = x @ x.T if len(x) < x.shape[1] else x.T @ x
                a = -4.7750 * a + 2.0315 * a @ a
                x = 3.4445 * x + (a @ x if len(x) < x.shape[1] else x @ a)
            p.add_(x, alpha=-0.2 * max(p.shape) ** 0.5 * self.param_groups[0]["lr"])  # the size of an AdamW step


def pretrain(args, seen, device):
    """Train the base on generated text. A step's text depends on (seed, step) alone, so that a restart changes nothing.

    Skill: a constant learning rate until leaps of two are right often enough; settle: a linear decay; fork: a small
    rate that decays and the texts of FORK.
    """
    torch.manual_seed(args.seed)
    model = make_model().to(device)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon, adam = Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01)
    partial, probe = Path(args.out) / "base.partial.pt", draw_problems(random.Random(args.seed + 1), 50, LENGTHS, set())
    settings, parts = vars(args) | {"out": None, "report": None}, {"model": model, "muon": muon, "adam": adam}
    at = {"step": 0, "ends": [], "hard": 0.0}  # ends: the steps at which phases ended; hard: right after two at "?*"
    if partial.exists():
        saved = torch.load(partial, map_location=device, weights_only=True)
        if saved["settings"] == settings:
            for name, part in parts.items():
                part.load_state_dict(saved[name])
            at = saved["at"]
            print(f"going on from step {at['step']} of {partial}")
    bar = tqdm(desc="pre-training", initial=at["step"], unit="step")
    while len(at["ends"]) < 3:
        phase, since = ("skill", "settle", "fork")[len(at["ends"])], at["step"] - max([0, *at["ends"]])
        lr = {"skill": args.lr * min(1.0, (since + 1) / 50), "settle": args.lr * (1 - 0.95 * since / args.settle_steps)}
        lr = lr.get(phase, args.fork_lr * (1 - 0.95 * since / args.fork_steps))
        rng = random.Random(f"{args.seed}-{at['step']}")
        problems = draw_problems(rng, args.batch_size, (*LENGTHS, 8), set(seen))  # never a problem of the files
        solutions = [draw_solution(rng, problem, FORK if phase == "fork" else SKILL) for problem in problems]
        text_loss_backward(model, problems, solutions, mute_hard=at["hard"] >= HARD)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in (muon, lr), (adam, lr / 3):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        at["step"] += 1
        bar.update()
        if at["step"] % 50 == 0:
            rows = {name: float(mean) for name, (mean, _) in leap_table(model, probe, device).items()}
            bar.write(f"step {at['step']} {phase}: " + "  ".join(f"{k} {v:.3f}" for k, v in rows.items()))
            over = {"skill": rows["right after two"] >= args.until_two, "settle": since + 1 >= args.settle_steps}
            over = over.get(phase, since + 1 >= args.fork_steps)
            at["ends"] += [at["step"]] * over
            at["hard"] = rows["right after two at ?*"]
            state = {name: part.state_dict() for name, part in parts.items()} | {"at": at, "settings": settings}
            torch.save(state, partial.with_suffix(".tmp"))
            os.replace(partial.with_suffix(".tmp"), partial)
            if since + 1 >= MAX_STEPS and not over:
                raise SystemExit(f"the {phase} phase did not end in {MAX_STEPS} steps: try another --seed")
    bar.close()
    return model.eval()


# ------------------------------------------------------------------------------------------------ the report
def mean_and_ci(values_by_problem):
    """Mean of the problems' means and the half-width of its 95% interval (normal, over problems)."""
    means = np.array([np.mean(v) for v in values_by_problem if len(v)])
    return means.mean(), 1.96 * means.std(ddof=1) / math.sqrt(len(means))


@torch.no_grad()
def leap_table(model, problems, device):
    """Reliability of each leap and habit at each kind of fork: exact, at temperature 1, by teacher forcing.

    A correct text that folds one or two with equal odds is laid down; wherever two operations of the chain are open in
    it, the model's probability is read for
      the choice: `\\boxed{` at once (jump), `=` after the first operand (one), another operator there (two); at the
      first fork of the second chain, the half, only whether it jumps or goes on;
      the result: the right digits after a forced `v+a=` (one), `v+a*b=` (two), both answers after `\\boxed{` (jump,
      where at least four operations are open).
    Returns {name: (mean, half-width of the 95% interval over problems)}.
    """
    rng = random.Random(0)
    queries = []  # (index of the problem, what, tokens before, tokens that are right, tokens that may come after them)
    for index, problem in enumerate(problems):
        text = ["<|im_start|>", *prompt_of(problem)]
        for chain, (value, operations) in enumerate(problem):
            half = chain == 1
            while operations:
                n_open = len(operations) + sum(len(later) for _, later in problem[chain + 1 :])
                n = rng.choice((1, 2)) if len(operations) > 1 else 1
                if len(operations) > 1:
                    kind = kind_of(operations)
                    queries += [(index, "choice half" if half else f"choice {kind}", text, [], ["\\boxed{"])]
                    queries += [(index, "stop", [*text, *f"{value}{operations[0]}"], [], ["="])]
                    for m, what in (1, "one"), (2, "two at ?*" if kind == "?*" else "two"):
                        before = [*text, *f"{value}{''.join(operations[:m])}="]
                        right = [*str(apply(value, operations[:m]))]
                        queries += [(index, f"right after {what}", before, right, [*CONNECTIVES])]
                    if n_open >= 4:
                        queries += [(index, "right after jump", [*text, "\\boxed{"], [*answer_of(problem)], ["}"])]
                result = apply(value, operations[:n])
                text = [*text, *f"{value}{''.join(operations[:n])}={result}", rng.choice([*CONNECTIVES])]
                value, operations, half = result, operations[n:], False
    order, prob = sorted(range(len(queries)), key=lambda i: len(queries[i][2])), np.zeros(len(queries))
    for i in range(0, len(order), 256):
        part = order[i : i + 256]
        ids = [[IDS[t] for t in [*queries[q][2], *queries[q][3]]] for q in part]
        logp = model(input_ids=padded(ids).to(device), use_cache=False).logits.log_softmax(-1).cpu()
        for row, q in enumerate(part):
            _, _, before, right, ends = queries[q]
            digits = sum(logp[row, t - 1, ids[row][t]].item() for t in range(len(before), len(before) + len(right)))
            end = logp[row, len(ids[row]) - 1, [IDS[t] for t in ends]].exp().sum().item()
            prob[q] = math.exp(digits) * end
    found = {}
    for q, (index, what, *_) in enumerate(queries):
        values = {what: prob[q]} if what.startswith("right") else {}
        if what.startswith("choice"):
            kind, jump, stop = what.removeprefix("choice "), prob[q], prob[q + 1]  # the next query is its "stop"
            arms = np.array([jump, 1 - jump] if kind == "half" else [jump, (1 - jump) * stop, (1 - jump) * (1 - stop)])
            values = {"go on at half": 1 - jump} if kind == "half" else {f"choose one at {kind}": arms[1]}
            values |= {f"entropy of the choice at {kind}": -(arms * np.log(arms + 1e-12)).sum()}
        for name, value in values.items():
            found.setdefault(name, [[] for _ in problems])[index].append(value)
    return {name: mean_and_ci(values) for name, values in sorted(found.items())}


def sample(model, problems, n, temperature, top_p, seed=0, limit=128):
    """n responses to each problem, lists of token ids with their end, by the rollout of dapo.py."""
    sampling = {"temperature": temperature, "top_p": top_p}
    sampling["generator"], responses = torch.Generator(model.device).manual_seed(seed), []
    for i in tqdm(range(0, len(problems), 8), desc="sampling", leave=False):
        prompts = [[IDS[t] for t in ["<|im_start|>", *prompt_of(p)]] for p in problems[i : i + 8]]
        out = rollout(model, prompts, n, limit, [IDS["<|im_end|>"]], **sampling)
        lengths = out["mask"].sum(1).int().tolist()
        responses += [row[:length].tolist() for row, length in zip(out["tokens"], lengths, strict=True)]
    return responses


@torch.no_grad()
def connective_share(model, problems, responses, n, device):
    """Share of the responses' entropy that is the choice among connectives: (mean, 95% half-width over problems)."""
    connectives, shares = [IDS[c] for c in CONNECTIVES], []
    for i, problem in enumerate(problems):
        prompt, total, neutral = [IDS[t] for t in ["<|im_start|>", *prompt_of(problem)]], 0.0, 0.0
        part = responses[i * n : i * n + 8]
        tokens = padded([prompt + ids for ids in part]).to(device)
        p = model(input_ids=tokens, use_cache=False).logits.softmax(-1)
        for row, ids in zip(p, part, strict=True):
            q = row[len(prompt) - 1 : len(prompt) - 1 + len(ids)]
            mass = q[:, connectives].sum(-1)
            total += torch.special.entr(q).sum().item()
            neutral += (mass * torch.special.entr(q[:, connectives] / mass[:, None]).sum(-1)).sum().item()
        shares.append([neutral / total])
    return mean_and_ci(shares)


def report(folder, problems, device, n=256, n_problems=100):
    """Print the table of the base model's skill and habit; every row with its 95% interval over problems."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    rows, few = leap_table(model, problems, device), problems[:n_problems]
    for name, temperature, top_p in ("", 1.0, 1.0), (" at 0.6 / 0.95", 0.6, 0.95):
        responses = sample(model, few, n, temperature, top_p)
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        right = [text.endswith(f"\\boxed{{{answer_of(few[i // n])}}}") for i, text in enumerate(texts)]
        right = np.array(right).reshape(len(few), n)
        rows["pass@1" + name], rows[f"pass@{n}" + name] = mean_and_ci(right), mean_and_ci(right.max(1)[:, None])
        if not name:
            rows["connectives' share of entropy"] = connective_share(model, few, responses, n, device)
            base = np.median([len(r) for r in responses])
            ones = dict.fromkeys(FORK, (1.0, 0.0)) | {"half": 1.0}
            best = np.median([len(draw_solution(random.Random(0), p, ones)[0]) for p in problems])
            rows["median length / that of leaps of one"] = base / best, 0.0
    wanted = {
        "right after one": ">= 0.98",
        "right after two": "0.75-0.92",
        "right after two at ?*": "< 0.45",
        "right after jump": "< 0.005",
        "pass@1": "0.02-0.10",
        f"pass@{n}": "0.60-0.85",
        f"pass@{n} at 0.6 / 0.95": "0.60-0.85",
        "connectives' share of entropy": ">= 0.25",
        "median length / that of leaps of one": ">= 0.33",
    }
    wanted |= {name: f"near {aim}" for name, aim in AIMS.items()}
    size = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {size:,} parameters, {len(problems)} test problems, {len(few)} of them sampled\n")
    print("| quantity | measured | wanted |\n|---|---|---|")
    for name in sorted(rows, key=lambda name: (name not in wanted, [*wanted].index(name) if name in wanted else 0)):
        print(f"| {name} | {rows[name][0]:.3f} ± {rows[name][1]:.3f} | {wanted.get(name, '')} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(HERE), help="folder for base/ and the problem files")
    parser.add_argument("--report", action="store_true", help="measure OUT/base and print the table; make nothing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n-train", type=int, default=8000, help="problems in train.jsonl")
    parser.add_argument("--n-test", type=int, default=500, help="problems in test.jsonl and in long.jsonl")
    parser.add_argument("--batch-size", type=int, default=32, help="texts a step")
    parser.add_argument("--lr", type=float, default=6e-3, help="learning rate of the skill phase")
    parser.add_argument("--until-two", type=float, default=0.55, help="reliability of leaps of two that ends the phase")
    parser.add_argument("--settle-steps", type=int, default=300, help="linear decay of the learning rate")
    parser.add_argument("--fork-lr", type=float, default=6e-4, help="learning rate at the start of the fork phase")
    parser.add_argument("--fork-steps", type=int, default=300, help="linear decay of that rate")
    args = parser.parse_args()
    device, out = "cuda" if torch.cuda.is_available() else "cpu", Path(args.out)
    rng, seen = random.Random(args.seed), set()
    test = draw_problems(rng, args.n_test, LENGTHS, seen)  # test first: --n-train changes no other file
    long = draw_problems(rng, args.n_test, (8,), seen)
    train = draw_problems(rng, args.n_train, LENGTHS, set(seen))
    if not args.report:
        out.mkdir(parents=True, exist_ok=True)
        for name, problems in {"train": train, "test": test, "long": long}.items():
            rows = [{"prompt": prompt_of(p), "answer": answer_of(p)} for p in problems]
            (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        model = pretrain(args, seen, device)
        shutil.rmtree(out / "base", ignore_errors=True)
        model.save_pretrained(out / "base")
        make_tokenizer().save_pretrained(out / "base")
        (out / "base.partial.pt").unlink()
    report(out / "base", test, device)


if __name__ == "__main__":
    main()
