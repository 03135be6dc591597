"""DLRM, the ranker of MMREC, its class-weighted loss, and the MLP that compresses embeddings.

Paper   Naumov et al. 2019, arXiv 1906.00091; details as in its authors' code, facebookresearch/dlrm
        (MIT). Loss and upstream model: MMREC, arXiv 2408.04211, sections III-C and IV-A.

Symbol      Code         Shape        Meaning
z           fields()[0]  (B, D)       dense numbers through the bottom MLP
e_1 .. e_F  fields()[1:] (B, D) each  given vectors, then one vector for each categorical field
W^label     weights      two numbers  class weights, equations 1 and 2 of MMREC

Eq. 1, 2    class_weights, weighted_bce

What MMREC leaves open
D1  The sizes of all MLPs. Arguments; the defaults are ours.
D2  Where dropout stands: DLRM's code has none. Here behind every ReLU of both MLPs, so z too.
D3  The weighted loss's mean. Here over the rows, not divided by the sum of their weights, as DLRM's
    code does for its loss "wbce".
D4  Which layer of the upstream MLP has 32 numbers. Here the last hidden one, behind its activation:
    what the one output unit reads.
D5  That activation. Here tanh, the other hidden layers have ReLU: see `Upstream`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.runs import RequestError

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
WEIGHTS = ("basic", "sqrt", "none")


class DLRM(nn.Module):
    """Deep Learning Recommendation Model: the dot products of all pairs of {z, e_1 .. e_F}, and z,
    through the top MLP. z comes out of a ReLU, as in the authors' code.

    Args:
        n_dense: dense numbers of a row, 1 at least.
        n_vectors: given vectors of width `dim` that take part as fields.
        n_types: number of values of each multi-valued categorical field: values are 0 .. n - 1 and
            n is padding. A value that a row has twice counts twice.
        bottom: hidden widths of the bottom MLP, which ends in `dim`.
        top: hidden widths of the top MLP, which ends in one logit.
        dropout: behind every ReLU, see D2.
    """

    pairs: Tensor
    """(F (F + 1) / 2,) positions of the strictly lower triangle in a flattened (1 + F, 1 + F)
    matrix."""

    def __init__(
        self,
        n_dense: int,
        n_vectors: int,
        n_types: tuple[int, ...] = (),
        dim: int = 32,
        bottom: Sequence[int] = (64,),
        top: Sequence[int] = (64, 32),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if n_dense < 1:
            raise RequestError(f"DLRM needs dense features, got n_dense={n_dense}")
        self.n_dense, self.n_vectors, self.dim = n_dense, n_vectors, dim
        self.bottom = mlp((n_dense, *bottom, dim), dropout)
        self.tables = nn.ModuleList(type_table(count, dim) for count in n_types)
        fields = 1 + n_vectors + len(n_types)
        row, column = torch.tril_indices(fields, fields, -1)
        self.register_buffer("pairs", row * fields + column, persistent=False)
        widths = (dim + len(self.pairs), *top)
        self.top = nn.Sequential(*mlp(widths, dropout), linear(widths[-1], 1))

    def fields(self, dense: Tensor, vectors: Tensor | None, types: Tensor | None) -> list[Tensor]:
        """z, the given vectors, the sum of the values of each categorical field: (B, D) each."""
        found = [self.bottom(dense)]
        if vectors is not None:
            found += vectors.unbind(1)
        if types is not None:
            both = zip(self.tables, types.unbind(1), strict=True)
            found += [table(values) for table, values in both]  # (B, most) -> (B, D)
        return found

    def forward(
        self, dense: Tensor, vectors: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """Logits (B,) of dense (B, n_dense), vectors (B, n_vectors, D), types (B, fields, most).

        `vectors` and `types` may be absent where the model has none of them.
        """
        self.check(dense, vectors, types)
        fields = self.fields(dense, vectors, types)
        stacked = torch.stack(fields, 1)  # (B, 1 + F, D)
        products = (stacked @ stacked.transpose(1, 2)).flatten(1)  # (B, (1 + F)^2)
        # Each position is taken once, so its gradient is no sum that depends on an order.
        chosen = products.index_select(1, self.pairs)  # (B, F (F + 1) / 2)
        return self.top(torch.cat([fields[0], chosen], 1)).squeeze(1)

    def score(
        self, dense: Tensor, vectors: Tensor | None = None, types: Tensor | None = None
    ) -> Tensor:
        """The logit of the positive class, (B,): a probability near 1 would lose its digits."""
        return self(dense, vectors, types)

    def check(self, dense: Tensor, vectors: Tensor | None, types: Tensor | None) -> None:
        """Raises ValueError where inputs are not the rows that the model was built for."""
        expect("DLRM: dense", dense, (len(dense), self.n_dense))
        if vectors is not None or self.n_vectors:
            expect("DLRM: vectors", vectors, (len(dense), self.n_vectors, self.dim))
        if types is not None or len(self.tables):
            expect("DLRM: types", types, (len(dense), len(self.tables), -1))


class Upstream(nn.Module):
    """MMREC's section III-C: an MLP that predicts the outcome from concatenated embeddings; its
    last hidden layer is the compressed vector.

    Args:
        width: of the concatenated embeddings.
        hidden: widths of the layers before the compressed one.
        out: width of the compressed vector.
        dropout: behind every activation, so of the compressed vector too: call `eval()` before
            `compress` is read by another model.
        activation: of the compressed layer, "tanh" or "relu". At MMREC's step size, 0.01 with Adam,
            ReLU left 4 to 22 of the 32 numbers constant on generated embeddings and others as
            large as 12; tanh left none, and the DLRM on top had the same AUC to within 0.01.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int] = (256,),
        out: int = 32,
        dropout: float = 0.0,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.width = width
        self.hidden = mlp((width, *hidden, out), dropout, activation)
        self.last = linear(out, 1)

    def compress(self, vectors: Tensor) -> Tensor:
        """(B, width) -> (B, out), what DLRM reads."""
        expect("Upstream: vectors", vectors, (len(vectors), self.width))
        return self.hidden(vectors)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, width) -> logits (B,)."""
        return self.last(self.compress(vectors)).squeeze(1)

    def score(self, vectors: Tensor) -> Tensor:
        """The logit of the positive class: (B,)."""
        return self(vectors)


# --- layers, initialised as in DLRM's code ------------------------------------------------------
def linear(n_in: int, n_out: int) -> nn.Linear:
    """Weights from N(0, 2 / (in + out)), biases from N(0, 1 / out); both are variances."""
    layer = nn.Linear(n_in, n_out)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (n_in + n_out)))
    nn.init.normal_(layer.bias, std=math.sqrt(1 / n_out))
    return layer


def mlp(widths: Sequence[int], dropout: float, last: str = "relu") -> nn.Sequential:
    """Linear layers between these widths, behind each a ReLU, `last` at the end, and dropout."""
    if last not in ACTIVATIONS:
        raise RequestError(f"activation must be {' or '.join(ACTIVATIONS)}, got '{last}'")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
    if layers:
        layers[-2] = ACTIVATIONS[last]()
    return nn.Sequential(*layers)


def type_table(count: int, dim: int) -> nn.EmbeddingBag:
    """Rows of `count` values, then a row of zeros for padding: (B, most) -> sums (B, D)."""
    table = nn.EmbeddingBag(count + 1, dim, mode="sum", padding_idx=count)
    bound = math.sqrt(1 / (count + 1))
    nn.init.uniform_(table.weight, -bound, bound)
    with torch.no_grad():
        table.weight[count] = 0  # never read, and its gradient is zero
    return table


def expect(name: str, given: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raises ValueError where a tensor has another shape; -1 is any size."""
    wanted = str(shape).replace("-1", "any")
    if given is None:
        raise ValueError(f"{name} must be {wanted}, got none")
    fits = [wish in (-1, size) for wish, size in zip(shape, given.shape, strict=False)]
    if len(shape) != given.dim() or not all(fits):
        raise ValueError(f"{name} must be {wanted}, got {tuple(given.shape)}")


# --- loss ---------------------------------------------------------------------------------------
def class_weights(labels: np.ndarray, kind: str) -> tuple[float, float]:
    """Weights of the negative and of the positive class, from the training labels (N,), booleans.

    "basic": 1 - Num_label / Num_total, equation 1. "sqrt": its root, equation 2. "none": ones.
    """
    if kind not in WEIGHTS:
        raise RequestError(f"class weights must be {', '.join(WEIGHTS)}, got '{kind}'")
    total, positives = len(labels), int(np.count_nonzero(labels))
    if not 0 < positives < total:
        raise RequestError(
            f"class weights need both classes, got {positives} positive of {total} training labels"
        )
    if kind == "none":
        return 1.0, 1.0
    negative, positive = positives / total, 1 - positives / total  # 1 - own share
    return (negative, positive) if kind == "basic" else (math.sqrt(negative), math.sqrt(positive))


def weighted_bce(
    model: nn.Module, labels: Tensor, weights: Tensor | tuple[float, float], **inputs: Tensor
) -> Tensor:
    """-W^label log p(label) of each row, equation 1 or 2: (B,) losses, through logits.

    The training loop averages over rows, see D3: with "basic" weights the loss is then smaller
    than an unweighted one.

    Args:
        model: its output is logits (B,).
        labels: (B,), 0 or 1.
        weights: of the negative and of the positive class.
    """
    logits = model(**inputs)
    negative, positive = weights
    weight = torch.where(labels.bool(), positive, negative).to(logits)
    plain = F.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="none")
    return weight * plain
