"""Sampling and scoring against slow, plain loops on a random model."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import random_qwen

from dapo import make_batches, rollout, sample_tokens, token_logprobs

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
EOS = [1, 2]


def sample(model, prompts=PROMPTS, group_size=4, max_new_tokens=12, seed=0, **options):
    generator = torch.Generator(model.device).manual_seed(seed)
    return rollout(model, prompts, group_size, max_new_tokens, EOS, generator=generator, **options)


def rows_of(out):
    """The sampled ids of every row, without padding."""
    return [row[mask == 1].tolist() for row, mask in zip(out["tokens"], out["mask"], strict=True)]


def batch(prompts, responses):
    """tokens and mask, (N, L), of responses in group order."""
    group_size = len(responses) // len(prompts)
    rows = [SimpleNamespace(problem={"ids": prompts[i // group_size]}, ids=ids) for i, ids in enumerate(responses)]
    tokens, mask, _ = make_batches(rows, len(rows), len(rows))
    return tokens, mask


@torch.no_grad()
def slow_scores(model, prompt, response, temperature=1.0):
    """log pi(y_t | x, y_<t) and the entropy there, by one float64 pass over each prefix: no cache, no batch."""
    model = copy.deepcopy(model).double()
    logp = []
    entropy = []
    for t, token in enumerate(response):
        logits = model(input_ids=torch.tensor([prompt + response[:t]])).logits[0, -1]
        all_logp = torch.log_softmax(logits / temperature, -1)
        logp.append(all_logp[token].item())
        entropy.append(-(all_logp.exp() * all_logp).sum().item())
    return torch.tensor(logp), torch.tensor(entropy)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logp_and_entropy_equal_a_float64_loop_over_prefixes(model, temperature):
    out = sample(model, temperature=temperature)
    responses = rows_of(out)
    assert len({len(response) for response in responses}) > 2  # ragged
    tokens, mask = batch(PROMPTS, responses)
    scores = [token_logprobs(model, tokens, mask, temperature, chunk=chunk) for chunk in (3, 4096)]
    for i, response in enumerate(responses):
        prompt = PROMPTS[i // 4]
        slow_logp, slow_entropy = slow_scores(model, prompt, response, temperature)
        assert torch.allclose(out["logp"][i, : len(response)], slow_logp, atol=1e-4)
        assert torch.allclose(out["entropy"][i, : len(response)], slow_entropy, atol=1e-4)
        where = slice(len(prompt), len(prompt) + len(response))
        for logp, entropy in scores:
            assert torch.allclose(logp[i, where], slow_logp, atol=1e-4)
            assert torch.allclose(entropy[i, where], slow_entropy, atol=1e-4)
    for logp, entropy in scores:
        assert not logp[mask == 0].any() and not entropy[mask == 0].any()


# ------------------------------------------------------------------------------------------------------- sampling
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.8)])
def test_frequencies_follow_the_softmax(temperature, top_p):
    logits = torch.tensor([0.0, 2.0, -1.0, 1.5, 0.5, -4.0, 1.0, -2.0])
    n = 40_000
    tokens, logp, entropy = sample_tokens(logits.expand(n, 8), temperature, top_p, torch.Generator().manual_seed(0))
    full = torch.softmax(logits / temperature, -1)
    p = full.clone()
    if top_p < 1:  # the two likeliest have 0.67 of the probability, the three likeliest 0.82
        p[[0, 2, 4, 5, 7]] = 0
        p /= p.sum()
    counts = torch.bincount(tokens, minlength=8).double()
    assert counts[p == 0].sum() == 0
    chi2 = ((counts - n * p)[p > 0] ** 2 / (n * p)[p > 0]).sum()
    assert chi2 < 30  # 7 degrees of freedom: exceeded with probability 1e-4
    assert torch.allclose(logp, full.log()[tokens], atol=1e-6)  # of the full softmax, whatever top-p
    assert torch.allclose(entropy, -(full * full.log()).sum().expand(n), atol=1e-5)


def test_temperature_0_is_greedy_and_scored_at_temperature_1():
    logits = torch.randn(7, 9)
    tokens, logp, _ = sample_tokens(logits, temperature=0)
    assert torch.equal(tokens, logits.argmax(-1))
    assert torch.equal(logp, torch.log_softmax(logits, -1).amax(-1))


def test_rollout_in_train_mode_with_checkpointing_equals_a_loop_without_cache(model):
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    out = sample(model, group_size=1, temperature=0)
    assert model.training
    model.eval()
    for prompt, response in zip(PROMPTS, rows_of(out), strict=True):
        for t, token in enumerate(response):
            assert model(input_ids=torch.tensor([prompt + response[:t]])).logits[0, -1].argmax() == token


def test_generation_config_is_not_consulted(model):
    model.generation_config.top_k = 1
    model.generation_config.do_sample = False
    out = sample(model, group_size=50, max_new_tokens=1)
    assert len(out["tokens"][:50, 0].unique()) > 5


def test_a_response_ends_at_any_end_id_or_at_the_limit(model):
    out = sample(model, group_size=64, max_new_tokens=40)
    ends = set()
    for row, mask, finished in zip(out["tokens"], out["mask"], out["finished"], strict=True):
        n = int(mask.sum())
        assert mask.tolist() == [1.0] * n + [0.0] * (len(mask) - n)
        assert not set(EOS) & set(row[: n - 1].tolist())
        if finished:
            ends.add(row[n - 1].item())
        else:
            assert n == 40 and row[n - 1] not in EOS
    assert ends == set(EOS)
    assert not out["finished"].all()


def test_one_prompt_and_a_limit_of_one_token(model):
    out = sample(model, [[4]], group_size=1, max_new_tokens=1)
    assert out["tokens"].shape == (1, 1) and out["mask"].tolist() == [[1.0]]


def test_rows_are_in_group_order_and_follow_the_seed(model):
    out = sample(model, group_size=8)
    again = sample(model, group_size=8)
    other = sample(model, group_size=8, seed=1)
    assert all(torch.equal(out[name], again[name]) for name in out)
    rows = rows_of(out)
    assert rows != rows_of(other)
    for first in (0, 8, 16):
        assert len({tuple(row) for row in rows[first : first + 8]}) > 1
    greedy = rows_of(sample(model, group_size=2, temperature=0))
    alone = rows_of(sample(model, PROMPTS[2:], group_size=1, temperature=0))
    assert greedy[4] == greedy[5] == alone[0]


def test_rows_that_ended_leave_the_batch(model, monkeypatch):
    sizes = []
    forward = type(model).forward

    def noting_forward(self, **inputs):
        sizes.append(len(inputs["input_ids"]))
        return forward(self, **inputs)

    monkeypatch.setattr(type(model), "forward", noting_forward)
    lengths = sample(model, group_size=9, max_new_tokens=60)["mask"].sum(1)
    assert sizes == [3] + [int((lengths > t).sum()) for t in range(1, int(lengths.max()))]  # a prompt is read once


def test_ids_that_pad_the_vocabulary_are_never_drawn_and_not_scored(model):
    assert (sample(model, group_size=64, seed=5)["tokens"] >= 30).any()  # without the limit they are
    out = sample(model, group_size=64, seed=5, n_vocab=30)
    assert (out["tokens"] < 30).all() and torch.isfinite(out["entropy"]).all()
    tokens, mask = batch(PROMPTS, rows_of(out))
    logp, entropy = token_logprobs(model, tokens, mask, n_vocab=30)
    assert torch.allclose(logp[mask == 1], out["logp"][out["mask"] == 1], atol=1e-4)
    assert torch.allclose(entropy[mask == 1], out["entropy"][out["mask"] == 1], atol=1e-4)
    assert (logp[mask == 1] > token_logprobs(model, tokens, mask)[0][mask == 1]).all()


def test_a_sliding_window_is_kept():
    model = random_qwen(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    out = sample(model)
    tokens, mask = batch(PROMPTS, rows_of(out))
    logp, _ = token_logprobs(model, tokens, mask)
    assert torch.allclose(logp[mask == 1], out["logp"][out["mask"] == 1], atol=1e-4)


# -------------------------------------------------------------------------------------------------------- scoring
def test_the_mask_may_have_any_dtype_but_not_another_shape(model):
    tokens = torch.randint(3, 40, (2, 6))
    mask = torch.tensor([[0.0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]])
    logp, entropy = token_logprobs(model, tokens, mask)
    assert logp.dtype == entropy.dtype == torch.float32
    for dtype in (torch.bool, torch.long, torch.float64):
        same_logp, same_entropy = token_logprobs(model, tokens, mask.to(dtype))
        assert torch.equal(same_logp, logp) and torch.equal(same_entropy, entropy)
    with pytest.raises(ValueError, match=r"\(2, 6\) and \(2, 5\)"):
        token_logprobs(model, tokens, mask[:, 1:])


@pytest.mark.parametrize("tie", [True, False])
def test_the_chunked_head_has_the_gradient_of_the_plain_one(tie):
    model = random_qwen(tie=tie)
    tokens = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0]])
    weights = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))

    def gradients(logp, entropy):
        model.zero_grad()
        ((logp + 0.3 * entropy) * mask * weights)[:, 1:].sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    ours = gradients(*token_logprobs(model, tokens, mask, 0.7, chunk=4))
    all_logp = torch.log_softmax(model(input_ids=tokens).logits / 0.7, -1)
    entropy = -(all_logp.exp() * all_logp).sum(-1)
    logp = all_logp.roll(1, dims=1).gather(-1, tokens[:, :, None])[:, :, 0]
    plain = gradients(logp, entropy.roll(1, dims=1))
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_no_tensor_of_tokens_times_vocabulary_is_kept():
    """60 tokens x 50,000 ids: what autograd keeps, weights aside, stays below a tenth of the logits' size."""
    model = random_qwen(vocab_size=50_000)
    tokens = torch.randint(3, 40, (4, 16))
    sizes = {}

    def note(tensor):
        sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logprobs(model, tokens, torch.ones(4, 16), chunk=8)
    sizes.pop(model.get_input_embeddings().weight.data_ptr(), None)
    assert sum(sizes.values()) < 60 * 50_000 / 10


def test_bf16_logits_of_a_reader_are_normalised_in_fp32():
    """Normalised in bf16, log-probs would be off by 0.01 and more; a sum of 50,000 in fp32 by some 1e-5."""
    torch.manual_seed(0)
    logits = (torch.randn(1, 5, 50_000) * 4).bfloat16()
    tokens = torch.randint(50_000, (1, 5))
    head = torch.nn.Identity()
    model = SimpleNamespace(base_model=lambda ids, use_cache: [logits], get_output_embeddings=lambda: head)
    logp, entropy = token_logprobs(model, tokens, torch.ones(1, 5), chunk=4096)
    exact = torch.log_softmax(logits.double(), -1)
    assert (logp[0, 1:] - exact[0, range(4), tokens[0, 1:]]).abs().max() < 1e-4
    assert (entropy[0, 1:] + (exact.exp() * exact).sum(-1)[0, :-1]).abs().max() < 1e-3  # the softmax sums to 1 +- 2e-5
    assert (sample_tokens(logits[0])[1] - exact.amax(-1)).max() < 1e-4


def test_gradient_mode_and_train_mode_change_no_bit(model):
    tokens = torch.randint(3, 40, (5, 19))
    mask = torch.ones(5, 19)
    with torch.no_grad():
        old, _ = token_logprobs(model, tokens, mask)
    model.train()
    new, _ = token_logprobs(model, tokens, mask)
    assert new.requires_grad and torch.equal(old, new.detach())


# -------------------------------------------------------------------------------------------------------- batches
def test_batches_keep_the_sampled_ids_and_masks_come_from_positions():
    tokens, mask = batch([[5, 1], [6, 7, 0]], [[8, 9, 1], [1]])  # ending and padding ids in prompts, too
    assert tokens.tolist() == [[5, 1, 8, 9, 1], [6, 7, 0, 1, 0]]
    assert mask.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]


def test_micro_batches_cover_each_mini_batch_once():
    lengths = [7, 2, 9, 4, 11, 1, 3, 8, 5, 6]
    rows = [SimpleNamespace(problem={"ids": [5]}, ids=[6] * length) for length in lengths]
    _, mask, mini_batches = make_batches(rows, 4, 3)
    covered = []
    for micro_batches in mini_batches:
        covered.append(sorted(row for rows, _ in micro_batches for row in rows))
        for rows, width in micro_batches:
            assert len(rows) <= 3 and mask[rows, width:].sum() == 0 and mask[rows, width - 1].sum() > 0
    assert covered == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_sampling_and_scoring_agree_on_cuda():
    model = random_qwen().cuda()
    out = sample(model)
    tokens, mask = batch(PROMPTS, rows_of(out))
    logp, _ = token_logprobs(model, tokens.cuda(), mask.cuda())
    assert torch.allclose(logp[mask == 1], out["logp"][out["mask"] == 1], atol=1e-3)
