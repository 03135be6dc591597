"""Bring data sets in from their publishers: atomic, resumable and verified.

Nothing is ever written over a file that is already there, and a file appears under its final name
only when it is whole and verified.

Only the standard library is used, and nothing here imports numpy or torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from reprokit.datasets import Archive, DataError, DataSet, File, dataset

Progress = Callable[[int, int | None], None]
"""Called with (bytes done, bytes in all or None where the server does not say)."""

CHUNK = 1 << 18
TIMEOUT = 60.0
PAUSES: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each new attempt after a passing fault; new bytes start the count again."""
RECORD = ".fetched.json"
"""In each folder: size, SHA-256 and origin of files whose publisher lists no checksum."""


@dataclass(frozen=True)
class FileStatus:
    """What `check` found; `size_ok` and `hash_ok` are None where nothing is known to compare."""

    path: str
    present: bool
    size_ok: bool | None = None
    hash_ok: bool | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Present, and nothing speaks against it."""
        return self.present and self.size_ok is not False and self.hash_ok is not False


@dataclass(frozen=True)
class Fetched:
    """What `fetch` did: paths written, and one line to print."""

    name: str
    folder: Path
    new: tuple[Path, ...]
    message: str


def megabytes(size: int) -> str:
    """Decimal units, as download pages print them: 6 MB, 1.4 GB."""
    if size < 1e6:
        return f"{max(1, round(size / 1e3))} kB"
    return f"{round(size / 1e6)} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


# --- what is there ------------------------------------------------------------------------------
def _alternative(path: str) -> str:
    return path.removesuffix(".gz") if path.endswith(".gz") else path + ".gz"


def find(folder: Path, path: str) -> Path | None:
    """The file itself, or the same name with or without .gz, or a first match of a pattern."""
    if "*" in path:
        return next((p for p in sorted(folder.glob(path)) if p.is_file()), None)
    return next((p for p in (folder / path, folder / _alternative(path)) if p.is_file()), None)


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _read_json(path: Path) -> dict[str, dict[str, object]]:
    """A small JSON object of objects; empty where the file is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {key: entry for key, entry in value.items() if isinstance(entry, dict)}


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    """Atomic: a reader sees the old file or the new one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)


def _status(folder: Path, file: File, record: Mapping[str, Mapping[str, object]]) -> FileStatus:
    found = find(folder, file.path)
    if found is None:
        return FileStatus(file.path, present=False, note="missing")
    if "*" in file.path:
        count = sum(p.is_file() for p in folder.glob(file.path))
        return FileStatus(file.path, present=True, note=f"{count:,} files")
    if found.name != PurePosixPath(file.path).name:
        note = f"present as {found.name}: not comparable with the publisher's {file.path}"
        return FileStatus(file.path, present=True, note=note)
    size, sha256, note = file.size, file.sha256, "publisher's checksum"
    if sha256 is None:
        known = record.get(file.path, {})
        note = (
            f"checksum recorded when fetched from {known['from']}" if known else "no checksum known"
        )
        recorded = known.get("sha256")
        sha256 = recorded if isinstance(recorded, str) else None
    size_ok = None if size is None else found.stat().st_size == size
    if size_ok is False:  # no need to read it: the content cannot be equal
        note = f"size {found.stat().st_size:,}, publisher's {size:,}"
        return FileStatus(file.path, True, False, None, note)
    hash_ok = None
    if sha256 is not None:
        got = digest(found)
        hash_ok = got == sha256
        note = note if hash_ok else f"sha256 {got}, expected {sha256}"
    return FileStatus(file.path, True, size_ok, hash_ok, note)


def check(name: str, data_dir: Path) -> list[FileStatus]:
    """Compare the files there with the publisher's sizes and checksums. Reads them whole."""
    one = dataset(name)
    folder = Path(data_dir) / one.folder
    record = _read_json(folder / RECORD)
    return [_status(folder, file, record) for file in one.files]


def _command(one: DataSet, data_dir: Path, source: bool = False) -> str:
    where = "" if Path(data_dir) == Path("data") else f" --data-dir {data_dir}"
    return f"python -m reprokit data fetch {one.name}{' --from DIR' if source else ''}{where}"


def require(name: str, data_dir: Path, paths: Iterable[str]) -> list[Path]:
    """The files of a data set, given relative to its folder, each with or without .gz.

    Raises DataError that names the first missing file and how to get it.
    """
    one = dataset(name)
    folder = Path(data_dir) / one.folder
    found = []
    for path in paths:
        at = find(folder, path)
        if at is None:
            provided = {t for a in one.archives for t in a.targets} | {f.path for f in one.files}
            if one.archives and (path in provided or _alternative(path) in provided):
                size = f"{megabytes(one.size)}, " if one.size else ""
                how = (
                    f"Fetch it: {_command(one, data_dir)} ({size}{one.licence}, see data/README.md)"
                )
            else:
                where = one.by_hand or one.source
                command = _command(one, data_dir, source=True)
                how = f"Get it from {where}; then: {command} (see data/README.md)"
            raise DataError(f"{folder / path} is missing. {how}")
        found.append(at)
    return found


# --- fingerprints -------------------------------------------------------------------------------
def fingerprint(
    paths: Iterable[Path], cache: Path | None = None, read: bool = True, keep: bool = True
) -> str:
    """SHA-256 over the sorted (name, SHA-256 of content) of some files, as 64 hex digits.

    Names are relative to the folder that all files share, so that a moved data directory keeps its
    fingerprint. `cache` is a JSON file of digests by absolute path, size and time of change: a
    large file is read once. A missing or damaged cache is rebuilt. With `read` off no file is read:
    the result is empty where the cache does not have them all. With `keep` off the cache is left
    as it is.
    """
    files = [Path(p).absolute() for p in paths]
    for path in files:
        if not path.is_file():
            raise DataError(f"{path} is missing: no fingerprint can be taken")
    if not files:
        raise DataError("no files to take a fingerprint of")
    base = Path(os.path.commonpath([p.parent for p in files]))
    known = _read_json(cache) if cache else {}
    changed = False
    lines = []
    for path in files:
        stat = path.stat()
        key = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        entry = known.get(str(path), {})
        sha256 = entry.get("sha256")
        if not isinstance(sha256, str) or any(entry.get(k) != v for k, v in key.items()):
            if not read:
                return ""
            sha256 = digest(path)
            known[str(path)] = {**key, "sha256": sha256}
            changed = True
        lines.append(f"{path.relative_to(base).as_posix()}\0{sha256}\n")
    if cache and changed and keep:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            cache.parent.mkdir(parents=True, exist_ok=True)
            _write_json(cache, known)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


# --- fetching -----------------------------------------------------------------------------------
def _inside(folder: Path, path: str) -> Path:
    """folder / path, refused where it would leave the folder."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or path in ("", "."):
        raise DataError(f"{folder}: refused to write '{path}', a path that leaves the folder")
    return folder / pure


def _room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{folder}: {megabytes(need)} needed and {megabytes(free)} free. "
            "Free some room or choose another place with --data-dir"
        )


def _commit(part: Path, path: Path) -> None:
    """Flush a finished file to disk and give it its name."""
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(part, path)


def _verify(part: Path, what: str, size: int | None, sha256: str | None, md5: str | None) -> None:
    """Compare a whole download; on a mismatch delete it and raise DataError with both values."""
    problem = ""
    got = part.stat().st_size
    if size is not None and got != size:
        problem = f"size {got:,} bytes, expected {size:,}"
    for algorithm, expected in (("sha256", sha256), ("md5", md5 if sha256 is None else None)):
        if expected and not problem and (value := digest(part, algorithm)) != expected:
            problem = f"{algorithm} {value}, expected {expected}"
    if problem:
        part.unlink()
        raise DataError(
            f"{what}: {problem}; the copy was deleted. Fetch again; if it repeats, the file has "
            "changed at its publisher or on the way"
        )


def _copy(stream: BinaryIO, out: BinaryIO, done: int, total: int | None, report: Progress) -> int:
    while chunk := stream.read(CHUNK):
        out.write(chunk)
        done += len(chunk)
        report(done, total)
    return done


def _pause(seconds: float) -> None:
    time.sleep(seconds)


def _attempt(url: str, part: Path, archive: Archive, unpacked: int, report: Progress) -> None:
    """One request; goes on with `part` where the server allows it, starts again where not."""
    tag_file = part.with_name(part.name + ".tag")
    tag = _read_json(tag_file).get(url, {}).get("validator")
    done = part.stat().st_size if part.exists() else 0
    if not (tag or archive.sha256 or archive.md5):
        done = 0  # nothing could tell a changed file from the one that was begun
    request = urllib.request.Request(url, headers={"User-Agent": "reprokit"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if isinstance(tag, str):
            request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != 416 or not done:
            raise
        if error.headers.get("Content-Range") == f"bytes */{done}":
            return  # whole already
        part.unlink()
        raise ConnectionError("the partial copy did not fit the file") from error
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            part.unlink()
            raise ConnectionError("the server sent another range than was asked for")
        done = done if resumed else 0
        length = response.headers.get("Content-Length")
        total = archive.size if length is None else done + int(length)
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
        tag_file.unlink(missing_ok=True)
        if validator:
            _write_json(tag_file, {url: {"validator": validator}})
        _room(part.parent, (total or 0) - done + unpacked)
        report(done, total)
        with part.open("ab" if resumed else "wb") as out:
            done = _copy(response, out, done, total, report)
    if length is not None and total is not None and done < total:
        raise ConnectionError(f"connection closed after {done:,} of {total:,} bytes")


def _passing(error: Exception) -> bool:
    """Whether waiting may help."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    if isinstance(error, urllib.error.URLError):
        return isinstance(error.reason, (TimeoutError, ConnectionError))
    return isinstance(error, (ConnectionError, TimeoutError, http.client.HTTPException))


def _persist(url: str, part: Path, archive: Archive, unpacked: int, report: Progress) -> None:
    """Attempts until the file is whole. Faults in a row without one new byte are counted."""
    faults, best = 0, 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        if archive.size is not None and have == archive.size:
            return
        best = max(best, have)
        try:
            return _attempt(url, part, archive, unpacked, report)
        except (OSError, http.client.HTTPException) as error:
            faults = 0 if part.exists() and part.stat().st_size > best else faults
            if not _passing(error) or faults >= len(PAUSES):
                raise
            _pause(PAUSES[faults])
            faults += 1


def _download(archive: Archive, part: Path, unpacked: int, report: Progress) -> str:
    """Bring an archive to `part`, whole and verified; returns the address that served it."""
    reasons = []
    for url in (archive.url, *archive.mirrors):
        try:
            _persist(url, part, archive, unpacked, report)
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{url}: {error}")
            continue
        part.with_name(part.name + ".tag").unlink(missing_ok=True)
        _verify(part, url, archive.size, archive.sha256, archive.md5)
        return url
    raise DataError(
        f"could not download {archive.name} ({'; '.join(reasons)}). Run the command again to go on "
        "from here, or get the file with a browser and use --from DIR"
    )


def _unpack(archive: Archive, part: Path, folder: Path, wanted: Mapping[str, File]) -> list[Path]:
    """Write the wanted members of a verified zip, each atomically; existing files stay."""
    written = []
    try:
        with zipfile.ZipFile(part) as bundle:
            names = set(bundle.namelist())
            for member, target in zip(archive.members, archive.targets, strict=True):
                _inside(folder, member)  # refused even though only its last part is used
                path = _inside(folder, target)
                if path.exists() or target not in wanted:
                    continue
                if member not in names:
                    raise DataError(
                        f"{archive.name} has no member {member}: not the expected archive"
                    )
                known = wanted[target]
                info = bundle.getinfo(member)
                if known.size is not None and info.file_size != known.size:
                    raise DataError(
                        f"{archive.name}, {member}: {info.file_size:,} bytes, "
                        f"expected {known.size:,}"
                    )
                _room(folder, info.file_size)
                piece = path.with_name(path.name + ".part")
                with bundle.open(info) as stream, piece.open("wb") as out:
                    shutil.copyfileobj(stream, out, CHUNK)
                _verify(piece, f"{archive.name}, {member}", known.size, known.sha256, None)
                _commit(piece, path)
                written.append(path)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise DataError(
            f"{archive.name} is not a readable zip archive ({part}): {error}"
        ) from error
    return written


def _record(folder: Path, one: DataSet, written: Sequence[Path], origin: str) -> None:
    """Remember the checksums of new files whose publisher lists none."""
    published = {file.path for file in one.files if file.sha256}
    entries: dict[str, object] = dict(_read_json(folder / RECORD))
    for path in written:
        name = path.relative_to(folder).as_posix()
        if name not in published:
            entries[name] = {
                "size": path.stat().st_size,
                "sha256": digest(path),
                "from": origin,
            }
    if entries:
        _write_json(folder / RECORD, entries)


def _with_readme(one: DataSet, archive: Archive, wanted: Mapping[str, File]) -> dict[str, File]:
    """What is wanted, and the members that are no data: the README holds the licence."""
    data = {file.path for file in one.files}
    return {t: File(t) for t in archive.targets if t not in data} | dict(wanted)


def _from_network(
    one: DataSet, folder: Path, wanted: Mapping[str, File], report: Progress
) -> list[Path]:
    written = []
    for archive in one.archives:
        if not any(target in wanted for target in archive.targets):
            continue
        part = _inside(folder, archive.name + ".part")
        if archive.members:
            unpacked = sum(wanted[t].size or 0 for t in archive.targets if t in wanted)
            origin = _download(archive, part, unpacked, report)
            new = _unpack(archive, part, folder, _with_readme(one, archive, wanted))
            part.unlink()
        else:
            path = _inside(folder, archive.name)
            origin = _download(archive, part, 0, report)
            _commit(part, path)
            new = [path]
        _record(folder, one, new, origin)
        written += new
    return written


def _from_folder(
    one: DataSet, folder: Path, wanted: Mapping[str, File], source: Path, report: Progress
) -> list[Path]:
    """Copy from a folder (or archive file) of the user; the source is only read."""
    if not source.exists():
        raise DataError(f"--from {source}: no such file or folder")
    root = source if source.is_dir() else source.parent
    places = (root, root / PurePosixPath(one.folder).name)
    plan: list[tuple[Path, File]] = []  # a file of the user, and what it is to become
    zips: dict[Path, Archive] = {}
    missing = []
    for path, file in wanted.items():
        at = next((found for place in places if (found := find(place, path))), None)
        archive = next((a for a in one.archives if a.members and path in a.targets), None)
        if at is not None and "*" in path:
            plan += [(p, File(p.name)) for p in sorted(at.parent.glob(path)) if p.is_file()]
        elif at is not None:
            plan.append((at, file if at.name == path else File(_alternative(path))))
        elif archive is not None and (root / archive.name).is_file():
            zips[root / archive.name] = archive
        else:
            missing.append(path)
    if missing:
        names = [a.name for a in one.archives if a.members]
        also = f" (nor {', '.join(names)})" if names else ""
        raise DataError(
            f"--from {source}: {', '.join(missing)} not found there{also}; nothing was copied"
        )
    total = sum(at.stat().st_size for at, _ in plan)
    _room(folder, total)
    done = 0
    written = []
    for at, file in plan:
        target = _inside(folder, file.path)
        if target.exists():
            continue
        part = target.with_name(target.name + ".part")
        with at.open("rb") as stream, part.open("wb") as out:
            done = _copy(stream, out, done, total, report)
        _verify(part, str(at), file.size, file.sha256, None)
        _commit(part, target)
        written.append(target)
    for bundle, archive in zips.items():
        algorithm, expected = ("sha256", archive.sha256) if archive.sha256 else ("md5", archive.md5)
        if expected and (value := digest(bundle, algorithm)) != expected:
            raise DataError(f"{bundle}: {algorithm} {value}, expected {expected}")
        written += _unpack(archive, bundle, folder, _with_readme(one, archive, wanted))
    if "*" not in "".join(wanted):  # thousands of posters need no record
        _record(folder, one, written, str(source))
    return written


def _nothing(done: int, total: int | None) -> None:
    pass


def fetch(
    name: str,
    data_dir: Path,
    source: Path | None = None,
    progress: Progress | None = None,
    offline: bool = False,
) -> Fetched:
    """Bring a data set into data_dir from its publisher, or from `source` (the command's --from).

    `source` is a folder with the files or the archive, or the archive itself; it is copied from and
    never changed. What is there and right is left alone; what is there and is not the publisher's
    file is never overwritten. Interrupted downloads go on where they stopped.

    Raises DataError: unknown name, no address, offline, no room, wrong checksum, files not found.
    """
    one = dataset(name)
    folder = Path(data_dir) / one.folder
    statuses = check(name, data_dir)
    for status in statuses:
        if status.present and not status.ok:
            raise DataError(
                f"{folder / status.path} is not the publisher's file ({status.note}). It was left "
                "as it is: move it away, then fetch again"
            )
    wanted = {f.path: f for f, s in zip(one.files, statuses, strict=True) if not s.present}
    if not wanted:
        unknown = [s.path for s in statuses if s.hash_ok is None and s.size_ok is None]
        how = (
            f"present; not verifiable: {', '.join(unknown)}" if unknown else "present and verified"
        )
        return Fetched(name, folder, (), f"{name}: already {how}; nothing to do")
    report = progress or _nothing
    if source is None and not one.archives:
        raise DataError(
            f"{name} has no public address. Get it from {one.by_hand}, then run: "
            f"{_command(one, data_dir, source=True)} (see data/README.md)"
        )
    if source is None and offline:
        raise DataError(
            f"{name}: {', '.join(wanted)} missing in {folder} and --offline is set. Without it, "
            f"run: {_command(one, data_dir)}, or bring the files and use --from DIR"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--data-dir: {folder} cannot be made ({error.strerror}). Choose another folder"
        ) from None
    if source is not None:
        written = _from_folder(one, folder, wanted, Path(source), report)
    else:
        written = _from_network(one, folder, wanted, report)
    size = megabytes(sum(path.stat().st_size for path in written)) if written else "0 kB"
    return Fetched(
        name,
        folder,
        tuple(written),
        f"{name}: {len(written):,} files, {size}, in {folder}. {one.licence}; cite: {one.citation}",
    )
