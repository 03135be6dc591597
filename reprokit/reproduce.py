"""From a target to a table: resolve, plan, execute, assemble.

    targets -> tables -> cells -> runs -> results in the store -> tables

Tables are assembled from the store alone, so every finished run shows up in every table that holds
it, and a command that is killed and started again writes the same bytes.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from reprokit import ccf_llm, explainrec, llm_emf, mmrec
from reprokit.data import CLICK_DATA, fingerprint_click_data
from reprokit.datasets import DATASETS, DataError
from reprokit.progress import Progress
from reprokit.provenance import provenance
from reprokit.runs import (
    PRESETS,
    Estimate,
    Job,
    RequestError,
    Run,
    Store,
    System,
    atomic,
    write_json,
)
from reprokit.tables import (
    Cell,
    Line,
    Rendered,
    Row,
    Table,
    improvement,
    to_compare_csv,
    to_csv,
    to_grid,
    to_markdown,
)

PAPERS = {"ccf_llm": ccf_llm, "explainrec": explainrec, "llm_emf": llm_emf, "mmrec": mmrec}
DONE, FAILED, WRONG, INCOMPLETE = 0, 1, 2, 3
"""Exit statuses: all cells made; a run failed; the request was wrong; cells left empty for a
stated reason."""


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
    checkpoint_seconds: float = 20.0
    command: str = ""


# --- targets ------------------------------------------------------------------------------------
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


# --- plan ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Spot:
    """One cell of one table: the runs behind it, or why there are none.

    `line` counts the published rows first, then our own.
    """

    table: Table
    row: Row | None
    line: int
    column: str
    runs: tuple[Run, ...] = ()
    reason: str = ""
    requested: bool = True
    blank: bool = False


@dataclass(frozen=True)
class Plan:
    request: Request
    tables: tuple[Table, ...]
    spots: tuple[Spot, ...]
    notes: Mapping[str, tuple[str, ...]]
    """By data set: what a reader of a table made from it must know."""

    @property
    def wanted(self) -> list[Run]:
        """The requested runs of this shard, each once."""
        runs = dict.fromkeys(run for spot in self.spots if spot.requested for run in spot.runs)
        index, count = self.request.shard
        return [run for at, run in enumerate(runs) if at % count == index - 1]


def plan(request: Request) -> Plan:
    """Decide every run before anything is executed; what is wrong is said here."""
    if request.preset not in PRESETS:
        raise RequestError(
            f"unknown preset '{request.preset}'{did_you_mean(request.preset, PRESETS)} "
            f"Choose from {', '.join(PRESETS)}."
        )
    tables = resolve(request.targets)
    datasets = sorted({name for table in tables for name in table.datasets})
    if request.dataset and request.dataset not in datasets:
        raise RequestError(
            f"no target has data set '{request.dataset}'{did_you_mean(request.dataset, datasets)} "
            f"These targets have: {', '.join(datasets) or 'none'}."
        )
    picked = pick_rows(request.rows, tables)
    overrides = parse_overrides(request.overrides, tables)
    sources = Sources(request, datasets)
    spots = [
        spot
        for table in tables
        if not table.is_figure
        for spot in table_spots(table, request, picked, overrides, sources)
    ]
    return Plan(request, tuple(tables), tuple(spots), sources.notes)


def table_spots(
    table: Table,
    request: Request,
    picked: set[tuple[str, str]],
    overrides: Mapping[str, Mapping[str, Any]],
    sources: Sources,
) -> Iterator[Spot]:
    """All cells of a table: the published rows, then our own."""
    published = table.published
    columns = {column.name: column for column in table.columns}
    declared = {row.label: row for row in table.rows}
    lines = [
        (declared.get(label), not picked or (table.id, label) in picked)
        for label in published.labels
    ]
    lines += [(row, True) for row in table.sanity]
    for line, (row, asked) in enumerate(lines):
        for name in published.header[table.labels :]:
            column = columns.get(name)
            spot = Spot(table, row, line, name, requested=asked)
            if row is None or column is None:
                printed = line < len(published.rows) and published.cell(line, name)
                yield replace(
                    spot,
                    reason="not built yet",
                    requested=asked and bool(printed),
                    blank=not printed,
                )
                continue
            dataset = row.dataset or column.dataset
            asked_here = asked and request.dataset in ("", dataset)
            if (
                column.metric == "rela_impr"
            ):  # made from two other cells; without a base nothing is printed
                yield replace(spot, requested=asked_here and bool(row.base), blank=not row.base)
                continue
            runs, missing = row_runs(table, row, dataset, request, overrides, sources)
            reason = missing if asked_here else "not requested"
            yield replace(spot, runs=runs, reason=reason, requested=asked_here)


def row_runs(
    table: Table,
    row: Row,
    dataset: str,
    request: Request,
    overrides: Mapping[str, Mapping[str, Any]],
    sources: Sources,
) -> tuple[tuple[Run, ...], str]:
    """The runs of a row on a data set, one per seed; or none, and the reason."""
    system: System = PAPERS[table.paper].SYSTEMS[row.system]
    actual = f"demo-{dataset}" if request.preset == "demo" else dataset
    fingerprint, missing = sources.fingerprint(actual)
    if missing:
        return (), missing
    chosen = {**row.settings, **overrides.get(row.system, {})}
    settings = system.configure(dataset, request.preset, chosen)
    seeds = (request.seeds or table.seeds) if system.seeded else 1
    return tuple(
        Run(table.paper, row.system, actual, settings, seed, fingerprint, system.revision)
        for seed in range(seeds)
    ), ""


class Sources:
    """Fingerprints of the data sets that a request may touch, each read at most once."""

    def __init__(self, request: Request, datasets: Sequence[str]) -> None:
        self.request = request
        self.notes: dict[str, tuple[str, ...]] = {}
        self.known: dict[str, tuple[str, str]] = {}
        wanted = [request.dataset] if request.dataset else list(datasets)
        if request.preset == "demo":
            wanted = [f"demo-{name}" for name in wanted]
        failures = [reason for name in wanted if (reason := self.fingerprint(name)[1])]
        if wanted and len(failures) == len(wanted):
            raise DataError(
                failures[0]
            )  # nothing could be made: a wrong request, not an empty cell

    def fingerprint(self, name: str) -> tuple[str, str]:
        """(fingerprint, "") or ("", why there is none)."""
        if name not in self.known:
            cache_file = self.request.out / "fingerprints.json"
            try:
                self.known[name] = (
                    fingerprint_click_data(name, self.request.data_dir, cache_file),
                    "",
                )
                self.notes[name] = tuple(differences(name, self.request.data_dir))
            except DataError as error:
                self.known[name] = "", str(error)
        return self.known[name]


def differences(name: str, data_dir: Path) -> Iterator[str]:
    """Where files differ from the publisher's by size: the reader of a table must know."""
    source = CLICK_DATA[name]
    if source.synthetic:
        return
    registered = DATASETS[source.registered]
    for file in registered.files:
        path = data_dir / registered.folder / file.path
        if (
            path.name in source.files
            and path.is_file()
            and file.size not in (None, path.stat().st_size)
        ):
            yield (
                f"{registered.folder}/{file.path} has {path.stat().st_size:,} bytes, the "
                f"publisher's file {file.size:,}: these numbers come from other data than the "
                "published release"
            )


def pick_rows(texts: Sequence[str], tables: Sequence[Table]) -> set[tuple[str, str]]:
    """Published rows by label: an exact match (any case), else all that contain the text."""
    labels = [(t.id, label) for t in tables if not t.is_figure for label in t.published.labels]
    picked: set[tuple[str, str]] = set()
    for text in texts:
        exact = [key for key in labels if key[1].lower() == text.lower()]
        found = exact or [key for key in labels if text.lower() in key[1].lower()]
        if not found:
            known = [label for _, label in labels]
            raise RequestError(
                f"no row '{text}' in {', '.join(t.id for t in tables)}{did_you_mean(text, known)} "
                f"See: python -m reprokit show {tables[0].id}"
            )
        picked.update(found)
    return picked


def parse_overrides(texts: Sequence[str], tables: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """`system.key=value` -> typed values by system."""
    systems: dict[str, System] = {}
    for table in tables:
        systems |= PAPERS[table.paper].SYSTEMS
    parsed: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, dot, rest = text.partition(".")
        key, equals, value = rest.partition("=")
        if not (dot and equals):
            raise RequestError(f"--set {text}: expected system.key=value, such as mf.lr=0.001")
        if name not in systems:
            raise RequestError(
                f"--set {text}: no system '{name}'{did_you_mean(name, list(systems))} "
                f"These targets have: {', '.join(systems) or 'none'}."
            )
        known = {item.name: item for item in dataclasses.fields(systems[name].settings)}
        if key not in known:
            raise RequestError(
                f"--set {text}: {name} has no setting '{key}'{did_you_mean(key, list(known))} "
                f"It has: {', '.join(known) or 'none'}."
            )
        kind: Any = type(known[key].default)
        try:
            parsed.setdefault(name, {})[key] = kind(value) if kind is not bool else to_bool(value)
            systems[name].settings(**parsed[name])
        except ValueError as error:
            raise RequestError(f"--set {text}: expected {kind.__name__} ({error})") from None
    return parsed


def to_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


# --- execute ------------------------------------------------------------------------------------
@dataclass
class Outcome:
    """What happened to the runs of a plan."""

    cached: int = 0
    executed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """By run id: the reason."""


def execute(planned: Plan, quiet: bool = False) -> Outcome:
    """Execute what the store does not have. A failed run is recorded and the others go on."""
    request, store = planned.request, Store(planned.request.out)
    wanted = planned.wanted
    processes = int(os.environ.get("WORLD_SIZE", 1))
    first = int(os.environ.get("RANK", 0)) == 0
    if request.fresh and first:
        for run in wanted:
            store.discard(run)
    waiting = [run for run in wanted if store.load(run) is None]
    if processes > 1:
        waiting = agree(wanted, waiting)
    outcome = Outcome(cached=len(wanted) - len(waiting))
    with Progress(len(waiting), quiet=quiet or not first) as progress:
        for run in waiting:
            progress.start_run(run.title)
            try:
                result = execute_one(planned, run, store, progress, write=first)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                if processes > 1:
                    # The other processes wait for this one in a collective: end the whole command.
                    rank = os.environ.get("RANK")
                    traceback.print_exc()
                    print(
                        f"reprokit: process {rank} failed in {run.title}: {reason}",
                        file=sys.stderr,
                        flush=True,
                    )
                    os._exit(FAILED)
                with atomic(store.path(run, ".error.txt")) as file:
                    file.write(f"{run.title}\n\n{traceback.format_exc()}")
                outcome.failed[run.id] = reason
                progress.end_run(f"failed, {reason}; traceback in {store.path(run, '.error.txt')}")
                continue
            outcome.executed += 1
            progress.end_run(headline(result))
    return outcome


def execute_one(
    planned: Plan, run: Run, store: Store, progress: Progress, write: bool
) -> Mapping[str, float]:
    """One run; the first process stores its result."""
    system: System = PAPERS[run.paper].SYSTEMS[run.system]
    request = planned.request
    checkpoint = store.path(run, ".ckpt.safetensors")
    job = Job(run, request.data_dir, checkpoint, request.checkpoint_seconds, progress)
    started = time.time()
    result = system.execute(job)
    if write:
        store.save(run, result, provenance(started))
    return result.metrics


def headline(metrics: Mapping[str, float]) -> str:
    shown = [f"{name} {metrics[name]:.4f}" for name in ("valid/auc", "test/auc") if name in metrics]
    return ", ".join(shown) or f"{len(metrics)} numbers"


def agree(wanted: Sequence[Run], waiting: Sequence[Run]) -> list[Run]:
    """Every process executes what the first one found missing in the store."""
    import torch
    from accelerate.utils import broadcast

    from reprokit.training import make_accelerator

    accelerator = make_accelerator()
    ids = {run.id for run in waiting}
    mask = torch.tensor(
        [run.id in ids for run in wanted], dtype=torch.int32, device=accelerator.device
    )
    chosen = broadcast(mask).tolist() if len(wanted) else []
    return [run for run, missing in zip(wanted, chosen, strict=True) if missing]


# --- dry run ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Forecast:
    """One line of `--dry-run`."""

    run: Run
    cached: bool
    seconds: float
    measured: bool
    """True: a finished run with another seed took this long. False: an upper bound."""
    estimate: Estimate


def forecast(planned: Plan) -> list[Forecast]:
    store = Store(planned.request.out)
    lines = []
    for run in planned.wanted:
        system: System = PAPERS[run.paper].SYSTEMS[run.system]
        sizes = PAPERS[run.paper].DATASETS[run.dataset].sizes
        estimate = system.estimate(run.settings, sizes)
        measured = store.seconds_of_siblings(run)
        cached = store.load(run) is not None and not planned.request.fresh
        seconds = estimate.seconds if measured is None else measured
        lines.append(Forecast(run, cached, seconds, measured is not None, estimate))
    return lines


# --- assemble -----------------------------------------------------------------------------------
def assemble(planned: Plan, outcome: Outcome) -> tuple[list[Rendered], int]:
    """Write every table of the plan from the store; returns them and the exit status."""
    store = Store(planned.request.out)
    runs = dict.fromkeys(run for spot in planned.spots for run in spot.runs)
    results = {run.id: stored for run in runs if (stored := store.load(run))}
    rendered = []
    empty = any(table.is_figure for table in planned.tables)
    for table in planned.tables:
        if table.is_figure:
            continue
        spots = [spot for spot in planned.spots if spot.table.id == table.id]
        cells = fill(spots, results, outcome)
        empty |= any(spot.requested and not cells[spot.line, spot.column].values for spot in spots)
        one = render(planned, table, spots, cells)
        write(planned, one, spots, results)
        rendered.append(one)
    status = FAILED if outcome.failed else INCOMPLETE if empty else DONE
    return rendered, status


def fill(
    spots: Sequence[Spot], results: Mapping[str, Any], outcome: Outcome
) -> dict[tuple[int, str], Cell]:
    """The cells of one table, by (line, column)."""
    cells: dict[tuple[int, str], Cell] = {}
    for spot in spots:
        if spot.blank or not spot.runs:
            cells[spot.line, spot.column] = Cell(reason=spot.reason, blank_in_print=spot.blank)
            continue
        column = next(column for column in spot.table.columns if column.name == spot.column)
        finished = [results[run.id] for run in spot.runs if run.id in results]
        failures = [outcome.failed[run.id] for run in spot.runs if run.id in outcome.failed]
        if failures:
            cell = Cell(reason=f"{len(failures)} of {len(spot.runs)} runs failed: {failures[0]}")
        elif len(finished) < len(spot.runs):
            done = f"{len(finished)} of {len(spot.runs)} runs finished"
            cell = Cell(reason=spot.reason if not finished and spot.reason else done)
        else:
            cell = Cell(values=tuple(stored["metrics"][column.metric] for stored in finished))
        cells[spot.line, spot.column] = cell
    for spot in spots:
        if spot.row and spot.row.base and not spot.runs and not spot.reason:
            cells[spot.line, spot.column] = relative(spot, spots, cells)
    return cells


def relative(spot: Spot, spots: Sequence[Spot], cells: Mapping[tuple[int, str], Cell]) -> Cell:
    """RelaImpr of a row over its base row, on the same data set."""
    assert spot.row is not None
    columns = {column.name: column for column in spot.table.columns}
    dataset = columns[spot.column].dataset
    source = next(
        c.name for c in spot.table.columns if c.dataset == dataset and c.metric.endswith("auc")
    )
    base = spot.table.published.labels.index(spot.row.base)
    return improvement(cells[spot.line, source], cells.get((base, source)))


def render(
    planned: Plan, table: Table, spots: Sequence[Spot], cells: Mapping[tuple[int, str], Cell]
) -> Rendered:
    request, published = planned.request, table.published
    names = published.header[published.n_labels :]
    lines = []
    for at, row in enumerate(published.rows):
        found = tuple(cells[at, name] for name in names)
        lines.append(Line(row[: published.n_labels], found, row[published.n_labels :]))
    for index, sanity in enumerate(table.sanity):
        found = tuple(cells[len(published.rows) + index, name] for name in names)
        padding = ("",) * (published.n_labels - 1)
        lines.append(Line((sanity.label, *padding), found, (), ours=True))
    used = dict.fromkeys(run for spot in spots for run in spot.runs)
    notes = dict.fromkeys(note for run in used for note in planned.notes.get(run.dataset, ()))
    return Rendered(
        table,
        tuple(lines),
        request.preset,
        comparable=request.preset != "demo",
        seeds=max((len(spot.runs) for spot in spots), default=1),
        command=request.command,
        notes=tuple(notes),
        settings=tuple(dict.fromkeys(line for run in used for line in describe(run))),
    )


def describe(run: Run) -> Iterator[tuple[str, str, str, str]]:
    """(system, setting, value, reason) of one run; a value that is not the default says so."""
    for item in dataclasses.fields(run.settings):
        value, why = getattr(run.settings, item.name), item.metadata["why"]
        if value != item.default:
            why = f"set for {run.dataset}, preset or by you; default {item.default}: {why}"
        yield (
            f"{run.system} on {run.dataset}",
            item.name,
            f"{value:g}" if isinstance(value, float) else str(value),
            why,
        )


def folder_of(planned: Plan, table: Table) -> Path:
    return planned.request.out / planned.request.preset / table.paper


def write(
    planned: Plan, rendered: Rendered, spots: Sequence[Spot], results: Mapping[str, Any]
) -> None:
    """`table3.csv`, `.md`, `.compare.csv` and `.json`."""
    table = rendered.table
    base = folder_of(planned, table)
    for suffix, text in (
        (".csv", to_csv(rendered)),
        (".md", to_markdown(rendered)),
        (".compare.csv", to_compare_csv(rendered)),
    ):
        with atomic(base / f"{table.name}{suffix}") as file:
            file.write(text)
    runs = dict.fromkeys(run for spot in spots for run in spot.runs)
    stored = [results[run.id] for run in runs if run.id in results]
    filled = sum(
        bool(cell.values) for line in rendered.lines if not line.ours for cell in line.cells
    )
    to_make = sum(
        not cell.blank_in_print for line in rendered.lines if not line.ours for cell in line.cells
    )
    write_json(
        base / f"{table.name}.json",
        {
            "target": table.id,
            "title": table.title,
            "preset": rendered.preset,
            "command": rendered.command,
            "comparable": rendered.comparable,
            "cells": {"filled": filled, "of": to_make},
            "runs": [
                {"id": one["id"], **one["run"], "provenance": one["provenance"]} for one in stored
            ],
            "missing": [run.id for run in runs if run.id not in results],
            "seconds": round(sum(one["provenance"]["seconds"] for one in stored), 3),
        },
    )


def progress_of(out: Path, table: Table) -> str:
    """What is done of a table, by preset, from its provenance files."""
    parts = []
    for preset in PRESETS:
        path = out / preset / table.paper / f"{table.name}.json"
        if path.is_file():
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            parts.append(f"{preset} {cells['filled']}/{cells['of']} cells")
    return ", ".join(parts)


__all__ = [
    "PAPERS",
    "Plan",
    "Request",
    "RequestError",
    "assemble",
    "execute",
    "forecast",
    "plan",
    "to_grid",
]
