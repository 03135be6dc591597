"""Sequential models: the user is what they liked, in order.

To score a click, the state after the history times the target item's vector:

SASRec      Kang and McAuley, ICDM 2018, in the form that CoLLM (arXiv 2310.19488) scores clicks
            with.

To predict the next item of a sequence over two domains, the baselines of LLM-EMF's tables. Each has
one vector per item, which its encoder reads and its scores use:

NextSASRec  The same paper as RecBole (arXiv 2011.01731) runs it: a post-norm encoder of the BERT
            kind and a softmax over all items instead of one negative per position.
GRU4Rec     Hidasi et al., ICLR 2016, as RecBole runs it: item vectors in place of one-hot inputs, a
            layer back to their width, and the same softmax instead of sampled ranking losses.
SRGNN       Wu et al., AAAI 2019, equations 1 to 7.

Sequences of the last three are right-padded with 0. N is the number of real steps of a batch: what
is done step by step is done on N rows and not on B x L, of which most may be padding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from reprokit.collaborative import table
from reprokit.nextitem import NextItem, last_step, sampled_nll, softmax_nll
from reprokit.runs import RequestError


# --- clicks -------------------------------------------------------------------------------------
class SASRec(nn.Module):
    """Causal self-attention over the history; s = state . E[target].

    Histories are left-padded with 0, so positions count from the target back. As in the widely
    used PyTorch port: queries are normalised, keys and values are not, the residual adds the
    normalised query, and padded keys are zeroed rather than masked.
    """

    inputs = ("histories", "items")

    def __init__(
        self,
        n_items: int,
        dim: int,
        init_std: float,
        max_len: int,
        blocks: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.settings = {"n_items": n_items, "dim": dim, "init_std": init_std, "max_len": max_len}
        self.settings |= {"blocks": blocks, "heads": heads, "dropout": dropout}
        self.scale = dim**0.5
        self.items = table(n_items, dim, init_std)
        self.positions = table(max_len, dim, init_std)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim, eps=1e-8)

    def encode(self, histories: Tensor) -> Tensor:
        """Item ids (B, L), left-padded with 0 -> the state after the last item (B, D)."""
        real = (histories > 0).unsqueeze(-1)  # (B, L, 1)
        x = self.items(histories) * self.scale + self.positions.weight  # (B, L, D)
        x = self.dropout(x) * real
        for block in self.blocks[:-1]:
            x = block(x, real)
        # Only the last state is read, so the last block computes one query: (B, L, D) -> (B, 1, D).
        x = self.blocks[-1](x, real, last_only=True)
        return self.norm(x[:, -1])

    def embed(self, users: Tensor, histories: Tensor) -> tuple[Tensor, Tensor]:
        """A user is the state after the history, of which the last `max_len` items are read."""
        return self.encode(histories[:, -len(self.positions.weight) :]), self.items.weight

    def score(self, histories: Tensor, items: Tensor) -> Tensor:
        return (self.encode(histories) * self.items(items)).sum(-1)  # (B,)


class Block(nn.Module):
    """One attention layer and one position-wise feed-forward layer."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_norm = nn.LayerNorm(dim, eps=1e-8)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-8)
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, real: Tensor, last_only: bool = False) -> Tensor:
        key, value = self.key_value(x).chunk(2, -1)  # (B, L, D) each, from the un-normalised input
        if last_only:
            x, real = x[:, -1:], real[:, -1:]
        query = self.query_norm(x)  # (B, T, D), T = L or 1
        attended = F.scaled_dot_product_attention(
            self.split(self.query(query)),
            self.split(key),
            self.split(value),
            is_causal=not last_only,  # the last position may see everything
            dropout_p=self.dropout.p if self.training else 0.0,
        )
        x = query + self.out(attended.transpose(1, 2).flatten(2))  # (B, T, D)
        x = self.norm(x)
        x = x + self.dropout(self.outer(self.dropout(F.relu(self.inner(x)))))
        return x * real

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, D / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


# --- the next item ------------------------------------------------------------------------------
class OneTable(NextItem):
    """A next-item model with one vector per item, for its encoder and for its scores alike.

    A subclass has `states` and may have a cheaper `last`.
    """

    def __init__(self, n_a: int, n_b: int, dim: int) -> None:
        super().__init__()
        self.sizes = (n_a, n_b)
        self.items = nn.Embedding(1 + n_a + n_b, dim)  # row 0: padding

    def tables(self) -> tuple[Tensor, Tensor]:
        of_a, of_b = self.items.weight[1:].split(self.sizes)
        return of_a, of_b

    def last(self, items: Tensor) -> Tensor:
        """The state after each whole sequence: (B, L) -> (B, D)."""
        return last_step(self.states(items)[0], items)

    def domain_scores(self, domain: int, items: Tensor, **more: Tensor) -> Tensor:
        return self.last(items) @ self.tables()[domain].T


def last_loss(
    model: OneTable, items: Tensor, targets: Tensor, over: str = "domain", sampled: int = 0
) -> Tensor:
    """Cross-entropy of the item after each whole sequence: (B, L), (B,) -> (B,).

    What `next_item_loss` gives where only the last step has a target, without the other states.
    A target of 0 is none.
    """
    n_a, n_b = model.sizes
    everything, own = [(0, n_a + n_b)], [(0, n_a), (n_a, n_a + n_b)]
    states = model.last(items)  # (B, D)
    total = torch.zeros(len(targets), device=targets.device)
    for below, top in {"all": everything, "domain": own}[over]:
        row = torch.nonzero((targets > below) & (targets <= top))[:, 0]
        if len(row):
            views = [(states.index_select(0, row), model.items.weight[1 + below : 1 + top])]
            wanted = targets[row] - below - 1
            losses = sampled_nll(views, wanted, sampled) if sampled else softmax_nll(views, wanted)
            total = total.index_add(0, row, losses)
    return total


class Places:
    """The places of a (B, L) grid where `mask` holds: from the grid to N rows, and back."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.at = torch.nonzero(mask.flatten())[:, 0]  # (N,)

    def pack(self, grid: Tensor) -> Tensor:
        """(B, L, ...) -> (N, ...), sequence by sequence."""
        return grid.flatten(0, 1).index_select(0, self.at)

    def unpack(self, rows: Tensor) -> Tensor:
        """(N, D) -> (B, L, D), zero elsewhere."""
        grid = rows.new_zeros(self.mask.numel(), rows.shape[-1])
        return grid.index_copy(0, self.at, rows).unflatten(0, self.mask.shape)

    def rows(self, columns: Tensor) -> Tensor:
        """The row of one place in each sequence: (B,) -> (B,)."""
        width = self.mask.shape[1]
        start = torch.arange(len(columns), device=columns.device) * width
        return (self.mask.flatten().cumsum(0) - 1)[start + columns]


def real_steps(items: Tensor) -> tuple[Places, Tensor]:
    """The steps before the padding, and the column of each sequence's last one (B,).

    An empty sequence has one step, of padding: as in `last_step`, its state is the first step's.
    """
    count = (items > 0).sum(1).clamp(min=1)
    steps = torch.arange(items.shape[1], device=items.device)
    return Places(steps < count[:, None]), count - 1


class NextSASRec(OneTable):
    """Causal self-attention over the sequence.

    Positions count from the start of the sequence. Each sub-layer is x = LN(x + dropout(f(x))),
    with LN also after the positions are added. Nothing has to mask the padding: it stands to the
    right, and no step looks there.

    Args:
        max_len: rows of the table of positions; a longer sequence is refused.
        inner: width of the feed-forward layers.
        dropout: of the input, of the attention weights and of each sub-layer's output.
    """

    def __init__(
        self,
        n_a: int,
        n_b: int,
        dim: int,
        max_len: int,
        blocks: int,
        heads: int,
        inner: int,
        dropout: float,
        init_std: float = 0.02,
    ) -> None:
        super().__init__(n_a, n_b, dim)
        self.positions = nn.Embedding(max_len, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(NextBlock(dim, heads, inner, dropout) for _ in range(blocks))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=init_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def read(self, items: Tensor, steps: Places) -> Tensor:
        """What the first block gets, (B, L) -> (N, D)."""
        width, most = items.shape[1], self.positions.num_embeddings
        if width > most:
            raise RequestError(f"NextSASRec: {width} steps, but max_len is {most}; raise max_len")
        position = torch.arange(width, device=items.device).expand_as(items)
        x = self.items(steps.pack(items)) + self.positions(steps.pack(position))
        return self.dropout(self.norm(x))

    def states(self, items: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        steps, _ = real_steps(items)
        x = self.read(items, steps)  # (N, D)
        for block in self.blocks:
            x = block(x, steps)
        states = steps.unpack(x)
        return states, states

    def last(self, items: Tensor) -> Tensor:
        steps, last = real_steps(items)
        x = self.read(items, steps)  # (N, D)
        for block in self.blocks[:-1]:
            x = block(x, steps)
        # Only the last state is read, so the last block computes one query: (N, D) -> (B, D).
        return self.blocks[-1](x, steps, steps.rows(last))


class NextBlock(nn.Module):
    """One attention layer and one feed-forward layer, each normalised after its residual."""

    def __init__(self, dim: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.inner, self.outer = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, steps: Places, last: Tensor | None = None) -> Tensor:
        """(N, D) -> (N, D); with `last`, the row of each sequence's last step: (B, D)."""
        key, value = self.split(steps.unpack(self.key_value(x))).chunk(2, 1)  # (B, heads, L, d)
        dropout = self.dropout.p if self.training else 0.0
        if last is None:
            query = self.split(steps.unpack(self.query(x)))  # (B, heads, L, d)
            attended = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, dropout_p=dropout
            )
            attended = steps.pack(attended.transpose(1, 2).flatten(2))  # (N, D)
        else:
            x = x.index_select(0, last)  # (B, D)
            query = self.split(self.query(x).unsqueeze(1))  # (B, heads, 1, d)
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=steps.mask[:, None, None], dropout_p=dropout
            ).flatten(1)
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        return self.norm(x + self.dropout(self.outer(F.gelu(self.inner(x)))))

    def split(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, C / d, T, d), d the width of a head."""
        width = self.out.in_features // self.heads
        return x.unflatten(-1, (-1, width)).transpose(1, 2)


class GRU4Rec(OneTable):
    """A recurrent network over the sequence, and a layer from its width back to the items'.

    Args:
        hidden: width of the recurrent layers, which have no biases.
        dropout: of the item vectors that the network reads.
    """

    def __init__(
        self, n_a: int, n_b: int, dim: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__(n_a, n_b, dim)
        self.dropout = nn.Dropout(dropout)
        self.gru = nn.GRU(dim, hidden, layers, bias=False, batch_first=True)
        self.dense = nn.Linear(hidden, dim)
        nn.init.xavier_normal_(self.items.weight)
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)

    def states(self, items: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        lengths = (items > 0).sum(1).clamp(min=1).cpu()
        x = self.dropout(self.items(items))  # (B, L, D)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=items.shape[1]
        )
        states = self.dense(hidden)  # (B, L, hidden) -> (B, L, D)
        return states, states


class SRGNN(OneTable):
    """A gated network over the graph of the session's items, read out around the last one.

    A session's nodes are its different items, its edges the steps from one to the next; a step
    taken twice is one edge, as in the authors' code (their text counts it twice). Every prefix of
    a session is a graph of its own, so `states` runs one graph per step.

    Args:
        rounds: how often messages pass along the edges.
    """

    def __init__(self, n_a: int, n_b: int, dim: int, rounds: int = 1) -> None:
        super().__init__(n_a, n_b, dim)
        self.rounds = rounds
        self.before, self.after = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.empty(2 * dim))
        self.cell = nn.GRUCell(2 * dim, dim)
        self.of_last, self.of_node = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.attention = nn.Linear(dim, 1, bias=False)
        self.join = nn.Linear(2 * dim, dim)
        for parameter in self.parameters():  # the padding's vector and the biases too
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)

    def states(self, items: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        steps, _ = real_steps(items)
        width = items.shape[1]
        row, step = steps.at // width, steps.at % width
        shown = torch.arange(width, device=items.device) <= step[:, None]
        states = steps.unpack(self.last(items[row] * shown))  # (N, L) -> (N, D) -> (B, L, D)
        return states, states

    def last(self, items: Tensor) -> Tensor:
        graph = SessionGraph(items)
        nodes = graph.nodes
        h = self.items(nodes.pack(items))  # (M, D), M nodes in all
        for _ in range(self.rounds):
            h = self.cell(self.messages(h, graph), h)  # eq. 2 to 5
        last = h.index_select(0, graph.last)  # (B, D), s_l
        near = nodes.pack(self.of_last(last).unsqueeze(1).expand(-1, items.shape[1], -1))  # (M, D)
        # Eq. 6: each step weighs its node, so a node counts as often as its item occurs.
        alpha = self.attention(torch.sigmoid(near + self.of_node(h))) * nodes.pack(graph.occurs)
        session = nodes.unpack(alpha * h).sum(1)  # (B, D), s_g
        return self.join(torch.cat([session, last], 1))  # eq. 7

    def messages(self, h: Tensor, graph: SessionGraph) -> Tensor:
        """Eq. 1: the mean of the nodes before and that of the nodes after, (M, D) -> (M, 2D)."""
        before = graph.incoming @ graph.nodes.unpack(self.before(h))  # (B, L, D)
        after = graph.outgoing @ graph.nodes.unpack(self.after(h))
        return graph.nodes.pack(torch.cat([before, after], 2)) + self.bias


class SessionGraph:
    """The graphs of a batch of sessions (B, L). A node lives where its item first occurs.

    nodes     the places of the nodes
    incoming  (B, L, L), [v, u] = 1 / in-degree of v where u is followed by v
    outgoing  (B, L, L), [u, v] = 1 / out-degree of u where u is followed by v
    occurs    (B, L, 1), how often the item of a node occurs
    last      (B,), row of the last item's node among the nodes
    """

    def __init__(self, items: Tensor) -> None:
        steps, last = real_steps(items)
        same = items[:, :, None] == items[:, None, :]
        first = same.to(torch.uint8).argmax(2)  # (B, L), where the item of a step first occurs
        at = F.one_hot(first, items.shape[1]).float() * steps.mask[..., None]  # (B, step, node)
        edges = (at[:, :-1].transpose(1, 2) @ at[:, 1:] > 0).float()  # (B, from, to)
        self.incoming = (edges / edges.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)
        self.outgoing = edges / edges.sum(2, keepdim=True).clamp(min=1)
        self.occurs = at.sum(1).unsqueeze(-1)
        self.nodes = Places(self.occurs[..., 0] > 0)
        self.last = self.nodes.rows(first.gather(1, last[:, None])[:, 0])
