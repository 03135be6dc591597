"""Small files of ratings as their publishers write them, and what holds of all data read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from reprokit.feedback import SPLITS, Feedback
from reprokit.ratings import load_feedback

TRAIN, VALID, TEST, SUPPORT = range(4)
NOWHERE = Path("no data here")
HEADS = {
    "ratings.csv": "userId,movieId,rating,timestamp",
    "movies.csv": "movieId,title,genres",
    "tags.csv": "userId,movieId,tag,timestamp",
}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def movielens(data: Path, packed: str = "", **files: list[str]) -> Path:
    """A folder like latest-small, of two users, four films and the rows given instead."""
    rows = {
        # user 7 rates film 2 twice; film 30 has no rating; times are not in order
        "ratings": ["7,2,5.0,30", "7,1,3.5,10", "7,2,1.0,40", "9,1,4.0,5", "9,10,0.5,5"],
        "movies": [
            '1,"Film, The (1995)",Comedy|Drama',
            '2,"A ""B"" (1996)",(no genres listed)',
            "10,C,Animation",
            "30,D,Drama",
        ],
        **files,
    }
    for name, lines in rows.items():
        text = "\n".join([HEADS[f"{name}.csv"], *lines, ""])
        write(data / f"ml-latest-small/{name}.csv{packed}", text)
    return data


def many(n_users: int = 3, n_items: int = 10) -> list[str]:
    """Each user rates each film, later films later."""
    return [
        f"{user},{item},{1 + (user + item) % 5},{100 * item}"
        for user in range(1, n_users + 1)
        for item in range(1, n_items + 1)
    ]


def named(n: int = 10, genre: str = "Drama") -> list[str]:
    return [f"{item},Film {item},{genre}" for item in range(1, n + 1)]


def load(name: str, data: Path = NOWHERE) -> Feedback:
    return load_feedback(name, data, str(data))


def events_of(data: Feedback) -> set[tuple[str, str, float, int]]:
    """What does not depend on the numbering."""
    columns = (data.users, data.items, data.ratings, data.times)
    return {
        (data.user_ids[user], data.item_ids[item], float(rating), int(time))
        for user, item, rating, time in zip(*columns, strict=True)
    }


def check(data: Feedback, in_time: bool = True) -> None:
    """What holds of every data set: order, histories without a leak, tables of one length."""
    n = len(data)
    assert (np.diff(data.users) >= 0).all()
    assert data.users.min() >= 1 and data.items.min() >= 1
    assert len(data.starts) == data.n_users + 1
    assert all((data.users[s:e] == u).all() for u, (s, e) in enumerate(_spans(data)))
    for one in (data.titles, data.genres, data.tags, data.people, data.descriptions, data.domain):
        assert len(one) == data.n_items
    for codes in data.demographics.values():
        assert len(codes) == data.n_users
    assert len(data.has_picture) == data.n_items == len(data.pictures)
    assert data.reviews is None or len(data.reviews) == n
    assert np.array_equal(data.labels, data.ratings >= 4)
    pairs = data.users.astype(np.int64) * data.n_items + data.items
    own = pairs[data.split != SUPPORT]
    assert len(np.unique(own)) == len(own)
    start, end = data.starts[data.users], data.history_end  # a history is these events
    assert (start <= end).all() and (end <= np.arange(n)).all()
    for split, readers in ((TEST, ()), (VALID, (TEST,))):
        before = np.concatenate([[0], np.cumsum(data.split == split)])
        assert not (before[end] - before[start])[~np.isin(data.split, readers)].any()
    if in_time:
        assert (np.diff(data.times)[np.diff(data.users) == 0] >= 0).all()


def check_counts(data: Feedback) -> None:
    for index, split in enumerate(SPLITS):
        mine = data.split == index
        assert data.counts[f"{split} rows"] == mine.sum()
        assert data.counts[f"{split} rows, liked"] == data.labels[mine].sum()
    assert data.counts["users"] == data.n_users - 1
    assert data.counts["items"] == data.n_items - 1
    assert data.counts["items with a picture"] == data.has_picture.sum()


def _spans(data: Feedback) -> list[tuple[int, int]]:
    return list(zip(data.starts[:-1].tolist(), data.starts[1:].tolist(), strict=True))


def amazon(data: Path, packed: str = ".gz", **changed: Any) -> Path:
    reviews = [
        {
            "reviewerID": f"A{user}",
            "asin": f"B{item}",
            "overall": 3.0 + (item + user) % 3,
            "unixReviewTime": 86_400 * item,
            "summary": "Fine",
            "reviewText": f"Rock &amp; roll {user} {item}",
        }
        for user in (2, 1)
        for item in range(6, 0, -1)
    ]
    entries = [
        {
            "asin": "B1",
            "title": "One &amp; only",
            "brand": "Acme",
            "description": "A  film",
            "categories": [["Movies & TV", "Genres", "Drama"], ["Movies & TV"]],
        },
        {"asin": "B2", "categories": [["Movies & TV", ""], ["Movies & TV", "Comedy"]], **changed},
        {"asin": "OTHER", "title": "Not ours"},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in reviews)
    write(data / f"amazon-2014/reviews_Movies_and_TV_5.json{packed}", lines)
    literals = "".join(f"{entry!r}\n" for entry in entries)
    write(data / f"amazon-2014/meta_Movies_and_TV.json{packed}", literals)
    return data
