"""Pictures one by one, from a small server on this machine that behaves and misbehaves."""

from __future__ import annotations

import functools
import io
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from PIL import Image

from reprokit import photos
from reprokit.datasets import DataError, dataset
from reprokit.photos import Counts, Pace, fetch_pictures, picture_addresses
from reprokit.reviews import picture_files
from reprokit.runs import RequestError
from reprokit.synthetic import Config, make_world, restaurant_reviews

FAST = 100_000.0
"""A rate that holds nothing up."""


def drawn(kind: str = "JPEG", size: tuple[int, int] = (8, 6)) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise(size, 80).save(stream, kind)
    return stream.getvalue()


JPEG = drawn()


class Server:
    """Answers by path; each entry of `before` is an answer that comes first, once."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.statuses: dict[str, int] = {}
        self.before: dict[str, list[tuple[int, dict[str, str]]]] = {}
        self.cut: set[str] = set()
        """Paths whose body ends in the middle, the first time."""
        self.bare = False
        """No Content-Length."""
        self.slow = 0.0
        self.slow_once: set[str] = set()
        self.stuck_after = 10**9
        """Requests, after which no answer comes before `release` is set."""
        self.release = threading.Event()
        self.number = itertools.count()
        self.asked: list[str] = []
        self.agents: set[str | None] = set()
        self.clock: Callable[[], float] = time.monotonic
        self.times: list[float] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        name = to.path.removeprefix("/")
        self.asked.append(name)
        self.times.append(self.clock())
        self.agents.add(to.headers.get("User-Agent"))
        if name in self.slow_once:
            self.slow_once.remove(name)
            time.sleep(0.6)
        time.sleep(self.slow)
        if next(self.number) >= self.stuck_after:
            self.release.wait(20)
        status, headers = self.statuses.get(name, 200), {}
        if self.before.get(name):
            status, headers = self.before[name].pop(0)
        body = self.content.get(name, b"")
        if status == 200 and name not in self.content:
            status = 404
        to.send_response(status)
        for key, value in headers.items():
            to.send_header(key, value)
        if status != 200:
            body = b"an error page"
        if not self.bare:
            to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        if name in self.cut:
            self.cut.remove(name)
            body = body[: len(body) // 2]
        to.wfile.write(body)

    def put(self, *names: str, body: bytes = JPEG) -> dict[str, str]:
        """Serve these pictures; their addresses."""
        self.content |= dict.fromkeys(names, body)
        return {name: f"{self.url}/{name}" for name in names}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(photos, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Server()
    yield one
    one.release.set()
    one.http.shutdown()
    one.http.server_close()


def fetch(addresses: dict[str, str], folder: Path, **more: Any) -> Counts:
    counts = fetch_pictures(addresses, folder, **{"rate": FAST, **more})
    settled = counts.here + counts.fetched + counts.gone + counts.failed + counts.refused
    assert settled + counts.left == counts.wanted  # every picture once
    return counts


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != photos.RECORD)


def recorded(folder: Path) -> dict[str, Any]:
    lines = (folder / photos.RECORD).read_text().splitlines()
    return {line["id"]: line["status"] for line in map(json.loads, lines)}


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lock = threading.Lock()

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        with self.lock:
            self.now += seconds

    def clock(self) -> float:
        return self.now


def told_time(monkeypatch: pytest.MonkeyPatch, server: Server) -> Time:
    """The fetch and the server go by a clock of the test."""
    time = Time()
    server.clock = time.clock
    pace = functools.partial(photos.Pace, clock=time.clock, sleep=time.sleep)
    monkeypatch.setattr(photos, "Pace", pace)
    return time


# --- what is fetched ----------------------------------------------------------------------------
def test_pictures_are_stored_as_they_are_under_the_extension_of_their_format(
    server: Server, tmp_path: Path
):
    bodies = {kind: drawn(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")}
    addresses = {}
    for kind, body in bodies.items():
        addresses |= server.put(f"a{kind}-_9", body=body)
    counts = fetch(addresses, tmp_path / "images")
    assert counts == Counts(wanted=4, fetched=4)
    assert counts.complete
    stored = {path.name: path.read_bytes() for path in (tmp_path / "images").glob("*.*[a-z]")}
    stored.pop(photos.RECORD)
    names = ("aJPEG-_9.jpg", "aPNG-_9.png", "aWEBP-_9.webp", "aGIF-_9.gif")
    assert stored == dict(zip(names, bodies.values(), strict=True))
    assert all(agent and agent.startswith("reprokit/") for agent in server.agents)


def test_what_is_here_is_not_asked_for_whatever_its_format(server: Server, tmp_path: Path):
    addresses = server.put("a", "b", "c")
    (tmp_path / "a.png").write_bytes(drawn("PNG"))
    (tmp_path / ".b.jpg.x.part").write_bytes(b"what a killed fetch left")
    counts = fetch(addresses, tmp_path)
    assert (counts.here, counts.fetched) == (1, 2)
    assert sorted(server.asked) == ["b", "c"]
    assert fetch(addresses, tmp_path) == Counts(wanted=3, here=3)
    assert len(server.asked) == 2


def test_the_limit_counts_what_is_asked_for_and_the_next_start_goes_on(
    server: Server, tmp_path: Path
):
    addresses = server.put("a", "b", "c", "d")
    del server.content["b"]
    first = fetch(addresses, tmp_path, limit=2)
    assert first == Counts(wanted=4, fetched=1, gone=1, left=2)
    assert not first.complete
    assert fetch(addresses, tmp_path, limit=2) == Counts(wanted=4, here=1, fetched=2, gone=1)
    assert sorted(server.asked) == ["a", "b", "c", "d"]


def test_unsafe_ids_and_broken_addresses_are_refused_and_nothing_is_asked(
    server: Server, tmp_path: Path
):
    folder = tmp_path / "images"
    ids = ["../a", "a/b", "a\\b", "..", ".gone", "a.b", "a b", "a\n", "a\0", "", "é", "x" * 129]
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(JPEG)
    broken = [f"file://{secret}", "ftp://127.0.0.1/a", "http://", "http://h:x/a", "http://[/a"]
    broken += [f"{server.url}/a b", f"{server.url}/\n", "", "http:///a"]
    addresses = dict.fromkeys(ids, f"{server.url}/a")
    addresses |= {f"id{number}": address for number, address in enumerate(broken)}
    counts = fetch(addresses, folder)
    assert counts == Counts(wanted=len(addresses), refused=len(addresses))
    assert not folder.exists() and not server.asked


def test_redirects_are_followed_to_a_server_and_never_to_a_file(server: Server, tmp_path: Path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(JPEG)
    server.put("there")
    addresses = server.put("a", "b", "c", "d")
    places = (f"{server.url}/there", f"file://{secret}", "ftp://127.0.0.1/a", "http://[/a")
    for name, place in zip(addresses, places, strict=True):
        server.before[name] = [(302, {"Location": place})] * 3
    counts = fetch(addresses, tmp_path / "images")
    assert (counts.fetched, counts.failed) == (1, 3)
    assert names_in(tmp_path / "images") == ["a.jpg"]
    assert len(server.asked) == 5  # what leads nowhere is asked for once


# --- gone ---------------------------------------------------------------------------------------
def test_what_is_gone_is_recorded_with_its_status_and_date_and_never_asked_for_again(
    server: Server, tmp_path: Path
):
    addresses = server.put("here", "lost", "moved", "closed", "banned", "page")
    server.statuses = {"lost": 404, "moved": 410, "closed": 403, "banned": 451}
    server.content["page"] = b"<html>Sorry</html>"
    counts = fetch(addresses, tmp_path)
    assert counts == Counts(wanted=6, fetched=1, gone=5) and counts.complete
    statuses = {"lost": 404, "moved": 410, "closed": 403, "banned": 451, "page": "no picture"}
    assert recorded(tmp_path) == statuses
    last = json.loads((tmp_path / photos.RECORD).read_text().splitlines()[-1])
    assert last["date"] == datetime.now(UTC).date().isoformat()
    server.asked.clear()
    assert fetch(addresses, tmp_path) == Counts(wanted=6, here=1, gone=5)
    assert not server.asked
    photos.forget_gone(tmp_path)
    server.statuses = {}
    assert fetch(addresses, tmp_path) == Counts(wanted=6, here=1, fetched=4, gone=1)
    assert "here" not in server.asked


def test_a_record_that_a_kill_cut_short_is_read_and_goes_on_on_a_line_of_its_own(
    server: Server, tmp_path: Path
):
    addresses = server.put("a", "b", "c")
    server.content.clear()
    (tmp_path / photos.RECORD).write_text(
        '{"id": "a", "status": 404, "date": "x"}\n{"id": "b", "st'
    )
    assert fetch(addresses, tmp_path) == Counts(wanted=3, gone=3)
    assert sorted(server.asked) == ["b", "c"]
    assert photos.known_gone(tmp_path) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "no picture"),
        (b"<html>" * 100, "no picture"),
        (drawn("BMP"), "no picture"),
        (drawn("GIF", (1, 1)), "no picture"),  # what some shops send for a picture they lack
        (drawn(size=(64, 64))[:700], "damaged picture"),
        (drawn("PNG", (64, 64))[:700], "damaged picture"),
    ],
)
def test_an_answer_that_is_no_readable_picture_is_not_kept(
    body: bytes, status: str, server: Server, tmp_path: Path
):
    addresses = server.put("a", body=body)
    assert fetch(addresses, tmp_path) == Counts(wanted=1, gone=1)
    assert recorded(tmp_path) == {"a": status}
    assert names_in(tmp_path) == []


def test_pictures_too_large_to_decode_or_to_download_are_not_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bomb = bytearray(drawn("PNG", (64, 64)))
    bomb[16:24] = (30_000).to_bytes(4) * 2  # width and height of the header
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4)
    addresses = server.put("bomb", body=bytes(bomb))
    monkeypatch.setattr(photos, "MAX_PIXELS", 4000)
    addresses |= server.put("large", body=drawn("PNG", (64, 64)))
    monkeypatch.setattr(photos, "MAX_BYTES", 20_000)
    addresses |= server.put("long", body=JPEG + b"x" * 20_000)
    assert fetch(addresses, tmp_path).gone == 3
    assert recorded(tmp_path) == dict.fromkeys(("bomb", "large", "long"), "too large")
    server.bare = True
    photos.forget_gone(tmp_path)
    assert fetch(addresses, tmp_path).gone == 3


def test_a_decoder_that_runs_out_of_memory_ends_the_fetch(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def load(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", load)
    with pytest.raises(MemoryError):
        fetch(server.put("a"), tmp_path)
    assert not recorded(tmp_path)


def test_a_host_that_turns_this_machine_away_makes_no_picture_count_as_gone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(photos, "DOUBTS", 5)
    addresses = server.put("first", *(f"p{number}" for number in range(30)))
    assert fetch(addresses, tmp_path, limit=1).fetched == 1
    server.statuses = dict.fromkeys(addresses, 403)
    counts = fetch(addresses, tmp_path, workers=1)
    assert (counts.here, counts.gone, counts.left) == (1, 0, 30)
    assert counts.stopped.startswith("5 answers in a row were no picture (the last: 403)")
    assert not recorded(tmp_path)
    server.statuses.pop("first")  # now what was fetched before is served: the others are gone
    assert fetch(addresses, tmp_path) == Counts(wanted=31, here=1, gone=30)
    assert len(recorded(tmp_path)) == 30


def test_a_host_that_answers_404_is_believed_when_it_answers_403(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(photos, "DOUBTS", 3)
    addresses = server.put(*(f"p{number}" for number in range(20)))
    server.statuses = {name: 404 if at % 3 else 403 for at, name in enumerate(addresses)}
    assert fetch(addresses, tmp_path, workers=1) == Counts(wanted=20, gone=20)


def test_a_wrong_address_stops_the_fetch_before_it_has_asked_for_everything(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(photos, "DOUBTS", 5)
    addresses = server.put(*(f"p{number}" for number in range(40)), body=b"<html>Sign in</html>")
    counts = fetch(addresses, tmp_path, workers=1, rate=200.0)
    assert "or the address is wrong" in counts.stopped and "no picture" in counts.stopped
    assert counts.left == 40 and len(server.asked) <= 7
    assert not recorded(tmp_path)


# --- faults that pass ---------------------------------------------------------------------------
def test_passing_faults_are_tried_again(server: Server, tmp_path: Path):
    addresses = server.put("a", "b", "c", "d", body=drawn(size=(64, 64)))
    server.before = {"a": [(500, {}), (502, {})], "b": [(429, {}), (503, {})]}
    server.cut = {"c"}
    assert fetch(addresses, tmp_path) == Counts(wanted=4, fetched=4)
    assert sorted(server.asked) == ["a", "a", "a", "b", "b", "b", "c", "c", "d"]
    assert (tmp_path / "c.jpg").read_bytes() == server.content["c"]


def test_a_picture_cut_short_without_a_length_is_tried_again(server: Server, tmp_path: Path):
    server.bare = True
    server.cut = {"a"}
    addresses = server.put("a", "page", body=drawn(size=(64, 64)))
    server.content["page"] = b"<html>"
    assert fetch(addresses, tmp_path) == Counts(wanted=2, fetched=1, gone=1)
    assert sorted(server.asked) == ["a", "a", "page"]


def test_slow_answers_are_given_up_and_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(photos, "TIMEOUT", 0.2)
    server.slow_once = {"a"}
    assert fetch(server.put("a"), tmp_path).fetched == 1
    assert server.asked == ["a", "a"]


def test_an_answer_that_drips_has_a_deadline(monkeypatch: pytest.MonkeyPatch):
    class Dripping:
        def read1(self, size: int) -> bytes:
            time.sleep(0.01)
            return b"x"

    monkeypatch.setattr(photos, "DEADLINE", 0.05)
    with pytest.raises(TimeoutError, match="bytes after 0 s"):
        photos._read(Dripping(), None)  # type: ignore[arg-type]


def test_a_body_that_is_announced_as_too_large_is_not_read():
    with pytest.raises(photos.Gone) as gone:
        photos._read(None, photos.MAX_BYTES + 1)  # type: ignore[arg-type]
    assert gone.value.status == "too large"


def test_what_keeps_failing_is_asked_for_again_by_the_next_start(server: Server, tmp_path: Path):
    addresses = server.put("a", "b")
    server.statuses = {"a": 500, "b": 400}
    counts = fetch(addresses, tmp_path)
    assert counts == Counts(wanted=2, failed=2) and not counts.complete
    assert sorted(server.asked) == ["a", "a", "a", "b"]  # waiting does not help a 400
    server.statuses = {}
    assert fetch(addresses, tmp_path) == Counts(wanted=2, fetched=2)


def test_too_many_faults_in_a_row_stop_the_fetch_and_keep_what_is_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(photos, "FAULTS", 10)
    addresses = server.put("good", *(f"p{number}" for number in range(50)))
    server.statuses = dict.fromkeys(list(addresses)[1:], 500)
    counts = fetch(addresses, tmp_path, workers=2, rate=500.0)
    assert counts.stopped == "10 faults in a row, the last: HTTP status 500"
    assert counts.fetched == 1 and counts.left >= 40
    assert names_in(tmp_path) == ["good.jpg"]


def test_faults_among_answers_do_not_stop_the_fetch(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(photos, "FAULTS", 5)
    addresses = server.put(*(f"p{number}" for number in range(20)))
    server.before = {name: [(500, {})] for name in addresses}
    assert fetch(addresses, tmp_path, workers=1) == Counts(wanted=20, fetched=20)


def test_a_server_that_is_not_there_stops_the_fetch(tmp_path: Path, server: Server):
    server.http.shutdown()
    server.http.server_close()
    addresses = {f"p{number}": f"{server.url}/p" for number in range(50)}
    counts = fetch(addresses, tmp_path, rate=500.0)
    assert "faults in a row, the last: ConnectionRefusedError" in counts.stopped
    assert counts.left > 0 and counts.gone == 0


# --- politeness ---------------------------------------------------------------------------------
def test_requests_are_spaced_by_the_rate_and_never_saved_up():
    time = Time()
    pace = Pace(5.0, threading.Event(), time.clock, time.sleep)
    at = [pace.wait() and time.now for _ in range(4)]
    assert at == pytest.approx([0.0, 0.2, 0.4, 0.6])
    time.now = 100.0  # after a silence there is no burst
    assert [pace.wait() and time.now for _ in range(3)] == pytest.approx([100.0, 100.2, 100.4])


def test_the_rate_holds_over_all_workers():
    time = Time()
    pace = Pace(5.0, threading.Event(), time.clock, time.sleep)
    threads = [threading.Thread(target=lambda: [pace.wait() for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.now >= 39 * 0.2 - 1e-6


def test_a_fetch_and_its_redirects_keep_the_rate(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told_time(monkeypatch, server)
    addresses = server.put("a", "b", "c")
    server.before["b"] = [(302, {"Location": f"{server.url}/there"})]
    server.put("there")
    fetch(addresses, tmp_path, rate=2.0, workers=1)
    assert server.times == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_retry_after_holds_every_worker_for_as_long_as_it_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told_time(monkeypatch, server)
    addresses = server.put("a", "b", "c")
    server.before["a"] = [(429, {"Retry-After": "30"})]
    assert fetch(addresses, tmp_path, rate=10.0, workers=1).fetched == 3
    assert server.times[:2] == pytest.approx([0.0, 30.0])
    pace = Pace(10.0, threading.Event(), (time := Time()).clock, time.sleep)
    pace.hold(30.0)
    assert [pace.wait() and time.now for _ in range(2)] == pytest.approx([30.0, 30.1])


def test_retry_after_may_be_a_date_or_nonsense():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert photos._retry_after(soon) == pytest.approx(60, abs=2)
    assert photos._retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert photos._retry_after("7") == 7.0
    assert photos._retry_after("soon") is photos._retry_after(None) is None


def test_pauses_grow_where_the_server_names_none(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told_time(monkeypatch, server)
    monkeypatch.setattr(photos, "PAUSES", (1.0, 2.0, 4.0))
    server.before["a"] = [(429, {}), (500, {}), (503, {})]
    assert fetch(server.put("a"), tmp_path).fetched == 1
    assert server.times == pytest.approx([0.0, 1.0, 3.0, 7.0], abs=0.01)


def test_a_server_that_asks_for_a_long_pause_ends_the_fetch(server: Server, tmp_path: Path):
    addresses = server.put(*(f"p{number}" for number in range(10)))
    server.before["p0"] = [(503, {"Retry-After": "7200"})]
    counts = fetch(addresses, tmp_path, workers=1)
    assert counts.stopped == "the server asks for a pause of 2.0 h"
    assert counts.left > 0 and not counts.complete


# --- stopping and going on ----------------------------------------------------------------------
def background(addresses: dict[str, str], folder: Path, stored: int) -> subprocess.Popen[str]:
    """A fetch in a process of its own, once it has stored so many pictures."""
    code = (
        "import json, sys; from pathlib import Path; from reprokit.photos import fetch_pictures\n"
        "addresses = json.load(open(sys.argv[1]))\n"
        "fetch_pictures(addresses, Path(sys.argv[2]), 1000.0)"
    )
    listed = folder.with_suffix(".json")
    listed.write_text(json.dumps(addresses))
    command = [sys.executable, "-c", code, str(listed), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while len(list(folder.glob("*.jpg"))) < stored:
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.005)
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_fetch_that_was_ended_goes_on_with_what_is_missing(
    number: signal.Signals, server: Server, tmp_path: Path
):
    folder = tmp_path / "images"
    names = [f"p{number}" for number in range(40)]
    addresses = server.put(*names)
    server.stuck_after = 10
    process = background(addresses, folder, 10)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode != 0
    server.stuck_after = 10**9
    server.release.set()
    stored = names_in(folder)
    assert len(stored) == 10
    assert all((folder / name).read_bytes() == JPEG for name in stored)
    server.asked.clear()
    assert fetch(addresses, folder) == Counts(wanted=40, here=10, fetched=30)
    assert not {f"{name}.jpg" for name in server.asked} & set(stored)
    assert len(names_in(folder)) == 40


def test_an_interrupt_in_a_report_ends_the_workers(server: Server, tmp_path: Path):
    addresses = server.put(*(f"p{number}" for number in range(200)))
    server.slow = 0.01

    def report(counts: Counts) -> None:
        if counts.fetched == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(addresses, tmp_path, report=report)
    time.sleep(0.3)
    asked = len(server.asked)
    time.sleep(0.2)
    assert len(server.asked) == asked < 200


def test_a_picture_that_cannot_be_written_ends_the_fetch(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(photos, "replacing", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(server.put("a", "b"), tmp_path)


def test_offline_refuses_where_something_is_to_be_asked_for(server: Server, tmp_path: Path):
    addresses = server.put("a")
    with pytest.raises(RequestError, match=r"1 pictures are not in .* and --offline is set"):
        fetch(addresses, tmp_path, offline=True)
    assert not server.asked
    fetch(addresses, tmp_path)
    assert fetch(addresses, tmp_path, offline=True) == Counts(wanted=1, here=1)


def test_the_report_is_told_of_every_picture(server: Server, tmp_path: Path):
    seen: list[Counts] = []
    addresses = server.put("a", "b", "c")
    del server.content["c"]
    last = fetch(addresses, tmp_path, report=seen.append)
    assert seen[0] == Counts(wanted=3, left=3) and seen[-1] == last
    assert [counts.left for counts in seen] == sorted((c.left for c in seen), reverse=True)


# --- addresses ----------------------------------------------------------------------------------
def restaurants(data_dir: Path, content: Any) -> Path:
    path = data_dir / "google-restaurants/filter_all_t.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_restaurant_pictures_are_those_of_all_reviews_each_once(tmp_path: Path):
    world = restaurant_reviews(
        make_world(Config(n_users=8, n_films=30, n_books=10, events_per_user=6))
    )
    restaurants(tmp_path, world)
    pics = [pic for part in world.values() for row in part for pic in row["pics"]]
    places = picture_addresses("google-restaurants", tmp_path)
    assert list(places.addresses) == list(dict.fromkeys(pics)) and len(pics) > 10
    assert places.without == 0
    name, address = next(iter(places.addresses.items()))
    assert address == f"https://lh5.googleusercontent.com/p/{name}"


def test_another_address_of_restaurant_pictures(tmp_path: Path):
    row = {"pics": ["AF1QipA", "AF1QipB"]}
    content = {"train": [row], "val": [{"pics": None}, {}], "test": [{"pics": ["AF1QipA"]}]}
    restaurants(tmp_path, content)
    url = "https://example.org/{id}=w600"
    assert picture_addresses("google-restaurants", tmp_path, url).addresses == {
        "AF1QipA": "https://example.org/AF1QipA=w600",
        "AF1QipB": "https://example.org/AF1QipB=w600",
    }
    for wrong in ("https://example.org/", "file:///{id}", "{id}"):
        with pytest.raises(RequestError, match="expected an http"):
            picture_addresses("google-restaurants", tmp_path, wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no list 'train' in it"),
        ({"train": [], "val": []}, "no list 'test' in it"),
        ({"train": [{"pics": "abc"}], "val": [], "test": []}, "train, record 0: 'pics' is not"),
        ({"train": [], "val": [{}, {"pics": [1]}], "test": []}, "val, record 1: 'pics' is not"),
        ({"train": ["x"], "val": [], "test": []}, "train, record 0: 'pics' is not"),
    ],
)
def test_a_file_of_another_layout_is_named_with_its_fault(
    content: Any, message: str, tmp_path: Path
):
    restaurants(tmp_path, content)
    with pytest.raises(DataError, match=message):
        picture_addresses("google-restaurants", tmp_path)


def test_a_damaged_or_missing_file_of_reviews_is_one_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"missing\. Fetch it: .* data fetch google-restaurants"):
        picture_addresses("google-restaurants", tmp_path)
    restaurants(tmp_path, {}).write_text('{"train": [')
    with pytest.raises(DataError, match=r"filter_all_t\.json: cannot be read"):
        picture_addresses("google-restaurants", tmp_path)


def items(data_dir: Path) -> None:
    folder = data_dir / "cdsr/Food-Kitchen"
    folder.mkdir(parents=True)
    (folder / "Alist.txt").write_text("76407\tB0028A8ZEI\t0\n15157\tB001D9OVQ6\t1\n")
    (folder / "Blist.txt").write_text("45309\tB001802PIQ\t0\n")


def metadata(data_dir: Path, category: str, **addresses: str) -> None:
    path = data_dir / f"amazon-2014/meta_{category}.json"
    path.parent.mkdir(exist_ok=True)
    entries = [{"asin": asin, "imUrl": address} for asin, address in addresses.items()]
    path.write_text("".join(f"{entry!r}\n" for entry in entries))


def test_item_pictures_are_where_the_metadata_of_both_domains_say(tmp_path: Path):
    items(tmp_path)
    icon = "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif"
    tea = "http://ecx.images-amazon.com/images/I/51tea%2BL.jpg"
    food = {"B0028A8ZEI": tea, "B001D9OVQ6": icon, "OTHER": tea}
    metadata(tmp_path, "Grocery_and_Gourmet_Food", **food)
    metadata(tmp_path, "Home_and_Kitchen", B001802PIQ="http://ecx.images-amazon.com/pan.jpg")
    places = picture_addresses("cdsr-food-kitchen", tmp_path)
    pan = "http://ecx.images-amazon.com/pan.jpg"
    assert places.addresses == {"B0028A8ZEI": tea, "B001802PIQ": pan}
    assert places.without == 1


def test_without_the_metadata_one_line_says_what_to_put_where(tmp_path: Path):
    items(tmp_path)
    metadata(tmp_path, "Grocery_and_Gourmet_Food")
    with pytest.raises(DataError) as error:
        picture_addresses("cdsr-food-kitchen", tmp_path)
    where = tmp_path / "amazon-2014/meta_Home_and_Kitchen.json.gz"
    assert str(error.value).startswith(f"{where} missing: ")
    assert photos.AMAZON_2014 in str(error.value) and "Grocery" not in str(error.value)
    url = "https://example.org/{id}.jpg"  # a pattern needs no metadata
    found = picture_addresses("cdsr-food-kitchen", tmp_path, url)
    assert found.addresses["B001802PIQ"] == "https://example.org/B001802PIQ.jpg"
    assert len(found.addresses) == 3


def reviews(data_dir: Path, category: str, *asins: str) -> None:
    path = data_dir / f"amazon-2014/reviews_{category}_5.json"
    path.parent.mkdir(exist_ok=True)
    more = {"reviewerID": "u", "overall": 5.0, "unixReviewTime": 1}
    path.write_text("".join(json.dumps({"asin": asin, **more}) + "\n" for asin in asins))


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("amazon-musical-instruments", "Musical_Instruments"),
        ("amazon-movies-2014", "Movies_and_TV"),
    ],
)
def test_pictures_of_reviewed_products_are_where_the_metadata_of_their_category_say(
    name: str, category: str, tmp_path: Path
):
    reviews(tmp_path, category, "B2", "B1", "B2", "B3")
    with pytest.raises(DataError) as error:
        picture_addresses(name, tmp_path)
    where = tmp_path / f"amazon-2014/meta_{category}.json.gz"
    assert str(error.value).startswith(f"{where} missing: ") and "\n" not in str(error.value)
    url = "https://example.org/{id}.jpg"  # a pattern needs no metadata
    assert list(picture_addresses(name, tmp_path, url).addresses) == ["B2", "B1", "B3"]
    of_items = {"B1": "http://e.org/1.jpg", "B2": "http://e.org/2.jpg", "OTHER": "http://e.org/o"}
    metadata(tmp_path, category, **of_items)
    places = picture_addresses(name, tmp_path)
    assert list(places.addresses.items()) == [
        ("B2", "http://e.org/2.jpg"),
        ("B1", "http://e.org/1.jpg"),
    ]
    assert places.without == 1


def test_pictures_of_products_that_are_fetched_are_those_that_are_read(
    server: Server, tmp_path: Path
):
    reviews(tmp_path, "Musical_Instruments", "B1", "B2", "B3")
    metadata(
        tmp_path,
        "Musical_Instruments",
        **{**server.put("B1"), **server.put("B2", body=drawn("PNG"))},
    )
    places = picture_addresses("amazon-musical-instruments", tmp_path)
    folder = tmp_path / dataset("amazon-musical-instruments").folder / "images"
    assert fetch(places.addresses, folder) == Counts(wanted=2, fetched=2)
    assert {key: path.name for key, path in picture_files(folder).items()} == {
        "B1": "B1.jpg",
        "B2": "B2.png",
    }


def test_other_data_sets_have_no_pictures_to_fetch(tmp_path: Path):
    with pytest.raises(RequestError, match="ml-1m has no pictures to fetch; --images is for"):
        picture_addresses("ml-1m", tmp_path)
    with pytest.raises(DataError, match="Did you mean 'google-restaurants'"):
        picture_addresses("google-restaurant", tmp_path)


def test_the_outlook_tells_time_and_disk(tmp_path: Path):
    places = photos.Places({f"p{n}": "https://example.org/p" for n in range(203_000)}, 7)
    told = photos.outlook(places, tmp_path / "images")
    assert told.startswith("203,000 pictures wanted (7 items have no address), 0 here, 0 known")
    assert "203,000 to ask for, at most 5 a second: 11.3 h or more; disk about 12.2 GB" in told
    assert "our guess" in told
    (tmp_path / "p0.jpg").write_bytes(b"x" * 2000)
    told = photos.outlook(places, tmp_path, rate=2.0, limit=600)
    assert "600 to ask for, at most 2 a second: 5 min or more; disk about 1 MB (2 kB each" in told


def test_the_module_loads_neither_torch_nor_pillow():
    code = "import sys, reprokit.photos; assert not {'torch', 'PIL', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
