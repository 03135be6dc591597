"""Figures as pictures: bars or lines over a table's cells, or the points of items in a plane; and
the head that every picture has. Examples in words and images are in `pages`.

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.rendering import Cell, Line, Rendered, fixed
from reprokit.runs import replacing
from reprokit.tables import Column, row_label

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
    cuts = {value_columns(rendered)[at].metric.rpartition("@")[2] for at in columns}
    cut = f"@{cuts.pop()}" if metric.endswith("@k") and len(cuts) == 1 else ""
    return LABELS.get(metric, metric) + cut


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
