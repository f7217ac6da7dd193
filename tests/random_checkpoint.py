"""Write a folder in OpenAI's format with random weights and GPT-2's vocabulary.

python tests/random_checkpoint.py FOLDER [--size 124M]    # then COURSE_MODEL=FOLDER
"""

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data" / "gpt2-mini")]

import ship  # noqa: E402

import helpers  # noqa: E402

SMALL = {"context_length": 128, "emb_dim": 32, "n_heads": 4, "n_layers": 2}


def random_model(seed=123, **changes):
    """A GPT-2 124M, or with changes, whose matrices are drawn as GPT-2's were."""
    torch.manual_seed(seed)
    model = helpers.GPTModel(helpers.GPT2_CONFIGS["124M"] | changes).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.normal_(0, 0.02)
    return model


def write_random(folder, tokenizer=None, dtype="float32", **changes):
    """Write such a model to a folder; return the folder."""
    if tokenizer is None:
        ranks = helpers.get_tokenizer()._mergeable_ranks
        tokenizer = helpers.BPETokenizer(ranks, ["<|endoftext|>"])
    ship.write_gpt2_checkpoint(folder, random_model(**changes), tokenizer, dtype)
    return Path(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=helpers.GPT2_CONFIGS, default="124M")
    arguments = parser.parse_args()
    print(write_random(arguments.folder, **helpers.GPT2_CONFIGS[arguments.size]))
