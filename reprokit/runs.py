"""A run: what identifies it, how a system declares itself, and the store of finished results.

A run is (paper, system, data set, settings, seed), identified by a hash of exactly what decides
its outcome, the fingerprint of the data included. The preset is not part of it: two presets that
choose the same settings share the run, and so do all tables. In the store:

- `runs/<id>.json`: metrics, settings, what chose the model, provenance, and its own digest.
- `runs/<id>.npz`: predictions (ids, labels, scores); every metric can be recomputed from them.
- `runs/<id>.error.txt`: the traceback of a failed one.
- `stages/<id>.safetensors`: a trained stage, such as a CF model or an adapter, shared by every run
  that needs it; `<id>.ckpt.safetensors`: one that is still being trained.

A result counts once its JSON file stands, which is written last, and only while both files are as
they were written: a damaged result is made again, never believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from reprokit.progress import Progress

PRESETS = ("demo", "small", "paper")
KINDS = ("llm", "text", "image", "caption", "t5")
"""Of pretrained models: a language model, frozen encoders of texts, of images, captioners, and T5,
an encoder-decoder that is fine-tuned."""


class RequestError(ValueError):
    """What the user asked for cannot be: one line that says what, and what to do."""


class Unavailable(RuntimeError):
    """A run that cannot be made here, such as one that needs a key: its cells stay empty and say
    why in one line. Nothing has failed."""


def setting(default: Any, why: str, named: bool = False) -> Any:
    """A field of a settings dataclass: its default and the reason, shown under the tables.

    `named`: it tells the rows of a system apart, and stands in a run's title.
    """
    return field(default=default, metadata={"why": why, "named": named})


@dataclass(frozen=True)
class Estimate:
    """An upper bound of what a run takes on two CPU cores."""

    seconds: float
    memory: float
    """Bytes."""
    disk: float
    """Bytes kept, checkpoint included."""
    shared: Mapping[str, float] = field(default_factory=dict)
    """Further seconds for what is made once for all runs that name it."""

    @property
    def total(self) -> float:
        """Seconds of a run that comes first."""
        return self.seconds + sum(self.shared.values())


@dataclass(frozen=True)
class Run:
    """One training and scoring of one system."""

    paper: str
    system: str
    dataset: str
    settings: Any
    """A frozen dataclass: every setting, defaults included."""
    seed: int
    fingerprint: str
    """Of the data set's content."""
    revision: int = 1
    """Of the system's code: raised when a change moves its numbers."""
    precision: str = "no"
    """Mixed precision of the launch configuration."""
    backbone: str = ""
    """Fingerprint of the pretrained models behind it; empty where there are none."""

    @property
    def identity(self) -> dict[str, Any]:
        return {**vars(self), "settings": asdict(self.settings)}

    @property
    def id(self) -> str:
        return digest(self.identity)[:20]

    @property
    def kind(self) -> str:
        """What runs that differ in the seed alone have in common."""
        return canonical({**self.identity, "seed": None})

    @property
    def pretrained(self) -> dict[str, str]:
        """Fingerprints of the pretrained models behind it, by kind."""
        if not self.backbone or self.backbone.partition(" ")[0] not in KINDS:
            return {"llm": self.backbone} if self.backbone else {}
        parts = (part.partition(" ") for part in self.backbone.split("; "))
        return {kind: fingerprint for kind, _, fingerprint in parts}

    @property
    def title(self) -> str:
        named = [
            label(item.name, value)
            for item in fields(self.settings)
            if item.metadata.get("named") and (value := getattr(self.settings, item.name))
        ]
        system = f"{self.system} ({', '.join(named)})" if named else self.system
        return f"{self.paper} {system} on {self.dataset}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What a run leaves."""

    metrics: dict[str, Any]
    """By name, such as `test/auc`."""
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    """Aligned columns by `split/name`: publisher's ids, labels, scores."""
    selection: dict[str, Any] = field(default_factory=dict)
    """What chose the model: always a validation metric, or the reason why nothing was chosen."""
    data: dict[str, Any] = field(default_factory=dict)
    """Counts of the data set as loaded."""
    deviations: tuple[str, ...] = ()
    """What keeps the numbers from being compared with print, such as a substitute backbone."""
    notes: tuple[str, ...] = ()
    """What a reader of the table must know of this run, such as prompts that were shortened."""
    earlier_seconds: float = 0.0
    """Time spent by earlier starts of a resumed run."""


@dataclass(frozen=True)
class Job:
    """A run about to be executed, with its surroundings."""

    run: Run
    data_dir: Path
    folder: Path
    """Of the results (`--out`); trained stages are kept in it and shared by the runs."""
    checkpoint_seconds: float
    progress: Progress
    fresh: float = 0.0
    """Unix time: stages made earlier are made again (`--fresh`)."""


@dataclass(frozen=True)
class System:
    """How a system is run. Only calling `execute` may import torch."""

    settings: type
    execute: Callable[[Job], Result]
    estimate: Callable[[Any, Mapping[str, int]], Estimate]
    """(settings, sizes of the data set) -> an upper bound."""
    seeded: bool | Callable[[Any], bool] = True
    """False, or false for some settings: no seed decides the outcome, and one run is enough."""
    revision: int = 1
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that differ by data set."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that differ by preset; they win over the data set's."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a data set or a preset has settings of its own."""
    backbone: str = ""
    """Name of the setting that names a language model; empty where there is none."""
    encoders: Mapping[str, str] = field(default_factory=dict)
    """By kind of another pretrained model, "text", "image", "caption" or "t5": the setting that
    names it."""
    reads: Callable[[Any], Collection[str]] | None = None
    """Which of `KINDS` a run with some settings reads; None: all named."""
    by_backbone: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that differ by language model; they win over the preset's."""

    def configure(self, dataset: str, preset: str, chosen: Mapping[str, Any]) -> Any:
        """Defaults, then the data set's, the preset's, the language model's, and the user's."""
        base = {**self.tuned.get(dataset, {}), **self.presets.get(preset, {})}
        return self.settings(**{**base, **self.of_backbone(preset, chosen), **chosen})

    def of_backbone(self, preset: str, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
        name = {**self.presets.get(preset, {}), **chosen}.get(self.backbone, "")
        return self.by_backbone.get(name, {})

    def pretrained(self, settings: Any) -> dict[str, str]:
        """Names of the pretrained models behind a run, by kind."""
        named = {"llm": self.backbone} if self.backbone else {}
        named |= self.encoders
        read = named if self.reads is None else self.reads(settings)
        return {kind: getattr(settings, key) for kind, key in named.items() if kind in read}

    def is_seeded(self, settings: Any) -> bool:
        return self.seeded if isinstance(self.seeded, bool) else self.seeded(settings)

    def origin(self, name: str, dataset: str, preset: str, chosen: Mapping[str, Any]) -> str:
        """Where a setting's value comes from; empty for its default."""
        if name in chosen:
            return "set by you"
        if name in self.of_backbone(preset, chosen):
            return f"for {chosen.get(self.backbone, preset)}: {self.reasons['own']}"
        for key, special in ((preset, self.presets), (dataset, self.tuned)):
            if name in special.get(key, {}):
                return f"for {key}: {self.reasons[key]}"
        return ""


class Store:
    """Finished runs in a folder; every method is safe beside other processes."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "runs"
        self.damaged: dict[str, str] = {}
        """By run id: why a result that stands is not believed."""

    def path(self, run: Run, suffix: str = ".json") -> Path:
        return self.folder / f"{run.id}{suffix}"

    def load(self, run: Run) -> dict[str, Any] | None:
        """The stored result; None where there is none, or none to believe (see `damaged`)."""
        path = self.path(run)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            claimed = stored.pop("digest")
            if claimed != digest(stored) or stored["id"] != run.id:
                raise ValueError("its content is not what was written")
            if stored["predictions"]["sha256"]:
                with self.path(run, ".npz").open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != stored["predictions"]["sha256"]:
                    raise ValueError("its predictions are not what was written")
        except FileNotFoundError as error:
            if path.is_file():
                self.damaged[run.id] = f"{error.filename} is missing"
            return None
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            self.damaged[run.id] = f"{path}: {error}"
            return None
        return stored

    def save(self, run: Run, result: Result, provenance: dict[str, Any]) -> None:
        sha256 = ""
        if result.predictions:
            with replacing(self.path(run, ".npz")) as part:
                with part.open("wb") as file:
                    np.savez_compressed(file, **result.predictions)  # type: ignore[arg-type]
                with part.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        content = {
            "id": run.id,
            "run": run.identity,
            "metrics": result.metrics,
            "selection": result.selection,
            "deviations": list(result.deviations),
            "notes": list(result.notes),
            "data": result.data,
            "predictions": {"columns": sorted(result.predictions), "sha256": sha256},
            "provenance": provenance,
        }
        write_json(self.path(run), {**content, "digest": digest(content)})
        self.path(run, ".error.txt").unlink(missing_ok=True)
        self.sweep(run)

    def predictions(self, run: Run) -> dict[str, np.ndarray]:
        with np.load(self.path(run, ".npz"), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def discard(self, run: Run) -> None:
        for suffix in (".json", ".npz", ".error.txt"):
            self.path(run, suffix).unlink(missing_ok=True)
        self.sweep(run)

    def sweep(self, run: Run) -> None:
        """Remove what a killed process left half-written an hour ago or earlier.

        Younger files may belong to another process that is writing them now.
        """
        for part in self.folder.glob(f".{run.id}.*.part"):
            with suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > 3600:
                    part.unlink()

    def times(self) -> dict[str, float]:
        """Median seconds of the finished runs of each kind: all that differ in the seed alone."""
        found: dict[str, list[float]] = {}
        for path in self.folder.glob("*.json"):
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                kind = canonical({**stored["run"], "seed": None})
                found.setdefault(kind, []).append(float(stored["provenance"]["seconds"]))
            except (OSError, ValueError, TypeError, LookupError):
                continue  # a damaged result forecasts nothing; `load` deals with it
        return {kind: float(np.median(seconds)) for kind, seconds in found.items()}


def label(name: str, value: Any) -> str:
    """A named setting in a title: a word alone, a flag by its name, a number with its name."""
    if isinstance(value, str | bool):
        return value if isinstance(value, str) else name
    return f"{name} {value:g}"


def canonical(value: Any) -> str:
    """One text for equal values, tuples and lists alike."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path whose file takes the place of `path` once it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other command makes what is to stand at a path, and keep others off meanwhile.

    Locks lie beside the folder of `path`, in `.locks`. Where the system or the disk has none,
    commands may make it twice.
    """
    locks = path.parent.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{path.name}.lock").open("ab") as file:
        if fcntl:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def atomic(path: Path) -> Iterator[IO[str]]:
    """Open a text file that appears under its name only once it is whole."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        yield file


def write_json(path: Path, value: Any) -> None:
    with atomic(path) as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")
