"""What is said under a table: each setting and each note once, and of whom it holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reprokit import remarks

FILMS, BOOKS = "films", "books"


def run(system: str, dataset: str = FILMS, **settings: str) -> Any:
    return SimpleNamespace(id=f"{system} {dataset}", system=system, dataset=dataset, told=settings)


@pytest.fixture(autouse=True)
def described(monkeypatch: pytest.MonkeyPatch):
    def describe(planned: Any, run: Any) -> list[tuple[str, str, str, str]]:
        return [(run.system, name, value, f"why {value}") for name, value in run.told.items()]

    monkeypatch.setattr(remarks, "describe", describe)


def lines(*runs: Any) -> list[str]:
    planned: Any = None
    return [" | ".join(row[:3]) for row in remarks.settings_of(planned, runs)]


def test_what_all_systems_have_alike_stands_once():
    assert lines(run("mf", rows="600", lr="1"), run("gcn", rows="600", lr="2")) == [
        *("every system | rows | 600", "mf | lr | 1", "gcn | lr | 2")
    ]
    # Another value on another data set, or a system that lacks it: not alike.
    some = run("mf", rows="600"), run("gcn", rows="600"), run("gcn", BOOKS, rows="700")
    assert lines(*some) == [
        *("mf | rows | 600", "gcn on films | rows | 600", "gcn on books | rows | 700")
    ]
    assert lines(run("mf", rows="600"), run("gcn", lr="2")) == ["mf | rows | 600", "gcn | lr | 2"]


def test_of_one_system_nothing_is_said_of_every_system():
    assert lines(run("mf", rows="600"), run("mf", BOOKS, rows="600")) == ["mf | rows | 600"]


def test_values_of_several_rows_on_one_data_set_stand_together():
    rows = run("ours", without=""), run("ours", without="images"), run("ours", BOOKS, without="")
    assert lines(*rows) == [*("ours on films | without |  / images", "ours on books | without | ")]


def test_a_note_says_whose_it_is_unless_it_is_everybodys():
    runs = [run("mf"), run("gcn"), run("gcn", BOOKS)]
    stored = {
        "mf films": ["cut", "no pictures"],
        "gcn films": ["no pictures", "slow"],
        "gcn books": ["slow"],
    }
    planned: Any = SimpleNamespace(notes={FILMS: ("invented",)})
    alone = {"provenance": {"processes": 1}}
    found = remarks.table_notes(
        planned, runs, {name: {"notes": notes, **alone} for name, notes in stored.items()}
    )
    assert list(dict.fromkeys(found)) == ["invented", "cut (mf)", "no pictures", "slow (gcn)"]
