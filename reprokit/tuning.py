"""How TALLRec and ExplainRec are tuned: two stages, then scores, adaptation and explanations.

Stage 1   instruction tuning on general instructions (Alpaca), of the LoRA adapter
Stage 2   recommendation tuning of the same adapter, for ExplainRec together with what it adds

Importing this module loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.bench import check_words, scored
from reprokit.click import check, nothing_chosen
from reprokit.datasets import DataError
from reprokit.metrics import auc
from reprokit.reasons import REVISION as REASONS
from reprokit.recommending import Arena, Held, Pairs, TasteSettings, to_explain, told
from reprokit.runs import Job, RequestError, Result, Unavailable, setting

if TYPE_CHECKING:
    from reprokit.feedback import Feedback
    from reprokit.instructions import Instructions
    from reprokit.training import Fitted

LLAMA = "huggyllama/llama-7b"
REVISION = 3
"""Of instructions and models: raised when a change moves their numbers."""


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class TuneSettings(TasteSettings):
    """What TALLRec and ExplainRec both set; nothing of it is printed in the paper."""

    llm: str = setting(LLAMA, "the paper's LLaMA, of 7 billion weights as in TALLRec")
    dtype: str = setting("auto", "bfloat16 where the device has it, else float32")
    attention: str = setting("sdpa", "sdpa, eager or flash_attention_2")
    checkpointing: bool = setting(False, "recompute activations: less memory, a third more time")
    lora_r: int = setting(8, "TALLRec's")
    lora_alpha: int = setting(16, "TALLRec's")
    lora_dropout: float = setting(0.05, "TALLRec's")
    lora_targets: str = setting("q_proj,v_proj", "TALLRec's: query and value")
    stage1: str = setting(
        "alpaca",
        "the paper's Alpaca tuning; catalogue: questions about the data set's own items; none",
    )
    stage1_lr: float = setting(1e-4, "TALLRec's")
    stage1_epochs: int = setting(2, "open; passes over the instructions")
    history: int = setting(5, "liked items named, and as many disliked; TALLRec names ten in all")
    max_tokens: int = setting(512, "TALLRec's; oldest items go first, never the target")
    shots: int = setting(0, "training rows; 0: all, or train_rows of them", named=True)
    train_rows: int = setting(
        100_000, "ours; rows of a fixed random sample: all of MovieLens-25M would take months"
    )
    lr: float = setting(1e-4, "TALLRec's")
    weight_decay: float = setting(0.0, "TALLRec's, of AdamW")
    batch_size: int = setting(128, "TALLRec's")
    micro_batch: int = setting(8, "open; rows in memory at once, 0: a process's share")
    eval_batch: int = setting(64, "rows scored at once")
    schedule: str = setting("constant", "TALLRec's is linear over 200 epochs, which are not run")
    warmup: int = setting(20, "TALLRec's steps")
    epoch_rows: int = setting(12_800, "open; rows between two validations")
    min_epochs: int = setting(1, "open; the first epoch that may be chosen")
    max_epochs: int = setting(20, "open; early stopping ends sooner")
    patience: int = setting(3, "open; validations without a better AUC")
    clip: float = setting(1.0, "open; largest gradient norm, 0: none")
    explain_rows: int = setting(200, "ours; test rows that are explained, a fixed random sample")
    explain_tokens: int = setting(32, "ours; most tokens of an explanation")

    def __post_init__(self) -> None:
        super().__post_init__()
        natural = ("lora_r", "history", "max_tokens", "batch_size", "eval_batch", "epoch_rows")
        for name in (*natural, "min_epochs", "patience", "train_rows", "explain_tokens"):
            check(name, getattr(self, name), getattr(self, name) > 0)
        for name in ("micro_batch", "warmup", "weight_decay", "clip", "shots", "explain_rows"):
            check(name, getattr(self, name), getattr(self, name) >= 0)
        check("max_epochs", self.max_epochs, self.max_epochs >= self.min_epochs)
        for name in ("lr", "stage1_lr", "stage1_epochs"):
            check(name, getattr(self, name), getattr(self, name) > 0)
        check_words(self)
        if self.stage1 not in ("alpaca", "catalogue", "none"):
            raise ValueError("stage1 must be one of alpaca, catalogue, none")


@dataclass(frozen=True)
class TALLRecSettings(TuneSettings):
    """TALLRec (Bao et al., RecSys 2023)."""

    loss: str = setting("whole", "TALLRec's script: tokens of prompt and answer; or answer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("whole", "answer"):
            raise ValueError("loss must be whole or answer")


# --- the workbench ------------------------------------------------------------------------------
class Bench:
    """A run with its data and its language model, to which a fresh adapter is added."""

    def __init__(self, job: Job) -> None:
        from reprokit import backbones, homemade, training
        from reprokit.alpaca import read_alpaca
        from reprokit.instructions import AGAIN, BECAUSE, fixed_words, frame, read_words
        from reprokit.reasons import phrases

        self.job, self.settings = job, job.run.settings
        if self.settings.stage1 == "alpaca":  # before a model is loaded
            try:
                self.alpaca = read_alpaca(job.data_dir)
            except DataError as error:
                raise Unavailable(
                    f"stage 1: {error}; or set stage1=catalogue, which needs no file"
                ) from None
        self.arena = Arena(job)
        self.data = self.arena.sealed
        self.counts: dict[str, int] = {}
        self.sources: dict[str, int] = {}
        self.earlier_seconds = 0.0
        _ = self.train_rows, self.arena.valid  # nothing to learn from or choose by is said now
        self.accelerator = training.make_accelerator()
        s, data = self.settings, self.data
        self.genres = source_genres(data)
        with self.accelerator.main_process_first():
            source, _ = homemade.prepare(
                s.llm,
                readable(data) if s.llm in homemade.RECIPES else [],
                frame(data.item_word),
                job.folder,
                job.progress.note,
                wholes=[
                    *(text for text in fixed_words(data.item_word) if len(text.split()) > 2),
                    *phrases(),
                ],
            )
        self.backbone = backbones.load(
            s.llm, source, s.dtype, s.attention, self.accelerator.device, s.checkpointing
        )
        targets = tuple(s.lora_targets.split(","))
        self.llm = backbones.add_lora(
            self.backbone.model, s.lora_r, s.lora_alpha, s.lora_dropout, targets, job.run.seed
        )
        self.words = read_words(self.backbone.tokenizer, data, self.genres)
        frame_size = 2 + len(self.tokens_of(BECAUSE)) + len(self.tokens_of(AGAIN))
        self.check_room(s.max_tokens, frame_size + s.explain_tokens)

    def check_room(self, prompt: int, answer: int) -> None:
        """Refuse prompts that with an answer and its reason are longer than the model reads."""
        config = self.backbone.model.config.get_text_config()
        room = getattr(config, "max_position_embeddings", None)
        if room and prompt + answer > room:
            raise RequestError(
                f"language model '{self.settings.llm}' reads {room:,} tokens: a prompt of "
                f"{prompt:,} and {answer:,} of an answer with its reason are too many. Lower "
                "max_tokens or explain_tokens"
            )

    def seed(self, name: str) -> None:
        from reprokit.training import seed_everything

        seed_everything(self.job.run.seed, name)

    @cached_property
    def reading(self) -> dict[str, Any]:
        """What decides how any stage reads."""
        names = ("llm", "attention", "lora_r", "lora_alpha", "lora_dropout", "lora_targets")
        return {name: getattr(self.settings, name) for name in (*names, "max_tokens")} | {
            "dtype": str(self.backbone.model.dtype),  # what "auto" came to here
            "backbone": self.job.run.pretrained["llm"],
            "revision": [REVISION, REASONS],
        }

    # --- stage 1 ---
    def stage_one(self) -> str:
        """Instruction tuning of the adapter; returns the stage's id, "" where there is none."""
        from reprokit import stages, training
        from reprokit.alpaca import Examples, catalogue
        from reprokit.explainer import Judged, whole_text_loss

        s = self.settings
        if s.stage1 == "none":
            return ""
        pairs = self.alpaca if s.stage1 == "alpaca" else catalogue(self.data)
        examples = Examples(self.backbone.tokenizer, pairs, s.max_tokens)
        self.counts["instructions of stage 1"] = len(examples)
        self.counts["instructions of stage 1 that are too long"] = len(pairs) - len(examples)
        if len(examples) < 2:
            raise RequestError(
                f"stage 1: of {len(pairs):,} instructions {len(examples)} fit into "
                f"{s.max_tokens} tokens, and one to learn from and one to choose by are the "
                "least: raise max_tokens, or set stage1=none"
            )
        held = max(1, len(examples) // 20)
        order = training.generator(self.job.run.seed, "stage 1").permutation(len(examples))
        valid, train = order[:held], order[held:]
        self.seed("stage 1")
        fitted = stages.stage(
            self.job,
            self.accelerator,
            Judged(self.llm, self.words.answers),
            {"stage": "instructions", "of": s.stage1, "examples": examples.digest, **self.reading},
            whole_text_loss,
            lambda index: examples.batch(train[index]),
            len(train),
            lambda predict: {
                "minus loss": -float(predict(lambda at: examples.batch(valid[at]), held).mean())
            },
            training.Fit(
                lr=s.stage1_lr,
                batch_size=min(s.batch_size, len(train)),
                max_epochs=s.stage1_epochs,
                patience=s.stage1_epochs,
                optimizer="adamw",
                micro_batch=s.micro_batch,
                warmup=s.warmup,
                clip=s.clip,
                eval_batch=s.eval_batch,
            ),
            monitors=("minus loss",),
            lengths=examples.lengths[train],
        )
        self.earlier_seconds += fitted.earlier_seconds
        return fitted.id

    # --- stage 2 ---
    @cached_property
    def train_rows(self) -> np.ndarray:
        """Training rows that have a history: a fixed random sample, or K of them by the seed."""
        s, data = self.settings, self.data
        every = data.rows("train")
        rows = every[data.history_end[every] > data.starts[data.users[every]]]
        self.counts["training rows without a history, left out"] = len(every) - len(rows)
        order = np.random.default_rng([s.list_seed, 7]).permutation(len(rows))
        if s.shots:  # TALLRec: after a shuffle by the run's seed
            order = np.random.default_rng([self.job.run.seed, 8]).permutation(len(rows))
        chosen = rows[np.sort(order[: s.shots or s.train_rows])]
        if len(np.unique(data.labels[chosen])) < 2:
            raise Unavailable(
                f"{data.name}: the {len(chosen)} training rows of seed {self.job.run.seed} are all "
                "liked, or all disliked: nothing can be learnt from them; take more shots or "
                "train_rows"
            )
        return chosen

    def stage_two(
        self,
        what: Mapping[str, Any],
        model: Any,
        loss: Any,
        prompts: Instructions,
        batch: Callable[[np.ndarray], dict[str, Any]],
        valid: Instructions,
        lr: float,
        lora_lr: float = 0.0,
    ) -> Fitted:
        """Recommendation tuning, chosen by the AUC of the validation pairs, asked by `valid`."""
        from reprokit import stages, training

        s, labels = self.settings, self.arena.valid.labels
        self.seed("stage 2")
        fitted = stages.stage(
            self.job,
            self.accelerator,
            model,
            {
                **what,
                **self.reading,
                "rows": [s.shots, s.train_rows],
                "valid": s.valid_rows,
                "list seed": s.list_seed,  # draws both
            },
            loss,
            batch,
            len(prompts),
            lambda predict: {"auc": auc(labels, scored(model, predict, valid))},
            training.Fit(
                lr=lr,
                lora_lr=lora_lr,
                batch_size=min(s.batch_size, len(prompts)),
                min_epochs=s.min_epochs if s.min_epochs > 1 else 0,
                max_epochs=s.max_epochs,
                patience=s.patience,
                weight_decay=s.weight_decay,
                optimizer="adamw",
                epoch_rows=min(s.epoch_rows, len(prompts)),
                micro_batch=s.micro_batch,
                warmup=s.warmup,
                schedule=s.schedule,
                clip=s.clip,
                eval_batch=s.eval_batch,
            ),
            lengths=prompts.training_lengths,
        )
        self.earlier_seconds += fitted.earlier_seconds
        return fitted

    def note_prompts(self, prompts: Instructions) -> None:
        """Count what was cut from prompts: of training rows, and of pairs whenever they are
        asked about."""
        for name, value in (("prompts cut", prompts.shortened), ("items cut", prompts.dropped)):
            self.counts[name] = self.counts.get(name, 0) + value

    # --- explanations ---
    def explanations(
        self,
        model: Any,
        held: Held,
        make: Callable[[Pairs], Instructions],
        score: Callable[[Pairs], np.ndarray],
        consistency: bool,
    ) -> dict[str, np.ndarray]:
        """Generated reasons of a fixed random sample of rated rows, with what they rest on.

        The model explains the answer that it gives itself; the reference explains the person's.
        """
        import torch

        from reprokit.explainer import explain, read_again
        from reprokit.instructions import AGAIN, BECAUSE

        s, words = self.settings, self.words
        chosen = to_explain(held, s.explain_rows, s.list_seed)
        count = len(chosen)
        pairs = Pairs(held.pairs.rows[chosen], held.pairs.items[chosen])
        scores = score(pairs)
        prompts, device = make(pairs), self.accelerator.device
        begin, cue = self.tokens_of(BECAUSE), self.tokens_of(AGAIN)
        texts, agree = [], 0
        model.eval()
        self.job.progress.start_steps(count)
        for start in range(0, count, s.eval_batch):
            index = np.arange(start, min(start + s.eval_batch, count))
            batch = {name: value.to(device) for name, value in prompts.batch(index).items()}
            patterns, targets = batch.pop("patterns", None), batch.pop("targets", None)
            yes = torch.from_numpy(scores[index] > 0).to(device)
            answers = torch.where(yes, words.answers[0], words.answers[1])
            written = explain(model, batch, answers, begin, words.end, s.explain_tokens)
            texts += [words.tokenizer.decode(row).strip() for row in written]
            if consistency:
                with torch.inference_mode():
                    beside = model.beside(patterns, targets, batch["histories"])
                odds = read_again(model, batch, answers, written, begin, words.end, cue, beside)
                agree += int(((odds > 0) == yes).sum())
            self.job.progress.step(start + len(index), "explanations")
        if consistency:
            self.counts["explanations that lead to the same answer"] = agree
        return told(self.arena, pairs, scores, texts)

    def tokens_of(self, text: str) -> list[int]:
        at = self.words.number[text]
        return [
            int(t) for t in self.words.tokens[self.words.starts[at] : self.words.starts[at + 1]]
        ]

    # --- what a reader must know ---
    @property
    def deviations(self) -> tuple[str, ...]:
        name = self.settings.llm
        if "llama-7b" in Path(name.partition("@")[0]).name.lower():
            return ()
        kind = {"tiny": "a tiny random Llama", "scratch": "a tiny Llama pretrained on item texts"}
        return (f"{kind.get(name, name)} in place of LLaMA-7B",)

    def notes(self) -> tuple[str, ...]:
        notes, dataset, s = [], self.job.run.dataset, self.settings
        if cut := self.counts.get("prompts cut"):
            notes.append(
                f"{cut:,} prompts of {dataset} lost {self.counts['items cut']:,} history items to "
                f"the limit of {s.max_tokens} tokens"
            )
        if self.sources:
            told = ", ".join(f"{count:,} {name}" for name, count in self.sources.items())
            notes.append(f"reasons learnt on {dataset}: {told}")
        return tuple(notes)

    def result(
        self,
        score: Callable[[Pairs], np.ndarray],
        fitted: Fitted,
        extra: Mapping[str, Any],
        explain: Callable[[Held], dict[str, np.ndarray]] | None,
    ) -> Result:
        """Scores and explanations. The test split is opened here, once, when all is chosen."""
        chosen = fitted.selection() if fitted.record.epochs else nothing_chosen()
        self.arena.counts |= self.counts
        result = self.arena.result(
            score,
            {**chosen, **extra},
            explain=explain,
            valid_lists=False,
            deviations=self.deviations,
            earlier_seconds=self.earlier_seconds,
        )
        return replace(
            result,
            metrics={**result.metrics, **examples(result.predictions)},
            data={**result.data, **self.counts},
            notes=(*result.notes, *self.notes()),
        )


EXAMPLES = 6
"""Explanations that stand among a run's metrics, to be read."""


def examples(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The first explanations as words, `example/<number>/<what>`; none where none were made."""
    found: dict[str, Any] = {}
    if "explain/texts" not in columns:
        return found
    for at in range(min(EXAMPLES, len(columns["explain/texts"]))):
        rests = json.loads(str(columns["explain/evidence"][at]))
        told = [f"{name}: {', '.join(values)}" for name, values in rests.items() if values]
        found |= {
            f"example/{at + 1}/item": str(columns["explain/titles"][at]),
            f"example/{at + 1}/score": f"{float(columns['explain/scores'][at]):+.2f}",
            f"example/{at + 1}/text": str(columns["explain/texts"][at]) or "(nothing)",
            f"example/{at + 1}/reference": str(columns["explain/references"][at]),
            f"example/{at + 1}/evidence": "; ".join(told) or "nothing of the item",
        }
    return found


REVIEWS = 3000
"""Training reviews that a language model of our own may read."""


def readable(data: Feedback) -> list[str]:
    """What a language model of our own may read: items' texts, and some training reviews, whose
    words reasons are made of."""
    texts = [f"{data.text(item)}." for item in range(1, data.n_items)]
    if data.reviews is None:
        return texts
    reviews = dict.fromkeys(data.reviews[row] for row in data.rows("train").tolist())
    return texts + [text for text in reviews if text.strip()][:REVIEWS]


def source_genres(data: Feedback) -> dict[str, str]:
    """Which genre of the trained domain stands for each genre of another one."""
    from reprokit.splitting import genre_map

    return genre_map(data) if data.domain.any() else {}


# --- TALLRec ------------------------------------------------------------------------------------
def run_tallrec(job: Job) -> Result:
    """TALLRec: titles that were liked and disliked, the adapter alone, K rows or all."""
    import torch

    from reprokit.explainer import whole_text_loss
    from reprokit.prompting import TextModel, answer_loss

    bench, s = Bench(job), job.run.settings
    rows = bench.train_rows
    labels = bench.data.labels[rows]

    def asked(pairs: Pairs) -> Instructions:
        return instructions(bench, pairs.rows, pairs.items)

    # A prompt that is too long is said before anything is trained.
    prompts = instructions(bench, rows, bench.data.items[rows], labels=labels)
    valid = asked(bench.arena.valid.pairs)
    first = bench.stage_one()
    model = TextModel(bench.llm, bench.words.answers)
    held = torch.from_numpy(labels)

    def whole(index: np.ndarray) -> dict[str, Any]:
        found = prompts.training_batch(index)
        return {"ids": found["ids"], "end": found["end"], "first": torch.ones_like(found["end"])}

    def answer(index: np.ndarray) -> dict[str, Any]:
        return {**prompts.batch(index), "labels": held[index]}

    fitted = bench.stage_two(
        {"stage": "tallrec", "loss": s.loss, "history": s.history, "first": first},
        model,
        whole_text_loss if s.loss == "whole" else answer_loss,
        prompts,
        whole if s.loss == "whole" else answer,
        valid,
        s.lr,
    )

    def score(pairs: Pairs) -> np.ndarray:
        return scored(model, fitted.predict, asked(pairs))

    def explain(held_out: Held) -> dict[str, np.ndarray]:
        return bench.explanations(model, held_out, asked, score, consistency=False)

    explaining = s.explain_rows and not bench.data.is_cold
    return bench.result(score, fitted, {}, explain if explaining else None)


def instructions(bench: Bench, rows: np.ndarray, items: np.ndarray, **more: Any) -> Instructions:
    from reprokit.instructions import Instructions

    s = bench.settings
    made = Instructions(
        bench.words,
        bench.data,
        rows,
        items,
        s.history,
        limit=s.max_tokens,
        facts=s.reason_facts,
        **more,
    )
    if made.labels is not None:
        longest = int(made.training_lengths.argmax())
        prompt = int(made.lengths[longest])
        bench.check_room(prompt, int(made.training_lengths[longest]) - prompt)
    bench.note_prompts(made)
    return made
