"""Causal language models: what a name stands for, loading, LoRA.

A name is one of

- a folder in Hugging Face format, or `org/name` or `org/name@revision` on the Hugging Face hub;
- `tiny`: a Llama of 0.6 million weights with random values, for tests and demonstrations;
- `scratch`: a Llama of 1.6 million weights, trained here on the data set's own item texts.

The last two are made by `homemade`. Weights are read from safetensors alone, never from a pickle,
and no code of a checkpoint is run. Importing this module loads no torch.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprokit.download import fingerprint
from reprokit.homemade import (
    FACTS,
    RECIPES,
    REVISION,
    SCRATCH,
    TINY,
    quiet,
    seeded,
    torchvision_fault,
)
from reprokit.runs import RequestError

if TYPE_CHECKING:
    import torch

ANYTHING_ELSE = f"Give a folder in Hugging Face format, `{SCRATCH}` or `{TINY}`"
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth")
CONTENT = (".json", ".model", ".safetensors", ".txt", ".jinja")


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
        source: folder or hub name, as `homemade.prepare` gives it.
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
        half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
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
    torchvision_fault()
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


def check_weights(name: str, info: Mapping[str, Any], what: str = "language model") -> None:
    """Refuse a checkpoint that would leave a weight at random. `what` it is, for the message."""
    missing = sorted(info["missing_keys"])
    wrong = sorted(info["mismatched_keys"])
    if missing:
        raise RequestError(
            f"{what} '{name}' lacks {len(missing)} weights, such as {missing[0]}: its "
            "config.json and its safetensors do not belong together. Get the model again"
        )
    if wrong:
        key, stored, wanted = wrong[0]
        raise RequestError(
            f"{what} '{name}' has {len(wrong)} weights of another shape, such as {key}: "
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
