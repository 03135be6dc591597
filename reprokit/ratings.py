"""The ratings of ExplainRec (section IV.A): MovieLens, Amazon Movies and TV, and stand-ins.

What the paper leaves open, and what is done here
D1  Positive is a rating of 4 or more (MovieLens) or above 3 (Amazon): the same, ratings of Amazon
    being whole.
D2  Events are sorted by user, then time, then their place in the file. Of a user's several ratings
    of one item the first counts.
D3  Splits, cold start and the two domains: see `splitting`. How files are read: `ratingfiles`.
D4  MovieLens and Amazon Books share no user, so that the cross-domain set has none in common.
    Where there are no books, children's films stand in for the second domain.
D5  A tag that a user gave an item whose rating is not trained on (held out, or dropped by a split)
    is left out: it was given by one who has seen it.
D6  Genres of Amazon's items are the last names of their ways of categories, makers their brands.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.data import Source
from reprokit.datasets import DataError
from reprokit.download import find
from reprokit.feedback import SPLITS, Feedback, paired
from reprokit.ratingfiles import (
    TAG_COLUMNS,
    Known,
    Table,
    amazon_2014,
    assembled,
    movielens_1m,
    movielens_csv,
    read_table,
)
from reprokit.reviewfiles import PICTURE_TYPES
from reprokit.splitting import cold_start, cross_domain, part, pseudo_users, split_by_user
from reprokit.splitting import genre_map as genre_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from reprokit.synthetic import Config

    Ints = NDArray[np.int64]

FOR_CHILDREN = {"Animation", "Children", "Children's"}
"""Films of these genres are the second domain where there are no books (D4)."""
MOST_TAGS = 5
"""Kept of an item: the most frequent, each counted once a user."""


# --- tags ---------------------------------------------------------------------------------------
def with_tags(data: Feedback, base: Feedback, path: Path) -> Feedback:
    """`tags.csv` of MovieLens: of each item the most frequent tags, in lower case, each counted
    once a user; of equals the first in the alphabet.

    `base` has all events that were read. A tag whose user rated its item there, but not in the
    training or support events of `data`, is left out (D5).
    """
    import polars as pl

    rows = read_table(path, TAG_COLUMNS).select("userId", "movieId", "tag")
    tag = pl.col("tag").str.strip_chars().str.to_lowercase()
    rows = rows.with_columns(tag).filter(pl.col("tag").fill_null("") != "")
    read = len(rows)
    users, items = (
        _places(rows[column].to_numpy(), ids)
        for column, ids in (("userId", base.user_ids), ("movieId", base.item_ids))
    )
    pairs = paired(users, items, base.n_items)
    rated = _pairs_among(pairs, base, base.users, base.items)
    trained = np.flatnonzero(np.isin(data.split, (0, SPLITS.index("support"))))
    to_users = _same(data.user_ids, base.user_ids)
    to_items = _same(data.item_ids, base.item_ids)
    seen = to_users[data.users[trained]], to_items[data.items[trained]]
    leave = np.isin(pairs, rated) & ~np.isin(pairs, _pairs_among(pairs, base, *seen))
    leave &= (users > 0) & (items > 0)
    number = np.zeros(base.n_items, np.int64)  # of base's items in data
    number[to_items] = np.arange(data.n_items)
    number[0] = 0
    keep = ~leave & (number[items] > 0)
    rows = rows.with_columns(item=pl.Series(number[items])).filter(pl.Series(keep))
    counted = rows.group_by("item", "tag").agg(pl.col("userId").n_unique().alias("n"))
    best = counted.sort("item", "n", "tag", descending=[False, True, False]).group_by(
        "item", maintain_order=True
    )
    tags = list(data.tags)
    for item, names in best.agg(pl.col("tag").head(MOST_TAGS)).iter_rows():
        tags[item] = tuple(names)
    counts = {
        "tags read": read,
        "tags of ratings that are not trained on, left out": int(leave.sum()),
        "tags of items without an event, left out": read - int(leave.sum()) - int(keep.sum()),
        "tags kept": int(keep.sum()),
    }
    return replace(data, tags=tags, counts={**data.counts, **counts})


def _places(values: Any, ids: Sequence[str]) -> Ints:
    """The place of each number in `ids`, whose numbers ascend; 0 for none."""
    known = np.array([int(one) for one in ids[1:]], np.int64)
    at = np.searchsorted(known, values).clip(0, max(0, len(known) - 1))
    return np.where(known[at] == values, at + 1, 0)


def _same(ids: Sequence[str], others: Sequence[str]) -> Ints:
    """The place of each id in `others`; 0 for none."""
    places = {one: at for at, one in enumerate(others)}
    return np.array([places.get(one, 0) for one in ids], np.int64)


def _pairs_among(pairs: Ints, base: Feedback, users: Any, items: Any) -> Ints:
    """The events' pairs that can be in `pairs`: few of MovieLens's users give tags."""
    of_users, of_items = np.zeros(base.n_users, bool), np.zeros(base.n_items, bool)
    found, what = np.divmod(pairs, base.n_items)
    of_users[found], of_items[what] = True, True
    near = np.flatnonzero(of_users[users] & of_items[items])
    return paired(users[near], items[near], base.n_items)


# --- stand-ins ----------------------------------------------------------------------------------
def taste_world(seed: int = 0) -> Config:
    """The world behind the demo: people with films and books."""
    from reprokit.synthetic import Config

    return Config(
        seed=seed,
        n_users=400,
        n_films=200,
        n_books=150,
        events_per_user=45,
        style=1.8,  # what only pictures show counts as much as what texts say
        review_share=0.99,  # in Amazon's files nearly every rating has a text
    )


def invented(
    name: str,
    domains: Sequence[int] = (0,),
    seed: int = 0,
    demographics: bool = True,
    tags: bool = True,
    reviews: bool = False,
) -> Feedback:
    """Films (0), or films and books (0, 1), of the synthetic world."""
    from reprokit import synthetic, synthetic_media

    world = synthetic.make_world(taste_world(seed))
    events, items = world.events, world.items
    files = [synthetic.ratings(world, domain) for domain in domains]
    rows = np.concatenate([file.events for file in files])  # in the order of the files
    chosen = np.flatnonzero(np.isin(items.domain, domains))
    number = np.zeros(len(items.domain), np.int32)
    number[chosen] = np.arange(1, len(chosen) + 1)
    texts = synthetic_media.reviews(world) if reviews else None
    table = Table(
        (events.users[rows] + 1).astype(np.int32),
        number[events.items[rows]],
        events.ratings[rows].astype(np.float32),
        events.times[rows],
        ["", *(f"person-{user + 1}" for user in range(len(world.users.age)))],
        ["", *(f"{'book' if items.domain[i] else 'film'}-{i + 1}" for i in chosen.tolist())],
        texts and [texts[row] for row in rows.tolist()],
    )
    pixels = synthetic_media.images(world)[chosen]
    known = Known(
        titles=["", *(items.titles[i] for i in chosen)],
        genres=[(), *(items.genres[i] for i in chosen)],
        pictures=np.concatenate([np.zeros_like(pixels[:1]), pixels]),
        has_picture=np.concatenate([[False], items.has_image[chosen]]),
        people=[(), *(items.people[i] for i in chosen)],
        descriptions=["", *(items.descriptions[i] for i in chosen)],
        tags=[(), *(items.tags[i] for i in chosen)] if tags else [],
    )
    women = (world.users.gender == "F").astype(np.int16)
    ages = np.searchsorted(synthetic.AGES, world.users.age).astype(np.int16)
    unknown = np.full(1, -1, np.int16)
    groups = {"gender": 1 - women, "age": ages} if demographics else {}
    return assembled(
        name,
        table,
        known,
        {name: np.concatenate([unknown, codes]) for name, codes in groups.items()},
        domain=np.concatenate([[0], items.domain[chosen]]).astype(np.int8),
    )


# --- the data sets by name ----------------------------------------------------------------------
def halves(base: Feedback, seed: int = 0) -> Feedback:
    """A cross-domain set of one set of ratings: half of the users with one kind of items, the other
    half with the other; the users' other ratings are dropped.

    The target domain is that of `base`; where it has one domain alone, films for children.
    """
    target = base.domain == 1
    if not target.any():
        target = np.array([bool(FOR_CHILDREN & set(names)) for names in base.genres])
    users = np.random.default_rng(seed).permutation(np.arange(1, base.n_users))
    first = np.zeros(base.n_users, bool)
    first[users[: len(users) // 2]] = True
    ours, theirs = first[base.users] & ~target[base.items], ~first[base.users] & target[base.items]
    for kind, keep in (("source", ours), ("target", theirs)):
        if not keep.any():
            raise DataError(f"{base.name}: no rating in the {kind} domain")
    source = replace(split_by_user(part(base, ours)), counts={})
    made = cross_domain(source, replace(part(base, theirs), counts={}))
    dropped = {"ratings of a user's other domain, dropped": int((~ours & ~theirs).sum())}
    return replace(made, counts={**base.counts, **dropped, **made.counts})


def recipe(
    name: str, read: Callable[..., Feedback], *paths: Path, kind: str = "", seed: int = 0
) -> Feedback:
    """A data set of a kind: "", "random", "cold", "cross" or "pseudo". Paths after the second are
    those of the books that a cross-domain set is tested on."""
    base = read(name, *paths[:2])
    if kind in ("cross", "pseudo"):
        if paths[2:]:
            reviews, metadata = paths[2:]
            books = amazon_2014("the books", reviews, metadata, texts=False, item_word="book")
            data = cross_domain(split_by_user(base), books)
        else:
            data = halves(base, seed)
    else:
        data = split_by_user(base, "random" if kind == "random" else "time", seed)
        data = cold_start(data, seed=seed) if kind == "cold" else data
    if tags := paths and find(paths[0].parent, "tags.csv"):
        data = with_tags(data, base, tags)
    data = pseudo_users(data) if kind == "pseudo" else data
    return replace(data, name=name, counts={**data.counts, **tally(data)})


def tally(data: Feedback) -> dict[str, int]:
    """What a data set holds. Counts of the test split begin with its name."""
    counts = {"users": data.n_users - 1, "items": data.n_items - 1}
    for index, split in enumerate(SPLITS):
        at = data.split == index
        counts[f"{split} rows"] = int(at.sum())
        counts[f"{split} rows, liked"] = int(data.labels[at].sum(dtype=np.int64))
    return counts | {"items with a picture": int(data.has_picture.sum())}


def _sources() -> dict[str, Source]:
    """Every data set and its kinds."""
    posters = tuple(f"ml-posters/*{ending}" for ending in PICTURE_TYPES)
    covers = tuple(f"amazon-2014/images/*{ending}" for ending in PICTURE_TYPES)
    csv_files, dat_files = ("ratings.csv", "movies.csv"), ("ratings.dat", "movies.dat")
    books = Source(
        amazon_2014,
        {"users": 603_668, "items": 367_982, "train": 7_000_000},
        registered="amazon-books-2014",
        files=("reviews_Books_5.json.gz", "meta_Books.json.gz"),
        optional=covers,
    )
    movielens = {
        "ml-25m": (movielens_csv, csv_files, "tags.csv", (162_541, 59_047, 19_930_000)),
        "ml-latest-small": (movielens_csv, csv_files, "tags.csv", (610, 9_724, 80_419)),
        "ml-1m": (movielens_1m, dat_files, "users.dat", (6_040, 3_706, 797_758)),
    }
    found: dict[str, Source] = {}
    for name, (read, files, beside, sizes) in movielens.items():
        for kind in ("", "random", "cold", "cross", "pseudo"):
            two = kind in ("cross", "pseudo")
            second = books if two and name == "ml-25m" else None
            found[f"{name}-{kind}".rstrip("-")] = Source(
                partial(recipe, f"{name}-{kind}".rstrip("-"), read, kind=kind),
                _sized(*sizes, kind, second),
                registered=name,
                files=files,
                optional=(f"{name}/{beside}", *posters),
                beside=second,
                note=_note(name, kind),
            )
    for kind in ("", "cold"):
        name = f"amazon-movies-2014-{kind}".rstrip("-")
        found[name] = Source(
            partial(recipe, name, amazon_2014, kind=kind),
            _sized(123_960, 50_052, 1_310_000, kind) | {"reviewed": 1},
            registered="amazon-movies-2014",
            files=("reviews_Movies_and_TV_5.json.gz", "meta_Movies_and_TV.json.gz"),
            optional=covers,
        )
    return found


def _sized(
    users: int, items: int, train: int, kind: str, books: Source | None = None
) -> dict[str, int]:
    """Sizes of a data set of a kind, for estimates before anything is read; `reviewed`: whether
    its ratings come with reviews."""
    if books:  # all films are trained on, and users and items are those of both
        users, items, share = users + books.sizes["users"], items + books.sizes["items"], 1.0
    else:
        share = {"": 1.0, "random": 1.0, "cold": 0.75, "cross": 0.5, "pseudo": 0.5}[kind]
    return {"users": users, "items": items, "train": int(share * train), "reviewed": 0}


PSEUDO_NOTE = (
    "synthetic: each test user's history begins with that of the training user who likes the most "
    "similar genres"
)
PEOPLE_NOTE = (
    "in place of MovieLens-25M: 400 synthetic people; their gender and age are known, where "
    "MovieLens-25M has neither"
)


def _note(name: str, kind: str) -> str:
    """What a reader must know of a MovieLens set of a kind."""
    if kind not in ("cross", "pseudo"):
        return ""
    note = (
        "trained on films and tested on books, by users who have nothing in common; prompts call "
        "a book a film"
        if name == "ml-25m"
        else "a stand-in for MovieLens with Amazon Books: trained on one half of the users and "
        "all but children's films, tested on the other half and children's films"
    )
    return f"{note}; {PSEUDO_NOTE}" if kind == "pseudo" else note


def _demos() -> dict[str, Source]:
    """The synthetic ones; each is in the place of a real one with `demo-` taken off its name."""
    cross = "half of the people rate films, the others books, which prompts call films"
    films = partial(invented, domains=(0,))
    both = partial(invented, domains=(0, 1))
    notes = {
        "": PEOPLE_NOTE,
        "random": PEOPLE_NOTE,
        "cold": PEOPLE_NOTE,
        "cross": f"{PEOPLE_NOTE}; {cross}",
        "pseudo": f"{PEOPLE_NOTE}; {cross}; {PSEUDO_NOTE}",
    }
    found = {}
    for kind, note in notes.items():
        name = f"demo-ml-25m-{kind}".rstrip("-")
        read = both if kind in ("cross", "pseudo") else films
        load = partial(recipe, name, read, kind=kind)
        found[name] = Source(load, DEMO_SIZES[kind], world=taste_world, note=note)
    name = "demo-amazon-movies-2014"
    read = partial(invented, seed=1, demographics=False, tags=False, reviews=True)
    found[name] = Source(
        partial(recipe, name, read),
        DEMO_SIZES["amazon"],
        world=partial(taste_world, seed=1),
        note="in place of Amazon's Movies and TV: reviews of films by 400 synthetic people",
    )
    return found


DEMO_SIZES: dict[str, dict[str, int]] = {
    kind: {"users": users, "items": items, "train": train, "reviewed": int(kind == "amazon")}
    for kind, users, items, train in (
        ("", 400, 200, 9_000),
        ("random", 400, 200, 9_000),
        ("cold", 400, 200, 6_500),
        ("cross", 400, 350, 4_500),
        ("pseudo", 400, 350, 4_500),
        ("amazon", 400, 200, 9_000),
    )
}
FEEDBACK_DATA: Mapping[str, Source] = {**_sources(), **_demos()}
"""Every data set by name. "-random": split at random; "-cold": new users and new items; "-cross":
another domain; "-pseudo": the same, with invented histories."""


@lru_cache(maxsize=2)
def load_feedback(name: str, data_dir: Path, fingerprint: str = "") -> Feedback:
    """A data set by name, kept for the runs that follow while its fingerprint is the same.

    Raises DataError where a file is missing, damaged or not its publisher's.
    """
    source = FEEDBACK_DATA[name]
    load: Callable[..., Feedback] = source.load
    try:
        return load(*source.paths(data_dir))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} in {data_dir} cannot be read: {error}") from None
