"""Shared by the tests: the real-data folder, tiny click data, notes, a command line of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch: threads of several processes wait for one
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # another, at ten times the cost

from reprokit.data import Catalogue, CTRData, Events, ctr_split
from reprokit.progress import Progress
from reprokit.runs import RequestError

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parent.parent
# What test files share says which values differ where an assert fails, as they do themselves.
pytest.register_assert_rewrite(
    *(path.stem for path in Path(__file__).parent.glob("*.py") if "test" not in path.stem)
)
DATA = Path(os.environ.get("REPROKIT_DATA", ROOT / "data"))


def needs(*files: str) -> pytest.MarkDecorator:
    """Skip where real data is absent, and say which."""
    missing = [file for file in files if not (DATA / file).is_file()]
    return pytest.mark.skipif(
        bool(missing), reason=f"{', '.join(missing)} not in {DATA}; set REPROKIT_DATA"
    )


def reprokit(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "reprokit", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=300,
    )


def launch(*command: str | Path, seconds: int = 240) -> subprocess.CompletedProcess[str]:
    """Run a script or `-m module` in two processes, as `accelerate launch` starts them."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    options = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    more = [
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        "--num_cpu_threads_per_process",
        "1",
    ]
    return subprocess.run(
        [*launcher, *options, *more, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


BROKEN_TORCHVISION = """
import importlib.util, sys

class Broken:
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == "torchvision" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise RuntimeError("operator torchvision::nms does not exist")

sys.meta_path.insert(0, Broken())
"""
"""Opens a program: a torchvision as it is when it was built for another torch."""


def refused(*words: str) -> Any:
    """One line with all these words."""
    return pytest.raises(RequestError, match=r"(?s)\A[^\n]*" + "".join(
        rf"(?=[^\n]*{word})" for word in words
    ) + r"[^\n]*\Z")  # fmt: skip


def stage_header(path: Path) -> dict[str, Any]:
    """What stands beside the weights of a kept stage."""
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["reprokit"])


def number(tensor: Tensor) -> np.ndarray:
    """In double precision, for a definition that is written out."""
    return tensor.detach().numpy().astype(np.float64)


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("asked again")


def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hf" / "hub"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no hub."""
    return empty_hub(tmp_path, monkeypatch)


class Notes(Progress):
    """Keeps what would be said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def progress() -> Notes:
    return Notes()


@pytest.fixture
def click_data() -> CTRData:
    """40 users, 30 items, 900 events: liked when user and item have the same parity, mostly."""
    rng = np.random.default_rng(0)
    n = 900
    users, items = rng.integers(1, 41, n), rng.integers(1, 31, n)
    agree = (users + items) % 2 == 0
    ratings = np.where(agree ^ (rng.random(n) < 0.1), 5, 2).astype(np.float32)
    times = np.sort(rng.integers(0, 1000, n))
    part = np.repeat([0, 1, 2], [600, 150, 150]).astype(np.int8)
    names = [f"Film {number}" for number in range(1, 31)]
    catalogue = Catalogue(np.arange(1, 31), names, ["Drama"] * 30)
    return ctr_split("toy", Events(users, items, ratings, times), part, 3, catalogue)
