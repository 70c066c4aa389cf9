"""Low-probability reweighting and negative-only gradients in TRL's GRPOTrainer, on one GPU or many.

The two functions are pasted from dapo.py and grpo_n.py. The trainer is TRL's. Only the advantages change: a subclass
gives TRL one advantage for each token, (B, T).

    pip install -r requirements-extras.txt                       # tested with TRL 1.16
    python docs/snippets/trl_reweight.py                         # four updates of the tiny model
    torchrun --nproc-per-node 2 docs/snippets/trl_reweight.py    # the same in two processes, on CPUs or GPUs
"""

import argparse
import json

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer


def reweight_low_prob(adv, logp_old, alpha):
    """Unlikely tokens count more, whatever the sign (paper A, section 4.2). adv, logp_old (..., T) -> (..., T).

    Detached from the graph. Raises ValueError where the two shapes differ.
    """
    if adv.shape != logp_old.shape:
        raise ValueError(f"want adv and logp_old of one shape, not {tuple(adv.shape)} and {tuple(logp_old.shape)}")
    return (adv * (1 + alpha * (1 - logp_old.exp()))).detach()  # (3)


def negative_only(adv):
    """Keep the advantages below 0, set the rest to 0 (paper B, appendix B.5): any shape -> same shape.

    Takes advantages that were normalised over the whole group; nothing is recentred or rescaled afterwards.
    """
    return adv * (adv < 0)  # (3)


class ReweightedTrainer(GRPOTrainer):
    """GRPOTrainer with reweighted advantages. With alpha = 0 and negative = False its loss is TRL's own."""

    def __init__(self, *args, alpha=0.2, negative=False, **more):
        super().__init__(*args, **more)
        self.alpha = alpha
        self.negative = negative

    def _compute_loss(self, model, inputs):
        logp_old = inputs.get("old_per_token_logps")
        if logp_old is None:  # with one update to a rollout they equal the new log-probs, and TRL leaves them out
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
            attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            length = inputs["completion_ids"].size(1)
            with torch.no_grad():
                logp_old = self._get_per_token_logps_and_entropies(model, ids, attention, length)[0]
        adv = inputs["advantages"].unsqueeze(1).expand_as(logp_old)  # (B, T)
        if self.negative:
            adv = negative_only(adv)
        adv = reweight_low_prob(adv, logp_old, self.alpha)
        return super()._compute_loss(model, {**inputs, "advantages": adv})


def reward(completions, answer, **_):
    """1 if the text in the last box is the right answer, else 0. `is_correct` of dapo.py also compares numbers."""
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
        said = completion[0]["content"].rpartition("\\boxed{")[2].partition("}")[0]
        rewards.append(float(said == right))
    return rewards


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny/base", help="folder or hub name of the model")
    parser.add_argument("--train", default="tiny/train.jsonl", help="problems, one JSON object a line")
    parser.add_argument("--alpha", type=float, default=0.2, help="strength of the reweighting; 0 turns it off")
    parser.add_argument("--negative", action="store_true", help="keep only negative advantages")
    parser.add_argument("--steps", type=int, default=4, help="number of updates, two to a rollout")
    parser.add_argument("--max-response", type=int, default=64, help="most tokens of a response")
    parser.add_argument("--out", default="runs/trl", help="folder of the trained model")
    args = parser.parse_args()
    problems = []
    with open(args.train) as file:
        for line in file:
            problem = json.loads(line)
            messages = [{"role": "user", "content": problem["prompt"]}]
            problems.append({"prompt": messages, "answer": problem["answer"]})
    config = GRPOConfig(
        output_dir=args.out,
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        num_generations=8,
        per_device_train_batch_size=32,
        steps_per_generation=2,
        max_steps=args.steps,
        max_completion_length=args.max_response,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        learning_rate=1e-4,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        report_to=[],
        save_strategy="no",
    )
    trainer = ReweightedTrainer(
        model=args.model,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list(problems[:1000]),
        alpha=args.alpha,
        negative=args.negative,
    )
    trainer.train()
    trainer.save_model(args.out)


if __name__ == "__main__":
    main()
