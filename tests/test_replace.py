"""replace.py: two models decoding one response, against rollouts of one model and against loops without a cache."""

import contextlib
import copy
import inspect
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_qwen

import replace
from dapo import rollout
from replace import SCORES, at_choices, calibrate, comparison_table, curve_points, decode_two

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
INF = math.inf


@pytest.fixture(scope="module")
def pair():
    return random_qwen(seed=0), random_qwen(seed=1)


def decode(pair, thresholds, score=SCORES["kl"], prompts=PROMPTS, max_new_tokens=12, eos_ids=(1, 2), **options):
    generator = torch.Generator().manual_seed(0)
    return decode_two(*pair, prompts, score, thresholds, max_new_tokens, eos_ids, generator=generator, **options)


def rows_of(out):
    """The ids of every row, without padding."""
    return [row[mask == 1].tolist() for row, mask in zip(out["tokens"], out["mask"], strict=True)]


@torch.no_grad()
def logp_after(model, prefix, temperature=1.0):
    """Log-probs of the next token by a forward pass without a cache."""
    return torch.log_softmax(model(torch.tensor([prefix])).logits[0, -1] / temperature, -1)


@pytest.mark.parametrize(("n_vocab", "temperature", "top_p"), [(None, 1.0, 1.0), (None, 0.7, 0.8), (30, 1.0, 1.0)])
def test_31_never_firing_is_the_base_token_for_token(pair, n_vocab, temperature, top_p):
    sampling = {"n_vocab": n_vocab, "temperature": temperature, "top_p": top_p}
    out = decode(pair, [INF] * 4, **sampling)
    alone = rollout(pair[0], PROMPTS, 4, 12, [1, 2], **sampling, generator=torch.Generator().manual_seed(0))
    assert torch.equal(out["tokens"], alone["tokens"]) and torch.equal(out["mask"], alone["mask"])
    assert not out["replaced"].any()


def test_decode_two_runs_pasted_into_an_empty_file(pair):
    pasted = {"torch": torch}
    for part in (replace.sample_tokens, replace.Decoder, decode_two):
        exec(inspect.getsource(part), pasted)
    here = decode(pair, [0.0, 0.1], top_p=0.9)
    generator = torch.Generator().manual_seed(0)
    there = pasted["decode_two"](*pair, PROMPTS, SCORES["kl"], [0.0, 0.1], 12, [1, 2], top_p=0.9, generator=generator)
    assert all(torch.equal(here[name], there[name]) for name in here) and there["mask"].sum() > 8


def test_31_always_firing_has_the_distribution_of_rlvr_at_that_temperature():
    """Two tokens after one prompt, 20,000 draws: chi-squared against the exact probabilities of the pairs."""
    n = 20_000
    prompt = [5, 6, 7]
    base, rlvr = (random_qwen(vocab_size=8, seed=seed) for seed in (0, 1))
    out = decode((base, rlvr), [-INF] * n, prompts=[prompt], max_new_tokens=2, eos_ids=[], temperature=2.0)
    counts = torch.bincount(out["tokens"][:, 0] * 8 + out["tokens"][:, 1], minlength=64).double()
    expected = []
    for token in range(8):
        first = logp_after(rlvr, prompt, 2.0)[token]
        expected.append(n * (first + logp_after(rlvr, [*prompt, token], 2.0)).exp())
    expected = torch.cat(expected).double()
    common = expected > 5
    chi2 = ((counts - expected)[common] ** 2 / expected[common]).sum()
    assert out["replaced"].all() and common.sum() > 5 and chi2 < common.sum() + 5 * math.sqrt(2 * common.sum())
    assert counts[~common].sum() < expected[~common].sum() + 5 * math.sqrt(expected[~common].sum() + 5)
    kl = SCORES["kl"](logp_after(base, prompt), logp_after(rlvr, prompt), None)
    assert out["scores"][0, 0].item() == pytest.approx(kl.item(), rel=1e-4)  # the criterion is at temperature 1


def test_31_caches_see_the_same_tokens_and_equal_a_loop_without_a_cache(pair):
    """Rows that end at different times, some tokens replaced: every score is that of the prefix, in float64."""
    thresholds = [0.5, 3.0, INF, -INF]
    out = decode(pair, thresholds, max_new_tokens=20)
    responses = rows_of(out)
    assert len({len(response) for response in responses}) > 3 and 0 < out["replaced"].sum() < out["mask"].sum()
    base, rlvr = (copy.deepcopy(model).double() for model in pair)
    for i, response in enumerate(responses):
        for t in range(len(response)):
            prefix = PROMPTS[i // 4] + response[:t]
            p = logp_after(base, prefix)
            q = logp_after(rlvr, prefix)
            kl = ((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()) / 2
            assert out["scores"][i, t].item() == pytest.approx(kl.item(), abs=1e-3, rel=1e-3)
            assert out["replaced"][i, t] == (out["scores"][i, t] > thresholds[i % 4])
        assert not out["replaced"][i, len(response) :].any()


def test_a_replaced_token_is_rlvrs_and_any_other_is_the_bases(pair):
    """With top-p cut to one token both models are greedy, so every token says whose it is."""
    out = decode(pair, [0.5] * 4, score=SCORES["random"], top_p=1e-6)
    assert 0 < out["replaced"].sum() < out["mask"].sum()
    n_different = 0
    for i, response in enumerate(rows_of(out)):
        for t, token in enumerate(response):
            favourites = [logp_after(model, PROMPTS[i // 4] + response[:t]).argmax() for model in pair]
            assert token == favourites[int(out["replaced"][i, t])]
            n_different += int(favourites[0] != favourites[1])
    assert n_different > 3


def test_28_rows_positions_and_copies_have_noise_of_their_own(pair):
    for threshold in (INF, -INF):
        out = decode(pair, [threshold] * 50, prompts=[[5, 6, 7]] * 2, max_new_tokens=6, eos_ids=[])
        assert len({tuple(row) for row in out["tokens"].tolist()}) > 80
    torch.manual_seed(0)
    seen = SCORES["random"](None, None, torch.zeros(4000))
    assert len(seen.unique()) > 3900 and abs(seen.mean() - 0.5) < 0.03 and seen.min() >= 0 and seen.max() < 1


def test_27_padded_ids_are_never_drawn_and_do_not_count():
    wide = random_qwen(vocab_size=40, seed=0), random_qwen(vocab_size=48, seed=1)  # padded to different widths
    out = decode(wide, [INF, -INF] * 20, n_vocab=30, eos_ids=[])
    assert out["tokens"].max() < 30
    with torch.no_grad():
        p, q = (torch.log_softmax(model(torch.tensor([[8]])).logits[0, -1, :30], -1) for model in wide)
    assert out["scores"][40, 0].item() == pytest.approx(SCORES["kl"](p, q, None).item(), rel=1e-4)


def test_criteria_equal_float64_by_hand_and_ignore_ids_that_both_models_exclude():
    torch.manual_seed(0)
    logp_base, logp_rlvr = (torch.log_softmax(3 * torch.randn(7, 9), -1) for _ in range(2))
    excluded = torch.full((7, 1), -INF)
    tokens = torch.randint(9, (7,))
    scores = {}
    for name, score in SCORES.items():
        scores[name] = score(torch.cat([logp_base, excluded], 1), torch.cat([logp_rlvr, excluded], 1), tokens)
    for i in range(7):
        p = logp_base[i].double().exp().tolist()
        q = logp_rlvr[i].double().exp().tolist()
        forward = sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
        backward = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        expected = {
            "entropy": -sum(x * math.log(x) for x in p),
            "entropy-rlvr": -sum(y * math.log(y) for y in q),
            "kl-forward": forward,
            "kl-reverse": backward,
            "kl": (forward + backward) / 2,
            "dlogp": math.log(p[tokens[i]] / q[tokens[i]]),
        }
        assert set(expected) | {"random"} == set(SCORES)
        for name, value in expected.items():
            assert scores[name][i].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name


# ------------------------------------------------------------------------------------------------ speculative sampling
def total_variation(p, q):
    """TV of two distributions: float64 tensors (V,) both."""
    return ((p - q).abs().sum() / 2).item()


def assert_drawn_from(tokens, p):
    """The shares of tokens (N,) are as close to p (V,) in total variation as N draws of p are, by a wide margin."""
    shares = torch.bincount(tokens, minlength=len(p)).double() / len(tokens)
    expected = ((p * (1 - p)).sqrt() / len(tokens) ** 0.5 * (2 / math.pi) ** 0.5).sum() / 2
    assert total_variation(shares, p) < 2 * expected + 1e-12, (shares, p)
    assert not shares[p == 0].any()


PAIRS = {  # p_base and p_rlvr
    "overlapping": ([0.5, 0.3, 0.15, 0.05, 0.0], [0.1, 0.35, 0.15, 0.1, 0.3]),
    "several tokens above": ([0.7, 0.1, 0.1, 0.05, 0.05], [0.1, 0.3, 0.3, 0.2, 0.1]),
    "identical": ([0.2, 0.3, 0.0, 0.4, 0.1], [0.2, 0.3, 0.0, 0.4, 0.1]),
    "disjoint": ([0.6, 0.4, 0.0, 0.0, 0.0], [0.0, 0.0, 0.7, 0.1, 0.2]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_speculative_tokens_are_rlvrs_and_the_replaced_share_is_the_total_variation(name):
    """A ratio upside down, a residual that is RLVR's distribution, or that is not cut at 0, a token kept too often."""
    n = 100_000
    p, q = (torch.tensor(values, dtype=torch.float64) for values in PAIRS[name])
    rows = [values.float().log().expand(n, 5) for values in (p, q)]
    tokens, replaced, expected = replace.speculative_tokens(*rows, torch.Generator().manual_seed(0))
    assert_drawn_from(tokens, q)
    tv = total_variation(p, q)
    assert expected.tolist() == pytest.approx([tv] * n, abs=1e-6)
    assert replaced.double().mean().item() == pytest.approx(tv, abs=4 * (tv * (1 - tv) / n) ** 0.5 + 1e-12)
    if replaced.any():
        residual = (q - p).clamp(min=0)
        assert_drawn_from(tokens[replaced], residual / residual.sum())
    if not replaced.all():  # what is kept is what both models would draw
        assert_drawn_from(tokens[~replaced], torch.minimum(p, q) / torch.minimum(p, q).sum())


def test_speculative_rows_are_independent_and_keep_their_own_distributions():
    p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]).log()
    q = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    seen = set()
    for seed in range(20):
        tokens, replaced, _ = replace.speculative_tokens(p, q, torch.Generator().manual_seed(seed))
        assert tokens[0] == 1 and tokens[2] == 0 and replaced.tolist() == [True, False, True]
        seen.add(tokens[1].item())
    assert seen == {0, 1}


def test_speculative_tokens_bear_rounding_that_leaves_no_residual():
    p = torch.tensor([[0.5, 0.5]] * 1000)
    q = torch.tensor([[0.4, 0.5]] * 1000)  # far more than rounding, so that it shows
    _, replaced, _ = replace.speculative_tokens(p.log(), q.log(), torch.Generator().manual_seed(0))
    assert not replaced.any()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 0.8), (0.5, 1e-6)])
def test_sampling_logp_is_what_sample_tokens_draws_from(temperature, top_p):
    logits = 2 * torch.randn(12, generator=torch.Generator().manual_seed(0))
    logp = replace.sampling_logp(logits[None], temperature, top_p)[0].double()
    generator = torch.Generator().manual_seed(0)
    tokens, _, _ = replace.sample_tokens(logits.expand(50_000, 12), temperature, top_p, generator)
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-6) and (top_p == 1 or logp.isinf().any())
    assert_drawn_from(tokens, logp.exp())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 0.8)])
def test_two_models_decode_the_distribution_of_rlvr(temperature, top_p):
    """Two tokens after one prompt, 20,000 times; what is exact is computed without a cache, the cut by a loop."""
    n = 20_000
    prompt = [5, 6, 7]
    base, rlvr = (random_qwen(vocab_size=8, seed=seed) for seed in (0, 1))

    def exact(model, prefix):
        p = logp_after(model, prefix, temperature).double().exp()
        kept = torch.zeros(8, dtype=torch.float64)
        for token in p.argsort(descending=True).tolist():
            if kept.sum() < top_p:
                kept[token] = p[token]
        return kept / kept.sum()

    options = {"max_new_tokens": 2, "eos_ids": [], "temperature": temperature, "top_p": top_p}
    out = decode((base, rlvr), [0.0] * n, score="speculative", prompts=[prompt], **options)
    first = exact(rlvr, prompt)
    pairs = torch.cat([first[token] * exact(rlvr, [*prompt, token]) for token in range(8)])
    assert_drawn_from(out["tokens"][:, 0] * 8 + out["tokens"][:, 1], pairs)
    tv = [total_variation(exact(base, prompt), first)]
    after = [total_variation(exact(base, [*prompt, token]), exact(rlvr, [*prompt, token])) for token in range(8)]
    tv.append(sum(chance * distance for chance, distance in zip(first.tolist(), after, strict=True)))
    for t in range(2):
        assert out["replaced"][:, t].double().mean().item() == pytest.approx(tv[t], abs=4 * 0.5 / n**0.5)
        assert 0.05 < tv[t] < 0.98
    assert out["scores"][0, 0].item() == pytest.approx(tv[0], abs=1e-5)
    assert out["scores"][0, 1].item() == pytest.approx(after[out["tokens"][0, 0]], abs=1e-5)


def test_speculative_replaces_nothing_between_identical_models(pair):
    out = decode((pair[0], pair[0]), [0.0] * 50, score="speculative")
    assert out["mask"].sum() > 500 and not out["replaced"].any() and not out["scores"].any()


# ------------------------------------------------------------------------------------------ calibration and statistics
def test_calibrated_thresholds_match_their_ratios_within_10_percent():
    with contextlib.chdir(ROOT):
        base, rlvr, tokenizer = replace.load_pair("tiny/base", "tiny/rlvr", "cpu")
        problems = replace.read_problems("tiny/train.jsonl", tokenizer, 256, 128)
    args = replace.Args(ratios="0.2", rows=2000, device="cpu")
    points = curve_points("dlogp", 7, base, rlvr, tokenizer, problems[:24], problems[1000:1040], args)
    (point,) = points
    assert point["target"] == 0.2 and point["ratio"] == pytest.approx(0.2, rel=0.1)


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


def test_criteria_are_paired_by_problem_and_the_first_ratio_that_is_enough_is_found():
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=60)  # problems differ a lot; criteria by 0.1 in every one of them

    def curve(*levels):
        return [{"ratio": r, "right": (x * hard).tolist()} for r, x in zip((0.05, 0.1, 0.2), levels, strict=True)]

    curves = {"dlogp": curve(0.5, 1.0, 1.0), "kl": curve(0.4, 0.9, 1.0), "entropy": curve(0.4, 0.9, 1.0)}
    table = comparison_table({"right": hard.tolist()}, curves, 500, 0)
    assert table["dlogp"]["enough"] == 0.1 and table["kl"]["enough"] == 0.2
    low, high = table["dlogp - kl"]["area_ci95"]
    assert 0 < low < table["dlogp - kl"]["area"] < high < 0.1
    assert table["kl - entropy"] == {"area": 0, "area_ci95": [0, 0]}
    wide = table["dlogp"]["area_ci95"][1] - table["dlogp"]["area_ci95"][0]
    assert high - low < wide / 3  # paired: what makes a problem hard cancels
    assert comparison_table({"right": [0.5]}, {}, 10, 0) == {}


def test_area_is_the_mean_height_over_log_ratio_where_all_curves_are_defined():
    rising = [{"ratio": ratio, "right": [x]} for ratio, x in ((0.01, 0.0), (0.1, 0.5), (1.0, 1.0))]
    table = comparison_table({"right": [2.0]}, {"kl": rising}, 10, 0)
    assert table["kl"]["area"] == pytest.approx(0.5) and table["kl"]["enough"] is None
    flat = [{"ratio": ratio, "right": [0.3]} for ratio in (0.1, 2.0)]
    table = comparison_table({"right": [1.0]}, {"kl": rising, "entropy": flat}, 10, 0)
    assert table["kl"]["area"] == pytest.approx(0.75) and table["kl - entropy"]["area"] == pytest.approx(0.45)
    assert table["kl"]["enough"] == 1.0 and table["entropy"]["enough"] is None
    # a measured ratio of 0 leaves the areas finite; curves that do not overlap have none
    from_0 = [{"ratio": ratio, "right": [0.2, 0.4]} for ratio in (0.0, 0.0, 0.3)]
    table = comparison_table({"right": [0.5, 0.5]}, {"dlogp": from_0, "kl": from_0}, 10, 0)
    assert table["dlogp"]["area"] == pytest.approx(0.3) and table["dlogp - kl"]["area"] == 0
    table = comparison_table({"right": [1.0]}, {"dlogp": rising[:2], "kl": rising[2:]}, 10, 0)
    assert table["dlogp"] == {"enough": None, "within 0.05": None, "within 0.05_ci95": [None, None]}
    assert set(table) == {"dlogp", "kl"} and table["kl"]["enough"] == 1.0 and "area" not in table["kl"]


def test_the_ratio_that_reaches_an_accuracy_lies_between_the_points_in_log_ratio():
    curve = [{"ratio": ratio, "right": [x]} for ratio, x in ((0.01, 0.2), (0.1, 0.6), (0.2, 0.5), (0.4, 1.0))]
    for rlvr, expected in ((0.15, 0.01), (0.45, 10**-1.5), (0.65, 0.1), (0.8, 0.2 * 2**0.5), (1.05, 0.4), (1.1, None)):
        row = comparison_table({"right": [rlvr]}, {"kl": curve}, 10, 0)["kl"]
        assert row["within 0.05"] == (expected if expected is None else pytest.approx(expected, rel=1e-6)), rlvr
        assert row["within 0.05_ci95"] == [row["within 0.05"]] * 2
    # a resample of problems moves RLVR's accuracy as well: paired
    hard = np.random.default_rng(0).uniform(size=60)
    levels = [(0.1, 0.5), (0.2, 0.9), (0.4, 1.0)]
    curve = [{"ratio": ratio, "right": (x * hard).tolist()} for ratio, x in levels]
    row = comparison_table({"right": hard.tolist()}, {"kl": curve}, 500, 0)["kl"]
    low, high = row["within 0.05_ci95"]
    assert 0.16 < low < row["within 0.05"] < high < 0.24


@pytest.mark.parametrize(
    ("prompt", "text", "positions"),
    [
        ("4+4-1,5*2?", r"4+4=8; 8-1=7 so 5*2=10; \boxed{7,10}", {0, 3, 7, 16}),  # no operation left: nothing to choose
        ("4+4-1,5*2?", r"4+4-1=7 so \boxed{7,10}", {0, 3, 11}),  # two at once: after an operand - was chosen over =
        ("4+4-1,5*2?", r"\boxed{7,9}x4+4=8;", {0}),  # a guess; then another form
        ("What is 4+4-1,5*2?", r"4+4=8; 8-1=7 so \boxed{7", set()),
    ],
)
def test_tokens_at_choices(prompt, text, positions):
    pieces = re.findall(r"\\boxed\{|; | [a-z]+ |.", text)
    starts = np.cumsum([0] + [len(piece) for piece in pieces])[:-1]
    assert set(starts[at_choices(prompt, pieces)].tolist()) == positions


# ---------------------------------------------------------------------------------------------------------- whole runs
QUICK = "--problems 6 --samples 2 --ratios 0.1,0.3 --calibration-problems 4 --calibration-passes 1"
QUICK += " --criteria speculative,dlogp,random,kl-forward --reverse dlogp --bootstrap 50"
JOBS = ["base and RLVR", "dlogp", "random", "kl-forward", "reverse-dlogp", "speculative"]


def run(flags, out, *more):
    with contextlib.chdir(ROOT):
        replace.main(replace.parse_args(["--device", "cpu", *flags.split(), "--out", str(out), *more]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("replace") / "run"
    run(QUICK, out)
    return out


def test_a_run_leaves_every_figure_and_number(finished):
    assert {path.name for path in finished.iterdir()} == {"config.json", "replace.png", "results.json", "summary.json"}
    results = json.loads((finished / "results.json").read_text())
    assert list(results) == JOBS and [point["ratio"] for point in results["base and RLVR"]] == [0, 1]
    for job, points in results.items():
        targets = {"base and RLVR": [0, 1], "speculative": [None]}.get(job, [0.1, 0.3])
        assert [point["target"] for point in points] == targets
        for point in points:
            assert point["accuracy"] == pytest.approx(np.mean(point["right"]))
            assert len(point["right"]) == 6 and len(point["samples"]) == 5
            for sample in point["samples"]:
                n_tokens = len(sample["tokens"])
                assert len(sample["replaced"]) == len(sample["score"]) == len(sample["at_choice"]) == n_tokens
                if job != "speculative":
                    assert sample["replaced"] == [score > float(point["threshold"]) for score in sample["score"]]
                text = "".join(sample["tokens"]).removesuffix("<|im_end|>")
                assert replace.is_correct(text, sample["answer"]) == sample["right"]
    table = json.loads((finished / "summary.json").read_text())
    assert set(table) == {"dlogp", "random", "kl-forward", "dlogp - random", "speculative"}
    (point,) = results["speculative"]
    assert table["speculative"].items() <= point.items()
    assert 0.03 < point["total_variation"] < 0.25 and point["ratio"] == pytest.approx(
        point["total_variation"], abs=0.06
    )
    assert point["accuracy"] > 0.6  # RLVR alone: 0.925; the base: 0.070


def test_29_resume_after_a_kill_gives_the_same_bytes(finished, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished / "config.json", out)
    results = json.loads((finished / "results.json").read_text())
    (out / "results.json").write_text(json.dumps({job: results[job] for job in JOBS[:3]}))
    (out / "results.tmp").write_text('{"base and')
    with pytest.raises(ValueError, match="holds a run: --resume goes on"):
        run(QUICK, out)
    with pytest.raises(ValueError, match="began with --seed 1"):
        run(QUICK, out, "--resume", "--seed", "2")
    run(QUICK, out, "--resume")
    for name in ("results.json", "summary.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes(), name


def test_one_problem_one_sample_one_token(tmp_path):
    flags = "--problems 1 --samples 1 --max-response 1 --ratios 0.5 --calibration-problems 1"
    for criteria, n_points in (("entropy,speculative", 4), ("speculative", 3)):
        out = tmp_path / criteria
        run(flags, out, "--criteria", criteria, "--reverse", "")
        text = (out / "results.json").read_text() + (out / "summary.json").read_text()
        assert "NaN" not in text and "Infinity" not in text
        results = json.loads((out / "results.json").read_text())
        assert [point["accuracy"] for points in results.values() for point in points] == [0] * n_points


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--criteria dlogp,magic", "--criteria: there is no criterion 'magic'; there are dlogp, kl,"),
        ("--reverse speculative", "--reverse: there is no criterion 'speculative'; there are dlogp, kl,"),
        ("--ratios 0.1,x", "want numbers with commas between them, not '0.1,x'"),
        ("--ratios 0.1,1", "--ratios 0.1,1: want numbers between 0 and 1"),
        ("--samples 0", "--samples 0: want a number above 0"),
        ("--max-response 250", "tiny/test.jsonl: no prompt fits into 6 tokens"),
        ("--resume", "holds no run"),
    ],
)
def test_bad_input_is_one_sentence(flags, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        run(QUICK, tmp_path / "unused", *flags.split())


def test_models_of_two_vocabularies_are_refused(tmp_path):
    other = shutil.copytree(ROOT / "tiny" / "base", tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"7"', '"x"'))
    with pytest.raises(ValueError, match=re.escape("do not share a vocabulary: [('7', ")):
        run(QUICK, tmp_path / "unused", "--base", str(other))
