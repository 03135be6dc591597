"""The Amazon-Book recipe, on small files in the publisher's format."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from reprokit.amazon import DECEMBER, END, START, books_2017, split_december
from reprokit.datasets import DATASETS, DataError

DAY = 86_400
Row = tuple[str, str, float, int]


def review(user: str, asin: str, stars: float, time: int) -> dict[str, object]:
    return {
        "overall": stars,
        "verified": True,
        "reviewTime": "03 30, 2005",
        "reviewerID": user,
        "asin": asin,
        "style": {"Format:": " Hardcover"},
        "reviewerName": "A reader",
        "reviewText": 'Quotes " and \u00e9, {braces}\n',
        "summary": "Fine",
        "vote": "3",
        "image": ["a.jpg"],
        "unixReviewTime": time,
    }


def entry(asin: str, title: str | None) -> dict[str, object]:
    value: dict[str, object] = {"category": [], "asin": asin, "price": "", "description": ["x"]}
    return value if title is None else {**value, "title": title}


def write(path: Path, lines: Iterable[dict[str, object]]) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if path.suffix == ".gz":
        with gzip.open(path, "wt", encoding="utf-8") as stream:
            stream.write(text)
    else:
        path.write_text(text, encoding="utf-8")
    return path


def grid(users: int, items: int, start: int = START) -> list[Row]:
    """Every user rates every item, user by user, one user a day from `start`."""
    return [
        (f"U{u:02}", f"B{i:02}", 5.0, start + u * DAY) for u in range(users) for i in range(items)
    ]


def test_the_window_is_2017_in_utc() -> None:
    days = [np.datetime64(time, "s") for time in (START, DECEMBER, END)]
    assert [str(day) for day in days] == [
        "2017-01-01T00:00:00",
        "2017-12-01T00:00:00",
        "2018-01-01T00:00:00",
    ]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_every_step_is_counted_by_hand(suffix: str, tmp_path: Path) -> None:
    rows = grid(22, 21)  # 462 rows: 21 ratings by each of 22 users, 22 of each of 21 items
    extra: list[Row] = [
        ("U00", "B00", 1.0, START - DAY),  # 2016
        ("U00", "B00", 1.0, END),  # 2018, by one second
        ("U00", "B00", 2.0, END - DAY),  # 31 December: repeats a pair, and is kept
        ("U01", "B01", 3.0, DECEMBER - DAY),  # 30 November: train
        ("U01", "B02", 4.0, DECEMBER),  # 1 December
        ("U02", "NOTITLE", 5.0, START),  # not in the metadata
        ("RARE", "B00", 5.0, START),  # a user with one rating
        ("U03", "C00", 5.0, START),  # an item with one rating
    ]
    reviews = write(tmp_path / f"Books_5.json{suffix}", (review(*row) for row in extra + rows))
    metadata = [entry("B00", "First"), *(entry(f"B{i:02}", f"Book {i}") for i in range(21))]
    metadata += [entry("C00", "Rare"), entry("UNUSED", "Unused"), entry("B03", None)]
    metadata += [entry("B04", "Tom &amp; Jerry&#39;s\n  tale"), entry("B01", "var getTime = 1")]
    got = books_2017(reviews, write(tmp_path / f"meta_Books.json{suffix}", metadata))

    assert got.counts == {
        "reviews": 470,
        "metadata rows": 27,
        "rows in 2017": 468,
        "rows in 2017 without metadata, dropped": 1,
        "rows in 2017 with metadata": 467,
        "users above 20": 22,
        "items above 20": 21,
        "rows of other users or items, dropped": 2,
        "rows kept": 465,
        "users": 22,
        "items": 21,
        "items with a blank title": 1,
        "train": 463,
        "valid": 1,
        "test": 1,
    }
    # numbered by first appearance: the 31 December row of U00 and B00 stands first in the file
    assert got.user_ids[:3] == ["U00", "U01", "U02"]
    assert got.item_ids[:3] == ["B00", "B01", "B02"]
    assert got.users[:4].tolist() == [0, 1, 1, 0]
    assert got.items[:4].tolist() == [0, 1, 2, 0]
    assert got.ratings[:4].tolist() == [2.0, 3.0, 4.0, 5.0]
    assert got.split[:4].tolist() == [2, 0, 1, 0]  # 1 December before 31 December
    assert got.times[:3].tolist() == [END - DAY, DECEMBER - DAY, DECEMBER]
    titles = dict(zip(got.item_ids, got.titles, strict=True))
    assert titles["B00"] == "Book 0"  # the last entry of a repeated ASIN
    assert titles["B01"] == "Book 1"  # page source is no entry
    assert titles["B03"] == ""
    assert titles["B04"] == "Tom & Jerry's tale"
    assert (got.users.dtype, got.items.dtype, got.times.dtype) == (np.int64,) * 3
    assert (got.ratings.dtype, got.split.dtype) == (np.float32, np.int8)


def test_exactly_twenty_ratings_are_not_enough(tmp_path: Path) -> None:
    rows = grid(21, 21)
    rows += [("TWENTY", f"B{i:02}", 5.0, START) for i in range(20)]
    rows += [(f"U{u:02}", "C20", 5.0, START) for u in range(20)]
    reviews = write(tmp_path / "r.json", (review(*row) for row in rows))
    names = [*(f"B{i:02}" for i in range(21)), "C20"]
    got = books_2017(reviews, write(tmp_path / "m.json", (entry(n, n) for n in names)))
    assert "TWENTY" not in got.user_ids and "C20" not in got.item_ids
    assert got.counts["rows kept"] == 21 * 21


def test_both_filters_count_once_on_the_same_table(tmp_path: Path) -> None:
    # LATE has 21 ratings, but one is of a rare item: dropping it must not drop LATE
    rows = grid(21, 21)
    rows += [("LATE", f"B{i:02}", 5.0, START) for i in range(20)] + [("LATE", "C", 5.0, START)]
    reviews = write(tmp_path / "r.json", (review(*row) for row in rows))
    names = [*(f"B{i:02}" for i in range(21)), "C"]
    got = books_2017(reviews, write(tmp_path / "m.json", (entry(n, n) for n in names)))
    assert got.user_ids[-1] == "LATE"
    assert (got.users == len(got.user_ids) - 1).sum() == 20


def test_a_row_without_metadata_counts_for_nobody(tmp_path: Path) -> None:
    # 21 ratings of NEAR, one of them of an item that the metadata lack: 20 are not enough
    rows = grid(21, 21)
    rows += [("NEAR", f"B{i:02}", 5.0, START) for i in range(20)] + [("NEAR", "X", 5.0, START)]
    reviews = write(tmp_path / "r.json", (review(*row) for row in rows))
    names = [f"B{i:02}" for i in range(21)]
    got = books_2017(reviews, write(tmp_path / "m.json", (entry(n, n) for n in names)))
    assert "NEAR" not in got.user_ids
    assert got.counts["rows in 2017 without metadata, dropped"] == 1


def test_december_is_halved_stably_and_the_odd_row_is_tested() -> None:
    day = DECEMBER + 9 * DAY
    times = np.array([day, START, day + DAY, day, day, DECEMBER - 1, day])
    # in order of time, ties in file order: rows 0, 3 | 4, 6, 2
    assert split_december(times).tolist() == [1, 0, 2, 1, 2, 0, 2]
    assert split_december(times[:2]).tolist() == [2, 0]
    assert split_december(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_no_row_of_a_later_split_is_older(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    rows = [
        (f"U{u}", f"B{i}", float(random.integers(1, 6)), START + int(random.integers(365)) * DAY)
        for u, i in random.integers(0, 30, (2_500, 2))
    ]
    reviews = write(tmp_path / "r.json.gz", (review(*row) for row in rows))
    metadata = write(tmp_path / "m.json", (entry(f"B{i}", f"Book {i}") for i in range(30)))
    got = books_2017(reviews, metadata)
    train, valid, test = (got.times[got.split == part] for part in range(3))
    assert len(train) and len(valid) and len(test)
    assert test.min() >= valid.max() >= valid.min() >= DECEMBER > train.max()
    assert len(test) - len(valid) in (0, 1)
    # the rows are the file's rows, in its order
    users, items = set(got.user_ids), set(got.item_ids)
    expected = [row for row in rows if row[0] in users and row[1] in items]
    columns = (got.users, got.items, got.ratings, got.times)
    assert expected == [
        (got.user_ids[u], got.item_ids[i], float(r), int(t))
        for u, i, r, t in zip(*columns, strict=True)
    ]
    assert list(dict.fromkeys(row[0] for row in expected)) == got.user_ids


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{oops", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"asin": "B00", "overall": 5.0, "unixReviewTime": 1}', "'reviewerID' is null"),
        (
            '{"reviewerID": "U", "asin": "B00", "overall": 5.0, "unixReviewTime": "soon"}',
            "'unixReviewTime' is \"soon\", expected int",
        ),
    ],
)
def test_a_malformed_line_is_named(line: str, complaint: str, suffix: str, tmp_path: Path) -> None:
    reviews = write(tmp_path / f"r.json{suffix}", (review(*row) for row in grid(2, 2)))
    with gzip.open(reviews, "at") if suffix else reviews.open("a") as stream:
        stream.write(line + "\n")
    metadata = write(tmp_path / "m.json", [entry("B00", "Book")])
    with pytest.raises(DataError) as error:
        books_2017(reviews, metadata)
    assert f"{reviews}, line 5: " in str(error.value) and complaint in str(error.value)


def test_metadata_without_an_asin_are_named(tmp_path: Path) -> None:
    reviews = write(tmp_path / "r.json", (review(*row) for row in grid(2, 2)))
    metadata = write(tmp_path / "m.json", [entry("B00", "Book"), {"title": "Orphan"}])
    with pytest.raises(DataError, match=r"m\.json, line 2: 'asin' is null"):
        books_2017(reviews, metadata)


def test_a_file_that_is_cut_short_is_said_to_be_damaged(tmp_path: Path) -> None:
    reviews = write(tmp_path / "r.json.gz", (review(*row) for row in grid(30, 30)))
    reviews.write_bytes(reviews.read_bytes()[:-200])
    metadata = write(tmp_path / "m.json", [entry("B00", "Book")])
    with pytest.raises(DataError, match=r"r\.json\.gz, after line \d+: .*cut short"):
        books_2017(reviews, metadata)


def test_missing_files_and_an_empty_year_say_what_to_do(tmp_path: Path) -> None:
    reviews = write(tmp_path / "r.json", (review(*row) for row in grid(2, 2)))
    with pytest.raises(DataError, match=r"m\.json is missing\. Fetch it: .* amazon-book"):
        books_2017(reviews, tmp_path / "m.json")
    metadata = write(tmp_path / "m.json", [entry("B00", "Book")])
    with pytest.raises(DataError, match=r"no rating of 2017 is left of 4 lines \(4 in 2017"):
        books_2017(reviews, metadata)
    empty = write(tmp_path / "empty.json", [])
    with pytest.raises(DataError, match="left of 0 lines"):
        books_2017(empty, metadata)
    with pytest.raises(DataError, match="0 of them with metadata"):
        books_2017(reviews, empty)


def test_the_published_counts_have_the_names_of_ours(tmp_path: Path) -> None:
    reviews = write(tmp_path / "r.json", (review(*row) for row in grid(21, 21)))
    metadata = write(tmp_path / "m.json", (entry(f"B{i:02}", "Book") for i in range(21)))
    expected = DATASETS["amazon-book"].expected
    names = {name for name in expected if not name.startswith("ctr ")}
    assert names <= set(books_2017(reviews, metadata).counts)
