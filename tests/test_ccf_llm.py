"""The rows of CCF-LLM that are built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DATA, needs
from sklearn.metrics import roc_auc_score

from reprokit import ccf_llm, data
from reprokit.ccf_llm import SYSTEMS, click_metrics
from reprokit.data import load_click_data
from reprokit.progress import Progress
from reprokit.runs import Job, Result, Run, Store


def execute(system: str, dataset: str, data_dir: Path, tmp_path: Path, **chosen: Any) -> Result:
    preset = "demo" if dataset.startswith("demo-") else "small"
    settings = SYSTEMS[system].configure(dataset.removeprefix("demo-"), preset, chosen)
    run = Run("ccf_llm", system, dataset, settings, 0, "")
    job = Job(run, data_dir, tmp_path / "x.ckpt.safetensors", 20, Progress(quiet=True))
    return SYSTEMS[system].execute(job)


@pytest.mark.parametrize("system", ["mf", "lightgcn", "sasrec"])
def test_each_model_beats_chance_on_the_planted_data(system: str, tmp_path: Path):
    """Chance is 0.50 with a standard error of about 0.015 on these test rows."""
    result = execute(system, "demo-ml-1m", tmp_path, tmp_path)
    assert result.metrics["test/auc"] > 0.6
    assert result.selection["split"] == "valid"
    assert result.selection["value"] == pytest.approx(result.metrics["valid/auc"], abs=1e-6)


def shuffle_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and validation labels, and the histories made of them, in random order."""
    real = data.ctr_split

    def shuffled(name: str, events: data.Events, part: np.ndarray, *rest: Any) -> data.CTRData:
        rng = np.random.default_rng(0)
        ratings = events.ratings.copy()
        for index in (0, 1):
            ratings[part == index] = rng.permutation(ratings[part == index])
        return real(name, dataclasses.replace(events, ratings=ratings), part, *rest)

    monkeypatch.setattr(data, "ctr_split", shuffled)


@pytest.mark.parametrize("system", ["mf", "lightgcn", "sasrec", "bias-only", "like-rate"])
def test_shuffled_labels_give_chance(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Test labels are true. Chance is 0.50 with a standard error of 0.015 on these rows."""
    shuffle_labels(monkeypatch)
    data.load_click_data.cache_clear()
    result = execute(system, "demo-ml-1m", tmp_path, tmp_path)
    data.load_click_data.cache_clear()
    assert result.metrics["test/auc"] == pytest.approx(0.5, abs=0.05)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
@pytest.mark.parametrize("system", ["mf", "lightgcn", "bias-only", "like-rate"])
def test_shuffled_labels_give_chance_on_movielens_1m(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shuffle_labels(monkeypatch)
    data.load_click_data.cache_clear()
    short = {"patience": 5} if system in ("mf", "lightgcn") else {}
    result = execute(system, "ml-1m", DATA, tmp_path, **short)
    data.load_click_data.cache_clear()
    assert result.metrics["test/auc"] == pytest.approx(0.5, abs=0.025)


def test_every_metric_can_be_recomputed_from_the_stored_predictions(tmp_path: Path):
    result = execute("like-rate", "demo-ml-1m", tmp_path, tmp_path)
    settings = SYSTEMS["like-rate"].settings()
    store, run = Store(tmp_path), Run("ccf_llm", "like-rate", "demo-ml-1m", settings, 0, "")
    store.save(run, result, {"seconds": 0.0})
    stored, kept = store.load(run), store.predictions(run)
    assert stored is not None
    assert click_metrics(kept) == stored["metrics"]
    labels, scores, warm = (kept[f"test/{name}"] for name in ("labels", "scores", "warm"))
    metrics = stored["metrics"]
    assert metrics["test/auc"] == pytest.approx(roc_auc_score(labels, scores))
    assert metrics["test/auc_cold"] == pytest.approx(roc_auc_score(labels[~warm], scores[~warm]))
    assert metrics["test/rows_warm"] + metrics["test/rows_cold"] == len(labels)
    loaded = load_click_data("demo-ml-1m", tmp_path)
    np.testing.assert_array_equal(kept["test/items"], loaded.item_ids[loaded.test.items])


def test_a_group_of_rows_with_one_class_has_no_auc():
    predictions = {}
    for split in ("valid", "test"):
        predictions |= {
            f"{split}/users": np.array([1, 1, 2]),
            f"{split}/labels": np.array([0, 1, 1]),
            f"{split}/warm": np.array([True, True, False]),
            f"{split}/scores": np.array([0.1, 0.2, 0.3]),
        }
    metrics = click_metrics(predictions)
    assert metrics["test/auc_warm"] == 1.0
    assert "test/auc_cold" not in metrics and "test/uauc_cold" not in metrics


def test_sanity_rows_use_training_labels_alone(tmp_path: Path):
    """The like-rate by hand, for one item."""
    loaded = load_click_data("demo-ml-1m", tmp_path)
    result = execute("like-rate", "demo-ml-1m", tmp_path, tmp_path)
    item = int(loaded.test.items[0])
    rated = loaded.train.labels[loaded.train.items == item]
    expected = (rated.sum() + 5 * loaded.train.labels.mean()) / (len(rated) + 5)
    assert result.predictions["test/scores"][0] == pytest.approx(expected)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
@pytest.mark.parametrize(("system", "expected"), [("like-rate", 0.709), ("bias-only", 0.736)])
def test_sanity_rows_on_movielens_1m_equal_an_independent_count(
    system: str, expected: float, tmp_path: Path
):
    result = execute(system, "ml-1m", DATA, tmp_path)
    assert result.metrics["test/auc"] == pytest.approx(expected, abs=0.003)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
def test_lightgcn_on_movielens_1m_lands_near_the_published_auc(tmp_path: Path):
    """Print 0.5959; five seeds of an independent implementation span 0.582 to 0.609."""
    result = execute("lightgcn", "ml-1m", DATA, tmp_path, patience=10)
    assert result.metrics["test/auc"] == pytest.approx(0.5959, abs=0.02)


@needs("ml-1m/ratings.dat", "ml-1m/movies.dat")
def test_mf_on_movielens_1m_lands_near_the_published_auc(tmp_path: Path):
    """Print 0.6482; five seeds of an independent implementation span 0.641 to 0.656."""
    result = execute("mf", "ml-1m", DATA, tmp_path)
    assert result.metrics["test/auc"] == pytest.approx(0.6482, abs=0.02)


def test_settings_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="dim is out of range, got 0"):
        ccf_llm.CFSettings(dim=0)


def test_every_setting_has_a_reason():
    for name, system in SYSTEMS.items():
        for item in dataclasses.fields(system.settings):
            assert item.metadata["why"], f"{name}.{item.name}"
        for preset in ("demo", "small", "paper"):
            for dataset in ("ml-1m", "amazon-book"):
                system.configure(dataset, preset, {})
