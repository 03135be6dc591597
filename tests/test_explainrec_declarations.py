"""ExplainRec's tables before a run: their rows and columns, settings, estimates, protocols."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from explainrec_runs import few_people

from reprokit import explainrec
from reprokit.plan import Request, plan
from reprokit.runs import RequestError
from reprokit.tables import Table

__all__ = ["few_people"]  # the fixture


# --- declarations -------------------------------------------------------------------------------
@pytest.mark.parametrize("table", explainrec.TABLES, ids=lambda table: table.name)
def test_every_row_has_a_system_and_settings_that_it_has(table: Table):
    for row in (*table.rows, *table.sanity):
        names = [row.system] if row.system else [column.system for column in table.columns]
        for name in names:
            known = {item.name for item in dataclasses.fields(explainrec.SYSTEMS[name].settings)}
            assert set(row.settings) <= known
    assert len({row.label for row in table.sanity}) == len(table.sanity)


@pytest.mark.parametrize("table", explainrec.TABLES, ids=lambda table: table.name)
def test_a_protocol_speaks_of_what_its_table_has(table: Table):
    told = dict(table.protocol)
    scoring, columns = told.get("Scoring", ""), " ".join(column.name for column in table.columns)
    assert ("Chat-REC" in scoring) == any(row.system == "chatrec" for row in table.rows)
    assert ("AUC over" in scoring) == ("AUC" in columns)
    assert ("among 99" in scoring) == ("NDCG" in columns and table.name != "full-ranking")
    assert ("BLEU" in told) == ("BLEU" in columns or table.name == "explanations")
    random = all(column.dataset == explainrec.RANDOM for column in table.columns)
    assert ("at random, 80/10/10" in told.get("Data", "")) == random


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_published_row_and_column_is_declared(number: int):
    (table,) = [one for one in explainrec.TABLES if one.name == f"table{number}"]
    published = table.published
    assert sorted(row.label for row in table.rows) == sorted(published.labels)
    assert tuple(c.name for c in table.columns) == published.header[published.n_labels :]
    assert all(column.dataset in explainrec.DATASETS for column in table.columns)


def test_every_system_stands_in_a_table_and_gives_reasons_for_its_settings():
    used = {row.system for table in explainrec.TABLES for row in (*table.rows, *table.sanity)}
    assert used == set(explainrec.SYSTEMS)
    for name, system in explainrec.SYSTEMS.items():
        if name in ("efficiency", "human"):  # of these others' settings are part
            continue
        assert all(item.metadata["why"] for item in dataclasses.fields(system.settings))
        for preset in system.presets:
            system.configure("ml-25m", preset, {})  # names settings that it has
            assert system.reasons[preset]


@pytest.mark.parametrize("name", ["rated_rows", "rank_rows", "valid_rows"])
def test_all_rows_are_estimated_to_take_longer_than_some(name: str):
    sizes = {"users": 9_000, "items": 9_000, "train": 900_000}
    for system in ("tallrec", "explainrec"):
        known = explainrec.SYSTEMS[system]
        few, every = (
            known.estimate(known.configure("ml-1m", "demo", {name: count}), sizes).seconds
            for count in (300, 0)
        )
        assert every > few


def test_the_estimate_of_a_large_set_has_room_for_its_ratings():
    for system in ("popularity", "tallrec", "explainrec"):
        known = explainrec.SYSTEMS[system]
        settings = known.configure("ml-25m", "demo", {})
        assert known.estimate(settings, explainrec.DATASETS["ml-25m"].sizes).memory > 2.5e9


def test_encoding_the_items_is_estimated_once_for_all_rows_that_read_them():
    sizes = explainrec.DATASETS["ml-latest-small"].sizes
    shared = {
        name: explainrec.SYSTEMS[name]
        .estimate(explainrec.SYSTEMS[name].configure("ml-latest-small", "small", {}), sizes)
        .shared
        for name in ("content-based", "tallrec", "explainrec")
    }
    (texts,) = shared["content-based"].items()
    assert texts in shared["explainrec"].items() and not shared["tallrec"]


def test_importing_the_tables_loads_nothing_heavy():
    heavy = ("torch", "polars", "scipy", "transformers", "peft", "matplotlib", "sklearn")
    code = f"import sys, reprokit.explainrec; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("without=sound", "without must be one of"),
        ("direction=up", "direction must be one of"),
        ("adapt=all", "adapt must be one of"),
        ("adapt_lr=0,fast", "adapt_lr: '0,fast' is not numbers with commas"),
        ("adapt_lr=-0.1", "adapt_lr: a step size is negative in '-0.1'"),
        ("stage1=dolly", "stage1 must be one of alpaca, catalogue, none"),
        ("cross_share=1", "cross_share"),
        ("max_epochs=0", "max_epochs"),
    ],
)
def test_a_setting_that_makes_no_run_ends_in_one_line(tmp_path: Path, override: str, message: str):
    request = Request(("explainrec/table2",), out=tmp_path, overrides=(f"explainrec.{override}",))
    with pytest.raises(RequestError) as error:
        plan(request)
    assert str(error.value).startswith("settings of explainrec on ml-25m: ")
    assert message in str(error.value) and "\n" not in str(error.value)
