"""The knowledge base of ExplainRec: what groups, genres and seasons say of a user and an item.

Paper   ExplainRec, section III-C, equations 4 and 5: K = {P_demo, P_cross, P_temporal}

Symbol    Code                Shape        Meaning
G(u)      facets[:, :-1]      (N, S)       groups of the user at each event
phi_g(i)  `demo`, opinions    (B, S)       what a group thinks of an item
w_g       `demo`, weights     (B, S)       weight of a group
C         `cross`             (K, K)       correlation of genres, never stored as such

What the paper leaves open
D1  A statistic is a mean of label - base rate over training events, shrunk towards what is more
    general: (sum + smoothing * prior) / (events + smoothing).
D2  Patterns come from other people. The training labels of a row's own user stand in no statistic
    that the row reads, so no label reaches the features of its own row, not even by way of the
    groups that it puts its user's later events in; and rows of training and of the test are
    described alike. What is known of the user is the history: in the favourite genres of G(u), and
    in P_cross.
D3  Without demographics G(u) is how active the user is, and the two genres that are liked most
    often in the row's history.
D4  P_temporal adds how genres are rated in the month of the row to how items are rated that were
    last rated so long ago.

The statistics are tables of (events, likes). The tables without a user are the tables of all minus
the user's, which are counted for some users at a time, so that nothing is as large as users times
groups times genres. Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reprokit.datasets import DataError
from reprokit.feedback import Feedback
from reprokit.runs import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

GROUPS_BY = ("auto", "demographics", "behaviour")
WEIGHTS = ("sqrt", "uniform", "size")
ACTIVITY = ("new", "low", "medium", "high")
FAVOURITES = 2
DAY = 86_400
RECENCY = {"within a week": 7 * DAY, "within a month": 30 * DAY, "within a year": 365 * DAY}
BUCKETS = ("never", *RECENCY, "longer ago")
"""How long ago an item was last rated in training."""
BLOCK = 1 << 14
"""Rows that are described at once, of at most `USERS` users."""
USERS = 256
CHUNK = 1 << 20
"""Events that are counted at once."""
SAMPLE = 50_000
"""Training rows, evenly spaced, that the patterns are standardised over."""


@dataclass(frozen=True)
class Genres:
    """The genres that statistics are kept of, the rarest in training first; K of them.

    Column K of a table over genres stands for all events, whatever their genres.
    """

    names: list[str]
    lists: NDArray[np.int16]
    """(n_items, G): K first, then the item's genres, -1 is padding."""
    share: NDArray[np.float32]
    """(n_items, K + 1): 1 / number of its genres at each; an item without any has 1 at K."""

    @property
    def columns(self) -> int:
        return len(self.names) + 1


def genres_of(data: Feedback, source_genres: Mapping[str, str] | None, most: int) -> Genres:
    """The genres of items, the `most` frequent in training. A genre of domain 1 stands for its
    source genre, or for itself where it has none."""
    renamed = source_genres or {}
    lists = [
        [renamed.get(name, name) if other else name for name in names if name]
        for names, other in zip(data.genres, data.domain.tolist(), strict=True)
    ]
    times: dict[str, int] = {}
    for names, n in zip(lists, data.item_counts.tolist(), strict=True):
        for name in dict.fromkeys(names):
            times[name] = times.get(name, 0) + n
    kept = sorted((name for name in times if times[name]), key=lambda name: (-times[name], name))
    kept = kept[:most][::-1]
    numbers = {name: k for k, name in enumerate(kept)}
    coded = [list({numbers[name]: 0 for name in names if name in numbers}) for names in lists]
    table = np.full((len(coded), max(map(len, coded), default=0) + 1), -1, np.int16)
    share = np.zeros((len(coded), len(kept) + 1), np.float32)
    table[:, 0] = len(kept)
    for item, mine in enumerate(coded):
        table[item, 1 : len(mine) + 1] = mine
        share[item, mine or [len(kept)]] = 1 / max(len(mine), 1)
    return Genres(kept, table, share)


# --- the facets of an event: its groups, its month ----------------------------------------------
def demographic_groups(data: Feedback) -> tuple[list[str], NDArray[np.int16]]:
    """A group for each value of each attribute: (names, (N, S) groups of events, -1 unknown)."""
    names: list[str] = []
    columns = []
    for attribute, codes in data.demographics.items():
        values, place = np.unique(codes, return_inverse=True)
        known = values >= 0
        number = np.where(known, len(names) + np.cumsum(known) - 1, -1)
        names += [f"{attribute} {value}" for value in values[known]]
        columns.append(number[place.reshape(-1)].astype(np.int16)[data.users])
    return names, np.stack(columns, 1)


def behaviour_groups(data: Feedback, genres: Genres) -> tuple[list[str], NDArray[np.int16]]:
    """Groups by activity and by two favourite genres: (names, (N, 3) groups of events, -1 none).

    Activity: "new" while the history is empty, else the tercile of the user's training events.
    """
    counts = data.user_counts
    known = counts[counts > 0]
    bounds = np.quantile(known, [1 / 3, 2 / 3]) if len(known) else np.zeros(2)
    level = 1 + np.searchsorted(bounds, counts)
    empty = data.history_end <= data.starts[data.users]
    activity = np.where(empty, 0, level[data.users]).astype(np.int16)
    names = [f"activity {name}" for name in ACTIVITY]
    liked = favourites(data, genres)
    liked[liked >= 0] += len(names)
    names += [f"favourite {name}" for name in genres.names]
    return names, np.concatenate([activity[:, None], liked], 1)


def favourites(data: Feedback, genres: Genres) -> NDArray[np.int16]:
    """The genres liked most often in the history of each event, -1 where there is none: (N, 2).

    Of genres that are liked equally often the rarer comes first.
    """
    found = np.full((len(data), FAVOURITES), -1, np.int16)
    has = (genres.share[:, :-1] > 0).T.astype(np.int8)  # (K, n_items)
    if not len(has):
        return found
    for low, high in whole_users(data.starts, CHUNK // 4):
        liked = has[:, data.items[low:high]] * (data.labels[low:high] == 1)  # (K, events)
        before = np.zeros((len(has), high - low + 1), np.int32)
        np.cumsum(liked, axis=1, out=before[:, 1:])
        times = before[:, data.history_end[low:high] - low]
        times -= before[:, data.starts[data.users[low:high]] - low]
        for place in range(FAVOURITES):
            best = times.argmax(0)
            most = np.take_along_axis(times, best[None], 0)[0]
            found[low:high, place] = np.where(most > 0, best, -1)
            np.put_along_axis(times, best[None], -1, 0)
    return found


def whole_users(starts: Ints, size: int) -> Iterator[tuple[int, int]]:
    """Runs of events, about `size` each, that split no user: (first, end)."""
    low = 0
    while low < starts[-1]:
        user = int(np.searchsorted(starts, low + size, "right")) - 1
        high = int(starts[user])
        if high <= low:  # one user with more events than that
            high = int(starts[np.searchsorted(starts, low, "right")])
        yield low, high
        low = high


def months(times: Ints) -> NDArray[np.int16]:
    """Calendar month of Unix seconds, 0 for January (universal time)."""
    return (times.astype("datetime64[s]").astype("datetime64[M]").astype(int) % 12).astype(np.int16)


class Recency:
    """How long ago items were last rated in training, as an index into `BUCKETS`."""

    def __init__(self, data: Feedback, events: Ints) -> None:
        """`events`: those of training; `of_events` are their own buckets."""
        self.first = int(data.times.min())
        self.span = int(data.times.max()) - self.first + 2
        keys = self.key(data.items[events], data.times[events])
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        fresh = np.diff(self.keys, prepend=-1) > 0
        earlier = np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0)) - 1
        self.of_events = np.empty(len(order), np.int8)
        self.of_events[order] = self.buckets(self.keys, earlier)

    def key(self, items: np.ndarray, times: Ints) -> Ints:
        return items.astype(np.int64) * self.span + (times - self.first + 1)

    def buckets(self, keys: Ints, earlier: Ints) -> Ints:
        """From keys and the place of the last one before them, -1 where there is none."""
        last = np.where(earlier >= 0, self.keys[earlier], -1)
        gap = keys - last
        known = (earlier >= 0) & (last // self.span == keys // self.span)
        return np.where(known, 1 + np.searchsorted(list(RECENCY.values()), gap, "right"), 0)

    def __call__(self, items: np.ndarray, times: Ints) -> Ints:
        """(B,) items at (B,) times; training events strictly before count."""
        keys = self.key(items, times)
        return self.buckets(keys, np.searchsorted(self.keys, keys) - 1)


# --- the knowledge base -------------------------------------------------------------------------
class KnowledgeBase:
    """Patterns of (user, item, time), from training rows alone.

    Args:
        data: sealed or not: labels of validation and test rows are read by nothing.
        smoothing: events that a prior counts for (D1).
        groups_by: "demographics", "behaviour" (D3), or "auto": demographics where there are any.
        weights: of groups, as shares that add up to 1: by the square root of their training
            events, by the events ("size"), or uniform.
        source_genres: what genres of domain 1 stand for.
        max_genres: the most frequent ones are kept.
        history: last events of the history that P_cross reads.
    """

    names = ("demo", "cross", "temporal")

    def __init__(
        self,
        data: Feedback,
        smoothing: float = 20.0,
        groups_by: str = "auto",
        weights: str = "sqrt",
        source_genres: Mapping[str, str] | None = None,
        max_genres: int = 40,
        history: int = 50,
    ) -> None:
        check(data, smoothing, groups_by, weights)
        self.data, self.smoothing, self.weights = data, float(smoothing), weights
        self.history = history
        self.genres = genres_of(data, source_genres, max_genres)
        self.group_names, groups = self.groups(groups_by)
        self.has = (self.genres.share[:, :-1] > 0).astype(np.float32)  # (n_items, K)
        self.n_genres = self.has.sum(1)
        # Facets are numbered on: groups, then months, then how long ago the item was rated.
        self.n_groups = len(self.group_names)
        self.n_facets = self.n_groups + 12 + len(BUCKETS)
        self.facets = np.concatenate([groups, self.n_groups + months(data.times)[:, None]], 1)
        self.events = data.rows("train")
        self.bounds = np.searchsorted(self.events, data.starts)  # (n_users + 1,) in `events`
        self.recency = Recency(data, self.events)
        self.count()
        self.standardise()

    def groups(self, groups_by: str) -> tuple[list[str], NDArray[np.int16]]:
        """Names of the groups, and those of each event, -1 where there is none: (N, S)."""
        known = any((codes >= 0).any() for codes in self.data.demographics.values())
        if groups_by == "demographics" and not known:
            raise RequestError(
                f"{self.data.name} has no demographics: set groups_by to behaviour, or auto"
            )
        if known and groups_by != "behaviour":
            return demographic_groups(self.data)
        return behaviour_groups(self.data, self.genres)

    def count(self) -> None:
        """The tables of all training events; the last axis is (events, likes)."""
        columns, n_items = self.genres.columns, self.data.n_items
        self.by_item = np.zeros((self.n_facets * n_items, 2), np.float32)
        users = np.zeros((self.data.n_users * columns, 2), np.float32)
        for low in range(0, len(self.events), CHUNK):
            some = np.arange(low, min(low + CHUNK, len(self.events)))
            items = self.data.items[self.events[some]]
            for facet in self.facets_of(some).T:
                tally(self.by_item, facet.astype(np.int64) * n_items + items, self.liked(some))
            at, genre = self.genre_entries(items)
            codes = self.data.users[self.events[some]].astype(np.int64) * columns
            tally(users, codes[at] + genre, self.liked(some)[at])
        self.by_user = users.reshape(-1, columns, 2)  # (n_users, K + 1, 2)
        by_item = self.by_item.reshape(self.n_facets, n_items, 2)
        has = np.ones((n_items, columns))
        has[:, :-1] = self.has
        by_facet = [facet.T.astype(np.float64) @ has for facet in by_item]
        self.by_facet = np.stack(by_facet).transpose(0, 2, 1)  # (F, K + 1, 2)
        self.by_item = by_item[: self.n_groups]
        self.by_genre = self.by_user.sum(0, dtype=np.float64)  # (K + 1, 2)
        lifted = self.lifted(self.by_user[np.diff(self.bounds) > 0])
        self.n_known = len(lifted)
        self.moments = lifted.T @ lifted  # (2K, 2K)
        self.totals = lifted.sum(0)  # (2K,)

    def standardise(self) -> None:
        """Mean and deviation of each pattern over training rows, `SAMPLE` at most.

        They are constants of the data set, and tell rows apart by nothing.
        """
        step = -(-len(self.events) // SAMPLE)
        rows = self.events[::step]
        values = self.raw(rows, self.data.items[rows])
        self.mean, deviation = values.mean(0), values.std(0)
        self.deviation = np.where(deviation > 1e-12, deviation, 1.0)

    def patterns(self, rows: np.ndarray, items: np.ndarray) -> NDArray[np.float32]:
        """P_demo, P_cross and P_temporal of items in the place and at the time of events' own.

        Args:
            rows: (N,) events of any split: their user, history and time are what is asked of.
            items: (N,) item ids.

        Returns (N, 3), standardised over training rows.
        """
        return ((self.raw(rows, items) - self.mean) / self.deviation).astype(np.float32)

    def raw(self, rows: np.ndarray, items: np.ndarray) -> Floats:
        """The same before it is standardised."""
        rows, items = np.asarray(rows, np.int64), np.asarray(items, np.int64)
        found = np.zeros((len(rows), len(self.names)))
        order = np.argsort(self.data.users[rows], kind="stable")
        for some in user_blocks(self.data.users[rows[order]]):
            at = order[some]
            others = Others(self, rows[at], items[at])
            found[at] = np.stack([others.demo(), others.cross(), others.temporal()], 1)
        return found

    # --- events of training, by their place in `events`
    def liked(self, some: Ints) -> np.ndarray:
        return self.data.labels[self.events[some]] == 1

    def facets_of(self, some: Ints) -> Ints:
        """Facets, -1 where there is none: (E, S + 2)."""
        last = self.n_groups + 12 + self.recency.of_events[some].astype(np.int64)
        return np.concatenate([self.facets[self.events[some]], last[:, None]], 1)

    def genre_entries(self, items: np.ndarray) -> tuple[Ints, Ints]:
        """All genres of items, column K among them: (place in `items`, genre)."""
        lists = self.genres.lists[items]
        at, place = np.nonzero(lists >= 0)
        return at, lists[at, place].astype(np.int64)

    def lifted(self, by_user: np.ndarray) -> Floats:
        """Shares of liked events by genre as numbers that do not know the base rate: (U, 2K).

        A user's share in genre k, less the rate b_k of all, shrunk to 0, is L_k - b_k M_k with
        L = likes / (events + smoothing) and M = events / (events + smoothing); this is [L, M].
        """
        events, likes = (by_user[:, :-1, k].astype(np.float64) for k in range(2))
        return np.concatenate([likes, events], 1) / np.tile(events + self.smoothing, 2)


def check(data: Feedback, smoothing: float, groups_by: str, weights: str) -> None:
    if smoothing <= 0:
        raise RequestError(f"smoothing is {smoothing}: it must be positive")
    for name, value, allowed in (
        ("groups_by", groups_by, GROUPS_BY),
        ("weights", weights, WEIGHTS),
    ):
        if value not in allowed:
            raise RequestError(f"{name} is '{value}': it must be one of {', '.join(allowed)}")
    if not len(data.rows("train")):
        raise DataError(f"{data.name}: no training events to learn patterns from")


def tally(table: np.ndarray, codes: Ints, liked: np.ndarray) -> None:
    """Count events and likes into a table (n, 2), in place; negative codes are left out."""
    known = codes >= 0
    codes, liked = codes[known], liked[known]
    if not len(codes):
        return
    low, high = int(codes.min()), int(codes.max()) + 1  # a run of events is of few users
    found = np.bincount(2 * (codes - low) + liked, minlength=2 * (high - low)).reshape(-1, 2)
    table[low:high, 0] += found[:, 0] + found[:, 1]
    table[low:high, 1] += found[:, 1]


def user_blocks(users: np.ndarray) -> Iterator[slice]:
    """Slices of sorted users: `BLOCK` rows of `USERS` users at most."""
    rank = np.cumsum(np.diff(users, prepend=-1) != 0) - 1
    start = 0
    while start < len(users):
        end = min(int(np.searchsorted(rank, rank[start] + USERS)), start + BLOCK)
        yield slice(start, end)
        start = end


class Others:
    """What everybody but a row's user says, for a block of rows sorted by user.

    Shapes: B rows, U users, S groups of a row, F facets, K genres.
    """

    def __init__(self, base: KnowledgeBase, rows: Ints, items: Ints) -> None:
        self.base, self.rows, self.items = base, rows, items
        self.users, self.of = np.unique(base.data.users[rows], return_inverse=True)
        low, high = base.bounds[self.users], base.bounds[self.users + 1]
        lengths = high - low
        owners = np.repeat(np.arange(len(self.users)), lengths)
        own = np.arange(len(owners)) + np.repeat(low - np.cumsum(lengths) + lengths, lengths)
        self.own, self.owners = own, owners
        mine = base.by_user[self.users].astype(np.float64)  # (U, K + 1, 2)
        self.by_genre = base.by_genre - mine
        self.rate = ratio(self.by_genre[..., 1], self.by_genre[..., 0])  # (U, K + 1)
        self.base_rate = self.rate[:, -1]  # (U,)
        self.lifted = base.lifted(mine)  # (U, 2K); zeros where the user is in no statistic
        self.by_facet = self.facet_tables()  # (U, F, K + 1, 2)
        residual = self.residual(self.by_facet, self.base_rate[:, None, None])
        self.means = residual / (self.by_facet[..., 0] + base.smoothing)  # (U, F, K + 1)

    @staticmethod
    def residual(table: np.ndarray, base_rate: np.ndarray) -> np.ndarray:
        """Sum of label - base rate."""
        return table[..., 1] - base_rate * table[..., 0]

    def facet_tables(self) -> Floats:
        base, columns = self.base, self.base.genres.columns
        shape = (len(self.users), base.n_facets, columns, 2)
        mine = np.zeros((int(np.prod(shape[:3])), 2))
        at, genre = base.genre_entries(base.data.items[base.events[self.own]])
        liked = base.liked(self.own)[at]
        for facet in base.facets_of(self.own).T:
            codes = (self.owners * base.n_facets + facet)[at] * columns + genre
            tally(mine, np.where(facet[at] >= 0, codes, -1), liked)
        return base.by_facet - mine.reshape(shape)

    def item_tables(self, groups: Ints) -> Floats:
        """Events and likes of the rows' items by each of their groups: (B, S, 2)."""
        base, n_items = self.base, self.base.data.n_items
        asked, which = np.unique(self.of * n_items + self.items, return_inverse=True)
        codes = self.owners * n_items + base.data.items[base.events[self.own]]
        place = np.minimum(np.searchsorted(asked, codes), len(asked) - 1)
        same = asked[place] == codes
        own, place = self.own[same], place[same]
        mine = np.zeros((len(asked) * base.n_groups, 2), np.float32)
        for facet in base.facets_of(own)[:, :-2].T:
            tally(mine, np.where(facet >= 0, place * base.n_groups + facet, -1), base.liked(own))
        table = base.by_item[groups, self.items[:, None]]
        table -= mine.reshape(len(asked), base.n_groups, 2)[which[:, None], groups]
        return table.astype(np.float64)

    def demo(self) -> Floats:
        """Equation 5: (B,). phi_g(i) is shrunk to what the group thinks of the item's genres."""
        base = self.base
        groups = base.facets[self.rows, :-1].astype(np.int64)  # (B, S)
        known, groups = groups >= 0, np.maximum(groups, 0)
        share = base.genres.share[self.items]  # (B, K + 1)
        prior = np.einsum("bsk,bk->bs", self.means[self.of[:, None], groups], share)
        table = self.item_tables(groups)  # (B, S, 2)
        residual = self.residual(table, self.base_rate[self.of, None])
        opinions = (residual + base.smoothing * prior) / (table[..., 0] + base.smoothing)
        events = self.by_facet[self.of[:, None], groups, -1, 0] * known  # (B, S)
        power = {"sqrt": 0.5, "size": 1.0, "uniform": 0.0}[base.weights]
        weights = events**power * known
        return (ratio(weights, weights.sum(1, keepdims=True)) * opinions).sum(1)

    def cross(self) -> Floats:
        """Mean of C over pairs of a genre of the item and one of the history, + where the event was
        liked and - where not: (B,); 0 without a history.

        C is the correlation over users of their `lifted` shares less the genres' rates, shrunk to
        the identity. With b = the rates and the matrix T = [I, -diag(b)], residuals are T lifted,
        so that all sums over users follow from `moments` and `totals`; a user is taken out of them.
        """
        base, k = self.base, len(self.base.genres.names)
        item, past = base.genres.share[self.items, :k].astype(np.float64), self.past()  # (B, K)
        known = (base.bounds[self.users + 1] > base.bounds[self.users]).astype(np.float64)
        n = np.maximum(base.n_known - known, 1)  # (U,) other users
        rate = self.rate[:, :k]
        mean = (self.lower(base.totals - self.lifted, rate)) / n[:, None]
        of_all, diagonal = np.arange(k), base.moments
        square = (
            diagonal[of_all, of_all]
            - 2 * rate * diagonal[of_all, of_all + k]
            + rate**2 * diagonal[of_all + k, of_all + k]
            - self.lower(self.lifted, rate) ** 2
        )
        variance = square / n[:, None] - mean**2
        varies = variance > 1e-12
        scale = varies / np.sqrt(np.where(varies, variance, 1))  # (U, K)
        shrink = n / (n + base.smoothing)
        left, right = (self.lift(side * scale[self.of], rate[self.of]) for side in (item, past))
        own = self.lifted[self.of]
        product = ((left @ base.moments) * right).sum(1)
        product -= (left * own).sum(1) * (right * own).sum(1)
        means = [(side * (scale * mean)[self.of]).sum(1) for side in (item, past)]
        correlation = product / n[self.of] - means[0] * means[1]
        alone = 1 - (shrink[:, None] * varies)[self.of]  # what the diagonal lacks of 1
        return shrink[self.of] * correlation + (item * past * alone).sum(1)

    @staticmethod
    def lower(lifted: Floats, rate: Floats) -> Floats:
        """T lifted: (U, 2K) -> (U, K)."""
        k = rate.shape[1]
        return lifted[..., :k] - rate * lifted[..., k:]

    @staticmethod
    def lift(values: Floats, rate: Floats) -> Floats:
        """The transpose of T: (B, K) -> (B, 2K)."""
        return np.concatenate([values, -rate * values], 1)

    def past(self) -> Floats:
        """Genres of the history, liked less disliked, as shares of all its genres: (B, K)."""
        base, data = self.base, self.base.data
        events = data.histories(self.rows, base.history)  # (B, history)
        items = data.items_at(events)
        signs = np.where(events < 0, 0, 2.0 * (data.labels[events] == 1) - 1).astype(np.float32)
        found = np.zeros((len(self.rows), len(base.genres.names)), np.float32)
        for item, sign in zip(items.T, signs.T, strict=True):
            found += base.has[item] * sign[:, None]
        entries = base.n_genres[items] * (signs != 0)
        return ratio(found.astype(np.float64), entries.sum(1, keepdims=True))

    def temporal(self) -> Floats:
        """How the item's genres are rated in this month, and items last rated so long ago: (B,)."""
        base = self.base
        month = self.means[self.of, base.facets[self.rows, -1]]  # (B, K + 1)
        bucket = base.recency(self.items, base.data.times[self.rows])
        recent = self.means[self.of, base.n_groups + 12 + bucket, -1]
        return (month * base.genres.share[self.items]).sum(1) + recent


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """A quotient, 0 where it is divided by 0."""
    return above / np.where(below == 0, 1, below)
