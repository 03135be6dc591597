"""Captions of pictures: made once, by pixels; those of models are those of transformers."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, launch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_backbones import BROKEN_TORCHVISION, COMMIT, refused, served  # noqa: F401
from test_encoders import Notes, colours, content, hub  # noqa: F401
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
from reprokit import synthetic
from reprokit.captions import BLIP2_REPO, PALETTE_NOTE, captions, identify_captioner
from reprokit.encoders import TINY_BUCKETS, zlib
from reprokit.homemade import RECIPES, build_tokenizer, quiet

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
PICTURES = colours(10)
IDS = [f"photo-{at}" for at in range(10)]
SCALES = ((module.LIGHT, 1), (module.WARMTH, 2), (module.STRIPES, 5))
"""What `palette` grades, and which word of its sentence says so."""
WORDS = ["red", "blue", "plate", "food", "table", "of", "a", "two", "cup", "bar", "people", "in"]


@pytest.fixture
def progress() -> Notes:
    return Notes()


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


def caption(
    folder: Path, progress: Notes, name: str = "palette", pictures: Any = PICTURES, **more: Any
) -> tuple[list[str], dict[str, Any]]:
    """All pictures, under their own ids."""
    more = {"ids": IDS[: len(pictures)], "fingerprint": "f", **more}
    look = more.pop("images", pictures.__getitem__)
    return captions(name, look, folder=folder, progress=progress, **more)


def record(folder: Path) -> Path:
    (path,) = (folder / "captions").iterdir()
    return path


def counts(facts: dict[str, Any], *names: str) -> tuple[int, ...]:
    return tuple(facts[name] for name in names or ("made", "recorded"))


# --- palette ------------------------------------------------------------------------------------
def test_neither_the_module_nor_palette_loads_torch(tmp_path: Path):
    code = (
        "import sys, pathlib, numpy, reprokit.captions as c, reprokit.progress as p\n"
        "print([m for m in ('torch', 'PIL') if m in sys.modules])\n"
        "from PIL import Image\n"
        "picture, folder = Image.new('RGB', (8, 8)), pathlib.Path(sys.argv[1])\n"
        "quiet = p.Progress(quiet=True)\n"
        "c.captions('palette', lambda _: picture, 'ab', folder, quiet, 'f')\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_palette_tells_planted_styles_apart(tmp_path: Path, progress: Notes):
    world = synthetic.make_world(synthetic.Config(n_users=40))
    rows = synthetic.restaurant_reviews(world)["train"]
    pics = sorted({pic for row in rows for pic in row["pics"]})[:300]
    pixels = synthetic.restaurant_photos(world, pics)
    pictures = [Image.fromarray(np.moveaxis(one, 0, 2)) for one in pixels]
    texts, facts = caption(tmp_path, progress, pictures=pictures, ids=pics)
    assert facts["note"] == PALETTE_NOTE and "no caption model" in PALETTE_NOTE
    words = [re.findall(r"\w+", text) for text in texts]
    assert {len(told) for told in words} == {8}
    grades = [[scale[1].index(told[at]) for told in words] for scale, at in SCALES]
    balance, bright, striped = world.truth.style[[int(pic.split("-")[1]) for pic in pics]].T
    for found, planted in zip(grades, (bright, balance, striped), strict=True):
        assert np.corrcoef(found, planted)[0, 1] > 0.95 and len(set(found)) >= 5


def test_every_grade_is_a_word_of_its_own_to_the_tiny_encoder():
    scales = (module.LIGHT, module.WARMTH, module.VIVIDNESS, module.STRIPES, module.DETAIL)
    assert all(len(words) == len(limits) + 1 for limits, words in scales)
    words = ["a", "picture", "and", ",", *(word for scale in scales for word in scale[1])]
    buckets = {zlib.crc32(word.encode()) % TINY_BUCKETS for word in words}
    assert len(buckets) == len(words)


def test_palette_says_what_is_to_be_seen(tmp_path: Path, progress: Notes):
    columns = np.zeros((32, 32, 3), np.uint8)
    columns[:, ::2] = 255
    pictures = [
        Image.new("RGB", (70, 50), (250, 20, 20)),
        Image.new("L", (1, 900), 120),
        Image.new("P", (5, 3)),
        Image.fromarray(columns),
        Image.fromarray(columns.transpose(1, 0, 2)),
    ]
    texts, _ = caption(tmp_path, progress, pictures=pictures)
    assert texts == [
        "a dusky, fiery, vivid picture, plain and smooth",
        "a medium, neutral, grey picture, plain and smooth",
        "a black, neutral, grey picture, plain and smooth",
        "a medium, neutral, grey picture, barred and smooth",
        "a medium, neutral, grey picture, plain and crowded",
    ]


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


def test_half_precision_works_too(models: dict[str, Path], tmp_path: Path, progress: Notes):
    for kind, folder in models.items():
        texts, facts = caption(
            tmp_path / kind, progress, str(folder), max_new_tokens=12, dtype="bfloat16"
        )
        assert facts["made"] == 10 and len(set(texts)) > 1


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


# --- the record ---------------------------------------------------------------------------------
def test_captions_are_made_once(tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch):
    first, facts = caption(tmp_path, progress)
    assert counts(facts) == (10, 0)
    before = record(tmp_path).read_bytes()
    monkeypatch.setattr(module.Palette, "prepare", lambda *_: pytest.fail("read again"))
    again, facts = caption(tmp_path, progress, batch=3)
    assert again == first and counts(facts) == (0, 10) and record(tmp_path).read_bytes() == before


def test_with_versions_nothing_is_opened_again(tmp_path: Path, progress: Notes):
    versions = [f"{at}-1" for at in range(10)]
    first, _ = caption(tmp_path, progress, versions=versions)
    again, facts = caption(
        tmp_path, progress, versions=versions, images=lambda _: pytest.fail("opened")
    )
    assert again == first and counts(facts) == (0, 10)


def test_one_file_for_each_captioner_and_length(tmp_path: Path, progress: Notes):
    for more in ({}, {"max_new_tokens": 7}, {"fingerprint": "g"}, {"batch": 3}):
        caption(tmp_path, progress, **more)
    assert len(list((tmp_path / "captions").iterdir())) == 3


@pytest.mark.parametrize("lost", range(4))
def test_a_killed_process_loses_one_batch(
    lost: int, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    whole, _ = caption(tmp_path / "whole", progress, batch=3)
    calls = 0
    say = module.Palette.caption

    def killed(self: Any, pictures: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == lost + 1:
            raise KeyboardInterrupt
        return say(self, pictures)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.Palette, "caption", killed)
        caption(tmp_path, progress, batch=3)
    texts, facts = caption(tmp_path, progress, batch=3)
    assert texts == whole and counts(facts) == (10 - 3 * lost, 3 * lost)
    assert record(tmp_path).read_bytes() == record(tmp_path / "whole").read_bytes()


def test_a_line_cut_anywhere_is_found_and_its_picture_captioned_again(
    tmp_path: Path, progress: Notes
):
    first, _ = caption(tmp_path, progress)
    path = record(tmp_path)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last + 1, len(whole)):
        path.write_bytes(whole[:end])
        texts, facts = caption(tmp_path, progress)
        assert texts == first and counts(facts, "made", "damaged") == (1, 1)
        assert path.read_bytes() == whole[:end] + b"\n" + whole[last:]


def test_any_changed_byte_of_a_line_is_found(tmp_path: Path, progress: Notes):
    first, _ = caption(tmp_path, progress)
    path = record(tmp_path)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    end = whole.index(b"\n", start)
    for at in range(start, end):
        broken = bytearray(whole)
        broken[at] ^= 1
        path.write_bytes(broken)
        texts, facts = caption(tmp_path, progress)
        assert texts == first and counts(facts, "made", "damaged") == (1, 1)
    assert any(f"{path}: 1 lines are damaged" in said for said in progress.said)


def test_a_replaced_picture_is_captioned_anew(tmp_path: Path, progress: Notes):
    first, _ = caption(tmp_path, progress)
    others = [*PICTURES[:4], Image.new("RGB", (9, 9), (0, 0, 250)), *PICTURES[5:]]
    for versions in (None, [f"{at}" for at in range(9)] + ["new"]):
        texts, facts = caption(tmp_path, progress, pictures=others, versions=versions)
        assert texts[4] != first[4] and texts[:4] + texts[5:] == first[:4] + first[5:]
        assert counts(facts) == ((1, 9) if versions is None else (0, 10))
    back, facts = caption(tmp_path, progress)
    assert back == first and counts(facts) == (0, 10)


def test_another_version_of_the_same_pixels_needs_no_captioner(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    first, _ = caption(tmp_path, progress, versions=["old"] * 10)
    monkeypatch.setattr(module.Palette, "prepare", lambda *_: pytest.fail("read again"))
    versions = ["old"] * 9 + ["new"]
    again, facts = caption(tmp_path, progress, versions=versions)
    assert again == first and counts(facts) == (0, 10)
    again, _ = caption(tmp_path, progress, versions=versions, images=lambda _: pytest.fail("no"))
    assert again == first


def test_a_picture_of_two_ids_or_rows_is_captioned_once(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    say = module.Palette.caption
    # Slow, so that the next picture is opened before this one is captioned.
    monkeypatch.setattr(module.Palette, "caption", lambda *a: time.sleep(0.05) or say(*a))
    pictures = [PICTURES[0], PICTURES[0], PICTURES[1], PICTURES[2]]
    for batch in (1, 16):
        more = {"ids": ["a", "c", "b", "a"], "batch": batch}
        texts, facts = caption(tmp_path / str(batch), progress, pictures=pictures, **more)
        assert texts[0] == texts[1] == texts[3] != texts[2]
        assert counts(facts, "pictures", "made", "recorded") == (3, 2, 1)
        lines = [json.loads(line) for line in record(tmp_path / str(batch)).open()]
        assert [line["id"] for line in lines] == ["a", "c", "b"]


def test_missing_and_unreadable_pictures_are_counted_and_tried_again(
    tmp_path: Path, progress: Notes
):
    damaged = io.BytesIO()
    PICTURES[3].resize((99, 99)).save(damaged, "JPEG")
    broken: list[Any] = list(PICTURES)
    broken[2] = None
    broken[3] = lambda: Image.open(io.BytesIO(damaged.getvalue()[:500]))
    broken[7] = lambda: Image.open(io.BytesIO(b"no picture"))
    broken[8] = Image.new("RGB", (0, 5))

    def look(row: int) -> Any:
        return broken[row]() if callable(broken[row]) else broken[row]

    versions = [str(at) for at in range(10)]
    texts, facts = caption(tmp_path, progress, images=look, versions=versions, batch=4)
    assert [at for at, text in enumerate(texts) if not text] == [2, 3, 7, 8]
    names = ("pictures", "missing", "unreadable", "made", "recorded", "empty")
    assert counts(facts, *names) == (10, 1, 3, 6, 0, 0)
    assert "3 of 10 pictures cannot be read: photo-3 (" in progress.said[-1]
    texts, facts = caption(tmp_path, progress, versions=versions)
    assert all(texts) and counts(facts, *names) == (10, 0, 0, 4, 6, 0)


def test_not_one_readable_picture_is_refused(tmp_path: Path, progress: Notes):
    with refused("captioner 'palette': no picture can be read", "photo-0 \\(KeyError"):
        caption(tmp_path, progress, images={}.__getitem__)
    assert not (tmp_path / "captions").exists()
    texts, facts = caption(tmp_path, progress, images=lambda _: None)
    assert not any(texts) and facts["missing"] == 10


def test_pictures_are_opened_one_batch_ahead_at_most(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    opened: list[int] = []
    ahead: list[int] = []
    say = module.Palette.caption

    def look(row: int) -> Image.Image:
        opened.append(row)
        return PICTURES[row]

    def slow(self: Any, pictures: Any) -> Any:
        time.sleep(0.05)
        ahead.append(len(opened))
        return say(self, pictures)

    monkeypatch.setattr(module.Palette, "caption", slow)
    caption(tmp_path, progress, images=look, batch=3)
    assert ahead == [6, 9, 10, 10] and sorted(opened) == list(range(10))


def test_the_record_is_read_once(tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch):
    caption(tmp_path, progress, pictures=PICTURES[:5])
    reads = []
    believe = module.believe
    monkeypatch.setattr(module, "believe", lambda line: reads.append(line) or believe(line))
    caption(tmp_path, progress, batch=1)
    assert len(reads) == 5


def test_in_a_launch_the_first_process_speaks_for_all_and_what_it_cannot_read_is_tried_again(
    tmp_path: Path,
):
    script = tmp_path / "launched.py"
    script.write_text(
        "import json, os, time\n"
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "from reprokit.captions import captions\n"
        "from reprokit.progress import Progress\n"
        "rank, folder, opened = os.environ['RANK'], Path(__file__).parent, []\n"
        "def look(row):\n"
        "    opened.append(row)\n"
        "    time.sleep(0.2)\n"
        "    if row == 1 and start == 0 and rank == '0':\n"
        "        raise OSError('not just now')\n"
        "    return None if row == 2 else Image.new('RGB', (8, 8), (60 * row, 0, 0))\n"
        "told, more = [], {'versions': list('abcd')}\n"
        "for start in range(2):\n"
        "    quiet = Progress(quiet=True)\n"
        "    told.append(captions('palette', look, 'abcd', folder, quiet, 'f', **more))\n"
        "(folder / f'told{rank}').write_text(json.dumps([told, sorted(opened)]))\n"
    )
    done = launch(script, seconds=120)
    assert done.returncode == 0, done.stderr
    told, opened = zip(
        *(json.loads((tmp_path / f"told{at}").read_text()) for at in (0, 1)), strict=True
    )
    assert told[0] == told[1] and opened == ([0, 1, 1, 2, 2, 3], [])
    names = ("missing", "unreadable", "made", "recorded")
    assert [counts(facts, *names) for _, facts in told[1]] == [(1, 1, 2, 0), (1, 0, 1, 2)]
    assert [[bool(text) for text in texts] for texts, _ in told[1]] == [
        [True, False, False, True],
        [True, True, False, True],
    ]
    assert record(tmp_path).suffix == ".jsonl"  # and no other file


def test_two_lengths_must_agree_and_be_positive(tmp_path: Path, progress: Notes):
    for more in ({"batch": 0}, {"max_new_tokens": 0}, {"versions": ["a"]}):
        with pytest.raises(ValueError):
            caption(tmp_path, progress, **more)


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


def test_offline_the_hub_is_not_asked(hub: Path):  # noqa: F811
    with refused("captioner 'blip2'", BLIP2_REPO, "offline", "use palette"):
        identify_captioner("blip2", offline=True)
    with refused("captioner 'blip2'", "did not name its commit"):
        identify_captioner("blip2")


def test_blip2_is_downloaded_once_and_without_its_pickles(
    served: dict[str, dict[str, bytes]],  # noqa: F811
    hub: Path,  # noqa: F811
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
    served: dict[str, dict[str, bytes]],  # noqa: F811
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
