"""Leave-one-out aggregates of reviews, from sums.

A row of a table, such as a review to be predicted, is described by the documents of its group (the
reviews of its user, those of its business, their pictures) without its own. The aggregate without a
row's own documents is the group's sum minus theirs, so that no row is looped over and no
(rows x width) table is made.

Only documents of training rows, or of no row at all, may stand in a group: whoever builds one
decides that, and `leaks` checks it from outside. Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

BLOCK = 8192
"""Rows that are held at once."""
PORTION = 1 << 20
"""Bytes of float64 sums that are worked on at once: small enough for the processor's cache."""


@dataclass(frozen=True)
class Groups:
    """Documents in groups, and the rows that are described by them."""

    of_document: np.ndarray
    """(M,) group of each document."""
    of_row: np.ndarray
    """(N,) group of each row."""
    own_rows: np.ndarray
    """(K,) and `own_documents` (K,): a row and a document that is its own; sorted by row."""
    own_documents: np.ndarray
    n_groups: int

    def __post_init__(self) -> None:
        for name, codes, end in (
            ("of_document", self.of_document, self.n_groups),
            ("of_row", self.of_row, self.n_groups),
            ("own_rows", self.own_rows, len(self.of_row)),
            ("own_documents", self.own_documents, len(self.of_document)),
        ):
            if codes.size and (codes.min() < 0 or codes.max() >= end):
                raise ValueError(f"{name} must lie from 0 to {end - 1}")
        if (np.diff(self.own_rows) < 0).any():
            raise ValueError("own_rows must be sorted")
        own_groups = self.of_document[self.own_documents]
        if (own_groups != self.of_row[self.own_rows]).any():
            raise ValueError("a row's own document lies in another row's group")

    @cached_property
    def sizes(self) -> np.ndarray:
        """(G,) documents of each group."""
        return np.bincount(self.of_document, minlength=self.n_groups)

    @cached_property
    def own_starts(self) -> np.ndarray:
        """(N + 1,) where each row's own documents begin in `own_documents`."""
        return np.searchsorted(self.own_rows, np.arange(len(self.of_row) + 1))

    @cached_property
    def others(self) -> np.ndarray:
        """(N,) documents of a row's group that are not its own."""
        return self.sizes[self.of_row] - np.diff(self.own_starts)


def segment_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sums of consecutive segments: values (K, D), starts (S + 1,) -> (S, D); empty ones are 0."""
    sums = np.zeros((len(starts) - 1, *values.shape[1:]), np.float64)
    filled = np.flatnonzero(np.diff(starts))
    if filled.size:
        sums[filled] = np.add.reduceat(values.astype(np.float64), starts[filled], axis=0)
    return sums


def merge(
    how: np.ufunc, sums: np.ndarray, places: np.ndarray, vectors: np.ndarray, of: np.ndarray
) -> None:
    """Add to, or subtract from, sums[places[k]] vectors[of[k]]; a place may come several times.

    Turn by turn, each place once in a turn: `ufunc.at` and `reduceat` are several times slower.
    """
    order = np.argsort(places, kind="stable")
    first = np.flatnonzero(np.diff(places[order], prepend=-1))
    lengths = np.diff(np.append(first, len(order)))
    turn = np.arange(len(order)) - np.repeat(first, lengths)
    for number in range(lengths.max(initial=0)):
        at = order[turn == number]
        sums[places[at]] = how(sums[places[at]], vectors[of[at]])


class Mean:
    """The mean of the documents' vectors in a row's group, its own left out: rows (B,) -> (B, D).

    A row without other documents has the mean of all documents, its own left out again; `empty`
    says which rows those are.

    Args:
        vectors: (V, D), read from the disk as they are used.
        of: (M,) the vector of each document.
    """

    def __init__(self, vectors: np.ndarray, of: np.ndarray, groups: Groups) -> None:
        if len(of) != len(groups.of_document):
            raise ValueError(f"{len(of)} vectors for {len(groups.of_document)} documents")
        if not len(of):
            raise ValueError("no documents to describe a row by")
        self.vectors, self.of, self.groups = vectors, of, groups
        self.portion = max(PORTION // (8 * self.width), 1)
        self.sums = np.zeros((groups.n_groups, self.width))  # (G, D)
        order = np.argsort(of, kind="stable")  # a file is read once, from front to back
        for part in blocks(order, self.portion):
            merge(np.add, self.sums, groups.of_document[part], vectors, of[part])
        self.total = self.sums.sum(axis=0)  # (D,)

    @property
    def width(self) -> int:
        return int(self.vectors.shape[1])

    @property
    def empty(self) -> np.ndarray:
        """(N,) whether a row has no document but its own."""
        return self.groups.others == 0

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self.width), np.float32)
        for start in range(0, len(rows), self.portion):
            some = slice(start, start + self.portion)
            self.write(rows[some], found[some])
        return found

    def write(self, rows: np.ndarray, found: np.ndarray) -> None:
        """The means of some rows into `found`, (B, D)."""
        groups = self.groups
        begins = groups.own_starts[rows]
        lengths = groups.own_starts[rows + 1] - begins
        sums, counts = self.sums[groups.of_row[rows]], groups.others[rows]
        alone = counts == 0
        sums[alone] = self.total
        owners = np.repeat(np.arange(len(rows)), lengths)
        at = np.arange(len(owners)) + np.repeat(begins - np.cumsum(lengths) + lengths, lengths)
        merge(np.subtract, sums, owners, self.vectors, self.of[groups.own_documents[at]])
        counts = np.where(alone, len(self.of) - lengths, counts)
        # One document in all, and it is the row's own: nothing is known, not even a mean.
        np.divide(sums, np.maximum(counts, 1)[:, None], out=found, casting="same_kind")


def mean_values(values: np.ndarray, groups: Groups) -> np.ndarray:
    """`Mean` for one number per document, all rows at once: values (M,) -> (N,) float64."""
    sums = np.bincount(groups.of_document, values, groups.n_groups)
    own = segment_sums(values[groups.own_documents], groups.own_starts)
    total = values.sum() - own
    alone = groups.others == 0
    rest = np.maximum(len(values) - np.diff(groups.own_starts), 1)
    known = (sums[groups.of_row] - own) / np.maximum(groups.others, 1)
    return np.where(alone, total / rest, known)


def blocks(rows: np.ndarray, size: int = BLOCK) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


# --- the check from outside ---------------------------------------------------------------------
Build = Callable[[Any], Callable[[np.ndarray], np.ndarray]]
"""Data -> (rows (B,) -> features (B, D))."""


def leaks(build: Build, data: Any, changed: Any, row: int, tolerance: float = 1e-6) -> bool:
    """Whether a row's features move when its own review does.

    Args:
        build: makes the features of some data.
        data, changed: the same but for the review of `row`.
    """
    rows = np.array([row])
    before, after = (np.asarray(build(one)(rows), np.float64) for one in (data, changed))
    return bool((np.abs(before - after) > tolerance).any())
