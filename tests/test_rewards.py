"""Chapter 8: verifiers, sampling, the policy gradient, GRPO, DPO.

Run it with: pytest tests/test_rewards.py
"""

import copy
import math
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from notebook_cells import definitions_of

from helpers import DIALOGUES, BPETokenizer, Contents, GPTModel, part_of

CFG = {"vocab_size": 257, "context_length": 160, "emb_dim": 32, "n_heads": 2}
CFG |= {"n_layers": 2, "drop_rate": 0.0, "qkv_bias": True, "tie_weights": True}
torch.manual_seed(1)
MODEL = GPTModel(CFG).eval()
for p in MODEL.parameters():
    torch.nn.init.normal_(p, std=0.2)
IDS = torch.randint(32, 127, (3, 9))
TOKENIZER = BPETokenizer((), ["<|endoftext|>"])  # bytes and the end
BOOK = definitions_of("08_learning_from_rewards")
BOOK.namespace |= {"tokenizer": TOKENIZER, "start": MODEL, "device": IDS.device}
BOOK.namespace |= {"NEWLINE": 10, "ENDS": torch.tensor([10, 256]), "PROMPTS": 3}
BOOK.namespace |= {"SAMPLES": 4, "PRECISION": torch.float32}
BOOK.namespace["WORDS"] = WORDS = DIALOGUES["contents"]


def test_verifiers_pay_what_is_meant():
    c, words = Contents(random.Random(1), WORDS, "test"), ["oar", "fern", "lamp"]
    message, verify = BOOK["reverse"](c, 3)
    given = message.split(": ")[1].split(" ")
    assert verify(" ".join(given[::-1])) == 1
    assert verify(" ".join(given)) == verify(" ".join(given[:0:-1])) == 0
    careful, careless = BOOK["careful"], BOOK["careless"]
    assert careful("lamp oar fern", words) == 1 == careless("lamp oar fern", words)
    for answer in ("oar fern lamp", "lamp lamp fern", "lamp oar fern oar", ""):
        assert careful(answer, words) == 0
    assert careless("oar " * 9, words) == 3
    message, verify = BOOK["smaller"](c, 3)
    a, b = map(int, message.removesuffix("?").split(", ")[1].split(" or "))
    assert verify(f"{min(a, b)}.") == 1 and verify(f"{max(a, b)}.") == verify("") == 0


def test_samples_that_share_a_prompt_are_those_without_sharing():
    sample = BOOK["sample_answers"]
    torch.manual_seed(2)
    shared = sample(MODEL, IDS, 5, 12)
    torch.manual_seed(2)
    assert torch.equal(shared, sample(MODEL, IDS.repeat_interleave(5, dim=0), 1, 12))


def test_tokens_are_drawn_with_their_probabilities():
    torch.manual_seed(3)
    drawn = BOOK["sample_answers"](MODEL, IDS[:1], 20_000, 1)[:, 0]
    found = drawn.bincount(minlength=257) / len(drawn)
    assert (found - MODEL(IDS[:1])[0, -1].softmax(dim=0)).abs().max() < 0.02


def test_prompts_of_a_step_have_one_length_and_words_of_one_part():
    task, rng = partial(BOOK["reverse"], n=2), random.Random(1)
    messages, _, ids = BOOK["draw_problems"](task, 3, rng, "test")
    said = {word for text in messages for word in text.split(": ")[1].split(" ")}
    assert len(ids) == 3 and {part_of(word) for word in said} == {"test"}


def test_log_probs_are_those_of_whole_texts_and_stop_at_the_end():
    answers = torch.randint(32, 127, (6, 5))
    answers[1, 2] = 10
    found = BOOK["answer_log_probs"](MODEL, IDS, answers)
    whole = torch.cat((IDS.repeat_interleave(2, dim=0), answers), dim=1)
    log_probs = MODEL(whole)[:, 8:-1].log_softmax(dim=-1)
    expected = log_probs.gather(-1, answers[..., None])[..., 0]
    expected[1, 3:] = 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    advantages = torch.tensor([0.5, -0.5, 1, 2, 0, 0])
    loss, n = BOOK["policy_loss"](MODEL, IDS, answers, advantages)
    by_hand = -(advantages @ expected.sum(dim=1))
    assert n == 12 and loss.item() == pytest.approx(by_hand.item(), rel=1e-4)


def test_groups_without_signal_are_skipped_and_levels_rise():
    batches = BOOK["PolicyBatches"](MODEL, BOOK["reverse"], [2, 3])
    rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    answers = torch.arange(24).view(12, 2) + 32
    made = SimpleNamespace(prompts=IDS, answers=answers, rewards=rewards, texts=[])
    batches.attempt = lambda: batches.log.append({}) or made
    prompts, kept, advantages = next(iter(batches))
    assert torch.equal(prompts, IDS[:1]) and torch.equal(kept, answers[:4])
    assert advantages.tolist() == [0.5, -0.5, -0.5, 0.5]
    batches.baseline = False  # rejection sampling
    prompts, kept, advantages = next(iter(batches))
    assert torch.equal(prompts, IDS[[0, 2]]) and torch.equal(
        kept, answers[[*range(4), *range(8, 12)]]
    )
    assert torch.equal(advantages, rewards[[0, 2]].flatten())
    made.rewards = rewards * 0
    prompts, kept, advantages = next(iter(batches))
    assert len(kept) == 4 and not advantages.any()
    practice = BOOK["PolicyBatches"](
        MODEL, lambda c, n: ("Hi", lambda text: 1.0), [2, 3]
    )
    practice.attempt()
    assert practice.hardest == 1 and practice.log[-1]["groups without signal"] == 1


def test_dpo_starts_at_ln_2_and_prefers_the_better_answer():
    answers = torch.randint(32, 127, (6, 5))
    was = BOOK["answer_log_probs"](MODEL, IDS, answers).sum(dim=1).detach()
    model = copy.deepcopy(MODEL)
    loss, n = BOOK["dpo_loss"](model, IDS, answers, was)
    assert n == 3 and loss.item() == pytest.approx(3 * math.log(2), abs=1e-4)
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 1e-3 * p.grad
    now = BOOK["answer_log_probs"](model, IDS, answers).sum(dim=1) - was
    assert (now[::2] - now[1::2]).mean() > 0
    torch.manual_seed(5)
    _, both, logs = BOOK["shuffle_labels"](IDS, answers, was)
    order = [answers.tolist().index(row) for row in both.tolist()]
    assert torch.equal(logs, was[order]) and sorted(order) == [*range(6)]
    assert [i // 2 for i in order] == [0, 0, 1, 1, 2, 2]
