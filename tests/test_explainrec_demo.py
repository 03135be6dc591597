"""The demo of ExplainRec as it ships: what the planted signals are worth. Some minutes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprokit import ratings, reproduce
from reprokit.plan import Request, plan
from reprokit.runs import Store

SEEDS = 3
FULL = "ExplainRec (Full)"


@pytest.fixture(autouse=True)
def fresh_data() -> Iterator[None]:
    """No data that a test with a smaller world has left."""
    ratings.load_feedback.cache_clear()
    yield
    ratings.load_feedback.cache_clear()


def found(
    out: Path, target: str, dataset: str, labels: tuple[str, ...], *overrides: str
) -> dict[str, list[dict[str, Any]]]:
    """Metrics by row, seed by seed, of one data set; every rated test row counts."""
    planned = plan(Request((target,), rows=labels, seeds=SEEDS, out=out, overrides=overrides))
    spots = [
        spot
        for spot in planned.spots
        if spot.row and spot.row.label in labels and any(r.dataset == dataset for r in spot.runs)
    ]
    planned = dataclasses.replace(planned, spots=tuple(spots))
    outcome = reproduce.execute(planned, quiet=True)
    assert not outcome.failed and not outcome.unavailable
    store, metrics = Store(out), {}
    for spot in spots:
        assert spot.row
        stored = [store.load(run) for run in spot.runs]
        metrics[spot.row.label] = [one["metrics"] for one in stored if one]
    assert all(len(metrics[label]) == SEEDS for label in labels)
    return metrics


def mean(metrics: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([one[name] for one in metrics]))


def shown(metrics: dict[str, list[dict[str, Any]]], *names: str) -> str:
    """Numbers by row and seed, for the report of a failure."""
    lines = [
        f"{label}, {name}: " + " ".join(f"{one[name]:.4f}" for one in rows)
        for label, rows in metrics.items()
        for name in names
    ]
    return "\n".join(lines)


@pytest.mark.slow
def test_learnt_reasons_are_nearer_to_the_references_and_pictures_and_texts_lift_the_auc(
    tmp_path: Path,
):
    labels = (FULL, "w/o Preference Attribution", "w/o Multi-modal")
    more = ("explainrec.rated_rows=0", "explainrec.explain_rows=200")
    metrics = found(tmp_path, "explainrec/table2", "demo-ml-25m", labels, *more)
    report = shown(metrics, "test/bleu", "test/auc", "test/ndcg@10", "valid/auc")
    print(report)
    full, silent, blind = (metrics[label] for label in labels)
    assert mean(full, "test/bleu") > mean(silent, "test/bleu") + 0.05, report
    assert mean(full, "test/auc") > mean(blind, "test/auc"), report


@pytest.mark.slow
def test_pictures_and_texts_lift_the_rankers(tmp_path: Path):
    labels = ("LightGCN", "LATTICE", "VBPR")
    systems = ("lightgcn", "lattice", "vbpr")
    more = [f"{name}.{key}=0" for name in systems for key in ("rated_rows", "rank_rows")]
    metrics = found(tmp_path, "explainrec/table1", "demo-ml-25m", labels, *more)
    report = shown(metrics, "test/auc", "test/ndcg@10")
    print(report)
    for name in ("test/auc", "test/ndcg@10"):
        best = max(mean(metrics[label], name) for label in ("VBPR", "LATTICE"))
        assert best > mean(metrics["LightGCN"], name), report


@pytest.mark.slow
def test_the_knowledge_base_lifts_new_users(tmp_path: Path):
    labels = ("ExplainRec", "ExplainRec w/o Zero-shot Transfer")
    metrics = found(
        tmp_path, "explainrec/table3", "demo-ml-25m-cold", labels, "explainrec.rated_rows=0"
    )
    report = shown(metrics, "test/new_users/auc", "test/new_items/auc", "valid/auc")
    print(report)
    full, without = (metrics[label] for label in labels)
    assert mean(full, "test/new_users/auc") > mean(without, "test/new_users/auc"), report
