"""The workbench of every row with a language model: settings, prompts, stages, scores.

Importing this module loads no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit import click
from reprokit.click import REUSED, check, click_result, nothing_chosen, reused
from reprokit.data import CTRData, Rows
from reprokit.metrics import auc
from reprokit.runs import Job, Result, setting

if TYPE_CHECKING:
    from reprokit.prompting import TextModel
    from reprokit.prompts import Pieces, Prompts
    from reprokit.training import Fitted

VICUNA = "lmsys/vicuna-7b-v1.3"
REVISION = 2
"""Of prompts and models: raised when a change moves their numbers."""


CHOICES = {
    "schedule": ("constant", "cosine"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "attention": ("sdpa", "eager", "flash_attention_2"),
}


def check_words(settings: Any) -> None:
    """Of a row with a tuned language model: raises ValueError for a choice that there is not."""
    for name, known in CHOICES.items():
        if getattr(settings, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}")
    check("lora_dropout", settings.lora_dropout, 0 <= settings.lora_dropout < 1)


@dataclass(frozen=True)
class LLMSettings:
    """What every row with a language model sets."""

    llm: str = setting(VICUNA, "the paper's Vicuna-7B; v1.3 is its last release made from LLaMA 1")
    dtype: str = setting("auto", "bfloat16 where the device has it, else float32")
    attention: str = setting("sdpa", "sdpa, eager or flash_attention_2")
    checkpointing: bool = setting(False, "recompute activations: less memory, a third more time")
    lora_r: int = setting(8, "CoLLM's and TALLRec's")
    lora_alpha: int = setting(16, "CoLLM's and TALLRec's")
    lora_dropout: float = setting(0.05, "CoLLM's and TALLRec's")
    lora_targets: str = setting("q_proj,v_proj", "CoLLM's and TALLRec's: query and value")
    history: int = setting(10, "CoLLM's; CCF-LLM says nothing but the limit in tokens")
    max_tokens: int = setting(700, "the paper's; oldest titles go first, never the question")
    lr: float = setting(1e-4, "the paper's")
    weight_decay: float = setting(1e-3, "CoLLM's, of AdamW; the paper names none")
    batch_size: int = setting(12, "the paper's 3, on each of its 4 GPUs")
    micro_batch: int = setting(3, "the paper's: rows in memory at once; 0: a process's share")
    eval_batch: int = setting(64, "rows scored at once")
    schedule: str = setting("cosine", "CoLLM's, down to a floor; the paper names none")
    lr_floor: float = setting(0.08, "CoLLM's 8e-5 under its 1e-3: where the cosine ends, of lr")
    warmup: int = setting(200, "CoLLM's, here over true steps; the paper names none")
    epoch_rows: int = setting(1600, "CoLLM's: rows between two validations")
    valid_rows: int = setting(5200, "CoLLM validates on half of MovieLens-1M's rows; 0: all")
    max_epochs: int = setting(200, "CoLLM's; early stopping ends sooner")
    patience: int = setting(20, "CoLLM's; validations without a better AUC")
    clip: float = setting(1.0, "open; largest gradient norm, 0: none")

    def __post_init__(self) -> None:
        natural = ("lora_r", "history", "max_tokens", "batch_size", "eval_batch", "epoch_rows")
        for name in (*natural, "max_epochs", "patience"):
            check(name, getattr(self, name), getattr(self, name) > 0)
        for name in ("micro_batch", "warmup", "valid_rows", "weight_decay", "lr_floor", "clip"):
            check(name, getattr(self, name), getattr(self, name) >= 0)
        for name in ("lr", "fusion_lr", "similar", "factor"):
            check(name, getattr(self, name, 1), getattr(self, name, 1) > 0)
        check_words(self)


@dataclass(frozen=True)
class CoLLMLike(LLMSettings):
    """The rows that CCF-LLM copied from CoLLM train as CoLLM does."""

    max_tokens: int = setting(1024, "CoLLM's; oldest titles go first, never the question")
    lr: float = setting(1e-3, "CoLLM's for MovieLens-1M")
    batch_size: int = setting(32, "CoLLM's: 16 on each of 2 GPUs")
    micro_batch: int = setting(4, "open; rows in memory at once, 0: a process's share")
    clip: float = setting(0.0, "CoLLM's: no clipping")


class Bench:
    """A run with its data and its language model: makes prompts, trains stages, scores rows.

    `templates`: of the prompts that the run will make. Raises RequestError where the longest title
    does not fit into one of them.
    """

    def __init__(self, job: Job, *templates: tuple[str, ...]) -> None:
        from reprokit import backbones, homemade, training
        from reprokit.prompts import check_titles, frame, tokenise, wholes

        self.started = time.time()
        self.job, self.settings = job, job.run.settings
        self.data = click.load(job)
        self.sealed = self.data.sealed()
        self.accelerator = training.make_accelerator()
        s = self.settings
        with self.accelerator.main_process_first():
            source, self.facts = homemade.prepare(
                s.llm,
                item_texts(self.data),
                frame(),
                job.folder,
                job.progress.note,
                wholes=wholes(),
            )
        self.backbone = backbones.load(
            s.llm, source, s.dtype, s.attention, self.accelerator.device, s.checkpointing
        )
        self.llm = self.backbone.model
        # A homemade tokenizer depends on more than its name: its folder's name has all of it.
        made = Path(source).name if s.llm in homemade.RECIPES else ""
        with self.accelerator.main_process_first():
            self.vocabulary = tokenise(
                self.backbone.tokenizer, self.data.titles, f"{job.run.backbone} {made}", job.folder
            )
        for template in templates:
            check_titles(self.vocabulary, template, self.data.titles, s.max_tokens)
        self.counts = {"titles with unknown characters": self.vocabulary.unknown, REUSED: 0}
        self.earlier_seconds = 0.0

    @cached_property
    def reading(self) -> dict[str, Any]:
        """What decides how any stage reads a prompt."""
        names = ("llm", "attention", "history", "max_tokens", "valid_rows")
        return {name: getattr(self.settings, name) for name in names} | {
            "dtype": str(self.backbone.model.dtype),  # what "auto" came to here
            "backbone": self.job.run.backbone,
            "revision": REVISION,
        }

    @cached_property
    def lora(self) -> dict[str, Any]:
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_targets")
        return {name: getattr(self.settings, name) for name in names}

    def add_lora(self) -> None:
        from reprokit.backbones import add_lora

        s = self.settings
        targets = tuple(s.lora_targets.split(","))
        self.llm = add_lora(
            self.llm, s.lora_r, s.lora_alpha, s.lora_dropout, targets, self.job.run.seed
        )

    def answers(self, template: tuple[str, ...]) -> tuple[int, int]:
        from reprokit.prompts import answer_tokens

        return answer_tokens(self.backbone.tokenizer, template[-1])

    def seed(self, name: str) -> None:
        from reprokit.training import seed_everything

        seed_everything(self.job.run.seed, name)

    @cached_property
    def recent(self) -> int:
        """Earlier positives handed to CF models: as many as SASRec reads, no other reads any."""
        if "sasrec" not in getattr(self.settings, "cf", "").split("+"):
            return 0
        return int(cf_settings(self.job.run, "sasrec").max_len)

    def encoder(self, kind: str, settings: Any = None) -> tuple[Any, Fitted]:
        """A trained CF model; `settings`: other than those of a model that is fused."""
        settings = settings or cf_settings(self.job.run, kind)
        model, fitted = click.train_collaborative(
            self.job, self.accelerator, kind, self.data, settings
        )
        self.note_stage(fitted)
        return model, fitted

    def note_stage(self, fitted: Fitted) -> None:
        self.earlier_seconds += fitted.earlier_seconds
        self.counts[REUSED] += reused(self.job, fitted, self.started)

    def prompts(
        self, data: CTRData, rows: Rows, template: tuple[str, ...], similar: np.ndarray | None
    ) -> Prompts:
        """The prompts of some rows; histories for SASRec reach further back than the titles."""
        from reprokit.prompts import Prompts

        every, s = np.arange(len(rows)), self.settings
        return Prompts(
            self.vocabulary,
            template,
            rows.users,
            rows.items,
            data.histories(rows, every, s.history),
            data.histories(rows, every, self.recent),
            None if similar is None else similar[rows.users],
            s.max_tokens,
        )

    def train(
        self,
        what: dict[str, Any],
        model: TextModel,
        template: tuple[str, ...],
        loss: Any,
        lr: float,
        similar: np.ndarray | None = None,
    ) -> Fitted:
        """One stage on the training rows, chosen on validation rows; test stays closed."""
        import torch

        from reprokit import stages, training

        s, data = self.settings, self.sealed
        prompts = self.prompts(data, data.train, template, similar)
        valid = sample(data.valid, s.valid_rows)
        valid_prompts = self.prompts(data, valid, template, similar)
        labels = torch.from_numpy(data.train.labels)
        self.seed(what["stage"])  # the same dropout whatever was drawn before
        fitted = stages.stage(
            self.job,
            self.accelerator,
            model,
            {**what, **self.reading, "template": list(template)},
            loss,
            lambda index: {**prompts.batch(index), "labels": labels[index]},
            len(prompts),
            lambda predict: {
                "auc": auc(valid.labels, scored(model, predict, valid_prompts)),
            },
            training.Fit(
                lr=lr,
                batch_size=s.batch_size,
                max_epochs=s.max_epochs,
                patience=s.patience,
                weight_decay=s.weight_decay,
                optimizer="adamw",
                epoch_rows=min(s.epoch_rows, len(prompts)),
                micro_batch=s.micro_batch,
                warmup=s.warmup,
                schedule=s.schedule,
                floor=s.lr_floor * lr,
                clip=s.clip,
                eval_batch=s.eval_batch,
            ),
            lengths=prompts.lengths,
        )
        self.note_stage(fitted)
        return fitted

    def untrained(self, model: TextModel) -> Fitted:
        """A model that is scored as it is, in the precision of those that are trained."""
        from reprokit import training
        from reprokit.prompting import answer_loss

        wrapped = self.accelerator.prepare(training.Objective(model, answer_loss))
        return training.Fitted(
            self.accelerator, wrapped, self.settings.eval_batch, training.Record(("auc",))
        )

    def result(
        self,
        model: TextModel,
        fitted: Fitted,
        template: tuple[str, ...],
        similar: np.ndarray | None = None,
    ) -> Result:
        """Score validation and test: the test split is opened here, once, the model is chosen."""

        def score(rows: Rows) -> np.ndarray:
            prompts = self.prompts(self.data, rows, template, similar)
            for name, value in (("shortened", prompts.shortened), ("dropped", prompts.dropped)):
                self.counts[name] = self.counts.get(name, 0) + value
            return scored(model, fitted.predict, prompts)

        chosen = fitted.selection() if fitted.record.epochs else nothing_chosen()
        result = click_result(self.data, score, chosen)
        return replace(
            result,
            data={**result.data, **self.counts},
            deviations=self.deviations,
            notes=self.notes(),
            earlier_seconds=self.earlier_seconds,
        )

    @property
    def deviations(self) -> tuple[str, ...]:
        name = self.settings.llm
        base = Path(name.partition("@")[0]).name.lower()
        if base.startswith("vicuna-7b") and "v1.5" not in base:  # v1.5 is made from LLaMA 2
            return ()
        kind = {"tiny": "a tiny random Llama", "scratch": "a tiny Llama pretrained on item titles"}
        return (f"{kind.get(name, name)} in place of Vicuna-7B",)

    def notes(self) -> tuple[str, ...]:
        """What was cut, what was not known, and how good a Llama of our own is."""
        s, dataset = self.settings, self.job.run.dataset
        notes = []
        if cut := self.counts.get("shortened"):
            notes.append(
                f"{cut:,} prompts of {dataset} lost {self.counts['dropped']:,} titles to the limit "
                f"of {s.max_tokens} tokens"
            )
        if unknown := self.vocabulary.unknown:
            notes.append(f"{unknown:,} titles of {dataset} have characters unknown to {s.llm}")
        if s.llm == "scratch":
            notes.append(
                f"scratch on {dataset}: perplexity per token {self.facts['perplexity']:.1f} on "
                f"titles held out, {self.facts['perplexity_before']:.0f} before pretraining"
            )
        return tuple(notes)


def item_texts(data: CTRData) -> list[str]:
    """What a language model of our own may read: titles with genres, nothing of users."""
    pairs = zip(data.titles[1:], data.genres[1:], strict=True)
    # Behind a space, as in a prompt.
    return [f" {title}: {', '.join(g.split('|'))}" if g else f" {title}" for title, g in pairs]


def cf_settings(run: Any, kind: str) -> Any:
    """The settings a CF model is trained with for a run that fuses it."""
    s = run.settings
    own = {"dim": getattr(s, "cf_dim", 0), "batch_size": getattr(s, "cf_batch", 0)}
    dataset = run.dataset.removeprefix("demo-")
    chosen = {name: value for name, value in own.items() if value}
    return click.SYSTEMS[kind].configure(dataset, s.cf_preset, chosen)


def best_items(model: Any, data: CTRData, count: int) -> np.ndarray:
    """A CF model's top items per user among those of the test rows: which items they are, never a
    label. (n_users, count)."""
    import torch

    with torch.no_grad():
        users, items = (vectors.cpu() for vectors in model.vectors())
        pool = torch.from_numpy(np.unique(data.test.items))
        parts = [
            pool[(block @ items[pool].T).topk(min(count, len(pool)), dim=1).indices]
            for block in users.split(4096)
        ]
    return torch.cat(parts).numpy()


def sample(rows: Rows, count: int) -> Rows:
    """A fixed random part of some rows, the same for all systems and seeds; 0: all."""
    if not 0 < count < len(rows):
        return rows
    at = np.sort(np.random.default_rng(0).choice(len(rows), count, replace=False))
    return Rows(**{name: value[at] for name, value in vars(rows).items()})


def scored(model: TextModel, predict: Callable[..., np.ndarray], prompts: Pieces) -> np.ndarray:
    """Scores of all rows in their order; equal prefixes are read once, LoRA is merged.

    Not for a single row, a query of Table IV: merging then costs more than it saves. Nor in half
    precision, where it rounds a young adapter away.
    """
    import torch

    from reprokit.backbones import merged

    order = prompts.scoring_order
    scores = np.empty(len(prompts), np.float32)
    merge = model.causal.dtype == torch.float32 and len(prompts) > 1
    with merged(model.llm) if merge else nullcontext():
        scores[order] = predict(lambda index: prompts.batch(order[index], share=True), len(prompts))
    return scores
