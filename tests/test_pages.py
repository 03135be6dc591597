"""Figures of examples: where words and pictures stand, what is cut, what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprokit import figures
from reprokit.pages import examples
from reprokit.rendering import Cell, Line, Rendered
from reprokit.tables import Column, Row, Table

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


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


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
    figure = examples({}, told((text, "A summary."), ("Fine.", text)))
    found = clear(figure)
    assert len(found["panels"]) == 4 and not figure.axes
    inside = [box for box in found["words"] if any(p.x0 < box.x0 and p.y0 < box.y0 < p.y1
              for p in found["panels"])]  # fmt: skip
    assert len(inside) >= 4  # each panel has a line or more
    for box in inside:
        (panel,) = (p for p in found["panels"] if p.x0 < box.x0 < p.x1 and p.y0 < box.y0 < p.y1)
        assert box.x1 < panel.x1 and box.y1 < panel.y1
    assert figure.get_figwidth() * 100 == 1200
    said = texts(figure)
    assert {"User 1", "User 2", "Reviews", "Summary", "A summary.", "Fine."} <= set(said)


def test_what_does_not_fit_is_cut_in_the_picture_and_said():
    figure = examples({}, told((LONG, "A summary."), ("Fine.", "Likes it.")))
    said = texts(figure)
    (cut,) = (text for text in said if text.endswith("…"))
    assert said.count("Preset small. What ends with … stands in full in figure9.md.") == 1
    assert LONG.startswith(" ".join(said[said.index(cut) - 23 : said.index(cut) + 1])[:-1])
    whole = texts(examples({}, told(("Good.", "A summary."))))
    assert "Preset small." in whole and not any("…" in text for text in whole)


def test_a_picture_stands_in_place_of_the_long_text_beside_the_short_one():
    figure = examples({0: picture(200, 50)}, told((LONG, "A caption."), ("Fine.", "Two")))
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
    figure = examples(pictures, told(*rows, columns=("Picture", "Caption")))
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
    assert {"empty", "User 1 (ours)"} <= set(texts(examples({}, ours)))


def test_examples_are_saved_with_the_same_bytes_twice_and_without_a_warning(tmp_path: Path):
    one = told((WEIRD, "寿司 😡 \u200b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a", "b"):
            figures.save(examples({0: picture()}, one), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    figures.save(examples({}, one), tmp_path / "other")
    assert (tmp_path / "other").read_bytes() != (tmp_path / "a").read_bytes()
    assert int.from_bytes((tmp_path / "a").read_bytes()[16:20]) == 1200


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_a_picture_of_another_form_is_refused(wrong: np.ndarray):
    with pytest.raises(
        ValueError, match=r"figure9, row 'User 1': a picture must be bytes of shape"
    ):
        examples({0: wrong}, told(("Fine.", "Two")))
