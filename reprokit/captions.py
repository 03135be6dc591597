"""One sentence for each picture (MMREC, section IV-B), made once and kept.

A captioner is one of

- `palette`: no model. It grades brightness, colours, stripes and detail in fixed words, and stands
  in where no weights are at hand;
- `blip2`: BLIP-2 with OPT-2.7B, as in MMREC: 15.5 GB from the hub, 7.5 GB of memory in bfloat16;
- a BLIP-2 or BLIP for captions, as a folder, or `org/name` or `org/name@revision` on the hub.

Captions are unconditional, no prompt is given, and decoded greedily. They stand in
`captions/<key>.jsonl`, a text file that only grows, one JSON object per line: `id` of the picture,
its `version`, a digest of its `pixels`, the `caption`, whether it was `cut` at the most tokens
allowed, and `crc`, the CRC-32 of all before it. A caption belongs to pixels: a picture that is
replaced under its id is captioned anew, and one that stands under two ids is captioned once.

Weights are read from safetensors alone, never from a pickle, and no code of a checkpoint is run.
Importing this module loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from reprokit.backbones import check_weights, choose_dtype, first_line
from reprokit.encoders import (
    CAPTIONER,
    Source,
    device_name,
    exact,
    fetch_encoder,
    identify_source,
    named_folder,
    not_loaded,
    repository_name,
)
from reprokit.features import first_process, wait_for
from reprokit.homemade import quiet
from reprokit.progress import Progress
from reprokit.runs import RequestError, alone, digest, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

PALETTE, BLIP2 = "palette", "blip2"
BLIP2_REPO = "Salesforce/blip2-opt-2.7b"
CLASSES = {"blip": "BlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration"}
"""By `model_type` of a checkpoint: what it must hold."""
REVISION = 1
"""Of how pictures are captioned: raised when a change moves a caption."""
READERS = 4
"""Threads that open pictures."""


@dataclass(frozen=True, slots=True)
class Caption:
    """What is said of a picture."""

    text: str
    cut: bool


# --- what a name stands for ---------------------------------------------------------------------
def locate_captioner(name: str) -> Source:
    """What a captioner's name stands for."""
    if name == PALETTE:
        return Source(name, CAPTIONER)
    if name == BLIP2:
        return Source(name, CAPTIONER, repo=BLIP2_REPO)
    folder = named_folder(name, name, "config.json", CAPTIONER)
    if folder:
        return Source(name, CAPTIONER, folder)
    named = repository_name(name)
    if not named:
        raise RequestError(
            f"captioner '{name}' is unknown: use {PALETTE}, {BLIP2}, or a BLIP-2 or BLIP, as a "
            "folder or a hub name (org/name or org/name@revision)"
        )
    return Source(name, CAPTIONER, repo=named[0], revision=named[1])


def identify_captioner(name: str, cache: Path | None = None, offline: bool = False) -> str:
    """One line that changes whenever the captioner behind a name does.

    A folder is known by its files' content (digests are kept in `cache`, a JSON file); a hub name
    by its commit, from the local hub cache or else from the hub.

    Raises RequestError: no such captioner, or its weights are pickled, or the hub was not reached.
    """
    source = locate_captioner(name)
    if name == PALETTE:
        return f"{PALETTE} captioner, recipe {REVISION}"
    return identify_source(source, cache, offline)


# --- captions -----------------------------------------------------------------------------------
def captions(
    name: str,
    images: Callable[[int], Image | None],
    ids: Sequence[str],
    folder: Path,
    progress: Progress,
    fingerprint: str,
    max_new_tokens: int = 30,
    batch: int = 16,
    versions: Sequence[str] | None = None,
    dtype: str = "auto",
) -> tuple[list[str], dict[str, int | str]]:
    """A sentence for each picture, empty where there is none to be had; and facts.

    Args:
        images: row -> its picture, opened when it is its turn, in one of several threads; None
            where there is none. Rows of one id are one picture: the first of them is opened.
        folder: of the results; captions are kept in its `captions`.
        fingerprint: of the captioner, as `identify_captioner` gives it.
        batch: pictures captioned together, and lost at most by a killed process.
        versions: changes with a picture, such as size and time of change of its file. A caption
            that was recorded for the same id and version stands without opening the picture; an
            empty version says nothing. Without, every picture is opened to see its pixels.
        dtype: of a model, as in `backbones.load`.

    The facts count distinct ids: `pictures`, of which `missing`, `unreadable`, `made` now and
    `recorded` before (or made now for the same pixels under another id); captions that are `cut`
    and `empty`; `damaged` lines of the record, whose captions are made again. `note` says what a
    reader must know.

    Of the processes of a launch the first one opens pictures and captions them; all give what it
    says, so that a picture that it alone cannot read is the same to all.

    Raises RequestError: no such captioner, or not one picture can be read.
    """
    if max_new_tokens < 1 or batch < 1:
        raise ValueError(f"max_new_tokens and batch of {name} must be 1 at least")
    if versions is not None and len(versions) != len(ids):
        raise ValueError(f"{len(versions)} versions for {len(ids)} pictures")
    source = locate_captioner(name)
    key = digest(["captions", REVISION, fingerprint, max_new_tokens])[:20]
    path = folder / "captions" / f"{key}.jsonl"
    captioner = Captioner(source, max_new_tokens, dtype)
    album = Album(images, ids, versions)
    said, facts = told_by_first(
        path.parent, lambda: describe(album, path, captioner, batch, progress)
    )
    return said, facts


def told_by_first(folder: Path, make: Callable[[], T]) -> T:
    """What `make` gives in the first process of a launch, in all of them; it must be JSON.

    It goes through a file of this very call, since a process group bears no wait of hours. The file
    is named by a number that the first process draws: one that a killed launch left is not read.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return make()
    import torch
    from accelerate.utils import broadcast

    from reprokit.training import make_accelerator

    accelerator = make_accelerator()
    drawn = torch.tensor([secrets.randbits(62)], device=accelerator.device)
    path = folder / f".{int(broadcast(drawn))}.json"
    if first_process():
        write_json(path, make())
    told: T = wait_for(lambda: json.loads(path.read_bytes()) if path.is_file() else None)
    accelerator.wait_for_everyone()  # all have read it
    if first_process():
        path.unlink()
    return told


def describe(
    album: Album, path: Path, captioner: Captioner, batch: int, progress: Progress
) -> tuple[list[str], dict[str, int | str]]:
    """Captions and facts; those that the record in `path` lacks are made."""
    with alone(path):  # another command may be captioning the same
        record = Record(path)
        if record.damaged:
            progress.note(f"{path}: {record.damaged} lines are damaged and made again")
        made = make(album, record, captioner, batch, progress)
    found = [record.of(album, row) for row in album.rows]
    complain(captioner.source, album, sum(one is not None for one in found), progress)
    known = [caption for caption in found if caption]
    facts: dict[str, int | str] = {
        "pictures": len(album.rows),
        "missing": len(album.missing),
        "unreadable": len(album.unreadable),
        "made": made,
        "recorded": len(known) - made,
        "cut": sum(caption.cut for caption in known),
        "empty": sum(not caption.text for caption in known),
        "damaged": record.damaged,
        "note": PALETTE_NOTE if captioner.source.name == PALETTE else "",
    }
    said = [caption.text if caption else "" for caption in found]
    texts = {album.ids[row]: text for row, text in zip(album.rows, said, strict=True)}
    return [texts[picture] for picture in album.ids], facts


class Album:
    """The pictures, one row for each id, and what became of those that were opened."""

    def __init__(
        self,
        images: Callable[[int], Image | None],
        ids: Sequence[str],
        versions: Sequence[str] | None,
    ) -> None:
        self.images = images
        self.ids = [str(one) for one in ids]
        self.versions = [""] * len(ids) if versions is None else [one or "" for one in versions]
        self.rows = sorted({one: row for row, one in reversed(list(enumerate(self.ids)))}.values())
        self.pixels: dict[int, str] = {}
        """By row: the digest of a picture that was opened."""
        self.missing: set[int] = set()
        self.unreadable: dict[int, str] = {}
        """By row: why."""

    def open(self, row: int) -> Image | None:
        """A picture in red, green and blue, whose digest is kept; None where there is none."""
        try:
            picture = self.images(row)
            if picture is None:
                self.missing.add(row)
                return None
            colours = picture if picture.mode == "RGB" else picture.convert("RGB")
            if 0 in colours.size:
                raise ValueError("it has no pixels")
            self.pixels[row] = pixel_digest(colours)
            return colours
        except MemoryError:
            raise
        except Exception as error:  # a damaged file raises whatever its format's reader does
            self.unreadable[row] = first_line(error)
            return None


def pixel_digest(picture: Image) -> str:
    found = hashlib.blake2b(repr(picture.size).encode(), digest_size=16)
    found.update(picture.tobytes())
    return found.hexdigest()


def complain(source: Source, album: Album, readable: int, progress: Progress) -> None:
    """Name the pictures that cannot be read; refuse to go on with none."""
    if not album.unreadable:
        return
    said = [f"{album.ids[row]} ({why})" for row, why in sorted(album.unreadable.items())]
    shown = "; ".join(said[:3]) + ("; ..." if len(said) > 3 else "")
    if not readable:
        raise RequestError(f"{source.title}: no picture can be read: {shown}")
    progress.note(f"{len(said):,} of {len(album.rows):,} pictures cannot be read: {shown}")


def make(album: Album, record: Record, captioner: Captioner, batch: int, progress: Progress) -> int:
    """Caption what is not recorded, batch by batch; returns how many captions were made.

    The batches follow from all pictures, wherever an earlier start stopped: in half precision a
    neighbour may decide between two words.
    """
    lots = [
        [row for row in album.rows[start : start + batch] if not record.holds(album, row)]
        for start in range(0, len(album.rows), batch)
    ]
    lots = [lot for lot in lots if lot]
    progress.start_steps(sum(map(len, lots)))
    made = done = 0

    def look(row: int) -> np.ndarray | None:
        """A picture as the captioner reads it, small; None where there is nothing to caption."""
        picture = album.open(row)
        if picture is None or album.pixels[row] in record.captions:
            return None
        return captioner.load().prepare(picture)

    with ThreadPoolExecutor(READERS) as pool:
        ahead = [pool.submit(look, row) for row in lots[0]] if lots else []
        for at, lot in enumerate(lots):
            opened = [reading.result() for reading in ahead]
            following = lots[at + 1] if at + 1 < len(lots) else []
            ahead = [pool.submit(look, row) for row in following]  # while the model works
            new = {
                album.pixels[row]: small
                for row, small in zip(lot, opened, strict=True)
                if small is not None and album.pixels[row] not in record.captions
            }
            fresh = captioner.load().caption(list(new.values())) if new else []
            record.captions.update(zip(new, fresh, strict=True))
            record.append(album, lot)
            made, done = made + len(new), done + len(lot)
            progress.step(done, f"pictures described by {captioner.source.name}")
    return made


# --- the record ---------------------------------------------------------------------------------
class Record:
    """Captions by the pixels that they describe, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.captions: dict[str, Caption] = {}
        """By digest of the pixels."""
        self.pixels: dict[tuple[str, str], str] = {}
        """By id and version of a picture."""
        self.damaged = 0
        if not path.is_file():
            return
        with path.open("rb") as file:
            for line in file:
                found = believe(line)
                if found is None:
                    self.damaged += line != b"\n"
                    continue
                picture, version, pixels, caption = found
                self.captions[pixels] = caption
                self.pixels[picture, version] = pixels

    def holds(self, album: Album, row: int) -> bool:
        """Whether a caption stands without opening the picture."""
        version = album.versions[row]
        return bool(version) and (album.ids[row], version) in self.pixels

    def of(self, album: Album, row: int) -> Caption | None:
        pixels = album.pixels.get(row)
        if pixels is None and self.holds(album, row):
            pixels = self.pixels[album.ids[row], album.versions[row]]
        return self.captions[pixels] if pixels else None

    def append(self, album: Album, rows: Iterable[int]) -> None:
        """Write the captions of pictures that were opened, as far as they are new.

        The lines are written by one call, behind whatever another process wrote meanwhile. A line
        that a kill cut off stays, and is a damaged one.
        """
        lines = []
        for row in rows:
            picture, pixels = (album.ids[row], album.versions[row]), album.pixels.get(row)
            if pixels is None or self.pixels.get(picture) == pixels:
                continue
            self.pixels[picture] = pixels
            lines.append(sealed(*picture, pixels, self.captions[pixels]))
        if not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read(1) == b"\n" else [b"\n", *lines]
            file.write(b"".join(lines))
            os.fsync(file.fileno())


def sealed(picture: str, version: str, pixels: str, caption: Caption) -> bytes:
    """A line of the record."""
    told = {"id": picture, "version": version, "pixels": pixels}
    body = json.dumps({**told, "caption": caption.text, "cut": caption.cut}).encode()
    return b'%b, "crc": %d}\n' % (body[:-1], zlib.crc32(body[:-1]))


def believe(line: bytes) -> tuple[str, str, str, Caption] | None:
    """(id, version, pixels, caption) of a line, if it is as it was written."""
    found = re.fullmatch(rb'(.*), "crc": (\d+)\}\n', line)
    if not found or zlib.crc32(found[1]) != int(found[2]):
        return None
    told = json.loads(found[1] + b"}")
    return told["id"], told["version"], told["pixels"], Caption(told["caption"], told["cut"])


# --- captioners ---------------------------------------------------------------------------------
class Captioner:
    """A captioner that is loaded when a picture needs it, by whichever thread is the first."""

    def __init__(self, source: Source, max_new_tokens: int, dtype: str) -> None:
        self.source, self.max_new_tokens, self.dtype = source, max_new_tokens, dtype
        self.lock = threading.Lock()
        self.loaded: Palette | Blip | None = None

    def load(self) -> Palette | Blip:
        with self.lock:
            if self.loaded is None and self.source.name == PALETTE:
                self.loaded = Palette()
            elif self.loaded is None:
                self.loaded = Blip(self.source, self.max_new_tokens, self.dtype)
            return self.loaded


PALETTE_NOTE = f"{PALETTE} names colours, no content: it is no caption model"
SIDE = 32
"""Pixels on each side of what `palette` looks at."""
LIGHT = (
    (40, 75, 103, 118, 133, 148, 180, 215),
    ("black", "gloomy", "dusky", "dim", "medium", "light", "bright", "brilliant", "white"),
)
"""Limits of the mean brightness, 0 to 255, and a word for each grade between them."""
WARMTH = (
    (-57, -34, -11, 11, 34, 57),
    ("icy", "cold", "cool", "neutral", "mild", "warm", "fiery"),
)
"""The same for the mean of red minus blue."""
VIVIDNESS = ((12, 30, 55, 90), ("grey", "pale", "muted", "rich", "vivid"))
"""For the mean of a pixel's strongest channel minus its weakest."""
STRIPES = (
    (3.2, 6.5, 9.7, 13, 20),
    ("plain", "shaded", "lined", "striped", "banded", "barred"),
)
"""For the root mean square of the difference between neighbouring columns."""
DETAIL = ((4, 10, 18, 28), ("smooth", "calm", "textured", "busy", "crowded"))
"""For that between pixels above each other."""


class Palette:
    """Grades of a picture's colours and contrasts, in words that differ: one for each grade."""

    def prepare(self, picture: Image) -> np.ndarray:
        from PIL.Image import Resampling

        return np.asarray(picture.resize((SIDE, SIDE), Resampling.BOX), np.float64)

    def caption(self, pictures: Sequence[np.ndarray]) -> list[Caption]:
        return [Caption(palette(picture), False) for picture in pictures]


def palette(pixels: np.ndarray) -> str:
    """The sentence for (32, 32, 3) pixels."""
    grey = pixels.mean(axis=2)
    columns = np.diff(grey.mean(axis=0))
    light = grade(LIGHT, grey.mean())
    warmth = grade(WARMTH, pixels[..., 0].mean() - pixels[..., 2].mean())
    vividness = grade(VIVIDNESS, (pixels.max(axis=2) - pixels.min(axis=2)).mean())
    stripes = grade(STRIPES, np.sqrt(np.mean(columns**2)))
    detail = grade(DETAIL, np.sqrt(np.mean(np.diff(grey, axis=0) ** 2)))
    return f"a {light}, {warmth}, {vividness} picture, {stripes} and {detail}"


def grade(scale: tuple[Sequence[float], Sequence[str]], value: float) -> str:
    limits, words = scale
    return words[int(np.searchsorted(limits, value, side="right"))]


class Blip:
    """A BLIP or BLIP-2 of transformers, decoded greedily whatever the checkpoint suggests."""

    def __init__(self, source: Source, max_new_tokens: int, dtype: str) -> None:
        import torch

        self.source, self.max_new_tokens = source, max_new_tokens
        self.device = torch.device(device_name())
        self.dtype = choose_dtype(dtype, self.device)
        folder = fetch_encoder(source)
        check_kind(source, folder)
        try:
            with quiet():
                self.load(folder)
                self.settle()
                self.try_out()
        except RequestError:
            raise
        except Exception as error:  # the tokenizers library raises Exception itself
            raise not_loaded(source, folder, error) from error

    def load(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

        # Resized by Pillow, as BLIP-2 was published, whether or not torchvision loads here.
        auto: Any = AutoModelForImageTextToText
        own: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
        self.reader = AutoImageProcessor.from_pretrained(folder, backend="pil", **own)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, **own)
        model, info = auto.from_pretrained(
            folder,
            dtype=self.dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused, in one line
            **own,
        )
        check_weights(self.source.name, info, CAPTIONER)
        self.model = model.requires_grad_(False).eval().to(self.device)

    def settle(self) -> None:
        """What opens a caption and is no part of it, and the tokens that end it."""
        from transformers import GenerationConfig

        config, text = self.model.config, self.model.config.text_config
        if config.model_type == "blip":
            decoder = self.model.text_decoder
            self.start, ends = [text.bos_token_id], text.sep_token_id
        else:
            decoder = self.model.language_model
            self.start, ends = opening(config), decoder.generation_config.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends]) - {None}
        room = getattr(text, "max_position_embeddings", None)
        if room and len(self.start) + self.max_new_tokens > room:
            raise RequestError(
                f"{self.source.title} writes at most {room - len(self.start)} tokens, and "
                f"{self.max_new_tokens} are asked for: lower max_new_tokens"
            )
        old = decoder.generation_config
        pad = old.pad_token_id if old.pad_token_id is not None else next(iter(self.ends), None)
        decoder.generation_config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            bos_token_id=old.bos_token_id,
            eos_token_id=list(self.ends) or None,
            pad_token_id=pad,
            decoder_start_token_id=old.decoder_start_token_id,
        )

    def try_out(self) -> None:
        """Refuse a model whose numbers are not finite, and a library that answers otherwise."""
        from PIL import Image

        grey = self.prepare(Image.new("RGB", (64, 64), (128, 128, 128)))
        more = {"output_logits": True, "return_dict_in_generate": True}
        out = self.generate([grey], max_new_tokens=1, **more)
        if not all(logits.isfinite().all() for logits in out.logits):
            raise RequestError(
                f"{self.source.title} gives logits that are not finite in {self.dtype}: use "
                "another dtype, or get the model again"
            )
        if out.sequences[0, : len(self.start)].tolist() != self.start:
            import transformers

            raise RequestError(
                f"{self.source.title}: transformers {transformers.__version__} does not put what "
                "opens a caption before it, as version 5.23 does: install that one"
            )

    def prepare(self, picture: Image) -> np.ndarray:
        """(3, S, S) float32."""
        more = {"input_data_format": "channels_last"}  # else guessed, for a height of 3 wrongly
        read = self.reader(images=picture, return_tensors="np", **more)["pixel_values"]
        return np.asarray(read[0], np.float32)

    def caption(self, pictures: Sequence[np.ndarray]) -> list[Caption]:
        rows = self.generate(pictures)[:, len(self.start) :].tolist()
        return [self.read(row) for row in rows]

    def generate(self, pictures: Sequence[np.ndarray], **more: Any) -> Any:
        import torch

        pixels = torch.from_numpy(np.stack(pictures)).to(self.device, self.dtype)
        with exact(), quiet():
            return self.model.generate(pixel_values=pixels, **more)

    def read(self, row: Sequence[int]) -> Caption:
        """The caption that some tokens are, up to the one that ends it."""
        stop = next((at for at, token in enumerate(row) if token in self.ends), None)
        text = self.tokenizer.decode(row[:stop], skip_special_tokens=True)
        return Caption(" ".join(text.split()), stop is None)


def opening(config: Any) -> list[int]:
    """What the language model of a BLIP-2 reads, or opens with, before the first word.

    The picture stands in the places of its image token. Checkpoints from before 2025 name none:
    any will do that is not the first word's.
    """
    text = config.text_config
    if config.image_token_index is None:
        config.image_token_index = int(text.bos_token_id == 0)
    if config.is_encoder_decoder:
        return [text.decoder_start_token_id]
    return [*[config.image_token_index] * config.num_query_tokens, text.bos_token_id]


def check_kind(source: Source, folder: Path) -> None:
    """Refuse what is no BLIP or BLIP-2 for captions."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, classes = config.get("model_type"), config.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise not_loaded(source, folder, error) from error
    if CLASSES.get(kind) not in classes:
        found = ", ".join(map(str, classes)) or "no class"
        raise RequestError(
            f"{source.title}: the model in {folder} is a {kind} with {found}, and not a "
            f"{' or a '.join(CLASSES.values())}"
        )
