"""Lists of titles in a language model's answer, matched with the candidates that it was given.

Numbers, bullets, quotes, bold type and the reasons behind a dash, a colon or a bar are set aside,
as are case, accents, punctuation, a year in brackets, the place of an article and a candidate's
second title in brackets. What is then no candidate's title may still be like one; what is not was
invented. Where an entry and a candidate both have a year in brackets, it is the same: a sequel is
not the film it follows.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

ARTICLES = {"the", "a", "an"}
NUMBERED = re.compile(r"^[\s*_#>]*\(?(\d{1,3})[.):\]]\s*[*_]*\s*(?=\S)")
BULLET = re.compile(r"^\s*[-*\u2022\u2013\u2014+]\s+(?=\S)")
BREAK = re.compile(r"\s+[-\u2013\u2014]+\s+|\s*[:\u2014|]\s+|\s*;\s+|\s+because\s+", re.IGNORECASE)
YEAR = re.compile(r"\((1[89]\d\d|20\d\d)\)")
ANY_YEAR = re.compile(r"\b(1[89]\d\d|20\d\d)\b")
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

    years: Sequence[str]
    """The year in brackets of each, "" where it has none."""
    known: Mapping[str, list[int]] = field(default_factory=dict)
    """Places by what `plain` makes of a title's `shapes`."""

    @classmethod
    def of(cls, titles: Sequence[str]) -> Titles:
        known: dict[str, list[int]] = {}
        for at, title in enumerate(titles):
            for form in dict.fromkeys(plain(shape) for shape in shapes(title)):
                known.setdefault(form, []).append(at)
        return cls([year_of(title) for title in titles], known)

    def find(self, entry: str, taken: set[int]) -> int | None:
        """The place of the candidate that an entry is about; of equal titles the first free one.

        The longest part of the entry that is a title counts, else the part most like one.
        """
        forms: dict[tuple[str, str], None] = {}
        for text, year in beginnings(entry):
            for part in (text, without_year(text)):
                if form := plain(part):
                    forms[form, year] = None
        exact = (found for form, year in forms if (found := self.places(form, year)))
        places = next(exact, None) or self.closest(list(forms))
        return next((at for at in places if at not in taken), places[0]) if places else None

    def places(self, form: str, year: str) -> list[int]:
        """Of the candidates with a form, those that have no other year."""
        places = self.known.get(form, ())
        return [at for at in places if not year or self.years[at] in ("", year)]

    def closest(self, forms: Sequence[tuple[str, str]], cutoff: float = 0.85) -> list[int]:
        """Places of the form that is most like one of these, with the same numbers: part II is not
        part III."""
        best, found = 0.0, list[int]()
        for form, year in forms:
            alike = [known for known in self.known if numbers(known) == numbers(form)]
            alike = [known for known in alike if self.places(known, year)]
            for close in difflib.get_close_matches(form, alike, 1, cutoff):
                ratio = difflib.SequenceMatcher(None, close, form).ratio()
                if ratio > best:
                    best, found = ratio, self.places(close, year)
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
    return " ".join([*words, *year]) or text.strip()  # "$" is a film


def shapes(title: str) -> tuple[str, ...]:
    """What a title is called: all of it; without its year; without second titles in brackets, as in
    "Blue Angel, The (Blaue Engel, Der) (1930)"; and with an article of any language in front."""
    short = without_year(title)
    head = re.sub(r"\s+\(.*\)$", "", short)
    return title, short, head, re.sub(r"^(.+), (\w{1,3})$", r"\2 \1", head)


def numbers(form: str) -> list[str]:
    """Numerals of a title, Roman ones too."""
    return [word for word in form.split() if re.fullmatch(r"\d+|[ivx]+", word)]


def without_year(title: str) -> str:
    return re.sub(r"\s*\((18|19|20)\d\d\)\s*$", "", title)


def year_of(title: str) -> str:
    """The year in brackets at the end of a title; empty where there is none."""
    found = YEAR.search(title)
    return found[1] if found and not title[found.end() :].strip() else ""


def beginnings(entry: str) -> list[tuple[str, str]]:
    """Where the title of an entry may end, each with the year in brackets there: at the entry's
    end, behind a year, or before a mark behind which a reason stands, the longest first; then at
    the end of quotes or bold type."""
    text = entry.strip().strip("*_` ").strip()
    ends = {len(text), *(found.end() for found in YEAR.finditer(text))}
    ends |= {found.start() for found in BREAK.finditer(text) if is_cut(found, text)}
    spans = [(text[:end], year_of(text[:end])) for end in sorted(ends, reverse=True)]
    for found in (QUOTED.match(text), re.match(r"(.+?)\*\*", text)):
        if found:
            behind = re.match(rf"[\W_]*{YEAR.pattern}", text[found.end() :])
            spans.append((found[1], behind[1] if behind else year_of(found[1])))
    return [(span.strip("*_`\"' \u201c\u201d"), year) for span, year in spans]


def is_cut(mark: re.Match[str], text: str) -> bool:
    """Whether what stands behind a mark may be a reason: with a year it is the rest of a title, as
    in "Alien: Resurrection (1997)". A reason behind a dash may speak of a year without brackets."""
    rest = text[mark.end() :]
    return not (ANY_YEAR if mark[0].strip() == ":" else YEAR).search(rest)


def entries(reply: str) -> Iterator[tuple[str, bool]]:
    """The lines of an answer that may be titles, and whether each is marked as part of a list.

    Where lines are numbered the others are prose; so are those without a bullet where some have
    one.
    """
    lines = [line for line in reply.splitlines() if line.strip()]
    if len(lines) == 1:  # "1. A 2. B"
        lines = re.split(r"\s+(?=\d{1,3}[.)]\s)", lines[0])
    for mark in (NUMBERED, BULLET):
        found = [match for line in lines if (match := mark.match(line))]
        if found and (mark is BULLET or is_numbered(found, lines)):
            for match in found:
                yield BULLET.sub("", match.string[match.end() :]), True
            return
    for line in lines:
        yield line, False


def is_numbered(found: Sequence[re.Match[str]], lines: Sequence[str]) -> bool:
    """Whether numbers before lines are those of a list, from 1 on: "300: Rise of an Empire" is a
    title. One alone is a list where nothing else stands but what introduces it with a colon."""
    others = [line for line in lines if not line.rstrip().endswith(":")]
    return int(found[0][1]) == 1 and (len(found) > 1 or len(others) == 1)


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
