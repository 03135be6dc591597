"""The protocol of ExplainRec's tables: which rows, ranked against what, and what stays sealed."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from reprokit import recommending
from reprokit.feedback import Feedback, history_ends
from reprokit.metrics import auc, bleu
from reprokit.progress import Progress
from reprokit.recommending import (
    SAMPLES,
    Arena,
    Meter,
    Pairs,
    TasteSettings,
    blocks,
    rated,
    sample,
    spread,
    unrated,
)
from reprokit.runs import Job, RequestError, Run, Unavailable

NO_LISTS = {"rated_rows": 0, "rank_rows": 0, "valid_rows": 0, "valid_lists": 0}


# --- small data ---------------------------------------------------------------------------------
def feedback(
    n_users: int = 12, n_items: int = 40, each: int = 20, seed: int = 0, groups: bool = False
) -> Feedback:
    """Users who rate `each` random items in time, 60% training, 20% validation, 20% test.

    A user likes items of his own parity, mostly. Users and items count padding.
    """
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(1, n_users), each)
    items = np.concatenate(
        [rng.permutation(np.arange(1, n_items))[:each] for _ in range(1, n_users)]
    )
    noise = rng.random(len(users)) < 0.1
    labels = (((users + items) % 2 == 0) ^ noise).astype(np.int8)
    place = np.tile(np.arange(each), n_users - 1)
    split = np.digitize(place, [0.6 * each, 0.8 * each]).astype(np.int8)
    starts = np.concatenate([[0, 0], np.cumsum(np.full(n_users - 1, each))])
    group = np.where(groups & (split > 0), 1 + users % 3, 0).astype(np.int8)
    names = ["", *(f"Title {number} of kind{number % 2}" for number in range(1, n_items))]
    return Feedback(
        name="toy",
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.where(labels, 5, 2).astype(np.float32),
        times=np.arange(len(users)),
        labels=labels,
        split=split,
        group=group,
        starts=starts,
        history_end=history_ends(users, split, starts),
        user_ids=["", *(f"u{user}" for user in range(1, n_users))],
        item_ids=["", *(f"i{item}" for item in range(1, n_items))],
        titles=names,
        genres=[()] * n_items,
        tags=[()] * n_items,
        people=[()] * n_items,
        descriptions=[""] * n_items,
        domain=np.zeros(n_items, np.int8),
        demographics={},
        pictures=rng.integers(0, 256, (n_items, 3, 8, 8)).astype(np.uint8),
        has_picture=np.arange(n_items) > 0,
        counts={"test rows": int((split == 2).sum())},
    )


def job_of(
    data: Feedback,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any = None,
    system: str = "random",
    seed: int = 0,
) -> Job:
    """A job whose data are these."""
    monkeypatch.setattr(recommending, "load", lambda job: data)
    backbone = "; ".join(f"{kind} tiny {kind} encoder" for kind in ("text", "image"))
    settings = settings or TasteSettings(negatives=9, **NO_LISTS)
    run = Run("explainrec", system, data.name, settings, seed, "of the test", backbone=backbone)
    return Job(run, folder, folder, 20.0, Progress(quiet=True))


@pytest.fixture
def arena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arena:
    return Arena(job_of(feedback(), tmp_path, monkeypatch))


def truth(data: Feedback) -> Callable[[Pairs], np.ndarray]:
    """Knows who rated what, and how: liked items of the test split win."""
    liked = np.zeros((data.n_users, data.n_items))
    liked[data.users, data.items] = np.where(data.labels == 1, 2.0, -1.0)
    return lambda pairs: liked[data.users[pairs.rows], pairs.items]


# --- rows ---------------------------------------------------------------------------------------
def test_a_sample_has_so_many_rows_of_each_group_and_is_always_the_same():
    rows, group = np.arange(100, 200), np.repeat([0, 1, 3], [70, 25, 5])
    found = sample(rows, group, 20, 1, "test")
    assert np.bincount(group[found - 100]).tolist() == [20, 20, 0, 5]
    assert (np.diff(found) > 0).all() and np.array_equal(found, sample(rows, group, 20, 1, "test"))
    assert not np.array_equal(found, sample(rows, group, 20, 2, "test"))
    assert np.array_equal(sample(rows, group, 0, 1, "test"), rows)


def test_ranked_rows_are_spread_over_the_users():
    rows, users = np.arange(50), np.repeat([4, 7, 9], [40, 8, 2])
    few = spread(rows, users, 3, 1, "test")
    assert sorted(users[few]) == [4, 7, 9]
    more = spread(rows, users, 12, 1, "test")
    assert np.bincount(users[more])[[4, 7, 9]].tolist() == [5, 5, 2]
    assert len(np.unique(more)) == 12 and (np.diff(more) > 0).all()


# --- candidates ---------------------------------------------------------------------------------
def test_candidates_are_different_items_that_the_user_has_rated_in_no_split():
    data = feedback()
    users = np.array([3, 3, 8, 1])
    drawn = unrated(data, users, 19, np.random.default_rng(0))
    for user, items in zip(users, drawn.tolist(), strict=True):
        seen = set(data.items[data.users == user].tolist())
        assert len(seen) == 20 and set(items) == set(range(1, 40)) - seen  # all 19 that are left


def test_candidates_are_drawn_uniformly():
    data = feedback(n_users=3, n_items=13, each=4)
    drawn = unrated(data, np.full(4000, 2), 3, np.random.default_rng(0))
    often = np.bincount(drawn.ravel(), minlength=13)
    free = often > 0
    assert free.sum() == 8 and abs(often[free] / 1500 - 1).max() < 0.1


def test_rated_items_are_counted_once_however_often_they_were_rated():
    data = feedback(n_users=3, n_items=9, each=4)
    twice = dataclasses.replace(data, items=np.full(8, 5, np.int32))
    assert rated(twice, np.array([1, 2])).tolist() == [5, 9 + 5]
    drawn = unrated(twice, np.array([2]), 7, np.random.default_rng(0))
    assert sorted(drawn[0]) == [1, 2, 3, 4, 6, 7, 8]


def test_two_systems_rank_the_same_lists_and_a_damaged_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, settings = feedback(), TasteSettings(negatives=9, rank_rows=5, valid_lists=4)
    lists = []
    for system, seed in (("random", 0), ("popularity", 3), ("lightgcn", 7), ("again", 8)):
        found = Arena(job_of(data, tmp_path, monkeypatch, settings, system, seed)).test.lists
        assert found is not None and len(found) == 50
        lists.append(found)
        (path,) = tmp_path.glob("candidates/*.npz")
        if system == "popularity":  # kept, and not drawn again
            monkeypatch.setattr(recommending, "unrated", None)
        if system == "lightgcn":
            monkeypatch.undo()
            whole = path.read_bytes()
            path.write_bytes(whole[:200] + b"x" + whole[201:])
    assert path.read_bytes() == whole
    for other in lists[1:]:
        assert np.array_equal(other.items, lists[0].items)
        assert np.array_equal(other.rows, lists[0].rows)


def test_kept_candidates_that_a_user_has_rated_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback()
    first = Arena(job_of(data, tmp_path, monkeypatch)).test
    (path,) = tmp_path.glob("candidates/*.npz")
    with np.load(path) as file:
        rows, items = file["rows"], file["items"].copy()
    items[0, 0] = data.items[data.users == data.users[rows[0]]][0]
    np.savez(path, rows=rows, items=items)
    again = Arena(job_of(data, tmp_path, monkeypatch)).test
    assert np.array_equal(again.lists.items, first.lists.items)  # type: ignore[union-attr]


def test_no_unrated_items_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = job_of(feedback(), tmp_path, monkeypatch, TasteSettings())
    with pytest.raises(RequestError, match="toy: no user has 99 items left unrated, of 39"):
        _ = Arena(job).valid


# --- metrics ------------------------------------------------------------------------------------
def test_a_perfect_scorer_has_one_and_a_constant_one_has_chance(arena: Arena):
    known = truth(arena.data)
    best = arena.result(known, {}, full=lambda rows: every(arena, known, rows)).metrics
    names = ["auc", "ndcg@10", "hr@10", "full/ndcg@10", "full/hr@10"]
    assert [best[f"test/{name}"] for name in names] == [1] * 5
    flat = arena.result(
        lambda pairs: np.zeros(len(pairs)), {}, full=lambda rows: np.zeros((len(rows), 40))
    ).metrics
    assert flat["test/auc"] == 0.5
    assert flat["test/ndcg@10"] == pytest.approx(1 / np.log2(5.5 + 1))  # the middle of ten
    assert flat["test/full/ndcg@10"] == 0 and flat["test/full/hr@10"] == 0  # the middle of twenty


def every(arena: Arena, score: Callable[[Pairs], np.ndarray], rows: np.ndarray) -> np.ndarray:
    n = arena.data.n_items
    pairs = Pairs(np.repeat(rows, n), np.tile(np.arange(n), len(rows)))
    return score(pairs).reshape(len(rows), n)


def test_metrics_are_those_of_a_loop_over_the_rows(arena: Arena, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recommending, "FULL_CELLS", 3 * 40)
    data = arena.data
    table = np.random.default_rng(5).normal(size=(data.n_users, data.n_items)).round(1)

    def score(pairs: Pairs) -> np.ndarray:
        return table[data.users[pairs.rows], pairs.items]

    result = arena.result(score, {"split": "valid"}, full=lambda rows: table[data.users[rows]])
    rows = np.flatnonzero(data.split == 2)
    assert result.metrics["test/rows"] == len(rows)
    own = table[data.users[rows], data.items[rows]]
    assert result.metrics["test/auc"] == auc(data.labels[rows], own)
    gains: dict[str, list[float]] = {"test/": [], "test/full/": []}
    lists = arena.test.lists
    assert lists is not None
    starts = range(0, len(lists), 10)
    for at in starts:
        user, target = data.users[lists.rows[at]], lists.items[at]
        assert target == data.items[lists.rows[at]] and data.labels[lists.rows[at]] == 1
        unseen = sorted(set(range(1, 40)) - set(data.items[data.users == user].tolist()))
        assert set(lists.items[at + 1 : at + 10]) <= set(unseen)
        for name, others in (
            ("test/", lists.items[at + 1 : at + 10]),
            ("test/full/", np.array(unseen)),
        ):
            values = table[user, others]
            rank = 1 + (values > table[user, target]).sum()
            rank += (values == table[user, target]).sum() / 2
            gains[name].append(1 / np.log2(rank + 1) if rank <= 10 else 0)
    assert len(starts) == data.labels[rows].sum()
    for name, values in gains.items():
        assert result.metrics[f"{name}ndcg@10"] == pytest.approx(np.mean(values), abs=1e-9)
    kept = result.predictions
    assert kept["test/users"].tolist() == [data.user_ids[user] for user in data.users[rows]]
    assert auc(kept["test/labels"], kept["test/scores"]) == result.metrics["test/auc"]


def test_cold_rows_have_an_auc_by_group_and_no_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback(groups=True)
    arena = Arena(job_of(data, tmp_path, monkeypatch))
    assert arena.valid.lists is None and arena.test.lists is None
    scores = np.random.default_rng(1).normal(size=len(data))
    result = arena.result(lambda pairs: scores[pairs.rows], {}, full=lambda rows: 1 / 0)
    for number, name in ((1, "new_users"), (2, "new_items"), (3, "cross")):
        mine = np.flatnonzero((data.split == 2) & (data.group == number))
        expected = auc(data.labels[mine], scores[mine].astype(np.float32))
        assert result.metrics[f"test/{name}/auc"] == expected
        assert result.metrics[f"test/{name}/rows"] == len(mine)
    assert not any("ndcg" in name for name in result.metrics)
    assert set(arena.evaluate(lambda pairs: scores[pairs.rows])) == {"auc"}


def test_a_group_of_one_class_has_no_auc_and_a_split_of_one_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback(groups=True)
    only = dataclasses.replace(data, labels=np.where(data.group == 3, 1, data.labels))
    result = Arena(job_of(only, tmp_path, monkeypatch)).result(lambda p: np.zeros(len(p)), {})
    assert "test/cross/rows" in result.metrics and "test/cross/auc" not in result.metrics
    none = dataclasses.replace(data, labels=np.zeros_like(data.labels))
    with pytest.raises(Unavailable, match="not both likes and dislikes"):
        Arena(job_of(none, tmp_path, monkeypatch)).evaluate(lambda pairs: np.zeros(len(pairs)))


def test_scores_of_another_number_or_of_none_are_an_error(arena: Arena):
    with pytest.raises(ValueError, match=r"pairs have scores of shape \(3,\)"):
        arena.evaluate(lambda pairs: np.zeros(3))
    for wrong in (np.nan, np.inf, 1e300):
        with (
            np.errstate(over="ignore"),
            pytest.raises(FloatingPointError, match=r"44 of 44 .* smaller step size"),
        ):
            arena.evaluate(lambda pairs, wrong=wrong: np.full(len(pairs), wrong))


# --- what stays sealed --------------------------------------------------------------------------
def test_nothing_before_the_result_has_read_a_test_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback()
    arena = Arena(job_of(data, tmp_path, monkeypatch))
    assert (arena.sealed.labels[arena.sealed.rows("test")] == -1).all()
    other = dataclasses.replace(
        data,
        labels=np.where(data.split == 2, 1 - data.labels, data.labels).astype(np.int8),
        ratings=np.where(data.split == 2, 7 - data.ratings, data.ratings),
    )
    turned = Arena(job_of(other, tmp_path / "other", monkeypatch))
    scores = np.random.default_rng(2).normal(size=(data.n_users, data.n_items))

    def score(pairs: Pairs) -> np.ndarray:
        return scores[data.users[pairs.rows], pairs.items]

    assert arena.evaluate(score) == turned.evaluate(score)
    assert np.array_equal(arena.valid.lists.items, turned.valid.lists.items)  # type: ignore[union-attr]
    assert "test" not in vars(arena) and "test" not in vars(turned)
    ours, theirs = (one.result(score, {}).metrics for one in (arena, turned))
    assert {k: v for k, v in ours.items() if k.startswith("valid")} == {
        k: v for k, v in theirs.items() if k.startswith("valid")
    }
    assert ours["test/auc"] == pytest.approx(1 - theirs["test/auc"])


# --- items' texts and pictures ------------------------------------------------------------------
def test_vectors_have_a_zero_row_for_padding_and_for_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback()
    data = dataclasses.replace(data, titles=["", "", *data.titles[2:]])
    data.has_picture[[3, 4]] = False
    arena = Arena(job_of(data, tmp_path, monkeypatch))
    texts, pictures = arena.text_vectors("tiny"), arena.image_vectors("tiny")
    assert len(texts) == len(pictures) == 40 and texts.dtype == pictures.dtype == np.float32
    assert np.flatnonzero(~texts.any(axis=1)).tolist() == [0, 1]
    assert np.flatnonzero(~pictures.any(axis=1)).tolist() == [0, 3, 4]
    assert arena.notes == [
        "1 of 39 items of toy have no text; 0 texts are longer than tiny reads",
        "2 of 39 items of toy have no picture (0 unreadable)",
    ]


def test_no_pictures_and_no_encoder_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataclasses.replace(feedback(), has_picture=np.zeros(40, bool), pictures=())
    arena = Arena(job_of(data, tmp_path, monkeypatch))
    assert not arena.has_pictures
    with pytest.raises(Unavailable, match="toy has no pictures of its items here"):
        arena.image_vectors("tiny")
    with pytest.raises(RequestError, match="--text-encoder"):
        arena.text_vectors("none")


# --- explanations and latency -------------------------------------------------------------------
def test_explanations_are_kept_and_their_bleu_is_on_the_papers_scale(arena: Arena):
    texts = np.array(["you like long slow films about space", "it has a good cast", "who knows"])
    references = np.array(["you like slow films about deep space", "it has a great cast", ""])
    columns = {f"explain/{name}": np.array(["x"] * 3) for name in recommending.EXPLAINED}
    columns |= {"explain/texts": texts, "explain/references": references}
    result = arena.result(lambda pairs: np.zeros(len(pairs)), {}, explain=lambda held: columns)
    value, signature = bleu(references[:2].tolist(), texts[:2].tolist())
    assert result.metrics["test/bleu"] == value / 100
    assert result.predictions["explain/texts"].tolist() == texts.tolist()
    assert result.notes[-1] == f"BLEU over 2 of 3 explanations, {signature}"
    del columns["explain/evidence"]
    with pytest.raises(ValueError, match="explanations lack evidence"):
        arena.result(lambda pairs: np.zeros(len(pairs)), {}, explain=columns)


def test_a_meter_times_single_pairs(arena: Arena, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recommending, "METER", meter := Meter(queries=4, warmup=2))
    asked: list[int] = []

    def score(pairs: Pairs) -> np.ndarray:
        asked.append(len(pairs))
        return np.zeros(len(pairs))

    arena.result(score, {})
    assert asked[-7] > 1 and asked[-6:] == [1] * 6
    assert len(meter.latency_ms) == 4 and 0 < meter.median_ms < 1000


# --- settings -----------------------------------------------------------------------------------
def test_presets_set_the_same_sizes_and_none_is_out_of_range():
    names = {field.name for field in dataclasses.fields(TasteSettings)}
    for preset in SAMPLES.values():
        assert set(preset) <= names and TasteSettings(**preset)
    with pytest.raises(ValueError, match="negatives is out of range"):
        TasteSettings(negatives=0)


def test_blocks_are_all_rows_once():
    assert [list(range(10))[at] for at in blocks(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_protocol_loads_without_torch():
    code = "import sys, reprokit.recommending, reprokit.tastes; print(sorted(sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = set(re.findall(r"'(\w+)'", found.stdout))
    assert not loaded & {"torch", "transformers", "sklearn", "matplotlib", "polars"}
