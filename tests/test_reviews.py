"""Reviews as columns: both publishers' formats, what a history may hold, what is hidden, the demos.

The tests on real data read the folder that REPROKIT_DATA names; they are skipped without it.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, needs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprokit.datasets import DataError
from reprokit.reviewdata import REVIEW_DATA, load_reviews
from reprokit.reviewfiles import DAY, folded, numbered, restaurants, split_days
from reprokit.reviews import Reviews

GOOGLE, AMAZON = "google-restaurants", "amazon-musical-instruments"
FOLDERS = {GOOGLE: "google-restaurants", AMAZON: "amazon-2014"}


def record(user: str, business: str, text: str | None = "", **more: Any) -> dict[str, Any]:
    """A record of the restaurants release."""
    facts = {"business_id": business, "user_id": user, "rating": 5, "review_text": text}
    return {**facts, "pics": [], "history_reviews": [], **more}


def release(data_dir: Path, text: str = "", **splits: list[Any]) -> Path:
    """filter_all_t.json with one record in a split that is not given; `text` replaces it whole."""
    files = {"train": [record("a", "x")], "val": [record("b", "x")], "test": [record("c", "x")]}
    path = data_dir / FOLDERS[GOOGLE] / "filter_all_t.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or json.dumps({**files, **splits}), encoding="utf-8")
    return path


def review(user: str, item: str, day: int, **more: Any) -> dict[str, Any]:
    """A line of the Amazon release."""
    facts = {"reviewerID": user, "asin": item, "overall": 4.0, "unixReviewTime": day * DAY}
    return {**facts, "summary": "Fine", "reviewText": "It works.", **more}


def shop(data_dir: Path, rows: list[dict[str, Any]] | str, packed: bool = False) -> Path:
    path = data_dir / FOLDERS[AMAZON] / "reviews_Musical_Instruments_5.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def load(name: str, data_dir: Path) -> Reviews:
    load_reviews.cache_clear()
    return load_reviews(name, data_dir)


def extras(data: Reviews) -> list[tuple[str, str]]:
    users = [data.user_ids[user] for user in data.extra_users]
    return list(zip(users, data.extra_texts, strict=True))


def picture(data_dir: Path, name: str, shade: int = 9, dataset: str = GOOGLE) -> Path:
    path = data_dir / FOLDERS[dataset] / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), shade).save(path)
    return path


# --- the restaurants release --------------------------------------------------------------------
@pytest.mark.parametrize("packed", [False, True])
def test_rows_follow_the_splits_and_the_file_within_them(tmp_path: Path, packed: bool):
    train = [record("u2", "y", "one", rating=3), record("u1", "x", " two\n", rating=4)]
    path = release(
        tmp_path,
        test=[record("u4", "y", "five", rating=1)],
        val=[record("u3", "x", "three", rating=2.5), record("u3", "z", "four")],
        train=train,
    )
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    data = load(GOOGLE, tmp_path)
    assert (data.name, data.kind, len(data), data.times) == (GOOGLE, "restaurant", 5, None)
    assert data.texts == ["one", "two", "three", "four", "five"]
    assert data.split.tolist() == [0, 0, 1, 1, 2]
    assert (data.user_ids, data.item_ids) == (["u2", "u1", "u3", "u4"], ["y", "x", "z"])
    assert (data.users.tolist(), data.items.tolist()) == ([0, 1, 2, 2, 3], [0, 1, 1, 2, 0])
    assert (data.n_users, data.n_items) == (4, 3)
    assert data.ratings.tolist() == [3, 4, 2.5, 5, 1]
    assert data.labels.tolist() == [False, True, False, True, False]  # 3 is not positive
    assert data.rows("valid").tolist() == data.rows(1).tolist() == [2, 3]
    assert data.item_pictures.tolist() == [-1, -1, -1]
    with pytest.raises(ValueError):
        data.rows("val")


def test_counts_of_a_release_tell_the_splits_apart(tmp_path: Path):
    release(
        tmp_path,
        train=[
            record("a", "x", "good", rating=4, pics=["p", "q"], history_reviews=[["a_z", "t"]]),
            record("a", "x", rating=2, history_reviews=[["a_z", "t"], ["a_x", "good"], ["e", ""]]),
        ],
    )
    picture(tmp_path, "p.jpg")
    picture(tmp_path, "other.jpg")
    expected = {
        "users": 3,
        "items": 1,
        "rows": 4,
        "rows that repeat a user and an item": 1,
        "train rows": 2,
        "train mean rating": 3.0,
        "train positive share": 0.5,
        "train rows without a text": 1,
        "train users": 1,
        "valid users that occur in train": 0,
        "valid items that occur in train": 1,
        "test rows": 1,
        "test positive share": 1.0,
        "pictures named": 2,
        "pictures here": 1,
        "picture files of no row": 1,
        "train rows that name no picture": 1,
        "train rows without a picture here": 1,
        "history reviews listed": 4,
        "history reviews that are rows, dropped": 1,
        "history reviews without a text, dropped": 1,
        "history reviews that repeat, dropped": 1,
        "history reviews kept": 1,
        "train history reviews a row": 2.0,
        "train pictures a row": 1.0,
        "train users without a history review kept": 0,
        "test users without a history review kept": 1,
    }
    counts = load(GOOGLE, tmp_path).counts
    assert {key: counts[key] for key in expected} == expected


def test_what_a_record_lacks_or_has_as_null_is_none(tmp_path: Path):
    bare = {"business_id": "x", "user_id": "b", "rating": 4}
    nulls = record("c", "x", None, pics=None, history_reviews=[["k", None]])
    release(tmp_path, val=[bare], test=[nulls, record("c", "y", history_reviews=None)])
    data = load(GOOGLE, tmp_path)
    assert data.texts == [""] * 4
    assert len(data.picture_rows) == len(data.extra_users) == 0


def test_half_characters_become_a_question_mark(tmp_path: Path):
    train = [
        record("a", "x", "\ud83d \u00e9t\u00e9 \U0001f600", history_reviews=[["k", "\udc00 x"]])
    ]
    release(tmp_path, train=train)
    data = load(GOOGLE, tmp_path)
    assert data.texts[0] == "? \u00e9t\u00e9 \U0001f600"
    assert data.extra_texts == ["? x"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"user_id": 7}, "'user_id' is 7, expected a text"),
        ({"user_id": ""}, "'user_id' is \"\", expected a text"),
        ({"business_id": None}, "'business_id' is missing, expected a text"),
        ({"rating": 6}, "'rating' is 6, expected a number from 1 to 5"),
        ({"rating": "5"}, "'rating' is \"5\", expected"),
        ({"rating": True}, "'rating' is true, expected"),
        ({"rating": float("nan")}, "'rating' is NaN, expected"),
        ({"review_text": ["a"]}, r"'review_text' is \[\"a\"\], expected a text"),
        ({"pics": "p"}, "'pics' is \"p\", expected a list of picture ids"),
        ({"pics": [["p"]]}, "'pics' is .*, expected a list of picture ids"),
        (
            {"history_reviews": ["t"]},
            r"'history_reviews' is .*expected a list of \[review id, text",
        ),
        ({"history_reviews": [["k"]]}, "'history_reviews' is "),
        ({"history_reviews": [["k", 5]]}, "'history_reviews' is "),
        ({"history_reviews": {"k": "t"}}, "'history_reviews' is "),
    ],
)
def test_a_faulty_record_is_named(tmp_path: Path, fault: dict[str, Any], message: str):
    release(tmp_path, val=[record("b", "x"), record("b", "y") | fault])
    with pytest.raises(DataError, match=rf"filter_all_t\.json, val record 2: {message}") as error:
        load(GOOGLE, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "cannot be read"),
        ("[]", "not a JSON object of the lists train, val and test"),
        ('{"train": [], "val": [], "test": {}}', "not a JSON object of the lists"),
        ('{"train": [], "val": [], "test": []}', "no record in train"),
        ('{"train": [5], "val": [], "test": []}', "train record 1: 5 is not an object"),
    ],
)
def test_a_file_that_is_no_release_is_named(tmp_path: Path, text: str, message: str):
    release(tmp_path, text)
    with pytest.raises(DataError, match=rf"filter_all_t\.json(:|,) {message}"):
        load(GOOGLE, tmp_path)


def test_a_layout_without_texts_or_histories_or_pictures_is_refused(tmp_path: Path):
    for key in ("review_text", "history_reviews", "pics"):
        lacking = {k: v for k, v in record("a", "x").items() if k != key}
        release(tmp_path, train=[lacking], val=[lacking], test=[lacking])
        with pytest.raises(DataError, match=f"no record has '{key}'"):
            load(GOOGLE, tmp_path)


def test_missing_files_say_how_to_get_them(tmp_path: Path):
    for name in (GOOGLE, AMAZON):
        with pytest.raises(DataError, match=rf"is missing\. .*data fetch {name}"):
            load(name, tmp_path)


# --- histories ----------------------------------------------------------------------------------
def history_of(tmp_path: Path, *entries: list[Any], test: list[Any] | None = None) -> list[str]:
    """What is kept of the history of a user with the row (a, x, "My own Review")."""
    train = [record("a", "x", "My own Review", history_reviews=list(entries))]
    release(tmp_path, train=train, test=test or [record("c", "x")])
    return [text for _, text in extras(load(GOOGLE, tmp_path))]


def test_a_review_of_another_place_is_kept(tmp_path: Path):
    assert history_of(tmp_path, ["a_z", "Another place"], ["7", "A third"]) == [
        "Another place",
        "A third",
    ]


def test_the_own_review_is_dropped_by_its_id_though_its_text_was_edited(tmp_path: Path):
    assert history_of(tmp_path, ["a_x", "My own review, edited"], ["a_z", "Other"]) == ["Other"]


def test_the_own_text_is_dropped_under_any_id(tmp_path: Path):
    for text in ("My own Review", " my  OWN\nreview "):
        assert history_of(tmp_path, ["foreign", text], ["", text], ["a_z", "Other"]) == ["Other"]


def test_an_id_that_has_the_own_text_once_is_dropped_with_all_its_texts(tmp_path: Path):
    entries = [["foreign", "My own Review, edited"], ["foreign", "my own review"]]
    assert history_of(tmp_path, *entries) == []


def test_another_row_of_the_user_is_dropped_in_any_split_by_id_and_by_text(tmp_path: Path):
    held_out = [record("a", "y", "Held out")]
    for entry in (["a_y", "edited"], ["foreign", "HELD OUT"]):
        assert history_of(tmp_path, entry, test=held_out) == []


def test_the_id_of_another_users_row_is_dropped_and_an_equal_text_of_his_is_not(tmp_path: Path):
    other = [record("c", "y", "Great food")]
    assert history_of(tmp_path, ["c_y", "edited"], ["a_q", "Great food"], test=other) == [
        "Great food"
    ]


def test_a_review_counts_once_for_its_user_by_id_and_by_text(tmp_path: Path):
    shared = [["k1", "One"], ["k1", "One, edited"], ["k2", "ONE "], ["", "Two"], ["", "Three"]]
    release(
        tmp_path,
        train=[record("a", "x", history_reviews=shared), record("b", "x", history_reviews=shared)],
        test=[record("a", "y", history_reviews=[*shared, ["k3", "Four"], ["k4", " \n"]])],
        val=[record("c", "x")],
    )
    data = load(GOOGLE, tmp_path)
    kept = ["One", "Two", "Three"]
    assert extras(data) == [("a", t) for t in [*kept, "Four"]] + [("b", t) for t in kept]
    assert (np.diff(data.extra_users) >= 0).all()


names = st.sampled_from(["u", "v", "w"])
texts = st.sampled_from(["", "Good", "good ", "GOOD  food", "good food", "bad", " Bad", "so so"])
ids = st.one_of(
    st.tuples(names, st.sampled_from("xyz")).map("_".join), st.sampled_from(["", "k1", "k2", 7])
)
rows = st.builds(
    lambda user, place, text, history: record(user, place, text, history_reviews=history),
    names,
    st.sampled_from("xyz"),
    texts,
    st.lists(st.tuples(ids, texts).map(list), max_size=5),
)
splits = st.fixed_dictionaries(
    {name: st.lists(rows, min_size=1, max_size=4) for name in ("train", "val", "test")}
)


@given(splits)
def test_no_review_of_the_table_is_among_the_histories(files: dict[str, list[dict[str, Any]]]):
    data = restaurants("any", files, {})
    records = [one for split in files.values() for one in split]
    table_ids = {f"{one['user_id']}_{one['business_id']}" for one in records}
    table_texts = {(one["user_id"], folded(one["review_text"])) for one in records}
    listed = [
        (one["user_id"], str(key), folded(text))
        for one in records
        for key, text in one["history_reviews"]
    ]
    kept = [(user, folded(text)) for user, text in extras(data)]
    assert len(kept) == len(set(kept))
    for user, text in kept:
        assert text and (user, text) not in table_texts
        assert any((u, t) == (user, text) and key not in table_ids for u, key, t in listed)
    for user, key, text in listed:  # nothing else is lost
        versions = [(u, t) for u, k, t in listed if key and (u, k) == (user, key)]
        of_table = key in table_ids or any(one in table_texts for one in versions if one[1])
        if text and not of_table and (user, text) not in table_texts:
            assert (user, text) in kept or any(one in kept for one in versions)
    kinds = ("kept", "that are rows, dropped", "without a text, dropped", "that repeat, dropped")
    total = sum(data.counts[f"history reviews {kind}"] for kind in kinds)
    assert total == data.counts["history reviews listed"] == len(listed)


# --- pictures -----------------------------------------------------------------------------------
def pictured(data_dir: Path) -> Reviews:
    release(
        data_dir,
        train=[record("a", "x", pics=["p.1", "q", "p.1"]), record("a", "y")],
        val=[record("b", "x", pics=["q"])],
        test=[record("c", "x", pics=["r", "q"])],
    )
    return load(GOOGLE, data_dir)


def test_pictures_are_distinct_and_each_row_has_each_of_its_own_once(tmp_path: Path):
    data = pictured(tmp_path)
    assert data.pictures == ["p.1", "q", "r"]
    assert data.picture_rows.tolist() == [0, 0, 2, 3, 3]
    assert data.picture_of.tolist() == [0, 1, 1, 2, 1]
    assert data.has_picture.tolist() == [False] * 3
    assert data.picture_versions == [""] * 3
    assert data.picture(0) is None


def test_picture_files_are_found_by_id_and_opened_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("p.1.png", "r.webp", "q.txt.png", ".q.jpg"):
        picture(tmp_path, name)
    picture(tmp_path, "q.jpg").rename(tmp_path / "google-restaurants/images/q.txt")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("a picture is read at load time"))
        data = pictured(tmp_path)
        assert data.has_picture.tolist() == [True, False, True]
        assert data.counts["picture files of no row"] == 2
    found = data.picture(0)
    assert found is not None
    assert (found.mode, found.size, found.getpixel((0, 0))) == ("RGB", (4, 3), (9, 9, 9))


def test_of_two_files_of_one_picture_the_first_by_name_counts(tmp_path: Path):
    picture(tmp_path, "q.png", 1)
    picture(tmp_path, "q.gif", 2)
    found = pictured(tmp_path).picture(1)
    assert found is not None and found.getpixel((0, 0)) == (2, 2, 2)


def test_a_damaged_picture_is_named(tmp_path: Path):
    picture(tmp_path, "q.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"q\.jpg: not a readable image"):
        pictured(tmp_path).picture(1)


def test_the_version_of_a_picture_changes_with_its_file(tmp_path: Path):
    path = picture(tmp_path, "q.jpg")
    first = pictured(tmp_path).picture_versions
    os.utime(path, ns=(1, 1))
    second = pictured(tmp_path).picture_versions
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(1, 1))
    third = pictured(tmp_path).picture_versions
    assert len({first[1], second[1], third[1]}) == 3
    assert [one[0] for one in (first, second, third)] == [""] * 3


def test_pictures_take_part_in_the_fingerprint_and_what_lies_beside_them_does_not(tmp_path: Path):
    release(tmp_path)
    shop(tmp_path, [review("a", "B1", 1)])
    for name in (GOOGLE, AMAZON):
        seen = [REVIEW_DATA[name].fingerprint(tmp_path)]
        for ending in ("jpg", "jpeg", "png", "webp", "gif"):
            picture(tmp_path, f"p.{ending}", dataset=name)
            seen.append(REVIEW_DATA[name].fingerprint(tmp_path))
        assert len(set(seen)) == 6
        (tmp_path / FOLDERS[name] / "images/.gone.jsonl").write_text("{}\n")
        assert REVIEW_DATA[name].fingerprint(tmp_path) == seen[-1]


# --- what training may see ----------------------------------------------------------------------
def test_sealed_reviews_hide_ratings_texts_and_pictures_of_test_rows(tmp_path: Path):
    release(
        tmp_path,
        train=[record("a", "x", "one", pics=["p"])],
        val=[record("b", "x", "two", pics=["q"])],
        test=[record("c", "x", "three", pics=["p", "r"], history_reviews=[["k", "before"]])],
    )
    data = load(GOOGLE, tmp_path)
    sealed = data.sealed()
    assert sealed.texts == ["one", "two", ""]
    assert sealed.ratings[:2].tolist() == [5, 5] and np.isnan(sealed.ratings[2])
    assert sealed.ratings.dtype == np.float32
    assert (sealed.picture_rows.tolist(), sealed.picture_of.tolist()) == ([0, 1], [0, 1])
    assert not [key for key in sealed.counts if key.startswith("test ")]
    assert sealed.users is data.users and sealed.items is data.items and sealed.split is data.split
    assert extras(sealed) == [("c", "before")]
    assert data.texts[2] == "three" and data.ratings[2] == 5 and len(data.picture_rows) == 4


# --- the Amazon release -------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [False, True])
def test_product_reviews_are_split_by_time_and_keep_the_files_order(tmp_path: Path, packed: bool):
    days = [9, 1, 2, 3, 8, 1, 4, 5, 6, 7]
    rows = [review(f"u{day}", f"B{n % 3}", day, overall=n % 5 + 1) for n, day in enumerate(days)]
    shop(tmp_path, rows, packed)
    data = load(AMAZON, tmp_path)
    assert (data.name, data.kind, len(data)) == (AMAZON, "product", 10)
    assert data.times is not None
    assert (data.times // DAY).tolist() == [1, 2, 3, 1, 4, 5, 6, 7, 8, 9]
    assert data.split.tolist() == [0] * 8 + [1, 2]
    assert [data.user_ids[user] for user in data.users] == [f"u{t // DAY}" for t in data.times]
    assert data.item_ids == ["B1", "B2", "B0"]
    assert data.ratings.tolist() == [2, 3, 4, 1, 2, 3, 4, 5, 5, 1]
    assert len(data.extra_users) == len(data.pictures) == len(data.picture_rows) == 0
    assert (data.counts["days"], data.counts["rows moved to keep days whole"]) == (9, 0)


def test_a_product_text_is_summary_and_review(tmp_path: Path):
    parts = [("Fine", "It works."), ("Fine", ""), (" ", "Works"), (None, None), ("A&amp;B", " x\n")]
    rows = [
        review("u", f"B{n}", n + 1, summary=summary, reviewText=text)
        for n, (summary, text) in enumerate(parts)
    ]
    del rows[3]["summary"], rows[3]["reviewText"]
    shop(tmp_path, rows)
    data = load(AMAZON, tmp_path)
    assert data.texts == ["Fine. It works.", "Fine", "Works", "", "A&B. x"]
    without = [data.counts[f"{split} rows without a text"] for split in ("train", "valid", "test")]
    assert without == [0, 1, 0]


def test_a_picture_of_a_product_is_the_items_and_no_reviews(tmp_path: Path):
    picture(tmp_path, "B1.jpg", 7, AMAZON)
    picture(tmp_path, "OTHER.jpg", 7, AMAZON)
    shop(tmp_path, [review("u", f"B{n}", n) for n in range(3)])
    data = load(AMAZON, tmp_path)
    assert (data.item_pictures.tolist(), data.pictures) == ([-1, 0, -1], ["B1"])
    assert len(data.picture_rows) == len(data.picture_of) == 0
    assert data.has_picture.tolist() == [True]
    assert data.picture(0) is not None
    assert data.counts["items with a picture"] == data.counts["picture files of other items"] == 1
    assert data.sealed().item_pictures.tolist() == [-1, 0, -1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "no reviews in it"),
        ("not JSON\n", "not in its publisher's format"),
        ([review("u", "B", 1, overall="five")], "not in its publisher's format"),
        ([review("u", "B", 1), review("u", "B", 2, asin=None)], "record 2: no asin"),
        ([review("u", "B", 1, reviewerID=None)], "record 1: no reviewerID"),
        ([review("u", "B", 1, overall=None)], "record 1: no overall"),
        ([review("u", "B", 1, unixReviewTime=None)], "record 1: no unixReviewTime"),
        ([review("u", "B", 1, overall=0.5)], "record 1: 'overall' is not a rating from 1 to 5"),
    ],
)
def test_a_faulty_reviews_file_is_named(tmp_path: Path, rows: Any, message: str):
    shop(tmp_path, rows)
    with pytest.raises(DataError, match=rf"_5\.json(:|,) {message}") as error:
        load(AMAZON, tmp_path)
    assert "\n" not in str(error.value)


@given(st.lists(st.integers(0, 12 * DAY), min_size=3, max_size=60))
def test_no_day_is_cut_and_no_test_row_is_earlier_than_a_training_row(seconds: list[int]):
    times = np.array(seconds, np.int64)
    days = times // DAY
    if len(np.unique(days)) < 3:
        with pytest.raises(DataError, match=r"any: reviews of [12] days; a split by time needs 3"):
            split_days("any", times)
        return
    split, counts = split_days("any", times)
    assert set(split) == {0, 1, 2}
    for early, late in ((0, 1), (1, 2)):
        assert days[split == early].max() < days[split == late].min()
    begins = [int((split < part).sum()) for part in (1, 2)]
    wanted = [round(0.8 * len(times)), round(0.9 * len(times))]
    moved = sum(abs(a - b) for a, b in zip(begins, wanted, strict=True))
    assert counts == {"days": len(np.unique(days)), "rows moved to keep days whole": moved}


def test_the_cut_is_made_at_the_nearest_day():
    days = np.repeat([1, 2, 3, 4], [70, 9, 12, 9])  # rows before each day: 0, 70, 79, 91
    split, counts = split_days("any", days * DAY)
    assert [int((split == part).sum()) for part in range(3)] == [79, 12, 9]
    assert counts["rows moved to keep days whole"] == 2


def test_names_are_numbered_by_first_appearance():
    codes, known = numbered(["b", "a", "b", "c"])
    assert (codes.tolist(), known) == ([0, 1, 0, 2], ["b", "a", "c"])


@needs("amazon-2014/reviews_Musical_Instruments_5.json.gz")
def test_real_musical_instruments_are_split_by_time():
    data = load(AMAZON, DATA)
    assert (len(data), data.n_users, data.n_items) == (10_261, 1_429, 900)
    sizes = np.array([len(data.rows(split)) for split in range(3)])
    assert sizes == pytest.approx(len(data) * np.array([0.8, 0.1, 0.1]), abs=10)
    assert sizes[0] == REVIEW_DATA[AMAZON].sizes["train"]
    assert data.times is not None
    assert data.times[data.rows("train")].max() < data.times[data.rows("valid")].min()
    assert data.times[data.rows("valid")].max() < data.times[data.rows("test")].min()
    assert not any("&#34;" in text for text in data.texts)
    assert all(text for text in data.texts)


# --- synthetic stand-ins ------------------------------------------------------------------------
@pytest.mark.parametrize("name", [GOOGLE, AMAZON])
def test_each_data_set_has_a_demo_of_the_size_that_is_told(name: str):
    source, data = REVIEW_DATA[f"demo-{name}"], load_reviews(f"demo-{name}", Path("none"))
    assert (data.name, data.kind) == (f"demo-{name}", "restaurant" if name == GOOGLE else "product")
    told = {"users": data.n_users, "items": data.n_items, "rows": len(data)}
    told |= {"train": len(data.rows("train")), "pictures": len(data.pictures)}
    assert set(told) == set(source.sizes) == set(REVIEW_DATA[name].sizes)
    assert all(told[key] == pytest.approx(source.sizes[key], rel=0.05) for key in told)
    assert source.synthetic and source.fingerprint(Path("none")) and source.note
    assert load_reviews(f"demo-{name}", Path("none")) is data


def test_the_demos_differ_in_their_fingerprints():
    assert len({REVIEW_DATA[f"demo-{name}"].fingerprint(Path()) for name in (GOOGLE, AMAZON)}) == 2


def test_the_demo_of_restaurants_is_shaped_like_the_release():
    data = load_reviews(f"demo-{GOOGLE}", Path("none"))
    counts = data.counts
    assert (
        counts["valid users that occur in train"] == counts["test users that occur in train"] == 0
    )
    assert counts["valid items that occur in train"] > 100
    assert counts["train positive share"] >= 0.84 and counts["test positive share"] >= 0.83
    assert counts["history reviews kept"] > 2 * data.n_users
    assert counts["test users without a history review kept"] < 0.2 * counts["test users"]
    table = set(zip(data.users.tolist(), map(folded, data.texts), strict=True))
    extra = set(zip(data.extra_users.tolist(), map(folded, data.extra_texts), strict=True))
    assert not table & extra


def test_pictures_of_the_demo_are_painted_one_by_one():
    data = load_reviews(f"demo-{GOOGLE}", Path("none"))
    assert data.has_picture.all() and len(data.has_picture) == len(data.pictures)
    assert len(set(data.picture_versions)) == len(data.pictures)
    assert data.picture_versions[3].endswith(data.pictures[3])
    one, again, other = data.picture(3), data.picture(3), data.picture(4)
    assert one is not None and again is not None and other is not None
    assert (one.mode, one.size) == ("RGB", (32, 32))
    assert one.tobytes() == again.tobytes() != other.tobytes()


def test_the_demo_of_products_has_times_and_no_pictures():
    data = load_reviews(f"demo-{AMAZON}", Path("none"))
    assert data.times is not None and len(data.times) == len(data)
    assert len(data.pictures) == 0 and (data.item_pictures == -1).all()
    assert np.mean([bool(text) for text in data.texts]) > 0.95
    assert 0.4 < data.labels.mean() < 0.7
