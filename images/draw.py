"""Draw every figure of the course as SVG, with the standard library alone.

python images/draw.py          rewrites all figures
python images/draw.py NAME     rewrites one, such as causal-mask
"""

import math
import sys
from collections import Counter
from functools import partial
from html import escape
from pathlib import Path

WIDTH = 820
PAPER, WHITE, INK, GREY, RULE = "#fbfaf7", "#ffffff", "#1f2933", "#56616c", "#c9ccd0"
BLUE, ORANGE, GREEN = "#0067a5", "#b34700", "#00705a"
PURPLE, GOLD = "#7d3f78", "#d99a00"  # gold only fills, it is too light for text
SANS = "Helvetica, Arial, 'Liberation Sans', sans-serif"
MONO = "Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"


# ---------------------------------------------------------------- drawing


def num(value):
    """Write a coordinate with at most two decimals."""
    return f"{round(value, 2):g}"


def dec(value, places=1):
    """Write a number for the reader, with a true minus sign."""
    if value == -math.inf:
        return "−∞"
    return f"{value:.{places}f}".replace("-", "−")


def tint(color, share=0.14):
    """Mix a share of a colour into white."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 + (p - 255) * share):02x}" for p in parts)


def softmax(scores):
    """Turn scores into weights that sum to one."""
    powers = [math.exp(s - max(scores)) for s in scores]
    return [p / sum(powers) for p in powers]


class Drawing:
    """A list of SVG elements on a light sheet of the common width."""

    def __init__(self, title, height):
        self.title, self.height, self.parts = title, height, []
        self.rect(0.5, 0.5, WIDTH - 1, height - 1, PAPER, "#e6e3da", r=10, width=1)

    def add(self, tag, body=None, **attrs):
        pairs = ((k.replace("_", "-"), v) for k, v in attrs.items() if v is not None)
        start = f"<{tag} " + " ".join(
            f'{k}="{num(v) if isinstance(v, int | float) else v}"' for k, v in pairs
        )
        end = "/>" if body is None else f">{escape(body, quote=False)}</{tag}>"
        self.parts.append(start + end)

    def rect(self, x, y, w, h, fill=WHITE, line=INK, r=4, width=1.5, dash=None):
        style = {"fill": fill, "stroke": line, "stroke_width": width}
        self.add("rect", x=x, y=y, width=w, height=h, rx=r, **style, **dashed(dash))

    def text(self, x, y, body, size=14, fill=INK, at="middle", mono=False, bold=False):
        """Write one line, its letters centred on the height `y`."""
        style = {"font_size": size, "fill": fill, "text_anchor": at}
        style["font_family"] = MONO if mono else None
        style["font_weight"] = "bold" if bold else None
        self.add("text", body, x=x, y=y + 0.35 * size, **style)

    def code(self, x, y, body, fill=INK, at="middle", size=13, bold=False):
        self.text(x, y, body, size, fill, at, mono=True, bold=bold)

    def box(self, x, y, w, h, *lines, color=BLUE, solid=False, mono=True):
        """A coloured box; its first line is the name, the rest is small."""
        self.rect(x, y, w, h, color if solid else tint(color), color, r=6)
        ink = WHITE if solid else INK
        top = y + h / 2 - 9 * (len(lines) - 1)
        for i, line in enumerate(lines):
            first = i == 0
            size, code = 14 if first else 13, mono and first
            self.text(x + w / 2, top + 18 * i, line, size, ink, "middle", code, first)

    def line(self, *points, color=GREY, width=1.6, dash=None):
        path = " ".join(f"{num(x)},{num(y)}" for x, y in points)
        style = {"fill": "none", "stroke": color, "stroke_width": width}
        self.add("polyline", points=path, **style, **dashed(dash))

    def arrow(self, *points, color=GREY, dash=None):
        """A line through the points; the tip touches the last one exactly."""
        (x0, y0), (x1, y1) = points[-2:]
        length = math.dist((x0, y0), (x1, y1))
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        bx, by = x1 - 9 * ux, y1 - 9 * uy
        self.line(*points[:-1], (bx, by), color=color, dash=dash)
        tip = (x1, y1), (bx - 4.5 * uy, by + 4.5 * ux), (bx + 4.5 * uy, by - 4.5 * ux)
        path = " ".join(f"{num(x)},{num(y)}" for x, y in tip)
        self.add("polygon", points=path, fill=color)

    def cells(self, x, y, values, w=40, h=30, color=BLUE, mono=True, fill=None):
        """A row of cells with one value in each."""
        for i, value in enumerate(values):
            self.rect(x + i * w, y, w, h, fill or tint(color), color, r=0, width=1)
            self.text(x + i * w + w / 2, y + h / 2, str(value), 13, mono=mono)

    def plus(self, x, y, r=13):
        self.add("circle", cx=x, cy=y, r=r, fill=WHITE, stroke=INK, stroke_width=1.5)
        self.line((x - 6, y), (x + 6, y), color=INK)
        self.line((x, y - 6), (x, y + 6), color=INK)

    def svg(self, name, desc):
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
            f'height="{self.height}" viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-labelledby="{name}-title {name}-desc" font-family="{SANS}">',
            f'<title id="{name}-title">{escape(self.title)}</title>',
            f'<desc id="{name}-desc">{escape(desc)}</desc>',
        )
        return "\n".join([*head, *self.parts, "</svg>"]) + "\n"


def dashed(dash):
    return {"stroke_dasharray": dash}


# ---------------------------------------------------------------- road map

STAGES = (
    ("Tokenizer", "text → ids"),
    ("Attention", "ids look at ids"),
    ("Architecture", "GPT-2, untrained"),
    ("Pretraining", "learns one story"),
    ("Weight loading", "OpenAI's weights"),
    ("Spam filter", "ham or spam"),
    ("Assistant", "follows, chats"),
)
GROUPS = (("Build", 0, 2), ("Train: pretrain or load", 3, 4), ("Use: fine-tune", 5, 6))


def roadmap(current):
    """Seven stages from left to right, in three groups.

    Build: tokenizer, attention, architecture. Train: pretraining, weight loading.
    Use: spam filter, assistant. Finished stages carry a tick, the current one is
    filled, later ones are outlined.
    """
    d = Drawing(f"Road map, stage {current} of 7: {STAGES[current - 1][0]}", 172)
    w, pitch = 102, 113
    for name, first, last in GROUPS:
        left, right = 20 + first * pitch, 20 + last * pitch + w
        d.text((left + right) / 2, 22, name, 15, bold=True)
        d.line((left, 46), (left, 38), (right, 38), (right, 46), color=GREY)
    for i, (name, result) in enumerate(STAGES, start=1):
        x, here, done = 20 + (i - 1) * pitch, i == current, i < current
        if i > 1:
            d.line((x - pitch + w, 91), (x, 91), color=INK if i <= current else RULE)
        fill = BLUE if here else tint(GREEN, 0.2) if done else WHITE
        edge = BLUE if here else GREEN if done else GREY
        d.rect(x, 58, w, 66, fill, edge, r=8, width=2.5 if here else 1.5)
        ink = WHITE if here else INK
        d.text(x + w / 2 - 9 * done, 79, str(i), 18, ink, bold=True)
        if done:
            mid = x + w / 2
            points = (mid + 3, 79), (mid + 8, 84), (mid + 17, 73)
            d.line(*points, color=GREEN, width=2.5)
        d.text(x + w / 2, 105, name, 13, ink, bold=True)
        d.text(x + w / 2, 146, result, 13, INK if here else GREY, bold=False)
    return d


# ---------------------------------------------------------------- 01 tokenizer


def text_to_windows():
    """One sentence becomes tokens, ids and windows.

    Nine tokens have nine ids. Three windows of four ids start at positions 0, 2
    and 4 (max_length 4, stride 2). The target of a window is its input moved on by
    one token.
    """
    d = Drawing("From a sentence to windows of input and target", 440)
    tokens = "The ·lamp ·burned ·low ·until ·the ·morning ·came .".split()
    ids = [12, 305, 871, 96, 442, 27, 718, 530, 3]
    x0, w, length, stride = 112, 76, 4, 2
    middle = x0 + w * len(tokens) / 2
    d.text(middle, 28, "“The lamp burned low until the morning came.”", 16)
    d.arrow((middle, 44), (middle, 76))
    d.code(middle + 14, 59, "encode", at="start", fill=BLUE)
    d.text(x0 - 14, 92, "tokens", 14, at="end", bold=True)
    d.cells(x0, 76, tokens, w, 32, GREY, fill=WHITE)
    d.text(x0 - 14, 124, "ids", 14, at="end", bold=True)
    d.cells(x0, 108, ids, w, 32, PURPLE)
    d.arrow((middle, 140), (middle, 172))
    d.code(middle + 14, 155, "slide", at="start", fill=BLUE)
    starts = range(0, len(ids) - length, stride)
    for row, start in enumerate(starts):
        y, left = 176 + row * 78, x0 + start * w
        d.text(22, y + 29, f"window {row + 1}", 14, at="start", bold=True)
        if row:
            d.arrow((left - stride * w, y + 15), (left, y + 15), color=GREY)
            d.text(left - w, y + 2, f"stride {stride}", 13, GREY)
        d.cells(left, y, ids[start : start + length], w, 29, BLUE)
        d.text(left + w * length + 10, y + 15, "input", 13, BLUE, "start")
        d.cells(left + w, y + 29, ids[start + 1 : start + length + 1], w, 29, ORANGE)
        d.text(left + w - 10, y + 44, "target", 13, ORANGE, "end")
    d.text(796, 192, f"{len(starts)} windows, max_length {length}", 13, GREY, "end")
    d.code(796, 214, f"(B, T) = ({len(starts)}, {length})", at="end")
    note = "The ids are examples. A dot marks the space that a token starts with."
    d.text(middle, 416, note, 13, GREY)
    return d


BPE_WORDS = {"sea": 4, "seat": 3, "tea": 5, "team": 2}


def pair_counts(words):
    """Count the neighbouring pieces, weighted by how often a word occurs."""
    counts = Counter()
    for word, pieces in words.items():
        for pair in zip(pieces, pieces[1:], strict=False):
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
    d = Drawing("Byte-pair encoding: the first three merges", 384)
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
        bpe_ranking(d, x, ranked[:3], last=step == 3)
        new = ranked[0][1]
        words = {word: merge(pieces, new) for word, pieces in words.items()}
    d.text(410, 360, "A tie goes to the lexicographically greater pair.", 13, GREY)
    return d


def bpe_ranking(d, x, ranked, last):
    """List the highest pair counts under a column and mark the winner."""
    d.text(x, 266, "pair counts", 13, GREY, "start")
    for i, (count, (a, b)) in enumerate(ranked):
        y, wins = 289 + 20 * i, i == 0 and not last
        label = f"{a} + {b}".ljust(8) + f"{count:>3}"
        d.code(x, y, label.replace(" ", "\u00a0"), BLUE if wins else INK, "start")
        if wins:
            points = (x + 96, y), (x + 150, y), (x + 150, 36), (x + 180, 36)
            d.arrow(*points, color=BLUE)


TOKEN_TABLE = (
    (0.3, 0.1, -0.6),
    (-0.4, 0.9, 0.2),
    (0.7, -0.2, 0.5),
    (-0.1, -0.8, 0.4),
    (0.5, 0.6, -0.3),
    (-0.7, 0.2, 0.8),
)
POSITION_TABLE = ((0.1, -0.1, 0.2), (0.0, 0.3, -0.2), (-0.2, 0.1, 0.1))


def token_position_embedding():
    """Ids pick rows of the token table, to which rows of the position table are added.

    The ids 4, 1, 4 of one sequence pick three rows of width C from a table of V rows.
    Rows 0, 1, 2 of the position table are added to them. The same id at two places
    gives two different sums.
    """
    d = Drawing("Token embedding plus position embedding", 386)
    ids, y0, h, w = (4, 1, 4), 128, 48, 43
    d.text(54, 46, "ids", bold=True)
    d.code(54, 68, "(B, T)")
    for shift in (12, 6, 0):
        d.rect(29 + shift, y0 - shift, 44, 3 * h, WHITE, PURPLE, r=0, width=1)
    embedding_tables(d, w)
    columns = (336, "picked rows", BLUE), (505, "pos_emb", ORANGE), (674, "sum", GREEN)
    shapes = "(B, T, C)", "(T_max, C)", "(B, T, C)"
    for (x, name, _), shape in zip(columns, shapes, strict=True):
        d.text(x + 1.5 * w, 46, name, 14, mono="_" in name, bold=True)
        d.code(x + 1.5 * w, 68, shape)
    for t, i in enumerate(ids):
        y, row = y0 + h * t, 96 + 32 * i + 15
        d.cells(29, y, [i], 44, h, PURPLE)
        d.arrow((73, y + h / 2), (144, row), color=BLUE)
        d.arrow((296, row), (336, y + h / 2), color=BLUE)
        total = [a + b for a, b in zip(TOKEN_TABLE[i], POSITION_TABLE[t], strict=True)]
        rows = TOKEN_TABLE[i], POSITION_TABLE[t], total
        for (x, _, color), values in zip(columns, rows, strict=True):
            d.cells(x, y + 9, map(dec, values), w, 30, color)
        d.text(485, y + h / 2, "+", 18, bold=True)
        d.text(654, y + h / 2, "=", 18, bold=True)
    for t, values in enumerate(("···", "···")):
        d.cells(505, y0 + h * 3 + 9 + 30 * t, values, w, 30, RULE, fill=WHITE)
    d.text(569, y0 + h * 3 + 86, "positions 3 … T_max − 1", 13, GREY)
    d.text(738, y0 + h * 3 + 24, "same id, two", 13, GREY)
    d.text(738, y0 + h * 3 + 42, "different sums", 13, GREY)
    return d


def embedding_tables(d, w):
    """The token table with the index of each row and its picked rows coloured."""
    d.text(231, 46, "tok_emb", 14, mono=True, bold=True)
    d.code(231, 68, "(V, C)")
    for i, values in enumerate(TOKEN_TABLE):
        y, picked = 96 + 32 * i, i in (1, 4)
        d.code(156, y + 15, str(i), BLUE if picked else GREY)
        fill = tint(BLUE) if picked else WHITE
        d.cells(167, y, map(dec, values), w, 30, BLUE if picked else RULE, fill=fill)
    d.cells(167, 288, "···", w, 30, RULE, fill=WHITE)
    d.text(231, 342, "one row for each of V ids", 13, GREY)


# ---------------------------------------------------------------- 02 attention


def attention_one_query():
    """Self-attention for one query, the third token, with numbers.

    The query is multiplied with the keys of itself and the two earlier tokens; the
    scores are divided by the root of D and softmax makes weights of 0.14, 0.63 and
    0.23. The weighted sum of the values is the context vector. A later token is not
    looked at.
    """
    d = Drawing("Self-attention for one query", 398)
    query, tokens = (1, 0, 2, 1), ("The", "lamp", "burned", "low")
    keys = (0, 1, 0, 1), (1, 0, 1, 1), (1, 1, 1, -1), (2, 0, 1, 0)
    values = (1, 0, 0, 1), (0, 2, 1, 0), (2, 0, 1, 1), (0, 1, 0, 2)
    dots = [sum(a * b for a, b in zip(query, key, strict=True)) for key in keys]
    weights = softmax([dot / math.sqrt(len(query)) for dot in dots[:3]])
    context = [
        sum(p * v[i] for p, v in zip(weights, values[:3], strict=True))
        for i in range(4)
    ]
    for x, name in ((136, "keys"), (520, "weights"), (716, "values")):
        d.text(x, 105, name, bold=True)
    d.code(338, 105, "q·k / √D")
    d.code(427, 105, "softmax", GREY)
    for i, token in enumerate(tokens):
        y, seen = 126 + 46 * i, i < 3
        edge = (BLUE, GREEN) if seen else (RULE, RULE)
        fill = None if seen else WHITE
        d.text(98, y + 16, token, 14, INK if seen else GREY, "end", bold=i == 2)
        d.cells(118, y, map(dec0, keys[i]), 38, 32, edge[0], fill=fill)
        d.cells(640, y, map(dec0, values[i]), 38, 32, edge[1], fill=fill)
        if seen:
            d.arrow((270, y + 16), (290, y + 16))
            d.code(342, y + 16, f"{dots[i]} / 2 = {dec(dots[i] / 2)}")
            d.arrow((394, y + 16), (460, y + 16))
            d.rect(460, y + 4, 120 * weights[i], 24, ORANGE, ORANGE, r=0, width=1)
            d.code(468 + 120 * weights[i], y + 16, dec(weights[i], 2), at="start")
            d.arrow((594, y + 16), (640, y + 16))
            d.text(612, y + 5, "×", 15, bold=True)
    d.text(452, 280, "a later token: not looked at", 13, GREY)
    attention_frame(d, query, context)
    return d


def dec0(value):
    return dec(value, 0)


def attention_frame(d, query, context):
    """The query above the keys, the softmax bracket, the sum below the values."""
    d.cells(118, 27, query, 38, 32, ORANGE)
    d.text(98, 34, "query of", 14, ORANGE, "end", bold=True)
    d.text(98, 53, "“burned”", 14, ORANGE, "end", bold=True)
    d.arrow((194, 59), (194, 126), color=ORANGE)
    d.text(206, 78, "dot product with every key", 13, GREY, "start")
    d.arrow((716, 302), (716, 342), color=GREEN)
    d.text(704, 322, "weighted sum", 13, GREY, "end")
    d.cells(640, 342, [dec(c, 2) for c in context], 38, 32, GREEN)
    d.text(626, 351, "context vector", 14, GREEN, "end", bold=True)
    d.text(626, 370, "of “burned”", 13, GREY, "end")
    d.text(118, 351, "D = 4, so √D = 2", 13, GREY, "start")
    d.text(118, 370, "the weights sum to 1", 13, GREY, "start")


MASK_SCORES = (
    (0.9, 0.2, -0.4, 0.1, 0.6),
    (1.1, 0.5, 0.3, -0.2, 0.8),
    (0.2, 1.4, 0.1, 0.7, -0.5),
    (-0.3, 0.6, 0.9, 0.4, 1.2),
    (0.8, 1.0, 0.5, -0.1, 0.7),
)


def causal_mask():
    """Three grids of five by five for the words Snow fell on the roof.

    Left, attention scores. Middle, the scores of later words set to minus infinity.
    Right, each row after softmax: weights that sum to one, with zeros above the
    diagonal.
    """
    d = Drawing("The causal mask", 326)
    words, cell = ("Snow", "fell", "on", "the", "roof"), 42
    masked = [
        [s if j <= i else -math.inf for j, s in enumerate(row)]
        for i, row in enumerate(MASK_SCORES)
    ]
    weights = [softmax(row) for row in masked]
    grids = ("scores", MASK_SCORES, 1), ("mask", masked, 1), ("softmax", weights, 2)
    for g, (name, grid, places) in enumerate(grids):
        x0 = 72 + 254 * g
        d.text(x0 + 2.5 * cell, 28, name, 15, bold=True)
        for i, word in enumerate(words):
            d.text(x0 + (i + 0.5) * cell, 54, word, 13, GREY)
            if g == 0:
                d.text(x0 - 10, 68 + (i + 0.5) * cell, word, 13, INK, "end")
            for j, value in enumerate(grid[i]):
                fill, color = mask_fill(g, i, j, value)
                x, y = x0 + j * cell, 68 + i * cell
                d.rect(x, y, cell, cell, fill, RULE, r=0, width=1)
                number = dec(value, places) if value else "0"
                d.code(x + cell / 2, y + cell / 2, number, color)
        if g:
            d.arrow((x0 - 40, 68 + 2.5 * cell), (x0 - 4, 68 + 2.5 * cell))
    d.text(72, 302, "rows: the word that looks", 13, GREY, "start")
    d.text(431, 302, "the future becomes −∞", 13, GREY)
    d.text(685, 302, "every row sums to 1", 13, GREY)
    return d


def mask_fill(g, i, j, value):
    """Colours of a cell and of its number, by grid, place and value."""
    if j > i and g:
        return "#eceae4", GREY
    if g < 2:
        return tint(BLUE, 0.10), INK
    return tint(BLUE, 0.6 * value), INK


HEADS = (BLUE, ORANGE, GREEN, PURPLE)
HEAD_STAGES = (
    (52, "", "(B, T, C)"),
    (144, "project", "(B, T, C)"),
    (270, "split", "(B, H, T, D)"),
    (418, "attend", "(B, H, T, D)"),
    (570, "merge", "(B, T, C)"),
    (686, "mix", ""),
    (768, "", "(B, T, C)"),
)


def multi_head():
    """Multi-head attention from left to right, with the shape at every stage.

    The input x passes three linear layers, W_query, W_key and W_value. Each result
    is split into H heads; scaled dot-product attention runs in every head; the
    results are merged side by side and pass out_proj.
    """
    d = Drawing("Multi-head attention", 356)
    mid = 158
    tensor_bar(d, 24, mid, "x")
    d.line((60, mid), (76, mid))
    d.line((76, 82), (76, 234))
    for i, (name, letter) in enumerate(
        zip(("W_query", "W_key", "W_value"), "QKV", strict=True)
    ):
        y = 58 + 76 * i
        d.arrow((76, y + 24), (96, y + 24))
        d.box(96, y, 96, 48, name, color=GREY)
        d.arrow((192, y + 24), (222, y + 24))
        head_bar(d, 222, y + 10, 96)
        d.text(270, y - 2, letter, 14, bold=True)
        d.line((318, y + 24), (334, y + 24))
    d.line((334, 68), (334, 248))
    d.line((500, 68), (500, 248))
    for i, color in enumerate(HEADS):
        y = 44 + 60 * i
        d.arrow((334, y + 24), (354, y + 24))
        d.box(354, y, 128, 48, f"head {i + 1}", "q k v → attention", color=color)
        d.line((482, y + 24), (500, y + 24))
    d.arrow((500, mid), (522, mid))
    head_bar(d, 522, mid - 14, 96)
    d.arrow((618, mid), (640, mid))
    d.box(640, mid - 24, 92, 48, "out_proj", color=GREY)
    d.arrow((732, mid), (758, mid))
    tensor_bar(d, 758, mid, "out")
    for x, step, shape in HEAD_STAGES:
        d.text(x, 304, step, 13, GREY)
        d.code(x, 328, shape)
    return d


def tensor_bar(d, x, mid, name):
    d.rect(x, mid - 58, 36, 116, tint(GOLD, 0.3), INK, r=3)
    d.text(x + 18, mid, name, 15, bold=True)


def head_bar(d, x, y, w):
    """A bar of width C in H coloured parts of width D."""
    for i, color in enumerate(HEADS):
        part = w / len(HEADS)
        d.rect(x + i * part, y, part, 28, tint(color, 0.45), color, r=0, width=1)


def kv_cache():
    """Three generation steps, without and with a cache of keys and values.

    Without a cache 4, 5 and 6 tokens are computed, 15 in all. With it the first step
    computes the 4 tokens of the prompt, later ones only the newest token, 6 in all;
    the keys and values of the others are read from the cache.
    """
    d = Drawing("Generating with and without cached keys and values", 336)
    words, w = "Rain fell on the roof all day".split(), 40
    for x0, name, cached in ((66, "Without cache", 0), (464, "With cache", 1)):
        d.text(x0, 32, name, 16, at="start", bold=True)
        d.text(x0 + 7 * w + 30, 62, "computed", 13, GREY, "end")
        total = 0
        for step in range(3):
            y, known = 84 + 58 * step, 4 + step
            old = known - 1 if cached and step else 0
            if not cached:
                d.text(x0 - 10, y + 18, f"step {step + 1}", 13, INK, "end")
            d.cells(x0, y, ["k v"] * old, w, 36, BLUE)
            fresh, fill = words[old:known], tint(ORANGE, 0.3)
            d.cells(x0 + old * w, y, fresh, w, 36, ORANGE, mono=False, fill=fill)
            x = x0 + known * w
            d.rect(x + 3, y + 3, w - 6, 30, WHITE, GREEN, r=3, width=1.5, dash="4 3")
            d.text(x + w / 2, y + 18, words[known], 13, GREEN)
            d.code(x0 + 7 * w + 18, y + 18, str(known - old), size=15, bold=True)
            total += known - old
        d.line((x0, 250), (x0 + 7 * w + 30, 250), color=RULE)
        d.text(x0, 268, "tokens through the model", 13, GREY, "start")
        d.code(x0 + 7 * w + 18, 268, str(total), size=15, bold=True)
    keys = (66, ORANGE, "computed now"), (214, BLUE, "keys and values reused")
    for x, color, label in (*keys, (424, GREEN, "next token")):
        fill = WHITE if color == GREEN else tint(color, 0.3)
        d.rect(x, 297, 18, 18, fill, color, 2, 1.5, "4 3" if color == GREEN else None)
        d.text(x + 26, 306, label, 13, INK, "start")
    d.text(672, 306, "k, v of a layer:", 13, INK, "end")
    d.code(774, 306, "(B, H, T, D)", at="end")
    return d


# ---------------------------------------------------------------- 03 architecture


def transformer_block():
    """The pre-norm block of GPT-2, from left to right.

    First part: norm1, att, drop_shortcut, then the input is added. Second part:
    norm2, ff, drop_shortcut, then the result of the first part is added. Below, the
    feed-forward part: a linear layer from C to 4C, GELU, a linear layer back to C.
    """
    d = Drawing("The transformer block", 344)
    y, h = 86, 76
    mid = y + h / 2
    d.text(26, mid, "x", 16, bold=True)
    d.code(24, mid + 53, "(B, T, C)", at="start")
    parts = (
        (84, "norm1", 90, ("att", "multi-head", "attention"), BLUE, 388),
        (446, "norm2", 80, ("ff", "feed", "forward"), ORANGE, 740),
    )
    left = 38
    for x, norm, w, lines, color, end in parts:
        branch = (left + x) / 2
        norm_box, main_box = (76, (norm, "LayerNorm"), GREY), (w, lines, color)
        for w, lines, color in (norm_box, main_box, (72, (), GREEN)):
            d.arrow((left, mid), (x, mid))
            d.box(x, y, w, h, *lines, color=color)
            left, x = x + w, x + w + 16
        d.code(left - 36, mid - 9, "drop_", bold=True)
        d.code(left - 36, mid + 9, "shortcut", bold=True)
        d.arrow((left, mid), (end - 13, mid))
        d.line((branch, mid), (branch, 44), (end, 44), color=PURPLE)
        d.arrow((end, 44), (end, mid - 13), color=PURPLE)
        d.text((branch + end) / 2, 29, "shortcut", 13, PURPLE)
        d.plus(end, mid)
        left = end + 13
    d.arrow((left, mid), (800, mid))
    d.code(800, mid + 53, "(B, T, C)", at="end")
    feed_forward(d, 578, y + h)
    d.code(424, mid + 53, "(B, T, C)")
    return d


def feed_forward(d, x, y):
    """The inside of ff, hung under its box."""
    d.line((x, y), (x, 236), color=ORANGE, dash="4 4")
    d.rect(150, 236, 520, 84, WHITE, ORANGE, r=8, width=1.2, dash="4 4")
    d.code(166, 226, "ff.layers", ORANGE, at="start")
    d.arrow((170, 282), (216, 282))
    for left, w, *lines in (
        (216, 104, "Linear", "C → 4C"),
        (366, 84, "GELU"),
        (496, 104, "Linear", "4C → C"),
    ):
        d.box(left, 258, w, 48, *lines, color=ORANGE)
    d.arrow((320, 282), (366, 282))
    d.arrow((450, 282), (496, 282))
    d.arrow((600, 282), (648, 282))
    d.code(343, 268, "4C")
    d.code(473, 268, "4C")
    d.code(188, 268, "C")
    d.code(624, 268, "C")


def gpt_model():
    """GPTModel in two rows, with module names and shapes.

    Ids of shape (B, T) pass tok_emb; pos_emb is added; then come drop_emb, n_layers
    transformer blocks in trf_blocks, final_norm and out_head, which gives logits of
    shape (B, T, V).
    """
    d = Drawing("GPTModel", 360)
    d.box(28, 36, 74, 52, "ids", color=GOLD, mono=False)
    d.code(65, 104, "(B, T)")
    d.arrow((102, 62), (220, 62))
    d.box(220, 36, 132, 52, "tok_emb", "one row per id")
    d.text(126, 142, "0 … T − 1", 14)
    d.arrow((164, 142), (220, 142))
    d.box(220, 116, 132, 52, "pos_emb", "one row per place", color=ORANGE)
    d.arrow((352, 62), (453, 62))
    d.code(402, 48, "(B, T, C)")
    d.arrow((352, 142), (466, 142), (466, 75))
    d.code(402, 128, "(T, C)")
    d.plus(466, 62)
    d.arrow((479, 62), (590, 62))
    d.code(534, 48, "(B, T, C)")
    d.box(590, 36, 122, 52, "drop_emb", "dropout", color=GREEN)
    gpt_model_blocks(d, 216)
    d.arrow((712, 62), (770, 62), (770, 192), (18, 192), (18, 266), (48, 266))
    d.code(650, 178, "(B, T, C)")
    d.text(410, 334, GPT_SIZES, 13, GREY)
    return d


GPT_SIZES = "GPT-2 124M: V = 50,257, C = 768, n_layers = 12, at most 1,024 tokens"


def gpt_model_blocks(d, y):
    """The second row: blocks, norm, head, logits."""
    mid = y + 50
    d.rect(34, y, 296, 86, WHITE, PURPLE, r=8, width=1.2, dash="4 4")
    d.code(48, y + 12, "trf_blocks", PURPLE, "start")
    d.text(316, y + 12, "× n_layers", 13, PURPLE, "end")
    for x, w, name in ((48, 60, "0"), (126, 60, "1"), (236, 80, "n − 1")):
        d.box(x, y + 24, w, 52, name, "block", color=PURPLE, mono=False)
    d.arrow((108, mid), (126, mid))
    d.arrow((186, mid), (236, mid), dash="2 5")
    d.arrow((316, mid), (420, mid))
    d.code(375, mid - 14, "(B, T, C)")
    d.box(420, y + 24, 106, 52, "final_norm", "LayerNorm", color=GREY)
    d.arrow((526, mid), (560, mid))
    d.box(560, y + 24, 96, 52, "out_head", "C → V")
    d.arrow((656, mid), (696, mid))
    d.box(696, y + 24, 92, 52, "logits", color=GOLD, mono=False)
    d.code(742, y + 90, "(B, T, V)")


# ---------------------------------------------------------------- 04 pretraining


def training_loop():
    """The training loop as a circle of six boxes, and what runs beside it.

    A batch of input and target; the model turns the input into logits; cross-entropy
    compares them with the target; backward, clipping and an AdamW step follow, then
    the next batch. From time to time: evaluation, a sample, a checkpoint.
    """
    d = Drawing("The training loop", 412)
    top, low = 64, 178
    d.box(40, top, 160, 56, "batch", "input and target", color=GOLD, mono=False)
    d.box(330, top, 160, 56, "model", "GPTModel")
    d.box(620, top, 160, 56, "cross_entropy", "how wrong?", color=ORANGE)
    d.box(620, low, 160, 56, "backward", "gradients", color=ORANGE)
    d.box(330, low, 160, 56, "clip", "norm at most 1", color=GREEN)
    d.box(40, low, 160, 56, "AdamW step", "change the weights", color=GREEN)
    d.arrow((200, top + 28), (330, top + 28))
    d.arrow((490, top + 28), (620, top + 28))
    d.arrow((120, top), (120, 30), (700, 30), (700, top), color=PURPLE)
    d.arrow((700, top + 56), (700, low))
    d.arrow((620, low + 28), (490, low + 28))
    d.arrow((330, low + 28), (200, low + 28))
    d.arrow((120, low), (120, top + 56))
    for x, name, shape in ((265, "input", "(B, T)"), (555, "logits", "(B, T, V)")):
        d.text(x, top + 14, name, 13)
        d.code(x, top + 43, shape)
    d.text(386, 44, "target", 13, PURPLE, "end")
    d.code(394, 44, "(B, T)", PURPLE, "start")
    d.text(688, 149, "loss, one number", 13, at="end")
    d.text(132, 149, "next batch", 13, at="start")
    d.arrow((120, low + 56), (120, 272), color=GREY, dash="4 4")
    d.text(132, 254, "from time to time", 13, at="start")
    d.rect(24, 272, 772, 116, WHITE, GREY, r=8, width=1.2, dash="4 4")
    notes = (
        ("evaluate", "loss on training", "and validation data"),
        ("sample", "continue a prompt,", "read the text"),
        ("checkpoint", "save all it takes", "to resume"),
    )
    for i, lines in enumerate(notes):
        d.box(40 + 254 * i, 290, 232, 80, *lines, color=PURPLE, mono=False)
    return d


LOGITS = {
    "roof": 3.1,
    "hill": 2.7,
    "town": 2.1,
    "sea": 1.7,
    "floor": 0.4,
    "moon": -0.5,
    "spoon": -1.2,
}


def nucleus(logits, top_p):
    """How many of the sorted logits are needed to reach the probability top_p."""
    reached = 0.0
    for count, share in enumerate(softmax(logits), start=1):
        reached += share
        if reached >= top_p:
            return count
    return len(logits)


def sampling():
    """How one token is drawn from the logits, in four bar charts.

    Seven logits; top-k keeps five of them and top-p four; the rest are divided by
    the temperature; softmax makes probabilities; a random number between 0 and 1
    picks the token in whose part of the line it falls.
    """
    d = Drawing("Drawing the next token", 424)
    logits, top_k, top_p, temperature, u = list(LOGITS.values()), 5, 0.9, 0.7, 0.62
    left = nucleus(logits[:top_k], top_p)
    scaled = [v / temperature for v in logits[:left]]
    probs = softmax(scaled)
    panels = (
        ("", "logits", logits),
        (f"top-k {top_k}, top-p {top_p}", "cut", logits[:left]),
        (f"divide by {temperature}", "temperature", scaled),
        ("shares of 1", "softmax", probs),
    )
    for g, (note, name, bars) in enumerate(panels):
        x = 96 + 186 * g
        d.text(x + 60, 28, name, 15, bold=True)
        d.text(x + 60, 50, note, 13, GREY)
        if g:
            d.arrow((x - 62, 28), (x + 4, 28))
        scale = 140 if g == 3 else 20
        for i, word in enumerate(LOGITS):
            y = 72 + 30 * i
            if g == 0:
                d.text(62, y + 12, word, 14, at="end")
            if i < len(bars):
                sampling_bar(d, x, y, bars[i], scale, HEADS[i] if g == 3 else BLUE)
            else:
                why = "top-p" if i < top_k else "top-k"
                gone = ("", f"−∞ {why}", "−∞", "0")[g]
                d.code(x + 8, y + 12, gone, GREY, "start")
        d.line((x, 68), (x, 280), color=GREY, width=1)
    sampling_draw(d, probs, u)
    return d


def sampling_bar(d, x, y, value, scale, color):
    """One bar from the axis at x, its number on the right of it."""
    w = abs(value) * scale
    d.rect(x - w * (value < 0), y, w, 24, tint(color, 0.45), color, r=0, width=1)
    places = 2 if scale > 100 else 1
    d.code(x + 8 + max(value, 0) * scale, y + 12, dec(value, places), at="start")


def sampling_draw(d, probs, u):
    """The line from 0 to 1 in parts, and the arrow of the random number."""
    x0, span, y, reached, drawn = 96, 640, 336, 0.0, None
    d.text(x0 - 14, y + 15, "draw one", 14, at="end", bold=True)
    for word, p, color in zip(LOGITS, probs, HEADS, strict=False):
        left = x0 + reached * span
        d.rect(left, y, p * span, 30, tint(color, 0.45), color, r=0, width=1)
        d.text(left + p * span / 2, y + 15, word, 13)
        reached += p
        drawn = drawn or (word if u < reached else None)
    at = x0 + u * span
    d.arrow((at, y - 30), (at, y), color=INK)
    d.text(at + 10, y - 20, f"random number {u} → “{drawn}”", 14, at="start", bold=True)
    d.code(x0, y + 46, "0")
    d.code(x0 + span, y + 46, "1")
    note = "Temperature 0 draws nothing: the largest logit wins."
    d.text(x0 + span / 2, y + 62, note, 13, GREY)


# ---------------------------------------------------------------- 06 spam


def spam_classifier():
    """What is frozen, what learns, and what is kept between the two.

    Ids of a message pass the embeddings and all blocks but the last, which are frozen
    and run once a message. Their output of shape (B, T, C) is kept. The last block,
    final_norm and out_head with C times 2 weights read it in every epoch; they learn.
    Of its output only the vector of the last real token, (B, C), is scored.
    """
    d = Drawing("What is frozen, and what learns", 352)
    d.rect(20, 20, 376, 190, tint(GREY, 0.08), GREY, r=10, width=1.4, dash="5 4")
    d.text(34, 42, "frozen: runs once a message", 14, GREY, "start", bold=True)
    d.rect(554, 20, 246, 214, tint(GREEN, 0.08), GREEN, r=10, width=1.4)
    d.text(568, 42, "learns: runs in every epoch", 14, GREEN, "start", bold=True)
    d.box(36, 68, 84, 76, "ids", "padded", color=GOLD, mono=False)
    d.code(78, 162, "(B, T)")
    d.arrow((120, 106), (138, 106))
    d.box(138, 68, 90, 76, "tok_emb", "+ pos_emb", color=GREY)
    d.arrow((228, 106), (246, 106))
    d.box(246, 68, 134, 76, "trf_blocks", "0 … n − 2", color=GREY)
    d.arrow((380, 106), (412, 106))
    d.box(412, 60, 124, 92, "kept", "in memory:", "4 C bytes a token", color=PURPLE)
    d.code(474, 170, "(B, T, C)")
    d.arrow((536, 106), (568, 106))
    d.box(568, 68, 104, 76, "trf_blocks", "n − 1", color=GREEN)
    d.arrow((672, 106), (688, 106))
    d.box(688, 68, 102, 76, "final_norm", color=GREEN)
    d.arrow((739, 144), (739, 174))
    d.code(731, 158, "(B, C)", at="end")
    d.box(688, 174, 102, 48, "out_head", "C → 2", color=GREEN)
    d.arrow((739, 222), (739, 266))
    d.code(731, 250, "(B, 2)", at="end")
    d.cells(675, 266, ["ham", "spam"], 64, 30, ORANGE, mono=False)
    spam_row(d, 36, 266)
    return d


def spam_row(d, x, y):
    """One padded message, with the place that is read."""
    tokens = ["Free", "·prize", "!", "·Call", "‹end›", "0", "0", "0"]
    d.text(x, y - 24, "one row of the batch, length 5", 13, GREY, "start")
    d.cells(x, y, tokens[:5], 56, 30, BLUE)
    d.cells(x + 5 * 56, y, tokens[5:], 30, 30, RULE, fill=WHITE)
    d.text(x + 5 * 56 + 45, y + 48, "padding", 13, GREY)
    d.rect(x + 4 * 56, y, 56, 30, "none", ORANGE, r=0, width=3)
    d.text(
        x + 4 * 56 + 28, y + 48, "last real token, for the end: read", 13, ORANGE, "end"
    )
    d.text(x + 400, y + 8, "sees all before it,", 13, GREY, "start")
    d.text(x + 400, y + 26, "and none of the padding", 13, GREY, "start")


def lora():
    """A frozen linear layer and the two narrow matrices beside it.

    x of width d_in goes through W, which is frozen, and through A and B, which learn;
    A has rank columns and starts random, B has rank rows and starts at zero. Their
    product times alpha / rank is added to the result of W.
    """
    d = Drawing("LoRA: a change of low rank beside a frozen layer", 330)
    d.code(54, 150, "x", bold=True)
    d.code(54, 170, "(…, d_in)", size=12)
    d.arrow((92, 150), (126, 150), (126, 86), (210, 86))
    d.arrow((126, 150), (126, 232), (210, 232))
    d.rect(210, 36, 240, 100, tint(GREY, 0.2), GREY, r=4)
    d.code(330, 76, "W", bold=True)
    d.text(330, 98, "frozen", 13, GREY)
    d.code(330, 148, "d_in × d_out weights", GREY, size=12)
    d.rect(210, 182, 44, 100, tint(GREEN, 0.3), GREEN, r=4)
    d.code(232, 232, "A", bold=True)
    d.text(232, 298, "random", 13, GREEN)
    d.code(232, 314, "d_in × rank", GREY, size=12)
    d.arrow((254, 232), (330, 232))
    d.code(292, 218, "(…, rank)", size=12)
    d.rect(330, 212, 120, 40, tint(GREEN, 0.3), GREEN, r=4)
    d.code(390, 232, "B", bold=True)
    d.text(390, 268, "zero at first", 13, GREEN)
    d.code(390, 286, "rank × d_out", GREY, size=12)
    d.arrow((450, 232), (510, 232))
    d.box(510, 208, 104, 48, "× alpha / rank", color=ORANGE, mono=False)
    d.arrow((614, 232), (668, 232), (668, 99))
    d.arrow((450, 86), (655, 86))
    d.plus(668, 86)
    d.arrow((681, 86), (734, 86))
    d.code(760, 86, "y", bold=True)
    d.code(748, 108, "(…, d_out)", size=12)
    d.text(740, 268, "merged: W + A B × alpha / rank", 13, GREY, "end")
    d.text(740, 288, "one layer again, no slower than before", 13, GREY, "end")
    return d


# ---------------------------------------------------------------- 05 weight loading


def fused_weights():
    """The fused matrix c_attn/w, turned and split into three parameters.

    In OpenAI's file, c_attn/w has the shape (1, C, 3C): C rows, one for each input,
    and 3C columns, for queries, keys and values side by side. Without its first
    dimension and transposed it is (3C, C): queries, keys and values stand above each
    other. Split into three, each part is the weight (C, C) of one linear layer.
    """
    d = Drawing("Loading the fused queries, keys and values", 312)
    names, colors, w = ("query", "key", "value"), (BLUE, ORANGE, GREEN), 72
    d.text(132, 26, "in the file: c_attn/w", 14, bold=True)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        d.rect(24 + i * w, 116, w, w, tint(color, 0.3), color, r=0)
        d.text(60 + i * w, 146, name, 14)
        d.code(60 + i * w, 168, "C × C")
    d.text(132, 100, "3C outputs", 13, GREY)
    d.text(132, 206, "a row for each of C inputs", 13, GREY)
    d.code(132, 290, "(1, C, 3C)")
    d.arrow((254, 152), (350, 152))
    d.code(301, 136, "[0].t()")
    d.text(301, 172, "turned", 13, GREY)
    d.text(396, 26, "as PyTorch has it", 14, bold=True)
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        y = 44 + i * w
        d.rect(360, y, w, w, tint(color, 0.3), color, r=0)
        d.text(396, y + 30, f"{name}ᵀ", 14)
        d.code(396, y + 52, "C × C")
        d.arrow((438, y + 36), (580, y + 36))
        d.rect(590, y + 4, 206, w - 8, tint(color, 0.3), color)
        d.code(693, y + 28, f"att.W_{name}.weight", bold=True)
        d.code(693, y + 50, "(C, C)", GREY)
    d.code(396, 290, "(3C, C)")
    d.code(509, 62, ".split(C)")
    d.text(693, 26, "in our model", 14, bold=True)
    d.text(693, 290, "three linear layers", 13, GREY)
    return d


# ---------------------------------------------------------------- 07 assistant


def masked_targets():
    """Inputs and targets of two examples in one batch.

    The first example has six input tokens: Say, it, Response, She, sang and a full
    stop. Its targets are one token later; "it" and "Response" are crossed out, and
    She, sang, the full stop and the end are learnt. The second, Go, Response, Gone
    and a full stop, is filled up with two end tokens; its targets Gone, full stop and
    the first end are learnt, the prompt and the padding are crossed out.
    """
    d = Drawing("Which targets count", 356)
    rows = (
        (("Say", "it", "Response:", "She", "sang", "."), 3, 6),
        (("Go", "Response:", "Gone", "."), 2, 4),
    )
    for i, (tokens, answer, length) in enumerate(rows):
        y = 30 + 138 * i
        d.text(40, y + 40, f"example {i + 1}", 14, at="start", bold=True)
        padded = (*tokens, *["end"] * (7 - length))
        for name, y_row, shift in (("inputs", y, 0), ("targets", y + 56, 1)):
            d.text(196, y_row + 20, name, 14, at="end")
            for x, word in enumerate(padded[shift : shift + 6]):
                place = x + shift
                masked_cell(d, 210 + 94 * x, y_row, word, place, answer, length, shift)
        d.arrow((340, y + 40), (276, y + 57), color=GREY)
        d.text(336, y + 49, "one token later", 12, GREY, "start")
    keys = (40, tint(BLUE, 0.3), "learnt"), (150, tint(ORANGE, 0.3), "end, learnt")
    for x, fill, label in (*keys, (300, WHITE, "given or padding: −100, left out")):
        d.rect(x, 312, 18, 18, fill, GREY, r=2, width=1)
        d.text(x + 26, 321, label, 13, at="start")
    d.line((300, 330), (318, 312), color=GREY)
    return d


def masked_cell(d, x, y, word, place, answer, length, is_target):
    """One token; as a target it is crossed out unless the answer or its end."""
    learnt = answer <= place <= length
    color = ORANGE if place >= length else BLUE if place >= answer else GREY
    faded = is_target and not learnt
    bright = learnt and (is_target or place < length)
    fill = WHITE if faded else tint(color, 0.3 if bright else 0.1)
    d.rect(x, y, 94, 40, fill, GREY if faded else color, r=0, width=1)
    d.text(x + 47, y + 20, word, 14, GREY if faded else INK)
    if faded:
        d.line((x + 6, y + 34), (x + 88, y + 6), color=GREY, width=1.4)


def chat_window():
    """A model's window before and after its oldest turn is dropped.

    At message 4 the turns 1 to 3, the message and room for the answer fit into the
    window. At message 5 there is a turn 4 as well; turn 1 lies outside the window,
    crossed out, and a line says that one old turn was dropped.
    """
    d = Drawing("Keeping a conversation within the window", 346)
    width = {"turn 1": 130, "turn 2": 110, "turn 3": 120, "turn 4": 130}
    for y, n, kept in ((56, 4, (1, 2, 3)), (208, 5, (2, 3, 4))):
        d.text(190, y - 26, f"Message {n} arrives", 14, at="start", bold=True)
        x = 190
        for turn in (f"turn {k}" for k in kept):
            d.box(x, y, width[turn], 56, turn, color=BLUE, mono=False)
            x += width[turn]
        d.box(x, y, 100, 56, f"message {n}", color=GREEN, mono=False)
        d.rect(x + 100, y, 790 - x - 100, 56, WHITE, ORANGE, r=6, dash="5 4")
        d.text((x + 890) / 2, y + 28, "room for the answer", 13, ORANGE)
        d.line((190, y + 66), (190, y + 74), (790, y + 74), (790, y + 66))
        d.text(490, y + 88, "the model's window, context_length tokens", 13, GREY)
    d.rect(40, 208, 130, 56, WHITE, GREY, r=6, width=1.2, dash="4 4")
    d.text(105, 236, "turn 1", 14, GREY, bold=True)
    d.line((48, 258), (162, 214), color=ORANGE, width=2)
    note = "[1 old turn dropped: the model's window is full]"
    d.code(40, 324, note, ORANGE, "start")
    return d


# ---------------------------------------------------------------- all figures

FIGURES = {f"roadmap-{i}": partial(roadmap, i) for i in range(1, 8)} | {
    "text-to-windows": text_to_windows,
    "bpe-merges": bpe_merges,
    "token-position-embedding": token_position_embedding,
    "attention-one-query": attention_one_query,
    "causal-mask": causal_mask,
    "multi-head": multi_head,
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
    unknown = set(names) - set(FIGURES)
    if unknown:
        raise SystemExit(f"No figure {sorted(unknown)}; there are {list(FIGURES)}")
    for name in names or FIGURES:
        figure = FIGURES[name]
        desc = " ".join(getattr(figure, "func", figure).__doc__.split())
        path = Path(__file__).with_name(f"{name}.svg")
        path.write_bytes(figure().svg(name, desc).encode("utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
