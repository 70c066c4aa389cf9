"""delta_logp.py against slow, plain computations, and on models whose answer is known."""

import ast
import contextlib
import copy
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
from delta_logp import auc, entropy, histogram_overlap, kl_divergence, lemma_error, score_pair, token_kinds

ROOT = Path(__file__).resolve().parent.parent
PROMPTS, RESPONSES = [[5, 6, 7], [8], [9, 10, 11, 12]], [[13, 14, 1], [15, 16, 17, 18, 19, 1], [20]]


def rows_of(prompts=PROMPTS, responses=RESPONSES):
    return [{"ids": a, "response_ids": b} for a, b in zip(prompts, responses, strict=True)]


def by_hand(base, rlvr, token):  # two rows of logits, in float64 and plain Python
    p, q = ([math.exp(x - max(row)) for x in row] for row in (base, rlvr))
    p, q = ([x / sum(row) for x in row] for row in (p, q))
    forward = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    backward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    logp = {"logp_base": math.log(p[token]), "logp_rlvr": math.log(q[token]), "dlogp": math.log(q[token] / p[token])}
    entropies = {f"entropy_{name}": -sum(x * math.log(x) for x in row) for name, row in (("base", p), ("rlvr", q))}
    return logp | entropies | {"kl_rlvr_base": forward, "kl_base_rlvr": backward, "kl": (forward + backward) / 2}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [2, 512])
def test_1_4_scores_equal_a_float64_loop_over_prefixes(temperature, chunk):
    base, rlvr = random_qwen(seed=0), random_qwen(seed=1)
    found = score_pair(base, rlvr, rows_of(), temperature, n_vocab=36, chunk=chunk)
    doubles = [copy.deepcopy(model).double() for model in (base, rlvr)]
    k = 0
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        for t, token in enumerate(response):
            prefix = torch.tensor([prompt + response[:t]])
            with torch.no_grad():
                rows = [model(input_ids=prefix).logits[0, -1, :36] / temperature for model in doubles]
            for name, value in by_hand(*(row.tolist() for row in rows), token).items():
                assert found[name][k].item() == pytest.approx(value, abs=2e-4), (name, k)
            k += 1


def test_32_identical_models_differ_by_exactly_0_and_swapping_flips_the_sign():
    base, rlvr, rows = random_qwen(seed=0), random_qwen(seed=1), rows_of()
    same = score_pair(base, copy.deepcopy(base), rows)
    for name in ("dlogp", "kl", "kl_rlvr_base", "kl_base_rlvr"):
        assert torch.equal(same[name], torch.zeros(10)), name
    there, back = score_pair(base, rlvr, rows), score_pair(rlvr, base, rows)
    assert torch.equal(there["dlogp"], -back["dlogp"]) and there["dlogp"].abs().min() > 0
    assert torch.equal(there["kl_rlvr_base"], back["kl_base_rlvr"])
    assert torch.equal(there["entropy_base"], back["entropy_rlvr"])


def test_ids_without_probability():
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.75, 0.0]).log()
    assert kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert entropy(p).item() == pytest.approx(math.log(2))
    assert kl_divergence(torch.tensor([0.5, 0.25, 0.25]).log(), q) == math.inf  # takes what q never does
    assert kl_divergence(torch.tensor([0.0, -200.0]), torch.tensor([0.0, -torch.inf])) == 0  # exp(-200) is 0 in fp32
    assert script.delta_logp(p, q, torch.tensor(1)).item() == pytest.approx(math.log(1.5))


def test_logits_exist_for_a_chunk_of_tokens_at_a_time_and_in_fp32(monkeypatch):
    seen, plain = [], torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, dim: seen.append(x) or plain(x, dim))
    found = score_pair(random_qwen(seed=0).bfloat16(), random_qwen(seed=1).bfloat16(), rows_of(), chunk=4)
    assert [len(x) for x in seen] == [4, 4, 4, 4, 2, 2]
    assert {x.dtype for x in (*seen, *found.values())} == {torch.float32}


def test_histogram_overlap():
    a, b, ones = np.array([0.0, 0.0, 1.0, 3.0]), np.array([0.0, 2.0, 3.0, 3.0]), np.ones(4)
    assert histogram_overlap(a, a, ones, ones, np.arange(5)) == pytest.approx(1)
    for edges in ([0, 1, 2, 3, 4], [0.5, 1.5, 2.5]):  # the second: values beyond the edges, in the outermost bins
        assert histogram_overlap(a, b, ones, ones, np.array(edges)) == pytest.approx(0.25 + 0.25)
    weights = np.array([3, 1, 2, 1])
    repeated = histogram_overlap(np.repeat(a, weights), b, np.ones(7), ones, np.arange(5))
    assert histogram_overlap(a, b, weights, ones, np.arange(5)) == pytest.approx(repeated)


def test_auc_equals_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(1, 8, 30).astype(float)  # with ties
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2

    def plain(a, b):
        return auc(a, b, np.ones(len(a)), np.ones(len(b)))

    assert plain(a, b) == pytest.approx(pairs) and plain(b, a) == pytest.approx(1 - pairs)
    assert plain(a, a) == pytest.approx(0.5) and plain(b + 100, a) == 1
    wa, wb = rng.integers(0, 3, 40), rng.integers(0, 3, 30)
    assert auc(a, b, wa, wb) == pytest.approx(plain(np.repeat(a, wa), np.repeat(b, wb)))


def test_bootstrap_draws_problems_not_tokens_or_responses():
    """100 tokens of a response, or responses to a problem, that are all alike are worth one: no interval shrinks."""
    rng, source = np.random.default_rng(0), np.repeat(["base", "rlvr"], 50)
    tokens = {"source": source, "response": np.arange(100), "dlogp": rng.normal(size=100) + (source == "rlvr")}
    tokens |= {"problem": np.tile(np.arange(50), 2)}
    alone = script.compare_sources(tokens, "dlogp", np.arange(-4, 5), 400, 0)
    many = script.compare_sources({k: np.repeat(x, 100) for k, x in tokens.items()}, "dlogp", np.arange(-4, 5), 400, 0)
    assert all(many[name] == pytest.approx(value) for name, value in alone.items())
    repeated = {k: np.repeat(x, 100) for k, x in tokens.items()} | {"response": np.arange(10_000)}
    found = script.compare_sources(repeated, "dlogp", np.arange(-4, 5), 400, 0)
    assert all(found[name] == pytest.approx(value) for name, value in alone.items())
    assert np.diff(alone["auc_ci95"]) > 0.1
    assert alone["auc"] == auc(tokens["dlogp"][50:], tokens["dlogp"][:50], np.ones(50), np.ones(50))
    assert alone["auc"] == alone["auc_response"] and alone["auc_ci95"] == alone["auc_response_ci95"]


@pytest.mark.parametrize("name", ["delta_logp", "entropy", "kl_divergence", "gradient_coefficient"])
def test_maths_works_pasted_alone(name):
    source, pasted = (ROOT / "delta_logp.py").read_text(), {"torch": torch}
    (node,) = [x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef) and x.name == name]
    exec(ast.get_source_segment(source, node), pasted)
    p, q = (torch.log_softmax(torch.randn(3, 5), -1) for _ in range(2))
    given = {"delta_logp": (p, q, torch.arange(3)), "entropy": (p,)}.get(name, (p, q))
    assert torch.isfinite(pasted[name](*given)).all()


def test_the_lemma_holds_and_a_wrong_coefficient_does_not(monkeypatch):
    logits, tokens = 3 * torch.randn(20, 11), torch.randint(11, (20,))
    assert lemma_error(logits, tokens) < 1e-6
    assert script.gradient_coefficient(torch.tensor(-1e-9), torch.tensor(1.0)).item() == pytest.approx(2e-9)
    monkeypatch.setattr(script, "gradient_coefficient", lambda logp, adv, ratio: (ratio * adv).abs() * (1 - logp.exp()))
    assert lemma_error(logits, tokens) > 0.5


def test_held_by_top():
    values = np.array([0.0, -3.0, 1.0, 0.0])
    assert [script.held_by_top(values, share) for share in (0, 0.25, 0.5, 1)] == [0, 0.75, 1, 1]
    assert script.held_by_top(np.zeros(4), 0.5) == 0


LEAPS = [  # f: fork, a: arithmetic, ~: connective, .: copy
    ("44+8-3,5*2?", r"44+8=52; 52-3=49 so 5*2=10 then \boxed{49,10}<|im_end|>", "f...faa~f....aa~f...aa~........"),
    ("44+8-3,5*2?", r"44+8-3=49; \boxed{49,10}<|im_end|>", "f...f..aa~faaaaa.."),  # the second = is forced
    ("44+8-3,5*2?", r"\boxed{49,10}<|im_end|>", "faaaaa.."),
    ("44+8-3*2,5*2?", r"44+8=52; 52-3", "f...faa~...."),  # cut by the length limit
]


@pytest.mark.parametrize(("prompt", "response", "expected"), LEAPS)
def test_forks_are_where_a_leap_is_chosen(prompt, response, expected):
    pieces = re.findall(r"\\boxed\{|<\|im_end\|>|; | [a-z]+ |.", response)
    assert "".join({"copy": ".", "connective": "~"}.get(k, k[0]) for k in token_kinds(prompt, pieces)) == expected
    assert {*token_kinds("What is 44+8-3?", pieces)} == {""}


QUICK = ["--problems", "6", "--samples", "3", "--gen-batch", "4", "--bootstrap", "20"]


def run(*flags):
    with contextlib.chdir(ROOT):
        script.main(script.parse_args(list(map(str, flags))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("delta") / "run"
    run(*QUICK, "--out", out)
    return out


def test_a_run_leaves_every_figure_and_number(finished):
    names = "histograms.png figure_3.png tokens.png tokens.html tokens.npz summary.json config.json responses.jsonl"
    assert {path.name for path in finished.iterdir()} == {*names.split()}
    summary = json.loads((finished / "summary.json").read_text())
    for table, key in (("dlogp_bins", "share"), ("gradient_bins", "share"), ("gradient_bins", "mass")):
        assert sum(row[key] for row in summary[table].values()) == pytest.approx(1)
    for row in summary["histograms"].values():
        assert 0 <= row["auc_ci95"][0] <= row["auc"] <= row["auc_ci95"][1] <= 1
    data, n_tokens = np.load(finished / "tokens.npz"), sum(row["tokens"] for row in summary["dlogp"].values())
    assert {len(data[name]) for name in data} == {n_tokens}


def test_32_mean_dlogp_is_kl_in_expectation(finished):
    data = np.load(finished / "tokens.npz")
    for source, expected in (("rlvr", data["kl_rlvr_base"]), ("base", -data["kl_base_rlvr"])):
        noise = (data["dlogp"] - expected)[data["source"] == source]  # a martingale difference
        assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(len(noise))


def test_every_token_has_the_metrics_of_its_place(finished):
    """tokens.npz against log-probs of single responses: micro-batches are sorted by length, and put back in order."""
    data = np.load(finished / "tokens.npz")
    rows = [json.loads(line) for line in (finished / "responses.jsonl").read_text().splitlines()]
    for name in script.SOURCES:
        model = script.AutoModelForCausalLM.from_pretrained(ROOT / "tiny" / name)
        for i, row in enumerate(rows):
            tokens, of = torch.tensor([row["ids"] + row["response_ids"]]), data["response"] == i
            mask = (torch.arange(tokens.shape[1]) >= len(row["ids"]))[None] * 1.0
            with torch.no_grad():
                alone = dapo.token_logprobs(model, tokens, mask)
            assert data["response_ids"][of].tolist() == row["response_ids"]
            assert set(data["source"][of]) == {row["source"]}
            assert np.allclose(data[f"logp_{name}"][of], alone[0][0, len(row["ids"]) :].numpy(), atol=1e-4)


def test_sampling_is_that_of_rollout_in_dapo():
    model, tokenizer = (cls.from_pretrained(ROOT / "tiny/rlvr") for cls in (script.AutoModelForCausalLM, AutoTokenizer))
    prompts = [p["ids"] for p in dapo.read_problems(ROOT / "tiny/test.jsonl", tokenizer, 99)[:5]]
    ends, n_vocab = [tokenizer.eos_token_id], len(tokenizer)
    ours = script.sample(model, prompts, 3, 60, ends, n_vocab, 1.0, torch.Generator().manual_seed(4))
    theirs = dapo.rollout(model, prompts, 3, 60, ends, n_vocab, generator=torch.Generator().manual_seed(4))
    lengths = theirs["mask"].sum(1).int().tolist()
    assert ours == [row[:n] for row, n in zip(theirs["tokens"].tolist(), lengths, strict=True)]


def test_responses_from_a_file_give_the_same_tokens(finished, tmp_path):
    rows = [json.loads(line) for line in (finished / "responses.jsonl").read_text().splitlines()]
    bare = [{key: row[key] for key in ("prompt", "response", "source", "answer")} for row in rows]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in bare))
    run(*QUICK, "--responses", path, "--out", tmp_path / "run")
    one, other = np.load(finished / "tokens.npz"), np.load(tmp_path / "run" / "tokens.npz")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_29_resume_after_a_kill_gives_the_same_run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    whole = (finished / "responses.jsonl").read_text()
    (tmp_path / "run" / "responses.jsonl").write_text("".join(whole.splitlines(keepends=True)[:12]))  # the first batch
    with pytest.raises(SystemExit, match="--resume goes on with one"):
        run(*QUICK, "--out", tmp_path / "run")
    run(*QUICK, "--out", tmp_path / "run", "--resume")
    assert (tmp_path / "run" / "responses.jsonl").read_text() == whole
    assert (tmp_path / "run" / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_identical_models_and_one_response_of_one_token(tmp_path):
    flags = ["--base", "tiny/rlvr", "--problems", "1", "--samples", "1", "--bootstrap", "2", "--max-response", "1"]
    run(*flags, "--out", tmp_path / "run")
    data = np.load(tmp_path / "run" / "tokens.npz")
    assert not data["dlogp"].any() and not data["kl"].any()
    assert "nan" not in (tmp_path / "run" / "summary.json").read_text().lower()


def test_check_prints_the_error_of_the_lemma(tmp_path, capsys):
    run("--check", "--out", tmp_path / "run")
    assert "largest relative error" in capsys.readouterr().out and not (tmp_path / "run").exists()


ROW = '{"prompt": "1+1?", "answer": "2"'
BAD = {
    "not json": "line 2: want",
    ROW + "}": 'line 2: want "response"',
    ROW + ', "response": "2", "source": "me"}': 'line 2: want "response"',
    ROW + ', "response": "two", "source": "base"}': "line 2: want a response of",
    ROW + ', "response": "2", "source": "rlvr"}': "want responses of both sources",
}


@pytest.mark.parametrize(("line", "message"), BAD.items())
def test_bad_responses_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(ROW + ', "response": "2", "source": "rlvr"}\n' + line + "\n")
    with pytest.raises(SystemExit, match=re.escape(message)):
        script.read_responses(path, AutoTokenizer.from_pretrained(ROOT / "tiny" / "rlvr"), 22, "exact")


FLAGS = {
    "--responses nowhere.jsonl": "No such file",
    "--base tiny/nope": "huggingface.co",
    "--max-response 250": "tiny/test.jsonl, line 1: the prompt exceeds",
    "--resume": "holds no run",
    "--samples 0": "must be above 0",
}


@pytest.mark.parametrize(("flags", "message"), FLAGS.items())
def test_bad_input_is_one_sentence(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["delta_logp.py", *QUICK, "--out", str(tmp_path / "x"), *flags.split()])
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as error:
        runpy.run_path("delta_logp.py", run_name="__main__")
    assert "\n" not in error.value.code


def test_the_page_shows_every_token_with_its_numbers(finished):
    page = (finished / "tokens.html").read_text()
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|<script", page)
    rows = [{"title": "<b>", "pieces": ["<i>", '"', "7"], "response_ids": [1, 2, 3]}]
    for name in ("logp_base", "logp_rlvr", *script.METRICS):
        rows[0][name] = np.array([-9.0, 0.5, 9.0])
    script.write_page(finished / "probe.html", rows)
    page = (finished / "probe.html").read_text()
    assert "<i>" not in page and "<b>" not in page.partition("<h2>")[2] and page.count('tabindex="0"') == 3
    assert "dlogp        +0.5000" in page and "token 2: 7 (id 3)" in page
