"""Chapters 2 and 3 of helpers.py: attention, the cache, the GPT model, greedy text.

Run it with: pytest tests/test_model.py
"""

import math

import pytest
import torch
import torch.nn.functional as F
from plain_gpt import PlainGPT
from torch import nn

import helpers
from helpers import (
    GELU,
    GPT2_CONFIGS,
    GPT_CONFIG_124M,
    FeedForward,
    GPTModel,
    KVCache,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    TransformerBlock,
    generate_text_simple,
)

TINY = {
    "vocab_size": 61,
    "context_length": 12,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
}


def tiny_model(**changes):
    """Return a small model in float64, ready to generate."""
    torch.manual_seed(1)
    return GPTModel(TINY | changes).double().eval()


def random_ids(rows, tokens):
    """Return `(rows, tokens)` ids that every tiny model knows."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, TINY["vocab_size"], (rows, tokens), generator=generator)


def attention_and_input(qkv_bias, tokens=6):
    """Return a module from 10 to 12 dimensions with 3 heads, and a batch of two."""
    torch.manual_seed(3)
    att = MultiHeadAttention(10, 12, 8, 0.0, num_heads=3, qkv_bias=qkv_bias).double()
    return att, torch.randn(2, tokens, 10, dtype=torch.float64)


def same_bits(a, b):
    """Say whether two tensors are equal to the bit."""
    return a.shape == b.shape and torch.equal(a, b)


# Attention


@torch.no_grad()
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_attention_equals_explicit_loops(qkv_bias):
    att, x = attention_and_input(qkv_bias)
    q, k, v = att.W_query(x), att.W_key(x), att.W_value(x)
    context = torch.zeros(2, 6, 12, dtype=torch.float64)
    for b in range(2):
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            for t in range(6):
                scores = [
                    float(q[b, t, part] @ k[b, s, part]) / 2 for s in range(t + 1)
                ]
                total = sum(math.exp(score) for score in scores)
                for s, score in enumerate(scores):
                    context[b, t, part] += math.exp(score) / total * v[b, s, part]
    torch.testing.assert_close(att(x), att.out_proj(context))


def test_attention_equals_torch_multihead_attention():
    torch.manual_seed(4)
    att = MultiHeadAttention(12, 12, 8, 0.0, num_heads=3, qkv_bias=True)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    parts = (att.W_query, att.W_key, att.W_value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        theirs.out_proj.load_state_dict(att.out_proj.state_dict())
    x = torch.randn(2, 8, 12)
    future = torch.ones(8, 8, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=future, need_weights=False)
    torch.testing.assert_close(att(x), expected)


def test_attention_equals_scaled_dot_product_attention():
    att, x = attention_and_input(qkv_bias=False)
    q, k, v = (
        (x @ part.weight.T).unflatten(-1, (3, 4)).transpose(1, 2)
        for part in (att.W_query, att.W_key, att.W_value)
    )
    context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected = context.transpose(1, 2).flatten(2) @ att.out_proj.weight.T
    torch.testing.assert_close(att(x), expected + att.out_proj.bias)


def test_attention_drops_weights_only_in_training():
    torch.manual_seed(5)
    att = MultiHeadAttention(8, 8, 4, dropout=0.5, num_heads=2)
    x = torch.randn(1, 4, 8)
    assert not torch.equal(att(x), att(x))
    att.eval()
    assert same_bits(att(x), att(x))


@pytest.mark.parametrize("d_out, num_heads", [(10, 3), (8, 16)])
def test_attention_refuses_heads_that_dont_divide_the_width(d_out, num_heads):
    with pytest.raises(ValueError, match=f"d_out={d_out} and num_heads={num_heads}"):
        MultiHeadAttention(8, d_out, 4, 0.0, num_heads)


@pytest.mark.parametrize("bad", [0, -2, None, 2.0, math.nan, "4", True])
@pytest.mark.parametrize("name", ["d_in", "d_out", "context_length", "num_heads"])
def test_attention_refuses_what_is_no_size(name, bad):
    sizes = {"d_in": 8, "d_out": 8, "context_length": 4, "dropout": 0.0, "num_heads": 2}
    with pytest.raises(ValueError, match=f"{name}={bad!r}, expected a whole number"):
        MultiHeadAttention(**sizes | {name: bad})


def test_attention_refuses_more_tokens_than_its_context():
    att, x = attention_and_input(qkv_bias=False, tokens=9)
    with pytest.raises(ValueError, match="9 tokens.*context_length=8"):
        att(x)
    cache = KVCache()
    att(x[:, :5], cache)
    with pytest.raises(ValueError, match="9 tokens.*context_length=8"):
        att(x[:, 5:], cache)
    assert cache.length() == 5


# What attention sees


@pytest.mark.parametrize("changed", [1, 5, 11])
def test_a_future_token_leaves_earlier_logits_as_they_are(changed):
    model, idx = tiny_model(), random_ids(2, 12)
    other = idx.clone()
    other[:, changed] = (other[:, changed] + 1) % TINY["vocab_size"]
    before, after = model(idx), model(other)
    torch.testing.assert_close(
        before[:, :changed], after[:, :changed], rtol=0, atol=1e-12
    )
    assert not torch.allclose(before[:, changed:], after[:, changed:])


def test_without_positions_the_last_token_sees_a_set():
    model, idx = tiny_model(n_layers=1), random_ids(1, 8)
    shuffled = torch.cat((idx[:, :7].flip(1), idx[:, 7:]), dim=1)
    assert not torch.allclose(model(idx)[:, -1], model(shuffled)[:, -1])
    nn.init.zeros_(model.pos_emb.weight)
    torch.testing.assert_close(model(idx)[:, -1], model(shuffled)[:, -1])


def test_rows_of_a_batch_do_not_see_each_other():
    model, idx = tiny_model(), random_ids(3, 9)
    alone = torch.cat([model(row[None]) for row in idx])
    torch.testing.assert_close(model(idx), alone)


# The cache


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "chunks", [[1] * 12, [12], [5, 7], [1, 4, 1, 6], [7, 1, 1, 3], [3, 3, 3, 3]]
)
def test_cached_logits_equal_uncached_ones(chunks, rows, grad):
    model, idx, cache = tiny_model(), random_ids(rows, 12), KVCache()
    with torch.set_grad_enabled(grad):
        parts = [model(part, cache) for part in idx.split(chunks, dim=1)]
        torch.testing.assert_close(
            torch.cat(parts, dim=1), model(idx), rtol=1e-11, atol=1e-12
        )
    assert cache.length() == cache.length(layer=1) == 12


@torch.no_grad()
def test_cached_logits_equal_uncached_ones_in_float32():
    model, idx, cache = tiny_model().float(), random_ids(2, 12), KVCache()
    parts = [model(part, cache) for part in idx.split([4, 1, 2, 5], dim=1)]
    torch.testing.assert_close(
        torch.cat(parts, dim=1), model(idx), rtol=1e-4, atol=1e-5
    )


def test_cache_keeps_what_it_stored_through_growth():
    torch.manual_seed(6)
    cache, keys = KVCache(), torch.randn(2, 3, 300, 4)
    done = 0
    for size in [1, 1, 5, 40, 1, 100, 2, 150]:
        new = keys[:, :, done : done + size]
        done += size
        for layer in (0, 4):
            stored, values = cache.update(new, -new, layer)
            assert same_bits(stored, keys[:, :, :done])
            assert same_bits(values, -keys[:, :, :done])
            assert cache.length(layer) == done
    assert done == 300


def test_cache_grows_a_few_times_only():
    cache, one = KVCache(), torch.zeros(1, 1, 1, 4)
    keys = [cache.update(one, one)[0] for _ in range(1000)]
    assert len({stored.untyped_storage().nbytes() for stored in keys}) < 20


def test_cache_does_not_change_tensors_of_its_caller():
    cache, keys = KVCache(), torch.zeros(1, 1, 2, 4)
    cache.update(keys, keys)
    cache.update(keys + 1, keys + 1)
    assert keys.eq(0).all() and keys.shape == (1, 1, 2, 4)


@pytest.mark.parametrize("shape", [(3, 2, 1, 4), (2, 1, 1, 4), (2, 2, 1, 8)])
def test_cache_refuses_another_batch_or_model(shape):
    cache, keys = KVCache(), torch.zeros(2, 2, 3, 4)
    cache.update(keys, keys)
    with pytest.raises(ValueError, match="new KVCache"):
        cache.update(torch.zeros(shape), torch.zeros(shape))
    assert cache.length() == 3


@pytest.mark.parametrize("stored", [0, 3])
def test_cache_refuses_values_that_do_not_fit_the_keys(stored):
    cache, keys = KVCache(), torch.zeros(2, 2, 2, 4)
    if stored:
        cache.update(torch.zeros(2, 2, stored, 4), torch.zeros(2, 2, stored, 4))
    for wrong in (keys[:, :, :1], keys[..., :1], keys[:1], keys[0]):
        with pytest.raises(ValueError, match="one shape"):
            cache.update(keys, wrong)
    assert cache.length() == stored


def test_model_refuses_another_batch_size_on_the_same_cache():
    model, cache = tiny_model(), KVCache()
    model(random_ids(2, 4), cache)
    with pytest.raises(ValueError, match="batch of 3"):
        model(random_ids(3, 1), cache)


def test_cleared_cache_starts_anew():
    model, cache = tiny_model(), KVCache()
    model(random_ids(3, 7), cache)
    cache.clear()
    assert cache.length() == cache.length(layer=1) == 0
    idx = random_ids(2, 5)
    torch.testing.assert_close(model(idx, cache), model(idx))


# Greedy generation


def greedy(model, idx, new, context_size):
    """Generate without a cache: the whole window is read for every token."""
    for _ in range(new):
        logits = model(idx[:, -context_size:])[:, -1]
        idx = torch.cat((idx, logits.argmax(dim=-1, keepdim=True)), dim=1)
    return idx


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("start", [1, 4, 11, 12, 20])
@pytest.mark.parametrize("context_size", [5, 12])
def test_greedy_text_equals_an_uncached_loop(start, rows, context_size):
    model, idx = tiny_model(), random_ids(rows, start)
    out = generate_text_simple(model, idx, 15, context_size)
    assert same_bits(out, greedy(model, idx, 15, context_size))
    assert same_bits(out[:, :start], idx) and len(out[0]) == start + 15


def test_greedy_text_differs_between_prompts():
    model = tiny_model()
    outs = {
        tuple(generate_text_simple(model, row[None], 6, 12)[0, 3:].tolist())
        for row in random_ids(8, 3)
    }
    assert len(outs) > 3


def test_generating_no_token_returns_the_prompt():
    idx = random_ids(2, 3)
    assert same_bits(generate_text_simple(tiny_model(), idx, 0, 12), idx)


# Mistakes of users

IDS = random_ids(2, 4)
WRONG_IDS = {
    "None": (None, TypeError, "got NoneType as token ids"),
    "a list": ([[1, 2]], TypeError, "got list as token ids"),
    "text": ("Hello", TypeError, "got str as token ids"),
    "an array": (IDS.numpy(), TypeError, "got ndarray as token ids"),
    "one row": (IDS[0], ValueError, r"shape \(4,\).*unsqueeze"),
    "a number": (torch.tensor(3), ValueError, r"shape \(\) "),
    "vectors": (IDS[..., None], ValueError, r"shape \(2, 4, 1\)"),
    "no row": (IDS[:0], ValueError, r"shape \(0, 4\)"),
    "floats": (IDS.float(), ValueError, "torch.float32, expected .*torch.int64"),
    "empty floats": (torch.zeros(1, 0), ValueError, "torch.float32"),
    "booleans": (IDS > 3, ValueError, "torch.bool"),
    "short": (IDS.short(), ValueError, "torch.int16"),
    "elsewhere": (IDS.to("meta"), ValueError, "on meta, expected cpu"),
    "no token": (IDS[:, :0], ValueError, "sequence of 0 tokens"),
}


@pytest.mark.parametrize("case", WRONG_IDS)
@pytest.mark.parametrize("use", ["forward", "generate_text_simple", "generate"])
def test_ids_that_a_model_cannot_take(use, case):
    model, (ids, error, message) = tiny_model(), WRONG_IDS[case]
    with pytest.raises(error, match=message):
        if use == "forward":
            model(ids)
        else:
            getattr(helpers, use)(model, ids, 3, 12)


def test_ids_of_32_bits_are_as_good():
    model = tiny_model()
    assert same_bits(model(IDS.int()), model(IDS))


def test_a_model_elsewhere_than_its_ids():
    with pytest.raises(ValueError, match="on cpu, expected meta, where the model is"):
        tiny_model().to("meta")(IDS)


@pytest.mark.parametrize("use", ["generate_text_simple", "generate"])
@pytest.mark.parametrize(
    "name, bad",
    [("max_new_tokens", bad) for bad in (-1, None, 2.5, math.nan, "3")]
    + [("context_size", bad) for bad in (0, -1, None, 2.5, math.nan, "3")],
)
def test_numbers_that_generation_cannot_take(use, name, bad):
    numbers = {"max_new_tokens": 3, "context_size": 12} | {name: bad}
    with pytest.raises(ValueError, match=f"{name}={bad!r}, expected a whole number"):
        getattr(helpers, use)(tiny_model(), IDS, **numbers)


@pytest.mark.parametrize("bad", [None, [], "124M", 7])
def test_a_configuration_is_a_dictionary(bad):
    with pytest.raises(TypeError, match="expected a dictionary"):
        GPTModel(bad)


# Layers


@pytest.mark.parametrize("width", [1, 5, 64])
def test_layer_norm_equals_torch(width):
    torch.manual_seed(7)
    ours, theirs = LayerNorm(width), nn.LayerNorm(width)
    with torch.no_grad():
        ours.scale.copy_(torch.randn(width))
        ours.shift.copy_(torch.randn(width))
        theirs.weight.copy_(ours.scale)
        theirs.bias.copy_(ours.shift)
    x = 5 * torch.randn(2, 3, width) + 2
    torch.testing.assert_close(ours(x), theirs(x))


def test_layer_norm_gives_mean_zero_and_variance_one():
    torch.manual_seed(8)
    out = LayerNorm(50)(9 * torch.randn(4, 50) + 3)
    torch.testing.assert_close(out.mean(-1), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var(-1, unbiased=False), torch.ones(4))


def test_gelu_equals_torch_and_its_formula():
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    torch.testing.assert_close(GELU()(x), nn.GELU(approximate="tanh")(x))
    torch.testing.assert_close(GELU()(x), 0.5 * x * (1 + torch.tanh(inner)))
    assert (GELU()(x) - nn.GELU()(x)).abs().max() > 1e-5  # not the exact one


def test_feed_forward_widens_four_times():
    torch.manual_seed(9)
    ff = FeedForward(TINY)
    first, _, second = ff.layers
    assert first.weight.shape == (96, 24) and second.weight.shape == (24, 96)
    x = torch.randn(2, 3, 24)
    expected = F.linear(F.gelu(first(x), approximate="tanh"), second.weight)
    torch.testing.assert_close(ff(x), expected + second.bias)


def test_block_normalises_before_and_adds_after():
    torch.manual_seed(10)
    block, x = TransformerBlock(TINY), torch.randn(2, 5, 24)
    middle = x + block.att(block.norm1(x))
    torch.testing.assert_close(block(x), middle + block.ff(block.norm2(middle)))


ROWS = [(1,), (2,), (3,), (4,), (5,), (6,), (1, 1), (2, 2), (1, 5), (2, 3), (0,), ()]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("n_out", [1, 2, 31, 32, 48, 97])
def test_linear_equals_torch(n_out, rows, bias, grad):
    torch.manual_seed(11)
    ours, theirs = Linear(13, n_out, bias=bias), nn.Linear(13, n_out, bias=bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*rows, 13)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(ours(x), theirs(x))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6])
def test_linear_with_the_vocabulary_of_gpt2_equals_torch(rows):
    torch.manual_seed(12)
    layer, x = Linear(16, 50257, bias=False), torch.randn(1, 8, 16)[:, :rows]
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 4])
def test_linear_takes_inputs_and_weights_of_any_strides(rows):
    torch.manual_seed(13)
    layer, x = Linear(6, 10), torch.randn(6, 2 * rows).T[::2]
    layer.weight.data = torch.randn(6, 10).T
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 6), (4, 3), (1, 24), (12, 1)])
def test_linear_refuses_an_input_of_another_width(shape):
    with pytest.raises(RuntimeError):
        Linear(12, 5)(torch.zeros(shape))


@pytest.mark.parametrize("rows", [1, 3, 6])
def test_gradients_flow_through_linear(rows):
    torch.manual_seed(14)
    layer, x = Linear(5, 7), torch.randn(rows, 5, requires_grad=True)
    out_grad = torch.randn(rows, 7)
    layer(x).backward(out_grad)
    torch.testing.assert_close(layer.weight.grad, out_grad.T @ x.detach())
    torch.testing.assert_close(layer.bias.grad, out_grad.sum(0))
    torch.testing.assert_close(x.grad, out_grad @ layer.weight.detach())


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


@pytest.mark.parametrize(
    "size, parameters",
    [
        ("124M", 124_439_808),
        ("355M", 354_823_168),
        ("774M", 774_030_080),
        ("1558M", 1_557_611_200),
    ],
)
def test_parameters_of_the_four_sizes(size, parameters):
    cfg = GPT2_CONFIGS[size]
    with torch.device("meta"):
        model = GPTModel(cfg)
    assert sum(p.numel() for p in model.parameters()) == parameters
    V, T, C, L = (
        cfg[key] for key in ("vocab_size", "context_length", "emb_dim", "n_layers")
    )
    block = 4 * C * (C + 1) + (C + 1) * 4 * C + (4 * C + 1) * C + 4 * C
    assert parameters == (V + T) * C + L * block + 2 * C
    assert list(GPT2_CONFIGS) == ["124M", "355M", "774M", "1558M"]


def block_names(i, qkv_bias):
    """Return the names that the state dictionary has for block `i`."""
    att = [f"W_{part}.weight" for part in ("query", "key", "value")]
    att += [f"W_{part}.bias" for part in ("query", "key", "value") if qkv_bias]
    names = [f"att.{name}" for name in (*att, "out_proj.weight", "out_proj.bias")]
    names += [f"ff.layers.{n}.{name}" for n in (0, 2) for name in ("weight", "bias")]
    names += [f"norm{n}.{name}" for n in (1, 2) for name in ("scale", "shift")]
    return [f"trf_blocks.{i}.{name}" for name in names]


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_names_of_the_state_dictionary(qkv_bias, tie):
    model = GPTModel(TINY | {"qkv_bias": qkv_bias, "tie_weights": tie})
    expected = ["tok_emb.weight", "pos_emb.weight", "out_head.weight"]
    expected += ["final_norm.scale", "final_norm.shift"]
    expected += block_names(0, qkv_bias) + block_names(1, qkv_bias)
    assert sorted(model.state_dict()) == sorted(expected)
    assert not list(model.buffers())
    assert isinstance(model.trf_blocks[0].drop_shortcut, nn.Dropout)
    assert isinstance(model.drop_emb, nn.Dropout)


def test_tied_head_is_the_token_embedding():
    model = GPTModel(TINY | {"tie_weights": True})
    assert model.out_head.weight is model.tok_emb.weight
    model(random_ids(1, 4)).sum().backward()
    names = [name for name, _ in model.named_parameters()]
    assert "tok_emb.weight" in names and "out_head.weight" not in names
    assert GPTModel(TINY).out_head.weight is not GPTModel(TINY).tok_emb.weight


def test_a_seed_gives_the_same_weights_tied_or_not():
    torch.manual_seed(15)
    untied = GPTModel(TINY).state_dict()
    torch.manual_seed(15)
    tied = GPTModel(TINY | {"tie_weights": True}).state_dict()
    untied["out_head.weight"] = untied["tok_emb.weight"]
    assert all(same_bits(tied[name], untied[name]) for name in untied)


def test_head_can_be_replaced():
    model, idx = tiny_model().float(), random_ids(2, 6)
    features = model.features(idx)
    model.out_head = nn.Linear(24, 2)
    assert model(idx).shape == (2, 6, 2)
    torch.testing.assert_close(model(idx), model.out_head(features))


def test_logits_are_the_head_of_the_features():
    model, idx = tiny_model(), random_ids(2, 6)
    features = model.features(idx)
    assert features.shape == (2, 6, 24)
    torch.testing.assert_close(model(idx), features @ model.out_head.weight.T)


def test_model_keeps_its_own_copy_of_the_configuration():
    cfg = dict(TINY)
    model = GPTModel(cfg)
    cfg["context_length"] = 1
    assert model.cfg == TINY
    model(random_ids(1, 12))


WRONG = [
    *[(key, 0) for key in ("vocab_size", "context_length", "emb_dim")],
    *[("n_heads", 0), ("n_layers", -1), ("n_heads", 5), ("emb_dim", 25)],
    *[("n_heads", True), ("vocab_size", "61"), ("n_layers", 2.0), ("emb_dim", None)],
    *[("drop_rate", bad) for bad in (-0.1, 1, 1.5, True, math.nan, "0.1", None)],
    *[("qkv_bias", bad) for bad in ("False", None, 1)],
    *[("tie_weights", bad) for bad in ("no", None, 1)],
]


@pytest.mark.parametrize("key, value", WRONG)
def test_wrong_configuration_names_its_key(key, value):
    with pytest.raises(ValueError, match=key):
        GPTModel(TINY | {key: value})


@pytest.mark.parametrize("key", TINY)
def test_missing_key_is_named(key):
    cfg = {name: value for name, value in TINY.items() if name != key}
    with pytest.raises(ValueError, match=rf"without \['{key}'\]"):
        GPTModel(cfg)


def test_unknown_key_is_named():
    with pytest.raises(ValueError, match="dropout"):
        GPTModel(TINY | {"dropout": 0.1})


@pytest.mark.parametrize("tokens", [0, 13])
def test_sequence_longer_than_the_context_or_empty(tokens):
    with pytest.raises(ValueError, match=f"{tokens} tokens.*context_length=12"):
        tiny_model()(random_ids(1, tokens))


def test_sequence_longer_than_the_context_with_a_cache():
    model, cache = tiny_model(), KVCache()
    model(random_ids(1, 10), cache)
    with pytest.raises(ValueError, match="13 tokens"):
        model(random_ids(1, 3), cache)
    assert cache.length() == 10


@pytest.mark.parametrize("bad", [-1, 61, 50256])
def test_ids_outside_the_vocabulary(bad):
    idx = random_ids(2, 4)
    idx[1, 2] = bad
    with pytest.raises(ValueError, match=f"{bad}.*expected 0 to 60"):
        tiny_model()(idx)


@pytest.mark.parametrize("tie", [False, True])
def test_training_step_moves_every_parameter(tie):
    torch.manual_seed(16)
    model = GPTModel(TINY | {"tie_weights": tie, "qkv_bias": False})
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    F.cross_entropy(
        model(random_ids(6, 12)).flatten(0, 1), random_ids(1, 72)[0]
    ).backward()
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not p.equal(before[name])]
    assert moved == list(before)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_training_equals_a_plain_gpt_with_dropout(qkv_bias):
    idx, losses = random_ids(4, 13), []
    for build in (GPTModel, PlainGPT):
        torch.manual_seed(17)
        model = build(TINY | {"drop_rate": 0.1, "qkv_bias": qkv_bias})
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(
                model(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten()
            )
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][2] < losses[0][0]
