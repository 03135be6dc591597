"""Rankers by ids alone and their losses, beside plain computations with the same weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit import collaborative, sequential
from reprokit.rankers import (
    GRU4Rec,
    LightGCN,
    Ranker,
    SASRec,
    Seen,
    bpr,
    bpr_max,
    liked_sequences,
    next_ce,
    sequence_bce,
)
from reprokit.runs import RequestError

N_USERS, N_ITEMS = 5, 8
USERS = np.array([1, 1, 2, 2, 2, 3, 4, 4])
ITEMS = np.array([3, 7, 1, 3, 6, 2, 5, 4])
SEQUENCES = torch.tensor([[0, 0, 3, 7, 1, 2], [4, 5, 6, 7, 1, 3], [0, 0, 0, 0, 2, 6]])
HISTORIES = torch.tensor([[0, 3, 7, 1], [5, 6, 7, 2], [0, 0, 0, 4], [0, 0, 0, 0]])


def build(kind: str) -> Ranker:
    torch.manual_seed(0)
    if kind == "lightgcn":
        return LightGCN(N_USERS, N_ITEMS, USERS, ITEMS, dim=6)
    if kind == "sasrec":
        return SASRec(N_ITEMS, 6, 5, 2, 2, 0.0, init_std=0.5)
    return GRU4Rec(N_ITEMS, 6, 7, 2, 0.0)


def seen() -> Seen:
    return Seen(USERS, ITEMS, N_ITEMS)


# --- negatives and pairs ------------------------------------------------------------------------
def test_negatives_are_all_items_that_the_user_has_not_liked_equally_often():
    torch.manual_seed(0)
    drawn = seen().negatives(torch.tensor([1, 3]), 14_000)
    for liked, row in (({3, 7}, drawn[0]), ({2}, drawn[1])):
        share = torch.bincount(row, minlength=N_ITEMS) / 14_000
        expected = [0 if item in {0, *liked} else 1 / (7 - len(liked)) for item in range(N_ITEMS)]
        torch.testing.assert_close(share, torch.tensor(expected), atol=0.02, rtol=0)
        assert not share[[0, *liked]].any()


def test_without_training_pairs_there_are_no_negatives():
    with pytest.raises(RequestError, match="no training pairs"):
        Seen(USERS[:0], ITEMS[:0], N_ITEMS)


def plain_lightgcn(model: LightGCN) -> Tensor:
    """E_0 .. E_3 summed edge by edge: (n_users + n_items, D)."""
    edges = [(u, N_USERS + i) for u, i in zip(USERS.tolist(), ITEMS.tolist(), strict=True)]
    degree = [sum(node in edge for edge in edges) for node in range(N_USERS + N_ITEMS)]
    layer = model.graph.nodes.weight.detach()
    total = layer.clone()
    for _ in range(3):
        after = torch.zeros_like(layer)
        for a, b in edges:
            after[a] += layer[b] / math.sqrt(degree[a] * degree[b])
            after[b] += layer[a] / math.sqrt(degree[a] * degree[b])
        layer = after
        total += layer
    return total / 4


def test_lightgcn_scores_are_products_of_vectors_smoothed_edge_by_edge():
    model = build("lightgcn")
    vectors = plain_lightgcn(model)
    expected = vectors[[1, 4]] @ vectors[N_USERS:].T
    listed = torch.tensor([[1, 2, 3], [7, 5, 7]])
    scores = model.pair_scores(listed, users=torch.tensor([1, 4]))
    torch.testing.assert_close(scores, expected.gather(1, listed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reg", [0.0, 0.3])
def test_bpr_ranks_a_liked_item_above_a_sampled_one_and_shrinks_layer_0(reg: float):
    model = build("lightgcn")
    users, items = torch.tensor([1, 2, 4]), torch.tensor([7, 1, 5])
    torch.manual_seed(3)
    losses = bpr(seen(), reg)(model, users=users, items=items)
    torch.manual_seed(3)
    negatives = seen().negatives(users)[:, 0]
    vectors, start = plain_lightgcn(model), model.graph.nodes.weight.detach()
    for row, (u, i, j) in enumerate(zip(users, items, negatives, strict=True)):
        margin = vectors[u] @ (vectors[N_USERS + i] - vectors[N_USERS + j])
        squares = sum((start[node] ** 2).sum() for node in (u, N_USERS + i, N_USERS + j))
        expected = -torch.sigmoid(margin).log() + reg * squares / 2
        torch.testing.assert_close(losses[row], expected, rtol=1e-5, atol=1e-5)


def test_a_step_propagates_once_for_positives_and_negatives(monkeypatch: pytest.MonkeyPatch):
    model, calls = build("lightgcn"), []
    once = collaborative.LightGCN.propagate
    monkeypatch.setattr(
        collaborative.LightGCN, "propagate", lambda self: calls.append(1) or once(self)
    )
    bpr(seen(), 1e-4)(model, users=torch.tensor([1]), items=torch.tensor([3])).sum().backward()
    assert len(calls) == 1


def test_bpr_trains_a_sequence_model_for_the_user_whose_history_it_reads():
    model, users, items = build("gru"), torch.tensor([1, 2, 4, 3]), torch.tensor([3, 1, 5, 2])
    torch.manual_seed(1)
    losses = bpr(seen())(model, users=users, items=items, histories=HISTORIES)
    torch.manual_seed(1)
    negatives = seen().negatives(users)[:, 0]
    scores = model.all_scores(histories=HISTORIES)
    rows = torch.arange(4)
    expected = -torch.sigmoid(scores[rows, items] - scores[rows, negatives]).log()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


# --- every ranker -------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["lightgcn", "sasrec", "gru"])
def test_scores_of_pairs_of_lists_and_of_the_catalogue_agree(kind: str):
    model = build(kind).eval()
    context = {"histories": HISTORIES, "users": torch.tensor([1, 2, 3, 4])}
    context = {name: context[name] for name in model.inputs if name != "items"}
    listed = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 1]])
    with torch.inference_mode():
        everything = model.all_scores(**context)
        lists = model.score(items=listed, **context)
        singles = model.score(items=listed[:, 0], **context)
    assert everything.shape == (4, N_ITEMS) and (everything[:, 0] == -torch.inf).all()
    torch.testing.assert_close(lists, everything.gather(1, listed))
    torch.testing.assert_close(singles, lists[:, 0])


LOSSES = {
    "lightgcn": lambda: bpr(seen(), 1e-4),
    "sasrec": lambda: sequence_bce(seen()),
    "gru": next_ce,
    "gru-max": lambda: bpr_max(4),
}


def trained(kind: str) -> list[Tensor]:
    """The parameters after three steps."""
    model = build(kind.removesuffix("-max"))
    loss, optimizer = LOSSES[kind](), torch.optim.Adam(model.parameters(), 0.01)
    more = {"items": torch.tensor([3, 1, 5])} if kind == "lightgcn" else {"sequences": SEQUENCES}
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, users=torch.tensor([1, 2, 4]), **more).mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("kind", list(LOSSES))
def test_every_parameter_trains_and_the_same_seed_gives_the_same_bytes(kind: str):
    assert all(torch.equal(a, b) for a, b in zip(trained(kind), trained(kind), strict=True))


def test_what_is_kept_in_evaluation_is_dropped_when_weights_change_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
):
    model, calls = build("lightgcn").eval(), []
    users, items = torch.tensor([1]), torch.tensor([3])
    once = LightGCN.compute
    monkeypatch.setattr(LightGCN, "compute", lambda self: calls.append(1) or once(self))
    with torch.no_grad():
        before = model.score(users=users, items=items)
        assert torch.equal(model.eval().score(users=users, items=items), before)
        assert len(calls) == 1  # evaluated again: nothing has changed
        model.train()
        model.graph.nodes.weight.mul_(2)
        torch.testing.assert_close(model.eval().score(users=users, items=items), 4 * before)
        twice = {name: 2 * value for name, value in model.state_dict().items()}
        nn.ModuleDict({"model": model}).load_state_dict({f"model.{k}": v for k, v in twice.items()})
        torch.testing.assert_close(model.score(users=users, items=items), 16 * before)


# --- sequences ----------------------------------------------------------------------------------
def test_training_sequences_are_the_last_liked_items_of_who_has_two():
    users, sequences = liked_sequences(
        np.array([1, 1, 1, 1, 2, 4, 4]), np.array([5, 6, 7, 3, 1, 2, 4]), 3
    )
    assert users.tolist() == [1, 4]
    assert sequences.tolist() == [[6, 7, 3], [0, 2, 4]]
    with pytest.raises(RequestError, match="no training sequence"):
        liked_sequences(np.array([1, 2]), np.array([1, 1]), 3)


def plain_sasrec(net: sequential.SASRec, history: Tensor) -> Tensor:
    """One history (L,) with torch's own attention layer: the state after each item (L, D)."""
    length, dim = len(history), net.items.embedding_dim
    real = (history > 0).float()[:, None]
    x = (net.items.weight[history] * math.sqrt(dim) + net.positions.weight) * real
    for block in net.blocks:
        attention = nn.MultiheadAttention(dim, block.heads)
        parts = (block.query, block.key_value)
        with torch.no_grad():
            attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        attention.out_proj = block.out
        query = block.query_norm(x)
        future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        x = block.norm(query + attention(query, x, x, attn_mask=future, need_weights=False)[0])
        x = (x + block.outer(torch.relu(block.inner(x)))) * real
    return net.norm(x)


def test_sasrec_has_the_state_of_a_plain_computation_after_every_item():
    model = build("sasrec")
    states = model.states(SEQUENCES[:, :-1])
    for row, history in enumerate(SEQUENCES[:, :-1]):
        expected = plain_sasrec(model.network, history)
        torch.testing.assert_close(states[row], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[:, -1], model.last(SEQUENCES[:, :-1]))


def test_sasrec_reads_the_last_items_of_a_long_history_and_pads_a_short_one():
    model = build("sasrec")
    long = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(model.last(long), model.last(long[:, -5:]))
    short = torch.tensor([[6, 7]])
    padded = torch.tensor([[0, 0, 0, 6, 7]])
    torch.testing.assert_close(model.last(short), model.last(padded))
    torch.testing.assert_close(model.states(short), model.states(padded)[:, -2:])
    with pytest.raises(RequestError, match="max_len is 5"):
        model.states(long)


def test_sasrec_learns_each_next_item_against_one_that_the_user_has_not_liked():
    model, users = build("sasrec"), torch.tensor([1, 2, 4])
    torch.manual_seed(2)
    losses = sequence_bce(seen(), per_row=2.0)(model, users=users, sequences=SEQUENCES)
    torch.manual_seed(2)
    negatives = seen().negatives(users, 5)
    for row in range(3):
        states, total = plain_sasrec(model.network, SEQUENCES[row, :-1]), 0.0
        for step in range(5):
            if SEQUENCES[row, step]:
                own, other = SEQUENCES[row, step + 1], negatives[row, step]
                p = torch.sigmoid(states[step] @ model.table[own])
                q = torch.sigmoid(states[step] @ model.table[other])
                total = total - p.log() - (1 - q).log()
        torch.testing.assert_close(losses[row], total / 2, rtol=1e-5, atol=1e-5)


def plain_gru(model: GRU4Rec, items: Tensor) -> Tensor:
    """The states after each of a sequence's items, without padding: (n, D)."""
    return model.network.dense(model.network.gru(model.table[items][None])[0])[0]


def test_gru4rec_has_the_state_of_the_sequence_without_its_padding():
    model = build("gru")
    states = model.states(HISTORIES)
    for row, history in enumerate(HISTORIES):
        items = history[history > 0]
        if len(items):
            expected = plain_gru(model, items)
            torch.testing.assert_close(states[row, -len(items) :], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(states[:3, -1], model.last(HISTORIES)[:3])


def test_gru4rec_tells_people_without_a_history_what_it_has_learned_and_nothing_drawn():
    model = build("gru")
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        next_ce()(model, users=torch.tensor([1, 2, 4]), sequences=SEQUENCES).mean().backward()
        optimizer.step()
    torch.testing.assert_close(model.last(HISTORIES)[3], model.network.dense.bias)


def test_gru4rec_learns_a_softmax_over_the_catalogue_at_every_step():
    model = build("gru")
    losses = next_ce(per_row=3.0)(model, users=torch.tensor([1, 2, 4]), sequences=SEQUENCES)
    for row, sequence in enumerate(SEQUENCES):
        items = sequence[sequence > 0]
        logits = plain_gru(model, items[:-1]) @ model.table[1:].T
        expected = F.cross_entropy(logits, items[1:] - 1, reduction="sum") / 3
        torch.testing.assert_close(losses[row], expected, rtol=1e-5, atol=1e-5)


def test_bpr_max_weighs_sampled_items_by_their_softmax():
    model = build("gru")
    torch.manual_seed(5)
    losses = bpr_max(4, reg=0.7)(model, users=torch.tensor([1, 2, 4]), sequences=SEQUENCES)
    torch.manual_seed(5)
    drawn = (1 + torch.randperm(N_ITEMS - 1)[:4]).tolist()
    met = 0
    for row, sequence in enumerate(SEQUENCES):
        items, total = sequence[sequence > 0], 0.0
        for state, own in zip(plain_gru(model, items[:-1]), items[1:], strict=True):
            met += int(own) in drawn
            others = torch.stack([state @ model.table[j] for j in drawn if j != own])
            weights = others.softmax(0)
            ranked = (weights * torch.sigmoid(state @ model.table[own] - others)).sum()
            total = total - ranked.log() + 0.7 * (weights * others**2).sum()
        torch.testing.assert_close(losses[row], total, rtol=1e-5, atol=1e-5)
    assert met  # a next item was among the draws
    with pytest.raises(RequestError, match="at least 2"):
        bpr_max(1)
