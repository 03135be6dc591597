"""The data registry and the fetch, against a small server on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reprokit import datasets, download
from reprokit.datasets import Archive, DataError, DataSet, File

PAYLOAD = bytes(range(256)) * 4_000  # 1,024,000 bytes


class Server:
    """Serves `content` by path; `cut_after` closes the connection early, once per entry."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.ranges = True
        self.etag: str | None = None
        self.cut_after: list[int] = []
        self.statuses: list[int] = []
        """Error codes to answer with before anything is served."""
        self.requests: list[tuple[str, str | None]] = []
        """(path, Range header) of each request."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                outer.requests.append((self.path, wanted))
                body = outer.content.get(self.path)
                if outer.statuses or body is None:
                    self.send_error(outer.statuses.pop(0) if outer.statuses else 404)
                    return
                start = 0
                fresh = self.headers.get("If-Range") in (None, outer.etag)
                if wanted and outer.ranges and fresh:
                    start = int(wanted.removeprefix("bytes=").rstrip("-"))
                    if start >= len(body):
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{len(body)}")
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    end = len(body) - 1
                    self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(len(body) - start))
                if outer.etag:
                    self.send_header("ETag", outer.etag)
                self.end_headers()
                stop = start + outer.cut_after.pop(0) if outer.cut_after else len(body)
                self.wfile.write(body[start:stop])

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def add(monkeypatch: pytest.MonkeyPatch, one: DataSet) -> DataSet:
    monkeypatch.setitem(datasets.DATASETS, one.name, one)
    return one


def plain(server: Server, content: bytes = PAYLOAD, **archive: object) -> DataSet:
    """A data set of one file that is downloaded as it is."""
    server.content["/big.bin"] = content
    known: dict[str, object] = {"size": len(content), "sha256": sha256(content), **archive}
    return DataSet(
        name="toy",
        folder="toy",
        title="toy",
        source="a page",
        licence="toy licence",
        terms="none",
        citation="nobody",
        files=(File("big.bin", known["size"], known["sha256"]),),  # type: ignore[arg-type]
        archives=(Archive(server.url + "big.bin", **known),),  # type: ignore[arg-type]
        by_hand="the toy shop",
    )


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return stream.getvalue()


def bundle(server: Server, members: tuple[str, ...] = ("toy/a.txt", "toy/README")) -> DataSet:
    """A data set in a zip: one data file and the README with its licence."""
    content = zipped({"toy/a.txt": b"alpha\n", "toy/README": b"terms\n", "../evil.txt": b"no"})
    server.content["/toy.zip"] = content
    archive = Archive(server.url + "toy.zip", len(content), sha256(content), members=members)
    return dataclasses.replace(plain(server), files=(File("a.txt", 6),), archives=(archive,))


# --- from the network ---------------------------------------------------------


def test_fetch_downloads_verifies_and_does_nothing_the_second_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    seen: list[tuple[int, int | None]] = []
    result = download.fetch(
        "toy", tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    assert result.new == (tmp_path / "toy" / "big.bin",)
    assert result.new[0].read_bytes() == PAYLOAD
    assert seen[0] == (0, len(PAYLOAD)) and seen[-1] == (len(PAYLOAD), len(PAYLOAD))
    assert sorted(p.name for p in (tmp_path / "toy").iterdir()) == ["big.bin"]

    again = download.fetch("toy", tmp_path)
    assert again.new == () and "already present and verified" in again.message
    assert len(server.requests) == 1


def test_an_interrupted_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    server.cut_after = [300_000, 200_000]
    download.fetch("toy", tmp_path)
    assert (tmp_path / "toy" / "big.bin").read_bytes() == PAYLOAD
    assert [r for _, r in server.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_a_download_that_was_killed_goes_on_in_the_next_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))

    class Killed(Exception):
        pass

    def kill(done: int, total: int | None) -> None:
        if done > 500_000:
            raise Killed

    with pytest.raises(Killed):
        download.fetch("toy", tmp_path, progress=kill)
    assert not (tmp_path / "toy" / "big.bin").exists()
    have = (tmp_path / "toy" / "big.bin.part").stat().st_size
    assert 0 < have < len(PAYLOAD)
    download.fetch("toy", tmp_path)
    assert (tmp_path / "toy" / "big.bin").read_bytes() == PAYLOAD
    assert server.requests[-1] == ("/big.bin", f"bytes={have}-")


def test_a_server_without_range_support_is_asked_from_the_start(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    server.ranges = False
    server.cut_after = [300_000]
    download.fetch("toy", tmp_path)
    assert (tmp_path / "toy" / "big.bin").read_bytes() == PAYLOAD
    assert len(server.requests) == 2


def test_a_file_that_changed_during_the_download_is_begun_anew_by_its_etag(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = PAYLOAD[::-1]
    add(monkeypatch, plain(server, sha256=None, size=None))
    server.etag = '"one"'
    server.cut_after = [300_000]

    def change(seconds: float) -> None:
        server.etag, server.content["/big.bin"] = '"two"', new

    monkeypatch.setattr(download, "_pause", change)
    download.fetch("toy", tmp_path)
    assert (tmp_path / "toy" / "big.bin").read_bytes() == new


def test_with_no_checksum_and_no_etag_nothing_is_resumed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server, sha256=None, size=None))
    server.cut_after = [300_000]
    download.fetch("toy", tmp_path)
    assert [r for _, r in server.requests] == [None, None]


def test_a_changed_file_of_the_same_size_fails_and_its_partial_copy_goes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    wrong = PAYLOAD[:-1] + b"!"
    server.content["/big.bin"] = wrong
    with pytest.raises(DataError) as error:
        download.fetch("toy", tmp_path)
    assert sha256(wrong) in str(error.value) and sha256(PAYLOAD) in str(error.value)
    assert list((tmp_path / "toy").iterdir()) == []


def test_md5_is_checked_where_no_sha256_is_known(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server, sha256=None, md5="0" * 32))
    with pytest.raises(DataError, match=f"md5 .*expected {'0' * 32}"):
        download.fetch("toy", tmp_path)
    assert list((tmp_path / "toy").iterdir()) == []


def test_a_whole_partial_copy_of_a_file_of_unknown_size_is_accepted_by_its_checksum(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server, size=None))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "big.bin.part").write_bytes(PAYLOAD)
    download.fetch("toy", tmp_path)  # the server answers 416
    assert (tmp_path / "toy" / "big.bin").read_bytes() == PAYLOAD


def test_passing_errors_are_tried_again_and_lasting_ones_are_not(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    server.statuses = [503, 429]
    download.fetch("toy", tmp_path)
    assert len(server.requests) == 3
    (tmp_path / "toy" / "big.bin").unlink()
    server.statuses = [403]
    with pytest.raises(DataError, match=r"could not download big\.bin .*403.*--from DIR"):
        download.fetch("toy", tmp_path)
    assert len(server.requests) == 4
    server.statuses = [503] * 9
    with pytest.raises(DataError, match="503"):
        download.fetch("toy", tmp_path)
    assert len(server.requests) == 7  # the first try and one after each pause


def test_a_mirror_of_the_publisher_serves_when_the_first_address_is_gone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = plain(server)
    moved = dataclasses.replace(
        one.archives[0], url=server.url + "gone/big.bin", mirrors=(server.url + "big.bin",)
    )
    add(monkeypatch, dataclasses.replace(one, archives=(moved,)))
    download.fetch("toy", tmp_path)
    assert [path for path, _ in server.requests] == ["/gone/big.bin", "/big.bin"]


def test_too_little_room_is_said_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(1, 1, 1_000))
    with pytest.raises(DataError, match="1 MB needed and 1 kB free"):
        download.fetch("toy", tmp_path)
    assert not list((tmp_path / "toy").glob("*.part"))


def test_offline_refuses_and_says_what_to_run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    with pytest.raises(DataError, match=r"--offline is set.*data fetch toy --data-dir"):
        download.fetch("toy", tmp_path, offline=True)
    assert server.requests == []
    assert not (tmp_path / "toy").exists()


def test_a_file_that_is_not_the_publishers_is_never_overwritten(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    mine = tmp_path / "toy" / "big.bin"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"big\.bin is not the publisher's file .*move it away"):
        download.fetch("toy", tmp_path)
    assert mine.read_bytes() == b"mine"


def test_a_file_of_unknown_checksum_is_recorded_and_a_later_change_is_seen(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server, sha256=None, size=None))
    download.fetch("toy", tmp_path)
    (status,) = download.check("toy", tmp_path)
    assert status.hash_ok is True and server.url in status.note
    (tmp_path / "toy" / "big.bin").write_bytes(b"changed")
    (status,) = download.check("toy", tmp_path)
    assert status.hash_ok is False and sha256(b"changed") in status.note


# --- archives -----------------------------------------------------------------


def test_only_listed_members_are_unpacked_and_the_archive_goes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, bundle(server))
    download.fetch("toy", tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"toy/a.txt", "toy/README", "toy/.fetched.json"}
    assert all(status.ok for status in download.check("toy", tmp_path))


@pytest.mark.parametrize("member", ["../evil.txt", "/evil.txt", "a\\evil.txt", "C:evil.txt"])
def test_a_member_that_leaves_the_folder_is_refused(
    member: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, bundle(server, ("toy/a.txt", member)))
    with pytest.raises(DataError, match="leaves the folder"):
        download.fetch("toy", tmp_path)
    assert not list(tmp_path.rglob("evil*")) and not list(tmp_path.parent.glob("evil*"))


def test_a_member_of_the_wrong_size_or_missing_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bundle(server)
    add(monkeypatch, dataclasses.replace(one, files=(File("a.txt", 7),)))
    with pytest.raises(DataError, match=r"toy/a\.txt: 6 bytes, expected 7"):
        download.fetch("toy", tmp_path)
    add(monkeypatch, bundle(server, ("toy/b.txt",)))
    monkeypatch.setitem(
        datasets.DATASETS,
        "toy",
        dataclasses.replace(datasets.DATASETS["toy"], files=(File("b.txt"),)),
    )
    with pytest.raises(DataError, match=r"no member toy/b\.txt"):
        download.fetch("toy", tmp_path)
    assert not (tmp_path / "toy" / "b.txt").exists()


# --- from a folder ------------------------------------------------------------


def test_from_copies_and_leaves_the_source_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "big.bin").write_bytes(PAYLOAD)
    download.fetch("toy", tmp_path / "data", source=mine, offline=True)
    assert (tmp_path / "data" / "toy" / "big.bin").read_bytes() == PAYLOAD
    assert (mine / "big.bin").read_bytes() == PAYLOAD
    assert server.requests == []


def test_from_takes_the_archive_by_folder_or_by_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, bundle(server))
    mine = tmp_path / "toy.zip"
    mine.write_bytes(server.content["/toy.zip"])
    for n, source in enumerate((tmp_path, mine)):
        download.fetch("toy", tmp_path / f"data{n}", source=source)
        assert (tmp_path / f"data{n}" / "toy" / "a.txt").read_bytes() == b"alpha\n"
    assert mine.exists()
    mine.write_bytes(mine.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"toy\.zip: sha256 "):
        download.fetch("toy", tmp_path / "data2", source=mine)


def test_from_copies_nothing_unless_everything_is_there_and_right(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = plain(server)
    add(monkeypatch, dataclasses.replace(one, files=(*one.files, File("other.txt"))))
    (tmp_path / "big.bin").write_bytes(PAYLOAD)
    with pytest.raises(DataError, match=r"other\.txt not found there.*nothing was copied"):
        download.fetch("toy", tmp_path / "data", source=tmp_path)
    (tmp_path / "other.txt").write_bytes(b"x")
    (tmp_path / "big.bin").write_bytes(PAYLOAD[:-1] + b"!")
    with pytest.raises(DataError, match=sha256(PAYLOAD)):
        download.fetch("toy", tmp_path / "data", source=tmp_path)
    assert list((tmp_path / "data" / "toy").iterdir()) == []
    with pytest.raises(DataError, match="no such file or folder"):
        download.fetch("toy", tmp_path / "data", source=tmp_path / "nowhere")


def test_from_copies_every_file_of_a_pattern(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "ml-posters"
    mine.mkdir(parents=True)
    for name in ("1.jpg", "2.jpg", "notes.txt"):
        (mine / name).write_bytes(name.encode())
    for n, source in enumerate((mine, mine.parent)):
        result = download.fetch("ml-posters", tmp_path / f"data{n}", source=source)
        assert [p.name for p in result.new] == ["1.jpg", "2.jpg"]
    (status,) = download.check("ml-posters", tmp_path / "data0")
    assert status.ok and status.note == "2 files"


def test_a_data_set_without_address_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        download.fetch("cdsr-movie-book", tmp_path)
    text = str(error.value)
    assert "https://github.com/cjx96/C2DSR" in text and "\n" not in text
    assert f"data fetch cdsr-movie-book --from DIR --data-dir {tmp_path}" in text


# --- check, require, fingerprint ----------------------------------------------


def test_require_accepts_a_file_with_or_without_gz(tmp_path: Path) -> None:
    folder = tmp_path / "amazon-2018"
    folder.mkdir()
    (folder / "Books_5.json").touch()
    (folder / "meta_Books.json.gz").touch()
    names = ["Books_5.json.gz", "meta_Books.json"]
    found = download.require("amazon-book", tmp_path, names)
    assert [p.name for p in found] == ["Books_5.json", "meta_Books.json.gz"]


def test_require_says_what_is_missing_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        download.require("ml-1m", Path("data"), ["ratings.dat"])
    assert str(error.value) == (
        f"{Path('data/ml-1m/ratings.dat')} is missing. Fetch it: python -m reprokit data fetch "
        "ml-1m (6 MB, GroupLens licence, see data/README.md)"
    )
    with pytest.raises(DataError, match=r"Get it from the folder Food-Kitchen .*--from DIR"):
        download.require("cdsr-food-kitchen", Path("data"), ["Alist.txt"])


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(DataError, match=r"'ml1m'\. Did you mean 'ml-1m'\?"):
        download.dataset("ml1m")


def test_check_compares_size_then_content(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, plain(server))
    (status,) = download.check("toy", tmp_path)
    assert not status.present and not status.ok
    path = tmp_path / "toy" / "big.bin"
    path.parent.mkdir()
    path.write_bytes(b"short")
    (status,) = download.check("toy", tmp_path)
    assert (status.size_ok, status.hash_ok) == (False, None)
    assert "5, publisher's 1,024,000" in status.note
    path.write_bytes(PAYLOAD[:-1] + b"!")
    (status,) = download.check("toy", tmp_path)
    assert (status.size_ok, status.hash_ok) == (True, False)


def test_check_takes_an_unpacked_file_without_comparing_it(tmp_path: Path) -> None:
    folder = tmp_path / "amazon-2014"
    folder.mkdir()
    (folder / "reviews_Musical_Instruments_5.json").write_text("{}")
    status = download.check("amazon-musical-instruments", tmp_path)[0]
    assert status.ok and status.hash_ok is None and "not comparable" in status.note


def test_fingerprint_follows_content_and_name_but_not_place_or_order(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"1")
        (tmp_path / name / "b").write_bytes(b"2")
    first = [tmp_path / "one" / "a", tmp_path / "one" / "b"]
    second = [tmp_path / "two" / "b", tmp_path / "two" / "a"]
    before = download.fingerprint(first)
    assert re.fullmatch("[0-9a-f]{64}", before) and before == download.fingerprint(second)
    second[0].write_bytes(b"3")
    assert download.fingerprint(second) != before
    first[0].rename(tmp_path / "one" / "c")
    assert download.fingerprint([tmp_path / "one" / "c", first[1]]) != before
    with pytest.raises(DataError, match="is missing"):
        download.fingerprint(first)


def test_fingerprint_reads_a_file_once_and_survives_a_damaged_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "a", tmp_path / "cache" / "digests.json"
    path.write_bytes(b"1")
    reads: list[Path] = []
    real = download.digest
    monkeypatch.setattr(download, "digest", lambda p: reads.append(p) or real(p))
    before = download.fingerprint([path], cache)
    assert download.fingerprint([path], cache) == before and len(reads) == 1

    path.write_bytes(b"2")
    os.utime(path, ns=(1, 1))
    assert download.fingerprint([path], cache) != before and len(reads) == 2

    for damaged in ("", "[1]", '{"x": 3}', json.dumps({str(path): {"size": 1, "sha256": 5}})):
        cache.write_text(damaged)
        reads.clear()
        download.fingerprint([path], cache)
        assert len(reads) == 1
    assert [p.name for p in cache.parent.iterdir()] == ["digests.json"]


# --- the registry itself ------------------------------------------------------


@pytest.mark.parametrize("one", datasets.DATASETS.values(), ids=lambda one: one.name)
def test_the_registry_is_consistent(one: DataSet) -> None:
    provided = [target for archive in one.archives for target in archive.targets]
    assert len(set(provided)) == len(provided)
    if one.archives:
        assert {file.path for file in one.files} <= set(provided)
    else:
        assert one.by_hand
    for archive in one.archives:
        for url in (archive.url, *archive.mirrors):
            assert url.startswith("https://") and url.endswith("/" + archive.name)
        assert archive.sha256 is None or re.fullmatch("[0-9a-f]{64}", archive.sha256)
        assert archive.md5 is None or re.fullmatch("[0-9a-f]{32}", archive.md5)
    for file in one.files:
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert all(expected.source for expected in one.expected.values())
    assert one.licence and one.terms and one.citation and one.source


def test_the_readme_lists_every_data_set_and_checksum() -> None:
    text = (Path(__file__).parent.parent / "data" / "README.md").read_text(encoding="utf-8")
    for one in datasets.DATASETS.values():
        assert f"`{one.name}`" in text
        for known in (*one.files, *one.archives):
            assert known.sha256 is None or known.sha256 in text
            assert known.size is None or f"{known.size:,}" in text
        for expected in one.expected.values():
            assert f"{expected.value:,}" in text
