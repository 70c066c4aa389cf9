"""replace.py: two models decoding one response, against rollouts of one model and against loops without a cache."""

import contextlib
import copy
import json
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_qwen

import replace as script
from dapo import rollout
from replace import (
    SCORES,
    area_under,
    calibrate,
    compare,
    count_arms,
    decode_arms,
    decode_two,
    extrapolate_logp,
    load_models,
    show_replaced,
)

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
INF = math.inf


@pytest.fixture(scope="module")
def pair():
    return random_qwen(seed=0), random_qwen(seed=1)


def decode(pair, threshold, score=SCORES["kl"], prompts=PROMPTS, max_new_tokens=12, seed=0, gamma=None, **more):
    how = {"eos_ids": [1, 2], "pad_id": 0, "generator": torch.Generator().manual_seed(seed)} | more
    gamma = [0.0] * len(threshold) if gamma is None else gamma
    return decode_two(*pair, prompts, score, threshold, gamma, max_new_tokens, **how)


def rows_of(out):
    return [row[: int(n)].tolist() for row, n in zip(out["tokens"], out["mask"].sum(1), strict=True)]


@pytest.mark.parametrize("first", ["base", "rlvr"])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_31_never_firing_is_the_first_model_token_for_token(pair, first, temperature, top_p):
    out = decode(pair, [INF] * 4, first=first, temperature=temperature, top_p=top_p)
    generator = torch.Generator().manual_seed(0)
    how = {"temperature": temperature, "top_p": top_p, "generator": generator}
    alone = rollout(pair[first == "rlvr"], PROMPTS, 4, 12, eos_ids=[1, 2], pad_id=0, **how)
    for name in ("tokens", "mask", "finished"):
        assert torch.equal(out[name], alone[name]), name
    assert not out["replaced"].any()


@pytest.mark.parametrize(("gamma", "which"), [(0.0, 1), (-1.0, 0)])
def test_31_always_firing_has_the_distribution_of_the_other_model(pair, gamma, which):
    """Two tokens after one prompt, 20,000 draws: chi-squared against the exact probabilities of the pairs."""
    n, prompt, small = 20_000, [5, 6, 7], [random_qwen(vocab_size=8, seed=s) for s in (0, 1)]
    prompt = [5, 6, 7]
    out = decode(small, [-INF] * n, prompts=[prompt], max_new_tokens=2, gamma=[gamma] * n, eos_ids=[])
    assert out["replaced"].all()
    model, expected = small[which], torch.zeros(8, 8)
    with torch.no_grad():
        one = torch.softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
        for a in range(8):
            expected[a] = one[a] * torch.softmax(model(torch.tensor([[*prompt, a]])).logits[0, -1], -1)
    counts = torch.bincount(out["tokens"][:, 0] * 8 + out["tokens"][:, 1], minlength=64).double()
    expected = n * expected.flatten().double()
    common = expected > 5
    chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert common.sum() > 5 and chi2 < common.sum() + 5 * math.sqrt(2 * common.sum())
    assert counts[~common].sum() < expected[~common].sum() + 5 * math.sqrt(expected[~common].sum() + 5)


def test_31_caches_see_the_same_tokens_and_equal_a_loop_without_a_cache(pair):
    """Rows that end at different times, some tokens replaced: every score is that of the prefix, in float64."""
    threshold = [0.5, 3.0, INF, -INF]
    out = decode(pair, threshold, max_new_tokens=20)
    responses = rows_of(out)
    assert len(set(map(len, responses))) > 3 and 0 < out["replaced"].sum() < out["mask"].sum()
    doubles = [copy.deepcopy(model).double() for model in pair]
    for i, response in enumerate(responses):
        for t in range(len(response)):
            prefix = torch.tensor([PROMPTS[i // 4] + response[:t]])
            with torch.no_grad():
                p, q = (torch.log_softmax(model(prefix).logits[0, -1], -1) for model in doubles)
            kl = ((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()) / 2
            assert out["score"][i, t].item() == pytest.approx(kl.item(), abs=1e-3, rel=1e-3)
            assert out["replaced"][i, t] == (out["score"][i, t] > threshold[i % 4])
        assert not out["replaced"][i, len(response) :].any()


def test_the_fixed_caches_give_the_tokens_of_the_eager_path(pair):
    """The path of --cuda-graph, without the capture."""
    eager, fixed = (decode(pair, [0.5] * 6, max_new_tokens=80, cuda_graph=on) for on in (False, True))
    assert 0 < eager["replaced"].sum() < eager["mask"].sum() and eager["mask"].sum(1).max() > 40
    for name in ("tokens", "mask", "replaced", "finished"):
        assert torch.equal(eager[name], fixed[name])
    assert torch.allclose(eager["score"], fixed["score"], atol=1e-4)


def test_a_replaced_token_is_rlvrs_and_any_other_is_the_bases(pair):
    """With the nucleus cut to one token both models are greedy, so every token says whose it is."""
    out = decode(pair, [0.5] * 4, score=SCORES["random"], top_p=1e-6)
    assert 0 < out["replaced"].sum() < out["mask"].sum()
    differ = 0
    for i, response in enumerate(rows_of(out)):
        for t, token in enumerate(response):
            prefix = torch.tensor([PROMPTS[i // 4] + response[:t]])
            with torch.no_grad():
                best = [model(prefix).logits[0, -1].argmax().item() for model in pair]
            assert token == best[int(out["replaced"][i, t])]
            differ += best[0] != best[1]
    assert differ > 3


def test_28_rows_positions_and_copies_have_noise_of_their_own(pair):
    for threshold in (INF, -INF):
        out = decode(pair, [threshold] * 50, prompts=[[5, 6, 7]] * 2, max_new_tokens=6, eos_ids=[])
        assert len({tuple(row) for row in out["tokens"].tolist()}) > 80
    uniform = torch.full((4000, 8), 0.0)
    seen = SCORES["random"](uniform, uniform, torch.zeros(4000), torch.Generator().manual_seed(0))
    assert len(seen.unique()) > 3900 and abs(seen.mean() - 0.5) < 0.03 and seen.min() >= 0 and seen.max() < 1


def test_gamma_and_threshold_belong_to_their_copy(pair):
    """Copies of a prompt in one batch: the base, RLVR, the base again by gamma -1, each with its own first token."""
    how = {"prompts": [[5, 6, 7], [8]], "max_new_tokens": 1, "top_p": 1e-6}
    out = decode(pair, [INF, -INF, -INF], gamma=[0.0, 0.0, -1.0], **how)["tokens"].view(2, 3)
    for row, prompt in zip(out, how["prompts"], strict=True):
        with torch.no_grad():
            best = [model(torch.tensor([prompt])).logits[0, -1].argmax().item() for model in pair]
        assert row.tolist() == [best[0], best[1], best[0]]


def test_gamma_stays_with_its_row_when_others_have_ended(pair):
    """Every token is drawn again, greedily: from RLVR in even copies, from the base in odd ones, to the end."""
    out = decode(pair, [-INF] * 2, gamma=[0.0, -1.0], top_p=1e-6, max_new_tokens=15, eos_ids=list(range(0, 40, 5)))
    responses = rows_of(out)
    assert len(set(map(len, responses))) > 2
    for i, response in enumerate(responses):
        for t, token in enumerate(response):
            with torch.no_grad():
                model = pair[1 - i % 2]
                assert token == model(torch.tensor([PROMPTS[i // 2] + response[:t]])).logits[0, -1].argmax()


def test_27_padded_ids_are_never_drawn_and_do_not_count(pair):
    wide = [random_qwen(vocab_size=size, seed=s) for size, s in ((40, 0), (48, 1))]  # padded to different widths
    out = decode(wide, [INF, -INF] * 20, n_vocab=30, eos_ids=[])
    assert out["tokens"].max() < 30
    with torch.no_grad():
        p, q = (torch.log_softmax(model(torch.tensor([[8]])).logits[0, -1, :30], -1) for model in wide)
    assert out["score"][40, 0].item() == pytest.approx(SCORES["kl"](p, q, None).item(), rel=1e-4)


def test_criteria_equal_float64_by_hand():
    torch.manual_seed(0)
    p, q = (torch.log_softmax(3 * torch.randn(7, 9), -1) for _ in range(2))
    tokens = torch.randint(9, (7,))
    for i in range(7):
        a, b = ([math.exp(x) for x in row[i].double().tolist()] for row in (p, q))
        forward = sum(y * math.log(y / x) for x, y in zip(a, b, strict=True))
        backward = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
        expected = {
            "entropy": -sum(x * math.log(x) for x in a),
            "entropy-rlvr": -sum(x * math.log(x) for x in b),
            "kl-forward": forward,
            "kl-reverse": backward,
            "kl": (forward + backward) / 2,
            "dlogp": math.log(a[tokens[i]] / b[tokens[i]]),
        }
        assert set(expected) | {"random"} == set(SCORES)
        for name, value in expected.items():
            assert SCORES[name](p, q, tokens)[i].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_extrapolated_logp():
    torch.manual_seed(0)
    p, q = (torch.log_softmax(2 * torch.randn(5, 9), -1) for _ in range(2))
    assert torch.allclose(extrapolate_logp(q, p, 0.0), q, atol=1e-6)
    assert torch.allclose(extrapolate_logp(q, p, -1.0), p, atol=1e-6)
    mixed = (1.5 * q - 0.5 * p).exp()
    assert torch.allclose(extrapolate_logp(q, p, 0.5).exp(), mixed / mixed.sum(-1, keepdim=True), atol=1e-6)
    gamma = torch.tensor([[0.0], [-1.0], [0.5], [0.0], [0.5]])
    assert torch.allclose(extrapolate_logp(q, p, gamma)[2], extrapolate_logp(q, p, 0.5)[2])
    q, p = torch.tensor([0.5, 0.5, 0.0, 0.0]).log(), torch.tensor([0.25, 0.0, 0.75, 0.0]).log()
    found = extrapolate_logp(q, p, 0.5)
    assert not found.isnan().any() and found.exp().sum().item() == pytest.approx(1)
    assert found[2:].tolist() == [-INF, -INF]  # what RLVR excludes stays out
    assert (found[0] - found[1]).item() == pytest.approx(0.5 * math.log(2))  # dlogp of id 1 is undefined: 0


def test_31_temperature_is_applied_after_mixing_and_before_top_p(pair):
    n, prompt = 4000, [5, 6, 7]
    how = {"temperature": 2.0, "top_p": 0.6, "max_new_tokens": 1, "prompts": [prompt]}
    seen = set(decode(pair, [-INF] * n, gamma=[0.5] * n, **how)["tokens"][:, 0].tolist())
    with torch.no_grad():
        p, q = (torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1) for model in pair)

    def nucleus(logits):
        ordered, order = torch.softmax(logits, -1).sort(descending=True)
        return set(order[ordered.cumsum(0) - ordered < 0.6].tolist())

    mixed = 1.5 * q - 0.5 * p
    assert seen == nucleus(mixed / 2) and seen != nucleus(mixed)


# ------------------------------------------------------------------------------------------ calibration and statistics
@pytest.fixture(scope="module")
def tiny():
    with contextlib.chdir(ROOT):
        models, tokenizer, ids = load_models(("tiny/base", "tiny/rlvr"), "", torch.device("cpu"))
        problems = script.read_problems("tiny/train.jsonl")
        return tuple(models.values()), tokenizer, problems, ids | {"max_new_tokens": 128}


@pytest.mark.parametrize("name", ["dlogp", "kl"])
def test_calibrated_thresholds_match_their_ratios_within_10_percent(tiny, name):
    models, tokenizer, problems, decoding = tiny
    targets = [0.1, 0.2]

    def scores_of(thresholds, seed, rows=slice(0, 32)):
        prompts = script.encode_prompts(tokenizer, problems[rows], "train", 128)
        arms, found = [(x, 0.0) for x in thresholds], [[] for _ in thresholds]
        how = {"samples": 8, "rows": 2000, "desc": name, "seed": seed, "score": SCORES[name]} | decoding
        for part in decode_arms(models, tokenizer, problems[rows], prompts, arms, **how):
            for k, scores in enumerate(found):
                scores.append(part["score"][:, k][part["mask"][:, k] > 0])
        return [np.concatenate(scores) for scores in found]

    thresholds = calibrate(scores_of, targets, passes=3)
    for target, threshold, scores in zip(
        targets, thresholds, scores_of(thresholds, 99, slice(1000, 1060)), strict=True
    ):
        assert (scores > threshold).mean() == pytest.approx(target, rel=0.1)


def test_calibration_follows_the_scores_to_where_replacing_leads():
    """Scores grow with the share that is replaced: the quantile of the first pass would replace too much."""
    rng = np.random.default_rng(0)

    def decode(thresholds, number):
        return [rng.normal(size=20_000) + (1.0 if math.isfinite(x) else 0.0) for x in thresholds]

    for target, threshold in zip((0.1, 0.4), calibrate(decode, (0.1, 0.4), 3), strict=True):
        assert (rng.normal(size=200_000) + 1 > threshold).mean() == pytest.approx(target, rel=0.05)
    (once,) = calibrate(decode, (0.1,), 0)
    assert (rng.normal(size=200_000) + 1 > once).mean() > 0.3


def test_calibration_ends_with_the_quantile_of_the_last_two_passes():
    passes = {0: [np.arange(10.0)], 1: [np.full(50, 3.0)], 2: [np.arange(100.0)], 3: [np.arange(100.0, 200.0)]}
    assert calibrate(lambda thresholds, number: passes[number], [0.25], 3) == [np.quantile(np.arange(200.0), 0.75)]


def test_area_is_the_mean_height_over_log_ratio():
    ratio = np.array([0.01, 0.1, 1.0])
    assert area_under(ratio, np.array([0.3, 0.3, 0.3]), 0.02, 0.9) == pytest.approx(0.3)
    assert area_under(ratio, np.array([0.0, 0.5, 1.0]), 0.01, 1.0) == pytest.approx(0.5)
    both = np.array([[0.0, 0.5, 1.0], [1.0, 1.0, 0.0]])
    assert area_under(ratio, both, 0.1, 1.0) == pytest.approx([0.75, 0.5])


def test_compare_pairs_by_problem_and_finds_the_first_ratio_that_is_enough():
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=60)  # problems differ a lot; criteria by 0.1 in every one of them

    def rows(levels):
        return [
            {"ratio": r, "right": np.clip(x * hard, 0, 1).tolist()}
            for r, x in zip((0.05, 0.1, 0.2), levels, strict=True)
        ]

    curves = {"dlogp": rows((0.5, 1.0, 1.0)), "kl": rows((0.4, 0.9, 1.0)), "entropy": rows((0.4, 0.9, 1.0))}
    table, differences = compare({"right": hard.tolist()}, curves, 500, 0)
    assert table["dlogp"]["enough"] == 0.1 and table["kl"]["enough"] == 0.2
    low, high = differences["dlogp - kl"]["area_ci95"]
    assert 0 < low < differences["dlogp - kl"]["area"] < high < 0.1
    assert differences["kl - entropy"] == {"area": 0, "area_ci95": [0, 0]}
    wide = table["dlogp"]["area_ci95"][1] - table["dlogp"]["area_ci95"][0]
    assert high - low < wide / 3  # paired: what makes a problem hard cancels
    assert compare({"right": [0.5]}, {}, 10, 0) == ({}, {})


def test_a_measured_ratio_of_0_leaves_the_areas_finite():
    rows = [{"ratio": ratio, "right": [0.2, 0.4]} for ratio in (0.0, 0.0, 0.3)]
    table, differences = compare({"right": [0.5, 0.5]}, {"dlogp": rows, "kl": rows}, 10, 0)
    assert table["dlogp"]["area"] == pytest.approx(0.3) and differences["dlogp - kl"]["area"] == 0


def test_counts_of_replaced_tokens_and_forks():
    pieces = {1: "4", 2: "=", 3: ";", 4: "+", 5: "\\boxed{", 6: "}"}
    tokens = np.array([[[[1, 4, 1, 2, 1, 3, 5, 1, 6], [5, 1, 6, 0, 0, 0, 0, 0, 0]]]])  # 4+4=4;\boxed{4} and \boxed{4}
    replaced = np.zeros(tokens.shape, dtype=bool)
    replaced[0, 0, 0, [0, 3, 4]] = True  # two forks (start, =) and a digit of the result
    part = {"problems": slice(0, 1), "tokens": tokens, "mask": (tokens > 0).astype(float), "replaced": replaced}
    part |= {"right": np.array([[[True, False]]]), "texts": np.array([[["a", "b"]]])}
    part["verdicts"] = np.array([[["right", "failed"]]])
    problems = [{"prompt": "4+4-1?", "answer": "4"}]
    rows, samples = count_arms([part], problems, ("kl",), [0.1], [2.5], pieces.get)
    assert rows[0]["verifier_failed"] == 0.5 and "verifier_timed_out" not in rows[0]
    assert rows[0]["ratio"] == 3 / 12 and rows[0]["at_forks"] == pytest.approx(2 / 3) and rows[0]["right"] == [0.5]
    assert samples[0]["replaced"] == [0, 3, 4] and show_replaced(samples[0]["tokens"], [1, 0, 0, 1, 1, 0, 0, 0, 0]) == (
        "[4]+4[=][4];\\boxed{4}"
    )


# ---------------------------------------------------------------------------------------------------------- whole runs
QUICK = (
    "--problems 4 --samples 2 --ratios 0.1,0.3 --calibration-problems 4 --calibration-passes 1 --bootstrap 50".split()
)
QUICK += ["--criteria", "dlogp,random,kl-forward", "--reverse", "dlogp"]


def run(*flags):
    with contextlib.chdir(ROOT):
        return script.main(script.parse_args(script.Args, "", list(map(str, flags))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("replace") / "run"
    assert run(*QUICK, "--out", out) == 0
    return out


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_every_figure_and_number(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {"replace.png", "reverse.png", "summary.json", "config.json", "metrics.jsonl", "samples.jsonl"}
    rows = read(finished / "metrics.jsonl")
    assert [row["criterion"] for row in rows] == ["none", "all"] + [
        name for name in ("dlogp", "random", "kl-forward", "reverse-dlogp") for _ in range(2)
    ]
    assert rows[0]["ratio"] == 0 and rows[1]["ratio"] == 1
    for row in rows:
        assert len(row["right"]) == 4 and row["accuracy"] == pytest.approx(np.mean(row["right"]))
    for row in read(finished / "samples.jsonl"):
        assert all(i < len(row["tokens"]) for i in row["replaced"])
        assert "".join(row["tokens"]).removesuffix("<|im_end|>") == row["response"]
        assert row["criterion"] != "none" or not row["replaced"]
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary["criteria"]) == {"dlogp", "random", "kl-forward"}


@pytest.mark.parametrize("cut", [0, 1, 3, 5, 10])
def test_29_resume_after_a_kill_gives_the_same_run(finished, tmp_path, cut):
    """Killed in the middle of writing row `cut`, so in the middle of a criterion, or after it."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    config = json.loads((out / "config.json").read_text())
    config["args"]["out"] = str(out)
    (out / "config.json").write_text(json.dumps(config))
    lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:cut]) + "".join(lines[cut : cut + 1])[:20])
    os.remove(out / "summary.json")
    with pytest.raises(script.InputError, match="add --resume"):
        run(*QUICK, "--out", out)
    assert run(*QUICK, "--out", out, "--resume") == 0
    for name in ("metrics.jsonl", "samples.jsonl", "summary.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_one_problem_one_sample_one_token(tmp_path):
    flags = "--problems 1 --samples 1 --max-response 1 --ratios 0.5 --criteria entropy --calibration-problems 1".split()
    assert run(*flags, "--reverse", "", "--out", tmp_path / "run") == 0
    rows = read(tmp_path / "run" / "metrics.jsonl")
    assert [row["accuracy"] for row in rows] == [0, 0, 0] and "NaN" not in (
        tmp_path / "run" / "metrics.jsonl"
    ).read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--criteria", "dlogp,magic"], "there is no criterion 'magic'"),
        (["--ratios", "0.1,x"], "--ratios 0.1,x: it must be increasing shares"),
        (["--ratios", "0.2,0.1"], "--ratios 0.2,0.1: it must be increasing shares"),
        (["--test", "nowhere.jsonl"], "cannot read problems from nowhere.jsonl"),
        (["--rlvr", "tiny/nope"], "no model at 'tiny/nope'"),
        (["--max-response", "250"], "tiny/test.jsonl, line 1: the prompt has"),
        (["--resume", "--overwrite"], "exclude each other"),
    ],
)
def test_bad_input_is_one_sentence(flags, message):
    with pytest.raises(script.InputError, match=re.escape(message)):
        run(*QUICK, "--out", "/proc/unused", *flags)
