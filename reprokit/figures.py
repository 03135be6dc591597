"""Figures as pictures: bars or lines over a table's cells, or the points of items in a plane.

Pure functions of what is drawn: the same numbers give the same bytes. matplotlib is used without
pyplot and with its own default style, so that neither a window system nor a user's style plays in.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reprokit.runs import replacing
from reprokit.tables import Cell, Column, Rendered, fixed, row_label

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
    """A group for each row, a colour for each column, a panel for each metric.

    A bar is the mean over seeds, its whisker one standard deviation; an empty cell says so.
    """
    panels = panels_of(rendered)
    n_bars = len(rendered.lines) * max(map(len, panels.values()))
    with plain_style():
        figure, axes = canvas(rendered, seeds_remark(rendered), rows=len(panels))
        for axis, (metric, columns) in zip(axes, panels.items(), strict=True):
            draw_bars(axis, rendered, columns, 0.5 if metric in CHANCE else 0.0, len(panels))
            axis.set_ylabel(y_label(rendered, metric, columns))
        label_rows(axes[-1], rendered)
        if n_bars > len(rendered.lines):
            figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def panels_of(rendered: Rendered) -> dict[str, list[int]]:
    """Columns that have a value, by metric."""
    found: dict[str, list[int]] = {}
    for at, column in enumerate(value_columns(rendered)):
        if any(drawable(line.cells[at]) for line in rendered.lines):
            found.setdefault(column.definition or column.metric, []).append(at)
    return found


def value_columns(rendered: Rendered) -> list[Column]:
    published = rendered.table.published
    declared = {column.name: column for column in rendered.table.columns}
    return [declared[name] for name in published.header[published.n_labels :]]


def drawable(cell: Cell) -> bool:
    return bool(cell.values) and math.isfinite(cell.mean)


def draw_bars(
    axis: Axes, rendered: Rendered, columns: Sequence[int], base: float, panels: int
) -> None:
    """One panel; bars start at `base`."""
    names, lines = [column.name for column in value_columns(rendered)], rendered.lines
    width = 0.8 / len(columns)
    pixels = 0.9 * WIDTH * width / len(lines)
    size, rotation = (10, 0) if pixels > 52 else (8, 0) if pixels > 40 else (7, 90)
    ends = [base]
    for place, index in enumerate(columns):
        shift = (place - (len(columns) - 1) / 2) * width
        at = [x for x, line in enumerate(lines) if drawable(line.cells[index])]
        cells = [lines[x].cells[index] for x in at]
        axis.bar(
            [x + shift for x in at],
            [cell.mean - base for cell in cells],
            0.92 * width,
            bottom=base,
            yerr=[math.nan if cell.std is None else cell.std for cell in cells],
            error_kw={"ecolor": "#222222", "elinewidth": 1.2, "capsize": 4},
            color=COLOURS[index % len(COLOURS)],
            hatch="//" if index >= len(COLOURS) else "",
            edgecolor="white",
            label=names[index],
        )
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
    set_limits(axis, base, ends, (50 if rotation else 22) * panels / (0.6 * HEIGHT))
    axis.axhline(base, color="#222222", linewidth=1.2)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(axis="x", length=0)


def bar_label(rendered: Rendered, cell: Cell, column: str, base: float) -> tuple[str, float, bool]:
    """The text of a bar, where its whisker ends, and whether the bar goes up."""
    if not drawable(cell):
        return "" if cell.blank else "empty", base, True
    up, std = cell.mean >= base, cell.std or 0.0
    text = fixed(cell.mean, rendered.table.decimals(column))
    return text, cell.mean + std if up else cell.mean - std, up


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


def label_rows(axis: Axes, rendered: Rendered) -> None:
    width = max(8, int(0.9 * WIDTH / len(rendered.lines) / 9))
    labels = [row_label(line.labels) + " (ours)" * line.ours for line in rendered.lines]
    wrapped = [textwrap.fill(label, width) for label in labels]
    axis.set_xticks(range(len(labels)), wrapped, fontsize=11)
    axis.set_xlim(-0.55, len(labels) - 0.45)


# --- lines --------------------------------------------------------------------------------------
def lines(rendered: Rendered) -> Figure:
    """A panel for each name of the rows "name = value", side by side: a line over its values.

    A point is the mean over seeds, its whisker one standard deviation; an empty cell says so and
    leaves a gap. Our own rows are dashed lines through all panels. Only for a table of one column.
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
    axis.errorbar(
        range(len(cells)),
        [cell.mean if drawable(cell) else math.nan for cell in cells],
        yerr=[math.nan if cell.std is None else cell.std for cell in cells],
        color=COLOURS[0],
        marker="o",
        linewidth=2,
        elinewidth=1.2,
        capsize=4,
    )
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
            cell.mean if drawn else math.nan,
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
    return f"{seeds} Preset {rendered.preset}."


def canvas(
    rendered: Rendered, remark: str, rows: int = 1, columns: int = 1, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure with its title, what keeps it from being compared, and how to read it."""
    from matplotlib.figure import Figure

    figure, table = Figure((WIDTH / DOTS, HEIGHT / DOTS), dpi=DOTS), rendered.table
    title, warning = f"{table.id}: {table.title}", caveat(rendered)
    heads = [(title, 16, "black"), (warning, 12, WARNING), (remark, 10, GREY)]
    top = 0.985
    for text, size, colour in heads:
        if text:
            figure.text(0.5, top, text, fontsize=size, color=colour, ha="center", va="top")
            top -= 2.2 * size / HEIGHT
    rect = (0.01, 0.01, 0.98, top - 0.02)
    figure.set_layout_engine("constrained", rect=rect, hspace=0.06, wspace=0.04)
    axes = figure.subplots(rows, columns, sharex=rows > 1, sharey=sharey, squeeze=False)
    return figure, list(axes.ravel())


def caveat(rendered: Rendered) -> str:
    """Why the picture cannot be held against the paper's; empty where it can."""
    if rendered.preset == "demo":
        return "synthetic data: not comparable with the paper"
    if any(cell.unlike for line in rendered.lines for cell in line.cells):
        return f"not comparable with the paper, for the reasons in {rendered.table.name}.md"
    return ""
