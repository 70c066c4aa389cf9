"""delta_logp.py against slow, plain computations, on models whose answer is known, and in a real browser."""

import ast
import contextlib
import copy
import html
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
    pack,
    read_responses,
    require_same_vocabulary,
    score_pair,
    token_kinds,
    token_metrics,
)

ROOT = Path(__file__).resolve().parent.parent
PROMPTS, RESPONSES = [[5, 6, 7], [8], [9, 10, 11, 12]], [[13, 14, 1], [15, 16, 17, 18, 19, 1], [20]]


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


def test_token_metrics_equal_float64_by_hand():
    torch.manual_seed(0)
    base, rlvr, tokens = 3 * torch.randn(6, 11), 3 * torch.randn(6, 11), torch.randint(11, (6,))
    found = token_metrics(base, rlvr, tokens)
    for i in range(6):
        expected = by_hand(base[i].tolist(), rlvr[i].tolist(), tokens[i].item())
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert found[name][i].item() == pytest.approx(value, abs=2e-6, rel=1e-5), name


def test_18_bf16_logits_are_computed_in_fp32():
    torch.manual_seed(0)
    base, rlvr = (4 * torch.randn(3, 151_936)).bfloat16(), (4 * torch.randn(3, 151_936)).bfloat16()
    tokens = torch.tensor([0, 77, 151_935])
    found = token_metrics(base, rlvr, tokens)
    p, q = (torch.log_softmax(x.double(), -1) for x in (base, rlvr))
    assert (found["dlogp"] - (q - p).gather(1, tokens[:, None])[:, 0]).abs().max() < 1e-5
    assert (found["entropy_base"] + (p.exp() * p).sum(-1)).abs().max() < 1e-4
    assert torch.allclose(found["kl_rlvr_base"].double(), (q.exp() * (q - p)).sum(-1), rtol=3e-5)
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [2, 512])
def test_1_4_scores_equal_a_float64_loop_over_prefixes(temperature, chunk):
    base, rlvr = random_qwen(seed=0), random_qwen(seed=1)
    tokens, mask = pack(PROMPTS, RESPONSES, pad_id=0)
    found = score_pair(base, rlvr, tokens, mask, temperature, n_vocab=36, chunk=chunk)
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
    tokens, mask = pack(PROMPTS, RESPONSES, pad_id=0)
    same = score_pair(base, copy.deepcopy(base), tokens, mask)
    for name in ("dlogp", "kl", "kl_rlvr_base", "kl_base_rlvr"):
        assert torch.equal(same[name], torch.zeros(10)), name
    there, back = score_pair(base, rlvr, tokens, mask), score_pair(rlvr, base, tokens, mask)
    assert torch.equal(there["dlogp"], -back["dlogp"]) and there["dlogp"].abs().min() > 0
    assert torch.equal(there["kl_rlvr_base"], back["kl_base_rlvr"])
    assert torch.equal(there["entropy_base"], back["entropy_rlvr"])
    for name in ("kl", "kl_rlvr_base", "kl_base_rlvr", "entropy_base"):
        assert (there[name] >= 0).all()


def test_32_tokens_sum_to_the_sequence():
    base, rlvr = random_qwen(seed=0), random_qwen(seed=1)
    tokens, mask = pack(PROMPTS, RESPONSES, pad_id=0)
    per_token = score_pair(base, rlvr, tokens, mask)["dlogp"].split([len(ids) for ids in RESPONSES])
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
    tokens = torch.randint(vocabulary, (3, 110))
    mask = torch.ones(3, 110)
    mask[:, :10] = 0

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
        found = score_pair(base, rlvr, tokens, mask, chunk=chunk)
    assert len(found["dlogp"]) == 300
    assert largest.numel <= chunk * vocabulary


def test_histogram_overlap():
    a, b = np.array([0.0, 0.0, 1.0, 3.0]), np.array([0.0, 2.0, 3.0, 3.0])
    assert histogram_overlap(a, a, 7) == pytest.approx(1) and histogram_overlap(a, a + 100, 9) == 0
    assert histogram_overlap(a, b, [0, 1, 2, 3, 4]) == pytest.approx(0.25 + 0.25)
    assert histogram_overlap(a, b, [0, 1, 2, 3]) == pytest.approx(0.25 + 0.25)  # 3 counts in the last bin
    assert histogram_overlap(a, b, [0.5, 1.5, 2.5]) == pytest.approx(0.25 + 0.25)  # beyond the edges: outermost bins
    assert histogram_overlap(a, b, [0, 1, 2, 3, 4]) == histogram_overlap(b, a, [0, 1, 2, 3, 4])
    weights = np.array([3.0, 1.0, 2.0, 1.0])
    doubled = histogram_overlap(np.repeat(a, weights.astype(int)), b, 5)
    assert histogram_overlap(a, b, 5, weights_a=weights) == pytest.approx(doubled)
    with pytest.raises(ValueError, match="not empty"):
        histogram_overlap(a, b[:0], 5)


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
    assert bootstrap_interval(gap, a, b, owner, owner, 0, 0) is None


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


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("delta_logp.py", ("delta_logp", "entropy", "kl_divergence", "token_metrics")),
        ("delta_logp.py", ("gradient_coefficient",)),
        ("replace.py", ("entropy", "kl_divergence", "score_kl")),
        ("extrapolate.py", ("extrapolate_logp",)),
        ("extrapolate.py", ("policy_gradient", "natural_gradient", "npg_step")),
    ],
)
def test_maths_works_pasted_alone(path, names):
    """The last function with those that it calls, and nothing else but `import torch`."""
    source = (ROOT / path).read_text()
    nodes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    pasted = {"torch": torch}
    for name in names:
        exec(ast.get_source_segment(source, nodes[name]), pasted)
    p, q = (torch.log_softmax(torch.randn(3, 5), -1) for _ in range(2))
    last = {"token_metrics": torch.arange(3), "score_kl": torch.arange(3), "extrapolate_logp": 0.5, "npg_step": 0.5}
    out = pasted[names[-1]](p, q, last.get(names[-1], 1.0))
    assert all(torch.isfinite(x).all() for x in (out.values() if isinstance(out, dict) else [out]))


def test_lemma_check_catches_a_wrong_coefficient(monkeypatch):
    model = random_qwen()
    tokens, mask = pack(PROMPTS, RESPONSES, pad_id=0)
    assert lemma_error(model, tokens, mask, 1.0, 40, 0) < (1e-6, 11)
    monkeypatch.setattr(script, "gradient_coefficient", lambda logp, adv, ratio: (ratio * adv).abs() * (1 - logp.exp()))
    assert lemma_error(model, tokens, mask, 1.0, 40, 0)[0] > 0.5


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
    assert token_kinds("What is 44+8-3?", pieces) == []


class Tokenizer:
    def __init__(self, vocab):
        self.vocab = vocab

    def get_vocab(self):
        return self.vocab


def test_31_vocabularies_are_compared_token_by_token():
    model = random_qwen(vocab_size=4)
    one = {"a": 0, "b": 1, "c": 2}
    assert require_same_vocabulary({"x": Tokenizer(one), "y": Tokenizer(dict(one))}, {"x": model}) == 3
    for other in ({"a": 0, "b": 2, "c": 1}, {"a": 0, "b": 1, "d": 2}, one | {"d": 3}):  # two of them of the same size
        with pytest.raises(script.InputError, match="x and y do not share a vocabulary"):
            require_same_vocabulary({"x": Tokenizer(one), "y": Tokenizer(other)}, {"x": model})
    with pytest.raises(script.InputError, match="x has logits for 2 tokens"):
        require_same_vocabulary({"x": Tokenizer(one)}, {"x": random_qwen(vocab_size=2)})


# ---------------------------------------------------------------------------------------------------------- whole runs
QUICK = ["--problems", "6", "--samples", "3", "--gen-batch", "4", "--batch-prompts", "2", "--bootstrap", "20"]


def run(*flags):
    """As on the command line, but in this process, which has torch loaded already."""
    with contextlib.chdir(ROOT):
        return script.main(script.parse_args(script.Args, "", list(map(str, flags))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("delta") / "run"
    assert run(*QUICK, "--out", out) == 0
    return out


def test_a_run_leaves_every_figure_and_number(finished):
    names = {path.name for path in finished.iterdir()}
    figures = {"histograms.png", "probabilities.png", "gradient.png", "sparsity.png", "tokens.png"}
    assert names == figures | {"tokens.html", "tokens.npz", "summary.json", "config.json", "responses.jsonl", "lock"}
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
    for name in ("base", "rlvr"):
        tokenizer, model = dapo.load_model(str(ROOT / "tiny" / name), torch.device("cpu"))
        prompts = dapo.encode_prompts(tokenizer, rows, "responses.jsonl", 200)
        for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            tokens, mask = pack([prompt], [row["ids"]], pad_id=0)
            with torch.no_grad():
                alone = dapo.token_logprobs(model, tokens, mask)[mask != 0]
            of = data["response"] == i
            assert data["id"][of].tolist() == row["ids"] and set(data["source"][of]) == {row["source"]}
            assert np.allclose(data[f"logp_{name}"][of], alone.numpy(), atol=1e-4)


def test_responses_from_a_file_give_the_same_tokens(finished, tmp_path):
    rows = [json.loads(line) for line in (finished / "responses.jsonl").read_text().splitlines()]
    bare = [{key: row[key] for key in ("prompt", "response", "source", "answer")} for row in rows]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert run(*QUICK, "--responses", path, "--out", tmp_path / "run") == 0
    one, other = np.load(finished / "tokens.npz"), np.load(tmp_path / "run" / "tokens.npz")
    assert all(np.array_equal(one[name], other[name]) for name in one)
    again = [json.loads(line) for line in (tmp_path / "run" / "responses.jsonl").read_text().splitlines()]
    assert [row["right"] for row in again] == [row["right"] for row in rows]


def test_29_resume_after_a_kill_gives_the_same_run(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    config = json.loads((out / "config.json").read_text())
    config["args"]["out"] = str(out)
    (out / "config.json").write_text(json.dumps(config))
    whole = (finished / "responses.jsonl").read_text()
    (out / "responses.jsonl").write_text(whole[: len(whole) // 2])  # cut in a line, and in a batch
    with pytest.raises(script.InputError, match="add --resume"):
        run(*QUICK, "--out", out)
    assert run(*QUICK, "--out", out, "--resume") == 0
    assert (out / "responses.jsonl").read_text() == whole
    assert (out / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


def test_identical_models_and_one_response(tmp_path, capsys):
    found = run(
        "--base", "tiny/rlvr", "--problems", "1", "--samples", "1", "--out", tmp_path / "run", "--bootstrap", "0"
    )
    assert found == 0
    data = np.load(tmp_path / "run" / "tokens.npz")
    assert not data["dlogp"].any() and not data["kl"].any()
    assert "nan" not in (tmp_path / "run" / "summary.json").read_text().lower()
    assert "figure 3a is left out" in capsys.readouterr().out or (tmp_path / "run" / "gradient.png").exists()


def test_an_empty_file_and_one_token_a_response(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(script.InputError, match=r"empty\.jsonl is empty"):
        run("--responses", tmp_path / "empty.jsonl", "--out", "/proc/unused")
    flags = ["--problems", "1", "--samples", "1", "--max-response", "1", "--bootstrap", "2"]
    assert run(*flags, "--out", tmp_path / "run") == 0
    assert "nan" not in (tmp_path / "run" / "summary.json").read_text().lower()


def test_check_prints_the_error_of_the_lemma(tmp_path, capsys):
    assert run("--check", "--out", tmp_path / "run") == 0
    assert "largest relative error" in capsys.readouterr().out and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2: this is not JSON"),
        ('{"prompt": "1+1?"}', 'line 2: "prompt" or "response" is missing'),
        ('{"prompt": "1+1?", "response": "2", "source": "me"}', 'line 2: "source" must be "base" or "rlvr"'),
        ('{"prompt": "1+1?", "response": "2", "source": "base", "ids": [22]}', 'line 2: "ids" must be'),
        ('{"prompt": "1+1?", "response": "2", "source": "base", "ids": []}', 'line 2: "ids" is empty'),
        ('{"prompt": "1+1?", "response": "two", "source": "base"}', "line 2: the response has characters"),
        ('{"prompt": "1+1?", "response": "2", "source": "rlvr"}', 'no response with "source": "base"'),
    ],
)
def test_bad_responses_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "1+1?", "response": "2", "source": "rlvr"}\n' + line + "\n")
    tokenizer = script.AutoTokenizer.from_pretrained(ROOT / "tiny" / "rlvr")
    with pytest.raises(script.InputError, match=re.escape(message)):
        read_responses(path, tokenizer, 22)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--responses", "nowhere.jsonl"], "cannot read responses from nowhere.jsonl"),
        (["--base", "tiny/nope"], "no model at 'tiny/nope'"),
        (["--max-response", "256"], "tiny/test.jsonl, line 1: the prompt has"),
        (["--out", "/proc/x"], "cannot write to the run folder /proc/x"),
        (["--resume", "--out", "runs/nowhere"], "holds no run"),
        (["--bins", "1"], "--bins 1: it must lie in"),
    ],
)
def test_bad_input_is_one_sentence(flags, message):
    with pytest.raises(script.InputError, match=re.escape(message)):
        run(*QUICK, *([] if "--out" in flags else ["--out", "/proc/unused"]), *flags)


def test_errors_go_to_stderr_with_exit_status_2():
    command = [sys.executable, "delta_logp.py", "--responses", "nowhere.jsonl"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.count("\n") == 1 and found.stderr.startswith("delta_logp.py: error: cannot read responses from")


def test_two_vocabularies_of_the_same_size_are_refused(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "tiny" / "base", other)
    text = (other / "tokenizer.json").read_text()
    spec = json.loads(text)
    vocab = spec["model"]["vocab"]
    vocab["7"], vocab["8"] = vocab["8"], vocab["7"]
    (other / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(script.InputError, match="do not share a vocabulary"):
        run(*QUICK, "--base", other, "--out", tmp_path / "run")


# ------------------------------------------------------------------------------------------------------- in a browser
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
const tokens = [...document.querySelectorAll(".t")], seen = [];
for (const token of tokens) {
  token.scrollIntoView();
  const box = token.getClientRects()[0];
  const hit = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);  // what a mouse would meet
  (hit || document.body).dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
  const size = tip.getBoundingClientRect(), style = getComputedStyle(tip);
  const inside = size.left >= 0 && size.top >= 0 && size.right <= innerWidth && size.bottom <= innerHeight;
  seen.push({text: token.textContent, tip: tip.textContent, shown: style.display === "block" && size.width > 50, inside,
    background: getComputedStyle(token).backgroundColor});
}
document.body.dispatchEvent(new MouseEvent("mouseover", {bubbles: true}));
const result = {seen, hidden: getComputedStyle(tip).display, wide: document.documentElement.scrollWidth > innerWidth};
document.documentElement.innerHTML = "<pre>" + btoa(unescape(encodeURIComponent(JSON.stringify(result)))) + "</pre>";
</script></body></html>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: install the package chromium to run this")
def test_every_token_shows_its_metrics_on_hover_in_a_browser(tmp_path):
    import base64

    pieces = ["4", " <b>&amp;", "\n", '"quote"', "</script>", "\u00e9\u4e2d", "", "}"]
    rng = np.random.default_rng(0)
    metrics = {name: rng.normal(size=8) for name in ("dlogp", "kl")}
    metrics["dlogp"][:2] = [-9, 9]  # beyond the colour scale
    one = {"prompt": "What is <x>?", "pieces": pieces, "ids": list(range(8)), "metrics": metrics}
    rows = [one | {"title": who, "dlogp": metrics["dlogp"]} for who in ("base, wrong", "rlvr, right")] * 30
    script.write_page(tmp_path / "page.html", rows, "About <both>.", 4.0)
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"(?:src|href)\s*=|@import|url\(", page)  # self-contained
    (tmp_path / "probe.html").write_text(page.replace("</body></html>", PROBE))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --window-size=700,500 --user-data-dir={tmp_path / 'profile'}"
    command = [BROWSER, *flags.split(), "--dump-dom", f"file://{tmp_path / 'probe.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(base64.b64decode(re.search(r"<pre>([^<]+)</pre>", dom.stdout)[1]))
    assert len(found["seen"]) == 8 * 60 and found["hidden"] == "none" and not found["wide"]
    for i, token in enumerate(found["seen"]):
        assert token["shown"] and token["inside"], token
        lines = token["tip"].split("\n")
        assert lines[0] == f"token {i % 8}: {script.visible(pieces[i % 8])} (id {i % 8})"
        assert lines[1].split() == ["dlogp", f"{metrics['dlogp'][i % 8]:+.4f}"]
        assert lines[2].split() == ["kl", f"{metrics['kl'][i % 8]:+.4f}"]
        red, _, blue = map(int, re.findall(r"\d+", token["background"])[:3])
        value = metrics["dlogp"][i % 8]
        assert (red > blue) == (value > 0) or abs(value) < 0.2
    assert html.unescape(found["seen"][1]["text"]).startswith("\u00b7<b>")
