"""A3NCF: its topic model beside plain loops and on planted topics, its network, and a run."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reprokit import a3ncf, recommending
from reprokit.a3ncf import (
    A3NCFSettings,
    Counts,
    Topics,
    mixtures,
    network,
    odds,
    run_a3ncf,
    sample_topics,
    squared_error,
    topics_of,
)
from reprokit.feedback import Feedback, history_ends
from reprokit.lexicon import has_content
from reprokit.narre import training_texts
from reprokit.progress import Progress
from reprokit.runs import Job, Run, Unavailable

EVERY = {"negatives": 9, "rated_rows": 0, "rank_rows": 0, "valid_rows": 0, "valid_lists": 0}
SMALL = A3NCFSettings(min_count=1, sweeps=30, blocks=20, topics=3, max_epochs=2, **EVERY)
THEMES = ("dragon castle sword", "train station rail", "kitchen recipe cook")


def world(n_users: int = 19, n_items: int = 31, each: int = 10, seed: int = 0) -> Feedback:
    """Items have one of three themes; a user likes one theme, and a review tells the item's."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(1, n_users), each)
    items = np.concatenate(
        [rng.permutation(np.arange(1, n_items))[:each] for _ in range(1, n_users)]
    )
    labels = (users % 3 == items % 3).astype(np.int8)
    split = np.digitize(np.tile(np.arange(each), n_users - 1), [7, 8]).astype(np.int8)
    starts = np.concatenate([[0, 0], np.cumsum(np.full(n_users - 1, each))])
    words = [theme.split() for theme in THEMES]
    reviews = [" ".join(rng.choice(words[item % 3], 6)) + "." for item in items]
    for at in np.flatnonzero(users == 4):
        reviews[at] = ""
    return Feedback(
        name="toy",
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.where(labels, 5, 2).astype(np.float32),
        times=np.arange(len(users)),
        labels=labels,
        split=split,
        group=np.zeros(len(users), np.int8),
        starts=starts,
        history_end=history_ends(users, split, starts),
        user_ids=["", *(f"u{user}" for user in range(1, n_users))],
        item_ids=["", *(f"i{item}" for item in range(1, n_items))],
        titles=[""] * n_items,
        genres=[()] * n_items,
        tags=[()] * n_items,
        people=[()] * n_items,
        descriptions=[""] * n_items,
        domain=np.zeros(n_items, np.int8),
        demographics={},
        reviews=reviews,
    )


def job_of(
    data: Feedback, folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, seed: int = 0
) -> Job:
    monkeypatch.setattr(recommending, "load", lambda job: data)
    run = Run("explainrec", "a3ncf", data.name, settings, seed, "of the test")
    return Job(run, folder, folder, 20.0, Progress(quiet=True))


# --- the topic model ----------------------------------------------------------------------------
def drawn_words(seed: int = 0) -> tuple[np.ndarray, ...]:
    """Planted: 3 topics of 8 words, mixtures of 20 users and 15 items, each user with a coin."""
    rng = np.random.default_rng(seed)
    n_users, n_items, count = 20, 15, 12_000
    phi = np.full((3, 24), 0.0005)
    for topic in range(3):
        phi[topic, 8 * topic : 8 * topic + 8] = 1
    phi /= phi.sum(1, keepdims=True)
    theta_u = rng.dirichlet([0.3] * 3, n_users)
    theta_i = rng.dirichlet([0.3] * 3, n_items)
    own = rng.choice([0.15, 0.85], n_users)
    users, items = rng.integers(0, n_users, count), rng.integers(0, n_items, count)
    heads = rng.random(count) < own[users]
    mixture = np.where(heads[:, None], theta_u[users], theta_i[items])
    topic = (mixture.cumsum(1) < rng.random((count, 1))).sum(1)
    words = (phi.cumsum(1)[topic] < rng.random((count, 1))).sum(1)
    given = (part.astype(np.int32) for part in (users, items, words))
    return (*given, phi, theta_u, theta_i, own)


def test_planted_topics_mixtures_and_coins_are_recovered():
    users, items, words, phi, theta_u, theta_i, own = drawn_words()
    settings = A3NCFSettings(topics=3, sweeps=60, blocks=50)
    rng = np.random.default_rng(1)
    found = sample_topics(users, items, words, (20, 15, 24), settings, rng)
    best = min(
        itertools.permutations(range(3)), key=lambda p: abs(found.words[list(p)] - phi).sum()
    )
    order = list(best)
    assert abs(found.words[order] - phi).max() < 0.02
    heads = own > 0.5
    assert abs(found.users[heads][:, order] - theta_u[heads]).mean() < 0.05
    assert abs(found.items[:, order] - theta_i).mean() < 0.05
    assert np.corrcoef(found.own, own)[0, 1] > 0.8


def test_odds_equal_the_formula_of_the_collapsed_sampler():
    """Loops over words and topics, each word's own draw taken away."""
    users, items, words, *_ = (part[:60] for part in drawn_words())
    drawn = np.random.default_rng(2).integers(0, 6, 60)
    alpha, beta, coin = 0.1, 0.01, 1.0
    for t in (0, 7, 59):
        rest = np.arange(60) != t
        counts = Counts(20, 15, 24, 3)
        counts.add(1, users, items, words, drawn)
        one = (users[t : t + 1], items[t : t + 1], words[t : t + 1])
        counts.add(-1, *one, drawn[t : t + 1])
        found = odds(counts, *one, alpha, beta, coin)[0]
        u, i, w = users[rest], items[rest], words[rest]
        topic, side = drawn[rest] % 3, drawn[rest] // 3
        mine = u == users[t]
        for k in range(3):
            phi = ((w == words[t]) & (topic == k)).sum() + beta
            phi /= (topic == k).sum() + 24 * beta
            of_user, of_item = mine & (side == 0), (i == items[t]) & (side == 1)
            heads = (of_user.sum() + coin) * ((of_user & (topic == k)).sum() + alpha)
            heads /= of_user.sum() + 3 * alpha
            tails = ((mine & (side == 1)).sum() + coin) * ((of_item & (topic == k)).sum() + alpha)
            tails /= of_item.sum() + 3 * alpha
            np.testing.assert_allclose(found[[k, k + 3]], [phi * heads, phi * tails], rtol=1e-9)


def test_one_word_in_a_block_is_the_exact_collapsed_sampler():
    """Over many sweeps the draws of three words have the probabilities of the joint distribution,
    summed over all assignments."""
    from math import lgamma

    users, items, words = (np.array(x, np.int32) for x in ([0, 0, 1], [0, 0, 0], [0, 1, 0]))
    settings = dataclasses.replace(SMALL, topics=2, alpha=0.5, beta=0.5, sweeps=1, blocks=3)

    def log_joint(drawn: np.ndarray) -> float:
        counts = Counts(2, 1, 2, 2)
        counts.add(1, users, items, words, drawn)
        heads = counts.user.sum(1)
        total = sum(
            lgamma(h + 1) + lgamma(t + 1) - lgamma(h + t + 2)
            for h, t in zip(heads, counts.borrowed, strict=True)
        )
        for table in (counts.user, counts.item, counts.word.T):
            total += sum(lgamma(n + 0.5) for n in table.ravel())
            total -= sum(lgamma(n + 0.5 * table.shape[1]) for n in table.sum(1))
        return total

    every = np.array(list(itertools.product(range(4), repeat=3)))
    weight = np.exp([log_joint(drawn) for drawn in every])
    wanted = weight[(every[:, 0] % 2) == (every[:, 2] % 2)].sum() / weight.sum()
    rng, drawn, hits, sweeps = np.random.default_rng(0), np.zeros(3, np.int64), 0, 4000
    counts = Counts(2, 1, 2, 2)
    counts.add(1, users, items, words, drawn)
    for _ in range(sweeps):
        a3ncf.sweep(counts, users, items, words, drawn, np.arange(4), settings, rng)
        hits += drawn[0] % 2 == drawn[2] % 2
    assert hits / sweeps == pytest.approx(wanted, abs=0.025)


def test_all_rows_are_distributions_and_who_wrote_nothing_has_a_uniform_one():
    data = world()
    texts = training_texts(data, "A3NCF", 1, has_content)
    found = topics_of(texts, data.n_users, data.n_items, SMALL, 0)
    assert found.users.shape == (19, 3) and found.items.shape == (31, 3)
    assert found.words.shape == (3, len(texts.vocabulary) - 1)
    for rows in (found.users, found.items, found.words):
        np.testing.assert_allclose(rows.sum(1), 1)
    np.testing.assert_allclose(found.users[[0, 4]], 1 / 3)
    again = topics_of(texts, data.n_users, data.n_items, SMALL, 0)
    assert np.array_equal(again.words, found.words)
    other = topics_of(texts, data.n_users, data.n_items, SMALL, 1)
    assert not np.array_equal(other.users, found.users)


def test_topics_do_not_depend_on_held_out_reviews():
    data = world()
    assert data.reviews is not None
    held = data.split > 0
    reviews = ["sword rail cook" if h else r for h, r in zip(held, data.reviews, strict=True)]
    found = [
        topics_of(training_texts(d, "A3NCF", 1, has_content), d.n_users, d.n_items, SMALL, 0)
        for d in (data, dataclasses.replace(data, reviews=reviews))
    ]
    assert np.array_equal(found[0].users, found[1].users)
    assert np.array_equal(found[0].items, found[1].items)


def test_mixtures_of_counts_by_hand():
    counts = Counts(2, 1, 2, 2)
    users, items, words = np.array([0, 0, 0]), np.zeros(3, int), np.array([0, 0, 1])
    counts.add(1, users, items, words, np.array([0, 0, 3]))  # the last is the item's, of topic 1
    found = mixtures(counts, dataclasses.replace(SMALL, topics=2, alpha=1.0, beta=1.0, coin=1.0))
    np.testing.assert_allclose(found.users, [[3 / 4, 1 / 4], [1 / 2, 1 / 2]])
    np.testing.assert_allclose(found.items, [[1 / 3, 2 / 3]])
    np.testing.assert_allclose(found.words, [[3 / 4, 1 / 4], [1 / 3, 2 / 3]])
    np.testing.assert_allclose(found.own, [3 / 5, 1 / 2])


# --- the network --------------------------------------------------------------------------------
def test_scores_equal_a_loop_over_rows():
    rng = np.random.default_rng(0)
    topics = Topics(
        rng.dirichlet([1] * 4, 6), rng.dirichlet([1] * 4, 5), np.ones((4, 2)) / 2, np.ones(6)
    )
    torch.manual_seed(0)
    model = network()(topics, 3.5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    users, items = np.array([0, 5, 2, 2]), np.array([4, 0, 1, 1])
    with torch.no_grad():
        found = model.score(torch.from_numpy(users), torch.from_numpy(items)).numpy()
    p = {name: value.detach().double().numpy() for name, value in model.named_parameters()}

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return p[f"{name}.weight"] @ x + p[f"{name}.bias"]

    wanted = []
    for u, i in zip(users, items, strict=True):
        user = np.maximum(dense("of_user", topics.users[u] + p["users.weight"][u]), 0)
        item = np.maximum(dense("of_item", topics.items[i] + p["items.weight"][i]), 0)
        logits = dense("attend", np.concatenate([topics.users[u], topics.items[i], user, item]))
        attention = np.exp(logits) / np.exp(logits).sum()
        hidden = np.maximum(dense("hidden", attention * user * item), 0)
        wanted.append(dense("last", hidden)[0])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    ratings = torch.tensor([1.0, 2.0, 3.0, 4.0])
    pairs = {"users": torch.from_numpy(users), "items": torch.from_numpy(items)}
    losses = squared_error(model, ratings, **pairs).detach().numpy()
    np.testing.assert_allclose(losses, (found - ratings.numpy()) ** 2, rtol=1e-6)
    model.train()
    assert not torch.equal(model.score(**pairs), model.score(**pairs))  # dropout


# --- runs ---------------------------------------------------------------------------------------
def test_a_run_learns_and_is_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = world(60)
    settings = dataclasses.replace(
        SMALL, topics=5, lr=0.015, max_epochs=16, dropout=0.1, batch_size=32
    )
    jobs = [job_of(data, tmp_path / str(at), monkeypatch, settings, seed=4) for at in range(2)]
    found = [run_a3ncf(job) for job in jobs]
    one, two = (result.predictions for result in found)
    assert all(np.array_equal(one[name], two[name]) for name in one) and set(one) == set(two)
    assert found[0].metrics["valid/auc"] > 0.8 and found[0].metrics["test/auc"] > 0.75
    assert len(found[0].notes) == 1
    assert any("1 of 59 users and 0 of 30 items" in note for note in found[0].notes)


def test_a_model_that_rates_every_pair_the_same_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = dataclasses.replace(SMALL, lr=100.0, batch_size=8)
    result = run_a3ncf(job_of(world(), tmp_path, monkeypatch, settings))
    assert result.metrics["test/auc"] == 0.5
    assert any("gives every pair the same rating" in note for note in result.notes)


def test_data_without_reviews_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataclasses.replace(world(), reviews=None)
    with pytest.raises(Unavailable, match=r"^toy has no reviews, and A3NCF learns from their text"):
        run_a3ncf(job_of(data, tmp_path, monkeypatch, SMALL))


@pytest.mark.parametrize("name", ["topics", "alpha", "beta", "coin", "sweeps", "blocks"])
def test_settings_out_of_range_are_refused(name: str):
    with pytest.raises(ValueError, match=name):
        A3NCFSettings(**{name: 0})
    with pytest.raises(ValueError, match=name):
        A3NCFSettings(**{name: float("inf")})


def test_presets_are_settings_and_estimates_grow_with_them():
    sizes = {"users": 100, "items": 50, "train": 1000, "reviewed": 1}
    found = [
        a3ncf.SYSTEM.estimate(a3ncf.SYSTEM.configure("x", preset, {}), sizes)
        for preset in ("demo", "small", "paper")
    ]
    assert found[0].seconds < found[1].seconds < found[2].seconds
