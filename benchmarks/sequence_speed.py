"""Training a sequence model over a large catalogue: this project's form beside the plain one.

Run: python benchmarks/sequence_speed.py --data-dir DATA

The model is SASRec with the exact softmax over all items. Its sequences are Food-Kitchen's, or
generated ones of the same shape where --data-dir does not have them.

steps   Both forms on the same rows, one for each prefix of a sequence. Straightforward, as
        toolkits commonly run it: all positions of the padded rows in every layer, attention
        written out with a float mask (B, 1, L, L), the last state picked, a table of its logits
        for all items, cross-entropy, plain Adam. Ours: `last_loss` and what `training.step` does.
        The forms take steps in turn, so that a busy machine slows both. Equal losses and gradients
        are proven first, from weights that are all drawn at random.
passes  Ours trained twice from the same start with the same Adam: on a row for each prefix, and on
        all positions of a sequence in one pass; that also with the softmax over the target's own
        domain, which is what it is ranked in and what the tables train. How long each trains until
        its validation MRR is what prefix rows reach at best; validation is not in the times. Ranks
        among 1,000 with ties at the middle, the mean of both domains.
memory  The peak of two training steps, the second with Adam's state in place, each setting in a
        process of its own, with full rows. What a process holds before, and what weights,
        gradients, Adam's state and frozen features take by arithmetic, is subtracted; the rest is
        set against a table of all logits. Ours holds blocks of 64 MB of them: with less than that
        in all, everything is one block, which grows with items and positions alike.

The goals hold for the default sizes in float32 on two CPU cores. Exit status 1: the forms do not
give the same. 2: the data cannot be read, or the sizes do not fit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count, product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also runs from a checkout

from reprokit import training
from reprokit.crossdata import CROSS_DATA, CrossData, Sequences, load_cross_data, negatives
from reprokit.datasets import DataError
from reprokit.emf import LLMEMF, emf_loss
from reprokit.nextitem import last_step, next_item_loss
from reprokit.provenance import peak_memory
from reprokit.ranking import Held, Rows, plain_batches, rank_metrics, training_rows
from reprokit.runs import RequestError
from reprokit.sequential import NextSASRec, last_loss

PARTS = ("steps", "passes", "memory")
GOALS = {"steps": 1.7, "passes": 5.0}
TOGETHER = 0.1
"""Of what items and positions add to a table of all logits only together: so much, at most, may
they add to our memory."""
TOLERANCE, OF_GRADIENTS = 1e-5, 1e-4
"""Of the losses; and of gradients in shares of each weight's largest, which is sums over all items
of numbers that nearly cancel."""
ELSEWHERE = (
    "not measured side by side: RecBole 1.2.1 took 0.99 s for its own step, and 1,502 MB in all, "
    "with 64,093 items, width 256, 2 blocks, 2 heads, length 15, batch 256, 444 steps an epoch, on "
    "another occasion on two cores of the kind that this benchmark was written on"
)
REAL = "food-kitchen"
WARM_UP = 2
FORMS = {
    "emf": "LLM-EMF, all positions",
    "ours": "SASRec, prefix rows, ours",
    "straightforward": "SASRec, prefix rows, straightforward",
    "positions": "SASRec, all positions, ours",
}
VIEWS = {1: "ids alone", 3: "ids, pictures and texts"}
Batch = Callable[[np.ndarray], dict[str, Tensor]]


# --- what is measured ---------------------------------------------------------------------------
@dataclass
class Setup:
    """The data, the sizes and the process's Accelerator."""

    options: argparse.Namespace
    data: CrossData
    described: str
    accelerator: Accelerator

    @property
    def sizes(self) -> str:
        o = self.options
        return f"{self.data.n_items:,} items, width {o.dim}, length {o.max_len}"

    def model(self) -> NextSASRec:
        """The same weights every time."""
        torch.manual_seed(0)
        return sasrec(self.options, self.data.n_a, self.data.n_b)

    def rows(self, kind: str) -> Rows:
        return training_rows(self.data, self.options.max_len, "merged", kind)

    @cached_property
    def valid(self) -> tuple[Held, np.ndarray]:
        """Validation with its negatives, and the fixed part of its rows that is ranked."""
        with tempfile.TemporaryDirectory() as folder:
            drawn = np.array(negatives(self.data, "valid", Path(folder)))
        rows = self.data.valid
        held = Held("valid", rows, drawn, self.data.domain_of(rows.targets))
        number = min(len(rows), self.options.valid_rows or len(rows))
        at = np.random.default_rng(0).choice(len(rows), number, replace=False)
        return held, np.sort(at)

    def mrr(self, wrapped: nn.Module) -> float:
        """Validation MRR in percent, the mean of both domains."""
        held, at = self.valid
        fitted = training.Fitted(self.accelerator, wrapped, 256, training.Record(("mrr",)))
        batch = held.batches(at, self.data, self.options.max_len, "merged", ("items",))
        counts, domain = fitted.predict(batch, len(at)), held.domain[at]
        found = [rank_metrics(counts[domain == d])["mrr"] for d in np.unique(domain)]
        return float(np.mean(found))

    def trainer(
        self, model: nn.Module, loss: training.Loss, batch: Batch, size: int
    ) -> tuple[nn.Module, Callable[[np.ndarray], Any]]:
        """The model as a run wraps it, and a run's step on some rows."""
        fit = training.Fit(lr=self.options.lr, batch_size=size, max_epochs=1, patience=1)
        wrapped, optimizer = self.accelerator.prepare(
            training.Objective(model, loss), training.make_optimizer(model, fit)
        )
        return wrapped, lambda at: training.step(
            self.accelerator, wrapped, optimizer, batch, at, fit
        )


def sasrec(options: argparse.Namespace, n_a: int, n_b: int) -> NextSASRec:
    o = options
    return NextSASRec(n_a, n_b, o.dim, o.max_len, o.blocks, o.heads, o.inner, o.dropout)


def prepare(options: argparse.Namespace) -> Setup:
    if options.dim % options.heads:
        raise RequestError(f"--heads must divide --dim, got {options.heads} and {options.dim}")
    for name, value in vars(options).items():
        if isinstance(value, int) and value < (name != "valid_rows"):
            raise RequestError(f"--{name.replace('_', '-')} must be positive, got {value}")
    data, described = sequences(options)
    longest = max(data.train.lengths.max(), data.valid.lengths.max()) - 1
    if longest > options.max_len:
        raise RequestError(f"--max-len must be at least {longest}, the data's longest context")
    return Setup(options, data.sealed(), described, Accelerator(cpu=True))


def sequences(options: argparse.Namespace) -> tuple[CrossData, str]:
    """The data, and what they are."""
    if options.data != "generated":
        try:
            CROSS_DATA[REAL].paths(options.data_dir)
        except DataError as missing:
            if options.data == REAL:
                raise
            reason = f"generated sequences, because {missing}"
        else:
            return load_cross_data(REAL, options.data_dir), f"Food-Kitchen in {options.data_dir}"
    else:
        reason = "generated sequences"
    if options.items < 100 or options.sequences < 10:
        raise RequestError("generated sequences need --items of 100 and --sequences of 10 or more")
    return generated(options.items, options.sequences), reason


def generated(items: int, number: int) -> CrossData:
    """Sequences of 6 to 14 items, each around a theme of about 50 items in each domain.

    As in Food-Kitchen's evaluated rows, training has them without their last item; half of them
    are validation.
    """
    rng = np.random.default_rng(0)
    lengths = rng.integers(6, 15, number)
    starts = np.concatenate([[0], lengths.cumsum()])
    themes = items // 100
    theme = np.repeat(rng.integers(themes, size=number), lengths)
    ids = 1 + theme + themes * rng.integers(items // themes, size=len(theme))
    times, people = np.arange(len(ids)), np.arange(number)
    last = np.zeros(len(ids), bool)
    last[starts[1:] - 1] = True
    few = number // 2
    end = starts[few]
    valid = Sequences(people[:few], ids[:end], times[:end], starts[: few + 1])
    train = Sequences(people, ids[~last], times[~last], starts - np.arange(number + 1))
    blank = [""] * (items + 1)
    no_image = np.zeros(items + 1, bool)
    return CrossData(
        name="generated",
        domains=("A", "B"),
        n_a=items // 2,
        n_b=items - items // 2,
        n_users=number,
        item_ids=blank,
        titles=blank,
        images=[None] * (items + 1),
        has_image=no_image,
        train=train,
        valid=valid,
        test=valid,  # never opened: the data are sealed
        counts={},
    )


# --- the straightforward form -------------------------------------------------------------------
class Reference(nn.Module):
    """SASRec as toolkits commonly write it; the weights have the names that `in_parts` gives."""

    def __init__(self, options: argparse.Namespace, n_items: int) -> None:
        super().__init__()
        dim, dropout = options.dim, options.dropout
        self.items = nn.Embedding(n_items, dim)  # item 1 in row 0: the softmax knows no padding
        self.positions = nn.Embedding(options.max_len, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            ReferenceBlock(dim, options.heads, options.inner, dropout)
            for _ in range(options.blocks)
        )

    def forward(self, items: Tensor) -> Tensor:
        """The state after each whole sequence, (B, L) -> (B, D)."""
        width = items.shape[1]
        past = torch.ones(width, width, dtype=torch.bool).tril()
        seen = ((items > 0)[:, None, None] & past).float()  # (B, 1, L, L)
        mask = (1.0 - seen) * -10_000.0
        places = torch.arange(width).expand_as(items)
        x = self.items((items - 1).clamp(min=0)) + self.positions(places)
        x = self.dropout(self.norm(x))
        for block in self.blocks:
            x = block(x, mask)
        return last_step(x, items)

    def loss(self, items: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        logits = self(items) @ self.items.weight.T  # (B, I)
        return F.cross_entropy(logits, targets - 1, reduction=reduction)


class ReferenceBlock(nn.Module):
    def __init__(self, dim: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.inner, self.outer = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, d)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + mask
        attended = self.dropout(scores.softmax(-1)) @ value
        attended = attended.transpose(1, 2).flatten(2)  # (B, L, D)
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        hidden = self.inner(x)
        hidden = hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))  # GELU
        return self.norm(x + self.dropout(self.outer(hidden)))


def in_parts(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Weights or gradients of a NextSASRec under the names that `Reference` has for them."""
    found = {}
    for name, value in named:
        if name == "items.weight":
            found[name] = value[1:]
        elif "key_value" in name:
            for part, half in zip(("key", "value"), value.chunk(2), strict=True):
                found[name.replace("key_value", part)] = half
        else:
            found[name] = value
    return found


def reference_step(model: Reference, lr: float) -> Callable[[dict[str, Tensor]], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)  # on a CPU a loop over the weights

    def step(batch: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        model.loss(batch["items"], batch["targets"]).backward()
        optimizer.step()

    return step


# --- steps --------------------------------------------------------------------------------------
def steps(setup: Setup) -> tuple[bool, float]:
    """Whether both forms give the same, and the straightforward form's seconds for a step."""
    options, rows = setup.options, setup.rows("prefixes")
    size = options.batch
    order = training.Order(0, len(rows), size, None)
    batch = prefix_batches(rows)
    model = setup.model()
    with torch.no_grad():
        for parameter in model.parameters():  # zero biases and unit norms would prove nothing
            parameter.add_(0.05 * torch.randn_like(parameter))
    reference = Reference(options, setup.data.n_items)
    reference.load_state_dict(in_parts(model.state_dict().items()))
    described = f"{setup.sizes}, {size} prefix rows a step"
    print(f"\nSteps: {described}, {order.per_pass:,} steps an epoch, {len(rows):,} rows")
    equal = same(model, reference, batch(order[0]), described)

    _, ours = setup.trainer(model, partial(last_loss, over="all"), batch, size)
    all_states = setup.model()
    _, as_run = setup.trainer(
        all_states, partial(next_item_loss, over="all"), plain_batches(rows, ("items",)), size
    )
    plain_step = reference_step(reference.train(), options.lr)
    model.train()
    forms: dict[str, Callable[[np.ndarray], Any]] = {
        "straightforward": lambda at: plain_step(batch(at)),
        "ours": ours,
        "ours, states of all positions (next_item_loss)": as_run,
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for done in range(WARM_UP + options.repeats):
        for name, form in forms.items():
            start = perf_counter()
            form(order[done])
            if done >= WARM_UP:
                times[name].append(perf_counter() - start)
    setup.accelerator.free_memory()

    print(f"\n| {described} | s a step | p10 to p90 | ratio | s an epoch |")
    print("| --- | --- | --- | --- | --- |")
    medians = {name: median(seconds) for name, seconds in times.items()}
    slow = medians["straightforward"]
    for name, value in medians.items():
        low, high = np.quantile(times[name], [0.1, 0.9])
        print(
            f"| {name} | {value:.3f} | {low:.3f} to {high:.3f} | {slow / value:.2f}x "
            f"| {value * order.per_pass:,.0f} |"
        )
    print(f"{described}: {goal('steps', slow / medians['ours'])}, {options.repeats} steps each")
    print(ELSEWHERE)
    return equal, slow


def prefix_batches(rows: Rows) -> Batch:
    """Row numbers -> items (B, L) and the one target of each row (B,)."""
    items, targets = torch.from_numpy(rows.items), torch.from_numpy(rows.targets.max(1))
    return lambda at: {"items": items[at], "targets": targets[at]}


def same(model: NextSASRec, reference: Reference, batch: dict[str, Tensor], described: str) -> bool:
    """Whether the losses of a batch's rows and all gradients are equal; NaN never is."""
    for form in (model, reference):
        form.eval()  # no dropout
    ours = last_loss(model, batch["items"], batch["targets"], over="all")
    theirs = reference.loss(batch["items"], batch["targets"], reduction="none")
    ours.mean().backward()
    theirs.mean().backward()
    ours, theirs = ours.detach(), theirs.detach()
    of_losses = float((ours - theirs).abs().max())
    wanted = {name: p.grad for name, p in reference.named_parameters()}
    got = in_parts((name, p.grad) for name, p in model.named_parameters())
    differences = [
        float((got[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-5))
        for name, grad in wanted.items()
        # A key's bias moves all scores of a query alike, so its gradient is nothing but rounding.
        if grad is not None and not name.endswith("key.bias")
    ]
    of_gradients = float(np.max(differences))  # unlike max, nan where one is
    for form in (model, reference):
        form.zero_grad()
    equal = of_losses <= TOLERANCE and of_gradients <= OF_GRADIENTS
    verdict = "Both forms give" if equal else "The forms do NOT give"
    print(
        f"{verdict} the same: {described}, losses {ours.min():.3f} to {ours.max():.3f}, "
        f"largest difference {of_losses:.1e}, tolerance {TOLERANCE:.0e}; of gradients, in "
        f"shares of each weight's largest, {of_gradients:.1e}, tolerance {OF_GRADIENTS:.0e}"
    )
    return equal


def goal(part: str, ratio: float) -> str:
    return (
        f"goal {GOALS[part]:.1f}x: {'met' if ratio >= GOALS[part] else 'missed'} with {ratio:.2f}x"
    )


# --- passes -------------------------------------------------------------------------------------
@dataclass
class Check:
    """Where training stood when it was validated."""

    step: int
    seconds: float
    """Of training alone."""
    mrr: float


def passes(setup: Setup, plain_step: float) -> None:
    """`plain_step`: the straightforward form's seconds for a step, 0 where not measured."""
    options, apart, whole = setup.options, setup.rows("prefixes"), setup.rows("positions")
    described = f"{setup.sizes}, {options.batch} prefix rows a step"
    budget = math.ceil(options.epochs * math.ceil(len(apart) / options.batch))
    print(
        f"\nPasses: {described}, {budget:,} steps at most; validation MRR in % of "
        f"{len(setup.valid[1]):,} of {len(setup.data.valid):,} rows"
    )
    first = course(
        setup,
        described,
        (apart, partial(last_loss, over="all"), prefix_batches(apart)),
        options.batch,
        options.every,
        lambda check: check.step >= budget,
    )
    best = max(first, key=lambda check: check.mrr)
    for size, over in product(options.whole, options.over):
        loss = partial(next_item_loss, over=over, per_row=whole.per_row)
        softmax = "" if over == "all" else ", softmax over the target's own domain"
        name = f"{setup.sizes}, {size} whole sequences a step{softmax}"
        positions = size * whole.per_row  # of a step
        second = course(
            setup,
            name,
            (whole, loss, plain_batches(whole, ("items",))),
            size,
            max(1, round(options.every * options.batch / positions)),
            lambda check: check.mrr >= best.mrr,
        )
        name += f" ({positions:,.0f} positions)"
        compare(first, second, name, described, plain_step)
        per_epoch = [
            checks[-1].seconds / checks[-1].step * math.ceil(len(rows) / of)
            for checks, rows, of in ((first, apart, options.batch), (second, whole, size))
        ]
        print(
            f"{name}: {per_epoch[1]:,.0f} s an epoch, beside {per_epoch[0]:,.0f} s of ours on "
            f"prefix rows, which has the same positions: {per_epoch[0] / per_epoch[1]:.2f}x"
        )


def course(
    setup: Setup,
    name: str,
    what: tuple[Rows, training.Loss, Batch],
    size: int,
    every: int,
    done: Callable[[Check], bool],
) -> list[Check]:
    """Train until `done`, or for the longest time; a check every so many steps and at the end."""
    rows, loss, batch = what
    wrapped, step = setup.trainer(setup.model(), loss, batch, size)
    order = training.Order(0, len(rows), size, None)
    seconds, checks = 0.0, []
    for number in count(1):
        wrapped.train()
        start = perf_counter()
        step(order[number - 1])
        seconds += perf_counter() - start
        late = seconds >= 60 * setup.options.minutes
        last = Check(number, seconds, math.nan)
        if number % every and not late and not done(last):
            continue
        last.mrr = setup.mrr(wrapped)
        checks.append(last)
        epochs = number / order.per_pass
        print(
            f"{name}: step {number:,}, epoch {epochs:.2f}, {seconds:,.1f} s of training, "
            f"{seconds / number:.3f} s a step, MRR {last.mrr:.3f}",
            flush=True,
        )
        if late or done(last):
            break
    setup.accelerator.free_memory()
    return checks


def compare(
    first: list[Check], second: list[Check], name: str, described: str, plain_step: float
) -> None:
    """A line for each level that prefix rows reached, and when each form had reached it."""
    print(f"\n| MRR | {described} | {name} | ratio |\n| --- | --- | --- | --- |")
    top, reached = -math.inf, None
    for check in first:
        if check.mrr <= top:
            continue
        top = check.mrr
        reached = next((found for found in second if found.mrr >= top), None)
        before = f"| {top:.3f} | {check.seconds:,.1f} s, step {check.step:,}"
        if reached:
            ratio = check.seconds / reached.seconds
            print(f"{before} | {reached.seconds:,.1f} s, step {reached.step:,} | {ratio:.2f}x |")
        else:
            print(f"{before} | not reached | |")
        best = check
    if not reached:
        highest = max(found.mrr for found in second)
        longest = second[-1].seconds
        print(f"{name}: MRR {best.mrr:.3f} not reached in {longest:,.1f} s, best {highest:.3f}")
        return
    ratio = best.seconds / reached.seconds
    print(f"{name}, to MRR {best.mrr:.3f} beside ours on prefix rows: {goal('passes', ratio)}")
    if plain_step:
        slow = plain_step * best.step
        print(
            f"{name}, beside the straightforward form on prefix rows, {slow:,.0f} s for the same "
            f"{best.step:,} steps by its median (not trained; its loss and gradients are the "
            f"same): {goal('passes', slow / reached.seconds)}"
        )


# --- memory -------------------------------------------------------------------------------------
def memory(setup: Setup) -> None:
    options = setup.options
    length = options.max_len
    print(
        f"\n| Memory, MB: model, items, full rows x length {length}, width "
        f"{options.dim}, features {options.features} | peak | weights, gradients, Adam, features "
        "| the rest | all logits |\n| --- | --- | --- | --- | --- |"
    )
    settings = [
        ("emf", *sizes) for sizes in product(options.memory_items, options.memory_batches, VIEWS)
    ]
    largest = max(options.memory_items), max(options.memory_batches), 1
    settings += [(form, *largest) for form in FORMS if form != "emf"]
    found = {}
    for setting in settings:
        form, items, batch, modalities = setting
        made = found[setting] = in_a_process(setting, options)
        made["rest"] = made["peak"] - made["before"] - made["fixed"]
        views = f", {VIEWS[modalities]}" if form == "emf" else ""
        print(
            f"| {FORMS[form]}, {items:,} items, {batch} x {length}{views} "
            f"| {made['peak']:,.0f} | {made['fixed']:,.0f} | {made['rest']:,.0f} "
            f"| {made['logits']:,.0f} |",
            flush=True,
        )
    growth(found, options)


def in_a_process(setting: tuple[Any, ...], options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--peak-of", *map(str, setting)]
    for name in ("dim", "max_len", "blocks", "heads", "inner", "dropout", "lr", "features"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    made: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return made


def growth(found: dict[tuple[Any, ...], dict[str, float]], options: argparse.Namespace) -> None:
    """What grows with the product of items and positions: in a sum of a part that grows with the
    items and one that grows with the positions, the four corners cancel."""
    items, batches = sorted(options.memory_items), sorted(options.memory_batches)
    low, high = (items[0], batches[0]), (items[-1], batches[-1])
    sides = f"{low[0]:,} to {high[0]:,} items and {low[1]} to {high[1]} rows"

    def at(key: str, item: int, batch: int, modalities: int) -> float:
        return found["emf", item, batch, modalities][key]

    for modalities in VIEWS:
        corners = [(high[0], high[1]), (high[0], low[1]), (low[0], high[1]), (low[0], low[1])]
        grown, together = {}, {}
        for key in ("rest", "logits"):
            a, b, c, d = (at(key, *corner, modalities) for corner in corners)
            grown[key], together[key] = a - d, a - b - c + d
        verdict = "met" if together["rest"] <= TOGETHER * together["logits"] else "missed"
        print(
            f"LLM-EMF, {sides}, {VIEWS[modalities]}: the rest grows by "
            f"{grown['rest']:+,.0f} MB, of which {together['rest']:+,.0f} MB come with items and "
            f"positions together; all logits by {grown['logits']:+,.0f} MB, of which "
            f"{together['logits']:+,.0f} MB. goal at most {TOGETHER:.0%} of those: {verdict}"
        )
    rest, logits = ((at(key, *low, 1), at(key, *high, 3)) for key in ("rest", "logits"))
    print(
        f"LLM-EMF, {sides}, {VIEWS[1]} to {VIEWS[3]}: all logits {logits[0]:,.0f} to "
        f"{logits[1]:,.0f} MB ({logits[1] / logits[0]:.0f}x), the rest {rest[0]:,.0f} to "
        f"{rest[1]:,.0f} MB"
    )


def peak_of(options: argparse.Namespace) -> None:
    """Train two steps in this process and print its memory as JSON, in MB."""
    form, *numbers = options.peak_of
    items, batch, modalities = map(int, numbers)
    train(options, form, 200, 2, modalities)  # loads what a first step loads
    before = peak_memory(restart=True) / 1e6
    made = train(options, form, items, batch, modalities)
    print(json.dumps({"before": before, "peak": peak_memory() / 1e6, **made}))


def train(
    options: argparse.Namespace, form: str, items: int, batch: int, modalities: int
) -> dict[str, float]:
    """Two steps on full rows; what weights, gradients, Adam's state and features take by
    arithmetic, and what all logits of a step would take, in MB."""
    torch.manual_seed(0)
    n_a, length = items // 2, options.max_len
    whole = torch.randint(1, items + 1, (batch, length + 1))
    rows, targets = whole[:, :-1], whole[:, 1:]
    if form == "emf":
        logits = targets.numel() * items
        for size, read, due in (
            (n_a, rows <= n_a, targets <= n_a),
            (items - n_a, rows > n_a, targets > n_a),
        ):
            logits += int((due & (read.cumsum(1) > 0)).sum()) * size
    else:
        logits = (targets.numel() if form == "positions" else batch) * items
    model = build(options, form, items, modalities)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(value.numel() * value.element_size() for value in model.buffers())
    peak_memory(restart=True)  # features are drawn and normalised: no part of a step
    step = memory_step(options, form, model, rows, targets)
    for _ in range(2):
        step()
    return {"fixed": (16 * trained + frozen) / 1e6, "logits": 4 * logits * modalities / 1e6}


def build(options: argparse.Namespace, form: str, items: int, modalities: int) -> nn.Module:
    n_a = items // 2
    if form == "straightforward":
        return Reference(options, items)
    if form != "emf":
        return sasrec(options, n_a, items - n_a)
    names = ("image", "text")[: modalities - 1]
    features = {name: torch.randn(items, options.features) for name in names}
    weights = dict.fromkeys(("id", *names), 1.0)
    return LLMEMF((n_a, items - n_a), options.dim, features, weights, max_len=options.max_len)


def memory_step(
    options: argparse.Namespace, form: str, model: Any, items: Tensor, targets: Tensor
) -> Callable[[], None]:
    if form == "straightforward":
        plain_step = reference_step(model, options.lr)
        return lambda: plain_step({"items": items, "targets": targets[:, -1]})
    fit = training.Fit(lr=options.lr, batch_size=len(items), max_epochs=1, patience=1)
    optimizer = training.make_optimizer(model, fit)
    per_row = float(items.shape[1])

    def step() -> None:
        if form == "emf":
            loss = emf_loss(model, items, targets, per_row=per_row)
        elif form == "positions":
            loss = next_item_loss(model, targets, "all", per_row=per_row, items=items)
        else:
            loss = last_loss(model, items, targets[:, -1], "all")
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- command line -------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("REPROKIT_DATA", "data")),
        help="has cdsr/Food-Kitchen (%(default)s)",
    )
    add(
        "--data",
        choices=("auto", REAL, "generated"),
        default="auto",
        help="auto: Food-Kitchen where --data-dir has it, else generated sequences",
    )
    add("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    for name, value, what in (
        ("items", 64_093, "of generated sequences"),
        ("sequences", 16_579, "to generate"),
        ("dim", 256, "width of the item vectors"),
        ("max-len", 15, "positions of a row"),
        ("blocks", 2, "attention layers"),
        ("heads", 2, "heads of each"),
        ("inner", 1024, "width of the feed-forward layers"),
        ("batch", 256, "prefix rows of a step"),
        ("repeats", 20, "steps: timed steps of each form"),
        ("every", 50, "passes: steps of prefix rows between checks; as many positions in one pass"),
        ("valid-rows", 4000, "passes: rows of validation that are ranked; 0: all"),
        ("features", 512, "memory: width of the frozen features"),
    ):
        add(f"--{name}", type=int, default=value, metavar="N", help=f"{what} (%(default)s)")
    for name, number, what in (
        ("dropout", 0.2, "of SASRec"),
        ("lr", 1e-3, "step size of Adam"),
        ("epochs", 1.0, "passes: epochs on prefix rows, whose best MRR is the goal"),
        ("minutes", 10.0, "passes: the longest that each form trains, validation not counted"),
    ):
        add(f"--{name}", type=float, default=number, metavar="X", help=f"{what} (%(default)s)")
    for name, values, what in (
        ("whole", [64, 256], "passes: sequences of a step where all positions train in one pass"),
        ("memory-items", [16_000, 64_000], "memory: items"),
        ("memory-batches", [64, 256], "memory: rows of a step"),
    ):
        told = f"{what} ({' '.join(map(str, values))})"
        add(f"--{name}", type=int, nargs="+", default=values, metavar="N", help=told)
    add(
        "--over",
        nargs="+",
        choices=("all", "domain"),
        default=("all", "domain"),
        help="passes: the softmax of all positions runs over all items, or the target's domain",
    )
    add("--peak-of", nargs=4, help=argparse.SUPPRESS)  # form, items, rows, modalities
    return found


def introduce(setup: Setup) -> None:
    """Everything that moves the numbers."""
    o, data = setup.options, setup.data
    print(f"torch {torch.__version__}, CPU, {torch.get_num_threads()} threads, float32")
    allocator = [
        f"{name}={value}" for name, value in sorted(os.environ.items()) if "MALLOC" in name
    ]
    print(f"allocator: {' '.join(allocator) or 'no MALLOC_* in the environment'}")
    print(
        f"data: {setup.described}: {len(data.train):,} training sequences of "
        f"{data.train.lengths.mean():.2f} items on average, {data.n_a:,} + {data.n_b:,} items"
    )
    print(
        f"model: SASRec, width {o.dim}, {o.blocks} blocks, {o.heads} heads, inner {o.inner}, "
        f"dropout {o.dropout}, length {o.max_len}, exact softmax over {data.n_items:,} items; "
        f"Adam, step size {o.lr}"
    )


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if options.peak_of:
        peak_of(options)
        return 0
    try:
        setup = prepare(options)
    except (RequestError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    introduce(setup)
    equal, plain_step = steps(setup) if "steps" in options.parts else (True, 0.0)
    if "passes" in options.parts:
        passes(setup, plain_step)
    if "memory" in options.parts:
        memory(setup)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
