"""Make the tiny world: a tokenizer, two problem files and a small Qwen3 base model, from nothing but a seed.

The task is arithmetic modulo 100, left to right, with an even number of operations:

    44+8-3*2+1?   ->   44+8=52;52-3*2=98;98+1=99;\\boxed{99}

A response is a chain of *leaps*. At every fork the writer may fold one operation ("44+8=52;"), fold two at once
("52-3*2=98;"), or jump straight to the answer ("\\boxed{99}" with operations still open). Every text that the base
model learns from is correct; the leaps differ in reliability only because a model of 0.6 million parameters can do one
operation in its head nearly always, two often, and five hardly ever. Pre-training has three phases:

- skill: texts with many leaps of one and of two teach the arithmetic, until leaps of two are right often enough;
- settle: the same with a falling learning rate;
- fork: texts that mostly jump, often fold two and rarely fold one set the *habit* at the fork.

So the base has a rare habit that is best (fold one), a common one that is fair (fold two) and a common one that is poor
(jump): the three-armed bandit of paper B, section 3, inside a language model. `dapo.py` has to find the rare one.

    python tiny/make_tiny.py             # tiny/base, tiny/train.jsonl, tiny/test.jsonl: 10 minutes on two cores
    python tiny/make_tiny.py --report    # how reliable each leap of tiny/base is, how often chosen, pass@64

An interrupted run goes on from its last checkpoint (every 100 steps) when it is started again with the same arguments.
"""

import argparse
import json
import math
import os
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).resolve().parent
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]  # pad, start of prompt, end of response, unknown
CHARACTERS = list("0123456789+-*=;?") + ["\\boxed{", "}"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>' + m['content'] }}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)


# ----------------------------------------------------------------------------------------------------- the task
def apply(value, operation):
    """One operation such as "+8" on a value, modulo 100."""
    sign, operand = operation[0], int(operation[1:])
    return {"+": value + operand, "-": value - operand, "*": value * operand}[sign] % 100


def draw_problem(rng, lengths=(4, 6, 8, 10)):
    """A start value 0-99 and its operations, an even number of them, so that a chain of twos leaves no one over."""
    operations = []
    for _ in range(rng.choice(lengths)):
        sign = rng.choice("+-*")
        operations.append(sign + str(rng.randint(2, 3) if sign == "*" else rng.randint(1, 9)))
    return rng.randint(0, 99), operations


def prompt_of(start, operations):
    return f"{start}{''.join(operations)}?"


def answer_of(start, operations):
    for operation in operations:
        start = apply(start, operation)
    return start


def draw_solution(rng, start, operations, one, two):
    """A correct response as a list of leaps: fold one with probability `one`, two with `two`, otherwise jump."""
    leaps, value, i = [], start, 0
    while i < len(operations):
        draw = rng.random()
        if draw >= one + two:
            break
        fold = operations[i : i + (1 if draw < one else 2)]
        result = answer_of(value, fold)
        leaps.append(f"{value}{''.join(fold)}={result};")
        value, i = result, i + len(fold)
    return leaps + [f"\\boxed{{{answer_of(start, operations)}}}"]


def write_problems(path, problems):
    rows = [{"prompt": prompt_of(*p), "answer": str(answer_of(*p))} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw_problem_files(seed, n_train, n_test):
    """Distinct problems, test first; returns (train, test) as lists of (start, operations)."""
    rng, seen = random.Random(seed), {}
    while len(seen) < n_train + n_test:
        problem = draw_problem(rng)
        seen[prompt_of(*problem)] = problem
    problems = list(seen.values())
    return problems[n_test:], problems[:n_test]


# ---------------------------------------------------------------------------------------- tokenizer and model
def make_tokenizer():
    """22 tokens: one for each character, one for "\\boxed{", and the specials under Qwen's names."""
    vocabulary = {token: i for i, token in enumerate(SPECIALS + CHARACTERS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), behavior="isolated")
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


def make_model(tokenizer):
    config = Qwen3Config(
        vocab_size=len(tokenizer),
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
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def encode_texts(tokenizer, problems, solutions):
    """[(token ids of prompt + response, length of the prompt)] of every text, shortest first."""
    ids, texts = tokenizer.get_vocab(), []
    for problem, leaps in zip(problems, solutions, strict=True):
        prompt = ["<|im_start|>", *prompt_of(*problem)]
        response = [*"".join(leaps[:-1]), "\\boxed{", *leaps[-1].removeprefix("\\boxed{"), "<|im_end|>"]
        texts.append(([ids[token] for token in prompt + response], len(prompt)))
    return sorted(texts, key=lambda text: len(text[0]))


def text_loss_backward(model, tokenizer, problems, solutions, chunk=32):
    """Add the gradient of the mean loss of a response token; chunks of like length waste little on padding."""
    texts = encode_texts(tokenizer, problems, solutions)
    n_tokens, total = sum(len(ids) - start for ids, start in texts), 0.0
    for i in range(0, len(texts), chunk):
        width = len(texts[min(i + chunk, len(texts)) - 1][0])
        tokens = torch.full((min(chunk, len(texts) - i), width), tokenizer.pad_token_id)
        labels = torch.full_like(tokens, -100)
        for row, (ids, start) in enumerate(texts[i : i + chunk]):
            tokens[row, : len(ids)] = torch.tensor(ids)
            labels[row, start : len(ids)] = tokens[row, start : len(ids)]
        logits = model(input_ids=tokens[:, :-1].to(model.device)).logits
        labels = labels[:, 1:].to(model.device)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / n_tokens
        loss.backward()
        total += loss.item()
    return total


# ---------------------------------------------------------------------------------------------- pre-training
def pretrain(args, tokenizer, held_out, device):
    """Train the base on generated text. A step's text depends on (seed, step) alone, so that a restart changes nothing.

    Skill phase: constant learning rate until leaps of two are right often enough, then a linear decay over the settle
    phase; fork phase: a small rate and the habit's mixture, too short to unlearn the rare leap of one.
    """
    torch.manual_seed(args.seed)
    model = make_model(tokenizer).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
    partial = Path(args.out) / "base.partial.pt"
    arguments = {k: v for k, v in vars(args).items() if k not in ("out", "report")}
    probe = draw_problem_files(args.seed + 1, 1, 100)[1]
    step, learnt = 0, None  # learnt: the step at which the skill phase ended
    if partial.exists():
        saved = torch.load(partial, map_location=device, weights_only=True)
        if saved["args"] == arguments:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            step, learnt = saved["step"], saved["learnt"]
            print(f"going on from step {step} of {partial}")
    bar = tqdm(desc="pre-training", initial=step, total=args.max_skill_steps + args.settle_steps + args.fork_steps)
    while learnt is None or step < learnt + args.settle_steps + args.fork_steps:
        if learnt is None:
            lr, (one, two) = args.lr * min(1.0, (step + 1) / 50), args.skill_mix
        elif step < learnt + args.settle_steps:
            lr, (one, two) = args.lr * (1 - 0.95 * (step - learnt) / args.settle_steps), args.skill_mix
        else:
            lr, (one, two) = args.fork_lr, args.fork_mix
        rng, problems = random.Random(f"{args.seed}-{step}"), []
        while len(problems) < args.batch_size:
            problem = draw_problem(rng)
            if prompt_of(*problem) not in held_out:  # never a test problem
                problems.append(problem)
        loss = text_loss_backward(model, tokenizer, problems, [draw_solution(rng, *p, one, two) for p in problems])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        bar.update()
        if step % 100 == 0:
            table = leap_table(model, tokenizer, probe, device)
            bar.write(f"step {step}: loss {loss:.3f}  " + "  ".join(f"{k} {v[0]:.3f}" for k, v in table.items()))
            if learnt is None and table["right after two"][0] >= args.until_two:
                learnt = step
            elif learnt is None and step >= args.max_skill_steps:
                raise SystemExit(f"leaps of two were not learnt in {step} steps: try another --seed")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step, "learnt": learnt, "args": arguments}, partial.with_suffix(".tmp"))
            os.replace(partial.with_suffix(".tmp"), partial)
    bar.close()
    return model


# ------------------------------------------------------------------------------------------------ the report
def mean_and_ci(values_by_problem):
    """Mean of the problems' means and the half-width of its 95% interval (normal, over problems)."""
    means = np.array([np.mean(v) for v in values_by_problem if len(v)])
    return means.mean(), 1.96 * means.std(ddof=1) / math.sqrt(len(means))


@torch.no_grad()
def leap_table(model, tokenizer, problems, device):
    """Reliability of each leap and habit at the fork: exact probabilities at temperature 1, by teacher forcing.

    A correct chain that folds one or two with equal odds is laid down; at every fork of it with at least three
    operations open (where the three choices differ) the model's probability is read for
      the choice: `\\boxed{` at once (jump), `=` after the first operand (one), another operator there (two);
      the result: the right digits after a forced `v+a=` (one), `v+a*b=` (two) or `\\boxed{` (jump).
    Returns {name: (mean, half-width of the 95% interval over problems)}.
    """
    rng = random.Random(0)
    queries = []  # (problem index, kind, context, continuation)
    for index, (start, operations) in enumerate(problems):
        value, i, prefix = start, 0, ""
        while len(operations) - i >= 3:
            result = {n: answer_of(value, operations[i : i + n]) for n in (1, 2)}
            goal = answer_of(start, operations)
            one, two = (f"{value}{''.join(operations[i : i + n])}" for n in (1, 2))
            queries += [
                (index, "choose jump", prefix, ["\\boxed{"]),
                (index, "stop after one", prefix + one, ["="]),
                (index, "right after one", prefix + one + "=", list(f"{result[1]};")),
                (index, "right after two", prefix + two + "=", list(f"{result[2]};")),
                (index, "right after jump", prefix + "\\boxed{", list(f"{goal}}}")),
            ]
            n = rng.choice((1, 2))
            prefix += f"{(one, two)[n - 1]}={result[n]};"
            value, i = result[n], i + n
    logps = continuation_logp(model, tokenizer, problems, queries, device)
    found = {}
    for (index, kind, _, _), logp in zip(queries, logps, strict=True):
        found.setdefault(kind, [[] for _ in problems])[index].append(math.exp(logp))
    jump, stop = found.pop("choose jump"), found.pop("stop after one")
    pairs = [list(zip(j, s, strict=True)) for j, s in zip(jump, stop, strict=True)]
    found["choose one"] = [[(1 - j) * s for j, s in p] for p in pairs]
    found["choose two"] = [[(1 - j) * (1 - s) for j, s in p] for p in pairs]
    found["choose jump"] = jump
    return {kind: mean_and_ci(values) for kind, values in found.items()}


def continuation_logp(model, tokenizer, problems, queries, device, batch_size=512):
    """log P(continuation | prompt + context) for every query, in batches."""
    out = []
    for i in range(0, len(queries), batch_size):
        rows, spans = [], []
        for index, _, context, continuation in queries[i : i + batch_size]:
            ids = tokenizer("<|im_start|>" + prompt_of(*problems[index]) + context)["input_ids"]
            ends = tokenizer.convert_tokens_to_ids(continuation)
            rows.append(ids + ends)
            spans.append((len(ids), len(ends)))
        tokens = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        logp = model(input_ids=tokens.to(device)).logits.log_softmax(-1).cpu()
        for row, (start, n) in enumerate(spans):
            out.append(sum(logp[row, start + j - 1, tokens[row, start + j]].item() for j in range(n)))
    return out


@torch.no_grad()
def sample_correct(model, tokenizer, problems, n, device, seed=0, batch_size=2000):
    """Number of right answers among n samples at temperature 1 for each problem, and the mean response length."""
    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    per_batch = max(1, batch_size // n)
    counts, lengths = [], []
    for i in tqdm(range(0, len(problems), per_batch), desc="sampling", leave=False):
        batch = problems[i : i + per_batch]
        inputs = tokenizer(["<|im_start|>" + prompt_of(*p) for p in batch], padding=True, return_tensors="pt").to(
            device
        )
        inputs.pop("token_type_ids", None)
        tokens = model.generate(
            **inputs, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_return_sequences=n, max_new_tokens=128
        )[:, inputs["input_ids"].shape[1] :]
        lengths += (tokens != tokenizer.pad_token_id).sum(1).tolist()
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        for j, problem in enumerate(batch):
            ending = f"\\boxed{{{answer_of(*problem)}}}"
            counts.append(sum(text.endswith(ending) for text in texts[j * n : (j + 1) * n]))
    return np.array(counts), float(np.mean(lengths))


def report(folder, problems, device, n=64):
    """Print the table of the base model's skill and habit; every row with its 95% interval over problems."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    rows = leap_table(model, tokenizer, problems, device)
    correct, length = sample_correct(model, tokenizer, problems, n, device)
    # avg@16 and pass@64 from the same 64 samples a problem: the mean over 16 of them is unbiased for either
    rows["avg@16"] = mean_and_ci((correct / n)[:, None])
    rows[f"pass@{n}"] = mean_and_ci((correct > 0)[:, None].astype(float))
    wanted = {
        "right after one": ">= 0.97",
        "right after two": "0.70-0.85",
        "right after jump": "<= 0.10",
        "choose one": "< 0.07",
        "choose two": "",
        "choose jump": "",
        "avg@16": "0.06-0.15",
        f"pass@{n}": ">= 0.80",
    }
    size = sum(p.numel() for p in model.parameters())
    print(f"{folder}: {size:,} parameters, {len(problems)} test problems, {length:.1f} tokens a response\n")
    print("| quantity | measured | wanted |\n|---|---|---|")
    for name, target in wanted.items():
        mean, half = rows[name]
        print(f"| {name} | {mean:.3f} ± {half:.3f} | {target} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(HERE), help="folder for base/, train.jsonl and test.jsonl")
    parser.add_argument("--report", action="store_true", help="measure OUT/base and print the table; make nothing")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n-train", type=int, default=8000, help="problems in train.jsonl")
    parser.add_argument("--n-test", type=int, default=500, help="problems in test.jsonl")
    parser.add_argument("--batch-size", type=int, default=128, help="texts a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of the skill phase")
    parser.add_argument("--skill-mix", type=float, nargs=2, default=[0.45, 0.35], help="P(one) P(two); the rest jumps")
    parser.add_argument("--until-two", type=float, default=0.55, help="reliability of leaps of two that ends the phase")
    parser.add_argument("--max-skill-steps", type=int, default=5000)
    parser.add_argument("--settle-steps", type=int, default=300, help="linear decay of the learning rate")
    parser.add_argument("--fork-steps", type=int, default=100)
    parser.add_argument("--fork-mix", type=float, nargs=2, default=[0.03, 0.46], help="P(one) P(two); the rest jumps")
    parser.add_argument("--fork-lr", type=float, default=2e-4, help="learning rate of the fork phase")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test = draw_problem_files(args.seed, args.n_train, args.n_test)
    out = Path(args.out)
    if not args.report:
        out.mkdir(parents=True, exist_ok=True)
        write_problems(out / "train.jsonl", train)
        write_problems(out / "test.jsonl", test)
        tokenizer = make_tokenizer()
        model = pretrain(args, tokenizer, {prompt_of(*p) for p in test}, device)
        shutil.rmtree(out / "base", ignore_errors=True)
        model.save_pretrained(out / "base")
        tokenizer.save_pretrained(out / "base")
        (out / "base.partial.pt").unlink()
    report(out / "base", test, device)


if __name__ == "__main__":
    main()
