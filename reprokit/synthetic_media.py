"""What people of a synthetic world write, and what its items look like.

Reviews, posters and covers as they are; and the world's films seen as restaurants, with the reviews
and photos of a release. `synthetic` says which of its signals stands in words and which in pixels.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprokit.synthetic import (
    FILM,
    Config,
    Floats,
    Ints,
    World,
    make_world,
    pick,
    rating_limits,
    stream,
)
from reprokit.words import (
    BLAME,
    CHATTER,
    CHATTER_WORDS,
    DISHES,
    MIXED,
    PRAISE,
    PRICE_WORDS,
    RESTAURANT_TYPES,
)

RESTAURANT_SHARES = (0.04, 0.03, 0.05, 0.18, 0.70)  # 88% are above 3, as Google reviews are


def reviews(world: World) -> list[str]:
    """The review of each event, or "" where none was written."""
    events, items = world.events, world.items
    draws = stream(world.config.seed, "reviews").random((len(events.users), 6))
    written = draws[:, 5] < world.config.review_share
    texts = [""] * len(written)
    rows = np.flatnonzero(written)
    things = [[f"the {tag}" for tag in tags] for tags in items.tags]
    kinds = [
        f"{names[0]} {'book' if d else 'film'}"
        for names, d in zip(items.genres, items.domain, strict=True)
    ]
    makers = [people[0] for people in items.people]
    found = _write(world, rows, events.ratings[rows], draws[rows], things, kinds, makers)
    for row, text in zip(rows, found, strict=True):
        texts[row] = text
    return texts


def _write(
    world: World,
    rows: Ints,
    stars: Ints,
    draws: Floats,
    things: Sequence[Sequence[str]],
    kinds: Sequence[str],
    makers: Sequence[str],
) -> list[str]:
    """What the item is, what this person likes best or least in it, who made it, and the price.

    Five stars praise twice, four praise and shrug, three shrug twice, two blame and shrug, and one
    blames twice. The price is named whatever the rating.
    """
    users, items = world.events.users[rows], world.events.items[rows]
    ids = world.items.genre_ids[items]  # (rows, 3)
    taste = np.take_along_axis(world.truth.genre_taste[users], ids, axis=1)
    best = np.where(ids >= 0, taste, -np.inf).argmax(axis=1)
    worst = np.where(ids >= 0, taste, np.inf).argmin(axis=1)
    texts = []
    for n, (item, star) in enumerate(zip(items, stars, strict=True)):
        liked, disliked, maker = things[item][best[n]], things[item][worst[n]], makers[item]
        first, second = {
            5: ((PRAISE, liked), (PRAISE, maker)),
            4: ((PRAISE, liked), (MIXED, maker)),
            3: ((MIXED, liked), (MIXED, maker)),
            2: ((BLAME, disliked), (MIXED, maker)),
            1: ((BLAME, disliked), (BLAME, maker)),
        }[int(star)]
        opening = pick(("The usual {}.", "One more {}.", "My choice was this {}."), draws[n, 0])
        sentences = [opening.format(kinds[item])]
        for (forms, thing), draw in zip((first, second), draws[n, 1:3], strict=True):
            sentence = pick(forms, draw).format(thing)
            sentences.append(sentence[0].upper() + sentence[1:])
        if draws[n, 3] < world.config.price_share:
            sentences.append(pick(PRICE_WORDS[world.items.price_level[item]], draws[n, 4]))
        texts.append(" ".join(sentences))
    return texts


def images(world: World) -> NDArray[np.uint8]:
    """(n_items, 3, 32, 32), red-green-blue; zeros where `items.has_image` is False."""
    rng, n = stream(world.config.seed, "images"), len(world.truth.style)
    pixels = _paint(
        world.truth.style,
        rng.random((n, 1, 1, 1)),
        rng.standard_normal((n, 3, 32, 32), dtype=np.float32),
    )
    pixels[~world.items.has_image] = 0
    return pixels


def _paint(style: Floats, phase: Floats, grain: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour balance (red against blue), brightness, and contrast of stripes at a random place."""
    balance, bright, striped = style.T[:, :, None, None, None]  # each (n, 1, 1, 1)
    channel = np.array([1.0, 0.0, -1.0])[:, None, None]
    columns = np.arange(32) / 32
    waves = np.sin(2 * np.pi * (4 * columns + phase))  # (n, 1, 1, 32), four stripes
    light = 128 + 40 * balance * channel + 35 * bright + 15 * (1 + striped) * waves + 8 * grain
    return np.clip(light, 0, 255).astype(np.uint8)


def restaurant_reviews(
    world: World, per_user: int = 5, more: int = 3, chatter: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """The world's films seen as restaurants, in the layout of the Google restaurants release.

    Film genre g is restaurant type g, tags are dishes, posters are photos; the first `per_user`
    ratings of each person count, cut so that most are high. Train, val and test share restaurants
    but no person. As in the release some texts are empty, some histories hold the review itself,
    under its id `user_business`, and histories also hold reviews that are no rows: here `more` of
    each person, those that follow. A text has `chatter` sentences about everything but the meal.
    """
    events, items = world.events, world.items
    films = np.flatnonzero(items.domain[events.items] == FILM)
    nth = np.arange(len(films)) - np.searchsorted(events.users[films], events.users[films])
    rows, later = films[nth < per_user], films[(nth >= per_user) & (nth < per_user + more)]
    cuts = rating_limits(world.truth.utility[rows], RESTAURANT_SHARES)

    rng = stream(world.config.seed, "restaurants")
    draws = rng.random((len(rows), 10))
    talk = stream(world.config.seed, "restaurant chatter")
    stars, texts = _restaurant_texts(world, rows, cuts, draws)
    texts = _with_chatter(texts, chatter, talk)
    photos = np.where(draws[:, 7] < 0.01, 0, 1 + (draws[:, 8] * 3).astype(int))
    parts = rng.permutation(world.config.n_users) / world.config.n_users
    rest = stream(world.config.seed, "restaurant histories").random((len(later), 10))
    _, later_texts = _restaurant_texts(world, later, cuts, rest)
    later_texts = _with_chatter(later_texts, chatter, talk)

    users = events.users[rows]
    names = [f"user{user:05d}" for user in range(world.config.n_users)]
    places = [f"place{i:05d}" for i in events.items[rows]]
    ids = [f"{names[user]}_{place}" for user, place in zip(users, places, strict=True)]
    only: list[list[list[str]]] = [[] for _ in names]  # reviews of each person that are no rows
    for user, i, text in zip(events.users[later], events.items[later], later_texts, strict=True):
        only[user] += [[f"{names[user]}_place{i:05d}", text]] if text else []

    files: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    bounds = np.searchsorted(users, np.arange(world.config.n_users + 1))
    for n, user in enumerate(users):
        mine = range(bounds[user], bounds[user + 1])
        shown = [m for m in mine if (m != n or draws[n, 9] < 0.05) and texts[m]]
        part = "train" if parts[user] < 0.8 else "val" if parts[user] < 0.9 else "test"
        files[part].append(
            {
                "business_id": places[n],
                "user_id": names[user],
                "rating": int(stars[n]),
                "review_text": texts[n],
                "pics": [f"photo-{events.items[rows[n]]}-{rows[n]}-{k}" for k in range(photos[n])],
                "history_reviews": [[ids[m], texts[m]] for m in shown] + only[user],
            }
        )
    return files


def _restaurant_texts(
    world: World, rows: Ints, cuts: Floats, draws: Floats
) -> tuple[Ints, list[str]]:
    """Stars of the rows, and what is written: 3% write nothing."""
    stars = 1 + np.searchsorted(cuts, world.truth.utility[rows], side="right")
    dishes = [
        [f"the {DISHES[g][(i + k) % 2]}" for k, g in enumerate(ids) if g >= 0]
        for i, ids in enumerate(world.items.genre_ids)
    ]
    kinds = [f"{RESTAURANT_TYPES[ids[0]]} restaurant" for ids in world.items.genre_ids]
    texts = _write(world, rows, stars, draws, dishes, kinds, ["the service"] * len(kinds))
    pairs = zip(texts, draws[:, 6], strict=True)
    return stars, ["" if draw < 0.03 else text for text, draw in pairs]


def _with_chatter(texts: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Each text between `count` sentences of chatter, half before and half behind it."""
    slots = len(CHATTER_WORDS)
    draws = rng.random((len(texts), count, 1 + slots))
    told = []
    for text, rows in zip(texts, draws, strict=True):
        talk = [pick(CHATTER, row[0]).format(*map(pick, CHATTER_WORDS, row[1:])) for row in rows]
        told.append(" ".join([*talk[: count // 2], text, *talk[count // 2 :]]) if text else "")
    return told


def restaurant_photos(world: World, pics: Sequence[str]) -> NDArray[np.uint8]:
    """(n, 3, 32, 32): each photo shows the style of its restaurant, with noise of its own.

    A photo depends on the world and its name alone, whatever others are asked for.
    """
    pixels = np.empty((len(pics), 3, 32, 32), dtype=np.uint8)
    for start in range(0, len(pics), 64):  # a few at a time: what is held stays in the cache
        block = [[int(part) for part in pic.split("-")[1:]] for pic in pics[start : start + 64]]
        phase = np.empty((len(block), 1, 1, 1))
        grain = np.empty((len(block), 3, 32, 32), dtype=np.float32)
        for n, (_, row, k) in enumerate(block):
            rng = stream(world.config.seed, "photos", row, k)
            phase[n] = rng.random()
            rng.standard_normal(out=grain[n], dtype=np.float32)
        style = world.truth.style[[item for item, _, _ in block]]
        pixels[start : start + 64] = _paint(style, phase, grain)
    return pixels


@cache
def world_digest(config: Config) -> str:
    """A hash of all that a world holds: the fingerprint of the demo data sets made from it."""
    world = make_world(config)
    digest = hashlib.sha256(repr((world.config, reviews(world))).encode())
    for part in (world.users, world.items, world.events):
        for column in part:
            content = column.tobytes() if isinstance(column, np.ndarray) else repr(column).encode()
            digest.update(content)
    digest.update(images(world).tobytes())
    return digest.hexdigest()
