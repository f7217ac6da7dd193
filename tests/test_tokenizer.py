"""Chapter 1 of helpers.py: parity with tiktoken, training, windows and batches.

Run it with `python -m pytest tests/test_tokenizer.py`.
"""

import random
from collections import Counter
from functools import lru_cache

import pytest
import regex
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from notebook_cells import definitions_of
from tiktoken_ext.openai_public import r50k_pat_str

from helpers import (
    GPT2_PATTERN,
    BPETokenizer,
    GPTDatasetV1,
    create_dataloader_v1,
    get_tokenizer,
)

train_slowly = definitions_of("01_tokenizer")["train_slowly"]
END, USER = "<|endoftext|>", "<|user|>"
BYTES = BPETokenizer()  # one id a byte, so that windows can be counted by hand


def trained_text(seed=1, n=800):
    """Make words of few letters, so that there are many repeats and many ties."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("aabcé", k=draw.randint(1, 7))) for _ in range(300)]
    return "".join(draw.choice(words) + draw.choice("  \n!") for _ in range(n))


def engine_of(tokenizer, pattern=r50k_pat_str):
    """Return tiktoken's encoding with the same table, and its own pattern for GPT-2."""
    return tiktoken.Encoding(
        "same",
        pat_str=pattern,
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
    )


@lru_cache
def pair_of(kind):
    """Return a tokenizer of ours, GPT-2's or a trained one, and tiktoken's equal."""
    if kind == "gpt2":
        ours = BPETokenizer(get_tokenizer()._mergeable_ranks, [END])
    else:
        ours = BPETokenizer.train(trained_text(), 458, [END, USER])
    return ours, engine_of(ours)


def assert_alike(text, allowed="all", kinds=("gpt2", "trained")):
    for ours, engine in map(pair_of, kinds):
        ids = ours.encode(text, allowed_special=allowed)
        assert ids == engine.encode(text, allowed_special=allowed), ascii(text)
        assert ours.decode(ids) == engine.decode(ids) == text
        ids = ours.encode_ordinary(text)
        assert ids == engine.encode_ordinary(text), ascii(text)
        assert ours.decode(ids) == text


# Parity with tiktoken

SPACES = [*"\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u200b\u2028\u2029\u202f"]
SPACES += [*map(chr, range(0x2000, 0x200B)), "\u205f", "\u3000", "\ufeff"]
SNIPPETS = [
    *["'s", "'S", "'t", "'ll", "'LL", "'Ve", "'re", "'d", "'m", "’s", "''", "'x"],
    *["the", " The", "naïve", "Straße", "日本語", "עברית", "हिन्दी", "ไทย", "한국"],
    *["0", "12345", "٣٤", "१२", "Ⅷ", "½", "²", "𝟘", "一", "५", "\u0301", END, USER],
    *["👩\u200d👩\u200d👧", "👍🏽", "🇫🇷", "  ", "\n\n", "\r\n", " \n "],
    *["...", "_", "<|"],
]
CHARACTERS = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


def test_both_engines_know_the_same_characters():
    """A newer `regex` knows letters that tiktoken's engine doesn't: hence its pin."""
    for name in (r"\p{L}", r"\p{N}", r"\s"):
        found = engine_of(BYTES, name).encode_ordinary(CHARACTERS)  # what matches
        assert BYTES.decode(found) == "".join(regex.findall(name, CHARACTERS))


def test_every_character_is_encoded_as_by_tiktoken():
    assert_alike("'s a".join(CHARACTERS[:0x3400]))
    assert_alike(CHARACTERS[0x3400::7], kinds=["trained"])


@pytest.mark.parametrize("space", SPACES, ids=ascii)
def test_white_space_is_encoded_as_by_tiktoken(space):
    for run in (space, 2 * space, 3 * space):
        for text in (run, f"a{run}", f"{run}a", f"a{run}b{run}!", f"a {run} 1\n{run}"):
            assert_alike(text)


any_part = st.sampled_from([*SNIPPETS, *SPACES])
any_part |= st.text(" \n\taeht'1!", max_size=8)  # common letters: many merges
any_text = st.lists(any_part | st.text(max_size=8), max_size=12).map("".join)
same_each_time = settings(
    max_examples=300, derandomize=True, database=None, deadline=None
)


@same_each_time
@given(any_text)
def test_any_text_is_encoded_as_by_tiktoken_and_comes_back(text):
    assert_alike(text)


@same_each_time
@given(st.lists(st.integers(0, 50_256), max_size=20))
def test_any_ids_are_decoded_as_by_tiktoken(ids):
    """Tokens may end in the middle of a character: both write U+FFFD there."""
    for ours, engine in map(pair_of, ("gpt2", "trained")):
        few = [i % ours.n_vocab for i in ids]
        assert ours.decode(few) == engine.decode(few)
        assert ours.decode(torch.tensor(few)) == engine.decode(few)


def test_ids_of_known_text():
    ids = [15496, 11, 466, 345, 588, 8887, 30]
    for tokenizer in (get_tokenizer(), pair_of("gpt2")[0]):
        assert tokenizer.encode("Hello, do you like tea?") == ids
        assert tokenizer.n_vocab == 50_257


# Special tokens


@pytest.mark.parametrize("allowed", [(), {END}, {USER}, {END, USER}, "all"])
@pytest.mark.parametrize("text", [f"ab{END} c{USER}", END, USER, "<|endof", "plain"])
def test_special_tokens_are_treated_as_by_tiktoken(text, allowed):
    ours, engine = pair_of("trained")
    try:
        ids = engine.encode(text, allowed_special=allowed or set())
    except ValueError:
        with pytest.raises(ValueError, match=r"<\|(endoftext|user)\|>.*allowed_spec"):
            ours.encode(text, allowed_special=allowed)
    else:
        assert ours.encode(text, allowed_special=allowed) == ids
    assert ours.encode_ordinary(text) == engine.encode_ordinary(text)


def test_the_longer_of_two_special_tokens_wins():
    tokenizer = BPETokenizer(special_tokens=["<|a|>", "<|a|><|b|>"])
    assert tokenizer.encode("<|a|><|b|><|a|>", "all") == [257, 256]


def test_special_tokens_are_never_trained_on():
    tokenizer = BPETokenizer.train(f"ab{END}" * 50, 300, [END])
    assert list(tokenizer.ranks)[256:] == [b"ab"]
    assert tokenizer.special_tokens == {END: 257} and tokenizer.n_vocab == 258


# Training


def assert_learns_alike(text, n_tokens):
    counts = Counter(regex.findall(GPT2_PATTERN, text))
    expected = train_slowly(counts, n_tokens)
    assert BPETokenizer.train(text, n_tokens).ranks == expected
    return expected


@pytest.mark.parametrize("seed", range(4))
def test_training_equals_the_slow_one(seed):
    assert len(assert_learns_alike(trained_text(seed), 406)) == 406


@pytest.mark.parametrize("alphabet", ["a", "ab", "aaab", "abc", "é日👍"])
def test_training_equals_the_slow_one_to_the_last_pair(alphabet):
    for seed in range(20):
        draw = random.Random(seed)
        words = ["".join(draw.choices(alphabet, k=9)) for _ in range(12)]
        assert len(assert_learns_alike(" ".join(words), 1256)) < 1256


@pytest.mark.parametrize(
    ("text", "merges"),
    [
        # u g stands three times in it, h ug twice, and of equals the greater one wins
        ("hug pug hugs", ["ug", "hug", "pug", "hugs", " pug"]),
        ("aaab", ["aa", "aaa", "aaab"]),  # joined from the left: aa a b
    ],
)
def test_merges_worked_out_by_hand(text, merges):
    ranks = BPETokenizer.train(text, 256 + len(merges)).ranks
    assert [token.decode() for token in list(ranks)[256:]] == merges


# Windows and batches


@pytest.mark.parametrize(("n", "length", "stride"), [(50, 4, 4), (50, 8, 3), (9, 8, 1)])
def test_windows_and_targets(n, length, stride):
    text = "".join(map(chr, range(40, 40 + n)))
    dataset = GPTDatasetV1(text, BYTES, length, stride)
    assert len(dataset) == len(range(0, n - length, stride))
    for i in range(len(dataset)):
        inputs, targets = map(BYTES.decode, dataset[i])
        assert inputs == text[i * stride :][:length]
        assert targets == text[i * stride + 1 :][:length]


def test_windows_use_the_end_of_text():
    dataset = GPTDatasetV1(f"Hello{END} world", get_tokenizer(), 2, 1)
    assert [window.tolist() for window in dataset[0]] == [[15496, 50256], [50256, 995]]


def loader(**options):
    options = {"batch_size": 2, "max_length": 2, "stride": 2} | options
    return create_dataloader_v1("abcdefghijk", tokenizer=BYTES, **options)


@pytest.mark.parametrize("drop_last, end", [(True, []), (False, ["ij"])])
def test_batches_hold_the_windows_in_order(drop_last, end):
    batches = loader(shuffle=False, drop_last=drop_last)
    texts = [BYTES.decode(inputs.flatten()) for inputs, _ in batches]
    assert texts == ["abcd", "efgh", *end]


def test_a_loader_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="11 tokens gives 5 windows.*batch_size"):
        loader(batch_size=6)
    assert len(loader(batch_size=6, drop_last=False)) == 1
    with pytest.raises(ValueError, match="0 windows"):
        loader(max_length=11, drop_last=False)


def test_the_defaults_are_those_of_the_book():
    batches = create_dataloader_v1("tea " * 2000)
    inputs, targets = next(iter(batches))
    assert inputs.shape == targets.shape == (4, 256)
    assert batches.dataset.starts.step == 128
    assert batches.drop_last and batches.num_workers == 0
    assert isinstance(batches.sampler, torch.utils.data.RandomSampler)
    assert get_tokenizer().decode(inputs[0].tolist()).count("tea") >= 255
