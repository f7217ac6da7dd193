"""Measure the course's code beside limits measured in the same run.

Run it with: python tests/benchmark.py [--only ROW ...] [--markdown]

    train      training tokens/s of the 124M model: float32 against the machine's
               matrix-multiply rate, and what pick_precision chooses against float32
    generate   greedy tokens/s of the 124M model in float32, bfloat16 and int8: against
               reading all weights once at the memory bandwidth, int8 against float32
    bpe        BPETokenizer: seconds of training, encoding against tiktoken
    load       memory to load a checkpoint of 124M's size, against the model's own
    spam       an epoch of tuning 124M's last block on messages: against padding all to
               the longest and running every block each time
    instruct   an epoch of tuning gpt2-mini, and 124M, on instructions: against batches
               in random order and logits at every position
    rewards    sampling and training of gpt2-mini on 16 answers to each prompt: against
               chapter 4's generate and passes in which no prompt is shared

Each row runs in a process of its own, so that its peak memory is its own, and so does
each model that ours is compared with. A figure and its limit are measured in turn; both
are medians of the rounds, and the limit of a round is its best of several. Compare the
ratios, and leave the machine alone meanwhile: two threads that wait for each other are
slowed down many times by other work.

Where the package `transformers` happens to be installed, a further column has its
GPT-2: the same configuration, shapes and threads, fused AdamW, its own cache.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import psutil
import tiktoken
import torch
import torch.nn.functional as F
from notebook_cells import definitions_of
from random_checkpoint import SMALL, write_random

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from helpers import (  # noqa: E402
    GPT2_CONFIGS,
    GPT2_PATTERN,
    GPT_CONFIG_124M,
    BPETokenizer,
    GPTModel,
    InstructionDataset,
    LengthBatches,
    SpamDataset,
    answer_loader,
    answer_loss,
    calc_loss_batch,
    custom_collate_fn,
    generate_text_simple,
    get_tokenizer,
    load_gpt2,
    load_text,
    next_token_loss,
    pick_precision,
    train_classifier,
    train_model,
)
from helpers import generate as sample  # noqa: E402

MIRROR = Path(os.environ.get("COURSE_MIRROR", ROOT.parent / "shared" / "mirror"))
if MIRROR.is_dir():
    os.environ["COURSE_MIRROR"] = str(MIRROR)
CPU = torch.device("cpu")
quantize = definitions_of("05_weight_loading")["quantize"]


class Line(NamedTuple):
    """One line: a figure, its limit, how they compare, the aim, another library."""

    what: str
    measured: str
    limit: str
    ratio: str
    target: str
    reached: str
    transformers: str = ""


def line(what, measured, limit, unit, target=None, percent=False, theirs=None):
    """Return a line whose ratio is `measured / limit`, the higher the better."""
    ratio = measured / limit
    show = "{:.1%}".format if percent else "{:.2f}x".format
    aim = "" if target is None else f"at least {show(target)}"
    reached = "" if target is None else "yes" if ratio >= target else "NO"
    numbers = [f"{value:,.4g} {unit}" for value in (measured, limit)]
    other = "" if theirs is None else f"{theirs:,.4g} {unit}"
    return Line(what, *numbers, show(ratio), aim, reached, other)


def seconds(function, *args):
    """Return how long one call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def model_124m(build=GPTModel):
    """Return a 124M model, untied as in the book, with the weights of seed 123."""
    torch.manual_seed(123)
    return build(GPT_CONFIG_124M)


# Limits of the machine


def multiply_rate(size=3072, repeats=4):
    """Return the best rate of a large square matrix product, in operations/s."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(seconds(torch.matmul, a, b) for _ in range(repeats))


def memory_bandwidth(numbers=100_000_000, repeats=8):
    """Return the best rate at which a 400 MB tensor is summed, in bytes/s."""
    x = torch.ones(numbers)
    return 4 * numbers / min(seconds(torch.sum, x) for _ in range(repeats))


def weights_read(model):
    """Return how many weights every token is multiplied with: not the embeddings."""
    embeddings = (model.tok_emb, model.pos_emb)
    return sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for embedding in embeddings for p in embedding.parameters()
    )


# Rows


class TransformersGPT2(torch.nn.Module):
    """The GPT-2 of the package `transformers`, called as ours is."""

    def __init__(self, cfg):
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        config = GPT2Config(tie_word_embeddings=False)  # the defaults are 124M's
        assert (config.vocab_size, config.n_embd) == (cfg["vocab_size"], cfg["emb_dim"])
        assert (config.n_layer, config.n_head) == (cfg["n_layers"], cfg["n_heads"])
        self.model = GPT2LMHeadModel(config)

    def forward(self, idx):
        """Map `(B, T)` ids to logits `(B, T, V)`."""
        return self.model(idx, use_cache=False).logits


@lru_cache
def training_step(build, precision, B, T):
    """Return a function that makes a step of a 124M model; kept in its process."""
    model = model_124m(build).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    idx = torch.randint(0, GPT_CONFIG_124M["vocab_size"], (B, T + 1))

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = calc_loss_batch(idx[:, :-1], idx[:, 1:], model, CPU)
        loss.backward()
        optimizer.step()

    step()  # a warm-up: the optimizer takes its memory
    return step


def step_seconds(*what):
    """Return how long one step takes in this process."""
    return seconds(training_step(*what))


def train(B=2, T=256, rounds=4):
    """Training tokens/s of the 124M model at context 256."""
    precision = pick_precision(CPU)
    others = {"mixed": (GPTModel, precision, B, T)}
    if find_spec("transformers"):
        others["transformers"] = (TransformersGPT2, torch.float32, B, T)
    spawn = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, mp_context=spawn) for name in others}
    times, rates = {name: [] for name in ("ours", *others)}, []
    for _ in range(rounds + 1):
        times["ours"].append(step_seconds(GPTModel, torch.float32, B, T))
        rates.append(multiply_rate())
        for name, what in others.items():
            times[name].append(pools[name].submit(step_seconds, *what).result())
    for pool in pools.values():
        pool.shutdown()
    speeds = {k: B * T / statistics.median(each[1:]) for k, each in times.items()}
    attention = 12 * GPT_CONFIG_124M["n_layers"] * GPT_CONFIG_124M["emb_dim"] * T
    operations = 6 * weights_read(model_124m()) + attention  # for one token
    title, ours = f"training 124M, {B} x {T} tokens", speeds["ours"]
    limit, theirs = statistics.median(rates) / operations, speeds.get("transformers")
    name = str(precision).removeprefix("torch.")
    return [
        line(
            f"{title}, float32: matrix-multiply rate",
            *(ours, limit, "tokens/s", 0.7, True, theirs),
        ),
        line(
            f"{title}, pick_precision ({name}): float32",
            *(speeds["mixed"], ours, "tokens/s"),
            None if precision == torch.float32 else 2.0,
        ),
    ]


@lru_cache
def writer(fmt, theirs=False):
    """Return a random 124M model in a number format; kept in its process."""
    torch.manual_seed(123)
    if theirs:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config()).eval()  # the defaults are 124M's
        return model.to(getattr(torch, fmt))
    model = GPTModel(GPT2_CONFIGS["124M"]).eval()
    return model if fmt == "float32" else quantize(model, fmt, only_if_faster=False)


@torch.no_grad()
def writing_seconds(fmt, new, theirs=False):
    """Return how long our model, or that of `transformers`, takes for `new` tokens."""
    model, idx = writer(fmt, theirs), torch.tensor([[15496, 11, 314, 716]])
    if not theirs:
        return seconds(generate_text_simple, model, idx, new, 1024)
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    options |= {"attention_mask": torch.ones_like(idx), "pad_token_id": 0}
    return seconds(partial(model.generate, idx, **options))


def bytes_read(fmt):
    """Return the bytes that every token reads: all matrices, and scales."""
    model = writer(fmt)
    tensors = [*model.parameters(), *model.buffers()]
    total = sum(t.numel() * t.element_size() for t in tensors)
    return total - model.pos_emb.weight.numel() * 4


def generate(new=60, rounds=4):
    """Greedy tokens/s of the 124M model, one sequence, in three formats."""
    spawn = multiprocessing.get_context("spawn")
    models = [(fmt, False) for fmt in ("float32", "bfloat16", "int8")]
    if find_spec("transformers"):
        models += [("float32", True), ("bfloat16", True)]
    pools = {what: ProcessPoolExecutor(1, mp_context=spawn) for what in models}
    times, rates = {what: [] for what in models}, []
    for _ in range(rounds + 1):
        for (fmt, theirs), pool in pools.items():
            run = pool.submit(writing_seconds, fmt, new, theirs)
            times[fmt, theirs].append(run.result())
        rates.append(memory_bandwidth())
    speed = {what: new / statistics.median(each[1:]) for what, each in times.items()}
    limits = {}
    for fmt, theirs in models:
        if not theirs:
            n_bytes = pools[fmt, False].submit(bytes_read, fmt).result()
            limits[fmt] = statistics.median(rates) / n_bytes
    for pool in pools.values():
        pool.shutdown()
    lines = [
        line(
            f"writing {new} tokens, 124M, {fmt}: memory bandwidth",
            *(speed[fmt, False], limit, "tokens/s", None, True),
            speed.get((fmt, True)),
        )
        for fmt, limit in limits.items()
    ]
    for what, limit, target in (
        ("float32", speed["float32", False], 4),
        ("reading float32 weights", limits["float32"], 1),
    ):
        fast = speed["int8", False]
        lines.append(line(f"writing in int8: {what}", fast, limit, "tokens/s", target))
    return lines


def made_up_text(size):
    """Return `size` characters: made-up words, as frequent as Zipf's law has it."""
    rng = random.Random(1)
    parts = [a + b for a in "bcdfghklmnprstvw" for b in "aeiou"] + list("nrst")
    words = ["".join(rng.choices(parts, k=rng.randint(1, 5))) for _ in range(60_000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    words = rng.choices(words, weights, k=size // 4)
    marks = rng.choices([" ", " ", " ", " ", " ", ", ", ".\n", " 17 "], k=len(words))
    text = "".join(word + mark for word, mark in zip(words, marks, strict=True))
    return text[:size]


def text_and_name(size):
    """Return `size` bytes of the mirror's books, or of made-up text, and its name."""
    books = sorted(MIRROR.glob("gutenberg/*.txt"))
    data = b"".join(book.read_bytes() for book in books)
    if len(data) < size:
        return made_up_text(size), "made-up words"
    return data[:size].decode("utf-8", errors="ignore"), "books"


def bpe():
    """Seconds to train a tokenizer, and MB/s to encode with it."""
    text, name = text_and_name(12_000_000)
    lines = []
    for source, size, entries, limit in (
        (text[:130_000], "130 kB", 500, 1.5),
        (text, "12 MB", 8192, 90),
    ):
        start = time.perf_counter()
        tokenizer = BPETokenizer.train(source, entries)
        took = time.perf_counter() - start
        what = f"BPE, {entries:,} entries from {size} of {name}"
        numbers = (f"{took:.3g} s", f"{limit} s", f"{took / limit:.0%}")
        reached = "yes" if took <= limit else "NO"
        lines.append(Line(what, *numbers, "at most 100%", reached))
    theirs, sample = (
        tiktoken.Encoding(
            "course",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=tokenizer.ranks,
            special_tokens={},
        ),
        text[-4_000_000:],
    )
    assert tokenizer.encode(sample) == theirs.encode(sample), "tiktoken disagrees"
    megabytes = len(sample.encode("utf-8")) / 1e6
    tokenizer.encode_piece.cache_clear()
    speed, speed_again, their_speed = (
        megabytes / seconds(t.encode, sample) for t in (tokenizer, tokenizer, theirs)
    )
    what = f"encoding {megabytes:.0f} MB of {name}: tiktoken"
    return [
        *lines,
        line(what, speed, their_speed, "MB/s", percent=True),
        line(
            f"{what} (words met before)", speed_again, their_speed, "MB/s", None, True
        ),
    ]


def in_own_process(function, *args):
    """Return what a function gives in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


def load_measured(small, folder):
    """Return seconds, bytes of memory and bytes of the model, for one loading."""
    load_gpt2(small)  # TensorFlow's own memory isn't what is measured
    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    model, _ = load_gpt2(folder)
    took, peak = time.perf_counter() - start, peak_memory()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return took, None if peak is None else peak * 1e9 - before, size


def load():
    """Peak memory of loading a checkpoint of 124M's size."""
    with tempfile.TemporaryDirectory() as place:
        small, folder = (str(Path(place) / name) for name in ("small", "124M"))
        in_own_process(partial(write_random, small, **SMALL))
        in_own_process(partial(write_random, folder))
        took, used, size = in_own_process(load_measured, small, folder)
    what = f"loading 124M ({took:.1f} s): peak memory"
    if used is None:  # Windows doesn't tell
        return [Line(what, "unknown", f"{size / 1e6:.0f} MB", "", "at most 1.4x", "")]
    numbers = (f"{used / 1e6:.0f} MB", f"{size / 1e6:.0f} MB", f"{used / size:.2f}x")
    return [Line(what, *numbers, "at most 1.4x", "yes" if used < 1.4 * size else "NO")]


def last_block_classifier():
    """Return a 124M model with a head of two classes whose last block learns."""
    torch.manual_seed(123)
    model = GPTModel(GPT2_CONFIGS["124M"]).requires_grad_(False)
    model.out_head = torch.nn.Linear(model.cfg["emb_dim"], 2)
    for part in (model.trf_blocks[-1], model.final_norm):
        part.requires_grad_(True)
    return model


def spam(n=64, epochs=5, rounds=2):
    """Messages/s of tuning 124M's last block, the frozen blocks' run shared out."""
    notebook = definitions_of("06_spam_finetuning")
    messages = notebook["read_messages"]("SMSSpamCollection").drop_duplicates("Text")
    few = messages.groupby("Label")["Text"].count().min()  # as many of each class
    messages = messages.groupby("Label").sample(few, random_state=123)
    messages["Label"] = (messages["Label"] == "spam").astype(int)
    longest = max(len(get_tokenizer().encode(text)) for text in messages["Text"])
    data = SpamDataset(messages.sample(n, random_state=123), get_tokenizer())
    lengths = torch.tensor(data.lengths)
    padded = F.pad(data.ids, (0, longest - data.max_length), value=50256)
    quiet = {"evaluate": None, "precision": torch.float32}

    def whole_loss(model, ids, labels):  # the last position, as in the book
        logits = model.out_head(model.features(ids)[:, -1])
        return F.cross_entropy(logits, labels, reduction="sum"), len(ids)

    def plain():
        batches = DataLoader(TensorDataset(padded, data.labels), 8, shuffle=True)
        options = {"num_epochs": 1, "loss_fn": whole_loss}
        train_classifier(last_block_classifier(), batches, None, **options, **quiet)

    def ours():
        model = last_block_classifier()
        frozen = notebook["run_frozen"](model, data.ids, lengths)

        def last_loss(model, rows):
            x = [frozen[row] for row in rows.tolist()]
            x = torch.nn.utils.rnn.pad_sequence(x, batch_first=True)
            y = notebook["block_at_last"](model.trf_blocks[-1], x, lengths[rows])
            logits = model.out_head(model.final_norm(y))
            return F.cross_entropy(logits, data.labels[rows], reduction="sum"), len(x)

        rows = TensorDataset(torch.arange(n))
        batches = DataLoader(rows, batch_sampler=LengthBatches(data.lengths, 8))
        options = {"num_epochs": epochs, "loss_fn": last_loss}
        train_classifier(model, batches, None, **options, **quiet)

    ours()  # a warm-up
    times = [(seconds(ours) / epochs, seconds(plain)) for _ in range(rounds)]
    rates = [n / statistics.median(column) for column in zip(*times, strict=True)]
    what = f"tuning 124M on messages, {epochs} epochs: all padded, every block"
    return [line(what, *rates, "messages/s", 8)]


def instruct(rounds=3):
    """Records/s of tuning two models on instructions, against a plain loop."""
    records = json.loads(load_text("instruction-data.json"))
    random.Random(123).shuffle(records)
    return [
        instruct_line("gpt2-mini", *load_gpt2("gpt2-mini"), records[:192], rounds),
        instruct_line("124M", model_124m(), get_tokenizer(), records[:64], rounds),
    ]


def instruct_line(name, model, tokenizer, records, rounds):
    """Our batches and loss against random order and logits at every position."""
    dataset, precision = InstructionDataset(records, tokenizer), pick_precision(CPU)
    collate = partial(custom_collate_fn, pad_token_id=dataset.end_id)
    plain = DataLoader(dataset, 8, shuffle=True, collate_fn=collate)

    def rate(loader, loss_fn):
        options = {"peak_lr": 1e-5, "precision": precision}
        train = partial(train_model, **options)
        return len(records) / seconds(train, model, loader, loss_fn, len(loader))

    rate(answer_loader(InstructionDataset(records[:8], tokenizer)), answer_loss)
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(rate(answer_loader(dataset), answer_loss))
        theirs.append(rate(plain, next_token_loss))
    rates = statistics.median(ours), statistics.median(theirs)
    what = f"tuning {name} on instructions: random order, all logits"
    return line(what, *rates, "records/s", 1.5)


def rewards(prompts=8, samples=16, length=40, room=24, rounds=3):
    """Tokens/s of answers, against every sample with a prompt of its own."""
    model, _ = load_gpt2("gpt2-mini")
    book = definitions_of("08_learning_from_rewards")
    book.namespace |= {"NEWLINE": -1, "ENDS": torch.tensor([-1])}  # nothing ends early
    ids = torch.randint(model.cfg["vocab_size"], (prompts, length))
    each = ids.repeat_interleave(samples, dim=0)
    answers = torch.randint(model.cfg["vocab_size"], (len(each), room))

    def learn(prompts):
        with torch.autocast("cpu", pick_precision(CPU)):
            book["answer_log_probs"](model, prompts, answers).sum().backward()

    sampled = partial(book["sample_answers"], model, ids, samples, room)
    plain = partial(sample, model, each, room, length + room, temperature=1.0)
    ways = {
        "sampling answers: generate, prompts not shared": (sampled, plain),
        "a policy step: prompts not shared": (
            partial(learn, ids),
            partial(learn, each),
        ),
    }
    lines = []
    for what, pair in ways.items():
        times = [[seconds(way) for way in pair] for _ in range(rounds + 1)][1:]
        rates = [
            answers.numel() / statistics.median(c) for c in zip(*times, strict=True)
        ]
        lines.append(line(what, *rates, "tokens/s"))
    return lines


ROWS = {
    "train": train,
    "generate": generate,
    "bpe": bpe,
    "load": load,
    "spam": spam,
    "instruct": instruct,
    "rewards": rewards,
}


# The table


def peak_memory():
    """Return the most memory that this process has held, in GB; None on Windows."""
    if sys.platform == "win32":
        return None
    if sys.platform == "linux":  # where ru_maxrss is at least the parent's
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return 1024 * int(peak) / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def run_row(row):
    """Return the lines of a row, its seconds and its peak memory."""
    start = time.perf_counter()
    lines = ROWS[row]()
    return lines, time.perf_counter() - start, peak_memory()


def table(lines, markdown):
    """Return the lines as an aligned table, plain or in Markdown."""
    head = ("measured in one run", "figure", "limit", "ratio", "target", "reached")
    rows = [(*head, "transformers"), *lines]
    if not any(each.transformers for each in lines):
        rows = [row[:-1] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [
        [cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows
    ]
    cells.insert(1, ["-" * width for width in widths])
    if markdown:
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in cells)


def main():
    """Run the rows that were asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", action="extend", choices=ROWS)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    lines, notes = [], []
    for row in options.only or ROWS:
        row_lines, took, peak = in_own_process(run_row, row)
        lines += row_lines
        memory = "peak memory unknown" if peak is None else f"peak memory {peak:.2f} GB"
        notes.append(f"{row}: {took:.0f} s, {memory}")
    print(table(lines, options.markdown))
    print(f"\nPyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    print("\n".join(f"- {note}" if options.markdown else note for note in notes))


if __name__ == "__main__":
    main()
