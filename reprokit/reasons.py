"""Why a user likes or dislikes an item, in words: reference reasons, and what a reason rests on.

No data set holds true reasons (ExplainRec, eq. 2 and 3, needs them for every item of a history and
for every target), so each event has the best there is, and its source is counted:

1. review: of the user's own review of the item, the sentence that names most of its attributes.
2. template: the attributes that the item shares with what the user liked before; for a disliked
   item, with what the user disliked before.
3. plain: the item's main genre, where nothing is shared.

A reason reads the event itself (its label and review) and the history of its row, and nothing that
came later. Attributes are genres, tags and people; names that differ in case alone are one.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from reprokit.feedback import Feedback
from reprokit.lexicon import STOPWORDS, split_sentences, tokens
from reprokit.runs import RequestError

SOURCES = ("review", "template", "plain")
REVISION = 1
"""Of how a reason is found and worded: raised when a change moves one."""
MOST = 3
"""Items in `evidence`."""
CELLS = 1 << 22
"""Entries of the table that `shared` looks attributes up in: it stays in the processor's cache."""


@dataclass
class Reasons:
    """Reasons of N rows, each distinct text once."""

    texts: list[str]
    index: np.ndarray
    """(N,) of each row, its place in `texts`."""
    source: np.ndarray
    """(N,) int8, index into `SOURCES`."""
    counts: dict[str, int]
    """Rows by source."""


def reasons(
    data: Feedback,
    rows: np.ndarray,
    items: np.ndarray | None = None,
    max_words: int = 20,
    history: int = 20,
    facts: int = 3,
) -> Reasons:
    """Why the users of some rows like or dislike an item: its label says which.

    Args:
        rows: (N,) events with a label.
        items: (N,) items in place of the rows' own. A review is of the row's own item alone, so
            none is read then.
        max_words: of a review's sentence; a longer one ends at that word.
        history: so many liked, or disliked, events before the row are compared with the item.
        facts: most attributes in a template.

    Raises ValueError where a row's label is sealed, RequestError where a number is not positive.
    """
    if min(max_words, history, facts) < 1:
        raise RequestError(
            f"max_words {max_words}, history {history} and facts {facts} must be positive"
        )
    rows = np.asarray(rows, np.int64)
    labels = data.labels[rows]
    if (labels < 0).any():
        row = rows[np.argmax(labels < 0)]
        raise ValueError(f"event {row} is sealed: the reason of a test row would tell its label")
    spoken = {}
    if items is None:
        spoken = review_sentences(data, rows, max_words)
    asked = data.items[rows] if items is None else np.asarray(items)
    index, source = np.empty(len(rows), np.int64), np.zeros(len(rows), np.int8)
    places: dict[str, int] = {}
    for at, text in spoken.items():
        index[at] = places.setdefault(text, len(places))
    silent = np.setdiff1d(np.arange(len(rows)), np.fromiter(spoken, np.int64, len(spoken)))
    texts, which, plain = templates(data, rows[silent], asked[silent], history, facts)
    numbers = np.array([places.setdefault(text, len(places)) for text in texts], np.int64)
    index[silent], source[silent] = numbers[which], 1 + plain
    found = np.bincount(source, minlength=len(SOURCES))
    counts = {name: int(n) for name, n in zip(SOURCES, found, strict=True)}
    return Reasons(list(places), index, source, counts)


# --- from reviews -------------------------------------------------------------------------------
def review_sentences(data: Feedback, rows: np.ndarray, max_words: int) -> dict[int, str]:
    """The best sentence of the review of a row, by the row's place; none that names no attribute.

    One turn for each review, as each is another text; rows without one are not looked at.
    """
    if data.reviews is None:
        return {}
    found, words = {}, {}
    for at, row in enumerate(rows.tolist()):
        text = data.reviews[row]
        if not text:
            continue
        item = int(data.items[row])
        if item not in words:
            words[item] = attribute_words(data, item)
        best, matched = best_sentence(text, words[item], max_words)
        if matched:
            found[at] = best
    return found


def attribute_words(data: Feedback, item: int) -> frozenset[str]:
    """The words with content in an item's genres, tags and people, folded.

    Not the word for an item: a review with "film" in it says nothing about a Film-Noir.
    """
    names = (*data.genres[item], *data.tags[item], *data.people[item])
    words = {word for name in names for word in tokens(name) if len(word) > 1}
    return frozenset(words - STOPWORDS - set(tokens(data.item_word)))


def top_sentence(text: str, words: Collection[str], max_words: int | None = None) -> str:
    """The sentence of a text that holds most of some words, the earliest of equals.

    So it is the first sentence where none holds any, and "" for an empty text.

    Args:
        words: in lower case and without accents, as `lexicon.tokens` gives them.
        max_words: sentences are shortened to this before they are compared.
    """
    return best_sentence(text, words, max_words)[0]


def best_sentence(text: str, words: Collection[str], max_words: int | None) -> tuple[str, int]:
    """`top_sentence`, and how many of the words are in it."""
    words = words if isinstance(words, set | frozenset) else set(words)
    best, most = "", -1
    for sentence in split_sentences(text):
        short = sentence if max_words is None else shorten(sentence, max_words)
        matched = len(words.intersection(tokens(short)))
        if matched > most:
            best, most = short, matched
    return best, max(most, 0)


def shorten(text: str, max_words: int) -> str:
    """The first words of a text; where some are cut off, it does not end in a punctuation mark."""
    words = text.split()
    if len(words) <= max_words:
        return " ".join(words)
    return " ".join(words[:max_words]).rstrip(" ,;:.!?-(\"'")


# --- from attributes ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Attributes:
    """Genres, tags and people of all items, numbered from 1 by their names without case."""

    names: list[str]
    """Of each number, as it is first written; "" for 0."""
    of_item: np.ndarray
    """(n_items, A) int32: genres first, then tags, then people, each once; 0 is padding."""
    main: np.ndarray
    """(n_items,) the genre that is named first, 0 where there is none."""


_KNOWN: WeakKeyDictionary[Feedback, Attributes] = WeakKeyDictionary()


def attributes_of(data: Feedback) -> Attributes:
    """The attributes of a data set, numbered once."""
    if data not in _KNOWN:
        numbers: dict[str, int] = {"": 0}
        names = [""]
        lists = []
        for parts in zip(data.genres, data.tags, data.people, strict=True):
            mine: dict[int, None] = {}
            for name in (name for part in parts for name in part if name):
                number = numbers.setdefault(name.casefold(), len(names))
                if number == len(names):
                    names.append(name)
                mine[number] = None
            lists.append(list(mine))
        of_item = np.zeros((len(lists), max(map(len, lists), default=0) + 1), np.int32)
        for item, mine_ in enumerate(lists):
            of_item[item, : len(mine_)] = mine_
        named = np.array([bool(genres and genres[0]) for genres in data.genres], bool)
        _KNOWN[data] = Attributes(names, of_item, np.where(named, of_item[:, 0], 0))
    return _KNOWN[data]


def templates(
    data: Feedback, rows: np.ndarray, items: np.ndarray, history: int, facts: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Reasons from attributes: (distinct texts, (N,) which of them, (N,) whether it is plain)."""
    attributes = attributes_of(data)
    labels = data.labels[rows]
    keys = np.zeros((len(rows), facts + 2), np.int64)  # label, main genre where plain, attributes
    keys[:, 0] = labels
    for label in (0, 1):
        at = np.flatnonzero(labels == label)
        keys[at, 2:] = shared(data, rows[at], items[at], label, history, facts)
    plain = keys[:, 2] == 0
    keys[plain, 1] = attributes.main[items[plain]]
    distinct, which = np.unique(keys, axis=0, return_inverse=True)
    texts = []
    for label, genre, *numbers in distinct.tolist():
        names = [attributes.names[number] for number in numbers if number]
        genre_name = attributes.names[genre]
        texts.append(
            shared_text(bool(label), names)
            if names
            else plain_text(bool(label), genre_name, data.item_word)
        )
    return texts, which.reshape(-1), plain


def shared(
    data: Feedback, rows: np.ndarray, items: np.ndarray, label: int, history: int, facts: int
) -> np.ndarray:
    """The attributes that items share most often with events of a label before the rows.

    Returns (N, facts) attribute numbers, the most often shared first, those shared equally often
    in the order of the item's; 0 where there are no more.
    """
    attributes = attributes_of(data)
    of_item, width = attributes.of_item, attributes.of_item.shape[1]
    found = np.zeros((len(rows), facts), np.int64)
    size = int(np.clip(CELLS // len(attributes.names), 1, 4096))
    # Of a row of the block and an attribute: 1 + its place in the item's list, 0 where not there.
    places = np.zeros((size, len(attributes.names)), np.int16)
    for start in range(0, len(rows), size):
        some = slice(start, start + size)
        near = of_item[items[some]]  # (B, A)
        own = np.arange(len(near))[:, None]
        places[own, near] = np.arange(1, width + 1)
        places[:, 0] = 0  # padding is shared with nobody
        past = data.items_at(data.histories(rows[some], history, label))  # (B, history)
        hits = places[own, of_item[past].reshape(len(near), -1)]
        codes = own * (width + 1) + hits
        times = np.bincount(codes.ravel(), minlength=len(near) * (width + 1))
        times = times.reshape(len(near), width + 1)[:, 1:]  # (B, A)
        order = np.argsort(-times, axis=1, kind="stable")[:, :facts]
        best = np.where(np.take_along_axis(times, order, 1), np.take_along_axis(near, order, 1), 0)
        found[some, : best.shape[1]] = best
        places[own, near] = 0
    return found


def phrases() -> list[str]:
    """The words of the templates, as they stand inside a sentence: for a tokenizer of our own."""
    shared_words = [shared_text(liked, [""]).rstrip() for liked in (True, False)]
    plain_words = [plain_text(True, "x", "").partition(" x")[0], plain_text(False, "x", "")[5:]]
    return [f" {text.strip()}" for text in (*shared_words, *plain_words)]


def shared_text(liked: bool, names: list[str]) -> str:
    joined = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return f"you like {joined}" if liked else f"you do not care for {joined}"


def plain_text(liked: bool, genre: str, item_word: str) -> str:
    if not genre:
        return f"you may like this {item_word}" if liked else f"this {item_word} is not for you"
    article = "an" if genre[0].lower() in "aeiou" else "a"
    what = f"{article} {genre} {item_word}"
    return f"you may like {what}" if liked else f"{what} is not for you"


# --- what a reason rests on ---------------------------------------------------------------------
def evidence(data: Feedback, row: int, item: int, text: str) -> dict[str, Any]:
    """What a reason for an item rests on: {"attributes", "liked", "disliked"}.

    "attributes" are those of the item that the text names, as whole words in any case; "liked" and
    "disliked" are titles of items in the row's history that have one of them, at most three each,
    the most recent first.
    """
    attributes = attributes_of(data)
    numbers = [n for n in attributes.of_item[item].tolist() if n]
    named = [n for n in numbers if names_it(text, attributes.names[n])]
    past = np.arange(data.starts[data.users[row]], data.history_end[row])[::-1]
    has = np.isin(attributes.of_item[data.items[past]], named).any(1)
    found: dict[str, Any] = {"attributes": [attributes.names[n] for n in named]}
    for key, label in (("liked", 1), ("disliked", 0)):
        events = past[has & (data.labels[past] == label)][:MOST]
        found[key] = [data.titles[at] for at in data.items[events].tolist()]
    return found


def names_it(text: str, name: str) -> bool:
    """Whether a text holds a name as whole words, in any case."""
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE))
