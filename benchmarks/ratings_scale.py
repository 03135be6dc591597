"""Time and memory of ExplainRec's data at the size of MovieLens-25M: loading, splits, histories.

Run: python benchmarks/ratings_scale.py FOLDER [--rows N]

Writes FOLDER/ml-25m/ratings.csv and movies.csv in the publisher's format unless they are there:
25,000,095 invented half-star ratings of 162,541 users on 59,047 of 62,423 films, in the order of
the release (by user, then film), so that the times have to be sorted. A process of its own then
loads them as a run would, and builds the histories of 100,000 random rows: the last 10 liked and
the last 10 disliked films of each. Seconds are given as wall time and as time of the processor,
user and system, because others may use the machine; the peak memory is the largest resident size
of that process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also runs from a checkout

from reprokit.provenance import peak_memory

ROWS, USERS, RATED, FILMS = 25_000_095, 162_541, 59_047, 62_423  # of the release
FIRST, LAST = 789_652_009, 1_574_327_703  # 1995 to 2019
SAMPLE, LENGTH = 100_000, 10


def generate(folder: Path, rows: int) -> None:
    """The two files. Users and films have a long tail; a user's ratings come in sessions."""
    import polars as pl

    rng = np.random.default_rng(0)
    share = (rows / ROWS) ** 0.5  # fewer rows: the same share of all pairs
    n_users, n_rated, n_films = (max(40, int(n * share)) for n in (USERS, RATED, FILMS))
    film_ids = np.sort(rng.choice(np.arange(1, 209_172), n_films, replace=False))
    rated = np.sort(rng.choice(film_ids, n_rated, replace=False))
    pairs = _pairs(rng, rows, n_users, n_rated)
    users, items = np.divmod(pairs, n_rated)
    joined = rng.integers(FIRST, LAST, n_users)
    days = rng.integers(0, 1 + (rng.random(n_users) < 0.3) * 1000, n_users)  # most come once
    times = joined[users] + (rng.random(rows) * days[users]).astype(np.int64) * 86_400
    times = np.minimum(times + rng.integers(0, 7_200, rows), LAST)
    table = pl.DataFrame(
        {
            "userId": users + 1,
            "movieId": rated[items],
            "rating": np.clip(np.rint(rng.normal(7, 2, rows)), 1, 10) / 2,
            "timestamp": times,
        }
    )
    table.write_csv(folder / "ratings.csv")
    names = [f"Film, The {number} ({1920 + number % 100})" for number in film_ids]
    genres = [("Drama", "Comedy|Romance", "(no genres listed)")[n % 3] for n in film_ids]
    films = pl.DataFrame({"movieId": film_ids, "title": names, "genres": genres})
    films.write_csv(folder / "movies.csv")


def _pairs(rng: np.random.Generator, rows: int, n_users: int, n_items: int) -> np.ndarray:
    """Distinct pairs, sorted, as user * n_items + item; each user and each item has one or more."""
    popularity = (1 / (np.arange(n_items) + 60) ** 1.1).cumsum()
    popularity /= popularity[-1]
    activity = rng.lognormal(0, 1.3, n_users)
    sure = np.concatenate(
        [
            np.arange(n_users) * n_items + rng.integers(0, n_items, n_users),
            rng.integers(0, n_users, n_items) * n_items + np.arange(n_items),
        ]
    )
    wanted = 1.2 * rows
    while True:
        # A user with n ratings has one in each of n equal parts of all popularity; a film that
        # fills several parts counts once.
        sizes = 1 + np.minimum(activity * wanted / activity.sum(), 0.5 * n_items).astype(np.int64)
        users = np.repeat(np.arange(n_users), sizes)
        place = np.arange(len(users)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        at = (place + rng.random(len(users))) / sizes[users]
        items = np.minimum(np.searchsorted(popularity, at), n_items - 1)
        pairs = np.unique(np.concatenate([users * n_items + items, sure]))
        if len(pairs) >= rows:
            break
        wanted *= 1.2
    free = np.ones(len(pairs), bool)
    free[np.searchsorted(pairs, sure)] = False
    surplus = rng.choice(np.flatnonzero(free), len(pairs) - rows, replace=False)
    return np.delete(pairs, surplus)


class Clock:
    """Wall and processor seconds of steps, and the peak memory after each."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, float, float, float]] = []

    def __call__(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            wall, busy = perf_counter(), sum(os.times()[:2])
            value = function(*arguments, **named)
            passed = perf_counter() - wall, sum(os.times()[:2]) - busy
            self.lines.append((name, *passed, peak_memory() / 2**30))
            return value

        return timed


def measure(folder: Path) -> None:
    from reprokit import ratingfiles, ratings

    clock = Clock()
    steps = {"read_csv_ratings": ratingfiles, "ordered": ratingfiles, "split_by_user": ratings}
    for name, module in steps.items():
        setattr(module, name, clock(f"of it {name}", getattr(module, name)))
    data = clock("load_feedback", ratings.load_feedback)("ml-25m", folder)
    rows = np.random.default_rng(1).integers(0, len(data), SAMPLE)
    clock("events by label", lambda: data.by_label)()
    for name, label in (("liked", 1), ("disliked", 0)):
        found = clock(f"histories, {name}", data.histories)(rows, LENGTH, label)
        assert found.shape == (SAMPLE, LENGTH)
    clock("sealed", data.sealed)()
    print("| step | wall, s | user and system, s | peak so far, GiB |")
    print("| --- | ---: | ---: | ---: |")
    for name, wall, busy, peak in clock.lines:
        print(f"| {name} | {wall:.2f} | {busy:.2f} | {peak:.2f} |")
    print({key: f"{value:,}" for key, value in data.counts.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--step", choices=("generate", "measure"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "generate":
        return generate(options.folder / "ml-25m", options.rows)
    if options.step == "measure":
        return measure(options.folder)
    folder = options.folder / "ml-25m"
    folder.mkdir(parents=True, exist_ok=True)
    steps = ["measure"] if (folder / "movies.csv").is_file() else ["generate", "measure"]
    for step in steps:  # in processes of their own, so that each has a peak memory of its own
        command = [sys.executable, __file__, str(options.folder), "--rows", str(options.rows)]
        subprocess.run([*command, "--step", step], check=True)


if __name__ == "__main__":
    main()
