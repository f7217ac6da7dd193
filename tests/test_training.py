"""Chapter 4 of helpers.py: losses, the two training loops, checkpoints, generation.

Run it with: pytest tests/test_training.py
"""

import importlib
import itertools
import math
import multiprocessing
import os
import pickle
import re
import time
import zipfile
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import helpers
from helpers import (
    BatchStream,
    BPETokenizer,
    GPTModel,
    atomic_write,
    calc_loss_batch,
    calc_loss_loader,
    create_dataloader_v1,
    evaluate_model,
    generate,
    generate_text_simple,
    get_tokenizer,
    keep_freed_memory,
    learning_rate,
    load_checkpoint,
    param_groups,
    random_state,
    sample_token,
    save_checkpoint,
    set_random_state,
    text_to_token_ids,
    token_ids_to_text,
    train_model,
    train_model_simple,
)

ROOT = Path(helpers.__file__).parent
CPU = torch.device("cpu")
TOKENIZER = BPETokenizer()  # the 256 bytes
TINY = {
    "vocab_size": 256,
    "context_length": 8,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
TEXT = "The ferryman rowed from one bank to the other and back. " * 3


def tiny_model(seed=1, **changes):
    """Return a small model with the weights of `seed`."""
    torch.manual_seed(seed)
    return GPTModel(TINY | changes)


def loader(text=TEXT, batch_size=4, shuffle=True):
    """Return batches of 8 tokens."""
    return create_dataloader_v1(text, batch_size, 8, 8, shuffle, tokenizer=TOKENIZER)


def loaders():
    """Return a shuffled training loader of 5 batches, and a validation loader."""
    return loader(), loader("The bank was far. " * 2, shuffle=False)


def weights(model):
    """Return a copy of the model's weights."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    """Say whether two structures are equal, their tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def files(folder):
    """Return the names of everything in a folder."""
    return sorted(path.name for path in folder.iterdir())


# Processes of their own, to be killed


@pytest.fixture(scope="module", autouse=True)
def server():
    """Import all this in a process from which others are forked, while tests run."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return  # Windows: each process imports it for itself
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tests"))))
        heavy = [__name__, "torch._dynamo"]  # the second for an optimizer's first step
        multiprocessing.get_context("forkserver").set_forkserver_preload(heavy)
        forkserver.ensure_running()


def start(function, *args):
    """Start a function of this file in a process of its own."""
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    process = context.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def kill(process):
    """End a process without giving it a chance to clear up (kill -9)."""
    process.kill()
    process.join(60)
    assert process.exitcode not in (None, 0)


def wait_for(condition):
    """Return as soon as something is true, or fail after a minute."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Text and losses


@pytest.mark.parametrize("text", ["Every effort moves you", " ", "né ☃\n"])
def test_text_to_ids_and_back(text):
    ids = text_to_token_ids(text, TOKENIZER)
    assert ids.shape == (1, len(text.encode("utf-8"))) and ids.dtype == torch.int64
    assert token_ids_to_text(ids, TOKENIZER) == text


def test_loss_is_the_mean_negative_log_probability():
    model = tiny_model().eval()
    inputs, targets = next(iter(loader()))
    probs = model(inputs).softmax(dim=-1)
    total = sum(
        -math.log(probs[b, t, targets[b, t]].item())
        for b, t in itertools.product(range(4), range(8))
    )
    assert calc_loss_batch(inputs, targets, model, CPU).item() == pytest.approx(
        total / 32, rel=1e-5
    )


def test_initial_loss_is_near_that_of_a_uniform_guess():
    model = tiny_model(emb_dim=64).eval()
    torch.nn.init.normal_(model.out_head.weight, std=0.02)
    loss = calc_loss_loader(loader(), model, CPU)
    assert loss == pytest.approx(math.log(256), abs=0.15)


@pytest.mark.parametrize("num_batches, taken", [(None, 5), (1, 1), (3, 3), (99, 5)])
def test_loss_of_a_loader_is_the_mean_over_batches(num_batches, taken):
    model, data = tiny_model().eval(), loader(shuffle=False)
    losses = [calc_loss_batch(*batch, model, CPU).item() for batch in data][:taken]
    loss = calc_loss_loader(data, model, CPU, num_batches)
    assert loss == pytest.approx(sum(losses) / taken, rel=1e-6)


@pytest.mark.parametrize("data, num_batches", [([], None), ([], 3), (loader(), 0)])
def test_loss_of_no_batch_is_refused(data, num_batches):
    with pytest.raises(ValueError, match="expected (at least 1 in|a whole number)"):
        calc_loss_loader(data, tiny_model(), CPU, num_batches)


def test_evaluation_drops_nothing_and_goes_back_to_training():
    model, (train, val) = tiny_model(drop_rate=0.5), loaders()
    first = evaluate_model(model, train, val, CPU, None)
    assert model.training
    assert evaluate_model(model, train, val, CPU, None) == pytest.approx(first)
    assert first[0] != pytest.approx(first[1])
    assert all(p.grad is None for p in model.parameters())


# The simple loop


def train_simply(model, train, val, epochs=2, optimizer=None):
    """Run the book's loop with an evaluation every third step."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    return train_model_simple(
        model, train, val, optimizer, CPU, epochs, 3, 1, "The bank", TOKENIZER
    )


def test_simple_loop_lowers_the_loss_and_counts_tokens():
    train_losses, val_losses, seen = train_simply(tiny_model(), *loaders(), epochs=6)
    assert len(train_losses) == len(val_losses) == len(seen) == 10
    assert train_losses[-1] < train_losses[0] - 1
    assert val_losses[-1] < val_losses[0] - 0.5
    assert seen == [32 * (step + 1) for step in range(0, 30, 3)]


def test_simple_loop_prints_the_books_lines(capsys):
    train_simply(tiny_model(), *loaders())
    lines = capsys.readouterr().out.splitlines()
    form = r"Ep (\d) \(Step (\d{6})\): Train loss \d\.\d{3}, Val loss \d\.\d{3}"
    found = [match.groups() for line in lines if (match := re.fullmatch(form, line))]
    assert found == [(str(step // 5 + 1), f"{step:06d}") for step in (0, 3, 6, 9)]
    assert sum(line.startswith("The bank") for line in lines) == 2


def test_simple_loop_equals_its_own_steps_by_hand():
    model, other = tiny_model(drop_rate=0.0), tiny_model(drop_rate=0.0)
    train, val = loader(shuffle=False), loaders()[1]
    train_simply(model, train, val, epochs=1)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2)
    for batch in train:
        optimizer.zero_grad()
        calc_loss_batch(*batch, other, CPU).backward()
        optimizer.step()
    assert same(weights(model), weights(other))


@pytest.mark.parametrize("which", [0, 1])
def test_simple_loop_refuses_a_loader_without_batches(which):
    data = list(loaders())
    data[which] = DataLoader([])
    model = tiny_model()
    with pytest.raises(ValueError, match="expected at least 1"):
        train_simply(model, *data)


# A loss that is not a number


class Breaking(GPTModel):
    """A model whose loss is NaN or infinite in one forward pass of training."""

    def __init__(self, at, loss=math.nan):
        torch.manual_seed(1)
        super().__init__(TINY)
        self.at, self.loss, self.passes, self.before = at, loss, 0, None

    def forward(self, in_idx, cache=None):
        if self.training:
            self.before = weights(self) if self.passes == self.at else self.before
            self.passes += 1
            if self.passes == self.at + 1:
                logits = super().forward(in_idx, cache)
                logits[..., 1:] = math.nan if math.isnan(self.loss) else -math.inf
                return logits  # no target is token 0, an exclamation mark
        return super().forward(in_idx, cache)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 7])
def test_simple_loop_stops_at_a_loss_that_is_not_a_number(step, loss):
    model = Breaking(step, loss)
    with pytest.raises(FloatingPointError, match=rf"became {loss} at step {step}\b"):
        train_simply(model, *loaders())
    assert same(weights(model), model.before)


@pytest.mark.parametrize("accumulate, at, step", [(1, 0, 0), (1, 7, 7), (2, 7, 3)])
def test_loop_stops_at_a_loss_that_is_not_a_number(tmp_path, accumulate, at, step):
    model = Breaking(at)
    with pytest.raises(FloatingPointError, match=rf"at step {step}\b"):
        train(model, tmp_path, accumulate=accumulate)
    assert same(weights(model), model.before)
    for name in ("best.pth", "last.pth") if step else ():
        extra = load_checkpoint(tmp_path / name, tiny_model(seed=2))
        assert all(map(math.isfinite, extra["history"]["train_loss"]))


def test_weights_that_overflowed_are_never_saved(tmp_path, monkeypatch):
    def overflow(model, train_loader, val_loader, device, eval_iter):
        losses = evaluate_model(model, train_loader, val_loader, device, eval_iter)
        return losses if next(calls) < 2 else (math.nan, math.nan)

    calls = itertools.count()
    monkeypatch.setattr(helpers, "evaluate_model", overflow)
    with pytest.raises(FloatingPointError, match="nan at step 6"):
        train(tiny_model(), tmp_path)
    extra = load_checkpoint(tmp_path / "last.pth", tiny_model())
    assert extra["history"]["step"] == [2, 4]


# Schedule, decay, accumulation


def test_learning_rate_rises_to_the_peak_and_falls_to_the_end():
    rates = [learning_rate(step, 101, 10, 1.0, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(rates) == rates[9] == 1.0 and min(rates[9:]) == rates[-1]
    assert rates[-1] == pytest.approx(0.1) and rates[55] == pytest.approx(0.55)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_learning_rate_is_half_a_cosine():
    rates = [learning_rate(step, 5, 0, 3.0, 1.0) for step in range(5)]
    assert rates == pytest.approx([2 + math.cos(math.pi * n / 4) for n in range(5)])


@pytest.mark.parametrize("total, warmup", [(1, 0), (1, 1), (1, 10), (5, 5), (6, 5)])
def test_learning_rate_of_a_short_run_stays_in_its_bounds(total, warmup):
    rates = [learning_rate(step, total, warmup, 1.0, 0.1) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)


def test_only_matrices_decay():
    model = tiny_model(qkv_bias=True)
    names = {p: name for name, p in model.named_parameters()}
    decay, rest = param_groups(model, 0.3)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert all(names[p].endswith(".weight") for p in decay["params"])
    ends = (".bias", ".scale", ".shift")
    assert all(names[p].endswith(ends) for p in rest["params"])
    assert len(decay["params"]) + len(rest["params"]) == len(names)


def test_tied_weights_are_in_one_group_once():
    model = tiny_model(tie_weights=True)
    params = [p for group in param_groups(model, 0.1) for p in group["params"]]
    assert len(params) == len(set(params)) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = tiny_model()
    model.tok_emb.requires_grad_(False)
    model.final_norm.requires_grad_(False)
    params = [p for group in param_groups(model, 0.1) for p in group["params"]]
    left_out = {*model.tok_emb.parameters(), *model.final_norm.parameters()}
    assert set(params) == set(model.parameters()) - left_out


def test_two_batches_of_four_make_the_step_of_one_of_eight():
    results = []
    for batch_size, accumulate in ((4, 2), (8, 1)):
        data = loader((TEXT * 4)[:520], batch_size, shuffle=False)  # 64 windows
        model = tiny_model(drop_rate=0.0).double()
        history = train_model(
            *(model, data, data, CPU, 1), accumulate=accumulate, eval_freq=2
        )
        results.append((weights(model), history))
    (ours, history), (expected, expected_history) = results
    assert history["step"] == expected_history["step"] != []
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], rtol=0, atol=1e-9)
    assert not same(ours, weights(tiny_model().double()))


def test_long_gradients_are_cut():
    model, stream = tiny_model(), BatchStream(loader())
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    before = weights(model)
    helpers.train_step(model, stream, sgd, CPU, 1, max_norm=0.01, step=0)
    moved = [(weights(model)[name] - before[name]).norm() for name in before]
    assert torch.stack(moved).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_loop_sets_the_rate_of_each_step_and_records_it():
    model, (train_loader, val) = tiny_model(), loaders()
    schedule = {"peak_lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 4}
    history = train_model(model, train_loader, val, CPU, 2, **schedule, eval_freq=1)
    rates = [learning_rate(step, 10, 4, 1e-2, 1e-3) for step in range(10)]
    assert history["lr"] == rates
    assert history["step"] == list(range(1, 11))
    assert history["tokens_seen"] == [32 * step for step in range(1, 11)]
    assert history["train_loss"][-1] < history["train_loss"][0]


@pytest.mark.parametrize("which", [0, 1])
def test_loop_refuses_a_loader_without_batches(which):
    data = list(loaders())
    data[which] = DataLoader([])
    with pytest.raises(ValueError, match="expected at least 1"):
        train_model(tiny_model(), *data, CPU, 1)


@pytest.mark.parametrize("accumulate, steps", [(1, 5), (2, 3), (3, 2), (5, 1), (6, 1)])
def test_steps_of_accumulated_batches_cover_the_text(accumulate, steps):
    history = train_model(
        *(tiny_model(), *loaders(), CPU, 1), accumulate=accumulate, eval_freq=1
    )
    assert history["step"] == list(range(1, steps + 1))
    assert history["tokens_seen"][-1] == 32 * steps * accumulate


# Going on where training stopped


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("place", [0, 1, 4, 5, 6, 10, 13])
def test_stream_goes_on_at_any_place(place, shuffle):
    torch.manual_seed(3)
    stream = BatchStream(loader(shuffle=shuffle))
    for _ in range(place):
        next(stream)
    torch.rand(3)  # as dropout would
    state, now = stream.state_dict(), random_state()
    expected = [next(stream) for _ in range(12)]
    torch.manual_seed(99)
    other = BatchStream(loader(shuffle=shuffle))
    other.load_state_dict(state)
    set_random_state(now)
    assert same([next(other) for _ in range(12)], expected)
    assert other.tokens_seen == stream.tokens_seen == 32 * (place + 12)


def test_stream_reads_every_window_once_in_a_new_order():
    stream = BatchStream(loader())
    readings = [[next(stream)[0] for _ in range(5)] for _ in range(2)]
    first, second = (torch.cat(reading).tolist() for reading in readings)
    assert sorted(first) == sorted(second) and first != second


def test_moving_in_the_stream_leaves_the_random_numbers_alone():
    stream = BatchStream(loader())
    for _ in range(3):
        next(stream)
    torch.rand(3)  # as dropout would
    before = random_state()
    BatchStream(loader()).load_state_dict(stream.state_dict())
    assert same(random_state(), before)


def train(model, run_dir, resume=False, epochs=2, accumulate=1, data=None):
    """Train with dropout and shuffling; 10 steps, an evaluation every second."""
    if not resume:
        torch.manual_seed(4)
    return train_model(
        *(model, *(data or loaders()), CPU, epochs),
        **{"peak_lr": 1e-2, "warmup_steps": 3, "eval_freq": 2, "eval_iter": 2},
        **{"accumulate": accumulate, "run_dir": run_dir, "resume": resume},
    )


def saved(folder):
    """Return all that the checkpoints of a run hold."""
    names = ("best.pth", "last.pth")
    return [torch.load(folder / name, weights_only=True) for name in names]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return weights, history and checkpoints of a run that nothing stopped."""
    folder, model = tmp_path_factory.mktemp("whole"), tiny_model()
    history = train(model, folder)
    return weights(model), history, saved(folder)


class Stop(Exception):
    """What stops a run in these tests."""


def stop_at(monkeypatch, name, call):
    """Let the given call of `helpers.name` raise Stop."""
    original, calls = getattr(helpers, name), itertools.count()

    def stopping(*args, **kwargs):
        if next(calls) == call:
            raise Stop
        return original(*args, **kwargs)

    monkeypatch.setattr(helpers, name, stopping)


def assert_resume_equals(folder, uninterrupted):
    """Go on with a run, with other weights and seed, and compare to the bit."""
    model = tiny_model(seed=77)
    history = train(model, folder, resume=True)
    expected_weights, expected_history, expected_files = uninterrupted
    assert history == expected_history
    assert same(weights(model), expected_weights)
    assert same(saved(folder), expected_files)
    assert files(folder) == ["best.pth", "last.pth"]


STOPS = [
    *[("evaluate_model", call) for call in (1, 2, 3, 4)],
    *[("save_checkpoint", call) for call in (2, 3, 4, 5)],
    *[("train_step", call) for call in (2, 3, 4, 5, 6, 9)],
    *[("calc_loss_batch", call) for call in (12, 24)],
]


@pytest.mark.parametrize("name, call", STOPS)
def test_resumed_run_equals_an_uninterrupted_one(
    tmp_path, monkeypatch, uninterrupted, name, call
):
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, name, call)
        train(tiny_model(), tmp_path)
    assert (tmp_path / "last.pth").exists()
    assert_resume_equals(tmp_path, uninterrupted)


def test_run_stopped_many_times_equals_an_uninterrupted_one(
    tmp_path, monkeypatch, uninterrupted
):
    model = tiny_model()
    for stop in range(4):
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, "train_step", 3)
            train(model, tmp_path, resume=stop > 0)
        model = tiny_model(seed=stop)
    assert_resume_equals(tmp_path, uninterrupted)


def test_resume_with_accumulated_batches(tmp_path, monkeypatch):
    whole, model = tiny_model(), tiny_model()
    history = train(whole, tmp_path / "whole", accumulate=3, epochs=6)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, "train_step", 7)
        train(model, tmp_path / "cut", accumulate=3, epochs=6)
    resumed = train(model, tmp_path / "cut", resume=True, accumulate=3, epochs=6)
    assert resumed == history and same(weights(model), weights(whole))


def own_loaders(kind, seed):
    """Return loaders that draw from generators of their own."""
    (train, val), draws = loaders(), torch.Generator().manual_seed(seed)
    own, size = {"generator": draws}, {"batch_size": 4, "drop_last": True}
    sampler = RandomSampler(train.dataset, **own)
    made = {
        "loader": {"shuffle": True, **own, **size},
        "sampler": {"sampler": sampler, **size},
        "batch sampler": {"batch_sampler": BatchSampler(sampler, 4, True)},
        "two": {"sampler": sampler, **size}
        | {"generator": torch.Generator().manual_seed(seed + 1)},
        "validation": {"shuffle": True, **size},
        "shared": {"shuffle": True, **own, **size},
    }[kind]
    if kind in ("validation", "shared"):
        val = DataLoader(val.dataset, 1, shuffle=True, **own)
    return DataLoader(train.dataset, **made), val


@pytest.mark.parametrize(
    "kind", ["loader", "sampler", "batch sampler", "two", "validation", "shared"]
)
def test_resume_restores_generators_that_loaders_own(tmp_path, monkeypatch, kind):
    whole, runs = tiny_model(), []
    runs.append(train(whole, tmp_path / "whole", data=own_loaders(kind, 5)))
    for call in (5, 7):
        model, folder = tiny_model(), tmp_path / str(call)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, "train_step", call)
            train(model, folder, data=own_loaders(kind, 5))
        model = tiny_model(seed=77)
        runs.append(train(model, folder, resume=True, data=own_loaders(kind, 99)))
        assert same(weights(model), weights(whole))
        assert same(saved(folder), saved(tmp_path / "whole"))
    assert all(run == runs[0] for run in runs)
    other = train(tiny_model(), tmp_path / "other", data=own_loaders(kind, 6))
    assert other != runs[0], "the generators play no part"


def test_states_of_too_few_generators_are_refused():
    data = own_loaders("two", 1)[0]
    with pytest.raises(ValueError, match="states of 1 random generators, expected 3"):
        set_random_state(random_state(), data)
    set_random_state(random_state(data), data)


def test_finished_run_is_not_trained_again(tmp_path):
    model = tiny_model()
    history, after = train(model, tmp_path), weights(model)
    again = tiny_model(seed=5)
    assert train(again, tmp_path, resume=True) == history
    assert same(weights(again), after)


def test_freed_memory_is_kept_where_it_can_be(child):
    def given_back():
        large = torch.ones(25_000_000)  # 100 MB
        held = psutil.Process().memory_info().rss
        del large
        return held - psutil.Process().memory_info().rss > 50_000_000

    kept = child(lambda: (keep_freed_memory(), given_back()))
    assert kept.result() == "(True, False)"


def test_resume_starts_anew_where_nothing_was_saved(tmp_path, uninterrupted):
    model = tiny_model()
    torch.manual_seed(4)
    assert train(model, tmp_path, resume=True) == uninterrupted[1]


def test_best_checkpoint_has_the_lowest_validation_loss(uninterrupted, tmp_path):
    history = uninterrupted[1]
    best = uninterrupted[2][0]["extra"]["history"]["val_loss"]
    assert best[-1] == min(best) == min(history["val_loss"])


# Checkpoints


def trained(seed=1, **changes):
    """Return a model and an optimizer that has made one step."""
    model = tiny_model(seed, **changes)
    optimizer = torch.optim.AdamW(param_groups(model, 0.1), lr=1e-2)
    helpers.train_step(model, BatchStream(loader()), optimizer, CPU, 1, 1.0, 0)
    return model, optimizer


def test_checkpoint_gives_back_weights_optimizer_and_the_rest(tmp_path):
    (model, optimizer), (other, its_optimizer) = trained(), trained(seed=2)
    rest = {"a": [1, 2.5, "x"], "b": {"t": torch.arange(3)}, "c": (None, True)}
    save_checkpoint(tmp_path / "new" / "x.pth", model, optimizer, **rest)
    extra = load_checkpoint(tmp_path / "new" / "x.pth", other, its_optimizer)
    assert same(extra, rest)
    assert same(weights(other), weights(model))
    assert same(its_optimizer.state_dict(), optimizer.state_dict())
    assert files(tmp_path / "new") == ["x.pth"]


def test_checkpoint_without_an_optimizer(tmp_path):
    model, optimizer = trained()
    save_checkpoint(tmp_path / "x.pth", model)
    assert load_checkpoint(str(tmp_path / "x.pth"), tiny_model(seed=2)) == {}
    other, its_optimizer = trained(seed=2)
    before = weights(other), its_optimizer.state_dict()
    with pytest.raises(ValueError, match="holds no optimizer"):
        load_checkpoint(tmp_path / "x.pth", other, its_optimizer)
    assert same((weights(other), its_optimizer.state_dict()), before)


def test_interrupted_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path, (model, optimizer) = tmp_path / "x.pth", trained()
    save_checkpoint(path, model, optimizer)
    content = path.read_bytes()

    def full_disk(state, file):
        Path(file).write_bytes(content[: len(content) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, trained(seed=2)[0])
    assert path.read_bytes() == content
    assert files(tmp_path) == ["x.pth"]


def stall(folder, module, name, call):
    """Train, and never come back from the given call; a save stops half-way."""
    torch.set_num_threads(1)
    helpers.tqdm = lambda steps, *_, **__: steps  # its lock would outlive the process
    module = importlib.import_module(module)
    original, calls = getattr(module, name), itertools.count()

    def stalling(*args):
        if next(calls) != call:
            return original(*args)
        if name == "save":
            original(*args)
            os.truncate(args[1], os.path.getsize(args[1]) // 2)
        (folder / "stalled").touch()
        time.sleep(600)

    setattr(module, name, stalling)
    train(tiny_model(), folder)


@pytest.mark.parametrize(
    "module, name, call",
    [
        *[("torch", "save", call) for call in (2, 4, 5)],
        *[("os", "replace", call) for call in (3, 4)],
        *[("helpers", "train_step", call) for call in (3, 7)],
        ("helpers", "evaluate_model", 3),
    ],
)
def test_killed_process_is_resumed_exactly(tmp_path, uninterrupted, module, name, call):
    process = start(stall, tmp_path, module, name, call)
    wait_for((tmp_path / "stalled").exists)
    kill(process)
    (tmp_path / "stalled").unlink()
    left = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert len(left) == (module != "helpers")
    for path in left:
        os.utime(path, (0, 0))  # as if it had happened long ago
    assert_resume_equals(tmp_path, uninterrupted)


def save_for_ever(path):
    """Save the same model again and again, with a number that counts."""
    torch.set_num_threads(1)
    model, optimizer = trained(emb_dim=64)
    for n in itertools.count():
        save_checkpoint(path, model, optimizer, n=n)


def test_killed_process_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "x.pth"
    process = start(save_for_ever, path)
    wait_for(path.exists)
    reader, numbers = tiny_model(emb_dim=64), [0]
    while len(numbers) < 30 or numbers[-1] < 5:  # while the other process writes
        numbers.append(load_checkpoint(path, reader)["n"])
        assert numbers[-1] >= numbers[-2] and process.is_alive()
    kill(process)
    model, optimizer = trained(seed=2, emb_dim=64)
    assert load_checkpoint(path, model, optimizer)["n"] >= numbers[-1]
    assert same(weights(model), weights(trained(emb_dim=64)[0]))


@pytest.mark.parametrize("name", ["x.pth", "a[1]*.pth"])
def test_what_a_kill_left_is_cleared_unless_it_may_be_in_use(tmp_path, name):
    if os.name == "nt" and "*" in name:
        pytest.skip("no such name on Windows")
    old = [f".{name}.0123abcd.tmp", f".{name}.89ef0123.tmp"]
    kept = [f".{name}.4567abcd.tmp"]  # a living process wrote to it just now
    others = [".y.pth.0123abcd.tmp", f".{name}.old.0123abcd.tmp", f"{name}.tmp", name]
    for file in (*old, *kept, *others):
        (tmp_path / file).write_bytes(b"x")
        if file not in kept:
            os.utime(tmp_path / file, (0, 0))
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_bytes(b"new")
    assert files(tmp_path) == sorted(kept + others)
    assert (tmp_path / name).read_bytes() == b"new"


class Code:
    """Something that runs code when it is unpickled without care."""

    def __reduce__(self):
        return os.mkdir, (os.environ["TEST_TRAINING_FOLDER"],)


def damaged_files(folder, monkeypatch):
    """Return files that are no checkpoint, by what is wrong with them."""
    model, optimizer = trained()
    save_checkpoint(folder / "whole.pth", model, optimizer)
    whole = (folder / "whole.pth").read_bytes()
    cuts = [1, 2, 100, 1000, len(whole) // 2, *range(len(whole) - 60, len(whole), 7)]
    contents = {f"cut at {n}": whole[:n] for n in (*cuts, len(whole) - 1)}
    contents["empty"] = b""
    contents["text"] = b"<!DOCTYPE html><html>Not found</html>"
    contents["noise"] = bytes(i * i % 251 for i in range(5000))
    contents["zeros"] = bytes(len(whole))
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    others = {
        "a list": [1, 2],
        "a number": 3,
        "weights only": model.state_dict(),
        "a key too few": {"config": {}, "model_state_dict": {}, "extra": {}},
    }
    whole = torch.load(folder / "whole.pth", weights_only=True)
    for key, bad in (("config", None), ("config", {}), ("model_state_dict", [1])):
        others[f"{key} {bad}"] = whole | {key: bad}
    monkeypatch.setenv("TEST_TRAINING_FOLDER", str(folder / "ran"))
    others["code"] = whole | {"extra": {"history": Code()}}
    for name, content in others.items():
        torch.save(content, folder / name)
    torch.save(others["code"], folder / "old", _use_new_zipfile_serialization=False)
    (folder / "pickle").write_bytes(pickle.dumps(others["code"]["extra"], protocol=2))
    with zipfile.ZipFile(folder / "zip", "w") as zipped:
        zipped.writestr("archive/data.pkl", pickle.dumps(Code(), protocol=2))
        zipped.writestr("notes.txt", "something else")
    more = ("old", "pickle", "zip")
    return [folder / name for name in (*contents, *others, *more)]


def test_damaged_files_are_refused_and_change_nothing(tmp_path, monkeypatch):
    model, optimizer = trained(seed=2)
    before = weights(model), optimizer.state_dict()
    for path in damaged_files(tmp_path, monkeypatch):
        message = re.escape(f"{path.name} is cut short or isn't")
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path, model, optimizer)
    assert same((weights(model), optimizer.state_dict()), before)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        load_checkpoint(tmp_path / "nothing.pth", model)
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path, model)


def test_the_file_with_code_would_run_it(tmp_path, monkeypatch):
    path = next(p for p in damaged_files(tmp_path, monkeypatch) if p.name == "code")
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"emb_dim": 32},
        {"n_layers": 1},
        {"n_layers": 3},
        {"n_heads": 4},
        {"vocab_size": 300},
        {"context_length": 16},
        {"qkv_bias": True},
        {"tie_weights": True},
    ],
)
def test_checkpoint_of_another_model_is_refused(tmp_path, change):
    save_checkpoint(tmp_path / "x.pth", *trained())
    model, optimizer = trained(seed=2, **change)
    before = weights(model), optimizer.state_dict()
    for args in ((model,), (model, optimizer)):
        with pytest.raises(ValueError, match="another model"):
            load_checkpoint(tmp_path / "x.pth", *args)
    assert same((weights(model), optimizer.state_dict()), before)


@pytest.mark.parametrize(
    "bad", [np.float64(3), np.ones(2), Path("x"), TOKENIZER], ids=lambda b: str(type(b))
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, bad):
    path = tmp_path / "x.pth"
    save_checkpoint(path, tiny_model(), best=1)
    with pytest.raises((ValueError, AttributeError, pickle.PicklingError)) as caught:
        save_checkpoint(path, tiny_model(), best=bad)
    assert bad is TOKENIZER or "expected numbers, strings" in str(caught.value)
    assert load_checkpoint(path, tiny_model()) == {"best": 1}
    assert files(tmp_path) == ["x.pth"]


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        lambda model: torch.optim.SGD(param_groups(model, 0.1), lr=0.1),
        lambda model: torch.optim.AdamW(model.parameters()),
        lambda model: torch.optim.AdamW(param_groups(model, 0.1)[::-1]),
    ],
)
def test_state_of_another_optimizer_is_refused(tmp_path, make):
    save_checkpoint(tmp_path / "x.pth", *trained())
    model = tiny_model(seed=2)
    optimizer, before = make(model), weights(model)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="x.pth holds the state of another optimizer"):
        load_checkpoint(tmp_path / "x.pth", model, optimizer)
    assert same((weights(model), optimizer.state_dict()), (before, state))


def test_dropout_may_differ_from_that_of_the_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "x.pth", tiny_model())
    model = tiny_model(seed=2, drop_rate=0.0)
    load_checkpoint(tmp_path / "x.pth", model)
    assert same(weights(model), weights(tiny_model())) and model.cfg["drop_rate"] == 0


# Mistakes of users


def use(name, run_dir=None, **changes):
    """Call one of the two loops with one thing wrong."""
    model, (train_loader, val_loader) = changes.pop("model", tiny_model()), loaders()
    common = {"model": model, "train_loader": train_loader, "val_loader": val_loader}
    common |= {"device": CPU, "num_epochs": 1, "eval_freq": 2}
    if name == "train_model":
        return train_model(**common | {"run_dir": run_dir} | changes)
    optimizer = torch.optim.AdamW(model.parameters())
    common |= {"optimizer": optimizer, "eval_iter": 1, "tokenizer": TOKENIZER}
    return train_model_simple(**common | {"start_context": "a"} | changes)


NO_COUNTS = (0, -1, None, 1.5, math.nan, "3", True)
NO_NUMBERS = (-1, None, math.nan, "3")
BAD_NUMBERS = [
    *[("train_model_simple", "num_epochs", bad) for bad in NO_COUNTS],
    *[("train_model_simple", "eval_freq", bad) for bad in NO_COUNTS],
    *[("train_model", "eval_freq", bad) for bad in NO_COUNTS],
    *[("train_model", "accumulate", bad) for bad in NO_COUNTS],
    *[("train_model", "num_epochs", bad) for bad in (0, *NO_NUMBERS)],
    *[("train_model", "max_norm", bad) for bad in (0, *NO_NUMBERS)],
    *[
        ("train_model", name, bad)
        for name in ("peak_lr", "min_lr", "warmup_steps", "weight_decay")
        for bad in NO_NUMBERS
    ],
]


@pytest.mark.parametrize("loop, name, bad", BAD_NUMBERS)
def test_numbers_that_training_cannot_take(loop, name, bad):
    model = tiny_model()
    before = weights(model)
    with pytest.raises(ValueError, match=f"got {name}={bad!r}, expected a"):
        use(loop, model=model, **{name: bad})
    assert same(weights(model), before)


@pytest.mark.parametrize("bad", [0, -1, 1.5, math.nan, "3"])
@pytest.mark.parametrize("loop", ["train_model", "train_model_simple"])
def test_number_of_batches_to_evaluate(loop, bad):
    with pytest.raises(ValueError, match=f"got num_batches={bad!r}"):
        use(loop, eval_iter=bad)


@pytest.mark.parametrize("loop", ["train_model", "train_model_simple"])
def test_other_mistakes_in_training(tmp_path, loop):
    stray = torch.optim.AdamW(tiny_model().parameters())
    with pytest.raises(ValueError, match="no parameter of this model"):
        use(loop, optimizer=stray)
    with pytest.raises(ValueError, match="set requires_grad"):
        use(loop, model=tiny_model().requires_grad_(False))
    with pytest.raises(ValueError, match=r"loaders with \[5, None\] batches"):
        use(loop, val_loader=None)


def test_mistakes_in_resuming(tmp_path):
    with pytest.raises(ValueError, match="resume=True.*run_dir"):
        use("train_model", resume=True)
    use("train_model", tmp_path)
    fewer = loader(TEXT[:80])
    with pytest.raises(ValueError, match="after 5 batches, .* the 2 of the loader"):
        use("train_model", tmp_path, resume=True, train_loader=fewer)
    with pytest.raises(ValueError, match="another model"):
        use("train_model", tmp_path, resume=True, model=tiny_model(n_heads=4))
    (tmp_path / "by hand").mkdir()
    model = tiny_model()
    optimizer = torch.optim.AdamW(param_groups(model, 0.1))
    save_checkpoint(tmp_path / "by hand" / "last.pth", model, optimizer, history={})
    with pytest.raises(ValueError, match=r"last.pth isn't of train_model"):
        use("train_model", tmp_path / "by hand", resume=True)
    (tmp_path / "file").touch()
    model = tiny_model()
    before = weights(model)
    with pytest.raises(FileExistsError):  # before it trains, not at the first save
        use("train_model", tmp_path / "file", model=model)
    assert same(weights(model), before)


def test_rates_from_numpy_are_saved(tmp_path):
    rates = {"peak_lr": np.float64(1e-3), "min_lr": np.float32(1e-4)}
    history = use("train_model", tmp_path, **rates)
    assert load_checkpoint(tmp_path / "last.pth", tiny_model())["history"] == history


@pytest.mark.parametrize("tokenizer", [TOKENIZER, get_tokenizer()])
def test_mistakes_with_text_and_ids(tokenizer):
    for bad in (None, 3, b"a", ["a"]):
        with pytest.raises(TypeError, match="got .* as a text"):
            text_to_token_ids(bad, tokenizer)
    lone = text_to_token_ids("a\ud800", tokenizer)
    assert token_ids_to_text(lone, tokenizer) == "a\ufffd"
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected one row"):
        token_ids_to_text(torch.zeros(2, 3).long(), tokenizer)
    nothing = text_to_token_ids("", tokenizer)
    assert nothing.shape == (1, 0) and nothing.dtype == torch.int64
    assert token_ids_to_text(nothing, tokenizer) == ""


@pytest.mark.parametrize("shape", [(4, 6), (8, 3), (24, 1), (4, 5)])
def test_targets_of_another_shape_are_refused(shape):
    """Some of them have as many ids, and would give a loss of something else."""
    inputs, targets = torch.zeros(6, 4).long(), torch.zeros(shape).long()
    with pytest.raises(ValueError, match=r"inputs \(6, 4\) and targets"):
        calc_loss_batch(inputs, targets, tiny_model(), CPU)


# Choosing the next token

PROBS = [0.4, 0.3, 0.15, 0.1, 0.05]


def normalised(values):
    """Return `values` divided by their sum."""
    return [value / sum(values) for value in values]


@pytest.mark.parametrize(
    "controls, expected",
    [
        ({"temperature": 1.0}, PROBS),
        ({"temperature": 0.5}, normalised([p**2 for p in PROBS])),
        ({"temperature": 2.0}, normalised([p**0.5 for p in PROBS])),
        ({"temperature": 1.0, "top_k": 2}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_k": 99}, PROBS),
        ({"temperature": 2.0, "top_k": 3}, normalised([0.4**0.5, 0.3**0.5, 0.15**0.5])),
        ({"temperature": 1.0, "top_p": 0.35}, [1, 0, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.45}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.65}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.75}, normalised(PROBS[:3])),
        ({"temperature": 1.0, "top_p": 1.0}, PROBS),
        ({"temperature": 0.5, "top_p": 0.65}, [0.64, 0.36, 0, 0, 0]),
        # of three tokens, 8/17 + 6/17 reach 0.75; of all five, three would be needed
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.75}, [4 / 7, 3 / 7, 0, 0, 0]),
        ({"temperature": 0.0}, [1, 0, 0, 0, 0]),
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


WRONG = [
    *[{"temperature": bad} for bad in (-0.1, -5, math.nan, math.inf)],
    *[{"top_k": bad} for bad in (0, -1, 1.5, math.nan, "3")],
    *[{"temperature": bad} for bad in (None, "a")],
    *[{"top_p": bad} for bad in (0, 0.0, -0.5, 1.01, math.nan)],
]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", WRONG)
def test_controls_outside_their_range_are_refused(wrong, temperature):
    controls = {"temperature": temperature} | wrong
    with pytest.raises(ValueError, match=f"got {next(iter(wrong))}="):
        sample_token(torch.zeros(2, 5), **controls)
    with pytest.raises(ValueError, match=f"got {next(iter(wrong))}="):
        generate(tiny_model().eval(), torch.zeros(1, 1).long(), 3, 8, **controls)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_choose_no_token(bad, temperature):
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with pytest.raises(ValueError, match="weights have overflowed"):
        sample_token(logits, temperature)
    with pytest.raises(ValueError, match="weights have overflowed"):
        sample_token(torch.full((1, 5), -math.inf), temperature)


@pytest.mark.parametrize("temperature", [1e-40, 1e-300])
def test_a_temperature_too_low_to_divide_by(temperature):
    with pytest.raises(ValueError, match="so low that it should be 0"):
        sample_token(torch.tensor([[1.0, 2.0]]), temperature)


@pytest.mark.parametrize("bad", [-1, 1.5, math.nan, "a", [3]])
def test_an_end_of_text_that_is_no_id(bad):
    with pytest.raises(ValueError, match="got eos_id="):
        generate(tiny_model().eval(), torch.zeros(1, 1).long(), 3, 8, eos_id=bad)


# Generation


def prompts(rows, tokens=3):
    """Return `(rows, tokens)` random ids."""
    generator = torch.Generator().manual_seed(8)
    return torch.randint(0, 256, (rows, tokens), generator=generator)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("context_size", [4, 8])
@pytest.mark.parametrize("controls", [{}, {"temperature": 1.7, "top_k": 1}])
def test_greedy_generation_equals_the_simple_one(controls, context_size, rows):
    model, idx = tiny_model().eval(), prompts(rows)
    out = generate(model, idx, 20, context_size, **controls)  # past the window
    assert same(out, generate_text_simple(model, idx, 20, context_size))


def test_sampled_text_depends_on_the_seed_only():
    model, outs = tiny_model().eval(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(generate(model, prompts(2), 20, 8, temperature=1.0, top_p=0.9))
    assert same(outs[0], outs[1]) and not same(outs[0], outs[2])


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


def test_each_row_of_a_batch_stops_at_its_own_end():
    model, idx, eos_id = ends()
    out = generate(model, idx, 12, 8, eos_id=eos_id)
    free = generate(model, idx, 12, 8)
    for row, prompt, whole in zip(out, idx, free, strict=True):
        alone = generate(model, prompt[None], 12, 8, eos_id=eos_id)[0]
        assert new_tokens(row, eos_id) == new_tokens(alone, eos_id)
        assert new_tokens(row, eos_id) == new_tokens(whole, eos_id)
        after = row[3 + len(new_tokens(row, eos_id)) :]
        assert (after == eos_id).all()


def test_generation_stops_once_every_row_has_ended():
    model, idx, eos_id = ends()
    free = generate(model, idx, 12, 8)
    idx = idx[(free[:, 3:] == eos_id).any(dim=1)]
    out = generate(model, idx, 10_000, 8, eos_id=eos_id)
    longest = max(len(new_tokens(row, eos_id)) for row in out)
    assert out.shape[1] == 3 + longest < 3 + 12


def test_end_of_text_in_the_prompt_does_not_end_the_answer():
    model, idx = tiny_model().eval(), prompts(1)
    eos_id = 7
    idx[0, -1] = eos_id
    out = generate(model, idx, 5, 8, eos_id=eos_id)
    assert same(out, generate(model, idx, 5, 8)) and eos_id not in out[0, 3:]
