"""A small server of pictures on this machine that behaves and misbehaves, and a fetch from it."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from reprokit import photos
from reprokit.photos import Counts, fetch_pictures

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
