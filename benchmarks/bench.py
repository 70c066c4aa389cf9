"""How fast the scripts are, each against the way one would do it without them, and what only a GPU can show.

    python benchmarks/bench.py rollout    # or step, memory, two, bandit: README.md has what each compares
    python benchmarks/bench.py gpu        # all that only a GPU can show, in at most 20 minutes; --quick: does it run?

Writes NAME-DEVICE.json into --out. Competitors take turns; a ratio is the median over rounds after one that warms up.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import dapo  # noqa: E402
import replace  # noqa: E402
import toy_bandit  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QWEN = {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}  # Qwen2.5-0.5B
QWEN |= {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
QUICK = QWEN | {"vocab_size": 2048, "hidden_size": 56, "intermediate_size": 64, "num_hidden_layers": 2}


def tiny_model(name, n):
    """(model, tokenizer, n problems) of the tiny world."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tiny" / name)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "tiny" / name, dtype=torch.float32).to(DEVICE)
    return model, tokenizer, dapo.read_problems(ROOT / "tiny" / "test.jsonl", tokenizer, 128)[:n]


def random_model(shape, n):
    """(model, n prompts, end ids): random weights draw nearly uniform tokens, and of 128 ids one ends a response."""
    torch.manual_seed(0)
    prompts = [torch.randint(shape["vocab_size"], (length,)).tolist() for length in torch.randint(16, 65, (n,))]
    return Qwen2ForCausalLM(Qwen2Config(**shape)).to(DEVICE).eval(), prompts, list(range(0, shape["vocab_size"], 128))


def timed(work):
    """(seconds of work(), what it returned)."""
    began, out = time.perf_counter(), work()
    torch.cuda.synchronize() if DEVICE == "cuda" else None
    return time.perf_counter() - began, out


def race(slow, fast, args):
    """How many times the seconds a token of `fast` does `slow` take? Both return how many tokens they made."""
    rounds = 1 if args.quick else 9
    rates = [[seconds / tokens for seconds, tokens in map(timed, (slow, fast))] for _ in range(rounds + 1)][1:]
    ratios, rate = sorted(a / b for a, b in rates), statistics.median(b for _, b in rates)
    return {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1], "tokens_per_second": 1 / rate}


def sampler_of(function, *args, mask="mask"):
    """A competitor of race: a function that samples, its arguments, and where the mask is in what it returns."""
    return lambda: function(*args)[mask].sum().item()


def needs(model, responses, longest):
    """(bytes that decoding must read: weights at every step, the cache of each row until it ends; FLOP of update(): 2 a
    weight and token, forward twice, backward; bytes of memory by the table of docs/gpu.md, `longest` tokens a row)."""
    body, head = (sum(p.numel() for p in part.parameters()) for part in (model.model.layers, model.lm_head))
    token = 2 * sum(layer.self_attn.k_proj.out_features for layer in model.model.layers) * model.dtype.itemsize
    cached = sum((len(r["ids"]) - 1) * (len(r["prompt"]) + len(r["ids"]) / 2) for r in responses)
    steps = max(len(r["ids"]) for r in responses) - 1  # the first token comes with the prompt
    read = sum(p.nbytes for p in model.parameters()) * steps + token * cached
    flop = 8 * sum(body * len(r["prompt"] + r["ids"]) + head * len(r["ids"]) for r in responses)
    return read, flop, 18 * model.num_parameters() + token * len(responses) * longest


def update(policy, optimizer, responses, micro_batch):
    """Phases 2 and 3 of dapo.py's loop, groups of 8: old log-probs, advantages, an update for each half of them."""
    autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")
    tokens, mask, plan = dapo.pack(responses, len(responses) // 2, micro_batch)
    tokens, mask = tokens.to(DEVICE), mask.to(DEVICE)
    logp_old, rewards = torch.zeros_like(mask), torch.tensor([r["reward"] for r in responses], device=DEVICE)
    adv = dapo.group_advantages(rewards.view(-1, 8)).view(-1, 1).expand_as(mask)
    for rows, width in (micro for mini in plan for micro in mini):
        with torch.no_grad(), autocast:
            logp_old[rows, :width] = dapo.token_logprobs(policy, tokens[rows, :width], mask[rows, :width])[0]
    for mini in plan:
        optimizer.zero_grad()  # before, not after: at the end weights, gradients and AdamW's moments are all there
        for rows, width in mini:
            t, m, old, a = (x[rows, :width] for x in (tokens, mask, logp_old, adv))
            with autocast:
                logp = dapo.token_logprobs(policy, t, m)[0]  # entropy that lives on would keep what its softmax needs
            dapo.dapo_loss(logp, old, a, m, n_tokens=sum(mask[rows].sum() for rows, _ in mini))[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()


def generate(model, prompts, group_size, longest, ends):
    """What rollout does, by model.generate: sample from the full softmax."""
    width, stops = max(map(len, prompts)), torch.tensor(ends, device=DEVICE)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=DEVICE)
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
    flags = {"do_sample": True, "top_k": 0, "top_p": 1.0, "eos_token_id": ends, "pad_token_id": 0}
    flags |= {"num_return_sequences": group_size, "max_new_tokens": longest}
    ended = torch.isin(model.generate(ids, attention_mask=attention, **flags)[:, width:], stops).long()
    return {"mask": ended.cumsum(1) == ended}  # up to the first end, which counts


def rollout(args):
    """model.generate over rollout of dapo.py."""
    for name in ("base", "rlvr"):
        model, tokenizer, problems = tiny_model(name, 4 if args.quick else 32)
        case = model, [p["ids"] for p in problems], 8, 128, [tokenizer.eos_token_id]
        yield f"tiny/{name}", race(sampler_of(generate, *case), sampler_of(dapo.rollout, *case), args)


def step(args):
    """A step of TRL (its defaults: clip 0.2, no KL) over one of dapo.py: 32 groups of 8, two updates, on the CPU."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions, answer, **_):
        return [2.0 * dapo.is_correct(x[0]["content"], a) - 1 for x, a in zip(completions, answer, strict=True)]

    n, dapo_args = 4 if args.quick else 32, dapo.Args(device="cpu")  # lr 1e-9: the lengths stay as they are
    config = {"per_device_train_batch_size": n * 4, "steps_per_generation": 2, "max_steps": 2, "learning_rate": 1e-9}
    config |= {"epsilon_high": 0.28, "max_completion_length": 128, "gradient_checkpointing": False, "bf16": False}
    config |= {"use_cpu": True, "logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True}

    def compare(model, tokenizer, problems):
        chats = [[{"role": "user", "content": p["prompt"]}] for p in problems]
        data = Dataset.from_dict({"prompt": chats, "answer": [p["answer"] for p in problems]})
        grpo = GRPOConfig(tempfile.gettempdir(), **config)
        trainer = GRPOTrainer(copy.deepcopy(model), reward, grpo, data, processing_class=tokenizer)
        trainer.remove_callback(transformers.PrinterCallback)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)

        def theirs():
            trainer.train()
            return trainer.state.log_history[0]["completions/mean_length"] * n * 8

        def ours():
            responses = dapo.sample_and_check(model, tokenizer, problems, 8, 1.0, None, dapo_args)
            update(model, optimizer, responses, dapo_args.micro_batch)
            return sum(len(r["ids"]) for r in responses)

        return race(theirs, ours, args)

    for name in ("base", "rlvr"):
        yield f"tiny/{name}", compare(*tiny_model(name, n))


def memory(args):
    """MiB that log-probs over 151,936 ids and their gradient add to the peak of this process, on the CPU."""
    model, peaks = random_model(QUICK | {"vocab_size": QWEN["vocab_size"]}, 0)[0].cpu(), []
    n, small = (256, 16) if args.quick else (2048, 128)
    for chunk, tokens in ((small, 8), (0, 8), (small, n), (None, n), (0, n)):  # peaks rise; 0: all logits at once
        ids = torch.randint(999, (tokens // 8, 9))
        if chunk == 0:
            logp = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        else:
            logp = dapo.token_logprobs(model, ids, torch.ones(ids.shape), chunk=chunk)[0]
        logp.sum().backward()
        status = Path("/proc/self/status").read_text()  # ru_maxrss would start at the peak of the process that forked
        peaks.append(int(status.partition("VmHWM:")[2].split()[0]) / 2**10 - sum(peaks[:1]))
    yield f"{n} tokens", {f"chunks of {small}": peaks[2], "chunks of 883, the default": peaks[3], "at once": peaks[4]}


def two(args):
    """decode_two of replace.py over one rollout: 2 is what two separate decodes take."""
    (base, tokenizer, problems), (rlvr, *_) = (tiny_model(x, 4 if args.quick else 100) for x in ("base", "rlvr"))
    ids, ends, inf = [p["ids"] for p in problems], [tokenizer.eos_token_id], torch.inf
    for label, model, score, threshold in (("nothing", base, "dlogp", inf), ("everything", rlvr, "kl", -inf)):
        pair = base, rlvr, ids, replace.SCORES[score], [threshold] * 8, 128, ends
        both, one = sampler_of(replace.decode_two, *pair, mask=1), sampler_of(dapo.rollout, model, ids, 8, 128, ends)
        yield f"{label} replaced, {score}", race(both, one, args)


def bandit(args):
    """The loop of the tests, a run after the other, over run_bandit of toy_bandit.py with 1,000 runs side by side."""
    from test_toy_bandit import algorithm_1

    case, uniforms = (toy_bandit.REWARDS, toy_bandit.POLICY, 2000, 2, 0.1, 1.0), torch.rand(2000, 2).tolist()
    loop, ours = (lambda: len([algorithm_1(*case, uniforms)])), (lambda: len(toy_bandit.run_bandit(*case, n_runs=1000)))
    yield "1,000 runs of 2,000 updates", race(loop, ours, args)


def gpu(args):
    """The gpu-marked tests, the default dapo.py, and the shape of Qwen2.5-0.5B, random weights, as dapo.py runs it."""
    if DEVICE == "cpu" and not args.quick:
        sys.exit("error: PyTorch finds no CUDA device here; --quick tries the same code with tiny sizes")
    small, short = (16, "--steps 1 --prompts-per-step 4 --mini-batch 2 --eval-problems 4") if args.quick else (1, "")
    default = f"dapo.py --out {tempfile.mkdtemp()}/run {short}"
    for label, words in (("gpu-marked tests", "-m pytest -m gpu"), ("default dapo.py", default)):
        command = [sys.executable, *words.split()]
        seconds, done = timed(lambda c=command: subprocess.run(c, cwd=ROOT, capture_output=True, text=True))
        yield label, {"seconds": seconds, "exit": done.returncode, "says": done.stdout[-999:] + done.stderr[-999:]}
    policy, prompts, ends = random_model(QUICK if args.quick else QWEN, 64)
    sampler = copy.deepcopy(policy).bfloat16() if DEVICE == "cuda" else policy
    optimizer, eager = torch.optim.AdamW(policy.parameters(), lr=1e-9, fused=DEVICE == "cuda"), sampler.forward
    compiled = torch.compile(eager, dynamic=True, backend="eager" if args.quick else "inductor")
    x = torch.randn(4, 8192 // small, 8192 // small, device=DEVICE, dtype=sampler.dtype)
    copying, product = (min(timed(work)[0] for _ in range(10)) for work in (x.clone, lambda: x[0] @ x[1]))
    bandwidth, flops, responses = 2 * x.nbytes / copying, 2 * len(x[0]) ** 3 / product, []  # a second, really reached
    eager_cases = (256, 64, "eager"), (256, 256, "eager"), (512, 256, "eager")
    for rows, tokens, how in (*eager_cases, (256, 64, "cuDNN attention"), (256, 64, "compiled")):
        torch.backends.cuda.enable_cudnn_sdp(how == "cuDNN attention")  # off in the scripts
        sampler.forward, row = compiled if how == "compiled" else eager, {}
        case = sampler, prompts[: rows // 8 // small], 8, tokens // small, ends

        def sample(case=case):  # the same seed, so the same shapes in each round
            out = dapo.rollout(*case, generator=torch.Generator(DEVICE).manual_seed(0))
            ids = [line[: int(n)] for line, n in zip(out["tokens"].tolist(), out["mask"].sum(1), strict=True)]
            responses[:] = [{"prompt": case[1][i // 8], "ids": x, "reward": float(i % 3)} for i, x in enumerate(ids)]

        works = {"generate": lambda case=case: generate(*case), "rollout": sample}
        for name, work in (works | {"update": lambda: update(policy, optimizer, responses, 16)}).items():
            torch.cuda.reset_peak_memory_stats() if DEVICE == "cuda" else None
            row[f"{name}, first"], *others = (timed(work)[0] for _ in range(3))
            row |= {f"{name}, seconds": min(others), f"{name}, peak GB": torch.cuda.max_memory_allocated() / 1e9}
        read, flop, table = needs(sampler, responses, case[3] + max(map(len, case[1])))
        row |= {"share of bandwidth bound": read / bandwidth / row["rollout, seconds"], "table GB": table / 1e9}
        yield f"{len(responses)} rows, {case[3]} tokens, {how}", row | {"MFU": flop / flops / row["update, seconds"]}


def main(argv=None):
    """Run a benchmark, print and write each row of its results; returns whether a command of gpu failed."""
    benchmarks = {function.__name__: function for function in (rollout, step, memory, two, bandit, gpu)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=benchmarks)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"), help="folder of the results")
    args, rows = parser.parse_args(argv), {}
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    about = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"transformers": transformers.__version__, "rows": rows}
    path = Path(args.out, f"{args.name}{'-quick' * args.quick}-{device}.json".replace(" ", "-").lower())
    for label, rows[label] in benchmarks[args.name](args):
        print(f"{label}:", json.dumps(rows[label]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=1) + "\n")  # after each: a crash loses nothing
    return any(row.get("exit") for row in rows.values())


if __name__ == "__main__":
    sys.exit(main())
