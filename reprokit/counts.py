"""What the data sets hold, counted from the publishers' files, beside what is published of them.

`count` gives every statistic for which `datasets.DATASETS` holds a published value; `compare` puts
the two side by side. A difference is reported, not raised: a partial or rebuilt copy counts too.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reprokit.crossdata import CDSR_FILES, LEAST, read_items, read_rows, refuse_earlier_release
from reprokit.data import (
    SPLITS,
    CTRData,
    load_click_data,
    opened,
    read_ml_1m_movies,
    read_ml_1m_ratings,
)
from reprokit.datasets import DataError, Expected, dataset
from reprokit.download import require
from reprokit.reviewfiles import (
    load_restaurants,
    numbered,
    picture_files,
    read_products,
    split_days,
    tally,
)

if TYPE_CHECKING:
    import polars as pl

Counts = dict[str, int | float]


def count(name: str, data_dir: Path) -> Counts:
    """Every published statistic of a data set, in the registry's order, then what else was counted.

    Raises DataError: unknown name, a missing file, a file that is not in its publisher's format.
    """
    expected = dataset(name).expected
    counter = next(counter for prefix, counter in COUNTERS.items() if name.startswith(prefix))
    found = counter(name, Path(data_dir))
    assert expected.keys() <= found.keys(), f"{name}: {expected.keys() - found.keys()} not counted"
    return {key: found[key] for key in (*expected, *found)}


def compare(name: str, counted: Counts) -> list[tuple[str, float, float | None, str, str]]:
    """(statistic, counted, published, where it is published, mark) of each statistic.

    The mark is "equal" or "differs"; beside a lower bound "not below" or "below"; and "not printed"
    where nothing is published to compare with.
    """
    expected = dataset(name).expected
    return [
        (key, value, known.value, known.source, mark(value, known))
        if (known := expected.get(key))
        else (key, value, None, "", "not printed")
        for key, value in counted.items()
    ]


def mark(value: float, known: Expected) -> str:
    if known.bound:
        return "not below" if value >= known.value else "below"
    return "equal" if value == known.value else "differs"


def ml_1m(name: str, data_dir: Path) -> Counts:
    """Users are those with ratings: each of the release's users has at least 20."""
    ratings, movies = require(name, data_dir, ("ratings.dat", "movies.dat"))
    events = read_ml_1m_ratings(ratings)
    return {
        "ratings": len(events.users),
        "users": len(np.unique(events.users)),
        "movies": len(read_ml_1m_movies(movies).ids),
        **click_counts(load_click_data("ml-1m", data_dir)),
    }


def click_counts(data: CTRData) -> Counts:
    """The statistics of CCF-LLM's Table 1; users and items count the padding id, as there."""
    rows = {f"ctr {split}": len(data.split(split)) for split in SPLITS}
    return {"ctr users": data.n_users, "ctr items": data.n_items, **rows}


def movielens_csv(name: str, data_dir: Path) -> Counts:
    """MovieLens-25M and latest-small. Users are those with ratings."""
    import polars as pl

    ratings, movies, tags = require(name, data_dir, ("ratings.csv", "movies.csv", "tags.csv"))
    rows, users = pl.col("movieId").len(), pl.col("userId").n_unique()
    n_ratings, n_users = collect(ratings, pl.scan_csv(ratings).select(rows, users))
    (n_movies,) = collect(movies, pl.scan_csv(movies).select(rows))
    (n_tags,) = collect(tags, pl.scan_csv(tags).select(rows))
    return {"ratings": n_ratings, "users": n_users, "movies": n_movies, "tags": n_tags}


def posters(name: str, data_dir: Path) -> Counts:
    (first,) = require(name, data_dir, ("*.jpg",))
    return {"posters": sum(path.is_file() for path in first.parent.glob("*.jpg"))}


def amazon_2014(name: str, data_dir: Path) -> Counts:
    """Reviews of a 5-core file, and the splits by time that are made of it."""
    reviews = next(file.path for file in dataset(name).files if file.path.startswith("reviews_"))
    (path,) = require(name, data_dir, (reviews,))
    table = read_products(path, texts=False)
    users, _ = numbered(table["reviewerID"].to_list())
    items, asins = numbered(table["asin"].to_list())
    split, of_days = split_days(name, table["unixReviewTime"].to_numpy())
    ratings = table["overall"].to_numpy().astype(np.float32)
    found = tally(users, items, ratings, split, table["written"].to_numpy())
    pictured = len(picture_files(path.parent / "images").keys() & set(asins))
    reviews_in_all = found.pop("rows")
    return {"reviews": reviews_in_all, **found, **of_days, "items with a picture": pictured}


def amazon_book(name: str, data_dir: Path) -> Counts:
    """The steps of the recipe as its loader counts them, and the splits that it gives."""
    data = load_click_data("amazon-book", data_dir)
    return {**data.counts, **click_counts(data)}


def cdsr(name: str, data_dir: Path) -> Counts:
    """Items of each domain, training rows, and evaluation rows by the domain of their target."""
    refuse_earlier_release(name, data_dir)
    a_list, b_list, *files = require(name, data_dir, CDSR_FILES)
    n_a, n_b = len(read_items(a_list)), len(read_items(b_list))
    counted: Counts = {"a items": n_a, "b items": n_b}
    for split, path in zip(SPLITS, files, strict=True):
        rows = read_rows(path, n_a + n_b, LEAST[split])
        last = rows.items[rows.starts[1:] - 1]
        if split == "train":
            counted["train"] = len(last)
        else:
            counted[f"{split} a"] = int((last <= n_a).sum())
            counted[f"{split} b"] = int((last > n_a).sum())  # B is numbered after A
    return counted


def google_restaurants(name: str, data_dir: Path) -> Counts:
    """Records of each list, and what its loader counts in them. Read whole (about 112 MB)."""
    (path,) = require(name, data_dir, ("filter_all_t.json",))
    found = load_restaurants(name, path).counts
    rows = {"train": "train rows", "val": "valid rows", "test": "test rows"}
    records = {key: found.pop(counted) for key, counted in rows.items()}
    return {**records, **found}


def alpaca(name: str, data_dir: Path) -> Counts:
    """Instructions, and those with an input of their own."""
    (path,) = require(name, data_dir, ("alpaca_data.json",))
    try:
        with opened(path) as file:
            rows = json.load(file)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: not a JSON list of instructions")
    fields = ("instruction", "input", "output")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in fields):
            raise DataError(f"{path}, record {number:,}: not an object of {', '.join(fields)}")
    return {"instructions": len(rows), "with an input": sum(bool(row["input"]) for row in rows)}


def collect(path: Path, query: pl.LazyFrame) -> tuple[int, ...]:
    """The one row of a query, read in a stream; what polars cannot read becomes a DataError."""
    import polars as pl

    try:
        return query.collect(engine="streaming").row(0)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not in its publisher's format ({reason})") from error


COUNTERS = {
    "ml-1m": ml_1m,
    "ml-posters": posters,
    "ml-": movielens_csv,
    "amazon-books-2014": amazon_2014,
    "amazon-book": amazon_book,
    "amazon-": amazon_2014,
    "cdsr-": cdsr,
    "google-restaurants": google_restaurants,
    "alpaca": alpaca,
}
"""By the start of a data set's name, the first that fits."""
