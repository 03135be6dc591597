"""Where, when and with what a run was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import reprokit


def provenance(started: float, earlier: float = 0.0) -> dict[str, Any]:
    """Facts of a run: begun at `started` (Unix seconds), `earlier` seconds spent before that."""
    facts: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(earlier + time.time() - started, 3),
        "process_peak_memory": peak_memory(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        **environment(),
    }
    if "torch" in sys.modules:
        import torch

        facts["threads"] = torch.get_num_threads()
        facts["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        if torch.cuda.is_available():
            facts["device_peak_memory"] = torch.cuda.max_memory_allocated()
    facts["precision"] = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return facts


def reset_device_memory() -> None:
    """Let `device_peak_memory` count from now on."""
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()


def peak_memory(restart: bool = False) -> int:
    """The most bytes that this process has held so far; 0 where the system does not tell.

    `restart`: count from now on, where the system can (Linux; not on every kernel). The counter of
    Linux lags behind by some pages a thread: a peak may lie a little under what was held before.
    """
    own = Path("/proc/self/status")  # `ru_maxrss` of Linux begins with the peak of the parent
    if own.is_file():
        if restart:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        found = re.search(r"VmHWM:\s+(\d+) kB", own.read_text())
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


REQUIRED = ("torch", "accelerate", "numpy", "scipy", "scikit-learn", "polars")
OPTIONAL = ("transformers", "peft", "tokenizers", "sentence-transformers")


@cache
def environment() -> dict[str, Any]:
    """Versions, hardware and commit; the same for all runs of a process."""
    versions = dict.fromkeys(REQUIRED, "absent")
    for package in (*REQUIRED, *OPTIONAL):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "reprokit": reprokit.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions,
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
    }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it; "" outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")
