"""Chapter 6 of helpers.py: messages, batches, the classifier, cached layers, LoRA.

Run it with: pytest tests/test_spam.py
"""

import copy

import numpy as np
import pandas as pd
import pytest
import tiktoken
import torch
from torch import nn
from torch.utils.data import DataLoader

from helpers import (
    DATA,
    GPT2_PATTERN,
    BPETokenizer,
    FrozenOutputs,
    GPTModel,
    LengthBatches,
    LinearWithLoRA,
    LoRALayer,
    SpamDataset,
    cache_frozen,
    calc_accuracy_loader,
    class_logits,
    class_loss_batch,
    classify_review,
    count_frozen_blocks,
    create_balanced_dataset,
    create_spam_loader,
    encode_message,
    evaluate_classifier,
    fetch,
    load_checkpoint,
    merge_lora,
    pad_batch,
    plot_values,
    predict_classes,
    random_split,
    read_messages,
    replace_linear_with_lora,
    save_checkpoint,
    train_classifier,
)

CPU = torch.device("cpu")
TOKENIZER = BPETokenizer()  # the 256 bytes
TINY = {
    "vocab_size": 256,
    "context_length": 48,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 3,
    "drop_rate": 0.0,
    "qkv_bias": True,
    "tie_weights": True,
}


def classifier(learns="last block", seed=1, **changes):
    """Return a tiny classifier of which a part learns."""
    torch.manual_seed(seed)
    model = GPTModel(TINY | changes)
    model.requires_grad_(learns == "everything")
    model.out_head = nn.Linear(16, 2)
    if learns == "last block":
        model.trf_blocks[-1].requires_grad_(True)
        model.final_norm.requires_grad_(True)
    if learns == "LoRA":
        replace_linear_with_lora(model.trf_blocks, rank=2, alpha=4)
    return model


def table(n=40):
    """Return n messages, every second one spam, of different lengths."""
    texts = [
        f"win {i} pounds now, call {i}" if i % 2 else "see you " + "at home " * (i % 4)
        for i in range(n)
    ]
    texts = [f"{text} {i}" for i, text in enumerate(texts)]
    return pd.DataFrame({"Label": ["ham", "spam"] * (n // 2), "Text": texts})


@pytest.fixture
def dataset(tmp_path):
    table().to_csv(tmp_path / "train.csv", index=False)
    return SpamDataset(tmp_path / "train.csv", TOKENIZER, max_length=48)


def learnt(model):
    """Return everything that learns, as one vector."""
    return torch.cat([p.flatten() for p in model.parameters() if p.requires_grad])


# Messages


def test_every_line_of_a_file_is_a_message(tmp_path):
    path = tmp_path / "messages.txt"
    lines = ['ham\tHe said "yes', "spam\tnull", 'ham\tto me" NA', "ham\t\u20ac5, ok"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    messages = read_messages(path)
    assert [f"{row.Label}\t{row.Text}" for row in messages.itertuples()] == lines


def test_the_real_collection_or_its_stand_in_is_read_whole():
    path = fetch("SMSSpamCollection")
    messages = read_messages(path)
    assert len(messages) == path.read_bytes().count(b"\n")
    if path.name == "SMSSpamCollection":
        assert len(messages) == 5574
        assert messages["Label"].value_counts().to_dict() == {"ham": 4827, "spam": 747}
    own = read_messages(DATA / "sms-sample.tsv")
    assert len(own) >= 500 and not own["Text"].duplicated().any()


@pytest.mark.parametrize(
    "line, words",
    [
        ("eggs\thello", "labels ['eggs']"),
        ("ham\t  ", "1 of 2 messages are empty, first that in row 2"),
        ("ham", "1 of 2 messages are empty, first that in row 2"),
        ("HAM\tb", "labels ['HAM']"),
        ("ham\ta\tb\tc", "Expected 2 fields in line 2, saw 4"),
        ("<html><body>", "labels ['<html><body>']"),
    ],
)
def test_a_wrong_line_is_refused(tmp_path, line, words):
    path = tmp_path / "messages.txt"
    path.write_text(f"ham\tgood\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read_messages(path)
    assert words in str(error.value) and "messages.txt" in str(error.value)


GOOD_LINES = "ham\tsee you\nspam\twin \u20ac5\n"


@pytest.mark.parametrize(
    "content",
    [
        GOOD_LINES.encode(),
        GOOD_LINES.strip().encode(),  # the last line has no end
        GOOD_LINES.encode("utf-8-sig"),
        GOOD_LINES.replace("\n", "\r\n").encode(),
        GOOD_LINES.replace("\n", "\n\n").encode(),
    ],
    ids=["plain", "no end", "BOM", "CRLF", "empty lines"],
)
def test_files_from_other_programs_are_read(tmp_path, content):
    (tmp_path / "messages.txt").write_bytes(content)
    messages = read_messages(tmp_path / "messages.txt")
    assert messages.to_numpy().tolist() == [["ham", "see you"], ["spam", "win \u20ac5"]]


def test_a_long_line_is_one_message(tmp_path):
    (tmp_path / "messages.txt").write_text("ham\t" + "word " * 10**6, "utf-8")
    assert len(read_messages(tmp_path / "messages.txt")["Text"][0]) == 5 * 10**6


def test_what_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "mine").write_bytes(b"ham\tgr\xfcn\n")
    for read in (read_messages, lambda path: SpamDataset(path, TOKENIZER)):
        with pytest.raises(UnicodeDecodeError):
            read(tmp_path / "mine")


def test_classes_are_balanced_by_leaving_out_the_frequent_one():
    messages = pd.concat([table(20), table(60).query("Label == 'ham'")])
    balanced = create_balanced_dataset(messages)
    assert balanced["Label"].value_counts().to_dict() == {"ham": 10, "spam": 10}
    assert set(balanced["Text"]) >= set(messages.query("Label == 'spam'")["Text"])
    again, other = (create_balanced_dataset(messages, seed) for seed in (123, 5))
    assert balanced.equals(again) and not balanced.equals(other)


def test_a_class_without_messages_is_refused():
    with pytest.raises(ValueError, match=r"'spam': 0.*at least one of each"):
        create_balanced_dataset(table().query("Label == 'ham'"))


def test_a_split_shares_out_each_message_once():
    messages = table(40)
    parts = random_split(messages, 0.7, 0.1)
    assert [len(part) for part in parts] == [28, 4, 8]
    texts = [text for part in parts for text in part["Text"]]
    assert sorted(texts) == sorted(messages["Text"]) and texts != list(messages["Text"])
    for part, again in zip(parts, random_split(messages, 0.7, 0.1), strict=True):
        assert part.equals(again)
    assert not random_split(messages, 0.7, 0.1, seed=5)[0].equals(parts[0])


NAN = float("nan")
SHARES = [(0.7, 0.3), (0.7, 0.4), (0, 0.5), (1.2, -0.4), (NAN, 0.1), (0.7, NAN)]


@pytest.mark.parametrize("shares", SHARES)
def test_shares_that_leave_nothing_are_refused(shares):
    with pytest.raises(ValueError, match="less than 1"):
        random_split(table(), *shares)


def test_an_empty_part_is_refused():
    with pytest.raises(ValueError, match=r"\[2, 0, 2\].*at least 1"):
        random_split(table(4), 0.7, 0.1)


# Datasets and batches


def test_a_dataset_holds_the_ids_and_labels_of_its_file(dataset):
    messages = table()
    assert len(dataset) == 40 and dataset.truncated == 0
    for i in (0, 1, 39):
        ids, label = dataset[i]
        assert TOKENIZER.decode(ids) == messages["Text"][i]
        assert label.item() == (messages["Label"][i] == "spam")
    assert dataset.lengths == [len(ids) for ids, _ in dataset]
    assert dataset.max_length == max(dataset.lengths)


def test_numbers_do_as_labels_and_odd_texts_survive_the_file(tmp_path):
    texts = ['a "b" c, d', "NA", "tab\there", "<|endoftext|>"]
    rows = pd.DataFrame({"Label": [1, 0, 0, 1], "Text": texts})
    rows.to_csv(tmp_path / "a.csv", index=False)
    dataset = SpamDataset(tmp_path / "a.csv", TOKENIZER)
    assert [TOKENIZER.decode(ids) for ids, _ in dataset] == texts
    assert [label.item() for _, label in dataset] == [1, 0, 0, 1]


def test_a_message_is_closed_by_the_token_for_the_end(tmp_path):
    tokenizer = BPETokenizer((), ["<|endoftext|>"])
    text, end = "<|endoftext|> is text", tokenizer.n_vocab - 1
    fast = tiktoken.Encoding(
        "fast",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
    )
    for each in (tokenizer, fast):
        ids, was_cut = encode_message(text, each)
        assert ids == [*TOKENIZER.encode(text), end] and not was_cut
        assert encode_message(text, each, len(ids)) == (ids, False)
        assert encode_message(text, each, 5) == ([*ids[:4], end], True)
    assert encode_message(text, TOKENIZER) == (TOKENIZER.encode(text), False)
    assert encode_message(text, TOKENIZER, 4) == (TOKENIZER.encode(text)[:4], True)
    table().to_csv(tmp_path / "a.csv", index=False)
    dataset = SpamDataset(tmp_path / "a.csv", tokenizer, max_length=20)
    assert all(ids[-1] == end and end not in ids[:-1] for ids, _ in dataset)
    assert dataset.max_length == 20
    assert dataset.truncated == sum(len(text) > 19 for text in table()["Text"])
    with pytest.raises(ValueError, match="max_length=0"):
        SpamDataset(tmp_path / "a.csv", tokenizer, max_length=0)


def test_longer_messages_are_cut_and_counted(tmp_path, capsys):
    table().to_csv(tmp_path / "train.csv", index=False)
    dataset = SpamDataset(tmp_path / "train.csv", TOKENIZER, max_length=25)
    longer = sum(len(text) > 25 for text in table()["Text"])
    assert 0 < dataset.truncated == longer
    assert dataset.max_length == max(dataset.lengths) == 25
    assert f"train.csv: {longer} of 40 messages" in capsys.readouterr().out
    ids, _ = dataset[6]
    assert TOKENIZER.decode(ids) == table()["Text"][6][:25]


@pytest.mark.parametrize(
    "content, words",
    [
        ("Label,Message\nham,hello\n", "lacks ['Text']: got the columns ['Label', 'M"),
        ("Label,Text\nham,hello\neggs,hi\n", "labels ['eggs'], expected 'ham' or"),
        ('Label,Text\nham,hello\nspam," "\n', "1 of 2 messages are empty"),
        ("Label,Text\n", "no messages, expected at least one"),
        ('Label,Text\nham,hi\nham,"never closed\n', "EOF inside string"),
        ("Label,Text\nham,a,b\n", "labels ['a']"),
        ("Label,Text\nham\n", "1 of 1 messages are empty"),
        ("<!doctype html>\n<html>", "got the columns ['<!doctype html>']"),
    ],
)
def test_a_wrong_csv_is_refused(tmp_path, content, words):
    (tmp_path / "bad.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError) as error:
        SpamDataset(tmp_path / "bad.csv", TOKENIZER)
    assert words in str(error.value) and "bad.csv" in str(error.value)


def test_a_missing_csv_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'no\.csv'"):
        SpamDataset(tmp_path / "no.csv", TOKENIZER)


def test_batches_hold_each_message_once_and_are_of_like_length():
    lengths = torch.randint(1, 100, (331,)).tolist()
    batches = LengthBatches(lengths, batch_size=8)
    torch.manual_seed(1)
    first, second = list(batches), list(batches)
    for drawn in (first, second):
        assert sorted(i for batch in drawn for i in batch) == list(range(331))
        assert len(drawn) == len(batches) == 42
        padded = sum(len(b) * max(lengths[i] for i in b) for b in drawn)
        assert padded < 1.4 * sum(lengths) < sum(max(lengths) for _ in lengths)
        groups = [sum(drawn[i : i + 4], []) for i in range(0, 40, 4)]
        assert all(max(lengths[i] for i in group) > 60 for group in groups)
        assert all(min(lengths[i] for i in group) < 40 for group in groups)
    assert first != second
    torch.manual_seed(1)
    assert list(batches) == first
    fixed = LengthBatches(lengths, batch_size=8, shuffle=False)
    assert list(fixed) == list(fixed)
    with pytest.raises(ValueError, match="batch_size=0"):
        LengthBatches(lengths, batch_size=0)


def test_padding_stands_behind_and_can_be_asked_for(dataset):
    items = [dataset[i] for i in (0, 1, 6)]
    ids, lengths, labels = pad_batch(items)
    assert ids.shape == (3, max(lengths)) and labels.tolist() == [0, 1, 0]
    for row, length, (message, _) in zip(ids, lengths, items, strict=True):
        assert torch.equal(row[:length], message) and not row[length:].any()
    assert pad_batch(items, length=48)[0].shape == (3, 48)


# The classifier


@pytest.mark.parametrize("learns", ["head", "last block", "LoRA", "everything"])
def test_padding_changes_nothing(dataset, learns):
    model = classifier(learns).eval()
    items = [dataset[i] for i in range(8)]
    together = class_logits(model, *pad_batch(items, length=48)[:2])
    for item, logits in zip(items, together, strict=True):
        alone = class_logits(model, *pad_batch([item])[:2])
        assert torch.allclose(alone[0], logits, atol=1e-6)
    ids, lengths, _ = pad_batch(items, length=48)
    behind = torch.arange(48) >= lengths[:, None]
    other = class_logits(model, ids.masked_fill(behind, 200), lengths)
    assert torch.allclose(other, together, atol=1e-6)
    changed = ids.clone()
    changed[torch.arange(8), lengths - 1] = 200
    assert not torch.allclose(class_logits(model, changed, lengths), together)


def test_frozen_blocks_are_counted():
    assert count_frozen_blocks(classifier("head")) == 3
    assert count_frozen_blocks(classifier("last block")) == 2
    assert count_frozen_blocks(classifier("LoRA")) == 0
    assert count_frozen_blocks(classifier("everything")) == 0
    model = classifier("last block")
    model.pos_emb.requires_grad_(True)
    assert count_frozen_blocks(model) == 0
    model = classifier("head")
    model.trf_blocks[0].norm1.requires_grad_(True)
    assert count_frozen_blocks(model) == 0
    model = classifier("head")
    model.trf_blocks[1].norm1.requires_grad_(True)
    assert count_frozen_blocks(model) == 1


@pytest.mark.parametrize("learns", ["head", "last block"])
def test_cached_layers_give_the_same_loss_and_gradients(dataset, learns):
    model = classifier(learns)
    loader = create_spam_loader(dataset, shuffle=False)
    for plain, cached in zip(loader, cache_frozen(loader, model, CPU), strict=True):
        assert cached[0].is_floating_point() and torch.equal(plain[2], cached[2])
        results = []
        for batch in (plain, cached):
            model.zero_grad()
            loss, logits = class_loss_batch(batch, model, CPU)
            loss.backward()
            grads = [p.grad for p in model.parameters() if p.requires_grad]
            results.append((loss, logits, *(grad.clone() for grad in grads)))
        assert len(results[0]) == (4 if learns == "head" else 22)
        for a, b in zip(*results, strict=True):
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("learns", ["head", "last block"])
def test_cached_training_equals_uncached_training(dataset, learns):
    # In 64 bits: the gradient of a key's bias is zero but for rounding (softmax doesn't
    # see what is added to every score), and AdamW would blow the rounding up.
    results, runs = [], []
    for cache in (True, False):
        model = classifier(learns).double()
        before = copy.deepcopy(model.state_dict())
        loaders = create_spam_loader(dataset), create_spam_loader(dataset, 8, False)
        torch.manual_seed(5)
        runs.append(
            train_classifier(
                model, *loaders, num_epochs=2, eval_freq=3, cache=cache, report=None
            )
        )
        results.append(learnt(model))
        learning = {n for n, p in model.named_parameters() if p.requires_grad}
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]) == (name not in learning), name
    assert (results[0] - learnt(classifier(learns).double())).abs().max() > 1e-3
    assert (results[0] - results[1]).abs().max() < 1e-5
    for a, b in zip(*(run[:4] for run in runs), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert runs[0][4] == runs[1][4] == 80


def test_frozen_blocks_run_once_a_message(dataset, monkeypatch):
    model = classifier("last block")
    seen = []
    model.trf_blocks[0].register_forward_hook(lambda m, x, y: seen.append(len(y)))
    loaders = create_spam_loader(dataset), create_spam_loader(dataset, 8, False)
    train_classifier(model, *loaders, num_epochs=3, report=None)
    assert sum(seen) == 2 * len(dataset)


def test_frozen_outputs_keep_only_what_is_read(dataset):
    model = classifier("last block", drop_rate=0.5).train()
    outputs = FrozenOutputs(dataset, model, CPU)
    assert [len(x) for x, _ in outputs] == dataset.lengths and model.training
    again = FrozenOutputs(dataset, model, CPU)
    assert torch.equal(outputs[3][0], again[3][0])  # dropout was off
    x, _ = outputs[3]
    assert x.untyped_storage().nbytes() == 4 * x.numel()  # no padding is kept alive
    last = FrozenOutputs(dataset, classifier("head"), CPU)
    assert {tuple(x.shape) for x, _ in last} == {(1, 16)}


def test_ids_of_another_vocabulary_are_refused(dataset):
    model = classifier("last block", vocab_size=100)
    loaders = create_spam_loader(dataset), create_spam_loader(dataset)
    with pytest.raises(ValueError, match="expected 0 to 99"):
        train_classifier(model, *loaders)
    with pytest.raises(ValueError, match="in at most 16"):
        train_classifier(classifier(context_length=16), *loaders)


def test_a_tiny_classifier_learns_to_tell_them_apart(dataset):
    model = classifier("everything")
    loader = create_spam_loader(dataset)
    torch.manual_seed(2)
    lines = []
    values = train_classifier(
        model, loader, loader, num_epochs=8, eval_freq=4, lr=1e-2, report=lines.append
    )
    train_losses, val_losses, train_accs, _, seen = values
    assert train_losses[-1] < 0.5 * train_losses[0] and train_accs[-1] > 0.9
    assert len(train_losses) == len(val_losses) == 4 and seen == 320
    assert len(lines) == 8 and lines[-1].startswith("epoch 8: loss 0.")
    figure = plot_values([1, 2], [10, 20], [0.5, 0.6], [0.5, 0.7], label="accuracy")
    assert figure.axes[0].get_ylabel() == "accuracy"
    assert classify_review("win 4 pounds now, call 4 99", model, TOKENIZER) == "spam"
    assert classify_review("see you at home 4", model, TOKENIZER, CPU) == "not spam"


def test_training_is_deterministic(dataset):
    results = []
    for seed in (1, 1, 2):
        model, loader = classifier(), create_spam_loader(dataset)
        torch.manual_seed(seed)
        train_classifier(model, loader, loader, num_epochs=1, report=None)
        results.append(learnt(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_an_optimizer_of_ones_own_is_used(dataset):
    model, loader = classifier("head"), create_spam_loader(dataset)
    optimizer = torch.optim.SGD(model.out_head.parameters(), lr=0.0)
    before = learnt(model).clone()
    train_classifier(model, loader, loader, optimizer, CPU, 1, report=None)
    assert torch.equal(learnt(model), before)


@pytest.mark.parametrize("learns", ["last block", "everything"])
def test_accumulated_batches_make_the_step_of_one_large_batch(dataset, learns):
    results = []
    for batch_size, accumulate in ((40, 1), (8, 5), (3, 14)):
        model = classifier(learns)
        loader = create_spam_loader(dataset, batch_size, shuffle=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        train_classifier(
            model, loader, loader, optimizer, CPU, 1, accumulate=accumulate, report=None
        )
        results.append(learnt(model))
    assert (results[0] - learnt(classifier(learns))).abs().max() > 1e-3
    assert torch.allclose(results[0], results[1], atol=1e-6)
    assert torch.allclose(results[0], results[2], atol=1e-6)


def test_there_must_be_something_to_train_and_to_train_on(dataset):
    model, loader = classifier("head"), create_spam_loader(dataset)
    with pytest.raises(ValueError, match="0 batches|batches, expected at least 1"):
        train_classifier(model, loader, [])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        train_classifier(model, loader, loader)


def test_accuracy_is_that_of_the_predictions_in_order(dataset):
    model, loader = classifier(), create_spam_loader(dataset, 8, shuffle=False)
    probabilities = predict_classes(model, dataset, CPU, batch_size=7)
    for i in (0, 17, 39):
        alone = class_logits(model, *pad_batch([dataset[i]])[:2]).softmax(dim=-1)
        assert torch.allclose(alone[0], probabilities[i], atol=1e-6)
    right = probabilities.argmax(dim=-1) == torch.stack(dataset.labels)
    loss, accuracy = evaluate_classifier(loader, model, CPU)
    assert accuracy == calc_accuracy_loader(loader, model, CPU)
    assert accuracy == pytest.approx(right.float().mean().item())
    picked = probabilities[torch.arange(40), torch.stack(dataset.labels)]
    assert loss == pytest.approx(-picked.log().mean().item(), abs=1e-5)
    first = next(iter(loader))
    alone = (class_logits(model, *first[:2]).argmax(dim=-1) == first[2]).float().mean()
    assert calc_accuracy_loader(loader, model, CPU, 1) == pytest.approx(alone.item())
    with pytest.raises(ValueError, match="num_batches=0"):
        calc_accuracy_loader(loader, model, CPU, 0)


def test_accuracy_of_batches_padded_to_the_longest_is_the_same(dataset):
    model = classifier()
    plain = DataLoader(dataset, 8, collate_fn=lambda items: pad_batch(items, 48))
    loader = create_spam_loader(dataset)
    both = [evaluate_classifier(each, model, CPU) for each in (plain, loader)]
    assert both[0] == pytest.approx(both[1], abs=1e-6)


def test_reviews_of_any_length_but_empty_ones():
    model = classifier()
    assert classify_review("x" * 500, model, TOKENIZER) in ("spam", "not spam")
    calls = []
    model.trf_blocks[0].register_forward_hook(lambda m, x, y: calls.append(y.shape[1]))
    classify_review("x" * 500, model, TOKENIZER, CPU, max_length=5)
    classify_review("x" * 500, model, TOKENIZER, CPU, max_length=500)
    assert calls == [5, 48]
    with pytest.raises(ValueError, match="expected some text"):
        classify_review("  ", model, TOKENIZER)


def test_a_classifier_can_be_saved_and_loaded(dataset, tmp_path):
    model = classifier()
    save_checkpoint(tmp_path / "spam.pth", model, classes=["ham", "spam"])
    other = GPTModel(model.cfg)
    other.out_head = nn.Linear(16, 2)
    assert load_checkpoint(tmp_path / "spam.pth", other) == {"classes": ["ham", "spam"]}
    a, b = (predict_classes(each, dataset, CPU) for each in (model, other))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match="another model"):
        load_checkpoint(tmp_path / "spam.pth", GPTModel(model.cfg))


# LoRA


def test_lora_begins_as_no_change_and_only_it_learns():
    plain = classifier("head").eval()
    model = copy.deepcopy(plain)
    torch.manual_seed(1)
    replace_linear_with_lora(model.trf_blocks, rank=2, alpha=4)
    ids = torch.randint(0, 256, (3, 20))
    assert torch.equal(model(ids), plain(ids))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[-1] for n in names} == {"A", "B", "weight", "bias"}
    assert all("lora" in n or n.startswith("out_head") for n in names)
    layers = [m for m in model.modules() if isinstance(m, LinearWithLoRA)]
    assert len(layers) == 3 * 6


def test_lora_is_a_low_rank_change_scaled_by_alpha_over_rank():
    torch.manual_seed(1)
    layer = LoRALayer(10, 6, rank=2, alpha=8)
    nn.init.normal_(layer.B)
    change = layer(torch.eye(10))
    assert torch.allclose(change, 4.0 * layer.A @ layer.B)
    assert torch.linalg.matrix_rank(change) == 2
    with pytest.raises(ValueError, match="rank=0"):
        LoRALayer(10, 6, rank=0, alpha=8)


def test_merged_lora_gives_the_same_in_a_plain_model(dataset):
    model = classifier("LoRA")
    loader = create_spam_loader(dataset)
    torch.manual_seed(1)
    train_classifier(model, loader, loader, num_epochs=2, lr=1e-2, report=None)
    before = predict_classes(model, dataset, CPU)
    merge_lora(model)
    assert not any(isinstance(m, LinearWithLoRA) for m in model.modules())
    assert torch.allclose(predict_classes(model, dataset, CPU), before, atol=1e-5)
    untrained = predict_classes(classifier("head"), dataset, CPU)
    assert not torch.allclose(before, untrained, atol=1e-3)
    names = classifier("head").state_dict().keys()
    assert model.state_dict().keys() == names


def test_merging_a_tied_head_leaves_the_embedding_alone(tmp_path):
    torch.manual_seed(1)
    model = GPTModel(TINY).requires_grad_(False).eval()
    replace_linear_with_lora(model, rank=2, alpha=4)
    nn.init.normal_(model.out_head.lora.B)
    embedding, ids = model.tok_emb.weight.clone(), torch.randint(0, 256, (2, 9))
    before = model(ids)
    merge_lora(model)
    assert torch.allclose(model(ids), before, atol=1e-5)
    assert torch.equal(model.tok_emb.weight, embedding)
    save_checkpoint(tmp_path / "merged.pth", model)
    other = GPTModel(model.cfg).eval()
    load_checkpoint(tmp_path / "merged.pth", other)
    assert torch.allclose(other(ids), before, atol=1e-5)


# Arguments


def loaders_of(n=8):
    """Return two loaders of a small dataset that needs no file."""
    dataset = SpamDataset.__new__(SpamDataset)
    dataset.encoded_texts = [torch.tensor([65, 66 + i]) for i in range(n)]
    dataset.labels = [torch.tensor(i % 2) for i in range(n)]
    dataset.lengths = [2] * n
    return create_spam_loader(dataset, 2), create_spam_loader(dataset, 2, False)


def train(**changes):
    model = changes.pop("model", None) or classifier("head")
    return train_classifier(model, *loaders_of(), **{"report": None} | changes)


WIDE = nn.Linear(8, 4)
IDS, TWO = torch.tensor([[65, 66], [67, 68]]), torch.tensor([2, 2])
BAD_CALLS = {
    "columns twice": (
        lambda: create_balanced_dataset(pd.concat([table(4), table(4)], axis=1)),
        r"lacks \['Label', 'Text'\]: got the columns \['Label', 'Text', 'Label'",
    ),
    "no table": (lambda: create_balanced_dataset(None), "the table lacks"),
    "a list of texts": (lambda: create_balanced_dataset(["Label", "Text"]), "lacks"),
    "labels missing": (
        lambda: create_balanced_dataset(table(4).assign(Label=None)),
        r"got the labels \['None'\]",
    ),
    "max_length 0": (lambda: encode_message("a", TOKENIZER, 0), "max_length=0"),
    "max_length -3": (lambda: encode_message("a", TOKENIZER, -3), "max_length=-3"),
    "max_length NaN": (lambda: encode_message("a", TOKENIZER, NAN), "max_length=nan"),
    "max_length 1.5": (lambda: encode_message("a", TOKENIZER, 1.5), "max_length=1.5"),
    "batch_size 1.5": (lambda: LengthBatches([1, 2], 1.5), "batch_size=1.5"),
    "batch_size None": (lambda: LengthBatches([1, 2], None), "batch_size=None"),
    "batch_size text": (lambda: LengthBatches([1, 2], "2"), "batch_size='2'"),
    "group 0": (lambda: LengthBatches([1, 2], group=0), "group=0"),
    "group -1": (lambda: LengthBatches([1, 2], group=-1), "group=-1"),
    "negative ids": (
        lambda: train(model=classifier("last block", vocab_size=66)),
        "got ids from 65 to 7.*expected 0 to 65",
    ),
    "head of a language model": (
        lambda: class_logits(GPTModel(TINY), IDS, TWO),
        "out_head for 256 tokens.*Linear",
    ),
    "such a head in training": (lambda: train(model=GPTModel(TINY)), "out_head for"),
    "such a head at work": (
        lambda: classify_review("Hello", GPTModel(TINY), TOKENIZER),
        "out_head for",
    ),
    "num_epochs 0": (lambda: train(num_epochs=0), "num_epochs=0"),
    "num_epochs 1.5": (lambda: train(num_epochs=1.5), "num_epochs=1.5"),
    "eval_freq 0": (lambda: train(eval_freq=0), "eval_freq=0"),
    "eval_freq NaN": (lambda: train(eval_freq=NAN), "eval_freq=nan"),
    "eval_iter 0": (lambda: train(eval_iter=0), "=0, expected a whole number"),
    "eval_iter 1.5": (lambda: train(eval_iter=1.5), "=1.5, expected a whole number"),
    "accumulate 0": (lambda: train(accumulate=0), "accumulate=0"),
    "accumulate -1": (lambda: train(accumulate=-1), "accumulate=-1"),
    "lr NaN": (lambda: train(lr=NAN), "learning rate: nan"),
    "no message": (
        lambda: classify_review(None, classifier(), TOKENIZER),
        "got the message None",
    ),
    "a missing value": (
        lambda: classify_review(NAN, classifier(), TOKENIZER),
        "got the message nan",
    ),
    "0 tokens": (
        lambda: classify_review("Hi", classifier(), TOKENIZER, max_length=0),
        "max_length=0",
    ),
    "rank 1.5": (lambda: LoRALayer(8, 4, 1.5, 2), "rank=1.5"),
    "rank True": (lambda: LoRALayer(8, 4, True, 2), "rank=True"),
    "alpha NaN": (lambda: LoRALayer(8, 4, 2, NAN), "alpha=nan"),
    "alpha infinite": (lambda: LoRALayer(8, 4, 2, float("inf")), "alpha=inf"),
    "alpha 0": (lambda: LoRALayer(8, 4, 2, 0), "alpha=0"),
    "no width": (lambda: LoRALayer(0, 4, 2, 2), "in_dim=0"),
    "a layer alone": (lambda: replace_linear_with_lora(WIDE, 2, 4), "holds it"),
}


@pytest.mark.parametrize("fault", BAD_CALLS)
def test_a_bad_argument_is_named(fault):
    call, words = BAD_CALLS[fault]
    with pytest.raises(ValueError, match=words):
        call()


def test_a_refused_rank_leaves_the_model_as_it_was():
    model = classifier("everything")
    with pytest.raises(ValueError, match="rank=0"):
        replace_linear_with_lora(model.trf_blocks, rank=0, alpha=4)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(isinstance(part, LinearWithLoRA) for part in model.modules())


def test_numbers_of_numpy_are_whole_numbers():
    assert len(LengthBatches([1, 2, 3], np.int64(2))) == 2
