"""The metrics against hand-made answers, invariants, scikit-learn and ir-measures."""

import ast
import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprokit import metrics
from reprokit.metrics import (
    METRICS,
    accuracy,
    auc,
    bleu,
    false_positive_rate,
    hit_rate,
    mrr,
    ndcg,
    ndcg_graded,
    ranks,
    rela_impr,
    uauc,
)

settings.register_profile("no-deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no-deadline")


@st.composite
def rows_with_ties(draw):
    """(users, labels, scores): few users, few distinct scores, user 0 has both classes."""
    row = st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(-3, 3))
    rows = [(0, 0, draw(st.integers(-3, 3))), (0, 1, draw(st.integers(-3, 3)))]
    rows = draw(st.permutations(rows + draw(st.lists(row, max_size=30))))
    users, labels, scores = np.array(rows).T
    return users, labels, scores.astype(float)


@st.composite
def lists_with_ties(draw):
    """Scores (B, K) of few distinct values."""
    columns = draw(st.integers(1, 8))
    row = st.lists(st.integers(-2, 2), min_size=columns, max_size=columns)
    return np.array(draw(st.lists(row, min_size=1, max_size=8)), dtype=float)


# --- AUC and UAUC ---


def test_auc_counts_pairs_and_a_tie_is_half():
    labels = [1, 0, 1, 0]
    assert auc(labels, [0.9, 0.1, 0.8, 0.2]) == 1.0
    assert auc(labels, [0.1, 0.9, 0.2, 0.8]) == 0.0
    assert auc(labels, [0.5, 0.1, 0.3, 0.3]) == 3.5 / 4  # one of the four pairs is tied


@given(rows_with_ties())
def test_auc_is_the_share_of_pairs_won(rows):
    _, labels, scores = rows
    gap = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    assert auc(labels, scores) == pytest.approx(((gap > 0) + 0.5 * (gap == 0)).mean(), abs=1e-12)


@given(rows_with_ties(), st.randoms(use_true_random=False))
def test_auc_and_uauc_do_not_depend_on_the_order_of_the_rows(rows, random):
    users, labels, scores = rows
    order = list(range(len(users)))
    random.shuffle(order)
    assert auc(labels[order], scores[order]) == auc(labels, scores)
    assert uauc(users[order], labels[order], scores[order]) == uauc(users, labels, scores)


@given(rows_with_ties())
def test_auc_and_uauc_see_only_the_order_of_the_scores(rows):
    users, labels, scores = rows
    for increasing in (np.exp, lambda s: 3 * s + 7, lambda s: s**3, np.float32, np.float16):
        assert auc(labels, increasing(scores)) == auc(labels, scores)
        assert uauc(users, labels, increasing(scores)) == uauc(users, labels, scores)


@given(rows_with_ties())
def test_negated_scores_give_one_minus_auc(rows):
    users, labels, scores = rows
    assert auc(labels, -scores) == pytest.approx(1 - auc(labels, scores), abs=1e-12)
    assert auc(1 - labels, scores) == pytest.approx(1 - auc(labels, scores), abs=1e-12)
    value, counted = uauc(users, labels, scores)
    assert uauc(users, labels, -scores) == (pytest.approx(1 - value, abs=1e-12), counted)


@given(rows_with_ties(), st.floats(-1e300, 1e300))
def test_a_constant_scorer_has_auc_one_half(rows, constant):
    users, labels, scores = rows
    assert auc(labels, np.full_like(scores, constant)) == 0.5
    assert uauc(users, labels, np.full_like(scores, constant))[0] == 0.5


@given(rows_with_ties())
def test_uauc_of_one_user_is_the_auc(rows):
    _, labels, scores = rows
    assert uauc(np.zeros(len(labels), int), labels, scores) == (auc(labels, scores), 1)


@given(rows_with_ties())
def test_uauc_is_the_mean_of_the_auc_of_each_user(rows):
    users, labels, scores = rows
    each = [
        auc(labels[users == user], scores[users == user])
        for user in np.unique(users)
        if len(set(labels[users == user])) == 2
    ]
    value, counted = uauc(users, labels, scores)
    assert (value, counted) == (pytest.approx(np.mean(each), abs=1e-12), len(each))


def test_uauc_leaves_out_users_with_one_label():
    users = np.array([7, 7, 8, 8, 9])
    labels = np.array([1, 0, 1, 1, 0])  # users 8 and 9 have one label each
    scores = np.array([0.9, 0.1, 0.8, 0.7, 0.3])
    assert uauc(users, labels, scores) == (1.0, 1)


def test_uauc_weighs_users_equally_and_differs_from_auc():
    users = ["a", "a", "b", "b", "b", "b", "b"]
    labels = [1, 0, 1, 0, 0, 0, 0]
    scores = [0.2, 0.1, 0.5, 0.9, 0.8, 0.4, 0.3]
    assert uauc(users, labels, scores) == (0.75, 2)  # user a has 1, user b has 1/2
    assert auc(labels, scores) == 4 / 10  # 1 + 3 of 2 * 5 pairs


@pytest.mark.parametrize("decimals", [2, 16], ids=["with ties", "without ties"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_auc_equals_scikit_learn(decimals, dtype, share):
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    labels = generator.random(5000) < share
    scores = (generator.normal(size=5000) + labels).round(decimals).astype(dtype)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("decimals", [1, 16], ids=["with ties", "without ties"])
def test_uauc_equals_a_loop_over_users_with_scikit_learn(decimals):
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(1)
    users = generator.integers(0, 300, 2000)
    labels = generator.integers(0, 2, 2000)
    scores = generator.normal(size=2000).round(decimals)
    each = []
    for user in np.unique(users):
        own = users == user
        if labels[own].min() < labels[own].max():
            each.append(roc_auc_score(labels[own], scores[own]))
    value, counted = uauc(users, labels, scores)
    assert 200 < counted < np.unique(users).size  # some user is left out
    assert (value, counted) == (pytest.approx(np.mean(each), abs=1e-12), len(each))


@pytest.mark.parametrize("many", [np.array, list, tuple])
def test_lists_tuples_bools_and_integers_are_accepted(many):
    assert auc(many([True, False, True]), many([3, 1, 2])) == 1.0
    assert uauc(many(["u", "u", "v"]), many([1.0, 0.0, 1.0]), many([1, 3, 2])) == (0.0, 1)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "auc needs both classes, got 3 labels, all 1"),
        ([0, 0], [0.1, 0.2], "auc needs both classes, got 2 labels, all 0"),
        ([], [], "labels must be a non-empty 1-d array, got shape (0,)"),
        ([[1, 0]], [[0.1, 0.2]], "labels must be a non-empty 1-d array, got shape (1, 2)"),
        ([1, 2], [0.1, 0.2], "labels must be 0 or 1, got 2"),
        ([1, -1], [0.1, 0.2], "labels must be 0 or 1, got -1"),
        ([1, 0.5], [0.1, 0.2], "labels must be 0 or 1, got 0.5"),
        ([1, math.nan], [0.1, 0.2], "labels must be 0 or 1, got nan"),
        (["1", "0"], [0.1, 0.2], "labels must be 0 or 1, got '1'"),
        ([1, 0], [0.1, 0.2, 0.3], "labels has shape (2,), scores has shape (3,)"),
        ([1, 0], [[0.1], [0.2]], "labels has shape (2,), scores has shape (2, 1)"),
        ([1, 0, 1], [0.1, math.nan, math.inf], "got nan in row 1 (2 of 3 rows)"),
        ([1, 0], [0.1, -math.inf], "scores must be finite, got -inf in row 1"),
        ([1, 0], ["a", "b"], "scores must be real numbers, got dtype <U1"),
    ],
)
def test_auc_says_what_it_cannot_score(labels, scores, message):
    with pytest.raises(ValueError) as error:
        auc(labels, scores)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("users", "labels", "scores", "message"),
    [
        ([1, 1, 2], [1, 1, 0], [0.1, 0.2, 0.3], "a user with both classes, got 2 users with one"),
        ([1, 1], [1, 0, 1], [0.1, 0.2, 0.3], "users has shape (2,), labels has shape (3,)"),
        ([1.0, math.nan], [1, 0], [0.1, 0.2], "users contains nan"),
        ([1, 1], [1, 0], [0.1, math.nan], "scores must be finite, got nan in row 1"),
        ([], [], [], "labels must be a non-empty 1-d array"),
    ],
)
def test_uauc_says_what_it_cannot_score(users, labels, scores, message):
    with pytest.raises(ValueError) as error:
        uauc(users, labels, scores)
    assert message in str(error.value)


# --- RelaImpr, accuracy, false-positive rate ---


@pytest.mark.parametrize(
    ("value", "base", "printed"),
    [
        (0.7295, 0.6482, "54.86"),
        (0.7315, 0.6482, "56.21"),
        (0.7427, 0.5959, "153.08"),
        (0.7526, 0.7078, "21.56"),
        (0.8150, 0.7134, "47.61"),
        (0.7097, 0.7071, "1.26"),  # the one exception of 20: 1.2554, printed as 1.25
        (0.7025, 0.7427, "-16.56"),
        (0.6390, 0.7427, "-42.73"),
    ],
)
def test_rela_impr_gives_the_percentages_printed_in_ccf_llm(value, base, printed):
    assert f"{rela_impr(value, base):.2f}" == printed


def test_rela_impr_of_the_base_itself_is_zero_and_of_chance_is_minus_100():
    assert rela_impr(0.7, 0.7) == 0.0
    assert rela_impr(0.5, 0.7) == -100.0
    assert rela_impr(1.0, 0.75) == 100.0


@pytest.mark.parametrize(
    ("value", "base", "message"),
    [
        (0.7, 0.5, "base is 0.5"),
        (72.95, 0.6, "auc must be an AUC from 0 to 1, got 72.95"),
        (0.7, 64.82, "base must be an AUC from 0 to 1, got 64.82"),
        (math.nan, 0.6, "auc must be an AUC from 0 to 1, got nan"),
    ],
)
def test_rela_impr_refuses_chance_as_base_and_percentages(value, base, message):
    with pytest.raises(ValueError, match=message):
        rela_impr(value, base)


def test_accuracy_and_false_positive_rate_are_counted_by_hand():
    labels = [1, 1, 1, 0, 0, 0, 0]
    predictions = [1, 0, 1, 1, 0, 0, 0]
    assert accuracy(labels, predictions) == 5 / 7
    assert false_positive_rate(labels, predictions) == 1 / 4
    assert false_positive_rate([0, 1], [1, 0]) == 1.0


@pytest.mark.parametrize("metric", [accuracy, false_positive_rate])
def test_probabilities_and_wrong_shapes_are_not_taken_for_predictions(metric):
    with pytest.raises(ValueError, match=r"predictions must be 0 or 1, got 0\.7"):
        metric([1, 0], [0.7, 0.2])
    with pytest.raises(ValueError, match=r"labels has shape \(2,\), predictions has shape \(3,\)"):
        metric([1, 0], [1, 0, 0])
    with pytest.raises(ValueError, match="labels must be a non-empty 1-d array"):
        metric([], [])


def test_false_positive_rate_without_negatives_is_an_error():
    with pytest.raises(ValueError, match="needs negatives, got 2 labels, all 1"):
        false_positive_rate([1, 1], [1, 0])


# --- ranks and the metrics over ranks ---


def test_ranks_under_the_three_rules_by_hand():
    scores = [[3, 5, 3, 1, 3], [9, 1, 2, 3, 4]]  # row 0: one above, two tied with the target
    assert ranks(scores).tolist() == [3.0, 1.0]
    assert ranks(scores, ties="optimistic").tolist() == [2.0, 1.0]
    assert ranks(scores, ties="pessimistic").tolist() == [4.0, 1.0]
    assert ranks(scores, target=3).tolist() == [5.0, 3.0]
    assert ranks(scores, target=[1, 4]).tolist() == [1.0, 2.0]


@given(lists_with_ties())
def test_ranks_equal_a_count_item_by_item(scores):
    for column in range(scores.shape[1]):
        above = [sum(s > row[column] for s in row) for row in scores]
        tied = [sum(s == row[column] for s in row) - 1 for row in scores]
        best = 1 + np.array(above)
        assert (ranks(scores, column, ties="optimistic") == best).all()
        assert (ranks(scores, column, ties="mid") == best + np.array(tied) / 2).all()
        assert (ranks(scores, column, ties="pessimistic") == best + np.array(tied)).all()


@given(lists_with_ties(), st.sampled_from([0.0, 1.0]))
def test_optimistic_mid_and_pessimistic_are_ordered(scores, tolerance):
    best, middle, worst = (
        ranks(scores, ties=rule, tolerance=tolerance)
        for rule in ("optimistic", "mid", "pessimistic")
    )
    assert (best >= 1).all()
    assert (best <= middle).all()
    assert (middle <= worst).all()
    assert (worst <= scores.shape[1]).all()
    assert (middle == (best + worst) / 2).all()


@given(lists_with_ties(), st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_of_the_other_items(scores, random):
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    for rule in ("optimistic", "mid", "pessimistic"):
        moved = ranks(scores[:, order], target=order.index(0), ties=rule)
        assert (moved == ranks(scores, ties=rule)).all()


@given(lists_with_ties())
def test_mid_ranks_of_all_items_add_up(scores):
    columns = scores.shape[1]
    total = sum(ranks(scores, target=column) for column in range(columns))
    assert (total == columns * (columns + 1) / 2).all()


def test_a_constant_scorer_is_perfect_only_under_the_optimistic_rule():
    constant = np.zeros((4, 1000), dtype=np.float32)
    assert mrr(ranks(constant, ties="optimistic", tolerance=1e-5)) == 1.0
    assert mrr(ranks(constant)) == pytest.approx(2 / 1001)
    assert mrr(ranks(constant, ties="pessimistic")) == pytest.approx(1 / 1000)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_tolerance_makes_near_scores_ties_under_every_rule(dtype):
    scores = np.array([[0.0, 5e-6, -5e-6, 5e-5, -5e-5]], dtype=dtype)
    got = [ranks(scores, ties=rule, tolerance=1e-5)[0] for rule in ("optimistic", "pessimistic")]
    assert got == [2.0, 4.0]  # 5e-5 is above, the two at 5e-6 are tied
    assert ranks(scores, tolerance=1e-5)[0] == 3.0
    assert ranks(scores)[0] == 3.0  # exact: 5e-5 and 5e-6 are above, nothing is tied
    assert ranks(scores, ties="pessimistic")[0] == 3.0


def test_tolerance_is_not_rounded_to_the_precision_of_the_scores():
    half = np.array([[1.0, 1.0009765625]], dtype=np.float16)  # neighbours in float16
    assert ranks(half, ties="optimistic", tolerance=0.0009)[0] == 2.0
    assert ranks([[4096, 4097]])[0] == 2.0


def test_infinite_scores_are_ranked():
    scores = [[0.0, math.inf, -math.inf, -math.inf], [-math.inf, 1.0, -math.inf, 0.0]]
    assert ranks(scores).tolist() == [2.0, 3.5]
    assert ranks(scores, ties="optimistic", tolerance=1e-5).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ([[0.1, math.nan], [0.2, 0.3]], {}, "scores contains nan in 1 lists"),
        ([0.1, 0.2], {}, "scores must be a non-empty (B, K) array, got shape (2,)"),
        (np.empty((0, 5)), {}, "scores must be a non-empty (B, K) array, got shape (0, 5)"),
        ([[0.1, 0.2]], {"ties": "best"}, "unknown ties 'best'"),
        ([[0.1, 0.2]], {"target": 2}, "target must be from 0 to 1, got 2 to 2"),
        ([[0.1, 0.2]], {"target": -1}, "target must be from 0 to 1, got -1 to -1"),
        ([[0.1, 0.2]], {"target": [0, 1]}, "one integer per row, (1,), got int64 of shape (2,)"),
        ([[0.1, 0.2]], {"target": 0.0}, "got float64 of shape ()"),
        ([[0.1, 0.2]], {"tolerance": -1e-5}, "tolerance must be finite and not negative"),
        ([[0.1, 0.2]], {"tolerance": math.nan}, "tolerance must be finite and not negative"),
    ],
)
def test_ranks_says_what_it_cannot_rank(scores, options, message):
    with pytest.raises(ValueError) as error:
        ranks(scores, **options)
    assert message in str(error.value)


def test_rank_metrics_by_hand():
    given_ranks = [1, 2, 7, 11]
    assert hit_rate(given_ranks, 1) == 1 / 4
    assert hit_rate(given_ranks, 10) == 3 / 4
    assert mrr(given_ranks) == pytest.approx((1 + 1 / 2 + 1 / 7 + 1 / 11) / 4)
    assert mrr(given_ranks, k=10) == pytest.approx((1 + 1 / 2 + 1 / 7) / 4)
    assert ndcg(given_ranks, 5) == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert ndcg(given_ranks, 10) == pytest.approx((1 + 1 / math.log2(3) + 1 / 3) / 4)


def test_fractional_ranks_are_cut_and_discounted_where_they_stand():
    assert hit_rate([10.0, 10.5], 10) == 0.5
    assert mrr([2.5]) == 0.4
    assert mrr([10.0, 10.5], k=10) == 0.05
    assert ndcg([2.5, 10.5], 10) == pytest.approx(1 / math.log2(3.5) / 2)


def test_an_item_that_was_not_ranked_adds_nothing():
    found = ranks([[1.0, 2.0]])
    with_missing = np.append(found, math.inf)
    assert hit_rate(with_missing, 10) == hit_rate(found, 10) / 2 == 0.5
    assert mrr(with_missing) == mrr(found) / 2
    assert ndcg(with_missing, 10) == ndcg(found, 10) / 2


@pytest.mark.parametrize("metric", [hit_rate, mrr, ndcg])
@pytest.mark.parametrize(
    ("given_ranks", "k", "message"),
    [
        ([], 10, "ranks must be a non-empty 1-d array"),
        ([[1, 2]], 10, "ranks must be a non-empty 1-d array"),
        ([1, 0], 10, "ranks start at 1, got 0.0"),
        ([1, math.nan], 10, "ranks start at 1, got nan"),
        ([1, 2], 0, "k must be a positive integer, got 0"),
        ([1, 2], 2.5, "k must be a positive integer, got 2.5"),
    ],
)
def test_rank_metrics_say_what_is_wrong(metric, given_ranks, k, message):
    with pytest.raises(ValueError) as error:
        metric(given_ranks, k)
    assert message in str(error.value)


def test_each_rank_once_among_1000_gives_the_chance_level_of_the_spec():
    every = np.arange(1, 1001)
    assert mrr(every) == pytest.approx(0.0074855, abs=1e-7)  # the harmonic number H(1000) / 1000
    assert hit_rate(every, 10) == 0.01
    assert ndcg(every, 10) == pytest.approx(0.0045436, abs=1e-7)


def test_random_scores_over_999_negatives_are_at_chance():
    scores = np.random.default_rng(3).random((10_000, 1000), dtype=np.float32)
    found = ranks(scores)
    every = np.arange(1, 1001)
    for metric in (mrr, lambda r: hit_rate(r, 10), lambda r: ndcg(r, 10)):
        spread = np.std([metric([rank]) for rank in every]) / math.sqrt(len(found))
        assert abs(metric(found) - metric(every)) < 4 * spread  # spread is below 0.001
        assert spread < 0.001


# --- against ir-measures (trec_eval) ---


def as_trec(relevance, scores):
    """(qrels, run) as nested dicts of query -> document -> value."""
    qrels = {
        str(q): {str(d): int(grade) for d, grade in enumerate(row) if grade}
        for q, row in enumerate(relevance)
    }
    run = {str(q): {str(d): float(s) for d, s in enumerate(row)} for q, row in enumerate(scores)}
    return qrels, run


def distinct_scores(generator, lists, items):
    return generator.permuted(np.tile(np.arange(items), (lists, 1)), axis=1)


def test_rank_metrics_equal_ir_measures():
    ir_measures = pytest.importorskip("ir_measures")
    generator = np.random.default_rng(4)
    scores = distinct_scores(generator, 200, 40)
    target = generator.integers(0, 40, 200)
    relevance = np.arange(40) == target[:, None]
    names = ("nDCG@5", "nDCG@10", "RR", "Success@1", "Success@10")
    measures = {name: ir_measures.parse_measure(name) for name in names}
    theirs = ir_measures.calc_aggregate(list(measures.values()), *as_trec(relevance, scores))
    found = ranks(scores, target)
    ours = {
        "nDCG@5": ndcg(found, 5),
        "nDCG@10": ndcg(found, 10),
        "RR": mrr(found),
        "Success@1": hit_rate(found, 1),
        "Success@10": hit_rate(found, 10),
    }
    for name, value in ours.items():
        assert value == pytest.approx(theirs[measures[name]], abs=1e-12), name


@pytest.mark.parametrize("k", [5, 10, 100])
@pytest.mark.parametrize("grades", [2, 4], ids=["binary", "graded"])
def test_graded_ndcg_equals_ir_measures(k, grades):
    ir_measures = pytest.importorskip("ir_measures")
    generator = np.random.default_rng(5)
    scores = distinct_scores(generator, 100, 30)
    relevance = generator.integers(0, grades, (100, 30)) * (generator.random((100, 30)) < 0.3)
    relevance[:, 0] = 1  # trec_eval gives a list with no relevant item 0, we leave it out
    measure = ir_measures.parse_measure(f"nDCG@{k}")
    theirs = ir_measures.calc_aggregate([measure], *as_trec(relevance, scores))[measure]
    assert ndcg_graded(relevance, scores, k) == (pytest.approx(theirs, abs=1e-12), 100)


# --- graded NDCG ---


def test_graded_ndcg_by_hand_has_the_ideal_of_all_items_not_of_the_hits():
    relevance = [3, 0, 1, 2]
    scores = [0.4, 0.9, 0.8, 0.1]  # order of the gains: 0, 1, 3, 2
    dcg = 1 / math.log2(3) + 3 / 2
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg_graded(relevance, scores, 3) == (pytest.approx(dcg / ideal), 1)
    value, _ = ndcg_graded([1, 0, 1], [0.9, 0.8, 0.1], 2)  # one of two relevant items is found
    assert value == pytest.approx(1 / (1 + 1 / math.log2(3)))


@given(lists_with_ties())
def test_graded_ndcg_with_one_relevant_first_column_is_the_optimistic_ndcg(scores):
    relevance = np.zeros_like(scores)
    relevance[:, 0] = 2.0  # the earlier column wins a tie, and the gain's size cancels
    expected = ndcg(ranks(scores, ties="optimistic"), 3)
    assert ndcg_graded(relevance, scores, 3)[0] == pytest.approx(expected, abs=1e-12)


def test_graded_ndcg_ranks_the_earlier_column_first_among_ties():
    assert ndcg_graded([1, 0], [0.5, 0.5], 2)[0] == 1.0
    assert ndcg_graded([0, 1], [0.5, 0.5], 2)[0] == pytest.approx(1 / math.log2(3))


def test_graded_ndcg_leaves_out_lists_with_no_relevant_item():
    relevance = [[0, 1], [0, 0], [1, 0]]
    scores = [[0.1, 0.9], [0.9, 0.1], [0.9, 0.1]]
    assert ndcg_graded(relevance, scores, 10) == (1.0, 2)


@pytest.mark.parametrize(
    ("relevance", "scores", "message"),
    [
        ([[0, 0]], [[0.1, 0.2]], "needs a relevant item, got 1 lists with none"),
        ([[1, -1]], [[0.1, 0.2]], "finite and not negative, got -1.0 to 1.0"),
        ([[1, math.nan]], [[0.1, 0.2]], "finite and not negative, got nan"),
        ([[1, math.inf]], [[0.1, 0.2]], "finite and not negative, got 1.0 to inf"),
        ([[1, 0]], [[0.1, math.nan]], "scores contains nan in 1 lists"),
        ([[1, 0, 0]], [[0.1, 0.2]], "relevance has shape (1, 3), scores has shape (1, 2)"),
        ([], [], "scores must be a non-empty (B, K) array"),
    ],
)
def test_graded_ndcg_says_what_it_cannot_score(relevance, scores, message):
    with pytest.raises(ValueError) as error:
        ndcg_graded(relevance, scores, 2)
    assert message in str(error.value)


# --- BLEU ---


def test_bleu_pools_the_counts_of_all_texts():
    references = ["the film is a slow and quiet drama", "a loud comedy about two old friends"]
    hypotheses = ["the film is a slow and loud drama", "a loud comedy about two old cats"]
    # n-grams matched / present over both texts: 13/15, 10/13, 8/11, 6/9; equal length, no penalty
    expected = 100 * (13 / 15 * 10 / 13 * 8 / 11 * 6 / 9) ** 0.25
    value, signature = bleu(references, hypotheses)
    assert value == pytest.approx(expected)
    assert "tok:13a" in signature
    assert "smooth:exp" in signature
    assert "version:" in signature


def test_bleu_is_100_for_a_copy_and_its_first_argument_is_the_reference():
    texts = ["you liked three films by the same director"]
    longer = [texts[0] + " and two more"]
    assert bleu(texts, texts)[0] == pytest.approx(100)
    assert bleu(texts, longer)[0] == pytest.approx(100 * (8 / 11 * 7 / 10 * 6 / 9 * 5 / 8) ** 0.25)
    # the other way round all n-grams match and only the brevity penalty is left
    assert bleu(longer, texts)[0] == pytest.approx(100 * math.exp(1 - 11 / 8))


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        (["a"], ["a", "b"], "got 1 references for 2 hypotheses"),
        ([], [], "bleu needs at least one text, got none"),
        ("a b", "a b", "references must be a list of strings, got 'a b'"),
        (["a"], [None], "hypotheses must be a list of strings, got [None]"),
        ([["a", "b"]], ["a"], "references must be a list of strings, got [['a', 'b']]"),
    ],
)
def test_bleu_says_what_it_cannot_score(references, hypotheses, message):
    with pytest.raises(ValueError) as error:
        bleu(references, hypotheses)
    assert message in str(error.value)


# --- the module ---


def test_each_metric_of_the_tables_has_a_definition_of_one_line():
    expected = {"auc", "uauc", "rela_impr", "accuracy", "fpr", "hr@k", "mrr", "ndcg@k", "bleu"}
    assert set(METRICS) == expected
    for name, definition in METRICS.items():
        assert definition.startswith(f"{name}:")
        assert definition.isascii()
        assert "\n" not in definition


def test_metrics_is_a_leaf_that_imports_numpy_only():
    tree = ast.parse(inspect.getsource(metrics))
    modules = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert modules == {"collections", "numpy"}
