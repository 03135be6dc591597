"""Captions of models: those of transformers; names, weights, the hub."""

from __future__ import annotations

import dataclasses
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
from caption_runs import IDS, PICTURES, caption, counts, record
from conftest import BROKEN_TORCHVISION, ROOT, Notes, refused
from encoder_models import content
from hub_server import COMMIT, served
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from reprokit import captions as module
from reprokit.captions import BLIP2_REPO, identify_captioner
from reprokit.homemade import RECIPES, build_tokenizer, quiet

__all__ = ["served"]  # the fixture

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
SIGHT = {**SHAPE, "image_size": 32, "patch_size": 8}
READER = BlipImageProcessor(size={"height": 32, "width": 32})
SENTENCES = ["a red plate of food", "two people in a bar", "a blue cup on a table"] * 3
WORDS = ["red", "blue", "plate", "food", "table", "of", "a", "two", "cup", "bar", "people", "in"]


def make_blip2(text: str) -> tuple[Any, Any]:
    """A random BLIP-2 around an OPT or T5; a line's end ends a caption, as of the published one."""
    recipe = dataclasses.replace(RECIPES["tiny"], vocabulary=300)
    tokenizer = build_tokenizer(recipe, SENTENCES, ["a picture"])
    processor = Blip2Processor(READER, tokenizer, num_query_tokens=4)
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    shared = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2}
    shared["eos_token_id"] = newline
    opt = {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "init_std": 0.5,
    }
    t5 = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "initializer_factor": 3.0,
        "decoder_start_token_id": 0,
    }
    config = Blip2Config(
        vision_config=SIGHT,
        qformer_config={**SHAPE, "vocab_size": 10},
        text_config={"model_type": text, **shared, **(opt if text == "opt" else t5)},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    model = Blip2ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.query_tokens)
    often = 2 if text == "opt" else 6
    with torch.no_grad():
        model.language_model.get_input_embeddings().weight[newline] *= often  # some captions end
    return model, processor


def make_blip() -> tuple[Any, Any]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    tokens = {token: at for at, token in enumerate([*special, *WORDS])}
    tokenizer = BertTokenizer(vocab=tokens, extra_special_tokens={"decoder_token": "[DEC]"})
    text = {"encoder_hidden_size": 32, "max_position_embeddings": 40, "vocab_size": len(tokens)}
    marks = {"bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        vision_config=SIGHT,
        text_config={**SHAPE, **text, **marks},
        projection_dim=16,
        image_text_hidden_size=16,
    )
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[3] += 3  # some captions end
    return model, BlipProcessor(READER, tokenizer)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "blip2": lambda: make_blip2("opt"),
    "blip2-t5": lambda: make_blip2("t5"),
    "blip": make_blip,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random checkpoints by kind, as transformers saves them."""
    found = {}
    for kind, make in MAKERS.items():
        found[kind] = tmp_path_factory.mktemp("models") / kind
        model, processor = make()
        with quiet():
            model.save_pretrained(found[kind])
            processor.save_pretrained(found[kind])
    return found


def plain(kind: str, folder: Path, tokens: int) -> tuple[list[str], list[bool]]:
    """transformers used plainly, one picture at a time: (captions, whether one was cut)."""
    model, processor = MAKERS[kind]()
    reader = AutoImageProcessor.from_pretrained(folder, backend="pil")
    texts, cut = [], []
    for picture in PICTURES:
        pixels = reader(images=picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad(), quiet():
            out = model.generate(pixel_values=pixels, do_sample=False, max_new_tokens=tokens)
        before = {"blip2": 5}.get(kind, 1)
        end = 3 if kind == "blip" else processor.tokenizer.convert_tokens_to_ids("Ċ")
        texts.append(" ".join(processor.decode(out[0], skip_special_tokens=True).split()))
        cut.append(end not in out[0, before:])
    return texts, cut


# --- models -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", MAKERS)
def test_captions_are_those_of_transformers_one_by_one_whatever_the_batch(
    kind: str, models: dict[str, Path], tmp_path: Path, progress: Notes
):
    name = str(models[kind])
    theirs, cut = plain(kind, models[kind], tokens=12)
    assert len(set(theirs)) > 3 and 0 < sum(cut) < 10
    for batch in (1, 4, 16):
        ours, facts = caption(tmp_path / str(batch), progress, name, max_new_tokens=12, batch=batch)
        assert ours == theirs
        assert counts(facts, "pictures", "made", "recorded", "cut") == (10, 10, 0, sum(cut))
        assert facts["note"] == "" and facts["empty"] == theirs.count("")
    lines = [json.loads(line) for line in record(tmp_path / "4").read_bytes().splitlines()]
    assert [line["cut"] for line in lines] == cut and [line["id"] for line in lines] == IDS


def test_a_checkpoint_of_2023_says_the_same(
    models: dict[str, Path], tmp_path: Path, progress: Notes
):
    for kind in ("blip2", "blip2-t5"):
        old = shutil.copytree(models[kind], tmp_path / f"old-{kind}")
        config = json.loads((old / "config.json").read_text())
        del config["image_token_index"]
        (old / "config.json").write_text(json.dumps(config))
        (old / "processor_config.json").unlink()
        READER.save_pretrained(old)  # preprocessor_config.json
        texts, _ = caption(tmp_path / kind, progress, str(old), max_new_tokens=12)
        assert texts == plain(kind, models[kind], tokens=12)[0]


def test_a_picture_three_pixels_high_is_read_as_one(models: dict[str, Path]):
    source = module.locate_captioner(str(models["blip"]))
    blip = module.Blip(source, 12, "float32")
    assert blip.dtype == torch.float32 and not blip.model.training
    red = [blip.prepare(Image.new("RGB", (9, high), (250, 0, 0))) for high in (3, 1, 20)]
    assert red[0].shape == (3, 32, 32)
    assert np.array_equal(red[0], red[2]) and np.array_equal(red[1], red[2])


def test_half_precision_works_too(
    models: dict[str, Path], tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    used = []

    class Watched(module.Blip):
        def generate(self, *given: Any, **more: Any) -> Any:
            used.append(self.model.dtype)
            return super().generate(*given, **more)

    monkeypatch.setattr(module, "Blip", Watched)
    for kind, folder in models.items():
        texts, facts = caption(
            tmp_path / kind, progress, str(folder), max_new_tokens=12, dtype="bfloat16"
        )
        assert facts["made"] == 10 and len(set(texts)) > 1
    assert set(used) == {torch.bfloat16} and len(used) >= len(models)


def test_without_torchvision_the_captions_are_the_same(
    models: dict[str, Path], tmp_path: Path, progress: Notes
):
    code = (
        BROKEN_TORCHVISION + "from pathlib import Path\nfrom PIL import Image\n"
        "from reprokit.captions import captions\nfrom reprokit.progress import Progress\n"
        "name, folder = sys.argv[1:]\n"
        "picture = Image.open(Path(folder) / 'one.png')\n"
        "quiet = Progress(quiet=True)\n"
        "print(captions(name, [picture].__getitem__, 'a', Path(folder), quiet, 'f')[0][0])"
    )
    PICTURES[0].save(tmp_path / "one.png")
    name = str(models["blip"])
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    ours, _ = caption(tmp_path / "here", progress, name, pictures=PICTURES[:1])
    assert done.stdout.strip() == ours[0] != "", done.stderr


# --- names, weights, the hub --------------------------------------------------------------------
def test_a_captioner_is_known_by_its_content_or_recipe(models: dict[str, Path], tmp_path: Path):
    assert identify_captioner("palette") == f"palette captioner, recipe {module.REVISION}"
    first = identify_captioner(str(models["blip"]), tmp_path / "cache.json")
    copy = shutil.copytree(models["blip"], tmp_path / "copy")
    assert first.startswith("folder ") and identify_captioner(str(copy)) == first
    config = json.loads((copy / "processor_config.json").read_text())
    config["image_processor"]["size"] = {"height": 64, "width": 64}
    (copy / "processor_config.json").write_text(json.dumps(config))
    assert identify_captioner(str(copy)) != first


@pytest.mark.parametrize("name", ["palette2", "org/../x", "", "a/b/c"])
def test_a_name_that_stands_for_nothing_is_refused(name: str):
    with refused("captioner", "is unknown", "palette", "blip2"):
        identify_captioner(name)


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path):
    with refused("captioner", "holds no config.json"):
        identify_captioner(str(tmp_path))
    with refused("captioner", "is no folder"):
        identify_captioner("/nowhere")


def test_offline_the_hub_is_not_asked(hub: Path):
    with refused("captioner 'blip2'", BLIP2_REPO, "offline", "use palette"):
        identify_captioner("blip2", offline=True)
    with refused("captioner 'blip2'", "did not name its commit"):
        identify_captioner("blip2")


def test_blip2_is_downloaded_once_and_without_its_pickles(
    served: dict[str, dict[str, bytes]],
    hub: Path,
    models: dict[str, Path],
    tmp_path: Path,
    progress: Notes,
):
    aside = {"pytorch_model.bin": b"pickle", "README.md": b"text"}
    whole = shutil.copytree(models["blip2"], tmp_path / "whole")
    (whole / "model.safetensors").unlink()
    with quiet():
        MAKERS["blip2"]()[0].save_pretrained(whole, max_shard_size="90KB")  # as the published one
    assert len(list(whole.glob("model-*.safetensors"))) > 1
    served[BLIP2_REPO] = {**content(whole), **aside}
    print_ = identify_captioner("blip2")
    assert print_ == f"hub {BLIP2_REPO}@{COMMIT}"
    texts, _ = caption(tmp_path, progress, "blip2", fingerprint=print_, max_new_tokens=12)
    ours, _ = caption(tmp_path, progress, str(models["blip2"]), max_new_tokens=12)
    assert texts == ours
    snapshot = hub / f"models--{BLIP2_REPO.replace('/', '--')}" / "snapshots" / COMMIT
    assert set(content(snapshot)) == set(content(whole))
    served.clear()
    assert identify_captioner("blip2", offline=True) == print_
    assert identify_captioner(f"{BLIP2_REPO}@{COMMIT}", offline=True) == print_


def test_a_repository_without_safetensors_or_a_processor_is_refused(
    served: dict[str, dict[str, bytes]],
    models: dict[str, Path],
    tmp_path: Path,
    progress: Notes,
):
    served["org/old"] = dict.fromkeys(("config.json", "pytorch_model.bin"), b"x")
    with refused("captioner 'org/old'", "no .safetensors", "nothing is read as a pickle"):
        identify_captioner("org/old")
    served["org/half"] = content(models["blip"])
    del served["org/half"]["processor_config.json"]
    with refused("captioner 'org/half'", "is not whole"):
        caption(tmp_path, progress, "org/half")


def test_a_pickle_is_never_read(
    models: dict[str, Path], tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("a pickle was read"))
    copy = shutil.copytree(models["blip"], tmp_path / "copy")
    (copy / "pytorch_model.bin").write_bytes(b"no pickle")
    caption(tmp_path, progress, str(copy), pictures=PICTURES[:1])
    (copy / "model.safetensors").unlink()
    with refused("captioner", "pytorch_model.bin", "nothing is read as a pickle"):
        identify_captioner(str(copy))
    with refused("captioner", "nothing is read as a pickle"):
        caption(tmp_path / "again", progress, str(copy))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", ("captioner", "lacks 1 weights", "query_tokens")),
        ("shape", ("captioner", "another shape", "query_tokens")),
        ("damaged", ("captioner", "cannot be loaded")),
        ("nan", ("captioner", "not finite")),
        ("class", ("captioner", "BlipForQuestionAnswering", "BlipForConditionalGeneration")),
        ("kind", ("captioner", "llava", "Blip2ForConditionalGeneration")),
        ("bos", ("captioner", "cannot be loaded")),
        ("processor", ("captioner", "cannot be loaded")),
        ("long", ("captioner", "at most 35 tokens", "lower max_new_tokens")),
    ],
)
def test_a_model_that_cannot_caption_is_refused_in_one_line(
    change: str,
    words: tuple[str, ...],
    models: dict[str, Path],
    tmp_path: Path,
    progress: Notes,
):
    folder = shutil.copytree(models["blip2"], tmp_path / "copy")
    config, weights = folder / "config.json", folder / "model.safetensors"
    tensors, written = load_file(weights), json.loads(config.read_text())
    if change == "missing":
        del tensors["query_tokens"]
    elif change == "shape":
        tensors["query_tokens"] = tensors["query_tokens"][:, 1:].contiguous()
    elif change == "nan":
        tensors["language_projection.weight"][:] = float("nan")
    elif change == "class":
        written |= {"model_type": "blip", "architectures": ["BlipForQuestionAnswering"]}
    elif change == "kind":
        written["model_type"] = "llava"
    elif change == "bos":
        written["text_config"]["bos_token_id"] = None
    elif change == "processor":
        (folder / "processor_config.json").unlink()
    save_file(tensors, weights, {"format": "pt"})
    config.write_text(json.dumps(written))
    if change == "damaged":
        weights.write_bytes(weights.read_bytes()[:-8])
    length = 36 if change == "long" else 12
    with refused(*words):
        caption(tmp_path, progress, str(folder), max_new_tokens=length)
    assert not (tmp_path / "captions").exists()


def test_code_of_a_checkpoint_is_never_run(
    models: dict[str, Path], tmp_path: Path, progress: Notes
):
    copy = shutil.copytree(models["blip"], tmp_path / "copy")
    (copy / "own.py").write_text("raise SystemExit('run')\n")
    (copy / "custom_generate").mkdir()
    (copy / "custom_generate" / "generate.py").write_text("raise SystemExit('run')\n")
    classes = {
        "config.json": {"AutoConfig": "own.C", "AutoModelForImageTextToText": "own.M"},
        "processor_config.json": {"AutoProcessor": "own.P", "AutoImageProcessor": "own.I"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.T", "own.T"]},
    }
    for file, named in classes.items():
        written = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps({**written, "auto_map": named}))
    texts, _ = caption(tmp_path, progress, str(copy), max_new_tokens=12)
    assert texts == plain("blip", models["blip"], tokens=12)[0]
