"""Amazon's 2014 metadata: small files as published, Python literals line by line."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from reprokit.datasets import DataError
from reprokit.metadata import RELATIONS, read_metadata

ASINS = ["", "B000000001", "B000000002", "B000000003"]  # the position is the item id


def write(path: Path, entries: list[dict[str, Any] | str]) -> Path:
    text = "".join(entry if isinstance(entry, str) else f"{entry!r}\n" for entry in entries)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def tea() -> dict[str, Any]:
    return {
        "asin": "B000000001",
        "related": {
            "also_bought": ["B000000003", "OUTSIDE001", "B000000003", "B000000001"],
            "bought_together": ["B000000002"],
            "also_viewed": ["OUTSIDE002"],
        },
        "title": 'Tom &amp; Jerry\'s\n  "best" tea',
        "price": 6.99,
        "salesRank": {"Grocery": 5},
        "imUrl": "http://images.example/1.jpg",
        "categories": [["Food", "Tea"], ["Food", "Gifts", ""]],
    }


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_wanted_items_are_read_and_others_left_out(tmp_path: Path, suffix: str):
    other = {"asin": "OUTSIDE001", "title": "Not ours", "related": {"also_bought": ASINS[1:]}}
    second = {"asin": "B000000002", "categories": [["Kitchen"], ["Food"]]}
    found = read_metadata([write(tmp_path / f"meta.json{suffix}", [other, tea(), second])], ASINS)
    assert found.titles == {"B000000001": 'Tom & Jerry\'s "best" tea'}
    assert found.image_urls == {"B000000001": "http://images.example/1.jpg"}
    assert list(found.edges) == list(RELATIONS)
    assert {name: edges.tolist() for name, edges in found.edges.items()} == {
        "also_bought": [[1, 3]],  # once, though it is printed twice
        "also_viewed": [],
        "buy_after_viewing": [],
        "bought_together": [[1, 2]],
    }
    assert {edges.shape[1] for edges in found.edges.values()} == {2}
    pairs = {(int(item), found.categories[at]) for item, at in found.item_categories}
    assert pairs == {(1, "Tea"), (1, "Gifts"), (2, "Kitchen"), (2, "Food")}
    assert len(found.item_categories) == len(pairs)
    assert found.counts == {
        "metadata entries": 2,
        "links to items outside, dropped": 2,
        "links to the item itself, dropped": 1,
        "links also_bought": 1,
        "links also_viewed": 0,
        "links buy_after_viewing": 0,
        "links bought_together": 1,
    }


@pytest.mark.parametrize(
    ("level", "names"),
    [
        (1, {"Food", "Home & Kitchen"}),
        (2, {"Tea", "Food", "Home & Kitchen", "Pots"}),
        (3, {"Green", "Black", "Food", "Home & Kitchen", "Pots"}),
    ],
)
def test_a_category_is_the_name_below_the_root_or_the_root_where_none_is(
    tmp_path: Path, level: int, names: set[str]
):
    ways = [
        ["Food", "Tea", "Green"],
        ["Food", "Tea", "Black"],
        ["Food"],
        ["Home &amp; Kitchen", ""],
    ]
    entry = {"asin": ASINS[1], "categories": [*ways, ["Home & Kitchen", " ", "Pots"], [], [""]]}
    path = write(tmp_path / "meta.json", [entry])
    found = read_metadata([path], ASINS, level)
    assert sorted(found.categories) == sorted(names)
    assert found.item_categories.tolist() == [[1, at] for at in range(len(names))]
    if level == 2:
        assert read_metadata([path], ASINS).categories == found.categories


def test_two_files_add_up_and_the_first_title_counts(tmp_path: Path):
    again = {"asin": "B000000001", "title": "Another", "related": {"also_viewed": ["B000000002"]}}
    paths = [write(tmp_path / "a.json", [tea()]), write(tmp_path / "b.json", [again])]
    found = read_metadata(paths, ASINS)
    assert found.titles["B000000001"].startswith("Tom & Jerry")
    assert found.edges["also_viewed"].tolist() == [[1, 2]]
    assert found.edges["also_bought"].tolist() == [[1, 3]]


def test_an_item_sold_in_both_domains_is_linked_at_both_ids(tmp_path: Path):
    path = write(tmp_path / "meta.json", [tea()])
    found = read_metadata([path], [*ASINS, "B000000001"])  # ids 1 and 4
    assert found.edges["bought_together"].tolist() == [[1, 2], [4, 2]]
    assert found.counts["links also_bought"] == 2


def test_no_files_give_nothing():
    found = read_metadata([], ASINS)
    assert (found.titles, found.categories, found.item_categories.shape) == ({}, [], (0, 2))
    assert all(edges.shape == (0, 2) for edges in found.edges.values())


def test_a_line_of_another_item_is_not_even_parsed(tmp_path: Path):
    broken = "{'asin': 'OUTSIDE001', 'title': \n"
    path = write(tmp_path / "meta.json", [broken, "\n", tea()])
    assert len(read_metadata([path], ASINS).titles) == 1


def test_an_asin_that_a_text_mentions_first_does_not_hide_the_entry(tmp_path: Path):
    entry = {"description": "{'asin': 'OUTSIDE001'}", **tea()}
    path = write(tmp_path / "meta.json", [entry])
    assert path.read_bytes().index(b"'asin': 'OUTSIDE001'") < path.read_bytes().index(b"B000000001")
    assert len(read_metadata([path], ASINS).titles) == 1


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{'asin': 'B000000001', 'title': \n", "not a Python literal"),
        ("{'asin': 'B000000001', 'title': __import__('os').getcwd()}\n", "not a Python literal"),
        ('{"asin": "B000000001", "title": null}\n', "not a Python literal"),
        ("['asin', 'B000000001']\n", "not a dict with the text 'asin'"),
        ("{'asin': 'B000000001', 'title': 5}\n", "'title' is not a text"),
        ("{'asin': 'B000000001', 'related': ['B']}\n", "'related' is not a dict of lists"),
        (
            "{'asin': 'B000000001', 'related': {'also_bought': 'B0'}}\n",
            "'related' is not a dict of lists",
        ),
        ("{'asin': 'B000000001', 'categories': ['Food']}\n", "'categories' is not a list of lists"),
        ("nothing of the kind\n", "not a Python literal"),
    ],
)
def test_a_faulty_line_is_named_and_never_run(tmp_path: Path, line: str, fault: str):
    path = write(tmp_path / "meta.json", [tea(), line])
    with pytest.raises(DataError, match=rf"meta\.json, line 2: {fault}") as error:
        read_metadata([path], ASINS)
    assert "\n" not in str(error.value)


def test_a_file_cut_short_is_named(tmp_path: Path):
    path = write(tmp_path / "meta.json.gz", [tea()] * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"meta\.json\.gz, after line \d+: .*cut short"):
        read_metadata([path], ASINS)
