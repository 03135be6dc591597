"""Declarations against the published CSVs, and the renderings."""

from __future__ import annotations

import csv
import dataclasses
import io
import math

import pytest

from reprokit.plan import PAPERS, all_tables
from reprokit.rendering import (
    Cell,
    Line,
    Rendered,
    body,
    grid,
    improvement,
    literal,
    to_compare_csv,
    to_csv,
    to_markdown,
    to_text,
    verdict,
)
from reprokit.tables import Column, Row, Table, published_folder, within

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
    for name in (*table.datasets, *(() if table.home else table.others)):
        assert {name, f"demo-{name}"} <= set(paper.DATASETS)
    for moved in map(table.on, table.others):
        assert set(moved.datasets) <= set(paper.DATASETS)
    assert not set(table.datasets) & set(table.others)
    assert not table.home or any(within(table.home, name) for name in table.datasets)
    names = {column.name for column in table.columns}
    assert all(names.issuperset(row.columns) for row in (*table.rows, *table.sanity))
    assert table.is_figure or not any(row.columns for row in table.rows)  # print says what is blank
    assert table.draw in ("", "bars", "lines", "scatter", "examples")


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


def test_grids_line_up_and_escape_bars_and_line_breaks():
    text = grid([["a", "b"], ["x|y", "z"]])
    assert text == "| a    | b   |\n|------|-----|\n| x\\|y | z   |"
    text = grid([["a"], ["one\ntwo\r\nthree\n"], ["four"]])
    assert text.splitlines()[2:] == ["| one<br>two<br>three |", "| four                |"]


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


# --- the best of the repeats ----------------------------------------------------------------------
def best(*values: float, chosen: float | None = None, table: Table = TABLE3) -> Rendered:
    """Table 3 with one cell: the values of its seeds, and the one that validation chose."""
    blank = Cell(blank=True)
    cells = Cell(values=values, best=chosen), blank, blank, blank
    lines = [Line(row[:1], cells if row[0] == "MF" else (blank,) * 4, row[1:])
             for row in table.published.rows]  # fmt: skip
    chooses = dataclasses.replace(table, best_by="valid/x")
    return Rendered(chooses, tuple(lines), "paper", len(values), "python -m reprokit x")


def test_the_best_of_the_repeats_fills_a_cell_with_mean_and_spread_beside_it():
    made = best(0.64, 0.70, 0.67, chosen=0.64)
    assert to_csv(made).splitlines()[1] == "MF,0.6400,,,"
    text = to_markdown(made)
    assert "| MF                 | 0.6400; 0.6700 ± 0.0300 (0.6482) |" in text
    assert "ours (the best of 3 seeds by `valid/x`; mean ± standard deviation over 3 seeds)" in text
    assert "- **Best of the repeats**: " in text and "with the highest `valid/x`" in text
    assert "| MF  | MovieLens-1M AUC | 0.6400 | 0.6482    | -0.0082    | reproduced |" in text
    assert "Reproduced: our best run's auc within" in text and "standard deviations of" not in text
    first = next(csv.DictReader(io.StringIO(to_compare_csv(made))))
    assert (first["best"], first["mean"], first["std"], first["n"]) == ("0.64", "0.67", "0.03", "3")
    assert (first["difference"], first["verdict"]) == ("-0.0082", "reproduced")


def test_the_best_run_is_judged_and_not_the_mean():
    values = (*(0.648,) * 9, 0.68)  # two standard deviations: 0.02
    assert verdict(Cell(values=values), "0.6482", 0.001) == "reproduced"
    assert verdict(Cell(values=values, best=0.68), "0.6482", 0.001) == "differs"
    assert verdict(Cell(values=values, best=0.68), "0.665", 0.001) == "differs"  # their spread
    assert verdict(Cell(values=values, best=0.68), "0.6795", 0.001) == "reproduced"


def test_with_one_seed_there_is_no_best_one():
    made = best(0.64)
    text = to_markdown(made)
    assert "| MF                 | 0.6400 (0.6482)  |" in text
    assert "ours (one seed)" in text and "the best of" not in text and "our best" not in text
    assert "Best of the repeats" not in text
    assert next(csv.DictReader(io.StringIO(to_compare_csv(made))))["best"] == ""


def test_a_mean_has_no_best_in_the_comparison():
    rows = list(csv.DictReader(io.StringIO(to_compare_csv(rendered()))))
    assert list(rows[0])[:5] == ["row", "column", "published", "best", "mean"]
    assert {row["best"] for row in rows} == {""}


def test_relaimpr_is_made_from_what_fills_the_cells():
    ours, base = Cell(values=(0.7, 0.8), best=0.8), Cell(values=(0.6, 0.7), best=0.6)
    assert improvement(ours, base).mean == pytest.approx(200)
    assert improvement(ours, base).best is None


# --- another data set -----------------------------------------------------------------------------
MOVABLE = Table(
    "ccf_llm/figure3a",
    "How to fuse",
    columns=(Column("AUC", "test/auc", "ml-1m"), Column("Items", "items")),
    rows=(Row("A", "toy"), Row("B", "toy", dataset="ml-1m")),
    sanity=(Row("C", "toy", dataset="ml-1m"), Row("D", "toy")),
    others=("amazon-book", "other"),
)


def test_a_table_on_another_data_set_names_it_everywhere_and_has_files_of_its_name():
    moved = MOVABLE.on("amazon-book")
    assert [part.dataset for part in moved.columns] == ["amazon-book", ""]
    assert [part.dataset for part in (*moved.rows, *moved.sanity)] == [
        "", "amazon-book", "amazon-book", ""
    ]  # fmt: skip
    assert (moved.datasets, moved.instead) == (("amazon-book",), "amazon-book")
    assert (moved.file, MOVABLE.file) == ("figure3a-amazon-book", "figure3a")
    assert moved.id == MOVABLE.id and MOVABLE.datasets == ("ml-1m",)


HOME = Table(
    "ccf_llm/figure3b",
    "Ratings",
    columns=(
        Column("Films AUC", "test/auc", "ml-1m"),
        Column("Films NDCG", "test/ndcg", "ml-1m"),
        Column("Cold AUC", "test/auc", "ml-1m-cold"),
        Column("Books AUC", "test/auc", "amazon-book"),
    ),
    rows=(Row("A", "toy"), Row("B", "toy", dataset="ml-1m-cross"), Row("C", "toy", dataset="ml-1")),
    others=("small",),
    home="ml-1m",
)


def test_a_table_with_a_home_moves_its_home_and_the_parts_of_it_alone():
    moved = HOME.on("small")
    assert [column.dataset for column in moved.columns] == [
        "small", "small", "small-cold", "amazon-book"
    ]  # fmt: skip
    assert [row.dataset for row in moved.rows] == ["", "small-cross", "ml-1"]
    assert (moved.file, moved.instead) == ("figure3b-small", "small")
    left = [name for name in moved.datasets if moved.is_left_out(name)]
    assert left == ["amazon-book", "ml-1"]
    assert not any(HOME.is_left_out(name) for name in HOME.datasets)
    assert not MOVABLE.on("other").is_left_out("ml-1m")  # without a home nothing is


def test_a_table_with_a_home_says_what_was_made_on_what_and_what_was_left_out():
    assert list(HOME.on("small").moves("paper")) == [
        "Films AUC, Films NDCG: made on small in place of ml-1m",
        "Cold AUC: made on small-cold in place of ml-1m-cold",
        "Books AUC: left out, since small does not stand in for amazon-book",
        "B: made on small-cross in place of ml-1m-cross",
        "C: left out, since small does not stand in for ml-1",
    ]
    assert "Cold AUC: made on demo-small-cold in place of" in "\n".join(
        HOME.on("small").moves("demo")
    )
    assert not [*HOME.moves("paper"), *MOVABLE.on("other").moves("paper")]
    assert to_text(HOME).endswith("\n\nWith --dataset also on: small, in place of ml-1m.")


def test_a_part_of_a_data_set_is_named_with_a_dash():
    assert within("ml-25m", "ml-25m") and within("ml-25m", "ml-25m-cold")
    assert not within("ml-25m", "ml-25mm") and not within("ml-25m-cold", "ml-25m")


def test_a_table_on_another_data_set_says_so_and_what_stands_in_brackets():
    moved = dataclasses.replace(TABLE3, others=("other",)).on("other")
    unlike = "another data set than the paper's"
    for preset, name in (("small", "other"), ("demo", "demo-other")):
        one = dataclasses.replace(rendered(preset, unlike), table=moved)
        text = to_markdown(one)
        assert text.startswith(f"# ccf_llm/table3: {TABLE3.title}, on {name}\n")
        assert f"**Made on {name}**, which the paper does not use" in text
        assert "the published number, on the paper's own data, in brackets" in text
        words = {row["verdict"] for row in csv.DictReader(io.StringIO(to_compare_csv(one)))}
        assert words == {"not comparable", "not printed", "empty", "ours"}
        assert "| reproduced |" not in text
    assert ", on " not in to_markdown(rendered()).splitlines()[0]


def test_show_names_the_other_data_sets():
    assert to_text(MOVABLE).endswith("\n\nWith --dataset also on: amazon-book, other.")
    assert to_text(dataclasses.replace(TABLE3, others=("other",))).endswith("also on: other.")
    assert "--dataset" not in to_text(TABLE3)


# --- long texts -----------------------------------------------------------------------------------
WORDS = "\n".join(
    ["- Good pasta | 5 *stars*, a_b _c_ <b>!", "", "# 1. 2. ", *["really good " * 20] * 3, "end."]
)
PROSE = Table(
    "mmrec/figure9",
    "Summaries",
    columns=(Column("Reviews", "r", "x"), Column("Summary [short]", "s", "x")),
    rows=(Row("User 1", "toy"), Row("User 2", "toy")),
    draw="examples",
    seeds=1,
)


def prose(text: str = WORDS) -> Rendered:
    lines = (
        Line(("User 1",), (Cell(text=text), Cell(text="Likes pasta.")), ("", "")),
        Line(("User 2",), (Cell(text="Fine."), Cell(reason="no answer")), ("", ""), note="cut"),
    )
    return Rendered(PROSE, lines, "small", 1, "python -m reprokit x")


def test_long_texts_are_a_section_per_row_and_stand_in_full():
    text = to_markdown(prose())
    assert (
        "### User 1\n\n**Reviews**\n\n> \\- Good pasta \\| 5 \\*stars\\*, a_b \\_c\\_ \\<b\\>!"
        in text
    )
    assert "\n> \\# 1. 2.  \n" in text and text.count("really good really good") >= 3
    assert "\n> end.  \n\n**Summary \\[short\\]**\n\n> Likes pasta." in text
    assert "### User 2 \\*" in text and "> \\[1\\]" in text and "\n[1] no answer" in text
    assert not any(row.startswith("|") for row in text.splitlines())
    assert max(map(len, text.splitlines())) < 300
    (row,) = (
        row for row in csv.DictReader(io.StringIO(to_csv(prose()))) if row["Variant"][-1] == "1"
    )
    assert row["Reviews"] == WORDS
    assert "ours (one seed); the paper prints examples of its own" in text


def test_long_texts_on_the_terminal_are_plain_wrapped_and_whole():
    shown = body(prose(), markdown=False)
    assert shown.startswith("User 1\n\n  Reviews\n    - Good pasta | 5 *stars*, a_b _c_ <b>!\n")
    assert max(map(len, shown.splitlines())) <= 96
    assert " ".join(WORDS.split()) in " ".join(shown.split())
    assert "\n\nUser 2 *\n" in shown and shown.endswith("  Summary [short]\n    [1]")


def test_short_texts_stay_a_grid():
    short = prose("Good.")
    assert body(short, True) == body(short, False) and "| User 1   | Good.   | Likes" in body(
        short, True
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 3 stars & more.", "plain text, 3 stars & more."),
        ("1. first", r"1\. first"),
        ("12) twelfth", r"12\) twelfth"),
        ("---", r"\---"),
        ("snake_case __init__", r"snake_case \_\_init\_\_"),
        ("&amp; `code` ~~x~~ \\", r"\&amp; \`code\` \~\~x\~\~ \\"),
    ],
)
def test_what_markdown_would_read_as_its_own_is_escaped(text: str, shown: str):
    assert literal(text) == shown


def test_a_text_with_nothing_printed_beside_it_is_not_judged():
    assert verdict(Cell(text="a plate"), "", 0.01) == "not printed"
    assert verdict(Cell(text="a plate"), "a plate", 0.01) == "equal"
    assert verdict(Cell(text="a plate"), "a bowl", 0.01) == "differs"
    assert math.isclose(Cell(values=(1.0, 2.0)).value, 1.5)
