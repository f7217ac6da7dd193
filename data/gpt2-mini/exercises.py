"""Copying exercises and plain dialogues for the last part of gpt2-mini's training.

Books alone teach a small model to go on in a plausible way, not to look back and copy.
The exercises here can't be solved in another way: rows of any tokens that repeat, and
dialogues whose answers stand in an earlier turn. Everything is made on the fly from a
seed. Chapter 7 tests with content of its own: a word, name or number for which
`is_reserved` is true never stands in a dialogue made here.
"""

import math
import random
import re
import zlib
from collections import Counter

import torch
from torch.utils.data import Dataset

SYLLABLES = "ba be bo da do el en fi ga hu il jo ka ke la li lo ma me mi mo na ne no or"
SYLLABLES = (
    SYLLABLES + " pa pe ra ri ro sa se so ta te ti to ul va ve vi wi ya"
).split()
THINGS = """name town village street dog cat horse sister brother friend teacher garden
    boat house school colour number room age song book game hat tree""".split()
NUMBERED = ("number", "room", "age")
TELL = ("My {t} is {v}.", "You should know that my {t} is {v}.", "My {t}: {v}.",
        "I will tell you my {t}. It is {v}.", "Remember that my {t} is {v}.",
        "Hello! My {t} is {v}.", "By the way, my {t} is {v}.")  # fmt: skip
HEARD = ("I see.", "Thank you.", "I will remember it.", "Good.", "Very well.")
ASK = ("What is my {t}?", "Tell me my {t}.", "Do you remember my {t}?",
       "Can you say what my {t} is?", "Please tell me what my {t} is.")  # fmt: skip
CHANGE = ("No, my {t} is {v}.", "I was wrong. My {t} is {v}.", "Sorry, my {t} is {v}.",
          "Now my {t} is {v}.", "I have changed it: my {t} is {v}.")  # fmt: skip
REPEAT = ("Repeat: {s}", "Say this: {s}", "Repeat after me: {s}", "Please say: {s}",
          "Write the same words: {s}", "Say it again: {s}")  # fmt: skip
REVERSE = ("Put these words in the opposite order: {s}", "Say it backwards: {s}",
           "Turn the order of the words around: {s}", "Reverse: {s}")  # fmt: skip
LARGER = ("Which is larger, {a} or {b}?", "Which number is bigger: {a} or {b}?",
          "Name the larger number: {a}, {b}.", "Is {a} or {b} more?")  # fmt: skip
DEEDS = ("{n} put the {o} in the {p}.", "{n} found the {o} in the {p}.",
         "{n} left the {o} near the {p}.", "{n} saw the {o} under the {p}.",
         "{n} took the {o} to the {p}.", "{n} lost the {o} at the {p}.")  # fmt: skip
CHAT = (("How are you?", "I am well, thank you."), ("Good morning!", "Good morning!"),
        ("Are you there?", "Yes, I am here."), ("Thank you.", "You are welcome."),
        ("Can we go on?", "Yes, let us go on."))  # fmt: skip


def is_reserved(content):
    """Say whether a word, name or number belongs to chapter 7's tests: one in eight."""
    return zlib.crc32(str(content).lower().encode("utf-8")) % 8 == 0


def collect_words(text, rare=5):
    """Return the words and the names that stand at least `rare` times in a text."""
    counts = Counter(re.findall(r"(?<=[a-z,;] )[A-Za-z]{3,10}\b", text))
    plain = {w for w in counts if w.islower() and counts[w] >= rare}
    names = {w for w in counts if w.istitle() and counts[w] >= rare}
    names = {w for w in names if w.lower() not in plain}
    return [sorted(w for w in found if not is_reserved(w)) for found in (plain, names)]


def draw(make):
    """Call `make` until what it gives isn't reserved for chapter 7."""
    while is_reserved(content := make()):
        pass
    return content


class Dialogues:
    """A maker of dialogues: lists of turns (user's line, assistant's line).

    Args:
        words, names: lists of strings to fill the tasks with.
    """

    def __init__(self, words, names):
        self.words, self.names = words, names
        self.kinds = (self.recall, self.correct, self.repeat, self.find,
                      self.reverse, self.larger)  # fmt: skip

    def name(self, rng):
        """A name from the books, or one put together from syllables."""
        if rng.random() < 0.4:
            return rng.choice(self.names)
        return draw(
            lambda: "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3)))
        ).title()

    def number(self, rng):
        """A number of one to four digits."""
        return draw(lambda: str(rng.randint(1, 10 ** rng.randint(1, 4) - 1)))

    def value(self, rng, thing):
        """What the user's `thing` is."""
        if thing in NUMBERED:
            return self.number(rng)
        return rng.choice((self.name(rng), self.name(rng), rng.choice(self.words)))

    def filler(self, rng):
        """A turn that has nothing to do with the others."""
        other = rng.choice((self.repeat, self.larger, self.reverse, None, None))
        return other(rng) if other else [rng.choice(CHAT)]

    def tell(self, rng, templates, t, v):
        """A turn in which the user says what a thing is."""
        sure = rng.choice(HEARD + (f"So your {t} is {v}.", f"Your {t} is {v}.") * 2)
        return (rng.choice(templates).format(t=t, v=v), sure)

    def recall(self, rng, change=0.0):
        """One to three facts, perhaps a change, up to three fillers, a question."""
        facts = {t: self.value(rng, t) for t in rng.sample(THINGS, rng.randint(1, 3))}
        turns = [[self.tell(rng, TELL, t, v)] for t, v in facts.items()]
        turns += [self.filler(rng) for _ in range(rng.randint(0, 3))]
        rng.shuffle(turns)
        asked = rng.choice(list(facts))
        if rng.random() < change:
            facts[asked] = self.value(rng, asked)
            turns += [[self.tell(rng, CHANGE, asked, facts[asked])]]
            turns += [self.filler(rng) for _ in range(rng.randint(0, 1))]
        turns += [
            [(rng.choice(ASK).format(t=asked), f"Your {asked} is {facts[asked]}.")]
        ]
        return [turn for part in turns for turn in part]

    def correct(self, rng):
        """The user changes a fact, and asks about it."""
        return self.recall(rng, change=1.0)

    def sentence(self, rng, low, high):
        """Some words in a row that means nothing."""
        count = rng.randint(low, high)
        return [
            self.name(rng) if rng.random() < 0.15 else rng.choice(self.words)
            for _ in range(count)
        ]

    def repeat(self, rng):
        """Say the same words."""
        words = " ".join(self.sentence(rng, 2, 10))
        words = (words[0].upper() + words[1:] + ".") if rng.random() < 0.5 else words
        return [(rng.choice(REPEAT).format(s=words), words)]

    def reverse(self, rng):
        """Say the words from the last to the first."""
        words = self.sentence(rng, 2, 5)
        asked = rng.choice(REVERSE).format(s=" ".join(words))
        return [(asked, " ".join(reversed(words)))]

    def larger(self, rng):
        """Name the larger of two numbers."""
        a, b = self.number(rng), self.number(rng)
        if rng.random() < 0.3:  # near each other
            b = draw(lambda: str(int(a) + rng.randint(1, 12)))
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        answer = str(max(int(a), int(b)))
        return [(rng.choice(LARGER).format(a=a, b=b), f"{answer}.")]

    def find(self, rng):
        """Answer a question from one to three sentences."""
        deeds = [rng.choice(DEEDS) for _ in range(rng.randint(1, 3))]
        people = rng.sample([self.name(rng) for _ in range(9)], len(deeds))
        filled = [
            {"n": n, "o": rng.choice(self.words), "p": rng.choice(self.words)}
            for n in people
        ]
        text = " ".join(d.format(**f) for d, f in zip(deeds, filled, strict=True))
        deed, asked = rng.choice(list(zip(deeds, filled, strict=True)))
        verb, *_, where = deed.split()[1], *deed.split()[4:-1]
        base = {"put": "put", "found": "find", "left": "leave", "saw": "see"}
        verb = (base | {"took": "take", "lost": "lose"})[verb]
        n, o, p = asked["n"], asked["o"], asked["p"]
        questions = (
            (f"What did {n} {verb}?", f"The {o}."),
            (f"Where did {n} {verb} the {o}?", f"{where.title()} the {p}."),
            (f"Who {deed.split()[1]} the {o}?", f"{n}."),
        )
        question, answer = rng.choice(questions)
        return [(f"{text} {question}", answer)]

    def make(self, rng):
        """A dialogue of a kind drawn at random, the harder ones more often."""
        (kind,) = rng.choices(self.kinds, weights=(1, 1, 1, 2, 3, 4))
        return kind(rng)


class Exercises(Dataset):
    """Windows of exercises, number i always the same: rows of tokens, or dialogues.

    Items are `(inputs, targets)`, both `(T,)` ids. Targets that nobody could know (the
    first showing of a row, what the user says) are -100, which the loss leaves out.

    Args:
        dialogues: a `Dialogues`.
        tokenizer: the model's; its special tokens are the last of its ids.
        T: tokens in a window.
        share: share of rows among them.
        seed: another seed gives other exercises.
    """

    def __init__(self, dialogues, tokenizer, T, share=0.5, seed=0):
        self.dialogues, self.tokenizer, self.T = dialogues, tokenizer, T
        self.share, self.seed = share, seed
        self.end = tokenizer.encode("<|endoftext|>", allowed_special="all")

    def __getitem__(self, i):
        rng = random.Random(f"{self.seed} {i}")
        make = self.rows if rng.random() < self.share else self.turns
        ids, known = [], []
        while len(ids) <= self.T:
            for part, counts in make(rng):
                ids += part
                known += [counts] * len(part)
        ids, known = torch.tensor(ids), torch.tensor(known)
        targets = ids.where(known, -100)
        return ids[: self.T], targets[1 : self.T + 1]

    def rows(self, rng):
        """A row of random tokens, shown two to eight times; most rows are short."""
        length = round(2 ** rng.uniform(1, math.log2(self.T / 3)))
        row = [rng.randrange(self.end[0]) for _ in range(length)]
        return [(row, False)] + [(row, True)] * rng.randint(1, 7)

    def turns(self, rng):
        """A dialogue, each turn a line, then the end of the text."""
        parts = []
        for asked, answer in self.dialogues.make(rng):
            parts.append((self.tokenizer.encode(f"User: {asked}\nAssistant:"), False))
            parts.append((self.tokenizer.encode(f" {answer}\n"), True))
        return [*parts, (self.end, False)]
