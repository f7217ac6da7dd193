"""The script that trains gpt2-mini, on tiny models: data/gpt2-mini/train.py.

pytest tests/test_gpt2_mini.py
"""

import csv
import importlib
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT

FOLDER = ROOT / "data" / "gpt2-mini"
SCRIPT = FOLDER / "train.py"
TINY = (
    "--vocab 300 --context 32 --layers 2 --heads 2 --width 16 --batch 4 "
    "--tokens 3072 --warmup 2 --eval-freq 6 --eval-windows 4 --peak-lr 0.02"
).split()

sys.path.insert(0, str(FOLDER))
exercises = importlib.import_module("exercises")
train_module = importlib.import_module("train")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus of the course's own story: folder with train.txt and validation.txt."""
    folder = tmp_path_factory.mktemp("text")
    story = (ROOT / "data" / "the-ferryman.txt").read_text(encoding="utf-8")
    (folder / "train.txt").write_text(
        story[:8000] + "<|endoftext|>" + story[8000:16000], encoding="utf-8"
    )
    (folder / "validation.txt").write_text(story[16000:], encoding="utf-8")
    return folder


def launch(text, out, *before):
    """Start the script in a process of its own, with one thread."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, *before, SCRIPT, *TINY, "--text", text, "--out", out]
    return subprocess.Popen(
        list(map(str, command)),
        env=kept | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def rows_of(out):
    """The rows of a run's log."""
    with (out / "log.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def train(text, out, *options):
    """Train in this process; return the rows of the log."""
    train_module.main(list(map(str, [*TINY, "--text", text, "--out", out, *options])))
    return rows_of(out)


def weights(out, name="last.pth"):
    """The weights in a checkpoint."""
    return torch.load(out / name, weights_only=True)["model_state_dict"]


def column(rows, name):
    return [float(row[name]) for row in rows]


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    """A run in one process: folder, rows of the log."""
    out = tmp_path_factory.mktemp("alone")
    return out, train(text, out)


def test_learns_and_logs(alone):
    out, rows = alone
    losses = column(rows, "val_loss")
    assert column(rows, "step") == [6, 12, 18, 24]
    assert column(rows, "tokens") == [768, 1536, 2304, 3072]
    assert losses[-1] < losses[0] - 0.1
    assert min(losses) < np.log(300)
    assert (out / "best.pth").exists()


def test_two_processes_give_the_same_curve_and_weights(alone, text, tmp_path):
    out, rows = alone
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run = launch(text, tmp_path, *launcher)
    said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said[-2000:]
    shared = rows_of(tmp_path)
    assert column(shared, "tokens") == column(rows, "tokens")
    np.testing.assert_allclose(
        column(shared, "val_loss"), column(rows, "val_loss"), atol=2e-4
    )
    theirs, ours = weights(tmp_path), weights(out)
    worst = max((theirs[name] - ours[name]).abs().max().item() for name in ours)
    assert worst < 2e-3, worst


def test_another_order_gives_another_curve(alone, text, tmp_path):
    """So the test above can fail."""
    _, rows = alone
    other = train(text, tmp_path, "--seed", 7)
    difference = np.subtract(column(other, "val_loss"), column(rows, "val_loss"))
    assert np.abs(difference).max() > 2e-3


def test_accumulating_gives_the_same_curve(alone, text, tmp_path):
    _, rows = alone
    parts = train(text, tmp_path, "--accumulate", 2)
    np.testing.assert_allclose(
        column(parts, "val_loss"), column(rows, "val_loss"), atol=2e-4
    )


def test_a_killed_run_goes_on_where_it_was(alone, text, tmp_path):
    out, rows = alone
    run = launch(text, tmp_path)
    limit = time.monotonic() + 60
    while not (tmp_path / "log.csv").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    run.kill()
    run.communicate()
    assert 1 <= len(rows_of(tmp_path)) < len(rows)  # else it wasn't stopped midway
    again = train(text, tmp_path)
    for name in ("step", "tokens", "val_loss", "copy_loss"):
        assert column(again, name) == column(rows, name)
    assert all(torch.equal(weights(tmp_path)[k], v) for k, v in weights(out).items())


def test_adamw_and_exercises_run(text, tmp_path):
    rows = train(text, tmp_path, "--optimizer", "adamw", "--exercises", 0.25)
    assert all(np.isfinite(column(rows, "train_loss")))


def test_begins_with_the_weights_of_another_run(alone, text, tmp_path):
    out, rows = alone
    start = ["--begin", out / "best.pth", "--peak-lr", 0, "--eval-freq", 99]
    last = train(text, tmp_path, *start)[-1]
    assert float(last["val_loss"]) == pytest.approx(min(column(rows, "val_loss")), 1e-4)


def test_batch_that_cannot_be_shared_is_an_error():
    with pytest.raises(SystemExit, match="--batch 5"):
        train_module.main(["--out", "nowhere", "--batch", "5", "--accumulate", "2"])


def test_missing_corpus_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run corpus.py first"):
        train_module.prepare(tmp_path, 300)


def test_token_files_hold_the_text(alone, text):
    tokenizer = train_module.prepare(text, 300)
    ids = np.fromfile(text / "train.bin", np.uint16)
    story = (text / "train.txt").read_text(encoding="utf-8")
    assert tokenizer.decode(ids) == story
    assert tokenizer.n_vocab == 300
    end = tokenizer.special_tokens["<|endoftext|>"]
    assert (ids == end).sum() == 1


def test_windows_are_shared_out_whole(alone, text):
    windows = train_module.Windows(text / "train.bin", 32)
    shares = []
    for rank in range(2):
        torch.manual_seed(5)
        shares.append(list(train_module.Shuffled(windows, 4, 0.25, rank, 2)))
    torch.manual_seed(5)
    whole = list(train_module.Shuffled(windows, 4, 0.25))
    assert [key for both in zip(*shares, strict=True) for key in both] == whole
    assert len(whole) % 4 == 0
    starts = [number for is_exercise, number in whole if not is_exercise]
    assert len(set(starts)) == len(starts)
    assert max(starts) + 32 < len(windows.ids)
    assert len({start % 32 for start in starts}) == 1
    assert 0.2 < 1 - len(starts) / len(whole) < 0.3
    inputs, targets = windows[False, starts[0]]
    assert torch.equal(inputs[1:], targets[:-1])


def test_orthogonalize_brings_singular_values_near_one():
    for shape in ((3, 16, 16), (2, 16, 64), (2, 64, 16)):
        step = train_module.orthogonalize(torch.randn(shape))
        values = torch.linalg.svdvals(step)
        assert step.shape == shape
        assert values.max() < 1.3
        assert values.median() > 0.6


def test_muon_treats_matrices_of_the_blocks_alone():
    torch.manual_seed(1)
    cfg = dict(
        zip(("vocab_size", "context_length", "emb_dim"), (50, 8, 16), strict=True)
    )
    cfg |= {"n_heads": 2, "n_layers": 1, "drop_rate": 0.0, "qkv_bias": True}
    model = train_module.helpers.GPTModel(cfg | {"tie_weights": True})
    optimizer = train_module.Muon(model, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    ids = torch.randint(50, (2, 8))
    train_module.helpers.calc_loss_batch(ids, ids, model, "cpu").backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    change = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    values = torch.linalg.svdvals(change["trf_blocks.0.ff.layers.0.weight"])
    assert values.max() == pytest.approx(0.1 * 0.2 * 8, rel=0.3)  # AdamW's: over 0.8
    moved = change["tok_emb.weight"][ids.unique()].abs()
    assert moved.median() == pytest.approx(0.1, rel=0.1)  # AdamW's first step


def test_copy_loss_tells_copying_from_guessing():
    class Copier(torch.nn.Module):
        cfg = {"context_length": 16, "vocab_size": 50}

        def forward(self, ids):
            seen = ids.roll(7, dims=1)  # the token after the last such one
            return 20.0 * torch.nn.functional.one_hot(seen, 50)

    class Guesser(Copier):
        def forward(self, ids):
            return torch.zeros(*ids.shape, 50)

    assert train_module.copy_loss(Copier(), "cpu") < 0.01
    assert train_module.copy_loss(Guesser(), "cpu") == pytest.approx(np.log(50))


# ------------------------------------------------------------------ exercises


@pytest.fixture(scope="module")
def dialogues():
    made = exercises.Dialogues(*exercises.collect_words(
        (ROOT / "data" / "the-ferryman.txt").read_text(encoding="utf-8"), rare=1
    ))  # fmt: skip
    return made


def test_dialogues_leave_chapter_7_its_content(dialogues):
    rng = random.Random(3)
    for _ in range(300):
        assert not exercises.is_reserved(dialogues.name(rng))
        assert not exercises.is_reserved(dialogues.number(rng))
        assert not any(exercises.is_reserved(w) for w in dialogues.sentence(rng, 2, 6))
    shares = [exercises.is_reserved(str(i)) for i in range(2000)]
    assert 0.1 < sum(shares) / 2000 < 0.15


def test_answers_are_right(dialogues):
    rng = random.Random(4)
    for _ in range(200):
        ((asked, answer),) = dialogues.larger(rng)
        numbers = [int("".join(filter(str.isdigit, word))) for word in asked.split()
                   if any(map(str.isdigit, word))]  # fmt: skip
        assert answer == f"{max(numbers)}."
        ((asked, answer),) = dialogues.repeat(rng)
        assert asked.endswith(answer)
        ((asked, answer),) = dialogues.reverse(rng)
        assert asked.endswith(" ".join(answer.split()[::-1]))
        ((asked, answer),) = dialogues.find(rng)
        assert answer.rstrip(".").split()[-1] in asked
        turns = dialogues.correct(rng)
        thing, value = turns[-1][1].removeprefix("Your ")[:-1].split(" is ")
        told = [line for line, _ in turns[:-1] if f"my {thing}" in line.lower()]
        assert value in told[-1]


def test_exercise_windows(dialogues, text):
    tokenizer = train_module.prepare(text, 300)
    made = exercises.Exercises(dialogues, tokenizer, 128)
    for i in range(40):
        inputs, targets = made[i]
        assert inputs.shape == targets.shape == (128,)
        known = targets[:-1] != -100
        assert torch.equal(inputs[1:][known], targets[:-1][known])
    assert torch.equal(made[7][0], made[7][0])
    assert not torch.equal(made[7][0], made[8][0])
    row = made.rows(random.Random(1))
    assert row[0][1] is False and all(part == (row[0][0], True) for part in row[1:])
