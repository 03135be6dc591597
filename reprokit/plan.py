"""From a request to runs: resolve the targets, and decide each cell before anything is executed.

A cell's run follows from its row and its column: either may name the system, the data set and
settings. Whatever is wrong with a request is said here, in one line, before work starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from reprokit import ccf_llm, explainrec, llm_emf, mmrec
from reprokit.data import Source
from reprokit.datasets import DATASETS, DataError
from reprokit.download import digest, megabytes
from reprokit.runs import PRESETS, RequestError, Run, System
from reprokit.tables import Column, Row, Table

PAPERS = {"ccf_llm": ccf_llm, "explainrec": explainrec, "llm_emf": llm_emf, "mmrec": mmrec}
NOT_BUILT = "not built yet"
NOT_REQUESTED = "not requested"
NO_DATA = "no data"
"""In place of the fingerprint of data that a dry run does not find."""


@dataclass(frozen=True)
class Request:
    """What a person typed after `reproduce`."""

    targets: tuple[str, ...]
    preset: str = "demo"
    rows: tuple[str, ...] = ()
    dataset: str = ""
    seeds: int = 0
    """0: the table's own number."""
    overrides: tuple[str, ...] = ()
    """`system.key=value`."""
    data_dir: Path = Path("data")
    out: Path = Path("results")
    shard: tuple[int, int] = (1, 1)
    fresh: bool = False
    dry_run: bool = False
    checkpoint_seconds: float = 20.0
    command: str = ""


@dataclass(frozen=True)
class Spot:
    """One cell of one table: the runs behind it, or why there are none.

    `line` counts the published rows first, then our own.
    """

    table: Table
    line: int
    name: str
    """Header of its column."""
    row: Row | None = None
    column: Column | None = None
    runs: tuple[Run, ...] = ()
    reason: str = ""
    requested: bool = True
    blank: bool = False
    """The paper prints nothing here."""


@dataclass(frozen=True)
class Plan:
    request: Request
    tables: tuple[Table, ...]
    spots: tuple[Spot, ...]
    notes: Mapping[str, tuple[str, ...]]
    """By data set: what a reader of a table made from it must know."""
    overrides: Mapping[str, Mapping[str, Any]]
    """By system: the settings that the user chose."""

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Every run behind a cell, requested or not."""
        return tuple(dict.fromkeys(run for spot in self.spots for run in spot.runs))

    @cached_property
    def wanted(self) -> tuple[Run, ...]:
        """The requested runs of this shard, each once."""
        runs = dict.fromkeys(run for spot in self.spots if spot.requested for run in spot.runs)
        index, count = self.request.shard
        return tuple(run for at, run in enumerate(runs) if at % count == index - 1)


def all_tables() -> list[Table]:
    return [table for paper in PAPERS.values() for table in paper.TABLES]


def resolve(targets: Sequence[str]) -> list[Table]:
    """`all`, a paper, `paper/table3`, or `table3` for every paper's Table 3."""
    tables = {table.id: table for table in all_tables()}
    chosen: dict[str, Table] = {}
    for target in targets:
        found = [t for t in tables.values() if target in ("all", t.paper, t.id, t.name)]
        if not found:
            known = [*tables, *PAPERS, *(t.name for t in tables.values()), "all"]
            raise RequestError(
                f"unknown target '{target}'{did_you_mean(target, known)} "
                "See: python -m reprokit list"
            )
        chosen |= {table.id: table for table in found}
    return list(chosen.values())


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, list(dict.fromkeys(known)), 1)
    return f". Did you mean '{close[0]}'?" if close else "."


def plan(request: Request) -> Plan:
    """Decide every run before anything is executed; what is wrong is said here."""
    if request.preset not in PRESETS:
        raise RequestError(
            f"unknown preset '{request.preset}'{did_you_mean(request.preset, PRESETS)} "
            f"Choose from {', '.join(PRESETS)}."
        )
    tables = resolve(request.targets)
    datasets = list(dict.fromkeys(name for table in tables for name in table.datasets))
    if request.dataset and request.dataset not in datasets:
        raise RequestError(
            f"no target has data set '{request.dataset}'{did_you_mean(request.dataset, datasets)} "
            f"These targets have: {', '.join(datasets) or 'none'}."
        )
    picked = pick_rows(request.rows, tables)
    planner = Planner(request, parse_overrides(request.overrides, tables))
    printed = [table for table in tables if not table.is_figure]
    spots = [spot for table in printed for spot in planner.spots(table, picked)]
    planned = Plan(request, tuple(tables), tuple(spots), planner.notes, planner.overrides)
    if spots and not any(spot.requested for spot in spots):
        raise RequestError(
            f"--row {' --row '.join(request.rows)} has no cell on {request.dataset}. "
            f"See: python -m reprokit show {tables[0].id}"
        )
    # Some missing data leaves empty cells; where nothing at all could be made the request is wrong.
    if planner.missing and not planned.wanted:
        raise DataError("; ".join(planner.missing.values()))
    return planned


class Planner:
    """Makes the spots of tables; fingerprints each data set at most once."""

    def __init__(self, request: Request, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        self.request = request
        self.overrides = overrides
        self.notes: dict[str, tuple[str, ...]] = {}
        self.known: dict[tuple[str, str, bool], tuple[str, str]] = {}
        self.missing: dict[str, str] = {}
        """Requested data sets that are not here, and what to do."""

    def actual(self, dataset: str) -> str:
        return f"demo-{dataset}" if self.request.preset == "demo" else dataset

    def fingerprint(self, paper: str, dataset: str, read: bool) -> tuple[str, str]:
        """(fingerprint, "") or ("", why there is none). A dry run goes on without the data."""
        name = self.actual(dataset)
        if (paper, name, read) not in self.known:
            source: Source = PAPERS[paper].DATASETS[name]
            cache, keep = self.request.out / "fingerprints.json", not self.request.dry_run
            try:
                found = source.fingerprint(self.request.data_dir, cache, read, keep)
                self.known[paper, name, read] = found, "" if found else NOT_REQUESTED
                if found:
                    self.notes[name] = tuple(differences(source, self.request.data_dir))
            except DataError as error:
                if read and not self.request.dry_run:
                    self.missing[name] = str(error)
                dry = read and self.request.dry_run
                self.known[paper, name, read] = (NO_DATA, "") if dry else ("", str(error))
        return self.known[paper, name, read]

    def spots(self, table: Table, picked: set[tuple[str, str]]) -> Iterator[Spot]:
        """All cells of a table: the published rows, then our own."""
        published = table.published
        columns = {column.name: column for column in table.columns}
        declared = {row.label: row for row in table.rows}
        asked = {label for label in published.labels if not picked or (table.id, label) in picked}
        # A requested row needs its base row, and a best-of row those it chooses from.
        for label in [label for label in asked if label in declared]:
            asked |= {declared[label].base, *declared[label].best_of} - {""}
        lines = [(declared.get(label), label in asked) for label in published.labels]
        lines += [(row, True) for row in table.sanity]
        for line, (row, requested) in enumerate(lines):
            for name in published.header[table.labels :]:
                ours = line >= len(published.rows)
                blank = not ours and not published.cell(line, name)
                column = columns.get(name)
                spot = Spot(table, line, name, row, column, requested=requested, blank=blank)
                yield self.decide(spot, ours)

    def decide(self, spot: Spot, ours: bool) -> Spot:
        """Add the runs, or the reason why there are none."""
        row, column, request = spot.row, spot.column, self.request
        if spot.blank or (ours and column and column.base_column):
            return dataclasses.replace(spot, blank=True, requested=False)
        dataset = (row.dataset if row else "") or (column.dataset if column else "")
        asked = spot.requested and request.dataset in ("", dataset)
        if row is None or column is None or not (row.best_of or row.system or column.system):
            reason = NOT_BUILT if asked else NOT_REQUESTED
            return dataclasses.replace(spot, reason=reason, requested=asked)
        if column.base_column or row.best_of:  # made from other cells
            return dataclasses.replace(spot, requested=asked)
        runs, missing = self.row_runs(spot.table, row, column, dataset, read=asked)
        reason = missing if asked else NOT_REQUESTED
        return dataclasses.replace(spot, runs=runs, reason=reason, requested=asked)

    def row_runs(
        self, table: Table, row: Row, column: Column, dataset: str, read: bool
    ) -> tuple[tuple[Run, ...], str]:
        """The runs of a cell, one per seed; or none, and the reason."""
        name = row.system or column.system
        system: System = PAPERS[table.paper].SYSTEMS[name]
        fingerprint, missing = self.fingerprint(table.paper, dataset, read)
        if missing:
            return (), missing
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        chosen = {**column.settings, **row.settings, **self.overrides.get(name, {})}
        try:
            settings = system.configure(dataset, self.request.preset, chosen)
        except ValueError as error:
            raise RequestError(f"settings of {name} on {dataset}: {error}") from None
        seeds = (self.request.seeds or table.seeds) if system.seeded else 1
        actual = self.actual(dataset)
        return tuple(
            Run(table.paper, name, actual, settings, seed, fingerprint, system.revision, precision)
            for seed in range(seeds)
        ), ""


def differences(source: Source, data_dir: Path) -> Iterator[str]:
    """What a reader of a table must know: stand-ins, and files that are not the publisher's."""
    if source.note:
        yield source.note
    if source.synthetic:
        return
    registered = DATASETS[source.registered]
    for path in source.paths(data_dir):
        file = next((f for f in registered.files if Path(f.path).name == path.name), None)
        if file is None:
            continue  # packed otherwise than published: nothing to compare with
        where, size = f"{registered.folder}/{path.name}", path.stat().st_size
        if file.size is not None and file.size != size:
            yield (
                f"{where} has {size:,} bytes, the publisher's file {file.size:,}: these numbers "
                "come from other data than the published release"
            )
        elif file.sha256 and file.size and file.size < 1e8 and digest(path) != file.sha256:
            yield f"{where} is not the publisher's file: its SHA-256 differs"


def pick_rows(texts: Sequence[str], tables: Sequence[Table]) -> set[tuple[str, str]]:
    """Published rows by label: in each table an exact match (any case), else a part of it."""
    printed = [table for table in tables if not table.is_figure]
    picked: set[tuple[str, str]] = set()
    for text in texts:
        found = set()
        for table in printed:
            labels = table.published.labels
            exact = [label for label in labels if label.lower() == text.lower()]
            parts = [label for label in labels if text.lower() in label.lower()]
            found |= {(table.id, label) for label in exact or parts}
        if not found:
            known = [label for table in printed for label in table.published.labels]
            raise RequestError(
                f"no row '{text}' in {', '.join(t.id for t in tables)}{did_you_mean(text, known)} "
                f"See: python -m reprokit show {tables[0].id}"
            )
        picked |= found
    return picked


def parse_overrides(texts: Sequence[str], tables: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """`system.key=value` -> typed values by system; only systems that the tables use."""
    systems: dict[str, System] = {}
    for table in tables:
        named = {row.system for row in (*table.rows, *table.sanity)}
        named |= {column.system for column in table.columns}
        systems |= {name: PAPERS[table.paper].SYSTEMS[name] for name in named if name}
    parsed: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, dot, rest = text.partition(".")
        key, equals, value = rest.partition("=")
        if not (dot and equals):
            raise RequestError(f"--set {text}: expected system.key=value, such as mf.lr=0.001")
        if name not in systems:
            raise RequestError(
                f"--set {text}: no system '{name}'{did_you_mean(name, list(systems))} "
                f"These targets have: {', '.join(sorted(systems)) or 'none'}."
            )
        known = {item.name: item for item in dataclasses.fields(systems[name].settings)}
        if key not in known:
            raise RequestError(
                f"--set {text}: {name} has no setting '{key}'{did_you_mean(key, list(known))} "
                f"It has: {', '.join(known) or 'none'}."
            )
        kind: Any = type(known[key].default)
        try:
            parsed.setdefault(name, {})[key] = to_bool(value) if kind is bool else kind(value)
        except ValueError:
            raise RequestError(f"--set {text}: '{value}' is not of type {kind.__name__}") from None
    return parsed


def to_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


def downloads(planned: Plan) -> list[str]:
    """What a dry run would have to fetch first: one line per missing data set."""
    lines = {}
    for table in planned.tables:
        for name in table.datasets:
            source: Source = PAPERS[table.paper].DATASETS[name]
            wanted = planned.request.preset != "demo" and planned.request.dataset in ("", name)
            if not wanted or not source.registered:
                continue
            try:
                source.paths(planned.request.data_dir)
            except DataError:
                registered = DATASETS[source.registered]
                size = megabytes(registered.size) if registered.size else "size not known"
                fetch = f"python -m reprokit data fetch {registered.name}"
                lines[name] = f"{registered.name} ({size}): {fetch}"
    return list(lines.values())
