"""Chapters 2 and 3 of helpers.py: attention, the cache, the GPT model, greedy text.

Run it with: pytest tests/test_model.py
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import (
    GPT2_CONFIGS,
    GPT_CONFIG_124M,
    GPTModel,
    KVCache,
    MultiHeadAttention,
    generate_text_simple,
)

TINY = {"vocab_size": 61, "context_length": 12, "emb_dim": 24, "n_heads": 3}
TINY |= {"n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}
close = torch.testing.assert_close


def tiny_model(**changes):
    """Return a small model in float64, ready to generate."""
    torch.manual_seed(1)
    return GPTModel(TINY | changes).double().eval()


def random_ids(rows, tokens):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, TINY["vocab_size"], (rows, tokens), generator=generator)


# Attention


@torch.no_grad()
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_attention_equals_explicit_loops(qkv_bias):
    torch.manual_seed(3)
    att = MultiHeadAttention(10, 12, 8, 0.0, num_heads=3, qkv_bias=qkv_bias).double()
    x = torch.randn(2, 6, 10, dtype=torch.float64)
    q, k, v = att.W_query(x), att.W_key(x), att.W_value(x)
    context = torch.zeros(2, 6, 12, dtype=torch.float64)
    for b in range(2):
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            for t in range(6):
                scores = [q[b, t, part] @ k[b, s, part] / 2 for s in range(t + 1)]
                weights = torch.stack(scores).softmax(dim=0)
                for s, weight in enumerate(weights):
                    context[b, t, part] += weight * v[b, s, part]
    close(att(x), att.out_proj(context))


@pytest.mark.parametrize("changed", [1, 5, 11])
def test_a_future_token_leaves_earlier_logits_as_they_are(changed):
    model, idx = tiny_model(), random_ids(2, 12)
    other = idx.clone()
    other[:, changed] = (other[:, changed] + 1) % TINY["vocab_size"]
    before, after = model(idx), model(other)
    close(before[:, :changed], after[:, :changed], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, changed:], after[:, changed:])


# The cache, and greedy text


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "chunks", [[1] * 12, [12], [5, 7], [1, 4, 1, 6], [7, 1, 1, 3], [3, 3, 3, 3]]
)
def test_cached_logits_equal_uncached_ones(chunks, rows):
    model, idx, cache = tiny_model(), random_ids(rows, 12), KVCache()
    parts = [model(part, cache) for part in idx.split(chunks, dim=1)]
    close(torch.cat(parts, dim=1), model(idx), rtol=1e-11, atol=1e-12)
    assert cache.length() == 12


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("start", [1, 4, 11, 12, 20])
@pytest.mark.parametrize("context_size", [5, 12])
def test_greedy_text_equals_an_uncached_loop(start, rows, context_size):
    model, idx = tiny_model(), random_ids(rows, start)
    expected = idx
    for _ in range(15):
        best = model(expected[:, -context_size:])[:, -1].argmax(dim=-1, keepdim=True)
        expected = torch.cat((expected, best), dim=1)
    assert torch.equal(generate_text_simple(model, idx, 15, context_size), expected)
    assert torch.equal(generate_text_simple(model, idx, 0, context_size), idx)


def test_a_sequence_longer_than_the_context():
    model, cache = tiny_model(), KVCache()
    with pytest.raises(ValueError, match="13 tokens for a context_length of 12"):
        model(random_ids(1, 13))
    model(random_ids(1, 10), cache)
    with pytest.raises(ValueError, match="13 tokens"):
        model(random_ids(1, 3), cache)
    assert cache.length() == 10


# The whole model


def test_seed_123_gives_the_books_weights_and_tokens():
    torch.manual_seed(123)
    model = GPTModel(GPT_CONFIG_124M).eval()
    assert sum(p.numel() for p in model.parameters()) == 163_009_536
    idx = torch.tensor([[15496, 11, 314, 716]])  # "Hello, I am"
    out = generate_text_simple(model, idx, max_new_tokens=10, context_size=1024)
    assert out[0, 4:].tolist() == [
        *(27018, 24086, 47843, 30961, 42348, 7267, 49706, 43231, 47062, 34657)
    ]


def test_parameters_of_the_four_sizes():
    counts = {}
    for size, cfg in GPT2_CONFIGS.items():
        with torch.device("meta"):
            counts[size] = sum(p.numel() for p in GPTModel(cfg).parameters())
    assert counts == {
        "124M": 124_439_808,
        "355M": 354_823_168,
        "774M": 774_030_080,
        "1558M": 1_557_611_200,
    }


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_names_of_the_state_dictionary(qkv_bias, tie):
    model = GPTModel(TINY | {"qkv_bias": qkv_bias, "tie_weights": tie})
    expected = {"tok_emb.weight", "pos_emb.weight", "out_head.weight"}
    expected |= {"final_norm.scale", "final_norm.shift"}
    for i in range(2):
        names = {f"att.W_{part}.weight" for part in ("query", "key", "value")}
        if qkv_bias:
            names |= {f"att.W_{part}.bias" for part in ("query", "key", "value")}
        for layer in ("att.out_proj", "ff.layers.0", "ff.layers.2"):
            names |= {f"{layer}.weight", f"{layer}.bias"}
        names |= {f"norm{n}.{name}" for n in (1, 2) for name in ("scale", "shift")}
        expected |= {f"trf_blocks.{i}.{name}" for name in names}
    assert set(model.state_dict()) == expected
    assert isinstance(model.trf_blocks[0].drop_shortcut, nn.Dropout)
    assert isinstance(model.drop_emb, nn.Dropout)


def test_a_tied_head_is_the_token_embedding():
    torch.manual_seed(15)
    untied = GPTModel(TINY)
    torch.manual_seed(15)
    tied = GPTModel(TINY | {"tie_weights": True})
    assert tied.out_head.weight is tied.tok_emb.weight
    assert untied.out_head.weight is not untied.tok_emb.weight
    untied.out_head.weight.data = untied.tok_emb.weight.data
    close(tied.state_dict(), untied.state_dict(), rtol=0, atol=0)


def test_the_head_can_be_replaced():
    model, idx = tiny_model().float(), random_ids(2, 6)
    features = model.features(idx)
    close(model(idx), features @ model.out_head.weight.T)
    model.out_head = nn.Linear(24, 2)
    close(model(idx), model.out_head(features))


def plain_logits(model, idx):
    """Return a GPTModel's logits, with every operation written out."""

    def norm(x, layer):
        x = x - x.mean(dim=-1, keepdim=True)
        variance = (x**2).mean(dim=-1, keepdim=True)
        return layer.scale * x / torch.sqrt(variance + 1e-5) + layer.shift

    def drop(x):
        return F.dropout(x, model.cfg["drop_rate"], model.training)

    T, x = idx.shape[1], model.tok_emb.weight[idx]
    x = drop(x + model.pos_emb.weight[:T])
    future = torch.ones(T, T).triu(1).bool()
    for block in model.trf_blocks:
        att, normed = block.att, norm(x, block.norm1)
        q, k, v = (
            layer(normed).unflatten(-1, (model.cfg["n_heads"], -1)).transpose(1, 2)
            for layer in (att.W_query, att.W_key, att.W_value)
        )  # (B, H, T, D)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(future, -math.inf)
        context = drop(scores.softmax(dim=-1)) @ v
        x = x + drop(att.out_proj(context.transpose(1, 2).flatten(2)))
        wide = block.ff.layers[0](norm(x, block.norm2))
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        x = x + drop(block.ff.layers[2](0.5 * wide * (1 + torch.tanh(inner))))
    return model.out_head(norm(x, model.final_norm))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_logits_and_gradients_are_those_written_out(qkv_bias, training):
    model = tiny_model(drop_rate=0.2, qkv_bias=qkv_bias).train(training)
    idx, results = random_ids(4, 12), []
    for forward in (model, lambda idx: plain_logits(model, idx)):
        torch.manual_seed(17)  # dropout takes the same elements out
        logits = forward(idx)
        loss = F.cross_entropy(logits[:, :-1].mT, idx[:, 1:])
        results.append([logits, *torch.autograd.grad(loss, model.parameters())])
    close(*results)
