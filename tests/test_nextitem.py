"""The exact softmax in blocks, and the counts behind a rank."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reprokit import nextitem
from reprokit.metrics import ranks
from reprokit.nextitem import (
    NextItem,
    at_step,
    next_item_loss,
    part,
    rank_counts,
    sampled_nll,
    softmax_nll,
)


def views(count, rows=7, items=11, seed=0):
    torch.manual_seed(seed)
    widths = (4, 6, 3)[:count]
    return [
        (torch.randn(rows, d, requires_grad=True), torch.randn(items, d, requires_grad=True))
        for d in widths
    ], torch.randint(items, (rows,))


def plain(pairs, targets, weights):
    """The mixture's negative log-probability with every logit held."""
    p = sum(w * F.softmax(h @ e.T, 1) for w, (h, e) in zip(weights, pairs, strict=True))
    return -p[torch.arange(len(targets)), targets].log()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("block", [1, 2**26])
@pytest.mark.parametrize("even", [True, False])
def test_loss_and_gradients_equal_the_plain_computation(monkeypatch, count, block, even):
    monkeypatch.setattr(nextitem, "LOGITS_BYTES", block)
    pairs, targets = views(count)
    weights = torch.tensor([0.5, 0.3, 0.2][:count], requires_grad=count > 1)
    share = weights / weights.sum()
    each = torch.ones(len(targets)) if even else torch.linspace(0, 2, len(targets))
    leaves = [t for pair in pairs for t in pair] + [weights] * (count > 1)
    ours = softmax_nll(pairs, targets, share if count > 1 else None)
    theirs = plain(pairs, targets, share)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    got = torch.autograd.grad((ours * each).sum(), leaves, retain_graph=True)
    want = torch.autograd.grad((theirs * each).sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_extreme_logits_stay_finite():
    states, vectors = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    loss = softmax_nll([(states, vectors)], torch.tensor([1]))
    assert loss.item() == pytest.approx(400)


def test_a_frozen_table_gets_no_gradient():
    (pair,), targets = views(1)
    frozen = pair[1].detach()
    softmax_nll([(pair[0], frozen)], targets).sum().backward()
    assert pair[0].grad.abs().sum() > 0
    assert frozen.grad is None


@pytest.mark.parametrize("count", [1, 3])
def test_a_sampled_softmax_of_all_items_is_the_exact_one(count):
    pairs, targets = views(count)
    weights = torch.tensor([0.5, 0.3, 0.2]) if count > 1 else None
    exact = softmax_nll(pairs, targets, weights)
    torch.testing.assert_close(sampled_nll(pairs, targets, 11, weights), exact)


def test_a_sampled_softmax_estimates_the_sum_over_all_items_without_bias():
    (pair,), targets = views(1, rows=3, items=50)
    exact = softmax_nll([pair], targets)
    own = (pair[0] * pair[1][targets]).sum(1)
    sums = [(sampled_nll([pair], targets, 10) + own).exp().detach() for _ in range(4000)]
    torch.testing.assert_close(
        torch.stack(sums).mean(0), (exact + own).exp().detach(), rtol=0.05, atol=0
    )


def test_blocks_hold_no_more_logits_than_allowed(monkeypatch):
    seen = []
    matmul = torch.Tensor.__matmul__

    def spy(self, other):
        out = matmul(self, other)
        seen.append(tuple(out.shape))
        return out

    pairs, targets = views(2, rows=50, items=40)
    monkeypatch.setattr(nextitem, "LOGITS_BYTES", 4 * 40 * 2 * 16)  # 16 rows of both views
    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    softmax_nll(pairs, targets, torch.tensor([0.5, 0.5]))
    assert {shape for shape in seen if shape[0] == 40} == {(40, 16), (40, 2)}


def test_rank_counts_give_the_ranks_of_the_metrics():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.integers(0, 5, (6, 9)).astype(np.float32))
    targets = torch.from_numpy(rng.integers(0, 9, 6))
    others = (targets[:, None] + torch.arange(1, 6)) % 9
    counts = rank_counts(scores, targets, others).numpy()
    lists = torch.cat([targets[:, None], others], 1)
    listed = scores.gather(1, lists).numpy()
    np.testing.assert_array_equal(1 + counts[:, 0] + counts[:, 1] / 2, ranks(listed))
    np.testing.assert_array_equal(
        1 + counts[:, 2], ranks(listed, ties="optimistic", tolerance=1e-5)
    )
    full = ranks(scores.numpy(), targets.numpy())
    np.testing.assert_array_equal(1 + counts[:, 3] + counts[:, 4] / 2, full)


def test_a_score_that_is_no_number_poisons_its_row_alone():
    scores = torch.zeros(2, 3)
    scores[1, 2] = torch.nan
    counts = rank_counts(scores, torch.tensor([0, 0]), torch.tensor([[1], [1]]))
    assert torch.isfinite(counts[0]).all() and torch.isnan(counts[1]).all()


class Last(NextItem):
    """State: the vector of the last item."""

    def __init__(self, n_a, n_b):
        super().__init__()
        self.sizes = (n_a, n_b)
        torch.manual_seed(0)
        self.items = torch.nn.Embedding(1 + n_a + n_b, 3)

    def states(self, items):
        return (self.items(items),) * 2

    def tables(self):
        return self.items.weight[1:].split(self.sizes)


def test_each_position_is_scored_among_its_own_domain():
    model = Last(4, 3)
    items, targets = torch.tensor([[1, 5, 0], [6, 2, 3]]), torch.tensor([[5, 2, 0], [0, 0, 7]])
    losses = next_item_loss(model, targets, items=items)
    table = model.items.weight
    expected = [0.0, 0.0]
    for row, step, low, high in ((0, 0, 5, 8), (0, 1, 1, 5), (1, 2, 5, 8)):
        logits = table[items[row, step]] @ table[low:high].T
        target = targets[row, step] - low
        expected[row] += F.cross_entropy(logits[None], target[None]).item()
    torch.testing.assert_close(losses, torch.tensor(expected))
    everything = next_item_loss(model, targets, over="all", items=items)
    assert (everything > losses).all()


def test_a_row_is_ranked_in_the_domain_of_its_target():
    model = Last(4, 3)
    items, targets = torch.tensor([[1, 5, 0], [6, 2, 3]]), torch.tensor([2, 7])
    counts = model.score(targets, torch.tensor([[1, 3, 4], [5, 6, 6]]), items=items)
    table = model.items.weight.detach()
    for row, (last, low, high) in enumerate(((5, 1, 5), (3, 5, 8))):
        scores = (table[last] @ table[low:high].T).numpy()
        own = scores[targets[row] - low]
        assert counts[row, 3] == (scores > own).sum()


def test_a_part_is_packed_and_knows_how_far_it_has_come():
    items = torch.tensor([[1, 5, 2, 6, 0], [7, 0, 0, 0, 0]])
    packed, count = part(items, 1, 4)
    assert packed.tolist() == [[1, 2, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert count.tolist() == [[1, 1, 2, 2, 2], [0, 0, 0, 0, 0]]
    states = packed.float().unsqueeze(-1)
    assert at_step(states, count)[..., 0].tolist() == [[1, 1, 2, 2, 2], [0, 0, 0, 0, 0]]
