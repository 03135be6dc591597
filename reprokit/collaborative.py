"""Collaborative filtering: models that know users and items by id alone.

Of clicks: each model has `score(users, items) -> (B,)` and the names of the inputs it reads; a loss
is a function of a model and a batch. So one model trains under any objective, and one objective
serves any model.

MF         Koren et al. 2009, without biases, as CoLLM (arXiv 2310.19488) runs it
LightGCN   He et al., SIGIR 2020, equations 3, 7 and 8; graph of the positive training rows

Of two domains, whose items are 1 .. n_a (A) and n_a + 1 .. n_a + n_b (B), as in `nextitem`:

BPRMF      Rendle et al., UAI 2009 (arXiv 1205.2618)
NCFMLP     He et al., WWW 2017: the MLP alone, no GMF
ItemKNN    Sarwar et al., WWW 2001, for binary data
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from reprokit.nextitem import NextItem, rank_counts
from reprokit.runs import RequestError


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


# --- negatives ----------------------------------------------------------------------------------
ROUNDS = 10
"""Times that a sampled negative which is a positive is drawn again."""


class Seen:
    """The training pairs, to draw items that a user has no pair with.

    Args:
        users, items: (E,) positive pairs in any order; a repeated pair counts once.
        n_items: rows of the item table: items are 1 .. n_items - 1.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_items: int) -> None:
        if not len(users):
            raise RequestError(
                "no training pairs: a model that learns from sampled negatives needs users and "
                "their items; check which training rows are positive"
            )
        self.n_items = n_items
        # One number for each pair, sorted.
        self.keys = torch.from_numpy(np.unique(users.astype(np.int64) * n_items + items))

    def taken(self, users: Tensor, items: Tensor) -> Tensor:
        """Whether (user, item) is a training pair; users and items broadcast."""
        self.keys = self.keys.to(users.device)
        key = users * self.n_items + items
        at = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return self.keys[at] == key

    def unpaired(self, users: Tensor, first: Tensor, size: Tensor, count: int) -> Tensor:
        """Uniform items first .. first + size - 1 of each row, (B,) all: (B, count).

        A draw that is a positive is repeated at most `ROUNDS` times and then kept: of a user with
        the share p of these items, p ** (ROUNDS + 1) of the negatives are positives.
        """
        drawn = uniform(first[:, None].expand(-1, count), size[:, None])
        for _ in range(ROUNDS):
            row, column = torch.nonzero(self.taken(users[:, None], drawn), as_tuple=True)
            if not len(row):
                break
            drawn[row, column] = uniform(first[row], size[row])
        return drawn

    def negatives(self, users: Tensor, count: int = 1) -> Tensor:
        """Uniform items of the whole catalogue, none a training positive: (B,) -> (B, count)."""
        first = torch.ones_like(users)
        return self.unpaired(users, first, first * (self.n_items - 1), count)


def uniform(first: Tensor, size: Tensor) -> Tensor:
    """Integers first .. first + size - 1, in first's shape, from torch's generator of the device.

    The remainder of a number below 2^62 is uniform to within size / 2^62.
    """
    return first + torch.randint(2**62, first.shape, device=first.device) % size


# --- pairs of two domains -----------------------------------------------------------------------
class UserItem(NextItem):
    """Users and items by id, learned from (user, item) pairs: what BPRMF and NCFMLP share.

    Scores rank all items of a domain, those of the context included, as the protocol does.

    Domains   A user has a vector in each domain and the domains have nothing in common: the same
              as two models trained side by side. `shared`: one vector, learned from both domains.
    Unseen    A user without a training pair in the domain (`shared`: in either) gets the mean of
              the vectors of all users who have one there.

    Args:
        n_users: users are 0 .. n_users - 1.
        users, items: (E,) positive training pairs in any order; a repeated pair counts once.
    """

    inputs = ("users", "items")
    trained: Tensor
    """(2, n_users): which users have a vector learned for A, for B."""

    def __init__(
        self,
        n_users: int,
        n_a: int,
        n_b: int,
        users: np.ndarray,
        items: np.ndarray,
        dim: int,
        shared: bool,
    ) -> None:
        super().__init__()
        self.seen = Seen(users, items, 1 + n_a + n_b)
        assert items.min() > 0 and items.max() <= n_a + n_b and users.max() < n_users
        self.sizes, self.n_users, self.dim, self.shared = (n_a, n_b), n_users, dim, shared
        self.users = nn.Embedding(n_users if shared else 2 * n_users, dim)  # A's users, then B's
        self.items = nn.Embedding(1 + n_a + n_b, dim, padding_idx=0)
        trained = np.zeros((2, n_users), bool)
        trained[(items > n_a).astype(int), users] = True
        if shared:
            trained |= trained.any(0)
        self.register_buffer("trained", torch.from_numpy(trained), persistent=False)

    def tables(self) -> tuple[Tensor, Tensor]:
        a, b = self.items.weight[1:].split(self.sizes)
        return a, b

    def parts(self) -> list[Tensor]:
        """The tables that are initialised each on its own: users, items of A, items of B."""
        return [part.data for part in (*self.users.weight.split(self.n_users), *self.tables())]

    def domain_of(self, items: Tensor) -> Tensor:
        """0 for items of A, 1 for items of B."""
        return (items > self.sizes[0]).long()

    def unseen(self, users: Tensor, domain: int | Tensor) -> Tensor:
        """Which of these users have no vector of their own for the domain: (B,) booleans.

        `domain`: 0 or 1, or one for each user, (B,).
        """
        return ~self.trained[domain, users]

    def own(self, users: Tensor, domain: Tensor) -> Tensor:
        """The users' learned vectors for a domain each: (B,), (B,) -> (B, D)."""
        return self.users(users if self.shared else domain * self.n_users + users)

    def user_vectors(self, users: Tensor, domain: Tensor) -> Tensor:
        """`own`, and for unseen users the mean of the domain's trained users: (B, D)."""
        shares = self.trained / self.trained.sum(1, keepdim=True).clamp(min=1)  # (2, n_users)
        tables = self.users.weight.view(-1, self.n_users, self.dim)  # (1 or 2, n_users, D)
        means = (shares.to(tables)[:, None] @ tables)[:, 0]  # (2, D)
        unseen = self.unseen(users, domain).unsqueeze(-1)
        return torch.where(unseen, F.embedding(domain, means), self.own(users, domain))

    def negatives(self, users: Tensor, positives: Tensor, count: int) -> Tensor:
        """Uniform items of each positive's domain, none a training positive of the user: (B, K)."""
        of_b = positives > self.sizes[0]
        first = torch.where(of_b, 1 + self.sizes[0], 1)
        size = torch.where(of_b, self.sizes[1], self.sizes[0])
        return self.seen.unpaired(users, first, size, count)


class BPRMF(UserItem):
    """s(u, i) = P[u] . Q[i] + b[i], learned to rank a user's items above others.

    Args:
        dim: width; RecBole: 64, the session lineage: 80.
        user: who a scored user is. "id": P[u]. "items": the mean of Q over the context's items, of
            this domain (`shared`: of both); a context without any is a vector of zeros. As in the
            baseline file of GRU4Rec's authors, which pi-Net's comparison used, training knows P
            all the same, and P may belong to sessions: `users` are then the numbers of the
            training sequences. Open: which of the two the published row is.
        shared: one user vector for both domains. Open; default two models, as in single-domain
            baselines.
        bias: an item bias b. The session lineage has one; Rendle's matrix factorisation and
            RecBole's have none, which is the default.

    Tables start Xavier-normal, as in RecBole, each domain's on its own.
    """

    def __init__(
        self,
        n_users: int,
        n_a: int,
        n_b: int,
        users: np.ndarray,
        items: np.ndarray,
        dim: int = 64,
        user: str = "id",
        shared: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__(n_users, n_a, n_b, users, items, dim, shared)
        if user not in ("id", "items"):
            raise RequestError(f"BPRMF: user must be id or items, got '{user}'")
        self.user = user
        for part in self.parts():
            nn.init.xavier_normal_(part)
        self.bias = nn.Embedding(1 + n_a + n_b, 1) if bias else None
        if self.bias is not None:
            nn.init.zeros_(self.bias.weight)

    def unseen(self, users: Tensor, domain: int | Tensor) -> Tensor:
        unseen = super().unseen(users, domain)
        return unseen if self.user == "id" else torch.zeros_like(unseen)  # no id is read

    def domain_scores(self, domain: int, items: Tensor, **more: Tensor) -> Tensor:
        if self.user == "items":
            user = self.mean_of(items, domain)
        else:
            user = self.user_vectors(more["users"], torch.full_like(more["users"], domain))
        scores = user @ self.tables()[domain].T  # (B, D) -> (B, n_domain)
        if self.bias is not None:
            scores = scores + self.bias.weight[1:, 0].split(self.sizes)[domain]
        return scores

    def mean_of(self, items: Tensor, domain: int) -> Tensor:
        """Mean vector of a context's items, of this domain or (`shared`) of both: (B, D)."""
        mine = items > 0
        if not self.shared:
            mine = mine & (self.domain_of(items) == domain)
        total = (self.items(items) * mine.unsqueeze(-1)).sum(1)
        return total / mine.sum(1, keepdim=True).clamp(min=1)


def bpr_loss(model: BPRMF, users: Tensor, positives: Tensor, l2: float = 0.0) -> Tensor:
    """-log sigmoid(s(u, i) - s(u, j)) with one sampled negative j of i's domain: (B,).

    l2: adds l2 (|P[u]|^2 + |Q[i]|^2 + |Q[j]|^2), the regularisation of Rendle et al.: a vector
        shrinks when it is used. An optimiser's weight decay shrinks rare items at every step, and
        Adam's does so at full step size. RecBole: 0.
    """
    items = torch.cat([positives[:, None], model.negatives(users, positives, 1)], 1)  # (B, 2)
    user, item = model.own(users, model.domain_of(positives)), model.items(items)
    scores = (user[:, None] * item).sum(-1)  # (B, 2)
    if model.bias is not None:
        scores = scores + model.bias(items)[..., 0]
    loss = -F.logsigmoid(scores[:, 0] - scores[:, 1])
    if l2:
        loss = loss + l2 * (user.square().sum(1) + item.square().sum((1, 2)))
    return loss


PAIRS = 2**15
"""(user, item) pairs that NCFMLP scores at once on a CPU, 4 MiB at 32 wide; a GPU takes 64 times
as many."""


class NCFMLP(UserItem):
    """s(u, i) = MLP([P[u]; Q[i]]) (He et al., equation 10), a tower for each domain.

    Users are known by id in the original and in pi-Net's comparison alike.

    Args:
        tower: widths of the layers. The first is the concatenation [P; Q], so that vectors are half
            as wide. 64-32-16-8 is the default of the authors' code; (128, 128, 64) is RecBole's
            NeuMF without its GMF.
        shared: one user vector for both domains and still a tower for each: NCF-MLP++ of pi-Net's
            comparison. Open; default two models, as in single-domain baselines.
        dropout: after each ReLU; the authors: none, RecBole: 0.1 (before each layer).
        init_std: of the vectors, 0.01 in the authors' code. As there, layers start Glorot-uniform
            and the last one LeCun-uniform.
        full: `score` also counts over all items of the domain. False: it computes only the target
            and its negatives and marks the last two counts -1.
    """

    def __init__(
        self,
        n_users: int,
        n_a: int,
        n_b: int,
        users: np.ndarray,
        items: np.ndarray,
        tower: Sequence[int] = (64, 32, 16, 8),
        shared: bool = False,
        dropout: float = 0.0,
        init_std: float = 0.01,
        full: bool = True,
    ) -> None:
        if len(tower) < 2 or tower[0] % 2:
            raise RequestError(
                f"NCFMLP: tower must be two or more widths, the first even, got {list(tower)}"
            )
        super().__init__(n_users, n_a, n_b, users, items, tower[0] // 2, shared)
        for part in self.parts():
            nn.init.normal_(part, std=init_std)
        self.towers: Any = nn.ModuleList(Tower(tower, dropout) for _ in range(2))
        self.full = full

    def pair_scores(self, vectors: Tensor, items: Tensor) -> Tensor:
        """User vectors (B, D), items (B, K), of one domain in each row -> scores (B, K)."""
        domain = self.domain_of(items[:, 0])
        scores = torch.zeros(items.shape, device=items.device)
        for number, tower in enumerate(self.towers):
            # A domain without rows runs too: every weight has a gradient in every step.
            at = torch.nonzero(domain == number)[:, 0]
            user, item = tower.halves(vectors[at], self.items(items[at]))
            scores = scores.index_copy(0, at, tower.rest(user[:, None] + item).float())
        return scores

    def domain_scores(self, domain: int, items: Tensor, **more: Tensor) -> Tensor:
        users, tower = more["users"], self.towers[domain]
        vectors = self.user_vectors(users, torch.full_like(users, domain))
        user, item = tower.halves(vectors, self.tables()[domain])  # (B, h), (n_domain, h)
        blocks = item.split(max(1, pairs_at_once(users.device) // max(1, len(users))))
        return torch.cat([tower.rest(user[:, None] + block) for block in blocks], 1)

    def score(self, targets: Tensor, negatives: Tensor, **inputs: Tensor) -> Tensor:
        """Counts of the target's rank, (B, 5); unless `full`, the last two are -1."""
        if self.full:
            return super().score(targets, negatives, **inputs)
        vectors = self.user_vectors(inputs["users"], self.domain_of(targets))
        listed = torch.cat([targets[:, None], negatives], 1)  # (B, 1 + K)
        rows = max(1, pairs_at_once(targets.device) // listed.shape[1])
        blocks = zip(vectors.split(rows), listed.split(rows), strict=True)
        scores = torch.cat([self.pair_scores(*block) for block in blocks])
        columns = torch.arange(listed.shape[1], device=targets.device).expand_as(listed)
        counts = rank_counts(scores, columns[:, 0], columns[:, 1:])
        counts[:, 3:] = -1
        return counts


class Tower(nn.Module):
    """ReLU layers over [p; q] and a last one to a number, in two steps.

    The first layer of [p; q] is W_u p + b + W_i q: computed once per user and once per item, and
    added pair by pair.
    """

    def __init__(self, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        sizes = [*widths, 1]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_uniform_(layers[-1].weight, nonlinearity="linear")  # LeCun's
        self.first, self.layers = layers[0], nn.ModuleList(layers[1:])
        self.dropout = nn.Dropout(dropout)

    def halves(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) each -> (..., h) each; their sum is the first layer before its ReLU."""
        of_user, of_item = self.first.weight.chunk(2, 1)
        return F.linear(user, of_user, self.first.bias), F.linear(item, of_item)

    def rest(self, x: Tensor) -> Tensor:
        """(..., h) before the first ReLU, overwritten -> scores (...)."""
        for layer in self.layers:
            x = layer(self.dropout(x.relu_()))
        return x.squeeze(-1)


def pairs_at_once(device: torch.device) -> int:
    return PAIRS * (64 if device.type == "cuda" else 1)


def bce_loss(model: NCFMLP, users: Tensor, positives: Tensor, count: int = 4) -> Tensor:
    """Binary cross-entropy of a positive and `count` sampled negatives, their mean: (B,).

    As each of the 1 + count pairs is a row of its own in the original, the mean over a batch is the
    same. 4 is the original's number and pi-Net's.
    """
    items = torch.cat([positives[:, None], model.negatives(users, positives, count)], 1)
    scores = model.pair_scores(model.own(users, model.domain_of(positives)), items)
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    return F.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(1)


# --- neighbours ---------------------------------------------------------------------------------
class ItemKNN:
    """Items that stand in the same rows, with nothing to train. c_ij rows hold both i and j.

    variant   "sum": w_ij = c_ij / (sqrt(c_i c_j) + shrink), the cosine of Sarwar et al. for binary
              data; the score of i is the sum of w_ij over the items j of the context that are among
              the k most similar to i.
              "last": w_ij = c_ij / ((c_i + shrink)^damping (c_j + shrink)^(1 - damping)), as in the
              baseline file of GRU4Rec's authors, which pi-Net's comparison used; the score of j is
              w_ij for the last item i of the context if j is among the k most similar to i, else 0.
    scope     "merged": similarities between all items. "domain": only between items of one domain,
              and "last" means the last item of that domain. Open: which the published row has.

    Args:
        k: neighbours kept per item; 100 in RecBole and in the session lineage. Equally similar
            ones are kept in the order of their ids.
        shrink: None: 0 for "sum" (RecBole), 20 for "last" (session lineage).
        damping: of "last"; 0.5 weighs the popularity of both items alike.
    """

    def __init__(
        self,
        k: int = 100,
        shrink: float | None = None,
        damping: float = 0.5,
        scope: str = "merged",
        variant: str = "sum",
    ) -> None:
        if variant not in ("sum", "last"):
            raise RequestError(f"ItemKNN: variant must be sum or last, got '{variant}'")
        if scope not in ("merged", "domain"):
            raise RequestError(f"ItemKNN: scope must be merged or domain, got '{scope}'")
        if k < 1:
            raise RequestError(f"ItemKNN: k must be at least 1, got {k}")
        default = 0.0 if variant == "sum" else 20.0
        self.k, self.shrink = k, default if shrink is None else shrink
        self.damping, self.scope, self.variant = damping, scope, variant

    def fit(self, rows: np.ndarray, items: np.ndarray, n_items: tuple[int, int]) -> ItemKNN:
        """Learn from events (row, item): (E,) each; a row is a training sequence, or a user.

        n_items: items of A and of B. An item that comes again in a row counts once.
        """
        self.n_items, n = n_items, sum(n_items)
        pairs = np.unique(rows.astype(np.int64) * n + items - 1)
        row, item = pairs // n, pairs % n
        table = sparse.csr_array((np.ones(len(pairs)), (row, item)), shape=(row.max() + 1, n))
        i, j, value = self.similarities(table)
        kept = largest(i, value, self.k)
        i, j, value = i[kept], j[kept], value[kept]
        # A row is an item of the context, a column is an item to score.
        ends = (j, i) if self.variant == "sum" else (i, j)
        weights = sparse.csr_array((value, ends), shape=(n, n))
        self.weights = (weights[:, : n_items[0]], weights[:, n_items[0] :])
        return self

    def similarities(self, table: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs i, j that stand together, sorted, and w_ij: (S,) each."""
        together = (table.T @ table).tocsr()
        together.sort_indices()
        i = np.repeat(np.arange(together.shape[0]), np.diff(together.indptr))
        j, count = together.indices, together.data
        kept = i != j
        if self.scope == "domain":
            kept &= (i < self.n_items[0]) == (j < self.n_items[0])
        i, j, count = i[kept], j[kept], count[kept]
        alone = np.asarray(table.sum(0), np.float64)  # (n,) rows of each item
        if self.variant == "sum":
            value = count / (np.sqrt(alone[i] * alone[j]) + self.shrink)
        else:
            left, right = self.damping, 1 - self.damping
            value = count / ((alone + self.shrink) ** left)[i] / ((alone + self.shrink) ** right)[j]
        # In single precision, equal similarities that were rounded apart are equal again, and
        # their sums in double precision depend on no order.
        return i, j, value.astype(np.float32).astype(np.float64)

    def scores(self, context: np.ndarray, domain: int) -> np.ndarray:
        """Scores of all items of a domain: contexts (B, L), right-padded -> (B, n_domain) float32.

        Items of the context are scored like others; an item that nothing speaks for scores 0.
        """
        return (self.read(context, domain) @ self.weights[domain]).astype(np.float32).toarray()

    def read(self, context: np.ndarray, domain: int) -> Any:
        """What of the contexts the variant reads: (B, n) of zeros and ones."""
        mine = context > 0
        if self.variant == "last":
            if self.scope == "domain":
                mine &= (context > self.n_items[0]) == bool(domain)
            mine &= np.cumsum(mine[:, ::-1], 1)[:, ::-1] == 1  # none of them comes after it
        row, column = np.nonzero(mine)
        item = context[row, column] - 1
        shape = (len(context), sum(self.n_items))
        table = sparse.csr_array((np.ones(len(row)), (row, item)), shape=shape)
        table.data[:] = 1  # an item that stands twice in a context counts once
        return table


def largest(groups: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest values of each (sorted) group; of equal ones the first."""
    order = np.lexsort((-values, groups))  # stable
    starts = np.searchsorted(groups, groups, side="left")  # the same for the sorted groups
    return order[np.arange(len(order)) - starts < k]
