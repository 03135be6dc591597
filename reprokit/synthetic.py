"""A small invented world with planted structure: what the `demo` preset of every paper runs on.

People with a gender, an age and an occupation rate films (domain 0) and books (domain 1), write
reviews, and see posters and covers. What a person thinks of an item is known exactly:

    mean(u, i, t) = user_bias * bias(u) + quality * quality(i) + price * cheapness(i)
                  + genre * personal_taste(u) . genres(i)
                  + demographic * (by_gender(u) + by_age(u)) / sqrt(2) . genres(i)
                  + style * style_taste(u) . style(i)
                  + sequence * [the main genre of i is the one that u wishes for at t]
    utility = mean + noise        rating = utility cut into five steps, liked = rating >= 4

Every term but the last has variance near 1 before its scale, and each scale is a field of `Config`,
so `make_world(dataclasses.replace(Config(), style=0.0))` has the same people, items and times, but
what is picked and liked no longer depends on style.

Where each signal can be read
genre        titles, descriptions, tags, reviews and genre names; a book genre stands for a film
             genre, so a taste carries over between the domains
demographic  gender and age together with genre; occupation means nothing, on purpose
style        pixels only: colour balance, brightness and stripes, independent of genre and text
sequence     order of events: liking a genre makes a wish for the genre that follows it (in one
             fixed cycle, through both domains); the wish often decides the next pick, and one try
             ends it
price        price words of the reviews

One seed feeds many named streams, so a change in one part leaves the draws of the others alone.
About six float64 arrays of (n_users, n_items) are held while a world is made; one stays in `Truth`.
"""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprokit.words import (
    ADJECTIVES,
    BOOK_GENRES,
    FIRST_NAMES,
    GENRES,
    LAST_NAMES,
    NOUNS,
    ODD_TITLES,
    TAGS,
    TITLE_FORMS,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DAY = 86_400
FILM, BOOK = 0, 1
AGES = np.array([1, 18, 25, 35, 45, 50, 56])  # MovieLens-1M codes, the lower end of each group
TRAITS = 2  # rank of the personal genre tastes: low, so that a latent model can find them
STYLES = 3  # colour balance, brightness, stripes
RATING_SHARES = (0.09, 0.12, 0.23, 0.31, 0.25)  # of ratings 1 to 5, near MovieLens: 56% are liked


@dataclass(frozen=True)
class Config:
    """Sizes, scales and shares. All defaults are our choice, tuned to the bounds in the tests."""

    seed: int = 0
    """Feeds every stream; the same seed gives the same bytes."""
    n_users: int = 300
    """People. Each rates in both domains."""
    n_films: int = 200
    """Items of domain 0; they come first in the item numbering."""
    n_books: int = 150
    """Items of domain 1; book b is item n_films + b."""
    events_per_user: int = 62
    """Mean number of ratings of one person; single people have a third to twice as many."""
    book_share: float = 1 / 3
    """Share of events that are books."""
    start: str = "2001-06-01"
    """First day of the time window, UTC. With `end`, the calendar window of CCF-LLM on ML-1M."""
    end: str = "2003-02-01"
    """First day after the window."""
    late_user_share: float = 0.04
    """Share of people whose first event falls in the second half of the window."""
    late_item_share: float = 0.06
    """Share of items that appear only in the second half of the window."""
    same_second_share: float = 0.2
    """Chance that an event has the very second of the one before it in its session."""
    user_bias: float = 0.4
    """Scale of how generous a person is."""
    quality: float = 0.5
    """Scale of how good an item is."""
    price: float = 0.3
    """Scale of the effect of cheap against overpriced."""
    genre: float = 1.3
    """Scale of the personal genre taste."""
    demographic: float = 0.5
    """Scale of the genre taste shared by gender and by age."""
    style: float = 0.9
    """Scale of the taste for visual style."""
    sequence: float = 1.0
    """Bonus of an item of the genre that the person wishes for."""
    chain_share: float = 0.5
    """Chance that the next item is picked from the genre wished for."""
    choice: float = 0.3
    """How strongly people pick what they would like, as a power of exp(mean)."""
    noise: float = 0.9
    """Standard deviation of what nothing explains."""
    review_share: float = 0.5
    """Share of events that have a review."""
    price_share: float = 0.4
    """Share of reviews that mention the price."""
    image_share: float = 0.9
    """Share of items that have an image."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and value < 0:
                raise ValueError(f"{field.name} must not be negative, got {value}")
            if field.name.endswith("_share") and value > 1:
                raise ValueError(f"{field.name} is a share, at most 1, got {value}")
        if np.datetime64(self.end) - np.datetime64(self.start) < np.timedelta64(30, "D"):
            raise ValueError(f"the window needs 30 days or more, got {self.start} to {self.end}")


class Users(NamedTuple):
    """One row per person."""

    gender: NDArray[np.str_]  # "F" or "M"
    age: Ints  # one of AGES
    occupation: Ints  # 0 to 20


class Items(NamedTuple):
    """One row per item, films first."""

    domain: Ints  # FILM or BOOK
    titles: list[str]
    genres: list[tuple[str, ...]]  # one to three names, main genre first
    tags: list[tuple[str, ...]]  # tag k describes genre k
    people: list[tuple[str, ...]]  # director and lead, or author and narrator
    descriptions: list[str]
    price_level: Ints  # 0 a bargain, 1 fair, 2 overpriced
    has_image: NDArray[np.bool_]
    appears: Ints  # unix seconds, nobody rates it earlier
    genre_ids: Ints  # (n_items, 3), -1 pads; book genre g stands for film genre g


class Events(NamedTuple):
    """One row per rating of both domains: user after user, each in the true order of events."""

    users: Ints  # from 0
    items: Ints  # from 0, over both domains
    ratings: Ints  # 1 to 5
    times: Ints  # unix seconds, UTC


class Truth(NamedTuple):
    """What generated the events. For tests and for the generator itself; no system may read it."""

    genre_taste: Floats  # (n_users, 18), personal and demographic, scaled
    style: Floats  # (n_items, 3)
    next_genre: Ints  # (18,), one cycle through all genres
    static: Floats  # (n_users, n_items), the mean without the sequence term
    mean: Floats  # per event
    utility: Floats  # per event, mean plus noise


@dataclass(frozen=True)
class World:
    config: Config
    users: Users
    items: Items
    events: Events
    truth: Truth


class Ratings(NamedTuple):
    """One domain's ratings as a publisher ships them."""

    users: Ints  # from 1
    items: Ints  # from 1, within the domain
    ratings: Ints  # 1 to 5
    times: Ints  # unix seconds, UTC
    events: Ints  # row of `World.events`, to find the review


class EventSequence(NamedTuple):
    """One person's events in both domains; the last one is the target."""

    user: int
    items: Ints  # over both domains, films first
    domains: Ints
    times: Ints  # unix seconds of the day's start; within a day the order here is the true one
    split: str  # "train", "valid" or "test"


def stream(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """A generator that depends on the seed and on this name, and on no other stream."""
    return np.random.default_rng(
        np.random.SeedSequence([seed, zlib.crc32(name.encode()), *numbers])
    )


def make_world(config: Config) -> World:
    """Everything but the reviews and the images, which are made in `synthetic_media`."""
    users = _make_users(config)
    items = _make_items(config)
    events, truth = _make_events(config, users, items)
    return World(config, users, items, events, truth)


def _make_users(config: Config) -> Users:
    rng = stream(config.seed, "users")
    gender = np.where(rng.random(config.n_users) < 0.4, "F", "M")
    age = rng.choice(AGES, config.n_users, p=[0.04, 0.18, 0.34, 0.20, 0.09, 0.08, 0.07])
    return Users(gender, age, rng.integers(0, 21, config.n_users))


def _make_items(config: Config) -> Items:
    n = config.n_films + config.n_books
    domain = np.repeat([FILM, BOOK], [config.n_films, config.n_books])
    rng = stream(config.seed, "items")
    genre_ids = np.argsort(rng.random((n, len(GENRES))), axis=1)[:, :3]
    count = rng.choice([1, 2, 3], n, p=[0.35, 0.45, 0.20])
    genre_ids[np.arange(3) >= count[:, None]] = -1
    price_level = rng.choice(3, n, p=[0.3, 0.4, 0.3])
    has_image = rng.random(n) < config.image_share
    start, end = _window(config)
    late = rng.permutation(n) < config.late_item_share * n
    share = np.where(late, rng.uniform(0.5, 0.9, n), 0.0)
    appears = (start + share * (end - start)).astype(np.int64)

    words = stream(config.seed, "words").random((n, 12))
    names = [
        tuple((BOOK_GENRES if d else GENRES)[g] for g in row if g >= 0)
        for d, row in zip(domain, genre_ids, strict=True)
    ]
    tags = [
        tuple(pick(TAGS[g], words[i, k]) for k, g in enumerate(row) if g >= 0)
        for i, row in enumerate(genre_ids)
    ]
    people = [
        tuple(f"{pick(FIRST_NAMES, w[k])} {pick(LAST_NAMES, w[k + 1])}" for k in (3, 5))
        for w in words
    ]
    released = appears.astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
    years = np.where(late, released, 1950 + (words[:, 11] * 50).astype(int))
    titles = _titles(domain, genre_ids, years, words[:, 7:11])
    descriptions = [
        f"{who} {'narrates' if d else 'stars in'} this {' and '.join(name)} "
        f"{'book' if d else 'film'} by {maker}. It has {' and '.join(tag)}."
        for (maker, who), d, name, tag in zip(people, domain, names, tags, strict=True)
    ]
    return Items(
        domain,
        titles,
        names,
        tags,
        people,
        descriptions,
        price_level,
        has_image,
        appears,
        genre_ids,
    )


def _titles(domain: Ints, genre_ids: Ints, years: Ints, words: Floats) -> list[str]:
    """A noun of the main genre and an adjective of one of the genres; repeats get a number."""
    seen: Counter[str] = Counter()
    titles = []
    for i, draws in enumerate(words):
        ids = genre_ids[i][genre_ids[i] >= 0]
        adjective = pick(ADJECTIVES[pick(ids, draws[0])], draws[1])
        title = pick(TITLE_FORMS, draws[2]).format(adjective, pick(NOUNS[ids[0]], draws[3]))
        if i % 15 == 14:
            title = ODD_TITLES[i // 15 % 3].format(title)
        seen[title] += 1
        if seen[title] > 1:
            title += f" {seen[title]}"
        titles.append(f"{title}: A Book" if domain[i] else f"{title} ({years[i]})")
    return titles


def _make_events(config: Config, users: Users, items: Items) -> tuple[Events, Truth]:
    """Walk all people forward together: pick an item, rate it, and if liked wish for a genre."""
    taste, style, static = _static_mean(config, users, items)
    n_users, n_items = static.shape
    counts, times = _event_times(config)
    chances = stream(config.seed, "chain")
    popularity = chances.lognormal(0.0, 0.5, n_items)
    cycle = chances.permutation(len(GENRES))
    next_genre = np.empty_like(cycle)
    next_genre[cycle] = np.roll(cycle, -1)

    noise = config.noise * stream(config.seed, "noise").standard_normal(static.shape)
    weight = popularity * np.exp(config.choice * static)
    weight /= weight.sum(axis=1, keepdims=True)
    main = items.genre_ids[:, 0]
    within = weight @ (main[:, None] == np.arange(len(GENRES)))  # (n_users, 18), genre totals
    rate = weight * (1 - config.chain_share + config.chain_share / (within[:, main] * len(GENRES)))
    chosen = 1 - np.exp(-counts[:, None] * rate)  # chance of each pair, about: no repeats
    cuts = rating_limits(static + noise, RATING_SHARES, chosen)
    expected = 0.7 * config.chain_share  # about the share of wishes met; centres the sequence term

    draws = stream(config.seed, "choices").random((times.shape[1], 3, n_users))
    wish = np.full(n_users, -1)  # a genre, or -1 for none
    picked = np.zeros(times.shape, dtype=np.int64)
    bonus = np.zeros(times.shape)
    for step in range(times.shape[1]):
        u = np.flatnonzero(step < counts)
        domain_draw, chain_draw, item_draw = draws[step][:, u]
        domain = np.where(domain_draw < config.book_share, BOOK, FILM)
        can = (items.domain == domain[:, None]) & (items.appears <= times[u, step, None])
        odds = weight[u] * can  # (active users, n_items)
        follow = odds * ((main == wish[u, None]) & (chain_draw < config.chain_share)[:, None])
        odds = np.where(follow.any(axis=1, keepdims=True), follow, odds).cumsum(axis=1)
        if not odds[:, -1].all():
            raise ValueError(
                f"{config.n_films} films and {config.n_books} books are too few for "
                f"events_per_user={config.events_per_user}: nobody rates an item twice"
            )
        i = (odds > (item_draw * odds[:, -1])[:, None]).argmax(axis=1)
        weight[u, i] = 0.0  # not again
        picked[u, step] = i
        met = main[i] == wish[u]
        bonus[u, step] = config.sequence * (met - expected)
        liked = static[u, i] + noise[u, i] + bonus[u, step] >= cuts[2]
        wish[u[met]] = -1
        wish[u[liked]] = next_genre[main[i[liked]]]

    real = np.arange(times.shape[1]) < counts[:, None]  # (n_users, steps), row-major: user by user
    who, what = np.repeat(np.arange(n_users), counts), picked[real]
    mean = static[who, what] + bonus[real]
    utility = mean + noise[who, what]
    ratings = 1 + np.searchsorted(cuts, utility, side="right")
    truth = Truth(taste, style, next_genre, static, mean, utility)
    return Events(who, what, ratings, times[real]), truth


def _static_mean(config: Config, users: Users, items: Items) -> tuple[Floats, Floats, Floats]:
    """Genre taste, style, and their sum with the biases over all pairs."""
    n_users, n_items, n_genres = len(users.age), len(items.domain), len(GENRES)
    rng = stream(config.seed, "tastes")
    traits = rng.standard_normal((n_users, TRAITS))
    personal = traits @ rng.standard_normal((TRAITS, n_genres)) / np.sqrt(TRAITS)
    woman = np.where(users.gender == "F", 1.0, -1.0)
    older = (np.searchsorted(AGES, users.age) - 2.5) / 1.5  # age group, about standard
    effects = rng.standard_normal((2, n_genres))
    by_gender, by_age = effects / effects.std(axis=1, keepdims=True)
    shared = (np.outer(woman, by_gender) + np.outer(older, by_age)) / np.sqrt(2)
    taste = config.genre * personal + config.demographic * shared

    many_hot = (items.genre_ids[:, :, None] == np.arange(n_genres)).sum(axis=1)
    content = many_hot / np.sqrt(many_hot.sum(axis=1, keepdims=True))  # (n_items, 18), unit rows
    rng = stream(config.seed, "style")
    style = rng.uniform(-1, 1, (n_items, STYLES))
    everyone = np.array([1.0, 1.0, -1.0])  # bright, warm and plain sells; the rest is personal
    style_taste = 0.6 * everyone + 0.8 * rng.standard_normal((n_users, STYLES))

    rng = stream(config.seed, "biases")
    user_part = config.user_bias * rng.standard_normal(n_users)
    item_part = config.quality * rng.standard_normal(n_items)
    item_part += config.price * (1 - items.price_level) / np.sqrt(0.6)
    static = (
        user_part[:, None] + item_part + taste @ content.T + config.style * style_taste @ style.T
    )
    return taste, style, static


def _event_times(config: Config) -> tuple[Ints, Ints]:
    """How many events each person has, and their times in order: (n_users,), (n_users, steps).

    Events come in sessions of two or three, with seconds between them, or none.
    """
    rng = stream(config.seed, "times")
    n, mean = config.n_users, config.events_per_user
    spread = np.clip(rng.lognormal(-0.08, 0.4, n), 0.35, 2.0)
    counts = np.maximum(1, (spread * mean).astype(np.int64))
    late = rng.permutation(n) < config.late_user_share * n
    joins = np.where(late, rng.uniform(0.5, 0.9, n), 0.3 * rng.random(n))
    stays = np.minimum(rng.uniform(0.4, 1.6, n), 1 - joins)  # shares of the window

    shape = (n, int(counts.max()))
    fresh = rng.random(shape) < 0.4
    pauses = np.where(fresh, rng.standard_exponential(shape), 0.0).cumsum(axis=1)
    last = pauses[np.arange(n), counts - 1] + rng.standard_exponential(n)
    seconds = np.where(rng.random(shape) < config.same_second_share, 0, rng.integers(5, 60, shape))
    start, end = _window(config)
    length = end - start - int(seconds.sum(axis=1).max()) - 1
    begin = start + joins * length
    passed = (pauses / last[:, None]) ** 2  # in (0, 1); squared, because people are keen at first
    times = begin[:, None] + passed * (stays * length)[:, None]
    return counts, times.astype(np.int64) + seconds.cumsum(axis=1)


def _window(config: Config) -> tuple[int, int]:
    start, end = (
        int(np.datetime64(day, "s").astype(np.int64)) for day in (config.start, config.end)
    )
    return start, end


def rating_limits(utility: Floats, shares: Sequence[float], weight: Floats | None = None) -> Floats:
    """The four limits between ratings 1 to 5 that give these shares."""
    levels = np.cumsum(shares)[:-1]
    if weight is None:
        return np.quantile(utility, levels)
    return np.quantile(utility, levels, weights=weight, method="inverted_cdf")


def pick(options: Sequence[Any], draw: float) -> Any:
    return options[int(draw * len(options))]


def ratings(world: World, domain: int = FILM) -> Ratings:
    """One domain in file order: people in order, each one's rows shuffled, as in MovieLens-1M.

    Sorting by (user, time) restores the true order except among rows of the same second.
    """
    events = world.events
    shuffled = stream(world.config.seed, "files").random(len(events.users))
    order = np.lexsort((shuffled, events.users))
    order = order[world.items.domain[events.items[order]] == domain]
    first = world.config.n_films if domain == BOOK else 0
    return Ratings(
        events.users[order] + 1,
        events.items[order] - first + 1,
        events.ratings[order],
        events.times[order],
        order,
    )


def genre_strings(world: World) -> list[str]:
    """`Action|Comedy` for each item, in alphabetical order as MovieLens prints it."""
    return ["|".join(sorted(names)) for names in world.items.genres]


def sequences(
    world: World, shortest: int = 6, longest: int = 15, least: int = 3, days: int = 365
) -> list[EventSequence]:
    """Each person's timeline cut into pieces of `shortest` to `longest` events, target included.

    A piece has at least `least` events of each domain and spans at most `days`; events that fit in
    no piece are left out. A person's last piece goes to valid or test, all earlier ones to train.
    """
    events, domain = world.events, world.items.domain
    bounds = np.searchsorted(events.users, np.arange(world.config.n_users + 1))
    rng = stream(world.config.seed, "sequences")
    found = []
    for user, (at, end) in enumerate(pairwise(bounds)):
        pieces = []
        held_out = "valid" if rng.random() < 0.5 else "test"
        while at + shortest <= end:
            for size in range(rng.integers(shortest, longest + 1), longest + 1):
                piece = slice(at, min(at + size, end))
                books = int(domain[events.items[piece]].sum())
                enough = min(books, piece.stop - at - books) >= least
                if enough and events.times[piece.stop - 1] // DAY - events.times[at] // DAY <= days:
                    pieces.append(piece)
                    break
            at = piece.stop
        for piece in pieces:
            items, times = events.items[piece], events.times[piece]
            split = held_out if piece is pieces[-1] else "train"
            found.append(EventSequence(user, items, domain[items], times // DAY * DAY, split))
    return found


def oracle(world: World) -> Floats:
    """The mean utility of each event, the best score that there is. For tests only."""
    return world.truth.mean
