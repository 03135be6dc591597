"""Random encoders in folders as their libraries save them, texts and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

WORDS = ["red", "blue", "green", "fox", "storm", "garden", "night", "river", "the", "a", "of", "in"]
TITLES = [
    " ".join(WORDS[(3 * i + j * j) % len(WORDS)] for j in range(1 + i % 7)) for i in range(30)
]
CLIP_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 2,
    },
}


def save_clip(folder: Path, seed: int = 0, **text: Any) -> Path:
    """A random CLIP in open_clip's local folder layout."""
    from open_clip import CLIP

    config = {**CLIP_CONFIG, "text_cfg": {**CLIP_CONFIG["text_cfg"], **text}}
    torch.manual_seed(seed)
    tensors = {k: v.clone().contiguous() for k, v in CLIP(**config).state_dict().items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "open_clip_model.safetensors")
    written = {"model_cfg": config, "preprocess_cfg": {"interpolation": "bicubic"}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return folder


def save_timm(folder: Path, seed: int = 0, **more: Any) -> Path:
    """A random narrow ResNet with seven classes in timm's layout."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(seed)
    shape = {"channels": (8, 16, 24, 32), "stem_width": 8, **more}
    model = timm.create_model("resnet10t", num_classes=7, **shape)
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_timm(tmp_path_factory.mktemp("timm") / "tiny")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT that averages its tokens, as the library saves it; reads 12 tokens."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    base, folder = (tmp_path_factory.mktemp(name) for name in ("bert", "sentence"))
    letters = [chr(at) for at in range(97, 123)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    tokens = dict.fromkeys([*pieces, *(f"##{a}" for a in letters)])
    BertTokenizer(vocab={token: at for at, token in enumerate(tokens)}).save_pretrained(base)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokens), intermediate_size=32, **shape)
    BertModel(config).save_pretrained(base)
    reader = Transformer(str(base))
    reader.max_seq_length = 12
    modules = [reader, Pooling(reader.get_embedding_dimension())]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder


def colours(n: int) -> list[Image.Image]:
    """Pictures that differ in colour, size and pattern."""
    made = []
    for at in range(n):
        rng = np.random.default_rng(at)
        pixels = rng.integers(0, 256, (20 + at, 50 - at, 3), dtype=np.uint8)
        made.append(Image.fromarray(pixels // 2 + np.uint8(8 * at)))
    return made


def content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
