"""Chat-REC (Gao et al., arXiv 2303.14524): a language model without tuning re-ranks what a
conventional recommender found, from a prompt with what is known of the user.

The prompt holds demographics where the data set has them, rated titles with their ratings, and
candidate titles; the answer is a numbered list of titles with reasons. The recommender is LightGCN,
trained here. There is no official code; the prompt's words are ours.

How a list becomes scores:

- NDCG@10: of the 100 candidates of a list LightGCN's best `shown` are re-ranked. Those that the
  answer names come first, in its order; those it leaves out tie behind them; the candidates that
  were never shown keep LightGCN's order behind all of these.
- AUC: over all rated test items of the users asked about, not the sample of rows that other systems
  score. `auc_by` "list": a user's rated test items, in random order, are cut into equal prompts of
  at most `shown`; each prompt is filled up to `shown` candidates with items that the user has rated
  in no split, and shuffled (`list_seed`), so that ranks of all prompts compare. The score of a
  rated item is its reciprocal rank in the answer, 0 where it is left out; an unrated item is in no
  pair of the AUC. What the best complete answers would reach is told beside it: each prompt's likes
  first, its dislikes last. An endpoint gives no probabilities, so this is the default. "yes": the
  log-odds of Yes over No right behind a question about one item, read from a model on this machine.

Titles are matched after case, accents, punctuation, a year, a moved article and a second title in
brackets are set aside, then by likeness; a title that is no candidate is dropped and counted.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from reprokit import tastes
from reprokit.asking import ENDPOINT, Remote, ask
from reprokit.backbones import SCRATCH, TINY
from reprokit.click import check, nothing_chosen
from reprokit.feedback import SPLITS, Feedback
from reprokit.metrics import auc
from reprokit.recommending import (
    SAMPLES,
    Arena,
    Held,
    Pairs,
    Score,
    TasteSettings,
    scored,
    scores_of,
    unrated,
)
from reprokit.runs import PRESETS, Estimate, Job, RequestError, Result, System, Unavailable, setting
from reprokit.synthetic import stream
from reprokit.title_lists import Reading, read_ranking

GPT = f"{ENDPOINT}gpt-3.5-turbo"
CUE = "\n#Answer:"
"""Before Yes or No."""
CHUNK = 8
"""Yes/no prompts that are read together."""


@dataclass(frozen=True)
class ChatRecSettings(TasteSettings):
    """How a language model is asked; none of it stands in ExplainRec's paper."""

    llm: str = setting(GPT, "Chat-REC's gpt-3.5-turbo, the cheapest of its three")
    history: int = setting(20, "ours; last rated titles of the user")
    shown: int = setting(20, "candidates in a prompt, all as long; as in Chat-REC's own test")
    chat_rows: int = setting(200, "users that are asked about, as many as Chat-REC's; cost; 0: all")
    auc_by: str = setting(
        "list",
        "list: reciprocal rank among `shown` candidates, rated test items and unrated ones, as an "
        "endpoint has no probabilities; or yes: log-odds. All test rows of chat_rows users",
    )
    max_new_tokens: int = setting(900, "ours; room for 20 titles with a short reason each")
    cf_preset: str = setting(
        "paper",
        "demo, small or paper: whose LightGCN finds the candidates; --set lightgcn.x changes the "
        "LightGCN row alone",
    )
    cf: Any = field(default=None, metadata={"why": "of the LightGCN row at cf_preset"})
    """`tastes.LightGCNSettings` of the recommender; `Reranking.configure` fills them in."""
    cf_revision: int | None = field(default=None, metadata={"why": "of LightGCN's code"})
    workers: int = setting(8, "requests at once")
    batch: int = setting(8, "prompts that a model on this machine answers at once")
    dtype: str = setting("auto", "of a model on this machine")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.cf, dict):  # as a run is stored
            object.__setattr__(self, "cf", tastes.LightGCNSettings(**self.cf))
        check("chat_rows", self.chat_rows, self.chat_rows >= 0)
        for name in ("history", "shown", "max_new_tokens", "workers", "batch"):
            check(name, getattr(self, name), getattr(self, name) > 0)
        if self.cf_preset not in PRESETS:
            raise ValueError(f"cf_preset must be one of {', '.join(PRESETS)}")
        if self.auc_by not in ("list", "yes"):
            raise ValueError(f"auc_by must be list or yes, got '{self.auc_by}'")
        if self.auc_by == "yes" and self.llm.startswith(ENDPOINT):
            raise ValueError(f"auc_by=yes reads probabilities, which {self.llm} does not give")


OCCUPATIONS = (
    "other;academic or educator;artist;clerical or admin;college or graduate student;"
    "customer service;doctor or health care;executive or managerial;farmer;homemaker;"
    "K-12 student;lawyer;programmer;retired;sales or marketing;scientist;self-employed;"
    "technician or engineer;tradesman or craftsman;unemployed;writer"
)
GROUPS_IN_WORDS: Mapping[str, Sequence[str]] = {
    "gender": ("female", "male"),
    "age": ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56 or more"),
    "occupation": OCCUPATIONS.split(";"),
}
"""What the codes of `Feedback.demographics` stand for, by MovieLens-1M's own documentation."""


# --- prompts ------------------------------------------------------------------------------------
def profile(data: Feedback, row: int, history: int, scale: str) -> str:
    """What is said of the user of an event: demographics, and titles rated before it.

    `scale`: of the ratings, in words.
    """
    user = int(data.users[row])
    told = ", ".join(
        f"{name} {in_words(name, int(codes[user]))}"
        for name, codes in data.demographics.items()
        if codes[user] >= 0
    )
    events = data.histories(np.array([row]), history)[0]
    lines = [
        f"- {data.titles[data.items[event]]} ({data.ratings[event]:g})"
        for event in events[events >= 0]
    ]
    rated = f"Rated before, the latest last ({scale}):\n" + "\n".join(lines)
    return (f"About the person: {told}.\n" if told else "") + (
        rated if lines else f"No {data.item_word} was rated before."
    )


def in_words(name: str, code: int) -> str:
    words = GROUPS_IN_WORDS.get(name, ())
    return words[code] if code < len(words) else f"group {code}"


def scale_of(data: Feedback) -> str:
    train = data.ratings[data.split == SPLITS.index("train")]
    return f"from {train.min():g} to {train.max():g}, higher is better"


def ranking_prompt(data: Feedback, about: str, items: Sequence[int]) -> str:
    listed = "\n".join(f"- {data.titles[item]}" for item in items)
    return (
        f"{ranking_task(data.item_word)}\n\n{about}\n\nCandidates:\n{listed}\n\n"
        f"{ranking_form(len(items))}"
    )


def ranking_task(word: str) -> str:
    return (
        f"You recommend to one person. Rank the candidates, each a {word}, by how much this person "
        "will like them."
    )


def ranking_form(count: int) -> str:
    return (
        f"Answer with a numbered list of all {count} candidates, the best one first. In each line "
        "the exact title, a dash, and a reason in at most ten words. Add no other titles."
    )


def yes_prompt(data: Feedback, about: str, item: int) -> str:
    return (
        f"{about}\n\nWill this person like the {data.item_word} {data.titles[item]}? "
        f"Answer Yes or No.{CUE}"
    )


# --- scores -------------------------------------------------------------------------------------
def order_of(scores: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Places by score, the best first, and by item id where equal: (L, K) -> (L, K)."""
    return np.lexsort((items, -scores), axis=1)


def reranked(scores: np.ndarray, order: np.ndarray, shown: int, readings: Sequence[Reading]) -> Any:
    """Scores of lists whose first `shown` candidates were re-ranked: (L, K) float32.

    Args:
        scores: the recommender's, (L, K); equal ones behind the shown stay equal.
        order: places of each list's candidates, the recommender's best first, (L, K).
    """
    lists, width = scores.shape
    made = np.empty((lists, width), np.float32)
    in_order = np.take_along_axis(scores, order, axis=1)
    drops = np.zeros((lists, width), np.int64)
    drops[:, 1:] = np.cumsum(in_order[:, 1:] < in_order[:, :-1], axis=1)
    np.put_along_axis(made, order, -(shown + 1.0 + drops).astype(np.float32), axis=1)
    for at, reading in enumerate(readings):
        made[at, order[at, :shown]] = -float(shown)
        made[at, order[at, list(reading.order)]] = -np.arange(len(reading.order), dtype=np.float32)
    return made


def reciprocal(reading: Reading, count: int) -> np.ndarray:
    """1 / rank of each of `count` candidates, 0 of those left out: (count,) float32."""
    made = np.zeros(count, np.float32)
    made[list(reading.order)] = 1 / np.arange(1, len(reading.order) + 1)
    return made


# --- the prompts of the AUC ---------------------------------------------------------------------
def groups(users: np.ndarray, most: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Numbers of the rated pairs that stand in one prompt: those of a user, in random order, in
    equal parts of at most `most`."""
    order = np.lexsort((rng.permutation(len(users)), users))
    cuts = np.flatnonzero(np.diff(users[order])) + 1
    found = []
    for part in np.split(order, cuts) if len(order) else []:
        found += np.array_split(part, -(-len(part) // most))
    return found


@dataclass(frozen=True)
class RatedPrompts:
    """Rated pairs among unrated items, as they are asked about: P prompts of K candidates."""

    rows: np.ndarray
    """(P,), event numbers: the context of each prompt."""
    items: np.ndarray
    """(P, K), item ids."""
    pair: np.ndarray
    """(P, K), the number of each candidate's rated pair; -1 for an unrated item."""

    @classmethod
    def of(cls, data: Feedback, pairs: Pairs, shown: int, seed: int) -> RatedPrompts:
        """Every pair once. Raises RequestError where a user has too few unrated items."""
        rng, users = stream(seed, "chat prompts"), data.users[pairs.rows].astype(np.int64)
        parts = groups(users, shown, rng)
        pair = np.full((len(parts), shown), -1)
        for at, part in enumerate(parts):
            pair[at, : len(part)] = part
        rows = pairs.rows[pair[:, 0]]
        missing = (pair < 0).sum(axis=1)
        width, people = int(missing.max(initial=0)), data.users[rows].astype(np.int64)
        if (data.n_items - 1 - np.diff(data.starts)[people] < width).any():
            raise RequestError(
                f"{data.name}: not every user has {width} unrated items, which a prompt of {shown} "
                "candidates needs: lower chatrec.shown"
            )
        # Permuted, because the first of a user's drawn items are no uniform sample.
        drawn = rng.permuted(unrated(data, people, width, rng), axis=1)
        items = np.zeros(pair.shape, np.int64)
        items[:, shown - width :] = drawn
        items = np.where(pair >= 0, pairs.items[pair], items)
        order = rng.permuted(np.tile(np.arange(shown), (len(parts), 1)), axis=1)
        placed = (np.take_along_axis(column, order, axis=1) for column in (items, pair))
        return cls(rows, *placed)

    @property
    def unrated(self) -> int:
        """How many candidates are in no pair."""
        return int((self.pair < 0).sum())

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Those of the rated pairs, (N,), from those of the candidates, (P, K)."""
        mine = self.pair >= 0
        made = np.zeros(int(mine.sum()), np.float32)
        made[self.pair[mine]] = values[mine]
        return made

    def oracle(self, labels: np.ndarray) -> np.ndarray:
        """Scores of the rated pairs, (N,), where an answer names all candidates of a prompt, the
        likes first and the dislikes last: no complete answers have a larger AUC."""
        late = np.where(self.pair < 0, 1, np.where(labels[self.pair] == 1, 0, 2))
        values = np.empty(late.shape, np.float32)
        order = np.argsort(late, axis=1, kind="stable")
        ranks = np.arange(1, late.shape[1] + 1)
        np.put_along_axis(values, order, (1 / ranks).astype(np.float32)[None], axis=1)
        return self.scores(values)


# --- the run ------------------------------------------------------------------------------------
Candidates = Callable[[Arena], tuple[Score, dict[str, Any], float]]
"""Trains a recommender: (its score, what chose it, seconds of earlier starts)."""


def asked_users(arena: Arena, whole: Held) -> np.ndarray:
    """The users that are asked about: a fixed random choice of those with rated test rows, and
    with a list where lists are ranked."""
    data = arena.sealed
    found = np.unique(data.users[data.rows("test")])
    if whole.lists is not None:
        found = np.intersect1d(found, data.users[whole.lists.rows])
    count = arena.job.run.settings.chat_rows
    if count and len(found) > count:
        rng = stream(arena.settings.list_seed, "chat users")
        found = np.sort(rng.choice(found, count, replace=False))
    return found


def held_of(arena: Arena, whole: Held, asked: np.ndarray) -> Held:
    """What is asked of some users: all their rated test rows, and their lists of the split's."""
    data, lists = arena.data, whole.lists
    every = data.rows("test")
    rows = every[np.isin(data.users[every], asked)]
    if lists is not None:
        ranked = np.isin(data.users[lists.rows], asked)
        lists = Pairs(lists.rows[ranked], lists.items[ranked], lists.width)
    return replace(
        whole,
        pairs=Pairs(rows, data.items[rows].astype(np.int64)),
        labels=data.labels[rows],
        group=data.group[rows],
        lists=lists,
        ids={
            "users": np.array(data.user_ids)[data.users[rows]],
            "items": np.array(data.item_ids)[data.items[rows]],
        },
    )


class Chat:
    """The conversation of a run: prompts, answers, and what could be read of them."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.job = arena, arena.job
        self.s: ChatRecSettings = arena.job.run.settings
        self.data = arena.sealed
        self.scale = scale_of(self.data)
        self.counts: Counter[str] = Counter()
        self.facts: list[str] = []

    def about(self, row: int) -> str:
        return profile(self.data, row, self.s.history, self.scale)

    def corpus(self) -> list[str]:
        """What a model that is made here is made of: the fixed words first, then all titles."""
        word = self.data.item_word
        fixed = (
            f"{ranking_task(word)} {ranking_form(self.s.shown)} Will this person like the {word}"
        )
        return [f"{fixed} Answer Yes or No.{CUE} Yes{CUE} No", *self.data.titles[1:]]

    def rank(self, rows: np.ndarray, candidates: Sequence[Sequence[int]], what: str) -> Any:
        """The readings of an answer for each context and its candidates."""
        prompts = [
            ranking_prompt(self.data, self.about(int(row)), items)
            for row, items in zip(rows, candidates, strict=True)
        ]
        s = self.s
        answers, facts = ask(
            prompts,
            s.llm,
            self.job.folder,
            self.job.progress,
            "" if s.llm.startswith(ENDPOINT) else self.job.run.pretrained.get("llm", ""),
            max_new_tokens=s.max_new_tokens,
            batch=s.batch,
            dtype=s.dtype,
            workers=s.workers,
            corpus=self.corpus(),
            what=what,
        )
        if facts["note"]:
            self.facts.append(f"{what}: {facts['note']}")
        readings = [
            read_ranking(answer.text, [self.data.titles[item] for item in items])
            for answer, items in zip(answers, candidates, strict=True)
        ]
        named = sum(len(reading.order) for reading in readings)
        self.counts.update(
            {
                "answers": len(readings),
                "answers without a candidate": sum(not reading.order for reading in readings),
                "candidates left out of answers": sum(map(len, candidates)) - named,
                "titles invented in answers": sum(reading.invented for reading in readings),
                "titles repeated in answers": sum(reading.repeated for reading in readings),
            }
        )
        return readings

    def ranked(self, lists: Pairs, score: Score) -> np.ndarray:
        """Scores of the lists from the recommender's, (L * K,)."""
        scores = scores_of(score, lists).reshape(-1, lists.width)
        items = lists.items.reshape(-1, lists.width)
        order = order_of(scores, items)
        shown = min(self.s.shown, lists.width)
        best = np.take_along_axis(items, order[:, :shown], axis=1)
        readings = self.rank(lists.rows[:: lists.width], best.tolist(), "rankings of candidates")
        made: np.ndarray = reranked(scores, order, shown, readings).ravel()
        return made

    def rated(self, asked: RatedPrompts) -> np.ndarray:
        """Scores of the rated pairs, (N,)."""
        readings = self.rank(asked.rows, asked.items.tolist(), "rankings of rated items")
        width = asked.items.shape[1]
        return asked.scores(np.stack([reciprocal(reading, width) for reading in readings]))

    def log_odds(self, pairs: Pairs) -> np.ndarray:
        """Log-odds of Yes over No behind a question about each pair, (N,)."""
        from reprokit.backbones import load
        from reprokit.encoders import device_name
        from reprokit.homemade import prepare
        from reprokit.prompting import TextModel
        from reprokit.prompts import answer_tokens

        corpus, note = self.corpus(), self.job.progress.note
        source, _ = prepare(self.s.llm, corpus, corpus[:1], self.job.folder, note)
        backbone = load(self.s.llm, source, self.s.dtype, device=device_name())
        model = TextModel(backbone.model, answer_tokens(backbone.tokenizer, CUE)).eval()
        self.job.progress.start_steps(len(pairs))
        prompts = [
            yes_prompt(self.data, self.about(int(row)), int(item))
            for row, item in zip(pairs.rows, pairs.items, strict=True)
        ]
        return yes_scores(model, backbone.tokenizer, prompts, self.job.progress.step)


def yes_scores(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    step: Callable[[int, str], None] = lambda done, text: None,
) -> np.ndarray:
    """What `prompting.TextModel` scores each prompt with, (N,) float32.

    Raises RequestError where a prompt is longer than the model reads.
    """
    import torch

    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    room = getattr(model.causal.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, rows), default=0)
    if room and longest > room:
        raise RequestError(
            f"the language model reads {room} tokens, a prompt has {longest}: lower chatrec.history"
        )
    made = np.zeros(len(rows), np.float32)
    order, device = np.argsort([len(row) for row in rows], kind="stable"), model.causal.device
    for start in range(0, len(rows), CHUNK):
        some = order[start : start + CHUNK]
        width = max(len(rows[at]) for at in some)
        ids = torch.tensor([rows[at] + [0] * (width - len(rows[at])) for at in some], device=device)
        none, last = torch.zeros_like(ids), torch.tensor([len(rows[at]) - 1 for at in some])
        with torch.inference_mode():
            inputs = {"ids": ids, "items": none, "slots": none, "last": last.to(device)}
            score = model.score(**inputs, users=none[:, 0], histories=none)
        made[some] = score.float().cpu().numpy()
        step(start + len(some), "questions")
    return made


def check_reachable(s: ChatRecSettings, folder: Path) -> None:
    """Say before anything is trained that there is nobody to ask. Raises Unavailable."""
    if not s.llm.startswith(ENDPOINT):
        return
    client = Remote(s.llm.removeprefix(ENDPOINT), folder, s.max_new_tokens, s.workers).client
    if not client.has_key and not client.record.is_file():
        raise Unavailable(
            "no key for the endpoint: set REPROKIT_API_KEY and REPROKIT_API_BASE, or choose a "
            "model with --llm; nothing was sent"
        )


def lightgcn(arena: Arena) -> tuple[Score, dict[str, Any], float]:
    """LightGCN as its own row trains it: once for both."""
    return tastes.train_lightgcn(arena, arena.job.run.settings.cf)


def run_chatrec(job: Job, candidates: Candidates = lightgcn) -> Result:
    """Chat-REC: LightGCN's candidates, re-ranked by a language model without tuning."""
    s: ChatRecSettings = job.run.settings
    check_reachable(s, job.folder)
    arena = Arena(job)
    found = None if arena.data.is_cold else candidates(arena)  # no lists in cold sets
    whole = arena.test
    asked = asked_users(arena, whole)
    held = held_of(arena, whole, asked)
    if len(np.unique(held.labels)) < 2:
        raise RequestError(
            f"{arena.data.name}: the {len(asked):,} users asked about have rated pairs of one "
            "label alone, which have no AUC: raise chatrec.chat_rows"
        )
    chat, prompts = Chat(arena), None
    if s.auc_by == "list":  # before anything is asked: users may have too few unrated items
        prompts = RatedPrompts.of(arena.sealed, held.pairs, s.shown, s.list_seed)
    ranked = np.empty(0, np.float32)
    selection, earlier = nothing_chosen(), 0.0
    if held.lists is not None and found is not None:
        score, selection, earlier = found
        ranked = chat.ranked(held.lists, score)
    if prompts is None:
        rated, told = chat.log_odds(held.pairs), YES_TOLD
    else:
        rated, told = chat.rated(prompts), told_of(prompts, held.labels)
    metrics, predictions = scored(held, lambda pairs: rated if pairs is held.pairs else ranked)
    everyone = len(np.unique(arena.sealed.users[arena.sealed.rows("test")]))
    return Result(
        {**metrics, "test/asked_users": len(asked)},
        predictions,
        selection,
        {**arena.data.counts, **arena.counts, **chat.counts},
        deviations_of(s.llm),
        (*arena.notes, *notes_of(chat, held, len(asked), everyone), told, *chat.facts),
        earlier,
    )


def deviations_of(llm: str) -> tuple[str, ...]:
    if llm == GPT:
        return ()
    made = {TINY: "a tiny random Llama", SCRATCH: "a small Llama trained here"}
    return (f"{made.get(llm, llm.removeprefix(ENDPOINT))} in place of gpt-3.5-turbo",)


def notes_of(chat: Chat, held: Held, asked: int, everyone: int) -> Iterator[str]:
    counts = chat.counts
    width = held.lists.width if held.lists else 0
    lists = f" and {len(held.lists) // width:,} lists" if held.lists and width else ""
    yield (
        f"asked about {asked:,} of {everyone:,} users: {len(held.pairs):,} rated pairs{lists}; "
        "other rows of the table are of all users, and their AUC is of a sample of the rated pairs"
    )
    if counts["answers"]:
        yield (
            f"{counts['answers without a candidate']:,} of {counts['answers']:,} answers name no "
            f"candidate; {counts['candidates left out of answers']:,} candidates left out, "
            f"{counts['titles invented in answers']:,} titles invented, "
            f"{counts['titles repeated in answers']:,} named twice; what an answer leaves out is "
            "tied, and has its mid-rank"
        )


YES_TOLD = "AUC: log-odds of Yes behind a question about each rated test pair of the users asked"


def told_of(prompts: RatedPrompts, labels: np.ndarray) -> str:
    """How the AUC came about, and how large it can be."""
    count, width = prompts.items.shape
    return (
        f"AUC: reciprocal rank in the answer, 0 where left out, of all {len(labels):,} rated test "
        f"pairs of the users asked about, in {count:,} prompts of {width} candidates each; "
        f"{prompts.unrated:,} candidates are unrated items, which fill up the prompts and are in "
        "no pair. Complete answers with a prompt's likes first and dislikes last would have AUC "
        f"{auc(labels, prompts.oracle(labels)):.4f}"
    )


def estimate_chatrec(settings: ChatRecSettings, sizes: Mapping[str, int]) -> Estimate:
    """LightGCN's row, and for each user asked about the lists and the rated test items."""
    s, users = settings, sizes["users"]
    lists = (s.rank_rows or sizes["train"] // 8) / users
    prompts = min(s.chat_rows or users, users) * (2 + lists + sizes["train"] / 8 / users / s.shown)
    each = 15 / s.workers if s.llm.startswith(ENDPOINT) else 0.01 * s.max_new_tokens
    base = tastes.SYSTEMS["lightgcn"].estimate(s.cf, sizes)
    seconds = base.seconds + 20 + prompts * each
    return Estimate(seconds, base.memory + 1e9, base.disk + 20_000 * prompts)


@dataclass(frozen=True)
class Reranking(System):
    """A system that re-ranks what LightGCN finds: its runs are identified by LightGCN's too."""

    def configure(self, dataset: str, preset: str, chosen: Mapping[str, Any]) -> Any:
        """LightGCN's settings are those of its row at `cf_preset`, with our rows and lists."""
        plain, cf = super().configure(dataset, preset, chosen), tastes.SYSTEMS["lightgcn"]
        same = {item.name: getattr(plain, item.name) for item in fields(TasteSettings)}
        theirs = cf.configure(dataset, plain.cf_preset, same)
        return replace(plain, cf=theirs, cf_revision=cf.revision)


CHATREC = Reranking(
    ChatRecSettings,
    run_chatrec,
    estimate_chatrec,
    revision=3,
    backbone="llm",
    presets={
        "demo": {
            **SAMPLES["demo"],
            "cf_preset": "demo",
            "llm": TINY,
            "chat_rows": 30,
            "max_new_tokens": 32,
        },
        "small": {**SAMPLES["small"], "cf_preset": "small", "llm": TINY, "max_new_tokens": 64},
    },
    reasons={
        "demo": "a minute on two cores, and no model to download",
        "small": "nothing to download; name a model that can follow a prompt with --llm",
    },
)
