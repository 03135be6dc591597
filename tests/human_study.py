"""A small human study: its cases and sheets, ratings that come back on them, runs of its kind."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reprokit import human
from reprokit.human import read_key
from reprokit.progress import Progress
from reprokit.rating_forms import COLUMNS, CRITERIA, SYSTEMS, Case, export
from reprokit.runs import Job, Run


def cases(count: int = 8) -> list[Case]:
    return [
        Case(
            f"user {n}",
            f"item {n}",
            f'Film "{n}", <b>the</b> first; &amp',
            (f"-Liked {n}", "Café Zoë"),
            {
                name: f"=Reason {at} of {n}: it's </script> good, \u201cso\u201d, they say"
                for at, name in enumerate(SYSTEMS)
            },
        )
        for n in range(count)
    ]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three raters, five cases."""
    folder = tmp_path / "human-study"
    about = {"dataset": "demo-toy", "preset": "demo", "runs": {}}
    export(cases(), folder, raters=3, items=5, about=about)
    return folder


def lines_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))


def truth(code: str, key: dict[str, Any]) -> tuple[int, int, int]:
    """What our raters think: ExplainRec is best; no person's opinion."""
    told = key["codes"][code]
    level = {"explainrec": 4, "tallrec": 2, "narre": 3}[told["system"]]
    bump = int(told["case"] in ("case-001", "case-003")) - int(told["sheet"].startswith("02"))
    return level, min(5, level + bump), max(1, level - bump)


def fill(folder: Path, name: str, separator: str = ",", mark: str = "") -> Path:
    """A returned sheet, as some spreadsheet writes it."""
    key = read_key(folder / "key.json")
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter=separator, lineterminator="\r\n")
    writer.writeheader()
    for line in lines_of(folder / name):
        writer.writerow({**line, **dict(zip(CRITERIA, truth(line["code"], key), strict=True))})
    path = folder / "returned" / name
    path.write_bytes((mark + text.getvalue()).encode())
    return path


def damage(path: Path, number: int, change: Callable[[dict[str, str]], Any]) -> None:
    """Change a line, by its number in the file."""
    lines = lines_of(path)
    change(lines[number - 2])
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(lines)
    path.write_bytes(text.getvalue().encode())


def run_of(system: str, dataset: str = "demo-toy", settings: Any = None) -> Run:
    settings = settings or human.HumanSettings()
    return Run("explainrec", system, dataset, settings, 0, "print")


def job(data_dir: Path, dataset: str) -> Job:
    return Job(run_of("human", dataset), data_dir, data_dir, 20.0, Progress(quiet=True))
