"""Requests of MMREC's tables on its demos, which are made small, and what each one left."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import stage_header

from reprokit import profiles, reproduce, reviewdata, reviewing, synthetic
from reprokit.plan import Plan, Request, plan
from reprokit.rendering import Rendered
from reprokit.reproduce import Outcome
from reprokit.reviewdata import REVIEW_DATA, load_reviews
from reprokit.reviews import Reviews
from reprokit.runs import Run, Store

DEMO = "demo-google-restaurants"
LABELS = ("proposed", "baseline", "proposed-text", "proposed-img")
ROWS = tuple(f"{label} / basic / 0.10" for label in LABELS)
SMALL: Any = {"n_users": 80, "n_films": 30, "n_books": 0, "events_per_user": 12, "book_share": 0.0}


def few(*systems: str, **more: Any) -> tuple[str, ...]:
    """--set of a few epochs on small batches."""
    chosen = {
        "min_epochs": 4,
        "max_epochs": 6,
        "patience": 2,
        "batch_size": 128,
        "upstream": 16,
        "upstream_epochs": 3,
        **more,
    }
    return tuple(f"{system}.{key}={value}" for system in systems for key, value in chosen.items())


FEW = few("proposed", "baseline")


def forget() -> None:
    """What a process keeps for the runs that follow: a new one has nothing."""
    reviewdata.load_reviews.cache_clear()
    profiles._KEPT.clear()
    reviewing._COMPRESSED.clear()


@pytest.fixture(scope="module", autouse=True)
def few_people() -> Iterator[None]:
    """The demos with 80 people and 30 items, both classes in each split."""

    def world() -> synthetic.Config:
        return synthetic.Config(**SMALL)

    def shop_world() -> synthetic.Config:
        return synthetic.Config(**SMALL, seed=1, review_share=0.99)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reviewdata, "review_world", world)
        patch.setattr(reviewdata, "product_world", shop_world)
        for name, made in ((DEMO, world), ("demo-amazon-musical-instruments", shop_world)):
            patch.setitem(REVIEW_DATA, name, dataclasses.replace(REVIEW_DATA[name], world=made))
        forget()
        yield
    forget()


@dataclasses.dataclass(frozen=True)
class Made:
    """What a request left."""

    out: Path
    planned: Plan
    outcome: Outcome
    rendered: tuple[Rendered, ...]
    status: int
    stages: dict[str, dict[str, Any]]
    """Headers of the stages that stood then, by file name."""

    @property
    def rows(self) -> dict[str, tuple[Run, ...]]:
        """The runs of each requested row, seed by seed."""
        spots = [spot for spot in self.planned.spots if spot.requested and spot.runs]
        return {spot.row.label: spot.runs for spot in spots if spot.row}

    def stored(self, run: Run) -> dict[str, Any]:
        found = Store(self.out).load(run)
        assert found is not None
        return found

    def predictions(self, run: Run) -> dict[str, np.ndarray]:
        return Store(self.out).predictions(run)

    def path(self, suffix: str) -> Path:
        folder = self.out / self.planned.request.preset / "mmrec"
        return folder / f"{self.rendered[0].table.file}{suffix}"

    def text(self, suffix: str) -> str:
        return self.path(suffix).read_text(encoding="utf-8")

    def cells(self) -> dict[str, list[str]]:
        """The CSV by row."""
        n = self.rendered[0].table.published.n_labels
        lines = list(csv.reader(io.StringIO(self.text(".csv"))))[1:]
        return {" / ".join(line[:n]): line[n:] for line in lines}

    def compared(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.text(".compare.csv"))))


def make(out: Path, target: str = "mmrec/table1", **chosen: Any) -> Made:
    """Execute a request as a new process would."""
    forget()
    planned = plan(Request(targets=(target,), out=out, command="test", **chosen))
    outcome = reproduce.execute(planned, quiet=True)
    rendered, status = reproduce.assemble(planned, outcome)
    stages = {path.name: stage_header(path) for path in sorted(out.glob("stages/*"))}
    return Made(out, planned, outcome, tuple(rendered), status, stages)


def data_of(made: Made, name: str = DEMO) -> Reviews:
    return load_reviews(name, made.planned.request.data_dir)
