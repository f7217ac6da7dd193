"""Ship a trained checkpoint as gpt2-mini, and print the figures of its model card.

    python data/gpt2-mini/ship.py data/runs/gpt2-mini/part1 data/runs/gpt2-mini/part2

The folders are those of `train.py`'s runs in order; `best.pth` of the last is taken.
The model, in OpenAI's format with 16-bit floats, and the runs' logs, joined in
`log.csv`, are written beside this file (or to `--to`). The figures are those of the
model as it was written, read back from the disk.
"""

import argparse
import csv
import math
import random
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

from exercises import Dialogues, collect_words
from train import END, Windows, copy_loss

import helpers

HERE = Path(__file__).resolve().parent
PROMPTS = ("Once upon a time", "The old woman said", "<|endoftext|>")
TEMPERATURES = (0.0, 0.5, 0.8, 1.0)


def join_logs(runs):
    """Return the rows of the runs' logs as one: steps, tokens and seconds go on."""
    rows, before = [], dict.fromkeys(("step", "tokens", "seconds"), 0.0)
    for number, run in enumerate(runs, 1):
        with (run / "log.csv").open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                row |= {k: f"{float(row[k]) + v:.0f}" for k, v in before.items()}
                rows.append({"part": str(number), **row})
        before = {key: float(rows[-1][key]) for key in before}
    return rows


def plot_log(rows, path):
    """Draw the losses over the tokens read."""
    tokens = [float(row["tokens"]) / 1e6 for row in rows]
    fig, ax = plt.subplots()
    for name, label in (
        ("train_loss", "training (books and exercises)"),
        ("val_loss", "validation (tales never read)"),
        ("copy_loss", "second half of random rows"),
    ):
        ax.plot(tokens, [float(row[name]) for row in rows], label=label)
    for row, after in zip(rows, rows[1:], strict=False):
        if row["part"] != after["part"]:
            ax.axvline(float(row["tokens"]) / 1e6, color="#999999", linestyle=":")
    ax.set(
        xlabel="tokens read (millions)", ylabel="loss (nats per token)", ylim=(0, 11)
    )
    ax.legend()
    fig.tight_layout()
    fig.savefig(path)


def baselines(train_ids, ids, vocab_size):
    """Return the losses of a text under counts of tokens and of pairs, in nats."""
    counts = np.bincount(train_ids, minlength=vocab_size) + 1
    unigram = counts / counts.sum()
    pairs = Counter(zip(train_ids[:-1].tolist(), train_ids[1:].tolist(), strict=True))
    bigram = [
        (pairs[a, b] + 20 * unigram[b]) / (counts[a] + 20)
        for a, b in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True)
    ]
    return -np.log(unigram[ids[1:]]).mean(), -np.log(bigram).mean()


@torch.no_grad()
def total_loss(model, windows):
    """Return the summed loss of all full windows, in nats, and their tokens."""
    nats, count = 0.0, 0
    for start in range(0, len(windows.ids) - windows.T, windows.T):
        inputs, targets = windows[False, start]
        logits = model(inputs[None])[0]  # (T, V)
        nats += torch.nn.functional.cross_entropy(
            logits, targets, reduction="sum"
        ).item()
        count += len(targets)
    return nats, count


def exact_matches(model, tokenizer, make, count=50):
    """Return the share of new dialogues whose last answer comes word for word.

    Args:
        make: a method of `Dialogues`.
    """
    newline = tokenizer.encode("\n")[0]
    right, rng = 0, random.Random("new")
    for _ in range(count):
        *turns, (asked, answer) = make(rng)
        lines = [f"User: {said}\nAssistant: {reply}\n" for said, reply in turns]
        prompt = "".join(lines) + f"User: {asked}\nAssistant:"
        ids = helpers.text_to_token_ids(prompt, tokenizer)
        context = model.cfg["context_length"]
        new = helpers.generate(model, ids, 60, context, eos_id=newline)[
            :, ids.shape[1] :
        ]
        right += helpers.token_ids_to_text(new, tokenizer).strip() == answer
    return right / count


def print_figures(folder, text, rows):
    """Print what the model card states about the model in a folder."""
    model, tokenizer = helpers.load_gpt2(folder)
    context = model.cfg["context_length"]
    windows = Windows(text / "validation.bin", context)
    story = tokenizer.decode(windows.ids.tolist()).replace(END, "")
    nats, count = total_loss(model, windows)
    per_token = len(story) / len(windows.ids)  # characters
    train_ids = np.fromfile(text / "train.bin", np.uint16)
    losses = dict(zip(("unigram", "bigram"), baselines(train_ids, windows.ids,
                  model.cfg["vocab_size"]), strict=True))  # fmt: skip
    losses["gpt2-mini"] = nats / count
    print(model.cfg)
    print(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    print(f"tokens: training {len(train_ids):,}, validation {len(windows.ids):,}")
    print(f"characters a token {per_token:.3f}")
    for name, loss in losses.items():
        bits = loss / math.log(2) / per_token
        print(f"{name}: {loss:.3f} nats per token, {bits:.3f} bits per character")
    print(f"copying: {copy_loss(model, 'cpu'):.3f} nats per token")
    books = (text / "train.txt").read_text(encoding="utf-8")
    dialogues = Dialogues(*collect_words(books))
    for make in dialogues.kinds:
        share = exact_matches(model, tokenizer, make)
        print(f"exact match, {make.__name__}: {share:.0%}")
    print("log, last row:", rows[-1])
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    print(f"folder {size:,} bytes")
    end = tokenizer.encode(END, allowed_special="all")[0]
    for prompt in PROMPTS:
        for temperature in TEMPERATURES:
            helpers.set_seed(123)
            ids = helpers.text_to_token_ids(prompt, tokenizer)
            ids = helpers.generate(model, ids, 80, context, temperature, eos_id=end)
            print(f"\n[{prompt!r}, temperature {temperature}]")
            print(helpers.token_ids_to_text(ids, tokenizer))


def main():
    """Write the folder and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--text", type=Path, default=helpers.RUNS / "gpt2-mini")
    parser.add_argument("--to", type=Path, default=HERE)
    args = parser.parse_args()
    best = args.runs[-1] / "best.pth"
    model = helpers.GPTModel(torch.load(best, weights_only=True)["config"])
    helpers.load_checkpoint(best, model)
    tokenizer = helpers.read_bpe_files(args.text)
    helpers.write_gpt2_checkpoint(args.to, model, tokenizer, dtype="float16")
    rows = join_logs(args.runs)
    with (args.to / "log.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    plot_log(rows, args.to / "log.png")
    print_figures(args.to, args.text, rows)


if __name__ == "__main__":
    main()
