"""No feature of a row reads its own review, and none reads a held-out one: on random releases."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reprokit import profiles
from reprokit.pooling import leaks
from reprokit.profiles import (
    Frozen,
    Profile,
    baseline_profile,
    described_by,
    first_texts,
    proposed_profile,
)
from reprokit.progress import Progress
from reprokit.reviewfiles import RELEASE_SPLITS, restaurants
from reprokit.reviews import Reviews
from reprokit.runs import RequestError, Unavailable
from reprokit.summaries import Asked

WORDS = ("cheap", "overpriced", "thai", "sushi", "pizza", "slow", "lovely", "crust", "staff")
TYPES = ["japanese", "pizza", "thai"]
MODELS = {"text": "tiny text", "image": "tiny image", "caption": "palette", "llm": "extractive"}

Files = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", autouse=True)
def fixed_types() -> Iterator[None]:
    """The vocabulary is fitted on all training rows; what is tested here is each row's names."""
    patch = pytest.MonkeyPatch()
    patch.setattr(profiles, "vocabulary", lambda names, most: TYPES)
    yield
    patch.undo()


def paint(names: list[str]) -> np.ndarray:
    """Each picture has a grey level of its own, told by its name."""
    levels = [int(name.partition("-")[2]) for name in names]
    return np.array([np.full((3, 4, 4), level, np.uint8) for level in levels])


def review(rng: np.random.Generator) -> dict[str, Any]:
    """What a person leaves: text, rating and pictures."""
    words = rng.choice(WORDS, rng.integers(0, 6)).tolist()
    pics = [f"p-{level}" for level in rng.integers(0, 255, rng.integers(0, 3))]
    return {
        "review_text": f"The {' '.join(words)}." if words else "",
        "rating": int(rng.integers(1, 6)),
        "pics": pics,
    }


def release(seed: int) -> Files:
    """A random release: users of a split are its own, histories hold rows and other reviews."""
    rng = np.random.default_rng(seed)
    files: Files = {}
    for at, split in enumerate(RELEASE_SPLITS):
        count = int(rng.integers(4, 9)) if split == "train" else 3
        files[split] = [
            {
                "user_id": f"u{at}{rng.integers(3)}",
                "business_id": f"b{rng.integers(3)}-{number}" if at else f"b{rng.integers(3)}",
                **review(rng),
            }
            for number in range(count)
        ]
    for records in files.values():
        for number, record in enumerate(records):
            record["business_id"] = record["business_id"].partition("-")[0]
            record["number"] = number
    files["train"][0] |= {"review_text": "The thai pizza was lovely.", "pics": ["p-7", "p-9"]}
    files["train"][1] |= {"review_text": "Slow staff, cheap sushi.", "pics": ["p-70"]}
    files["train"][1]["business_id"] = files["train"][0]["business_id"]
    files["train"][1]["user_id"] = "u09"  # another person, so that the business stays the same
    unique_visits(files)
    histories(files, rng)
    return files


def unique_visits(files: Files) -> None:
    """A person reviews a business once, as an id `user_business` needs."""
    seen: set[tuple[str, str]] = set()
    for records in files.values():
        for record in records:
            while (record["user_id"], record["business_id"]) in seen:
                record["business_id"] += "x"
            seen.add((record["user_id"], record["business_id"]))


def histories(files: Files, rng: np.random.Generator) -> None:
    """Every row lists all reviews of its user: rows under `user_business`, and others."""
    for records in files.values():
        users = {record["user_id"] for record in records}
        others = {
            user: [[f"{user}_away{k}", f"Elsewhere {rng.choice(WORDS)} {k}"] for k in range(2)]
            for user in sorted(users)
        }
        for record in records:
            mine = [one for one in records if one["user_id"] == record["user_id"]]
            listed = [
                [f"{one['user_id']}_{one['business_id']}", one["review_text"]] for one in mine
            ]
            record["history_reviews"] = [*listed, *others[record["user_id"]]]


def with_other(files: Files, split: str, number: int, seed: int) -> Files:
    """The release with another review in one place, in the histories too."""
    changed = copy.deepcopy(files)
    record = changed[split][number]
    record |= review(np.random.default_rng(seed))
    name = f"{record['user_id']}_{record['business_id']}"
    for other in changed[split]:
        for entry in other["history_reviews"]:
            if entry[0] == name:
                entry[1] = record["review_text"]
    return changed


def load(files: Files) -> Reviews:
    return restaurants("made", files, {}, paint=paint, painter="grey")


def frozen(folder: Path) -> Frozen:
    return Frozen(folder, Progress(quiet=True), MODELS)


def baseline(data: Reviews, folder: Path, **changed: Any) -> Profile:
    given = {
        "parts": ("text", "image"),
        "text_encoder": "tiny",
        "image_encoder": "tiny",
        "images_needed": True,
        "key": f"{data.pictures}",
    } | changed
    return baseline_profile(data.sealed(), frozen=frozen(folder), **given)


def proposed(data: Reviews, folder: Path, **changed: Any) -> Profile:
    given = {
        "parts": ("text", "image"),
        "text_encoder": "tiny",
        "captioner": "palette",
        "images_needed": True,
        "leakage": "exclude_current",
        "max_reviews": 3,
        "asked": Asked(),
        "caption_batch": 4,
        "n_types": 3,
        "most_types": 2,
        "key": f"{data.pictures}",
    } | changed
    return proposed_profile(data.sealed(), frozen=frozen(folder), **given)


def features(profile: Profile):  # type: ignore[no-untyped-def]
    """All numbers that describe some rows."""

    def build(rows: np.ndarray) -> np.ndarray:
        parts = [profile.dense[rows]]
        parts += [vectors(rows) for part in profile.vectors.values() for vectors in part]
        if profile.types is not None:
            parts.append(profile.types[rows])
        return np.concatenate(parts, axis=1)

    return build


MAKERS = {"baseline": baseline, "proposed": proposed}
FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("maker", MAKERS)
@given(seed=st.integers(0, 2**31), other=st.integers(0, 2**31))
@FEW
def test_a_row_s_own_review_moves_none_of_its_features(
    maker: str, seed: int, other: int, tmp_path: Path
) -> None:
    files = release(seed)
    row = other % len(files["train"])
    changed = with_other(files, "train", row, other)

    def build(data: Reviews):  # type: ignore[no-untyped-def]
        return features(MAKERS[maker](data, tmp_path))

    assert not leaks(build, load(files), load(changed), row, tolerance=1e-5)


@pytest.mark.parametrize("maker", MAKERS)
@given(seed=st.integers(0, 2**31), other=st.integers(0, 2**31))
@FEW
def test_no_held_out_review_moves_any_feature(
    maker: str, seed: int, other: int, tmp_path: Path
) -> None:
    """Of training rows, of other held-out rows, or of its own; whatever the histories list."""
    files = release(seed)
    changed = files
    for split in ("val", "test"):
        for number in range(len(files[split])):
            changed = with_other(changed, split, number, other + number)
    before, after = load(files), load(changed)
    rows = np.arange(len(before))
    one, two = (features(MAKERS[maker](data, tmp_path))(rows) for data in (before, after))
    assert np.allclose(one, two, atol=1e-5)


def test_the_paper_s_text_as_printed_leaks_and_is_caught(tmp_path: Path) -> None:
    files = release(1)
    changed = with_other(files, "train", 0, 3)

    def build(data: Reviews):  # type: ignore[no-untyped-def]
        return features(proposed(data, tmp_path, leakage="as_printed"))

    assert leaks(build, load(files), load(changed), row=0)
    held = len(files["train"])  # a validation row is described alike in both
    both = [
        features(proposed(load(files), tmp_path, leakage=leakage))(np.array([held]))
        for leakage in ("as_printed", "exclude_current")
    ]
    assert np.array_equal(*both)


def test_a_history_review_that_is_no_row_describes_its_user(tmp_path: Path) -> None:
    files = release(2)
    changed = copy.deepcopy(files)
    user = changed["test"][0]["user_id"]
    for record in changed["test"]:
        for entry in record["history_reviews"]:
            if entry[0] == f"{user}_away0":
                entry[1] = "Entirely other words"
    row = len(files["train"]) + len(files["val"])
    for maker in MAKERS.values():

        def build(data: Reviews, maker: Any = maker):  # type: ignore[no-untyped-def]
            return features(maker(data, tmp_path))

        assert leaks(build, load(files), load(changed), row)


def test_dense_features_are_counted_by_hand(tmp_path: Path) -> None:
    def record(user: str, place: str, rating: int) -> dict[str, Any]:
        return {
            "user_id": user,
            "business_id": place,
            "rating": rating,
            "review_text": f"{user} {place} {rating}",
            "pics": ["p-1"],
            "history_reviews": [],
        }

    files = {
        "train": [record("a", "x", 5), record("a", "y", 1), record("b", "x", 3)],
        "val": [record("c", "x", 4)],
        "test": [record("d", "z", 2)],
    }
    dense = baseline(load(files), tmp_path, parts=()).dense
    assert np.allclose(
        dense,
        [
            [np.log(2), 1, 3],  # without itself: one review of x; a gave y 1; x has b's 3
            [0, 5, 4],  # y has no other review: the mean of 5 and 3
            [np.log(2), 3, 5],  # b has no other review: the mean of 5 and 1
            [np.log(3), 3, 4],  # c is not known: the mean of all; x has two
            [0, 3, 3],
        ],
    )


def test_sets_that_are_longer_than_is_read_are_counted() -> None:
    files = release(5)
    for number, record in enumerate(files["train"]):
        record |= {"user_id": "one", "business_id": f"b{number}", "review_text": f"Text {number}."}
        record["history_reviews"] = []
    data = load(files)
    assert described_by(data, "user", "exclude_current", 2).shortened > 0
    assert described_by(data, "user", "exclude_current", 50).shortened == 0
    assert max(np.diff(described_by(data, "user", "as_printed", 2).sets.starts)) == 2


def test_without_images_a_profile_says_so_or_is_not_made(tmp_path: Path) -> None:
    files = release(3)
    for records in files.values():
        for record in records:
            record["pics"] = []
    bare = restaurants("made", files, {})
    for maker in MAKERS.values():
        assert "no images" in maker(bare, tmp_path, images_needed=False).deviations
        with pytest.raises(Unavailable, match="made has no images here"):
            maker(bare, tmp_path)
        with pytest.raises(Unavailable, match="no images"):
            maker(bare, tmp_path, parts=("image",), images_needed=False)
    with pytest.raises(Unavailable, match="--captioner"):
        proposed(load(release(3)), tmp_path, captioner="none")
    with pytest.raises(Unavailable, match="--image-encoder"):
        baseline(load(release(3)), tmp_path, image_encoder="none")


def test_parts_are_fields_of_their_own(tmp_path: Path) -> None:
    data = load(release(4))
    assert list(baseline(data, tmp_path).vectors) == ["all"]
    assert [part.width for part in baseline(data, tmp_path).vectors["all"]] == [128, 128, 128]
    whole = proposed(data, tmp_path)
    assert list(whole.vectors) == ["text", "image"]
    assert [part.width for part in whole.vectors["text"]] == [128, 128]
    assert whole.dense.shape == (len(data), 5)
    assert whole.types is not None and whole.types.shape == (len(data), 2)
    assert list(proposed(data, tmp_path, parts=("text",)).vectors) == ["text"]
    assert list(proposed(data, tmp_path, parts=("image",)).vectors) == ["image"]
    assert whole.what != proposed(data, tmp_path, leakage="as_printed").what


def test_examples_are_the_first_users_with_enough_reviews() -> None:
    files = release(6)
    for number, record in enumerate(files["train"][:4]):
        record |= {"user_id": "many", "business_id": f"q{number}", "review_text": f"Text {number}"}
    data = load(files)
    (user, texts), *_ = first_texts(data, 1, 3, 6)
    assert user == "many" and texts == [f"Text {number}" for number in range(4)]
    with pytest.raises(RequestError, match="fewer than 9 users"):
        first_texts(data, 9, 3, 6)
