"""pi-Net and PSJNet: the equations step by step, and what only a transfer can know."""

import pytest
import torch

from reprokit.crossdomain import PiNet, PSJNet, recur
from reprokit.nextitem import next_item_loss
from reprokit.runs import RequestError

N_A, N_B, DIM, HIDDEN = 7, 5, 3, 4

MODELS = {
    "pi-Net": (PiNet, {}),
    "pi-Net, gate keeps the new": (PiNet, {"gate_keeps": "new"}),
    "pi-Net, V_s": (PiNet, {"candidate_members": "own", "members": 2}),
    "PSJNet, mean": (PSJNet, {}),
    "PSJNet, max": (PSJNet, {"reduce": "max", "roles": 3}),
}

ITEMS = torch.tensor(
    [
        [1, 8, 2, 9, 10, 3, 7],
        [8, 9, 4, 4, 12, 0, 0],
        [5, 6, 7, 0, 0, 0, 0],  # A alone
        [11, 12, 0, 0, 0, 0, 0],  # B alone
        [2, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
)
LENGTHS = (ITEMS > 0).sum(1).tolist()


@pytest.fixture(params=MODELS)
def model(request):
    """A model with every weight and bias drawn at random, so that none can hide behind a zero."""
    torch.manual_seed(1)
    kind, options = MODELS[request.param]
    model = kind(N_A, N_B, dim=DIM, hidden=HIDDEN, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


# --- the equations ------------------------------------------------------------------------------
def affine(layer, x):
    return layer.weight @ x + layer.bias


def filtered(unit, h, g, s):
    """One step of pi-Net's filter."""
    members = []
    for e in unit.members:
        to_gate = unit.gate_member.weight @ e
        own = unit.candidate_member
        to_candidate = to_gate if own is None else own.weight @ e
        f = torch.sigmoid(affine(unit.gate, torch.cat([h, g, s])) + to_gate)
        c = torch.tanh(affine(unit.candidate, torch.cat([h, s])) + to_candidate)
        members.append(f * s + (1 - f) * c if unit.keeps_old else f * c + (1 - f) * s)
    return sum(members) / len(members)


def split(unit, h, roles):
    """One step of PSJNet's split."""
    new = []
    for e, r in zip(unit.roles, roles, strict=True):
        g = torch.sigmoid(affine(unit.gate, torch.cat([h, e, r])))
        c = torch.tanh(affine(unit.candidate, torch.cat([h, e, r])))
        new.append(g * c + (1 - g) * r)
    return new


def joined(unit, steps, others):
    """PSJNet's join of steps [i][k] with the other domain's states [j]."""
    others = others or [torch.zeros(HIDDEN)]
    total = torch.zeros(HIDDEN)
    for k in range(len(steps[0]) if steps else 0):
        scores = []
        for roles in steps:
            pairs = [unit.score.weight[0] @ torch.cat([roles[k], h, roles[k] * h]) for h in others]
            scores.append(max(pairs) if unit.reduce == "max" else sum(pairs) / len(pairs))
        weights = torch.stack(scores).softmax(0)
        total = total + sum(w * roles[k] for w, roles in zip(weights, steps, strict=True))
    return total


def reference(model, row):
    """What predicts A and B after each item of one sequence, an item at a time."""
    zero = torch.zeros(HIDDEN)
    h, s, moved = [zero, zero], [zero, zero], [zero, zero]
    hs, roles = ([], []), ([], [])
    for item in row:
        d = int(item > N_A)
        x = model.items[d].weight[item - d * N_A]
        h[d] = model.encoders[d](x[None], h[d][None])[0]
        hs[d].append(h[d])
        if isinstance(model, PiNet):
            s[d] = filtered(model.filters[d], h[d], h[1 - d], s[d])
            moved[d] = model.transfers[d](s[d][None], moved[d][None])[0]
        else:
            last = roles[d][-1] if roles[d] else [zero] * len(model.splits[d].roles)
            roles[d].append(split(model.splits[d], h[d], last))
            moved = [joined(model.joins[q], roles[q], hs[1 - q]) for q in (0, 1)]
        one = torch.ones(1)
        yield torch.cat([moved[1], h[0], one]), torch.cat([moved[0], h[1], one])


def test_every_state_equals_the_equations_item_by_item(model):
    with torch.no_grad():
        states = model.states(ITEMS)
        for row, length in enumerate(LENGTHS):
            for step, expected in enumerate(reference(model, ITEMS[row, :length].tolist())):
                for domain in (0, 1):
                    got = states[domain][row, step]
                    torch.testing.assert_close(got, expected[domain], atol=1e-5, rtol=0)


def test_where_a_domain_has_no_item_yet_its_part_of_the_state_is_zero(model):
    of_a, of_b = model.states(ITEMS)
    alone = torch.zeros(HIDDEN)
    torch.testing.assert_close(of_a[2, 2, :HIDDEN], alone)  # nothing came out of B
    torch.testing.assert_close(of_b[2, 2, HIDDEN:-1], alone)  # B has no last item
    torch.testing.assert_close(of_b[3, 1, :HIDDEN], alone)
    torch.testing.assert_close(of_a[3, 1, HIDDEN:-1], alone)
    assert (of_b[2, 2, :HIDDEN] != 0).all() and (of_a[3, 1, :HIDDEN] != 0).all()


def test_a_later_item_the_target_too_changes_no_earlier_state(model):
    whole = ITEMS[0]
    for step in range(1, len(whole)):
        for other in (5, 11):
            changed = whole.clone()
            changed[step:] = other
            for a, b in zip(model.states(whole[None]), model.states(changed[None]), strict=True):
                torch.testing.assert_close(a[0, :step], b[0, :step], atol=1e-6, rtol=0)
                assert not torch.allclose(a[0, -1], b[0, -1])


def test_padding_and_the_rest_of_the_batch_change_nothing(model):
    together = model.states(ITEMS)
    longer = model.states(torch.nn.functional.pad(ITEMS, (0, 4)))
    for row, length in enumerate(LENGTHS[:-1]):
        alone = model.states(ITEMS[row : row + 1, :length])
        for domain in (0, 1):
            expected = alone[domain][0]
            for batch in (together, longer):
                got = batch[domain][row, :length]
                torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_the_two_directions_share_no_parameter(model):
    of_a, of_b = model.states(ITEMS[:2])
    units = [model.filters, model.transfers] if isinstance(model, PiNet) else [model.splits]
    for unit in units:
        for parameter in unit[0].parameters():  # out of A, into what predicts B
            torch.nn.init.normal_(parameter)
    now_a, now_b = model.states(ITEMS[:2])
    assert torch.equal(of_a, now_a)
    assert not torch.allclose(of_b[:, -1, :HIDDEN], now_b[:, -1, :HIDDEN])


def test_every_parameter_learns_from_sequences_of_both_domains(model):
    model.train()
    targets = torch.tensor([[8, 2, 9, 10, 3, 7, 1], [9, 4, 4, 12, 5, 0, 0]])
    next_item_loss(model, targets, items=ITEMS[:2]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_bias_lifts_its_item_alone(model):
    negatives = torch.tensor([[1, 2, 4], [8, 9, 10]])
    targets = torch.tensor([6, 12])
    with torch.no_grad():
        before = [model.domain_scores(d, ITEMS[:2]) for d in (0, 1)]
        for domain, row in ((0, 5), (1, 4)):
            model.tables()[domain][row, -1] += 1000
            now = model.domain_scores(domain, ITEMS[:2])
            change = (now - before[domain])[:, torch.arange(model.sizes[domain]) != row]
            assert change.abs().max() == 0
        counts = model.score(targets, negatives, items=ITEMS[:2])
    assert (counts == 0).all()  # nothing stands above the target, nothing ties


# --- training -----------------------------------------------------------------------------------
def test_the_start_is_that_of_the_published_code():
    model = PiNet(900, 1100)
    assert (model.filters[0].gate.bias == 1).all() and (model.filters[1].candidate.bias == 1).all()
    assert (model.encoders[0].bias_ih[:200] == 1).all() and (model.tables()[1][:, -1] == 0).all()
    spread = model.tables()[0][:, :-1].std().item()
    assert spread == pytest.approx((2 / (900 + 200)) ** 0.5, rel=0.02)
    assert model.items[0].weight.std().item() == pytest.approx((2 / (901 + 100)) ** 0.5, rel=0.02)
    assert model.filters[0].members.shape == (4, 100)


def test_dropout_hits_inputs_outputs_and_the_carried_state_apart():
    torch.manual_seed(0)

    def add(x, state):
        return x + state

    out = recur(add, torch.ones(1, 2, 4000), (4000,), torch.nn.Dropout(0.5))
    # First step: input 0 or 2, handed out as 0 or 4. Second: 0 or 2, plus a carried 0 or 4.
    assert set(out[0, 0].tolist()) == {0, 4}
    assert set(out[0, 1].tolist()) == {0, 4, 8, 12}
    carried = out[0, 1] >= 8
    assert (out[0, 0][carried] == 0).any()  # handed out as 0, carried on all the same


@pytest.mark.parametrize("kind", [PiNet, PSJNet])
def test_dropout_stops_in_evaluation_and_spares_the_bias(kind):
    torch.manual_seed(0)
    model = kind(N_A, N_B, dim=8, hidden=200)
    items = ITEMS[:1].expand(20, -1)
    of_a, _ = model.states(items)
    dropped = (of_a[:, -1, 200:-1] == 0).float().mean().item()
    assert dropped == pytest.approx(1 - 0.8 * 0.8, abs=0.03)  # as output, and before the head
    assert (of_a[..., -1] == 1).all()
    first, again = (model.eval().states(items)[0] for _ in range(2))
    assert torch.equal(first, again) and (first[:, -1] != 0).all()


def planted(rows, pairs, items, from_b, seed):
    """Cause, effect, cause, effect: each effect is decided by the cause before it, in the other
    domain, and causes are random. Only effects are to be predicted."""
    rule = torch.randperm(items, generator=torch.Generator().manual_seed(9))
    draws = torch.randint(items, (rows, pairs), generator=torch.Generator().manual_seed(seed))
    cause, effect = 1 + draws, 1 + rule[draws]
    cause, effect = (cause + items, effect) if from_b else (cause, effect + items)
    sequence = torch.stack([cause, effect], 2).flatten(1)
    targets = torch.zeros_like(sequence)
    targets[:, ::2] = effect
    return sequence[:, :-1], targets[:, :-1]


def trained(model, items, targets, steps=70):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        rows = torch.randint(len(items), (96,))
        optimizer.zero_grad()
        next_item_loss(model, targets[rows], items=items[rows]).mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("from_b", [True, False])
@pytest.mark.parametrize("kind", [PiNet, PSJNet])
def test_a_rule_across_domains_is_found_through_the_transfer_alone(kind, from_b):
    count = 15
    items, targets = planted(300, 3, count, from_b, seed=1)
    new, wanted = planted(150, 3, count, from_b, seed=2)
    last = wanted[:, -1] - (1 if from_b else 1 + count)
    hits = []
    for cut in (False, True):
        torch.manual_seed(0)
        model = kind(count, count, dim=16, hidden=16, dropout=0.0)
        if cut:
            model.transfer = lambda source, encoded, *_: torch.zeros_like(encoded[source])
        trained(model, items, targets)
        with torch.no_grad():
            best = model.domain_scores(0 if from_b else 1, new).argmax(1)
        hits.append((best == last).float().mean().item())
    assert hits[0] > 0.95
    assert hits[1] < 0.25  # chance is 0.07


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (PiNet, {"gate_keeps": "both"}),
        (PiNet, {"candidate_members": "V_s"}),
        (PSJNet, {"reduce": "sum"}),
    ],
)
def test_an_unknown_option_is_named_with_what_is_known(kind, option):
    ((name, value),) = option.items()
    with pytest.raises(RequestError, match=f"{name} must be .* or .*, got '{value}'") as error:
        kind(N_A, N_B, **option)
    assert "\n" not in str(error.value)
