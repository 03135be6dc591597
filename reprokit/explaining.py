"""How ExplainRec is run: its settings, its parts, equation 6 for cold rows, its explanations.

Importing this module loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.bench import scored
from reprokit.click import check
from reprokit.feedback import GROUPS
from reprokit.metrics import auc
from reprokit.patterns import GROUPS_BY, WEIGHTS
from reprokit.recommending import Held, Pairs
from reprokit.runs import Job, Result, Unavailable, setting
from reprokit.tuning import Bench, TuneSettings, instructions

if TYPE_CHECKING:
    from reprokit.explainer import ExplainRec
    from reprokit.instructions import Instructions
    from reprokit.training import Fitted


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class ExplainRecSettings(TuneSettings):
    """ExplainRec: each of its four parts can be switched off."""

    without: str = setting(
        "", "the row's: attribution, zero-shot, multi-modal or multi-task", named=True
    )
    alpha: float = setting(1.0, "open; weight of L_pred in equation 3")
    beta: float = setting(1.0, "open; weight of L_reason")
    gamma: float = setting(0.1, "open; weight of L_consistency")
    eta: float = setting(
        0.001, "open; adaptation rate of equation 11: at 0.01 one task had all weight in 300 steps"
    )
    direction: str = setting(
        "needed",
        "equation 11 as printed drains the task with the largest loss; needed: the sign turned, "
        "losses relative to the first steps', so that weight goes to the task that lags; printed",
    )
    weight_bound: float = setting(
        4.0, "ours; needed keeps the tasks' weights within this factor of 1, or one takes all"
    )
    cross_share: float = setting(
        0.2, "open; share of the training rows that are domain-free, for the cross-domain task"
    )
    text_encoder: str = setting("google-bert/bert-base-uncased", "equation 7: BERT")
    image_encoder: str = setting("clip", "equation 7: CLIP; ViT-B/32")
    dim: int = setting(64, "open; width of fused items")
    context: int = setting(
        20, "open; most liked and most disliked items behind the fusion's context"
    )
    fusion_lr: float = setting(1e-3, "open; step size of what is not LoRA")
    groups_by: str = setting(
        "auto", "equation 5's groups: demographics where there are any, else behaviour"
    )
    group_weights: str = setting("sqrt", "open; w_g of equation 5 by group size: uniform, size")
    smoothing: float = setting(20.0, "open; rows at the mean that each pattern starts from")
    adapt: str = setting("fusion", "open; what equation 6 adapts: fusion (with the prior) or lora")
    adapt_lr: str = setting(
        "0,0.01,0.1", "open; step sizes of equation 6, chosen by validation AUC; 0: no step"
    )
    support: int = setting(5, "spec; most events of a support set: a new user has fewer than 5")
    adapt_rows: int = setting(300, "ours; validation rows on which the step size is chosen")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("without", ("", "attribution", "zero-shot", "multi-modal", "multi-task")),
            ("direction", ("needed", "printed")),
            ("groups_by", GROUPS_BY),
            ("group_weights", WEIGHTS),
            ("adapt", ("fusion", "lora")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got '{getattr(self, name)}'")
        for name in ("alpha", "beta", "gamma", "eta"):
            check(name, getattr(self, name), getattr(self, name) >= 0)
        for name in ("dim", "context", "fusion_lr", "smoothing", "support", "adapt_rows"):
            check(name, getattr(self, name), getattr(self, name) > 0)
        check("cross_share", self.cross_share, 0 <= self.cross_share < 1)
        check("weight_bound", self.weight_bound, self.weight_bound > 1)
        if self.attention == "flash_attention_2" and self.attribution and self.gamma:
            raise ValueError(
                "attention flash_attention_2 takes no mask of our own, which L_consistency needs: "
                "set gamma=0, or use sdpa"
            )
        rates(self)

    @property
    def attribution(self) -> bool:
        return self.without != "attribution"

    @property
    def knowledge(self) -> bool:
        return self.without != "zero-shot"

    @property
    def multimodal(self) -> bool:
        return self.without != "multi-modal"

    @property
    def tasks(self) -> bool:
        return self.without != "multi-task"

    @property
    def reads(self) -> tuple[str, ...]:
        return ("llm", "text", "image") if self.multimodal else ("llm",)


def rates(settings: ExplainRecSettings) -> list[float]:
    """Step sizes of equation 6. Raises ValueError for what is none."""
    try:
        found = [float(part) for part in settings.adapt_lr.split(",")]
    except ValueError:
        raise ValueError(f"adapt_lr: '{settings.adapt_lr}' is not numbers with commas") from None
    if min(found) < 0:
        raise ValueError(f"adapt_lr: a step size is negative in '{settings.adapt_lr}'")
    if not np.isfinite(found).all():
        raise ValueError(f"adapt_lr: a step size is not finite in '{settings.adapt_lr}'")
    return found


# --- the run ------------------------------------------------------------------------------------
class Explaining:
    """A run of ExplainRec: its parts, made once, and how pairs are scored with them."""

    def __init__(self, job: Job) -> None:
        from reprokit.patterns import KnowledgeBase

        self.bench = Bench(job)
        self.settings: ExplainRecSettings = job.run.settings
        s, bench = self.settings, self.bench
        self.data = bench.data
        self.knowledge = None
        if s.knowledge:
            self.knowledge = KnowledgeBase(
                self.data,
                smoothing=s.smoothing,
                groups_by=s.groups_by,
                weights=s.group_weights,
                source_genres=bench.genres,
            )
        self.features: dict[str, np.ndarray] = {}
        if s.multimodal:
            self.features["text"] = bench.arena.text_vectors(s.text_encoder)
            if bench.arena.has_pictures:
                self.features["visual"] = bench.arena.image_vectors(s.image_encoder)
            else:
                bench.arena.note(f"{self.data.name} has no pictures here: fused from texts alone")
        if s.knowledge and self.data.is_cold:
            _ = self.tried  # nothing to choose by is said before anything is trained

    @cached_property
    def tried(self) -> tuple[Pairs, np.ndarray]:
        """Validation pairs that choose the step size of equation 6, and their labels."""
        s, held = self.settings, self.bench.arena.valid
        at = np.arange(len(held.pairs))
        if s.adapt_rows < len(at):
            rng = np.random.default_rng([s.list_seed, 11])
            at = np.sort(rng.choice(at, s.adapt_rows, replace=False))
        if len(np.unique(held.labels[at])) < 2:
            raise Unavailable(
                f"{self.data.name}: the {len(at)} validation rows that choose the step size of "
                "equation 6 are all liked, or all disliked: raise adapt_rows"
            )
        return Pairs(held.pairs.rows[at], held.pairs.items[at]), held.labels[at]

    def model(self) -> ExplainRec:
        from reprokit.explainer import ExplainRec

        s, bench = self.settings, self.bench
        bench.seed("model")
        return ExplainRec(
            bench.llm,
            bench.words.answers,
            bench.words.again,
            self.features,
            s.dim,
            len(self.knowledge.names) if self.knowledge else 0,
            (s.alpha, s.beta, s.gamma),
            s.attribution,
            s.tasks,
            s.eta,
            s.direction,
            s.weight_bound,
        )

    def prompts(
        self,
        rows: np.ndarray,
        items: np.ndarray,
        labels: np.ndarray | None = None,
        free: np.ndarray | None = None,
    ) -> Instructions:
        """Instructions with the knowledge base's patterns of each pair.

        `free`: which are domain-free; None: all those of a cross-domain set, validation too, so
        that what is chosen is what is tested.
        """
        s = self.settings
        if free is None:
            free = np.full(len(rows), s.tasks and bool(self.data.domain.any()))
        found = instructions(
            self.bench,
            rows,
            items,
            context=s.context,
            reasons=s.attribution,
            slots=s.multimodal,
            described=True,
            free=free,
            labels=labels,
        )
        width = len(self.knowledge.names) if self.knowledge else 0
        empty = np.zeros((len(rows), width), np.float32)
        found.patterns = self.knowledge.patterns(rows, items) if self.knowledge else empty
        return found

    def asked(self, pairs: Pairs) -> Instructions:
        return self.prompts(pairs.rows, pairs.items)

    @cached_property
    def instructions(self) -> tuple[Instructions, Instructions]:
        """Those of the training rows and of the validation pairs."""
        s, bench = self.settings, self.bench
        rows = bench.train_rows
        rng = np.random.default_rng([bench.job.run.seed, 10])
        free = rng.random(len(rows)) < (s.cross_share if s.tasks else 0.0)
        learnt = self.prompts(rows, self.data.items[rows], self.data.labels[rows], free)
        if s.attribution:
            bench.sources = learnt.sources
        return learnt, self.asked(bench.arena.valid.pairs)

    def train(self, model: ExplainRec, first: str) -> Fitted:
        import torch

        from reprokit.explainer import multi_task_loss

        s, bench, data = self.settings, self.bench, self.data
        prompts, valid = self.instructions
        rows, labels = bench.train_rows, data.labels[bench.train_rows]
        ratings = data.ratings[data.rows("train")]
        stars = (data.ratings[rows] - ratings.mean()) / max(float(ratings.std()), 1e-6)
        columns = {
            "labels": torch.from_numpy(labels),
            "stars": torch.from_numpy(stars.astype(np.float32)),
            "patterns": torch.from_numpy(prompts.patterns),
        }
        names: tuple[str, ...] = ("without", "alpha", "beta", "gamma", "eta", "direction")
        names += ("weight_bound", "groups_by", "group_weights")
        names += ("cross_share", "text_encoder", "image_encoder", "dim", "context", "smoothing")
        return bench.stage_two(
            {
                "stage": "explainrec",
                **{name: getattr(s, name) for name in (*names, "history", "reason_facts")},
                "encoders": {kind: bench.job.run.pretrained[kind] for kind in s.reads[1:]},
                "first": first,
            },
            model,
            multi_task_loss,
            prompts,
            lambda index: {
                **prompts.training_batch(index),
                **{name: column[index] for name, column in columns.items()},
            },
            valid,
            s.fusion_lr,
            s.lr,
        )

    # --- equation 6 ---
    def supports(self, pairs: Pairs) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """(key of each pair, the support events of each key): an item's where the item is new, else
        its user's; at most `support`, the latest of a user, the earliest of an item."""
        s, data = self.settings, self.data
        new_item = data.group[pairs.rows] == GROUPS.index("new_items")
        users = data.users[pairs.rows].astype(np.int64)
        keys = np.where(new_item, -pairs.items, users)
        found: dict[int, np.ndarray] = {}
        unique, first = np.unique(keys, return_index=True)
        train = data.rows("train")
        wanted = np.isin(data.items[train], -unique[unique < 0])
        by_item = train[wanted][np.argsort(data.items[train[wanted]], kind="stable")]
        sorted_items = data.items[by_item]
        for key, at in zip(unique.tolist(), first.tolist(), strict=True):
            if key < 0:
                low, high = np.searchsorted(sorted_items, [-key, -key + 1])
                events = by_item[low:high]
                found[key] = events[np.argsort(data.times[events], kind="stable")][: s.support]
            else:
                events = data.histories(pairs.rows[at : at + 1], s.support)[0]
                found[key] = events[events >= 0]
        return keys, found

    def adapted_scores(
        self, model: ExplainRec, pairs: Pairs, rate: float
    ) -> tuple[np.ndarray, int]:
        """Scores after one gradient step on each pair's support set: (N,), and how many supports
        are empty, whose pairs are scored as they are."""
        import torch
        import torch.nn.functional as F

        from reprokit.explainer import adapted

        device = self.bench.accelerator.device
        keys, supports = self.supports(pairs)
        parameters = self.adaptable(model)
        scores = np.zeros(len(pairs), np.float32)
        model.eval()
        done = 0
        self.bench.job.progress.start_steps(len(pairs))
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]])
        asked = self.asked(pairs)
        every = np.unique(np.concatenate(list(supports.values())))
        learnt = self.prompts(every, self.data.items[every])
        accelerator = self.bench.accelerator
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        for mine in np.split(order, starts[1:])[share]:
            events = supports[int(keys[mine[0]])]
            if not len(events):
                scores[mine] = self.ask(model, asked, mine)
            else:
                batch = learnt.batch(np.searchsorted(every, events))
                odds = model.score(**{name: part.to(device) for name, part in batch.items()})
                labels = torch.from_numpy(self.data.labels[events]).to(odds)
                loss = F.binary_cross_entropy_with_logits(odds, labels)
                with adapted(parameters, loss, rate):
                    scores[mine] = self.ask(model, asked, mine)
            done += len(mine)
            self.bench.job.progress.step(done, "adapted")
        together = accelerator.reduce(torch.from_numpy(scores).to(device), "sum")
        without = sum(not len(events) for events in supports.values())
        return together.cpu().numpy(), without

    def adaptable(self, model: ExplainRec) -> list[Any]:
        if self.settings.adapt == "lora":
            return model.adapter()
        return [
            parameter
            for name, parameter in model.named_parameters()
            if not name.startswith(("llm.", "rating."))
        ]

    def ask(
        self, model: ExplainRec, prompts: Instructions, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Scores of some prompts, or of all, as the model stands now, in this process alone."""
        import torch

        device, found = self.bench.accelerator.device, []
        rows = np.arange(len(prompts)) if rows is None else rows
        model.eval()  # a stage that was kept comes as it was made
        with torch.inference_mode():
            for start in range(0, len(rows), self.settings.eval_batch):
                index = rows[start : start + self.settings.eval_batch]
                batch = prompts.batch(index, share=True)
                odds = model.score(**{name: part.to(device) for name, part in batch.items()})
                found.append(odds.float().cpu().numpy())
        return np.concatenate(found)

    def choose_rate(self, model: ExplainRec) -> tuple[float, list[dict[str, float]]]:
        """The step size of equation 6 with the best validation AUC, and all that were tried."""
        pairs, labels = self.tried
        tried = []
        for rate in rates(self.settings):
            scores = self.adapted_scores(model, pairs, rate)[0] if rate else None
            if scores is None:
                scores = self.ask(model, self.asked(pairs))
            tried.append({"step size": rate, "valid auc": auc(labels, scores)})
        return max(tried, key=lambda one: one["valid auc"])["step size"], tried


def run_explainrec(job: Job) -> Result:
    """ExplainRec, or what is left of it without one of its parts."""
    run = Explaining(job)
    s, bench = run.settings, run.bench
    _ = run.instructions  # a prompt that is too long is said before anything is trained
    first = bench.stage_one()
    model = run.model()
    fitted = run.train(model, first)
    extra: dict[str, Any] = {}
    rate = 0.0
    if s.knowledge and run.data.is_cold:
        rate, tried = run.choose_rate(model)
        extra = {"step size of equation 6": rate, "tried": tried}

    def score(pairs: Pairs) -> np.ndarray:
        if not rate:
            return scored(model, fitted.predict, run.asked(pairs))
        found, without = run.adapted_scores(model, pairs, rate)
        name = "users or items without a support event"
        bench.counts[name] = max(without, bench.counts.get(name, 0))
        return found

    def explain(held: Held) -> dict[str, np.ndarray]:
        return bench.explanations(model, held, run.asked, score, s.attribution and s.gamma > 0)

    if s.tasks:
        names = ("preference", "explanation", "rating", "cross-domain")
        values = model.task_weights.tolist()
        extra["task weights"] = dict(zip(names, [round(v, 4) for v in values], strict=True))
    explaining = s.explain_rows and not run.data.is_cold
    return bench.result(score, fitted, extra, explain if explaining else None)
