"""Figures as targets: what they leave beside what a table leaves."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import AUC, ROWS, TABLE

from reprokit import ccf_llm, cli, pages, reproduce
from reprokit.plan import Request, plan
from reprokit.reproduce import DONE, INCOMPLETE
from reprokit.runs import Estimate, Job, Result, System, Unavailable, setting
from reprokit.tables import Column, Row, Table


@dataclass(frozen=True)
class ToySettings:
    depth: int = setting(1, "a test")


def toy(job: Job) -> Result:
    if job.run.settings.depth == 9:
        raise Unavailable("too deep")
    score = 0.6 + 0.05 * job.run.settings.depth + 0.01 * job.run.seed
    kinds = ["aligned CF", "LLM"]
    points = {
        "picture/1": np.full((20, 30, 3), 90, np.uint8),
        "points/items": np.array([7, 7]),
        "points/titles": np.array(["Alien, the film", "Alien, the film"]),
        "points/modality": np.array(kinds),
        "points/x": np.array([0.125, job.run.seed], np.float32),
        "points/y": np.array([1.0, 2.0], np.float32),
    }
    words = {"1/long": "said and done\n" * 9, "1/short": "a|b", "2/long": "x", "2/short": "y"}
    return Result({"test/auc": score, "valid/auc": score, **words}, points)


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put one table, and a system behind it, in place of CCF-LLM's."""
    estimate = Estimate(1.0, 1e9, 1e6)
    system = System(ToySettings, toy, lambda settings, sizes: estimate)
    monkeypatch.setattr(ccf_llm, "SYSTEMS", {**ccf_llm.SYSTEMS, "toy": system})

    def declared(table: Table) -> Table:
        monkeypatch.setattr(ccf_llm, "TABLES", (table,))
        return table

    declared(TABLE)
    return declared


def make(out: Path, **chosen: Any) -> tuple[reproduce.Outcome, int]:
    wanted = Request(("ccf_llm/figure9",), out=out, **{"command": "test", "seeds": 2, **chosen})
    planned = plan(wanted)
    outcome = reproduce.execute(planned, quiet=True)
    return outcome, reproduce.assemble(planned, outcome)[1]


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_figure_leaves_what_a_table_leaves_and_a_picture(declare: Any, tmp_path: Path):
    outcome, status = make(tmp_path)
    assert (outcome.executed, status) == (8, DONE)
    folder = tmp_path / "demo/ccf_llm"
    assert {path.name.removeprefix("figure9") for path in folder.iterdir()} == {
        ".csv", ".md", ".compare.csv", ".json", ".png"
    }  # fmt: skip
    assert rows_of(folder / "figure9.csv") == [
        ["Variant", "ML-1M AUC", "Book AUC"],
        ["alpha = 1", "0.6550", "0.6550"],
        ["Default", "0.7050", "0.7050"],
    ]
    assert "![How to fuse $x$](figure9.png)" in (folder / "figure9.md").read_text()
    assert json.loads((folder / "figure9.json").read_text())["cells"] == {"filled": 4, "of": 4}
    before = (folder / "figure9.png").read_bytes()
    outcome, _ = make(tmp_path)
    assert outcome.executed == 0 and (folder / "figure9.png").read_bytes() == before


def test_a_figures_rows_are_picked_like_a_tables(declare: Any, tmp_path: Path):
    outcome, status = make(tmp_path, rows=("default",), dataset="ml-1m")
    assert (outcome.executed, status) == (2, DONE)
    found = rows_of(tmp_path / "demo/ccf_llm/figure9.csv")[1:]
    assert found == [["alpha = 1", "", ""], ["Default", "0.7050", ""]]
    assert reproduce.progress_of(tmp_path, TABLE) == "demo 1/4 cells"


def test_a_picture_of_nothing_is_not_drawn_and_an_old_one_goes(declare: Any, tmp_path: Path):
    make(tmp_path)
    picture = tmp_path / "demo/ccf_llm/figure9.png"
    assert picture.is_file()
    _, status = make(tmp_path, overrides=("toy.depth=9",))
    assert status == INCOMPLETE and not picture.exists()
    text = picture.with_suffix(".md").read_text()
    assert "[1] too deep" in text and "![" not in text


def test_a_figure_that_declares_no_row_is_not_built(declare: Any, tmp_path: Path):
    declare(Table("ccf_llm/figure9", "An example"))
    outcome, status = make(tmp_path)
    assert (outcome.executed, status) == (0, INCOMPLETE)
    assert not list((tmp_path / "demo/ccf_llm").iterdir())


def test_relaimpr_in_a_figure_is_blank_only_without_a_base_row(declare: Any, tmp_path: Path):
    gain = Column("Gain", "", "ml-1m", base_column="ML-1M AUC", decimals=1)
    rows = ROWS[0], dataclasses.replace(ROWS[1], base="alpha = 1")
    declare(dataclasses.replace(TABLE, columns=(AUC, gain), rows=rows))
    _, status = make(tmp_path, rows=("Default",))  # its base row comes along
    assert status == DONE
    found = rows_of(tmp_path / "demo/ccf_llm/figure9.csv")[1:]
    assert found == [["alpha = 1", "0.6550", ""], ["Default", "0.7050", "32.3"]]


def test_a_scatter_figure_writes_its_points_and_its_numbers_apart(declare: Any, tmp_path: Path):
    declare(dataclasses.replace(TABLE, draw="scatter", rows=ROWS[:1]))
    _, status = make(tmp_path)
    assert status == DONE
    folder = tmp_path / "demo/ccf_llm"
    assert rows_of(folder / "figure9.csv") == [
        ["dataset", "item", "title", "modality", "x", "y"],
        ["demo-ml-1m", "7", "Alien, the film", "aligned CF", "0.125", "1"],
        ["demo-ml-1m", "7", "Alien, the film", "LLM", "0", "2"],  # of the first seed
        ["demo-amazon-book", "7", "Alien, the film", "aligned CF", "0.125", "1"],
        ["demo-amazon-book", "7", "Alien, the film", "LLM", "0", "2"],
    ]
    assert rows_of(folder / "figure9.summary.csv")[1] == ["alpha = 1", "0.6550", "0.6550"]
    assert (folder / "figure9.png").is_file()
    _, status = make(tmp_path, overrides=("toy.depth=9",))
    assert status == INCOMPLETE and not (folder / "figure9.png").exists()
    assert len(rows_of(folder / "figure9.csv")) == 1  # the header


def test_a_figure_of_lines_leaves_its_numbers_and_a_picture(declare: Any, tmp_path: Path):
    rows = tuple(Row(f"depth = {depth}", "toy", {"depth": depth}) for depth in (1, 2, 9))
    ours = (Row("Deeper", "toy", {"depth": 3}),)
    declare(dataclasses.replace(TABLE, columns=(AUC,), rows=rows, sanity=ours, draw="lines"))
    _, status = make(tmp_path)
    assert status == INCOMPLETE  # too deep
    folder = tmp_path / "demo/ccf_llm"
    found = rows_of(folder / "figure9.csv")[1:]
    assert found == [["depth = 1", "0.6550"], ["depth = 2", "0.7050"], ["depth = 9", ""]]
    assert "![How to fuse $x$](figure9.png)" in (folder / "figure9.md").read_text()
    before = (folder / "figure9.png").read_bytes()
    make(tmp_path)
    assert (folder / "figure9.png").read_bytes() == before
    make(tmp_path, overrides=("toy.depth=9",))
    assert not (folder / "figure9.png").exists()


def test_list_and_show_and_the_terminal_treat_a_figure_as_a_table(
    declare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = ("--out", str(tmp_path))
    assert cli.main(["reproduce", "ccf_llm/figure9", "--dataset", "ml-1m", *out]) == 0
    shown = capsys.readouterr().out
    assert "| alpha = 1 | 0.6550 ± 0.0071 | [1]" in shown
    assert "ours ± spread; the paper prints a picture and no numbers" in shown
    assert f"picture: {tmp_path / 'demo/ccf_llm/figure9.png'}" in shown
    cli.main(["list", *out])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "figure9" in line)
    cells = [part.strip() for part in line.split("|")]
    assert cells[3:6] == ["ml-1m, amazon-book", "2 of 2", "demo 2/4 cells"]
    cli.main(["show", "ccf_llm/figure9"])
    assert "| alpha = 1 |" in capsys.readouterr().out


def test_a_figure_of_examples_leaves_whole_texts_and_a_picture(
    declare: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    rows = tuple(Row(f"User {part}", "toy", part=part) for part in "12")
    columns = tuple(Column(name, f"{{part}}/{name.lower()}", "ml-1m") for name in ("Long", "Short"))
    declare(dataclasses.replace(TABLE, columns=columns, rows=rows, draw="examples", seeds=1))
    seen: list[Any] = []
    draw = pages.examples
    monkeypatch.setattr(pages, "examples", lambda *given: seen.append(given) or draw(*given))
    outcome, status = make(tmp_path, seeds=1)
    assert (outcome.executed, status) == (1, DONE)  # one run has all examples
    (pictures, _), folder = seen[0], tmp_path / "demo/ccf_llm"
    assert {line: one.shape for line, one in pictures.items()} == {0: (20, 30, 3)}
    said = "said and done\n" * 9
    assert rows_of(folder / "figure9.csv") == [
        ["Variant", "Long", "Short"], ["User 1", said, "a|b"], ["User 2", "x", "y"]
    ]  # fmt: skip
    text = (folder / "figure9.md").read_text()
    assert "![How to fuse $x$](figure9.png)" in text and "**Short**\n\n> a\\|b" in text
    assert text.count("> said and done") == 9
    compared = rows_of(folder / "figure9.compare.csv")
    assert compared[1][4] == said
    content = (folder / "figure9.png").read_bytes()
    make(tmp_path, seeds=1)
    assert (folder / "figure9.png").read_bytes() == content
    command = ["reproduce", "ccf_llm/figure9", "--seeds", "1", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "\nUser 2\n\n  Long\n    x\n\n  Short\n    y\n" in shown
    assert f"picture: {folder / 'figure9.png'}" in shown
