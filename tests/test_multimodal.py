"""VBPR, MMGCN and LATTICE beside plain computations, and graphs between items without a matrix."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reprokit import multimodal
from reprokit.multimodal import LATTICE, MMGCN, VBPR, Edges, SparseProduct, nearest
from reprokit.rankers import IdRanker, Seen, bpr
from reprokit.runs import RequestError

N_USERS, N_ITEMS = 5, 9
# Items 5 and 8 and user 4 have no edge; items 2 and 8 have no picture.
USERS = np.array([1, 1, 2, 2, 3, 3, 3])
ITEMS = np.array([1, 2, 3, 4, 6, 7, 1])
COLD = [5, 8]


def features() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tables = {
        "text": rng.normal(size=(N_ITEMS, 7)).astype(np.float32),
        "visual": rng.normal(size=(N_ITEMS, 10)).astype(np.float32),
    }
    for table in tables.values():
        table[0] = 0
    tables["visual"][[2, 8]] = 0
    return tables


def build(kind: str, tables: dict[str, np.ndarray] | None = None, **more) -> IdRanker:
    torch.manual_seed(0)
    tables = tables or features()
    if kind == "vbpr":
        model: IdRanker = VBPR(N_USERS, N_ITEMS, tables, 3, 4, **more)
        model.bias.weight.data.normal_()
        model.of_features.weight.data.normal_()
        return model
    sizes = (N_USERS, N_ITEMS, USERS, ITEMS, tables)
    if kind == "mmgcn":
        return MMGCN(*sizes, dim=6, visual=5, **more)
    return LATTICE(*sizes, **{"rebuild": 2, "dim": 6, "neighbours": 3, **more})


def all_scores(model: IdRanker) -> Tensor:
    return model.all_scores(users=torch.arange(N_USERS))[:, 1:]


def assert_same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# --- plain computations -------------------------------------------------------------------------
@pytest.mark.parametrize("modalities", ["visual", "text,visual"])
def test_vbpr_adds_biases_ids_and_what_a_user_sees(modalities: str):
    model, tables = build("vbpr", modalities=modalities), features()
    scores = all_scores(model)
    names, beta = modalities.split(","), model.of_features.weight[0]
    for u in range(N_USERS):
        for i in range(1, N_ITEMS):
            gamma_theta = model.users.weight[u]
            expected = model.bias.weight[i, 0] + gamma_theta[:3] @ model.items.weight[i]
            at = 0
            for number, name in enumerate(names):
                f = torch.from_numpy(tables[name][i])
                f = f / f.norm() if f.any() else f
                theta = gamma_theta[3 + 4 * number : 7 + 4 * number]
                expected = expected + theta @ (model.projections[number].weight @ f)
                expected = expected + beta[at : at + len(f)] @ f
                at += len(f)
            assert_same(scores[u, i - 1], expected)


def plain_mmgcn(model: MMGCN) -> Tensor:
    """Scores of all users and items, node by node."""
    n, leaky = N_USERS + N_ITEMS, F.leaky_relu
    near: list[list[int]] = [[] for _ in range(n)]
    for u, i in zip(USERS.tolist(), ITEMS.tolist(), strict=True):
        near[u].append(N_USERS + i)
        near[N_USERS + i].append(u)
    of_modalities = []
    for name, net in model.networks.items():
        table = torch.from_numpy(features()[name])
        if name == "visual":
            table = table @ net.reduce.weight.T + net.reduce.bias
        x = [row / row.norm().clamp(min=1e-12) for row in (*net.preference, *table)]
        for layer in net.layers:
            after = []
            for node in range(n):
                mean = torch.zeros(6)
                for other in near[node]:
                    mean = mean + layer.neighbour.weight @ x[other] / len(near[node])
                own = leaky(layer.own(x[node])) + model.ids.weight[node]
                after.append(leaky(layer.join(torch.cat([leaky(mean), own]))))
            x = after
        of_modalities.append(torch.stack(x))
    vectors = sum(of_modalities) / len(of_modalities)
    return vectors[:N_USERS] @ vectors[N_USERS + 1 :].T


def test_mmgcn_equals_a_computation_node_by_node_and_so_do_its_gradients():
    model = build("mmgcn")
    ours, expected = all_scores(model), plain_mmgcn(model)
    assert_same(ours, expected)
    weights = torch.randn(ours.shape)
    parameters = list(model.parameters())
    found = torch.autograd.grad((ours * weights).sum(), parameters)
    for a, b in zip(
        found, torch.autograd.grad((expected * weights).sum(), parameters), strict=True
    ):
        assert_same(a, b)


def dense_graph(vectors: Tensor, present: list[int], count: int) -> Tensor:
    """Cosines with the most similar items, an item of its own neighbours: (n, n)."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    cosine, kept = unit @ unit.T, torch.zeros(N_ITEMS, N_ITEMS)
    graph = torch.zeros(N_ITEMS, N_ITEMS)
    graph[torch.tensor(present)[:, None], torch.tensor(present)] = cosine
    for i in present:
        best = sorted(present, key=lambda j: (-graph[i, j].item(), j))[:count]
        kept[i, best] = 1
    return graph * kept


def normalised(graph: Tensor) -> Tensor:
    degree = graph.sum(1)
    scale = torch.zeros(N_ITEMS)
    scale = torch.where(degree > 0, degree.clamp(min=1e-6) ** -0.5, scale)
    return scale[:, None] * graph * scale


def plain_lattice(model: LATTICE, names: tuple[str, ...] = ("text", "visual")) -> Tensor:
    weights = model.weights.softmax(0)
    raw = new = torch.zeros(N_ITEMS, N_ITEMS)
    for weight, name, of in zip(weights, names, model.modalities, strict=True):
        table = torch.from_numpy(features()[name])
        present = [i for i in range(N_ITEMS) if table[i].any()]
        raw = raw + weight * normalised(dense_graph(table[present], present, 3))
        new = new + weight * dense_graph(of.projection(table[present]), present, 3)
    near = (0.9 * raw + 0.1 * normalised(new)) @ model.base.nodes.weight[N_USERS:]
    adjacency = torch.zeros(N_USERS + N_ITEMS, N_USERS + N_ITEMS)
    adjacency[USERS, N_USERS + ITEMS] = 1
    adjacency = adjacency + adjacency.T
    scale = adjacency.sum(1).clamp(min=1) ** -0.5
    smooth = scale[:, None] * adjacency * scale
    start = model.base.nodes.weight
    vectors = (start + smooth @ start + smooth @ smooth @ start) / 3
    items = vectors[N_USERS:] + F.normalize(near)
    return vectors[:N_USERS] @ items[1:].T


def test_lattice_equals_dense_matrices_and_so_do_its_gradients_when_it_builds():
    model = build("lattice").train()
    model.weights.data.copy_(torch.tensor([0.2, 0.9]))
    ours, expected = all_scores(model), plain_lattice(model)
    assert_same(ours, expected)
    weights = torch.randn(ours.shape)
    parameters = list(model.parameters())
    found = torch.autograd.grad((ours * weights).sum(), parameters)
    for a, b in zip(
        found, torch.autograd.grad((expected * weights).sum(), parameters), strict=True
    ):
        assert b.any()
        assert_same(a, b)


def test_sparse_products_have_the_gradients_of_dense_ones_with_edges_that_repeat():
    torch.manual_seed(0)
    rows, columns = torch.tensor([0, 0, 0, 2, 3, 3]), torch.tensor([1, 1, 3, 0, 3, 1])
    values, x = torch.randn(6, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    dense = torch.zeros(4, 4).index_put((rows, columns), values, accumulate=True)
    ours = SparseProduct.apply(values, x, Edges(rows, columns, 4))
    assert_same(ours, dense @ x)
    weights = torch.randn(4, 5)
    found = torch.autograd.grad((ours * weights).sum(), (values, x))
    for a, b in zip(
        found, torch.autograd.grad((dense @ x * weights).sum(), (values, x)), strict=True
    ):
        assert_same(a, b)


def test_penalties_are_the_squares_of_what_each_model_regularises():
    users, items = torch.tensor([1, 3]), torch.tensor([[1, 5], [7, 8]])
    for kind in ("vbpr", "mmgcn", "lattice"):
        model = build(kind)
        vectors = model.pair_vectors(items, users=users)
        penalty = model.penalty(users, items, *vectors)
        for row, (u, (i, j)) in enumerate(zip([1, 3], [(1, 5), (7, 8)], strict=True)):
            if kind == "vbpr":
                tables = (model.items.weight, model.bias.weight)
                parts = [model.users.weight[u], *(table[n] for table in tables for n in (i, j))]
                expected = sum((p**2).sum() for p in parts) / 2
            elif kind == "mmgcn":
                ids = [model.ids.weight[node] for node in (N_USERS + i, N_USERS + j)]
                expected = (model.ids.weight[u] ** 2).mean() + sum((p**2).mean() for p in ids) / 2
                expected = expected + sum((n.preference**2).mean() for n in model.networks.values())
            else:
                expected = (vectors[0][row] ** 2).sum() / 2 + (vectors[1][row] ** 2).sum() / 2
            assert_same(penalty[row], expected)


# --- neighbours ---------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [1, 4, 100])
def test_neighbours_are_the_most_similar_and_of_equals_the_first(
    rows: int, monkeypatch: pytest.MonkeyPatch
):
    # Vectors of signs have cosines that are multiples of 1/4 and exact, and most of them tie.
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(40, 4)).astype(np.float32)
    monkeypatch.setattr(multimodal, "BLOCK_BYTES", 4 * 40 * rows)
    for count in (1, 5, 39, 40):
        found = nearest(torch.from_numpy(signs), count)
        cosine = signs @ signs.T / 4
        expected = [sorted(range(40), key=lambda j: (-line[j], j))[:count] for line in cosine]
        assert found.tolist() == expected


def test_an_item_without_a_picture_is_nobody_s_visual_neighbour():
    model = build("lattice")
    visual = model.modalities[1]
    assert visual.present.tolist() == [1, 3, 4, 5, 6, 7]
    ends = torch.cat([visual.present[visual.local_rows], visual.present[visual.raw_columns]])
    assert not torch.isin(ends, torch.tensor([0, 2, 8])).any()


@pytest.mark.slow
def test_the_graph_of_movielens_25m_s_items_takes_less_than_a_gigabyte():
    script = Path(__file__).parent.parent / "benchmarks" / "item_graph.py"
    done = subprocess.run([sys.executable, script, "--most-mb", "1000"], capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


# --- the learned graph over time ----------------------------------------------------------------
def step(model: IdRanker, optimizer: torch.optim.Optimizer, number: int) -> None:
    torch.manual_seed(number)
    optimizer.zero_grad()
    loss = bpr(Seen(USERS, ITEMS, N_ITEMS), 1e-3)
    loss(model, users=torch.from_numpy(USERS), items=torch.from_numpy(ITEMS)).mean().backward()
    optimizer.step()


def test_lattice_builds_its_graph_every_second_pass_and_is_constant_between():
    model = build("lattice").train()
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    graphs = []
    for number in range(4):
        step(model, optimizer, number)
        graphs.append(model.values.clone())
        learned = [*model.modalities.parameters(), model.weights]
        # A gradient in every step, of zero where the graph is a constant.
        assert all((p.grad != 0).any() == (number % 2 == 0) for p in learned)
    assert torch.equal(graphs[0], graphs[1]) and torch.equal(graphs[2], graphs[3])
    assert not torch.equal(graphs[1], graphs[2])
    assert int(model.passes) == 4


def test_a_resumed_lattice_goes_on_with_the_same_graph_and_the_same_bytes():
    def run(stop: int) -> list[Tensor]:
        model = build("lattice", rebuild=3).train()
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        for number in range(7):
            if number == stop:
                kept = model.state_dict(), optimizer.state_dict()
                torch.manual_seed(99)
                model = build("lattice", rebuild=3).train()
                optimizer = torch.optim.Adam(model.parameters(), 0.05)
                model.load_state_dict(kept[0])
                optimizer.load_state_dict(kept[1])
            step(model, optimizer, number)
        return list(model.state_dict().values())

    whole = run(-1)
    for stop in (2, 3, 4):
        assert all(torch.equal(a, b) for a, b in zip(whole, run(stop), strict=True))


def test_evaluation_uses_the_graph_of_the_current_weights_and_counts_no_pass():
    model = build("lattice").train()
    optimizer = torch.optim.Adam(model.parameters(), 0.3)
    for number in range(3):  # the weights have moved since the last building
        step(model, optimizer, number)
    model.eval()
    with torch.inference_mode():
        ours = all_scores(model)
        kept = model.vectors()[0]
        assert model.eval().vectors()[0] is kept  # for rated pairs and for lists
    assert_same(ours, plain_lattice(model).detach())
    assert int(model.passes) == 3


def test_lattice_s_features_train_where_asked_for_and_the_graph_of_them_as_they_were_stays():
    model = build("lattice", train_features=True).train()
    before = [of.raw_values.clone() for of in model.modalities]
    step(model, torch.optim.Adam(model.parameters(), 0.05), 0)
    for of, raw in zip(model.modalities, before, strict=True):
        assert isinstance(of.features, torch.nn.Parameter) and of.features.grad.any()
        assert torch.equal(of.raw_values, raw)
    assert not any("features" in name for name, _ in build("lattice").named_parameters())


# --- all three ----------------------------------------------------------------------------------
KINDS = ("vbpr", "mmgcn", "lattice")


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_trains_and_the_same_seed_gives_the_same_bytes(kind: str):
    def trained() -> list[Tensor]:
        model = build(kind).train()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        for number in range(3):
            step(model, optimizer, number)
            if number == 0:
                assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        return list(model.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(trained(), trained(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_lists_and_the_catalogue_are_scored_alike(kind: str):
    model = build(kind, modalities="text,visual").eval()
    everything = torch.arange(1, N_ITEMS).expand(N_USERS, -1)
    with torch.inference_mode():
        lists = model.score(items=everything, users=torch.arange(N_USERS))
        assert_same(lists, all_scores(model))


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_that_nobody_liked_is_scored_by_its_features(kind: str):
    modalities = {"modalities": "text"}
    tables = features()
    before = all_scores(build(kind, tables, **modalities)).detach()
    tables["text"][COLD] = tables["text"][[1, 3]] + 0.01
    after = all_scores(build(kind, tables, **modalities)).detach()
    column = [item - 1 for item in COLD]
    assert ((after - before)[:, column].abs() > 1e-6).all()
    assert after.isfinite().all()


def test_modalities_that_are_not_there_are_refused_in_a_line():
    with pytest.raises(RequestError, match="no item has a visual vector"):
        build("vbpr", {"text": features()["text"]})
    with pytest.raises(RequestError, match="no item has a visual vector"):
        build("mmgcn", {**features(), "visual": np.zeros((N_ITEMS, 4), np.float32)})
    with pytest.raises(RequestError, match="got 'sound'"):
        build("lattice", modalities="sound")
    with pytest.raises(RequestError, match="rebuild and neighbours"):
        build("lattice", rebuild=0)


def test_a_row_whose_similarities_cancel_has_no_edges_and_no_infinite_ones():
    scale = multimodal.inverse_root(torch.tensor([4.0, 0.0, -1.0]))
    assert scale.tolist() == [0.5, 0.0, 0.0] and math.isfinite(float(scale.sum()))
