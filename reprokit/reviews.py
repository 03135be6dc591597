"""Reviews as columns: who rated what, in which words and with which pictures, in three splits.

The publishers' files are read in `reviewfiles`; `reviewdata` has the data sets by name. Positive is
a rating above 3: MMREC does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reprokit.data import SPLITS
from reprokit.datasets import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Ints = NDArray[np.int64]

Counts = dict[str, int | float]

POSITIVE = 3.0
"""A rating above it is positive."""


@dataclass(frozen=True, eq=False)
class Reviews:
    """Rows in the order train, validation, test, in file order within a split."""

    name: str
    kind: str
    """What is reviewed, a word for prompts: "restaurant" or "product"."""
    users: Ints
    """(N,) user codes from 0, by first appearance."""
    items: Ints
    """(N,) item codes from 0, by first appearance."""
    ratings: NDArray[np.float32]
    """(N,) from 1 to 5; nan where sealed."""
    texts: list[str]
    """(N,) empty where there is none."""
    split: NDArray[np.int8]
    """(N,) index into `SPLITS`."""
    user_ids: list[str]
    item_ids: list[str]
    pictures: list[str]
    """Distinct picture ids."""
    picture_rows: Ints
    """(P,) row of each pair of a row and its picture, ascending."""
    picture_of: Ints
    """(P,) index into `pictures`."""
    item_pictures: Ints
    """(n_items,) index into `pictures` of the item's own picture, which is no review's; -1 none."""
    extra_users: Ints
    """(E,) user code of each history review that is no row, ascending."""
    extra_texts: list[str]
    """(E,) its text, not empty."""
    times: Ints | None
    """(N,) unix seconds; None where the release has none."""
    picture_paths: list[Path | None]
    """Of `pictures`: the file; None where it is not here or is painted."""
    counts: Counts
    """What was read, dropped and kept. Those that tell of a split's rows begin with its name."""
    threshold: float = POSITIVE
    """Ratings above it are positive."""
    lexicon: str = ""
    """Of `lexicon.LEXICONS`, that names its kinds of business or product; empty where none does."""
    paint: Callable[[Sequence[str]], NDArray[np.uint8]] | None = None
    """Generated data: ids (n,) -> pixels (n, 3, height, width)."""
    painter: str = ""
    """Changes when what is painted does."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        return len(self.item_ids)

    @property
    def labels(self) -> NDArray[np.bool_]:
        """(N,) whether the rating is above the threshold. Of sealed rows it says nothing."""
        return self.ratings > self.threshold

    def rows(self, split: int | str) -> Ints:
        """Row numbers of a split, by name or by number."""
        index = SPLITS.index(split) if isinstance(split, str) else split
        return np.flatnonzero(self.split == index)

    @cached_property
    def has_picture(self) -> NDArray[np.bool_]:
        """(len(pictures),) whether the picture is here."""
        painted = self.paint is not None
        return np.array([painted or path is not None for path in self.picture_paths], bool)

    @cached_property
    def picture_versions(self) -> list[str]:
        """Of `pictures`: changes when the picture may have changed; empty where it is not here."""
        if self.paint is not None:
            return [f"{self.painter} {name}" for name in self.pictures]
        stats = [path.stat() if path else None for path in self.picture_paths]
        return [f"{stat.st_size} {stat.st_mtime_ns}" if stat else "" for stat in stats]

    def picture(self, index: int) -> Image | None:
        """A picture in red, green and blue, read when it is asked for; None where it is not here.

        Raises DataError where its file cannot be read.
        """
        from PIL import Image

        if self.paint is not None:
            pixels = self.paint([self.pictures[index]])[0]
            return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        path = self.picture_paths[index]
        if path is None:
            return None
        try:
            with Image.open(path) as file:
                return file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{path}: not a readable image ({error}). Replace it, or move it away: a picture "
                "that is not here is counted as missing"
            ) from None

    def sealed(self) -> Reviews:
        """The same with the test rows closed: no rating, text or picture, and no count of theirs.

        Who they are of, what about, when and in which history stays: features are built from it.
        """
        hidden = self.split == SPLITS.index("test")
        pairs = ~hidden[self.picture_rows]
        return replace(
            self,
            ratings=np.where(hidden, np.float32(np.nan), self.ratings),
            texts=["" if hide else text for hide, text in zip(hidden, self.texts, strict=True)],
            picture_rows=self.picture_rows[pairs],
            picture_of=self.picture_of[pairs],
            counts={key: n for key, n in self.counts.items() if not key.startswith("test ")},
        )
