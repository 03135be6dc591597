"""Language models made here: small Llamas, with a tokenizer of their own, from item texts.

`tiny` keeps random weights; `scratch` is trained on the texts as a causal language model. No
label and nothing held out takes part, so one checkpoint serves every run on a data set.

Importing this module loads no torch.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.download import digest as file_digest
from reprokit.runs import digest, write_json

if TYPE_CHECKING:
    import torch

TINY = "tiny"
SCRATCH = "scratch"
REVISION = 1
"""Of the recipes below: raised when a change moves their weights or tokens."""
FACTS = "reprokit.json"
"""Beside a checkpoint made here: its recipe, what was measured, digests of its files."""

Note = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """A Llama made here."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    steps: int
    """Optimiser steps; 0 leaves the weights random."""
    vocabulary: int = 4096
    """At most, beside fixed words that become one token; a small corpus has fewer."""
    init_std: float = 0.05
    positions: int = 2048
    batch: int = 4
    block: int = 512
    """Tokens of a training sequence: as long as prompts, so that no position is new to it."""
    lr: float = 6e-3
    weight_decay: float = 1.0
    """Strong, since a catalogue is read several times; decoupled."""
    frame_share: float = 0.1
    """Of the training tokens."""


RECIPES = {
    # Wide weights: attention of a random model must differ from a plain mean to carry anything.
    TINY: Recipe(64, 2, 4, 172, steps=0, init_std=0.15),
    SCRATCH: Recipe(128, 2, 4, 344, steps=200),
}
T5 = Recipe(64, 2, 4, 128, steps=0, init_std=2.0)
"""Of the tiny T5: as many layers again in its decoder, and no dropout. `init_std` is that of the
token vectors: where they are small, what random layers add to them drowns which id was read."""


def silent(_: str) -> None:
    pass


# --- one checkpoint for the same content --------------------------------------------------------
def prepare(
    name: str,
    texts: Sequence[str],
    frame: Sequence[str],
    folder: Path,
    note: Note = silent,
    seed: int = 0,
    wholes: Sequence[str] = (),
) -> tuple[str, dict[str, float]]:
    """The checkpoint of `tiny` or `scratch` for some item texts: (its folder, facts).

    It is made in `folder/models` unless one from the same content stands there whole. `frame` are
    the sentences around the items, each with an answer; both answers should stand in it equally
    often. `wholes` become one token each: the fixed words of a prompt mean nothing to a model that
    has read titles alone, and would be half of every prompt.

    Training runs on the CPU: the same texts, seed, machine and number of threads give the same
    bytes, whatever graphics card there is.

    Other names come back as they are.
    """
    if name not in RECIPES:
        return name, {}
    recipe = RECIPES[name]
    distinct = sorted(set(texts))
    if len(distinct) < 2:
        raise ValueError(f"{name} is made from item texts: at least 2 differing ones, got {texts}")
    key = digest([REVISION, asdict(recipe), distinct, list(frame), sorted(wholes), seed])[:16]
    return made(
        Path(folder) / "models" / f"{name}-{key}",
        recipe,
        lambda: build(name, recipe, distinct, frame, wholes, note, seed),
    )


def prepare_t5(
    name: str,
    texts: Sequence[str],
    frame: Sequence[str],
    folder: Path,
    seed: int = 0,
    wholes: Sequence[str] = (),
) -> tuple[str, dict[str, float]]:
    """The same for an encoder-decoder: `tiny` is a T5 with random weights.

    Its tokenizer knows words by the space before them, and is made of the texts and of the frame.
    `wholes` are words that become one token each.
    """
    if name != TINY:
        return name, {}
    distinct = sorted(set(texts))
    key = digest(["t5", REVISION, asdict(T5), distinct, list(frame), sorted(wholes), seed])[:16]
    target = Path(folder) / "models" / f"t5-{name}-{key}"
    return made(target, T5, lambda: build_t5(distinct, frame, wholes, seed))


def made(
    target: Path, recipe: Recipe, build: Callable[[], tuple[Any, Any, dict[str, float]]]
) -> tuple[str, dict[str, float]]:
    """(folder, facts) of a checkpoint, which is built unless it stands there whole."""
    facts = finished(target)
    if facts is None:
        with quiet():
            model, tokenizer, found = build()
            install(target, model, tokenizer, {"recipe": asdict(recipe), "facts": found})
        facts = finished(target)
    if facts is None:
        raise OSError(f"{target} is not what was written there")
    return str(target), facts


def finished(target: Path) -> dict[str, float] | None:
    """The facts of a checkpoint made here; None where it is not whole."""
    try:
        stored = json.loads((target / FACTS).read_text(encoding="utf-8"))
        if any(file_digest(target / file) != found for file, found in stored["files"].items()):
            return None
        return {key: float(value) for key, value in stored["facts"].items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def install(target: Path, model: Any, tokenizer: Any, content: dict[str, Any]) -> None:
    """Write a checkpoint that appears under its name only once it is whole and on the disk."""
    parent = target.parent
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(f".{target.name}.*.part"):  # left half-written by a killed process
        if time.time() - old.stat().st_mtime > 3600:
            shutil.rmtree(old, ignore_errors=True)
    part = Path(tempfile.mkdtemp(dir=parent, prefix=f".{target.name}.", suffix=".part"))
    try:
        fresh = part / "fresh"
        fresh.mkdir()
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        files = {path.name: file_digest(path) for path in sorted(fresh.iterdir())}
        write_json(fresh / FACTS, {**content, "files": files})
        for path in fresh.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if finished(target) is None:  # another process may have been first
            with suppress(FileNotFoundError):
                os.replace(target, part / "damaged")
            with suppress(OSError):
                os.replace(fresh, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


# --- tokenizer, model, training -----------------------------------------------------------------
def build(
    name: str,
    recipe: Recipe,
    texts: list[str],
    frame: Sequence[str],
    wholes: Sequence[str],
    note: Note,
    seed: int,
) -> tuple[Any, Any, dict[str, float]]:
    """(model, tokenizer, facts); one text of twenty is held out from training."""
    started = time.monotonic()
    texts = [f" {text.strip()}" for text in texts]  # as they stand inside a prompt
    tokenizer = build_tokenizer(recipe, texts, frame, wholes)
    with seeded(seed):
        model = build_llama(recipe, tokenizer)
    order = np.random.default_rng([seed, 0]).permutation(len(texts))
    count = max(1, round(len(texts) / 20))
    held_out, kept = ([texts[at] for at in part] for part in (order[:count], order[count:]))
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "texts": len(texts),
        "held_out": count,
        "steps": recipe.steps,
        "perplexity_before": perplexity(model, tokenizer, held_out),
    }
    if recipe.steps:
        pretrain(model, tokenizer, recipe, kept, frame, note, seed)
    facts["perplexity"] = perplexity(model, tokenizer, held_out)
    facts["seconds"] = round(time.monotonic() - started, 1)
    if recipe.steps:
        note(
            f"{name}: perplexity on {count} held-out texts {facts['perplexity_before']:.1f} before,"
            f" {facts['perplexity']:.1f} after, {facts['seconds']:.0f} s"
        )
    return model, tokenizer, facts


def build_tokenizer(
    recipe: Recipe, texts: Sequence[str], frame: Sequence[str], wholes: Sequence[str] = ()
) -> Any:
    """Byte-level BPE of all texts. It knows every byte, so that no text has an unknown token.

    The frame counts 200-fold, which makes its words whole tokens.
    """
    torchvision_fault()
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    tokenizer = train_bpe(recipe, [*texts, *list(frame) * 200], special)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in sorted(wholes)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", special.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=recipe.positions,
        clean_up_tokenization_spaces=False,
    )


def train_bpe(
    recipe: Recipe, texts: Sequence[str], special: list[str], prefix: bool = False
) -> Any:
    """`prefix`: a text begins as if a space stood before it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_t5(
    texts: Sequence[str], frame: Sequence[str], wholes: Sequence[str], seed: int
) -> tuple[Any, Any, dict[str, float]]:
    """(model, tokenizer, facts) of the tiny T5; special tokens as T5 numbers them."""
    torchvision_fault()
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    special = ["<pad>", "</s>", "<unk>"]
    inner = train_bpe(T5, [*texts, *list(frame) * 200], special, prefix=True)
    inner.add_tokens(
        [AddedToken(w, single_word=True, lstrip=True, normalized=False) for w in sorted(wholes)]
    )
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    make: Any = T5Config  # mypy does not see what its base class takes
    config = make(
        vocab_size=len(tokenizer),
        d_model=T5.hidden,
        d_kv=T5.hidden // T5.heads,
        d_ff=T5.intermediate,
        num_layers=T5.layers,
        num_heads=T5.heads,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    with seeded(seed):
        model: Any = T5ForConditionalGeneration(config).float().eval()
    model.shared.weight.data *= T5.init_std  # T5 draws them from N(0, 1)
    parameters = sum(p.numel() for p in model.parameters())
    return model, tokenizer, {"parameters": parameters, "vocabulary": len(tokenizer)}


def build_llama(recipe: Recipe, tokenizer: Any) -> Any:
    torchvision_fault()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=recipe.positions,
        initializer_range=recipe.init_std,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).float().eval()


def documents(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text between BOS and EOS."""
    rows: list[list[int]] = tokenizer(list(texts))["input_ids"]
    return [[*row, tokenizer.eos_token_id] for row in rows]


def perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood of a token, EOS included."""
    import torch
    import torch.nn.functional as F

    rows = sorted(documents(tokenizer, texts), key=len)
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            some = rows[start : start + 64]
            width = max(map(len, some))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in some])
            real = torch.arange(1, width) < torch.tensor([len(row) for row in some])[:, None]
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
            nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            total += float(nll[real].double().sum())
            count += int(real.sum())
    return math.exp(total / count)


def blocks(
    rows: Sequence[list[int]], frame: Sequence[list[int]], recipe: Recipe, seed: int
) -> Iterator[np.ndarray]:
    """Batches (batch, block) cut from one text after another, every pass in a new order.

    Every pass holds each text once and each sentence of the frame equally often.
    """
    share = recipe.frame_share * sum(map(len, rows))
    copies = max(1, round(share / max(1, sum(map(len, frame)))))
    every = [*rows, *list(frame) * copies]
    rng = np.random.default_rng([seed, 1])
    need = recipe.batch * recipe.block
    waiting: list[int] = []
    while True:
        while len(waiting) < need:
            for at in rng.permutation(len(every)):
                waiting += every[at]
        yield np.array(waiting[:need], np.int64).reshape(recipe.batch, recipe.block)
        waiting = waiting[need:]


def pretrain(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    texts: Sequence[str],
    frame: Sequence[str],
    note: Note,
    seed: int,
) -> None:
    """Train a causal language model on texts: AdamW, 5% warm-up, cosine down to zero."""
    import torch
    import torch.nn.functional as F

    def rate(step: int) -> float:
        warmup = max(1, recipe.steps // 20)
        past = max(0, step - warmup) / max(1, recipe.steps - warmup)
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * past))

    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    source = blocks(documents(tokenizer, texts), documents(tokenizer, frame), recipe, seed)
    told = time.monotonic()
    model.train()
    for step in range(recipe.steps):
        ids = torch.from_numpy(next(source))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if time.monotonic() - told > 10:
            told = time.monotonic()
            note(
                f"training a language model: step {step + 1} of {recipe.steps}, "
                f"loss {loss.item():.3f}"
            )
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss of the language model is {loss.item()}")
    model.eval()


# --- around the libraries -----------------------------------------------------------------------
@functools.cache
def torchvision_fault() -> str:
    """Why torchvision does not load; empty where it does. To be called before transformers loads.

    One that was built for another torch raises on import, and transformers, which would look for
    it, fails with it. Nothing but open_clip needs it here: it is then hidden, as if not installed.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no reports of the transformers library: what matters is raised."""
    torchvision_fault()
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's generators from a seed; afterwards they go on as if nothing had been drawn."""
    import torch

    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
