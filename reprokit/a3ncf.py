"""A3NCF: ratings from topics of reviews, which guide id vectors and an attention over aspects.

Paper   Cheng et al., IJCAI 2018, doi 10.24963/ijcai.2018/521; sizes as in its authors' code.

Symbol            Code          Shape        Meaning
theta_u, theta_i  Topics.users  (n, K)       mixture of topics of a user, and of an item
phi               Topics.words  (K, V)       words of each topic
pi_u              Topics.own    (n_users,)   how often a user's words are of his own mixture
p, q              vectors       (B, K)       ReLU(W (theta + id vector)), of user and item
a                 attention     (B, K)       softmax(W [theta_u; theta_i; p; q])

rating = w . ReLU(W (a * p * q))

Step 1 is a topic model of the training reviews: for each word a coin of the user's decides whether
its topic is drawn from the mixture of the user or of the item. Its sampler is collapsed and works
in blocks: the words of a block leave the counts together, draw a topic and a side given all
others, and go back together. Words of a block so do not see each other, as in the distributed
sampler AD-LDA (Newman et al., JMLR 10, 2009); with 200 blocks that is 1 word in 200.

What differs from the authors' code, and what the paper leaves open
D1  The sampler in blocks; theirs draws one word after the other.
D2  The model is chosen on validation rows; theirs by its best epoch on test rows.
D3  The attention is one layer, as in the code; the paper has a hidden one.
D4  Words of the topic model: no stop words, no digits, at least `min_count` times; the state of
    the last sweep gives the mixtures.
D5  The last bias starts at the mean rating of training; theirs at 0.
D6  A layer of 5 ReLUs may die as a whole, for some seeds from the start: the model then has one
    rating for all pairs, and an AUC of 0.5. Left as it is, and noted where it happens.
D7  The paper predicts ratings. A rating is the score that ranks items here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.click import check
from reprokit.lexicon import has_content
from reprokit.narre import (
    RatingSettings,
    Texts,
    fit_ratings,
    no_reviews,
    silent_note,
    training_texts,
)
from reprokit.recommending import SAMPLES, Arena
from reprokit.runs import Estimate, Job, Result, System, setting

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Ints = NDArray[np.int32]
    Floats = NDArray[np.float64]


# --- settings -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class A3NCFSettings(RatingSettings):
    """A3NCF."""

    lr: float = setting(5e-4, "the authors'; Adam")
    batch_size: int = setting(256, "the authors'")
    max_epochs: int = setting(300, "the authors'")
    patience: int = setting(20, "open; epochs without a better validation metric")
    min_count: int = setting(5, "ours; a word that training reviews have less often is left out")
    topics: int = setting(5, "the authors'; of the id vectors too, which are added to mixtures")
    alpha: float = setting(0.1, "the authors'; prior of a user's and of an item's mixture")
    beta: float = setting(0.01, "the authors'; prior of a topic's words")
    coin: float = setting(1.0, "the authors'; prior of either side of a user's coin")
    sweeps: int = setting(150, "the authors'; of the sampler over all words")
    blocks: int = setting(200, "ours; words of a block do not see each other's topics")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("topics", "alpha", "beta", "coin", "sweeps", "blocks"):
            check(name, getattr(self, name), 0 < getattr(self, name) < math.inf)


# --- step 1: topics -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Topics:
    """A sampled topic model of reviews; all rows are distributions."""

    users: Floats
    """(n_users, K), theta_u; uniform for a user without words."""
    items: Floats
    """(n_items, K), theta_i."""
    words: Floats
    """(K, V), phi."""
    own: Floats
    """(n_users,), pi: share of a user's words that are of his own mixture."""


class Counts:
    """How many words have each topic, by user, by item and by word."""

    def __init__(self, n_users: int, n_items: int, n_words: int, n_topics: int) -> None:
        self.user = np.zeros((n_users, n_topics), np.int64)
        self.item = np.zeros((n_items, n_topics), np.int64)
        self.borrowed = np.zeros(n_users, np.int64)
        """Words of a user that are of the items' mixtures."""
        self.word = np.zeros((n_words, n_topics), np.int64)
        self.topic = np.zeros(n_topics, np.int64)

    def add(self, by: int, users: Ints, items: Ints, words: Ints, drawn: Ints) -> None:
        """Add words (T,), or with `by` -1 take them away. drawn: topic, + K where of the item."""
        n_topics = len(self.topic)
        borrowed, topic = np.divmod(drawn, n_topics)
        mine, other = borrowed == 0, borrowed == 1
        np.add.at(self.user, (users[mine], topic[mine]), by)
        np.add.at(self.item, (items[other], topic[other]), by)
        np.add.at(self.borrowed, users[other], by)
        np.add.at(self.word, (words, topic), by)
        self.topic += by * np.bincount(topic, minlength=n_topics)


def odds(
    counts: Counts, users: Ints, items: Ints, words: Ints, alpha: float, beta: float, coin: float
) -> Floats:
    """Of each word (T,), whose own draw is not in the counts: unnormalised probabilities of every
    topic of its user, then of its item, (T, 2 K)."""
    n_words, n_topics = counts.word.shape
    phi = (counts.word[words] + beta) / (counts.topic + n_words * beta)  # (T, K)
    of_user, of_item = counts.user[users], counts.item[items]
    heads = of_user.sum(1, keepdims=True)
    own = (heads + coin) / (heads + n_topics * alpha) * (of_user + alpha)
    tails = counts.borrowed[users, None] + coin
    other = tails / (of_item.sum(1, keepdims=True) + n_topics * alpha) * (of_item + alpha)
    return np.concatenate([phi * own, phi * other], axis=1)


def sample_topics(
    users: Ints,
    items: Ints,
    words: Ints,
    sizes: tuple[int, int, int],
    settings: A3NCFSettings,
    rng: np.random.Generator,
) -> Topics:
    """Draw the topic model of words (T,), each of one user's review of one item.

    sizes: (n_users, n_items, n_words), more than the largest of each.
    """
    s, n_topics = settings, settings.topics
    order = rng.permutation(len(words))
    users, items, words = users[order], items[order], words[order]
    drawn = rng.integers(0, 2 * n_topics, len(words), np.int32)
    counts = Counts(*sizes, n_topics)
    counts.add(1, users, items, words, drawn)
    edges = np.linspace(0, len(words), min(s.blocks, len(words)) + 1).astype(int)
    for _ in range(s.sweeps):
        sweep(counts, users, items, words, drawn, edges, s, rng)
    return mixtures(counts, s)


def sweep(
    counts: Counts,
    users: Ints,
    items: Ints,
    words: Ints,
    drawn: Ints,
    edges: Any,
    settings: A3NCFSettings,
    rng: np.random.Generator,
) -> None:
    """Draw every word anew, block by block in a random order, into `drawn` and the counts.

    edges: (blocks + 1,), from 0 to T: where each block of words begins and ends.
    """
    s = settings
    for block in rng.permutation(len(edges) - 1):
        at = slice(edges[block], edges[block + 1])
        its = users[at], items[at], words[at]
        counts.add(-1, *its, drawn[at])
        below = odds(counts, *its, s.alpha, s.beta, s.coin).cumsum(1)
        point = rng.random(len(below)) * below[:, -1]
        drawn[at] = (below[:, :-1] <= point[:, None]).sum(1)
        counts.add(1, *its, drawn[at])


def mixtures(counts: Counts, settings: A3NCFSettings) -> Topics:
    """The expected distributions, given the counts."""
    s = settings
    own = counts.user.sum(1) + s.coin
    return Topics(
        shares(counts.user + s.alpha),
        shares(counts.item + s.alpha),
        shares(counts.word.T + s.beta),
        own / (own + counts.borrowed + s.coin),
    )


def shares(amounts: Any) -> Floats:
    """Rows that sum to 1."""
    return amounts / amounts.sum(1, keepdims=True)


def topics_of(
    texts: Texts, n_users: int, n_items: int, settings: A3NCFSettings, seed: int
) -> Topics:
    """The topic model of reviews."""
    from reprokit.training import generator

    return sample_topics(
        np.repeat(texts.users.astype(np.int32), texts.lengths),
        np.repeat(texts.items.astype(np.int32), texts.lengths),
        texts.words - 1,
        (n_users, n_items, len(texts.vocabulary) - 1),
        settings,
        generator(seed, "topics"),
    )


# --- step 2: ratings ----------------------------------------------------------------------------
@cache
def network() -> Any:
    """The class of the model; a function, so that this module loads without torch."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class A3NCF(nn.Module):
        """A3NCF on given mixtures.

        Args:
            topics: mixtures of users (n_users, K) and of items (n_items, K), not trained.
            mean: mean rating of training, where the last bias starts.
        """

        inputs = ("users", "items")
        user_topics: Tensor
        item_topics: Tensor

        def __init__(self, topics: Topics, mean: float, dropout: float = 0.5) -> None:
            super().__init__()
            for name, table in (("user_topics", topics.users), ("item_topics", topics.items)):
                self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)
            dim = topics.users.shape[1]
            self.users = nn.Embedding(len(topics.users), dim)
            self.items = nn.Embedding(len(topics.items), dim)
            self.of_user, self.of_item = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.attend = nn.Linear(4 * dim, dim)
            self.hidden, self.last = nn.Linear(dim, dim), nn.Linear(dim, 1)
            self.dropout = nn.Dropout(dropout)
            for ids in (self.users, self.items):
                nn.init.normal_(ids.weight, std=0.01)
            for layer in (self.of_user, self.of_item, self.hidden, self.last):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
            nn.init.uniform_(self.attend.weight, -0.05, 0.05)
            nn.init.zeros_(self.attend.bias)
            nn.init.constant_(self.last.bias, mean)

        def score(self, users: Tensor, items: Tensor) -> Tensor:
            """Predicted ratings (B,)."""
            of_user = F.embedding(users, self.user_topics)  # (B, K)
            of_item = F.embedding(items, self.item_topics)
            p = F.relu(self.of_user(of_user + self.users(users)))
            q = F.relu(self.of_item(of_item + self.items(items)))
            attention = self.attend(torch.cat([of_user, of_item, p, q], 1)).softmax(1)  # (B, K)
            hidden = F.relu(self.hidden(attention * p * q))
            return self.last(self.dropout(hidden)).squeeze(1)

    return A3NCF


def squared_error(model: Any, ratings: Tensor, **inputs: Tensor) -> Tensor:
    """Of each row's rating: (B,)."""
    return (model.score(**inputs) - ratings).square()


# --- runs ---------------------------------------------------------------------------------------
REVISION = 1
DEAD = "its few hidden units are all 0, which no gradient leaves; other seeds may do better"


def run_a3ncf(job: Job) -> Result:
    """A3NCF: scores are predicted ratings."""
    from reprokit import training

    arena, s = Arena(job).ready(), job.run.settings
    data = arena.sealed
    texts = training_texts(data, "A3NCF", s.min_count, has_content)
    topics = topics_of(texts, data.n_users, data.n_items, s, job.run.seed)
    training.seed_everything(job.run.seed, "a3ncf")
    mean = float(data.ratings[data.rows("train")].mean())
    model = network()(topics, mean, s.dropout)
    fitted, score = fit_ratings(arena, "a3ncf", model, squared_error, REVISION)
    notes = [silent_note(data, texts, "A3NCF has uniform topics for them")]
    if not np.ptp(score(arena.valid.pairs)):
        notes.append(f"A3NCF gives every pair the same rating: {DEAD}")
    return arena.result(
        score,
        fitted.selection(),
        notes=tuple(notes),
        earlier_seconds=fitted.earlier_seconds,
    )


# --- estimates: upper bounds on two CPU cores, from runs on one such machine --------------------
def estimate_a3ncf(settings: A3NCFSettings, sizes: Mapping[str, int]) -> Estimate:
    """Time of the sweeps over some 60 words of each review, then by epochs and rows."""
    if not sizes["reviewed"]:
        raise no_reviews("the data set", "A3NCF")
    s, rows = settings, sizes["train"]
    sampling = s.sweeps * (60 * rows * s.topics * 2e-7 + s.blocks * 3e-4)
    fitting = s.max_epochs * (rows * 3e-6 + rows / s.batch_size * 1.5e-3)
    weights = 4 * s.topics * (sizes["users"] + sizes["items"])
    return Estimate(10 + sampling + fitting, 1e9 + 6 * weights + 6e3 * rows, 5 * weights)


DEMO = {"sweeps": 40, "blocks": 50, "lr": 5e-3, "max_epochs": 15, "patience": 4, "min_count": 2}
SMALL = {"sweeps": 60, "lr": 2e-3, "max_epochs": 40, "patience": 6}
SYSTEM = System(
    A3NCFSettings,
    run_a3ncf,
    estimate_a3ncf,
    presets={"demo": {**SAMPLES["demo"], **DEMO}, "small": {**SAMPLES["small"], **SMALL}},
    reasons={"demo": "small, for seconds on a laptop", "small": "for a laptop"},
    revision=REVISION,
)
