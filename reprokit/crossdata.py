"""Sequences over two domains: the corrected release of C2DSR, and its synthetic stand-ins.

Files   Alist.txt, Blist.txt: number, ASIN, index from 0 within the domain; tab-separated.
        traindata_new.txt, validdata_new.txt, testdata_new.txt: user, sequence, then one field
        `item|unix time|date|` per event; tab-separated. Domain B is numbered after domain A.
        Optional beside them titles.tsv (ASIN, title) and images/<ASIN>.jpg, .png and so on.
Source  Cao et al., Contrastive Cross-Domain Sequential Recommendation, CIKM 2022, as corrected;
        LLM-EMF (arXiv 2506.17966), Table 1, prints the same counts.

What the publisher leaves open, and what is done here
D1  Of a row's first two numbers the first is the user and the second the sequence: in Food-Kitchen
    the users run from 0 to 16,578, as `userlist.txt` has them, and the sequences to 50,695, which
    is one less than its 34,117 + 8,173 + 8,406 rows.
D2  Rows are not in order (4,575 of the 8,173 validation rows of Food-Kitchen) and times are days,
    so a stable sort by time gives the order: where the two last times tie (3,605 of those rows)
    the file decides which event is the target. Nothing is shuffled.
D3  Table 1's "Avg.length" (9.91 for Food-Kitchen) does not say over which rows. Validation and
    test rows have 9.846 events with the target (163,234 in 16,579 rows) and 8.846 without, so it
    is not theirs alone. If it is over all 50,696 rows, training rows have 9.93 to 9.95 on average,
    close to the others; if over training rows, these have 9.91. Only the release's training file
    can tell. `mean_length` is over all rows, and `counts` has what any other reading needs.
D4  A faulty row is an error, never dropped: all rows that are read are kept.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reprokit.data import SPLITS, Source, opened
from reprokit.datasets import DataError, dataset
from reprokit.download import find
from reprokit.metadata import clean, read_metadata
from reprokit.reviewfiles import PICTURE_TYPES, picture_files
from reprokit.runs import digest, replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from reprokit.synthetic import Config, World

    Ints = NDArray[np.int64]

CDSR_FILES = ("Alist.txt", "Blist.txt", *(f"{split}data_new.txt" for split in SPLITS))
LEAST = {"train": 1, "valid": 2, "test": 2}
"""Events of a row: an evaluated one needs a history before its target."""
ROW = re.compile(rb"\d{1,18}\t\d{1,18}(?:\t\d{1,18}\|\d{1,18}\|[^|\t]*\|)+\t?")
DATE = re.compile(rb"\|[^|\t\n]*\|(?=[\t\n]|\Z)")


@dataclass(frozen=True, eq=False)
class Sequences:
    """The rows of one split. The last event of a validation or test row is its target."""

    users: Ints
    """(N,) dense user number from 0."""
    items: Ints
    """(E,) item ids from 1, domain A first, then B; 0 is padding."""
    times: Ints
    """(E,) unix seconds."""
    starts: Ints
    """(N + 1,): row n has `items[starts[n]:starts[n + 1]]`, in true order."""

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> Ints:
        """(N,) events of each row, the target included."""
        return np.diff(self.starts)

    @property
    def targets(self) -> Ints:
        """(N,) the last item of each row."""
        return self.items[self.starts[1:] - 1]

    def padded(self, index: Ints, length: int, drop: int = 0) -> Ints:
        """(B, length): the last `length` events of the indexed rows, oldest first, then zeros.

        The last `drop` events of a row are left out before that: 1 hides the target.
        """
        end = self.starts[index + 1] - drop
        start = np.maximum(self.starts[index], end - length)
        at = start[:, None] + np.arange(length)  # (B, length)
        inside = at < end[:, None]
        if not inside.any():
            return np.zeros(at.shape, np.int64)
        return np.where(inside, self.items[np.where(inside, at, 0)], 0)


@dataclass(frozen=True, eq=False)
class CrossData:
    """Sequences over the items of two domains, and what is known of the items."""

    name: str
    domains: tuple[str, str]
    """Names of A and B."""
    n_a: int
    """Items 1 to n_a are of domain A."""
    n_b: int
    """Items n_a + 1 to n_a + n_b are of domain B."""
    n_users: int
    item_ids: list[str]
    """ASIN of each item id; entry 0 is empty."""
    titles: list[str]
    """Of each item id, empty where none is known; entry 0 is empty."""
    images: list[Path | None] | NDArray[np.uint8]
    """Of each item id: a file or None; or pixels (n_items + 1, 3, height, width), synthetic."""
    has_image: NDArray[np.bool_]
    """(n_items + 1,); False for the padding id."""
    train: Sequences
    """All positions of these rows are targets in training."""
    valid: Sequences
    test: Sequences
    counts: dict[str, int]
    """What was read and what is known. Those of a split begin with its name."""

    @property
    def n_items(self) -> int:
        """Items of both domains, without the padding id."""
        return self.n_a + self.n_b

    @property
    def mean_length(self) -> float:
        """Mean events of a row, the target included, over the rows of all splits (D3)."""
        return float(np.concatenate([self.split(name).lengths for name in SPLITS]).mean())

    def domain_of(self, items: Ints) -> Ints:
        """0 for items of A (and for padding), 1 for items of B."""
        return (items > self.n_a).astype(np.int64)

    def split(self, name: str) -> Sequences:
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def sealed(self) -> CrossData:
        """The same data with the test split closed: it has no row, and no count is told of it.

        Training and model choice are given this.
        """
        nothing = np.empty(0, np.int64)
        closed = Sequences(nothing, nothing, nothing, np.zeros(1, np.int64))
        counts = {key: value for key, value in self.counts.items() if not key.startswith("test ")}
        return replace(self, test=closed, counts=counts)

    def image(self, item: int) -> Image | None:
        """The item's picture in red, green and blue; None where there is none."""
        from PIL import Image

        if not self.has_image[item]:
            return None
        picture = self.images[item]
        if isinstance(picture, np.ndarray):
            return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
        assert picture is not None, f"{self.name}: has_image contradicts images at item {item}"
        try:
            with Image.open(picture) as file:
                return file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{picture}: not a readable image ({error}). Replace it, or move it away: an item "
                "without an image is counted as one"
            ) from None


# --- the published files ------------------------------------------------------------------------
class Rows(NamedTuple):
    """A sequence file as numbers: the rows with their publisher's users, and their sequence ids."""

    users: Ints
    items: Ints
    times: Ints
    starts: Ints
    sequences: Ints


def refuse_earlier_release(name: str, data_dir: Path) -> None:
    """Raises DataError where only the files of the release that leaks future items are there."""
    folder = Path(data_dir) / dataset(name).folder
    for split in SPLITS:
        old, new = f"{split}data.txt", f"{split}data_new.txt"
        if find(folder, old) and not find(folder, new):
            raise DataError(
                f"{folder / old}: the earlier release, whose rows leak future items, is not "
                f"accepted. Get the corrected one, {new}, from {dataset(name).by_hand}"
            )


def content(path: Path) -> bytes:
    """A whole file, packed with gzip or not; what cannot be read becomes a DataError."""
    try:
        with opened(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None


def lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, tab-separated fields) of the lines that are not blank; UTF-8."""
    for number, line in enumerate(content(path).split(b"\n"), 1):
        if line.strip():
            try:
                yield number, line.decode("utf-8").rstrip("\r").split("\t")
            except UnicodeDecodeError:
                raise DataError(f"{path}, line {number}: not UTF-8 text") from None


def read_items(path: Path) -> list[str]:
    """The ASINs of a domain by their index, which is the third column."""
    asins: dict[int, str] = {}
    rows = list(lines(path))
    for number, fields in rows:
        if len(fields) != 3 or not fields[1]:
            raise DataError(f"{path}, line {number}: not the three fields number, ASIN, index")
        index = int(fields[2]) if re.fullmatch("[0-9]{1,9}", fields[2]) else -1
        if not 0 <= index < len(rows) or index in asins:
            raise DataError(
                f"{path}, line {number}: index '{fields[2]}', but the third column must have each "
                f"of 0 to {len(rows) - 1:,} once"
            )
        asins[index] = fields[1]
    if not asins:
        raise DataError(f"{path}: no items in it")
    return [asins[index] for index in range(len(asins))]


def read_titles(path: Path) -> dict[str, str]:
    """`titles.tsv`: ASIN, tab, title. Of a repeated ASIN the last line counts."""
    titles = {}
    for number, (asin, *title) in lines(path):
        if not asin or not title:
            raise DataError(f"{path}, line {number}: not ASIN, tab, title")
        titles[asin] = clean("\t".join(title))
    return titles


def row_lines(path: Path, least: int) -> tuple[list[int], list[bytes]]:
    """Line numbers and lines of a sequence file, blank ones left out, each a row of `least` events
    or more: the first that is not is named in a DataError."""
    numbered = [line for line in enumerate(content(path).splitlines(), 1) if line[1].strip()]
    if not numbered:
        raise DataError(f"{path}: no rows in it")
    for number, line in numbered:
        fault = ""
        if re.fullmatch(rb"\d+\t\d+\t*", line):
            fault = "a row without an event"
        elif not ROW.fullmatch(line):
            fault = "not a row of events: user, sequence, item|time|date|"
        elif line.count(b"|") < 3 * least:
            fault = "one event, but a row to be evaluated needs a history and a target"
        if fault:
            raise DataError(f"{path}, line {number}: {fault}")
    return [number for number, _ in numbered], [line for _, line in numbered]


def read_rows(path: Path, n_items: int, least: int = 1) -> Rows:
    """A sequence file, each row sorted by time (D2); item ids start at 1.

    Raises DataError with the line of a row that is none, that has fewer than `least` events, or
    that has an item outside the `n_items` of both lists.
    """
    numbers, rows = row_lines(path, least)
    events = np.array([line.count(b"|") // 3 for line in rows], np.int64)  # (N,)
    bare = DATE.sub(b"", b"\n".join(rows)).replace(b"|", b" ")
    values = np.fromstring(bare, np.int64, sep=" ")  # of each row: user, sequence, (item, time)...
    starts = np.concatenate([[0], np.cumsum(events)])
    first = 2 * starts[:-1] + 2 * np.arange(len(events))
    inside = np.ones(len(values), bool)
    inside[first] = inside[first + 1] = False
    items, times = values[inside].reshape(-1, 2).T
    row = np.repeat(np.arange(len(events)), events)
    if (items >= n_items).any():
        at = int((items >= n_items).argmax())
        raise DataError(
            f"{path}, line {numbers[int(row[at])]}: item {items[at]} is outside the "
            f"{n_items:,} items of both lists, 0 to {n_items - 1}"
        )
    order = np.lexsort((times, row))  # stable
    return Rows(values[first], items[order] + 1, times[order], starts, values[first + 1])


def load_cdsr(
    name: str,
    domains: tuple[str, str],
    a_list: Path,
    b_list: Path,
    train: Path,
    valid: Path,
    test: Path,
    metadata: tuple[Path, ...] = (),
) -> CrossData:
    """The release's files, with the titles and images beside Alist.txt.

    `titles.tsv` wins; an item that it lacks gets its title from Amazon's metadata where these are
    given.
    """
    a, b = read_items(a_list), read_items(b_list)
    item_ids = ["", *a, *b]
    files = {"train": train, "valid": valid, "test": test}
    rows = {key: read_rows(path, len(a) + len(b), LEAST[key]) for key, path in files.items()}
    titles, title_counts = known_titles(item_ids, find(a_list.parent, "titles.tsv"), metadata)
    files_by_asin = picture_files(a_list.parent / "images")
    images = [files_by_asin.get(asin) for asin in item_ids]
    n_users, splits = dense_users(rows)
    data = CrossData(
        name=name,
        domains=domains,
        n_a=len(a),
        n_b=len(b),
        n_users=n_users,
        item_ids=item_ids,
        titles=titles,
        images=images,
        has_image=np.array([image is not None for image in images]),
        **splits,
        counts={},
    )
    evaluated = np.concatenate([rows["valid"].sequences, rows["test"].sequences])
    again = int(np.isin(rows["train"].sequences, evaluated).sum())
    title_counts["images of other items, left out"] = len(files_by_asin.keys() - set(item_ids))
    return counted(data, {"train rows whose sequence is evaluated too": again, **title_counts})


def known_titles(
    item_ids: list[str], table: Path | None, metadata: tuple[Path, ...]
) -> tuple[list[str], dict[str, int]]:
    """The title of each item id, and where the titles come from."""
    listed = read_titles(table) if table else {}
    named = read_metadata(metadata, item_ids).titles if metadata else {}
    titles = [listed.get(asin, "") or named.get(asin, "") for asin in item_ids]
    from_table = sum(bool(listed.get(asin)) for asin in item_ids)
    return titles, {
        "titles of titles.tsv": from_table,
        "titles of the metadata": sum(map(bool, titles)) - from_table,
        "titles of other items, left out": len(listed.keys() - set(item_ids)),
    }


def dense_users(rows: dict[str, Rows]) -> tuple[int, dict[str, Sequences]]:
    """Number the users of all splits from 0 in the publisher's order."""
    known = np.unique(np.concatenate([part.users for part in rows.values()]))
    return len(known), {
        name: Sequences(np.searchsorted(known, part.users), part.items, part.times, part.starts)
        for name, part in rows.items()
    }


def counted(data: CrossData, more: dict[str, int]) -> CrossData:
    """The data set with everything counted: `more` is what only its loader knows."""
    counts = {"a items": data.n_a, "b items": data.n_b, "users": data.n_users}
    for split in SPLITS:
        rows = data.split(split)
        counts |= {f"{split} {key}": value for key, value in row_counts(rows, data.n_a).items()}
        if split != "train":
            shared = np.isin(np.unique(rows.users), data.train.users).sum()
            counts[f"{split} users who occur in train"] = int(shared)
    counts |= more
    counts["titles known"] = sum(map(bool, data.titles))
    counts["images known"] = int(data.has_image.sum())
    return replace(data, counts=counts)


def row_counts(rows: Sequences, n_a: int) -> dict[str, int]:
    """Rows, events, rows by the domain of their last item, and what repeats in them."""
    row = np.repeat(np.arange(len(rows)), rows.lengths)
    order = np.lexsort((rows.items, row))
    twice = (np.diff(row[order]) == 0) & (np.diff(rows.items[order]) == 0)
    is_target = np.bincount(row, rows.items == rows.targets[row], minlength=len(rows))
    last = rows.starts[1:] - 1
    ties = (rows.lengths > 1) & (rows.times[last] == rows.times[last - 1])
    return {
        "rows": len(rows),
        "events": len(rows.items),
        "rows with a last item of a": int((rows.targets <= n_a).sum()),
        "rows with a last item of b": int((rows.targets > n_a).sum()),
        "rows with a repeated item": len(np.unique(row[order][1:][twice])),
        "rows whose last item occurs earlier": int((is_target > 1).sum()),
        "rows whose two last times tie": int(ties.sum()),
    }


# --- synthetic stand-ins ------------------------------------------------------------------------
def cross_world(name: str) -> Config:
    """The world behind a demo's sequences; the two demos differ in the seed.

    As many books as films are picked, so that most pieces of a timeline have three of each. What a
    person likes calls for the genre that follows, in either domain, and nine of ten wishes are
    followed; within it people pick what looks as they like it. So genres, which titles tell, and
    style, which pictures tell, decide. An item stands in two or three training sequences: as in the
    real data, an id alone knows little of it.
    """
    from reprokit.synthetic import Config

    return Config(
        seed={"demo-movie-book": 0, "demo-food-kitchen": 1}[name],
        n_users=1500,
        n_films=1500,
        n_books=1500,
        events_per_user=18,
        book_share=0.5,
        late_item_share=0.2,
        chain_share=0.9,
        choice=1.0,
        genre=0.3,
        demographic=0.0,
        style=2.5,
        user_bias=0.0,
        quality=0.1,
        price=0.0,
    )


@lru_cache(maxsize=2)
def made(name: str) -> World:
    from reprokit.synthetic import make_world

    return make_world(cross_world(name))


def demo(name: str, domains: tuple[str, str]) -> CrossData:
    """Films as domain A and books as domain B, in pieces of each person's timeline."""
    from reprokit import synthetic, synthetic_media

    world = made(name)
    pieces = synthetic.sequences(world)
    rows = {}
    for split in SPLITS:
        chosen = [piece for piece in pieces if piece.split == split]
        rows[split] = Rows(
            np.array([piece.user for piece in chosen], np.int64),
            np.concatenate([piece.items for piece in chosen]) + 1,
            np.concatenate([piece.times for piece in chosen]),
            np.cumsum([0, *(len(piece.items) for piece in chosen)]),
            np.arange(len(chosen)),
        )
    n_a, n_b = world.config.n_films, world.config.n_books
    pixels = synthetic_media.images(world)
    n_users, splits = dense_users(rows)
    data = CrossData(
        name=name,
        domains=domains,
        n_a=n_a,
        n_b=n_b,
        n_users=n_users,
        item_ids=[
            "",
            *(f"film-{number}" for number in range(1, n_a + 1)),
            *(f"book-{number}" for number in range(1, n_b + 1)),
        ],
        titles=["", *shop_titles(world)],
        images=np.concatenate([np.zeros_like(pixels[:1]), pixels]),
        has_image=np.concatenate([[False], world.items.has_image]),
        **splits,
        counts={},
    )
    return counted(data, {})


def shop_titles(world: World) -> list[str]:
    """The world's titles; those of every second item, chosen at random, say nothing: what such an
    item is can be read from a description of it, as a language model would give one."""
    from reprokit.synthetic import stream

    silent = stream(world.config.seed, "shop titles").random(len(world.items.titles)) < 0.5
    return [
        f"Article {number}" if mute else title
        for number, (title, mute) in enumerate(zip(world.items.titles, silent, strict=True), 1)
    ]


def demo_texts(name: str) -> list[str]:
    """The world's description of each item id, in place of what a language model would say."""
    return ["", *made(name).items.descriptions]


# --- the data sets by name ----------------------------------------------------------------------
def _release(
    name: str, domains: tuple[str, str], sizes: dict[str, int], metadata: tuple[str, str]
) -> Source:
    folder = f"cdsr/{'-'.join(domains)}"
    return Source(
        partial(load_cdsr, name, domains),
        sizes,
        registered=f"cdsr-{name}",
        files=CDSR_FILES,
        optional=(
            f"{folder}/titles.tsv",
            *(f"{folder}/images/*{ending}" for ending in PICTURE_TYPES),
            *(f"amazon-2014/meta_{category}.json.gz" for category in metadata),
        ),
        refuse=refuse_earlier_release,
    )


def _demo(name: str, domains: tuple[str, str], note: str) -> Source:
    return Source(
        partial(demo, name, domains),
        {"users": 1_350, "items": 3_000, "train": 700, "events": 21_000},
        world=partial(cross_world, name),
        note=note,
    )


CROSS_DATA = {
    "food-kitchen": _release(
        "food-kitchen",
        ("Food", "Kitchen"),
        {"users": 16_579, "items": 64_093, "train": 34_117, "events": 503_000},
        ("Grocery_and_Gourmet_Food", "Home_and_Kitchen"),
    ),
    "movie-book": _release(
        "movie-book",
        ("Movie", "Book"),
        {"users": 15_352, "items": 100_782, "train": 58_515, "events": 885_000},
        ("Movies_and_TV", "Books"),
    ),
    "demo-food-kitchen": _demo(
        "demo-food-kitchen",
        ("Food", "Kitchen"),
        "in place of Food-Kitchen: 1,500 synthetic people, 1,500 films that stand for food and "
        "1,500 books that stand for kitchenware",
    ),
    "demo-movie-book": _demo(
        "demo-movie-book",
        ("Movie", "Book"),
        "in place of Movie-Book: 1,500 synthetic people, 1,500 films and 1,500 books",
    ),
}
"""`sizes` has users, items without padding, training rows, and events of all splits (rows times
Table 1's average length). Each real data set has a synthetic one, `demo-` before its name."""


def metadata_paths(name: str, data_dir: Path) -> list[Path]:
    """Amazon's metadata of a data set's domains, those of the two files that are there."""
    found = CROSS_DATA[name].found(data_dir)
    return [path for path in found if path.name.startswith("meta_")]


@lru_cache(maxsize=2)
def load_cross_data(name: str, data_dir: Path, fingerprint: str = "") -> CrossData:
    """A data set by name, kept for the runs that follow while its fingerprint is the same."""
    source = CROSS_DATA[name]
    load: Callable[..., CrossData] = source.load
    if source.synthetic:
        return load()
    return load(*source.paths(data_dir), metadata=tuple(metadata_paths(name, data_dir)))


# --- the items that a target is ranked against --------------------------------------------------
def negatives(
    data: CrossData, split: str, folder: Path, count: int = 999, seed: int = 2040
) -> NDArray[np.int32]:
    """(N, count), memory-mapped: for each row `count` items of its target's domain, drawn once.

    Drawn uniformly and with replacement; only the target itself is left out, so items of the
    history may be drawn (C2DSR's protocol). The file in `folder` is made once, and again where it
    is damaged or does not fit: every system and every process ranks the same list.
    """
    targets = data.split(split).targets  # (N,)
    if not len(targets):
        return np.zeros((0, count), np.int32)
    domain = data.domain_of(targets)
    first = np.array([1, data.n_a + 1])[domain]  # (N,), first item of the target's domain
    size = np.array([data.n_a, data.n_b])[domain]
    if (size < 2).any():
        small = data.domains[int(domain[size < 2][0])]
        raise DataError(f"{data.name}: {small} has one item, nothing to rank a target against")
    content = sha256(targets.astype("<i8").tobytes()).hexdigest()
    key = digest([data.name, data.n_a, data.n_b, content, split, count, seed])
    path = folder / "negatives" / f"{key[:16]}.npy"
    bounds = first[:, None], (first + size - 1)[:, None], targets[:, None]
    if not _fits(path, count, *bounds):
        with replacing(path) as part, part.open("wb") as file:
            np.save(file, _draw(f"negatives {split}", seed, count, *bounds), allow_pickle=False)
    stored: NDArray[np.int32] = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored


def _draw(stream: str, seed: int, count: int, low: Ints, high: Ints, target: Ints) -> Any:
    """Uniform over low to high without the target: one item fewer is drawn, those from the target
    on are moved up by one. All (N, 1); the result is (N, count)."""
    from reprokit import synthetic

    shape = len(target), count
    drawn = synthetic.stream(seed, stream).integers(low, high, shape, dtype=np.int32)
    drawn += drawn >= target
    return drawn


def _fits(path: Path, count: int, low: Ints, high: Ints, target: Ints) -> bool:
    """Whether a file of negatives is whole and holds items that may stand in it."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    if stored.dtype != np.int32 or stored.shape != (len(target), count):
        return False
    return bool(((stored >= low) & (stored <= high) & (stored != target)).all())
