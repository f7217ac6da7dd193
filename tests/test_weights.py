"""Weights in OpenAI's format: reading, writing, downloading, and every fault of them.

Run it with `python -m pytest tests/test_weights.py`. Checkpoints are written here by
TensorFlow, under names that are spelled out below and compared with OpenAI's own index
where the mirror has it; the witness of the results is a forward pass in TensorFlow.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import helpers
from helpers import (
    GPT2_CONFIGS,
    GPT2_NAMES,
    BPETokenizer,
    GPTModel,
    choose_gpt2,
    download_gpt2,
    generate_text_simple,
    get_tokenizer,
    load_gpt2,
    read_bpe_files,
    read_gpt2_checkpoint,
    to_tiktoken,
    write_bpe_files,
    write_gpt2_checkpoint,
)

ROOT = Path(helpers.__file__).parent
MIRROR = Path(os.environ.get("COURSE_MIRROR") or "no mirror") / "gpt2" / "124M"
DATA_FILE, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
STORY = "the cat and the hat sat on the mat, and that was that. " * 9
TOKENIZER = BPETokenizer.train(STORY, 270, ["<|endoftext|>"])
TINY = GPT2_CONFIGS["124M"] | {
    "vocab_size": 270,
    "context_length": 16,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
}
THE_DOG = [464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246]
THE_DOG += [286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]


def tf():
    return helpers.import_tensorflow()


# ---------------------------------------------------------------- the witness


def openai_shapes(config):
    """List the tensors of OpenAI's files, as its own program names and shapes them."""
    V, T, C = (config[k] for k in ("vocab_size", "context_length", "emb_dim"))
    shapes = {"wte": [V, C], "wpe": [T, C], "ln_f/g": [C], "ln_f/b": [C]}
    for i in range(config["n_layers"]):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h{i}/{norm}/g": [C], f"h{i}/{norm}/b": [C]}
        for name, n_in, n_out in (
            ("attn/c_attn", C, 3 * C),
            ("attn/c_proj", C, C),
            ("mlp/c_fc", C, 4 * C),
            ("mlp/c_proj", 4 * C, C),
        ):
            shapes[f"h{i}/{name}/w"] = [1, n_in, n_out]
            shapes[f"h{i}/{name}/b"] = [n_out]
    return {f"model/{name}": shape for name, shape in shapes.items()}


def random_tensors(config, dtype="float32"):
    """Draw values of a size that leaves each part of the model its say."""
    pool = np.random.default_rng(123).normal(0, 0.05, 500_009).astype(dtype)
    tensors = {}
    for i, (name, shape) in enumerate(openai_shapes(config).items()):
        tensors[name] = np.resize(np.roll(pool, 997 * i), shape)
        if name.endswith("/g"):
            tensors[name] += 1
    return tensors


def save(folder, config, tensors, tokenizer=TOKENIZER):
    """Write a folder as OpenAI did; nothing of the course's writer is used."""
    if tokenizer is not None:
        write_bpe_files(folder, tokenizer)
    else:
        folder.mkdir(parents=True)
    n = [config[k] for k in helpers.HPARAMS.values()]
    names = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
    hparams = json.dumps(dict(zip(names, n, strict=True)))
    (folder / "hparams.json").write_text(hparams, encoding="utf-8")
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    tf().raw_ops.SaveV2(
        prefix=str(folder / "model.ckpt"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    return folder


def forward(folder, ids, n_head):
    """Compute logits from a folder with TensorFlow's operations: the witness."""
    t, reader = tf(), tf().train.load_checkpoint(str(folder / "model.ckpt"))

    def get(name):
        return t.cast(t.constant(reader.get_tensor(f"model/{name}")), t.float32)

    def norm(x, name):
        mean = t.reduce_mean(x, -1, keepdims=True)
        variance = t.reduce_mean(t.square(x - mean), -1, keepdims=True)
        x = (x - mean) / t.sqrt(variance + 1e-5)
        return x * get(f"{name}/g") + get(f"{name}/b")

    def linear(x, name):
        return t.matmul(x, get(f"{name}/w")[0]) + get(f"{name}/b")

    def heads(x):
        T, C = x.shape
        return t.transpose(t.reshape(x, (T, n_head, C // n_head)), (1, 0, 2))

    def attention(x, name):
        q, k, v = (heads(part) for part in t.split(linear(x, f"{name}/c_attn"), 3, -1))
        scores = t.matmul(q, k, transpose_b=True) / float(q.shape[-1]) ** 0.5
        past = t.linalg.band_part(t.ones(scores.shape[1:]), -1, 0)
        weights = t.nn.softmax(scores * past - 1e10 * (1 - past))
        context = t.transpose(t.matmul(weights, v), (1, 0, 2))
        return linear(t.reshape(context, x.shape), f"{name}/c_proj")

    def gelu(x):
        return 0.5 * x * (1 + t.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))

    x = t.gather(get("wte"), ids) + get("wpe")[: len(ids)]
    n_layers = sum(
        name.endswith("ln_1/g") for name in reader.get_variable_to_shape_map()
    )
    for i in range(n_layers):
        x = x + attention(norm(x, f"h{i}/ln_1"), f"h{i}/attn")
        wide = gelu(linear(norm(x, f"h{i}/ln_2"), f"h{i}/mlp/c_fc"))
        x = x + linear(wide, f"h{i}/mlp/c_proj")
    return t.matmul(norm(x, "ln_f"), get("wte"), transpose_b=True).numpy()


def assert_same_logits(folder, config, ids):
    model, tokenizer = load_gpt2(folder)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0].numpy()  # (T, V)
    theirs = forward(folder, ids, config["n_heads"])
    assert np.abs(ours - theirs).max() < 1e-4
    assert theirs.std() > 0.1  # there is something to compare
    assert model.out_head.weight is model.tok_emb.weight
    assert not model.training and tokenizer.n_vocab == config["vocab_size"]


# ---------------------------------------------------------------- OpenAI's shapes


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A folder with random values, as wide as GPT-2 124M and a quarter as deep."""
    folder = tmp_path_factory.mktemp("full") / "124M"
    config = GPT2_CONFIGS["124M"] | {"n_layers": 3}
    save(folder, config, random_tensors(config), tokenizer=None)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not MIRROR.is_dir(), reason="needs the mirror's model.ckpt.index")
def test_names_and_shapes_are_those_of_openai():
    config = GPT2_CONFIGS["124M"]
    reader = tf().train.load_checkpoint(str(MIRROR / "model.ckpt"))
    real = reader.get_variable_to_shape_map()
    assert openai_shapes(config) == real
    with torch.device("meta"):
        places = helpers.gpt2_places(GPTModel(config))
    ours = {k: list(helpers.join_parameters(k, p).shape) for k, p in places.items()}
    assert ours == real


def test_full_width_gives_the_logits_of_tensorflow(full, monkeypatch):
    monkeypatch.setattr(helpers, "read_bpe_files", lambda folder: None)
    monkeypatch.setattr(helpers, "to_tiktoken", lambda *_: get_tokenizer("gpt2"))
    assert_same_logits(full, GPT2_CONFIGS["124M"], [*range(0, 50257, 8000), 50256])


PEAK = """
import sys, helpers
assert "tensorflow" not in sys.modules  # importing helpers must stay quick
from helpers import *

def kilobytes(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))

torch.set_num_threads(1)
tokenizer = get_tokenizer("gpt2")
helpers.read_bpe_files = helpers.to_tiktoken = lambda *_: tokenizer
load_gpt2(sys.argv[1])  # a tiny one, so that everything is imported
before = kilobytes("VmRSS")
model, _ = load_gpt2(sys.argv[2])
size = sum(p.numel() * p.element_size() for p in model.parameters())
print((kilobytes("VmHWM") - before) * 1024 / size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_loading_needs_little_more_memory_than_the_model(full, tmp_path):
    config = TINY | {"vocab_size": 50257}
    tiny = save(tmp_path / "tiny", config, random_tensors(config), tokenizer=None)
    command = [sys.executable, "-c", PEAK, tiny, full]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "absl" not in run.stderr  # TensorFlow's greetings
    print(f"peak: {float(run.stdout):.2f} times the model")
    assert float(run.stdout) < 1.4


ASCII = """
import sys, torch
from helpers import load_gpt2, write_gpt2_checkpoint, read_bpe_files
assert sys.getfilesystemencoding() != "utf-8"
model, _ = load_gpt2(sys.argv[1])
write_gpt2_checkpoint(sys.argv[1] + "-again", model, read_bpe_files(sys.argv[1]))
again, _ = load_gpt2(sys.argv[1] + "-again")
assert all(map(torch.equal, model.parameters(), again.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_a_path_that_the_systems_encoding_does_not_have(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "für alle 学习" / "tiny")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", ASCII, os.fsencode(folder)]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | plain, capture_output=True, timeout=120
    )
    assert run.returncode == 0, run.stderr.decode()


@pytest.mark.parametrize(
    ("size", "dtype"),
    [("124M", "float16"), *((size, "float32") for size in GPT2_CONFIGS)],
)
def test_all_sizes_at_reduced_width(tmp_path, size, dtype):
    real = GPT2_CONFIGS[size]
    small = {k: TINY[k] for k in ("vocab_size", "context_length")}
    config = real | small | {"emb_dim": 4 * real["n_heads"]}
    tensors = random_tensors(config, dtype)
    save(tmp_path / size, config, tensors)
    assert read_gpt2_checkpoint(tmp_path / size)[0] == config
    assert_same_logits(tmp_path / size, config, list(range(3, 200, 13)))


def real_124M():
    for folder in (helpers.DOWNLOADS / "gpt2" / "124M", MIRROR):
        if all((folder / name).is_file() for name in GPT2_NAMES):
            return folder
    return None


@pytest.mark.skipif(real_124M() is None, reason="needs OpenAI's weights of GPT-2 124M")
def test_the_real_124M_writes_its_known_text():
    model, tokenizer = load_gpt2(real_124M())
    ids = generate_text_simple(model, torch.tensor([THE_DOG[:2]]), 18, 1024)
    assert ids[0].tolist() == THE_DOG
    assert tokenizer.encode("The dog") == THE_DOG[:2]


@pytest.mark.skipif(not MIRROR.is_dir(), reason="needs the mirror's tokenizer files")
def test_the_folder_brings_gpt2s_tokenizer():
    ours, gpt2 = to_tiktoken(read_bpe_files(MIRROR)), get_tokenizer("gpt2")
    for text in ("The dog was found in a field", "naïve — 日本語 🙂", " \n\t x  y"):
        assert ours.encode(text) == gpt2.encode(text)
    assert ours.n_vocab == gpt2.n_vocab == 50257


# ---------------------------------------------------------------- round trips


def tiny_model(seed=1, **changes):
    torch.manual_seed(seed)
    return GPTModel(TINY | changes)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_read(tmp_path, dtype):
    model = tiny_model()
    write_gpt2_checkpoint(tmp_path / "tiny", model, TOKENIZER, dtype)
    assert os.listdir(tmp_path) == ["tiny"]
    assert sorted(os.listdir(tmp_path / "tiny")) == sorted(GPT2_NAMES)
    again, tokenizer = load_gpt2(tmp_path / "tiny")
    expected = model.state_dict()
    for name, tensor in again.state_dict().items():
        as_stored = expected[name].to(getattr(torch, dtype)).float()
        assert torch.equal(tensor, as_stored), name
        assert tensor.is_contiguous() and tensor.dtype == torch.float32
    assert tokenizer.encode(STORY) == TOKENIZER.encode(STORY)
    size = sum(p.numel() for p in model.parameters()) * np.dtype(dtype).itemsize
    assert (tmp_path / "tiny" / DATA_FILE).stat().st_size == size


def test_writing_what_was_read_gives_the_same_files(tmp_path):
    save(tmp_path / "a", TINY, random_tensors(TINY))
    model, _ = load_gpt2(tmp_path / "a")
    write_gpt2_checkpoint(tmp_path / "b", model, read_bpe_files(tmp_path / "a"))
    a, b = contents(tmp_path / "a"), contents(tmp_path / "b")
    for name in ("vocab.bpe", "encoder.json"):
        assert a[name] == b[name], name
    assert json.loads(a["hparams.json"]) == json.loads(b["hparams.json"])
    readers = [
        tf().train.load_checkpoint(str(tmp_path / x / "model.ckpt")) for x in "ab"
    ]
    for name, shape in openai_shapes(TINY).items():
        first, second = (reader.get_tensor(name) for reader in readers)
        assert list(second.shape) == shape and second.dtype == np.float32
        assert first.tobytes() == second.tobytes(), name
    assert len(readers[1].get_variable_to_shape_map()) == len(openai_shapes(TINY))


@pytest.mark.skipif(not MIRROR.is_dir(), reason="needs the mirror's small files")
def test_the_small_files_are_written_as_openai_did(tmp_path):
    theirs = contents(MIRROR)
    assert theirs["checkpoint"].startswith(helpers.GPT2_STATE)
    config, hparams = GPT2_CONFIGS["124M"], json.loads(theirs["hparams.json"])
    assert hparams == {t: config[o] for t, o in helpers.HPARAMS.items()}
    write_gpt2_checkpoint(tmp_path / "tiny", tiny_model(), TOKENIZER)
    found = tf().train.latest_checkpoint(str(tmp_path / "tiny"))
    assert Path(found) == tmp_path / "tiny" / "model.ckpt"  # by the file checkpoint
    ours = contents(tmp_path / "tiny")["hparams.json"]
    assert list(json.loads(ours)) == list(hparams)
    assert ours.split(b"\n")[0::6] == theirs["hparams.json"].split(b"\n")[0::6]


def test_tensors_come_one_at_a_time_largest_first(tmp_path):
    tensors = random_tensors(TINY, "float16")
    config, stream = read_gpt2_checkpoint(save(tmp_path / "a", TINY, tensors))
    assert config == TINY and iter(stream) is stream
    sizes = []
    for name, array in stream:
        assert array.dtype == np.float32 and list(array.shape) == [*tensors[name].shape]
        assert np.array_equal(array, tensors[name].astype(np.float32))
        sizes.append(array.size)
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == len(tensors)


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "card.md").write_text("kept")
    for seed in (1, 2):
        write_gpt2_checkpoint(tmp_path / "tiny", tiny_model(seed), TOKENIZER)
    assert set(os.listdir(tmp_path / "tiny")) == {*GPT2_NAMES, "card.md"}
    model, _ = load_gpt2(str(tmp_path / "tiny"))
    assert torch.equal(model.pos_emb.weight, tiny_model(2).pos_emb.weight)


# ---------------------------------------------------------------- refused to write


def untied():
    model = tiny_model(tie_weights=False)
    return model, TOKENIZER, "float32"


def classifier():
    model = tiny_model()
    model.out_head = torch.nn.Linear(24, 2)
    return model, TOKENIZER, "float32"


def with_lora():
    model = tiny_model()
    helpers.replace_linear_with_lora(model.trf_blocks, rank=2, alpha=4)
    return model, TOKENIZER, "float32"


def too_large(value, dtype):
    model = tiny_model()
    model.trf_blocks[1].ff.layers[2].weight.data[3, 5] = value
    return model, TOKENIZER, dtype


REFUSED = {
    "untied": (untied, "head of its own.*save_checkpoint"),
    "classifier": (classifier, "head of its own"),
    "no biases": (
        lambda: (tiny_model(qkv_bias=False), TOKENIZER, "float32"),
        "qkv_bias=False",
    ),
    "tokenizer": (
        lambda: (tiny_model(), BPETokenizer(), "float32"),
        "256 entries.*270",
    ),
    "encoding": (
        lambda: (tiny_model(), to_tiktoken(TOKENIZER), "float32"),
        "BPETokenizer",
    ),
    "LoRA": (with_lora, "merge_lora"),
    "no model": (lambda: (None, TOKENIZER, "float32"), "a NoneType.*a GPTModel"),
    "dtype": (lambda: (tiny_model(), TOKENIZER, "bfloat16"), "'bfloat16'.*'float16'"),
    "overflow": (lambda: too_large(7e4, "float16"), "h1/mlp/c_proj/w.*float16.*65504"),
    "nan": (lambda: too_large(float("nan"), "float32"), "h1/mlp/c_proj/w"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_the_format_cannot_hold_is_refused(tmp_path, fault):
    make, words = REFUSED[fault]
    with pytest.raises(ValueError, match=words):
        write_gpt2_checkpoint(tmp_path / "tiny", *make())
    assert os.listdir(tmp_path) == []


def test_an_untied_head_with_equal_weights_is_written(tmp_path):
    model, tokenizer, dtype = untied()
    model.out_head.weight.data.copy_(model.tok_emb.weight.data)
    write_gpt2_checkpoint(tmp_path / "tiny", model, tokenizer, dtype)
    again, _ = load_gpt2(tmp_path / "tiny")
    ids = torch.arange(10)[None]
    assert torch.allclose(again(ids), model.eval()(ids), atol=1e-5)


# ---------------------------------------------------------------- interrupted writing


@contextmanager
def full_disk(n_bytes):
    """Let no file of this process grow beyond `n_bytes`."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [100, 3000, 50_000])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, n_bytes):
    write_gpt2_checkpoint(tmp_path / "tiny", tiny_model(1), TOKENIZER)
    old = contents(tmp_path / "tiny")
    with full_disk(n_bytes), pytest.raises(OSError, match="."):
        write_gpt2_checkpoint(tmp_path / "tiny", tiny_model(2), TOKENIZER)
    assert contents(tmp_path / "tiny") == old
    assert os.listdir(tmp_path) == ["tiny"]


def test_a_full_disk_leaves_no_new_folder(tmp_path):
    with full_disk(50_000), pytest.raises(OSError, match="tiny can't be written"):
        write_gpt2_checkpoint(tmp_path / "tiny", tiny_model(), TOKENIZER)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("after", range(len(GPT2_NAMES) + 1))
def test_a_power_cut_between_renames_leaves_no_mixture(tmp_path, monkeypatch, after):
    write_gpt2_checkpoint(tmp_path / "tiny", tiny_model(1), TOKENIZER)
    old, replace, moved = contents(tmp_path / "tiny"), os.replace, []

    def cut(source, target):
        if Path(target).parent == tmp_path / "tiny":
            if len(moved) == after:
                raise KeyboardInterrupt
            moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    if after < len(GPT2_NAMES):
        with pytest.raises(KeyboardInterrupt):
            write_gpt2_checkpoint(tmp_path / "tiny", tiny_model(2), TOKENIZER)
        with pytest.raises(FileNotFoundError, match=INDEX):
            load_gpt2(tmp_path / "tiny")
    else:
        write_gpt2_checkpoint(tmp_path / "tiny", tiny_model(2), TOKENIZER)
        model, _ = load_gpt2(tmp_path / "tiny")
        assert torch.equal(model.pos_emb.weight, tiny_model(2).pos_emb.weight)
        assert contents(tmp_path / "tiny") != old
    assert os.listdir(tmp_path) == ["tiny"]


# ---------------------------------------------------------------- damaged folders


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return save(tmp_path_factory.mktemp("good") / "tiny", TINY, random_tensors(TINY))


@pytest.fixture
def folder(good, tmp_path):
    """A copy of a good folder, to be damaged."""
    return Path(shutil.copytree(good, tmp_path / "tiny"))


def change(name, action):
    def damage(folder):
        (folder / name).write_bytes(action((folder / name).read_bytes()))

    return damage


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def hparams(**changes):
    return change(
        "hparams.json", lambda d: json.dumps(json.loads(d) | changes).encode()
    )


def hparams_are(content):
    return change("hparams.json", lambda d: content)


def tensors(action):
    """Save the folder's tensors again after `action` changed the dictionary."""

    def damage(folder):
        changed = random_tensors(TINY)
        action(changed)
        shutil.rmtree(folder)
        save(folder, TINY, changed)

    return damage


def reshape(name, shape):
    return tensors(lambda t: t.update({name: t[name].reshape(shape)}))


FAULTS = {
    "no hparams": (lambda f: (f / "hparams.json").unlink(), "no hparams.json"),
    "hparams cut": (change("hparams.json", lambda d: d[:20]), "hparams.json"),
    "hparams a page": (change("hparams.json", lambda d: b"<html>"), "hparams.json"),
    "hparams a list": (change("hparams.json", lambda d: b"[1, 2]"), "hparams.json"),
    "other hparams": (change("hparams.json", lambda d: b'{"d_model": 8}'), "n_vocab"),
    "a further key": (hparams(n_inner=96), "n_inner"),
    "a string": (hparams(n_layer="2"), "hparams.json.*n_layers='2'"),
    "negative": (hparams(n_ctx=-16), "hparams.json.*context_length=-16"),
    "zero": (hparams(n_head=0), "hparams.json.*n_heads=0"),
    "not a number": (hparams(n_embd=float("nan")), "hparams.json.*emb_dim=nan"),
    "infinite": (change("hparams.json", lambda d: d.replace(b"16", b"1e999")), "=inf"),
    "a fraction": (hparams(n_vocab=270.0), "hparams.json.*vocab_size=270.0"),
    "null": (hparams(n_vocab=None), "hparams.json.*vocab_size=None"),
    "huge": (hparams(n_vocab=10**18), "model/h0.*by hparams.json"),
    "beyond 64 bits": (hparams(n_ctx=10**30), "model/h0.*by hparams.json"),
    "too many digits": (hparams_are(b'{"n_ctx": %s}' % (b"9" * 5000)), "hparams.json"),
    "nested": (hparams_are(b"[" * 100_000), "hparams.json.*recursion"),
    "twice": (
        change("hparams.json", lambda d: d[:-1] + b', "n_vocab": 9}'),
        r"model/wte.*\[270, 24\].*\[9, 24\]",
    ),
    "UTF-16": (
        change("hparams.json", lambda d: d.decode().encode("utf-16")),
        "hparams.json.*decode",
    ),
    "width and heads": (hparams(n_head=5), "hparams.json.*divisible"),
    "wider": (hparams(n_embd=48), r"model/h0/attn/c_attn/b.*\[72\].*\[144\]"),
    "larger vocabulary": (hparams(n_vocab=271), r"model/wte.*\[270, 24\].*\[271, 24\]"),
    "more layers": (hparams(n_layer=3), "model/h2.*None"),
    "fewer layers": (hparams(n_layer=1), "model/h1.*None"),
    "endless layers": (hparams(n_layer=10**9), "hparams.json"),
    "index cut": (change(INDEX, lambda d: d[:-30]), "model.ckpt.index is damaged"),
    "index a page": (change(INDEX, lambda d: b"<html></html>" * 40), INDEX),
    "index flipped": (change(INDEX, lambda d: flip(d, 40)), INDEX),
    "data cut": (change(DATA_FILE, lambda d: d[:-4]), DATA_FILE + " has"),
    "data empty": (change(DATA_FILE, lambda d: b""), DATA_FILE + " has 0 bytes"),
    "data too long": (change(DATA_FILE, lambda d: d + b"1234"), DATA_FILE + " has"),
    "first bit": (change(DATA_FILE, lambda d: flip(d, 0)), "model/wte is damaged"),
    "last bit": (
        change(DATA_FILE, lambda d: flip(d, len(d) - 1)),
        "h1/mlp/c_proj/b is dam",
    ),
    "missing": (
        tensors(lambda t: t.pop("model/h1/ln_2/g")),
        r"model/h1/ln_2/g has the shape None.*\[24\]",
    ),
    "unexpected": (
        tensors(lambda t: t.update({"model/head": t["model/wte"]})),
        r"model/head.*\[270, 24\].*None",
    ),
    "misshapen": (reshape("model/h1/mlp/c_fc/w", [1, 96, 24]), "model/h1/mlp/c_fc/w"),
    "two dimensions": (reshape("model/h0/attn/c_proj/w", [24, 24]), "h0/attn/c_proj/w"),
    "doubles": (
        tensors(lambda t: t.update({"model/wpe": t["model/wpe"].astype("float64")})),
        "model/wpe is float64",
    ),
    "other tokenizer": (
        lambda f: write_bpe_files(f, BPETokenizer.train(STORY, 265)),
        "encoder.json.*265.*270",
    ),
    "nested tokenizer": (
        change("encoder.json", lambda d: b"[" * 10**5),
        "encoder.json",
    ),
    "tokenizer cut": (change("vocab.bpe", lambda d: d[:-9]), "vocab.bpe"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_refused_by_name(folder, fault):
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(ValueError, match=words):
        load_gpt2(folder)


def test_the_undamaged_folder_is_not_refused(folder):
    load_gpt2(folder)


RUNS_CODE = b"cos\nsystem\n(S'touch pickled'\ntR."
STATE_FILE = GPT2_NAMES[1]  # for TensorFlow's other readers: ours needs none


@pytest.mark.parametrize("name", GPT2_NAMES)
@pytest.mark.parametrize(
    "kind", ["nothing", "a page", "a pickle", "a loop", "a folder"]
)
def test_something_else_in_place_of_a_file(folder, monkeypatch, name, kind):
    monkeypatch.chdir(folder)
    contents = {"nothing": b"", "a page": b"<html>" * 99, "a pickle": RUNS_CODE}
    if kind in contents:
        (folder / name).write_bytes(contents[kind])
    else:
        (folder / name).unlink()
        os.symlink(name, name) if kind == "a loop" else (folder / name).mkdir()
    if name == STATE_FILE:
        load_gpt2(folder)
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=name):
            load_gpt2(Path("."))
    assert not (folder / "pickled").exists()


def test_a_folder_without_rights_is_named(folder, without_rights):
    place, as_nobody = without_rights
    shutil.copytree(folder, place / "tiny")
    (place / "tiny").chmod(0o700)
    for load in (load_gpt2, read_gpt2_checkpoint):
        said = as_nobody(lambda load=load: load(place / "tiny"))
        assert said.startswith("PermissionError") and "hparams.json" in said


@pytest.mark.parametrize("name", [n for n in GPT2_NAMES if n[:2] in ("mo", "vo", "en")])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_gpt2(folder)


def test_weights_of_one_model_with_the_index_of_another_are_refused(folder, tmp_path):
    write_gpt2_checkpoint(tmp_path / "other", tiny_model(), TOKENIZER)
    shutil.copy(tmp_path / "other" / DATA_FILE, folder)
    with pytest.raises(ValueError, match="is damaged"):
        load_gpt2(folder)


@pytest.mark.skipif(not MIRROR.is_dir(), reason="needs the mirror's model.ckpt.index")
def test_openais_index_without_its_weights(tmp_path):
    if not (MIRROR / DATA_FILE).exists():
        with pytest.raises(FileNotFoundError, match=DATA_FILE):
            load_gpt2(MIRROR)
    for path in MIRROR.iterdir():
        if path.name != DATA_FILE:
            shutil.copy(path, tmp_path)
    (tmp_path / DATA_FILE).write_bytes(b"made up")
    with pytest.raises(ValueError, match="has 7 bytes, expected 497,759,232"):
        load_gpt2(tmp_path)


@pytest.mark.parametrize("name", ["125M", "gpt2", "124m", "gpt2-maxi"])
def test_an_unknown_size_lists_the_known_ones(name):
    for function in (load_gpt2, choose_gpt2):
        with pytest.raises(ValueError, match=f"'{name}'.*'124M'.*'1558M'.*gpt2-mini"):
            function(name)
    with pytest.raises(ValueError, match=f"'{name}'.*'124M'"):
        download_gpt2(name)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    for function in (load_gpt2, choose_gpt2, read_gpt2_checkpoint):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            function(tmp_path / "nowhere")


# ---------------------------------------------------------------- downloads


class Handler(BaseHTTPRequestHandler):
    """Answer /MODE/124M/FILE out of the good folder: MODE says how to misbehave."""

    def do_GET(self):
        _, mode, size, name = self.path.split("/")
        self.server.asked.append((mode, name))
        body = (self.server.folder / name).read_bytes()
        length = len(body)
        if mode == "404" or size != "124M":
            self.send_error(404)
            return
        if mode == "page":
            body = b"<!DOCTYPE html><html>Log in</html>"
            length = len(body)
        elif mode == "altered":
            body = flip(body, len(body) // 2)
        elif mode in ("half", "half-said"):
            body = body[: len(body) // 2]
            length = len(body) if mode == "half-said" else length
        elif mode == "slow":
            threading.Event().wait(0.1)
        elif mode == "both" and name == DATA_FILE:
            self.server.both.wait(timeout=20)  # until there are two of them
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(good):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.folder, server.both = [], good, threading.Barrier(2)
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def facts(folder):
    found = contents(folder)
    return {
        name: (len(found[name]), hashlib.sha256(found[name]).hexdigest())
        for name in GPT2_NAMES
    }


@pytest.fixture
def course(good, tmp_path, monkeypatch):
    """Let "124M" be the good tiny folder, in empty downloads, without a mirror."""
    monkeypatch.setattr(helpers, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(helpers, "_said", set())
    monkeypatch.setitem(helpers.GPT2_FILES, "124M", facts(good))
    monkeypatch.setitem(helpers.GPT2_CONFIGS, "124M", TINY)
    monkeypatch.setattr(helpers, "GPT2_ADDRESSES", ("http://127.0.0.1:9",))
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("COURSE_MIRROR", "COURSE_OFFLINE", "COURSE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "downloads" / "gpt2" / "124M"


def serve(monkeypatch, server, *modes):
    addresses = tuple(f"{server.address}/{mode}" for mode in modes)
    monkeypatch.setattr(helpers, "GPT2_ADDRESSES", addresses)


def test_a_size_is_downloaded_and_loaded(course, server, good, monkeypatch):
    serve(monkeypatch, server, "good")
    model, tokenizer = load_gpt2("124M")
    assert model.cfg == TINY and tokenizer.n_vocab == 270
    assert contents(course) == {n: b for n, b in contents(good).items()}
    asked = len(server.asked)
    assert asked == len(GPT2_NAMES) and download_gpt2("124M") == course
    assert len(server.asked) == asked  # the second time nobody is asked


BROKEN = ["half", "half-said", "page", "altered", "404"]


@pytest.mark.parametrize("mode", BROKEN)
def test_a_broken_address_gives_way_to_the_backup(course, server, good, mode, capsys):
    with pytest.MonkeyPatch.context() as patch:
        serve(patch, server, mode, "good")
        assert download_gpt2("124M") == course
    assert contents(course) == contents(good)
    assert "trying the next source" in capsys.readouterr().out


@pytest.mark.parametrize("mode", BROKEN)
def test_without_a_good_address_nothing_is_left(course, server, mode, monkeypatch):
    serve(monkeypatch, server, mode)
    with pytest.raises(FileNotFoundError, match=f"124M.*{DATA_FILE}.*network"):
        download_gpt2("124M")
    assert list(course.iterdir()) == []
    assert {name for _, name in server.asked} == {DATA_FILE}  # the rest isn't tried


@pytest.mark.parametrize("mode", ["half", "page"])
def test_files_of_unknown_size_are_checked_too(course, server, monkeypatch, mode):
    monkeypatch.setitem(helpers.GPT2_FILES, "124M", {})
    serve(monkeypatch, server, mode, "good")
    assert helpers.gpt2_file("124M", INDEX).size is None
    load_gpt2("124M")


def test_without_a_network_the_course_takes_its_own(course, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match="124M can't be had"):
        load_gpt2("124M")
    assert choose_gpt2() == helpers.DATA / "gpt2-mini"
    assert choose_gpt2("124M") == helpers.DATA / "gpt2-mini"
    assert capsys.readouterr().out.count("gpt2-mini is used") == 1
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="COURSE_OFFLINE"):
        download_gpt2("124M")


def test_course_model_chooses(course, server, good, tmp_path, monkeypatch):
    serve(monkeypatch, server, "good")
    monkeypatch.setenv("COURSE_MODEL", str(good))
    assert choose_gpt2() == good and server.asked == []
    assert choose_gpt2("124M") == course
    monkeypatch.setattr(helpers, "DATA", tmp_path)
    (tmp_path / "gpt2-mini").mkdir()
    monkeypatch.setenv("COURSE_MODEL", "gpt2-mini")
    assert choose_gpt2() == tmp_path / "gpt2-mini"


def test_a_whole_mirror_is_used_where_it_is(
    course, server, good, tmp_path, monkeypatch
):
    serve(monkeypatch, server, "good")
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "mirror"))
    there = tmp_path / "mirror" / "gpt2" / "124M"
    shutil.copytree(good, there)
    assert download_gpt2("124M") == there
    (there / DATA_FILE).unlink()  # from here on a part comes from the network
    assert download_gpt2("124M") == course
    assert server.asked == [("good", DATA_FILE)]
    assert contents(course) == contents(good)


def test_a_mirror_may_be_an_address(course, server, good, monkeypatch):
    server.folder = good
    monkeypatch.setenv("COURSE_MIRROR", f"{server.address}/good")
    monkeypatch.setattr(Handler, "do_GET", through_gpt2(Handler.do_GET))
    assert download_gpt2("124M") == course
    assert contents(course) == contents(good)


def through_gpt2(do_get):
    def do(self):
        assert "/gpt2/" in self.path
        self.path = self.path.replace("/gpt2/", "/")
        do_get(self)

    return do


def test_a_damaged_download_is_replaced(course, server, good, monkeypatch, capsys):
    serve(monkeypatch, server, "good")
    shutil.copytree(good, course)
    change(DATA_FILE, lambda d: flip(d, 1000))(course)
    load_gpt2("124M")
    assert contents(course) == contents(good)
    assert "SHA-256" in capsys.readouterr().out


def test_the_folder_of_another_size_is_refused(course, good, tmp_path, monkeypatch):
    shutil.copytree(good, course)
    monkeypatch.setitem(helpers.GPT2_CONFIGS, "124M", TINY | {"n_heads": 4})
    with pytest.raises(ValueError, match="hparams.json in 124M is of another model"):
        load_gpt2("124M")


def test_a_disk_without_room_is_said_before_the_download(
    course, server, monkeypatch, capsys
):
    serve(monkeypatch, server, "good")
    usage = SimpleNamespace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="0 MB are free"):
        download_gpt2("124M")
    assert server.asked == []
    assert choose_gpt2("124M") == helpers.DATA / "gpt2-mini"
    assert "are needed" in capsys.readouterr().out


def test_a_disk_that_fills_up_stops_the_download(
    course, server, monkeypatch, full_disk
):
    serve(monkeypatch, server, "good", "slow")
    monkeypatch.setattr("pooch.downloaders.open", full_disk, raising=False)
    with pytest.raises(OSError, match="No space left"):
        download_gpt2("124M")
    assert list(course.iterdir()) == []
    assert server.asked == [("good", DATA_FILE)]  # no other address would help


def test_two_processes_download_at_once(course, server, good, monkeypatch, child):
    serve(monkeypatch, server, "both")
    both = [child(lambda: download_gpt2("124M").name) for _ in range(2)]
    assert [each.result() for each in both] == ["124M", "124M"]
    assert contents(course) == contents(good)
    assert server.asked.count(("both", DATA_FILE)) == 2


def test_the_table_of_files_agrees_with_the_models():
    for size, config in GPT2_CONFIGS.items():
        with torch.device("meta"):
            n = sum(p.numel() for p in GPTModel(config).parameters())
        assert helpers.gpt2_file(size, DATA_FILE).size == 4 * n
        for name in GPT2_NAMES:
            file = helpers.gpt2_file(size, name)
            assert all(url.startswith("https://") for url in file.urls)
            assert all(url.endswith(f"/{size}/{name}") for url in file.urls)
    assert helpers.gpt2_file("1558M", "vocab.bpe").size == 456_318


@pytest.mark.skipif(not MIRROR.is_dir(), reason="needs the mirror's small files")
def test_the_table_of_files_agrees_with_the_mirror():
    for name in GPT2_NAMES:
        if (MIRROR / name).exists():
            assert (
                helpers._fault(MIRROR / name, helpers.gpt2_file("124M", name)) is None
            )
