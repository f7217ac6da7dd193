"""Draw every figure of the course as SVG.

python images/draw.py          rewrites all figures
python images/draw.py NAME     rewrites one, such as causal-mask

A figure is a function that draws on a Sheet, in the order of the chapters; its
docstring becomes the description in the file. Numbers that a notebook prints are
computed here in the same way.
"""

import math
import sys
from collections import Counter
from functools import cache, partial
from html import escape
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


def dec(value, places=2):
    """Write a number for the reader, with a true minus sign."""
    return f"{value:.{places}f}".replace("-", "−").replace("inf", "∞")


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


class Sheet(draw.Drawing):
    """A light sheet of the common width, with the shapes that figures are made of."""

    def __init__(self, title, height, description):
        super().__init__(WIDTH, height, role="img", font_family=SANS)
        self.append(draw.Title(title))
        self.append(draw.Raw(f"<desc>{escape(' '.join(description.split()))}</desc>"))
        self.rect(0.5, 0.5, WIDTH - 1, height - 1, PAPER, "#e6e3da", r=10, width=1)

    def add(self, shape):
        for key, value in shape.args.items():
            if isinstance(value, float):
                shape.args[key] = round(value, 2)
        self.append(shape)

    def text(self, *labels, size=14, fill=INK, at="middle", **style):
        """Write labels (x, y, body), the first line centred on the height y."""
        for x, y, body in labels:
            for i, line in enumerate(str(body).splitlines()):
                where = {"x": x, "y": y + 18 * i + 0.35 * size, "text_anchor": at}
                self.add(draw.Text(line, size, fill=fill, **where, **style))

    def bold(self, *labels, **style):
        self.text(*labels, font_weight="bold", **style)

    def code(self, *labels, size=13, **style):
        self.text(*labels, size=size, font_family=MONO, **style)

    def note(self, *labels, fill=GREY, **style):
        self.text(*labels, size=13, fill=fill, **style)

    def rect(self, x, y, w, h, fill=WHITE, line=INK, r=4, width=1.5, dash=None):
        style = {"fill": fill, "stroke": line, "stroke_width": width}
        self.add(draw.Rectangle(x, y, w, h, rx=r, stroke_dasharray=dash, **style))
        return Box(x, y, w, h)

    def box(self, x, y, w, h, name, under="", color=BLUE, font=MONO):
        """A coloured box with a name and perhaps small lines under it."""
        lines = len(under.split("\n")) if under else 0
        box = self.rect(x, y, w, h, tint(color), color, r=6)
        x, y = x + w / 2, y + h / 2 - 9 * lines
        self.bold((x, y, name), font_family=font)
        if under:
            self.note((x, y + 18, under), fill=INK)
        return box

    def cells(self, x, y, values, color, fill=None, font=MONO, w=30, h=30, size=13):
        """A row of cells with one word or number in each."""
        for i, value in enumerate(values):
            left, word = x + i * w, dec(value) if torch.is_tensor(value) else value
            self.rect(left, y, w, h, fill or tint(color), color, r=0, width=1)
            self.text((left + w / 2, y + h / 2, word), size=size, font_family=font)
        return Box(x, y, w * len(values), h)

    def line(self, *points, color=GREY, width=1.6, dash=None, **style):
        places = [round(place, 2) for point in points for place in point]
        style |= {"fill": "none", "stroke": color, "stroke_width": width}
        self.add(draw.Lines(*places, stroke_dasharray=dash, **style))

    def arrow(self, *points, color=GREY, dash=None):
        """A line through the points; the tip touches the last one exactly."""
        (x0, y0), (x1, y1) = points[-2:]
        length = math.dist((x0, y0), (x1, y1))
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        bx, by = x1 - 9 * ux, y1 - 9 * uy
        self.line(*points[:-1], (bx, by), color=color, dash=dash)
        head = (x1, y1, bx - 4.5 * uy, by + 4.5 * ux, bx + 4.5 * uy, by - 4.5 * ux)
        self.add(draw.Lines(*(round(v, 2) for v in head), close=True, fill=color))

    def chain(self, *boxes):
        """Arrows from each box to the next, between the sides that face each other."""
        for a, b in pairwise(boxes):
            if a.x + a.w <= b.x:
                self.arrow(a.right, b.left)
            elif b.x + b.w <= a.x:
                self.arrow(a.left, b.right)
            else:
                self.arrow(*(a.bottom, b.top) if a.y < b.y else (a.top, b.bottom))

    def plus(self, x, y, r=13):
        self.add(draw.Circle(x, y, r, fill=WHITE, stroke=INK, stroke_width=1.5))
        self.line((x - 6, y), (x + 6, y), color=INK)
        self.line((x, y - 6), (x, y + 6), color=INK)
        return Box(x - r, y - r, 2 * r, 2 * r)

    def brace(self, x0, x1, y, label):
        """A bracket under the places x0 to x1, and a label in its middle."""
        self.line((x0, y), (x0, y + 7), (x1, y + 7), (x1, y))
        self.note(((x0 + x1) / 2, y + 22, label))


FIGURES = {}


def figure(title, height):
    """Enter a function that draws on a sheet of this height into FIGURES."""

    def enter(function):
        FIGURES[function.__name__.replace("_", "-")] = title, height, function
        return function

    return enter


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


@figure("Road map: eight stages", 192)
def roadmap(d, current=None):
    """Build: tokenizer, attention, architecture. Train: pretraining, weight loading.
    Use: spam filter, assistant, learning from rewards. The current stage, if there is
    one, is filled, and the finished stages before it carry a tick."""
    for name, first, last in GROUPS:
        left, right = 99 * first - 83, 99 * last + 12
        d.bold(((left + right) / 2, 22, name), size=15)
        d.line((left, 44), (left, 37), (right, 37), (right, 44))
    for i, (name, result) in enumerate(STAGES, start=1):
        mid, here, done = 99 * i - 35.5, i == current, i < (current or 1)
        fill = WHITE if current else tint(BLUE)
        fill = BLUE if here else tint(GREEN, 0.2) if done else fill
        ink, edge = WHITE if here else INK, GREEN if done else BLUE
        d.rect(mid - 47.5, 54, 95, 82, fill, edge, r=8)
        d.bold((mid - 9 * done, 75, i), fill=ink, size=18)
        if done:
            d.line((mid + 3, 75), (mid + 8, 80), (mid + 17, 69), color=GREEN, width=2.5)
        d.bold((mid, 109 - 9 * name.count("\n"), name), fill=ink, size=12.5)
        d.note((mid, 153, result), fill=INK if here else GREY)


for i in (1,):
    title = f"Road map, stage {i} of 8"
    FIGURES[f"roadmap-{i}"] = title, 192, partial(roadmap, current=i)


@cache
def gpt2_tokens(text):
    """The ids of a text under GPT-2's tokenizer, and the text of each."""
    sys.path.insert(0, str(FOLDER.parent))
    from helpers import get_tokenizer

    tokenizer = get_tokenizer()
    ids = tokenizer.encode(text)
    return ids, [tokenizer.decode([i]).replace(" ", "·") for i in ids]


@figure("From a sentence to windows of inputs and targets", 478)
def text_to_windows(d):
    """A sentence of nine tokens with GPT-2's ids, and three windows. The windows of
    max_length = 4 inputs start at positions 0, 2 and 4, as stride = 2. The target of
    each input is the id that follows it: targets are inputs moved on by one."""
    ids, tokens = gpt2_tokens("The lamp burned low until the morning came.")
    x0, w, max_length, stride = 104, 77, 4, 2
    x1, middle = x0 + w * max_length, x0 + w * len(ids) / 2
    d.text((middle, 26, "“The lamp burned low until the morning came.”"), size=16)
    d.arrow((middle, 40), (middle, 66), color=BLUE)
    d.code((middle + 14, 52, "encode"), fill=BLUE, at="start")
    d.bold((x0 - 12, 81, "tokens"), (x0 - 12, 111, "ids"), at="end")
    d.cells(x0, 66, tokens, GREY, WHITE, w=w)
    d.cells(x0, 96, ids, PURPLE, w=w)
    d.line((x0, 146), (x0, 140), (x1, 140), (x1, 146))
    d.code((x1 + 8, 141, f"max_length = {max_length}"), fill=GREY, at="start")
    for row, start in enumerate(range(0, len(ids) - max_length, stride)):
        y, left = 152 + row * 98, x0 + start * w
        if row:
            d.arrow((left - stride * w, y + 14), (left, y + 14))
            d.code((left - w, y, f"stride = {stride}"), fill=GREY)
        d.cells(left, y, ids[start : start + max_length], BLUE, w=w, h=28)
        d.cells(left + w, y + 50, ids[start + 1 :][:max_length], ORANGE, w=w, h=28)
        for x in range(left, left + w * max_length, w):
            d.arrow((x + w / 2 + 8, y + 28), (x + 3 * w / 2 - 8, y + 50))
        d.code((left + w * max_length + 8, y + 14, "inputs"), fill=BLUE, at="start")
        d.code((left + w - 8, y + 64, "targets"), fill=ORANGE, at="end")
    d.code((796, 141, f"(B, T) = ({row + 1}, {max_length})"), fill=GREY, at="end")
    note = "An arrow leads from each input to its target, the id that follows it."
    d.note((middle, 450, f"{note} A dot marks a space."))


@figure("Byte-pair encoding: the first three merges", 384)
def bpe_merges(d):
    """Four words with counts, cut into letters. In each of three steps the pair of
    neighbours with the highest count is joined into one piece: e with a, t with ea,
    s with ea. Of two tied pairs the lexicographically greater one wins."""
    words, counts, a, b = ["s e a", "s e a t", "t e a", "t e a m"], [4, 3, 5, 2], "", ""
    for row, count in enumerate(counts):
        d.bold((24, 86 + 44 * row, f"{count} ×"), at="start", size=15)
    for step in range(4):
        x, pairs = 76 + 188 * step, Counter()
        name = f"merge {step}: {a} + {b}" if step else "start: letters"
        d.bold((x, 36, name), fill=GREEN if step else INK, at="start")
        for row, word in enumerate(words):
            pieces, left = word.split(), x
            for piece in pieces:
                fresh, w = piece == a + b, 28 * len(piece)
                color, fill = (GREEN, tint(GREEN, 0.25)) if fresh else (GREY, WHITE)
                d.cells(left, 70 + 44 * row, [piece], color, fill, w=w, h=32)
                left += w
            for pair in pairwise(pieces):
                pairs[pair] += counts[row]
        d.note((x, 266, "pair counts"), at="start")
        ranked = sorted(((n, pair) for pair, n in pairs.items()), reverse=True)
        for i, (count, (a, b)) in enumerate(ranked[:3]):
            label = f"{a} + {b}".ljust(8, "\u00a0") + f"{count}".rjust(3, "\u00a0")
            wins = i == 0 and step < 3
            d.code((x, 289 + 20 * i, label), fill=BLUE if wins else INK, at="start")
        if step < 3:
            corner = (x + 150, 289), (x + 150, 36)
            d.arrow((x + 96, 289), *corner, (x + 180, 36), color=BLUE)
        a, b = ranked[0][1]
        words = [word.replace(f"{a} {b}", a + b) for word in words]
    d.note((410, 360, "A tie goes to the lexicographically greater pair."))


@figure("Token embedding plus position embedding", 436)
def token_position_embedding(d):
    """The ids of "The cat saw the cat" pick rows of tok_emb, shape (V, C). Rows 0 to 4
    of pos_emb, (context_length, C), are added, which gives x, (T, C). " cat" comes
    twice: the same token row, different position rows, different sums."""
    ids, tokens = gpt2_tokens("The cat saw the cat")
    torch.manual_seed(123)
    tok_emb, pos_emb = torch.nn.Embedding(50257, 3), torch.nn.Embedding(1024, 3)
    tok_rows, pos_rows = (e.weight.round(decimals=2) for e in (tok_emb, pos_emb))
    colors = {464: BLUE, 3797: ORANGE, 2497: GREEN, 262: GREY}

    row = partial(d.cells, w=43, h=26, size=12)
    names = ("ids", "tok_emb", "tok_emb(ids)", "pos_emb", "x")
    shapes = ("(T)", "(V, C)", "(T, C)", "(context_length, C)", "(T, C)")
    for x, name, shape in zip((52, 238, 407, 576, 728), names, shapes, strict=True):
        d.bold((x, 30, name), font_family=MONO)
        d.code((x, 52, shape), fill=GREY)
    table = {}
    for k, i in enumerate((0, *sorted(set(ids)), 50256)):
        y, style = 78 + 46 * k, (colors[i],) if i in colors else (RULE, WHITE)
        table[i] = row(174, y, tok_rows[i], *style)
        d.code((167, y + 13, i), at="end", size=12)
        if k:
            d.text((238, y - 10, "⋮"), fill=GREY)
    for t, (i, token) in enumerate(zip(ids, tokens, strict=True)):
        y, color = 98 + 46 * t, colors[i]
        cell = d.rect(20, y - 5, 64, 36, tint(color), color, r=0, width=1)
        d.code((52, y + 5, token), (52, y + 21, i))
        d.arrow(cell.right, (162 - 7.3 * len(str(i)), table[i].left[1]), color=color)
        picked = row(343, y, tok_rows[i], color)
        d.arrow(table[i].right, picked.left, color=color)
        d.bold((483, y + 13, "+"), (652, y + 13, "="), size=18)
        d.code((507, y + 13, t), at="end", size=12)
        row(512, y, pos_rows[t], PURPLE)
        row(664, y, tok_rows[i] + pos_rows[t], color, tint(color, 0.3))
    row(512, 328, pos_rows[1023], RULE, WHITE)
    d.text((576, 318, "⋮"), fill=GREY)
    d.code((507, 341, "1023"), at="end", size=12)
    d.line((793, 157), (804, 157), (804, 295), (793, 295), color=ORANGE)
    d.rect(796, 214, 16, 24, PAPER, PAPER)
    d.bold((804, 226, "≠"), fill=ORANGE, size=18)
    d.code((410, 382, "x = tok_emb(ids) + pos_emb(torch.arange(T))"))
    same = "“·cat” at positions 1 and 4: one row of tok_emb, two rows of pos_emb"
    d.note((410, 408, f"{same}, two different sums"), fill=ORANGE)


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
    return [token.strip("·") for token in tokens], queries, keys, values, scores


@figure("Self-attention for one query", 380)
def attention_one_query(d):
    """The query of "burned" times the keys of "The", "lamp" and "burned", divided by
    the root of D = 4; softmax makes weights. The three values, times their weights, add
    up to the context vector. "until", "the" and "morning" are not looked at."""
    tokens, queries, keys, values, scores = attention_example()
    t, w = 2, 47
    weights = scores[t, : t + 1].softmax(dim=-1)

    row = partial(d.cells, w=w, h=30)
    query = row(92, 22, queries[t], ORANGE, tint(ORANGE, 0.25))
    d.bold((80, 28, "query of\n“burned”"), fill=ORANGE, at="end", size=13)
    d.arrow(query.bottom, (query.bottom[0], 116), color=ORANGE)
    d.note((query.bottom[0] + 10, 74, "times each key"), at="start")
    headings = (116, 98, "keys"), (470, 98, "weights"), (676, 98, "values")
    d.bold(*headings, font_family=MONO)
    d.code((322, 98, "q·k / √D"), (394, 98, "softmax"))
    for i, token in enumerate(tokens):
        y, seen = 116 + 40 * i, i <= t
        d.text((80, y + 15, token), fill=INK if seen else GREY, at="end")
        if not seen:
            row(92, y, keys[i], RULE, WHITE)
            continue
        key, weight = row(92, y, keys[i], BLUE), weights[i].item()
        d.arrow(key.right, (296, y + 15))
        d.code((322, y + 15, dec(scores[t, i])))
        d.arrow((350, y + 15), (440, y + 15))
        d.rect(440, y + 3, 110 * weight, 24, ORANGE, ORANGE, r=0, width=1)
        d.code((572, y + 15, f"{dec(weight)} ×"), fill=ORANGE, at="end")
        row(582, y, values[i], GREEN, tint(GREEN, 0.6 * weight))
    d.line((286, 238), (290, 238), (290, 344), (286, 344))
    d.note((300, 282, "come later:\nnot looked at"), at="start")
    d.line((530, 246), (582 + 4 * w, 246), color=INK, width=2)
    d.code((572, 274, "sum ="), at="end")
    row(582, 259, weights @ values[: t + 1], GREEN, tint(GREEN, 0.3))
    d.bold((676, 306, "context vector of “burned”"), fill=GREEN)
    d.note((676, 328, "made of these three values alone"))


@figure("The causal mask", 414)
def causal_mask(d):
    """Three grids of six by six tokens; a row is the token that looks, a column the
    token looked at. Left, scaled scores. Middle, minus infinity above the diagonal.
    Right, the weights after softmax: each row sums to one."""
    tokens, *_, scores = attention_example()
    later = torch.ones(6, 6, dtype=torch.bool).triu(diagonal=1)
    masked = scores.masked_fill(later, -math.inf)
    weights, cell, y0 = masked.softmax(dim=-1), 37, 118
    d.note((74, 88, "looks\n(query) ↓"), at="end")
    grids = (
        (scores, "scaled scores", "queries @ keys.T / D**0.5", "all look at all"),
        (masked, "masked", "masked_fill(future, -inf)", "the future becomes −∞"),
        (weights, "weights", "softmax(dim=-1)", "each row sums to 1"),
    )
    for g, (grid, title, code, meaning) in enumerate(grids):
        x0, middle, places = 84 + 243 * g, 195 + 243 * g, 1 + g // 2
        d.bold((middle, 24, title), size=15)
        d.note((middle - 20, 50, "looked at (key) →"), (middle, y0 + 262, meaning))
        d.code((middle, y0 + 242, code), size=12)
        for i, token in enumerate(tokens):
            x, y = x0 + (i + 0.5) * cell - 4, y0 + i * cell
            turn = f"rotate(-40 {x} {y0 - 6})"
            d.add(draw.Text(token, 13, x, y0 - 6, fill=INK, transform=turn))
            if g == 0:
                d.note((x0 - 10, y + cell / 2, token), fill=INK, at="end")
            for j, value in enumerate(grid[i].tolist()):
                x, hidden = x0 + j * cell, g > 0 and j > i
                strength = 0.6 * min(1, abs(value) if g == 2 else abs(value) / 2.4)
                fill = tint(BLUE if value > 0 else ORANGE, strength)
                d.rect(x, y, cell, cell, "#e4e1d8" if hidden else fill, RULE, 0, 1)
                label = (x + cell / 2, y + cell / 2, dec(value, places) if value else 0)
                d.code(label, fill=GREY if hidden else INK, size=12)
        d.rect(x0, y0 + 2 * cell, 6 * cell, cell, "none", ORANGE, r=0, width=2.5)
        if g:
            d.arrow((x0 - 20, y0 + 3.5 * cell), (x0 - 1, y0 + 3.5 * cell))
    d.note((410, 400, "framed: the query of “burned”"), fill=ORANGE)


HEADS = (BLUE, ORANGE, GREEN, PURPLE)


def strip(d, x, y, colors, w=17, h=22):
    """One token's vector, each number a cell in the colour of its head."""
    for i, color in enumerate(colors):
        d.rect(x + i * w, y, w, h, tint(color, 0.35), color, r=0, width=1)
    return Box(x, y, w * len(colors), h)


@figure("Multi-head attention", 600)
def multi_head(d):
    """One token's row of x, C = 8 numbers, takes three separate paths through W_query,
    W_key and W_value. Each result is split into H = 2 heads of D = 4 numbers. Each head
    attends by itself; the results are put side by side and pass out_proj."""
    halves, both, heads = ((BLUE,) * 4, (ORANGE,) * 4), (BLUE,) * 4 + (ORANGE,) * 4, []
    x, joined = strip(d, 362, 20, (GREY,) * 8), strip(d, 362, 452, both)
    d.bold((350, 31, "x"), at="end", size=16)
    for h, color in enumerate(HEADS[:2]):
        head = d.rect(185 + 270 * h, 300, 220, 72, tint(color), color, r=6)
        d.code((head.top[0], 334, "softmax(q kᵀ / √D) v"))
        d.bold((head.top[0], 357, f"head {h}"), fill=color)
        context = strip(d, head.top[0] - 34, 396, halves[h])
        d.arrow(head.bottom, context.top, color=color)
        d.arrow(context.bottom, (396 + 68 * h, 452), color=color)
        heads.append(head)
    for i, name in enumerate(("query", "key", "value")):
        mid = 240 + 190 * i
        linear = d.box(mid - 55, 80, 110, 36, f"W_{name}", color=GREY)
        d.arrow(x.bottom, (430, 61), (mid, 61), linear.top)
        d.chain(linear, strip(d, mid - 68, 144, both))
        d.code((mid + 10, 129, ("queries", "keys", "values")[i]), at="start")
        for h, head in enumerate(heads):
            part = strip(d, mid - 78 + 88 * h, 196, halves[h])
            entry = head.x + 40 + 70 * i
            d.arrow((mid - 34 + 68 * h, 166), part.top, color=HEADS[h])
            d.arrow(part.bottom, (entry, 300), color=HEADS[h])
            d.code((entry, 313, name[0]), font_weight="bold")
    out_proj = d.box(375, 498, 110, 36, "out_proj", color=GREY)
    d.chain(joined, out_proj, strip(d, 362, 558, (GREY,) * 8))
    d.note((20, 31, "one token's row"), (20, 98, "three Linear layers"), at="start")
    d.note((20, 155, "C = 8 numbers each"), (20, 207, "H = 2 heads, D = 4"), at="start")
    d.note((20, 336, "heads attend separately"), at="start")
    d.note((20, 407, "one vector per head"), at="start")
    d.note((20, 463, "concatenate"), (20, 516, "mix the heads"), at="start")
    d.note((20, 569, "output"), at="start")
    d.code(*((804, y, "(B, T, C)") for y in (31, 155, 463, 569)), at="end")
    d.code((804, 207, "(B, H, T, D)"), (804, 407, "(B, H, T, D)"), at="end")


@figure("view and transpose: from one wide row to heads", 446)
def view_transpose(d):
    """x has a row of C = 8 numbers for each of T = 6 tokens; a cell carries the number
    of its token. view(B, T, H, D) cuts each row into H = 2 pieces of D = 4, one a head.
    transpose(1, 2) puts heads first: one matrix (T, D) a head, row t still of token t.
    Crossed out, view(B, H, T, D): the same shape, but row t isn't of token t."""
    T, C, H, D, w = 6, 8, 2, 4, 21
    x = torch.arange(T * C).view(1, T, C)  # n: token n // C, head n % C // D

    def matrix(left, y, rows, head=None):
        for t, row in enumerate(rows.tolist()):
            for c, n in enumerate(row):
                style = HEADS[n % C // D], tint(HEADS[n % C // D], 0.3)
                d.cells(left + c * w, y + t * w, [n // C], *style, w=w, h=w)
        if head is not None:
            d.bold((left + 42, y - 12, f"head {head}"), fill=HEADS[head])

    def row_numbers(left, y):
        d.code((left - 8, y - 12, "t"), fill=GREY, at="end")
        for t in range(T):
            d.code((left - 8, y + (t + 0.5) * w, t), fill=GREY, at="end")

    names = "x", ".view(B, T, H, D)", ".transpose(1, 2)", "x.view(B, H, T, D)"
    shapes = "(B, T, C)", "(B, T, H, D)", "(B, H, T, D)", "(B, H, T, D)"
    meanings = (
        "row t: the C = 8\nnumbers of token t",
        "each row cut into\nH = 2 pieces of D = 4",
        "heads first; row t\nis still token t",
        "right shape, but row t\nisn't token t",
    )
    for i, mid in enumerate((150, 364, 556, 736)):
        d.code((mid, 28, names[i]), font_weight="bold")
        d.code((mid, 50, shapes[i]), fill=GREY)
        d.note((mid, 406, meanings[i]), fill=INK)
    pieces, wrong = x.view(1, T, H, D), x.view(1, H, T, D)
    heads = pieces.transpose(1, 2)
    matrix(66, 178, x[0])
    row_numbers(66, 178)
    for h in range(H):
        matrix(274 + 96 * h, 178, pieces[0, :, h], h)
        for left, result in ((514, heads), (694, wrong)):
            matrix(left, 100 + 158 * h, result[0, h], h)
            row_numbers(left, 100 + 158 * h)
    d.arrow((240, 241), (268, 241))
    d.arrow((460, 241), (488, 241))
    d.line((638, 20), (638, 426), color=RULE, dash="5 4")
    for x0, x1 in ((690, 782), (782, 690)):
        d.line((x0, 94), (x1, 390), color=INK, width=4, opacity=0.45)


@figure("Generating with and without cached keys and values", 336)
def kv_cache(d):
    """Three generation steps. Without a cache 4, 5 and 6 tokens are computed, 15 in
    all. With it the 4 tokens of the prompt and then one a step, 6 in all; the keys and
    values of the others are read from the cache."""
    words, w = "Rain fell on the roof all day".split(), 40
    orange, blue = ((color, tint(color, 0.3)) for color in (ORANGE, BLUE))
    for x0, name, cached in ((66, "Without cache", 0), (464, "With cache", 1)):
        d.bold((x0, 32, name), at="start", size=16)
        d.note((x0 + 7 * w + 30, 62, "computed"), at="end")
        total = 0
        for step in range(3):
            y, known = 84 + 58 * step, 4 + step
            old, x = known - 1 if cached and step else 0, x0 + known * w
            if not cached:
                d.note((x0 - 10, y + 18, f"step {step + 1}"), fill=INK, at="end")
            d.cells(x0, y, ["k v"] * old, *blue, w=w, h=36)
            d.cells(x0 + old * w, y, words[old:known], *orange, SANS, w=w, h=36)
            d.rect(x + 3, y + 3, w - 6, 30, WHITE, GREEN, r=3, dash="4 3")
            d.note((x + w / 2, y + 18, words[known]), fill=GREEN)
            d.bold((x0 + 7 * w + 18, y + 18, known - old), size=15)
            total += known - old
        d.line((x0, 250), (x0 + 7 * w + 30, 250), color=RULE)
        d.note((x0, 268, "tokens through the model"), at="start")
        d.bold((x0 + 7 * w + 18, 268, total), size=15)
    d.cells(66, 297, [""], *orange, w=18, h=18)
    d.cells(214, 297, [""], *blue, w=18, h=18)
    d.rect(424, 297, 18, 18, WHITE, GREEN, r=2, dash="4 3")
    keys = (92, 306, "computed now"), (240, 306, "keys and values reused")
    d.note(*keys, (450, 306, "next token"), fill=INK, at="start")
    d.code((774, 306, "k, v per layer: (B, H, T, D)"), at="end", size=12)


@figure("GPTModel", 360)
def gpt_model(d):
    """Ids of shape (B, T) pass tok_emb; pos_emb is added; then come drop_emb, n_layers
    transformer blocks in trf_blocks, final_norm and out_head, which gives logits of
    shape (B, T, V)."""
    ids = d.box(28, 36, 74, 52, "ids", color=GOLD, font=SANS)
    tok_emb = d.box(220, 36, 132, 52, "tok_emb", "one row per id")
    pos_emb = d.box(220, 116, 132, 52, "pos_emb", "one row per position", ORANGE)
    plus = d.plus(466, 62)
    drop_emb = d.box(590, 36, 122, 52, "drop_emb", "dropout", GREEN)
    d.rect(34, 216, 296, 86, WHITE, PURPLE, r=8, width=1.2, dash="4 4")
    first = d.box(48, 240, 60, 52, "0", "block", PURPLE, SANS)
    second = d.box(126, 240, 60, 52, "1", "block", PURPLE, SANS)
    last = d.box(236, 240, 80, 52, "n − 1", "block", PURPLE, SANS)
    norm = d.box(420, 240, 106, 52, "final_norm", "LayerNorm", GREY)
    head = d.box(560, 240, 96, 52, "out_head", "C → V")
    logits = d.box(696, 240, 92, 52, "logits", color=GOLD, font=SANS)
    d.chain(ids, tok_emb, plus, drop_emb)
    d.arrow((164, 142), pos_emb.left)
    d.arrow(pos_emb.right, (466, 142), plus.bottom)
    d.arrow(drop_emb.right, (770, 62), (770, 192), (18, 192), (18, 266), first.left)
    d.chain(first, second)
    d.arrow(second.right, last.left, dash="2 5")
    d.chain(last, norm, head, logits)
    d.text((126, 142, "0 … T − 1"))
    d.code((48, 228, "trf_blocks"), fill=PURPLE, at="start")
    d.note((316, 228, "× n_layers"), fill=PURPLE, at="end")
    shape = "(B, T, C)"
    d.code((402, 48, shape), (534, 48, shape), (650, 178, shape), (375, 252, shape))
    d.code((65, 104, "(B, T)"), (402, 128, "(T, C)"), (742, 306, "(B, T, V)"))
    sizes = "GPT-2 124M: V = 50,257, C = 768, n_layers = 12, at most 1,024 tokens"
    d.note((410, 334, sizes))


@figure("The transformer block", 600)
def transformer_block(d):
    """x of shape (B, T, C) runs straight up as the residual stream. One branch passes
    norm1, att and drop_shortcut and is added back; a second one norm2, ff and
    drop_shortcut. Inside ff: Linear from C to 4C, GELU, Linear back to C."""
    x, mid = 230, 400
    d.line((x, 570), (x, 30), color=PURPLE, width=5)
    d.add(draw.Lines(x, 18, x - 11, 40, x + 11, 40, close=True, fill=PURPLE))
    d.code((x + 20, 32, "(B, T, C)"), (x + 20, 568, "x  (B, T, C)"), at="start")
    stream = (x - 20, 550, "the residual stream:\nstraight through")
    d.note(stream, fill=PURPLE, at="end")
    for y, norm, main, under, color in (
        (535, "norm1", "att", "multi-head, causal", BLUE),
        (283, "norm2", "ff", "feed forward", ORANGE),
    ):
        plus = d.plus(x, y - 220)
        update = f"x = x + drop_shortcut(\n{main}({norm}(x)))"
        d.code((x - 24, y - 229, update), at="end", size=12)
        normed = d.box(mid - 80, y - 58, 160, 38, norm, color=GREY)
        worked = d.box(mid - 80, y - 128, 160, 48, main, under, color)
        dropped = d.box(mid - 80, y - 188, 160, 38, "drop_shortcut", color=GREEN)
        d.arrow((x, y), (mid, y), normed.bottom)
        d.chain(normed, worked, dropped)
        d.arrow(dropped.top, (mid, y - 220), plus.right)
    inside = d.rect(560, 34, 220, 290, WHITE, ORANGE, r=8, width=1.2, dash="4 4")
    d.line(worked.right, inside.left, color=ORANGE, dash="4 4")
    d.code((564, 22, "ff.layers"), fill=ORANGE, at="start")
    below, layers = (670, 296), (("Linear", "C → 4C"), ("GELU",), ("Linear", "4C → C"))
    for i, layer in enumerate(layers):
        box = d.box(605, 232 - 66 * i, 130, 42, *layer, color=ORANGE)
        d.arrow(below, box.bottom)
        below = box.top
    d.arrow(below, (670, 66))
    d.code((670, 54, "(B, T, C)"), (670, 307, "(B, T, C)"), size=12)
    d.code((680, 154, "(B, T, 4C)"), (680, 220, "(B, T, 4C)"), at="start", size=12)


@figure("The training loop", 412)
def training_loop(d):
    """A batch of input and target; the model turns the input into logits; cross-entropy
    compares them with the target; backward, clipping and an AdamW step follow, then the
    next batch. From time to time: evaluation, a sample, a checkpoint."""
    batch = d.box(40, 64, 160, 56, "batch", "input and target", GOLD, SANS)
    model = d.box(330, 64, 160, 56, "model", "GPTModel")
    loss = d.box(620, 64, 160, 56, "cross_entropy", "how wrong?", ORANGE)
    backward = d.box(620, 178, 160, 56, "backward", "gradients", ORANGE)
    clip = d.box(330, 178, 160, 56, "clip", "norm at most 1", GREEN)
    step = d.box(40, 178, 160, 56, "AdamW step", "change the weights", GREEN)
    d.chain(batch, model, loss, backward, clip, step, batch)
    d.arrow(batch.top, (120, 30), (700, 30), loss.top, color=PURPLE)
    d.arrow(step.bottom, (120, 272), dash="4 4")
    d.note((265, 78, "input"), (555, 78, "logits"), fill=INK)
    d.code((265, 107, "(B, T)"), (555, 107, "(B, T, V)"))
    d.note((386, 44, "target"), fill=PURPLE, at="end")
    d.code((394, 44, "(B, T)"), fill=PURPLE, at="start")
    d.note((688, 149, "loss, one number"), fill=INK, at="end")
    beside = (132, 149, "next batch"), (132, 254, "from time to time")
    d.note(*beside, fill=INK, at="start")
    d.rect(24, 272, 772, 116, WHITE, GREY, r=8, width=1.2, dash="4 4")
    side = PURPLE, SANS
    d.box(40, 290, 232, 80, "evaluate", "loss on training\nand validation data", *side)
    d.box(294, 290, 232, 80, "sample", "continue a prompt,\nread the text", *side)
    d.box(548, 290, 232, 80, "checkpoint", "save model\nand optimizer", *side)


@figure("Drawing the next token", 424)
def sampling(d):
    """Seven logits are divided by the temperature; top-k keeps five of them and top-p
    three of those; softmax makes probabilities; a random number between 0 and 1 picks
    the token in whose part of the line it falls."""
    words = "roof hill town sea floor moon spoon".split()
    logits = torch.tensor([3.1, 2.7, 2.1, 1.7, 0.4, -0.5, -1.2])
    top_k, top_p, temperature, u, drawn = 5, 0.9, 0.7, 0.62, None
    scaled = logits / temperature
    kept = int((scaled[:top_k].softmax(0).cumsum(0) < top_p).sum()) + 1
    probs = scaled[:kept].softmax(0)
    panels = (
        (logits, "logits", "", ""),
        (scaled, "temperature", f"divide by {temperature}", ""),
        (scaled[:kept], "cut", f"top-k {top_k}, top-p {top_p}", "−∞ top-"),
        (probs, "softmax", "shares of 1", "0"),
    )
    for g, (bars, name, note, rest) in enumerate(panels):
        x, (scale, places) = 96 + 186 * g, (140, 2) if g == 3 else (20, 1)
        d.bold((x + 60, 28, name), size=15)
        d.note((x + 60, 50, note))
        if g:
            d.arrow((x - 62, 28), (x + 4, 28))
        for i, word in enumerate(words):
            y, color = 72 + 30 * i, HEADS[i] if g == 3 and i < kept else BLUE
            if g == 0:
                d.text((62, y + 12, word), at="end")
            if i >= len(bars):
                why = "pk"[i >= top_k] if g == 2 else ""
                d.code((x + 8, y + 12, rest + why), fill=GREY, at="start")
                continue
            w = bars[i].item() * scale
            d.rect(x + min(w, 0), y, abs(w), 24, tint(color, 0.45), color, 0, 1)
            d.code((x + 8 + max(w, 0), y + 12, dec(bars[i], places)), at="start")
        d.line((x, 68), (x, 280), width=1)
    left, span, y = 96, 640, 336
    at = left + u * span
    d.code((left, y + 46, "0"), (left + span, y + 46, "1"))
    for word, p, color in zip(words, probs.tolist(), HEADS, strict=False):
        d.cells(left, y, [word], color, tint(color, 0.45), SANS, w=p * span)
        left += p * span
        drawn = drawn or (word if at < left else None)
    d.bold((82, y + 15, "draw one"), at="end")
    d.arrow((at, y - 30), (at, y), color=INK)
    d.bold((at + 10, y - 20, f"random number {u} → “{drawn}”"), at="start")
    d.note((416, y + 62, "Temperature 0 draws nothing: the largest logit wins."))


@figure("Loading the fused queries, keys and values", 312)
def fused_weights(d):
    """c_attn/w in OpenAI's file has the shape (1, C, 3C): queries, keys and values side
    by side. Without its first dimension and transposed it is (3C, C). Split into three,
    each part is the weight (C, C) of one linear layer."""
    w, colors = 72, {"query": BLUE, "key": ORANGE, "value": GREEN}
    for i, (name, color) in enumerate(colors.items()):
        fill, y = tint(color, 0.3), 44 + i * w
        d.rect(24 + i * w, 116, w, w, fill, color, r=0)
        column = d.rect(360, y, w, w, fill, color, r=0)
        layer = d.rect(590, y + 4, 206, w - 8, fill, color)
        d.chain(column, layer)
        d.text((60 + i * w, 146, name), (396, y + 30, f"{name}ᵀ"))
        d.code((60 + i * w, 168, "C × C"), (396, y + 52, "C × C"))
        d.code((693, y + 28, f"att.W_{name}.weight"), font_weight="bold")
        d.code((693, y + 50, "(C, C)"))
    d.bold((132, 26, "in the file: c_attn/w"), (396, 26, "as PyTorch has it"))
    d.bold((693, 26, "in our model"))
    d.code((132, 290, "(1, C, 3C)"), (396, 290, "(3C, C)"), (693, 290, "3 × (C, C)"))
    d.note((132, 100, "3C outputs"), (132, 206, "a row for each of C inputs"))
    d.arrow((240, 152), (360, 152))
    d.code((301, 136, "[0].T"), (509, 62, ".chunk(3)"))
    d.note((301, 172, "transposed"))


@figure("What is frozen, and what learns", 320)
def spam_classifier(d):
    """The embeddings and all blocks but the last are frozen and run once a message;
    their output (B, T, C) is kept. The last block is read at the last real token;
    final_norm and out_head turn its vector (B, C) into scores (B, classes). These
    three learn. In a row of ids, padding follows the message.
    """
    d.rect(20, 20, 332, 150, tint(GREY, 0.08), GREY, r=10, width=1.4, dash="5 4")
    d.rect(458, 20, 342, 150, tint(GREEN, 0.08), GREEN, r=10, width=1.4)
    d.bold((34, 42, "frozen: runs once a message"), fill=GREY, at="start")
    d.bold((472, 42, "learns: runs in every epoch"), fill=GREEN, at="start")
    ids = d.box(34, 66, 66, 84, "ids", "(B, T)", GOLD, SANS)
    embeddings = d.box(118, 66, 88, 84, "tok_emb", "+ pos_emb", GREY)
    blocks = d.box(224, 66, 116, 84, "trf_blocks", "all but the last", GREY)
    kept = d.box(368, 66, 72, 84, "kept", "(B, T, C)", PURPLE, SANS)
    last = d.box(470, 66, 96, 84, "trf_blocks", "the last one", GREEN)
    norm = d.box(584, 66, 96, 84, "final_norm", "(B, C)", GREEN)
    head = d.box(698, 66, 90, 84, "out_head", "(B, classes)", GREEN)
    d.cells(695, 226, ["ham", "spam"], ORANGE, font=SANS, w=48)
    d.chain(ids, embeddings, blocks, kept, last, norm, head)
    d.arrow(head.bottom, (743, 226))
    x, y, words = 36, 240, ["Free", "·prize", "!", "·Call", "·now"]
    d.bold((x, y - 20, "one row of ids"), at="start")
    d.cells(x, y, words, BLUE, w=58)
    d.cells(x + 290, y, ["‹end›"] * 3, RULE, WHITE, w=58)
    read = d.rect(x + 232, y, 58, 30, "none", ORANGE, r=0, width=3)
    d.brace(x, x + 288, y + 36, "the message: its last token has seen it all")
    d.brace(x + 292, x + 464, y + 36, "padding")
    d.arrow(read.top, (297, 204), (518, 204), last.bottom, color=ORANGE)
    d.note((407, 192, "read at this token"), fill=ORANGE)


@figure("LoRA: a change of low rank beside a frozen layer", 350)
def lora(d):
    """x goes through W, which is frozen, and through A and B, which learn. A is as high
    as W and only rank wide; B is as wide as W and only rank high, and starts at zero.
    Their product times alpha / rank is added to the result of W."""
    W = d.rect(170, 40, 270, 110, tint(GREY, 0.2), GREY, r=2)
    A = d.rect(170, 204, 26, 110, tint(GREEN, 0.3), GREEN, r=2)
    B = d.rect(300, 246, 270, 26, tint(GREEN, 0.3), GREEN, r=2)
    scale = d.box(598, 235, 118, 48, "× alpha / rank", color=ORANGE, font=SANS)
    plus = d.plus(742, 95)
    d.arrow((80, 95), W.left)
    d.arrow((116, 95), (116, 259), A.left)
    d.chain(A, B, scale)
    d.arrow(scale.right, (742, 259), plus.bottom)
    d.chain(W, plus)
    d.arrow(plus.right, (780, 95))
    names = (60, 95, "x"), (305, 85, "W"), (183, 259, "A"), (435, 259, "B")
    d.bold(*names, (792, 95, "y"), size=15, font_family=MONO)
    d.note((305, 107, "frozen"))
    shapes = (305, 26, "(d_in, d_out)"), (183, 190, "(d_in, rank)")
    d.code(*shapes, (435, 232, "(rank, d_out)"), (60, 120, "(…, d_in)"), size=12)
    d.code((248, 246, "(…, rank)"), (774, 66, "(…, d_out)"), size=12)
    d.note((183, 330, "random at first"), (435, 288, "zero at first"), fill=GREEN)


@figure("Which targets count", 334)
def masked_targets(d):
    """Two examples in a batch, as columns of an input and the target below it, the next
    token. Targets of the prompt are −100; those of the response and the first end token
    are learnt. The second example is padded with end tokens, whose targets are −100."""
    prompt, learnt = (GREY, tint(GREY, 0.1)), (BLUE, tint(BLUE, 0.3))
    last, plain = (ORANGE, tint(ORANGE, 0.3)), (RULE, WHITE)
    rows = ("Say it Response: She sang .", 3), ("Go Response: Gone .", 2)
    for i, (text, answer) in enumerate(rows):
        y, tokens = 30 + 132 * i, text.split()
        end = len(tokens)
        d.bold((40, y + 48, f"example {i + 1}"), at="start")
        d.code((206, y + 20, "inputs"), (206, y + 76, "targets"), at="end")
        tokens += ["end"] * (7 - end)
        for t in range(6):
            x, after = 220 + 94 * t, t + 1
            style = prompt if t < answer else learnt if t < end else plain
            d.cells(x, y, [tokens[t]], *style, SANS, w=88, h=40)
            if answer <= after <= end:
                style = learnt if after < end else last
                d.cells(x, y + 56, [tokens[after]], *style, SANS, w=88, h=40)
            else:
                d.cells(x, y + 56, ["−100"], *plain, w=88, h=40)
            d.arrow((x + 44, y + 40), (x + 44, y + 55))
    for x, style in ((40, learnt), (150, last), (310, plain)):
        d.cells(x, 300, [""], *style, w=18, h=18)
    keys = (66, 309, "learnt"), (176, 309, "the end, learnt")
    masked = (336, 309, "−100: prompt or padding, left out of the loss")
    d.note(*keys, masked, fill=INK, at="start")


@figure("Keeping a conversation within the window", 316)
def chat_window(d):
    """At message 4 the turns 1 to 3, the message and room for the answer fit into the
    model's window. At message 5 there is a turn 4 as well; turn 1 lies outside of the
    window and is dropped."""
    width = {1: 130, 2: 110, 3: 120, 4: 130}
    for y, n, kept in ((56, 4, (1, 2, 3)), (208, 5, (2, 3, 4))):
        d.bold((190, y - 26, f"Message {n} arrives"), at="start")
        x = 190
        for k in kept:
            d.box(x, y, width[k], 56, f"turn {k}", font=SANS)
            x += width[k]
        d.box(x, y, 100, 56, f"message {n}", color=GREEN, font=SANS)
        d.rect(x + 100, y, 690 - x, 56, WHITE, ORANGE, r=6, dash="5 4")
        d.note(((x + 890) / 2, y + 28, "room for the answer"), fill=ORANGE)
        d.brace(190, 790, y + 64, "the model's window, context_length tokens")
    d.rect(40, 208, 130, 56, WHITE, GREY, r=6, width=1.2, dash="4 4")
    d.bold((105, 227, "turn 1"), fill=GREY)
    d.note((105, 247, "dropped"), fill=ORANGE)


@figure("Learning from rewards: the loop", 330)
def reward_loop(d):
    """Problems go to the model, which answers each of them several times. A verifier
    gives each answer a reward of 1 or 0. Within the group of answers to one problem,
    rewards minus their mean are the advantages. The policy gradient changes the model,
    which answers the next problems."""
    problems = d.box(40, 60, 160, 62, "problems", "8 prompts", GOLD, SANS)
    model = d.box(330, 60, 160, 62, "model", "the policy")
    answers = d.box(
        620, 60, 160, 62, "answers", "16 to each prompt", color=BLUE, font=SANS
    )
    verifier = d.box(620, 210, 160, 62, "verifier", "right or wrong?", ORANGE, SANS)
    group = d.box(330, 210, 160, 62, "advantages", "reward − group's mean", GREEN, SANS)
    step = d.box(40, 210, 160, 62, "policy gradient", "train_model", GREEN, SANS)
    d.chain(problems, model, answers, verifier, group, step)
    d.arrow(step.top, (120, 166), (410, 166), model.bottom, color=GREEN)
    d.note((265, 78, "read once"), (555, 78, "samples"), fill=INK)
    d.note((690, 166, "texts"), at="end", fill=INK)
    d.note((555, 228, "rewards"), (265, 228, "what to raise,"), fill=INK)
    d.note((265, 256, "what to lower"), fill=INK)
    d.note((265, 152, "other weights, new answers"), fill=GREEN)
    d.note((410, 306, "Only problems and a number for each answer come from outside."))


@figure("Advantages within a group", 300)
def group_advantage(d):
    """Two groups of five answers, a bar up to the reward of each. In the first two
    rewards are 1 and three are 0; their mean is 0.4, and the advantages are +0.6 for
    right answers and −0.4 for wrong ones. In the second all rewards are 0, the mean
    too, and so are all advantages: the group has no signal."""
    groups = (1, 0, 0, 1, 0), (0, 0, 0, 0, 0)
    titles = "some right, some wrong", "all equal: no signal"
    for g, (rewards, title) in enumerate(zip(groups, titles, strict=True)):
        x, base, unit = 100 + 390 * g, 186, 120
        mean = sum(rewards) / len(rewards)
        d.bold((x + 140, 28, title), size=15)
        for i, reward in enumerate(rewards):
            left, color = x + 58 * i, GREEN if reward > mean else ORANGE
            if reward == mean:
                color = GREY
            top = base - unit * reward
            d.rect(left, top, 42, max(unit * reward, 2), tint(color, 0.3), color, 0)
            d.text((left + 21, base + 16, reward))
            sign = "+" if reward > mean else ""
            d.bold((left + 21, base + 58, sign + dec(reward - mean, 1)), fill=color)
        y = base - unit * mean
        d.line((x - 12, y), (x + 290, y), color=PURPLE, dash="6 4")
        d.note((x + 290, y - 12, f"mean {dec(mean, 1)}"), fill=PURPLE, at="end")
    d.note((84, 202, "reward"), (84, 244, "advantage"), at="end", fill=INK)
    d.note((240, 280, "the right answers up, the wrong ones down"))
    d.note((630, 280, "nothing to learn: the group is skipped"))


def main(names):
    for name in names or FIGURES:
        title, height, function = FIGURES[name]
        sheet = Sheet(title, height, getattr(function, "func", function).__doc__)
        function(sheet)
        svg = sheet.as_svg(header="") + "\n"
        (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:])
