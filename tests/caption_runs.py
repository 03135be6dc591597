"""Captions of ten pictures, and what is recorded of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import Notes
from encoder_models import colours

from reprokit.captions import captions

PICTURES = colours(10)
IDS = [f"photo-{at}" for at in range(10)]


def caption(
    folder: Path, progress: Notes, name: str = "palette", pictures: Any = PICTURES, **more: Any
) -> tuple[list[str], dict[str, Any]]:
    """All pictures, under their own ids."""
    more = {"ids": IDS[: len(pictures)], "fingerprint": "f", **more}
    look = more.pop("images", pictures.__getitem__)
    return captions(name, look, folder=folder, progress=progress, **more)


def record(folder: Path) -> Path:
    (path,) = (folder / "captions").iterdir()
    return path


def counts(facts: dict[str, Any], *names: str) -> tuple[int, ...]:
    return tuple(facts[name] for name in names or ("made", "recorded"))
