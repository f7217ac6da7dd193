"""Chapter 5: OpenAI's files, whole and damaged; search; number formats.

pytest tests/test_weights.py
"""

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmark import in_own_process, load_measured
from notebook_cells import definitions_of
from random_checkpoint import SMALL, random_model, ship, write_random

import helpers
from helpers import (
    GPT2_CONFIGS,
    BPETokenizer,
    GPTModel,
    choose_gpt2,
    download_gpt2,
    generate_text_simple,
    get_tokenizer,
    load_gpt2,
    read_tokenizer,
)

MIRROR = Path(os.environ.get("COURSE_MIRROR") or "no mirror") / "gpt2" / "124M"
DATA, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
STORY = "the cat and the hat sat on the mat, and that was that. " * 9
TOKENIZER = BPETokenizer.train(STORY, 270, ["<|endoftext|>"])
TINY = {"vocab_size": 270, "context_length": 16, "emb_dim": 24, "n_heads": 3}
TINY |= {"n_layers": 2}
THE_DOG = [464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246]
THE_DOG += [286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]
NOTEBOOK = definitions_of("05_weight_loading")
pack_weight, unpack_weight = NOTEBOOK["pack_weight"], NOTEBOOK["unpack_weight"]
quantize = NOTEBOOK["quantize"]

needs_mirror = pytest.mark.skipif(not MIRROR.is_dir(), reason="needs OpenAI's index")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_random(tmp_path_factory.mktemp("good") / "tiny", TOKENIZER, **TINY)


@pytest.fixture
def folder(good, tmp_path):
    """A copy of a good folder, to be damaged; its name isn't ASCII."""
    return Path(shutil.copytree(good, tmp_path / "für alle 学习"))


# Loading


@needs_mirror
def test_names_and_shapes_are_those_of_openai():
    tf = helpers.import_tensorflow()
    real = tf.train.load_checkpoint(str(MIRROR / "model.ckpt"))
    with torch.device("meta"):
        model = GPTModel(GPT2_CONFIGS["124M"])
    tensors = {
        name: torch.cat([p.data for p in parameters])
        for name, parameters in helpers.gpt2_places(model).items()
    }
    shapes = {
        n: [1, *t.T.shape] if n[-1] == "w" else [*t.shape] for n, t in tensors.items()
    }
    assert shapes == real.get_variable_to_shape_map()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("size", GPT2_CONFIGS)
def test_logits_are_those_of_the_forward_pass_in_numpy(tmp_path, size, dtype):
    n_layers, n_heads = (GPT2_CONFIGS[size][key] for key in ("n_layers", "n_heads"))
    changes = TINY | {"n_layers": n_layers, "n_heads": n_heads, "emb_dim": 4 * n_heads}
    write_random(tmp_path / size, TOKENIZER, dtype, **changes)
    model, tokenizer = load_gpt2(tmp_path / size)
    checkpoint = str(tmp_path / size / "model.ckpt")
    reader = helpers.import_tensorflow().train.load_checkpoint(checkpoint)
    ids = list(range(3, 200, 13))
    theirs = NOTEBOOK["numpy_logits"](ids, reader, n_layers, n_heads)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0].numpy()  # (T, V)
    assert np.abs(ours - theirs).max() < 1e-4 < theirs.std()
    assert model.out_head.weight is model.tok_emb.weight and not model.training
    assert all(p.is_contiguous() for p in model.parameters())
    assert tokenizer.n_vocab == 270
    text = "the mat<|endoftext|>学习"
    ids = tokenizer.encode(text, allowed_special="all")
    assert ids == TOKENIZER.encode(text, "all") and tokenizer.decode(ids) == text


def test_loading_needs_little_more_memory_than_the_model(tmp_path, capfd):
    """As wide as 124M and a third as deep; `benchmark.py --only load` has all of it."""
    wide = TINY | {"emb_dim": 768, "n_heads": 12, "n_layers": 4}
    write_random(tmp_path / "tiny", TOKENIZER, **TINY)
    write_random(tmp_path / "wide", TOKENIZER, **wide)
    capfd.readouterr()
    folders = tmp_path / "tiny", tmp_path / "wide"
    _, used, size = in_own_process(load_measured, *folders)
    assert used is None or used < 1.4 * size  # Windows doesn't tell
    assert capfd.readouterr().err == "", "TensorFlow's greetings"


@needs_mirror
def test_the_folder_brings_gpt2s_tokenizer():
    ours, gpt2 = read_tokenizer(MIRROR), get_tokenizer()
    for text in ("The dog was found in a field", "naïve — 日本語 🙂", " \n\t x  y"):
        assert ours.encode(text) == gpt2.encode(text)
    assert ours.n_vocab == gpt2.n_vocab == 50257


def real_124M():
    for place in (helpers.DOWNLOADS / "gpt2" / "124M", MIRROR):
        if (place / DATA).is_file():
            return place
    return None


@pytest.mark.skipif(real_124M() is None, reason="needs OpenAI's weights of GPT-2 124M")
def test_the_real_124M_writes_its_known_text():
    model, tokenizer = load_gpt2(real_124M())
    ids = generate_text_simple(model, torch.tensor([THE_DOG[:2]]), 18, 1024)
    assert ids[0].tolist() == THE_DOG
    assert tokenizer.encode("The dog") == THE_DOG[:2]


def test_the_writer_refuses_what_16_bits_cannot_hold(tmp_path):
    model = random_model(**TINY)
    model.trf_blocks[1].ff.layers[2].weight.data[3, 5] = 7e4
    with pytest.raises(ValueError, match="h1/mlp/c_proj/w.*float16"):
        ship.write_gpt2_checkpoint(tmp_path / "tiny", model, TOKENIZER, "float16")
    assert os.listdir(tmp_path) == []


# Damaged folders


def change(name, action):
    def damage(folder):
        (folder / name).write_bytes(action((folder / name).read_bytes()))

    return damage


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def hparams(**new):
    return change("hparams.json", lambda d: json.dumps(json.loads(d) | new).encode())


FAULTS = {
    "hparams cut": (change("hparams.json", lambda d: d[:20]), "hparams.json"),
    "other hparams": (change("hparams.json", lambda d: b'{"d_model": 8}'), "n_vocab"),
    "no hparams": (lambda f: (f / "hparams.json").unlink(), "hparams.json"),
    "huge": (hparams(n_embd=10**18), "hparams.json"),
    "wider": (hparams(n_embd=48), "model/wte"),
    "larger vocabulary": (hparams(n_vocab=271), "encoder.json.*270.*271"),
    "more layers": (hparams(n_layer=3), "model/h2"),
    "fewer layers": (hparams(n_layer=1), "model/h1"),
    "no index": (lambda f: (f / INDEX).unlink(), INDEX),
    "index a page": (change(INDEX, lambda d: b"<html></html>" * 40), INDEX),
    "no data": (lambda f: (f / DATA).unlink(), DATA),
    "data cut": (change(DATA, lambda d: d[:-4]), "model/h1/ln_2/b"),
    "first bit": (change(DATA, lambda d: flip(d, 0)), "model/wte is damaged"),
    "last bit": (change(DATA, lambda d: flip(d, len(d) - 1)), "h1/ln_2/b is damaged"),
    "tokenizer cut": (change("encoder.json", lambda d: d[:-9]), "encoder.json"),
    "other tokenizer": (
        lambda f: shutil.copy(helpers.DATA / "gpt2-mini" / "encoder.json", f),
        "encoder.json.*8192.*270",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_folder_is_refused_by_name(folder, fault):
    damage, words = FAULTS[fault]
    damage(folder)
    with pytest.raises(ValueError, match=words):
        load_gpt2(folder)


def test_the_undamaged_folder_is_loaded(folder):
    load_gpt2(folder)


@needs_mirror
def test_openais_index_beside_a_short_data_file(folder):
    for name in ("hparams.json", INDEX, "encoder.json"):
        shutil.copy(MIRROR / name, folder)
    with pytest.raises(ValueError, match="model/wte is damaged, or of another model"):
        load_gpt2(folder)


def test_a_missing_folder_is_named():
    with pytest.raises(FileNotFoundError, match="125M is neither.*'124M'.*'1558M'"):
        load_gpt2("125M")


# Choosing and downloading


@pytest.fixture
def course(good, tmp_path, monkeypatch):
    """Let "124M" be the tiny folder, in the mirror, with nothing downloaded."""
    files = {}
    for path in good.iterdir():
        known = {"urls": [], "bytes": path.stat().st_size, "sha256": None}
        files[f"gpt2/124M/{path.name}"] = known
    shutil.copytree(good, tmp_path / "mirror" / "gpt2" / "124M")
    monkeypatch.setattr(helpers, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(helpers, "FILES", files)
    monkeypatch.setenv("COURSE_MIRROR", str(tmp_path / "mirror"))
    for name in ("COURSE_OFFLINE", "COURSE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_size_is_downloaded_once(course):
    model, _ = load_gpt2("124M")
    assert model.cfg["emb_dim"] == 24
    shutil.rmtree(course / "mirror")
    assert download_gpt2("124M") == course / "downloads" / "gpt2" / "124M"
    load_gpt2("124M")


def test_an_incomplete_file_is_removed(course, capsys):
    path = course / "mirror" / "gpt2" / "124M" / DATA
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(OSError, match=f"{DATA} was incomplete"):
        download_gpt2("124M")
    assert choose_gpt2("124M") == helpers.DATA / "gpt2-mini"
    assert "so gpt2-mini is used" in capsys.readouterr().out
    path.write_bytes(whole)
    load_gpt2("124M")


def test_course_model_chooses(course, good, monkeypatch, capsys):
    monkeypatch.setattr(helpers, "pick_device", lambda: torch.device("cpu"))
    assert choose_gpt2() == helpers.DATA / "gpt2-mini"
    assert capsys.readouterr().out.startswith("The model is gpt2-mini. COURSE_MODEL")
    monkeypatch.setattr(helpers, "pick_device", lambda: torch.device("cuda"))
    assert choose_gpt2() == course / "downloads" / "gpt2" / "124M"
    for name, place in {"gpt2-mini": helpers.DATA / "gpt2-mini", good: good}.items():
        monkeypatch.setenv("COURSE_MODEL", str(name))
        assert choose_gpt2() == place
    shutil.rmtree(course / "mirror")
    shutil.rmtree(course / "downloads")
    assert choose_gpt2("124M") == helpers.DATA / "gpt2-mini"


def test_the_table_of_files_agrees_with_the_models():
    for size, config in GPT2_CONFIGS.items():
        with torch.device("meta"):
            n = sum(p.numel() for p in GPTModel(config).parameters())
        assert helpers.FILES[f"gpt2/{size}/{DATA}"]["bytes"] == 4 * n


# Search


@pytest.mark.parametrize("width", [1, 3])
def test_a_narrow_beam_past_the_context(width):
    model = random_model(**TINY | {"context_length": 6})
    start = torch.tensor([[1, 2, 3]])
    found, scores = NOTEBOOK["beam_search"](model, start, 8, 6, width)
    assert found.shape == (width, 11) and scores.diff().le(0).all()
    total = 0.0
    for end in range(3, 11):
        with torch.no_grad():
            logits = model(found[:1, max(0, end - 6) : end])[0, -1]
        total += logits.log_softmax(dim=-1)[found[0, end]]
    torch.testing.assert_close(scores[0], total)
    if width == 1:
        assert torch.equal(found, generate_text_simple(model, start, 8, 6))


# Number formats


@pytest.mark.parametrize("fmt, steps", {"bfloat16": 1, "int8": 1, "int4": 4}.items())
def test_packing(fmt, steps):
    torch.manual_seed(123)
    weight = torch.randn(12, 96) * torch.logspace(-3, 2, 12)[:, None]
    weight[5] = 0
    q, scale = pack_weight(weight, fmt)
    size = {"bfloat16": 2, "int8": 1, "int4": 0.5}[fmt]
    assert q.numel() * q.element_size() == size * weight.numel()
    again = unpack_weight(q, scale, torch.float32)
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert ((again - weight).abs() <= steps * largest / 200).all() or fmt == "int4"
    assert ((again - weight).abs() <= largest / 13).all()
    assert torch.equal(unpack_weight(q[3:5], scale[3:5], torch.float32), again[3:5])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("fmt", ["bfloat16", "int8", "int4"])
def test_all_paths_of_a_quantized_model_agree(fmt, tied):
    model = random_model(**SMALL | {"vocab_size": 300, "tie_weights": tied})
    rounded = copy.deepcopy(model)
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Linear):
            weight = unpack_weight(*pack_weight(part.weight.data, fmt), torch.float32)
            rounded.get_submodule(name).weight.data.copy_(weight)
    quantize(model, fmt, only_if_faster=False)
    assert not any(isinstance(part, torch.nn.Linear) for part in model.modules())
    ids = torch.randint(0, 300, (2, 40))
    with torch.no_grad():
        for length in (1, 4, 40):
            ours, exact = model(ids[:, :length]), rounded(ids[:, :length])
            assert (ours - exact).abs().max() < 0.03 * exact.std() + 0.02
    generate_text_simple(model, ids, 5, 128)


def test_eight_bits_cost_no_loss():
    model, tokenizer = load_gpt2("gpt2-mini")
    text = (helpers.DATA / "the-ferryman.txt").read_text(encoding="utf-8")
    ids = torch.tensor([tokenizer.encode(text)[:257]])

    def loss(model):
        with torch.no_grad():
            return F.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:]).item()

    before = loss(model)
    assert abs(loss(quantize(model, "int8", only_if_faster=False)) - before) < 0.01


def test_a_format_that_is_not_faster_is_left(monkeypatch, capsys):
    model = random_model(**SMALL | {"vocab_size": 300})
    parts = dict(model.named_modules())
    times = iter([1.0, 2.0, 1.0, 0.5])
    monkeypatch.setattr("timeit.repeat", lambda *_, **__: [next(times)])
    assert dict(quantize(model, "int8").named_modules()) == parts
    assert model.out_head.weight is model.tok_emb.weight
    assert "isn't faster here" in capsys.readouterr().out
    assert dict(quantize(model, "int8").named_modules()) != parts
