"""Make gpt2-mini: corpus, tokenizer, training, OpenAI's files, the card's figures.

    python data/gpt2-mini/ship.py [--run data/runs/gpt2-mini] [--to data/gpt2-mini]
    python data/gpt2-mini/ship.py --figures FOLDER ...       # of any models

What is done already isn't done again, and a training that was stopped goes on
(train.py, whose options are taken here too). The figures are those of the files as
written, with 16-bit floats, read back from the disk. `data/little-stories.txt`, which
notebook 04 trains on where TinyStories can't be had, is written by the model as well.
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import train
from corpus import END

import helpers

tf = helpers.import_tensorflow()

HERE = Path(__file__).resolve().parent
TEMPERATURES = (0.0, 0.5, 0.8)
PROMPTS = [
    *("Once upon a time", "One day, a little girl named Sue", "Tom had a red ball."),
    *(
        "The old woman said",
        "There was once a king who",
        '"Where are you going?" asked',
    ),
    *("The dog ran to", "It was a cold day, and", "Mom said to Ben,"),
    *("In the forest there lived", "Lily was sad because", "The three brothers"),
]


# OpenAI's format


def openai_tensors(model, dtype):
    """The tensors of a model under OpenAI's names, as `gpt2_places` has them."""
    tensors = {}
    for name, parameters in helpers.gpt2_places(model).items():
        joined = torch.cat([p.detach().float().cpu() for p in parameters])
        joined = joined.t()[None] if name.endswith("/w") else joined
        with np.errstate(over="ignore"):
            tensors[name] = joined.numpy().astype(dtype)
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} has numbers that {dtype} can't hold: use float32")
    return tensors


def write_gpt2_checkpoint(folder, model, tokenizer, dtype="float16"):
    """Write a tied model and its tokenizer: beside the folder first, the index last."""
    folder, tensors = Path(folder).resolve(), openai_tensors(model, dtype)
    hparams = {theirs: model.cfg[ours] for ours, theirs in helpers.HPARAMS.items()}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        train.write_bpe_files(temporary, tokenizer)
        (temporary / "hparams.json").write_text(json.dumps(hparams, indent=2) + "\n")
        (temporary / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
        tf.raw_ops.SaveV2(
            prefix=os.fsencode(temporary / "model.ckpt"),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(map(tf.constant, tensors.values())),
        )
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(
            temporary.iterdir(), key=lambda path: path.suffix == ".index"
        ):
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# Figures


@torch.no_grad()
def bits_per_character(model, tokenizer, text):
    """Bits per character of a text, read in windows of the context."""
    T = model.cfg["context_length"]
    ids = torch.tensor(tokenizer.encode(text, allowed_special="all"))
    nats = 0.0
    for inputs, targets in zip(ids[:-1].split(T), ids[1:].split(T), strict=True):
        nats += F.cross_entropy(model(inputs[None])[0], targets, reduction="sum").item()
    return nats / math.log(2) / len(text)


def counted_bits(train_ids, ids, vocab_size, characters):
    """Bits per character by counts of tokens, and of pairs smoothed by them."""
    counts = np.bincount(train_ids, minlength=vocab_size) + 1
    unigram = counts / counts.sum()
    pairs = Counter(zip(train_ids[:-1].tolist(), train_ids[1:].tolist(), strict=True))
    bigram = [
        (pairs[a, b] + 20 * unigram[b]) / (counts[a] + 20)
        for a, b in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True)
    ]
    return [-np.log2(p).sum() / characters for p in (unigram[ids[1:]], bigram)]


@torch.no_grad()
def copy_loss(model, count=8):
    """The loss, in nats a token, on random tokens that come the second time."""
    half = model.cfg["context_length"] // 2
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(model.cfg["vocab_size"] - 1, (count, half), generator=draws)
    logits = model(torch.cat((ids, ids), dim=1))[:, half:-1]  # (count, T/2 - 1, V)
    return F.cross_entropy(logits.mT, ids[:, 1:]).item()


@torch.no_grad()
def exact_match(model, tokenizer, words, kind, count=200):
    """The share of new dialogues, of test contents, whose last answer is exact.

    Greedy generation would give the answer just if each of its tokens is the most
    probable one after those before it, which a single pass shows.
    """
    right = 0
    for number in range(count):
        turns = helpers.make_dialogue(number, words, kind, part="test")
        lines = [f"User: {message}\nAssistant: {answer}\n" for message, answer in turns]
        before = "".join(lines)[: -len(f" {turns[-1][1]}\n")]
        prompt = tokenizer.encode_ordinary(before)
        answer = tokenizer.encode_ordinary(f" {turns[-1][1]}\n")
        ids = torch.tensor([prompt + answer])[:, -model.cfg["context_length"] :]
        best = model(ids)[0, -len(answer) - 1 : -1].argmax(dim=-1)
        right += best.tolist() == answer
    return right / count


def continue_text(model, tokenizer, prompt, temperature=0.0, tokens=80):
    helpers.set_seed(123)
    ids = torch.tensor([tokenizer.encode_ordinary(prompt)])
    context = model.cfg["context_length"]
    ids = helpers.generate(
        model, ids, tokens, context, temperature, eos_id=tokenizer.eot_token
    )
    return tokenizer.decode(ids[0].tolist())


def repeated_share(text, n=4):
    """The share of runs of four words that came before in the text."""
    words = text.split()
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(runs)) / max(1, len(runs))


def figures(folder, text, words):
    """A dictionary of what the card states about the model in a folder."""
    model, tokenizer = helpers.load_gpt2(folder)
    result = {"parameters": sum(p.numel() for p in model.parameters())}
    for path in sorted(text.glob("validation-*.txt")):
        if held_out := path.read_text(encoding="utf-8"):
            name = f"bits per character, {path.stem.removeprefix('validation-')}"
            result[name] = bits_per_character(model, tokenizer, held_out)
    result["copying, nats a token"] = copy_loss(model)
    for kind in helpers.TASKS:
        result[f"exact match, {kind}"] = exact_match(model, tokenizer, words, kind)
    shares = [
        repeated_share(continue_text(model, tokenizer, prompt)) for prompt in PROMPTS
    ]
    result["repeated 4-grams, greedy"] = sum(shares) / len(shares)
    result["prompts with over 20%"] = sum(share > 0.2 for share in shares)
    return result


def print_samples(folder):
    """Continuations of the prompts, neither chosen nor edited."""
    model, tokenizer = helpers.load_gpt2(folder)
    for temperature in TEMPERATURES:
        print(f"\nTemperature {temperature}:\n")
        for prompt in PROMPTS:
            text = continue_text(model, tokenizer, prompt, temperature)
            print("> " + text.replace("\n", "\n> ") + "\n")


def write_stories(path, model, tokenizer, text, characters=1_000_000):
    """Write stories that the model makes up from the first three tokens of others.

    A story that doesn't end within 300 tokens is left out; nothing else is.
    """
    helpers.set_seed(123)
    end, context = tokenizer.eot_token, model.cfg["context_length"]
    others = (text / "train-tinystories.txt").read_text(encoding="utf-8").split(END)
    openings = [tokenizer.encode_ordinary(other.strip())[:3] for other in others]
    openings = torch.tensor([[end, *ids] for ids in openings if len(ids) == 3])
    stories = []
    while sum(map(len, stories)) < characters:
        idx = openings[torch.randperm(len(openings))[:128]]  # (128, 4)
        out = helpers.generate(
            model, idx, 300, context, temperature=0.8, top_p=0.95, eos_id=end
        )
        for ids in out[:, 1:].tolist():
            if end in ids:
                stories.append(tokenizer.decode(ids[: ids.index(end)]).strip())
    path.write_text(f"\n{END}\n".join(stories) + "\n", encoding="utf-8")


def plot_log(log, path):
    """Draw the figures of a run's log over the tokens read."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    tokens = log["tokens"] / 1e6
    axes[0].plot(tokens, log["tinystories_bits"], label="small stories")
    if "tales_bits" in log:
        axes[0].plot(tokens, log["tales_bits"], label="old tales")
    axes[0].set(ylabel="bits per character, held-out text", ylim=(0.5, 2.5))
    axes[1].plot(
        tokens, log["copy_nats"], color="tab:green", label="copying random tokens"
    )
    axes[1].set(ylabel="nats per token", ylim=(0, None))
    for ax in axes:
        ax.set(xlabel="tokens read (millions)")
        ax.legend()
    fig.tight_layout()
    fig.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=helpers.RUNS / "gpt2-mini")
    parser.add_argument(
        "--text", type=Path, help="folder of the corpus; by default, --run"
    )
    parser.add_argument("--to", type=Path, default=HERE)
    parser.add_argument(
        "--figures", type=Path, nargs="+", help="print only figures of models"
    )
    args, options = parser.parse_known_args()
    text = args.text or args.run
    if not args.figures:
        train.main(["--out", str(args.run), "--text", str(text), *options])
        state = torch.load(args.run / "last.pth", map_location="cpu", weights_only=True)
        model = helpers.GPTModel(state["config"])
        model.load_state_dict(state["model"])
        ranks = helpers.read_tokenizer(text)._mergeable_ranks
        tokenizer = helpers.BPETokenizer(ranks, ["<|endoftext|>"])
        write_gpt2_checkpoint(args.to, model, tokenizer)
        shutil.copyfile(args.run / "log.csv", args.to / "log.csv")
        plot_log(pd.read_csv(args.to / "log.csv"), args.to / "log.png")
        if args.to == HERE:
            stories = HERE.parent / "little-stories.txt"
            write_stories(stories, *helpers.load_gpt2(HERE), text)
    words = json.loads((HERE.parent / "dialogues.json").read_text(encoding="utf-8"))[
        "contents"
    ]
    table = {
        folder.name: figures(folder, text, words)
        for folder in args.figures or [args.to]
    }
    print(pd.DataFrame(table).to_string(float_format="{:.3f}".format))
    for held_out in sorted(text.glob("validation-*.bin")):
        name = held_out.stem.removeprefix("validation-")
        ids = np.fromfile(held_out, np.uint16)
        train_ids = np.fromfile(text / f"train-{name}.bin", np.uint16)
        size = held_out.with_suffix(".txt").stat().st_size
        unigram, bigram = counted_bits(train_ids, ids, int(train_ids.max()) + 1, size)
        print(f"{name}, bits per character: unigram {unigram:.3f}, bigram {bigram:.3f}")
    for folder in args.figures or [args.to]:
        print_samples(folder)


if __name__ == "__main__":
    main()
