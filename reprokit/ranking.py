"""Ranking the next item across two domains: the protocol, and how any model of it is run.

A row is a sequence over domains A and B; its last event is the target. The target is ranked among
999 items of its own domain, drawn once and kept, and beside that among all of them. Each domain has
its own metrics and, as the data set's authors have it, its own best epoch. Importing this module
loads no torch.

Metrics are in percent, `<split>/<a or b>/<name>`:

    mrr, ndcg@5, ndcg@10, hr@10          among the 1,000, ties count half
    authors/mrr, ...                     the same list, ties (up to 1e-5) favour the target
    full/mrr, ...                        among all items of the domain, ties count half
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from reprokit.click import check, nothing_chosen
from reprokit.crossdata import CROSS_DATA, CrossData, Sequences, load_cross_data, negatives
from reprokit.metrics import hit_rate, mrr, ndcg
from reprokit.runs import Job, Result, Unavailable, setting

if TYPE_CHECKING:
    from torch import Tensor

    from reprokit.training import Fitted

DOMAINS = ("a", "b")
SPLITS = ("valid", "test")
SEQUENCES = ("train", *SPLITS)


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class RankSettings:
    """What every trained row sets."""

    lr: float = setting(1e-3, "in the paper's grid; the data set authors' step size")
    l2: float = setting(0.0, "open; the data set authors' flag for it never reaches Adam")
    batch_size: int = setting(256, "the paper's; sequences, whatever is predicted in them")
    max_epochs: int = setting(100, "the paper's")
    patience: int = setting(10, "the paper's; epochs without a better MRR in either domain")
    max_len: int = setting(15, "the longest sequence of the data sets")
    valid_rows: int = setting(0, "rows of validation that choose; 0: all")
    eval_batch: int = setting(256, "rows ranked at once")
    grid: str = setting("", "what is tried on validation, as lr=0.001,0.01;l2=0,0.0001; none here")

    def __post_init__(self) -> None:
        for name in ("lr", "batch_size", "max_epochs", "patience", "max_len", "eval_batch"):
            check(name, getattr(self, name), 0 < getattr(self, name) < math.inf)
        for name in ("l2", "valid_rows"):
            check(name, getattr(self, name), 0 <= getattr(self, name) < math.inf)
        check_grid(self)


def rounds(settings: Any) -> list[str]:
    """The grids that are searched one after the other, each from the best point of the last."""
    return str(settings.grid).split("|")


def check_grid(settings: Any) -> None:
    """Say what is wrong in a grid before anything is trained."""
    for grid in filter(None, rounds(settings)):
        list(points(settings, grid))


def points(settings: Any, grid: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """All points of a grid, `lr=0.001,0.01;l2=0,0.0001`: (what is tried, the settings with it).

    An empty grid has one point, the settings. Raises ValueError where a grid names no setting, or a
    value is not of its type.
    """
    axes: dict[str, list[Any]] = {}
    for axis in filter(None, grid.split(";")):
        name, equals, values = axis.partition("=")
        if not equals or name not in vars(settings) or name == "grid" or name in axes:
            raise ValueError(f"grid: '{axis}' is not setting=value,value of one more setting")
        kind = type(getattr(settings, name))
        axes[name] = [typed(axis, kind, text) for text in values.split(",")]
    for point in itertools.product(*axes.values()):
        chosen = dict(zip(axes, point, strict=True))
        yield chosen, replace(settings, **chosen, grid="")


def typed(axis: str, kind: type, text: str) -> Any:
    """A value of a grid as its setting has it."""
    words = {"true": True, "false": False}
    try:
        return words[text.lower()] if kind is bool else kind(text)
    except (LookupError, ValueError):
        raise ValueError(f"grid: '{axis}' has '{text}', not of type {kind.__name__}") from None


# --- rows ---------------------------------------------------------------------------------------
def of_domain(items: np.ndarray, low: int, high: int) -> np.ndarray:
    """Each row's items from `low` to `high`, in order and right-padded: (N, L) -> (N, L)."""
    mine = (items >= low) & (items <= high)
    order = np.argsort(~mine, axis=1, kind="stable")
    return np.take_along_axis(items * mine, order, axis=1)


def bounds(data: CrossData, domain: int) -> tuple[int, int]:
    """First and last item id of a domain."""
    return (1, data.n_a) if domain == 0 else (data.n_a + 1, data.n_items)


@dataclass(frozen=True)
class Rows:
    """Training rows: what is read, and what is to be predicted after each step."""

    items: np.ndarray
    """(R, L), right-padded with 0."""
    targets: np.ndarray
    """(R, L); 0 where nothing is to be predicted."""
    users: np.ndarray
    """(R,)."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def per_row(self) -> float:
        """Mean number of predicted positions of a row."""
        return float((self.targets > 0).sum() / len(self))


def training_rows(data: CrossData, max_len: int, reads: str, rows: str) -> Rows:
    """The training sequences as rows.

    reads: "merged", both domains in one row; "target", a row for each domain, which a model of that
    domain alone would see; "a" or "b", rows of that domain alone.

    rows: "positions", every position predicted in one row; "prefixes", one row for each of them;
    "last", as prefixes, but only the last item of each domain.
    """
    every = np.arange(len(data.train))
    whole = data.train.padded(every, max_len + 1)  # (N, L + 1)
    users = data.train.users
    if reads != "merged":
        wanted = (0, 1) if reads == "target" else (DOMAINS.index(reads),)
        whole = np.concatenate([of_domain(whole, *bounds(data, domain)) for domain in wanted])
        users = np.tile(users, len(wanted))
    kept = whole[:, 1] > 0  # at least one item to predict
    if not kept.any():
        raise Unavailable(
            f"{data.name}: no training sequence has two items to learn from (read: {reads})"
        )
    whole, users = whole[kept], users[kept]
    items, targets = whole[:, :-1] * (whole[:, 1:] > 0), whole[:, 1:]
    if rows == "positions":
        return Rows(items, targets, users)
    due = targets > 0
    if rows == "last":
        due = np.zeros_like(due)
        for domain in (0, 1):
            low, high = bounds(data, domain)
            mine = (targets >= low) & (targets <= high)
            last = mine.shape[1] - 1 - mine[:, ::-1].argmax(1)
            at = np.flatnonzero(mine.any(1))
            due[at, last[at]] = True
    row, step = np.nonzero(due)
    steps = np.arange(items.shape[1])
    return Rows(
        items[row] * (steps <= step[:, None]),
        targets[row] * (steps == step[:, None]),
        users[row],
    )


@dataclass(frozen=True)
class Held:
    """The rows of a held-out split as they are ranked."""

    name: str
    """Of the split."""
    sequences: Sequences
    negatives: np.ndarray
    """(N, 999), item ids of the target's domain."""
    domain: np.ndarray
    """(N,), 0 or 1: the target's."""

    def of(self, domain: int) -> np.ndarray:
        return np.flatnonzero(self.domain == domain)

    def batches(
        self, rows: np.ndarray, data: CrossData, max_len: int, reads: str, inputs: Sequence[str]
    ) -> Callable[[np.ndarray], dict[str, Tensor]]:
        """Row numbers within `rows` -> what a model's `score` takes."""
        import torch

        def batch(index: np.ndarray) -> dict[str, Tensor]:
            at = rows[index]
            items = self.sequences.padded(at, max_len, drop=1)
            if reads != "merged":
                parts = np.stack([of_domain(items, *bounds(data, domain)) for domain in (0, 1)])
                items = parts[self.domain[at], np.arange(len(at))]
            columns = {
                "items": items,
                "users": self.sequences.users[at],
                "targets": self.sequences.targets[at],
                "negatives": self.negatives[at].astype(np.int64),
            }
            wanted = (*inputs, "targets", "negatives")
            return {k: torch.from_numpy(v) for k, v in columns.items() if k in wanted}

        return batch


class Scored(Protocol):
    def __call__(self, held: Held, rows: np.ndarray) -> np.ndarray:
        """Counts behind the ranks of some rows of a split: (len(rows), 5)."""


class Arena:
    """A run with its data: training rows, validation, and the one look at the test split."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.data = load_cross_data(job.run.dataset, job.data_dir, job.run.fingerprint)
        self.sealed = self.data.sealed()

    @cached_property
    def valid(self) -> Held:
        return self.held("valid")

    def held(self, split: str) -> Held:
        sequences = self.data.split(split)
        drawn = negatives(self.data, split, self.job.folder)
        return Held(split, sequences, drawn, self.data.domain_of(sequences.targets))

    def watched(self, domain: int, valid_rows: int = 0) -> np.ndarray:
        """Rows of validation that choose for a domain: all, or those in a fixed random part."""
        count = len(self.valid.sequences)
        rows = np.arange(count)
        if 0 < valid_rows < count:
            rows = np.sort(np.random.default_rng(0).choice(count, valid_rows, replace=False))
        found = rows[self.valid.domain[rows] == domain]
        if not len(found):
            raise Unavailable(
                f"{self.data.name}: none of {len(rows)} validation rows has a target in "
                f"{self.data.domains[domain]}, so nothing can be chosen for it"
            )
        return found

    def result(self, score: Sequence[Scored], selection: dict[str, Any]) -> Result:
        """Rank validation and test, each domain by its own scorer. The test split is opened here,
        once, when everything is chosen."""
        metrics: dict[str, Any] = {}
        predictions: dict[str, np.ndarray] = {}
        for split in SPLITS:
            held = self.valid if split == "valid" else self.held(split)
            counts = np.zeros((len(held.sequences), 5), np.float32)
            for domain in (0, 1):
                rows = held.of(domain)
                if len(rows):
                    counts[rows] = score[domain](held, rows)
            metrics |= {
                f"{split}/{DOMAINS[domain]}/{name}": value
                for domain in (0, 1)
                if len(held.of(domain))
                for name, value in rank_metrics(counts[held.of(domain)]).items()
            }
            predictions |= {
                f"{split}/users": held.sequences.users,
                f"{split}/targets": held.sequences.targets,
                f"{split}/counts": counts,
            }
        notes = unlike_release(self.data)
        return Result(
            metrics,
            predictions,
            selection,
            dict(self.data.counts),
            deviations=("other training rows than the release's",) if notes else (),
            notes=notes,
        )


def unlike_release(data: CrossData) -> tuple[str, ...]:
    """What a reader must know where the training rows are not those of the release."""
    source, here = CROSS_DATA[data.name], len(data.train)
    published = source.sizes["train"]
    if source.synthetic or here == published:
        return ()
    note = (
        f"{data.name}: the training file here is not the release's: it has {here:,} rows, that one "
        f"{published:,}. So the training count and the mean length differ, and what is trained"
    )
    if again := data.counts["train rows whose sequence is evaluated too"]:
        note += (
            f". {again:,} of its rows bear the number of a validation or test row, as only the "
            "histories of those rows do; in the release each row has a number of its own"
        )
    return (note,)


def rank_metrics(counts: np.ndarray) -> dict[str, float]:
    """Metrics in percent from the counts behind the ranks, (N, 5): see `nextitem.rank_counts`."""
    found: dict[str, float] = {"rows": len(counts)}
    for prefix, rank in (
        ("", 1 + counts[:, 0] + counts[:, 1] / 2),
        ("authors/", 1 + counts[:, 2]),
        ("full/", 1 + counts[:, 3] + counts[:, 4] / 2),
    ):
        if counts[:, 3].min() < 0 and prefix == "full/":
            continue  # the system does not score the whole domain
        found[f"{prefix}mrr"] = 100 * mrr(rank)
        found[f"{prefix}ndcg@5"] = 100 * ndcg(rank, 5)
        found[f"{prefix}ndcg@10"] = 100 * ndcg(rank, 10)
        found[f"{prefix}hr@10"] = 100 * hit_rate(rank, 10)
    return found


# --- training -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Recipe:
    """How a system is made and trained; its parts are called once torch may be loaded."""

    build: Callable[[Any, int], Any]
    """(settings, domain in the role of the target) -> the untrained model."""
    loss: Callable[[Any, Rows], Any]
    """(settings, training rows) -> loss(model, **batch)."""
    reads: str = "merged"
    rows: str = "positions"
    models: int = 1
    """1: one model for both domains; 2: one for each, with that domain as the target."""
    judged: tuple[int, ...] = (0, 1)
    """Domains whose validation MRR chooses the epochs of a lone model."""
    make_rows: Callable[[CrossData], Rows] | None = None
    """Training rows of its own, in place of `reads` and `rows`."""
    what: Mapping[str, Any] = field(default_factory=dict)
    """What decides the outcome beside the settings, such as other stages or features."""
    clip: float = 0.0
    decay: bool = True
    """Whether `l2` is the optimiser's, coupled; False: the loss has its own."""
    start: Callable[[Any, int], Mapping[str, Any]] | None = None
    """(model, domain): lets it start from other stages; returns what they are."""
    batch: Callable[[Rows], Callable[[np.ndarray], dict[str, Tensor]]] | None = None
    """Columns of a training batch; None: items, targets and users."""
    more: Callable[[Held], Callable[[np.ndarray], dict[str, Tensor]]] | None = None
    """Further columns of a scored batch."""


def fit_recipe(
    arena: Arena, accelerator: Any, stage: str, settings: Any, recipe: Recipe
) -> list[tuple[Any, Fitted]]:
    """The trained models of a recipe: one, or one for each domain."""
    from reprokit import stages, training

    if recipe.make_rows:
        rows = recipe.make_rows(arena.sealed)
    else:
        rows = training_rows(arena.sealed, settings.max_len, recipe.reads, recipe.rows)
    ignored = ("grid", "eval_batch", "max_epochs", "patience", "batch_size", "lr")
    what = {k: v for k, v in asdict(settings).items() if k not in ignored}
    found = []
    for domain in range(recipe.models):
        training.seed_everything(arena.job.run.seed, "model", domain)
        model = recipe.build(settings, domain)
        begun: Mapping[str, Any] = {}
        if recipe.start:
            begun = recipe.start(model, domain)
            # What follows must not depend on whether those stages were kept or made just now.
            training.seed_everything(arena.job.run.seed, "started", domain)
        domains = recipe.judged if recipe.models == 1 else (domain,)
        parts = {d: arena.watched(d, settings.valid_rows) for d in domains}
        scoring = {
            d: columns(arena.valid, at, arena, settings, recipe, model.inputs)
            for d, at in parts.items()
        }

        def evaluate(
            predict: Any,
            parts: Mapping[int, np.ndarray] = parts,
            scoring: Mapping[int, Any] = scoring,
        ) -> dict[str, float]:
            values: dict[str, float] = {}
            for d, at in parts.items():
                ranked = rank_metrics(predict(scoring[d], len(at)))
                values |= {f"{DOMAINS[d]}/{name}": ranked[name] for name in ("mrr", "ndcg@10")}
            return values

        fitted = stages.stage(
            arena.job,
            accelerator,
            model,
            {
                "stage": stage,
                "domain": domain,
                "models": recipe.models,
                "settings": what,
                "reads": recipe.reads,
                "rows": recipe.rows,
                "of": arena.job.run.revision,
                **recipe.what,
                **begun,
            },
            recipe.loss(settings, rows),
            recipe.batch(rows) if recipe.batch else plain_batches(rows, model.inputs),
            len(rows),
            evaluate,
            training.Fit(
                lr=settings.lr,
                weight_decay=settings.l2 if recipe.decay else 0.0,
                batch_size=settings.batch_size,
                max_epochs=settings.max_epochs,
                patience=settings.patience,
                clip=recipe.clip,
                eval_batch=settings.eval_batch,
            ),
            monitors=tuple(f"{DOMAINS[d]}/mrr" for d in domains),
        )
        found.append((model, fitted))
    return found


def plain_batches(rows: Rows, inputs: Sequence[str]) -> Callable[[np.ndarray], dict[str, Tensor]]:
    import torch

    held = {"items": rows.items, "users": rows.users, "targets": rows.targets}
    kept = {k: torch.from_numpy(v) for k, v in held.items() if k in (*inputs, "targets")}
    return lambda index: {name: column[index] for name, column in kept.items()}


def columns(
    held: Held, at: np.ndarray, arena: Arena, settings: Any, recipe: Recipe, inputs: Sequence[str]
) -> Callable[[np.ndarray], dict[str, Tensor]]:
    plain = held.batches(at, arena.data, settings.max_len, recipe.reads, inputs)
    if recipe.more is None:
        return plain
    more = recipe.more(held)
    return lambda index: {**plain(index), **more(at[index])}


def run_recipe(
    job: Job, make: Callable[[Arena, Any], Recipe], arena: Arena | None = None
) -> Result:
    """Train at every point of the grid, keep the best, rank validation and test.

    `make` gives the recipe of some settings. A point is judged by its best validation MRR, the mean
    of both domains.
    """
    from reprokit import training

    arena = arena or Arena(job)
    accelerator = training.make_accelerator()
    system, tried = job.run.system, []
    earlier = 0.0
    best: tuple[float, Any, Recipe, list[tuple[Any, Fitted]]] | None = None
    chosen_point: dict[str, Any] = {}
    for grid in rounds(job.run.settings):
        start, fixed = (best[1], chosen_point) if best else (job.run.settings, {})
        for point, settings in points(start, grid):
            recipe = make(arena, settings)
            models = fit_recipe(arena, accelerator, system, settings, recipe)
            earlier += sum(fitted.earlier_seconds for _, fitted in models)
            bests = [value for _, fitted in models for value in fitted.record.best.values()]
            value = float(np.mean(bests))
            tried.append({"point": {**fixed, **point}, "valid mrr": value})
            if best is None or value > best[0]:
                best, chosen_point = (value, settings, recipe, models), {**fixed, **point}
    assert best is not None
    value, settings, recipe, models = best

    def scorer(domain: int) -> Scored:
        model, fitted = models[domain % len(models)]

        def score(held: Held, rows: np.ndarray) -> np.ndarray:
            fitted.choose(f"{DOMAINS[domain]}/mrr")
            batch = columns(held, rows, arena, settings, recipe, model.inputs)
            return fitted.predict(batch, len(rows))

        return score

    chosen = {DOMAINS[d]: models[d % len(models)][1].selection(f"{DOMAINS[d]}/mrr") for d in (0, 1)}
    selection: dict[str, Any] = {"split": "valid", "by domain": chosen}
    if len(tried) > 1:
        selection |= {"chosen point": chosen_point, "grid": tried}
    result = arena.result([scorer(0), scorer(1)], selection)
    cut = [] if recipe.make_rows else shortened(arena.data, settings.max_len)
    notes = (*result.notes, *cut)
    return replace(result, notes=notes, earlier_seconds=earlier)


def shortened(data: CrossData, max_len: int) -> list[str]:
    """What to say of sequences that are longer than is read, their last event apart."""
    longer = {name: int((data.split(name).lengths > max_len + 1).sum()) for name in SEQUENCES}
    if not any(longer.values()):
        return []
    told = ", ".join(f"{count:,} of {name}" for name, count in longer.items())
    return [f"{data.name}: only the last {max_len} events are read of longer sequences: {told}"]


# --- rows that are not trained ------------------------------------------------------------------
def count_scores(
    scores: Callable[[Held, np.ndarray, int], np.ndarray], data: CrossData, block: int = 256
) -> list[Scored]:
    """Scorers from `scores(held, rows, domain) -> (B, n_domain)`, in numpy."""

    def of(domain: int) -> Scored:
        def score(held: Held, rows: np.ndarray) -> np.ndarray:
            import torch

            from reprokit.nextitem import rank_counts

            first, found = bounds(data, domain)[0], []
            for start in range(0, len(rows), block):
                at = rows[start : start + block]
                targets = torch.from_numpy(held.sequences.targets[at] - first)
                others = torch.from_numpy(held.negatives[at].astype(np.int64) - first)
                table = torch.from_numpy(np.ascontiguousarray(scores(held, at, domain)))
                found.append(rank_counts(table, targets, others).numpy())
            return np.concatenate(found)

        return score

    return [of(0), of(1)]


@dataclass(frozen=True)
class NoSettings:
    """Nothing to set."""


def run_random(job: Job) -> Result:
    """A score that knows nothing: MRR 0.75%, NDCG@10 0.45% among 1,000."""
    arena, rng = Arena(job), np.random.default_rng(job.run.seed)

    def scores(held: Held, rows: np.ndarray, domain: int) -> np.ndarray:
        low, high = bounds(arena.data, domain)
        return rng.random((len(rows), high - low + 1), dtype=np.float32)

    return arena.result(count_scores(scores, arena.data), nothing_chosen())


def run_constant(job: Job) -> Result:
    """One score for all: what a rule for ties makes of it."""
    arena = Arena(job)

    def scores(held: Held, rows: np.ndarray, domain: int) -> np.ndarray:
        low, high = bounds(arena.data, domain)
        return np.zeros((len(rows), high - low + 1), np.float32)

    return arena.result(count_scores(scores, arena.data), nothing_chosen())


def run_popularity(job: Job) -> Result:
    """How often an item stands in the training sequences."""
    arena = Arena(job)
    often = np.bincount(arena.sealed.train.items, minlength=arena.data.n_items + 1)
    often = often.astype(np.float32)

    def scores(held: Held, rows: np.ndarray, domain: int) -> np.ndarray:
        low, high = bounds(arena.data, domain)
        return np.tile(often[low : high + 1], (len(rows), 1))

    return arena.result(count_scores(scores, arena.data), nothing_chosen())


def run_statistics(job: Job) -> Result:
    """Table 1: what the files hold, by domain."""
    data = load_cross_data(job.run.dataset, job.data_dir, job.run.fingerprint)
    metrics: dict[str, Any] = {
        "a/items": data.n_a,
        "b/items": data.n_b,
        "train": len(data.train),
        "length": data.mean_length,
    }
    for split in SPLITS:
        domain = data.domain_of(data.split(split).targets)
        metrics |= {f"{split}/{name}": int((domain == d).sum()) for d, name in enumerate(DOMAINS)}
    counts, notes = dict(data.counts), unlike_release(data)
    return Result(metrics, selection=nothing_chosen(), data=counts, notes=notes)
