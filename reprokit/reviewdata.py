"""The review data sets by name: the publishers' files, and synthetic stand-ins of the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from reprokit.data import Source
from reprokit.datasets import DataError
from reprokit.reviewfiles import (
    PICTURE_TYPES,
    load_products,
    load_restaurants,
    products,
    restaurants,
)
from reprokit.reviews import Reviews

if TYPE_CHECKING:
    from reprokit.synthetic import Config


# --- synthetic stand-ins ------------------------------------------------------------------------
def review_world() -> Config:
    """The world behind the demo's restaurants: its films.

    As in the release a restaurant has few reviews, so that its mean rating says little. What people
    like is cheap food and bright, warm, plain rooms, which the reviews name now and then and the
    pictures show; between the words about them stands chatter.
    """
    from reprokit.synthetic import Config

    return Config(
        n_users=1600,
        n_films=2400,
        n_books=0,
        events_per_user=12,
        book_share=0.0,
        user_bias=0.1,
        quality=0.1,
        price=2.0,
        genre=1.2,
        demographic=0.2,
        style=1.5,
        sequence=0.0,
        choice=0.0,
        noise=0.8,
        price_share=0.8,
    )


CHATTER = 4
"""Sentences of chatter in a review of the demo's restaurants."""


def product_world() -> Config:
    """The world behind the demo's products: its films; as in the Amazon files, nearly every review
    has a text."""
    from reprokit.synthetic import Config

    return Config(
        seed=1,
        n_users=800,
        n_films=150,
        n_books=0,
        events_per_user=12,
        book_share=0.0,
        review_share=0.99,
    )


def demo_restaurants(name: str) -> Reviews:
    """The world's restaurants in the release's layout, read as the release is."""
    from reprokit import synthetic, synthetic_media

    world = synthetic.make_world(review_world())
    files = synthetic_media.restaurant_reviews(world, chatter=CHATTER)
    paint = partial(synthetic_media.restaurant_photos, world)
    painter = synthetic_media.world_digest(world.config)[:16]
    return restaurants(name, files, {}, paint=paint, painter=painter)


def demo_products(name: str) -> Reviews:
    """The world's film reviews as product reviews, with times and without pictures."""
    from reprokit import synthetic, synthetic_media

    world = synthetic.make_world(product_world())
    rows, texts = synthetic.ratings(world), synthetic_media.reviews(world)
    who, what = [f"user-{user}" for user in rows.users], [f"film-{item}" for item in rows.items]
    of_rows = [texts[event] for event in rows.events]
    return products(name, who, what, rows.ratings, rows.times, of_rows, {})


# --- the data sets by name ----------------------------------------------------------------------
REVIEW_DATA: Mapping[str, Source] = {
    "google-restaurants": Source(
        partial(load_restaurants, "google-restaurants"),
        {
            "users": 37_000,
            "items": 30_000,
            "train": 87_013,
            "rows": 108_888,
            "pictures": 203_000,
        },
        registered="google-restaurants",
        files=("filter_all_t.json",),
        optional=tuple(f"google-restaurants/images/*{ending}" for ending in PICTURE_TYPES),
    ),
    "amazon-musical-instruments": Source(
        partial(load_products, "amazon-musical-instruments"),
        {"users": 1_429, "items": 900, "train": 8_208, "rows": 10_261, "pictures": 0},
        registered="amazon-musical-instruments",
        files=("reviews_Musical_Instruments_5.json.gz",),
        optional=tuple(f"amazon-2014/images/*{ending}" for ending in PICTURE_TYPES),
    ),
    "demo-google-restaurants": Source(
        partial(demo_restaurants, "demo-google-restaurants"),
        {"users": 1_600, "items": 2_096, "train": 6_370, "rows": 7_961, "pictures": 15_667},
        world=review_world,
        note="in place of the Google restaurants release: 1,600 synthetic people, 2,096 "
        "restaurants and painted pictures",
    ),
    "demo-amazon-musical-instruments": Source(
        partial(demo_products, "demo-amazon-musical-instruments"),
        {"users": 800, "items": 150, "train": 7_200, "rows": 9_000, "pictures": 0},
        world=product_world,
        note="in place of Amazon's musical instruments: 800 synthetic people and 150 films",
    ),
}
"""Each real data set has a synthetic one, `demo-` before its name. Users, items and pictures of the
restaurants are rounded: no page prints them exactly."""


def no_images(data: Reviews) -> str:
    """Why a row that needs pictures is not made, and where they are put."""
    reason, source = f"{data.name} has no images here", REVIEW_DATA.get(data.name)
    if source is None or source.synthetic:
        return reason
    name = "ASIN" if data.kind == "product" else "picture id"
    folder = Path(source.optional[0]).parent.as_posix()
    return (
        f"{reason}: put them into {folder}/<{name}>.jpg of the data directory, or: "
        f"python -m reprokit data fetch {source.registered} --images"
    )


@lru_cache(maxsize=2)
def load_reviews(name: str, data_dir: Path, fingerprint: str = "") -> Reviews:
    """A data set by name, kept for the runs that follow while its fingerprint is the same."""
    source = REVIEW_DATA[name]
    load: Callable[..., Reviews] = source.load
    if source.synthetic:
        return load()
    try:
        return load(*source.paths(data_dir))
    except OSError as error:
        raise DataError(f"{name} in {data_dir} cannot be read: {error}") from None
