"""Figures as pictures: bars or lines over a table's cells, the points of items in a plane, or
examples in words and images.

Pure functions of what is drawn: the same numbers give the same bytes. matplotlib is used without
pyplot and with its own default style, so that neither a window system nor a user's style plays in.
"""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.runs import replacing
from reprokit.tables import Cell, Column, Line, Rendered, fixed, row_label, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DOTS = 1200, 700, 100
"""Of the picture in pixels, and dots per inch."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5B4B8A", "#8C8C8C")
"""Apart for colour-blind eyes too, after Okabe and Ito; from the ninth column on hatched."""
MODALITIES = (("#1B9E50", "o"), ("#E0A800", "s"), ("#7B3FA0", "^"))
"""Colour and marker in order of appearance: readable tones of CCF-LLM's green, yellow, purple."""
CHANCE = {"auc": "AUC", "uauc": "uAUC"}
"""Metrics that are 0.5 by chance: their bars start there, and the axis says so."""
LABELS = {
    "rela_impr": "RelaImpr, percent",
    "accuracy": "Accuracy",
    "fpr": "False positive rate",
    "hr@k": "HR",
    "mrr": "MRR",
    "ndcg@k": "NDCG",
    "bleu": "BLEU",
}
GREY, WARNING = "#555555", "#A02020"


def save(figure: Figure, path: Path) -> None:
    """Write a PNG that is there as a whole or not at all, without time or version in it."""
    with plain_style(), replacing(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


@contextmanager
def plain_style() -> Iterator[None]:
    """matplotlib's defaults for a while, with texts taken literally."""
    from matplotlib import style

    with style.context(["default", {"text.parse_math": False, "hatch.linewidth": 0.6}]):
        yield


# --- bars ---------------------------------------------------------------------------------------
def bars(rendered: Rendered) -> Figure:
    """A group for each row, a colour for each column, a panel for each metric; rows with columns of
    their own (`Row.columns`) stand beside the others, in panels of their own.

    A bar is the cell's number: the mean over seeds, or the best of them. Its whisker is one
    standard deviation around the mean; an empty cell says so.
    """
    blocks = blocks_of(rendered)
    shares = [block.weight for block in blocks]
    widths = [WIDTH * share / sum(shares) for share in shares]
    with plain_style():
        figure = sheet(rendered, seeds_remark(rendered))
        places = figure.add_gridspec(1, len(blocks), width_ratios=shares)
        for at, (block, width) in enumerate(zip(blocks, widths, strict=True)):
            grid = places[0, at].subgridspec(len(block.panels), 1)
            axes = grid.subplots(sharex=True, squeeze=False).ravel()
            for axis, (metric, columns) in zip(axes, block.panels.items(), strict=True):
                base = 0.5 if metric in CHANCE else 0.0
                draw_bars(axis, rendered, block, columns, base, width)
                axis.set_ylabel(y_label(rendered, metric, columns))
            label_rows(axes[-1], block.lines, width)
        handles = {label: one for axis in figure.axes for one, label in named_bars(axis)}
        if len(blocks) > 1 or max(map(len, blocks[0].panels.values())) > 1:
            artists, n = list(handles.values()), 5 if len("".join(handles)) < 90 else 4
            figure.legend(artists, handles, loc="outside lower center", ncols=n, frameon=False)
    return figure


@dataclass(frozen=True)
class Block:
    """Rows with the same columns."""

    lines: tuple[Line, ...]
    panels: dict[str, list[int]]
    """Columns that have a value, by metric; the first one of all where none has."""

    @property
    def weight(self) -> int:
        """Share of the picture's width: a bar's for each bar, and one between two groups."""
        return len(self.lines) * (1 + max(map(len, self.panels.values())))


def blocks_of(rendered: Rendered) -> list[Block]:
    table, columns = rendered.table, value_columns(rendered)
    own = {(row.label, row in table.sanity): row.columns for row in (*table.rows, *table.sanity)}
    grouped: dict[tuple[str, ...], list[Line]] = {}
    for line in rendered.lines:
        names = own.get((line.labels[0] if line.ours else row_label(line.labels), line.ours), ())
        grouped.setdefault(names, []).append(line)
    blocks = []
    for names, lines in grouped.items():
        mine = [at for at, column in enumerate(columns) if not names or column.name in names]
        filled = [at for at in mine if any(drawable(line.cells[at]) for line in lines)]
        panels: dict[str, list[int]] = {}
        for at in filled or mine[:1]:
            panels.setdefault(columns[at].definition or columns[at].metric, []).append(at)
        blocks.append(Block(tuple(lines), panels))
    return blocks


def named_bars(axis: Axes) -> Iterator[tuple[Any, str]]:
    """The bars of each column of a panel with its name."""
    yield from zip(*axis.get_legend_handles_labels(), strict=True)


def value_columns(rendered: Rendered) -> list[Column]:
    published = rendered.table.published
    declared = {column.name: column for column in rendered.table.columns}
    return [declared[name] for name in published.header[published.n_labels :]]


def drawable(cell: Cell) -> bool:
    return bool(cell.values) and math.isfinite(cell.mean)


def draw_bars(
    axis: Axes,
    rendered: Rendered,
    block: Block,
    columns: Sequence[int],
    base: float,
    room: float,
) -> None:
    """One panel; bars start at `base`. `room`: its width in pixels."""
    names, lines = [column.name for column in value_columns(rendered)], block.lines
    width = 0.8 / len(columns)
    pixels = 0.9 * room * width / len(lines)
    size, rotation = (10, 0) if pixels > 52 else (8, 0) if pixels > 40 else (7, 90)
    ends = [base]
    for place, index in enumerate(columns):
        shift = (place - (len(columns) - 1) / 2) * width
        at = [x for x, line in enumerate(lines) if drawable(line.cells[index])]
        cells = [lines[x].cells[index] for x in at]
        axis.bar(
            [x + shift for x in at],
            [cell.value - base for cell in cells],
            0.92 * width,
            bottom=base,
            color=COLOURS[index % len(COLOURS)],
            hatch="//" if index >= len(COLOURS) else "",
            edgecolor="white",
            label=names[index] if at else None,
        )
        whiskers(axis, [x + shift for x in at], cells, "#222222")
        for x, line in enumerate(lines):
            text, end, up = bar_label(rendered, line.cells[index], names[index], base)
            ends.append(end)
            axis.annotate(
                text,
                (x + shift, end),
                xytext=(0, 3 if up else -3),
                textcoords="offset points",
                ha="center",
                va="bottom" if up else "top",
                rotation=rotation if drawable(line.cells[index]) else 90,
                fontsize=size,
                color="black" if drawable(line.cells[index]) else GREY,
            )
    high = (50 if rotation else 22) * len(block.panels)
    set_limits(axis, base, ends, high / (0.6 * HEIGHT))
    if len(set(ends)) == 1:  # nothing is drawn
        axis.set_yticks([])
    axis.axhline(base, color="#222222", linewidth=1.2)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(axis="x", length=0)


def whiskers(axis: Axes, at: Sequence[float], cells: Sequence[Cell], colour: str) -> None:
    """One standard deviation around the mean over seeds, where there are several."""
    axis.errorbar(
        at,
        [cell.mean if drawable(cell) else math.nan for cell in cells],
        yerr=[math.nan if cell.std is None else cell.std for cell in cells],
        fmt="none",
        ecolor=colour,
        elinewidth=1.2,
        capsize=4,
    )


def bar_label(rendered: Rendered, cell: Cell, column: str, base: float) -> tuple[str, float, bool]:
    """The text of a bar, where it and its whisker end, and whether the bar goes up."""
    if not drawable(cell):
        return "" if cell.blank else "empty", base, True
    up, std = cell.value >= base, cell.std or 0.0
    text = fixed(cell.value, rendered.table.decimals(column))
    end = max(cell.value, cell.mean + std) if up else min(cell.value, cell.mean - std)
    return text, end, up


def set_limits(axis: Axes, base: float, ends: Sequence[float], room: float) -> None:
    """From the lowest to the highest whisker, with `room` (a share of the height) for labels."""
    low, high = min(ends), max(ends)
    span = high - low or 0.1
    pad = span * room / (1 - room)
    axis.set_ylim(low - pad if low < base else base, high + pad)


def y_label(rendered: Rendered, metric: str, columns: Sequence[int]) -> str:
    if metric in CHANCE:
        return f"{CHANCE[metric]}\n(bars start at 0.5, chance)"
    if len(columns) == 1:
        return value_columns(rendered)[columns[0]].name
    return LABELS.get(metric, metric)


def label_rows(axis: Axes, lines: Sequence[Line], room: float) -> None:
    """Names under the groups, in smaller letters and at last slanted where words are long."""
    labels = [row_label(line.labels) + " (ours)" * line.ours for line in lines]
    longest = max(len(word) for label in labels for word in re.split(r"\s|(?<=-)", label))
    for size, letter in ((11, 9.0), (9, 7.4), (8, 6.6)):  # points, pixels
        width = int(0.9 * room / len(lines) / letter)
        if longest <= width:
            wrapped = [textwrap.fill(label, width) for label in labels]
            axis.set_xticks(range(len(labels)), wrapped, fontsize=size)
            break
    else:
        wrapped = [textwrap.fill(label, 24) for label in labels]
        slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axis.set_xticks(range(len(labels)), wrapped, fontsize=9, **slanted)
    axis.set_xlim(-0.55, len(labels) - 0.45)


# --- lines --------------------------------------------------------------------------------------
def lines(rendered: Rendered) -> Figure:
    """A panel for each name of the rows "name = value", side by side: a line over its values.

    A point is the cell's number, its whisker one standard deviation around the mean over seeds; an
    empty cell says so and leaves a gap. Our own rows are dashed lines through all panels. Only for
    a table of one column.
    """
    (column,), panels = value_columns(rendered), sweeps(rendered)
    with plain_style():
        figure, axes = canvas(rendered, seeds_remark(rendered), columns=len(panels), sharey=True)
        for axis, (name, swept) in zip(axes, panels.items(), strict=True):
            draw_line(axis, [cell for _, cell in swept])
            draw_own_rows(axis, rendered)
            axis.set_xlabel(name, fontsize=12)
        label_values(axes, [[value for value, _ in swept] for swept in panels.values()])
        axes[0].set_ylabel(column.name, fontsize=12)
        if any(line.ours for line in rendered.lines):
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def sweeps(rendered: Rendered) -> dict[str, list[tuple[str, Cell]]]:
    """The published rows by name: (value, cell), in order. Raises ValueError for another label."""
    found: dict[str, list[tuple[str, Cell]]] = {}
    for line in rendered.lines:
        name, equals, value = row_label(line.labels).partition(" = ")
        if not line.ours and not equals:
            raise ValueError(f"{rendered.table.id}, row '{name}': a line needs 'name = value'")
        if not line.ours:
            found.setdefault(name, []).append((value, line.cells[0]))
    return found


def draw_line(axis: Axes, cells: Sequence[Cell]) -> None:
    """One panel's line, broken where a cell is empty."""
    values = [cell.value if drawable(cell) else math.nan for cell in cells]
    axis.plot(range(len(cells)), values, color=COLOURS[0], marker="o", linewidth=2)
    whiskers(axis, range(len(cells)), cells, COLOURS[0])
    for at, cell in enumerate(cells):
        if not drawable(cell):
            axis.annotate(
                "empty",
                (at, 0.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                rotation=90,
                fontsize=10,
                color=GREY,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 2},
            )
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def label_values(axes: Sequence[Axes], panels: Sequence[Sequence[str]]) -> None:
    """The values at equal distances; upright where they would run into each other."""
    letters = max(len(values) * max(map(len, values)) for values in panels)
    pixels = 0.85 * WIDTH / len(panels) / letters
    size, rotation = (11, 0) if pixels > 10 else (9, 0) if pixels > 8 else (9, 90)
    for axis, values in zip(axes, panels, strict=True):
        axis.set_xticks(range(len(values)), values, fontsize=size, rotation=rotation)
        axis.set_xlim(-0.5, len(values) - 0.5)


def draw_own_rows(axis: Axes, rendered: Rendered) -> None:
    ours = [line for line in rendered.lines if line.ours]
    for line, colour in zip(ours, itertools.cycle(COLOURS[1:])):
        cell, label = line.cells[0], f"{row_label(line.labels)} (ours)"
        drawn = drawable(cell)
        axis.axhline(
            cell.value if drawn else math.nan,
            color=colour,
            linestyle="--",
            linewidth=1.5,
            label=label if drawn else f"{label}: empty",
        )


# --- scatter ------------------------------------------------------------------------------------
def scatter(points: Mapping[str, np.ndarray], rendered: Rendered) -> Figure:
    """A panel for each data set, a colour and a marker for each modality.

    `points` has columns of equal length: dataset, modality, x and y.
    """
    datasets, modalities = (
        list(dict.fromkeys(points[name].tolist())) for name in ("dataset", "modality")
    )
    assert len(modalities) <= len(MODALITIES)
    size = float(np.clip(36_000 / len(points["x"]), 7, 40))
    with plain_style():
        remark = f"A point for each item and modality. Seed 0. Preset {rendered.preset}."
        figure, axes = canvas(rendered, remark, columns=len(datasets))
        for axis, dataset in zip(axes, datasets, strict=True):
            for modality, (colour, marker) in zip(modalities, MODALITIES, strict=False):
                ours = (points["dataset"] == dataset) & (points["modality"] == modality)
                axis.scatter(
                    points["x"][ours],
                    points["y"][ours],
                    s=size,
                    c=colour,
                    marker=marker,
                    alpha=0.75,
                    linewidths=0,
                )
            axis.set_title(dataset, fontsize=12)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_aspect("equal", adjustable="datalim")
        handles = [
            axes[0].scatter([], [], s=60, c=colour, marker=marker, label=modality)
            for modality, (colour, marker) in zip(modalities, MODALITIES, strict=False)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


# --- examples -----------------------------------------------------------------------------------
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


# --- all ----------------------------------------------------------------------------------------
def seeds_remark(rendered: Rendered) -> str:
    if rendered.seeds == 1:
        return f"One seed. Preset {rendered.preset}."
    seeds = f"Mean over {rendered.seeds} seeds, whiskers: standard deviation."
    if rendered.chosen:
        seeds = f"Best of {rendered.seeds} seeds by validation, whiskers: their mean ± deviation."
    return f"{seeds} Preset {rendered.preset}."


def canvas(
    rendered: Rendered, remark: str, columns: int, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure with its head, and its panels side by side."""
    figure = sheet(rendered, remark)
    return figure, list(figure.subplots(1, columns, sharey=sharey, squeeze=False).ravel())


def sheet(rendered: Rendered, remark: str) -> Figure:
    """An empty figure with its head, and room for panels under it."""
    heads = head_lines(rendered, remark)
    figure = headed(heads, HEIGHT)
    rect = (0.01, 0.01, 0.98, 0.98 - head_height(heads) / HEIGHT)
    figure.set_layout_engine("constrained", rect=rect, hspace=0.06, wspace=0.04)
    return figure


def head_lines(rendered: Rendered, remark: str) -> list[tuple[str, float, str]]:
    """Title, what keeps the picture from being compared, and how to read it: (text, size, colour).

    A long title is set in smaller letters.
    """
    title = rendered.heading
    heads = [(title, min(16, 1400 / len(title)), "black"), (caveat(rendered), 12.0, WARNING)]
    return [head for head in (*heads, (remark, 10.0, GREY)) if head[0]]


def head_height(heads: Sequence[tuple[str, float, str]]) -> float:
    """In pixels."""
    return 10.5 + sum(2.2 * size for _, size, _ in heads)


def headed(heads: Sequence[tuple[str, float, str]], height: float) -> Figure:
    """A figure of a height in pixels that is empty but for its head."""
    from matplotlib.figure import Figure

    figure, used = Figure((WIDTH / DOTS, height / DOTS), dpi=DOTS), 10.5
    for text, size, colour in heads:
        figure.text(
            0.5, 1 - used / height, text, fontsize=size, color=colour, ha="center", va="top"
        )
        used += 2.2 * size
    return figure


def caveat(rendered: Rendered) -> str:
    """Why the picture cannot be held against the paper's; empty where it can."""
    if rendered.preset == "demo":
        return "synthetic data: not comparable with the paper"
    if any(cell.unlike for line in rendered.lines for cell in line.cells):
        return f"not comparable with the paper, for the reasons in {rendered.table.file}.md"
    return ""
