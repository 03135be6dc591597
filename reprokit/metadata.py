"""Amazon's 2014 metadata: titles, image addresses, categories, descriptions, brands, and which
items go together.

Files   meta_<Category>.json.gz of the 2014 release. A line is a Python literal (not JSON): a dict
        with asin, title, imUrl, related, categories, description and brand, each of which but asin
        may be missing.

Only the lines of wanted items are parsed, as literals and never as code; the files, of several
hundred MB and more, are streamed. The links of `related` were collected over all time, so they
know the future of any split: a row that uses them must say so.
"""

from __future__ import annotations

import ast
import html
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.data import opened
from reprokit.datasets import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

RELATIONS = ("also_bought", "also_viewed", "buy_after_viewing", "bought_together")
"""In the order that MIFN numbers them; its fifth relation is item to category."""
BASE = 1 << 31
"""A pair of numbers below it is one number: a * BASE + b. There can be millions of pairs."""
ASIN = re.compile(rb"'asin': '([^']*)'")


@dataclass(frozen=True, eq=False)
class Metadata:
    """What the metadata say of the items of one data set."""

    titles: dict[str, str]
    """By ASIN; items without one are left out. HTML entities decoded, white space collapsed."""
    image_urls: dict[str, str]
    """By ASIN, as printed."""
    edges: dict[str, Ints]
    """By relation: (E, 2) item ids, from the item whose entry names the link; each pair once."""
    categories: list[str]
    """Names; an item has one of each of its ways from the root."""
    item_categories: Ints
    """(E, 2) item id and index into `categories`; each pair once."""
    counts: dict[str, int]
    """Entries of the items, links kept by relation (each pair once) and dropped (as printed)."""


def read_metadata(paths: Sequence[Path], asins: Sequence[str], level: int = 2) -> Metadata:
    """What the files say of the items `asins`, where the position is the item id.

    The category of a way such as Grocery > Beverages > Tea is the name at `level`, 1 for the root;
    a shorter way's is its last name. Open: which level. A root holds most items of its domain, so
    that it links any two of them, and a leaf few: the default is the level below the root. MIFN's
    authors have 32 categories for Food-Kitchen and do not say which.

    An empty ASIN (that of the padding id 0) stands for no item; one that stands at two ids, as an
    item sold in two domains may, gives both what is known of it. Of an item with several entries
    the first title and the first address count, and all links.

    Raises DataError with file and line for an entry that is not one.
    """
    ids: dict[str, list[int]] = {}
    for number, asin in enumerate(asins):
        if asin:
            ids.setdefault(asin, []).append(number)
    titles: dict[str, str] = {}
    urls: dict[str, str] = {}
    links = {name: array("q") for name in RELATIONS}
    classes: dict[str, int] = {}
    member = array("q")
    counts = Counter({"metadata entries": 0, "links to items outside, dropped": 0})
    for path in paths:
        for entry in _entries(path, ids):
            asin = entry["asin"]
            counts["metadata entries"] += 1
            if title := clean(entry.get("title", "")):
                titles.setdefault(asin, title)
            if entry.get("imUrl"):
                urls.setdefault(asin, entry["imUrl"])
            for name in RELATIONS:
                others = entry.get("related", {}).get(name, ())
                links[name].extend(_links(ids, asin, others, counts))
            for name in sorted(_names(entry, level)):
                number = classes.setdefault(name, len(classes))
                member.extend(one * BASE + number for one in ids[asin])
    edges = {name: _pairs(found) for name, found in links.items()}
    counts.update({f"links {name}": len(found) for name, found in edges.items()})
    return Metadata(titles, urls, edges, list(classes), _pairs(member), dict(counts))


@dataclass(frozen=True, eq=False)
class Texts:
    """What a prompt can say of items, by ASIN; what is not known is left out."""

    titles: dict[str, str]
    descriptions: dict[str, str]
    brands: dict[str, str]
    genres: dict[str, tuple[str, ...]]
    """The last name of each way of categories that is more than its root, in alphabetical order."""


def read_texts(paths: Sequence[Path], asins: Sequence[str]) -> Texts:
    """Titles, descriptions, brands and genres of the items `asins`; of several entries the first.

    Raises DataError as `read_metadata` does.
    """
    found = Texts({}, {}, {}, {})
    fields = {"title": found.titles, "description": found.descriptions, "brand": found.brands}
    for path in paths:
        for entry in _entries(path, dict.fromkeys(asins)):
            asin = entry["asin"]
            for field, texts in fields.items():
                text = entry.get(field, "")
                if not isinstance(text, str):
                    raise DataError(f"{path}, entry of {asin}: '{field}' is not a text")
                if text := clean(text):
                    texts.setdefault(asin, text)
            if names := {way[-1] for way in _ways(entry) if len(way) > 1}:
                found.genres.setdefault(asin, tuple(sorted(names)))
    return found


def clean(text: str) -> str:
    """A title as a prompt prints it: HTML entities decoded, runs of white space one space."""
    return " ".join(html.unescape(text).split())


def _names(entry: Mapping[str, Any], level: int) -> set[str]:
    """The categories of an item: of each of its ways one."""
    return {way[:level][-1] for way in _ways(entry) if way}


def _ways(entry: Mapping[str, Any]) -> Iterator[list[str]]:
    """From the root to a leaf. Some hold an empty name, which is left out."""
    for way in entry.get("categories", ()):
        yield [name for one in way if (name := clean(one))]


def _links(
    ids: Mapping[str, list[int]], asin: str, others: Sequence[str], counts: Counter[str]
) -> Iterator[int]:
    """The links to items of the data set; links to others and to itself are only counted."""
    for other in others:
        if other == asin:
            counts["links to the item itself, dropped"] += 1
        elif other in ids:
            yield from (a * BASE + b for a in ids[asin] for b in ids[other])
        else:
            counts["links to items outside, dropped"] += 1


def _pairs(codes: array[int]) -> Ints:
    """(E, 2), sorted, each pair once."""
    return np.stack(np.divmod(np.unique(np.array(codes, np.int64)), BASE), axis=1)


def _entries(path: Path, wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The entries of wanted items. A line that shows only other ASINs is not parsed: most are."""
    known = {asin.encode() for asin in wanted}
    number = 0
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                shown = ASIN.findall(line)
                if not line.strip() or (shown and known.isdisjoint(shown)):
                    continue
                entry, fault = _parse(line)
                if fault:
                    raise DataError(f"{path}, line {number}: {fault}")
                if entry["asin"] in wanted:
                    yield entry
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}, after line {number}: {error}. The file is damaged or cut short: move it away "
            "and fetch it again (see data/README.md)"
        ) from None


def _parse(line: bytes) -> tuple[dict[str, Any], str]:
    """One entry with fields of the right types, and what is wrong with the line where it is."""
    try:
        entry = ast.literal_eval(line.decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        return {}, f"not a Python literal, as Amazon's 2014 metadata are ({reason})"
    if not isinstance(entry, dict) or not isinstance(entry.get("asin"), str):
        return {}, "not a dict with the text 'asin'"
    for name in ("title", "imUrl"):
        if not isinstance(entry.get(name, ""), str):
            return {}, f"'{name}' is not a text"
    related = entry.get("related", {})
    if not isinstance(related, dict) or not all(_texts(related.get(n, [])) for n in RELATIONS):
        return {}, "'related' is not a dict of lists of ASINs"
    ways = entry.get("categories", [])
    if not isinstance(ways, list) or not all(_texts(way) for way in ways):
        return {}, "'categories' is not a list of lists of names"
    return entry, ""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
