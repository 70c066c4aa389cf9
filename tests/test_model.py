"""Sampling and scoring against slow, plain loops on a random model (numbers: the list of known bugs)."""

import copy

import pytest
import torch
from conftest import random_qwen

from dapo import pack, rollout, sample_tokens, token_logprobs

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
EOS = [1, 2]


def sample(model, prompts=PROMPTS, group_size=4, max_new_tokens=12, seed=0, **more):
    options = {"eos_ids": EOS, "generator": torch.Generator().manual_seed(seed)} | more
    return rollout(model, prompts, group_size, max_new_tokens, **options)


def rows_of(out):
    return [row[: int(n)].tolist() for row, n in zip(out["tokens"], out["mask"].sum(1), strict=True)]


def batch(prompts, responses):
    """tokens and mask, (N, L), of responses in group order."""
    size = len(responses) // len(prompts)
    rows = [{"prompt": prompts[i // size], "ids": ids} for i, ids in enumerate(responses)]
    return pack(rows, len(rows), len(rows))[:2]


@torch.no_grad()
def slow_logp(model, prompt, response, temperature=1.0):
    """log pi(y_t | x, y_<t) by one float64 forward pass over each prefix, no cache, no batch."""
    model = copy.deepcopy(model).double()
    out = []
    for t, token in enumerate(response):
        logits = model(input_ids=torch.tensor([prompt + response[:t]])).logits[0, -1]
        out.append(torch.log_softmax(logits / temperature, -1)[token].item())
    return out


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [3, 4096])
def test_1_4_logprobs_equal_a_float64_loop_over_prefixes(model, temperature, chunk):
    out = sample(model, temperature=temperature)
    responses = rows_of(out)
    assert len(set(map(len, responses))) > 2  # ragged
    tokens, mask = batch(PROMPTS, responses)
    logp, entropy = token_logprobs(model, tokens, mask, temperature, chunk=chunk)
    assert not logp[mask == 0].any() and not entropy[mask == 0].any()
    assert torch.allclose(entropy[mask == 1], out["entropy"][out["mask"] == 1], atol=1e-4)
    for i, response in enumerate(responses):
        prompt = PROMPTS[i // 4]
        slow = torch.tensor(slow_logp(model, prompt, response, temperature))
        assert torch.allclose(logp[i, len(prompt) : len(prompt) + len(response)], slow, atol=1e-4)
        assert torch.allclose(out["logp"][i, : len(response)], slow, atol=1e-4)


def test_2_generation_config_is_not_consulted(model):
    model.generation_config.top_k, model.generation_config.do_sample = 1, False
    out = sample(model, group_size=50, max_new_tokens=1)
    assert len(set(out["tokens"][:50, 0].tolist())) > 5


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.8)])
def test_2_frequencies_follow_the_softmax(temperature, top_p):
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -2.0, -4.0])
    n = 40_000
    tokens, logp, entropy = sample_tokens(logits.expand(n, 8), temperature, top_p, torch.Generator().manual_seed(0))
    full = torch.softmax(logits / temperature, -1)
    p = full.clone()
    if top_p < 1:
        p[int((full.cumsum(0) < top_p).sum()) + 1 :] = 0
        p /= p.sum()
    counts = torch.bincount(tokens, minlength=8).double()
    assert counts[p == 0].sum() == 0
    chi2 = ((counts - n * p)[p > 0] ** 2 / (n * p)[p > 0]).sum()
    assert chi2 < 30  # 7 degrees of freedom: exceeded with probability 1e-4
    assert torch.allclose(logp, full.log()[tokens], atol=1e-6)  # of the full softmax, whatever the nucleus
    assert torch.allclose(entropy, -(full * full.log()).sum().expand(n), atol=1e-5)


def test_temperature_zero_is_greedy():
    logits = torch.randn(7, 9)
    assert torch.equal(sample_tokens(logits, temperature=0)[0], logits.argmax(-1))


def test_3_rollout_in_train_mode_with_checkpointing_equals_a_loop_without_cache(model):
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    out = sample(model, group_size=1, temperature=0)
    assert model.training
    model.eval()
    for prompt, response in zip(PROMPTS, rows_of(out), strict=True):
        ids = list(prompt)
        for token in response:
            assert model(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
            ids.append(token)


def test_6_masks_come_from_positions_not_from_token_values(model):
    eos = 3
    with torch.no_grad():
        out = sample(model, eos_ids=[eos], group_size=8, max_new_tokens=40)
    for row, mask, done in zip(out["tokens"], out["mask"], out["finished"], strict=True):
        n = int(mask.sum())
        assert torch.equal(mask, (torch.arange(len(mask)) < n).float())
        assert (row[n - 1] == eos) == done and eos not in row[: n - 1].tolist()
    assert out["finished"].any()
    _, packed = batch([[5, eos]], [[7, eos]])
    assert packed.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("pads", range(8))
def test_7_padding_changes_nothing(model, pads):
    """Left of a prompt in the rollout, right of a response in the scorer."""
    row = [5, 6, 7, 8, 9]
    alone = token_logprobs(model, torch.tensor([row]), torch.tensor([[0.0, 0, 1, 1, 1]]))
    padded = token_logprobs(model, torch.tensor([row + [0] * pads]), torch.tensor([[0.0, 0, 1, 1, 1] + [0] * pads]))
    assert all((x[0, :5] - y[0]).abs().max() < 1e-5 for x, y in zip(padded, alone, strict=True))
    wide = [[9] * (len(row) + pads), row]
    together = sample(model, wide, group_size=2, max_new_tokens=1)["entropy"][2:]
    assert (together - sample(model, [row], group_size=2, max_new_tokens=1)["entropy"]).abs().max() < 1e-5


def test_8_any_of_a_set_of_eos_ids_stops(model):
    out = sample(model, group_size=64, max_new_tokens=40)
    ends = {row[-1] for row, done in zip(rows_of(out), out["finished"], strict=True) if done}
    assert ends == set(EOS)
    assert all(len(row) == 40 for row, done in zip(rows_of(out), out["finished"], strict=True) if not done)


def test_26_28_rows_are_in_group_order_and_differ(model):
    out = sample(model, group_size=8)
    again = sample(model, group_size=8)
    other = sample(model, group_size=8, seed=1)
    assert all(torch.equal(out[k], again[k]) for k in out)
    assert rows_of(out) != rows_of(other)
    for b in range(3):
        assert len(set(map(tuple, rows_of(out)[b * 8 : b * 8 + 8]))) > 1
    alone = sample(model, PROMPTS[2:], group_size=1, temperature=0)
    mixed = sample(model, group_size=2, temperature=0)
    assert rows_of(mixed)[4] == rows_of(mixed)[5] == rows_of(alone)[0]


def test_27_padding_ids_of_the_vocabulary_are_never_drawn_and_not_scored(model):
    free = sample(model, group_size=64, seed=5)
    assert (free["tokens"] >= 30).any()  # without the limit they are
    out = sample(model, group_size=64, seed=5, n_vocab=30)
    assert (out["tokens"] < 30).all() and torch.isfinite(out["entropy"]).all()
    tokens, mask = batch(PROMPTS, rows_of(out))
    logp, entropy = token_logprobs(model, tokens, mask, n_vocab=30)
    assert torch.allclose(logp[mask == 1], out["logp"][out["mask"] == 1], atol=1e-4)
    assert torch.allclose(entropy[mask == 1], out["entropy"][out["mask"] == 1], atol=1e-4)
    assert (logp[mask == 1] > token_logprobs(model, tokens, mask)[0][mask == 1]).all()


def test_entropy_is_that_of_the_full_softmax(model):
    out = sample(model, PROMPTS[:1], group_size=1, max_new_tokens=3)
    response = rows_of(out)[0]
    for t in range(len(response)):
        p = torch.softmax(model(input_ids=torch.tensor([PROMPTS[0] + response[:t]])).logits[0, -1], -1)
        assert out["entropy"][0, t] == pytest.approx(-(p * p.log()).sum().item(), abs=1e-4)


def test_one_token_limit_and_one_prompt(model):
    out = sample(model, [[4]], group_size=1, max_new_tokens=1)
    assert out["tokens"].shape == (1, 1) and out["mask"].tolist() == [[1.0]]


@pytest.mark.parametrize("tie", [True, False])
def test_chunked_head_has_the_gradient_of_the_plain_one(tie):
    model = random_qwen(tie=tie)
    tokens = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0]]).float()
    weights = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))

    def gradients(logp, entropy):
        model.zero_grad()
        ((logp + 0.3 * entropy) * mask * weights).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    ours = gradients(*token_logprobs(model, tokens, mask, 0.7, chunk=4))
    plain = torch.log_softmax(model(input_ids=tokens).logits[:, :-1] / 0.7, -1)
    plain = plain.gather(-1, tokens[:, 1:, None])[..., 0], -(plain.exp() * plain).sum(-1)
    plain = gradients(*(torch.nn.functional.pad(x, (1, 0)) for x in plain))
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(ours, plain, strict=True))


def test_no_tensor_of_tokens_times_vocabulary_is_kept():
    """60 tokens x 50,000 ids: what autograd saves stays below a tenth of the logits' size."""
    model = random_qwen(vocab_size=50_000)
    tokens = torch.randint(3, 40, (4, 16))
    saved = []

    def note(tensor):
        saved.append((tensor.data_ptr(), tensor.numel()))
        return tensor

    embedding = model.get_input_embeddings().weight
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logprobs(model, tokens, torch.ones(4, 16), chunk=8)
    kept = sum(n for pointer, n in dict(saved).items() if pointer != embedding.data_ptr())
    assert kept < 60 * 50_000 / 10


def test_18_bf16_logits_are_normalised_in_fp32():
    class OneLayer(torch.nn.Module):  # hands out fixed bf16 states through an identity head
        def __init__(self, logits):
            super().__init__()
            self.base_model = lambda ids, **_: (logits,)
            self.get_output_embeddings = lambda: torch.nn.Identity()

    logits = (torch.randn(1, 5, 50_000) * 4).bfloat16()
    tokens = torch.randint(50_000, (1, 5))
    logp, entropy = token_logprobs(OneLayer(logits), tokens, torch.ones(1, 5), chunk=4096)
    exact = torch.log_softmax(logits.double(), -1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    assert (logp[:, 1:] - exact).abs().max() < 1e-5
    p = logits.double().softmax(-1)[:, :-1]
    assert (entropy[:, 1:] + (p * p.log()).sum(-1)).abs().max() < 1e-3  # the fp32 softmax sums to 1 within 2e-5
    assert sample_tokens(logits[0])[1].dtype == torch.float32


def test_19_no_dropout_two_forwards_are_equal(model):
    model.train()
    tokens, mask = torch.randint(3, 40, (3, 9)), torch.ones(3, 9)
    assert torch.equal(token_logprobs(model, tokens, mask)[0], token_logprobs(model, tokens, mask)[0])


def test_16_gradient_mode_does_not_change_a_bit(model):
    tokens, mask = torch.randint(3, 40, (5, 19)), torch.ones(5, 19)
    with torch.no_grad():
        old, _ = token_logprobs(model, tokens, mask)
    new, _ = token_logprobs(model, tokens, mask)
    assert new.requires_grad and torch.equal(old, new.detach())


def test_26_pack_keeps_the_sampled_ids():
    tokens, mask = batch([[5], [6, 7]], [[8, 9, 1], [1]])
    assert tokens.tolist() == [[5, 8, 9, 1], [6, 7, 1, 0]] and mask.tolist() == [[0, 1, 1, 1], [0, 0, 1, 0]]


def test_micro_batches_cover_each_mini_batch_once():
    lengths = torch.randint(1, 12, (10,)).tolist()
    _, mask, plan = pack([{"prompt": [5], "ids": [6] * n} for n in lengths], mini=4, micro=3)
    assert [sorted(r for rows, _ in mini for r in rows) for mini in plan] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for rows, width in (micro for mini in plan for micro in mini):
        assert len(rows) <= 3 and mask[rows, width:].sum() == 0 and mask[rows, width - 1].sum() > 0


def test_37_the_cache_is_in_the_dtype_of_the_model(monkeypatch):
    """A model in bf16 keeps bf16: rotary angles in fp32 must not promote what is kept for every token."""
    model, dtypes = random_qwen().to(torch.bfloat16), set()
    forward = type(model).forward

    def spy(self, **inputs):
        if inputs.get("past_key_values") is not None:
            dtypes.update({layer.keys.dtype for layer in inputs["past_key_values"].layers})
            dtypes.update({layer.values.dtype for layer in inputs["past_key_values"].layers})
        return forward(self, **inputs)

    monkeypatch.setattr(type(model), "forward", spy)
    out = sample(model, max_new_tokens=5)
    assert dtypes == {torch.bfloat16} and out["logp"].dtype == out["entropy"].dtype == torch.float32


def test_rows_that_ended_leave_the_batch(model, monkeypatch):
    sizes, forward = [], type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **x: (sizes.append(len(x["input_ids"])), forward(self, **x))[1]
    )
    out = sample(model, group_size=9, max_new_tokens=60)
    lengths = out["mask"].sum(1)
    assert sizes == [3] + [int((lengths > t).sum()) for t in range(1, int(lengths.max()))]  # a prompt is read once


def test_a_sliding_window_is_kept():
    model = random_qwen(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    out = sample(model)
    tokens, mask = batch(PROMPTS, rows_of(out))
    logp, _ = token_logprobs(model, tokens, mask)
    assert torch.allclose(logp[mask == 1], out["logp"][out["mask"] == 1], atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rollout_and_scoring_on_cuda_in_bf16():
    model = random_qwen().cuda()
    sampler = random_qwen().to("cuda", torch.bfloat16)
    out = sample(sampler, max_new_tokens=12, generator=torch.Generator("cuda").manual_seed(0))
    tokens, mask = (x.cuda() for x in batch(PROMPTS, rows_of(out)))
    with torch.autocast("cuda", torch.bfloat16):
        logp, _ = token_logprobs(model, tokens, mask)
    assert logp.dtype == torch.float32 and torch.isfinite(logp).all()
    assert (logp[mask == 1] - out["logp"][out["mask"] == 1]).abs().mean() < 0.1
