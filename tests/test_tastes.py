"""The rows of ExplainRec without a language model: what they read, learn from and leave."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from test_recommending import feedback, job_of

from reprokit import explainrec, recommending, tastes
from reprokit.content_based import ContentBased, tfidf
from reprokit.feedback import Feedback
from reprokit.ranker_training import columns, item_likes, liked_pairs
from reprokit.recommending import Arena, Meter, Pairs, TasteSettings
from reprokit.runs import PRESETS, RequestError, Result, Unavailable
from reprokit.tastes import SYSTEMS, LightGCNSettings, train_lightgcn

SIZES = {"negatives": 9, "rank_rows": 8, "valid_lists": 5, "rated_rows": 0, "valid_rows": 0}
TRAINED = ("lightgcn", "sasrec", "gru4rec", "vbpr", "mmgcn", "lattice")
SMALL: Mapping[str, Mapping[str, Any]] = {
    name: {"max_epochs": 2, "batch_size": 32, "dim": 8, "lr": 1e-2} for name in TRAINED
}
ENCODERS = {"text_encoder": "tiny", "image_encoder": "tiny"}


def settings(system: str, **chosen: Any) -> Any:
    encoders = {k: ENCODERS[k] for k in SYSTEMS[system].encoders.values()}
    return SYSTEMS[system].settings(**{**SIZES, **SMALL.get(system, {}), **encoders, **chosen})


def run(
    system: str,
    data: Feedback,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int = 0,
    **chosen: Any,
) -> Result:
    job = job_of(data, folder, monkeypatch, settings(system, **chosen), system, seed)
    return SYSTEMS[system].execute(job)


def stages(folder: Path) -> dict[str, tuple[Any, str]]:
    """By id: the record and the content of what was trained."""
    found = {}
    for path in sorted(folder.glob("stages/*.safetensors")):
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["reprokit"])
        found[path.name] = header["record"], header["sha256"]
    return found


# --- every row ----------------------------------------------------------------------------------
@pytest.mark.parametrize("system", SYSTEMS)
def test_each_row_runs_and_ranks(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recommending, "METER", meter := Meter(queries=2, warmup=1))
    data = feedback()
    data.has_picture[[3, 4]] = False
    result = run(system, data, tmp_path, monkeypatch)
    names = ("auc", "ndcg@10", "hr@10", "full/ndcg@10", "full/hr@10")
    assert all(0 <= result.metrics[f"test/{name}"] <= 1 for name in names)
    assert 0 <= result.metrics["valid/auc"] <= 1 and len(meter.latency_ms) == 2
    assert len(stages(tmp_path)) == (system in TRAINED)
    if system in TRAINED:
        assert result.selection["split"] == "valid" and result.selection["metric"] == "ndcg@10"
        best = result.selection["value"]
        assert result.metrics["valid/ndcg@10"] == pytest.approx(best, abs=1e-6)
    else:
        assert result.selection["split"] is None


@pytest.mark.parametrize("system", ["lightgcn", "sasrec", "gru4rec", "content-based"])
def test_a_row_without_any_history_has_a_score_in_a_cold_set(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback(groups=True)
    mine = (data.users == 5) & (data.split == 0)
    data = dataclasses.replace(data, labels=np.where(mine, 0, data.labels).astype(np.int8))
    result = run(system, data, tmp_path, monkeypatch)
    assert "test/new_users/auc" in result.metrics and "test/ndcg@10" not in result.metrics
    if system != "content-based":
        assert result.selection["metric"] == "auc"
        assert result.notes == ("toy has no lists to rank: validation AUC chose the epoch",)


def test_lightgcn_learns_what_people_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = feedback(n_users=41, each=24)
    chosen = {
        "max_epochs": 25,
        "batch_size": 128,
        "dim": 16,
        "l2": 0.0,
        "patience": 25,
        "negatives": 15,
    }
    chosen |= {"rank_rows": 0, "valid_lists": 0}
    ranked = run("lightgcn", data, tmp_path, monkeypatch, **chosen)
    assert ranked.metrics["test/auc"] > 0.75
    labelled = run("lightgcn", data, tmp_path, monkeypatch, loss="bce", **chosen)
    assert labelled.metrics["test/auc"] > 0.75
    assert len(stages(tmp_path)) == 2


@pytest.mark.parametrize("system", ["lattice", "content-based"])
def test_what_cannot_be_ranked_is_said_before_anything_is_encoded(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(RequestError, match="no user has 99 items left unrated"):
        run(system, feedback(), tmp_path, monkeypatch, negatives=99)
    assert not list(tmp_path.iterdir())


# --- what stays sealed --------------------------------------------------------------------------
@pytest.mark.parametrize("system", ["lightgcn", "sasrec", "lattice"])
def test_other_test_labels_change_neither_the_model_nor_validation(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback()
    turned = np.where(data.split == 2, 1 - data.labels, data.labels).astype(np.int8)
    other = dataclasses.replace(data, labels=turned)
    ours = run(system, data, tmp_path / "a", monkeypatch)
    theirs = run(system, other, tmp_path / "b", monkeypatch)
    assert stages(tmp_path / "a") == stages(tmp_path / "b")
    assert ours.selection == theirs.selection
    for name in ("auc", "ndcg@10", "hr@10"):
        assert ours.metrics[f"valid/{name}"] == theirs.metrics[f"valid/{name}"]
    assert np.array_equal(ours.predictions["test/scores"], theirs.predictions["test/scores"])
    assert ours.metrics["test/auc"] == pytest.approx(1 - theirs.metrics["test/auc"])


def test_the_same_seed_gives_the_same_bytes_and_a_kept_stage_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run("gru4rec", feedback(), tmp_path / "a", monkeypatch)
    again = run("gru4rec", feedback(), tmp_path / "b", monkeypatch)
    kept = run("gru4rec", feedback(), tmp_path / "a", monkeypatch, rank_rows=3)
    assert stages(tmp_path / "a") == stages(tmp_path / "b")
    for name, column in first.predictions.items():
        assert np.array_equal(column, again.predictions[name]), name
    assert np.array_equal(kept.predictions["test/scores"], first.predictions["test/scores"])


def test_chat_rec_finds_lightgcn_as_its_own_row_trained_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = job_of(feedback(), tmp_path, monkeypatch, settings("lightgcn"), "lightgcn")
    # In the tables a run's revision holds that of the protocol too.
    job = dataclasses.replace(
        job, run=dataclasses.replace(job.run, revision=explainrec.SYSTEMS["lightgcn"].revision)
    )
    result = SYSTEMS["lightgcn"].execute(job)
    arena = Arena(job_of(feedback(), tmp_path, monkeypatch, TasteSettings(**SIZES), "chat-rec"))
    own = LightGCNSettings(**SMALL["lightgcn"])
    score, selection, _ = train_lightgcn(arena, own)
    assert len(stages(tmp_path)) == 1 and selection == result.selection
    assert np.array_equal(score(arena.test.pairs), result.predictions["test/scores"])
    monkeypatch.setattr(recommending, "REVISION", 1000)  # other rows choose
    SYSTEMS["lightgcn"].execute(job)
    assert len(stages(tmp_path)) == 2


# --- columns ------------------------------------------------------------------------------------
def test_histories_are_the_liked_items_before_a_row_and_none_of_the_test_split():
    data = feedback().sealed()
    rows = data.rows("test")[[0, 1, 9]]
    pairs = Pairs(np.repeat(rows, 3), np.arange(1, 10), 3)
    found = columns(data, pairs, ("users", "histories", "items"), 30)(np.array([2, 0]))
    assert found["items"].tolist() == [[7, 8, 9], [1, 2, 3]]
    assert found["users"].tolist() == data.users[rows[[2, 0]]].tolist()
    for row, history in zip(rows[[2, 0]], found["histories"].tolist(), strict=True):
        mine = (data.users == data.users[row]) & (data.labels == 1) & (data.split < 2)
        expected = data.items[mine].tolist()
        assert history == [0] * (30 - len(expected)) + expected


def test_what_is_learnt_from_are_liked_training_rows():
    data = feedback()
    users, items = liked_pairs(data)
    mine = (data.split == 0) & (data.labels == 1)
    assert (users == data.users[mine]).all() and (items == data.items[mine]).all()
    assert item_likes(data).tolist() == np.bincount(items, minlength=40).tolist()
    none = dataclasses.replace(data, labels=np.zeros_like(data.labels))
    with pytest.raises(Unavailable, match="no training row is liked"):
        liked_pairs(none)


# --- pictures -----------------------------------------------------------------------------------
def test_rows_that_need_pictures_are_empty_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = dataclasses.replace(feedback(), has_picture=np.zeros(40, bool), pictures=())
    for system, images in (("mmgcn", "needed"), ("vbpr", "needed"), ("vbpr", "if any")):
        with pytest.raises(Unavailable, match="toy has no pictures of its items here"):
            run(system, data, tmp_path, monkeypatch, images=images)
    assert [path.name for path in tmp_path.iterdir()] == ["candidates"]  # no text was encoded
    result = run("mmgcn", data, tmp_path, monkeypatch, images="if any")
    assert result.deviations == ("without pictures: the data set has none here",)


# --- content-based ------------------------------------------------------------------------------
def test_a_profile_is_what_a_loop_over_the_history_gives():
    data = feedback().sealed()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[[0, 7]] = 0
    mine = (data.users == 5) & (data.split < 2)
    data = dataclasses.replace(data, labels=np.where(mine, 0, data.labels).astype(np.int8))
    model = ContentBased(data, vectors, 0.3)
    model.size = 7  # pairs in a block
    rows = np.repeat(data.rows("test"), 3)
    items = rng.integers(1, 40, len(rows))
    found, full = model.score(Pairs(rows, items, 3)), model.full(rows)
    prior = vectors[liked_pairs(data)[1]].mean(axis=0)
    assert (model.liked(rows) == 0).sum() == 12
    for at, (row, item) in enumerate(zip(rows, items, strict=True)):
        history = np.arange(data.starts[data.users[row]], data.history_end[row])
        liked, disliked = (vectors[data.items[history[data.labels[history] == x]]] for x in (1, 0))
        profile = prior
        if len(liked):
            profile = liked.mean(axis=0)
            profile = profile - 0.3 * (disliked.mean(axis=0) if len(disliked) else 0)
        expected = profile @ vectors[item] / np.linalg.norm(profile)
        assert found[at] == pytest.approx(expected, abs=1e-5)
        assert full[at, item] == pytest.approx(expected, abs=1e-5)


def test_words_and_their_rarity_are_of_training_items_alone():
    data = feedback(n_items=80)
    strangers = np.flatnonzero(data.item_counts == 0)
    assert len(strangers) > 1
    titles = [title.replace("Title", "Common") for title in data.titles]
    for item in strangers:
        titles[item] = "Unheard common"
    data = dataclasses.replace(data, titles=titles)
    known = tfidf(data)
    other = dataclasses.replace(
        data, titles=[f"Other {t}" if n in strangers else t for n, t in enumerate(titles)]
    )
    seen = np.flatnonzero(data.item_counts > 0)
    assert (known[seen] != tfidf(other)[seen]).nnz == 0  # strangers' words change nothing
    assert known.shape[0] == 80 and known[[0]].nnz == 0
    assert known[[int(strangers[1])]].nnz == 1  # "common"; no training item is "unheard"


def test_words_and_dense_vectors_score_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = feedback().sealed()
    words = tfidf(data)
    sparse, dense = ContentBased(data, words, 0.5), ContentBased(data, words.toarray(), 0.5)
    rows = data.rows("valid")
    pairs = Pairs(rows, data.items[rows].astype(np.int64))
    assert sparse.score(pairs) == pytest.approx(dense.score(pairs), abs=1e-6)
    assert sparse.full(rows) == pytest.approx(dense.full(rows), abs=1e-6)
    result = run("content-based", feedback(), tmp_path, monkeypatch, vectors="tfidf")
    assert result.metrics["test/auc"] > 0.7  # a title names the kind that is liked
    assert not any("no liked item" in note for note in result.notes)


def test_rows_without_a_liked_item_in_their_history_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback()
    disliked = data.labels.copy()
    disliked[data.users == 1] = 0
    result = run(
        "content-based", replace(data, labels=disliked), tmp_path, monkeypatch, vectors="tfidf"
    )
    rows = int(((data.users == 1) & (data.split == 2)).sum())
    assert f"{rows} of 44 rated test rows of toy have no liked" in result.notes[-1]


# --- declarations -------------------------------------------------------------------------------
def test_all_rows_score_the_same_rows_under_each_preset():
    sizes = {field.name for field in dataclasses.fields(TasteSettings)}
    for preset in PRESETS:
        found = [
            dataclasses.asdict(system.configure("toy", preset, {})) for system in SYSTEMS.values()
        ]
        assert len({tuple((k, one[k]) for k in sorted(sizes)) for one in found}) == 1


def test_presets_name_encoders_that_are_at_hand_but_for_the_papers():
    named = {preset: SYSTEMS["lattice"].configure("toy", preset, {}) for preset in PRESETS}
    assert {p: (s.text_encoder, s.image_encoder, s.images) for p, s in named.items()} == {
        "demo": ("tiny", "tiny", "if any"),
        "small": ("minilm", "tiny", "if any"),
        "paper": ("google-bert/bert-base-uncased", "clip", "needed"),
    }
    assert SYSTEMS["vbpr"].pretrained(named["demo"]) == {"text": "tiny", "image": "tiny"}
    alone = SYSTEMS["vbpr"].configure("toy", "demo", {})
    assert SYSTEMS["vbpr"].pretrained(alone) == {"image": "tiny"}
    words = SYSTEMS["content-based"].configure("toy", "demo", {"vectors": "tfidf"})
    assert SYSTEMS["content-based"].pretrained(words) == {}


def test_sequence_models_read_less_of_sparser_reviews():
    films, reviews = (
        SYSTEMS["sasrec"].configure(name, "paper", {}) for name in ("ml-25m", "amazon-movies-2014")
    )
    assert (films.max_len, films.dropout) == (200, 0.2)
    assert (reviews.max_len, reviews.dropout) == (50, 0.5)


def test_estimates_grow_with_the_data_and_count_shared_encoders_once():
    small, large = ({"users": 10**n, "items": 10**n, "train": 10 ** (n + 1)} for n in (3, 5))
    for name, system in SYSTEMS.items():
        chosen = system.configure("toy", "paper", {})
        first, second = (system.estimate(chosen, sizes) for sizes in (small, large))
        assert 0 < first.seconds < second.seconds and 0 < first.memory < second.memory, name
    lattice, mmgcn = (
        SYSTEMS[name].estimate(SYSTEMS[name].configure("toy", "paper", {}), small)
        for name in ("lattice", "mmgcn")
    )
    assert lattice.shared == mmgcn.shared and len(lattice.shared) == 2


@pytest.mark.parametrize(
    ("system", "chosen", "said"),
    [
        ("lightgcn", {"loss": "ce"}, "loss must be bpr or bce"),
        ("gru4rec", {"loss": "bpr"}, "loss must be ce or bpr-max"),
        ("gru4rec", {"loss": "bpr-max", "sampled": 1}, "sampled is out of range"),
        ("lightgcn", {"init_std": -0.1}, "init_std is out of range"),
        ("mmgcn", {"visual": -1}, "visual is out of range"),
        ("sasrec", {"heads": 3}, "heads must divide dim"),
        ("sasrec", {"dropout": 1.0}, "dropout is out of range"),
        ("mmgcn", {"modalities": "sound"}, "modalities must be text and visual"),
        ("lattice", {"images": "some"}, "images must be one of"),
        ("content-based", {"vectors": "words"}, "vectors must be one of"),
        ("vbpr", {"choose": "mrr"}, "choose must be one of"),
    ],
)
def test_settings_out_of_range_are_said_at_once(system: str, chosen: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        SYSTEMS[system].settings(**chosen)


def test_every_setting_has_its_reason():
    for system in SYSTEMS.values():
        for item in dataclasses.fields(system.settings):
            assert item.metadata["why"], item.name
    assert tastes.BERT in dataclasses.asdict(SYSTEMS["mmgcn"].settings()).values()
