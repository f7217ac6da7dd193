"""Chapter 4 of helpers.py: losses, the two training loops, checkpoints, generation."""

import itertools
import math
import re
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import helpers
from helpers import (
    BPETokenizer,
    GPTModel,
    calc_loss_batch,
    calc_loss_loader,
    create_dataloader_v1,
    evaluate_model,
    generate,
    generate_text_simple,
    get_tokenizer,
    learning_rate,
    load_checkpoint,
    mean_loss,
    next_token_loss,
    param_groups,
    sample_token,
    save_checkpoint,
    text_to_token_ids,
    token_ids_to_text,
    train_model,
    train_model_simple,
)

CPU = torch.device("cpu")
TOKENIZER = BPETokenizer()  # the 256 bytes
TINY = {"vocab_size": 256, "context_length": 8, "emb_dim": 16, "n_heads": 2}
TINY |= {"n_layers": 2, "drop_rate": 0.1, "qkv_bias": False}
TEXT = "The ferryman rowed from one bank to the other and back. " * 3


def tiny_model(seed=1, **changes):
    torch.manual_seed(seed)
    return GPTModel(TINY | changes)


def loader(text=TEXT, shuffle=True):
    return create_dataloader_v1(text, 4, 8, 8, shuffle, tokenizer=TOKENIZER)


def loaders():
    """Return a shuffled training loader of 5 batches, and a validation loader."""
    return loader(), loader("The bank was far. " * 2, shuffle=False)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    """Say whether two tensors, or dictionaries of tensors, are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# Text and losses


@pytest.mark.parametrize("text", ["Every effort moves you", " ", "né ☃\n", ""])
def test_text_to_ids_and_back(text):
    ids = text_to_token_ids(text, get_tokenizer())
    assert ids.dim() == 2 and ids.dtype == torch.int64
    assert token_ids_to_text(ids, get_tokenizer()) == text


def test_losses_are_means_over_tokens_and_over_batches():
    model, batches = tiny_model().eval(), list(loader())
    inputs, targets = batches[0]
    probs = model(inputs).softmax(dim=-1)
    by_hand = -probs.gather(-1, targets[:, :, None]).log().mean()
    assert torch.allclose(calc_loss_batch(inputs, targets, model, CPU), by_hand)
    each = [calc_loss_batch(*batch, model, CPU).item() for batch in batches]
    assert calc_loss_loader(batches, model, CPU) == pytest.approx(sum(each) / len(each))
    assert calc_loss_loader(batches, model, CPU, 2) == pytest.approx(sum(each[:2]) / 2)
    assert mean_loss(model, batches) == pytest.approx(sum(each) / len(each))
    assert abs(each[0] - math.log(256)) < 0.5  # a random model guesses evenly


def test_evaluation_drops_nothing_and_goes_back_to_training():
    model = tiny_model(drop_rate=0.9).train()
    first, second = (evaluate_model(model, *loaders(), CPU, 1) for _ in range(2))
    assert first[1] == second[1] and model.training


def test_targets_of_minus_100_do_not_count():
    model, (inputs, targets) = tiny_model().eval(), next(iter(loader()))
    masked = targets.clone()
    masked[:, :5] = -100
    loss, n = next_token_loss(model, inputs, masked)
    rest = F.cross_entropy(model(inputs)[:, 5:].flatten(0, 1), targets[:, 5:].flatten())
    assert n == 12 and torch.allclose(loss / n, rest)


# The simple loop


def test_simple_loop_lowers_the_loss_counts_tokens_and_prints(capsys):
    model, (train, val) = tiny_model(), loaders()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train_losses, val_losses, seen = train_model_simple(
        model, train, val, optimizer, CPU, 6, 3, 1, "The bank", TOKENIZER
    )
    assert train_losses[-1] < train_losses[0] - 1
    assert val_losses[-1] < val_losses[0] - 0.5
    assert seen == [32 * (step + 1) for step in range(0, 30, 3)]
    lines = capsys.readouterr().out.splitlines()
    form = r"Ep (\d) \(Step (\d{6})\): Train loss \d\.\d{3}, Val loss \d\.\d{3}"
    found = [match.groups() for line in lines if (match := re.fullmatch(form, line))]
    assert found == [(str(step // 5 + 1), f"{step:06d}") for step in range(0, 30, 3)]
    assert sum(line.startswith("The bank") for line in lines) == 6


# The loop in earnest


def test_learning_rate_rises_then_falls_along_half_a_cosine():
    rates = [learning_rate(step, 100, 10, 1.0, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[-1] == pytest.approx(0.1) and max(rates) == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert [learning_rate(step, 1, 0, 1.0, 0.1) for step in range(1)] == [1.0]


def test_only_trainable_matrices_decay_and_tied_ones_once():
    model = tiny_model(tie_weights=True)
    model.pos_emb.requires_grad_(False)
    decay, rest = (group["params"] for group in param_groups(model, 0.1))
    assert all(p.dim() == 2 for p in decay) and all(p.dim() == 1 for p in rest)
    together = decay + rest
    assert len({id(p) for p in together}) == len(together)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in together} == trainable


def run(model, batches, steps, **settings):
    settings = {"precision": torch.float32} | settings
    return train_model(model, batches, next_token_loss, steps, **settings)


def test_loop_equals_its_own_steps_by_hand():
    model, other = tiny_model(drop_rate=0.0), tiny_model(drop_rate=0.0)
    batches = list(loader(shuffle=False))
    table = run(model, batches, 7, peak_lr=1e-2, min_lr=1e-3, max_norm=0.5, eval_freq=3)
    groups = param_groups(other, 0.1)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    losses = []
    for step, batch in zip(range(7), itertools.cycle(batches), strict=False):
        loss = calc_loss_batch(*batch, other, CPU)
        loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, 7, 10, 1e-2, 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert table["step"].tolist() == [3, 6, 7]
    assert table["targets"].tolist() == [96, 192, 224]
    means = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert table["train_loss"].tolist() == pytest.approx(means, abs=1e-4)


def test_accumulated_batches_make_the_step_of_one_large_batch():
    inputs, targets = next(iter(loader()))  # (4, 8)
    parts, after = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])], []
    plan = {"peak_lr": 1.0, "warmup_steps": 0, "max_norm": math.inf}
    for batches in ([(inputs, targets)], parts):
        model = tiny_model(drop_rate=0.0)
        sgd = torch.optim.SGD(model.parameters())  # Adam would hide a wrong scale
        run(model, batches, 1, accumulate=len(batches), optimizer=sgd, **plan)
        after.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.allclose(*after, atol=1e-5)


def test_no_batch_is_an_error_and_not_an_endless_loop():
    with pytest.raises(ValueError, match="no batch"):
        run(tiny_model(), [], 1)


def test_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    model, batches = tiny_model(drop_rate=0.0), list(loader())

    def loss_fn(model, inputs, targets):
        loss, n = next_token_loss(model, inputs, targets)
        calls.append(n)
        return loss * (math.inf if len(calls) == 4 else 1), n

    calls, seen = [], []

    def evaluate(model):
        seen.append(weights(model))
        return {"val_loss": mean_loss(model, batches)}

    with pytest.raises(RuntimeError, match="non-finite"):
        options = {"evaluate": evaluate, "eval_freq": 3, "run_dir": tmp_path}
        train_model(model, batches, loss_fn, 9, precision=torch.float32, **options)
    assert same(weights(model), seen[-1])
    last = load_checkpoint(tmp_path / "last.pth", tiny_model())
    assert same(last["model_state_dict"], seen[-1])
    run(model, batches, 1)  # what the failed step left doesn't count


def test_stale_optimizer_is_refused():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model.out_head = nn.Linear(16, 256)
    with pytest.raises(ValueError, match="optimizer lacks parameters"):
        run(model, loader(), 1, optimizer=optimizer)


def test_best_checkpoint_has_the_lowest_loss(tmp_path):
    model, batches, losses = tiny_model(), loader(), iter([3.0, 1.0, 2.0])
    seen, run_dir = [], tmp_path / "new"

    def evaluate(model):
        assert not model.training
        seen.append(weights(model))
        return {"val_loss": next(losses)}

    table = run(model, batches, 3, evaluate=evaluate, eval_freq=1, run_dir=run_dir)
    assert table["val_loss"].tolist() == [3.0, 1.0, 2.0]
    best = load_checkpoint(run_dir / "best.pth", tiny_model(2))
    assert best["step"] == 2 and same(best["model_state_dict"], seen[1])
    other, optimizer = tiny_model(2), torch.optim.AdamW(param_groups(model, 0.1))
    load_checkpoint(run_dir / "last.pth", other, optimizer)
    assert same(weights(other), seen[2]) and optimizer.state


def test_bfloat16_trains_about_as_float32_does():
    tables = [
        run(tiny_model(drop_rate=0.0), loader(shuffle=False), 20, precision=precision)
        for precision in (torch.float32, torch.bfloat16)
    ]
    low, high = sorted(table["train_loss"].iloc[-1] for table in tables)
    assert high - low < 0.05


# Checkpoints


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_muon_multiplies_in_the_format_that_is_fast(precision, monkeypatch):
    monkeypatch.setattr(helpers, "pick_precision", lambda device: precision)
    start, grad, seen = torch.randn(6, 9), torch.randn(6, 9), set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in str(function):
                seen.update(a.dtype for a in args)
            return function(*args, **(kwargs or {}))

    after = []
    for kind in (torch.optim.Muon, helpers.Muon):
        p = nn.Parameter(start.clone())
        p.grad = grad.clone()
        optimizer = kind([p], adjust_lr_fn="match_rms_adamw")
        with Watch() if kind is helpers.Muon else nullcontext():
            optimizer.step()
        after.append(p.detach())
        assert torch.equal(p.grad, grad)
    assert seen == {precision}
    assert torch.allclose(*after, atol=1e-4)
    assert torch.randn(2).bfloat16().dtype == torch.bfloat16  # as before


@pytest.mark.parametrize("change", [{"n_heads": 4}, {"n_layers": 1}, {"emb_dim": 32}])
def test_checkpoint_of_another_model_is_refused(tmp_path, change):
    save_checkpoint(tmp_path / "model.pth", tiny_model())
    with pytest.raises(ValueError, match="of another model"):
        load_checkpoint(tmp_path / "model.pth", tiny_model(**change))


def test_interrupted_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path, model = tmp_path / "model.pth", tiny_model()
    save_checkpoint(path, model)

    def full_disk(state, target):
        target.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(helpers.torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, tiny_model(2))
    state = load_checkpoint(path, tiny_model(3))
    assert same(state["model_state_dict"], weights(model))


class Harmful:
    def __reduce__(self):
        return print, ("code was run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"config": Harmful()}, tmp_path / "model.pth")
    with pytest.raises(Exception, match="Weights only"):
        load_checkpoint(tmp_path / "model.pth", tiny_model())
    assert "code was run" not in capsys.readouterr().out


# Sampling


PROBS = [0.4, 0.3, 0.15, 0.1, 0.05]


def normalised(values):
    return [value / sum(values) for value in values]


@pytest.mark.parametrize(
    "controls, expected",
    [
        ({"temperature": 1.0}, PROBS),
        ({"temperature": 0.5}, normalised([p**2 for p in PROBS])),
        ({"temperature": 1.0, "top_k": 2}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 99}, PROBS),
        ({"temperature": 2.0, "top_k": 3}, normalised([0.4**0.5, 0.3**0.5, 0.15**0.5])),
        ({"temperature": 1.0, "top_p": 0.35}, [1, 0, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.65}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.75}, normalised(PROBS[:3])),
        ({"temperature": 1.0, "top_p": 1.0}, PROBS),
        ({"temperature": 0.5, "top_p": 0.65}, [0.64, 0.36, 0, 0, 0]),
        # of three tokens, 8/17 + 6/17 reach 0.75; of all five, three would be needed
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.75}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 0.0, "top_k": 3, "top_p": 0.9}, [1, 0, 0, 0, 0]),
        ({"temperature": 5.0, "top_k": 1}, [1, 0, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_the_probabilities_computed_by_hand(controls, expected):
    torch.manual_seed(6)
    draws, order = 20_000, [3, 0, 4, 2, 1]  # the most probable token is not the first
    logits = torch.empty(5)
    logits[order] = torch.tensor(PROBS).log() + 7
    tokens = sample_token(logits.expand(draws, -1), **controls)
    assert tokens.shape == (draws, 1)
    counts = torch.bincount(tokens[:, 0], minlength=5)[order].tolist()
    expected = [draws * p for p in (*expected, 0, 0)[:5]]
    assert all(c == 0 for c, e in zip(counts, expected, strict=True) if e == 0)
    pairs = [(c, e) for c, e in zip(counts, expected, strict=True) if e > 0]
    assert sum((c - e) ** 2 / e for c, e in pairs) < 18  # chi-square, 4 d.f.: p = 0.001


def test_rows_are_drawn_each_by_its_own_logits():
    torch.manual_seed(7)
    logits = 50 * torch.eye(6)[torch.tensor([4, 0, 5, 2])]
    for controls in ({}, {"top_k": 2}, {"top_p": 0.9}):
        tokens = sample_token(logits, temperature=1.0, **controls)
        assert tokens.flatten().tolist() == [4, 0, 5, 2]


def test_top_k_keeps_k_where_logits_are_equal():
    equal = torch.zeros(1, 50, dtype=torch.bfloat16)
    assert helpers.keep_top(equal, top_k=40).isfinite().sum() == 40


# Generation


def prompts(rows, tokens=3):
    generator = torch.Generator().manual_seed(8)
    return torch.randint(0, 256, (rows, tokens), generator=generator)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("context_size", [4, 8])
@pytest.mark.parametrize("controls", [{}, {"temperature": 1.7, "top_k": 1}])
def test_greedy_generation_equals_the_simple_one(controls, context_size, rows):
    model, idx = tiny_model().eval(), prompts(rows)
    out = generate(model, idx, 20, context_size, **controls)  # past the window
    assert same(out, generate_text_simple(model, idx, 20, context_size))


def test_sampling_past_the_window_equals_an_uncached_loop():
    model, idx = tiny_model().eval(), prompts(2)
    torch.manual_seed(9)
    out = generate(model, idx, 20, 8, temperature=1.0, top_k=50)
    torch.manual_seed(9)
    for _ in range(20):
        logits = model(idx[:, -8:])[:, -1]
        idx = torch.cat((idx, sample_token(logits, temperature=1.0, top_k=50)), dim=1)
    assert same(out, idx)


def new_tokens(row, eos_id):
    """Return what a row has after its prompt and before its end of text."""
    new = row[3:].tolist()
    return new[: new.index(eos_id)] if eos_id in new else new


def ends():
    """Return a model, prompts, and a token at which rows end at different places."""
    model, idx = tiny_model().eval(), prompts(12)
    out = generate(model, idx, 12, 8)[:, 3:]
    places = {e: [row.index(e) for row in out.tolist() if e in row] for e in range(256)}
    eos_id = max(places, key=lambda e: len(set(places[e])))
    assert len(set(places[eos_id])) > 2  # else this test would show little
    return model, idx, eos_id


def test_each_row_stops_at_its_own_end_and_the_batch_at_the_last():
    model, idx, eos_id = ends()
    free = generate(model, idx, 12, 8)
    ending = (free[:, 3:] == eos_id).any(dim=1)
    for chosen, limit in ((slice(None), 12), (ending, 10_000)):
        out = generate(model, idx[chosen], limit, 8, eos_id=eos_id)
        for row, prompt, whole in zip(out, idx[chosen], free[chosen], strict=True):
            alone = generate(model, prompt[None], 12, 8, eos_id=eos_id)[0]
            found = new_tokens(row, eos_id)
            assert found == new_tokens(alone, eos_id) == new_tokens(whole, eos_id)
            assert (row[3 + len(found) :] == eos_id).all()
    longest = max(len(new_tokens(row, eos_id)) for row in out)
    assert out.shape[1] == 3 + longest < 3 + 12


def test_end_of_text_in_the_prompt_does_not_end_the_answer():
    model, idx = tiny_model().eval(), prompts(1)
    eos_id = 7
    idx[0, -1] = eos_id
    out = generate(model, idx, 5, 8, eos_id=eos_id)
    assert same(out, generate(model, idx, 5, 8)) and eos_id not in out[0, 3:]
