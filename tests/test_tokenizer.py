"""Tokenizers and data loaders: parity with tiktoken, training, files, windows.

Run it with `python -m pytest tests/test_tokenizer.py`.
"""

import json
import math
import os
import random
import re
import time
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest
import regex
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

import helpers
from helpers import (
    GPT2_PATTERN,
    BPETokenizer,
    GPTDatasetV1,
    PairCounts,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    create_dataloader_v1,
    encode_piece,
    get_tokenizer,
)

GPT2_FOLDER = Path(os.environ.get("COURSE_MIRROR", "-")) / "gpt2" / "124M"
END = "<|endoftext|>"


# ---------------------------------------------------------------- texts to try


@lru_cache
def characters():
    """Return all characters that both engines put into the same class.

    `regex` and tiktoken each carry a table of Unicode. Where one of the two is a
    later edition, it knows letters and numbers that the other doesn't.
    """
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    ranks = {bytes([byte]): byte for byte in range(256)}
    differing = set()
    for name in (r"\p{L}", r"\p{N}", r"\s"):
        engine = tiktoken.Encoding(
            name, pat_str=name, mergeable_ranks=ranks, special_tokens={}
        )
        found = engine.decode(engine.encode_ordinary(text))  # only what matches
        differing |= set(found) ^ set(regex.findall(name, text))
    return [char for char in text if char not in differing], sorted(differing)


SPACES = [*"\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u200b\u2028\u2029\u202f"]
SPACES += [*map(chr, range(0x2000, 0x200B)), "\u205f", "\u3000", "\ufeff"]
SNIPPETS = [
    *["'s", "'S", "'t", "'ll", "'LL", "'Ve", "'re", "'d", "'m", "’s", "''", "'x"],
    *["the", " The", "naïve", "Straße", "日本語", "עברית", "हिन्दी", "ไทย", "한국"],
    *["0", "12345", "٣٤", "१२", "Ⅷ", "½", "²", "𝟘", "一", "५"],
    *["👩\u200d👩\u200d👧", "👍🏽", "🇫🇷", "❤\ufe0f", "e\u0301", "Z\u0334\u0351"],
    *["  ", "   ", "\n\n", "\r\n", " \n ", "...", "!!!", "--", "_", "@#", "<|", "|>"],
]


def fuzzed(seed, alphabet, n=400):
    """Make a text: characters of all planes, white space and snippets, mixed."""
    draw = random.Random(seed)
    parts = []
    for _ in range(n):
        kind = draw.choice((alphabet, SPACES, SNIPPETS, SNIPPETS, "abcE 'st1!"))
        parts.append(draw.choice(kind) * draw.choice((1, 1, 1, 2, 5)))
    return "".join(parts)


@lru_cache
def texts():
    """Return 100 fuzzed texts; half of them stay below U+3000, where most text is."""
    alphabet, _ = characters()
    low = [char for char in alphabet if char < "\u3000"]
    return [fuzzed(seed, low if seed % 2 else alphabet) for seed in range(100)]


@lru_cache
def from_files():
    """Return the tokenizer that OpenAI's own two files give."""
    if not GPT2_FOLDER.is_dir():
        pytest.skip("needs a mirror folder with gpt2/124M")
    return BPETokenizer.load(GPT2_FOLDER)


@lru_cache
def from_table():
    """Return the same tokenizer made from tiktoken's, so that it needs no mirror."""
    tokenizer, engine = BPETokenizer(), get_tokenizer("gpt2")
    tokenizer.ranks = {
        engine.decode_single_token_bytes(i): i for i in range(engine.eot_token)
    }
    tokenizer.special_tokens = {END: engine.eot_token}
    tokenizer.tokens = {i: token for token, i in tokenizer.ranks.items()}
    tokenizer.tokens[engine.eot_token] = END.encode()
    return tokenizer


@lru_cache
def tiktoken_gpt2():
    """Return GPT-2's encoding with the pattern that tiktoken itself has for it."""
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=from_table().ranks,
        special_tokens={END: 50_256},
    )


def trained_text(seed=1, n=4000):
    """Make words of few letters, so that there are many repeats and many ties."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aabcé", k=draw.randint(1, 7))) for _ in range(300)]
    return "".join(draw.choice(words) + draw.choice("  \n!") for _ in range(n // 5))


@lru_cache
def trained():
    """Return a tokenizer with 200 merges and two special tokens."""
    return BPETokenizer().train(trained_text(), 458, [END, "<|user|>"])


# ---------------------------------------------------------------- parity with tiktoken


def test_both_engines_know_the_same_characters():
    """A newer `regex` knows letters that tiktoken's engine doesn't: hence its pin."""
    assert characters()[1] == []


def test_openai_files_give_the_embedded_table():
    ours, engine = from_files(), get_tokenizer("gpt2")
    assert ours.n_vocab == engine.n_vocab == 50_257
    assert ours.ranks == from_table().ranks
    assert ours.special_tokens == {END: 50_256} == engine._special_tokens


@pytest.mark.parametrize("make", [from_files, from_table])
def test_gpt2_agrees_with_tiktoken_on_fuzzed_text(make):
    ours, engine = make(), tiktoken_gpt2()
    for text in texts():
        ids = ours.encode(text)
        assert ids == engine.encode(text) == get_tokenizer("gpt2").encode(text)
        assert ours.decode(ids) == engine.decode(ids) == text


def test_gpt2_agrees_with_tiktoken_on_every_character():
    ours, engine = from_table(), tiktoken_gpt2()
    text = "'s a".join(char for char in characters()[0] if char < "\u3400")
    assert ours.encode(text) == engine.encode(text)


@pytest.mark.parametrize("space", SPACES, ids=ascii)
def test_gpt2_agrees_with_tiktoken_on_white_space(space):
    ours, engine = from_table(), tiktoken_gpt2()
    for n in (1, 2, 3):
        run = space * n
        for text in (run, f"a{run}", f"{run}a", f"a{run}b{run}!", f"a {run} 1\n{run}"):
            assert ours.encode(text) == engine.encode(text), ascii(text)
            assert ours.decode(ours.encode(text)) == text


def test_gpt2_numbers_of_known_text():
    assert get_tokenizer("gpt2").encode("Hello, do you like tea?") == [
        *[15496, 11, 466, 345, 588, 8887, 30]
    ]
    assert from_table().encode("Hello, do you like tea?") == [
        *[15496, 11, 466, 345, 588, 8887, 30]
    ]


@pytest.mark.parametrize("make", [from_table, trained])
def test_nothing_is_encoded_as_nothing(make):
    assert make().encode("") == [] == make().to_tiktoken().encode("")
    assert make().decode([]) == ""
    assert list(make().encode_iterable([])) == []


@pytest.mark.parametrize(
    "run", [" ", "\n", "a", "ab", "1", "\U0001f600", "'s", "\u3000"]
)
def test_runs_of_100_000_agree_and_are_fast(run):
    ours, engine = from_table(), tiktoken_gpt2()
    text = "x" + run * (100_000 // len(run)) + "y"
    start = time.process_time()
    ids = ours.encode(text)
    assert time.process_time() - start < 5  # minutes, if by the square of its length
    assert ids == engine.encode(text)
    assert ours.decode(ids) == text


def test_any_bytes_agree_with_tiktoken():
    draw = random.Random(5)
    for make in (from_table, trained):
        engine = make().to_tiktoken()
        for _ in range(500):
            piece = draw.randbytes(draw.randint(1, 40))
            assert encode_piece(piece, make().ranks) == engine._encode_single_piece(
                piece
            )


def test_any_ids_decode_as_in_tiktoken():
    """Half a character becomes U+FFFD in both."""
    draw, engine = random.Random(6), tiktoken_gpt2()
    for _ in range(200):
        ids = [draw.randrange(engine.n_vocab) for _ in range(draw.randint(1, 20))]
        assert from_table().decode(ids) == engine.decode(ids)
        assert from_table().decode(torch.tensor(ids)) == engine.decode(ids)


@pytest.mark.parametrize(
    "text", ["\ud800", "a\udfffb", "\ud83d\ude00 b", "\ufeff\ud900"]
)
def test_surrogates_agree_with_tiktoken(text):
    """Half of a pair becomes U+FFFD, a pair its character; in training, too."""
    assert from_table().encode(text) == tiktoken_gpt2().encode(text)
    assert list(from_table().encode_iterable([text])) == tiktoken_gpt2().encode(text)
    learnt = BPETokenizer().train(text * 9, 260).merges
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert learnt == BPETokenizer().train(whole * 9, 260).merges


def test_every_token_encodes_to_itself():
    for ranks, step in ((from_table().ranks, 9), (trained().ranks, 1)):
        for token, i in list(ranks.items())[::step]:
            assert encode_piece(token, ranks) == [i]


def test_get_tokenizer_takes_a_folder(tmp_path):
    trained().save(tmp_path)
    engine = get_tokenizer(str(tmp_path))
    assert engine.name == tmp_path.name
    assert engine.encode(trained_text()) == trained().encode(trained_text())
    with pytest.raises(FileNotFoundError, match="vocab.bpe"):
        get_tokenizer(str(tmp_path / "missing"))


# ---------------------------------------------------------------- any text at all

any_part = st.sampled_from([*SNIPPETS, *SPACES, END, "<|user|>"])
any_part |= st.text(" \n\taeht'1!", max_size=8)  # common letters: many merges
any_text = st.lists(any_part | st.text(max_size=8), max_size=12).map("".join)


def fuzz(examples, **strategies):
    """Run a test on the same examples each time, and keep no file of them."""
    fixed = settings(
        max_examples=examples, derandomize=True, database=None, deadline=None
    )
    return lambda test: fixed(given(**strategies)(test))


@fuzz(300, text=any_text, step=st.integers(1, 4))
def test_any_text_agrees_with_tiktoken_and_comes_back(text, step):
    pieces = [text[i : i + step] for i in range(0, len(text), step)]
    for ours, engine in ((from_table(), tiktoken_gpt2()), (trained(), engine_of())):
        for how in ({"disallowed_special": ()}, {"allowed_special": "all"}):
            ids = ours.encode(text, **how)
            assert ids == engine.encode(text, **how)
            assert ours.decode(ids) == engine.decode(ids) == text
            assert list(ours.encode_iterable(pieces, **how)) == ids


@lru_cache
def engine_of():
    """Return tiktoken's encoding with the tokens of `trained`."""
    return trained().to_tiktoken()


@fuzz(300, ids=st.lists(st.integers(0, 50_256), max_size=20))
def test_any_row_of_ids_decodes_as_in_tiktoken(ids):
    """Tokens may end in the middle of a character: both write U+FFFD there."""
    assert from_table().decode(ids) == tiktoken_gpt2().decode(ids)
    few = [i % 458 for i in ids]
    assert trained().decode(few) == engine_of().decode(few)


@fuzz(300, piece=st.binary(min_size=1, max_size=60))
def test_any_piece_of_bytes_agrees_with_tiktoken(piece):
    for ours, engine in ((from_table(), tiktoken_gpt2()), (trained(), engine_of())):
        ids = encode_piece(piece, ours.ranks)
        assert ids == engine._encode_single_piece(piece)
        assert b"".join(ours.tokens[i] for i in ids) == piece


few_bytes = st.binary(min_size=1, max_size=12) | st.text("ab", min_size=1).map(
    str.encode
)


@fuzz(200, words=st.dictionaries(few_bytes, st.integers(1, 4), max_size=8))
def test_training_on_any_bytes_equals_the_slow_reference(words):
    counts, merges = PairCounts(words), {}
    while pair := counts.most_frequent():
        merges.setdefault(pair[0] + pair[1], pair)
        counts.merge(pair)
    assert list(merges.values()) == slow_merges(words, 10_000)
    assert [b"".join(word) for word in counts.words] == list(words)


@fuzz(120, text=any_text, other=any_text, n_merges=st.integers(0, 60))
def test_trained_on_any_text_it_agrees_with_its_tiktoken(text, other, n_merges):
    ours = BPETokenizer().train(text, 257 + n_merges, [END])
    if END not in text:
        assert ours.merges == slow_train(text, n_merges)
    engine = ours.to_tiktoken()
    for given_text in (text, other, text + other):
        ids = ours.encode(given_text, "all")
        assert ids == engine.encode(given_text, allowed_special="all")
        assert ours.decode(ids) == given_text
        assert all(0 <= i < ours.n_vocab for i in ids)


# ---------------------------------------------------------------- training


def learned(text, n_merges, special_tokens=()):
    """Train on a text; return the new tokens in order."""
    size = 256 + n_merges + len(special_tokens)
    tokenizer = BPETokenizer().train(text, size, special_tokens)
    return [a + b for a, b in tokenizer.merges]


def test_merges_worked_out_by_hand():
    """In "hug pug hugs" the pair u g stands three times, h ug then twice.

    After those: " p", "p ug" and "hug s" once each, and " hug" once. Of equals the
    greater first token wins, and of equal first tokens the greater second one.
    """
    tokenizer = BPETokenizer().train("hug pug hugs", 256 + 5)
    assert tokenizer.merges == [
        (b"u", b"g"),  # 3 times
        (b"h", b"ug"),  # 2 times
        (b"p", b"ug"),  # once, as are (" ", p), (" ", hug), (hug, s)
        (b"hug", b"s"),  # hug > space
        (b" ", b"pug"),  # pug > hugs
    ]
    assert tokenizer.ranks[b"ug"] == 256 and tokenizer.ranks[b" pug"] == 260
    assert tokenizer.encode("hugs pug") == [259, 260]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("ab!cd", b"cd"),  # equal counts: c > a
        ("ab ac", b"ac"),  # equal first token: c > b
        ("aa aab", b"aa"),  # 2 against 1
        ("ab ba", b"ba"),
        ("aé", b"\xc3\xa9"),  # bytes count as 0 to 255: 0xc3 > "a"
        ("aab!aab!ab", b"ab"),  # 3 against 2
        ("aaaa!bc", b"aa"),
    ],
)
def test_the_first_merge_of_a_tie(text, first):
    assert learned(text, 1) == [first]


def test_a_longer_token_is_greater_than_its_beginning():
    """After "ab", the pairs (ab, c) and (a, x) tie: b"ab" > b"a"."""
    assert learned("ab!ab!ab!abc!abc!ax!ax", 2) == [b"ab", b"abc"]


def slow_train(text, n_merges):
    """Learn merges by recounting every pair before each one."""
    words = Counter(regex.findall(GPT2_PATTERN, text))
    return slow_merges({word.encode(): n for word, n in words.items()}, n_merges)


def slow_merges(words, n_merges):
    """Learn merges from counted words, as bytes."""
    words = [([bytes([b]) for b in word], n) for word, n in words.items()]
    merges = {}
    while len(merges) < n_merges:
        counts = Counter()
        for word, n in words:
            for pair in zip(word, word[1:], strict=False):
                counts[pair] += n
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.setdefault(best[0] + best[1], best)
        words = [(join(word, best), n) for word, n in words]
    return list(merges.values())


def join(word, pair):
    """Join a pair of tokens from the left, by recursion on the first place."""
    for i in range(len(word) - 1):
        if (word[i], word[i + 1]) == pair:
            return word[:i] + [word[i] + word[i + 1]] + join(word[i + 2 :], pair)
    return word


@pytest.mark.parametrize("seed", range(6))
def test_training_equals_the_slow_reference(seed):
    text = trained_text(seed)
    tokenizer = BPETokenizer().train(text, 256 + 150)
    assert len(tokenizer.merges) == 150
    assert tokenizer.merges == slow_train(text, 150)


@pytest.mark.parametrize("alphabet", ["ab", "aaab", "abc"])
def test_training_equals_the_slow_reference_to_the_last_pair(alphabet):
    for seed in range(30):
        draw = random.Random(seed)
        words = ["".join(draw.choices(alphabet, k=9)) for _ in range(12)]
        text = " ".join(words)
        expected = slow_train(text, 1000)
        assert BPETokenizer().train(text, 1256).merges == expected
        assert len(expected) < 1000


def test_training_on_fuzzed_text_equals_the_slow_reference():
    text = fuzzed(3, characters()[0], 600)
    assert BPETokenizer().train(text, 256 + 100).merges == slow_train(text, 100)


def test_training_is_deterministic():
    runs = [BPETokenizer().train(trained_text(), 400) for _ in range(2)]
    assert runs[0].merges == runs[1].merges
    assert runs[0].ranks == runs[1].ranks


def test_the_order_of_the_words_does_not_matter():
    words = trained_text().split()
    forth, back = "\n".join(words), "\n".join(reversed(words))
    assert learned(forth, 100) == learned(back, 100)


def test_training_again_starts_over():
    tokenizer = BPETokenizer().train("xyxyxyxy", 258).train(trained_text(), 300)
    assert tokenizer.merges == BPETokenizer().train(trained_text(), 300).merges
    assert tokenizer.encode("xy") == BPETokenizer().encode("xy")


def test_merges_never_span_pieces():
    """GPT-2's pattern parts letters, numbers and signs; a space goes with a word."""
    tokens = learned("ab 12 !? ab12!?" * 9, 50)
    kinds = [" ?[a-z]+", " ?[0-9]+", " ?[^a-z0-9 ]+"]
    for token in tokens:
        assert any(re.fullmatch(kind, token.decode()) for kind in kinds), token


def test_special_tokens_are_never_trained_on():
    text = f"ab{END}ab<|user|>ab{END}" * 50
    assert learned(text, 1, [END, "<|user|>"]) == [b"ab"]
    assert learned(text, 50, [END, "<|user|>"]) == [b"ab"]  # nothing else is left
    assert len(learned(text, 50)) > 10


def test_special_tokens_come_after_the_merges():
    tokenizer = trained()
    assert len(tokenizer.merges) == 200
    assert tokenizer.special_tokens == {END: 456, "<|user|>": 457}
    assert tokenizer.n_vocab == 458
    assert tokenizer.decode([456, 457]) == f"{END}<|user|>"


def test_training_from_a_path_equals_training_from_the_text(tmp_path):
    special = [END, "<|user|>"]
    draw = random.Random(2)
    text = "".join(
        word + draw.choice([END, "<|user|>", "\r\n", "\n", "\n \n", "\u2028", " "])
        for word in fuzzed(4, characters()[0], 1500).split(" ")
    )
    (tmp_path / "text.txt").write_bytes(text.encode("utf-8"))
    from_path = BPETokenizer().train(tmp_path / "text.txt", 400, special)
    from_text = BPETokenizer().train(text, 400, special)
    assert from_path.merges == from_text.merges
    assert from_path.special_tokens == from_text.special_tokens


@pytest.mark.parametrize("special", ["<|x|>", ["<x>", "<x>"], ["x"], ["a b"], [""]])
def test_unusable_special_tokens_are_refused_before_training(special):
    with pytest.raises(ValueError, match="expected"):
        BPETokenizer().train("a text", 300, special)


@pytest.mark.parametrize(
    ("size", "special"), [(255, ()), (0, ()), (257, ("<x>", "<y>"))]
)
def test_a_vocabulary_without_room_for_the_bytes_is_refused(size, special):
    expected = f"vocab_size={size}, expected a whole number from {256 + len(special)}"
    with pytest.raises(ValueError, match=expected):
        BPETokenizer().train("some text", size, special)


@pytest.mark.parametrize("text", ["", "a", "a b!"])
def test_few_pairs_give_few_merges(text):
    tokenizer = BPETokenizer().train(text, 300, [END])
    assert len(tokenizer.merges) == text.count(" ")
    assert tokenizer.n_vocab == 257 + text.count(" ")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_of_bytes_needs_no_merge():
    tokenizer = BPETokenizer().train("some text", 256)
    assert tokenizer.merges == [] and len(tokenizer.encode("some text")) == 9


@pytest.mark.parametrize("token", ["", "<|a b|>", "\n"])
def test_a_special_token_with_a_space_is_refused(token):
    with pytest.raises(ValueError, match="special token"):
        BPETokenizer(special_tokens=[token])


def test_a_trained_tokenizer_agrees_with_its_tiktoken():
    ours, engine = trained(), trained().to_tiktoken("mine")
    assert engine.name == "mine" and engine.n_vocab == ours.n_vocab
    for text in [trained_text(), trained_text(9), *texts()[:50]]:
        ids = ours.encode(text)
        assert ids == engine.encode(text)
        assert ours.decode(ids) == engine.decode(ids) == text


def test_a_trained_tokenizer_is_shorter_than_bytes():
    text = trained_text()
    assert len(trained().encode(text)) < len(text.encode()) / 2


# ---------------------------------------------------------------- files


def test_save_and_load_give_the_same_tokenizer(tmp_path):
    trained().save(tmp_path / "new" / "folder")
    loaded = BPETokenizer.load(str(tmp_path / "new" / "folder"))
    assert loaded.merges == trained().merges
    assert loaded.ranks == trained().ranks
    assert loaded.special_tokens == trained().special_tokens
    assert loaded.n_vocab == trained().n_vocab
    for text in texts()[:20]:
        assert loaded.encode(text) == trained().encode(text)


def test_a_tokenizer_of_bytes_can_be_saved(tmp_path):
    BPETokenizer().save(tmp_path)
    assert (tmp_path / "vocab.bpe").read_bytes() == b"#version: 0.2\n"
    assert BPETokenizer.load(tmp_path).ranks == BPETokenizer().ranks


def test_files_are_in_the_format_of_openai(tmp_path):
    BPETokenizer().train("hug pug hugs hé" * 3, 262, [END]).save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["encoder.json", "vocab.bpe"]
    lines = (tmp_path / "vocab.bpe").read_bytes().decode("utf-8").split("\n")
    assert lines[:2] == ["#version: 0.2", "u g"] and lines[-1] == ""
    assert all(len(line.split(" ")) == 2 for line in lines[:-1])
    ids = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    assert (ids["!"], ids["Ġ"], ids["ug"], ids[END]) == (0, 220, 256, 262 - 1)


def test_openai_files_are_written_as_they_were_read(tmp_path):
    from_files().save(tmp_path)
    for name in ("vocab.bpe", "encoder.json"):
        assert (tmp_path / name).read_bytes() == (GPT2_FOLDER / name).read_bytes()


def change_lines(folder, change):
    """Put a change of the list of its lines into vocab.bpe."""
    lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines(True)
    text = "".join(change(lines))
    (folder / "vocab.bpe").write_text(text, encoding="utf-8", newline="\n")


def change_ids(folder, change):
    """Put a change of its dictionary into encoder.json."""
    ids = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    ids = change(ids) or ids
    (folder / "encoder.json").write_text(json.dumps(ids), encoding="utf-8")


DAMAGES = {
    "merges cut at a line": lambda f: change_lines(f, lambda ls: ls[:-10]),
    "all merges gone": lambda f: change_lines(f, lambda ls: ls[:1]),
    "an empty vocab.bpe": lambda f: (f / "vocab.bpe").write_bytes(b""),
    "merges cut in a line": lambda f: change_lines(f, lambda ls: [*ls[:-1], "a"]),
    "a line of one token": lambda f: change_lines(f, lambda ls: [*ls[:9], "x\n"]),
    "a line of three": lambda f: change_lines(f, lambda ls: [*ls[:-1], "a b c\n"]),
    "two lines swapped": lambda f: change_lines(
        f, lambda ls: [ls[0], ls[2], ls[1], *ls[3:]]
    ),
    "a line twice": lambda f: change_lines(f, lambda ls: [*ls, ls[-1]]),
    "no version line": lambda f: change_lines(f, lambda ls: ls[1:]),
    "merges not UTF-8": lambda f: (f / "vocab.bpe").write_bytes(b"#version\n\xff a"),
    "merges are a page": lambda f: (f / "vocab.bpe").write_text("<html>\n<p> </p>"),
    "ids cut": lambda f: (f / "encoder.json").write_text('{"!": 0, "'),
    "ids empty": lambda f: (f / "encoder.json").write_bytes(b""),
    "ids a list": lambda f: (f / "encoder.json").write_text('["!", "a"]'),
    "ids a number": lambda f: (f / "encoder.json").write_text("7"),
    "ids without one": lambda f: change_ids(f, lambda ids: ids.pop("a") and None),
    "ids without special": lambda f: change_ids(f, lambda ids: ids.pop(END) and None),
    "an id twice": lambda f: change_ids(f, lambda ids: ids | {"a": ids["b"]}),
    "an id as text": lambda f: change_ids(f, lambda ids: ids | {"a": "7"}),
    "an id of null": lambda f: change_ids(f, lambda ids: ids | {END: None}),
    "two ids swapped": lambda f: change_ids(
        f, lambda ids: ids | {"a": ids["b"], "b": ids["a"]}
    ),
    "a special id moved": lambda f: change_ids(f, lambda ids: ids | {"<|user|>": 999}),
    "an unknown character": lambda f: change_ids(
        f, lambda ids: {"\u4e00" if t == "a" else t: i for t, i in ids.items()}
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(tmp_path, damage):
    trained().save(tmp_path)
    DAMAGES[damage](tmp_path)
    with pytest.raises(ValueError, match=r"vocab\.bpe"):
        BPETokenizer.load(tmp_path)


@pytest.mark.parametrize("sizes", [(300, 400), (400, 300)])
def test_files_of_two_tokenizers_are_refused(tmp_path, sizes):
    """The merges of the smaller one are the first of the larger one."""
    for name, size in zip(("one", "two"), sizes, strict=True):
        BPETokenizer().train(trained_text(), size, [END]).save(tmp_path / name)
    os.replace(tmp_path / "two" / "vocab.bpe", tmp_path / "one" / "vocab.bpe")
    with pytest.raises(ValueError, match="from one model"):
        BPETokenizer.load(tmp_path / "one")


@pytest.mark.parametrize("name", ["vocab.bpe", "encoder.json"])
def test_a_missing_file_is_named(tmp_path, name):
    trained().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        BPETokenizer.load(tmp_path)


def test_windows_line_ends_are_read(tmp_path):
    trained().save(tmp_path)
    change_lines(tmp_path, lambda lines: [line[:-1] + "\r\n" for line in lines])
    assert BPETokenizer.load(tmp_path).merges == trained().merges


# ---------------------------------------------------------------- encode_iterable


def cut(text, draw):
    """Cut a text at random places, some of them twice (an empty piece)."""
    n = draw.choice((1, 2, 5, 20, 200))
    places = [0, *sorted(draw.choices(range(len(text) + 1), k=n)), len(text)]
    return [text[a:b] for a, b in zip(places, places[1:], strict=False)]


@pytest.mark.parametrize("make", [from_table, trained])
def test_pieces_are_encoded_as_the_whole(make):
    draw = random.Random(8)
    for text in texts():
        pieces = cut(text, draw)
        assert list(make().encode_iterable(iter(pieces))) == make().encode(text)


@pytest.mark.parametrize("make", [from_table, trained])
def test_single_characters_are_encoded_as_the_whole(make):
    for text in [*texts()[:10], " ", "\n\na", "a \n", "  a  "]:
        assert list(make().encode_iterable(text)) == make().encode(text)


def test_a_special_token_may_be_cut_in_two():
    tokenizer, draw = trained(), random.Random(9)
    text = f"ab {END}  abc{END}<|user|>\n\n<|user|> c  {END}"
    expected = tokenizer.encode(text, "all")
    assert sum(i >= 456 for i in expected) == 5
    for _ in range(200):
        pieces = cut(text, draw)
        assert list(tokenizer.encode_iterable(pieces, "all")) == expected
        with pytest.raises(ValueError, match="special token"):
            list(tokenizer.encode_iterable(pieces))


def test_encode_iterable_reads_no_further_than_it_must():
    """It gives the first ids long before the last piece, which here never comes."""

    def endless():
        while True:
            yield "some words and\n"

    ids = trained().encode_iterable(endless())
    start = trained().encode("some words and\n" * 10)[:50]
    assert [next(ids) for _ in range(50)] == start


def test_many_pieces_without_a_space_are_fast():
    """Searching all of it again for each piece would take 20 seconds."""
    start = time.process_time()
    assert len(list(trained().encode_iterable("x" * 100_000))) == 100_000
    assert time.process_time() - start < 5


# ---------------------------------------------------------------- special tokens

SPECIAL_TEXT = f"ab{END} c<|user|>{END}"
SPECIAL_CASES = [
    {},
    {"allowed_special": set()},
    {"allowed_special": {END}},
    {"allowed_special": {"<|user|>"}},
    {"allowed_special": {END, "<|user|>"}},
    {"allowed_special": {END, "<|user|>", "<|unknown|>"}},
    {"allowed_special": "all"},
    {"disallowed_special": ()},
    {"allowed_special": {END}, "disallowed_special": ()},
    {"allowed_special": {END}, "disallowed_special": {END}},
    {"allowed_special": {END}, "disallowed_special": {"<|user|>"}},
    {"allowed_special": "all", "disallowed_special": {"<|user|>"}},
    {"allowed_special": "all", "disallowed_special": {"c<"}},
    {"disallowed_special": {"<|unknown|>"}},
]


@pytest.mark.parametrize("case", SPECIAL_CASES, ids=str)
@pytest.mark.parametrize("text", [SPECIAL_TEXT, END, "<|user|>", "<|endof", "plain"])
def test_special_tokens_are_treated_as_in_tiktoken(case, text):
    def result(encode):
        try:
            return encode(text, **case)
        except ValueError as error:
            names = (END, "<|user|>", "c<")
            return {name for name in names if repr(name) in str(error)}

    ours, engine = result(trained().encode), result(trained().to_tiktoken().encode)
    assert ours == engine
    assert isinstance(ours, list) or len(ours) == 1


def test_a_special_token_is_refused_by_name():
    with pytest.raises(ValueError, match=r"<\|user\|>.*allowed_special"):
        trained().encode("ab <|user|>")


def test_a_special_token_is_one_id_or_plain_text():
    tokenizer = trained()
    for allowed in ("all", {END}, [END]):
        assert tokenizer.encode(END, allowed_special=allowed) == [456]
    plain = tokenizer.encode(END, disallowed_special=())
    assert len(plain) == len(END) and tokenizer.decode(plain) == END


def test_the_longer_of_two_special_tokens_wins():
    tokenizer = BPETokenizer(special_tokens=["<|a|>", "<|a|><|b|>"])
    assert tokenizer.encode("<|a|><|b|><|a|>", "all") == [257, 256]


@pytest.mark.parametrize("bad", [458, -1, 10**9])
def test_an_id_outside_is_named(bad):
    with pytest.raises(ValueError, match=f"id {bad}, expected 0 to 457"):
        trained().decode([5, bad])


# ---------------------------------------------------------------- mistakes of users

MISTAKES = [
    *[
        (lambda bad=bad: trained().encode(bad), TypeError, "got .* as a text")
        for bad in (None, 3, b"ab", ["ab"], Path("x"))
    ],
    *[
        (lambda bad=bad: trained().decode(bad), TypeError, "row of whole numbers")
        for bad in (None, 3, "12", [None], [1.5], [math.nan], [[1, 2]])
    ],
    *[
        (lambda bad=bad: trained().decode(bad), TypeError, "row of whole numbers")
        for bad in (torch.zeros(2, 2).long(), torch.tensor([1.0]), torch.tensor(1))
    ],
    *[
        (lambda bad=bad: BPETokenizer().train(bad, 300), TypeError, "got .* as a text")
        for bad in (None, 3, b"ab", ["ab"])
    ],
    *[
        (lambda bad=bad: BPETokenizer().train("a b", bad), ValueError, "vocab_size=")
        for bad in (None, "300", 300.0, math.nan, -1, True)
    ],
    (lambda: BPETokenizer().train(__file__, 300), ValueError, "name of a file"),
    (lambda: BPETokenizer().train(Path("no"), 300), FileNotFoundError, "no"),
    (lambda: BPETokenizer((), {"<|a|>": 3}), ValueError, "expected a list"),
    (lambda: BPETokenizer((), [3]), TypeError, "got int as a text"),
    (lambda: BPETokenizer((), ["\ud800x"]), ValueError, "surrogate"),
    (lambda: get_tokenizer("gpt3"), FileNotFoundError, "gpt3 lacks"),
    *[
        (lambda bad=bad: create_dataloader_v1(bad), TypeError, "got .* as a text")
        for bad in (None, b"ab", Path("a.txt"), [1, 2])
    ],
]


@pytest.mark.parametrize(("use", "error", "message"), MISTAKES)
def test_a_mistake_is_named(use, error, message):
    with pytest.raises(error, match=message):
        use()


def test_training_on_a_file_that_is_not_utf8_names_it(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.txt isn't UTF-8"):
        BPETokenizer().train(path, 300)


# ---------------------------------------------------------------- simple tokenizers

WORDS = ["!", ",", "--", "Hello", "it", "world", "'", "s", "<|unk|>", END]
VOCAB = {word: i for i, word in enumerate(WORDS)}


@pytest.mark.parametrize("kind", [SimpleTokenizerV1, SimpleTokenizerV2])
def test_simple_tokenizers_split_and_join(kind):
    tokenizer = kind(VOCAB)
    ids = tokenizer.encode("Hello,  world--Hello!\n it's")
    assert ids == [3, 1, 5, 2, 3, 0, 4, 6, 7]
    assert tokenizer.decode(ids) == "Hello, world -- Hello! it' s"
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""


def test_v1_has_no_id_for_an_unknown_word():
    with pytest.raises(KeyError, match="tea"):
        SimpleTokenizerV1(VOCAB).encode("Hello tea")


def test_v2_writes_unk_for_an_unknown_word():
    tokenizer = SimpleTokenizerV2(VOCAB)
    ids = tokenizer.encode(f"Hello tea, {END} cake!")
    assert ids == [3, 8, 1, 9, 8, 0]
    assert tokenizer.decode(ids) == f"Hello <|unk|>, {END} <|unk|>!"


# ---------------------------------------------------------------- windows and batches

BYTES = BPETokenizer()  # one id a byte, so that windows can be counted by hand


@pytest.mark.parametrize(("n", "length", "stride"), [(50, 4, 4), (50, 8, 3), (9, 8, 1)])
def test_windows_and_targets(n, length, stride):
    text = "".join(map(chr, range(40, 40 + n)))
    ids = BYTES.encode(text)
    dataset = GPTDatasetV1(text, BYTES, length, stride)
    assert len(dataset) == len(range(0, n - length, stride))
    for i in range(len(dataset)):
        (inputs, targets), start = dataset[i], i * stride
        assert inputs.tolist() == ids[start : start + length]
        assert targets.tolist() == ids[start + 1 : start + length + 1]
        assert inputs.dtype == targets.dtype == torch.int64
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_the_last_token_is_a_target():
    dataset = GPTDatasetV1("abcdefghi", BYTES, 4, 4)
    assert [BYTES.decode(targets) for _, targets in dataset] == ["bcde", "fghi"]


def test_windows_use_the_end_of_text():
    dataset = GPTDatasetV1(f"Hello{END} world", get_tokenizer(), 2, 1)
    assert [window.tolist() for window in dataset[0]] == [[15496, 50256], [50256, 995]]


NO_SIZES = [0, -1, None, 2.0, math.nan, "2", True]


@pytest.mark.parametrize("name", ["max_length", "stride"])
@pytest.mark.parametrize("value", NO_SIZES)
def test_a_window_of_no_size_is_refused(name, value):
    sizes = {"max_length": 2, "stride": 2} | {name: value}
    message = re.escape(f"{name}={value!r}, expected a whole number from 1")
    with pytest.raises(ValueError, match=message):
        GPTDatasetV1("some text", BYTES, **sizes)
    with pytest.raises(ValueError, match=message):
        create_dataloader_v1("some text", batch_size=1, tokenizer=BYTES, **sizes)


@pytest.mark.parametrize("text", ["", "abcd"])
def test_a_text_shorter_than_a_window_is_refused(text):
    with pytest.raises(ValueError, match=f"{len(text)} tokens.*max_length=4"):
        GPTDatasetV1(text, BYTES, 4, 1)
    assert len(GPTDatasetV1("abcde", BYTES, 4, 1)) == 1


def loader(text="abcdefghijk", **sizes):
    sizes = {"batch_size": 2, "max_length": 2, "stride": 2, "shuffle": False} | sizes
    return create_dataloader_v1(text, tokenizer=BYTES, **sizes)


def test_batches_hold_the_windows_in_order():
    batches = [
        [[BYTES.decode(row) for row in side] for side in batch] for batch in loader()
    ]
    assert batches == [
        [["ab", "cd"], ["bc", "de"]],
        [["ef", "gh"], ["fg", "hi"]],
    ]


@pytest.mark.parametrize(("drop_last", "rows"), [(True, [2, 2]), (False, [2, 2, 1])])
def test_drop_last(drop_last, rows):
    assert [len(inputs) for inputs, _ in loader(drop_last=drop_last)] == rows
    assert len(loader(drop_last=drop_last)) == len(rows)


def test_shuffle_draws_every_window_once_in_an_order_of_the_seed():
    def drawn(seed):
        torch.manual_seed(seed)
        batches = loader(
            trained_text(n=900), batch_size=1, shuffle=True, drop_last=False
        )
        return ["".join(map(BYTES.decode, inputs)) for inputs, _ in batches]

    in_order = [
        "".join(map(BYTES.decode, inputs))
        for inputs, _ in loader(trained_text(n=900), batch_size=1, drop_last=False)
    ]
    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1) != in_order
    assert sorted(drawn(1)) == sorted(in_order)


@pytest.mark.parametrize("batch_size", NO_SIZES)
def test_a_batch_of_no_size_is_refused(batch_size):
    with pytest.raises(ValueError, match=re.escape(f"batch_size={batch_size!r}, exp")):
        loader(batch_size=batch_size)


def test_a_text_too_short_for_a_batch_is_refused():
    with pytest.raises(ValueError, match="5 windows.*batch_size=6"):
        loader(batch_size=6)
    assert [len(inputs) for inputs, _ in loader(batch_size=6, drop_last=False)] == [5]


def test_the_defaults_are_those_of_the_book():
    batches = create_dataloader_v1("tea " * 2000)
    inputs, targets = next(iter(batches))
    assert inputs.shape == targets.shape == (4, 256)
    assert batches.dataset.starts.step == 128
    assert batches.drop_last and batches.num_workers == 0
    assert isinstance(batches.sampler, torch.utils.data.RandomSampler)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert helpers.get_tokenizer().decode(inputs[0].tolist()).count("tea") >= 255
