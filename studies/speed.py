"""How fast are the scripts? Each is compared with what one would use without it. docs/speed.md has the results.

    python studies/speed.py rollout    # or step, memory, two, bandit: docs/speed.md says what each compares
    python studies/speed.py rollout --model data/smollm2    # after data/prepare.py smollm2 and larger; or step
    python studies/speed.py gpu        # what only a GPU can show, in at most 20 minutes; --quick tries the same code

Writes speed-NAME-DEVICE.json into --out. The two competitors take turns. A ratio is the median over nine rounds; the
round before them warms up. All models are fp32 on every device, those of the competitors too.
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
from typing import NamedTuple

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))
import dapo  # noqa: E402
import replace  # noqa: E402
import toy_bandit  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
QWEN_VOCABULARY = 151_936
QWEN = {  # the shape of Qwen2.5-0.5B
    "vocab_size": QWEN_VOCABULARY,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SMALL = {  # the same for --quick
    "vocab_size": 2048,
    "hidden_size": 56,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
WIDE = {**SMALL, "vocab_size": QWEN_VOCABULARY}  # a small body with Qwen's head


# ------------------------------------------------------------------------------------------- models and measuring
class Case(NamedTuple):
    """A model and its problems, for rollout and step; groups of 8 responses."""

    problems: str  # a file
    n_problems: int
    longest: int  # response limit, in tokens
    micro_batch: int
    rounds: int


CASES = {  # folder of the model: Case
    "tiny/base": Case("tiny/test.jsonl", 32, 128, 32, 9),
    "tiny/rlvr": Case("tiny/test.jsonl", 32, 128, 32, 9),
    "data/smollm2": Case("data/larger/test.jsonl", 8, 20, 16, 3),
}


def cases(args):
    """The models that rollout and step measure: that of --model, by default both of the tiny world."""
    if args.model:
        return [args.model]
    return ["tiny/base", "tiny/rlvr"]


def load_case(name, n_problems):
    """(model, tokenizer, n problems) of a case."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / name)
    model = AutoModelForCausalLM.from_pretrained(ROOT / name, dtype=torch.float32).to(DEVICE)
    case = CASES[name]
    problems = dapo.read_problems(ROOT / case.problems, tokenizer, 256, case.longest)
    return model, tokenizer, problems[:n_problems]


def random_model(shape, n_prompts):
    """(model, prompts of 16 to 64 ids, ids that end a response) for a shape such as QWEN.

    Random weights draw nearly uniform tokens. One id in 128 ends a response, so responses have 128 tokens on average.
    """
    torch.manual_seed(0)
    prompts = []
    for length in torch.randint(16, 65, (n_prompts,)):
        prompts.append(torch.randint(shape["vocab_size"], (length,)).tolist())
    model = Qwen2ForCausalLM(Qwen2Config(**shape)).to(DEVICE).eval()
    return model, prompts, list(range(0, shape["vocab_size"], 128))


def timed(work):
    """(seconds that work() took, what it returned)."""
    start = time.perf_counter()
    out = work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def race(slow, fast, args, rounds=9):
    """Seconds per token of `slow` over those of `fast`: median, least and most. Both return their number of tokens."""
    if args.quick:
        rounds = 1
    ratios = []
    fast_rates = []  # seconds per token
    for number in range(rounds + 1):
        seconds, tokens = timed(slow)
        slow_rate = seconds / tokens
        seconds, tokens = timed(fast)
        fast_rate = seconds / tokens
        if number > 0:  # the first round warms up
            ratios.append(slow_rate / fast_rate)
            fast_rates.append(fast_rate)
    return {
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "tokens_per_second": 1 / statistics.median(fast_rates),
    }


# --------------------------------------------------------------------------------- what is compared, and its bounds
def generate(model, prompts, group_size, longest, ends):
    """What rollout does, by model.generate: sample from the full softmax. Returns the mask (N, T) of the responses."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=DEVICE)  # (B, W)
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)  # (B, W)
    out = model.generate(
        ids,
        attention_mask=attention,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        eos_token_id=ends,
        pad_token_id=0,
        num_return_sequences=group_size,
        max_new_tokens=longest,
    )
    is_end = torch.isin(out[:, width:], torch.tensor(ends, device=DEVICE)).long()  # (N, T)
    return is_end.cumsum(1) == is_end  # up to the first end, which counts


def update(policy, optimizer, responses, micro_batch):
    """Phases 2 and 3 of dapo.py's loop: old log-probs, advantages, one update for each of two mini-batches.

    responses: a list of dapo.Response, in groups of 8.
    """
    tokens, mask, mini_batches = dapo.make_batches(responses, len(responses) // 2, micro_batch)
    tokens = tokens.to(DEVICE)  # (N, L)
    mask = mask.to(DEVICE)  # (N, L)
    logp_old = torch.zeros_like(mask)
    for micro_batches in mini_batches:
        for rows, width in micro_batches:
            with torch.no_grad():
                logp_old[rows, :width], _ = dapo.token_logprobs(policy, tokens[rows, :width], mask[rows, :width])
    rewards = torch.tensor([response.reward for response in responses], device=DEVICE).view(-1, 8)  # (B, G)
    adv = dapo.group_advantages(rewards).view(-1, 1).expand_as(mask)  # (N, L)
    for micro_batches in mini_batches:
        optimizer.zero_grad()  # before, not after: at the end weights, gradients and AdamW's moments are all there
        n_tokens = sum(mask[rows].sum() for rows, _ in micro_batches)
        for rows, width in micro_batches:
            # [0]: if we kept the entropy, the softmax of every chunk would stay in memory until the backward pass
            logp = dapo.token_logprobs(policy, tokens[rows, :width], mask[rows, :width])[0]
            loss, _ = dapo.dapo_loss(
                logp, logp_old[rows, :width], adv[rows, :width], mask[rows, :width], n_tokens=n_tokens
            )
            loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()


def bytes_to_decode(model, responses):
    """Bytes that decoding must read: all weights for every position, and the cache of each row until it ends."""
    positions = max(len(response.ids) for response in responses) - 1  # the first token comes with the prompt
    cached = 0  # tokens in the cache, summed over positions and the rows that have not ended
    for response in responses:
        cached += (len(response.ids) - 1) * (len(response.problem["ids"]) + len(response.ids) / 2)
    return sum(p.nbytes for p in model.parameters()) * positions + cache_bytes(model) * cached


def cache_bytes(model):
    """Bytes that keys and values of one token take in the cache."""
    return 2 * sum(layer.self_attn.k_proj.out_features for layer in model.model.layers) * model.dtype.itemsize


def flop_to_update(model, responses):
    """Floating-point operations of update(): 8 a weight and token, 2 in each of two forward passes, 4 in the backward.

    The head sees response tokens only. Attention, padding and recomputation do not count.
    """
    body = sum(p.numel() for p in model.model.layers.parameters())
    head = model.lm_head.weight.numel()
    flop = 0
    for response in responses:
        flop += 8 * body * (len(response.problem["ids"]) + len(response.ids)) + 8 * head * len(response.ids)
    return flop


def memory_to_train(model, n_rows, longest):
    """Bytes that training needs by the table of docs/gpu.md, without activations.

    16 a parameter (weights, gradients, AdamW's two moments, all fp32), and the cache of n_rows rows of `longest`
    tokens.
    """
    return 16 * model.num_parameters() + cache_bytes(model) * n_rows * longest


# ------------------------------------------------------------------------------------------------ the measurements
def race_rollout(name, args):
    """Race model.generate against rollout of dapo.py, on the model of a case."""
    case = CASES[name]
    model, tokenizer, problems = load_case(name, 4 if args.quick else case.n_problems)
    prompts = [problem["ids"] for problem in problems]
    ends = [tokenizer.eos_token_id]

    def theirs():
        return generate(model, prompts, 8, case.longest, ends).sum().item()

    def ours():
        return dapo.rollout(model, prompts, 8, case.longest, ends)["mask"].sum().item()

    return race(theirs, ours, args, case.rounds)


def rollout(args):
    """Time of model.generate over that of rollout of dapo.py."""
    for name in cases(args):
        yield name, race_rollout(name, args)


def race_step(name, args):
    """Race a training step of TRL against one of dapo.py, on the model of a case."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError:
        raise ValueError("step needs TRL, which is missing: pip install -r requirements-extras.txt") from None

    case = CASES[name]
    n_prompts = 4 if args.quick else case.n_problems
    model, tokenizer, problems = load_case(name, n_prompts)

    def reward(completions, answer, **_):
        rewards = []
        for completion, right_answer in zip(completions, answer, strict=True):
            rewards.append(1.0 if dapo.is_correct(completion[0]["content"], right_answer) else -1.0)
        return rewards

    chats = [[{"role": "user", "content": problem["prompt"]}] for problem in problems]
    data = Dataset.from_dict({"prompt": chats, "answer": [problem["answer"] for problem in problems]})
    config = GRPOConfig(
        tempfile.gettempdir(),
        per_device_train_batch_size=n_prompts * 4,  # half of the responses: one backward pass for each update
        steps_per_generation=2,
        max_steps=2,
        learning_rate=1e-9,  # so low that the lengths stay as they are
        epsilon_high=0.28,
        max_completion_length=case.longest,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(copy.deepcopy(model), reward, config, data, processing_class=tokenizer)
    trainer.remove_callback(transformers.PrinterCallback)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    dapo_args = dapo.Args(device="cpu", max_response=case.longest, micro_batch=case.micro_batch)

    def theirs():
        trainer.train()
        return trainer.state.log_history[0]["completions/mean_length"] * n_prompts * 8

    def ours():
        responses = dapo.sample_and_check(model, tokenizer, problems, 8, 1.0, 1.0, None, dapo_args)
        update(model, optimizer, responses, dapo_args.micro_batch)
        return sum(len(response.ids) for response in responses)

    return race(theirs, ours, args, case.rounds)


def step(args):
    """Time of a training step of TRL over one of dapo.py: groups of 8, two updates, on the CPU.

    TRL has its defaults (clip 0.2, no KL), except for the upper clip of 0.28.
    """
    for name in cases(args):
        yield name, race_step(name, args)


def memory(args):
    """Memory that log-probs over 151,936 ids and their gradient add to the peak of this process, in MiB, on the CPU."""
    model = random_model(WIDE, 0)[0].cpu()
    n_tokens = 256 if args.quick else 2048
    small = 16 if args.quick else 128

    def peak_after(n_tokens, chunk):
        """Peak of the process so far, in MiB, after log-probs of n_tokens and their gradient; chunk 0: all at once."""
        ids = torch.randint(999, (n_tokens // 8, 9))
        if chunk == 0:
            logp = model(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])
        else:
            logp = dapo.token_logprobs(model, ids, torch.ones(ids.shape), chunk=chunk)[0]
        logp.sum().backward()
        status = Path("/proc/self/status").read_text()  # ru_maxrss would start at the peak of the process that forked
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**10

    # the peak of a process never falls, so the cases come in the order of what they need
    before = peak_after(8, small)
    in_chunks = peak_after(n_tokens, small) - before
    by_default = peak_after(n_tokens, None) - before
    at_once = peak_after(n_tokens, 0) - before
    row = {f"chunks of {small}": in_chunks, "chunks of 883, the default": by_default, "at once": at_once}
    yield f"{n_tokens} tokens", row


def two(args):
    """Time of decode_two of replace.py over one rollout of as many rows. Two separate rollouts would take 2."""
    n_problems = 4 if args.quick else 100
    base, tokenizer, problems = load_case("tiny/base", n_problems)
    rlvr, _, _ = load_case("tiny/rlvr", n_problems)
    prompts = [problem["ids"] for problem in problems]
    ends = [tokenizer.eos_token_id]

    def replace_nothing():
        out = replace.decode_two(base, rlvr, prompts, replace.score_dlogp, [torch.inf] * 8, 128, ends)
        return out["mask"].sum().item()

    def replace_everything():
        out = replace.decode_two(base, rlvr, prompts, replace.score_kl, [-torch.inf] * 8, 128, ends)
        return out["mask"].sum().item()

    def base_alone():
        return dapo.rollout(base, prompts, 8, 128, ends)["mask"].sum().item()

    def rlvr_alone():
        return dapo.rollout(rlvr, prompts, 8, 128, ends)["mask"].sum().item()

    yield "nothing replaced, dlogp", race(replace_nothing, base_alone, args)
    yield "everything replaced, kl", race(replace_everything, rlvr_alone, args)


def bandit(args):
    """Time of a run in a plain Python loop over that of a run in run_bandit, which has 1,000 runs side by side."""
    from test_toy_bandit import algorithm_1

    n_updates = 2000
    case = (toy_bandit.REWARDS, toy_bandit.POLICY, n_updates, 2, 0.1, 1.0)
    uniforms = torch.rand(n_updates, 2).tolist()

    def loop():
        algorithm_1(*case, uniforms)
        return 1  # run

    def side_by_side():
        toy_bandit.run_bandit(*case, n_runs=1000)
        return 1000  # runs

    yield "1,000 runs of 2,000 updates", race(loop, side_by_side, args)


def run_command(words):
    """Run python with these words: seconds, exit status, and the end of what it printed."""

    def work():
        return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)

    seconds, done = timed(work)
    return {"seconds": seconds, "exit": done.returncode, "says": done.stdout[-999:] + done.stderr[-999:]}


def measured_speed(size):
    """(bytes a second of a large copy, FLOP a second of a large fp32 product) on DEVICE, the best of ten tries."""
    x = torch.randn(4, size, size, device=DEVICE)
    copy_seconds = min(timed(x.clone)[0] for _ in range(10))
    product_seconds = min(timed(lambda: x[0] @ x[1])[0] for _ in range(10))
    return 2 * x.nbytes / copy_seconds, 2 * size**3 / product_seconds


def measure_case(model, optimizer, prompts, longest, ends):
    """Measure rollout of 8 responses to each prompt, the same by model.generate, and update() on the responses.

    Returns (row of seconds and peaks, responses of the last rollout).
    """
    responses = []  # of the last rollout

    def sample_by_generate():
        generate(model, prompts, 8, longest, ends)

    def sample_by_rollout():
        generator = torch.Generator(DEVICE).manual_seed(0)  # the same seed, so the same shapes every time
        out = dapo.rollout(model, prompts, 8, longest, ends, generator=generator)
        lengths = out["mask"].sum(1).int().tolist()
        responses.clear()
        for i, row in enumerate(out["tokens"].tolist()):
            problem = {"ids": prompts[i // 8]}
            reward = float(i % 3)  # unequal in every group, so that all have a gradient
            responses.append(dapo.Response(problem, row[: lengths[i]], "", 0.0, False, reward, True))

    def train():
        update(model, optimizer, responses, 16)

    row = {}
    works = {"generate": sample_by_generate, "rollout": sample_by_rollout, "update": train}
    for name, work in works.items():
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        row[f"{name}, first"] = timed(work)[0]  # with plans and compilation
        row[f"{name}, seconds"] = min(timed(work)[0] for _ in range(2))
        row[f"{name}, peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return row, responses


def gpu(args):
    """The gpu-marked tests, the default dapo.py, and a random model of the shape of Qwen2.5-0.5B."""
    if DEVICE == "cpu" and not args.quick:
        raise ValueError("PyTorch finds no CUDA device here; --quick tries the same code with tiny sizes")

    # ---- two commands
    yield "gpu-marked tests", run_command(["-m", "pytest", "-m", "gpu"])
    command = ["dapo.py", "--out", f"{tempfile.mkdtemp()}/run"]
    if args.quick:
        command += ["--steps", "1", "--prompts-per-step", "4", "--mini-batch", "2", "--eval-problems", "4"]
    yield "default dapo.py", run_command(command)

    # ---- one model that samples and is trained
    shrink = 16 if args.quick else 1
    model, prompts, ends = random_model(SMALL if args.quick else QWEN, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, fused=DEVICE == "cuda")
    eager = model.forward
    compiled = torch.compile(eager, dynamic=True, backend="eager" if args.quick else "inductor")
    bandwidth, flops = measured_speed(8192 // shrink)
    cases = [
        (256, 64, "eager"),
        (256, 256, "eager"),
        (512, 256, "eager"),
        (256, 64, "cuDNN attention"),
        (256, 64, "compiled"),
    ]
    for n_rows, n_tokens, how in cases:
        torch.backends.cuda.enable_cudnn_sdp(how == "cuDNN attention")  # off in the scripts
        model.forward = compiled if how == "compiled" else eager  # update() calls body and head: they stay eager
        group_prompts = prompts[: n_rows // 8 // shrink]
        longest = n_tokens // shrink
        row, responses = measure_case(model, optimizer, group_prompts, longest, ends)
        longest_row = longest + max(len(prompt) for prompt in group_prompts)
        row["share of bandwidth bound"] = bytes_to_decode(model, responses) / bandwidth / row["rollout, seconds"]
        row["table GB"] = memory_to_train(model, len(responses), longest_row) / 1e9
        row["MFU"] = flop_to_update(model, responses) / flops / row["update, seconds"]
        yield f"{len(responses)} rows, {longest} tokens, {how}", row


def main(argv=None):
    """Measure one thing, print and write each row of the result; returns 1 if a command of gpu failed, else 0."""
    measurements = {"rollout": rollout, "step": step, "memory": memory, "two": two, "bandit": bandit, "gpu": gpu}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=measurements, help="what to measure")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to see that it runs")
    parser.add_argument("--model", choices=CASES, help="of rollout and step; by default both tiny ones")
    parser.add_argument("--out", default=str(ROOT / "studies" / "results"), help="folder of the results")
    args = parser.parse_args(argv)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    name = args.name
    if args.model:
        name += f"-{Path(args.model).name}"
    if args.quick:
        name += "-quick"
    path = Path(args.out, f"speed-{name}-{device}.json".replace(" ", "-").lower())
    rows = {}
    about = {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": rows,
    }
    status = 0
    for label, row in measurements[args.name](args):
        rows[label] = row
        print(f"{label}: {json.dumps(row)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(about, indent=1) + "\n")  # after each: a crash loses nothing
        if row.get("exit", 0) != 0:
            status = 1
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:  # full disk, no GPU, missing package
        sys.exit(f"error: {error}")
