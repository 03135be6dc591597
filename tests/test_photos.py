"""Pictures one by one, from a small server on this machine that behaves and misbehaves."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from photo_server import JPEG, Server, drawn, fetch, server
from PIL import Image

from reprokit import photos
from reprokit.photos import Counts, Pace
from reprokit.runs import RequestError

__all__ = ["server"]  # the fixture


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
    code = (  # a shell lets what it runs in the background ignore interrupts, children too
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
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
