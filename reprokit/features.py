"""Vectors of the items' texts and pictures, computed once by a frozen encoder and kept.

Encoding goes block by block, and each block is written when it is done, so that a killed process
goes on where it was. Together the blocks are one file, which is read from the disk as it is used.
Rows have unit length; a row is zero where there is nothing to encode, which is counted. Importing
this module loads no torch.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from reprokit.backbones import first_line
from reprokit.download import digest as file_digest
from reprokit.encoders import REVISION, image_encoder, text_encoder
from reprokit.progress import Progress
from reprokit.runs import RequestError, alone, digest, replacing, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

BLOCK = 4096
"""Rows that are written together: a killed process loses at most these."""
BATCH = {"text": 128, "image": 64}
"""Rows encoded together. Batches are cut from fixed blocks, wherever an earlier start stopped."""


# --- features -----------------------------------------------------------------------------------
def text_features(
    name: str, texts: Sequence[str], folder: Path, progress: Progress, fingerprint: str
) -> tuple[np.ndarray, dict[str, int]]:
    """Vectors of texts, (n, D) float32, read from the disk as they are used; and counts.

    Made once in `folder/features` for the same encoder and texts.

    Args:
        fingerprint: of the encoder, as `identify_encoder` gives it.

    Returns the vectors and {"texts": n, "empty": rows of zeros, "cut": longer than is read}.
    """
    filled = np.array([bool(text.strip()) for text in texts], bool)
    order = np.flatnonzero(filled)
    lengths = np.array([len(text) for text in texts if text.strip()])
    order = order[np.argsort(lengths, kind="stable")]  # little padding in a batch
    key = digest(["text features", REVISION, fingerprint, list(texts)])[:20]
    counts = {"texts": len(texts), "empty": int((~filled).sum()), "cut": 0}
    return kept(Texts(name, texts), order, counts, folder / "features" / f"{key}.npy", progress)


def image_features(
    name: str,
    images: Callable[[int], Image | None],
    present: np.ndarray,
    folder: Path,
    key: str,
    progress: Progress,
    fingerprint: str,
) -> tuple[np.ndarray, dict[str, int]]:
    """Vectors of pictures, (n, D) float32, read from the disk as they are used; and counts.

    Args:
        images: row -> its picture, opened when it is its turn; None where there is none.
        present: (n,) whether a row has a picture.
        key: changes whenever the pictures do, such as a fingerprint of their files.
        fingerprint: of the encoder, as `identify_encoder` gives it.

    Returns the vectors and {"pictures": n, "missing", "unreadable"}: both of these have rows of
    zeros, and the unreadable ones are named once.

    Raises RequestError where not one picture can be read.
    """
    present = np.asarray(present, bool)
    order = np.flatnonzero(present)
    known = digest(["image features", REVISION, fingerprint, key, present.tolist()])[:20]
    counts = {"pictures": len(present), "missing": int((~present).sum()), "unreadable": 0}
    return kept(
        Pictures(name, images), order, counts, folder / "features" / f"{known}.npy", progress
    )


class Texts:
    """Texts and the encoder that reads them, which is loaded when it is first needed."""

    kind = "text"

    def __init__(self, name: str, texts: Sequence[str]) -> None:
        self.name, self.texts = name, texts

    @functools.cached_property
    def encoder(self) -> Any:
        return text_encoder(self.name)

    def width(self) -> int:
        return int(self.encoder.encode(["x"])[0].shape[1])

    def encode(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, int], list[str]]:
        """(vectors (B, D), what is to be counted, what is to be said)."""
        vectors, cut = self.encoder.encode([self.texts[int(at)] for at in rows])
        return unit(self.name, vectors), {"cut": cut}, []


class Pictures:
    """The same for pictures."""

    kind = "image"

    def __init__(self, name: str, images: Callable[[int], Image | None]) -> None:
        self.name, self.images = name, images

    @functools.cached_property
    def encoder(self) -> Any:
        return image_encoder(self.name)

    def width(self) -> int:
        from PIL import Image

        grey = self.encoder.prepare(Image.new("RGB", (16, 16)))
        return int(self.encoder.encode([grey]).shape[1])

    def encode(self, rows: np.ndarray) -> tuple[np.ndarray, dict[str, int], list[str]]:
        readable, prepared, remarks, missing = [], [], [], 0
        for at, row in enumerate(rows):
            try:
                picture = self.images(int(row))
                if picture is None:
                    missing += 1
                    continue
                prepared.append(self.encoder.prepare(picture))
                readable.append(at)
            except MemoryError:
                raise
            except Exception as error:  # a damaged file raises whatever its format's reader does
                remarks.append(f"row {row} ({first_line(error)})")
        found = unit(self.name, self.encoder.encode(prepared)) if prepared else None
        vectors = np.zeros((len(rows), self.width() if found is None else found.shape[1]))
        if found is not None:
            vectors[readable] = found
        return vectors, {"missing": missing, "unreadable": len(remarks)}, remarks


def unit(name: str, vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length: (B, D)."""
    vectors = np.asarray(vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise RequestError(
            f"encoder '{name}' gives vectors that are zero or not finite: get its weights again"
        )
    return vectors / norms


# --- what is kept -------------------------------------------------------------------------------
Items = Texts | Pictures


def kept(
    items: Items, order: np.ndarray, counts: dict[str, int], path: Path, progress: Progress
) -> tuple[np.ndarray, dict[str, int]]:
    """The vectors in a file, which is made unless it stands whole. The first process writes.

    Args:
        order: rows that have something to encode, in the order in which they are encoded.
        counts: as known without encoding; the first is the number of rows.
    """
    if not next(iter(counts.values())):
        raise ValueError(f"{items.kind} features of no rows")
    found, fault = finished(path, counts)
    if found is None and not first_process():
        return wait_for(lambda: finished(path, counts)[0])
    if found is None:
        with alone(path):  # another command may be making it
            found, fault = finished(path, counts)
            if found is None:
                if fault:
                    progress.note(f"{path} is damaged and made again: {fault}")
                make(items, order, counts, path, progress)
                found, fault = finished(path, counts)
    if found is None:
        raise OSError(f"{path} is not what was written there: {fault}")
    return found


def finished(
    path: Path, counts: dict[str, int]
) -> tuple[tuple[np.ndarray, dict[str, int]] | None, str]:
    """(vectors and counts, "") of a file that is as it was written; else (None, what is wrong)."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if file_digest(path) != facts["sha256"]:
            raise ValueError("its content is not what was written")
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        rows = next(iter(counts.values()))
        if vectors.ndim != 2 or len(vectors) != rows or vectors.dtype != np.float32:
            raise ValueError(f"{vectors.dtype} {vectors.shape} in place of {rows} rows of float32")
        return (vectors, {name: int(facts["counts"][name]) for name in counts}), ""
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        return None, first_line(error)


def make(
    items: Items, order: np.ndarray, counts: dict[str, int], path: Path, progress: Progress
) -> None:
    """Encode block by block, then put the blocks together."""
    folder = path.with_suffix(".parts")
    blocks = [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]
    parts = [folder / f"{number:05}.npz" for number in range(len(blocks))]
    progress.start_steps(len(order))
    whole, remarks, done = dict(counts), [], 0
    for part, block in zip(parts, blocks, strict=True):
        found = read_part(part, len(block))
        if found is None:
            if part.is_file():
                progress.note(f"{part} is damaged and made again")
            make_part(items, part, block, counts, done, progress)
            found = believed(part, len(block))
        whole = {name: whole[name] + int(n) for name, n in zip(whole, found[1], strict=True)}
        remarks += found[2]
        done += len(block)
    complain(items, remarks, len(order), folder, progress)
    assemble(items, path, parts, blocks, next(iter(counts.values())))
    facts = {"encoder": items.name, "kind": items.kind, "counts": whole, "unreadable": remarks}
    write_json(path.with_suffix(".json"), {**facts, "sha256": file_digest(path)})
    shutil.rmtree(folder, ignore_errors=True)


def make_part(
    items: Items,
    part: Path,
    block: np.ndarray,
    counts: dict[str, int],
    done: int,
    progress: Progress,
) -> None:
    """Encode a block in batches and write it."""
    size = BATCH[items.kind]
    found, remarks = [], []
    added = dict.fromkeys(counts, 0)
    for start in range(0, len(block), size):
        vectors, more, said = items.encode(block[start : start + size])
        found.append(vectors.astype(np.float32))
        added |= {name: added[name] + n for name, n in more.items()}
        remarks += said
        at = done + min(start + size, len(block))
        progress.step(at, f"{items.kind} vectors of {items.name}")
    with replacing(part) as new, new.open("wb") as file:
        np.savez(
            file,
            vectors=np.concatenate(found),
            counts=np.array(list(added.values()), np.int64),
            remarks=np.array(remarks, np.str_),
        )


def read_part(part: Path, rows: int) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
    """(vectors, counts, remarks) of a block; None where it is not whole: a zip knows its CRC."""
    try:
        with np.load(part, allow_pickle=False) as file:
            vectors, counts, remarks = file["vectors"], file["counts"], file["remarks"].tolist()
        return (vectors, counts, remarks) if len(vectors) == rows else None
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def believed(part: Path, rows: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    found = read_part(part, rows)
    if found is None:
        raise OSError(f"{part} is not what was written there")
    return found


def complain(
    items: Items, remarks: Sequence[str], rows: int, folder: Path, progress: Progress
) -> None:
    """Name the pictures that cannot be read; refuse to go on with none."""
    if not remarks:
        return
    shown = "; ".join(remarks[:3]) + ("; ..." if len(remarks) > 3 else "")
    if len(remarks) == rows:
        shutil.rmtree(folder, ignore_errors=True)  # to be tried again
        raise RequestError(f"image encoder '{items.name}': no picture can be read: {shown}")
    progress.note(f"{len(remarks):,} of {rows:,} pictures cannot be read: {shown}")


def assemble(
    items: Items, path: Path, parts: Sequence[Path], blocks: Sequence[np.ndarray], rows: int
) -> None:
    """Write the vectors of all blocks to their rows; the others stay zero."""
    pairs = zip(parts, blocks, strict=True)
    width = believed(parts[0], len(blocks[0]))[0].shape[1] if parts else items.width()
    with replacing(path) as new:
        shape = (rows, width)
        vectors = np.lib.format.open_memmap(new, mode="w+", dtype=np.float32, shape=shape)
        for part, block in pairs:
            vectors[block] = believed(part, len(block))[0]
        vectors.flush()
        del vectors


def first_process() -> bool:
    """Whether this is the process that writes, of those that a launcher started."""
    return int(os.environ.get("RANK", 0)) == 0


def wait_for(look: Callable[[], T | None]) -> T:
    """What the first process makes, once it is there. A launcher ends all where that one fails.

    Looking takes a tenth of the time at most.
    """
    while True:
        started = time.monotonic()
        found = look()
        if found is not None:
            return found
        time.sleep(max(0.2, 9 * (time.monotonic() - started)))
