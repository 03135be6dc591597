"""Collaborative filtering: models that know users and items by id alone.

Each model has `score(users, items) -> (B,)` and the names of the inputs it reads; a loss is a
function of a model and a batch. So one model trains under any objective, and one objective serves
any model.

MF         Koren et al. 2009, without biases, as CoLLM (arXiv 2310.19488) runs it
LightGCN   He et al., SIGIR 2020, equations 3, 7 and 8; graph of the positive training rows
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Encoder(Protocol):
    """A collaborative model as a source of vectors, for models that fuse them with text."""

    inputs: tuple[str, ...]
    dim: int
    settings: dict[str, Any]
    """What it was built with, for saving."""
    embed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(users (B,), histories (B, L)) -> vectors of these users (B, D), of all items (I, D)."""


class Scorer(Protocol):
    """What a loss and the training loop need of a model."""

    inputs: tuple[str, ...]
    score: Callable[..., Tensor]


def pointwise(model: Scorer, labels: Tensor, **inputs: Tensor) -> Tensor:
    """Binary cross-entropy of each row's score with its explicit 0/1 label: (B,) losses."""
    return F.binary_cross_entropy_with_logits(
        model.score(**inputs), labels.to(torch.get_default_dtype()), reduction="none"
    )


def table(rows: int, dim: int, std: float) -> nn.Embedding:
    """An embedding table drawn from N(0, std^2). Row 0, the padding id, is an ordinary row."""
    embedding = nn.Embedding(rows, dim)
    nn.init.normal_(embedding.weight, std=std)
    return embedding


class MF(nn.Module):
    """Matrix factorisation: s(u, i) = P[u] . Q[i], no biases."""

    inputs = ("users", "items")

    def __init__(self, n_users: int, n_items: int, dim: int, init_std: float) -> None:
        super().__init__()
        self.dim = dim
        self.settings = {"n_users": n_users, "n_items": n_items, "dim": dim, "init_std": init_std}
        self.users = table(n_users, dim, init_std)
        self.items = table(n_items, dim, init_std)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """All user and item vectors: (n_users, D), (n_items, D)."""
        return self.users.weight, self.items.weight

    def embed(self, users: Tensor, histories: Tensor) -> tuple[Tensor, Tensor]:
        return self.users(users), self.items.weight

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        return (self.users(users) * self.items(items)).sum(-1)  # (B, D) -> (B,)


class LightGCN(nn.Module):
    """Vectors smoothed over the user-item graph: the mean of K propagation steps and the start.

    `users` and `items` (E,) are the edges, the positive training rows. A node without an edge
    keeps only its own start, E_0 / (K + 1).
    """

    inputs = ("users", "items")
    edges: Tensor
    weight: Tensor

    def __init__(
        self,
        n_users: int,
        n_items: int,
        dim: int,
        init_std: float,
        layers: int,
        users: np.ndarray,
        items: np.ndarray,
    ) -> None:
        super().__init__()
        self.sizes = (n_users, n_items)
        self.dim = dim
        self.settings = {"n_users": n_users, "n_items": n_items, "dim": dim, "init_std": init_std}
        self.settings |= {"layers": layers}
        self.layers = layers
        self.nodes = table(n_users + n_items, dim, init_std)  # E_0: users, then items
        edges, weight = normalised_graph(n_users, n_items, users, items)
        self.register_buffer("edges", torch.from_numpy(edges), persistent=False)
        self.register_buffer("weight", torch.from_numpy(weight), persistent=False)
        self._kept: Tensor | None = None

    def interactions(self) -> dict[str, Tensor]:
        """The edges it was built from: `users` and `items`, (E,) each."""
        n_users = self.sizes[0]
        users, items = self.edges[:, self.edges[0] < n_users].cpu()
        return {"users": users.contiguous(), "items": (items - n_users).contiguous()}

    def train(self, mode: bool = True) -> LightGCN:
        self._kept = None  # the weights may change: what was propagated no longer holds
        return super().train(mode)

    def propagate(self) -> Tensor:
        """E = mean of E_0 .. E_K with E_(l+1) = D^-1/2 A D^-1/2 E_l: (n_users + n_items, D)."""
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        layer = total = self.nodes.weight
        for _ in range(self.layers):
            layer = SymmetricProduct.apply(layer, self.edges, self.weight)
            total = total + layer
        mean = total / (self.layers + 1)
        if not self.training and not torch.is_grad_enabled():
            self._kept = mean
        return mean

    def vectors(self) -> tuple[Tensor, Tensor]:
        """All user and item vectors: (n_users, D), (n_items, D)."""
        users, items = self.propagate().split(self.sizes)
        return users, items

    def embed(self, users: Tensor, histories: Tensor) -> tuple[Tensor, Tensor]:
        user_vectors, item_vectors = self.vectors()
        return F.embedding(users, user_vectors), item_vectors

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        user_vectors, item_vectors = self.vectors()
        # F.embedding and not indexing: the gradient of an index adds rows in any order.
        product = F.embedding(users, user_vectors) * F.embedding(items, item_vectors)
        return product.sum(-1)  # (B, D) -> (B,)


def normalised_graph(
    n_users: int, n_items: int, users: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """D^-1/2 A D^-1/2 without self loops: both directions of each edge (2, 2E) and weights (2E,).

    Users are nodes 0 .. n_users - 1, items follow. A repeated edge counts once. Edges are sorted by
    row and column, as torch's coalesced layout wants them.
    """
    nodes = n_users + n_items
    pairs = np.unique(users.astype(np.int64) * nodes + n_users + items)  # one number per edge
    ends = np.stack([pairs // nodes, pairs % nodes])
    edges = np.concatenate([ends, ends[::-1]], axis=1)
    edges = edges[:, np.lexsort((edges[1], edges[0]))]
    scale = np.maximum(np.bincount(edges[0], minlength=nodes), 1) ** -0.5  # 1: no edge
    return edges, (scale[edges[0]] * scale[edges[1]]).astype(np.float32)


class SymmetricProduct(torch.autograd.Function):
    """A @ x for a fixed symmetric sparse A: the gradient is A @ grad, no transpose is built."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
        ctx.graph = edges, weight
        size = (len(x), len(x))
        return (
            torch.sparse_coo_tensor(
                edges, weight.to(x), size, is_coalesced=True, check_invariants=False
            )
            @ x
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return SymmetricProduct.apply(grad.contiguous(), *ctx.graph), None, None
