"""Training a ranker on liked rows, choosing it by validation, and scoring with what was chosen.

The models stand in `rankers` and `multimodal`. Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit import recommending
from reprokit.feedback import Feedback
from reprokit.recommending import Arena, Pairs, blocks
from reprokit.runs import Job, Result, Unavailable

if TYPE_CHECKING:
    from torch import Tensor

    from reprokit.training import Fitted

    Columns = Callable[[np.ndarray], dict[str, Tensor]]
    """Row numbers (B,) -> columns of a batch."""

NDCG, AUC = "ndcg@10", "auc"


# --- columns ------------------------------------------------------------------------------------
def columns(data: Feedback, pairs: Pairs, inputs: tuple[str, ...], length: int) -> Columns:
    """What a model's `score` reads of pairs, one row for all pairs of a context.

    `histories` are the last `length` liked items of the context, (B, length); `items` (B,), or
    (B, K) where K pairs share a context.
    """
    import torch

    rows = pairs.rows[:: pairs.width]
    items = pairs.items.reshape(-1, pairs.width) if pairs.width > 1 else pairs.items

    def batch(index: np.ndarray) -> dict[str, Tensor]:
        found = context(data, rows[index], inputs, length)
        return {**found, "items": torch.from_numpy(items[index])}

    return batch


def context(
    data: Feedback, rows: np.ndarray, inputs: tuple[str, ...], length: int
) -> dict[str, Tensor]:
    """The columns of `inputs` that are not the item's, of contexts (B,)."""
    import torch

    found = {}
    if "users" in inputs:
        found["users"] = data.users[rows].astype(np.int64)
    if "histories" in inputs:
        found["histories"] = data.items_at(data.histories(rows, length, label=1))
    return {name: torch.from_numpy(column) for name, column in found.items()}


def liked_pairs(data: Feedback) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of the liked training rows, (E,) each, by user and then by time.

    Raises Unavailable where there are none.
    """
    rows = data.rows("train")
    rows = rows[data.labels[rows] == 1]
    if not len(rows):
        raise Unavailable(f"{data.name}: no training row is liked: nothing to learn to rank from")
    return data.users[rows].astype(np.int64), data.items[rows].astype(np.int64)


def item_likes(data: Feedback) -> np.ndarray:
    """(n_items,), likes of each item in training."""
    return np.bincount(liked_pairs(data)[1], minlength=data.n_items)


# --- training -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Recipe:
    """How a model is made and trained."""

    build: Callable[[], Any]
    """The untrained model."""
    loss: Any
    """loss(model, **batch) -> (B,)."""
    batch: Columns
    """Training rows -> columns."""
    rows: int
    """Number of training rows."""
    decay: bool = False
    """Whether `l2` is the optimiser's, coupled; False: the loss has its own."""
    what: Mapping[str, Any] = field(default_factory=dict)
    """What decides the outcome beside the settings, such as features."""
    deviations: tuple[str, ...] = ()


ELSEWHERE = ("rated_rows", "rank_rows", "lr", "batch_size", "max_epochs", "patience", "eval_batch")
"""Settings that a stage does not depend on, or that stand in its `Fit`."""


def train(arena: Arena, recipe: Recipe, s: Any, system: str, revision: int) -> Chosen:
    """The model of a recipe, chosen by validation; its stage is shared by all runs that need it.

    Args:
        s: its `TrainedSettings`, which need not be those of the arena's run.
        revision: the system's own. A run's has more in it, by which the stage would not be found.
    """
    from reprokit import stages, training

    accelerator = training.make_accelerator()
    training.seed_everything(arena.job.run.seed, "model")
    model = recipe.build()
    length = getattr(s, "max_len", 0)
    monitor = AUC if arena.valid.lists is None else s.choose
    if monitor != s.choose:
        arena.note(f"{arena.data.name} has no lists to rank: validation AUC chose the epoch")

    def evaluate(predict: Any) -> dict[str, float]:
        def score(pairs: Pairs) -> np.ndarray:
            batch = columns(arena.sealed, pairs, model.inputs, length)
            found: np.ndarray = predict(batch, len(pairs) // pairs.width)
            return found.ravel()

        return arena.evaluate(score, lists=monitor == NDCG)

    kept = {k: v for k, v in asdict(s).items() if k not in ELSEWHERE}
    fitted = stages.stage(
        arena.job,
        accelerator,
        model,
        {
            "stage": system,
            "settings": kept,
            "of": revision,
            "protocol": recommending.REVISION,  # which rows choose
            **recipe.what,
        },
        recipe.loss,
        recipe.batch,
        recipe.rows,
        evaluate,
        training.Fit(
            lr=s.lr,
            weight_decay=s.l2 if recipe.decay else 0.0,
            batch_size=s.batch_size,
            max_epochs=s.max_epochs,
            patience=s.patience,
            eval_batch=s.eval_batch,
        ),
        monitors=(monitor,),
    )
    return Chosen(arena.sealed, model, fitted, length)


def run_recipe(job: Job, make: Callable[[Arena, Any], Recipe], revision: int = 1) -> Result:
    """Train what `make(arena, settings)` gives, then score validation and test.

    revision: the system's own, as `train` asks for it.
    """
    arena, s = Arena(job).ready(), job.run.settings
    recipe = make(arena, s)
    chosen = train(arena, recipe, s, job.run.system, revision)
    return arena.result(
        chosen.score,
        chosen.fitted.selection(),
        full=chosen.full,
        deviations=recipe.deviations,
        earlier_seconds=chosen.fitted.earlier_seconds,
    )


class Chosen:
    """A fitted model in its best state, for scoring alone.

    It stays in evaluation, so that a graph is propagated once and not for each query: latency is
    measured as of a model that is ready. Every process scores all rows.
    """

    def __init__(self, data: Feedback, model: Any, fitted: Fitted, length: int) -> None:
        self.data, self.model, self.fitted, self.length = data, model, fitted, length
        fitted.choose(fitted.record.monitors[0])
        fitted.wrapped.eval()

    def score(self, pairs: Pairs) -> np.ndarray:
        """(N,) scores of pairs."""
        import torch

        from reprokit.training import to

        batch = columns(self.data, pairs, self.model.inputs, self.length)
        device, found = self.fitted.accelerator.device, []
        with torch.inference_mode():
            for at in blocks(len(pairs) // pairs.width, self.fitted.eval_batch):
                inputs = to(device, batch(np.arange(at.start, at.stop)))
                scores = self.fitted.wrapped(scoring=True, **inputs)
                found.append(scores.float().cpu().numpy().ravel())
        return np.concatenate(found)

    def full(self, rows: np.ndarray) -> np.ndarray:
        """(B, n_items) scores of all items for the contexts of some events."""
        import torch

        from reprokit.training import to

        device = self.fitted.accelerator.device
        given = context(self.data, rows, self.model.inputs, self.length)
        with torch.inference_mode():
            return self.model.all_scores(**to(device, given)).float().cpu().numpy()
