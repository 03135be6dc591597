"""Chat-REC (Gao et al., arXiv 2303.14524): a language model without tuning re-ranks what a
conventional recommender found, from a prompt with what is known of the user.

The prompt holds demographics where the data set has them, rated titles with their ratings, and
candidate titles; the answer is a numbered list of titles with reasons. The recommender is LightGCN,
trained here. There is no official code; the prompt's words are ours.

How a list becomes scores:

- NDCG@10: of the 100 candidates of a list LightGCN's best `shown` are re-ranked. Those that the
  answer names come first, in its order; those it leaves out tie behind them; the candidates that
  were never shown keep LightGCN's order behind all of these.
- AUC, `auc_by` "list": the rated test items of a user are the candidates, by item id, and an item's
  score is its reciprocal rank in the answer, 0 where it is left out. An endpoint gives no
  probabilities, so this is the default. "yes": the log-odds of Yes over No right behind a question
  about one item, read from a model on this machine.

Titles are matched after case, accents, punctuation, a year and a moved article are set aside, then
by likeness; a title that is no candidate is dropped and counted.

Importing this module loads no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from reprokit import tastes
from reprokit.asking import ENDPOINT, Remote, ask
from reprokit.backbones import SCRATCH, TINY
from reprokit.click import check, nothing_chosen
from reprokit.feedback import SPLITS, Feedback
from reprokit.recommending import (
    SAMPLES,
    Arena,
    Held,
    Pairs,
    Score,
    TasteSettings,
    scored,
    scores_of,
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
    shown: int = setting(20, "candidates in a prompt, as many as in Chat-REC's own test")
    chat_rows: int = setting(200, "users that are asked about, as many as Chat-REC's; cost; 0: all")
    auc_by: str = setting(
        "list", "list: reciprocal rank in the answer, as an endpoint has no probabilities; or yes"
    )
    max_new_tokens: int = setting(900, "ours; room for 20 titles with a short reason each")
    cf_preset: str = setting("paper", "whose settings of the LightGCN row the candidates are from")
    workers: int = setting(8, "requests at once")
    batch: int = setting(8, "prompts that a model on this machine answers at once")
    dtype: str = setting("auto", "of a model on this machine")

    def __post_init__(self) -> None:
        super().__post_init__()
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


def groups(users: np.ndarray, items: np.ndarray, most: int) -> list[np.ndarray]:
    """Numbers of the rated pairs that stand in one prompt: those of a user, by item id, in equal
    parts of at most `most`."""
    order = np.lexsort((items, users))
    cuts = np.flatnonzero(np.diff(users[order])) + 1
    found = []
    for part in np.split(order, cuts) if len(order) else []:
        found += np.array_split(part, -(-len(part) // most))
    return found


# --- the run ------------------------------------------------------------------------------------
Candidates = Callable[[Arena], tuple[Score, dict[str, Any], float]]
"""Trains a recommender: (its score, what chose it, seconds of earlier starts)."""


def asked_users(arena: Arena, held: Held) -> np.ndarray:
    """The users that are asked about: a fixed random choice of those with rated test pairs, and
    with a list where lists are ranked."""
    s, users = arena.settings, arena.data.users
    found = np.unique(users[held.pairs.rows])
    if held.lists is not None:
        found = np.intersect1d(found, users[held.lists.rows])
    count = arena.job.run.settings.chat_rows
    if count and len(found) > count:
        found = np.sort(stream(s.list_seed, "chat users").choice(found, count, replace=False))
    return found


def part_of(held: Held, users: np.ndarray, asked: np.ndarray) -> Held:
    """A split reduced to some users. `users`: of every event."""
    mine, lists = np.isin(users[held.pairs.rows], asked), held.lists
    if lists is not None:
        ranked = np.isin(users[lists.rows], asked)
        lists = Pairs(lists.rows[ranked], lists.items[ranked], lists.width)
    return replace(
        held,
        pairs=Pairs(held.pairs.rows[mine], held.pairs.items[mine]),
        labels=held.labels[mine],
        group=held.group[mine],
        lists=lists,
        ids={name: column[mine] for name, column in held.ids.items()},
    )


class Chat:
    """The conversation of a run: prompts, answers, and what could be read of them."""

    def __init__(self, arena: Arena) -> None:
        self.arena, self.job = arena, arena.job
        self.s: ChatRecSettings = arena.job.run.settings
        self.data = arena.data
        self.scale = scale_of(arena.data)
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

    def rated(self, pairs: Pairs) -> np.ndarray:
        """Scores of the rated pairs, (N,)."""
        if self.s.auc_by == "yes":
            return self.log_odds(pairs)
        parts = groups(self.data.users[pairs.rows], pairs.items, self.s.shown)
        rows = np.array([pairs.rows[part[0]] for part in parts], np.int64)
        items = [pairs.items[part].tolist() for part in parts]
        made = np.zeros(len(pairs), np.float32)
        for part, reading in zip(parts, self.rank(rows, items, "rankings of rated"), strict=True):
            made[part] = reciprocal(reading, len(part))
        return made

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


def cf_settings(s: ChatRecSettings, dataset: str = "") -> Any:
    """LightGCN's, with the same rows and lists as ours."""
    same = {item.name: getattr(s, item.name) for item in fields(TasteSettings)}
    return tastes.SYSTEMS["lightgcn"].configure(dataset, s.cf_preset, same)


def lightgcn(arena: Arena) -> tuple[Score, dict[str, Any], float]:
    """LightGCN as its own row trains it: once for both."""
    settings = cf_settings(arena.job.run.settings, arena.data.name.removeprefix("demo-"))
    return tastes.train_lightgcn(arena, settings)


def run_chatrec(job: Job, candidates: Candidates = lightgcn) -> Result:
    """Chat-REC: LightGCN's candidates, re-ranked by a language model without tuning."""
    s: ChatRecSettings = job.run.settings
    check_reachable(s, job.folder)
    arena = Arena(job)
    found = None if arena.data.is_cold else candidates(arena)  # no lists in cold sets
    whole = arena.test
    asked = asked_users(arena, whole)
    held = part_of(whole, arena.data.users, asked)
    if len(np.unique(held.labels)) < 2:
        raise RequestError(
            f"{arena.data.name}: the {len(asked):,} users asked about have rated pairs of one "
            "label alone, which have no AUC: raise chatrec.chat_rows"
        )
    chat = Chat(arena)
    ranked = np.empty(0, np.float32)
    selection, earlier = nothing_chosen(), 0.0
    if held.lists is not None and found is not None:
        score, selection, earlier = found
        ranked = chat.ranked(held.lists, score)
    rated = chat.rated(held.pairs)
    metrics, predictions = scored(held, lambda pairs: rated if pairs is held.pairs else ranked)
    everyone = len(np.unique(arena.data.users[whole.pairs.rows]))
    return Result(
        {**metrics, "test/asked_users": len(asked)},
        predictions,
        selection,
        {**arena.data.counts, **arena.counts, **chat.counts},
        deviations_of(s.llm),
        (*arena.notes, *notes_of(chat, held, len(asked), everyone)),
        earlier,
    )


def deviations_of(llm: str) -> tuple[str, ...]:
    if llm == GPT:
        return ()
    made = {TINY: "a tiny random Llama", SCRATCH: "a small Llama trained here"}
    return (f"{made.get(llm, llm.removeprefix(ENDPOINT))} in place of gpt-3.5-turbo",)


def notes_of(chat: Chat, held: Held, asked: int, everyone: int) -> Iterator[str]:
    s, counts = chat.s, chat.counts
    width = held.lists.width if held.lists else 0
    lists = f" and {len(held.lists) // width:,} lists" if held.lists and width else ""
    yield (
        f"asked about {asked:,} of {everyone:,} users: {len(held.pairs):,} rated pairs{lists}; "
        "other rows of the table are of all users"
    )
    if s.auc_by == "list":
        yield "AUC: reciprocal rank in an answer about a user's rated test items, 0 where left out"
    else:
        yield "AUC: log-odds of Yes behind a question about each rated pair"
    if counts["answers"]:
        yield (
            f"{counts['answers without a candidate']:,} of {counts['answers']:,} answers name no "
            f"candidate; {counts['candidates left out of answers']:,} candidates left out, "
            f"{counts['titles invented in answers']:,} titles invented, "
            f"{counts['titles repeated in answers']:,} named twice; what an answer leaves out is "
            "tied, and has its mid-rank"
        )
    yield from chat.facts


def estimate_chatrec(settings: ChatRecSettings, sizes: Mapping[str, int]) -> Estimate:
    """LightGCN's row, and about three prompts for each user asked about."""
    s = settings
    prompts = 3 * min(s.chat_rows or sizes["users"], sizes["users"])
    each = 15 / s.workers if s.llm.startswith(ENDPOINT) else 0.01 * s.max_new_tokens
    base = tastes.SYSTEMS["lightgcn"].estimate(cf_settings(s), sizes)
    seconds = base.seconds + 20 + prompts * each
    return Estimate(seconds, base.memory + 1e9, base.disk + 20_000 * prompts)


CHATREC = System(
    ChatRecSettings,
    run_chatrec,
    estimate_chatrec,
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
