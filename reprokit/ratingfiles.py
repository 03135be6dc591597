"""Files of ratings, of films and of products as Feedback, all of whose events are for training.

Files   MovieLens-25M and latest-small: ratings.csv and movies.csv.
        MovieLens-1M: ratings.dat and movies.dat, optional users.dat.
        Amazon 2014: reviews_<Category>_5.json.gz and meta_<Category>.json.gz.
        Optional pictures: ml-posters/<movieId>.jpg, amazon-2014/images/<asin>.jpg and so on.

Items are those that have a rating. D1, D2 and D6 are decisions that `ratings` lists.
"""

from __future__ import annotations

import csv
import html
import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.data import opened, read_double_colon, read_ml_1m_movies, read_ml_1m_ratings
from reprokit.datasets import DataError
from reprokit.download import find
from reprokit.feedback import Feedback, paired
from reprokit.metadata import read_texts
from reprokit.reviewfiles import picture_files, proper, read_products
from reprokit.splitting import starts_of

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

POSITIVE = 4.0
"""The least rating that is positive (D1)."""
NO_GENRES = "(no genres listed)"
AGE_CODES = ("1", "18", "25", "35", "45", "50", "56")
"""Of MovieLens-1M: the lower end of each group."""


@dataclass(frozen=True, eq=False)
class Table:
    """Ratings in file order; arrays (N,)."""

    users: NDArray[np.int32]
    items: NDArray[np.int32]
    """Both from 1: the place of the publisher's id in `user_ids` and `item_ids`."""
    ratings: NDArray[np.float32]
    times: Ints
    user_ids: list[str]
    item_ids: list[str]
    """Entry 0 is padding."""
    reviews: list[str] | None = None


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the items of a table: lists aligned with `item_ids`, padding included."""

    titles: list[str]
    genres: list[tuple[str, ...]]
    pictures: Any
    has_picture: NDArray[np.bool_]
    people: list[tuple[str, ...]] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


def numbered(values: Any) -> tuple[NDArray[np.int32], list[str]]:
    """Number publisher's ids, whole and not negative, from 1 in ascending order: (codes, ids)."""
    last = int(values.max(initial=0))
    if last > 10 * len(values) + 1_000_000:  # a table by id would be large
        ids, codes = np.unique(values, return_inverse=True)
        return (codes + 1).astype(np.int32), ["", *map(str, ids.tolist())]
    seen = np.zeros(last + 1, np.int32)
    seen[values] = 1
    ids = np.flatnonzero(seen)
    return np.cumsum(seen, dtype=np.int32)[values], ["", *map(str, ids.tolist())]


def ordered(table: Table) -> tuple[Table, dict[str, int]]:
    """Sorted by user, then time, then place in the file, without repeated pairs (D2); counts."""
    import polars as pl

    times, n = table.times, len(table.times)
    span = int(times.max()) - int(times.min()) + 1
    order = np.argsort(paired(table.users, times - times.min(), span), kind="stable")
    pairs = paired(table.users, table.items, len(table.item_ids))
    if not (pairs[1:] > pairs[:-1]).all():  # a file sorted by both, as MovieLens's, has no repeats
        order = order[pl.Series(pairs[order]).is_first_distinct().to_numpy()]
    del pairs
    reviews = table.reviews
    counts = {"events read": n, "repeated pairs, dropped": n - len(order)}
    changed = replace(
        table,
        users=table.users[order],
        items=table.items[order],
        ratings=table.ratings[order],
        times=times[order],
        reviews=reviews and [reviews[at] for at in order.tolist()],
    )
    return changed, counts


def assembled(
    name: str,
    table: Table,
    known: Known,
    demographics: Mapping[str, NDArray[np.int16]] | None = None,
    item_word: str = "film",
    domain: NDArray[np.int8] | None = None,
) -> Feedback:
    """All events of a table as training events; what is known of users and items beside them."""
    n_users, n_items = len(table.user_ids), len(table.item_ids)
    table, counts = ordered(table)
    starts, split = starts_of(table.users, n_users), np.zeros(len(table.users), np.int8)
    return Feedback(
        name=name,
        users=table.users,
        items=table.items,
        ratings=table.ratings,
        times=table.times,
        labels=(table.ratings >= POSITIVE).astype(np.int8),
        split=split,
        group=np.zeros_like(split),
        starts=starts,
        history_end=np.arange(len(split), dtype=np.int32),
        user_ids=table.user_ids,
        item_ids=table.item_ids,
        titles=known.titles,
        genres=known.genres,
        tags=known.tags or [()] * n_items,
        people=known.people or [()] * n_items,
        descriptions=known.descriptions or [""] * n_items,
        domain=np.zeros(n_items, np.int8) if domain is None else domain,
        demographics=dict(demographics or {}),
        reviews=table.reviews,
        pictures=known.pictures,
        has_picture=known.has_picture,
        item_word=item_word,
        counts={**counts, **known.counts},
    )


# --- files --------------------------------------------------------------------------------------
RATING_COLUMNS: dict[str, type] = {"userId": int, "movieId": int, "rating": float, "timestamp": int}
FILM_COLUMNS: dict[str, type] = {"movieId": int, "title": str, "genres": str}
TAG_COLUMNS: dict[str, type] = {"userId": int, "movieId": int, "tag": str, "timestamp": int}


def csv_rows(path: Path, columns: Mapping[str, type]) -> Iterator[list[str]]:
    """The rows of a small CSV file with these columns, quoted as they need be.

    Raises DataError with file and line where a row has other fields.
    """
    line = 0
    try:
        with opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            for line, row in enumerate(reader):
                where = f"{path}, line {reader.line_num}"
                if line == 0:
                    if row != list(columns):
                        raise DataError(f"{where}: expected the header {','.join(columns)}")
                elif len(row) != len(columns):
                    raise DataError(f"{where}: {len(row)} fields, expected {len(columns)}")
                else:
                    for (name, kind), value in zip(columns.items(), row, strict=True):
                        if fault := _fault(kind, value):
                            raise DataError(f"{where}: {name} '{value}' is {fault}")
                    yield row
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}, after row {line:,}: {error}. The file is damaged or cut short: move it away "
            "and fetch it again (see data/README.md)"
        ) from None
    if line == 0:
        raise DataError(f"{path}: no rows in it")


def _fault(kind: type, value: str) -> str:
    """Why a field is none of its kind; empty where it is one."""
    if kind is str:
        return ""
    try:
        number = kind(value)
    except ValueError:
        return "not a number" if kind is float else "not a whole number"
    if kind is int:
        return "" if 0 <= number < 1 << 31 else "out of range"
    return "" if 2 * number in range(1, 11) else "no rating in half stars from 0.5 to 5"


def read_table(path: Path, columns: Mapping[str, type]) -> pl.DataFrame:
    """A large CSV file, by polars. Where it finds a fault the file is read again, row by row, to
    say in which line.

    Raises DataError.
    """
    import polars as pl

    kinds: dict[type, Any] = {int: pl.Int32, float: pl.Float32, str: pl.String}
    sound = []
    for name, kind in columns.items():
        if kind is not str:
            stars = 2 * pl.col(name)
            halves = stars.is_between(1, 10) & (stars == stars.floor())
            right = halves if kind is float else pl.col(name) >= 0
            sound.append(right.fill_null(False).all())
    reason = "other columns than " + ",".join(columns)
    try:
        with opened(path) as file:  # polars goes by place, not by name
            named = file.readline().decode("utf-8-sig", "replace").strip() == ",".join(columns)
        table = pl.read_csv(path, schema={name: kinds[kind] for name, kind in columns.items()})
        if named and len(table) and all(table.select(sound).row(0)):
            return table
        reason = "a field that is missing or out of range" if named else reason
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
    for _ in csv_rows(path, columns):
        pass
    raise DataError(f"{path}: not in its publisher's format ({reason})")


def read_csv_ratings(path: Path) -> Table:
    """`ratings.csv` of MovieLens."""
    table = read_table(path, RATING_COLUMNS)
    users, user_ids = numbered(table["userId"].to_numpy())
    items, item_ids = numbered(table["movieId"].to_numpy())
    ratings, times = table["rating"].to_numpy(), table["timestamp"].to_numpy()
    return Table(users, items, ratings, times, user_ids, item_ids)


def films(
    table: Table, ids: Sequence[str], titles: Sequence[str], genres: Sequence[str], path: Path
) -> Known:
    """Of the rated films, from the columns of the file of films; posters lie in the data directory
    that it is in."""
    named, kinds = (dict(zip(ids, column, strict=True)) for column in (titles, genres))
    if len(named) < len(ids):
        raise DataError(f"{path}: {len(ids) - len(named):,} films stand there twice")
    if missing := [one for one in table.item_ids[1:] if one not in named]:
        raise DataError(
            f"{path}: {len(missing):,} rated films are not in it, the first is {missing[0]}"
        )
    names = [kinds[one] if one else "" for one in table.item_ids]
    pictures = _pictures(path.parent.parent / "ml-posters", table.item_ids)
    return Known(
        titles=["", *(named[one] for one in table.item_ids[1:])],
        genres=[() if one in ("", NO_GENRES) else tuple(one.split("|")) for one in names],
        **pictures,
        counts={"films without a rating, left out": len(ids) - len(table.item_ids) + 1},
    )


def _pictures(folder: Path, item_ids: Sequence[str]) -> dict[str, Any]:
    """The two fields of `Known` about pictures, from files named after the items."""
    files = picture_files(folder)
    paths = [files.get(one) if one else None for one in item_ids]
    return {"pictures": paths, "has_picture": np.array([path is not None for path in paths])}


def movielens_csv(name: str, ratings: Path, movies: Path) -> Feedback:
    """MovieLens-25M or latest-small. It has no demographics."""
    table = read_csv_ratings(ratings)
    ids, titles, genres = zip(*csv_rows(movies, FILM_COLUMNS), strict=True)
    return assembled(name, table, films(table, ids, titles, genres, movies))


def movielens_1m(name: str, ratings: Path, movies: Path) -> Feedback:
    """MovieLens-1M. Who its users are is in `users.dat`, where that is there."""
    events = read_ml_1m_ratings(ratings)
    wrong = np.flatnonzero((events.users < 0) | (events.items < 0))
    if len(wrong):
        raise DataError(f"{ratings}, line {wrong[0] + 1}: a user or a film below 0")
    users, user_ids = numbered(events.users)
    items, item_ids = numbered(events.items)
    table = Table(users, items, events.ratings, events.times, user_ids, item_ids)
    listed = read_ml_1m_movies(movies)
    ids = [str(one) for one in listed.ids.tolist()]
    people = find(ratings.parent, "users.dat")
    known = films(table, ids, listed.titles, listed.genres, movies)
    if not people:
        return assembled(name, table, known)
    groups = read_people(people, user_ids)
    unknown = {"users that users.dat lacks": int((groups["gender"][1:] < 0).sum())}
    known = replace(known, counts=known.counts | unknown)
    return assembled(name, table, known, groups)


def read_people(path: Path, user_ids: Sequence[str]) -> dict[str, NDArray[np.int16]]:
    """`users.dat` of MovieLens-1M: UserID::Gender::Age::Occupation::Zip-code.

    Codes: gender 0 for F and 1 for M; age the place in `AGE_CODES`; occupation as published.
    """
    number = {one: at for at, one in enumerate(user_ids) if one}
    found = {name: np.full(len(user_ids), -1, np.int16) for name in ("gender", "age", "occupation")}
    seen: set[str] = set()
    for line, (user, gender, age, work, _) in enumerate(read_double_colon(path, 5), 1):
        if gender not in ("F", "M") or age not in AGE_CODES or work not in map(str, range(21)):
            raise DataError(f"{path}, line {line}: '{gender}::{age}::{work}' is no known group")
        if user in seen:
            raise DataError(f"{path}, line {line}: user {user} stands there twice")
        seen.add(user)
        if user in number:
            codes = ("FM".index(gender), AGE_CODES.index(age), int(work))
            for name, code in zip(found, codes, strict=True):
                found[name][number[user]] = code
    return found


def amazon_2014(
    name: str, reviews: Path, metadata: Path, texts: bool = True, item_word: str = "film"
) -> Feedback:
    """Ratings of a 5-core file and what the metadata say of the items.

    Without `texts` no review is read: the books' would fill several GB.
    """
    rows = read_products(reviews, texts)
    users, user_ids = _coded(rows["reviewerID"])
    items, item_ids = _coded(rows["asin"])
    ratings = rows["overall"].to_numpy().astype(np.float32)
    written = (
        [proper(html.unescape(one or "")) for one in rows["text"].to_list()] if texts else None
    )
    times = rows["unixReviewTime"].to_numpy()
    del rows
    said = read_texts([metadata], item_ids[1:])
    known = Known(
        titles=["", *(said.titles.get(one, f"item {one}") for one in item_ids[1:])],
        genres=[said.genres.get(one, ()) for one in item_ids],
        people=[(said.brands[one],) if one in said.brands else () for one in item_ids],
        descriptions=[said.descriptions.get(one, "") for one in item_ids],
        **_pictures(reviews.parent / "images", item_ids),
        counts={"items without a title": len(item_ids) - 1 - len(said.titles)},
    )
    table = Table(users, items, ratings, times, user_ids, item_ids, written)
    return assembled(name, table, known, item_word=item_word)


def _coded(names: pl.Series) -> tuple[NDArray[np.int32], list[str]]:
    """Number texts from 1 in their order: (codes, texts)."""
    codes = names.rank("dense").to_numpy().astype(np.int32)
    return codes, ["", *names.unique().sort().to_list()]
