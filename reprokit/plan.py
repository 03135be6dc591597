"""From a request to runs: resolve the targets, and decide each cell before anything is executed.

A cell's run follows from its row and its column: either may name the system, the data set and
settings. Whatever is wrong with a request is said here, in one line, before work starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from reprokit import ccf_llm, explainrec, llm_emf, mmrec
from reprokit.data import Source
from reprokit.datasets import DATASETS, DataError
from reprokit.download import digest, megabytes, require
from reprokit.efficiency import Measuring
from reprokit.runs import PRESETS, RequestError, Run, System
from reprokit.tables import Column, Row, Table, within

PAPERS = {"ccf_llm": ccf_llm, "explainrec": explainrec, "llm_emf": llm_emf, "mmrec": mmrec}
NOT_BUILT = "not built yet"
NOT_REQUESTED = "not requested"
NO_DATA = "no data"
"""In place of the fingerprint of data that a dry run does not find."""
NO_MODEL = "no model"
"""In place of the fingerprint of a pretrained model that a dry run does not reach."""
STANDINS: Mapping[str, tuple[str, ...]] = {
    "llm": ("none", "planted"),
    "text": ("none",),
    "image": ("none",),
    "caption": ("none",),
    "t5": (),
}
"""By kind, in place of a model's name: there is none, or the synthetic world answers for it."""
EXTRACTIVE = "extractive"
"""In place of a language model's name: sentences and phrases are picked by rules."""


@dataclass(frozen=True)
class Request:
    """What a person typed after `reproduce`."""

    targets: tuple[str, ...]
    preset: str = "demo"
    rows: tuple[str, ...] = ()
    dataset: str = ""
    seeds: int = 0
    """0: the table's own number."""
    llm: str = ""
    """Language model of every system that has one; empty: what its settings name."""
    text_encoder: str = ""
    image_encoder: str = ""
    captioner: str = ""
    """The same of the frozen encoders of texts and of images, and of the captioner of images."""
    overrides: tuple[str, ...] = ()
    """`system.key=value`."""
    data_dir: Path = Path("data")
    out: Path = Path("results")
    shard: tuple[int, int] = (1, 1)
    fresh: bool = False
    dry_run: bool = False
    offline: bool = False
    checkpoint_seconds: float = 20.0
    command: str = ""
    started: float = field(default_factory=time.time)
    """Unix time; `fresh` makes what is older again."""


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
    """No value belongs here: the paper prints none."""


@dataclass(frozen=True)
class Plan:
    request: Request
    tables: tuple[Table, ...]
    spots: tuple[Spot, ...]
    notes: Mapping[str, tuple[str, ...]]
    """By data set: what a reader of a table made from it must know."""
    overrides: Mapping[str, Mapping[str, Any]]
    """By system: the settings that the user changed with --set."""
    unreached: Mapping[str, str] = field(default_factory=dict)
    """By name of a language model that a dry run does not reach: why."""

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

    def changed(self, run: Run) -> dict[str, Any]:
        """The settings behind a run that the user changed with --set; where it measures another
        system, that one's too."""
        of = getattr(run.settings, "of", "")
        return {**self.overrides.get(run.system, {}), **self.overrides.get(of, {})}

    def chosen(self, run: Run) -> dict[str, Any]:
        """The settings of a run's system that the user chose, with --llm or --set."""
        of = getattr(run.settings, "of", "")
        return user_settings(self.request, self.overrides, run.paper, run.system, of)


def user_settings(
    request: Request, overrides: Mapping[str, Mapping[str, Any]], paper: str, name: str, of: str
) -> dict[str, Any]:
    """What the options that name models (see `OPTIONS`) and --set ask of a system; --set wins.

    Of one that measures the system `of`, what is set of that one stands under "measured".
    """
    system: System = PAPERS[paper].SYSTEMS[name]
    settings = {"llm": system.backbone, **system.encoders}
    typed = {settings.get(kind, ""): model for kind, model in typed_models(request).items()}
    chosen = {**{key: model for key, model in typed.items() if key}, **overrides.get(name, {})}
    return chosen | ({"measured": overrides.get(of)} if isinstance(system, Measuring) else {})


def typed_models(request: Request) -> dict[str, str]:
    """The pretrained models that the user named, by kind."""
    typed = {
        "llm": request.llm,
        "text": request.text_encoder,
        "image": request.image_encoder,
        "caption": request.captioner,
    }
    return {kind: name for kind, name in typed.items() if name}


OPTIONS = {
    "llm": "--llm",
    "text": "--text-encoder",
    "image": "--image-encoder",
    "caption": "--captioner",
}
WORDS = {
    "llm": "a language model",
    "text": "a text encoder",
    "image": "an image encoder",
    "caption": "a captioner",
}


def models_of(run: Run) -> dict[str, str]:
    """Names of the pretrained models behind a run, by kind."""
    system: System = PAPERS[run.paper].SYSTEMS[run.system]
    return system.pretrained(run.settings)


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
    tables = made_on(request.dataset, resolve(request.targets))
    if request.preset == "demo":
        check_synthetic(tables)
    picked = pick_rows(request.rows, tables)
    planner = Planner(request, parse_overrides(request.overrides, tables))
    systems = systems_of(tables).values()
    for kind, name in typed_models(request).items():
        if not any(s.backbone if kind == "llm" else kind in s.encoders for s in systems):
            raise RequestError(
                f"{OPTIONS[kind]} {name}: no row of {', '.join(t.id for t in tables)} has "
                f"{WORDS[kind]}"
            )
    spots = [spot for table in tables for spot in planner.spots(table, picked)]
    # Requested cells come first: what they look up also serves the others, which may not ask.
    for at in sorted(range(len(spots)), key=lambda at: not spots[at].requested):
        spots[at] = planner.decide(spots[at])
    planned = Plan(
        request, tuple(tables), tuple(spots), planner.notes, planner.overrides, planner.unreached
    )
    if spots and not any(spot.requested for spot in spots):
        raise RequestError(
            f"--row {' --row '.join(request.rows)} has no cell on {request.dataset}. "
            f"See: python -m reprokit show {tables[0].id}"
        )
    # What is missing leaves empty cells; where nothing at all could be made the request is wrong.
    if (planner.missing or planner.unknown) and not planned.wanted:
        lines = "; ".join(dict.fromkeys([*planner.missing.values(), *planner.unknown.values()]))
        raise DataError(lines) if planner.missing else RequestError(lines)
    return planned


def made_on(dataset: str, tables: Sequence[Table]) -> list[Table]:
    """The tables on a data set: those that only name it among the others are made on it instead of
    their own; all are left as they are where it is empty. Raises RequestError for an unknown one.
    """
    named = [n for t in tables for n in (t.home, *t.datasets, *t.others)]
    known = list(dict.fromkeys(name for name in named if name))
    if dataset and dataset not in known:
        raise RequestError(
            f"no target has data set '{dataset}'{did_you_mean(dataset, known)} "
            f"These targets have: {', '.join(known) or 'none'}."
        )
    return [
        table.on(dataset) if dataset in table.others and dataset not in table.datasets else table
        for table in tables
    ]


def check_synthetic(tables: Sequence[Table]) -> None:
    """Raises RequestError where a data set that is no table's own has no synthetic stand-in."""
    for table in tables:
        for name in table.datasets:
            if f"demo-{name}" not in PAPERS[table.paper].DATASETS and table.instead:
                raise RequestError(
                    f"--dataset {table.instead}: the demo preset has no synthetic data in its "
                    f"place, and {table.id} is made on it with --preset small or paper alone"
                )


def is_asked(request: Request, dataset: str) -> bool:
    """Whether a request asks for cells on a data set: it names the set, or what it is a part of."""
    return not request.dataset or within(request.dataset, dataset)


class Planner:
    """Makes the spots of tables; fingerprints each data set and each model at most once."""

    def __init__(self, request: Request, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        self.request = request
        self.overrides = overrides
        self.notes: dict[str, tuple[str, ...]] = {}
        self.known: dict[tuple[str, str, bool], tuple[str, str]] = {}
        self.missing: dict[str, str] = {}
        """Requested data sets that are not here, and what to do."""
        self.models: dict[tuple[str, str], tuple[str, str]] = {}
        self.unknown: dict[str, str] = {}
        """Requested pretrained models that cannot be found, and what to do."""
        self.unreached: dict[str, str] = {}
        """The same in a dry run, which goes on without them."""

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

    def pretrained(self, models: Mapping[str, str], ask: bool) -> tuple[str, str]:
        """(fingerprint, "") of the pretrained models of a run, by kind, or ("", why there is none).

        Only with `ask` may they be looked for on another machine. A dry run goes on without them.
        """
        found = {kind: self.model(kind, name, ask) for kind, name in models.items()}
        missing = next((reason for _, reason in found.values() if reason), "")
        prints = {kind: fingerprint for kind, (fingerprint, _) in found.items()}
        if missing or NO_MODEL in prints.values():
            return ("", missing) if missing else (NO_MODEL, "")
        if list(prints) == ["llm"]:
            return prints["llm"], ""
        return "; ".join(f"{kind} {fingerprint}" for kind, fingerprint in prints.items()), ""

    def model(self, kind: str, name: str, ask: bool) -> tuple[str, str]:
        """The same of one model. One that stands for itself, such as none, is its own name."""
        if name in STANDINS[kind] or (kind == "llm" and name.startswith("endpoint:")):
            return name, ""
        if (kind, name) == ("llm", EXTRACTIVE):
            from reprokit.summaries import REVISION

            return f"{name}, recipe {REVISION}", ""
        if (kind, name) not in self.models:
            digests = self.request.out / "fingerprints.json"
            cache = digests if digests.is_file() or not self.request.dry_run else None
            offline = self.request.offline or not ask
            try:
                if kind in ("llm", "t5"):
                    from reprokit.backbones import identify

                    self.models[kind, name] = identify(name, cache, offline), ""
                elif kind == "caption":
                    from reprokit.captions import identify_captioner

                    self.models[kind, name] = identify_captioner(name, cache, offline), ""
                else:
                    from reprokit.encoders import identify_encoder

                    self.models[kind, name] = identify_encoder(name, kind, cache, offline), ""
            except RequestError as error:
                self.models[kind, name] = self.without_model(name, str(error), ask)
        return self.models[kind, name]

    def without_model(self, name: str, reason: str, ask: bool) -> tuple[str, str]:
        if not ask:
            return "", NOT_REQUESTED
        if self.request.dry_run:
            self.unreached[name] = reason
            return NO_MODEL, ""
        self.unknown[name] = reason
        return "", reason

    def spots(self, table: Table, picked: set[tuple[str, str]]) -> Iterator[Spot]:
        """All cells of a table, still without runs: the declared rows, then our own."""
        published = table.published
        columns = {column.name: column for column in table.columns}
        declared = {row.label: row for row in table.rows}
        asked = {label for label in published.labels if not picked or (table.id, label) in picked}
        # A requested row needs its base row, and a best-of row those it chooses from.
        for label in [label for label in asked if label in declared]:
            asked |= {declared[label].base, *declared[label].best_of} - {""}
        lines = [(declared.get(label), label in asked) for label in published.labels]
        # Our own rows run along, but none with a language model unless it is asked for.
        systems = PAPERS[table.paper].SYSTEMS
        for own in table.sanity:
            cheap = not (own.on_request or (own.system and systems[own.system].backbone))
            lines.append((own, cheap or not picked or (table.id, own.label) in picked))
        for line, (row, requested) in enumerate(lines):
            for name in published.header[published.n_labels :]:
                spot = Spot(table, line, name, row, columns.get(name), requested=requested)
                if is_blank(spot):
                    yield dataclasses.replace(spot, blank=True, requested=False)
                else:
                    inside = is_asked(self.request, dataset_of(spot))
                    yield dataclasses.replace(spot, requested=requested and inside)

    def decide(self, spot: Spot) -> Spot:
        """Add the runs, or the reason why there are none."""
        row, column = spot.row, spot.column
        if spot.blank:
            return spot
        if row is None or column is None or not (row.best_of or row.system or column.system):
            reason = NOT_BUILT if spot.requested else NOT_REQUESTED
            return dataclasses.replace(spot, reason=reason)
        if column.base_column or row.best_of:  # made from other cells
            return spot
        if spot.table.is_left_out(dataset_of(spot)):  # runs on it that are kept: the paper's table
            return dataclasses.replace(spot, reason=NOT_REQUESTED)
        runs, missing = self.row_runs(spot.table, row, column, dataset_of(spot), spot.requested)
        reason = missing if spot.requested else NOT_REQUESTED
        return dataclasses.replace(spot, runs=runs, reason=reason)

    def row_runs(
        self, table: Table, row: Row, column: Column, dataset: str, read: bool
    ) -> tuple[tuple[Run, ...], str]:
        """The runs of a cell, one per seed; or none, and the reason."""
        name = row.system or column.system
        system: System = PAPERS[table.paper].SYSTEMS[name]
        fingerprint, missing = self.fingerprint(table.paper, dataset, read)
        if missing:
            return (), missing
        declared = {**column.settings, **row.settings}
        of = declared.get("of", "")
        chosen = declared | user_settings(self.request, self.overrides, table.paper, name, of)
        try:
            settings = system.configure(dataset, self.request.preset, chosen)
        except ValueError as error:
            raise RequestError(f"settings of {name} on {dataset}: {error}") from None
        backbone, missing = self.pretrained(system.pretrained(settings), read)
        if missing:
            return (), missing
        run = Run(
            paper=table.paper,
            system=name,
            dataset=self.actual(dataset),
            settings=settings,
            seed=0,
            fingerprint=fingerprint,
            revision=system.revision,
            precision=os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
            backbone=backbone,
        )
        seeds = self.seeds(table) if system.is_seeded(settings) else 1
        return tuple(dataclasses.replace(run, seed=seed) for seed in range(seeds)), ""

    def seeds(self, table: Table) -> int:
        """Runs per cell of a seeded system."""
        own = table.seeds
        if self.request.preset == "demo":
            own = min(own, table.demo_seeds)
        return self.request.seeds or own


def dataset_of(spot: Spot) -> str:
    """The data set that the row or else the column names."""
    named = [part.dataset for part in (spot.row, spot.column) if part and part.dataset]
    return named[0] if named else ""


def is_blank(spot: Spot) -> bool:
    """Whether no value belongs in a cell: print has none, or RelaImpr has nothing to refer to."""
    table, derived = spot.table, bool(spot.column and spot.column.base_column)
    other = bool(spot.row and spot.row.columns and spot.name not in spot.row.columns)
    if spot.line >= len(table.published.rows):
        return derived or other
    if table.is_figure and other:
        return True
    if table.is_figure:
        return derived and not (spot.row and spot.row.base)
    return not table.published.cell(spot.line, spot.name)


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
    """Rows by label, ours too: in each table an exact match (any case), else a part of it."""
    picked: set[tuple[str, str]] = set()
    for text in texts:
        found = set()
        for table in tables:
            labels = labels_of(table)
            exact = [label for label in labels if label.lower() == text.lower()]
            parts = [label for label in labels if text.lower() in label.lower()]
            found |= {(table.id, label) for label in exact or parts}
        if not found:
            known = [label for table in tables for label in labels_of(table)]
            raise RequestError(
                f"no row '{text}' in {', '.join(t.id for t in tables)}{did_you_mean(text, known)} "
                f"See: python -m reprokit show {tables[0].id}"
            )
        picked |= found
    return picked


def labels_of(table: Table) -> list[str]:
    return [*table.published.labels, *(row.label for row in table.sanity)]


def systems_of(tables: Sequence[Table]) -> dict[str, System]:
    """The systems behind some tables, by name, and those that they measure."""
    systems: dict[str, System] = {}
    for table in tables:
        known: Mapping[str, System] = PAPERS[table.paper].SYSTEMS
        parts: list[Row | Column] = [*table.rows, *table.sanity, *table.columns]
        for part in parts:
            if part.system:
                system = systems[part.system] = known[part.system]
                of = part.settings.get("of", "")
                if of and isinstance(system, Measuring):
                    systems[of] = system.other(of)
    return systems


def parse_overrides(texts: Sequence[str], tables: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """`system.key=value` -> typed values by system; only systems that the tables use."""
    systems = systems_of(tables)
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
        items = dataclasses.fields(systems[name].settings)
        known = {item.name: item for item in items if item.metadata.get("settable", True)}
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
    """What a dry run would have to fetch first: a line per missing data set and language model."""
    lines = {}
    for name, look_for in reading(planned):
        try:
            look_for(planned.request.data_dir)
        except DataError:
            registered = DATASETS[name]
            size = megabytes(registered.size) if registered.size else "size not known"
            fetch = f"python -m reprokit data fetch {registered.name}"
            lines[registered.name] = f"{registered.name} ({size}): {fetch}"
    return [*lines.values(), *model_downloads(planned)]


def reading(planned: Plan) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """The registered data sets that the requested tables and runs read, each by itself, and what
    raises DataError where a file of it is missing from a data directory."""
    request = planned.request
    for table in planned.tables:
        for name in table.datasets:
            wanted = request.preset != "demo" and is_asked(request, name)
            if not wanted or table.is_left_out(name):
                continue
            source: Source | None = PAPERS[table.paper].DATASETS[name]
            while source:
                if source.registered:
                    yield source.registered, dataclasses.replace(source, beside=None).paths
                source = source.beside
    trained = (getattr(run.settings, "measured", run.settings) for run in planned.wanted)
    if any(getattr(settings, "stage1", "") == "alpaca" for settings in trained):
        files = [file.path for file in DATASETS["alpaca"].files]
        yield "alpaca", partial(require, "alpaca", paths=files)


def model_downloads(planned: Plan) -> Iterator[str]:
    """The pretrained models of the requested runs that are not on this machine."""
    named = dict.fromkeys(item for run in planned.wanted for item in models_of(run).items())
    for kind, name in named:
        if name in (*STANDINS[kind], EXTRACTIVE) or name.startswith("endpoint:"):
            continue
        if kind == "caption" and (line := captioner_download(name, planned)):
            yield line
        if kind in ("text", "image") and name in planned.unreached:
            yield f"{name} (size not known): {planned.unreached[name]}"
        if kind == "t5" and (line := t5_download(name, planned)):
            yield line
        if kind != "llm":
            continue
        from reprokit.sizes import download_bytes

        reason = planned.unreached.get(name, "")
        try:
            size = download_bytes(name)
        except RequestError as error:
            size, reason = 0, str(error)
        if size or reason:
            text = megabytes(size) if size else "size not known"
            yield f"{name} ({text}): {reason or 'by the first run that uses it'}"


BLIP2_BYTES = 15_500_000_000
"""Of BLIP-2 with OPT-2.7B, the only captioner that has a name of its own."""


def captioner_download(name: str, planned: Plan) -> str:
    """The line of a captioner that is not on this machine; empty where it is."""
    from reprokit.captions import BLIP2, PALETTE, locate_captioner
    from reprokit.encoders import on_this_machine

    reason = planned.unreached.get(name, "")
    if name == PALETTE or (not reason and on_this_machine(locate_captioner(name))):
        return ""
    size = megabytes(BLIP2_BYTES) if name == BLIP2 else "size not known"
    return f"{name} ({size}): {reason or 'by the first run that uses it'}"


T5_BYTES = {"google-t5/t5-small": 242_000_000, "google-t5/t5-base": 892_000_000}


def t5_download(name: str, planned: Plan) -> str:
    """The line of a T5 that is not on this machine; empty where it is."""
    from reprokit.backbones import cached_snapshot, hub_name, is_whole, local_folder
    from reprokit.homemade import TINY

    reason = planned.unreached.get(name, "")
    if name == TINY or (not reason and local_folder(name)):
        return ""
    snapshot = None if reason else cached_snapshot(*hub_name(name))
    if snapshot and is_whole(snapshot):
        return ""
    size = megabytes(T5_BYTES[name]) if name in T5_BYTES else "size not known"
    return f"{name} ({size}): {reason or 'by the first run that uses it'}"
