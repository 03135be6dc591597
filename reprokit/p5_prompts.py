"""P5's prompts: numbers in ids, the examples of each family, and how texts become tokens.

Importing this module loads no torch. Shapes: R examples, B rows of a batch, P pieces of a row, T
tokens, A tokens of an answer, C candidates.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.feedback import Feedback
from reprokit.recommending import Pairs, spans
from reprokit.runs import RequestError, Unavailable
from reprokit.synthetic import stream

if TYPE_CHECKING:
    from torch import Tensor

    from reprokit.p5 import P5Settings

FAMILIES = ("rating", "sequential", "direct", "list", "explanation", "review")
# A word in braces is a slot; every other stretch is whole words, so that a text's tokens are those
# of its words. The direct family's first template is the one that scores.
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "rating": (
        "Which star rating will {user} give {item} ?",
        "How many stars does the {kind} {item} titled {title} get from {user} ?",
        "Predict what {user} thinks of {title} , which is {item} , in stars :",
    ),
    "sequential": (
        "So far {user} has chosen {history} in this order . Which {kind} is next ?",
        "After {history} , what will {user} choose ?",
        "Somebody chose {history} one after the other . Name the {kind} that follows :",
    ),
    "direct": (
        "Will {user} like {item} titled {title} ?",
        "Is {item} a good {kind} for {user} ?",
        "Should {title} , which is {item} , be shown to {user} ?",
    ),
    "list": (
        "Pick the best {kind} for {user} out of {candidates}",
        "One of these is what {user} will like most : {candidates} Which ?",
    ),
    "explanation": (
        "Explain to {user} why {item} titled {title} is or is not the right {kind} :",
        "What does {user} say about {title} , which is {item} ?",
    ),
    "review": (
        "About {item} {user} wrote : {review} How many stars is that ?",
        "Which star rating belongs to this review of {title} : {review}",
    ),
}
ANSWERS = ("no", "yes")
GROUPS = {
    "rating": "stars",
    "sequential": "item",
    "direct": "answer",
    "list": "item",
    "explanation": "reason",
    "review": "stars",
}
"""By family: what its answers are."""


# --- numbers in ids -----------------------------------------------------------------------------
def item_numbers(data: Feedback, how: str, seed: int) -> np.ndarray:
    """The number in each item's id, (n_items,): 1, 2, ... in some order; 0 for padding.

    how: "random"; or "sequential", by the first training event of an item, events being sorted by
        user and time; items without one follow at random. No held-out event is looked at.
    """
    order = 1 + stream(seed, "p5 items").permutation(data.n_items - 1)
    if how == "sequential":
        met, first = np.unique(data.items[data.rows("train")], return_index=True)
        order = np.concatenate([met[np.argsort(first)], order[~np.isin(order, met)]])
    numbers = np.zeros(data.n_items, np.int64)
    numbers[order] = np.arange(1, data.n_items)
    return numbers


def user_numbers(data: Feedback, seed: int) -> np.ndarray:
    """The number in each user's id, (n_users,): at random; 0 for padding."""
    order = stream(seed, "p5 users").permutation(data.n_users - 1)
    return np.concatenate([[0], 1 + order])


# --- training examples --------------------------------------------------------------------------
@dataclass
class Examples:
    """Questions and answers of R rows, without their words."""

    family: np.ndarray
    """(R,) int8, index into `FAMILIES`."""
    template: np.ndarray
    """(R,) int8."""
    events: np.ndarray
    """(R,)"""
    items: np.ndarray
    """(R,) what is asked about; another item than the event's where it is unseen."""
    answers: np.ndarray
    """(R,) item id, place in `stars` or `reasons`, or 0 for no and 1 for yes."""
    extra: np.ndarray
    """(R,) place in `reviews`, or row of `listed`."""
    stars: list[str]
    reasons: list[str]
    reviews: list[str]
    listed: np.ndarray
    """(M, C) candidates of the list family."""
    counts: dict[str, int] = field(default_factory=dict)
    """Examples by family, reasons by source."""

    def __len__(self) -> int:
        return len(self.family)


def draw(data: Feedback, s: P5Settings, seed: int) -> Examples:
    """The examples of a run: from training events alone, templates at random."""
    from reprokit.reasons import reasons

    chosen = asked_events(data, s, seed)
    rng = stream(seed, "p5 examples")
    found = Examples(*(np.empty(0, np.int64),) * 6, [], [], [], np.empty((0, s.negatives + 1), int))
    stars = rated_stars(data, s, stream(seed, "p5 jitter"))
    found.stars = stars[0]
    parts = []
    for name, events in chosen.items():
        items, extra = data.items[events].astype(np.int64), np.zeros(len(events), np.int64)
        answers = items
        if name in ("rating", "review"):
            answers = stars[1][events]
        if name == "review" and data.reviews is not None:
            texts = [data.reviews[row] for row in events.tolist()]
            found.reviews = [first_words(text, s.review_words) for text in texts]
            extra = np.arange(len(events))
        elif name == "explanation":
            reason = reasons(data, events, facts=s.reason_facts)
            found.reasons, answers = reason.texts, reason.index
            found.counts |= {f"reasons from {key}": n for key, n in reason.counts.items()}
        elif name == "direct":
            answers = data.labels[events].astype(np.int64)
            events, items, answers = with_unseen(data, events, items, answers, s.unseen, rng)
            extra = np.zeros(len(events), np.int64)
        elif name == "list":
            found.listed = unseen(data, data.users[events], s.negatives + 1, rng)
            found.listed[
                np.arange(len(events)), rng.integers(s.negatives + 1, size=len(events))
            ] = items
            extra = np.arange(len(events))
        family = np.full(len(events), FAMILIES.index(name))
        template = rng.integers(len(TEMPLATES[name]), size=len(events))
        parts.append((family, template, events, items, answers, extra))
        found.counts[f"{name} examples"] = len(events)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    found.family, found.template = columns[0].astype(np.int8), columns[1].astype(np.int8)
    found.events, found.items, found.answers, found.extra = columns[2:]
    return found


def asked_events(data: Feedback, s: P5Settings, seed: int) -> dict[str, np.ndarray]:
    """By family the training events that it asks about: a fixed share of those that it can, and
    together no more than the run has steps for."""
    train = data.rows("train")
    if not len(train):
        raise Unavailable(f"{data.name} has no training event")
    able = {"sequential": data.history_end[train] > data.starts[data.users[train]]}
    able["list"] = data.labels[train] == 1
    if data.reviews is not None:
        able["review"] = np.fromiter((bool(data.reviews[row]) for row in train.tolist()), bool)
    counts: dict[str, float] = {}
    events = {}
    for name, share in s.shares.items():
        if name == "review" and name not in able:
            continue
        events[name] = train[able[name]] if name in able else train
        counts[name] = share * len(events[name])
    scale = s.epoch_rows and s.max_epochs * s.epoch_rows / max(1.0, sum(counts.values()))
    scale = min(1.0, scale or 1.0)
    found = {}
    for name, every in events.items():
        count = min(len(every), math.ceil(scale * counts[name]))
        if count:
            picked = stream(seed, f"p5 {name}").choice(len(every), count, replace=False)
            found[name] = every[np.sort(picked)]
    return found


def rated_stars(
    data: Feedback, s: P5Settings, rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """(distinct ratings as text, place of each event's rating among them); noise is added to
    training ratings, inside their range, to one decimal. Held-out events have place 0."""
    train = data.rows("train")
    values = data.ratings[train].astype(np.float64)
    if s.jitter:
        noisy = np.round(values + s.jitter * rng.standard_normal(len(values)), 1)
        values = noisy.clip(values.min(), values.max())
    distinct, place = np.unique(values, return_inverse=True)
    places = np.zeros(len(data), np.int64)
    places[train] = place
    return [f"{value:g}" for value in distinct], places


def with_unseen(
    data: Feedback,
    events: np.ndarray,
    items: np.ndarray,
    answers: np.ndarray,
    per_like: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(events, items, answers) with unseen items added, so many per like, that are answered no."""
    liked = events[answers == 1]
    more = liked[rng.integers(len(liked), size=round(per_like * len(liked)))] if len(liked) else []
    if not len(more):
        return events, items, answers
    others = unseen(data, data.users[more], 1, rng)[:, 0]
    return (
        np.concatenate([events, more]),
        np.concatenate([items, others]),
        np.concatenate([answers, np.zeros(len(more), np.int64)]),
    )


def unseen(data: Feedback, users: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Items that users have not met in training, each uniform among the items of training events:
    (N,) -> (N, count). Held-out events are not looked at, so an item may be one of theirs."""
    known = np.flatnonzero(np.isin(data.split, (0, 3)))  # training and support
    keys = np.unique(data.users[known].astype(np.int64) * data.n_items + data.items[known])
    pool = np.flatnonzero(data.item_counts)
    in_pool = data.item_counts[keys % data.n_items] > 0
    met = np.bincount(keys[in_pool] // data.n_items, minlength=data.n_users)
    if (met[users] >= len(pool)).any():
        raise Unavailable(
            f"{data.name}: a user has met all {len(pool):,} items of the training events, and P5 "
            "asks about unseen ones: set unseen=0 and leave the list family out"
        )
    found = pool[rng.integers(len(pool), size=(len(users), count))]
    owners = np.broadcast_to(users.astype(np.int64)[:, None] * data.n_items, found.shape)
    again = np.ones(found.shape, bool)
    while again.any():
        asked = owners[again] + found[again]
        at = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
        again[again] = keys[at] == asked
        found[again] = pool[rng.integers(len(pool), size=int(again.sum()))]
    return found


def first_words(text: str, count: int) -> str:
    return " ".join(text.split()[:count])


# --- prompts ------------------------------------------------------------------------------------
def segments(template: str, kind: str) -> list[str]:
    """A template as stretches of whole words and slots."""
    parts = re.split(r"(\{\w+\})", template.replace("{kind}", kind))
    return [part.strip() for part in parts if part.strip()]


def fixed_words(kind: str) -> list[str]:
    """The words of all templates."""
    every = (segments(t, kind) for templates in TEMPLATES.values() for t in templates)
    return list(dict.fromkeys(s for parts in every for s in parts if s[0] != "{"))


class Library:
    """Texts as numbered pieces of tokens; number 0 is empty.

    A text is tokenised word by word, each distinct word once. A T5 tokenizer splits at white space
    first, so these are the tokens of the whole text.
    """

    def __init__(self, tokenizer: Any, groups: Mapping[str, Sequence[str]]) -> None:
        self.first: dict[str, int] = {}
        """By group, the number of its first text."""
        texts = [""]
        for name, group in groups.items():
            self.first[name] = len(texts)
            texts += group
        numbers: dict[str, int] = {}
        found, counts = array("i"), array("q", [0])  # no text is held as a list of its words
        for text in texts:
            words = text.split()
            found.extend(numbers.setdefault(each, len(numbers)) for each in words)
            counts.append(len(words))
        lists = tokenizer(list(numbers), add_special_tokens=False)["input_ids"] if numbers else []
        sizes = np.array([len(ids) for ids in lists], np.int64)
        ends = np.cumsum(sizes)
        tokens = np.fromiter(chain.from_iterable(lists), np.int32, int(sizes.sum()))
        of_text, word = np.cumsum(counts), np.array(found)
        owner, at = spans((ends - sizes)[word], ends[word])
        self.tokens = tokens[at]
        self.opens = np.diff(owner, prepend=-1) > 0  # the first token of a word
        before = np.concatenate([[0], np.cumsum(sizes[word])])
        self.starts = before[of_text]  # (pieces + 1,)
        self.sizes = np.diff(self.starts)
        self.pad, self.end = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)

    def read(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, whole words) of rows of pieces (B, P), the end token behind them: (B, T) each.

        Words count from 1 and their tokens share a number; the end token and padding have 0.
        """
        flat = pieces.ravel()
        owner, at = spans(self.starts[flat], self.starts[flat + 1])
        row = owner // pieces.shape[1]
        total = np.bincount(row, minlength=len(pieces))
        column = np.arange(len(row)) - np.repeat(np.cumsum(total) - total, total)
        opened = np.cumsum(self.opens[at])
        first = np.concatenate([[0], opened])[np.cumsum(total) - total]  # words of earlier rows
        tokens = np.full((len(pieces), int(total.max()) + 1), self.pad, np.int64)
        words = np.zeros_like(tokens)
        tokens[row, column], words[row, column] = self.tokens[at], opened - first[row]
        tokens[np.arange(len(pieces)), total] = self.end
        return tokens, words

    def written(self, pieces: np.ndarray, limit: int, fill: int) -> np.ndarray:
        """Answers (B,) as tokens with the end token, at most `limit`, padded: (B, A)."""
        tokens, _ = self.read(pieces[:, None])
        cut = self.sizes[pieces] >= limit
        tokens = tokens[:, :limit]
        tokens[cut, -1] = self.end
        inside = np.arange(tokens.shape[1]) <= self.sizes[pieces][:, None]
        return np.where(inside, tokens, fill)


class Prompts:
    """Prompts about a data set's users and items, and their answers."""

    def __init__(
        self, data: Feedback, tokenizer: Any, examples: Examples, s: P5Settings, seed: int
    ) -> None:
        self.data, self.examples, self.settings = data, examples, s
        self.numbers = item_numbers(data, s.ids, seed)
        users = user_numbers(data, seed)
        fixed = fixed_words(data.item_word)
        self.library = Library(
            tokenizer,
            {
                "item": ["", *(f"item_{number}" for number in self.numbers[1:].tolist())],
                "user": ["", *(f"user_{number}" for number in users[1:].tolist())],
                "title": titles_of(data, s),
                "answer": ANSWERS,
                "stars": examples.stars,
                "reason": examples.reasons,
                "review": examples.reviews,
                "words": fixed,
            },
        )
        at = self.library.first["words"]
        self.fixed = {text: at + number for number, text in enumerate(fixed)}
        unknown = np.cumsum(np.append(0, self.library.tokens == tokenizer.unk_token_id))
        at = self.library.first["title"]
        bounds = unknown[self.library.starts[at : at + data.n_items + 1]]
        self.unknown = int((np.diff(bounds) > 0).sum())
        """Titles with a character that T5 does not know."""

    @property
    def yes_and_no(self) -> tuple[int, int]:
        """The one token of yes and that of no. Raises RequestError where either has several."""
        library = self.library
        at = library.first["answer"]
        no, yes = (library.tokens[library.starts[n] : library.starts[n + 1]] for n in (at, at + 1))
        if len(no) != 1 or len(yes) != 1 or no[0] == yes[0]:
            raise RequestError(
                f"the tokenizer of T5 '{self.settings.t5}' does not make one token each of yes and "
                f"no, but {len(yes)} and {len(no)}: choose another T5"
            )
        return int(yes[0]), int(no[0])

    def pieces(
        self,
        family: str,
        template: int,
        events: np.ndarray,
        items: np.ndarray,
        extra: np.ndarray | None = None,
        listed: np.ndarray | None = None,
    ) -> np.ndarray:
        """Prompts of one template as rows of pieces: (B,) events and items -> (B, P).

        extra: (B,) places of reviews; listed: (B, C) candidates.
        """
        data, first = self.data, self.library.first
        columns: list[np.ndarray] = []
        for part in segments(TEMPLATES[family][template], data.item_word):
            if part == "{user}":
                columns.append(first["user"] + data.users[events][:, None])
            elif part in ("{item}", "{title}"):
                columns.append(first[part[1:-1]] + items[:, None])
            elif part == "{history}":
                past = data.items_at(data.histories(events, self.settings.history))
                columns.append(first["item"] + past)
            elif part == "{candidates}" and listed is not None:
                columns.append(first["item"] + listed)
            elif part == "{review}" and extra is not None:
                columns.append(first["review"] + extra[:, None])
            else:
                columns.append(np.full((len(events), 1), self.fixed[part]))
        return np.concatenate(columns, axis=1)

    def asked(self, index: np.ndarray) -> np.ndarray:
        """Some training examples as rows of pieces, (B, P): template by template."""
        e = self.examples
        family, template = e.family[index], e.template[index]
        parts = []
        for number, name in enumerate(FAMILIES):
            for which in range(len(TEMPLATES[name])):
                at = np.flatnonzero((family == number) & (template == which))
                if len(at):
                    rows = index[at]
                    listed = e.listed[e.extra[rows]] if name == "list" else None
                    parts.append(
                        (
                            at,
                            self.pieces(
                                name, which, e.events[rows], e.items[rows], e.extra[rows], listed
                            ),
                        )
                    )
        found = np.zeros((len(index), max(part.shape[1] for _, part in parts)), np.int64)
        for at, part in parts:
            found[at, : part.shape[1]] = part
        return found

    @cached_property
    def answers(self) -> np.ndarray:
        """Pieces that answer the training examples, (R,)."""
        e, first = self.examples, self.library.first
        offsets = np.array([first[GROUPS[name]] for name in FAMILIES])
        return offsets[e.family] + e.answers

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the training prompts, the end token not counted: (R,)."""
        every = np.arange(len(self.examples))
        blocks = np.split(every, range(65_536, len(every), 65_536))
        return np.concatenate([self.checked(self.asked(index)) for index in blocks])

    def checked(self, pieces: np.ndarray) -> np.ndarray:
        """Tokens of prompts, (B,). Raises RequestError where one is too long."""
        found = self.library.sizes[pieces].sum(1)
        most = self.settings.max_tokens
        if len(found) and found.max() >= most:
            raise RequestError(
                f"a prompt of P5 has {int(found.max()) + 1} tokens, more than {most}: raise "
                "max_tokens, or lower history, title_words or review_words, or negatives of lists"
            )
        return found

    # --- as tensors ---
    def batch(self, pieces: np.ndarray) -> dict[str, Tensor]:
        import torch

        ids, words = self.library.read(pieces)
        return {"ids": torch.from_numpy(ids), "words": torch.from_numpy(words)}

    def lesson(self, index: np.ndarray) -> dict[str, Tensor]:
        """Training examples with their answers."""
        import torch

        from reprokit.texttotext import IGNORED

        limit = self.settings.answer_tokens
        targets = self.library.written(self.answers[index], limit, IGNORED)
        return {**self.batch(self.asked(index)), "targets": torch.from_numpy(targets)}

    # --- scores ---
    def score(self, predict: Any, pairs: Pairs, counts: dict[str, int] | None = None) -> np.ndarray:
        """Log-odds of yes of pairs, (N,); or, by setting, the beam's order of lists.

        counts: of a run; what the beam says beside candidates is noted there.
        """
        if self.settings.rank_by == "list" and pairs.width > 1:
            scores, invented = self.order(predict, pairs)
            if counts is not None:
                counts["answers to lists that are no candidate"] = invented
            return scores
        return self.sorted(predict, self.pieces("direct", 0, pairs.rows, pairs.items))

    def order(self, predict: Any, pairs: Pairs) -> tuple[np.ndarray, int]:
        """(scores of lists by the beam's order (N,), beams that are no candidate). Candidates are
        shown by the numbers in their ids, so that nothing tells which one is the target."""
        import torch

        library, width = self.library, pairs.width
        items = pairs.items.reshape(-1, width)
        by_number = np.argsort(self.numbers[items], axis=1, kind="stable")
        shown = np.take_along_axis(items, by_number, 1)
        pieces = self.pieces("list", 0, pairs.rows[::width], shown[:, 0], listed=shown)

        def more(index: np.ndarray) -> dict[str, Tensor]:
            candidates = (library.first["item"] + items[index]).ravel()
            tokens = library.written(candidates, self.longest_id + 1, library.pad)
            tokens = np.pad(
                tokens,
                ((0, 0), (0, self.longest_id + 1 - tokens.shape[1])),
                constant_values=library.pad,
            )
            return {"candidates": torch.from_numpy(tokens.reshape(len(index), width, -1))}

        found = self.sorted(predict, pieces, more)
        return found[:, :-1].ravel(), int(found[:, -1].sum())

    @cached_property
    def longest_id(self) -> int:
        """Tokens of the longest item id."""
        at = self.library.first["item"]
        return int(self.library.sizes[at : at + self.data.n_items].max())

    def sorted(
        self,
        predict: Any,
        pieces: np.ndarray,
        more: Callable[[np.ndarray], dict[str, Tensor]] | None = None,
    ) -> np.ndarray:
        """What a model says to prompts (N, P), asked by length: (N,) or (N, K)."""
        order = np.argsort(self.checked(pieces), kind="stable")

        def batch(index: np.ndarray) -> dict[str, Tensor]:
            rows = order[index]
            return {**self.batch(pieces[rows]), **(more(rows) if more else {})}

        answered = predict(batch, len(order))
        found = np.empty_like(answered)
        found[order] = answered
        return found

    def explained(self, predict: Any, tokenizer: Any, pairs: Pairs) -> list[str]:
        """What the model says about pairs, by greedy decoding."""
        import torch

        room = self.settings.answer_tokens
        pieces = self.pieces("explanation", 0, pairs.rows, pairs.items)
        tokens = self.sorted(
            predict, pieces, lambda index: {"room": torch.zeros(len(index), room, dtype=torch.long)}
        )
        texts = tokenizer.batch_decode(tokens.astype(np.int64).tolist(), skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def titles_of(data: Feedback, s: P5Settings) -> list[str]:
    return [first_words(title, s.title_words) for title in data.titles]
