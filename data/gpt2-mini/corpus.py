"""Turn 46 public-domain story books into clean text for a small language model.

    python data/gpt2-mini/corpus.py [--out data/runs/gpt2-mini] [--skip-missing]

The books come from `data/downloads/gutenberg/`, from the folder or address in the
environment variable `COURSE_MIRROR`, or from Project Gutenberg. Each is cut into
tales (story collections) or chapters (novels), cleaned to plain ASCII with one line
a paragraph, and written without its heading. Tales with period slurs and repeats are
left out. About 2 % of the characters are validation, drawn by a hash of book and
title: whole tales from collections that print each tale as one piece, none of which
is in training, nor one like it. Novels are for training alone.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import unicodedata
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pooch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from helpers import DOWNLOADS, RUNS, atomic_write  # noqa: E402

END = "<|endoftext|>"
ADDRESS = "https://www.gutenberg.org/cache/epub/{number}/pg{number}.txt"
BOOKS = {
    11: "Alice's Adventures in Wonderland",
    12: "Through the Looking-Glass",
    45: "Anne of Green Gables",
    54: "The Marvelous Land of Oz",
    55: "The Wonderful Wizard of Oz",
    113: "The Secret Garden",
    120: "Treasure Island",
    128: "The Arabian Nights Entertainments",
    225: "At the Back of the North Wind",
    236: "The Jungle Book",
    271: "Black Beauty",
    289: "The Wind in the Willows",
    420: "Dorothy and the Wizard in Oz",
    485: "The Road to Oz",
    486: "Ozma of Oz",
    500: "Pinocchio",
    503: "The Blue Fairy Book",
    517: "The Emerald City of Oz",
    540: "The Red Fairy Book",
    640: "The Yellow Fairy Book",
    641: "The Violet Fairy Book",
    708: "The Princess and the Goblin",
    778: "Five Children and It",
    836: "The Phoenix and the Carpet",
    902: "The Happy Prince",
    1448: "Heidi",
    1450: "Pollyanna",
    1874: "The Railway Children",
    1937: "The Second Jungle Book",
    2435: "The Crimson Fairy Book",
    2591: "Grimms' Fairy Tales",
    2781: "Just So Stories",
    3027: "The Orange Fairy Book",
    3282: "The Brown Fairy Book",
    3454: "The Lilac Fairy Book",
    3536: "The Enchanted Castle",
    4018: "Japanese Fairy Tales",
    5615: "The Pink Fairy Book",
    6746: "The Grey Fairy Book",
    7128: "Indian Fairy Tales",
    7277: "The Green Fairy Book",
    7439: "English Fairy Tales",
    7885: "Celtic Fairy Tales",
    14241: "More English Fairy Tales",
    27200: "Fairy Tales of Hans Christian Andersen",
    27826: "The Olive Fairy Book",
}
CHECKSUMS = {
    11: "606a1d2ab8763a40ab5e3cee3fdf093bffea86ec05927d3f0fcb9536d4b1f60d",
    12: "ff2a8905af982b35b0ed0a3f1072c814bc5ea862989eb7aed60da02d2a7aafbf",
    45: "b6a5f2cbf80c2bf77592c20b05c69c6303c9b8c25d0d277297911a8b0e04c678",
    54: "4973a2ddab69bbb5e671b7f70bad4066088a01d7a0d43ba9e910c5b9ac73373a",
    55: "a5920378f07ecbdc34c21555c1c9fe51cdb4780c147928fcd2cc17483e5b0f51",
    113: "1166e0032b36e66794c8dcf4bb88ac6551bda9128567cdb3e3514072af487404",
    120: "9481319d6f6b5dda7fb13fed633498104e5a76a251958e25a0cca3b5b77a059f",
    128: "07e81827d1ce45b82a30c27a6db07a38dc50993f92ebede3ce3cf7bf94882218",
    225: "12822e7c10d42db67848292d63b781f9fa3dc9bc8f3a8b327960382ba249fee2",
    236: "3f3619ddd991928996e815d8588e14504e926980dc2b7960405614c837a07720",
    271: "00e5dd36d9c354f302acbdf30716a98ae6953fc5798247b4071b2bb57f8f7744",
    289: "873c172ef624a1630ff009f40f8b29b874a8e03eadb7b92d807a080cdf8f602a",
    420: "7dd3a1282f3aecd3568e90a00b50afcc8202c455ec585e8ade40dcb424f805d2",
    485: "003e48aab4c143b78bc707ec9a2361418eb057fd9afadc79f428ea5891fe20be",
    486: "3e6a1bb436eaa9479d9ba78c01c0a5fc00482fae9d8493a00245466ae1deb124",
    500: "7cb7532a07b8ad8688eac72b7b0c27007286de81ba10d3cc54e260c0015b4371",
    503: "278ce8b6a99477fdf6574198c4023e0f03376a03da245a67593f2e10764e9ace",
    517: "e0e4ea441d73da61fdf7eb032237125b064fbebc053cfc3c80ece584372ea33f",
    540: "5e9cf38b80178cb201e191a2bbf2e0cd5a708c87ebd63c285f564a7d4162a4a6",
    640: "a2366589b93d7f26def30a07cce616369784de7b1ff1b598331878b5949994e9",
    641: "efb46c3d0691c9fec9a3c085cca9b4aadb3a626e14719bdddd07949a22d55ad7",
    708: "7a9380225b3882ed19a13cb960e078199140f81e92d03641b8f4dba0d3d857cf",
    778: "548c84a8964f35753a85af65d9ad9286676e683f6ca5a9146ee2aab3f49528ed",
    836: "d6ef5167299a656aaf5dff9c2c339ed15d75517c049fd5ba948cdb5d61b9b310",
    902: "cde16bc3152159d1362aebf270c99424788d62caf6ff63a33218661b66462123",
    1448: "1cb5c6ae4a55757d20f3eabe9dbf719d38cdf9ce36e5ee7e583ef37e4dd8f199",
    1450: "0b83c5b55f9301688630ccb97150385c115c7980eadc38b52fa6ce2a95d09e42",
    1874: "775b805f916449f9db7abe4554d2770a4dcbab486a5a093c5ddf36d3220b85c0",
    1937: "e1bbf3ae5d39890838b4f158b74d8840671139edcf04c683c6731e984dd46f6d",
    2435: "f178b2c169963aa48c748b8fccfb3b0485e6f782a2c21b10051f9bcd99bd7f13",
    2591: "2b13e225751135ca74ec1d0cb01a9a309f04f91fce13af08659971c52d77446c",
    2781: "b2f0fdb30e2d80ecb18ceac2015da3877a8e3b3b5385e25e33fb889678fac2e8",
    3027: "7919c5ef7339b306ba77960ed8911fca42b2849d1060e0ffcf3b44fa71aabf35",
    3282: "f66f2f00e75c838e3aee3c72178604a79f4f66c3216097f20d189dc50fa8e315",
    3454: "cee3ca7f8cbf6553b1c2061f479d1072749f0030cb9d547711ec5e423aaee2e3",
    3536: "dc88fd44305b3dfa0711e05c9401f79ce29ee0f404d2de9f40512768f25ecb7f",
    4018: "783cccb8aaefbfc87d2639c17b24491286cfd2810d95ac56848d03fdf0dc31dd",
    5615: "69a778cddb76547118fd8ac7cdf72a49353d921b209656f5865d6222c1b58b1f",
    6746: "dc6969166f04c0eaa0dcd79ec869ac43da4cebb919df73ccbd4c5e37ac2905cc",
    7128: "2ccc1c561c201723780d0766973ef3dd90475b4ad13c195494970583b5c3b3ff",
    7277: "f8b38d048a4921d25b3fc0c8994e1f59b6731e468ac5113743a80bda9ab0560e",
    7439: "5376d31bf032249af2ff358e2abdf25d286c4eb2bfb5c6c0730a0b2f7a084874",
    7885: "409afb389d9252bb61a99f415d6b88eba607601aeb5234cd623c1d7edaac74f0",
    14241: "b0e01999f093e999740d4ab3c195539f07f9c1ed83e18810c868fcb625431a0e",
    27200: "c63c09246aa17d5e5ea248eb5e9aefad86a3ef883070de0115437732d7005b0f",
    27826: "dd779acda0981befa47123a21d94d16dc9253310ff0ba7ac9de4fc648d5738b6",
}
COLLECTIONS = {
    *(128, 236, 503, 540, 640, 641, 902, 1937, 2435, 2591, 2781, 3027, 3282, 3454),
    *(4018, 5615, 6746, 7128, 7277, 7439, 7885, 14241, 27200, 27826),
}
WORDS_OUT = (
    "nigger niggers negro negroes negress negresses blackamoor blackamoors darky "
    "darkies coon coons pickaninny piccaninny chinaman chinamen redskin redskins "
    "squaw squaws hottentot hottentots kaffir kaffirs mulatto cannibal cannibals "
    "jew jews jewess gipsy gipsies gypsy gypsies savages injun injuns lascar lascars"
).split()
PHRASES_OUT = (
    r"red indians?",
    r"(?:black|coloured|colored) (?:slaves?|man|men|wom[ae]n|boys?|servants?|people)",
)
TALES_OUT = {  # whatever their words
    (836, "THE TOPLESS TOWER"),
    (836, "THE QUEEN COOK"),
    (2781, "HOW THE LEOPARD GOT HIS SPOTS"),
    (3282, "THE ENCHANTED HEAD"),
    (3282, "WHAT THE ROSE DID TO THE CYPRESS"),
    (6746, "THE STORY OF DSCHEMIL AND DSCHEMILA"),
    (6746, "THE STORY OF THE THREE SONS OF HALI"),
    (6746, "UDEA AND HER SEVEN BROTHERS"),
}
IN_PARTS = {128, 236, 503, 540, 1937, 27200}  # long tales stand there as several
SHORTEST = 600  # characters of a piece that stands alone
SHORTEST_BOOK = 20_000
REPEATED = 0.3  # share of 8-word runs that makes a tale a repeat
VALIDATION = 0.02
LONGEST = 100_000  # a book without chapters is cut into parts of a third of this
LONGEST_VALIDATION = 30_000  # no one tale may fill the validation text

_ROMAN = r"[IVXLC]+"
_OUT = re.compile(rf"\b(?:{'|'.join((*WORDS_OUT, *PHRASES_OUT))})\b", re.IGNORECASE)
_MARKS = re.compile(
    r"\[(?:Illustration|Picture|Footnote|Transcriber|FN#)[^\[\]]*"
    r"(?:\[[^\[\]]*\][^\[\]]*)*\]",
    re.IGNORECASE,
)
_NOTE_SIGNS = re.compile(r" ?(?:\[(?:(?:FN#)?\d+|[*+A-Z])\]|\((?:\d{1,2}|\*)\))")
_PAGES = re.compile(
    r"^(?:\d{1,3})?[ \t]*(?:Full page )?line-art drawing\.?[ \t]*$|^\d{1,3}[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_CHAPTER = re.compile(
    rf"(?:(?i:chapter|part)\s+(?:{_ROMAN}|\d+|(?i:one|two|three|four|five|six))\b"
    rf"|(?:{_ROMAN}|\d{{1,3}})(?:\.|\s*$|\s{{2,}}|(?<=\d)\s))[\s.:-]*"
)
_PART_OF_TALE = re.compile(
    rf"(?:{_ROMAN}\.?|\d+\.?|\S+ (?:story|part|adventure)|\S+day|\S+ evening"
    r"|\S+ visit|\S+ voyage|seventh and last voyage|part \S+)$",
    re.IGNORECASE,
)
_FRONT = re.compile(
    r"(?:the )?(?:preface|introduction|(?:table of )?contents|dedication|author's note"
    r"|to my readers|to the friendly reader|(?:list of )?(?:full.page )?illustrations"
    r"|plates|coloured plates|illustrations in text|transcriber's notes?"
    r"|preparer's note|footnotes?|notes and references|to the hesitating purchaser"
    r"|oyez.*|the end|finis|index|bibliography|by$)\b",
    re.IGNORECASE,
)
_TITLE_PAGE = re.compile(
    r"copyright|all rights reserved|printed (?:by|in)|pictured by|frontispiece",
    re.IGNORECASE,
)
_SMALL_WORDS = "a an and at by for from in of on or the to with".split()
_LITTER = re.compile(r"[\[(](?:FN#)?(?:\d+|\*)[\]):]|\* ?\w|\[(?!.*\].*\w)", re.DOTALL)
_SOURCE = re.compile(
    r"\(?(?:from |adapted |translated |taken |told |contes |footnote|printed |\[)",
    re.IGNORECASE,
)
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛´`ʼ′", "'"),
        **dict.fromkeys("“”„‟«»″", '"'),
        **dict.fromkeys("—–―‒", "--"),
        **{"…": "...", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe"},
        **{"ø": "o", "Ø": "O", "ß": "ss", "ð": "d", "þ": "th", "_": ""},
        **{"\t": " ", "\u00a0": " ", "\ufeff": "", "\u00ad": "", "£": "L"},
    }
)


class Piece(NamedTuple):
    """One tale or chapter: number of its book, title, cleaned text."""

    book: int
    title: str
    text: str


# Finding and checking the books


def find_book(number: int) -> Path:
    """Return the path of e-book `number`, downloading it where no folder has it.

    Raises:
        FileNotFoundError: no source has the book.
        ValueError: the address gave a web page, or a text too short for a book.
    """
    name = f"pg{number}.txt"
    kept = DOWNLOADS / "gutenberg" / name
    mirror = os.environ.get("COURSE_MIRROR", "").rstrip("/")
    is_address = mirror.startswith(("http://", "https://"))
    in_mirror = Path(mirror) / "gutenberg" / name if mirror and not is_address else kept
    for path in (kept, in_mirror):
        if path.is_file():
            return path
    urls = [f"{mirror}/gutenberg/{name}"] if is_address else []
    urls += [ADDRESS.format(number=number)]
    tried = []
    for url in urls if os.environ.get("COURSE_OFFLINE") != "1" else ():
        try:
            return _download(url, kept, number)
        except OSError as error:  # requests' own errors are OSErrors
            tried.append(f"{url}: {type(error).__name__}")
    raise FileNotFoundError(
        f"{_name(number)} can't be had ({'; '.join(tried) or 'no folder has it'}): "
        f"connect to a network, put {name} into {kept.parent}, set COURSE_MIRROR to a "
        f"folder with gutenberg/{name}, or leave it out with --skip-missing"
    )


def _download(url: str, target: Path, number: int) -> Path:
    """Download one book to `target`, whole or not at all."""
    with atomic_write(target) as temporary:
        pooch.HTTPDownloader(timeout=(5, 30))(url, str(temporary), None)
        _check_is_book(temporary.read_bytes(), number)
    return target


def _name(number: int) -> str:
    """Name a book for messages."""
    return f"book {number} ({BOOKS[number]})"


def _check_is_book(raw: bytes, number: int) -> None:
    """Raise a ValueError if `raw` is a web page or too short for a book."""
    head = raw[:512].lower()
    if b"<html" in head or b"<!doctype html" in head:
        fault = "got an HTML page"
    elif len(raw) < SHORTEST_BOOK:
        fault = f"got {len(raw):,} bytes, expected {SHORTEST_BOOK:,} or more"
    else:
        return
    raise ValueError(
        f"{_name(number)}: {fault}: put the plain text from "
        f"{ADDRESS.format(number=number)} in its place, or use --skip-missing"
    )


def read_book(number: int, any_edition: bool = False) -> str:
    """Return the text of a book; a ValueError if it isn't the edition known here."""
    path = find_book(number)
    raw = path.read_bytes()
    _check_is_book(raw, number)
    digest = hashlib.sha256(raw).hexdigest()
    if digest != CHECKSUMS[number] and not any_edition:
        raise ValueError(
            f"{_name(number)} is another edition: {path.name} has SHA-256 {digest}, "
            f"expected {CHECKSUMS[number]}: use it all the same with --any-edition, "
            f"or leave it out with --skip-missing"
        )
    text = raw.decode("utf-8-sig", errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# From a book to its tales


def strip_gutenberg(text: str) -> str:
    """Return what stands between Project Gutenberg's own header and footer."""
    starts = (
        r"\*\*\* ?START OF TH[^\n]*\n",
        r"\*END\*? ?THE SMALL PRINT![^\n]*\n",
        r"\*\*\*\*\*This file should be named[^\n]*\n",
    )
    ends = r"\n[* ]*(?:END OF|This is the end of)?[^\n]{0,12}Project Gutenberg"
    for start in starts:
        if found := re.search(start, text, re.IGNORECASE):
            text = text[found.end() :]
            break
    half = len(text) // 2
    if found := re.search(ends, text[half:], re.IGNORECASE):
        text = text[: half + found.start()]
    after = r"\n\s*notes and references\s*\n|\nThe Brothers Grimm, Jacob \("
    if found := re.search(after, text[half:], re.IGNORECASE):
        text = text[: half + found.start()]
    return text


def plain(text: str) -> str:
    """Return `text` in plain ASCII: straight quotes, dashes as `--`, no accents."""
    text = re.sub(r"\|(?![A-Z])", "", text)  # borders of boxes
    text = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    text = text.encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[ ]*(?:-{2,}|(?<=\w) - (?=\w))[ ]*", "--", text)


def is_heading(block: str) -> bool:
    """Say whether a block of lines that stands apart is the heading of a piece."""
    lines = block.strip().split("\n")
    line = " ".join(lines).strip()
    if len(lines) > 3 or len(line) > 100 or line[-1] in ",;:-":
        return False
    indented = block.startswith("   ")
    if indented and not block.startswith(" " * 5):
        return False
    letters = re.sub(r"[^A-Za-z]", "", line)
    if not letters or letters.isupper():
        return not indented and (bool(letters) or line.rstrip(".").isdigit())
    return bool(_CHAPTER.match(line)) or is_title(line)


def is_part(block: str) -> bool:
    """Say whether a heading in a collection only begins a part of a tale."""
    return bool(_CHAPTER.match(block.strip()) or _PART_OF_TALE.match(block.strip()))


def is_title(line: str) -> bool:
    """Say whether a line is written like a title: its longer words have capitals."""
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", re.sub(r"\b[dl]'", "", line))
    capitals = [word for word in words if word[0].isupper()]
    longer = [word for word in words if len(word) > 4]
    named = longer or [word for word in words if word not in _SMALL_WORDS]
    is_speech = line[0] in "\"'" and not line.endswith(("'", '"'))
    return (
        len(line) < 75
        and 3 * len(capitals) >= len(words)
        and all(word in capitals for word in named)
        and not is_speech
        and (line[-1] not in "!?'" or len(capitals) == len(words))
    )


def clean_paragraph(block: str) -> str:
    """Join the lines of a block; lines of verse (all indented) stay lines."""
    lines = [line for line in block.split("\n") if line.strip()]
    is_verse = len(lines) > 1 and all(line.startswith("  ") for line in lines)
    block = ("\n" if is_verse else " ").join(line.strip() for line in lines)
    block = re.sub(r"(?<=\w)- (?=[a-z])", "-", block)
    block = _NOTE_SIGNS.sub("", block).replace("*", "")
    block = re.sub(r" +", " ", block).strip()
    if block.startswith("|"):  # a large initial, printed without its opening quote
        block = ('"' if block.count('"') % 2 else "") + block[1:]
    shouted = re.match(r"(['\"]*(?:[IA] )?)([A-Z]{2,})(?=,? (?:[a-z]|I ))", block)
    if shouted:
        block = shouted[1] + shouted[2].capitalize() + block[shouted.end() :]
    return block


def is_litter(block: str) -> bool:
    """Say whether a block is a foot-note, a bracketed note or an ornament."""
    block = block.strip()
    if not re.search(r"[A-Za-z]", block):
        return not block.rstrip(".").isdigit()
    return bool(_LITTER.match(block))


def split_pieces(number: int, text: str) -> list[Piece]:
    """Cut the text of a book into its tales or chapters, in order."""
    text = _MARKS.sub("", plain(strip_gutenberg(text)))
    if number == 54:  # its page numbers stand in the text
        text = re.sub(r"\n{3,}(?=[^\n]*[a-z])", "\n\n", _PAGES.sub("", text))
        text = re.sub(r"\n(?=\d+ {3,}\w)", "\n\n", text)
        text = re.sub(r"\n\n[^a-z\n]+\n(?=\n)", "\n", text)
    pieces, titles, paragraphs = [], [], []
    for gap, block in re.findall(r"(\n*)((?:[^\n]*\S[^\n]*(?:\n|$))+)", text):
        stands_apart = gap.count("\n") >= 2
        if is_litter(block):
            continue
        if stands_apart and is_heading(block):
            if number in COLLECTIONS and is_part(block):
                continue
            if paragraphs:
                pieces.append((titles, paragraphs))
                titles, paragraphs = [], []
            titles.append(_NOTE_SIGNS.sub("", " ".join(block.split())))
        elif titles:
            add_paragraph(paragraphs, clean_paragraph(block))
    pieces.append((titles, paragraphs))
    return join_short(number, pieces)


def add_paragraph(paragraphs: list[str], block: str) -> None:
    """Append a paragraph, or mend one that a page or a picture had cut in two."""
    if paragraphs and block[:1].islower() and re.search(r"[\w,-]$", paragraphs[-1]):
        before = paragraphs[-1]
        joined = before[:-1] if re.search(r"\w-$", before) else before + " "
        paragraphs[-1] = joined + block
    elif block:
        paragraphs.append(block)


def trim(paragraphs: list[str]) -> list[str]:
    """Return paragraphs without subtitles before them and sources after them."""
    start, stop = 0, len(paragraphs)
    while start < stop and is_beside(paragraphs[start]):
        start += 1
    while start < stop and is_beside(paragraphs[stop - 1]):
        stop -= 1
    return paragraphs[start:stop]


def is_beside(paragraph: str) -> bool:
    """Say whether a paragraph at the edge of a tale is a subtitle or its source."""
    if len(paragraph) > 160:
        return False
    in_brackets = paragraph[0] == "(" and paragraph.rstrip(".")[-1] == ")"
    is_source = bool(_SOURCE.match(paragraph)) and paragraph[-1] not in "\"'!?"
    return (
        (in_brackets and len(paragraph) < 75)
        or is_source
        or ("\n" not in paragraph and is_heading(paragraph))
    )


def is_front(number: int, title: str, text: str) -> bool:
    """Say whether a short piece is a title page, by its words or its title."""
    is_named = _short_title(title) == _short_title(BOOKS[number])
    return (len(text) < 5000 and bool(_TITLE_PAGE.search(text))) or (
        len(text) < 3000 and is_named
    )


def cut_long(piece: Piece) -> list[Piece]:
    """Cut a novel without chapters at ends of paragraphs; others stay whole."""
    if len(piece.text) <= LONGEST or piece.book in COLLECTIONS:
        return [piece]
    parts = [[]]
    for paragraph in piece.text.split("\n\n"):
        if sum(map(len, parts[-1])) > LONGEST // 3:
            parts.append([])
        parts[-1].append(paragraph)
    return [
        Piece(piece.book, f"{piece.title}, part {i}", "\n\n".join(part))
        for i, part in enumerate(parts, start=1)
    ]


def join_short(number: int, pieces: list[tuple]) -> list[Piece]:
    """Leave out front matter and add pieces too short to stand alone to the last."""
    result = []
    for titles, paragraphs in pieces:
        title = titles[-1] if titles else ""
        if found := _CHAPTER.match(title):
            title = title[found.end() :] or title
        text = "\n\n".join(trim(paragraphs))
        if not text or _FRONT.match(title) or is_front(number, title, text):
            continue
        if len(text) >= SHORTEST:
            result += cut_long(Piece(number, title, text))
        elif result:
            last = result[-1]
            result[-1] = last._replace(text=f"{last.text}\n\n{text}")
    return result


# Choosing among the tales


def drop_words(pieces: list[Piece]) -> tuple[list[Piece], int]:
    """Leave out the pieces with words, phrases or titles of the lists above."""
    kept = [
        piece
        for piece in pieces
        if (piece.book, piece.title.upper()) not in TALES_OUT
        and not _OUT.search(f"{piece.title} {piece.text}")
    ]
    return kept, len(pieces) - len(kept)


def shingles(text: str) -> set[int]:
    """Return checksums of a fixed quarter of the runs of eight words in `text`."""
    words = re.findall(r"[a-z]+", text.lower())
    runs = (" ".join(words[i : i + 8]) for i in range(max(1, len(words) - 7)))
    return {code for run in runs if (code := zlib.crc32(run.encode())) % 4 == 0}


def drop_repeats(pieces: list[Piece]) -> tuple[list[Piece], int, int]:
    """Leave out tales told before and long paragraphs that another piece has."""
    seen, owner, kept = set(), {}, []
    repeats = lines = 0
    for index, piece in enumerate(pieces):
        codes = shingles(piece.text)
        if len(codes & seen) > REPEATED * len(codes):
            repeats += 1
            continue
        seen |= codes
        paragraphs = piece.text.split("\n\n")
        fresh = [
            p for p in paragraphs if len(p) <= 80 or owner.setdefault(p, index) == index
        ]
        lines += len(paragraphs) - len(fresh)
        kept.append(piece._replace(text="\n\n".join(fresh)))
    return kept, repeats, lines


def _short_title(title: str) -> str:
    """Return a title without case, marks and the words that editions vary."""
    words = re.findall(r"[a-z]+", title.lower())
    return " ".join(w for w in words if w not in ("the", "a", "an", "story", "of"))


def choose_validation(pieces: list[Piece]) -> set[Piece]:
    """Return the whole tales set apart, about `VALIDATION` of the characters."""
    codes = {piece: shingles(piece.text) for piece in pieces}
    shared = Counter(code for group in codes.values() for code in group)
    titles = Counter(_short_title(piece.title) for piece in pieces)

    def is_single(piece):
        """Say whether hardly a run of eight words of a piece stands in another."""
        repeated = sum(shared[code] > 1 for code in codes[piece])
        return repeated <= 0.02 * len(codes[piece])

    wanted = VALIDATION * sum(len(piece.text) for piece in pieces)
    chosen, size = set(), 0
    for piece in sorted(
        pieces, key=lambda p: zlib.crc32(f"{p.book} {p.title}".encode())
    ):
        fits = (
            piece.book in COLLECTIONS - IN_PARTS
            and len(piece.text) <= LONGEST_VALIDATION
        )
        if size < wanted and fits and titles[_short_title(piece.title)] == 1:
            if is_single(piece):
                chosen.add(piece)
                size += len(piece.text)
    return chosen


# The whole way


def build_corpus(
    out: Path, skip_missing: bool = False, any_edition: bool = False
) -> dict:
    """Write `train.txt`, `validation.txt` and `corpus.json` to `out`; return the last.

    Args:
        out: folder for the three files.
        skip_missing: name and leave out books that can't be had or have changed.
        any_edition: take a book whose checksum isn't the one known here.

    Raises:
        FileNotFoundError: a book can't be had.
        ValueError: a book has changed, or no tale was found in it.
    """
    books = read_pieces(skip_missing, any_edition)
    pieces = [piece for book in books.values() for piece in book]
    clean, slurs = drop_words(pieces)
    kept, repeats, paragraphs = drop_repeats(clean)
    chosen = choose_validation(kept)
    train = [piece for piece in kept if piece not in chosen]
    validation = [piece for piece in kept if piece in chosen]
    report = {
        "books": len(books),
        "books_skipped": [number for number in BOOKS if number not in books],
        "tales_found": len(pieces),
        "tales_kept": len(kept),
        "tales_dropped": {"words_or_titles": slurs, "repeats": repeats},
        "paragraphs_dropped": paragraphs,
        "train": count(train),
        "validation": count(validation),
        "validation_tales": [[piece.book, piece.title] for piece in validation],
        "per_book": per_book(books, kept, chosen),
    }
    write_text(out / "train.txt", END.join(piece.text for piece in train))
    write_text(out / "validation.txt", END.join(piece.text for piece in validation))
    write_text(out / "corpus.json", json.dumps(report, indent=1) + "\n")
    return report


def read_pieces(skip_missing: bool, any_edition: bool) -> dict[int, list[Piece]]:
    """Return the pieces of each book; with `skip_missing`, without the faulty ones."""
    books = {}
    for number in BOOKS:
        try:
            pieces = split_pieces(number, read_book(number, any_edition))
            if not pieces:
                raise ValueError(f"{_name(number)}: no tale found; use --skip-missing")
            books[number] = pieces
        except (FileNotFoundError, ValueError) as error:
            if not skip_missing:
                raise
            print(f"Left out: {error}")
    if not books:
        raise ValueError("no book could be read: see the lines above")
    return books


def count(pieces: list[Piece]) -> dict:
    """Return the tales, characters and words of some pieces."""
    return {
        "tales": len(pieces),
        "characters": sum(len(piece.text) for piece in pieces),
        "words": sum(len(piece.text.split()) for piece in pieces),
    }


def per_book(books: dict, kept: list[Piece], chosen: set[Piece]) -> dict:
    """Return the title and the counts of each book that was read."""
    return {
        number: {
            "title": BOOKS[number],
            "found": len(books[number]),
            "train": count([p for p in kept if p.book == number and p not in chosen]),
            "validation": count([p for p in chosen if p.book == number]),
        }
        for number in books
    }


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Read the command line, build the corpus and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RUNS / "gpt2-mini")
    parser.add_argument("--skip-missing", action="store_true")
    parser.add_argument("--any-edition", action="store_true")
    options = parser.parse_args()
    try:
        report = build_corpus(options.out, options.skip_missing, options.any_edition)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"corpus.py: {error}")
    for number, book in report["per_book"].items():
        kept = book["train"]["tales"] + book["validation"]["tales"]
        print(f"{number:>6}  {book['found']:>4} found {kept:>4} kept  {book['title']}")
    print(f"dropped: {report['tales_dropped']}")
    for part in ("train", "validation"):
        print(f"{part}: {report[part]}")


if __name__ == "__main__":
    main()
