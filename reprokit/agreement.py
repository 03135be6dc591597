"""Statistics of ratings that several people gave to the same things: intervals, paired tests,
agreement. Arrays in, numbers out; nan is a rating that nobody gave.

Importing this module does not load scipy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Bootstrap:
    """95% intervals of means over raters and cases that are drawn anew together."""

    def __init__(self, raters: int, cases: int, draws: int = 2000, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 1])
        self.raters = rng.multinomial(raters, np.full(raters, 1 / raters), draws)  # (draws, R)
        self.cases = rng.multinomial(cases, np.full(cases, 1 / cases), draws)  # (draws, C)

    def interval(self, values: np.ndarray) -> tuple[float, float] | None:
        """Of the mean of (R, C) values, nan left out; None for fewer than two of them."""
        given = ~np.isnan(values)
        if given.sum() < 2:
            return None
        total = ((self.raters @ np.where(given, values, 0.0)) * self.cases).sum(1)
        count = ((self.raters @ given.astype(float)) * self.cases).sum(1)
        drawn = total[count > 0] / count[count > 0]  # a draw may miss every rating
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(low), float(high)


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Wilcoxon's signed-rank test of paired ratings, nan left out, and the rank-biserial
    correlation: (W+ - W-) / (W+ + W-), from -1 to 1, positive where the first is higher.

    Pairs without a difference are dropped (Wilcoxon's own rule); of none that differs, p is 1.
    """
    from scipy.stats import rankdata, wilcoxon

    both = ~np.isnan(first) & ~np.isnan(second)
    differences = (first - second)[both]
    differing = differences[differences != 0]
    facts = {"pairs": int(both.sum()), "differing": len(differing)}
    if not len(differing):
        return {**facts, "statistic": 0.0, "p": 1.0, "effect": 0.0}
    test = wilcoxon(differing)
    ranks = rankdata(np.abs(differing))
    effect = float((ranks * np.sign(differing)).sum() / ranks.sum())
    return {**facts, "statistic": float(test.statistic), "p": float(test.pvalue), "effect": effect}


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values of a family, in their order."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()


def krippendorff(ratings: np.ndarray, level: str = "ordinal") -> float | None:
    """Krippendorff's alpha: 1 - D_observed / D_expected.

    Args:
        ratings: (observers, units), nan where an observer gave none. A unit with one rating is
            left out, as nothing pairs with it.
        level: of measurement: nominal, ordinal, interval or ratio.

    None where no two ratings can be paired, or all that can are equal.
    """
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = np.stack([(ratings == value).sum(0) for value in values], 1) if len(values) else None
    if counts is None:
        return None
    counts = counts[counts.sum(1) > 1].astype(float)  # (units, values)
    pairable = counts.sum(1, keepdims=True)
    # o_ck: pairs of values within units, each unit weighted by 1 / (m_u - 1).
    observed = (counts / (pairable - 1)).T @ counts - np.diag((counts / (pairable - 1)).sum(0))
    totals = counts.sum(0)  # n_c
    distance = distances(values, totals, level)
    expected = (np.outer(totals, totals) * distance).sum()
    if not expected:
        return None
    return float(1 - (totals.sum() - 1) * (observed * distance).sum() / expected)


def distances(values: np.ndarray, totals: np.ndarray, level: str) -> np.ndarray:
    """Squared difference of each two values at a level of measurement: (V, V)."""
    c, k = values[:, None], values[None, :]
    if level == "nominal":
        return (c != k).astype(float)
    if level == "interval":
        return (c - k) ** 2
    if level == "ratio":
        return np.divide(c - k, c + k, out=np.zeros((len(values),) * 2), where=c + k != 0) ** 2
    if level != "ordinal":
        raise ValueError(f"level must be nominal, ordinal, interval or ratio, got '{level}'")
    # Ratings between the middle of one value's and the middle of the other's.
    middle = np.cumsum(totals) - totals / 2
    return (middle[:, None] - middle[None, :]) ** 2
