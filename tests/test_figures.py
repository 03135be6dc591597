"""Pictures, and figures as targets."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from conftest import ROOT

from reprokit import ccf_llm, cli, figures, reproduce
from reprokit.plan import Request, all_tables, plan
from reprokit.reproduce import DONE, INCOMPLETE
from reprokit.runs import Estimate, Job, Result, System, Unavailable, setting
from reprokit.tables import Cell, Column, Line, Rendered, Row, Table

AUC = Column("ML-1M AUC", "test/auc", "ml-1m", definition="auc")
BOOKS = Column("Book AUC", "test/auc", "amazon-book", definition="auc")
NDCG = Column("ML-1M NDCG@10", "test/ndcg", "ml-1m", definition="ndcg@k", decimals=2)
ROWS = (Row("alpha = 1", "toy"), Row("Default", "toy", {"depth": 2}))
TABLE = Table("ccf_llm/figure9", "How to fuse $x$", (AUC, BOOKS), ROWS)


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


# --- examples -------------------------------------------------------------------------------------
LONG = "The pasta was excellent and the waiter remembered us; parking costs $5 to $9. " * 40
WEIRD = "寿司 " + "https://example.org/" + "W" * 300 + "\n\nBEST WWWW MMMM " * 9 + "fin"


def told(
    *rows: tuple[str, ...], columns: tuple[str, ...] = ("Reviews", "Summary"), **changed: Any
) -> Rendered:
    """Examples of texts; an empty one is not made."""
    table = Table(
        "mmrec/figure9",
        "Examples",
        tuple(Column(name, name, "x") for name in columns),
        tuple(Row(f"User {number}", "toy") for number in range(1, 1 + len(rows))),
        draw="examples",
        seeds=1,
    )
    lines = tuple(
        Line(
            (row.label,),
            tuple(Cell(text=text) if text else Cell(reason="none") for text in words),
            ("",) * len(words),
        )
        for row, words in zip(table.rows, rows, strict=True)
    )
    return Rendered(dataclasses.replace(table, **changed), lines, "small", 1, "command")


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), 200, np.uint8)


def extents(figure: Any) -> dict[str, list[Any]]:
    """Where words, panels behind words and pictures are drawn, in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    panels = [one.get_window_extent(renderer) for one in figure.artists]
    return {
        "words": [text.get_window_extent(renderer) for text in figure.texts if text.get_text()],
        "panels": panels,
        "pictures": [axis.get_window_extent(renderer) for axis in figure.axes],
    }


def clear(figure: Any) -> dict[str, list[Any]]:
    """The extents, after a look that nothing overlaps and nothing is outside the picture."""
    found = extents(figure)
    for kinds in (("words", "pictures"), ("panels", "pictures")):
        boxes = [box.padded(-1) for kind in kinds for box in found[kind]]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert not [box for one in found.values() for box in one if box.x0 < 0 or box.x1 > 1200]
    lowest = min(box.y0 for one in found.values() for box in one)
    assert lowest > 0
    return found


@pytest.mark.parametrize("text", ["Short.", LONG, WEIRD, LONG.replace(" ", "")])
def test_examples_are_words_beside_words_that_neither_overlap_nor_leave_the_picture(text: str):
    figure = figures.examples({}, told((text, "A summary."), ("Fine.", text)))
    found = clear(figure)
    assert len(found["panels"]) == 4 and not figure.axes
    inside = [box for box in found["words"] if any(p.x0 < box.x0 and p.y0 < box.y0 < p.y1
              for p in found["panels"])]  # fmt: skip
    for box in inside:
        (panel,) = (p for p in found["panels"] if p.x0 < box.x0 < p.x1 and p.y0 < box.y0 < p.y1)
        assert box.x1 < panel.x1 and box.y1 < panel.y1
    assert figure.get_figwidth() * 100 == 1200
    said = texts(figure)
    assert {"User 1", "User 2", "Reviews", "Summary", "A summary.", "Fine."} <= set(said)


def test_what_does_not_fit_is_cut_in_the_picture_and_said():
    figure = figures.examples({}, told((LONG, "A summary."), ("Fine.", "Likes it.")))
    said = texts(figure)
    (cut,) = (text for text in said if text.endswith("…"))
    assert said.count("Preset small. What ends with … stands in full in figure9.md.") == 1
    assert LONG.startswith(" ".join(said[said.index(cut) - 23 : said.index(cut) + 1])[:-1])
    whole = texts(figures.examples({}, told(("Good.", "A summary."))))
    assert "Preset small." in whole and not any("…" in text for text in whole)


def test_a_picture_stands_in_place_of_the_long_text_beside_the_short_one():
    figure = figures.examples({0: picture(200, 50)}, told((LONG, "A caption."), ("Fine.", "Two")))
    found = clear(figure)
    (image,), panels = found["pictures"], found["panels"]
    assert len(panels) == 3 and image.x1 < panels[0].x0 and image.y1 == pytest.approx(panels[0].y1)
    assert image.height == pytest.approx(4 * image.width, rel=0.02)  # not stretched
    said = texts(figure)
    assert "A caption." in said and not any("pasta" in text for text in said)
    assert said.count("Reviews") == 1  # of the other example


@pytest.mark.parametrize(("n", "across"), [(2, 2), (3, 3), (4, 2), (6, 3), (7, 3)])
def test_examples_that_all_have_a_picture_are_a_grid_with_the_words_under_each(n: int, across: int):
    rows = [(f"file {at}", f"caption {at} {WEIRD if at == 1 else ''}") for at in range(n)]
    shapes = ((40, 60), (300, 90), (30, 200))
    pictures = {at: picture(*shapes[at % 3]) for at in range(n)}
    figure = figures.examples(pictures, told(*rows, columns=("Picture", "Caption")))
    found = clear(figure)
    assert len(found["pictures"]) == n and not found["panels"]
    assert len({round(box.x0) for box in found["pictures"]}) == across
    said = texts(figure)
    assert not any("file" in text for text in said)
    for at, image in enumerate(found["pictures"]):
        (words,) = (text for text in figure.texts if text.get_text().startswith(f"caption {at}"))
        x, y = figure.transFigure.transform(words.get_position())
        assert x == pytest.approx(image.x0, abs=1) and 0 < image.y0 - y < 60


def test_an_example_that_is_not_made_says_so_and_our_own_row_is_marked():
    one = told(("Fine.", ""))
    ours = dataclasses.replace(one, lines=(dataclasses.replace(one.lines[0], ours=True),))
    assert {"empty", "User 1 (ours)"} <= set(texts(figures.examples({}, ours)))


def test_examples_are_saved_with_the_same_bytes_twice_and_without_a_warning(tmp_path: Path):
    one = told((WEIRD, "寿司 😡 \u200b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a", "b"):
            figures.save(figures.examples({0: picture()}, one), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    figures.save(figures.examples({}, one), tmp_path / "other")
    assert (tmp_path / "other").read_bytes() != (tmp_path / "a").read_bytes()
    assert int.from_bytes((tmp_path / "a").read_bytes()[16:20]) == 1200


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_a_picture_of_another_form_is_refused(wrong: np.ndarray):
    with pytest.raises(
        ValueError, match=r"figure9, row 'User 1': a picture must be bytes of shape"
    ):
        figures.examples({0: wrong}, told(("Fine.", "Two")))


# --- figures as targets ---------------------------------------------------------------------------


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
    draw = figures.examples
    monkeypatch.setattr(figures, "examples", lambda *given: seen.append(given) or draw(*given))
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
