"""P5: ids without leaks, whole words by hand, scores of a plain forward, a signal learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from reprokit import homemade, recommending
from reprokit.feedback import Feedback, history_ends
from reprokit.p5 import SYSTEM, P5Settings, own_frame, own_texts, run_p5
from reprokit.p5_prompts import (
    FAMILIES,
    TEMPLATES,
    Prompts,
    draw,
    item_numbers,
    segments,
    unseen,
    user_numbers,
)
from reprokit.progress import Progress
from reprokit.recommending import Pairs
from reprokit.runs import Job, RequestError, Run
from reprokit.texttotext import (
    IGNORED,
    P5,
    answer_loss,
    beam_places,
    load_t5,
    without_aliases,
)

SMALL = {"negatives": 5, "t5": "tiny", "history": 4, "micro_batch": 0, "explain_rows": 8}
SMALL |= {"rated_rows": 0, "rank_rows": 0, "valid_rows": 0, "valid_lists": 0, "eval_batch": 64}
FAMILIES_OF_ALL = "rating=1,sequential=1,direct=1,list=1,explanation=1,review=1"


def toy(n_users: int = 20, n_items: int = 30, each: int = 15) -> Feedback:
    """Users who rate random items in time, 60% training, 20% validation, 20% test.

    Everybody likes the items with an even number, whose titles say so, nine times of ten.
    """
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, n_users), each)
    items = np.concatenate([rng.permutation(n_items - 1)[:each] + 1 for _ in range(1, n_users)])
    labels = ((items % 2 == 0) ^ (rng.random(len(users)) < 0.1)).astype(np.int8)
    split = np.tile(np.digitize(np.arange(each), [0.6 * each, 0.8 * each]), n_users - 1)
    starts = np.concatenate([[0, 0], np.cumsum(np.full(n_users - 1, each))])
    return Feedback(
        name="toy",
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        ratings=np.where(labels, 5, 2.5).astype(np.float32),
        times=np.arange(len(users)),
        labels=labels,
        split=split.astype(np.int8),
        group=np.zeros(len(users), np.int8),
        starts=starts,
        history_end=history_ends(users, split, starts),
        user_ids=["", *(f"u{user}" for user in range(1, n_users))],
        item_ids=["", *(f"i{item}" for item in range(1, n_items))],
        titles=["", *(f"Part {n}: {'Sun' if n % 2 == 0 else 'Mud'}" for n in range(1, n_items))],
        genres=[(), *((("Drama",), ("Horror", "War"))[n % 2] for n in range(1, n_items))],
        tags=[()] * n_items,
        people=[()] * n_items,
        descriptions=[""] * n_items,
        domain=np.zeros(n_items, np.int8),
        demographics={},
        reviews=[f"Review  {n} is\nfine" if n % 3 else "" for n in range(len(users))],
    )


def held_out_shuffled(data: Feedback, seed: int) -> Feedback:
    """The same training events; what is held out has other items, labels and ratings."""
    rng = np.random.default_rng(seed)
    held = np.isin(data.split, (1, 2))
    items, labels = data.items.copy(), data.labels.copy()
    items[held] = rng.integers(1, data.n_items, held.sum())
    labels[held] = rng.integers(0, 2, held.sum())
    ratings = np.where(held, rng.integers(1, 6, len(data)), data.ratings).astype(np.float32)
    return replace(data, items=items, labels=labels, ratings=ratings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("p5")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> str:
    data = toy()
    source, facts = homemade.prepare_t5(
        "tiny", own_texts(data, P5Settings(**SMALL)), own_frame(data), folder
    )
    assert 100_000 < facts["parameters"] < 500_000
    return source


def settings_of(**more: Any) -> P5Settings:
    return P5Settings(**{**SMALL, **more})


def prompts_of(checkpoint: str, data: Feedback | None = None, **more: Any) -> Prompts:
    data, s = data or toy(), settings_of(**more)
    _, tokenizer, _ = load_t5("tiny", checkpoint)
    return Prompts(data, tokenizer, draw(data, s, 0), s, 0)


@pytest.fixture(scope="module")
def prompts(checkpoint: str) -> Prompts:
    return prompts_of(checkpoint, families=FAMILIES_OF_ALL)


def model_of(checkpoint: str, prompts: Prompts, **more: Any) -> P5:
    t5, _, _ = load_t5("tiny", checkpoint)
    torch.manual_seed(0)
    return P5(t5, prompts.yes_and_no, **more).eval()


def written_out(prompts: Prompts, tokenizer: Any, row: int) -> str:
    """A training prompt as text, filled in without the library."""
    e, data = prompts.examples, prompts.data
    family = FAMILIES[e.family[row]]
    event, item = int(e.events[row]), int(e.items[row])
    users = user_numbers(data, 0)
    past = range(data.starts[data.users[event]], data.history_end[event])
    filled = {
        "user": f"user_{users[data.users[event]]}",
        "item": f"item_{prompts.numbers[item]}",
        "title": data.titles[item],
        "kind": data.item_word,
        "history": " ".join(f"item_{prompts.numbers[data.items[at]]}" for at in past[-4:]),
        "candidates": "",
        "review": " ".join(data.reviews[event].split()) if data.reviews else "",
    }
    if family == "list":
        listed = e.listed[e.extra[row]]
        filled["candidates"] = " ".join(f"item_{prompts.numbers[each]}" for each in listed)
    return TEMPLATES[family][e.template[row]].format(**filled)


# --- ids ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["random", "sequential"])
@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_item_numbers_do_not_depend_on_held_out_events(how: str, seed: int):
    data = toy()
    numbers = item_numbers(data, how, 3)
    np.testing.assert_array_equal(numbers, item_numbers(held_out_shuffled(data, seed), how, 3))
    assert sorted(numbers) == list(range(data.n_items))  # each number once, 0 for padding


def test_sequential_numbers_run_along_training_events_alone():
    data = toy()
    numbers = item_numbers(data, "sequential", 0)
    first_user = data.items[(data.users == 1) & (data.split == 0)]
    assert numbers[first_user].tolist() == list(range(1, 10))
    next_held = data.items[(data.users == 1) & (data.split == 1)][0]
    assert numbers[next_held] > 10  # the neighbour of the last number is not the next item


def test_random_numbers_follow_from_the_seed():
    data = toy()
    assert (item_numbers(data, "random", 0) == item_numbers(data, "random", 0)).all()
    assert (item_numbers(data, "random", 0) != item_numbers(data, "random", 1)).any()


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(max_examples=5, deadline=None)
def test_examples_do_not_depend_on_held_out_events(seed: int):
    data, s = toy(), settings_of(families=FAMILIES_OF_ALL)
    one, other = draw(data, s, 0), draw(held_out_shuffled(data, seed), s, 0)
    for name in ("family", "template", "events", "items", "answers", "extra", "listed"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.reasons, one.stars, one.reviews) == (other.reasons, other.stars, other.reviews)
    assert (data.split[one.events] == 0).all()


def test_unseen_items_are_none_of_the_users_training_items():
    data = toy()
    users = np.repeat(np.arange(1, data.n_users), 3)
    drawn = unseen(data, users, 7, np.random.default_rng(0))
    for user, items in zip(users, drawn, strict=True):
        mine = data.items[(data.users == user) & (data.split == 0)]
        assert not set(mine) & set(items)
    assert drawn.min() > 0 and (data.item_counts[drawn] > 0).all()


# --- prompts ------------------------------------------------------------------------------------
def test_prompts_have_the_tokens_of_their_whole_text(prompts: Prompts, checkpoint: str):
    _, tokenizer, _ = load_t5("tiny", checkpoint)
    e = prompts.examples
    seen = set()
    for row in np.random.default_rng(0).permutation(len(e))[:300].tolist():
        key = int(e.family[row]), int(e.template[row])
        if key in seen:
            continue
        seen.add(key)
        text = written_out(prompts, tokenizer, row)
        batch = prompts.lesson(np.array([row]))
        assert batch["ids"][0].tolist() == tokenizer(text)["input_ids"], text
    assert len(seen) == sum(map(len, TEMPLATES.values()))  # every template of every family


def test_whole_words_count_from_one_and_pieces_of_an_id_share_their_number(
    prompts: Prompts, checkpoint: str
):
    _, tokenizer, _ = load_t5("tiny", checkpoint)
    rows = np.flatnonzero(prompts.examples.family == FAMILIES.index("sequential"))[:5]
    batch = prompts.lesson(rows)
    width = batch["ids"].shape[1]
    for at, row in enumerate(rows.tolist()):
        expected = []
        for number, word in enumerate(written_out(prompts, tokenizer, row).split(), 1):
            expected += [number] * len(tokenizer(word, add_special_tokens=False)["input_ids"])
        expected += [0] * (width - len(expected))  # the end token and padding
        assert batch["words"][at].tolist() == expected
    library, item = prompts.library, prompts.library.first["item"] + 1
    tokens, words = library.read(np.array([[item, library.first["answer"]]]))
    assert library.sizes[item] > 1
    assert words[0].tolist() == [1] * int(library.sizes[item]) + [2, 0]
    assert tokens[0, -1] == library.end


def test_answers_say_what_happened(prompts: Prompts, checkpoint: str):
    _, tokenizer, _ = load_t5("tiny", checkpoint)
    e, data = prompts.examples, prompts.data
    for row in np.random.default_rng(1).permutation(len(e))[:60].tolist():
        targets = prompts.lesson(np.array([row]))["targets"][0]
        assert targets[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(targets[targets != IGNORED][:-1]).strip()
        event, family = int(e.events[row]), FAMILIES[e.family[row]]
        if family in ("rating", "review"):
            assert text == f"{data.ratings[event]:g}"
        elif family in ("sequential", "list"):
            assert text == f"item_{prompts.numbers[data.items[event]]}"
        elif family == "direct":
            liked = data.labels[event] == 1 and e.items[row] == data.items[event]
            assert text == ("yes" if liked else "no")
        else:
            assert text.startswith(("you ", "this ", "a ", "an ", "Review"))


def test_a_list_has_the_chosen_item_once_among_unseen_ones(prompts: Prompts):
    e = prompts.examples
    rows = np.flatnonzero(e.family == FAMILIES.index("list"))
    listed = e.listed[e.extra[rows]]
    assert ((listed == e.items[rows, None]).sum(1) == 1).all()
    places = (listed == e.items[rows, None]).argmax(1)
    assert len(set(places)) == listed.shape[1]  # it stands anywhere


def test_a_prompt_that_is_too_long_is_refused_in_one_line(checkpoint: str):
    tight = prompts_of(checkpoint, max_tokens=12)
    with pytest.raises(RequestError, match="raise max_tokens") as caught:
        _ = tight.lengths
    assert "\n" not in str(caught.value)


def test_titles_with_characters_unknown_to_t5_are_counted(prompts: Prompts, checkpoint: str):
    _, tokenizer, _ = load_t5("tiny", checkpoint)
    assert prompts.unknown == 0
    tokenizer.unk_token = tokenizer.convert_ids_to_tokens(tokenizer("Sun")["input_ids"][-2])
    asked = Prompts(prompts.data, tokenizer, prompts.examples, prompts.settings, 0)
    assert asked.unknown == sum("Sun" in title for title in prompts.data.titles) > 10


def test_an_id_that_is_one_token_ends_where_the_id_ends(folder: Path):
    source, _ = homemade.prepare_t5(
        "tiny", ["Alien", "Heat"], ["Will like"], folder, wholes=["item_1", "item_12", "user_3"]
    )
    _, tokenizer, _ = load_t5("tiny", source)
    text = "Will user_3 like item_12 item_1 item_123"
    words = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in text.split()]
    assert [len(words[at]) for at in (1, 3, 4)] == [1, 1, 1] and len(words[5]) > 1
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert whole == [token for word in words for token in word]


def test_slots_and_words_of_templates_stand_apart():
    for templates in TEMPLATES.values():
        for template in templates:
            assert " ".join(segments(template, "film")) == template.replace("{kind}", "film")


def test_noise_on_ratings_stays_in_their_range():
    examples = draw(toy(), settings_of(families="rating=1,direct=1", jitter=1.0), 0)
    values = [float(text) for text in examples.stars]
    assert len(values) > 10 and min(values) == 2.5 and max(values) == 5


# --- the model ----------------------------------------------------------------------------------
@pytest.mark.parametrize("words", ["always", "training", "never"])
def test_log_odds_are_those_of_a_plain_forward(prompts: Prompts, checkpoint: str, words: str):
    model = model_of(checkpoint, prompts, words=words)
    rows = np.arange(4)
    batch = prompts.batch(prompts.pieces("direct", 0, rows, prompts.data.items[rows]))
    with torch.no_grad():
        found = model.score(**batch)
        plain, tokenizer, _ = load_t5("tiny", checkpoint)
        plain.eval()
        for row in range(4):
            ids = batch["ids"][row][batch["ids"][row] != 0][None]
            vectors = plain.shared(ids)
            if words == "always":
                vectors = vectors + model.table.weight[batch["words"][row][: ids.shape[1]]]
            logits = plain(inputs_embeds=vectors, decoder_input_ids=torch.tensor([[0]])).logits
            odds = logits[0, 0].log_softmax(0)
            yes, no = (tokenizer(word)["input_ids"][0] for word in ("yes", "no"))
            assert float(odds[yes] - odds[no]) == pytest.approx(float(found[row]), abs=1e-5)
    assert len(set(found.tolist())) == 4


def test_padding_changes_no_score(prompts: Prompts, checkpoint: str):
    model = model_of(checkpoint, prompts)
    rows = np.arange(6)
    batch = prompts.batch(prompts.pieces("direct", 0, rows, prompts.data.items[rows]))
    with torch.no_grad():
        wider = {name: F.pad(value, (0, 9)) for name, value in batch.items()}
        torch.testing.assert_close(model.score(**batch), model.score(**wider), atol=1e-5, rtol=0)


def test_the_loss_is_the_mean_cross_entropy_of_an_answers_tokens(prompts: Prompts, checkpoint: str):
    model = model_of(checkpoint, prompts)
    batch = prompts.lesson(np.random.default_rng(0).permutation(len(prompts.examples))[:8])
    assert (batch["targets"] == IGNORED).any()
    with torch.no_grad():
        found = answer_loss(model, **batch)
        for row in range(8):
            ids = batch["ids"][row][batch["ids"][row] != 0][None]
            target = batch["targets"][row][batch["targets"][row] != IGNORED]
            vectors = model.t5.shared(ids) + model.table(batch["words"][row][: ids.shape[1]])
            logits = model.t5(
                inputs_embeds=vectors,
                decoder_input_ids=torch.cat([torch.zeros(1).long(), target[:-1]])[None],
            ).logits[0]
            each = [-float(logits[at].log_softmax(0)[token]) for at, token in enumerate(target)]
            assert np.mean(each) == pytest.approx(float(found[row]), abs=1e-5)


def test_what_is_written_is_the_likeliest_token_each_time(prompts: Prompts, checkpoint: str):
    model = model_of(checkpoint, prompts)
    rows = np.arange(3)
    batch = prompts.batch(prompts.pieces("explanation", 0, rows, prompts.data.items[rows]))
    with torch.no_grad():
        found = model.score(**batch, room=torch.zeros(3, 6))
        states, mask = model.encode(**batch)
        for row in range(3):
            answer = torch.zeros(1, 1).long()
            for _ in range(6):
                logits = model.logits(states[row : row + 1], mask[row : row + 1], answer)
                answer = torch.cat([answer, logits[:, -1:].argmax(2)], 1)
                if answer[0, -1] == prompts.library.end:
                    break
            written = answer[0, 1:].tolist()
            assert found[row].tolist() == written + [0] * (6 - len(written))


def test_a_tied_weight_is_kept_once(prompts: Prompts, checkpoint: str):
    model = model_of(checkpoint, prompts)
    names = [name for name in model.state_dict() if "embed_tokens" in name or "lm_head" in name]
    assert not names and "t5.shared.weight" in model.state_dict()
    pointers = [value.data_ptr() for value in model.state_dict().values()]
    assert len(pointers) == len(set(pointers))
    state: dict[str, Any] = {"a": torch.ones(2), "b": torch.ones(2)}
    without_aliases(model, state, "", None)
    assert list(state) == ["a", "b"]  # equal values are no alias


def test_places_in_the_beam_are_the_scores_of_a_list():
    beams = torch.tensor([[[5, 1, 0], [9, 9, 1], [6, 7, 1]]])
    candidates = torch.tensor([[[6, 7, 1], [8, 1, 0], [5, 1, 0]]])
    assert beam_places(beams, candidates).tolist() == [[1.0, 0.0, 3.0, 1.0]]


def test_the_beams_order_does_not_depend_on_where_the_target_stands(checkpoint: str):
    prompts = prompts_of(checkpoint, families="direct=1,list=1", rank_by="list", beams=8)
    model = model_of(checkpoint, prompts, beams=8)
    items = np.arange(1, 13)

    def predict(batch: Any, rows: int) -> np.ndarray:
        with torch.inference_mode():
            return model.score(**batch(np.arange(rows))).numpy()

    events = np.repeat([0, 40], 6)
    found = prompts.score(predict, Pairs(events, items, 6)).reshape(2, 6)
    turned = items.reshape(2, 6)[:, ::-1].ravel()
    again = prompts.score(predict, Pairs(events, turned, 6)).reshape(2, 6)[:, ::-1]
    np.testing.assert_array_equal(found, again)
    assert found.shape == (2, 6)
    counts: dict[str, int] = {}
    prompts.score(predict, Pairs(events, items, 6), counts)
    assert counts == {"answers to lists that are no candidate": 16 - int((found > 0).sum())}


# --- names --------------------------------------------------------------------------------------
def test_a_llama_folder_is_refused_in_one_line(folder: Path):
    source, _ = homemade.prepare("tiny", ["Alien", "Heat"], [" Yes", " No"], folder)
    with pytest.raises(RequestError, match="is a llama and no T5") as caught:
        load_t5(source, source)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(folder: Path, checkpoint: str):
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((Path(checkpoint) / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(RequestError, match="nothing is read as a pickle"):
        load_t5(str(pickled), str(pickled))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"t5": "scratch"}, "no T5 trained from scratch"),
        ({"families": "rating=1"}, "must have direct"),
        ({"families": "direct=2"}, "at most 1"),
        ({"families": "direct"}, "not family=share"),
        ({"families": "direct=1,direct=0.5"}, "'direct' stands there twice"),
        ({"title_words": 300, "review_words": 200}, "out of range, got 500"),
        ({"ids": "official"}, "ids must be one of"),
        ({"rank_by": "list", "families": "direct=1"}, "must have list"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        P5Settings(**changed)


def test_presets_configure_and_forecast():
    for preset in ("demo", "small", "paper"):
        s = SYSTEM.configure("ml-25m", preset, {})
        assert SYSTEM.pretrained(s) == {"t5": s.t5}
        estimate = SYSTEM.estimate(s, {"users": 100, "items": 100, "train": 10_000})
        assert 0 < estimate.seconds < 1e6 and estimate.memory > 1e9


# --- a whole run --------------------------------------------------------------------------------
def run_of(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: float = 20.0) -> Any:
    data = toy()
    monkeypatch.setattr(recommending, "load", lambda job: data)
    s = settings_of(
        families="rating=1,direct=1,explanation=1",
        **{
            "unseen": 0.0,
            "lr": 3e-3,
            "batch_size": 16,
            "epoch_rows": 256,
            "max_epochs": 2,
        },
    )
    run = Run("explainrec", "p5", "toy", s, 0, "of the test", backbone="t5 tiny, recipe 1")
    return run_p5(Job(run, folder, folder, seconds, Progress(quiet=True)))


def test_what_is_trained_is_another_stage_whenever_reference_reasons_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from reprokit import p5, stages

    seen: list[Any] = []

    def stage(job: Job, accelerator: Any, model: Any, what: Any, *_: Any, **__: Any) -> None:
        seen.append(what)
        raise RequestError("seen")

    monkeypatch.setattr(stages, "stage", stage)
    for more in (0, 1):
        monkeypatch.setattr(p5, "REASONS_REVISION", p5.REASONS_REVISION + more)
        with pytest.raises(RequestError, match="seen"):
            run_of(tmp_path, monkeypatch)
    assert seen[0] != seen[1] and {**seen[0], "of": 0} == {**seen[1], "of": 0}


def test_a_planted_signal_is_learnt_and_the_same_seed_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses: list[float] = []
    from reprokit import training

    kept = training.Record.update
    monkeypatch.setattr(
        training.Record,
        "update",
        lambda self, *more: losses.append(self.epochs[-1]["loss"]) or kept(self, *more),
    )
    first = run_of(tmp_path / "a", monkeypatch, seconds=0.0)  # a checkpoint at every step
    assert losses[1] < 0.8 * losses[0]
    assert first.metrics["test/auc"] > 0.6
    assert first.selection["split"] == "valid" and first.metrics["test/lists"] > 0
    assert len(first.predictions["explain/texts"]) == 8 and "test/bleu" in first.metrics
    second = run_of(tmp_path / "b", monkeypatch)
    assert first.metrics == second.metrics
    for name, column in first.predictions.items():
        assert column.tobytes() == second.predictions[name].tobytes(), name
