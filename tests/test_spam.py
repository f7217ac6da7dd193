"""Chapter 6: messages, batches, the classifier, LoRA.

Run it with: pytest tests/test_spam.py
"""

import copy

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from notebook_cells import definitions_of
from torch import nn
from torch.utils.data import DataLoader

import helpers
from helpers import (
    BPETokenizer,
    GPTModel,
    LengthBatches,
    SpamDataset,
    class_logits,
    classify_review,
    evaluate_classifier,
    fetch,
    merge_lora,
    random_split,
    real_lengths,
    replace_linear_with_lora,
    train_classifier,
)

NOTEBOOK = definitions_of("06_spam_finetuning")
TOKENIZER = BPETokenizer((), ["<|endoftext|>"])  # the 256 bytes
END = 256
TINY = {"vocab_size": 257, "context_length": 48, "emb_dim": 16, "n_heads": 2}
TINY |= {"n_layers": 3, "drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
FLOAT32 = {"precision": torch.float32}


@pytest.fixture(autouse=True)
def no_progress_bars(monkeypatch):
    monkeypatch.setattr(helpers, "tqdm", lambda steps, **_: steps)


def classifier(classes=2, seed=1, **changes):
    """Return a tiny classifier whose last block, last norm and head learn."""
    torch.manual_seed(seed)
    model = GPTModel(TINY | changes).requires_grad_(False)
    model.out_head = nn.Linear(model.cfg["emb_dim"], classes)
    model.trf_blocks[-1].requires_grad_(True)
    model.final_norm.requires_grad_(True)
    return model


def table(n=40, classes=2):
    """Return n short messages whose class is easy to tell."""
    words = ["see you at home", "win money now", "meeting at ten"]
    kinds = [i % classes for i in range(n)]
    texts = [f"{words[kind]} {'so ' * (i % 4)}{i}" for i, kind in enumerate(kinds)]
    return pd.DataFrame({"Label": kinds, "Text": texts})


@pytest.fixture
def dataset():
    return SpamDataset(table(), TOKENIZER, pad_token_id=END)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Messages


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_every_line_of_a_file_is_a_message(tmp_path, ending):
    lines = ['ham\tHe said "yes', "spam\tnull", 'ham\t"two\ttabs', "ham\t\u20ac5, ok"]
    (tmp_path / "tabs").write_bytes(ending.join(lines).encode("utf-8-sig"))
    found = NOTEBOOK["read_messages"](tmp_path / "tabs")
    assert [f"{row.Label}\t{row.Text}" for row in found.itertuples()] == lines
    lines = ["Label,Text", 'a,"x, ""y"""', 'b,a lone " mark', 'c,"never closed', "a,"]
    (tmp_path / "commas").write_text("\n".join(lines), encoding="utf-8")
    found = NOTEBOOK["read_messages"](tmp_path / "commas")
    texts = ['x, "y"', 'a lone " mark', '"never closed']
    assert found["Text"].tolist() == texts and found["Label"].tolist() == [*"abc"]


def test_the_real_collection_or_its_stand_in_is_read_whole():
    found = NOTEBOOK["read_messages"]("SMSSpamCollection")
    path = fetch("SMSSpamCollection")
    assert len(found) == path.read_bytes().count(b"\n")
    if path.name == "SMSSpamCollection":
        assert found["Label"].value_counts().to_dict() == {"ham": 4827, "spam": 747}
    own = NOTEBOOK["read_messages"](helpers.DATA / "sms-sample.tsv")
    assert len(own) >= 500 and not own["Text"].duplicated().any()


def test_series_are_found_through_others():
    words = "a b c d e f g h i j".split()
    chain = [" ".join(words[i : i + 8]) for i in range(3)]  # neighbours share 7 of 9
    texts = [*chain, "Call 1!", "call 22", "12", "34", "x y z"]
    first, *rest = NOTEBOOK["find_series"](texts)
    assert rest[:2] == [first, first] and rest[2] == rest[3]
    assert len({first, *rest[2:]}) == 5


def test_a_split_shares_out_each_row_once():
    parts = random_split(table(40), 0.7, 0.1)
    assert [len(part) for part in parts] == [28, 4, 8]
    together = pd.concat(parts)["Text"]
    assert sorted(together) == sorted(table(40)["Text"])
    assert list(together) == list(table(40).sample(frac=1, random_state=123)["Text"])


# Data sets and batches


def test_a_dataset_pads_to_its_longest_message(dataset, tmp_path):
    assert len(dataset) == 40 and dataset.ids.shape == (40, dataset.max_length)
    for i, row in enumerate(table().itertuples()):
        (ids, label), n = dataset[i], dataset.lengths[i]
        assert TOKENIZER.decode(ids[:n]) == row.Text and (ids[n:] == END).all()
        assert label == row.Label
    short = SpamDataset(table(), TOKENIZER, max_length=5, pad_token_id=END)
    assert short.max_length == 5
    texts = ['a "b" c, d', "NA", "tab\there", "<|endoftext|>"]
    rows = pd.DataFrame({"Label": [1, 0, 0, 1], "Text": texts})
    rows.to_csv(tmp_path / "train.csv", index=False)  # as in the book
    for data in (rows, tmp_path / "train.csv"):
        found = SpamDataset(data, TOKENIZER, pad_token_id=END)
        assert [TOKENIZER.decode(i[i != END]) for i in found.ids] == texts
        assert found.labels.tolist() == [1, 0, 0, 1]
    with pytest.raises(ValueError):  # a name, not a number
        SpamDataset(pd.DataFrame({"Label": ["eggs"], "Text": ["a"]}), TOKENIZER)


def test_batches_hold_each_message_once_and_are_of_similar_length():
    torch.manual_seed(1)
    lengths = torch.randint(1, 100, (331,)).tolist()
    batches = LengthBatches(lengths, batch_size=8)
    first, second = list(batches), list(batches)
    assert first != second and len(first) == len(batches) == 42
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(331))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in first)
    assert padded < 1.4 * sum(lengths)
    fixed = LengthBatches(lengths, shuffle=False, group=2)
    first, second = ([lengths[i] for i in batch] for batch in [*fixed][:2])
    assert first + second == sorted(lengths[:16])


# The classifier


def test_trailing_end_tokens_mark_the_length():
    ids = torch.tensor([[5, END, 7, END], [END, END, END, END], [1, 2, 3, 4]])
    assert real_lengths(classifier(), ids).tolist() == [3, 1, 4]


def test_padding_changes_nothing(dataset):
    model, n = classifier().eval(), dataset.lengths
    together = class_logits(model, F.pad(dataset.ids, (0, 9), value=END))
    for i in range(8):
        alone = class_logits(model, dataset.ids[i : i + 1, : n[i]])
        assert torch.allclose(alone[0], together[i], atol=1e-6)


def test_the_descriptions_snippet_runs_as_written(tmp_path, monkeypatch):
    small = helpers.GPT_CONFIG_124M | {"emb_dim": 24, "n_heads": 3, "n_layers": 2}
    monkeypatch.setattr(helpers, "GPT_CONFIG_124M", small)
    monkeypatch.chdir(tmp_path)
    torch.save(GPTModel(small).state_dict(), "model.pth")
    for num_classes in (2, 3):
        your_data = SpamDataset(table(24, num_classes), helpers.get_tokenizer())
        your_train_loader = DataLoader(your_data, batch_size=8, shuffle=True)
        your_val_loader = DataLoader(your_data, batch_size=8)

        model = GPTModel(helpers.GPT_CONFIG_124M)
        model.load_state_dict(torch.load("model.pth"))
        for param in model.parameters():
            param.requires_grad = False
        model.out_head = torch.nn.Linear(in_features=24, out_features=num_classes)
        for part in (model.trf_blocks[-1], model.final_norm):
            for param in part.parameters():
                param.requires_grad = True
        before = state(model)
        history = train_classifier(model, your_train_loader, your_val_loader)
        assert len(history) == 5 and history["targets"].iloc[-1] == 5 * 24
        moved = {k for k, v in state(model).items() if not torch.equal(v, before[k])}
        learning = ("trf_blocks.1.", "final_norm.", "out_head.")
        assert moved and all(name.startswith(learning) for name in moved)
    loader = [(torch.randint(50257, (4, 7)), torch.tensor([0, 2, 1, 1]))]  # any loader
    assert len(train_classifier(model, loader, loader, num_epochs=2)) == 2


def test_a_head_of_the_vocabulary_is_refused(dataset):
    loader = DataLoader(dataset, batch_size=8)
    with pytest.raises(ValueError, match="one output for each class"):
        train_classifier(GPTModel(TINY), loader, loader)


def test_it_learns_what_is_easy(dataset):
    model = classifier().requires_grad_(True)
    loader = DataLoader(dataset, batch_sampler=LengthBatches(dataset.lengths, 4))
    options = {"num_epochs": 6, "lr": 1e-2, "accumulate": 2}
    history = train_classifier(model, loader, loader, **options, **FLOAT32)
    assert history["val_loss"].iloc[-1] < history["val_loss"].iloc[0]
    assert history["val_accuracy"].iloc[-1] == 1.0 and len(history) == 6
    logits = torch.cat([class_logits(model, ids[None]) for ids, _ in dataset])
    result = evaluate_classifier(model, loader)
    loss = F.cross_entropy(logits, dataset.labels).item()
    assert result == pytest.approx({"val_loss": loss, "val_accuracy": 1.0}, abs=1e-4)
    assert classify_review("win money now", model, TOKENIZER) == "spam"
    assert classify_review("see you", model, TOKENIZER, "cpu", 9, END) == "not spam"
    assert classify_review("see you " * 40, model, TOKENIZER, names="ab") in "ab"
    empty = classify_review("", model, TOKENIZER, pad_token_id=END)
    assert empty in ("spam", "not spam")


# LoRA


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_on_a_whole_model_begins_as_nothing_and_is_merged(dataset, dtype):
    model = classifier().to(dtype).eval()
    plain, keys = class_logits(model, dataset.ids), model.state_dict().keys()
    model.requires_grad_(False)
    replace_linear_with_lora(model, rank=2, alpha=4)
    replace_linear_with_lora(model, rank=2, alpha=4)  # wraps nothing twice
    assert torch.equal(class_logits(model, dataset.ids), plain)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith((".A", ".B")) for name in learning)
    for A in (p for name, p in learning.items() if name.endswith(".A")):
        assert 0.5 < A.abs().max() * len(A) ** 0.5 < 1.01  # as in any linear layer
    loader = DataLoader(dataset, batch_size=8)
    train_classifier(model, loader, loader, num_epochs=1, lr=1e-2)
    assert classify_review("win", model, TOKENIZER) in ("spam", "not spam")
    model.eval()
    tuned = class_logits(model, dataset.ids)
    assert not torch.allclose(tuned, plain, atol=1e-3)
    merge_lora(model)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    assert torch.allclose(class_logits(model, dataset.ids), tuned, atol=tolerance)
    assert model.state_dict().keys() == keys


def test_merging_a_tied_head_leaves_the_embedding_alone():
    torch.manual_seed(1)
    model, ids = GPTModel(TINY).eval(), torch.randint(0, 257, (2, 9))
    embedding = copy.deepcopy(model.tok_emb.weight)
    replace_linear_with_lora(model, rank=2, alpha=4)
    nn.init.normal_(model.out_head.lora.B)
    tuned = model(ids)
    merge_lora(model)
    assert torch.allclose(model(ids), tuned, atol=1e-5)
    assert torch.equal(model.tok_emb.weight, embedding)
    assert not model.cfg["tie_weights"]
