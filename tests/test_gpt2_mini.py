"""The scripts that make gpt2-mini, on tiny models: data/gpt2-mini/.

pytest tests/test_gpt2_mini.py
"""

import csv
import importlib
import json
import os
import random
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT

FOLDER = ROOT / "data" / "gpt2-mini"
TINY = (
    "--vocab 300 --context 32 --layers 2 --heads 2 --width 16 --step-tokens 256 "
    "--tokens 6144 --warmup 2 --eval-every 6 --peak-lr 0.02"
).split()

sys.path.insert(0, str(FOLDER))
exercises = importlib.import_module("exercises")
train = importlib.import_module("train")
ship = importlib.import_module("ship")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A corpus of the course's own story, in one source."""
    folder = tmp_path_factory.mktemp("text")
    story = (ROOT / "data" / "the-ferryman.txt").read_text(encoding="utf-8")
    first, second = story[:8000], story[8000:16000]
    stories = f"{first}<|endoftext|>{second}"
    (folder / "train-tinystories.txt").write_text(stories, "utf-8")
    (folder / "validation-tinystories.txt").write_text(story[16000:], "utf-8")
    (folder / "corpus.json").write_text("{}")
    return folder


def launch(text, out, *before):
    """Start the script in a process of its own, with one thread."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, *before, FOLDER / "train.py", *TINY]
    command += ["--text", text, "--out", out]
    return subprocess.Popen(
        list(map(str, command)),
        env=kept | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def run(text, out, *options):
    """Train in this process; return the rows of the log."""
    train.main(list(map(str, [*TINY, "--text", text, "--out", out, *options])))
    return read_log(out)


def read_log(out):
    with (out / "log.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def weights(out):
    return torch.load(out / "last.pth", weights_only=True)["model"]


def column(rows, name):
    return [float(row[name]) for row in rows]


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    """A run in one process: its folder and its log."""
    out = tmp_path_factory.mktemp("alone")
    return out, run(text, out)


def test_learns_and_logs(alone):
    _, rows = alone
    assert column(rows, "step") == [6, 12, 18, 24]
    assert column(rows, "tokens")[-1] == 6144
    bits = column(rows, "tinystories_bits")
    assert bits[-1] < bits[0] - 0.1


def test_two_processes_give_the_same_curve(alone, text, tmp_path):
    _, rows = alone
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = launch(text, tmp_path, *launcher)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said[-2000:]
    for name in ("train_nats", "tinystories_bits"):
        np.testing.assert_allclose(
            column(read_log(tmp_path), name), column(rows, name), atol=0.015
        )


def test_another_seed_gives_another_curve(alone, text, tmp_path):
    """So the test above can fail."""
    other = run(text, tmp_path, "--seed", 7)
    curves = [column(rows, "train_nats") for rows in (other, alone[1])]
    assert np.abs(np.subtract(*curves)).max() > 0.02


def test_a_killed_run_ends_with_the_same_weights(alone, text, tmp_path):
    out, rows = alone
    process = launch(text, tmp_path)
    limit = time.monotonic() + 120
    while not (tmp_path / "log.csv").exists() and time.monotonic() < limit:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert 1 <= len(read_log(tmp_path)) < len(rows)  # else it wasn't stopped midway
    again = run(text, tmp_path)
    for name in ("step", "train_nats", "tinystories_bits", "copy_nats"):
        assert column(again, name) == column(rows, name)
    assert all(torch.equal(weights(tmp_path)[k], v) for k, v in weights(out).items())


@pytest.mark.parametrize("option", [("--peak-lr", 0.01), ("--tokens", 8192)])
def test_other_options_refuse_to_resume(alone, text, option):
    with pytest.raises(SystemExit, match=option[0].strip("-").replace("-", "_")):
        run(text, alone[0], *option)


def test_a_full_disk_leaves_the_last_checkpoint(alone, text, monkeypatch, tmp_path):
    state = torch.load(alone[0] / "last.pth", weights_only=True)
    torch.save(state | {"step": 18}, tmp_path / "last.pth")
    before = (tmp_path / "last.pth").read_bytes()

    def save(state, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(train.torch, "save", save)
    with pytest.raises(OSError, match="no space"):
        run(text, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pth"]
    assert (tmp_path / "last.pth").read_bytes() == before


def test_shipped_folder_is_read_back(alone, text, tmp_path):
    state = torch.load(alone[0] / "last.pth", weights_only=True)
    model = ship.helpers.GPTModel(state["config"])
    model.load_state_dict(state["model"])
    ranks = ship.helpers.read_tokenizer(text)._mergeable_ranks
    tokenizer = ship.helpers.BPETokenizer(ranks, ["<|endoftext|>"])
    ship.write_gpt2_checkpoint(tmp_path / "model", model, tokenizer)
    loaded, _ = ship.helpers.load_gpt2(tmp_path / "model")
    ids = torch.arange(30)[None]
    torch.testing.assert_close(loaded(ids), model(ids), atol=0.02, rtol=0.02)


# The exercises


@pytest.fixture(scope="module")
def words():
    return json.loads((ROOT / "data" / "dialogues.json").read_text("utf-8"))["contents"]


def test_exercise_windows(words, alone, text):
    tokenizer = ship.helpers.read_tokenizer(text)
    words, shares = words | {"word": ["so"]}, {"find": 1, "larger": 1}
    made = exercises.Exercises(words, tokenizer)
    window = partial(made.window, T=128, rows=0.5, weights=shares)
    for i in range(40):
        inputs, targets = window(i)
        assert inputs.shape == targets.shape == (128,)
        known = targets[:-1] != -100
        assert torch.equal(inputs[1:][known], targets[:-1][known])
    assert torch.equal(window(7)[0], window(7)[0])
    row = made.row(random.Random(1), 128)
    assert row[0][1] is False and all(part == (row[0][0], True) for part in row[1:])
