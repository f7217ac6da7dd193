"""Draw every figure of the course as SVG.

python images/draw.py          rewrites all figures
python images/draw.py NAME     rewrites one, such as causal-mask

A figure is a function that returns a Sheet; its docstring becomes the description
in the file. Numbers that a notebook prints are computed here in the same way.
"""

import math
import sys
from collections import Counter
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import drawsvg as draw
import torch

FOLDER = Path(__file__).resolve().parent
WIDTH = 820
PAPER, WHITE, INK, GREY, RULE = "#fbfaf7", "#ffffff", "#1f2933", "#56616c", "#c9ccd0"
BLUE, ORANGE, GREEN = "#0067a5", "#b34700", "#00705a"
PURPLE, GOLD = "#7d3f78", "#d99a00"  # gold only fills, it is too light for text
SANS = "Helvetica, Arial, 'Liberation Sans', sans-serif"
MONO = "Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"


# ---------------------------------------------------------------- drawing


def dec(value, places=1):
    """Write a number for the reader, with a true minus sign."""
    if value == -math.inf:
        return "−∞"
    return f"{value:.{places}f}".replace("-", "−")


def tint(color, share=0.14):
    """Mix a share of a colour into white."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (p - 255) * share):02x}" for p in parts)


class Box(NamedTuple):
    """A rectangle that was drawn; arrows start and end in the middles of its sides."""

    x: float
    y: float
    w: float
    h: float

    left = property(lambda self: (self.x, self.y + self.h / 2))
    right = property(lambda self: (self.x + self.w, self.y + self.h / 2))
    top = property(lambda self: (self.x + self.w / 2, self.y))
    bottom = property(lambda self: (self.x + self.w / 2, self.y + self.h))


class Desc(draw.Title):
    TAG_NAME = "desc"


class Sheet(draw.Drawing):
    """A light sheet of the common width, with the shapes that figures are made of."""

    def __init__(self, title, height):
        super().__init__(WIDTH, height, role="img", font_family=SANS)
        self.append(draw.Title(title))
        self.rect(0.5, 0.5, WIDTH - 1, height - 1, PAPER, "#e6e3da", r=10, width=1)

    def add(self, shape):
        for key, value in shape.args.items():
            if isinstance(value, float):
                shape.args[key] = round(value, 2)
        self.append(shape)

    def rect(self, x, y, w, h, fill=WHITE, line=INK, r=4, width=1.5, dash=None):
        style = {"fill": fill, "stroke": line, "stroke_width": width}
        self.add(draw.Rectangle(x, y, w, h, rx=r, stroke_dasharray=dash, **style))
        return Box(x, y, w, h)

    def text(self, x, y, body, size=14, fill=INK, at="middle", font=None, bold=False):
        """Write one line, its letters centred on the height `y`."""
        weight = "bold" if bold else None
        style = {"text_anchor": at, "font_family": font, "font_weight": weight}
        self.add(draw.Text(body, size, x, y + 0.35 * size, fill=fill, **style))

    def note(self, x, y, *lines, fill=GREY, at="start"):
        for i, line in enumerate(lines):
            self.text(x, y + 18 * i, line, 13, fill, at)

    def code(self, x, y, body, fill=INK, at="middle", size=13, bold=False):
        self.text(x, y, body, size, fill, at, MONO, bold)

    def box(self, x, y, w, h, *lines, color=BLUE, font=MONO):
        """A coloured box; its first line is the name, the rest is small."""
        top = y + h / 2 - 9 * (len(lines) - 1)
        box = self.rect(x, y, w, h, tint(color), color, r=6)
        self.text(x + w / 2, top, lines[0], 14, font=font, bold=True)
        self.note(x + w / 2, top + 18, *lines[1:], fill=INK, at="middle")
        return box

    def cells(self, x, y, values, w=40, h=30, color=BLUE, font=MONO, fill=None):
        """A row of cells with one value in each."""
        for i, value in enumerate(values):
            left = x + i * w
            self.rect(left, y, w, h, fill or tint(color), color, r=0, width=1)
            self.text(left + w / 2, y + h / 2, str(value), 13, font=font)
        return Box(x, y, w * len(values), h)

    def line(self, *points, color=GREY, width=1.6, dash=None):
        places = [round(place, 2) for point in points for place in point]
        style = {"fill": "none", "stroke": color, "stroke_width": width}
        self.add(draw.Lines(*places, stroke_dasharray=dash, **style))

    def arrow(self, *points, color=GREY, width=1.6, dash=None):
        """A line through the points; the tip touches the last one exactly."""
        (x0, y0), (x1, y1) = points[-2:]
        length = math.dist((x0, y0), (x1, y1))
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        bx, by = x1 - 9 * ux, y1 - 9 * uy
        self.line(*points[:-1], (bx, by), color=color, width=width, dash=dash)
        head = (x1, y1, bx - 4.5 * uy, by + 4.5 * ux, bx + 4.5 * uy, by - 4.5 * ux)
        self.add(draw.Lines(*(round(v, 2) for v in head), close=True, fill=color))

    def plus(self, x, y, r=13):
        self.add(draw.Circle(x, y, r, fill=WHITE, stroke=INK, stroke_width=1.5))
        self.line((x - 6, y), (x + 6, y), color=INK)
        self.line((x, y - 6), (x, y + 6), color=INK)
        return Box(x - r, y - r, 2 * r, 2 * r)

    def brace(self, x0, x1, y, *lines, color=GREY):
        """A bracket under the places x0 to x1, and a note in its middle."""
        self.line((x0, y), (x0, y + 7), (x1, y + 7), (x1, y), color=color)
        self.note((x0 + x1) / 2, y + 22, *lines, fill=color, at="middle")


# ---------------------------------------------------------------- road map

STAGES = (
    ("Tokenizer", "text → ids"),
    ("Attention", "tokens look\nat tokens"),
    ("Architecture", "GPT-2,\nuntrained"),
    ("Pretraining", "learns\nto write"),
    ("Weight\nloading", "OpenAI's\nweights"),
    ("Spam filter", "ham\nor spam"),
    ("Assistant", "follows,\nchats"),
    ("Learning\nfrom rewards", "answers it\ncan check"),
)
GROUPS = ("Build", 1, 3), ("Train", 4, 5), ("Use", 6, 8)


def roadmap(current=None):
    """Eight stages from left to right, in three groups.

    Build: tokenizer, attention, architecture. Train: pretraining, weight loading.
    Use: spam filter, assistant, learning from rewards. Where one stage is the current
    one, it is filled, and the finished stages before it carry a tick.
    """
    stage = f", stage {current} of 8" if current else ": eight stages"
    d = Sheet(f"Road map{stage}", 190)
    for name, first, last in GROUPS:
        left, right = 16 + (first - 1) * 99, 16 + (last - 1) * 99 + 95
        d.text((left + right) / 2, 22, name, 15, bold=True)
        d.line((left, 44), (left, 37), (right, 37), (right, 44))
    for i, (name, result) in enumerate(STAGES, start=1):
        x, here, done = 16 + (i - 1) * 99, i == current, i < (current or 1)
        plain = tint(BLUE) if current is None else WHITE
        fill = BLUE if here else tint(GREEN, 0.2) if done else plain
        edge = GREEN if done else BLUE if here or current is None else GREY
        d.rect(x, 54, 95, 80, fill, edge, r=8)
        ink, mid = WHITE if here else INK, x + 47.5
        d.text(mid - 9 * done, 75, str(i), 18, ink, bold=True)
        if done:
            points = (mid + 3, 75), (mid + 8, 80), (mid + 17, 69)
            d.line(*points, color=GREEN, width=2.5)
        lines = name.split("\n")
        for k, line in enumerate(lines):
            d.text(mid, 111 + 16 * k - 8 * len(lines), line, 12.5, ink, bold=True)
        d.note(mid, 151, *result.split("\n"), fill=INK if here else GREY, at="middle")
    return d


# ---------------------------------------------------------------- 01 tokenizer


@cache
def gpt2_tokens(text):
    """The ids of a text under GPT-2's tokenizer, and the text of each."""
    sys.path.insert(0, str(FOLDER.parent))
    from helpers import get_tokenizer

    tokenizer = get_tokenizer()
    ids = tokenizer.encode(text)
    return ids, [tokenizer.decode([i]) for i in ids]


def text_to_windows():
    """One sentence becomes tokens, GPT-2's ids and windows.

    Nine tokens have nine ids. Three windows of max_length = 4 inputs start at
    positions 0, 2 and 4, as stride = 2. The target of each input is the id that
    follows it, so targets are inputs moved on by one.
    """
    d = Sheet("From a sentence to windows of inputs and targets", 478)
    ids, tokens = gpt2_tokens("The lamp burned low until the morning came.")
    x0, w, max_length, stride = 104, 77, 4, 2
    middle = x0 + w * len(ids) / 2
    d.text(middle, 26, "“The lamp burned low until the morning came.”", 16)
    d.arrow((middle, 40), (middle, 66), color=BLUE)
    d.code(middle + 14, 52, "encode", BLUE, "start")
    d.text(x0 - 12, 81, "tokens", 14, at="end", bold=True)
    d.cells(x0, 66, [t.replace(" ", "·") for t in tokens], w, 30, GREY, fill=WHITE)
    d.text(x0 - 12, 111, "ids", 14, at="end", bold=True)
    d.cells(x0, 96, ids, w, 30, PURPLE)
    starts = range(0, len(ids) - max_length, stride)
    for row, start in enumerate(starts):
        y, left = 152 + row * 98, x0 + start * w
        if row:
            d.arrow((left - stride * w, y + 14), (left, y + 14))
            d.code(left - w, y, f"stride = {stride}", GREY)
        d.cells(left, y, ids[start : start + max_length], w, 28, BLUE)
        d.cells(left + w, y + 50, ids[start + 1 :][:max_length], w, 28, ORANGE)
        for i in range(max_length):
            x = left + (i + 0.5) * w
            d.arrow((x + 8, y + 28), (x + w - 8, y + 50))
        d.code(left + w * max_length + 8, y + 14, "inputs", BLUE, "start", bold=True)
        d.code(left + w - 8, y + 64, "targets", ORANGE, "end", bold=True)
    x1 = x0 + w * max_length
    d.line((x0, 146), (x0, 140), (x1, 140), (x1, 146))
    d.code(x1 + 8, 141, f"max_length = {max_length}", GREY, "start")
    note = "An arrow leads from each input to its target, the id that follows it."
    d.text(middle, 448, f"{note} A dot marks a space.", 13, GREY)
    return d


BPE_WORDS = {"sea": 4, "seat": 3, "tea": 5, "team": 2}


def pair_counts(words):
    """Count the neighbouring pieces, weighted by how often a word occurs."""
    counts = Counter()
    for word, pieces in words.items():
        for pair in pairwise(pieces):
            counts[pair] += BPE_WORDS[word]
    return counts


def merge(pieces, pair):
    """Join each occurrence of the pair."""
    out = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def bpe_merges():
    """Four words with counts, cut into letters, and three merges step by step.

    In each step the pair of neighbours with the highest count is joined into one
    piece: e with a, then t with ea, then s with ea. In the second step two pairs
    are tied and the lexicographically greater one wins.
    """
    d = Sheet("Byte-pair encoding: the first three merges", 384)
    words, new = {word: list(word) for word in BPE_WORDS}, None
    for row, count in enumerate(BPE_WORDS.values()):
        d.text(24, 86 + 44 * row, f"{count} ×", 15, at="start", bold=True)
    for step in range(4):
        x = 76 + 188 * step
        name = f"merge {step}: {' + '.join(new)}" if step else "start: letters"
        d.text(x, 36, name, 14, GREEN if step else INK, "start", bold=True)
        for row, pieces in enumerate(words.values()):
            left = x
            for piece in pieces:
                fresh = step and piece == "".join(new)
                color, w = (GREEN if fresh else GREY), 28 * len(piece)
                fill = tint(GREEN, 0.25) if fresh else WHITE
                d.cells(left, 70 + 44 * row, [piece], w, 32, color, fill=fill)
                left += w
        ranked = sorted(((n, p) for p, n in pair_counts(words).items()), reverse=True)
        d.note(x, 266, "pair counts")
        for i, (count, (a, b)) in enumerate(ranked[:3]):
            y, wins = 289 + 20 * i, i == 0 and step < 3
            label = f"{a} + {b}".ljust(8) + f"{count:>3}"
            d.code(x, y, label.replace(" ", "\u00a0"), BLUE if wins else INK, "start")
            if wins:
                points = (x + 96, y), (x + 150, y), (x + 150, 36), (x + 180, 36)
                d.arrow(*points, color=BLUE)
        new = ranked[0][1]
        words = {word: merge(pieces, new) for word, pieces in words.items()}
    d.text(410, 360, "A tie goes to the lexicographically greater pair.", 13, GREY)
    return d


def token_position_embedding():
    """Ids pick rows of tok_emb, and positions pick the rows of pos_emb added to them.

    "The cat saw the cat" has the ids 464, 3797, 2497, 262 and 3797. Each id picks its
    row of the table tok_emb of shape (V, C). The rows 0 to 4 of pos_emb, of shape
    (context_length, C), are added, which gives x of shape (T, C). The token " cat"
    stands at two positions: the same token row, different position rows, different
    sums.
    """
    d = Sheet("Token embedding plus position embedding", 424)
    ids, tokens = gpt2_tokens("The cat saw the cat")
    torch.manual_seed(123)
    tok_emb, pos_emb = torch.nn.Embedding(50257, 3), torch.nn.Embedding(1024, 3)
    tok_rows, pos_rows = (
        tok_emb.weight.round(decimals=2),
        pos_emb.weight.round(decimals=2),
    )
    w, h, y0 = 42, 46, 98

    def row(x, y, values, color=RULE, fill=None):
        return d.cells(x, y, [dec(v, 2) for v in values], w, 26, color, fill=fill)

    columns = (
        (52, "ids", "(T)"),
        (241, "tok_emb", "(V, C)"),
        (407, "tok_emb(ids)", "(T, C)"),
        (575, "pos_emb", "(context_length, C)"),
        (727, "x", "(T, C)"),
    )
    for x, name, shape in columns:
        d.code(x, 30, name, bold=True, size=14)
        d.code(x, 52, shape, GREY)
    places, y = {}, 78
    for i in (0, *sorted(set(ids)), 50256):
        color = token_color(i, ids)
        places[i] = row(178, y, tok_rows[i], color, None if i in ids else WHITE)
        d.code(170, y + 13, str(i), GREY if i not in ids else INK, "end", size=12)
        if i < 50256:
            d.text(241, y + 35, "⋮", 14, GREY)
        y += 46
    for t, (i, token) in enumerate(zip(ids, tokens, strict=True)):
        color, y = token_color(i, ids), y0 + h * t
        cell = d.rect(20, y - 5, 64, 36, tint(color), color, r=0, width=1)
        d.text(52, y + 5, token.replace(" ", "·"), 13, font=MONO)
        d.code(52, y + 21, str(i), size=12)
        d.arrow(
            cell.right, (170 - 7.3 * len(str(i)) - 4, places[i].left[1]), color=color
        )
        picked = row(344, y, tok_rows[i], color)
        d.arrow(places[i].right, picked.left, color=color)
        d.text(482, y + 13, "+", 18, bold=True)
        d.code(507, y + 13, str(t), at="end", size=12)
        row(512, y, pos_rows[t], PURPLE)
        d.text(651, y + 13, "=", 18, bold=True)
        row(664, y, tok_rows[i] + pos_rows[t], color, tint(color, 0.3))
    d.text(575, y0 + h * 4 + 36, "⋮", 14, GREY)
    d.code(508, y0 + h * 5 + 13, "1023", GREY, "end", size=12)
    row(512, y0 + h * 5, pos_rows[1023], RULE, WHITE)
    return d


def token_color(i, ids):
    colors = dict(zip(dict.fromkeys(ids), (BLUE, ORANGE, GREEN, GREY), strict=True))
    return colors.get(i, RULE)


# ---------------------------------------------------------------- 02 attention


@cache
def attention_example():
    """The six tokens of chapter 2, and their queries, keys, values and scores."""
    ids, tokens = gpt2_tokens("The lamp burned until the morning")
    torch.manual_seed(123)
    C, D = 8, 4
    x = torch.nn.Embedding(50257, C)(torch.tensor(ids)).detach()
    W_query, W_key, W_value = torch.randn(3, C, D) / C**0.5
    queries, keys, values = x @ W_query, x @ W_key, x @ W_value
    scores = queries @ keys.T / D**0.5
    return [token.strip() for token in tokens], queries, keys, values, scores


def attention_one_query():
    """Self-attention for one query, the token "burned", with numbers.

    Its query is multiplied with the keys of "The", "lamp" and "burned" and divided by
    the root of D = 4; softmax makes the weights 0.10, 0.67 and 0.23. The three values,
    times their weights, add up to the context vector of size 4. The later tokens
    "until", "the" and "morning" are not looked at.
    """
    d = Sheet("Self-attention for one query", 386)
    tokens, queries, keys, values, scores = attention_example()
    t, w = 2, 47
    weights = scores[t, : t + 1].softmax(dim=-1)
    context = weights @ values[: t + 1]

    def row(x, y, numbers, color, fill=None):
        return d.cells(x, y, [dec(v, 2) for v in numbers], w, 30, color, fill=fill)

    query = row(92, 22, queries[t], ORANGE, tint(ORANGE, 0.25))
    d.text(80, 30, "query of", 13, ORANGE, "end", bold=True)
    d.text(80, 47, "“burned”", 13, ORANGE, "end", bold=True)
    d.arrow(query.bottom, (query.bottom[0], 116), color=ORANGE)
    d.note(query.bottom[0] + 10, 74, "times each key")
    for x, name in ((116, "keys"), (404, "weights"), (676, "values")):
        d.code(x, 98, name, bold=True)
    d.code(322, 98, "q·k / √D")
    for i, token in enumerate(tokens):
        y, seen = 116 + 40 * i, i <= t
        d.text(80, y + 15, token, 14, INK if seen else GREY, "end", bold=i == t)
        key = row(92, y, keys[i], BLUE if seen else RULE, None if seen else WHITE)
        if not seen:
            continue
        d.arrow(key.right, (294, y + 15))
        d.code(322, y + 15, dec(scores[t, i], 2))
        d.arrow((350, y + 15), (376, y + 15))
        bar = d.rect(376, y + 3, 120 * weights[i], 24, ORANGE, ORANGE, r=0, width=1)
        d.code(bar.right[0] + 6, y + 15, dec(weights[i], 2), at="start")
        d.code(570, y + 15, f"{dec(weights[i], 2)} ×", ORANGE, "end", bold=True)
        row(582, y, values[i], GREEN, tint(GREEN, 0.6 * weights[i].item()))
    d.note(294, 251, "later tokens:", "not looked at")
    d.line((280 + 4, 240), (288, 240), (288, 350), (284, 350))
    d.line((530, 246), (582 + 4 * w, 246), color=INK, width=2)
    d.code(570, 274, "sum =", at="end", bold=True)
    row(582, 259, context, GREEN, tint(GREEN, 0.3))
    d.text(582, 308, "context vector of “burned”, D = 4", 13, GREEN, "start", bold=True)
    d.note(582, 328, "three values and no others")
    return d


def causal_mask():
    """Three grids of six by six for the tokens The lamp burned until the morning.

    A row is the token that looks, a column the token looked at. Left, the scaled
    scores. Middle, the scores above the diagonal set to minus infinity. Right, each
    row after softmax: weights that sum to one, with zeros above the diagonal.
    """
    d = Sheet("The causal mask", 392)
    tokens, *_, scores = attention_example()
    later = torch.ones(6, 6, dtype=torch.bool).triu(diagonal=1)
    masked = scores.masked_fill(later, -math.inf)
    grids = (
        (
            scores,
            1,
            "scaled scores",
            "queries @ keys.T / D**0.5",
            "everyone sees everyone",
        ),
        (masked, 1, "masked", "masked_fill(later, -inf)", "the future becomes −∞"),
        (masked.softmax(-1), 2, "weights", "softmax(dim=-1)", "each row sums to 1"),
    )
    cell, y0 = 37, 112
    d.text(74, 84, "looks", 13, ORANGE, "end", bold=True)
    d.text(74, 100, "(query) ↓", 13, ORANGE, "end")
    for g, (grid, places, title, code, meaning) in enumerate(grids):
        x0, middle = 84 + 243 * g, 84 + 243 * g + 3 * cell
        d.text(middle, 24, title, 15, bold=True)
        for i, token in enumerate(tokens):
            x, y = x0 + (i + 0.5) * cell, y0 + i * cell
            style = {"font_size": 13, "transform": f"rotate(-40 {x - 6} {y0 - 7})"}
            d.add(draw.Text(token, x=x - 6, y=y0 - 7, fill=INK, **style))
            if g == 0:
                d.text(x0 - 10, y + cell / 2, token, 13, INK, "end")
            for j, value in enumerate(grid[i].tolist()):
                fill, ink = value_fill(value, later[i, j] and g)
                d.rect(x0 + j * cell, y, cell, cell, fill, RULE, r=0, width=1)
                number = dec(value, places) if value else "0"
                d.code(x0 + (j + 0.5) * cell, y + cell / 2, number, ink, size=12)
        if g:
            d.arrow((x0 - 20, y0 + 3 * cell), (x0 - 1, y0 + 3 * cell))
        d.code(middle, y0 + 6 * cell + 20, code, size=12)
        d.note(middle, y0 + 6 * cell + 40, meaning, at="middle")
    return d


def value_fill(value, hidden):
    """The colours of a cell and of its number."""
    if hidden:
        return "#e4e1d8", GREY
    return tint(BLUE if value > 0 else ORANGE, min(0.6, 0.25 * abs(value))), INK


HEADS = (BLUE, ORANGE, GREEN, PURPLE)


def head_strip(d, x, y, colors, w=18, h=22):
    """Cells of one token's vector, coloured by the head they belong to."""
    for i, color in enumerate(colors):
        d.rect(x + i * w, y, w, h, tint(color, 0.35), color, r=0, width=1)
    return Box(x, y, w * len(colors), h)


def multi_head():
    """Multi-head attention from top to bottom, with the shape at every stage.

    One token's row of x, C = 8 numbers, takes three separate paths through W_query,
    W_key and W_value. Each result is split into H = 2 heads of D = 4 numbers. Each
    head takes its own part of the queries, keys and values and computes softmax of
    q k transposed over the root of D, times v. The two results are put side by side
    again and pass out_proj.
    """
    d = Sheet("Multi-head attention", 600)
    half = (BLUE,) * 4, (ORANGE,) * 4
    both = half[0] + half[1]
    d.text(346, 31, "x", 16, at="end", bold=True)
    x = head_strip(d, 358, 20, (GREY,) * 8)
    heads = [
        d.rect(185 + 270 * i, 300, 220, 72, tint(HEADS[i]), HEADS[i], 6) for i in (0, 1)
    ]
    paths = (
        ("W_query", "queries", "q"),
        ("W_key", "keys", "k"),
        ("W_value", "values", "v"),
    )
    for i, (weight, name, letter) in enumerate(paths):
        mid = 240 + 190 * i
        linear = d.box(mid - 55, 80, 110, 36, weight, color=GREY)
        d.arrow(x.bottom, (430, 61), (mid, 61), linear.top)
        strip = head_strip(d, mid - 72, 144, both)
        d.arrow(linear.bottom, strip.top)
        d.code(mid + 10, 129, name, at="start")
        for h in (0, 1):
            part = head_strip(d, mid - 82 + 92 * h, 196, half[h])
            d.arrow((mid - 36 + 72 * h, 166), part.top, color=HEADS[h])
            entry = heads[h].x + 40 + 70 * i
            d.arrow(part.bottom, (entry, 300), color=HEADS[h])
            d.code(entry, 313, letter, bold=True)
    joined = head_strip(d, 358, 452, both)
    for h, head in enumerate(heads):
        d.code(head.top[0], 334, "softmax(q kᵀ / √D) v")
        d.text(head.top[0], 357, f"head {h}", 14, HEADS[h], bold=True)
        context = head_strip(d, head.top[0] - 36, 396, half[h])
        d.arrow(head.bottom, context.top, color=HEADS[h])
        d.arrow(context.bottom, (394 + 72 * h, 452), color=HEADS[h])
    out_proj = d.box(375, 498, 110, 36, "out_proj", color=GREY)
    out = head_strip(d, 358, 558, (GREY,) * 8)
    d.arrow(joined.bottom, out_proj.top)
    d.arrow(out_proj.bottom, out.top)
    rows = (
        (31, "one token's row", "(B, T, C)"),
        (98, "three Linear layers", ""),
        (155, "C = 8 numbers each", "(B, T, C)"),
        (207, "H = 2 heads, D = 4", "(B, H, T, D)"),
        (336, "attention, each", ""),
        (354, "head by itself", ""),
        (407, "a vector a head", "(B, H, T, D)"),
        (463, "concatenate", "(B, T, C)"),
        (516, "mix the heads", ""),
        (569, "output", "(B, T, C)"),
    )
    for y, label, shape in rows:
        d.note(20, y, label)
        d.code(802, y, shape, at="end")
    return d


def view_transpose():
    """What view and transpose do to the rows of six tokens, and a wrong view.

    x has a row of C = 8 numbers for each of T = 6 tokens; every cell carries the
    number of its token. view(B, T, H, D) cuts each row into H = 2 pieces of D = 4,
    one a head. transpose(1, 2) puts the head first: a matrix (T, D) for each head, in
    which row t belongs to token t. Crossed out: view(B, H, T, D) gives the same shape
    with torn tokens: head 0 holds both halves of tokens 0 to 2 in its six rows.
    """
    d = Sheet("view and transpose: from one wide row to heads", 436)
    T, C, H, D = 6, 8, 2, 4
    number = torch.arange(T * C).view(1, T, C)  # number // C: token; % C // D: head
    w, top, mid = 21, 100, 100 + 138

    def matrix(x, y, rows):
        for r, row in enumerate(rows.tolist()):
            for c, n in enumerate(row):
                color = HEADS[n % C // D]
                d.cells(
                    x + c * w, y + r * w, [n // C], w, w, color, fill=tint(color, 0.3)
                )

    def rows(x, y):
        for t in range(T):
            d.code(x, y + (t + 0.5) * w, str(t), GREY, "end")

    columns = (
        (150, "x", "(B, T, C)", "a row a token:", "C = 8 numbers"),
        (
            364,
            ".view(B, T, H, D)",
            "(B, T, H, D)",
            "each row cut into",
            "H = 2 pieces of D = 4",
        ),
        (556, ".transpose(1, 2)", "(B, H, T, D)", "heads first:", "row t is token t"),
        (
            736,
            "x.view(B, H, T, D)",
            "(B, H, T, D)",
            "right shape, but",
            "tokens are torn",
        ),
    )
    for x, name, shape, *lines in columns:
        d.code(x, 28, name, bold=True)
        d.code(x, 50, shape, GREY)
        d.note(x, 394, *lines, fill=INK, at="middle")
    y = mid - 3 * w
    d.text(58, y - 14, "token", 13, GREY, "end")
    rows(58, y)
    matrix(66, y, number[0])
    d.arrow((240, mid), (268, mid))
    pieces = number.view(1, T, H, D)
    for h in range(H):
        matrix(274 + 96 * h, y, pieces[0, :, h])
        d.text(316 + 96 * h, y - 14, f"head {h}", 13, HEADS[h], bold=True)
    d.arrow((460, mid), (488, mid))
    wrong = number.view(1, H, T, D)
    for h, y in enumerate((top, top + 150)):
        for x, heads in ((514, pieces.transpose(1, 2)), (694, wrong)):
            rows(x - 8, y)
            matrix(x, y, heads[0, h])
            d.text(x + 42, y - 14, f"head {h}", 13, HEADS[h], bold=True)
    d.line((638, 20), (638, 416), color=RULE, dash="5 4")
    for x0, x1 in ((686, 786), (786, 686)):
        d.line((x0, top - 6), (x1, top + 282), color=INK, width=2)
    return d


def kv_cache():
    """Three generation steps, without and with a cache of keys and values.

    Without a cache 4, 5 and 6 tokens are computed, 15 in all. With it the first step
    computes the 4 tokens of the prompt, later ones only the newest token, 6 in all;
    the keys and values of the others are read from the cache.
    """
    d = Sheet("Generating with and without cached keys and values", 336)
    words, w = "Rain fell on the roof all day".split(), 40
    for x0, name, cached in ((66, "Without cache", 0), (464, "With cache", 1)):
        d.text(x0, 32, name, 16, at="start", bold=True)
        d.note(x0 + 7 * w + 30, 62, "computed", at="end")
        total = 0
        for step in range(3):
            y, known = 84 + 58 * step, 4 + step
            old = known - 1 if cached and step else 0
            if not cached:
                d.note(x0 - 10, y + 18, f"step {step + 1}", fill=INK, at="end")
            d.cells(x0, y, ["k v"] * old, w, 36, BLUE)
            fresh, fill = words[old:known], tint(ORANGE, 0.3)
            d.cells(x0 + old * w, y, fresh, w, 36, ORANGE, None, fill)
            x = x0 + known * w
            d.rect(x + 3, y + 3, w - 6, 30, WHITE, GREEN, r=3, dash="4 3")
            d.note(x + w / 2, y + 18, words[known], fill=GREEN, at="middle")
            d.code(x0 + 7 * w + 18, y + 18, str(known - old), size=15, bold=True)
            total += known - old
        d.line((x0, 250), (x0 + 7 * w + 30, 250), color=RULE)
        d.note(x0, 268, "tokens through the model")
        d.code(x0 + 7 * w + 18, 268, str(total), size=15, bold=True)
    keys = (66, ORANGE, "computed now"), (214, BLUE, "keys and values reused")
    for x, color, label in (*keys, (424, GREEN, "next token")):
        fill, dash = (WHITE, "4 3") if color == GREEN else (tint(color, 0.3), None)
        d.rect(x, 297, 18, 18, fill, color, 2, dash=dash)
        d.note(x + 26, 306, label, fill=INK)
    d.note(672, 306, "k, v of a layer:", fill=INK, at="end")
    d.code(774, 306, "(B, H, T, D)", at="end")
    return d


# ---------------------------------------------------------------- 03 architecture


def transformer_block():
    """The pre-norm block of GPT-2 as a straight stream from bottom to top.

    x of shape (B, T, C) enters below and runs straight up. A first branch leaves it,
    passes norm1, att and drop_shortcut and is added back; a second one passes norm2,
    ff and drop_shortcut and is added back. The inside of ff: a linear layer from C to
    4C, GELU, a linear layer back to C.
    """
    d = Sheet("The transformer block", 610)
    x, mid = 230, 400
    d.line((x, 570), (x, 30), color=PURPLE, width=5)
    d.add(draw.Lines(x, 18, x - 11, 40, x + 11, 40, close=True, fill=PURPLE))
    d.text(x + 20, 570, "x", 16, at="start", bold=True)
    d.code(x + 38, 570, "(B, T, C)", at="start")
    d.code(x + 20, 32, "(B, T, C)", at="start")
    d.note(
        x - 20, 552, "the residual stream:", "straight through", fill=PURPLE, at="end"
    )
    parts = (
        (535, "norm1", ("att", "multi-head, causal"), BLUE, "att(norm1(x)))"),
        (283, "norm2", ("ff", "feed forward"), ORANGE, "ff(norm2(x)))"),
    )
    for y, norm_name, lines, color, code in parts:
        plus = d.plus(x, y - 220)
        norm = d.box(mid - 80, y - 58, 160, 38, norm_name, color=GREY)
        main = d.box(mid - 80, y - 128, 160, 48, *lines, color=color)
        drop = d.box(mid - 80, y - 188, 160, 38, "drop_shortcut", color=GREEN)
        d.arrow((x, y), (mid, y), norm.bottom)
        d.arrow(norm.top, main.bottom)
        d.arrow(main.top, drop.bottom)
        d.arrow(drop.top, (mid, y - 220), plus.right)
        d.code(x - 24, y - 229, "x = x + drop_shortcut(", at="end", size=12)
        d.code(x - 24, y - 211, code, at="end", size=12)
    inside = d.rect(560, 60, 220, 240, WHITE, ORANGE, r=8, width=1.2, dash="4 4")
    d.code(574, 78, "ff.layers", ORANGE, "start")
    d.line(main.right, inside.left, color=ORANGE, dash="4 4")
    layers = ("Linear", "C → 4C"), ("GELU",), ("Linear", "4C → C")
    d.code(670, 288, "(B, T, C)", at="middle", size=12)
    below = (670, 280)
    for i, lines in enumerate(layers):
        layer = d.box(605, 222 - 56 * i, 130, 40, *lines, color=ORANGE)
        d.arrow(below, layer.bottom)
        below = layer.top
    d.arrow(below, (670, 84))
    return d


def gpt_model():
    """GPTModel in two rows, with module names and shapes.

    Ids of shape (B, T) pass tok_emb; pos_emb is added; then come drop_emb, n_layers
    transformer blocks in trf_blocks, final_norm and out_head, which gives logits of
    shape (B, T, V).
    """
    d = Sheet("GPTModel", 360)
    ids = d.box(28, 36, 74, 52, "ids", color=GOLD, font=None)
    tok = d.box(220, 36, 132, 52, "tok_emb", "one row per id")
    pos = d.box(220, 116, 132, 52, "pos_emb", "one row per place", color=ORANGE)
    plus = d.plus(466, 62)
    drop = d.box(590, 36, 122, 52, "drop_emb", "dropout", color=GREEN)
    d.text(126, 142, "0 … T − 1", 14)
    d.arrow(ids.right, tok.left)
    d.arrow((164, 142), pos.left)
    d.arrow(tok.right, plus.left)
    d.arrow(pos.right, (466, 142), plus.bottom)
    d.arrow(plus.right, drop.left)
    y = 216
    d.rect(34, y, 296, 86, WHITE, PURPLE, r=8, width=1.2, dash="4 4")
    d.code(48, y + 12, "trf_blocks", PURPLE, "start")
    d.note(316, y + 12, "× n_layers", fill=PURPLE, at="end")
    first, second, last = (
        d.box(x, y + 24, w, 52, name, "block", color=PURPLE, font=None)
        for x, w, name in ((48, 60, "0"), (126, 60, "1"), (236, 80, "n − 1"))
    )
    norm = d.box(420, y + 24, 106, 52, "final_norm", "LayerNorm", color=GREY)
    head = d.box(560, y + 24, 96, 52, "out_head", "C → V")
    logits = d.box(696, y + 24, 92, 52, "logits", color=GOLD, font=None)
    d.arrow(drop.right, (770, 62), (770, 192), (18, 192), (18, 266), first.left)
    d.arrow(first.right, second.left)
    d.arrow(second.right, last.left, dash="2 5")
    d.arrow(last.right, norm.left)
    d.arrow(norm.right, head.left)
    d.arrow(head.right, logits.left)
    shapes = {
        "(B, T)": [(65, 104)],
        "(T, C)": [(402, 128)],
        "(B, T, C)": [(402, 48), (534, 48), (650, 178), (375, y + 36)],
        "(B, T, V)": [(742, y + 90)],
    }
    for shape, spots in shapes.items():
        for spot in spots:
            d.code(*spot, shape)
    sizes = "GPT-2 124M: V = 50,257, C = 768, n_layers = 12, at most 1,024 tokens"
    d.note(410, 334, sizes, at="middle")
    return d


# ---------------------------------------------------------------- 04 pretraining


def training_loop():
    """The training loop as a circle of six boxes, and what runs beside it.

    A batch of input and target; the model turns the input into logits; cross-entropy
    compares them with the target; backward, clipping and an AdamW step follow, then
    the next batch. From time to time: evaluation, a sample, a checkpoint.
    """
    d = Sheet("The training loop", 412)
    top, low = 64, 178
    batch = d.box(40, top, 160, 56, "batch", "input and target", color=GOLD, font=None)
    model = d.box(330, top, 160, 56, "model", "GPTModel")
    loss = d.box(620, top, 160, 56, "cross_entropy", "how wrong?", color=ORANGE)
    backward = d.box(620, low, 160, 56, "backward", "gradients", color=ORANGE)
    clip = d.box(330, low, 160, 56, "clip", "norm at most 1", color=GREEN)
    step = d.box(40, low, 160, 56, "AdamW step", "change the weights", color=GREEN)
    d.arrow(batch.right, model.left)
    d.arrow(model.right, loss.left)
    d.arrow(batch.top, (120, 30), (700, 30), loss.top, color=PURPLE)
    d.arrow(loss.bottom, backward.top)
    d.arrow(backward.left, clip.right)
    d.arrow(clip.left, step.right)
    d.arrow(step.top, batch.bottom)
    for x, name, shape in ((265, "input", "(B, T)"), (555, "logits", "(B, T, V)")):
        d.text(x, top + 14, name, 13)
        d.code(x, top + 43, shape)
    d.text(386, 44, "target", 13, PURPLE, "end")
    d.code(394, 44, "(B, T)", PURPLE, "start")
    d.text(688, 149, "loss, one number", 13, at="end")
    d.text(132, 149, "next batch", 13, at="start")
    d.arrow(step.bottom, (120, 272), dash="4 4")
    d.text(132, 254, "from time to time", 13, at="start")
    d.rect(24, 272, 772, 116, WHITE, GREY, r=8, width=1.2, dash="4 4")
    notes = (
        ("evaluate", "loss on training", "and validation data"),
        ("sample", "continue a prompt,", "read the text"),
        ("checkpoint", "save all it takes", "to resume"),
    )
    for i, lines in enumerate(notes):
        d.box(40 + 254 * i, 290, 232, 80, *lines, color=PURPLE, font=None)
    return d


WORDS = ("roof", "hill", "town", "sea", "floor", "moon", "spoon")


def sampling():
    """How one token is drawn from the logits, in four bar charts.

    Seven logits; top-k keeps five of them and top-p four; the rest are divided by
    the temperature; softmax makes probabilities; a random number between 0 and 1
    picks the token in whose part of the line it falls.
    """
    d = Sheet("Drawing the next token", 424)
    logits = torch.tensor([3.1, 2.7, 2.1, 1.7, 0.4, -0.5, -1.2])
    top_k, top_p, temperature = 5, 0.9, 0.7
    reached = logits[:top_k].softmax(0).cumsum(0)
    left = int((reached < top_p).sum()) + 1
    scaled = logits[:left] / temperature
    probs = scaled.softmax(0).tolist()
    panels = (
        ("", "logits", logits.tolist()),
        (f"top-k {top_k}, top-p {top_p}", "cut", logits[:left].tolist()),
        (f"divide by {temperature}", "temperature", scaled.tolist()),
        ("shares of 1", "softmax", probs),
    )
    for g, (note, name, bars) in enumerate(panels):
        x = 96 + 186 * g
        d.text(x + 60, 28, name, 15, bold=True)
        d.note(x + 60, 50, note, at="middle")
        if g:
            d.arrow((x - 62, 28), (x + 4, 28))
        scale, places = (140, 2) if g == 3 else (20, 1)
        for i, word in enumerate(WORDS):
            y = 72 + 30 * i
            if g == 0:
                d.text(62, y + 12, word, 14, at="end")
            if i >= len(bars):
                why = "top-p" if i < top_k else "top-k"
                gone = ("", f"−∞ {why}", "−∞", "0")[g]
                d.code(x + 8, y + 12, gone, GREY, "start")
                continue
            w, color = bars[i] * scale, HEADS[i] if g == 3 else BLUE
            d.rect(x + min(w, 0), y, abs(w), 24, tint(color, 0.45), color, 0, 1)
            d.code(x + 8 + max(w, 0), y + 12, dec(bars[i], places), at="start")
        d.line((x, 68), (x, 280), width=1)
    x0, span, y, u, start, drawn = 96, 640, 336, 0.62, 0.0, None
    d.text(x0 - 14, y + 15, "draw one", 14, at="end", bold=True)
    for word, p, color in zip(WORDS, probs, HEADS, strict=False):
        d.cells(
            x0 + start * span, y, [word], p * span, 30, color, None, tint(color, 0.45)
        )
        start += p
        drawn = drawn or (word if u < start else None)
    at = x0 + u * span
    d.arrow((at, y - 30), (at, y), color=INK)
    d.text(at + 10, y - 20, f"random number {u} → “{drawn}”", 14, at="start", bold=True)
    d.code(x0, y + 46, "0")
    d.code(x0 + span, y + 46, "1")
    note = "Temperature 0 draws nothing: the largest logit wins."
    d.note(x0 + span / 2, y + 62, note, at="middle")
    return d


# ---------------------------------------------------------------- 05 weight loading


def fused_weights():
    """The fused matrix c_attn/w, turned and split into three parameters.

    In OpenAI's file, c_attn/w has the shape (1, C, 3C): C rows, one for each input,
    and 3C columns, for queries, keys and values side by side. Without its first
    dimension and transposed it is (3C, C): queries, keys and values stand above each
    other. Split into three, each part is the weight (C, C) of one linear layer.
    """
    d = Sheet("Loading the fused queries, keys and values", 312)
    names, colors, w = ("query", "key", "value"), (BLUE, ORANGE, GREEN), 72
    for x, title in ((132, "in the file: c_attn/w"), (396, "as PyTorch has it")):
        d.text(x, 26, title, 14, bold=True)
    d.text(693, 26, "in our model", 14, bold=True)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        fill, y = tint(color, 0.3), 44 + i * w
        d.rect(24 + i * w, 116, w, w, fill, color, r=0)
        d.text(60 + i * w, 146, name, 14)
        d.code(60 + i * w, 168, "C × C")
        turned = d.rect(360, y, w, w, fill, color, r=0)
        d.text(396, y + 30, f"{name}ᵀ", 14)
        d.code(396, y + 52, "C × C")
        layer = d.rect(590, y + 4, 206, w - 8, fill, color)
        d.arrow(turned.right, layer.left)
        d.code(693, y + 28, f"att.W_{name}.weight", bold=True)
        d.code(693, y + 50, "(C, C)", GREY)
    d.note(132, 100, "3C outputs", at="middle")
    d.note(132, 206, "a row for each of C inputs", at="middle")
    d.code(132, 290, "(1, C, 3C)")
    d.arrow((240, 152), (360, 152))
    d.code(301, 136, "[0].t()")
    d.note(301, 172, "turned", at="middle")
    d.code(396, 290, "(3C, C)")
    d.code(509, 62, ".split(C)")
    d.note(693, 290, "three linear layers", at="middle")
    return d


# ---------------------------------------------------------------- 06 spam


def spam_classifier():
    """What is frozen, what learns, and what is kept between the two.

    Ids of a message pass the embeddings and all blocks but the last, which are frozen
    and run once a message. Their output of shape (B, T, C) is kept. The last block,
    final_norm and out_head with C times 2 weights read it in every epoch; they learn.
    Of its output only the vector of the last real token, (B, C), is scored.
    """
    d = Sheet("What is frozen, and what learns", 372)
    d.rect(20, 20, 376, 164, tint(GREY, 0.08), GREY, r=10, width=1.4, dash="5 4")
    d.text(34, 42, "frozen: runs once a message", 14, GREY, "start", bold=True)
    d.rect(554, 20, 246, 228, tint(GREEN, 0.08), GREEN, r=10, width=1.4)
    d.text(568, 42, "learns: runs in every epoch", 14, GREEN, "start", bold=True)
    ids = d.box(36, 68, 84, 76, "ids", "padded", color=GOLD, font=None)
    emb = d.box(138, 68, 90, 76, "tok_emb", "+ pos_emb", color=GREY)
    blocks = d.box(246, 68, 134, 76, "trf_blocks", "0 … n − 2", color=GREY)
    kept = d.box(
        412, 60, 124, 92, "kept", "in memory:", "4 C bytes a token", color=PURPLE
    )
    last = d.box(568, 68, 104, 76, "trf_blocks", "n − 1", color=GREEN)
    norm = d.box(688, 68, 102, 76, "final_norm", color=GREEN)
    head = d.box(688, 188, 102, 48, "out_head", "C → 2", color=GREEN)
    for a, b in pairwise((ids, emb, blocks, kept, last, norm)):
        d.arrow(a.right, b.left)
    d.arrow(norm.bottom, head.top)
    d.code(78, 162, "(B, T)")
    d.code(474, 170, "(B, T, C)")
    d.code(731, 166, "(B, C)", at="end")
    answer = d.cells(675, 282, ["ham", "spam"], 64, 30, ORANGE, font=None)
    d.arrow(head.bottom, answer.top)
    d.code(731, 265, "(B, 2)", at="end")
    x, y, tokens = 36, 282, ["Free", "·prize", "!", "·Call", "‹end›"]
    d.text(x, y - 20, "one row of the batch", 14, at="start", bold=True)
    d.cells(x, y, tokens, 60, 30, BLUE)
    d.cells(x + 300, y, ["0"] * 3, 30, 30, RULE, fill=WHITE)
    read = d.rect(x + 240, y, 60, 30, "none", ORANGE, r=0, width=3)
    d.brace(x, x + 298, y + 36, "5 real tokens: the last one has seen them all")
    d.brace(x + 302, x + 390, y + 36, "padding")
    d.arrow(read.top, (read.top[0], 212), (688, 212), color=ORANGE)
    d.note(read.top[0] + 12, 200, "only this token's vector is scored", fill=ORANGE)
    return d


def lora():
    """A frozen linear layer and the two narrow matrices beside it.

    x of width d_in goes through W, which is frozen, and through A and B, which learn.
    A is as high as W, d_in, and only rank wide; it starts random. B is as wide as W,
    d_out, and only rank high; it starts at zero. Their product times alpha / rank is
    added to the result of W.
    """
    d = Sheet("LoRA: a change of low rank beside a frozen layer", 372)
    d.code(48, 160, "x", bold=True, size=15)
    d.code(48, 182, "(…, d_in)", size=12)
    W = d.rect(190, 40, 210, 120, tint(GREY, 0.2), GREY, r=2)
    d.code(295, 88, "W", bold=True, size=15)
    d.note(295, 110, "frozen", at="middle")
    d.code(295, 26, "d_out", GREY, size=12)
    d.code(184, 60, "d_in", GREY, "end", size=12)
    A = d.rect(190, 206, 26, 120, tint(GREEN, 0.3), GREEN, r=2)
    d.code(203, 266, "A", bold=True, size=15)
    d.code(203, 192, "rank", GREY, size=12)
    d.code(184, 226, "d_in", GREY, "end", size=12)
    d.note(203, 344, "random at first", fill=GREEN, at="middle")
    B = d.rect(316, 253, 210, 26, tint(GREEN, 0.3), GREEN, r=2)
    d.code(421, 266, "B", bold=True, size=15)
    d.code(421, 239, "d_out", GREY, size=12)
    d.code(310, 294, "rank", GREY, "end", size=12)
    d.note(421, 297, "zero at first", fill=GREEN, at="middle")
    scale = d.box(560, 242, 116, 48, "× alpha / rank", color=ORANGE, font=None)
    plus = d.plus(706, 100)
    d.arrow((88, 160), (122, 160), (122, 100), W.left)
    d.arrow((122, 160), (122, 266), A.left)
    d.arrow(A.right, B.left)
    d.code(266, 252, "(…, rank)", size=12)
    d.arrow(B.right, scale.left)
    d.arrow(scale.right, (706, 266), plus.bottom)
    d.arrow(W.right, plus.left)
    d.arrow(plus.right, (750, 100))
    d.code(768, 100, "y", bold=True, size=15)
    d.code(766, 124, "(…, d_out)", size=12)
    merged = "merged: W + A B × alpha / rank,", "one layer again, no slower than before"
    d.note(800, 328, *merged, at="end")
    return d


# ---------------------------------------------------------------- 07 assistant


def masked_targets():
    """Inputs and targets of two examples in one batch.

    The first example has six input tokens: Say, it, Response, She, sang and a full
    stop. Its targets are one token later; those of the prompt are −100, and She,
    sang, the full stop and the end are learnt. The second, Go, Response, Gone and a
    full stop, is filled up with two end tokens; its targets Gone, full stop and the
    first end are learnt, those of the prompt and the padding are −100.
    """
    d = Sheet("Which targets count", 356)
    rows = (
        (("Say", "it", "Response:", "She", "sang", "."), 3, 6),
        (("Go", "Response:", "Gone", "."), 2, 4),
    )
    for i, (tokens, answer, length) in enumerate(rows):
        y = 28 + 142 * i
        d.text(40, y + 50, f"example {i + 1}", 14, at="start", bold=True)
        d.code(192, y + 20, "inputs", at="end")
        d.code(192, y + 82, "targets", at="end")
        padded = [*tokens, *["end"] * (7 - length)]
        for place, word in enumerate(padded):
            color = ORANGE if place >= length else BLUE if place >= answer else GREY
            x, fill = 206 + 94 * place, tint(color, 0.1 if color == GREY else 0.3)
            if place < 6:
                pad = place >= length
                edge, shade = (RULE, WHITE) if pad else (color, fill)
                d.cells(x, y, [word], 94, 40, edge, None, shade)
            if place > 0:
                learnt = answer <= place <= length
                d.arrow((x, y + 41), (x - 40, y + 62))
                target = (
                    (word, color, None, fill) if learnt else ("−100", RULE, MONO, WHITE)
                )
                d.cells(x - 94, y + 62, [target[0]], 94, 40, *target[1:])
    keys = (
        (40, tint(BLUE, 0.3), BLUE, "learnt"),
        (150, tint(ORANGE, 0.3), ORANGE, "the end, learnt"),
        (310, WHITE, RULE, "−100: prompt or padding, left out of the loss"),
    )
    for x, fill, edge, label in keys:
        d.rect(x, 316, 18, 18, fill, edge, r=2, width=1)
        d.note(x + 26, 325, label, fill=INK)
    return d


def chat_window():
    """A model's window before and after its oldest turn is dropped.

    At message 4 the turns 1 to 3, the message and room for the answer fit into the
    window. At message 5 there is a turn 4 as well; turn 1 lies outside the window,
    crossed out, and a line says that one old turn was dropped.
    """
    d = Sheet("Keeping a conversation within the window", 346)
    width = {1: 130, 2: 110, 3: 120, 4: 130}
    for y, n, kept in ((56, 4, (1, 2, 3)), (208, 5, (2, 3, 4))):
        d.text(190, y - 26, f"Message {n} arrives", 14, at="start", bold=True)
        x = 190
        for k in kept:
            d.box(x, y, width[k], 56, f"turn {k}", color=BLUE, font=None)
            x += width[k]
        d.box(x, y, 100, 56, f"message {n}", color=GREEN, font=None)
        d.rect(x + 100, y, 790 - x - 100, 56, WHITE, ORANGE, r=6, dash="5 4")
        d.note((x + 890) / 2, y + 28, "room for the answer", fill=ORANGE, at="middle")
        d.brace(190, 790, y + 64, "the model's window, context_length tokens")
    d.rect(40, 208, 130, 56, WHITE, GREY, r=6, width=1.2, dash="4 4")
    d.text(105, 236, "turn 1", 14, GREY, bold=True)
    d.line((48, 258), (162, 214), color=ORANGE, width=2)
    note = "[1 old turn dropped: the model's window is full]"
    d.code(40, 324, note, ORANGE, "start")
    return d


# ---------------------------------------------------------------- all figures

FIGURES = {
    "roadmap": roadmap,
    **{f"roadmap-{i}": partial(roadmap, i) for i in (1, 4, 5, 6, 7)},
    "text-to-windows": text_to_windows,
    "bpe-merges": bpe_merges,
    "token-position-embedding": token_position_embedding,
    "attention-one-query": attention_one_query,
    "causal-mask": causal_mask,
    "multi-head": multi_head,
    "view-transpose": view_transpose,
    "kv-cache": kv_cache,
    "transformer-block": transformer_block,
    "gpt-model": gpt_model,
    "training-loop": training_loop,
    "sampling": sampling,
    "fused-weights": fused_weights,
    "spam-classifier": spam_classifier,
    "lora": lora,
    "masked-targets": masked_targets,
    "chat-window": chat_window,
}


def main(names):
    if unknown := set(names) - set(FIGURES):
        raise SystemExit(f"No figure {sorted(unknown)}; there are {list(FIGURES)}")
    for name in names or FIGURES:
        figure = FIGURES[name]
        doc = getattr(figure, "func", figure).__doc__
        sheet = figure()
        sheet.insert(1, Desc(" ".join(doc.split())))
        svg = sheet.as_svg(header="") + "\n"
        (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:])
