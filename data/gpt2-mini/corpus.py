"""Build the text of gpt2-mini: small stories, old tales, storybooks and small talk.

    python data/gpt2-mini/corpus.py [--out data/runs/gpt2-mini]

Sources are looked for in `data/downloads/`, in the folder or address `COURSE_MIRROR`,
and at their public addresses. What can't be had is named and left out. Each source
becomes `train-SOURCE.txt` and `validation-SOURCE.txt`: whole stories, tales or
conversations, each followed by `<|endoftext|>`. No held-out text is in training, nor
one like it.
"""

import argparse
import json
import os
import re
import sys
import unicodedata
import zlib
from pathlib import Path
from typing import NamedTuple

import pooch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from helpers import DOWNLOADS, RUNS  # noqa: E402

END = "<|endoftext|>"
GUTENBERG = "https://www.gutenberg.org/cache/epub/{0}/pg{0}.txt"
TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"

# Project Gutenberg's numbers. Collections hold whole tales, novels chapters. Of the
# mirror's 206 are left out: 36 1013 1661 3674 4792 7006 8745 (hard style), 46145.
COLLECTIONS = """
    128 236 503 540 640 641 902 1937 2435 2591 2781 3027 3282 3454 4018 5615 6746 7128
    7277 7439 7885 14241 27200 27826 496 572 677 1751 2892 3230 5312 5834 7871 10935
    11339 12067 16259 18811 19713 20552 23661 25513 25555 26019 27903 29939 30129 30973
    32217 32326 33002 35377 35820 36385 36696 37193 37396 37995 38070 38112 38208 49913
    63383
""".split()
NOVELS = """
    11 12 45 46 47 51 54 55 103 111 113 120 125 146 157 215 225 271 286 289 316 384 419
    420 440 479 485 486 498 500 514 517 518 520 544 573 708 709 764 770 778 836 837 910
    956 957 959 960 1354 1448 1450 1874 1901 2726 2770 2786 2788 2804 3028 3031 3048
    3499 3536 3748 3795 3796 4356 4358 5141 5341 5342 5343 5417 5632 5830 5977 6100 6380
    6471 7498 8994 8995 10226 10540 10724 11140 12741 14475 14710 15727 17175 18275
    18666 19078 19360 20606 21037 21044 21048 21099 22377 23622 24632 24874 24875 24876
    24877 24878 25299 25496 25564 25581 26041 26085 26122 26646 27951 28552 28619 28776
    28804 28961 31387 32094 32241 32393 32466 34808 35930 39748 47166 50361 52907 55737
    57799
""".split()
ONE_PIECE = """
    640 641 902 2435 2591 2781 3027 3282 3454 4018 5615 6746 7128 7277 7439 7885 14241
    27826
""".split()  # collections that print each tale in one piece: some are held out

WORDS_OUT = """
    nigger niggers negro negroes negress negresses blackamoor blackamoors darky darkies
    coon coons pickaninny piccaninny chinaman chinamen redskin redskins squaw squaws
    hottentot hottentots kaffir kaffirs mulatto cannibal cannibals jew jews jewess gipsy
    gipsies gypsy gypsies savages injun injuns lascar lascars sex sexy rape suicide
    bitch fuck fucking shit porn
""".split()
PHRASES_OUT = [
    r"red indians?",
    r"(?:black|coloured|colored) (?:slaves?|m[ae]n|wom[ae]n|boys?|servants?|people)",
]
TITLES_OUT = """
573 THE MERCHANT OF VENICE
836 THE QUEEN COOK
836 THE TOPLESS TOWER
2781 HOW THE LEOPARD GOT HIS SPOTS
3282 THE ENCHANTED HEAD
3282 WHAT THE ROSE DID TO THE CYPRESS
6746 THE STORY OF DSCHEMIL AND DSCHEMILA
6746 THE STORY OF THE THREE SONS OF HALI
6746 UDEA AND HER SEVEN BROTHERS
7871 SANTA KLAAS AND BLACK PETE
19713 THE GIRL IN THE CHEST
25496 OVER THE WATER TO CHINA
37396 THE DROWNED BUCCANEER
""".splitlines()  # whatever their words
SHORTEST = 600  # characters of a tale or chapter
# Shares of 8-word runs, in books and in short texts, ...
REPEATED = {True: 0.3, False: 0.5}  # ... that make a text a repeat
ALIKE = {True: 0.02, False: 0.2}  # ... that make it too like the held-out texts
HELD_OUT = 0.05  # of the tales in the books above, of storybooks and of conversations

OUT = re.compile(rf"\b(?:{'|'.join(WORDS_OUT + PHRASES_OUT)})\b", re.IGNORECASE)
BRACKETS = re.compile(
    r"\[(?:Illustration|Picture|Footnote|Transcriber|FN#)[^\[\]]*"
    r"(?:\[[^\[\]]*\][^\[\]]*)*\]",
    re.IGNORECASE,
)
NOTE_SIGNS = re.compile(r" ?(?:\[(?:(?:FN#)?\d+|[*+A-Z])\]|\((?:\d{1,2}|\*)\))")
CHAPTER = re.compile(
    r"(?:(?i:chapter|part)\s+(?:[IVXLC]+|\d+|(?i:one|two|three|four|five|six))\b"
    r"|(?:[IVXLC]+|\d{1,3})(?:\.|\s*$|\s{2,}|(?<=\d)\s))[\s.:-]*"
)
PART_OF_TALE = re.compile(
    r"(?:[IVXLC]+\.?|\d+\.?|\S+ (?:story|part|adventure|evening|visit|voyage)|\S+day"
    r"|seventh and last voyage|part \S+)$",
    re.IGNORECASE,
)
FRONT = re.compile(
    r"(?:the )?(?:preface|introduct|(?:table of )?contents|dedicat|author's note"
    r"|foreword|to my readers|to the friendly reader|to the hesitating|oyez"
    r"|(?:list of )?(?:full.page )?illustrations|plates|coloured plates|transcriber"
    r"|preparer|footnotes?|notes|glossary|the end|finis|index|bibliography|advertise"
    r"|by$|books by|other books)",
    re.IGNORECASE,
)
TITLE_PAGE = re.compile(
    r"copyright|all rights reserved|printed (?:by|in)|pictured by|frontispiece|publish",
    re.IGNORECASE,
)
LITTER = re.compile(r"[\[(](?:FN#)?(?:\d+|\*)[\]):]|\* ?\w|\[(?!.*\].*\w)", re.DOTALL)
SOURCE = re.compile(
    r"\(?(?:from |adapted |translated |taken |told |contes |footnote|printed |\[)",
    re.IGNORECASE,
)
PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛´`ʼ′", "'"),
        **dict.fromkeys("“”„‟«»″", '"'),
        **dict.fromkeys("—–―‒", "--"),
        **{"…": "...", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O"},
        **{"ß": "ss", "ð": "d", "þ": "th", "_": "", "\t": " ", "\u00a0": " "},
        **{"\ufeff": "", "\u00ad": "", "£": "L", "\r": ""},
    }
)


class Piece(NamedTuple):
    """A story, tale, chapter or conversation; `book` is its number or its file."""

    book: str
    title: str
    text: str


def find(name, address=None):
    """Return the text of a file: from downloads, the mirror or its address, or None."""
    mirror = os.environ.get("COURSE_MIRROR", "")
    for folder in (DOWNLOADS, Path(mirror).expanduser()):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8-sig", errors="replace")
    urls = [f"{mirror.rstrip('/')}/{name}"] if mirror.startswith("http") else []
    urls += [address] if address else []
    for url in urls if os.environ.get("COURSE_OFFLINE") != "1" else ():
        try:
            path = DOWNLOADS / name
            pooch.retrieve(url, None, path.name, path.parent)
            return path.read_text(encoding="utf-8-sig", errors="replace")
        except OSError:  # requests' errors are among them
            continue
    return None


# From a book to its tales


def strip_gutenberg(text):
    """Return what stands between Project Gutenberg's header and footer."""
    for start in (
        r"\*\*\* ?START OF TH[^\n]*\n",
        r"\*END\*? ?THE SMALL PRINT![^\n]*\n",
        r"\*\*\*\*\*This file should be named[^\n]*\n",
    ):
        if found := re.search(start, text, re.IGNORECASE):
            text = text[found.end() :]
            break
    for end in (
        r"\n[* ]*(?:END OF|This is the end of)?[^\n]{0,12}Project Gutenberg",
        r"\n\s*notes and references\s*\n",
        r"\nThe Brothers Grimm, Jacob \(",
        r"\n\s*(?:THE END|FINIS)\.?\s*\n",  # publishers' catalogues come after it
    ):
        late = len(text) * 4 // 5
        if found := re.search(end, text[late:], re.IGNORECASE):
            text = text[: late + found.start()]
    return text


def plain(text):
    """Return a text in ASCII: straight quotes, dashes as `--`, no accents."""
    text = re.sub(r"\|(?![A-Z])", "", text)  # borders of boxes
    text = unicodedata.normalize("NFKD", text.translate(PLAIN))
    text = text.encode("ascii", "ignore").decode("ascii")
    return re.sub(r" *(?:-{2,}|(?<=\w) - (?=\w)) *", "--", text)


def is_heading(block):
    """Say whether a block of lines that stands apart is the heading of a piece."""
    lines = block.strip().split("\n")
    line = " ".join(lines).strip()
    if len(lines) > 3 or len(line) > 100 or line[-1] in ",;:-":
        return False
    indent = len(block) - len(block.lstrip(" "))
    if indent in (3, 4):
        return False
    letters = re.sub(r"[^A-Za-z]", "", line)
    if not letters or letters.isupper():
        return indent < 3 and (bool(letters) or line.rstrip(".").isdigit())
    return bool(CHAPTER.match(line)) or is_title(line)


def is_title(line):
    """Say whether a line is written like a title: its longer words have capitals."""
    words = re.findall(r"[A-Za-z][A-Za-z'-]*", re.sub(r"\b[dl]'", "", line))
    capitals = [word for word in words if word[0].isupper()]
    longer = [word for word in words if len(word) > 4]
    small = "a an and at by for from in of on or the to with".split()
    named = longer or [word for word in words if word not in small]
    is_speech = line[0] in "\"'" and not line.endswith(("'", '"'))
    return (
        len(line) < 75
        and 3 * len(capitals) >= len(words)
        and all(word in capitals for word in named)
        and not is_speech
        and (line[-1] not in "!?'" or len(capitals) == len(words))
    )


def clean_paragraph(block):
    """Join the lines of a block; lines of verse (all indented) stay lines."""
    lines = [line for line in block.split("\n") if line.strip()]
    is_verse = len(lines) > 1 and all(line.startswith("  ") for line in lines)
    block = ("\n" if is_verse else " ").join(line.strip() for line in lines)
    block = re.sub(r"(?<=\w)- (?=[a-z])", "-", block)
    block = re.sub(r"(?<=[a-z]) '(?=(?:ll|ve|re|s|t|d|m)\b)", "'", block)
    block = re.sub(r" +", " ", NOTE_SIGNS.sub("", block).replace("*", "")).strip()
    if block.startswith("|"):  # a large initial, printed without its opening quote
        block = ('"' if block.count('"') % 2 else "") + block[1:]
    shouted = re.match(r"(['\"]*(?:[IA] )?)([A-Z]{2,})(?=,? (?:[a-z]|I ))", block)
    if shouted:
        block = shouted[1] + shouted[2].capitalize() + block[shouted.end() :]
    return block


def is_litter(block):
    """Say whether a block is a footnote, a bracketed note or an ornament."""
    if not re.search(r"[A-Za-z]", block):
        return not block.strip().rstrip(".").isdigit()
    return bool(LITTER.match(block.strip()))


def add_paragraph(paragraphs, block):
    """Append a paragraph, or mend one that a page or a picture had cut in two."""
    if paragraphs and block[:1].islower() and re.search(r"[\w,-]$", paragraphs[-1]):
        before = paragraphs[-1]
        cut_word = re.search(r"\w-$", before)
        paragraphs[-1] = (before[:-1] if cut_word else before + " ") + block
    elif block:
        paragraphs.append(block)


def is_beside(paragraph):
    """Say whether a paragraph at the edge of a tale is a subtitle or its source."""
    if len(paragraph) > 160:
        return False
    in_brackets = paragraph[0] == "(" and paragraph.rstrip(".")[-1] == ")"
    is_source = SOURCE.match(paragraph) and paragraph[-1] not in "\"'!?"
    is_subtitle = "\n" not in paragraph and is_heading(paragraph)
    return (in_brackets and len(paragraph) < 75) or is_source or is_subtitle


def trim(paragraphs):
    """Return paragraphs without subtitles before them and sources after them."""
    start, stop = 0, len(paragraphs)
    while start < stop and is_beside(paragraphs[start]):
        start += 1
    while start < stop and is_beside(paragraphs[stop - 1]):
        stop -= 1
    return paragraphs[start:stop]


def split_book(number, text):
    """Cut the text of a book into its tales or chapters, in order."""
    text = BRACKETS.sub("", plain(strip_gutenberg(text)))
    parts, titles, paragraphs, below = [], [], [], False
    for gap, block in re.findall(r"(\n*)((?:[^\n]*\S[^\n]*(?:\n|$))+)", text):
        if is_litter(block):
            continue
        below = is_heading(block) and (below or gap.count("\n") >= 2)  # or another one
        if below:
            line = " ".join(block.split())
            is_part = CHAPTER.match(line) or PART_OF_TALE.match(line)
            if number in COLLECTIONS and is_part:
                continue
            if paragraphs:
                parts.append((titles, paragraphs))
                titles, paragraphs = [], []
            titles.append(NOTE_SIGNS.sub("", line))
        elif titles:
            add_paragraph(paragraphs, clean_paragraph(block))
    return join_short(number, [*parts, (titles, paragraphs)])


def join_short(number, parts):
    """Leave out front matter, and add parts too short to stand alone to the last."""
    pieces = []
    for titles, paragraphs in parts:
        title = titles[-1] if titles else ""
        if found := CHAPTER.match(title):
            title = title[found.end() :] or title
        text = "\n\n".join(trim(paragraphs))
        is_front = FRONT.match(title) or (len(text) < 5000 and TITLE_PAGE.search(text))
        if not text or is_front:
            continue
        if len(text) >= SHORTEST:
            pieces.append(Piece(number, title, text))
        elif pieces:
            pieces[-1] = pieces[-1]._replace(text=f"{pieces[-1].text}\n\n{text}")
    return pieces


def read_books(numbers):
    """Return the tales or chapters of some books; name those that give none."""
    pieces = []
    for number in numbers:
        text = find(f"gutenberg/pg{number}.txt", GUTENBERG.format(number))
        found = split_book(number, text) if text else []
        if not found:
            print(f"left out: Project Gutenberg's book {number}, not found as a text")
        pieces += found
    return pieces


# Small stories, storybooks and conversations


def read_texts(name, address=None):
    """Return the texts of a file in which `<|endoftext|>` follows each."""
    text = find(f"simple/{name}", address)
    if text is None:
        print(f"left out: {name}, which is neither in a folder nor at an address")
        return []
    texts = (plain(part).strip() for part in text.split(END))
    return [Piece(name, "", part) for part in texts if part]


def read_tinystories():
    """Return stories to train on, and some of the official validation split."""
    names = "v1-train-toyrnn v1-train-arnoochka-recased v1-train-aditya-val czhou-val"
    names += " v2-train-decodinggpt czhou-test czhou-overfit"
    if find("simple/tinystories/v1-valid-moebench.txt"):
        train = [read_texts(f"tinystories/{name}.txt") for name in names.split()]
        return sum(train, []), read_texts("tinystories/v1-valid-moebench.txt")
    name = "TinyStoriesV2-GPT4-valid.txt"
    train = read_texts(f"tinystories/{name}", TINYSTORIES + name)
    name = "TinyStories-valid.txt"
    return train, read_texts(f"tinystories/{name}", TINYSTORIES + name)[:976]


def as_dialogue(piece):
    """Return a conversation of A and B with the names that chapter 7 uses."""
    text = re.sub(r"^A:", "User:", piece.text, flags=re.MULTILINE)
    return piece._replace(text=re.sub(r"^B:", "Assistant:", text, flags=re.MULTILINE))


# Choosing among them


def drop_words(pieces):
    """Leave out the pieces with words, phrases or titles of the lists above."""
    return [
        piece
        for piece in pieces
        if f"{piece.book} {piece.title.upper().rstrip('.')}" not in TITLES_OUT
        and not OUT.search(f"{piece.title} {piece.text}")
    ]


def shingles(text):
    """Return checksums of a fixed quarter of the runs of eight words in a text."""
    words = re.findall(r"[a-z]+", text.lower())
    runs = (" ".join(words[i : i + 8]) for i in range(max(1, len(words) - 7)))
    return {code for run in runs if (code := zlib.crc32(run.encode())) % 4 == 0}


def drop_repeats(pieces, seen, limits, remember=False):
    """Leave out texts that share more runs of words with those seen than they may."""
    kept = []
    for piece in pieces:
        codes = shingles(piece.text)
        if len(codes & seen) <= limits[piece.book.isdigit()] * len(codes):
            kept.append(piece)
            if remember:
                seen |= codes
    return kept


def is_held_out(piece):
    """Choose texts by a checksum, from books only whole tales of moderate length."""
    key = f"{piece.book} {piece.title}" if piece.title else piece.text
    is_book = piece.book.isdigit()
    is_whole = piece.book in ONE_PIECE and len(piece.text) <= 30_000
    return zlib.crc32(key.encode()) < HELD_OUT * 2**32 and (is_whole or not is_book)


def short_title(piece):
    """Return a title without case, marks and the words that editions vary."""
    words = re.findall(r"[a-z]+", piece.title.lower())
    return " ".join(w for w in words if w not in ("the", "a", "an", "story", "of"))


def split(sources):
    """Return the training and the held-out texts of each source, nothing alike in both.

    A training text with the title of a held-out tale goes (another translation of it),
    and so does one that shares runs of eight words with a held-out text.
    """
    held_out = {}
    for name, (pieces, validation) in sources.items():
        held_out[name] = drop_words(validation or filter(is_held_out, pieces))
    everything = sum(held_out.values(), [])
    titles = {short_title(piece) for piece in everything} - {""}
    runs = set().union(*(shingles(piece.text) for piece in everything))
    seen, train = set(), {}
    for name, (pieces, _) in sources.items():
        others = [piece for piece in pieces if short_title(piece) not in titles]
        apart = drop_repeats(drop_words(others), runs, ALIKE)
        train[name] = drop_repeats(apart, seen, REPEATED, remember=True)
    return train, held_out


def read_sources():
    """Return each source's texts, and those held out if they come apart."""
    storybooks = read_texts("pratham-books/stories.txt")
    storybooks += read_texts("african-storybook/stories.txt")
    persona = read_texts("synthetic-persona-chat/conversations.txt")
    topical = read_texts("topical-chat/conversations.txt")
    return {
        "tinystories": read_tinystories(),
        "tales": (read_books(COLLECTIONS), []),
        "novels": (read_books(NOVELS), []),
        "storybooks": (storybooks, []),
        "persona": (list(map(as_dialogue, persona)), []),
        "topical": (list(map(as_dialogue, topical)), []),
    }


def build_corpus(out):
    """Write each source's two texts and `corpus.json` to a folder; return the last."""
    train, held_out = split(read_sources())
    report = {}
    for name in train:
        report[name] = {}
        for part, kept in (("train", train[name]), ("validation", held_out[name])):
            text = "".join(piece.text + END for piece in kept)
            report[name][part] = {"texts": len(kept), "characters": len(text)}
            write(out / f"{part}-{name}.txt", text)
    report["held-out tales"] = [[p.book, p.title] for p in held_out["tales"]]
    write(out / "corpus.json", json.dumps(report, indent=1) + "\n")
    return report


def write(path, text):
    """Write a text file beside its place, then rename it: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RUNS / "gpt2-mini")
    for name, counts in build_corpus(parser.parse_args().out).items():
        print(name, counts)
