"""Counts of the data sets: tiny files in the publishers' formats, and the real files where given.

The tests on real data read the folder that REPROKIT_DATA names; they are skipped without it.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from reprokit.counts import COUNTERS, compare, count
from reprokit.data import CLICK_DATA, month
from reprokit.datasets import DATASETS, DataError
from reprokit.download import require

BOOKS = CLICK_DATA["amazon-book"].registered
REAL = os.environ.get("REPROKIT_DATA", "")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def json_lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def marks(name: str, counted: dict[str, int | float]) -> dict[str, str]:
    return {row[0]: row[4] for row in compare(name, counted)}


def published_marks(name: str) -> set[str]:
    """The marks of what is published of the real files."""
    found = marks(name, count(name, Path(REAL)))
    return {found[key] for key in DATASETS[name].expected}


# --- each format ---------------------------------------------------------------------------------


def test_every_registered_data_set_has_a_counter() -> None:
    for name in DATASETS:
        assert any(name.startswith(prefix) for prefix in COUNTERS), name


def test_ml_1m_counts_the_file_and_the_window(tmp_path: Path) -> None:
    june, april, september = month(2001, 6), month(2002, 4), month(2002, 9)
    ratings = [
        (1, 10, 5, june),
        (1, 11, 3, june + 1),
        (2, 10, 4, april),
        (2, 12, 4, september),
        (3, 13, 1, month(2000, 5)),  # before the window
        (3, 10, 1, month(2003, 2)),  # after it
    ]
    write(tmp_path / "ml-1m/ratings.dat", "".join("::".join(map(str, r)) + "\n" for r in ratings))
    films = "".join(f"{film}::Film (1990)::Drama\n" for film in range(10, 15))
    write(tmp_path / "ml-1m/movies.dat", films)
    assert count("ml-1m", tmp_path) == {
        "ratings": 6,
        "users": 3,
        "movies": 5,
        "ctr users": 3,  # users 1 and 2, and the padding id
        "ctr items": 4,
        "ctr train": 2,
        "ctr valid": 1,
        "ctr test": 1,
    }


@pytest.mark.parametrize("name", ["ml-25m", "ml-latest-small"])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_movielens_csv_counts_rows_and_not_lines(tmp_path: Path, name: str, packed: str) -> None:
    folder = tmp_path / name
    write(
        folder / f"ratings.csv{packed}",
        "userId,movieId,rating,timestamp\n7,1,4.0,964982703\n7,2,3.5,964982704\n9,1,0.5,964982705\n",
    )
    write(
        folder / f"movies.csv{packed}",
        'movieId,title,genres\n1,"Film, The (1995)",Comedy|Drama\n2,"A ""B""",(no genres listed)\n',
    )
    write(
        folder / f"tags.csv{packed}",
        'userId,movieId,tag,timestamp\n7,1,"two\nlines",1\n7,1,"say ""hi""",2\n9,2,,3\n',
    )
    assert count(name, tmp_path) == {"ratings": 3, "users": 2, "movies": 2, "tags": 3}


def test_posters_are_counted_and_marked_as_not_printed(tmp_path: Path) -> None:
    for film in (1, 2, 30):
        write(tmp_path / f"ml-posters/{film}.jpg", "")
    write(tmp_path / "ml-posters/notes.txt", "")
    counted = count("ml-posters", tmp_path)
    assert compare("ml-posters", counted) == [("posters", 3, None, "", "not printed")]


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_amazon_2014_counts_reviews_users_and_items(tmp_path: Path, packed: str) -> None:
    row = {"helpful": [0, 0], "reviewText": 'a "b"\n{c}', "overall": 5.0}
    pairs = [("A1", "B1"), ("A1", "B2"), ("A2", "B1"), ("A3", "B1")]
    rows: list[dict[str, object]] = [
        {"reviewerID": user, "asin": item, **row, "unixReviewTime": 86_400 * day}
        for day, (user, item) in enumerate(pairs)
    ]
    rows[3] |= {"overall": 2.0, "reviewText": ""}
    write(tmp_path / f"amazon-2014/reviews_Movies_and_TV_5.json{packed}", json_lines(rows))
    write(tmp_path / "amazon-2014/images/B2.jpg", "")
    counted = count("amazon-movies-2014", tmp_path)
    assert list(counted)[:3] == ["reviews", "users", "items"]
    expected = {"reviews": 4, "users": 3, "items": 2, "train rows": 2, "test rows": 1}
    expected |= {"rows that repeat a user and an item": 0, "items with a picture": 1, "days": 4}
    expected |= {"train users": 1, "test users": 1, "test users that occur in train": 0}
    expected |= {"test items that occur in train": 1, "test rows without a text": 1}
    expected |= {"train mean rating": 5, "train positive share": 1, "test positive share": 0}
    assert {key: counted[key] for key in expected} == expected


def test_amazon_book_counts_the_steps_and_the_splits(tmp_path: Path) -> None:
    days = [1_483_228_800] * 20 + [1_512_086_400] * 2  # 2017-01-01 and 2017-12-01
    rows: list[dict[str, object]] = [
        {"reviewerID": f"U{user}", "asin": f"B{item}", "overall": 5.0, "unixReviewTime": days[user]}
        for user in range(22)
        for item in range(21)
    ]
    rows.append({**rows[0], "reviewerID": "seldom"})
    rows.append({**rows[0], "unixReviewTime": 1_400_000_000})  # 2014
    folder = tmp_path / DATASETS[BOOKS].folder
    write(folder / "Books_5.json.gz", json_lines(rows))
    titles: list[dict[str, object]] = [{"asin": f"B{i}", "title": f"Book {i}"} for i in range(21)]
    write(folder / "meta_Books.json.gz", json_lines(titles))
    counted = count(BOOKS, tmp_path)
    expected = {"reviews": 464, "metadata rows": 21, "rows in 2017 with metadata": 463}
    expected |= {"users above 20": 22, "items above 20": 21, "rows kept": 462}
    expected |= {"users": 22, "items": 21, "train": 420, "valid": 21, "test": 21}
    expected |= {"ctr users": 23, "ctr items": 22}
    expected |= {"ctr train": 420, "ctr valid": 21, "ctr test": 21}
    assert {key: counted[key] for key in DATASETS[BOOKS].expected} == expected
    assert list(counted)[: len(expected)] == list(DATASETS[BOOKS].expected)


def test_google_restaurants_counts_the_three_lists(tmp_path: Path) -> None:
    record = {"business_id": "b", "user_id": "u", "rating": 5, "review_text": "", "pics": ["p"]}
    record["history_reviews"] = [["u_b", "Mine"], ["u_c", "Other"]]
    low = {**record, "rating": 3}
    splits = {"train": [record] * 3, "val": [record], "test": [record, low]}
    path = write(tmp_path / "google-restaurants/filter_all_t.json", json.dumps(splits))
    write(tmp_path / "google-restaurants/images/p.jpg", "")
    counted = count("google-restaurants", tmp_path)
    assert list(counted)[:3] == ["train", "val", "test"]
    expected = {"train": 3, "val": 1, "test": 2, "users": 1, "items": 1, "pictures here": 1}
    expected |= {"train positive share": 1, "test positive share": 0.5, "test mean rating": 4}
    expected |= {"history reviews kept": 1, "history reviews that are rows, dropped": 6}
    assert {key: counted[key] for key in expected} == expected
    marked = marks("google-restaurants", counted)
    assert (marked["train positive share"], marked["test positive share"]) == ("not below", "below")
    for text, why in (('{"train": []}', "not a JSON object of the lists"), ("[", "cannot be read")):
        path.write_text(text)
        with pytest.raises(DataError, match=rf"filter_all_t\.json: {why}"):
            count("google-restaurants", tmp_path)


# --- the cross-domain release --------------------------------------------------------------------


def sequence(*events: tuple[int, int]) -> str:
    """A row as published: two numbers, then item|time|date| of each event."""
    return "\t".join(["5", "8", *(f"{item}|{day}|2014-01-01 08:00:00|" for item, day in events)])


def cdsr_folder(data_dir: Path, suffix: str = "_new", valid: str = "", test: str = "") -> Path:
    """Items 0 to 2 are of domain A, 3 and 4 of domain B."""
    folder = data_dir / "cdsr/Food-Kitchen"
    write(folder / "Alist.txt", "76407\tB0028A8ZEI\t0\n15157\tB001D9OVQ6\t1\n9314\tB001QY75DE\t2\n")
    write(folder / "Blist.txt", "45309\tB001802PIQ\t0\n46353\tB001BSX1EM\t1\n")
    rows = {
        "train": sequence((0, 1), (3, 2)) + "\n" + sequence((1, 1), (4, 2)) + "\n",
        "valid": valid or sequence((0, 1), (3, 2)) + "\n",
        "test": test or sequence((3, 1), (0, 2)) + "\n",
    }
    for split, text in rows.items():
        write(folder / f"{split}data{suffix}.txt", text)
    return folder


def test_cdsr_puts_a_row_into_the_domain_of_its_latest_event(tmp_path: Path) -> None:
    unsorted = sequence((4, 9), (0, 1), (1, 5))  # the latest stands first: domain B
    border = sequence((0, 1), (3, 2))  # 3 is the first item of B
    below = sequence((3, 1), (2, 2))  # 2 is the last item of A
    cdsr_folder(tmp_path, valid=f"{unsorted}\n{border}\n{below}\n\n")
    assert count("cdsr-food-kitchen", tmp_path) == {
        "a items": 3,
        "b items": 2,
        "train": 2,
        "valid a": 1,
        "valid b": 2,
        "test a": 1,
        "test b": 0,
    }


def test_cdsr_ties_in_time_follow_the_file(tmp_path: Path) -> None:
    a_last, b_last = sequence((3, 7), (0, 7), (1, 2)), sequence((0, 7), (3, 7), (1, 2))
    cdsr_folder(tmp_path, valid=f"{a_last}\n{a_last}\n{b_last}\n")
    counted = count("cdsr-food-kitchen", tmp_path)
    assert (counted["valid a"], counted["valid b"]) == (2, 1)


def test_cdsr_refuses_the_earlier_release_by_name(tmp_path: Path) -> None:
    folder = cdsr_folder(tmp_path, suffix="")
    with pytest.raises(DataError, match=r"traindata\.txt: the earlier release, .* leak") as error:
        count("cdsr-food-kitchen", tmp_path)
    assert "traindata_new.txt" in str(error.value)
    cdsr_folder(tmp_path)  # the corrected files beside the old ones: only they are read
    assert count("cdsr-food-kitchen", tmp_path)["train"] == 2
    (folder / "testdata_new.txt").unlink()
    with pytest.raises(DataError, match=r"testdata\.txt: the earlier release"):
        count("cdsr-food-kitchen", tmp_path)


def test_cdsr_names_the_line_that_is_no_sequence(tmp_path: Path) -> None:
    cdsr_folder(tmp_path, valid=sequence((0, 1), (3, 2)) + "\n5\t8\tno event\n")
    with pytest.raises(DataError, match=r"validdata_new\.txt, line 2: not a row of events"):
        count("cdsr-food-kitchen", tmp_path)
    cdsr_folder(tmp_path, test=sequence((0, 1), (5, 2)) + "\n")
    with pytest.raises(DataError, match=r"testdata_new\.txt, line 1: item 5 is outside the 5 item"):
        count("cdsr-food-kitchen", tmp_path)


# --- marks and faults ----------------------------------------------------------------------------


def test_compare_marks_equal_differing_and_unprinted_counts() -> None:
    rows = compare("ml-latest-small", {"ratings": 100_836, "users": 609, "genres": 20})
    source = DATASETS["ml-latest-small"].expected["users"].source
    assert rows == [
        ("ratings", 100_836, 100_836, source, "equal"),
        ("users", 609, 610, source, "differs"),
        ("genres", 20, None, "", "not printed"),
    ]


@pytest.mark.parametrize("name", DATASETS)
def test_missing_files_say_which_and_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"is missing\. .*data fetch {name}"):
        count(name, tmp_path)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"Did you mean 'ml-1m'\?"):
        count("ml-1n", Path("data"))


@pytest.mark.parametrize(
    ("after", "text", "why"),
    [
        (":", "", "no reviews in it"),
        (",", '{"reviewerID": "A"}\n{"reviewerID": "A", "asin": "B"}\n', "record 1: no asin"),
        (":", '{"reviewerID": "A", "asin": "B"}\nnot JSON\n', "not in its publisher's format"),
    ],
)
def test_a_damaged_reviews_file_is_an_error_and_not_a_count(
    tmp_path: Path, after: str, text: str, why: str
) -> None:
    name = "reviews_Musical_Instruments_5.json"
    write(tmp_path / "amazon-2014" / name, text)
    with pytest.raises(DataError, match=f"{name}{after} {why}"):
        count("amazon-musical-instruments", tmp_path)


def test_a_packed_file_cut_short_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(
        json_lines([{"reviewerID": f"A{i}", "asin": "B"} for i in range(999)]).encode()
    )
    name = "reviews_Musical_Instruments_5.json.gz"
    write(tmp_path / "amazon-2014" / name, "").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{name}: not in its publisher's format"):
        count("amazon-musical-instruments", tmp_path)
    packed = gzip.compress(json.dumps({"train": list(range(999))}).encode())
    path = write(tmp_path / "google-restaurants/filter_all_t.json.gz", "")
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"filter_all_t\.json\.gz: cannot be read"):
        count("google-restaurants", tmp_path)


# --- the real files ------------------------------------------------------------------------------


def needs(name: str, *files: str) -> pytest.MarkDecorator:
    """Skip, with the reason, where REPROKIT_DATA is unset or lacks the files."""
    reason = "REPROKIT_DATA is not set" if not REAL else ""
    try:
        require(name, Path(REAL), files)
    except DataError as error:
        reason = reason or str(error)
    return pytest.mark.skipif(bool(reason), reason=reason)


@needs("ml-1m", "ratings.dat", "movies.dat")
def test_real_ml_1m_gives_table_1_of_ccf_llm() -> None:
    found = marks("ml-1m", count("ml-1m", Path(REAL)))
    ctr = {key: mark for key, mark in found.items() if key.startswith("ctr ")}
    assert len(ctr) == 5  # the others differ in a rebuild of the window
    assert set(ctr.values()) == {"equal"}


@needs("ml-latest-small", "ratings.csv", "movies.csv", "tags.csv")
def test_real_ml_latest_small_is_as_published() -> None:
    assert set(marks("ml-latest-small", count("ml-latest-small", Path(REAL))).values()) == {"equal"}


@needs("ml-25m", "ratings.csv", "movies.csv", "tags.csv")
def test_real_ml_25m_is_as_published() -> None:
    assert set(marks("ml-25m", count("ml-25m", Path(REAL))).values()) == {"equal"}


@needs("amazon-musical-instruments", "reviews_Musical_Instruments_5.json.gz")
def test_real_musical_instruments_are_as_published() -> None:
    assert published_marks("amazon-musical-instruments") == {"equal"}


@needs("amazon-movies-2014", "reviews_Movies_and_TV_5.json.gz")
def test_real_movies_and_tv_are_as_published() -> None:
    assert published_marks("amazon-movies-2014") == {"equal"}


CDSR_FILES = (
    "Alist.txt",
    "Blist.txt",
    "traindata_new.txt",
    "validdata_new.txt",
    "testdata_new.txt",
)


@needs("cdsr-food-kitchen", *CDSR_FILES)
def test_real_food_kitchen_gives_table_1_of_llm_emf() -> None:
    found = marks("cdsr-food-kitchen", count("cdsr-food-kitchen", Path(REAL)))
    found.pop("train")  # may be rebuilt from the evaluation rows
    assert set(found.values()) == {"equal"}


@needs("cdsr-movie-book", *CDSR_FILES)
def test_real_movie_book_gives_table_1_of_llm_emf() -> None:
    found = marks("cdsr-movie-book", count("cdsr-movie-book", Path(REAL)))
    assert set(found.values()) == {"equal"}


@needs("google-restaurants", "filter_all_t.json")
def test_real_google_restaurants_are_as_counted_in_the_release() -> None:
    assert published_marks("google-restaurants") == {"equal", "not below"}
