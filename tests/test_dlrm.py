"""DLRM against its definition written as loops; MMREC's class weights, by hand."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import number
from torch import Tensor, nn

from reprokit.dlrm import DLRM, Upstream, class_weights, linear, type_table, weighted_bce
from reprokit.runs import RequestError

DIM, MOST = 8, 4
N_TYPES = (5, 3)  # padding is 5 in the first field, 3 in the second
CASES = [(0, ()), (2, ()), (0, (5,)), (2, N_TYPES)]
LABELS = torch.tensor([1, 0, 1, 1, 0, 1])


def model_of(n_vectors: int = 2, n_types: tuple[int, ...] = N_TYPES, **more: Any) -> DLRM:
    torch.manual_seed(0)
    return DLRM(3, n_vectors, n_types, DIM, bottom=(9,), top=(16, 12), **more).eval()


def inputs_of(n_vectors: int = 2, n_types: tuple[int, ...] = N_TYPES) -> dict[str, Tensor]:
    """Six rows; a categorical field has none to four values, each perhaps twice."""
    torch.manual_seed(1)
    found = {"dense": torch.randn(6, 3)}
    if n_vectors:
        found["vectors"] = torch.randn(6, n_vectors, DIM)
    if n_types:
        fields = [torch.randint(0, count + 1, (6, MOST)) for count in n_types]
        found["types"] = torch.stack(fields, 1)
        found["types"][4] = torch.tensor(n_types)[:, None]  # padding alone
    return found


# --- the definition, written out ----------------------------------------------------------------
def layers(network: nn.Sequential, x: np.ndarray) -> np.ndarray:
    """ReLU behind every layer of a network in double precision, but for a last one of one unit."""
    for layer in (each for each in network if isinstance(each, nn.Linear)):
        x = number(layer.weight) @ x + number(layer.bias)
        x = x if len(x) == 1 else np.maximum(x, 0)
    return x


def plain_logits(model: DLRM, inputs: dict[str, Tensor]) -> np.ndarray:
    logits = []
    for row in range(len(inputs["dense"])):
        z = layers(model.bottom, number(inputs["dense"][row]))
        fields = [z]
        if "vectors" in inputs:
            fields += list(number(inputs["vectors"][row]))
        for at, table in enumerate(model.tables):
            assert isinstance(table, nn.EmbeddingBag)
            total = np.zeros(DIM)
            for value in inputs["types"][row, at].tolist():
                if value != len(table.weight) - 1:
                    total += number(table.weight[value])
            fields.append(total)
        products = [fields[i] @ fields[j] for i in range(len(fields)) for j in range(i)]
        logits.append(layers(model.top, np.concatenate([z, products]))[0])
    return np.array(logits)


@pytest.mark.parametrize(("n_vectors", "n_types"), CASES)
def test_logits_and_probabilities_are_those_of_the_definition(
    n_vectors: int, n_types: tuple[int, ...]
):
    model, inputs = model_of(n_vectors, n_types), inputs_of(n_vectors, n_types)
    plain = plain_logits(model, inputs)
    assert len(set(plain.round(6))) == 6  # what is compared differs from row to row
    np.testing.assert_allclose(number(model(**inputs)), plain, atol=1e-6)
    np.testing.assert_allclose(number(model.score(**inputs)), plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["basic", "sqrt", "none"])
def test_the_weighted_loss_is_minus_weight_times_log_probability(kind: str):
    model, inputs = model_of(), inputs_of()
    weights = class_weights(LABELS.numpy() == 1, kind)
    p = 1 / (1 + np.exp(-plain_logits(model, inputs)))
    plain = [
        -weights[1] * math.log(p[row]) if label else -weights[0] * math.log(1 - p[row])
        for row, label in enumerate(LABELS.tolist())
    ]
    for labels in (LABELS, LABELS.bool(), LABELS.float()):
        for given in (weights, torch.tensor(weights), torch.tensor(weights, dtype=torch.float64)):
            losses = weighted_bce(model, labels, given, **inputs)
            assert losses.shape == (6,) and losses.dtype == torch.float32
            np.testing.assert_allclose(number(losses), plain, atol=1e-6)


@pytest.mark.parametrize("fields", [0, 1, 2, 5, 26])
def test_f_fields_beside_z_make_f_times_f_plus_1_over_2_products(fields: int):
    for given in range(0, fields + 1, 2):
        model = DLRM(3, given, (4,) * (fields - given), DIM)
        first = model.top[0]
        assert isinstance(first, nn.Linear)
        assert first.in_features == DIM + fields * (fields + 1) // 2


def test_a_bare_model_of_dense_numbers_is_two_mlps():
    torch.manual_seed(0)
    model, dense = DLRM(3, 0), torch.randn(4, 3)
    torch.testing.assert_close(model(dense), model.top(model.bottom(dense)).squeeze(1))
    assert model(dense).shape == (4,)
    torch.testing.assert_close(model(dense, torch.zeros(4, 0, 32)), model(dense))


# --- categorical fields of several values -------------------------------------------------------
def test_more_padding_changes_nothing():
    model, inputs = model_of(), inputs_of()
    padding = torch.tensor(N_TYPES)[:, None].expand(6, 2, 7)
    longer = {**inputs, "types": torch.cat([padding, inputs["types"]], 2)}
    assert torch.equal(model(**longer), model(**inputs))


def test_the_order_of_values_changes_nothing_and_their_number_does():
    model, inputs = model_of(), inputs_of()
    flipped = {**inputs, "types": inputs["types"].flip(2)}
    torch.testing.assert_close(model(**flipped), model(**inputs))
    twice = {**inputs, "types": torch.cat([inputs["types"], inputs["types"]], 2)}
    changed = (model(**twice) - model(**inputs)).abs() > 1e-4
    assert changed.tolist() == [True] * 4 + [False, True]  # row 4 has no value at all


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_padding_has_no_gradient_and_stays_zero(optimizer: Any):
    model, inputs = model_of().train(), inputs_of()
    steps = optimizer(model.parameters(), lr=0.1, weight_decay=0.1)
    before = [table.weight.detach().clone() for table in model.tables]
    for _ in range(3):
        steps.zero_grad()
        weighted_bce(model, LABELS, (0.7, 0.3), **inputs).mean().backward()
        for table, values in zip(model.tables, inputs["types"].unbind(1), strict=True):
            read = torch.bincount(values.flatten(), minlength=len(table.weight)) > 0
            assert read[-1] and read.sum() > 3
            assert torch.equal(table.weight.grad.any(1)[:-1], read[:-1])
            assert not table.weight.grad[-1].any()
        steps.step()
    for table, old in zip(model.tables, before, strict=True):
        assert not table.weight[-1].any()
        assert (table.weight[:-1] != old[:-1]).any(1).all()


# --- what the products are for ------------------------------------------------------------------
def dot_product_task(rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """The sign of the product of two given vectors; the dense number is noise."""
    vectors = torch.randn(rows, 2, DIM)
    return {"dense": torch.randn(rows, 1), "vectors": vectors}, vectors.prod(1).sum(1) > 0


def xor_task(rows: int) -> tuple[dict[str, Tensor], Tensor]:
    """The sign of a vector's first number, turned around by type 1; type 2 does not matter."""
    vectors, turned = torch.randn(rows, 1, DIM), torch.rand(rows) < 0.5
    types = torch.stack([turned.long(), torch.where(torch.rand(rows) < 0.5, 2, 3)], 1)
    inputs = {"dense": torch.randn(rows, 1), "vectors": vectors, "types": types.unsqueeze(1)}
    return inputs, (vectors[:, 0, 0] > 0) ^ turned


class Concatenated(nn.Module):
    """One MLP over everything side by side, of more weights than the DLRM has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = DLRM(width, 0, dim=DIM)

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        return self.parts(torch.cat([dense, vectors.flatten(1)], 1))


def without_products(model: DLRM) -> DLRM:
    """The same model, its top MLP reading z and zeros."""
    model.top.register_forward_pre_hook(lambda _, x: (F.pad(x[0][:, :DIM], (0, len(model.pairs))),))
    return model


def accuracy(model: nn.Module, task: Any) -> float:
    """On rows not trained on, after 300 steps."""
    inputs, labels = task(2000)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    for step in range(300):
        rows = torch.arange(step * 100, step * 100 + 100) % 2000
        batch = {name: tensor[rows] for name, tensor in inputs.items()}
        optimizer.zero_grad()
        weighted_bce(model, labels[rows], (1.0, 1.0), **batch).mean().backward()
        optimizer.step()
    inputs, labels = task(1000)
    return float(((model(**inputs) > 0) == labels).float().mean())


@pytest.mark.parametrize("task", [dot_product_task, xor_task])
def test_what_depends_on_pairs_is_learned_and_not_without_products(task: Any):
    fields = (2, ()) if task is dot_product_task else (1, (3,))
    torch.manual_seed(0)
    assert accuracy(DLRM(1, *fields, DIM), task) > 0.97
    assert accuracy(without_products(DLRM(1, *fields, DIM)), task) < 0.56


def test_products_learn_the_sign_of_a_dot_product_better_than_one_mlp():
    torch.manual_seed(0)
    assert accuracy(Concatenated(1 + 2 * DIM), dot_product_task) < 0.93


# --- training -----------------------------------------------------------------------------------
@pytest.mark.parametrize("part", ["bottom", "top"])
def test_dropout_acts_in_training_alone_and_in_both_mlps(part: str):
    inputs = inputs_of()
    without, model = model_of(), model_of(dropout=0.5)
    assert torch.equal(model(**inputs), without(**inputs))
    assert torch.equal(without.train()(**inputs), model(**inputs))
    getattr(model, part).train()
    assert not torch.equal(model(**inputs), model(**inputs))
    dropped = [type(layer).__name__ for layer in getattr(model, part)]
    assert dropped[:6] == ["Linear", "ReLU", "Dropout"] * 2  # D2, z's too


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_gradient_of_a_large_batch_is_the_same_bytes_every_time(device: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(0)
    model = DLRM(5, 2, (179,)).to(device)
    inputs = {"dense": torch.randn(4096, 5), "vectors": torch.randn(4096, 2, 32)}
    inputs["types"] = torch.randint(0, 180, (4096, 1, 11))
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    labels, gradients = torch.randint(0, 2, (4096,), device=device), []
    for _ in range(5):
        model.zero_grad()
        weighted_bce(model, labels, (0.8, 0.2), **inputs).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    model, vectors = Upstream(12, (9,), 4), torch.randn(6, 12)
    weighted_bce(model, LABELS, (0.5, 0.5), vectors=vectors).sum().backward()
    both = model_of()
    weighted_bce(both, LABELS, (0.5, 0.5), **inputs_of()).sum().backward()
    for name, parameter in [*model.named_parameters(), *both.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.any(), name


def test_layers_start_as_in_the_code_of_dlrm():
    torch.manual_seed(0)
    layer, one = linear(300, 500), torch.stack([linear(4, 1).bias for _ in range(2000)])
    weight = layer.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 800), rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-3)
    assert float(layer.bias.detach().std()) == pytest.approx(math.sqrt(1 / 500), rel=0.1)
    assert float(one.detach().std()) == pytest.approx(1, rel=0.1)
    table = type_table(399, 64).weight.detach()
    assert table.shape == (400, 64) and not table[-1].any()
    assert 0.999 * 0.05 < float(table.abs().max()) <= 0.05  # sqrt(1 / 400)
    assert float(table[:-1].std()) == pytest.approx(0.05 / math.sqrt(3), rel=0.02)


# --- class weights ------------------------------------------------------------------------------
SEVEN = np.array([1, 1, 0, 1, 1, 0, 1], bool)


def test_class_weights_of_five_positives_among_seven():
    assert class_weights(SEVEN, "basic") == pytest.approx((1 - 2 / 7, 1 - 5 / 7))
    assert class_weights(SEVEN, "sqrt") == pytest.approx((math.sqrt(5 / 7), math.sqrt(2 / 7)))
    assert class_weights(SEVEN, "none") == (1.0, 1.0)


class Fixed(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits


def test_the_weighted_loss_by_hand():
    """Odds of 3 to 1 for positive, and 1 to 1; at 200 to 0 neither loss overflows."""
    labels, logits = torch.tensor([1, 0, 1, 0, 0]), torch.tensor([math.log(3)] * 2 + [0, 0, 200.0])
    losses = weighted_bce(Fixed(), labels, class_weights(SEVEN, "basic"), logits=logits)
    wanted = [
        2 / 7 * math.log(4 / 3),
        5 / 7 * math.log(4),
        2 / 7 * math.log(2),
        5 / 7 * math.log(2),
        5 / 7 * 200,
    ]
    np.testing.assert_allclose(number(losses), wanted, rtol=1e-6)


@pytest.mark.parametrize("kind", ["basic", "sqrt", "none"])
@pytest.mark.parametrize(("labels", "said"), [([1, 1, 1], "3 positive of 3"), ([0, 0], "0 posi")])
def test_labels_of_one_class_have_no_weights(kind: str, labels: list[int], said: str):
    with pytest.raises(ValueError, match=f"both classes, got {said}"):
        class_weights(np.array(labels, bool), kind)


# --- the upstream model -------------------------------------------------------------------------
@pytest.mark.parametrize(("activation", "bend"), [("tanh", np.tanh), ("relu", lambda x: x.clip(0))])
def test_the_compressed_vector_is_what_the_one_output_unit_reads(activation: str, bend: Any):
    torch.manual_seed(0)
    model, vectors = Upstream(12, (9, 7), 4, 0.5, activation).eval(), torch.randn(5, 12)
    first, second, third = (part for part in model.hidden if isinstance(part, nn.Linear))
    x = number(vectors)
    for layer in (first, second):
        x = np.maximum(x @ number(layer.weight).T + number(layer.bias), 0)
    compressed = bend(x @ number(third.weight).T + number(third.bias))
    np.testing.assert_allclose(number(model.compress(vectors)), compressed, atol=1e-6)
    logits = (compressed @ number(model.last.weight).T + number(model.last.bias))[:, 0]
    np.testing.assert_allclose(number(model(vectors)), logits, atol=1e-6)
    np.testing.assert_allclose(number(model.score(vectors)), logits, atol=1e-5)
    model.train()
    assert not torch.equal(model.compress(vectors), model.compress(vectors))


def test_upstream_keeps_what_decides_the_outcome_for_a_frozen_model():
    """One direction of 40 numbers decides; a line through the compressed vectors finds it again."""
    torch.manual_seed(0)
    vectors, model = torch.randn(1500, 40), Upstream(40, (16,), 6)
    labels = vectors[:, :4].sum(1) > 0
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    for _ in range(60):
        optimizer.zero_grad()
        weighted_bce(model, labels[:1000], (1.0, 1.0), vectors=vectors[:1000]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        reduced = F.pad(model.eval().compress(vectors), (0, 1), value=1.0)
    signs = 2 * labels.float() - 1
    line = torch.linalg.lstsq(reduced[:1000], signs[:1000, None]).solution
    assert float((((reduced[1000:] @ line)[:, 0] > 0) == labels[1000:]).float().mean()) > 0.9


# --- wrong input --------------------------------------------------------------------------------
WRONG = {
    "dense must be (6, 3), got (6, 4)": {"dense": torch.zeros(6, 4)},
    "dense must be (6, 3), got (6, 3, 1)": {"dense": torch.zeros(6, 3, 1)},
    "vectors must be (6, 2, 8), got (6, 2, 9)": {"vectors": torch.zeros(6, 2, 9)},
    "vectors must be (6, 2, 8), got (5, 2, 8)": {"vectors": torch.zeros(5, 2, 8)},
    "vectors must be (6, 2, 8), got none": {"vectors": None},
    "types must be (6, 2, any), got (6, 2)": {"types": torch.zeros(6, 2, dtype=torch.long)},
    "types must be (6, 2, any), got (6, 1, 4)": {"types": torch.zeros(6, 1, 4, dtype=torch.long)},
    "types must be (6, 2, any), got none": {"types": None},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_shape_is_said_in_one_line(message: str):
    with pytest.raises(ValueError) as error:
        model_of()(**{**inputs_of(), **WRONG[message]})
    assert str(error.value) == f"DLRM: {message}"


def test_a_field_that_the_model_was_not_built_for_is_refused():
    with pytest.raises(ValueError, match=r"^DLRM: vectors must be \(6, 0, 8\), got \(6, 2, 8\)$"):
        model_of(0, ())(**inputs_of(2, ()))
    with pytest.raises(ValueError, match=r"^DLRM: types must be \(6, 0, any\), got \(6, 1, 4\)$"):
        model_of(0, ())(**inputs_of(0, (5,)))
    with pytest.raises(ValueError, match=r"^Upstream: vectors must be \(2, 4\), got \(2, 5\)$"):
        Upstream(4)(torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: DLRM(0, 2), "DLRM needs dense features, got n_dense=0"),
        (lambda: Upstream(4, activation="gelu"), "activation must be tanh or relu, got 'gelu'"),
        (lambda: class_weights(SEVEN, "cube"), "class weights must be basic, sqrt, none, got"),
        (lambda: class_weights(SEVEN[:1], "sqrt"), "class weights need both classes, got 1 posi"),
    ],
)
def test_wrong_settings_are_said_in_one_line(wrong: Any, message: str):
    with pytest.raises(RequestError, match=f"^{message}") as error:
        wrong()
    assert "\n" not in str(error.value)


def test_the_loop_trains_it():
    """`fit` takes loss and model as they are, and gives its best state back."""
    from accelerate import Accelerator

    from reprokit.training import Fit, fit

    torch.manual_seed(0)
    inputs, labels = xor_task(1200)
    model = DLRM(1, 1, (3,), DIM, dropout=0.1)
    columns = {name: tensor.numpy() for name, tensor in inputs.items()}

    def batch(rows: np.ndarray, first: int = 0) -> dict[str, Tensor]:
        return {name: torch.from_numpy(column[rows + first]) for name, column in columns.items()}

    def evaluate(predict: Any) -> dict[str, float]:
        probabilities = predict(partial(batch, first=1000), 200)
        right = (probabilities > 0.5) == labels[1000:].numpy()
        return {"accuracy": float(right.mean())}

    fitted = fit(
        Accelerator(cpu=True),
        model,
        partial(weighted_bce, weights=class_weights(labels[:1000].numpy(), "basic")),
        lambda rows: {**batch(rows), "labels": labels[rows]},
        1000,
        evaluate,
        Fit(lr=0.01, batch_size=100, max_epochs=25, patience=25),
        seed=0,
        monitors=("accuracy",),
    )
    assert evaluate(fitted.predict)["accuracy"] == fitted.record.best["accuracy"] > 0.9
