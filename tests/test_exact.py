"""studies/exact.py: the list of right responses, their probability, the measures of the study."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "studies"))
import exact  # noqa: E402
from exact import FULL_SOFTMAX, NO_CUT, PAPER, Curve  # noqa: E402

PROBLEM = [(63, ["*2", "-2"]), (77, ["-7", "+2"])]


@pytest.fixture(scope="module")
def base():
    return exact.load(ROOT / "tiny" / "base")


def as_text(response):
    return "".join(token or "; " for token in response)


# ------------------------------------------------------------------------------------------------------ right responses
def test_problems_are_read_as_make_tiny_writes_them():
    assert exact.read_problem("63*2-2,77-7+2?") == PROBLEM


def test_all_right_responses_to_the_example():
    """Two chains of two operations: each chain in one or two statements, and the right box after every statement."""
    box = "\\boxed{24,72}<|im_end|>"
    expected = ["", "63*2-2=24; ", "63*2=26; ", "63*2=26; 26-2=24; "]
    for first in ("63*2-2=24; ", "63*2=26; 26-2=24; "):
        expected += [first + second for second in ("77-7+2=72; ", "77-7=70; ", "77-7=70; 70+2=72; ")]
    texts = [as_text(response) for response in exact.right_responses(PROBLEM)]
    assert sorted(texts) == sorted(text + box for text in expected)


def test_longer_problems_have_as_many_right_responses_as_there_are_ways():
    """Ways to split n operations into ones and twos are the Fibonacci numbers; every split may end in a guess."""
    ways = [1, 1, 2, 3, 5, 8, 13]
    operations = ["+1", "-2", "*3", "+4", "-5", "*2"]
    for n, m in itertools.product((2, 4, 6), (2, 4)):
        responses = exact.right_responses([(5, operations[:n]), (6, operations[:m])])
        n_expected = sum(ways[:n]) + ways[n] * sum(ways[: m + 1])
        assert len(responses) == len({as_text(response) for response in responses}) == n_expected


def test_responses_beyond_the_limit_are_cut(monkeypatch):
    monkeypatch.setattr(exact, "MAX_TOKENS", 20)
    assert all(len(response) <= 20 for response in exact.right_responses(PROBLEM))


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("63*2-2=24 thus 77-7=70 then 70+2=72 so \\boxed{24,72}", True),
        ("\\boxed{24,72}", True),
        ("63*2=25; 25-2=24; 77-7+2=72; \\boxed{24,72}", False),  # a wrong number, and the right answer
        ("63*2-2=24; 77-7+2=72; \\boxed{24,71}", False),
    ],
)
def test_what_is_listed(text, listed):
    assert exact.is_listed(text, PROBLEM) == listed


# -------------------------------------------------------------------------------------------------------- probabilities
def plain_probability(model, problem, response, setting):
    """Probability of one response, token by token, in float64: other code. response: with connectives filled in.

    Where a connective stands, all four count.
    """
    ids = exact.prompt_tokens(problem)
    ids = [exact.IDS[token] for token in ids]
    probability = 1.0
    for token in response:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy()
        weights = np.exp((logits - logits.max()) / setting.temperature)
        weights /= weights.sum()
        if setting.top_p < 1:
            kept = np.zeros_like(weights)
            for index in np.argsort(-weights):
                if kept.sum() >= setting.top_p:
                    break
                kept[index] = weights[index]
            weights = kept / kept.sum()
        if token in exact.CONNECTIVES:
            probability *= sum(weights[exact.IDS[connective]] for connective in exact.CONNECTIVES)
        else:
            probability *= weights[exact.IDS[token]]
        ids.append(exact.IDS[token])
    return probability


def test_probabilities_are_those_of_a_plain_loop(base, monkeypatch):
    """With one connective to draw from, the text is known; a batch of 3 has responses of different lengths."""
    monkeypatch.setattr(exact.random.Random, "choices", lambda self, names, weights: [names[0]])
    model, _ = base
    found = exact.probabilities(model, [PROBLEM], batch=3)
    for row, setting in enumerate(exact.SETTINGS):
        total = 0.0
        for response in exact.right_responses(PROBLEM):
            filled = [token or next(iter(exact.CONNECTIVES)) for token in response]
            total += plain_probability(model, PROBLEM, filled, setting)
        assert found[row, 0] == pytest.approx(total, rel=1e-4), setting


def test_probabilities_are_the_frequencies_of_right_samples(base):
    model, tokenizer = base
    problems = [PROBLEM, [(12, ["+3", "+4"]), (50, ["-7", "-2"])]]
    found = exact.probabilities(model, problems)
    for setting in (FULL_SOFTMAX, PAPER):
        counts = exact.sampled_counts(model, tokenizer, problems, 400, setting)
        for p, right in zip(found[exact.SETTINGS.index(setting)], counts["right"], strict=True):
            assert abs(right / 400 - p) < 4 * math.sqrt(p * (1 - p) / 400) + 0.01
        assert sum(counts["unlisted"]) <= 0.05 * sum(counts["right"])


def test_the_ceiling_is_the_chance_of_all_that_is_no_choice(base):
    """Other code: the text with its choices marked. ^: next token is not the box. !: the next token is for sure."""
    model, _ = base
    marked = "^63*2!=26;^26-2=24;^77-7!=70;^70+2=72;"
    ids = [exact.IDS[token] for token in exact.prompt_tokens(PROBLEM)]
    expected = 1.0
    pieces = [*marked, "\\boxed{", *"24,72", "}", "<|im_end|>"]
    is_first = is_sure = False
    for piece in pieces:
        if piece in "^!":
            is_first = piece == "^"
            is_sure = piece == "!"
            continue
        token = "; " if piece == ";" else piece
        with torch.no_grad():
            p = model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1).double()
        if token == "; ":
            factor = sum(p[exact.IDS[connective]] for connective in exact.CONNECTIVES)
        else:
            factor = p[exact.IDS[token]]
        if is_first:
            factor = factor / (1 - p[exact.IDS["\\boxed{"]])
        expected *= 1.0 if is_sure else float(factor)
        is_first = is_sure = False
        ids.append(exact.IDS[token])
    lost = exact.lost_nats(model, PROBLEM)
    assert math.exp(-sum(lost.values())) == pytest.approx(expected, rel=1e-4)
    assert min(lost.values()) > 0 and lost["result"] < lost["copy"]
    assert 0.5 < expected < 1


def test_a_response_that_top_p_excludes_has_probability_zero():
    """Uniform but for one token: p = 0.96 of it, so that 0.95 excludes all others."""
    vocabulary = len(exact.IDS)
    logits = torch.full((2, 1, vocabulary), 0.0)
    logits[:, :, 5] = math.log(0.96 * (vocabulary - 1) / 0.04)
    tokens = torch.tensor([[5], [6]])
    no_connective = torch.zeros((2, 1), dtype=torch.bool)
    likely, excluded = exact.response_logps(logits, tokens, no_connective, exact.Setting(1.0, 0.95)).tolist()
    assert likely == pytest.approx(0.0, abs=1e-6) and excluded == -math.inf
    likely, kept = exact.response_logps(logits, tokens, no_connective, FULL_SOFTMAX).exp().tolist()
    assert likely == pytest.approx(0.96) and kept == pytest.approx(0.04 / (vocabulary - 1))


# ------------------------------------------------------------------------------------------------------------- measures
def curve(*rows, plateau=1, unlisted=0.0):
    """A Curve whose p is the same at each setting. rows: p of each problem at steps 0, 10, 20, ..."""
    p = {setting: np.array(rows) for setting in exact.SETTINGS}
    return Curve([10 * i for i in range(len(rows))], p, plateau, unlisted)


def test_problems_that_fall_and_recover():
    run = curve([0.4, 0.4, 0.4, 0.4], [0.1, 0.3, 0.1, 0.9], [0.4, 0.1, 0.3, 0.9])
    assert exact.fallen(run, FULL_SOFTMAX).mean(1).tolist() == [0, 0.5, 0.25]
    assert exact.share_recovered(run, FULL_SOFTMAX) == pytest.approx(1 / 3)  # the first; not the second and third
    assert math.isnan(exact.share_recovered(curve([0.1], [0.2]), FULL_SOFTMAX))


def test_the_loss_of_the_cut_is_that_of_problems_with_p_zero():
    always = 1 - 1e-16
    run = curve([always, always, 0.0], [0.0, 1 - 0.5 ** (1 / 256), 1.0])  # pass@256 falls by 1 and by 0.5
    assert exact.share_cut(run) == pytest.approx(2 / 3)
    assert math.isnan(exact.share_cut(curve([0.1], [0.2])))


@pytest.mark.parametrize(("p", "k"), [(0.3, 1), (0.01, 256), (1e-6, 10**6), (0.0, 10), (1.0, 1)])
def test_pass_at_k_of_a_known_p(p, k):
    assert exact.pass_at(np.array([p]), k) == pytest.approx(1 - (1 - p) ** k, abs=1e-9)


def test_the_base_wins_where_many_samples_find_its_rare_answers():
    base, trained = np.array([0.1, 0.01]), np.array([0.5, 0.0])
    k = exact.base_wins_from(trained, base)
    assert exact.pass_at(base, k) > exact.pass_at(trained, k) and k > 1
    before = exact.KS[list(exact.KS).index(k) - 1]
    assert exact.pass_at(base, before) <= exact.pass_at(trained, before)
    assert exact.base_wins_from(base, base) is None
    assert exact.base_wins_from(base / 2, base) == 1


def test_the_worst_tenth_is_taken_at_equal_mean_p():
    """Ten problems; nine go from 0.1 to 0.9, the worst from 1e-4 to 1e-6. Mean p is 0.45 half-way."""
    low, high = [0.1] * 9 + [1e-4], [0.9] * 9 + [1e-6]
    run = curve(low, high)
    means = [np.mean(low), np.mean(high)]
    assert exact.worst_tenth(run, np.mean(means)) == pytest.approx(-5)
    kept = curve(low, [0.9] * 9 + [1e-4])
    assert exact.worst_difference(kept, run) == pytest.approx(2 * (0.6 - means[0]) / (means[1] - means[0]), rel=1e-3)


def test_claims_have_a_row_for_each_arm_and_need_no_run_of_the_others():
    curves = {("grpo", base): curve([0.1, 0.2 + base / 100], [0.02, 0.5], [0.5, 0.9]) for base in (1, 2)}
    rows = exact.claims_of(curves, (1, 2))
    assert {row["measure"].split(",")[0] for row in rows} == {"GRPO"}
    curves.update({("grpo-n", base): curve([0.1, 0.2], [0.3, 0.4], [0.5, 0.9]) for base in (1, 2)})
    assert any("worst tenth" in row["claim"] for row in exact.claims_of(curves, (1, 2)))


def test_the_table_of_the_arms(capsys):
    record = {"accuracy": [0.1] * 10 + [0.7] * 10, "entropy": [0.5] * 15 + [0.2] * 5}
    records = {f"{arm}-{base}": record for arm in exact.ARMS for base in (1, 2)}
    curves = {(arm, b): curve([0.1, 0.2], [0.5, 0.7 + b / 10]) for arm in exact.ARMS for b in (1, 2)}
    exact.print_arms(records, curves)
    *_, last = capsys.readouterr().out.strip().splitlines()
    assert last == "| DAPO | 15 ± inf | 0.675 ± 0.318 | 0.200 ± inf | 0.000 ± inf | 0.5 |"


@pytest.mark.pictures
def test_the_figure(tmp_path):
    rng = np.random.default_rng(0)
    run = curve(rng.random(40) / 10, rng.random(40) * (rng.random(40) > 0.3), rng.random(40))
    exact.draw(tmp_path / "exact.png", {("grpo", 1): run, ("dapo", 1): run})
    assert (tmp_path / "exact.png").stat().st_size > 20_000


def test_settings_are_named_as_in_records():
    assert [str(setting) for setting in (FULL_SOFTMAX, NO_CUT, PAPER)] == ["1/1", "0.6/1", "0.6/0.95"]
