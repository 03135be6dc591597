"""Who likes what: the protocol of ExplainRec's tables, shared by every system in them.

A system scores pairs: a context (the user, history and time of an event) and an item. Its AUC is
that of rated pairs, where the observed dislikes are the negatives; NDCG@10 and HR@10 rank a liked
item among 99 that the user has rated in no split, drawn once and kept. Both are of the same rows
for all systems. Importing this module loads no torch.

Metrics, from 0 to 1, as `<split>/<name>`:

    auc                          over rated pairs
    new_users/auc, ...           over those of a group, in cold-start and cross-domain sets
    ndcg@10, hr@10               among the 100; ties count half. None in cold and cross-domain sets
    full/ndcg@10, full/hr@10     among all items that the user has not rated (test split alone)
    bleu                         BLEU-4 of explanations (test split alone)
"""

from __future__ import annotations

import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from reprokit.click import check
from reprokit.feedback import GROUPS, Feedback
from reprokit.metrics import auc, bleu, hit_rate, ndcg, ranks
from reprokit.runs import Job, RequestError, Result, Unavailable, digest, replacing, setting
from reprokit.synthetic import stream

REVISION = 1
"""Of the choice of rows and candidates: raised when a change moves one."""
FULL_CELLS = 1 << 23
"""Scores held at once by the full ranking."""
EXPLAINED = ("users", "items", "titles", "scores", "texts", "references", "source", "evidence")


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class TasteSettings:
    """What is scored. Numbers of systems compare only where all of these are equal."""

    rated_rows: int = setting(
        100_000,
        "ours; rated test rows of each group behind an AUC, a fixed random sample (0: all): a "
        "language model must score them too, and the standard error is below 0.002",
    )
    rank_rows: int = setting(
        10_000, "ours; liked test rows that are ranked, of as many users as there are; 0: all"
    )
    valid_rows: int = setting(
        10_000, "ours; rated validation rows that choose, a fixed random sample; 0: all"
    )
    valid_lists: int = setting(1_000, "ours; liked validation rows that choose by rank; 0: all")
    negatives: int = setting(99, "open in the paper; unrated items beside the liked one")
    reason_facts: int = setting(
        3, "ours; most attributes that a reference reason names, where no review gives it"
    )
    list_seed: int = setting(2511, "ours; of the rows and of the unrated items, for all seeds")

    def __post_init__(self) -> None:
        for name in ("rated_rows", "rank_rows", "valid_rows", "valid_lists", "list_seed"):
            check(name, getattr(self, name), getattr(self, name) >= 0)
        for name in ("negatives", "reason_facts"):
            check(name, getattr(self, name), getattr(self, name) > 0)


SAMPLES: Mapping[str, Mapping[str, int]] = {
    "demo": {
        "rated_rows": 600,
        "rank_rows": 100,
        "valid_rows": 300,
        "valid_lists": 150,
        "reason_facts": 2,
    },
    "small": {"rated_rows": 2_000, "rank_rows": 200, "valid_rows": 1_000, "valid_lists": 200},
}
"""By preset, what every system of the paper scores."""


# --- rows ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Pairs:
    """Contexts and items to be scored."""

    rows: np.ndarray
    """(N,), event numbers: the user, the history and the time of each are the context."""
    items: np.ndarray
    """(N,), item ids."""
    width: int = 1
    """So many pairs in a row have one context; N is a multiple of it."""

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, end: int) -> Pairs:
        """Some of the pairs, as if each had a context of its own."""
        return Pairs(self.rows[start:end], self.items[start:end])


Score = Callable[[Pairs], np.ndarray]
"""Pairs (N,) -> scores (N,); larger is better."""
Full = Callable[[np.ndarray], np.ndarray]
"""Event numbers (B,) -> scores of every item in each context, (B, n_items)."""


@dataclass(frozen=True)
class Held:
    """A held-out split as it is scored."""

    name: str
    """Of the split."""
    pairs: Pairs
    """The rated pairs, (N,)."""
    labels: np.ndarray
    """(N,), 1 where the item was liked."""
    group: np.ndarray
    """(N,), index into `feedback.GROUPS`."""
    lists: Pairs | None
    """(L * 100,): each liked item before the unrated ones; None in cold and cross-domain sets."""
    ids: Mapping[str, np.ndarray]
    """The publisher's ids of `users` and `items` of the rated pairs, (N,) each."""

    @property
    def targets(self) -> Pairs:
        """The liked items of `lists` alone, (L,)."""
        assert self.lists is not None
        first = slice(None, None, self.lists.width)
        return Pairs(self.lists.rows[first], self.lists.items[first])


def sample(rows: np.ndarray, group: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """At most `count` rows of each group, drawn uniformly, in order; 0: all. (N,) -> (M,)."""
    if not count:
        return rows
    found = []
    for number in np.unique(group):
        mine = rows[group == number]
        if len(mine) > count:
            mine = stream(seed, f"rated {name}", int(number)).choice(mine, count, replace=False)
        found.append(mine)
    return np.sort(np.concatenate(found)) if found else rows


def spread(rows: np.ndarray, users: np.ndarray, count: int, seed: int, name: str) -> np.ndarray:
    """At most `count` rows, drawn at random and spread over the users: nobody has one more than
    another who has rows left. (N,) -> (M,), in order; 0: all."""
    if not count or len(rows) <= count:
        return rows
    order = stream(seed, f"ranked {name}").permutation(len(rows))
    by_user = order[np.argsort(users[order], kind="stable")]
    new = np.ones(len(rows), bool)
    new[1:] = users[by_user[1:]] != users[by_user[:-1]]
    first = np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))
    turn = np.empty(len(rows), np.int64)  # of each row: how many of its user come before it
    turn[by_user] = np.arange(len(rows)) - first
    chosen = order[np.argsort(turn[order], kind="stable")[:count]]
    return rows[np.sort(chosen)]


# --- the items that a target is ranked against --------------------------------------------------
def rated(data: Feedback, users: np.ndarray) -> np.ndarray:
    """Which items users have rated in any split, as sorted numbers place * n_items + item."""
    owner, events = spans(data.starts[users], data.starts[users + 1])
    return np.unique(owner * data.n_items + data.items[events])


def spans(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers from start to before end: (which span each is of, the numbers)."""
    lengths = end - start
    owner = np.repeat(np.arange(len(lengths)), lengths)
    before = np.cumsum(lengths) - lengths
    return owner, np.arange(len(owner)) + (start - before)[owner]


def unrated(data: Feedback, users: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` different items for each user that he has rated in no split, uniformly: (L, count).

    Every user must have that many. Places among his unrated items are drawn without replacement
    (Floyd's algorithm), then each is moved up by the rated items before it.
    """
    n, found = data.n_items, np.empty((len(users), count), np.int32)
    for start in range(0, len(users), 4096):
        block = users[start : start + 4096]
        known = rated(data, block)
        first = np.searchsorted(known, np.arange(len(block) + 1) * n)
        owner, item = np.divmod(known, n)
        before = item - 1 - (np.arange(len(known)) - first[owner])  # unrated items before each
        known_before = owner * n + before
        free = n - 1 - np.diff(first)
        places = np.empty((len(block), count), np.int64)
        for step in range(count):
            last = free - count + step
            drawn = rng.integers(0, last + 1)
            again = (places[:, :step] == drawn[:, None]).any(axis=1)
            places[:, step] = np.where(again, last, drawn)
        at = np.arange(len(block))[:, None]
        moved = np.searchsorted(known_before, at * n + places, side="right") - first[:-1, None]
        found[start : start + 4096] = places + 1 + moved
    return found


def candidates(
    data: Feedback, split: str, rows: np.ndarray, count: int, seed: int, folder: Path, key: str
) -> np.ndarray:
    """(L, count): unrated items for the users of some rows, drawn once and kept in
    `folder/candidates`; made again where the file is damaged or is of other rows."""
    users = data.users[rows].astype(np.int64)
    path = folder / "candidates" / f"{key}.npz"
    found = read_candidates(path, data, rows, users, count)
    if found is None:
        drawn = unrated(data, users, count, stream(seed, f"candidates {split}"))
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, rows=rows, items=drawn)
        return drawn
    return found


def read_candidates(
    path: Path, data: Feedback, rows: np.ndarray, users: np.ndarray, count: int
) -> np.ndarray | None:
    """What is kept; None where nothing is, or nothing that may be ranked against these rows."""
    try:
        with np.load(path, allow_pickle=False) as file:
            kept, items = file["rows"], file["items"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    if items.dtype != np.int32 or items.shape != (len(rows), count):
        return None
    if not np.array_equal(kept, rows) or items.min() < 1 or items.max() >= data.n_items:
        return None
    for start in range(0, len(rows), 4096):
        block = slice(start, start + 4096)
        known = rated(data, users[block])
        asked = np.arange(len(users[block]))[:, None] * data.n_items + items[block]
        at = np.searchsorted(known, asked)
        if (known[np.minimum(at, len(known) - 1)] == asked).any():
            return None
    return items


# --- the latency of a query ---------------------------------------------------------------------
@dataclass
class Meter:
    """Measures how long a system takes for one pair; see `METER`."""

    queries: int = 30
    warmup: int = 5
    latency_ms: list[float] = field(default_factory=list)
    """Of each measured query; its median is Table IV's number."""

    @property
    def median_ms(self) -> float:
        return float(np.median(self.latency_ms))

    def measure(self, score: Score, pairs: Pairs) -> None:
        """Score single pairs, evenly spaced, the first `warmup` of them unmeasured."""
        count = self.warmup + self.queries
        for number, at in enumerate(np.linspace(0, len(pairs) - 1, count).astype(int)):
            started = time.perf_counter()
            score(pairs.part(at, at + 1))
            if number >= self.warmup:
                self.latency_ms.append(1000 * (time.perf_counter() - started))


METER: Meter | None = None
"""Set by whoever measures a run's efficiency: `Arena.result` then uses it on test pairs."""


# --- the protocol -------------------------------------------------------------------------------
def load(job: Job) -> Feedback:
    """The run's data; all labels open, so only `Arena` and what counts rows may ask for it."""
    from reprokit.ratings import load_feedback

    return load_feedback(job.run.dataset, job.data_dir, job.run.fingerprint)


class Arena:
    """A run with its data: what may be learnt from, validation, and the one look at the test split.

    `job.run.settings` must be `TasteSettings`. Everything before `result` reads `sealed`.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.settings: TasteSettings = job.run.settings
        self.data = load(job)
        self.sealed = self.data.sealed()
        self.notes: list[str] = []
        self.counts: dict[str, int] = {}

    def ready(self) -> Arena:
        """Itself, with its validation rows drawn: what cannot be scored is said before anything is
        encoded, read or trained."""
        _ = self.valid
        return self

    @cached_property
    def valid(self) -> Held:
        """Validation, as it chooses; from sealed data."""
        s = self.settings
        return self.held("valid", self.sealed, s.valid_rows, s.valid_lists)

    @cached_property
    def test(self) -> Held:
        """The test split. Asked for by `result` alone, once everything is chosen."""
        return self.held("test", self.data, self.settings.rated_rows, self.settings.rank_rows)

    def held(self, split: str, data: Feedback, rated_rows: int, rank_rows: int) -> Held:
        s, every = self.settings, data.rows(split)
        rows = sample(every, data.group[every], rated_rows, s.list_seed, split)
        labels = data.labels[rows]
        if not (labels == 1).any() or not (labels == 0).any():
            raise Unavailable(
                f"{data.name}: {len(rows):,} rated {split} rows, and not both likes and dislikes "
                "among them: no AUC"
            )
        pairs = Pairs(rows, data.items[rows].astype(np.int64))
        ids = {
            "users": np.array(data.user_ids)[data.users[rows]],
            "items": np.array(data.item_ids)[pairs.items],
        }
        lists = None if data.is_cold else self.lists(split, data, every, rank_rows)
        return Held(split, pairs, labels, data.group[rows], lists, ids)

    def lists(self, split: str, data: Feedback, rows: np.ndarray, count: int) -> Pairs:
        """Liked rows of a split, each before the unrated items that it is ranked against."""
        s = self.settings
        liked = rows[data.labels[rows] == 1]
        users = data.users[liked]
        enough = data.n_items - 1 - np.diff(data.starts)[users] >= s.negatives
        if not enough.any():
            raise RequestError(
                f"{data.name}: no user has {s.negatives} items left unrated, of "
                f"{data.n_items - 1:,}: set a smaller number of negatives"
            )
        if not enough.all():
            self.counts[f"{split} likes without {s.negatives} unrated items"] = int((~enough).sum())
        targets = spread(liked[enough], users[enough], count, s.list_seed, split)
        run = self.job.run
        what = [run.dataset, run.fingerprint, split, s.negatives, count, s.list_seed, REVISION]
        key = digest(["candidates", *what])[:20]
        drawn = candidates(data, split, targets, s.negatives, s.list_seed, self.job.folder, key)
        items = np.concatenate([data.items[targets][:, None], drawn], axis=1).astype(np.int64)
        return Pairs(np.repeat(targets, items.shape[1]), items.ravel(), items.shape[1])

    # --- what items look like ---
    def text_vectors(self, encoder: str) -> np.ndarray:
        """Items' texts by a frozen encoder, (n_items, D) float32 of unit length; zero for none."""
        from reprokit.features import text_features

        data, job = self.sealed, self.job
        if encoder == "none":
            raise RequestError("item texts need an encoder: name one with --text-encoder")
        texts = [data.text(item) for item in range(1, data.n_items)]
        vectors, counts = text_features(
            encoder, texts, job.folder, job.progress, job.run.pretrained["text"]
        )
        if counts["empty"] or counts["cut"]:
            self.note(
                f"{counts['empty']:,} of {counts['texts']:,} items of {data.name} have no text; "
                f"{counts['cut']:,} texts are longer than {encoder} reads"
            )
        return with_padding(vectors)

    @property
    def has_pictures(self) -> bool:
        return bool(self.sealed.has_picture.any())

    def need_pictures(self) -> None:
        """Raises Unavailable where the data set has no pictures here."""
        if not self.has_pictures:
            raise Unavailable(f"{self.data.name} has no pictures of its items here")

    def image_vectors(self, encoder: str) -> np.ndarray:
        """Items' pictures by a frozen encoder, (n_items, D) float32 of unit length; zero for none.

        Raises Unavailable where the data set has no pictures here.
        """
        from reprokit.features import image_features

        data, job = self.sealed, self.job
        self.need_pictures()
        if encoder == "none":
            raise RequestError("item pictures need an encoder: name one with --image-encoder")
        vectors, counts = image_features(
            encoder,
            lambda row: data.picture(row + 1),
            data.has_picture[1:],
            job.folder,
            job.run.fingerprint,
            job.progress,
            job.run.pretrained["image"],
        )
        without = counts["missing"] + counts["unreadable"]
        self.note(
            f"{without:,} of {counts['pictures']:,} items of {data.name} have no picture "
            f"({counts['unreadable']:,} unreadable)"
        )
        return with_padding(vectors)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # --- metrics ---
    def evaluate(self, score: Score, lists: bool = True) -> dict[str, float]:
        """Validation: auc, and with `lists` (and where there are any) ndcg@10 and hr@10."""
        held = self.valid
        metrics = {"auc": auc(held.labels, scores_of(score, held.pairs))}
        if lists and held.lists is not None:
            metrics |= rank_metrics(list_ranks(score, held.lists)[1])
        return metrics

    def result(
        self,
        score: Score,
        selection: dict[str, Any],
        *,
        full: Full | None = None,
        explain: Explain | None = None,
        valid_lists: bool = True,
        notes: tuple[str, ...] = (),
        deviations: tuple[str, ...] = (),
        earlier_seconds: float = 0.0,
    ) -> Result:
        """Score validation and test. The test split is opened here, once, when all is chosen.

        Args:
            full: ranks all items, for systems that can.
            explain: the columns of explanations, `explain/<one of EXPLAINED>`, or what makes them
                of the test split.
            valid_lists: whether validation is ranked too, which chose nothing for systems that
                were chosen by AUC.
        """
        metrics: dict[str, Any] = {}
        predictions: dict[str, np.ndarray] = {}
        for held in (self.valid, self.test):
            more, columns = scored(held, score, valid_lists or held is self.test)
            metrics |= more
            predictions |= columns
        if full and self.test.lists is not None:
            found = full_ranks(self.data, full, self.test.targets)
            metrics |= {f"test/full/{name}": value for name, value in rank_metrics(found).items()}
            predictions["test/full/ranks"] = found.astype(np.float32)
        if explain is not None:
            columns = explain(self.test) if callable(explain) else dict(explain)
            value, told = explained(columns)
            metrics["test/bleu"] = value
            predictions |= columns
            self.note(told)
        if METER:
            METER.measure(score, self.test.pairs)
        counts = {**self.data.counts, **self.counts}
        told_all = (*self.notes, *notes)
        return Result(
            metrics, predictions, selection, counts, deviations, told_all, earlier_seconds
        )


Explain = Mapping[str, np.ndarray] | Callable[[Held], dict[str, np.ndarray]]


def with_padding(vectors: np.ndarray) -> np.ndarray:
    """A row of zeros before the others: (n, D) -> (n + 1, D)."""
    table = np.zeros((len(vectors) + 1, vectors.shape[1]), np.float32)
    table[1:] = vectors
    return table


def scores_of(score: Score, pairs: Pairs) -> np.ndarray:
    """(N,) float32, checked to be as many as the pairs.

    Raises FloatingPointError where one is not a finite number.
    """
    found = np.asarray(score(pairs), np.float32)
    if found.shape != (len(pairs),):
        raise ValueError(f"{len(pairs)} pairs have scores of shape {found.shape}")
    if wrong := int((~np.isfinite(found)).sum()):
        raise FloatingPointError(
            f"{wrong:,} of {len(found):,} scores are not finite numbers; a smaller step size (lr) "
            "may help"
        )
    return found


def list_ranks(score: Score, lists: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """(scores (L, 100), rank of each list's first item (L,), ties counting half)."""
    found = scores_of(score, lists).reshape(-1, lists.width)
    return found, ranks(found)


def rank_metrics(rank: np.ndarray) -> dict[str, float]:
    return {"ndcg@10": ndcg(rank, 10), "hr@10": hit_rate(rank, 10)}


def scored(
    held: Held, score: Score, lists: bool = True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metrics of a split, and what they can be computed from again."""
    split, scores = held.name, scores_of(score, held.pairs)
    metrics: dict[str, Any] = {f"{split}/rows": len(scores)}
    metrics[f"{split}/auc"] = auc(held.labels, scores)
    for number, name in enumerate(GROUPS[1:], 1):
        mine = held.group == number
        if not mine.any():
            continue
        metrics[f"{split}/{name}/rows"] = int(mine.sum())
        if len(np.unique(held.labels[mine])) == 2:  # of one class there is no AUC, and no number
            metrics[f"{split}/{name}/auc"] = auc(held.labels[mine], scores[mine])
    predictions = {
        f"{split}/users": held.ids["users"],
        f"{split}/items": held.ids["items"],
        f"{split}/labels": held.labels,
        f"{split}/group": held.group,
        f"{split}/scores": scores,
    }
    if held.lists is not None and lists:
        values, rank = list_ranks(score, held.lists)
        metrics |= {f"{split}/lists": len(rank)}
        metrics |= {f"{split}/{name}": value for name, value in rank_metrics(rank).items()}
        predictions[f"{split}/lists/rows"] = held.targets.rows
        predictions[f"{split}/lists/scores"] = values
    return metrics, predictions


def full_ranks(data: Feedback, full: Full, targets: Pairs) -> np.ndarray:
    """Rank of each target among it and all items that its user has rated in no split: (L,)."""
    found, size = [], max(1, FULL_CELLS // data.n_items)
    for start in range(0, len(targets), size):
        block = targets.part(start, start + size)
        scores = np.array(full(block.rows), np.float32)
        if scores.shape != (len(block), data.n_items):
            raise ValueError(f"{data.n_items} items have scores of shape {scores.shape}")
        own = scores[np.arange(len(block)), block.items]
        if not np.isfinite(own).all():
            raise ValueError("the score of a target is not finite")
        user, item = np.divmod(rated(data, data.users[block.rows].astype(np.int64)), data.n_items)
        scores[user, item] = scores[:, 0] = -np.inf
        scores[np.arange(len(block)), block.items] = own
        found.append(ranks(scores, block.items))
    return np.concatenate(found)


def to_explain(held: Held, count: int, seed: int) -> np.ndarray:
    """Places in `held.pairs` of `count` pairs that are explained, the same for all systems; of
    another count, one set holds the other. In order."""
    return np.sort(stream(seed, "explained").permutation(len(held.pairs))[:count])


def told(
    arena: Arena,
    pairs: Pairs,
    scores: np.ndarray,
    texts: Sequence[str],
    more: Sequence[Mapping[str, Any]] = (),
) -> dict[str, np.ndarray]:
    """The columns of explanations: what was said of rated pairs, beside reference reasons and what
    it rests on.

    Args:
        arena: whose opened data have the references.
        scores, texts: (N,) of the pairs.
        more: (N,) further evidence; empty: none.
    """
    from reprokit.reasons import SOURCES, evidence, reasons

    data = arena.data
    found = reasons(data, pairs.rows, facts=arena.settings.reason_facts)
    counted = ", ".join(f"{count:,} {name}" for name, count in found.counts.items())
    arena.note(f"reference reasons of explained pairs of {data.name}: {counted}")
    rests = [
        evidence(data, int(row), int(item), text) | dict(more[at] if len(more) else {})
        for at, (row, item, text) in enumerate(zip(pairs.rows, pairs.items, texts, strict=True))
    ]
    columns = {
        "users": np.array(data.user_ids)[data.users[pairs.rows]],
        "items": np.array(data.item_ids)[pairs.items],
        "titles": np.array([data.titles[item] for item in pairs.items]),
        "scores": np.asarray(scores, np.float32),
        "texts": np.array(texts),
        "references": np.array([found.texts[at] for at in found.index]),
        "source": np.array(SOURCES)[found.source],
        "evidence": np.array([json.dumps(one, ensure_ascii=False) for one in rests]),
    }
    return {f"explain/{name}": columns[name] for name in EXPLAINED}


def explained(columns: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """BLEU-4 of explanations on the paper's scale of 0 to 1, and what it was computed with.

    Explanations whose item has no reference are kept and not scored.
    """
    missing = [name for name in EXPLAINED if f"explain/{name}" not in columns]
    if missing:
        raise ValueError(f"explanations lack {', '.join(missing)}")
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError("the columns of explanations are not of one length")
    texts = columns["explain/texts"].tolist()
    references = columns["explain/references"].tolist()
    kept = [at for at, reference in enumerate(references) if reference.strip()]
    if not kept:
        raise ValueError(f"none of {len(texts)} explanations has a reference")
    value, signature = bleu([references[at] for at in kept], [texts[at] for at in kept])
    told = f"BLEU over {len(kept):,} of {len(texts):,} explanations, {signature}"
    return value / 100, told


def blocks(count: int, size: int) -> Iterator[slice]:
    """Slices that together are all of `count` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
