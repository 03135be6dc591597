"""The protocol of the cross-domain tables: rows, ranks, choices, and what training may not see."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

from reprokit import ranking
from reprokit.crossdata import CrossData, Sequences, counted
from reprokit.metrics import ranks
from reprokit.nextitem import NextItem
from reprokit.progress import Progress
from reprokit.ranking import (
    Arena,
    Held,
    NoSettings,
    RankSettings,
    Recipe,
    Rows,
    count_scores,
    points,
    rank_metrics,
    run_recipe,
    shortened,
    training_rows,
)
from reprokit.runs import Job, Result, Run, Unavailable

DEMO = "demo-movie-book"


# --- small data ---------------------------------------------------------------------------------
def sequences(rows: Sequence[Sequence[int]], users: Sequence[int] | None = None) -> Sequences:
    items = np.array([item for row in rows for item in row], np.int64)
    starts = np.cumsum([0, *map(len, rows)])
    who = np.arange(len(rows)) if users is None else np.array(users)
    return Sequences(who, items, np.arange(len(items)), starts)


def cross_data(
    train: Sequence[Sequence[int]],
    valid: Sequence[Sequence[int]],
    test: Sequence[Sequence[int]],
    n_a: int,
    n_b: int,
    name: str = DEMO,
) -> CrossData:
    """Rows of item ids; row n of each split is user n's."""
    n = n_a + n_b
    data = CrossData(
        name=name,
        domains=("Movie", "Book"),
        n_a=n_a,
        n_b=n_b,
        n_users=max(len(train), len(valid), len(test)),
        item_ids=["", *(f"i{item}" for item in range(1, n + 1))],
        titles=["", *(f"Title {item}" for item in range(1, n + 1))],
        images=[None] * (n + 1),
        has_image=np.zeros(n + 1, bool),
        train=sequences(train),
        valid=sequences(valid),
        test=sequences(test),
        counts={},
    )
    return counted(data, {"train rows whose sequence is evaluated too": 0})


def job_of(
    data: CrossData,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any = None,
    system: str = "random",
    seed: int = 0,
) -> Job:
    """A job whose data are these."""
    monkeypatch.setattr(ranking, "load_cross_data", lambda *_: data)
    run = Run("llm_emf", system, data.name, settings or NoSettings(), seed, "of the test")
    return Job(run, folder, folder, 20.0, Progress(quiet=True))


TRAIN = [[1, 6, 2, 7], [3, 4], [8, 5, 9], [6], [7, 8, 9, 1]]  # 5 items of A and 4 of B


@pytest.fixture
def small() -> CrossData:
    return cross_data(TRAIN, [[1, 6, 2], [8, 3, 7]], [[2, 7, 1, 9], [9, 5]], 5, 4)


def listed(rows: Rows) -> list[tuple[list[int], list[int], int]]:
    """(what is read, what is predicted, user) of each row, without padding at the end."""
    return [
        (items[items > 0].tolist(), targets[: max(np.flatnonzero(targets)) + 1].tolist(), user)
        for items, targets, user in zip(rows.items, rows.targets, rows.users.tolist(), strict=True)
    ]


# --- training rows ------------------------------------------------------------------------------
def test_every_position_of_a_merged_row_is_predicted_in_one_pass(small: CrossData):
    rows = training_rows(small, 5, "merged", "positions")
    assert listed(rows) == [
        ([1, 6, 2], [6, 2, 7], 0),
        ([3], [4], 1),
        ([8, 5], [5, 9], 2),
        ([7, 8, 9], [8, 9, 1], 4),  # a row of one item has nothing to predict
    ]
    assert rows.items.shape == rows.targets.shape == (4, 5)
    assert rows.items.dtype == rows.targets.dtype == np.int64
    assert rows.per_row == 9 / 4


def test_a_longer_row_keeps_its_last_events(small: CrossData):
    assert listed(training_rows(small, 2, "merged", "positions"))[0] == ([6, 2], [2, 7], 0)
    assert listed(training_rows(small, 1, "merged", "prefixes"))[0] == ([2], [7], 0)


def test_every_prefix_is_a_row_with_one_target_at_its_last_step(small: CrossData):
    rows = training_rows(small, 3, "merged", "prefixes")
    assert listed(rows) == [
        ([1], [6], 0),
        ([1, 6], [0, 2], 0),
        ([1, 6, 2], [0, 0, 7], 0),
        ([3], [4], 1),
        ([8], [5], 2),
        ([8, 5], [0, 9], 2),
        ([7], [8], 4),
        ([7, 8], [0, 9], 4),
        ([7, 8, 9], [0, 0, 1], 4),
    ]
    assert rows.per_row == 1
    assert ((rows.items > 0).sum(1) == rows.targets.argmax(1) + 1).all()


def test_the_last_item_of_each_domain_is_predicted_from_what_came_before(small: CrossData):
    assert listed(training_rows(small, 4, "merged", "last")) == [
        ([1, 6], [0, 2], 0),
        ([1, 6, 2], [0, 0, 7], 0),
        ([3], [4], 1),
        ([8], [5], 2),
        ([8, 5], [0, 9], 2),
        ([7, 8], [0, 9], 4),
        ([7, 8, 9], [0, 0, 1], 4),
    ]


def test_a_domain_alone_is_read_as_if_the_other_did_not_exist(small: CrossData):
    of_a = [([1], [2], 0), ([3], [4], 1)]
    of_b = [([6], [7], 0), ([8], [9], 2), ([7, 8], [8, 9], 4)]
    assert listed(training_rows(small, 4, "a", "positions")) == of_a
    assert listed(training_rows(small, 4, "b", "positions")) == of_b
    assert listed(training_rows(small, 4, "target", "positions")) == of_a + of_b
    assert listed(training_rows(small, 4, "target", "prefixes"))[-2:] == [
        ([7], [8], 4),
        ([7, 8], [0, 9], 4),
    ]


def test_nothing_to_learn_from_leaves_the_row_empty_with_the_reason():
    data = cross_data([[1, 4], [5, 6]], [[1, 4]], [[1, 4]], 3, 3)
    assert listed(training_rows(data, 3, "b", "positions")) == [([5], [6], 1)]
    with pytest.raises(Unavailable, match=r"no training sequence has two items .*\(read: a\)"):
        training_rows(data, 3, "a", "positions")


# --- held-out rows ------------------------------------------------------------------------------
@pytest.mark.parametrize("reads", ["merged", "target"])
@pytest.mark.parametrize("max_len", [1, 2, 9])
def test_a_ranked_row_shows_its_context_and_never_its_target(
    reads: str, max_len: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(0)
    rows = [(1 + rng.permutation(9))[: rng.integers(2, 9)].tolist() for _ in range(40)]
    data = cross_data(TRAIN, rows, [[1, 2]], 5, 4)
    held = Arena(job_of(data, tmp_path, monkeypatch)).valid
    at = rng.permutation(40)[:25]
    inputs = ("items", "users")
    index = np.arange(25)[::-1]
    batch = held.batches(at, data, max_len, reads, inputs)(index)
    assert set(batch) == {"items", "users", "targets", "negatives"}
    found = {name: column.numpy() for name, column in batch.items()}
    assert found["items"].shape == (25, max_len) and found["negatives"].shape == (25, 999)
    for place, row in enumerate(at[index]):
        *context, target = rows[row]
        context = context[-max_len:]
        if reads == "target":
            context = [item for item in context if (item > 5) == (target > 5)]
        assert found["items"][place].tolist() == context + [0] * (max_len - len(context))
        assert found["targets"][place] == target
        assert target not in found["items"][place]
        assert found["users"][place] == row
        assert (found["negatives"][place] == held.negatives[row]).all()
    assert "users" not in held.batches(at, data, max_len, reads, ("items",))(index)


def test_an_arena_trains_on_sealed_data_and_opens_the_test_split_once(
    small: CrossData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arena, opened = Arena(job_of(small, tmp_path, monkeypatch)), []
    assert len(arena.sealed.test) == 0 and len(arena.sealed.train) == 5
    real = ranking.negatives
    monkeypatch.setattr(ranking, "negatives", lambda *a: (opened.append(a[1]), real(*a))[1])
    arena.watched(0)
    zeros = count_scores(lambda h, at, d: np.zeros((len(at), (5, 4)[d])), small)
    result = arena.result(zeros, {})
    assert opened == ["valid", "test"]
    assert result.predictions["test/targets"].tolist() == [9, 5]
    assert result.predictions["valid/users"].tolist() == [0, 1]


def test_a_part_of_validation_is_the_same_for_all_and_keeps_both_domains_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [[1, 2] if at % 3 else [1, 7] for at in range(60)]
    data = cross_data(TRAIN, rows, [[1, 2]], 5, 4)
    arenas = [Arena(job_of(data, tmp_path, monkeypatch, seed=seed)) for seed in (0, 1)]
    for domain in (0, 1):
        whole = arenas[0].watched(domain)
        assert whole.tolist() == [at for at in range(60) if bool(at % 3) != bool(domain)]
        few = [arena.watched(domain, 20) for arena in arenas]
        assert (few[0] == few[1]).all() and set(few[0]) < set(whole)
    assert len(arenas[0].watched(0, 20)) + len(arenas[0].watched(1, 20)) == 20


def test_all_systems_and_seeds_rank_the_same_lists(
    small: CrossData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jobs = [
        job_of(small, tmp_path / folder, monkeypatch, system=system, seed=seed)
        for folder, system, seed in (("x", "sasrec", 0), ("x", "mifn", 3), ("y", "random", 1))
    ]
    for split in ("valid", "test"):
        lists = [np.array(Arena(job).held(split).negatives) for job in jobs]
        assert (lists[0] == lists[1]).all() and (lists[0] == lists[2]).all()
    assert len(list(tmp_path.glob("*/negatives/*"))) == 4


def test_validation_without_a_domain_leaves_the_row_empty_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = cross_data(TRAIN, [[1, 2], [7, 3]], [[1, 7]], 5, 4)
    arena = Arena(job_of(data, tmp_path, monkeypatch))
    assert arena.watched(0).tolist() == [0, 1]
    with pytest.raises(Unavailable, match="none of 2 validation rows has a target in Book"):
        arena.watched(1)


# --- metrics ------------------------------------------------------------------------------------
def test_metrics_are_those_of_the_counts_in_percent():
    counts = np.array([[0, 0, 0, 0, 0], [1, 2, 3, 7, 2], [9, 1, 9, 30, 10]], np.float32)
    mid, authors, full = [1, 3, 10.5], [1, 4, 10], [1, 9, 36]
    found = rank_metrics(counts)
    for prefix, rank in (("", mid), ("authors/", authors), ("full/", full)):
        gains = [1 / np.log2(1 + r) for r in rank]
        assert found[f"{prefix}mrr"] == pytest.approx(100 * np.mean([1 / r for r in rank]))
        for k in (5, 10):
            expected = np.mean([g * (r <= k) for r, g in zip(rank, gains, strict=True)])
            assert found[f"{prefix}ndcg@{k}"] == pytest.approx(100 * expected)
        expected = np.mean([r <= 10 for r in rank])
        assert found[f"{prefix}hr@10"] == pytest.approx(100 * expected)
    assert found["rows"] == 3 and len(found) == 13
    counts[:, 3:] = -1  # a system that scores the list alone
    assert [name for name in rank_metrics(counts) if "full" in name] == []


def test_scores_of_a_whole_domain_become_the_counts_of_the_list_and_of_the_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rng = np.random.default_rng(0)
    rows = [[1, int(target)] for target in rng.integers(1, 10, 30)]
    data = cross_data(TRAIN, rows, [[1, 2]], 5, 4)
    held = Arena(job_of(data, tmp_path, monkeypatch)).valid
    table = rng.integers(0, 3, (30, 9)).astype(np.float32)
    table[:, 0] += 5e-6  # within the authors' tolerance
    low, high = np.array([0, 5]), np.array([5, 9])

    def scores(held: Held, at: np.ndarray, domain: int) -> np.ndarray:
        return table[at, low[domain] : high[domain]]

    for domain, score in enumerate(count_scores(scores, data, block=7)):
        at = held.of(domain)
        assert ((held.sequences.targets[at] > 5) == domain).all() and len(at) > 7
        counts = score(held, at)
        own = held.sequences.targets[at, None] - 1
        lists = np.take_along_axis(table[at], np.concatenate([own, held.negatives[at] - 1], 1), 1)
        np.testing.assert_array_equal(1 + counts[:, 0] + counts[:, 1] / 2, ranks(lists))
        authors = ranks(lists, ties="optimistic", tolerance=1e-5)
        np.testing.assert_array_equal(1 + counts[:, 2], authors)
        whole = ranks(table[at, low[domain] : high[domain]], own[:, 0] - low[domain])
        np.testing.assert_array_equal(1 + counts[:, 3] + counts[:, 4] / 2, whole)


@pytest.fixture(scope="module")
def wide() -> CrossData:
    """Domains so wide that 999 draws hardly repeat, and 2,400 test rows."""
    rng, n = np.random.default_rng(0), 20_000
    rows = rng.integers(1, 2 * n + 1, (2_400, 3)).tolist()
    return cross_data([[1, 2]], [[1, 2], [1, n + 1]], rows, n, n)


def test_random_scores_have_an_mrr_of_three_quarters_of_a_percent(
    wide: CrossData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """1 + 999: sum of 1 / r over 1,000 is 0.75%, of the gains up to rank 10 it is 0.45%; the
    standard error of the mean over these rows and two seeds is 0.06 of a point."""
    results = [
        ranking.run_random(job_of(wide, tmp_path, monkeypatch, seed=seed)) for seed in (0, 1)
    ]
    for name, expected in (("mrr", 0.75), ("ndcg@10", 0.45), ("hr@10", 1.0)):
        values = [r.metrics[f"test/{domain}/{name}"] for r in results for domain in "ab"]
        assert np.mean(values) == pytest.approx(expected, abs=0.2)
    again = ranking.run_random(job_of(wide, tmp_path, monkeypatch, seed=1))
    counts = [one.predictions["test/counts"] for one in (*results, again)]
    assert (counts[1] == counts[2]).all() and (counts[0] != counts[1]).any()


def test_a_constant_score_is_worth_nothing_under_mid_rank_and_all_under_the_authors_rule(
    wide: CrossData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    metrics = ranking.run_constant(job_of(wide, tmp_path, monkeypatch)).metrics
    for domain in "ab":
        assert metrics[f"test/{domain}/mrr"] == pytest.approx(100 / 500.5)
        assert metrics[f"test/{domain}/full/mrr"] == pytest.approx(100 / 10_000.5)
        assert metrics[f"test/{domain}/authors/mrr"] == 100
        assert metrics[f"test/{domain}/authors/ndcg@10"] == 100
        assert metrics[f"test/{domain}/ndcg@10"] == metrics[f"test/{domain}/hr@10"] == 0


def test_popularity_counts_training_events_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    held = [[2, 4], [4, 4, 2], [5, 7], [7, 7, 7, 5]]  # 2 and 7 are frequent in no training row
    data = cross_data([[1, 1, 4], [1, 4, 5, 5, 2], [3, 1]], held, held, 3, 4)
    result = ranking.run_popularity(job_of(data, tmp_path, monkeypatch))
    counts = result.predictions["test/counts"]
    assert counts[:, 3].tolist() == [0, 1, 2, 0]  # of 4 (with 5), 2, 7 and 5
    assert counts[:, 4].tolist() == [1, 1, 1, 1]


def test_statistics_are_counted_by_domain_of_the_target(
    small: CrossData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = ranking.run_statistics(job_of(small, tmp_path, monkeypatch))
    assert result.metrics == {
        "a/items": 5,
        "b/items": 4,
        "train": 5,
        "length": 26 / 9,
        "valid/a": 1,
        "valid/b": 1,
        "test/a": 1,
        "test/b": 1,
    }
    assert result.notes == ()


def test_another_training_file_than_the_releases_is_said_with_every_result(
    small: CrossData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counts = {**small.counts, "train rows whose sequence is evaluated too": 4}
    other = dataclasses.replace(small, name="food-kitchen", counts=counts)
    for run in (ranking.run_statistics, ranking.run_constant):
        (note,) = run(job_of(other, tmp_path, monkeypatch)).notes
        assert "it has 5 rows, that one 34,117" in note
        assert "4 of its rows bear the number of a validation or test row" in note
    whole = sequences([[1, 2]] * 34_117)
    assert ranking.unlike_release(dataclasses.replace(other, train=whole)) == ()


# --- a model that turns a dial ------------------------------------------------------------------
class Dial(NextItem):
    """One number, which every epoch moves by the step size. A target is on top as long as the
    number is at its goal, and else at the bottom."""

    def __init__(self, sizes: tuple[int, int], goals: dict[int, float], nan_at: float = -1) -> None:
        super().__init__()
        self.sizes, self.goals, self.nan_at = sizes, goals, nan_at
        self.at = torch.nn.Parameter(torch.zeros(1))

    def domain_scores(self, domain: int, items: torch.Tensor, **more: Any) -> torch.Tensor:
        first = 1 + domain * self.sizes[0]
        scores = torch.zeros(len(items), self.sizes[domain])
        for item, goal in self.goals.items():
            if first <= item < first + self.sizes[domain]:
                scores[:, item - first] = 0.5 - (self.at - goal).abs()
        return scores + (torch.nan if abs(self.at.item() - self.nan_at) < 0.1 else 0.0)


@dataclasses.dataclass(frozen=True)
class DialSettings(RankSettings):
    lr: float = 1.0
    max_epochs: int = 6
    flag: bool = False


def turn(model: Dial, targets: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    return -model.at.expand(len(targets))


def run_dial(
    job: Job, *goals: dict[int, float], nan_at: float = -1, **more: Any
) -> tuple[Result, list[Any]]:
    """The result, and the settings that were tried; one table of goals for each model."""
    tried = []

    def make(arena: Arena, settings: Any) -> Recipe:
        tried.append(settings)
        sizes = arena.data.n_a, arena.data.n_b
        build = lambda s, domain: Dial(sizes, goals[domain], nan_at)  # noqa: E731
        return Recipe(build, lambda s, rows: turn, models=len(goals), **more)

    return run_recipe(job, make), tried


@pytest.fixture
def dial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Targets of validation are items 1 and 21, those of the test split `of_test` in A and B."""

    def job(of_test: int = 2, **settings: Any) -> Job:
        test = [[5, of_test], [25, 20 + of_test]]
        data = cross_data([[1, 2, 3], [21, 22, 23]], [[5, 1], [25, 21]] * 3, test * 2, 20, 20)
        return job_of(data, tmp_path, monkeypatch, DialSettings(**settings), "toy")

    return job


def test_each_domain_is_ranked_in_its_own_best_epoch(dial: Any):
    result, _ = run_dial(dial(of_test=1), {1: 2.0, 21: 4.0})
    for split in ("valid", "test"):
        assert [result.metrics[f"{split}/{domain}/mrr"] for domain in "ab"] == [100, 100]
    chosen = result.selection["by domain"]
    assert {domain: one["epoch"] for domain, one in chosen.items()} == {"a": 2, "b": 4}
    assert {one["metric"] for one in chosen.values()} == {"a/mrr", "b/mrr"}
    assert {one["value"] for one in chosen.values()} == {100} and chosen["a"]["epochs"] == 6
    assert result.selection["split"] == "valid" and "chosen point" not in result.selection


def test_a_better_test_split_chooses_no_epoch(dial: Any):
    result, _ = run_dial(dial(), {1: 2.0, 2: 4.0, 21: 3.0, 22: 1.0})
    assert [result.metrics[f"valid/{domain}/mrr"] for domain in "ab"] == [100, 100]
    assert max(result.metrics[f"test/{domain}/mrr"] for domain in "ab") == 0.1
    chosen = result.selection["by domain"]
    assert {domain: one["epoch"] for domain, one in chosen.items()} == {"a": 2, "b": 3}


def test_two_models_each_rank_their_own_domain(dial: Any):
    job = dial(of_test=1, max_epochs=50, patience=4)
    result, _ = run_dial(job, {1: 2.0, 21: 9.0}, {1: 9.0, 21: 5.0})
    assert [result.metrics[f"test/{domain}/mrr"] for domain in "ab"] == [100, 100]
    chosen = result.selection["by domain"]
    epochs = {domain: (one["epoch"], one["epochs"]) for domain, one in chosen.items()}
    assert epochs == {"a": (2, 6), "b": (5, 9)}  # the other domain keeps neither from stopping


def test_training_stops_when_neither_domain_gets_better(dial: Any):
    result, _ = run_dial(dial(max_epochs=50, patience=3), {1: 2.0, 21: 4.0})
    assert result.selection["by domain"]["a"]["epochs"] == 4 + 3


def test_the_point_of_a_grid_is_chosen_by_the_validation_of_both_domains(
    dial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A step size of 2 reaches both goals of validation, 1 one of them; the test split would
    prefer 0.5."""
    goals = {1: 2.0, 21: 8.0, 2: 0.5, 22: 0.5}
    kept: list[int] = []
    real = Arena.held

    def held(self: Arena, split: str) -> Held:
        if split == "test":
            kept.append(len(list(tmp_path.glob("stages/*.safetensors"))))
        return real(self, split)

    monkeypatch.setattr(Arena, "held", held)
    job = dial(grid="lr=0.5,1.0,2.0;flag=true,False", max_epochs=4)
    result, tried = run_dial(job, goals)
    assert [(s.lr, s.flag, s.grid) for s in tried] == [
        (lr, flag, "") for lr in (0.5, 1.0, 2.0) for flag in (True, False)
    ]
    assert result.selection["chosen point"] == {"lr": 2.0, "flag": True}
    assert [one["valid mrr"] for one in result.selection["grid"]] == pytest.approx(
        [50.05, 50.05, 50.05, 50.05, 100, 100]
    )
    points_tried = [one["point"] for one in result.selection["grid"]]
    assert points_tried == [{"lr": s.lr, "flag": s.flag} for s in tried]
    assert kept == [6]  # every point was trained before the one look at the test split
    assert [result.metrics[f"valid/{domain}/mrr"] for domain in "ab"] == [100, 100]
    assert max(result.metrics[f"test/{domain}/mrr"] for domain in "ab") == 0.1


def test_a_grid_and_its_chosen_point_alone_share_the_stage(dial: Any, tmp_path: Path):
    goals = {1: 2.0, 21: 4.0, 2: 4.0, 22: 2.0}
    of_grid, _ = run_dial(dial(grid="lr=1.0,2.0"), goals)
    stages = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*")}
    alone, _ = run_dial(dial(**of_grid.selection["chosen point"]), goals)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*")} == stages
    assert len(stages) == 2 and alone.metrics == of_grid.metrics


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("lr", "'lr' is not setting=value,value"),
        ("rate=1", "'rate=1' is not setting=value"),
        ("grid=lr", "'grid=lr' is not setting=value"),
        ("lr=1;lr=2", "'lr=2' is not setting=value,value of one more setting"),
        ("lr=1,x", "'lr=1,x' has 'x', not of type float"),
        ("max_epochs=1.5", "'1.5', not of type int"),
        ("flag=yes", "'yes', not of type bool"),
        ("lr=0.1,-1", "lr is out of range, got -1"),
    ],
)
def test_a_grid_is_refused_before_anything_runs(grid: str, message: str):
    with pytest.raises(ValueError, match=message):
        DialSettings(grid=grid)


def test_no_grid_is_one_point():
    settings = DialSettings(lr=0.5)
    assert list(points(settings, "")) == [({}, settings)]


def test_a_second_grid_starts_from_the_best_point_of_the_first(dial: Any):
    """Of three step sizes the middle one reaches the goals of validation in two epochs."""
    grid = "lr=0.5,1.0,4.0|flag=true,false;max_epochs=1,2|batch_size=7"
    result, tried = run_dial(dial(grid=grid, max_epochs=2), {1: 2.0, 21: 2.0})
    assert [one["valid mrr"] for one in result.selection["grid"]] == pytest.approx(
        [0.1, 100, 0.1, 0.1, 100, 0.1, 100, 100]
    )
    assert [(s.lr, s.flag, s.max_epochs) for s in tried[3:]] == [
        (1.0, True, 1),
        (1.0, True, 2),
        (1.0, False, 1),
        (1.0, False, 2),
        (1.0, False, 2),  # of equals the first is the best: lr 1, and nothing of the second grid
    ]
    assert [one["point"] for one in result.selection["grid"][4:6]] == [
        {"lr": 1.0, "flag": True, "max_epochs": 2},
        {"lr": 1.0, "flag": False, "max_epochs": 1},
    ]
    assert tried[-1].batch_size == 7 and result.selection["chosen point"] == {"lr": 1.0}


@pytest.mark.parametrize("setting", ["lr", "l2", "patience", "valid_rows", "eval_batch"])
def test_settings_out_of_range_are_refused(setting: str):
    with pytest.raises(ValueError, match=f"{setting} is out of range, got -1"):
        RankSettings(**{setting: -1})


@pytest.mark.parametrize("nan_at", [0.0, 1.0])
def test_a_score_that_is_no_number_fails_the_run(nan_at: float, dial: Any):
    """Before training, and after an epoch."""
    with pytest.raises(ValueError, match="ranks start at 1, got nan"):
        run_dial(dial(), {1: 2.0, 21: 2.0}, nan_at=nan_at)


def test_a_score_that_is_no_number_fails_rows_that_are_not_trained(
    small: CrossData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def scores(held: Held, at: np.ndarray, domain: int) -> np.ndarray:
        table = np.zeros((len(at), (5, 4)[domain]))
        table[0, 0] = np.nan
        return table

    arena = Arena(job_of(small, tmp_path, monkeypatch))
    with pytest.raises(ValueError, match="ranks start at 1, got nan"):
        arena.result(count_scores(scores, small), {})


def test_importing_the_protocol_and_the_rows_loads_no_torch():
    code = "import sys, reprokit.ranking, reprokit.contenders; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


def test_sequences_that_are_cut_are_counted():
    data = cross_data([[1, 4, 2, 5], [1, 4]], [[1, 4, 2, 5]], [[1, 4, 2]], 3, 3)
    assert shortened(data, 3) == []  # three are read, the last is what they predict
    (said,) = shortened(data, 2)
    assert said.endswith(
        "only the last 2 events are read of longer sequences: 1 of train, 1 of valid, 0 of test"
    )
