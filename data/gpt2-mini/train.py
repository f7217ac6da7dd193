"""Train gpt2-mini, or a larger GPT-2, on the corpus and the exercises beside this file.

    python data/gpt2-mini/train.py [--out data/runs/gpt2-mini]        # one CPU or GPU
    torchrun --nproc-per-node 2 data/gpt2-mini/train.py [--out ...]   # several

The defaults are the recipe of the shipped model. What is missing is made first: the
corpus and the tokenizer. A run that was stopped, or killed, goes on with the same
command and ends with the same weights. Several processes share the windows of each
step, so that the curve doesn't depend on their number.

STAGES is the schedule of the whole run: windows, exercises, learning rate. `--tokens`
stretches or shortens it as a whole. README.md tells how it came about.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

import corpus
from exercises import Exercises, training_words

import helpers

TEXTS = {  # weights of the sources; those of the exercises stand with the stages
    "tinystories": 0.37,
    "tales": 0.20,
    "novels": 0.03,
    "storybooks": 0.02,
    "persona": 0.05,
    "topical": 0.02,
}
DIALOGUES = {  # how often each kind comes among the others
    "recall": 2,
    "later": 2,
    "corrected": 2,
    "unknown": 1,
    "find": 3,
    "larger": 2,
    "repeat": 2,
    "reverse": 3,
}
HARDER = DIALOGUES | {"unknown": 5, "find": 5, "reverse": 6}  # towards the end
STAGES = [  # tokens at its end, windows, weight of the exercises, share of rows in
    # them, and the learning rate at its end, as a part of the peak; between: a line
    (2_048_000, [64], 1.75, 0.8, 1.0),  # copying first, and from short windows
    (4_505_600, [128, 256, 128, 512], 0.31, 0.2, 1.0),
    (6_144_000, [64, 128], 1.4, 0.75, 1.0),  # again: it was lost in long windows
    (7_782_400, [128, 256], 1.0, 0.6, 1.0),
    (9_011_200, [256, 512], 0.8, 0.5, 1.0),
    (12_288_000, [128, 256, 512], 1.0, 0.6, 1.0),
    (14_626_816, [128, 256, 128, 512], 0.45, 0.2, 1.0),
    (15_155_200, [128, 256, 128, 512], 0.45, 0.2, 0.933),
    (18_432_000, [128, 256, 128, 512], 0.6, 0.35, 0.517),
    (19_660_800, [96, 128], 1.2, 0.7, 0.5),  # from short windows to long ones
    (21_299_200, [128, 256], 1.0, 0.6, 0.5),
    (23_756_800, [256, 512], 0.9, 0.55, 0.45),
    (27_033_600, [128, 256, 512], 0.6, 0.3, 0.0),
    (27_443_200, [256, 128, 256, 512], 1.0, 0.35, 0.3),  # once more, harder dialogues
    (38_092_800, [256, 128, 256, 512], 1.0, 0.35, 0.0),
]
HARDER_FROM = 13  # stage
LEARN_FROM = {  # characters that the tokenizer is trained on
    "tinystories": 6_000_000,
    "tales": 3_000_000,
    "storybooks": 1_000_000,
    "persona": 1_000_000,
}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=helpers.RUNS / "gpt2-mini", help="folder")
    add("--text", type=Path, help="folder of the corpus; by default, --out")
    add("--tokens", type=float, default=STAGES[-1][0], help="tokens, in all")
    add("--step-tokens", type=int, default=4096, help="tokens of a step, in all")
    add("--vocab", type=int, default=8192)
    add("--context", type=int, default=512)
    add("--layers", type=int, default=6)
    add("--heads", type=int, default=4)
    add("--width", type=int, default=256)
    add("--peak-lr", type=float, default=6e-3)
    add("--warmup", type=int, default=100, help="steps")
    add("--weight-decay", type=float, default=0.1)
    add("--eval-every", type=int, default=100, help="steps")
    add("--seed", type=int, default=123)
    args = parser.parse_args(arguments)
    args.text = args.text or args.out
    return args


def prepare(folder, vocab_size):
    """Make what is missing of corpus, tokenizer, ids and words of the exercises."""
    if not (folder / "corpus.json").exists():
        print(corpus.build_corpus(folder))
    texts = {path.stem: path for path in sorted(folder.glob("*-*.txt"))}
    texts = {name: path for name, path in texts.items() if path.stat().st_size}
    if not (folder / "encoder.json").exists():
        sizes = {f"train-{name}": size for name, size in LEARN_FROM.items()}
        parts = [read(texts[n])[:size] for n, size in sizes.items() if n in texts]
        learnt = helpers.BPETokenizer.train("".join(parts), vocab_size, [corpus.END])
        write_bpe_files(folder, learnt)
    tokenizer = helpers.read_tokenizer(folder)
    for path in texts.values():
        if not path.with_suffix(".bin").exists():
            ids = tokenizer.encode(read(path), allowed_special="all")
            replace(path.with_suffix(".bin"), np.array(ids, np.uint16).tofile)
    if not (folder / "words.json").exists():
        words = training_words(read(texts["train-tinystories"]))
        replace(folder / "words.json", lambda path: path.write_text(json.dumps(words)))
    return tokenizer, json.loads((folder / "words.json").read_text())


def last_merge(token, ranks):
    """The two tokens that training joined to a token."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, math.inf) for a, b in pairwise(parts)]
        i = pairs.index(min(pairs))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def write_bpe_files(folder, tokenizer):
    """Write a `BPETokenizer` as GPT-2's vocab.bpe and encoder.json."""
    table, ranks = helpers.bytes_to_unicode(), tokenizer.ranks
    text_of = {token: "".join(table[byte] for byte in token) for token in ranks}
    merges = [last_merge(t, ranks) for t in sorted(ranks, key=ranks.get) if len(t) > 1]
    lines = [f"{text_of[a]} {text_of[b]}\n" for a, b in merges]
    vocab = {text_of[token]: i for token, i in ranks.items()}
    vocab |= tokenizer.special_tokens
    for name, content in (
        ("vocab.bpe", "#version: 0.2\n" + "".join(lines)),
        ("encoder.json", json.dumps(vocab)),
    ):
        replace(folder / name, partial(Path.write_bytes, data=content.encode()))


def read(path):
    return path.read_text(encoding="utf-8")


def replace(path, write):
    """Write beside `path`, then rename: a kill or a full disk leaves what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Batches:
    """The windows of each step, which depend on nothing but the seed and the step."""

    def __init__(self, args, tokenizer, words):
        self.args = args
        paths = {name: args.text / f"train-{name}.bin" for name in TEXTS}
        paths = {name: path for name, path in paths.items() if path.exists()}
        self.ids = {n: np.memmap(path, np.uint16, "r") for n, path in paths.items()}
        self.exercises = Exercises(words, tokenizer)
        self.steps = math.ceil(args.tokens / args.step_tokens)
        self.ends = [until * self.steps / STAGES[-1][0] for until, *_ in STAGES]

    def stage(self, step):
        """Length of the windows, weight of exercises, share of rows, dialogues."""
        number = sum(end <= step for end in self.ends)
        _, windows, weight, rows, _ = STAGES[number]
        dialogues = HARDER if number >= HARDER_FROM else DIALOGUES
        T = min(windows[step % len(windows)], self.args.context)
        return T, weight, rows, dialogues

    def learning_rate(self, step):
        """Warm-up, then from stage to stage along straight lines."""
        rates = [1.0, *(rate for *_, rate in STAGES)]
        planned = np.interp(step, [0, *self.ends], rates)
        return self.args.peak_lr * min((step + 1) / self.args.warmup, float(planned))

    def draw(self, rng, T, weight, rows, dialogues):
        """Inputs and targets, both `(T,)`, from a text or the exercises."""
        weights = {name: TEXTS[name] for name in self.ids} | {"exercises": weight}
        (source,) = rng.choices([*weights], weights.values())
        if source == "exercises":
            return self.exercises.window(rng.random(), T, rows, dialogues)
        start = rng.randrange(len(self.ids[source]) - T)
        ids = self.ids[source][start : start + T + 1].astype(np.int64)
        return torch.from_numpy(ids[:-1]), torch.from_numpy(ids[1:])

    def __getitem__(self, step):
        """Inputs and targets, both `(B, T)`: this process's part of a step."""
        T, *shares = self.stage(step)
        numbers = range(rank(), self.args.step_tokens // T, world())
        seeds = [f"{self.args.seed} {step} {number}" for number in numbers]
        windows = [self.draw(random.Random(seed), T, *shares) for seed in seeds]
        return (torch.stack(part) for part in zip(*windows, strict=True))


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    return dist.get_world_size() if dist.is_initialized() else 1


def add_up(*tensors):
    """Replace each tensor by its sum over the processes."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.all_reduce(tensor)


def summed_loss(model, inputs, targets, rows=512):
    """The summed loss where there is a target, in nats; logits come in small parts."""
    x = model.tok_emb(inputs) + model.pos_emb.weight[: inputs.shape[1]]  # (B, T, C)
    x = model.final_norm(model.trf_blocks(x))
    known = targets != -100
    rows = rows if x.device.type == "cpu" else 8192
    parts = zip(x[known].split(rows), targets[known].split(rows), strict=True)
    return sum(F.cross_entropy(model.out_head(h), t, reduction="sum") for h, t in parts)


def init_gpt2(model):
    """GPT-2's initial weights: 0.02, smaller where a block adds to the stream."""
    for name, p in model.named_parameters():
        adds = name.endswith(("out_proj.weight", "ff.layers.2.weight"))
        if p.dim() == 2:
            std = 0.02 / math.sqrt(2 * len(model.trf_blocks)) if adds else 0.02
            torch.nn.init.normal_(p, std=std)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)


def make_optimizers(model, weight_decay):
    """Muon for the matrices of the blocks, AdamW for the rest.

    Muon makes all singular values of a step equal; scaled like this, it takes AdamW's
    learning rates. Source: Jordan et al. 2024; Liu et al. 2025 (arXiv:2502.16982).
    """
    matrices = [p for p in model.trf_blocks.parameters() if p.dim() == 2]
    tables = [model.tok_emb.weight, model.pos_emb.weight]
    rest = [p for p in model.parameters() if p.dim() < 2]
    muon = helpers.Muon(
        matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    groups = [{"params": tables, "weight_decay": weight_decay}, {"params": rest}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return muon, adamw


@torch.no_grad()
def evaluate(model, folder, T, device, tokens=2**14):
    """Bits per character on held-out texts, and the loss of copying random tokens."""
    model.eval()
    result = {}
    for name in ("tinystories", "tales"):
        path = folder / f"validation-{name}.bin"
        if not path.exists():
            continue
        ids = np.fromfile(path, np.uint16).astype(np.int64)
        nats_to_bits = len(ids) / path.with_suffix(".txt").stat().st_size / math.log(2)
        count = min(tokens, len(ids) - 1) // T * T
        ids = torch.from_numpy(ids[: count + 1]).to(device)
        inputs, targets = ids[:-1].view(-1, T).split(8), ids[1:].view(-1, T).split(8)
        parts = zip(inputs, targets, strict=True)
        nats = sum(summed_loss(model, x, y).item() for x, y in parts)
        result[f"{name}_bits"] = nats / count * nats_to_bits
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(model.cfg["vocab_size"] - 1, (8, T // 2), generator=draws)
    ids = torch.cat((ids, ids), dim=1).to(device)
    copied = ids[:, 1:].clone()
    copied[:, : T // 2 - 1] = -100
    nats = summed_loss(model, ids[:, :-1], copied).item()
    result["copy_nats"] = nats / (copied != -100).sum().item()
    model.train()
    return result


def make_model(args, vocab_size):
    helpers.set_seed(args.seed)
    model = helpers.GPTModel(
        {
            "vocab_size": vocab_size,
            "context_length": args.context,
            "emb_dim": args.width,
            "n_heads": args.heads,
            "n_layers": args.layers,
            "drop_rate": 0.0,
            "qkv_bias": True,
            "tie_weights": True,
        }
    )
    init_gpt2(model)
    return model


def train_step(model, optimizers, inputs, targets, lr, autocast):
    """One step of all optimizers and processes; return the loss."""
    known = (targets != -100).sum()
    add_up(known)
    with autocast:
        loss = summed_loss(model, inputs, targets) / known.clamp(min=1)
    loss.backward()
    loss = loss.detach()
    add_up(loss, *(p.grad for p in model.parameters()))
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def resume(path, options, model, optimizers, device):
    """Load a checkpoint and return its state; other options are refused."""
    state = torch.load(path, map_location=device, weights_only=True)
    changed = [key for key in options if options[key] != state["options"].get(key)]
    if changed:
        sys.exit(f"{path} was begun with other options ({', '.join(changed)}): "
                 f"take the same ones, or another --out")  # fmt: skip
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state


def main(arguments=None):
    args = parse_arguments(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    device = helpers.pick_device()
    if "WORLD_SIZE" in os.environ:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if rank() == 0:
        prepare(args.text, args.vocab)
    if world() > 1:
        dist.barrier()
    tokenizer, words = prepare(args.text, args.vocab)
    batches = Batches(args, tokenizer, words)
    model = make_model(args, tokenizer.n_vocab).to(device)
    optimizers = make_optimizers(model, args.weight_decay)
    precision = helpers.pick_precision(device)
    is_faster = precision != torch.float32
    autocast = torch.autocast(device.type, precision, enabled=is_faster)

    free = ("out", "text", "eval_every")  # options that may change
    options = {key: value for key, value in vars(args).items() if key not in free}
    options |= {"texts": TEXTS, "stages": str(STAGES)}
    options |= {"dialogues": [DIALOGUES, HARDER], "precision": str(precision)}
    step, log, seconds, losses = 0, [], 0.0, []
    last = args.out / "last.pth"
    if last.exists():
        state = resume(last, options, model, optimizers, device)
        step, log, seconds = state["step"], state["log"], state["seconds"]

    start, begun_at = time.perf_counter(), step
    while step < batches.steps:
        inputs, targets = (part.to(device) for part in batches[step])
        lr = batches.learning_rate(step)
        losses.append(train_step(model, optimizers, inputs, targets, lr, autocast))
        step += 1
        if step % args.eval_every and step < batches.steps:
            continue
        spent = time.perf_counter() - start
        row = {"step": step, "tokens": step * args.step_tokens, "lr": lr}
        row["train_nats"] = sum(losses) / len(losses)
        with autocast:
            row |= evaluate(model, args.text, min(256, args.context), device)
        log.append(row | {"seconds": round(seconds + spent)})
        losses = []
        if rank() == 0:
            speed = (step - begun_at) * args.step_tokens / spent
            left = (batches.steps - step) * args.step_tokens / speed / 60
            print(row, f"{speed:.0f} tokens/s, {left:.0f} minutes left", flush=True)
            state = {
                "options": options,
                "step": step,
                "log": log,
                "seconds": seconds + spent,
                "config": model.cfg,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            replace(last, partial(torch.save, state))
            table = pd.DataFrame(log)
            write = partial(table.to_csv, index=False, float_format="%.5g")
            replace(args.out / "log.csv", write)
    if world() > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
