"""How large a language model is, without its weights: parameters, memory, bytes to download.

Importing this module loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reprokit.backbones import (
    ANYTHING_ELSE,
    cached_snapshot,
    first_line,
    hub_cache,
    hub_name,
    is_whole,
    local_folder,
)
from reprokit.homemade import RECIPES
from reprokit.runs import RequestError


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
    "huggyllama/llama-7b": VICUNA,
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
