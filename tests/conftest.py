"""Shared by the tests: the real-data folder, tiny click data, a command line of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reprokit.data import Catalogue, CTRData, Events, ctr_split

ROOT = Path(__file__).parent.parent
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
