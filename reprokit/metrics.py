"""Metrics of the four papers: arrays in, numbers out.

Every table is scored by these functions and by no other. Each docstring gives the formula, the
shapes, the edge cases and whose protocol it is; `METRICS` holds the same in one line per metric,
to be printed under a table, because the same name means different numbers in different toolkits.

Labels are 0 or 1 (or bool), scores are any finite numbers, larger is better. What has no value
raises ValueError: an AUC of one class is an error here, never nan and never 0.5.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

METRICS = {
    "auc": "auc:mann-whitney,ties=1/2",
    "uauc": "uauc:mean-of-user-aucs,unweighted,users-of-one-class-left-out,ties=1/2",
    "rela_impr": "rela_impr:100*((auc-0.5)/(base-0.5)-1),percent",
    "accuracy": "accuracy:correct/all",
    "fpr": "fpr:fp/(fp+tn)",
    "hr@k": "hr@k:binary,one-relevant-item,rank<=k,ties=mid-rank-unless-stated",
    "mrr": "mrr:binary,one-relevant-item,1/rank,no-cut-off,ties=mid-rank-unless-stated",
    "ndcg@k": "ndcg@k:binary,one-relevant-item,idcg=1,1/log2(rank+1),ties=mid-rank-unless-stated",
    "bleu": "bleu:corpus,4-grams,sacrebleu/100,signature-beside-it",
}
"""Short id of each metric in the tables -> its definition."""


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, as the Mann-Whitney statistic.

    The share of (positive, negative) pairs in which the positive has the larger score; a pair with
    equal scores counts 1/2. The counts are exact integers, so no order of the rows changes a bit.

    labels (N,), scores (N,). One class only: ValueError. Equals scikit-learn's `roc_auc_score`.
    Protocol of CoLLM and CCF-LLM: over all rows of a split, cold users and items included.
    """
    positive, values = _labels_and_scores(labels, scores)
    if positive.all() or not positive.any():
        raise ValueError(f"auc needs both classes, got {positive.size} labels, all {positive[0]:d}")

    positives, negatives = np.sort(values[positive]), np.sort(values[~positive])
    below = np.searchsorted(negatives, positives, side="left")  # negatives under each positive
    tied = negatives[np.minimum(below, negatives.size - 1)] == positives
    not_above = np.searchsorted(negatives, positives[tied], side="right")
    twice_wins = 2 * int(below.sum()) + int((not_above - below[tied]).sum())
    return twice_wins / (2 * positives.size * negatives.size)


def uauc(users: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> tuple[float, int]:
    """AUC of each user, then the unweighted mean; returns (value, users counted).

    A user with one class has no AUC and is left out, so the number of users counted belongs to the
    result. The AUC of user u, with P positives, N negatives and mid-ranks r inside the user, is
    (sum of r over positives - P(P+1)/2) / (P N).

    users (N,) of integers or strings, labels (N,), scores (N,). No user with both classes:
    ValueError. Protocol of CoLLM; not the mean weighted by a user's rows that others call GAUC.
    """
    positive, values = _labels_and_scores(labels, scores)
    owner = np.asarray(users)
    _same_shape("users", owner, "labels", positive)
    if owner.dtype.kind not in "iu":
        if owner.dtype.kind == "f" and np.isnan(owner).any():
            raise ValueError("users contains nan; give every row a user")
        owner = np.unique(owner, return_inverse=True)[1]

    order = np.lexsort((values, owner))  # by user, then by score
    owner, values, positive = owner[order], values[order], positive[order]
    new_user = np.append(True, owner[1:] != owner[:-1])
    new_tie = new_user | np.append(True, values[1:] != values[:-1])

    user_start = np.flatnonzero(new_user)  # (U,)
    start = np.flatnonzero(new_tie)  # (T,), first row of each run of equal scores of one user
    end = np.append(start[1:], values.size)  # (T,), one past its last row
    user_of_tie = np.cumsum(new_user)[start] - 1  # (T,)
    twice_midrank = start + end + 1 - 2 * user_start[user_of_tie]  # (T,), 1-based in the user
    positives_in_tie = np.add.reduceat(positive, start, dtype=np.int64)  # (T,)

    first_tie = np.flatnonzero(new_user[start])  # (U,)
    rank_sum = np.add.reduceat(positives_in_tie * twice_midrank, first_tie)  # (U,), doubled
    positives = np.add.reduceat(positives_in_tie, first_tie)  # (U,)
    negatives = np.diff(np.append(user_start, values.size)) - positives  # (U,)
    counted = (positives > 0) & (negatives > 0)
    if not counted.any():
        raise ValueError(f"uauc needs a user with both classes, got {counted.size} users with one")
    twice_wins = rank_sum - positives * (positives + 1)
    each = twice_wins[counted] / (2 * positives[counted] * negatives[counted])
    return float(each.mean()), int(counted.sum())


def rela_impr(auc: float, base: float) -> float:
    """Relative improvement over a base AUC, in percent: 100 * ((auc - 0.5) / (base - 0.5) - 1).

    Both are AUC values from 0 to 1. base 0.5 has nothing to improve on: ValueError. A base below
    0.5 turns the sign around: the formula is still the paper's. Protocol of CCF-LLM, Tables 3
    and 4, where the base is the row's CF model, Softprompt, or the default training strategy.
    """
    for name, value in (("auc", auc), ("base", base)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be an AUC from 0 to 1, got {value}")
    if base == 0.5:
        raise ValueError("base is 0.5, chance: a relative improvement over it is not defined")
    return 100 * ((float(auc) - 0.5) / (float(base) - 0.5) - 1)


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of rows whose predicted class is the label: (TP + TN) / N.

    labels (N,) and predictions (N,), both 0 or 1: threshold scores first. Empty: ValueError.
    Protocol of MMREC, Tables I and II.
    """
    positive, predicted = _labels_and_predictions(labels, predictions)
    return float((positive == predicted).mean())


def false_positive_rate(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of the negatives that are predicted positive: FP / (FP + TN).

    labels (N,) and predictions (N,), both 0 or 1: threshold scores first. No negatives: ValueError.
    Protocol of MMREC, Tables I and II (the paper names the rate and does not print the formula).
    """
    positive, predicted = _labels_and_predictions(labels, predictions)
    if positive.all():
        raise ValueError(f"false_positive_rate needs negatives, got {positive.size} labels, all 1")
    return float(predicted[~positive].mean())


def ranks(
    scores: ArrayLike, target: ArrayLike = 0, ties: str = "mid", tolerance: float = 0.0
) -> np.ndarray:
    """Rank of the one relevant item in each list, 1 is best; float64 (B,).

    scores (B, K), one row per ranked list; target is the relevant item's column, one integer for
    all rows or (B,). With G items above the target and E other items tied with it:

        mid          1 + G + E / 2    the expected rank under a random order of the ties
        optimistic   1 + G            ties favour the target
        pessimistic  1 + G + E        ties favour the others

    An item is tied when its score is within `tolerance` of the target's, and above when it is
    larger than that. `ties="optimistic", tolerance=1e-5` is the rule of the C2DSR authors (their
    code counts score > target + 1e-5); a constant scorer gets MRR 1 under it, which is why mid is
    the default. Infinite scores are ranked (-inf masks an item), nan and empty: ValueError.
    Counting needs no sort and holds one boolean (B, K) at a time.
    """
    if ties not in ("mid", "optimistic", "pessimistic"):
        raise ValueError(f"unknown ties {ties!r}, choose mid, optimistic or pessimistic")
    if not 0 <= tolerance < np.inf:
        raise ValueError(f"tolerance must be finite and not negative, got {tolerance}")
    lists = _score_lists(scores)
    rows, columns = lists.shape
    column = np.asarray(target)
    if column.dtype.kind not in "iu" or column.shape not in ((), (rows,)):
        raise ValueError(
            f"target must be an integer or one integer per row, ({rows},), "
            f"got {column.dtype} of shape {column.shape}"
        )
    if column.min() < 0 or column.max() >= columns:
        raise ValueError(
            f"target must be from 0 to {columns - 1}, got {column.min()} to {column.max()}"
        )

    own = lists[np.arange(rows), column][:, None]  # (B, 1)
    above = (lists > own + float(tolerance)).sum(axis=1)  # (B,)
    if ties == "optimistic":
        return 1.0 + above
    not_below = (lists >= own - float(tolerance)).sum(axis=1)  # (B,), with the target itself
    tied = not_below - above - 1  # (B,)
    return 1.0 + above + (tied / 2 if ties == "mid" else tied)


def hit_rate(ranks: ArrayLike, k: int) -> float:
    """HR@k with one relevant item per list: share of lists with rank <= k.

    ranks (B,), from `ranks`; a fractional mid-rank is compared with k as it is. An item that was
    not ranked at all has rank inf. Empty: ValueError. Equals Success@k and Recall@k.
    """
    return float((_checked_ranks(ranks) <= _cut_off(k)).mean())


def mrr(ranks: ArrayLike, k: int | None = None) -> float:
    """Mean reciprocal rank: mean of 1 / rank, where k is given 0 for ranks beyond k.

    ranks (B,), from `ranks`. At a fractional mid-rank this is 1 / mid-rank, not the mean of
    1 / rank over the orders of the ties: a constant scorer over K items gets 2 / (K + 1).
    Empty: ValueError. Protocol of C2DSR and LLM-EMF: no cut-off.
    """
    checked = _checked_ranks(ranks)
    gain = 1 / checked
    return float((gain if k is None else np.where(checked <= _cut_off(k), gain, 0.0)).mean())


def ndcg(ranks: ArrayLike, k: int) -> float:
    """NDCG@k with one relevant item per list: mean of 1 / log2(rank + 1) where rank <= k, else 0.

    With one relevant item of gain 1 the ideal DCG is 1. ranks (B,), from `ranks`; at a fractional
    mid-rank the discount is taken at the mid-rank, and the cut-off is still rank <= k. Empty:
    ValueError. Protocol of C2DSR and LLM-EMF (k 5 and 10) and of ExplainRec (k 10).
    """
    checked = _checked_ranks(ranks)
    return float(np.where(checked <= _cut_off(k), 1 / np.log2(checked + 1), 0.0).mean())


def ndcg_graded(relevance: ArrayLike, scores: ArrayLike, k: int) -> tuple[float, int]:
    """NDCG@k with several or graded relevant items per list; returns (value, lists counted).

    DCG@k is the sum over the k best-scored items of relevance / log2(rank + 1), with linear gain.
    It is divided by the DCG@k of the ideal order of all the items given, not of the hits alone:
    for binary relevance, an ideal of min(number relevant, k) items. A list with no relevant item
    has no NDCG and is left out. Ties: the earlier column ranks first, so a model that ties gains
    from relevant items in the first columns; shuffle the columns if it does.

    relevance (B, K), not negative, and scores (B, K); one list may be (K,). No list with a
    relevant item: ValueError. Equals trec_eval's ndcg_cut on lists without ties.
    """
    cut = _cut_off(k)
    lists = _score_lists(np.atleast_2d(np.asarray(scores)))
    gains = np.atleast_2d(np.asarray(relevance, dtype=np.float64))
    _same_shape("relevance", gains, "scores", lists)
    if not 0 <= gains.min() <= gains.max() < np.inf:
        raise ValueError(
            f"relevance must be finite and not negative, got {gains.min()} to {gains.max()}"
        )

    counted = gains.any(axis=1)
    if not counted.any():
        raise ValueError(f"ndcg_graded needs a relevant item, got {counted.size} lists with none")
    gains, lists = gains[counted], lists[counted]
    order = np.argsort(-lists, axis=1, kind="stable")[:, :cut]  # (B, min(k, K))
    ideal = -np.sort(-gains, axis=1)[:, :cut]  # (B, min(k, K))
    discount = 1 / np.log2(np.arange(2, ideal.shape[1] + 2))  # (min(k, K),)
    each = (np.take_along_axis(gains, order, axis=1) @ discount) / (ideal @ discount)
    return float(each.mean()), int(counted.sum())


def bleu(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, str]:
    """Corpus BLEU-4 from 0 to 100, by sacrebleu; returns (value, signature).

    One reference per hypothesis, same order. The counts of all texts are pooled, so this is not
    the mean of sentence BLEU. The signature names tokenizer, smoothing and version, each of which
    moves the number: print it with the score. Lengths that differ, or no text: ValueError.
    Protocol of ExplainRec, Table II (the paper prints BLEU and names no implementation).
    """
    from sacrebleu.metrics import BLEU

    for name, texts in (("references", references), ("hypotheses", hypotheses)):
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} must be a list of strings, got {texts!r:.80}")
    if len(references) != len(hypotheses):
        raise ValueError(f"got {len(references)} references for {len(hypotheses)} hypotheses")
    if len(hypotheses) == 0:
        raise ValueError("bleu needs at least one text, got none")
    metric = BLEU()
    score = metric.corpus_score(list(hypotheses), [list(references)])
    return float(score.score), str(metric.get_signature())


def _same_shape(name: str, array: np.ndarray, other_name: str, other: np.ndarray) -> None:
    if array.shape != other.shape:
        raise ValueError(f"{name} has shape {array.shape}, {other_name} has shape {other.shape}")


def _binary(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty 1-d array, got shape {array.shape}")
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        raise ValueError(f"{name} must be 0 or 1, got {array[wrong].tolist()[0]!r}")
    return array == 1


def _real(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must be real numbers, got dtype {array.dtype}")
    return array


def _labels_and_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    positive, values = _binary("labels", labels), _real("scores", scores)
    _same_shape("labels", positive, "scores", values)
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(
            f"scores must be finite, got {values[bad[0]]} in row {bad[0]} "
            f"({bad.size} of {values.size} rows)"
        )
    return positive, values


def _labels_and_predictions(
    labels: ArrayLike, predictions: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    positive, predicted = _binary("labels", labels), _binary("predictions", predictions)
    _same_shape("labels", positive, "predictions", predicted)
    return positive, predicted


def _score_lists(scores: ArrayLike) -> np.ndarray:
    lists = _real("scores", scores)
    if lists.ndim != 2 or lists.size == 0:
        raise ValueError(f"scores must be a non-empty (B, K) array, got shape {lists.shape}")
    if lists.dtype not in (np.float32, np.float64):
        lists = lists.astype(np.float64)  # so that score + tolerance is not rounded away
    if np.isnan(lists.min()):
        raise ValueError(f"scores contains nan in {np.isnan(lists).any(axis=1).sum()} lists")
    return lists


def _checked_ranks(ranks: ArrayLike) -> np.ndarray:
    checked = np.asarray(ranks, dtype=np.float64)
    if checked.ndim != 1 or checked.size == 0:
        raise ValueError(f"ranks must be a non-empty 1-d array, got shape {checked.shape}")
    wrong = ~(checked >= 1)  # nan too
    if wrong.any():
        raise ValueError(f"ranks start at 1, got {checked[wrong][0]}")
    return checked


def _cut_off(k: int) -> int:
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k must be a positive integer, got {k!r}")
    return int(k)
