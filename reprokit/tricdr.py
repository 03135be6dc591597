"""Tri-CDR: the next item of one domain from three sequences: mixed, source and target.

Paper   Ma et al., "Triple Sequence Learning for Cross-domain Recommendation", ACM TOIS 2024,
        doi 10.1145/3638351. Steps that its text leaves open follow the authors' published code.

One model serves one direction. Its target domain is the one it predicts, the other is its source,
and a row of a table trains two.

Code     Shape          Meaning
states   (B, 3, L, D)   the encoders' states, after each item of their own sequence
counts   (B, 3, T)      items that each sequence has had after each merged step, T = L
query    (B, T, D)      the target encoder's state by then, 0 before its first item
pools    (B, 3, T, D)   attention over the mixed, the source and the target states by then
z        (B, T, D)      what predicts the next item: score = 5 cos(z, target encoder's E[item])

What differs from the authors' code
D1  The encoders are NextSASRec: normalised after each sub-layer, GELU, positions from the start.
    The code normalises queries before, has ReLU, and counts positions from the end.
D2  A row's target items count from the first one on, for which there is no query and no target
    pool yet (zero vectors); the code starts at the second one.
D3  A row's loss is the mean over its own predicted steps; the code takes one mean over a batch.
D4  The last step of the auxiliary losses is the last of the whole row. The code cuts a row at its
    last target item, and takes the step before.
D5  Whatever is chosen is chosen on validation; the code stops early on the test set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.nextitem import NextItem, at_step, last_step, part
from reprokit.runs import RequestError
from reprokit.sequential import NextSASRec

MIXED, SOURCE, TARGET = range(3)
PAIRS = ((MIXED, SOURCE), (MIXED, TARGET), (SOURCE, TARGET))


class TriCDR(NextItem):
    """Three SASRec encoders, attention from the target sequence over all three, and a cosine.

    Args:
        target_domain: what it predicts: 0 is A, 1 is B.
        inner: width of the encoders' feed-forward layers; the authors' code has `dim`.
        scale: of the cosine; the code calls it temperature.
        temperature: of the contrastive loss.
        w_cl: weight of the contrastive loss; 0 leaves it out.
        w_tri: weight of the triplet loss; 0 leaves it out.
        margin: of the triplet loss.
        rates: how much the pairs mixed-source, mixed-target and source-target weigh in the
            contrastive loss, up to their sum.

    The defaults of the last four are the published ones for Game -> Toy. For Toy -> Game they are
    w_cl 4, w_tri 5, margin 20 and rates (1000, 1, 1): open for other data, choose on validation.
    """

    def __init__(
        self,
        n_a: int,
        n_b: int,
        target_domain: int,
        dim: int = 64,
        max_len: int = 15,
        blocks: int = 2,
        heads: int = 1,
        inner: int = 64,
        dropout: float = 0.2,
        init_std: float = 0.02,
        scale: float = 5.0,
        temperature: float = 0.1,
        w_cl: float = 0.1,
        w_tri: float = 10.0,
        margin: float = 4.0,
        rates: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.sizes = (n_a, n_b)
        self.target_domain = target_domain
        self.ranges = ((1, n_a), (n_a + 1, n_a + n_b))
        """First and last id of A and of B."""
        check(self.sizes[target_domain], max_len, w_cl, w_tri, rates)
        self.scale, self.temperature, self.margin = scale, temperature, margin
        self.w_cl, self.w_tri = w_cl, w_tri
        self.rates = [rate / sum(rates) for rate in rates]
        shape = (n_a, n_b, dim, max_len, blocks, heads, inner, dropout, init_std)
        self.mixed, self.source, self.target = (NextSASRec(*shape) for _ in range(3))
        self.attention = TripleAttention(dim)
        self.fuse = two_layers(3 * dim, dim, nn.LeakyReLU())
        # Without the auxiliary losses nothing reads the projections.
        self.project = nn.ModuleList(
            two_layers(dim, dim, nn.ReLU()) for _ in range(3 if w_cl or w_tri else 0)
        )

    def encoders(self) -> tuple[NextSASRec, NextSASRec, NextSASRec]:
        return self.mixed, self.source, self.target

    def load_pretrained(self, mixed: nn.Module, source: nn.Module, target: nn.Module) -> None:
        """Start from three NextSASRecs: trained on merged, on source and on target sequences."""
        for name, encoder, trained in zip(
            ("mixed", "source", "target"), self.encoders(), (mixed, source, target), strict=True
        ):
            ours = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
            theirs = {key: tuple(value.shape) for key, value in trained.state_dict().items()}
            if ours != theirs:
                key = min(k for k in ours | theirs if ours.get(k) != theirs.get(k))
                got, need = theirs.get(key, "absent"), ours.get(key, "absent")
                raise RequestError(
                    f"{key} of the pre-trained {name} encoder is {got}, and {need} in Tri-CDR: "
                    "train both with the same sizes"
                )
            encoder.load_state_dict(trained.state_dict())

    def forward(self, items: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, T, D) after the `wanted` merged steps (B, T), and the pools it is made of.

        Steps that are not wanted cost no attention, and what stands there means nothing.
        """
        states, counts = self.encode(items)
        seen = torch.arange(items.shape[1], device=items.device) < counts.unsqueeze(-1)
        query = at_step(states[:, TARGET], counts[:, TARGET])  # (B, T, D)
        share = seen[:, MIXED] / counts[:, MIXED].clamp(min=1).unsqueeze(-1)  # (B, T, L)
        mean = share.to(states.dtype) @ states[:, MIXED]  # (B, T, D), of what came up to now
        pools = self.attention(states, query, mean, seen & wanted[:, None, :, None])
        return self.fuse(pools.transpose(1, 2).flatten(2)), pools

    def encode(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Merged items (B, L) -> states (B, 3, L, D), counts (B, 3, L)."""
        everything = (1, sum(self.sizes))
        source, target = self.ranges[1 - self.target_domain], self.ranges[self.target_domain]
        parts = [part(items, *bounds) for bounds in (everything, source, target)]
        states = [
            encoder.states(own)[0] for encoder, (own, _) in zip(self.encoders(), parts, strict=True)
        ]
        return torch.stack(states, 1), torch.stack([count for _, count in parts], 1)

    def states(self, items: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        """z of length 1 for the target domain, zeros for the other: it predicts nothing there."""
        z, _ = self(items, items > 0)
        z = F.normalize(z.float(), dim=-1)
        return (z, torch.zeros_like(z)) if self.target_domain == 0 else (torch.zeros_like(z), z)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Vectors of length `scale` for the target domain's items, zeros for the other's."""
        first, last = self.ranges[self.target_domain]
        own = F.normalize(self.target.items.weight[first : last + 1].float(), dim=-1) * self.scale
        other = own.new_zeros(self.sizes[1 - self.target_domain], own.shape[1])
        return (own, other) if self.target_domain == 0 else (other, own)

    def domain_scores(self, domain: int, items: Tensor, **more: Tensor) -> Tensor:
        if domain != self.target_domain:
            wrong, right = "AB"[domain], "AB"[self.target_domain]
            raise RequestError(
                f"this Tri-CDR predicts domain {right} only; rank the rows of domain {wrong} with "
                f"one built with target_domain={domain}"
            )
        return super().domain_scores(domain, items=items, **more)


def check(n_target: int, max_len: int, w_cl: float, w_tri: float, rates: Sequence[float]) -> None:
    """Refuse settings that cannot train."""
    if n_target <= max_len + 1:
        raise RequestError(
            f"Tri-CDR draws negatives outside a row's own {max_len + 1} items, but its target "
            f"domain has {n_target} items; lower max_len or take a larger domain"
        )
    if min(w_cl, w_tri) < 0:
        raise RequestError(f"Tri-CDR's w_cl and w_tri must be 0 or more, got {w_cl} and {w_tri}")
    if len(rates) != len(PAIRS) or min(rates) < 0 or sum(rates) <= 0:
        raise RequestError(
            "Tri-CDR's rates must be three numbers, 0 or more and not all 0, for the pairs "
            f"mixed-source, mixed-target and source-target; got {tuple(rates)}"
        )


class TripleAttention(nn.Module):
    """Weights of states by a small network (after DIN), one for all three sequences.

    A state is judged by [state; query; state * query; query - state; mean mixed state]: 5D -> 80
    -> 40 -> 1 with PReLU, then a softmax over the states seen.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Linear(5 * dim, 80)
        self.rest = nn.Sequential(nn.PReLU(), nn.Linear(80, 40), nn.PReLU(), nn.Linear(40, 1))
        xavier(self)

    def forward(self, states: Tensor, query: Tensor, mean: Tensor, seen: Tensor) -> Tensor:
        """Pools (B, 3, T, D); zero vectors where nothing is seen.

        states (B, 3, L, D); query and mean (B, T, D); seen (B, 3, T, L).
        """
        (_, kinds, length, _), steps = states.shape, query.shape[1]
        row, kind, step, place = torch.nonzero(seen, as_tuple=True)  # P pairs of state and query
        fact = (row * kinds + kind) * length + place
        asked = row * steps + step

        # The first layer is linear, so each part of its input is multiplied where it is smallest,
        # and only the product is made for every pair.
        of_fact, of_query, of_product, of_gap, of_mean = self.first.weight.chunk(5, 1)  # (80, D)
        by_fact = F.linear(states, of_fact - of_gap)  # (B, 3, L, 80)
        by_query = F.linear(query, of_query + of_gap) + F.linear(mean, of_mean, self.first.bias)
        product = lookup(states, fact) * lookup(query, asked)  # (P, D)
        hidden = F.linear(product, of_product) + lookup(by_fact, fact) + lookup(by_query, asked)

        judged = self.rest(hidden)[:, 0]  # (P,)
        logits = judged.new_full(seen.shape, torch.finfo(judged.dtype).min)
        weights = logits.masked_scatter(seen, judged).softmax(-1) * seen  # (B, 3, T, L)
        return weights.to(states.dtype) @ states


def lookup(vectors: Tensor, at: Tensor) -> Tensor:
    """Rows of all but the last dimension, which are counted through: (..., D), (P,) -> (P, D)."""
    return F.embedding(at, vectors.flatten(0, -2))


def two_layers(wide: int, dim: int, between: nn.Module) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(wide, dim), between, nn.Linear(dim, dim))
    xavier(layers)
    return layers


def xavier(module: nn.Module) -> None:
    """Weights as the authors' code starts them."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_normal_(parameter)


# --- loss ---------------------------------------------------------------------------------------
def tricdr_loss(model: TriCDR, items: Tensor, targets: Tensor) -> Tensor:
    """BCE of the next target-domain items + w_cl contrastive + w_tri triplet: (B,).

    items (B, L) merged; targets (B, L) id of the next item after each step, 0 where none is to be
    predicted; those of the source domain are left out. The contrastive part of a row compares it
    with the other rows of its batch, so a row's loss depends on them.
    """
    low, high = model.ranges[model.target_domain]
    predicted = (targets >= low) & (targets <= high)  # (B, L)
    if not len(model.project):
        z, _ = model(items, predicted)
        return pointwise(model, z, items, targets, predicted)

    steps = torch.arange(items.shape[1], device=items.device)
    last = steps == (items > 0).sum(1, keepdim=True) - 1  # (B, L)
    z, pools = model(items, predicted | last)
    loss = pointwise(model, z, items, targets, predicted)
    return loss + auxiliary(model, pools, items)


def pointwise(
    model: TriCDR, z: Tensor, items: Tensor, targets: Tensor, predicted: Tensor
) -> Tensor:
    """BCE of each predicted item and of one negative, a mean over the row's steps: (B,)."""
    first, last = model.ranges[model.target_domain]
    negatives = draw_negatives(torch.cat([items, targets], 1), first, last, items.shape[1])
    pair = torch.stack([targets, negatives], 2) * predicted.unsqueeze(-1)  # (B, L, 2)
    vectors = F.normalize(model.target.items(pair).float(), dim=-1)  # (B, L, 2, D)
    scores = (F.normalize(z.float(), dim=-1).unsqueeze(2) * vectors).sum(-1) * model.scale
    positive, negative = scores.unbind(2)
    losses = (F.softplus(-positive) + F.softplus(negative)) * predicted  # (B, L)
    return losses.sum(1) / predicted.sum(1).clamp(min=1)


def draw_negatives(own: Tensor, first: int, last: int, count: int) -> Tensor:
    """`count` uniform ids from `first` to `last` for each row, none of the row's own (B, W)."""
    size = last - first + 1
    taken = own - first
    taken = torch.where((taken >= 0) & (taken < size), taken, size).sort(1).values
    again = torch.zeros_like(taken, dtype=torch.bool)
    again[:, 1:] = taken[:, 1:] == taken[:, :-1]
    taken = taken.masked_fill(again, size)  # ascending, apart from places that hold `size`
    free = (taken == size).sum(1, keepdim=True) + size - taken.shape[1]  # (B, 1)
    drawn = torch.randint(2**62, (len(own), count), device=own.device) % free
    for column in taken.unbind(1):  # the drawn-th free item: step over what is taken below it
        drawn = drawn + (drawn >= column.unsqueeze(1))
    return drawn + first


def auxiliary(model: TriCDR, pools: Tensor, items: Tensor) -> Tensor:
    """Weighted contrastive and triplet losses of the rows' last pools: (B,).

    A row without source or without target items has 0: one of its three views is empty.
    """
    counts = [((items >= low) & (items <= high)).any(1) for low, high in model.ranges]
    kept = torch.nonzero(counts[0] & counts[1])[:, 0]
    total = torch.zeros(len(items), device=items.device)
    if not len(kept):
        return total
    ends = [last_step(pools[:, kind], items)[kept] for kind in range(3)]  # (N, D) each
    views = [layers(end).float() for layers, end in zip(model.project, ends, strict=True)]
    if model.w_cl:
        for rate, (one, other) in zip(model.rates, PAIRS, strict=True):
            near = nt_xent(views[one], views[other], model.temperature)
            total = total.index_add(0, kept, near, alpha=model.w_cl * rate)
    if model.w_tri:
        apart = F.triplet_margin_loss(
            views[SOURCE], views[MIXED], views[TARGET], margin=model.margin, reduction="none"
        )
        total = total.index_add(0, kept, apart, alpha=model.w_tri)
    return total


def nt_xent(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Each row's two views find each other among all 2N vectors: (N, D) twice -> (N,)."""
    n = len(one)
    with torch.autocast(one.device.type, enabled=False):
        vectors = F.normalize(torch.cat([one, other]), dim=1)
        logits = vectors @ vectors.T / temperature  # (2N, 2N)
    itself = torch.eye(2 * n, dtype=torch.bool, device=one.device)
    partner = torch.arange(2 * n, device=one.device).roll(n)
    losses = F.cross_entropy(logits.masked_fill(itself, -torch.inf), partner, reduction="none")
    return losses.view(2, n).mean(0)
