"""The rows of ExplainRec's tables: how they are run, what they keep, what they never see."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explainrec_runs import (
    AMAZON,
    COLD,
    CROSS,
    FILMS,
    FULL,
    SILENT,
    SMALL,
    Made,
    few_people,
    job_of,
    make,
    parameters,
    stages,
)

from reprokit import ratings, tuning
from reprokit.explainer import multi_task_loss
from reprokit.explaining import Explaining
from reprokit.feedback import GROUPS, SPLITS, Feedback
from reprokit.lexicon import split_sentences
from reprokit.reasons import shorten
from reprokit.recommending import EXPLAINED, Pairs
from reprokit.reproduce import DONE
from reprokit.runs import Job, RequestError, Store
from reprokit.training import Objective, trainable_state

WEIGHED = ("preference", "explanation", "rating", "cross-domain")
PARTS = {
    "zero-shot": ("prior.",),
    "multi-modal": ("fusion.", "seen.", "target.", "agreement."),
    "multi-task": ("rating.", "task_weights", "first_losses"),
}
"""What each part has in a trained stage, among others; attribution has no weights of its own."""
OTHERS = ("llm.", *PARTS["zero-shot"], *PARTS["multi-modal"])
"""What is not of the multi-task part: all else is, such as what equation 11 remembers."""
__all__ = ["few_people"]  # the fixture


def assert_same_stages(mine: Path, theirs: Path, **wanted: Any) -> None:
    """The stages of `theirs` with such an identity stand in `mine` too, byte by byte."""
    found, others = stages(mine, **wanted), stages(theirs, **wanted)
    assert others and others.keys() <= found.keys()
    for name, other in others.items():
        assert found[name]["sha256"] == other["sha256"]
        assert found[name]["record"] == other["record"]
        one, two = parameters(mine, name), parameters(theirs, name)
        assert all(one[key].tobytes() == two[key].tobytes() for key in one)


# --- whole runs ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def table2(tmp_path_factory: pytest.TempPathFactory, few_people: None) -> Made:
    return make(tmp_path_factory.mktemp("explainrec"), "explainrec/table2", (FULL, SILENT))


@pytest.fixture(scope="module")
def table3(table2: Made) -> Made:
    return make(table2.out, "explainrec/table3", ("TALLRec", "ExplainRec"))


def test_the_requested_rows_are_made_and_their_cells_filled(table2: Made, table3: Made):
    for made, labels, runs in ((table2, (FULL, SILENT), 2), (table3, ("TALLRec", "ExplainRec"), 4)):
        assert made.status == DONE and made.outcome.executed == runs
        assert not made.outcome.failed and not made.outcome.unavailable
        for label, values in made.cells.items():
            assert all(values) == any(values) == (label in labels), label
            assert all(0 <= float(value) <= 1 for value in values if value)
        for label in labels:
            dataset = FILMS if made is table2 else COLD
            said = made.stored(label, dataset)["deviations"]
            assert said == ["a tiny random Llama in place of LLaMA-7B"]


def test_metrics_follow_from_what_is_kept(table2: Made, table3: Made):
    for made, label, dataset, prefix in (
        (table2, FULL, FILMS, "test"),
        (table3, "TALLRec", COLD, "test/new_users"),
        (table3, "ExplainRec", COLD, "test/new_users"),
    ):
        kept = made.predictions(label, dataset)
        labels, scores = kept["test/labels"], kept["test/scores"]
        if prefix != "test":
            mine = kept["test/group"] == GROUPS.index("new_users")
            labels, scores = labels[mine], scores[mine]
        gaps = scores[labels == 1][:, None] - scores[labels == 0]
        auc = ((gaps > 0) + 0.5 * (gaps == 0)).mean()
        assert made.stored(label, dataset)["metrics"][f"{prefix}/auc"] == pytest.approx(auc)


def test_explanations_stand_beside_references_and_what_they_rest_on(table2: Made, table3: Made):
    for label in (FULL, SILENT):
        kept = table2.predictions(label)
        columns = {name: kept[f"explain/{name}"] for name in EXPLAINED}
        assert {len(column) for column in columns.values()} == {6}
        assert all(columns["references"]) and all(columns["titles"])
        for text in columns["evidence"].tolist():
            assert {"attributes", "liked", "disliked"} <= json.loads(text).keys()
        metrics = table2.stored(label)["metrics"]
        assert 0 <= metrics["test/bleu"] <= 1
        assert metrics["example/1/reference"] == columns["references"][0]
    for dataset in (COLD, CROSS):
        kept = table3.predictions("ExplainRec", dataset)
        assert not any(name.startswith("explain/") for name in kept)


def test_explained_pairs_have_the_scores_of_their_test_rows(table2: Made):
    kept = table2.predictions(FULL)
    scores = dict(
        zip(
            zip(kept["test/users"], kept["test/items"], strict=True),
            kept["test/scores"],
            strict=True,
        )
    )
    explained = zip(kept["explain/users"], kept["explain/items"], strict=True)
    expected = [scores[pair] for pair in explained]
    np.testing.assert_allclose(kept["explain/scores"], expected, atol=1e-4)


def test_the_notes_say_where_learnt_reasons_come_from(table2: Made, table3: Made):
    (told,) = [note for note in table2.stored(FULL)["notes"] if note.startswith("reasons learnt")]
    assert told.startswith(f"reasons learnt on {FILMS}: 0 review, ") and told in table2.text
    counts = [int(part.split()[0]) for part in told.partition(": ")[2].split(", ")]
    # A fifth of the rows, without domain words, learns no reason.
    assert 0.7 < sum(counts) / SMALL["train_rows"] < 0.9 and min(counts) >= 0
    for made, label, dataset in ((table2, SILENT, FILMS), (table3, "TALLRec", COLD)):
        assert not any("reasons learnt" in note for note in made.stored(label, dataset)["notes"])


def test_explanations_that_lead_to_the_same_answer_are_counted(table2: Made):
    name = "explanations that lead to the same answer"
    assert 0 <= table2.stored(FULL)["data"][name] <= 6
    assert name not in table2.stored(SILENT)["data"]


def test_learnt_reasons_name_as_many_attributes_as_references_do(table2: Made):
    run = Explaining(job_of(table2, table2.run(FULL), reason_facts=1))
    rows = run.bench.train_rows
    few = run.prompts(rows, run.data.items[rows], run.data.labels[rows])
    assert few.facts == 1
    assert table2.run(FULL).settings.reason_facts == 2


# --- the same bytes -----------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_bytes_in_another_folder(table2: Made, tmp_path: Path):
    again = make(tmp_path, "explainrec/table2", (FULL,))
    assert_same_stages(table2.out, again.out, stage="explainrec")
    one, two = table2.stored(FULL), again.stored(FULL)
    for key in ("metrics", "selection", "data", "notes", "predictions"):
        assert one[key] == two[key], key


def test_a_second_start_makes_nothing_anew(table2: Made):
    files = [*table2.out.glob("stages/*"), *table2.out.glob("runs/*")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = make(table2.out, "explainrec/table2", (FULL, SILENT))
    assert again.outcome.executed == 0 and again.cells == table2.cells
    assert before == {path: path.stat().st_mtime_ns for path in files}


def test_a_run_that_finds_its_stage_ends_with_the_same_numbers(table2: Made):
    first, kept = table2.stored(FULL), stages(table2.out)
    Store(table2.out).discard(table2.run(FULL))
    again = make(table2.out, "explainrec/table2", (FULL,))
    assert again.outcome.executed == 1 and stages(table2.out) == kept
    for key in ("metrics", "selection"):
        assert again.stored(FULL)[key] == first[key], key


@pytest.mark.parametrize("setting", [{"list_seed": 1}, {"reason_facts": 1}, {"history": 1}])
def test_what_decides_a_stage_is_in_its_name(
    table2: Made, monkeypatch: pytest.MonkeyPatch, setting: dict[str, int]
):
    """No stage is taken for one that was trained on other rows or other prompts."""
    asked: list[dict[str, Any]] = []

    def stop(job: Job, accelerator: Any, model: Any, what: dict[str, Any], *more: Any, **rest: Any):
        asked.append(dict(what))
        raise RequestError("as far as this test goes")

    monkeypatch.setattr("reprokit.stages.stage", stop)
    for changed in ({}, setting):
        run = Explaining(job_of(table2, table2.run(FULL), **changed))
        with pytest.raises(RequestError, match="as far as"):
            run.train(run.model(), "")
    assert asked[0] != asked[1]


# --- the test split is sealed -------------------------------------------------------------------
def flipped(data: Feedback) -> Feedback:
    """The same data with every test rating, label and review turned."""
    rows, reviews = data.rows("test"), data.reviews
    labels, stars = data.labels.copy(), data.ratings.copy()
    labels[rows] = 1 - labels[rows]
    stars[rows] = np.where(labels[rows] == 1, 5, 1)
    if reviews is not None:
        reviews = list(reviews)
        for row in rows:
            reviews[row] = f"An Action and Drama and Comedy that nobody saw, number {row}."
    return dataclasses.replace(data, labels=labels, ratings=stars, reviews=reviews)


def with_flipped_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ratings.load_feedback

    class Flipped:
        cache_clear = real.cache_clear

        def __call__(self, *given: Any) -> Feedback:
            return flipped(real(*given))

    monkeypatch.setattr(ratings, "load_feedback", Flipped())


def assert_test_rows_have_no_say(mine: Made, theirs: Made, label: str, dataset: str) -> None:
    one, two = mine.predictions(label, dataset), theirs.predictions(label, dataset)
    assert (one["test/labels"] == 1 - two["test/labels"]).all()
    for name in ("users", "items", "scores"):
        assert np.array_equal(one[f"test/{name}"], two[f"test/{name}"]), name
    assert all(np.array_equal(one[k], two[k]) for k in one if k.startswith("valid/"))
    stored, other = mine.stored(label, dataset), theirs.stored(label, dataset)
    assert stored["selection"] == other["selection"]
    assert all(
        stored["metrics"][name] == other["metrics"][name]
        for name in stored["metrics"]
        if name.startswith("valid/")
    )
    assert stored["metrics"]["test/auc"] == pytest.approx(1 - other["metrics"]["test/auc"])


def test_no_cold_test_row_has_a_say_in_training_adaptation_or_choice(
    table3: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_flipped_test_rows(monkeypatch)
    other = make(tmp_path, "explainrec/table3", ("TALLRec", "ExplainRec"), COLD)
    assert_same_stages(table3.out, other.out, dataset=COLD)
    for label in ("TALLRec", "ExplainRec"):
        assert_test_rows_have_no_say(table3, other, label, COLD)


@pytest.fixture(scope="module")
def amazon(table2: Made) -> Made:
    return make(table2.out, "explainrec/table1", ("ExplainRec",), AMAZON)


def test_no_test_review_or_rating_has_a_say_in_training_scores_or_explanations(
    amazon: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with_flipped_test_rows(monkeypatch)
    other = make(tmp_path, "explainrec/table1", ("ExplainRec",), AMAZON)
    assert_same_stages(amazon.out, other.out, dataset=AMAZON)
    assert_test_rows_have_no_say(amazon, other, "ExplainRec", AMAZON)
    one, two = (made.predictions("ExplainRec", AMAZON) for made in (amazon, other))
    for name in ("users", "items", "texts", "scores"):
        assert np.array_equal(one[f"explain/{name}"], two[f"explain/{name}"]), name
    assert not (one["explain/references"] == two["explain/references"]).any()
    (told,) = [n for n in amazon.stored("ExplainRec", AMAZON)["notes"] if "reasons learnt" in n]
    assert int(told.split(": ")[1].split()[0]) > 0  # reviews are read at all


def test_no_prompt_of_a_held_out_row_holds_a_sentence_of_a_test_review(amazon: Made):
    run = Explaining(job_of(amazon, amazon.run("ExplainRec", AMAZON)))
    data = run.bench.arena.data
    assert data.reviews is not None

    def said(split: str) -> set[str]:
        texts = [data.reviews[row] for row in data.rows(split)]
        return {shorten(sentence, 20) for text in texts for sentence in split_sentences(text)}

    held = run.bench.arena
    texts = [
        prompts.text(row)
        for prompts in (run.asked(held.valid.pairs), run.asked(held.test.pairs))
        for row in range(len(prompts))
    ]
    read = " ".join(data.reviews[row] for name in ("train", "valid") for row in data.rows(name))
    secret = {sentence for sentence in said("test") if len(sentence) > 12 and sentence not in read}
    assert len(secret) > 10
    assert not [one for one in secret if any(one in text for text in texts)]
    open_ones = [one for one in said("train") | said("valid") if len(one) > 12]
    assert any(one in text for one in open_ones for text in texts)


# --- equation 6 ---------------------------------------------------------------------------------
@pytest.fixture(scope="module", params=[COLD, CROSS])
def adapting(request: pytest.FixtureRequest, table3: Made) -> Explaining:
    return Explaining(job_of(table3, table3.run("ExplainRec", request.param), support=3))


def test_supports_are_few_earlier_events_of_the_user_or_the_new_item(adapting: Explaining):
    data, open_splits = adapting.data, [SPLITS.index(name) for name in ("train", "support")]
    sizes, kinds = [], set()
    for held in (adapting.bench.arena.valid, adapting.bench.arena.test):
        pairs = held.pairs
        keys, found = adapting.supports(pairs)
        for row, item, key in zip(pairs.rows, pairs.items, keys.tolist(), strict=True):
            events = found[key]
            new_item = GROUPS[data.group[row]] == "new_items"
            kinds.add((held.name, GROUPS[data.group[row]]))
            assert np.isin(data.split[events], open_splits).all() and row not in events
            assert (data.labels[events] >= 0).all()
            own = data.items[events] == item if new_item else data.users[events] == data.users[row]
            assert own.all()
            every = np.flatnonzero(
                np.isin(data.split, open_splits)
                & ((data.items == item) if new_item else (data.users == data.users[row]))
            )
            assert len(events) == min(3, len(every))
            in_time = every[np.argsort(data.times[every], kind="stable")]
            expected = in_time[:3] if new_item else in_time[-3:]
            assert sorted(data.times[events]) == sorted(data.times[expected])
            sizes.append(len(events))
    assert max(sizes) == 3 and len(kinds) > 1


def some_pairs(run: Explaining) -> Pairs:
    """Test pairs of several keys, with a support and without one where there are such."""
    pairs = run.bench.arena.test.pairs
    keys, found = run.supports(pairs)
    by_size = sorted(found, key=lambda key: len(found[key]))
    at = np.flatnonzero(np.isin(keys, [*by_size[:2], *by_size[-2:]]))
    return Pairs(pairs.rows[at], pairs.items[at])


def test_adaptation_moves_scores_and_leaves_every_parameter_as_it_was(adapting: Explaining):
    pairs, model = some_pairs(adapting), adapting.model()
    before = copy.deepcopy(model.state_dict())
    plain = adapting.ask(model.eval(), adapting.asked(pairs))
    keys, found = adapting.supports(pairs)
    empty = [key for key in found if not len(found[key])]
    none, without = adapting.adapted_scores(model, pairs, 0.0)
    np.testing.assert_allclose(none, plain, atol=1e-5)
    moved, again = adapting.adapted_scores(model, pairs, 0.5)
    assert without == again == len(empty)
    same = np.isclose(moved, plain, atol=1e-5)
    assert same[np.isin(keys, empty)].all() and not same[~np.isin(keys, empty)].all()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_adaptation_is_one_gradient_step_on_the_support_set(adapting: Explaining):
    run, rate = adapting, 0.5
    pairs = some_pairs(run)
    pairs = pairs.part(len(pairs) - 1, len(pairs))
    keys, found = run.supports(pairs)
    events = found[int(keys[0])]
    assert len(events)
    model = run.model().eval()
    moved = copy.deepcopy(model)
    batch = run.prompts(events, run.data.items[events]).batch(np.arange(len(events)))
    labels = torch.from_numpy(run.data.labels[events]).float()
    loss = F.binary_cross_entropy(torch.sigmoid(moved.score(**batch)), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    names = ("fusion.", "seen.", "target.", "agreement.", "prior.")
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name.startswith(names) and parameter.grad is not None:
                parameter -= rate * parameter.grad
    expected = run.ask(moved, run.asked(pairs))
    np.testing.assert_allclose(run.adapted_scores(model, pairs, rate)[0], expected, atol=1e-5)


def test_the_step_size_is_the_best_one_on_validation(table3: Made):
    for dataset in (COLD, CROSS):
        selection = table3.stored("ExplainRec", dataset)["selection"]
        tried = selection["tried"]
        assert [one["step size"] for one in tried] == [0.0, 0.01, 0.1]
        best = max(tried, key=lambda one: one["valid auc"])
        assert selection["step size of equation 6"] == best["step size"]
        assert "tried" not in table3.stored("TALLRec", dataset)["selection"]


# --- equation 11 --------------------------------------------------------------------------------
def only(out: Path, **wanted: Any) -> str:
    (name,) = stages(out, stage="explainrec", dataset=FILMS, **wanted)
    return name


def test_task_weights_are_kept_with_the_stage_and_reported(table2: Made):
    for label, without in ((FULL, ""), (SILENT, "attribution")):
        kept = parameters(table2.out, only(table2.out, without=without))
        weights = table2.stored(label)["selection"]["task weights"]
        expected = dict(zip(WEIGHED, kept["task_weights"].tolist(), strict=True))
        assert weights == pytest.approx(expected, abs=1e-4)
        assert kept["first_losses"].shape == (4,) and (kept["first_losses"] > 0).sum() >= 3


@pytest.fixture(scope="module")
def printed(table2: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The full row with equation 11 as printed, questions in stage 1, and too little room
    for the longest prompt."""
    run = Explaining(job_of(table2, table2.run(FULL)))
    rows = run.bench.train_rows
    limit = int(run.prompts(rows, run.data.items[rows]).lengths.max()) - 1
    more = {"direction": "printed", "stage1": "catalogue", "max_tokens": limit, "eta": 0.1}
    more |= {"epoch_rows": 128, "batch_size": 4}  # enough steps for every weight to move
    return make(tmp_path_factory.mktemp("printed"), "explainrec/table2", (FULL,), **more)


def test_as_printed_the_task_with_the_largest_loss_loses_most_weight(printed: Made):
    kept = parameters(printed.out, only(printed.out))
    weights = printed.stored(FULL)["selection"]["task weights"]
    assert printed.status == DONE
    largest = WEIGHED[int(kept["first_losses"].argmax())]
    assert min(weights, key=lambda name: weights[name]) == largest == "explanation"
    assert sum(weights.values()) == pytest.approx(4, abs=1e-3)


def test_the_first_stage_is_counted_and_the_second_stands_on_it(printed: Made):
    (first,) = stages(printed.out, stage="instructions")
    name = only(printed.out)
    assert stages(printed.out)[name]["what"]["first"] == first.partition(".")[0]
    counts = printed.stored(FULL)["data"]
    whole = counts["instructions of stage 1"], counts["instructions of stage 1 that are too long"]
    data = ratings.load_feedback(FILMS, printed.planned.request.data_dir)
    assert sum(whole) == 2 * sum(bool(genres) for genres in data.genres[1:]) and whole[0] > 0


def test_prompts_that_were_cut_are_counted_and_noted(printed: Made, table2: Made):
    counts = printed.stored(FULL)["data"]
    cut, items = counts["prompts cut"], counts["items cut"]
    assert 0 < cut <= items
    limit = printed.run(FULL).settings.max_tokens
    note = f"{cut:,} prompts of {FILMS} lost {items:,} history items to the limit of {limit}"
    assert any(note in one for one in printed.stored(FULL)["notes"]) and note in printed.text
    assert table2.stored(FULL)["data"]["prompts cut"] == 0


def test_a_first_stage_without_room_ends_in_one_line(printed: Made):
    job = job_of(printed, printed.run(FULL), max_tokens=8)
    with pytest.raises(RequestError, match=r"stage 1: of \d+ instructions 0 fit into 8 tokens"):
        tuning.Bench(job).stage_one()


# --- parts --------------------------------------------------------------------------------------
def test_a_part_that_is_switched_off_is_not_in_the_trained_stage(table2: Made):
    full = set(parameters(table2.out, only(table2.out, without="")))
    assert set(parameters(table2.out, only(table2.out, without="attribution"))) == full
    assert any("lora_" in name for name in full)
    for without, prefixes in PARTS.items():
        run = Explaining(job_of(table2, table2.run(FULL), without=without))
        trained = trainable_state(Objective(run.model(), multi_task_loss))
        names = {name.removeprefix("model.") for name in trained}
        gone = {name for name in full if name.startswith(prefixes)}
        if without == "multi-task":
            gone |= {name for name in full if not name.startswith(OTHERS)}
        assert all(any(name.startswith(one) for name in gone) for one in prefixes)
        assert names == full - gone, without
        assert (run.knowledge is None) == (without == "zero-shot")
        assert bool(run.features) == (without != "multi-modal")


def test_without_attribution_no_prompt_has_a_reason(table2: Made):
    for without in ("", "attribution"):
        run = Explaining(job_of(table2, table2.run(FULL), without=without))
        prompts = run.asked(run.bench.arena.valid.pairs)
        texts = [prompts.text(row) for row in range(len(prompts))]
        assert any(" because you " in text for text in texts) == (without == "")


# --- few shots ----------------------------------------------------------------------------------
def test_few_shots_are_so_many_rows_of_the_seed(table3: Made):
    run = table3.run("TALLRec", COLD)
    found = [
        tuning.Bench(job_of(table3, run, seed=seed, shots=16)).train_rows for seed in (0, 0, 1)
    ]
    data = ratings.load_feedback(COLD, table3.planned.request.data_dir)
    for rows in found:
        assert len(rows) == len(np.unique(rows)) == 16
        assert (data.split[rows] == 0).all()
        assert (data.history_end[rows] > data.starts[data.users[rows]]).all()
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_without_shots_the_rows_are_the_same_for_all_seeds(table3: Made):
    run = table3.run("TALLRec", COLD)
    one, two = (tuning.Bench(job_of(table3, run, seed=seed)).train_rows for seed in (0, 1))
    assert len(one) == SMALL["train_rows"] and np.array_equal(one, two)
