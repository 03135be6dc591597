"""Runs of CCF-LLM's rows, and the demo films with few rows to score."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from reprokit import bench, click, data
from reprokit.ccf_llm import SYSTEMS
from reprokit.data import load_click_data
from reprokit.progress import Progress
from reprokit.runs import Job, Result, Run


def job_of(system: str, dataset: str, data_dir: Path, tmp_path: Path, **chosen: Any) -> Job:
    preset = "demo" if dataset.startswith("demo-") else "small"
    settings = SYSTEMS[system].configure(dataset.removeprefix("demo-"), preset, chosen)
    run = Run("ccf_llm", system, dataset, settings, 0, "", backbone=chosen.get("llm", ""))
    return Job(run, data_dir, tmp_path, 20, Progress(quiet=True))


def execute(system: str, dataset: str, data_dir: Path, tmp_path: Path, **chosen: Any) -> Result:
    return SYSTEMS[system].execute(job_of(system, dataset, data_dir, tmp_path, **chosen))


SHORT = {"max_epochs": 1, "epoch_rows": 64, "batch_size": 16, "valid_rows": 64, "history": 2}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo films with fewer validation and test rows, to be scored in a moment."""
    small = shortened(load_click_data("demo-ml-1m", Path(".")))
    monkeypatch.setattr(click, "load_click_data", lambda *_: small)
    real = bench.cf_settings
    brief = lambda run, kind: dataclasses.replace(real(run, kind), max_epochs=2)  # noqa: E731
    monkeypatch.setattr(bench, "cf_settings", brief)
    return small


def shortened(whole: data.CTRData) -> data.CTRData:
    """The first 120 rows of validation and of test."""

    def part(rows: data.Rows) -> data.Rows:
        return data.Rows(**{name: value[:120] for name, value in vars(rows).items()})

    return dataclasses.replace(whole, valid=part(whole.valid), test=part(whole.test))
