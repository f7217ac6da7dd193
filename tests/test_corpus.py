"""The text for gpt2-mini: cleaning, cutting, leaving out, and the split.

The small books here are written for these tests; the last test reads the real ones.
"""

import functools
import hashlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "data" / "gpt2-mini" / "corpus.py"
MIRROR = Path(os.environ.get("COURSE_MIRROR", "-")) / "gutenberg"
OUTPUTS = ("train.txt", "validation.txt", "corpus.json")
NOUNS = (
    "otter kettle lantern orchard cobbler bridge candle heron basket shepherd".split()
)
SOME_BOOKS = (11, 236, 836, 902, 2781, 3282, 4018)  # all 46 take half a minute
VERBS = (
    "found carried followed painted mended watched hid borrowed polished sang".split()
)


def fresh_script(monkeypatch):
    """A copy of the script, as a module of its own."""
    spec = importlib.util.spec_from_file_location("corpus_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A fresh copy of the script that knows two small collections and no network."""
    module = fresh_script(monkeypatch)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(module, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(module, "BOOKS", {1: "Pond Tales", 2: "Hill Tales"})
    monkeypatch.setattr(module, "CHECKSUMS", {})
    monkeypatch.setattr(module, "COLLECTIONS", {1, 2})
    monkeypatch.setattr(module, "VALIDATION", 0.1)
    monkeypatch.setattr(module, "SHORTEST_BOOK", 1000)
    (tmp_path / "mirror" / "gutenberg").mkdir(parents=True)
    return module


def tale(seed, sentences=20):
    """Return a made-up tale whose sentences no other seed has."""
    lines = [
        f"The {NOUNS[(seed + i) % 10]} of farm {seed * 100 + i} x{seed}y "
        f"{VERBS[(seed * i) % 10]}\nthe {NOUNS[(3 * seed + i) % 10]} by stile z{seed}."
        for i in range(sentences)
    ]
    return "\n\n".join(lines).translate(str.maketrans("0123456789", "abcdefghij"))


def book(tales):
    """Return a book in the shape of Project Gutenberg's files."""
    parts = "".join(f"\n\n\n\n{title}\n\n\n{text}\n" for title, text in tales)
    contents = "\n".join(f"  {title} {i}" for i, (title, _) in enumerate(tales))
    return (
        "\ufeffThe Project Gutenberg EBook of Tales\n\nLicence words.\n\n"
        "*** START OF THIS PROJECT GUTENBERG EBOOK TALES ***\n\nProduced by Nobody\n"
        f"\n\n\nPREFACE\n\nThis preface is for elders.\n\n\n\nCONTENTS\n\n{contents}\n"
        f"{parts}\n\n*** END OF THIS PROJECT GUTENBERG EBOOK TALES ***\n\n"
        "These Terms say what every reader may do with the copy.\n"
    )


def save(corpus, tmp_path, number, text):
    """Put a book into the mirror of the test and record its checksum."""
    path = tmp_path / "mirror" / "gutenberg" / f"pg{number}.txt"
    path.write_bytes(text.encode("utf-8"))
    corpus.CHECKSUMS[number] = hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shelf(corpus, tmp_path):
    """Two books of ten tales each."""
    for number, place in ((1, "POND"), (2, "HILL")):
        tales = [
            (f"THE {noun.upper()} OF THE {place}", tale(number * 20 + i))
            for i, noun in enumerate(NOUNS)
        ]
        save(corpus, tmp_path, number, book(tales))
    return corpus


def texts(folder):
    """Return the tales of both parts that were written to `folder`."""
    return [
        (folder / name).read_text(encoding="utf-8").split("<|endoftext|>")
        for name in OUTPUTS[:2]
    ]


def test_header_front_matter_and_contents_go(corpus):
    pieces = corpus.split_pieces(
        1, book([("THE POND", tale(1)), ("THE MOAT", tale(2))])
    )
    assert [piece.title for piece in pieces] == ["THE POND", "THE MOAT"]
    everything = "\n".join(piece.text for piece in pieces)
    for word in ("Gutenberg", "Licence", "Produced", "elders", "Terms", "MOAT", "POND"):
        assert word not in everything


def test_old_header_without_start_line(corpus):
    mark = "*END*THE SMALL PRINT! FOR ETEXTS*Ver.1*END*"
    old = f"Welcome\n\n{mark}\n\n\n\nTHE POND\n\n\n{tale(1)}\n\n\nEnd of The Project "
    (piece,) = corpus.split_pieces(1, old + "Gutenberg Etext of Pond\n")
    assert piece.text.startswith("The ") and "Gutenberg" not in piece.text


def test_paragraphs_are_joined_and_verse_keeps_its_lines(corpus):
    assert corpus.clean_paragraph("One line\nand   another.") == "One line and another."
    assert corpus.clean_paragraph("   Oh moon,\n   oh sea.") == "Oh moon,\noh sea."
    assert corpus.clean_paragraph("a well-\nmade boat") == "a well-made boat"
    assert corpus.clean_paragraph("ONCE upon a time") == "Once upon a time"


def test_paragraphs_cut_by_a_page_are_mended(corpus):
    paragraphs = []
    for block in ("The boat had a", "tin sail, hav-", "ing no oar.", "She slept."):
        corpus.add_paragraph(paragraphs, block)
    assert paragraphs == ["The boat had a tin sail, having no oar.", "She slept."]


def test_quotes_dashes_and_letters_are_plain(corpus):
    text = corpus.plain(
        "\u201cA caf\u00e9\u201d \u2014 \u2018it\u2019s _here_\u2019\u2026"
    )
    assert text == "\"A cafe\"--'it's here'..."
    assert text.isascii()


def test_marks_notes_and_sources_go(corpus):
    text = tale(1).replace(".", "[1]. [Picture: DEEP] Yes.", 1)
    text = f"[Illustration: A POND [see\npage 3] DEEP]\n\n{text}\n\n[1] A foot-note."
    (piece,) = corpus.split_pieces(
        1, book([("THE POND", f"{text}\n\nFrom the Dutch.")])
    )
    assert not {"[", "]"} & set(piece.text)
    assert "foot-note" not in piece.text and "Dutch" not in piece.text
    assert "DEEP" not in piece.text


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("CHAPTER IV. The Barn", True),
        ("Chapter 2", True),
        ("12", True),
        ("THE GOLDEN SPOON", True),
        ("The Goat and the Snow-plough", True),
        ("To Your Good Luck!", True),
        ("And so it was.", False),
        ("'Come in,' said the otter.", False),
        ("He ran off into the forest", False),
        ("     THE SONG", False),
    ],
)
def test_headings(corpus, block, expected):
    assert corpus.is_heading(block) is expected


def test_parts_of_a_tale_stay_together(corpus):
    text = f"I\n\n{tale(1)}\n\n\n\nII.\n\n\n{tale(2)}"
    assert len(corpus.split_pieces(1, book([("THE POND", text)]))) == 1


def test_short_pieces_join_the_one_before(corpus):
    tales = [
        ("THE POND", tale(1)),
        ("THE SIGN", "It said: dry."),
        ("THE MOAT", tale(2)),
    ]
    pieces = corpus.split_pieces(1, book(tales))
    assert [piece.title for piece in pieces] == ["THE POND", "THE MOAT"]
    assert pieces[0].text.endswith("It said: dry.")


def test_words_out_are_whole_words(corpus, monkeypatch):
    out = corpus.Piece(1, "A", "They called him a Blackamoor there.")
    kept = corpus.Piece(1, "B", "A raccoon and some jewels.")
    named = corpus.Piece(1, "The Named Tale", "Nothing.")
    monkeypatch.setattr(corpus, "TALES_OUT", {(1, "THE NAMED TALE")})
    assert corpus.drop_words([out, kept, named]) == ([kept], 2)


def test_repeats_across_books_go(corpus):
    first = corpus.Piece(1, "A", tale(1))
    again = corpus.Piece(2, "B", tale(1).replace("found", "saw") + "\n\nThe end.")
    other = corpus.Piece(2, "C", tale(2))
    kept, repeats, _ = corpus.drop_repeats([first, again, other])
    assert [piece.title for piece in kept] == ["A", "C"] and repeats == 1


def test_long_paragraph_of_another_tale_goes_but_a_refrain_stays(corpus):
    line = (
        "Seven long years she swept the winding stair, and seven more she wept there."
    )
    line += " And nobody came."
    first = corpus.Piece(1, "A", f"{line}\n\n{tale(1)}\n\n{line}")
    second = corpus.Piece(2, "B", f"{tale(2)}\n\n{line}")
    kept, _, paragraphs = corpus.drop_repeats([first, second])
    assert kept[0].text.count(line) == 2 and line not in kept[1].text
    assert paragraphs == 1


def test_split_has_no_overlap_and_is_the_same_twice(shelf, tmp_path):
    report = shelf.build_corpus(tmp_path / "a")
    shelf.build_corpus(tmp_path / "b")
    for name in OUTPUTS:
        first, second = ((tmp_path / run / name).read_bytes() for run in "ab")
        assert first == second
    train, validation = texts(tmp_path / "a")
    assert len(train) + len(validation) == report["tales_kept"] == 20
    assert validation[0] and not set(train) & set(validation)
    share = report["validation"]["characters"] / report["train"]["characters"]
    assert 0.05 < share < 0.25
    assert report["train"]["characters"] == sum(map(len, train))
    assert json.loads((tmp_path / "a" / "corpus.json").read_text())["books"] == 2


def test_validation_takes_no_tale_that_another_resembles(corpus):
    shared = "\n\n".join(tale(1).split("\n\n")[:5])
    pieces = [corpus.Piece(1, NOUNS[i], f"{shared}\n\n{tale(i)}") for i in range(2, 9)]
    assert corpus.choose_validation(pieces) == set()
    pieces.append(corpus.Piece(2, "Alone", tale(30)))
    assert {piece.title for piece in corpus.choose_validation(pieces)} == {"Alone"}


def test_validation_takes_no_tale_that_two_books_tell(corpus):
    twins = [
        corpus.Piece(1, "The Heron", tale(1)),
        corpus.Piece(2, "Story of a Heron", tale(2)),
    ]
    assert corpus.choose_validation(twins) == set()


def test_missing_book_is_an_error_or_skipped(shelf, tmp_path, capsys):
    (tmp_path / "mirror" / "gutenberg" / "pg2.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"Hill Tales.*COURSE_MIRROR"):
        shelf.build_corpus(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = shelf.build_corpus(tmp_path / "out", skip_missing=True)
    assert report["books_skipped"] == [2] and report["books"] == 1
    assert "Hill Tales" in capsys.readouterr().out


def test_changed_edition_is_named_with_both_checksums(shelf, tmp_path):
    path = tmp_path / "mirror" / "gutenberg" / "pg2.txt"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match="Hill Tales") as error:
        shelf.build_corpus(tmp_path / "out")
    assert shelf.CHECKSUMS[2] in str(error.value)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in str(error.value)
    assert shelf.build_corpus(tmp_path / "out", skip_missing=True)["books"] == 1
    assert shelf.build_corpus(tmp_path / "out", any_edition=True)["books"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("<!DOCTYPE html><html>" + "x" * 2000, "HTML"), ("A few words.", "12 bytes")],
    ids=["page", "short"],
)
def test_what_is_no_book_is_refused(shelf, tmp_path, text, message):
    save(shelf, tmp_path, 2, text)
    with pytest.raises(ValueError, match=message):
        shelf.build_corpus(tmp_path / "out", any_edition=True)


def test_book_without_tales_is_refused(shelf, tmp_path):
    save(shelf, tmp_path, 2, "only words in a row, no tale\n" * 100)
    with pytest.raises(ValueError, match="Hill Tales.*no tale"):
        shelf.build_corpus(tmp_path / "out")


def test_download_is_kept_whole_or_not_at_all(shelf, tmp_path, monkeypatch):
    source = tmp_path / "mirror" / "gutenberg" / "pg2.txt"
    good, seen = source.read_bytes(), []
    source.unlink()
    monkeypatch.delenv("COURSE_OFFLINE")

    def serve(data):
        def get(url, output_file, _):
            seen.append(url)
            Path(output_file).write_bytes(data)

        monkeypatch.setattr(shelf.pooch, "HTTPDownloader", lambda **_: get)

    kept = tmp_path / "downloads" / "gutenberg"
    serve(b"<html>busy</html>" + good)
    with pytest.raises(ValueError, match="HTML"):
        shelf.find_book(2)
    assert list(kept.iterdir()) == []
    serve(good)
    assert shelf.find_book(2).read_bytes() == good
    assert shelf.find_book(2).parent == kept and len(seen) == 2
    assert seen[-1] == "https://www.gutenberg.org/cache/epub/2/pg2.txt"


def test_nothing_is_half_written(shelf, tmp_path, monkeypatch):
    shelf.build_corpus(tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUTS}

    def full_disk(self, text, **_):
        self.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        shelf.build_corpus(tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.skipif(
    not (MIRROR / "pg27826.txt").is_file(), reason="COURSE_MIRROR holds no gutenberg/"
)
def test_real_books(tmp_path, monkeypatch):
    module = fresh_script(monkeypatch)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setattr(module, "DOWNLOADS", tmp_path / "downloads")
    assert len(module.BOOKS) == len(module.CHECKSUMS) == 46
    sizes = [len(module.read_book(number)) for number in module.BOOKS]  # unaltered
    assert sum(sizes) > 18_000_000
    some = {number: module.BOOKS[number] for number in SOME_BOOKS}
    monkeypatch.setattr(module, "BOOKS", some)
    monkeypatch.setattr(module, "shingles", functools.cache(module.shingles))
    report = module.build_corpus(tmp_path)
    train, validation = texts(tmp_path)
    text = "\n".join(train + validation)
    assert report["books"] == len(SOME_BOOKS)
    assert report["train"]["characters"] > 1_400_000
    assert report["tales_dropped"]["words_or_titles"] > 10
    assert 0.015 < report["validation"]["characters"] / len(text) < 0.04
    assert text.isascii() and not set("|_[]\t") & set(validation[0])
    assert not any(w in text for w in ("Gutenberg", "[Illustration", "Transcriber"))
    assert not module._OUT.search(text)
    assert min(map(len, train + validation)) > module.SHORTEST / 2
    seen = set().union(*map(module.shingles, train))
    for tale_text in validation:
        codes = module.shingles(tale_text)
        assert len(codes & seen) <= 0.02 * len(codes)
