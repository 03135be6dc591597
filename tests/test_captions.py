"""Captions of pictures: made once, by pixels; those of palette, which loads no model."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caption_runs import PICTURES, caption, counts, record
from conftest import ROOT, Notes, launch, refused
from PIL import Image

from reprokit import captions as module
from reprokit import synthetic, synthetic_media
from reprokit.captions import PALETTE_NOTE
from reprokit.encoders import TINY_BUCKETS, zlib

SCALES = ((module.LIGHT, 1), (module.WARMTH, 2), (module.STRIPES, 5))
"""What `palette` grades, and which word of its sentence says so."""


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
    rows = synthetic_media.restaurant_reviews(world)["train"]
    pics = sorted({pic for row in rows for pic in row["pics"]})[:300]
    pixels = synthetic_media.restaurant_photos(world, pics)
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
    for more, told in (
        ({"batch": 0}, "batch of palette must be 1 at least"),
        ({"max_new_tokens": 0}, "max_new_tokens and batch of palette must be 1 at least"),
        ({"versions": ["a"]}, "1 versions for 10 pictures"),
    ):
        with pytest.raises(ValueError, match=told):
            caption(tmp_path, progress, **more)
