"""From a plan to tables: execute what the store does not have, then assemble.

Tables are assembled from the store alone, so every finished run shows up in every table that holds
it, and a command that is killed and started again writes the same bytes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from reprokit import figures, pages, remarks
from reprokit.data import Source
from reprokit.datasets import DataError
from reprokit.plan import NOT_BUILT, PAPERS, Plan, Spot
from reprokit.progress import Progress
from reprokit.provenance import provenance, reset_device_memory
from reprokit.rendering import (
    Cell,
    Line,
    Rendered,
    csv_text,
    improvement,
    to_compare_csv,
    to_csv,
    to_markdown,
)
from reprokit.runs import (
    PRESETS,
    Job,
    RequestError,
    Result,
    Run,
    Store,
    System,
    Unavailable,
    atomic,
    write_json,
)
from reprokit.tables import Table

DONE, FAILED, WRONG, INCOMPLETE = 0, 1, 2, 3
"""Exit statuses: all cells made; a run failed; a wrong request or input; cells left empty."""

# --- execute --------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What happened to the runs of a plan."""

    cached: int = 0
    executed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """By run id: the reason."""
    unavailable: dict[str, str] = field(default_factory=dict)
    """By run id: why it cannot be made here, which is no failure."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """By data set: why it cannot be read."""


def execute(planned: Plan, quiet: bool = False) -> Outcome:
    """Execute what the store does not have. A failed run is recorded and the others go on.

    Raises RequestError where no run can start, since results cannot be written.
    """
    request, store = planned.request, Store(planned.request.out)
    wanted = planned.wanted
    processes = int(os.environ.get("WORLD_SIZE", 1))
    first = int(os.environ.get("RANK", 0)) == 0
    check_writable(store.folder, *dict.fromkeys(folder_of(planned, t) for t in planned.tables))
    if request.fresh and first:
        for run in wanted:
            store.discard(run)
    # A run that failed before comes last, so that it holds up no other one.
    waiting = [run for run in wanted if store.load(run) is None]
    waiting.sort(key=lambda run: store.path(run, ".error.txt").is_file())
    fresh = request.started if request.fresh else 0.0
    if processes > 1:
        waiting, fresh = agree(wanted, waiting, fresh)
    outcome = Outcome(cached=len(wanted) - len(waiting))
    with Progress(len(waiting), quiet=quiet or not first) as progress:
        for reason in store.damaged.values():
            progress.note(f"a stored result is damaged and made again: {reason}")
        for run in waiting:
            progress.start_run(run.title)
            if run.dataset in outcome.unreadable:
                outcome.failed[run.id] = outcome.unreadable[run.dataset]
                progress.end_run("not started, its data cannot be read")
                continue
            try:
                result = execute_one(planned, run, store, progress, fresh, write=first)
            except Unavailable as error:  # raised by all processes alike
                outcome.unavailable[run.id] = reason = " ".join(str(error).split())
                progress.end_run(f"not made: {reason}")
                continue
            except Exception as error:
                reason = record_failure(store, run, error)
                if processes > 1:
                    abandon(run, reason)
                outcome.failed[run.id] = reason
                if isinstance(error, DataError):
                    outcome.unreadable[run.dataset] = reason
                progress.end_run(f"failed, {reason}")
                continue
            outcome.executed += 1
            progress.end_run(headline(result))
    return outcome


def check_writable(*folders: Path) -> None:
    """Say now, and not after hours of training, that results cannot be kept."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise RequestError(
                f"--out: {folder} cannot be written ({error.strerror}). Choose another folder"
            ) from None


def record_failure(store: Store, run: Run, error: Exception) -> str:
    """Keep the traceback beside the results; returns the reason in one line.

    An error that says what to do needs no traceback.
    """
    if isinstance(error, DataError | RequestError):
        return " ".join(str(error).split())
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    where = store.path(run, ".error.txt")
    try:
        with atomic(where) as file:
            file.write(f"{run.title}\n\n{traceback.format_exc()}")
    except OSError as full:
        return f"{reason} (its traceback could not be written: {full.strerror})"
    return f"{reason} (traceback in {where})"


def execute_one(
    planned: Plan, run: Run, store: Store, progress: Progress, fresh: float, write: bool
) -> Mapping[str, Any]:
    """One run; the first process stores its result."""
    system: System = PAPERS[run.paper].SYSTEMS[run.system]
    request = planned.request
    job = Job(
        run,
        request.data_dir,
        folder=request.out,
        checkpoint_seconds=request.checkpoint_seconds,
        progress=progress,
        fresh=fresh,
    )
    reset_device_memory()
    started = time.time()
    result: Result = system.execute(job)
    if write:
        store.save(run, result, provenance(started, result.earlier_seconds))
    return result.metrics


HEADLINE = {
    **{f"{split}/{m}": 4 for m in ("auc", "a/mrr", "b/mrr") for split in ("valid", "test")},
    "test/accuracy": 2,
    "test/fpr": 2,
}
"""Metrics that the end of a run is told with, and their decimals; the last two are in percent."""


def headline(metrics: Mapping[str, Any]) -> str:
    shown = [f"{name} {metrics[name]:.{n}f}" for name, n in HEADLINE.items() if name in metrics]
    return ", ".join(shown) or f"{len(metrics)} numbers"


def agree(wanted: Sequence[Run], waiting: Sequence[Run], fresh: float) -> tuple[list[Run], float]:
    """Every process executes what the first one found missing in the store, in its order, and
    takes its time for `--fresh`."""
    if not wanted:
        return [], fresh
    import torch
    from accelerate.utils import broadcast

    from reprokit.training import make_accelerator

    place = {run.id: at for at, run in enumerate(wanted)}
    order = [place[run.id] for run in waiting]
    padding = [-1] * (len(wanted) - len(order))
    ours = torch.tensor([int(fresh * 1e6), *order, *padding], dtype=torch.int64)
    microseconds, *chosen = broadcast(ours.to(make_accelerator().device)).tolist()
    return [wanted[at] for at in chosen if at >= 0], microseconds / 1e6


def abandon(run: Run, reason: str) -> None:
    """End the whole command: the other processes wait for this one and would hang."""
    traceback.print_exc()
    rank = os.environ.get("RANK")
    print(
        f"reprokit: process {rank} failed in {run.title}: {reason}. Start again: finished runs are "
        "kept, and this one comes last",
        file=sys.stderr,
        flush=True,
    )
    os._exit(FAILED)


# --- assemble -------------------------------------------------------------------------------------

Results = Mapping[str, Any]
"""Stored results by run id."""
Cells = dict[tuple[int, str], Cell]
"""The cells of one table, by line and column."""


def assemble(planned: Plan, outcome: Outcome) -> tuple[list[Rendered], int]:
    """Write the tables of the plan from the store; returns them and the exit status.

    A table of which no cell is requested is left as it is.
    """
    store, request = Store(planned.request.out), planned.request
    results = {run.id: stored for run in planned.runs if (stored := store.load(run))}
    whole = not (request.rows or request.dataset)
    built = [table for table in planned.tables if table.published.rows]
    empty = whole and len(built) < len(planned.tables)
    rendered = []
    for table in built:
        spots = [spot for spot in planned.spots if spot.table.id == table.id]
        if not any(spot.requested for spot in spots):
            continue
        cells = fill(planned, spots, results, outcome)
        empty |= any(
            spot.requested and not spot.blank and not cells[spot.line, spot.name].made
            for spot in spots
        )
        one = render(planned, table, spots, cells, results)
        write(planned, one, spots, results)
        rendered.append(one)
    if request.shard[1] > 1:  # a shard answers for its own runs, not for whole tables
        empty = any(run.id not in results for run in planned.wanted)
    if outcome.unreadable:
        return rendered, WRONG
    return rendered, FAILED if outcome.failed else INCOMPLETE if empty else DONE


def fill(planned: Plan, spots: Sequence[Spot], results: Results, outcome: Outcome) -> Cells:
    """Cells from runs, then those that repeat the best of other rows, then RelaImpr."""
    cells = {(spot.line, spot.name): from_runs(planned, spot, results, outcome) for spot in spots}
    for spot in spots:
        if spot.row and spot.row.best_of and not spot.blank and not is_derived(spot):
            cells[spot.line, spot.name] = best_of(spot, spots, cells, results)
    for spot in spots:
        if spot.row and is_derived(spot) and not spot.blank:
            assert spot.column is not None
            source = spot.column.base_column
            base = spot.table.published.labels.index(spot.row.base) if spot.row.base else -1
            if base >= 0:
                cells[spot.line, spot.name] = improvement(
                    cells[spot.line, source], cells[base, source]
                )
    return cells


def is_derived(spot: Spot) -> bool:
    return bool(spot.column and spot.column.base_column)


def from_runs(planned: Plan, spot: Spot, results: Results, outcome: Outcome) -> Cell:
    """One value per seed, or the reason why there is none."""
    if spot.blank:
        return Cell(blank=True)
    if not spot.runs or spot.row is None or spot.column is None:
        return Cell(reason=spot.reason or NOT_BUILT)
    failures = [outcome.failed[run.id] for run in spot.runs if run.id in outcome.failed]
    if failures:
        return Cell(reason=f"{len(failures)} of {len(spot.runs)} runs failed: {failures[0]}")
    unavailable = [run.id for run in spot.runs if run.id in outcome.unavailable]
    if unavailable:
        return Cell(reason=outcome.unavailable[unavailable[0]])
    finished = [results[run.id] for run in spot.runs if run.id in results]
    if len(finished) < len(spot.runs):
        done = f"{len(finished)} of {len(spot.runs)} runs finished"
        return Cell(reason=spot.reason if spot.reason and not finished else done)
    name = spot.column.metric.replace("{part}", spot.row.part)
    found = [stored["metrics"].get(name) for stored in finished]
    if any(value is None or value == "" for value in found):
        return Cell(reason=f"no {name}: its rows do not allow it, or the system does not give it")
    by = spot.table.best_by if len(finished) > 1 else ""
    judged = [stored["metrics"].get(by) for stored in finished]
    if by and any(value is None for value in judged):
        return Cell(reason=f"no {by}, by which the best of its runs is chosen")
    chosen = found[judged.index(max(judged))] if by else found[0]  # of equals the lowest seed
    why = unlike(planned, spot, finished)
    if isinstance(chosen, str):
        return Cell(text=chosen, unlike=why)
    return Cell(values=tuple(found), unlike=why, best=chosen if by else None)


def unlike(planned: Plan, spot: Spot, finished: Sequence[Any]) -> str:
    """Why a cell cannot be compared with print; empty where it can."""
    run = spot.runs[0]
    source: Source = PAPERS[run.paper].DATASETS[run.dataset]
    changed = planned.changed(run)
    reasons = ["synthetic data"] if source.synthetic else []
    reasons += ["another data set than the paper's"] if spot.table.instead else []
    reasons += [f"{name} set to {value}" for name, value in changed.items()]
    reasons += dict.fromkeys(text for stored in finished for text in stored["deviations"])
    return ", ".join(reasons)


def best_of(spot: Spot, spots: Sequence[Spot], cells: Cells, results: Results) -> Cell:
    """Repeat the cell of the row that validation prefers; the test split has no say."""
    assert spot.row is not None
    table, means = spot.table, {}
    for other in spots:
        in_question = other.row and other.row.label in spot.row.best_of and other.name == spot.name
        if not in_question:
            continue
        stored = [results[run.id] for run in other.runs if run.id in results]
        if not stored or len(stored) < len(other.runs):
            return Cell(reason="the rows that it chooses from are not all finished")
        means[other.line] = fmean(one["metrics"][table.choose] for one in stored)
    if len(means) < len(spot.row.best_of):
        return Cell(reason=NOT_BUILT)
    return cells[max(means, key=lambda line: means[line]), spot.name]


def render(
    planned: Plan, table: Table, spots: Sequence[Spot], cells: Cells, results: Results
) -> Rendered:
    published = table.published
    names = published.header[published.n_labels :]
    declared = {row.label: row for row in table.rows}
    changed = remarks.changes(planned, spots)
    lines = []
    for at, printed in enumerate(published.rows):
        row = declared.get(published.labels[at])
        notes = [changed.get(at, ""), row.note if row else ""]
        lines.append(
            Line(
                printed[: published.n_labels],
                tuple(cells[at, name] for name in names),
                printed[published.n_labels :],
                note="; ".join(note for note in notes if note),
            )
        )
    for index, row in enumerate(table.sanity):
        at = len(published.rows) + index
        padding = ("",) * (published.n_labels - 1)
        found = tuple(cells[at, name] for name in names)
        note = changed.get(at, "")
        lines.append(Line((row.label, *padding), found, (), ours=True, note=note))
    used = tuple(dict.fromkeys(run for spot in spots for run in spot.runs))
    return Rendered(
        table,
        tuple(lines),
        planned.request.preset,
        seeds=max((len(spot.runs) for spot in spots), default=1),
        command=planned.request.command,
        notes=(
            *table.moves(planned.request.preset),
            *dict.fromkeys(remarks.table_notes(planned, used, results)),
        ),
        settings=tuple(remarks.settings_of(planned, used)),
    )


def folder_of(planned: Plan, table: Table) -> Path:
    return planned.request.out / planned.request.preset / table.paper


def picture_of(planned: Plan, table: Table) -> Path:
    return folder_of(planned, table) / f"{table.file}.png"


def write(planned: Plan, rendered: Rendered, spots: Sequence[Spot], results: Results) -> None:
    """`table3.csv`, `.md`, `.compare.csv` and `.json`; for a figure also `.png`.

    Of a scatter figure `.csv` holds the points, and `.summary.csv` its numbers.
    """
    table = rendered.table
    base = folder_of(planned, table)
    points = points_of(planned, spots, results) if table.draw == "scatter" else {}
    shown = pictures_of(planned, spots, results) if table.draw == "examples" else {}
    picture = picture_of(planned, table)
    drawn = bool(table.is_figure and table.draw) and draw(rendered, points, shown, picture)
    texts = {
        ".csv": to_csv(rendered),
        ".md": to_markdown(rendered, picture.name if drawn else ""),
        ".compare.csv": to_compare_csv(rendered),
    }
    if table.draw == "scatter":
        texts |= {".summary.csv": texts[".csv"], ".csv": to_points_csv(points)}
    for suffix, text in texts.items():
        with atomic(base / f"{table.file}{suffix}") as file:
            file.write(text)
    runs = dict.fromkeys(run for spot in spots for run in spot.runs)
    stored = [results[run.id] for run in runs if run.id in results]
    cells = [cell for line in rendered.lines if not line.ours for cell in line.cells]
    write_json(
        base / f"{table.file}.json",
        {
            "target": table.id,
            "title": table.title,
            "instead": rendered.instead,
            "preset": rendered.preset,
            "command": rendered.command,
            "notes": list(rendered.notes),
            "cells": {
                "filled": sum(cell.made for cell in cells),
                "of": sum(not cell.blank for cell in cells),
            },
            "runs": [
                {"id": one["id"], **one["run"], "provenance": one["provenance"]} for one in stored
            ],
            "missing": [run.id for run in runs if run.id not in results],
            "seconds": round(sum(one["provenance"]["seconds"] for one in stored), 3),
        },
    )


POINTS = {
    "item": "points/items",
    "title": "points/titles",
    "modality": "points/modality",
    "x": "points/x",
    "y": "points/y",
}
"""Columns of a scatter figure's CSV, beside the data set, and the arrays of a run behind them."""


def points_of(planned: Plan, spots: Sequence[Spot], results: Results) -> dict[str, np.ndarray]:
    """The points kept with the first seed's run of each data set, as columns of equal length."""
    store = Store(planned.request.out)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for run in dict.fromkeys(spot.runs[0] for spot in spots if spot.runs):
        stored = results.get(run.id)
        if stored and run.dataset not in parts and POINTS["x"] in stored["predictions"]["columns"]:
            kept = store.predictions(run)
            part = {name: kept[array] for name, array in POINTS.items()}
            parts[run.dataset] = {"dataset": np.full(len(part["x"]), run.dataset), **part}
    names = ("dataset", *POINTS) if parts else ()
    return {name: np.concatenate([part[name] for part in parts.values()]) for name in names}


def to_points_csv(points: Mapping[str, np.ndarray]) -> str:
    """One line per point."""
    names = ["dataset", *POINTS]
    columns = [
        [f"{value:.6g}" if name in "xy" else str(value) for value in points.get(name, ())]
        for name in names
    ]
    return csv_text([names, *(list(row) for row in zip(*columns, strict=True))])


def pictures_of(planned: Plan, spots: Sequence[Spot], results: Results) -> dict[int, np.ndarray]:
    """By line: the picture kept with the first seed's run of an example, (H, W, 3) bytes."""
    store, kept, found = Store(planned.request.out), {}, {}
    for spot in spots:
        if not (spot.runs and spot.row and spot.runs[0].id in results):
            continue
        run, name = spot.runs[0], f"picture/{spot.row.part}"
        if name in results[run.id]["predictions"]["columns"]:
            if run.id not in kept:
                kept[run.id] = store.predictions(run)
            found[spot.line] = kept[run.id][name]
    return found


def draw(
    rendered: Rendered,
    points: Mapping[str, np.ndarray],
    pictures: Mapping[int, np.ndarray],
    path: Path,
) -> bool:
    """Draw what is finished, and say whether that is anything; if not, no picture is left."""
    kind = rendered.table.draw
    cells = [cell for line in rendered.lines for cell in line.cells]
    something = any(figures.drawable(cell) for cell in cells)
    if kind in ("scatter", "examples"):
        something = bool(points) or any(cell.text for cell in cells)
    if not something:
        path.unlink(missing_ok=True)
        return False
    if kind == "scatter":
        figure = figures.scatter(points, rendered)
    elif kind == "examples":
        figure = pages.examples(pictures, rendered)
    else:
        figure = {"bars": figures.bars, "lines": figures.lines}[kind](rendered)
    figures.save(figure, path)
    return True


def progress_of(out: Path, table: Table) -> str:
    """What is done of a table, by preset and data set, from its provenance files."""
    parts = []
    for preset, one in product(PRESETS, (table, *map(table.on, table.others))):
        path = out / preset / table.paper / f"{one.file}.json"
        made = f"{preset} on {one.instead}" if one.instead else preset
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            parts.append(f"{made} {cells['filled']}/{cells['of']} cells")
        except FileNotFoundError:
            continue
        except (OSError, ValueError, LookupError, TypeError):
            parts.append(f"{made}: {path.name} is damaged")
    return ", ".join(parts)
