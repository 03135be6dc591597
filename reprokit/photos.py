"""The pictures of a data set, one by one from where they are served: polite, resumable, counted.

Whose     google-restaurants: the ids `pics` of filter_all_t.json, asked for at GOOGLE_PHOTO.
          ml-posters: see `posters`.
          The others of PICTURES: `imUrl` of each ASIN in Amazon's 2014 metadata.
Where to  images/<id>.<ext> in the data set's folder (posters: in itself), by its real format.
Gone      .gone.jsonl beside them: id, status, date of what is served no more, never asked again.

data/README.md says what is known of these addresses. A picture gets its name only when it is whole
and Pillow has decoded it; a killed fetch goes on where it was. Only the standard library asks, and
nothing here imports torch.
"""

from __future__ import annotations

import http.client
import io
import json
import math
import queue
import re
import shutil
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib import request as web
from urllib.error import HTTPError
from urllib.parse import urlsplit

from reprokit import __version__
from reprokit.crossdata import CROSS_DATA, read_items
from reprokit.data import opened
from reprokit.datasets import DataError, dataset
from reprokit.download import find, megabytes, require
from reprokit.metadata import read_metadata
from reprokit.progress import duration
from reprokit.reviewfiles import picture_files, read_products
from reprokit.runs import RequestError, replacing

GOOGLE_PHOTO = "https://lh5.googleusercontent.com/p/{id}"
"""Where a picture of google-restaurants is served, or was."""
AMAZON_2014 = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
NO_IMAGE = "/no-img"
"""In `imUrl` of an item without a picture: the address of a grey icon that says so."""

RATE = 5.0
"""Requests a second over all workers. Our choice, as no host names a limit: a page of a photo
gallery loads more than that at once, and the 203,000 restaurant pictures still take half a day."""
WORKERS = 4
"""Answers waited for at once, so that a slow one does not hold up the rest."""
PAUSES: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds before each new attempt at a picture after a passing fault."""
FAULTS = 24
"""Faults in a row, whatever the picture, after which the fetch stops: about a minute of them."""
DOUBTS = 50
"""Answers in a row of 403 or of no picture, after which one that is known to be served is asked
for again: a host that turns this machine away must not make all pictures count as gone."""
LONGEST_WAIT = 600.0
"""Seconds. A server that asks for a longer pause ends the fetch."""
TIMEOUT, DEADLINE = 30.0, 120.0
"""Seconds without one byte, and for a whole picture."""
MAX_BYTES, MAX_PIXELS = 32 << 20, 50_000_000
"""Larger pictures are not kept: decoded they take more memory than an encoder's batch."""
TYPICAL_BYTES = 60_000
"""Of a picture, for the estimate of disk while there are none here: our guess."""

SURELY_GONE = (404, 410, 451)
GONE = (403, *SURELY_GONE)
"""403 may also mean that this machine is turned away."""
PASSING = (408, 425, 429)
"""Like 5xx: the same request may be answered later."""
NO_PICTURE, DAMAGED, TOO_LARGE = "no picture", "damaged picture", "too large"
"""What an answer is that came and is not kept; like 403 no sure sign that the picture is gone."""
NO_POSTER = "no poster"
"""A service that knows the item says that it has no picture of it: as sure as 404."""
SLOW_DOWN = (429, 503)
"""All workers pause."""
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif"}
"""By the name of the format in Pillow; MPO is a JPEG with a second picture behind the first."""
HEADERS = {
    "User-Agent": f"reprokit/{__version__} (research; pictures of a published data set)",
    "Accept": "image/jpeg, image/png, image/webp, image/gif",
}
RECORD = ".gone.jsonl"
SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""A file name anywhere: no separator, dot, space or control character."""


@dataclass(frozen=True)
class Counts:
    """Every wanted picture once: wanted = here + fetched + gone + failed + refused + left."""

    wanted: int
    here: int = 0
    fetched: int = 0
    gone: int = 0
    failed: int = 0
    """Asked for in vain; the next start asks again."""
    refused: int = 0
    """An id that is no safe file name, or an address that is none."""
    left: int = 0
    """Not settled: beyond the limit, or the fetch stopped before."""
    stopped: str = ""
    """Why it did, in one line."""

    @property
    def complete(self) -> bool:
        return not (self.failed or self.left)

    def __str__(self) -> str:
        return (
            f"{self.wanted:,} wanted, {self.here:,} here before, {self.fetched:,} fetched, "
            f"{self.gone:,} gone, {self.failed:,} failed, {self.refused:,} refused, "
            f"{self.left:,} left"
        )


# --- addresses ----------------------------------------------------------------------------------
Ask = Callable[[web.OpenerDirector, "Pace", str], tuple[bytes, str]]
"""ask(opener, pace, address) -> a whole picture and its extension. Raises Gone, Fault or Refused.
The pace has been waited for once."""


class Places(NamedTuple):
    """Where the pictures of a data set are, by id, and how many items have no known address."""

    addresses: dict[str, str]
    without: int
    ask: Ask | None = None
    """None: an address is the picture's own."""
    requests: int = 1  # for each picture


def pictures_folder(name: str, data_dir: Path) -> Path:
    """Where the pictures of a data set lie."""
    folder = Path(data_dir) / dataset(name).folder
    return folder if name == "ml-posters" else folder / "images"


def picture_addresses(name: str, data_dir: Path, image_url: str = "") -> Places:
    """Ids and addresses of a data set's pictures, read from its files.

    `image_url` is an address with {id} in it, in place of the data set's own.
    """
    dataset(name)
    if name not in PICTURES:
        raise RequestError(
            f"{name} has no pictures to fetch; --images is for {', '.join(PICTURES)} "
            "(see data/README.md)"
        )
    if image_url and not ("{id}" in image_url and _askable(image_url.replace("{id}", "id"))):
        raise RequestError(
            f"--image-url '{image_url}': expected an http(s) address with {{id}} in it, such as "
            f"'{GOOGLE_PHOTO}'"
        )
    return PICTURES[name](name, Path(data_dir), image_url)


def restaurant_pictures(name: str, data_dir: Path, image_url: str) -> Places:
    """The ids of all reviews, each once, in the order of train, val and test."""
    (path,) = require(name, data_dir, ["filter_all_t.json"])
    try:
        with opened(path) as file:
            parts = json.load(file)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    found: dict[str, str] = {}
    for part in ("train", "val", "test"):
        rows = parts.get(part) if isinstance(parts, dict) else None
        if not isinstance(rows, list):
            raise DataError(f"{path}: no list '{part}' in it")
        for number, row in enumerate(rows):
            pics = (row.get("pics") or []) if isinstance(row, dict) else None
            if not isinstance(pics, list) or not all(isinstance(pic, str) for pic in pics):
                raise DataError(f"{path}, {part}, record {number}: 'pics' is not a list of ids")
            found |= {pic: (image_url or GOOGLE_PHOTO).replace("{id}", pic) for pic in pics}
    return Places(found, 0)


def item_pictures(name: str, data_dir: Path, image_url: str) -> Places:
    """The items by ASIN. Without a pattern their addresses come from Amazon's metadata."""
    if release := CROSS_DATA.get(name.removeprefix("cdsr-")):
        lists = require(name, data_dir, ["Alist.txt", "Blist.txt"])
        asins = [asin for path in lists for asin in read_items(path)]
        named = [path for path in release.optional if "/meta_" in path]
    else:
        reviews, metadata = (file.path for file in dataset(name).files)
        (path,) = require(name, data_dir, [reviews])
        asins = read_products(path, texts=False)["asin"].unique(maintain_order=True).to_list()
        named = [f"{dataset(name).folder}/{metadata}"]
    if image_url:
        return Places({asin: image_url.replace("{id}", asin) for asin in asins}, 0)
    if missing := [str(data_dir / path) for path in named if not find(data_dir, path)]:
        raise DataError(
            f"{', '.join(missing)} missing: the addresses of the pictures stand in Amazon's 2014 "
            f"metadata. Put there what {AMAZON_2014} has under the same name (see data/README.md)"
        )
    files = [file for path in named if (file := find(data_dir, path))]
    known = read_metadata(files, asins).image_urls
    found = {asin: known[asin] for asin in asins if NO_IMAGE not in known.get(asin, NO_IMAGE)}
    return Places(found, len(set(asins) - set(found)))


def film_posters(name: str, data_dir: Path, image_url: str) -> Places:
    from reprokit.posters import poster_addresses

    return poster_addresses(data_dir, image_url)


ITEMS = ("cdsr-food-kitchen", "cdsr-movie-book", "amazon-movies-2014", "amazon-musical-instruments")
PICTURES = {
    "google-restaurants": restaurant_pictures,
    "ml-posters": film_posters,
    **dict.fromkeys(ITEMS, item_pictures),
}


def _askable(address: str) -> bool:
    """Whether an address can be asked: http or https, a host, nothing that a URL must not hold."""
    try:
        parts = urlsplit(address)
        return bool(re.fullmatch("https?://[!-~]+", address) and parts.hostname and parts.port != 0)
    except ValueError:  # a port that is no number, a broken IPv6 host
        return False


# --- what is there ------------------------------------------------------------------------------
def known_gone(folder: Path) -> set[str]:
    """Ids of the record. A line that a kill cut short says nothing: its picture is asked again."""
    found: set[str] = set()
    with suppress(FileNotFoundError):
        for line in (folder / RECORD).read_bytes().splitlines():
            with suppress(ValueError, TypeError, KeyError):
                found.add(str(json.loads(line)["id"]))
    return found


def forget_gone(folder: Path) -> None:
    """`--retry-gone`: what counts as gone is asked for again."""
    (folder / RECORD).unlink(missing_ok=True)


def _survey(addresses: Mapping[str, str], folder: Path) -> tuple[Counts, list[str], str]:
    """(counts before the start, ids to ask for, an id whose picture is here or nothing)."""
    here, gone = picture_files(folder).keys(), known_gone(folder)
    todo, counted, served = [], Counter[str](), ""
    for name, address in addresses.items():
        if not SAFE_ID.fullmatch(name) or not _askable(address):
            counted["refused"] += 1
        elif name in here:
            counted["here"] += 1
            served = name
        elif name in gone:
            counted["gone"] += 1
        else:
            todo.append(name)
    known: dict[str, Any] = dict(counted)
    return Counts(len(addresses), left=len(todo), **known), todo, served


def outlook(places: Places, folder: Path, rate: float = RATE, limit: int = 0) -> str:
    """One line before the start: what is wanted, how long it takes at least, and how much disk."""
    counts, todo, _ = _survey(places.addresses, folder)
    number = min(limit or len(todo), len(todo))
    sizes = [path.stat().st_size for path in list(picture_files(folder).values())[:1000]]
    each = sum(sizes) // len(sizes) if sizes else TYPICAL_BYTES
    basis = "as those here" if sizes else "our guess"
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    none = f" ({places.without:,} items have no address)" if places.without else ""
    seconds = places.requests * number / rate
    return (
        f"{counts.wanted:,} pictures wanted{none}, {counts.here:,} here, {counts.gone:,} known to "
        f"be gone; {number:,} to ask for, at most {rate:g} a second: {duration(seconds)} or "
        f"more; disk about {megabytes(number * each)} ({megabytes(each)} each, {basis}), "
        f"{megabytes(shutil.disk_usage(parent).free)} free"
    )


# --- one request --------------------------------------------------------------------------------
class Pace:
    """At most `rate` requests a second, whoever asks, and none while a pause is held.

    Requests are spaced, never saved up: after a silence there is no burst.
    """

    def __init__(
        self,
        rate: float,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.gap, self.stop, self.clock = 1 / rate, stop, clock
        self.sleep = sleep or stop.wait  # ends at once when the fetch does
        self.free = -math.inf
        """The time from which the next request may start."""
        self.lock = threading.Lock()

    def wait(self) -> bool:
        """Return when a request may start; False where the fetch has stopped."""
        while not self.stop.is_set():
            with self.lock:
                now = self.clock()
                pause = self.free - now
                if pause <= 0:
                    self.free = now + self.gap
                    return True
            self.sleep(pause)
        return False

    def hold(self, seconds: float) -> None:
        """No request by anyone for so long."""
        with self.lock:
            self.free = max(self.free, self.clock() + seconds)


class Gone(Exception):
    """Nothing to be had at this address. `status` is the server's, or what is wrong in words."""

    def __init__(self, status: int | str) -> None:
        self.status = status


class Fault(Exception):
    """No answer to go by.

    `passing`: waiting may help. `hold`: seconds for which the server asks all workers to pause, 0
    where it does not say for how long, None where it does not ask. `code`: HTTP status, else 0.
    """

    def __init__(
        self, reason: str, passing: bool, hold: float | None = None, code: int = 0
    ) -> None:
        super().__init__(reason)
        self.passing, self.hold, self.code = passing, hold, code


class Refused(Exception):
    """The server refuses us whatever we ask, as for a wrong key; says so in one line."""


class PacedRedirects(web.HTTPRedirectHandler):
    """A redirect is a request of its own."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def redirect_request(self, *arguments: Any) -> web.Request | None:
        self.pace.wait()
        return super().redirect_request(*arguments)


def _opener(pace: Pace) -> web.OpenerDirector:
    """http and https alone: no address and no redirect reads a file of this machine."""
    opener = web.OpenerDirector()
    plain = web.ProxyHandler(), web.HTTPHandler(), web.HTTPSHandler(), web.UnknownHandler()
    after = PacedRedirects(pace), web.HTTPErrorProcessor(), web.HTTPDefaultErrorHandler()
    for handler in (*plain, *after):
        opener.add_handler(handler)
    return opener


def ask_picture(opener: web.OpenerDirector, pace: Pace, address: str) -> tuple[bytes, str]:
    """The picture at an address; see `Ask`."""
    body, whole = ask_once(opener, web.Request(address, headers=HEADERS))
    try:
        return body, extension(body)
    except Gone as gone:
        if gone.status == DAMAGED and not whole:  # the connection ended, the picture did not
            raise Fault("a picture cut short", passing=True) from None
        raise


def ask_once(opener: web.OpenerDirector, request: web.Request) -> tuple[bytes, bool]:
    """The body of an answer, and whether its server said how long it is. Raises Gone or Fault."""
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            length = response.length  # None where the server does not say
            whole = length is not None or response.chunked
            return _read(response, length), whole
    except HTTPError as error:
        error.close()
        if error.code in GONE:
            raise Gone(error.code) from None
        hold = _retry_after(error.headers.get("Retry-After"))
        hold = 0.0 if hold is None and error.code in SLOW_DOWN else hold
        passing = error.code in PASSING or error.code >= 500
        raise Fault(f"HTTP status {error.code}", passing, hold, error.code) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # a text: an address that leads nowhere
        hopeless = (str, ValueError, ssl.SSLCertVerificationError)
        text = f"{type(reason).__name__}: {reason}".partition("\n")[0]
        raise Fault(text, passing=not isinstance(reason, hopeless)) from None


def _retry_after(value: str | None) -> float | None:
    """Seconds, given as such or as a date; None where the header is missing or says nothing."""
    text = (value or "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _read(response: http.client.HTTPResponse, length: int | None) -> bytes:
    """The body, all of it."""
    if length is not None and length > MAX_BYTES:
        raise Gone(TOO_LARGE)
    end = time.monotonic() + DEADLINE
    body = bytearray()
    while length is None or len(body) < length:
        chunk = response.read1(1 << 16)
        if not chunk:
            break
        body += chunk
        if len(body) > MAX_BYTES:
            raise Gone(TOO_LARGE)
        if time.monotonic() > end:
            raise TimeoutError(f"{len(body):,} bytes after {DEADLINE:.0f} s")
    if length is not None and len(body) < length:
        raise ConnectionError(f"connection closed after {len(body):,} of {length:,} bytes")
    return bytes(body)


def extension(body: bytes) -> str:
    """jpg, png, webp or gif, by content. Raises Gone for all else.

    The picture is decoded: Pillow's verify() looks at no pixel of a JPEG. One pixel is what some
    hosts send in place of a picture that they lack.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(body), formats=("JPEG", "PNG", "WEBP", "GIF")) as picture:
            pixels = picture.width * picture.height
            if pixels <= 1 or pixels > MAX_PIXELS:
                raise Gone(TOO_LARGE if pixels > 1 else NO_PICTURE)
            picture.load()
            return EXTENSIONS[picture.format or ""]
    except (Gone, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Gone(TOO_LARGE) from None
    except Image.UnidentifiedImageError:
        raise Gone(NO_PICTURE) from None
    except Exception:  # a damaged file raises whatever its format's reader does
        raise Gone(DAMAGED) from None


# --- all of them --------------------------------------------------------------------------------
class Fetch:
    """Workers ask and tell; the main thread counts, records what is gone, and says when to stop."""

    def __init__(
        self, addresses: Mapping[str, str], folder: Path, rate: float, limit: int, ask: Ask
    ) -> None:
        self.addresses, self.folder, self.ask = addresses, folder, ask
        self.counts, todo, self.served = _survey(addresses, folder)
        self.todo = deque(todo[: limit or None])
        self.stop = threading.Event()
        self.pace = Pace(rate, self.stop)
        self.opener = _opener(self.pace)
        self.told = queue.SimpleQueue[tuple[str, str, Any] | BaseException | None]()
        """A picture, what became of it (fetched, gone, fault: an attempt in vain, failed: the last
        one, or halt) and its status or the reason; None: a worker is done."""
        self.faults = 0
        """In a row."""
        self.doubts: list[tuple[str, int | str]] = []
        """Gone, it seems, since the last sure answer: picture and status."""

    def run(self, workers: int, report: Callable[[Counts], None]) -> None:
        """Listen until every worker is done. They are daemons: an interrupt waits for none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / RECORD).open("ab+") as record:
            record.seek(0)
            if (text := record.read()) and not text.endswith(b"\n"):
                record.write(b"\n")  # a kill cut the last line short
        report(self.counts)
        working = min(workers, len(self.todo))
        for _ in range(working):
            threading.Thread(target=self.work, daemon=True).start()
        try:
            while working:
                told = self.told.get()
                if isinstance(told, BaseException):
                    raise told
                if told is None:
                    working -= 1
                else:
                    self.add(*told)
                    report(self.counts)
            if not self.counts.stopped:
                self.believe()
                report(self.counts)
        finally:
            self.stop.set()  # after an interrupt: a worker ends with what it is at

    def work(self) -> None:
        """A worker: one picture after the other."""
        try:
            while not self.stop.is_set():
                try:
                    name = self.todo.popleft()
                except IndexError:
                    break
                self.settle(name)
        except BaseException as error:  # told in the main thread, which raises it
            self.told.put(error)
        finally:
            self.told.put(None)

    def settle(self, name: str) -> None:
        """Ask for a picture until there is an answer, or the attempts are used up."""
        for pause in (*PAUSES, None):
            if not self.pace.wait():
                return
            try:
                body, suffix = self.ask(self.opener, self.pace, self.addresses[name])
            except Gone as gone:
                return self.told.put((name, "gone", gone.status))
            except Refused as refused:
                return self.told.put((name, "halt", str(refused)))
            except Fault as fault:
                self.told.put((name, "fault", fault))
                if pause is None or not fault.passing:
                    return self.told.put((name, "failed", fault))
                if fault.hold is None:
                    self.pace.sleep(pause)
                elif fault.hold > LONGEST_WAIT:
                    reason = f"the server asks for a pause of {duration(fault.hold)}"
                    return self.told.put((name, "halt", reason))
                else:
                    self.pace.hold(fault.hold or pause)
                continue
            with replacing(self.folder / f"{name}.{suffix}") as part:
                part.write_bytes(body)
            return self.told.put((name, "fetched", ""))

    def add(self, name: str, kind: str, status: Any) -> None:
        """Count what a worker tells; stop all of them where it is time to."""
        if kind == "halt":
            self.end(status)
        elif kind == "fault":
            self.faults += 1
            if self.faults >= FAULTS:
                self.end(f"{FAULTS} faults in a row, the last: {status}")
        elif kind == "failed":
            self.count(kind)
        elif kind == "fetched":
            self.faults, self.served = 0, name
            self.count(kind)
            self.believe()
        else:
            self.faults = 0
            self.doubts.append((name, status))
            if status in (*SURELY_GONE, NO_POSTER):
                self.believe()
            elif len(self.doubts) >= DOUBTS:
                self.weigh(status)

    def weigh(self, status: int | str) -> None:
        """Believe in so many gone only while one that is here is served, or surely gone."""
        try:
            asked = self.served and self.pace.wait()
            sure = asked and bool(self.ask(self.opener, self.pace, self.addresses[self.served]))
        except (Gone, Fault, Refused) as error:
            sure = getattr(error, "status", "") in (*SURELY_GONE, NO_POSTER)
        if sure:
            self.believe()
        else:
            self.end(
                f"{DOUBTS} answers in a row were no picture (the last: {status}) and were not "
                "recorded as gone: the server may turn this machine away, or the address is wrong"
            )

    def believe(self) -> None:
        """What seemed gone is gone."""
        date = datetime.now(UTC).date().isoformat()
        with (self.folder / RECORD).open("a", encoding="utf-8") as record:
            for name, status in self.doubts:
                line = {"id": name, "status": status, "date": date}
                record.write(json.dumps(line) + "\n")
                self.count("gone")
        self.doubts = []

    def count(self, kind: str) -> None:
        more: dict[str, Any] = {kind: getattr(self.counts, kind) + 1, "left": self.counts.left - 1}
        self.counts = replace(self.counts, **more)

    def end(self, reason: str) -> None:
        self.counts = replace(self.counts, stopped=self.counts.stopped or reason)
        self.stop.set()


def fetch_pictures(
    addresses: Mapping[str, str],
    folder: Path,
    rate: float = RATE,
    workers: int = WORKERS,
    limit: int = 0,
    report: Callable[[Counts], None] = lambda counts: None,
    offline: bool = False,
    ask: Ask = ask_picture,
) -> Counts:
    """Bring the pictures that are neither in `folder` nor known to be gone.

    Args:
        addresses: by id, which becomes the file's name.
        rate: requests a second over all workers, redirects included.
        limit: pictures to ask for at most; 0 for all.
        report: called with the counts at the start and after each answer.
        ask: how a picture is asked for, where its address is not the picture's own.

    Raises RequestError where something is to be asked for and `offline` is set, and OSError where a
    picture cannot be written. Faults are counted; those that end the fetch are told in `stopped`.
    """
    if not rate > 0 or workers < 1 or limit < 0:
        raise ValueError(f"rate {rate}, workers {workers}, limit {limit}: expected > 0, >= 1, >= 0")
    fetch = Fetch(addresses, Path(folder), rate, limit, ask)
    if fetch.todo and offline:
        raise RequestError(
            f"{fetch.counts.left:,} pictures are not in {folder} and --offline is set: leave it out"
        )
    if fetch.todo:
        fetch.run(workers, report)
    return fetch.counts
