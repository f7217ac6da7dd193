"""Exercises: rows of tokens to copy, and dialogues whose answers are known.

Stories teach a small model to go on in a plausible way, not to look back. These can't
be solved in another way. Everything is made on the fly from a seed. The dialogues are
those of chapter 7, and only of contents that it has for training.
"""

import math
import random
import re
import sys
from collections import Counter
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from helpers import DIALOGUES, make_dialogue

SYLLABLES = """
    ba be bo da do el en fi ga hu il jo ka ke la li lo ma me mi mo na ne no or pa pe ra
    ri ro sa se so ta te ti to ul va ve vi wi ya
""".split()


def training_words(text, rare=5):
    """The contents of exercises: chapter 7's, a text's words, made-up names."""
    words = {kind: list(some) for kind, some in DIALOGUES["contents"].items()}
    counts = Counter(re.findall(r"(?<=[a-z,;] )[A-Za-z]{3,10}\b", text))
    plain = sorted(w for w in counts if w.islower() and counts[w] >= rare)
    rng = random.Random(0)
    for kind in ("object", "spot"):
        words[kind] += rng.sample(plain, min(400, len(plain)))
    for kind in ("name", "place"):
        made_up = (
            "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))) for _ in range(400)
        )
        words[kind] += [name.title() for name in made_up]
    return words | {"word": plain}


class Exercises:
    """Windows `(inputs, targets)` of exercises, number i always the same.

    Targets that nobody could know (the first showing of a row, what the user says) are
    -100, which the loss leaves out.
    """

    def __init__(self, words, tokenizer):
        self.words, self.tokenizer = words, tokenizer

    def window(self, i, T, rows, weights):
        """Window number i of T tokens: with the probability `rows`, rows of tokens.

        Otherwise dialogues, of each kind as often as `weights` has it.
        """
        rng = random.Random(i)
        is_row = rng.random() < rows
        ids, known = [], []
        while len(ids) <= T:
            made = self.row(rng, T) if is_row else self.dialogue(rng, weights)
            for part, counts in made:
                ids += part
                known += [counts] * len(part)
        ids, known = torch.tensor(ids), torch.tensor(known)
        return ids[:T], ids.where(known, -100)[1 : T + 1]

    def row(self, rng, T):
        """Random tokens, shown two to six times; lengths are drawn on a log scale.

        Of still shorter rows the next token can be guessed without an eye to their
        order. A model that was trained on them learnt to guess, and stopped there.
        """
        length = round(2 ** rng.uniform(3, math.log2(max(16, T // 2))))
        row = [rng.randrange(self.tokenizer.eot_token) for _ in range(length)]
        return [(row, False)] + [(row, True)] * rng.randint(1, 5)

    def dialogue(self, rng, weights):
        """A dialogue, each turn a line, then the end of the text."""
        (kind,) = rng.choices([*weights], weights.values())
        encode, parts = self.tokenizer.encode_ordinary, []
        for message, answer in make_dialogue(rng.random(), self.words, kind):
            parts.append((encode(f"User: {message}\nAssistant:"), False))
            parts.append((encode(f" {answer}\n"), True))
        return [*parts, ([self.tokenizer.eot_token], False)]
