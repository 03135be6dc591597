"""The publishers' review files as Reviews: what is read, dropped and counted.

Files   filter_all_t.json of the Google restaurants release (Yan et al., arXiv 2207.00422): one JSON
        object with the lists train, val and test; a record has business_id, user_id, rating,
        review_text, pics (picture ids) and history_reviews (pairs of review id and text). Optional
        beside it images/<picture id>.jpg, .jpeg, .png, .webp or .gif.
        reviews_<Category>_5.json.gz of the Amazon 2014 release: one JSON object a line. Optional
        beside it images/<ASIN>.jpg and so on, a picture of the product.

What the publishers leave open, and what is done here
D1  A history may hold the review that is to be predicted, or another one that is. So a history
    review is dropped where it is a row of any split: by its id, `<user>_<business>` of a row, or by
    its text, equal to that of a row of the same user but for case and white space. An id with
    several texts is dropped whole when one of them is a row's. What was edited and stands under
    another id is not found.
D2  The rows of a user list the same history again and again: a review counts once for its user, by
    id and by text.
D3  A text, list of pictures or history that a record lacks, or that is null, is none.
D4  A picture belongs to every row that names it, once.
D5  Amazon's rows are split by time, about 80/10/10 over all rows, where a day begins: a day is
    never cut, and no row of validation or test is earlier than one of training.
D6  A product review's text is `summary. reviewText`; character entities are decoded.
"""

from __future__ import annotations

import html
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.data import SPLITS, opened
from reprokit.datasets import DataError
from reprokit.reviews import POSITIVE, Counts, Reviews

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Record = Mapping[str, Any]

DAY = 86_400
RELEASE_SPLITS = ("train", "val", "test")
"""The release's names of `SPLITS`."""
PICTURE_TYPES = (".gif", ".jpeg", ".jpg", ".png", ".webp")
PRODUCT_FIELDS = ("reviewerID", "asin", "overall", "unixReviewTime")
"""Each review of the Amazon release has these; `summary` and `reviewText` may be missing."""


# --- shared by all releases ---------------------------------------------------------------------
def numbered(names: Iterable[str]) -> tuple[Ints, list[str]]:
    """Number names from 0 by first appearance: (number of each, the distinct names)."""
    known: dict[str, int] = {}
    codes = [known.setdefault(name, len(known)) for name in names]
    return np.array(codes, np.int64), list(known)


def tally(
    users: Ints,
    items: Ints,
    ratings: NDArray[np.float32],
    split: NDArray[np.int8],
    written: NDArray[np.bool_],
) -> Counts:
    """What a table of reviews holds, split by split; all (N,), `written` where there is a text."""
    pairs = users * (items.max() + 1) + items
    counts: Counts = {
        "users": len(np.unique(users)),
        "items": len(np.unique(items)),
        "rows": len(users),
        "rows that repeat a user and an item": len(pairs) - len(np.unique(pairs)),
    }
    for index, name in enumerate(SPLITS):
        at = split == index
        counts |= {
            f"{name} rows": int(at.sum()),
            f"{name} mean rating": round(float(ratings[at].mean(dtype=np.float64)), 3),
            f"{name} positive share": round(float((ratings[at] > POSITIVE).mean()), 4),
            f"{name} rows without a text": int((~written[at]).sum()),
        }
        for what, codes in (("users", users), ("items", items)):
            found = np.unique(codes[at])
            counts[f"{name} {what}"] = len(found)
            if index:
                shared = np.isin(found, codes[split == 0])
                counts[f"{name} {what} that occur in train"] = int(shared.sum())
    return counts


def picture_files(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their name without its ending; of several the first by name."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
    except FileNotFoundError:
        return {}
    files: dict[str, Path] = {}
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending in PICTURE_TYPES:
            files.setdefault(stem, folder / name)
    return files


# --- the Google restaurants release -------------------------------------------------------------
def load_restaurants(name: str, path: Path) -> Reviews:
    """filter_all_t.json, and the pictures that lie in images/ beside it."""
    return restaurants(name, read_release(path), picture_files(path.parent / "images"))


def read_release(path: Path) -> dict[str, list[Record]]:
    """The records by the release's names of the splits, read whole (about 112 MB).

    Raises DataError for what is not the release's layout, with the record.
    """
    try:
        with opened(path) as file:
            splits = json.load(file)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    lists = isinstance(splits, dict) and all(
        isinstance(splits.get(k), list) for k in RELEASE_SPLITS
    )
    if not lists:
        raise DataError(f"{path}: not a JSON object of the lists train, val and test")
    files = {split: splits[split] for split in RELEASE_SPLITS}
    for split, records in files.items():
        if not records:
            raise DataError(f"{path}: no record in {split}")
        for number, record in enumerate(records, 1):
            if fault := record_fault(record):
                raise DataError(f"{path}, {split} record {number:,}: {fault}")
    for key in ("review_text", "history_reviews", "pics"):
        if not any(key in record for records in files.values() for record in records):
            raise DataError(f"{path}: no record has '{key}': not the publisher's layout")
    return files


def record_fault(record: object) -> str:
    """What is wrong with a record; empty where it is right."""
    if not isinstance(record, dict):
        return f"{shown(record)} is not an object"
    for key in ("user_id", "business_id"):
        if not isinstance(record.get(key), str) or not record[key]:
            return f"'{key}' is {shown(record.get(key))}, expected a text"
    rating = record.get("rating")
    if not isinstance(rating, int | float) or isinstance(rating, bool) or not 1 <= rating <= 5:
        return f"'rating' is {shown(rating)}, expected a number from 1 to 5"
    if not isinstance(record.get("review_text"), str | None):
        return f"'review_text' is {shown(record['review_text'])}, expected a text"
    pictures, history = listed(record, "pics"), listed(record, "history_reviews")
    if not isinstance(pictures, list) or not all(isinstance(one, str) for one in pictures):
        return f"'pics' is {shown(pictures)}, expected a list of picture ids"
    if not isinstance(history, list) or not all(map(is_history_review, history)):
        return f"'history_reviews' is {shown(history)}, expected a list of [review id, text]"
    return ""


def listed(record: Record, key: str) -> Any:
    """A list of a record; an empty one where it is missing or null (D3)."""
    value = record.get(key)
    return [] if value is None else value


def is_history_review(one: object) -> bool:
    if not isinstance(one, list) or len(one) < 2:
        return False
    return isinstance(one[0], str | int) and isinstance(one[1], str | None)


def shown(value: object) -> str:
    return "missing" if value is None else json.dumps(value)[:60]


def restaurants(
    name: str, files: Mapping[str, Sequence[Record]], paths: Mapping[str, Path], **painted: Any
) -> Reviews:
    """The columns of a release's records. `paths` has the picture files that are here by id."""
    records = [record for split in RELEASE_SPLITS for record in files[split]]
    sizes = [len(files[split]) for split in RELEASE_SPLITS]
    split = np.repeat(np.arange(3, dtype=np.int8), sizes)
    users, user_ids = numbered(record["user_id"] for record in records)
    items, item_ids = numbered(record["business_id"] for record in records)
    ratings = np.array([record["rating"] for record in records], np.float32)
    texts = [proper(record.get("review_text")) for record in records]
    extra_users, extra_texts, of_histories = histories(records, users, texts)
    pairs = dict.fromkeys(
        (row, picture) for row, record in enumerate(records) for picture in listed(record, "pics")
    )
    picture_of, pictures = numbered(picture for _, picture in pairs)
    picture_rows = np.array([row for row, _ in pairs], np.int64)
    data = Reviews(
        name=name,
        kind="restaurant",
        lexicon="restaurants",
        users=users,
        items=items,
        ratings=ratings,
        texts=texts,
        split=split,
        user_ids=user_ids,
        item_ids=item_ids,
        pictures=pictures,
        picture_rows=picture_rows,
        picture_of=picture_of,
        item_pictures=np.full(len(item_ids), -1, np.int64),
        extra_users=extra_users,
        extra_texts=extra_texts,
        times=None,
        picture_paths=[paths.get(picture) for picture in pictures],
        counts={},
        **painted,
    )
    counts = tally(users, items, ratings, split, np.array([bool(text) for text in texts]))
    counts |= picture_counts(data, paths) | of_histories | reach_counts(data, records)
    return replace(data, counts=counts)


def proper(text: str | None) -> str:
    """Without white space at its ends, and with half characters, which no encoder takes, as "?"."""
    text = (text or "").strip()
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def folded(text: str) -> str:
    """What two copies of a review share: case and white space do not count."""
    return " ".join(text.split()).casefold()


def histories(
    records: Sequence[Record], users: Ints, texts: Sequence[str]
) -> tuple[Ints, list[str], Counts]:
    """The history reviews that are no rows: (users ascending, texts, counts); D1 and D2."""
    row_ids = {f"{record['user_id']}_{record['business_id']}" for record in records}
    row_texts = {(user, folded(text)) for user, text in zip(users.tolist(), texts, strict=True)}
    entries = [  # user, review id, text, folded text
        (user, str(entry[0]), text, folded(text))
        for user, record in zip(users.tolist(), records, strict=True)
        for entry in listed(record, "history_reviews")
        for text in (proper(entry[1]),)
    ]
    of_rows = {
        (user, key)
        for user, key, text, fold in entries
        if key in row_ids or (text and key and (user, fold) in row_texts)
    }
    dropped, empty = 0, 0
    kept: list[tuple[int, str]] = []
    seen: set[tuple[int, str, bool]] = set()  # user, id or folded text, which of the two
    for user, key, text, fold in entries:
        if (user, key) in of_rows or (text and (user, fold) in row_texts):
            dropped += 1
        elif not text:
            empty += 1
        else:
            marks = {(user, fold, True)} | ({(user, key, False)} if key else set())
            if not marks & seen:
                kept.append((user, text))
                seen |= marks
    kept.sort(key=lambda one: one[0])  # stable
    counts: Counts = {
        "history reviews listed": len(entries),
        "history reviews that are rows, dropped": dropped,
        "history reviews without a text, dropped": empty,
        "history reviews that repeat, dropped": len(entries) - dropped - empty - len(kept),
        "history reviews kept": len(kept),
    }
    return np.array([user for user, _ in kept], np.int64), [text for _, text in kept], counts


def picture_counts(data: Reviews, paths: Mapping[str, Path]) -> Counts:
    """Pictures by whether they are here, and rows without one."""
    named = np.bincount(data.picture_rows, minlength=len(data)) > 0
    here = data.has_picture[data.picture_of]
    seen = np.bincount(data.picture_rows, here, minlength=len(data)) > 0
    counts: Counts = {
        "pictures named": len(data.pictures),
        "pictures here": int(data.has_picture.sum()),
        "picture files of no row": len(paths.keys() - set(data.pictures)),
    }
    for index, split in enumerate(SPLITS):
        at = data.split == index
        counts[f"{split} rows that name no picture"] = int((~named[at]).sum())
        counts[f"{split} rows without a picture here"] = int((~seen[at]).sum())
    return counts


def reach_counts(data: Reviews, records: Sequence[Record]) -> Counts:
    """Of each split: history reviews and pictures a row, as listed, and users with none kept."""
    history = np.array([len(listed(record, "history_reviews")) for record in records])
    pictures = np.array([len(listed(record, "pics")) for record in records])
    counts: Counts = {}
    for split in SPLITS:
        rows = data.rows(split)
        alone = ~np.isin(np.unique(data.users[rows]), data.extra_users)
        counts |= {
            f"{split} history reviews a row": round(float(history[rows].mean()), 3),
            f"{split} pictures a row": round(float(pictures[rows].mean()), 3),
            f"{split} users without a history review kept": int(alone.sum()),
        }
    return counts


# --- the Amazon 2014 release --------------------------------------------------------------------
def load_products(name: str, path: Path) -> Reviews:
    """A 5-core reviews file, and the products' pictures that lie in images/ beside it."""
    table = read_products(path)
    ratings, times = table["overall"].to_numpy(), table["unixReviewTime"].to_numpy()
    texts = [html.unescape(text) if "&" in text else text for text in table["text"].to_list()]
    who, what = table["reviewerID"].to_list(), table["asin"].to_list()
    paths = picture_files(path.parent / "images")
    data = products(name, who, what, ratings, times, texts, paths)
    return replace(data, lexicon="instruments" if "musical" in name else "")


def read_products(path: Path, texts: bool = True) -> pl.DataFrame:
    """`PRODUCT_FIELDS` and `text` of each review; or, without texts, `written`: whether one is.

    Raises DataError for what is not the release's format, with the record.
    """
    import polars as pl

    parts = []
    for field in ("summary", "reviewText"):
        part = pl.col(field).str.strip_chars()
        parts.append(pl.when(part != "").then(part))
    text = pl.concat_str(parts, separator=". ", ignore_nulls=True)
    kinds = dict(
        zip(PRODUCT_FIELDS, (pl.String, pl.String, pl.Float64, pl.Int64), strict=True),
        summary=pl.String,
        reviewText=pl.String,
    )
    query = pl.scan_ndjson(path, schema=kinds).select(
        *PRODUCT_FIELDS, text.alias("text") if texts else (text != "").alias("written")
    )
    try:
        table = query.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not in its publisher's format ({reason})") from None
    if not len(table):
        raise DataError(f"{path}: no reviews in it")
    faults = {f"no {field}": pl.col(field).is_null() for field in PRODUCT_FIELDS}
    faults["'overall' is not a rating from 1 to 5"] = ~pl.col("overall").is_between(1, 5)
    for fault, wrong in faults.items():
        at = table.select(wrong.fill_null(False).arg_true()).to_series()
        if len(at):
            raise DataError(f"{path}, record {at[0] + 1:,}: {fault}")
    return table


def split_days(name: str, times: Ints) -> tuple[NDArray[np.int8], Counts]:
    """Splits of about 80, 10 and 10% of the rows, cut where a day begins (D5); (N,) and counts.

    Raises DataError for fewer than three days.
    """
    days, sizes = np.unique(times // DAY, return_counts=True)
    if len(days) < 3:
        raise DataError(f"{name}: reviews of {len(days)} days; a split by time needs 3 or more")
    before = np.cumsum(sizes) - sizes  # rows before each day
    first = 1 + int(np.abs(before[1:-1] - 0.8 * len(times)).argmin())
    second = first + 1 + int(np.abs(before[first + 1 :] - 0.9 * len(times)).argmin())
    split = np.searchsorted(days[[first, second]], times // DAY, side="right").astype(np.int8)
    wanted = np.rint(np.array([0.8, 0.9]) * len(times)).astype(int)
    moved = np.abs(before[[first, second]] - wanted).sum()
    return split, {"days": len(days), "rows moved to keep days whole": int(moved)}


def products(
    name: str,
    who: Sequence[str],
    what: Sequence[str],
    ratings: NDArray[Any],
    times: NDArray[Any],
    texts: Sequence[str],
    paths: Mapping[str, Path],
) -> Reviews:
    """The columns of product reviews, all (N,) in file order, split by time.

    `paths` has the products' pictures that are here by the product's id.
    """
    split, of_days = split_days(name, times)
    order = np.argsort(split, kind="stable")
    users, user_ids = numbered(who[at] for at in order)
    items, item_ids = numbered(what[at] for at in order)
    texts = [proper(texts[at]) for at in order]
    split, ratings = split[order], ratings[order].astype(np.float32)
    pictured = [item for item in item_ids if item in paths]
    number = {item: at for at, item in enumerate(pictured)}
    counts = tally(users, items, ratings, split, np.array([bool(t) for t in texts]))
    counts |= of_days | {
        "items with a picture": len(pictured),
        "picture files of other items": len(paths) - len(pictured),
    }
    nothing = np.empty(0, np.int64)
    return Reviews(
        name=name,
        kind="product",
        users=users,
        items=items,
        ratings=ratings,
        texts=texts,
        split=split,
        user_ids=user_ids,
        item_ids=item_ids,
        pictures=pictured,
        picture_rows=nothing,
        picture_of=nothing,
        item_pictures=np.array([number.get(item, -1) for item in item_ids], np.int64),
        extra_users=nothing,
        extra_texts=[],
        times=times[order].astype(np.int64),
        picture_paths=[paths[item] for item in pictured],
        counts=counts,
    )
