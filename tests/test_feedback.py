"""The data type of ExplainRec: histories, what is sealed, what an encoder is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reprokit.datasets import DataError
from reprokit.feedback import SPLITS, Feedback, history_ends, paired
from reprokit.splitting import starts_of


def feedback(seed: int = 0, n: int = 200) -> Feedback:
    """12 users (the last has no event) and 9 items; splits in the order that users have them."""
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(1, 12, n)).astype(np.int32)
    split = rng.choice([0, 1, 2, 3], n, p=[0.5, 0.2, 0.2, 0.1]).astype(np.int8)
    stage = np.array([0, 1, 2, 0])[split]
    split = split[np.lexsort((stage, users))]
    starts = starts_of(users, 13)
    ratings = rng.integers(1, 6, n).astype(np.float32)
    return Feedback(
        name="toy",
        users=users,
        items=rng.integers(1, 10, n).astype(np.int32),
        ratings=ratings,
        times=np.arange(n),
        labels=(ratings >= 4).astype(np.int8),
        split=split,
        group=np.zeros(n, np.int8),
        starts=starts,
        history_end=history_ends(users, split, starts),
        user_ids=["", *(f"u{user}" for user in range(1, 13))],
        item_ids=["", *(f"i{item}" for item in range(1, 10))],
        titles=["", *(f"Film {item}" for item in range(1, 10))],
        genres=[(), ("Drama", "War"), *[()] * 8],
        tags=[(), ("quiet",), *[()] * 8],
        people=[()] * 10,
        descriptions=["", "About peace", *[""] * 8],
        domain=np.zeros(10, np.int8),
        demographics={},
        reviews=[f"review {event}" for event in range(n)],
        counts={"users": 12, "test rows": 3, "train rows": 5},
    )


def reference_history(data: Feedback, row: int) -> list[int]:
    """By the definition: what stands before a row of its user, in the splits that it may see."""
    own, stage = data.users[row], SPLITS[data.split[row]]
    seen = {"valid": ("train", "support"), "test": ("train", "support", "valid")}
    found = [e for e in range(len(data)) if data.users[e] == own]
    if stage in seen:
        return [e for e in found if SPLITS[data.split[e]] in seen[stage]]
    return [e for e in found if e < row]


@pytest.mark.parametrize("label", [None, 0, 1])
def test_histories_equal_a_loop_over_events(label: int | None) -> None:
    data = feedback()
    rows = np.arange(len(data))
    for length in (1, 4, 30):
        found = data.histories(rows, length, label)
        assert found.shape == (len(data), length)
        assert found.dtype == np.int64
        for row in rows:
            past = [e for e in reference_history(data, row) if label in (None, data.labels[e])]
            past = past[-length:]
            assert found[row].tolist() == [-1] * (length - len(past)) + past


def test_no_history_has_an_event_of_the_test_split_or_the_row_itself() -> None:
    data = feedback(seed=1)
    rows = np.arange(len(data))
    for label in (None, 0, 1):
        found = data.histories(rows, 50, label)
        real = found >= 0
        assert not (data.split[found[real]] == SPLITS.index("test")).any()
        assert (found < rows[:, None]).all()


def test_histories_are_empty_where_no_event_has_the_label() -> None:
    data = replace(feedback(), labels=np.ones(200, np.int8))
    assert (data.histories(np.arange(200), 3, 0) == -1).all()


def test_items_of_missing_events_are_padding() -> None:
    data = feedback()
    events = np.array([[-1, 0], [5, -1]])
    assert data.items_at(events).tolist() == [[0, data.items[0]], [data.items[5], 0]]


def test_sealed_data_tell_nothing_of_a_test_rating() -> None:
    data, test = feedback(), feedback().rows("test")
    sealed = data.sealed()
    assert np.isnan(sealed.ratings[test]).all()
    assert (sealed.labels[test] == -1).all()
    assert sealed.reviews is not None and {sealed.reviews[row] for row in test} == {""}
    assert sealed.counts == {"users": 12, "train rows": 5}
    rest = np.setdiff1d(np.arange(len(data)), test)
    assert np.array_equal(sealed.labels[rest], data.labels[rest])
    rows = np.arange(len(data))
    for label in (None, 0, 1):  # histories hold no test event, so sealing changes none
        assert np.array_equal(sealed.histories(rows, 9, label), data.histories(rows, 9, label))


def test_two_data_sets_that_differ_in_test_ratings_are_sealed_alike() -> None:
    data = feedback()
    test = data.split == SPLITS.index("test")
    other = replace(
        data,
        ratings=np.where(test, 6 - data.ratings, data.ratings),
        labels=np.where(test, 1 - data.labels, data.labels).astype(np.int8),
    )
    for name in ("ratings", "labels"):
        one, two = (getattr(d.sealed(), name) for d in (data, other))
        assert np.array_equal(one, two, equal_nan=True)


def test_counts_are_of_training_events() -> None:
    data = feedback()
    train = data.rows("train")
    assert data.item_counts.tolist() == [(data.items[train] == i).sum() for i in range(10)]
    assert data.user_counts.tolist() == [(data.users[train] == u).sum() for u in range(13)]
    assert not data.is_cold
    assert replace(data, group=np.eye(1, 200, 7, dtype=np.int8)[0]).is_cold


def test_pairs_are_numbered_in_64_bits() -> None:
    first, second = np.array([1, 3, 162_541], np.int32), np.array([4, 0, 6], np.int32)
    span = 1_500_000_000
    expected = [span + 4, 3 * span, 162_541 * span + 6]
    assert paired(first, second, span).tolist() == expected


def test_splits_out_of_order_are_refused() -> None:
    users, split = np.array([1, 1, 1]), np.array([0, 2, 1])
    with pytest.raises(DataError, match="not in the order of time"):
        history_ends(users, split, starts_of(users, 2))


def test_the_text_of_an_item_leaves_out_what_is_not_known() -> None:
    data = feedback()
    assert data.text(1) == "Film 1. Drama, War. quiet. About peace"
    assert data.text(2) == "Film 2"


def test_a_picture_comes_from_a_file_or_from_pixels(tmp_path: Path) -> None:
    data, path = feedback(), tmp_path / "1.png"
    assert data.picture(1) is None
    Image.new("RGB", (3, 2), (9, 8, 7)).save(path)
    has = np.arange(10) == 1
    files = replace(data, pictures=[None, path, *[None] * 8], has_picture=has)
    pixels = np.zeros((10, 3, 2, 3), np.uint8)
    pixels[1] = np.array([9, 8, 7])[:, None, None]
    for one in (files, replace(data, pictures=pixels, has_picture=has)):
        picture = one.picture(1)
        assert picture is not None
        assert picture.size == (3, 2)
        assert picture.getpixel((2, 1)) == (9, 8, 7)
        assert one.picture(2) is None
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png: not a readable image"):
        files.picture(1)
