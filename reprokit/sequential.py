"""Sequential models: the user is what they liked, in order.

SASRec   Kang and McAuley, ICDM 2018, in the form that CoLLM (arXiv 2310.19488) scores clicks with:
         the state after the history, times the target item's vector.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.collaborative import table


class SASRec(nn.Module):
    """Causal self-attention over the history; s = state . E[target].

    Histories are left-padded with 0, so positions count from the target back. As in the widely
    used PyTorch port: queries are normalised, keys and values are not, the residual adds the
    normalised query, and padded keys are zeroed rather than masked.
    """

    inputs = ("histories", "items")

    def __init__(
        self,
        n_items: int,
        dim: int,
        init_std: float,
        max_len: int,
        blocks: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.settings = {"n_items": n_items, "dim": dim, "init_std": init_std, "max_len": max_len}
        self.settings |= {"blocks": blocks, "heads": heads, "dropout": dropout}
        self.scale = dim**0.5
        self.items = table(n_items, dim, init_std)
        self.positions = table(max_len, dim, init_std)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-8)

    def encode(self, histories: Tensor) -> Tensor:
        """Item ids (B, L), left-padded with 0 -> the state after the last item (B, D)."""
        real = (histories > 0).unsqueeze(-1)  # (B, L, 1)
        x = self.items(histories) * self.scale + self.positions.weight  # (B, L, D)
        x = self.dropout(x) * real
        for block in self.blocks[:-1]:
            x = block(x, real)
        # Only the last state is read, so the last block computes one query: (B, L, D) -> (B, 1, D).
        x = self.blocks[-1](x, real, last_only=True)
        return self.norm(x[:, -1])

    def embed(self, users: Tensor, histories: Tensor) -> tuple[Tensor, Tensor]:
        """A user is the state after the history, of which the last `max_len` items are read."""
        return self.encode(histories[:, -len(self.positions.weight) :]), self.items.weight

    def score(self, histories: Tensor, items: Tensor) -> Tensor:
        return (self.encode(histories) * self.items(items)).sum(-1)  # (B,)


class Block(nn.Module):
    """One attention layer and one position-wise feed-forward layer."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(dim, eps=1e-8)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor, last_only: bool = False) -> Tensor:
        key, value = self.key_value(x).chunk(2, -1)  # (B, L, D) each, from the un-normalised input
        if last_only:
            x, real = x[:, -1:], real[:, -1:]
        query = self.query_norm(x)  # (B, T, D), T = L or 1
        attended = F.scaled_dot_product_attention(
            self.split(self.query(query)),
            self.split(key),
            self.split(value),
            is_causal=not last_only,  # the last position may see everything
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        x = query + self.out(attended.transpose(1, 2).flatten(2))  # (B, T, D)
        x = self.norm(x)
        x = x + self.dropout(self.outer(self.dropout(F.relu(self.inner(x)))))
        return x * real

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
