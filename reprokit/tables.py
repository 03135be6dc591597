"""Published tables, their declarations, and ours beside them as CSV, Markdown and JSON.

The CSV in `paper_tables/` fixes a table's shape: header, rows, order, digits. A paper's module
declares how cells are made; a published row without a declaration is not built yet. Rendering is a
pure function of cells.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from reprokit.metrics import METRICS, rela_impr


@dataclass(frozen=True)
class Column:
    """A value column: the published header, and what fills it."""

    name: str
    metric: str
    """Name in a run's metrics, or `rela_impr` of the row's AUC over its base row's."""
    dataset: str = ""
    """Empty where the row names the data set."""
    tolerance: float = 0.01
    """Largest difference from print that counts as reproduced; 0 asks for equality."""
    definition: str = ""
    """Key of `metrics.METRICS`, shown in the protocol card."""


@dataclass(frozen=True)
class Row:
    """A row that is built: the system behind it."""

    label: str
    """The published labels joined by " / "."""
    system: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    base: str = ""
    """Label of the row that RelaImpr compares with."""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """One published table (or, with no CSV, a figure)."""

    id: str
    title: str
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()
    sanity: tuple[Row, ...] = ()
    """Rows that the paper lacks, printed under its own and marked as ours."""
    labels: int = 1
    """Number of label columns of the published CSV."""
    seeds: int = 5
    protocol: tuple[tuple[str, str], ...] = ()
    """What was measured and how: (topic, text)."""
    open_points: tuple[str, ...] = ()
    """What the paper leaves open or gets wrong, and what we chose."""

    @property
    def paper(self) -> str:
        return self.id.split("/")[0]

    @property
    def name(self) -> str:
        return self.id.split("/")[1]

    @property
    def is_figure(self) -> bool:
        return self.name.startswith("figure")

    @cached_property
    def published(self) -> Published:
        return read_published(self)

    @property
    def datasets(self) -> tuple[str, ...]:
        """In order of appearance."""
        named = [column.dataset for column in self.columns] + [row.dataset for row in self.rows]
        return tuple(dict.fromkeys(name for name in named if name))


@dataclass(frozen=True)
class Published:
    """A table as printed; every cell a string with the printed digits."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_labels: int

    @cached_property
    def labels(self) -> list[str]:
        return [row_label(row[: self.n_labels]) for row in self.rows]

    def cell(self, row: int, column: str) -> str:
        return self.rows[row][self.header.index(column)]

    def decimals(self, column: str) -> int:
        """The most decimals printed in a column."""
        at = self.header.index(column)
        return max((len(row[at].partition(".")[2]) for row in self.rows), default=0)


def row_label(labels: Sequence[str]) -> str:
    return " / ".join(label or "-" for label in labels)


def published_folder() -> Path:
    """`paper_tables/` beside the package in a checkout, inside it when installed."""
    inside = Path(__file__).parent / "paper_tables"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "paper_tables"


def read_published(table: Table) -> Published:
    path = published_folder() / f"{table.paper}_{table.name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = (tuple(row) for row in csv.reader(file))
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}, row '{row[0]}': {len(row)} cells for {len(header)} columns")
    for column in table.columns:
        if column.name not in header:
            raise ValueError(f"{path} has no column '{column.name}', which {table.id} declares")
    published = Published(header, tuple(rows), table.labels)
    for declared in table.rows:
        if declared.label not in published.labels:
            raise ValueError(f"{path} has no row '{declared.label}', which {table.id} declares")
    return published


# --- cells --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cell:
    """Our side of one cell: one value per finished seed, or the reason why there is none."""

    values: tuple[float, ...] = ()
    reason: str = ""
    blank_in_print: bool = False
    """The paper prints nothing here and nothing is missing."""

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds, None for one."""
        return stdev(self.values) if len(self.values) > 1 else None


def improvement(cell: Cell, base: Cell | None) -> Cell:
    """RelaImpr of the mean AUC over the base row's, as the paper computes it from means."""
    if not cell.values:
        return cell
    if base is None or not base.values:
        return Cell(reason="the base row has no value")
    return Cell(values=(rela_impr(cell.mean, base.mean),))


@dataclass(frozen=True)
class Line:
    """One rendered row."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    """One per value column of the published CSV."""
    printed: tuple[str, ...]
    """The published strings; empty for our own rows."""
    ours: bool = False


@dataclass(frozen=True)
class Rendered:
    """A finished table: what the three renderings need, and nothing else."""

    table: Table
    lines: tuple[Line, ...]
    preset: str
    comparable: bool
    """False where data, backbones or sizes are not the paper's: no verdict is given."""
    seeds: int
    command: str
    notes: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str, str], ...] = ()
    """(system, setting, value, reason)."""


def verdict(cell: Cell, printed: str, tolerance: float, comparable: bool) -> str:
    """One word or two: how our cell stands to the published one.

    `equal` (counts), `reproduced`: within the tolerance, or print within two standard deviations
    of our mean; `differs` otherwise; `not comparable`, `not printed` and `empty` say why there is
    nothing to judge.
    """
    if cell.blank_in_print:
        return "not printed"
    if not cell.values:
        return "empty"
    if not comparable:
        return "not comparable"
    value = number(printed)
    if value is None:
        return "not printed"
    gap = abs(cell.mean - value)
    if tolerance == 0:
        return "equal" if gap == 0 else "differs"
    return "reproduced" if gap <= max(tolerance, 2 * (cell.std or 0.0)) else "differs"


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else str(value)


def to_csv(rendered: Rendered) -> str:
    """Ours in the published shape: same header, rows and order; the mean over seeds, or nothing."""
    published = rendered.table.published
    rows = []
    for line in rendered.lines:
        if not line.ours:
            values = [
                fixed(cell.mean, published.decimals(name)) if cell.values else ""
                for name, cell in zip(
                    published.header[published.n_labels :], line.cells, strict=True
                )
            ]
            rows.append([*line.labels, *values])
    return csv_text([list(published.header), *rows])


def to_compare_csv(rendered: Rendered) -> str:
    """Long form: one line per cell, our own rows included."""
    header = [
        *("row", "column", "published", "mean", "std", "n"),
        *("difference", "verdict", "reason"),
    ]
    rows = []
    for line in rendered.lines:
        for column, cell, printed in columns_of(rendered, line):
            value = number(printed)
            has = bool(cell.values)
            rows.append(
                [
                    row_label(line.labels),
                    column.name,
                    printed,
                    f"{cell.mean:.6g}" if has else "",
                    "" if cell.std is None else f"{cell.std:.3g}",
                    str(len(cell.values)),
                    f"{cell.mean - value:+.4g}" if has and value is not None else "",
                    "ours" if line.ours else verdict_of(rendered, column, cell, printed),
                    cell.reason,
                ]
            )
    return csv_text([header, *rows])


def columns_of(rendered: Rendered, line: Line) -> list[tuple[Column, Cell, str]]:
    published = rendered.table.published
    declared = {column.name: column for column in rendered.table.columns}
    names = published.header[published.n_labels :]
    printed = line.printed or ("",) * len(names)
    return [
        (declared.get(name, Column(name, "")), cell, text)
        for name, cell, text in zip(names, line.cells, printed, strict=True)
    ]


def verdict_of(rendered: Rendered, column: Column, cell: Cell, printed: str) -> str:
    return verdict(cell, printed, column.tolerance, rendered.comparable)


def csv_text(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up, so that it reads well in a terminal too."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[at]) for row in escaped)) for at in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in escaped
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def to_grid(rendered: Rendered) -> str:
    """The table itself: each cell is ours, its spread over seeds, and print in brackets."""
    published = rendered.table.published
    footnotes = reasons(rendered)
    rows = [list(published.header)]
    for line in rendered.lines:
        cells = []
        for column, cell, printed in columns_of(rendered, line):
            decimals = published.decimals(column.name)
            if cell.values:
                text = fixed(cell.mean, decimals)
                if cell.std is not None:
                    text += f" ± {fixed(cell.std, decimals)}"
            elif cell.blank_in_print:
                text = ""
            else:
                text = f"[{footnotes[cell.reason]}]"
            cells.append(f"{text} ({printed})" if printed else text)
        labels = [*line.labels]
        if line.ours:
            labels[0] += " (ours)"
        rows.append([*labels, *cells])
    return grid(rows)


def reasons(rendered: Rendered) -> dict[str, int]:
    """Why cells are empty, numbered in order of appearance."""
    found: dict[str, int] = {}
    for line in rendered.lines:
        for cell in line.cells:
            if not cell.values and not cell.blank_in_print:
                found.setdefault(cell.reason, len(found) + 1)
    return found


def to_markdown(rendered: Rendered) -> str:
    """The table with everything a reader needs to judge it."""
    table = rendered.table
    parts = [f"# {table.id}: {table.title}"]
    if not rendered.comparable:
        parts.append(
            "**These numbers are not comparable with the paper's**: the `demo` preset runs small "
            "models on synthetic data. Use `--preset small` or `--preset paper` for real data."
        )
    several = (
        f"mean ± standard deviation over {rendered.seeds} seeds"
        if rendered.seeds > 1
        else "one seed"
    )
    parts.append(
        f"Each cell: ours ({several}), the published number in brackets. Preset "
        f"`{rendered.preset}`."
    )
    parts.append(to_grid(rendered))
    if empty := reasons(rendered):
        parts.append("\n".join(f"[{mark}] {reason}  " for reason, mark in empty.items()))
    if rendered.comparable:
        parts.append(verdicts(rendered))
    if any(line.ours for line in rendered.lines):
        parts.append("Rows marked (ours) are sanity checks that the paper does not print.")
    parts.append("Command: `" + rendered.command + "`")
    parts.append("## Protocol\n\n" + protocol(rendered))
    if table.open_points:
        parts.append(
            "## What the paper leaves open, and what we chose\n\n"
            + "\n".join(f"{at}. {text}" for at, text in enumerate(table.open_points, 1))
        )
    if rendered.settings:
        rows = [("System", "Setting", "Value", "Reason"), *rendered.settings]
        parts.append("## Settings\n\n" + grid(rows))
    return "\n\n".join(parts) + "\n"


def verdicts(rendered: Rendered) -> str:
    rows = [("Row", "Column", "Ours", "Published", "Difference", "Verdict")]
    judged = set()
    for line in rendered.lines:
        for column, cell, printed in columns_of(rendered, line):
            value = number(printed)
            if cell.values and value is not None:
                decimals = rendered.table.published.decimals(column.name)
                judged.add(column.name)
                rows.append(
                    (
                        row_label(line.labels),
                        column.name,
                        fixed(cell.mean, decimals),
                        printed,
                        f"{cell.mean - value:+.{decimals}f}",
                        verdict_of(rendered, column, cell, printed),
                    )
                )
    if len(rows) == 1:
        return "No cell has both our number and a published one."
    exact = [c.name for c in rendered.table.columns if c.tolerance == 0 and c.name in judged]
    near = {c.definition: c.tolerance for c in rendered.table.columns if c.name in judged}
    text = "Equal means equal to the last digit."
    if len(exact) < len(judged):
        rule = ", ".join(f"{name} within {value:g}" for name, value in near.items() if value)
        text = f"Reproduced: {rule} of print, or print within two standard deviations of our mean."
    return grid(rows) + "\n\n" + text


def protocol(rendered: Rendered) -> str:
    table = rendered.table
    used = dict.fromkeys(column.definition for column in table.columns if column.definition)
    lines = [f"- **{topic}**: {text}" for topic, text in table.protocol]
    lines += [f"- **Metric {name}**: {METRICS[name]}" for name in used]
    if table.columns:
        last = rendered.seeds - 1
        lines.append(
            "- **Seeds**: "
            + (f"0 to {last}; " if last else "0; ")
            + "a seed decides initial weights, the order of rows and dropout, never the split."
        )
    lines += [f"- **Note**: {note}" for note in rendered.notes]
    return "\n".join(lines)


def to_text(table: Table) -> str:
    """The published table, for `show`."""
    published = table.published
    return grid([published.header, *published.rows])
