"""The classes and functions that later chapters import, one section a chapter.

Each is built and explained in the notebook that its docstring names; a test keeps the
two copies equal. Shapes: `B` batch, `T` tokens, `C` embedding width, `H` heads, `D`
width of a head (`C = H * D`), `V` vocabulary.
"""

import base64
import copy
import ctypes
import io
import json
import math
import os
import random
import re
import shutil
import tempfile
import time
import zlib
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from unittest.mock import patch

import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pooch
import regex
import tiktoken
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset
from tqdm import tqdm

# =====================================================================================
# Opening: devices, seeds, data files, plot style
# =====================================================================================

DATA = Path(__file__).resolve().parent / "data"
DOWNLOADS = DATA / "downloads"
RUNS = DATA / "runs"
FILES = json.loads((DATA / "files.json").read_text(encoding="utf-8"))

plt.rcParams.update(
    {
        "figure.figsize": (6.4, 3.6),
        "figure.dpi": 96,
        "figure.facecolor": "white",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": mpl.cycler(
            color=["#20639b", "#d1495b", "#2e8b57", "#8e6c8a", "#c98a1b", "#444444"]
        ),
        "grid.color": "#e3e3e3",
        "legend.frameon": False,
    }
)
pooch.get_logger().setLevel("WARNING")


def slider_plot(draw, **ranges):
    """Return sliders, and a picture of what `draw` plots at their values.

    `ipywidgets.interact` does the same, but nbconvert can wait for it for ever
    (github.com/jupyter/nbclient/issues/312).
    """
    make, sliders = ipywidgets.interactive.widget_from_abbrev, {}
    for (name, limits), value in zip(ranges.items(), draw.__defaults__, strict=True):
        sliders[name] = make(limits, value)
        sliders[name].description = name
    picture = ipywidgets.Image()

    def redraw(_=None):
        draw(**{name: slider.value for name, slider in sliders.items()})
        file = io.BytesIO()
        plt.savefig(file, bbox_inches="tight")
        plt.close()
        picture.value = file.getvalue()

    for slider in sliders.values():
        slider.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([*sliders.values(), picture])


def small_model_logits(device):
    """Logits `(2, 32, 200)` of a small model with fixed weights, made on a device."""
    cfg = {"vocab_size": 200, "context_length": 32, "emb_dim": 64, "n_heads": 4}
    cfg |= {"n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(123)
        model, ids = GPTModel(cfg), torch.randint(0, 200, (2, 32))
        return model.to(device)(ids.to(device)).cpu()


def pick_device():
    """Return CUDA or MPS where a small model gives the CPU's logits, else the CPU."""
    for name, module in (("cuda", torch.cuda), ("mps", torch.backends.mps)):
        if module.is_available():
            try:
                gap = (small_model_logits(name) - small_model_logits("cpu")).abs().max()
            except RuntimeError:  # PyTorch has dropped this GPU
                gap = math.inf
            if gap < 0.02:
                return torch.device(name)
            print(f"{name} gives logits that are off by {gap:.2g}: the CPU is used.")
    return torch.device("cpu")


@lru_cache  # measured once
def pick_precision(device):
    """Return bfloat16 if it multiplies matrices 1.5 times as fast as float32 here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads would time how busy the machine is
    # A small product first: without hardware for it, a large one can take minutes.
    for size in (192, 768 if torch.device(device).type == "cpu" else 4096):
        seconds = {}
        for dtype in (torch.float32, torch.bfloat16):
            a, times = torch.ones(size, size, dtype=dtype, device=device), []
            for _ in range(7):
                start = time.perf_counter()
                (a @ a)[0, 0].item()  # .item() waits for the GPU
                times.append(time.perf_counter() - start)
            seconds[dtype] = min(times)
        gain = seconds[torch.float32] / seconds[torch.bfloat16]
        if gain < 0.4:
            break
    torch.set_num_threads(threads)
    return torch.bfloat16 if gain >= 1.5 else torch.float32


class Muon(torch.optim.Muon):
    """PyTorch's Muon, which multiplies in bfloat16; in float32 where that is slow."""

    def step(self, closure=None):
        precision = pick_precision(self.param_groups[0]["params"][0].device)

        def convert(tensor):
            return tensor.to(precision, copy=True)

        with patch.object(torch.Tensor, "bfloat16", convert):
            return super().step(closure)


def trim_memory():
    """Return freed memory to the system; glibc keeps much of it otherwise."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def set_seed(seed):
    """Seed the generators of Python, NumPy and PyTorch (every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def fetch(name):
    """Return the path of a data file: whole and checked, or the sample in its place.

    Sources: data/downloads, the folder or address in COURSE_MIRROR, the addresses in
    data/files.json, at last the sample in data/. COURSE_OFFLINE=1 takes the sample.
    """
    file, faults = FILES[name], []
    if os.environ.get("COURSE_OFFLINE") == "1":
        return sample_of(name, "COURSE_OFFLINE=1 is set")
    place = DOWNLOADS / name
    if place.is_file() and pooch.file_hash(str(place)) == file["sha256"]:
        return place
    archive = file.get("archive", name)
    addresses = FILES[archive]["urls"]
    if mirror := os.environ.get("COURSE_MIRROR", "").rstrip("/"):
        addresses = [f"{mirror}/{FILES[archive].get('mirror', archive)}", *addresses]
    for address in addresses:
        store = pooch.create(
            DOWNLOADS,
            base_url="",
            registry={archive: FILES[archive]["sha256"]},
            urls={archive: address},
            retry_if_failed=1 if address.startswith("http") else 0,
        )
        try:
            path = store.fetch(archive, downloader=copy_or_download)
            os.chmod(path, 0o644)  # pooch makes it readable by this user alone
            if archive != name:
                with tempfile.TemporaryDirectory(dir=DOWNLOADS) as folder:
                    unzip = pooch.Unzip(members=[name], extract_dir=folder)
                    os.replace(unzip(path, "update", store)[0], place)
            return place
        except (OSError, ValueError) as error:  # no network, a full disk, a wrong hash
            faults.append(f"{address}: {type(error).__name__}")
    return sample_of(name, "no source has it (" + "; ".join(faults) + ")")


def copy_or_download(address, output_file, store):
    """Get a file from an address or, for a mirror on this disk, from a folder."""
    if address.startswith(("http://", "https://")):
        seconds = 4, 10  # to connect to each of a host's addresses; of silence then
        download = pooch.HTTPDownloader(progressbar=True, timeout=seconds)
        download(address, output_file, store)
    else:
        shutil.copyfile(Path(address).expanduser(), output_file)


@lru_cache
def sample_of(name, why):
    """Return the sample that stands in for a data file, and say so, once."""
    if "sample" not in FILES[name]:
        raise FileNotFoundError(f"{name}: {why}. Put it into data/downloads/")
    print(f"{name}: {why}, so data/{FILES[name]['sample']} is used.")
    return DATA / FILES[name]["sample"]


def load_text(source):
    """Return the text of a data file of the course, or of a UTF-8 file of your own."""
    path = fetch(source) if source in FILES else Path(source).expanduser()
    text = path.read_text(encoding="utf-8-sig")
    if not text.strip():
        raise ValueError(f"{path} holds no text")
    return text


def download_gpt2(size):
    """Return the folder of a size, downloaded if need be."""
    for name in FILES:
        if name.startswith(f"gpt2/{size}/"):
            path, n_bytes = DOWNLOADS / name, FILES[name]["bytes"]
            if not path.is_file():
                fetch(name)
            if n_bytes and path.stat().st_size != n_bytes:
                path.unlink()
                raise OSError(f"{name} was incomplete and is removed: load it again")
    return DOWNLOADS / "gpt2" / size


def choose_gpt2(name=None):
    """Return the folder of a size, a path or "gpt2-mini"; None asks COURSE_MODEL."""
    name = name or os.environ.get("COURSE_MODEL")
    if not name:
        name = "gpt2-mini" if pick_device().type == "cpu" else "124M"
        sizes = ", ".join(GPT2_CONFIGS)
        print(f"The model is {name}. COURSE_MODEL chooses: {sizes} or a folder.")
    if name in GPT2_CONFIGS:
        try:
            return download_gpt2(name)
        except OSError as error:
            print(f"GPT-2 {name} isn't available, so gpt2-mini is used: {error}")
            name = "gpt2-mini"
    folder = DATA / name if name == "gpt2-mini" else Path(name).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{name} is neither a folder nor one of {[*GPT2_CONFIGS]}"
        )
    return folder


@lru_cache
def import_tensorflow():
    """Import TensorFlow without its greetings, which bypass Python."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # it would take all of its memory
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    return tf


@contextmanager
def blame(what):
    """Let an error in the block say which file or tensor it is about."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} is damaged, or of another model: {error}") from error


# =====================================================================================
# Words and phrases of the dialogues in chapters 7 and 8, and tasks of one message
# =====================================================================================

DIALOGUES = json.loads((DATA / "dialogues.json").read_text(encoding="utf-8"))
PHRASES = DIALOGUES["phrases"]
KNOWN = DIALOGUES["known"]


class Contents:
    """Words, numbers and facts of a dialogue of one part, none of them twice."""

    def __init__(self, rng, words, part):
        self.rng, self.words, self.part, self.used = rng, words, part, set()

    def draw(self, kind, digits=None):
        while True:
            if kind == "number":
                size = digits or self.rng.randint(2, 4)
                content = str(self.rng.randrange(10 ** (size - 1), 10**size))
            else:
                content = self.rng.choice(self.words[kind])
                if self.part == "training" and self.rng.random() < 0.75:  # made up
                    other = self.rng.choice(self.words[kind])
                    content = content[: len(content) // 2] + other[len(other) // 2 :]
            if part_of(content) == self.part and content not in self.used:
                self.used.add(content)
                return content

    def phrase(self, name, **values):
        return self.rng.choice(PHRASES[name]).format(**values)

    def row(self, low, high):
        kinds = [kind for kind in self.words if kind != "deed"]
        count = self.rng.randint(low, high)
        return [self.draw(self.rng.choice(kinds)) for _ in range(count)]

    def facts(self, count):
        known, kind = self.rng.choice(list(KNOWN.items()))
        people = self.rng.sample(DIALOGUES["people"], count + 1)
        things = [f"{person}'s {known}" if person else known for person in people]
        facts = {thing: self.draw(kind) for thing in things[:count]}
        other = self.rng.choice([k for k in KNOWN if k != known])
        return facts, [things[count], things[0].replace(known, other)]  # two untold

    def tell(self, facts, how="tell"):
        if len(facts) > 1 and self.rng.random() < 0.3:
            told = " and ".join(f"my {t} is {v}" for t, v in facts.items())
            return [(f"M{told[1:]}.", self.rng.choice(PHRASES["heard"][:5]))]
        facts = [{"t": thing, "v": value} for thing, value in facts.items()]
        return [(self.phrase(how, **f), self.phrase("heard", **f)) for f in facts]

    def ask(self, facts, thing):
        known = f"Your {thing} is {facts[thing]}." if thing in facts else None
        return self.phrase("ask", t=thing), known or DIALOGUES["unknown"]


def chatter(c, count):
    """Return turns that have nothing to do with the others."""
    turns = []
    for _ in range(count):
        task = c.rng.choice([repeat_words, reverse_words, larger, None, None])
        turns += task(c) if task else [tuple(c.rng.choice(DIALOGUES["small_talk"]))]
    return turns


def find(c):
    """A question about one of several sentences, often of one verb."""
    count, deeds = c.rng.randint(2, 3), DIALOGUES["deeds"]
    if c.rng.random() < 0.5:
        deeds = c.rng.choices(deeds) * 3
    deeds = c.rng.sample(deeds, count)
    said = [d | {k: c.draw(k) for k in ("name", "object", "spot")} for d in deeds]
    sentence = "{name} {did} the {object} {where} the {spot}."
    told = " ".join(sentence.format(**deed) for deed in said)
    asked = c.rng.choice(said)
    question, answer = c.rng.choice(PHRASES["find"])
    return [(f"{told} {question.format(**asked)}", answer.format(**asked))]


def larger(c):
    """The larger of two numbers of equal length, often near each other."""
    a = b = c.draw("number", c.rng.randint(2, 4))
    while len(a) != len(b) or a == b or part_of(b) != c.part:
        step = c.rng.randrange(10 ** c.rng.randint(1, 4))
        b = str(abs(int(a) + c.rng.choice((-step, step))))
    return [(c.phrase("larger", a=a, b=b), f"{max(a, b)}.")]


def repeat_words(c):
    """The same words or the same sentence again."""
    text = " ".join(c.row(2, 6))
    if c.rng.random() < 0.5:
        sentence = c.rng.choice(PHRASES["sentence"])
        text = re.sub(r"{(\w+)}", lambda found: c.draw(found[1]), sentence)
    return [(c.phrase("repeat", s=text), text)]


def reverse_words(c):
    """Two to five words from the last to the first."""
    words = c.row(2, 5)
    return [(c.phrase("reverse", s=" ".join(words)), " ".join(reversed(words)))]


MESSAGE_TASKS = {"find": find, "larger": larger}
MESSAGE_TASKS |= {"repeat": repeat_words, "reverse": reverse_words}


# =====================================================================================
# Chapter 1: tokenizers and data loaders
# =====================================================================================

GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)


@lru_cache
def get_tokenizer():
    """Return GPT-2's `tiktoken.Encoding`, from the table in data/. Notebook 01."""
    ranks = {}
    for line in (DATA / "gpt2.tiktoken").read_text().splitlines():
        token, i = line.split()
        ranks[base64.b64decode(token)] = int(i)
    special = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )


def merge_pair(tokens, pair):
    """Join each occurrence of a pair of tokens, from the left. Notebook 01."""
    merged, i = [], 0
    while i < len(tokens):
        if tuple(tokens[i : i + 2]) == pair:
            merged.append(tokens[i] + tokens[i + 1])
            i += 2
        else:
            merged.append(tokens[i])
            i += 1
    return merged


def split_special(text, special_tokens):
    """Split a text before and after each special token. Notebook 01."""
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)


def count_pieces(text, special_tokens=()):
    """Count the pieces that GPT2_PATTERN cuts a text into. Notebook 01."""
    counts = Counter()
    for part in split_special(text, special_tokens):
        if part not in special_tokens:
            counts.update(regex.findall(GPT2_PATTERN, part))
    return counts


def train_bpe(counts, n_tokens):
    """Learn `n_tokens` tokens from counts of pieces (arXiv:1508.07909). Notebook 01."""
    ranks = {bytes([b]): b for b in range(256)}
    words = {piece: [bytes([b]) for b in piece.encode()] for piece in counts}
    pairs, where = Counter(), defaultdict(set)
    for piece, tokens in words.items():
        for pair in pairwise(tokens):
            pairs[pair] += counts[piece]
            where[pair].add(piece)
    while len(ranks) < n_tokens:
        most = max(pairs.values(), default=0)
        if most == 0:
            break  # every piece is one token
        best = max(pair for pair, count in pairs.items() if count == most)
        ranks.setdefault(best[0] + best[1], len(ranks))
        for piece in where.pop(best):
            for pair in pairwise(words[piece]):  # old pairs out
                pairs[pair] -= counts[piece]
            words[piece] = merge_pair(words[piece], best)
            for pair in pairwise(words[piece]):  # new pairs in
                pairs[pair] += counts[piece]
                where[pair].add(piece)
        del pairs[best]
    return ranks


class BPETokenizer:
    """Byte-level BPE, as GPT-2's; `ranks` maps tokens (bytes) to ids. Notebook 01."""

    def __init__(self, ranks=None, special_tokens=()):
        self.ranks = ranks or {bytes([b]): b for b in range(256)}
        n = len(self.ranks)
        self.special_tokens = {text: n + i for i, text in enumerate(special_tokens)}
        self.tokens = {i: token for token, i in self.ranks.items()}
        self.tokens |= {i: text.encode() for text, i in self.special_tokens.items()}
        self.n_vocab = len(self.tokens)
        self.encode_piece = lru_cache(2**16)(self.encode_piece)  # pieces repeat

    @classmethod
    def train(cls, text, vocab_size, special_tokens=()):
        """Return a tokenizer with at most `vocab_size` tokens, learnt from a text."""
        counts = count_pieces(text, special_tokens)
        return cls(train_bpe(counts, vocab_size - len(special_tokens)), special_tokens)

    def encode_piece(self, piece):
        """Join the pair that makes the token with the lowest id, again and again."""
        parts = [bytes([b]) for b in piece.encode()]
        while len(parts) > 1:
            ids = [self.ranks.get(a + b, math.inf) for a, b in pairwise(parts)]
            if min(ids) == math.inf:
                break
            i = ids.index(min(ids))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return tuple(self.ranks[part] for part in parts)

    def encode_ordinary(self, text):
        """Return the ids of a text in which special tokens mean nothing."""
        pieces = regex.findall(GPT2_PATTERN, text)
        return [i for piece in pieces for i in self.encode_piece(piece)]

    def encode(self, text, allowed_special=()):
        """Return the ids of a text; special tokens in it must be allowed (or "all")."""
        ids = []
        for part in split_special(text, self.special_tokens):
            if part not in self.special_tokens:
                ids += self.encode_ordinary(part)
            elif allowed_special == "all" or part in allowed_special:
                ids.append(self.special_tokens[part])
            else:
                raise ValueError(
                    f"the text contains {part!r}: pass allowed_special={{{part!r}}} "
                    f"if it may, or use encode_ordinary to read it as plain text"
                )
        return ids

    def decode(self, ids):
        """Return the text of some ids; bytes that aren't UTF-8 become U+FFFD."""
        return b"".join(self.tokens[int(i)] for i in ids).decode(errors="replace")


class GPTDatasetV1(Dataset):
    """Windows of a text: pairs of inputs and targets `(max_length)`. Notebook 01."""

    def __init__(self, txt, tokenizer, max_length, stride):
        ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        self.token_ids = torch.tensor(ids)
        self.max_length = max_length
        self.starts = range(0, len(ids) - max_length, stride)

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        start = self.starts[index]
        window = self.token_ids[start : start + self.max_length + 1]
        return window[:-1], window[1:]


def create_dataloader_v1(
    txt,
    batch_size=4,
    max_length=256,
    stride=128,
    shuffle=True,
    drop_last=True,
    num_workers=0,
    tokenizer=None,
):
    """Return a loader of inputs and targets `(batch_size, max_length)`. Notebook 01."""
    dataset = GPTDatasetV1(txt, tokenizer or get_tokenizer(), max_length, stride)
    if len(dataset) < (batch_size if drop_last else 1):
        raise ValueError(
            f"a text of {len(dataset.token_ids)} tokens gives {len(dataset)} windows: "
            f"take a longer text, or a smaller max_length, stride or batch_size"
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
    )


# =====================================================================================
# Chapter 2: attention
# =====================================================================================


class KVCache:
    """Keys and values of the tokens so far, `(B, H, T, D)` a layer. Notebook 02."""

    def __init__(self):
        self.layers = {}

    def length(self):
        return self.layers[0][0].shape[2] if self.layers else 0

    def update(self, keys, values, layer=0):
        if layer in self.layers:
            old_keys, old_values = self.layers[layer]
            keys = torch.cat((old_keys, keys), dim=2)
            values = torch.cat((old_values, values), dim=2)
        self.layers[layer] = keys, values
        return keys, values


class MultiHeadAttention(nn.Module):
    """Causal self-attention in several heads: `(B, T, d_in)` to `(B, T, d_out)`.

    Source: Vaswani et al. 2017 (arXiv:1706.03762). Notebook 02.
    """

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, cache=None, layer=0):
        B, T, _ = x.shape
        split = (B, T, self.num_heads, self.head_dim)
        queries = self.W_query(x).view(split).transpose(1, 2)  # (B, H, T, D)
        keys = self.W_key(x).view(split).transpose(1, 2)  # (B, H, T, D)
        values = self.W_value(x).view(split).transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            keys, values = cache.update(keys, values, layer)  # (B, H, S, D)
        S = keys.shape[2]
        mask = None
        if 1 < T < S:  # several new tokens after cached ones
            mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        context = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=T == S,
        )  # (B, H, T, D)
        return self.out_proj(context.transpose(1, 2).reshape(B, T, -1))


# =====================================================================================
# Chapter 3: the GPT architecture
# =====================================================================================

GPT_CONFIG_124M = {
    "vocab_size": 50257,  # V
    "context_length": 1024,  # the largest T
    "emb_dim": 768,  # C
    "n_heads": 12,  # H
    "n_layers": 12,  # transformer blocks
    "drop_rate": 0.1,
    "qkv_bias": False,
}

GPT2_CONFIGS = {
    size: GPT_CONFIG_124M
    | {"emb_dim": emb_dim, "n_heads": n_heads, "n_layers": n_layers}
    | {"drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
    for size, emb_dim, n_heads, n_layers in (
        ("124M", 768, 12, 12),
        ("355M", 1024, 16, 24),
        ("774M", 1280, 20, 36),
        ("1558M", 1600, 25, 48),
    )
}


class LayerNorm(nn.Module):
    """Layer normalisation of vectors `(..., C)` (arXiv:1607.06450). Notebook 03."""

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """GELU in GPT-2's approximation by tanh (arXiv:1606.08415). Notebook 03."""

    def forward(self, x):
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers and a GELU: `(B, T, C)`, by way of 4C, to C. Notebook 03."""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention and feed-forward of GPT-2: `(B, T, C)` to `(B, T, C)`. Notebook 03."""

    def __init__(self, cfg):
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x, cache=None, layer=0):
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache, layer))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class GPTModel(nn.Module):
    """A GPT-2 style language model; `tie_weights` in cfg shares embedding and head.

    Source: Radford et al. 2019 (GPT-2). Notebook 03.
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg = dict(cfg)
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(
            *[TransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        if cfg.get("tie_weights", False):
            self.out_head.weight = self.tok_emb.weight

    def features(self, in_idx, cache=None):
        """Map ids `(B, T)`, which follow those in the cache, to vectors `(B, T, C)`."""
        past = 0 if cache is None else cache.length()
        end = past + in_idx.shape[1]
        if end > self.cfg["context_length"]:
            raise ValueError(
                f"got {end} tokens for a context_length of {self.cfg['context_length']}"
                f": cut the text, or build the model for more"
            )
        positions = torch.arange(past, end, device=in_idx.device)  # (T)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (B, T, C)
        for layer, block in enumerate(self.trf_blocks):
            x = block(x, cache, layer)
        return self.final_norm(x)

    def forward(self, in_idx, cache=None):
        """Map ids `(B, T)` to logits `(B, T, V)` of the token that comes next."""
        return self.out_head(self.features(in_idx, cache))


@torch.no_grad()
def generate_text_simple(model, idx, max_new_tokens, context_size):
    """Append the most probable token to ids `(B, T)`, again and again. Notebook 03."""
    cache = KVCache()
    for _ in range(max_new_tokens):
        window = idx[:, -context_size:]
        if idx.shape[1] > context_size:
            cache = KVCache()  # every position has moved by one: read the window again
        new = model.features(window[:, cache.length() :], cache)  # (B, new, C)
        logits = model.out_head(new[:, -1])  # (B, V)
        idx = torch.cat((idx, logits.argmax(dim=-1, keepdim=True)), dim=1)
    return idx


@torch.no_grad()
def init_weights(model):
    """Give a model GPT-2's initial weights, scaled to its width. Notebook 03.

    Source: Radford et al. 2019, section 2.3.
    """
    std = 0.02 * math.sqrt(768 / model.cfg["emb_dim"])
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif parameter.dim() == 2:
            writes = name.endswith(("out_proj.weight", "ff.layers.2.weight"))
            n_additions = 2 * model.cfg["n_layers"] if writes else 1
            parameter.normal_(0.0, std / math.sqrt(n_additions))
    return model


# =====================================================================================
# Chapter 4: pretraining and generation
# =====================================================================================


def bigram_model(train_ids, V, k=30, alpha=0.03):
    """Return unigram p(b) and smoothed bigram p(b | a), as functions. Notebook 04."""
    single, double = Counter(train_ids), Counter(pairwise(train_ids))
    first = Counter(train_ids[:-1])  # how often each token has a successor

    def unigram(b):
        return (single[b] + alpha) / (len(train_ids) + alpha * V)

    def bigram(a, b):
        return (double[a, b] + k * unigram(b)) / (first[a] + k)

    return unigram, bigram


def bigram_loss(bigram, ids):
    """Return the loss of p(b | a) on a list of ids, in nats a token. Notebook 04."""
    return -sum(math.log(bigram(a, b)) for a, b in pairwise(ids)) / (len(ids) - 1)


def text_to_token_ids(text, tokenizer):
    """Return the ids of a text as a batch of one, `(1, T)`. Notebook 04."""
    ids = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor([ids], dtype=torch.int64)


def token_ids_to_text(token_ids, tokenizer):
    """Return the text of a batch of one, ids `(1, T)`. Notebook 04."""
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def calc_loss_batch(input_batch, target_batch, model, device):
    """Return the mean cross-entropy of ids `(B, T)`, in nats a token. Notebook 04."""
    logits = model(input_batch.to(device))  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), target_batch.to(device).flatten())


@torch.no_grad()
def calc_loss_loader(data_loader, model, device, num_batches=None):
    """Return the mean loss of a loader's (first) batches. Notebook 04."""
    batches = islice(data_loader, num_batches)
    losses = [calc_loss_batch(x, y, model, device).item() for x, y in batches]
    return sum(losses) / len(losses)


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """Return both losses over `eval_iter` batches, without dropout. Notebook 04."""
    model.eval()
    train_loss = calc_loss_loader(train_loader, model, device, eval_iter)
    val_loss = calc_loss_loader(val_loader, model, device, eval_iter)
    model.train()
    return train_loss, val_loss


def generate_and_print_sample(model, tokenizer, device, start_context):
    """Print 50 greedy tokens after a prompt, on one line. Notebook 04."""
    model.eval()
    idx = text_to_token_ids(start_context, tokenizer).to(device)  # (1, T)
    idx = generate_text_simple(model, idx, 50, model.cfg["context_length"])
    print(token_ids_to_text(idx, tokenizer).replace("\n", " "))


def train_model_simple(
    model, train_loader, val_loader, optimizer, device, num_epochs,
    eval_freq, eval_iter, start_context, tokenizer,
):  # fmt: skip
    """Train; return lists of both losses and of the tokens seen. Notebook 04."""
    train_losses, val_losses, track_tokens_seen = [], [], []
    tokens_seen, step = 0, 0
    for epoch in range(num_epochs):
        model.train()
        for inputs, targets in train_loader:
            optimizer.zero_grad()
            loss = calc_loss_batch(inputs, targets, model, device)
            loss.backward()
            optimizer.step()
            tokens_seen += inputs.numel()
            if step % eval_freq == 0:
                now = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                train_losses.append(now[0])
                val_losses.append(now[1])
                track_tokens_seen.append(tokens_seen)
                print(f"Ep {epoch + 1} (Step {step:06d}): ", end="")
                print(f"Train loss {now[0]:.3f}, Val loss {now[1]:.3f}")
            step += 1
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen


def save_checkpoint(path, model, optimizer=None, **extra):
    """Write configuration, weights, the optimizer's state and more. Notebook 04."""
    state = {"config": model.cfg, "model_state_dict": model.state_dict(), **extra}
    if optimizer is not None:
        state["optimizer_state_dict"] = optimizer.state_dict()
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, temporary)
    temporary.replace(path)  # a crash while writing leaves the old file whole


def load_checkpoint(path, model, optimizer=None):
    """Read a checkpoint into a model (and optimizer); return it. Notebook 04."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["config"] | {"drop_rate": 0} != model.cfg | {"drop_rate": 0}:
        raise ValueError(f"{path} is of another model: {state['config']}")
    model.load_state_dict(state["model_state_dict"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer_state_dict"])
    return state


def keep_top(logits, top_k=None, top_p=None):
    """Set logits `(B, V)` to minus infinity, but for the most probable tokens.

    Source: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p). Notebook 04.
    """
    if top_k is not None:
        kept = logits.topk(min(top_k, logits.shape[-1]))  # (B, k)
        nothing = torch.full_like(logits, -torch.inf)
        logits = nothing.scatter(-1, kept.indices, kept.values)
    if top_p is not None:
        probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)  # (B, V)
        cut = probs.cumsum(dim=-1) - probs >= top_p  # the ones before it suffice
        cut = cut.scatter(-1, order, cut)  # in vocabulary order
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def sample_token(logits, temperature=0.0, top_k=None, top_p=None):
    """Choose a token for each row of logits `(B, V)`; ids `(B, 1)`. Notebook 04."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probs = keep_top(logits / temperature, top_k, top_p).softmax(dim=-1)  # (B, V)
    return torch.multinomial(probs, num_samples=1)


def next_token_logits(model, idx, context_size, cache):
    """Return logits `(B, V)` of the token after ids `(B, T)`. Notebook 04."""
    if idx.shape[1] > context_size:
        cache.layers.clear()  # every position has moved by one
    window = idx[:, -context_size:]
    new = model.features(window[:, cache.length() :], cache)  # (B, new, C)
    return model.out_head(new[:, -1])


@torch.no_grad()
def generate(
    model, idx, max_new_tokens, context_size,
    temperature=0.0, top_k=None, top_p=None, eos_id=None,
):  # fmt: skip
    """Append sampled tokens to prompts of one length, `(B, T)`. Notebook 04.

    A row ends before `eos_id`, and is filled up with it while others go on.
    """
    cache = KVCache()
    ended = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, context_size, cache)
        idx_next = sample_token(logits, temperature, top_k, top_p)  # (B, 1)
        if eos_id is not None:
            idx_next = idx_next.masked_fill(ended, eos_id)
            ended = ended | (idx_next == eos_id)
            if ended.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)
    return idx


def learning_rate(step, total_steps, warmup_steps, peak_lr, min_lr):
    """Return a linear rise, then half a cosine (arXiv:1608.03983). Notebook 04."""
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


def param_groups(model, weight_decay):
    """Split trainable parameters for AdamW: only matrices decay. Notebook 04."""
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]


def next_token_loss(model, inputs, targets):
    """Return the summed loss, and how many targets aren't -100. Notebook 04."""
    logits = model(inputs)  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return loss, (targets != -100).sum()


@torch.no_grad()
def mean_loss(model, batches, loss_fn=next_token_loss):
    """Return the loss per target over the batches. Notebook 04."""
    device, total, n_targets = next(model.parameters()).device, 0.0, 0
    for batch in batches:
        loss, n = loss_fn(model, *(part.to(device) for part in batch))
        total, n_targets = total + loss.item(), n_targets + int(n)
    return total / n_targets


def endless(batches):
    """Yield the batches of a list or a loader again and again. Notebook 04."""
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise ValueError("no batch: pass a list, or a loader with enough text")


def train_model(
    model, batches, loss_fn, num_steps, peak_lr=1e-3, min_lr=None, warmup_steps=10,
    weight_decay=0.1, accumulate=1, max_norm=1.0, precision=None, optimizer=None,
    eval_freq=100, evaluate=None, run_dir=None,
):  # fmt: skip
    """Train on a loader's batches, read again and again; return a table. Notebook 04.

    `loss_fn(model, *batch)` returns the summed loss and the number of targets;
    `evaluate(model)`, called every `eval_freq` steps and at the end, a dictionary for
    the table, whose lowest `val_loss` is kept as `best.pth` in `run_dir`.
    """
    # Plan
    device = next(model.parameters()).device
    precision = precision or pick_precision(device)
    mixed = precision != torch.float32
    autocast = partial(torch.autocast, device.type, precision, enabled=mixed)
    if optimizer is None:
        groups = param_groups(model, weight_decay)
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if not held.issuperset(trainable):
        raise ValueError("the optimizer lacks parameters of the model: make a new one")
    min_lr = peak_lr / 10 if min_lr is None else min_lr
    stream = endless(batches)
    history, seen, total, n_total = [], 0, 0.0, 0
    model.zero_grad()  # a run that was stopped may have left some
    for step in tqdm(range(1, num_steps + 1), leave=False):
        # Gradient
        model.train()
        n_targets = 0
        for batch in islice(stream, accumulate):
            with autocast():
                loss, n = loss_fn(model, *(part.to(device) for part in batch))
            loss.backward()  # adds to the gradients of the batches before
            total, n_targets = total + loss.detach(), n_targets + int(n)
        for p in trainable:
            if p.grad is not None:
                p.grad /= n_targets
        torch.nn.utils.clip_grad_norm_(trainable, max_norm, error_if_nonfinite=True)
        # Step
        lr = learning_rate(step - 1, num_steps, warmup_steps, peak_lr, min_lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        model.zero_grad()
        seen, n_total = seen + n_targets, n_total + n_targets
        # Evaluate
        if step % eval_freq and step < num_steps:
            continue
        row = {"step": step, "targets": seen, "lr": lr}
        row["train_loss"] = float(total) / n_total  # mean since the last evaluation
        if evaluate:
            model.eval()
            with torch.no_grad(), autocast():
                row |= evaluate(model)
        history.append(row)
        total, n_total = 0.0, 0
        trim_memory()
        # Keep
        if run_dir:
            save_checkpoint(Path(run_dir) / "last.pth", model, optimizer, **row)
            if row["val_loss"] == min(r["val_loss"] for r in history):
                save_checkpoint(Path(run_dir) / "best.pth", model, **row)
    return pd.DataFrame(history)


# =====================================================================================
# Chapter 5: loading weights
# =====================================================================================


HPARAMS = {  # our names and OpenAI's
    "vocab_size": "n_vocab",
    "context_length": "n_ctx",
    "emb_dim": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
}


def gpt2_places(model):
    """Map the tensors of OpenAI's files to our parameters. Notebook 05."""
    places = {
        "model/wte": [model.tok_emb.weight],
        "model/wpe": [model.pos_emb.weight],
        "model/ln_f/g": [model.final_norm.scale],
        "model/ln_f/b": [model.final_norm.shift],
    }
    for i, block in enumerate(model.trf_blocks):
        for name, layers in {
            "attn/c_attn": (block.att.W_query, block.att.W_key, block.att.W_value),
            "attn/c_proj": (block.att.out_proj,),
            "mlp/c_fc": (block.ff.layers[0],),
            "mlp/c_proj": (block.ff.layers[2],),
        }.items():
            places[f"model/h{i}/{name}/w"] = [layer.weight for layer in layers]
            places[f"model/h{i}/{name}/b"] = [layer.bias for layer in layers]
        for name, norm in {"ln_1": block.norm1, "ln_2": block.norm2}.items():
            places[f"model/h{i}/{name}/g"] = [norm.scale]
            places[f"model/h{i}/{name}/b"] = [norm.shift]
    return places


def bytes_to_unicode():
    """Return the character that stands for each byte in GPT-2's files. Notebook 05."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def read_tokenizer(folder):
    """Return the `tiktoken.Encoding` of a GPT-2 folder's encoder.json. Notebook 05."""
    vocab = json.loads((Path(folder) / "encoder.json").read_text(encoding="utf-8"))
    special = {"<|endoftext|>": vocab.pop("<|endoftext|>")}
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    ranks = {bytes(byte_of[c] for c in token): i for token, i in vocab.items()}
    return tiktoken.Encoding(
        Path(folder).name,
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens=special,
    )


def copy_weights(reader, model):
    """Fill a model with the tensors of a TensorFlow checkpoint. Notebook 05."""
    for name, parameters in gpt2_places(model).items():
        with blame(name):
            tensor = torch.from_numpy(reader.get_tensor(name))
            if name.endswith("/w"):
                tensor = tensor[0].T  # (1, n_in, n_out) -> (n_out, n_in)
            parts = tensor.chunk(len(parameters))
            for parameter, part in zip(parameters, parts, strict=True):
                if part.shape != parameter.shape:
                    raise ValueError(f"{part.shape}, not {parameter.shape}")
                parameter.data.copy_(part)


def load_gpt2(name=None):
    """Return model (on the CPU) and tokenizer of `choose_gpt2(name)`. Notebook 05."""
    folder = choose_gpt2(name)
    with blame(folder / "hparams.json"):
        hparams = json.loads((folder / "hparams.json").read_text(encoding="utf-8"))
        config = {ours: hparams[theirs] for ours, theirs in HPARAMS.items()}
        config |= {"drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
        with torch.device("meta"):  # shapes without numbers
            model = GPTModel(config)
    with blame(folder / "encoder.json"):
        tokenizer = read_tokenizer(folder)
        if tokenizer.n_vocab != config["vocab_size"]:
            raise ValueError(f"{tokenizer.n_vocab} tokens, {config['vocab_size']} rows")
    tf = import_tensorflow()
    with blame(folder / "model.ckpt.index"):
        reader = tf.train.load_checkpoint(str(folder / "model.ckpt"))
        names = reader.get_variable_to_shape_map().keys()
        if odd := gpt2_places(model).keys() ^ names:
            raise ValueError(f"{min(odd)} is only in it, or only in hparams.json")
    model.to_empty(device="cpu")
    model.out_head.weight = model.tok_emb.weight
    copy_weights(reader, model)
    return model.eval(), tokenizer


@torch.no_grad()
def all_attention(model, ids):
    """Return every head's weights `(L, B, H, T, T)` for ids `(B, T)`. Notebook 05."""
    B, T = ids.shape
    future = torch.ones(T, T, dtype=torch.bool, device=ids.device).triu(1)
    x, weights = model.tok_emb(ids) + model.pos_emb.weight[:T], []
    for block in model.trf_blocks:
        att, normed = block.att, block.norm1(x)
        split = (B, T, att.num_heads, att.head_dim)
        queries = att.W_query(normed).view(split).transpose(1, 2)  # (B, H, T, D)
        keys = att.W_key(normed).view(split).transpose(1, 2)
        logits = queries @ keys.mT / att.head_dim**0.5  # (B, H, T, T)
        weights.append(logits.masked_fill(future, -torch.inf).softmax(dim=-1))
        x = block(x)
    return torch.stack(weights).cpu()


# =====================================================================================
# Chapter 6: a spam filter
# =====================================================================================


def random_split(df, train_frac, validation_frac, seed=123):
    """Shuffle a table and cut it in three: training, validation, test. Notebook 06."""
    df = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    train_end = int(len(df) * train_frac)
    validation_end = train_end + int(len(df) * validation_frac)
    return df[:train_end], df[train_end:validation_end], df[validation_end:]


class SpamDataset(TensorDataset):
    """Pairs of ids `(max_length,)`, padded, and a label; of a CSV file or a table.

    Its columns are `Label`, the class's number, and `Text`. `max_length` cuts texts,
    whose longest is then the width. Notebook 06.
    """

    def __init__(self, data, tokenizer, max_length=None, pad_token_id=50256):
        if not isinstance(data, pd.DataFrame):
            data = pd.read_csv(data, keep_default_na=False)  # "null" is a word
        texts = [tokenizer.encode_ordinary(text)[:max_length] for text in data["Text"]]
        self.lengths = [len(ids) for ids in texts]
        self.max_length = max(self.lengths)
        rows = [ids + [pad_token_id] * (self.max_length - len(ids)) for ids in texts]
        self.ids = torch.tensor(rows)  # (N, max_length)
        self.labels = torch.tensor(data["Label"].tolist())  # (N)
        super().__init__(self.ids, self.labels)


class LengthBatches(Sampler):
    """Batches of similar length: groups are sorted, then cut. Notebook 06."""

    def __init__(self, lengths, batch_size=8, shuffle=True, group=4):
        self.lengths, self.batch_size, self.group = lengths, batch_size, group
        self.order = torch.randperm if shuffle else torch.arange

    def __len__(self):
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self):
        lengths = torch.tensor(self.lengths)
        for group in self.order(len(lengths)).split(self.group * self.batch_size):
            batches = group[lengths[group].argsort()].split(self.batch_size)
            yield from (batches[i].tolist() for i in self.order(len(batches)))


def real_lengths(model, ids):
    """Return how many tokens of each row of ids `(B, T)` are before its padding.

    Padding is what a row ends with of `<|endoftext|>`, the vocabulary's last id.
    Notebook 06.
    """
    numbers = torch.arange(1, ids.shape[1] + 1, device=ids.device)  # (T)
    is_real = ids != model.cfg["vocab_size"] - 1  # (B, T)
    return (numbers * is_real).amax(dim=1).clamp(min=1)


def class_logits(model, ids):
    """Return logits `(B, classes)` at the last real tokens of ids `(B, T)`.

    Notebook 06.
    """
    lengths = real_lengths(model, ids)  # (B)
    features = model.features(ids[:, : lengths.max()])  # (B, longest, C)
    rows = torch.arange(len(ids), device=ids.device)
    logits = model.out_head(features[rows, lengths - 1])
    if logits.shape[1] == model.cfg["vocab_size"]:
        raise ValueError("give model.out_head one output for each class")
    return logits


def class_loss(model, ids, labels):
    """Return the summed loss of messages, and their number. Notebook 06."""
    loss = F.cross_entropy(class_logits(model, ids), labels, reduction="sum")
    return loss, len(labels)


@torch.no_grad()
def evaluate_classifier(model, loader):
    """Return loss and accuracy over a loader, for `train_model`. Notebook 06."""
    device = next(model.parameters()).device
    found = [(class_logits(model, ids.to(device)), labels) for ids, labels in loader]
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    loss = F.cross_entropy(logits.float(), labels).item()
    correct = (logits.argmax(dim=1) == labels).float().mean().item()
    return {"val_loss": loss, "val_accuracy": correct}


def train_classifier(model, train_loader, val_loader, num_epochs=5, lr=2e-4, **options):
    """Train what isn't frozen of a classifier; return a table, a row an epoch.

    Loaders yield ids `(B, T)`, padded with `<|endoftext|>`, and labels `(B)`. `options`
    are those of `train_model`, such as `accumulate`. Notebook 06.
    """
    steps = math.ceil(len(train_loader) / options.get("accumulate", 1))  # of an epoch
    plan = {"loss_fn": class_loss, "num_steps": num_epochs * steps, "eval_freq": steps}
    plan |= {"peak_lr": lr, "min_lr": 0.0, "warmup_steps": num_epochs * steps // 10}
    plan |= {"evaluate": partial(evaluate_classifier, loader=val_loader)}
    return train_model(model, train_loader, **(plan | options))


@torch.no_grad()
def classify_review(
    text, model, tokenizer, device=None, max_length=None, pad_token_id=50256, names=None
):
    """Return the class that a message most probably belongs to. Notebook 06."""
    model.eval()
    ids = tokenizer.encode_ordinary(text)[:max_length][: model.cfg["context_length"]]
    device = device or model.tok_emb.weight.device
    ids = torch.tensor([ids or [pad_token_id]], device=device)  # (1, T)
    return (names or ("not spam", "spam"))[class_logits(model, ids).argmax()]


class LoRALayer(nn.Module):
    """A change of low rank to a linear layer: `(..., in_dim)` to `(..., out_dim)`.

    Source: Hu et al. 2021 (arXiv:2106.09685). Notebook 06.
    """

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), mode="fan_out")  # ±1/√in_dim
        self.B = nn.Parameter(torch.zeros(rank, out_dim))  # no change at first
        self.scaling = alpha / rank

    def forward(self, x):
        return self.scaling * (x @ self.A @ self.B)


class LinearWithLoRA(nn.Module):
    """A frozen linear layer, and a LoRALayer that is added to it. Notebook 06."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora = LoRALayer(linear.in_features, linear.out_features, rank, alpha)
        self.lora.to(linear.weight)  # its device and number format

    def forward(self, x):
        return self.linear(x) + self.lora(x)


def replace_linear_with_lora(model, rank, alpha):
    """Put a LinearWithLoRA in the place of each linear layer. Notebook 06."""
    for name, child in model.named_children():
        if isinstance(child, nn.Linear):
            setattr(model, name, LinearWithLoRA(child, rank, alpha))
        elif not isinstance(child, LinearWithLoRA):
            replace_linear_with_lora(child, rank, alpha)


@torch.no_grad()
def merge_lora(model):
    """Put a plain linear layer in the place of each LinearWithLoRA. Notebook 06."""
    for name, child in model.named_children():
        if isinstance(child, LinearWithLoRA):
            merged = copy.deepcopy(child.linear)  # a tied embedding stays as it is
            merged.weight += child.lora.scaling * (child.lora.A @ child.lora.B).T
            setattr(model, name, merged)
            if isinstance(model, GPTModel) and model.cfg.get("tie_weights"):
                model.cfg["tie_weights"] = False
        else:
            merge_lora(child)


# =====================================================================================
# Chapter 7: instructions and chat
# =====================================================================================

END = "<|endoftext|>"
RESPONSE = "\n\n### Response:\n"


def format_input(entry):
    """Return the prompt in the book's Alpaca format, up to RESPONSE. Notebook 07."""
    text = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    return text + (f"\n\n### Input:\n{entry['input']}" if entry.get("input") else "")


class AnswerDataset(list):
    """Pairs `(ids, marks)`, the marks true where an id is learnt. Notebook 07."""

    def __init__(self, examples, tokenizer, max_length=math.inf, end=END):
        (self.end_id,) = tokenizer.encode(end, allowed_special={END})
        for pairs in examples:
            ids, marks = [], []
            for prompt, answer in pairs:
                prompt, answer = map(tokenizer.encode_ordinary, (prompt, answer))
                ids += [*prompt, *answer, self.end_id]
                marks += [False] * len(prompt) + [True] * (len(answer) + 1)
            if len(ids) - 1 <= max_length:
                self.append((ids, marks))
        if left_out := len(examples) - len(self):
            print(f"{left_out} of {len(examples)} examples left out: too long")
        if not self:
            raise ValueError(f"no example of at most {max_length} tokens: take more")
        self.lengths = [len(ids) for ids, _ in self]


class InstructionDataset(AnswerDataset):
    """Records in Alpaca's format; the response and its end are learnt. Notebook 07."""

    def __init__(self, data, tokenizer, max_length=math.inf):
        pairs = [[(format_input(entry) + RESPONSE, entry["output"])] for entry in data]
        super().__init__(pairs, tokenizer, max_length)


def custom_collate_fn(
    batch, pad_token_id=50256, ignore_index=-100, allowed_max_length=None, device="cpu"
):
    """Return inputs and targets `(B, T)`; plain lists are learnt whole. Notebook 07."""
    inputs, targets = [], []
    for item in batch:
        if not isinstance(item, tuple):
            item = [*item, pad_token_id], [True] * (len(item) + 1)
        ids, marks = map(torch.tensor, item)
        inputs.append(ids[:-1][:allowed_max_length])
        targets.append(ids.where(marks, ignore_index)[1:][:allowed_max_length])
    inputs = nn.utils.rnn.pad_sequence(inputs, True, pad_token_id)  # (B, T)
    targets = nn.utils.rnn.pad_sequence(targets, True, ignore_index)  # (B, T)
    return inputs.to(device), targets.to(device)


def answer_loader(dataset, batch_size=8, shuffle=True):
    """Return a loader of batches of similar length, inputs and targets. Notebook 07."""
    batches = LengthBatches(dataset.lengths, batch_size, shuffle, group=16)
    collate = partial(custom_collate_fn, pad_token_id=dataset.end_id)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate)


def answer_loss(model, inputs, targets):
    """Return what `next_token_loss` does, with logits only for targets. Notebook 07."""
    counted = targets != -100  # (B, T), N of them true
    logits = model.out_head(model.features(inputs)[counted])  # (N, V)
    return F.cross_entropy(logits, targets[counted], reduction="sum"), counted.sum()


def part_of(content):
    """Return which part of the data a word or number belongs to. Notebook 07."""
    code = zlib.crc32(str(content).lower().encode("utf-8"))
    return {0: "test", 8: "validation"}.get(code % 16, "training")


def recall(c, between=0):
    """Two or three facts of one kind; one of them is asked for. Notebook 07."""
    facts, _ = c.facts(c.rng.randint(2, 3))
    turns = c.tell(facts) + chatter(c, between)
    return [*turns, c.ask(facts, c.rng.choice(list(facts)))]


def later(c):
    """The same, with one to three other turns in between. Notebook 07."""
    return recall(c, c.rng.randint(1, 3))


def corrected(c):
    """One fact of several is corrected; mostly that one is asked for. Notebook 07."""
    facts, _ = c.facts(c.rng.randint(2, 3))
    turns = c.tell(facts) + chatter(c, c.rng.randint(0, 1))
    thing = c.rng.choice(list(facts))
    facts[thing] = c.draw(KNOWN[thing.split("'s ")[-1]], digits=len(facts[thing]))
    turns += c.tell({thing: facts[thing]}, "change") + chatter(c, c.rng.randint(0, 1))
    asked = thing if c.rng.random() < 0.7 else c.rng.choice(list(facts))
    return [*turns, c.ask(facts, asked)]


def unknown(c):
    """One to three facts; another one, never told, is asked for. Notebook 07."""
    facts, others = c.facts(c.rng.randint(1, 3))
    turns = c.tell(facts) + chatter(c, c.rng.randint(0, 1))
    return [*turns, c.ask(facts, c.rng.choice(others))]


TASKS = {t.__name__: t for t in (recall, later, corrected, unknown)} | MESSAGE_TASKS


def make_dialogue(number, words, kind=None, part="training"):
    """Return turns, the last of which is a task: the same for a number. Notebook 07."""
    rng = random.Random(f"{number} {part != 'training'}")
    kind = kind or rng.choice(list(TASKS))
    return TASKS[kind](Contents(rng, words, part))


class DialogueDataset(AnswerDataset):
    """Dialogues, lists of turns `(message, answer)`, a line each. Notebook 07."""

    def __init__(self, dialogues, tokenizer, max_length=math.inf):
        examples = []
        for turns in dialogues:
            examples.append([(f"User: {m}\nAssistant:", f" {a}") for m, a in turns])
        super().__init__(examples, tokenizer, max_length, end="\n")
