"""Rankers that read texts and pictures of items beside ids (baselines of ExplainRec's table I).

Vectors of encoders come as frozen tables of the names "text" and "visual", each (n_items, D); row 0
is padding, and a row of zeros is an item that has none. All of them score u . i, and are trained
with `rankers.bpr`.

VBPR     He and McAuley, AAAI 2016, equation 4
MMGCN    Wei et al., ACM MM 2019, equations 1 to 9
LATTICE  Zhang et al., ACM MM 2021, equations 1 to 11

Memory   Nothing is items x items: neighbours are found in blocks of rows, and graphs are lists of
         edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit import collaborative
from reprokit.collaborative import SymmetricProduct, normalised_graph
from reprokit.rankers import IdRanker, half_squares
from reprokit.runs import RequestError

Features = Mapping[str, np.ndarray]
"""By modality: float32 vectors of all items, (n_items, D)."""


def chosen(features: Features, modalities: str, n_items: int) -> dict[str, Tensor]:
    """The tables of the named modalities ("text", "visual" or "text,visual"), in this order.

    Raises RequestError where a name, a table or all of its vectors are missing.
    """
    names = [name.strip() for name in modalities.split(",")]
    if not set(names) <= {"text", "visual"} or len(set(names)) != len(names):
        raise RequestError(f"modalities must be text, visual or text,visual, got '{modalities}'")
    for name in names:
        if name not in features or not features[name].any():
            raise RequestError(
                f"no item has a {name} vector in this data set: leave {name} out of modalities"
            )
        table = features[name]
        assert len(table) == n_items and not table[0].any() and np.isfinite(table).all()
    return {name: torch.from_numpy(np.ascontiguousarray(features[name])) for name in names}


# --- VBPR ---------------------------------------------------------------------------------------
class VBPR(IdRanker):
    """s(u, i) = b_i + gamma_u . gamma_i + sum over modalities of theta_u . (E f_i) + beta' . f_i

    f_i has unit length; an item without a picture has no visual term. The paper's constants of a
    user cancel in its loss and are left out. `penalty` is over the vectors and biases of a row: E
    and beta', which are everybody's, the authors' code does not regularise either.

    Args:
        dim, visual_dim: widths of gamma and theta; 10 each in the paper.
        modalities: "visual" is the paper's; each named one has its own theta, E and beta'.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        features: Features,
        dim: int = 10,
        visual_dim: int = 10,
        modalities: str = "visual",
    ) -> None:
        super().__init__()
        tables = chosen(features, modalities, n_items)
        joined = [F.normalize(table) for table in tables.values()]
        self.widths = [table.shape[1] for table in joined]
        self.features: Tensor
        self.register_buffer("features", torch.cat(joined, 1), persistent=False)  # (n_items, F)
        self.users = nn.Embedding(n_users, dim + visual_dim * len(joined))  # gamma_u, theta_u
        self.items = nn.Embedding(n_items, dim)
        self.bias = nn.Embedding(n_items, 1)
        self.projections = nn.ModuleList(
            nn.Linear(width, visual_dim, bias=False) for width in self.widths
        )
        self.of_features = nn.Linear(self.features.shape[1], 1, bias=False)  # beta'
        for module in (self.users, self.items, *self.projections):
            nn.init.xavier_normal_(module.weight)
        for module in (self.bias, self.of_features):
            nn.init.zeros_(module.weight)

    def item_vectors(self, items: Tensor, features: Tensor) -> Tensor:
        """[gamma_i; E f_i; b_i + beta' . f_i] of items (...) with features (..., F)."""
        parts = features.split(self.widths, -1)
        projected = [of(part) for of, part in zip(self.projections, parts, strict=True)]
        bias = self.bias(items) + self.of_features(features)
        return torch.cat([self.items(items), *projected, bias], -1)

    def user_vectors(self, users: Tensor) -> Tensor:
        """[gamma_u; theta_u; 1], (B, D)."""
        return F.pad(self.users(users), (0, 1), value=1.0)

    def compute(self) -> tuple[Tensor, Tensor]:
        items = torch.arange(len(self.features), device=self.features.device)
        users = torch.arange(self.users.num_embeddings, device=items.device)
        return self.user_vectors(users), self.item_vectors(items, self.features)

    def pair_vectors(self, items: Tensor, **context: Tensor) -> tuple[Tensor, Tensor]:
        features = F.embedding(items, self.features)  # (B, K, F)
        return self.user_vectors(context["users"]), self.item_vectors(items, features)

    def penalty(self, users: Tensor, items: Tensor, context: Tensor, listed: Tensor) -> Tensor:
        return half_squares(self.users(users), self.items(items), self.bias(items))


# --- MMGCN --------------------------------------------------------------------------------------
class MMGCN(IdRanker):
    """For each modality a graph network of its own, which starts from the items' vectors and a
    learned preference of each user; the mean over modalities (equations 1 to 9).

    Everything is registered and trained. In the authors' code ids and preferences are not, so that
    their optimiser leaves them as they are drawn. Layers are three there, whatever is asked for.
    An item without edges has its own features, by way of the layers' own part.

    Args:
        users, items: (E,) the edges, positive training rows.
        dim: width of ids and of all layers; 64.
        visual: width that visual vectors are brought to first, as in the authors' code; 0: theirs.
    """

    edges: Tensor
    ones: Tensor
    share: Tensor

    def __init__(
        self,
        n_users: int,
        n_items: int,
        users: np.ndarray,
        items: np.ndarray,
        features: Features,
        dim: int = 64,
        layers: int = 3,
        visual: int = 256,
        modalities: str = "text,visual",
    ) -> None:
        super().__init__()
        self.sizes = [n_users, n_items]
        self.ids = nn.Embedding(n_users + n_items, dim)  # of users, then items; all modalities'
        nn.init.xavier_normal_(self.ids.weight)
        edges, _ = normalised_graph(n_users, n_items, users, items)
        degree = np.bincount(edges[0], minlength=n_users + n_items)
        self.register_buffer("edges", torch.from_numpy(edges), persistent=False)
        self.register_buffer("ones", torch.ones(edges.shape[1]), persistent=False)
        share = torch.from_numpy(1 / np.maximum(degree, 1)).float()[:, None]
        self.register_buffer("share", share, persistent=False)  # (nodes, 1)
        self.networks = nn.ModuleDict(
            {
                name: ModalityGraph(table, n_users, dim, layers, visual if name == "visual" else 0)
                for name, table in chosen(features, modalities, n_items).items()
            }
        )

    def mean(self, x: Tensor) -> Tensor:
        """The mean over each node's neighbours, zeros where there are none: (nodes, D).

        Written as D^-1 (A x): what is not symmetric is a scale of rows, and needs no transpose.
        """
        return SymmetricProduct.apply(x, self.edges, self.ones) * self.share

    def compute(self) -> tuple[Tensor, Tensor]:
        of_modalities = [of(self.ids.weight, self.mean) for of in self.networks.values()]
        users, items = torch.stack(of_modalities).mean(0).split(self.sizes)
        return users, items

    def penalty(self, users: Tensor, items: Tensor, context: Tensor, listed: Tensor) -> Tensor:
        """The mean square of the user's ids and of the items', and that of all preferences.

        The authors' code takes the visual preference alone, which its optimiser does not move.
        """
        ids = self.ids(users).square().mean(1)
        ids = ids + self.ids(items + self.sizes[0]).square().mean((1, 2))
        preferences: Any = [of.preference for of in self.networks.values()]
        return ids + sum(preference.square().mean() for preference in preferences)


class ModalityGraph(nn.Module):
    """The graph network of one modality, from its items' vectors (n_items, D).

    Args:
        reduced: width that the vectors are brought to by a linear layer; 0: they stay.
    """

    features: Tensor

    def __init__(self, features: Tensor, n_users: int, dim: int, layers: int, reduced: int) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        width = reduced or features.shape[1]
        self.reduce = nn.Linear(features.shape[1], width) if reduced else nn.Identity()
        self.preference = nn.Parameter(nn.init.xavier_normal_(torch.empty(n_users, width)))
        self.layers = nn.ModuleList(
            ModalityLayer(dim if layer else width, dim) for layer in range(layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)

    def forward(self, ids: Tensor, mean: Any) -> Tensor:
        """Ids (nodes, dim) -> vectors of all users, then of all items: (nodes, dim)."""
        x = F.normalize(torch.cat([self.preference, self.reduce(self.features)]))
        for layer in self.layers:
            x = layer(x, ids, mean)
        return x


class ModalityLayer(nn.Module):
    """Neighbours (equation 1) beside the node's own vector and id, joined (equations 3 to 6)."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.neighbour = nn.Linear(width, dim, bias=False)
        self.own, self.join = nn.Linear(width, dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, ids: Tensor, mean: Any) -> Tensor:
        near = F.leaky_relu(mean(self.neighbour(x)))
        own = F.leaky_relu(self.own(x)) + ids
        return F.leaky_relu(self.join(torch.cat([near, own], 1)))


# --- LATTICE ------------------------------------------------------------------------------------
class LATTICE(IdRanker):
    """LightGCN, whose items also have the mean of items that look or read alike (equations 1-11).

    The graph between items is `raw_weight` times one of the features as they are and the rest one
    of learned projections, each a mixture of the modalities' by learned weights. It has the
    `neighbours` most similar items of each, itself among them. An item without a vector of a
    modality has no edges in it, neither from it nor to it. Edges between users and items have
    LightGCN's normalisation; the authors' code divides by a row's sum and adds self loops.

    Rebuild   The 1st training pass, and every `rebuild`-th after it, builds the graph anew, with
              gradients of projections and weights; between two of them it is a constant, as in the
              authors' code, which builds at the first batch of an epoch. The count of passes and
              the graph are buffers, so that a resumed run goes on with the same. A pass is one
              forward pass with gradients in training: with micro-batches, one of them. Projections
              and weights have a gradient of zero in other passes, so that every parameter has one
              in every step and an optimiser's momentum goes on, as in that code. Evaluation builds
              the graph of the current weights.

    Args:
        users, items: (E,) the edges between users and items, positive training rows.
        rebuild: steps of an epoch.
        layers, item_layers: steps over the graph of users and items, and of items; 2 and 1.
        train_features: the feature tables train too, as in the authors' code, which starts from
            tables of an encoder. The part of the graph made of them as they are stays.
    """

    rows: Tensor
    by_row: Tensor
    raw_columns: Tensor
    columns: Tensor
    values: Tensor
    passes: Tensor

    def __init__(
        self,
        n_users: int,
        n_items: int,
        users: np.ndarray,
        items: np.ndarray,
        features: Features,
        rebuild: int,
        dim: int = 64,
        layers: int = 2,
        item_layers: int = 1,
        neighbours: int = 10,
        raw_weight: float = 0.9,
        modalities: str = "text,visual",
        train_features: bool = False,
    ) -> None:
        super().__init__()
        if rebuild < 1 or neighbours < 1:
            raise RequestError(
                f"LATTICE: rebuild and neighbours must be at least 1, got {rebuild}, {neighbours}"
            )
        self.sizes, self.rebuild, self.item_layers = (n_users, n_items), rebuild, item_layers
        self.raw_weight = raw_weight
        self.base = collaborative.LightGCN(n_users, n_items, dim, 1.0, layers, users, items)
        for part in self.base.nodes.weight.data.split(self.sizes):
            nn.init.xavier_uniform_(part)
        tables = chosen(features, modalities, n_items).values()
        similar = [SimilarItems(table, dim, neighbours, train_features) for table in tables]
        self.modalities: Any = nn.ModuleList(similar)
        self.weights = nn.Parameter(torch.full((len(tables),), 0.5))
        # Edges: of each modality as it is, then of each modality's projection.
        rows = torch.cat([of.present[of.local_rows] for of in similar] * 2)
        raw_columns = torch.cat([of.present[of.raw_columns] for of in similar])
        by_row = rows.argsort(stable=True)
        for name, value in (
            ("rows", rows[by_row]),
            ("by_row", by_row),
            ("raw_columns", raw_columns),
        ):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("columns", torch.zeros_like(raw_columns))  # of the learned half
        self.register_buffer("values", torch.zeros(len(rows)))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._edges: Edges | None = None

    def train(self, mode: bool = True) -> LATTICE:
        self._edges = None
        return super().train(mode)

    def build(self) -> tuple[Tensor, Edges, Tensor]:
        """The graph of the current weights: the learned half's columns, all edges, their values."""
        weights = self.weights.softmax(0)  # equation 6
        raw, learned, columns = [], [], []
        degree = torch.zeros(self.sizes[1], 1, device=weights.device)
        for weight, modality in zip(weights, self.modalities, strict=True):
            column, value = modality.learned()
            raw.append(self.raw_weight * weight * modality.raw_values)
            learned.append(weight * value)
            columns.append(modality.present[column])
            sums = learned[-1].view(len(modality.present), -1).sum(1, keepdim=True)
            degree = degree.index_add(0, modality.present, sums)  # each item once
        ends = torch.cat([m.present[m.local_rows] for m in self.modalities]), torch.cat(columns)
        scale = inverse_root(degree)
        new = torch.cat(learned) * F.embedding(ends[0], scale)[:, 0]
        new = new * F.embedding(ends[1], scale)[:, 0] * (1 - self.raw_weight)
        values = torch.cat([*raw, new]).index_select(0, self.by_row)  # equation 7
        return ends[1], self.edges(ends[1]), values

    def edges(self, columns: Tensor) -> Edges:
        everything = torch.cat([self.raw_columns, columns])[self.by_row]
        return Edges(self.rows, everything, self.sizes[1])

    def item_graph(self) -> tuple[Edges, Tensor]:
        """The edges between items and their values: see Rebuild."""
        if not (self.training and torch.is_grad_enabled()):
            return self.build()[1:]
        rebuild = int(self.passes) % self.rebuild == 0
        self.passes += 1
        if rebuild:
            columns, self._edges, values = self.build()
            self.columns.copy_(columns)
            self.values = values.detach()
            return self._edges, values
        if self._edges is None:  # resumed, or evaluated in between
            self._edges = self.edges(self.columns)
        return self._edges, self.values

    def compute(self) -> tuple[Tensor, Tensor]:
        users, items = self.base.vectors()
        edges, values = self.item_graph()
        near = self.base.nodes.weight[self.sizes[0] :]
        for _ in range(self.item_layers):
            near = SparseProduct.apply(values, near, edges)  # equation 8
        near = F.normalize(near)
        if self.training and not values.requires_grad:  # a gradient of zero: see Rebuild
            learned = (*self.modalities.parameters(), self.weights)
            near = near + sum(0 * parameter.sum() for parameter in learned)
        return users, items + near  # equation 9


class SimilarItems(nn.Module):
    """Which items of one modality are alike: by its vectors, and by a projection of them.

    Items of the modality have numbers 0 .. P - 1 here; `present` (P,) are their ids.
    """

    present: Tensor
    local_rows: Tensor
    raw_columns: Tensor
    raw_values: Tensor

    def __init__(self, table: Tensor, dim: int, neighbours: int, train: bool) -> None:
        super().__init__()
        present = torch.nonzero(table.any(1))[:, 0]
        features = table[present]
        self.count = min(neighbours, len(present))
        self.projection = nn.Linear(table.shape[1], dim)
        columns = nearest(features, self.count)
        rows = torch.arange(len(present)).repeat_interleave(self.count)
        edges = Edges(rows, columns.flatten(), len(present))
        unit = F.normalize(features)
        values = edges.dots(unit, unit)
        scale = inverse_root(values.view(columns.shape).sum(1))
        values = values * scale[rows] * scale[edges.columns]  # equation 3
        for name, value in (
            ("present", present),
            ("local_rows", rows),
            ("raw_columns", edges.columns),
            ("raw_values", values),
        ):
            self.register_buffer(name, value, persistent=False)
        self.features: Tensor
        if train:
            self.features = nn.Parameter(features)
        else:
            self.register_buffer("features", features, persistent=False)

    def learned(self) -> tuple[Tensor, Tensor]:
        """Neighbours by the projection (equations 4, 5): columns (P k,), cosines (P k,)."""
        unit = F.normalize(self.projection(self.features))
        columns = nearest(unit.detach(), self.count).flatten()
        edges = Edges(self.local_rows, columns, len(unit))
        return columns, EdgeProducts.apply(unit, edges)


def inverse_root(degree: Tensor) -> Tensor:
    """degree^-1/2, and 0 where it is not positive: nothing is there, or what is there cancels."""
    positive = degree > 0
    return torch.where(positive, degree, 1).rsqrt() * positive


# --- sparse graphs ------------------------------------------------------------------------------
BLOCK_BYTES = 2**26
"""Similarities, or vectors of edges' ends, held at once on a CPU; a GPU holds 16 times as many."""


def nearest(vectors: Tensor, count: int) -> Tensor:
    """The `count` rows of highest cosine with each row, itself among them: (n, D) -> (n, count).

    Highest first; of equal cosines the first row. Memory is one block of rows x n. Gradients: none.
    """
    with torch.no_grad():
        unit = F.normalize(vectors.float())
        n = len(unit)
        rows = max(1, block_bytes(unit) // (4 * n))
        return torch.cat([highest(block @ unit.T, count) for block in unit.split(rows)])


def highest(scores: Tensor, count: int) -> Tensor:
    """Columns of the `count` highest scores of each row, highest first, of equal ones the first."""
    n = scores.shape[1]
    if count >= n:
        return torch.sort(scores, dim=1, descending=True, stable=True).indices
    value, column = scores.topk(count + 1, 1)
    # Of equal scores topk takes any: at the end of the list, the choice is made again.
    tied = torch.nonzero(value[:, -1] == value[:, -2])[:, 0]
    value, column = value[:, :count], column[:, :count]
    if len(tied):
        found = torch.sort(scores[tied], dim=1, descending=True, stable=True)
        value, column = value.clone(), column.clone()
        value[tied], column[tied] = found.values[:, :count], found.indices[:, :count]
    column, order = column.sort(1)
    value = value.gather(1, order)
    return column.gather(1, torch.sort(value, dim=1, descending=True, stable=True).indices)


def block_bytes(x: Tensor) -> int:
    return BLOCK_BYTES * (16 if x.is_cuda else 1)


class Edges:
    """A directed graph of n nodes: (E,) ends of its edges, sorted by row.

    An edge may stand there several times, its values are then added.
    """

    def __init__(self, rows: Tensor, columns: Tensor, nodes: int) -> None:
        self.rows, self.columns, self.nodes = rows, columns, nodes
        self.by_column = columns.argsort(stable=True)

    def product(self, values: Tensor, x: Tensor) -> Tensor:
        """A @ x: (E,), (n, D) -> (n, D)."""
        return self.matrix(self.rows, self.columns, values) @ x

    def transposed(self, values: Tensor, x: Tensor) -> Tensor:
        """A^T @ x: (E,), (n, D) -> (n, D)."""
        order = self.by_column
        return self.matrix(self.columns[order], self.rows[order], values[order]) @ x

    def matrix(self, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(
            torch.stack([rows, columns]),
            values,
            (self.nodes, self.nodes),
            is_coalesced=True,
            check_invariants=False,
        )

    def dots(self, a: Tensor, b: Tensor) -> Tensor:
        """a[row] . b[column] of each edge, in blocks of edges: (n, D) twice -> (E,)."""
        size = max(1, block_bytes(a) // (8 * a.shape[1]))
        ends = zip(self.rows.split(size), self.columns.split(size), strict=True)
        return torch.cat([(a[row] * b[column]).sum(1) for row, column in ends])


class SparseProduct(torch.autograd.Function):
    """A @ x with gradients of both: of x by the transpose, of the values edge by edge."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.edges = edges
        return edges.product(values.to(x), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (values, x), edges, grad = ctx.saved_tensors, ctx.edges, grad.contiguous()
        of_values = edges.dots(grad, x).to(values) if ctx.needs_input_grad[0] else None
        of_x = edges.transposed(values.to(grad), grad) if ctx.needs_input_grad[1] else None
        return of_values, of_x, None


class EdgeProducts(torch.autograd.Function):
    """x[row] . x[column] of each edge: (n, D) -> (E,). Its gradient is two sparse products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(x)
        ctx.edges = edges
        return edges.dots(x, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.edges.product(grad, x) + ctx.edges.transposed(grad, x), None
