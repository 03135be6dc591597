"""NARRE: the rating of an item from the reviews of its user and of the item, with attention.

Paper   Chen et al., WWW 2018, doi 10.1145/3178876.3186070; sizes as in its authors' code.

Symbol      Code        Shape       Meaning
O_l         encode      (N, F)      a review: text convolution, ReLU, maximum over its words
a_l         attention   (B, M)      weights of a list's reviews, with sum 1; zeros for an empty one
v_l         others      (B, M, d)   the other party of each review: the reviewed item in a user's
                                    list, the reviewer in an item's
X_u, Y_i    side        (B, d)      what the reviews say of the user and of the item
q_u, p_i    ids         (B, d)      their own vectors

rating = w . ReLU((q_u + X_u) * (p_i + Y_i)) + b_u + b_i + mu

A review is an input where it belongs to a training event and has a known word. Lists keep the
latest reviews of a user and of an item; an item's reviews may be younger than the row they serve,
as in the paper.

What differs from the authors' code
D1  Padding is masked in the softmax and in the maximum; theirs takes part in both.
D2  The review of the very event to be predicted is removed from both lists in training too, by the
    event's number. Theirs has it among the training inputs, and never when testing.
D3  The model is chosen on validation rows; their "test" file is made of the validation rows.
D4  Word vectors start at random: the Google News vectors are not shipped here.
D5  b_2 of the attention is left out: a constant changes no softmax. mu starts at the mean rating
    of training, theirs at 0.1.
D6  Both sides share one vocabulary, as their reviews are the same; each has its own word vectors.
D7  The paper rates items. A rating is the score that ranks them here.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit import recommending
from reprokit.click import check
from reprokit.feedback import Feedback
from reprokit.lexicon import tokens
from reprokit.recommending import (
    SAMPLES,
    Arena,
    Held,
    Pairs,
    Score,
    TasteSettings,
    blocks,
    to_explain,
    told,
)
from reprokit.runs import Estimate, Job, Result, System, Unavailable, setting

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from reprokit.training import Fitted

    Ints = NDArray[np.int64]


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class RatingSettings(TasteSettings):
    """What the systems that learn ratings from reviews set."""

    lr: float = setting(0.002, "the authors'; Adam")
    batch_size: int = setting(100, "the authors'")
    max_epochs: int = setting(40, "the authors'")
    patience: int = setting(10, "open; epochs without a better validation metric")
    dropout: float = setting(0.5, "the authors'")
    min_count: int = setting(2, "ours; a word that training reviews have less often is left out")
    chosen_by: str = setting("auc", "auc: what the table prints; rmse: what the model is fitted to")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "batch_size", "max_epochs", "patience", "min_count"):
            check(name, getattr(self, name), 0 < getattr(self, name) < math.inf)
        check("dropout", self.dropout, 0 <= self.dropout < 1)
        if self.chosen_by not in ("auc", "rmse"):
            raise ValueError(f"chosen_by must be auc or rmse, got '{self.chosen_by}'")


@dataclass(frozen=True)
class NARRESettings(RatingSettings):
    """NARRE."""

    word_dim: int = setting(300, "the authors'; random at the start, theirs are Google's")
    filters: int = setting(100, "the authors'; each reads three words")
    dim: int = setting(32, "the authors'; of ids, attention and latent factors")
    l2: float = setting(1e-3, "the authors'; of the attention matrices, beside a batch's errors")
    covered: float = setting(0.9, "the authors'; share of lists and of reviews that are not cut")
    explain_rows: int = setting(200, "ours; test rows that are explained, a fixed random sample")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("word_dim", "filters", "dim"):
            check(name, getattr(self, name), getattr(self, name) > 0)
        for name in ("l2", "explain_rows"):
            check(name, getattr(self, name), 0 <= getattr(self, name) < math.inf)
        check("covered", self.covered, 0 < self.covered <= 1)


# --- reviews as words ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Texts:
    """The R training reviews with a known word, numbered from 1; number 0 is an empty one."""

    events: Ints
    """(R + 1,) event of each; -1 for number 0, which so equals none."""
    users: Ints
    items: Ints
    """(R + 1,) who wrote, and of what; 0 for number 0."""
    words: NDArray[np.int32]
    """(T,) all words, one review behind the other; ids from 1."""
    starts: Ints
    """(R + 2,): words of review r are `starts[r]:starts[r + 1]`."""
    vocabulary: list[str]
    """Word of each id; "" for 0, padding."""

    def __len__(self) -> int:
        return len(self.events)

    @property
    def lengths(self) -> Ints:
        """(R + 1,) words of each."""
        return np.diff(self.starts)


def no_reviews(name: str, system: str) -> Unavailable:
    return Unavailable(f"{name} has no reviews, and {system} learns from their texts")


def training_texts(
    data: Feedback, system: str, min_count: int, keep: Callable[[str], bool] = bool
) -> Texts:
    """The reviews of training events as word ids. A word that training reviews have fewer than
    `min_count` times, or that `keep` refuses, is left out.

    Raises Unavailable where there is nothing to read; `system` is who wanted to.
    """
    if data.reviews is None:
        raise no_reviews(data.name, system)
    rows = data.rows("train")
    read, ids = array("i"), {"": 0}
    ends = np.zeros(len(rows), np.int64)
    for at, row in enumerate(rows.tolist()):
        read.extend(ids.setdefault(word, len(ids)) for word in tokens(data.reviews[row]))
        ends[at] = len(read)
    found = np.frombuffer(read, np.int32) if read else np.empty(0, np.int32)
    counts = np.bincount(found, minlength=len(ids))
    known = [word for word, count in zip(ids, counts, strict=True) if count >= min_count]
    vocabulary = ["", *filter(keep, filter(None, known))]
    new = np.zeros(len(ids), np.int32)
    new[[ids[word] for word in vocabulary]] = np.arange(len(vocabulary))
    words = new[found]
    left = np.concatenate([[0], np.cumsum(words > 0)])[ends]  # known words up to each review's end
    lengths = np.diff(left, prepend=0)
    if not lengths.any():
        raise Unavailable(
            f"{data.name}: no training review has a word that occurs {min_count} times, and "
            f"{system} learns from them"
        )
    rows, lengths = rows[lengths > 0], lengths[lengths > 0]
    return Texts(
        np.concatenate([[-1], rows]),
        np.concatenate([[0], data.users[rows]]).astype(np.int64),
        np.concatenate([[0], data.items[rows]]).astype(np.int64),
        words[words > 0],
        np.concatenate([[0, 0], np.cumsum(lengths)]),
        vocabulary,
    )


def cut(texts: Texts, longest: int) -> Texts:
    """The first `longest` words of each review."""
    place = np.arange(len(texts.words)) - np.repeat(texts.starts[:-1], texts.lengths)
    starts = np.concatenate([[0], np.cumsum(np.minimum(texts.lengths, longest))])
    kept = texts.words[place < longest]
    return Texts(texts.events, texts.users, texts.items, kept, starts, texts.vocabulary)


def quantile(counts: Ints, share: float) -> int:
    """The least count that this share of all positive counts does not exceed."""
    return int(np.quantile(counts[counts > 0], share, method="inverted_cdf"))


def review_lists(owners: Ints, times: Ints, n_owners: int, share: float) -> Ints:
    """Numbers of each owner's latest reviews, oldest first, left-padded with 0: (n_owners, M).

    owners, times: (R + 1,) of all reviews, number 0 included and passed over. M: as many reviews
    as this share of the owners with any have at most.
    """
    counts = np.bincount(owners[1:], minlength=n_owners)
    most = quantile(counts, share)
    order = 1 + np.lexsort((times[1:], owners[1:]))  # ties as in the data
    ends = np.cumsum(counts)[:, None]
    at = ends - most + np.arange(most)
    inside = at >= ends - counts[:, None]
    return np.where(inside, order[np.where(inside, at, 0)], 0)


# --- model --------------------------------------------------------------------------------------
WINDOW = 3
"""Words that a filter reads."""


@cache
def network() -> Any:
    """The class of the model; a function, so that this module loads without torch."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Side(nn.Module):
        """One of the two halves: the reviews of users, or of items."""

        lists: Tensor
        others: Tensor

        def __init__(
            self,
            lists: Ints,
            others: Ints,
            n_others: int,
            n_words: int,
            word_dim: int,
            filters: int,
            dim: int,
        ) -> None:
            super().__init__()
            self.register_buffer("lists", torch.from_numpy(lists), persistent=False)
            self.register_buffer("others", torch.from_numpy(others), persistent=False)
            self.words = nn.Embedding(n_words, word_dim, padding_idx=0)
            nn.init.uniform_(self.words.weight, -1, 1)
            with torch.no_grad():
                self.words.weight[0] = 0
            first = nn.init.trunc_normal_(torch.empty(WINDOW, word_dim, filters), 0, 0.1, -0.2, 0.2)
            self.filters, self.filter_bias = nn.Parameter(first), constant(0.1, filters)
            self.other_ids = nn.Embedding(n_others, dim)
            nn.init.uniform_(self.other_ids.weight, -0.1, 0.1)
            self.of_review, self.of_other = uniform(filters, dim), uniform(dim, dim)
            self.bias, self.weigh = constant(0.1, dim), uniform(dim)
            self.out, self.out_bias = uniform(filters, dim), constant(0.1, dim)
            self.ids = nn.Embedding(len(lists), dim)
            nn.init.uniform_(self.ids.weight, -0.1, 0.1)
            self.rating_bias = nn.Embedding(len(lists), 1)
            nn.init.zeros_(self.rating_bias.weight)

        def encode(self, words: Tensor) -> Tensor:
            """O: word ids (N, L), right-padded with 0 -> (N, F).

            A filter starts at each word and reads two more, zeros behind the end. Filters are
            linear, so each distinct word meets them once.
            """
            length = words.shape[1]
            padded = F.pad(words, (0, WINDOW - 1))
            distinct, index = torch.unique(padded, return_inverse=True)
            vectors = self.words(distinct)  # (V, word_dim); zeros for padding
            sums: Tensor = self.filter_bias
            for offset, filters in enumerate(self.filters):
                sums = sums + F.embedding(index[:, offset : offset + length], vectors @ filters)
            seen = (words > 0).unsqueeze(-1)
            # ReLU leaves nothing below 0, so a masked 0 is never the maximum of a review.
            return (F.relu(sums) * seen).amax(1)  # (N, L, F) -> (N, F)

        def keys(self, encoded: Tensor) -> Tensor:
            """What the attention reads of reviews, O (N, F) -> (N, A)."""
            return encoded @ self.of_review + self.bias

        def attention(self, numbers: Tensor, keys: Tensor, index: Tensor) -> Tensor:
            """a: (B, M); 0 where `numbers` is 0. `keys` (N, A) at `index` (B, M) are its."""
            others = F.relu(self.other_ids(self.others[numbers]))  # v, (B, M, d)
            inner = F.relu(F.embedding(index, keys) + others @ self.of_other)  # (B, M, A)
            logits = inner @ self.weigh  # (B, M)
            real = numbers > 0
            logits = logits.masked_fill(~real, torch.finfo(logits.dtype).min)
            return logits.softmax(1) * real

    class NARRE(nn.Module):
        """NARRE over the training reviews, which it holds.

        Args:
            texts: the reviews, already cut to length.
            user_lists: (n_users, M_u) numbers of reviews, 0 for none.
            item_lists: (n_items, M_i).
            mean: mean rating of training, where mu starts.
        """

        inputs = ("users", "items", "rows")
        flat: Tensor
        starts: Tensor
        events: Tensor

        def __init__(
            self,
            texts: Texts,
            user_lists: Ints,
            item_lists: Ints,
            mean: float,
            word_dim: int = 300,
            filters: int = 100,
            dim: int = 32,
            dropout: float = 0.5,
        ) -> None:
            super().__init__()
            for name, column in (
                ("flat", texts.words),
                ("starts", texts.starts),
                ("events", texts.events),
            ):
                self.register_buffer(name, torch.from_numpy(column.copy()), persistent=False)
            widths = (len(texts.vocabulary), word_dim, filters, dim)
            self.user = Side(user_lists, texts.items, len(item_lists), *widths)
            self.item = Side(item_lists, texts.users, len(user_lists), *widths)
            self.last, self.mean = uniform(dim), constant(mean, 1)
            self.dropout = nn.Dropout(dropout)
            self.kept: dict[Side, tuple[Tensor, Tensor]] = {}
            self.register_load_state_dict_post_hook(lambda model, _: model.kept.clear())

        def train(self, mode: bool = True) -> NARRE:
            if mode:
                self.kept.clear()  # the weights will change: vectors of reviews no longer hold
            return super().train(mode)

        def texts_of(self, numbers: Tensor) -> Tensor:
            """Word ids of reviews (N,), right-padded with 0: (N, L)."""
            starts, ends = self.starts[numbers], self.starts[numbers + 1]
            length = int((ends - starts).max().clamp(min=1))
            at = starts[:, None] + torch.arange(length, device=numbers.device)
            inside = at < ends[:, None]
            return torch.where(inside, self.flat[at.clamp(max=len(self.flat) - 1)], 0).long()

        def reviews(self, side: Side, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """O of the distinct reviews among `numbers` (B, M), (N, F), their keys (N, A), and
            where each is, (B, M).

            In evaluation all reviews are encoded once, and kept until the weights change.
            """
            if self.training or torch.is_grad_enabled():
                distinct, index = torch.unique(numbers, return_inverse=True)
                encoded = side.encode(self.texts_of(distinct))
                return encoded, side.keys(encoded), index
            if side not in self.kept:
                every = torch.arange(len(self.events), device=numbers.device)
                encoded = torch.cat(
                    [side.encode(self.texts_of(some)) for some in every.split(2048)]
                )
                self.kept[side] = encoded, side.keys(encoded)
            return *self.kept[side], numbers

        def read(self, side: Side, owners: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """(numbers (B, M), weights (B, M), sum of a_l O_l (B, F)), without the review of the
            very event `rows` (B,)."""
            numbers = side.lists[owners]
            numbers = numbers * (self.events[numbers] != rows[:, None])
            encoded, keys, index = self.reviews(side, numbers)
            weights = side.attention(numbers, keys, index)
            mixed = (weights.unsqueeze(1) @ F.embedding(index, encoded)).squeeze(1)
            return numbers, weights, mixed

        def of_side(self, side: Side, owners: Tensor, rows: Tensor) -> Tensor:
            """q_u + X_u or p_i + Y_i: (B, d)."""
            mixed = self.dropout(self.read(side, owners, rows)[2])
            return side.ids(owners) + mixed @ side.out + side.out_bias

        def score(self, users: Tensor, items: Tensor, rows: Tensor) -> Tensor:
            """Predicted ratings (B,). rows (B,): the event that each is about; another event's
            number where the item is not its own changes nothing but that its review is not read."""
            both = self.of_side(self.user, users, rows) * self.of_side(self.item, items, rows)
            biases = self.user.rating_bias(users) + self.item.rating_bias(items)  # (B, 1)
            return self.dropout(F.relu(both)) @ self.last + biases.squeeze(1) + self.mean

        def most_attended(self, items: Tensor, rows: Tensor) -> Tensor:
            """Number of the review with the most weight in each item's list, 0 for none: (B,)."""
            numbers, weights, _ = self.read(self.item, items, rows)
            return numbers.gather(1, weights.argmax(1, keepdim=True)).squeeze(1)

    def uniform(*shape: int) -> nn.Parameter:
        return nn.Parameter(nn.init.uniform_(torch.empty(shape), -0.1, 0.1))

    def constant(value: float, size: int) -> nn.Parameter:
        return nn.Parameter(torch.full((size,), value))

    return NARRE


def narre_loss(
    model: Any, ratings: Tensor, users: Tensor, items: Tensor, rows: Tensor, l2: float = 0.0
) -> Tensor:
    """Half the squared error of each row, and l2 times half the squares of the four attention
    matrices: (B,)."""
    matrices = [m for side in (model.user, model.item) for m in (side.of_review, side.of_other)]
    penalty = sum(matrix.square().sum() for matrix in matrices)
    return (model.score(users, items, rows) - ratings).square() / 2 + l2 * penalty / 2


# --- runs ---------------------------------------------------------------------------------------
def silent_note(data: Feedback, texts: Texts, effect: str) -> str:
    """How many users and items the training reviews say nothing of, and what that does."""
    users, items = data.n_users - 1, data.n_items - 1
    mute_users = users - len(np.unique(texts.users[1:]))
    mute_items = items - len(np.unique(texts.items[1:]))
    return (
        f"{mute_users:,} of {users:,} users and {mute_items:,} of {items:,} items of {data.name} "
        f"have no training review that was read: {effect}"
    )


def fit_ratings(
    arena: Arena, name: str, model: Any, loss: Callable[..., Tensor], revision: int
) -> tuple[Fitted, Score]:
    """Fit a model to the ratings of training rows: it, chosen on validation, and its scores.

    The settings are `RatingSettings`; `model.inputs` names the columns it reads of users, items
    and rows.
    """
    import torch

    from reprokit import stages, training

    s: RatingSettings = arena.job.run.settings
    data = arena.sealed
    train = data.rows("train")
    ratings = torch.from_numpy(data.ratings[train])

    def columns(rows: np.ndarray, items: np.ndarray) -> dict[str, Tensor]:
        found = {"users": data.users[rows], "items": items, "rows": rows}
        return {key: torch.from_numpy(found[key].astype(np.int64)) for key in model.inputs}

    def batch(index: np.ndarray) -> dict[str, Tensor]:
        rows = train[index]
        return {"ratings": ratings[torch.from_numpy(index)], **columns(rows, data.items[rows])}

    def score(predict: Any, pairs: Pairs) -> np.ndarray:
        return predict(lambda at: columns(pairs.rows[at], pairs.items[at]), len(pairs))

    def evaluate(predict: Any) -> dict[str, float]:
        if s.chosen_by == "auc":
            return arena.evaluate(partial(score, predict), lists=False)
        pairs = arena.valid.pairs
        errors = score(predict, pairs) - data.ratings[pairs.rows]
        return {"negative rmse": -float(np.sqrt(np.square(errors).mean()))}

    unread = ("rated_rows", "rank_rows", "valid_lists", "negatives", "explain_rows")
    fitted = stages.stage(
        arena.job,
        training.make_accelerator(),
        model,
        {
            "stage": name,
            "settings": {k: v for k, v in asdict(s).items() if k not in unread},
            "of": revision,
            "protocol": recommending.REVISION,  # which rows choose
        },
        loss,
        batch,
        len(train),
        evaluate,
        training.Fit(s.lr, s.batch_size, s.max_epochs, s.patience),
        monitors=("auc" if s.chosen_by == "auc" else "negative rmse",),
    )
    return fitted, partial(score, fitted.predict)


REVISION = 1
EXPLAINED_AT_ONCE = 1024
"""Pairs, each with the reviews of its user and of its item."""


def build(data: Feedback, settings: NARRESettings) -> tuple[Any, Texts]:
    """The untrained model over the training reviews of sealed data, and these."""
    s = settings
    texts = training_texts(data, "NARRE", s.min_count)
    texts = cut(texts, quantile(texts.lengths, s.covered))
    times = data.times[texts.events]
    model = network()(
        texts,
        review_lists(texts.users, times, data.n_users, s.covered),
        review_lists(texts.items, times, data.n_items, s.covered),
        float(data.ratings[data.rows("train")].mean()),
        s.word_dim,
        s.filters,
        s.dim,
        s.dropout,
    )
    return model, texts


def run_narre(job: Job) -> Result:
    """NARRE: scores are predicted ratings, explanations are sentences of the reviews it attends."""
    from reprokit import training

    arena, s = Arena(job).ready(), job.run.settings
    training.seed_everything(job.run.seed, "narre")
    model, texts = build(arena.sealed, s)
    # The authors add the penalty to a batch's sum of errors, so a row has its part of it.
    loss = partial(narre_loss, l2=s.l2 / s.batch_size)
    fitted, score = fit_ratings(arena, "narre", model, loss, REVISION)
    return arena.result(
        score,
        fitted.selection(),
        explain=partial(explanations, arena, model, texts) if s.explain_rows else None,
        notes=(
            "NARRE: word vectors start at random, not at the Google News vectors of its paper",
            silent_note(arena.sealed, texts, "NARRE reads zeros for them"),
        ),
        earlier_seconds=fitted.earlier_seconds,
    )


def explanations(arena: Arena, model: Any, texts: Texts, held: Held) -> dict[str, np.ndarray]:
    """Of some test pairs the sentence, in the item's most attended training review, that names most
    of the item's attributes; the first one where none names any, "" where there is no review.

    `arena.result` calls this once the test split is open: references are reasons of test rows.
    """
    import torch

    from reprokit.reasons import attribute_words, top_sentence

    s, data = arena.job.run.settings, arena.data
    rows = held.pairs.rows[to_explain(held, s.explain_rows, s.list_seed)]
    items = data.items[rows].astype(np.int64)
    model.eval()
    device = model.last.device
    inputs = [torch.from_numpy(column).to(device) for column in (data.users[rows], items, rows)]
    found = []
    with torch.inference_mode():
        for at in blocks(len(rows), EXPLAINED_AT_ONCE):
            users, of, own = (column[at] for column in inputs)
            both = model.most_attended(of, own), model.score(users, of, own).float()
            found.append([part.cpu().numpy() for part in both])
    numbers, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    events = texts.events[numbers]
    assert arena.sealed.reviews is not None
    reviews = [arena.sealed.reviews[event] if event >= 0 else "" for event in events.tolist()]
    words = {item: attribute_words(data, item) for item in set(items.tolist())}
    said = [
        top_sentence(text, words[item]) for text, item in zip(reviews, items.tolist(), strict=True)
    ]
    arena.counts["explained pairs whose item has no review"] = int((numbers == 0).sum())
    reviewers = [{"reviewer": data.user_ids[by]} for by in texts.users[numbers].tolist()]
    return told(arena, Pairs(rows, items), scores, said, reviewers)


# --- estimates: upper bounds on two CPU cores, from runs on one such machine --------------------
def estimate_narre(settings: NARRESettings, sizes: Mapping[str, int]) -> Estimate:
    """Time and memory by steps, the reviews and words read in one, and filters."""
    if not sizes["reviewed"]:
        raise no_reviews("the data set", "NARRE")
    s, rows = settings, sizes["train"]
    slots = 3 * s.batch_size * (rows / sizes["users"] + rows / sizes["items"])
    words = min(2 * rows, slots) * (25 if rows < 20_000 else 150)  # invented reviews are short
    steps = s.max_epochs * (1 + rows / s.batch_size)
    weights = 4 * (2 * s.word_dim * min(100_000, 40 * rows) + 4 * s.dim * sizes["users"])
    memory = 1e9 + 6 * weights + rows * (2e3 + 8 * s.filters) + 24 * words * s.filters
    return Estimate(10 + steps * words * s.filters * 5e-8, memory, 5 * weights)


DEMO = {"word_dim": 32, "filters": 16, "dim": 16, "lr": 5e-3, "batch_size": 512}
DEMO |= {"covered": 0.5, "max_epochs": 6, "patience": 2}
SMALL = {"word_dim": 64, "filters": 32, "max_epochs": 12, "patience": 4}
SYSTEM = System(
    NARRESettings,
    run_narre,
    estimate_narre,
    presets={
        "demo": {**SAMPLES["demo"], **DEMO, "explain_rows": 60},
        "small": {**SAMPLES["small"], **SMALL},
    },
    reasons={"demo": "small, for seconds on a laptop", "small": "for a laptop"},
    revision=REVISION,
)
