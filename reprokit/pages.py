"""Figures of examples: each in words, beside its picture where there is one.

A page is laid out in pixels first, with texts broken by the widths of the very letters that are
drawn, and its figure is made as high as that takes. Pure functions, as those of `figures`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from reprokit.figures import (
    DOTS,
    GREY,
    WIDTH,
    head_height,
    head_lines,
    headed,
    plain_style,
    value_columns,
)
from reprokit.rendering import Rendered, shown
from reprokit.tables import row_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN, GAP, PAD, HEAD, LINE = 24, 20, 10, 22, 20
"""In pixels: around everything, between examples, inside a panel, of a label, of a line of text."""
LETTER, LABEL = 11, 10
"""Of texts and labels in points."""
MOST_LINES, MOST_UNDER = 24, 6
"""Lines that are drawn of a text in a panel, and of one under a picture."""
PICTURE = 280
"""Height of a picture beside its text."""


@dataclass(frozen=True)
class Words:
    """Lines of text: where the first one starts, in pixels from the left and the top."""

    lines: tuple[str, ...]
    left: float
    top: float
    size: float = LETTER
    colour: str = "black"
    weight: str = "normal"


@dataclass(frozen=True)
class Box:
    """A panel, in pixels: a picture, or the background of words."""

    left: float
    top: float
    width: float
    height: float
    picture: np.ndarray | None = None
    anchor: str = "NW"
    """The corner that a picture of another shape keeps to."""


@dataclass
class Page:
    """What is drawn under the head of a figure, from its top."""

    words: list[Words] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    height: float = GAP / 2
    """So far, in pixels."""


@dataclass(frozen=True)
class Example:
    """A row: its texts with the names of their columns, the long one first; a picture takes the
    place of the long text."""

    label: str
    texts: tuple[tuple[str, str], ...]
    picture: np.ndarray | None


def examples(pictures: Mapping[int, np.ndarray], rendered: Rendered) -> Figure:
    """Each example in a row: its picture, else its long text, and beside it what is said of it.

    `pictures` are bytes (H, W, 3) by line; where several examples all have one they are a grid,
    with the words under each. A text that does not fit ends with an ellipsis.
    """
    found = [example(rendered, at, pictures.get(at)) for at in range(len(rendered.lines))]
    lay_out = grid_of if 1 < len(found) == len(pictures) else rows_of
    with plain_style():
        page = lay_out(found, Pen())
        cut = any(words.lines[-1:] and words.lines[-1].endswith(CUT) for words in page.words)
        remark = f"Preset {rendered.preset}."
        remark += f" What ends with {CUT} stands in full in {rendered.table.file}.md." * cut
        heads = head_lines(rendered, remark)
        below = head_height(heads)
        figure = headed(heads, math.ceil(below + page.height))
        for box in page.boxes:
            put_box(figure, box, below)
        for words in page.words:
            put_words(figure, words, below)
    return figure


def example(rendered: Rendered, at: int, picture: np.ndarray | None) -> Example:
    line = rendered.lines[at]
    label = row_label(line.labels) + " (ours)" * line.ours
    texts = []
    for column, cell in zip(value_columns(rendered), line.cells, strict=True):
        text = shown(cell, rendered.table.decimals(column.name))
        texts.append((column.name, text or ("" if cell.blank else "empty")))
    if picture is None:
        return Example(label, tuple(texts), None)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"{rendered.table.id}, row '{label}': a picture must be bytes of shape (H, W, 3), got "
            f"{picture.dtype} {picture.shape}"
        )
    return Example(label, tuple(texts[1:] or texts), picture)


def rows_of(found: Sequence[Example], pen: Pen) -> Page:
    """One example under the other, the parts of each side by side."""
    page, room = Page(), WIDTH - 2 * MARGIN
    for one in found:
        label = pen.fit(one.label, 0.85 * room, 1)  # bold letters are wider than measured
        page.words.append(Words(label, MARGIN, page.height, weight="bold"))
        widths = [share * (room + GAP) - GAP for share in shares(one)]
        left, top = float(MARGIN), page.height + 2 * HEAD
        beside = widths[-len(one.texts) :]
        texts = [
            pen.fit(text, width - 2 * PAD, MOST_LINES)
            for (_, text), width in zip(one.texts, beside, strict=True)
        ]
        height = 2 * PAD + LINE * max(map(len, texts))
        if one.picture is not None:
            height = max(height, PICTURE)
            page.boxes.append(Box(left, top, widths[0], height, one.picture))
            left += widths[0] + GAP
        for (name, _), lines, width in zip(one.texts, texts, beside, strict=True):
            head = pen.fit(name, width, 1, LABEL)
            page.words.append(Words(head, left, page.height + HEAD, LABEL, GREY))
            page.words.append(Words(lines, left + PAD, top + PAD))
            page.boxes.append(Box(left, top, width, height))
            left += width + GAP
        page.height += 2 * HEAD + height + GAP
    return page


def shares(one: Example) -> list[float]:
    """The parts of a row's width: the first for the picture or the long text."""
    others = len(one.texts) - (one.picture is None)
    if not others:
        return [1.0]
    first = 0.56 if one.picture is None else 0.38
    return [first, *[(1 - first) / others] * others]


def grid_of(found: Sequence[Example], pen: Pen) -> Page:
    """Two or three pictures beside each other, their words under them."""
    across = 2 if len(found) in (2, 4) else 3
    width = (WIDTH - 2 * MARGIN + GAP) / across - GAP
    tall, page = 0.7 * width, Page()
    for start in range(0, len(found), across):
        under, most = page.height + tall + PAD / 2, 0
        for place, one in enumerate(found[start : start + across]):
            left = MARGIN + place * (width + GAP)
            lines = pen.fit("\n".join(text for _, text in one.texts), width, MOST_UNDER)
            page.boxes.append(Box(left, page.height, width, tall, one.picture, "SW"))
            page.words.append(Words(pen.fit(one.label, width, 1, LABEL), left, under, LABEL, GREY))
            page.words.append(Words(lines, left, under + HEAD))
            most = max(most, len(lines))
        page.height = under + HEAD + LINE * most + GAP
    return page


def put_words(figure: Figure, words: Words, below: float) -> None:
    """Draw words, `below` pixels lower than their page has them."""
    height = figure.get_figheight() * DOTS
    for number, line in enumerate(words.lines):
        base = below + words.top + LINE * (number + 0.75)
        figure.text(
            words.left / WIDTH,
            1 - base / height,
            line,
            fontsize=words.size,
            color=words.colour,
            weight=words.weight,
            va="baseline",
        )


def put_box(figure: Figure, box: Box, below: float) -> None:
    from matplotlib.patches import Rectangle

    height = figure.get_figheight() * DOTS
    left, bottom = box.left / WIDTH, 1 - (below + box.top + box.height) / height
    size = box.width / WIDTH, box.height / height
    if box.picture is None:
        where = figure.transFigure
        figure.add_artist(Rectangle((left, bottom), *size, facecolor="#F4F4F4", transform=where))
        return
    axis = figure.add_axes((left, bottom, *size))
    axis.imshow(box.picture, aspect="equal")
    axis.set_anchor(box.anchor)
    axis.set_axis_off()


CUT = "…"
UNKNOWN = "□"
"""In place of a letter that the font lacks."""


class Pen:
    """Breaks texts into lines of a width, by the widths of the very letters that are drawn."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import RendererAgg
        from matplotlib.font_manager import FontProperties, findfont, get_font

        self.renderer = RendererAgg(1, 1, DOTS)
        self.fonts: dict[float, FontProperties] = {
            size: FontProperties(size=size) for size in (LETTER, LABEL)
        }
        self.known = set(map(chr, get_font(findfont(self.fonts[LETTER])).get_charmap()))

    def width(self, text: str, size: float = LETTER) -> float:
        measured = self.renderer.get_text_width_height_descent(text, self.fonts[size], False)
        return float(measured[0])

    def fit(self, text: str, width: float, most: int, size: float = LETTER) -> tuple[str, ...]:
        """The lines of a text, at most `most`; where it has more the last ends with an ellipsis."""
        text = "".join(c if c in self.known or c.isspace() else UNKNOWN for c in text)
        lines = list(itertools.islice(self.lines(text, width, size), most + 1))
        if len(lines) > most:
            last = lines[most - 1]
            while last and self.width(last + CUT, size) > width:
                last = last[:-1]
            lines[most - 1 :] = [last.rstrip() + CUT]
        return tuple(lines)

    def lines(self, text: str, width: float, size: float) -> Iterator[str]:
        """All lines, one by one; a word that is wider than a line is broken."""
        for paragraph in text.splitlines():
            line = ""
            for word in paragraph.split():
                rest = word
                if line and self.width(f"{line} {rest}", size) <= width:
                    line = f"{line} {rest}"
                    continue
                if line:
                    yield line
                while (wide := self.width(rest, size)) > width and len(rest) > 1:
                    most = max(1, int(len(rest) * width / wide))
                    while most > 1 and self.width(rest[:most], size) > width:
                        most -= 1
                    yield rest[:most]
                    rest = rest[most:]
                line = rest
            yield line
