"""What a language model adds to the titles of items (LLM-EMF, eq. 1).

P_n = LLM(commands): each item's title and domain fill the template of the paper's section 3.3, and
a language model answers it, asked once and recorded as `asking` says. `item_text` puts a title and
what was said of it into an order for an encoder that may read the beginning alone.

Importing this module loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reprokit.asking import ask
from reprokit.progress import Progress

TEMPLATE = (
    "Generate additional contextual information for an item which is type of [domain] with "
    "[title]. Provide detailed insights and keywords about the item's features. The output should "
    "include specific attributes, and potential users that could enhance the understanding of the "
    "item in a cross-domain recommendation context."
)
"""Section 3.3, as printed."""

Item = tuple[str, str, str]
"""(item id, domain, title)."""


# --- asking -------------------------------------------------------------------------------------
def enrich(
    items: Sequence[Item],
    llm: str,
    folder: Path,
    progress: Progress,
    fingerprint: str = "",
    max_new_tokens: int = 128,
    batch: int = 8,
    dtype: str = "auto",
    workers: int = 8,
) -> tuple[list[str], dict[str, Any]]:
    """What a language model says of each item, empty where it has no title; and facts.

    The arguments, the facts and what is raised are those of `asking.ask`, whose prompts are the
    items: those with the same domain and title are asked about once. The facts count all `items`,
    and the `untitled` ones, which are not asked about, in place of prompts.
    """
    items = [(item, tidy(domain), tidy(title)) for item, domain, title in items]
    titled = [item for item in items if item[2]]
    answers, facts = ask(
        [command(item) for item in titled],
        llm,
        folder,
        progress,
        fingerprint,
        max_new_tokens,
        batch,
        dtype,
        workers,
        corpus=[TEMPLATE, *(text for _, *texts in titled for text in texts)],
        what="items described",
    )
    del facts["prompts"]
    said = iter(answers)
    texts = [next(said).text if item[2] else "" for item in items]
    return texts, {"items": len(items), "untitled": len(items) - len(titled), **facts}


def tidy(text: str) -> str:
    """Text on one line, without space around it."""
    return " ".join(str(text).split())


def command(item: Item) -> str:
    """The template, filled."""
    parts = {"[domain]": item[1], "[title]": item[2]}
    return re.sub(r"\[(?:domain|title)\]", lambda found: parts[found[0]], TEMPLATE)


# --- the text of an item ------------------------------------------------------------------------
KEYWORDS = r"key ?words?|tags?|key ?phrases?"
ATTRIBUTES = r"attributes?|features?|genres?|themes?|category|categories|details?|specifications?"
OTHERS = r"users?|audiences?|readers?|viewers?|insights?|context|overview|summary|description"
FIRST, SECOND, LISTED, REST = range(1, 5)
NUMBER = r"\(?\d{1,2}[.)]\s+"
MARK = re.compile(rf"(?:[-*+\u2022\u2013\u25cf]\s+|{NUMBER})")
"""Of a line of a list."""
LABEL_WORDS = 6
"""What stands before a colon is a label up to this many words, and else part of a sentence."""


def item_text(title: str, extra: str) -> str:
    """An item's text for an encoder that may read its beginning alone.

    The title comes first, then what a language model said, in this order:

    1. what stands under a heading, or behind a label, that speaks of keywords;
    2. the same for attributes, features, genres, themes, categories, details, specifications;
    3. other lines of lists;
    4. all the rest, such as prose.

    Within each the model's order is kept. A heading reaches to the next one, to the next label
    outside a list, or to the empty line behind what stands under it. Headings, Markdown and marks
    of lists are removed, and so is the label of keywords; parts are joined by full stops.
    """
    ranked: list[tuple[int, str]] = []
    section, filled = REST, False
    for line in extra.splitlines():
        plain = without_marks(line)
        if not plain:
            section = REST if filled and not line.strip() else section
            continue
        heading = heading_rank(line.strip(), plain)
        if heading:
            section, filled = heading, False
            continue
        listed = bool(MARK.match(line.strip()))
        label, rest = split_label(plain)
        if label and not listed:
            section = REST
        own, filled = rank_of(label), True
        rank = min(section, own, LISTED if listed else REST)
        ranked.append((rank, rest if own == FIRST else plain))
    parts = [tidy(title), *(text for _, text in sorted(ranked, key=lambda part: part[0]))]
    return ". ".join(part.rstrip(" .;,") for part in parts if part.rstrip(" .;,"))


def split_label(plain: str) -> tuple[str, str]:
    """("Genre", "drama") of "Genre: drama"; ("", the line) where nothing is labelled."""
    label, colon, rest = plain.partition(":")
    return (label, rest.strip()) if colon and len(label.split()) <= LABEL_WORDS else ("", plain)


def rank_of(label: str) -> int:
    """Which of the four parts a heading or label announces."""
    ranks = ((FIRST, KEYWORDS), (SECOND, ATTRIBUTES))
    return next((rank for rank, words in ranks if speaks_of(words, label)), REST)


def speaks_of(words: str, label: str) -> bool:
    return bool(re.search(rf"\b(?:{words})\b", label, re.IGNORECASE))


def heading_rank(line: str, plain: str) -> int:
    """What a heading announces; 0 for a line that is none.

    A heading begins with #, or ends with a colon, or is bold from end to end and speaks of what a
    model was asked for: a bold name alone is content.
    """
    label, rest = split_label(plain)
    bold = re.fullmatch(rf"(?:{NUMBER})?(\*\*|__)[^*_]+\1:?", line)
    told = bold and speaks_of(f"{KEYWORDS}|{ATTRIBUTES}|{OTHERS}", plain)
    return rank_of(plain) if line.startswith("#") or told or (label and not rest) else 0


def without_marks(line: str) -> str:
    """A line without Markdown and without the mark of a list."""
    line = re.sub(r"^(?:#{1,6}|>+)\s*", "", line.strip())
    line = MARK.sub("", line, count=1) if MARK.match(line) else line
    line = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", line)  # links and pictures
    line = re.sub(r"<[^<>]{1,40}>|`+|\*+|(?<!\w)_+|_+(?!\w)|\|", " ", line)
    line = tidy(line)
    return "" if re.fullmatch(r"[\W_]*", line) else re.sub(r"\s+([:;,.!?])", r"\1", line)
