"""What the notebooks invite a reader to change: text, sentence, sizes, the model.

Each notebook's cells run here in one process, with other settings, to the end.
"""

import json
import random
import re
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from notebook_cells import NOTEBOOKS, read_notebook
from random_checkpoint import SMALL, write_random

import helpers
from helpers import GPT_CONFIG_124M, GPTModel, get_tokenizer

TEXTS = {
    "short": "海, seat, tea. A short text, by me.",
    "long": "海上生明月,天涯共此时。<|endoftext|>情人怨遥夜,竟夕起相思。\n" * 3,
}


def run(stem, monkeypatch, smaller=(), **settings):
    """Execute a notebook's code cells, each of the settings replaced once.

    `smaller` has pairs of what a cell says and what is run in its place.
    """
    monkeypatch.chdir(NOTEBOOKS)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    if stem < "05":  # these run without TensorFlow
        monkeypatch.setitem(sys.modules, "tensorflow", None)
        monkeypatch.setattr(helpers, "import_tensorflow", None)
    namespace, left, smaller = {"__name__": stem}, dict(settings), dict(smaller)
    for cell in read_notebook(stem).cells:
        if cell.cell_type == "code":
            source = cell.source
            for name in [*left]:
                line = rf"^{re.escape(name)} = .*$"
                if re.search(line, source, flags=re.M):
                    value = f"{name} = {left.pop(name)!r}"
                    source = re.sub(line, lambda _, v=value: v, source, flags=re.M)
            for old in [old for old in smaller if old in source]:
                source = source.replace(old, smaller.pop(old))
            exec(compile(source, stem, "exec"), namespace)
    assert not left and not smaller, f"{stem} lacks {[*left, *smaller]}"


@pytest.fixture
def text_file(request, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(TEXTS[request.param], encoding="utf-8")
    return str(path)


def texts(*names):
    return pytest.mark.parametrize("text_file", names, indirect=True)


@texts(*TEXTS)
@pytest.mark.parametrize("context, size", [(4, 300), (1, 256)])
def test_01_takes_any_text(text_file, context, size, monkeypatch):
    run("01_tokenizer", monkeypatch, TEXT=text_file, VOCAB_SIZE=size, CONTEXT=context)


SENTENCES = {"海上生明月": (4, 3), "Hi": (8, 1), "the sea and a lamp " * 20: (64, 12)}


@pytest.mark.parametrize("sentence, sizes", SENTENCES.items())
def test_02_takes_any_sentence_and_sizes(sentence, sizes, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    settings = {"D, H": sizes, "LENGTHS": (16, 32), "STEPS": 3}
    run("02_attention", monkeypatch, SENTENCE=sentence, **settings)


@texts("long")
def test_03_takes_any_text(text_file, monkeypatch):
    smaller = [('"n_layers": 12,  # transformer', '"n_layers": 2,  # transformer')]
    run("03_architecture", monkeypatch, smaller, TEXT=text_file, PROMPT="海", STEPS=2)


@texts("long")
def test_04_takes_other_texts_and_sizes(text_file, monkeypatch, tmp_path):
    monkeypatch.setattr(helpers, "RUNS", tmp_path)
    path = Path(text_file)
    path.write_text(path.read_text("utf-8") * 10, "utf-8")
    sizes = {"context_length": 16, "emb_dim": 32, "n_heads": 2, "n_layers": 1}
    run(
        "04_pretraining",
        monkeypatch,
        [('"emb_dim": 256', '"emb_dim": 32'), ('"emb_dim": 128', '"emb_dim": 16')],
        TEXT=text_file,
        CONFIG=helpers.GPT_CONFIG_124M | sizes,
        NUM_EPOCHS=1,
        START_CONTEXT="海",
        STORIES=str(helpers.DATA / "the-ferryman.txt"),
        STORY_STEPS=2,
        SWEEP_STEPS=2,
    )


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A folder with a small random model under GPT-2's own vocabulary."""
    return write_random(tmp_path_factory.mktemp("own") / "small", **SMALL)


@texts("short")
def test_05_takes_any_model_and_text(text_file, small_model, monkeypatch):
    monkeypatch.setenv("COURSE_MODEL", str(small_model))
    monkeypatch.setitem(
        helpers.GPT2_CONFIGS, "124M", helpers.GPT2_CONFIGS["124M"] | SMALL
    )
    settings = {"TEXT": text_file, "PROMPT": "海上", "NEW_TOKENS": 12, "WIDTHS": (1, 3)}
    run("05_weight_loading", monkeypatch, **settings)


class Small06:
    """Settings and fixtures for a notebook 06 that runs in seconds."""

    cfg = GPT_CONFIG_124M | {"emb_dim": 24, "n_heads": 3, "n_layers": 2}
    cfg |= {"drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
    settings = {"SEEDS": (123, 124), "SIZES": (10, 10**6), "FULL_SIZES": (10,)}
    settings |= {"FULL_SEEDS": 1, "MODEL": "a small random model"}
    settings["READS"] = 20


def own_messages(kind):
    """Return the lines of a file: tabs and two classes, or commas and three."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefg", k=4)) for _ in range(200)]
    texts = [" ".join(draw.sample(words, 3 + i % 9)) for i in range(90)]
    texts[3:6] = ['"never closed', 'two\ttabs, "and a lone " mark', "海上生明月"]
    if kind == "tsv":
        return [
            f"{'spam' if i > 69 else 'ham'}\t{text}" for i, text in enumerate(texts)
        ]
    labels = ["good"] * 40 + ["bad"] * 20 + ["work"] * 30
    lines = [f"{label},{text}" for label, text in zip(labels, texts, strict=True)]
    return ["Label,Text", *lines]


@pytest.mark.parametrize("kind, spam", [("tsv", "spam"), ("csv", "bad")])
def test_06_takes_own_messages_and_another_model(kind, spam, monkeypatch, tmp_path):
    path, model = tmp_path / "own.txt", GPTModel(Small06.cfg)
    path.write_text("\n".join(own_messages(kind)), encoding="utf-8")
    monkeypatch.setattr(helpers, "load_gpt2", lambda name: (model, get_tokenizer()))
    monkeypatch.setattr(helpers, "tqdm", lambda steps, **_: steps)
    monkeypatch.setattr(helpers, "RUNS", tmp_path)
    settings = {"MESSAGES": str(path), "SPAM": spam, "MY_MESSAGE": "海"}
    run("06_spam_finetuning", monkeypatch, **settings, **Small06.settings)


def test_06_stops_before_training_where_a_class_is_missing(monkeypatch, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\n".join(own_messages("csv")), encoding="utf-8")
    monkeypatch.setattr(helpers, "train_model", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match="10 of each class needed, 'spam' among them"):
        run("06_spam_finetuning", monkeypatch, MESSAGES=str(path), **Small06.settings)


RECORDS = [
    {"instruction": f"Say {n}.", "input": "海" * (n % 3), "output": f"{n}, no more."}
    for n in range(24)
]
FEW = {"SETTINGS": {256: (1e-3, 4, 2, 8)}, "TESTS": 2, "WRITTEN": 3}


@pytest.fixture
def model_07(tmp_path, monkeypatch):
    """A random model whose window most of the dialogues fit into."""
    folder = write_random(tmp_path / "own", **SMALL | {"context_length": 256})
    monkeypatch.setenv("COURSE_MODEL", str(folder))
    monkeypatch.setattr(helpers, "RUNS", tmp_path)


def test_07_takes_own_records(model_07, tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.jsonl"  # JSON Lines, one record too long, some without input
    rows = [*RECORDS, {"instruction": "Go.", "output": "on " * 400}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    story = tmp_path / "story.txt"
    story.write_text(TEXTS["long"], encoding="utf-8")
    settings = {"RECORDS": str(path), "STORY": str(story)}
    run("07_instruction_finetuning", monkeypatch, **settings, **FEW)
    assert "left out: too long" in capsys.readouterr().out


LONG = [{"instruction": f"{n} " * 300, "output": "No."} for n in range(30)]


@pytest.mark.parametrize(
    "says, rows",
    [
        ("no example of at most 256 tokens: take more", RECORDS[:10]),
        ("no example of at most 256 tokens: take more", LONG),
        ("record 1 lacks text in 'instruct", [RECORDS[0], {"output": ""}]),
    ],
)
def test_07_stops_before_training(model_07, tmp_path, monkeypatch, says, rows):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        run("07_instruction_finetuning", monkeypatch, RECORDS=str(path), **FEW)


def test_08_takes_another_model(model_07, monkeypatch):
    few = {"TESTS": 2, "DIALOGUES_READ": 16, "SECONDS": 0.1, "STEPS": 1}
    few |= {"PROMPTS, SAMPLES": (2, 3), "WORD_COUNTS": range(2, 5)}
    run("08_learning_from_rewards", monkeypatch, **few)


def test_the_long_runs_of_08_are_logged(model_07, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(helpers.DATA)
    monkeypatch.chdir(tmp_path)
    import reward_runs

    name, text = "08_learning_from_rewards.ipynb", "DIALOGUES_READ = 16"
    book = (NOTEBOOKS / name).read_text("utf-8").replace("DIALOGUES_READ = 2400", text)
    book = book.replace("PROMPTS, SAMPLES = 8, 16", "PROMPTS, SAMPLES = 2, 3")
    book = book.replace("TESTS = 60", "TESTS = 2")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / name).write_text(book, "utf-8")
    monkeypatch.setattr(reward_runs, "ROOT", tmp_path)
    options = "--seconds 0.01 --seeds 1 --part 4/5 --log".split()
    monkeypatch.setattr(sys, "argv", ["", *options, str(tmp_path / "log.csv")])
    reward_runs.main()
    log = pd.read_csv(tmp_path / "log.csv")
    assert log["method"].tolist() == ["policy gradient, orders"]
    assert log[["seed", "steps"]].values.tolist() == [[123, 10]]
    reward_runs.main()  # what the log has isn't made again
    assert len(pd.read_csv(tmp_path / "log.csv")) == 1
