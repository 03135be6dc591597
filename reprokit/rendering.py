"""Our side of a table: its cells, and ours beside the published numbers as CSV, grid and Markdown.

Every rendering is a pure function of `Rendered`. What is printed and declared is in `tables`.
"""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from reprokit.metrics import METRICS, rela_impr
from reprokit.tables import Column, Table, row_label


@dataclass(frozen=True)
class Cell:
    """Our side of one cell: one value per finished seed, or the reason why there is none."""

    values: tuple[float, ...] = ()
    text: str = ""
    """For a cell of words."""
    reason: str = ""
    blank: bool = False
    """The paper prints nothing here and nothing is missing."""
    unlike: str = ""
    """Why the value cannot be compared with print: other data, settings or backbones."""
    derived: bool = False
    """Computed from other cells; those are judged."""
    best: float | None = None
    """Of the seed that validation prefers, where the best of several fills the cell."""

    @property
    def made(self) -> bool:
        return bool(self.values or self.text)

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def value(self) -> float:
        """What fills the cell and is judged."""
        return self.mean if self.best is None else self.best

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds, None for one."""
        return stdev(self.values) if len(self.values) > 1 else None


def improvement(cell: Cell, base: Cell) -> Cell:
    """RelaImpr of one cell's AUC over the base row's, as the paper computes it from means."""
    if not cell.values:
        return cell
    if not base.values:
        return Cell(reason="the base row has no value")
    unlike = cell.unlike or base.unlike
    return Cell(values=(rela_impr(cell.value, base.value),), unlike=unlike, derived=True)


@dataclass(frozen=True)
class Line:
    """One rendered row."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    """One per value column of the published CSV."""
    printed: tuple[str, ...]
    """The published strings; empty for our own rows."""
    ours: bool = False
    note: str = ""
    """Marks the row with a star, and stands under the table."""


@dataclass(frozen=True)
class Rendered:
    """A finished table: what the three renderings need, and nothing else."""

    table: Table
    lines: tuple[Line, ...]
    preset: str
    seeds: int
    command: str
    notes: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str, str], ...] = ()
    """(system, setting, value, reason)."""

    @property
    def heading(self) -> str:
        """Target and title, and the data set where it is another one than the paper's."""
        title = f"{self.table.id}: {self.table.title}"
        return f"{title}, on {self.instead}" if self.instead else title

    @property
    def instead(self) -> str:
        """The data set in place of the paper's, as its runs have it."""
        prefix = "demo-" if self.preset == "demo" and self.table.instead else ""
        return prefix + self.table.instead

    @property
    def chosen(self) -> bool:
        """Whether cells have the best of several runs."""
        return bool(self.table.best_by) and self.seeds > 1


def verdict(cell: Cell, printed: str, tolerance: float) -> str:
    """How our cell stands to the published one, in a word or two.

    `equal` (counts), `reproduced`: within the tolerance, or print within two standard deviations
    of our number; `differs` otherwise. `not comparable`, `derived`, `not printed` and `empty` say
    why there is nothing to judge.
    """
    if cell.blank:
        return "not printed"
    if not cell.made:
        return "empty"
    if cell.unlike:
        return "not comparable"
    if cell.derived:
        return "derived"
    if cell.text and printed:
        return "equal" if cell.text == printed else "differs"
    value = number(printed)
    if value is None:
        return "not printed"
    gap = abs(cell.value - value)
    if tolerance == 0:
        return "equal" if gap == 0 else "differs"
    spread = 2 * (cell.std or 0.0) if cell.best is None else 0.0  # the mean's, not the best run's
    return "reproduced" if gap <= max(tolerance, spread) else "differs"


def shown(cell: Cell, decimals: int) -> str:
    """Our value as the CSV has it; empty where there is none."""
    if cell.values:
        return fixed(cell.value, decimals)
    return cell.text


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if math.isfinite(value) else str(value)


def to_csv(rendered: Rendered) -> str:
    """Ours in the published shape: same header, rows and order; a number, a text or nothing."""
    published = rendered.table.published
    names = published.header[published.n_labels :]
    rows = [
        [*line.labels]
        + [shown(c, rendered.table.decimals(n)) for n, c in zip(names, line.cells, strict=True)]
        for line in rendered.lines
        if not line.ours
    ]
    return csv_text([list(published.header), *rows])


COMPARE = "row,column,published,best,mean,std,n,difference,verdict,reason"


def to_compare_csv(rendered: Rendered) -> str:
    """Long form: one line per cell, our own rows included."""
    rows = [COMPARE.split(",")]
    for line, column, cell, printed in spread(rendered):
        value = number(printed)
        difference = f"{cell.value - value:+.4g}" if cell.values and value is not None else ""
        rows.append(
            [
                row_label(line.labels),
                column.name,
                printed,
                "" if cell.best is None else f"{cell.best:.9g}",
                f"{cell.mean:.9g}" if cell.values else cell.text,
                "" if cell.std is None else f"{cell.std:.3g}",
                str(len(cell.values)),
                difference,
                "ours" if line.ours else verdict(cell, printed, column.tolerance),
                cell.reason or cell.unlike,
            ]
        )
    return csv_text(rows)


def spread(rendered: Rendered) -> Iterator[tuple[Line, Column, Cell, str]]:
    """Every cell with its line, its column and the published string."""
    for line in rendered.lines:
        for column, cell, printed in columns_of(rendered, line):
            yield line, column, cell, printed


def columns_of(rendered: Rendered, line: Line) -> Iterator[tuple[Column, Cell, str]]:
    """The cells of a line with their columns and the published strings."""
    published = rendered.table.published
    declared = {column.name: column for column in rendered.table.columns}
    names = published.header[published.n_labels :]
    for name, cell, text in zip(names, line.cells, line.printed or ("",) * len(names), strict=True):
        yield declared.get(name, Column(name, "")), cell, text


def csv_text(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def grid(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up, so that it reads well in a terminal too."""
    escaped = [["<br>".join(c.replace("|", "\\|").splitlines()) for c in row] for row in rows]
    widths = [max(3, *(len(row[at]) for row in escaped)) for at in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in escaped
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def to_grid(rendered: Rendered) -> str:
    """The table itself: each cell is ours, its spread over seeds, and print in brackets."""
    marks = reasons(rendered)
    rows = [list(rendered.table.published.header)]
    for line in rendered.lines:
        cells = columns_of(rendered, line)
        rows.append([*head_of(line), *(cell_text(rendered, *one, marks) for one in cells)])
    return grid(rows)


def head_of(line: Line) -> list[str]:
    """The labels of a row, with what marks it."""
    marks = " (ours)" * line.ours + " *" * bool(line.note)
    return [line.labels[0] + marks, *line.labels[1:]]


def cell_text(
    rendered: Rendered, column: Column, cell: Cell, printed: str, marks: Mapping[str, int]
) -> str:
    """A cell as a reader sees it: the best run if one was chosen, mean and spread, and print."""
    decimals = rendered.table.decimals(column.name)
    text = shown(cell, decimals)
    if cell.best is not None:
        text += f"; {fixed(cell.mean, decimals)}"
    if cell.std is not None:
        text += f" ± {fixed(cell.std, decimals)}"
    if not cell.made and not cell.blank:
        text = f"[{marks[cell.reason]}]"
    return f"{text} ({printed})" if printed else text


LONG = 100
"""Letters from which on a text has no place in a grid."""


def body(rendered: Rendered, markdown: bool) -> str:
    """The cells as a grid; those of a table with long texts as a section for each row."""
    texts = [cell.text for line in rendered.lines for cell in line.cells]
    if any(len(text) > LONG or len(text.splitlines()) > 1 for text in texts):
        return to_sections(rendered, markdown)
    return to_grid(rendered)


def to_sections(rendered: Rendered, markdown: bool) -> str:
    """A section for each row, with all its texts in full: quoted in Markdown, else indented."""
    marks, parts = reasons(rendered), []
    for line in rendered.lines:
        head = row_label(head_of(line))
        parts.append(f"### {literal(head)}" if markdown else head)
        for column, cell, printed in columns_of(rendered, line):
            text = cell_text(rendered, column, cell, printed, marks)
            if cell.blank:
                continue
            if markdown:
                parts.append(f"**{literal(column.name)}**")
                parts.append("\n".join(f"> {literal(row)}  " for row in text.splitlines()))
            else:
                rows = [row for one in text.splitlines() for row in textwrap.wrap(one, 92) or [""]]
                parts.append("\n".join([f"  {column.name}", *(f"    {row}" for row in rows)]))
    return "\n\n".join(parts)


def literal(text: str) -> str:
    """A line of text that Markdown shows as it is."""
    special = r"([\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;))"
    text = re.sub(special, r"\\\1", text.strip())
    return re.sub(r"^(\d+(?=[.)])|(?=[#+=-]))", r"\1\\", text)  # else a heading, or a list


def reasons(rendered: Rendered) -> dict[str, int]:
    """Why cells are empty, numbered in order of appearance."""
    found: dict[str, int] = {}
    for line in rendered.lines:
        for cell in line.cells:
            if not cell.made and not cell.blank:
                found.setdefault(cell.reason, len(found) + 1)
    return found


def footnotes(rendered: Rendered) -> list[str]:
    """What stands right under the table: why cells are empty, what marks a row, and what keeps
    rows from being compared with print."""
    lines = [f"[{mark}] {reason}" for reason, mark in reasons(rendered).items()]
    lines += [f"* {row_label(line.labels)}: {line.note}" for line in rendered.lines if line.note]
    if rendered.preset != "demo":  # there the whole table cannot be compared
        lines += [
            f"not comparable with the paper: {', '.join(rows)}: {reason}"
            for reason, rows in unlike_rows(rendered).items()
        ]
    return lines


def unlike_rows(rendered: Rendered) -> dict[str, list[str]]:
    """By reason: the rows that have a cell which cannot be compared with print."""
    found: dict[str, list[str]] = {}
    for line in rendered.lines:
        for reason in dict.fromkeys(cell.unlike for cell in line.cells if cell.unlike):
            found.setdefault(reason, []).append(row_label(line.labels))
    return found


def to_markdown(rendered: Rendered, picture: str = "") -> str:
    """The table with everything a reader needs to judge it; `picture` is a figure's file name."""
    table = rendered.table
    parts = [f"# {rendered.heading}"]
    if rendered.preset == "demo":
        parts.append(
            "**These numbers are not comparable with the paper's**: the `demo` preset runs small "
            "models on synthetic data. Use `--preset small` or `--preset paper` for real data."
        )
    if rendered.instead:
        parts.append(
            f"**Made on {rendered.instead}**, which the paper does not use: no number here can "
            "reproduce one of its numbers."
        )
    parts.append(reading(rendered))
    if picture:
        parts.append(f"![{table.title}]({picture})")
    parts.append(body(rendered, markdown=True))
    if notes := footnotes(rendered):
        parts.append("\n".join(("\\" if note[0] == "*" else "") + note + "  " for note in notes))
    if rendered.preset != "demo" and not table.is_figure:
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


def reading(rendered: Rendered) -> str:
    """How to read a cell."""
    n, table = rendered.seeds, rendered.table
    several = f"mean ± standard deviation over {n} seeds" if n > 1 else "one seed"
    if rendered.chosen:
        several = f"the best of {n} seeds by `{table.best_by}`; {several}"
    if table.is_figure:
        printed = f"; {table.nothing_printed}, so there is nothing to compare with."
    else:
        own = ", on the paper's own data," if rendered.instead else ""
        printed = f", the published number{own} in brackets."
    return f"Each cell: ours ({several}){printed} Preset `{rendered.preset}`."


def verdicts(rendered: Rendered) -> str:
    """Every cell that has both our number and a published one, and the rule that judges it."""
    rows = [("Row", "Column", "Ours", "Published", "Difference", "Verdict")]
    judged: dict[str, float] = {}
    for line, column, cell, printed in spread(rendered):
        value = number(printed)
        if not cell.values or value is None:
            continue
        decimals = rendered.table.decimals(column.name)
        word = verdict(cell, printed, column.tolerance)
        ours, gap = fixed(cell.value, decimals), f"{cell.value - value:+.{decimals}f}"
        rows.append((row_label(line.labels), column.name, ours, printed, gap, word))
        if word not in ("not comparable", "derived"):
            judged[column.definition or column.name] = column.tolerance
    if len(rows) == 1:
        return "No cell has both our number and a published one."
    if not judged:
        return grid(rows) + "\n\nNone of these can be held against print: see above why."
    near = ", ".join(f"{name} within {value:g}" for name, value in judged.items() if value)
    rule = "Equal: the same count."
    if near:
        rule = f"Reproduced: {near} of print, or print within two standard deviations of our mean."
        if rendered.chosen:
            rule = f"Reproduced: our best run's {near} of print."
    return grid(rows) + "\n\n" + rule


def protocol(rendered: Rendered) -> str:
    table = rendered.table
    used = dict.fromkeys(column.definition for column in table.columns if column.definition)
    lines = [f"- **{topic}**: {text}" for topic, text in table.protocol]
    lines += [f"- **Metric {name}**: {METRICS[name]}" for name in used]
    if rendered.chosen:
        lines.append(
            f"- **Best of the repeats**: a cell has the value of the run, of {rendered.seeds} that "
            f"differ in the seed alone, with the highest `{table.best_by}` (of equals, the lowest "
            "seed); the mean and spread over all of them stand beside it."
        )
    if rendered.seeds > 1:
        lines.append(
            f"- **Seeds**: 0 to {rendered.seeds - 1}; a seed decides initial weights, the order of "
            "rows and dropout, never the split."
        )
    lines += [f"- **Note**: {note}" for note in rendered.notes]
    return "\n".join(lines)


def to_text(table: Table) -> str:
    """The published table, for `show`; of a figure our rows."""
    published = table.published
    place = f", in place of {table.home}" if table.home else ""
    others = ", ".join(table.others)
    also = f"\n\nWith --dataset also on: {others}{place}." if table.others else ""
    if not table.is_figure:
        return grid([published.header, *published.rows]) + also
    kind = "A table of ours" if table.ours else "A figure"
    if not published.rows:
        return f"{kind}: {table.nothing_printed}. Not built yet."
    empty = ("",) * len(table.columns)
    ours = [(f"{row.label} (ours)", *empty) for row in table.sanity]
    rows = grid([published.header, *published.rows, *ours])
    return f"{kind}: {table.nothing_printed}. Our rows:\n\n{rows}{also}"
