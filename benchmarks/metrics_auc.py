"""Time of `reprokit.metrics.auc` beside scikit-learn's `roc_auc_score`, same arrays, one process.

Run: python benchmarks/metrics_auc.py

The two are called in turn, so that a busy machine slows both; the medians, their ratio and the
largest difference of the results are printed. "ties" are scores rounded to three decimals. The
ratio depends on how fast numpy sorts on the processor at hand.
"""

import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # also runs from a checkout

from reprokit.metrics import auc

REPEATS = {10_000: 51, 1_000_000: 11}


def seconds(function, labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    start = perf_counter()
    value = function(labels, scores)
    return perf_counter() - start, float(value)


def main() -> None:
    print(f"numpy {np.__version__}, scikit-learn {sklearn.__version__}")
    print("| rows | scores | ours, ms | scikit-learn, ms | ratio | difference |")
    print("| --- | --- | --- | --- | --- | --- |")
    generator = np.random.default_rng(0)
    for rows, repeats in REPEATS.items():
        labels = generator.integers(0, 2, rows)
        continuous = generator.normal(size=rows) + labels
        for name, scores in (
            ("float64", continuous),
            ("float32", continuous.astype(np.float32)),
            ("float64, ties", continuous.round(3)),
        ):
            times: dict[str, list[float]] = {"ours": [], "theirs": []}
            for _ in range(repeats):
                ours, value = seconds(auc, labels, scores)
                theirs, reference = seconds(roc_auc_score, labels, scores)
                times["ours"].append(ours)
                times["theirs"].append(theirs)
            ours, theirs = median(times["ours"]), median(times["theirs"])
            print(
                f"| {rows:,} | {name} | {1000 * ours:.2f} | {1000 * theirs:.2f} "
                f"| {theirs / ours:.1f}x | {abs(value - reference):.0e} |"
            )


if __name__ == "__main__":
    main()
