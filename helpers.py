"""The classes and functions that later chapters import, one section a chapter.

Each is built and explained in the notebook that its docstring names; a test keeps the
two copies equal. Shapes: `B` batch, `T` tokens, `C` embedding width, `H` heads, `D`
width of a head (`C = H * D`), `V` vocabulary.
"""

import base64
import copy
import ctypes
import glob
import html
import http.client
import json
import math
import os
import random
import re
import shutil
import tempfile
import time
import timeit
import urllib.request
import zlib
from collections import Counter, defaultdict
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from itertools import chain, islice, pairwise, repeat
from pathlib import Path
from typing import NamedTuple

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
from torch.utils.data import DataLoader, Dataset, Sampler
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
            gap = (small_model_logits(name) - small_model_logits("cpu")).abs().max()
            if gap < 0.02:
                return torch.device(name)
            print(f"{name} gives logits that are off by {gap:.2g}: the CPU is used.")
    return torch.device("cpu")


def pick_precision(device):
    """Return bfloat16 if it multiplies matrices 1.5 times as fast as float32 here.

    A small product comes first: without hardware for it, a large one can take minutes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads would time how busy the machine is
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
        pooch.HTTPDownloader(progressbar=True, timeout=10)(address, output_file, store)
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
    """Return the folder of a size, of "gpt2-mini" or of a path.

    Without a name: COURSE_MODEL, else 124M on a GPU, else gpt2-mini.
    """
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
# Chapter 1: tokenizers and data loaders
# =====================================================================================

GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)


@lru_cache
def get_tokenizer(name="gpt2"):
    """Return the `tiktoken.Encoding` whose table is data/NAME.tiktoken. Notebook 01."""
    ranks = {}
    for line in (DATA / f"{name}.tiktoken").read_text().splitlines():
        token, i = line.split()
        ranks[base64.b64decode(token)] = int(i)
    special = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding(
        name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special
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
    """Return `n_tokens` tokens with their ids, learnt from counts of pieces.

    Source: Sennrich et al. 2016 (arXiv:1508.07909). Notebook 01.
    """
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
    """Byte-level byte-pair encoding, as in GPT-2: any text in, the same text out.

    `ranks` maps tokens (bytes) to ids, the 256 bytes among them. Notebook 01.
    """

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
    """Windows of a text: pairs of `(max_length,)` ids, the second one token later.

    Notebook 01.
    """

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
    """Return a DataLoader of (inputs, targets), each `(batch_size, max_length)` ids.

    Notebook 01.
    """
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
        """Return the number of tokens read so far."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def update(self, keys, values, layer=0):
        """Append the keys and values of new tokens; return those of all tokens."""
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
        self.context_length = context_length
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, cache=None, layer=0):
        """Let each token gather from itself and those before it, cached ones too."""
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
    size: {
        "vocab_size": 50257,
        "context_length": 1024,
        "emb_dim": emb_dim,
        "n_heads": n_heads,
        "n_layers": n_layers,
        "drop_rate": 0.0,
        "qkv_bias": True,
        "tie_weights": True,
    }
    for size, emb_dim, n_heads, n_layers in (
        ("124M", 768, 12, 12),
        ("355M", 1024, 16, 24),
        ("774M", 1280, 20, 36),
        ("1558M", 1600, 25, 48),
    )
}


class LayerNorm(nn.Module):
    """Bring each vector to mean 0 and variance 1, then scale and shift it.

    Source: Ba et al. 2016 (arXiv:1607.06450). Notebook 03.
    """

    def __init__(self, emb_dim):
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x):
        """Normalise `(..., C)` over its last dimension."""
        return F.layer_norm(x, self.scale.shape, self.scale, self.shift, self.eps)


class GELU(nn.Module):
    """Gaussian error linear unit in GPT-2's approximation by tanh.

    Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415). Notebook 03.
    """

    def forward(self, x):
        """Apply it to each element."""
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, C to 4C to C. Notebook 03."""

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        """Map `(B, T, C)` to `(B, T, C)`, each token on its own."""
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each normalised before and added to its input.

    Source: Radford et al. 2019 (GPT-2). Notebook 03.
    """

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
        """Map `(B, T, C)` to `(B, T, C)`."""
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


# =====================================================================================
# Chapter 4: pretraining and generation
# =====================================================================================


def bigram_model(train_ids, V, k=10):
    """Return unigram p(b) and smoothed bigram p(b | a), as functions. Notebook 04."""
    single, double = Counter(train_ids), Counter(pairwise(train_ids))
    first = Counter(train_ids[:-1])  # how often each token has a successor

    def unigram(b):
        return (single[b] + 1) / (len(train_ids) + V)

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
    model.train()


def train_model_simple(
    model,
    train_loader,
    val_loader,
    optimizer,
    device,
    num_epochs,
    eval_freq,
    eval_iter,
    start_context,
    tokenizer,
):
    """Train a model; return training losses, validation losses and tokens seen.

    Losses are printed every `eval_freq` steps, a sample every epoch. Notebook 04.
    """
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
                losses = evaluate_model(
                    model, train_loader, val_loader, device, eval_iter
                )
                train_losses.append(losses[0])
                val_losses.append(losses[1])
                track_tokens_seen.append(tokens_seen)
                print(f"Ep {epoch + 1} (Step {step:06d}): ", end="")
                print(f"Train loss {losses[0]:.3f}, Val loss {losses[1]:.3f}")
            step += 1
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen


def plot_losses(epochs_seen, tokens_seen, train_losses, val_losses):
    """Plot both losses against epochs (below) and tokens (above). Notebook 04."""
    fig, ax = plt.subplots()
    ax.plot(epochs_seen, train_losses, label="training")
    ax.plot(epochs_seen, val_losses, linestyle="--", label="validation")
    ax.set(xlabel="epochs", ylabel="loss (nats per token)")
    ax.legend()
    top = ax.twiny()
    top.plot(tokens_seen, train_losses, alpha=0)  # sets the scale of the upper axis
    top.set_xlabel("tokens seen")
    top.grid(False)
    fig.tight_layout()
    return fig


def save_checkpoint(path, model, optimizer=None, **extra):
    """Write configuration, weights, the optimizer's state and more. Notebook 04."""
    state = {"config": model.cfg, "model_state_dict": model.state_dict(), **extra}
    if optimizer is not None:
        state["optimizer_state_dict"] = optimizer.state_dict()
    temporary = Path(f"{path}.tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, temporary)
    os.replace(temporary, path)  # a crash while writing leaves the old file whole


def load_checkpoint(path, model, optimizer=None):
    """Read a checkpoint into a model (and optimizer); return it. Notebook 04."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model_state_dict"])
    if state["config"]["n_heads"] != model.cfg["n_heads"]:  # not seen in any shape
        raise ValueError(f"{path} has {state['config']['n_heads']} heads")
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
        cut = torch.zeros_like(cut).scatter(-1, order, cut)  # in vocabulary order
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
    model,
    idx,
    max_new_tokens,
    context_size,
    temperature=0.0,
    top_k=None,
    top_p=None,
    eos_id=None,
):
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
    """Return a step's learning rate: a linear rise, then half a cosine.

    Source: Loshchilov and Hutter 2017 (arXiv:1608.03983). Notebook 04.
    """
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
    """Return the summed loss of `(B, T)` ids, and the number of targets. Notebook 04.

    Targets of -100 don't count.
    """
    logits = model(inputs)  # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return loss, (targets != -100).sum()


@torch.no_grad()
def mean_loss(model, batches, loss_fn=next_token_loss, num_batches=None):
    """Return the loss per target over the (first) batches. Notebook 04."""
    device, total, n_targets = next(model.parameters()).device, 0.0, 0
    for batch in islice(batches, num_batches):
        loss, n = loss_fn(model, *(part.to(device) for part in batch))
        total, n_targets = total + loss.item(), n_targets + int(n)
    return total / n_targets


def train_model(
    model,
    batches,
    loss_fn,
    num_steps,
    peak_lr=1e-3,
    min_lr=1e-4,
    warmup_steps=10,
    weight_decay=0.1,
    accumulate=1,
    max_norm=1.0,
    precision=None,
    optimizer=None,
    eval_freq=100,
    evaluate=None,
    run_dir=None,
):
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
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not all(id(p) in held for p in trainable):
        raise ValueError("the optimizer lacks parameters of the model: make a new one")
    best = Path(run_dir) / "best.pth" if run_dir else None
    if best and best.exists():
        raise FileExistsError(f"{best} is of an earlier run: take another run_dir")
    stream = chain.from_iterable(repeat(batches))
    history, seen, total, n_total = [], 0, 0.0, 0
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
        nn.utils.clip_grad_norm_(trainable, max_norm, error_if_nonfinite=True)
        # Step
        lr = learning_rate(step - 1, num_steps, warmup_steps, peak_lr, min_lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
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
        # Keep
        if run_dir:
            save_checkpoint(best.with_name("last.pth"), model, optimizer, **row)
            if row["val_loss"] == min(r["val_loss"] for r in history):
                save_checkpoint(best, model, **row)
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
            tensor = torch.from_numpy(reader.get_tensor(name)).float()
            if name.endswith("/w"):
                tensor = tensor[0].T  # (1, n_in, n_out) -> (n_out, n_in)
            parts = tensor.chunk(len(parameters))
            for parameter, part in zip(parameters, parts, strict=True):
                if part.shape != parameter.shape:
                    raise ValueError(f"{part.shape}, not {parameter.shape}")
                parameter.data = part.contiguous()  # copies only what is transposed


def load_gpt2(name=None):
    """Return a GPTModel, on the CPU, and its tokenizer, from OpenAI's files.

    `name` is a size, "gpt2-mini" or a folder, as in `choose_gpt2`. Notebook 05.
    """
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
    with blame(folder / "model.ckpt.index"):
        checkpoint = str(folder / "model.ckpt")
        reader = import_tensorflow().train.load_checkpoint(checkpoint)
        names = reader.get_variable_to_shape_map().keys()
        if odd := gpt2_places(model).keys() ^ names:
            raise ValueError(f"{min(odd)} is only in it, or only in hparams.json")
    model.to_empty(device="cpu")
    model.out_head.weight = model.tok_emb.weight
    copy_weights(reader, model)
    return model.eval(), tokenizer


def pack_weight(weight, fmt):
    """Return a weight `(n_out, n_in)` in fewer bytes, and its scales `(n_out, groups)`.

    `fmt`: "bfloat16", "int8" (a scale a row), "int4" (one for 32 numbers). Notebook 05.
    """
    n_out, n_in = weight.shape
    if fmt == "bfloat16":
        return weight.bfloat16(), weight.new_ones(n_out, 1).bfloat16()
    largest, group = (127, n_in) if fmt == "int8" else (7, math.gcd(32, n_in))
    groups = weight.view(n_out, -1, group)
    scale = groups.abs().amax(dim=2, keepdim=True).clamp(min=1e-9) / largest
    scale = scale.bfloat16()  # (n_out, groups, 1)
    q = (groups / scale).round().clamp(-largest, largest).view(n_out, n_in)
    if fmt == "int8":
        return q.to(torch.int8), scale[..., 0]
    q = (q + 8).to(torch.uint8)  # 1 to 15: four bits, and two of them fill a byte
    return q[:, ::2] | q[:, 1::2] << 4, scale[..., 0]


def unpack_weight(q, scale, dtype):
    """Return what was packed, all or some rows, `(..., n_in)`. Notebook 05."""
    if q.dtype == torch.uint8:
        q = torch.stack((q & 15, q >> 4), dim=-1).flatten(-2).to(torch.int8) - 8
    groups = q.to(dtype).unflatten(-1, (scale.shape[-1], -1))
    return (groups * scale.to(dtype)[..., None]).flatten(-2)


class QuantizedLinear(nn.Module):
    """An `nn.Linear` whose weight stays packed. Notebook 05."""

    def __init__(self, linear, fmt, precision):
        super().__init__()
        q, scale = pack_weight(linear.weight.detach(), fmt)
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)
        self.bias, self.precision = linear.bias, precision

    def forward(self, x):
        """Map `(..., n_in)` to `(..., n_out)`; a few tokens without unpacking."""
        rows = x.flatten(0, -2)  # (tokens, n_in)
        if x.is_cpu and self.q.dtype == torch.int8 and len(rows) <= 32:
            y = torch._weight_int8pack_mm(rows.bfloat16(), self.q, self.scale[:, 0])
        elif self.q.dtype == torch.bfloat16 and len(rows) == 1:
            y = torch.mv(self.q, rows[0].bfloat16())
        else:
            weight = unpack_weight(self.q, self.scale, self.precision)
            y = F.linear(rows.to(self.precision), weight)
        y = y.to(x.dtype).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class QuantizedEmbedding(nn.Module):
    """Looks rows up in the table that it shares with a quantised head. Notebook 05."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, idx):
        """Map ids `(B, T)` to vectors `(B, T, C)`."""
        return unpack_weight(self.head.q[idx], self.head.scale[idx], torch.float32)


@torch.no_grad()
def quantize(model, fmt="int8", only_if_faster=True):
    """Put a GPTModel's linear layers and tied embedding into another number format.

    If it then isn't faster at writing here, the model stays as it was. Notebook 05.
    """
    device = model.pos_emb.weight.device
    token, precision = torch.zeros(1, 1, dtype=int).to(device), pick_precision(device)
    step = partial(timeit.repeat, lambda: model(token).sum().item(), number=2, repeat=9)
    before = min(step())
    old = {n: part for n, part in model.named_modules() if isinstance(part, nn.Linear)}
    new = {n: QuantizedLinear(linear, fmt, precision) for n, linear in old.items()}
    if model.out_head.weight is model.tok_emb.weight:
        old["tok_emb"] = model.tok_emb
        new["tok_emb"] = QuantizedEmbedding(new["out_head"])
    for name, part in new.items():
        model.set_submodule(name, part)
    if only_if_faster and min(step()) > before:
        print(f"{fmt} isn't faster here, so the model stays as it was.")
        for name, part in old.items():
            model.set_submodule(name, part)
    return model


# =====================================================================================
# Chapter 6: a spam filter
# =====================================================================================


def random_split(df, train_frac, validation_frac, seed=123):
    """Shuffle a table and cut it in three: training, validation, test. Notebook 06."""
    df = df.sample(frac=1, random_state=seed).reset_index(drop=True)
    train_end = int(len(df) * train_frac)
    validation_end = train_end + int(len(df) * validation_frac)
    return df[:train_end], df[train_end:validation_end], df[validation_end:]


class SpamDataset(Dataset):
    """Pairs of ids `(max_length,)`, padded, and a label; of a CSV file or a table.

    Its columns are `Label`, names or numbers of classes, and `Text`. Without
    `max_length` the longest message decides. Notebook 06.
    """

    def __init__(
        self, data, tokenizer, max_length=None, pad_token_id=50256, classes=None
    ):
        classes = classes or ["ham", "spam"]
        if not isinstance(data, pd.DataFrame):
            data = pd.read_csv(data, keep_default_na=False)  # "null" is a word
        texts = [tokenizer.encode_ordinary(text)[:max_length] for text in data["Text"]]
        self.lengths = [len(ids) for ids in texts]
        self.max_length = max(self.lengths)
        rows = [ids + [pad_token_id] * (self.max_length - len(ids)) for ids in texts]
        self.ids = torch.tensor(rows)  # (N, max_length)
        numbers = {name: i for i, name in enumerate(classes)}
        numbers |= {i: i for i in range(len(classes))}
        self.labels = torch.tensor([numbers[label] for label in data["Label"]])  # (N)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return self.ids[index], self.labels[index]


class LengthBatches(Sampler):
    """Batches of similar length: a group of random batches is sorted, then cut.

    Notebook 06.
    """

    def __init__(self, lengths, batch_size=8, shuffle=True, group=4):
        self.lengths, self.batch_size = lengths, batch_size
        self.shuffle, self.group = shuffle, group

    def __len__(self):
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self):
        generator = None if self.shuffle else torch.Generator().manual_seed(0)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.group * self.batch_size):
            group = order[start : start + self.group * self.batch_size]
            group.sort(key=self.lengths.__getitem__)
            cuts = range(0, len(group), self.batch_size)
            batches = [group[i : i + self.batch_size] for i in cuts]
            for i in torch.randperm(len(batches), generator=generator).tolist():
                yield batches[i]


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
    device, loss, correct, n = next(model.parameters()).device, 0.0, 0, 0
    for ids, labels in loader:
        logits, labels = class_logits(model, ids.to(device)).float(), labels.to(device)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        n += len(labels)
    return {"val_loss": loss / n, "val_accuracy": correct / n}


def train_classifier(
    model, train_loader, val_loader, optimizer=None, num_epochs=5, lr=2e-4, **options
):
    """Train what isn't frozen of a classifier; return a table, a row an epoch.

    Loaders yield ids `(B, T)`, padded with `<|endoftext|>`, and labels `(B)`. `options`
    are those of `train_model`, such as `accumulate`. Notebook 06.
    """
    steps = math.ceil(len(train_loader) / options.get("accumulate", 1))  # of an epoch
    plan = {"loss_fn": class_loss, "num_steps": num_epochs * steps, "eval_freq": steps}
    plan |= {"peak_lr": optimizer.param_groups[0]["lr"] if optimizer else lr}
    plan |= {"min_lr": 0.0, "warmup_steps": num_epochs * steps // 10}
    plan |= {"evaluate": partial(evaluate_classifier, loader=val_loader)}
    return train_model(model, train_loader, optimizer=optimizer, **(plan | options))


@torch.no_grad()
def classify_review(
    text, model, tokenizer, device=None, max_length=None, classes=("not spam", "spam")
):
    """Return the class that a message most probably belongs to. Notebook 06."""
    model.eval()
    limit = min(max_length or math.inf, model.cfg["context_length"])
    ids = torch.tensor([tokenizer.encode_ordinary(text)[:limit]])  # (1, T)
    logits = class_logits(model, ids.to(next(model.parameters()).device))
    return classes[logits.argmax(dim=1).item()]


class LoRALayer(nn.Module):
    """A change of low rank to a linear layer: `(..., in_dim)` to `(..., out_dim)`.

    Source: Hu et al. 2021 (arXiv:2106.09685). Notebook 06.
    """

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.empty(in_dim, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
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
            if isinstance(model, GPTModel):
                model.cfg["tie_weights"] = False
        else:
            merge_lora(child)


# =====================================================================================
# Chapter 7: instructions and chat
# =====================================================================================

END = "<|endoftext|>"
RESPONSE = "\n\n### Response:\n"


def format_input(entry):
    """Return the prompt of an instruction in Alpaca's format, up to the response.

    Args:
        entry: a record with `instruction` and perhaps `input`.

    Source: Taori et al. 2023 (Stanford Alpaca). Built in notebook 07.
    """
    text = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    return text + (f"\n\n### Input:\n{entry['input']}" if entry.get("input") else "")


def check_records(records, name):
    """Raise a ValueError if something isn't a list of instruction records.

    Args:
        records: dictionaries with `instruction` and `output`, and perhaps `input`.
        name: what to call them in the message, such as the name of their file.

    Built in notebook 07.
    """
    if not isinstance(records, list) or not records:
        kind = "an empty list" if isinstance(records, list) else type(records).__name__
        raise ValueError(f"{name}: got {kind}, expected a list of at least one record")
    for i, entry in enumerate(records):
        if not isinstance(entry, dict):
            raise ValueError(
                f"{name}: record {i} is {type(entry).__name__}, expected a dictionary "
                f"with 'instruction', 'input' and 'output'"
            )
        for key in ("instruction", "input", "output"):
            value = entry.get(key, "" if key == "input" else None)
            if not isinstance(value, str) or (key != "input" and not value.strip()):
                raise ValueError(
                    f"{name}: record {i} has {key}={value!r}, expected a text: mend "
                    f"the record or leave it out"
                )


def read_records(source):
    """Read instruction records from a JSON file.

    Args:
        source: a name that `fetch` knows, or the path of a UTF-8 file.

    Returns:
        A list of dictionaries with `instruction`, `input` and `output`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: JSON that is cut short, or isn't a list of records.

    Built in notebook 07.
    """
    name, text = Path(source).name, load_text(source)
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ValueError(
            f"{name} isn't whole: its JSON breaks off or is damaged in line {line} "
            f"({getattr(error, 'msg', error)}). Get the file again"
        ) from error
    check_records(records, name)
    return [{"instruction": "", "input": ""} | entry for entry in records]


def single_token(text, tokenizer):
    """Return the id of a text that is one token, such as an end mark.

    Raises:
        ValueError: it isn't one token of this tokenizer.

    Built in notebook 07.
    """
    ids = tokenizer.encode(text, allowed_special={END})
    if len(ids) != 1:
        raise ValueError(
            f"{text!r} is {len(ids)} tokens, expected one: take a tokenizer that has it"
        )
    return ids[0]


class AnswerDataset(Dataset):
    """Texts made of given parts and of answers, where only the answers are learnt.

    Args:
        examples: lists of parts `(text, is_answer)`, each list ending with an answer.
        tokenizer: any object with tiktoken's `encode` and `encode_ordinary`.
        end_id: the token that ends an answer, and stands behind every example.
        max_length: the most tokens that the model can see. What is beyond is cut, an
            example without any answer left is left out, and both are counted aloud.

    Attributes:
        lengths: tokens of each example.
        truncated, left_out: how many were cut, and how many of these left out.

    Items are pairs of lists: ids, and for each whether it belongs to an answer.

    Raises:
        ValueError: no examples, or none with an answer inside `max_length`, which is
            a whole number from 1.

    Built in notebook 07.
    """

    def __init__(self, examples, tokenizer, end_id, max_length=None):
        if max_length is not None:
            check_whole(max_length=max_length)
        self.end_id, self.max_length = end_id, max_length
        self.items, self.truncated, self.left_out = [], 0, 0
        cut = None if max_length is None else max_length + 1  # the last is a target
        for parts in examples:
            encoded = [
                (tokenizer.encode_ordinary(text), is_answer)
                for text, is_answer in parts
            ]
            ids = [i for new, _ in encoded for i in new]
            learnt = [is_answer for new, is_answer in encoded for _ in new]
            self.truncated += len(ids) > (max_length or math.inf)
            if any(learnt[:cut]):
                self.items.append((ids[:cut], learnt[:cut]))
            else:
                self.left_out += 1
        self.lengths = [min(len(ids), max_length or len(ids)) for ids, _ in self.items]
        self.check(len(examples))

    def check(self, n):
        """Say what was cut of `n` examples; raise a ValueError if nothing is left."""
        if self.truncated:
            print(
                f"{self.truncated} of {n} examples have more than {self.max_length} "
                f"tokens and were cut there; {self.left_out} had no answer left and "
                f"were left out."
            )
        if not self.items:
            raise ValueError(
                f"got {n} examples, none with an answer within max_length="
                f"{self.max_length}: expected at least one"
            )

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class InstructionDataset(AnswerDataset):
    """Instruction records in Alpaca's format; the responses are learnt.

    Args:
        data: records, see `check_records`.
        tokenizer: the model's own; `<|endoftext|>` ends a response.
        max_length: see `AnswerDataset`.

    Raises:
        ValueError: a record that isn't complete; see also `AnswerDataset`.

    Built in notebook 07.
    """

    def __init__(self, data, tokenizer, max_length=None):
        check_records(data, "the data")
        self.data = data
        examples = [
            [(format_input(entry) + RESPONSE, False), (entry["output"], True)]
            for entry in data
        ]
        super().__init__(examples, tokenizer, single_token(END, tokenizer), max_length)


def custom_collate_fn(
    batch,
    pad_token_id=50256,
    ignore_index=-100,
    allowed_max_length=None,
    device="cpu",
):
    """Make inputs and targets of examples with different lengths.

    Targets are the inputs one token later. What needn't be learnt, padding and what
    was given, has `ignore_index` there; but the first end after each text is learnt.

    Args:
        batch: items of an `AnswerDataset`, or plain lists of ids (all learnt).
        pad_token_id: the token that ends a text and fills up the shorter ones.
        ignore_index: marks targets that the loss leaves out.
        allowed_max_length: tokens to keep; all by default.
        device: where the tensors go.

    Returns:
        inputs and targets, both `(B, T)`.

    Raises:
        ValueError: `allowed_max_length` isn't a whole number from 1.

    Built in notebook 07.
    """
    if allowed_max_length is not None:
        check_whole(allowed_max_length=allowed_max_length)
    inputs, targets = [], []
    for item in batch:
        ids, learnt = item if isinstance(item, tuple) else (item, [True] * len(item))
        ids = torch.tensor([*ids, pad_token_id])
        learnt = torch.tensor([*learnt, learnt[-1]])
        inputs.append(ids[:-1][:allowed_max_length])
        targets.append(ids.where(learnt, ignore_index)[1:][:allowed_max_length])
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    inputs = pad(inputs, padding_value=pad_token_id)  # (B, T)
    return inputs.to(device), pad(targets, padding_value=ignore_index).to(device)


def create_answer_loader(dataset, batch_size=8, shuffle=True):
    """Return a DataLoader with batches of examples of like length.

    Args:
        dataset: an `AnswerDataset`.
        batch_size: examples in a batch.
        shuffle: see `LengthBatches`.

    Returns:
        Batches `(inputs, targets)`, see `custom_collate_fn`.

    Built in notebook 07.
    """
    collate = partial(
        custom_collate_fn,
        pad_token_id=dataset.end_id,
        allowed_max_length=dataset.max_length,
    )
    batches = LengthBatches(dataset.lengths, batch_size, shuffle, group=16)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate)


def count_shared(inputs, targets):
    """Return how many first tokens are the same in all rows, and have no target.

    Args:
        inputs, targets: `(B, T)` ids.

    Built in notebook 07.
    """
    same = (inputs == inputs[:1]).all(dim=0) & (targets == -100).all(dim=0)  # (T)
    return same.long().cumprod(dim=0).sum().item()


class SharedPrefix(KVCache):
    """Keys and values of a beginning that all rows of a batch have in common.

    The beginning is given first, as a batch of one. What is given after it sees it,
    row by row, and isn't stored.

    Built in notebook 07.
    """

    def update(self, keys, values, layer=0):
        """Store the beginning; later, return it joined to keys `(B, H, T, D)`."""
        if layer not in self.layers:
            return super().update(keys, values, layer)
        stored = [part.expand(len(keys), -1, -1, -1) for part in self.layers[layer][:2]]
        new = zip(stored, (keys, values), strict=True)
        return tuple(torch.cat(pair, dim=2) for pair in new)  # (B, H, S, D)


def answer_logits(input_batch, target_batch, model, device, share=True):
    """Return the logits of those positions that have a target, and these targets.

    The output head is applied to them alone, and a beginning that all rows have in
    common is computed once.

    Args:
        input_batch, target_batch: `(B, T)` ids; targets of -100 are left out.
        model: a `GPTModel`.
        device: where the model is.
        share: False computes the common beginning in every row.

    Returns:
        logits `(N, V)`, targets `(N)`.

    Raises:
        ValueError: no position has a target.

    Built in notebook 07.
    """
    inputs, targets, cache = input_batch.to(device), target_batch.to(device), None
    if not (targets != -100).any():
        raise ValueError("got a batch without targets, expected some of an answer")
    shared = count_shared(inputs, targets) if share else 0
    if len(inputs) > 1 and shared >= 8:  # fewer aren't worth a pass of their own
        cache = SharedPrefix()
        model.features(inputs[:1, :shared], cache)  # (1, shared, C)
        inputs, targets = inputs[:, shared:], targets[:, shared:]
    features = model.features(inputs, cache)  # (B, T, C)
    counted = targets != -100  # (B, T), N of them true
    return model.out_head(features[counted]), targets[counted]  # (N, C) -> (N, V)


def answer_loss_batch(input_batch, target_batch, model, device, share=True):
    """Return the mean cross-entropy of the answers in a batch, in nats per token.

    The same as `calc_loss_batch`, in value and gradient, without the logits that no
    loss needs.

    Args:
        input_batch, target_batch, model, device, share: see `answer_logits`.

    Returns:
        A tensor with one number, ready for `backward()`.

    Built in notebook 07.
    """
    logits, targets = answer_logits(input_batch, target_batch, model, device, share)
    return F.cross_entropy(logits, targets)


@torch.no_grad()
def evaluate_answers(data_loader, model, device, num_batches=None):
    """Return the mean loss of all answers, in nats per token, dropout switched off.

    Args:
        data_loader: batches `(inputs, targets)`.
        model, device: see `answer_logits`.
        num_batches: how many batches to take; all by default.

    Raises:
        ValueError: the loader has no batch, or `num_batches` is under 1.

    Built in notebook 07.
    """
    check_loaders(data_loader)
    if num_batches is not None:
        check_whole(num_batches=num_batches)
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for inputs, targets in islice(data_loader, num_batches):
        logits, counted = answer_logits(inputs, targets, model, device)
        total += F.cross_entropy(logits, counted, reduction="sum").item()
        count += len(counted)
    model.train(was_training)
    return total / count


def tune_model(
    model,
    train_loader,
    val_loader,
    optimizer=None,
    device=None,
    num_epochs=2,
    eval_freq=40,
    eval_iter=None,
    lr=5e-4,
    loss_batch=answer_loss_batch,
    report=tqdm.write,
):
    """Train a model on answers; parameters that are frozen stay as they are.

    Args:
        model: a `GPTModel`.
        train_loader, val_loader: batches `(inputs, targets)`.
        optimizer: AdamW with `param_groups`, unless another is given. Its rates are
            the highest of a warm-up over a tenth of the steps and a cosine to zero.
        device: where the model is; by default, where its head is.
        num_epochs: times that the training examples are read.
        eval_freq: steps between two evaluations.
        eval_iter: batches of the validation loader in one; all by default.
        lr: rate of the default optimizer.
        loss_batch: computes the loss of a training batch.
        report: called with one line after each epoch; None for silence.

    Returns:
        A dictionary of lists: step, tokens_seen, train_loss (the mean since the last
        evaluation), val_loss.

    Raises:
        ValueError: a loader without batches, nothing to train, or a number of epochs
            or steps that isn't a whole one from 1.
        FloatingPointError: a loss that is not a number.

    Built in notebook 07.
    """
    # Plan
    check_loaders(train_loader, val_loader)
    check_whole(num_epochs=num_epochs, eval_freq=eval_freq)
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("every parameter is frozen: set requires_grad where to learn")
    device = device or model.out_head.weight.device
    if optimizer is None:
        optimizer = torch.optim.AdamW(param_groups(model, 0.1), lr=lr, fused=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    total_steps, step, seen, recent = num_epochs * len(train_loader), 0, 0, []
    history = {k: [] for k in ("step", "tokens_seen", "train_loss", "val_loss")}
    for epoch in range(num_epochs):
        model.train()
        for inputs, targets in tqdm(train_loader, f"epoch {epoch + 1}", leave=False):
            # Step
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                warmup = total_steps // 10
                group["lr"] = learning_rate(step, total_steps, warmup, peak, 0.0)
            optimizer.zero_grad()
            loss = loss_batch(inputs, targets, model, device)
            check_finite(loss, step)
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            seen += inputs.numel()
            recent.append(loss.item())
            step += 1
            # Evaluate
            if step % eval_freq == 0 or step == total_steps:
                val_loss = evaluate_answers(val_loader, model, device, eval_iter)
                row = (step, seen, sum(recent) / len(recent), val_loss)
                for column, value in zip(history.values(), row, strict=True):
                    column.append(value)
                recent = []
        if report and history["step"]:
            report(
                f"epoch {epoch + 1}: loss {history['train_loss'][-1]:.3f} in training, "
                f"{history['val_loss'][-1]:.3f} in validation"
            )
    return history


def answer_instruction(entry, model, tokenizer, max_new_tokens=60, **controls):
    """Return a model's response to an instruction.

    Args:
        entry: a record with `instruction` and perhaps `input`.
        model: a `GPTModel`.
        tokenizer: its own.
        max_new_tokens: the most tokens of the response.
        controls: temperature, top_k, top_p; see `sample_token`.

    Raises:
        ValueError: a prompt that leaves no room for the response, or
            `max_new_tokens` under 1.

    Built in notebook 07.
    """
    check_whole(max_new_tokens=max_new_tokens)
    ids = tokenizer.encode_ordinary(format_input(entry) + RESPONSE)
    limit = model.cfg["context_length"]
    if len(ids) + max_new_tokens > limit:
        raise ValueError(
            f"got a prompt of {len(ids)} tokens and max_new_tokens={max_new_tokens}, "
            f"expected at most {limit} in all: shorten it, or ask for fewer new tokens"
        )
    idx = torch.tensor([ids], device=model.out_head.weight.device)  # (1, T)
    end_id = single_token(END, tokenizer)
    out = generate(model.eval(), idx, max_new_tokens, limit, eos_id=end_id, **controls)
    return tokenizer.decode(out[0, len(ids) :].tolist()).strip()


def exact_match(answer, reference):
    """Say whether two texts are the same but for white space.

    Built in notebook 07.
    """
    return answer.split() == reference.split()


def token_f1(answer, reference):
    """Return how far the words of two texts agree, whatever their order: 0 to 1.

    The harmonic mean of two shares: of the answer's words that stand in the
    reference, and of the reference's that stand in the answer. Capitals and
    punctuation don't matter.

    Source: Rajpurkar et al. 2016 (arXiv:1606.05250). Built in notebook 07.
    """
    words = [Counter(re.findall(r"\w+", text.lower())) for text in (answer, reference)]
    common, total = (words[0] & words[1]).total(), sum(w.total() for w in words)
    return 2 * common / total if total else float(exact_match(answer, reference))


OLLAMA = "http://localhost:11434"


def call_ollama(path, body=None, address=OLLAMA, timeout=60):
    """Send a request to a local Ollama; return its JSON, or None.

    None stands for everything that can go wrong: nobody there, no reply in time, an
    error, a reply that isn't a JSON object.

    Args:
        path: such as `"/api/chat"`.
        body: a dictionary to post; without it the request is a GET.
        address: where Ollama listens.
        timeout: seconds without a word after which we give up.

    Built in notebook 07.
    """
    data = None if body is None else json.dumps(body).encode("utf-8")
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(address + path, data, headers)
        no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with no_proxy.open(request, timeout=timeout) as reply:
            answer = json.loads(reply.read(2**20))
    except (OSError, ValueError, RecursionError, http.client.HTTPException):
        return None
    return answer if isinstance(answer, dict) else None


def find_judge(address=OLLAMA, timeout=2):
    """Return the name of the first model that a local Ollama has; None if none has.

    Built in notebook 07.
    """
    models = (call_ollama("/api/tags", None, address, timeout) or {}).get("models")
    first = models[0] if isinstance(models, list) and models else None
    return first.get("name") if isinstance(first, dict) else None


def ask_judge(prompt, judge, address=OLLAMA, timeout=60):
    """Return the reply of a model in Ollama to one prompt; None if none came.

    Args:
        prompt: the text.
        judge: name of the model.
        address, timeout: see `call_ollama`.

    Built in notebook 07.
    """
    body = {
        "model": judge,
        "messages": [{"role": "user", "content": prompt}],
        "stream": False,
        "options": {"temperature": 0, "seed": 123},
    }
    message = (call_ollama("/api/chat", body, address, timeout) or {}).get("message")
    reply = message.get("content") if isinstance(message, dict) else None
    return reply if isinstance(reply, str) else None


def parse_score(reply):
    """Return the one number from 0 to 100 in a judge's reply; None if it isn't clear.

    Built in notebook 07.
    """
    numbers = re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"/\s*100\b", "", reply or ""))
    if len(numbers) != 1 or not re.fullmatch(r"\d{1,3}", numbers[0]):
        return None
    score = int(numbers[0])
    return score if score <= 100 else None


def judge_answers(data, answers, ask, patience=3):
    """Let a judge score answers from 0 to 100.

    Args:
        data: records with the right `output`.
        answers: texts, one a record.
        ask: maps a prompt to a reply, or to None if none came.
        patience: after so many prompts in a row without a reply, we stop asking.

    Returns:
        A list of scores, None where the reply was missing or not clear.

    Raises:
        ValueError: more or fewer answers than records, or `patience` under 1.

    Built in notebook 07.
    """
    check_whole(patience=patience)
    if len(data) != len(answers):
        raise ValueError(f"got {len(answers)} answers to {len(data)} records")
    scores, silent = [], 0
    for entry, answer in zip(tqdm(data, "judge", leave=False), answers, strict=True):
        prompt = (
            f"Here is a task:\n{format_input(entry)}\n\nA correct response is:\n"
            f"{entry['output']}\n\nScore this response from 0 (useless) to 100 (as "
            f"good):\n{answer}\n\nReply with the number and nothing else."
        )
        reply = ask(prompt) if silent < patience else None
        silent = silent + 1 if reply is None else 0
        scores.append(parse_score(reply))
    return scores


def is_reserved(content):
    """Say whether a word, name or number belongs to the tests: about one in eight.

    The rule looks at nothing but the letters, so that it is the same everywhere, and
    in the exercises that gpt2-mini was trained with.

    Built in notebook 07.
    """
    return zlib.crc32(str(content).lower().encode("utf-8")) % 8 == 0


class Dialogue(NamedTuple):
    """A conversation whose last answer can be checked.

    Attributes:
        kind: the task of the last turn.
        distance: how many turns ago the fact was said that it asks for; 0 if it
            stands in the question itself.
        turns: pairs of what the user says and what the assistant should answer.
        contents: every word, name, number and sentence that was filled in.

    Built in notebook 07.
    """

    kind: str
    distance: int
    turns: list
    contents: frozenset


class Phrasebook:
    """Words and phrasings to make tasks of, from one side of the split.

    Args:
        reserved: take the words of the tests; False: all the others.

    Attributes:
        words: dictionary from a kind of word to a list.
        used: what has been filled in since it was last emptied.

    Raises:
        ValueError: `reserved` is neither True nor False.

    Built in notebook 07.
    """

    def __init__(self, reserved):
        if not isinstance(reserved, bool):
            raise ValueError(f"got reserved={reserved!r}, expected True or False")
        self.lists = json.loads(load_text(DATA / "dialogues.json"))
        self.reserved, self.used = reserved, set()
        self.words = {
            what: [word for word in words if is_reserved(word) == reserved]
            for what, words in self.lists["contents"].items()
        }

    def pick(self, rng, what):
        """Return a word of a list, or a number of two to four digits."""
        content = None
        if what != "number":
            content = rng.choice(self.words[what])
        while content is None or is_reserved(content) != self.reserved:
            content = str(rng.randrange(10, 10 ** rng.randint(2, 4)))
        self.used.add(content)
        return content

    def fill(self, rng, template):
        """Return a template with a word of its own for each of its braces."""
        return re.sub(r"{(\w+)}", lambda found: self.pick(rng, found[1]), template)

    def phrase(self, rng, name, **values):
        """Return one of the phrasings of that name with the values put in."""
        return rng.choice(self.lists["phrasings"][name]).format(**values)


class TaskMaker(Phrasebook):
    """A maker of tasks that one message holds whole: pairs of message and answer.

    Args:
        reserved: see `Phrasebook`.

    Built in notebook 07.
    """

    def repeat(self, rng):
        """Say the same sentence or words."""
        text = self.fill(rng, rng.choice(self.lists["sentences"]))
        self.used.add(text)
        return self.phrase(rng, "repeat", s=text), text

    def reverse(self, rng):
        """Say some words from the last to the first."""
        kinds = rng.choices(("object", "animal", "spot", "quality", "name"), k=5)
        words = [self.pick(rng, what) for what in kinds[: rng.randint(2, 5)]]
        asked = self.phrase(rng, "reverse", s=" ".join(words))
        return asked, " ".join(reversed(words))

    def larger(self, rng):
        """Name the larger of two numbers."""
        a = b = self.pick(rng, "number")
        while a == b:
            b = self.pick(rng, "number")
        answer = self.lists["phrasings"]["largest"].format(v=max(a, b, key=int))
        return self.phrase(rng, "larger", a=a, b=b), answer

    def find(self, rng):
        """Answer a question about one of up to three sentences."""
        stories = rng.sample(self.lists["stories"], rng.randint(1, 3))
        filled, said = [], []
        for story in stories:
            words = {what: self.pick(rng, what) for what in ("name", "object", "spot")}
            filled.append(words)
            said.append(story["says"].format(**words))
        if len({words[what] for words in filled for what in words}) < 3 * len(said):
            return self.find(rng)  # a word came twice: the question could mean either
        self.used.update(said)
        story, words = rng.choice(list(zip(stories, filled, strict=True)))
        question, answer = rng.choice(story["questions"])
        asked = f"{' '.join(said)} {question.format(**words)}"
        return asked, answer.format(**words)


class DialogueMaker(TaskMaker):
    """A maker of dialogues with tasks whose answers are known.

    Args:
        reserved: see `Phrasebook`.

    Built in notebook 07.
    """

    KINDS = ("recall", "correct", "repeat", "find", "reverse", "larger")

    def make(self, number, kind=None, distance=None):
        """Return dialogue `number`, always the same one, perhaps of a given kind.

        Args:
            number: any number.
            kind: one of `KINDS`; drawn at random by default.
            distance: 1 to 3, for `recall` and `correct`; drawn at random by default.
        """
        rng, self.used = random.Random(f"{self.reserved} {number}"), set()
        kind, distance = kind or rng.choice(self.KINDS), distance or rng.randint(1, 3)
        if kind in ("recall", "correct"):
            turns = self.remember(rng, distance, changed=kind == "correct")
        else:
            before = [self.chatter(rng) for _ in range(rng.randint(0, 2))]
            turns, distance = [*before, getattr(self, kind)(rng)], 0
        return Dialogue(kind, distance, turns, frozenset(self.used))

    def tell(self, rng, t, v, how="tell"):
        """A turn in which the user says what a thing is, or that it has changed."""
        return self.phrase(rng, how, t=t, v=v), self.phrase(rng, "heard", t=t, v=v)

    def remember(self, rng, distance, changed):
        """Turns that say a fact, perhaps change it, and ask for it after a while."""
        what, *others = rng.sample(list(self.lists["facts"]), 3)
        t, v = rng.choice(self.lists["facts"][what]), self.pick(rng, what)
        turns = [self.chatter(rng, others) for _ in range(rng.randint(0, 1))]
        turns.append(self.tell(rng, t, v))
        if changed:
            turns += [self.chatter(rng, others) for _ in range(rng.randint(0, 1))]
            old = v
            while v == old:
                v = self.pick(rng, what)
            turns.append(self.tell(rng, t, v, how="change"))
        turns += [self.chatter(rng, others) for _ in range(distance - 1)]
        answer = self.lists["phrasings"]["recalled"].format(t=t, v=v)
        return [*turns, (self.phrase(rng, "ask", t=t), answer)]

    def chatter(self, rng, facts=()):
        """A turn beside the point: a greeting, another task, a fact of other kinds."""
        kind = rng.choice(("talk", "talk", "repeat", "reverse", "larger", "fact"))
        if kind == "talk" or (kind == "fact" and not facts):
            return tuple(rng.choice(self.lists["small_talk"]))
        if kind == "fact":
            what = rng.choice(facts)
            thing = rng.choice(self.lists["facts"][what])
            return self.tell(rng, thing, self.pick(rng, what))
        return getattr(self, kind)(rng)


def format_turns(turns):
    """Return a conversation as text, each turn of each side on one line.

    Args:
        turns: pairs of what the user says and what the assistant answers.

    Built in notebook 07.
    """
    return "".join(f"User: {said}\nAssistant: {answer}\n" for said, answer in turns)


class DialogueDataset(AnswerDataset):
    """Dialogues as text; what the assistant says is learnt. A line's end ends it.

    Args:
        dialogues: list of `Dialogue`.
        tokenizer: the model's own.
        max_length: see `AnswerDataset`.
        only_last: count the last answer alone, for tests.

    Built in notebook 07.
    """

    def __init__(self, dialogues, tokenizer, max_length=None, only_last=False):
        self.dialogues = dialogues
        examples = []
        for dialogue in dialogues:
            *earlier, (asked, answer) = dialogue.turns
            parts = []
            for said, answered in earlier:
                parts.append((f"User: {said}\nAssistant:", False))
                parts.append((f" {answered}\n", not only_last))
            parts += [(f"User: {asked}\nAssistant:", False), (f" {answer}", True)]
            examples.append(parts)
        super().__init__(examples, tokenizer, single_token("\n", tokenizer), max_length)


@torch.no_grad()
def exact_matches(model, dataset, device, batch_size=32):
    """Say of each example whether greedy generation would give exactly its answer.

    No text is generated. The greedy answer is the right one just if, after each
    beginning of the right one, its next token is the most probable; and all of that
    is in one pass through the model.

    Args:
        model: a `GPTModel`.
        dataset: an `AnswerDataset` with one answer in each example.
        device: where the model is.
        batch_size: examples in a batch.

    Returns:
        A list of True and False.

    Built in notebook 07.
    """
    model.eval()
    loader = create_answer_loader(dataset, batch_size, shuffle=False)
    right = [False] * len(dataset)
    for batch, (inputs, targets) in zip(loader.batch_sampler, loader, strict=True):
        logits, counted = answer_logits(inputs, targets, model, device)
        wrong = torch.zeros_like(targets, dtype=torch.bool)  # (B, T)
        wrong[targets != -100] = (logits.argmax(dim=-1) != counted).to(wrong.device)
        for i, failed in zip(batch, wrong.any(dim=1).tolist(), strict=True):
            right[i] = not failed
    return right


@torch.no_grad()
def stream_ids(model, idx, max_new_tokens, cache=None, eos_id=None, **controls):
    """Yield new tokens one by one, as `generate` chooses them for one prompt.

    Args:
        model: a `GPTModel`; call `model.eval()` first.
        idx: `(1, T)` ids of the prompt.
        max_new_tokens: the most tokens to yield.
        cache: a `KVCache` that holds the beginning of `idx`, and is extended.
        eos_id: token that ends the text; it isn't yielded.
        controls: temperature, top_k, top_p; see `sample_token`.

    Raises:
        ValueError: `max_new_tokens` isn't a whole number from 1.

    Built in notebook 07.
    """
    check_whole(max_new_tokens=max_new_tokens)
    cache = KVCache() if cache is None else cache
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, model.cfg["context_length"], cache)
        idx_next = sample_token(logits, **controls)  # (1, 1)
        if idx_next.item() == eos_id:
            return
        yield idx_next.item()
        idx = torch.cat((idx, idx_next), dim=1)


class ChatHistory:
    """The turns of a conversation, kept within a model's window.

    A new message comes after all earlier turns, as long as they fit into the window
    together with it and an answer. When they don't, the oldest turns are dropped
    whole, and that is said.

    Args:
        tokenizer: the model's own.
        context_length: the model's window, in tokens.
        max_new_tokens: the most tokens of an answer.
        report: called with one line when turns are dropped; None for silence.

    Attributes:
        turns: pairs of message and answer, all of them.
        history: lists of ids, one for each turn that is kept.
        dropped: how many are not.
        cache: a `KVCache` for the tokens of `history`.

    Raises:
        ValueError: no room beside the answer.

    Built in notebook 07.
    """

    def __init__(self, tokenizer, context_length, max_new_tokens, report=print):
        check_whole(max_new_tokens=max_new_tokens)
        if max_new_tokens >= context_length:
            raise ValueError(
                f"got max_new_tokens={max_new_tokens}, expected 1 to "
                f"{context_length - 1}: less than the model's window"
            )
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        self.room, self.report = context_length - max_new_tokens, report
        self.newline = single_token("\n", tokenizer)
        self.clear()

    def clear(self):
        """Begin a new conversation."""
        self.turns, self.history, self.dropped = [], [], 0
        self.cache = KVCache()

    def encode(self, message):
        """Return the ids of a message in its template, up to where the answer begins.

        Raises:
            ValueError: it is empty, or too long for the window.
        """
        if not isinstance(message, str) or not message.strip():
            raise ValueError(f"got the message {message!r}, expected some text")
        text = f"User: {' '.join(message.split())}\nAssistant:"  # one line
        ids = self.tokenizer.encode_ordinary(text)
        if len(ids) > self.room:
            raise ValueError(
                f"got a message of {len(ids)} tokens, expected at most {self.room} "
                f"(the model's window without the answer): shorten it"
            )
        return ids

    def make_room(self, new):
        """Drop the oldest turns until `new` tokens fit, and say so."""
        gone = 0
        while sum(map(len, self.history)) + new > self.room:
            self.history.pop(0)
            gone += 1
        if gone:
            self.cache, self.dropped = KVCache(), self.dropped + gone
            turns = "1 old turn" if gone == 1 else f"{gone} old turns"
            if self.report:
                self.report(f"[{turns} dropped: the model's window is full]")


class Chat(ChatHistory):
    """A conversation with a model that was tuned on dialogues.

    What the model has read stays in a `KVCache`, so that only what is new is computed.

    Args:
        model: a `GPTModel`.
        tokenizer: its own.
        max_new_tokens: the most tokens of an answer.
        report: called with one line when turns are dropped, see `ChatHistory`.
        controls: temperature, top_k, top_p; see `sample_token`.

    Raises:
        ValueError: a control outside its range, or no room beside the answer.

    Built in notebook 07.
    """

    def __init__(self, model, tokenizer, max_new_tokens=60, report=print, **controls):
        limit = model.cfg["context_length"]
        super().__init__(tokenizer, limit, max_new_tokens, report)
        self.model, self.controls = model.eval(), controls
        sample_token(torch.zeros(1, 2), **controls)  # refuses bad ones at once

    def stream(self, message):
        """Return an iterator over the pieces of text of the answer, as they come.

        Args:
            message: what the user says. Line breaks become spaces.

        Raises:
            ValueError: it is empty, or too long for the window.
        """
        ids = self.encode(message)
        self.make_room(len(ids))
        return self.write(message, ids)

    def write(self, message, prompt):
        """Yield the answer piece by piece, and remember the turn."""
        idx = torch.tensor([[*chain(*self.history), *prompt]])  # (1, T)
        idx = idx.to(self.model.out_head.weight.device)
        options = {"cache": self.cache, **self.controls}
        written, text, shown = [], "", ""
        try:
            for token in stream_ids(self.model, idx, self.max_new_tokens, **options):
                piece = self.tokenizer.decode([token])
                if "\n" in piece or piece == END:
                    break
                written.append(token)
                text = self.tokenizer.decode(written).removeprefix(" ")
                if text != shown and not text.endswith("\ufffd"):  # half a character
                    yield text[len(shown) :]
                    shown = text
            if text != shown:
                yield text[len(shown) :]
        except BaseException:  # stopped half-way: the cache may be, too
            self.cache = KVCache()
            raise
        finally:
            self.turns.append((message, text))
            self.history.append([*prompt, *written, self.newline])

    def reply(self, message):
        """Return the whole answer to a message; see `stream`."""
        return "".join(self.stream(message))


def chat_html(turns, note=""):
    """Return a conversation as HTML, in which no message can be markup.

    Args:
        turns: pairs of message and answer.
        note: a line below them, such as a warning.

    Built in notebook 07.
    """
    style = "padding: 4px 10px; margin: 4px 0; border-radius: 8px; color: #1f2933"
    lines = []
    for message, answer in turns:
        for color, text in (("#dce9f3", message), ("#eef3e8", answer)):
            lines.append(
                f'<div style="{style}; background: {color}">{html.escape(text)}</div>'
            )
    return "".join(lines) + (f"<i>{html.escape(note)}</i>" if note else "")


def chat_panel(chat):
    """Return a panel for JupyterLab in which one can talk with a `Chat`.

    Args:
        chat: its `report` is changed, so that the panel shows what it says.

    Returns:
        An ipywidgets box: the conversation, a line to write in, two buttons.

    Built in notebook 07.
    """
    import ipywidgets as widgets

    log = widgets.HTML(chat_html(chat.turns))
    box = widgets.Text(placeholder="Write a message and press Enter")
    send, new = widgets.Button(description="Send"), widgets.Button(description="New")
    notes = []
    chat.report = notes.append

    def show(turns):
        log.value = chat_html(turns, " ".join(notes))

    def answer(*_):
        message, box.value, written = box.value, "", ""
        notes.clear()
        try:
            for piece in chat.stream(message):
                written += piece
                show([*chat.turns, (message, written)])
        except ValueError as error:
            notes.append(str(error))
        show(chat.turns)

    def begin(*_):
        chat.clear()
        notes.clear()
        show(chat.turns)

    send.on_click(answer)
    new.on_click(begin)
    box.on_msg(lambda _, event, __: event.get("event") == "submit" and answer())
    return widgets.VBox([log, widgets.HBox([box, send, new])])


# =====================================================================================
# From the first edition: what chapters 4 to 7 need until they are rewritten, and then
# goes. Chapters 1 to 3 use none of it.
# =====================================================================================


def check_whole(least: int = 1, **numbers) -> None:
    """Raise a ValueError that names the first argument that isn't a whole number.

    Args:
        least: the smallest number that will do.
        numbers: the arguments by name, as in `check_whole(num_epochs=num_epochs)`.
    """
    for name, value in numbers.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(
                f"got {name}={value!r}, expected a whole number from {least}"
            )


def _remove_left(folder: Path, pattern: str) -> None:
    """Remove temporary files that killed processes left: an hour without growing."""
    for left in folder.glob(pattern):
        with suppress(OSError):  # another process was quicker
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()


@contextmanager
def atomic_write(path: Path | str):
    """Give a temporary path that takes the name `path` only once it is written whole.

    `with atomic_write(path) as temporary:` write to `temporary` in the block. On an
    error, a full disk or a kill, what stood at `path` stays as it was. A kill leaves
    the temporary file: one that hasn't grown for an hour, so that nobody can still be
    writing it, is removed the next time.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent, f".{glob.escape(path.name)}.????????.tmp")
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_loaders(*loaders):
    """Raise a ValueError if one of some loaders has no batch.

    Built in notebook 04.
    """
    lengths = [len(one) if hasattr(one, "__len__") else None for one in loaders]
    if not all(lengths):
        raise ValueError(
            f"got loaders with {lengths} batches, expected at least 1 in each: take a "
            f"longer text or a smaller batch_size"
        )


def check_finite(loss, step):
    """Raise a FloatingPointError that names the step if the loss is not a number.

    Args:
        loss: a tensor with one number.
        step: number of the step, from 0.

    Built in notebook 04.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss.item()} at step {step}: training has stopped, and "
            f"checkpoints keep what they held. Try a lower learning rate or clipping"
        )


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for its next tensors.

    The C library of most Linuxes, glibc, hands large blocks back to the system at once
    and asks for new ones, whose pages have to be cleared before use. `mallopt` sets
    `M_MMAP_MAX` (-4) to 0 and switches `M_TRIM_THRESHOLD` (-1) off, so that it doesn't.

    Returns:
        Whether that was possible: False elsewhere, where nothing is changed.

    Source: the manual page mallopt(3). Built in notebook 04.
    """
    try:
        c_library = ctypes.CDLL("libc.so.6")
        return bool(c_library.mallopt(-4, 0) and c_library.mallopt(-1, -1))
    except (OSError, AttributeError):
        return False
