"""extrapolate.py: the theorem with planted mistakes, and extrapolated decoding against replacement and the base."""

import ast
import contextlib
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
import extrapolate as script
import replace
from extrapolate import check_theorem, decode_two, extrapolate_logp, natural_gradient, policy_gradient

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
INF = math.inf


def random_pair():
    return random_qwen(seed=0), random_qwen(seed=1)


def wrong_sign(logp_rlvr, logp_base, gamma):
    return extrapolate_logp(logp_rlvr, logp_base, -gamma)


def test_the_gradient_is_autograds_and_the_fisher_matrix_that_of_the_definition():
    theta, rewards = script.random_problems(3, 6, torch.Generator().manual_seed(0))
    theta.requires_grad_()
    (gradient,) = torch.autograd.grad((torch.softmax(theta, -1) * rewards).sum(), theta)
    assert torch.allclose(policy_gradient(theta, rewards), gradient)
    for one, g in zip(theta.detach(), gradient, strict=True):
        pi = torch.softmax(one, -1)
        scores = torch.eye(6, dtype=torch.float64) - pi  # row v: gradient of log pi_v
        fisher = sum(p * torch.outer(s, s) for p, s in zip(pi, scores, strict=True))
        assert torch.allclose(natural_gradient(one, g), torch.linalg.pinv(fisher, rtol=1e-10) @ g, atol=1e-9)


def test_the_natural_gradient_is_the_reward_up_to_a_constant():
    """For nearly certain policies too: a Fisher matrix whose rows do not sum to exactly 0 goes astray there."""
    problems = [script.random_problems(4, n, torch.Generator().manual_seed(1)) for n in (2, 3, 17, 200)]
    problems.append((torch.tensor([18.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)))
    for theta, rewards in problems:
        shift = natural_gradient(theta, policy_gradient(theta, rewards)) - rewards
        assert (shift - shift.mean(-1, keepdim=True)).abs().max() < 1e-6


def test_sampled_advantages_are_the_exact_ones_on_average_and_f_plus_times_the_gradient():
    theta, rewards = script.random_problems(1, 4, torch.Generator().manual_seed(2))
    pi, generator = torch.softmax(theta, -1), torch.Generator().manual_seed(0)
    many = script.sampled_advantages(theta.expand(200_000, 4), rewards.expand(200_000, 4), 3, generator)
    exact = (rewards - (pi * rewards).sum())[0]
    assert ((many.mean(0) - exact).abs() < 4.5 * many.std(0) / math.sqrt(200_000)).all()
    natural = natural_gradient(theta.expand(5, 4), many[:5] * pi)  # adv * pi: gradient of sum over actions adv log pi
    shift = natural - many[:5]
    assert (shift - shift.mean(-1, keepdim=True)).abs().max() < 1e-9


def test_the_theorem_holds_on_1000_random_problems_and_not_with_the_wrong_sign(monkeypatch):
    gains, *errors = check_theorem(1000, seed=5, sizes=(2, 3, 5, 10, 40))
    assert gains.shape == (1000,) and gains.min() > 0 and max(errors) < 1e-9
    monkeypatch.setattr(script, "extrapolate_logp", wrong_sign)
    assert (check_theorem(1000, seed=5, sizes=(2, 3, 5, 10))[0] < 0).mean() > 0.9


def test_the_check_catches_a_gradient_that_is_not_natural_and_a_wrong_learning_rate(monkeypatch):
    monkeypatch.setattr(script, "natural_gradient", lambda theta, gradient: gradient)
    assert check_theorem(100, seed=5, sizes=(3, 10))[1] > 0.01
    monkeypatch.setattr(script, "natural_gradient", lambda theta, gradient: 1.5 * natural_gradient(theta, gradient))
    _, npg_error, slope_error = check_theorem(100, seed=5, sizes=(3, 10))
    assert npg_error > 0.01 and slope_error > 0.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_policy_stopped_while_it_exploits_is_led_away_from_the_best_action(seed):
    rewards, pi, pi_ext, step, gain, share = script.stopped_exploiting(1000, seed)
    assert gain < -1e-3 and 0.001 < share < 0.2 and list(rewards) == sorted(rewards, reverse=True)
    assert pi[step].argmax() == 1 and pi_ext[step, 0] < pi[step, 0]  # the fair action has taken over
    theta_0 = theta = np.log(pi[0])
    for _ in range(step):
        p = np.exp(theta) / np.exp(theta).sum()
        theta = theta + 2.0 * p * (rewards - p @ rewards)
    mixed = np.exp(theta + (theta - theta_0))
    change = mixed / mixed.sum() - np.exp(theta) / np.exp(theta).sum()
    assert change @ rewards == pytest.approx(gain, abs=1e-9)


def test_maths_works_pasted_alone():
    rewards, source = torch.rand(3, 5), (ROOT / "extrapolate.py").read_text()
    nodes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    more = {"extrapolate_logp": (rewards, 0.5), "gain_of": (torch.randn(3, 5), rewards, 0.5)}
    more |= {"policy_gradient": (rewards,), "natural_gradient": (rewards,), "sampled_advantages": (rewards, 4)}
    for name, values in more.items():
        pasted = {"torch": torch}
        for needed in ["extrapolate_logp"] * (name == "gain_of") + [name]:
            exec(ast.get_source_segment(source, nodes[needed]), pasted)
        assert torch.isfinite(pasted[name](torch.randn(3, 5), *values)).all()


def decode(pair, taus, gammas, seed=0, **more):
    sampling = {"max_new_tokens": 12, "eos_ids": [1, 2], "generator": torch.Generator().manual_seed(seed)} | more
    return decode_two(*pair, PROMPTS, taus, gammas, **sampling)


def test_31_gamma_0_is_replacement_and_gamma_is_not_looked_at_where_nothing_fires():
    pair, taus = random_pair(), [0.0, -1.0, -INF, INF]
    tokens, replaced, lengths = decode(pair, taus, [0.0] * 4)
    score = lambda logp_base, logp_rlvr, y: (logp_base - logp_rlvr).gather(-1, y[:, None])[:, 0]  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    out = replace.decode_two(*pair, PROMPTS, score, [-tau for tau in taus], 12, [1, 2], generator=generator)
    other_tokens, mask, other_replaced = out[:3]
    assert torch.equal(tokens, other_tokens) and torch.equal(replaced, other_replaced.bool())
    assert torch.equal(lengths, mask.sum(1).long()) and 0 < replaced.sum() < lengths.sum()
    for first, model in zip(("base", "rlvr"), pair, strict=True):
        shut, replaced, _ = decode(pair, [-INF] * 4, [0.7] * 4, first=first)
        plain = dapo.rollout(model, PROMPTS, 4, 12, [1, 2], generator=torch.Generator().manual_seed(0))
        assert torch.equal(shut, plain["tokens"]) and not replaced.any()


@pytest.mark.parametrize("first", ["base", "rlvr"])
def test_31_gamma_minus_1_is_the_base_token_for_token(monkeypatch, first):
    one, replaced, lengths = decode(random_pair(), [INF] * 4, [-1.0] * 4, first=first)
    monkeypatch.setattr(script, "extrapolate_logp", lambda logp_rlvr, logp_base, gamma: logp_base)
    other, _, _ = decode(random_pair(), [INF] * 4, [0.3] * 4, first=first)
    assert torch.equal(one, other) and replaced.sum() == lengths.sum()


def test_extrapolated_logp():
    p, q = (torch.log_softmax(torch.randn(4, 9), -1) for _ in range(2))
    mixed = q.exp() ** 1.5 / p.exp() ** 0.5
    for gamma, expected in ((0.0, q.exp()), (-1.0, p.exp()), (0.5, mixed / mixed.sum(-1, keepdim=True))):
        assert torch.allclose(extrapolate_logp(q, p, gamma).exp(), expected, atol=1e-6)
    q[0, 0], p[1, 1] = -INF, -INF
    assert extrapolate_logp(q, p, 0.5).exp()[0, 0] == 0 and torch.isfinite(extrapolate_logp(q, p, 0.5)[1:]).all()


def test_where_y_comes_from_decides_what_is_gated():
    """Nucleus of one token: y is the first model's favourite, and the gate opens just above that token's dlogp."""
    pair = random_pair()
    for k, first in enumerate(("base", "rlvr")):
        for i, prompt in enumerate(PROMPTS):
            with torch.no_grad():
                p, q = (torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1) for model in pair)
            y = (p, q)[k].argmax()
            dlogp = (q[y] - p[y]).item()
            how = {"eos_ids": [], "top_p": 1e-6, "first": first}
            tokens, replaced, _ = decode_two(*pair, PROMPTS, [dlogp - 1e-3, dlogp + 1e-3], [0.0, 0.0], 1, **how)
            assert replaced[2 * i : 2 * i + 2, 0].tolist() == [False, True]
            assert tokens[2 * i : 2 * i + 2, 0].tolist() == [y, q.argmax()]


class Letters:  # a tokenizer: the box of a response holds 0 if its length is even
    eos_token_id = 1

    def __len__(self):
        return 40

    def decode(self, ids, skip_special_tokens):
        return rf"\boxed{{{len(ids) % 2}}}"


def test_rows_count_problems_tokens_and_second_draws():
    args = script.Args(samples=3, rows=6, max_response=5)
    problems = [{"ids": prompt, "answer": "0"} for prompt in PROMPTS]
    arms = [("base", None, None), ("base", None, 0.0), ("base", -0.5, 1.0)]
    rows = script.decode_arms(random_pair(), Letters(), problems, arms, 7, "test", args)
    assert [row["ratio"] for row in rows[:2]] == [0, 1] and 0 < rows[2]["ratio"] < 1
    assert [(row["first"], row["tau"], row["gamma"]) for row in rows] == arms
    n = []
    for i, prompt in enumerate(PROMPTS):  # one problem a batch, with a generator of its own
        generator = torch.Generator().manual_seed(7 * 1_000_003 + i)
        taus, gammas = [-INF] * 3 + [INF] * 3 + [-0.5] * 3, [0.0] * 6 + [1.0] * 3
        n.append(decode_two(*random_pair(), [prompt], taus, gammas, 5, [1], generator=generator)[2].view(3, 3))
    for k, row in enumerate(rows):
        assert row["right"] == [int((lengths[k] % 2 == 0).sum()) for lengths in n]


def test_paired_differences():
    args = script.Args(samples=8, bootstrap=500)
    hard = np.random.default_rng(0).integers(0, 8, 100)
    reference, better = {"right": hard.tolist()}, {"right": np.minimum(hard + 1, 8).tolist()}
    row = script.compare(better, reference, args)
    assert row["diff"] == pytest.approx(1 / 8) and row["diff_ci95"] == pytest.approx([1 / 8, 1 / 8])
    assert row["accuracy"] == pytest.approx((hard + 1).mean() / 8) and row["pass@8"] == 1
    assert row["accuracy_ci95"] == pytest.approx(1.96 * (hard / 8).std(ddof=1) / 10)
    assert row["pass_diff"] == pytest.approx((hard == 0).mean()) and row["pass_diff"] < row["pass_diff_ci95"][1]
    same = script.compare(reference, reference, args)
    assert same["diff"] == 0 and same["pass_diff_ci95"] == [0, 0]


QUICK = "--problems 4 --train-problems 3 --samples 2 --gammas 0.5,1 --taus=-1,-0.3 --bootstrap 50".split()


def run(*flags):
    with contextlib.chdir(ROOT):
        script.main(script.parse_args(list(map(str, flags))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("extrapolate") / "run"
    run(*QUICK, "--out", out)
    return out


def test_a_run_chooses_on_training_problems_and_reports_on_test_problems(finished):
    jobs, rows = (json.loads((finished / f"{name}.json").read_text()) for name in ("results", "summary"))
    assert list(jobs) == ["train on base", "train on rlvr", "test on base", "test on rlvr"]
    assert all(len(row["right"]) == (3 if job.startswith("train") else 4) for job in jobs for row in jobs[job])
    chosen = [row for row in rows if "minus_gamma_0" in row]
    for row, job, gated in zip(chosen, ("base", "rlvr", "rlvr"), (True, True, False), strict=True):
        family = [x for x in jobs[f"train on {job}"] if x["gamma"] > 0 and (x["tau"] is not None) == gated]
        best = max(family, key=lambda x: (sum(x["right"]), -x["gamma"], -x["ratio"]))  # of equals the weakest
        assert (row["first"], row["tau"], row["gamma"]) == (job, best["tau"], best["gamma"])
        reference = (job, best["tau"], 0.0) if gated else ("base", None, 0.0)
        (control,) = [x for x in rows if (x["first"], x["tau"], x["gamma"]) == reference]
        assert row["minus_gamma_0"]["diff"] == pytest.approx(row["accuracy"] - control["accuracy"])
    assert rows[0]["ratio"] == 0 and rows[1]["ratio"] == 1 and rows[1]["diff"] == 0  # the base, RLVR
    assert (finished / "extrapolate.png").stat().st_size > 10_000


@pytest.mark.parametrize("cut", [1])
def test_29_resume_after_a_kill_gives_the_same_run(finished, tmp_path, cut):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    jobs = json.loads((finished / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({job: jobs[job] for job in list(jobs)[:cut]}))
    (out / "results.tmp").write_text("{")
    with pytest.raises(SystemExit, match="holds a run: --resume goes on"):
        run(*QUICK, "--out", out)
    with pytest.raises(SystemExit, match=r"was started with \{'seed': 1\}"):
        run(*QUICK, "--out", out, "--resume", "--seed", 2)
    run(*QUICK, "--out", out, "--resume")
    for name in ("results.json", "summary.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.pictures
def test_theorem_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "check_theorem", lambda n, seed: check_theorem(40, seed, sizes=(2, 10)))
    flags = ["--theorem", "--out", tmp_path / "run"]
    run(*flags)
    assert "the theorem holds" in capsys.readouterr().out
    assert (tmp_path / "run" / "theorem.png").stat().st_size > 10_000
    monkeypatch.setattr(script, "extrapolate_logp", wrong_sign)
    with pytest.raises(SystemExit, match="FAILS"):
        run(*flags)


def test_one_problem_one_sample_one_token(tmp_path):
    flags = "--problems 1 --train-problems 1 --samples 1 --max-response 1 --gammas 0.5 --taus=-1 --bootstrap 5".split()
    run(*flags, "--out", tmp_path / "run")
    assert "NaN" not in (tmp_path / "run" / "summary.json").read_text()


@pytest.mark.parametrize("flags", [["--gammas", "0.1,-1"], ["--gammas", "0"], ["--taus=0.3"], ["--samples", "0"]])
def test_bad_flags_are_one_sentence(flags):
    with pytest.raises(SystemExit, match="want --gammas such as"):
        run(*QUICK, "--out", "/proc/unused", *flags)


@pytest.mark.parametrize("flags", ["--test nowhere.jsonl", "--base tiny/nope", "--out /proc/x"])
def test_what_cannot_be_read_or_written_is_one_sentence(flags, monkeypatch):
    """The command itself, in this process: anything but SystemExit would be a traceback."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["extrapolate.py", *QUICK, *flags.split()])
    with pytest.raises(SystemExit, match=r"^error: .*(nowhere.jsonl|huggingface|tiny/nope|/proc/x)[^\n]*$"):
        runpy.run_path("extrapolate.py", run_name="__main__")


def test_two_vocabularies_are_one_sentence(tmp_path):
    base = shutil.copytree(ROOT / "tiny" / "base", tmp_path / "base")
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace('"+"', '"&"'))
    with pytest.raises(SystemExit, match="vocabulary"):
        run(*QUICK, "--base", base, "--out", tmp_path / "run")
