"""How fast the scripts are: each figure a ratio measured in one run on one machine, or an absolute on a named GPU.

    python benchmarks/bench.py rollout      # rollout of dapo.py against model.generate
    python benchmarks/bench.py rollout --model qwen2.5-0.5b     # a full-size shape with random weights, no download
    python benchmarks/bench.py step         # a step of dapo.py against TRL's GRPOTrainer (pip install trl datasets)
    python benchmarks/bench.py update       # the update alone on a full-size shape, and its MFU
    python benchmarks/bench.py memory       # scoring and its gradient, chunked against naive, vocabulary 151,936
    python benchmarks/bench.py estimate     # the estimate that the scripts print, against the real peak
    python benchmarks/bench.py two-model    # decode_two of replace.py against two separate decodes
    python benchmarks/bench.py bandit       # run_bandit against the plain loop of Algorithm 1
    python benchmarks/bench.py analysis     # score_pair of delta_logp.py against two bare forward passes

Prints a small table and writes benchmarks/results/NAME-DEVICE.json. Competitors take turns, so that a slow minute of
the machine hits all of them; a ratio is the median over the rounds, the first round warms up and does not count.
"""

import argparse
import copy
import functools
import importlib.util
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
QWEN = {"vocab_size": 151_936, "tie_word_embeddings": True, "rope_theta": 1e6, "max_position_embeddings": 32_768}
PUBLIC = {  # from the config.json of the public checkpoints; built with random weights
    "qwen2.5-0.5b": (Qwen2Config, Qwen2ForCausalLM, (896, 4864, 24, 14, 2, None)),
    "qwen2.5-1.5b": (Qwen2Config, Qwen2ForCausalLM, (1536, 8960, 28, 12, 2, None)),
    "qwen3-0.6b": (Qwen3Config, Qwen3ForCausalLM, (1024, 3072, 28, 16, 8, 128)),
}


def random_model(name):
    """A model of the public shape `name`, fp32, with random weights."""
    config, model, (hidden, mlp, layers, heads, kv_heads, head_dim) = PUBLIC[name]
    shape = {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    shape |= {} if head_dim is None else {"head_dim": head_dim}
    torch.manual_seed(0)
    return model(config(**QWEN, **shape)).to(DEVICE).eval()


def clock():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def alternate(contestants, rounds):
    """{name: seconds of each round that counts}; contestants {name: function} take turns."""
    seconds = {name: [] for name in contestants}
    for i in range(rounds + 1):
        for name, work in contestants.items():
            began = clock()
            work()
            if i > 0:
                seconds[name].append(clock() - began)
    return seconds


def ratio_of(slow, fast, target, **more):
    """A row of the table: how many times as long `slow` takes, round by round."""
    rounds = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return {"ratio": statistics.median(rounds), "rounds": rounds, "target": target} | more


class ForcedLengths:
    """Row i of N draws its EOS as token lengths[i] (2 or more), and not before, in a decoder of either kind.

    Called with the logits (n, ..., V) of each token in turn: of all rows, or of those alone that have not ended.
    """

    def __init__(self, lengths, eos_id):
        self.lengths, self.eos_id, self.step = torch.as_tensor(lengths, device=DEVICE), eos_id, 0

    def __call__(self, logits):
        self.step += 1  # these logits draw token number `step`
        logits[..., self.eos_id] = -math.inf
        if self.step > 1:  # before that, model.generate has a row for each prompt alone
            lengths = self.lengths
            lengths = lengths if len(logits) == len(lengths) else lengths[lengths >= self.step]
            assert len(lengths) == len(logits)
            logits[lengths == self.step, ..., self.eos_id] = 1e4
        return logits


def bandwidth():
    """Bytes a second that a large copy reads and writes."""
    x = torch.ones(2**28 if DEVICE.type == "cuda" else 2**26, device=DEVICE)
    y, seconds = torch.empty_like(x), []
    for _ in range(10):
        began = clock()
        y.copy_(x)
        seconds.append(clock() - began)
    return 2 * x.numel() * x.element_size() / min(seconds)


def attention_shape(model):
    """(layers, query heads x head size)."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, config.num_attention_heads * head


def decoding_bytes(model, prompts, lengths, group):
    """Bytes that decoding has to read: all weights at every step, and the cache of each row that has not ended."""
    size, (layers, width) = 2 if DEVICE.type == "cuda" else 4, attention_shape(model)  # bf16 there, fp32 here
    cache = 2 * layers * width * model.config.num_key_value_heads // model.config.num_attention_heads  # numbers a token
    widths = np.repeat([len(prompt) for prompt in prompts], group)
    weights = sum(p.numel() for p in model.parameters()) * (int(max(lengths)) - 1)  # the first token is the prompt's
    return size * (weights + sum(cache * (n - 1) * (w + n / 2) for w, n in zip(widths, map(int, lengths), strict=True)))


def rollout(args):
    """Tokens a second of rollout over those of model.generate: the same model, prompts and lengths.

    On CUDA: rollout by CUDA graph and eager under bf16 autocast, as the scripts run it, and generate with bf16 weights.
    bound: what reading weights and cache would take at the bandwidth of a large copy, as a share of rollout's seconds.
    """
    import dapo

    result, cuda, speed = {}, DEVICE.type == "cuda", bandwidth()
    original, autocast = dapo.sample_tokens, torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda")
    for name in args.model.split(",") if args.model else ("tiny/base", "tiny/rlvr"):
        rng, known = np.random.default_rng(0), name in PUBLIC
        n_prompts, group, longest = (args.rows // 8, 8, args.tokens) if known else (32, 8, 128)
        if known:
            model, eos_id, n_vocab = random_model(name), 151_645, 151_665
            prompts = [rng.integers(0, 151_000, rng.integers(16, 65)).tolist() for _ in range(n_prompts)]
            lengths = rng.integers(2, longest + 1, n_prompts * group)
        else:
            tokenizer, model = dapo.load_model(str(ROOT / name), DEVICE)
            eos_id, n_vocab = tokenizer.eos_token_id, len(tokenizer)
            problems = dapo.read_problems(ROOT / "tiny/test.jsonl")[:n_prompts]
            prompts = dapo.encode_prompts(tokenizer, problems, "tiny/test.jsonl", 128)
            generator = torch.Generator(DEVICE).manual_seed(1)
            how = {"eos_ids": [eos_id], "pad_id": 0, "n_vocab": n_vocab, "generator": generator}
            lengths = dapo.rollout(model.eval(), prompts, group, longest, **how)["mask"].sum(1).long().clamp(min=2)
        force = ForcedLengths(lengths, eos_id)
        width, tokens = max(map(len, prompts)), int(torch.as_tensor(lengths).sum())
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=DEVICE)
        attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)

        def ours(graph, force=force, model=model, prompts=prompts, group=group, longest=longest, tokens=tokens):
            force.step = 0
            how = {"generator": torch.Generator(DEVICE).manual_seed(1), "cuda_graph": graph}
            dapo.sample_tokens = lambda logits, *rest: original(force(logits), *rest)
            with autocast:
                out = dapo.rollout(model, prompts, group, longest, [force.eos_id], 0, **how)
            dapo.sample_tokens = original
            assert out["mask"].sum() == tokens

        other = copy.deepcopy(model).bfloat16() if cuda else model

        @torch.no_grad()
        def theirs(force=force, model=other, ids=ids, attention=attention, group=group, longest=longest):
            force.step = 0
            handle = model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: force(out))
            how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "num_return_sequences": group}
            how |= {"max_new_tokens": longest, "eos_token_id": force.eos_id, "pad_token_id": 0}
            model.generate(input_ids=ids, attention_mask=attention, **how)
            handle.remove()

        kinds = {"rollout": functools.partial(ours, cuda), "generate": theirs}
        kinds |= {"eager rollout": functools.partial(ours, False)} if cuda else {}
        seconds = alternate(kinds, args.rounds)
        for kind in [kind for kind in kinds if kind != "generate"]:
            target = {"tiny/base": 3, "tiny/rlvr": 2}.get(name) if not cuda else 5 if kind == "rollout" else None
            spent = statistics.median(seconds[kind])
            more = {"tokens": tokens, "tokens_per_second": tokens / spent, "bytes_per_second_of_a_copy": speed}
            more["share_of_bound"] = decoding_bytes(model, prompts, lengths, group) / speed / spent
            label = (
                name + (", eager" if kind == "eager rollout" else "") + f" ({more['share_of_bound']:.0%} of the bound)"
            )
            result[label] = ratio_of(seconds["generate"], seconds[kind], target, **more)
    return result


def update(args):
    """Seconds of an update on all logits at once over those of dapo.py's: forward, loss, backward and AdamW.

    MFU: 6 FLOP a parameter and token, and 12 x layers x heads x head size x context a token, over the rate of
    a large matrix product in the same precision.
    """
    import dapo

    name, cuda = args.model or "qwen2.5-0.5b", DEVICE.type == "cuda"
    model, autocast = random_model(name), torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    tokens = torch.randint(151_000, (args.rows, args.tokens + 1), device=DEVICE)
    mask = torch.ones(tokens.shape, device=DEVICE)
    mask[:, 0] = 0
    adv = torch.randn(len(tokens), 1, device=DEVICE).expand_as(mask)

    def logp_of(kind):
        if kind == "dapo.py":
            return dapo.token_logprobs(model, tokens, mask)
        logp = torch.log_softmax(model(tokens).logits[:, :-1].float(), dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
        return torch.nn.functional.pad(logp, (1, 0))

    def work(kind):
        with autocast:
            logp = logp_of(kind)
        dapo.dapo_loss(logp, logp.detach(), adv, mask)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    a = torch.randn(8192 if cuda else 2048, 8192 if cuda else 2048, device=DEVICE)
    a, rates = a.bfloat16() if cuda else a, []
    for _ in range(10):
        began = clock()
        a @ a
        rates.append(2 * len(a) ** 3 / (clock() - began))
    seconds = alternate({kind: functools.partial(work, kind) for kind in ("dapo.py", "naive")}, args.rounds)
    spent, n, (layers, width) = statistics.median(seconds["dapo.py"]), args.rows * args.tokens, attention_shape(model)
    flop = n * (
        6 * model.num_parameters() + 12 * layers * width * args.tokens / 2
    )  # causal: half the context, on average
    more = {
        "tokens": n,
        "tokens_per_second": n / spent,
        "mfu": flop / spent / max(rates),
        "flops_of_a_product": max(rates),
    }
    label = f"{name}, {args.rows} x {args.tokens} tokens ({more['mfu']:.0%} MFU)"
    return {label: ratio_of(seconds["naive"], seconds["dapo.py"], None, **more)}


def step(args):
    """Seconds of TRL's GRPOTrainer for a step over those of dapo.py: 256 responses sampled and checked, two updates.

    Both train on all 32 groups of 8, informative or not, with the clip-higher token-level loss, AdamW and no KL, at a
    learning rate that leaves the model, and so the lengths, as they are.
    """
    import dapo

    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        sys.exit(f"bench.py step: error: {error.name} is missing; pip install trl datasets")
    result, G, n = {}, 8, 32
    for name in ("tiny/base", "tiny/rlvr"):
        problems = dapo.read_problems(ROOT / "tiny/train.jsonl")[: n * (args.rounds + 1)]
        tokenizer, model = dapo.load_model(str(ROOT / name), DEVICE)
        prompts = dapo.encode_prompts(tokenizer, problems, "tiny/train.jsonl", 128)
        how = {"max_new_tokens": 128, "eos_ids": [tokenizer.eos_token_id], "pad_id": 0, "n_vocab": len(tokenizer)}
        how |= {"temperature": 1.0, "top_p": 1.0, "generator": torch.Generator(DEVICE).manual_seed(1)}
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9, weight_decay=0.0)
        ours, our_tokens = [], 0
        for i in range(0, len(problems), n):  # the phases of dapo.py's loop
            began = clock()
            part = dapo.sample_and_check(model, tokenizer, problems[i : i + n], prompts[i : i + n], G, **how)
            reward = 2.0 * part["right"] - 1 + dapo.overlong_penalty(part["length"], 128, 32)
            asked = [x for x in prompts[i : i + n] for _ in range(G)]
            tokens, mask = dapo.pack(asked, part["ids"], 0, DEVICE)
            plan = dapo.micro_batches(mask, n * G // 2, 32)
            old = torch.zeros_like(mask)
            for rows, width in (micro for mini in plan for micro in mini):
                with torch.no_grad():
                    old[rows, :width] = dapo.token_logprobs(model, tokens[rows, :width], mask[rows, :width])
            adv = dapo.group_advantages(reward).to(DEVICE).view(-1, 1).expand_as(mask)
            for mini in plan:
                count = sum(mask[rows].sum() for rows, _ in mini)
                for rows, width in mini:
                    logp = dapo.token_logprobs(model, tokens[rows, :width], mask[rows, :width])
                    a, m, o = (x[rows, :width] for x in (adv, mask, old))
                    dapo.dapo_loss(logp, o, a, m, n_tokens=count)[0].backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            ours.append(clock() - began)
            our_tokens += part["mask"].sum().item()
        tokenizer, model = dapo.load_model(str(ROOT / name), DEVICE)

        def reward(completions, answer, **_):
            return [2.0 * dapo.is_correct(x[0]["content"], a) - 1 for x, a in zip(completions, answer, strict=True)]

        rows = [{"prompt": [{"role": "user", "content": p["prompt"]}], "answer": p["answer"]} for p in problems]
        theirs, lengths = [], []

        class Clock(transformers.TrainerCallback):
            began = None

            def on_step_begin(self, *_, theirs=theirs, **__):
                if self.began is None:
                    self.began, self.updates = clock(), 0

            def on_step_end(self, *_, theirs=theirs, **__):
                self.updates += 1
                if self.updates == 2:  # two updates a generation, as in dapo.py
                    theirs.append(clock() - self.began)
                    self.began = None

            def on_log(self, a, s, c, logs=None, lengths=lengths, **__):
                lengths += [logs["completions/mean_length"]] if "completions/mean_length" in (logs or {}) else []

        config = {"per_device_train_batch_size": n * G // 2, "gradient_accumulation_steps": 1, "num_generations": G}
        config |= {"steps_per_generation": 2, "num_iterations": 1, "max_steps": 2 * (args.rounds + 1), "beta": 0.0}
        config |= {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "temperature": 1.0, "top_p": 1.0}
        config |= {"max_completion_length": 128, "learning_rate": 1e-9, "weight_decay": 0.0, "max_grad_norm": 1.0}
        config |= {"logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "bf16": False}
        config |= {"use_cpu": DEVICE.type == "cpu", "output_dir": args.scratch, "shuffle_dataset": False, "top_k": 0}
        config |= {"gradient_checkpointing": False, "seed": 1}
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(**config),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
        tokens_ours, tokens_theirs = our_tokens / len(ours) / n / G, float(np.mean(lengths))
        row = ratio_of(theirs[1:], ours[1:], 2.5, tokens_a_response={"dapo.py": tokens_ours, "TRL": tokens_theirs})
        result[name] = row | {"seconds": {"dapo.py": statistics.median(ours[1:]), "TRL": statistics.median(theirs[1:])}}
    return result


def memory(args):
    """Peak memory of scoring and its gradient, vocabulary 151,936, a process for each: the others' over chunked.

    naive: log_softmax of all logits. TRL: its selective_log_softmax on all logits, left out where TRL is missing.
    """
    result, others = {}, ["naive"] + (["TRL"] if importlib.util.find_spec("trl") else [])
    for tokens in (512, 1024, 2048):
        peak = {}
        for kind in ("chunked", *others):
            command = [sys.executable, __file__, "memory-of", "--kind", kind, "--tokens", str(tokens)]
            peak[kind] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for kind in others:
            row = ratio_of([peak[kind]], [peak["chunked"]], None, mib={name: peak[name] for name in ("chunked", kind)})
            result[f"{tokens} tokens: {kind} {peak[kind]:,.0f} MiB, chunked {peak['chunked']:,.0f} MiB"] = row
    return result


def memory_of(args):
    """MiB that a forward and backward pass of log-probs adds to the peak of this process, or of the GPU."""
    import dapo

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(**QWEN, **shape, num_key_value_heads=2, head_dim=32)).to(DEVICE)
    tokens = torch.randint(151_936, (args.tokens // 128, 129), device=DEVICE)

    def work(kind, tokens):
        model.zero_grad()
        if kind == "chunked":
            mask = torch.ones(tokens.shape, device=DEVICE)
            logp = dapo.token_logprobs(
                model, tokens, mask.index_fill(1, torch.tensor([0], device=DEVICE), 0), chunk=128
            )
        else:
            logits, targets = model(tokens).logits[:, :-1].float(), tokens[:, 1:]
            if kind == "TRL":
                from trl.trainer.utils import selective_log_softmax

                logp = selective_log_softmax(logits, targets)
            else:
                logp = torch.log_softmax(logits, dim=-1).gather(-1, targets[..., None])
        logp.sum().backward()

    def peak():
        if DEVICE.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    work(args.kind, tokens[:1, :5])  # gradients, workspaces and imports are there before the measurement
    before = peak()
    work(args.kind, tokens)
    print(peak() - before)


def estimate(args):
    """What estimate_memory says before a run, over the peak that sampling and one update really reach."""
    name = args.model or "qwen2.5-0.5b"
    command = [sys.executable, __file__, "estimate-of", "--model", name]
    command += ["--rows", str(args.rows), "--tokens", str(args.tokens)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    mib = {what: size / 2**20 for what, size in found.items()}
    sizes = f"estimated {mib['at most']:,.0f}, measured {mib['measured']:,.0f} MiB"
    label = f"{name}, {args.rows} x {args.tokens} tokens: {sizes}"
    return {label: ratio_of([mib["at most"]], [mib["measured"]], None, mib=mib)}


def estimate_of(args):
    """Bytes, as JSON: the estimate's parts, and what loading, sampling and two updates add to this process or GPU."""
    import dapo

    def peak():
        if DEVICE.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    small = Qwen2ForCausalLM(Qwen2Config(vocab_size=99, **shape))
    small(torch.ones(1, 1, dtype=torch.long)).logits.sum().backward()  # imports and workspaces are there before
    before, model = peak(), random_model(args.model)
    cuda, half = DEVICE.type == "cuda", max(1, args.rows // 2)
    need = dapo.estimate_memory([model], cuda, args.rows, args.tokens, half)
    optimizer, width = torch.optim.AdamW(model.parameters(), lr=1e-9), args.tokens // 2
    prompts = [torch.randint(151_000, (width,)).tolist() for _ in range(args.rows)]
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=cuda):
        out = dapo.rollout(model, prompts, 1, args.tokens - width, [151_645], 0, cuda_graph=cuda)
    ids = [row[: int(n)] for row, n in zip(out["tokens"].tolist(), out["mask"].sum(1), strict=True)]
    tokens, mask = dapo.pack(prompts[:half], ids[:half], 0, DEVICE)
    model.train()
    for _ in range(2):  # the second update has gradients, AdamW's state and activations at once
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=cuda):
            logp = dapo.token_logprobs(model, tokens, mask)
        dapo.dapo_loss(logp, logp.detach(), torch.ones_like(mask), mask)[0].backward()
        optimizer.step()
    print(json.dumps(need | {"measured": peak() - before}))


def two_model(args):
    """Seconds a token of decode_two, over the sum of the seconds a token of two rollouts of one model.

    Where nothing fires, decode_two draws exactly the tokens of `rollout` on the base; where everything fires, responses
    are as long as the RLVR model's. Both models have one architecture, so two separate decodes of the same tokens cost
    twice one rollout. kl adds the cost of a criterion over the vocabulary.
    """
    import dapo
    import replace

    models, _, ids = replace.load_models((str(ROOT / "tiny/base"), str(ROOT / "tiny/rlvr")), "", DEVICE)
    base, rlvr = models.values()
    problems = replace.read_problems(ROOT / "tiny/test.jsonl")[:100]
    prompts = replace.encode_prompts(dapo.load_model(str(ROOT / "tiny/rlvr"), DEVICE)[0], problems, "test", 128)
    result = {}
    for name, model, score, threshold in (
        ("never fires (dlogp), against the base", base, replace.score_dlogp, math.inf),
        ("never fires (kl), against the base", base, replace.score_kl, math.inf),
        ("always fires (dlogp), against RLVR", rlvr, replace.score_dlogp, -math.inf),
        ("always fires (kl), against RLVR", rlvr, replace.score_kl, -math.inf),
    ):
        counts = {"one": [], "two": []}

        def one(model=model, counts=counts):
            how = {"generator": torch.Generator(DEVICE).manual_seed(len(counts["one"]))} | ids
            counts["one"].append(dapo.rollout(model, prompts, 8, 128, **how)["mask"].sum().item())

        def two(score=score, threshold=threshold, counts=counts):
            how = {"generator": torch.Generator(DEVICE).manual_seed(len(counts["two"])), "max_new_tokens": 128} | ids
            out = replace.decode_two(base, rlvr, prompts, score, [threshold] * 8, [0.0] * 8, **how)
            counts["two"].append(out["mask"].sum().item())

        seconds = alternate({"one": one, "two": two}, args.rounds)
        rates = {k: [s / n for s, n in zip(seconds[k], counts[k][1:], strict=True)] for k in seconds}
        result[name] = ratio_of(rates["two"], [2 * x for x in rates["one"]], 1.2)
    return result


def bandit(args):
    """Seconds of 1,000 runs by a loop over Algorithm 1 over those of run_bandit. The loops are timed on 10 runs.

    One loop is written with numpy, a call for each line of the listing; the other, which the tests compare run_bandit
    with, is Python alone, and at three actions faster than that.
    """
    import toy_bandit

    sys.path.insert(0, str(ROOT / "tests"))
    from test_toy_bandit import algorithm_1

    steps, uniforms = 2000, np.random.default_rng(0).random((2000, 2))
    rewards, start, rng = np.array(toy_bandit.REWARDS), np.array(toy_bandit.POLICY), np.random.default_rng(0)
    how = {"steps": steps, "group_size": 2, "lr": 0.1, "temperature": 1.0, "optimizer": "sgd"}

    def with_numpy():
        for _ in range(10):
            z = np.log(start)
            for _ in range(steps):
                pi = np.exp(z - z.max())
                pi /= pi.sum()
                actions = rng.choice(3, size=2, p=pi)
                adv = rewards[actions] - rewards[actions].mean()
                z = z + 0.1 * (adv[:, None] * (np.eye(3)[actions] - pi)).mean(axis=0)

    def python_alone():
        for _ in range(10):
            algorithm_1(toy_bandit.REWARDS, toy_bandit.POLICY, uniforms=uniforms, signs="both", **how)

    def ours():
        toy_bandit.run_bandit(toy_bandit.REWARDS, toy_bandit.POLICY, n_runs=1000, **how)

    seconds = alternate({"numpy": with_numpy, "python": python_alone, "ours": ours}, args.rounds)
    targets = {"numpy": 200, "python": None}
    return {
        f"1,000 runs x 2,000 updates, loop in {name}": ratio_of(
            [100 * x for x in seconds[name]], seconds["ours"], target
        )
        for name, target in targets.items()
    }


def analysis(args):
    """Share of the speed of two bare forward passes that score_pair keeps: all metrics of every token, both models."""
    import delta_logp

    models, tokenizer, ids = delta_logp.load_models((str(ROOT / "tiny/base"), str(ROOT / "tiny/rlvr")), "", DEVICE)
    base, rlvr = models.values()
    problems = delta_logp.read_problems(ROOT / "tiny/test.jsonl")[:64]
    prompts = delta_logp.encode_prompts(tokenizer, problems, "test", 128)
    how = {"max_new_tokens": 128, "generator": torch.Generator(DEVICE).manual_seed(1)} | ids
    part = delta_logp.sample_and_check(rlvr, tokenizer, problems, prompts, 1, **how)
    cases = {"tiny pair": (base, rlvr, delta_logp.pack(prompts, part["ids"], 0, DEVICE), ids["n_vocab"])}
    if args.model:
        name = args.model
        pair = random_model(name), random_model(name)
        rng = np.random.default_rng(0)
        asked, answers = (
            [rng.integers(0, 151_000, n).tolist() for _ in range(args.rows // 8)] for n in (32, args.tokens)
        )
        cases = {name: (*pair, delta_logp.pack(asked, answers, 0, DEVICE), 151_665)}
    result = {}
    for name, (one, two, (tokens, mask), n_vocab) in cases.items():

        @torch.no_grad()
        def bare(one=one, two=two, tokens=tokens):
            for model in (one, two):
                model(tokens, use_cache=False)

        def full(one=one, two=two, tokens=tokens, mask=mask, n_vocab=n_vocab):
            delta_logp.score_pair(one, two, tokens, mask, n_vocab=n_vocab)

        seconds = alternate({"bare": bare, "full": full}, args.rounds)
        result[name] = ratio_of(seconds["bare"], seconds["full"], 0.7)
    return result


BENCHMARKS = {
    "rollout": rollout,
    "step": step,
    "update": update,
    "memory": memory,
    "two-model": two_model,
    "bandit": bandit,
}
BENCHMARKS |= {"analysis": analysis, "memory-of": memory_of, "estimate": estimate, "estimate-of": estimate_of}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument(
        "--model", default="", help=f"a full-size shape instead of the tiny models: {', '.join(PUBLIC)}"
    )
    parser.add_argument("--rows", type=int, default=16, help="responses decoded side by side by a full-size model")
    parser.add_argument(
        "--tokens", type=int, default=32, help="most new tokens of a full-size model; tokens of memory-of"
    )
    parser.add_argument("--kind", default="chunked", help="of memory-of")
    parser.add_argument("--scratch", default="/tmp/bench-trl", help="folder for TRL's own files")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    result = BENCHMARKS[args.name](args)
    if result is None:
        return
    print("| | median | least | most | target |\n|---|---|---|---|---|")
    for name, row in result.items():
        target = "" if row["target"] is None else row["target"]
        print(f"| {name} | {row['ratio']:.2f} | {row['rounds'][0]:.2f} | {row['rounds'][-1]:.2f} | {target} |")
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    about = {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"transformers": transformers.__version__, "machine": platform.machine(), "arguments": vars(args)}
    name = "-".join([args.name, *filter(None, [args.model.replace("/", "-").replace(",", "-")]), device])
    path = ROOT / "benchmarks" / "results" / f"{name.replace(' ', '-').lower()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about | {"result": result}, indent=2) + "\n")
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
