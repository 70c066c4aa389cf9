"""extrapolate.py: the theorem with planted mistakes, and extrapolated decoding against replacement and the base."""

import contextlib
import inspect
import json
import math
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_qwen

import dapo
import extrapolate
import replace
from extrapolate import Arm, check_theorem, decode_two, extrapolate_logp, natural_gradient, policy_gradient

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
INF = math.inf


def wrong_sign(logp_rlvr, logp_base, gamma):
    return extrapolate_logp(logp_rlvr, logp_base, -gamma)


# --------------------------------------------------------------------------------------------------------- the theorem
def test_the_gradient_is_autograds_and_the_fisher_matrix_that_of_the_definition():
    theta, rewards = extrapolate.random_problems(3, 6, torch.Generator().manual_seed(0))
    theta.requires_grad_()
    expected = (torch.softmax(theta, -1) * rewards).sum()
    (gradient,) = torch.autograd.grad(expected, theta)
    assert torch.allclose(policy_gradient(theta, rewards), gradient)
    for row, row_gradient in zip(theta.detach(), gradient, strict=True):
        pi = torch.softmax(row, -1)
        score_vectors = torch.eye(6, dtype=torch.float64) - pi  # row v: gradient of log pi_v
        fisher = sum(p * torch.outer(s, s) for p, s in zip(pi, score_vectors, strict=True))
        natural = torch.linalg.pinv(fisher, rtol=1e-10) @ row_gradient
        assert torch.allclose(natural_gradient(row, row_gradient), natural, atol=1e-9)


def test_the_natural_gradient_is_the_reward_up_to_a_constant():
    """For nearly certain policies too: a Fisher matrix whose rows do not sum to exactly 0 goes astray there."""
    problems = [extrapolate.random_problems(4, n, torch.Generator().manual_seed(1)) for n in (2, 3, 17, 200)]
    problems.append((torch.tensor([18.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)))
    for theta, rewards in problems:
        shift = natural_gradient(theta, policy_gradient(theta, rewards)) - rewards
        assert (shift - shift.mean(-1, keepdim=True)).abs().max() < 1e-6


def test_sampled_advantages_are_the_exact_ones_on_average_and_f_plus_times_the_gradient():
    n = 200_000
    theta, rewards = extrapolate.random_problems(1, 4, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(0)
    sampled = extrapolate.sampled_advantages(theta.expand(n, 4), rewards.expand(n, 4), 3, generator)
    pi = torch.softmax(theta, -1)
    exact = (rewards - (pi * rewards).sum())[0]
    assert ((sampled.mean(0) - exact).abs() < 4.5 * sampled.std(0) / math.sqrt(n)).all()
    gradient = sampled[:5] * pi  # of the sum over sampled actions of adv log pi
    shift = natural_gradient(theta.expand(5, 4), gradient) - sampled[:5]
    assert (shift - shift.mean(-1, keepdim=True)).abs().max() < 1e-9


def test_the_theorem_holds_on_1000_random_problems_and_not_with_the_wrong_sign(monkeypatch):
    gains, npg_error, slope_error = check_theorem(1000, seed=5, sizes=(2, 3, 5, 10, 40))
    assert gains.shape == (1000,) and gains.min() > 0 and max(npg_error, slope_error) < 1e-9
    monkeypatch.setattr(extrapolate, "extrapolate_logp", wrong_sign)
    gains, _, _ = check_theorem(1000, seed=5, sizes=(2, 3, 5, 10))
    assert (gains < 0).double().mean() > 0.9


def test_the_check_catches_a_gradient_that_is_not_natural_and_a_wrong_learning_rate(monkeypatch):
    monkeypatch.setattr(extrapolate, "natural_gradient", lambda theta, gradient: gradient)
    _, npg_error, _ = check_theorem(100, seed=5, sizes=(3, 10))
    assert npg_error > 0.01
    monkeypatch.setattr(extrapolate, "natural_gradient", lambda theta, g: 1.5 * natural_gradient(theta, g))
    _, npg_error, slope_error = check_theorem(100, seed=5, sizes=(3, 10))
    assert npg_error > 0.01 and slope_error > 0.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_policy_stopped_while_it_exploits_is_led_away_from_the_best_action(seed):
    stop = extrapolate.find_worst_stop(1000, seed)
    rewards = stop.rewards.numpy()
    assert stop.gain < -1e-3 and 0.001 < stop.share_losing < 0.2 and list(rewards) == sorted(rewards, reverse=True)
    assert stop.pi[stop.step].argmax() == 1  # the fair action has taken over
    assert stop.pi_ext[stop.step, 0] < stop.pi[stop.step, 0]
    theta_0 = np.log(stop.pi[0].numpy())
    theta = theta_0
    for _ in range(stop.step):
        p = np.exp(theta) / np.exp(theta).sum()
        theta = theta + 2.0 * p * (rewards - p @ rewards)
    p = np.exp(theta) / np.exp(theta).sum()
    beyond = np.exp(theta + (theta - theta_0))
    assert (beyond / beyond.sum() - p) @ rewards == pytest.approx(stop.gain, abs=1e-9)


def test_maths_works_pasted_alone():
    theta = torch.randn(3, 5)
    rewards = torch.rand(3, 5)
    calls = {
        "extrapolate_logp": (theta, rewards, 0.5),
        "gain_of": (theta, torch.randn(3, 5), rewards, 0.5),
        "policy_gradient": (theta, rewards),
        "natural_gradient": (theta, rewards),
        "sampled_advantages": (theta, rewards, 4),
    }
    for name, inputs in calls.items():
        pasted = {"torch": torch}
        if name == "gain_of":  # needs another one
            exec(inspect.getsource(extrapolate_logp), pasted)
        exec(inspect.getsource(getattr(extrapolate, name)), pasted)
        assert torch.isfinite(pasted[name](*inputs)).all()


@pytest.mark.pictures
def test_theorem_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extrapolate, "check_theorem", lambda n, seed: check_theorem(40, seed, sizes=(2, 10)))
    run("--theorem", tmp_path / "run")
    assert "the theorem holds" in capsys.readouterr().out
    assert (tmp_path / "run" / "theorem.png").stat().st_size > 10_000
    monkeypatch.setattr(extrapolate, "extrapolate_logp", wrong_sign)
    with pytest.raises(ValueError, match="FAILS"):
        run("--theorem", tmp_path / "run")


# ------------------------------------------------------------------------------------------------------------ decoding
@pytest.fixture(scope="module")
def pair():
    return random_qwen(seed=0), random_qwen(seed=1)


def decode(pair, taus, gammas, **options):
    generator = torch.Generator().manual_seed(0)
    return decode_two(*pair, PROMPTS, taus, gammas, 12, [1, 2], generator=generator, **options)


def test_31_gamma_0_is_replacement_and_gamma_does_not_matter_where_nothing_fires(pair):
    taus = [0.0, -1.0, -INF, INF]
    out = decode(pair, taus, [0.0] * 4)
    generator = torch.Generator().manual_seed(0)
    thresholds = [-tau for tau in taus]
    other = replace.decode_two(*pair, PROMPTS, replace.score_dlogp, thresholds, 12, [1, 2], generator=generator)
    assert all(torch.equal(out[name], other[name]) for name in out)
    assert 0 < out["replaced"].sum() < out["mask"].sum()
    for first, model in zip(("base", "rlvr"), pair, strict=True):
        out = decode(pair, [-INF] * 4, [0.7] * 4, first=first)
        alone = dapo.rollout(model, PROMPTS, 4, 12, [1, 2], generator=torch.Generator().manual_seed(0))
        assert torch.equal(out["tokens"], alone["tokens"]) and not out["replaced"].any()
    with pytest.raises(ValueError, match="want first to be"):
        decode(pair, taus, [0.0] * 4, first="RLVR")


@pytest.mark.parametrize("first", ["base", "rlvr"])
def test_31_temperature_divides_the_mixed_logits_then_top_p_cuts(first):
    """gamma -1 is the base, above 0 beyond RLVR: 20,000 draws of each, chi-squared against exact probabilities."""
    n = 10_000
    small = random_qwen(vocab_size=12, seed=0), random_qwen(vocab_size=12, seed=1)
    options = {"first": first, "temperature": 2.0, "top_p": 0.95, "generator": torch.Generator().manual_seed(0)}
    out = decode_two(*small, [[5, 6, 7]] * 2, [INF] * (2 * n), [-1.0] * n + [0.5] * n, 1, [], **options)
    tokens = out["tokens"].view(2, 2, n)  # prompt, gamma, copy
    with torch.no_grad():
        base, rlvr = (model(torch.tensor([[5, 6, 7]])).logits[0, -1].double() for model in small)
    for k, gamma in enumerate((-1.0, 0.5)):
        p = torch.softmax((rlvr + gamma * (rlvr - base)) / 2.0, -1)
        ordered, order = p.sort(descending=True)
        p[order[ordered.cumsum(0) - ordered >= 0.95]] = 0
        expected = 2 * n * p / p.sum()
        counts = torch.bincount(tokens[:, k].flatten(), minlength=12)
        kept = expected > 0
        chi2 = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
        assert 3 < kept.sum() < 12 and counts[~kept].sum() == 0
        assert chi2 < kept.sum() + 5 * math.sqrt(2 * kept.sum())


def test_extrapolated_logp_is_normalised_and_never_nan():
    p, q = (torch.log_softmax(torch.randn(4, 9), -1) for _ in range(2))
    mixed = q.exp() ** 1.5 / p.exp() ** 0.5
    for gamma, expected in ((0.0, q.exp()), (-1.0, p.exp()), (0.5, mixed / mixed.sum(-1, keepdim=True))):
        assert torch.allclose(extrapolate_logp(q, p, gamma).exp(), expected, atol=1e-6)
    q[0, 0] = -INF  # RLVR excludes it, the base does not
    p[1, 1] = -INF  # the base alone excludes it
    q[2, 2] = p[2, 2] = -INF
    out = extrapolate_logp(q, p, 0.5)
    assert out[0, 0] == out[2, 2] == -INF and out[1, 1] > -INF
    assert torch.allclose(out.exp().sum(-1), torch.ones(4))


def test_where_y_comes_from_decides_what_is_resampled(pair):
    """With top-p cut to one token y is the first model's favourite; tau just above its dlogp makes the threshold fire.

    dlogp is that of temperature 1, whatever the temperature of sampling.
    """
    for first, drawing in zip(("base", "rlvr"), pair, strict=True):
        for i, prompt in enumerate(PROMPTS):
            with torch.no_grad():
                p, q = (torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1) for model in pair)
                y = drawing(torch.tensor([prompt])).logits[0, -1].argmax()
            dlogp = (q[y] - p[y]).item()
            options = {"first": first, "top_p": 1e-6, "temperature": 2.0}
            out = decode_two(*pair, PROMPTS, [dlogp - 1e-3, dlogp + 1e-3], [0.0, 0.0], 1, [], **options)
            assert out["replaced"][2 * i : 2 * i + 2, 0].tolist() == [False, True]
            assert out["tokens"][2 * i : 2 * i + 2, 0].tolist() == [y, q.argmax()]


class Letters:  # a tokenizer: the box of a response holds 0 if its length is even
    eos_token_id = 1
    chat_template = None

    def __len__(self):
        return 40

    def decode(self, ids, skip_special_tokens):
        return rf"\boxed{{{len(ids) % 2}}}"


def test_rows_count_problems_tokens_and_resampled_ones(pair):
    args = extrapolate.Args(samples=3, rows=6, max_response=5, device="cpu")
    problems = [{"ids": prompt, "answer": "0"} for prompt in PROMPTS]
    arms = [Arm("base", None, None), Arm("base", None, 0.0), Arm("base", -0.5, 1.0)]
    rows = extrapolate.decode_arms(problems, arms, 7, "test", *pair, Letters(), args)
    assert [row["ratio"] for row in rows[:2]] == [0, 1] and 0 < rows[2]["ratio"] < 1
    assert [Arm(row["first"], row["tau"], row["gamma"]) for row in rows] == arms
    taus = [-INF] * 3 + [INF] * 3 + [-0.5] * 3
    gammas = [0.0] * 6 + [1.0] * 3
    for i, prompt in enumerate(PROMPTS):  # one problem a batch, with a generator of its own
        generator = torch.Generator().manual_seed(7 * 1_000_003 + i)
        out = decode_two(*pair, [prompt], taus, gammas, 5, [1], generator=generator)
        lengths = out["mask"].sum(1).view(3, 3)
        assert [row["right"][i] for row in rows] == (lengths % 2 == 0).sum(1).tolist()


def test_differences_are_paired_by_problem():
    args = extrapolate.Args(samples=8, bootstrap=500, device="cpu")
    hard = np.random.default_rng(0).integers(0, 8, 100)
    reference = {"right": hard.tolist()}
    row = extrapolate.paired_metrics({"right": (hard + 1).tolist()}, reference, args)
    assert row["diff"] == pytest.approx(1 / 8) and row["diff_ci95"] == pytest.approx([1 / 8, 1 / 8])
    assert row["accuracy"] == pytest.approx((hard + 1).mean() / 8) and row["pass@8"] == 1
    assert row["accuracy_ci95"] == pytest.approx(1.96 * (hard / 8).std(ddof=1) / 10)
    assert row["pass_diff"] == pytest.approx((hard == 0).mean()) and row["pass_diff"] < row["pass_diff_ci95"][1]
    same = extrapolate.paired_metrics(reference, reference, args)
    assert same["diff"] == 0 and same["pass_diff_ci95"] == [0, 0]


# ---------------------------------------------------------------------------------------------------------- whole runs
QUICK = "--problems 4 --train-problems 3 --samples 2 --gammas 0.5,1 --taus=-1,-0.3 --bootstrap 50"
QUICK += " --temperature 1.5"  # the arms, all right at 1, then differ


def run(flags, out, *more):
    with contextlib.chdir(ROOT):
        extrapolate.main(extrapolate.parse_args(["--device", "cpu", *flags.split(), "--out", str(out), *more]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("extrapolate") / "run"
    run(QUICK, out)
    return out


def test_a_run_chooses_on_training_problems_and_reports_on_test_problems(finished):
    jobs = json.loads((finished / "results.json").read_text())
    rows = json.loads((finished / "summary.json").read_text())
    assert list(jobs) == ["train on base", "train on rlvr", "test on base", "test on rlvr"]
    for job in jobs:
        assert all(len(row["right"]) == (3 if job.startswith("train") else 4) for row in jobs[job])
    chosen = [row for row in rows if "minus_gamma_0" in row]
    for row, job, selective in zip(chosen, ("base", "rlvr", "rlvr"), (True, True, False), strict=True):
        family = [x for x in jobs[f"train on {job}"] if x["gamma"] > 0 and (x["tau"] is not None) == selective]
        best = max(family, key=lambda x: (sum(x["right"]), -x["gamma"], -x["ratio"]))  # of equals the weakest
        assert (row["first"], row["tau"], row["gamma"]) == (job, best["tau"], best["gamma"])
        reference = (job, best["tau"], 0.0) if selective else ("base", None, 0.0)
        (control,) = [x for x in rows if (x["first"], x["tau"], x["gamma"]) == reference]
        assert row["minus_gamma_0"]["diff"] == pytest.approx(row["accuracy"] - control["accuracy"])
    assert rows[0]["ratio"] == 0 and rows[1]["ratio"] == 1 and rows[1]["diff"] == 0  # the base, RLVR
    assert (finished / "extrapolate.png").stat().st_size > 10_000


def test_29_resume_after_a_kill_gives_the_same_bytes(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    jobs = json.loads((finished / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({"train on base": jobs["train on base"]}))
    (out / "results.tmp").write_text("{")
    run(QUICK, out, "--resume")
    for name in ("results.json", "summary.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_one_problem_one_sample_one_token(tmp_path):
    flags = "--problems 1 --train-problems 1 --samples 1 --max-response 1 --gammas 0.5 --taus=-1 --bootstrap 5"
    run(flags, tmp_path / "run")
    assert "NaN" not in (tmp_path / "run" / "summary.json").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--gammas 0.1,-1", "--gammas 0.1,-1: want numbers above 0"),
        ("--gammas 0", "--gammas 0: want numbers above 0"),
        ("--taus=0.3", "--taus 0.3: want numbers below 0"),
        ("--taus=", "want numbers with commas between them"),
        ("--samples 0", "--samples 0: want a number above 0"),
        ("--test nowhere.jsonl", "nowhere.jsonl"),
        ("--base tiny/nope", "--base tiny/nope: "),
        ("--out /proc/x", "/proc/x"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(flags, says, monkeypatch):
    """The command itself, in this process: anything but SystemExit would be a traceback."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["extrapolate.py", *QUICK.split(), "--device", "cpu", *flags.split()])
    with pytest.raises(SystemExit, match=rf"^error: [^\n]*{says}[^\n]*$"):
        runpy.run_path("extrapolate.py", run_name="__main__")
