"""Next-item prediction: exact softmax without a table of logits, and ranks of the target.

Every sequence model of the cross-domain tables is a `NextItem`: it reads a sequence and has, after
each item, one state that predicts items of domain A and one that predicts items of domain B. The
probability of an item is a softmax over its own domain, or over both (`over`), of state times item
vector.

Sizes   B sequences, L steps, P predicted positions of a batch, I items of the softmax, D width.
Ids     items are 1 .. n_a (A) and n_a + 1 .. n_a + n_b (B); 0 is padding, always to the right.

Memory  `softmax_nll` holds the logits of a few rows at a time and computes their gradient while
        they are there. Its memory grows with I and with P, never with I x P or I x P x views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

View = tuple[Tensor, Tensor]
"""States (P, D) and item vectors (I, D) of one way to see the items; widths differ by view."""

LOGITS_BYTES = 2**26
"""Logits held at once by one view, on a CPU; a GPU holds sixteen times as many."""


# --- softmax ------------------------------------------------------------------------------------
def softmax_nll(views: Sequence[View], targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log sum_m w_m softmax(h_m E_m^T)[target]: (P,).

    With one view this is cross-entropy over all I items. With several it is the negative log of a
    mixture of softmaxes, one over each view (LLM-EMF, equations 5 to 8).

    Args:
        views: (states (P, D_m), vectors (I, D_m)) per view, already scaled by a temperature.
        targets: (P,) row of the next item in every view's vectors.
        weights: (M,) mixture weights, positive, summing to 1; None: one view.
    """
    if weights is None:
        weights = targets.new_ones(len(views), dtype=torch.float32)
    flat = [tensor for view in views for tensor in view]
    with torch.autocast(targets.device.type, enabled=False):
        return MixtureNLL.apply(targets, weights.log(), *(tensor.float() for tensor in flat))


class MixtureNLL(torch.autograd.Function):
    """`softmax_nll` and its gradient in one sweep over blocks of rows.

    Of row p and view m, with r_m the share of view m in the mixture at the target:

        d loss_p / d logits_m = r_m (softmax_m - onehot(target))

    so the logits of a block serve the loss, the states' gradient and the vectors' gradient, and are
    dropped. The sweep assumes that all rows weigh the same in the end, which the backward pass
    checks; where they do not, it sweeps again with the true weights.
    """

    @staticmethod
    def forward(ctx: Any, targets: Tensor, log_weights: Tensor, *flat: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[2:]
        loss, grads, shares = sweep(targets, log_weights, flat, wanted, None)
        ctx.save_for_backward(targets, log_weights, shares, *flat)
        ctx.grads, ctx.wanted = grads, wanted
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        targets, log_weights, shares, *flat = ctx.saved_tensors
        if not len(grad):
            return (None, None, *(torch.zeros_like(tensor) for tensor in flat))
        first = grad[0]
        if bool((grad == first).all()):
            grads = [None if g is None else g.mul_(first) for g in ctx.grads]
        else:
            grads = sweep(targets, log_weights, flat, ctx.wanted, grad)[1]
        # d loss / d log w_m = -r_m
        of_weights = -(shares * grad[:, None]).sum(0) if ctx.needs_input_grad[1] else None
        return None, of_weights, *grads


def sweep(
    targets: Tensor,
    log_weights: Tensor,
    flat: Sequence[Tensor],
    wanted: Sequence[bool],
    scale: Tensor | None,
) -> tuple[Tensor, list[Tensor | None], Tensor]:
    """Loss (P,), gradients of all `flat` tensors that want one, and each view's share (P, M).

    `scale` (P,) weighs the rows in the gradients; None: all 1.
    """
    count = len(flat) // 2
    rows, items = len(targets), len(flat[1])
    limit = LOGITS_BYTES * (16 if targets.is_cuda else 1)
    size = max(1, min(rows, limit // (4 * items * count)))
    size = size // 16 * 16 or size  # an odd width makes the products slower
    loss = torch.empty(rows, device=targets.device)
    shares = torch.empty(rows, count, device=targets.device)
    grads = [torch.zeros_like(t) if want else None for t, want in zip(flat, wanted, strict=True)]
    for start in range(0, rows, size):
        block = slice(start, start + size)
        target = targets[block, None]  # (R, 1)
        odds, own = [], []
        for states, vectors in zip(flat[::2], flat[1::2], strict=True):
            logits = (vectors @ states[block].T).T  # (R, I); on a CPU twice as fast as h @ E.T
            top = logits.amax(1, keepdim=True)
            own.append(logits.gather(1, target).sub_(top))  # (R, 1)
            odds.append(logits.sub_(top).exp_())
        total = [o.sum(1, keepdim=True) for o in odds]  # (R, 1) each
        log_p = torch.cat([a - t.log() for a, t in zip(own, total, strict=True)], 1)  # (R, M)
        mixed = torch.logsumexp(log_p + log_weights, 1)  # (R,)
        loss[block] = -mixed
        share = shares[block] = (log_p + log_weights - mixed[:, None]).exp()  # (R, M), r_m
        if scale is not None:
            share = share * scale[block, None]
        for m in range(count):
            of_states, of_vectors = grads[2 * m], grads[2 * m + 1]
            vectors, weight = flat[2 * m + 1], share[:, m : m + 1]  # (R, 1)
            if of_states is not None:
                at_target = F.embedding(target[:, 0], vectors)  # (R, D)
                of_states[block] = (odds[m] @ vectors) * (weight / total[m]) - weight * at_target
            if of_vectors is not None:
                own_states = flat[2 * m][block] * weight  # (R, D)
                of_vectors.addmm_(odds[m].T, own_states / total[m])
                of_vectors.index_add_(0, target[:, 0], own_states, alpha=-1)
    return loss, grads, shares


def sampled_nll(
    views: Sequence[View], targets: Tensor, count: int, weights: Tensor | None = None
) -> Tensor:
    """`softmax_nll` with the sum over all items estimated from `count` of them: (P,).

    The items are drawn uniformly and without replacement for all rows; of a row its own target is
    left out of them, and the others stand for all items but the target. With every item drawn this
    is the exact softmax. Draws from torch's generator of the device.
    """
    items = len(views[0][1])
    drawn = torch.randperm(items, device=targets.device)[:count]  # (S,)
    place = drawn.new_full((items,), -1)
    place[drawn] = torch.arange(len(drawn), device=drawn.device)
    own = place[targets]  # (P,), the target's column, -1 where it was not drawn
    row = torch.nonzero(own >= 0)[:, 0]
    # What a drawn item stands for: (P,).
    each = ((items - 1) / (len(drawn) - (own >= 0).float()).clamp(min=1)).log()
    log_p = []
    for states, vectors in views:
        at_target = (states * F.embedding(targets, vectors)).sum(1)  # (P,)
        others = states @ F.embedding(drawn, vectors).T  # (P, S)
        others[row, own[row]] = -torch.inf
        total = torch.logaddexp(at_target, others.logsumexp(1) + each)
        log_p.append(at_target - total)
    if weights is None:
        return -log_p[0]
    return -torch.logsumexp(torch.stack(log_p, 1) + weights.log(), 1)


# --- the model of a row -------------------------------------------------------------------------
class NextItem(nn.Module):
    """A sequence model of two domains: what training and ranking need of it.

    A subclass has `states` and `tables`; one whose score is no product of state and vector
    overrides `domain_scores`, and brings a loss of its own.
    """

    inputs: tuple[str, ...] = ("items",)
    """Names of the batch's columns that `states` reads, beside the targets."""
    sizes: tuple[int, int]
    """Items of A and of B, (n_a, n_b)."""

    def states(self, items: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        """Items (B, L), right-padded with 0 -> what predicts the next item of A and of B after
        each step: (B, L, D) twice. A step knows itself and what came before."""
        raise NotImplementedError

    def tables(self) -> tuple[Tensor, Tensor]:
        """Vectors of the items of A (n_a, D) and of B (n_b, D), without padding."""
        raise NotImplementedError

    def domain_scores(self, domain: int, items: Tensor, **more: Tensor) -> Tensor:
        """Scores of all items of a domain after the whole sequence: (B, n_domain)."""
        last = last_step(self.states(items, **more)[domain], items)  # (B, D)
        return last @ self.tables()[domain].T

    def score(self, targets: Tensor, negatives: Tensor, **inputs: Tensor) -> Tensor:
        """Counts that decide the target's rank, (B, 5): see `rank_counts`.

        targets (B,) ids; negatives (B, K) ids of the target's domain.
        """
        counts = torch.empty(len(targets), 5, device=targets.device)
        for domain, first in enumerate((1, 1 + self.sizes[0])):
            at = torch.nonzero((targets > self.sizes[0]) == bool(domain))[:, 0]
            if len(at):
                of_domain = {name: value[at] for name, value in inputs.items()}
                scores = self.domain_scores(domain, **of_domain).float()  # (b, n_domain)
                counts[at] = rank_counts(scores, targets[at] - first, negatives[at] - first)
        return counts


def last_step(states: Tensor, items: Tensor) -> Tensor:
    """The state after the last real item: (B, L, D), (B, L) -> (B, D). Empty: the first step's."""
    at = ((items > 0).sum(1) - 1).clamp(min=0)
    return states[torch.arange(len(items), device=items.device), at]


def part(items: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The subsequence of the items `low` to `high`: (itself, how far it has come at each step).

    (B, L) -> (B, L), its items in order and right-padded; (B, L), how many of them stand at or
    before each step of the whole sequence.
    """
    mine = (items >= low) & (items <= high)
    order = torch.argsort((~mine).to(torch.int8), dim=1, stable=True)
    packed = items.gather(1, order) * mine.gather(1, order)
    return packed, mine.cumsum(1)


def at_step(states: Tensor, count: Tensor) -> Tensor:
    """States after the first `count` items of a subsequence; zero vectors where that is none.

    (B, L, D), (B, T) -> (B, T, D).
    """
    at = (count - 1).clamp(min=0).unsqueeze(-1).expand(-1, -1, states.shape[-1])
    return states.gather(1, at) * (count > 0).unsqueeze(-1)


TOLERANCE = 1e-5
"""Of the data set's authors: scores this close to the target's are tied with it, and lose."""


def rank_counts(scores: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """What decides each target's rank: (B, 5) as floats.

    0  negatives above the target          3  items of the domain above the target
    1  negatives tied with it              4  items of the domain tied with it
    2  negatives above it by more than 1e-5, the rule of the data set's authors

    scores (B, n) of all items of the domain; targets (B,) and negatives (B, K) are columns of it.
    A row with a score that is not a number counts as nan throughout.
    """
    own = scores.gather(1, targets[:, None])  # (B, 1)
    among = scores.gather(1, negatives)  # (B, K)
    counts = torch.stack(
        [
            (among > own).sum(1),
            (among == own).sum(1),
            (among > own + TOLERANCE).sum(1),
            (scores > own).sum(1),
            (scores == own).sum(1) - 1,  # not the target itself
        ],
        1,
    ).float()
    return counts + (scores.sum(1, keepdim=True) * 0)


def next_item_loss(
    model: NextItem,
    targets: Tensor,
    over: str = "domain",
    sampled: int = 0,
    per_row: float = 1.0,
    **inputs: Tensor,
) -> Tensor:
    """Cross-entropy of the next item, summed over each row's predicted positions: (B,).

    Args:
        targets: (B, L) id of the item to predict after each step, 0 where there is none.
        over: the softmax runs over the target's own "domain", or over "all" items.
        sampled: items of a sampled softmax; 0: the exact one.
        per_row: divides the sum; the mean number of targets of a row makes the batch's loss the
            mean over positions, each of which weighs the same.
    """
    states, tables = model.states(**inputs), model.tables()
    total = targets.new_zeros(len(targets), dtype=torch.float32)
    if over == "all":
        ranges = [(0, sum(model.sizes), states[0], torch.cat(tables))]
    else:
        n_a, n_b = model.sizes
        ranges = [(0, n_a, states[0], tables[0]), (n_a, n_a + n_b, states[1], tables[1])]
    for below, top, of_domain, vectors in ranges:
        row, step = torch.nonzero((targets > below) & (targets <= top), as_tuple=True)
        if len(row):
            wanted = targets[row, step] - below - 1
            views = [(of_domain[row, step], vectors)]
            losses = sampled_nll(views, wanted, sampled) if sampled else softmax_nll(views, wanted)
            total = total.index_add(0, row, losses)
    return total / per_row
