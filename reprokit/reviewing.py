"""Predicting whether a review is positive, from what describes its row: protocol and training.

A row's profile (see `profiles`) is compressed by upstream MLPs and ranked by DLRM. Importing this
module loads no torch.

Metrics are `<split>/<name>`: accuracy, fpr and specificity (its complement) in percent, loss (mean
weighted cross-entropy of a row) and auc.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.click import check, nothing_chosen
from reprokit.data import SPLITS
from reprokit.metrics import accuracy, auc, false_positive_rate
from reprokit.pooling import blocks
from reprokit.profiles import Profile
from reprokit.reviewdata import load_reviews
from reprokit.reviews import Reviews
from reprokit.runs import Job, Result, Unavailable, setting

if TYPE_CHECKING:
    from torch import Tensor

    from reprokit.training import Fitted

PARTS = ("text", "image")
FORCED = {"train": 0.84, "test": 0.83}
"""The least share of positive labels with which MMREC's image-only rows can exist as printed."""


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class DLRMSettings:
    """What every trained row sets."""

    weighting: str = setting("basic", "the row's; basic: equation 1, sqrt: equation 2", named=True)
    dropout: float = setting(0.1, "the row's; behind every hidden layer of DLRM", named=True)
    parts: str = setting("text,image", "embedding features; the row's", named=True)
    positive: float = setting(3.0, "open; a rating above it is positive")
    threshold: float = setting(0.5, "open; a probability from here on counts as positive")
    text_encoder: str = setting("minilm", "the paper's MiniLM-L6-v2, 384 numbers")
    images: str = setting("needed", "without images a row is empty; if any: made without them")
    dim: int = setting(32, "the paper's width of the compressed vectors; DLRM's own width")
    bottom: str = setting("64", "open; hidden widths of the MLP over dense features")
    top: str = setting("64,32", "open; hidden widths of the MLP over the interactions")
    lr: float = setting(0.01, "the paper's; Adam, which it does not name")
    batch_size: int = setting(1024, "open")
    min_epochs: int = setting(300, "the paper's; epochs before it only train")
    patience: int = setting(50, "the paper's; epochs without a lower false-positive rate")
    max_epochs: int = setting(1000, "open; a cap")
    upstream: str = setting("256", "open; hidden widths of the upstream MLP before its last one")
    upstream_lr: float = setting(1e-3, "open")
    upstream_l2: float = setting(1e-5, "open; coupled, in Adam")
    upstream_dropout: float = setting(0.2, "open")
    upstream_epochs: int = setting(20, "open; its best epoch is chosen by validation AUC")
    upstream_patience: int = setting(3, "open")

    def __post_init__(self) -> None:
        for name in ("lr", "upstream_lr", "batch_size", "dim", "patience", "min_epochs"):
            check(name, getattr(self, name), getattr(self, name) > 0)
        for name in ("upstream_epochs", "upstream_patience"):
            check(name, getattr(self, name), getattr(self, name) > 0)
        for name in ("dropout", "upstream_dropout"):
            check(name, getattr(self, name), 0 <= getattr(self, name) < 1)
        check("threshold", self.threshold, 0 < self.threshold < 1)
        check("positive", self.positive, 1 <= self.positive < 5)
        check("max_epochs", self.max_epochs, self.max_epochs >= self.min_epochs)
        choices = {
            "weighting": ("basic", "sqrt", "none"),
            "images": ("needed", "if any"),
            "parts": ("", "text", "image", "text,image"),
        }
        for name, values in choices.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, got '{getattr(self, name)}'")
        for name in ("bottom", "top", "upstream"):
            widths(name, getattr(self, name))

    @property
    def used(self) -> tuple[str, ...]:
        return tuple(part for part in PARTS if part in self.parts.split(","))


def widths(name: str, text: str) -> tuple[int, ...]:
    """Hidden widths, as "64,32"; empty for none."""
    parts = [part for part in text.split(",") if part]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"{name} must be whole numbers with commas between, got '{text}'")
    return tuple(map(int, parts))


# --- data ---------------------------------------------------------------------------------------
def load(job: Job) -> Reviews:
    return load_reviews(job.run.dataset, job.data_dir, job.run.fingerprint)


def labels_of(data: Reviews, positive: float) -> np.ndarray:
    """(N,) whether a rating is high. Raises Unavailable where a split has one class alone."""
    labels = data.ratings > positive
    for split in SPLITS:
        rows = data.rows(split)
        if not len(rows) or labels[rows].all() or not labels[rows].any():
            raise Unavailable(
                f"{data.name}: all {len(rows):,} {split} reviews have the same label, a rating "
                f"above {positive:g} or not: there is no false-positive rate to choose or print"
            )
    return labels


def share_note(data: Reviews, labels: np.ndarray, positive: float) -> str:
    """D1: the positive share, beside what print forces."""
    shares = {split: labels[data.rows(split)].mean() for split in SPLITS}
    found = ", ".join(f"{split} {share:.3f}" for split, share in shares.items())
    told = f"{data.name}: share of reviews rated above {positive:g}: {found}"
    if data.kind != "restaurant":
        return told
    forced = ", ".join(f"{split} {share}" for split, share in FORCED.items())
    fits = all(shares[split] >= least for split, least in FORCED.items())
    word = "fits" if fits else "does NOT fit"
    return f"{told}; the printed rates force at least {forced}: {word}"


# --- training -----------------------------------------------------------------------------------
_COMPRESSED: OrderedDict[str, np.ndarray] = OrderedDict()
"""Compressed vectors of all rows, by the stage that made them: the rows of a table share them."""

Columns = Callable[[np.ndarray], "dict[str, Tensor]"]
"""Row numbers of the data (B,) -> inputs of a model."""


class Trainer:
    """A run with its data: profiles in, two kinds of models fitted on training rows."""

    def __init__(self, job: Job, data: Reviews, profile: Profile) -> None:
        from reprokit.training import make_accelerator

        self.job, self.data, self.profile = job, data, profile
        self.settings = job.run.settings
        self.labels = labels_of(data, self.settings.positive)
        self.train, self.valid = data.rows("train"), data.rows("valid")
        self.accelerator = make_accelerator()
        self.earlier_seconds = 0.0

    def stage(
        self,
        what: Mapping[str, Any],
        model: Any,
        weighting: str,
        columns: Columns,
        judge: Callable[[np.ndarray], dict[str, float]],
        monitor: str,
        fit: Any,
    ) -> Fitted:
        """Fit a model on the training rows with the weighted loss; validation rows choose."""
        import torch

        from reprokit import stages
        from reprokit.dlrm import class_weights, weighted_bce

        weights = class_weights(self.labels[self.train], weighting)
        targets = torch.from_numpy(self.labels)

        def loss(model: Any, labels: Tensor, **features: Tensor) -> Tensor:
            return weighted_bce(model, labels, weights, **features)

        def batch(index: np.ndarray) -> dict[str, Tensor]:
            rows = self.train[index]
            return {"labels": targets[torch.from_numpy(rows)], **columns(rows)}

        def evaluate(predict: Any) -> dict[str, float]:
            return judge(predict(partial(pick, columns, self.valid), len(self.valid)))

        identity = {
            **what,
            "weighting": weighting,
            "positive": self.settings.positive,
            "of": self.job.run.revision,
        }
        fitted = stages.stage(
            self.job,
            self.accelerator,
            model,
            identity,
            loss,
            batch,
            len(self.train),
            evaluate,
            fit,
            monitors=(monitor,),
        )
        self.earlier_seconds += fitted.earlier_seconds
        return fitted

    def compressed(self, name: str) -> tuple[np.ndarray, str]:
        """Section III-C: one field's vectors as 32 numbers, from an MLP that is fitted on training
        rows and applied unchanged to all: ((N, 32), id of its stage)."""
        import torch

        from reprokit import training
        from reprokit.dlrm import Upstream

        s, parts = self.settings, self.profile.vectors[name]

        def columns(rows: np.ndarray) -> dict[str, Tensor]:
            whole = np.concatenate([part(rows) for part in parts], axis=1)
            return {"vectors": torch.from_numpy(whole)}

        training.seed_everything(self.job.run.seed, "upstream", name)
        width = sum(part.width for part in parts)
        model = Upstream(width, widths("upstream", s.upstream), s.dim, s.upstream_dropout)
        fitted = self.stage(
            {
                "stage": "upstream",
                "field": name,
                "vectors": self.profile.what[name],
                "model": [s.upstream, s.dim, s.upstream_dropout],
            },
            model,
            "basic",
            columns,
            lambda scores: {"auc": auc(self.labels[self.valid], scores)},
            "auc",
            training.Fit(
                lr=s.upstream_lr,
                weight_decay=s.upstream_l2,
                batch_size=s.batch_size,
                max_epochs=s.upstream_epochs,
                patience=s.upstream_patience,
            ),
        )
        if fitted.id not in _COMPRESSED:
            _COMPRESSED[fitted.id] = self.applied(model, columns)
            while len(_COMPRESSED) > 32:
                _COMPRESSED.popitem(last=False)
        return _COMPRESSED[fitted.id], fitted.id

    def applied(self, model: Any, columns: Columns) -> np.ndarray:
        """A fitted upstream MLP on all rows: (N, 32)."""
        import torch

        model.eval()
        device = self.accelerator.device
        with torch.inference_mode():
            found = [
                model.compress(columns(rows)["vectors"].to(device)).float().cpu().numpy()
                for rows in blocks(np.arange(len(self.data)))
            ]
        return np.concatenate(found)

    def ranked(self) -> Result:
        """Compress, fit DLRM, and score each split once."""
        import torch

        from reprokit import training
        from reprokit.dlrm import DLRM, class_weights

        s, profile = self.settings, self.profile
        made = {name: self.compressed(name) for name in profile.vectors}
        features = {"dense": torch.from_numpy(scaled(profile.dense, self.train))}
        if made:
            fields = np.stack([vectors for vectors, _ in made.values()], axis=1)
            features["vectors"] = torch.from_numpy(fields)  # (N, fields, 32)
        if profile.types is not None:
            features["types"] = torch.from_numpy(profile.types[:, None])  # (N, 1 field, most)

        def columns(rows: np.ndarray) -> dict[str, Tensor]:
            at = torch.from_numpy(rows)
            return {name: column[at] for name, column in features.items()}

        cut = float(np.log(s.threshold / (1 - s.threshold)))

        def judge(logits: np.ndarray) -> dict[str, float]:
            truth, called = self.labels[self.valid], logits >= cut
            return {
                "specificity": 1 - false_positive_rate(truth, called),
                "accuracy": accuracy(truth, called),
            }

        training.seed_everything(self.job.run.seed, "dlrm")
        model = DLRM(
            profile.dense.shape[1],
            len(made),
            () if profile.types is None else (profile.n_types,),
            s.dim,
            widths("bottom", s.bottom),
            widths("top", s.top),
            s.dropout,
        )
        fitted = self.stage(
            {
                "stage": "dlrm",
                "upstream": {name: stage for name, (_, stage) in made.items()},
                "profile": profile.what[""],
                "threshold": s.threshold,
                "model": [s.dim, s.bottom, s.top, s.dropout],
            },
            model,
            s.weighting,
            columns,
            judge,
            "specificity",
            training.Fit(
                lr=s.lr,
                batch_size=s.batch_size,
                min_epochs=s.min_epochs,
                max_epochs=s.max_epochs,
                patience=s.patience,
                eval_batch=1 << 16,
            ),
        )
        logits = {}
        for split in SPLITS:
            rows = self.data.rows(split)
            logits[split] = fitted.predict(partial(pick, columns, rows), len(rows))
        weights = class_weights(self.labels[self.train], s.weighting)
        made_of = result(self.data, self.labels, logits, cut, weights, s.positive)
        return replace(
            made_of,
            selection=fitted.selection(),
            deviations=profile.deviations,
            notes=(*made_of.notes, *profile.notes),
            earlier_seconds=self.earlier_seconds,
        )


def run_dlrm(job: Job, describe: Callable[[Job, Reviews], Profile]) -> Result:
    """A row of the tables: what describes the reviews, then the models."""
    data = load(job)
    labels_of(data, job.run.settings.positive)  # says what is wrong before long work starts
    return Trainer(job, data, describe(job, data)).ranked()


def pick(columns: Columns, rows: np.ndarray, index: np.ndarray) -> dict[str, Tensor]:
    """The inputs of some of the rows, by their place among them."""
    return columns(rows[index])


def scaled(dense: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Dense features with mean 0 and deviation 1 over the training rows: (N, K) float32."""
    mean, deviation = dense[train].mean(axis=0), dense[train].std(axis=0)
    return ((dense - mean) / np.where(deviation > 1e-6, deviation, 1)).astype(np.float32)


def result(
    data: Reviews,
    labels: np.ndarray,
    logits: Mapping[str, np.ndarray],
    cut: float,
    weights: tuple[float, float],
    positive: float,
) -> Result:
    """Rates in percent and losses of each split; nothing is chosen here."""
    metrics: dict[str, Any] = {}
    predictions: dict[str, np.ndarray] = {}
    for split, scores in logits.items():
        rows = data.rows(split)
        truth, called = labels[rows], scores >= cut
        rate = false_positive_rate(truth, called)
        metrics |= {
            f"{split}/accuracy": 100 * accuracy(truth, called),
            f"{split}/fpr": 100 * rate,
            f"{split}/specificity": 100 * (1 - rate),
            f"{split}/loss": float(row_losses(truth, scores, weights).mean()),
            f"{split}/auc": auc(truth, scores),
        }
        predictions |= {
            f"{split}/rows": rows,
            f"{split}/labels": truth,
            f"{split}/scores": scores.astype(np.float32),
        }
    notes = (share_note(data, labels, positive),)
    return Result(metrics, predictions, nothing_chosen(), dict(data.counts), notes=notes)


def row_losses(labels: np.ndarray, logits: np.ndarray, weights: tuple[float, float]) -> np.ndarray:
    """Weighted cross-entropy of each row, (N,), from logits."""
    signed = np.where(labels, logits, -logits).astype(np.float64)
    return np.where(labels, weights[1], weights[0]) * np.logaddexp(0, -signed)


def run_constant(job: Job) -> Result:
    """Everything positive: what accuracy alone would reward."""
    from reprokit.dlrm import class_weights

    data, positive = load(job), job.run.settings.positive
    labels = labels_of(data, positive)
    weights = class_weights(labels[data.rows("train")], "basic")
    logits = {split: np.full(len(data.rows(split)), 1e-3) for split in SPLITS}
    return result(data, labels, logits, 0.0, weights, positive)
