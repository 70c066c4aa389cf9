"""Sampling and scoring against slow, plain loops on a random model (numbers: the list of known bugs)."""

import copy
import math

import pytest
import torch
from conftest import random_qwen

from dapo import Decoder, eos_token_ids, micro_batches, pack, rollout, sample_tokens, token_logprobs

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15]]
EOS = [1, 2]


def sample(model, prompts=PROMPTS, group_size=4, max_new_tokens=12, seed=0, **more):
    how = {"eos_ids": EOS, "pad_id": 0, "generator": torch.Generator().manual_seed(seed)} | more
    return rollout(model, prompts, group_size, max_new_tokens, **how)


def rows_of(out):
    return [row[: int(n)].tolist() for row, n in zip(out["tokens"], out["mask"].sum(1), strict=True)]


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
    prompts = [p for p in PROMPTS for _ in range(4)]
    tokens, mask = pack(prompts, responses, pad_id=0)
    logp = token_logprobs(model, tokens, mask, temperature, chunk=chunk)
    assert torch.equal(logp[mask == 0], torch.zeros(int((mask == 0).sum())))
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
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
        out = sample(model, eos_ids=[eos], pad_id=eos, group_size=8, max_new_tokens=40)
    for row, mask, done in zip(out["tokens"], out["mask"], out["finished"], strict=True):
        n = int(mask.sum())
        assert torch.equal(mask, (torch.arange(len(mask)) < n).float())
        assert (row[n - 1] == eos) == done and eos not in row[: n - 1].tolist()
    assert out["finished"].any()
    _, packed = pack([[5, eos]], [[7, eos]], pad_id=eos)
    assert packed.tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("pads", range(8))
def test_7_left_padding_changes_nothing(model, pads):
    row = [5, 6, 7, 8, 9]
    alone = token_logprobs(model, torch.tensor([row]), torch.tensor([[0, 0, 1, 1, 1]]))
    tokens = torch.tensor([[0] * pads + row])
    mask = torch.tensor([[0] * (pads + 2) + [1, 1, 1]])
    attention = torch.tensor([[0] * pads + [1] * 5])
    padded = token_logprobs(model, tokens, mask, attention_mask=attention)
    assert (padded[0, pads:] - alone[0]).abs().max() < 1e-5
    wide = [[9] * (len(row) + pads), row]
    together = sample(model, wide, group_size=2, max_new_tokens=1)["entropy"][2:]
    assert (together - sample(model, [row], group_size=2, max_new_tokens=1)["entropy"]).abs().max() < 1e-5


def test_8_any_of_a_set_of_eos_ids_stops(model):
    out = sample(model, group_size=64, max_new_tokens=40)
    ends = {row[-1] for row, done in zip(rows_of(out), out["finished"], strict=True) if done}
    assert ends == set(EOS)
    assert all(len(row) == 40 for row, done in zip(rows_of(out), out["finished"], strict=True) if not done)

    class FakeTokenizer:
        eos_token_id = 7

    model.generation_config.eos_token_id = [1, 2]
    assert eos_token_ids(model, FakeTokenizer()) == [1, 2, 7]
    model.generation_config.eos_token_id = None
    assert eos_token_ids(model, FakeTokenizer()) == [7]


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
    tokens, mask = pack([p for p in PROMPTS for _ in range(64)], rows_of(out), pad_id=0)
    logp = token_logprobs(model, tokens, mask, n_vocab=30)
    assert torch.allclose(logp[mask == 1], out["logp"][out["mask"] == 1], atol=1e-4)
    assert (logp[mask == 1] > token_logprobs(model, tokens, mask)[mask == 1]).all()


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

    def gradients(logp):
        model.zero_grad()
        (logp * mask * weights).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    ours = gradients(token_logprobs(model, tokens, mask, 0.7, chunk=4))
    plain = torch.log_softmax(model(input_ids=tokens).logits[:, :-1] / 0.7, -1).gather(-1, tokens[:, 1:, None])[..., 0]
    plain = gradients(torch.nn.functional.pad(plain, (1, 0)))
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
    logp = token_logprobs(OneLayer(logits), tokens, torch.ones(1, 5), chunk=4096)
    exact = torch.log_softmax(logits.double(), -1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    assert (logp[:, 1:] - exact).abs().max() < 1e-5
    assert sample_tokens(logits[0])[1].dtype == torch.float32


def test_19_no_dropout_two_forwards_are_equal(model):
    model.train()
    tokens, mask = torch.randint(3, 40, (3, 9)), torch.ones(3, 9)
    assert torch.equal(token_logprobs(model, tokens, mask), token_logprobs(model, tokens, mask))


def test_16_gradient_mode_does_not_change_a_bit(model):
    tokens, mask = torch.randint(3, 40, (5, 19)), torch.ones(5, 19)
    with torch.no_grad():
        old = token_logprobs(model, tokens, mask)
    new = token_logprobs(model, tokens, mask)
    assert new.requires_grad and torch.equal(old, new.detach())


def test_pack_keeps_the_sampled_ids():
    tokens, mask = pack([[5], [6, 7]], [[8, 9, 1], [1]], pad_id=0)
    assert tokens.tolist() == [[5, 8, 9, 1], [6, 7, 1, 0]] and mask.tolist() == [[0, 1, 1, 1], [0, 0, 1, 0]]


def test_micro_batches_cover_each_mini_batch_once():
    mask = (torch.arange(12) < torch.randint(1, 12, (10, 1))).float()
    plan = micro_batches(mask, mini=4, micro=3)
    assert [sorted(r for rows, _ in mini for r in rows) for mini in plan] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    for rows, width in (micro for mini in plan for micro in mini):
        assert len(rows) <= 3 and mask[rows, width:].sum() == 0 and mask[rows, width - 1].sum() > 0


@pytest.mark.parametrize("bf16", [False, True])
def test_the_fixed_cache_gives_the_tokens_of_the_eager_path(model, monkeypatch, bf16):
    """The path of --cuda-graph, without the capture: rows leave at half, room doubles, nothing else changes."""
    captured = []

    def capture(self, n, used, original=Decoder.capture):
        original(self, n, used)
        captured.append(tuple(self.mask.shape[::3]))  # rows, room

    monkeypatch.setattr(Decoder, "capture", capture)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        eager, fixed = (sample(model, group_size=9, max_new_tokens=150, cuda_graph=on) for on in (False, True))
    rows, rooms = zip(*captured, strict=True)
    assert rows[0] > 20 and sorted(rows, reverse=True) == list(rows) and rows[-1] <= 6
    assert rooms[0] == 64 and sorted(rooms) == list(rooms) and 7 + 150 <= rooms[-1] <= 192
    if bf16:  # rounding may turn a draw here and there, and the row is another one from then on
        assert (eager["tokens"][:, 0] == fixed["tokens"][:, 0]).all() and fixed["logp"].dtype == torch.float32
        return
    assert torch.equal(eager["tokens"], fixed["tokens"]) and torch.equal(eager["finished"], fixed["finished"])
    assert torch.allclose(eager["logp"], fixed["logp"], atol=1e-5)


def test_a_sliding_window_decodes_eagerly():
    model = random_qwen(use_sliding_window=True, sliding_window=4, max_window_layers=0)
    eager, asked = (sample(model, cuda_graph=on) for on in (False, True))
    assert torch.equal(eager["tokens"], asked["tokens"]) and torch.equal(eager["logp"], asked["logp"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rollout_and_scoring_on_cuda_in_bf16():
    model = random_qwen().cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.autocast("cuda", torch.bfloat16):
        out = rollout(model, PROMPTS, 4, 12, EOS, 0, generator=generator)
        tokens, mask = pack([p for p in PROMPTS for _ in range(4)], rows_of(out), 0, "cuda")
        logp = token_logprobs(model, tokens, mask)
    assert logp.dtype == torch.float32 and torch.isfinite(logp).all()
    assert (logp[mask == 1] - out["logp"][out["mask"] == 1]).abs().mean() < 0.1 and not math.isnan(logp.sum())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_graphs_give_the_tokens_of_the_eager_path(bf16):
    model, outs = random_qwen().cuda(), []
    for on in (False, True):
        generator = torch.Generator("cuda").manual_seed(0)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            outs.append(rollout(model, PROMPTS, 9, 150, EOS, 0, generator=generator, cuda_graph=on))
    eager, graph = outs
    assert (eager["tokens"][:, 0] == graph["tokens"][:, 0]).all()
    rows, tokens = rows_of(graph), pack([p for p in PROMPTS for _ in range(9)], rows_of(graph), 0, "cuda")
    logp = token_logprobs(model, *tokens)
    assert (logp[tokens[1] == 1] - graph["logp"][graph["mask"] == 1]).abs().max() < (0.3 if bf16 else 1e-3), rows
    if not bf16:
        assert torch.equal(eager["tokens"], graph["tokens"])
