"""Low-probability reweighting and negative-only gradients in TRL's GRPOTrainer: from one GPU to as many as there are.

The two functions are those of dapo.py and grpo_n.py, pasted; the trainer is TRL's, and only its advantages change: TRL
takes one for each token, (B, T), where a subclass gives it that.

    pip install trl datasets                                            # written and tested with TRL 1.16
    python docs/snippets/trl_reweight.py                                # a few steps on the tiny model
    torchrun --nproc-per-node 2 docs/snippets/trl_reweight.py           # ... in two processes, on CPUs as on GPUs
"""

import argparse
import json

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer


def reweight_low_prob(adv, logp_old, alpha):
    """Paper A, section 4.2: unlikely tokens count more, whatever the sign. (..., T) both -> (..., T), detached."""
    return (adv * (1 + alpha * (1 - logp_old.exp()))).detach()  # (3)


def negative_only(adv):
    """Keep the advantages below 0, drop the rest: any shape -> same shape (paper B, appendix B.5)."""
    return adv * (adv < 0)  # (3)


class ReweightedTrainer(GRPOTrainer):
    """GRPOTrainer with reweighted advantages; alpha = 0 and negative = False are TRL's own loss."""

    def __init__(self, *args, alpha=0.2, negative=False, **more):
        super().__init__(*args, **more)
        self.alpha, self.negative = alpha, negative

    def _compute_loss(self, model, inputs):
        logp_old = inputs.get("old_per_token_logps")
        if logp_old is None:  # one update a generation: TRL leaves them out, since they equal the new ones
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
            seen = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            with torch.no_grad():
                logp_old = self._get_per_token_logps_and_entropies(model, ids, seen, inputs["completion_ids"].size(1))[
                    0
                ]
        adv = inputs["advantages"].unsqueeze(1).expand_as(logp_old)  # (B, T)
        adv = reweight_low_prob(negative_only(adv) if self.negative else adv, logp_old, self.alpha)
        return super()._compute_loss(model, inputs | {"advantages": adv})


def reward(completions, answer, **_):
    """1 for the right answer in the last box, else 0: `is_correct` of dapo.py does this properly."""
    said = [completion[0]["content"].rpartition("\\boxed{")[2].partition("}")[0] for completion in completions]
    return [float(x == right) for x, right in zip(said, answer, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny/base")
    parser.add_argument("--train", default="tiny/train.jsonl")
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--negative", action="store_true")
    parser.add_argument("--steps", type=int, default=4, help="updates")
    parser.add_argument("--max-response", type=int, default=64)
    parser.add_argument("--out", default="runs/trl")
    args = parser.parse_args()
    with open(args.train) as file:
        problems = [json.loads(line) for line, _ in zip(file, range(1000), strict=False)]
    rows = [{"prompt": [{"role": "user", "content": p["prompt"]}], "answer": p["answer"]} for p in problems]
    config = {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, "num_generations": 8}
    config |= {"per_device_train_batch_size": 32, "steps_per_generation": 2, "max_steps": args.steps}
    config |= {"max_completion_length": args.max_response, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    config |= {"learning_rate": 1e-4, "logging_steps": 1, "report_to": [], "save_strategy": "no", "bf16": False}
    config |= {"use_cpu": not torch.cuda.is_available(), "gradient_checkpointing": False, "output_dir": args.out}
    trainer = ReweightedTrainer(
        model=args.model,
        reward_funcs=reward,
        args=GRPOConfig(**config),
        train_dataset=Dataset.from_list(rows),
        alpha=args.alpha,
        negative=args.negative,
    )
    trainer.train()
    trainer.save_model(args.out)


if __name__ == "__main__":
    main()
