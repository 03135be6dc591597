"""Which pictures a data set has and where they are, and what fetching them would take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from photo_server import Server, drawn, fetch, server

from reprokit import photos
from reprokit.datasets import DataError, dataset
from reprokit.photos import Counts, picture_addresses
from reprokit.reviewfiles import picture_files
from reprokit.runs import RequestError
from reprokit.synthetic import Config, make_world
from reprokit.synthetic_media import restaurant_reviews

__all__ = ["server"]  # the fixture


def restaurants(data_dir: Path, content: Any) -> Path:
    path = data_dir / "google-restaurants/filter_all_t.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_restaurant_pictures_are_those_of_all_reviews_each_once(tmp_path: Path):
    world = restaurant_reviews(
        make_world(Config(n_users=8, n_films=30, n_books=10, events_per_user=6))
    )
    restaurants(tmp_path, world)
    pics = [pic for part in world.values() for row in part for pic in row["pics"]]
    places = picture_addresses("google-restaurants", tmp_path)
    assert list(places.addresses) == list(dict.fromkeys(pics)) and len(pics) > 10
    assert places.without == 0
    name, address = next(iter(places.addresses.items()))
    assert address == f"https://lh5.googleusercontent.com/p/{name}"


def test_another_address_of_restaurant_pictures(tmp_path: Path):
    row = {"pics": ["AF1QipA", "AF1QipB"]}
    content = {"train": [row], "val": [{"pics": None}, {}], "test": [{"pics": ["AF1QipA"]}]}
    restaurants(tmp_path, content)
    url = "https://example.org/{id}=w600"
    assert picture_addresses("google-restaurants", tmp_path, url).addresses == {
        "AF1QipA": "https://example.org/AF1QipA=w600",
        "AF1QipB": "https://example.org/AF1QipB=w600",
    }
    for wrong in ("https://example.org/", "file:///{id}", "{id}"):
        with pytest.raises(RequestError, match="expected an http"):
            picture_addresses("google-restaurants", tmp_path, wrong)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no list 'train' in it"),
        ({"train": [], "val": []}, "no list 'test' in it"),
        ({"train": [{"pics": "abc"}], "val": [], "test": []}, "train, record 0: 'pics' is not"),
        ({"train": [], "val": [{}, {"pics": [1]}], "test": []}, "val, record 1: 'pics' is not"),
        ({"train": ["x"], "val": [], "test": []}, "train, record 0: 'pics' is not"),
    ],
)
def test_a_file_of_another_layout_is_named_with_its_fault(
    content: Any, message: str, tmp_path: Path
):
    restaurants(tmp_path, content)
    with pytest.raises(DataError, match=message):
        picture_addresses("google-restaurants", tmp_path)


def test_a_damaged_or_missing_file_of_reviews_is_one_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"missing\. Fetch it: .* data fetch google-restaurants"):
        picture_addresses("google-restaurants", tmp_path)
    restaurants(tmp_path, {}).write_text('{"train": [')
    with pytest.raises(DataError, match=r"filter_all_t\.json: cannot be read"):
        picture_addresses("google-restaurants", tmp_path)


def items(data_dir: Path) -> None:
    folder = data_dir / "cdsr/Food-Kitchen"
    folder.mkdir(parents=True)
    (folder / "Alist.txt").write_text("76407\tB0028A8ZEI\t0\n15157\tB001D9OVQ6\t1\n")
    (folder / "Blist.txt").write_text("45309\tB001802PIQ\t0\n")


def metadata(data_dir: Path, category: str, **addresses: str) -> None:
    path = data_dir / f"amazon-2014/meta_{category}.json"
    path.parent.mkdir(exist_ok=True)
    entries = [{"asin": asin, "imUrl": address} for asin, address in addresses.items()]
    path.write_text("".join(f"{entry!r}\n" for entry in entries))


def test_item_pictures_are_where_the_metadata_of_both_domains_say(tmp_path: Path):
    items(tmp_path)
    icon = "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB192198896_.gif"
    tea = "http://ecx.images-amazon.com/images/I/51tea%2BL.jpg"
    food = {"B0028A8ZEI": tea, "B001D9OVQ6": icon, "OTHER": tea}
    metadata(tmp_path, "Grocery_and_Gourmet_Food", **food)
    metadata(tmp_path, "Home_and_Kitchen", B001802PIQ="http://ecx.images-amazon.com/pan.jpg")
    places = picture_addresses("cdsr-food-kitchen", tmp_path)
    pan = "http://ecx.images-amazon.com/pan.jpg"
    assert places.addresses == {"B0028A8ZEI": tea, "B001802PIQ": pan}
    assert places.without == 1


def test_without_the_metadata_one_line_says_what_to_put_where(tmp_path: Path):
    items(tmp_path)
    metadata(tmp_path, "Grocery_and_Gourmet_Food")
    with pytest.raises(DataError) as error:
        picture_addresses("cdsr-food-kitchen", tmp_path)
    where = tmp_path / "amazon-2014/meta_Home_and_Kitchen.json.gz"
    assert str(error.value).startswith(f"{where} missing: ")
    assert photos.AMAZON_2014 in str(error.value) and "Grocery" not in str(error.value)
    url = "https://example.org/{id}.jpg"  # a pattern needs no metadata
    found = picture_addresses("cdsr-food-kitchen", tmp_path, url)
    assert found.addresses["B001802PIQ"] == "https://example.org/B001802PIQ.jpg"
    assert len(found.addresses) == 3


def reviews(data_dir: Path, category: str, *asins: str) -> None:
    path = data_dir / f"amazon-2014/reviews_{category}_5.json"
    path.parent.mkdir(exist_ok=True)
    more = {"reviewerID": "u", "overall": 5.0, "unixReviewTime": 1}
    path.write_text("".join(json.dumps({"asin": asin, **more}) + "\n" for asin in asins))


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("amazon-musical-instruments", "Musical_Instruments"),
        ("amazon-movies-2014", "Movies_and_TV"),
    ],
)
def test_pictures_of_reviewed_products_are_where_the_metadata_of_their_category_say(
    name: str, category: str, tmp_path: Path
):
    reviews(tmp_path, category, "B2", "B1", "B2", "B3")
    with pytest.raises(DataError) as error:
        picture_addresses(name, tmp_path)
    where = tmp_path / f"amazon-2014/meta_{category}.json.gz"
    assert str(error.value).startswith(f"{where} missing: ") and "\n" not in str(error.value)
    url = "https://example.org/{id}.jpg"  # a pattern needs no metadata
    assert list(picture_addresses(name, tmp_path, url).addresses) == ["B2", "B1", "B3"]
    of_items = {"B1": "http://e.org/1.jpg", "B2": "http://e.org/2.jpg", "OTHER": "http://e.org/o"}
    metadata(tmp_path, category, **of_items)
    places = picture_addresses(name, tmp_path)
    assert list(places.addresses.items()) == [
        ("B2", "http://e.org/2.jpg"),
        ("B1", "http://e.org/1.jpg"),
    ]
    assert places.without == 1


def test_pictures_of_products_that_are_fetched_are_those_that_are_read(
    server: Server, tmp_path: Path
):
    reviews(tmp_path, "Musical_Instruments", "B1", "B2", "B3")
    metadata(
        tmp_path,
        "Musical_Instruments",
        **{**server.put("B1"), **server.put("B2", body=drawn("PNG"))},
    )
    places = picture_addresses("amazon-musical-instruments", tmp_path)
    folder = tmp_path / dataset("amazon-musical-instruments").folder / "images"
    assert fetch(places.addresses, folder) == Counts(wanted=2, fetched=2)
    assert {key: path.name for key, path in picture_files(folder).items()} == {
        "B1": "B1.jpg",
        "B2": "B2.png",
    }


def test_other_data_sets_have_no_pictures_to_fetch(tmp_path: Path):
    with pytest.raises(RequestError, match="ml-1m has no pictures to fetch; --images is for"):
        picture_addresses("ml-1m", tmp_path)
    with pytest.raises(DataError, match="Did you mean 'google-restaurants'"):
        picture_addresses("google-restaurant", tmp_path)


def test_the_outlook_tells_time_and_disk(tmp_path: Path):
    places = photos.Places({f"p{n}": "https://example.org/p" for n in range(203_000)}, 7)
    told = photos.outlook(places, tmp_path / "images")
    assert told.startswith("203,000 pictures wanted (7 items have no address), 0 here, 0 known")
    assert "203,000 to ask for, at most 5 a second: 11.3 h or more; disk about 12.2 GB" in told
    assert "our guess" in told
    (tmp_path / "p0.jpg").write_bytes(b"x" * 2000)
    told = photos.outlook(places, tmp_path, rate=2.0, limit=600)
    assert "600 to ask for, at most 2 a second: 5 min or more; disk about 1 MB (2 kB each" in told


def test_the_module_loads_neither_torch_nor_pillow():
    code = "import sys, reprokit.photos; assert not {'torch', 'PIL', 'rich'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
