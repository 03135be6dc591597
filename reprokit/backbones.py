"""Causal language models: what a name stands for, how large it is, loading, LoRA.

A name is one of

- a folder in Hugging Face format, or `org/name` or `org/name@revision` on the Hugging Face hub;
- `tiny`: a Llama of 0.6 million weights with random values, for tests and demonstrations;
- `scratch`: a Llama of 1.6 million weights, trained here on the data set's own item texts.

`tiny` and `scratch` get their tokenizer from the same texts. No user and no label takes part, so
one checkpoint serves every run on a data set.

Weights are read from safetensors alone, never from a pickle, and no code of a checkpoint is run.
Importing this module loads no torch.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reprokit.download import digest as file_digest
from reprokit.download import fingerprint
from reprokit.runs import RequestError, digest, write_json

if TYPE_CHECKING:
    import torch

TINY = "tiny"
SCRATCH = "scratch"
REVISION = 1
"""Of the recipes below: raised when a change moves their weights or tokens."""

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
    """At most; a small corpus has fewer."""
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
ANYTHING_ELSE = f"Give a folder in Hugging Face format, `{SCRATCH}` or `{TINY}`"
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth")
CONTENT = (".json", ".model", ".safetensors", ".txt", ".jinja")
FACTS = "reprokit.json"


# --- what a name stands for ---------------------------------------------------------------------
def identify(name: str, cache: Path | None = None, offline: bool = False) -> str:
    """One line that changes whenever the language model behind a name does.

    A folder is known by its files' content (digests are kept in `cache`, a JSON file); a hub name
    by its commit, from the local hub cache or else from the hub.

    Raises RequestError: no such model, or its weights are pickled, or the hub was not reached.
    """
    if name in RECIPES:
        return f"{name}, recipe {REVISION}"
    folder = local_folder(name)
    if folder:
        refuse_pickles(name, [path.name for path in folder.iterdir()])
        files = [p for p in folder.iterdir() if p.suffix in CONTENT and p.name != FACTS]
        return f"folder {fingerprint(files, cache)}"
    repo, revision = hub_name(name)
    return f"hub {repo}@{cached_commit(repo, revision) or ask_hub(name, offline)}"


def local_folder(name: str) -> Path | None:
    """The folder that a name stands for; None for a hub name."""
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path
    if name.startswith((".", "/", "~")) or (os.sep in name and path.exists()):
        what = "holds no config.json" if path.is_dir() else "is no folder"
        raise RequestError(
            f"language model '{name}': {path} {what}. {ANYTHING_ELSE}, or a hub name such as "
            "org/name"
        )
    return None


def hub_name(name: str) -> tuple[str, str]:
    """(org/name, revision) of a hub name."""
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", name)
    if not found or ".." in name:
        raise RequestError(
            f"language model '{name}' is neither a folder with a config.json nor a hub name "
            f"(org/name or org/name@revision). {ANYTHING_ELSE}"
        )
    return found[1], found[2] or "main"


def hub_cache() -> Path:
    """Where the hub's client keeps its files, by the variables that it reads itself."""
    home = os.environ.get("HF_HOME")
    if not home:
        home = str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(named or os.path.join(home, "hub"))).expanduser()


def hub_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def repository(repo: str) -> Path:
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def cached_commit(repo: str, revision: str) -> str:
    """The commit of a revision as the local hub cache has it; empty where it has none."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    try:
        return (repository(repo) / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def cached_snapshot(repo: str, revision: str) -> Path | None:
    """The folder of a hub model in the local cache, whole or not."""
    commit = cached_commit(repo, revision)
    folder = repository(repo) / "snapshots" / commit
    return folder if commit and (folder / "config.json").is_file() else None


def ask_hub(name: str, offline: bool) -> str:
    """The commit of a hub name, from the hub itself."""
    repo, revision = hub_name(name)
    if offline or hub_offline():
        raise RequestError(
            f"language model '{name}' is not in the hub cache {hub_cache()}, and offline the hub "
            f"is not asked. {ANYTHING_ELSE}, or connect once"
        )
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=10)
    except Exception as error:  # its HTTP library, and so the class, differs by version
        raise RequestError(
            f"language model '{name}' is neither a folder nor in the hub cache {hub_cache()}, and "
            f"the hub did not name its commit ({first_line(error)}). {ANYTHING_ELSE}, or connect "
            "once"
        ) from error
    refuse_pickles(name, [file.rfilename for file in info.siblings or ()])
    return str(info.sha)


def refuse_pickles(name: str, files: Sequence[str]) -> None:
    paths = [Path(file) for file in files]
    pickled = [str(p) for p in paths if any(p.match(pattern) for pattern in PICKLED)]
    if pickled and not any(path.suffix == ".safetensors" for path in paths):
        raise RequestError(
            f"language model '{name}' has its weights in {sorted(pickled)[0]}, and nothing is read "
            "as a pickle; convert to safetensors and give the folder, or name a revision that has "
            "them (org/name@refs/pr/1)"
        )


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


# --- how large it is ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """What a decoder with gated MLPs is made of."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    head_dim: int = 0
    """0: hidden / heads."""
    tied: bool = False
    """One matrix is input and output embedding."""
    small: int = 0
    """Weights per layer beside the matrices and the two norms: biases, norms of heads."""

    @property
    def attention(self) -> int:
        """Width of all query heads side by side."""
        return self.heads * (self.head_dim or self.hidden // self.heads)

    @property
    def keys(self) -> int:
        """Width of all key heads side by side."""
        return self.kv_heads * (self.head_dim or self.hidden // self.heads)

    @property
    def parameters(self) -> int:
        h = self.hidden
        projections = 2 * h * self.attention + 2 * h * self.keys + 3 * h * self.intermediate
        layers = self.layers * (projections + 2 * h + self.small)
        return layers + h + self.vocab * h * (1 if self.tied else 2)

    def memory(
        self,
        batch: int,
        tokens: int,
        bytes_per_weight: float,
        training: bool,
        checkpointing: bool = False,
    ) -> float:
        """Bytes at the peak, estimated from above; without what the process itself takes.

        Frozen weights; a LoRA adapter or less is trained (its own weights are not counted);
        attention that keeps no tokens x tokens matrix (not `eager`); logits at one position of each
        prompt; for scoring, the cache of keys and values.
        """
        rows = batch * tokens
        # Kept by one layer for its backward pass: queries, keys, values and output of all heads;
        # gate, up and their product; input of norms and adapters, these in float32 twice.
        layer = bytes_per_weight * (4 * self.attention + 4 * self.intermediate + 6 * self.hidden)
        layer = rows * (layer + 4 * 8 * self.hidden)
        mask = batch * tokens**2 * (1 + bytes_per_weight)
        logits = 4.0 * batch * self.vocab * (4 if training else 2)
        ends = rows * self.hidden * (bytes_per_weight + 12)  # input vectors, last norm
        if not training:
            cache = 2 * rows * self.layers * self.keys * bytes_per_weight
            states = cache + layer
        elif checkpointing:  # the input of each layer; one layer again, and its gradients
            states = self.layers * rows * self.hidden * bytes_per_weight + 4 * layer
        else:
            states = (self.layers + 1) * layer
        margin = 1.2  # what an allocator leaves unused
        return self.parameters * bytes_per_weight + margin * (mask + logits + ends + states)


NEEDED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
)


def known(kind: str, *shape: int, kv_heads: int, tied: bool) -> dict[str, Any]:
    """The lines of a published config.json that decide a model's size."""
    sizes = dict(zip(NEEDED, shape, strict=True))
    return {
        "model_type": kind,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
    } | sizes


VICUNA = known("llama", 4096, 32, 32, 11008, 32000, kv_heads=32, tied=False)
KNOWN = {
    "lmsys/vicuna-7b-v1.3": VICUNA,
    "lmsys/vicuna-7b-v1.5": VICUNA,
    "HuggingFaceTB/SmolLM2-135M": known("llama", 576, 30, 9, 1536, 49152, kv_heads=3, tied=True),
    "HuggingFaceTB/SmolLM2-360M": known("llama", 960, 32, 15, 2560, 49152, kv_heads=5, tied=True),
    "Qwen/Qwen2-1.5B": known("qwen2", 1536, 28, 12, 8960, 151936, kv_heads=2, tied=True),
    "Qwen/Qwen2.5-0.5B": known("qwen2", 896, 24, 14, 4864, 151936, kv_heads=2, tied=True),
    "meta-llama/Llama-3.2-1B": known("llama", 2048, 16, 32, 8192, 128256, kv_heads=8, tied=True),
}


def size_of(name: str) -> Size:
    """The size of a model by its config.json alone: no weights are needed.

    Exact for Llama, Mistral, Qwen2 and Qwen3; other kinds with the same keys are counted as Llama.
    Raises RequestError where the configuration is not on this machine or says too little.
    """
    if name in RECIPES:
        own = RECIPES[name]
        return Size(own.hidden, own.layers, own.heads, own.heads, own.intermediate, own.vocabulary)
    folder = local_folder(name) or cached_snapshot(*hub_name(name))
    if folder is None:
        repo, _ = hub_name(name)
        if repo in KNOWN:
            return size_from(KNOWN[repo], name)
        raise RequestError(
            f"language model '{name}': its size is not known before its config.json is in the hub "
            f"cache {hub_cache()}. {ANYTHING_ELSE}, or download it once: hf download {repo}"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise RequestError(
            f"language model '{name}': {folder / 'config.json'} is damaged ({first_line(error)}). "
            "Get the model again"
        ) from None
    return size_from(config, name)


def size_from(config: Mapping[str, Any], name: str) -> Size:
    """The size that a config.json describes."""
    lacking = [key for key in NEEDED if not isinstance(config.get(key), int)]
    experts = [key for key in config if "experts" in key and config[key]]
    if lacking or experts:
        why = f"has no {', '.join(lacking)}" if lacking else f"has {experts[0]}"
        raise RequestError(
            f"language model '{name}': its config.json {why}, so it is no decoder of the Llama "
            f"kind and its size is not known. {ANYTHING_ELSE}"
        )
    hidden, layers, heads, intermediate, vocab = (config[key] for key in NEEDED)
    kind = config.get("model_type")
    kv_heads = config.get("num_key_value_heads") or (8 if kind == "mistral" else heads)
    head_dim = config.get("head_dim") or (128 if kind == "qwen3" else hidden // heads)
    small = 0
    if kind == "qwen2" or config.get("attention_bias"):
        small += (heads + 2 * kv_heads) * head_dim
    if kind != "qwen2" and config.get("attention_bias"):
        small += hidden  # of the output projection
    if config.get("mlp_bias"):
        small += 2 * intermediate + hidden
    if kind == "qwen3":
        small += 2 * head_dim
    tied = bool(config.get("tie_word_embeddings"))
    return Size(hidden, layers, heads, kv_heads, intermediate, vocab, head_dim, tied, small)


def download_bytes(name: str) -> int:
    """Bytes to download before the first use; 0 where all is on this machine.

    Estimated at two bytes a weight, as hubs ship them.
    """
    if name in RECIPES or local_folder(name):
        return 0
    snapshot = cached_snapshot(*hub_name(name))
    return 0 if snapshot and is_whole(snapshot) else 2 * size_of(name).parameters


def is_whole(folder: Path, weights: bool = True) -> bool:
    """Whether a configuration, a tokenizer and all weights are in a folder."""
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.is_file():
        with suppress(OSError, ValueError, LookupError, AttributeError):
            files = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    needed = ["config.json", *(files if weights else ())]
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json")
    return all((folder / file).is_file() for file in needed) and any(
        (folder / file).is_file() for file in tokenizers
    )


# --- models made here ---------------------------------------------------------------------------
def silent(_: str) -> None:
    pass


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
    target = Path(folder) / "models" / f"{name}-{key}"
    facts = finished(target)
    if facts is None:
        with quiet():
            model, tokenizer, made = build(name, recipe, distinct, frame, wholes, note, seed)
            install(target, model, tokenizer, {"recipe": asdict(recipe), "facts": made})
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
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *list(frame) * 200], trainer)
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


def build_llama(recipe: Recipe, tokenizer: Any) -> Any:
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


# --- loading ------------------------------------------------------------------------------------
@dataclass
class Backbone:
    """A causal language model, frozen and in evaluation mode."""

    model: Any
    tokenizer: Any
    name: str
    """As the user typed it."""
    source: str
    """Folder or hub name that it was loaded from."""
    facts: dict[str, Any] = field(default_factory=dict)
    """parameters, dtype, attention; commit of a hub model; unused_weights: how many tensors of the
    checkpoint have no place in the model."""


def load(
    name: str,
    source: str,
    dtype: str = "auto",
    attention: str = "sdpa",
    device: Any = "cpu",
    checkpointing: bool = False,
    random_weights: bool = False,
) -> Backbone:
    """Load a causal language model and its tokenizer, frozen.

    Args:
        name: as the user typed it, for messages.
        source: folder or hub name, as `prepare` gives it.
        dtype: "auto" (bfloat16 on a graphics card that has it, else float32), "float32",
            "bfloat16" or "float16".
        attention: "sdpa", "eager" or "flash_attention_2".
        checkpointing: recompute each layer in the backward pass; works in training mode alone.
        random_weights: only the configuration and the tokenizer are read, the weights are drawn
            from N(0, its initializer_range), the same ones every time: to measure time and memory.

    Raises RequestError: the model cannot be loaded, lacks weights, or its logits are not the
    output matrix times the last state.
    """
    import torch

    device = torch.device(device)
    kind = choose_dtype(dtype, device)
    check_attention(attention, kind, device)
    folder, commit = fetch(source, weights=not random_weights)
    read = draw_model if random_weights else read_model
    try:
        with quiet():
            model, info = read(folder, device, dtype=kind, attn_implementation=attention)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise RequestError(
            f"language model '{name}' cannot be loaded from {folder}: {first_line(error)}"
        ) from error
    check_weights(name, info)
    tokenizer = load_tokenizer(name, folder)
    model = model.requires_grad_(False).eval().to(device)
    # What a saved model or adapter refers to: the source, and no place in a cache.
    model.config._name_or_path = "" if random_weights else source
    check_readout(name, model)
    if checkpointing:
        with quiet():
            model.gradient_checkpointing_enable({"use_reentrant": False})
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(kind).removeprefix("torch."),
        "attention": attention,
        "unused_weights": len(info["unexpected_keys"]),
        **({"commit": commit} if commit else {}),
    }
    return Backbone(model, tokenizer, name, source, facts)


def read_model(folder: Path, device: torch.device, **options: Any) -> tuple[Any, dict[str, Any]]:
    """(model, which weights were missing, of another shape, or left over)."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    try:
        return auto.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused afterwards, in one line
            trust_remote_code=False,
            **options,
        )
    except SafetensorError as error:
        raise ValueError(f"a safetensors file is damaged ({error})") from error


def draw_model(folder: Path, device: torch.device, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The same with random weights, drawn on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with seeded(0, device), device:
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    return model, dict.fromkeys(("missing_keys", "mismatched_keys", "unexpected_keys"), ())


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    import torch

    kinds = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
    if dtype == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half else torch.float32
    if dtype not in kinds:
        raise RequestError(f"dtype '{dtype}' is unknown: use auto, {', '.join(kinds)}")
    if dtype == "float16" and device.type == "cpu":
        raise RequestError("dtype float16 does not work on a CPU: use auto, float32 or bfloat16")
    return kinds[dtype]


def check_attention(attention: str, dtype: torch.dtype, device: torch.device) -> None:
    if attention not in ("sdpa", "eager", "flash_attention_2"):
        raise RequestError(
            f"attention '{attention}' is unknown: use sdpa, eager or flash_attention_2"
        )
    if attention != "flash_attention_2":
        return
    if not is_installed("flash_attn"):
        raise RequestError(
            "attention flash_attention_2 needs the package flash_attn, which is not installed: "
            "install it or use sdpa"
        )
    if device.type != "cuda" or dtype.itemsize > 2:
        raise RequestError(
            "attention flash_attention_2 needs a CUDA device and bfloat16 or float16: use sdpa"
        )


def fetch(source: str, weights: bool = True) -> tuple[Path, str]:
    """(folder, commit) of a model on this machine, downloaded where it has to be.

    The commit that the local hub cache names is the one that is used, as `identify` said.
    """
    folder = local_folder(source)
    if folder:
        refuse_pickles(source, [path.name for path in folder.iterdir()])
        return folder, ""
    snapshot = cached_snapshot(*hub_name(source))
    if snapshot is None or not is_whole(snapshot, weights):
        snapshot = download(source, weights)
    return snapshot, snapshot.name


def download(name: str, weights: bool) -> Path:
    """Bring a hub model into the local hub cache; no pickle and no subfolder comes along."""
    from huggingface_hub import snapshot_download

    repo, revision = hub_name(name)
    revision = cached_commit(repo, revision) or revision
    ask_hub(f"{repo}@{revision}", offline=False)  # fails sooner, and refuses pickles
    suffixes = [suffix for suffix in CONTENT if weights or suffix != ".safetensors"]
    try:
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=hub_cache(),
                allow_patterns=[f"*{suffix}" for suffix in suffixes],
                ignore_patterns=["*/*"],
            )
        )
    except Exception as error:  # as in `ask_hub`
        raise RequestError(
            f"language model '{name}' could not be downloaded ({first_line(error)}). "
            f"{ANYTHING_ELSE}, or try again"
        ) from error
    if not is_whole(folder, weights):
        raise RequestError(
            f"language model '{name}' is not whole in {folder}: it needs config.json, a tokenizer "
            f"and model.safetensors. {ANYTHING_ELSE}, or try again"
        )
    return folder


def load_tokenizer(name: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    spm = (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file()
    if spm and not (is_installed("sentencepiece") and is_installed("google.protobuf")):
        raise RequestError(
            f"language model '{name}' has its tokenizer in tokenizer.model alone, which needs two "
            "more packages: pip install sentencepiece protobuf"
        )
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise RequestError(
            f"the tokenizer of language model '{name}' cannot be loaded from {folder}: "
            f"{first_line(error)}"
        ) from error


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def check_weights(name: str, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that would leave a weight at random."""
    missing = sorted(info["missing_keys"])
    wrong = sorted(info["mismatched_keys"])
    if missing:
        raise RequestError(
            f"language model '{name}' lacks {len(missing)} weights, such as {missing[0]}: its "
            "config.json and its safetensors do not belong together. Get the model again"
        )
    if wrong:
        key, stored, wanted = wrong[0]
        raise RequestError(
            f"language model '{name}' has {len(wrong)} weights of another shape, such as {key}: "
            f"{tuple(stored)}, by its config.json {tuple(wanted)}. Get the model again"
        )


def check_readout(name: str, model: Any) -> None:
    """Refuse a model whose logits are not its output matrix times the decoder's last state.

    Prompts are read that way, at the one position that answers.
    """
    import torch

    refusal = (
        f"language model '{name}': the read-out of {type(model).__name__} is not supported, its "
        "logits are not output matrix times last state. Use a Llama, Mistral, Qwen or SmolLM"
    )
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)  # too small to see near zero
    if decoder is None or head is None or cap:
        raise RequestError(refusal)
    ids = torch.arange(1, 5, device=model.device)[None] % model.config.vocab_size
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits.float()
        ours = head(decoder(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not whole.isfinite().all():
        raise RequestError(
            f"language model '{name}' gives logits that are not finite in {model.dtype}: use "
            "another dtype, or get the model again"
        )
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3}.get(model.dtype, 2e-2)
    if (whole - ours).abs().max() > tolerance * whole.abs().max():
        raise RequestError(refusal)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no reports of the transformers library: what matters is raised."""
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


# --- LoRA ---------------------------------------------------------------------------------------
def add_lora(
    model: Any,
    r: int = 8,
    alpha: int = 16,
    dropout: float = 0.05,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    seed: int | None = None,
) -> Any:
    """A peft model around `model`, which gets LoRA layers with float32 weights.

    With `seed` the start weights follow from it alone, and nothing else is drawn differently.
    """
    from peft import LoraConfig, get_peft_model

    found = linear_layers(model)
    missing = [name for name in targets if name not in found]
    if missing or not targets:
        raise RequestError(
            f"LoRA: the model has no linear layer named {', '.join(missing) or '(none given)'}. "
            f"It has: {', '.join(found)}"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(targets),
    )
    with quiet(), nullcontext() if seed is None else seeded(seed, model.device):
        return get_peft_model(model, config)


def linear_layers(model: Any) -> list[str]:
    """Names of the linear layers inside the decoder, without those of the output."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not head
        }
    )


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Scoring with the LoRA weights added to the base weights: the same scores, one matrix less.

    On leaving, the base weights are what they were, bit by bit: copies are kept meanwhile, since
    subtracting again would round. In half precision the sum is rounded to it, so that scores differ
    from those of the separate weights in the last bits of that precision. Without an adapter
    nothing happens.
    """
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLayer) and not m.merged]
    copies = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, copy in zip(layers, copies, strict=True):
            if layer.merged:
                layer.unmerge()
            layer.get_base_layer().weight.data.copy_(copy)


def unknown_tokens(tokenizer: Any, texts: Sequence[str]) -> int:
    """Texts that hold a character for which the tokenizer has no token but the unknown one."""
    unknown = tokenizer.unk_token_id
    if unknown is None or not texts:
        return 0
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return sum(unknown in row for row in rows)
