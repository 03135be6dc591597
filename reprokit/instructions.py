"""Instructions of TALLRec and ExplainRec: a task, what a person liked and disliked, a new item.

TALLRec      Bao et al., RecSys 2023: liked titles, disliked titles, the target's title; the answer
             is Yes or No
ExplainRec   equations 1, 2 and 9: each liked or disliked item has its reason and a slot for its
             picture and text, the target its attributes; the answer is followed by the reason

Built from pieces, as `prompts` says. A row may be domain-free: genres in place of titles, and
neither reasons nor slots, so that it can be asked of items of any domain (the cross-domain task).

Shapes: R rows, K history items of one label, B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprokit.feedback import Feedback
from reprokit.prompts import (
    ITEM,
    SLOTS,
    Pieces,
    answer_tokens,
    encode_inside,
    plain_ids,
    tensor,
)
from reprokit.reasons import SOURCES, reasons
from reprokit.runs import RequestError

SEEN = 5
"""Slot of a history item; `prompts.SLOTS` has the others."""
LIKED, DISLIKED, NEW, CUE = "\nLiked:", "\nDisliked:", "\nNew {}:", "\nAnswer:"
TASK = "Task: tell from what a person liked and disliked whether the person will like a new {}."
TASK_WHY = "Task: tell whether a person will like a new {}, and why."
BECAUSE, NONE, NEXT = " because", " nothing", ";"
YES, NO = " Yes", " No"
MOST = 2
"""Tags, and people, that are named of a target."""
AGAIN = "\nSo the answer is:"
"""Behind the reason: where the answer is read again."""


def head(attribution: bool, item_word: str) -> str:
    return (TASK_WHY if attribution else TASK).format(item_word)


def fixed_words(item_word: str) -> list[str]:
    """The words of all instructions, for a tokenizer of our own."""
    words = [head(False, item_word), head(True, item_word), LIKED, DISLIKED, NEW.format(item_word)]
    return [*words, CUE, BECAUSE, NONE, NEXT, AGAIN]


def frame(item_word: str) -> list[str]:
    """Whole instructions with both answers: what a tokenizer must know well."""
    text = "".join(
        (head(True, item_word), LIKED, NONE, BECAUSE, DISLIKED, NONE, NEW.format(item_word), CUE)
    )
    return [f"{text}{answer}{AGAIN}{answer}" for answer in (YES, NO)]


@dataclass(frozen=True, eq=False)
class Words:
    """What a tokenizer makes of a data set: the pieces that all its instructions share."""

    tokenizer: Any
    tokens: np.ndarray
    starts: np.ndarray
    number: Mapping[str, int]
    """Piece of each fixed word, of `<bos>`, `<end>` and `<item>`."""
    n_items: int
    """Piece i is the title of item i; piece n_items + i its slot."""
    genre_of: np.ndarray
    """(n_items,) piece of an item's genres as words."""
    facts_of: np.ndarray
    """(n_items,) piece of an item's attributes as words: what a reason may name."""
    answers: tuple[int, int]
    again: tuple[int, int]
    """Token ids of Yes and No at the answer, and where it is read again."""
    end: int
    """Token id that ends a reason."""


def read_words(tokenizer: Any, data: Feedback, source_genres: Mapping[str, str]) -> Words:
    """Tokenise titles, genres and the fixed words of a data set.

    `source_genres`: the genre of the trained domain that stands for one of another domain.
    """
    fixed = [*fixed_words(data.item_word), YES, NO]
    named = [
        list(dict.fromkeys(source_genres.get(genre, genre) for genre in genres))
        for genres in data.genres
    ]
    strings = [f" {', '.join(genres)}" if genres else f" {data.item_word}" for genres in named]
    facts = [described(data, item) for item in range(data.n_items)]
    distinct = sorted({*strings, *facts})
    titles = [f" {title.strip()}" for title in data.titles[1:]]
    lists = encode_inside(tokenizer, [*titles, *distinct, *fixed])
    opening = [text for text in fixed if text.startswith("Task")]
    for text in opening:  # opens the prompt: nothing stands before it
        lists[len(titles) + len(distinct) + fixed.index(text)] = plain_ids(tokenizer, [text])[0]
    answers = answer_tokens(tokenizer, CUE)
    for text, token in zip((YES, NO), answers, strict=True):
        lists[len(titles) + len(distinct) + fixed.index(text)] = [token]
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if end is None:
        raise RequestError(
            "the tokenizer has no token that ends a text, so no reason would end: choose another "
            "language model"
        )
    opens = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    n = data.n_items
    ordered = [
        [],
        *lists[: len(titles)],
        *([[0]] * n),
        *lists[len(titles) :],
        [bos] if opens else [],
        [end],
        [0],
    ]
    names = [*distinct, *fixed, "<bos>", "<end>", ITEM]
    number = {text: 2 * n + at for at, text in enumerate(names)}
    counts = np.array([len(ids) for ids in ordered])
    return Words(
        tokenizer,
        np.array([token for ids in ordered for token in ids], np.int32),
        np.concatenate([[0], np.cumsum(counts)]),
        number,
        n,
        np.array([number[text] for text in strings]),
        np.array([number[text] for text in facts]),
        answers,
        answer_tokens(tokenizer, AGAIN),
        int(end),
    )


def described(data: Feedback, item: int) -> str:
    """An item's attributes behind its title; those of an item without any are its word."""
    named = (*data.genres[item], *data.tags[item][:MOST], *data.people[item][:MOST])
    return f" ({', '.join(named) or data.item_word})"


class Instructions(Pieces):
    """The instructions of R (row, item) pairs.

    Args:
        words: of the data set.
        data: what may be read: the sealed data.
        rows, items: (R,) whose history, and which item.
        history: K, the most liked and the most disliked items named.
        context: the most of both that a model reads beside the prompt; 0: those named.
        reasons: whether each has its reason (equation 2), and the task asks for one.
        described: whether the target's attributes stand behind its title.
        slots: whether each item has a slot for its picture and text (equation 9).
        free: (R,) bool, which rows are domain-free; None: none.
        limit: most tokens of a prompt. Longer ones lose their oldest items, liked and disliked
            alike, never the target: `shortened` and `dropped` count them.
        facts: most attributes in a reason.
        labels: (R,) for training: the answers, which are followed by the row's own reason where
            `reasons` is on. None: to be asked.

    Raises RequestError where a prompt is too long without any history.
    """

    patterns: np.ndarray | None = None
    """(R, P), for models that read them beside the prompt."""

    def __init__(
        self,
        words: Words,
        data: Feedback,
        rows: np.ndarray,
        items: np.ndarray,
        history: int,
        context: int = 0,
        reasons: bool = False,
        slots: bool = False,
        described: bool = False,
        free: np.ndarray | None = None,
        limit: int = 512,
        facts: int = 3,
        labels: np.ndarray | None = None,
    ) -> None:
        self.words, self.data, self.tokenizer = words, data, words.tokenizer
        self.rows, self.targets, self.labels = rows, items.astype(np.int64), labels
        self.users = data.users[rows].astype(np.int64)
        self.free = np.zeros(len(rows), bool) if free is None else free
        self.with_reasons, self.with_slots, self.facts = reasons, slots, facts
        self.described = described
        events = [data.histories(rows, history, label) for label in (1, 0)]  # (R, K) each
        recent = [data.histories(rows, context or history, label) for label in (1, 0)]
        self.recent = np.concatenate([data.items_at(part) for part in recent], axis=1)
        own = rows[~self.free] if reasons and labels is not None else np.empty(0, np.int64)
        self._table(events, own)
        lists = [self._listed(part) for part in events]  # (R, K, 5)
        lists = self._shorten(lists, limit)
        self.prefix, self.suffix = self._prompt(lists)

    # --- the table of pieces ---
    def _table(self, events: Sequence[np.ndarray], own: np.ndarray) -> None:
        """The words' pieces, then the reasons that these rows need."""
        words = self.words
        self.number = dict(words.number)
        tokens, starts = words.tokens, words.starts
        self.reason_of = np.empty(0, np.int64)
        if self.with_reasons:
            asked = np.unique(np.concatenate([*(part.ravel() for part in events), own]))
            asked = asked[asked >= 0]
            found = reasons(self.data, asked, facts=self.facts)
            ids = encode_inside(self.tokenizer, [f" {text}" for text in found.texts])
            counts = np.array([len(part) for part in ids], np.int64)
            first = len(starts) - 1
            tokens = np.concatenate([tokens, np.array([t for p in ids for t in p], np.int32)])
            starts = np.concatenate([starts, starts[-1] + np.cumsum(counts)])
            self.asked, self.reason_of = asked, first + found.index
            learnt = found.source[np.isin(asked, own)]
            self.sources = {name: int((learnt == at).sum()) for at, name in enumerate(SOURCES)}
        self.tokens, self.starts, self.sizes = tokens, starts, np.diff(starts)
        n = words.n_items
        self.items = np.zeros(len(self.sizes), np.int64)
        self.items[: 2 * n] = np.tile(np.arange(n), 2)
        self.slots = np.zeros(len(self.sizes), np.int64)
        self.slots[n : 2 * n] = SEEN
        self.slots[self.number[ITEM]] = SLOTS[ITEM]

    def reason_pieces(self, events: np.ndarray) -> np.ndarray:
        """The piece of each event's reason, 0 where the event is -1; any shape."""
        at = np.searchsorted(self.asked, np.where(events >= 0, events, 0))
        return np.where(events >= 0, self.reason_of[np.minimum(at, len(self.asked) - 1)], 0)

    # --- rows of pieces ---
    def _listed(self, events: np.ndarray) -> np.ndarray:
        """Title, slot, `because`, reason and separator of each item: (R, K) -> (R, K, 5)."""
        items = self.data.items_at(events)
        free, there = self.free[:, None], items > 0
        pieces = np.zeros((*events.shape, 5), np.int64)
        pieces[..., 0] = np.where(free & there, self.words.genre_of[items], items)
        full = there & ~free
        if self.with_slots:
            pieces[..., 1] = np.where(full, self.words.n_items + items, 0)
        if self.with_reasons and len(self.asked):
            pieces[..., 2] = np.where(full, self.number[BECAUSE], 0)
            pieces[..., 3] = np.where(full, self.reason_pieces(events), 0)
        pieces[..., 4] = np.where(there, self.number[NEXT], 0)
        return pieces

    def _shorten(self, lists: list[np.ndarray], limit: int) -> list[np.ndarray]:
        """Drop the oldest items, as few as will do."""
        word = self.data.item_word
        named = (head(self.with_reasons, word), LIKED, DISLIKED, CUE, NEW.format(word), "<bos>")
        words = sum(int(self.sizes[self.number[text]]) for text in named)
        fixed = words + self.sizes[self._target()].sum(1)  # (R,)
        fixed = fixed + np.where(self.free, 0, int(self.with_slots))
        # A list that is empty, or of which nothing is kept, has a word in its place.
        nothing = int(self.sizes[self.number[NONE]])
        there = np.stack([(part[..., 0] > 0).any(axis=1) for part in lists]).sum(0)
        both = np.concatenate(lists, axis=2)  # (R, K, 10), oldest first
        size = self.sizes[both].sum(2)[:, ::-1]  # (R, K), latest first
        needs = np.concatenate(
            [
                (fixed + 2 * nothing)[:, None],
                (fixed + (2 - there) * nothing)[:, None] + np.cumsum(size, axis=1),
            ],
            axis=1,
        )  # (R, K + 1): with the latest 0, 1, ... of both lists
        if len(needs) and needs[:, 0].max() > limit:
            row = int(needs[:, 0].argmax())
            raise RequestError(
                f"a prompt about '{self.data.titles[self.targets[row]][:80]}' takes "
                f"{int(needs[row, 0])} tokens without any history, more than the limit of {limit}: "
                "raise max_tokens"
            )
        most = (needs <= limit).cumprod(axis=1).sum(axis=1) - 1  # the first needs always fit
        steps = np.arange(size.shape[1])[::-1]  # 0 for the latest, which stands last
        kept = steps < most[:, None]
        lost = [(~kept) & (part[..., 0] > 0) for part in lists]
        self.shortened = int((lost[0] | lost[1]).any(axis=1).sum())
        self.dropped = int(sum(part.sum() for part in lost))
        return [part * kept[..., None] for part in lists]

    def _prompt(self, lists: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Piece numbers before the target, and from it on."""
        count = len(self.rows)

        def column(text: str) -> np.ndarray:
            return np.full((count, 1), self.number[text])

        columns = [column("<bos>"), column(head(self.with_reasons, self.data.item_word))]
        for text, part in zip((LIKED, DISLIKED), lists, strict=True):
            nothing = ~(part[..., 0] > 0).any(axis=1, keepdims=True)
            columns += [column(text), part.reshape(count, part.shape[1] * part.shape[2])]
            columns.append(np.where(nothing, self.number[NONE], 0))
        columns.append(column(NEW.format(self.data.item_word)))
        prefix = np.concatenate(columns, axis=1).astype(np.int32)
        slot = np.where(self.free[:, None], 0, column(ITEM) if self.with_slots else 0)
        suffix = np.concatenate([self._target(), slot, column(CUE)], axis=1)
        return prefix, suffix.astype(np.int32)

    def _target(self) -> np.ndarray:
        """The target's title, and its attributes where they are asked for: (R, 2)."""
        words, facts = self.words, self.described & ~self.free
        return np.stack(
            [
                np.where(self.free, words.genre_of[self.targets], self.targets),
                np.where(facts, words.facts_of[self.targets], 0),
            ],
            axis=1,
        )

    @cached_property
    def output(self) -> np.ndarray:
        """Answer, `because`, reason, end, and the cue that asks again, of training rows: (R, 5)."""
        assert self.labels is not None, "rows to be asked have no output"
        pieces = np.zeros((len(self), 5), np.int64)
        pieces[:, 0] = np.where(self.labels == 1, self.number[YES], self.number[NO])
        if self.with_reasons:
            told = ~self.free
            pieces[:, 1] = np.where(told, self.number[BECAUSE], 0)
            pieces[:, 2] = np.where(told, self.reason_pieces(self.rows), 0)
            pieces[:, 3] = np.where(told, self.number["<end>"], 0)
            pieces[:, 4] = np.where(told, self.number[AGAIN], 0)
        return pieces.astype(np.int32)

    @cached_property
    def training_lengths(self) -> np.ndarray:
        return self.lengths + self.sizes[self.output].sum(1)

    def batch(self, index: np.ndarray, share: bool = False) -> dict[str, Tensor]:
        found = super().batch(index, share)
        if self.patterns is not None:
            found["patterns"] = torch.from_numpy(self.patterns[index])
            found["targets"] = tensor(self.targets[index])
        return found

    def training_batch(self, index: np.ndarray) -> dict[str, Tensor]:
        """Prompts with their outputs.

        Beside the inputs of a prompt, (B,) each: `last`, the position that answers; `stop`, one
        past the end of the reason; `end`, the last position.
        """
        pieces = np.concatenate(
            [self.prefix[index], self.suffix[index], self.output[index]], axis=1
        )
        found = self._assemble(pieces, self.targets[index])
        end = found.pop("last")
        again = tensor(self.sizes[self.output[index, 4]])
        return {
            **found,
            **self._people(index),
            "last": tensor(self.lengths[index] - 1),
            "stop": end + 1 - again,
            "end": end,
            "free": torch.from_numpy(self.free[index]),
            "targets": tensor(self.targets[index]),
        }

    def text(self, row: int) -> str:
        """An instruction as text, slots named: for reading and for tests."""
        parts: list[str] = []
        for piece in np.concatenate([self.prefix[row], self.suffix[row]]):
            slot = self.slots[piece]
            ids = self.tokens[self.starts[piece] : self.starts[piece + 1]].tolist()
            parts.append(f" <{'item' if slot == SLOTS[ITEM] else 'seen'}>" if slot else "")
            parts.append("" if slot else self.tokenizer.decode(ids))
        return "".join(parts)
