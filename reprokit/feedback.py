"""Ratings with what is known of users and items: the data of ExplainRec as arrays.

Events are sorted by user, then time, then file order; each belongs to a split, and the history of a
row is a run of its user's earlier events, so that no row owns a copy. A row of training has the
earlier training events of its user as its history, one of validation all training events, one of
the test split these and the validation events: no test rating is ever in a history. Loaders and
splits stand in `ratings`.

Ids are dense and start at 1; 0 is padding, and table sizes count it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.datasets import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Ints = NDArray[np.int64]

SPLITS = ("train", "valid", "test", "support")
"""A support event is read as history of its user and is never trained on."""
GROUPS = ("ordinary", "new_users", "new_items", "cross")
"""Of held-out rows: why they are hard."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """Ratings in splits. Arrays over events are (N,), over users (n_users,), over items (n_items,);
    entry 0 of the last two is padding."""

    name: str
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    ratings: NDArray[np.float32]
    times: Ints
    """Unix seconds."""
    labels: NDArray[np.int8]
    """1 where the rating is positive; -1 where it is sealed."""
    split: NDArray[np.int8]
    """Index into `SPLITS`."""
    group: NDArray[np.int8]
    """Index into `GROUPS`; 0 outside validation and test."""
    starts: Ints
    """(n_users + 1,): events of user u are `starts[u]:starts[u + 1]`."""
    history_end: NDArray[np.int32]
    """The history of row n is the events `starts[users[n]]:history_end[n]`."""
    user_ids: list[str]
    item_ids: list[str]
    """The publisher's ids."""
    titles: list[str]
    genres: list[tuple[str, ...]]
    tags: list[tuple[str, ...]]
    """What people call an item, most frequent first; never by way of a held-out event."""
    people: list[tuple[str, ...]]
    """Makers of an item: directors, actors, authors, brands."""
    descriptions: list[str]
    domain: NDArray[np.int8]
    """Of each item: 0, or 1 for the domain that a cross-domain set is tested on."""
    demographics: dict[str, NDArray[np.int16]]
    """By name, such as "gender": a code of each user, -1 unknown. Empty where nothing is known."""
    reviews: list[str] | None = None
    """Text of each event, "" where none was written; None: the data set has no reviews."""
    pictures: Sequence[Path | None] | NDArray[np.uint8] = ()
    """Of each item: a file or None; or pixels (n_items, 3, height, width); empty: none at all."""
    has_picture: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    """(n_items,)."""
    item_word: str = "film"
    """What an item is called in a prompt."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was read, dropped and kept."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    def rows(self, split: str) -> Ints:
        """The events of a split, in order."""
        return np.flatnonzero(self.split == SPLITS.index(split))

    @cached_property
    def by_label(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """For disliked and for liked events: (their numbers, how many stand before each event).

        int32, because MovieLens-25M has 25 million events.
        """
        found = []
        for label in (0, 1):
            mine = self.labels == label
            before = np.zeros(len(mine) + 1, np.int32)
            np.cumsum(mine, out=before[1:])
            found.append((np.flatnonzero(mine).astype(np.int32), before))
        return found[0], found[1]

    def histories(self, rows: Ints, length: int, label: int | None = None) -> Ints:
        """The last events of each row's history, oldest first, left-padded with -1: (B, length).

        `label`: of liked (1) or disliked (0) events alone.
        """
        start, end = self.starts[self.users[rows]], self.history_end[rows].astype(np.int64)
        if label is not None:
            numbers, before = self.by_label[label]
            start, end = before[start].astype(np.int64), before[end].astype(np.int64)
        at = end[:, None] - length + np.arange(length)
        inside = at >= start[:, None]
        if label is None:
            return np.where(inside, at, -1)
        if not len(numbers):
            return np.full(at.shape, -1, np.int64)
        return np.where(inside, numbers[np.where(inside, at, 0)], -1).astype(np.int64)

    def items_at(self, events: Ints) -> Ints:
        """The items of events, 0 where the event is -1; any shape."""
        return np.where(events >= 0, self.items[np.where(events >= 0, events, 0)], 0).astype(int)

    @cached_property
    def item_counts(self) -> Ints:
        """Training events of each item, (n_items,)."""
        return np.bincount(self.items[self.split == 0], minlength=self.n_items)

    @cached_property
    def user_counts(self) -> Ints:
        """Training events of each user, (n_users,)."""
        return np.bincount(self.users[self.split == 0], minlength=self.n_users)

    @cached_property
    def is_cold(self) -> bool:
        """Whether held-out rows are of new users, new items or another domain."""
        return bool(self.group.any())

    def text(self, item: int) -> str:
        """What an encoder reads of an item: title, genres, tags, people, description."""
        parts = [self.titles[item], ", ".join(self.genres[item]), ", ".join(self.tags[item])]
        parts += [", ".join(self.people[item]), self.descriptions[item]]
        return ". ".join(part for part in parts if part)

    def picture(self, item: int) -> Image | None:
        """An item's picture in red, green and blue; None where there is none.

        Raises DataError where its file cannot be read.
        """
        from PIL import Image

        if not len(self.has_picture) or not self.has_picture[item]:
            return None
        if isinstance(self.pictures, np.ndarray):
            return Image.fromarray(np.ascontiguousarray(self.pictures[item].transpose(1, 2, 0)))
        path = self.pictures[item]
        try:
            with Image.open(path) as file:  # type: ignore[arg-type]
                return file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path}: not a readable image ({error}). Replace it, or move it away: an item "
                "without a picture is counted as one"
            ) from None

    def sealed(self) -> Feedback:
        """The same with the test rows closed: no rating, label or review, and no count of theirs.

        Which items they are of stays: a candidate that a user has not rated is known from it.
        """
        hidden = self.split == SPLITS.index("test")
        reviews = self.reviews
        if reviews is not None:
            reviews = ["" if hide else text for hide, text in zip(hidden, reviews, strict=True)]
        return replace(
            self,
            ratings=np.where(hidden, np.float32(np.nan), self.ratings),
            labels=np.where(hidden, np.int8(-1), self.labels),
            reviews=reviews,
            counts={key: n for key, n in self.counts.items() if not key.startswith("test ")},
        )


def paired(first: Any, second: Any, size: int) -> Ints:
    """One number for each pair of whole numbers, in the order of the pairs; 0 <= second < size.

    In 64 bits, which the product of an array of 32 bits and a scalar is not in every numpy.
    """
    return np.multiply(first, size, dtype=np.int64) + second


def history_ends(users: Any, split: Any, starts: Ints) -> NDArray[np.int32]:
    """Where the history of each event ends; events sorted by user, and of a user training or
    support events first, then validation, then test: (N,).

    Raises DataError where the splits of a user are not in that order.
    """
    n = len(users)
    order = np.array([0, 1, 2, 0], np.int8)[split]  # support stands with training
    same = users[1:] == users[:-1]
    if (same & (order[1:] < order[:-1])).any():
        raise DataError("the splits of a user are not in the order of time")
    # First event of the row's own split, for held-out rows; the row itself, for training rows.
    fresh = np.ones(n, bool)
    fresh[1:] = ~same | (order[1:] != order[:-1]) | (order[1:] == 0)
    ends = np.where(fresh, np.arange(n, dtype=np.int32), 0)
    return np.maximum.accumulate(ends, out=ends)
