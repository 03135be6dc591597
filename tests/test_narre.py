"""NARRE: what it reads, its mathematics beside plain loops, and a run from end to end."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, number

from reprokit import narre, recommending
from reprokit.feedback import Feedback, history_ends
from reprokit.narre import (
    NARRESettings,
    build,
    cut,
    narre_loss,
    quantile,
    review_lists,
    run_narre,
    training_texts,
)
from reprokit.progress import Progress
from reprokit.runs import Job, Run, Unavailable

SMALL = NARRESettings(
    word_dim=6,
    filters=5,
    dim=4,
    min_count=1,
    covered=1.0,
    max_epochs=2,
    negatives=9,
    rated_rows=0,
    rank_rows=0,
    valid_rows=0,
    valid_lists=0,
)
KINDS = ("dragons", "trains")


def world(n_users: int = 9, n_items: int = 30, each: int = 12, seed: int = 0) -> Feedback:
    """Users like the items of their own parity and say in a review what the item is about. Some
    write nothing. User 8 has no training review."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(1, n_users), each)
    items = np.concatenate(
        [rng.permutation(np.arange(1, n_items))[:each] for _ in range(1, n_users)]
    )
    labels = ((users + items) % 2 == 0).astype(np.int8)
    split = np.digitize(np.tile(np.arange(each), n_users - 1), [8, 10]).astype(np.int8)
    starts = np.concatenate([[0, 0], np.cumsum(np.full(n_users - 1, each))])
    reviews = [
        f"Seen on day {day}. {'Great' if liked else 'Awful'} film with {KINDS[item % 2]}!"
        + " More to say." * int(rng.integers(3))
        for day, (item, liked) in enumerate(zip(items.tolist(), labels.tolist(), strict=True))
    ]
    for at in np.flatnonzero((users == 8) & (split == 0) | (rng.random(len(users)) < 0.1)):
        reviews[at] = ""
    return Feedback(
        name="toy",
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.where(labels, 5, 2).astype(np.float32),
        times=rng.permutation(len(users)) + 1000 * np.tile(np.arange(each), n_users - 1),
        labels=labels,
        split=split,
        group=np.zeros(len(users), np.int8),
        starts=starts,
        history_end=history_ends(users, split, starts),
        user_ids=["", *(f"u{user}" for user in range(1, n_users))],
        item_ids=["", *(f"i{item}" for item in range(1, n_items))],
        titles=["", *(f"Title {item}" for item in range(1, n_items))],
        genres=[(), *((KINDS[item % 2],) for item in range(1, n_items))],
        tags=[()] * n_items,
        people=[()] * n_items,
        descriptions=[""] * n_items,
        domain=np.zeros(n_items, np.int8),
        demographics={},
        reviews=reviews,
    )


def with_reviews(data: Feedback, changed: dict[int, str]) -> Feedback:
    assert data.reviews is not None
    return dataclasses.replace(
        data, reviews=[changed.get(at, text) for at, text in enumerate(data.reviews)]
    )


def job_of(
    data: Feedback, folder: Path, monkeypatch: pytest.MonkeyPatch, settings: Any, seed: int = 0
) -> Job:
    monkeypatch.setattr(recommending, "load", lambda job: data)
    run = Run("explainrec", "narre", data.name, settings, seed, "of the test")
    return Job(run, folder, folder, 20.0, Progress(quiet=True))


def model_of(data: Feedback, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model, _ = build(data.sealed(), SMALL)
    for side in (model.user, model.item):
        # Every word lowers what filters see, so that padding, were it read, would be the maximum.
        side.words.weight.data.abs_()
        side.filters.data.abs_().neg_()
        torch.nn.init.constant_(side.filter_bias, 1.0)
    return model.eval()


def scores(model: Any, data: Feedback, rows: np.ndarray, grad: bool = False) -> np.ndarray:
    columns = [torch.from_numpy(c[rows].astype(np.int64)) for c in (data.users, data.items)]
    with torch.set_grad_enabled(grad):
        return model.score(*columns, torch.from_numpy(rows)).detach().numpy()


# --- what is read -------------------------------------------------------------------------------
def test_reviews_are_those_of_training_events_and_word_for_word():
    data = world()
    texts = training_texts(data, "NARRE", 1)
    assert data.reviews is not None
    wanted = [at for at in data.rows("train").tolist() if data.reviews[at]]
    assert texts.events.tolist() == [-1, *wanted] and texts.lengths[0] == 0
    for at in (1, 5, len(texts) - 1):
        words = texts.words[texts.starts[at] : texts.starts[at + 1]]
        assert [texts.vocabulary[word] for word in words] == narre.tokens(
            data.reviews[texts.events[at]]
        )
        assert texts.users[at] == data.users[texts.events[at]]
        assert texts.items[at] == data.items[texts.events[at]]


def test_rare_and_refused_words_are_left_out_and_a_review_of_nothing_else_too():
    data = world()
    data = with_reviews(data, {0: "unheard", 1: "unheard-of great the great"})
    texts = training_texts(data, "NARRE", 3, lambda word: word != "the")
    assert "unheard" not in texts.vocabulary and "the" not in texts.vocabulary
    assert 0 not in texts.events.tolist()
    words = texts.words[texts.starts[1] : texts.starts[2]]
    assert texts.events[1] == 1 and [texts.vocabulary[word] for word in words] == ["great"] * 2


def test_a_review_is_cut_behind_its_first_words():
    texts = training_texts(world(), "NARRE", 1)
    short = cut(texts, 4)
    assert short.lengths.tolist() == np.minimum(texts.lengths, 4).tolist()
    for at in range(1, len(texts)):
        mine = slice(short.starts[at], short.starts[at + 1])
        first = slice(texts.starts[at], texts.starts[at] + 4)
        assert short.words[mine].tolist() == texts.words[first].tolist()


def test_lists_keep_the_latest_reviews_of_each_owner():
    owners = np.array([0, 1, 1, 3, 1, 3])
    times = np.array([0, 50, 10, 5, 30, 5])
    assert review_lists(owners, times, 5, 1.0).tolist() == [
        [0, 0, 0],
        [2, 4, 1],
        [0, 0, 0],
        [0, 3, 5],
        [0, 0, 0],
    ]
    assert review_lists(owners, times, 5, 0.5).tolist() == [[0, 0], [4, 1], [0, 0], [3, 5], [0, 0]]


def test_the_quantile_counts_owners_that_have_any():
    counts = np.array([0, 0, 0, *range(1, 11)])
    assert [quantile(counts, share) for share in (0.1, 0.9, 0.91, 1.0)] == [1, 9, 10, 10]


def test_reviews_of_held_out_events_are_never_read():
    data = world()
    held = np.flatnonzero(data.split > 0)
    other = with_reviews(data, {int(at): "Seen on day 3. Awful awful trains!" for at in held})
    one, two = model_of(data), model_of(other)
    for name, tensor in one.named_buffers():
        assert torch.equal(tensor, dict(two.named_buffers())[name]), name
    assert np.array_equal(scores(one, data, held), scores(two, other, held))


@pytest.mark.parametrize("grad", [True, False])
def test_the_review_of_the_event_itself_changes_nothing_for_its_own_row(grad: bool):
    data = world()
    row = 3
    assert data.split[row] == 0 and data.reviews is not None and data.reviews[row]
    other = with_reviews(data, {row: "Awful dragons dragons! Seen on day 5"})
    one, two = model_of(data), model_of(other)
    state = one.state_dict()  # the same weights, though words are numbered anew
    old, new = (training_texts(d, "NARRE", 1).vocabulary for d in (data, other))
    for name in ("user.words.weight", "item.words.weight"):
        state[name] = state[name][[old.index(word) for word in new]]
    two.load_state_dict(state)
    rows = np.flatnonzero((data.users == data.users[row]) & (data.split == 0))
    before, after = scores(one, data, rows, grad), scores(two, other, rows, grad)
    own = rows == row
    assert abs(before[own] - after[own]).max() < 1e-6
    assert (abs(before[~own] - after[~own]) > 1e-6).all()  # the user's other rows do read it


# --- the mathematics ----------------------------------------------------------------------------
def plain_side(model: Any, side: Any, owner: int, row: int) -> tuple[np.ndarray, list[float]]:
    """q + X of one owner, and the weights of its reviews: loops over reviews and words."""
    table, filters = number(side.words.weight), number(side.filters)
    vectors, logits, weights = [], [], []
    for review in side.lists[owner].tolist():
        if review == 0 or int(model.events[review]) == row:
            continue
        words = model.flat[model.starts[review] : model.starts[review + 1]].tolist()
        best = np.zeros(filters.shape[2])
        for at in range(len(words)):
            total = number(side.filter_bias).copy()
            for offset, word in enumerate(words[at : at + 3]):
                total += table[word] @ filters[offset]
            best = np.maximum(best, total)
        vectors.append(best)
        other = np.maximum(number(side.other_ids.weight)[int(side.others[review])], 0)
        inner = best @ number(side.of_review) + other @ number(side.of_other) + number(side.bias)
        logits.append(float(np.maximum(inner, 0) @ number(side.weigh)))
    mixed = np.zeros(filters.shape[2])
    if vectors:
        weights = (np.exp(logits) / np.exp(logits).sum()).tolist()
        mixed = sum(weight * vector for weight, vector in zip(weights, vectors, strict=True))
    own = number(side.ids.weight)[owner]
    return own + mixed @ number(side.out) + number(side.out_bias), weights


@pytest.mark.parametrize("grad", [True, False])
def test_scores_equal_plain_loops_with_and_without_kept_vectors(grad: bool):
    data, model = world(), model_of(world())
    torch.nn.init.normal_(model.user.rating_bias.weight)
    torch.nn.init.normal_(model.item.rating_bias.weight)
    rows = np.arange(0, len(data), 3)
    wanted = []
    for row in rows.tolist():
        user, item = int(data.users[row]), int(data.items[row])
        x, _ = plain_side(model, model.user, user, row)
        y, _ = plain_side(model, model.item, item, row)
        rating = np.maximum(x * y, 0) @ number(model.last) + number(model.mean)[0]
        rating += number(model.user.rating_bias.weight)[user, 0]
        wanted.append(rating + number(model.item.rating_bias.weight)[item, 0])
    np.testing.assert_allclose(scores(model, data, rows, grad), wanted, atol=1e-5)


def test_the_most_attended_review_has_the_greatest_weight():
    data, model = world(), model_of(world())
    for weight in (model.item.weigh, model.item.of_review):
        torch.nn.init.normal_(weight)
    items = torch.arange(len(data.item_ids))
    with torch.inference_mode():
        found = model.most_attended(items, torch.full_like(items, -5)).tolist()
    for item, chosen in enumerate(found):
        mine = [n for n in model.item.lists[item].tolist() if n]
        _, weights = plain_side(model, model.item, item, -5)
        assert chosen == (mine[int(np.argmax(weights))] if mine else 0)
    assert 0 in found and len(set(found)) > 10


def test_padding_of_words_and_of_lists_changes_nothing():
    data, model = world(), model_of(world())
    words = model.texts_of(torch.arange(5))
    assert not words[0].any() and (words[1:] > 0).any(1).all()
    longer = torch.nn.functional.pad(words, (0, 7))
    torch.testing.assert_close(model.user.encode(longer), model.user.encode(words))
    alone = torch.cat([model.user.encode(model.texts_of(torch.tensor([n]))) for n in range(5)])
    torch.testing.assert_close(alone, model.user.encode(words))
    rows = np.arange(len(data))
    before = scores(model, data, rows)
    for side in (model.user, model.item):
        side.lists = torch.nn.functional.pad(side.lists, (3, 2))
    np.testing.assert_allclose(scores(model, data, rows), before, atol=1e-6)


def test_without_reviews_attention_gives_zeros():
    data, model = world(), model_of(world())
    owners = torch.tensor([8])
    assert not model.user.lists[8].any()
    with torch.inference_mode():
        _, weights, mixed = model.read(model.user, owners, torch.tensor([0]))
    assert not weights.any() and not mixed.any()
    assert np.isfinite(scores(model, data, np.flatnonzero(data.users == 8))).all()


def test_vectors_are_kept_until_the_weights_change(monkeypatch: pytest.MonkeyPatch):
    data, model = world(), model_of(world())
    rows = np.arange(20)
    before = scores(model, data, rows)
    other = model_of(data, seed=1)
    model.eval()
    assert len(model.kept) == 2  # evaluation again: nothing has changed
    for side, (encoded, keys) in model.kept.items():
        assert torch.equal(keys, encoded @ side.of_review + side.bias)
    monkeypatch.setattr(type(model.user), "keys", None)  # not made again for another batch
    np.testing.assert_array_equal(scores(model, data, rows), before)
    monkeypatch.undo()
    model.load_state_dict(other.state_dict())
    assert not np.allclose(before, scores(other, data, rows))
    np.testing.assert_array_equal(scores(model, data, rows), scores(other, data, rows))
    model.train()
    assert not model.kept


def test_the_loss_is_half_the_squared_error_and_decays_four_matrices_alone():
    data, model = world(), model_of(world())
    rows = torch.arange(6)
    users, items = (torch.from_numpy(c[:6].astype(np.int64)) for c in (data.users, data.items))
    ratings = torch.from_numpy(data.ratings[:6])
    errors = number(model.score(users, items, rows)) - number(ratings)
    squares = sum(
        float(number(m).__pow__(2).sum())
        for side in (model.user, model.item)
        for m in (side.of_review, side.of_other)
    )
    losses = narre_loss(model, ratings, users, items, rows, 0.3)
    np.testing.assert_allclose(number(losses), errors**2 / 2 + 0.3 * squares / 2, atol=1e-5)
    losses.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    for side in (model.user, model.item):
        assert not side.words.weight.grad[0].any() and not side.words.weight[0].any()


def test_dropout_acts_in_training_alone():
    data, model = world(), model_of(world())
    rows = np.arange(10)
    assert np.array_equal(scores(model, data, rows, True), scores(model, data, rows, True))
    model.train()
    assert not np.array_equal(scores(model, data, rows, True), scores(model, data, rows, True))


# --- runs ---------------------------------------------------------------------------------------
def test_a_run_learns_explains_and_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = world(30, 30, 12)
    monkeypatch.setattr(narre, "EXPLAINED_AT_ONCE", 4)
    settings = dataclasses.replace(
        SMALL, lr=0.02, batch_size=32, max_epochs=10, dropout=0.0, explain_rows=15
    )
    found = [run_narre(job_of(data, tmp_path / str(at), monkeypatch, settings)) for at in range(2)]
    one, two = (result.predictions for result in found)
    assert all(np.array_equal(one[name], two[name]) for name in one) and set(one) == set(two)
    assert found[0].metrics == found[1].metrics
    assert found[0].metrics["valid/auc"] > 0.85 and found[0].metrics["test/auc"] > 0.8
    assert found[0].selection["metric"] == "auc"
    assert any("1 of 29 users" in note for note in found[0].notes)
    said = one["explain/texts"]
    assert len(said) == 15 and sum("film with" in text for text in said) > 10
    assert data.reviews is not None
    train = {i: [] for i in data.item_ids}
    for event in data.rows("train"):
        train[data.item_ids[data.items[event]]].append(data.reviews[event])
    for user, item, text, evidence in zip(
        one["explain/users"], one["explain/items"], said, one["explain/evidence"], strict=True
    ):
        assert text == "" or any(text in review for review in train[item])
        assert json.loads(evidence)["reviewer"] != user
    pairs = set(zip(one["test/users"], one["test/items"], strict=True))
    assert set(zip(one["explain/users"], one["explain/items"], strict=True)) <= pairs


def test_what_is_chosen_by_rmse_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = dataclasses.replace(SMALL, chosen_by="rmse", explain_rows=0)
    result = run_narre(job_of(world(), tmp_path, monkeypatch, settings))
    assert result.selection["metric"] == "negative rmse" and -3 < result.selection["value"] < 0
    assert not any(name.startswith("explain/") for name in result.predictions)


def test_data_without_reviews_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataclasses.replace(world(), reviews=None)
    with pytest.raises(Unavailable, match=r"^toy has no reviews, and NARRE learns from their text"):
        run_narre(job_of(data, tmp_path, monkeypatch, SMALL))
    silent = dataclasses.replace(data, reviews=[""] * len(data))
    with pytest.raises(
        Unavailable, match=r"^toy: no training review has a word that occurs 1 time"
    ):
        training_texts(silent, "NARRE", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"covered": 0.0},
        {"dim": 0},
        {"dropout": 1.0},
        {"chosen_by": "test"},
        {"l2": -1.0},
        {"lr": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NARRESettings(**wrong)


def test_presets_are_settings_and_estimates_grow_with_them():
    sizes = {"users": 100, "items": 50, "train": 1000, "reviewed": 1}
    found = [
        narre.SYSTEM.estimate(narre.SYSTEM.configure("x", preset, {}), sizes)
        for preset in ("demo", "small", "paper")
    ]
    assert found[0].seconds < found[1].seconds < found[2].seconds


def test_importing_the_systems_loads_no_torch():
    code = "import sys, reprokit.narre, reprokit.a3ncf; print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert found.stdout == "False\n", found.stderr
