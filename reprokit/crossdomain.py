"""Cross-domain sequence models: what a user did in one domain helps to predict the other.

pi-Net   Ma et al., SIGIR 2019, doi 10.1145/3331184.3331200: a filter and a transfer unit.
PSJNet   Sun et al., TKDE 35(4), arXiv 1910.02448, variant II (split-and-join). Variant I is pi-Net.

Symbols  A, B    the domains; a step i is the i-th item of its own domain's part of a sequence
         h_i     state of the domain's own encoder after its step i
         e_k     vector of a latent member (pi-Net) or role (PSJNet) k of K
         [x; y]  concatenation;  * element-wise product

Both read a merged sequence, split it by domain, and after each merged step have for A

    logits over A = W [x; h] + c     x: what was transferred out of B, h: the last h of A

and the same for B with other parameters. Everything comes from steps at or before the merged one;
it is a zero vector where its domain has had no item yet. A bias c is the last column of `tables()`
and meets a state of 1, so that all scores are plain products.

As in pi-Net's published code: weights start Xavier-normal; dropout hits inputs, outputs and the
carried state of every recurrence, and once more [x; h]. The gates of the GRUs start with bias 1.

What differs from that code
D1  GRUs are PyTorch's, which reset after the recurrent product rather than before it.
D2  Xavier-normal draws are not cut off at two standard deviations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.nextitem import NextItem, at_step, part
from reprokit.runs import RequestError


class TwoEncoders(NextItem):
    """What pi-Net and PSJNet share: per domain an item table, an encoder, and a head.

    A subclass has `transfer`.
    """

    def __init__(self, n_a: int, n_b: int, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.sizes = (n_a, n_b)
        self.width = (hidden,)
        self.dropout = nn.Dropout(dropout)
        self.items = nn.ModuleList(item_table(n, dim) for n in self.sizes)
        self.encoders = nn.ModuleList(gru_cell(dim, hidden) for _ in self.sizes)
        self.heads = nn.ParameterList(head(n, 2 * hidden) for n in self.sizes)

    def transfer(
        self, source: int, encoded: list[Tensor], counts: list[Tensor], seen: Tensor
    ) -> Tensor:
        """What domain `source` tells about the other after each merged step: (B, L, H).

        encoded: states h of A and of B at their own steps, (B, L, H) each; counts: how many items
        of A and of B stand at or before each merged step, (B, L) each; seen: how many items of the
        other domain stand before each step of `source`, (B, L).
        """
        raise NotImplementedError

    def states(self, items: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        n_a, n_b = self.sizes
        parts = [part(items, 1, n_a), part(items, n_a + 1, n_a + n_b)]
        counts = [count for _, count in parts]
        encoded = []
        for domain, (packed, _) in enumerate(parts):
            # Positions past the last item hold row 0, which no merged step reads.
            ids = packed - domain * n_a
            x = self.items[domain](ids.clamp(min=0))  # (B, L, D)
            encoded.append(recur(self.encoders[domain], x, self.width, self.dropout))  # (B, L, H)
        out = []
        for target in (0, 1):
            source = 1 - target
            seen = at_own_steps(counts[target], counts[source])
            moved = self.transfer(source, encoded, counts, seen)  # (B, L, H)
            own = at_step(encoded[target], counts[target])  # (B, L, H)
            x = self.dropout(torch.cat([moved, own], -1))
            out.append(F.pad(x, (0, 1), value=1.0))  # (B, L, 2H + 1): the last meets the bias
        return out[0], out[1]

    def tables(self) -> tuple[Tensor, Tensor]:
        return self.heads[0], self.heads[1]


class PiNet(TwoEncoders):
    """pi-Net: a filter shares each step of one domain among K members, a GRU transfers it.

    At step i of B, with h the state of B, g the state of A at its latest item before (zero if there
    is none) and s the filter's state, zero at the start:

        f_k = sigmoid(W_f [h_i; g_i; s_(i-1)] + V_f e_k + b_f)
        c_k = tanh(W_s [h_i; s_(i-1)] + V e_k + b_s)
        s_i = mean over k of f_k * s_(i-1) + (1 - f_k) * c_k
        x_i = GRU(s_1 .. s_i)

    and the same from A to B with parameters of its own.

    Args:
        n_a, n_b: items of A and of B.
        dim, hidden: widths of item and member vectors, and of all states. Published code: 100, 100.
        members: K. Published code: 4.
        dropout: chance to drop. Published code: keeps 0.8.
        gate_keeps: what f_k weighs. "old" state: as above and in the published code; "new": the
            candidate, as in the paper's formula and in MIFN by the same authors.
        candidate_members: V in c_k. "gate": V_f again, as the published code runs; "own": a
            matrix V_s, which the paper has and the code makes but never reads.
        filter_bias: start of b_f and of b_s. Published code: 1 for both.
    """

    def __init__(
        self,
        n_a: int,
        n_b: int,
        dim: int = 100,
        hidden: int = 100,
        members: int = 4,
        dropout: float = 0.2,
        gate_keeps: str = "old",
        candidate_members: str = "gate",
        filter_bias: float = 1.0,
    ) -> None:
        check("gate_keeps", gate_keeps, ("old", "new"))
        check("candidate_members", candidate_members, ("gate", "own"))
        super().__init__(n_a, n_b, dim, hidden, dropout)
        own, old = candidate_members == "own", gate_keeps == "old"
        self.filters = nn.ModuleList(
            Filter(dim, hidden, members, old, own, filter_bias) for _ in self.sizes
        )
        self.transfers = nn.ModuleList(gru_cell(hidden, hidden) for _ in self.sizes)

    def transfer(
        self, source: int, encoded: list[Tensor], counts: list[Tensor], seen: Tensor
    ) -> Tensor:
        other = at_step(encoded[1 - source], seen)  # (B, L, H), g
        x = torch.cat([encoded[source], other], -1)  # (B, L, 2H)
        filtered = recur(self.filters[source], x, self.width, self.dropout)  # (B, L, H), s
        moved = recur(self.transfers[source], filtered, self.width, self.dropout)  # (B, L, H), x
        return at_step(moved, counts[source])


class Filter(nn.Module):
    """One step of pi-Net's filter unit: ([h; g] (B, 2H), state (B, H)) -> state (B, H)."""

    def __init__(
        self, dim: int, hidden: int, members: int, keeps_old: bool, own: bool, bias: float
    ) -> None:
        super().__init__()
        self.keeps_old = keeps_old
        self.members = xavier(members, dim)  # e
        self.gate = linear(3 * hidden, hidden, bias)  # W_f, b_f
        self.gate_member = linear(dim, hidden)  # V_f
        self.candidate = linear(2 * hidden, hidden, bias)  # W_s, b_s
        self.candidate_member = linear(dim, hidden) if own else None  # V_s

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        own, _ = x.chunk(2, -1)
        to_gate = to_candidate = self.gate_member(self.members)  # (K, H)
        if self.candidate_member is not None:
            to_candidate = self.candidate_member(self.members)
        gate = self.gate(torch.cat([x, state], -1)).unsqueeze(1)  # (B, 1, H)
        gate = torch.sigmoid(gate + to_gate)  # (B, K, H)
        candidate = self.candidate(torch.cat([own, state], -1)).unsqueeze(1)  # (B, 1, H)
        candidate = torch.tanh(candidate + to_candidate)  # (B, K, H)
        keep = gate if self.keeps_old else 1 - gate
        return (keep * state.unsqueeze(1) + (1 - keep) * candidate).mean(1)


class PSJNet(TwoEncoders):
    """PSJNet-II: split each step of one domain into K roles, then join all steps and roles.

    At step i of A, of role k, with r_0 = 0; no state of B enters the split:

        g = sigmoid(W [h_i; e_k; r_(i-1)] + b)      c = tanh(W' [h_i; e_k; r_(i-1)] + b')
        r_i = g * c + (1 - g) * r_(i-1)

    Every pair of a step i of A and a step j of B, both at or before the merged step, scores

        p_ij = v . [r_i; h_j; r_i * h_j] = v_1 . r_i + v_2 . h_j + (v_3 * r_i) . h_j

    whose three parts are computed apart, so that no pair holds a vector. Then

        a_i = softmax over i of (reduction over j of p_ij)      x = sum over k, i of a_i r_i

    v serves all roles. Before the first item of B, its only state is the zero vector. The same from
    B to A with parameters of its own.

    The code named under `reduce` goes further: its gate also reads B, competes with the other roles
    and with a gate for "no role", a GRU runs over each role, and roles are joined by attention.

    Args:
        n_a, n_b: items of A and of B.
        dim, hidden: widths of item and role vectors, and of all states; as in pi-Net.
        roles: K; 4 as in pi-Net, to be tuned from 1 to 5.
        dropout: chance to drop; as in pi-Net.
        reduce: "mean" or "max" over j. Open: the authors published no code. The code that RL-ISN
            (arXiv 2206.08088) once published for its PSJNet row takes the "max". Under "mean" v_2
            has no effect, since the softmax over i cancels it.
        split_bias: start of b and b'. Open: 1 as in pi-Net's filter.
    """

    def __init__(
        self,
        n_a: int,
        n_b: int,
        dim: int = 100,
        hidden: int = 100,
        roles: int = 4,
        dropout: float = 0.2,
        reduce: str = "mean",
        split_bias: float = 1.0,
    ) -> None:
        check("reduce", reduce, ("mean", "max"))
        super().__init__(n_a, n_b, dim, hidden, dropout)
        self.roles = roles
        self.splits = nn.ModuleList(Split(dim, hidden, roles, split_bias) for _ in self.sizes)
        self.joins = nn.ModuleList(Join(hidden, reduce) for _ in self.sizes)

    def transfer(
        self, source: int, encoded: list[Tensor], counts: list[Tensor], seen: Tensor
    ) -> Tensor:
        width = (self.roles, *self.width)
        roles = recur(self.splits[source], encoded[source], width, self.dropout)  # (B, L, K, H), r
        join = self.joins[source]
        return join(roles, counts[source], encoded[1 - source], counts[1 - source])


class Split(nn.Module):
    """One step of PSJNet's split unit: (h (B, H), roles (B, K, H)) -> roles (B, K, H)."""

    def __init__(self, dim: int, hidden: int, roles: int, bias: float) -> None:
        super().__init__()
        self.roles = xavier(roles, dim)  # e
        self.gate = linear(2 * hidden + dim, hidden, bias)  # W, b
        self.candidate = linear(2 * hidden + dim, hidden, bias)  # W', b'

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        step = x.unsqueeze(1).expand_as(state)  # (B, K, H)
        vectors = self.roles.expand(len(x), -1, -1)  # (B, K, D)
        features = torch.cat([step, vectors, state], -1)  # (B, K, 2H + D)
        gate = torch.sigmoid(self.gate(features))  # (B, K, H)
        return gate * torch.tanh(self.candidate(features)) + (1 - gate) * state


class Join(nn.Module):
    """PSJNet's join unit: attention over the steps of all roles, for every merged step at once."""

    def __init__(self, hidden: int, reduce: str) -> None:
        super().__init__()
        self.reduce = reduce
        self.score = linear(3 * hidden, 1)  # v

    def forward(self, roles: Tensor, done: Tensor, other: Tensor, seen: Tensor) -> Tensor:
        """roles (B, m, K, H), other (B, n, H), and how many of their steps each of T merged steps
        may read, done (B, T) and seen (B, T) -> (B, T, H)."""
        v_1, v_2, v_3 = self.score.weight.view(3, -1)
        pairs = torch.einsum("bikh,bjh->bkij", roles * v_3, other)  # (B, K, m, n)
        pairs = pairs + (other @ v_2)[:, None, None]
        reduced = self.over_other(pairs, before(seen, other.shape[1]))  # (B, K, m, T)
        logits = (reduced + (roles @ v_1).transpose(1, 2).unsqueeze(-1)).transpose(2, 3)
        may = before(done, roles.shape[1]).unsqueeze(1)  # (B, 1, T, m)
        logits = logits.masked_fill(~may, torch.finfo(logits.dtype).min)  # (B, K, T, m)
        weights = logits.softmax(-1) * may  # all 0 where nothing may be read
        return torch.einsum("bkti,bikh->bth", weights, roles)

    def over_other(self, pairs: Tensor, may: Tensor) -> Tensor:
        """Reduce over the j that may be read, 0 where none may: (B, K, m, n), (B, T, n) ->
        (B, K, m, T)."""
        if self.reduce == "mean":
            weights = may / may.sum(-1, keepdim=True).clamp(min=1)  # (B, T, n)
            return torch.einsum("bkij,btj->bkit", pairs, weights.to(pairs))
        masked = pairs.unsqueeze(3).masked_fill(~may[:, None, None], -torch.inf)  # (B, K, m, T, n)
        none = ~may.any(-1)[:, None, None]  # (B, 1, 1, T)
        return masked.amax(-1).masked_fill(none, 0.0)


# --- sequences ----------------------------------------------------------------------------------
def recur(cell: nn.Module, inputs: Tensor, width: tuple[int, ...], dropout: nn.Dropout) -> Tensor:
    """The state of a recurrence after each step: (B, L, D) -> (B, L, *width), from zeros.

    The input, the state that is handed out and the state that is carried on are each dropped by a
    mask of their own.
    """
    state = inputs.new_zeros(len(inputs), *width)
    states = []
    for x in inputs.unbind(1):
        new = cell(dropout(x), state)
        states.append(dropout(new))
        state = dropout(new)
    return torch.stack(states, 1)


def at_own_steps(count: Tensor, own: Tensor) -> Tensor:
    """`count` (B, L) of merged steps, at the steps that `own` (B, L) counts: (B, L).

    What stands past the last of them means nothing.
    """
    mine = own.diff(dim=1, prepend=own.new_zeros(len(own), 1)) > 0
    return count.gather(1, torch.argsort((~mine).to(torch.int8), dim=1, stable=True))


def before(count: Tensor, steps: int) -> Tensor:
    """Which of the first `steps` steps are among the first `count`: (B, T) -> (B, T, steps)."""
    return torch.arange(steps, device=count.device) < count.unsqueeze(-1)


# --- parameters ---------------------------------------------------------------------------------
def xavier(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_normal_(torch.empty(rows, columns)))


def linear(wide: int, narrow: int, bias: float | None = None) -> nn.Linear:
    """A Xavier-normal linear map; `bias` is where its bias starts, None: it has none."""
    layer = nn.Linear(wide, narrow, bias=bias is not None)
    nn.init.xavier_normal_(layer.weight)
    if bias is not None:
        nn.init.constant_(layer.bias, bias)
    return layer


def gru_cell(wide: int, hidden: int) -> nn.GRUCell:
    """A GRU whose reset and update gates start with bias 1, and its candidate with bias 0."""
    cell = nn.GRUCell(wide, hidden)
    nn.init.xavier_normal_(cell.weight_ih)
    nn.init.xavier_normal_(cell.weight_hh)
    nn.init.zeros_(cell.bias_hh)
    nn.init.zeros_(cell.bias_ih)
    nn.init.ones_(cell.bias_ih[: 2 * hidden])
    return cell


def item_table(items: int, dim: int) -> nn.Embedding:
    """Vectors of items 1 .. items; row 0 is padding."""
    table = nn.Embedding(1 + items, dim, padding_idx=0)
    nn.init.xavier_normal_(table.weight)
    nn.init.zeros_(table.weight[0])
    return table


def head(items: int, wide: int) -> nn.Parameter:
    """(items, wide + 1): a dense layer's weight, and its bias as the last column, 0 at first."""
    return nn.Parameter(F.pad(xavier(items, wide).detach(), (0, 1)))


def check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RequestError(f"{name} must be {' or '.join(known)}, got '{value}'")
