"""Click-through prediction: the protocol, and the rows that need no language model.

A row is (user, item, label) in one of three time windows; a system gives it a score; the result is
the AUC over all rows of the test window, rows of unseen users and items included. Importing this
module loads no torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.data import CTRData, Rows, load_click_data
from reprokit.metrics import auc, uauc
from reprokit.runs import Estimate, Job, Result, System, setting

if TYPE_CHECKING:
    from torch import Tensor

    from reprokit.training import Fitted


# --- settings -----------------------------------------------------------------------------------
def check(name: str, value: float, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} is out of range, got {value}")


@dataclass(frozen=True)
class CFSettings:
    """What every collaborative row sets. The defaults are MF's on ML-1M."""

    dim: int = setting(256, "CoLLM's choice; CCF-LLM's own fusion uses 128")
    init_std: float = setting(
        0.01,
        "open; unit-normal tables stay at AUC 0.50 for 150 epochs, some seeds for good",
    )
    lr: float = setting(1e-3, "CoLLM's choice from {1e-1, ..., 1e-4}")
    weight_decay: float = setting(1e-4, "CoLLM's choice; coupled L2 of Adam")
    batch_size: int = setting(2048, "CoLLM's; CCF-LLM says 1024 for its own encoders")
    max_epochs: int = setting(300, "early stopping ends sooner")
    patience: int = setting(30, "open; epochs without a better validation AUC")

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("weight_decay", "dropout"):
                check(name, value, 0 <= value < (1 if name == "dropout" else math.inf))
            else:
                check(name, value, 0 < value < math.inf)


@dataclass(frozen=True)
class LightGCNSettings(CFSettings):
    """LightGCN as CoLLM runs it: explicit labels, edges from positive training rows."""

    dim: int = setting(64, "CoLLM's choice; CCF-LLM's own fusion uses 128")
    init_std: float = setting(0.1, "CoLLM's: start vectors from N(0, 0.1^2)")
    lr: float = setting(1e-2, "CoLLM's choice from {1e-1, ..., 1e-4}")
    layers: int = setting(2, "CoLLM's choice from {1, 2, 3}")


@dataclass(frozen=True)
class SASRecSettings(CFSettings):
    """SASRec as CoLLM runs it: the state after the history, times the target item."""

    dim: int = setting(64, "CoLLM's choice; CCF-LLM's own fusion uses 128")
    init_std: float = setting(
        0.02, "open; CoLLM's unit-normal tables reach the same AUC in ten times the epochs"
    )
    lr: float = setting(1e-2, "CoLLM's choice from {1e-1, ..., 1e-4}")
    weight_decay: float = setting(1e-2, "CoLLM's choice; coupled L2 of Adam")
    max_epochs: int = setting(
        20, "open; CoLLM's best epoch was 194, 172 epochs from its start gave no better test AUC"
    )
    patience: int = setting(10, "open; epochs without a better validation AUC")
    max_len: int = setting(25, "CoLLM's; the most recent earlier positives that are read")
    blocks: int = setting(2, "CoLLM's")
    heads: int = setting(1, "CoLLM's")
    dropout: float = setting(0.2, "CoLLM's")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim, got {self.heads} and {self.dim}")


@dataclass(frozen=True)
class RandomSettings:
    """A uniform score for each row."""


@dataclass(frozen=True)
class LikeRateSettings:
    """The item's smoothed share of positive training rows."""

    smoothing: float = setting(5.0, "ours; rows at the overall rate that each item starts from")

    def __post_init__(self) -> None:
        check("smoothing", self.smoothing, 0 <= self.smoothing < math.inf)


@dataclass(frozen=True)
class BiasSettings:
    """Logistic regression on the user's and the item's id, nothing else."""

    penalty: float = setting(1.0, "ours; scikit-learn's C, its default")

    def __post_init__(self) -> None:
        check("penalty", self.penalty, 0 < self.penalty < math.inf)


@dataclass(frozen=True)
class StatisticsSettings:
    """Counting has no settings."""


# --- how each row is run ------------------------------------------------------------------------
def load(job: Job) -> CTRData:
    return load_click_data(job.run.dataset, job.data_dir, job.run.fingerprint)


def run_collaborative(job: Job) -> Result:
    """MF, LightGCN or SASRec with binary cross-entropy on labelled rows, no sampled negatives."""
    from reprokit import training

    started, data = time.time(), load(job)
    accelerator = training.make_accelerator()
    model, fitted = train_collaborative(job, accelerator, job.run.system, data, job.run.settings)
    inputs: tuple[str, ...] = model.inputs
    length = getattr(job.run.settings, "max_len", 0)
    # The model is chosen: the test split is opened here, once.
    result = click_result(
        data,
        lambda rows: fitted.predict(batches(data, rows, inputs, length), len(rows)),
        fitted.selection(),
    )
    counts = {**result.data, REUSED: reused(job, fitted, started)}
    return replace(result, data=counts, earlier_seconds=fitted.earlier_seconds)


def train_collaborative(
    job: Job, accelerator: Any, kind: str, data: CTRData, settings: Any
) -> tuple[Any, Fitted]:
    """A trained CF model; one stage, shared by all runs that need it."""
    from reprokit import stages, training
    from reprokit.collaborative import pointwise

    sealed = data.sealed()
    training.seed_everything(job.run.seed, "model")
    model = build(kind, sealed, settings)
    inputs: tuple[str, ...] = model.inputs
    length = getattr(settings, "max_len", 0)
    fitted = stages.stage(
        job,
        accelerator,
        model,
        {"stage": kind, "settings": asdict(settings), "of": SYSTEMS[kind].revision},
        pointwise,
        batches(sealed, sealed.train, (*inputs, "labels"), length),
        len(sealed.train),
        lambda predict: {
            "auc": auc(
                sealed.valid.labels,
                predict(batches(sealed, sealed.valid, inputs, length), len(sealed.valid)),
            )
        },
        training.Fit(
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            batch_size=settings.batch_size,
            max_epochs=settings.max_epochs,
            patience=settings.patience,
        ),
    )
    return model, fitted


REUSED = "stages reused"
"""Among a result's counts: stages that an earlier run had trained."""


def reused(job: Job, fitted: Fitted, since: float) -> int:
    """1 where a stage was kept before `since`, the start of the run, which so took less time."""
    path = job.folder / "stages" / f"{fitted.id}.safetensors"
    return int(path.is_file() and path.stat().st_mtime < since)


def build(system: str, data: CTRData, settings: Any) -> Any:
    """The untrained model of a collaborative row."""
    from reprokit.collaborative import MF, LightGCN
    from reprokit.sequential import SASRec

    s = settings
    if system == "mf":
        return MF(data.n_users, data.n_items, s.dim, s.init_std)
    if system == "lightgcn":
        liked = data.train.labels == 1
        edges = data.train.users[liked], data.train.items[liked]
        return LightGCN(data.n_users, data.n_items, s.dim, s.init_std, s.layers, *edges)
    return SASRec(data.n_items, s.dim, s.init_std, s.max_len, s.blocks, s.heads, s.dropout)


def batches(
    data: CTRData, rows: Rows, inputs: tuple[str, ...], length: int
) -> Callable[[np.ndarray], dict[str, Tensor]]:
    """Row numbers -> the named columns of `rows` as tensors; `histories` is (B, length)."""
    import torch

    columns = {
        name: torch.from_numpy(getattr(rows, name)) for name in inputs if name != "histories"
    }

    def batch(index: np.ndarray) -> dict[str, Tensor]:
        at = torch.from_numpy(index)
        chosen = {name: column[at] for name, column in columns.items()}
        if "histories" in inputs:
            chosen["histories"] = torch.from_numpy(data.histories(rows, index, length))
        return chosen

    return batch


def run_random(job: Job) -> Result:
    """A score that knows nothing: what chance looks like on these rows."""
    rng = np.random.default_rng(job.run.seed)
    data = load(job)
    return click_result(data, lambda rows: rng.random(len(rows)), nothing_chosen())


def run_like_rate(job: Job) -> Result:
    """(positives + a m) / (rows + a) of the item in training, m the overall rate."""
    data = load(job)
    train, weight = data.train, job.run.settings.smoothing
    rows = np.bincount(train.items, minlength=data.n_items)
    liked = np.bincount(train.items, train.labels, minlength=data.n_items)
    rate = (liked + weight * train.labels.mean()) / (rows + weight)
    return click_result(data, lambda rows: rate[rows.items], nothing_chosen())


def run_bias(job: Job) -> Result:
    """Logistic regression over one-hot user and item; an unseen id adds nothing to the score."""
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression

    data = load(job)

    def one_hot(rows: Rows) -> csr_array:
        columns = np.stack([rows.users, data.n_users + rows.items], 1).ravel()
        start = np.arange(0, 2 * len(rows) + 1, 2)
        shape = (len(rows), data.n_users + data.n_items)
        return csr_array((np.ones(2 * len(rows)), columns, start), shape=shape)

    model = LogisticRegression(C=job.run.settings.penalty, max_iter=1000)
    model.fit(one_hot(data.train), data.train.labels)
    return click_result(data, lambda rows: model.decision_function(one_hot(rows)), nothing_chosen())


def run_statistics(job: Job) -> Result:
    """Table 1: what our split counts. Users and items include the padding id, as the paper's do."""
    data = load(job)
    metrics: dict[str, float] = {"users": data.n_users, "items": data.n_items}
    for name in ("train", "valid", "test"):
        rows = data.split(name)
        metrics[name] = len(rows)
        metrics[f"{name}/positive_share"] = float(rows.labels.mean())
        metrics[f"{name}/warm_share"] = float(rows.warm.mean())
        metrics[f"{name}/mean_history"] = float((rows.history_end - rows.history_start).mean())
    return Result(metrics, selection=nothing_chosen(), data=dict(data.counts))


def nothing_chosen() -> dict[str, Any]:
    return {"split": None, "why": "nothing was tuned or chosen"}


def click_result(
    data: CTRData,
    score: Callable[[Rows], np.ndarray],
    selection: dict[str, Any],
    splits: tuple[str, ...] = ("valid", "test"),
) -> Result:
    """Score validation and test once; keep ids, labels and scores beside the metrics."""
    predictions: dict[str, np.ndarray] = {}
    for name in splits:
        rows = data.split(name)
        predictions |= {
            f"{name}/users": data.user_ids[rows.users],
            f"{name}/items": data.item_ids[rows.items],
            f"{name}/labels": rows.labels,
            f"{name}/warm": rows.warm,
            f"{name}/scores": score(rows).astype(np.float32),
        }
    return Result(click_metrics(predictions), predictions, selection, dict(data.counts))


def click_metrics(predictions: Mapping[str, np.ndarray]) -> dict[str, float]:
    """AUC and uAUC over all rows, over warm rows, and over rows with an unseen user or item.

    A group of rows that allows no AUC (one class, or no user with both) is left out.
    """
    metrics: dict[str, float] = {}
    for split in ("valid", "test"):
        if f"{split}/scores" not in predictions:
            continue
        users, labels, warm, scores = (
            predictions[f"{split}/{name}"] for name in ("users", "labels", "warm", "scores")
        )
        for suffix, part in (("", np.ones(len(labels), bool)), ("_warm", warm), ("_cold", ~warm)):
            metrics[f"{split}/rows{suffix}"] = int(part.sum())
            if len(np.unique(labels[part])) == 2:
                metrics[f"{split}/auc{suffix}"] = auc(labels[part], scores[part])
            if any_user_has_both(users[part], labels[part]):
                value, counted = uauc(users[part], labels[part], scores[part])
                metrics[f"{split}/uauc{suffix}"] = value
                metrics[f"{split}/uauc_users{suffix}"] = counted
    return metrics


def any_user_has_both(users: np.ndarray, labels: np.ndarray) -> bool:
    return len(np.intersect1d(users[labels == 1], users[labels == 0])) > 0


# --- estimates: upper bounds on two CPU cores, from runs on one such machine --------------------
def estimate_training(nanoseconds: float) -> Callable[[Any, Mapping[str, int]], Estimate]:
    """Time by epochs, rows and width; memory for weights, gradient, Adam and best state."""

    def estimate(settings: Any, sizes: Mapping[str, int]) -> Estimate:
        weights = 4 * settings.dim * (sizes["users"] + sizes["items"])
        work = settings.max_epochs * sizes["train"] * settings.dim * getattr(settings, "max_len", 1)
        return Estimate(5 + work * nanoseconds * 1e-9, 0.8e9 + 6 * weights, 5 * weights)

    return estimate


def estimate_counting(_: Any, sizes: Mapping[str, int]) -> Estimate:
    return Estimate(5 + sizes["train"] * 1e-5, 0.3e9 + 500 * sizes["train"], 10 * sizes["train"])


REASONS = {
    "amazon-book": "CoLLM's choice there",
    "demo": "small, for a minute on a laptop",
    "paper": "as long as CoLLM trained",
}
BOOK = {"batch_size": 10_240}
DEMO = {"dim": 16, "batch_size": 512, "lr": 1e-2, "weight_decay": 1e-4}
DEMO |= {"max_epochs": 60, "patience": 5}
LONG = {"max_epochs": 1000, "patience": 100}
SYSTEMS = {
    "statistics": System(StatisticsSettings, run_statistics, estimate_counting, seeded=False),
    "mf": System(
        CFSettings,
        run_collaborative,
        estimate_training(12),
        tuned={"amazon-book": {**BOOK, "weight_decay": 1e-6}},
        presets={"demo": DEMO, "paper": LONG},
        reasons=REASONS,
    ),
    "lightgcn": System(
        LightGCNSettings,
        run_collaborative,
        estimate_training(60),
        tuned={"amazon-book": {**BOOK, "dim": 256, "lr": 1e-4, "weight_decay": 1e-7}},
        presets={"demo": DEMO, "paper": LONG},
        reasons=REASONS,
    ),
    "sasrec": System(
        SASRecSettings,
        run_collaborative,
        estimate_training(100),
        tuned={"amazon-book": {**BOOK, "lr": 1e-3, "weight_decay": 1e-3, "max_len": 20}},
        presets={"demo": DEMO, "paper": LONG},
        reasons=REASONS,
    ),
    "random": System(RandomSettings, run_random, estimate_counting),
    "like-rate": System(LikeRateSettings, run_like_rate, estimate_counting, seeded=False),
    "bias-only": System(BiasSettings, run_bias, estimate_counting, seeded=False),
}
