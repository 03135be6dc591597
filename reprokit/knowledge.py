"""The knowledge graph of MIFN (Ma et al., TKDD 2022) and what a sequence sees of it.

Graph   Nodes are the items 1 .. n_items and the categories that follow them; 0 is padding. Five
        relations: also bought, also viewed, bought after viewing, bought together, and item to
        category, which also takes Movie-Book's edges between a film and the book behind it, as
        in the authors' data.
Leak    The links were collected over all time and know the future of every split: `LEAK_NOTE`.
        Build the graph from the items that training sees (`visible`); that hides the items that
        are new in validation and test, not the links that were made after training.

What a sequence sees, chosen from its items alone:
1. A breadth-first search from its A items and one from its B items, of at most `hops` steps; both
   stop after the step in which one reaches an item of the sequence on the other side.
2. First the items of the sequence, in order; then the nodes on a path of at most `hops` edges from
   an A item to a B item; then nodes of both sides, by quotas proportional to what each reached.
   A node is on the side that is nearer to it; at equal distance on that of its own domain, a
   category on A's.
3. Inside a quota nearer nodes come first, then those with more neighbours, then smaller ids.
4. Between the nodes chosen stand all edges of the graph; every node has a self loop, and items
   that follow each other in the sequence are linked in all five relations.

Where this differs from the authors' code, or had to be settled
D1  The order inside a quota is theirs by cosine of pre-trained vectors, which were not published
    (and their ranked list is lost in a set).
D2  Where fewer nodes are reached than asked for, the rest is padding, which is masked; theirs
    draws random entities without edges.
D3  Their graph also holds products that are in neither domain's item list (50,273 and 82,552
    entities on Food-Kitchen); here every node is an item of the data set or a category.
D4  Every edge is read both ways; their code reads heads to tails, from a file that is absent.
D5  Theirs keeps, of the edges between the nodes chosen, those that the search followed.
D6  Open: which level of Amazon's categories; theirs are 32 for Food-Kitchen. By default each item
    has the names right below the root (`metadata.read_metadata`): roots would put all items of a
    domain within two steps of each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.metadata import RELATIONS as LINKS
from reprokit.runs import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Ints = NDArray[Any]

RELATIONS = (*LINKS, "category")
"""The order of the adjacency's second axis."""
LEAK_NOTE = (
    "MIFN's knowledge graph is made of Amazon's also-bought, also-viewed, bought-after-viewing and "
    "bought-together links, which were collected over all time: a link may stem from purchases "
    "that are to be predicted, so this row knows part of the future. Only items seen in training "
    "are in the graph."
)
FAR = 50
"""Distance of a node that the search did not reach; twice it still fits into eight bits."""
WIDE = 1 / 64
"""Neighbours, as a share of all nodes, from which reading them as bits is faster than as a list."""


class Graph:
    """The knowledge graph, as two lists of neighbours: one to search, one with the relations.

    Args:
        n_a, n_b: items of the two domains; ids 1 .. n_a and n_a + 1 .. n_a + n_b.
        edges: (E, 2) item ids by relation, the four of `RELATIONS` that link items.
        item_categories: (E, 2) item id and number of the category, from 0.
        n_categories: how many there are; category c is node 1 + n_a + n_b + c.
        visible: (1 + n_a + n_b,) True where training sees the item; edges of others are dropped.
            None: all are seen.
        adaptation: (E, 2) film and book, read as edges of the fifth relation.
        n_nodes: nodes of a sequence. Authors' code: 200.
        hops: longest search. Authors' code: 2.
    """

    def __init__(
        self,
        n_a: int,
        n_b: int,
        edges: Mapping[str, Ints],
        item_categories: Ints,
        n_categories: int,
        visible: NDArray[np.bool_] | None = None,
        adaptation: Ints | None = None,
        n_nodes: int = 200,
        hops: int = 2,
    ) -> None:
        if sorted(edges) != sorted(LINKS):
            raise RequestError(
                f"the graph's edges are {', '.join(sorted(edges)) or 'missing'}: give one array "
                f"for each of {', '.join(LINKS)}"
            )
        if not 1 <= hops < FAR:
            raise RequestError(f"hops is {hops}: give 1 to {FAR - 1}")
        if not 1 <= n_nodes < 2**15:
            raise RequestError(f"n_nodes is {n_nodes}: give 1 to {2**15 - 1}")
        self.n_a, self.n_items, self.n_categories = n_a, n_a + n_b, n_categories
        self.n_nodes, self.hops = n_nodes, hops
        self.size = 1 + n_a + n_b + n_categories
        if visible is None:
            visible = np.ones(1 + self.n_items, bool)
        parts = [self._links(name, edges[name], visible) for name in LINKS]
        classes = self._classes(item_categories, visible)
        if adaptation is not None:
            classes = np.concatenate([classes, self._links("adaptation", adaptation, visible)])
        self._keep(*_joined([*parts, classes], self.size))

    def _links(self, name: str, pairs: Ints, visible: NDArray[np.bool_]) -> Ints:
        """The links between two different, visible items."""
        pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
        self._check(name, pairs, 1, self.n_items)
        return pairs[visible[pairs].all(1) & (pairs[:, 0] != pairs[:, 1])]

    def _classes(self, pairs: Ints, visible: NDArray[np.bool_]) -> Ints:
        """Visible items and the nodes of their categories."""
        pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
        self._check("item_categories, items", pairs[:, 0], 1, self.n_items)
        self._check("item_categories, categories", pairs[:, 1], 0, self.n_categories - 1)
        return pairs[visible[pairs[:, 0]]] + [0, 1 + self.n_items]

    def _check(self, name: str, ids: Ints, low: int, high: int) -> None:
        wrong = ids[(ids < low) | (ids > high)]
        if len(wrong):
            raise RequestError(f"{name}: {wrong[0]} is no id from {low} to {high}; check the graph")

    def _keep(self, low: Ints, high: Ints, relation: Ints) -> None:
        """Two lists of the edges low - high, which stand once for each of their relations.

        Nodes have a rank, by degree and then id: what the search finds is in order at once.
        """
        new = np.ones(len(low), bool)  # the first of the edges between the same two nodes
        new[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
        degree = np.bincount(np.concatenate([low[new], high[new]]), minlength=self.size)
        self._id = np.lexsort((np.arange(self.size), -degree)).astype(np.int32)
        self._rank = np.empty_like(self._id)
        self._rank[self._id] = np.arange(self.size)
        self._in_b = (self._id > self.n_a) & (self._id <= self.n_items)
        low, high = self._rank[low], self._rank[high]
        heads, tails = np.concatenate([[low[new], high[new]], [high[new], low[new]]], axis=1)
        self._first, (self._tails,) = _listed(heads, self.size, tails)
        # With relations: at the end that has fewer neighbours, so that no list is long.
        few, many = np.maximum(low, high), np.minimum(low, high)
        self._start, (self._other, self._relation) = _listed(few, self.size, many, relation)
        # Nodes of many neighbours have them as bits, too: the lowest ranks.
        self._wide = np.zeros((int((degree > WIDE * self.size).sum()), self.size), bool)
        mine = heads < len(self._wide)
        self._wide[heads[mine], tails[mine]] = True
        self._wide = np.packbits(self._wide, axis=1)

    def nodes(self, items: Ints) -> Ints:
        """What each sequence sees: (R, L) items, right-padded with 0 -> (R, n_nodes) nodes."""
        longest = int((items > 0).sum(1).max(initial=0))
        if longest > self.n_nodes:
            raise RequestError(
                f"a sequence of {longest} items does not fit into {self.n_nodes} nodes: raise "
                "n_nodes"
            )
        chosen = np.zeros((len(items), self.n_nodes), np.int32)
        for row, sequence in zip(chosen, items, strict=True):
            own = np.array(list(dict.fromkeys(sequence[sequence > 0].tolist())), np.int64)
            row[: len(own)] = own
            more = self._id[self._around(own)]
            row[len(own) : len(own) + len(more)] = more
        return chosen

    def _around(self, own: Ints) -> Ints:
        """The nodes, by rank, that join the items `own` of a sequence."""
        near = self._search(own)
        near[:, self._rank[own]] = FAR
        room = self.n_nodes - len(own)
        length = near[0] + near[1]
        between = np.flatnonzero(length <= self.hops)
        between = between[np.argsort(length[between], kind="stable")][:room]
        near[:, between] = FAR
        in_b = (near[1] < near[0]) | ((near[1] == near[0]) & self._in_b)
        closest = near.min(0)
        sides = []
        for mine in (~in_b, in_b):
            hops = [np.flatnonzero(mine & (closest == hop)) for hop in range(1, self.hops + 1)]
            sides.append(np.concatenate(hops))
        quotas = shares(room - len(between), len(sides[0]), len(sides[1]))
        return np.concatenate([between, sides[0][: quotas[0]], sides[1][: quotas[1]]])

    def _search(self, own: Ints) -> Ints:
        """Steps from the A items and from the B items of a sequence to every node: (2, size)."""
        near = np.full((2, self.size), FAR, np.int8)
        start = self._rank[own[own <= self.n_a]], self._rank[own[own > self.n_a]]
        near[0, start[0]] = near[1, start[1]] = 0
        for hop in range(1, self.hops + 1):
            for side in near:
                found = self._next_to(np.flatnonzero(side == hop - 1)) & (side == FAR)
                side -= found * np.int8(FAR - hop)  # far faster than through a mask
            if (near[0, start[1]] < FAR).any():  # edges go both ways: so has the other side met it
                break
        return near

    def _next_to(self, ranks: Ints) -> NDArray[np.bool_]:
        """Which nodes are neighbours of any of these: (size,)."""
        wide = ranks[ranks < len(self._wide)]
        bits = np.bitwise_or.reduce(self._wide[wide], axis=0)  # all zero for none
        found = np.unpackbits(bits, count=self.size).view(bool)
        few = ranks[ranks >= len(self._wide)]
        found[self._tails[spans(self._first[few], self._first[few + 1])]] = True
        return found

    def adjacency(self, nodes: Ints, items: Ints) -> NDArray[np.bool_]:
        """Which nodes of a row are linked by each relation: (B, N), (B, L) -> (B, 5, N, N)."""
        rows, n = nodes.shape
        linked = np.zeros((rows, len(RELATIONS), n, n), bool)
        place = np.full((rows, self.size), -1, np.int16)  # of a node in its row
        row, at = np.nonzero(nodes)
        place[row, nodes[row, at]] = at
        linked[row, :, at, at] = True
        ranks = self._rank[nodes[row, at]]
        first, last = self._start[ranks], self._start[ranks + 1]
        edge = spans(first, last)
        of, here = np.repeat(row, last - first), np.repeat(at, last - first)
        there = place[of, self._id[self._other[edge]]]
        both = np.flatnonzero(there >= 0)
        of, here, there, relation = of[both], here[both], there[both], self._relation[edge[both]]
        linked[of, relation, here, there] = linked[of, relation, there, here] = True
        row, step = np.nonzero(items[:, 1:])
        before, after = place[row, items[row, step]], place[row, items[row, step + 1]]
        if (np.minimum(before, after) < 0).any():
            raise ValueError("the nodes are not those of these sequences: compute them again")
        linked[row, :, before, after] = linked[row, :, after, before] = True
        return linked


def _joined(parts: list[Ints], size: int) -> tuple[Ints, Ints, Ints]:
    """Edges of all relations, sorted, each once: smaller end, larger end, relation."""
    codes = [
        (part.min(1) * size + part.max(1)) * len(parts) + relation
        for relation, part in enumerate(parts)
    ]
    pairs, relation = np.divmod(np.unique(np.concatenate(codes)), len(parts))
    low, high = np.divmod(pairs, size)
    return low, high, relation.astype(np.int8)


def _listed(heads: Ints, size: int, *columns: Ints) -> tuple[Ints, list[Ints]]:
    """Columns sorted by head, and where the part of each head starts and ends: (size + 1,)."""
    order = np.argsort(heads, kind="stable")
    start = np.r_[0, np.bincount(heads, minlength=size).cumsum()]
    return start, [column[order] for column in columns]


def spans(first: Ints, last: Ints) -> Ints:
    """The numbers first[0] .. last[0] - 1, first[1] .. last[1] - 1, and so on, in one array."""
    count = last - first
    done = count.cumsum() - count
    return np.arange(count.sum()) + np.repeat(first - done, count)


def shares(room: int, a: int, b: int) -> tuple[int, int]:
    """How many of `a` and of `b` candidates fit: in proportion, what one leaves goes to the other.

    A half is rounded in favour of A, as in the authors' code.
    """
    of_a = min(a, -(-room * a // max(a + b, 1)))
    of_b = min(b, room - of_a)
    return min(a, room - of_b), of_b


@dataclass(frozen=True, eq=False)
class Subgraphs:
    """What the sequences of one split see: the columns `nodes` and `adjacency` of its batches."""

    graph: Graph
    items: Ints
    """(R, L) the sequences, right-padded with 0; never with what is to be predicted."""
    nodes: Ints
    """(R, N), `graph.nodes(items)`: computed once and stored."""

    def batch(self, index: Ints) -> dict[str, Tensor]:
        """Rows -> nodes (B, N) int64 and adjacency (B, 5, N, N) bool."""
        import torch

        nodes = self.nodes[index].astype(np.int64)
        linked = self.graph.adjacency(nodes, self.items[index])
        return {"nodes": torch.from_numpy(nodes), "adjacency": torch.from_numpy(linked)}
