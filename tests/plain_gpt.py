"""A plain GPT: every operation written out, nothing shared with helpers.py.

The parity test in `test_model.py` and the benchmark compare the course's model with it.
Its modules are created in the same order, so that one seed gives equal weights.
"""

import math

import torch
from torch import nn


class PlainNorm(nn.Module):
    """Layer normalisation by its formula."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean = x.mean(dim=-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift


class PlainGELU(nn.Module):
    """GELU by its formula with tanh."""

    def forward(self, x):
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + torch.tanh(inner))


class PlainAttention(nn.Module):
    """Attention with an explicit mask, softmax, and dropout on its weights."""

    def __init__(self, cfg):
        super().__init__()
        width, context, bias = cfg["emb_dim"], cfg["context_length"], cfg["qkv_bias"]
        self.heads = cfg["n_heads"]
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(cfg["drop_rate"])
        future = torch.triu(torch.ones(context, context), diagonal=1).bool()
        self.register_buffer("future", future)

    def forward(self, x):
        B, T, C = x.shape
        shape = (B, T, self.heads, C // self.heads)
        q = self.query(x).view(shape).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).view(shape).transpose(1, 2)  # (B, H, T, D)
        v = self.value(x).view(shape).transpose(1, 2)  # (B, H, T, D)
        scores = q @ k.transpose(2, 3) / math.sqrt(C // self.heads)  # (B, H, T, T)
        scores = scores.masked_fill(self.future[:T, :T], -torch.inf)
        weights = self.dropout(torch.softmax(scores, dim=-1))  # (B, H, T, T)
        return self.out((weights @ v).transpose(1, 2).reshape(B, T, C))  # (B, T, C)


class PlainBlock(nn.Module):
    """Attention and feed-forward, each normalised before and added to its input."""

    def __init__(self, cfg):
        super().__init__()
        width = cfg["emb_dim"]
        self.attention = PlainAttention(cfg)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), PlainGELU(), nn.Linear(4 * width, width)
        )
        self.norm1, self.norm2 = PlainNorm(width), PlainNorm(width)
        self.dropout = nn.Dropout(cfg["drop_rate"])

    def forward(self, x):
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class PlainGPT(nn.Module):
    """The whole model, as it is usually first written."""

    def __init__(self, cfg):
        super().__init__()
        self.tokens = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.positions = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.dropout = nn.Dropout(cfg["drop_rate"])
        self.blocks = nn.Sequential(*[PlainBlock(cfg) for _ in range(cfg["n_layers"])])
        self.norm = PlainNorm(cfg["emb_dim"])
        self.head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, idx):
        places = torch.arange(idx.shape[1], device=idx.device)
        x = self.dropout(self.tokens(idx) + self.positions(places))
        return self.head(self.norm(self.blocks(x)))
