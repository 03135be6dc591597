"""A run: what identifies it, how a system declares itself, and the store of finished results.

A run is (paper, system, data set, settings, seed), identified by a hash of exactly what decides
its outcome, the fingerprint of the data included. The preset is not part of it: two presets that
choose the same settings share the run, and so do all tables.

    runs/<id>.json               metrics, settings, what chose the model, provenance runs/<id>.npz
    predictions: ids, labels and scores, from which every metric can be recomputed
    runs/<id>.ckpt.safetensors   the state of an unfinished run runs/<id>.error.txt          the
    traceback of a failed one

A result counts once its JSON file stands; that file is written last, and every file is replaced as
a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from reprokit.datasets import DataError

if TYPE_CHECKING:
    from reprokit.progress import Progress

PRESETS = ("demo", "small", "paper")


class RequestError(ValueError):
    """What the user asked for cannot be: one line that says what, and what to do."""


def setting(default: Any, why: str) -> Any:
    """A field of a settings dataclass: its default and the reason, shown under the tables."""
    return field(default=default, metadata={"why": why})


@dataclass(frozen=True)
class Estimate:
    """An upper bound of what a run takes on two CPU cores."""

    seconds: float
    memory: float
    """Bytes."""
    disk: float
    """Bytes kept, checkpoint included."""


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

    @property
    def identity(self) -> dict[str, Any]:
        return {**vars(self), "settings": asdict(self.settings)}

    @property
    def id(self) -> str:
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    @property
    def title(self) -> str:
        return f"{self.paper} {self.system} on {self.dataset}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """What a run leaves."""

    metrics: dict[str, float]
    """By name, such as `test/auc`."""
    predictions: dict[str, np.ndarray] = field(default_factory=dict)
    """Aligned columns by `split/name`: publisher's ids, labels, scores."""
    selection: dict[str, Any] = field(default_factory=dict)
    """What chose the model: always a validation metric, or the reason why nothing was chosen."""
    data: dict[str, Any] = field(default_factory=dict)
    """Counts of the data set as loaded."""


@dataclass(frozen=True)
class Job:
    """A run about to be executed, with its surroundings."""

    run: Run
    data_dir: Path
    checkpoint: Path
    checkpoint_seconds: float
    progress: Progress


@dataclass(frozen=True)
class System:
    """How a system is run. Only calling `execute` may import torch."""

    settings: type
    execute: Callable[[Job], Result]
    estimate: Callable[[Any, Mapping[str, int]], Estimate]
    """(settings, sizes of the data set) -> an upper bound."""
    seeded: bool = True
    """False: the outcome does not depend on a seed, one run is enough."""
    revision: int = 1
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that differ by data set."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that differ by preset."""

    def configure(self, dataset: str, preset: str, chosen: Mapping[str, Any]) -> Any:
        """Defaults, then the data set's, the preset's, and the user's settings."""
        return self.settings(
            **{**self.tuned.get(dataset, {}), **self.presets.get(preset, {}), **chosen}
        )


class Store:
    """Finished runs in a folder; every method is safe beside other processes."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "runs"

    def path(self, run: Run, suffix: str = ".json") -> Path:
        return self.folder / f"{run.id}{suffix}"

    def load(self, run: Run) -> dict[str, Any] | None:
        """The stored result, or None. A file that is not this run's is an error, not a miss."""
        path = self.path(run)
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(
                f"{path} is not a result file ({error}). Delete it and run again"
            ) from None
        if stored.get("run") != run.identity:
            raise DataError(f"{path} describes another run. Delete it and run again")
        return stored

    def save(self, run: Run, result: Result, provenance: dict[str, Any]) -> None:
        if result.predictions:
            with atomic(self.path(run, ".npz"), "wb") as file:
                np.savez_compressed(file, **result.predictions)  # type: ignore[arg-type]
        write_json(
            self.path(run),
            {
                "id": run.id,
                "run": run.identity,
                "metrics": result.metrics,
                "selection": result.selection,
                "data": result.data,
                "predictions": sorted(result.predictions),
                "provenance": provenance,
            },
        )
        for suffix in (".ckpt.safetensors", ".error.txt"):
            self.path(run, suffix).unlink(missing_ok=True)

    def predictions(self, run: Run) -> dict[str, np.ndarray]:
        with np.load(self.path(run, ".npz"), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def discard(self, run: Run) -> None:
        for suffix in (".json", ".npz", ".ckpt.safetensors", ".error.txt"):
            self.path(run, suffix).unlink(missing_ok=True)

    def seconds_of_siblings(self, run: Run) -> float | None:
        """Median time of finished runs that differ from this one in the seed alone."""
        wanted = {**run.identity, "seed": None}
        times = []
        for path in self.folder.glob("*.json"):
            stored = json.loads(path.read_text(encoding="utf-8"))
            if {**stored["run"], "seed": None} == wanted:
                times.append(stored["provenance"]["seconds"])
        return float(np.median(times)) if times else None


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under its name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    with atomic(path) as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")
