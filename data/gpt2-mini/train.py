"""Train gpt2-mini, or a larger GPT-2, from the books: the functions of notebook 04.

    python data/gpt2-mini/corpus.py                     # books -> text
    python data/gpt2-mini/train.py --out data/runs/gpt2-mini/first
    torchrun --nproc-per-node 2 data/gpt2-mini/train.py --out ...  # several processes

A run that was stopped goes on where it was if the same command is given again. Beside
the checkpoints it leaves `log.csv`. README.md here says what was run, and why so.
"""

import argparse
import csv
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

sys.path += [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2])]

from exercises import Dialogues, Exercises, collect_words

import helpers

END = "<|endoftext|>"
COLUMNS = ("step", "tokens", "lr", "train_loss", "val_loss", "copy_loss", "seconds")


def parse_arguments(arguments=None):
    """Return the options; the shape's defaults are those of gpt2-mini."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--text", type=Path, default=helpers.RUNS / "gpt2-mini", help="corpus.py's out")
    add("--out", type=Path, required=True, help="folder of the checkpoints and the log")
    add("--begin", type=Path, help="checkpoint whose weights to begin with")
    add("--tokens", type=float, default=8e6, help="tokens to train on, in all")
    add("--vocab", type=int, default=8192)
    add("--context", type=int, default=512)
    add("--window", type=int, help="tokens in a window; by default, the context")
    add("--layers", type=int, default=6)
    add("--heads", type=int, default=4)
    add("--width", type=int, default=256)
    add("--batch", type=int, default=8, help="windows a step, of all processes")
    add("--accumulate", type=int, default=1, help="parts of it, one after the other")
    add("--exercises", type=float, default=0.0, help="share of windows, 0 to under 1")
    add("--rows", type=float, default=0.5, help="share of rows among the exercises")
    add("--optimizer", choices=("muon", "adamw"), default="muon")
    add("--peak-lr", type=float, default=6e-3)
    add("--min-lr", type=float, default=0.0)
    add("--warmup", type=int, default=50, help="steps")
    add("--weight-decay", type=float, default=0.1)
    add("--eval-freq", type=int, default=100, help="steps")
    add("--eval-windows", type=int, default=48)
    add("--seed", type=int, default=123)
    args = parser.parse_args(arguments)
    args.window = args.window or args.context
    return args


def prepare(folder, vocab_size):
    """Write the tokenizer and the token files of a corpus, where they are missing.

    Returns:
        The tokenizer (`BPETokenizer`).
    """
    for name in ("train", "validation"):
        if not (folder / f"{name}.txt").is_file():
            raise FileNotFoundError(f"{folder} has no {name}.txt: run corpus.py first")
    if not (folder / "encoder.json").is_file():
        text = (folder / "train.txt").read_text(encoding="utf-8")
        tokenizer = helpers.BPETokenizer.train(text, vocab_size, [END])
        helpers.write_bpe_files(folder, tokenizer)
    tokenizer = helpers.read_bpe_files(folder)
    for name in ("train", "validation"):
        if not (folder / f"{name}.bin").is_file():
            text = (folder / f"{name}.txt").read_text(encoding="utf-8")
            ids = np.array(tokenizer.encode(text, allowed_special="all"), np.uint16)
            with helpers.atomic_write(folder / f"{name}.bin") as temporary:
                ids.tofile(temporary)
    return tokenizer


class Windows(Dataset):
    """Windows of a token file, which stays on the disk, and exercises beside them.

    Args:
        path: file of 16-bit ids.
        T: tokens in a window.
        exercises: an `Exercises`, for the keys that ask for one.

    The item of a key `(is_exercise, number)` is `(inputs, targets)`, both `(T,)`; the
    number is that of the exercise, or the place in the file where the window begins.
    """

    def __init__(self, path, T, exercises=None):
        self.ids, self.T = np.memmap(path, np.uint16, "r"), T
        self.exercises = exercises

    def __getitem__(self, key):
        is_exercise, number = key
        if is_exercise:
            return self.exercises[number]
        ids = torch.from_numpy(self.ids[number : number + self.T + 1].astype(np.int64))
        return ids[:-1], ids[1:]


class Shuffled(Sampler):
    """Keys of one reading of all windows, cut at other places in each reading.

    Every process draws the same order and takes its share of it, so that the windows of
    a step are the same for any number of processes.

    Args:
        windows: a `Windows`.
        batch: windows of a step; a last step that isn't full is left out.
        share: share of exercises among the windows.
        rank, world: number of this process, number of processes.
    """

    def __init__(self, windows, batch, share=0.0, rank=0, world=1):
        self.windows, self.rank, self.world = windows, rank, world
        self.texts = (len(windows.ids) - 1) // windows.T - 1
        self.exercises = round(self.texts * share / (1 - share))
        self.length = (self.texts + self.exercises) // batch * batch

    def __len__(self):
        return self.length // self.world

    def __iter__(self):
        first = torch.randint(self.windows.T, ()).item()
        numbers = torch.randint(2**40, (self.exercises,)).tolist()
        starts = range(first, len(self.windows.ids), self.windows.T)[: self.texts]
        keys = [(False, start) for start in starts] + [(True, n) for n in numbers]
        order = torch.randperm(len(keys)).tolist()[: self.length]
        return (keys[i] for i in order[self.rank :: self.world])


@torch.no_grad()
def init_gpt2(model):
    """Give a model GPT-2's initial weights.

    Normal numbers of 0.02; smaller ones where a block adds to its input, so that the
    sum over the blocks doesn't grow with their number. Source: Radford et al. 2019.
    """
    for name, p in model.named_parameters():
        adds = name.endswith(("out_proj.weight", "ff.layers.2.weight"))
        if p.dim() == 2:
            p.normal_(std=0.02 / math.sqrt(2 * model.cfg["n_layers"]) if adds else 0.02)
        elif name.endswith("bias"):
            p.zero_()


def orthogonalize(G):
    """Bring the singular values of matrices `(N, rows, cols)` to about 1.

    Five steps of an odd polynomial, which act on each singular value alone: no
    decomposition is needed. Source: Jordan et al. 2024, "Muon".
    """
    tall = G.shape[1] > G.shape[2]
    X = G.mT if tall else G  # (N, m, n), m <= n
    X = X / (X.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        A = X @ X.mT  # (N, m, m)
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X  # (N, m, n)
    return X.mT if tall else X


def share(function, batch):
    """Return `function(batch)`, each process working on its part of the batch."""
    if not dist.is_initialized():
        return function(batch)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    result = torch.zeros_like(batch)
    result[mine] = function(batch[mine])
    dist.all_reduce(result)
    return result


class Muon(torch.optim.AdamW):
    """Muon for the matrices of the blocks, AdamW for everything else.

    Muon's step is the momentum with all its singular values made equal: directions that
    the gradient seldom shows are learnt as fast as the common ones. Scaled so that its
    size is like AdamW's, it takes the same learning rate.

    Source: Jordan et al. 2024; the scale: Liu et al. 2025 (arXiv:2502.16982).
    """

    def __init__(self, model, weight_decay, momentum=0.95):
        blocks = {p for p in model.trf_blocks.parameters() if p.dim() == 2}
        decayed, plain = helpers.param_groups(model, weight_decay)
        rest = [p for p in decayed["params"] if p not in blocks]
        matrices = [p for p in decayed["params"] if p in blocks]
        groups = [
            {"params": matrices, "weight_decay": weight_decay, "momentum": momentum},
            {"params": rest, "weight_decay": weight_decay, "momentum": None},
            plain | {"momentum": None},
        ]
        super().__init__(groups, betas=(0.9, 0.95), fused=True)

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step; matrices of one shape are treated together."""
        group = self.param_groups[0]
        by_shape = {}
        for p in group["params"]:
            by_shape.setdefault(p.shape, []).append(p)
        for (rows, cols), params in by_shape.items():
            steps = []
            for p in params:
                state = self.state[p]
                if not state:
                    state |= {"step": torch.zeros(()), "mean": torch.zeros_like(p)}
                state["mean"].lerp_(p.grad, 1 - group["momentum"])
                steps.append(p.grad.lerp(state["mean"], group["momentum"]))
                p.grad = None  # AdamW leaves it alone
            steps = share(orthogonalize, torch.stack(steps))  # (N, rows, cols)
            size = group["lr"] * 0.2 * math.sqrt(max(rows, cols))
            for p, step in zip(params, steps, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-size)
        return super().step(closure)


class Parallel(DistributedDataParallel):
    """DistributedDataParallel that is saved and loaded as the model in it."""

    @property
    def cfg(self):
        """The model's configuration."""
        return self.module.cfg

    def state_dict(self, *args, **kwargs):
        """The model's own state."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args, **kwargs):
        """Load the model's own state."""
        return self.module.load_state_dict(*args, **kwargs)


@torch.no_grad()
def copy_loss(model, device, count=8, seed=0):
    """Return the loss on the second half of random sequences that are shown twice.

    Nothing but copying helps there: a model that can't has about ln V.
    """
    model.eval()
    half = model.cfg["context_length"] // 2
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.cfg["vocab_size"] - 1, (count, half), generator=draws)
    ids = torch.cat((ids, ids), dim=1).to(device)  # (count, T)
    logits = model(ids)[:, half:-1]  # (count, T/2 - 1, V)
    loss = torch.nn.functional.cross_entropy(logits.mT, ids[:, half + 1 :])
    model.train()
    return loss.item()


class Log:
    """Writes `log.csv` anew, and prints a sample, whenever `train_model` reports.

    Args:
        args: the options.
        model, tokenizer, device: for the samples.
        world: number of processes.
    """

    def __init__(self, args, model, tokenizer, device, world):
        self.path, self.world, self.device = args.out / "log.csv", world, device
        self.model, self.tokenizer = model, tokenizer
        self.rows, self.start = [], time.perf_counter()
        if self.path.exists():
            with self.path.open(encoding="utf-8", newline="") as lines:
                self.rows = [
                    list(map(float, row)) for row in list(csv.reader(lines))[1:]
                ]

    def __call__(self, history):
        """Take the last row of the history."""
        step, tokens, lr, *losses = (column[-1] for column in history.values())
        self.rows = [row for row in self.rows if row[0] < step]
        before = self.rows[-1][-1] if self.rows else 0.0
        seconds = before + time.perf_counter() - self.start
        self.start = time.perf_counter()
        copied = copy_loss(self.model, self.device)
        row = [step, tokens * self.world, lr, *losses, copied, seconds]
        self.rows.append([float(f"{value:.6g}") for value in row])
        with helpers.atomic_write(self.path) as temporary:
            with temporary.open("w", encoding="utf-8", newline="") as lines:
                csv.writer(lines, lineterminator="\n").writerows([COLUMNS, *self.rows])
        print(dict(zip(COLUMNS, self.rows[-1], strict=True)), flush=True)
        helpers.generate_and_print_sample(
            self.model, self.tokenizer, self.device, "Once upon a time"
        )


def make_loaders(args, tokenizer, rank, world):
    """Return the loaders of training and validation windows."""
    text = (args.text / "train.txt").read_text(encoding="utf-8")
    dialogues = Dialogues(*collect_words(text)) if args.exercises else None
    exercises = Exercises(dialogues, tokenizer, args.window, args.rows)
    windows = Windows(args.text / "train.bin", args.window, exercises)
    order = Shuffled(windows, args.batch, args.exercises, rank, world)
    size = args.batch // world // args.accumulate
    check = Windows(args.text / "validation.bin", args.window)
    last = len(check.ids) - args.window
    keys = [(False, start) for start in range(0, last, args.window)]
    keys = keys[:: max(1, len(keys) // args.eval_windows)][: args.eval_windows]
    return DataLoader(windows, size, sampler=order), DataLoader(check, 8, sampler=keys)


def main(arguments=None):
    """Train as the options say."""
    args = parse_arguments(arguments)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = helpers.pick_device()
    if args.batch % (world * args.accumulate):
        raise SystemExit(f"--batch {args.batch} can't be shared by {world} processes "
                         f"in {args.accumulate} parts: take a multiple")  # fmt: skip
    if world > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if rank == 0:
        prepare(args.text, args.vocab)
    if world > 1:
        dist.barrier()
    tokenizer = prepare(args.text, args.vocab)
    train_loader, val_loader = make_loaders(args, tokenizer, rank, world)
    # Model
    helpers.set_seed(args.seed)
    model = helpers.GPTModel(
        {
            "vocab_size": tokenizer.n_vocab,
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
    if args.begin:
        helpers.load_checkpoint(args.begin, model)
    model.to(device)
    adamw = args.optimizer == "adamw"
    optimizer = None if adamw else Muon(model, args.weight_decay)
    log = Log(args, model, tokenizer, device, world)
    steps = len(train_loader) / args.accumulate
    helpers.train_model(
        Parallel(model) if world > 1 else model,
        train_loader,
        val_loader,
        device,
        num_epochs=args.tokens / (steps * args.batch * args.window),
        peak_lr=args.peak_lr,
        min_lr=args.min_lr,
        warmup_steps=args.warmup,
        weight_decay=args.weight_decay,
        accumulate=args.accumulate,
        eval_freq=args.eval_freq,
        eval_iter=len(val_loader),
        run_dir=args.out,
        resume=True,
        optimizer=optimizer,
        report=log if rank == 0 else None,
        saves=rank == 0,
    )
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
