"""Declarations against the published CSVs, and the renderings."""

from __future__ import annotations

import csv
import io

import pytest

from reprokit.plan import PAPERS, all_tables
from reprokit.tables import (
    Cell,
    Column,
    Line,
    Rendered,
    Row,
    Table,
    grid,
    improvement,
    published_folder,
    to_compare_csv,
    to_csv,
    to_markdown,
    to_text,
    verdict,
)

FAILURE = "1 of 5 runs failed: ValueError: x|y"
TABLE3 = next(table for table in all_tables() if table.id == "ccf_llm/table3")


def test_every_published_file_is_declared_and_every_declaration_is_published():
    declared = {f"{t.paper}_{t.name}.csv" for t in all_tables() if not t.is_figure}
    assert declared == {path.name for path in published_folder().glob("*.csv")}


@pytest.mark.parametrize("table", all_tables(), ids=lambda table: table.id)
def test_declarations_name_what_exists(table: Table):
    table.published  # raises for a column or row that the CSV lacks  # noqa: B018
    labels = table.published.labels
    assert len(set(labels)) == len(labels)  # a label names one row
    paper = PAPERS[table.paper]
    for row in (*table.rows, *table.sanity):
        named = {row.system} - {""} or {column.system for column in table.columns} - {""}
        assert row.best_of or (named and named <= set(paper.SYSTEMS))
        assert not row.base or row.base in labels
    for name in table.datasets:
        assert {name, f"demo-{name}"} <= set(paper.DATASETS)


def rendered(preset: str = "small", unlike: str = "") -> Rendered:
    """Table 3 with two rows made, the second one missing a cell."""
    published = TABLE3.published
    empty, blank = Cell(reason="not built yet"), Cell(blank=True)
    lines = []
    for at, row in enumerate(published.rows):
        cells = [empty if text else blank for text in row[1:]]
        if row[0] == "MF":
            cells[0] = Cell(values=(0.64, 0.66, 0.65), unlike=unlike)
        if row[0] == "LightGCN":
            cells[0], cells[2] = Cell(values=(0.7,), unlike=unlike), Cell(reason=FAILURE)
        lines.append(Line(row[:1], tuple(cells), row[1:]))
        assert at < 13
    lines.append(Line(("Random",), (Cell(values=(0.5,)), blank, blank, blank), (), ours=True))
    return Rendered(TABLE3, tuple(lines), preset, 3, "python -m reprokit x")


def test_our_csv_has_the_published_header_rows_order_and_digits():
    rows = list(csv.reader(io.StringIO(to_csv(rendered()))))
    assert rows[0] == list(TABLE3.published.header)
    assert [row[0] for row in rows[1:]] == [row[0] for row in TABLE3.published.rows]
    assert rows[1] == ["MF", "0.6500", "", "", ""]  # four decimals, as printed
    assert all(cell == "" for row in rows[2:4] for cell in row[1:])  # never the published number


def test_the_comparison_has_difference_and_verdict_for_each_cell():
    rows = list(csv.DictReader(io.StringIO(to_compare_csv(rendered()))))
    assert len(rows) == 14 * 4
    first = rows[0]
    assert (first["published"], first["mean"], first["n"]) == ("0.6482", "0.65", "3")
    assert (first["difference"], first["verdict"]) == ("+0.0018", "reproduced")
    light = next(row for row in rows if row["row"] == "LightGCN")
    assert light["verdict"] == "differs"
    assert rows[-4]["verdict"] == "ours"
    assert {row["reason"] for row in rows} == {"", "not built yet", FAILURE}


VERDICTS = """
| MF       | MovieLens-1M AUC | 0.6500 | 0.6482    | +0.0018    | reproduced |
| LightGCN | MovieLens-1M AUC | 0.7000 | 0.5959    | +0.1041    | differs    |
"""


def test_the_markdown_shows_ours_spread_published_reasons_and_the_protocol():
    text = to_markdown(rendered())
    assert "| MF                 | 0.6500 ± 0.0100 (0.6482) |" in text
    assert f"[2] {FAILURE}" in text
    assert "| Random (ours)      | 0.5000" in text
    assert VERDICTS in text
    for topic in ("Split", "Labels", "Negatives", "Scored rows", "Model choice", "Metric auc"):
        assert f"- **{topic}**: " in text
    assert "What the paper leaves open" in text
    assert "Command: `python -m reprokit x`" in text
    assert "not comparable" not in text


def test_a_demo_table_says_that_it_is_not_comparable_and_gives_no_verdict():
    text = to_markdown(rendered("demo", "synthetic data"))
    assert "**These numbers are not comparable with the paper's**" in text
    assert "reproduced" not in text
    assert "not comparable" in to_compare_csv(rendered("demo", "synthetic data"))


@pytest.mark.parametrize(
    ("values", "printed", "tolerance", "expected"),
    [
        ((10.0,), "10", 0, "equal"),
        ((11.0,), "10", 0, "differs"),
        ((0.655,), "0.6482", 0.01, "reproduced"),
        ((0.659,), "0.6482", 0.01, "differs"),
        ((0.64, 0.70), "0.6482", 0.01, "reproduced"),  # print within two standard deviations
        ((0.5,), "", 0.01, "not printed"),
        ((), "0.6", 0.01, "empty"),
    ],
)
def test_verdicts(values: tuple[float, ...], printed: str, tolerance: float, expected: str):
    assert verdict(Cell(values=values), printed, tolerance) == expected


def test_improvement_is_relative_to_the_base_row_and_needs_it():
    ours, base = Cell(values=(0.7315,)), Cell(values=(0.6482,))
    assert improvement(ours, base).mean == pytest.approx(56.21, abs=0.005)
    assert not improvement(ours, Cell(reason="failed")).values
    assert improvement(ours, Cell(reason="failed")).reason == "the base row has no value"
    assert verdict(improvement(ours, base), "56.21", 0.01) == "derived"


def test_grids_line_up_and_escape_bars():
    text = grid([["a", "b"], ["x|y", "z"]])
    assert text == "| a    | b   |\n|------|-----|\n| x\\|y | z   |"


FIGURE = Table(
    "ccf_llm/figure3a",
    "How to fuse",
    columns=(
        Column("ML-1M AUC", "test/auc", "ml-1m", definition="auc"),
        Column("Items", "items", "ml-1m", decimals=0),
    ),
    rows=(Row("alpha = 1", "ccf-llm"), Row("Default", "ccf-llm")),
)


def drawn(preset: str = "small", unlike: str = "") -> Rendered:
    """A figure's table with its second row not finished."""
    made = Cell(values=(0.64, 0.66), unlike=unlike), Cell(values=(839.0,), unlike=unlike)
    empty = Cell(reason="1 of 2 runs finished")
    lines = (
        Line(("alpha = 1",), made, ("", "")),
        Line(("Default",), (empty, empty), ("", "")),
        Line(("Random",), (Cell(values=(0.5,)), Cell(values=(839.0,))), (), ours=True),
    )
    return Rendered(FIGURE, lines, preset, 2, "python -m reprokit x")


def test_a_figures_table_is_what_it_declares():
    published = FIGURE.published
    assert published.header == ("Variant", "ML-1M AUC", "Items")
    assert published.rows == (("alpha = 1", "", ""), ("Default", "", ""))
    assert published.labels == ["alpha = 1", "Default"]
    named = Table("ccf_llm/figure9", "x", FIGURE.columns, FIGURE.rows, label_header="Fusion")
    assert named.published.header[0] == "Fusion"
    assert Table("mmrec/figure9", "x").published.rows == ()


def test_a_figures_csv_has_the_declared_digits():
    assert to_csv(drawn()).splitlines() == [
        "Variant,ML-1M AUC,Items",
        "alpha = 1,0.6500,839",
        "Default,,",
    ]


def test_a_figures_comparison_has_nothing_printed_to_judge():
    rows = list(csv.DictReader(io.StringIO(to_compare_csv(drawn()))))
    assert [row["verdict"] for row in rows] == ["not printed"] * 2 + ["empty"] * 2 + ["ours"] * 2
    assert rows[0]["published"] == rows[0]["difference"] == ""


def test_a_figures_markdown_says_that_the_paper_prints_a_picture_and_shows_ours():
    text = to_markdown(drawn(), picture="figure3a.png")
    assert "the paper prints a picture and no numbers, so there is nothing to compare with" in text
    assert "![How to fuse](figure3a.png)" in text
    assert "| alpha = 1     | 0.6500 ± 0.0141 | 839   |" in text
    assert "[1] 1 of 2 runs finished" in text
    assert "in brackets" not in text and "Verdict" not in text and "both our number" not in text
    assert "![" not in to_markdown(drawn())


def test_what_keeps_rows_from_being_compared_stands_under_the_table():
    text = to_markdown(rendered("small", "tiny in place of Vicuna-7B"))
    assert "not comparable with the paper: MF, LightGCN: tiny in place of Vicuna-7B" in text
    demo = to_markdown(rendered("demo", "synthetic data"))
    assert "not comparable with the paper: MF" not in demo  # the whole table is not


def test_show_lists_a_figures_own_rows():
    text = to_text(FIGURE)
    assert text.startswith("A figure: the paper prints a picture and no numbers. Our rows:")
    assert "| alpha = 1 |" in text and "ML-1M AUC" in text
    assert to_text(Table("mmrec/figure2", "x")).endswith("Not built yet.")
