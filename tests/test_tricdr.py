"""Tri-CDR: three sequences, attention that looks back only, and each loss against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reprokit import tricdr
from reprokit.runs import RequestError
from reprokit.sequential import NextSASRec
from reprokit.tricdr import TriCDR, draw_negatives, nt_xent, tricdr_loss

N_A, N_B, WIDTH = 12, 14, 6

# Items of A are 1 to 12, of B 13 to 26. Rows: mixed; starts with B; only A; only B; one item.
ITEMS = torch.tensor(
    [
        [3, 13, 4, 5, 20, 7],
        [26, 1, 14, 0, 0, 0],
        [2, 9, 11, 12, 0, 0],
        [15, 16, 17, 18, 19, 0],
        [6, 0, 0, 0, 0, 0],
    ]
)
TARGETS = torch.tensor(
    [
        [13, 4, 5, 20, 7, 21],
        [1, 14, 8, 0, 0, 0],
        [9, 11, 12, 24, 0, 0],
        [16, 17, 18, 19, 10, 0],
        [0, 0, 0, 0, 0, 0],
    ]
)


def model(target_domain: int, **settings) -> TriCDR:
    torch.manual_seed(1)
    sizes = {"dim": 8, "max_len": 7, "heads": 2, "inner": 10, "init_std": 0.5}
    made = TriCDR(N_A, N_B, target_domain, **{**sizes, **settings}).eval()
    for parameter in made.parameters():  # no bias is left at 0
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made


def in_domain(item: int, domain: int) -> bool:
    return item > 0 and (item > N_A) == bool(domain)


def plain_pools(net: TriCDR, history: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What a history, the merged items so far, is pooled into: mixed, source and target."""
    domain = net.target_domain
    source = [item for item in history if in_domain(item, 1 - domain)]
    target = [item for item in history if in_domain(item, domain)]
    states = []
    for encoder, own in zip(
        (net.mixed, net.source, net.target), (history, source, target), strict=True
    ):
        states.append(list(encoder.states(torch.tensor([own]))[0][0]) if own else [])
    query = states[2][-1] if target else torch.zeros(8)
    mean = sum(states[0]) / len(states[0])
    pools = []
    for facts in states:
        parts = [torch.cat([f, query, f * query, query - f, mean]) for f in facts]
        logits = [net.attention.rest(net.attention.first(whole)) for whole in parts]
        weights = torch.softmax(torch.cat(logits), 0) if facts else []
        pools.append(sum((w * f for w, f in zip(weights, facts, strict=True)), torch.zeros(8)))
    return tuple(pools)


def plain_z(net: TriCDR, history: list[int]) -> Tensor:
    """The last layers over the three pools."""
    first, _, second = net.fuse
    return second(F.leaky_relu(first(torch.cat(plain_pools(net, history))), 0.01))


def history(row: int, step: int) -> list[int]:
    return [item for item in ITEMS[row, : step + 1].tolist() if item]


@pytest.mark.parametrize("domain", [0, 1])
def test_states_equal_a_plain_computation_and_the_other_domain_has_none(domain):
    net = model(domain)
    states = net.states(ITEMS)
    for row, step in torch.nonzero(ITEMS).tolist():
        z = plain_z(net, history(row, step))
        torch.testing.assert_close(states[domain][row, step], z / z.norm(), atol=1e-5, rtol=1e-5)
    assert not states[1 - domain].any()
    assert not net.tables()[1 - domain].any()


@pytest.mark.parametrize("domain", [0, 1])
def test_a_score_is_five_times_the_cosine_of_state_and_item(domain):
    net = model(domain)
    scores = net.domain_scores(domain, items=ITEMS)
    first, count = ((1, N_A), (N_A + 1, N_B))[domain]
    assert scores.shape == (len(ITEMS), count)
    for row in range(len(ITEMS)):
        z = plain_z(net, history(row, WIDTH - 1))
        for column in range(count):
            expected = 5 * F.cosine_similarity(z, net.target.items.weight[first + column], dim=0)
            torch.testing.assert_close(scores[row, column], expected, atol=1e-5, rtol=1e-5)


def plain_bce(net: TriCDR, row: int, negatives: Tensor) -> Tensor:
    losses = []
    for step, target in enumerate(TARGETS[row].tolist()):
        if in_domain(target, net.target_domain):
            z, table = plain_z(net, history(row, step)), net.target.items.weight
            yes = torch.sigmoid(5 * F.cosine_similarity(z, table[target], dim=0))
            no = torch.sigmoid(5 * F.cosine_similarity(z, table[negatives[row, step]], dim=0))
            losses.append(-yes.log() - (1 - no).log())
    return sum(losses) / len(losses) if losses else torch.zeros(())


def plain_auxiliary(net: TriCDR) -> list[Tensor]:
    """Of the two rows that have items of both domains; the rates are 3 : 1 : 2."""
    views = []
    for row in (0, 1):
        pools = plain_pools(net, history(row, WIDTH - 1))
        views.append([b(torch.relu(a(p))) for (a, _, b), p in zip(net.project, pools, strict=True)])
    totals = []
    for row in (0, 1):
        total = torch.zeros(())
        for rate, one, other in ((3 / 6, 0, 1), (1 / 6, 0, 2), (2 / 6, 1, 2)):
            for mine, partner in ((one, other), (other, one)):
                own = views[row][mine]
                others = [(r, kind) for r in (0, 1) for kind in (one, other)]
                others.remove((row, mine))
                odds = {
                    (r, kind): math.e
                    ** (F.cosine_similarity(own, views[r][kind], dim=0) / net.temperature)
                    for r, kind in others
                }
                found = odds[row, partner] / sum(odds.values())
                total = total - net.w_cl * rate * found.log() / 2
        mixed, source, target = views[row]
        gap = (source - mixed + 1e-6).norm() - (source - target + 1e-6).norm() + net.margin
        totals.append(total + net.w_tri * gap.clamp(min=0))
    return totals


@pytest.mark.parametrize("domain", [0, 1])
def test_the_loss_equals_a_plain_computation(monkeypatch, domain):
    net = model(domain, w_cl=0.7, w_tri=1.3, margin=0.9, rates=(3, 1, 2), temperature=0.4)
    torch.manual_seed(4)
    first, last = net.ranges[domain]
    drawn = torch.randint(first, last + 1, ITEMS.shape)
    monkeypatch.setattr(tricdr, "draw_negatives", lambda *_: drawn)
    losses = tricdr_loss(net, ITEMS, TARGETS)
    expected = [plain_bce(net, row, drawn) for row in range(len(ITEMS))]
    for row, more in enumerate(plain_auxiliary(net)):
        expected[row] = expected[row] + more
    torch.testing.assert_close(losses, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_a_later_item_changes_no_earlier_state():
    net = model(1)
    changed = ITEMS.clone()
    changed[:, 3:] = torch.tensor([24, 2, 13])
    before, after = net.states(ITEMS)[1], net.states(changed)[1]
    torch.testing.assert_close(before[[0, 3], :3], after[[0, 3], :3], atol=1e-6, rtol=1e-6)
    assert (before[0, 3:] - after[0, 3:]).abs().amax(1).min() > 1e-3


def test_padding_and_the_other_rows_change_no_state():
    net = model(0)
    together = net.states(F.pad(ITEMS, (0, 1)))[0]
    for row, length in enumerate((ITEMS > 0).sum(1).tolist()):
        alone = net.states(ITEMS[row : row + 1, :length])[0][0]
        torch.testing.assert_close(together[row, :length], alone, atol=1e-6, rtol=1e-6)


def test_which_steps_are_predicted_changes_no_state():
    net = model(0)
    whole, _ = net(ITEMS, ITEMS > 0)
    chosen = TARGETS * (torch.arange(WIDTH) % 2) > 0
    some, _ = net(ITEMS, chosen)
    torch.testing.assert_close(some[chosen], whole[chosen], atol=1e-6, rtol=1e-6)
    none, _ = net(ITEMS, ITEMS < 0)
    assert not torch.allclose(none[chosen], whole[chosen])


def test_a_loss_of_weight_zero_is_not_in_the_graph(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("computed although its weight is 0")

    assert tricdr_loss(model(0, w_cl=0), ITEMS, TARGETS).isfinite().all()
    monkeypatch.setattr(tricdr, "nt_xent", refuse)
    tricdr_loss(model(0, w_cl=0), ITEMS, TARGETS)
    monkeypatch.setattr(F, "triplet_margin_loss", refuse)
    for settings in ({"w_cl": 0}, {"w_tri": 0}):
        with pytest.raises(AssertionError, match="weight is 0"):
            tricdr_loss(model(0, **settings), ITEMS, TARGETS)

    net = model(0, w_cl=0, w_tri=0)
    assert not len(net.project)
    tricdr_loss(net, ITEMS, TARGETS).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_every_weight_learns_and_the_loss_starts_from_all_three_terms():
    net = model(1)
    tricdr_loss(net, ITEMS, TARGETS).sum().backward()
    still = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["attention.rest.3.bias"]  # a softmax does not see a shift


def test_a_row_without_one_domain_is_left_out_of_the_auxiliary_losses(monkeypatch):
    net, bare = model(1), model(1, w_cl=0, w_tri=0)
    bare.load_state_dict({k: v for k, v in net.state_dict().items() if "project" not in k})
    monkeypatch.setattr(tricdr, "draw_negatives", lambda own, *_: (own[:, :WIDTH] % 5) + 13)
    full, without = tricdr_loss(net, ITEMS, TARGETS), tricdr_loss(bare, ITEMS, TARGETS)
    torch.testing.assert_close(full[2:], without[2:])
    assert (full[:2] > without[:2] + 0.01).all()
    torch.testing.assert_close(tricdr_loss(net, ITEMS[:2], TARGETS[:2]), full[:2])
    torch.testing.assert_close(
        tricdr_loss(net, ITEMS[2:], TARGETS[2:]), without[2:], msg="no row has both domains"
    )


def test_a_pair_alone_in_its_batch_is_always_found():
    one, other = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4)
    loss = nt_xent(one, other, 0.1)
    assert loss.item() == 0
    loss.sum().backward()
    assert one.grad.isfinite().all()


def test_negatives_are_every_item_of_the_domain_but_the_rows_own_equally_often():
    torch.manual_seed(0)
    own = torch.tensor([[1, 13, 15, 15, 20, 0], [26, 26, 3, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    drawn = draw_negatives(own, 13, 26, 20_000)
    for row, mine in enumerate(({13, 15, 20}, {26}, set())):
        free = set(range(13, 27)) - mine
        items, counts = drawn[row].unique(return_counts=True)
        assert set(items.tolist()) == free
        expected = 20_000 / len(free)
        assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


def test_the_encoders_start_from_three_trained_ones():
    net = model(0)
    trained = [NextSASRec(N_A, N_B, 8, 7, 2, 2, 10, 0.2) for _ in range(3)]
    net.load_pretrained(*trained)
    for encoder, start in zip((net.mixed, net.source, net.target), trained, strict=True):
        states = encoder.states(ITEMS)[0]
        torch.testing.assert_close(states, start.eval().states(ITEMS)[0])
    start.items.weight.data.zero_()
    assert encoder.items.weight.any()  # a copy, not the same weights
    trained[1] = NextSASRec(N_A, N_B, 8, 7, 2, 2, 20, 0.2)
    with pytest.raises(RequestError, match=r"inner.bias of the pre-trained source .* \(20,\)"):
        net.load_pretrained(*trained)


def test_what_cannot_work_is_refused_in_one_line():
    with pytest.raises(RequestError, match=r"predicts domain A only.*target_domain=1"):
        model(0).score(torch.tensor([20]), torch.tensor([[21]]), items=ITEMS[:1])
    with pytest.raises(RequestError, match="16 items, but its target domain has 12"):
        TriCDR(N_A, N_B, 0)
    with pytest.raises(RequestError, match="w_cl and w_tri"):
        model(0, w_tri=-1)
    for rates in ((1, 1), (0, 0, 0), (1, -1, 1)):
        with pytest.raises(RequestError, match="three numbers"):
            model(0, rates=rates)


def planted(rows: int, domain: int) -> tuple[Tensor, Tensor, Tensor]:
    """Items, targets and last targets; 20 items a domain.

    A row has two source items and then up to three target items, all drawn at random. The item
    after them is the partner of the last source item.
    """
    base, partner_base = (21, 1) if domain == 0 else (1, 21)
    source = torch.randint(20, (rows, 2))
    noise = torch.randint(20, (rows, 3)) + partner_base
    shown = torch.arange(3) < torch.randint(1, 4, (rows, 1))
    items = torch.cat([source + base, noise * shown], 1)
    last = (source[:, 1] * 7 + 3) % 20 + partner_base  # 7 and 20 share no factor
    targets = torch.zeros_like(items)
    targets.scatter_(1, (items > 0).sum(1, keepdim=True) - 1, last.unsqueeze(1))
    return items, targets, last


@pytest.mark.parametrize("domain", [0, 1])
def test_it_finds_the_target_item_that_the_last_source_item_decides(domain):
    torch.manual_seed(0)
    sizes = {"dim": 16, "max_len": 5, "blocks": 1, "inner": 16, "dropout": 0.0}
    net = TriCDR(20, 20, domain, **sizes, w_tri=1.0, margin=1.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(80):
        items, targets, _ = planted(64, domain)
        optimizer.zero_grad()
        tricdr_loss(net, items, targets).mean().backward()
        optimizer.step()

    net.eval()
    items, _, last = planted(200, domain)
    negatives = last[:, None].repeat(1, 2)
    with torch.inference_mode():
        seen = net.score(last, negatives, items=items)[:, 3]  # items of the domain above the target
        items[:, :2] = items[torch.randperm(200), :2]  # another row's source items
        blind = net.score(last, negatives, items=items)[:, 3]
    assert (seen == 0).float().mean() > 0.8
    assert (blind == 0).float().mean() < 0.2  # 1 of 20 by chance
