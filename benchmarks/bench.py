"""How fast the scripts are: each figure a ratio measured in one run on one machine, or an absolute on a named GPU.

    python benchmarks/bench.py two-model     # decode_two of replace.py against two separate decodes: a minute on a CPU

Prints a small table and writes benchmarks/results/NAME-DEVICE.json. Competitors take turns, so that a slow minute of
the machine hits all of them; a ratio is the median over the rounds.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def device_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def timed(work):
    """(seconds, tokens) of work(), which returns tensors with a `mask`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    tokens = int(work()["mask"].sum())  # waits for the device
    return time.perf_counter() - began, tokens


def two_model(args):
    """Seconds a token of decode_two, over the sum of the seconds a token of two rollouts of one model.

    Where nothing fires, decode_two draws exactly the tokens of `rollout` on the base; where everything fires, responses
    are as long as the RLVR model's. Both models have one architecture, so two separate decodes of the same tokens cost
    twice one rollout. Half of the tokens random is in between; kl adds the cost of a criterion over the vocabulary.
    """
    import dapo
    import replace

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = (str(ROOT / "tiny/base"), str(ROOT / "tiny/rlvr"))
    models, tokenizer, ids = replace.load_models(names, "", device)
    base, rlvr = models.values()
    problems = replace.read_problems(ROOT / "tiny/test.jsonl")[: args.problems]
    prompts = replace.encode_prompts(tokenizer, problems, "tiny/test.jsonl", 128)
    copies = args.samples

    def alone(model, seed):
        generator = torch.Generator(device).manual_seed(seed)
        return dapo.rollout(model, prompts, copies, 128, generator=generator, **ids)

    def both(score, threshold, seed):
        generator = torch.Generator(device).manual_seed(seed)
        how = {"max_new_tokens": 128, "generator": generator} | ids
        return replace.decode_two(base, rlvr, prompts, score, [threshold] * copies, [0.0] * copies, **how)

    cases = {
        "never fires (dlogp), against the base": (base, replace.score_dlogp, math.inf),
        "never fires (kl), against the base": (base, replace.score_kl, math.inf),
        "always fires (dlogp), against RLVR": (rlvr, replace.score_dlogp, -math.inf),
        "always fires (kl), against RLVR": (rlvr, replace.score_kl, -math.inf),
    }
    ratios = {name: [] for name in cases}
    for seed in range(args.rounds + 1):
        for name, (model, score, threshold) in cases.items():
            seconds, tokens = timed(lambda model=model, seed=seed: alone(model, seed))
            seconds_two, tokens_two = timed(lambda how=(score, threshold), seed=seed: both(*how, seed))
            if seed > 0:  # the first round warms up
                ratios[name].append((seconds_two / tokens_two) / (2 * seconds / tokens))
    return {name: {"ratio": statistics.median(x), "rounds": sorted(x), "target": 1.2} for name, x in ratios.items()}


BENCHMARKS = {"two-model": two_model}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    result = BENCHMARKS[args.name](args)
    print("| | median | least | most | target |\n|---|---|---|---|---|")
    for name, row in result.items():
        print(f"| {name} | {row['ratio']:.2f} | {row['rounds'][0]:.2f} | {row['rounds'][-1]:.2f} | {row['target']} |")
    device = device_name()
    about = {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{args.name}-{device.replace(' ', '-').lower()}.json"
    path.write_text(json.dumps(about | {"arguments": vars(args), "result": result}, indent=2) + "\n")
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
