"""Requests of LLM-EMF's tables on its demos, which are made small, and what each one left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprokit import crossdata, reproduce
from reprokit.plan import Plan, Request, plan
from reprokit.rendering import Rendered
from reprokit.reproduce import Outcome
from reprokit.runs import Run, Store

OWN = tuple(f"{name}.max_epochs=1" for name in ("gru4rec", "sasrec", "sr-gnn"))
"""Of the rows of our own that run along with any other."""


def forget() -> None:
    for cached in (crossdata.made, crossdata.load_cross_data):
        cached.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def few_people() -> Iterator[None]:
    """The demos with 40 people and 80 items."""
    real = crossdata.cross_world
    sizes = {"n_users": 40, "n_films": 40, "n_books": 40}
    pinned = {**sizes, "events_per_user": 24, "late_item_share": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossdata, "cross_world", lambda n: dataclasses.replace(real(n), **pinned))
        forget()
        yield
    forget()


@dataclasses.dataclass(frozen=True)
class Made:
    """What a request left."""

    out: Path
    planned: Plan
    outcome: Outcome
    rendered: Rendered
    status: int

    @property
    def runs(self) -> dict[str, Run]:
        return {run.title.removeprefix("llm_emf "): run for run in self.planned.wanted}

    def stored(self, title: str) -> dict[str, Any]:
        found = Store(self.out).load(self.runs[title])
        assert found is not None
        return found

    def predictions(self, title: str) -> dict[str, np.ndarray]:
        return Store(self.out).predictions(self.runs[title])

    def text(self, suffix: str) -> str:
        table = self.rendered.table
        folder = self.out / self.planned.request.preset / "llm_emf"
        return (folder / f"{table.name}{suffix}").read_text(encoding="utf-8")


def make(out: Path, target: str = "llm_emf/table2", **chosen: Any) -> Made:
    planned = plan(Request(targets=(target,), out=out, command="test", **chosen))
    outcome = reproduce.execute(planned, quiet=True)
    (rendered,), status = reproduce.assemble(planned, outcome)
    return Made(out, planned, outcome, rendered, status)
