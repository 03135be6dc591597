"""The knowledge graph, what a sequence sees of it, and MIFN."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from reprokit.knowledge import LEAK_NOTE, RELATIONS, Graph, Subgraphs, shares
from reprokit.mifn import MIFN, mifn_loss
from reprokit.runs import RequestError

LINKS = RELATIONS[:4]
N_A, N_B, N_C = 9, 8, 3
N = N_A + N_B


def links(**given):
    empty = np.zeros((0, 2), int)
    return {name: np.array(given.get(name, empty), int) for name in LINKS}


def random_graph(seed, count=9, **more):
    """A small graph in which every kind of node and edge occurs."""
    rng = np.random.default_rng(seed)
    edges = {name: rng.integers(1, N + 1, (count, 2)) for name in LINKS}
    classes = np.stack([rng.integers(1, N + 1, 8), rng.integers(0, N_C, 8)], 1)
    return edges, classes, Graph(N_A, N_B, edges, classes, N_C, **more)


def random_rows(seed, rows=30, length=5):
    rng = np.random.default_rng(seed)
    items = np.stack([rng.permutation(N)[:length] + 1 for _ in range(rows)])
    items[np.arange(length) >= rng.integers(1, length + 1, (rows, 1))] = 0
    return items


# --- the graph ----------------------------------------------------------------------------------
def neighbours(edges, classes):
    """Each node's neighbours by relation, in plain sets."""
    found = [{node: set() for node in range(1 + N + N_C)} for _ in RELATIONS]
    for kind, pairs in enumerate([*(edges[name] for name in LINKS), np.add(classes, [0, N + 1])]):
        for a, b in pairs.tolist():
            if a != b:
                found[kind][a].add(b)
                found[kind][b].add(a)
    return found


def walk(sets, starts, targets, hops):
    """Distances from both sides, step by step; both stop once one has met the other."""
    near = [dict.fromkeys(start, 0) for start in starts]
    for hop in range(1, hops + 1):
        for side in (0, 1):
            for node in [n for n, d in near[side].items() if d == hop - 1]:
                for other in set().union(*(kind[node] for kind in sets)):
                    near[side].setdefault(other, hop)
        if any(target in near[0] for target in starts[1]):
            break
    return near


def chosen_nodes(sets, sequence, n_nodes, hops):
    """The rule of the module's docstring, in plain Python."""
    own = [int(item) for item in sequence if item]
    starts = [[i for i in own if i <= N_A], [i for i in own if i > N_A]]
    near = walk(sets, starts, starts, hops)
    degree = {n: len(set().union(*(kind[n] for kind in sets))) for n in range(1 + N + N_C)}
    far = 99
    distance = {
        n: (near[0].get(n, far), near[1].get(n, far))
        for n in set(near[0]) | set(near[1])
        if n not in own
    }
    order = sorted(distance, key=lambda n: (sum(distance[n]), -degree[n], n))
    between = [n for n in order if sum(distance[n]) <= hops][: n_nodes - len(own)]
    sides = ([], [])
    for n in sorted(distance, key=lambda n: (min(distance[n]), -degree[n], n)):
        if n not in between:
            a, b = distance[n]
            sides[b < a or (a == b and N_A < n <= N)].append(n)
    room = n_nodes - len(own) - len(between)
    total = len(sides[0]) + len(sides[1])
    of_a = int(np.ceil(room * len(sides[0]) / total)) if total else 0
    of_b = min(len(sides[1]), room - min(of_a, len(sides[0])))
    of_a = room - of_b
    return own + between + sides[0][:of_a] + sides[1][:of_b]


@pytest.mark.parametrize("n_nodes", [5, 8, 12, 25])
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_sequence_sees_the_nodes_that_the_rule_names(n_nodes, hops):
    for seed in range(6):
        edges, classes, graph = random_graph(seed, count=5, n_nodes=n_nodes, hops=hops)
        items, sets = random_rows(seed), neighbours(edges, classes)
        found = graph.nodes(items)
        assert found.shape == (len(items), n_nodes)
        for row, sequence in zip(found.tolist(), items, strict=True):
            want = chosen_nodes(sets, sequence, n_nodes, hops)
            assert row == want + [0] * (n_nodes - len(want))


@pytest.mark.parametrize("wide", [0.0, 1.0])
def test_neighbours_as_bits_and_as_lists_are_the_same(monkeypatch, wide):
    _, _, usual = random_graph(0, n_nodes=9)
    monkeypatch.setattr("reprokit.knowledge.WIDE", wide)
    _, _, graph = random_graph(0, n_nodes=9)
    assert len(graph._wide) == (0 if wide else (usual._first[1:] > usual._first[:-1]).sum())
    np.testing.assert_array_equal(graph.nodes(random_rows(0)), usual.nodes(random_rows(0)))


def test_links_are_those_of_the_graph_the_sequence_and_self_loops():
    edges, classes, graph = random_graph(3, n_nodes=12)
    items, sets = random_rows(3), neighbours(edges, classes)
    nodes = graph.nodes(items)
    linked = graph.adjacency(nodes, items)
    want = np.zeros_like(linked)
    for row, (own, sequence) in enumerate(zip(nodes.tolist(), items.tolist(), strict=True)):
        follow = {frozenset(pair) for pair in pairwise(sequence)}
        for i, a in enumerate(own):
            for j, b in enumerate(own):
                for kind in range(5):
                    known = b in sets[kind][a] or a == b or frozenset((a, b)) in follow
                    want[row, kind, i, j] = a > 0 and b > 0 and known
    np.testing.assert_array_equal(linked, want)


def test_connecting_nodes_come_first_and_quotas_follow_the_sides():
    star = [(1, n) for n in (3, 4, 5, 6)] + [(10, n) for n in (12, 13)]
    edges = links(also_bought=star, also_viewed=[(1, 14), (14, 10)])
    graph = Graph(N_A, N_B, edges, np.zeros((0, 2), int), 0, n_nodes=6)
    assert graph.nodes(np.array([[1, 10]])).tolist() == [[1, 10, 14, 3, 4, 12]]
    assert shares(6, 4, 2) == (4, 2) and shares(3, 4, 2) == (2, 1)
    assert shares(5, 1, 9) == (1, 4) and shares(5, 0, 2) == (0, 2) and shares(9, 3, 2) == (3, 2)


def test_both_searches_stop_where_the_sides_meet():
    edges = links(also_bought=[(1, 10), (1, 2), (2, 3)])
    graph = Graph(N_A, N_B, edges, np.zeros((0, 2), int), 0, n_nodes=6)
    assert graph.nodes(np.array([[1, 10], [1, 0]])).tolist() == [
        [1, 10, 2, 0, 0, 0],  # they meet after one step: 3 is not reached
        [1, 2, 10, 3, 0, 0],
    ]


def test_items_that_training_does_not_see_have_no_edges():
    visible = np.ones(1 + N, bool)
    visible[[3, 12]] = False
    edges = links(also_bought=[(1, 3), (1, 4), (3, 10), (12, 4)])
    classes = np.array([(12, 0), (1, 1)])
    graph = Graph(N_A, N_B, edges, classes, 2, visible=visible, n_nodes=8)
    assert graph.nodes(np.array([[1], [12]])).tolist() == [
        [1, 4, N + 2, 0, 0, 0, 0, 0],
        [12, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_an_adaptation_is_an_edge_of_the_fifth_relation():
    edges, none = links(), np.zeros((0, 2), int)
    graph = Graph(N_A, N_B, edges, none, 0, adaptation=np.array([(2, 11)]), n_nodes=3)
    nodes = graph.nodes(np.array([[2]]))
    assert nodes.tolist() == [[2, 11, 0]]
    linked = graph.adjacency(nodes, np.array([[2]]))
    assert linked[0, :, 0, 1].tolist() == [False] * 4 + [True]


def test_a_wrong_graph_is_refused_in_one_line():
    none = np.zeros((0, 2), int)
    with pytest.raises(RequestError, match=f"also_bought: {N + 1} is no id from 1 to {N}"):
        Graph(N_A, N_B, links(also_bought=[(1, N + 1)]), none, 0)
    with pytest.raises(RequestError, match="categories: 2 is no id from 0 to 1"):
        Graph(N_A, N_B, links(), np.array([(1, 2)]), 2)
    with pytest.raises(RequestError, match="give one array for each of also_bought"):
        Graph(N_A, N_B, {"also_bought": none}, none, 0)
    with pytest.raises(RequestError, match="raise n_nodes"):
        Graph(N_A, N_B, links(), none, 0, n_nodes=1).nodes(np.array([[1, 2]]))
    graph = Graph(N_A, N_B, links(), none, 0, n_nodes=3)
    with pytest.raises(ValueError, match="not those of these sequences"):
        graph.adjacency(graph.nodes(np.array([[1, 2]])), np.array([[1, 3]]))


def test_the_note_says_that_the_links_know_the_future():
    assert "over all time" in LEAK_NOTE and "future" in LEAK_NOTE


# --- the model ----------------------------------------------------------------------------------
def toy(seed=0, dim=6, n_nodes=9, **more):
    """A model, its graph, and a batch of rows of both domains."""
    torch.manual_seed(seed)
    model = MIFN(N_A, N_B, N_C, dim=dim, **more).eval()
    for weight in model.parameters():  # nothing small, so that no term can be missed
        torch.nn.init.normal_(weight, std=0.5)
    with torch.no_grad():
        model.entities.weight[0] = 0
    _, _, graph = random_graph(seed, n_nodes=n_nodes)
    items = random_rows(seed, rows=12)
    rows = Subgraphs(graph, items, graph.nodes(items))
    batch = {"items": torch.from_numpy(items), **rows.batch(np.arange(12))}
    targets = torch.from_numpy(np.random.default_rng(seed).integers(1, N + 1, 12))
    return model, batch, targets


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(cell, suffix, x, h):
    """torch's GRU step, in numpy."""
    value = {k: v.detach().double().numpy() for k, v in cell.named_parameters()}
    given = value["weight_ih" + suffix] @ x + value["bias_ih" + suffix]
    kept = value["weight_hh" + suffix] @ h + value["bias_hh" + suffix]
    (r, z, n), (hr, hz, hn) = np.split(given, 3), np.split(kept, 3)
    r, z = sigmoid(r + hr), sigmoid(z + hz)
    return (1 - z) * np.tanh(n + r * hn) + z * h


def linear(layer, x):
    weight = layer.weight.detach().double().numpy()
    return weight @ x + (0 if layer.bias is None else layer.bias.detach().double().numpy())


def attend(layer, h, e):
    return linear(layer.weigh, np.tanh(linear(layer.state, h) + linear(layer.node, e)))[0]


def softmax_of(scores):
    """Of a dict, key by key."""
    odds = {k: np.exp(v) for k, v in scores.items()}
    return {k: v / sum(odds.values()) for k, v in odds.items()}


def plain_behaviour(model, sequence):
    """Steps 1 to 3, item by item: h and h_T of both domains, zero where there is no item."""
    dim = model.entities.embedding_dim
    vectors = model.entities.weight.detach().double().numpy()
    h, s, told = ([np.zeros(dim), np.zeros(dim)] for _ in range(3))
    for item in sequence:
        d = int(item > N_A)
        h[d] = gru(model.encoders[d], "_l0", vectors[item], h[d])
        cell = model.filters[d]
        f = sigmoid(linear(cell.gate, np.r_[h[d], h[1 - d]]) + linear(cell.gate_state, s[d]))
        s[d] = f * np.tanh(linear(cell.new, h[d]) + linear(cell.new_state, s[d])) + (1 - f) * s[d]
        told[d] = gru(model.transfers[d], "_l0", s[d], told[d])
    return h, told


def plain_graph(model, e, h, told, nodes, links, in_b):
    """Steps 4 to 7, node by node."""
    graph, dim = model.graph, len(h)
    real = [n for n, node in enumerate(nodes) if node]
    mine = [n for n in real if (nodes[n] > N_A) == in_b]
    alpha = softmax_of({n: attend(graph.inside, h, e[n]) for n in mine})
    beta = softmax_of({n: attend(graph.across, told, e[n]) for n in real if n not in mine})
    weigh = graph.mutual.detach().double().numpy()
    parts = np.zeros((2, len(nodes), dim))
    for n in real:
        g = linear(graph.mix_states, np.r_[h, told]) + linear(graph.mix_node, e[n])
        if n in mine:
            parts[0, n] = sigmoid(g) * alpha[n] * e[n]
        else:
            m = sum((weigh @ (e[n] * e[k]) * e[k] for k in mine), np.zeros(dim))
            parts[1, n] = (1 - sigmoid(g)) * (beta[n] * e[n] + m)
    new = {}
    for n in real:
        ten = [
            np.maximum(0, sum(links[r, n, k] * linear(relate, x[k])[r * dim :][:dim] for k in real))
            for relate, x in zip(graph.relate, parts, strict=True)
            for r in range(5)
        ]
        new[n] = gru(graph.update, "", np.concatenate(ten), e[n])
    return new


def plain_prediction(model, sequence, nodes, links, domain):
    """All steps for one sequence: P_S and p of every item of the domain."""
    h, told = plain_behaviour(model, sequence)
    in_b = bool(sequence[-1] > N_A)
    e = dict(enumerate(model.entities.weight.detach().double().numpy()[nodes]))
    for _ in range(model.iterations):
        e = plain_graph(model, e, h[in_b], told[in_b], nodes, links, in_b)
    head = model.heads[domain]
    own, from_other = h[domain], told[1 - domain]
    side = [n for n, node in enumerate(nodes) if node and (node > N_A) == bool(domain)]
    total = sum((e[n] for n in side), np.zeros_like(own))
    p_g = sigmoid(linear(head.switch, np.r_[own, from_other, total])[0])
    scores = {n: attend(head.attention, own, e[n]) for n in side if nodes[n] <= N}
    p_g = p_g if scores else 0.0
    logits = np.exp(linear(head.out, np.r_[own, from_other]))
    p = (1 - p_g) * logits / logits.sum()
    for n, share in softmax_of(scores).items():
        p[nodes[n] - 1 - domain * N_A] += p_g * share
    return 1 - p_g, p


@pytest.mark.parametrize("iterations", [1, 2])
def test_scores_and_losses_equal_a_plain_computation(iterations):
    model, batch, targets = toy(iterations=iterations)
    items, nodes = batch["items"].numpy(), batch["nodes"].numpy()
    links = batch["adjacency"].double().numpy()
    losses, seen = mifn_loss(model, **batch, targets=targets), set()
    scores = [model.domain_scores(domain, **batch).detach() for domain in (0, 1)]
    for row, target in enumerate(targets.tolist()):
        sequence = items[row][items[row] > 0]
        for domain in (0, 1):
            p_s, p = plain_prediction(model, sequence, nodes[row], links[row], domain)
            assert p.sum() == pytest.approx(1)
            ours = scores[domain][row].exp().numpy()
            np.testing.assert_allclose(ours, p, atol=1e-5, rtol=1e-5)
            if (target > N_A) == domain:
                inside = target in nodes[row]
                switch = 0 if inside else -np.log(p_s + 1e-4)
                want = switch - np.log(p[target - 1 - domain * N_A])
                assert losses[row].item() == pytest.approx(want, abs=1e-5, rel=1e-5)
                seen.add((domain, inside))
    assert len(seen) == 4  # both domains, targets in the graph and outside of it


def test_padding_changes_nothing():
    model, batch, targets = toy()
    more = {
        "items": torch.nn.functional.pad(batch["items"], (0, 3)),
        "nodes": torch.nn.functional.pad(batch["nodes"], (0, 4)),
        "adjacency": torch.nn.functional.pad(batch["adjacency"], (0, 4, 0, 4)),
    }
    for domain in (0, 1):
        torch.testing.assert_close(
            model.domain_scores(domain, **more), model.domain_scores(domain, **batch)
        )
    torch.testing.assert_close(
        mifn_loss(model, **more, targets=targets), mifn_loss(model, **batch, targets=targets)
    )


def test_the_order_of_the_nodes_changes_nothing():
    model, batch, _ = toy()
    order = torch.randperm(batch["nodes"].shape[1])
    links = batch["adjacency"][:, :, order][..., order]
    other = {**batch, "nodes": batch["nodes"][:, order], "adjacency": links}
    torch.testing.assert_close(model.domain_scores(1, **other), model.domain_scores(1, **batch))


def test_other_rows_of_the_batch_change_nothing():
    model, batch, targets = toy()
    whole = mifn_loss(model, **batch, targets=targets)
    for row in range(len(targets)):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        alone = mifn_loss(model, **one, targets=targets[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1])


def test_what_is_predicted_is_in_no_node_and_in_no_state():
    """Nodes come from the input items alone; the loss of any target is that of the same scores."""
    model, batch, targets = toy()
    nodes, wanted = batch["nodes"], targets[:, None]
    _, _, graph = random_graph(0, n_nodes=9)
    leaked = graph.nodes(torch.cat([batch["items"], wanted], 1).numpy())
    assert (leaked == wanted.numpy()).any(1).all()  # so it would be, were the target read
    assert not (nodes == wanted).any(1).all()
    both = torch.cat([model.domain_scores(domain, **batch) for domain in (0, 1)], 1)  # (B, N)
    for _ in range(N):
        targets = targets % N + 1
        losses = mifn_loss(model, **batch, targets=targets)
        inside = (nodes == targets[:, None]).any(1)
        nll = -both.gather(1, targets[:, None] - 1)[:, 0]
        torch.testing.assert_close(losses[inside], nll[inside], atol=1e-5, rtol=1e-5)
        assert (losses[~inside] > nll[~inside] - 2e-4).all()  # the switch's part comes on top


def test_a_later_item_changes_no_earlier_row():
    """Two prefixes of a sequence: the shorter one's row is the same, whatever comes next."""
    model, _, _ = toy()
    _, _, graph = random_graph(0, n_nodes=9)
    scores = []
    for last in (3, 12):
        items = np.array([[1, 11, 0], [1, 11, last]])
        row = Subgraphs(graph, items, graph.nodes(items)).batch(np.arange(2))
        scores.append(model.domain_scores(0, items=torch.from_numpy(items), **row))
    torch.testing.assert_close(scores[0][0], scores[1][0])
    assert (scores[0][1] - scores[1][1]).abs().max() > 1e-4


def test_without_nodes_the_sequence_alone_decides():
    model, batch, targets = toy()
    empty = {
        "items": batch["items"],
        "nodes": torch.zeros_like(batch["nodes"]),
        "adjacency": torch.zeros_like(batch["adjacency"]),
    }
    last, told = model.behaviour(batch["items"])
    for domain in (0, 1):
        own = model.heads[domain].out(torch.cat([last[domain], told[1 - domain]], 1))
        torch.testing.assert_close(model.domain_scores(domain, **empty), own.log_softmax(-1))
    losses = mifn_loss(model, **empty, targets=targets)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(w.grad).all() for w in model.parameters() if w.grad is not None)


def test_extreme_switches_stay_finite():
    model, batch, targets = toy()
    for bias in (-1e4, 1e4):
        for head in model.heads:
            torch.nn.init.constant_(head.switch.bias, bias)
        model.zero_grad()
        losses = mifn_loss(model, **batch, targets=targets)
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert all(torch.isfinite(w.grad).all() for w in model.parameters())


def planted(pairs, plain=5):
    """Rows of two items of A: one without links, then one whose links lead to two items of B.

    Item a is bought with the target, n_a + a, and viewed with a decoy, n_a + pairs + a.
    """
    every, n_a = np.arange(1, pairs + 1), pairs + plain
    edges = links(
        also_bought=np.stack([every, n_a + every], 1),
        also_viewed=np.stack([every, n_a + pairs + every], 1),
    )
    graph = Graph(n_a, 2 * pairs, edges, np.zeros((0, 2), int), 0, n_nodes=6)
    rng = np.random.default_rng(0)

    def rows(last):
        items = np.stack([rng.integers(pairs + 1, n_a + 1, len(last)), last], 1)
        batch = Subgraphs(graph, items, graph.nodes(items)).batch(np.arange(len(items)))
        return {"items": torch.from_numpy(items), **batch}, torch.from_numpy(n_a + last)

    return n_a, rows


def learn(empty, pairs=1000, held=20, steps=100):
    """Train on the last items that are not held out; rank the targets of those that are."""
    n_a, rows = planted(pairs)
    torch.manual_seed(0)
    model = MIFN(n_a, 2 * pairs, 0, dim=16, dropout=0.0)
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    rng = np.random.default_rng(1)

    def seen(batch):
        blank = {name: torch.zeros_like(batch[name]) for name in ("nodes", "adjacency")}
        return {**batch, **blank} if empty else batch

    for _ in range(steps):
        batch, targets = rows(rng.integers(held + 1, pairs + 1, 32))
        adam.zero_grad()
        mifn_loss(model, **seen(batch), targets=targets).mean().backward()
        adam.step()
    batch, targets = rows(np.arange(1, held + 1))
    with torch.no_grad():
        scores = model.eval().domain_scores(1, **seen(batch))
    return 1 + (scores > scores.gather(1, targets[:, None] - n_a - 1)).sum(1).float()


def test_a_target_known_from_the_graph_alone_is_found():
    """The held-out targets stand in no training row: one relation of the graph leads to them."""
    ranks, blind = learn(empty=False), learn(empty=True)
    assert (ranks == 1).float().mean() > 0.9
    assert blind.median() > 500  # of 2,000
