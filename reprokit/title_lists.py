"""Lists of titles in a language model's answer, matched with the candidates that it was given.

Numbers, bullets, quotes, bold type and the reasons behind a dash, a colon or a bar are set aside,
as are case, accents, punctuation, a year in brackets and the place of an article. What is then no
candidate's title may still be like one; what is not was invented.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

ARTICLES = {"the", "a", "an"}
NUMBERED = re.compile(r"^[\s*_#>]*\(?\d{1,3}[.):\]]\s*[*_]*\s*(?=\S)")
BULLET = re.compile(r"^\s*[-*\u2022\u2013\u2014+]\s+(?=\S)")
BREAK = re.compile(r"\s+[-\u2013\u2014]+\s+|\s*[:\u2014|]\s+|\s*;\s+|\s+because\s+", re.IGNORECASE)
QUOTED = re.compile(r"^[\"'\u201c\u2018\u00ab](.+?)[\"'\u201d\u2019\u00bb](?=\W|$)")


@dataclass(frozen=True)
class Reading:
    """What an answer says of its candidates."""

    order: tuple[int, ...]
    """Places of the candidates that it names, best first."""
    invented: int
    """Entries that are no candidate."""
    repeated: int
    """Entries whose candidate was named before."""


@dataclass(frozen=True)
class Titles:
    """Candidate titles, ready to be found."""

    titles: Sequence[str]
    known: Mapping[str, list[int]] = field(default_factory=dict)
    """Places by what `plain` makes of a title, with its year and without."""

    @classmethod
    def of(cls, titles: Sequence[str]) -> Titles:
        known: dict[str, list[int]] = {}
        for at, title in enumerate(titles):
            for form in {plain(title), plain(without_year(title))} - {""}:
                known.setdefault(form, []).append(at)
        return cls(titles, known)

    def find(self, entry: str, taken: set[int]) -> int | None:
        """The place of the candidate that an entry is about; of equal titles the first free one.

        The longest part of the entry that is a title counts, else the part most like one.
        """
        parts = [part for text in beginnings(entry) for part in (text, without_year(text))]
        forms = list(dict.fromkeys(form for part in parts if (form := plain(part))))
        exact = [form for form in forms if form in self.known]
        found = exact[0] if exact else self.closest(forms)
        if found is None:
            return None
        places = self.known[found]
        return next((at for at in places if at not in taken), places[0])

    def closest(self, forms: Sequence[str], cutoff: float = 0.85) -> str | None:
        """The form of a candidate that is most like one of these, with the same numbers: part II is
        not part III."""
        best, found = 0.0, None
        for form in forms:
            alike = [known for known in self.known if numbers(known) == numbers(form)]
            for close in difflib.get_close_matches(form, alike, 1, cutoff):
                ratio = difflib.SequenceMatcher(None, close, form).ratio()
                if ratio > best:
                    best, found = ratio, close
        return found


def plain(title: str) -> str:
    """A title for comparison: lower case, no accents or punctuation, no article at either end."""
    text = unicodedata.normalize("NFKD", title.casefold())
    letters = "".join(c for c in text if not unicodedata.combining(c)).replace("&", " and ")
    words = re.findall(r"\w+", re.sub(r"['\u2019]", "", letters))
    year = words[-1:] if len(words) > 1 and re.fullmatch(r"(18|19|20)\d\d", words[-1]) else []
    words = words[: len(words) - len(year)]
    if len(words) > 1 and words[0] in ARTICLES:  # "The Matrix"
        words = words[1:]
    elif len(words) > 1 and words[-1] in ARTICLES:  # "Matrix, The"
        words = words[:-1]
    return " ".join([*words, *year])


def numbers(form: str) -> list[str]:
    """Numerals of a title, Roman ones too."""
    return [word for word in form.split() if re.fullmatch(r"\d+|[ivx]+", word)]


def without_year(title: str) -> str:
    return re.sub(r"\s*\((18|19|20)\d\d\)\s*$", "", title)


def beginnings(entry: str) -> list[str]:
    """Where the title of an entry may end: at its end, or before a mark behind which a reason
    stands; the longest first."""
    text = entry.strip().strip("*_` ").strip()
    ends = [text[: found.start()] for found in BREAK.finditer(text)]
    quoted = QUOTED.match(text)
    bold = re.match(r"(.+?)\*\*", text)
    spans = [text, *reversed(ends)] + [found[1] for found in (quoted, bold) if found]
    return [span.strip("*_`\"' \u201c\u201d") for span in spans]


def entries(reply: str) -> Iterator[tuple[str, bool]]:
    """The lines of an answer that may be titles, and whether each is marked as part of a list.

    Where lines are numbered the others are prose; so are those without a bullet where some have
    one.
    """
    lines = [line for line in reply.splitlines() if line.strip()]
    if len(lines) == 1:  # "1. A 2. B"
        lines = re.split(r"\s+(?=\d{1,3}[.)]\s)", lines[0])
    for mark in (NUMBERED, BULLET):
        if any(mark.match(line) for line in lines):
            for line in lines:
                if found := mark.match(line):
                    rest = line[found.end() :]
                    yield BULLET.sub("", rest), True
            return
    for line in lines:
        yield line, False


def read_ranking(reply: str, titles: Sequence[str]) -> Reading:
    """The ranking in an answer, of candidates with these titles."""
    known, order = Titles.of(titles), list[int]()
    invented = repeated = 0
    for entry, marked in entries(reply):
        place = known.find(entry, set(order))
        if place is None:
            invented += marked  # a line without a mark may be a greeting
        elif place in order:
            repeated += 1
        else:
            order.append(place)
    return Reading(tuple(order), invented, repeated)
