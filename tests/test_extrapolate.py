"""extrapolate.py: the theorem with planted mistakes, and extrapolated decoding against replacement and the base."""

import contextlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_qwen

import extrapolate as script
import replace
from extrapolate import (
    beyond_the_theorem,
    check_theorem,
    choose,
    decode_two,
    describe_arms,
    expected_reward,
    extrapolate_logp,
    gain_of,
    natural_gradient,
    npg_step,
    paired,
    policy_gradient,
    random_problems,
    sampled_gradient,
    score_dlogp,
    threshold_of,
)

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
INF = math.inf


# ---------------------------------------------------------------------------------------------------------- the theorem
def test_the_gradient_is_autograds_and_the_fisher_matrix_that_of_the_definition():
    theta, rewards = random_problems(3, 6, torch.Generator().manual_seed(0))
    theta.requires_grad_()
    (gradient,) = torch.autograd.grad(expected_reward(torch.log_softmax(theta, -1), rewards).sum(), theta)
    assert torch.allclose(policy_gradient(theta, rewards), gradient)
    for one, g in zip(theta.detach(), gradient, strict=True):
        pi = torch.softmax(one, -1)
        scores = torch.eye(6, dtype=torch.float64) - pi  # row v: gradient of log pi_v
        fisher = sum(p * torch.outer(s, s) for p, s in zip(pi, scores, strict=True))
        assert torch.allclose(natural_gradient(one, g), torch.linalg.pinv(fisher, rtol=1e-10) @ g, atol=1e-9)


@pytest.mark.parametrize("n_actions", [2, 3, 17, 200])
def test_npg_is_theta_plus_eta_a_up_to_a_constant(n_actions):
    theta, rewards = random_problems(4, n_actions, torch.Generator().manual_seed(1))
    adv = rewards - expected_reward(torch.log_softmax(theta, -1), rewards)[:, None]
    shift = npg_step(theta, rewards, 0.3) - (theta + 0.3 * adv)
    assert (shift - shift.mean(-1, keepdim=True)).abs().max() < 1e-9


def test_npg_stays_exact_when_the_policy_is_nearly_certain():
    """A Fisher matrix whose rows do not sum to exactly 0 has a tiny eigenvalue there, and the step goes astray."""
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    theta = torch.tensor([18.0, 0.0], dtype=torch.float64)
    step = npg_step(theta, rewards, 1.0) - theta
    assert (step[0] - step[1]).item() == pytest.approx(1, abs=1e-6)


def test_the_sampled_gradient_is_1_minus_1_over_g_of_the_exact_one_on_average():
    theta, rewards = random_problems(1, 4, torch.Generator().manual_seed(2))
    many = sampled_gradient(theta.expand(200_000, 4), rewards.expand(200_000, 4), 3, torch.Generator().manual_seed(0))
    error = (many.mean(0) - policy_gradient(theta, rewards)[0] * (1 - 1 / 3)).abs()
    assert (error < 4.5 * many.std(0) / math.sqrt(200_000)).all()
    assert many.sum(-1).abs().max() < 1e-12


def test_the_theorem_holds_on_1000_random_problems():
    found = check_theorem(1000, seed=5, sizes=(2, 3, 5, 10, 40))
    assert found["problems"] == 1000 and found["violations"] == 0 and found["least_gain"] > 0
    assert max(found[name] for name in ("npg_error", "derivative_error", "constant")) < 1e-9


def test_the_check_catches_an_extrapolation_of_the_wrong_sign(monkeypatch):
    wrong = lambda logp_rlvr, logp_base, gamma: extrapolate_logp(logp_rlvr, logp_base, -gamma)  # noqa: E731
    monkeypatch.setattr(script, "extrapolate_logp", wrong)
    found = check_theorem(1000, seed=5, sizes=(2, 3, 5, 10))
    assert found["violations"] > 900


def test_the_check_catches_a_gradient_that_is_not_natural(monkeypatch):
    monkeypatch.setattr(script, "natural_gradient", lambda theta, gradient: gradient)
    assert check_theorem(100, seed=5, sizes=(3, 10))["npg_error"] > 0.01


def test_the_check_catches_a_wrong_learning_rate(monkeypatch):
    monkeypatch.setattr(script, "npg_step", lambda theta, rewards, lr: npg_step(theta, rewards, 1.5 * lr))
    found = check_theorem(100, seed=5, sizes=(3, 10))
    assert found["npg_error"] > 0.01 and found["derivative_error"] > 0.1


def test_gain_is_0_without_extrapolation_and_with_a_constant_reward():
    theta_0, rewards = random_problems(5, 7, torch.Generator().manual_seed(0))
    theta = npg_step(theta_0, rewards, 0.5)
    assert gain_of(theta, theta_0, rewards, 0.0).abs().max() < 1e-15
    assert gain_of(theta, theta_0, torch.full_like(rewards, 0.3), 2.0).abs().max() < 1e-15


def test_the_guarantee_ends_with_another_reward():
    gains = beyond_the_theorem(200, seed=0, steps=5)
    assert gains["exact NPG"].min() > 0 and (gains["correlation 0"] < 0).mean() > 0.3
    assert all(len(x) == 200 and np.isfinite(x).all() for x in gains.values())


# ------------------------------------------------------------------------------------------------------------ decoding
def decode(pair, threshold, gamma, module=script, seed=0, **more):
    how = {
        "max_new_tokens": 12,
        "eos_ids": [1, 2],
        "pad_id": 0,
        "generator": torch.Generator().manual_seed(seed),
    } | more
    return module.decode_two(*pair, PROMPTS, score_dlogp, threshold, gamma, **how)


def test_31_gamma_0_is_replacement_token_for_token(monkeypatch):
    """Against replace.py, and against a decoder that draws from RLVR's log-probs without any mixing."""
    pair, threshold = (random_qwen(seed=0), random_qwen(seed=1)), [0.0, 1.0, INF, -INF]
    one = decode(pair, threshold, [0.0] * 4)
    other = decode(pair, threshold, [0.0] * 4, module=replace)
    monkeypatch.setattr(script, "extrapolate_logp", lambda logp_rlvr, logp_base, gamma: logp_rlvr)
    third = decode(pair, threshold, [0.5] * 4)
    for name in ("tokens", "replaced", "mask"):
        assert torch.equal(one[name], other[name]) and torch.equal(one[name], third[name]), name
    assert 0 < one["replaced"].sum() < one["mask"].sum()


@pytest.mark.parametrize("first", ["base", "rlvr"])
def test_31_gamma_minus_1_is_the_base_token_for_token(monkeypatch, first):
    pair = (random_qwen(seed=0), random_qwen(seed=1))
    one = decode(pair, [-INF] * 4, [-1.0] * 4, first=first)
    monkeypatch.setattr(script, "extrapolate_logp", lambda logp_rlvr, logp_base, gamma: logp_base)
    other = decode(pair, [-INF] * 4, [0.3] * 4, first=first)
    assert torch.equal(one["tokens"], other["tokens"]) and one["replaced"].sum() == one["mask"].sum()


def test_where_y_comes_from_decides_what_is_gated():
    """Nucleus of one token: y is the first model's favourite, and the gate sees that token's dlogp."""
    pair = (random_qwen(seed=0), random_qwen(seed=1))
    for k, first in enumerate(("base", "rlvr")):
        out = decode_two(*pair, PROMPTS, score_dlogp, [INF], [0.0], 1, eos_ids=[], pad_id=0, top_p=1e-6, first=first)
        for i, prompt in enumerate(PROMPTS):
            with torch.no_grad():
                p, q = (torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1) for model in pair)
            y = (p, q)[k].argmax()
            assert out["tokens"][i, 0] == y
            assert out["score"][i, 0].item() == pytest.approx((p[y] - q[y]).item(), abs=1e-3)


def test_thresholds_of_arms():
    assert threshold_of({"tau": -0.3, "gamma": 0.5}) == 0.3
    assert threshold_of({"tau": None, "gamma": 0.5}) == -INF and threshold_of({"tau": None, "gamma": None}) == INF


def test_the_best_setting_of_each_family_is_chosen_and_of_equal_ones_the_weakest():
    def rows(*found):
        return [dict(zip(("tau", "gamma", "accuracy", "ratio"), values, strict=True)) for values in found]

    on_base = rows((-1, 0, 0.9, 0.1), (-1, 1, 0.5, 0.1), (-2, 2, 0.6, 0.1), (-2, 1, 0.6, 0.2), (-3, 1, 0.6, 0.1))
    on_rlvr = rows((-1, 0, 0.9, 0.1), (-1, 1, 0.2, 0.1), (-2, 1, 0.3, 0.1), (None, 1, 0.4, 1), (None, 2, 0.5, 1))
    chosen = choose(on_base, on_rlvr)
    assert chosen == {"base": on_base[4], "rlvr": on_rlvr[2], "global": on_rlvr[4]}


def test_paired_differences():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 8, 100)
    reference, better = {"right": hard.tolist()}, {"right": np.minimum(hard + 1, 8).tolist()}
    (row,) = paired([better], reference, samples=8, resamples=500, seed=0)
    assert row["diff"] == pytest.approx(1 / 8) and row["diff_ci95"] == pytest.approx([1 / 8, 1 / 8])
    assert row["pass_diff"] == pytest.approx((hard == 0).mean())
    low, high = row["pass_diff_ci95"]
    assert low < row["pass_diff"] < high
    (same,) = paired([dict(reference)], reference, 8, 50, 0)
    assert same["diff"] == 0 and same["pass_diff_ci95"] == [0, 0]


def test_rows_count_problems_tokens_and_passes():
    right = np.array([[[1, 0], [1, 1]], [[0, 0], [1, 0]]], dtype=bool)  # (problems, K, samples)
    mask = np.ones((2, 2, 2, 3))
    mask[0, 0, 0, 2] = 0
    replaced = np.zeros(mask.shape, dtype=bool)
    replaced[:, 1, :, 0] = True
    part = {"right": right, "mask": mask, "replaced": replaced, "texts": np.array([[["a", "b"], ["c", "d"]]] * 2)}
    part["verdicts"] = np.where(right, "right", "wrong").astype("<U9")
    part["verdicts"][0, 0, 1], part["verdicts"][1, 0] = "failed", ["timed out", "wrong"]
    one, two = describe_arms([part], 2, 2)
    assert one["verifier_failed"] == one["verifier_timed_out"] == 1 / 4 and "verifier_failed" not in two
    assert one["right"] == [1, 0] and two["right"] == [2, 1] and two["accuracy"] == 0.75 and one["pass@2"] == 0.5
    assert one["ratio"] == 0 and two["ratio"] == pytest.approx(1 / 3) and one["length"] == 11 / 4
    assert (one["example"], two["example"]) == ("a", "c")


# ---------------------------------------------------------------------------------------------------------- whole runs
QUICK = "--problems 4 --train-problems 3 --samples 2 --gammas 0.5,1 --taus=-1,-0.3 --bootstrap 50".split()


def run(*flags):
    with contextlib.chdir(ROOT):
        return script.main(script.parse_args(script.Args, "", list(map(str, flags))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("extrapolate") / "run"
    assert run(*QUICK, "--out", out) == 0
    return out


def read(path):
    return {row["job"]: row["rows"] for row in map(json.loads, path.read_text().splitlines())}


def test_a_run_chooses_on_training_problems_and_reports_on_test_problems(finished):
    jobs = read(finished / "metrics.jsonl")
    assert list(jobs) == ["train on base", "train on rlvr", "test on base", "test on rlvr"]
    assert all(len(row["right"]) == (3 if job.startswith("train") else 4) for job in jobs for row in jobs[job])
    summary = json.loads((finished / "summary.json").read_text())
    best = choose(jobs["train on base"], jobs["train on rlvr"])
    for name, family in (("on base", "base"), ("on RLVR", "rlvr")):
        for key in ("tau", "gamma"):
            assert summary[f"extrapolate {name}"][key] == best[family][key]
    chosen = summary["extrapolate on base"]
    assert summary["replace"]["tau"] == chosen["tau"] and summary["replace"]["gamma"] == 0  # at the same gate
    assert summary["base"]["ratio"] == 0 and summary["RLVR"]["ratio"] == 1 and summary["RLVR"]["diff"] == 0
    assert (finished / "extrapolate.png").exists()


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_29_resume_after_a_kill_gives_the_same_run(finished, tmp_path, cut):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    config = json.loads((out / "config.json").read_text())
    config["args"]["out"] = str(out)
    (out / "config.json").write_text(json.dumps(config))
    lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:cut]) + lines[cut][:50])
    with pytest.raises(script.InputError, match="add --resume"):
        run(*QUICK, "--out", out)
    assert run(*QUICK, "--out", out, "--resume") == 0
    for name in ("metrics.jsonl", "summary.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_theorem_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "beyond_the_theorem", lambda n, seed: beyond_the_theorem(40, seed, steps=3))
    flags = ["--theorem", "--theorem-problems", "70", "--out", tmp_path / "run"]
    assert run(*flags) == 0
    assert "reward falls in 0" in capsys.readouterr().out and (tmp_path / "run" / "theorem.png").exists()
    wrong = lambda logp_rlvr, logp_base, gamma: extrapolate_logp(logp_rlvr, logp_base, -gamma)  # noqa: E731
    monkeypatch.setattr(script, "extrapolate_logp", wrong)
    assert run(*flags) == 1 and "FAILS" in capsys.readouterr().out


def test_one_problem_one_sample_one_token(tmp_path):
    flags = "--problems 1 --train-problems 1 --samples 1 --max-response 1 --gammas 0.5 --taus=-1 --bootstrap 5".split()
    assert run(*flags, "--out", tmp_path / "run") == 0
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gammas", "0.1,-1"], "--gammas 0.1,-1: it must be positive numbers"),
        (["--gammas", "a"], "--gammas a: it must be positive numbers"),
        (["--taus=0.3"], "--taus 0.3: it must be negative numbers"),
        (["--test", "nowhere.jsonl"], "cannot read problems from nowhere.jsonl"),
        (["--base", "tiny/nope"], "no model at 'tiny/nope'"),
        (["--theorem", "--out", "/proc/x"], "cannot write to /proc/x"),
    ],
)
def test_bad_input_is_one_sentence(flags, message):
    with pytest.raises(script.InputError, match=re.escape(message)):
        run(*QUICK, *([] if "--out" in flags else ["--out", "/proc/unused"]), *flags)
