"""The human study of ExplainRec, section IV.F: rating sheets out, ratings in.

`export` takes what ExplainRec, TALLRec and NARRE said of the same recommendations and writes for
each rater a sheet (CSV) and a form (HTML) with the same lines. Which system wrote an explanation
stands in `key.json` alone: a code of its own stands for it on every sheet, and cases and the
explanations of a case are in an order of each rater's own. `analyse` reads what came back and names
every line that cannot be used. No rating is ever made here.

The paper prints nine means and says "100 users" and "5-point scale". Open: how many explanations a
user saw, of which data set, whether blinded, and any measure of spread or agreement.

What is computed, for each criterion:

- the mean of a system, over all its ratings, and a 95% interval from a bootstrap that draws raters
  and cases anew, both with replacement (Owen, Annals of Applied Statistics 2007): ratings of one
  rater, or of one case, are not independent;
- each pair of systems by Wilcoxon's signed-rank test over the pairs of one rater and one case, with
  the p-values of all tests of the study corrected by Holm (1979), and the rank-biserial
  correlation (Kerby 2014) as the size of the effect;
- Krippendorff's alpha over raters (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011).

Importing this module loads neither torch nor scipy.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.agreement import Bootstrap, compare, holm, krippendorff
from reprokit.data import Source
from reprokit.rating_forms import (
    COLUMNS,
    CRITERIA,
    FORMAT,
    SHOWN,
    SYSTEMS,
    content_of,
    export,
    one_line,
    shared_cases,
)
from reprokit.rendering import csv_text, grid, literal
from reprokit.runs import (
    Estimate,
    Job,
    RequestError,
    Result,
    Run,
    Store,
    System,
    Unavailable,
    atomic,
    digest,
    setting,
    write_json,
)
from reprokit.tables import Table

if TYPE_CHECKING:
    from reprokit.plan import Plan

PAPER_RATERS = 100
REPORT = "human.csv"
KINDS = (".csv", ".xlsx", ".xls", ".ods")
"""Endings of what may be a returned sheet; the first alone is read."""


# --- what is rated ------------------------------------------------------------------------------
def explaining_runs(planned: Plan) -> tuple[str, dict[str, Run]]:
    """(data set, run by system) of the first data set that all three systems explain.

    Of several runs of a system the one of the earliest cell counts.

    Raises RequestError that says what is missing.
    """
    store, wanted = Store(planned.request.out), planned.request.dataset
    found: dict[str, dict[str, Run]] = {}
    for run in planned.runs:
        known = found.setdefault(run.dataset, {})
        fits = wanted in ("", run.dataset.removeprefix("demo-"))
        if not fits or run.system not in SYSTEMS or run.system in known:
            continue
        stored = store.load(run)
        if stored and "explain/texts" in stored["predictions"]["columns"]:
            known[run.system] = run
    for dataset, known in found.items():
        if len(known) == len(SYSTEMS):
            return dataset, {name: known[name] for name in SYSTEMS}
    best = max(found.values(), key=len, default={})
    missing = [title for name, title in SYSTEMS.items() if name not in best]
    raise RequestError(
        f"{planned.request.out}: no finished run of {', '.join(missing)} holds explanations"
        f"{f' of {wanted}' if wanted else ''} (preset {planned.request.preset}). Make them first: "
        f"python -m reprokit reproduce explainrec --preset {planned.request.preset}"
    )


# --- what came back -----------------------------------------------------------------------------
@dataclass
class Reading:
    """The usable ratings of some sheets, and what is wrong with the rest."""

    ratings: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """By code: one from 1 to 5 per criterion."""
    places: dict[str, str] = field(default_factory=dict)
    """By code: the line that they are of."""
    problems: list[str] = field(default_factory=list)
    """`file, line N: what`, `file: what` or `sheet S: what`."""
    left_out: int = 0
    """Lines with a problem."""
    blank: int = 0
    """Explanations that nobody rated; no problem on a sheet that is blank, as the originals are."""

    def report(self, problem: str) -> None:
        """What a returned cell holds may be anything, control characters of a terminal included."""
        self.problems.append(one_line(problem))

    @property
    def unusable(self) -> str:
        """Why nothing can be used, where nothing can."""
        blank = f"{self.blank} lines without a rating" if self.blank else "no line with a rating"
        return f"no usable line in the sheets: {self.problems[0] if self.problems else blank}"


def read_key(path: Path) -> dict[str, Any]:
    """Raises RequestError where it is no key of a study."""
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
        fits = key["format"] == FORMAT and all(
            one["system"] in SYSTEMS
            and one["case"] in key["cases"]
            and one["sheet"] in key["sheets"]
            and one["content"]
            for one in key["codes"].values()
        )
    except FileNotFoundError:
        raise RequestError(
            f"{path} is missing: `human export` writes the key beside the sheets"
        ) from None
    except (ValueError, TypeError, LookupError, AttributeError):
        fits = False
    if not fits:
        raise RequestError(f"{path} is no key.json of `human export`, or a damaged one")
    return dict(key)


def read_sheets(paths: Sequence[Path], key: Mapping[str, Any]) -> Reading:
    """The ratings in returned sheets; a folder stands for its CSV files but our own report. A file
    that a spreadsheet keeps in a form of its own is named.

    Of several usable copies of a line the first counts, in order of the files' names. Another copy
    is no problem where it says the same, or says nothing.

    Raises RequestError where a path does not exist.
    """
    reading = Reading()
    every = [p for path in paths for p in (sheets_in(path) if path.is_dir() else [path])]
    lines = []
    for path in sorted(dict.fromkeys(every), key=lambda path: (path.name, str(path))):
        if not path.is_file():
            raise RequestError(f"{path} does not exist: name the returned sheets, or their folder")
        lines += [(where, *parse(line, key)) for where, line in read_sheet(path, reading)]
    for where, code, values, fault in lines:
        if not fault and all(values) and code not in reading.ratings:
            reading.ratings[code], reading.places[code] = values, where
    for where, code, values, fault in lines:
        if fault := fault or dispute(code, values, reading):
            reading.report(f"{where}: {fault}")
            reading.left_out += 1
    seen = {code for _, code, _, _ in lines if code}
    told = {code for _, code, values, fault in lines if code and (fault or any(values))}
    reading.blank = len(seen - told)
    for sheet in sorted({key["codes"][code]["sheet"] for code in told}):
        own = {code for code, one in key["codes"].items() if one["sheet"] == sheet}
        for what, count in (("missing", len(own - seen)), ("blank", len(own & seen - told))):
            if count:
                reading.report(f"sheet {sheet}: {count} of its {len(own)} lines are {what}")
    return reading


def sheets_in(folder: Path) -> list[Path]:
    """What may be a returned sheet, in order; nothing where there is no such folder."""
    every = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in every if path.suffix.lower() in KINDS and path.name != REPORT]


def read_sheet(path: Path, reading: Reading) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, cells) of each line of a file, whatever separator a spreadsheet has put into it."""
    if path.suffix.lower() in KINDS[1:]:
        reading.report(f"{path}: not CSV but {path.suffix}; save it as 'CSV UTF-8'")
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        reading.report(f"{path}: not in UTF-8; save it as 'CSV UTF-8'")
        return
    head = text.partition("\n")[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    try:
        header = [name.strip().lower() for name in next(lines, [])]
        if absent := [name for name in COLUMNS if header.count(name) != 1]:
            reading.report(f"{path}: not one column {', '.join(absent)} in its first line")
            return
        for line in lines:
            if any(cell.strip() for cell in line):
                yield f"{path}, line {lines.line_num}", dict(zip(header, line, strict=False))
    except csv.Error as error:
        reading.report(f"{path}, line {lines.line_num}: not CSV ({error})")


def parse(line: Mapping[str, str], key: Mapping[str, Any]) -> tuple[str, tuple[int, ...], str]:
    """(code, ratings, what is wrong) of a line: an empty code where the key has no such line, 0 for
    a rating that was not given."""
    cells = {name: line.get(name, "").strip() for name in COLUMNS}
    code = cells["code"].upper()
    told = key["codes"].get(code)
    if told is None:
        return "", (), f"code '{code}' is not in the key"
    if cells["sheet_id"] != told["sheet"] or cells["case"] != told["case"]:
        return "", (), f"code {code} belongs to sheet {told['sheet']}, {told['case']}"
    given = {name: cells[name] for name in CRITERIA}
    if any(given.values()) and content_of([cells[name] for name in SHOWN]) != told["content"]:
        return code, (), "the history, the item or the explanation was changed"
    values = []
    for name, cell in given.items():
        found = re.fullmatch(r"([1-5])(?:[.,]0*)?", cell)
        if cell and not found:
            return code, (), f"{name} '{cell}' is not 1 to 5"
        values.append(int(found[1]) if found else 0)
    return code, tuple(values), ""


def dispute(code: str, values: Sequence[int], reading: Reading) -> str:
    """What is wrong with a line beside the one that counts; empty where it adds nothing to it."""
    counted = reading.ratings.get(code)
    if counted is None:
        absent = [name for name, value in zip(CRITERIA, values, strict=True) if not value]
        return f"{' and '.join(absent)} missing" if any(values) else ""
    if all(value in (0, known) for value, known in zip(values, counted, strict=True)):
        return ""
    return f"code {code} is rated otherwise in {reading.places[code]}, which counts"


def cube_of(reading: Reading, key: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
    """(ratings (raters, cases, systems, criteria), nan where there is none; names of the raters).

    Raters and cases are those with a usable line, in order: no other one can be drawn anew.
    """
    told = {code: key["codes"][code] for code in reading.ratings}
    raters = sorted({one["sheet"] for one in told.values()})
    cases = sorted({one["case"] for one in told.values()})
    cube = np.full((len(raters), len(cases), len(SYSTEMS), len(CRITERIA)), np.nan)
    for code, values in reading.ratings.items():
        one = told[code]
        at = (
            raters.index(one["sheet"]),
            cases.index(one["case"]),
            list(SYSTEMS).index(one["system"]),
        )
        cube[at] = values
    return cube, raters


def means(cube: np.ndarray) -> dict[str, float]:
    found = {
        f"{criterion}/{system}": cube[:, :, s, c]
        for c, criterion in enumerate(CRITERIA)
        for s, system in enumerate(SYSTEMS)
    }
    given = {name: values[~np.isnan(values)] for name, values in found.items()}
    return {name: float(values.mean()) for name, values in given.items() if len(values)}


# --- analysis -----------------------------------------------------------------------------------
def analyse(
    reading: Reading,
    key: Mapping[str, Any],
    draws: int = 2000,
    seed: int = 0,
    compared: bool = True,
) -> dict[str, Any]:
    """All that is said of a study, ready for JSON.

    `compared`: False leaves out the tests of systems against each other.

    Raises RequestError where no line is usable.
    """
    if not reading.ratings:
        raise RequestError(reading.unusable)
    cube, raters = cube_of(reading, key)
    boot = Bootstrap(len(cube), cube.shape[1], draws, seed)
    tests = list(pairwise(cube, boot)) if compared else []
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = corrected
    return {
        "dataset": key.get("dataset", ""),
        "preset": key.get("preset", ""),
        "raters": len(raters),
        "raters_in_key": len(key["sheets"]),
        "cases": cube.shape[1],
        "lines": len(reading.ratings),
        "lines_left_out": reading.left_out,
        "lines_blank": reading.blank,
        "problems": reading.problems,
        "interval": f"95%, bootstrap over raters and cases, {draws} draws, seed {seed}",
        "means": list(averages(cube, boot)),
        "tests": tests,
        "agreement": list(agreement(cube)),
    }


def averages(cube: np.ndarray, boot: Bootstrap) -> Iterator[dict[str, Any]]:
    published = Table("explainrec/human", "").published
    found = means(cube)
    for c, criterion in enumerate(CRITERIA):
        for s, (system, title) in enumerate(SYSTEMS.items()):
            values = cube[:, :, s, c]
            yield {
                "criterion": criterion,
                "system": system,
                "n": int((~np.isnan(values)).sum()),
                "mean": found.get(f"{criterion}/{system}"),
                "interval": boot.interval(values),
                "published": float(published.cell(c, title)),
            }


def pairwise(cube: np.ndarray, boot: Bootstrap) -> Iterator[dict[str, Any]]:
    """A test of each two systems that a rater rated in one case."""
    for c, criterion in enumerate(CRITERIA):
        for (a, first), (b, second) in combinations(enumerate(SYSTEMS), 2):
            one, other = cube[:, :, a, c], cube[:, :, b, c]
            difference = one - other
            if np.isnan(difference).all():
                continue
            yield {
                "criterion": criterion,
                "first": first,
                "second": second,
                "difference": float(np.nanmean(difference)),
                "interval": boot.interval(difference),
                **compare(one, other),
            }


def agreement(cube: np.ndarray) -> Iterator[dict[str, Any]]:
    """Alpha over all explanations, each a unit that the raters observe."""
    for c, criterion in enumerate(CRITERIA):
        units = cube[..., c].reshape(len(cube), -1)
        alphas = {level: krippendorff(units, level) for level in ("ordinal", "interval")}
        yield {"criterion": criterion, **alphas}


def to_csv(report: Mapping[str, Any]) -> str:
    """The means in the shape of the published table."""
    published = Table("explainrec/human", "").published
    shown = {(one["criterion"], one["system"]): decimals(one["mean"]) for one in report["means"]}
    rows = [
        [label, *(shown[criterion, system] for system in SYSTEMS)]
        for label, criterion in zip(published.labels, CRITERIA, strict=True)
    ]
    return csv_text([list(published.header), *rows])


def decimals(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def ranged(interval: Sequence[float] | None) -> str:
    return "not known" if interval is None else " to ".join(decimals(end) for end in interval)


def small(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as a person reads it."""
    rated = [("Criterion", "System", "Ratings", "Mean", "95% interval", "Published")]
    for one in report["means"]:
        row = (one["criterion"], SYSTEMS[one["system"]], str(one["n"]), decimals(one["mean"]))
        rated.append((*row, ranged(one["interval"]), f"{one['published']:.1f}"))
    head = (
        "Criterion",
        "Systems",
        "Pairs",
        "Difference",
        "95% interval",
        "p",
        "p (Holm)",
        "Effect",
    )
    tests = [head]
    for one in report["tests"]:
        names = f"{SYSTEMS[one['first']]} - {SYSTEMS[one['second']]}"
        row = (one["criterion"], names, str(one["pairs"]), f"{one['difference']:+.2f}")
        both = (small(one["p"]), small(one["p_holm"]), f"{one['effect']:+.2f}")
        tests.append((*row, ranged(one["interval"]), *both))
    alphas = [("Criterion", "Alpha, ordinal", "Alpha, interval")]
    for one in report["agreement"]:
        ordinal, interval = (decimals(one[k], 3) or "not defined" for k in ("ordinal", "interval"))
        alphas.append((one["criterion"], ordinal, interval))
    about = f" on {report['dataset']}, preset {report['preset']}" if report["dataset"] else ""
    lines = [
        f"# Human study: explanations{about}",
        f"{report['raters']} of {report['raters_in_key']} raters returned usable ratings of "
        f"{report['cases']} cases, {report['lines']} lines; {report['lines_left_out']} lines were "
        f"left out, {report['lines_blank']} were not rated. The paper had {PAPER_RATERS} users.",
        grid(rated),
        f"Interval: {report['interval']}. Ratings of one rater, or of one case, are not "
        "independent.",
        grid(tests),
        "Wilcoxon's signed-rank test over pairs of one rater and one case, p corrected by Holm "
        "over all tests above; it takes the pairs for independent, the interval does not. Effect: "
        "rank-biserial correlation, positive where the first system is rated higher.",
        grid(alphas),
        "Krippendorff's alpha over raters: 1 is full agreement, 0 is chance.",
    ]
    if report["dataset"].startswith("demo-"):
        lines.insert(1, "Synthetic data: these ratings say nothing about the paper's systems.")
    if report["problems"]:
        lines += [
            "## What could not be used",
            "\n".join(f"- {literal(p)}" for p in report["problems"]),
        ]
    return "\n\n".join(lines) + "\n"


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    for name, text in ((REPORT, to_csv(report)), ("human.md", to_markdown(report))):
        with atomic(folder / name) as file:
            file.write(text)
    write_json(folder / "human.json", report)


# --- commands -----------------------------------------------------------------------------------
def export_command(options: argparse.Namespace) -> int:
    """`human export`."""
    from reprokit.plan import Request, plan
    from reprokit.ratings import load_feedback

    # Of several runs of a system those behind the study's own table count, then table 1's.
    request = Request(
        targets=("explainrec/human", "explainrec/table1", "explainrec"),
        preset=options.preset,
        dataset=options.dataset,
        llm=options.llm,
        text_encoder=options.text_encoder,
        image_encoder=options.image_encoder,
        overrides=tuple(options.set),
        data_dir=options.data_dir,
        out=options.out,
        offline=True,
    )
    dataset, runs = explaining_runs(plan(request))
    store = Store(options.out)
    explained = {name: store.predictions(run) for name, run in runs.items()}
    data = load_feedback(dataset, options.data_dir, runs["explainrec"].fingerprint)
    ids = {name: run.id for name, run in runs.items()}
    about = {"dataset": dataset, "preset": options.preset, "runs": ids}
    folder = options.folder or options.data_dir / FOLDER
    cases = shared_cases(explained, data)
    made = export(cases, folder, options.raters, options.items, options.seed, about)
    print(
        f"{folder}: {options.raters} sheets and forms of {options.items} cases out of "
        f"{len(cases):,} on {dataset}, {len(SYSTEMS) * options.items} explanations each; "
        f"{made.guarded} lines have a cell guarded against being read as a formula or a number.\n"
        "Give each rater README.txt and one form or sheet. Keep key.json to yourself. Put what "
        f"comes back in {folder / 'returned'}, then:\n"
        f"python -m reprokit human analyse {folder / 'returned'} --key {folder / 'key.json'}"
    )
    return 0


def analyse_command(options: argparse.Namespace) -> int:
    """`human analyse`: 0 where something could be read; with --strict, only if all of it could."""
    key = read_key(options.key)
    reading = read_sheets(options.sheets, key)
    for problem in reading.problems:
        print(f"reprokit: {problem}", file=sys.stderr)
    if options.strict and reading.problems:
        raise RequestError(f"--strict: {len(reading.problems)} faults in the sheets, named above")
    report = analyse(reading, key, seed=options.seed)
    folder = options.out or options.key.parent
    write_report(report, folder)
    print(to_markdown(report))
    print(f"human.csv, human.md, human.json: {folder}")
    return 0


# --- the table's cells --------------------------------------------------------------------------
FOLDER = "human-study"
"""In the data directory: what `export` writes and, in `returned`, what came back."""
MISSING = (
    "no rater's sheet is in {}: python -m reprokit human export writes sheets; put those that come "
    "back there"
)


@dataclass(frozen=True)
class HumanSettings:
    """How returned sheets are read."""

    draws: int = setting(2000, "of the bootstrap over raters and cases")

    def __post_init__(self) -> None:
        if self.draws < 100:
            raise ValueError(f"draws must be at least 100 for a 95% interval, got {self.draws}")


class Returned(Source):
    """The study as a data set: its content is the key and the sheets that came back."""

    def fingerprint(
        self, data_dir: Path, cache: Path | None = None, read: bool = True, keep: bool = True
    ) -> str:
        folder = data_dir / FOLDER
        files = [folder / "key.json", *sheets_in(folder / "returned")]
        parts = [(path.name, path.read_bytes().hex()) for path in files if path.is_file()]
        return digest([FORMAT, parts])


HUMAN_DATA: Mapping[str, Source] = {
    name: Returned(read_key, {"users": 0, "items": 0, "train": 0})
    for name in (FOLDER, f"demo-{FOLDER}")
}
"""For rows that are made when sheets come back, and made again when more do."""


def studied(folder: Path) -> tuple[dict[str, Any], Reading] | None:
    """The key of a study and what came back; None where nothing did."""
    if not (folder / "key.json").is_file() or not sheets_in(folder / "returned"):
        return None
    key = read_key(folder / "key.json")
    return key, read_sheets([folder / "returned"], key)


def run_human(job: Job) -> Result:
    """Section IV.F: the means of what raters returned, and nothing where none did.

    Raises Unavailable where no usable rating came back, or they are about another data set.
    """
    folder, ours = job.data_dir / FOLDER, job.run.dataset
    found = studied(folder)
    if found is None:
        raise Unavailable(MISSING.format(folder / "returned"))
    key, reading = found
    about = str(key.get("dataset", ""))
    alike = about.startswith("demo-") == ours.startswith("demo-")
    if not alike or (ours not in HUMAN_DATA and about != ours):
        raise Unavailable(f"the study in {folder} is about {about or 'nothing named'}, not {ours}")
    if not reading.ratings:
        raise Unavailable(f"{folder / 'returned'}: {reading.unusable}")
    report = analyse(reading, key, job.run.settings.draws, compared=False)
    raters = report["raters"]
    notes = [f"{raters} raters, {report['cases']} cases of {about}; {report['interval']}"]
    notes += [remark(report, criterion) for criterion in CRITERIA]
    if reading.left_out:
        notes.append(f"{reading.left_out} returned lines could not be used; see: human analyse")
    return Result(
        {**means(cube_of(reading, key)[0]), "raters": raters, "lines": report["lines"]},
        predictions=rated_columns(reading, key),
        selection={"split": None, "why": "nothing was tuned or chosen"},
        data={"raters": raters, "cases": report["cases"], "lines left out": reading.left_out},
        deviations=(f"{raters} raters of our own in place of the paper's {PAPER_RATERS} users",),
        notes=tuple(notes),
    )


def remark(report: Mapping[str, Any], criterion: str) -> str:
    """Intervals and agreement of a criterion."""
    told = [
        f"{SYSTEMS[one['system']]} {ranged(one['interval'])}"
        for one in report["means"]
        if one["criterion"] == criterion
    ]
    (alpha,) = (one["ordinal"] for one in report["agreement"] if one["criterion"] == criterion)
    agreed = decimals(alpha, 3) or "not defined"
    return f"{criterion}: {', '.join(told)}; Krippendorff's alpha (ordinal) {agreed}"


def rated_columns(reading: Reading, key: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every usable rating, one line each, in order of the codes."""
    codes = sorted(reading.ratings)
    columns = {
        f"human/{name}s": np.array([key["codes"][code][name] for code in codes])
        for name in ("sheet", "case", "system")
    }
    values = np.array([reading.ratings[code] for code in codes], np.int8)
    return columns | {f"human/{name}": values[:, at] for at, name in enumerate(CRITERIA)}


def estimate_human(_: Any, sizes: Mapping[str, int]) -> Estimate:
    return Estimate(10, 3e8, 1e6)


HUMAN = System(HumanSettings, run_human, estimate_human, seeded=False)
