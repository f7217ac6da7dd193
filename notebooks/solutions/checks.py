"""Checks of the exercises: each prints a hint, or that it is solved.

Notebooks and solutions call them, as in `checks.exercise_1_1(answer)`.
"""

import math
import random
import re
import sys
from functools import wraps
from itertools import combinations, pairwise, product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2]))

import helpers

TINY = {"vocab_size": 100, "context_length": 32, "emb_dim": 32, "n_heads": 4}
TINY |= {"n_layers": 3, "drop_rate": 0.0, "qkv_bias": False}


def exercise(number):
    """Make a function of asserts print its first failing hint, or "is solved."."""

    def decorate(check):
        @wraps(check)
        def run(answer):
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(123)
                    check(answer)
                print(f"Exercise {number} is solved.")
            except (AssertionError, NotImplementedError) as hint:
                print(f"Exercise {number}: {hint}")

        return run

    return decorate


def close(a, b, tolerance=1e-4):
    """Say whether `a` is a tensor with the shape and, nearly, the values of `b`."""
    return (
        torch.is_tensor(a)
        and a.shape == b.shape
        and torch.allclose(a.to(b), b, atol=tolerance)
    )


@exercise("1.1")
def exercise_1_1(answer):
    assert answer is not None, "write a list of five byte strings into `answer`"
    assert isinstance(answer, list) and all(isinstance(t, bytes) for t in answer), (
        "a list of bytes is wanted, such as [b'ea', b'tea']"
    )
    assert len(answer) == 5, f"{len(answer)} tokens are in your list, five are wanted"
    counts = {"stone": 6, "tone": 3, "one": 2, "note": 4}
    tokens = list(helpers.train_bpe(counts, 261))[256:]
    for place, (mine, right) in enumerate(zip(answer, tokens, strict=True), 1):
        assert mine == right, (
            f"token {place} is another one: count a pair as often as its words occur, "
            f"and of equal counts take the pair that comes later in alphabetical order"
        )


@exercise("1.2")
def exercise_1_2(count_batches):
    for n, length, stride, size, drop in product(
        (5, 9, 33), (1, 4, 8), (1, 3, 4), (1, 2, 5), (True, False)
    ):
        windows = helpers.GPTDatasetV1("a" * n, helpers.BPETokenizer(), length, stride)
        batches = torch.utils.data.BatchSampler(range(len(windows)), size, drop)
        assert count_batches(n, length, stride, size, drop) == len(batches), (
            f"{n} tokens with max_length={length}, stride={stride}, batch_size={size}, "
            f"drop_last={drop}: draw this case and count again"
        )


@exercise("1.3")
def exercise_1_3(decode_stream):
    text = "naïve, 海 and 🌊, 한국어"
    trained = helpers.BPETokenizer.train(text, 275)
    odd = helpers.BPETokenizer(helpers.BPETokenizer().ranks | {b"\xb7\xe6": 256})
    for tokenizer in (trained, odd):
        read, arrived, shown = [], b"", ""
        ids = tokenizer.encode(text + "ça va? 海海🌋")
        stream = decode_stream((read.append(i) or i for i in ids), tokenizer)
        assert hasattr(stream, "__next__"), "a generator is wanted: use `yield`"
        for n, i in enumerate(ids, 1):
            arrived, new = arrived + tokenizer.tokens[i], next(stream, None)
            assert isinstance(new, str), "yield a string for each id, even if empty"
            assert len(read) == n, "yield before you read the next id"
            shown += new
            assert "\ufffd" not in shown, "keep the bytes of an unfinished character"
            assert shown == arrived.decode("utf-8", "ignore"), (
                "a character is missing: yield it as soon as its last byte is there"
            )


@exercise("1.4")
def exercise_1_4(encode_shortest):
    for trial in range(40):
        letters = bytes(torch.randint(97, 99, (60,)).tolist())
        ranks = {bytes([b]): b for b in range(256)}
        for n in range(10):
            ranks.setdefault(letters[4 * n : 4 * n + 2 + n % 3], len(ranks))
        token_of = {i: token for token, i in ranks.items()}
        piece = letters[40 : 42 + trial % 8]
        found = encode_shortest(piece, ranks)
        ids = isinstance(found, list | tuple) and {*found} <= {*token_of}
        assert ids, "a list of ids, please"
        assert b"".join(token_of[i] for i in found) == piece, "these are other bytes"
        fewest = len(piece)
        for cut in product((False, True), repeat=len(piece) - 1):
            ends = [0, *(i for i, here in enumerate(cut, 1) if here), len(piece)]
            if all(piece[a:b] in ranks for a, b in pairwise(ends)):
                fewest = min(fewest, len(ends) - 1)
        assert len(found) == fewest, f"{piece} can be made of {fewest} tokens"


@exercise("1.5")
def exercise_1_5(trigram_weights):
    ids, counts = [1, 2, 3, 1, 2, 4, 1, 2, 4, 0, 2, 1], torch.eye(5).flip(0)
    weights = trigram_weights(ids, counts, 1, 2)
    assert torch.is_tensor(weights) and weights.shape == (5,), "weights (V,) are wanted"
    shares = weights / weights.sum()
    assert close(shares, torch.tensor([0, 0, 0, 1 / 3, 2 / 3]), 1e-3), (
        "in 1 2 3 1 2 4 1 2 4 the pair 1 2 is followed by 3 once and by 4 twice"
    )
    assert close(trigram_weights(ids, counts, 3, 3), counts[3]), (
        "nothing follows a pair that never occurs: use the bigram's row of `last`"
    )
    assert close(trigram_weights(ids, counts, 2, 1), counts[1]), (
        "the pair that ends the text has nothing after it"
    )


@exercise("2.1")
def exercise_2_1(equal_scores):
    for shape in ((1, 1, 3, 2), (2, 3, 7, 4), (3, 1, 1, 5)):
        values = torch.randn(shape)
        out = equal_scores(values)
        assert torch.is_tensor(out) and out.shape == shape, (
            f"for values of shape {shape} the result should have the same shape"
        )
        assert close(out[:, :, 0], values[:, :, 0]), "the first token sees only itself"
        zeros = torch.zeros(shape)
        right = F.scaled_dot_product_attention(zeros, zeros, values, is_causal=True)
        assert close(out, right), "the second token sees two tokens, equally"


@exercise("2.2")
def exercise_2_2(windowed_attention):
    for n, window in ((6, 1), (6, 3), (11, 5), (7, 7), (5, 20)):
        q, k, v = torch.randn(3, 2, 2, n, 4)
        out = windowed_attention(q, k, v, window)
        assert torch.is_tensor(out) and out.shape == v.shape, "the shape of v is wanted"
        ends = [x[:, :, -window:] for x in (q, k, v)]
        last = F.scaled_dot_product_attention(*ends, is_causal=True)[:, :, -1]
        assert close(out[:, :, -1], last), (
            f"the last of {n} tokens should see the last {window}, no more and no less"
        )
        k[:, :, 2], v[:, :, 2] = 5.0, 5.0  # who notices?
        moved = (windowed_attention(q, k, v, window) - out).abs().amax(dim=(0, 1, 3))
        seen = (moved > 1e-5).nonzero().flatten().tolist()
        assert seen == [*range(2, min(n, 2 + window))], (
            f"with a window of {window}, token 2 is seen by the wrong tokens"
        )


@exercise("2.3")
def exercise_2_3(grouped_attention):
    for heads, groups in ((4, 4), (6, 1), (6, 2), (12, 3)):
        q = torch.randn(2, heads, 5, 4)
        k, v = torch.randn(2, 2, groups, 5, 4)
        out = grouped_attention(q, k, v)
        assert torch.is_tensor(out) and out.shape == q.shape, "the shape of q is wanted"
        for h in range(heads):
            g = h * groups // heads
            pair = k[:, g : g + 1], v[:, g : g + 1]
            alone = F.scaled_dot_product_attention(
                q[:, h : h + 1], *pair, is_causal=True
            )
            assert close(out[:, h : h + 1], alone), (
                f"H = {heads}, G = {groups}: head {h} should use keys and values {g}, "
                f"and look back only"
            )


@exercise("2.4")
def exercise_2_4(attend_in_blocks):
    def hand_out(keys, values, size):
        for block in zip(keys.split(size), values.split(size), strict=True):
            block = [part.clone() for part in block]
            yield tuple(block)
            block[0].fill_(torch.nan), block[1].fill_(torch.nan)

    cases = ((1, 40, 0), (1, 7, 0), (300, 1, 0), (3000, 16, 0), (300, 5, -2))
    for scale, size, shift in cases:
        query, keys, values = torch.randn(8), *torch.randn(2, 40, 8)
        keys += shift * query  # all scores far below zero
        out = attend_in_blocks(scale * query, hand_out(keys, values, size))
        assert torch.is_tensor(out) and out.shape == (8,), "the result has D numbers"
        assert not out.isnan().any(), "NaN: a block was kept, or an exp overflowed"
        weights = torch.softmax(keys @ (scale * query) / 8**0.5, dim=0)
        assert close(out, weights @ values, 1e-3), (
            "rescale both the sum and the mix, and divide the scores by √D"
        )


@exercise("2.5")
def exercise_2_5(answer):
    assert answer is not None, "write a dictionary {width: accuracy} into `answer`"
    assert isinstance(answer, dict) and {1, 16} <= {*answer}, (
        "the widths 1 and 16 should be among those that you tried"
    )
    shares = answer.values()
    assert all(0 <= share <= 1 for share in shares), (
        "an accuracy is a number from 0 to 1, such as 0.25"
    )
    assert answer[16] > 0.9, (
        "one of your accuracies is too low: was that model trained for all 500 steps?"
    )
    assert answer[1] < 0.6, "with one dimension it can't work: is it the width you set?"


@exercise("3.1")
def exercise_3_1(n_parameters):
    variants = [*helpers.GPT2_CONFIGS.values(), helpers.GPT_CONFIG_124M]
    for wide, heads, layers in ((6, 2, 1), (10, 5, 3), (24, 3, 2), (7, 1, 5)):
        cfg = TINY | {"emb_dim": wide, "n_heads": heads, "n_layers": layers}
        variants.append(cfg | {"qkv_bias": wide > 8, "tie_weights": layers > 2})
    for cfg in variants:
        with torch.device("meta"):
            exact = sum(p.numel() for p in helpers.GPTModel(cfg).parameters())
        found = n_parameters(cfg)
        assert found == exact, f"{cfg} has {exact:,} parameters, not {found}"


@torch.no_grad()
def change(model, letter):
    """Make one of the seven changes of exercise 3.2 to a model."""
    for att in (block.att for block in model.trf_blocks):
        if letter == "a":
            att.W_query.weight *= 3
            att.W_key.weight /= 3
        if letter == "b":
            att.W_key.bias = nn.Parameter(torch.randn(32).double())
        if letter == "c":
            att.W_value.bias = nn.Parameter(torch.randn(32).double())
    if letter == "d":
        model.tok_emb.weight += 5
    if letter == "e":
        model.tok_emb.weight *= 2
        model.pos_emb.weight *= 2
    if letter == "f":
        model.out_head.weight += torch.randn(32).double()
    if letter == "g":
        model.final_norm.scale *= 2


@exercise("3.2")
def exercise_3_2(answer):
    assert isinstance(answer, str), "write a string of letters into `answer`"
    assert {*answer} <= {*"abcdefg"}, "only the letters a to g name changes"
    ids = torch.randint(0, 100, (4, 8))
    weights = helpers.GPTModel(TINY).double().state_dict()
    after = {}
    for letter in ("", *"abcdefg"):
        model = helpers.GPTModel(TINY).double().eval()
        model.load_state_dict(weights)
        change(model, letter)
        after[letter] = model(ids).softmax(dim=-1).detach()
    same = {x for x in "abcdefg" if (after[x] - after[""]).abs().max() < 1e-9}
    wrong = len({*answer} ^ same)
    assert wrong == 0, (
        f"{wrong} of the seven letters are on the wrong side: what comes after each "
        f"change, a softmax or a normalisation, and what goes past these?"
    )


@exercise("3.3")
def exercise_3_3(fold_norm):
    for n_in, n_out, bias in ((16, 16, False), (8, 5, True), (3, 24, True)):
        norm, linear = helpers.LayerNorm(n_in), nn.Linear(n_in, n_out, bias=bias)
        norm.scale.data, norm.shift.data = torch.randn(2, n_in)
        x = 4 * torch.randn(6, 7, n_in) - 1
        with torch.no_grad():
            both = linear(norm(x))
            folded = fold_norm(norm, linear)
            assert isinstance(folded, nn.Linear), "an nn.Linear is wanted"
            assert close(linear(norm(x)), both), "leave the layers given as they are"
            assert folded.weight.shape == (n_out, n_in), "it should map n_in to n_out"
            assert close(folded(F.layer_norm(x, (n_in,))), both, 1e-3), (
                "other results: which dimension of W does `scale` match?"
            )


@exercise("3.4")
def exercise_3_4(check_draft):
    model, passes = helpers.GPTModel(TINY).eval(), []
    model.tok_emb.register_forward_hook(lambda *_: passes.append(1))
    for trial in range(20):
        n, wrong = 1 + trial % 7, trial % 9  # prompt; right tokens before a mistake
        idx = torch.randint(0, 100, (1, n))
        right = helpers.generate_text_simple(model, idx, 9, context_size=32)
        draft = right[:, n:].clone()
        draft[0, wrong] = (draft[0, wrong] + 1 + trial) % 100
        passes.clear()
        out = check_draft(model, idx, draft[:, :8])
        assert torch.is_tensor(out), "return the longer sequence of ids"
        assert len(passes) == 1, f"{len(passes)} passes through the model; 1 will do"
        assert out.tolist() == right[:, : n + wrong + 1].tolist(), (
            f"{wrong} right tokens before the first mistake should give {wrong + 1}"
        )


@exercise("4.1")
def exercise_4_1(loss_gradient):
    for rows, entries, scale in ((1, 2, 1), (4, 7, 3), (50, 11, 100)):
        z = (scale * torch.randn(rows, entries)).requires_grad_()
        targets = torch.randint(0, entries, (rows,))
        F.cross_entropy(z, targets).backward()
        with torch.no_grad():  # so autograd is no help
            found = loss_gradient(z.detach(), targets)
        assert torch.is_tensor(found) and found.shape == z.shape, (
            "return one number for each logit"
        )
        assert not found.isnan().any(), "NaN: exp overflows, softmax doesn't"
        assert close(found, z.grad, 1e-6), (
            f"wrong for {rows} rows: each row should add up to 0, and the loss is "
            f"the mean over the rows"
        )


@exercise("4.2")
def exercise_4_2(adamw_step):
    for lr, decay, betas in ((0.1, 0.0, (0.9, 0.999)), (0.02, 0.5, (0.8, 0.95))):
        ours, state = torch.randn(4, 3), {}
        theirs = nn.Parameter(ours.clone())
        optimizer = torch.optim.AdamW([theirs], lr, betas, weight_decay=decay)
        for step in range(1, 8):
            theirs.grad = torch.randn(4, 3) * 10.0 ** torch.randint(-3, 3, ())
            adamw_step(ours, theirs.grad.clone(), state, lr, betas, decay)
            optimizer.step()
            assert state, "keep both averages and the number of steps in `state`"
            assert close(ours, theirs.detach(), 1e-5), (
                f"differs from torch.optim.AdamW after step {step}, with learning rate "
                f"{lr} and decay {decay}: p must change in place, and t begins with 1"
            )


@exercise("4.3")
def exercise_4_3(orthogonalise):
    for n, m, scale in ((3, 3, 1), (4, 9, 100), (9, 4, 0.01)):
        M = scale * torch.randn(n, m)
        U, _, Vh = torch.linalg.svd(M, full_matrices=False)
        found = orthogonalise(M.clone())
        assert torch.is_tensor(found) and found.shape == M.shape, "return a matrix"
        assert found.isfinite().all(), (
            "not finite: did the singular values begin under the square root of 3?"
        )
        values = torch.linalg.svdvals(found)
        assert close(values, torch.ones(min(n, m)), 1e-2), (
            f"the singular values are {values.tolist()}, not 1"
        )
        assert close(found, U @ Vh, 1e-2), (
            "some directions are reversed: did the singular values begin under the "
            "square root of 3?"
        )


@exercise("4.4")
def exercise_4_4(keep_min_p):
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25] * 4]).log()
    for min_p, kept in ((0.2, [3, 4]), (0.5, [2, 4]), (1.0, [1, 4]), (0.01, [4, 4])):
        found = keep_min_p(scores + 7, min_p)  # what is added to all changes nothing
        assert torch.is_tensor(found) and found.shape == (2, 4), "expected (B, V)"
        assert found.isfinite().sum(dim=-1).tolist() == kept, (
            f"{found.isfinite().sum(dim=-1).tolist()} tokens are left in the two rows "
            f"with min_p={min_p}, expected {kept}"
        )
        left = found.isfinite()
        assert torch.equal(found[left], (scores + 7)[left]), "leave the others alone"


@exercise("4.5")
def exercise_4_5(lowest_loss):
    for n, sharpness in ((2, 1), (2, 3), (5, 0), (5, 2), (12, 1), (6, 99)):
        P = torch.softmax(sharpness * torch.randn(n, n), dim=-1)
        if sharpness == 99:  # each token has one that follows, in a ring
            P = torch.eye(n).roll(1, dims=1)
        token, total = torch.randint(0, n, (4000,)), 0.0  # 4,000 texts at once
        for step in range(60):
            following = torch.multinomial(P[token], 1)[:, 0]
            total -= P[token, following].log().mean().item() * (step >= 30) / 30
            token = following
        found = lowest_loss(P)
        assert isinstance(found, float), "return a number, such as .item() gives"
        assert not math.isnan(found), "0 times ln 0 should count as 0"
        assert abs(found - total) < 0.02, (
            f"{found:.3f} is not {total:.3f}: do frequent tokens count for more?"
        )


@exercise("5.1")
def exercise_5_1(head_columns):
    for width, H in ((12, 3), (8, 4), (10, 1)):
        cfg = TINY | {"emb_dim": width, "n_heads": H, "n_layers": 1}
        att = helpers.GPTModel(cfg).trf_blocks[0].att
        layers = (att.W_query, att.W_key, att.W_value)
        c_attn = torch.cat([layer.weight for layer in layers]).T  # (C, 3C)
        x = torch.randn(5, width)  # (T, C)
        for part, layer in enumerate(layers):
            separate = F.linear(x, layer.weight).view(5, H, -1)  # (T, H, D)
            for head in range(H):
                columns = head_columns(cfg, part, head)
                assert isinstance(columns, slice), "return a slice"
                assert close(x @ c_attn[:, columns], separate[:, head]), (
                    f"part {part}, head {head} of {H} is elsewhere, or isn't as wide"
                )


@exercise("5.2")
def exercise_5_2(add_tokens):
    cfg = TINY | {"vocab_size": 40, "qkv_bias": True, "tie_weights": True}
    given, ids = helpers.GPTModel(cfg).eval(), torch.randint(0, 40, (3, 8))
    old = given(ids).detach()  # (B, T, V)
    for n_new in (1, 7):
        larger = add_tokens(given, n_new)
        assert isinstance(larger, helpers.GPTModel), "return a GPTModel"
        assert larger.out_head.weight is larger.tok_emb.weight, "its head isn't tied"
        assert larger.cfg["vocab_size"] == 40 + n_new, "its cfg has the old vocab_size"
        new = larger.eval()(ids).detach()  # (B, T, V + n_new)
        assert new.shape[-1] == 40 + n_new, "the head has no logits for the new tokens"
        assert close(new[..., :40], old), "logits of the old tokens have changed"
        mean = old.mean(dim=-1, keepdim=True).expand(-1, -1, n_new)
        assert close(new[..., 40:], mean, 1e-3), "a new row isn't the mean of the old"
    assert given.cfg["vocab_size"] == 40 and torch.equal(given(ids), old), (
        "the model that was given has changed"
    )


@exercise("5.3")
def exercise_5_3(int8_linear):
    x = torch.rand(4, 96) * torch.tensor([1e-3, 1.0, 30.0, 0.0])[:, None]
    weight = torch.rand(24, 96) * torch.logspace(-3, 1, 24)[:, None]
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if any(
                part in str(function) for part in (".mm", ".bmm", ".addmm", "_int_mm")
            ):
                seen.extend(a for a in args if torch.is_tensor(a))
            return function(*args, **(kwargs or {}))

    with Watch():
        y = int8_linear(x.clone(), weight.clone())
    exact = x @ weight.T  # (4, 24)
    assert torch.is_tensor(y) and y.shape == exact.shape, (
        "the shape should be (B, n_out)"
    )
    assert y.isfinite().all(), "a row of zeros needs a scale as well, above 0"
    assert seen, "use a matrix product, `@`, of two tensors of whole numbers"
    assert not any(a.is_floating_point() for a in seen), (
        "the matrix product should be one of whole numbers"
    )
    assert all(a.abs().max().item() <= 128 for a in seen), "some don't fit into 8 bits"
    size = x.norm(dim=1)[:, None] * weight.norm(dim=1)  # (4, 24)
    assert ((y - exact).abs() <= 0.01 * size).all(), (
        "too far off: round, don't cut, give each row of x and of weight its scale, "
        "and add the products up in a type that holds the sums (int32)"
    )
    assert (y - exact).abs().max() > 0, "this is exact, so nothing was rounded"


@exercise("5.4")
def exercise_5_4(forbidden_tokens):
    for ids, n, expected in (
        ([1, 2, 3, 1, 2], 3, {3}),
        ([1, 2, 3, 1, 2, 4, 1, 2], 3, {3, 4}),
        ([5, 5], 2, {5}),
        ([1, 2, 3, 4], 3, set()),
        ([7, 8, 7], 1, {7, 8}),
        ([1, 2], 4, set()),
        ([], 2, set()),
    ):
        found = forbidden_tokens(list(ids), n)
        assert isinstance(found, set), "return a set"
        assert found == expected, f"ids {ids}, n = {n}: {found} isn't right"


@exercise("5.5")
def exercise_5_5(losses_without_head):
    cfg = TINY | {"emb_dim": 24, "n_heads": 3, "n_layers": 2, "qkv_bias": True}
    intact, other = helpers.GPTModel(cfg).eval(), helpers.GPTModel(cfg).eval()
    kept = {name: 3 * tensor for name, tensor in intact.state_dict().items()}
    intact.load_state_dict(kept)
    ids = torch.randint(0, 100, (4, 12))
    for layer, head in ((0, 0), (1, 2), (0, 1)):
        found = losses_without_head(intact, layer, head, ids)
        assert torch.is_tensor(found) and found.shape == (4, 11), (
            "return a loss for each token but the first"
        )
        assert all(torch.equal(t, kept[n]) for n, t in intact.state_dict().items()), (
            "the model was changed and not put back"
        )
        other.load_state_dict(kept)
        for parameter in other.trf_blocks[layer].att.W_value.parameters():
            parameter.data[8 * head : 8 * head + 8] = 0.0  # nothing to read is as good
        logits = other(ids[:, :-1]).mT
        expected = F.cross_entropy(logits, ids[:, 1:], reduction="none")
        assert (found - expected).abs().max() < 1e-3, f"head {head} has other columns"


@exercise("6.1")
def exercise_6_1(area_under_roc):
    for n, levels in ((20, 1000), (200, 5), (60, 2)):
        is_spam = torch.rand(n) < 0.4
        is_spam[:2] = torch.tensor([True, False])
        scores = (torch.randint(levels, (n,)) + levels // 4 * is_spam) / levels
        pairs = [s - h for s in scores[is_spam] for h in scores[~is_spam]]
        area = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in pairs) / len(pairs)
        found = area_under_roc(scores.clone(), is_spam)
        assert found is not None and abs(float(found) - area) < 1e-4, (
            f"{levels} different scores: got {found}. Do ties count one half, and do "
            f"you divide by the number of pairs?"
        )


@exercise("6.2")
def exercise_6_2(mcnemar):
    for only_a, only_b, same in (
        (0, 0, 5),
        (3, 3, 9),
        (1, 9, 20),
        (12, 4, 3),
        (0, 7, 1),
    ):
        right_a = torch.tensor([True] * only_a + [False] * only_b + [True] * same)
        right_b = torch.tensor([False] * only_a + [True] * only_b + [True] * same)
        n, fewer = only_a + only_b, min(only_a, only_b)
        tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
        found = mcnemar(right_a, right_b)
        assert found is not None, "return a number"
        found = float(found)
        assert found <= 1, "a probability is at most 1: both tails share the middle"
        assert abs(found - min(1.0, 2 * tail)) < 1e-6, (
            f"{only_a} messages that only a gets right and {only_b} that only b does: "
            f"got {found:.4f}. Is it two-sided?"
        )


@exercise("6.3")
def exercise_6_3(best_threshold):
    for n, cost in ((30, 1), (30, 8), (200, 3), (200, 0), (50, 1e6)):
        labels = torch.randint(0, 2, (n,))  # 1 is spam
        shares = 0.99 + 0.01 * (0.7 * torch.rand(n) + 0.3 * labels)  # all nearly 1
        labels[0], shares[0] = 0, 1.0  # one ham that looks like nothing but spam
        found = best_threshold(shares, labels, cost)
        assert found is not None, "return a number"
        costs = []
        for threshold in (float(found), 2.0, *shares.tolist()):
            called = shares >= threshold
            lost, let_through = called & (labels == 0), ~called & (labels == 1)
            costs.append(cost * lost.sum().item() + let_through.sum().item())
        assert costs[0] == min(costs), (
            f"cost {cost:g}: a threshold of {float(found):.4f} costs {costs[0]:g}, "
            f"another one less. Can it lie between any two of the shares? It may be "
            f"best to call nothing spam, or everything"
        )


@exercise("6.4")
def exercise_6_4(best_temperature):
    for n, classes, true in ((300, 2, 2.5), (300, 2, 0.4), (800, 5, 1.0), (500, 2, 9)):
        unsure = 2 * torch.randn(n, classes)
        labels = unsure.softmax(dim=-1).multinomial(1).flatten()
        logits = true * unsure  # so many times too sure
        found = best_temperature(logits.clone(), labels)
        assert isinstance(found, float), "return a number, such as .item() gives"
        assert 0.05 <= found <= 20, f"got {found}, which isn't from 0.05 to 20"
        tried = [found, *torch.logspace(-1.3, 1.3, 101).tolist()]
        losses = [F.cross_entropy(logits / t, labels).item() for t in tried]
        assert losses[0] < min(losses) + 1e-3, (
            f"a temperature of {found:.2f} gives a loss of {losses[0]:.3f}, "
            f"another one {min(losses):.3f}"
        )


@exercise("6.5")
def exercise_6_5(lora_from_change):
    for n_in, n_out, rank in ((12, 7, 2), (5, 30, 3), (16, 16, 16)):
        layer = nn.Linear(n_in, n_out).requires_grad_(False)
        change = torch.randn(n_out, n_in) * torch.logspace(0, -2, n_in)
        tuned = layer.weight + change
        pair = lora_from_change(layer.weight.clone(), tuned, rank)
        assert pair is not None and len(pair) == 2, "return A and B"
        with_lora = helpers.LinearWithLoRA(layer, rank, alpha=rank)
        shapes = (n_in, rank), (rank, n_out)
        assert tuple(tuple(part.shape) for part in pair) == shapes, "wrong shapes"
        with_lora.lora.A.data, with_lora.lora.B.data = (part.detach() for part in pair)
        x = torch.eye(n_in)
        error = (with_lora(x) - F.linear(x, tuned, layer.bias)).detach().norm()
        least = torch.linalg.svdvals(change)[rank:].norm()
        assert error < least + 1e-3, (
            f"rank {rank}: the change is missed by {error:.3f}; {least:.3f} can be "
            f"reached"
        )


@exercise("7.1")
def exercise_7_1(piece_factors):
    for rows in ((3, 5), (1, 1, 12), (7,), (2, 9, 4, 4)):  # examples in each piece
        targets = torch.randint(0, 20, (sum(rows), 9))  # (B, T)
        targets[torch.arange(9) < torch.randint(0, 9, (sum(rows), 1))] = -100
        logits = 3 * torch.randn(*targets.shape, 20)  # (B, T, V)
        factors = piece_factors(list(targets.split(rows)))
        assert factors is not None and len(factors) == len(rows), (
            "return a list with a number for each piece"
        )
        pieces = zip(factors, logits.split(rows), targets.split(rows), strict=True)
        found = sum(float(f) * F.cross_entropy(said.mT, t) for f, said, t in pieces)
        assert close(found, F.cross_entropy(logits.mT, targets)), (
            f"{len(rows)} pieces: the sum isn't the mean over the whole batch"
        )


@exercise("7.2")
def exercise_7_2(pack_examples):
    attention = F.scaled_dot_product_attention
    for lengths in ([3, 1, 5], [4], [1, 1, 1], [2, 30, 7, 7]):
        T, packed = sum(lengths), pack_examples(list(lengths))
        assert packed is not None and len(packed) == 2, "return two tensors"
        positions, mask = packed
        shapes = [tuple(positions.shape), tuple(mask.shape)]
        assert shapes == [(T,), (T, T)], f"lengths {lengths}: got shapes {shapes}"
        assert mask.dtype == torch.bool, "the mask should be True and False"
        tokens, table = torch.randn(2, T, 8)
        x = (tokens + table[positions])[None]  # (1, T, C)
        mixed = attention(x, x, x, attn_mask=mask)[0].split(lengths)
        for i, alone in enumerate(tokens.split(lengths)):
            x = (alone + table[: len(alone)])[None]
            assert close(mixed[i], attention(x, x, x, is_causal=True)[0]), (
                f"lengths {lengths}: example {i} isn't what it is alone"
            )


@exercise("7.3")
def exercise_7_3(difference_interval):
    for n, easy, luck, gain in ((60, 0.3, 0.05, 0.1), (200, 0, 1, 0), (90, 1, 0.1, -1)):
        of_record = easy * torch.randn(n)  # how easy a record is for both
        one, two = of_record + luck * torch.randn(2, n) + torch.tensor([[gain], [0]])
        interval = difference_interval(one.tolist(), two.tolist())
        assert interval is not None and len(interval) == 2, "return two numbers"
        mean, half = (one - two).mean().item(), 1.96 * (one - two).std().item() / n**0.5
        for found, end in zip(interval, (mean - half, mean + half), strict=True):
            assert abs(float(found) - end) < 0.12 * half, (
                f"{n} records: an end is at {found:.3f}, expected about {end:.3f}. "
                f"Are both scores of a record drawn together, and are the lowest and "
                f"the highest 2.5% cut off?"
            )


@exercise("7.4")
def exercise_7_4(middle):
    places, words = [], helpers.DIALOGUES["contents"]
    for number, part in product(range(100), ("training", "test")):
        contents = helpers.Contents(random.Random(number), words, part)
        turns = middle(contents)
        assert isinstance(turns, list) and len(turns) == 1, "return a list of one turn"
        message, answer = turns[0]
        numbers = re.findall(r"\d+", message)
        assert len(set(numbers)) == 3, f"three different numbers are wanted: {message}"
        assert len(set(map(len, numbers))) == 1, f"one is longer: {message}"
        assert {helpers.part_of(n) for n in numbers} == {part}, (
            f"a number isn't of the part {part}: draw it from the Contents"
        )
        right = sorted(numbers)[1]
        assert answer == f"{right}.", f"to {message!r} the answer is {answer!r}"
        places.append(numbers.index(right))
    shares = [places.count(place) / len(places) for place in range(3)]
    assert max(shares) < 0.5, f"the middle number is too often in one place: {shares}"


@exercise("7.5")
def exercise_7_5(preference_loss):
    learner, fixed = helpers.GPTModel(TINY).eval(), helpers.GPTModel(TINY).eval()
    pair, margins = [], torch.zeros(3)
    for sign, lengths in ((1, (12, 8, 10)), (-1, (9, 15, 7))):
        items = [([*range(n, 2 * n)], [i > 2 for i in range(n)]) for n in lengths]
        pair.append(helpers.custom_collate_fn(items, pad_token_id=0))
        for i, (inputs, targets) in enumerate(zip(*pair[-1], strict=True)):
            for model, side in ((learner, sign), (fixed, -sign)):
                loss, _ = helpers.answer_loss(model, inputs[None], targets[None])
                margins[i] -= side * loss.item()
    expected = F.softplus(-0.05 * margins).mean().item()
    for start, beta, right in ((learner, 0.3, math.log(2)), (fixed, 0.05, expected)):
        found = preference_loss(learner, start, *pair, beta=beta)
        assert torch.is_tensor(found) and found.shape == () and found.requires_grad, (
            "return one number with a gradient"
        )
        assert abs(found.item() - right) < 1e-3, (
            f"beta = {beta}: got {found:.3f} and not {right:.3f}. Is each "
            f"log-probability summed over an answer's targets, minus the reference's?"
        )
    found.backward()
    assert fixed.out_head.weight.grad is None, "the reference gets a gradient"


@exercise("8.1")
def exercise_8_1(advantages_of_others):
    rewards = torch.rand(3, 5)
    mine = advantages_of_others(rewards)
    assert torch.is_tensor(mine) and mine.shape == rewards.shape, (
        "return a tensor of the shape of the rewards"
    )
    assert close(mine.sum(dim=1), torch.zeros(3)), (
        "the advantages of a group should add up to zero; take the mean over G - 1"
    )
    for g in range(5):
        others = torch.cat((rewards[:, :g], rewards[:, g + 1 :]), dim=1)
        assert close(mine[:, g], rewards[:, g] - others.mean(dim=1)), (
            "subtract the mean of the others in the same row, without the reward itself"
        )


@exercise("8.2")
def exercise_8_2(pass_at_k):
    for n, c, k in product((5, 8), (0, 1, 4, 5), (1, 2, 5)):
        draws = list(combinations([True] * c + [False] * (n - c), k))
        share = sum(map(any, draws)) / len(draws)
        mine = pass_at_k(n, c, k)
        assert mine is not None and abs(mine - share) < 1e-6, (
            f"{c} of {n} are right and {k} are drawn: count the draws that are all "
            f"wrong, among all draws"
        )


@exercise("8.3")
def exercise_8_3(clipped_loss):
    old = (-torch.rand(2, 3)).requires_grad_()
    new = old.detach().clone().requires_grad_()
    advantages = torch.tensor([1.0, -2.0])
    loss = clipped_loss(new, old, advantages)
    assert torch.is_tensor(loss) and loss.shape == (), (
        "return one number, the mean over all tokens"
    )
    assert close(loss, torch.tensor(0.5)), (
        "with equal policies the ratio is 1, and the loss the mean of the advantages, "
        "negative: each token has its answer's advantage"
    )
    slope, other = torch.autograd.grad(loss, (new, old), allow_unused=True)
    assert other is None, "gradients should flow into `new` only"
    assert close(slope, -advantages[:, None].expand(2, 3) / 6), (
        "with equal policies the gradient should be the policy gradient's"
    )
    far = (old.detach() + torch.tensor([[0.5, -0.5, 0.0]])).requires_grad_()
    (slope,) = torch.autograd.grad(clipped_loss(far, old, advantages), far)
    assert slope[0, 0] == 0 and slope[1, 1] == 0, (
        "where the ratio has gone beyond the clip in the wanted direction, the "
        "gradient is zero"
    )
    assert slope[0, 1] != 0 and slope[1, 0] != 0, (
        "where the ratio has gone the wrong way, the gradient must bring it back: "
        "take the smaller of the two products"
    )
    for epsilon in (0.1, 0.2):
        first = (1 + epsilon) + math.exp(-0.5) + 1
        second = -2 * (math.exp(0.5) + (1 - epsilon) + 1)
        loss = clipped_loss(far, old, advantages, epsilon=epsilon)
        assert close(loss, torch.tensor(-(first + second) / 6)), (
            "the ratio itself is clipped, to 1 - epsilon and 1 + epsilon"
        )


@exercise("8.4")
def exercise_8_4(three_in_order):
    words = ["oar", "fern", "lamp", "Rome", "bell"]
    right = "bell fern lamp", "fern lamp oar", "bell lamp Rome", "lamp oar Rome"
    wrong = {
        "": "nothing at all",
        "bell fern": "two words",
        "bell fern lamp oar": "four words",
        "bell bell fern": "a word twice",
        "bell fern moon": "a word that isn't in the list",
        "lamp fern bell": "another order",
        "Bell fern lamp": "a word with another capital",
        "bell  fern lamp": "two spaces",
        "bell fern lamp.": "a full stop",
        "bell fern Rome oar lamp": "the list in some order",
    }
    for answer in right:
        assert three_in_order(answer, words) == 1, (
            f"{answer!r} is right for {words}; capitals don't matter to the alphabet"
        )
    for answer, why in wrong.items():
        assert three_in_order(answer, words) == 0, f"a reward for {why}: {answer!r}"


@exercise("8.5")
def exercise_8_5(kl_terms):
    new = torch.randn(6).log_softmax(dim=0)
    old = torch.randn(6).log_softmax(dim=0)
    mine = kl_terms(new, old)
    assert torch.is_tensor(mine) and mine.shape == (6,), "one term for each sample"
    assert (mine >= -1e-6).all(), "a term is negative: is x the new minus the old?"
    exact = (new.exp() * (new - old)).sum()
    assert close((new.exp() * mine).sum(), exact), (
        "the expectation under the new policy should be the KL divergence"
    )
