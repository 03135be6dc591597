"""Training and scoring with a language model: this project's form beside the straightforward one.

Run: python benchmarks/llm_speed.py --data-dir DATA

The model is CoLLM in its own setting: a Llama with LoRA of rank 8 on queries and values, a mapping
64 -> 640 -> width of MF vectors, its loss on the raw logit of Yes, batches of 16. The Llama is a
random one unless `--llm` names a checkpoint. Both forms share every weight.

straightforward  Prompts are built and tokenised row by row inside the step, batches are random and
                 padded to their longest, with a mask. As in CoLLM's code the answer is appended and
                 given as label, so that the model computes its logits of all words at all positions
                 and a cross-entropy that nobody reads; one logit of each row is then picked.
ours             What a run does: `prompts.Prompts`, `training.step`, `bench.scored`.

One process runs the forms in turn, so that a busy machine slows all of them; medians are printed.
Rows of the test split are all rows of some random users, so that as many share a prompt's beginning
as in the whole split. Equal scores, losses and gradients are proven, with the start weights of LoRA
drawn at random, since merging zeros would prove nothing.

The ratios depend on the model's size: reading out all words is most of the work of a small model
and little of a large one. The goals hold for the default model in float32 on a CPU. Allocator
settings move the straightforward form most, which asks for gigabytes in every batch.

Exit status 1: the forms do not give the same. 2: data or model cannot be had.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import peft
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also runs from a checkout

from reprokit import backbones, bench, training
from reprokit.collaborative import MF
from reprokit.data import CTRData, Rows, load_click_data
from reprokit.datasets import DataError
from reprokit.homemade import Recipe, build_tokenizer
from reprokit.prompting import CoLLM, yes_loss
from reprokit.prompts import (
    COLLM_PROMPT,
    HISTORY,
    ITEM,
    NOTHING,
    SLOTS,
    TARGET,
    USER,
    Prompts,
    Vocabulary,
    answer_tokens,
    encode_inside,
    frame,
    tokenise,
)
from reprokit.provenance import peak_memory
from reprokit.runs import RequestError

PARTS = ("training", "scoring", "candidates", "memory")
GOALS = {"training": 2.5, "scoring": 4.0, "candidates": 3.0}
TRAIN_BATCH, EVAL_BATCH, CANDIDATES = 16, 64, 100
TITLES = 10
WORDS = 8500
"""Tokens of the tokenizer made here, at most."""
GROWTH = 0.05
"""Of peak memory from N to 4 N rows, at most."""
FIT = training.Fit(
    lr=1e-4,
    batch_size=TRAIN_BATCH,
    max_epochs=1,
    patience=1,
    weight_decay=1e-3,
    optimizer="adamw",
    clip=1.0,
)
Batch = Callable[[np.ndarray], dict[str, Tensor]]


# --- what is measured ---------------------------------------------------------------------------
@dataclass
class Setup:
    """A model, its data and where both are."""

    data: CTRData
    vocabulary: Vocabulary
    model: CoLLM
    accelerator: Accelerator
    described: str

    def histories(self, rows: Rows) -> np.ndarray:
        return self.data.histories(rows, np.arange(len(rows)), TITLES)

    def prompts(self, rows: Rows) -> Prompts:
        histories = self.histories(rows)
        limit = 10**6  # no title is dropped: both forms read the same prompts
        users, items = rows.users, rows.items
        return Prompts(self.vocabulary, COLLM_PROMPT, users, items, histories, limit=limit)

    def ours(self, prompts: Prompts, labels: np.ndarray) -> Batch:
        """Batches from tokens that are there already."""
        every = torch.from_numpy(labels)
        return lambda index: self.here({**prompts.batch(index), "labels": every[index]})

    def straightforward(self, rows: Rows) -> Batch:
        """Batches whose prompts are built and tokenised when they are asked for."""
        histories = self.histories(rows)

        def batch(index: np.ndarray) -> dict[str, Tensor]:
            built = [self.built(histories[row], rows.items[row]) for row in index]
            sizes = torch.tensor([len(ids) for ids, _ in built])
            shape = (len(index), int(sizes.max()))
            ids, slots = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int8)
            for at, (tokens, marks) in enumerate(built):
                ids[at, : len(tokens)] = torch.tensor(tokens)
                slots[at, : len(marks)] = torch.tensor(marks)
            items = torch.from_numpy(rows.items[index])[:, None] * (slots == SLOTS[ITEM])
            of_rows = {
                name: torch.from_numpy(getattr(rows, name)[index]) for name in ("users", "labels")
            }
            return self.here(
                {"ids": ids, "items": items, "slots": slots, "last": sizes - 1, **of_rows}
            )

        return batch

    def built(self, history: np.ndarray, target: int) -> tuple[list[int], list[int]]:
        """Tokens and slots of one prompt, from its text."""
        pieces: list[str] = []
        for segment in COLLM_PROMPT[1:]:
            if segment == HISTORY:
                titles = [f" {self.data.titles[item].strip()}" for item in history if item]
                listed = [piece for title in titles for piece in (",", title)]
                pieces += listed[1:] or [NOTHING]
            elif segment == TARGET:
                pieces.append(f" {self.data.titles[target].strip()}")
            else:
                pieces.append(segment)
        tokenizer = self.vocabulary.tokenizer
        tokens = iter(encode_inside(tokenizer, [text for text in pieces if text not in SLOTS]))
        ids: list[int] = list(tokenizer(COLLM_PROMPT[0])["input_ids"])
        slots = [0] * len(ids)
        for piece in pieces:
            more = [0] if piece in SLOTS else next(tokens)
            ids += more
            slots += [SLOTS.get(piece, 0)] * len(more)
        return ids, slots

    def here(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return training.to(self.accelerator.device, batch)

    def settle(self) -> None:
        """Wait for the device."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize()


def straightforward(
    model: CoLLM,
    labels: Tensor,
    ids: Tensor,
    items: Tensor,
    slots: Tensor,
    last: Tensor,
    users: Tensor,
    **_: Tensor,
) -> Tensor:
    """The logit of Yes, picked from those of all words at all positions: (B,)."""
    at, yes = torch.arange(len(ids), device=ids.device), model.answers[0]
    ids, items, slots = (F.pad(values, (0, 1)) for values in (ids, items, slots))  # (B, T + 1)
    answer = torch.where(labels == 1, *model.answers)
    ids[at, last + 1] = answer
    wanted = torch.full_like(ids, -100)  # what no cross-entropy is computed for
    wanted[at, last + 1] = answer
    mask = torch.arange(ids.shape[1], device=ids.device) <= last[:, None] + 1
    vectors = model.words(ids)  # (B, T + 1, H)
    of_user, of_item = slots == SLOTS[USER], slots == SLOTS[ITEM]
    mf = model.encoders[0]
    vectors[of_user] = model.mapping(mf.users(users))
    vectors[of_item] = model.mapping(mf.items(items[of_item]))
    out = model.llm(
        inputs_embeds=vectors.to(model.causal.dtype),
        attention_mask=mask.long(),
        labels=wanted,
        use_cache=False,
    )
    return out.logits[at, last, yes].float()


def prepare(options: argparse.Namespace) -> Setup:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise RequestError("device cuda: torch finds no graphics card here, use --device cpu")
    accelerator = Accelerator(cpu=options.device == "cpu")
    name = "demo-ml-1m" if options.dataset == "demo" else options.dataset
    data = load_click_data(name, options.data_dir)
    torch.manual_seed(0)
    if options.llm:
        found = backbones.load(options.llm, options.llm, options.dtype, "sdpa", accelerator.device)
        llm, tokenizer, described = found.model, found.tokenizer, options.llm
    else:
        llm, tokenizer = random_llama(options, data, accelerator.device)
        described = "random Llama"
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = tokenise(tokenizer, data.titles, described, Path(folder))
    llm = backbones.add_lora(llm, r=8, alpha=16, dropout=0.05, seed=0)
    for parameter_name, parameter in llm.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.02)
    mf = MF(data.n_users, data.n_items, 64, 0.1).requires_grad_(False)
    model = CoLLM(llm, answer_tokens(tokenizer, COLLM_PROMPT[-1]), mf).to(accelerator.device)
    return Setup(data, vocabulary, model, accelerator, described)


def random_llama(options: argparse.Namespace, data: CTRData, device: torch.device) -> Any:
    """(model, tokenizer): byte-level BPE of the titles and of the prompts' words."""
    shape = options.hidden, options.layers, options.heads, options.intermediate
    recipe = Recipe(*shape, steps=0, vocabulary=min(WORDS, options.vocab))
    texts = [f" {title.strip()}" for title in data.titles[1:]]
    tokenizer = build_tokenizer(recipe, texts, frame())
    config = transformers.LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=recipe.positions,
        initializer_range=recipe.init_std,
        tie_word_embeddings=False,
    )
    llm: Any = transformers.LlamaForCausalLM(config)
    kind = backbones.choose_dtype(options.dtype, device)
    return llm.to(device, kind).requires_grad_(False).eval(), tokenizer


def rows_of(setup: Setup, split: str, options: argparse.Namespace) -> Rows:
    rows = setup.data.split(split)
    full = (setup.histories(rows) > 0).all(1) if options.ten_titles else np.ones(len(rows), bool)
    return part(rows, np.flatnonzero(full))


def some_users(rows: Rows, number: int) -> Rows:
    """All rows of some random users, `number` in all."""
    people, owner = np.unique(rows.users, return_inverse=True)
    place = np.random.default_rng(0).permutation(len(people))
    return part(rows, np.sort(np.argsort(place[owner], kind="stable")[:number]))


def part(rows: Rows, at: np.ndarray) -> Rows:
    return Rows(**{name: values[at] for name, values in vars(rows).items()})


# --- measuring ----------------------------------------------------------------------------------
class Proof:
    """Whether the forms gave the same so far.

    In float32 every difference must be at most 1e-5; for a checkpoint, whose numbers may be large,
    and in half precision, which rounds, the tolerance is a share of the largest number above 1.
    """

    def __init__(self, dtype: torch.dtype, checkpoint: bool) -> None:
        self.tolerance = 1e-5 if dtype == torch.float32 else 5e-2
        self.scaled = checkpoint or dtype != torch.float32
        self.equal = True
        self.compared = 0

    def largest(self, ours: Any, reference: Any) -> float:
        """The largest difference. NaN is never equal."""
        ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
        difference = float(np.abs(ours - reference).max())
        scale = max(1.0, float(np.abs(reference).max())) if self.scaled else 1.0
        self.compared += len(reference)
        self.equal &= difference <= self.tolerance * scale
        return difference

    def __str__(self) -> str:
        verdict = "Both forms give" if self.equal else "The forms do NOT give"
        share = " of the largest number above 1" if self.scaled else ""
        numbers = f"{self.compared:,} numbers compared"
        return f"{verdict} the same: {numbers}, tolerance {self.tolerance:.0e}{share}"


def in_turn(
    setup: Setup, forms: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each form's every pass, and what its last pass gave."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    results: dict[str, Any] = {}
    started = perf_counter()
    for done in count(1):
        for name, form in forms.items():
            setup.settle()
            start = perf_counter()
            results[name] = form()
            setup.settle()
            times[name].append(perf_counter() - start)
        if done >= options.repeats and perf_counter() - started >= options.seconds:
            return times, results
    raise AssertionError


def table(
    what: str, rows: int, times: dict[str, list[float]], differences: dict[str, float]
) -> None:
    """A line for each form: rows per second, and ratios to the first and to the line before."""
    print(f"\n| {what} | rows/s | slowest to fastest | ratio | to the line above | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    rates = {name: rows / median(seconds) for name, seconds in times.items()}
    first, *_, last = rates.values()
    before = 0.0
    for name, rate in rates.items():
        spread = f"{rows / max(times[name]):,.1f} to {rows / min(times[name]):,.1f}"
        step = f"{rate / before:.2f}x" if before else ""
        difference = f"{differences[name]:.1e}" if name in differences else ""
        print(f"| {name} | {rate:,.1f} | {spread} | {rate / first:.2f}x | {step} | {difference} |")
        before = rate
    goal = GOALS[what.split(",")[0].lower()]
    verdict = "met" if last / first >= goal else "missed"
    print(f"goal {goal:.1f}x: {verdict} with {last / first:.2f}x")


# --- training -----------------------------------------------------------------------------------
def train(setup: Setup, options: argparse.Namespace, proof: Proof) -> None:
    rows = bench.sample(rows_of(setup, "train", options), options.train_rows)
    prompts, model = setup.prompts(rows), setup.model
    slow, fast = setup.straightforward(rows), setup.ours(prompts, rows.labels)
    random = training.Order(0, len(rows), TRAIN_BATCH, None)
    bucketed = training.Order(0, len(rows), TRAIN_BATCH, prompts.lengths)
    print(f"\nTraining: {len(rows):,} rows, {prompts.lengths.mean():.1f} tokens each on average")
    model.eval()  # no dropout
    same = proof.largest(
        losses(yes_loss, model, fast, bucketed), losses(slow_loss, model, slow, random)
    )
    at = random[0]
    same_gradients = proof.largest(
        gradients(yes_loss, model, fast(at)), gradients(slow_loss, model, slow(at))
    )
    print(f"largest difference of gradients, in shares of the largest: {same_gradients:.1e}")

    wrapped, prepared = setup.accelerator.prepare(
        training.Objective(model, yes_loss), training.make_optimizer(model, FIT)
    )
    plain = training.make_optimizer(model, FIT)
    passes = {"straightforward": count(), "ours": count()}

    def straightforward_pass() -> None:
        for at in pass_of(random, next(passes["straightforward"])):
            slow_loss(model, **slow(at)).mean().backward()
            plain.step()
            plain.zero_grad()

    def our_pass() -> None:
        for at in pass_of(bucketed, next(passes["ours"])):
            training.step(setup.accelerator, wrapped, prepared, fast, at, FIT)

    wrapped.train()
    forms = {"straightforward": straightforward_pass, "ours": our_pass}
    times, _ = in_turn(setup, forms, options)
    table(f"Training, batch {TRAIN_BATCH}", len(rows), times, {"ours": same})


def slow_loss(model: CoLLM, labels: Tensor, **inputs: Tensor) -> Tensor:
    yes = straightforward(model, labels, **inputs)
    return F.binary_cross_entropy_with_logits(yes, labels.to(yes), reduction="none")


def losses(loss: Any, model: CoLLM, batch: Batch, order: training.Order) -> np.ndarray:
    """Of every row, in their order."""
    found = np.empty(order.rows, np.float32)
    with torch.no_grad():
        for at in pass_of(order, 0):
            found[at] = loss(model, **batch(at)).float().cpu()
    return found


def gradients(loss: Any, model: CoLLM, batch: dict[str, Tensor]) -> np.ndarray:
    """Of all trained weights, in shares of the largest."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss(model, **batch).mean(), trained)
    flat = torch.cat([values.flatten().float() for values in found])
    return (flat / flat.abs().max()).cpu().numpy()


def pass_of(order: training.Order, number: int) -> Iterator[np.ndarray]:
    return (order[number * order.per_pass + at] for at in range(order.per_pass))


# --- scoring ------------------------------------------------------------------------------------
def score(setup: Setup, options: argparse.Namespace, proof: Proof) -> None:
    rows = some_users(rows_of(setup, "test", options), options.rows)
    prompts, model = setup.prompts(rows), setup.model
    slow, fast = setup.straightforward(rows), setup.ours(prompts, rows.labels)
    random = np.random.default_rng(0).permutation(len(rows))
    by_length = np.argsort(prompts.lengths, kind="stable")
    shared = 1 - len(np.unique(prompts.groups)) / len(rows)
    print(
        f"\nScoring: {len(rows):,} rows, {prompts.lengths.mean():.1f} tokens each on average, "
        f"{shared:.0%} of the rows begin like another"
    )

    def whole(**batch: Tensor) -> Tensor:
        return straightforward(model, **batch)

    def answer_only(labels: Tensor, **batch: Tensor) -> Tensor:
        return model.score(**batch)

    forms = {
        "straightforward": lambda: scores_of(setup, whole, slow, random),
        "+ tokenised once": lambda: scores_of(setup, whole, fast, random),
        "+ length bucketing": lambda: scores_of(setup, whole, fast, by_length),
        "+ answer position only": lambda: scores_of(setup, answer_only, fast, by_length),
        "+ merged LoRA": lambda: scores_of(setup, answer_only, fast, by_length, merge=True),
        "+ shared prefixes: ours": lambda: bench.scored(model, predictor(setup), prompts),
    }
    model.eval()
    warm = random[:EVAL_BATCH]
    for function, batch in ((whole, slow), (answer_only, fast)):
        scores_of(setup, function, batch, warm)
    times, results = in_turn(setup, forms, options)
    reference = results.pop("straightforward")
    differences = {name: proof.largest(found, reference) for name, found in results.items()}
    print(f"scores between {reference.min():.3f} and {reference.max():.3f}")
    table(f"Scoring, batch {EVAL_BATCH}", len(rows), times, differences)


def scores_of(
    setup: Setup, function: Any, batch: Batch, order: np.ndarray, merge: bool = False
) -> np.ndarray:
    """Scores of the rows in `order`, at their own places: (R,)."""
    found = np.full(int(order.max()) + 1, np.nan, np.float32)
    with backbones.merged(setup.model.llm) if merge else nullcontext(), torch.inference_mode():
        for start in range(0, len(order), EVAL_BATCH):
            at = order[start : start + EVAL_BATCH]
            found[at] = function(**batch(at)).float().cpu()
    return found


def predictor(setup: Setup, size: int = EVAL_BATCH) -> training.Predict:
    """The scoring loop of a run."""
    wrapped = training.Objective(setup.model, yes_loss)
    return training.Fitted(setup.accelerator, wrapped, size, training.Record("auc")).predict


def rank(setup: Setup, options: argparse.Namespace, proof: Proof) -> None:
    """A hundred random candidates of each of some users with ten titles."""
    test, data = setup.data.test, setup.data
    _, first = np.unique(test.users, return_index=True)
    rich = first[(data.histories(test, first, TITLES) > 0).all(1)]
    rng = np.random.default_rng(0)
    chosen = rng.permutation(rich)[: options.users]
    number = min(CANDIDATES, data.n_items - 1)
    items = [rng.choice(data.n_items - 1, number, replace=False) + 1 for _ in chosen]
    rows = part(test, np.repeat(chosen, number))
    prompts = setup.prompts(Rows(**{**vars(rows), "items": np.concatenate(items)}))
    order, predict = prompts.scoring_order, predictor(setup, number)

    def unshared() -> np.ndarray:
        found = np.empty(len(prompts), np.float32)
        with backbones.merged(setup.model.llm):
            found[order] = predict(lambda index: prompts.batch(order[index]), len(prompts))
        return found

    setup.model.eval()
    forms = {
        "each prompt whole": unshared,
        "prefix shared: ours": lambda: bench.scored(setup.model, predict, prompts),
    }
    unshared()  # warms up
    times, results = in_turn(setup, forms, options)
    whole, shared = results.values()
    tokens = prompts.lengths.mean()
    print(f"\nCandidates: {len(chosen)} users, {number} each, {tokens:.1f} tokens on average")
    differences = {"prefix shared: ours": proof.largest(shared, whole)}
    table(f"Candidates, {number} of one user a batch", len(prompts), times, differences)


# --- memory -------------------------------------------------------------------------------------
def memory(argv: list[str], available: int, options: argparse.Namespace) -> None:
    """Peak of scoring N and 4 N rows, each in a process of its own."""
    few = max(EVAL_BATCH, min(options.memory_rows, available // 4) // EVAL_BATCH * EVAL_BATCH)
    print("\n| Memory, rows scored | MB before | MB at the peak |")
    print("| --- | --- | --- |")
    peaks = []
    for number in (few, 4 * few):
        command = [sys.executable, str(Path(__file__).resolve()), *argv]
        command += ["--peak-of", str(number), str(4 * few)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {found['rows']:,} | {found['before']:,.0f} | {found['peak']:,.0f} |")
        peaks.append(found)
    grown = peaks[1]["peak"] / peaks[0]["peak"] - 1
    extra = peaks[1]["peak"] - peaks[0]["peak"]
    verdict = "met" if grown <= GROWTH else "missed"
    print(f"goal at most {GROWTH:.0%} more: {verdict} with {grown:+.1%}, {extra:+,.0f} MB")


def peak_of(setup: Setup, options: argparse.Namespace) -> None:
    """Score rows and print this process's memory; the fewer rows are the longest of the more.

    So both have the same largest batch, and only the number of rows differs.
    """
    number, more = options.peak_of
    rows = some_users(rows_of(setup, "test", options), more)
    longest = setup.prompts(rows).scoring_order[-number:]
    prompts = setup.prompts(part(rows, np.sort(longest)))
    setup.model.eval()
    before = megabytes(setup, restart=True)
    bench.scored(setup.model, predictor(setup), prompts)
    found = {"rows": len(prompts), "before": before, "peak": megabytes(setup)}
    print(json.dumps(found))


def megabytes(setup: Setup, restart: bool = False) -> float:
    """Peak so far, of the process or of tensors on a graphics card. `restart`: from here on."""
    if setup.accelerator.device.type == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e6
    return peak_memory(restart) / 1e6


# --- command line -------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = found.add_argument
    add("--data-dir", type=Path, default=Path(os.environ.get("REPROKIT_DATA", "data")))
    add("--dataset", choices=("ml-1m", "demo"), default="ml-1m")
    add("--llm", default="", help="folder or hub name; default: a random Llama of this shape:")
    for name, value in (("hidden", 256), ("layers", 4), ("heads", 8), ("intermediate", 688)):
        add(f"--{name}", type=int, default=value)
    add("--vocab", type=int, default=32_000)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--repeats", type=int, default=3, help="passes of each form, at least")
    add("--seconds", type=float, default=0, help="for each part, at least")
    add("--train-rows", type=int, default=512)
    add("--rows", type=int, default=512, help="test rows to score")
    add("--users", type=int, default=4, help=f"users with {CANDIDATES} candidates each")
    add("--memory-rows", type=int, default=1024, help="N of the memory part, which scores 4 N too")
    add("--ten-titles", action="store_true", help="only rows with a full history")
    add("--peak-of", type=int, nargs=2, help=argparse.SUPPRESS)
    return found


def introduce(setup: Setup, options: argparse.Namespace) -> None:
    """Everything that moves the numbers."""
    config, device = setup.model.causal.config, setup.accelerator.device
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    dtype = str(setup.model.causal.dtype).removeprefix("torch.")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{versions}, peft {peft.__version__}")
    print(f"{where}, {torch.get_num_threads()} threads, {dtype}")
    allocator = [
        f"{name}={value}" for name, value in sorted(os.environ.items()) if "MALLOC" in name
    ]
    print(f"allocator: {' '.join(allocator) or 'no MALLOC_* in the environment'}")
    print(
        f"model: {setup.described}, width {config.hidden_size}, {config.num_hidden_layers} layers, "
        f"{config.num_attention_heads} heads, intermediate {config.intermediate_size}, "
        f"vocabulary {config.vocab_size:,} ({len(setup.vocabulary.tokenizer):,} in use)"
    )
    lengths = setup.prompts(setup.data.test).lengths
    full = lengths[(setup.histories(setup.data.test) > 0).all(1)]
    print(
        f"{setup.data.name}, test: {lengths.mean():.1f} tokens a prompt on average, "
        f"{full.mean():.1f} with {TITLES} titles, which {len(full) / len(lengths):.0%} have"
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(argv)
    try:
        setup = prepare(options)
    except (RequestError, DataError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.peak_of:
        peak_of(setup, options)
        return 0
    introduce(setup, options)
    proof = Proof(setup.model.causal.dtype, bool(options.llm))
    for name, measure in (("training", train), ("scoring", score), ("candidates", rank)):
        if name in options.parts:
            measure(setup, options, proof)
    if "memory" in options.parts:
        memory(argv, len(rows_of(setup, "test", options)), options)
    if proof.compared:
        print(f"\n{proof}")
    return 0 if proof.equal else 1


if __name__ == "__main__":
    sys.exit(main())
