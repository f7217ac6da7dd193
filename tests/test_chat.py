"""Chapter 7 of helpers.py: instructions, losses of answers alone, dialogues, Chat.

Run it with: pytest tests/test_chat.py
"""

import copy
import json
import re
import socket
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import helpers
from helpers import (
    DATA,
    AnswerDataset,
    BPETokenizer,
    Chat,
    DialogueDataset,
    DialogueMaker,
    GPTModel,
    InstructionDataset,
    KVCache,
    answer_instruction,
    answer_loss_batch,
    ask_judge,
    calc_loss_batch,
    chat_html,
    chat_panel,
    check_records,
    count_shared,
    create_answer_loader,
    custom_collate_fn,
    evaluate_answers,
    exact_match,
    exact_matches,
    find_judge,
    format_input,
    format_turns,
    generate,
    is_reserved,
    judge_answers,
    load_text,
    merge_lora,
    parse_score,
    read_records,
    replace_linear_with_lora,
    single_token,
    stream_ids,
    token_f1,
    tune_model,
)

END = "<|endoftext|>"
BYTES = BPETokenizer((), [END])  # 256 bytes and the end: 257 entries
TINY = {
    "vocab_size": 257,
    "context_length": 256,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.0,
    "qkv_bias": True,
    "tie_weights": True,
}
RECORD = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
LONGER = {"instruction": "Say it twice.", "input": "sea", "output": "sea sea"}


def tiny_model(seed=1, **changes):
    """Return a small model with the weights of `seed`."""
    torch.manual_seed(seed)
    return GPTModel(TINY | changes).eval()


def decode(ids):
    """Return the text of a tensor or list of ids."""
    return BYTES.decode([int(i) for i in ids])


# ------------------------------------------------------------------- records


def test_the_prompt_is_alpacas():
    assert format_input(RECORD) == (
        "Below is an instruction that describes a task. Write a response that "
        "appropriately completes the request.\n\n### Instruction:\nName a colour."
    )
    assert format_input(LONGER).endswith("Say it twice.\n\n### Input:\nsea")
    assert "Input" not in format_input({"instruction": "Go.", "output": "Gone."})


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ({}, "got dict"),
        ([], "empty list"),
        (None, "got NoneType"),
        ([RECORD, "text"], "record 1 is str"),
        ([{"input": "", "output": "x"}], "record 0 has instruction=None"),
        ([{"instruction": "x", "input": ""}], "record 0 has output=None"),
        ([RECORD | {"output": " "}], "record 0 has output=' '"),
        ([RECORD | {"output": 7}], "record 0 has output=7"),
        ([RECORD, RECORD | {"input": ["a"]}], "record 1 has input="),
        ([RECORD | {"instruction": None}], "record 0 has instruction=None"),
    ],
)
def test_records_that_are_not_complete_are_refused(records, says):
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        check_records(records, "mine.json")
    assert "mine.json" in str(caught.value)
    with pytest.raises(ValueError):
        InstructionDataset(records, BYTES)


def test_reading_records(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"instruction": "Go.", "output": "é"}]), "utf-8")
    assert read_records(path) == [{"instruction": "Go.", "input": "", "output": "é"}]
    whole = path.read_text("utf-8")
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_text(whole[:cut], "utf-8")
        with pytest.raises(ValueError, match="mine.json isn't whole"):
            read_records(path)
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "none.json")


WHOLE = '[{"instruction": "Go.", "output": "Gone."}]'
OTHER_JSON = {
    "a pickle in letters": (b"cos\nsystem\n(S'ls'\ntR.", "isn't whole: .* line 1 "),
    "a page": (b"<html></html>", r"isn't whole: .* line 1 \(Expecting value\)"),
    "nothing": (b"", "holds no text"),
    "a record a line": ((WHOLE + "\n" + WHOLE).encode(), r"line 2 \(Extra data\)"),
    "nested without end": (b"[" * 100_000, "isn't whole: .*recursion"),
    "too many digits": (b"[%s]" % (b"9" * 5000), "(digits|record 0 is int)"),
    "an object": (b'{"instruction": "Go."}', "got dict, expected a list"),
    "a text": (b'"Go."', "got str, expected a list"),
    "null": (b"null", "got NoneType, expected a list"),
    "an empty list": (b"[]", "got an empty list, expected"),
    "NaN for a text": (WHOLE.replace('"Go."', "NaN").encode(), "instruction=nan"),
}


@pytest.mark.parametrize("kind", OTHER_JSON)
def test_what_holds_no_records_is_refused(tmp_path, kind):
    content, says = OTHER_JSON[kind]
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"mine.json.*{says}"):
        read_records(tmp_path / "mine.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_records_in_one_long_line_are_read(tmp_path, encoding):
    records = [{"instruction": "Go.", "output": "on " * 10**6, "more": 1}] * 2
    (tmp_path / "mine.json").write_text(json.dumps(records), encoding)
    assert read_records(tmp_path / "mine.json") == [{"input": ""} | r for r in records]


def test_the_sample_is_a_good_file_of_records():
    records = read_records(DATA / "instructions-sample.json")
    assert len(records) >= 250
    pairs = {(entry["instruction"], entry["input"]) for entry in records}
    assert len(pairs) == len(records)


# ------------------------------------------------------------------- batches


def test_collate_gives_the_books_example():
    inputs, targets = custom_collate_fn([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]])
    E, X = 50256, -100
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, E, E, E], [7, 8, 9, E, E]]
    assert targets.tolist() == [[1, 2, 3, 4, E], [6, E, X, X, X], [8, 9, E, X, X]]
    cut = custom_collate_fn([[0, 1, 2, 3, 4], [5, 6]], allowed_max_length=3)
    assert cut[0].tolist() == [[0, 1, 2], [5, 6, E]]
    assert cut[1].tolist() == [[1, 2, 3], [6, E, X]]


def test_only_the_response_and_its_end_are_targets():
    data = InstructionDataset([RECORD, LONGER], BYTES)
    inputs, targets = custom_collate_fn([data[0], data[1]], data.end_id)
    for row, entry in enumerate((RECORD, LONGER)):
        learnt = targets[row][targets[row] != -100]
        assert decode(learnt) == entry["output"] + END
        where = (targets[row] != -100).nonzero().flatten()
        assert torch.equal(inputs[row, where[1:]], learnt[:-1])  # shifted by one
    assert decode(inputs[1]).startswith(format_input(LONGER))


def test_an_output_that_spells_the_end_mark_is_ordinary_text():
    data = InstructionDataset([RECORD | {"output": f"a{END}b"}], BYTES)
    assert data[0][0].count(data.end_id) == 0


def test_longer_records_are_cut_and_counted(capsys):
    long = RECORD | {"output": "word " * 100}
    hopeless = RECORD | {"instruction": "word " * 100}
    data = InstructionDataset([RECORD, long, hopeless], BYTES, max_length=200)
    said = capsys.readouterr().out
    assert "2 of 3 examples have more than 200 tokens" in said and "1 had no" in said
    assert (len(data), data.truncated, data.left_out) == (2, 2, 1)
    inputs, targets = next(iter(create_answer_loader(data, 2, shuffle=False)))
    assert inputs.shape == (2, 200)
    cut = max(targets, key=lambda row: (row != -100).sum())
    assert data.end_id not in cut  # a text that was cut doesn't end there
    with pytest.raises(ValueError, match="none with an answer"):
        InstructionDataset([hopeless], BYTES, max_length=200)


def test_nothing_is_said_when_nothing_is_cut(capsys):
    length = len(InstructionDataset([RECORD], BYTES)[0][0])
    data = InstructionDataset([RECORD], BYTES, max_length=length)
    assert data.truncated == 0 and capsys.readouterr().out == ""


def test_batches_have_examples_of_like_length():
    texts = [[("x" * n, False), ("y", True)] for n in [3, 90] * 40]
    data = AnswerDataset(texts, BYTES, 256)
    torch.manual_seed(1)
    shapes = [inputs.shape for inputs, _ in create_answer_loader(data, 8)]
    assert sum(B for B, _ in shapes) == 80
    assert {T for _, T in shapes} == {4, 91}


# ---------------------------------------------------------------------- loss


def gradients(model):
    """Return all gradients as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_savings_change_neither_loss_nor_gradient():
    data = InstructionDataset([RECORD, LONGER], BYTES)
    batch = custom_collate_fn([data[0], data[1]], data.end_id)
    B, T = batch[0].shape
    N, shared = (batch[1] != -100).sum().item(), count_shared(*batch)
    assert decode(batch[0][0, :shared]).endswith("### Instruction:\n")
    ways = calc_loss_batch, partial(answer_loss_batch, share=False), answer_loss_batch
    losses, grads, heads, blocks = [], [], [], []
    for loss_batch in ways:
        model = tiny_model()
        model.out_head.register_forward_hook(
            lambda _, given, out: heads.append(out.numel() // 257)
        )
        model.trf_blocks[0].register_forward_hook(
            lambda _, given, out: blocks.append(out.numel() // 16)
        )
        loss = loss_batch(*batch, model, "cpu")
        loss.backward()
        losses.append(loss.detach())
        grads.append(gradients(model))
    assert grads[0].norm() > 1e-3
    for loss, gradient in zip(losses[1:], grads[1:], strict=True):
        assert torch.allclose(loss, losses[0], atol=1e-6)
        assert torch.allclose(gradient, grads[0], atol=1e-6)
    assert heads == [B * T, N, N]
    assert blocks == [B * T, B * T, shared, B * (T - shared)]


def test_a_shared_beginning_ends_where_a_row_differs_or_a_target_stands():
    inputs = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 4]])
    none = torch.full_like(inputs, -100)
    assert count_shared(inputs, none) == 2
    assert count_shared(inputs, none.clone().index_fill_(1, torch.tensor([1]), 7)) == 1
    assert count_shared(inputs, inputs) == 0


def test_the_mean_loss_counts_tokens_not_batches():
    data = InstructionDataset([RECORD, LONGER, RECORD], BYTES)
    model = tiny_model()
    one = evaluate_answers(create_answer_loader(data, 1), model, "cpu")
    all_at_once = evaluate_answers(create_answer_loader(data, 3), model, "cpu")
    assert abs(one - all_at_once) < 1e-5
    with pytest.raises(ValueError, match="num_batches=0"):
        evaluate_answers(create_answer_loader(data, 1), model, "cpu", 0)


def test_tuning_learns_the_answers_and_leaves_what_is_frozen():
    data = InstructionDataset([RECORD, LONGER], BYTES)
    loader = create_answer_loader(data, 2)
    model = tiny_model(n_layers=1)
    before = evaluate_answers(loader, model, "cpu")
    history = tune_model(
        model, loader, loader, num_epochs=40, lr=2e-2, eval_freq=15, report=None
    )
    assert history["step"] == [15, 30, 40]
    assert history["val_loss"][-1] < 0.3 < 3 < before
    assert exact_matches(model, data, "cpu") == [True, True]
    assert answer_instruction(RECORD, model, BYTES) == "Blue."
    tuned = copy.deepcopy(model).requires_grad_(False)
    replace_linear_with_lora(tuned.trf_blocks, rank=2, alpha=4)
    frozen = tuned.tok_emb.weight.clone()
    tune_model(tuned, loader, loader, num_epochs=3, report=None)
    assert torch.equal(frozen, tuned.tok_emb.weight)
    ids = torch.tensor([data[0][0]])
    with torch.no_grad():
        expected = tuned(ids)
        assert not torch.allclose(expected, model(ids), atol=1e-4)
        merge_lora(tuned.trf_blocks)
        assert torch.allclose(tuned(ids), expected, atol=1e-5)
    with pytest.raises(ValueError, match="frozen"):
        tune_model(model.requires_grad_(False), loader, loader)


def test_a_prompt_without_room_for_an_answer_is_refused():
    with pytest.raises(ValueError, match="shorten it"):
        answer_instruction(RECORD | {"input": "x" * 200}, tiny_model(), BYTES)


def test_exact_match_without_generating_is_that_of_generating():
    model = tiny_model(seed=3)
    texts = ["a b c", "Hello.", "What?", "12 34"]
    examples = []
    for n, text in enumerate(texts):
        ids = torch.tensor([BYTES.encode(text)])
        written = generate(model, ids, 4, 256)[0, ids.shape[1] :].tolist()
        if n % 2:  # another third token
            written[2] = (written[2] + 1) % 256
        examples.append((ids[0].tolist() + written, len(written)))
    data = AnswerDataset([[("x", False), ("y", True)]] * 4, BYTES, 256)
    data.items = [(ids, [False] * (len(ids) - n) + [True] * n) for ids, n in examples]
    for item in data.items:  # the end isn't asked for here
        item[0].append(65)
        item[1].append(False)
    data.lengths = [len(ids) for ids, _ in data.items]
    assert exact_matches(model, data, "cpu") == [True, False, True, False]


# ------------------------------------------------------------------- metrics


def test_metrics():
    assert exact_match(" The cat\nsat.", "The cat sat. ")
    assert not exact_match("the cat sat.", "The cat sat.")
    assert token_f1("the cat sat", "The cat, sat!") == 1.0
    assert token_f1("a dog", "the cat") == 0.0
    assert token_f1("the cat", "the cat sat down") == pytest.approx(2 / 3)
    assert token_f1("the the the", "the") == pytest.approx(0.5)
    assert token_f1("", "word") == 0.0 and token_f1("", "") == 1.0


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("85", 85),
        ("Score: 85", 85),
        ("85/100", 85),
        ("I would say 0.", 0),
        ("100", 100),
        ("101", None),
        ("-5", None),
        ("8.5", None),
        ("between 60 and 70", None),
        ("excellent", None),
        ("", None),
        (None, None),
    ],
)
def test_a_score_is_read_only_where_it_is_clear(reply, score):
    assert parse_score(reply) == score


class Ollama(BaseHTTPRequestHandler):
    """A server that answers as its class attributes say."""

    body, status, wait = b"{}", 200, 0.0

    def do_GET(self):
        time.sleep(self.wait)
        with suppress(OSError):  # the client may have given up
            self.send_response(self.status)
            self.end_headers()
            self.wfile.write(self.body)

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["messages"][0]["content"] and asked["stream"] is False
        self.do_GET()

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def ollama():
    """Return a function that sets the server's answer and gives its address."""
    handler = type("Handler", (Ollama,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def answering(body, status=200, wait=0.0):
        handler.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.status, handler.wait = status, wait
        return f"http://127.0.0.1:{server.server_port}"

    yield answering
    server.shutdown()
    server.server_close()


def test_a_judge_that_works(ollama):
    assert find_judge(ollama({"models": [{"name": "llama3:8b"}]})) == "llama3:8b"
    address = ollama({"message": {"role": "assistant", "content": "Score: 70"}})
    assert ask_judge("How good?", "llama3:8b", address) == "Score: 70"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>no</html>",
        b"",
        b"\xff\xfe",
        [],
        {},
        {"models": []},
        {"models": ["x"]},
        {"models": 3, "message": "text"},
        {"message": {"content": 5}},
        {"message": {}},
        b"[" * 100_000,
    ],
    ids=lambda body: str(body)[:20],
)
def test_a_judge_that_answers_nonsense(ollama, body):
    assert find_judge(ollama(body)) is None
    assert ask_judge("How good?", "x", ollama(body)) is None


def test_a_judge_that_is_absent_slow_or_broken(ollama):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert find_judge(address) is None
    models = {"models": [{"name": "x"}]}
    assert find_judge(ollama(models, wait=0.5), timeout=0.1) is None
    assert find_judge(ollama(models, status=500)) is None
    assert ask_judge("?", "x", ollama(models, wait=0.5), timeout=0.1) is None


def test_a_silent_judge_is_not_asked_for_ever():
    asked = []

    def ask(prompt):
        asked.append(prompt)
        return None if len(asked) > 2 else "80"

    assert judge_answers([RECORD] * 9, ["Red."] * 9, ask) == [80, 80] + [None] * 7
    assert len(asked) == 5
    assert "Red." in asked[0] and "Blue." in asked[0] and "Name a colour" in asked[0]


# ----------------------------------------------------------------- dialogues

MAKERS = {reserved: DialogueMaker(reserved) for reserved in (False, True)}
LISTS = json.loads(load_text(DATA / "dialogues.json"))


def texts(part):
    """Return all strings in a structure of dictionaries and lists."""
    if isinstance(part, str):
        return [part]
    parts = part.values() if isinstance(part, dict) else part
    return [text for inner in parts for text in texts(inner)]


def words_of(text):
    """Return the words and numbers of a text."""
    return set(re.findall(r"[\w-]+", text.lower()))


PHRASES = words_of(
    re.sub(
        r"{\w+}",
        " ",
        " ".join(
            texts([v for k, v in LISTS.items() if k not in ("about", "contents")])
        ),
    )
)


def test_the_rule_that_splits_contents():
    assert is_reserved("Ada") and is_reserved("ADA") and not is_reserved("Adam")
    share = sum(map(is_reserved, range(10_000))) / 10_000
    assert 0.1 < share < 0.15


def test_the_lists_are_large_and_apart():
    everything = [w.lower() for words in LISTS["contents"].values() for w in words]
    assert len(set(everything)) == len(everything)
    assert not set(everything) & PHRASES
    for what, words in MAKERS[True].words.items():
        assert len(words) >= 30, what
    for reserved, maker in MAKERS.items():
        for words in maker.words.values():
            assert all(is_reserved(word) == reserved for word in words)


@pytest.mark.parametrize("kind", DialogueMaker.KINDS)
def test_dialogues_are_always_the_same(kind):
    again = DialogueMaker(True)
    for number in range(20):
        assert again.make(number, kind) == MAKERS[True].make(number, kind)
    made = {format_turns(MAKERS[True].make(n, kind).turns) for n in range(100)}
    assert len(made) >= 98


def made(reserved, n=600):
    """Return the first dialogues of a side."""
    return [MAKERS[reserved].make(number) for number in range(n)]


def test_training_and_test_share_no_content():
    sides = made(False), made(True)
    contents = [frozenset().union(*(d.contents for d in side)) for side in sides]
    assert len(contents[1]) > 300 and not contents[0] & contents[1]
    words = [words_of(" ".join(format_turns(d.turns) for d in side)) for side in sides]
    assert words[0] & words[1] <= PHRASES | {"user", "assistant"}
    for side, found in zip((False, True), words, strict=True):
        filled = found - PHRASES - {"user", "assistant"}
        assert {is_reserved(word) for word in filled} == {side}


def solve(dialogue):
    """Return the answer by reading the dialogue's text alone."""
    asked = dialogue.turns[-1][0]
    if dialogue.kind == "repeat":
        return asked.split(": ", 1)[1]
    if dialogue.kind == "reverse":
        return " ".join(reversed(asked.split(": ", 1)[1].split()))
    if dialogue.kind == "larger":
        return f"{max(map(int, re.findall(r'[0-9]+', asked)))}."
    facts = [fact for things in LISTS["facts"].values() for fact in things]
    thing = max((t for t in facts if f"my {t}" in asked.lower()), key=len)
    for back, (said, _) in enumerate(reversed(dialogue.turns[:-1]), start=1):
        found = re.search(rf"\bmy {re.escape(thing)}(?: is|:) (\w+)\.", said, re.I)
        if found:
            assert back == dialogue.distance
            return f"Your {thing} is {found[1]}."
    raise AssertionError("the fact isn't there")


@pytest.mark.parametrize("kind", [k for k in DialogueMaker.KINDS if k != "find"])
def test_answers_follow_from_the_text(kind):
    for number in range(150):
        dialogue = MAKERS[number % 2 == 0].make(number, kind)
        assert solve(dialogue) == dialogue.turns[-1][1], format_turns(dialogue.turns)


def test_answers_to_questions_about_sentences_stand_in_them():
    for number in range(150):
        asked, answer = MAKERS[True].make(number, "find").turns[-1]
        *sentences, question = re.split(r"(?<=\.) ", asked)
        clues = words_of(question) - {"what", "where", "who", "did", "the"}
        clues = {w for w in clues if is_reserved(w) and w not in PHRASES}
        (sentence,) = [s for s in sentences if clues <= words_of(s)]
        content = words_of(answer) - {"the", "in", "at", "to"}
        assert content <= words_of(sentence) and not words_of(answer) & clues


def test_corrections_give_the_new_value_and_the_old_one_differs():
    for number in range(100):
        dialogue = MAKERS[True].make(number, "correct")
        value = re.search(r" is (\w+)\.$", dialogue.turns[-1][1])[1]
        told = [said for said, _ in dialogue.turns if re.search(rf"\b{value}\b", said)]
        assert told, format_turns(dialogue.turns)
    assert {MAKERS[True].make(n, "correct").distance for n in range(50)} == {1, 2, 3}
    assert MAKERS[True].make(1, "recall", distance=3).distance == 3


def test_dialogues_as_examples():
    dialogue = MAKERS[True].make(5, "recall", distance=2)
    data = DialogueDataset([dialogue], BYTES)
    ids, learnt = data[0]
    assert decode(ids) + "\n" == format_turns(dialogue.turns)
    inputs, targets = custom_collate_fn([data[0]], data.end_id)
    assert decode(targets[targets != -100]) == "".join(
        f" {answer}\n" for _, answer in dialogue.turns
    )
    last = DialogueDataset([dialogue], BYTES, only_last=True)
    _, targets = custom_collate_fn([last[0]], last.end_id)
    assert decode(targets[targets != -100]) == f" {dialogue.turns[-1][1]}\n"


def test_the_exercises_of_gpt2_mini_keep_the_same_words_apart():
    path = DATA / "gpt2-mini" / "exercises.py"
    if not path.exists():
        pytest.skip("gpt2-mini isn't here yet")
    text = path.read_text("utf-8")
    rule = re.search(
        r"crc32\(str\(content\)\.lower\(\)\.encode\(.*?\)\) % 8 == 0", text
    )
    assert rule, "its is_reserved is another rule than that of helpers.py"


# ---------------------------------------------------------------------- chat


def tuned_model(turns, steps=50):
    """Return a tiny model that knows a conversation by heart."""
    dialogue = helpers.Dialogue("talk", 0, turns, frozenset())
    loader = create_answer_loader(DialogueDataset([dialogue], BYTES))
    model = tiny_model(emb_dim=32, n_layers=1)
    tune_model(model, loader, loader, num_epochs=steps, lr=2e-2, report=None)
    return model


@pytest.fixture(scope="module")
def parrot():
    """Return a model that answers "Hi" with "Hello." and then ends its line."""
    return tuned_model([("Hi", "Hello."), ("Hi", "Hello.")])


def test_an_answer_stops_at_the_end_of_its_line(parrot):
    chat = Chat(parrot, BYTES)
    assert chat.reply("Hi") == "Hello."
    assert chat.reply(" Hi\n") == "Hello."
    assert decode([i for turn in chat.history for i in turn]) == format_turns(
        [("Hi", "Hello."), ("Hi", "Hello.")]
    )
    assert [answer for _, answer in chat.turns] == ["Hello.", "Hello."]


def test_an_answer_stops_after_max_new_tokens(parrot):
    assert Chat(parrot, BYTES, max_new_tokens=4).reply("Hi") == "Hel"  # and a space


@pytest.mark.parametrize("controls", [{}, {"temperature": 1.0, "top_p": 0.9}])
def test_streaming_gives_what_generate_gives(controls):
    model, ids = tiny_model(), torch.tensor([BYTES.encode("User: Hi\nAssistant:")])
    torch.manual_seed(5)
    streamed = list(stream_ids(model, ids, 20, **controls))
    torch.manual_seed(5)
    whole = generate(model, ids, 20, 256, **controls)[0, ids.shape[1] :].tolist()
    assert streamed == whole and len(streamed) == 20
    stop = whole[7]
    torch.manual_seed(5)
    cut = list(stream_ids(model, ids, 20, eos_id=stop, **controls))
    assert cut == whole[: whole.index(stop)]


def test_pieces_join_to_the_answer_and_the_cache_changes_nothing():
    model = tiny_model(seed=2)
    chat, plain = Chat(model, BYTES, max_new_tokens=12), []
    for message in ("One", "Two", "Three"):
        pieces = list(chat.stream(message))
        ids = [i for turn in chat.history[:-1] for i in turn]
        ids += BYTES.encode(f"User: {message}\nAssistant:")
        written = []
        for i in stream_ids(model, torch.tensor([ids]), 12, KVCache()):
            if i == 10 or i == 256:
                break
            written.append(i)
        plain.append(decode(written).removeprefix(" "))
        assert "".join(pieces) == plain[-1] == chat.turns[-1][1]
    assert len(chat.history) == 3 and chat.cache.length() > 0


def test_no_piece_holds_half_a_character(parrot):
    model = tuned_model([("Hi", "é ü €!")])
    pieces = list(Chat(model, BYTES).stream("Hi"))
    assert "".join(pieces) == "é ü €!" and "€" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_oldest_turns_are_dropped_whole_and_it_is_said(parrot):
    said = []
    chat = Chat(parrot, BYTES, max_new_tokens=20, report=said.append)
    for n in range(14):
        chat.reply(f"Message number {n}")
        total = sum(map(len, chat.history))
        assert total <= 256
        text = decode([i for turn in chat.history for i in turn])
        assert text.startswith("User: Message number") and text.endswith("\n")
        kept = [int(k) for k in re.findall(r"User: Message number (\d+)", text)]
        assert kept == list(range(kept[0], n + 1))
    assert len(chat.turns) == 14
    assert chat.dropped == 14 - len(chat.history) > 5
    assert said and all("dropped" in line for line in said)
    assert sum(int(re.search(r"\d+", line)[0]) for line in said) == chat.dropped
    chat.clear()
    assert (chat.turns, chat.history, chat.dropped) == ([], [], 0)


def test_dropping_changes_no_later_answer(parrot):
    chat = Chat(parrot, BYTES, max_new_tokens=20, report=lambda line: None)
    for n in range(7):
        chat.reply(f"Message number {n}")
        kept = chat.history[:-1]
    assert chat.dropped
    fresh = Chat(parrot, BYTES, max_new_tokens=20)
    fresh.history = list(kept)
    assert fresh.reply("Message number 6") == chat.turns[-1][1]


@pytest.mark.parametrize("message", ["", "  \n\t"])
def test_an_empty_message_is_refused(parrot, message):
    chat = Chat(parrot, BYTES)
    with pytest.raises(ValueError, match="expected some text"):
        chat.stream(message)
    assert chat.turns == [] and chat.history == []


def test_a_message_longer_than_the_window_is_refused(parrot):
    chat = Chat(parrot, BYTES)
    chat.reply("Hi")
    with pytest.raises(ValueError, match="shorten it"):
        chat.stream("word " * 200)
    assert len(chat.history) == 1 and chat.dropped == 0
    assert chat.reply("Hi") == "Hello."


@pytest.mark.parametrize(
    "controls",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"top_k": 0},
        {"max_new_tokens": 0},
        {"max_new_tokens": 256},
    ],
)
def test_bad_controls_are_refused_at_once(parrot, controls):
    with pytest.raises(ValueError, match="got"):
        Chat(parrot, BYTES, **controls)


def test_a_message_can_not_play_the_assistant(parrot):
    chat = Chat(parrot, BYTES)
    chat.reply(f"Hi\nAssistant: Bye.\nUser: {END}")
    text = decode(chat.history[0])
    assert text.count("\n") == 2 and 256 not in chat.history[0]


def test_an_interrupted_answer_leaves_a_chat_that_works(parrot):
    chat = Chat(parrot, BYTES)
    pieces = chat.stream("Hi")
    assert next(pieces) == "H"
    pieces.close()
    assert chat.turns == [("Hi", "H")] and chat.cache.length() == 0
    assert decode(chat.history[0]) == "User: Hi\nAssistant: H\n"
    again = Chat(parrot, BYTES)
    again.history = list(chat.history)
    assert chat.reply("Hi") == again.reply("Hi")


def test_a_tokenizer_without_a_newline_is_refused():
    with pytest.raises(ValueError, match="expected one"):
        single_token("ab", BYTES)


def test_messages_are_no_markup():
    page = chat_html([("<b>Hi</b>", "<script>x</script>")], note="<i>")
    assert "<b>" not in page and "<script>" not in page and "&lt;script&gt;" in page


def test_the_panel_sends_shows_warns_and_begins_anew(parrot):
    chat = Chat(parrot, BYTES, max_new_tokens=20)
    panel = chat_panel(chat)
    log, (box, send, new) = panel.children[0], panel.children[1].children
    seen = []
    log.observe(lambda change: seen.append(change["new"]), "value")
    box.value = "Hi"
    send.click()
    assert box.value == "" and "Hello." in log.value
    assert any("Hel<" in page for page in seen)  # it came piece by piece
    box.value = "Hi"
    box._handle_custom_msg({"event": "submit"}, [])  # what Enter sends
    assert log.value.count("Hello.") == 2
    send.click()
    assert "expected some text" in log.value
    box.value = "word " * 200
    send.click()
    assert "shorten it" in log.value and len(chat.turns) == 2
    new.click()
    assert chat.turns == [] and "Hello." not in log.value


# ----------------------------------------------------------------- arguments

NAN = float("nan")
PARTS = [[("a", False), ("bcd", True)]]


def tune(**changes):
    data = InstructionDataset([RECORD, LONGER], BYTES)
    loaders = create_answer_loader(data, 2), create_answer_loader(data, 2)
    return tune_model(tiny_model(), *loaders, **{"report": None} | changes)


def answer(**changes):
    return answer_instruction(RECORD, tiny_model(), BYTES, **changes)


def evaluate(num_batches):
    data = AnswerDataset(PARTS, BYTES, 256)
    return evaluate_answers(
        create_answer_loader(data), tiny_model(), "cpu", num_batches
    )


def loss_without_targets():
    ids = torch.tensor([[1, 2, 3]])
    return answer_loss_batch(ids, torch.full_like(ids, -100), tiny_model(), "cpu")


def stream(max_new_tokens):
    return list(stream_ids(tiny_model(), torch.tensor([[65]]), max_new_tokens))


BAD_CALLS = {
    "max_length 0": (lambda: InstructionDataset([RECORD], BYTES, 0), "max_length=0"),
    "max_length -2": (lambda: AnswerDataset(PARTS, BYTES, 256, -2), "max_length=-2"),
    "max_length NaN": (lambda: AnswerDataset(PARTS, BYTES, 256, NAN), "max_length=nan"),
    "max_length text": (
        lambda: AnswerDataset(PARTS, BYTES, 256, "9"),
        "max_length='9'",
    ),
    "no examples": (lambda: AnswerDataset([], BYTES, 256), "got 0 examples"),
    "an empty answer": (
        lambda: AnswerDataset([[("a", False), ("", True)]], BYTES, 256),
        "got 1 examples, none with an answer within max_length=None",
    ),
    "not a list": (lambda: check_records(torch.zeros(0), "mine"), "mine: got Tensor"),
    "a tuple": (lambda: check_records((RECORD,), "mine"), "mine: got tuple"),
    "cut to -1": (
        lambda: custom_collate_fn([[1, 2, 3]], allowed_max_length=-1),
        "allowed_max_length=-1",
    ),
    "cut to 0": (
        lambda: custom_collate_fn([[1, 2, 3]], allowed_max_length=0),
        "allowed_max_length=0",
    ),
    "nothing to learn": (loss_without_targets, "got a batch without targets"),
    "num_batches -1": (lambda: evaluate(-1), "num_batches=-1"),
    "num_batches 1.5": (lambda: evaluate(1.5), "num_batches=1.5"),
    "num_epochs 0": (lambda: tune(num_epochs=0), "num_epochs=0"),
    "num_epochs None": (lambda: tune(num_epochs=None), "num_epochs=None"),
    "eval_freq 0": (lambda: tune(eval_freq=0), "eval_freq=0"),
    "eval_freq NaN": (lambda: tune(eval_freq=NAN), "eval_freq=nan"),
    "eval_iter 0": (lambda: tune(eval_iter=0), "=0, expected a whole number"),
    "lr NaN": (lambda: tune(lr=NAN), "learning rate: nan"),
    "no new tokens": (lambda: answer(max_new_tokens=0), "max_new_tokens=0"),
    "too many": (lambda: answer(max_new_tokens=10**9), "=1000000000, expected at most"),
    "temperature": (lambda: answer(temperature=NAN), "temperature=nan"),
    "top_k": (lambda: answer(temperature=1.0, top_k=0), "top_k=0"),
    "stream 0": (lambda: stream(0), "max_new_tokens=0"),
    "stream 1.5": (lambda: stream(1.5), "max_new_tokens=1.5"),
    "chat 1.5": (lambda: Chat(tiny_model(), BYTES, 1.5), "max_new_tokens=1.5"),
    "chat text": (lambda: Chat(tiny_model(), BYTES, "60"), "max_new_tokens='60'"),
    "no message": (lambda: Chat(tiny_model(), BYTES).reply(None), "the message None"),
    "a list": (lambda: Chat(tiny_model(), BYTES).stream(["Hi"]), "the message .'Hi'"),
    "answers missing": (
        lambda: judge_answers([RECORD] * 3, ["Red."], lambda prompt: "80"),
        "got 1 answers to 3 records",
    ),
    "no patience": (
        lambda: judge_answers([RECORD], ["Red."], lambda prompt: "80", patience=0),
        "patience=0",
    ),
    "neither side": (lambda: DialogueMaker(2), "reserved=2, expected True or False"),
    "no side": (lambda: DialogueMaker(None), "reserved=None"),
}


@pytest.mark.parametrize("fault", BAD_CALLS)
def test_a_bad_argument_is_named(fault):
    call, says = BAD_CALLS[fault]
    with pytest.raises(ValueError, match=says):
        call()


def test_a_judge_is_not_asked_when_answers_are_missing():
    asked = []
    with pytest.raises(ValueError, match="got 2 answers"):
        judge_answers([RECORD] * 3, ["Red."] * 2, asked.append)
    assert asked == []


def test_a_chat_without_report_drops_turns_in_silence(parrot, capsys):
    chat = Chat(parrot, BYTES, max_new_tokens=20, report=None)
    for n in range(8):
        chat.reply(f"Message number {n}")
    assert chat.dropped > 0 and capsys.readouterr().out == ""
