"""What a language model says of sets of reviews: a summary, a price tag, and types (MMREC).

Paper   Tian, Wang, Zhao and Ding, arXiv 2408.04211, section IV.B.

A set is what one user wrote, or what one business received, possibly without one of the reviews.
What is said of a set follows from its own reviews alone, in their order: a review that is changed
or left out changes nothing of a set that does not hold it. (Not so `tiny` and `scratch`: they are
made from all texts, and what they say carries nothing.)

The model named `extractive` is none: summaries are sentences of the reviews themselves (`pick`),
and price tags and types are phrases of `lexicon`.

Importing this module loads no torch.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from reprokit.lexicon import (
    LEXICONS,
    blaming,
    fold,
    has_content,
    price_answer,
    prices_in,
    split_sentences,
    tokens,
    types_in,
)
from reprokit.progress import Progress

EXTRACTIVE = "extractive"
REVISION = 1
"""Of the rules here and in `lexicon`: raised when a change moves a summary, a tag or a type."""
KINDS = ("user", "restaurant", "product")
"""What a set of reviews speaks of; a user's are by that user."""
PRICES = ("none", "cheap", "fair", "overpriced")

SUMMARY = (
    "Summarize the most important information from all reviews [of] in a few sentences. Emphasize "
    "critical and repeated information. Give me just the summary."
)
"""Ours: the paper's prompt stands in the picture of figure 2 alone. The words are those of its
sections III.B and IV.D."""
PRICE = (
    "Can you tell me if the price is over-rice, fair price, low price from reviews for this "
    "restaurant. Give me just the category"
)
"""Section IV.B, as printed; another kind takes the place of "restaurant"."""
TYPES = (
    "can you tell me what kind of restaurant this is from these reviews for the restaurant. Return "
    "me in this format: 'type'"
)
"""Section IV.B, as printed."""
QUESTIONS = (SUMMARY, PRICE, TYPES)


# --- sets ---------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class ReviewSets:
    """Sets of documents: set s has `members[starts[s] : starts[s + 1]]`, in that order."""

    texts: Sequence[str]
    """Documents, none empty."""
    starts: np.ndarray
    """(S + 1,) int64."""
    members: np.ndarray
    """(starts[-1],) int64, document numbers."""

    def __post_init__(self) -> None:
        starts, members = self.starts, self.members
        if not len(starts) or starts[0] or (np.diff(starts) < 0).any():
            raise ValueError(f"starts must begin with 0 and never fall: {starts}")
        if starts[-1] != len(members):
            raise ValueError(f"starts end with {starts[-1]} for {len(members)} members")
        if len(members) and not 0 <= members.min() <= members.max() < len(self.texts):
            raise ValueError(f"a member is none of the {len(self.texts)} documents")
        empty = next((at for at, text in enumerate(self.texts) if not text.strip()), None)
        if empty is not None:
            raise ValueError(f"document {empty} is empty: leave it out")

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(S,) int64."""
        return np.diff(self.starts)

    @classmethod
    def leave_one_out(
        cls, texts: Sequence[str], groups: np.ndarray, n_groups: int, most: int = 0
    ) -> tuple[ReviewSets, np.ndarray, np.ndarray]:
        """All whole groups, then for each document its group without it.

        Args:
            groups: (M,) int64, the group of each document.
            most: of each set the first ones are built, at most so many; 0: all.

        Returns (sets, the set number of each group (G,), and of each document's rest (M,)).
        """
        groups = np.asarray(groups, np.int64)
        if len(groups) != len(texts):
            raise ValueError(f"{len(groups)} groups for {len(texts)} documents")
        if len(groups) and not 0 <= groups.min() <= groups.max() < n_groups:
            raise ValueError(f"a group is none of the {n_groups}")
        count = np.bincount(groups, minlength=n_groups)
        first = np.cumsum(count) - count  # place of each group in `order`
        order = np.argsort(groups, kind="stable")
        place = np.empty_like(order)  # of each document within its group
        place[order] = np.arange(len(order)) - first[groups[order]]

        of_set = np.concatenate([np.arange(n_groups), groups])  # the group of each set
        left_out = np.concatenate([count, place])  # its place; of a whole group, behind the last
        sizes = count[of_set] - (left_out < count[of_set])
        starts, rows, at = spread(np.minimum(sizes, most) if most else sizes)
        at += at >= left_out[rows]
        sets = cls(texts, starts, order[first[of_set[rows]] + at])
        return sets, np.arange(n_groups), n_groups + np.arange(len(groups))

    def capped(self, most: int) -> tuple[ReviewSets, np.ndarray, int]:
        """Only the first `most` members of each set (0: all), equal sets merged.

        Returns (distinct sets in the order of their first appearance, the number (S,) of the
        distinct set of each set, how many sets were cut here).
        """
        kept = np.minimum(self.sizes, most) if most else self.sizes
        same = equal_rows(self.starts[:-1], kept, self.members, len(self.texts))
        _, first, number = np.unique(same, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        first = first[order]
        starts, rows, at = spread(kept[first])
        distinct = ReviewSets(self.texts, starts, self.members[self.starts[first[rows]] + at])
        return distinct, rank[number], int(np.sum(kept < self.sizes))


def spread(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts (N + 1,), row of each entry, place of each entry within its row)."""
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    rows = np.repeat(np.arange(len(sizes)), sizes)
    return starts, rows, np.arange(starts[-1]) - starts[rows]


def gather(starts: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What rows of a ragged array hold: (places of the entries, which of `rows` each is of)."""
    _, owner, at = spread(np.diff(starts)[rows])
    return starts[rows[owner]] + at, owner


def equal_rows(starts: np.ndarray, sizes: np.ndarray, members: np.ndarray, n: int) -> np.ndarray:
    """A number for each row, the same for rows of the same members in the same order.

    Rows are told apart member by member; those that differ from all others drop out.
    """
    same = np.zeros(len(sizes), np.int64)  # among rows of one length, once they have ended
    active, number, at, used = np.arange(len(sizes)), np.zeros(len(sizes), np.int64), 0, 0
    while len(active):
        ended = sizes[active] == at
        same[active[ended]] = used + number[ended]
        used += len(sizes)
        active, number = active[~ended], number[~ended]
        key = number * n + members[starts[active] + at]
        found, number = np.unique(key, return_inverse=True)
        if len(found) == len(active):
            same[active] = used + number
            break
        at += 1
    return same


# --- asking -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Asked:
    """How the sets are asked about."""

    llm: str = EXTRACTIVE
    """A name that `asking` knows, or extractive: no language model."""
    fingerprint: str = ""
    """Of a local model."""
    max_new_tokens: int = 128
    batch: int = 8
    """Of a local model."""
    sentences: int = 3
    """Of an extractive summary, at most."""
    max_words: int = 400
    """Words of reviews in a prompt, at most."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "batch", "sentences", "max_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 at least, got {getattr(self, name)}")


def summaries(
    sets: ReviewSets, kind: str, asked: Asked, folder: Path, progress: Progress
) -> tuple[list[str], dict[str, Any]]:
    """One summary of each set, empty for an empty one; and facts.

    The facts count `sets`, `empty sets`, `shortened prompts` (see `prompt_of`), of these the `cut
    reviews`, and what `asking.ask` counts; `note` says what a reader must know.
    """
    if asked.llm != EXTRACTIVE:
        by = "written by the same user" if kind == "user" else f"for this {kind}"
        prompt = SUMMARY.replace("[of]", by)
        said, facts = answers(sets, prompt, kind, "summaries", asked, folder, progress)
        return [" ".join(text.split()) for text in said], facts
    check_kind(kind)
    distinct, number, _ = sets.capped(0)
    said = extract(distinct, asked.sentences, progress)
    note = "sentences of the reviews, picked without a language model"
    return [said[at] for at in number], unasked(sets, note)


def price_tags(
    sets: ReviewSets, kind: str, asked: Asked, folder: Path, progress: Progress
) -> tuple[np.ndarray, dict[str, Any]]:
    """The price tag of each set, (S,) int8 codes of PRICES; and facts.

    Without a language model, a set's tag is what most mentions of a price in its reviews say; none
    where two tags have as many. Of an answer, it is the one tag that the answer names; an answer
    that names two, or nothing, is none. The facts count the sets with each tag, those with such
    `unclear` answers, and what `summaries` counts.
    """
    unclear = 0
    if asked.llm == EXTRACTIVE:
        check_kind(kind)
        codes = majorities(sets)
        facts = unasked(sets, "phrases of a lexicon")
    else:
        prompt = PRICE.replace("restaurant", kind)
        said, facts = answers(sets, prompt, kind, "price tags", asked, folder, progress)
        parsed = {text: parse_price(text) for text in set(said)}
        codes = np.array([parsed[text] for text in said], np.int8)
        unclear = int(np.sum((codes < 0) & (sets.sizes > 0)))
        codes = np.maximum(codes, 0)
    counts = np.bincount(codes, minlength=len(PRICES)).tolist()
    return codes, {**facts, **dict(zip(PRICES, counts, strict=True)), "unclear": unclear}


def type_names(
    sets: ReviewSets,
    kind: str,
    asked: Asked,
    folder: Path,
    progress: Progress,
    lexicon: str = "restaurants",
) -> tuple[list[tuple[str, ...]], dict[str, Any]]:
    """The types of each set, normalised (see `parse_types`), without repeats; and facts.

    Without a language model, they are those of a lexicon by the number of reviews that mention
    them, then by name, at most 11. The facts count the sets `without types` that have reviews,
    `dropped pieces` of answers, which are sentences, and what `summaries` counts.
    """
    dropped = 0
    if asked.llm == EXTRACTIVE:
        check_kind(kind)
        names = mentioned(sets, lexicon)
        facts = unasked(sets, "phrases of a lexicon")
    else:
        prompt = TYPES.replace("restaurant", kind)
        said, facts = answers(sets, prompt, kind, "types", asked, folder, progress)
        parsed = {text: parse_types(text) for text in set(said)}
        names = [parsed[text][0] for text in said]
        dropped = sum(parsed[text][1] for text in said)
    none = sum(not found for found in names) - int(np.sum(sets.sizes == 0))
    return names, {**facts, "without types": none, "dropped pieces": dropped}


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got '{kind}'")


def unasked(sets: ReviewSets, note: str) -> dict[str, Any]:
    """The facts where no language model was asked."""
    counts = ("prompts", "asked", "recorded", "empty", "reasoned", "cut", "tokens")
    return {"model": EXTRACTIVE, **dict.fromkeys(counts, 0), "note": note, **facts_of(sets)}


def facts_of(sets: ReviewSets, shortened: int = 0, cut: int = 0) -> dict[str, int]:
    empty = int(np.sum(sets.sizes == 0))
    shorter = {"shortened prompts": shortened, "cut reviews": cut}
    return {"sets": len(sets), "empty sets": empty, **shorter}


def answers(
    sets: ReviewSets,
    prompt: str,
    kind: str,
    what: str,
    asked: Asked,
    folder: Path,
    progress: Progress,
) -> tuple[list[str], dict[str, Any]]:
    """What a language model answers of each set, nothing for an empty one; and facts."""
    from reprokit.asking import ask

    check_kind(kind)
    distinct, number, _ = sets.capped(0)
    texts = [" ".join(text.split()) for text in sets.texts]
    words = np.array([text.count(" ") + 1 for text in texts])
    full = np.flatnonzero(distinct.sizes)
    made = [
        prompt_of(prompt, distinct.members[start:end], texts, words, asked.max_words)
        for start, end in zip(distinct.starts[full], distinct.starts[full + 1], strict=True)
    ]
    found, told = ask(
        [text for text, _, _ in made],
        asked.llm,
        folder,
        progress,
        fingerprint=asked.fingerprint,
        max_new_tokens=asked.max_new_tokens,
        batch=asked.batch,
        # The fixed words of all questions come first: one model made here serves them all.
        corpus=(" ".join(question.replace("restaurant", kind) for question in QUESTIONS), *texts),
        what=f"{what} of {kind}s",
    )
    said = np.full(len(distinct), "", object)
    said[full] = [answer.text for answer in found]
    shortened = np.zeros((2, len(distinct)), bool)
    shortened[:, full] = np.array([flags for _, *flags in made], bool).reshape(-1, 2).T
    counts = shortened[:, number].sum(axis=1).tolist()
    return said[number].tolist(), {**told, **facts_of(sets, *counts)}


def prompt_of(
    prompt: str, members: np.ndarray, texts: Sequence[str], words: np.ndarray, most: int
) -> tuple[str, bool, bool]:
    """A prompt and the reviews, each on a line of its own behind a dash.

    Reviews are left out from the end until they have `most` words together; the first one stays,
    cut at `most` words. Returns (prompt, whether it was shortened, whether the first was cut).
    """
    total = np.cumsum(words[members])
    kept = max(int(np.searchsorted(total, most, side="right")), 1)
    cut = bool(total[0] > most)
    lines = [texts[at] for at in members[:kept]]
    if cut:
        lines = [" ".join(lines[0].split()[:most])]
    return "\n- ".join([prompt, *lines]), kept < len(members) or cut, cut


# --- reading answers ----------------------------------------------------------------------------
def parse_price(answer: str) -> int:
    """The code of the one tag that an answer names; -1 where it names two, or nothing."""
    named = price_answer(answer)
    return PRICES.index(named.pop()) if len(named) == 1 else -1


GENERIC = frozenset(
    [
        *("restaurant", "restaurants", "place", "places", "eatery", "establishment", "venue"),
        *("cuisine", "cuisines", "style", "spot", "joint", "type", "types", "kind", "kinds"),
        *("category", "product", "products", "item", "items", "a", "an", "the"),
    ]
)
"""Words that are no part of a type's name."""
OPENING = GENERIC | frozenset(
    [
        *("this", "it", "it's", "that", "that's", "its", "is", "are", "was", "of", "seems"),
        *("appears", "looks", "to", "be", "like", "likely", "probably", "mainly", "primarily"),
    ]
)
"""Words that may stand before a type."""
CLAUSE = frozenset(
    [
        *("i", "we", "they", "you", "he", "she", "it", "this", "that", "these", "those", "which"),
        *("who", "there", "here", "following", "is", "are", "was", "were", "be", "been", "has"),
        *("have", "had", "serves", "serve", "served", "serving", "offers", "offer", "offering"),
        *("provides", "known", "based", "reviews", "review", "according", "mentioned", "mention"),
        *("seems", "appears", "could", "would", "should", "may", "might", "because", "so", "but"),
        *("with", "for", "from", "sorry", "information", "specify", "specified", "determine"),
        *("determined", "provided", "given", "not", "no", "none", "unknown", "unclear", "cannot"),
        *("can't", "n"),
    ]
)
"""Words that make a sentence of what holds them, or say that there is no type."""
FOODS = frozenset(["fast", "soul", "comfort", "street", "health", "finger", "pub", "bar"])
"""Before "food", which else is no part of a name."""
PAIRS = re.compile(r"\b(?:bar and grill|fish and chips|surf and turf|mac and cheese)\b")
PARTS = re.compile(r"[,;:/|()\[\]{}\n\u2022\u00b7]|[.!?]+(?:\s|$)|\s-\s|\band\b|\bor\b")
LONGEST_NAME = 4


def parse_types(answer: str) -> tuple[tuple[str, ...], int]:
    """(the types that an answer lists, how many of its pieces are no type).

    An answer is taken apart at commas, slashes, line ends, full stops, "and" and the like. Names
    are in lower case and without accents, hyphens, quotes, Markdown, and words such as
    "restaurant"; "This is a" before a name is removed. What is then longer than 4 words, or holds a
    word of a sentence, is no type.
    """
    text = re.sub(r"[*_`#\"\u201c\u201d\u2018\u00ab\u00bb]|(?<!\w)'|'(?!\w)", " ", fold(answer))
    text = re.sub(r"[^\S\n]+", " ", text)
    text = PAIRS.sub(lambda found: found[0].replace(" ", "_"), text)
    names: dict[str, None] = {}
    dropped = 0
    for piece in PARTS.split(text):
        words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", piece)
        if not any(word[0].isalpha() for word in words):  # empty, or the number of a list
            continue
        name = type_name(words)
        if name is None:
            dropped += 1
        elif name:
            names[name] = None
    return tuple(names), dropped


def type_name(words: list[str]) -> str | None:
    """What is left of a piece of an answer; None for a sentence."""
    start = next((at for at, word in enumerate(words) if word not in OPENING), len(words))
    kept = [word for word in words[start:] if word not in GENERIC]
    if kept and kept[-1] == "food" and (len(kept) == 1 or kept[-2] not in FOODS):
        kept.pop()
    return None if len(kept) > LONGEST_NAME or CLAUSE.intersection(kept) else " ".join(kept)


# --- types as codes -----------------------------------------------------------------------------
def vocabulary(names: Sequence[tuple[str, ...]], most: int = 179) -> list[str]:
    """The most frequent types, in how many sets they are; as frequent ones by name."""
    count = Counter(chain.from_iterable(names))
    return sorted(count, key=lambda name: (-count[name], name))[:most]


def type_codes(
    names: Sequence[tuple[str, ...]], vocabulary: Sequence[str], most: int = 11
) -> tuple[np.ndarray, dict[str, int]]:
    """The first types of each set as places in a vocabulary, (S, most), padded with its length.

    The counts are of types left out: `unknown types`, and known ones `beyond {most}` of a set.
    """
    place = {name: at for at, name in enumerate(vocabulary)}
    known = [[place[name] for name in some if name in place] for some in names]
    total = sum(map(len, known))
    _, rows, at = spread(np.array([min(len(some), most) for some in known], np.int64))
    codes = np.full((len(names), most), len(vocabulary), np.int64)
    codes[rows, at] = list(chain.from_iterable(some[:most] for some in known))
    unknown = sum(map(len, names)) - total
    return codes, {"unknown types": unknown, f"beyond {most}": total - len(rows)}


# --- without a language model: price tags and types ---------------------------------------------
def majorities(sets: ReviewSets) -> np.ndarray:
    """(S,) int8: the price tag that most mentions in a set say, none where two have as many."""
    mentions = np.zeros((len(sets.texts), len(PRICES) - 1), np.int64)
    for at, text in enumerate(sets.texts):
        for name in prices_in(text):
            mentions[at, PRICES.index(name) - 1] += 1
    sums = np.zeros((len(sets.members) + 1, len(PRICES) - 1), np.int64)
    np.cumsum(mentions[sets.members], axis=0, out=sums[1:])
    votes = sums[sets.starts[1:]] - sums[sets.starts[:-1]]  # (S, 3)
    most = votes.max(axis=1, keepdims=True)
    clear = (votes == most).sum(axis=1) == 1  # so the most is above 0
    return np.where(clear, 1 + votes.argmax(axis=1), 0).astype(np.int8)


def mentioned(sets: ReviewSets, lexicon: str, most: int = 11) -> list[tuple[str, ...]]:
    """The types of each set: those that most reviews mention, then by name."""
    if lexicon not in LEXICONS:
        raise ValueError(f"lexicon must be one of {', '.join(LEXICONS)}; got '{lexicon}'")
    types = sorted(LEXICONS[lexicon])
    code = {name: at for at, name in enumerate(types)}
    tagged = [[code[name] for name in sorted(types_in(text, lexicon))] for text in sets.texts]
    of_text, _, _ = spread(np.array([len(some) for some in tagged], np.int64))
    listed = np.array(list(chain.from_iterable(tagged)), np.int64)
    entries, member = gather(of_text, sets.members)
    of_set = np.repeat(np.arange(len(sets)), sets.sizes)[member]
    key, count = np.unique(of_set * len(types) + listed[entries], return_counts=True)
    key = key[np.lexsort((key, -count, key // len(types)))]  # by set, then count, then name
    names = [types[at] for at in key % len(types)]
    bounds = np.searchsorted(key // len(types), np.arange(len(sets) + 1)).tolist()
    return [tuple(names[start : min(end, start + most)]) for start, end in pairwise(bounds)]


# --- without a language model: summaries --------------------------------------------------------
DAMPING = 3
"""Words without weight that are added to each sentence: they keep short ones from winning."""
BLAME = 2
"""How much more a word counts that blames."""
PORTION = 1_000_000
"""Words of sets that are worked on together."""


@dataclass(frozen=True)
class Book:
    """Texts as sentences, and sentences as content words."""

    sentences: list[str]
    of_text: np.ndarray
    """(M + 1,) int64: the sentences of text m are those of_text[m] to of_text[m + 1]."""
    of_sentence: np.ndarray
    """(sentences + 1,) int64: places in the following."""
    words: np.ndarray
    """(entries,) int64: numbers of the distinct content words of each sentence."""
    blames: np.ndarray
    """(entries,) bool: whether the word blames, see `lexicon.blaming`."""
    n_words: int


def read(texts: Sequence[str]) -> Book:
    """Each text once."""
    sentences: list[str] = []
    number: dict[str, int] = {}
    of_text, of_sentence, words, blames = array("q", [0]), array("q", [0]), array("q"), array("b")
    for text in texts:
        for sentence in split_sentences(text):
            found = tokens(sentence)
            blamed = blaming(found)
            content = dict.fromkeys(word for word in found if word in blamed or has_content(word))
            words.extend(number.setdefault(word, len(number)) for word in content)
            blames.extend(word in blamed for word in content)
            of_sentence.append(len(words))
            sentences.append(sentence if not sentence[-1].isalnum() else f"{sentence}.")
        of_text.append(len(sentences))
    starts, starts_of_words = np.array(of_text, np.int64), np.array(of_sentence, np.int64)
    numbers = np.array(words, np.int64)
    return Book(sentences, starts, starts_of_words, numbers, np.array(blames, bool), len(number))


def extract(sets: ReviewSets, count: int, progress: Progress) -> list[str]:
    """Sentences of each set as its summary, see `pick`, in their order of appearance."""
    book = read(sets.texts)
    said = [""] * len(sets)
    full = np.flatnonzero(sets.sizes)
    progress.start_steps(len(full))
    for rows in portions(sets, full, np.diff(book.of_sentence[book.of_text])):
        places, owner = gather(sets.starts, rows)
        of_set, chosen = pick(book, sets.members[places], owner, count)
        bounds = np.searchsorted(of_set, np.arange(len(rows) + 1)).tolist()
        picked = [book.sentences[at] for at in chosen.tolist()]
        for at, (start, end) in zip(rows.tolist(), pairwise(bounds), strict=True):
            said[at] = " ".join(picked[start:end])
        progress.step(int(np.searchsorted(full, rows[-1])) + 1, "summaries")
    return said


def portions(sets: ReviewSets, full: np.ndarray, words: np.ndarray) -> Iterator[np.ndarray]:
    """The sets of `full`, so many at once that memory stays small; words: of each text."""
    sums = np.concatenate([[0], np.cumsum(words[sets.members])])
    cost = sums[sets.starts[full + 1]] - sums[sets.starts[full]]
    portion = np.cumsum(cost) // PORTION
    yield from np.split(full, np.flatnonzero(np.diff(portion)) + 1) if len(full) else ()


def pick(
    book: Book, documents: np.ndarray, owner: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sentences that say what is central in each set, at most `count`: (set, sentence) of each.

    In the manner of SumBasic (Nenkova and Vanderwende, 2005), made for reviews:

    - A content word weighs as many of the set's reviews hold it. Nothing is known of other sets.
    - A sentence scores the mean weight of its content words, those that blame doubled, and
      `DAMPING` words of weight 0. The best is said, the earliest of equals, turn by turn.
    - A word that was said weighs nothing, so nothing is said twice. It ends where nothing new is
      left; the first turn says something in any case.
    - Blame is what a mean of vectors dilutes most and what the paper finds most telling: where no
      turn has said a sentence that blames, the last of two or more does, if there is a new one.

    documents, owner: (K,) the members of sets 0, 1, 2 ... in order, none of them empty.
    All sums are of whole numbers, so neither their order nor other sets change a bit.
    """
    sentence, document = gather(book.of_text, documents)
    of_set = owner[document]  # of each sentence
    entry, holder = gather(book.of_sentence, sentence)
    word, weight = weights(of_set[holder] * book.n_words + book.words[entry], document[holder])
    blame = book.blames[entry]
    factor, blames = np.where(blame, BLAME, 1), np.bincount(holder, blame, len(sentence)) > 0
    length = DAMPING + np.bincount(holder, minlength=len(sentence))
    first = np.flatnonzero(np.diff(of_set, prepend=-1))
    taken, blamed = np.zeros(len(sentence), bool), np.zeros(len(first), bool)
    for turn in range(count):
        score = np.bincount(holder, weight[word] * factor, len(sentence)) / length
        if 0 < turn == count - 1:
            due = ~blamed & (np.maximum.reduceat(score * blames, first) > 0)
            score = np.where(due[of_set] & ~blames, 0, score)
        best = np.maximum.reduceat(score, first)
        at = np.flatnonzero(score == best[of_set])
        at = at[np.diff(of_set[at], prepend=-1) > 0]  # the earliest of each set
        at = at[(best > 0) | (turn == 0)]
        taken[at] = True
        blamed[of_set[at]] |= blames[at]
        weight[word[taken[holder]]] = 0
    said = np.flatnonzero(taken)
    return of_set[said], sentence[said]


def weights(key: np.ndarray, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a number for each key, 0, 1, 2 ..., how many documents hold the key of each number).

    Entries of one document stand together.
    """
    order = np.argsort(key, kind="stable")
    new = np.diff(key[order], prepend=-1) != 0
    number = np.empty_like(order)
    number[order] = np.cumsum(new) - 1
    counted = new | (np.diff(document[order], prepend=-1) != 0)
    return number, np.bincount(number[order], counted)
