"""P5: one text-to-text model for every task, a row of ExplainRec's Table I.

Paper   Geng et al., RecSys 2022: T5 is fine-tuned on prompts of several families about users and
        items, which are words such as user_23 and item_7391.

Family       Prompt                                       Answer
rating       a user and an item                           stars
sequential   what a user met, in order                    the next item's id
direct       a user and an item                           yes or no
list         a user and 100 candidates                    one item's id
explanation  a user and an item                           a reason, see `reasons`
review       a user's review of an item                   stars; where a data set has reviews

A score is the log-odds of yes against no as the first token of the direct prompt's answer.

What differs from the authors' code, or is left open
D1  The numbers in item ids are drawn at random. Theirs run on along each user's whole sequence, so
    that the item of a test event is the neighbour of the one before it. `ids` "sequential" numbers
    the items along the training events alone.
D2  The whole-word vectors are added when the model answers, too; their code leaves them out there.
D3  Templates are in our own words and each is drawn once per example; theirs vary by epoch.
D4  AdamW's epsilon is 1e-8 (theirs: 1e-6); the step size falls by a cosine (theirs: a line).
D5  Lists of 100 are ranked by yes or no, a pair at a time: with ids of several pieces, 100
    candidates exceed their 512 tokens. `rank_by` "list" reads the order of the beam instead.
D6  In the direct family observed dislikes are answered no as well as unseen items; theirs knows
    unseen items alone, and AUC here is about dislikes.
D7  Their review family also writes a review's headline; here reviews come without one.
D8  Ratings are as given; `jitter` is the standard deviation of the noise that they add.

Importing this module loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reprokit.click import check
from reprokit.feedback import Feedback
from reprokit.p5_prompts import ANSWERS, FAMILIES, Prompts, draw, fixed_words, titles_of
from reprokit.reasons import REVISION as REASONS_REVISION
from reprokit.recommending import SAMPLES, Arena, Held, Pairs, TasteSettings, to_explain, told
from reprokit.runs import Estimate, Job, Result, System, setting

REVISION = 2
"""Of prompts and model: raised when a change moves their numbers."""


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class P5Settings(TasteSettings):
    """P5 as its authors train it, unless said otherwise."""

    t5: str = setting("google-t5/t5-small", "P5-small's; ExplainRec does not say which")
    families: str = setting(
        "rating=1,sequential=1,direct=1,list=0.02,explanation=0.5,review=0.5",
        "open; which share of the training events each family asks about",
    )
    ids: str = setting(
        "random", "or sequential, along training events; the authors' numbers leak test neighbours"
    )
    rank_by: str = setting("yes", "or list, the authors' beam: candidates exceed 512 tokens")
    beams: int = setting(20, "the authors'; of rank_by list")
    whole_words: str = setting(
        "always", "or training: left out in answers, as in the authors' code; or never"
    )
    word_std: float = setting(1.0, "the authors'; spread of the whole words' vectors at the start")
    unseen: float = setting(
        1.0, "open; unseen items per like that the direct family answers no, as in the authors'"
    )
    history: int = setting(20, "the authors'; items of a sequential prompt")
    title_words: int = setting(16, "ours; words of a title that are read")
    review_words: int = setting(100, "ours; words of a review that are read")
    jitter: float = setting(0.0, "the authors add noise to ratings; standard deviation in stars")
    max_tokens: int = setting(1024, "the authors' 512 hold no 100 candidates")
    answer_tokens: int = setting(64, "the authors'; longer answers are cut")
    explain_rows: int = setting(200, "ours; test rows that are explained, 0: none")
    lr: float = setting(1e-3, "the authors'")
    weight_decay: float = setting(0.01, "the authors', of AdamW")
    warmup: float = setting(0.05, "the authors'; share of the steps")
    clip: float = setting(1.0, "the authors'; largest gradient norm")
    batch_size: int = setting(64, "the authors' 16 on each of 4 devices")
    micro_batch: int = setting(16, "the authors' per device; rows in memory at once, 0: all")
    eval_batch: int = setting(256, "pairs scored at once")
    epoch_rows: int = setting(640_000, "ours; rows between two validations, 0: all")
    max_epochs: int = setting(10, "the authors'")
    patience: int = setting(3, "open; validations without a better AUC")

    def __post_init__(self) -> None:
        super().__post_init__()
        natural = ("beams", "history", "title_words", "review_words", "max_tokens", "batch_size")
        for name in (*natural, "eval_batch", "max_epochs", "patience", "lr"):
            check(name, getattr(self, name), 0 < getattr(self, name) < math.inf)
        for name in ("unseen", "jitter", "explain_rows", "weight_decay", "clip", "micro_batch"):
            check(name, getattr(self, name), 0 <= getattr(self, name) < math.inf)
        check("answer_tokens", self.answer_tokens, self.answer_tokens > 1)
        check("epoch_rows", self.epoch_rows, self.epoch_rows >= 0)
        check("warmup", self.warmup, 0 <= self.warmup < 1)
        check("word_std", self.word_std, 0 <= self.word_std < math.inf)
        # The table of whole words has 512 rows, and a template has fewer than 30 words.
        check("history", self.history, self.history <= 400)
        words = self.title_words + self.review_words
        check("title_words + review_words", words, words <= 400)
        for name, known in (
            ("ids", ("random", "sequential")),
            ("rank_by", ("yes", "list")),
            ("whole_words", ("always", "training", "never")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}")
        if self.t5 == "scratch":
            raise ValueError("t5: there is no T5 trained from scratch; tiny, a folder or org/name")
        needed = {"direct", "list"} if self.rank_by == "list" else {"direct"}
        if missing := needed - set(self.shares):
            raise ValueError(f"families must have {sorted(missing)[0]}, which is scored")
        if "list" in self.shares:
            check("negatives", self.negatives, self.negatives <= 400)

    @property
    def shares(self) -> dict[str, float]:
        """By family; raises ValueError for what is none."""
        found: dict[str, float] = {}
        for part in self.families.split(","):
            name, _, share = part.partition("=")
            if name in found:
                raise ValueError(f"families: '{name}' stands there twice")
            try:
                found[name] = float(share)
            except ValueError:
                raise ValueError(f"families: '{part}' is not family=share") from None
            if name not in FAMILIES or not 0 < found[name] <= 1:
                raise ValueError(
                    f"families: '{part}' is not one of {', '.join(FAMILIES)} with a share above 0, "
                    "at most 1"
                )
        return found


# --- the run ------------------------------------------------------------------------------------
UNREAD = ("rated_rows", "rank_rows", "valid_lists", "rank_by", "beams", "eval_batch")
"""Settings that training does not read; and `explain_rows`."""


def run_p5(job: Job) -> Result:
    """Fine-tune on all families, choose by validation AUC, score, explain."""
    from reprokit import stages, training
    from reprokit.homemade import prepare_t5
    from reprokit.texttotext import P5, answer_loss, load_t5

    s: P5Settings = job.run.settings
    seed, arena = job.run.seed, Arena(job).ready()
    data = arena.sealed
    accelerator = training.make_accelerator()
    with accelerator.main_process_first():
        source, _ = prepare_t5(
            s.t5, own_texts(data, s), own_frame(data), job.folder, wholes=own_ids(data)
        )
        t5, tokenizer, _ = load_t5(s.t5, source)
    prompts = Prompts(data, tokenizer, draw(data, s, seed), s, seed)
    training.seed_everything(seed, "p5")
    model = P5(t5, prompts.yes_and_no, s.whole_words, s.word_std, s.beams)
    rows = len(prompts.examples)
    steps = s.max_epochs * math.ceil((s.epoch_rows or rows) / s.batch_size)
    fitted = stages.stage(
        job,
        accelerator,
        model,
        {
            "stage": "p5",
            "settings": {
                name: value
                for name, value in asdict(s).items()
                if name not in (*UNREAD, "explain_rows")
            },
            "backbone": job.run.backbone,
            "of": [REVISION, REASONS_REVISION],
        },
        answer_loss,
        prompts.lesson,
        rows,
        lambda predict: arena.evaluate(partial(prompts.score, predict), lists=False),
        training.Fit(
            lr=s.lr,
            batch_size=s.batch_size,
            max_epochs=s.max_epochs,
            patience=s.patience,
            weight_decay=s.weight_decay,
            optimizer="adamw",
            epoch_rows=s.epoch_rows,
            micro_batch=s.micro_batch,
            warmup=round(s.warmup * steps),
            schedule="cosine",
            clip=s.clip,
            eval_batch=s.eval_batch,
        ),
        lengths=prompts.lengths,
    )
    arena.counts |= prompts.examples.counts
    arena.counts["titles with characters unknown to T5"] = prompts.unknown
    if cut := int((prompts.library.sizes[prompts.answers] >= s.answer_tokens).sum()):
        arena.note(f"{cut:,} answers that P5 learns are cut after {s.answer_tokens} tokens")

    def explain(held: Held) -> dict[str, np.ndarray]:
        return explanations(arena, held, prompts, fitted.predict, tokenizer)

    explaining = s.explain_rows and "explanation" in s.shares and not data.is_cold
    return arena.result(
        partial(prompts.score, fitted.predict, counts=arena.counts),
        fitted.selection(),
        explain=explain if explaining else None,
        valid_lists=False,
        deviations=deviations(s.t5),
        earlier_seconds=fitted.earlier_seconds,
    )


def explanations(
    arena: Arena, held: Held, prompts: Prompts, predict: Any, tokenizer: Any
) -> dict[str, np.ndarray]:
    """What P5 says about a fixed random sample of rated rows, beside the reference reasons."""
    chosen = to_explain(held, prompts.settings.explain_rows, prompts.settings.list_seed)
    pairs = Pairs(held.pairs.rows[chosen], held.pairs.items[chosen])
    texts = prompts.explained(predict, tokenizer, pairs)
    return told(arena, pairs, prompts.score(predict, pairs), texts)


def own_texts(data: Feedback, s: P5Settings) -> list[str]:
    """What the tokenizer of a T5 of our own is made of: titles, genres and numbered ids."""
    genres = {genre for genres in data.genres for genre in genres}
    return [*filter(None, titles_of(data, s)), *genres, *own_ids(data)]


def own_ids(data: Feedback) -> list[str]:
    """The same: ids that are one token each. To a T5 as small as that a number which a user and an
    item share in pieces says nothing about either; ids above 1,000 are in pieces here as well."""
    sizes = {"item": data.n_items, "user": data.n_users}
    return [f"{kind}_{n}" for kind, size in sizes.items() for n in range(1, min(size, 1001))]


def own_frame(data: Feedback) -> list[str]:
    """The same: words that become whole tokens."""
    return [*fixed_words(data.item_word), *ANSWERS, *map(str, range(6))]


def deviations(t5: str) -> tuple[str, ...]:
    base = Path(t5.partition("@")[0]).name.lower()
    if base in ("t5-small", "t5-base"):
        return ()
    return (f"{'a tiny random T5' if t5 == 'tiny' else t5} in place of T5-small",)


# --- size ---------------------------------------------------------------------------------------
SIZES = {"t5-small": 60.5e6, "t5-base": 222.9e6, "t5-large": 737.7e6, "tiny": 0.45e6}
"""Weights of the published checkpoints and, at most, of the tiny one."""


def estimate_p5(settings: Any, sizes: Mapping[str, int]) -> Estimate:
    """By arithmetic: 2 operations a weight and token forward, twice that backward. A T5 that is not
    known counts as t5-base."""
    s = settings
    weights = SIZES.get(Path(s.t5.partition("@")[0]).name, SIZES["t5-base"])
    tokens, rate, listed = 45, 2e10, 5 * (s.negatives + 1)
    shares = s.shares
    per_event = sum(shares.values()) + s.unseen * shares["direct"]
    heavy = 1 + shares.get("list", 0) / per_event * listed / tokens  # list prompts are long
    rows = s.max_epochs * min(s.epoch_rows or 10**12, per_event * sizes["train"])
    held = sizes["train"] // 8
    rated, lists = min(s.rated_rows or held, held), min(s.rank_rows or held, held)
    pairs = (s.max_epochs + 1) * min(s.valid_rows or held, held) + rated
    pairs += (s.negatives + 1) * (lists + min(s.valid_lists or held, held))
    work = 2 * weights * tokens * (3 * heavy * rows + pairs)
    overhead = 3e-4 * rows + 5e-4 * pairs  # of what is not arithmetic
    batch = (s.micro_batch or s.batch_size) * (listed if "list" in shares else tokens)
    memory = 1e9 + 16 * weights + 150 * batch * weights**0.5 + 120 * sizes["train"]
    return Estimate(20 + work / rate + overhead, memory, 12 * weights)


REASONS = {
    "demo": "a tiny T5 of our own takes larger and more steps, for a laptop",
    "small": "as the demo's, for an hour on a CPU",
}
TINY = {
    "t5": "tiny",
    "families": "rating=1,sequential=0.2,direct=1,list=0.003,explanation=0.5,review=0.5",
    "lr": 2e-3,
    "batch_size": 32,
    "micro_batch": 0,
    "explain_rows": 100,
}
DEMO = {**TINY, **SAMPLES["demo"], "epoch_rows": 1_600, "max_epochs": 4}
SMALL = {**TINY, **SAMPLES["small"], "epoch_rows": 12_000, "max_epochs": 6}
SYSTEM = System(
    P5Settings,
    run_p5,
    estimate_p5,
    presets={"demo": DEMO, "small": SMALL},
    reasons=REASONS,
    revision=REVISION,
    encoders={"t5": "t5"},
)
