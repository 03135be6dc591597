"""What is said under a table of the runs behind it: changed settings, notes, every setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reprokit.plan import PAPERS, Plan, Spot
from reprokit.runs import Run, System


def changes(planned: Plan, spots: Sequence[Spot]) -> dict[int, str]:
    """By line: the settings that the user changed."""
    found = {}
    for spot in spots:
        for run in spot.runs:
            if chosen := planned.changed(run):
                text = ", ".join(f"{name}={value}" for name, value in chosen.items())
                found[spot.line] = f"settings changed with --set: {text}"
    return found


def table_notes(planned: Plan, used: Sequence[Run], results: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know of the data, the runs and the machines behind the numbers."""
    for run in used:
        yield from planned.notes.get(run.dataset, ())
    systems, notes = {run.system for run in used}, dict[str, dict[str, None]]()
    for run in used:
        for note in results.get(run.id, {}).get("notes", ()):
            notes.setdefault(note, {})[run.system] = None
    for note, by in notes.items():
        yield note if len(by) > 3 or len(by) == len(systems) else f"{note} ({', '.join(by)})"
    facts = [results[run.id]["provenance"] for run in used if run.id in results]
    several = [fact["processes"] for fact in facts if fact["processes"] > 1]
    if several:
        yield f"{len(several)} of {len(facts)} runs were made by {several[0]} processes"


def settings_of(planned: Plan, used: Sequence[Run]) -> Iterator[tuple[str, str, str, str]]:
    """(system, setting, values, reason of the first), once: of every system where all have the
    same, else of each, and of its data sets only where these differ."""
    found: dict[str, dict[str, dict[str, dict[str, str]]]] = {}
    for run in used:
        for system, name, value, why in describe(planned, run):
            on = found.setdefault(system, {}).setdefault(name, {}).setdefault(run.dataset, {})
            on.setdefault(value, why)
    alike = set()
    for name, sets in next(iter(found.values()), {}).items():
        every = {told(on)[0] for one in found.values() for on in one.get(name, {"": {}}).values()}
        if len(found) > 1 and len(every) == 1:
            alike.add(name)
            yield "every system", name, *told(next(iter(sets.values())))
    for system, settings in found.items():
        for name in [name for name in settings if name not in alike]:
            texts = {dataset: told(on) for dataset, on in settings[name].items()}
            for value, why in dict.fromkeys(texts.values()):
                there = [dataset for dataset, text in texts.items() if text == (value, why)]
                where = f" on {', '.join(there)}" if len(there) < len(texts) else ""
                yield system + where, name, value, why


def told(values: Mapping[str, str]) -> tuple[str, str]:
    """All values of a setting, and the first one's reason."""
    return " / ".join(values), next(iter(values.values()), "")


def describe(planned: Plan, run: Run) -> Iterator[tuple[str, str, str, str]]:
    """(system, setting, value, reason) of one run."""
    request = planned.request
    system: System = PAPERS[run.paper].SYSTEMS[run.system]
    dataset = run.dataset.removeprefix("demo-")
    for item in dataclasses.fields(run.settings):
        value = getattr(run.settings, item.name)
        if dataclasses.is_dataclass(value):  # settings of another system, which this one measures
            named = run.title.removeprefix(f"{run.paper} ").rpartition(" on ")[0]
            for name, one in dataclasses.asdict(value).items():  # type: ignore[arg-type]
                yield named, name, str(one), item.metadata["why"]
            continue
        why = system.origin(item.name, dataset, request.preset, planned.chosen(run))
        yield run.system, item.name, str(value), why or item.metadata["why"]
