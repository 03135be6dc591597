"""Reasons rest on the user's own review or past, name what is shared, and never look ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reprokit.reasons
from reprokit.feedback import SPLITS, Feedback, history_ends
from reprokit.reasons import (
    SOURCES,
    attribute_words,
    evidence,
    reasons,
    shorten,
    top_sentence,
)
from reprokit.runs import RequestError

GENRES = ("Action", "Drama", "Romance", "Film-Noir")
TAGS = ("car chases", "twists", "action", "slow burn")
PEOPLE = ("Ana Kovac", "Liam Osei")


def feedback(events: list[tuple[int, int, int, str]], **changes: Any) -> Feedback:
    """Data of events (user, item, label, split), of each user in the order of time."""
    events = sorted(events, key=lambda event: event[0])
    users, items, labels = (np.array([event[k] for event in events]) for k in range(3))
    split = np.array([SPLITS.index(event[3]) for event in events], np.int8)
    n_users, n_items = int(users.max()) + 1, changes.pop("n_items", int(items.max()) + 1)
    starts = np.searchsorted(users, np.arange(n_users + 1))
    numbers = np.arange(len(events))
    fields: dict[str, Any] = {
        "name": "toy",
        "users": users.astype(np.int32),
        "items": items.astype(np.int32),
        "ratings": np.where(labels == 1, 5, 2).astype(np.float32),
        "times": 1_000_000_000 + 86_400 * numbers,
        "labels": labels.astype(np.int8),
        "split": split,
        "group": np.zeros(len(events), np.int8),
        "starts": starts,
        "history_end": history_ends(users, split, starts),
        "user_ids": [f"u{user}" for user in range(n_users)],
        "item_ids": [f"i{item}" for item in range(n_items)],
        "titles": ["", *(f"Title {item}" for item in range(1, n_items))],
        "genres": [()] * n_items,
        "tags": [()] * n_items,
        "people": [()] * n_items,
        "descriptions": [""] * n_items,
        "domain": np.zeros(n_items, np.int8),
        "demographics": {},
    }
    return Feedback(**{**fields, **changes})


def some(rng: np.random.Generator, names: tuple[str, ...], most: int) -> tuple[str, ...]:
    return tuple(names[k] for k in rng.permutation(len(names))[: rng.integers(0, most + 1)])


def world(seed: int, n_users: int = 6, n_items: int = 12, reviews: bool = True) -> Feedback:
    """Random events in all splits; every sentence of a review holds the number of its event."""
    rng = np.random.default_rng(seed)
    events = []
    for user in range(1, n_users + 1):
        n = int(rng.integers(0, min(12, n_items)))
        parts = np.sort(rng.choice([0, 0, 0, 0, 1, 2], n))
        for part, item in zip(parts, rng.permutation(n_items - 1)[:n] + 1, strict=True):
            events.append((user, int(item), int(rng.random() < 0.6), SPLITS[part]))
    events.append((n_users + 1, 1, 1, "support"))
    events.append((n_users + 1, 2, 1, "test"))
    words = (*GENRES, *TAGS, *PEOPLE, "nothing", "seats")
    texts = []
    for event in range(len(events)):
        said = [f"Of {words[rng.integers(len(words))]} e{event}s{k}." for k in range(3)]
        texts.append(" ".join(said) if rng.random() < 0.7 else "")
    data = feedback(
        events,
        n_items=n_items,
        genres=[(), *(some(rng, GENRES, 3) for _ in range(n_items - 1))],
        tags=[(), *(some(rng, TAGS, 3) for _ in range(n_items - 1))],
        people=[(), *(some(rng, PEOPLE, 1) for _ in range(n_items - 1))],
        reviews=texts if reviews else None,
    )
    days = rng.choice([0, 3, 10, 40, 200, 565], len(events))  # ties, and a week, month, year apart
    return replace(data, times=10**9 + 86_400 * days)


def said(data: Feedback, rows: Any, **options: Any) -> list[str]:
    found = reasons(data, np.asarray(rows), **options)
    return [found.texts[k] for k in found.index]


# --- the reference: one row at a time -----------------------------------------------------------
def plain_reason(data: Feedback, row: int, item: int, history: int, read: bool) -> tuple[str, str]:
    """(text, source) by the definition."""
    label = data.labels[row]
    if read and data.reviews is not None and data.reviews[row]:
        words = attribute_words(data, item)
        sentences = [part.strip() + "." for part in data.reviews[row].split(".") if part.strip()]
        split = [s.lower().replace(".", " ").replace("-", " ").split() for s in sentences]
        hits = [len(words.intersection(parts)) for parts in split]
        if max(hits) > 0:
            return sentences[hits.index(max(hits))], "review"
    past = [e for e in range(data.starts[data.users[row]], data.history_end[row])]
    past = [e for e in past if data.labels[e] == label][-history:]

    def names(item: int) -> list[str]:
        every = (*data.genres[item], *data.tags[item], *data.people[item])
        return list(dict.fromkeys(name.casefold() for name in every))

    times = {name: sum(name in names(data.items[e]) for e in past) for name in names(item)}
    best = sorted((n for n in times if times[n]), key=lambda n: -times[n])[:3]
    if best:
        joined = best[0] if len(best) == 1 else ", ".join(best[:-1]) + " and " + best[-1]
        return ("you like " if label else "you do not care for ") + joined, "template"
    genre = data.genres[item][0] if data.genres[item] else ""
    if not genre:
        return ("you may like this film" if label else "this film is not for you"), "plain"
    what = ("an " if genre[0] in "AEIOU" else "a ") + genre + " film"
    return (f"you may like {what}" if label else f"{what} is not for you"), "plain"


@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_reasons_equal_a_loop_over_rows(seed: int, own: bool, history: int) -> None:
    data = world(seed)
    rows = np.random.default_rng(seed).permutation(len(data))
    items = data.items[rows]
    if not own:
        items = np.random.default_rng(seed + 1).integers(1, data.n_items, len(rows))
    found = reasons(data, rows, None if own else items, history=history)
    expected = [
        plain_reason(data, row, item, history, own) for row, item in zip(rows, items, strict=True)
    ]
    texts = [found.texts[k].casefold() for k in found.index]
    assert texts == [text.casefold() for text, _ in expected]
    assert [SOURCES[k] for k in found.source] == [source for _, source in expected]
    sources = [source for _, source in expected]
    assert found.counts == {name: sources.count(name) for name in SOURCES}
    assert len(set(found.texts)) == len(found.texts)


def test_the_size_of_blocks_changes_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    data = world(1, n_users=20, reviews=False)
    rows = np.random.default_rng(1).permutation(len(data))
    whole = said(data, rows)
    monkeypatch.setattr(reprokit.reasons, "CELLS", 20)  # two rows at a time
    assert said(data, rows) == whole


def test_a_reason_names_what_is_shared_most_often_and_the_label_decides_its_polarity() -> None:
    past = [(1, 1, 1, "train"), (1, 2, 1, "train"), (1, 3, 0, "train"), (1, 4, 1, "train")]
    genres = [(), ("Action",), ("Action", "Drama"), ("Romance",), ("Drama", "Action")]
    data = feedback(
        [*past, (1, 5, 0, "valid"), (1, 6, 1, "valid"), (1, 7, 1, "test")],
        genres=[*genres, ("Romance", "Action"), ("Drama",), ("War",)],
        tags=[(), (), (), (), (), ("car chases",), (), ()],
        people=[(), ("Ana Kovac",), ("Ana Kovac",), (), ("Ana Kovac",), (), ("ana kovac",), ()],
    )
    assert said(data, np.arange(7)) == [
        "you may like an Action film",
        "you like Action and Ana Kovac",
        "a Romance film is not for you",
        "you like Action, Ana Kovac and Drama",  # twice, twice, once
        "you do not care for Romance",
        "you like Ana Kovac and Drama",  # three times, twice
        "you may like a War film",
    ]
    assert said(data, [5], items=np.array([3])) == ["you may like a Romance film"]
    assert said(data, [5], items=np.array([1]), history=1) == ["you like Action and Ana Kovac"]


def test_an_item_without_genres_is_called_by_its_word() -> None:
    data = feedback([(1, 1, 1, "train"), (1, 2, 0, "train")], item_word="book")
    assert said(data, [0, 1]) == ["you may like this book", "this book is not for you"]


def test_the_sentence_of_a_review_that_names_most_is_shortened_at_a_word() -> None:
    text = "I watched it twice. Great car chases, and the drama! The drama of car chases again."
    data = feedback(
        [(1, 1, 1, "train"), (1, 2, 1, "train")],
        genres=[(), ("Drama",), ("Drama",)],
        tags=[(), ("car chases",), ()],
        reviews=[text, "A film without anything."],
    )
    assert said(data, [0]) == ["Great car chases, and the drama!"]
    assert said(data, [0], max_words=3) == ["Great car chases"]
    found = reasons(data, np.arange(2))
    assert found.counts == {"review": 1, "template": 1, "plain": 0}
    assert said(data, [1]) == ["you like Drama"]  # "film" is what all of them are
    assert said(data, [0], items=np.array([1])) == ["you may like a Drama film"]  # no review read


def test_a_sentence_is_judged_by_what_is_left_of_it() -> None:
    text = "one two three four twist. five."
    assert top_sentence(text, {"twist"}) == "one two three four twist."
    assert top_sentence(text, {"twist", "five"}, max_words=2) == "five."
    assert top_sentence("First. Second.", {"absent"}) == "First."
    assert top_sentence("", {"absent"}) == ""
    assert shorten("a fine, old song", 2) == "a fine"


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_no_reason_of_sealed_data_holds_a_sentence_of_a_test_review(seed: int) -> None:
    data = world(seed)
    sealed = data.sealed()
    test = data.rows("test")
    open_rows = np.flatnonzero(data.split != SPLITS.index("test"))
    rng = np.random.default_rng(seed)
    texts = said(sealed, open_rows)
    texts += said(sealed, open_rows, items=rng.integers(1, data.n_items, len(open_rows)))
    marks = {f"e{event}s{k}." for event in test for k in range(3)}
    assert not any(mark in text.split() for text in texts for mark in marks)
    spoken = [text for text in said(data, test) if text.startswith("Of ")]
    assert all(any(mark in text for mark in marks) for text in spoken)  # the test can fail
    for row in test:
        with pytest.raises(ValueError, match=f"event {row} is sealed"):
            reasons(sealed, np.array([row]))


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_nothing_later_and_nothing_of_the_test_split_moves_a_reason(seed: int) -> None:
    data = world(seed)
    rng = np.random.default_rng(seed)
    row = int(rng.integers(len(data)))
    others = np.arange(len(data)) != row
    in_past = np.zeros(len(data), bool)
    in_past[data.starts[data.users[row]] : data.history_end[row]] = True
    changes = others & ~in_past  # later events, other users' events, all other test events
    assert changes[data.rows("test")].sum() >= len(data.rows("test")) - 1
    assert data.reviews is not None
    changed = replace(
        data,
        labels=np.where(changes, 1 - data.labels, data.labels).astype(np.int8),
        ratings=np.where(changes, 7 - data.ratings, data.ratings),
        reviews=[
            "Of Action and Drama." if change else text
            for change, text in zip(changes, data.reviews, strict=True)
        ],
    )
    items = rng.integers(1, data.n_items, 1)
    assert said(data, [row]) == said(changed, [row])
    assert said(data, [row], items=items) == said(changed, [row], items=items)
    text = "Action, Drama, twists and Ana Kovac"
    item = int(items[0])
    assert evidence(data, row, item, text) == evidence(changed, row, item, text)


def test_evidence_names_attributes_as_whole_words_and_the_latest_items_that_have_them() -> None:
    events = [(1, item, int(item != 2), "train") for item in (1, 2, 3, 4, 5)]
    genres = [(), ("War",), ("War",), ("War",), ("Drama",), ("War",), ("War", "Art", "Drama")]
    data = feedback([*events, (1, 6, 1, "test")], genres=genres)
    found = evidence(data.sealed(), 5, 6, "you like WAR, for its warmth and artists")
    assert found == {
        "attributes": ["War"],
        "liked": ["Title 5", "Title 3", "Title 1"],
        "disliked": ["Title 2"],
    }
    nothing = {"attributes": [], "liked": [], "disliked": []}
    assert evidence(data, 5, 6, "you like songs") == nothing
    assert evidence(data, 0, 1, "War")["liked"] == []  # nothing was before


def test_no_rows_have_no_reasons_and_wrong_lengths_are_refused() -> None:
    data = world(0)
    empty = reasons(data, np.empty(0, np.int64))
    assert (empty.texts, len(empty.index), sum(empty.counts.values())) == ([], 0, 0)
    with pytest.raises(RequestError, match="max_words 0"):
        reasons(data, np.array([0]), max_words=0)
