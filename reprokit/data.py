"""Data sets as arrays: MovieLens-1M as published, and the labelled split of CCF-LLM and CoLLM.

The papers' click-through protocol (CCF-LLM section 4.1, after CoLLM) is one function, `ctr_split`:
events -> three splits of labelled rows, each row with the user's earlier positive items. Everything
is an array; a history is a pair of offsets into one shared array, so that no row owns a copy.

Ids are dense and start at 1 in order of first appearance; 0 is padding. Table sizes (`n_users`,
`n_items`) count the padding id, as the paper's Table 1 does.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from reprokit.datasets import DataError
from reprokit.download import find, fingerprint, require

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Events:
    """Ratings in file order, with the publisher's ids. All arrays (N,)."""

    users: Ints
    items: Ints
    ratings: NDArray[np.float32]
    times: Ints
    """Unix seconds, UTC."""


@dataclass(frozen=True)
class Catalogue:
    """What is known of the items: three aligned columns."""

    ids: Ints
    titles: list[str]
    genres: list[str]
    """Genre names joined by "|", empty where there are none."""


@dataclass(frozen=True)
class Rows:
    """The labelled rows of one split, sorted by user and time. All arrays (N,)."""

    users: Ints
    items: Ints
    labels: NDArray[np.int8]
    """1 where the rating is strictly above the threshold."""
    times: Ints
    warm: NDArray[np.bool_]
    """True where both the user and the item occur in training."""
    history_start: Ints
    history_end: Ints
    """The user's earlier positives are `positives[history_start:history_end]`, oldest first."""

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class CTRData:
    """A click-through data set: labelled rows in three splits and the histories they share."""

    name: str
    n_users: int
    n_items: int
    """Table sizes: the number of ids plus the padding id 0."""
    user_ids: Ints
    item_ids: Ints
    """Publisher's id of each dense id, (n_users,) and (n_items,); entry 0 is -1."""
    titles: list[str]
    genres: list[str]
    """Of each dense item id; entry 0 is empty."""
    positives: Ints
    """Dense ids of every positive event of the window, sorted by user and time, (P,)."""
    train: Rows
    valid: Rows
    test: Rows
    counts: dict[str, int]
    """What was read, dropped and kept, in the order of the steps."""

    def split(self, name: str) -> Rows:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def histories(self, rows: Rows, index: Ints, length: int) -> Ints:
        """The last earlier positives of the indexed rows, left-padded with 0: (B, length)."""
        end = rows.history_end[index, None]  # (B, 1)
        at = end - length + np.arange(length)  # (B, length), oldest first
        inside = at >= rows.history_start[index, None]
        if not len(self.positives):
            return np.zeros(at.shape, np.int64)
        return np.where(inside, self.positives[np.where(inside, at, 0)], 0)

    def sealed(self) -> CTRData:
        """The same data with the test split closed: no test label, and no positive of the test
        window.

        Training and model choice are given this. Rows of training and validation never refer to
        later positives, so nothing that they may see changes.
        """
        hidden = self.positives.copy()
        hidden[self.test.history_end[self.test.labels == 1]] = 0  # a positive row's own place
        closed = replace(self.test, labels=np.full(len(self.test), -1, np.int8))
        return replace(self, positives=hidden, test=closed)


def month(year: int, number: int) -> int:
    """First second of a calendar month in UTC, as Unix time."""
    return int(np.datetime64(f"{year:04d}-{number:02d}-01", "s").astype(np.int64))


# The window behind CCF-LLM's Table 1: ten, five and five calendar months. The text says "the 20
# most recent months"; February 2003, the last month of the file, must be left out.
ML_1M_WINDOW = (month(2001, 6), month(2002, 4), month(2002, 9), month(2003, 2))


def split_by_time(times: Ints, bounds: Sequence[int]) -> NDArray[np.int8]:
    """0, 1 or 2 for train, validation, test; -1 outside [bounds[0], bounds[3])."""
    part = np.searchsorted(np.asarray(bounds), times, side="right") - 1
    return np.where((part >= 0) & (part < 3), part, -1).astype(np.int8)


def ctr_split(
    name: str,
    events: Events,
    part: NDArray[np.int8],
    threshold: float,
    catalogue: Catalogue,
    counts: dict[str, int] | None = None,
) -> CTRData:
    """Labels, dense ids, histories and the warm flag (CCF-LLM section 4.1; CoLLM's recipe).

    `part` (N,) says which split an event belongs to, -1 for none. Rows are sorted by user, then
    time; events of one user in the same second keep the order of the file (about half of
    MovieLens-1M's rows share their second). A history holds every earlier positive of the window,
    across the splits.
    """
    keep = part >= 0
    counts = {"events read": len(part), **(counts or {}), "events in the window": int(keep.sum())}
    users, items = events.users[keep], events.items[keep]
    ratings, times, part = events.ratings[keep], events.times[keep], part[keep]
    for index, split in enumerate(SPLITS):
        if not (part == index).any():
            raise DataError(
                f"{name}: no event falls into the {split} window; is the file complete?"
            )
    order = np.lexsort((times, users))  # stable: file order inside one second
    users, items, times, part = users[order], items[order], times[order], part[order]
    labels = (ratings[order] > threshold).astype(np.int8)

    user_ids, users = first_appearance(users)
    item_ids, items = first_appearance(items)
    # Positives before row t of the same user: a running count, minus its value at the user's first
    # row.
    positive_rank = np.cumsum(labels, dtype=np.int64) - labels
    first_row = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    history_start = positive_rank[first_row][users - 1]

    in_train = part == 0
    user_seen = np.zeros(len(user_ids), bool)
    item_seen = np.zeros(len(item_ids), bool)
    user_seen[users[in_train]] = True
    item_seen[items[in_train]] = True
    warm = user_seen[users] & item_seen[items]

    def rows(index: int) -> Rows:
        at = part == index
        return Rows(
            users[at],
            items[at],
            labels[at],
            times[at],
            warm[at],
            history_start[at],
            positive_rank[at],
        )

    position = {int(key): at for at, key in enumerate(catalogue.ids)}
    missing = [int(key) for key in item_ids[1:] if int(key) not in position]
    if missing:
        raise DataError(
            f"{name}: {len(missing)} rated items have no entry in the item file, "
            f"the first is {missing[0]}"
        )
    at = [position[int(key)] for key in item_ids[1:]]
    return CTRData(
        name=name,
        n_users=len(user_ids),
        n_items=len(item_ids),
        user_ids=user_ids,
        item_ids=item_ids,
        titles=["", *(catalogue.titles[i] for i in at)],
        genres=["", *(catalogue.genres[i] for i in at)],
        positives=items[labels == 1],
        train=rows(0),
        valid=rows(1),
        test=rows(2),
        counts=counts,
    )


def first_appearance(values: Ints) -> tuple[Ints, Ints]:
    """Number values from 1 by first appearance: (value of each number, -1 for 0; numbers)."""
    unique, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    number = np.empty(len(unique), np.int64)
    number[order] = np.arange(1, len(unique) + 1)
    return np.concatenate([[-1], unique[order]]), number[inverse]


# --- MovieLens-1M -------------------------------------------------------------------------------
def opened(path: Path) -> IO[bytes]:
    """A file, unpacked where it is a .gz."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def read_double_colon(path: Path, columns: int) -> list[list[str]]:
    """Fields of a `::` separated Latin-1 file, as MovieLens-1M ships it."""
    rows = []
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            fields = line.decode("latin-1").rstrip("\r\n").split("::")
            if len(fields) != columns:
                raise DataError(f"{path}, line {number}: {len(fields)} fields, expected {columns}")
            rows.append(fields)
    return rows


def read_ml_1m_ratings(path: Path) -> Events:
    """`ratings.dat` of MovieLens-1M: UserID::MovieID::Rating::Timestamp, four integers a line."""
    with opened(path) as file:
        text = file.read()
    try:
        table = np.array(text.replace(b"::", b" ").split(), dtype=np.int64)
    except (ValueError, OverflowError):
        table = np.empty(0, np.int64)
    characters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    lines = len(ends) + (not text.endswith(b"\n"))
    colons = characters == ord(":")
    separators = np.searchsorted(ends, np.flatnonzero(colons[:-1] & colons[1:]))  # their lines
    regular = len(table) == 4 * lines and (np.bincount(separators, minlength=lines) == 3).all()
    if not regular or not np.isin(table[2::4], (1, 2, 3, 4, 5)).all():
        raise DataError(first_fault(path))
    table = table.reshape(-1, 4)
    return Events(table[:, 0], table[:, 1], table[:, 2].astype(np.float32), table[:, 3])


def first_fault(path: Path) -> str:
    """The first line that is not four integers: slow, and read only when something is wrong."""
    for number, fields in enumerate(read_double_colon(path, 4), 1):
        if not all(field.isascii() and field.isdecimal() and len(field) < 19 for field in fields):
            return f"{path}, line {number}: '{'::'.join(fields)}' is not four integers"
        if fields[2] not in {"1", "2", "3", "4", "5"}:
            return f"{path}, line {number}: {fields[2]} is not a rating from 1 to 5"
    return f"{path}: no ratings in it"


def read_ml_1m_movies(path: Path) -> Catalogue:
    """`movies.dat` of MovieLens-1M: MovieID::Title::Genres, Latin-1."""
    rows = read_double_colon(path, 3)
    for number, row in enumerate(rows, 1):
        if not (row[0].isascii() and row[0].isdecimal()):
            raise DataError(f"{path}, line {number}: '{row[0]}' is not a film id")
    return Catalogue(
        np.array([int(row[0]) for row in rows], np.int64),
        [row[1] for row in rows],
        [row[2] for row in rows],
    )


def load_ml_1m(ratings: Path, movies: Path) -> CTRData:
    """MovieLens-1M as CCF-LLM splits it, from `ratings.dat` and `movies.dat`."""
    events = read_ml_1m_ratings(ratings)
    part = split_by_time(events.times, ML_1M_WINDOW)
    return ctr_split("ml-1m", events, part, 3, read_ml_1m_movies(movies))


def load_amazon_book(reviews: Path, metadata: Path) -> CTRData:
    """Amazon-Book (2018 release) as CoLLM splits it: the year 2017, five stars positive."""
    from reprokit.amazon import books_2017

    books = books_2017(reviews, metadata)
    events = Events(books.users, books.items, books.ratings, books.times)
    ids = np.arange(len(books.item_ids), dtype=np.int64)
    catalogue = Catalogue(ids, books.titles, [""] * len(ids))
    return ctr_split("amazon-book", events, books.split, 4, catalogue, books.counts)


def click_world() -> Any:
    """The world behind the demo's clicks: many people and items appear late, as in MovieLens-1M.

    There 36% of the validation rows and 43% of the test rows have a user or an item that training
    lacks, which is what a language model is called in for; here it is 27% and 61%. With these
    shares the CF models stand about where they stand in print.
    """
    from reprokit.synthetic import Config

    return Config(late_user_share=0.15, late_item_share=0.1)


def demo(domain: int, name: str) -> CTRData:
    """Films (0) or books (1) of the synthetic world, split with ML-1M's window and threshold."""
    from reprokit import synthetic

    world = synthetic.make_world(click_world())
    ratings = synthetic.ratings(world, domain)
    events = Events(ratings.users, ratings.items, ratings.ratings.astype(np.float32), ratings.times)
    items, genres = np.flatnonzero(world.items.domain == domain), synthetic.genre_strings(world)
    catalogue = Catalogue(
        np.arange(1, len(items) + 1),
        [world.items.titles[item] for item in items],
        [genres[item] for item in items],
    )
    return ctr_split(name, events, split_by_time(events.times, ML_1M_WINDOW), 3, catalogue)


@dataclass(frozen=True)
class Source:
    """A data set by name: where its files lie, how they are read, and how large it is."""

    load: Callable[..., Any]
    """Takes the paths of `files`, in their order."""
    sizes: Mapping[str, int]
    """Users, items and training rows, for estimates before anything is read."""
    registered: str = ""
    """Name in `datasets.DATASETS`; empty for generated data."""
    files: tuple[str, ...] = ()
    """In the data set's folder; each may be packed with gzip."""
    optional: tuple[str, ...] = ()
    """Read where they are there, relative to the data directory; "*" stands for any name."""
    refuse: Callable[[str, Path], None] | None = None
    """Given `registered` and the data directory before files are looked for: raises DataError for a
    release that must not be used."""
    world: Callable[[], Any] = click_world
    """The world of generated data; its content is their fingerprint."""
    beside: Source | None = None
    """A second data set that is read too: `load` takes the paths of its files after the others."""
    note: str = ""
    """What a reader of a table made from it must know."""
    revision: int = 1
    """Of the recipe that `load` follows: raised when a change moves a row."""

    @property
    def synthetic(self) -> bool:
        return not self.files

    def paths(self, data_dir: Path) -> list[Path]:
        """Of `files`, then of those beside. Raises DataError where one is missing."""
        if self.refuse:
            self.refuse(self.registered, data_dir)
        own = require(self.registered, data_dir, self.files) if self.files else []
        return [*own, *(self.beside.paths(data_dir) if self.beside else [])]

    def found(self, data_dir: Path, many: bool = False) -> list[Path]:
        """The optional files that are there: those named in full, or those named with a "*"."""
        optional = self.optional + (self.beside.optional if self.beside else ())
        names = [name for name in optional if ("*" in name) == many]
        if many:
            return [path for name in names for path in sorted(data_dir.glob(name))]
        return [path for name in names if (path := find(data_dir, name))]

    def fingerprint(
        self, data_dir: Path, cache: Path | None = None, read: bool = True, keep: bool = True
    ) -> str:
        """A hash of the content and of the recipe's revision.

        `cache` has the files' digests. With `read` off only they are used, and the fingerprint of
        files that are not in it is empty; with `keep` off it is left as it is. Optional files take
        part where they are there: those named in full by content, the others (images, tens of
        thousands of them) by name and size alone.
        """
        if self.synthetic:
            from reprokit.synthetic_media import world_digest

            content = world_digest(self.world())
        else:
            whole = [*self.paths(data_dir), *self.found(data_dir)]
            content = fingerprint(whole, cache, read, keep)
        text = f"{content}, recipe {self.revision}"
        if self.beside:
            text += f", beside it recipe {self.beside.revision}"
        if listed := [(path.name, path.stat().st_size) for path in self.found(data_dir, many=True)]:
            text += f", {listed}"
        return hashlib.sha256(text.encode()).hexdigest() if content else ""


CLICK_DATA = {
    "ml-1m": Source(
        load_ml_1m,
        {"users": 839, "items": 3256, "train": 33_891},
        registered="ml-1m",
        files=("ratings.dat", "movies.dat"),
    ),
    "amazon-book": Source(
        load_amazon_book,
        {"users": 22_967, "items": 34_154, "train": 727_463},
        registered="amazon-book",
        files=("Books_5.json", "meta_Books.json"),
    ),
    "demo-ml-1m": Source(
        lambda: demo(0, "demo-ml-1m"),
        {"users": 301, "items": 201, "train": 8_000},
        note="in place of MovieLens-1M: 300 synthetic people and 200 films, same months and labels",
    ),
    "demo-amazon-book": Source(
        lambda: demo(1, "demo-amazon-book"),
        {"users": 301, "items": 151, "train": 4_000},
        note="in place of Amazon-Book: 300 synthetic people and 150 books, with MovieLens-1M's "
        "months and labels",
    ),
}
"""Each real data set has a synthetic one of the same shape, `demo-` before its name."""


@lru_cache(maxsize=2)
def load_click_data(name: str, data_dir: Path, fingerprint: str = "") -> CTRData:
    """A data set by name, kept for the runs that follow while its fingerprint is the same."""
    source = CLICK_DATA[name]
    try:
        return source.load(*source.paths(data_dir))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} in {data_dir} cannot be read: {error}") from None
