"""Leave-one-out aggregates equal plain loops, and no row's own document moves its features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprokit.pooling import Groups, Mean, leaks, mean_values, segment_sums


class Table(NamedTuple):
    """Random rows with zero to three documents of their own, and documents of nobody."""

    groups: Groups
    vectors: np.ndarray
    of: np.ndarray


@st.composite
def tables(draw: st.DrawFn) -> Table:
    n_groups = draw(st.integers(1, 4))
    n_rows = draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    of_row = rng.integers(0, n_groups, n_rows)
    own_rows = np.repeat(np.arange(n_rows), rng.integers(0, 4, n_rows))
    strangers = rng.integers(0, n_groups, rng.integers(1, 4))
    of_document = np.concatenate([of_row[own_rows], strangers])
    vectors = rng.standard_normal((5, 3)).astype(np.float32)
    of = rng.integers(0, len(vectors), len(of_document))
    own = np.arange(len(own_rows))
    return Table(Groups(of_document, of_row, own_rows, own, n_groups), vectors, of)


def plain_mean(table: Table, row: int) -> np.ndarray:
    """The definition, document by document."""
    groups = table.groups
    mine = {d for r, d in zip(groups.own_rows, groups.own_documents, strict=True) if r == row}
    every = [d for d in range(len(groups.of_document)) if d not in mine]
    near = [d for d in every if groups.of_document[d] == groups.of_row[row]]
    chosen = near or every
    return np.mean([table.vectors[table.of[d]].astype(np.float64) for d in chosen], axis=0)


@given(tables())
def test_means_equal_a_loop_over_documents(table: Table) -> None:
    rows = np.arange(len(table.groups.of_row))
    expected = np.array([plain_mean(table, row) for row in rows])
    mean = Mean(table.vectors, table.of, table.groups)
    assert np.allclose(mean(rows), expected, atol=1e-6)
    assert np.allclose(mean(rows[::-1]), expected[::-1], atol=1e-6)
    numbers = table.vectors[table.of, 0].astype(np.float64)
    assert np.allclose(mean_values(numbers, table.groups), expected[:, 0], atol=1e-6)


@given(tables(), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_a_row_never_sees_its_own_documents(table: Table, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = table.groups
    row = int(rng.integers(len(groups.of_row)))
    mine = groups.own_documents[groups.own_rows == row]
    vectors = np.concatenate([table.vectors, 100 * rng.standard_normal((len(mine), 3))])
    of = table.of.copy()
    of[mine] = len(table.vectors) + np.arange(len(mine))  # its own documents become others
    changed = Table(groups, vectors.astype(np.float32), of)

    def build(one: Table) -> Mean:
        return Mean(one.vectors, one.of, one.groups)

    assert not leaks(build, table, changed, row, tolerance=1e-4)
    before, after = (mean_values(one.vectors[one.of, 0], groups)[row] for one in (table, changed))
    assert np.isclose(before, after, atol=1e-4)


def test_a_planted_leak_is_caught() -> None:
    """The mean with the row's own document in it, as one summary per user would have it."""
    groups = Groups(np.array([0, 0]), np.array([0, 0]), np.arange(2), np.arange(2), 1)
    leaky = Groups(groups.of_document, groups.of_row, np.empty(0, int), np.empty(0, int), 1)
    before = np.array([[1.0], [3.0]], np.float32)
    after = np.array([[9.0], [3.0]], np.float32)

    def build(which: Groups):  # type: ignore[no-untyped-def]
        return lambda vectors: Mean(vectors, np.arange(2), which)

    assert leaks(build(leaky), before, after, row=0)
    assert not leaks(build(groups), before, after, row=0)


def test_a_row_without_other_documents_has_the_mean_of_all_others() -> None:
    groups = Groups(np.array([0, 1, 1]), np.array([0, 1, 2]), np.array([0]), np.array([0]), 3)
    mean = Mean(np.array([[1.0], [4.0], [6.0]], np.float32), np.arange(3), groups)
    assert mean(np.arange(3)).ravel().tolist() == [5.0, 5.0, np.float32(11 / 3)]
    assert mean.empty.tolist() == [True, False, True]


def test_sums_of_segments_may_be_empty() -> None:
    values = np.array([[1.0], [2.0], [4.0]])
    starts = np.array([0, 0, 2, 2, 3, 3])
    assert segment_sums(values, starts).ravel().tolist() == [0, 3, 0, 4, 0]
    assert segment_sums(values[:0], np.array([0, 0])).tolist() == [[0.0]]


def test_what_cannot_be_a_group_is_refused() -> None:
    one = np.array([0])
    with pytest.raises(ValueError, match="of_document must lie from 0 to 0"):
        Groups(np.array([1]), one, one, one, 1)
    with pytest.raises(ValueError, match="another row's group"):
        Groups(np.array([1, 0]), one, one, one, 2)
    with pytest.raises(ValueError, match="sorted"):
        Groups(np.array([0, 0]), np.array([0, 0]), np.array([1, 0]), np.array([0, 1]), 1)
    with pytest.raises(ValueError, match="no documents"):
        Mean(
            np.zeros((1, 2), np.float32),
            np.empty(0, int),
            Groups(np.empty(0, int), one, *[np.empty(0, int)] * 2, 1),
        )
