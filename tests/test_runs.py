"""Identity of a run, and the store."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from reprokit.runs import Result, Run, Store, alone, atomic, setting


@dataclass(frozen=True)
class Settings:
    lr: float = setting(0.1, "a test")


RUN = Run("paper", "mf", "ml-1m", Settings(), 0, "f00d")
RESULT = Result(
    {"test/auc": 0.75},
    {"test/scores": np.array([0.5, 0.25], np.float32)},
    notes=("prompts were cut",),
)


@pytest.mark.parametrize(
    "change",
    [
        {"system": "other"},
        {"dataset": "amazon-book"},
        {"settings": Settings(lr=0.2)},
        {"seed": 1},
        {"fingerprint": "beef"},
        {"revision": 2},
        {"backbone": "hub org/name@beef"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_the_outcome_decides_the_identity(change: dict[str, object]):
    assert dataclasses.replace(RUN, **change).id != RUN.id  # type: ignore[arg-type]
    assert dataclasses.replace(RUN).id == RUN.id


def test_a_result_comes_back_as_it_was_saved(tmp_path: Path):
    store = Store(tmp_path)
    assert store.load(RUN) is None
    store.save(RUN, RESULT, {"seconds": 2.0})
    stored = store.load(RUN)
    assert stored is not None
    assert stored["metrics"] == {"test/auc": 0.75}
    assert stored["run"]["settings"] == {"lr": 0.1}
    assert stored["notes"] == ["prompts were cut"]
    np.testing.assert_array_equal(
        store.predictions(RUN)["test/scores"], RESULT.predictions["test/scores"]
    )


def test_saving_removes_what_a_killed_start_left_and_discarding_everything(tmp_path: Path):
    store = Store(tmp_path)
    store.folder.mkdir()
    store.path(RUN, ".error.txt").write_text("an earlier failure")
    half = store.folder / f".{RUN.id}.json.x1y2.part"
    half.write_bytes(b"half")
    fresh = store.folder / f".{RUN.id}.npz.z3.part"
    fresh.write_bytes(b"being written by another process")
    os.utime(half, (0, 0))
    store.save(RUN, RESULT, {"seconds": 2.0})
    assert not store.path(RUN, ".error.txt").exists() and not half.exists()
    assert fresh.exists()
    fresh.unlink()
    store.discard(RUN)
    assert list(store.folder.iterdir()) == []


def test_the_same_result_is_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        Store(tmp_path / name).save(RUN, RESULT, {"seconds": 2.0})
    for suffix in (".json", ".npz"):
        one, other = (Store(tmp_path / name).path(RUN, suffix).read_bytes() for name in ("a", "b"))
        assert one == other


@pytest.mark.parametrize(
    "damage", ["cut", "edited", "foreign", "no predictions", "other predictions"]
)
def test_a_damaged_result_is_named_and_not_believed(tmp_path: Path, damage: str):
    store = Store(tmp_path)
    store.save(RUN, RESULT, {"seconds": 2.0})
    path, predictions = store.path(RUN), store.path(RUN, ".npz")
    if damage == "cut":
        path.write_text(path.read_text()[:-20])
    if damage == "edited":
        path.write_text(path.read_text().replace("0.75", "0.95"))
    if damage == "foreign":
        other = dataclasses.replace(RUN, seed=7)
        store.save(other, RESULT, {"seconds": 2.0})
        path.write_bytes(store.path(other).read_bytes())
    if damage == "no predictions":
        predictions.unlink()
    if damage == "other predictions":
        predictions.write_bytes(predictions.read_bytes()[:-1])
    assert store.load(RUN) is None
    assert RUN.id in store.damaged[RUN.id]
    store.save(RUN, RESULT, {"seconds": 2.0})
    assert store.load(RUN) is not None


def test_settings_that_hold_tuples_come_back(tmp_path: Path):
    @dataclass(frozen=True)
    class Layers:
        sizes: tuple[int, ...] = setting((64, 32), "a test")

    run = dataclasses.replace(RUN, settings=Layers())
    store = Store(tmp_path)
    store.save(run, RESULT, {"seconds": 2.0})
    assert store.load(run) is not None
    assert store.times() == {dataclasses.replace(run, seed=9).kind: 2.0}


def test_a_file_being_written_never_shows_half(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as file:
        file.write("new, but ")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_time_of_finished_seeds_forecasts_the_next(tmp_path: Path):
    store = Store(tmp_path)
    assert store.times() == {}
    for seed, seconds in ((1, 2.0), (2, 4.0)):
        store.save(dataclasses.replace(RUN, seed=seed), RESULT, {"seconds": seconds})
    other = dataclasses.replace(RUN, seed=3, settings=Settings(lr=0.5))
    store.save(other, RESULT, {"seconds": 100.0})
    assert store.times() == {RUN.kind: 3.0, other.kind: 100.0}


def test_only_one_command_at_a_time_makes_what_stands_at_a_path(tmp_path: Path):
    inside, most = [], []

    def work(number: int) -> None:
        with alone(tmp_path / "made" / "vectors.npy"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5
