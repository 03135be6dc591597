"""What describing reviews costs (MMREC): features from vectors that are given, and frozen models.

Run: python benchmarks/review_features.py --data-dir DATA

features  Everything between vectors that are given and what the models read, on generated reviews
          of the real release's shape: as many a user and a business, no held-out user in training,
          some businesses with thousands. Vectors of texts and pictures lie in files, as a run keeps
          them, and no encoder is loaded. The baseline and the proposed model each in a process of
          its own, step by step: seconds; the peak of resident memory, which counts pages of the
          files that were read and can be dropped; and the peak of anonymous memory, which cannot,
          from samples that the starting process takes. Files were just written, so they come from
          memory; --cold drops them from there, and the baseline reads them from the disk.
          Beside it, the same means in straightforward forms, each measurement in a process of its
          own. Loop: a list of documents for each group, a Python loop over rows, on some of them;
          its whole time is extrapolated and says so. Table: all documents as a matrix, their sums
          and each row's own as (N, D) matrices, on as many rows as fit in the goal's memory.
          The forms must give the same.
encoders  Seconds for 1,000 texts, pictures and sets of reviews, loading apart: MiniLM on reviews of
          real length (Amazon's musical instruments where --data-dir has them), ResNet-50 with
          random weights and a tiny random BLIP-2 on pictures from files, the captioner without a
          model, extractive summaries, price tags, types. What a whole release would take is
          extrapolated. The real BLIP-2 has 3.7 billion weights: of the tiny one only opening and
          preparing pictures says something of it.

The goals hold for the default sizes on two CPU cores. Exit status 1: the forms do not give the
same. 2: the data cannot be read, or the sizes do not fit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also runs from a checkout

from reprokit import features, profiles
from reprokit.datasets import DataError
from reprokit.download import digest as file_digest
from reprokit.encoders import MINILM
from reprokit.lexicon import split_sentences
from reprokit.pooling import Groups, Mean, blocks
from reprokit.profiles import Described, Frozen, Looked, Vectors, embedded
from reprokit.progress import Progress
from reprokit.provenance import peak_memory
from reprokit.reviewdata import REVIEW_DATA, load_reviews, review_world
from reprokit.reviews import Reviews
from reprokit.runs import RequestError, write_json
from reprokit.summaries import Asked, price_tags, summaries, type_names

PARTS = ("features", "encoders")
GOAL_SECONDS, GOAL_MEMORY = 20.0, 2000.0
"""For the baseline's part, texts and pictures and dense features together; memory in MB."""
TOLERANCE = 1e-6
"""Between the forms' vectors, whose numbers are below 1."""
FIELDS = ("texts of the user", "texts of the business", "pictures of the business")
FORMS = ("loop", "table", "ours")
LEAKAGE = "exclude_current"
GIVEN = "given"
"""The name of an encoder that does not exist: were it to be run, it would be refused."""
KEY = "given pictures"
REAL = "amazon-musical-instruments"
BATCH = 1024
"""Rows of a training step, as the papers' settings have it."""

# The release's shape. Its 112 MB leave about 24 words for each text.
PER_USER, PER_ITEM, EXTRA_PER_USER, PICTURES_PER_ROW = 2.9, 3.6, 1.7, 1.87
TAIL = 0.9
"""Of Zipf's law: with 100,000 reviews the largest business has about 4,000."""
EMPTY_TEXTS, WITHOUT_PICTURES, UNREADABLE = 0.03, 0.002, 0.02
STARS = (0.03, 0.03, 0.07, 0.19, 0.68)


# --- generated reviews --------------------------------------------------------------------------
def generated(rows: int, words: float) -> Reviews:
    """Reviews of the release's shape; the same ones for the same sizes."""
    rng = np.random.default_rng(0)
    n_users, n_items = math.ceil(rows / PER_USER), math.ceil(rows / PER_ITEM)
    held = rows // 10
    sizes = (rows - 2 * held, held, held)
    few = n_users // 10
    owners = np.split(np.arange(n_users), [n_users - 2 * few, n_users - few])
    users = np.concatenate([shared(rng, own, n) for own, n in zip(owners, sizes, strict=True)])
    weights = np.arange(1.0, n_items + 1) ** -TAIL
    texts = written(rows + int(EXTRA_PER_USER * n_users), words)
    filled = rng.random(rows) >= EMPTY_TEXTS
    named = np.where(
        rng.random(rows) < WITHOUT_PICTURES, 0, 1 + rng.poisson(PICTURES_PER_ROW - 1, rows)
    )
    n_pictures = int(named.sum())
    return Reviews(
        name="generated",
        kind="restaurant",
        lexicon="restaurants",
        users=users,
        items=shared(rng, np.arange(n_items), rows, weights / weights.sum()),
        ratings=rng.choice(np.arange(1, 6, dtype=np.float32), rows, p=STARS),
        texts=[text if full else "" for text, full in zip(texts[:rows], filled, strict=True)],
        split=np.repeat(np.arange(3, dtype=np.int8), sizes),
        user_ids=[f"user{at}" for at in range(n_users)],
        item_ids=[f"place{at}" for at in range(n_items)],
        pictures=[f"photo{at}" for at in range(n_pictures)],
        picture_rows=np.repeat(np.arange(rows), named),
        picture_of=np.arange(n_pictures),
        item_pictures=np.full(n_items, -1),
        extra_users=np.sort(rng.integers(n_users, size=len(texts) - rows)),
        extra_texts=texts[rows:],
        times=None,
        picture_paths=[None] * n_pictures,
        counts={},
        paint=unpainted,
    )


def shared(
    rng: np.random.Generator, owners: np.ndarray, number: int, weights: Any = None
) -> np.ndarray:
    """Who owns each of some rows: everyone one at least, the rest by weight, in random order."""
    rest = rng.choice(owners, number - len(owners), p=weights)
    return rng.permutation(np.concatenate([owners, rest]))


def unpainted(names: Sequence[str]) -> np.ndarray:
    raise AssertionError("vectors of pictures are given, and yet one is looked at")


def written(number: int, words: float) -> list[str]:
    """Texts of so many words on average, of sentences in the demo's reviews."""
    from reprokit import synthetic, synthetic_media

    world = synthetic.make_world(replace(review_world(), n_users=300, n_films=60))
    records = synthetic_media.restaurant_reviews(world, chatter=2)["train"]
    found = (text for record in records for text in split_sentences(record["review_text"]))
    pool = [text for text in dict.fromkeys(found) if text.strip()]
    usual = float(np.mean([len(text.split()) for text in pool]))
    rng = np.random.default_rng(5)
    counts = 1 + rng.poisson(max(words / usual - 1, 0.0), number)
    chosen = iter(rng.integers(len(pool), size=counts.sum()).tolist())
    return [" ".join(pool[next(chosen)] for _ in range(count)) for count in counts.tolist()]


# --- vectors that are given ---------------------------------------------------------------------
def frozen(folder: Path) -> Frozen:
    return Frozen(folder, Progress(quiet=True), {"text": GIVEN, "image": GIVEN})


@contextmanager
def giving(options: argparse.Namespace) -> Iterator[None]:
    """Meanwhile, vectors that a profile looks for and does not find are drawn at random, and kept
    as those of an encoder are."""
    encode = features.make
    widths = {"text": options.text_width, "image": options.image_width}

    def make(items: Any, order: Any, counts: dict[str, int], path: Path, progress: Any) -> None:
        give(path, counts, widths[items.kind])

    features.make = make
    try:
        yield
    finally:
        features.make = encode


def give(path: Path, counts: dict[str, int], width: int) -> None:
    """Random vectors of unit length; of pictures some are zero, as those of unreadable ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    rows = next(iter(counts.values()))
    zero = UNREADABLE if "unreadable" in counts else 0.0
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in blocks(np.arange(rows)):
            vectors = rng.standard_normal((len(part), width), np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors[rng.random(len(part)) < zero] = 0
            file.write(vectors.tobytes())
    write_json(path.with_suffix(".json"), {"counts": counts, "sha256": file_digest(path)})


def forget(path: Path) -> None:
    """Drop a file from the memory that the system reads it into."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- seconds and memory -------------------------------------------------------------------------
class Steps:
    """What was done in this process, step by step."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        peak_memory(restart=True)
        start, before = time.monotonic(), time.process_time()
        yield
        end, after = time.monotonic(), time.process_time()
        self.found.append(
            {
                "name": name,
                "start": start,  # one clock for all processes, so that samples find their step
                "end": end,
                "seconds": end - start,
                "cpu": after - before,
                "resident": peak_memory() / 1e6,
                "anonymous": anonymous("self"),
            }
        )


def anonymous(process: str | int) -> float:
    """What a process holds now and no file does, in MB; nan where the system does not say."""
    with suppress(OSError, ValueError):  # no such system, or the process has just ended
        return of_status(process, "RssAnon:")
    return math.nan


def of_status(process: str | int, key: str) -> float:
    status = Path(f"/proc/{process}/status").read_text().split()
    return int(status[status.index(key) + 1]) * 1024 / 1e6


def in_a_process(options: argparse.Namespace, folder: Path, *what: Any) -> dict[str, Any]:
    """Steps measured in a process of its own, with the peak of anonymous memory in each."""
    command = [sys.executable, str(Path(__file__).resolve()), "--folder", str(folder)]
    for name in ("rows", "words", "reviews", "text_width", "image_width"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    command += ["--measure", *map(str, what)]
    samples: list[tuple[float, float]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            samples.append((time.monotonic(), anonymous(child.pid)))
            time.sleep(0.005)
        printed = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    made: dict[str, Any] = json.loads(printed.splitlines()[-1])
    for step in made["steps"]:
        within = [held for at, held in samples if step["start"] <= at <= step["end"]]
        step["anonymous"] = max([step["anonymous"], *within])
    return made


def measure(options: argparse.Namespace) -> None:
    """What a process of its own does: it prints its steps and facts as JSON."""
    kind, *more = options.measure
    steps = Steps()
    if kind == "form":
        form, field, rows, path, some = more
        facts = one_form(options, form, field, int(rows), Path(path), int(some), steps)
    else:
        data = generated(options.rows, options.words).sealed()
        facts = {"before": anonymous("self")}
        work = baseline if kind == "baseline" else proposed
        facts |= work(options, data, steps)
    print(json.dumps({"steps": steps.found, **facts}))


def passed(vectors: Vectors, order: np.ndarray, size: int) -> float:
    """All rows are made, block by block; the sum of all numbers."""
    return sum(float(vectors(rows).sum(dtype=np.float64)) for rows in blocks(order, size))


# --- features -----------------------------------------------------------------------------------
def baseline(options: argparse.Namespace, data: Reviews, steps: Steps) -> dict[str, Any]:
    """The baseline's features, then what a training epoch of its upstream MLP reads."""
    given, rows = frozen(options.folder), np.arange(len(data))
    with steps("dense features"):
        checksum = float(profiles.dense_features(data)[0].sum(dtype=np.float64))
    with steps("texts: vectors found, sums of user and of business"):
        fields: list[Any] = profiles.mean_reviews(data, GIVEN, given)[0]
    for name, mean in zip(FIELDS, fields, strict=False):
        with steps(f"{name}: all rows"):
            checksum += passed(mean, rows, 8192)
    with steps("pictures: vectors found, sums of business"):
        fields.append(profiles.mean_pictures(data, GIVEN, given, KEY)[0])
    with steps(f"{FIELDS[2]}: all rows"):
        checksum += passed(fields[2], rows, 8192)
    counted = len(steps.found)
    train = np.random.default_rng(0).permutation(data.rows("train"))
    for name, mean in zip(FIELDS, fields, strict=True):
        with steps(f"{name}: shuffled training rows, batches of {BATCH:,}"):
            passed(mean, train, BATCH)
    with steps("digests of the two files, which finding them includes"):
        for mean in (fields[0], fields[2]):
            file_digest(file_of(mean))
    return {"checksum": checksum, "counted": counted}


def proposed(options: argparse.Namespace, data: Reviews, steps: Steps) -> dict[str, Any]:
    """The proposed model's parts, but for captions, whose means are those of pictures."""
    given, asked, rows = frozen(options.folder), Asked(), np.arange(len(data))
    described: dict[str, Described] = {}
    for side, name in (("user", "user"), ("item", "business")):
        with steps(f"review sets of the {name}, at most {options.reviews} reviews"):
            described[side] = profiles.described_by(data, side, LEAKAGE, options.reviews)
    one = described["item"]
    with steps("price tags"):
        levels, _ = profiles.price_features(data, one, asked, given, LEAKAGE)
    with steps("types"):
        types, _, _ = profiles.type_features(data, one, asked, given, LEAKAGE, most=11, n_types=179)
    checksum = float(levels.sum(dtype=np.float64) + types.sum())
    said: dict[str, list[str]] = {}
    for side, kind in (("user", "user"), ("item", data.kind)):
        name = "business" if side == "item" else side
        with steps(f"extractive summaries of the {name}"):
            sets = described[side].sets
            said[side], _ = summaries(sets, kind, asked, given.folder, given.progress)
    with giving(options):
        for texts in said.values():
            embedded(texts, GIVEN, given)
    with steps("summaries: vectors found and looked up, all rows"):
        for side, texts in said.items():
            checksum += passed(looked_up(texts, described[side], given), rows, 8192)
    numbers = {side: len(found.sets) for side, found in described.items()}
    return {"checksum": checksum, "counted": len(steps.found), "sets": numbers}


def looked_up(said: Sequence[str], one: Described, given: Frozen) -> Looked:
    """As `profiles.summary_vectors` makes it of what was said."""
    vectors, index, _ = embedded(said, GIVEN, given)
    return Looked(vectors, index[one.of_row])


def feature_building(options: argparse.Namespace) -> bool:
    """Whether all forms give the same."""
    with tempfile.TemporaryDirectory(prefix="review-features-", dir=options.folder) as name:
        folder = Path(name)
        introduce(generated(options.rows, options.words))
        texts, pictures = files_given(options, folder)
        if options.cold:
            forget(texts)
            forget(pictures)
        state = "on the disk" if options.cold else "in memory"
        show_steps("baseline", state, options, in_a_process(options, folder, "baseline"))
        show_steps("proposed", "in memory", options, in_a_process(options, folder, "proposed"))
        return compare(options, folder, texts, pictures)


def files_given(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The files of all vectors of texts and of pictures that the baseline reads."""
    data, given = generated(options.rows, options.words).sealed(), frozen(folder)
    with giving(options):
        (texts, _), _ = profiles.mean_reviews(data, GIVEN, given)
        pictures, _ = profiles.mean_pictures(data, GIVEN, given, KEY)
    paths = file_of(texts), file_of(pictures)
    print(f"files: {sum(path.stat().st_size for path in paths) / 1e6:,.0f} MB")
    return paths


def file_of(mean: Any) -> Path:
    return Path(mean.vectors.filename)


def introduce(data: Reviews) -> None:
    """Everything that moves the numbers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"numpy {np.__version__}, Python {sys.version.split()[0]}, {cores} CPU cores{load}")
    sizes, largest = [len(data.rows(at)) for at in range(3)], np.bincount(data.items).max()
    words = np.mean([len(text.split()) for text in data.texts if text])
    print(
        f"data: {' + '.join(f'{n:,}' for n in sizes)} generated reviews of {words:.0f} words, "
        f"{data.n_users:,} users, {data.n_items:,} businesses, the largest with {largest:,} "
        f"reviews, {len(data.extra_texts):,} history reviews, {len(data.pictures):,} pictures"
    )


def show_steps(model: str, state: str, options: argparse.Namespace, made: dict[str, Any]) -> None:
    """A line for each step, those that count together, and the goal."""
    print(
        f"\n| {model}, {options.rows:,} rows, files {state} | s | of the processor | peak MB "
        "| anonymous MB |\n| --- | --- | --- | --- | --- |"
    )
    counted = made["steps"][: made["counted"]]
    total, cpu = (sum(step[key] for step in counted) for key in ("seconds", "cpu"))
    peaks = {key: max(step[key] for step in counted) for key in ("resident", "anonymous")}
    whole = {"name": "in all", "seconds": total, "cpu": cpu, **peaks}
    for step in (*counted, whole, *made["steps"][made["counted"] :]):
        print(
            f"| {step['name']} | {step['seconds']:.2f} | {step['cpu']:.2f} "
            f"| {step['resident']:,.0f} | {step['anonymous']:,.0f} |"
        )
    sets = made.get("sets")
    told = f"; {sets['user']:,} + {sets['item']:,} distinct sets of reviews" if sets else ""
    print(
        f"{model}: {made['before']:,.0f} anonymous MB before the first step, the reviews "
        f"included; checksum {made['checksum']:.6f}{told}"
    )
    if model == "baseline":
        print(
            f"{model}: goal {GOAL_SECONDS:.0f} s: {verdict(total, GOAL_SECONDS)} with {total:.1f}; "
            f"goal {GOAL_MEMORY:,.0f} MB: {verdict(peaks['anonymous'], GOAL_MEMORY)} with "
            f"{peaks['anonymous']:,.0f} anonymous, {verdict(peaks['resident'], GOAL_MEMORY)} with "
            f"{peaks['resident']:,.0f} resident, pages of the files included"
        )


def verdict(found: float, goal: float) -> str:
    if math.isnan(found):
        return "not measured"
    return "met" if found <= goal else "missed"


# --- the straightforward forms ------------------------------------------------------------------
class Loop:
    """The mean of a row's documents, row by row, from a list of documents for each group."""

    def __init__(self, vectors: np.ndarray, of: np.ndarray, groups: Groups) -> None:
        self.vectors, self.of, self.groups = vectors, of, groups
        self.documents: list[list[int]] = [[] for _ in range(groups.n_groups)]
        for document, group in enumerate(groups.of_document.tolist()):
            self.documents[group].append(document)
        self.own: list[set[int]] = [set() for _ in groups.of_row]
        pairs = zip(groups.own_rows.tolist(), groups.own_documents.tolist(), strict=True)
        for row, document in pairs:
            self.own[row].add(document)
        self.total = np.zeros(vectors.shape[1])
        for part in blocks(of):
            self.total += vectors[part].sum(axis=0, dtype=np.float64)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self.vectors.shape[1]), np.float32)
        for at, row in enumerate(rows.tolist()):
            own = self.own[row]
            group = self.documents[int(self.groups.of_row[row])]
            chosen = [document for document in group if document not in own]
            if chosen:
                found[at] = self.vectors[self.of[chosen]].mean(axis=0, dtype=np.float64)
            else:
                mine = self.vectors[self.of[sorted(own)]].sum(axis=0, dtype=np.float64)
                found[at] = (self.total - mine) / max(len(self.of) - len(own), 1)
        return found


def table(vectors: np.ndarray, of: np.ndarray, groups: Groups) -> np.ndarray:
    """All rows at once, (N, D): sums of the groups less the rows' own, as with a data frame."""
    documents = vectors[of].astype(np.float64)  # (M, D)
    sums = group_sums(documents, groups.of_document, groups.n_groups)
    own = group_sums(documents[groups.own_documents], groups.own_rows, len(groups.of_row))
    mine = np.bincount(groups.own_rows, minlength=len(own))
    others = np.bincount(groups.of_document, minlength=len(sums))[groups.of_row] - mine
    found = sums[groups.of_row]
    found[others == 0] = documents.sum(axis=0)
    count = np.where(others == 0, len(documents) - mine, others)
    return ((found - own) / np.maximum(count, 1)[:, None]).astype(np.float32)


def group_sums(values: np.ndarray, codes: np.ndarray, number: int) -> np.ndarray:
    """Through sorting, which is 3 times as fast as `np.add.at`: (K, D) -> (number, D)."""
    sums = np.zeros((number, values.shape[1]))
    order = np.argsort(codes, kind="stable")
    found, begins = np.unique(codes[order], return_index=True)
    sums[found] = np.add.reduceat(values[order], begins, axis=0)
    return sums


def fitting(rows: int, field: str, width: int) -> int:
    """How many rows' tables fit in the goal's memory, by arithmetic, in thousands where it can."""
    documents = PICTURES_PER_ROW if field == FIELDS[2] else 1 + EXTRA_PER_USER / PER_USER
    numbers = documents + 4.5 + 1 / PER_ITEM  # of a row, in the matrices that live at once
    fit = min(rows, int((GOAL_MEMORY - 150) * 1e6 / (8 * numbers * width)))
    return fit - fit % 1000 if 1000 < fit < rows else fit


def one_form(
    options: argparse.Namespace,
    form: str,
    field: str,
    number: int,
    path: Path,
    some: int,
    steps: Steps,
) -> dict[str, Any]:
    """One form on one field of so many rows: its two steps, and how far it is from ours."""
    data = generated(number, options.words).sealed()
    vectors, of, groups = documents_of(data, FIELDS[int(field)], path)
    before = anonymous("self")
    rows = np.arange(len(data))
    if form == "loop":
        rows = np.sort(np.random.default_rng(2).choice(rows, min(some, len(rows)), replace=False))
    made: Any = None
    with steps("before the rows"):
        if form != "table":
            made = (Loop if form == "loop" else Mean)(vectors, of, groups)
    with steps("rows"):
        if form == "ours":
            passed(made, rows, 8192)
        else:
            made = table(vectors, of, groups) if form == "table" else made(rows)
    difference = 0.0
    if form != "ours":
        ours = Mean(vectors, of, groups)
        places = blocks(np.arange(len(rows)))
        apart = [np.abs(made[at] - ours(rows[at])).max() for at in places]
        difference = float(np.max(apart))  # unlike max, nan where one is
    return {"rows": len(rows), "difference": difference, "before": before}


def documents_of(data: Reviews, field: str, path: Path) -> tuple[np.ndarray, np.ndarray, Groups]:
    """(vectors, the vector of each document, groups); some documents may share a vector."""
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    if field == FIELDS[2]:
        groups, of = profiles.picture_groups(data, np.ones(len(data.pictures), bool))
    else:
        groups, texts = profiles.text_groups(data, "user" if field == FIELDS[0] else "item")
        of = np.arange(len(texts))
    return vectors, of % len(vectors), groups


def compare(options: argparse.Namespace, folder: Path, texts: Path, pictures: Path) -> bool:
    """Ours beside the straightforward forms."""
    print(
        "\n| leave-one-out means | s before the rows | s for the rows | s in all | of the "
        "processor | ratio of that | anonymous MB added | difference |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    equal = True
    for at, field in enumerate(FIELDS):
        path, width = (pictures, options.image_width) if at == 2 else (texts, options.text_width)
        fit = fitting(options.rows, field, width)
        for number in sorted({options.rows, fit}, reverse=True):
            forms = [form for form in FORMS if form != "loop" or number == options.rows]
            forms = [form for form in forms if form != "table" or number == fit]
            found = {
                form: in_a_process(
                    options, folder, "form", form, at, number, path, options.loop_rows
                )
                for form in forms
            }
            equal &= show_forms(f"{field}, {width:,} wide, {number:,} rows", number, found)
    verdict = "All forms give" if equal else "The forms do NOT give"
    print(f"{verdict} the same, tolerance {TOLERANCE:.0e} in each number")
    return equal


def show_forms(described: str, number: int, found: dict[str, dict[str, Any]]) -> bool:
    """A line for each form, with the ratio of its time to ours; whether all are equal."""

    def whole(made: dict[str, Any], key: str) -> tuple[float, float]:
        before, rows = (step[key] for step in made["steps"])
        return before, rows * number / made["rows"]

    ours = sum(whole(found["ours"], "cpu"))
    for form, made in found.items():
        before, rows = whole(made, "seconds")
        cpu = sum(whole(made, "cpu"))
        added = max(step["anonymous"] for step in made["steps"]) - made["before"]
        some = made["rows"] < number
        what = f"extrapolated from {made['rows']:,} rows" if some else "measured whole"
        apart = "" if form == "ours" else f"{made['difference']:.1e}"
        print(
            f"| {described}: {form}, {what} | {before:.2f} | {rows:.2f} | {before + rows:.2f} "
            f"| {cpu:.2f} | {cpu / ours:.2f}x | {added:,.0f} | {apart} |",
            flush=True,
        )
    return all(made["difference"] <= TOLERANCE for made in found.values())


# --- encoders -----------------------------------------------------------------------------------
WHOLE = {"texts": 172_000, "pictures": 203_000, "sets": 230_000}
"""Of the release: its reviews and those that only histories hold, pictures, sets of reviews."""
TINY_BLIP2 = "BLIP-2, tiny and random"


def encoders(options: argparse.Namespace) -> None:
    import torch

    data, described = real_reviews(options)
    texts = list(dict.fromkeys(text for text in data.texts if text.strip()))
    chosen = np.random.default_rng(3).permutation(len(texts))[: options.texts]
    texts = [texts[at] for at in chosen]
    print(f"\ntorch {torch.__version__}, CPU, {torch.get_num_threads()} threads, float32")
    print(f"reviews: {described}, {np.mean([len(text.split()) for text in texts]):.0f} words each")
    print(
        "\n| frozen models | items | s to load | s for 1,000 | of the processors | items a second "
        "| a whole release, extrapolated |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory(prefix="review-features-", dir=options.folder) as name:
        folder, side = Path(name), options.picture_side
        files = made_pictures(folder / "pictures", options.pictures, side)
        few = files[: options.resnet_pictures]
        jpeg = f"JPEG of {side} x {3 * side // 4}"
        for what, kind, items, work in (
            ("MiniLM", "texts", texts, text_work),
            (f"ResNet-50, random weights, {jpeg}", "pictures", few, resnet_work),
            (f"palette, no model, {jpeg}", "pictures", files, palette_work),
            (f"{TINY_BLIP2}, {jpeg}", "pictures", files, blip2_work),
        ):
            try:
                rate(what, kind, items, partial(work, folder))
            except RequestError as error:
                print(f"| {what} | not measured: {error} | | | | | |")
        set_rates(folder, data, options.reviews)


def real_reviews(options: argparse.Namespace) -> tuple[Reviews, str]:
    """The reviews, and what they are."""
    try:
        REVIEW_DATA[REAL].paths(options.data_dir)
    except DataError as missing:
        return generated(max(2 * options.texts, 100), 90.0), f"generated, because {missing}"
    return load_reviews(REAL, options.data_dir), f"{REAL} in {options.data_dir}"


def rate(what: str, kind: str, items: Sequence[Any], work: Callable[..., str]) -> None:
    """Seconds for all items less those for one, which loads the model as the others do; before
    both, one loads the libraries. `work` makes and keeps what a run does; it says what to add."""
    times, more = [], ""
    for number, some in enumerate((items[:1], items[:1], items)):
        start, cpu = time.perf_counter(), time.process_time()
        more = work(some, f"run{number}")
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    (load, load_cpu), (seconds, cpu) = times[1:]
    # A few items may take no longer than one does.
    seconds, cpu = max(seconds - load, 1e-6), max(cpu - load_cpu, 0.0)
    show_rate(what + more, len(items) - 1, kind, seconds, cpu, load)


def show_rate(
    what: str, items: int, kind: str, seconds: float, cpu: float, load: float = 0.0
) -> None:
    hours = seconds / items * WHOLE[kind] / 3600
    own = what.startswith(TINY_BLIP2)
    whole = "says nothing of the real one" if own else f"{WHOLE[kind]:,} {kind}: {hours:.2f} h"
    print(
        f"| {what} | {items:,} {kind} | {load:.1f} | {1000 * seconds / items:.2f} "
        f"| {1000 * cpu / items:.2f} | {items / seconds:,.1f} | {whole} |",
        flush=True,
    )


def text_work(folder: Path, texts: Sequence[str], name: str) -> str:
    quiet = Progress(quiet=True)
    vectors, counts = features.text_features(MINILM, texts, folder / name, quiet, MINILM)
    return f", {vectors.shape[1]} numbers, {counts['cut']:,} texts are cut"


def resnet_work(folder: Path, files: Sequence[Path], name: str) -> str:
    model = f"timm:{made_resnet(folder / 'resnet')}"
    here, quiet = np.ones(len(files), bool), Progress(quiet=True)
    vectors, _ = features.image_features(
        model, opener(files), here, folder / name, KEY, quiet, "resnet"
    )
    return f", {vectors.shape[1]:,} numbers"


def palette_work(folder: Path, files: Sequence[Path], name: str, model: str = "palette") -> str:
    from reprokit.captions import captions

    ids, quiet = [path.name for path in files], Progress(quiet=True)
    captions(model, opener(files), ids, folder / name, quiet, model, dtype="float32")
    return ""


def blip2_work(folder: Path, files: Sequence[Path], name: str) -> str:
    return palette_work(folder, files, name, made_blip2(folder / "blip2"))


def set_rates(folder: Path, data: Reviews, most: int) -> None:
    """What is said of sets of reviews without a language model."""
    given, one = frozen(folder), profiles.described_by(data, "item", "exclude_current", most)
    lexicon = "restaurants" if data.kind == "restaurant" else "instruments"
    told = f"{len(one.sets.texts):,} reviews in sets of {one.sets.sizes.mean():.1f}"
    for what, work in (
        ("extractive summaries", summaries),
        ("price tags", price_tags),
        ("types", partial(type_names, lexicon=lexicon)),
    ):
        start, cpu = time.perf_counter(), time.process_time()
        work(one.sets, data.kind, Asked(), given.folder, given.progress)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        show_rate(f"{what}, {told}", len(one.sets), "sets", seconds, cpu)


# --- models and pictures that are made here -----------------------------------------------------
def made_pictures(folder: Path, number: int, side: int) -> list[Path]:
    """Different pictures with soft shapes and grain, as JPEG files."""
    from PIL import Image

    folder.mkdir(parents=True)
    rng = np.random.default_rng(4)
    size = side, 3 * side // 4
    files = [folder / f"{at:05}.jpg" for at in range(number)]
    for path in files:
        soft = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize(size)
        grain = rng.integers(-12, 13, (size[1], size[0], 1))
        Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8)).save(path)
    return files


def opener(files: Sequence[Path]) -> Callable[[int], Any]:
    from PIL import Image

    def opened(at: int) -> Any:
        with Image.open(files[at]) as file:
            return file.convert("RGB")

    return opened


def made_resnet(folder: Path) -> Path:
    """A ResNet-50 with random weights, as timm writes its models; made once."""
    if folder.is_dir():
        return folder
    from reprokit.encoders import import_vision

    timm = import_vision("resnet50", "timm", "timm")
    import torch

    torch.manual_seed(0)
    timm.models.save_for_hf(timm.create_model("resnet50"), str(folder), safe_serialization=True)
    return folder


def made_blip2(folder: Path) -> str:
    """A random BLIP-2 of toy width that reads pictures of the real one's size; made once."""
    if folder.is_dir():
        return str(folder)
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
    )

    from reprokit.homemade import RECIPES, build_tokenizer, quiet

    recipe = replace(RECIPES["tiny"], vocabulary=300)
    tokenizer = build_tokenizer(recipe, ["a red plate of food"] * 3, ["a picture"])
    queries, side = 4, 224
    reader = BlipImageProcessor(size={"height": side, "width": side})
    processor = Blip2Processor(reader, tokenizer, num_query_tokens=queries)
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    marks = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    text = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64}
    config = Blip2Config(
        vision_config={**layers, "intermediate_size": 48, "image_size": side, "patch_size": 32},
        qformer_config={**layers, "intermediate_size": 48, "vocab_size": 10},
        text_config={"model_type": "opt", "vocab_size": len(tokenizer), **layers, **marks, **text},
        num_query_tokens=queries,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    with quiet():
        Blip2ForConditionalGeneration(config).save_pretrained(folder)
        processor.save_pretrained(folder)
    return str(folder)


# --- command line -------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("REPROKIT_DATA", "data")),
        help=f"has {REAL} (%(default)s)",
    )
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    for name, value, what in (
        ("rows", 100_000, "features: reviews to generate"),
        ("text-width", 384, "features: numbers of a text's vector"),
        ("image-width", 2048, "features: numbers of a picture's vector"),
        ("reviews", 20, "reviews of a set that are read"),
        ("loop-rows", 1000, "features: rows that the loop is timed on"),
        ("texts", 1000, "encoders: reviews for MiniLM"),
        ("pictures", 500, "encoders: pictures for the captioners"),
        ("resnet-pictures", 150, "encoders: of these for ResNet-50"),
        ("picture-side", 640, "encoders: pixels of a picture's longer side"),
    ):
        add(f"--{name}", type=int, default=value, metavar="N", help=f"{what} (%(default)s)")
    add(
        "--words",
        type=float,
        default=24.0,
        metavar="X",
        help="features: words of a review on average (%(default)s)",
    )
    add("--cold", action="store_true", help="features: the files are read from the disk")
    add(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where the files are while it runs, 1.8 GB (the system's for temporary files)",
    )
    add("--measure", nargs="+", help=argparse.SUPPRESS)
    return found


LEAST = {"rows": 100, "texts": 2, "pictures": 2, "resnet_pictures": 2, "picture_side": 32}


def check(options: argparse.Namespace) -> None:
    for name, value in vars(options).items():
        least = LEAST.get(name, 1)
        if type(value) is int and value < least:
            raise RequestError(f"--{name.replace('_', '-')} must be {least} at least, got {value}")
    if not options.words >= 1:
        raise RequestError(f"--words must be 1 at least, got {options.words}")
    if options.folder and not options.folder.is_dir():
        raise RequestError(f"--folder {options.folder} is no folder")
    if options.cold and not hasattr(os, "posix_fadvise"):
        raise RequestError("--cold needs a system that can drop a file from memory: leave it out")


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.measure:
        measure(options)
        return 0
    try:
        check(options)
        equal = feature_building(options) if "features" in options.parts else True
        if "encoders" in options.parts:
            encoders(options)
    except (RequestError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
