"""Pictures: bars, points and lines, as they are drawn."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from toys import AUC, BOOKS, TABLE

from reprokit import figures
from reprokit.plan import all_tables
from reprokit.rendering import Cell, Line, Rendered
from reprokit.tables import Column, Row, Table

NDCG = Column("ML-1M NDCG@10", "test/ndcg", "ml-1m", definition="ndcg@k", decimals=2)


def rendered(*rows: tuple[Cell, ...], preset: str = "small", **changed: Any) -> Rendered:
    lines = tuple(
        Line((row.label,), cells, ("",) * len(cells))
        for row, cells in zip(TABLE.rows, rows, strict=True)
    )
    return Rendered(dataclasses.replace(TABLE, **changed), lines, preset, 2, "command")


def cell(*values: float, unlike: str = "") -> Cell:
    return Cell(values=values, unlike=unlike)


TWO = rendered((cell(0.6, 0.64), cell(0.7)), (cell(0.45, 0.47), Cell(reason="not finished")))


def texts(figure: Any) -> list[str]:
    inside = [text.get_text() for axis in figure.axes for text in axis.texts]
    return inside + [text.get_text() for text in figure.texts]


# --- pictures -------------------------------------------------------------------------------------


def test_two_savings_give_the_same_bytes_without_version_or_time(tmp_path: Path):
    for name in ("a", "b"):
        figures.save(figures.bars(TWO), tmp_path / f"{name}.png")
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) == (1200, 700)
    assert not any(chunk in content for chunk in (b"tEXt", b"iTXt", b"tIME", b"matplotlib"))
    other = rendered((cell(0.61, 0.64), cell(0.7)), (cell(0.45, 0.47), Cell()))
    figures.save(figures.bars(other), tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != content
    assert len(list(tmp_path.iterdir())) == 3  # no temporary file stays


def test_a_users_style_neither_changes_the_picture_nor_is_changed(tmp_path: Path):
    figures.save(figures.bars(TWO), tmp_path / "plain.png")
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "savefig.dpi": 30}):
        figures.save(figures.bars(TWO), tmp_path / "styled.png")
        assert matplotlib.rcParams["axes.facecolor"] == "red"
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_drawing_needs_neither_pyplot_nor_a_window_system(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from test_figures import TWO, figures\n"
        "assert 'matplotlib.figure' not in sys.modules\n"
        "figures.save(figures.bars(TWO), Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.png")],
        capture_output=True,
        text=True,
        cwd=ROOT / "tests",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr


def test_bars_of_auc_start_at_chance_go_down_below_it_and_the_axis_says_so():
    (axis,) = figures.bars(TWO).axes
    assert axis.get_ylabel() == "AUC\n(bars start at 0.5, chance)"
    spans = [(bar.get_y(), bar.get_height()) for bar in axis.patches]
    assert [start for start, _ in spans] == [0.5] * 3
    assert [height for _, height in spans] == pytest.approx([0.12, -0.04, 0.2])
    low, high = axis.get_ylim()
    assert low < 0.44 and high > 0.7
    above = rendered((cell(0.6), cell(0.7)), (cell(0.8), cell(0.9)))
    assert figures.bars(above).axes[0].get_ylim()[0] == 0.5


def test_a_metric_of_another_kind_has_a_panel_of_its_own_that_starts_at_zero():
    changed = rendered((cell(0.6), cell(5.25)), (cell(0.7), cell(6.5)), columns=(AUC, NDCG))
    upper, lower = figures.bars(changed).axes
    assert upper.get_ylabel().startswith("AUC") and lower.get_ylabel() == "ML-1M NDCG@10"
    assert [bar.get_y() for bar in lower.patches] == [0, 0] and lower.get_ylim()[0] == 0
    assert [bar.get_facecolor() for bar in upper.patches] != [
        bar.get_facecolor() for bar in lower.patches
    ]
    assert {"0.6000", "5.25"} <= set(texts(upper.figure))


def test_whiskers_are_the_standard_deviation_over_seeds():
    (axis,) = figures.bars(TWO).axes
    first, second = (container.lines[2][0] for container in axis.containers[1::2])
    (segment, _) = first.get_segments()
    std = np.std([0.6, 0.64], ddof=1)
    assert segment[:, 1] == pytest.approx([0.62 - std, 0.62 + std])
    assert not np.isfinite(second.get_segments()[0]).any()  # one seed has no spread


def test_bars_carry_their_value_and_an_empty_cell_says_so():
    found = texts(figures.bars(TWO))
    assert [text for text in found if text[0] == "0"] == ["0.6200", "0.4600", "0.7000"]
    assert found.count("empty") == 1


def test_rows_are_groups_and_columns_are_named_in_a_legend():
    figure = figures.bars(TWO)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["alpha = 1", "Default"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ML-1M AUC", "Book AUC"]


BLEU = Column("BLEU", "test/bleu", "ml-1m", definition="bleu", decimals=3)
COLD = Column("New Users AUC", "test/auc", "ml-1m", definition="auc")
BLOCKS = (
    Row("Full", "toy", columns=("ML-1M AUC", "BLEU")),
    Row("Without", "toy", columns=("ML-1M AUC", "BLEU")),
    Row("LightGCN", "toy", columns=("New Users AUC", "Book AUC")),
)
BLANK = Cell(blank=True)


def in_blocks(*rows: tuple[Cell, ...]) -> Rendered:
    """Two rows with AUC and BLEU, and a third one with two other AUCs."""
    table = dataclasses.replace(TABLE, columns=(AUC, BLEU, COLD, BOOKS), rows=BLOCKS)
    pairs = zip(BLOCKS, rows, strict=True)
    lines = tuple(Line((row.label,), cells, ("",) * 4) for row, cells in pairs)
    return Rendered(table, lines, "small", 2, "command")


def test_rows_with_columns_of_their_own_have_panels_of_their_own_and_no_empty_places():
    figure = figures.bars(
        in_blocks(
            (cell(0.6), cell(0.4), BLANK, BLANK),
            (cell(0.7), Cell(reason="failed"), BLANK, BLANK),
            (BLANK, BLANK, cell(0.55), cell(0.65)),
        )
    )
    upper, lower, right = figure.axes
    assert lower.get_ylabel() == "BLEU" and upper.get_ylabel() == right.get_ylabel()
    names = [[tick.get_text() for tick in axis.get_xticklabels()] for axis in (lower, right)]
    assert names == [["Full", "Without"], ["LightGCN"]]
    assert [len(axis.patches) for axis in figure.axes] == [2, 1, 2]
    assert [bar.get_width() for bar in upper.patches] == pytest.approx([0.8 * 0.92] * 2)
    assert [bar.get_width() for bar in right.patches] == pytest.approx([0.4 * 0.92] * 2)
    assert texts(figure).count("empty") == 1  # the one that failed
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["ML-1M AUC", "BLEU", "New Users AUC", "Book AUC"]
    left, other = upper.get_position(), right.get_position()
    assert left.x1 < other.x0  # side by side


def test_rows_of_which_nothing_is_made_say_so_and_have_no_scale():
    none = Cell(reason="not requested")
    rows = (none, none, BLANK, BLANK), (none, none, BLANK, BLANK)
    figure = figures.bars(in_blocks(*rows, (BLANK, BLANK, cell(0.55), cell(0.65))))
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["empty", "empty"]
    assert not left.patches and not len(left.get_yticks()) and len(right.get_yticks())
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["New Users AUC", "Book AUC"]


@pytest.mark.parametrize(
    ("labels", "size", "slanted"),
    [
        (["Full", "w/o Preference Attribution"], 11, False),
        ([f"Content-Based {n}" for n in range(9)], 11, False),
        ([f"w/o Preference Attribution {n}" for n in range(14)], 8, False),
        ([f"w/o PreferenceAttribution {n}" for n in range(15)], 9, True),
    ],
)
def test_names_of_rows_keep_their_words_whole_and_do_not_run_into_each_other(
    labels: list[str], size: float, slanted: bool
):
    rows = tuple(Row(label, "toy") for label in labels)
    lines = tuple(Line((label,), (cell(0.6),), ("",)) for label in labels)
    table = dataclasses.replace(TABLE, columns=(AUC,), rows=rows)
    figure = figures.bars(Rendered(table, lines, "small", 2, "command"))
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticklabels()
    assert {(tick.get_fontsize(), bool(tick.get_rotation())) for tick in ticks} == {(size, slanted)}
    whole = [re.sub(r"(?<=-)\n", "", tick.get_text()).replace("\n", " ") for tick in ticks]
    assert whole == labels
    if not slanted:
        boxes = [tick.get_window_extent() for tick in ticks]
        assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_only_a_demo_says_synthetic_and_only_a_deviation_not_comparable():
    warning = "synthetic data: not comparable with the paper"
    assert warning not in texts(figures.bars(TWO))
    cells = (cell(0.6), cell(0.7)), (cell(0.7, unlike="tiny"), cell(0.8))
    assert warning in texts(figures.bars(rendered(*cells, preset="demo")))
    text = "not comparable with the paper, for the reasons in figure9.md"
    assert text in texts(figures.bars(rendered(*cells)))
    assert "ccf_llm/figure9: How to fuse $x$" in texts(figures.bars(TWO))


POINTS = {
    "dataset": np.repeat(["ml-1m", "amazon-book"], 6),
    "modality": np.tile(np.repeat(["aligned CF", "LLM", "fused"], 2), 2),
    "x": np.arange(12.0),
    "y": np.arange(12.0) ** 2,
}


def test_points_have_a_panel_per_data_set_and_a_colour_per_modality(tmp_path: Path):
    figure = figures.scatter(POINTS, TWO)
    assert [axis.get_title() for axis in figure.axes] == ["ml-1m", "amazon-book"]
    green, yellow, purple = (
        group.get_facecolor()[0][:3] for group in figure.axes[1].collections[:3]
    )
    assert green[1] > max(green[0], green[2])
    assert min(yellow[:2]) > yellow[2] and min(purple[0], purple[2]) > purple[1]
    np.testing.assert_array_equal(figure.axes[1].collections[2].get_offsets()[:, 0], [10, 11])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["aligned CF", "LLM", "fused"]
    assert not any(len(axis.get_xticks()) + len(axis.get_yticks()) for axis in figure.axes)
    for name in ("a", "b"):
        figures.save(figures.scatter(POINTS, TWO), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


SWEEP = {
    "rate = 0.001": cell(11.0, 12.0),
    "rate = 0.01": cell(13.0, 13.5),
    "rate = 0.1": Cell(reason="not finished"),
    "rate = 1": cell(9.0),
    "depth = 2": cell(12.0, 12.5),
    "depth = 1": cell(12.5, 13.0),
}


def swept(*ours: tuple[str, Cell], cells: dict[str, Cell] = SWEEP, **changed: Any) -> Rendered:
    """A figure of two names, and rows of our own under it."""
    table = Table(
        "ccf_llm/figure9",
        "How it depends",
        (dataclasses.replace(NDCG, name="NDCG"),),
        tuple(Row(label, "toy") for label in cells),
        draw="lines",
    )
    lines = [Line((label,), (one,), ("",)) for label, one in cells.items()]
    lines += [Line((label,), (one,), (), ours=True) for label, one in ours]
    return Rendered(dataclasses.replace(table, **changed), tuple(lines), "small", 2, "command")


def test_lines_have_a_panel_per_name_and_a_point_per_value_in_order():
    left, right = figures.lines(swept()).axes
    assert [axis.get_xlabel() for axis in (left, right)] == ["rate", "depth"]
    assert (left.get_ylabel(), right.get_ylabel()) == ("NDCG", "")
    ticks = [[tick.get_text() for tick in axis.get_xticklabels()] for axis in (left, right)]
    assert ticks == [["0.001", "0.01", "0.1", "1"], ["2", "1"]]
    drawn = [axis.lines[0].get_xydata() for axis in (left, right)]
    np.testing.assert_allclose(drawn[0], [[0, 11.5], [1, 13.25], [2, np.nan], [3, 9]])
    np.testing.assert_allclose(drawn[1], [[0, 12.25], [1, 12.75]])
    assert left.lines[0].get_marker() == right.lines[0].get_marker() == "o"
    assert left.get_ylim() == right.get_ylim()


def test_whiskers_of_lines_are_the_standard_deviation_where_there_are_seeds():
    left, _ = figures.lines(swept()).axes
    first, _, gap, alone = left.containers[0].lines[2][0].get_segments()
    std = np.std([11, 12], ddof=1)
    assert first[:, 1] == pytest.approx([11.5 - std, 11.5 + std])
    assert not any(np.isfinite(segment).any() for segment in (gap, alone))


def test_an_empty_cell_leaves_a_gap_in_its_line_and_says_so():
    left, right = figures.lines(swept()).axes
    (note,) = left.texts
    assert (note.get_text(), note.xy[0]) == ("empty", 2) and not right.texts
    whole = {label: cell(1.0) for label in SWEEP}
    assert not any(axis.texts for axis in figures.lines(swept(cells=whole)).axes)


def test_our_own_rows_are_dashed_through_every_panel_of_lines_and_named_once():
    assert not figures.lines(swept()).legends
    figure = figures.lines(swept(("Chance", cell(7.0, 8.0)), ("Best", Cell(reason="failed"))))
    for axis in figure.axes:
        chance = next(line for line in axis.lines if line.get_linestyle() == "--")
        assert list(chance.get_ydata()) == [7.5, 7.5] and axis.get_ylim()[0] < 7.5
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == ["Chance (ours)", "Best (ours): empty"]


def test_lines_are_saved_with_the_same_bytes_twice(tmp_path: Path):
    for name in ("a", "b"):
        figures.save(figures.lines(swept(("Chance", cell(7.0)))), tmp_path / name)
    figures.save(figures.lines(swept(("Chance", cell(7.5)))), tmp_path / "other")
    content = [(tmp_path / name).read_bytes() for name in ("a", "b", "other")]
    assert content[0] == content[1] != content[2]
    assert int.from_bytes(content[0][16:20]) == 1200


def test_lines_are_refused_for_a_row_without_a_value_and_for_two_columns():
    with pytest.raises(ValueError, match=r"figure9, row 'Default': a line needs 'name = value'"):
        figures.lines(swept(cells={**SWEEP, "Default": cell(1.0)}))
    with pytest.raises(ValueError, match="expected 1"):
        figures.lines(swept(columns=(AUC, NDCG)))


def test_every_figure_of_lines_that_is_declared_can_be_drawn():
    tables = [table for table in all_tables() if table.draw == "lines"]
    assert "llm_emf/figure5" in {table.id for table in tables}
    for table in tables:
        lines = tuple(Line((row.label,), (cell(1.0),), ("",)) for row in table.rows)
        figure = figures.lines(Rendered(table, lines, "paper", 1, "command"))
        points = [len(axis.lines[0].get_xdata()) for axis in figure.axes]
        assert sum(points) == len(table.rows) and min(points) > 1


# --- the best of the repeats ----------------------------------------------------------------------


def test_bars_and_lines_are_the_best_run_with_the_whiskers_of_all():
    best = Cell(values=(0.7, 0.8, 0.6), best=0.8)
    one = rendered((best, cell(0.7)), (cell(0.6), cell(0.5)), best_by="valid/x", preset="paper")
    figure = figures.bars(one)
    (axis,) = figure.axes
    assert axis.patches[0].get_height() == pytest.approx(0.3)
    (segment, _) = axis.containers[1].lines[2][0].get_segments()
    assert segment[:, 1] == pytest.approx([0.6, 0.8])  # around the mean
    assert {"0.8000", "0.5000"} <= set(texts(figure))
    assert (
        "Best of 2 seeds by validation, whiskers: their mean ± deviation. Preset paper."
        in texts(figure)
    )
    left, _ = figures.lines(swept(cells={**SWEEP, "rate = 0.01": best})).axes
    assert left.lines[0].get_ydata()[1] == 0.8
    assert left.containers[0].lines[2][0].get_segments()[1][:, 1] == pytest.approx([0.6, 0.8])


def test_the_label_of_a_bar_stands_clear_of_bar_and_whisker():
    high = Cell(values=(0.7, 0.71, 0.95), best=0.95)
    low = Cell(values=(0.7, 0.71, 0.95), best=0.70)
    for one, end in ((high, 0.95), (low, float(low.mean + (low.std or 0)))):
        (axis,) = figures.bars(rendered((one, cell(0.6)), (cell(0.6), cell(0.6)))).axes
        assert axis.texts[0].xy[1] == pytest.approx(end)
