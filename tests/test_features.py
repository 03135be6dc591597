"""Vectors of texts and pictures: made once, kept block by block, damage found."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Notes, refused
from encoder_models import TITLES, colours, save_clip
from PIL import Image
from test_encoders import small_blocks

from reprokit import encoders, features
from reprokit.features import image_features, text_features


def files(folder: Path) -> list[Path]:
    return sorted((folder / "features").glob("*.npy"))


def test_the_same_texts_are_encoded_once_and_others_anew(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    first, counts = text_features("tiny", [*TITLES, ""], tmp_path, progress, "t")
    for texts, print_ in ((TITLES, "t"), ([*TITLES, ""], "u"), (["", *TITLES], "t")):
        text_features("tiny", texts, tmp_path, progress, print_)
    assert len(files(tmp_path)) == 4
    monkeypatch.setattr(features, "text_encoder", lambda _: pytest.fail("loaded again"))
    again, told = text_features("tiny", [*TITLES, ""], tmp_path, progress, "t")
    assert isinstance(again, np.memmap) and not again.flags.writeable
    assert np.array_equal(first, again) and told == counts == {"texts": 31, "empty": 1, "cut": 0}
    assert progress.said == []


def test_no_text_at_all_still_has_the_width_of_the_encoder(tmp_path: Path, progress: Notes):
    vectors, counts = text_features("tiny", ["", " "], tmp_path, progress, "t")
    assert vectors.shape == (2, 128) and not vectors.any() and counts["empty"] == 2
    with pytest.raises(ValueError, match="no rows"):
        text_features("tiny", [], tmp_path, progress, "t")


# --- what is kept -------------------------------------------------------------------------------
class Killed(BaseException):
    pass


def test_a_killed_start_is_gone_on_with_and_ends_with_the_same_bytes(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch)
    name = f"clip:{save_clip(tmp_path / 'clip')}"  # its vectors depend on the batch, a little
    text_features(name, TITLES, tmp_path / "whole", progress, "c")
    encode, asked = encoders.Clip.encode, []

    def counted(self: Any, texts: list[str]) -> tuple[np.ndarray, int]:
        asked.extend(texts)
        if len(asked) > 22:  # within the third block
            raise Killed
        return encode(self, texts)

    monkeypatch.setattr(encoders.Clip, "encode", counted)
    with pytest.raises(Killed):
        text_features(name, TITLES, tmp_path / "cut", progress, "c")
    assert files(tmp_path / "cut") == []
    del asked[:]
    text_features(name, TITLES, tmp_path / "cut", progress, "c")
    assert len(asked) == 30 - 16  # two blocks of eight were kept
    one, other = files(tmp_path / "whole")[0], files(tmp_path / "cut")[0]
    assert one.name == other.name and one.read_bytes() == other.read_bytes()
    assert len(list(other.parent.iterdir())) == 2 and progress.said == []


def test_a_damaged_block_is_encoded_again(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch)
    whole, _ = text_features("tiny", TITLES, tmp_path / "whole", progress, "t")
    monkeypatch.setattr(features, "assemble", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        text_features("tiny", TITLES, tmp_path, progress, "t")
    monkeypatch.undo()
    small_blocks(monkeypatch)
    flipped, cut, *_ = sorted((tmp_path / "features").glob("*.parts/*.npz"))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 3] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:99])
    vectors, _ = text_features("tiny", TITLES, tmp_path, progress, "t")
    assert np.array_equal(vectors, whole)
    assert [said.endswith("npz is damaged and made again") for said in progress.said] == [True] * 2


@pytest.mark.parametrize("damage", ["flipped", "cut", "another shape", "no counts"])
def test_damaged_vectors_are_made_again_which_is_said(damage: str, tmp_path: Path, progress: Notes):
    whole = np.array(text_features("tiny", TITLES, tmp_path, progress, "t")[0])
    path = files(tmp_path)[0]
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-5] ^= 1
    if damage == "cut":
        del content[-5:]
    path.unlink()
    path.write_bytes(content)
    facts = json.loads(path.with_suffix(".json").read_text())
    if damage == "another shape":
        np.save(path, whole[1:])
        facts["sha256"] = features.file_digest(path)
    if damage == "no counts":
        del facts["counts"]
    path.with_suffix(".json").write_text(json.dumps(facts))
    again, _ = text_features("tiny", TITLES, tmp_path, progress, "t")
    assert np.array_equal(again, whole)
    assert len(progress.said) == 1 and "is damaged and made again" in progress.said[0]


def test_other_processes_wait_for_the_first_one(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    main = threading.current_thread()
    monkeypatch.setattr(features, "first_process", lambda: threading.current_thread() is main)
    found: list[Any] = []
    other = threading.Thread(
        target=lambda: found.append(text_features("tiny", TITLES, tmp_path, Notes(), "t"))
    )
    other.start()
    other.join(0.5)
    assert other.is_alive() and files(tmp_path) == []
    ours, counts = text_features("tiny", TITLES, tmp_path, progress, "t")
    other.join(10)
    assert np.array_equal(found[0][0], ours) and found[0][1] == counts


# --- pictures -----------------------------------------------------------------------------------
def test_a_picture_that_cannot_be_read_is_counted_and_named_once(tmp_path: Path, progress: Notes):
    paths = [tmp_path / f"{at}.jpg" for at in range(4)]
    for path, picture in zip(paths, colours(4), strict=True):
        picture.save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    paths[2].write_bytes(b"<html>not found</html>")
    present = np.array([1, 1, 1, 1, 0, 1], bool)

    def images(row: int) -> Image.Image | None:
        return Image.open(paths[row]) if row < 4 else None

    vectors, counts = image_features("tiny", images, present, tmp_path, "p", progress, "t")
    assert counts == {"pictures": 6, "missing": 2, "unreadable": 2}
    assert vectors.any(axis=1).tolist() == [True, False, False, True, False, False]
    (said,) = progress.said
    assert "2 of 5 pictures cannot be read: row 1 (" in said and "2.jpg" in said
    assert image_features("tiny", images, present, tmp_path, "p", progress, "t")[1] == counts
    assert len(progress.said) == 1


def test_pictures_none_of_which_can_be_read_are_an_error_and_tried_again(
    tmp_path: Path, progress: Notes
):
    def nothing(row: int) -> Image.Image:
        return Image.open(tmp_path / f"{row}.jpg")

    with refused("no picture can be read", "0.jpg"):
        image_features("tiny", nothing, np.ones(3, bool), tmp_path, "p", progress, "t")
    for at, picture in enumerate(colours(3)):
        picture.save(tmp_path / f"{at}.jpg")
    vectors, _ = image_features("tiny", nothing, np.ones(3, bool), tmp_path, "p", progress, "t")
    assert vectors.any(axis=1).all()


def test_one_batch_of_pictures_is_held_at_a_time(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch)
    pictures, opened, seen = colours(10), [], []
    encode = encoders.TinyImage.encode

    def watched(self: Any, prepared: list[np.ndarray]) -> np.ndarray:
        seen.append((len(opened), len(prepared)))
        return encode(self, prepared)

    monkeypatch.setattr(encoders.TinyImage, "encode", watched)

    def images(row: int) -> Image.Image:
        opened.append(row)
        return pictures[row]

    image_features("tiny", images, np.ones(10, bool), tmp_path, "p", progress, "t")
    assert seen == [(4, 4), (8, 4), (10, 2)]
