"""Ratings of ExplainRec: splits, two domains, tags, the sets by name, and that nothing leaks."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from rating_files import (
    NOWHERE,
    SUPPORT,
    TEST,
    TRAIN,
    VALID,
    _spans,
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

from reprokit import ratings
from reprokit.counts import count
from reprokit.datasets import DataError
from reprokit.feedback import GROUPS, Feedback
from reprokit.ratings import FEEDBACK_DATA
from reprokit.runs import RequestError
from reprokit.splitting import (
    cold_start,
    cross_domain,
    genre_map,
    part,
    pseudo_users,
    split_by_user,
)
from reprokit.words import BOOK_GENRES, GENRES


# --- splits by user ------------------------------------------------------------------------------
def one_user(n: int) -> Feedback:
    """The first n events of one user."""
    toy = load("demo-ml-25m")
    assert toy.starts[2] >= n
    return part(toy, np.arange(len(toy)) < n)


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(1, (1, 0, 0)), (2, (2, 0, 0)), (3, (2, 0, 1)), (10, (8, 1, 1)), (14, (11, 1, 2))],
)
def test_a_user_is_split_80_10_10_by_time(n: int, sizes: tuple[int, int, int]) -> None:
    data = split_by_user(one_user(n))
    check(data)
    assert data.split.tolist() == np.repeat([0, 1, 2], sizes).tolist()


def test_a_random_split_has_the_same_sizes_and_its_histories_hold_training_events_first() -> None:
    base = load("demo-ml-25m")
    data = split_by_user(base, "random", seed=3)
    check(data, in_time=False)
    for user, (start, end) in enumerate(_spans(data)):
        before = _spans(base)[user]
        assert np.array_equal(data.split[start:end], base.split[slice(*before)])
        for index in range(3):
            times = data.times[start:end][data.split[start:end] == index]
            assert (np.diff(times) >= 0).all()
    assert events_of(data) == events_of(base)
    train, past = data.rows("train"), data.histories(data.rows("train"), 100)
    real = past >= 0
    assert (
        data.times[past[real]] <= np.broadcast_to(data.times[train, None], past.shape)[real]
    ).all()
    again, other = split_by_user(base, "random", seed=3), split_by_user(base, "random", seed=4)
    assert np.array_equal(again.items, data.items)
    assert not np.array_equal(other.items, data.items)
    back = split_by_user(data)  # a random split undone
    assert np.array_equal(back.times, base.times) and np.array_equal(back.split, base.split)
    with pytest.raises(RequestError, match="'time' or 'random', not 'months'"):
        split_by_user(base, "months")


# --- cold start ----------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("how", ["time", "random"])
def test_every_held_out_row_of_a_cold_set_is_of_a_new_user_or_a_new_item(
    how: str, seed: int
) -> None:
    base = split_by_user(load("demo-ml-25m"), how)
    data = cold_start(base, seed=seed)
    check(data, in_time=how == "time")
    users, items = data.user_counts, data.item_counts
    held = np.isin(data.split, (VALID, TEST))
    names = np.array(GROUPS)[data.group]
    assert set(names[held]) == {"new_users", "new_items"}
    assert set(names[~held]) == {"ordinary"}
    of_users, of_items = held & (names == "new_users"), held & (names == "new_items")
    assert (users[data.users[of_users]] < 5).all()
    assert (items[data.items[of_items]] < 5).all()
    new = set(data.users[of_users])
    assert not new & set(data.users[of_items])  # ordinary users alone
    assert not set(data.items[of_items]) & set(data.items[of_users])
    chosen = {s: set(data.users[of_users & (data.split == s)]) for s in (VALID, TEST)}
    assert not chosen[VALID] & chosen[TEST]
    for user in new:  # training is the beginning of what a new user did, but for new items
        mine = data.users == user
        train = data.times[mine & (data.split == TRAIN)]
        assert (train.max(initial=0) <= data.times[mine & held]).all()
    dropped = sum(n for key, n in data.counts.items() if key.endswith(", dropped"))
    dropped -= base.counts["repeated pairs, dropped"]
    assert len(base) - len(data) == dropped
    assert sum(data.counts[f"new users with {k} support events"] for k in range(5)) == 80
    assert data.counts["new items"] == 20


def test_a_cold_set_keeps_the_earliest_events_of_a_new_item_and_the_split_of_its_rows() -> None:
    base = load("demo-ml-25m")
    data = cold_start(base)
    events = {(base.users[e], base.items[e]): e for e in range(len(base))}
    fresh = set(data.items[data.group == GROUPS.index("new_items")])
    newcomers = set(data.users[data.group == GROUPS.index("new_users")])
    for item in fresh:
        kept = [events[data.users[e], item] for e in np.flatnonzero(data.items == item)]
        trained = [e for e in kept if base.split[e] == TRAIN]
        left = np.flatnonzero((base.items == item) & (base.split == TRAIN))
        left = [e for e in left if e not in trained and base.users[e] not in newcomers]
        assert max(base.times[trained], default=0) <= min(base.times[left], default=1 << 60)
    for row in np.flatnonzero(data.group == GROUPS.index("new_items")):
        assert data.split[row] == base.split[events[data.users[row], data.items[row]]]


def test_a_cold_set_does_not_depend_on_a_rating() -> None:
    base = load("demo-ml-25m")
    other = replace(base, ratings=6 - base.ratings, labels=(base.ratings <= 2).astype(np.int8))
    one, two = cold_start(base), cold_start(other)
    for name in ("users", "items", "split", "group"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_cold_start_refuses_shares_that_leave_nobody() -> None:
    with pytest.raises(RequestError, match=r"share 0\.5"):
        cold_start(load("demo-ml-25m"), share=0.5)


# --- two domains ---------------------------------------------------------------------------------
def domains() -> tuple[Feedback, Feedback]:
    both = ratings.invented("both", (0, 1))
    book, late = both.domain[both.items] == 1, both.users > 200
    return split_by_user(part(both, ~book & ~late)), part(both, book & late)


def test_a_cross_domain_set_shares_no_user_and_no_item() -> None:
    source, target = domains()
    data = cross_domain(source, target, support=2, most_rows=5)
    check(data)
    first_user, first_item = source.n_users, source.n_items
    for s in (TRAIN, VALID):
        at = data.split == s
        assert data.users[at].max() < first_user and data.items[at].max() < first_item
        assert at.sum() == (source.split == s).sum()
    other = data.split >= TEST
    assert data.users[other].min() >= first_user and data.items[other].min() >= first_item
    assert data.domain[data.items[other]].all() and not data.domain[data.items[~other]].any()
    assert set(data.group[data.split == TEST]) == {GROUPS.index("cross")}
    past = data.histories(data.rows("test"), 9)
    assert (data.split[past[past >= 0]] == SUPPORT).all()
    for user in range(first_user, data.n_users):
        mine = np.flatnonzero(data.users == user)
        theirs = target.items[target.users == user - first_user + 1][:7]
        assert data.items[mine].tolist() == (theirs + first_item - 1).tolist()
        assert data.split[mine].tolist() == ([SUPPORT] * 2 + [TEST] * 5)[: len(mine)]
    dropped = data.counts["source test rows, dropped"]
    dropped += data.counts["target events after the test rows, dropped"]
    assert len(source) + len(target) - len(data) == dropped
    again = {data.item_ids[i]: data.titles[i] for i in range(data.n_items)}
    for one in (source, target):
        assert all(again[key] == title for key, title in zip(one.item_ids, one.titles, strict=True))


def test_pictures_reviews_and_demographics_stay_with_their_items_events_and_users() -> None:
    source, target = domains()
    target = replace(target, reviews=[f"of {time}" for time in target.times], demographics={})
    data = cross_domain(source, target)
    n_users, n_items = source.n_users, source.n_items
    assert np.array_equal(data.pictures[n_items:], target.pictures[1:])  # type: ignore[call-overload]
    assert np.array_equal(data.has_picture[:n_items], source.has_picture)
    assert data.reviews is not None
    for row in range(len(data)):
        expected = f"of {data.times[row]}" if data.users[row] >= n_users else ""
        assert data.reviews[row] == expected
    assert np.array_equal(data.demographics["age"][:n_users], source.demographics["age"])
    assert (data.demographics["age"][n_users:] == -1).all()


def test_domains_that_share_an_id_are_refused() -> None:
    source, _ = domains()
    with pytest.raises(DataError, match="both have user person-1"):
        cross_domain(source, source)


def test_a_book_genre_stands_for_the_film_genre_that_it_is_described_like() -> None:
    found = genre_map(load("demo-ml-25m-cross"))
    assert found == dict(zip(BOOK_GENRES, GENRES, strict=True))


def test_a_genre_that_both_domains_have_stands_for_itself_and_one_without_words_for_none() -> None:
    data = load("demo-ml-25m-cross")
    books = data.domain == 1
    genres = [("Drama",) if book else names for book, names in zip(books, data.genres, strict=True)]
    assert genre_map(replace(data, genres=genres)) == {"Drama": "Drama"}
    titles = ["xyzzy" if book else title for book, title in zip(books, data.titles, strict=True)]
    silent = replace(data, titles=titles, descriptions=[""] * data.n_items)
    assert genre_map(silent) == {}


def test_a_pseudo_user_gets_the_history_of_the_user_with_the_nearest_liked_genres() -> None:
    data = load("demo-ml-25m-cross")
    made = pseudo_users(data, most=6)
    check(made)
    stands = genre_map(data)

    def profile(user: int, split: int) -> np.ndarray:
        counts = np.zeros(len(GENRES))
        for e in range(data.starts[user], data.starts[user + 1]):
            if data.split[e] == split and data.labels[e] == 1:
                names = data.genres[data.items[e]]
                for name in {stands.get(name, name) for name in names}:
                    counts[GENRES.index(name)] += 1
        return counts

    donors = [u for u in range(1, data.n_users) if profile(u, TRAIN).any()]
    unit = np.array([profile(u, TRAIN) / np.linalg.norm(profile(u, TRAIN)) for u in donors])
    for user in range(donors[-1] + 1, data.n_users, 9):
        own = data.split[data.starts[user] : data.starts[user + 1]].tolist()
        mine = slice(*_spans(made)[user])
        copied = len(made.split[mine]) - len(own)
        liked = profile(user, SUPPORT)
        if not liked.any():
            assert copied == 0
            continue
        near = donors[int((unit @ (liked / np.linalg.norm(liked))).round(5).argmax())]
        theirs = [e for e in np.flatnonzero(data.users == near) if data.split[e] == TRAIN][-6:]
        assert made.items[mine].tolist()[:copied] == data.items[theirs].tolist()
        assert made.labels[mine].tolist()[:copied] == data.labels[theirs].tolist()
        assert made.split[mine].tolist() == [SUPPORT] * copied + own


def test_a_pseudo_user_depends_on_no_rating_of_the_test_split() -> None:
    data = load("demo-ml-25m-cross")
    open_, sealed = pseudo_users(data), pseudo_users(data.sealed())
    assert np.array_equal(open_.items, sealed.items)
    assert np.array_equal(open_.history_end, sealed.history_end)


# --- tags ----------------------------------------------------------------------------------------
def test_tags_of_held_out_rows_are_left_out_and_a_user_counts_once(tmp_path: Path) -> None:
    tags = [
        "1,1,Old,5",
        "1,1,old ,6",  # the same tag by the same user
        "2,1,OLD,7",
        "1,1,dark,7",
        "2,1,dark,7",
        "3,1,dark,7",
        *(f"9,1,tag {n},1" for n in range(6)),  # by one who has rated nothing
        "1,10,spoken of the test row,9",  # user 1 holds out films 9 and 10
        "1,9,of the validation row,9",
        "9,10,by another,9",
        "1,77,no such film,9",
        '2,2,"commas, and ""quotes""",9',
        "2,2,,9",
    ]
    files = {"ratings": many(), "movies": named(), "tags": tags}
    data = load("ml-latest-small", movielens(tmp_path, **files))
    assert data.tags[1] == ("dark", "old", "tag 0", "tag 1", "tag 2")
    assert data.tags[2] == ('commas, and "quotes"',)
    assert data.tags[9] == ()
    assert data.tags[10] == ("by another",)
    assert {key: n for key, n in data.counts.items() if key.startswith("tags")} == {
        "tags read": 17,
        "tags of ratings that are not trained on, left out": 2,
        "tags of items without an event, left out": 1,
        "tags kept": 14,
    }


@pytest.mark.parametrize("kind", ["", "-random", "-cold", "-cross", "-pseudo"])
def test_no_tag_comes_from_a_rating_that_is_not_trained_on(tmp_path: Path, kind: str) -> None:
    films = named(15) + [f"{item},Film {item},Animation|Drama" for item in range(16, 31)]
    rows = many(20, 30)
    told = [f"{user},{item},by {user},1" for user in range(1, 21) for item in range(1, 31)]
    folder = movielens(tmp_path, ratings=rows, movies=films, tags=told)
    data = load(f"ml-latest-small{kind}", folder)
    check(data, in_time=kind != "-random")
    check_counts(data)
    trained = np.isin(data.split, (TRAIN, SUPPORT))
    pairs = zip(data.users[trained], data.items[trained], strict=True)
    allowed = {(f"by {data.user_ids[user]}", int(item)) for user, item in pairs}
    found = {(tag, item) for item, tags in enumerate(data.tags) for tag in tags}
    assert found and found <= allowed
    read = data.counts["tags of ratings that are not trained on, left out"]
    assert read > 0 and data.counts["tags kept"] > 0


# --- the data sets by name -----------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in FEEDBACK_DATA if name.startswith("demo-")])
def test_a_demo_set_is_sound_and_as_large_as_it_says(name: str) -> None:
    data, source = load(name), FEEDBACK_DATA[name]
    check(data, in_time=not name.endswith("-random"))
    check_counts(data)
    assert source.note and source.synthetic and data.name == name
    for key, counted in (("users", "users"), ("items", "items"), ("train", "train rows")):
        assert abs(data.counts[counted] / source.sizes[key] - 1) < 0.05
    for split in ("valid", "test"):
        rows = data.rows(split)
        assert 0.4 < data.labels[rows].mean() < 0.7 and len(rows) > 400
    assert bool(data.demographics) == ("ml-25m" in name)
    assert (data.reviews is None) == ("ml-25m" in name)
    assert any(data.tags) == ("ml-25m" in name)
    assert source.fingerprint(NOWHERE) == source.fingerprint(NOWHERE)


def test_every_set_has_its_kinds_and_one_that_stands_in_says_so() -> None:
    kinds = ("", "-random", "-cold", "-cross", "-pseudo")
    expected = {f"{name}{k}" for name in ("ml-25m", "ml-latest-small", "ml-1m") for k in kinds}
    expected |= {f"demo-ml-25m{kind}" for kind in kinds}
    expected |= {f"{name}amazon-movies-2014" for name in ("", "demo-")} | {
        "amazon-movies-2014-cold"
    }
    assert set(FEEDBACK_DATA) == expected
    for name, source in FEEDBACK_DATA.items():
        assert ("synthetic" in source.note) == (name.startswith("demo-") or "pseudo" in name)
        real = name.startswith("ml-")
        assert ("stand-in" in source.note) == (
            real and name.endswith(("-cross", "-pseudo")) and not name.startswith("ml-25m")
        )


def test_films_and_books_of_two_publishers_make_one_set(tmp_path: Path) -> None:
    files = movielens(tmp_path, ratings=many(5), movies=named()) / "ml-latest-small"
    files.rename(tmp_path / "ml-25m")
    books = amazon(tmp_path) / "amazon-2014"
    source, alone = FEEDBACK_DATA["ml-25m-cross"], FEEDBACK_DATA["ml-25m"].sizes
    assert source.sizes["train"] == alone["train"]  # every film rating that is trained on
    for size in ("users", "items"):
        assert source.beside and source.sizes[size] == alone[size] + source.beside.sizes[size]
    with pytest.raises(DataError, match=r"reviews_Books_5\.json\.gz is missing"):
        load("ml-25m-cross", tmp_path)
    for kind in ("reviews_{}_5.json.gz", "meta_{}.json.gz"):
        (books / kind.format("Movies_and_TV")).rename(books / kind.format("Books"))
    data = load("ml-25m-cross", tmp_path)
    check(data)
    assert data.reviews is None and data.item_word == "film"
    assert data.user_ids[6:] == ["A1", "A2"] and data.item_ids[11] == "B1"
    assert data.counts["test rows"] == 4 and data.counts["support rows"] == 8
    before = source.fingerprint(tmp_path)
    meta = books / "meta_Books.json.gz"
    meta.write_bytes(gzip.compress(gzip.decompress(meta.read_bytes()) + b"{'asin': 'B6'}\n"))
    assert source.fingerprint(tmp_path) != before


def test_the_benchmark_runs_at_a_small_size(tmp_path: Path) -> None:
    script = ROOT / "benchmarks/ratings_scale.py"
    command = [sys.executable, str(script), str(tmp_path), "--rows", "3000"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| load_feedback |" in found.stdout
    assert "'events read': '3,000'" in found.stdout


def test_instructions_of_alpaca_are_counted_and_a_record_that_is_none_is_named(
    tmp_path: Path,
) -> None:
    row = {"instruction": "Name a film.", "input": "", "output": "Jaws."}
    path = write(tmp_path / "alpaca/alpaca_data.json", json.dumps([row, {**row, "input": "Old."}]))
    assert count("alpaca", tmp_path) == {"instructions": 2, "with an input": 1}
    path.write_text(json.dumps([row, {"instruction": "?"}]))
    with pytest.raises(DataError, match=r"alpaca_data\.json, record 2: not an object of instr"):
        count("alpaca", tmp_path)
    path.write_text("[")
    with pytest.raises(DataError, match="cannot be read"):
        count("alpaca", tmp_path)


def test_polars_and_scikit_learn_are_loaded_late() -> None:
    code = "import sys, reprokit.ratings; print({'polars', 'sklearn', 'torch'} & set(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "set()"
