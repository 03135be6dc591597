"""MIFN: behaviour and knowledge flow between two domains, and a switch chooses which to trust.

Paper   Ma et al., Mixed Information Flow for Cross-Domain Sequential Recommendations, TKDD 2022,
        arXiv 2012.00485. Its graph is `reprokit.knowledge`.

Symbol   Code       Shape      Meaning
h        h          (B, D)     encoder's state after the last item of A, and of B
h_T      told       (B, D)     transfer state: what the items of A have to tell B, and B's tell A
e_n      e          (B, N, D)  vectors of the nodes that a sequence sees
A_r      adjacency  (B, 5, N, N)

1. Encoders       h = GRU(items of the domain), a GRU for each
2. Filter         f = sigmoid(W [h; h_other; s]), c = tanh(V [h; s]), s = f * c + (1 - f) * s,
                  with h_other the other domain's state before this item (zero: none yet)
3. Transfer       h_T = GRU(s)
4. Masks          alpha = softmax over the nodes of the last item's domain of
                  v . tanh(W h_last + V e_n); beta the same with h_T over the other nodes, where
                  m_n = sum_k w . (e_n * e_k) e_k over the nodes k of the last item's domain
5. Mix            g_n = sigmoid(W [h_last; h_T; e_n]);
                  in-domain part g_n * alpha_n e_n, cross-domain part (1 - g_n) * (beta_n e_n + m_n)
6. Propagation    ReLU(A_r x W_r) for either part and each relation: ten vectors of a node, joined
7. Update         e_n = GRUCell(the ten, e_n)
8. Switch         P_G = sigmoid(w . [h; h_T; sum of the domain's e_n]), P_S = 1 - P_G, where h is
                  the domain's own state and h_T what the other domain tells it
9. Prediction     P_G softmax over the domain's items in the graph of v . tanh(W h + V e_n)
                  + P_S softmax(U [h; h_T]) over all items of the domain
10. Loss          -log p(target), and -log(P_S + 1e-4) where the target is not in the graph

Read from the authors' code where the equations are open
D1  f weighs the new state (in their pi-Net it weighs the old one), and starts with a bias of 1.
D2  The parts of step 5 are propagated apart, by matrices of their own; added up they would give
    five vectors of a node and not the ten that are joined. Two further matrices in front of these
    are left out: a product of two matrices is one.
D3  Categories are numbered after B and count as nodes of B in steps 4 and 8; never predicted.
D4  The adjacencies are binary and not normalised, and m_n is no mean either.
Not as in the authors' code
D5  Their dropout is a constant that stays on at evaluation; here it ends with training, and it is
    on the item vectors, the encoders' outputs and [h; h_T], not on states inside a GRU.
D6  Their update expects 12 D numbers and gets 10 D, so that it cannot run: 10 D here.
D7  Where a sequence sees no item of the domain, P_G is 0; theirs goes to the domain's item 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.knowledge import RELATIONS
from reprokit.nextitem import NextItem, at_step, last_step, part

NEVER = -1e9
"""Logarithm of a probability of zero; finite, so that no gradient turns into nan."""


class MIFN(NextItem):
    """Items (B, L) of a prefix, its nodes (B, N) and their links (B, 5, N, N) -> log p.

    Args:
        n_a, n_b, n_categories: entities; ids in this order from 1, 0 is padding.
        dim: D, of the entities and of all states. Authors' code: 256.
        dropout: Authors' code keeps 0.8.
        iterations: of steps 4 to 7. Authors' code: 1.
    """

    inputs = ("items", "nodes", "adjacency")

    def __init__(
        self,
        n_a: int,
        n_b: int,
        n_categories: int,
        dim: int = 256,
        dropout: float = 0.2,
        iterations: int = 1,
    ) -> None:
        super().__init__()
        self.sizes, self.iterations = (n_a, n_b), iterations
        self.entities = nn.Embedding(1 + n_a + n_b + n_categories, dim, padding_idx=0)
        nn.init.xavier_normal_(self.entities.weight)  # as the authors' code
        with torch.no_grad():
            self.entities.weight[0] = 0
        self.encoders, self.filters, self.transfers = (
            nn.ModuleList(),
            nn.ModuleList(),
            nn.ModuleList(),
        )
        self.heads = nn.ModuleList()
        for n_items in self.sizes:
            self.encoders.append(nn.GRU(dim, dim, batch_first=True))
            self.filters.append(Filter(dim))
            self.transfers.append(nn.GRU(dim, dim, batch_first=True))
            self.heads.append(Head(n_items, dim, dropout))
        self.graph = GraphTransfer(dim)
        self.dropout = nn.Dropout(dropout)

    def behaviour(self, items: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Steps 1 to 3: h after the last item of A and of B, and what A tells B and B tells A.

        (B, L) -> (B, D) four times; zero vectors for a domain without items.
        """
        n_a, n_b = self.sizes
        ranges = ((1, n_a), (n_a + 1, n_a + n_b))
        parts = [part(items, *between) for between in ranges]  # items (B, L), counts (B, L)
        states = [
            self.dropout(encode(self.dropout(self.entities(packed)))[0])
            for encode, (packed, _) in zip(self.encoders, parts, strict=True)
        ]  # (B, L, D)
        last, told = [], []
        for mine, other in ((0, 1), (1, 0)):
            total = parts[mine][1][:, -1:]  # (B, 1)
            # Of each item in its packed place: how many of the other domain came before it.
            before = parts[other][1].gather(1, packing(items, *ranges[mine]))
            filtered = self.filters[mine](states[mine], at_step(states[other], before))
            last.append(at_step(states[mine], total)[:, 0])
            told.append(at_step(self.transfers[mine](filtered)[0], total)[:, 0])
        return last, told

    def read(
        self, items: Tensor, nodes: Tensor, adjacency: Tensor
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Steps 1 to 7: h and h_T of A and of B, and the node vectors after the graph (B, N, D)."""
        last, told = self.behaviour(items)
        final = last_step(items.unsqueeze(-1), items)  # (B, 1)
        in_b = final > self.sizes[0]
        h, h_t = (torch.where(in_b, b, a) for a, b in (last, told))  # (B, D)
        real = nodes > 0
        inside = real & ((nodes > self.sizes[0]) == in_b)  # (B, N)
        e = self.entities(nodes)
        links = adjacency.to(e.dtype)
        for _ in range(self.iterations):
            e = self.graph(e, h, h_t, inside, real & ~inside, links)
        return last, told, e

    def mixture(
        self, domain: int, last: list[Tensor], told: list[Tensor], e: Tensor, nodes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps 8 and 9 in logarithms: P_G (B, 1), P_S (B, 1), its two distributions
        over nodes (B, N) and over the domain's items (B, n_domain)."""
        n_a, n_b = self.sizes
        side = (nodes > n_a) if domain else (nodes > 0) & (nodes <= n_a)  # (B, N)
        return self.heads[domain](
            last[domain], told[1 - domain], e * side.unsqueeze(-1), side & (nodes <= n_a + n_b)
        )

    def domain_scores(  # type: ignore[override]
        self, domain: int, items: Tensor, nodes: Tensor, adjacency: Tensor
    ) -> Tensor:
        """log p of all items of a domain after the whole sequence: (B, n_domain)."""
        log_g, log_s, of_nodes, of_items = self.mixture(
            domain, *self.read(items, nodes, adjacency), nodes
        )
        first, n_items = 1 + domain * self.sizes[0], self.sizes[domain]
        mine = (nodes >= first) & (nodes < first + n_items)
        column = torch.where(mine, nodes - first, n_items)  # the last column is no item's
        scores = F.pad(of_items + log_s, (0, 1))
        both = torch.logaddexp(scores.gather(1, column), of_nodes + log_g)
        return scores.scatter(1, column, both)[:, :-1]


class Filter(nn.Module):
    """Step 2: what of a domain's states is worth telling the other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate, self.gate_state = nn.Linear(2 * dim, dim), nn.Linear(dim, dim, bias=False)
        self.new, self.new_state = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        nn.init.ones_(self.gate.bias)
        nn.init.ones_(self.new.bias)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """States of the domain and, before each of them, of the other: (B, L, D) -> (B, L, D)."""
        gates, news = self.gate(torch.cat([own, other], -1)), self.new(own)
        state, states = torch.zeros_like(own[:, 0]), []
        for gate, new in zip(gates.unbind(1), news.unbind(1), strict=True):
            f = torch.sigmoid(gate + self.gate_state(state))
            state = f * torch.tanh(new + self.new_state(state)) + (1 - f) * state
            states.append(state)
        return torch.stack(states, 1)


class Attention(nn.Module):
    """v . tanh(W h + V e_n): (B, D) and (B, N, D) -> (B, N)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.state, self.node = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.weigh = nn.Linear(dim, 1, bias=False)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return self.weigh(torch.tanh(self.state(h).unsqueeze(1) + self.node(e))).squeeze(-1)


class GraphTransfer(nn.Module):
    """Steps 4 to 7, once: the node vectors of a sequence, updated through their links."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        count = len(RELATIONS)
        self.inside, self.across = Attention(dim), Attention(dim)
        self.mutual = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.mutual, std=(2 / (dim + 1)) ** 0.5)  # as one column of a Dense layer
        self.mix_states, self.mix_node = nn.Linear(2 * dim, dim), nn.Linear(dim, dim, bias=False)
        # W_r of the in-domain and of the cross-domain part: (dim) -> (relations, dim)
        self.relate = nn.ModuleList(nn.Linear(dim, count * dim, bias=False) for _ in range(2))
        self.update = nn.GRUCell(2 * count * dim, dim)

    def forward(
        self, e: Tensor, h: Tensor, h_t: Tensor, inside: Tensor, across: Tensor, links: Tensor
    ) -> Tensor:
        """e (B, N, D), h and h_t (B, D), two masks (B, N), links (B, 5, N, N) -> (B, N, D)."""
        of_inside = masked_softmax(self.inside(h, e), inside).unsqueeze(-1) * e  # (B, N, D)
        of_across = masked_softmax(self.across(h_t, e), across).unsqueeze(-1) * e
        near, far = e * inside.unsqueeze(-1), e * across.unsqueeze(-1)
        of_across = of_across + ((far * self.mutual) @ near.mT) @ near  # m_n
        states = self.mix_states(torch.cat([h, h_t], -1)).unsqueeze(1)
        g = torch.sigmoid(states + self.mix_node(e))  # (B, N, D)
        ten = []
        for x, relate in zip((g * of_inside, (1 - g) * of_across), self.relate, strict=True):
            sent = relate(x).unflatten(-1, (links.shape[1], -1)).transpose(1, 2)  # (B, 5, N, D)
            ten.append(F.relu(links @ sent).transpose(1, 2).flatten(2))  # (B, N, 5 D)
        updated = self.update(torch.cat(ten, -1).flatten(0, 1), e.flatten(0, 1))
        return updated.view_as(e)


class Head(nn.Module):
    """Steps 8 and 9 of one domain."""

    def __init__(self, n_items: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim)
        self.switch = nn.Linear(3 * dim, 1)
        self.out = nn.Linear(2 * dim, n_items)
        nn.init.xavier_normal_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, h: Tensor, h_t: Tensor, e: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h, h_t (B, D), nodes of the domain (B, N, D), others zero, and which are items (B, N)."""
        switch = self.switch(torch.cat([h, h_t, e.sum(1)], -1)).float()  # (B, 1)
        some = present.any(1, keepdim=True)
        log_g = F.logsigmoid(switch).masked_fill(~some, NEVER)
        log_s = F.logsigmoid(-switch).masked_fill(~some, 0)
        of_nodes = self.attention(h, e).float().masked_fill(~present, NEVER).log_softmax(-1)
        of_nodes = of_nodes.masked_fill(~present, NEVER)
        of_items = self.out(self.dropout(torch.cat([h, h_t], -1))).float().log_softmax(-1)
        return log_g, log_s, of_nodes, of_items


def packing(items: Tensor, low: int, high: int) -> Tensor:
    """Which step of the sequence stands in each place of `part(items, low, high)`: (B, L)."""
    mine = (items >= low) & (items <= high)
    return torch.argsort((~mine).to(torch.int8), dim=1, stable=True)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over what the mask leaves; zero elsewhere, and everywhere where it leaves nothing."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


def mifn_loss(
    model: MIFN, items: Tensor, nodes: Tensor, adjacency: Tensor, targets: Tensor
) -> Tensor:
    """Step 10 for rows of one target each: (B,).

    Args:
        items: (B, L) exactly what came before the target; `nodes` and `adjacency` are made of it.
        targets: (B,) the next item, of either domain. The authors' rows have a target in each
            domain, whose losses are added: here these are two rows.
    """
    last, told, e = model.read(items, nodes, adjacency)
    losses = torch.zeros(len(items), device=items.device)
    for domain, first in enumerate((1, 1 + model.sizes[0])):
        at = torch.nonzero((targets > model.sizes[0]) == bool(domain))[:, 0]
        if not len(at):
            continue
        wanted = targets[at, None]  # (b, 1)
        log_g, log_s, of_nodes, of_items = model.mixture(
            domain, [x[at] for x in last], [x[at] for x in told], e[at], nodes[at]
        )
        found = nodes[at] == wanted  # (b, N)
        in_graph = found.any(1, keepdim=True)
        by_graph = of_nodes.masked_fill(~found, NEVER).amax(1, keepdim=True)
        by_items = of_items.gather(1, wanted - first)
        loss = -torch.logaddexp(log_g + by_graph, log_s + by_items)
        loss = loss - (log_s.exp() + 1e-4).log() * ~in_graph
        losses = losses.index_add(0, at, loss[:, 0])
    return losses
