"""The demo of MMREC as it ships: what the planted signals are worth. Some minutes."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from reprokit import reproduce, reviewdata
from reprokit.plan import Request, plan
from reprokit.runs import Store


@pytest.mark.slow
def test_the_proposed_model_has_fewer_false_positives_and_a_leak_makes_a_gap(tmp_path: Path):
    """Four seeds of the rows with basic weights, and of the leakage table."""
    reviewdata.load_reviews.cache_clear()
    planned = plan(
        Request(
            ("mmrec/table2", "mmrec/leakage"), rows=("basic", "proposed,"), seeds=4, out=tmp_path
        )
    )
    outcome = reproduce.execute(planned, quiet=True)
    assert not outcome.failed and not outcome.unavailable
    store = Store(tmp_path)
    test, gap = defaultdict(list), defaultdict(list)
    for run in planned.wanted:
        stored = store.load(run)
        assert stored is not None
        s, rates = run.settings, stored["metrics"]
        if run.system == "constant" or s.weighting != "basic":
            continue
        if s.parts == "text,image" and getattr(s, "leakage", "") != "as_printed":
            test[run.system].append(rates["test/fpr"])
        if run.system == "proposed" and s.dropout == 0.1:
            gap[s.leakage].append(rates["test/fpr"] - rates["train/fpr"])
    means = {name: float(np.mean(found)) for name, found in test.items()}
    assert len(test["proposed"]) == len(test["baseline"]) == 12
    assert means["proposed"] < means["baseline"] - 3, means
    gaps = {name: float(np.mean(found)) for name, found in gap.items()}
    assert gaps["as_printed"] > gaps["exclude_current"] + 4, gaps
