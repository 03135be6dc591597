"""Toys for tests of the frame: systems that run in no time, their table, a figure, small data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reprokit import ccf_llm, reproduce
from reprokit.data import Source
from reprokit.plan import Request, plan
from reprokit.runs import Estimate, Job, RequestError, Result, System, Unavailable, setting
from reprokit.tables import Column, Row, Table


def request(out: Path, *targets: str, **chosen: Any) -> Request:
    return Request(targets=targets or ("ccf_llm/table3",), out=out, command="test", **chosen)


def make(wanted: Request) -> tuple[reproduce.Outcome, int]:
    planned = plan(wanted)
    outcome = reproduce.execute(planned, quiet=True)
    return outcome, reproduce.assemble(planned, outcome)[1]


QUICK: dict[str, Any] = {"rows": ("MF",), "dataset": "ml-1m", "seeds": 2}


@dataclass(frozen=True)
class ToySettings:
    llm: str = setting("org/large", "the paper's")
    depth: int = setting(1, "a test")


@dataclass(frozen=True)
class OtherSettings:
    """No language model in it."""


class Toy:
    """A table of three rows: two with a language model, one without; and a hub with one model."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.asked: list[tuple[str, bool]] = []
        self.unavailable = ""
        estimate = Estimate(10.0, 2e9, 3e6)
        self.systems = {
            "toy": System(
                ToySettings,
                self.execute,
                lambda settings, sizes: estimate,
                backbone="llm",
                presets={"demo": {"llm": "tiny"}},
                reasons={"demo": "random weights"},
            ),
            "other": System(OtherSettings, self.execute, lambda settings, sizes: estimate),
        }
        auc = Column("AUC", "test/auc", "ml-1m", definition="auc")
        rows = (Row("A", "toy"), Row("B", "toy", {"depth": 2}), Row("C", "other"))
        self.table = Table("ccf_llm/figure9", "A toy", (auc,), rows)

    def execute(self, job: Job) -> Result:
        self.jobs.append(job)
        if self.unavailable:
            raise Unavailable(self.unavailable)
        run = job.run
        score = 0.6 + 0.05 * getattr(run.settings, "depth", 0) + 0.01 * run.seed
        used = getattr(run.settings, "llm", "")
        return Result(
            {"test/auc": score, "valid/auc": score},
            deviations=(f"{used} in place of org/large",) if used not in ("", "org/large") else (),
            notes=("prompts were cut",) if used else (),
        )

    def identify(self, name: str, cache: Path | None = None, offline: bool = False) -> str:
        self.asked.append((name, offline))
        if name == "tiny" or (name == "org/large" and not offline):
            return f"print of {name}"
        raise RequestError(f"language model '{name}': the hub was not reached")


def toy_request(out: Path, **chosen: Any) -> Request:
    return request(out, "ccf_llm/figure9", **{"preset": "small", "seeds": 1, **chosen})


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Toy:
    toy = Toy()
    monkeypatch.setattr(ccf_llm, "SYSTEMS", {**ccf_llm.SYSTEMS, **toy.systems})
    monkeypatch.setattr(ccf_llm, "TABLES", (toy.table,))
    size = {"tiny": 0}
    monkeypatch.setattr("reprokit.backbones.identify", toy.identify)
    monkeypatch.setattr("reprokit.sizes.download_bytes", lambda n: size.get(n, 13_500_000_000))
    monkeypatch.setattr(Source, "fingerprint", lambda *arguments: "f00d")
    monkeypatch.setattr("reprokit.plan.differences", lambda *arguments: ())
    return toy


def write_ml_1m(folder: Path, users: int = 5) -> None:
    """Events of every user in each of the three windows."""
    folder.mkdir(exist_ok=True)
    times = (994_556_598, 1_020_000_000, 1_034_000_000)
    lines = [
        f"{user}::{1 + (user + at) % 3}::{5 if (user + at) % 2 else 2}::{time + user}"
        for user in range(1, users + 1)
        for at, time in enumerate(times)
    ]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    (folder / "movies.dat").write_text("1::A::X\n2::B::Y\n3::C::Z\n")


# --- a figure ------------------------------------------------------------------------------------
AUC = Column("ML-1M AUC", "test/auc", "ml-1m", definition="auc")
BOOKS = Column("Book AUC", "test/auc", "amazon-book", definition="auc")
ROWS = (Row("alpha = 1", "toy"), Row("Default", "toy", {"depth": 2}))
TABLE = Table("ccf_llm/figure9", "How to fuse $x$", (AUC, BOOKS), ROWS)
