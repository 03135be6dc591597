"""The CCF-LLM split: counts of the real files, histories, and what training may not see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, needs

from reprokit.data import (
    ML_1M_WINDOW,
    Catalogue,
    CTRData,
    Events,
    ctr_split,
    first_appearance,
    load_click_data,
    read_ml_1m_movies,
    read_ml_1m_ratings,
    split_by_time,
)
from reprokit.datasets import DataError


def small() -> CTRData:
    """Two users; user 9 comes first in time but sorts after user 5."""
    users = np.array([9, 5, 5, 5, 9, 5])
    items = np.array([30, 10, 20, 30, 10, 20])
    ratings = np.array([5, 4, 3, 5, 2, 5], np.float32)
    times = np.array([1, 2, 3, 3, 4, 5])
    part = np.array([0, 0, 0, 1, 1, 2], np.int8)
    catalogue = Catalogue(np.array([10, 20, 30]), ["A", "B", "C"], ["X", "", "Y|Z"])
    return ctr_split("small", Events(users, items, ratings, times), part, 3, catalogue)


def test_ids_start_at_one_in_order_of_first_appearance_after_sorting():
    data = small()
    assert data.user_ids.tolist() == [-1, 5, 9]
    assert data.item_ids.tolist() == [-1, 10, 20, 30]
    assert (data.n_users, data.n_items) == (3, 4)  # the padding id counts
    assert data.titles == ["", "A", "B", "C"]


def test_labels_are_strictly_above_the_threshold():
    assert small().train.labels.tolist() == [1, 0, 1]  # ratings 4, 3 (user 5), 5 (user 9)


def test_a_history_holds_earlier_positives_only_and_runs_across_splits():
    data = small()
    rows = data.test
    assert data.histories(rows, np.array([0]), 4).tolist() == [[0, 0, 1, 3]]  # liked 10, then 30
    first = data.histories(data.train, np.arange(3), 2)
    assert first.tolist() == [[0, 0], [0, 1], [0, 0]]  # user 5: none, then item 1; user 9: none


def test_a_history_is_cut_to_its_most_recent_items():
    data = small()
    assert data.histories(data.test, np.array([0]), 1).tolist() == [[3]]


def test_rows_of_one_second_keep_the_order_of_the_file():
    users, times = np.full(4, 7), np.array([5, 5, 5, 6])
    events = Events(users, np.array([3, 1, 2, 1]), np.full(4, 5, np.float32), times)
    part = np.array([0, 0, 1, 2], np.int8)
    catalogue = Catalogue(np.arange(1, 4), ["", "", ""], ["", "", ""])
    data = ctr_split("ties", events, part, 3, catalogue)
    assert data.item_ids[data.positives].tolist() == [3, 1, 2, 1]


def test_warm_rows_have_user_and_item_in_training():
    users, items = np.array([1, 2, 1, 3, 1]), np.array([1, 2, 2, 1, 9])
    events = Events(users, items, np.full(5, 5, np.float32), np.arange(5))
    catalogue = Catalogue(np.array([1, 2, 9]), ["", "", ""], ["", "", ""])
    data = ctr_split("warm", events, np.array([0, 0, 1, 2, 2], np.int8), 3, catalogue)
    assert data.valid.warm.tolist() == [True]
    assert data.test.warm.tolist() == [False, False]  # an unseen item (user 1), an unseen user (3)


def test_first_appearance_inverts():
    values = np.array([7, 3, 7, 9, 3])
    original, number = first_appearance(values)
    assert number.tolist() == [1, 2, 1, 3, 2]
    assert original[number].tolist() == values.tolist()


def test_windows_are_calendar_months_in_utc():
    seconds = [
        np.datetime64(text, "s").astype(np.int64)
        for text in (
            "2001-05-31T23:59:59",
            "2001-06-01T00:00:00",
            "2002-03-31T23:59:59",
            "2002-04-01",
            "2002-08-31T23:59:59",
            "2002-09-01",
            "2003-01-31T23:59:59",
            "2003-02-01",
        )
    ]
    assert split_by_time(np.array(seconds), ML_1M_WINDOW).tolist() == [-1, 0, 0, 1, 1, 2, 2, -1]


def test_nothing_of_training_is_later_than_validation_and_of_validation_than_test(
    click_data: CTRData,
):
    assert click_data.train.times.max() <= click_data.valid.times.min()
    assert click_data.valid.times.max() <= click_data.test.times.min()


def test_no_history_contains_a_positive_of_its_own_row_or_of_a_later_one(click_data: CTRData):
    for name in ("train", "valid", "test"):
        rows = click_data.split(name)
        for row in range(len(rows)):
            user = rows.users[row]
            seen = click_data.positives[rows.history_start[row] : rows.history_end[row]]
            earlier = sum(
                int(
                    (
                        (other.users == user)
                        & (other.labels == 1)
                        & (other.times < rows.times[row])
                    ).sum()
                )
                for other in (click_data.train, click_data.valid, click_data.test)
            )
            up_to = sum(
                int(
                    (
                        (other.users == user)
                        & (other.labels == 1)
                        & (other.times <= rows.times[row])
                    ).sum()
                )
                for other in (click_data.train, click_data.valid, click_data.test)
            )
            assert earlier <= len(seen) <= up_to - int(rows.labels[row])


def test_sealed_data_hides_every_test_label_and_positive(click_data: CTRData):
    sealed = click_data.sealed()
    assert (sealed.test.labels == -1).all()
    liked = int(click_data.test.labels.sum())
    assert int((sealed.positives == 0).sum()) == liked > 0
    for name in ("train", "valid"):
        rows = click_data.split(name)
        index = np.arange(len(rows))
        before, after = (d.histories(rows, index, 10) for d in (click_data, sealed))
        np.testing.assert_array_equal(before, after)


def test_other_test_labels_leave_the_sealed_data_as_it_is():
    """What a model is fitted on cannot depend on test labels."""
    rng = np.random.default_rng(1)
    users, items, times = rng.integers(1, 9, 90), rng.integers(1, 9, 90), np.arange(90)
    part = np.repeat([0, 1, 2], 30).astype(np.int8)
    ratings = rng.integers(1, 6, 90).astype(np.float32)
    flipped = np.where(part == 2, 6 - ratings, ratings).astype(np.float32)
    catalogue = Catalogue(np.arange(1, 9), [""] * 8, [""] * 8)
    one, other = (
        ctr_split("x", Events(users, items, r, times), part, 3, catalogue).sealed()
        for r in (ratings, flipped)
    )
    for name in ("train", "valid"):
        a, b = one.split(name), other.split(name)
        index = np.arange(len(a))
        for column in ("users", "items", "labels", "times", "warm"):
            np.testing.assert_array_equal(getattr(a, column), getattr(b, column))
        np.testing.assert_array_equal(one.histories(a, index, 5), other.histories(b, index, 5))


def test_an_empty_window_is_an_error_that_names_it():
    events = Events(*(np.array([1]) for _ in range(2)), np.array([5], np.float32), np.array([1]))
    with pytest.raises(DataError, match="no event falls into the valid window"):
        ctr_split("x", events, np.array([0], np.int8), 3, Catalogue(np.array([1]), ["A"], [""]))


def test_an_item_without_a_title_entry_is_an_error():
    users = np.array([1, 1, 1])
    events = Events(users, np.array([1, 2, 3]), np.full(3, 5, np.float32), np.arange(3))
    catalogue = Catalogue(np.array([1, 2]), ["A", "B"], ["", ""])
    with pytest.raises(DataError, match="1 rated items have no entry in the item file"):
        ctr_split("x", events, np.array([0, 1, 2], np.int8), 3, catalogue)


def test_files_are_read_as_published(tmp_path: Path):
    ratings, movies = tmp_path / "ratings.dat", tmp_path / "movies.dat"
    ratings.write_bytes(b"1::1193::5::978300760\n1::661::3::978302109\n")
    movies.write_bytes("1::Misérables, Les (1995)::Drama|Musical\n".encode("latin-1"))
    events, catalogue = read_ml_1m_ratings(ratings), read_ml_1m_movies(movies)
    assert events.items.tolist() == [1193, 661]
    assert events.ratings.tolist() == [5.0, 3.0]
    assert (catalogue.titles, catalogue.genres) == (["Misérables, Les (1995)"], ["Drama|Musical"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"1::2::3\n", "line 1: 3 fields, expected 4"),
        (b"1::2::3::4\n1::2::x::4\n", "line 2"),
        (b"1::2::3::4\n1,2,3,4\n", "line 2: 1 fields"),
        (b"1::1::5::9::7\n2::2::4\n", "line 1: 5 fields"),  # the total is right
        (b"1::2::9::4\n", "line 1: 9 is not a rating"),
        (b"99999999999999999999::2::3::4\n", "line 1"),
        (b"", "no ratings in it"),
    ],
)
def test_a_malformed_ratings_file_is_named_with_its_line(tmp_path: Path, text: bytes, message: str):
    path = tmp_path / "ratings.dat"
    path.write_bytes(text)
    with pytest.raises(DataError, match=message):
        read_ml_1m_ratings(path)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
def test_movielens_1m_counts_equal_table_1_and_the_recipe_of_collm():
    data = load_click_data("ml-1m", DATA)
    sizes = [len(data.split(name)) for name in ("train", "valid", "test")]
    assert (data.n_users, data.n_items, *sizes) == (839, 3256, 33_891, 10_401, 7_331)
    for name, positive, length, without, warm in (
        ("train", 0.537, 38.7, 0.038, 1.0),
        ("valid", 0.528, 58.8, 0.010, 0.635),
        ("test", 0.545, 75.8, 0.008, 0.566),
    ):
        rows = data.split(name)
        lengths = rows.history_end - rows.history_start
        assert rows.labels.mean() == pytest.approx(positive, abs=5e-4)
        assert (lengths + 1).mean() == pytest.approx(length, abs=0.05)  # stored with a leading 0
        assert (lengths == 0).mean() == pytest.approx(without, abs=6e-4)
        assert rows.warm.mean() == pytest.approx(warm, abs=6e-4)
