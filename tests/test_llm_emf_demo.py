"""The demo of LLM-EMF as it ships: what the planted signals are worth. Some minutes."""

from pathlib import Path

import numpy as np
import pytest

from reprokit import crossdata, reproduce
from reprokit.plan import Request, plan
from reprokit.runs import Store


@pytest.mark.slow
def test_pictures_lift_the_demo_and_so_does_the_whole_model(tmp_path: Path):
    """Four seeds of Table 4 in the demo, the mean MRR of both domains, validation and test."""
    crossdata.made.cache_clear()
    crossdata.load_cross_data.cache_clear()
    planned = plan(Request(("llm_emf/table4",), seeds=4, out=tmp_path))
    outcome = reproduce.execute(planned, quiet=True)
    assert not outcome.failed
    store = Store(tmp_path)
    found: dict[str, list[float]] = {}
    for run in planned.runs:
        stored = store.load(run)
        assert stored is not None
        names = [f"{split}/{domain}/mrr" for split in ("valid", "test") for domain in "ab"]
        mean = float(np.mean([stored["metrics"][name] for name in names]))
        found.setdefault(run.settings.parts, []).append(mean)
    ids, text, image, both, whole = (
        np.mean(found[parts])
        for parts in ("id", "id,text", "id,image", "id,text,image", "id,text,llm,image")
    )
    assert ids < image < both, found
    assert text < both and ids < whole - 0.2, found
