"""delta_logp.py against slow, plain computations, and on models whose answer is known."""

import ast
import contextlib
import copy
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_qwen
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer

import dapo
import delta_logp as script
from delta_logp import (
    auc,
    bootstrap_interval,
    delta_logp,
    entropy,
    gradient_coefficient,
    held_by_top,
    histogram_overlap,
    kl_divergence,
    lemma_error,
    read_responses,
    score_pair,
    token_kinds,
)

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("base", "rlvr")
PROMPTS, RESPONSES = [[5, 6, 7], [8], [9, 10, 11, 12]], [[13, 14, 1], [15, 16, 17, 18, 19, 1], [20]]


def rows_of(prompts=PROMPTS, responses=RESPONSES):
    return [{"ids": a, "response_ids": b} for a, b in zip(prompts, responses, strict=True)]


def by_hand(base, rlvr, token):
    """The metrics of one token from two rows of logits, in float64 and plain Python."""
    p, q = ([math.exp(x - max(row)) for x in row] for row in (base, rlvr))
    p, q = ([x / sum(row) for x in row] for row in (p, q))
    forward = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    backward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return {
        "logp_base": math.log(p[token]),
        "logp_rlvr": math.log(q[token]),
        "dlogp": math.log(q[token] / p[token]),
        "entropy_base": -sum(x * math.log(x) for x in p),
        "entropy_rlvr": -sum(x * math.log(x) for x in q),
        "kl_rlvr_base": forward,
        "kl_base_rlvr": backward,
        "kl": (forward + backward) / 2,
    }


def test_18_bf16_models_are_scored_in_fp32():
    base, rlvr = random_qwen(seed=0).bfloat16(), random_qwen(seed=1).bfloat16()
    found = score_pair(base, rlvr, rows_of())
    assert all(value.dtype == torch.float32 for value in found.values())
    logits = [model(torch.tensor([PROMPTS[1] + RESPONSES[1]])).logits[0, :-1] for model in (base, rlvr)]
    p, q = (torch.log_softmax(x.double(), -1) for x in logits)
    kl = (q.exp() * (q - p)).sum(-1).float()
    assert torch.allclose(found["kl_rlvr_base"][3:9], kl, rtol=0.2, atol=0.05)  # bf16 states, padded and not


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
    assert k == len(found["dlogp"])


def test_32_identical_models_differ_by_exactly_0_and_swapping_flips_the_sign():
    base, rlvr = random_qwen(seed=0), random_qwen(seed=1)
    rows = rows_of()
    same = score_pair(base, copy.deepcopy(base), rows)
    for name in ("dlogp", "kl", "kl_rlvr_base", "kl_base_rlvr"):
        assert torch.equal(same[name], torch.zeros(10)), name
    there, back = score_pair(base, rlvr, rows), score_pair(rlvr, base, rows)
    assert torch.equal(there["dlogp"], -back["dlogp"]) and there["dlogp"].abs().min() > 0
    assert torch.equal(there["kl_rlvr_base"], back["kl_base_rlvr"])
    assert torch.equal(there["entropy_base"], back["entropy_rlvr"])
    for name in ("kl", "kl_rlvr_base", "kl_base_rlvr", "entropy_base"):
        assert (there[name] >= 0).all()


def test_32_tokens_sum_to_the_sequence():
    base, rlvr = random_qwen(seed=0), random_qwen(seed=1)
    rows = rows_of()
    per_token = score_pair(base, rlvr, rows)["dlogp"].split([len(ids) for ids in RESPONSES])
    for prompt, response, part in zip(PROMPTS, RESPONSES, per_token, strict=True):
        sequence = []
        for model in (base, rlvr):
            ids = torch.tensor([prompt + response])
            labels = torch.tensor([[-100] * len(prompt) + response])
            with torch.no_grad():
                sequence.append(-model(input_ids=ids, labels=labels).loss.item() * len(response))
        assert part.sum().item() == pytest.approx(sequence[1] - sequence[0], abs=1e-4)


def test_ids_without_probability():
    inf = math.inf
    p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.75, 0.0]).log()
    assert p[2] == -inf and kl_divergence(p, q).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert entropy(p).item() == pytest.approx(math.log(2))
    assert kl_divergence(torch.tensor([0.5, 0.25, 0.25]).log(), q) == inf  # takes what q never does
    assert delta_logp(p, q, torch.tensor(1)).item() == pytest.approx(math.log(1.5))


def test_no_tensor_exceeds_chunk_times_vocabulary():
    """With 151,936 tokens in the vocabulary, 300 scored tokens and a chunk of 32."""
    vocabulary, chunk = 151_936, 32
    base, rlvr = random_qwen(vocabulary, seed=0), random_qwen(vocabulary, seed=1)
    tokens = torch.randint(vocabulary, (3, 110)).tolist()
    rows = rows_of([x[:10] for x in tokens], [x[10:] for x in tokens])

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor) and x.data_ptr() not in weights:  # views of the weights cost nothing
                    self.numel = max(self.numel, x.numel())
            return out

    weights = {p.data_ptr() for model in (base, rlvr) for p in model.parameters()}
    with Largest() as largest:
        found = score_pair(base, rlvr, rows, chunk=chunk)
    assert len(found["dlogp"]) == 300
    assert largest.numel <= chunk * vocabulary


def test_histogram_overlap():
    a, b = np.array([0.0, 0.0, 1.0, 3.0]), np.array([0.0, 2.0, 3.0, 3.0])
    assert histogram_overlap(a, a, np.arange(5)) == pytest.approx(1)
    assert histogram_overlap(a, b, np.array([0, 1, 2, 3, 4])) == pytest.approx(0.25 + 0.25)
    assert histogram_overlap(a, b, np.array([0.5, 1.5, 2.5])) == pytest.approx(0.25 + 0.25)  # outermost bins
    weights = np.array([3.0, 1.0, 2.0, 1.0])
    doubled = histogram_overlap(np.repeat(a, weights.astype(int)), b, np.arange(5))
    assert histogram_overlap(a, b, np.arange(5), weights_a=weights) == pytest.approx(doubled)


def test_auc_equals_all_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(1, 8, 30).astype(float)  # with ties
    pairs = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
    assert auc(a, b) == pytest.approx(pairs) and auc(b, a) == pytest.approx(1 - pairs)
    assert auc(a, a) == pytest.approx(0.5) and auc(b + 100, a) == 1
    wa, wb = rng.integers(0, 3, 40), rng.integers(0, 3, 30)
    weighted = auc(a, b, wa.astype(float), wb.astype(float))
    assert weighted == pytest.approx(auc(np.repeat(a, wa), np.repeat(b, wb)))


def test_bootstrap_draws_responses_not_tokens():
    """100 tokens of a response that are all alike are worth one: the interval must not shrink."""

    def gap(a, b, wa, wb):
        return np.average(a, weights=wa) - np.average(b, weights=wb)

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=50), rng.normal(size=50)
    owner = np.arange(50)
    alone = bootstrap_interval(gap, a, b, owner, owner, 400, 0)
    many = bootstrap_interval(
        gap, np.repeat(a, 100), np.repeat(b, 100), np.repeat(owner, 100), np.repeat(owner, 100), 400, 0
    )
    assert alone == pytest.approx(many) and alone[1] - alone[0] == pytest.approx(4 * math.sqrt(2 / 50), rel=0.2)


def test_gradient_coefficient_is_the_l1_norm_that_autograd_finds():
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    tokens, adv, old = torch.randint(7, (5,)), torch.randn(5).double(), -2 * torch.rand(5).double()
    logp = torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0]
    ratio = (logp - old).exp()
    (gradient,) = torch.autograd.grad((ratio * adv).sum(), logits)
    found = gradient_coefficient(logp.detach(), adv, ratio.detach())
    assert torch.allclose(gradient.abs().sum(-1), found, rtol=1e-12)
    assert gradient_coefficient(torch.tensor(-1e-9), torch.tensor(1.0)).item() == pytest.approx(2e-9)


@pytest.mark.parametrize("name", ["delta_logp", "entropy", "kl_divergence", "gradient_coefficient"])
def test_maths_works_pasted_alone(name):
    """With nothing else but `import torch`."""
    source, pasted = (ROOT / "delta_logp.py").read_text(), {"torch": torch}
    (node,) = [x for x in ast.parse(source).body if isinstance(x, ast.FunctionDef) and x.name == name]
    exec(ast.get_source_segment(source, node), pasted)
    p, q = (torch.log_softmax(torch.randn(3, 5), -1) for _ in range(2))
    given = {"delta_logp": (p, q, torch.arange(3)), "entropy": (p,)}.get(name, (p, q))
    assert torch.isfinite(pasted[name](*given)).all()


def test_lemma_check_catches_a_wrong_coefficient(monkeypatch):
    logits, tokens = 3 * torch.randn(20, 11), torch.randint(11, (20,))
    assert lemma_error(logits, tokens) < 1e-6
    monkeypatch.setattr(script, "gradient_coefficient", lambda logp, adv, ratio: (ratio * adv).abs() * (1 - logp.exp()))
    assert lemma_error(logits, tokens) > 0.5


def test_held_by_top():
    values = np.array([0.0, -3.0, 1.0, 0.0])
    assert held_by_top(values, [0, 0.25, 0.5, 1]).tolist() == [0, 0.75, 1, 1]
    assert held_by_top(np.zeros(4), [0.5]).tolist() == [0]


def pieces_of(text):
    return re.findall(r"\\boxed\{|<\|im_end\|>|.", text)


@pytest.mark.parametrize(
    ("prompt", "response", "forks", "arithmetic"),
    [
        ("44+8-3?", r"44+8=52;52-3=49;\boxed{49}<|im_end|>", "4   =              ", "     52      49 "),
        ("44+8-3?", r"44+8-3=49;\boxed{49}<|im_end|>", "4   -", "       49"),  # the second = is forced
        ("44+8-3?", r"\boxed{49}<|im_end|>", "B", " 49"),
        ("44+8-3*2?", r"44+8=52;\boxed{98}<|im_end|>", "4   =   B", "     52  98"),
        ("44+8-3*2?", r"44+8=52;52-3", "4   =", "     52"),  # cut by the length limit
    ],
)
def test_forks_are_where_a_leap_is_chosen(prompt, response, forks, arithmetic):
    pieces = pieces_of(response)
    kinds = token_kinds(prompt, pieces)
    assert len(kinds) == len(pieces)
    # the later start of a step, "5" of "52-3", is a fork as well: an operation is left to do
    expected = {i for i, c in enumerate(forks) if c != " "}
    steps = [i for i in range(1, len(pieces)) if pieces[i - 1] == ";"]
    left = len(re.findall(r"[-+*]", prompt))
    for i in steps:
        done = len(re.findall(r"[-+*]", "".join(pieces[:i])))
        if done < left and (pieces[i].startswith("\\") or "=" in pieces[i:]):
            expected.add(i)
    assert {i for i, kind in enumerate(kinds) if kind == "fork"} == expected
    assert {i for i, kind in enumerate(kinds) if kind == "arithmetic"} == {
        i for i, c in enumerate(arithmetic) if c != " "
    }
    assert {*token_kinds("What is 44+8-3?", pieces)} == {""}


# ---------------------------------------------------------------------------------------------------------- whole runs
QUICK = ["--problems", "6", "--samples", "3", "--gen-batch", "4", "--bootstrap", "20"]


def run(*flags):
    """As on the command line, but in this process, which has torch loaded already."""
    with contextlib.chdir(ROOT):
        return script.main(script.parse_args(list(map(str, flags))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("delta") / "run"
    assert run(*QUICK, "--out", out) == 0
    return out


def test_a_run_leaves_every_figure_and_number(finished):
    names = {path.name for path in finished.iterdir()}
    figures = {"histograms.png", "probabilities.png", "gradient.png", "sparsity.png", "tokens.png"}
    assert names == figures | {"tokens.html", "tokens.npz", "summary.json", "config.json", "responses.jsonl"}
    summary = json.loads((finished / "summary.json").read_text())
    shares = [row["share"] for row in summary["dlogp_bins"].values()]
    assert sum(shares) == pytest.approx(1)
    for key in ("share", "mass"):
        assert sum(row[key] for row in summary["gradient_bins"].values()) == pytest.approx(1)
    for row in summary["histograms"].values():
        low, high = row["auc_ci95"]
        assert 0 <= low <= row["auc"] <= high <= 1
    data = np.load(finished / "tokens.npz")
    assert len({len(data[name]) for name in data}) == 1 and len(data["dlogp"]) == sum(
        row["tokens"] for row in summary["dlogp"].values()
    )
    for name, row in summary["dlogp"].items():
        assert row["mean"] == pytest.approx(data["dlogp"][data["source"] == name].mean(), abs=1e-5)


def test_32_mean_dlogp_is_kl_in_expectation(finished):
    """Over RLVR's own tokens, E dlogp = KL(RLVR||base) at the same prefixes; over the base's, -KL(base||RLVR)."""
    data = np.load(finished / "tokens.npz")
    for source, sign, name in (("rlvr", 1, "kl_rlvr_base"), ("base", -1, "kl_base_rlvr")):
        of = data["source"] == source
        noise = data["dlogp"][of] - sign * data[name][of]  # a martingale difference
        assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(of.sum())


def test_every_token_has_the_metrics_of_its_place(finished):
    """tokens.npz against log-probs of single responses: micro-batches are sorted by length, and put back in order."""
    data = np.load(finished / "tokens.npz")
    rows = [json.loads(line) for line in (finished / "responses.jsonl").read_text().splitlines()]
    for name in SOURCES:
        model = script.AutoModelForCausalLM.from_pretrained(ROOT / "tiny" / name)
        for i, row in enumerate(rows):
            tokens, of = torch.tensor([row["ids"] + row["response_ids"]]), data["response"] == i
            with torch.no_grad():
                alone = dapo.token_logprobs(
                    model, tokens, (torch.arange(tokens.shape[1]) >= len(row["ids"]))[None] * 1.0
                )
            assert data["id"][of].tolist() == row["response_ids"] and set(data["source"][of]) == {row["source"]}
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
    (tmp_path / "run").mkdir()
    assert run(*QUICK, "--responses", path, "--out", tmp_path / "run") == 0
    one, other = np.load(finished / "tokens.npz"), np.load(tmp_path / "run" / "tokens.npz")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_29_resume_after_a_kill_gives_the_same_run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    whole = (finished / "responses.jsonl").read_text()
    (tmp_path / "run" / "responses.jsonl").write_text("".join(whole.splitlines(keepends=True)[:12]))  # the first batch
    with pytest.raises(SystemExit, match="--resume goes on with one"):
        run(*QUICK, "--out", tmp_path / "run")
    assert run(*QUICK, "--out", tmp_path / "run", "--resume") == 0
    assert (tmp_path / "run" / "responses.jsonl").read_text() == whole
    assert (tmp_path / "run" / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_identical_models_and_one_response_of_one_token(tmp_path):
    flags = ["--base", "tiny/rlvr", "--problems", "1", "--samples", "1", "--bootstrap", "2", "--max-response", "1"]
    assert run(*flags, "--out", tmp_path / "run") == 0
    data = np.load(tmp_path / "run" / "tokens.npz")
    assert not data["dlogp"].any() and not data["kl"].any()
    assert "nan" not in (tmp_path / "run" / "summary.json").read_text().lower()


def test_check_prints_the_error_of_the_lemma(tmp_path, capsys):
    assert run("--check", "--out", tmp_path / "run") == 0
    assert "largest relative error" in capsys.readouterr().out and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: want"),
        ('{"prompt": "1+1?", "answer": "2"}', 'line 2: want "response"'),
        ('{"prompt": "1+1?", "answer": "2", "response": "2", "source": "me"}', 'line 2: want "response"'),
        ('{"prompt": "1+1?", "answer": "2", "response": "two", "source": "base"}', "line 2: want a response of"),
        ('{"prompt": "1+1?", "answer": "2", "response": "2", "source": "rlvr"}', "want responses of both sources"),
    ],
)
def test_bad_responses_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "1+1?", "answer": "2", "response": "2", "source": "rlvr"}\n' + line + "\n")
    with pytest.raises(SystemExit, match=re.escape(message)):
        read_responses(path, AutoTokenizer.from_pretrained(ROOT / "tiny" / "rlvr"), 22, "exact")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--responses", "nowhere.jsonl"], "No such file"),
        (["--base", "tiny/nope"], "tiny/nope"),
        (["--max-response", "250"], "tiny/test.jsonl, line 1: the prompt exceeds"),
        (["--resume", "--out", "runs/nowhere"], "holds no run"),
        (["--samples", "0"], "must be above 0"),
    ],
)
def test_bad_input_is_one_sentence(flags, message, tmp_path):
    command = [sys.executable, "delta_logp.py", *QUICK, *([] if "--out" in flags else ["--out", str(tmp_path / "x")])]
    found = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    last = found.stderr.strip().splitlines()[-1]
    assert found.returncode == 1 and last.startswith("error: ") and message in last and "Traceback" not in found.stderr


def test_two_vocabularies_of_the_same_size_are_refused(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "tiny" / "base", other)
    spec = json.loads((other / "tokenizer.json").read_text())
    vocab = spec["model"]["vocab"]
    vocab["7"], vocab["8"] = vocab["8"], vocab["7"]
    (other / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(SystemExit, match="do not share a vocabulary"):
        run(*QUICK, "--base", other, "--out", tmp_path / "run")


def test_the_page_shows_every_token_with_its_numbers(finished):
    """Self-contained, nothing of a model's text is markup, and each token has its numbers for mouse and keyboard."""
    page = (finished / "tokens.html").read_text()
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|<script", page)
    rows = [{"title": "<b>", "pieces": ["<i>", '"', "7"], "response_ids": [1, 2, 3]}]
    for name in ("logp_base", "logp_rlvr", *script.METRICS):
        rows[0][name] = np.array([-9.0, 0.5, 9.0])
    script.write_page(finished / "probe.html", rows)
    page = (finished / "probe.html").read_text()
    assert "<i>" not in page and "<b>" not in page.partition("<h2>")[2] and page.count('tabindex="0"') == 3
    assert "dlogp        +0.5000" in page and "token 2: 7 (id 3)" in page
