"""Cross-domain sequences: the published files, what is hidden, and the lists that are ranked."""

from __future__ import annotations

import gzip
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT, needs
from PIL import Image

from reprokit import synthetic, synthetic_media
from reprokit.crossdata import (
    CDSR_FILES,
    CROSS_DATA,
    CrossData,
    Sequences,
    cross_world,
    demo_texts,
    load_cross_data,
    metadata_paths,
    negatives,
    read_items,
    read_rows,
)
from reprokit.datasets import DataError

DAY = 86_400
A_LIST = "76407\tB0028A8ZEI\t0\n15157\tB001D9OVQ6\t1\n9314\tB001QY75DE\t2\n"
B_LIST = "45309\tB001802PIQ\t0\n46353\tB001BSX1EM\t1\n"


def row(user: int, sequence: int, *events: tuple[int, int]) -> str:
    """As published: user, sequence, then item|time|date| of each event."""
    fields = [f"{item}|{day * DAY}|2014-01-01 08:00:00|" for item, day in events]
    return "\t".join([str(user), str(sequence), *fields]) + "\n"


def published(data_dir: Path, **text: str) -> Path:
    """Three items of A, numbered 0 to 2, and two of B, 3 and 4; `text` replaces whole files."""
    folder = data_dir / "cdsr/Food-Kitchen"
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "Alist": A_LIST,
        "Blist": B_LIST,
        "traindata_new": row(4, 1, (0, 1), (3, 2)) + row(9, 2, (4, 1), (0, 1), (4, 5), (0, 9)),
        "validdata_new": row(9, 3, (0, 12), (3, 11), (2, 12)),
        "testdata_new": row(7, 4, (1, 3), (4, 3)) + row(4, 5, (2, 5), (3, 4)),
    }
    for name, content in {**files, **text}.items():
        (folder / f"{name}.txt").write_text(content, encoding="utf-8")
    return folder


def load(data_dir: Path) -> CrossData:
    load_cross_data.cache_clear()
    return load_cross_data("food-kitchen", data_dir)


def some(*rows: list[int]) -> Sequences:
    items = np.array([item for one in rows for item in one], np.int64)
    starts = np.cumsum([0, *map(len, rows)])
    return Sequences(np.arange(len(rows)), items, np.arange(len(items)), starts)


# --- rows ---------------------------------------------------------------------------------------
def test_padded_rows_end_in_zeros_and_keep_the_last_events():
    rows = some([1, 2, 3], [4], [5, 6])
    index = np.array([2, 0, 1])
    assert rows.padded(index, 4).tolist() == [[5, 6, 0, 0], [1, 2, 3, 0], [4, 0, 0, 0]]
    assert rows.padded(index, 2).tolist() == [[5, 6], [2, 3], [4, 0]]
    assert rows.padded(index, 2, drop=1).tolist() == [[5, 0], [1, 2], [0, 0]]
    assert rows.padded(index, 2, drop=5).tolist() == [[0, 0]] * 3
    assert rows.padded(np.array([], np.int64), 2).shape == (0, 2)
    assert rows.targets.tolist() == [3, 4, 6]
    assert rows.lengths.tolist() == [3, 1, 2]


def test_rows_are_sorted_by_time_and_ties_follow_the_file(tmp_path: Path):
    path = tmp_path / "rows.txt"
    path.write_text(row(0, 0, (4, 9), (0, 1), (1, 9), (2, 5)) + "\n" + row(1, 1, (1, 2), (0, 2)))
    rows = read_rows(path, 5)
    assert rows.items.tolist() == [1, 3, 5, 2, 2, 1]  # ids start at 1
    assert rows.starts.tolist() == [0, 4, 6]
    assert (rows.times // DAY).tolist() == [1, 5, 9, 9, 2, 2]
    packed = tmp_path / "rows.txt.gz"
    packed.write_bytes(gzip.compress(path.read_bytes().replace(b"\n", b"\r\n")))
    assert read_rows(packed, 5).items.tolist() == rows.items.tolist()


def test_the_release_is_loaded_with_dense_users_and_b_after_a(tmp_path: Path):
    published(tmp_path)
    data = load(tmp_path)
    assert (data.domains, data.n_a, data.n_b, data.n_items) == (("Food", "Kitchen"), 3, 2, 5)
    assert data.item_ids == ["", *(line.split("\t")[1] for line in (A_LIST + B_LIST).splitlines())]
    assert data.n_users == 3
    assert data.train.users.tolist() == [0, 2]  # of 4, 7 and 9
    assert (data.valid.users.tolist(), data.test.users.tolist()) == ([2], [1, 0])
    assert data.valid.items.tolist() == [4, 1, 3]
    assert data.test.targets.tolist() == [5, 3]
    assert data.domain_of(np.array([0, 1, 3, 4, 5])).tolist() == [0, 0, 0, 1, 1]
    assert data.mean_length == pytest.approx(13 / 5)


def test_counts_say_what_repeats_and_what_is_known(tmp_path: Path):
    published(tmp_path, testdata_new=row(7, 1, (1, 3), (4, 3)) + row(4, 5, (2, 4), (1, 5), (2, 5)))
    counts = load(tmp_path).counts
    expected = {
        "a items": 3,
        "b items": 2,
        "users": 3,
        "train rows": 2,
        "train events": 6,
        "train rows with a repeated item": 1,
        "train rows whose last item occurs earlier": 1,
        "train rows whose two last times tie": 0,
        "valid rows with a last item of a": 1,
        "valid rows with a last item of b": 0,
        "valid rows whose two last times tie": 1,
        "valid users who occur in train": 1,
        "test rows": 2,
        "test events": 5,
        "test rows with a last item of a": 1,
        "test rows with a last item of b": 1,
        "test rows whose last item occurs earlier": 1,
        "test users who occur in train": 1,
        "train rows whose sequence is evaluated too": 1,
        "titles known": 0,
        "images known": 0,
    }
    assert {key: counts[key] for key in expected} == expected


def test_lists_are_read_by_their_third_column(tmp_path: Path):
    path = tmp_path / "Alist.txt"
    path.write_text("7\tSECOND\t1\n5\tFIRST\t0\n")
    assert read_items(path) == ["FIRST", "SECOND"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"Alist": "1\tB1\t0\n2\tB2\n"}, r"Alist\.txt, line 2: not the three fields"),
        ({"Alist": "1\tB1\t0\n2\tB2\t2\n"}, r"Alist\.txt, line 2: index '2', .* 0 to 1 once"),
        ({"Blist": "1\tB1\t0\n2\tB2\t0\n"}, r"Blist\.txt, line 2: index '0'"),
        ({"Blist": "1\tB1\t-1\n"}, r"Blist\.txt, line 1: index '-1'"),
        ({"Blist": "\n"}, r"Blist\.txt: no items in it"),
        ({"traindata_new": "\n"}, r"traindata_new\.txt: no rows in it"),
        ({"traindata_new": "\n1\t2\t3|4\n"}, r"traindata_new\.txt, line 2: not a row of events"),
        ({"traindata_new": "1\t2\t3|x|d|\n"}, r"traindata_new\.txt, line 1: not a row of events"),
        (
            {"traindata_new": row(1, 1, (0, 1)) + f"1\t2\t0|{'9' * 19}|d|\n"},
            r"traindata_new\.txt, line 2: not a row of events",
        ),
        ({"validdata_new": "1\t2\n"}, r"validdata_new\.txt, line 1: a row without an event"),
        ({"validdata_new": "1\t2\t\n"}, r"validdata_new\.txt, line 1: a row without an event"),
        (
            {"testdata_new": row(1, 1, (0, 1), (1, 1)) + row(1, 1, (0, 1))},
            r"testdata_new\.txt, line 2: one event, but a row to be evaluated needs a history",
        ),
        (
            {"testdata_new": row(1, 1, (0, 1), (4, 1)) + "\n" + row(1, 1, (0, 1), (5, 0))},
            r"testdata_new\.txt, line 3: item 5 is outside the 5 items of both lists, 0 to 4",
        ),
    ],
)
def test_a_faulty_file_is_named_with_its_line(tmp_path: Path, text: dict[str, str], message: str):
    published(tmp_path, **text)
    with pytest.raises(DataError, match=message) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_training_row_may_have_a_single_event(tmp_path: Path):
    published(tmp_path, traindata_new=row(1, 1, (0, 1)))
    assert load(tmp_path).train.lengths.tolist() == [1]


def test_a_file_cut_short_is_named(tmp_path: Path):
    folder = published(tmp_path)
    packed = gzip.compress((folder / "traindata_new.txt").read_bytes())
    (folder / "traindata_new.txt").unlink()
    (folder / "traindata_new.txt.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match=r"traindata_new\.txt\.gz: cannot be read"):
        load(tmp_path)


def test_the_earlier_release_is_refused_by_name_wherever_files_are_asked_for(tmp_path: Path):
    folder = published(tmp_path)
    (folder / "traindata_new.txt").rename(folder / "traindata.txt")
    for ask in (load, CROSS_DATA["food-kitchen"].paths, CROSS_DATA["food-kitchen"].fingerprint):
        with pytest.raises(DataError, match=r"traindata\.txt: the earlier release, .* leak"):
            ask(tmp_path)


# --- titles and images --------------------------------------------------------------------------
def test_titles_come_from_titles_tsv_and_then_from_the_metadata(tmp_path: Path):
    folder = published(tmp_path)
    table = "B0028A8ZEI\tTea &amp; more\nB001802PIQ\t\nOTHER\tNot ours\n"
    (folder / "titles.tsv").write_text(table, encoding="utf-8")
    assert load(tmp_path).titles == ["", "Tea & more", "", "", "", ""]
    (tmp_path / "amazon-2014").mkdir()
    metadata = tmp_path / "amazon-2014/meta_Home_and_Kitchen.json"
    entries = [{"asin": "B0028A8ZEI", "title": "Loses"}, {"asin": "B001802PIQ", "title": "Pan"}]
    metadata.write_text("".join(f"{entry!r}\n" for entry in entries))
    data = load(tmp_path)
    assert data.titles == ["", "Tea & more", "", "", "Pan", ""]
    assert metadata_paths("food-kitchen", tmp_path) == [metadata]
    assert metadata_paths("movie-book", tmp_path) == []
    known = ("titles of titles.tsv", "titles of the metadata", "titles of other items, left out")
    assert [data.counts[key] for key in known] == [1, 1, 1]
    (folder / "titles.tsv").write_text("B0028A8ZEI Tea\n")
    with pytest.raises(DataError, match=r"titles\.tsv, line 1: not ASIN, tab, title"):
        load(tmp_path)
    (folder / "titles.tsv").write_bytes(b"B0028A8ZEI\tTh\xe9\n")
    with pytest.raises(DataError, match=r"titles\.tsv, line 1: not UTF-8 text"):
        load(tmp_path)


def test_images_are_found_by_asin_and_opened_on_demand(tmp_path: Path):
    folder = published(tmp_path)
    (folder / "images").mkdir()
    Image.new("L", (4, 3), 9).save(folder / "images/B001D9OVQ6.jpg")
    Image.new("L", (4, 3), 9).save(folder / "images/OTHER.jpg")
    (folder / "images/B001BSX1EM.jpg").write_bytes(b"no image")
    data = load(tmp_path)
    assert data.has_image.tolist() == [False, False, True, False, False, True]
    assert data.counts["images known"] == 2
    assert data.counts["images of other items, left out"] == 1
    image = data.image(2)
    assert image is not None
    assert (image.mode, image.size) == ("RGB", (4, 3))
    assert data.image(1) is None
    with pytest.raises(DataError, match=r"B001BSX1EM\.jpg: not a readable image"):
        data.image(5)


@pytest.mark.parametrize("ending", ["gif", "jpeg", "jpg", "png", "webp"])
def test_an_image_of_any_type_that_is_fetched_is_read_and_takes_part_in_the_fingerprint(
    ending: str, tmp_path: Path
):
    folder = published(tmp_path)
    before = CROSS_DATA["food-kitchen"].fingerprint(tmp_path)
    (folder / "images").mkdir()
    Image.new("RGB", (4, 3), (9, 9, 9)).save(folder / f"images/B001D9OVQ6.{ending}")
    (folder / "images/B0028A8ZEI.txt").write_text("no picture")
    data = load(tmp_path)
    assert data.has_image.tolist() == [False, False, True, False, False, False]
    image = data.image(2)
    assert image is not None and (image.mode, image.size) == ("RGB", (4, 3))
    assert CROSS_DATA["food-kitchen"].fingerprint(tmp_path) != before


def test_the_fingerprint_of_jpg_images_is_what_it_was_when_no_others_were_read(tmp_path: Path):
    folder = published(tmp_path)
    (folder / "images").mkdir()
    for name in ("B2", "A", "B10"):
        (folder / f"images/{name}.jpg").write_text(name)
    known = "4c94c6428d37a63bfeee2ac7748f576af8ed887874eba6231c0112fc8fa8d8a4"
    assert CROSS_DATA["food-kitchen"].fingerprint(tmp_path) == known


def test_optional_files_take_part_in_the_fingerprint(tmp_path: Path):
    source = CROSS_DATA["food-kitchen"]
    folder = published(tmp_path)
    (folder / "images").mkdir()
    (tmp_path / "amazon-2014").mkdir()
    seen = [source.fingerprint(tmp_path)]
    for path, text in (
        ("cdsr/Food-Kitchen/titles.tsv", "A\tB\n"),
        ("cdsr/Food-Kitchen/titles.tsv", "A\tC\n"),
        ("cdsr/Food-Kitchen/images/A.jpg", "one"),
        ("cdsr/Food-Kitchen/images/A.jpg", "longer"),
        ("amazon-2014/meta_Grocery_and_Gourmet_Food.json.gz", "x"),
    ):
        (tmp_path / path).write_text(text)
        seen.append(source.fingerprint(tmp_path))
    assert len(set(seen)) == len(seen)
    (tmp_path / "amazon-2014/meta_Books.json.gz").write_text("of another data set")
    assert source.fingerprint(tmp_path) == seen[-1]
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    shutil.copytree(tmp_path, moved)
    assert source.fingerprint(moved) == seen[-1]


def test_a_fingerprint_is_not_taken_from_a_cache_that_lacks_an_optional_file(tmp_path: Path):
    source, cache = CROSS_DATA["food-kitchen"], tmp_path / "cache.json"
    folder = published(tmp_path)
    whole = source.fingerprint(tmp_path, cache)
    assert source.fingerprint(tmp_path, cache, read=False) == whole != ""
    (folder / "titles.tsv").write_text("A\tB\n")
    assert source.fingerprint(tmp_path, cache, read=False) == ""


# --- what training may see ----------------------------------------------------------------------
def test_sealed_data_have_no_test_row_and_tell_no_count_of_it(tmp_path: Path):
    published(tmp_path)
    data = load(tmp_path)
    sealed = data.sealed()
    assert len(sealed.test) == len(sealed.test.targets) == len(sealed.test.items) == 0
    assert sealed.test.padded(np.array([], np.int64), 3).shape == (0, 3)
    assert not [key for key in sealed.counts if key.startswith("test ")]
    assert sealed.train is data.train
    assert sealed.valid is data.valid
    assert len(data.test) == 2
    assert sealed.mean_length == pytest.approx(9 / 3)


# --- synthetic stand-ins ------------------------------------------------------------------------
@pytest.mark.slow
def test_the_demos_are_two_worlds_of_films_and_books_with_enough_rows():
    data = [load_cross_data(name, DATA) for name in ("demo-food-kitchen", "demo-movie-book")]
    assert [one.domains for one in data] == [("Food", "Kitchen"), ("Movie", "Book")]
    assert data[0].titles != data[1].titles
    for one in data:
        source = CROSS_DATA[one.name]
        events = sum(len(one.split(split).items) for split in ("train", "valid", "test"))
        assert len(one.train) >= 600
        assert min(len(one.valid), len(one.test)) >= 500
        for split in ("valid", "test"):
            assert np.bincount(one.domain_of(one.split(split).targets)).min() >= 250
        actual = (one.n_users, one.n_items, len(one.train), events)
        assert all(a <= b <= 1.1 * a for a, b in zip(actual, source.sizes.values(), strict=True))
        assert (one.train.times % DAY == 0).all()
        assert one.counts["train rows with a repeated item"] == 0
    first, second = (CROSS_DATA[one.name].fingerprint(DATA) for one in data)
    assert first != second
    assert CROSS_DATA["demo-movie-book"].note


def test_a_demo_holds_the_worlds_events_texts_and_pictures():
    name = "demo-movie-book"
    data, world = load_cross_data(name, DATA), synthetic.make_world(cross_world(name))
    pieces = [piece for piece in synthetic.sequences(world) if piece.split == "test"]
    assert data.test.items.tolist() == [item + 1 for piece in pieces for item in piece.items]
    assert (data.domain_of(data.test.items) == np.concatenate([p.domains for p in pieces])).all()
    texts = demo_texts(name)
    assert texts[0] == data.titles[0] == data.item_ids[0] == ""
    assert texts[1:] == world.items.descriptions
    pairs = list(zip(data.titles[1:], world.items.titles, strict=True))
    told = [shown == title for shown, title in pairs]
    assert 0.4 < np.mean(told) < 0.6  # the others say nothing of their item
    silent = [shown for (shown, _), same in zip(pairs, told, strict=True) if not same]
    assert all(re.fullmatch(r"Article \d+", shown) for shown in silent)
    assert len(set(silent)) == len(silent)
    assert data.has_image[1:].tolist() == world.items.has_image.tolist()
    item = int(np.flatnonzero(data.has_image)[-1])
    picture = data.image(item)
    pixels = synthetic_media.images(world)[item - 1].transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(picture), pixels)
    assert data.image(0) is data.image(int(np.flatnonzero(~data.has_image)[-1])) is None


# --- negatives ----------------------------------------------------------------------------------
@pytest.fixture
def data(tmp_path: Path) -> CrossData:
    """Three items of A and two of B; 60 test rows, whose targets are 1 to 5 in turn."""
    rows = "".join(row(9, n, (0, 1), (n % 5, 2)) for n in range(60))
    published(tmp_path, testdata_new=rows)
    return load(tmp_path)


def test_negatives_are_of_the_targets_domain_and_never_the_target(data: CrossData, tmp_path: Path):
    drawn = negatives(data, "test", tmp_path)
    assert isinstance(drawn, np.memmap)
    assert (drawn.shape, drawn.dtype) == ((60, 999), np.int32)
    targets = data.test.targets[:, None]
    assert (data.domain_of(drawn) == data.domain_of(targets)).all()
    assert (drawn != targets).all()
    assert drawn.min() == 1
    assert drawn.max() == 5
    for target, others in {1: (2, 3), 2: (1, 3), 3: (1, 2)}.items():  # 11,988 draws of two
        of_target = drawn[data.test.targets == target]
        shares = [float((of_target == other).mean()) for other in others]
        assert shares == pytest.approx([0.5, 0.5], abs=0.025)
    assert (drawn[3] == 5).all()  # the other item of B, 999 times


def test_negatives_are_drawn_once_and_depend_on_what_is_ranked(data: CrossData, tmp_path: Path):
    first = np.array(negatives(data, "test", tmp_path, count=20))
    (path,) = (tmp_path / "negatives").iterdir()
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(first, negatives(data, "test", tmp_path, count=20))
    assert path.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first, negatives(data, "test", tmp_path / "b", count=20))
    other = negatives(data, "test", tmp_path, count=20, seed=1)
    assert (first != other).any()
    negatives(data, "valid", tmp_path, count=20)
    negatives(data, "test", tmp_path, count=21)
    assert len(list((tmp_path / "negatives").iterdir())) == 4
    assert negatives(data.sealed(), "test", tmp_path, count=20).shape == (0, 20)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "pickle"])
def test_a_damaged_file_of_negatives_is_made_again(data: CrossData, tmp_path: Path, damage: str):
    first = np.array(negatives(data, "test", tmp_path, count=20))
    (path,) = (tmp_path / "negatives").iterdir()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        np.save(path, np.broadcast_to(data.test.targets[:, None].astype(np.int32), (60, 20)))
    else:
        np.save(path, np.full((60, 20), None), allow_pickle=True)
    np.testing.assert_array_equal(first, negatives(data, "test", tmp_path, count=20))
    assert [one.name for one in (tmp_path / "negatives").iterdir()] == [path.name]


def test_a_domain_of_one_item_has_nothing_to_rank_against(tmp_path: Path):
    published(
        tmp_path,
        Blist="1\tB1\t0\n",
        traindata_new=row(1, 1, (3, 1)),
        testdata_new=row(1, 1, (0, 1), (3, 2)),
    )
    with pytest.raises(DataError, match="Kitchen has one item"):
        negatives(load(tmp_path), "test", tmp_path)


# --- the real files, and the import -------------------------------------------------------------
FOOD = [f"cdsr/Food-Kitchen/{name}" for name in CDSR_FILES]


@needs(*FOOD)
def test_real_food_kitchen_has_the_evaluation_rows_of_table_1():
    data = load_cross_data("food-kitchen", DATA)
    assert (data.n_a, data.n_b, data.n_users) == (29_207, 34_886, 16_579)
    for split, sizes, events, ties in (
        ("valid", [2_722, 5_451], 80_447, 3_605),
        ("test", [2_747, 5_659], 82_787, 3_649),
    ):
        rows = data.split(split)
        assert np.bincount(data.domain_of(rows.targets)).tolist() == sizes
        assert len(rows.items) == events
        assert data.counts[f"{split} rows whose two last times tie"] == ties
        assert data.counts[f"{split} rows with a repeated item"] == 0
        assert (rows.lengths.min(), rows.lengths.max()) == (6, 15)
        one_row = np.diff(rows.times)
        inside = np.ones(len(one_row), bool)
        inside[rows.starts[1:-1] - 1] = False
        assert (one_row[inside] >= 0).all()
    np.testing.assert_array_equal(  # each user's latest sequence is in one of the two
        np.sort(np.concatenate([data.valid.users, data.test.users])), np.arange(16_579)
    )


def test_importing_the_module_loads_neither_torch_nor_polars_nor_pillow():
    code = (
        "import sys, reprokit.crossdata, reprokit.metadata;"
        "print([name for name in ('torch', 'polars', 'PIL', 'pandas') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert found.stdout == "[]\n"
