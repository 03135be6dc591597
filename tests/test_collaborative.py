"""MF, LightGCN and SASRec against plain computations with the same weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reprokit.collaborative import MF, LightGCN, normalised_graph, pointwise
from reprokit.sequential import SASRec


def test_mf_scores_are_dot_products():
    model = MF(5, 7, 3, 1.0)
    users, items = torch.tensor([1, 4]), torch.tensor([2, 6])
    expected = torch.stack(
        [model.users.weight[u] @ model.items.weight[i] for u, i in [(1, 2), (4, 6)]]
    )
    torch.testing.assert_close(model.score(users, items), expected)


def test_pointwise_loss_is_binary_cross_entropy_of_each_row():
    model = MF(5, 7, 3, 1.0)
    users, items, labels = torch.tensor([1, 4]), torch.tensor([2, 6]), torch.tensor([1, 0])
    p = torch.sigmoid(model.score(users, items))
    losses = pointwise(model, labels, users=users, items=items)
    torch.testing.assert_close(losses, torch.stack([-p[0].log(), -(1 - p[1]).log()]))


def test_the_graph_of_a_hand_example_is_normalised_by_both_degrees():
    # Users 0, 1, 2; items 0, 1, 2. User 0 likes items 0 and 1, user 1 likes item 1; user 2 and
    # item 2 have no edge. A repeated like counts once.
    edges, weight = normalised_graph(3, 3, np.array([0, 0, 1, 0]), np.array([0, 1, 1, 1]))
    dense = np.zeros((6, 6))
    dense[edges[0], edges[1]] = weight
    expected = np.zeros((6, 6))
    expected[0, 3] = expected[3, 0] = 1 / math.sqrt(2 * 1)
    expected[0, 4] = expected[4, 0] = 1 / math.sqrt(2 * 2)
    expected[1, 4] = expected[4, 1] = 1 / math.sqrt(1 * 2)
    np.testing.assert_allclose(dense, expected, atol=1e-7)
    assert edges.shape == (2, 6)


def lightgcn() -> tuple[LightGCN, Tensor]:
    users, items = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 4])
    model = LightGCN(4, 5, 6, 0.1, 2, users, items)
    dense = torch.zeros(9, 9)
    dense[model.edges[0], model.edges[1]] = model.weight
    return model, dense


def test_lightgcn_equals_dense_propagation():
    model, dense = lightgcn()
    e0 = model.nodes.weight
    expected = (e0 + dense @ e0 + dense @ dense @ e0) / 3
    torch.testing.assert_close(model.propagate(), expected)
    users, items = torch.tensor([0, 3]), torch.tensor([1, 4])
    scores = (expected[:4][users] * expected[4:][items]).sum(-1)
    torch.testing.assert_close(model.score(users, items), scores)


def test_lightgcn_gradients_equal_those_of_dense_propagation():
    model, dense = lightgcn()
    target = torch.randn(9, 6)
    (model.propagate() * target).sum().backward()
    e0 = model.nodes.weight.detach().clone().requires_grad_()
    ((e0 + dense @ e0 + dense @ dense @ e0) / 3 * target).sum().backward()
    torch.testing.assert_close(model.nodes.weight.grad, e0.grad)


def test_the_gradient_of_a_large_batch_is_the_same_bytes_every_time():
    """Indexing instead of an embedding look-up adds a repeated row's gradients in any order."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = LightGCN(50, 60, 64, 0.1, 2, rng.integers(0, 50, 500), rng.integers(0, 60, 500))
    users, items = torch.randint(0, 50, (4096,)), torch.randint(0, 60, (4096,))
    labels = torch.randint(0, 2, (4096,))
    gradients = []
    for _ in range(10):
        model.zero_grad()
        pointwise(model, labels, users=users, items=items).mean().backward()
        gradients.append(model.nodes.weight.grad.clone())
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_a_node_without_edges_keeps_its_start_over_layers_plus_one():
    model, _ = lightgcn()
    torch.testing.assert_close(model.propagate()[2], model.nodes.weight[2] / 3)


def test_lightgcn_propagates_once_per_scoring_and_never_with_old_weights():
    model, _ = lightgcn()
    model.eval()
    with torch.inference_mode():
        first = model.propagate()
        assert model.propagate() is first
    with torch.no_grad():
        model.nodes.weight.mul_(2)
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model.propagate(), first * 2)


def plain_sasrec(model: SASRec, history: Tensor) -> Tensor:
    """One history (L,) with torch's own attention layer: the state after the last item."""
    length, dim = len(history), model.items.embedding_dim
    real = (history > 0).float()[:, None]
    x = (model.items.weight[history] * math.sqrt(dim) + model.positions.weight) * real
    for block in model.blocks:
        attention = nn.MultiheadAttention(dim, block.heads)
        with torch.no_grad():
            attention.in_proj_weight[:dim] = block.query.weight
            attention.in_proj_bias[:dim] = block.query.bias
            attention.in_proj_weight[dim:] = block.key_value.weight
            attention.in_proj_bias[dim:] = block.key_value.bias
            attention.out_proj.weight.copy_(block.out.weight)
            attention.out_proj.bias.copy_(block.out.bias)
        query = block.query_norm(x)
        future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        x = query + attention(query, x, x, attn_mask=future, need_weights=False)[0]
        x = block.norm(x)
        x = (x + block.outer(torch.relu(block.inner(x)))) * real
    return model.norm(x)[-1]


@pytest.mark.parametrize("heads", [1, 2])
def test_sasrec_equals_a_plain_computation_with_the_same_weights(heads: int):
    torch.manual_seed(0)
    model = SASRec(20, 8, 0.5, 6, 2, heads, 0.2).eval()
    histories = torch.tensor([[0, 0, 3, 7, 1, 9], [4, 5, 6, 7, 8, 9], [0, 0, 0, 0, 0, 0]])
    expected = torch.stack([plain_sasrec(model, history) for history in histories])
    torch.testing.assert_close(model.encode(histories), expected, rtol=1e-5, atol=1e-5)
    items = torch.tensor([2, 3, 4])
    scores = (expected * model.items.weight[items]).sum(-1)
    torch.testing.assert_close(model.score(histories, items), scores, rtol=1e-5, atol=1e-5)


def test_sasrec_depends_on_the_order_of_the_history():
    torch.manual_seed(0)
    model = SASRec(20, 8, 0.5, 4, 2, 1, 0.0).eval()
    one, other = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[0, 2, 1, 3]])
    assert not torch.allclose(model.encode(one), model.encode(other))
