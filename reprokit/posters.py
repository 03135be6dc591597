"""Film posters of MovieLens, from The Movie Database (TMDB) with the user's own key.

Each film takes two requests: GET LOOKUP answers with `poster_path`, which IMAGE serves. Films are
those of links.csv (movieId, tmdbId) of ml-latest-small and ml-25m, whichever is here, the smaller
set first. `photos` keeps the pace, tries again and records what is gone.

The key stands in TMDB_API_KEY. It goes to LOOKUP's host alone: in a header that no redirect
repeats (the "API Read Access Token"), or, as that host wants it of a short "API Key", in the
query. It is neither printed nor stored.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import zlib
from pathlib import Path
from urllib import request as web

from reprokit.data import opened
from reprokit.datasets import DataError
from reprokit.download import find
from reprokit.photos import (
    HEADERS,
    NO_POSTER,
    Ask,
    Fault,
    Gone,
    Pace,
    Places,
    Refused,
    ask_once,
    ask_picture,
)
from reprokit.runs import RequestError

LOOKUP = "https://api.themoviedb.org/3/movie/{id}"
IMAGE = "https://image.tmdb.org/t/p/w185{path}"
"""185 pixels wide: an encoder reads 224 by 224 or fewer."""
KEY = "TMDB_API_KEY"
"""Variable of the environment."""
LINKS = ("ml-latest-small/links.csv", "ml-25m/links.csv")


def poster_addresses(data_dir: Path, image_url: str = "") -> Places:
    """The films of links.csv by `movieId`, and where TMDB tells their poster.

    `image_url`: an address with {id}, the movieId, in it; it is the poster's own and wants no key.

    Raises RequestError without a key, and DataError without a links.csv.
    """
    key = "" if image_url else read_key()
    paths = [path for name in LINKS if (path := find(data_dir, name))]
    if not paths:
        raise DataError(
            f"{data_dir / LINKS[0]} missing: it says which film is which at themoviedb.org. Fetch "
            f"it: python -m reprokit data fetch ml-latest-small --data-dir {data_dir} (or ml-25m)"
        )
    films: dict[str, str] = {}
    for path in paths:
        films |= {film: tmdb for film, tmdb in read_links(path).items() if not films.get(film)}
    if image_url:
        return Places({film: image_url.replace("{id}", film) for film in films}, 0)
    known = {film: LOOKUP.replace("{id}", tmdb) for film, tmdb in films.items() if tmdb}
    return Places(known, len(films) - len(known), ask_poster(key), requests=2)


def read_key() -> str:
    """The user's key. No message shows it."""
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise RequestError(
            f"{KEY} is not set: posters come from themoviedb.org, which asks for a key of yours. "
            f"Get one at https://www.themoviedb.org/settings/api, then: export {KEY}=YOUR_KEY"
        )
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", key):
        raise RequestError(f"{KEY} is no key of themoviedb.org: it has characters that no key has")
    return key


def read_links(path: Path) -> dict[str, str]:
    """`tmdbId` by `movieId`, "" where a film has none; in the order of the file."""
    films: dict[str, str] = {}
    try:
        with opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            for number, row in enumerate(csv.DictReader(text), 2):
                film, tmdb = row.get("movieId") or "", row.get("tmdbId")  # None: a row cut short
                if not film.isdecimal() or tmdb is None or not (tmdb.isdecimal() or not tmdb):
                    raise DataError(f"{path}, line {number}: expected numbers movieId and tmdbId")
                films[film] = tmdb
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return films


def ask_poster(key: str) -> Ask:
    """How a film's poster is asked for at the address that tells where it is."""

    def ask(opener: web.OpenerDirector, pace: Pace, address: str) -> tuple[bytes, str]:
        path = poster_path(opener, address, key)
        if not pace.wait():
            raise Fault("the fetch has stopped", passing=True)
        return ask_picture(opener, pace, IMAGE.replace("{path}", path))

    return ask


def poster_path(opener: web.OpenerDirector, address: str, key: str) -> str:
    """The path of a film's poster. Raises Gone where it has none, Refused for a wrong key."""
    short = re.fullmatch("[0-9a-f]{32}", key)
    lookup = web.Request(f"{address}?api_key={key}" if short else address, headers=HEADERS)
    lookup.add_header("Accept", "application/json")
    if not short:
        lookup.add_unredirected_header("Authorization", f"Bearer {key}")
    try:
        body, _ = ask_once(opener, lookup)
    except Fault as fault:
        if fault.code != 401:
            raise
        raise Refused(f"themoviedb.org does not accept the key in {KEY} (HTTP 401)") from None
    try:
        path = json.loads(body)["poster_path"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise Fault("an answer that tells of no film", passing=True) from None
    if path is None:
        raise Gone(NO_POSTER)
    if not isinstance(path, str) or not re.fullmatch(r"/[A-Za-z0-9._-]+", path):
        raise Fault("a path that is none of a poster", passing=False)
    return path
