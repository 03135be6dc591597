"""Sizes of language models, against the models that transformers builds and what training keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import refused
from test_backbones import CONFIGS, SHAPE, cached, kept_for_backward, save
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen3Config

from reprokit.backbones import add_lora, load
from reprokit.homemade import TINY
from reprokit.sizes import KNOWN, Size, download_bytes, size_of

VICUNA = LlamaConfig(
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    vocab_size=32000,
)
EXACT = {
    **CONFIGS,
    "vicuna-7b": VICUNA,
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
}


@pytest.mark.parametrize("kind", EXACT)
def test_the_size_of_a_configuration_is_that_of_the_model(kind: str, tmp_path: Path):
    EXACT[kind].save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert size_of(str(tmp_path)).parameters == sum(p.numel() for p in model.parameters())


def test_well_known_models_have_their_published_sizes(hub: Path):
    published = {
        "huggyllama/llama-7b": 6_738_415_616,
        "lmsys/vicuna-7b-v1.3": 6_738_415_616,
        "lmsys/vicuna-7b-v1.5": 6_738_415_616,
        "HuggingFaceTB/SmolLM2-135M": 134_515_008,
        "HuggingFaceTB/SmolLM2-360M": 361_821_120,
        "Qwen/Qwen2-1.5B": 1_543_714_304,
        "Qwen/Qwen2.5-0.5B": 494_032_768,
        "meta-llama/Llama-3.2-1B": 1_235_814_400,
    }
    assert published.keys() == KNOWN.keys()
    assert {name: size_of(name).parameters for name in published} == published
    assert download_bytes("lmsys/vicuna-7b-v1.5@main") == 2 * 6_738_415_616


def test_a_cached_model_has_the_size_of_its_configuration_and_needs_no_download(hub: Path):
    folder = cached(hub, "org/model")
    assert size_of("org/model").hidden == 32
    assert download_bytes("org/model") == download_bytes(str(folder)) == download_bytes(TINY) == 0
    (folder / "model.safetensors").unlink()
    assert download_bytes("org/model") == 2 * size_of("org/model").parameters


def test_a_size_that_is_not_known_is_one_line(hub: Path, tmp_path: Path):
    with refused("org/unknown", "size is not known", "hf download org/unknown"):
        size_of("org/unknown")
    config = tmp_path / "config.json"
    for content, words in (
        ({**SHAPE, "num_local_experts": 8}, ("num_local_experts",)),
        ({"text_config": SHAPE}, ("no hidden_size", "vocab_size")),
        ([], ("damaged",)),
    ):
        config.write_text(json.dumps(content))
        with refused(*words):
            size_of(str(tmp_path))


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_the_memory_estimate_covers_what_training_keeps(dtype: str, width: int, tmp_path: Path):
    save("llama", tmp_path)
    model = add_lora(load("llama", str(tmp_path), dtype=dtype).model, dropout=0.1).train()
    kept, size = kept_for_backward(model), size_of(str(tmp_path))
    estimate = size.memory(8, 40, width, training=True) - width * size.parameters
    assert kept < estimate < 4 * kept


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing():
    size = Size(4096, 32, 32, 32, 11008, 32000)
    weights = 2 * size.parameters
    small, large = (size.memory(batch, 700, 2, training=True) for batch in (4, 16))
    assert weights < size.memory(16, 700, 2, training=False) < small < large
    assert large - weights == pytest.approx(4 * (small - weights))
    assert size.memory(16, 700, 2, True, checkpointing=True) < weights + (large - weights) / 4
