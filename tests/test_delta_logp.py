"""delta_logp.py against slow, plain computations, and on models whose answer is known; tests say what they catch."""

import ast
import copy
import itertools
import json
import math
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_qwen
from transformers import AutoTokenizer

import dapo
import delta_logp as script
from delta_logp import Response, auc, entropy, histogram_overlap, kl_divergence, lemma_error, pad_responses, score_pair

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
ANSWERS = [[13, 14, 1], [15, 16, 17, 18, 19, 1], [20]]
QUICK = "--problems 6 --samples 3 --gen-batch 4 --bootstrap 20 --device cpu"


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(flags, out):
    script.main(script.parse_args(f"{flags} --out {out}".split()))
    return out


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run(QUICK, tmp_path_factory.mktemp("delta") / "run")


def padded():
    """tokens and mask, (3, 7), of PROMPTS and ANSWERS."""
    pairs = zip(PROMPTS, ANSWERS, strict=True)
    return pad_responses([Response({"ids": prompt}, "base", answer, "", False) for prompt, answer in pairs])


# ------------------------------------------------------------------------------------------------------------- scoring
def softmax(logits):
    """In plain Python floats, which are float64."""
    exp = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(exp) for x in exp]


def metrics_by_hand(base_logits, rlvr_logits, token):
    """{name: value} of score_pair for one token, from two lists of logits."""
    p = softmax(base_logits)
    q = softmax(rlvr_logits)
    kl_rlvr_base = sum(y * math.log(y / x) for x, y in zip(p, q, strict=True))
    kl_base_rlvr = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    return {
        "logp_base": math.log(p[token]),
        "logp_rlvr": math.log(q[token]),
        "dlogp": math.log(q[token] / p[token]),
        "entropy_base": -sum(x * math.log(x) for x in p),
        "entropy_rlvr": -sum(y * math.log(y) for y in q),
        "kl": (kl_rlvr_base + kl_base_rlvr) / 2,
        "kl_rlvr_base": kl_rlvr_base,
        "kl_base_rlvr": kl_base_rlvr,
    }


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [2, 512])
def test_scores_equal_a_float64_loop_over_prefixes(temperature, chunk):
    """A wrong position, a direction of KL, a padding id with probability, a chunk put back elsewhere."""
    base = random_qwen(seed=0)
    rlvr = random_qwen(seed=1)
    tokens, mask = padded()
    found = score_pair(base, rlvr, tokens, mask, temperature, n_vocab=36, chunk=chunk)
    base.double()
    rlvr.double()
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for t, token in enumerate(answer):
            prefix = torch.tensor([prompt + answer[:t]])
            with torch.no_grad():
                logits = [model(prefix).logits[0, -1, :36] / temperature for model in (base, rlvr)]
            for name, value in metrics_by_hand(logits[0].tolist(), logits[1].tolist(), token).items():
                assert found[name][i, len(prompt) + t].item() == pytest.approx(value, abs=2e-4), (name, i, t)
    for name, values in found.items():
        assert not values[mask == 0].any(), name


def test_identical_models_differ_by_exactly_0_and_swapping_them_flips_the_sign():
    base = random_qwen(seed=0)
    rlvr = random_qwen(seed=1)
    same = score_pair(base, copy.deepcopy(base), *padded())
    for name in ("dlogp", "kl", "kl_rlvr_base", "kl_base_rlvr"):
        assert not same[name].any(), name
    there = score_pair(base, rlvr, *padded())
    back = score_pair(rlvr, base, *padded())
    assert torch.equal(there["dlogp"], -back["dlogp"]) and there["dlogp"].count_nonzero() == 10
    assert torch.equal(there["kl_rlvr_base"], back["kl_base_rlvr"])
    assert torch.equal(there["entropy_base"], back["entropy_rlvr"])


def test_ids_without_probability():
    p = torch.tensor([0.5, 0.5, 0.0]).log()
    q = torch.tensor([0.25, 0.75, 0.0]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert entropy(p).item() == pytest.approx(math.log(2))
    assert kl_divergence(torch.tensor([0.5, 0.25, 0.25]).log(), q) == math.inf  # takes what q never does
    assert kl_divergence(torch.tensor([0.0, -200.0]), torch.tensor([0.0, -torch.inf])) == 0  # exp(-200) is 0 in fp32


def test_logits_exist_for_a_chunk_of_tokens_at_a_time(monkeypatch):
    seen = []
    log_softmax = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, dim: seen.append(len(x)) or log_softmax(x, dim))
    score_pair(random_qwen(seed=0), random_qwen(seed=1), *padded(), chunk=4)
    assert seen == [4, 4, 4, 4, 2, 2]


def test_tokens_and_mask_of_two_shapes_are_refused():
    tokens, mask = padded()
    with pytest.raises(ValueError, match="of one shape"):
        score_pair(None, None, tokens, mask[:, 1:])
    with pytest.raises(ValueError, match="of one shape"):
        script.gradient_coefficient(torch.zeros(3, 4), torch.zeros(3, 1))


# --------------------------------------------------------------------------------------------------------------- maths
def test_histogram_overlap():
    """Counts where shares are meant, values beyond the edges lost, weights of the other sample."""
    a = np.array([0.0, 0.0, 1.0, 3.0])
    b = np.array([0.0, 2.0, 3.0, 3.0])
    ones = np.ones(4)
    assert histogram_overlap(a, a, ones, ones, np.arange(5)) == pytest.approx(1)
    for edges in ([0, 1, 2, 3, 4], [0.5, 1.5, 2.5]):
        assert histogram_overlap(a, b, ones, ones, np.array(edges)) == pytest.approx(0.25 + 0.25)
    times = np.array([3, 1, 2, 1])
    repeated = histogram_overlap(np.repeat(a, times), b, np.ones(7), ones, np.arange(5))
    assert histogram_overlap(a, b, times, ones, np.arange(5)) == pytest.approx(repeated)
    assert histogram_overlap(b, a, ones, times, np.arange(5)) == pytest.approx(repeated)


def test_auc_equals_the_count_over_all_pairs():
    """Ties that count 0 or 1, a weight that belongs to another value."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 40).astype(float)
    b = rng.integers(1, 8, 30).astype(float)
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auc(a, b, np.ones(40), np.ones(30)) == pytest.approx(pairs)
    assert auc(b, a, np.ones(30), np.ones(40)) == pytest.approx(1 - pairs)
    assert auc(b + 100, a, np.ones(30), np.ones(40)) == 1
    times_a = rng.integers(0, 3, 40)
    times_b = rng.integers(0, 3, 30)
    repeated_a = np.repeat(a, times_a)
    repeated_b = np.repeat(b, times_b)
    repeated = auc(repeated_a, repeated_b, np.ones(len(repeated_a)), np.ones(len(repeated_b)))
    assert auc(a, b, times_a, times_b) == pytest.approx(repeated)


def test_held_by_top():
    values = np.array([0.0, -3.0, 1.0, 0.0])
    assert [script.held_by_top(values, share) for share in (0, 0.25, 0.5, 1)] == [0, 0.75, 1, 1]
    assert script.held_by_top(np.zeros(4), 0.5) == 0


def test_the_lemma_holds_and_a_wrong_coefficient_does_not(monkeypatch):
    logits = 3 * torch.randn(20, 11)
    tokens = torch.randint(11, (20,))
    assert lemma_error(logits, tokens) < 1e-6
    assert script.gradient_coefficient(torch.tensor(-1e-9), torch.tensor(1.0)).item() == pytest.approx(2e-9)
    monkeypatch.setattr(script, "gradient_coefficient", lambda logp, adv, ratio: (ratio * adv).abs() * (1 - logp.exp()))
    assert lemma_error(logits, tokens) > 0.5
    with pytest.raises(ValueError, match="every token has probability 1"):
        lemma_error(torch.tensor([[100.0, 0.0]]), torch.tensor([0]))


@pytest.mark.parametrize("name", ["delta_logp", "entropy", "kl_divergence", "gradient_coefficient"])
def test_maths_works_pasted_alone(name):
    source = (ROOT / "delta_logp.py").read_text()
    (node,) = [x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef) and x.name == name]
    pasted = {"torch": torch}
    exec(ast.get_source_segment(source, node), pasted)
    p = torch.log_softmax(torch.randn(3, 5), -1)
    q = torch.log_softmax(torch.randn(3, 5), -1)
    given = {"delta_logp": (p, q, torch.arange(3)), "entropy": (p,)}.get(name, (p, q))
    assert torch.isfinite(pasted[name](*given)).all()


# -------------------------------------------------------------------------------------------------------------- tables
def test_the_bootstrap_draws_problems_not_tokens_or_responses():
    """100 equal tokens of a response, or equal responses to a problem, count as one: no interval gets shorter."""
    rng = np.random.default_rng(0)
    source = np.repeat(["base", "rlvr"], 50)
    tokens = {
        "source": source,
        "response": np.arange(100),
        "problem": np.tile(np.arange(50), 2),
        "dlogp": rng.normal(size=100) + (source == "rlvr"),
    }
    edges = np.arange(-4, 5)
    resampled = script.resample_problems(50, 400, seed=0)
    alone = script.comparison_row(tokens, "dlogp", edges, resampled)
    longer = {name: np.repeat(values, 100) for name, values in tokens.items()}
    more = {**longer, "response": np.arange(10_000)}
    for repeated in (longer, more):
        found = script.comparison_row(repeated, "dlogp", edges, resampled)
        for name, value in alone.items():
            assert found[name] == pytest.approx(value), name
    assert alone["auc_ci95"][1] - alone["auc_ci95"][0] > 0.1
    assert alone["auc"] == auc(tokens["dlogp"][50:], tokens["dlogp"][:50], np.ones(50), np.ones(50))
    for other in ("auc_response", "auc_sum"):
        assert alone["auc"] == alone[other] and alone["auc_ci95"] == alone[f"{other}_ci95"]


def test_the_sum_of_dlogp_is_the_bound_of_whole_responses():
    """Against the AUC of the exact likelihood ratio, computed over all responses that two models can write.

    The first token, equally likely in both models, says whether 1 or 9 more follow. So the mean of dlogp ranks the
    responses in another order than the sum does, and a worse one.
    """
    p = {"base": [0.6, 0.4], "rlvr": [0.4, 0.6]}  # of the tokens 0 and 1 behind the first one
    responses = []
    chances = {"base": [], "rlvr": []}
    for first, n_more in ((0, 1), (1, 9)):
        for more in itertools.product((0, 1), repeat=n_more):
            responses.append([first, *more])
            for model, chance in p.items():
                chances[model].append(0.5 * math.prod(chance[token] for token in more))
    chances = {model: np.array(values) for model, values in chances.items()}
    ratios = np.round(np.log(chances["rlvr"] / chances["base"]), 9)
    above = (ratios[:, None] > ratios) + (ratios[:, None] == ratios) / 2
    exact = chances["rlvr"] @ above @ chances["base"]

    rng = np.random.default_rng(0)
    columns = {"source": [], "response": [], "problem": [], "dlogp": [], "token": []}
    for number in range(8000):
        source = ("base", "rlvr")[number % 2]
        for t, token in enumerate(responses[rng.choice(len(responses), p=chances[source])]):
            columns["source"].append(source)
            columns["response"].append(number)
            columns["problem"].append(0)
            columns["dlogp"].append(0.0 if t == 0 else (-0.40625, 0.40625)[token])  # log 1.5, but sums are exact
            columns["token"].append(float(token))
    tokens = {name: np.array(values) for name, values in columns.items()}
    found = {}
    for metric in ("dlogp", "token"):
        found[metric] = script.comparison_row(tokens, metric, np.arange(-2, 3), script.resample_problems(1, 2, 0))
    assert found["dlogp"]["auc_sum"] == pytest.approx(exact, abs=0.015)  # two standard errors
    for other in (found["dlogp"]["auc_response"], found["token"]["auc_sum"], found["token"]["auc_response"]):
        assert 0.5 < other < exact - 0.03


def test_intervals_of_kinds_are_those_of_tables_of_the_drawn_problems():
    """A total of another source or of the tokens, a draw without the kind that counts as 0."""
    rng = np.random.default_rng(0)
    tokens = {
        "source": rng.choice(["base", "rlvr"], 60),
        "problem": np.sort(rng.integers(0, 5, 60)),
        "kind": rng.choice(["choice", "copy"], 60),
        "dlogp": rng.normal(size=60),
    }
    tokens["kind"][tokens["problem"] < 3] = "copy"
    resampled = script.resample_problems(5, 200, seed=0)
    means = []
    shares = []
    for times in resampled.astype(int):
        drawn = {name: np.repeat(values, times[tokens["problem"]]) for name, values in tokens.items()}
        size = np.abs(drawn["dlogp"][drawn["source"] == "rlvr"])
        of_choices = size[drawn["kind"][drawn["source"] == "rlvr"] == "choice"]
        shares.append(of_choices.sum() / size.sum())
        if len(of_choices) > 0:
            means.append(of_choices.mean())
    assert len(means) < 200
    row = script.kinds_table(tokens, "rlvr", resampled)["choice"]
    assert row["share_of_abs_dlogp_ci95"] == pytest.approx(np.quantile(shares, [0.025, 0.975]))
    assert row["mean_abs_dlogp_ci95"] == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_without_a_mixed_group_figure_3a_claims_no_gradient(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(script.Figure, "savefig", lambda figure, path, dpi: figures.append(figure))
    tokens = {name: np.zeros(2) for name in ("adv", "coefficient", "logp_base", "logp_rlvr", "dlogp")}
    tables = {"gradient_bins": script.gradient_bins(tokens), "dlogp_bins": script.dlogp_bins(tokens)}
    script.draw_figure_3(tmp_path / "figure_3.png", tokens, tables, "")
    titles = [axis.get_title() for axis in figures[0].axes]
    assert "No gradient: no problem has right and wrong responses" in titles
    assert not any("0%" in title for title in titles)


def test_examples_pair_responses_to_one_problem_which_its_system_prompt_is_part_of():
    responses = []
    for system, source, right in (("a", "base", False), ("b", "base", True), ("a", "rlvr", False), ("b", "rlvr", True)):
        problem = {"prompt": "1+1?", "answer": "2", "system": system}
        responses.append(Response(problem, source, [1], "", right))
    picked = script.pick_examples(responses, 4)
    assert [response.problem["system"] for response in picked] == ["a", "a", "b", "b"]


KINDS = [  # c: choice, a: arithmetic, ~: connective, .: copy
    ("44+8-3,5*2?", r"44+8=52; 52-3=49 so 5*2=10 then \boxed{49,10}<|im_end|>", "c...caa~c....aa~c...aa~........"),
    ("44+8-3,5*2?", r"44+8-3=49; \boxed{49,10}<|im_end|>", "c...c..aa~caaaaa.."),  # no choice at the second =
    ("44+8-3,5*2?", r"\boxed{49,10}<|im_end|>", "caaaaa.."),
    ("44+8-3*2,5*2?", r"44+8=52; 52-3", "c...caa~...."),  # cut by the length limit
]


@pytest.mark.parametrize(("prompt", "response", "expected"), KINDS)
def test_kinds_of_tokens(prompt, response, expected):
    pieces = re.findall(r"\\boxed\{|<\|im_end\|>|; | [a-z]+ |.", response)
    letters = {"choice": "c", "arithmetic": "a", "connective": "~", "copy": "."}
    assert "".join(letters[kind] for kind in script.token_kinds(prompt, pieces)) == expected
    assert set(script.token_kinds("What is 44+8-3?", pieces)) == {""}


# ---------------------------------------------------------------------------------------------------------- whole runs
def test_a_run_leaves_every_figure_and_number(finished):
    names = "histograms.png figure_3.png tokens.png tokens.html tokens.npz summary.json config.json responses.jsonl"
    assert {path.name for path in finished.iterdir()} == set(names.split())
    summary = json.loads((finished / "summary.json").read_text())
    for table, key in (("dlogp_bins", "share"), ("gradient_bins", "share"), ("gradient_bins", "mass")):
        assert sum(row[key] for row in summary[table].values()) == pytest.approx(1)
    for name in ("kinds_base", "kinds_rlvr"):
        assert sum(row["share"] for row in summary[name].values()) == pytest.approx(1)
    for row in summary["histograms"].values():
        assert 0 <= row["auc_ci95"][0] <= row["auc"] <= row["auc_ci95"][1] <= 1
    data = np.load(finished / "tokens.npz")
    assert {len(data[name]) for name in data} == {sum(row["tokens"] for row in summary["dlogp"].values())}


def test_the_mean_dlogp_is_a_kl_in_expectation(finished):
    data = np.load(finished / "tokens.npz")
    for source, expected in (("rlvr", data["kl_rlvr_base"]), ("base", -data["kl_base_rlvr"])):
        noise = (data["dlogp"] - expected)[data["source"] == source]  # a martingale difference
        assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(len(noise))


def test_every_token_has_the_metrics_of_its_place(finished):
    """tokens.npz against scores of single responses: micro-batches are sorted by length, and put back in order."""
    data = np.load(finished / "tokens.npz")
    rows = read_rows(finished / "responses.jsonl")
    for source in script.SOURCES:
        model = script.load_model(f"tiny/{source}", "cpu")
        for i, row in enumerate(rows):
            of_response = data["response"] == i
            tokens, mask = pad_responses([Response(row, source, row["response_ids"], "", False)])
            with torch.no_grad():
                logp, _ = dapo.token_logprobs(model, tokens, mask)
            assert data["response_ids"][of_response].tolist() == row["response_ids"]
            assert set(data["source"][of_response]) == {row["source"]}
            assert np.allclose(data[f"logp_{source}"][of_response], logp[mask == 1].numpy(), atol=1e-4)


def test_advantages_are_those_of_groups_of_the_rlvr_model(finished):
    data = np.load(finished / "tokens.npz")
    groups = {}
    for i, row in enumerate(read_rows(finished / "responses.jsonl")):
        of_response = data["response"] == i
        assert len(set(data["adv"][of_response])) == 1
        if row["source"] == "rlvr":
            groups.setdefault(row["prompt"], []).append((row["right"], data["adv"][of_response][0]))
    found = []
    expected = []
    for group in groups.values():
        found.append([adv for _, adv in group])
        expected.append([float(right) for right, _ in group])
    assert np.allclose(found, dapo.group_advantages(torch.tensor(expected)).numpy()) and np.any(found)
    assert not data["adv"][data["source"] == "base"].any()
    assert np.allclose(data["coefficient"], np.abs(data["adv"]) * 2 * (1 - np.exp(data["logp_rlvr"])), atol=1e-6)


def test_responses_from_a_file_give_the_same_tokens(finished, tmp_path):
    bare = []
    for row in read_rows(finished / "responses.jsonl"):
        bare.append({key: row[key] for key in ("prompt", "response", "source", "answer")})
    script.write_jsonl(tmp_path / "mine.jsonl", bare)
    out = run(f"{QUICK} --responses {tmp_path / 'mine.jsonl'}", tmp_path / "run")
    whole = np.load(finished / "tokens.npz")
    given = np.load(out / "tokens.npz")
    assert all(np.array_equal(whole[name], given[name]) for name in whole)


def test_a_drawn_token_that_also_stands_for_unknown_text_is_read_again(finished, tmp_path):
    """SmolLM2 has <|endoftext|> for both. As text it is unknown; as an id it was drawn."""
    tokenizer = script.load_tokenizer(ROOT / "tiny" / "rlvr")
    rows = read_rows(finished / "responses.jsonl")
    rows[0]["response_ids"] = [tokenizer.unk_token_id, tokenizer.eos_token_id]
    script.write_jsonl(tmp_path / "mine.jsonl", rows)
    found = script.read_responses(tmp_path / "mine.jsonl", tokenizer, 256, "exact")
    assert found[0].ids == rows[0]["response_ids"]
    rows[0] = {**rows[0], "response": "\u20ac"}
    rows[0].pop("response_ids")
    script.write_jsonl(tmp_path / "mine.jsonl", rows)
    with pytest.raises(ValueError, match="line 1: want a response"):
        script.read_responses(tmp_path / "mine.jsonl", tokenizer, 256, "exact")


def test_resume_after_a_kill_gives_the_same_run(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    whole = (finished / "responses.jsonl").read_text()
    (out / "responses.jsonl").write_text("".join(whole.splitlines(keepends=True)[:12]))  # the first batch
    with pytest.raises(ValueError, match="--resume goes on with it"):
        run(QUICK, out)
    with pytest.raises(ValueError, match="began with --seed 1"):
        run(f"{QUICK} --resume --seed 2", out)
    run(f"{QUICK} --resume", out)
    assert (out / "responses.jsonl").read_text() == whole
    assert (out / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_identical_models_and_one_response_of_one_token(tmp_path):
    out = run("--base tiny/rlvr --problems 1 --samples 1 --bootstrap 2 --max-response 1 --device cpu", tmp_path / "run")
    data = np.load(out / "tokens.npz")
    assert not data["dlogp"].any() and not data["kl"].any()
    assert "nan" not in (out / "summary.json").read_text().lower()


def test_check_prints_the_error_of_the_lemma_or_fails(tmp_path, capsys, monkeypatch):
    run("--check", tmp_path / "run")
    assert "on 2000 tokens: largest relative error" in capsys.readouterr().out and not (tmp_path / "run").exists()
    monkeypatch.setattr(script, "gradient_coefficient", lambda logp, adv, ratio: (ratio * adv).abs() * (1 - logp.exp()))
    with pytest.raises(ValueError, match="fails"):
        run("--check", tmp_path / "run")


ROW = '{"prompt": "1+1?", "answer": "2"'
BAD_RESPONSES = {
    "not json": "line 2: want",
    ROW + "}": 'line 2: want "response"',
    ROW + ', "response": "2", "source": "me"}': 'line 2: want "response"',
    ROW + ', "response": "two", "source": "base"}': "line 2: want a response of 1 to ",
    ROW + ', "response": "2", "source": "base", "response_ids": [99999]}': "line 2: want a response of 1 to ",
    ROW + ', "response": "2", "source": "rlvr"}': "want responses of both sources",
}


@pytest.mark.parametrize("line", BAD_RESPONSES)
def test_bad_responses_are_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{ROW}, "response": "2", "source": "rlvr"}}\n{line}\n')
    with pytest.raises(ValueError, match=re.escape(f"{path}") + ".*" + re.escape(BAD_RESPONSES[line])):
        script.read_responses(path, AutoTokenizer.from_pretrained("tiny/rlvr"), 22, "exact")


def test_a_response_behind_a_prompt_that_is_left_out_has_the_number_of_its_line(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    too_long = '{"prompt": "1+1+1+1+1+1+1+1+1+1+1+1?", "answer": "2"}\n'
    good = f'{ROW}, "response": "2", "source": "base"}}\n{ROW}, "response": "2", "source": "rlvr"}}\n'
    tokenizer = AutoTokenizer.from_pretrained("tiny/rlvr")
    path.write_text(too_long + good)
    assert len(script.read_responses(path, tokenizer, 22, "exact")) == 2
    assert "left out 1 of 3 responses" in capsys.readouterr().out
    path.write_text(too_long + good + ROW + "}")
    with pytest.raises(ValueError, match="line 4: want"):
        script.read_responses(path, tokenizer, 22, "exact")


BAD_FLAGS = {
    "--responses nowhere.jsonl": "no such file",
    "--base tiny/nope": "--base tiny/nope: ",
    "--max-response 250": "tiny/test.jsonl: no prompt fits into 6 tokens",
    "--resume": "holds no run",
    "--out README.md/run": "Not a directory",
    "--samples 0": "--samples 0: want a number above 0",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_input_is_one_sentence(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["delta_logp.py", *QUICK.split(), "--out", str(tmp_path / "run"), *flags.split()])
    with pytest.raises(SystemExit, match=f"^error: .*{BAD_FLAGS[flags]}") as error:
        runpy.run_path("delta_logp.py", run_name="__main__")
    assert "\n" not in error.value.code and not (tmp_path / "run").exists()


def test_the_page_shows_every_token_with_its_numbers(finished, tmp_path):
    page = (finished / "tokens.html").read_text()
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|<script", page)
    response = Response({"prompt": "<b>", "answer": "1"}, "base", [1, 2, 3], "", False, ["<i>", '"', "\n"])
    for name in ("logp_base", "logp_rlvr", *script.METRICS):
        response.scores[name] = np.array([-9.0, 0.5, 9.0])
    script.write_page(tmp_path / "page.html", [response])
    page = (tmp_path / "page.html").read_text()
    assert "<i>" not in page and "<b>" not in page.partition("<h2>")[2] and page.count('tabindex="0"') == 3
    assert "dlogp        +0.5000" in page and "token 2: \\n (id 3)" in page
