"""BPRMF, NCF-MLP and ItemKNN on two domains, against plain computations and planted groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reprokit import collaborative
from reprokit.collaborative import (
    BPRMF,
    NCFMLP,
    ItemKNN,
    UserItem,
    bce_loss,
    bpr_loss,
    largest,
)
from reprokit.nextitem import rank_counts
from reprokit.runs import RequestError

N_USERS, N_A, N_B = 6, 7, 5
# User 3 has pairs in A alone, user 4 in B alone, user 5 none.
USERS = np.array([0, 0, 1, 1, 2, 2, 3, 4, 0, 0])
ITEMS = np.array([1, 8, 2, 9, 3, 10, 7, 12, 1, 4])  # (0, 1) stands there twice
CONTEXT = torch.tensor([[1, 8, 4, 0], [2, 9, 0, 0], [12, 0, 0, 0]])


def build(kind: type[UserItem], **more):
    """A small model whose vectors are large enough to tell scores apart."""
    torch.manual_seed(0)
    model = kind(N_USERS, N_A, N_B, USERS, ITEMS, **more)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def plain_user(model: UserItem, user: int, domain: int) -> Tensor:
    """The vector of a user for a domain, or the mean of those who have one."""
    n_a = model.sizes[0]

    def has(u: int) -> bool:
        mine = [i > n_a for v, i in zip(USERS, ITEMS, strict=True) if u == v]
        return bool(mine) if model.shared else bool(domain) in mine

    def vector(u: int) -> Tensor:
        return model.users.weight[u if model.shared else domain * N_USERS + u]

    if has(user):
        return vector(user)
    return torch.stack([vector(u) for u in range(N_USERS) if has(u)]).mean(0)


def plain_tower(model: NCFMLP, user: Tensor, item: int, domain: int) -> Tensor:
    """The tower of the paper, over the concatenation."""
    tower = model.towers[domain]
    x = torch.cat([user, model.items.weight[item]])
    for layer in (tower.first, *tower.layers[:-1]):
        x = F.relu(layer(x))
    return tower.layers[-1](x)[0]


# --- negatives ----------------------------------------------------------------------------------
def test_negatives_are_uniform_over_the_items_of_the_domain_that_the_user_has_not():
    model = build(BPRMF)
    users, positives = torch.tensor([0, 0, 4]), torch.tensor([1, 8, 12])
    torch.manual_seed(1)
    drawn = model.negatives(users, positives, 20_000)
    for row, allowed in enumerate(([2, 3, 5, 6, 7], [9, 10, 11, 12], [8, 9, 10, 11])):
        seen, counts = drawn[row].unique(return_counts=True)
        assert seen.tolist() == allowed
        share = len(allowed) / 20_000 * counts
        assert (share - 1).abs().max() < 0.06  # about five standard errors


def test_a_negative_that_is_a_positive_is_drawn_again_a_fixed_number_of_times_and_then_kept(
    monkeypatch,
):
    everything = BPRMF(1, 3, 2, np.zeros(3, int), np.array([1, 2, 3]), 4)
    drawn = everything.negatives(torch.tensor([0]), torch.tensor([1]), 50)
    assert set(drawn[0].tolist()) <= {1, 2, 3}  # no other item of A to find, and it ends
    monkeypatch.setattr(collaborative, "ROUNDS", 1)
    most = BPRMF(1, 4, 2, np.zeros(3, int), np.array([1, 2, 3]), 4)
    torch.manual_seed(0)
    drawn = most.negatives(torch.tensor([0]), torch.tensor([1]), 20_000)
    assert (drawn != 4).float().mean().item() == pytest.approx(0.75**2, abs=0.02)


def test_negatives_follow_torchs_generator():
    model, users, positives = build(BPRMF), torch.tensor([0, 4]), torch.tensor([1, 12])
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(model.negatives(users, positives, 30))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


# --- who a user is ------------------------------------------------------------------------------
def test_unseen_users_are_those_without_a_pair_in_the_domain():
    users = torch.arange(N_USERS)
    model = build(BPRMF)
    assert model.unseen(users, 0).tolist() == [False] * 4 + [True, True]
    assert model.unseen(users, 1).tolist() == [False] * 3 + [True, False, True]
    each = model.unseen(torch.tensor([3, 3, 4]), torch.tensor([0, 1, 1]))
    assert each.tolist() == [False, True, False]
    shared = build(BPRMF, shared=True)
    assert (
        shared.unseen(users, 0).tolist() == shared.unseen(users, 1).tolist() == [False] * 5 + [True]
    )
    assert not build(BPRMF, user="items").unseen(users, 0).any()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", [BPRMF, NCFMLP])
def test_an_unseen_user_is_the_mean_of_the_trained_ones(kind, shared):
    model = build(kind, shared=shared)
    users = torch.arange(N_USERS)
    for domain in (0, 1):
        got = model.user_vectors(users, torch.full_like(users, domain))
        expected = torch.stack([plain_user(model, user, domain) for user in range(N_USERS)])
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind, loss", [(BPRMF, bpr_loss), (NCFMLP, bce_loss)])
def test_domains_are_two_models_side_by_side(kind, loss):
    """A batch moves A as its rows of A alone do, which do not move B."""
    model, fixed = build(kind), {1: 3, 2: 5, 8: 11, 12: 9}
    model.negatives = lambda users, positives, count: torch.tensor(
        [[fixed[int(item)]] * count for item in positives]
    )

    def gradients(users: list[int], positives: list[int]) -> list[dict[str, Tensor]]:
        model.zero_grad()
        loss(model, torch.tensor(users), torch.tensor(positives)).sum().backward()
        of_user = model.users.weight.grad.split(N_USERS)
        of_item = model.items.weight.grad[1:].split((N_A, N_B))
        parts = [{"user": of_user[d].clone(), "item": of_item[d].clone()} for d in (0, 1)]
        for name, weight in model.named_parameters():
            if name.startswith("towers"):
                parts[int(name[7])][name[9:]] = weight.grad.clone()
        return parts

    together = gradients([0, 1, 0, 4], [1, 2, 8, 12])
    for domain, rows in enumerate((([0, 1], [1, 2]), ([0, 4], [8, 12]))):
        alone = gradients(*rows)
        for name, grad in alone[domain].items():
            assert grad.any(), name
            torch.testing.assert_close(grad, together[domain][name], atol=1e-6, rtol=1e-5)
        assert not any(grad.any() for grad in alone[1 - domain].values())


def test_a_shared_user_has_one_vector_for_both_domains():
    model = build(BPRMF, shared=True)
    assert model.users.weight.shape == (N_USERS, 64)
    users = torch.tensor([0, 0])
    bpr_loss(model, users, torch.tensor([1, 8])).sum().backward()
    assert model.users.weight.grad[0].any() and not model.users.weight.grad[1:].any()


# --- BPRMF --------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [False, True])
def test_bpr_loss_equals_the_plain_computation(bias):
    model = build(BPRMF, bias=bias)
    users, positives = [0, 2, 4, 0], [1, 10, 12, 8]
    torch.manual_seed(5)
    negatives = model.negatives(torch.tensor(users), torch.tensor(positives), 1)[:, 0].tolist()
    expected = []
    for user, i, j in zip(users, positives, negatives, strict=True):
        p = model.users.weight[user + N_USERS * (i > N_A)]
        q_i, q_j = model.items.weight[i], model.items.weight[j]
        gap = p @ q_i - p @ q_j
        if bias:
            gap = gap + model.bias.weight[i, 0] - model.bias.weight[j, 0]
        norms = (p @ p + q_i @ q_i + q_j @ q_j).item()
        expected.append(-math.log(1 / (1 + math.exp(-gap.item()))) + 0.3 * norms)
    torch.manual_seed(5)
    losses = bpr_loss(model, torch.tensor(users), torch.tensor(positives), l2=0.3)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("user", ["id", "items"])
def test_bprmf_scores_equal_the_plain_computation(user, shared):
    model = build(BPRMF, user=user, shared=shared, bias=True)
    users, q = torch.tensor([0, 5, 4]), model.items.weight
    for domain, wanted in ((0, range(1, 8)), (1, range(8, 13))):
        got = model.domain_scores(domain, items=CONTEXT, users=users)
        for row in range(3):
            vector = plain_user(model, int(users[row]), domain)
            if user == "items":
                mine = [i for i in CONTEXT[row].tolist() if i and (shared or (i > N_A) == domain)]
                vector = sum((q[i] for i in mine), torch.zeros(64)) / max(1, len(mine))
            expected = [(vector @ q[i] + model.bias.weight[i, 0]).item() for i in wanted]
            assert got[row].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_tables_start_as_those_of_models_of_their_own():
    torch.manual_seed(0)
    model = BPRMF(3000, 2000, 500, np.array([0]), np.array([1]), 64)
    parts = [*model.users.weight.split(3000), *model.tables()]
    for part, rows in zip(parts, (3000, 3000, 2000, 500), strict=True):
        assert part.std().item() == pytest.approx(math.sqrt(2 / (rows + 64)), rel=0.03)


# --- NCF-MLP ------------------------------------------------------------------------------------
def test_bce_loss_equals_the_plain_computation():
    model = build(NCFMLP)
    users, positives = torch.tensor([0, 2, 4]), torch.tensor([1, 10, 12])
    torch.manual_seed(5)
    negatives = model.negatives(users, positives, 4)
    torch.manual_seed(5)
    losses = bce_loss(model, users, positives)
    for row in range(3):
        domain = int(positives[row] > N_A)
        user = model.users.weight[users[row] + N_USERS * domain]
        total = 0.0
        for place, item in enumerate([positives[row], *negatives[row]]):
            p = torch.sigmoid(plain_tower(model, user, int(item), domain)).item()
            total -= math.log(p if place == 0 else 1 - p)
        assert losses[row].item() == pytest.approx(total / 5, rel=1e-5)


@pytest.mark.parametrize("pairs", [1, 7, 2**15])
def test_ncf_scores_in_blocks_equal_the_tower_over_the_concatenation(monkeypatch, pairs):
    monkeypatch.setattr(collaborative, "PAIRS", pairs)
    model, users = build(NCFMLP, tower=(12, 8, 6)), torch.tensor([0, 5, 4])
    for domain, wanted in ((0, range(1, 8)), (1, range(8, 13))):
        with torch.inference_mode():
            got = model.domain_scores(domain, items=CONTEXT, users=users)
            expected = [
                [plain_tower(model, plain_user(model, int(u), domain), i, domain) for i in wanted]
                for u in users
            ]
        torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_ncf_never_holds_more_pairs_than_allowed(monkeypatch):
    monkeypatch.setattr(collaborative, "PAIRS", 6)
    seen = []
    rest = collaborative.Tower.rest

    def spy(self, x):
        seen.append(x.shape[0] * x.shape[1])
        return rest(self, x)

    monkeypatch.setattr(collaborative.Tower, "rest", spy)
    model, users = build(NCFMLP), torch.tensor([0, 5, 4])
    with torch.inference_mode():
        model.domain_scores(0, items=CONTEXT, users=users)
        model.full = False
        model.score(torch.tensor([1, 2, 3]), torch.tensor([[4, 5]] * 3), users=users, items=CONTEXT)
    assert max(seen) == 6


def test_sampled_counts_are_those_of_the_full_ranking_and_the_others_are_marked():
    full, sampled = build(NCFMLP), build(NCFMLP, full=False)
    targets, users = torch.tensor([3, 9, 12]), torch.tensor([0, 5, 4])
    negatives = torch.tensor([[1, 2, 7, 7], [8, 10, 11, 12], [8, 9, 10, 8]])
    inputs = {"users": users, "items": CONTEXT}
    with torch.inference_mode():
        counts = sampled.score(targets, negatives, **inputs)
        assert torch.equal(counts[:, :3], full.score(targets, negatives, **inputs)[:, :3])
        assert (counts[:, 3:] == -1).all()
        sampled.users.weight[0] = torch.nan
        broken = sampled.score(targets, negatives, **inputs)
    assert torch.isnan(broken[0, :3]).all() and (broken[0, 3:] == -1).all()


def test_every_weight_has_a_gradient_when_a_batch_lacks_a_domain():
    model = build(NCFMLP)
    bce_loss(model, torch.tensor([0, 1]), torch.tensor([1, 2])).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# --- both ---------------------------------------------------------------------------------------
MODELS = [(BPRMF, {}), (BPRMF, {"user": "items"}), (BPRMF, {"shared": True}), (NCFMLP, {})]


@pytest.mark.parametrize("kind, more", MODELS)
def test_padding_and_the_rest_of_the_batch_change_no_score(kind, more):
    model, users = build(kind, **more), torch.tensor([0, 5, 4])
    with torch.inference_mode():
        for domain in (0, 1):
            whole = model.domain_scores(domain, items=CONTEXT, users=users)
            padded = model.domain_scores(domain, items=F.pad(CONTEXT, (0, 3)), users=users)
            torch.testing.assert_close(whole, padded, atol=1e-5, rtol=1e-5)
            for row in range(3):
                one = slice(row, row + 1)
                alone = model.domain_scores(domain, items=CONTEXT[one], users=users[one])
                torch.testing.assert_close(alone[0], whole[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind, more", MODELS)
def test_ranks_come_from_scores_that_know_no_target(kind, more):
    model, users = build(kind, **more), torch.tensor([0, 5, 4])
    with torch.inference_mode():
        scores = model.domain_scores(0, items=CONTEXT, users=users)
        for target in range(1, 1 + N_A):
            targets = torch.full((3,), target)
            negatives = (targets[:, None] + torch.arange(6)) % N_A + 1
            counts = model.score(targets, negatives, items=CONTEXT, users=users)
            assert torch.equal(counts, rank_counts(scores, targets - 1, negatives - 1))


def groups(seed: int = 0):
    """40 users of 4 groups; a group likes 5 items of A and 5 of B. One of each is held out."""
    rng = np.random.default_rng(seed)
    users, items, held = [], [], []
    for user in range(40):
        mine = 5 * (user % 4) + np.arange(5)
        for low in (1, 21):
            liked = low + rng.permutation(mine)
            users += [user] * 4
            items += liked[:4].tolist()
            held.append((user, int(liked[4])))
    return np.array(users), np.array(items), np.array(held)


def contexts(users: np.ndarray, items: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.stack([items[users == user] for user in wanted])


@pytest.mark.parametrize(
    "kind, more",
    [(BPRMF, {}), (BPRMF, {"user": "items"}), (BPRMF, {"shared": True}), (NCFMLP, {})],
)
def test_a_held_out_item_of_the_users_group_is_found(kind, more):
    users, items, held = groups()
    torch.manual_seed(0)
    width = {"tower": (16, 16, 8)} if kind is NCFMLP else {"dim": 8}
    model = kind(40, 20, 20, users, items, **width, **more)
    loss = bpr_loss if kind is BPRMF else bce_loss
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    who, what = torch.from_numpy(users), torch.from_numpy(items)
    for _ in range(120):
        optimizer.zero_grad()
        loss(model, who, what).mean().backward()
        optimizer.step()
    model.eval()
    targets = torch.from_numpy(held[:, 1])
    context = torch.from_numpy(contexts(users, items, held[:, 0]))
    with torch.inference_mode():
        counts = model.score(
            targets, targets[:, None], users=torch.from_numpy(held[:, 0]), items=context
        )
    # Four liked items may stand above it; at random, 9.5 of the 20 would.
    assert counts[:, 3].mean() < 5


def test_requests_that_cannot_be_are_refused_in_a_line():
    none = np.array([], int)
    cases = [
        (lambda: BPRMF(2, 3, 3, none, none), "no training pairs"),
        (lambda: build(BPRMF, user="session"), "user must be id or items, got 'session'"),
        (lambda: build(NCFMLP, tower=(7, 3)), "first even"),
        (lambda: ItemKNN(variant="mean"), "variant must be sum or last, got 'mean'"),
        (lambda: ItemKNN(scope="all"), "scope must be merged or domain, got 'all'"),
        (lambda: ItemKNN(k=0), "k must be at least 1, got 0"),
    ]
    for make, words in cases:
        with pytest.raises(RequestError, match=words):
            make()


# --- ItemKNN ------------------------------------------------------------------------------------
def plain_knn(
    model: ItemKNN, rows: np.ndarray, items: np.ndarray, n_a: int, n_b: int
) -> np.ndarray:
    """w[i, j] for ids i, j, zero where j is not among the k nearest of i."""
    n = n_a + n_b
    baskets = [set(items[rows == row].tolist()) for row in np.unique(rows)]
    count = [sum(i in basket for basket in baskets) for i in range(n + 1)]
    kept = np.zeros((n + 1, n + 1))
    for i in range(1, n + 1):
        near = []
        for j in range(1, n + 1):
            both = sum(i in basket and j in basket for basket in baskets)
            if i == j or not both or (model.scope == "domain" and (i > n_a) != (j > n_a)):
                continue
            if model.variant == "sum":
                w = both / (math.sqrt(count[i]) * math.sqrt(count[j]) + model.shrink)
            else:
                w = both / (count[i] + model.shrink) ** model.damping
                w /= (count[j] + model.shrink) ** (1 - model.damping)
            near.append((-round(w, 6), j, w))
        for _, j, w in sorted(near)[: model.k]:
            kept[i, j] = w
    return kept


@pytest.mark.parametrize("variant", ["sum", "last"])
@pytest.mark.parametrize("scope", ["merged", "domain"])
def test_item_knn_equals_the_plain_computation(variant, scope):
    rng = np.random.default_rng(0)
    n_a, n_b = 12, 9
    rows = np.repeat(np.arange(30) * 3, 6)  # numbers with gaps
    items = rng.integers(1, n_a + n_b + 1, len(rows))
    context = np.zeros((8, 5), np.int64)
    for row in range(1, 8):  # the first context is empty
        context[row, : 1 + row % 5] = rng.permutation(n_a + n_b)[: 1 + row % 5] + 1
    model = ItemKNN(k=4, shrink=1.5, damping=0.3, scope=scope, variant=variant)
    model.fit(rows, items, (n_a, n_b))
    kept = plain_knn(model, rows, items, n_a, n_b)
    for domain, ids in ((0, range(1, n_a + 1)), (1, range(n_a + 1, n_a + n_b + 1))):
        got = model.scores(context, domain)
        assert got.dtype == np.float32 and got.shape == (8, len(ids))
        expected = np.zeros((8, len(ids)))
        for row in range(8):
            seen = [i for i in context[row].tolist() if i]
            if variant == "last":
                if scope == "domain":
                    seen = [i for i in seen if (i > n_a) == domain]
                expected[row] = [kept[seen[-1], i] if seen else 0 for i in ids]
            else:
                expected[row] = [sum(kept[i, j] for j in seen) for i in ids]
        np.testing.assert_allclose(got, expected, atol=1e-5)
        assert got.any()


def test_the_defaults_of_shrink_are_those_of_each_lineage():
    assert (ItemKNN().shrink, ItemKNN(variant="last").shrink) == (0, 20)
    assert ItemKNN(shrink=0, variant="last").shrink == 0
    # Items 1 and 2 stand together in 2 of their 2 and 3 rows.
    rows, items = np.array([0, 0, 1, 1, 2]), np.array([1, 2, 1, 2, 2])
    cosine = ItemKNN().fit(rows, items, (2, 1)).scores(np.array([[1]]), 0)
    np.testing.assert_allclose(cosine, [[0, 2 / math.sqrt(6)]], rtol=1e-6)
    last = ItemKNN(variant="last").fit(rows, items, (2, 1)).scores(np.array([[1]]), 0)
    np.testing.assert_allclose(last, [[0, 2 / math.sqrt(22 * 23)]], rtol=1e-6)


def test_of_equally_near_items_those_of_the_smallest_ids_are_kept():
    # Item 5 stands once with each of 1, 2, 3, 4, and twice with 6.
    rows = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    items = np.array([5, 4, 5, 2, 5, 1, 5, 3, 5, 6, 5, 6])
    for order in (slice(None), slice(None, None, -1)):
        model = ItemKNN(k=3, variant="last", shrink=0, damping=1.0)
        scores = model.fit(rows[order], items[order], (6, 1)).scores(np.array([[5]]), 0)
        assert np.flatnonzero(scores[0]).tolist() == [0, 1, 5]  # ids 1, 2 and 6
    values = np.array([1.0, 3.0, 3.0, 3.0, 2.0, 2.0])
    assert largest(np.array([0, 0, 0, 0, 1, 1]), values, 2).tolist() == [1, 2, 4, 5]


def test_similarities_that_rounding_sets_apart_are_equal():
    # Item 3 stands in 6 rows: in 3 of item 1's 9, and in the only one of item 2.
    assert 3 / math.sqrt(6 * 9) < 1 / math.sqrt(6)  # in theory the same
    baskets = [[1, 3]] * 3 + [[1]] * 6 + [[2, 3]] + [[3]] * 2
    rows = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets])
    model = ItemKNN(k=1).fit(rows, np.concatenate(baskets), (3, 1))
    of_third = model.scores(np.array([[1], [2]]), 0)[:, 2]
    assert of_third[0] > 0 and of_third[1] == 0  # item 1 is kept: the smaller id


def test_the_order_of_a_context_decides_only_for_the_last_item():
    rng = np.random.default_rng(1)
    rows, items = np.repeat(np.arange(40), 5), rng.integers(1, 21, 200)
    one, other = np.array([[1, 15, 3, 7, 9, 0]]), np.array([[9, 3, 7, 15, 1, 1]])
    total = ItemKNN().fit(rows, items, (10, 10))
    np.testing.assert_array_equal(total.scores(one, 0), total.scores(other, 0))
    last = ItemKNN(variant="last").fit(rows, items, (10, 10))
    assert (last.scores(one, 0) != last.scores(other, 0)).any()
    np.testing.assert_array_equal(last.scores(one, 0), last.scores(np.array([[2, 9]]), 0))


def test_padding_and_the_rest_of_the_batch_change_no_similarity_score():
    rng = np.random.default_rng(1)
    rows, items = np.repeat(np.arange(40), 5), rng.integers(1, 21, 200)
    context = np.array([[1, 15, 3], [2, 0, 0], [0, 0, 0]])
    for variant in ("sum", "last"):
        model = ItemKNN(variant=variant).fit(rows, items, (10, 10))
        whole = model.scores(context, 1)
        np.testing.assert_array_equal(whole, model.scores(np.pad(context, ((0, 0), (0, 4))), 1))
        for row in range(3):
            np.testing.assert_array_equal(whole[row], model.scores(context[row : row + 1], 1)[0])
        assert not whole[2].any()


@pytest.mark.parametrize("variant", ["sum", "last"])
def test_item_knn_finds_the_held_out_item_of_a_group(variant):
    users, items, held = groups()
    model = ItemKNN(variant=variant).fit(users, items, (20, 20))
    for domain in (0, 1):
        mine = held[(held[:, 1] > 20) == domain]
        scores = torch.from_numpy(model.scores(contexts(users, items, mine[:, 0]), domain))
        targets = torch.from_numpy(mine[:, 1] - 1 - 20 * domain)
        counts = rank_counts(scores, targets, targets[:, None])
        assert (counts[:, 3] + counts[:, 4] / 2).max() <= 4


def test_the_similarities_of_many_items_stay_sparse():
    rng = np.random.default_rng(0)
    n_a, n_b, n_rows = 29_207, 34_886, 2_000
    model = ItemKNN(k=5).fit(
        np.repeat(np.arange(n_rows), 10), rng.integers(1, n_a + n_b + 1, 10 * n_rows), (n_a, n_b)
    )
    assert sum(part.nnz for part in model.weights) <= 5 * 10 * n_rows
    assert model.scores(np.array([[1, 2, 3]]), 1).shape == (1, n_b)
