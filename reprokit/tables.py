"""Published tables: what is printed, and how a paper's module declares that its cells are made.

The CSV in `paper_tables/` fixes a table's shape: header, rows, order, digits. A published row
without a declaration is not built yet. Our cells beside them are in `rendering`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Column:
    """A value column: the published header, and what fills it."""

    name: str
    metric: str
    """Name in a run's metrics; `{part}` stands for the row's part."""
    dataset: str = ""
    """Empty where the row names the data set."""
    system: str = ""
    """Where columns and not rows name the system."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    base_column: str = ""
    """Makes this column the RelaImpr of that one over the base row."""
    tolerance: float = 0.01
    """Largest difference from print that counts as reproduced; 0 asks for equality."""
    definition: str = ""
    """Key of `metrics.METRICS`, shown in the protocol card."""
    decimals: int = 4
    """Digits shown where the paper prints none to follow."""
    least: int = 0
    """Digits shown at least, where ours are on another scale than print."""


@dataclass(frozen=True)
class Row:
    """A row that is built: the system behind it."""

    label: str
    """The published labels joined by " / "."""
    system: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    part: str = ""
    """Fills `{part}` of the columns' metrics, such as the domain or the example that a row is
    about."""
    base: str = ""
    """Label of the row that RelaImpr compares with."""
    best_of: tuple[str, ...] = ()
    """Labels of rows; this row repeats the one with the best `Table.choose` on its data set."""
    note: str = ""
    """Printed under the table."""
    on_request: bool = False
    """Of a row of our own: with --row it is left out unless it is named."""
    columns: tuple[str, ...] = ()
    """Of a figure's row or one of our own: the columns that it has, all others stay blank. Empty:
    all of them. In a picture the rows with the same columns have panels of their own."""


@dataclass(frozen=True)
class Table:
    """One published table, or a figure: of that the paper prints a picture, and no CSV stands
    behind it. A figure that declares no rows is not built yet."""

    id: str
    title: str
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()
    sanity: tuple[Row, ...] = ()
    """Rows that the paper lacks, printed under its own and marked as ours."""
    labels: int = 1
    """Number of label columns of the published CSV."""
    label_header: str = "Variant"
    """Header of a figure's label column."""
    ours: bool = False
    """A table that the paper does not have, made from the same runs."""
    draw: str = "bars"
    """A figure as "bars" over its cells, as "scatter" of the points kept with its runs, or as
    "lines": its rows "name = value" are a panel for each name, a line over the values of its only
    column, and our own rows dashed lines; or as "examples": a row is an example, its cells are
    texts, and a picture of it may be kept with its run as `picture/` and the row's part. Empty:
    no picture is drawn."""
    others: tuple[str, ...] = ()
    """Data sets on which the table can be made too, though the paper did not."""
    home: str = ""
    """The data set that `others` stand in for, parts such as NAME-cold included; what the table
    names beside it is left out on them. Empty: they stand in for every data set."""
    instead: str = ""
    """The one of them that it is made on; see `on`."""
    seeds: int = 5
    demo_seeds: int = 2
    """In their place in the demo preset, where they are fewer."""
    choose: str = "valid/auc"
    """Validation metric by which a best-of row chooses; the mean over seeds, higher is better."""
    best_by: str = ""
    """Validation metric, higher is better, by which the best of a cell's runs fills it where the
    paper prints its best one; empty: the mean over the runs does."""
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
    def file(self) -> str:
        """Name of its files: those made on another data set stand beside the table's own."""
        return f"{self.name}-{self.instead}" if self.instead else self.name

    def on(self, dataset: str) -> Table:
        """The table with one of `others` in place of `home`, or of every data set that it names."""

        def moved(parts: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(replace(part, dataset=self.stand_in(part, dataset)) for part in parts)

        return replace(
            self,
            columns=moved(self.columns),
            rows=moved(self.rows),
            sanity=moved(self.sanity),
            instead=dataset,
        )

    def stand_in(self, part: Row | Column, dataset: str) -> str:
        """What a row or a column is made on where `dataset` takes the place of the home."""
        if not (part.dataset and self.home):
            return part.dataset and dataset
        if not within(self.home, part.dataset):
            return part.dataset
        return dataset + part.dataset.removeprefix(self.home)

    def is_left_out(self, dataset: str) -> bool:
        """Whether a data set is none of those that stand in for the paper's."""
        return bool(self.home and self.instead) and not within(self.instead, dataset)

    def moves(self, preset: str) -> Iterator[str]:
        """Which parts of a table with a home are made on what in place of what; a line each."""
        if not (self.home and self.instead):
            return
        every: tuple[Row | Column, ...] = (*self.columns, *self.rows)
        parts = [part for part in every if part.dataset]
        prefix = "demo-" if preset == "demo" else ""
        for name in dict.fromkeys(part.dataset for part in parts):
            here = [part for part in parts if part.dataset == name]
            names = ", ".join(p.name if isinstance(p, Column) else p.label for p in here)
            theirs = self.home + name.removeprefix(self.instead)
            if self.is_left_out(name):
                yield f"{names}: left out, since {self.instead} does not stand in for {name}"
            else:
                yield f"{names}: made on {prefix}{name} in place of {theirs}"

    @property
    def is_figure(self) -> bool:
        """Whether nothing is printed to stand beside ours: a figure, or a table of our own."""
        return self.ours or self.name.startswith("figure")

    @property
    def nothing_printed(self) -> str:
        if self.ours:
            return "the paper has no such table"
        if self.draw == "examples":
            return "the paper prints examples of its own"
        return "the paper prints a picture and no numbers"

    @cached_property
    def published(self) -> Published:
        return figure_frame(self) if self.is_figure else read_published(self)

    def decimals(self, column: str) -> int:
        """Digits of a column: as printed, else as declared."""
        printed = self.published.decimals(column)
        known = next((one for one in self.columns if one.name == column), None)
        if printed is None:
            return known.decimals if known else 0
        return max(printed, known.least) if known else printed

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

    def decimals(self, column: str) -> int | None:
        """The most decimals printed in a column; None where nothing is printed."""
        at = self.header.index(column)
        printed = [row[at] for row in self.rows if row[at]]
        return max((len(cell.partition(".")[2]) for cell in printed), default=None)


def within(whole: str, dataset: str) -> bool:
    """Whether a data set is another one or a part of it, as ml-25m-cold is of ml-25m."""
    return dataset == whole or dataset.startswith(f"{whole}-")


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


def figure_frame(table: Table) -> Published:
    """The table behind a figure: what is declared, and no number."""
    header = (table.label_header, *(column.name for column in table.columns))
    empty = ("",) * len(table.columns)
    return Published(header, tuple((row.label, *empty) for row in table.rows), 1)
