"""Content-Based: items like those that the user likes, by their texts.

ExplainRec names no algorithm, and the chapter that it cites has many. Here a profile of the history
is compared with an item by the cosine of their vectors, which a frozen encoder or TF-IDF gives.
Nothing is trained. Importing this module loads no scikit-learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from reprokit.feedback import Feedback
from reprokit.ranker_training import item_likes
from reprokit.recommending import Pairs, blocks, spans
from reprokit.runs import Unavailable


class ContentBased:
    """Cosine of an item's vector with a profile of the context's history.

    A profile is the mean of the liked items' vectors less `dislike` times that of the disliked
    ones. Without a liked item it is the domain's prior: the mean over all likes of training.

    Args:
        data: sealed; a test row's label is in nobody's history.
        vectors: (n_items, D), dense or sparse, of unit length or zero.
    """

    def __init__(self, data: Feedback, vectors: Any, dislike: float) -> None:
        from scipy import sparse

        self.data, self.dislike = data, dislike
        self.vectors = sparse.csr_array(vectors) if sparse.issparse(vectors) else vectors
        likes = item_likes(data)
        self.prior = (likes @ self.vectors) / likes.sum()
        self.size = max(1, (1 << 22) // vectors.shape[1])
        """Pairs scored at once."""

    def liked(self, rows: np.ndarray) -> np.ndarray:
        """(B,) number of liked events in each context's history."""
        start, end = self.history(rows, 1)
        return end - start

    def history(self, rows: np.ndarray, label: int) -> tuple[np.ndarray, np.ndarray]:
        """First and last + 1 of a history among the events of a label, (B,) each."""
        before, data = self.data.by_label[label][1], self.data
        return before[data.starts[data.users[rows]]], before[data.history_end[rows]]

    def mean(self, rows: np.ndarray, label: int) -> np.ndarray:
        """Mean vector of the history's liked (1) or disliked (0) items, zero for none: (B, D)."""
        from scipy import sparse

        start, end = self.history(rows, label)
        owner, at = spans(start, end)
        items = self.data.items[self.data.by_label[label][0][at]]
        shares = (1 / np.maximum(end - start, 1)).astype(np.float32)[owner]
        shape = len(rows), self.data.n_items
        found = sparse.csr_array((shares, (owner, items)), shape=shape) @ self.vectors
        return found.toarray() if sparse.issparse(found) else found

    def profiles(self, rows: np.ndarray) -> np.ndarray:
        """(B, D), of unit length or zero."""
        found = self.mean(rows, 1) - self.dislike * self.mean(rows, 0)
        found[self.liked(rows) == 0] = self.prior
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    def score(self, pairs: Pairs) -> np.ndarray:
        """(N,) cosines. Pairs are sorted by context, so that a profile is made once or twice."""
        data = self.data
        key = data.users[pairs.rows].astype(np.int64) * (len(data) + 1)
        _, first, of = np.unique(
            key + data.history_end[pairs.rows], return_index=True, return_inverse=True
        )
        order, found = np.argsort(of, kind="stable"), np.empty(len(pairs), np.float32)
        for block in blocks(len(pairs), self.size):
            at = order[block]
            contexts, own = np.unique(of[at], return_inverse=True)
            profiles = self.profiles(pairs.rows[first[contexts]])
            found[at] = self.products(profiles, own, pairs.items[at])
        return found

    def products(self, profiles: np.ndarray, own: np.ndarray, items: np.ndarray) -> np.ndarray:
        """profiles[own] . vectors[items], (N,)."""
        if isinstance(self.vectors, np.ndarray):
            return np.einsum("bd,bd->b", profiles[own], self.vectors[items])
        mine = self.vectors[items]
        row = np.repeat(np.arange(len(items)), np.diff(mine.indptr))
        parts = profiles[own[row], mine.indices] * mine.data
        return np.bincount(row, parts, minlength=len(items))

    def full(self, rows: np.ndarray) -> np.ndarray:
        """(B, n_items)."""
        return np.asarray((self.vectors @ self.profiles(rows).T).T)


def tfidf(data: Feedback) -> Any:
    """Items' words by TF-IDF, sparse (n_items, V) of unit length; words and their rarity are those
    of items with training events."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [data.text(item) for item in range(data.n_items)]
    texts[0] = ""
    known = np.flatnonzero(data.item_counts > 0)
    try:
        made = TfidfVectorizer(dtype=np.float32).fit([texts[item] for item in known])
    except ValueError:
        raise Unavailable(f"{data.name}: no training item has a word of text") from None
    return made.transform(texts)
