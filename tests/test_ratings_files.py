"""Files of ratings in their publishers' formats: what is read, and what is refused and named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from conftest import DATA, needs
from PIL import Image
from rating_files import (
    HEADS,
    amazon,
    check,
    check_counts,
    events_of,
    load,
    many,
    movielens,
    named,
    write,
)

from reprokit.datasets import DataError
from reprokit.ratings import FEEDBACK_DATA, load_feedback


# --- the publishers' formats ---------------------------------------------------------------------
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_movielens_is_sorted_and_a_repeated_pair_counts_once(tmp_path: Path, packed: str) -> None:
    data = load("ml-latest-small", movielens(tmp_path, packed))
    check(data)
    assert data.user_ids == ["", "7", "9"]
    assert data.item_ids == ["", "1", "2", "10"]
    assert data.users.tolist() == [1, 1, 2, 2]
    assert data.items.tolist() == [1, 2, 1, 3]  # of one second: in the order of the file
    assert data.ratings.tolist() == [3.5, 5.0, 4.0, 0.5]
    assert data.labels.tolist() == [0, 1, 1, 0]
    assert data.titles == ["", "Film, The (1995)", 'A "B" (1996)', "C"]
    assert data.genres == [(), ("Comedy", "Drama"), (), ("Animation",)]
    expected = {
        "events read": 5,
        "repeated pairs, dropped": 1,
        "films without a rating, left out": 1,
    }
    assert expected.items() <= data.counts.items()
    assert data.demographics == {} and data.reviews is None


def test_posters_are_found_by_film(tmp_path: Path) -> None:
    movielens(tmp_path)
    (tmp_path / "ml-posters").mkdir()
    for name in ("10.jpg", "30.jpg"):
        Image.new("RGB", (2, 2), (250, 0, 0)).save(tmp_path / "ml-posters" / name)
    source, before = FEEDBACK_DATA["ml-latest-small"], load("ml-latest-small", tmp_path)
    assert before.has_picture.tolist() == [False, False, False, True]
    assert before.counts["items with a picture"] == 1
    assert before.picture(3) is not None and before.picture(2) is None
    first = source.fingerprint(tmp_path)
    (tmp_path / "ml-posters/10.jpg").unlink()
    assert source.fingerprint(tmp_path) != first


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"ratings": ["1,2,4.0,5", "1,x,4.0,5"]}, r"ratings\.csv, line 3: movieId 'x' is not a w"),
        ({"ratings": ["1,2,4.0,5", "1,2,4.0"]}, r"ratings\.csv, line 3: 3 fields, expected 4"),
        ({"ratings": ["1,2,4.0,5,6"]}, r"ratings\.csv, line 2: 5 fields, expected 4"),
        ({"ratings": ["1,2,7.0,5"]}, r"ratings\.csv, line 2: rating '7.0' is no rating in half"),
        ({"ratings": ["1,2,4.3,5"]}, r"ratings\.csv, line 2: rating '4.3' is no rating in half"),
        ({"ratings": ["1,2,nan,5"]}, r"ratings\.csv, line 2: rating 'nan' is no rating"),
        ({"ratings": ["1,-2,4.0,5"]}, r"ratings\.csv, line 2: movieId '-2' is out of range"),
        ({"ratings": []}, r"ratings\.csv: no rows in it|ratings\.csv: not in its publisher's"),
        ({"movies": ["1,A,Drama", "2,B"]}, r"movies\.csv, line 3: 2 fields, expected 3"),
        ({"movies": ['1,"A\n\nB",Drama', "z,B,Drama"]}, r"movies\.csv, line 5: movieId 'z'"),
        ({"movies": ["1,A,Drama"]}, r"movies\.csv: 2 rated films are not in it, the first is 2"),
        ({"movies": [*named(), "2,Again,Drama"]}, r"movies\.csv: 1 films stand there twice"),
        ({"tags": ["1,2,old,5", "one,2,new,6"]}, r"tags\.csv, line 3: userId 'one'"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, files: dict[str, list[str]], why: str) -> None:
    with pytest.raises(DataError, match=why):
        load("ml-latest-small", movielens(tmp_path, **files))


def test_a_mark_of_byte_order_is_no_fault(tmp_path: Path) -> None:
    folder = movielens(tmp_path) / "ml-latest-small"
    expected = events_of(load("ml-latest-small", tmp_path))
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    load_feedback.cache_clear()
    assert events_of(load("ml-latest-small", tmp_path)) == expected
    write(folder / "ratings.csv", f"\ufeff{HEADS['ratings.csv']}\n1,2,9,5\n")
    load_feedback.cache_clear()
    with pytest.raises(DataError, match=r"ratings\.csv, line 2: rating '9' is no rating"):
        load("ml-latest-small", tmp_path)


def test_a_file_that_is_not_the_publishers_or_is_cut_short_is_refused(tmp_path: Path) -> None:
    movielens(tmp_path)
    path = write(tmp_path / "ml-latest-small/ratings.csv", "user,item,rating,time\n1,2,3,4\n")
    with pytest.raises(DataError, match="line 1: expected the header userId,movieId"):
        load("ml-latest-small", tmp_path)
    path.unlink()
    packed = path.with_name("ratings.csv.gz")
    text = "\n".join([HEADS["ratings.csv"], *many(50, 50)])
    packed.write_bytes(gzip.compress(text.encode())[:3000])
    with pytest.raises(DataError, match=r"ratings\.csv\.gz, after row .*damaged or cut short"):
        load("ml-latest-small", tmp_path)
    packed.unlink()
    with pytest.raises(DataError, match=r"ratings\.csv is missing\. Fetch it"):
        load("ml-latest-small", tmp_path)


def ml_1m(data: Path, people: list[str]) -> Path:
    lines = [row.replace(",", "::") for row in many(4)]
    write(data / "ml-1m/ratings.dat", "\n".join([*lines, ""]))
    films = [f"{item}::Film {item}::Children's|War" for item in range(1, 12)]
    write(data / "ml-1m/movies.dat", "\n".join([*films, ""]))
    if people:
        write(data / "ml-1m/users.dat", "\n".join([*people, ""]))
    return data


def test_movielens_1m_knows_its_users_where_the_file_is_there(tmp_path: Path) -> None:
    data = load("ml-1m", ml_1m(tmp_path, ["2::F::1::10::48067", "4::M::56::0::1"]))
    check(data)
    assert {name: codes.tolist() for name, codes in data.demographics.items()} == {
        "gender": [-1, -1, 0, -1, 1],
        "age": [-1, -1, 0, -1, 6],
        "occupation": [-1, -1, 10, -1, 0],
    }
    assert data.genres[1] == ("Children's", "War")
    assert data.counts["users that users.dat lacks"] == 2
    assert load("ml-1m", ml_1m(tmp_path / "without", [])).demographics == {}
    with pytest.raises(DataError, match=r"users\.dat, line 1: 'X::1::10' is no known group"):
        load("ml-1m", ml_1m(tmp_path / "other", ["2::X::1::10::48067"]))
    with pytest.raises(DataError, match=r"users\.dat, line 2: user 2 stands there twice"):
        load("ml-1m", ml_1m(tmp_path / "twice", ["2::F::1::10::4", "2::M::1::10::4"]))


@pytest.mark.parametrize(
    ("name", "line", "why"),
    [
        ("ratings.dat", "-1::1::4::5", r"ratings\.dat, line 41: a user or a film below 0"),
        ("ratings.dat", "1::-1::4::5", r"ratings\.dat, line 41: a user or a film below 0"),
        ("movies.dat", "1::Again::War", r"movies\.dat: 1 films stand there twice"),
        ("ratings.dat", "1::99::4::5", r"movies\.dat: 1 rated films are not in it, .* is 99"),
    ],
)
def test_a_damaged_line_of_movielens_1m_is_named(
    tmp_path: Path, name: str, line: str, why: str
) -> None:
    path = ml_1m(tmp_path, []) / "ml-1m" / name
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(DataError, match=why):
        load("ml-1m", tmp_path)


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_amazon_reviews_come_with_what_the_metadata_say(tmp_path: Path, packed: str) -> None:
    write(amazon(tmp_path, packed) / "amazon-2014/images/B3.png", "not looked into")
    data = load("amazon-movies-2014", tmp_path)
    check(data)
    assert data.user_ids == ["", "A1", "A2"]
    assert data.item_ids[:3] == ["", "B1", "B2"]
    assert data.items.tolist() == [1, 2, 3, 4, 5, 6] * 2  # by time, against the file's order
    assert data.titles[:3] == ["", "One & only", "item B2"]
    assert data.counts["items without a title"] == 5
    assert data.genres[1:4] == [("Drama",), ("Comedy",), ()]
    assert data.people[1:3] == [("Acme",), ()]
    assert data.descriptions[1:3] == ["A film", ""]
    assert data.reviews is not None and data.reviews[7] == "Fine. Rock & roll 2 2"
    assert data.labels.tolist()[:3] == [int(3 + (item + 1) % 3 > 3) for item in (1, 2, 3)]
    assert data.has_picture.tolist() == [False, False, False, True, False, False, False]


def test_amazon_metadata_of_the_wrong_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meta_Movies_and_TV.*entry of B2: 'brand' is not a text"):
        load("amazon-movies-2014", amazon(tmp_path, brand=["Acme"]))


# --- the real files ------------------------------------------------------------------------------
@needs("ml-latest-small/ratings.csv", "ml-latest-small/movies.csv", "ml-latest-small/tags.csv")
@pytest.mark.parametrize("kind", ["", "-cold", "-cross"])
def test_real_ml_latest_small_is_whole_and_leaks_nothing(kind: str) -> None:
    data = load(f"ml-latest-small{kind}", DATA)
    check(data)
    check_counts(data)
    assert data.counts["events read"] == 100_836
    assert data.counts["tags read"] == 3_683
    assert data.counts["repeated pairs, dropped"] == 0
    if kind != "-cross":
        assert (data.n_users - 1, data.n_items - 1) == (610, 9_724)
    if not kind:
        assert len(data) == 100_836
