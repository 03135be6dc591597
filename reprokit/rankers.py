"""Rankers of one catalogue, and the losses that train them on liked items.

Users are 1 .. n_users - 1 and items 1 .. n_items - 1; 0 is padding, and table sizes count it. A
ranker's score is the product of a vector of the context, a user or a history, and a vector of the
item. Losses see positives alone and draw the items that they are ranked above.

LightGCN  He et al., SIGIR 2020, with its own pairwise loss: `bpr`
SASRec    Kang and McAuley, ICDM 2018, with its own loss, at every position: `sequence_bce`
GRU4Rec   Hidasi et al., ICLR 2016, with a softmax (`next_ce`) or a ranking loss (`bpr_max`)

Those that read pictures and texts stand in `multimodal`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit import collaborative, sequential
from reprokit.collaborative import Seen
from reprokit.nextitem import next_item_loss
from reprokit.runs import RequestError

Loss = Callable[..., Tensor]


# --- what rankers share -------------------------------------------------------------------------
class Ranker(nn.Module):
    """A model that ranks items for a context, which is all of `inputs` but the items."""

    inputs: tuple[str, ...] = ("users", "items")
    """Names of the batch's columns that `score` reads."""

    def pair_vectors(self, items: Tensor, **context: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of B contexts (B, D) and of items (B, K) listed for each: (B, K, D)."""
        raise NotImplementedError

    def all_vectors(self, **context: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of B contexts (B, D) and of all items (n_items, D)."""
        raise NotImplementedError

    def pair_scores(self, items: Tensor, **context: Tensor) -> Tensor:
        """Items (B, K) -> their scores (B, K). What is propagated is so once for all of them."""
        return products(*self.pair_vectors(items, **context))

    def score(self, items: Tensor, **context: Tensor) -> Tensor:
        """Scores of an item for each context, (B,) -> (B,), or of a list: (B, K) -> (B, K)."""
        if items.dim() == 2:
            return self.pair_scores(items, **context)
        return self.pair_scores(items[:, None], **context)[:, 0]

    def all_scores(self, **context: Tensor) -> Tensor:
        """Scores of all items, (B, n_items); the padding's, in column 0, is -inf."""
        vectors, catalogue = self.all_vectors(**context)
        scores = vectors @ catalogue.T
        scores[:, 0] = -torch.inf
        return scores

    def penalty(self, users: Tensor, items: Tensor, context: Tensor, listed: Tensor) -> Tensor:
        """What `bpr` regularises, for each row (B,): half the squared norms of a row's vectors.

        users (B,), items (B, K) and their vectors as `pair_vectors` gives them.
        """
        return half_squares(context, listed)


def products(context: Tensor, items: Tensor) -> Tensor:
    """(B, D), (B, K, D) -> (B, K)."""
    return (context.unsqueeze(1) * items).sum(-1)


def half_squares(*vectors: Tensor) -> Tensor:
    """Half the sum of squares of a row, over all the tensors (B, ...): (B,)."""
    return sum((v.flatten(1).square().sum(1) for v in vectors), torch.zeros(())) / 2


class IdRanker(Ranker):
    """A ranker whose contexts are users: a subclass has `compute`.

    What `compute` gives is kept while the model is evaluated, so that a graph is propagated once
    for all batches, of rated pairs and of lists alike. It is dropped where the weights change: in
    training and by loading them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(lambda model, _: model.drop())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Vectors of all users (n_users, D) and of all items (n_items, D)."""
        raise NotImplementedError

    def drop(self) -> None:
        """Forget what was kept, in parts that keep a graph of their own too."""
        self._kept = None
        for part in self.children():
            part.train(part.training)

    def train(self, mode: bool = True) -> Any:
        if mode or self.training:
            self.drop()
        return super().train(mode)

    def vectors(self) -> tuple[Tensor, Tensor]:
        """`compute`, or what is kept of it."""
        if self.training or torch.is_grad_enabled():
            return self.compute()
        if self._kept is None:
            self._kept = self.compute()
        return self._kept

    def pair_vectors(self, items: Tensor, **context: Tensor) -> tuple[Tensor, Tensor]:
        users, catalogue = self.vectors()
        # F.embedding and not indexing: the gradient of an index adds rows in any order.
        return F.embedding(context["users"], users), F.embedding(items, catalogue)

    def all_vectors(self, **context: Tensor) -> tuple[Tensor, Tensor]:
        users, catalogue = self.vectors()
        return F.embedding(context["users"], users), catalogue


def bpr(seen: Seen, reg: float = 0.0) -> Loss:
    """-log sigmoid(s(u, i) - s(u, j)), j a sampled item that u has not liked (Rendle et al. 2009).

    The loss is loss(model, users, items, **more) -> (B,), for positive pairs; `more` are the
    columns that the model reads beside users and items, such as histories.

    reg: weight of the model's `penalty`.
    """

    def loss(model: Ranker, users: Tensor, items: Tensor, **more: Tensor) -> Tensor:
        listed = torch.cat([items[:, None], seen.negatives(users)], 1)  # (B, 2)
        context = {"users": users, **more} if "users" in model.inputs else more
        vectors = model.pair_vectors(listed, **context)
        scores = products(*vectors).float()
        losses = F.softplus(scores[:, 1] - scores[:, 0])
        if reg:
            losses = losses + reg * model.penalty(users, listed, *vectors)
        return losses

    return loss


# --- a graph ------------------------------------------------------------------------------------
class LightGCN(IdRanker):
    """Vectors smoothed over the graph of liked items; regularised is what they start from.

    Args:
        users, items: (E,) the edges, positive training rows.
        layers, init_std: 3 and 0.1 in the authors' code, which regularises with weight 1e-4.
    """

    def __init__(
        self,
        n_users: int,
        n_items: int,
        users: np.ndarray,
        items: np.ndarray,
        dim: int = 64,
        layers: int = 3,
        init_std: float = 0.1,
    ) -> None:
        super().__init__()
        self.graph = collaborative.LightGCN(n_users, n_items, dim, init_std, layers, users, items)

    def compute(self) -> tuple[Tensor, Tensor]:
        return self.graph.vectors()

    def penalty(self, users: Tensor, items: Tensor, context: Tensor, listed: Tensor) -> Tensor:
        """Half the squared norms of layer 0."""
        nodes = torch.cat([users[:, None], items + self.graph.sizes[0]], 1)  # (B, 1 + K)
        return half_squares(self.graph.nodes(nodes))


# --- sequences ----------------------------------------------------------------------------------
def liked_sequences(
    users: np.ndarray, items: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """What sequence models train on: each user's last `length` items, left-padded with 0.

    users, items: (E,) positive training events, sorted by user and then by time. Returns the users
    (R,) and their items (R, length); who likes one item alone has no next one and is left out. A
    model that reads L items learns from L + 1.

    Raises RequestError where nobody likes two items.
    """
    kept, start, count = np.unique(users, return_index=True, return_counts=True)
    kept, end = kept[count > 1], (start + count)[count > 1]
    if not len(kept):
        raise RequestError(
            "no training sequence: no user has two positive training events; a sequence model "
            "cannot learn from this data set"
        )
    at = end[:, None] - length + np.arange(length)
    inside = at >= start[count > 1][:, None]
    return kept.astype(np.int64), np.where(inside, items[np.where(inside, at, 0)], 0).astype(int)


class SequenceRanker(Ranker):
    """A ranker whose contexts are histories: item ids (B, L), oldest first, left-padded with 0.

    A subclass has `table` and `states`, and a cheaper `last`.
    """

    inputs = ("histories", "items")

    @property
    def table(self) -> Tensor:
        """Item vectors (n_items, D), for scores and for the encoder alike."""
        raise NotImplementedError

    def states(self, histories: Tensor) -> Tensor:
        """The state after each item, where it stands: (B, L) -> (B, L, D)."""
        raise NotImplementedError

    def last(self, histories: Tensor) -> Tensor:
        """The state after the whole history: (B, L) -> (B, D)."""
        return self.states(histories)[:, -1]

    def pair_vectors(self, items: Tensor, **context: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(context["histories"]), F.embedding(items, self.table)

    def all_vectors(self, **context: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(context["histories"]), self.table


class SASRec(SequenceRanker):
    """Causal self-attention over the history, the blocks of `sequential.SASRec`.

    Args:
        max_len: items that are read of a history, its last ones; the authors: 200 for MovieLens,
            50 for Amazon's reviews.
        dim, blocks, heads: 50, 2 and 1 in the paper.
        dropout: the paper: 0.2 for MovieLens, 0.5 for sparser data.
    """

    def __init__(
        self,
        n_items: int,
        dim: int = 50,
        max_len: int = 50,
        blocks: int = 2,
        heads: int = 1,
        dropout: float = 0.2,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.max_len = max_len
        self.network = sequential.SASRec(n_items, dim, init_std, max_len, blocks, heads, dropout)

    @property
    def table(self) -> Tensor:
        return self.network.items.weight

    def fit(self, histories: Tensor) -> Tensor:
        """Histories cut or padded on the left: (B, L) -> (B, max_len)."""
        return F.pad(histories[:, -self.max_len :], (max(0, self.max_len - histories.shape[1]), 0))

    def states(self, histories: Tensor) -> Tensor:
        width = histories.shape[1]
        if width > self.max_len:
            raise RequestError(f"SASRec: {width} steps, but max_len is {self.max_len}; raise it")
        histories, net = self.fit(histories), self.network
        real = (histories > 0).unsqueeze(-1)  # (B, max_len, 1)
        x = net.dropout(net.items(histories) * net.scale + net.positions.weight) * real
        for block in net.blocks:
            x = block(x, real)
        return net.norm(x)[:, -width:]

    def last(self, histories: Tensor) -> Tensor:
        return self.network.encode(self.fit(histories))


class GRU4Rec(SequenceRanker):
    """A recurrent network over the history, `sequential.GRU4Rec`.

    An empty history is read as one item whose vector is zeros: its state is the last layer's bias,
    which is learned. Padding is in no training step, so that a drawn vector would stay as it is and
    decide what people without a history are told.

    Args:
        dim, hidden, layers, dropout: RecBole's 64, 128, 1 and 0.3; the authors: 100 units.
    """

    def __init__(
        self, n_items: int, dim: int = 64, hidden: int = 128, layers: int = 1, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.network = sequential.GRU4Rec(n_items - 1, 0, dim, hidden, layers, dropout)
        with torch.no_grad():
            self.network.items.weight[0] = 0

    @property
    def table(self) -> Tensor:
        return self.network.items.weight

    def states(self, histories: Tensor) -> Tensor:
        states, _ = self.network.states(turned(histories, right=True))
        return turned(states, right=False, like=histories)

    def last(self, histories: Tensor) -> Tensor:
        return self.network.last(turned(histories, right=True))


def turned(x: Tensor, right: bool, like: Tensor | None = None) -> Tensor:
    """From padding on the left to padding on the right, or (not `right`) back: (B, L, ...).

    Where a row's padding ends is known from its ids, `like` (B, L) on the left; None: `x` itself.
    """
    like = x if like is None else like
    width = like.shape[1]
    padding = (like == 0).sum(1, keepdim=True)  # (B, 1)
    at = (torch.arange(width, device=x.device) + (padding if right else width - padding)) % width
    if x.dim() > 2:
        at = at.unsqueeze(-1).expand_as(x)
    return x.gather(1, at)


def sequence_bce(seen: Seen, per_row: float = 1.0) -> Loss:
    """Binary cross-entropy of each next item and of one sampled item in its place: SASRec's loss.

    The loss is loss(model, users, sequences) -> (B,), for `liked_sequences`: a sum over positions,
    divided by `per_row`. The mean number of positions of a row makes a batch's loss the mean over
    positions, each of which weighs the same, as in the authors' code.
    """

    def loss(model: SequenceRanker, users: Tensor, sequences: Tensor) -> Tensor:
        histories, targets = sequences[:, :-1], sequences[:, 1:]
        listed = torch.stack([targets, seen.negatives(users, targets.shape[1])], 2)  # (B, L, 2)
        states = model.states(histories)
        scores = (states.unsqueeze(2) * F.embedding(listed, model.table)).sum(-1).float()
        losses = F.softplus(-scores[..., 0]) + F.softplus(scores[..., 1])
        return (losses * (histories > 0)).sum(1) / per_row

    return loss


def next_ce(per_row: float = 1.0, sampled: int = 0) -> Loss:
    """Cross-entropy of each next item over the catalogue, for GRU4Rec.

    The loss is loss(model, users, sequences) -> (B,), as in `sequence_bce`; `users` is not read.

    sampled: items of a sampled softmax; 0: the exact one.
    """

    def loss(model: GRU4Rec, users: Tensor, sequences: Tensor) -> Tensor:
        histories = turned(sequences[:, :-1], right=True)
        # The padding left of a row's first item is one longer in a sequence's targets.
        targets = turned(sequences[:, 1:] * (sequences[:, :-1] > 0), right=True)
        return next_item_loss(
            model.network, targets, "all", sampled, per_row=per_row, items=histories
        )

    return loss


def bpr_max(count: int = 256, reg: float = 1.0, per_row: float = 1.0) -> Loss:
    """BPR-max of Hidasi and Karatzoglou (CIKM 2018, equation 10), for sequence models.

    With r_i the next item's score, r_j those of sampled items and w_j their softmax:

        -log sum_j w_j sigmoid(r_i - r_j) + reg sum_j w_j r_j^2

    The `count` items are drawn uniformly and without replacement, the same for all positions of a
    batch; at a position whose next item is drawn, that one is left out. (The authors take the other
    next items of the batch and add items by popularity.) The loss is loss(model, users, sequences)
    -> (B,), as in `sequence_bce`; `users` is not read.
    """
    if count < 2:
        raise RequestError(f"BPR-max: it samples at least 2 items, got {count}")

    def loss(model: SequenceRanker, users: Tensor, sequences: Tensor) -> Tensor:
        histories, targets = sequences[:, :-1], sequences[:, 1:]
        places = sequential.Places(histories > 0)
        states, own = places.pack(model.states(histories)), places.pack(targets)  # (P, D), (P,)
        drawn = 1 + torch.randperm(len(model.table) - 1, device=own.device)[:count]  # (S,)
        positive = (states * F.embedding(own, model.table)).sum(-1, keepdim=True).float()  # (P, 1)
        others = (states @ F.embedding(drawn, model.table).T).float()  # (P, S)
        weights = others.masked_fill(own[:, None] == drawn, -torch.inf).log_softmax(1)
        losses = -(weights + F.logsigmoid(positive - others)).logsumexp(1)
        losses = losses + reg * (weights.exp() * others.square()).sum(1)
        # Copied back and not added to a row's sum, which would be in any order on a GPU.
        return places.unpack(losses[:, None])[..., 0].sum(1) / per_row

    return loss
