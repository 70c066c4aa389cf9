"""How fast the scripts are, and what they need, each against the way one would do it without them.

    python benchmarks/bench.py rollout        # or step, memory, two, bandit: seconds to minutes on a CPU; see README.md
    python benchmarks/bench.py gpu            # all that only a GPU can show, in at most 20 minutes
    python benchmarks/bench.py gpu --quick    # the same code with tiny sizes, on a CPU too: does it run?

Writes NAME-DEVICE.json into --out. Competitors take turns, so that a slow minute of the machine hits both; a ratio is
the median over rounds, `least` and `most` its extremes. The first round warms up and does not count.
"""

import argparse
import copy
import json
import math
import random
import re
import resource
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
sys.path.insert(0, str(ROOT))
import dapo  # noqa: E402
import replace  # noqa: E402
import toy_bandit  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QWEN = {"vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24}  # Qwen2.5-0.5B
QWEN |= {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
QUICK = QWEN | {"vocab_size": 2048, "hidden_size": 56, "intermediate_size": 64, "num_hidden_layers": 2}


def tiny_model(name, file, n):
    """(model, tokenizer, n problems) of the tiny world."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / name)
    model = AutoModelForCausalLM.from_pretrained(ROOT / name, dtype=torch.float32).to(DEVICE)
    return model, tokenizer, dapo.read_problems(ROOT / "tiny" / file, tokenizer, 128)[:n]


def random_model(shape, n):
    """(model, n prompts, end ids): random weights draw nearly uniform tokens, and of 128 ids one ends a response."""
    torch.manual_seed(0)
    rng, ids = random.Random(0), range(shape["vocab_size"])
    prompts = [rng.choices(ids, k=rng.randint(16, 64)) for _ in range(n)]
    return Qwen2ForCausalLM(Qwen2Config(**shape)).to(DEVICE).eval(), prompts, list(ids[::128])


def timed(work):
    """(seconds of work(), what it returned)."""
    wait = torch.cuda.synchronize if DEVICE == "cuda" else int
    wait()
    began, out = time.perf_counter(), work()
    wait()
    return time.perf_counter() - began, out


def race(slow, fast, rounds):
    """How many times the seconds a token of `fast` does `slow` take? Both return the mask of the tokens they made."""
    rates = [[seconds / mask.sum().item() for seconds, mask in map(timed, (slow, fast))] for _ in range(rounds + 1)][1:]
    ratios, rate = sorted(a / b for a, b in rates), statistics.median(b for _, b in rates)
    return {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1], "tokens_per_second": 1 / rate}


def sampling(function, *args):
    """A competitor of race: rollout or decode_two with these arguments."""

    def work():
        out = function(*args)
        return out["mask"] if isinstance(out, dict) else out[1]

    return work


def update(policy, optimizer, responses, micro_batch):
    """Phases 2 and 3 of dapo.py's loop, groups of 8: old log-probs, advantages, an update for each half of them."""
    autocast = torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")
    tokens, mask, plan = dapo.pack(responses, len(responses) // 2, micro_batch)
    tokens, mask = tokens.to(DEVICE), mask.to(DEVICE)
    logp_old, rewards = torch.zeros_like(mask), torch.tensor([r["reward"] for r in responses], device=DEVICE)
    adv = dapo.group_advantages(rewards.view(-1, 8)).view(-1, 1).expand_as(mask)
    policy.train()
    for rows, width in (micro for mini in plan for micro in mini):
        with torch.no_grad(), autocast:
            logp_old[rows, :width], _ = dapo.token_logprobs(policy, tokens[rows, :width], mask[rows, :width])
    for mini in plan:
        optimizer.zero_grad()  # before, not after: at the end weights, gradients and AdamW's moments are all there
        for rows, width in mini:
            t, m, old, a = (x[rows, :width] for x in (tokens, mask, logp_old, adv))
            with autocast:
                logp, _ = dapo.token_logprobs(policy, t, m)
            dapo.dapo_loss(logp, old, a, m, n_tokens=sum(mask[rows].sum() for rows, _ in mini))[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()


def generate(model, prompts, group_size, longest, ends):
    """What rollout does, by model.generate."""
    width, stops = max(map(len, prompts)), torch.tensor(ends, device=DEVICE)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=DEVICE)
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
    full_softmax = {"do_sample": True, "top_k": 0, "top_p": 1.0, "eos_token_id": ends, "pad_token_id": 0}
    limits = {"num_return_sequences": group_size, "max_new_tokens": longest}
    ended = torch.isin(model.generate(ids, attention_mask=attention, **full_softmax, **limits)[:, width:], stops).long()
    return {"mask": ended.cumsum(1) == ended}  # up to the first end, which counts


# -------------------------------------------------------------------- benchmarks: each yields (label, row of results)
def rollout(args):
    """model.generate over rollout of dapo.py: the tiny models, and the shape of Qwen2.5-0.5B with 16 rows."""
    cases, n = {"Qwen2.5-0.5B shape, 16 rows": random_model(QUICK if args.quick else QWEN, 2)}, 4 if args.quick else 32
    for name in ("tiny/base", "tiny/rlvr"):
        model, tokenizer, problems = tiny_model(name, "test.jsonl", n)
        cases[name] = model, [p["ids"] for p in problems], [tokenizer.eos_token_id]
    for label, (model, prompts, ends) in cases.items():
        case = model, prompts, 8, 128 if label.startswith("tiny") else 32, ends
        yield label, race(sampling(generate, *case), sampling(dapo.rollout, *case), args.rounds)


def step(args):
    """A step of TRL over one of dapo.py: 32 groups of 8 sampled and checked, two updates on all of them, CPU, fp32."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions, answer, **_):
        return [2.0 * dapo.is_correct(x[0]["content"], a) - 1 for x, a in zip(completions, answer, strict=True)]

    n, dapo_args = 4 if args.quick else 32, dapo.Args(device="cpu")  # lr 1e-9: the lengths stay as they are
    config = {"num_generations": 8, "per_device_train_batch_size": n * 4, "steps_per_generation": 2, "max_steps": 2}
    config |= {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "learning_rate": 1e-9}
    config |= {"max_completion_length": 128, "top_k": 0, "gradient_checkpointing": False, "save_strategy": "no"}
    config |= {"bf16": False, "use_cpu": True, "logging_steps": 1, "report_to": [], "disable_tqdm": True}
    for name in ("tiny/base", "tiny/rlvr"):
        model, tokenizer, problems = tiny_model(name, "train.jsonl", n)
        rows = [{"prompt": [{"role": "user", "content": p["prompt"]}], "answer": p["answer"]} for p in problems]
        data = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer}
        with tempfile.TemporaryDirectory() as scratch:
            trainer = GRPOTrainer(copy.deepcopy(model), reward, GRPOConfig(output_dir=scratch, **config), **data)
        trainer.remove_callback(transformers.PrinterCallback)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)

        def theirs(trainer=trainer):
            trainer.train()
            return torch.tensor(trainer.state.log_history[0]["completions/mean_length"] * n * 8)

        def ours(model=model, tokenizer=tokenizer, problems=problems, optimizer=optimizer):
            responses = dapo.sample_and_check(model, tokenizer, problems, 8, 1.0, None, dapo_args)
            update(model, optimizer, responses, dapo_args.micro_batch)
            return torch.tensor([len(r["ids"]) for r in responses])

        yield name, race(theirs, ours, args.rounds)


def memory(args):
    """MiB that log-probs over 151,936 ids and their gradient add to the peak of this process, on the CPU."""
    model, peaks = random_model(QUICK | {"vocab_size": QWEN["vocab_size"]}, 0)[0].cpu(), []
    for chunked, tokens in ((True, 8), (False, 8), (True, 512), (True, 2048), (False, 512), (False, 2048)):  # rising
        ids = torch.randint(999, (tokens // 8, 9))
        if chunked:
            logp, _ = dapo.token_logprobs(model, ids, torch.ones(ids.shape), chunk=128)
        else:
            logp = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        logp.sum().backward()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    for i, tokens in enumerate((512, 2048), start=2):
        yield f"{tokens} tokens", {"token_logprobs": peaks[i] - peaks[1], "all logits at once": peaks[i + 2] - peaks[1]}


def two(args):
    """decode_two of replace.py over one rollout: 2 is what two separate decodes take."""
    (base, tokenizer, problems), (rlvr, *_) = (tiny_model(f"tiny/{x}", "test.jsonl", 100) for x in ("base", "rlvr"))
    ids, end = [p["ids"] for p in problems[: 4 if args.quick else None]], [tokenizer.eos_token_id]
    for label, model, score, threshold in (("nothing", base, "dlogp", math.inf), ("everything", rlvr, "kl", -math.inf)):
        both = sampling(replace.decode_two, base, rlvr, ids, replace.SCORES[score], [threshold] * 8, 128, end)
        yield f"{label} replaced, {score}", race(both, sampling(dapo.rollout, model, ids, 8, 128, end), args.rounds)


def bandit(args):
    """The loop of the tests, a run after the other, over run_bandit of toy_bandit.py with 1,000 runs side by side."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_toy_bandit import algorithm_1

    case, steps = (toy_bandit.REWARDS, toy_bandit.POLICY), 20 if args.quick else 2000
    how = {"steps": steps, "group_size": 2, "lr": 0.1, "temperature": 1.0}
    uniforms = torch.rand(steps, 2).tolist()
    loop = lambda: torch.ones(len([algorithm_1(*case, uniforms=uniforms, **how)]))  # noqa: E731
    yield "a run", race(loop, lambda: torch.ones(len(toy_bandit.run_bandit(*case, n_runs=1000, **how))), args.rounds)


def command(*words):
    """Run python in the repository: its last lines; an error if it fails."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return {"says": done.stdout[-500:]}


def limits():
    """(bytes a second of a copy, flop a second of a bf16 product) that this device reaches; tiny on a CPU."""
    n = 8192 if DEVICE == "cuda" else 256
    x = torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16)
    copied, multiplied = (min(timed(work)[0] for _ in range(5)) for work in (x.clone, lambda: x @ x))
    return 2 * x.numel() * 2 / copied, 2 * n**3 / multiplied


def gpu(args):
    """The gpu-marked tests, the default dapo.py, and the shape of Qwen2.5-0.5B as dapo.py runs it on a GPU."""
    if DEVICE == "cpu" and not args.quick:
        sys.exit("error: PyTorch finds no CUDA device here; --quick tries the same code with tiny sizes")
    with tempfile.TemporaryDirectory() as out:
        short = "--steps 1 --prompts-per-step 4 --mini-batch 2 --eval-problems 4".split() if args.quick else []
        seconds, says = timed(lambda: command("dapo.py", "--out", f"{out}/run", *short))
        yield "default dapo.py", {"seconds": seconds} | says
    if DEVICE == "cuda":
        yield "gpu-marked tests", command("-m", "pytest", "-q", "-m", "gpu", "-n", "0")
    torch.backends.cuda.enable_cudnn_sdp(False)  # as the scripts do
    sizes, longest = ((16, 24), 16) if args.quick else ((256, 512), 256)
    policy, prompts, ends = random_model(QUICK if args.quick else QWEN, sizes[-1] // 8)
    sampler = copy.deepcopy(policy).to(torch.bfloat16 if DEVICE == "cuda" else torch.float32)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-9, fused=DEVICE == "cuda")
    token_bytes = 2 * 2 * sum(layer.self_attn.k_proj.out_features for layer in policy.model.layers)  # of cache, in bf16
    (bandwidth, product), weights = limits(), policy.num_parameters()
    for rows in sizes:

        def sample(rows=rows):
            return dapo.rollout(sampler, prompts[: rows // 8], 8, longest, ends)

        sample()  # warms up
        seconds, out = timed(sample)
        lengths = out["mask"].sum(1).long().tolist()
        responses = [
            {"prompt": prompts[i // 8], "ids": out["tokens"][i, :n].tolist(), "reward": float(i % 2)}
            for i, n in enumerate(lengths)
        ]
        cached = sum(n * (len(r["prompt"]) + n / 2) for r, n in zip(responses, lengths, strict=True))
        bound = (2 * weights * max(lengths) + token_bytes * cached) / bandwidth  # weights and cache, read at every step
        row = {
            "rollout, seconds": seconds,
            "tokens a second": sum(lengths) / seconds,
            "share of bound": bound / seconds,
        }
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        update(policy, optimizer, responses, 16)  # warms up
        seconds, _ = timed(lambda responses=responses: update(policy, optimizer, responses, 16))
        tokens = sum(len(r["prompt"]) + len(r["ids"]) for r in responses)
        row |= {"update, seconds": seconds, "MFU": 8 * weights * tokens / seconds / product}  # scored, then trained on
        row["GB by the table"] = (18 * weights + token_bytes * sum(len(r["prompt"]) + longest for r in responses)) / 1e9
        row |= {"GB at the peak": torch.cuda.max_memory_allocated() / 1e9} if DEVICE == "cuda" else {}
        yield f"{rows} rows", row
    if DEVICE == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(True)
        yield f"{rows} rows, cuDNN attention", {"rollout, seconds": timed(sample)[0]}
        torch.backends.cuda.enable_cudnn_sdp(False)
    sampler.forward = torch.compile(sampler.forward, dynamic=True)
    yield f"{rows} rows, compiled", {"first, seconds": timed(sample)[0], "rollout, seconds": timed(sample)[0]}


def main(argv=None):
    """Run a benchmark, print a line for each of its rows, write them to --out."""
    benchmarks = {f.__name__: f for f in (rollout, step, memory, two, bandit, gpu)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=benchmarks)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results"), help="folder of the result")
    args, result = parser.parse_args(argv), {}
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    for label, row in benchmarks[args.name](args):
        result[label] = row
        print(f"{label}: " + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        name = re.sub(r"[^a-z0-9.]+", "-", f"{args.name}-{device.partition(',')[0]}".lower())
        about = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
        Path(args.out).mkdir(parents=True, exist_ok=True)
        (Path(args.out) / f"{name}.json").write_text(json.dumps(about | {"rows": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
