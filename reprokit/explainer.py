"""The model of ExplainRec: a language model with fused items and a knowledge prior; its losses.

Eq. 3     L_attr = alpha L_pred + beta L_reason + gamma L_consistency: `attribution_terms`
Eq. 5     the knowledge base's patterns, added to the answer's log-odds: `ExplainRec.beside`
Eq. 6     one gradient step on a support set: `adapted`
Eq. 7, 8  attention over a text and a picture vector: `Fusion`
Eq. 9     the fused items in the prompt: `ExplainRec.embed`
Eq. 10    the weighted sum over four tasks: `multi_task_loss`
Eq. 11    their weights: `updated_weights`

Shapes: B rows, T tokens, H width of the language model, D width of fused items, I items, L items of
a history (the first half liked, the second disliked), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reprokit.instructions import SEEN
from reprokit.prompting import TextModel, mlp, placed
from reprokit.prompts import ITEM, SLOTS

TASKS = ("pred", "exp", "rate", "cross")
"""Preference, explanation, rating, cross-domain."""
FIRST = 10
"""Steps with rows of a task whose mean loss is its first loss, before its weight moves."""
STATE = ("first_losses", "recent_losses", "steps_seen", "loss_sums", "row_counts")
"""What equation 11 keeps beside the weights, kept with them."""


# --- items: equations 7 and 8 -------------------------------------------------------------------
class Fusion(nn.Module):
    """h = sum over modalities m of a_m v_m, a = softmax_m(q . k_m / sqrt(D)): equation 8.

    v_m = W_m x_m, k_m = K v_m and q = Q c, where c is the context: what the user liked less what he
    disliked. A modality that an item lacks, a vector of zeros, has no weight; an item without any
    is a vector of zeros.

    Args:
        features: by modality, frozen vectors (I, width); row 0 is zeros.
        dim: D.
    """

    def __init__(self, features: Mapping[str, np.ndarray], dim: int) -> None:
        super().__init__()
        self.dim, self.names = dim, tuple(features)
        # Frozen and large: no buffers, which processes would send one another at every step.
        self.tables = {
            name: torch.from_numpy(np.ascontiguousarray(values, np.float32))
            for name, values in features.items()
        }
        self.maps = nn.ModuleDict(
            {name: nn.Linear(values.shape[1], dim, bias=False) for name, values in features.items()}
        )
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)

    def vectors(self, name: str, items: Tensor) -> Tensor:
        """x of a modality: (...) item ids -> (..., width)."""
        if self.tables[name].device != items.device:
            self.tables[name] = self.tables[name].to(items.device)
        return self.tables[name][items]

    def values(self, items: Tensor) -> Tensor:
        """v: (...) item ids -> (..., M, D)."""
        found = [self.maps[name](self.vectors(name, items)) for name in self.names]
        return torch.stack(found, dim=-2)

    def present(self, items: Tensor) -> Tensor:
        """Which modalities items have: (...) -> (..., M)."""
        found = [self.vectors(name, items).any(dim=-1) for name in self.names]
        return torch.stack(found, dim=-1)

    def weights(self, values: Tensor, items: Tensor, context: Tensor) -> Tensor:
        """a: (..., M, D) values of items (...), contexts (..., D) -> (..., M)."""
        scores = (self.key(values) * self.query(context).unsqueeze(-2)).sum(-1) / self.dim**0.5
        here = self.present(items)
        scores = scores.masked_fill(~here, torch.finfo(scores.dtype).min)
        return torch.softmax(scores, dim=-1) * here

    def forward(self, items: Tensor, context: Tensor) -> Tensor:
        """h: items (...), context (..., D) -> (..., D)."""
        values = self.values(items)
        return (self.weights(values, items, context).unsqueeze(-1) * values).sum(-2)

    def context(self, histories: Tensor) -> Tensor:
        """c: mean of what was liked less the mean of what was disliked: (B, L) -> (B, D)."""
        plain = self.values(histories).sum(-2)  # (B, L, D); zeros for padding
        parts = zip(plain.chunk(2, dim=1), (histories > 0).chunk(2, dim=1), strict=True)
        liked, disliked = (p.sum(1) / there.sum(1, keepdim=True).clamp(min=1) for p, there in parts)
        return liked - disliked


# --- the model ----------------------------------------------------------------------------------
class ExplainRec(TextModel):
    """A causal language model with what ExplainRec adds; each part is there or is not.

    Args:
        llm, answers: as for `TextModel`.
        again: token ids of Yes and No where the answer is read again behind the reason.
        features: by modality, (I, width): the multi-modal part; empty: no slot is filled.
        dim: D, of fused items.
        patterns: how many patterns of the knowledge base are added to the log-odds; 0: none.
        weights: (alpha, beta, gamma) of equation 3.
        attribution: whether a reason is learnt.
        tasks: whether rating and cross-domain prediction are learnt too, with adaptive weights.
        eta: adaptation rate of equation 11.
        direction: "needed" or "printed": see `updated_weights`.
        bound: "needed" keeps the weights within this factor of 1.

    Equation 11 makes a step with each step of the optimiser, whatever is held in memory at once;
    with several processes the first one's rows decide.
    """

    task_weights: Tensor
    first_losses: Tensor
    recent_losses: Tensor
    steps_seen: Tensor
    loss_sums: Tensor
    row_counts: Tensor

    def __init__(
        self,
        llm: Any,
        answers: tuple[int, int],
        again: tuple[int, int],
        features: Mapping[str, np.ndarray],
        dim: int = 64,
        patterns: int = 3,
        weights: tuple[float, float, float] = (1.0, 1.0, 0.1),
        attribution: bool = True,
        tasks: bool = True,
        eta: float = 0.001,
        direction: str = "needed",
        bound: float = 4.0,
    ) -> None:
        super().__init__(llm, answers)
        self.again, self.attribution, self.tasks = again, attribution, tasks
        self.alpha, self.beta, self.gamma = weights
        self.eta, self.direction, self.bound = eta, direction, bound
        width = self.causal.get_input_embeddings().weight.shape[1]
        if features:
            self.fusion = Fusion(features, dim)
            self.seen = mlp(dim, 2 * dim, width)
            self.target = mlp(2 * dim, 2 * dim, width)
            self.agreement = nn.Linear(dim, 1, bias=False)
            nn.init.zeros_(self.agreement.weight)
        if patterns:
            self.prior = nn.Linear(patterns, 1, bias=False)
            nn.init.zeros_(self.prior.weight)
        if tasks:
            self.rating = nn.Linear(width, 1)
            self.register_buffer("task_weights", torch.ones(len(TASKS)))
            for name in STATE:
                self.register_buffer(name, torch.zeros(len(TASKS)))

    @property
    def multimodal(self) -> bool:
        return hasattr(self, "fusion")

    def embed(
        self, ids: Tensor, items: Tensor, slots: Tensor, users: Tensor, histories: Tensor
    ) -> Tensor:
        """Words, and fused items in their slots; the target's slot has its agreement with the
        context beside it: (B, T) -> (B, T, H)."""
        vectors = self.words(ids)
        if not self.multimodal or not (slots > 0).any():
            return vectors
        context = self.fusion.context(histories)  # (B, D)
        row, _ = (slots == SEEN).nonzero(as_tuple=True)
        if len(row):
            seen = slots == SEEN
            fused = self.fusion(items[seen], F.embedding(row, context))
            vectors = placed(vectors, seen, self.seen(fused))
        row, _ = (slots == SLOTS[ITEM]).nonzero(as_tuple=True)
        if len(row):
            here = slots == SLOTS[ITEM]
            own = F.embedding(row, context)
            fused = self.fusion(items[here], own)
            vectors = placed(vectors, here, self.target(torch.cat([fused, fused * own], -1)))
        return vectors

    def beside(self, patterns: Tensor, targets: Tensor, histories: Tensor) -> Tensor:
        """What is added to the answer's log-odds, linear and zero at the start: the knowledge
        base's patterns, and the agreement of the fused target with the context: (B,)."""
        total = torch.zeros(len(targets), device=targets.device)
        if hasattr(self, "prior"):
            total = total + self.prior(patterns).squeeze(-1)
        if self.multimodal:
            context = self.fusion.context(histories)
            total = total + self.agreement(self.fusion(targets, context) * context).squeeze(-1)
        return total

    def log_odds(self, states: Tensor, beside: Tensor, answers: tuple[int, int]) -> Tensor:
        """log p(Yes) - log p(No), and what is added to it: (B, H), (B,) -> (B,)."""
        yes, no = self.logits(states, answers).unbind(-1)
        return yes - no + beside

    def score(self, **inputs: Tensor) -> Tensor:
        patterns, targets = inputs.pop("patterns"), inputs.pop("targets")
        histories = inputs["histories"]
        if "group" in inputs:  # prefixes, and so histories, come once for several rows
            histories = histories[inputs["group"]]
        beside = self.beside(patterns, targets, histories)
        return self.log_odds(self.states(**inputs), beside, self.answers)

    def trace(
        self,
        ids: Tensor,
        items: Tensor,
        slots: Tensor,
        last: Tensor,
        end: Tensor,
        stop: Tensor,
        users: Tensor,
        histories: Tensor,
    ) -> Tensor:
        """States of all positions of prompts with outputs: (B, T, H).

        Where the answer is read again, behind `stop`, its token is hidden: the prompt and the
        reason are read. The states of the reason are those behind the answer, so that what they
        keep of it beside the words is not hidden.
        """
        vectors = self.embed(ids, items, slots, users, histories)
        kind, mask = self.causal.dtype, None
        if self.attribution and self.gamma:
            step = torch.arange(ids.shape[1], device=ids.device)
            causal = step <= step[:, None]  # (T, T)
            answer = step == last[:, None] + 1  # (B, T)
            behind = step >= stop[:, None]
            seen = causal & ~(behind[:, :, None] & answer[:, None, :])  # (B, T, T)
            # To be added to the scores, which every kind of attention does alike.
            mask = torch.zeros(seen.shape, dtype=kind, device=ids.device)
            mask = mask.masked_fill(~seen, torch.finfo(kind).min)[:, None]
        decoder = self.causal.get_decoder()
        return decoder(
            inputs_embeds=vectors.to(kind), attention_mask=mask, use_cache=False
        ).last_hidden_state


def at(states: Tensor, position: Tensor) -> Tensor:
    """(B, T, H), (B,) -> (B, H)."""
    return states[torch.arange(len(position), device=position.device), position]


# --- losses: equations 3, 10, 11 ----------------------------------------------------------------
def attribution_terms(
    model: ExplainRec,
    states: Tensor,
    ids: Tensor,
    labels: Tensor,
    beside: Tensor,
    **where: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """L_pred, L_reason and L_consistency of each row, (B,) each.

    L_pred         binary cross-entropy of the answer's log-odds
    L_reason       mean cross-entropy of the tokens of "because", the reference reason and its end
    L_consistency  KL(p || q) of yes and no, p at the answer, q where it is read behind the reason,
                   here the reference reason
    """
    last, stop, end = where["last"], where["stop"], where["end"]
    odds = model.log_odds(at(states, last), beside, model.answers)
    pred = F.binary_cross_entropy_with_logits(odds, labels.to(odds), reduction="none")
    zero = torch.zeros_like(pred)
    if not model.attribution:
        return pred, zero, zero
    told = stop > last + 2  # rows with a reason
    step = torch.arange(ids.shape[1], device=ids.device)
    # The token at t is predicted at t - 1; the reason begins behind the answer.
    due = (step > last[:, None] + 1) & (step < stop[:, None])  # (B, T)
    row, column = due.nonzero(as_tuple=True)
    losses = F.cross_entropy(
        model.logits(states[row, column - 1]), ids[row, column], reduction="none"
    )
    reason = zero.index_add(0, row, losses.to(zero)) / due.sum(1).clamp(min=1)
    if not model.gamma:
        return pred, reason, zero
    again = model.log_odds(at(states, end), beside, model.again)
    return pred, reason, torch.where(told, bernoulli_kl(odds, again), zero)


def bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(Bernoulli(sigmoid(p)) || Bernoulli(sigmoid(q))) from log-odds."""
    yes = torch.sigmoid(p)
    return yes * (F.logsigmoid(p) - F.logsigmoid(q)) + (1 - yes) * (
        F.logsigmoid(-p) - F.logsigmoid(-q)
    )


def updated_weights(
    weights: Tensor, losses: Tensor, eta: float, first: Tensor | None = None
) -> Tensor:
    """Equation 11, renormalised to the sum that the weights have: (tasks,) -> (tasks,).

    As printed, lambda exp(-eta dL/dlambda) with L = sum of lambda L_t, so that the derivative is
    L_t: the task with the largest loss loses most weight, and in the end the easiest has all.
    With `first`, the losses of the first steps, the sign is turned and losses count relative to
    these: lambda exp(+eta L_t / L_t of the first steps), so that weight goes to the task that has
    come down least.
    """
    step = -losses if first is None else losses / first.clamp(min=1e-8)
    # The mean falls out of the ratio; with a large eta nothing overflows.
    moved = weights * torch.exp((eta * (step - step.mean())).clamp(-80, 80))
    return moved * weights.sum() / moved.sum()


def multi_task_loss(model: ExplainRec, **batch: Tensor) -> Tensor:
    """Equation 10, sum over tasks of lambda_t L_t, for each row: (B,).

    A domain-free row belongs to the cross-domain task alone, every other to the three others; the
    mean over a batch weighs tasks by their rows too. Without the tasks it is equation 3.
    """
    labels, stars, free = (batch.pop(name) for name in ("labels", "stars", "free"))
    beside = model.beside(batch.pop("patterns"), batch.pop("targets"), batch["histories"])
    states = model.trace(**batch)
    pred, reason, consistency = attribution_terms(
        model, states, batch["ids"], labels, beside, **positions(batch)
    )
    told = model.beta * reason + model.gamma * consistency
    # A batch of rows without a slot leaves parts out; processes expect a gradient of every part.
    own_parts = (p for n, p in model.named_parameters() if not n.startswith("llm."))
    nothing = 0.0 * sum(part.sum() for part in own_parts) if model.training else 0.0
    if not model.tasks:
        return model.alpha * pred + told + nothing
    rating = 0.5 * (model.rating(at(states, batch["last"]).float()).squeeze(-1) - stars) ** 2
    own = (~free).to(pred)
    losses = torch.stack([model.alpha * pred * own, told * own, rating * own, pred * free], 1)
    if model.training:
        if model.rating.weight.grad is None:  # the first rows of a step
            move_weights(model)
        model.loss_sums += losses.detach().sum(0)
        model.row_counts += torch.stack([own.sum()] * 3 + [free.sum()])
    return losses @ model.task_weights.clone() + nothing


def positions(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("last", "stop", "end")}


@torch.no_grad()
def move_weights(model: ExplainRec) -> None:
    """Equation 11 by the losses of the last step's rows, summed in `loss_sums`.

    By running means, since a step may hold no row of some task. A task's first loss is the mean of
    its first `FIRST` steps; before that, and where a task has no loss at all, its weight stays.
    """
    here = model.row_counts > 0
    means = model.loss_sums / model.row_counts.clamp(min=1)
    seen, first, recent = model.steps_seen, model.first_losses, model.recent_losses
    seen += here
    early = here & (seen <= FIRST)
    first += torch.where(early, (means - first) / seen.clamp(min=1), 0.0)
    recent += torch.where(here, (means - recent) / seen.clamp(1, FIRST), 0.0)
    model.loss_sums.zero_()
    model.row_counts.zero_()
    ready, weights = (seen > FIRST) & (first > 0), model.task_weights
    if not ready.any():
        return
    if model.direction == "printed":
        weights[ready] = updated_weights(weights[ready], recent[ready], model.eta)
    else:
        moved = updated_weights(weights[ready], recent[ready], model.eta, first[ready])
        for _ in range(10):  # scaled to the old sum again, one may leave the bounds a little
            cut = moved.clamp(1 / model.bound, model.bound)
            inside = torch.equal(cut, moved)
            moved = cut * weights[ready].sum() / cut.sum()
            if inside:
                break
        weights[ready] = moved


def whole_text_loss(
    model: TextModel, ids: Tensor, end: Tensor, first: Tensor, **rest: Tensor
) -> Tensor:
    """Mean cross-entropy of all tokens from position `first` on: (B, T), (B,), (B,) -> (B,).

    `first` 1: prompt and answer alike, as TALLRec's script has it; the position of the answer:
    the answer alone.
    """
    vectors = model.words(ids).to(model.causal.dtype)
    states = model.causal.get_decoder()(inputs_embeds=vectors, use_cache=False).last_hidden_state
    step = torch.arange(ids.shape[1], device=ids.device)
    due = (step >= first[:, None]) & (step <= end[:, None])
    row, column = due.nonzero(as_tuple=True)
    losses = F.cross_entropy(
        model.logits(states[row, column - 1]), ids[row, column], reduction="none"
    )
    return losses.new_zeros(len(ids)).index_add(0, row, losses) / due.sum(1)


class Judged(TextModel):
    """A language model that is scored by its loss on whole texts."""

    def score(self, **batch: Tensor) -> Tensor:
        return whole_text_loss(self, **batch)


# --- adaptation: equation 6 ---------------------------------------------------------------------
@contextmanager
def adapted(parameters: Sequence[nn.Parameter], loss: Tensor, rate: float) -> Iterator[None]:
    """theta - rate * gradient of `loss`, inside the block; theta again, bit by bit, behind it."""
    gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient, alpha=rate)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


# --- explanations -------------------------------------------------------------------------------
PROMPT = ("ids", "items", "slots", "users", "histories")


@torch.inference_mode()
def explain(
    model: TextModel,
    prompt: Mapping[str, Tensor],
    answers: Tensor,
    begin: Sequence[int],
    end: int,
    limit: int,
) -> list[list[int]]:
    """Greedy reasons behind given answers: the tokens of each of B rows.

    Args:
        prompt: `PROMPT` and `last`, padded on the right.
        answers: (B,) token ids.
        begin: tokens that open every reason; they are not returned.
        end: token that ends one; it is not returned either.
        limit: most tokens of a reason.
    """
    last, device = prompt["last"], answers.device
    decoder, kind = model.causal.get_decoder(), model.causal.dtype
    vectors = model.embed(**{name: prompt[name] for name in PROMPT})
    cache = decoder(inputs_embeds=vectors.to(kind), use_cache=True).past_key_values
    seen = torch.arange(vectors.shape[1], device=device) <= last[:, None]  # (B, T)

    def feed(token: Tensor, place: Tensor) -> Tensor:
        """The state of one more token of each row: (B,), (B,) -> (B, H)."""
        nonlocal seen
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        return decoder(
            inputs_embeds=model.words(token[:, None]).to(kind),
            past_key_values=cache,
            attention_mask=seen.long(),
            position_ids=place[:, None],
            use_cache=True,
        ).last_hidden_state[:, 0]

    place = last + 1
    state = feed(answers, place)
    for opening in begin:
        place = place + 1
        state = feed(torch.full_like(answers, opening), place)
    written: list[Tensor] = []
    running = torch.ones_like(answers, dtype=torch.bool)
    while len(written) < limit:
        token = model.logits(state).argmax(-1)
        running = running & (token != end)
        written.append(torch.where(running, token, end))
        if not running.any():
            break
        place = place + 1
        state = feed(token, place)
    rows = torch.stack(written, 1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


@torch.inference_mode()
def read_again(
    model: ExplainRec,
    prompt: Mapping[str, Tensor],
    answers: Tensor,
    reasons: Sequence[Sequence[int]],
    begin: Sequence[int],
    end: int,
    cue: Sequence[int],
    beside: Tensor,
) -> Tensor:
    """Log-odds of Yes read behind reasons, where the answer's token is hidden: (B,).

    Arguments as for `explain`; `cue` are the tokens behind which the answer is read, `beside` (B,)
    is what `ExplainRec.beside` adds.
    """
    last, device = prompt["last"].tolist(), answers.device
    rows = []
    for row, reason in enumerate(reasons):
        ids = prompt["ids"][row, : last[row] + 1].tolist()
        rows.append([*ids, int(answers[row]), *begin, *reason, end, *cue])
    lengths = torch.tensor([len(tokens) for tokens in rows], device=device)
    width = int(lengths.max())
    found = {"ids": torch.zeros(len(rows), width, dtype=torch.long, device=device)}
    for row, tokens in enumerate(rows):
        found["ids"][row, : len(tokens)] = torch.tensor(tokens, device=device)
    for name in ("items", "slots"):
        found[name] = F.pad(prompt[name], (0, width - prompt[name].shape[1]))
    where = {"last": prompt["last"], "stop": lengths - len(cue), "end": lengths - 1}
    people = {name: prompt[name] for name in ("users", "histories")}
    states = model.trace(**found, **where, **people)
    return model.log_odds(at(states, where["end"]), beside, model.again)
