"""Prompts about a user and an item, to be answered with Yes or No.

A prompt is a row of pieces: fixed words, titles, and slots whose vectors a model supplies. Each
piece is tokenised once, as it would be inside a sentence, and a batch is put together from token
arrays. So a title has the same tokens wherever it stands, no slot needs a token of the vocabulary,
and nothing can be mistaken for one.

Shapes: R rows, B rows of a batch, T tokens.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprokit.data import Rows
from reprokit.runs import RequestError, digest, replacing

# --- templates ----------------------------------------------------------------------------------
# Segments that are not words. A slot holds no word: its vectors come from the model.
HISTORY, TARGET, SIMILAR = "<history>", "<target>", "<similar>"
USER, ITEM, SOFT_USER, SOFT_ITEM = "<user>", "<item>", "<soft user>", "<soft item>"
SLOTS = {USER: 1, ITEM: 2, SOFT_USER: 3, SOFT_ITEM: 4}
NOTHING = " unknown"
"""In place of the titles of an empty history."""

# CCF-LLM, section 3.2, and the sentence of section 4.2 that takes the place of its second one.
LIKED = "#Question: A user has given high ratings to the following items:"
TASK = ". Using all available information, make a prediction about whether the user would enjoy"
ANSWER = '. Answer with "Yes" or "No".'
CUE = " #Answer:"
HYBRID = (
    LIKED,
    HISTORY,
    ". Additionally, we have information about the user's preferences encoded in the feature",
    USER,
    TASK + " the item",
    TARGET,
    ANSWER + CUE,
)
PLAIN = (LIKED, HISTORY, TASK + " the item", TARGET, ANSWER + CUE)
WITH_CF = (
    LIKED,
    HISTORY,
    ". Additionally, we have information that users like these items may also enjoy:",
    SIMILAR,
    TASK + " the item",
    TARGET,
    ANSWER + CUE,
)
# CoLLM's form: title and CF slot stand apart, and its cue begins with a literal backslash and n.
COLLM_CUE = " \\n#Answer:"
COLLM_PROMPT: tuple[str, ...] = (
    *HYBRID[:4],
    TASK + " the item titled",
    TARGET,
    " with the feature",
    ITEM,
)
COLLM_PROMPT += (ANSWER + COLLM_CUE,)
TALLREC_PROMPT = (*PLAIN[:2], TASK + " the item titled", TARGET, ANSWER + COLLM_CUE)
SOFT_PROMPT = (
    SOFT_USER,
    " #Question: The user likes:",
    HISTORY,
    "; would the user enjoy:",
    TARGET,
    ";",
    SOFT_ITEM,
    ANSWER + COLLM_CUE,
)
TEMPLATES = {
    "hybrid": HYBRID,
    "plain": PLAIN,
    "with-cf": WITH_CF,
    "collm": COLLM_PROMPT,
    "tallrec": TALLREC_PROMPT,
    "softprompt": SOFT_PROMPT,
}
SOFT_TOKENS = 3
"""Virtual tokens per slot of Softprompt: CoLLM's."""


def frame() -> list[str]:
    """The words that all prompts share, with both answers: what a tokenizer must know well."""
    words = ["".join(s for s in template if s[0] != "<") for template in TEMPLATES.values()]
    return [text + answer for text in words for answer in (" Yes", " No")]


def wholes() -> list[str]:
    """The fixed words of the prompts, each stretch of more than two words as it stands."""
    every = {s for template in TEMPLATES.values() for s in template if s[0] != "<"}
    return sorted(text for text in every if len(text.split()) > 2)


# --- tokens -------------------------------------------------------------------------------------
def encode_inside(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text as it stands inside a sentence, no special tokens.

    Some tokenizers put a space before whatever they are given. So a text is tokenised behind an
    anchor, whose tokens are cut off again; an anchor that merges with a text gives way to another.
    """
    found: list[list[int] | None] = [None] * len(texts)
    for anchor in ("#", "x", "0", "\n", "é"):
        waiting = [at for at, ids in enumerate(found) if ids is None]
        if not waiting:
            break
        head = plain_ids(tokenizer, [anchor])[0]
        behind = plain_ids(tokenizer, [anchor + texts[at] for at in waiting])
        for at, ids in zip(waiting, behind, strict=True):
            if ids[: len(head)] == head:
                found[at] = ids[len(head) :]
    lost = [text for text, ids in zip(texts, found, strict=True) if ids is None]
    if lost:
        raise RequestError(
            f"the tokenizer does not split '{lost[0]}' from what stands before it: choose another "
            "language model"
        )
    return [ids for ids in found if ids is not None]


def plain_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def answer_tokens(tokenizer: Any, cue: str) -> tuple[int, int]:
    """The one token of " Yes" and of " No" right behind the cue.

    Raises RequestError where either takes several pieces or both are the same: a model's answer
    could not be read at one position.
    """
    cue_ids, *both = encode_inside(tokenizer, [cue, cue + " Yes", cue + " No"])
    answers = [ids[len(cue_ids) :] for ids in both]
    apart = all(ids[: len(cue_ids)] == cue_ids for ids in both)
    if not apart or [len(ids) for ids in answers] != [1, 1] or answers[0] == answers[1]:
        pieces = [tokenizer.convert_ids_to_tokens(ids) for ids in both]
        raise RequestError(
            f"the tokenizer does not make one token each of Yes and No behind '{cue}': "
            f"{pieces[0][-3:]} and {pieces[1][-3:]}. Choose another language model"
        )
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is not None and unknown in (answers[0][0], answers[1][0]):
        pieces = [tokenizer.convert_ids_to_tokens(ids) for ids in answers]
        raise RequestError(
            f"Yes or No is unknown to the tokenizer, which makes {pieces[0]} and {pieces[1]} of "
            "them: choose another language model"
        )
    return answers[0][0], answers[1][0]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a data set's titles: piece i is item i, piece 0 is empty."""

    tokenizer: Any
    tokens: np.ndarray
    """(N,) int32, all titles in a row."""
    starts: np.ndarray
    """(items + 1,): title i is `tokens[starts[i]:starts[i + 1]]`."""
    unknown: int
    """Titles with a character that the tokenizer does not know."""

    @property
    def n_items(self) -> int:
        return len(self.starts) - 1


def tokenise(tokenizer: Any, titles: Sequence[str], backbone: str, folder: Path) -> Vocabulary:
    """Tokenise titles once; the tokens are kept in `folder` by tokenizer and content."""
    name = digest(["titles, recipe 1", backbone, list(titles)])[:20]
    path = folder / "tokens" / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            tokens, starts = file["tokens"], file["starts"]
        if len(starts) != len(titles) + 1 or starts[-1] != len(tokens):
            raise ValueError("does not fit the titles")
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
        texts = [" " + title.strip() for title in titles[1:]]
        lists = [[], *encode_inside(tokenizer, texts)]
        tokens = np.array([token for ids in lists for token in ids], np.int32)
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])]).astype(np.int64)
        with replacing(path) as part, part.open("wb") as file:
            np.savez_compressed(file, tokens=tokens, starts=starts)
    unk = getattr(tokenizer, "unk_token_id", None)
    owners = np.searchsorted(starts, np.flatnonzero(tokens == unk), side="right")
    return Vocabulary(tokenizer, tokens, starts, len(np.unique(owners)) if unk is not None else 0)


def check_titles(
    vocabulary: Vocabulary, template: Sequence[str], titles: Sequence[str], limit: int
) -> None:
    """Refuse, before anything is trained, a limit that some title's prompt cannot keep.

    Raises RequestError where the longest title does not fit beside the words of the template.
    """
    sizes = np.diff(vocabulary.starts)
    item = np.array([np.argmax(sizes)])
    alone = Prompts(vocabulary, template, item, item, np.zeros((1, 0), int), limit=sys.maxsize)
    need = int(alone.lengths[0])
    if need > limit:
        title = " ".join(titles[item[0]].split())
        title = title if len(title) <= 80 else f"{title[:80]}..."
        raise RequestError(
            f"the title '{title}' has {int(sizes[item[0]])} tokens, and a prompt about it {need} "
            f"without any liked title, more than the limit of {limit}: raise max_tokens to {need}"
        )


# --- prompts ------------------------------------------------------------------------------------
class Pieces:
    """Prompts as matrices of piece numbers; tokens are put together per batch.

    A subclass fills in the table of pieces and the rows:

    - `tokens`, and `starts` of each piece in them, `sizes` in tokens, `items` whose title or slot a
      piece is, `slots` that it holds (0: none), `number` of the pieces that have a name;
    - `prefix` (R, P) and `suffix` (R, S) piece numbers, `users` and `targets` (R,), and `recent`
      (R, M) items of the user that a model reads beside the prompt.
    """

    tokenizer: Any
    tokens: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    items: np.ndarray
    slots: np.ndarray
    number: dict[str, int]
    prefix: np.ndarray
    suffix: np.ndarray
    users: np.ndarray
    targets: np.ndarray
    recent: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt, (R,)."""
        return self.sizes[self.prefix].sum(1) + self.sizes[self.suffix].sum(1)

    @cached_property
    def groups(self) -> np.ndarray:
        """Rows of one number have user, history and prefix in common, so may share states: (R,)."""
        parts = [self.users[:, None], self.recent, self.prefix]
        keys = np.ascontiguousarray(np.concatenate(parts, axis=1))
        rows = keys.view([("", keys.dtype)] * keys.shape[1]).ravel()
        return np.unique(rows, return_inverse=True)[1].ravel()

    @cached_property
    def scoring_order(self) -> np.ndarray:
        """Rows by length of the prefix, those of one group together: (R,)."""
        return np.lexsort((self.lengths, self.groups, self.sizes[self.prefix].sum(1)))

    def batch(self, index: np.ndarray, share: bool = False) -> dict[str, Tensor]:
        """Inputs of a model for some rows. With `share`, prefixes of several rows come once."""
        if share:
            _, first, group = np.unique(self.groups[index], return_index=True, return_inverse=True)
            if len(first) <= 0.8 * len(index):
                heads = index[first]
                prefix = self._assemble(self.prefix[heads], self.targets[heads])
                suffix = self._assemble(self.suffix[index], self.targets[index])
                shared = {f"prefix_{name}": value for name, value in prefix.items()}
                return {**suffix, **shared, "group": tensor(group.ravel()), **self._people(heads)}
        pieces = np.concatenate([self.prefix[index], self.suffix[index]], axis=1)
        return {**self._assemble(pieces, self.targets[index]), **self._people(index)}

    def _people(self, index: np.ndarray) -> dict[str, Tensor]:
        return {"users": tensor(self.users[index]), "histories": tensor(self.recent[index])}

    def _assemble(self, pieces: np.ndarray, targets: np.ndarray) -> dict[str, Tensor]:
        """Tokens of rows of pieces, padded on the right; all (B, T), `last` (B,)."""
        counts = self.sizes[pieces]  # (B, P)
        total = counts.sum(1)
        n, flat = counts.ravel(), pieces.ravel()
        owner = np.repeat(np.arange(len(flat)), n)  # the piece that each token belongs to
        within = np.arange(len(owner)) - np.repeat(np.cumsum(n) - n, n)
        row = np.repeat(np.arange(len(pieces)), total)
        column = np.arange(len(owner)) - np.repeat(np.cumsum(total) - total, total)
        piece = flat[owner]
        slots = self.slots[piece]
        items = np.where(slots == SLOTS[ITEM], targets[row], self.items[piece])
        shape = (len(pieces), int(total.max()))
        found = {}
        for name, values in (
            ("ids", self.tokens[self.starts[piece] + within]),
            ("items", items),
            ("slots", slots),
        ):
            padded = np.zeros(shape, np.int64)
            padded[row, column] = values
            found[name] = torch.from_numpy(padded)
        return {**found, "last": tensor(total - 1)}

    def text(self, row: int) -> str:
        """A prompt as text, slots named: for reading and for tests."""
        named = {number: text for text, number in self.number.items() if text in SLOTS}
        tokenizer = self.tokenizer
        parts: list[str] = []
        ids: list[int] = []
        for piece in np.concatenate([self.prefix[row], self.suffix[row]]):
            if piece in named:
                parts += [tokenizer.decode(ids), " " + named[piece]]
                ids = []
            else:
                ids += self.tokens[self.starts[piece] : self.starts[piece + 1]].tolist()
        return "".join([*parts, tokenizer.decode(ids)])


class Prompts(Pieces):
    """Prompts of R rows, as matrices of piece numbers; tokens are put together per batch.

    Args:
        vocabulary: of the titles; also decides how the words are tokenised.
        template: one of `TEMPLATES`' values; ends with the answer cue.
        users, targets: (R,) ids.
        histories: (R, L) item ids, oldest first, left-padded with 0.
        recent: (R, M) the history that CF models read, left-padded with 0; may be wider.
        similar: (R, K) item ids for `SIMILAR`.
        limit: most tokens of a prompt. Longer ones lose their last similar titles, then their
            oldest liked ones, as few as will do, never the question or the cue; `shortened` and
            `dropped` count them.

    Raises RequestError where a prompt is too long without any title to drop.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: Sequence[str],
        users: np.ndarray,
        targets: np.ndarray,
        histories: np.ndarray,
        recent: np.ndarray | None = None,
        similar: np.ndarray | None = None,
        limit: int = 700,
    ) -> None:
        self.users, self.targets = users, targets
        self.recent = histories if recent is None else recent
        self.template = tuple(template)
        self._table(vocabulary)
        histories, similar = self._shorten(histories, similar, limit)
        cut = self.template.index(TARGET)
        self.prefix = self._pieces(self.template[:cut], histories, similar, bos=True)  # (R, P)
        self.suffix = self._pieces(self.template[cut:], histories, similar)  # (R, S)

    def _table(self, vocabulary: Vocabulary) -> None:
        """All pieces in one token array: titles, then words, then slots."""
        self.tokenizer = tokenizer = vocabulary.tokenizer
        n_items = vocabulary.n_items
        words = [s for s in self.template if s[0] != "<"] + [",", NOTHING]
        lists = encode_inside(tokenizer, words)
        if words[0] == self.template[0]:  # opens the prompt: nothing stands before it
            lists[0] = plain_ids(tokenizer, [words[0]])[0]
        bos = tokenizer.bos_token_id
        opens = tokenizer("x")["input_ids"][:1] == [bos] if bos is not None else False
        slots = [s for s in self.template if s in SLOTS]
        sizes = [SOFT_TOKENS if s in (SOFT_USER, SOFT_ITEM) else 1 for s in slots]
        more = [*lists, [bos] if opens else [], *([0] * size for size in sizes)]
        self.number = {text: n_items + at for at, text in enumerate([*words, "<bos>", *slots])}
        counts = np.array([len(ids) for ids in more])
        self.tokens = np.concatenate(
            [vocabulary.tokens, np.array([t for ids in more for t in ids], np.int32)]
        )
        self.starts = np.concatenate([vocabulary.starts, vocabulary.starts[-1] + np.cumsum(counts)])
        self.sizes = np.diff(self.starts)
        self.items = np.zeros(len(self.sizes), np.int64)  # the item whose title a piece is
        self.items[:n_items] = np.arange(n_items)
        self.slots = np.zeros(len(self.sizes), np.int64)
        for text in slots:
            self.slots[self.number[text]] = SLOTS[text]

    def _shorten(
        self, histories: np.ndarray, similar: np.ndarray | None, limit: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Drop the fewest titles that make every prompt fit."""
        similar = np.zeros((len(self), 0), np.int64) if similar is None else similar
        if SIMILAR not in self.template:
            similar = similar[:, :0]
        words = [s for s in self.template if s in self.number] + ["<bos>"]
        fixed = self.sizes[[self.number[s] for s in words]].sum() + self.sizes[self.targets]  # (R,)
        # What is dropped last comes first: newest titles, then similar items in their order.
        both = np.concatenate([histories[:, ::-1], similar], axis=1)
        width = histories.shape[1]
        liked = self._list_sizes(both[:, :width])
        more = self._list_sizes(both[:, width:]) * (SIMILAR in self.template)
        lists = np.concatenate([liked + more[:, :1], liked[:, -1:] + more[:, 1:]], axis=1)
        fits = fixed[:, None] + lists <= limit  # (R, columns + 1): with the first 0, 1, ... of them
        if not fits.any(axis=1).all():
            row = int(np.argmax(np.where(fits.any(axis=1), 0, fixed + lists[:, 0])))
            raise RequestError(
                f"a prompt takes {int(fixed[row] + lists[row, 0])} tokens without any liked title, "
                f"more than the limit of {limit}: raise max_tokens (its item has id "
                f"{int(self.targets[row])})"
            )
        cut = np.argmax(fits[:, ::-1], axis=1)  # columns, from the last on: (R,)
        lost = np.arange(both.shape[1]) >= both.shape[1] - cut[:, None]
        self.shortened = int((lost & (both > 0)).any(axis=1).sum())
        self.dropped = int((lost & (both > 0)).sum())
        kept = np.where(lost, 0, both)
        return kept[:, :width][:, ::-1], kept[:, width:]

    def _list_sizes(self, titles: np.ndarray) -> np.ndarray:
        """Tokens of a list with its first 0, 1, ... columns alone: (R, C) -> (R, C + 1)."""
        comma, nothing = (self.sizes[self.number[text]] for text in (",", NOTHING))
        each = np.where(titles > 0, self.sizes[titles] + comma, 0)
        total = np.pad(each.cumsum(axis=1), ((0, 0), (1, 0)))
        return np.where(total > 0, total - comma, nothing)

    def _pieces(
        self, segments: Sequence[str], histories: np.ndarray, similar: np.ndarray, bos: bool = False
    ) -> np.ndarray:
        """Piece numbers of some segments: (R, pieces), 0 where a row has none."""
        columns = [np.full((len(self), 1), self.number["<bos>"])] if bos else []
        for segment in segments:
            if segment == HISTORY:
                columns.append(self._listed(histories))
            elif segment == SIMILAR:
                columns.append(self._listed(similar))
            elif segment == TARGET:
                columns.append(self.targets[:, None])
            else:
                columns.append(np.full((len(self), 1), self.number[segment]))
        return np.concatenate(columns, axis=1).astype(np.int32)

    def _listed(self, titles: np.ndarray) -> np.ndarray:
        """Titles with commas between them; one word where there is none."""
        pieces = np.zeros((len(self), 2 * titles.shape[1] + 1), np.int64)
        pieces[:, 1::2] = titles
        later = (np.cumsum(titles > 0, axis=1) > 1) & (titles > 0)
        pieces[:, 0:-1:2] = np.where(later, self.number[","], 0)
        pieces[:, -1] = np.where((titles > 0).any(axis=1), 0, self.number[NOTHING])
        return pieces


def render(
    template: Sequence[str],
    titles: Sequence[str],
    rows: Rows,
    histories: np.ndarray,
    similar: np.ndarray | None = None,
) -> list[str]:
    """Prompts as plain text, for models behind an endpoint."""

    def listed(items: np.ndarray) -> str:
        return " " + ", ".join(titles[item] for item in items if item) if items.any() else NOTHING

    texts = []
    for at, (user, item) in enumerate(zip(rows.users, rows.items, strict=True)):
        parts = {HISTORY: listed(histories[at]), TARGET: " " + titles[item]}
        if similar is not None:
            parts[SIMILAR] = listed(similar[user])
        texts.append("".join(parts.get(segment, segment) for segment in template))
    return texts


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.int64))
