"""Amazon-Book as CCF-LLM and CoLLM use it: the year 2017 of Books 5-core, from the raw files.

Paper   Liu et al., CIKM 2024 (CCF-LLM), Table 1; the recipe is that of CoLLM's published notebook
        (dataset/amazon_book/processing_ood.ipynb), whose counts `data stats` prints beside ours.
Files   Books_5.json.gz and meta_Books.json.gz of the 2018 release, one JSON object a line.

1  Join reviews with metadata by ASIN; of a repeated ASIN the last entry counts.
2  Keep the calendar year 2017, UTC.
3  Keep users and items with more than 20 ratings, both counted once on the rows of step 2.
4  Train: January to November. December, sorted by time, is halved into validation and test.

Where the texts are open, and what is done here
D1  CCF-LLM says "16 months from 2017 onwards, 11/2.5/2.5"; its counts come only from 2017 alone.
D2  The join comes before the counting, as in the notebook: a row whose item has no metadata counts
    for nobody. Metadata with a blank title stay (the notebook keeps them); they are counted.
D3  Times have day resolution, so December is halved inside a day. The notebook's rows stand in the
    order of the metadata and its sort is not stable: which rows of that day are validation cannot
    be recovered. Here ties follow the reviews file: the same in every run, and equal to the
    published splits in size only.
D4  With an odd number of December rows, test gets the odd one (n // 2 for validation).
D5  Repeated (user, item) rows are kept: an item may stand in its own history.
D6  Titles are printed in prompts: HTML entities are decoded and runs of white space become one
    space. The publisher's text has both; the counts do not depend on it.
"""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reprokit.datasets import DataError

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

START, DECEMBER, END = (
    int(np.datetime64(day, "s").astype(np.int64))
    for day in ("2017-01-01", "2017-12-01", "2018-01-01")
)
"""Unix seconds, UTC; END is the first second of the next year."""
MORE_THAN = 20
"""Users and items need more ratings than this in 2017. CoLLM's notebook."""
REVIEW_FIELDS = {"reviewerID": str, "asin": str, "overall": float, "unixReviewTime": int}
METADATA_FIELDS = {"asin": str, "title": str}


@dataclass(frozen=True, eq=False)
class Book2017:
    """The ratings kept, in the order of the reviews file. Arrays are (N,)."""

    users: NDArray[np.int64]
    """Index into `user_ids`, numbered from 0 by first appearance."""
    items: NDArray[np.int64]
    """Index into `item_ids` and `titles`, numbered from 0 by first appearance."""
    ratings: NDArray[np.float32]
    """Stars, 1 to 5. The papers' positive label is five stars."""
    times: NDArray[np.int64]
    """Unix seconds, UTC, of day resolution."""
    split: NDArray[np.int8]
    """0 train, 1 validation, 2 test."""
    user_ids: list[str]
    item_ids: list[str]
    """ASINs."""
    titles: list[str]
    """Empty where the metadata have none."""
    counts: dict[str, int]
    """What was read, dropped and kept, in the order of the steps."""


def books_2017(reviews: Path, metadata: Path) -> Book2017:
    """Read, filter and split; each file is a .json or .json.gz and is streamed, never held whole.

    Raises DataError with file and line for a line that is no review or no metadata entry, and when
    nothing of 2017 is left.
    """
    import polars as pl

    time, asin = pl.col("unixReviewTime"), pl.col("asin")
    lines = _scan(reviews, REVIEW_FIELDS)
    year, read = _collect(
        reviews, REVIEW_FIELDS, lines.filter(time.is_between(START, END, closed="left")), lines
    )

    # "getTime" marks entries that the publisher scraped as page source, not as metadata
    entries = _scan(metadata, METADATA_FIELDS).with_columns(pl.col("title").fill_null(""))
    proper = entries.filter(~pl.col("title").str.contains("getTime", literal=True))
    wanted = year["asin"].unique()
    known_items = proper.filter(asin.is_in(wanted.implode()))
    named, known = _collect(metadata, METADATA_FIELDS, known_items, entries)
    named = named.unique("asin", keep="last", maintain_order=True)

    joined = year.join(named.select("asin"), on="asin", how="semi")
    active = {  # both counted on the same table
        key: joined.group_by(key).len().filter(pl.col("len") > MORE_THAN)
        for key in ("reviewerID", "asin")
    }
    kept = joined
    for key, table in active.items():
        kept = kept.join(table, on=key, how="semi")
    kept = kept.sort("line")
    if not len(kept):
        raise DataError(
            f"{reviews}: no rating of 2017 is left of {read:,} lines ({len(year):,} in 2017, "
            f"{len(joined):,} of them with metadata in {metadata}); are these the Books files?"
        )

    users, user_ids = _codes(kept["reviewerID"])
    items, item_ids = _codes(kept["asin"])
    raw = dict(zip(named["asin"].to_list(), named["title"].to_list(), strict=True))
    titles = [" ".join(html.unescape(raw[one]).split()) for one in item_ids]
    times = kept["unixReviewTime"].to_numpy().astype(np.int64)
    split = split_december(times)
    parts = np.bincount(split, minlength=3)
    counts = {
        "reviews": read,
        "metadata rows": known,
        "rows in 2017": len(year),
        "rows in 2017 without metadata, dropped": len(year) - len(joined),
        "rows in 2017 with metadata": len(joined),
        f"users above {MORE_THAN}": len(active["reviewerID"]),
        f"items above {MORE_THAN}": len(active["asin"]),
        "rows of other users or items, dropped": len(joined) - len(kept),
        "rows kept": len(kept),
        "users": len(user_ids),
        "items": len(item_ids),
        "items with a blank title": sum(not title for title in titles),
        "train": int(parts[0]),
        "valid": int(parts[1]),
        "test": int(parts[2]),
    }
    return Book2017(
        users=users,
        items=items,
        ratings=kept["overall"].to_numpy().astype(np.float32),
        times=times,
        split=split,
        user_ids=user_ids,
        item_ids=item_ids,
        titles=titles,
        counts=counts,
    )


def split_december(times: NDArray[np.int64]) -> NDArray[np.int8]:
    """0 before December 2017; of December's rows the earlier half 1, the later 2. Shapes (N,).

    Ties keep their order. n // 2 rows go to validation, the others to test (D4).
    """
    split = np.zeros(len(times), np.int8)
    december = np.flatnonzero(times >= DECEMBER)
    december = december[np.argsort(times[december], kind="stable")]
    half = len(december) // 2
    split[december[:half]] = 1
    split[december[half:]] = 2
    return split


def _codes(ids: pl.Series) -> tuple[NDArray[np.int64], list[str]]:
    """Each id as its rank of first appearance, and the ids in that order."""
    import polars as pl

    names = ids.unique(maintain_order=True)
    codes = ids.cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
    return codes, names.to_list()


def _scan(path: Path, fields: Mapping[str, type]) -> pl.LazyFrame:
    """The named fields of a JSON-lines file, with the line index; other fields are not kept."""
    import polars as pl

    if not path.is_file():
        raise DataError(
            f"{path} is missing. Fetch it: python -m reprokit data fetch amazon-book "
            "(see data/README.md)"
        )
    types = {str: pl.String, float: pl.Float64, int: pl.Int64}
    schema = {name: types[kind] for name, kind in fields.items()}
    return pl.scan_ndjson(path, schema=schema, row_index_name="line")


def _collect(
    path: Path, fields: Mapping[str, type], query: pl.LazyFrame, lines: pl.LazyFrame
) -> tuple[pl.DataFrame, int]:
    """The query's rows in file order, and the number of lines read. Streams the file."""
    import polars as pl

    holes = pl.any_horizontal(pl.col(name).is_null() for name in fields)
    check = lines.select(pl.len().alias("read"), holes.sum().alias("holes"))
    try:
        rows, checked = pl.collect_all([query, check], engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _complaint(path, fields, str(error)) from error
    read, incomplete = checked.row(0)
    if incomplete:
        raise _complaint(path, fields, f"{incomplete} lines lack a field")
    return rows.sort("line"), int(read)


def _complaint(path: Path, fields: Mapping[str, type], reason: str) -> DataError:
    """Read again, line by line, to name the first line that is wrong."""
    number = 0
    try:
        with path.open("rb") as stream:
            packed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip() and (fault := _fault(line, fields)):
                    return DataError(f"{path}, line {number}: {fault}")
    except (OSError, EOFError) as error:
        return DataError(
            f"{path}, after line {number}: {error}. The file is damaged or cut short: move it away "
            "and fetch it again (python -m reprokit data fetch amazon-book)"
        )
    return DataError(f"{path}: {reason}")


def _fault(line: bytes, fields: Mapping[str, type]) -> str:
    """What is wrong with a line; empty where it is right. A title may be missing (D2)."""
    try:
        value = json.loads(line)
    except ValueError as error:
        return f"not JSON ({error})"
    if not isinstance(value, dict):
        return "not a JSON object"
    for name, kind in fields.items():
        got = value.get(name)
        right = (int, float) if kind is float else kind
        if got is None and name == "title":
            continue
        if not isinstance(got, right) or isinstance(got, bool):
            return f"'{name}' is {json.dumps(got)[:40]}, expected {kind.__name__}"
    return ""
