"""LLM-EMF against equations 2 to 12 as they are printed: loops over rows, views, modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from conftest import number
from torch import Tensor

from reprokit.emf import LLMEMF, VIEWS, Attention, emf_loss

N_A, N_B, DIM = 7, 6, 6
WIDTHS = {"image": 4, "text": 8}
SHARES = {"id": 0.5, "image": 0.2, "text": 0.3}
SETS = [(), ("image",), ("text",), ("image", "text")]
ITEMS = torch.tensor(
    [
        [1, 9, 3, 8, 2, 12, 0],  # both domains
        [4, 2, 4, 6, 0, 0, 0],  # A alone, an item twice
        [13, 8, 10, 11, 9, 0, 0],  # B alone
        [5, 0, 0, 0, 0, 0, 0],
        [9, 11, 3, 1, 7, 13, 2],
    ]
)
TARGETS = torch.tensor(
    [
        [9, 3, 8, 2, 12, 7, 0],
        [2, 4, 6, 0, 0, 0, 0],
        [8, 10, 11, 9, 3, 0, 0],  # an item of A after B alone: the view of A has read nothing
        [10, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 5],  # one of the positions alone
    ]
)


def features(names: tuple[str, ...]) -> dict[str, Tensor]:
    """Vectors of any length; every third item has none."""
    found = {}
    for name in names:
        torch.manual_seed(len(name))
        found[name] = 3 * torch.randn(N_A + N_B, WIDTHS[name])
        found[name][1::3] = 0
    return found


def model_of(names: tuple[str, ...] = ("image", "text"), seed: int = 0, **more: Any) -> LLMEMF:
    """An untrained model whose every weight is drawn, so that no bias and no norm hides."""
    torch.manual_seed(seed)
    model = LLMEMF((N_A, N_B), DIM, features(names), SHARES, **{"max_len": 7, **more})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "log_temperature":
                parameter.normal_(std=0.4)
            elif parameter.requires_grad:
                parameter.uniform_(-2, 0)
    return model.eval()


# --- the equations, written out -----------------------------------------------------------------
def attend(layer: Attention, vectors: list[np.ndarray]) -> np.ndarray:
    """Equations 2 and 4: the state of the last step, one head, residual and layer norm."""
    weight, bias = number(layer.project.weight), number(layer.project.bias)
    x = [vector + at for vector, at in zip(vectors, number(layer.positions), strict=False)]
    projected = [np.split(weight @ one + bias, 3) for one in x]
    query = projected[-1][0]
    odds = [np.exp(query @ key / np.sqrt(len(query))) for _, key, _ in projected]
    seen = sum(o / sum(odds) * value for o, (_, _, value) in zip(odds, projected, strict=True))
    out = x[-1] + number(layer.out.weight) @ seen + number(layer.out.bias)
    out = (out - out.mean()) / np.sqrt(((out - out.mean()) ** 2).mean() + 1e-5)
    return out * number(layer.norm.weight) + number(layer.norm.bias)


def vector(model: LLMEMF, tables: Mapping[str, np.ndarray], name: str, item: int) -> np.ndarray:
    """A sequence reads an item's vector at unit length; without one, the learned vector."""
    if name == "id":
        return tables["id"][item - 1]
    found = tables[name][item - 1]
    return found / np.linalg.norm(found) if found.any() else number(model.missing[name])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 3; 0 where there is nothing to compare."""
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths else 0.0


def probability(
    model: LLMEMF, names: tuple[str, ...], view: str, read: list[int], among: range
) -> np.ndarray:
    """Equations 5 to 8 over the items `among`, after a view has read some items."""
    tables = {"id": number(model.ids)}
    tables |= {name: number(table) for name, table in features(names).items()}
    total = sum(SHARES[name] for name in ("id", *names))
    mixed = np.zeros(len(among))
    for at, name in enumerate(("id", *names)):
        layer = model.layers[f"{view}-{name}"]
        assert isinstance(layer, Attention)
        state = np.zeros(1)
        if read:
            state = attend(layer, [vector(model, tables, name, item) for item in read])
        tau = np.exp(number(model.log_temperature)[VIEWS.index(view) * (1 + len(names)) + at])
        near = [cosine(state, tables[name][i - 1]) if read else 0.0 for i in among]
        odds = np.exp(np.array(near) / tau)
        mixed += SHARES[name] / total * odds / odds.sum()
    return mixed


RANGES = {"a": range(1, N_A + 1), "b": range(N_A + 1, N_A + N_B + 1)}
RANGES["both"] = range(1, N_A + N_B + 1)


def plain_loss(model: LLMEMF, names: tuple[str, ...], target: int) -> list[float]:
    """Equations 9 and 10 of each row."""
    importance = {"ab"[target]: 1.0, "ab"[1 - target]: model.lambda1, "both": model.lambda2}
    rows = []
    for items, targets in zip(ITEMS.tolist(), TARGETS.tolist(), strict=True):
        row = 0.0
        for step, wanted in enumerate(targets):
            for view, among in RANGES.items():
                read = [item for item in items[: step + 1] if item in among]
                if wanted in among and read:
                    p = probability(model, names, view, read, among)
                    row -= importance[view] * np.log(p[wanted - among[0]])
        rows.append(row)
    return rows


def plain_scores(model: LLMEMF, names: tuple[str, ...], domain: int) -> np.ndarray:
    """Equation 11 of each row, for the items of a domain."""
    importance = {"ab"[domain]: 1.0, "ab"[1 - domain]: model.lambda1, "both": model.lambda2}
    rows = []
    for items in ITEMS.tolist():
        row = np.zeros(len(RANGES["ab"[domain]]))
        for view, weight in importance.items():
            read = [item for item in items if item in RANGES[view]]
            row += weight * probability(model, names, view, read, RANGES["ab"[domain]])
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("learn", [False, True])
def test_the_loss_is_that_of_equations_2_to_10(names: tuple[str, ...], target: int, learn: bool):
    model = model_of(names, target=target, learn_temperature=learn, lambda1=0.7, lambda2=0.4)
    plain = plain_loss(model, names, target)
    np.testing.assert_allclose(number(emf_loss(model, ITEMS, TARGETS)), plain, atol=1e-5)
    halved = emf_loss(model, ITEMS, TARGETS, per_row=2.0)
    np.testing.assert_allclose(number(halved), np.array(plain) / 2, atol=1e-5)


@pytest.mark.parametrize("names", SETS)
@pytest.mark.parametrize("domain", [0, 1])
@pytest.mark.parametrize("learn", [False, True])
def test_scores_are_those_of_equation_11(names: tuple[str, ...], domain: int, learn: bool):
    """Whatever domain was X in training, the one that is ranked is X here."""
    model = model_of(names, target=0, learn_temperature=learn, lambda1=0.7, lambda2=0.4)
    scores = number(model.domain_scores(domain, ITEMS))
    np.testing.assert_allclose(scores, plain_scores(model, names, domain), atol=1e-5)
    np.testing.assert_allclose(scores.sum(1), 1 + 0.7 + 0.4, atol=1e-5)


def test_the_best_item_of_equation_12_has_nothing_above_it():
    model = model_of()
    for domain, among in enumerate((RANGES["a"], RANGES["b"])):
        scores = plain_scores(model, ("image", "text"), domain)
        best = torch.from_numpy(among[0] + scores.argmax(1))
        others = torch.tensor([[item for item in among if item != one] for one in best.tolist()])
        counts = model.score(best, others, items=ITEMS)
        assert counts.tolist() == [[0.0] * 5] * len(ITEMS)
        worst = torch.from_numpy(among[0] + scores.argmin(1))
        assert (model.score(worst, others, items=ITEMS)[:, 3] == len(among) - 1).all()


def test_a_temperature_of_1_is_the_literal_form():
    """With cosines from -1 to 1 no item reaches more than e / (e + (n - 1) / e)."""
    model = model_of((), temperature=1.0)
    assert not model.log_temperature.any()
    scores = number(model.domain_scores(0, ITEMS))
    np.testing.assert_allclose(scores, plain_scores(model, (), 0), atol=1e-5)
    weight = 1 + model.lambda1 + model.lambda2
    assert scores.max() < weight * np.e / (np.e + (N_A - 1) / np.e)
    assert number(model_of(()).domain_scores(0, ITEMS)).max() > scores.max()


@pytest.mark.parametrize("names", SETS)
def test_a_sampled_softmax_of_all_items_is_the_exact_one(names: tuple[str, ...]):
    model = model_of(names)
    exact = emf_loss(model, ITEMS, TARGETS)
    torch.testing.assert_close(emf_loss(model, ITEMS, TARGETS, sampled=99), exact)
    torch.manual_seed(0)
    assert not torch.allclose(emf_loss(model, ITEMS, TARGETS, sampled=3), exact)


# --- what a state knows -------------------------------------------------------------------------
def flat_states(model: LLMEMF, items: Tensor) -> dict[str, Tensor]:
    found, counts = model.views(items)
    states = {f"{view}-{name}": s for view, by_name in found.items() for name, s in by_name.items()}
    return {**states, **{f"{view} read": count for view, count in counts.items()}}


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_later_item_changes_no_earlier_state(step: int):
    torch.manual_seed(0)
    items, others = torch.randint(1, N_A + N_B + 1, (2, 6, 7))
    others[:, : step + 1] = items[:, : step + 1]
    model = model_of()
    one, two = flat_states(model, items), flat_states(model, others)
    assert len(one) == 9 + 3
    for name, states in one.items():
        torch.testing.assert_close(states[:, : step + 1], two[name][:, : step + 1])
    assert not torch.allclose(one["both-id"], two["both-id"])


def test_padding_and_the_rest_of_a_batch_change_nothing():
    model = model_of(max_len=12)
    padded = torch.cat([ITEMS, torch.zeros(5, 4, dtype=torch.long)], 1)
    longer = torch.cat([TARGETS, torch.zeros(5, 4, dtype=torch.long)], 1)
    scores, loss = model.domain_scores(1, ITEMS), emf_loss(model, ITEMS, TARGETS)
    torch.testing.assert_close(model.domain_scores(1, padded), scores)
    torch.testing.assert_close(emf_loss(model, padded, longer), loss)
    for row in range(len(ITEMS)):
        one = slice(row, row + 1)
        torch.testing.assert_close(model.domain_scores(1, ITEMS[one]), scores[one])
        torch.testing.assert_close(emf_loss(model, ITEMS[one], TARGETS[one]), loss[one])


def test_dropout_acts_in_training_alone():
    model = model_of()
    again = emf_loss(model, ITEMS, TARGETS)
    assert torch.equal(emf_loss(model, ITEMS, TARGETS), again)
    model.train()
    assert not torch.allclose(emf_loss(model, ITEMS, TARGETS), emf_loss(model, ITEMS, TARGETS))


# --- parameters ---------------------------------------------------------------------------------
@pytest.mark.parametrize("names", SETS)
def test_a_modality_that_is_off_has_no_parameter(names: tuple[str, ...]):
    model = model_of(names)
    assert model.modalities == ("id", *names)
    assert len(model.layers) == 3 * (1 + len(names)) == len(model.log_temperature)
    parts = {part for name in model.state_dict() for part in ("image", "text") if part in name}
    assert parts == set(names) == set(model.missing)


def test_frozen_vectors_get_no_gradient_and_are_no_part_of_the_state():
    given = features(("image", "text"))
    kept = {name: table.clone() for name, table in given.items()}
    model = LLMEMF((N_A, N_B), DIM, given, SHARES, max_len=7)
    emf_loss(model, ITEMS, TARGETS).sum().backward()
    for name, table in given.items():
        assert torch.equal(table, kept[name])
        buffer = model.get_buffer(f"of_{name}")
        assert not buffer.requires_grad and buffer.grad is None
    sizes = {tensor.shape[0] for name, tensor in model.state_dict().items() if name != "ids"}
    assert N_A + N_B not in sizes
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    assert model.ids.grad is not None and model.ids.grad.abs().sum() > 0
    assert model.missing["image"].grad.abs().sum() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("sampled", [0, 3])
def test_every_weight_has_a_gradient_even_where_a_view_has_nothing_to_predict(
    learn: bool, sampled: int
):
    """Several processes wait for the gradient of each weight in each step."""
    model = model_of(learn_temperature=learn, lambda1=0.0)
    one_of_a = torch.tensor([[1, 3, 0]]), torch.tensor([[3, 2, 0]])
    for items, targets in ((ITEMS, TARGETS), one_of_a):
        model.zero_grad()
        emf_loss(model, items, targets, sampled=sampled).sum().backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert [name for name, grad in trained.items() if grad is None] == []
        assert all(torch.isfinite(grad).all() for grad in trained.values() if grad is not None)
        assert ("log_temperature" in trained) == learn
        moved = {name for name, grad in trained.items() if grad is not None and grad.any()}
        assert not any(name.startswith("layers.b-") for name in moved)  # lambda1 is 0
        assert any(name.startswith("layers.a-") for name in moved)


def test_weights_of_the_present_modalities_sum_to_1():
    shares = {names: model_of(names).weights.tolist() for names in SETS}
    assert shares[()] == [1.0]
    assert shares[("image",)] == pytest.approx([5 / 7, 2 / 7])
    assert shares[("text",)] == pytest.approx([5 / 8, 3 / 8])
    assert shares[("image", "text")] == pytest.approx([0.5, 0.2, 0.3])


def test_a_modality_of_weight_0_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SHARES, "text", 0.0)
    with_it, without = model_of(("image", "text")), model_of(("image",))
    shared = {name: value for name, value in with_it.state_dict().items() if "text" not in name}
    shared["log_temperature"] = without.log_temperature
    without.load_state_dict(shared)
    loss = emf_loss(with_it, ITEMS, TARGETS)
    torch.testing.assert_close(loss, emf_loss(without, ITEMS, TARGETS))
    torch.testing.assert_close(with_it.domain_scores(0, ITEMS), without.domain_scores(0, ITEMS))
    loss.sum().backward()
    grads = [p.grad for p in with_it.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)


# --- known answers ------------------------------------------------------------------------------
def train(model: LLMEMF, items: Tensor, targets: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        emf_loss(model.train(), items, targets).mean().backward()
        optimizer.step()
    model.eval()


def test_an_item_that_always_follows_another_is_ranked_first():
    """In both domains, though their events alternate as they like: item i of a domain is followed
    by its item i + 1 there."""
    rng, n = np.random.default_rng(0), 12
    rows = []
    for _ in range(80):
        at, row = rng.integers(0, n, 2), []
        for domain in rng.integers(0, 2, 7):
            row.append(1 + domain * n + at[domain])
            at[domain] = (at[domain] + 1) % n
        rows.append(row)
    whole = torch.tensor(rows)
    torch.manual_seed(0)
    model = LLMEMF((n, n), 16, {}, {"id": 1.0}, lambda1=1.0, max_len=6, dropout=0.0)
    train(model, whole[:60, :-1], whole[:60, 1:], 60)
    items, targets = whole[60:, :-1], whole[60:, -1]
    own = ((items > n) == (targets > n)[:, None]).any(1)  # its domain has been read
    others = 1 + torch.arange(n) + n * (targets > n)[:, None]
    ranks = 1 + model.score(targets, others, items=items)[own, 3]
    assert own.sum() >= 15
    assert (1 / ranks).mean() > 0.8  # chance is 0.26


def test_texts_tell_of_items_that_training_has_never_seen():
    """Sequences stay in a group of items, whose texts say which; the last item is new."""
    rng, groups, of_each = np.random.default_rng(0), 5, 8
    said = torch.eye(groups).repeat_interleave(of_each, 0)  # items of A by group
    said = torch.cat([said, torch.ones(2, groups)])
    rows = [g * of_each + 1 + rng.permutation(of_each - 1)[:5] for g in range(groups)] * 8
    whole = torch.from_numpy(np.stack(rows))
    new = of_each * torch.arange(1, groups + 1)  # the last item of each group is in no row
    others = torch.arange(1, groups * of_each + 1).expand(groups, -1)
    found = {}
    for name, vectors in (("text", {"text": said}), ("id", {})):
        torch.manual_seed(0)
        sizes = (groups * of_each, 2)
        model = LLMEMF(sizes, 8, vectors, {"id": 0.5, "text": 0.5}, max_len=5, dropout=0.0)
        train(model, whole[:, :-1], whole[:, 1:], 40)
        found[name] = 1 + model.score(new, others, items=whole[:groups])[:, 3]
    assert found["text"].max() <= of_each < 15 < found["id"].mean()
