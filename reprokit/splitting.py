"""Splits of ratings: by user, cold start, across two domains. Feedback in, Feedback out.

Publishers ship no split of ExplainRec's data, and the paper (section IV.A) says 80/10/10, "fewer
than 5 interactions" and "overlapping users" without a recipe; these are ours. None reads a label of
a held-out row. What is dropped is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.datasets import DataError
from reprokit.feedback import GROUPS, SPLITS, Feedback, history_ends, paired
from reprokit.runs import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

TRAIN_PERCENT, VALID_PERCENT = 80, 10
"""Of a user's events; the rest is the test split."""
LEAST_EVENTS = 3
"""A user with fewer has no held-out row."""
TRAIN, VALID, TEST, SUPPORT = range(len(SPLITS))
NEW_USERS, NEW_ITEMS, CROSS = (GROUPS.index(name) for name in ("new_users", "new_items", "cross"))


def starts_of(users: Any, n_users: int) -> Ints:
    """(n_users + 1,): where the events of each user begin, users ascending."""
    return np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n_users))])


def by_time(data: Feedback) -> Ints:
    """The events sorted by user, then time, then their order; (N,)."""
    first = int(data.times.min(initial=0))
    span = int(data.times.max(initial=0)) - first + 1
    return np.argsort(paired(data.users, data.times - first, span), kind="stable")


def taken(data: Feedback, events: Ints, split: Any, group: Any = 0) -> Feedback:
    """The same users and items with these events alone, and these splits and groups of them.

    They are put in the order that Feedback asks for: by user, and of a user training or support
    first, then validation, then test; within it as given.
    """
    stage = np.array([0, 1, 2, 0], np.int64)[split]  # support stands with training
    order = np.argsort(paired(data.users[events], stage, 3), kind="stable")
    events, split = events[order], split[order].astype(np.int8)
    users = data.users[events]
    starts = starts_of(users, data.n_users)
    reviews = data.reviews
    return replace(
        data,
        users=users,
        items=data.items[events],
        ratings=data.ratings[events],
        times=data.times[events],
        labels=data.labels[events],
        split=split,
        group=np.broadcast_to(np.asarray(group, np.int8), order.shape)[order],
        starts=starts,
        history_end=history_ends(users, split, starts),
        reviews=reviews and [reviews[event] for event in events.tolist()],
    )


def part(data: Feedback, keep: NDArray[np.bool_]) -> Feedback:
    """The events where `keep` (N,) is true, all of them for training, with the users and items that
    occur in them alone, numbered anew from 1."""
    events = by_time(data)
    events = events[keep[events]]
    data = taken(data, events, np.zeros(len(events), np.int8))
    users, items = (_occurring(codes) for codes in (data.users, data.items))
    at = items.tolist()
    pictures: Any = data.pictures
    if len(pictures):
        pixels = isinstance(pictures, np.ndarray)
        pictures = pictures[items] if pixels else [pictures[i] for i in at]
    return replace(
        data,
        users=np.searchsorted(users, data.users).astype(np.int32),
        items=np.searchsorted(items, data.items).astype(np.int32),
        starts=np.concatenate([data.starts[users], data.starts[-1:]]),
        user_ids=[data.user_ids[user] for user in users.tolist()],
        item_ids=[data.item_ids[i] for i in at],
        titles=[data.titles[i] for i in at],
        genres=[data.genres[i] for i in at],
        tags=[data.tags[i] for i in at],
        people=[data.people[i] for i in at],
        descriptions=[data.descriptions[i] for i in at],
        domain=data.domain[items],
        demographics={name: codes[users] for name, codes in data.demographics.items()},
        pictures=pictures,
        has_picture=data.has_picture[items] if len(data.has_picture) else data.has_picture,
    )


def _occurring(codes: Any) -> Ints:
    """The codes that occur, ascending, behind the padding 0."""
    seen = np.bincount(codes, minlength=1) > 0
    seen[0] = True
    return np.flatnonzero(seen)


# --- by user ------------------------------------------------------------------------------------
def split_by_user(data: Feedback, how: str = "time", seed: int = 0) -> Feedback:
    """80/10/10 of each user's n events: floor(0.8 n), at least one, then up to floor(0.9 n).

    `how`: "time", the earliest for training and the latest for the test; or "random", drawn with
    the seed. Then the history of a held-out row still holds its user's training events (and of a
    test row the validation events), but some are later than the row: the paper says only
    "standard 80/10/10". Users with fewer than three events are all training.
    """
    if how not in ("time", "random"):
        raise RequestError(f"a split is by 'time' or 'random', not '{how}'")
    n = np.diff(data.starts)
    trained = np.maximum(1, n * TRAIN_PERCENT // 100)
    held = np.maximum(trained, n * (TRAIN_PERCENT + VALID_PERCENT) // 100)
    few = n < LEAST_EVENTS
    trained, held = np.where(few, n, trained), np.where(few, n, held)
    sizes = np.stack([trained, held - trained, n - held], axis=1)  # (n_users, 3)
    split = np.repeat(np.tile(np.arange(3, dtype=np.int8), len(n)), sizes.ravel())
    if how == "time":
        later = data.times[1:] >= data.times[:-1]
        if not (later | (data.users[1:] != data.users[:-1])).all():
            return taken(data, by_time(data), split)
        ends = history_ends(data.users, split, data.starts)
        return replace(data, split=split, group=np.zeros(len(data), np.int8), history_end=ends)
    draws = np.random.default_rng(seed).integers(0, 1 << 32, len(data))
    drawn = np.empty_like(split)
    drawn[np.argsort((data.users.astype(np.int64) << 32) | draws, kind="stable")] = split
    events = by_time(data)
    return taken(data, events, drawn[events])


# --- cold start ---------------------------------------------------------------------------------
def cold_start(data: Feedback, share: float = 0.1, most: int = 4, seed: int = 0) -> Feedback:
    """Held-out rows of new users and new items alone, each with `most` training events or fewer.

    Two disjoint sets of users, of `share` each, are new: one in validation, one in the test. Of
    each only the first k events are training, k drawn from 0 to `most`; all later ones are held
    out, whatever split `data` gave them. A `share` of the items that have training events is new:
    the earliest k of these are kept, and held-out rows of ordinary users on them stay in their
    split. The same items are new in validation and test. Held-out rows of ordinary users on
    ordinary items and all rows of a new user on a new item are dropped.
    """
    if not 0 < share < 0.5 or most < 0:
        raise RequestError(f"cold start: share {share} of (0, 0.5), most {most} of 0 or more")
    rng = np.random.default_rng(seed)
    present = np.flatnonzero(np.diff(data.starts))
    size = max(1, int(share * len(present)))
    drawn = rng.permutation(present)
    role = np.zeros(data.n_users, np.int8)  # the split of a new user's held-out rows
    role[drawn[:size]], role[drawn[size : 2 * size]] = VALID, TEST
    trained = np.flatnonzero(data.item_counts)
    is_new = np.zeros(data.n_items, bool)
    is_new[rng.permutation(trained)[: max(1, int(share * len(trained)))]] = True
    user_most = rng.integers(0, most + 1, data.n_users)
    item_most = rng.integers(0, most + 1, data.n_items)

    order = by_time(data)
    users, items, split = data.users[order], data.items[order], data.split[order].copy()
    of_new, on_new = role[users] > 0, is_new[items]
    group = np.zeros(len(order), np.int8)

    mine = np.flatnonzero(of_new & ~on_new)
    later = _rank(users[mine]) >= user_most[users[mine]]
    split[mine], group[mine] = np.where(later, role[users[mine]], TRAIN), later * NEW_USERS
    keep = ~of_new & (split == TRAIN) & ~on_new
    keep[mine] = True
    theirs = np.flatnonzero(~of_new & on_new & (split == TRAIN))
    theirs = theirs[np.lexsort((data.times[order[theirs]], items[theirs]))]
    keep[theirs[_rank(items[theirs]) < item_most[items[theirs]]]] = True
    fresh = ~of_new & on_new & (split != TRAIN)
    group[fresh], keep[fresh] = NEW_ITEMS, True

    supported = np.bincount(users[mine[~later]], minlength=data.n_users)[role > 0]
    counts = {
        "valid new users": int((role == VALID).sum()),
        "test new users": int((role == TEST).sum()),
        "new items": int(is_new.sum()),
        "rows of new users on new items, dropped": int((of_new & on_new).sum()),
        "training events of new items, dropped": int((~keep[theirs]).sum()),
        "held-out rows of ordinary users on ordinary items, dropped": int(
            (~of_new & ~on_new & (split != TRAIN)).sum()
        ),
        **_support_counts("new users", supported, most),
    }
    data = taken(data, order[keep], split[keep], group[keep])
    return replace(data, counts={**data.counts, **counts})


def _rank(codes: Any) -> Ints:
    """How many entries of the same code stand before each; equal codes stand together."""
    n = len(codes)
    fresh = np.ones(n, bool)
    fresh[1:] = codes[1:] != codes[:-1]
    return np.arange(n) - np.maximum.accumulate(np.where(fresh, np.arange(n), 0))


def _support_counts(who: str, sizes: Ints, most: int) -> dict[str, int]:
    found = np.bincount(sizes, minlength=most + 1)
    return {f"{who} with {k} support events": int(n) for k, n in enumerate(found)}


# --- across domains -----------------------------------------------------------------------------
def cross_domain(
    source: Feedback, target: Feedback, support: int = 4, most_rows: int = 20
) -> Feedback:
    """Train and choose on one domain, test on another that shares no user and no item with it.

    Training and validation rows are the source's. Of each target user the first `support` events
    are read as history and never trained on, the next at most `most_rows` are the test rows; later
    ones and the source's test rows are dropped. Target users and items are numbered behind the
    source's; items are called what the source calls them.

    Raises DataError where the two share an id.
    """
    for what, ids, others in (
        ("user", source.user_ids, target.user_ids),
        ("item", source.item_ids, target.item_ids),
    ):
        if shared := set(ids[1:]) & set(others[1:]):
            raise DataError(f"{source.name} and {target.name}: both have {what} {min(shared)}")
    kept = source.split < TEST
    ours = np.flatnonzero(kept)
    order = by_time(target)
    rank = _rank(target.users[order])
    near = rank < support + most_rows
    theirs, rank = order[near], rank[near]
    supported = np.minimum(support, np.diff(target.starts)[1:])
    counts = {
        "source test rows, dropped": int((~kept).sum()),
        "target users": target.n_users - 1,
        "target items": target.n_items - 1,
        "target events after the test rows, dropped": int((~near).sum()),
        **_support_counts("target users", supported, support),
    }
    both = _joined(source, target)
    events = np.concatenate([ours, theirs + len(source)])
    split = np.concatenate([source.split[ours], np.where(rank < support, SUPPORT, TEST)])
    group = np.where(split == TEST, CROSS, 0)
    return replace(taken(both, events, split, group), counts={**both.counts, **counts})


def _joined(source: Feedback, target: Feedback) -> Feedback:
    """All events of both, the target's users and items numbered behind the source's."""
    n_users, n_items = source.n_users - 1, source.n_items - 1

    def of_events(name: str, shift: int = 0) -> Any:
        return np.concatenate([getattr(source, name), getattr(target, name) + shift])

    def of_items(name: str) -> Any:
        return [*getattr(source, name), *getattr(target, name)[1:]]

    names = source.demographics.keys() | target.demographics.keys()
    reviews = None
    if source.reviews is not None or target.reviews is not None:
        reviews = [text for data in (source, target) for text in data.reviews or [""] * len(data)]
    return replace(
        source,
        users=of_events("users", n_users),
        items=of_events("items", n_items),
        ratings=of_events("ratings"),
        times=of_events("times"),
        labels=of_events("labels"),
        split=of_events("split"),
        group=of_events("group"),
        starts=np.concatenate([source.starts[:-1], target.starts[1:] + len(source)]),
        history_end=of_events("history_end"),
        user_ids=[*source.user_ids, *target.user_ids[1:]],
        item_ids=of_items("item_ids"),
        titles=of_items("titles"),
        genres=of_items("genres"),
        tags=of_items("tags"),
        people=of_items("people"),
        descriptions=of_items("descriptions"),
        domain=np.repeat(np.array([0, 1], np.int8), [n_items + 1, target.n_items - 1]),
        demographics={
            name: np.concatenate([_codes(source, name), _codes(target, name)[1:]])
            for name in sorted(names)
        },
        reviews=reviews,
        pictures=_both_pictures(source, target),
        has_picture=np.concatenate([_pictured(source), _pictured(target)[1:]]),
        counts=source.counts | {f"target: {name}": n for name, n in target.counts.items()},
    )


def _codes(data: Feedback, name: str) -> Any:
    return data.demographics.get(name, np.full(data.n_users, -1, np.int16))


def _pictured(data: Feedback) -> Any:
    return data.has_picture if len(data.has_picture) else np.zeros(data.n_items, bool)


def _both_pictures(source: Feedback, target: Feedback) -> Any:
    """Pixels where both have pixels, else files."""
    if isinstance(source.pictures, np.ndarray) and isinstance(target.pictures, np.ndarray):
        return np.concatenate([source.pictures, target.pictures[1:]])
    both: list[Sequence[Any]] = []
    for data in (source, target):
        if isinstance(data.pictures, np.ndarray):
            raise DataError(f"{data.name} has pixels, the other domain files: not to be joined")
        both.append(data.pictures if len(data.pictures) else [None] * data.n_items)
    return [*both[0], *both[1][1:]]


def genre_map(data: Feedback) -> dict[str, str]:
    """For each genre of the target domain the source genre that it stands for.

    A name that both domains have stands for itself. Another stands for the genre whose items'
    titles and descriptions, taken as one text, are nearest in cosine of their TF-IDF weights; it is
    left out where it shares no word with any. No rating is read.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    codes: dict[tuple[int, str], int] = {}  # domain and name
    pairs = [
        (codes.setdefault((int(domain), name), len(codes)), item)
        for item, (domain, names) in enumerate(zip(data.domain, data.genres, strict=True))
        for name in names
    ]
    ours = {name: at for (domain, name), at in codes.items() if domain == 0}
    theirs = {name: at for (domain, name), at in codes.items() if domain == 1}
    found = {name: name for name in theirs if name in ours}
    rest = [name for name in theirs if name not in ours]
    texts = [f"{a} {b}" for a, b in zip(data.titles, data.descriptions, strict=True)]
    counter = CountVectorizer(token_pattern=r"[^\W\d_]{3,}", stop_words="english")
    if not rest or not ours:
        return found
    try:
        words = counter.fit_transform(texts)
    except ValueError:  # no word at all
        return found
    rows, columns = np.array(pairs).T
    member = csr_matrix((np.ones(len(pairs)), (rows, columns)), (len(codes), data.n_items))
    weights = TfidfTransformer().fit_transform(member @ words)  # unit rows
    names = sorted(ours)
    known = weights[[ours[name] for name in names]]
    near = (weights[[theirs[name] for name in rest]] @ known.T).toarray()
    near = near.round(9)  # so that rounding never decides between equals
    return found | {
        name: names[int(row.argmax())] for name, row in zip(rest, near, strict=True) if row.any()
    }


def pseudo_users(data: Feedback, most: int = 20) -> Feedback:
    """A cross-domain set in which target users get an invented history in the source domain.

    Synthetic: the history of each target user begins with copies of the last at most `most`
    training events of the source user whose liked genres are nearest, in cosine, to those of the
    target user's liked support events (`genre_map` translates). No rating of a test row is read.
    Copies have split "support" and are not dated after the user's first own event. Users with no
    liked support event of a known genre stay as they are.
    """
    profiles = _liked_genres(data)
    has_own = np.bincount(data.users[data.split == SUPPORT], minlength=data.n_users) > 0
    liking = profiles.any(axis=1)
    donors = np.flatnonzero(liking & ~has_own & (data.user_counts > 0))
    takers = np.flatnonzero(liking & has_own)
    if not len(donors):
        raise DataError(f"{data.name}: no source user likes a genre")
    chosen = donors[_nearest(profiles[takers], profiles[donors])]
    sizes = np.minimum(most, data.user_counts[chosen])
    ends = data.starts[chosen] + data.user_counts[chosen]  # training events stand first
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    copied = np.repeat(ends - sizes, sizes) + within
    users = np.repeat(takers, sizes).astype(np.int32)
    first = data.times[data.starts[users]]
    split = np.full(len(copied), SUPPORT, np.int8)
    longer = replace(
        data,
        users=np.concatenate([users, data.users]),  # copies stand before a user's own events
        items=np.concatenate([data.items[copied], data.items]),
        ratings=np.concatenate([data.ratings[copied], data.ratings]),
        times=np.concatenate([np.minimum(data.times[copied], first), data.times]),
        labels=np.concatenate([data.labels[copied], data.labels]),
        reviews=data.reviews and [*(data.reviews[e] for e in copied.tolist()), *data.reviews],
    )
    counts = {
        "synthetic: target users with an invented history": len(takers),
        "synthetic: copied support events": len(copied),
        "target users without one, no genre liked": int(has_own.sum()) - len(takers),
    }
    made = taken(
        longer,
        np.arange(len(longer.users)),
        np.concatenate([split, data.split]),
        np.concatenate([np.zeros(len(copied), np.int8), data.group]),
    )
    return replace(made, counts={**data.counts, **counts})


def _liked_genres(data: Feedback) -> NDArray[np.float32]:
    """How often each user liked each source genre in training and support events: (n_users, G)."""
    stands = genre_map(data)
    ours = [names for names, domain in zip(data.genres, data.domain, strict=True) if not domain]
    number = {
        name: at for at, name in enumerate(sorted({name for names in ours for name in names}))
    }
    of_items = np.zeros((data.n_items, len(number)), np.float32)
    for item, genres in enumerate(data.genres):
        known = {stands.get(name, "") for name in genres} if data.domain[item] else set(genres)
        of_items[item, [number[name] for name in known if name in number]] = 1
    liked = np.flatnonzero((data.labels == 1) & np.isin(data.split, (TRAIN, SUPPORT)))
    users, items = data.users[liked], data.items[liked]
    profiles = np.zeros((data.n_users, len(number)), np.float32)
    for genre in range(len(number)):
        profiles[:, genre] = np.bincount(users, of_items[items, genre], data.n_users)
    return profiles


def _nearest(of: NDArray[np.float32], among: NDArray[np.float32], block: int = 256) -> Ints:
    """For each row of `of` the row of `among` with the largest cosine, of equals the first."""
    unit = among / np.linalg.norm(among, axis=1, keepdims=True)
    distinct, back = np.unique(of, axis=0, return_inverse=True)
    distinct /= np.linalg.norm(distinct, axis=1, keepdims=True)
    found = [
        (distinct[at : at + block] @ unit.T).round(5).argmax(axis=1)
        for at in range(0, len(distinct), block)
    ]
    return np.concatenate(found)[back.ravel()] if found else np.empty(0, np.int64)
