"""What GRPO, GSPO and their -N variants compute, and whole runs of grpo_n.py. test_maths.py has what they share."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from test_maths import batch, gspo_loss
from test_runs import keep_copies, rows, short_problems

import dapo
import grpo_n
from grpo_n import answer_entropy, group_advantages, grpo_loss, kl_k3, negative_only, pass_at_k, positive_only

ROOT = Path(__file__).resolve().parent.parent
both_losses = pytest.mark.parametrize("loss_of", [grpo_loss, gspo_loss], ids=["grpo", "gspo"])


# -------------------------------------------------------------------------------------------------------- the losses
@both_losses
def test_a_token_weighs_one_over_its_own_response_length(loss_of):
    logp = torch.zeros(2, 8, requires_grad=True)
    mask = (torch.arange(8) < torch.tensor([[2], [8]])).float()
    (gradient,) = torch.autograd.grad(loss_of(logp, torch.zeros(2, 8), torch.ones(2, 8), mask)[0], logp)
    assert torch.allclose(-gradient, mask / torch.tensor([[4.0], [16.0]]))


def test_gspo_is_the_plain_sequence_formula_and_ignores_padding():
    """Padding inside the mean of the log-ratio, or a weight of the squared length, gives another gradient."""
    logp, logp_old, adv, mask = batch()
    terms = []
    for i, n in enumerate(mask.sum(1).int().tolist()):
        ratio = torch.exp((logp[i, :n] - logp_old[i, :n]).sum() / n)
        terms.append(torch.minimum(ratio * adv[i, 0], ratio.clamp(0.9, 1.15) * adv[i, 0]))
    (plain,) = torch.autograd.grad(-torch.stack(terms).mean(), logp)
    (ours,) = torch.autograd.grad(gspo_loss(logp, logp_old, adv, mask, 0.1, 0.15)[0], logp)
    assert torch.allclose(ours, plain, atol=1e-7)
    padding = [(logp, 3.0), (logp_old, -7.0), (adv, math.nan), (mask, 0)]
    wide = [torch.nn.functional.pad(x, (0, 9), value=value) for x, value in padding]
    (padded,) = torch.autograd.grad(gspo_loss(*wide, 0.1, 0.15)[0], logp)
    assert torch.equal(padded, ours)


def test_grpo_equals_dapo_where_the_objectives_coincide():
    """One response length, equal clip ranges, no dual clip, no KL: the same loss, gradient and stats."""
    logp, logp_old, adv, _ = batch()
    mask = torch.ones_like(logp_old)
    ours, our_stats = grpo_loss(logp, logp_old, adv, mask, 0.2)
    theirs, their_stats = dapo.dapo_loss(logp, logp_old, adv, mask, 0.2, 0.2, dual_clip=1e9)
    assert torch.allclose(ours, theirs, atol=1e-6)
    (our_gradient,) = torch.autograd.grad(ours, logp)
    (their_gradient,) = torch.autograd.grad(theirs, logp)
    assert torch.allclose(our_gradient, their_gradient, atol=1e-7)
    for name, value in our_stats.items():
        assert torch.allclose(value, their_stats[name], atol=1e-6), name


# ------------------------------------------------------------------------------------------------------ negative only
def test_negative_only_masks_after_the_whole_group_was_normalised():
    """Recentred or rescaled after masking, these would be other numbers."""
    adv = group_advantages(torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 0], [1.0, 1, 1, 1], [0.0, 0, 0, 0]]))
    expected = torch.tensor([[0, -0.5, -0.5, -0.5], [0, 0, 0, -1.5], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert torch.allclose(negative_only(adv), expected, atol=1e-5)


def test_denominators_stay_those_of_the_whole_group():
    logp = torch.zeros(4, 3, requires_grad=True)
    adv = group_advantages(torch.tensor([[1.0, 1.0, 0.0, 0.0]])).view(4, 1).expand(4, 3)
    ones = torch.ones(4, 3)
    (whole,) = torch.autograd.grad(grpo_loss(logp, 0 * ones, adv, ones)[0], logp)
    (part,) = torch.autograd.grad(grpo_loss(logp, 0 * ones, negative_only(adv), ones)[0], logp)
    assert torch.equal(part[2:], whole[2:]) and torch.equal(part[:2], torch.zeros(2, 3))


def test_positive_only_is_what_negative_only_leaves_out():
    adv = group_advantages(torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 0], [1.0, 1, 1, 1], [0.0, 0, 0, 0]]))
    expected = torch.tensor([[1.5, 0, 0, 0], [0.5, 0.5, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert torch.allclose(positive_only(adv), expected, atol=1e-5)
    assert torch.equal(positive_only(adv) + negative_only(adv), adv)


# ----------------------------------------------------------------------------------------------------- KL, entropies
def test_k3_has_the_value_and_gradient_of_the_true_kl():
    """Three arms, enumerated: k1, the log-ratio alone, has the value too, but its expected gradient is zero."""
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    logp_ref = torch.log_softmax(torch.tensor([0.31, -0.22, 0.12], dtype=torch.float64), 0)
    logp = torch.log_softmax(logits, 0)
    true = (logp.exp() * (logp - logp_ref)).sum()
    expected = (logp.exp().detach() * kl_k3(logp, logp_ref)).sum()
    assert expected.item() == pytest.approx(true.item(), rel=1e-9)
    (true_gradient,) = torch.autograd.grad(true, logits, retain_graph=True)
    (our_gradient,) = torch.autograd.grad(expected, logits)
    assert true_gradient.abs().max() > 1e-3
    assert torch.allclose(our_gradient, true_gradient, rtol=0.05, atol=1e-6)


@both_losses
def test_the_kl_of_the_loss_is_k3_averaged_in_each_response(loss_of):
    logp, logp_old, adv, mask = batch()
    logp_ref = logp_old - 0.2
    expected = ((kl_k3(logp, logp_ref) * mask).sum(1) / mask.sum(1)).mean().item()
    with_kl, stats = loss_of(logp, logp_old, adv, mask, logp_ref=logp_ref, kl_coef=0.5)
    without, _ = loss_of(logp, logp_old, adv, mask)
    assert (with_kl - without).item() == pytest.approx(0.5 * expected, rel=1e-4)
    assert stats["kl_ref"].item() == pytest.approx(expected, rel=1e-5)


def test_answer_entropy_by_hand():
    assert answer_entropy(["1", "1", "1"]) == 0 and answer_entropy([]) == 0
    assert answer_entropy(["1", "2", None, None]) == pytest.approx(1.5 * math.log(2))
    assert answer_entropy(list("abcd")) == pytest.approx(math.log(4))


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if k > n or c > n:
            with pytest.raises(ValueError, match="1 <= k <= n"):
                pass_at_k(n, c, k)
            continue
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at_k(4096, 1, 2048) == 0.5 and pass_at_k(256, 3, 1) == pytest.approx(3 / 256)


# ---------------------------------------------------------------------------------------------------------- whole runs
SMALL = "--prompts-per-step 4 --mini-batch 4 --group-size 8 --gen-batch 3 --max-response 32 --micro-batch 7"
SMALL += " --eval-problems 2 --eval-samples 2 --passk-problems 3 --device cpu"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return short_problems(tmp_path_factory.mktemp("problems") / "short.jsonl")


def run(problems, out, flags):
    """A small run; returns the rows of its metrics.jsonl."""
    files = f"--train {problems} --test {problems} --out {out}"
    grpo_n.main(grpo_n.parse_args(f"{SMALL} {files} {flags}".split()))
    return rows(out)


WHOLE = "--algorithm gspo-n --steps 2 --eval-every 1 --passk-samples 4 --mini-batch 2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, problems):
    """An uninterrupted run of two steps; beside it "after-1", its folder as a kill after step 1 would leave it."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        keep_copies(patch, grpo_n, folder)
        run(problems, folder / "whole", WHOLE)
    return folder / "whole"


def test_a_run_compares_base_and_trained_model(whole):
    for row in rows(whole):
        assert row["test/pass@1"] <= row["test/pass@2"] and 0 <= row["test/greedy"] <= 1
    first, last = rows(whole)[1:]
    assert first["kl_ref"] < last["kl_ref"]  # to the model that the run started from
    found = json.loads((whole / "passk.json").read_text())
    base, trained = found["models"]
    assert found["samples"] == 4 and base == "tiny/base" and trained.endswith("whole/model")
    for results in found["models"].values():
        assert len(results) == 3
        for result in results:
            assert result["pass@1"] == result["right"] / 4 and result["pass@4"] == (result["right"] > 0)


def test_micro_batch_changes_only_rounding(whole, problems, tmp_path):
    """A loss, or an entropy bonus, divided by the size of the micro-batch would show."""
    row = run(problems, tmp_path / "run", f"{WHOLE} --steps 1 --micro-batch 1 --passk-samples 0")[1]
    for name, value in rows(whole)[1].items():
        assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_resume_is_bit_identical(whole, problems):
    """Also the reference: it must be loaded from --model again, and not from the checkpoint."""
    out = whole.parent / "after-1"
    run(problems, out, f"{WHOLE} --resume")
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_five_algorithms(whole, problems, tmp_path):
    """-n drops the positive advantages, -p the negative ones, gspo has another ratio; what was sampled is the same."""
    first = {"gspo-n": rows(whole)[1]}
    for algorithm in ("grpo", "grpo-n", "grpo-p", "gspo"):
        flags = f"--algorithm {algorithm} --lr {grpo_n.LR['gspo-n']} --steps 1 --mini-batch 2 --passk-samples 0"
        first[algorithm] = run(problems, tmp_path / algorithm, flags)[1]
    assert len({row["reward"] for row in first.values()}) == 1
    assert len({row["loss"] for row in first.values()}) == 5
    assert 0 < first["grpo-n"]["active"] < first["grpo"]["active"]
    assert first["grpo-p"]["active"] == pytest.approx(first["grpo"]["active"] - first["grpo-n"]["active"])
    assert first["gspo-n"]["active"] == first["grpo-n"]["active"] and first["gspo"]["active"] == first["grpo"]["active"]


def test_the_entropy_bonus_is_averaged_like_the_loss():
    """Equation (8): over the tokens of a response, then over responses; padding does not count."""
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    entropy = torch.tensor([[1.0, 2.0, 3.0, 2.0], [4.0, 9.0, 9.0, 9.0]], requires_grad=True)
    zeros = torch.zeros(2, 4)
    loss, _ = grpo_loss(zeros, zeros, zeros, mask, entropy=entropy, entropy_coef=0.5)
    assert loss.item() == pytest.approx(-0.5 * (2.0 + 4.0) / 2)
    (gradient,) = torch.autograd.grad(loss, entropy)
    assert torch.allclose(gradient, -0.5 * torch.tensor([[0.125] * 4, [0.5, 0.0, 0.0, 0.0]]))


def test_the_entropy_bonus_reaches_the_loss(problems, tmp_path):
    off = run(problems, tmp_path / "off", "--steps 1 --passk-samples 0 --entropy-coef 0")[1]
    on = run(problems, tmp_path / "on", "--steps 1 --passk-samples 0 --entropy-coef 0.5")[1]
    assert off["entropy"] == on["entropy"] > 0.1
    assert 0.5 * 0.5 * off["entropy"] < off["loss"] - on["loss"] < 0.5 * 2 * off["entropy"]  # another mean of it


def test_steps_0_evaluates_a_checkpoint(problems, tmp_path):
    flags = "--steps 0 --eval-problems 32 --passk-samples 4"
    (first,) = run(problems, tmp_path / "first", flags)
    (other,) = run(problems, tmp_path / "other", f"{flags} --seed 2 --passk-temperature 2 --passk-top-p 1e-6")
    assert first["test/greedy"] == other["test/greedy"] and first["test/pass@1"] != other["test/pass@1"]
    entropies = {}
    for name in ("first", "other"):
        found = json.loads((tmp_path / name / "passk.json").read_text())
        assert list(found["models"]) == ["tiny/base"]
        entropies[name] = [result["answer_entropy"] for result in found["models"]["tiny/base"]]
    assert max(entropies["first"]) > 0 and max(entropies["other"]) == 0  # so little top-p: four equal samples


def test_each_algorithm_has_a_learning_rate_of_its_own():
    assert grpo_n.Args(algorithm="grpo-n").lr == grpo_n.LR["grpo-n"] and grpo_n.Args(lr=0.5).lr == 0.5
