"""Patterns equal loops over other people's training events, and hold nobody's own label."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reasons import feedback, world

from reprokit import patterns
from reprokit.datasets import DataError
from reprokit.feedback import SPLITS, Feedback
from reprokit.metrics import auc
from reprokit.patterns import KnowledgeBase
from reprokit.runs import RequestError

S = 3.0
"""Smoothing."""


def with_demographics(data: Feedback, seed: int) -> Feedback:
    rng = np.random.default_rng(seed)
    codes = {"gender": (-1, 2), "age": (0, 3)}
    return replace(
        data,
        demographics={
            name: rng.integers(low, high, data.n_users).astype(np.int16)
            for name, (low, high) in codes.items()
        },
    )


# --- the reference: loops over events, with all of the row's user left out -----------------------
class Plain:
    """Patterns by their definition."""

    def __init__(self, data: Feedback, history: int = 50) -> None:
        self.data, self.history = data, history
        self.train = [e for e in range(len(data)) if data.split[e] == 0]
        times = {name: 0 for names in data.genres for name in names}
        for event in self.train:
            for name in set(data.genres[data.items[event]]):
                times[name] += 1
        self.common = sorted((g for g in times if times[g]), key=lambda g: (-times[g], g))

    def genres(self, item: int) -> list[str]:
        return [g for g in dict.fromkeys(self.data.genres[item]) if g in self.common]

    def past(self, event: int) -> list[int]:
        return list(range(self.data.starts[self.data.users[event]], self.data.history_end[event]))

    def groups(self, event: int) -> set[object]:
        data, user = self.data, self.data.users[event]
        if data.demographics:
            known = {name: int(codes[user]) for name, codes in data.demographics.items()}
            return {(name, code) for name, code in known.items() if code >= 0}
        counts = np.bincount(data.users[self.train], minlength=data.n_users)
        bounds = np.quantile(counts[counts > 0], [1 / 3, 2 / 3])
        found: set[object] = {"new" if not self.past(event) else int((counts[user] > bounds).sum())}
        liked = [
            g for e in self.past(event) if data.labels[e] == 1 for g in self.genres(data.items[e])
        ]
        rare = self.common[::-1]
        best = sorted(set(liked), key=lambda g: (-liked.count(g), rare.index(g)))
        return found | {("likes", g) for g in best[:2]}

    def others(self, event: int) -> list[int]:
        return [e for e in self.train if self.data.users[e] != self.data.users[event]]

    def rate(self, event: int) -> float:
        labels = [int(self.data.labels[e]) for e in self.others(event)]
        return sum(labels) / max(len(labels), 1)

    def mean(self, event: int, chosen: list[int], prior: float = 0.0) -> float:
        rate = self.rate(event)
        total = sum(int(self.data.labels[e]) - rate for e in chosen)
        return (total + S * prior) / (len(chosen) + S)

    def of_genres(self, event: int, item: int, chosen: list[int]) -> float:
        """The mean over the item's genres of the mean over the chosen events of each."""
        genres = self.genres(item)
        if not genres:
            return self.mean(event, chosen)
        return sum(
            self.mean(event, [e for e in chosen if g in self.genres(self.data.items[e])])
            for g in genres
        ) / len(genres)

    def demo(self, event: int, item: int, weights: str) -> float:
        opinions, sizes = [], []
        for group in sorted(self.groups(event), key=str):
            chosen = [e for e in self.others(event) if group in self.groups(e)]
            prior = self.of_genres(event, item, chosen)
            rated = [e for e in chosen if self.data.items[e] == item]
            opinions.append(self.mean(event, rated, prior))
            sizes.append(len(chosen))
        weigh = {"sqrt": math.sqrt, "size": float, "uniform": lambda size: 1.0}[weights]
        total = sum(map(weigh, sizes))
        return sum(weigh(n) * phi / total for n, phi in zip(sizes, opinions, strict=True) if n)

    def correlations(self, event: int) -> dict[tuple[str, str], float]:
        data, others = self.data, self.others(event)
        users = sorted({int(data.users[e]) for e in others})
        table = np.zeros((len(users), len(self.common)))
        for k, g in enumerate(self.common):
            rated = [e for e in others if g in self.genres(data.items[e])]
            rate = sum(int(data.labels[e]) for e in rated) / max(len(rated), 1)
            for v, user in enumerate(users):
                mine = [int(data.labels[e]) for e in rated if data.users[e] == user]
                table[v, k] = sum(label - rate for label in mine) / (len(mine) + S)
        found = {}
        shrink = len(users) / (len(users) + S)
        for k, g in enumerate(self.common):
            for m, h in enumerate(self.common):
                spread = table[:, k].std() * table[:, m].std() if len(users) else 0.0
                if k == m:
                    found[g, h] = 1.0
                elif spread > 1e-10:
                    together = (table[:, k] * table[:, m]).mean()
                    together -= table[:, k].mean() * table[:, m].mean()
                    found[g, h] = shrink * together / spread
                else:
                    found[g, h] = 0.0
        return found

    def cross(self, event: int, item: int) -> float:
        data = self.data
        past = [
            (h, 1 if data.labels[e] == 1 else -1)
            for e in self.past(event)[-self.history :]
            for h in self.genres(data.items[e])
        ]
        correlation = self.correlations(event)
        pairs = [sign * correlation[g, h] for g in self.genres(item) for h, sign in past]
        return sum(pairs) / max(len(pairs), 1)

    def month(self, event: int) -> int:
        return datetime.fromtimestamp(int(self.data.times[event]), UTC).month

    def bucket(self, event: int, item: int) -> int:
        data, now = self.data, self.data.times[event]
        before = [data.times[e] for e in self.train if data.items[e] == item]
        before = [time for time in before if time < now]
        if not before:
            return 0
        days = (now - max(before)) / 86_400
        return 1 + (days >= 7) + (days >= 30) + (days >= 365)

    def temporal(self, event: int, item: int) -> float:
        data, others = self.data, self.others(event)
        month = [e for e in others if self.month(e) == self.month(event)]
        bucket = self.bucket(event, item)
        recent = [e for e in others if self.bucket(e, data.items[e]) == bucket]
        return self.of_genres(event, item, month) + self.mean(event, recent)

    def __call__(self, event: int, item: int, weights: str = "sqrt") -> list[float]:
        return [
            self.demo(event, item, weights),
            self.cross(event, item),
            self.temporal(event, item),
        ]


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(["sqrt", "size", "uniform"]))
@settings(max_examples=15, deadline=None)
def test_patterns_equal_loops_over_other_peoples_training_events(
    seed: int, demographic: bool, weights: str
) -> None:
    data = world(seed, n_users=4, n_items=7, reviews=False)
    if not len(data.rows("train")):
        return
    if demographic:
        data = with_demographics(data, seed)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(data))[:6]
    items = np.where(rng.random(len(rows)) < 0.5, data.items[rows], rng.integers(1, 7, len(rows)))
    base = KnowledgeBase(data.sealed(), smoothing=S, weights=weights, history=4)
    plain = Plain(data, history=4)
    expected = [plain(int(r), int(i), weights) for r, i in zip(rows, items, strict=True)]
    assert np.allclose(base.raw(rows, items), expected, atol=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_neither_its_own_label_nor_later_ones_nor_held_out_ones_move_a_row(seed: int) -> None:
    data = world(seed, n_users=8)
    train = data.rows("train")
    if not len(train):
        return
    if seed % 2:
        data = with_demographics(data, seed)
    rng = np.random.default_rng(seed)
    row = int(rng.choice(train))
    held_out = np.isin(data.split, [SPLITS.index("valid"), SPLITS.index("test")])
    later = (data.users == data.users[row]) & (np.arange(len(data)) >= row)
    labels = np.where(held_out | later, 1 - data.labels, data.labels).astype(np.int8)
    changed = replace(data, labels=labels)
    rows, items = np.full(data.n_items - 1, row), np.arange(1, data.n_items)
    before, after = (KnowledgeBase(one, smoothing=S).raw(rows, items) for one in (data, changed))
    assert np.allclose(before, after, atol=1e-9)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_held_out_labels_move_no_pattern(seed: int) -> None:
    data = world(seed, n_users=8)
    if not len(data.rows("train")):
        return
    rows = np.arange(len(data))
    known = KnowledgeBase(data).patterns(rows, data.items)
    for splits, moved in ((("test",), rows), (("valid", "test"), data.rows("train"))):
        held = np.isin(data.split, [SPLITS.index(name) for name in splits])
        labels = np.where(held, 1 - data.labels, data.labels).astype(np.int8)
        again = KnowledgeBase(replace(data, labels=labels)).patterns(moved, data.items[moved])
        assert np.array_equal(again, known[moved])
    assert np.array_equal(KnowledgeBase(data.sealed()).patterns(rows, data.items), known)


def test_a_row_is_described_as_if_its_user_had_not_been_trained_on() -> None:
    """The statistics of people without the user, who keeps history and demographics alone."""
    data = with_demographics(world(5, n_users=30, n_items=20), 5)
    user = int(np.bincount(data.users[data.split == 0]).argmax())
    rows = np.flatnonzero(data.users == user)
    without = np.where((data.users == user) & (data.split == 0), 3, data.split).astype(np.int8)
    unseen = replace(data, split=without)
    bases = [KnowledgeBase(one, smoothing=S) for one in (data, unseen)]
    assert bases[0].genres.names != [] and set(bases[0].genres.names) == set(bases[1].genres.names)
    one, two = (base.raw(rows, data.items[rows])[:, :2] for base in bases)
    assert np.allclose(one, two, atol=1e-9)
    assert not np.allclose(one, 0)


def test_patterns_of_rows_in_any_order_and_number_are_the_same() -> None:
    data = world(3, n_users=40)
    base = KnowledgeBase(data.sealed())
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(data), 300)
    items = rng.integers(1, data.n_items, 300)
    whole = base.patterns(rows, items)
    assert whole.shape == (300, 3) and whole.dtype == np.float32
    single = [base.patterns(rows[k : k + 1], items[k : k + 1])[0] for k in range(0, 300, 37)]
    assert np.allclose(whole[::37], single, atol=1e-6)
    assert base.patterns(rows[:0], items[:0]).shape == (0, 3)
    train = data.rows("train")
    values = base.patterns(train, data.items[train])
    assert np.allclose(values.mean(0), 0, atol=1e-5) and np.allclose(values.std(0), 1, atol=1e-4)


def test_the_sizes_of_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data = world(3, n_users=40)
    rows = np.random.default_rng(0).permutation(len(data))
    items = data.items[rows[::-1]]
    whole = KnowledgeBase(data).raw(rows, items)
    for name, size in (("BLOCK", 3), ("USERS", 2), ("CHUNK", 20)):
        monkeypatch.setattr(patterns, name, size)
    assert np.allclose(KnowledgeBase(data).raw(rows, items), whole, atol=1e-9)


def planted(seed: int = 0) -> Feedback:
    """Each gender likes its own half of the items; held-out users have no history at all."""
    rng = np.random.default_rng(seed)
    events = []
    genders = rng.integers(0, 2, 121)
    for user in range(1, 121):
        for item in rng.permutation(20)[:10] + 1:
            likes = rng.random() < (0.75 if item % 2 == genders[user] else 0.35)
            events.append((user, int(item), int(likes), "train" if user <= 80 else "test"))
    data = feedback(events, genres=[(), *(("Drama",) for _ in range(20))])
    return replace(data, demographics={"gender": genders.astype(np.int16)})


def test_demographics_tell_what_new_users_like() -> None:
    data = planted()
    test = data.rows("test")
    assert (data.history_end[test] == data.starts[data.users[test]]).all()
    values = KnowledgeBase(data.sealed()).patterns(test, data.items[test])
    assert auc(data.labels[test], values[:, 0]) > 0.6
    behaviour = KnowledgeBase(data.sealed(), groups_by="behaviour")
    values = behaviour.patterns(test, data.items[test])
    assert auc(data.labels[test], values[:, 0]) < 0.6  # so the groups made the difference
    assert set(np.array(behaviour.group_names)[behaviour.facets[test, 0]]) == {"activity new"}


def test_a_genre_of_the_other_domain_stands_for_its_source_genre() -> None:
    events = [(u, i, int((u + i) % 3 > 0), "train") for u in range(1, 9) for i in (1, 2, 3)]
    events += [(1, 4, 1, "test"), (2, 5, 1, "test")]
    data = feedback(
        events,
        genres=[(), ("Action",), ("Drama",), ("Drama", "Action"), ("Thrillers",), ("Action",)],
        domain=np.array([0, 0, 0, 0, 1, 0], np.int8),
    ).sealed()
    rows = data.rows("test")[:1]
    film = np.array([5])
    book = np.array([4])
    mapped = KnowledgeBase(data, source_genres={"Thrillers": "Action"})
    assert np.array_equal(mapped.patterns(rows, book), mapped.patterns(rows, film))
    plain = KnowledgeBase(data)
    assert plain.raw(rows, book)[0, 1] == 0 != plain.raw(rows, film)[0, 1]
    not_there = KnowledgeBase(data, source_genres={"Action": "Drama"})  # films keep their genres
    assert np.array_equal(not_there.raw(rows, film), plain.raw(rows, film))


def test_what_cannot_be_asked_for_is_refused() -> None:
    data = world(1)
    with pytest.raises(RequestError, match=r"smoothing is 0\.0"):
        KnowledgeBase(data, smoothing=0.0)
    with pytest.raises(RequestError, match="groups_by is 'age'"):
        KnowledgeBase(data, groups_by="age")
    with pytest.raises(RequestError, match="weights is 'log'"):
        KnowledgeBase(data, weights="log")
    with pytest.raises(RequestError, match="toy has no demographics"):
        KnowledgeBase(data, groups_by="demographics")
    with pytest.raises(DataError, match="no training events"):
        KnowledgeBase(feedback([(1, 1, 1, "test")]))
