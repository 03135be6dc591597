"""LLM-EMF's model: nine attention layers over ids, pictures and texts of two domains.

Paper   arXiv 2506.17966, sections 3.4 and 3.5.

Symbol        Code        Shape        Meaning
E_id          ids         (I, q)       learned item vectors, both domains
E_img, E_tex  features    (I, e)       frozen vectors of pictures and of texts
S^X, S^Y      parts       (B, L)       subsequences of one domain; S^(X+Y) is the whole sequence
h             states      (B, L, d)    attention-aggregated state after each item, equation 2

Eq. 2, 4  Attention           one causal layer per view and modality
Eq. 3     LLMEMF.cosines      cosine of state and item, over the temperature
Eq. 5-8   softmax_nll         mixture of one softmax per modality
Eq. 9, 10 emf_loss            L^X + lambda1 L^Y + lambda2 L^(X+Y)
Eq. 11    domain_scores       P^X + lambda1 P^Y + lambda2 P^(X+Y)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.nextitem import NextItem, at_step, last_step, part, sampled_nll, softmax_nll
from reprokit.sequential import Places, real_steps

VIEWS = ("a", "b", "both")


class Attention(nn.Module):
    """Equations 2 and 4: one causal self-attention layer, residual and layer norm.

    Open in the paper, and chosen here: learned positions, one head, projections of query, key,
    value and output, dropout on the input and on what attention adds.
    """

    def __init__(self, dim: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(max_len, dim))
        self.project = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, steps: Places) -> Tensor:
        """(B, L, d) -> (B, L, d); a step sees itself and what came before, padding is left out."""
        x = self.dropout(steps.pack(x + self.positions[: x.shape[1]]))  # (N, d)
        heads = steps.unpack(self.project(x)).unsqueeze(1)  # (B, 1, L, 3d), one head
        query, key, value = heads.chunk(3, -1)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True).squeeze(1)
        return steps.unpack(self.norm(x + self.dropout(self.out(steps.pack(seen)))))


class LLMEMF(NextItem):
    """LLM-EMF for two domains.

    Args:
        sizes: items of A and of B.
        dim: q, width of the learned item vectors.
        features: frozen vectors by modality, "image" and "text", each (n_a + n_b, e). A row of
            zeros is an item without a picture or a text: in a sequence it reads as one learned
            vector, as a candidate its cosine is 0.
        weights: weight of each modality in equation 8, "id" included; of those present they are
            scaled to sum to 1.
        target: the domain in the role of X while training, 0 or 1.
        temperature: of the softmax over cosines. Equations 5 to 7 print none, which is 1: then
            29,207 items leave the best of them a probability of at most exp(2) / 29,206.
        learn_temperature: train it, one for each view and modality, starting there.
    """

    weights: Tensor

    def __init__(
        self,
        sizes: tuple[int, int],
        dim: int,
        features: Mapping[str, Tensor],
        weights: Mapping[str, float],
        target: int = 0,
        lambda1: float = 0.3,
        lambda2: float = 0.1,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        max_len: int = 15,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.sizes, self.target = sizes, target
        self.lambda1, self.lambda2 = lambda1, lambda2
        self.ids = nn.Parameter(0.02 * torch.randn(sum(sizes), dim))
        self.modalities = ("id", *features)
        widths = {"id": dim}
        self.missing = nn.ParameterDict()
        for name, vectors in features.items():
            widths[name] = vectors.shape[1]
            self.register_buffer(f"of_{name}", F.normalize(vectors, dim=1), persistent=False)
            self.register_buffer(f"no_{name}", ~vectors.any(1), persistent=False)
            self.missing[name] = nn.Parameter(0.02 * torch.randn(vectors.shape[1]))
        share = torch.tensor([float(weights[name]) for name in self.modalities])
        self.register_buffer("weights", share / share.sum(), persistent=False)
        self.layers = nn.ModuleDict(
            {
                f"{view}-{name}": Attention(widths[name], max_len, dropout)
                for view in VIEWS
                for name in self.modalities
            }
        )
        start = torch.full((len(self.layers),), temperature).log()
        self.log_temperature = nn.Parameter(start, requires_grad=learn_temperature)

    def read(self, name: str, items: Tensor) -> Tensor:
        """F_id, F_img or F_tex of sequences: (B, L) -> (B, L, d); zeros for padding."""
        at = (items - 1).clamp(min=0)
        if name == "id":
            found = F.embedding(at, self.ids)
        else:
            lacking = F.embedding(at, getattr(self, f"no_{name}")[:, None])  # (B, L, 1)
            known = F.embedding(at, getattr(self, f"of_{name}"))
            found = torch.where(lacking, self.missing[name], known)
        return found * (items > 0).unsqueeze(-1)

    def views(self, items: Tensor) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """By view and modality the state after each merged step, (B, L, d); and by view how many
        of its items have been read by then, (B, L). No item yet: zeros."""
        n_a, n_b = self.sizes
        read = {"a": part(items, 1, n_a), "b": part(items, n_a + 1, n_a + n_b)}
        states: dict[str, dict[str, Tensor]] = {}
        for view in VIEWS:
            rows, count = read.get(view, (items, None))
            steps, _ = real_steps(rows)
            states[view] = {}
            for name in self.modalities:
                after = self.layers[f"{view}-{name}"](self.read(name, rows), steps)
                states[view][name] = after if count is None else at_step(after, count)
        counts = {view: count for view, (_, count) in read.items()}
        return states, {**counts, "both": (items > 0).cumsum(1)}

    def cosines(self, view: str, name: str, states: Tensor) -> Tensor:
        """States (..., d), scaled: times unit item vectors they are equation 3 / temperature."""
        at = list(self.layers).index(f"{view}-{name}")
        return F.normalize(states, dim=-1) * (-self.log_temperature[at]).exp()

    def tables(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Unit vectors of all items by modality, E_id, E_img and E_tex: (I, d)."""
        frozen = {name: getattr(self, f"of_{name}") for name in self.missing}
        return {"id": F.normalize(self.ids, dim=1), **frozen}

    def domain_scores(self, domain: int, items: Tensor, **more: Tensor) -> Tensor:
        """Equation 11, over the items of the domain in the role of X: (B, n_domain).

        P^Y of an item of X, which equation 5 does not define, sets the state of the Y view against
        X's items; P^(X+Y) too is a distribution over X's items here.
        """
        first = domain * self.sizes[0]
        tables = {k: v[first : first + self.sizes[domain]] for k, v in self.tables().items()}
        states, _ = self.views(items)
        importance = (1.0, self.lambda1, self.lambda2)
        total = torch.zeros(len(items), self.sizes[domain], device=items.device)
        for view, weight in zip(
            (VIEWS[domain], VIEWS[1 - domain], "both"), importance, strict=True
        ):
            if not weight:
                continue
            for name, share in zip(self.modalities, self.weights, strict=True):
                last = self.cosines(view, name, last_step(states[view][name], items))  # (B, d)
                total.addcmul_((last @ tables[name].T).softmax(1), share * weight)
        return total


def emf_loss(
    model: LLMEMF, items: Tensor, targets: Tensor, sampled: int = 0, per_row: float = 1.0
) -> Tensor:
    """Equations 9 and 10 at every position of each row: (B,).

    targets (B, L): the item after each step, 0 where there is none. A view predicts it once it has
    read an item of its own; X + Y predicts over the items of both domains.
    """
    n_a, n_b = model.sizes
    states, counts = model.views(items)
    tables = model.tables()
    importance = {VIEWS[model.target]: 1.0, VIEWS[1 - model.target]: model.lambda1}
    importance["both"] = model.lambda2
    ranges = {"a": (0, n_a), "b": (n_a, n_a + n_b), "both": (0, n_a + n_b)}
    total = targets.new_zeros(len(targets), dtype=torch.float32)
    for view, (low, high) in ranges.items():
        due = (targets > low) & (targets <= high) & (counts[view] > 0)
        # A view with nothing to predict runs too: every weight has a gradient in every step.
        row, step = torch.nonzero(due, as_tuple=True)
        pairs = [
            (model.cosines(view, name, states[view][name][row, step]), tables[name][low:high])
            for name in model.modalities
        ]
        wanted = targets[row, step] - low - 1
        if sampled:
            nll = sampled_nll(pairs, wanted, sampled, model.weights)
        else:
            nll = softmax_nll(pairs, wanted, model.weights)
        total = total.index_add(0, row, importance[view] * nll)
    return total / per_row
