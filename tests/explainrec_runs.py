"""Requests of ExplainRec's tables on its demos, which are made small, and what each one left."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from reprokit import ratings, reproduce
from reprokit.plan import Plan, Request, plan
from reprokit.progress import Progress
from reprokit.reproduce import Outcome
from reprokit.runs import Job, Run, Store

FILMS, COLD, CROSS = "demo-ml-25m", "demo-ml-25m-cold", "demo-ml-25m-cross"
AMAZON = "demo-amazon-movies-2014"
FULL, SILENT = "ExplainRec (Full)", "w/o Preference Attribution"
SMALL = {
    "rated_rows": 24,
    "rank_rows": 5,
    "valid_rows": 20,
    "valid_lists": 5,
    "negatives": 9,
    "train_rows": 64,
    "epoch_rows": 32,
    "min_epochs": 1,
    "max_epochs": 1,
    "explain_rows": 6,
    "explain_tokens": 5,
    "stage1": "none",
}


@pytest.fixture(scope="module", autouse=True)
def few_people() -> Iterator[None]:
    """The demos with 50 people, 40 films and 30 books."""
    real = ratings.taste_world
    sizes = {"n_users": 50, "n_films": 40, "n_books": 30, "events_per_user": 20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ratings, "taste_world", lambda seed=0: dataclasses.replace(real(seed), **sizes)
        )
        ratings.load_feedback.cache_clear()
        yield
    ratings.load_feedback.cache_clear()


@dataclasses.dataclass(frozen=True)
class Made:
    """What a request left."""

    out: Path
    planned: Plan
    outcome: Outcome
    status: int
    text: str
    cells: dict[str, list[str]]
    """The CSV by row."""

    def run(self, label: str, dataset: str = FILMS) -> Run:
        (found,) = {
            run
            for spot in self.planned.spots
            if spot.row and spot.row.label == label
            for run in spot.runs
            if run.dataset == dataset
        }
        return found

    def stored(self, label: str, dataset: str = FILMS) -> dict[str, Any]:
        found = Store(self.out).load(self.run(label, dataset))
        assert found is not None
        return found

    def predictions(self, label: str, dataset: str = FILMS) -> dict[str, np.ndarray]:
        return Store(self.out).predictions(self.run(label, dataset))


def make(out: Path, target: str, labels: tuple[str, ...], dataset: str = "", **more: Any) -> Made:
    """Execute rows of a table as a new process would, without those that run along; `dataset`: on
    it alone."""
    ratings.load_feedback.cache_clear()
    systems = {"explainrec", "tallrec"} if "table2" not in target else {"explainrec"}
    chosen = tuple(f"{s}.{key}={value}" for s in systems for key, value in (SMALL | more).items())
    chosen += ("explainrec.adapt_rows=12",)
    request = Request((target,), rows=labels, out=out, overrides=chosen, seeds=1, command="test")
    planned = plan(request)
    spots = [
        spot
        if spot.row
        and spot.row.label in labels
        and dataset in ("", *(r.dataset for r in spot.runs))
        else dataclasses.replace(spot, requested=False)
        for spot in planned.spots
    ]
    planned = dataclasses.replace(planned, spots=tuple(spots))
    outcome = reproduce.execute(planned, quiet=True)
    (rendered,), status = reproduce.assemble(planned, outcome)
    table = out / "demo/explainrec" / rendered.table.file
    text = table.with_suffix(".md").read_text(encoding="utf-8")
    lines = list(csv.reader(io.StringIO(table.with_suffix(".csv").read_text(encoding="utf-8"))))
    return Made(out, planned, outcome, status, text, {line[0]: line[1:] for line in lines[1:]})


def job_of(made: Made, run: Run, seed: int = 0, **more: Any) -> Job:
    settings = dataclasses.replace(run.settings, **more)
    run = dataclasses.replace(run, settings=settings, seed=seed)
    return Job(run, made.planned.request.data_dir, made.out, 20.0, Progress(quiet=True))


def stages(out: Path, **wanted: Any) -> dict[str, dict[str, Any]]:
    """Headers of the stages that stand, by file name, those with such an identity."""
    found = {}
    for path in sorted(out.glob("stages/*")):
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["reprokit"])
        if all(header["what"].get(key) == value for key, value in wanted.items()):
            found[path.name] = header
    return found


def parameters(out: Path, name: str) -> dict[str, np.ndarray]:
    """Tensors of a stage by their names in the model."""
    tensors = load_file(out / "stages" / name)
    return {key.partition("/")[2].removeprefix("model."): value for key, value in tensors.items()}
