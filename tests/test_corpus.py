"""The text for gpt2-mini: cleaning, cutting, leaving out, and the split.

The small books here are written for these tests; the last test reads real ones.
"""

import importlib.util
import os
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = ROOT / "data" / "gpt2-mini" / "corpus.py"
MIRROR = Path(os.environ.get("COURSE_MIRROR", "-"))
NOUNS = "otter kettle lantern orchard cobbler bridge candle heron basket shepherd"
VERBS = "found carried followed painted mended watched hid borrowed polished sang"
NOUNS, VERBS = NOUNS.split(), VERBS.split()


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """The script as a module of its own, with two small books and no network."""
    spec = importlib.util.spec_from_file_location("corpus_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(module, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(module, "COLLECTIONS", ["1"])
    monkeypatch.setattr(module, "NOVELS", ["2"])
    monkeypatch.setattr(module, "ONE_PIECE", ["1"])
    return module


def tale(seed, sentences=20):
    """A made-up tale whose sentences no other seed has."""
    lines = [
        f"The {NOUNS[(seed + i) % 10]} of farm {seed * 100 + i} x{seed}y "
        f"{VERBS[(seed * i) % 10]}\nthe {NOUNS[(3 * seed + i) % 10]} by stile z{seed}."
        for i in range(sentences)
    ]
    return "\n\n".join(lines).translate(str.maketrans("0123456789", "abcdefghij"))


def book(tales):
    """A book in the shape of Project Gutenberg's files."""
    parts = "".join(f"\n\n\n\n{title}\n\n\n{text}\n" for title, text in tales)
    return (
        "\ufeffThe Project Gutenberg EBook of Tales\n\nLicence words.\n\n"
        "*** START OF THIS PROJECT GUTENBERG EBOOK TALES ***\n\nProduced by Nobody\n"
        f"\n\n\nPREFACE\n\nThis preface is for elders.\n{parts}\n\nTHE END\n\n"
        "OUR CATALOGUE\n"
        "\n\n*** END OF THIS PROJECT GUTENBERG EBOOK TALES ***\n\nTerms of use.\n"
    )


@pytest.fixture
def mirror(corpus, tmp_path):
    """A mirror with two books and small stories, without the other sources."""
    for number in (1, 2):
        tales = [
            (f"THE {noun.upper()}", tale(number * 20 + i))
            for i, noun in enumerate(NOUNS)
        ]
        path = tmp_path / "mirror" / "gutenberg" / f"pg{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(book(tales), encoding="utf-8")
    folder = tmp_path / "mirror" / "simple" / "tinystories"
    folder.mkdir(parents=True)
    for name, seed in (("v1-train-toyrnn", 60), ("v1-valid-moebench", 70)):
        stories = [f"{tale(seed + i)}\n<|endoftext|>\n" for i in range(5)]
        (folder / f"{name}.txt").write_text("".join(stories), encoding="utf-8")
    return tmp_path / "mirror"


def test_header_front_matter_and_catalogue_go(corpus):
    tales = [("THE POND", tale(1)), ("THE MOAT", tale(2))]
    pieces = corpus.split_book("1", book(tales))
    assert [piece.title for piece in pieces] == ["THE POND", "THE MOAT"]
    everything = "\n".join(piece.text for piece in pieces)
    for word in "Gutenberg Licence Produced elders Terms MOAT CATALOGUE".split():
        assert word not in everything


def test_paragraphs(corpus):
    assert corpus.clean_paragraph("One line\nand   another.") == "One line and another."
    assert corpus.clean_paragraph("   Oh moon,\n   oh sea.") == "Oh moon,\noh sea."
    assert corpus.clean_paragraph("ONCE upon a time") == "Once upon a time"
    paragraphs = []
    for block in ("The boat had a", "tin sail, hav-", "ing no oar.", "She slept."):
        corpus.add_paragraph(paragraphs, block)
    assert paragraphs == ["The boat had a tin sail, having no oar.", "She slept."]


def test_text_is_plain(corpus):
    text = "\u201cA caf\u00e9\u201d \u2014 \u2018it\u2019s _here_\u2019\u2026"
    assert corpus.plain(text) == "\"A cafe\"--'it's here'..."


def test_notes_and_sources_go(corpus):
    text = tale(1).replace(".", "[1]. [Picture: DEEP] Yes.", 1)
    text = f"[Illustration: A POND [see\npage 3] DEEP]\n\n{text}\n\n[1] A footnote."
    text = book([("THE POND", f"{text}\n\nFrom the Dutch.")])
    (piece,) = corpus.split_book("1", text)
    for word in ("[", "]", "footnote", "Dutch", "DEEP"):
        assert word not in piece.text


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("CHAPTER IV. The Barn", True),
        ("12", True),
        ("The Goat and the Snow-plough", True),
        ("And so it was.", False),
        ("'Come in,' said the otter.", False),
        ("     THE SONG", False),
    ],
)
def test_headings(corpus, block, expected):
    assert corpus.is_heading(block) is expected


def test_words_out_are_whole_words(corpus, monkeypatch):
    out = corpus.Piece("1", "A", "They called him a Blackamoor there.")
    kept = corpus.Piece("1", "B", "A raccoon and some jewels.")
    named = corpus.Piece("1", "The Named Tale.", "Nothing.")
    monkeypatch.setattr(corpus, "TITLES_OUT", {"1 THE NAMED TALE"})
    assert corpus.drop_words([out, kept, named]) == [kept]


def test_nothing_held_out_is_in_training(corpus, monkeypatch):
    monkeypatch.setattr(corpus, "HELD_OUT", 0.3)
    tales = [corpus.Piece("1", f"The {noun}", tale(i)) for i, noun in enumerate(NOUNS)]
    (held, *_) = filter(corpus.is_held_out, tales)
    retold = corpus.Piece("2", f"Story of {held.title}", tale(50))
    alike = corpus.Piece("2", "Other", tale(51) + held.text)
    again = corpus.Piece("2", "Again", retold.text.replace("z5", "z6") + tale(52))
    train, held_out = corpus.split(
        {"tales": (tales, []), "novels": ([retold, alike, again], [])}
    )
    assert 0 < len(held_out["tales"]) < 10
    assert train["novels"] == [again]
    assert not set(train["tales"]) & set(held_out["tales"])


def test_missing_sources_are_named_and_left_out(corpus, mirror, tmp_path, capsys):
    (mirror / "gutenberg" / "pg2.txt").unlink()
    report = corpus.build_corpus(tmp_path / "out")
    said = capsys.readouterr().out
    for name in ("book 2", "pratham-books", "topical-chat", "czhou-val"):
        assert f"{name}" in said
    assert report["tinystories"]["train"]["texts"] == 5
    assert report["novels"]["train"]["texts"] == 0 < report["tales"]["train"]["texts"]


def test_book_comes_from_its_address(corpus, mirror, tmp_path, monkeypatch):
    source = mirror / "gutenberg" / "pg2.txt"
    text = source.read_text(encoding="utf-8-sig")
    source.unlink()

    def retrieve(url, known_hash, name, folder):
        assert url == "https://www.gutenberg.org/cache/epub/2/pg2.txt"
        folder.mkdir(parents=True)
        (folder / name).write_text(text, encoding="utf-8")

    monkeypatch.delenv("COURSE_OFFLINE")
    monkeypatch.setattr(corpus.pooch, "retrieve", retrieve)
    assert len(corpus.read_books(["2"])) == 10
    assert (tmp_path / "downloads" / "gutenberg" / "pg2.txt").exists()


def test_full_disk_leaves_the_old_files(corpus, mirror, tmp_path, monkeypatch):
    corpus.build_corpus(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full_disk(self, text, **_):
        self.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        corpus.build_corpus(tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.skipif(
    not (MIRROR / "simple").is_dir(), reason="COURSE_MIRROR has no simple/"
)
def test_real_sources(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("corpus_under_test", SCRIPT)
    corpus = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(corpus)
    monkeypatch.setattr(corpus, "COLLECTIONS", "902 2781 3282 4018 27903".split())
    monkeypatch.setattr(corpus, "NOVELS", ["11", "836"])
    numbers = [*corpus.COLLECTIONS, *corpus.NOVELS]
    pieces = corpus.read_books(numbers)
    assert {piece.book for piece in pieces} == {*numbers}
    kept = corpus.drop_words(pieces)
    assert 10 < len(pieces) - len(kept) < 40
    for piece in kept:
        assert piece.text.isascii() and not set("|_\t") & set(piece.text)
        assert not any(word in piece.text for word in ("Gutenberg", "Transcriber"))
    stories = corpus.read_texts("african-storybook/stories.txt")
    assert len(stories) == 311 and all(len(story.text) > 60 for story in stories)
