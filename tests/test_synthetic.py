"""The generated world has the shape that the papers need, and each planted signal can be found.

A probe is the simplest model that could use one signal. It is fitted on the training months and
scored on the test months, in the world as it is and in the world with that signal switched off.
"""

import hashlib
import re
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from reprokit import synthetic, synthetic_media
from reprokit.synthetic import BOOK, DAY, FILM, Config, World
from reprokit.words import RESTAURANT_TYPES

GOOD = ("loved", "wonderful", "excellent", "delighted")
BAD = ("disliked", "tedious", "awful", "bored")
PRICE = (("bargain", "cheap"), ("fair", "about right"), ("overpriced", "expensive"))
MANY = 900  # people in the worlds of the probes: 5,000 test rows, a standard error near 0.008
DEFAULT = Config()


@cache
def world(config: Config = DEFAULT) -> World:
    return synthetic.make_world(config)


@cache
def films(config: Config = DEFAULT):
    """Users, items, liked or not, and split (0 train, 1 valid, 2 test) of the film ratings."""
    rows = synthetic.ratings(world(config))
    months = [np.datetime64(day, "s").astype(int) for day in ("2002-04-01", "2002-09-01")]
    split = np.searchsorted(months, rows.times, side="right")
    return rows.users - 1, rows.items - 1, rows.ratings >= 4, split


def digest(*parts) -> str:
    """A hash of arrays and of nested lists of text."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return state.hexdigest()


def parts(made: World) -> list[str]:
    """A hash of each thing that a world is made of or gives."""
    items = made.items._asdict()
    items.pop("domain")  # the only part without chance
    views = (
        *synthetic.ratings(made, BOOK),
        synthetic_media.reviews(made),
        synthetic_media.images(made),
        synthetic.sequences(made),
        synthetic_media.restaurant_reviews(made),
    )
    return [
        digest(part) for part in (*made.users, *items.values(), *made.events, *made.truth, *views)
    ]


def auc(labels, scores) -> float:
    """The chance that a liked row outscores another one; a tie counts half."""
    good, bad = scores[labels], np.sort(scores[~labels])
    wins = np.searchsorted(bad, good, side="left") + np.searchsorted(bad, good, side="right")
    return wins.mean() / (2 * len(bad))


def rate(ids, liked, train, pull=5.0):
    """Share of likes in training of each id, pulled towards the overall share."""
    mean, size = liked[train].mean(), ids.max() + 1
    likes, seen = np.bincount(ids[train], liked[train], size), np.bincount(ids[train], None, size)
    return ((likes + pull * mean) / (seen + pull))[ids]


def rate_probe(config: Config, which: int) -> float:
    """AUC of the like-rate of users (0) or items (1)."""
    columns = films(config)
    liked, split = columns[2:]
    return auc(liked[split == 2], rate(columns[which], liked, split == 0)[split == 2])


def profile_probe(config: Config, features, groups=None, only=None) -> float:
    """AUC of the likeness of an item to what its user, or the user's group, liked in training.

    features (n_items, k). A like counts for what the item's own like-rate does not explain.
    """
    users, items, liked, split = films(config)
    train, test = split == 0, split == 2
    owners = users if groups is None else groups[users]
    surprise = liked - rate(items, liked, train)
    centred = (features - features.mean(axis=0))[items]
    profile = np.zeros((owners.max() + 1, features.shape[1]))
    np.add.at(profile, owners[train], surprise[train, None] * centred[train])
    if only is not None:
        test = test & only
    return auc(liked[test], (profile[owners] * centred).sum(axis=1)[test])


def genre_features(config: Config):
    ids = world(config).items.genre_ids[: config.n_films]
    return (ids[:, :, None] == np.arange(len(synthetic.GENRES))).sum(axis=1).astype(float)


def word_features(texts):
    """Words of each text, rare ones counting more; not those of one text or of over a fifth."""
    words = [set(re.findall(r"[\w-]+", text)) for text in texts]
    here = np.array([[w in own for w in sorted(set().union(*words))] for own in words], dtype=float)
    here = here[:, (here.sum(axis=0) > 1) & (here.mean(axis=0) < 0.2)]
    weighted = here * -np.log(here.mean(axis=0))
    return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-9)


def colour_features(config: Config):
    """Red against blue, brightness and stripes of each image, from its pixels; 0 without one."""
    made = world(config)
    pixels = synthetic_media.images(made)[: config.n_films].astype(float)
    balance = pixels[:, 0].mean(axis=(1, 2)) - pixels[:, 2].mean(axis=(1, 2))
    looks = np.stack(
        [balance, pixels.mean(axis=(1, 2, 3)), pixels.std(axis=3).mean(axis=(1, 2))], axis=1
    )
    shown = made.items.has_image[: config.n_films]
    looks = (looks - looks[shown].mean(axis=0)) / looks[shown].std(axis=0)
    return np.where(shown[:, None], looks, 0.0)


def last_liked(made: World):
    """The main genre of each event, and of the last event before it that the user liked, or -1."""
    main = made.items.genre_ids[made.events.items, 0]
    before = np.full(len(main), -1)
    for n in range(1, len(main)):
        if made.events.users[n] == made.events.users[n - 1]:
            before[n] = main[n - 1] if made.events.ratings[n - 1] >= 4 else before[n - 1]
    return main, before


# --- the same seed, the same world ---


def test_the_same_seed_gives_the_same_bytes_and_another_seed_changes_every_part():
    first, again = (parts(synthetic.make_world(Config(n_users=60))) for _ in range(2))
    other = parts(synthetic.make_world(Config(n_users=60, seed=1)))
    assert first == again
    assert not set(first) & set(other)


def test_what_is_written_and_shown_does_not_change_what_is_rated():
    made = world()
    other = world(replace(DEFAULT, review_share=0.9, price_share=0.0, image_share=0.3))
    assert digest(*made.events, *made.users) == digest(*other.events, *other.users)
    assert made.items.titles == other.items.titles
    assert synthetic_media.reviews(made) != synthetic_media.reviews(other)


def test_switching_a_signal_off_keeps_people_items_times_and_images():
    made, other = world(), world(replace(DEFAULT, style=0.0))
    assert digest(*made.users, *made.items) == digest(*other.users, *other.items)
    assert digest(made.events.times, synthetic_media.images(made)) == digest(
        other.events.times, synthetic_media.images(other)
    )
    assert (made.events.ratings != other.events.ratings).mean() > 0.1


# --- shapes and shares ---


def test_demographics_have_the_codes_of_movielens():
    users = world().users
    assert set(users.gender) == {"F", "M"}
    assert set(users.age) == {1, 18, 25, 35, 45, 50, 56}
    assert users.occupation.min() == 0 and users.occupation.max() == 20


def test_items_have_distinct_titles_one_to_three_genres_and_an_awkward_title_here_and_there():
    items = world().items
    assert len(set(items.titles)) == len(items.titles) == 350
    assert all(re.fullmatch(r".+ \((19|20)\d\d\)", title) for title in items.titles[:200])
    text = "".join(items.titles)
    assert all(mark in text for mark in ('"', ",", "é"))
    assert {len(names) for names in items.genres} == {1, 2, 3}
    strings = synthetic.genre_strings(world())
    assert all(set(s.split("|")) <= set(synthetic.GENRES) for s in strings[:200])
    assert all(set(s.split("|")) <= set(synthetic.BOOK_GENRES) for s in strings[200:])
    assert all(s.split("|") == sorted(set(s.split("|"))) for s in strings)


def test_title_words_belong_to_one_genre_each():
    words = [w for table in (synthetic.ADJECTIVES, synthetic.NOUNS) for row in table for w in row]
    assert len(words) == len(set(words))


def test_titles_and_tags_speak_of_the_genres_of_their_item():
    items = world().items
    used = set()
    for title, ids, tags in zip(items.titles, items.genre_ids, items.tags, strict=True):
        words, genres = set(re.findall(r"\w+", title)), [g for g in ids if g >= 0]
        assert words & set(synthetic.NOUNS[genres[0]])
        assert any(words & set(synthetic.ADJECTIVES[g]) for g in genres)
        assert all(tag in synthetic.TAGS[g] for tag, g in zip(tags, genres, strict=True))
        used.update(words, tags)
    for table in (synthetic.ADJECTIVES, synthetic.NOUNS, synthetic.TAGS):
        assert np.mean([word in used for row in table for word in row]) > 0.95


def test_descriptions_name_the_people_and_the_tags():
    items = world().items
    for text, people, tags in zip(items.descriptions, items.people, items.tags, strict=True):
        assert all(part in text for part in people + tags)


@pytest.mark.parametrize("seed", range(4))
def test_film_ratings_have_the_shares_of_the_movielens_window(seed):
    config = Config(seed=seed)
    users, items, liked, split = films(config)
    rows, test = synthetic.ratings(world(config)), split == 2
    assert 11_000 < len(liked) < 13_000
    assert 0.50 < liked.mean() < 0.60
    assert all(0.05 < share < 0.35 for share in np.bincount(rows.ratings)[1:] / len(liked))
    assert np.allclose(np.bincount(split) / len(split), [0.65, 0.20, 0.15], atol=0.04)
    assert str(rows.times.min().astype("datetime64[s]")) >= "2001-06-01"
    assert str(rows.times.max().astype("datetime64[s]")) < "2003-02-01"
    known = np.isin(users, users[split == 0]) & np.isin(items, items[split == 0])
    assert 0.15 < 1 - known[test].mean() < 0.35
    assert not np.isin(users[test], users[split == 0]).all()  # people and films are both new
    assert not np.isin(items[test], items[split == 0]).all()
    seconds = rows.users * 10**10 + rows.times
    _, where, count = np.unique(seconds, return_inverse=True, return_counts=True)
    assert 0.05 < (count[where] > 1).mean() < 0.5


def test_files_are_shuffled_within_a_person_and_sorting_by_time_restores_the_order():
    made = world()
    for domain, size in ((FILM, 200), (BOOK, 150)):
        rows = synthetic.ratings(made, domain)
        assert (np.diff(rows.users) >= 0).all()
        assert (np.diff(rows.times)[np.diff(rows.users) == 0] < 0).mean() > 0.4
        order = np.lexsort((rows.events, rows.times, rows.users))
        assert (np.diff(rows.events[order]) > 0).all()
        assert rows.users.min() == 1 and rows.items.min() >= 1 and rows.items.max() <= size
        assert len(np.unique(rows.users * 1000 + rows.items)) == len(rows.users)
        assert (made.events.ratings[rows.events] == rows.ratings).all()
    sizes = [len(synthetic.ratings(made, domain).users) for domain in (FILM, BOOK)]
    assert sum(sizes) == len(made.events.users)


def test_another_time_window_is_kept():
    times = world(Config(n_users=50, start="2017-01-01", end="2018-01-01")).events.times
    days = times.astype("datetime64[s]").astype(str)
    assert min(days) >= "2017-01-01" and "2017-11" < max(days) < "2018-01-01"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": -1.0}, "style must not be negative, got -1.0"),
        ({"review_share": 1.5}, "review_share is a share, at most 1, got 1.5"),
        ({"end": "2001-06-02"}, "the window needs 30 days or more"),
        ({"n_films": 30}, "30 films and 150 books are too few for events_per_user=62"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        synthetic.make_world(replace(DEFAULT, **change))


# --- planted signals ---


@pytest.mark.parametrize("seed", range(4))
def test_the_like_rate_is_a_modest_scorer_and_the_truth_a_good_one(seed):
    config = Config(seed=seed)
    _, _, liked, split = films(config)
    truth = synthetic.oracle(world(config))[synthetic.ratings(world(config)).events]
    assert 0.62 < rate_probe(config, 1) < 0.71
    assert 0.85 < auc(liked[split == 2], truth[split == 2]) < 0.97


def test_the_truth_follows_the_equation_of_the_module_event_by_event():
    made = world()
    users, items, stars, _ = made.events
    main, truth = made.items.genre_ids[:, 0], made.truth
    wish, means = dict.fromkeys(range(300)), []
    for user, item, star in zip(users, items, stars, strict=True):
        met = main[item] == wish[user]
        means.append(truth.static[user, item] + 1.0 * (met - 0.35))  # centred at 0.7 * chain_share
        if met:
            wish[user] = None
        if star >= 4:
            wish[user] = truth.next_genre[main[item]]
    assert np.allclose(truth.mean, means)
    assert (np.diff(stars[np.argsort(truth.utility)]) >= 0).all()
    assert abs((truth.utility - truth.mean).std() - 0.9) < 0.03
    assert set(np.bincount(truth.next_genre)) == {1} and len(truth.next_genre) == 18


def gain_of_a_latent_model(config: Config) -> float:
    """What a rank-2 fit of the residuals adds to user and item rates, in test AUC."""
    users, items, liked, split = films(config)
    train, test = split == 0, split == 2
    odds = [np.log(p / (1 - p)) for p in (rate(ids, liked, train) for ids in (users, items))]
    biases = odds[0] + odds[1]
    left = np.zeros((config.n_users, config.n_films))
    left[users[train], items[train]] = (liked - 1 / (1 + np.exp(-biases)))[train]
    u, s, v = np.linalg.svd(left, full_matrices=False)
    latent = ((u[:, :2] * s[:2]) @ v[:2])[users, items]
    return auc(liked[test], (biases + 8 * latent)[test]) - auc(liked[test], biases[test])


def test_a_latent_model_gains_over_biases_because_tastes_differ():
    config = Config(n_users=MANY)
    alike = replace(config, genre=0.0, demographic=0.0, style=0.0)
    assert gain_of_a_latent_model(config) > 0.03
    assert gain_of_a_latent_model(alike) < 0.005


@pytest.mark.parametrize(
    ("name", "probe", "margin"),
    [
        ("user_bias", lambda c: rate_probe(c, 0), 0.02),
        ("quality", lambda c: rate_probe(c, 1), 0.04),
        ("genre", lambda c: profile_probe(c, genre_features(c)), 0.06),
        ("style", lambda c: profile_probe(c, colour_features(c)), 0.03),
        (
            "demographic",
            lambda c: profile_probe(
                c, genre_features(c), world(c).users.age * 2 + (world(c).users.gender == "F")
            ),
            0.05,
        ),
    ],
)
def test_a_probe_loses_its_auc_when_its_signal_is_switched_off(name, probe, margin):
    config = Config(n_users=MANY)
    on, off = probe(config), probe(replace(config, **{name: 0.0}))
    assert on > 0.53
    assert on - off > margin


@pytest.mark.parametrize("field", ["titles", "descriptions"])
def test_words_tell_who_likes_a_film_never_seen_in_training(field):
    def probe(config: Config) -> float:
        items, split = films(config)[1], films(config)[3]
        new = ~np.isin(items, items[split == 0])
        assert new[split == 2].sum() > 1000
        texts = getattr(world(config).items, field)[: config.n_films]
        return profile_probe(config, word_features(texts), only=new)

    config = Config(n_users=MANY, late_item_share=0.3)
    on, off = probe(config), probe(replace(config, genre=0.0, demographic=0.0))
    assert on - off > 0.05


def test_tastes_carry_over_from_films_to_books():
    def probe(config: Config) -> float:
        made = world(config)
        hot = (made.items.genre_ids[:, :, None] == np.arange(18)).sum(axis=1)
        users, items, liked = made.events.users, made.events.items, made.events.ratings >= 4
        book = made.items.domain[items] == BOOK
        surprise = liked - rate(items, liked, ~book)
        profile = np.zeros((config.n_users, 18))
        np.add.at(
            profile, users[~book], surprise[~book, None] * (hot - hot.mean(axis=0))[items[~book]]
        )
        return auc(liked[book], (profile[users] * hot[items]).sum(axis=1)[book])

    assert probe(DEFAULT) > 0.6
    assert probe(replace(DEFAULT, genre=0.0, demographic=0.0)) < 0.55


def test_images_are_independent_of_genre_and_bright_ones_sell():
    config = Config(n_users=MANY, n_films=1000)
    looks, genres = colour_features(config), genre_features(config)
    correlation = np.corrcoef(looks.T, genres.T)[:3, 3:]
    assert np.abs(correlation).max() < 0.12
    style = world(config).truth.style[: config.n_films]
    shown = world(config).items.has_image[: config.n_films]
    for k in range(3):
        assert np.corrcoef(looks[shown, k], style[shown, k])[0, 1] > 0.95


def test_liking_a_genre_is_followed_by_the_next_one_in_a_fixed_cycle():
    def learned(config: Config) -> int:
        """For how many genres the most common successor is the planted one."""
        main, before = last_liked(world(config))
        counts = np.zeros((18, 18))
        np.add.at(counts, (before[before >= 0], main[before >= 0]), 1)
        return int((counts.argmax(axis=1) == world(config).truth.next_genre).sum())

    assert learned(DEFAULT) == 18
    assert learned(replace(DEFAULT, chain_share=0.0)) <= 4


def test_the_genre_that_follows_the_last_liked_one_is_liked_more():
    def probe(config: Config) -> float:
        main, before = last_liked(world(config))
        some = before >= 0
        follows = main == world(config).truth.next_genre[before]
        return auc((world(config).events.ratings >= 4)[some], follows[some])

    config = Config(n_users=MANY)
    assert probe(config) - probe(replace(config, sequence=0.0)) > 0.03


def test_a_bargain_is_rated_higher_than_an_overpriced_item():
    def gap(config: Config) -> float:
        events = world(config).events
        level = world(config).items.price_level[events.items]
        return events.ratings[level == 0].mean() - events.ratings[level == 2].mean()

    assert gap(DEFAULT) - gap(replace(DEFAULT, price=0.0)) > 0.2


# --- images and reviews ---


def test_images_are_bytes_and_one_in_ten_is_missing():
    pixels, shown = synthetic_media.images(world()), world().items.has_image
    assert pixels.shape == (350, 3, 32, 32) and pixels.dtype == np.uint8
    assert 0.85 < shown.mean() < 0.95
    assert (pixels.reshape(350, -1).any(axis=1) == shown).all()
    assert ((pixels[shown] == 0) | (pixels[shown] == 255)).mean() < 0.05  # hardly any is clipped


def mood(text: str) -> tuple[bool, bool]:
    low = text.lower()
    return any(word in low for word in GOOD), any(word in low for word in BAD)


def price_named(text: str) -> set[int]:
    low = text.lower()
    return {level for level, words in enumerate(PRICE) if any(word in low for word in words)}


def test_reviews_agree_with_the_rating_and_with_the_price():
    made = world()
    texts = synthetic_media.reviews(made)
    rows = [n for n, text in enumerate(texts) if text]
    assert 0.47 < len(rows) / len(texts) < 0.53
    priced = 0
    for n in rows:
        stars, level = made.events.ratings[n], made.items.price_level[made.events.items[n]]
        assert mood(texts[n]) == (stars >= 4, stars <= 2)
        named = price_named(texts[n])
        assert named <= {level}
        priced += len(named)
    assert 0.37 < priced / len(rows) < 0.43


def test_reviews_name_what_this_person_likes_best_or_least_in_the_item():
    made = world()
    for n, text in enumerate(synthetic_media.reviews(made)):
        user, item, stars = (column[n] for column in made.events[:3])
        if not text or stars == 3:
            continue
        ids = made.items.genre_ids[item][: len(made.items.tags[item])]
        tastes = made.truth.genre_taste[user][ids]
        chosen = tastes.argmax() if stars > 3 else tastes.argmin()
        assert made.items.tags[item][chosen] in text


# --- views for single papers ---


def test_sequences_mix_both_domains_and_only_the_last_of_a_person_is_held_out():
    made = world()
    found = synthetic.sequences(made)
    for s in found:
        books = (s.items >= made.config.n_films).sum()
        assert 6 <= len(s.items) <= 15 and min(books, len(s.items) - books) >= 3
        assert len(set(s.items)) == len(s.items) and (s.domains == made.items.domain[s.items]).all()
        assert (np.diff(s.times) >= 0).all() and (s.times % DAY == 0).all()
        assert s.times[-1] - s.times[0] <= 365 * DAY
    last = {s.user: n for n, s in enumerate(found)}
    assert all((s.split == "train") == (n != last[s.user]) for n, s in enumerate(found))
    assert all(a.times[-1] <= b.times[0] for a, b in pairwise(found) if a.user == b.user)
    for split in ("valid", "test"):
        targets = [s.domains[-1] for s in found if s.split == split]
        assert len(targets) > 100 and 0.3 < np.mean(targets) < 0.7
    assert sum(s.split == "train" for s in found) > 800
    seen = [(s.user, item) for s in found for item in s.items]
    assert len(seen) == len(set(seen))  # no event stands in two sequences


def test_restaurant_files_share_restaurants_but_no_people_and_most_ratings_are_high():
    files = synthetic_media.restaurant_reviews(world())
    assert {part: len(rows) for part, rows in files.items()} == {
        "train": 1200,
        "val": 150,
        "test": 150,
    }
    users, places = (
        {part: {row[key] for row in rows} for part, rows in files.items()}
        for key in ("user_id", "business_id")
    )
    assert not users["train"] & users["val"] and not (users["train"] | users["val"]) & users["test"]
    assert len(places["train"] & places["val"]) > 50
    assert np.mean([row["rating"] > 3 for rows in files.values() for row in rows]) >= 0.83
    assert np.mean([row["rating"] > 3 for row in files["train"]]) >= 0.83


def test_restaurant_texts_name_the_type_and_agree_with_rating_and_price():
    made = world()
    rows = [row for part in synthetic_media.restaurant_reviews(made).values() for row in part]
    written = [row for row in rows if row["review_text"]]
    assert 0.01 < 1 - len(written) / len(rows) < 0.06
    for row in written:
        item = int(row["business_id"].removeprefix("place"))
        kind = RESTAURANT_TYPES[made.items.genre_ids[item, 0]]
        assert f"{kind} restaurant" in row["review_text"]
        assert mood(row["review_text"]) == (row["rating"] >= 4, row["rating"] <= 2)
        assert price_named(row["review_text"]) <= {made.items.price_level[item]}
    assert 0.3 < np.mean([len(price_named(row["review_text"])) for row in written]) < 0.5


def test_restaurant_histories_hold_other_reviews_and_at_times_the_review_itself():
    files = synthetic_media.restaurant_reviews(world(), more=0)
    rows = [row for part in files.values() for row in part]
    text = {f"{row['user_id']}_{row['business_id']}": row["review_text"] for row in rows}
    assert len(text) == len(rows)
    own = 0
    for row in rows:
        history = dict(row["history_reviews"])
        assert all(text[key] == value != "" for key, value in history.items())
        assert all(key.startswith(row["user_id"]) for key in history)
        own += f"{row['user_id']}_{row['business_id']}" in history
    assert 0.02 < own / len(rows) < 0.08
    assert 3 < np.mean([len(row["history_reviews"]) for row in rows]) < 4.5


def test_restaurant_histories_also_hold_the_ratings_that_follow_which_are_no_rows():
    made = world()
    plain, files = (synthetic_media.restaurant_reviews(made, more=more) for more in (0, 3))
    assert files == synthetic_media.restaurant_reviews(made)
    ids, extra = set(), {}
    for part, rows in files.items():
        for row, before in zip(rows, plain[part], strict=True):
            ids.add(f"{row['user_id']}_{row['business_id']}")
            known = len(before["history_reviews"])
            assert {**row, "history_reviews": row["history_reviews"][:known]} == before
            added = row["history_reviews"][known:]
            assert extra.setdefault(row["user_id"], added) == added  # the same for all his rows
    assert max(map(len, extra.values())) == 3 and np.mean([*map(len, extra.values())]) > 2.5
    listed = [(user, key, text) for user, added in extra.items() for key, text in added]
    assert not ids & {key for _, key, _ in listed}
    visited = {(f"user{u:05d}", f"place{i:05d}") for u, i in zip(*made.events[:2], strict=True)}
    for user, key, text in listed:
        assert tuple(key.split("_")) in visited and key.startswith(user)
        kind = made.items.genre_ids[int(key[-5:]), 0]
        assert f"{RESTAURANT_TYPES[kind]} restaurant" in text


def test_photos_of_one_restaurant_look_alike_and_are_not_the_same():
    made = world()
    rows = [row for part in synthetic_media.restaurant_reviews(made).values() for row in part]
    pics = [pic for row in rows for pic in row["pics"]]
    assert len(set(pics)) == len(pics) and 1.7 < len(pics) / len(rows) < 2.2
    assert any(not row["pics"] for row in rows)
    places = np.array([int(pic.split("-")[1]) for pic in pics])
    assert places.tolist() == [int(r["business_id"][5:]) for r in rows for _ in r["pics"]]
    photos = synthetic_media.restaurant_photos(made, pics)
    assert len({photo.tobytes() for photo in photos}) == len(pics)
    bright = photos.mean(axis=(1, 2, 3))
    assert np.corrcoef(bright, made.truth.style[places, 1])[0, 1] > 0.95
    for some in (slice(5, 6), slice(60, 70)):  # a photo does not depend on the others
        assert (synthetic_media.restaurant_photos(made, pics[some]) == photos[some]).all()
    assert synthetic_media.restaurant_photos(made, []).shape == (0, 3, 32, 32)
