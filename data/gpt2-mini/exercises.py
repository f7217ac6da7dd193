"""Exercises: rows of tokens to copy, and dialogues whose answers are known.

Stories teach a small model to go on in a plausible way, not to look back. These can't
be solved in another way. Everything is made on the fly from a seed. The dialogue tasks
are those of chapter 7; contents for which `is_reserved` is true are kept for its tests.
"""

import json
import random
import re
import zlib
from collections import Counter
from pathlib import Path

import torch

# The dialogue tasks: functions of a `Contents`, which return pairs (message, answer).

PEOPLE = "sister brother cousin teacher doctor neighbour friend aunt uncle mother"
KNOWN = {  # what can be known of a person, and the kind of its values
    "name": "name",
    "home town": "place",
    "favourite animal": "animal",
    "favourite word": "object",
    "room number": "number",
}
PHRASES = {
    "tell": """My {t} is {v}.|My {t}: {v}.|Remember that my {t} is {v}.
        |Hello! My {t} is {v}.|By the way, my {t} is {v}.|You know, my {t} is {v}.
        |Please note that my {t} is {v}.|Here is a fact: my {t} is {v}.""",
    "heard": """I see.|Thank you.|I will remember it.|Good.|All right.
        |Your {t} is {v}.|So your {t} is {v}.|I see, your {t} is {v}.""",
    "change": """No, my {t} is {v}.|I was wrong. My {t} is {v}.|Sorry, my {t} is {v}.
        |Now my {t} is {v}.|That was a mistake: my {t} is {v}.""",
    "ask": """What is my {t}?|Tell me my {t}.|Do you remember my {t}?
        |Can you say what my {t} is?|Please tell me what my {t} is.
        |What did I say my {t} was?|I forgot my {t}. What is it?""",
    "larger": """Which is larger, {a} or {b}?|Which number is bigger: {a} or {b}?
        |Name the larger number: {a}, {b}.|Is {a} or {b} more?""",
    "repeat": """Repeat: {s}|Say this: {s}|Repeat after me: {s}|Please say: {s}
        |Write the same words: {s}|Say it again: {s}""",
    "reverse": """Reverse: {s}|Say it backwards: {s}|Turn the words around: {s}
        |Put these words in the opposite order: {s}""",
    "sentence": """The {quality} {animal} {deed} the {object}.
        |{name} {deed} the {animal}.|{name} {deed} a {quality} {object}.
        |The {object} is in the {spot}.|{name} and {name} went to {place}.
        |{name} has {number} {quality} things.""",
}
PHRASES = {key: re.split(r"\s*\|", phrases) for key, phrases in PHRASES.items()}
DEEDS = {  # what is said to have been done: the verb in questions, and where
    "put": ("put", "in"),
    "found": ("find", "in"),
    "left": ("leave", "near"),
    "saw": ("see", "under"),
    "took": ("take", "to"),
    "lost": ("lose", "at"),
}
SMALL_TALK = [
    ("How are you?", "I am well, thank you."),
    ("Good morning!", "Good morning!"),
    ("Are you there?", "Yes, I am here."),
    ("Thank you.", "You are welcome."),
    ("Can we go on?", "Yes, let us go on."),
    ("Hello!", "Hello!"),
]
UNKNOWN = "You haven't told me."


def is_reserved(content):
    """Say whether a word, name or number is kept for tests: about one in eight."""
    return zlib.crc32(str(content).lower().encode("utf-8")) % 8 == 0


class Contents:
    """Draws words and numbers for one dialogue, each at most once.

    `words` is a dictionary from a kind of word to a list. With `reserved`, only what is
    kept for tests is drawn; without, only the rest.
    """

    def __init__(self, rng, words, reserved=False):
        self.rng, self.words, self.reserved, self.used = rng, words, reserved, set()

    def draw(self, kind, digits=None):
        while True:
            if kind == "number":
                size = digits or self.rng.randint(2, 4)
                content = str(self.rng.randrange(10 ** (size - 1), 10**size))
            else:
                content = self.rng.choice(self.words[kind])
            if is_reserved(content) == self.reserved and content not in self.used:
                self.used.add(content)
                return content

    def phrase(self, name, **values):
        return self.rng.choice(PHRASES[name]).format(**values)

    def row(self, low, high):
        """A few words of any kind."""
        kinds = [kind for kind in self.words if kind != "deed"]
        count = self.rng.randint(low, high)
        return [self.draw(self.rng.choice(kinds)) for _ in range(count)]


def draw_facts(c, count):
    """Facts of one kind, `{thing: value}`, and two things that weren't told."""
    known, kind = c.rng.choice(list(KNOWN.items()))
    people = c.rng.sample(["", *PEOPLE.split()], count + 1)
    things = [f"{person}'s {known}" if person else known for person in people]
    facts = {thing: c.draw(kind) for thing in things[:count]}
    other = c.rng.choice([k for k in KNOWN if k != known])  # of a person that was named
    return facts, [things[count], f"{people[0]}'s {other}" if people[0] else other]


def tell(c, facts, how="tell"):
    """Turns that state facts: in one message, or in one each."""
    if len(facts) > 1 and c.rng.random() < 0.3:
        told = " and ".join(f"my {t} is {v}" for t, v in facts.items())
        return [(f"{told[0].upper()}{told[1:]}.", c.rng.choice(PHRASES["heard"][:5]))]
    return [
        (c.phrase(how, t=t, v=v), c.phrase("heard", t=t, v=v)) for t, v in facts.items()
    ]


def ask(c, facts, thing):
    """A turn that asks for a fact."""
    answer = f"Your {thing} is {facts[thing]}." if thing in facts else UNKNOWN
    return c.phrase("ask", t=thing), answer


def chatter(c, count):
    """Turns that have nothing to do with the others."""
    turns = []
    for _ in range(count):
        task = c.rng.choice([repeat, reverse, larger, None, None])
        turns += task(c) if task else [c.rng.choice(SMALL_TALK)]
    return turns


def recall(c, between=0):
    """Two or three facts of one kind; one of them is asked for."""
    facts, _ = draw_facts(c, c.rng.randint(2, 3))
    return [
        *tell(c, facts),
        *chatter(c, between),
        ask(c, facts, c.rng.choice(list(facts))),
    ]


def later(c):
    """The same, with one to three other turns in between."""
    return recall(c, c.rng.randint(1, 3))


def corrected(c):
    """One of two or three facts is corrected, and one is asked for, mostly that one."""
    facts, _ = draw_facts(c, c.rng.randint(2, 3))
    turns = tell(c, facts) + chatter(c, c.rng.randint(0, 1))
    thing = c.rng.choice(list(facts))
    old = facts[thing]
    kind = KNOWN[next(known for known in KNOWN if thing.endswith(known))]
    facts[thing] = c.draw(kind, len(old))
    turns += tell(c, {thing: facts[thing]}, "change") + chatter(c, c.rng.randint(0, 1))
    asked = thing if c.rng.random() < 0.7 else c.rng.choice(list(facts))
    return [*turns, ask(c, facts, asked)]


def unknown(c):
    """One to three facts, and a question about another that was never told."""
    facts, others = draw_facts(c, c.rng.randint(1, 3))
    return [
        *tell(c, facts),
        *chatter(c, c.rng.randint(0, 1)),
        ask(c, {}, c.rng.choice(others)),
    ]


def find(c):
    """A question about one of two or three sentences, often with the same verb."""
    count = c.rng.randint(2, 3)
    verbs = c.rng.choices(list(DEEDS), k=1) * 3 if c.rng.random() < 0.5 else list(DEEDS)
    verbs = c.rng.sample(verbs, count)
    said = [(c.draw("name"), verb, c.draw("object"), c.draw("spot")) for verb in verbs]
    told = [f"{n} {verb} the {o} {DEEDS[verb][1]} the {s}." for n, verb, o, s in said]
    n, verb, o, s = c.rng.choice(said)
    base, where = DEEDS[verb]
    question, answer = c.rng.choice([
        (f"What did {n} {base}?", f"The {o}."),
        (f"Where did {n} {base} the {o}?", f"{where.title()} the {s}."),
        (f"Who {verb} the {o}?", f"{n}."),
    ])  # fmt: skip
    return [(f"{' '.join(told)} {question}", answer)]


def larger(c):
    """The larger of two numbers of equal length, often near each other."""
    a = b = c.draw("number", c.rng.randint(2, 4))
    while len(a) != len(b) or a == b or is_reserved(b) != c.reserved:
        step = c.rng.randrange(10 ** c.rng.randint(1, 4))
        b = str(abs(int(a) + c.rng.choice((-step, step))))
    return [(c.phrase("larger", a=a, b=b), f"{max(a, b)}.")]


def repeat(c):
    """Say the same words or the same sentence."""
    text = " ".join(c.row(2, 6))
    if c.rng.random() < 0.5:
        sentence = c.rng.choice(PHRASES["sentence"])
        text = re.sub(r"{(\w+)}", lambda found: c.draw(found[1]), sentence)
    return [(c.phrase("repeat", s=text), text)]


def reverse(c):
    """Say two to five words from the last to the first."""
    words = c.row(2, 5)
    return [(c.phrase("reverse", s=" ".join(words)), " ".join(reversed(words)))]


TASKS = [recall, later, corrected, unknown, find, larger, repeat, reverse]
TASKS = {task.__name__: task for task in TASKS}


def make_dialogue(number, words, kind=None, reserved=False):
    """A dialogue, pairs (message, answer): always the same for the same arguments."""
    rng = random.Random(f"{number} {reserved}")
    kind = kind or rng.choice(list(TASKS))
    return TASKS[kind](Contents(rng, words, reserved))


# Windows for training

SYLLABLES = """
    ba be bo da do el en fi ga hu il jo ka ke la li lo ma me mi mo na ne no or pa pe ra
    ri ro sa se so ta te ti to ul va ve vi wi ya
""".split()


def training_words(text, rare=5):
    """The contents of exercises: chapter 7's, a text's words, made-up names."""
    lists = Path(__file__).resolve().parents[1] / "dialogues.json"
    words = json.loads(lists.read_text(encoding="utf-8"))["contents"]
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
    -100, which the loss leaves out. `weights` has the shares of the dialogues' kinds.
    """

    def __init__(self, words, tokenizer, weights):
        self.words, self.tokenizer = words, tokenizer
        self.kinds, self.weights = list(weights), list(weights.values())

    def window(self, i, T, rows):
        """Window number i of T tokens: with the probability `rows`, rows of tokens."""
        rng = random.Random(i)
        make = self.row if rng.random() < rows else self.dialogue
        ids, known = [], []
        while len(ids) <= T:
            for part, counts in make(rng, T):
                ids += part
                known += [counts] * len(part)
        ids, known = torch.tensor(ids), torch.tensor(known)
        return ids[:T], ids.where(known, -100)[1 : T + 1]

    def row(self, rng, T):
        """Random tokens, shown two to four times.

        Of a short row the next token can be guessed without an eye to their order. A
        model that was trained on short rows learnt to guess, and stopped there.
        """
        length = rng.randint(10, max(10, T // 2))
        row = [rng.randrange(self.tokenizer.eot_token) for _ in range(length)]
        return [(row, False)] + [(row, True)] * rng.randint(1, 3)

    def dialogue(self, rng, T):
        """A dialogue, each turn a line, then the end of the text."""
        (kind,) = rng.choices(self.kinds, self.weights)
        encode, parts = self.tokenizer.encode_ordinary, []
        for message, answer in make_dialogue(rng.random(), self.words, kind):
            parts.append((encode(f"User: {message}\nAssistant:"), False))
            parts.append((encode(f" {answer}\n"), True))
        return [*parts, ([self.tokenizer.eot_token], False)]
