"""The next-item models with one table of items, beside plain computations with the same weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.nextitem import last_step, next_item_loss
from reprokit.runs import RequestError
from reprokit.sequential import (
    SRGNN,
    GRU4Rec,
    NextSASRec,
    OneTable,
    SessionGraph,
    last_loss,
)

N_A, N_B = 20, 20
KINDS = ("sasrec", "gru4rec", "srgnn")
SESSIONS = torch.tensor(
    [
        [3, 25, 7, 1, 30, 9],
        [4, 5, 0, 0, 0, 0],
        [2, 8, 2, 8, 2, 31],  # 2 -> 8 and 8 -> 2 twice
        [6, 6, 40, 6, 0, 0],  # 6 -> 6
        [12, 0, 0, 0, 0, 0],
    ]
)


def build(kind: str, dim: int = 8, dropout: float = 0.0) -> OneTable:
    torch.manual_seed(0)
    if kind == "sasrec":
        return NextSASRec(N_A, N_B, dim, 10, 2, 2, 3 * dim, dropout, init_std=0.3)
    if kind == "gru4rec":
        model: OneTable = GRU4Rec(N_A, N_B, dim, dim + 3, 2, dropout)
        nn.init.normal_(model.items.weight)
        return model
    return SRGNN(N_A, N_B, dim, rounds=2)


# --- plain computations: one session, no padding ------------------------------------------------
def plain_sasrec(model: NextSASRec, session: list[int]) -> Tensor:
    """The states after each step, (L, D), with torch's own encoder layers."""
    length, dim = len(session), model.items.embedding_dim
    x = model.norm(model.items.weight[session] + model.positions.weight[:length])
    future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
    for block in model.blocks:
        width = block.inner.out_features
        layer = nn.TransformerEncoderLayer(dim, block.heads, width, 0.0, "gelu", 1e-12)
        attention, parts = layer.self_attn, (block.query, block.key_value)
        with torch.no_grad():
            attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        attention.out_proj.load_state_dict(block.out.state_dict())
        layer.linear1.load_state_dict(block.inner.state_dict())
        layer.linear2.load_state_dict(block.outer.state_dict())
        layer.norm1.load_state_dict(block.attention_norm.state_dict())
        layer.norm2.load_state_dict(block.norm.state_dict())
        x = layer(x, src_mask=future)
    return x


def plain_gru4rec(model: GRU4Rec, session: list[int]) -> Tensor:
    """The recurrence of Cho et al. 2014, step by step."""
    weights = dict(model.gru.named_parameters())
    hidden = [torch.zeros(model.gru.hidden_size) for _ in range(model.gru.num_layers)]
    states = []
    for item in session:
        x = model.items.weight[item]
        for layer in range(len(hidden)):
            of_x = (weights[f"weight_ih_l{layer}"] @ x).chunk(3)
            of_h = (weights[f"weight_hh_l{layer}"] @ hidden[layer]).chunk(3)
            reset, update = (torch.sigmoid(of_x[i] + of_h[i]) for i in (0, 1))
            new = torch.tanh(of_x[2] + reset * of_h[2])
            x = hidden[layer] = (1 - update) * new + update * hidden[layer]
        states.append(model.dense(x))
    return torch.stack(states)


def plain_srgnn(model: SRGNN, session: list[int]) -> Tensor:
    """Equations 1 to 7 of Wu et al. 2019, a graph for each prefix."""
    return torch.stack([plain_graph(model, session[: t + 1]) for t in range(len(session))])


def plain_graph(model: SRGNN, session: list[int]) -> Tensor:
    """The state after the whole session, node by node and edge by edge."""
    h = {item: model.items.weight[item] for item in session}
    edges, cell = set(pairwise(session)), model.cell
    for _ in range(model.rounds):
        new = {}
        for node in h:
            before = mean([model.before(h[a]) for a, b in edges if b == node], h[node])
            after = mean([model.after(h[b]) for a, b in edges if a == node], h[node])
            heard = torch.cat([before, after]) + model.bias
            of_heard = (cell.weight_ih @ heard + cell.bias_ih).chunk(3)
            of_self = (cell.weight_hh @ h[node] + cell.bias_hh).chunk(3)
            reset, update = (torch.sigmoid(of_heard[i] + of_self[i]) for i in (0, 1))
            candidate = torch.tanh(of_heard[2] + reset * of_self[2])
            new[node] = candidate + update * (h[node] - candidate)
        h = new
    last, of_session = h[session[-1]], torch.zeros_like(h[session[-1]])
    for item in session:
        near = torch.sigmoid(model.of_last(last) + model.of_node(h[item]))
        of_session = of_session + model.attention(near) * h[item]
    return model.join(torch.cat([of_session, last]))


def mean(vectors: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(vectors).mean(0) if vectors else torch.zeros_like(like)


PLAIN = {"sasrec": plain_sasrec, "gru4rec": plain_gru4rec, "srgnn": plain_srgnn}


@pytest.mark.parametrize("kind", KINDS)
def test_states_equal_a_plain_computation_with_the_same_weights(kind):
    model = build(kind).eval()
    of_a, of_b = model.states(SESSIONS)
    assert of_a is of_b
    for row, session in enumerate(SESSIONS.tolist()):
        real = [item for item in session if item]
        expected = PLAIN[kind](model, real)
        torch.testing.assert_close(of_a[row, : len(real)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_state_alone_is_the_last_of_all_states(kind):
    model = build(kind).eval()
    empty = torch.zeros(1, 6, dtype=torch.long)
    items = torch.cat([SESSIONS, empty])
    expected = last_step(model.states(items)[0], items)
    torch.testing.assert_close(model.last(items), expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(expected[0], expected[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("over", ["all", "domain"])
def test_prefix_rows_and_all_positions_have_one_loss_and_one_gradient(kind, over):
    model = build(kind)
    row, step = torch.nonzero(SESSIONS, as_tuple=True)
    prefixes = SESSIONS[row] * (torch.arange(6) <= step[:, None])
    wanted = torch.randint(1, 1 + N_A + N_B, (len(row),))
    wanted[3] = 0  # nothing to predict there
    targets = torch.zeros_like(SESSIONS)
    targets[row, step] = wanted

    together = next_item_loss(model, targets, over, items=SESSIONS)
    gradients = torch.autograd.grad(together.sum(), list(model.parameters()))
    apart = last_loss(model, prefixes, wanted, over)
    assert apart[3] == 0 and (apart[:3] > 0).all()
    torch.testing.assert_close(
        torch.zeros(len(SESSIONS)).index_add(0, row, apart), together, atol=1e-5, rtol=1e-5
    )
    again = torch.autograd.grad(apart.sum(), list(model.parameters()))
    for one, other in zip(gradients, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_sampled_prefix_loss_is_the_exact_one_once_all_items_are_drawn():
    model = build("gru4rec")
    targets = torch.tensor([1, 21, 40, 20, 7])
    exact = last_loss(model, SESSIONS, targets, "all")
    torch.testing.assert_close(last_loss(model, SESSIONS, targets, "all", sampled=40), exact)
    assert not torch.equal(last_loss(model, SESSIONS, targets, "all", sampled=5), exact)
    with pytest.raises(KeyError):
        last_loss(model, SESSIONS, targets, "everything")


@pytest.mark.parametrize("kind", KINDS)
def test_no_state_reads_what_comes_later(kind):
    model = build(kind).eval()
    states = model.states(SESSIONS)[0]
    for step in range(1, 6):
        changed = SESSIONS.clone()
        changed[:, step:] = torch.where(SESSIONS[:, step:] > 0, SESSIONS[:, step:] % 40 + 1, 0)
        other = model.states(changed)[0]
        torch.testing.assert_close(other[:, :step], states[:, :step], atol=1e-6, rtol=1e-6)
        assert not torch.allclose(other[0, step], states[0, step])
    cut = SESSIONS[:, :4]
    torch.testing.assert_close(model.states(cut)[0], states[:, :4], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_the_rest_of_the_batch_moves_a_state(kind):
    model = build(kind).eval()
    expected = model.last(SESSIONS)
    wider = F.pad(SESSIONS, (0, 3))
    torch.testing.assert_close(model.last(wider), expected, atol=1e-6, rtol=1e-6)
    for row in range(len(SESSIONS)):
        alone = SESSIONS[row : row + 1, : int((SESSIONS[row] > 0).sum())]
        torch.testing.assert_close(model.last(alone)[0], expected[row], atol=1e-6, rtol=1e-6)
        step = alone.shape[1] - 1
        states = model.states(SESSIONS)[0][row, step]
        torch.testing.assert_close(states, expected[row], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vector_of_the_padding_is_never_read(kind):
    model = build(kind).eval()
    expected = model.last(SESSIONS)
    with torch.no_grad():
        model.items.weight[0] = torch.nan
    torch.testing.assert_close(model.last(SESSIONS), expected, atol=0, rtol=0)
    last_loss(model, SESSIONS, torch.tensor([1, 2, 3, 4, 25])).sum().backward()
    assert (model.items.weight.grad[0] == 0).all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_scored_by_the_state_after_it_and_the_shared_table(kind):
    model = build(kind).eval()
    targets = torch.tensor([5, 30, 20, 21, 1])
    negatives = torch.tensor([[1, 2, 3], [22, 23, 40], [1, 2, 3], [22, 23, 40], [2, 3, 20]])
    counts = model.score(targets, negatives, items=SESSIONS)
    scores = model.last(SESSIONS) @ model.items.weight.T
    for row, target in enumerate(targets.tolist()):
        own = slice(1, 1 + N_A) if target <= N_A else slice(1 + N_A, None)
        assert counts[row, 0] == (scores[row, negatives[row]] > scores[row, target]).sum()
        assert counts[row, 3] == (scores[row, own] > scores[row, target]).sum()
    assert [len(table) for table in model.tables()] == [N_A, N_B]


# --- what they find -----------------------------------------------------------------------------
EPOCHS = {"sasrec": 15, "gru4rec": 25, "srgnn": 15}


def two_back(rows: int, length: int, seed: int) -> Tensor:
    """Sessions in which an item decides not the next one, but the one after that: (rows, L)."""
    generator = torch.Generator().manual_seed(seed)
    after = torch.randperm(N_A + N_B, generator=torch.Generator().manual_seed(9))
    sessions = torch.stack(
        [torch.randperm(N_A + N_B, generator=generator)[:2] for _ in range(rows)]
    )
    for _ in range(length - 2):
        sessions = torch.cat([sessions, after[sessions[:, -2:-1]]], 1)
    return sessions + 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_item_before_the_last_is_found_to_decide_the_next(kind):
    """In sessions whose first two items never stood together in training."""
    sessions, unseen = two_back(600, 6, seed=0), two_back(200, 6, seed=1)
    seen = set(map(tuple, sessions[:, :2].tolist()))
    unseen = unseen[[tuple(start) not in seen for start in unseen[:, :2].tolist()]]
    targets = sessions[:, 1:].clone()
    targets[:, 0] = 0  # the second item is a random one
    model = build(kind, 16)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for part in torch.arange(600).repeat(EPOCHS[kind]).split(50):
        optimizer.zero_grad()
        next_item_loss(model, targets[part], items=sessions[part, :-1]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        target = unseen[:, -1]
        counts = model.eval().score(target, target[:, None], items=unseen[:, :-1])
    first = (counts[:, 3] == 0).float().mean()
    assert first > 0.8  # among 20; both successors found, but not which: 0.5


# --- parts --------------------------------------------------------------------------------------
def test_a_session_graph_has_one_node_per_item_and_one_edge_per_transition():
    graph = SessionGraph(torch.tensor([[1, 2, 1, 2, 3, 0], [4, 0, 0, 0, 0, 0]]))
    assert graph.nodes.at.tolist() == [0, 1, 4, 6]  # 1, 2, 3 and 4, where each first occurs
    outgoing, incoming = torch.zeros(2, 6, 6), torch.zeros(2, 6, 6)
    outgoing[0, 0, 1] = 1  # 1 -> 2, twice in the session, one edge
    outgoing[0, 1, 0] = outgoing[0, 1, 4] = 0.5  # 2 -> 1 and 2 -> 3
    incoming[0, 1, 0] = incoming[0, 0, 1] = incoming[0, 4, 1] = 1
    torch.testing.assert_close(graph.outgoing, outgoing)
    torch.testing.assert_close(graph.incoming, incoming)
    assert graph.occurs[..., 0].tolist() == [[2, 2, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert graph.last.tolist() == [2, 3]


def test_weights_start_as_the_sources_have_them():
    torch.manual_seed(0)
    sasrec = NextSASRec(500, 500, 64, 15, 2, 2, 256, 0.5)
    for module in sasrec.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
    gru = GRU4Rec(500, 500, 64, 128, 1, 0.3)
    assert [name for name, _ in gru.gru.named_parameters()] == ["weight_ih_l0", "weight_hh_l0"]
    assert gru.items.weight.std().item() == pytest.approx((2 / (1001 + 64)) ** 0.5, rel=0.1)
    for parameter in SRGNN(500, 500, 64).parameters():
        assert parameter.abs().max() <= 1 / 8 and parameter.std() > 0.9 / 8 / 3**0.5


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec"])
def test_dropout_works_in_training_alone(kind):
    model = build(kind, dropout=0.5)
    assert not torch.equal(model.last(SESSIONS), model.last(SESSIONS))
    model.eval()
    assert torch.equal(model.last(SESSIONS), model.last(SESSIONS))


def test_attention_weights_are_dropped_too(monkeypatch):
    model = build("sasrec", dropout=0.5)
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
    for read in (model.last, lambda items: model.states(items)[0]):
        assert not torch.equal(read(SESSIONS), read(SESSIONS))


def test_a_sequence_longer_than_the_table_of_positions_is_refused():
    with pytest.raises(RequestError, match="11 steps, but max_len is 10; raise max_len"):
        build("sasrec").states(torch.ones(2, 11, dtype=torch.long))
