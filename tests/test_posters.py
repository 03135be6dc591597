"""Posters by a film database on this machine that wants a key."""

from __future__ import annotations

import gzip
import json
import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from photo_server import FAST, JPEG, Server, drawn
from test_photos import names_in, recorded

from reprokit import cli, photos, posters
from reprokit.datasets import DataError
from reprokit.photos import Counts, picture_addresses
from reprokit.runs import RequestError

TOKEN = "eyJhbGciOi.J9.secret-Token_1"
SHORT = "0123456789abcdef0123456789abcdef"


class Films(Server):
    """Answers look-ups that bring the key, and serves posters to anybody."""

    def __init__(self) -> None:
        super().__init__()
        self.key = f"Bearer {TOKEN}"
        self.headers: list[tuple[str, str | None]] = []

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        sent = to.headers.get("Authorization")
        path, _, query = to.path.partition("?")
        self.headers.append((path, sent or query or None))
        if path.startswith("/movie/") and (sent or query) != self.key:
            self.statuses[path[1:]] = 401
        to.path = path
        super().answer(to)

    def film(self, tmdb: str, poster: str | None, body: bytes | None = JPEG) -> None:
        self.content[f"movie/{tmdb}"] = json.dumps({"id": 1, "poster_path": poster}).encode()
        if poster and body is not None:
            self.content[f"w{poster}"] = body


@pytest.fixture
def films(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Five films: two with posters, one without, one that is gone, one that is unknown there."""
    monkeypatch.setattr(photos, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(posters.KEY, f"  {TOKEN}\n")
    one = Films()
    monkeypatch.setattr(posters, "LOOKUP", f"{one.url}/movie/{{id}}")
    monkeypatch.setattr(posters, "IMAGE", f"{one.url}/w{{path}}")
    links(
        tmp_path, "ml-latest-small", "1,0114709,862\n2,0113497,8844\n3,0113228,\n4,,31357\n5,,9\n"
    )
    one.film("862", "/toy.jpg")
    one.film("8844", "/jumanji.jpg", drawn("PNG"))
    one.film("31357", None)
    yield one
    one.release.set()
    one.http.shutdown()
    one.http.server_close()


def links(data_dir: Path, name: str, rows: str, head: str = "movieId,imdbId,tmdbId") -> None:
    path = data_dir / name / "links.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}\n{rows}")


def bring(data_dir: Path, *options: str) -> int:
    fast = ("--rate", str(FAST), "--data-dir", str(data_dir))
    return cli.main(["data", "fetch", "ml-posters", "--images", *fast, *options])


def test_posters_lie_under_the_films_number_and_what_has_none_is_recorded(
    films: Films, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert bring(tmp_path) == 0
    folder = tmp_path / "ml-posters"
    assert names_in(folder) == ["1.jpg", "2.png"]
    assert (folder / "1.jpg").read_bytes() == JPEG
    assert recorded(folder) == {"4": "no poster", "5": 404}
    shown = capsys.readouterr().out
    assert "4 pictures wanted (1 items have no address)" in shown
    assert "4 wanted, 0 here before, 2 fetched, 2 gone, 0 failed, 0 refused, 0 left" in shown
    films.asked.clear()
    assert bring(tmp_path) == 0 and not films.asked  # nothing is asked for twice


@pytest.mark.parametrize("key", [TOKEN, SHORT])
def test_the_key_goes_to_the_look_up_alone_and_is_neither_printed_nor_stored(
    key: str,
    films: Films,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.setenv(posters.KEY, key)
    films.key = f"api_key={key}" if key == SHORT else f"Bearer {key}"
    films.before["movie/9"] = [(302, {"Location": "/elsewhere"})]
    films.before["movie/862"] = [(503, {})]
    films.statuses["w/jumanji.jpg"] = 418
    assert bring(tmp_path) == 3  # a teapot
    given = {path for path, sent in films.headers if sent}
    assert given == {"/movie/862", "/movie/8844", "/movie/31357", "/movie/9"}
    assert "/elsewhere" in {path for path, sent in films.headers}
    places = picture_addresses("ml-posters", tmp_path)
    told = "".join(capfd.readouterr()) + repr(places)
    stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert key not in told and not any(key.encode() in content for content in stored)


def test_without_a_key_one_line_says_how_to_get_one_and_nothing_is_sent(
    films: Films,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv(posters.KEY, " ")
    assert bring(tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "TMDB_API_KEY is not set" in line and "https://www.themoviedb.org/settings/api" in line
    monkeypatch.setenv(posters.KEY, "two\nlines-of-a-key")
    assert bring(tmp_path) == 2
    shown = capsys.readouterr().err
    assert "TMDB_API_KEY is no key of themoviedb.org" in shown and "lines-of" not in shown
    assert not films.asked and not (tmp_path / "ml-posters").exists()


def test_a_wrong_key_ends_the_fetch_at_once_and_nothing_counts_as_gone(
    films: Films, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    films.key = "Bearer another"
    assert bring(tmp_path) == 3
    shown = capsys.readouterr()
    assert "stopped, themoviedb.org does not accept the key in TMDB_API_KEY (HTTP 401)" in shown.err
    assert "0 fetched, 0 gone, 0 failed, 0 refused, 4 left" in shown.out
    assert len(films.asked) <= photos.WORKERS and TOKEN not in shown.out + shown.err


def test_offline_nothing_is_sent(films: Films, tmp_path: Path):
    places = picture_addresses("ml-posters", tmp_path)
    with pytest.raises(RequestError, match=r"4 pictures are not in .* and --offline is set"):
        photos.fetch_pictures(places.addresses, tmp_path / "ml-posters", offline=True)
    assert not films.asked


@pytest.mark.parametrize(
    "body", [b"<html>Sign in</html>", b"[]", b'{"id": 1}', b'{"poster_path": "/../x"}', b"[" * 9999]
)
def test_an_answer_that_tells_of_no_film_is_a_fault_and_not_recorded(
    body: bytes, films: Films, tmp_path: Path
):
    links(tmp_path, "ml-latest-small", "1,,862\n")
    films.content["movie/862"] = body
    places = picture_addresses("ml-posters", tmp_path)
    assert places.ask
    folder = tmp_path / "ml-posters"
    counts = photos.fetch_pictures(places.addresses, folder, FAST, ask=places.ask)
    assert counts == Counts(wanted=1, failed=1)
    assert not recorded(folder) and not any(path.startswith("w/") for path in films.asked)


def test_both_requests_of_a_poster_keep_the_pace(films: Films, tmp_path: Path):
    links(tmp_path, "ml-latest-small", "1,,862\n2,,8844\n")
    places = picture_addresses("ml-posters", tmp_path)
    assert places.ask and places.requests == 2
    assert "2 to ask for, at most 2 a second: 2 s or more" in photos.outlook(
        places, tmp_path / "ml-posters", rate=2.0
    )
    photos.fetch_pictures(places.addresses, tmp_path / "ml-posters", 20.0, ask=places.ask)
    assert len(films.times) == 4 and films.times[-1] - films.times[0] > 0.13


def test_the_films_of_both_sets_are_asked_for_the_small_one_first(films: Films, tmp_path: Path):
    links(tmp_path, "ml-25m", "7,,70\n1,,862\n9,,\n")
    places = picture_addresses("ml-posters", tmp_path)
    assert set(places.addresses) == {"1", "2", "4", "5", "7"} and places.without == 2
    assert list(places.addresses)[-1] == "7"
    assert places.addresses["7"] == f"{films.url}/movie/70"


def test_another_address_of_a_poster_wants_no_key(
    films: Films, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(posters.KEY)
    films.put("mine/1.jpg", "mine/3.jpg")
    assert bring(tmp_path, "--image-url", f"{films.url}/mine/{{id}}.jpg") == 0
    assert names_in(tmp_path / "ml-posters") == ["1.jpg", "3.jpg"]
    assert not any(sent for _, sent in films.headers)


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ("1,2,862\n", "a,b,c", r"links\.csv, line 2: expected numbers movieId and tmdbId"),
        ("1,2,862\nx,2,862\n", "movieId,imdbId,tmdbId", "line 3: expected numbers"),
        ("1,2,1/2\n", "movieId,imdbId,tmdbId", "line 2: expected numbers"),
        ("1,2,862\n2,8\n", "movieId,imdbId,tmdbId", "line 3: expected numbers"),
    ],
)
def test_links_of_another_layout_are_named_with_their_fault(
    rows: str, head: str, message: str, films: Films, tmp_path: Path
):
    links(tmp_path, "ml-latest-small", rows, head)
    with pytest.raises(DataError, match=message):
        picture_addresses("ml-posters", tmp_path)


def test_links_may_begin_with_a_mark_of_byte_order(tmp_path: Path):
    links(tmp_path, "ml-25m", "1,2,862\n5,6,\n", "\ufeffmovieId,imdbId,tmdbId")
    assert posters.read_links(tmp_path / "ml-25m/links.csv") == {"1": "862", "5": ""}


def test_damaged_packed_links_end_in_one_line(tmp_path: Path):
    links(tmp_path, "ml-25m", "".join(f"{n},{n * n},{n * 7919}\n" for n in range(1, 500)))
    path = tmp_path / "ml-25m/links.csv"
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[100:150] = bytes(50)
    path.with_suffix(".csv.gz").write_bytes(packed)
    with pytest.raises(DataError, match=r"links\.csv\.gz: cannot be read"):
        posters.read_links(path.with_suffix(".csv.gz"))


def test_without_links_one_line_says_what_to_fetch(films: Films, tmp_path: Path):
    os.remove(tmp_path / "ml-latest-small/links.csv")
    with pytest.raises(DataError, match=r"links\.csv missing: .* data fetch ml-latest-small") as no:
        picture_addresses("ml-posters", tmp_path)
    assert f"--data-dir {tmp_path}" in str(no.value)  # not into another folder
