"""Everything that the seven notebooks build, one section a chapter.

    Opening   devices, seeds, data files, plot style
    1         tokenizers and data loaders
    2         attention
    3         the GPT architecture
    4         pretraining and generation

Each definition is built and explained in the notebook that its docstring names;
here it stands once more for the chapters after it, with its full documentation.

Shapes are written with these letters: `B` batch, `T` tokens, `C` embedding width,
`H` heads, `D` width of one head (`C = H * D`), `V` vocabulary.
"""

import base64
import hashlib
import heapq
import json
import math
import os
import random
import re
import shutil
import zipfile
from collections import Counter, defaultdict
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pooch
import regex
import tiktoken
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

# =====================================================================================
# Opening: devices, seeds, data files, plot style
# =====================================================================================

DATA = Path(__file__).resolve().parent / "data"
DOWNLOADS = DATA / "downloads"
RUNS = DATA / "runs"

mpl.rcParams.update(
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


def pick_device() -> torch.device:
    """Return the fastest device that PyTorch finds here: CUDA, then MPS, then CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def set_seed(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (every device) with `seed`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class DataFile(NamedTuple):
    """A public file: addresses in order, size in bytes, SHA-256, stand-in, member.

    `sample` names the file in `data/` that takes its place where it can't be had;
    `member` the one file wanted out of it, where it is a zip archive.
    """

    urls: tuple[str, ...]
    size: int
    sha256: str
    sample: str | None = None
    member: str | None = None


_BOOK = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"
FILES = {
    "the-verdict.txt": DataFile(
        (f"{_BOOK}/ch02/01_main-chapter-code/the-verdict.txt",),
        20_479,
        "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        sample="the-ferryman.txt",
    ),
    "SMSSpamCollection": DataFile(
        ("https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",),
        203_415,
        "1587ea43e58e82b14ff1f5425c88e17f8496bfcdb67a583dbff9eefaf9963ce3",
        member="SMSSpamCollection",
    ),
    "instruction-data.json": DataFile(
        (f"{_BOOK}/ch07/01_main-chapter-code/instruction-data.json",),
        203_524,
        "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
    ),
}
_MEMBER_LIMIT = 64 * 2**20  # no archive of the course unpacks to more than this
_said = set()


def fetch(name: str) -> Path:
    """Return the path of a data file, from the first source that has it whole.

    The sources, in order: `data/downloads/`; the folder or address in the environment
    variable `COURSE_MIRROR`; the public addresses; the sample embedded in `data/`
    (said in one line, once). With `COURSE_OFFLINE=1` the sample is taken at once. A
    file whose size or SHA-256 is wrong is discarded, with a line that says so.

    Args:
        name: a key of `FILES`, such as `"the-verdict.txt"`.

    Returns:
        The path of a complete file.

    Raises:
        ValueError: the course knows no file of that name.
        FileNotFoundError: no source has it, and the course carries no sample of it.
    """
    if name not in FILES:
        raise ValueError(f"got the name {name!r}, expected one of {sorted(FILES)}")
    file = FILES[name]
    if os.environ.get("COURSE_OFFLINE") == "1":
        return _sample(name, "COURSE_OFFLINE=1 is set")
    file_name = file.urls[0].rsplit("/", 1)[1]
    mirror = os.environ.get("COURSE_MIRROR", "")
    is_address = mirror.startswith(("http://", "https://"))
    folders = [DOWNLOADS] + ([Path(mirror)] if mirror and not is_address else [])
    urls = ((f"{mirror.rstrip('/')}/{file_name}",) if is_address else ()) + file.urls
    sources = [lambda f=f: _find(f / file_name, file) for f in folders]
    sources += [lambda u=u: _download(u, file_name, file) for u in urls]
    for source in sources:
        try:
            path = source()
            if path is not None:
                return _unpack(path, file.member) if file.member else path
        except OSError as error:  # no permission, or no space to unpack
            reason = error.strerror or type(error).__name__
            _say_once(f"{file_name}: {reason}; trying the next source.")
    return _sample(name, "no source has it")


def _say_once(line: str) -> None:
    """Print `line` the first time that this process has to say it."""
    if line not in _said:
        _said.add(line)
        print(line)


def _sample(name: str, why: str) -> Path:
    """Return the embedded stand-in for `name`, saying `why` it is used."""
    if FILES[name].sample is None:
        raise FileNotFoundError(
            f"{name} can't be had ({why}) and the course carries no sample of it: "
            f"connect to a network, or set COURSE_MIRROR to a folder that holds "
            f"{FILES[name].urls[0].rsplit('/', 1)[1]}"
        )
    _say_once(f"{name}: {why}, so the course's own data/{FILES[name].sample} is used.")
    return DATA / FILES[name].sample


def _fault(path: Path, file: DataFile) -> str | None:
    """Say what is wrong with the file at `path`; None if it is `file` to the byte."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(512).lower()
    if size != file.size:
        is_page = b"<html" in head or b"<!doctype html" in head
        kind = "an HTML page of " if is_page else ""
        return f"got {kind}{size:,} bytes, expected {file.size:,}"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file.sha256:
        return f"got SHA-256 {digest[:12]}..., expected {file.sha256[:12]}..."
    return None


def _find(path: Path, file: DataFile) -> Path | None:
    """Return `path` if it holds `file`; a broken copy in data/downloads is removed."""
    if not path.is_file():
        return None
    fault = _fault(path, file)
    if fault is None:
        return path
    _say_once(f"{path.name} in {path.parent.name}/: {fault}; trying the next source.")
    if path.parent == DOWNLOADS:
        path.unlink(missing_ok=True)
    return None


def _download(url: str, file_name: str, file: DataFile) -> Path | None:
    """Download `url` to `data/downloads/` whole or not at all; None if that failed."""

    def get(url, output_file, registry):
        pooch.HTTPDownloader(progressbar=True, timeout=(5, 30))(
            url, output_file, registry
        )
        fault = _fault(Path(output_file), file)
        if fault is not None:
            raise ValueError(fault)

    pooch.get_logger().setLevel("WARNING")
    store = pooch.create(
        DOWNLOADS,
        base_url="",
        registry={file_name: f"sha256:{file.sha256}"},
        urls={file_name: url},
        retry_if_failed=1,
    )
    try:
        return Path(store.fetch(file_name, downloader=get))
    except (OSError, ValueError) as error:  # requests' own errors are OSErrors
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        _say_once(f"{file_name} from {url}: {reason}; trying the next source.")
        return None


def _unpack(archive: Path, member: str) -> Path:
    """Unpack one `member` of a zip file into `data/downloads/`, whole or not at all."""
    target = DOWNLOADS / Path(member).name
    with zipfile.ZipFile(archive) as zipped:
        if member not in zipped.namelist():
            raise ValueError(
                f"{archive.name} holds {zipped.namelist()}, not {member!r}"
            )
        if zipped.getinfo(member).file_size > _MEMBER_LIMIT:
            raise ValueError(
                f"{archive.name}: {member} is larger than any of our files"
            )
        with zipped.open(member) as source, atomic_write(target) as temporary:
            with open(temporary, "wb") as sink:
                shutil.copyfileobj(source, sink)
    return target


@contextmanager
def atomic_write(path: Path | str):
    """Give a temporary path that takes the name `path` only once it is written whole.

    `with atomic_write(path) as temporary:` write to `temporary` in the block. On an
    error, a full disk or a kill, what stood at `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_text(source: str | Path) -> str:
    """Return the text of a data file of the course, or of any UTF-8 file of yours.

    Args:
        source: a name that `fetch` knows, or a path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file isn't UTF-8, or holds nothing.
    """
    path = fetch(source) if source in FILES else Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"got {str(source)!r}, expected one of {sorted(FILES)} or the path of a "
            f"text file (a relative path starts at {Path.cwd().name}/)"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} isn't UTF-8: byte {error.start:,} is "
            f"0x{error.object[error.start]:02x}. Save the file as UTF-8 and load it "
            f"again"
        ) from error
    if not text.strip():
        raise ValueError(f"{path.name} holds no text")
    return text


# =====================================================================================
# Chapter 1: tokenizers and data loaders
# =====================================================================================


class SimpleTokenizerV1:
    """Split at spaces and punctuation; look each piece up in a fixed vocabulary.

    Args:
        vocab: dictionary from token to id.

    Built in notebook 01.
    """

    def __init__(self, vocab: dict[str, int]):
        self.str_to_int = vocab
        self.int_to_str = {i: token for token, i in vocab.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; a KeyError for a word outside the vocabulary."""
        pieces = re.split(r'([,.:;?_!"()\']|--|\s)', text)
        return [self.str_to_int[piece.strip()] for piece in pieces if piece.strip()]

    def decode(self, ids: list[int]) -> str:
        """Join the tokens of `ids` with spaces, none before punctuation."""
        text = " ".join(self.int_to_str[i] for i in ids)
        return re.sub(r'\s+([,.:;?!"()\'])', r"\1", text)


class SimpleTokenizerV2(SimpleTokenizerV1):
    """SimpleTokenizerV1 that writes `<|unk|>` for a word outside the vocabulary.

    Args:
        vocab: dictionary from token to id, `"<|unk|>"` among its keys.

    Built in notebook 01.
    """

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, that of `<|unk|>` for every unknown piece."""
        unknown = self.str_to_int["<|unk|>"]
        pieces = re.split(r'([,.:;?_!"()\']|--|\s)', text)
        pieces = [piece.strip() for piece in pieces if piece.strip()]
        return [self.str_to_int.get(piece, unknown) for piece in pieces]


GPT2_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
)


def bytes_to_unicode() -> dict[int, str]:
    """Return the printable character that GPT-2's files write for each byte.

    Bytes that print keep their own character; the other 68 get the characters from
    code point 256 on, in order. GPT-2 also numbers its first 256 tokens in the order
    of this dictionary.

    Returns:
        256 entries from byte to character.

    Source: OpenAI's GPT-2 release, `encoder.py`. Built in notebook 01.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def merge_pair(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    """Return `word` with each occurrence of `pair`, from the left, joined into one.

    Args:
        word: tokens of one piece of text.
        pair: two tokens.

    Built in notebook 01.
    """
    merged, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


class PairCounts:
    """How often each pair of neighbours occurs, kept up to date as pairs are merged.

    A merge changes only the words that contain the pair, so the counts are corrected
    there and never taken again. The most frequent pair comes from a heap; an entry
    whose count has changed since it was pushed is passed over when it comes up.

    Args:
        words: dictionary from a piece of text, as bytes, to its count.

    Built in notebook 01.
    """

    def __init__(self, words: dict[bytes, int]):
        self.counts = list(words.values())
        self.words = [[word[i : i + 1] for i in range(len(word))] for word in words]
        self.pairs, self.where = Counter(), defaultdict(set)
        for index in range(len(self.words)):
            self.add(index, +1)
        self.heap = [self.entry(pair) for pair in self.pairs]
        heapq.heapify(self.heap)

    def add(self, index: int, sign: int) -> set:
        """Count the pairs of one word in (`sign` +1) or out (-1); return them."""
        word = self.words[index]
        pairs = list(pairwise(word))
        for pair in pairs:
            self.pairs[pair] += sign * self.counts[index]
            if sign > 0:
                self.where[pair].add(index)
        return set(pairs)

    def entry(self, pair: tuple[bytes, bytes]) -> tuple:
        """Return the heap's entry: greatest count first, then the greater bytes."""
        backwards = tuple((*(255 - byte for byte in token), 256) for token in pair)
        return (-self.pairs[pair], backwards, pair)

    def most_frequent(self) -> tuple[bytes, bytes] | None:
        """Return the most frequent pair, the greater one of equals; None if none is."""
        while self.heap:
            count, _, pair = heapq.heappop(self.heap)
            if count < 0 and -count == self.pairs[pair]:
                return pair
        return None

    def merge(self, pair: tuple[bytes, bytes]) -> None:
        """Join `pair` wherever it stands, and correct the counts around it."""
        changed = set()
        for index in self.where.pop(pair):
            changed |= self.add(index, -1)
            self.words[index] = merge_pair(self.words[index], pair)
            changed |= self.add(index, +1)
        for other in changed:
            if self.pairs[other] > 0:
                heapq.heappush(self.heap, self.entry(other))


def encode_piece(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Encode one piece of text: always join the pair whose token has the lowest id.

    Of equal pairs the leftmost goes first. A heap holds the candidates, so a piece of
    n bytes takes n log n steps, however long it is.

    Args:
        piece: bytes of one piece (a word with its space, a number, ...).
        ranks: dictionary from token to id, all 256 single bytes among them.

    Built in notebook 01.
    """
    n = len(piece)
    parts = [piece[i : i + 1] for i in range(n)]  # None once joined to its left
    left, right = list(range(-1, n - 1)), list(range(1, n + 1))
    heap = []

    def push(i):
        if i >= 0 and right[i] < n:
            rank = ranks.get(parts[i] + parts[right[i]])
            if rank is not None:
                heapq.heappush(heap, (rank, i, right[i], parts[i]))

    for i in range(n):
        push(i)
    while heap:
        rank, i, j, part = heapq.heappop(heap)
        if parts[i] != part or right[i] != j or ranks.get(part + parts[j]) != rank:
            continue  # one of the two has been joined to another since
        parts[i], parts[j], right[i] = part + parts[j], None, right[j]
        if right[i] < n:
            left[right[i]] = i
        push(left[i])
        push(i)
    return [ranks[part] for part in parts if part is not None]


def cut_at_spaces(pieces):
    """Join pieces of a text and cut them again where no token can span the cut.

    Only before white space that follows something else: GPT-2's pattern never joins
    the two. So a file can be encoded a part at a time, with the same result.

    Args:
        pieces: iterable of strings (an open file gives its lines).

    Returns:
        An iterator over strings that join to the same text.

    Built in notebook 01.
    """
    boundary = regex.compile(r"(?<=\S)(?=\s)")
    rest = ""
    for piece in pieces:
        rest += piece
        old = len(rest) - len(piece)  # what came before was searched already
        cuts = [match.start() for match in boundary.finditer(rest, old)]
        if cuts:
            yield rest[: cuts[-1]]
            rest = rest[cuts[-1] :]
    yield rest


def split_special(text: str, special_tokens) -> list[str]:
    """Split a text into ordinary text (even places) and special tokens (odd places).

    Built in notebook 01.
    """
    if not special_tokens:
        return [text]
    longest_first = sorted(special_tokens, key=len, reverse=True)
    return regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)


def count_words(texts, special_tokens=()) -> dict[bytes, int]:
    """Count the pieces that GPT-2's pattern makes of some texts.

    Args:
        texts: iterable of strings.
        special_tokens: strings that are left out.

    Returns:
        Dictionary from piece, as bytes, to its count, in order of first appearance.

    Built in notebook 01.
    """
    words = Counter()
    for text in texts:
        for ordinary in split_special(text, special_tokens)[::2]:
            words.update(regex.findall(GPT2_PATTERN, ordinary))
    return {word.encode("utf-8"): count for word, count in words.items()}


def write_bpe_files(folder, merges, ranks, special_tokens) -> None:
    """Write a tokenizer as the two files of OpenAI's GPT-2 folders.

    Args:
        folder: where `vocab.bpe` (the merges) and `encoder.json` (the ids) go.
        merges, ranks, special_tokens: see `BPETokenizer`.

    Built in notebook 01.
    """
    table = bytes_to_unicode()
    text_of = {token: "".join(table[byte] for byte in token) for token in ranks}
    lines = [f"{text_of[a]} {text_of[b]}\n" for a, b in merges]
    vocab = {text_of[token]: i for token, i in ranks.items()} | special_tokens
    contents = {
        "vocab.bpe": "#version: 0.2\n" + "".join(lines),
        "encoder.json": json.dumps(vocab),
    }
    for name, content in contents.items():
        with atomic_write(Path(folder) / name) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n")


def read_bpe_files(folder):
    """Read `vocab.bpe` and `encoder.json`, and check that they fit each other.

    Returns:
        (merges, special tokens), as `BPETokenizer` takes them.

    Raises:
        FileNotFoundError: one of the two is missing.
        ValueError: one of them is damaged, or they don't belong together.

    Built in notebook 01.
    """
    files = [Path(folder) / name for name in ("vocab.bpe", "encoder.json")]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {missing}, expected both files there")
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    to_bytes = lambda text: bytes(byte_of[char] for char in text)  # noqa: E731
    try:
        merges_text, vocab_text = (file.read_text(encoding="utf-8") for file in files)
        lines = merges_text.rstrip("\n").split("\n")[1:]
        merges = [(to_bytes(a), to_bytes(b)) for a, b in map(str.split, lines)]
        vocab = json.loads(vocab_text)
        tokens = sorted(vocab, key=vocab.get)
        n = 256 + len(merges)
        ranks = {to_bytes(token): vocab[token] for token in tokens[:n]}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: a damaged vocab.bpe or encoder.json") from error
    same_ids = sorted(vocab.values()) == list(range(len(vocab)))
    cut_short = any(  # the first special token is two tokens: its merge is missing
        {token[:i], token[i:]} <= vocab.keys()
        for token in tokens[n : n + 1]
        for i in range(1, len(token))
    )
    if not same_ids or cut_short or BPETokenizer(merges).ranks != ranks:
        raise ValueError(
            f"{folder}: the {len(merges):,} merges of vocab.bpe don't give the "
            f"{len(vocab):,} ids of encoder.json: take both files from one model"
        )
    return merges, tokens[n:]


class BPETokenizer:
    """Byte-level byte-pair encoding with GPT-2's splitting pattern and file format.

    A new tokenizer knows the 256 bytes; `train` or `load` give it longer tokens. Any
    text can be encoded, and `decode` gives it back exactly.

    Attributes:
        ranks: dictionary from token (bytes) to id; a lower id is joined earlier.
        merges: the pairs of tokens that training joined, in order.
        special_tokens: dictionary from text to id.

    Source: Sennrich et al. 2016 (arXiv:1508.07909); Radford et al. 2019 (GPT-2).
    Built in notebook 01.
    """

    def __init__(self, merges=(), special_tokens=()):
        if isinstance(special_tokens, str) or len(set(special_tokens)) < len(
            special_tokens
        ):
            raise ValueError(f"got {special_tokens!r}, expected a list without repeats")
        for token in special_tokens:
            if len(token) < 2 or regex.search(r"\s", token):
                raise ValueError(
                    f"got the special token {token!r}, expected 2 or more characters "
                    f"and no spaces"
                )
        self.merges = list(merges)
        tokens = [bytes([b]) for b in bytes_to_unicode()] + [a + b for a, b in merges]
        self.ranks = {token: i for i, token in enumerate(tokens)}
        n = len(self.ranks)
        self.special_tokens = {token: n + i for i, token in enumerate(special_tokens)}
        self.n_vocab = n + len(self.special_tokens)
        self.tokens = {i: token for token, i in self.ranks.items()}
        self.tokens |= {i: t.encode("utf-8") for t, i in self.special_tokens.items()}
        self.ids_of = lru_cache(2**16)(
            lambda piece: encode_piece(piece.encode("utf-8"), self.ranks)
        )

    def train(self, text_or_path, vocab_size: int, special_tokens=()):
        """Learn the merges from a text (`str`) or a UTF-8 file (`Path`).

        Args:
            text_or_path: the text, or the path of a file that is read in parts.
            vocab_size: entries wanted: 256 bytes, merges and special tokens.
            special_tokens: strings that stay whole and are never trained on.

        Returns:
            The tokenizer itself. It has fewer entries if no pairs are left to join.
        """
        BPETokenizer((), special_tokens)  # refuses a bad one before the work begins
        n_merges = vocab_size - 256 - len(special_tokens)
        if n_merges < 0:
            raise ValueError(
                f"got vocab_size={vocab_size}, expected at least "
                f"{256 + len(special_tokens)}: 256 bytes and the special tokens"
            )
        if isinstance(text_or_path, Path):
            with text_or_path.open(encoding="utf-8", newline="") as lines:
                words = count_words(cut_at_spaces(lines), special_tokens)
        else:
            words = count_words([text_or_path], special_tokens)
        counts = PairCounts(words)
        merges = {}  # from token to the pair that made it first
        while len(merges) < n_merges and (pair := counts.most_frequent()):
            merges.setdefault(pair[0] + pair[1], pair)
            counts.merge(pair)
        self.__init__(merges.values(), special_tokens)
        return self

    def encode(self, text: str, allowed_special=(), disallowed_special="all"):
        """Return the ids of `text`.

        Args:
            text: any string; half of a surrogate pair becomes U+FFFD.
            allowed_special: the special tokens that the text may use, or `"all"`.
            disallowed_special: those that raise a ValueError if the text contains
                them; by default all that aren't allowed. With `()` the text of a
                special token is encoded as ordinary text.
        """
        allowed, special = set(allowed_special), set(self.special_tokens)
        allowed = special if allowed_special == "all" else allowed & special
        all_others = disallowed_special == "all"
        banned = special - allowed if all_others else set(disallowed_special)
        found = split_special(text, banned)[1:2]
        if found:
            raise ValueError(
                f"the text contains the special token {found[0]!r}: pass "
                f"allowed_special={{{found[0]!r}}} to use it as one, or "
                f"disallowed_special=() to encode it as ordinary text"
            )
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids = []
        for i, part in enumerate(split_special(text, allowed)):
            if i % 2 == 1:
                ids.append(self.special_tokens[part])
                continue
            for piece in regex.findall(GPT2_PATTERN, part):
                ids.extend(self.ids_of(piece))
        return ids

    def encode_iterable(self, pieces, allowed_special=(), disallowed_special="all"):
        """Yield the ids of a text that comes in pieces, such as an open file."""
        for text in cut_at_spaces(pieces):
            yield from self.encode(text, allowed_special, disallowed_special)

    def decode(self, ids) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        try:
            tokens = [self.tokens[int(i)] for i in ids]
        except KeyError as error:
            raise ValueError(
                f"got the token id {error.args[0]}, expected 0 to {self.n_vocab - 1}"
            ) from None
        return b"".join(tokens).decode("utf-8", errors="replace")

    def save(self, folder) -> None:
        """Write `vocab.bpe` and `encoder.json` as OpenAI's GPT-2 folders hold them."""
        write_bpe_files(folder, self.merges, self.ranks, self.special_tokens)

    @classmethod
    def load(cls, folder):
        """Return the tokenizer of a folder; see `read_bpe_files` for its errors."""
        return cls(*read_bpe_files(folder))

    def to_tiktoken(self, name: str = "course"):
        """Return the `tiktoken.Encoding` with the same tokens and ids."""
        return tiktoken.Encoding(
            name,
            pat_str=GPT2_PATTERN,
            mergeable_ranks=self.ranks,
            special_tokens=self.special_tokens,
        )


@lru_cache
def get_tokenizer(name: str = "gpt2") -> tiktoken.Encoding:
    """Return a tokenizer as a `tiktoken.Encoding`, without a download.

    Args:
        name: `"gpt2"` (built from `data/gpt2.tiktoken`), or the path of a folder that
            holds the `vocab.bpe` and `encoder.json` of a model.

    Built in notebook 01.
    """
    if name != "gpt2":
        return BPETokenizer.load(name).to_tiktoken(Path(name).name)
    lines = (DATA / "gpt2.tiktoken").read_bytes().splitlines()
    pairs = (line.split() for line in lines)
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": len(ranks)},
    )


class GPTDatasetV1(Dataset):
    """Windows of a text: `max_length` tokens in, the same window one token later out.

    Args:
        txt: the text; it may use `<|endoftext|>`.
        tokenizer: any object with tiktoken's `encode`.
        max_length: tokens in a window.
        stride: tokens from the start of one window to the start of the next.

    Items are pairs of `(max_length,)` tensors of ids.

    Raises:
        ValueError: `max_length` or `stride` under 1, or a text with too few tokens.

    Built in notebook 01.
    """

    def __init__(self, txt, tokenizer, max_length, stride):
        for name, value in (("max_length", max_length), ("stride", stride)):
            if value < 1:
                raise ValueError(f"got {name}={value}, expected 1 or more")
        ids = tokenizer.encode(txt, allowed_special={"<|endoftext|>"})
        if len(ids) <= max_length:
            raise ValueError(
                f"the text has {len(ids)} tokens, expected more than max_length="
                f"{max_length}: take a longer text or a smaller max_length"
            )
        self.token_ids = torch.tensor(ids)
        self.max_length = max_length
        self.starts = range(0, len(ids) - max_length, stride)

    def __len__(self):
        return len(self.starts)

    def __getitem__(self, index):
        window = self.token_ids[self.starts[index] :][: self.max_length + 1]
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
    """Return a DataLoader over the windows of a text.

    Args:
        txt: the text.
        batch_size: windows in a batch.
        max_length, stride: see `GPTDatasetV1`.
        shuffle: draw the windows in random order.
        drop_last: leave out a last batch that isn't full.
        num_workers: processes that load batches; 0 works everywhere.
        tokenizer: GPT-2's, unless another is given.

    Returns:
        Batches `(inputs, targets)` of ids, both `(batch_size, max_length)`.

    Raises:
        ValueError: a text too short for one batch, or a size under 1.

    Built in notebook 01.
    """
    if batch_size < 1:
        raise ValueError(f"got batch_size={batch_size}, expected 1 or more")
    dataset = GPTDatasetV1(txt, tokenizer or get_tokenizer(), max_length, stride)
    if drop_last and len(dataset) < batch_size:
        raise ValueError(
            f"the text gives {len(dataset)} windows, expected at least batch_size="
            f"{batch_size}: take a longer text, a smaller batch_size or "
            f"drop_last=False"
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
    """Keys and values of the tokens that a model has already read.

    A later token can't change them, so generation computes those of the new tokens
    only. The buffers double when they are full; a token is copied once or twice, not
    once a step.

    Built in notebook 02.
    """

    def __init__(self):
        self.layers = {}  # layer -> (keys, values, tokens in use)

    def length(self, layer: int = 0) -> int:
        """Return how many tokens a layer has stored."""
        return self.layers[layer][2] if layer in self.layers else 0

    def clear(self) -> None:
        """Forget every token."""
        self.layers.clear()

    def update(self, keys, values, layer: int = 0):
        """Store the keys and values of new tokens; return those of all tokens.

        Args:
            keys, values: `(B, H, T, D)`, T new tokens.
            layer: the layer that they belong to.

        Returns:
            keys and values, `(B, H, S, D)`, of all S tokens so far.

        Raises:
            ValueError: the batch or heads differ from those stored.
        """
        (B, H, T, D), used = keys.shape, self.length(layer)
        if used == 0:
            self.layers[layer] = (keys, values, T)
            return keys, values
        stored_keys, stored_values, _ = self.layers[layer]
        if stored_keys.shape[:2] != (B, H) or stored_keys.shape[3] != D:
            raise ValueError(
                f"got keys for a batch of {B} with {H} heads of width {D}, expected "
                f"{tuple(stored_keys.shape)} as stored: use a new KVCache for a new "
                f"batch or model"
            )
        if used + T > stored_keys.shape[2]:
            room = keys.new_empty(B, H, used + 2 * T + 30, D)  # (B, H, room, D)
            stored_keys = torch.cat((stored_keys[:, :, :used], room), dim=2)
            stored_values = torch.cat((stored_values[:, :, :used], room), dim=2)
        stored_keys[:, :, used : used + T] = keys
        stored_values[:, :, used : used + T] = values
        self.layers[layer] = (stored_keys, stored_values, used + T)
        return stored_keys[:, :, : used + T], stored_values[:, :, : used + T]


class Linear(nn.Linear):
    """`torch.nn.Linear` that reads its weights with every core for one to four tokens.

    For so few rows the CPU's matrix product runs in one thread, and the time is that
    of reading the weights. Cut into equal blocks of rows, the same product becomes a
    batch of small ones that the threads share.

    Args:
        in_features, out_features, bias: as in `torch.nn.Linear`.

    Built in notebook 02.
    """

    def forward(self, x):
        """Map `(..., in_features)` to `(..., out_features)`."""
        n_out, n_in = self.weight.shape
        rows = x.numel() // n_in
        if rows > 4 or rows == 0 or x.device.type != "cpu" or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        blocks = max(n for n in range(1, 33) if n_out % n == 0)
        weight = self.weight.view(blocks, -1, n_in)
        columns = x.reshape(rows, n_in).t().expand(blocks, -1, -1)
        y = torch.bmm(weight, columns).reshape(n_out, rows).t()  # (rows, n_out)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], n_out)


class MultiHeadAttention(nn.Module):
    """Causal self-attention in several heads, with an optional cache.

    Args:
        d_in: width of the input.
        d_out: width of the output, all heads together.
        context_length: the most tokens that it may see at once.
        dropout: share of the attention weights that training sets to zero.
        num_heads: heads; `d_out` is a multiple of it.
        qkv_bias: whether the three projections have a bias.

    Raises:
        ValueError: `d_out` isn't divisible by `num_heads`.

    Source: Vaswani et al. 2017 (arXiv:1706.03762). Built in notebook 02.
    """

    def __init__(self, d_in, d_out, context_length, dropout, num_heads, qkv_bias=False):
        super().__init__()
        if num_heads < 1 or d_out % num_heads != 0:
            raise ValueError(
                f"got d_out={d_out} and num_heads={num_heads}, expected d_out to be "
                f"divisible by num_heads"
            )
        self.context_length = context_length
        self.num_heads = num_heads
        self.head_dim = d_out // num_heads
        self.W_query = Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, cache=None, layer=0):
        """Let each token gather from itself and the tokens before it.

        Args:
            x: `(B, T, d_in)`; with a cache, only the tokens that it doesn't hold.
            cache: a `KVCache`, which is extended by the T tokens.
            layer: this layer's place in the cache.

        Returns:
            `(B, T, d_out)`.

        Raises:
            ValueError: more tokens than `context_length`.
        """
        B, T, _ = x.shape
        S = T + (cache.length(layer) if cache is not None else 0)
        if S > self.context_length:
            raise ValueError(
                f"got a sequence of {S} tokens, expected at most context_length="
                f"{self.context_length}: cut it, or build the model for more"
            )
        shape = (B, T, self.num_heads, self.head_dim)
        queries = self.W_query(x).view(shape).transpose(1, 2)  # (B, H, T, D)
        keys = self.W_key(x).view(shape).transpose(1, 2)  # (B, H, T, D)
        values = self.W_value(x).view(shape).transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            keys, values = cache.update(keys, values, layer)  # (B, H, S, D)
        mask = None
        if 1 < T < S:  # several new tokens after stored ones: see those before oneself
            mask = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        context = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=T == S,
        )  # (B, H, T, D)
        return self.out_proj(context.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


# =====================================================================================
# Chapter 3: the GPT architecture
# =====================================================================================

GPT_CONFIG_124M = {
    "vocab_size": 50257,  # entries of the tokenizer
    "context_length": 1024,  # tokens that the model can see at once
    "emb_dim": 768,  # width of a token's vector
    "n_heads": 12,  # attention heads in a block
    "n_layers": 12,  # transformer blocks
    "drop_rate": 0.1,  # share of values that dropout sets to zero
    "qkv_bias": False,  # bias in the query, key and value projections
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


def check_config(cfg: dict) -> None:
    """Raise a ValueError that names the key if `cfg` doesn't describe a model.

    Args:
        cfg: a dictionary with the keys of `GPT_CONFIG_124M`, and perhaps
            `tie_weights`.

    Built in notebook 03.
    """
    unknown = [key for key in cfg if key not in (*GPT_CONFIG_124M, "tie_weights")]
    missing = [key for key in GPT_CONFIG_124M if key not in cfg]
    if unknown or missing:
        raise ValueError(
            f"got a configuration with unknown keys {unknown} and without {missing}, "
            f"expected {[*GPT_CONFIG_124M]} and optionally 'tie_weights'"
        )
    for key in ("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"):
        if isinstance(cfg[key], bool) or not isinstance(cfg[key], int) or cfg[key] < 1:
            raise ValueError(f"got {key}={cfg[key]!r}, expected a whole number from 1")
    if type(cfg["drop_rate"]) not in (int, float) or not 0 <= cfg["drop_rate"] < 1:
        raise ValueError(f"got drop_rate={cfg['drop_rate']!r}, expected 0 to under 1")
    for key in ("qkv_bias", "tie_weights"):
        if not isinstance(cfg.get(key, False), bool):
            raise ValueError(f"got {key}={cfg[key]!r}, expected True or False")
    if cfg["emb_dim"] % cfg["n_heads"] != 0:
        raise ValueError(
            f"got emb_dim={cfg['emb_dim']} and n_heads={cfg['n_heads']}, expected "
            f"emb_dim to be divisible by n_heads"
        )


class LayerNorm(nn.Module):
    """Bring each token's vector to mean 0 and variance 1, then scale and shift it.

    Args:
        emb_dim: width of the vectors.

    Source: Ba et al. 2016 (arXiv:1607.06450). Built in notebook 03.
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

    Source: Hendrycks and Gimpel 2016 (arXiv:1606.08415). Built in notebook 03.
    """

    def forward(self, x):
        """Apply it to each element of `x`."""
        return F.gelu(x, approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them: each token's vector on its own.

    Args:
        cfg: configuration of the model; its `emb_dim` C is widened to 4 C and back.

    Built in notebook 03.
    """

    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.Sequential(
            Linear(cfg["emb_dim"], 4 * cfg["emb_dim"]),
            GELU(),
            Linear(4 * cfg["emb_dim"], cfg["emb_dim"]),
        )

    def forward(self, x):
        """Map `(B, T, C)` to `(B, T, C)`."""
        return self.layers(x)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each normalised before and added to its input.

    Args:
        cfg: configuration of the model.

    Source: Radford et al. 2019 (GPT-2). Built in notebook 03.
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
        """Map `(B, T, C)` to `(B, T, C)`; cache and layer as in MultiHeadAttention."""
        x = x + self.drop_shortcut(self.att(self.norm1(x), cache, layer))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class GPTModel(nn.Module):
    """A GPT-2 style language model.

    Args:
        cfg: a configuration such as `GPT_CONFIG_124M`; with `tie_weights` the output
            head uses the weights of the token embedding.

    Raises:
        ValueError: a wrong configuration, by `check_config`.

    Source: Radford et al. 2019 (GPT-2). Built in notebook 03.
    """

    def __init__(self, cfg):
        super().__init__()
        check_config(cfg)
        self.cfg = dict(cfg)
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(
            *[TransformerBlock(cfg) for _ in range(cfg["n_layers"])]
        )
        self.final_norm = LayerNorm(cfg["emb_dim"])
        self.out_head = Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        if cfg.get("tie_weights", False):
            self.out_head.weight = self.tok_emb.weight

    def features(self, in_idx, cache=None):
        """Return what the output head reads: `(B, T)` ids to `(B, T, C)` vectors.

        Raises:
            ValueError: ids outside the vocabulary, or too many tokens.
        """
        T, past = in_idx.shape[1], 0 if cache is None else cache.length()
        limit = self.cfg["context_length"]
        if T < 1 or past + T > limit:
            raise ValueError(
                f"got a sequence of {past + T} tokens, expected 1 to context_length="
                f"{limit}: cut it, or build the model for more"
            )
        low, high = in_idx.aminmax()
        if low < 0 or high >= self.cfg["vocab_size"]:
            raise ValueError(
                f"got token ids from {low} to {high}, expected 0 to "
                f"{self.cfg['vocab_size'] - 1}: was the text encoded for this model?"
            )
        positions = torch.arange(past, past + T, device=in_idx.device)  # (T)
        x = self.drop_emb(self.tok_emb(in_idx) + self.pos_emb(positions))  # (B, T, C)
        for layer, block in enumerate(self.trf_blocks):
            x = block(x, cache, layer)
        return self.final_norm(x)

    def forward(self, in_idx, cache=None):
        """Return the scores of every possible next token.

        Args:
            in_idx: `(B, T)` ids; with a cache, only those that it doesn't hold.
            cache: a `KVCache`, which is extended by the T tokens.

        Returns:
            Logits, `(B, T, V)`.

        Raises:
            ValueError: ids outside the vocabulary, or too many tokens.
        """
        return self.out_head(self.features(in_idx, cache))


def next_token_logits(model, idx, context_size, cache):
    """Return the logits of the token after `idx`, feeding only what the cache lacks.

    Beyond `context_size` tokens every position moves by one with each step, and the
    stored keys with it: the cache is emptied and the last window read again.

    Args:
        model: a `GPTModel`.
        idx: `(B, T)` ids of the whole sequence so far.
        context_size: the most tokens that the model is shown.
        cache: a `KVCache` that holds the beginning of `idx`, or nothing.

    Returns:
        `(B, V)`.

    Built in notebook 03.
    """
    if idx.shape[1] > context_size:
        cache.clear()
        idx = idx[:, -context_size:]
    new = model.features(idx[:, cache.length() :], cache)  # (B, new, C)
    return model.out_head(new[:, -1])


@torch.no_grad()
def generate_text_simple(model, idx, max_new_tokens, context_size):
    """Append the most probable token, again and again.

    Args:
        model: a `GPTModel`; call `model.eval()` first.
        idx: `(B, T)` ids of the prompts.
        max_new_tokens: tokens to append.
        context_size: the most tokens that the model is shown.

    Returns:
        `(B, T + max_new_tokens)` ids.

    Built in notebook 03.
    """
    cache = KVCache()
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, context_size, cache)  # (B, V)
        idx = torch.cat((idx, logits.argmax(dim=-1, keepdim=True)), dim=1)
    return idx


# =====================================================================================
# Chapter 4: pretraining and generation
# =====================================================================================


def text_to_token_ids(text, tokenizer):
    """Return the ids of `text` as a batch of one, `(1, T)`.

    Built in notebook 04.
    """
    ids = tokenizer.encode(text, allowed_special={"<|endoftext|>"})
    return torch.tensor(ids).unsqueeze(0)


def token_ids_to_text(token_ids, tokenizer):
    """Return the text of a batch of one, `(1, T)` ids.

    Built in notebook 04.
    """
    return tokenizer.decode(token_ids.squeeze(0).tolist())


def calc_loss_batch(input_batch, target_batch, model, device):
    """Return the mean cross-entropy of a batch, in nats per token.

    Args:
        input_batch, target_batch: `(B, T)` ids, the targets one token later.
        model: maps ids to logits `(B, T, V)`.
        device: where the model is.

    Returns:
        A tensor with one number, ready for `backward()`.

    Built in notebook 04.
    """
    logits = model(input_batch.to(device))  # (B, T, V)
    targets = target_batch.to(device)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # (B*T, V), (B*T)


def check_loaders(*loaders):
    """Raise a ValueError if one of some loaders has no batch.

    Built in notebook 04.
    """
    if any(len(loader) < 1 for loader in loaders):
        raise ValueError(
            f"got loaders with {[len(loader) for loader in loaders]} batches, expected "
            f"at least 1 in each: take a longer text or a smaller batch_size"
        )


@torch.no_grad()
def calc_loss_loader(data_loader, model, device, num_batches=None):
    """Return the mean loss over the batches of a loader, in nats per token.

    Args:
        data_loader: batches `(inputs, targets)`.
        model, device: see `calc_loss_batch`.
        num_batches: how many batches to take; all by default.

    Raises:
        ValueError: the loader has no batch, or `num_batches` is under 1.

    Built in notebook 04.
    """
    check_loaders(data_loader)
    if num_batches is not None and num_batches < 1:
        raise ValueError(f"got num_batches={num_batches}, expected 1 or more")
    losses = [
        calc_loss_batch(inputs, targets, model, device).item()
        for inputs, targets in islice(data_loader, num_batches)
    ]
    return sum(losses) / len(losses)


def evaluate_model(model, train_loader, val_loader, device, eval_iter):
    """Return the losses on `eval_iter` batches of each loader, dropout switched off.

    Returns:
        (training loss, validation loss), in nats per token.

    Built in notebook 04.
    """
    model.eval()
    train_loss = calc_loss_loader(train_loader, model, device, eval_iter)
    val_loss = calc_loss_loader(val_loader, model, device, eval_iter)
    model.train()
    return train_loss, val_loss


def generate_and_print_sample(model, tokenizer, device, start_context):
    """Print 50 greedy tokens after `start_context`, on one line.

    Built in notebook 04.
    """
    model.eval()
    idx = text_to_token_ids(start_context, tokenizer).to(device)
    idx = generate_text_simple(model, idx, 50, model.cfg["context_length"])
    tqdm.write(token_ids_to_text(idx.cpu(), tokenizer).replace("\n", " "))
    model.train()


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
    """Train a model, printing both losses at intervals and a sample every epoch.

    Args:
        model: a `GPTModel` on `device`.
        train_loader, val_loader: batches `(inputs, targets)`.
        optimizer: over the model's parameters.
        num_epochs: times that the training text is read.
        eval_freq: steps between two evaluations.
        eval_iter: batches of each loader in an evaluation.
        start_context, tokenizer: the prompt of the samples.

    Returns:
        Three lists: training losses, validation losses, tokens seen at each.

    Raises:
        ValueError: a loader without batches.
        FloatingPointError: a loss that is not a number.

    Built in notebook 04.
    """
    check_loaders(train_loader, val_loader)
    train_losses, val_losses, track_tokens_seen = [], [], []
    tokens_seen, step = 0, 0
    for epoch in range(num_epochs):
        model.train()
        for inputs, targets in tqdm(train_loader, f"epoch {epoch + 1}", leave=False):
            optimizer.zero_grad()
            loss = calc_loss_batch(inputs, targets, model, device)
            check_finite(loss, step)
            loss.backward()
            optimizer.step()
            tokens_seen += inputs.numel()
            if step % eval_freq == 0:
                both = evaluate_model(
                    model, train_loader, val_loader, device, eval_iter
                )
                train_losses.append(both[0])
                val_losses.append(both[1])
                track_tokens_seen.append(tokens_seen)
                tqdm.write(
                    f"Ep {epoch + 1} (Step {step:06d}): Train loss {both[0]:.3f}, "
                    f"Val loss {both[1]:.3f}"
                )
            step += 1
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen


def plot_losses(epochs_seen, tokens_seen, train_losses, val_losses):
    """Plot both losses against epochs (below) and tokens seen (above).

    Args:
        epochs_seen, tokens_seen: the x axes, one value an evaluation.
        train_losses, val_losses: nats per token.

    Returns:
        The matplotlib figure.

    Built in notebook 04.
    """
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


def param_groups(model, weight_decay):
    """Split parameters for AdamW: matrices decay, biases and norms don't.

    Returns:
        Two groups, as `torch.optim.AdamW` takes them.

    Built in notebook 04.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]


def learning_rate(step, total_steps, warmup_steps, peak_lr, min_lr):
    """Return the rate of a step: a linear rise to `peak_lr`, then half a cosine.

    Args:
        step: 0 to `total_steps` - 1.
        warmup_steps: steps of the rise.
        min_lr: the rate at the end.

    Source: Loshchilov and Hutter 2017 (arXiv:1608.03983). Built in notebook 04.
    """
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return min_lr + (peak_lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))


CHECKPOINT_KEYS = ("config", "model_state_dict", "optimizer_state_dict", "extra")


def save_checkpoint(path, model, optimizer=None, **extra):
    """Write a model, perhaps its optimizer and more, to a file: whole or not at all.

    Args:
        path: the file; what stands there is replaced once the new one is complete.
        model: a `GPTModel`.
        optimizer: its optimizer, if training is to go on from here.
        extra: numbers, strings, lists, dictionaries and tensors to keep beside it.

    Built in notebook 04.
    """
    saved = optimizer.state_dict() if optimizer else None
    parts = (model.cfg, model.state_dict(), saved, extra)
    state = dict(zip(CHECKPOINT_KEYS, parts, strict=True))
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def load_checkpoint(path, model, optimizer=None):
    """Read what `save_checkpoint` wrote into a model, and perhaps its optimizer.

    Only tensors and plain values are unpickled (`weights_only=True`), so that a file
    from elsewhere can't run code. The model is changed only if the whole file fits.

    Args:
        path: the file.
        model: a `GPTModel` of the same configuration.
        optimizer: an optimizer over its parameters, if the file holds one's state.

    Returns:
        The dictionary of what was kept beside it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is cut short, not a checkpoint, or another model's.

    Built in notebook 04.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"got {path.name!r}, expected a checkpoint's path")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        config, weights, saved, extra = (state[key] for key in CHECKPOINT_KEYS)
    except Exception as error:  # whatever a damaged archive makes PyTorch raise
        raise ValueError(
            f"{path.name} is cut short or isn't a checkpoint of this course: save it "
            f"again, or take another one"
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    ours, theirs = (
        (cfg["n_heads"], cfg.get("tie_weights", False)) for cfg in (model.cfg, config)
    )  # what the shapes don't show
    if shapes != expected or ours != theirs:
        raise ValueError(
            f"{path.name} is of another model: it was saved with {config}, this one "
            f"has {model.cfg}"
        )
    if optimizer is not None:
        if saved is None:
            raise ValueError(f"{path.name} holds no optimizer: call without one")
        optimizer.load_state_dict(saved)
    model.load_state_dict(weights)
    return extra


def random_state():
    """Return the state of PyTorch's generators, as a list of tensors.

    Built in notebook 04.
    """
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states += torch.cuda.get_rng_state_all()
    return states


def set_random_state(states):
    """Put PyTorch's generators back to what `random_state` returned.

    Built in notebook 04.
    """
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states[1:])


class BatchStream:
    """Endless batches of a loader, which can go on later exactly where they stopped.

    Each reading of the loader shuffles anew. The state of the random generators at its
    start and the number of batches taken since are enough to find the place again.

    Args:
        loader: batches `(inputs, targets)`.

    Built in notebook 04.
    """

    def __init__(self, loader):
        self.loader, self.batches = loader, iter(())
        self.start, self.taken, self.tokens_seen = random_state(), len(loader), 0

    def __next__(self):
        """Return the next batch, beginning a new reading when one is over."""
        if self.taken == len(self.loader):
            self.start, self.taken = random_state(), 0
            self.batches = iter(self.loader)
        inputs, targets = next(self.batches)
        self.taken += 1
        self.tokens_seen += inputs.numel()
        return inputs, targets

    def state_dict(self):
        """Return the place in the stream."""
        return {"at": (self.taken, self.tokens_seen), "start": self.start}

    def load_state_dict(self, state):
        """Go to a place in the stream, leaving the random generators as they are."""
        now = random_state()
        self.start = state["start"]
        self.taken, self.tokens_seen = state["at"]
        set_random_state(self.start)
        self.batches = iter(self.loader)
        for _ in range(self.taken):
            next(self.batches)
        set_random_state(now)


def train_step(model, stream, optimizer, device, accumulate, max_norm, step):
    """Make one optimizer step from the mean gradient of `accumulate` batches.

    Args:
        stream: a `BatchStream`.
        max_norm: length to which a longer gradient is cut.
        step: its number, for the message if the loss is not a number.

    Returns:
        The mean loss of the batches, in nats per token (a tensor with one number).

    Built in notebook 04.
    """
    optimizer.zero_grad()
    mean_loss = 0.0
    for _ in range(accumulate):
        loss = calc_loss_batch(*next(stream), model, device) / accumulate
        check_finite(loss, step)
        loss.backward()
        mean_loss += loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return mean_loss


def train_model(
    model,
    train_loader,
    val_loader,
    device,
    num_epochs,
    peak_lr=1e-3,
    min_lr=1e-4,
    warmup_steps=10,
    weight_decay=0.1,
    max_norm=1.0,
    accumulate=1,
    eval_freq=10,
    eval_iter=None,
    run_dir=None,
    resume=False,
):
    """Train as one would at scale: schedule, clipping, accumulation, checkpoints.

    Every `eval_freq` steps, and after the last, both losses are measured. With a
    `run_dir`, `last.pth` then keeps everything that a later call needs to go on
    exactly, and `best.pth` the model with the lowest validation loss so far.

    Args:
        model: a `GPTModel` on `device`.
        train_loader, val_loader: batches `(inputs, targets)`.
        num_epochs: times that the training text is read.
        peak_lr, min_lr, warmup_steps: see `learning_rate`.
        weight_decay: see `param_groups`.
        max_norm: length to which a longer gradient is cut.
        accumulate: batches whose gradients make one step.
        eval_freq: steps between two evaluations.
        eval_iter: batches of each loader in an evaluation; all by default.
        run_dir: folder of the checkpoints; none are written without it.
        resume: go on from `last.pth` in `run_dir`, if it is there.

    Returns:
        A dictionary of lists: step, tokens_seen, lr, train_loss, val_loss.

    Raises:
        ValueError: a loader without batches, or a checkpoint of another model.
        FloatingPointError: a loss that is not a number; the checkpoints stay.

    Built in notebook 04.
    """
    # Plan
    check_loaders(train_loader, val_loader)
    total_steps = math.ceil(num_epochs * len(train_loader) / accumulate)
    optimizer = torch.optim.AdamW(
        param_groups(model, weight_decay), lr=peak_lr, betas=(0.9, 0.95), fused=True
    )
    stream = BatchStream(train_loader)
    history = {k: [] for k in ("step", "tokens_seen", "lr", "train_loss", "val_loss")}
    # Resume
    last = Path(run_dir) / "last.pth" if run_dir else None
    if resume and last and last.exists():
        extra = load_checkpoint(last, model, optimizer)
        history = extra["history"]
        stream.load_state_dict(extra["stream"])
        set_random_state(extra["random"])
    steps = range(max(history["step"], default=0), total_steps)
    model.train()
    for step in tqdm(steps, "steps", leave=False):
        # Step
        lr = learning_rate(step, total_steps, warmup_steps, peak_lr, min_lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        train_step(model, stream, optimizer, device, accumulate, max_norm, step)
        # Evaluate
        done = step + 1
        if done % eval_freq != 0 and done != total_steps:
            continue
        losses = evaluate_model(model, train_loader, val_loader, device, eval_iter)
        check_finite(torch.tensor(sum(losses)), done)
        row = (done, stream.tokens_seen, lr, *losses)
        for column, value in zip(history.values(), row, strict=True):
            column.append(value)
        # Keep
        if last:
            if losses[1] == min(history["val_loss"]):
                save_checkpoint(last.with_name("best.pth"), model, history=history)
            place = {"stream": stream.state_dict(), "random": random_state()}
            save_checkpoint(last, model, optimizer, history=history, **place)
    return history


def keep_top(logits, top_k=None, top_p=None):
    """Set the logits of improbable tokens to minus infinity.

    Args:
        logits: `(B, V)`.
        top_k: keep the k most probable tokens.
        top_p: of those, keep the most probable ones that together reach p.

    Returns:
        `(B, V)`.

    Raises:
        ValueError: `top_k` under 1, or `top_p` not in 0 to 1.

    Source: Holtzman et al. 2020 (arXiv:1904.09751) for top-p. Built in notebook 04.
    """
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"got top_k={top_k}, expected 1 or more")
        kept = logits.topk(min(top_k, logits.shape[-1])).values  # (B, k)
        logits = logits.masked_fill(logits < kept[:, -1:], -torch.inf)
    if top_p is not None:
        if not 0 < top_p <= 1:
            raise ValueError(f"got top_p={top_p}, expected over 0 and at most 1")
        probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)  # (B, V)
        cut = probs.cumsum(dim=-1) - probs >= top_p  # the more probable ones suffice
        cut = torch.zeros_like(cut).scatter(-1, order, cut)  # back in vocabulary order
        logits = logits.masked_fill(cut, -torch.inf)
    return logits


def sample_token(logits, temperature=0.0, top_k=None, top_p=None):
    """Choose one token a row: the most probable one, or a draw under three controls.

    Args:
        logits: `(B, V)`.
        temperature: 0 takes the most probable token. Otherwise the logits that
            `keep_top` leaves are divided by it: under 1 sharpens the distribution,
            over 1 flattens it.
        top_k, top_p: see `keep_top`.

    Returns:
        `(B, 1)` ids.

    Raises:
        ValueError: a control outside its range.

    Built in notebook 04.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(
            f"got temperature={temperature}, expected a finite number from 0"
        )
    logits = keep_top(logits, top_k, top_p)
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probs = torch.softmax(logits / temperature, dim=-1)  # (B, V)
    return torch.multinomial(probs, num_samples=1)


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
    """Append tokens under the controls of `sample_token`, to a batch of prompts.

    Args:
        model: a `GPTModel`; call `model.eval()` first.
        idx: `(B, T)` ids of the prompts.
        max_new_tokens: the most tokens to append.
        context_size: the most tokens that the model is shown.
        temperature, top_k, top_p: see `sample_token`.
        eos_id: token at which a row ends. A row that has ended is filled with it, and
            generation stops once every row has.

    Returns:
        `(B, T + new)` ids, at most `max_new_tokens` new ones.

    Built in notebook 04.
    """
    cache = KVCache()
    ended = torch.zeros(idx.shape[0], 1, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        logits = next_token_logits(model, idx, context_size, cache)  # (B, V)
        idx_next = sample_token(logits, temperature, top_k, top_p)  # (B, 1)
        if eos_id is not None:
            idx_next = idx_next.masked_fill(ended, eos_id)
            ended = ended | (idx_next == eos_id)
            if ended.all():
                break
        idx = torch.cat((idx, idx_next), dim=1)
    return idx
