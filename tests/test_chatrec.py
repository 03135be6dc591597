"""Chat-REC: prompts, what is read of an answer, how a list becomes scores, and the whole run."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from test_recommending import NO_LISTS, feedback, job_of

from reprokit import chatrec, recommending
from reprokit.asking import Answer
from reprokit.chatrec import (
    CHATREC,
    ChatRecSettings,
    RatedPrompts,
    groups,
    profile,
    ranking_prompt,
    reciprocal,
    reranked,
    run_chatrec,
    scale_of,
    yes_scores,
)
from reprokit.feedback import Feedback
from reprokit.metrics import auc, ndcg, ranks
from reprokit.recommending import Arena, Pairs
from reprokit.runs import Job, RequestError, Run, Unavailable
from reprokit.title_lists import Reading, read_ranking

FILMS = [
    "Matrix, The (1999)",
    "Alien (1979)",
    "Alien: Resurrection (1997)",
    "Star Wars: Episode IV - A New Hope (1977)",
    "Amélie (2001)",
    "Se7en (1995)",
    "Ocean's Eleven (2001)",
    "10 Things I Hate About You (1999)",
]


# --- reading an answer --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reply", "order"),
    [
        ("1. Alien (1979)\n2. Se7en (1995)", (1, 5)),
        ("1) The Matrix - it bends the mind\n2) Amelie: warm and odd", (0, 4)),
        ('- "Alien: Resurrection" \u2014 more of the same\n- \u201cSe7en\u201d', (2, 5)),
        ("* **Alien**: a classic\n* **The Matrix (1999)** because of its action", (1, 0)),
        ("1. Star Wars: Episode IV - A New Hope (1977) - an epic", (3,)),
        ("1. star wars episode iv a new hope\n2. ALIEN RESURRECTION", (3, 2)),
        ("1. 10 Things I Hate About You - fun\n2. Oceans Eleven", (7, 6)),
        ("Sure! Here is the list:\n\n1. Alien\n   - Reason: The Matrix is close\n2. Se7en", (1, 5)),
        ("1. Alien - tense 2. Se7en - dark 3. Amélie", (1, 5, 4)),
        ("Alien\nThe Matrix", (1, 0)),
        ("1. Alian (1979)\n2. The Matrx", (1, 0)),
        ("Here it is:\n1. Alien (1979): as good as Aliens (1986)", (1,)),
        ("**Se7en** (1995): dark\n'Alien' (1979)", (5, 1)),
        ("I cannot help with that.", ()),
        ("", ()),
    ],
)
def test_a_list_of_titles_is_read_in_whatever_form_it_comes(reply: str, order: tuple[int, ...]):
    assert read_ranking(reply, FILMS).order == order


def test_invented_and_repeated_titles_are_dropped_and_counted():
    reply = "1. Alien\n2. Blade Runner (1982) - a film of its own\n3. Alien (1979)\n4. Se7en"
    assert read_ranking(reply, FILMS) == Reading((1, 5), invented=1, repeated=1)


def test_another_part_of_a_series_is_not_the_candidate():
    known = ["Rocky II (1979)", "Aliens (1986)", "King Kong (1933)", "King Kong (2005)"]
    assert read_ranking("1. Rocky III\n2. Alien 3\n3. Rocki II", known) == Reading((0,), 2, 0)
    assert read_ranking("1. King Kong (2005) - big\n2. King Kong", known).order == (3, 2)


def test_a_second_title_in_brackets_and_the_place_of_any_article_are_set_aside():
    known = ["Blue Angel, The (Blaue Engel, Der) (1930)", "Jetée, La (1962)", "$ (1971)"]
    known += ["Solaris (Solyaris) (1972)", "Solaris (2002)", "(500) Days of Summer (2009)"]
    reply = "1. Solaris (2002)\n2. The Blue Angel (1930) - old\n3. La Jetée - stills\n4. $ - greed"
    reply += "\n5. Solaris (1972)\n6. The Blue Angel (1959)\n7. (500) Days of Summer"
    assert read_ranking(reply, known) == Reading((4, 0, 1, 2, 3, 5), invented=1, repeated=0)


@pytest.mark.parametrize(
    "sequel",
    [
        "Alien: Resurrection (1997)",
        "Alien: Covenant 2017",
        "Aliens (1986)",
        "Alien (2003)",
        "**Alien** (1986)",
        '"Alien" (1986) - the same again',
        "Star Wars: Episode VI - Return of the Jedi (1983) - the end",
        "Star Wars - Return of the Jedi (1983)",
    ],
)
def test_a_sequel_of_another_year_is_invented(sequel: str):
    known = ["Alien (1979)", "Star Wars (1977)"]
    assert read_ranking(f"1. {sequel}\n2. Nothing", known) == Reading((), 2, 0)


def test_a_title_that_begins_with_a_number_makes_no_numbered_list():
    known = [*FILMS, "300: Rise of an Empire (2014)"]
    assert read_ranking("Alien\n300: Rise of an Empire\nSe7en", known).order == (1, 8, 5)
    assert read_ranking("300: Rise of an Empire", known).order == (8,)
    assert read_ranking("1. 300: Rise of an Empire\n2. Alien", known).order == (8, 1)
    assert read_ranking("- Alien\n- 300: Rise of an Empire", known).order == (1, 8)


def test_a_greeting_is_no_invented_title():
    assert read_ranking("Here you are:\nAlien\nEnjoy!", FILMS) == Reading((1,), 0, 0)


def test_candidates_with_one_title_are_named_one_after_the_other():
    assert read_ranking("1. Solaris\n2. Solaris\n3. Solaris", ["Solaris", "Alien", "Solaris"]) == (
        Reading((0, 2), invented=0, repeated=1)
    )


# --- scores -------------------------------------------------------------------------------------
def test_named_candidates_come_first_then_the_rest_of_the_shown_then_the_recommenders_order():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (4, 9)).astype(float)  # with ties
    items = np.stack([rng.permutation(100)[:9] for _ in range(4)])
    order = chatrec.order_of(scores, items)
    readings = [Reading(o, 0, 0) for o in [(), (2, 0), (0, 1, 2, 3), (3,)]]
    made = reranked(scores, order, 4, readings)
    for row, reading in enumerate(readings):
        by_hand = sorted(range(9), key=lambda at: (-scores[row, at], items[row, at]))
        assert by_hand == order[row].tolist()
        named = [by_hand[place] for place in reading.order]
        left = [at for at in by_hand[:4] if at not in named]
        behind = by_hand[4:]
        values = made[row]
        assert all(values[a] > values[b] for a, b in itertools.pairwise(named))
        assert len({values[at] for at in left}) <= 1
        assert all(values[a] > values[b] for a in named for b in left + behind)
        assert all(values[a] > values[b] for a in left for b in behind)
        for a in behind:
            for b in behind:
                assert (values[a] > values[b]) == (scores[row, a] > scores[row, b])


def test_an_items_score_is_its_reciprocal_rank_and_zero_where_it_is_left_out():
    assert reciprocal(Reading((2, 0), 0, 0), 4).tolist() == [0.5, 0.0, 1.0, 0.0]


def test_the_rated_items_of_a_user_stand_in_equal_prompts():
    users = np.array([2, 1, 2, 2, 1, 2, 2])
    parts = groups(users, 3, np.random.default_rng(0))
    assert [len(part) for part in parts] == [2, 3, 2]
    assert sorted(np.concatenate(parts).tolist()) == list(range(7))
    assert all(len(set(users[part])) == 1 for part in parts)


def test_every_prompt_holds_as_many_candidates_rated_pairs_once_and_unrated_items():
    data = feedback()
    rows = np.concatenate([data.rows("test"), data.rows("valid")[:3]])  # seven rows of one user
    pairs = Pairs(rows, data.items[rows].astype(np.int64))
    asked = RatedPrompts.of(data.sealed(), pairs, 5, 7)
    assert asked.items.shape == (12, 5) == asked.pair.shape
    assert sorted(asked.pair[asked.pair >= 0].tolist()) == list(range(len(rows)))
    assert asked.unrated == 60 - len(rows)
    for row, items, pair in zip(asked.rows, asked.items, asked.pair, strict=True):
        user = data.users[row]
        known = set(data.items[data.users == user].tolist())
        assert len(set(items.tolist())) == 5
        for item, number in zip(items.tolist(), pair.tolist(), strict=True):
            if number < 0:
                assert item not in known and 0 < item < data.n_items
            else:
                assert pairs.items[number] == item and data.users[rows[number]] == user
    assert len({tuple(pair >= 0) for pair in asked.pair}) > 1  # no place of their own
    again = RatedPrompts.of(data, pairs, 5, 7)
    assert np.array_equal(asked.items, again.items)


def test_the_oracle_is_the_best_of_all_complete_answers():
    pair = np.array([[0, -1, 1], [2, 3, -1]])
    asked = RatedPrompts(np.zeros(2, int), pair, pair)
    labels = np.array([1, 0, 1, 1])
    found = auc(labels, asked.oracle(labels))
    every = [1 / np.array(order) for order in itertools.permutations([1, 2, 3])]
    scores = [asked.scores(np.stack(both)) for both in itertools.product(every, every)]
    assert found == max(auc(labels, one) for one in scores) == 1.0
    assert asked.oracle(labels).tolist() == pytest.approx([1, 1 / 3, 1, 1 / 2])


def test_a_user_who_has_rated_nearly_everything_is_named_as_too_long_a_prompt():
    data = feedback(n_items=24)  # three items unrated
    rows = data.rows("test")
    with pytest.raises(RequestError, match=r"lower chatrec\.shown"):
        RatedPrompts.of(data, Pairs(rows, data.items[rows].astype(np.int64)), 8, 0)


def test_too_long_a_prompt_is_said_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = job_with(feedback(n_items=24), tmp_path, monkeypatch, shown=8, negatives=2, chat_rows=2)
    monkeypatch.setattr(chatrec, "ask", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(RequestError, match=r"lower chatrec\.shown"):
        run_chatrec(job, candidates)


# --- prompts ------------------------------------------------------------------------------------
def test_a_prompt_says_who_asks_what_was_rated_and_what_to_rank_and_nothing_of_the_test_split():
    gender = np.zeros(12, np.int16)
    age = np.full(12, -1, np.int16)
    data = dataclasses.replace(feedback(), demographics={"gender": gender, "age": age})
    row = int(data.rows("test")[5])
    about = profile(data, row, 6, scale_of(data))
    assert about.startswith("About the person: gender female.\n") and "age" not in about
    assert "from 2 to 5" in about
    before = data.histories(np.array([row]), 6)[0]
    assert (data.split[before] != 2).all()
    listed = [f"- {data.titles[data.items[e]]} ({data.ratings[e]:g})" for e in before]
    assert about.splitlines()[2:] == listed
    text = ranking_prompt(data, about, [7, 3])
    assert "Candidates:\n- Title 7 of kind1\n- Title 3 of kind1\n" in text
    # Another opinion on the test items changes no prompt.
    hidden = np.where(data.split == 2, 1.0, data.ratings).astype(np.float32)
    other = dataclasses.replace(data, ratings=hidden)
    assert profile(other, row, 6, scale_of(other)) == about


def test_one_who_has_rated_nothing_has_a_profile_that_says_so():
    data = feedback()
    first = int(data.starts[3])
    assert profile(data, first, 5, "") == "No film was rated before."


# --- the run ------------------------------------------------------------------------------------
def settings(**changed: Any) -> ChatRecSettings:
    few = {"negatives": 9, "shown": 4, "history": 5, "llm": "tiny", "max_new_tokens": 4}
    return ChatRecSettings(**{**NO_LISTS, **few, **changed})


def job_with(data: Feedback, folder: Path, patch: pytest.MonkeyPatch, **changed: Any) -> Job:
    job = job_of(data, folder, patch, settings(**changed), "chat-rec")
    return dataclasses.replace(job, run=dataclasses.replace(job.run, backbone="tiny"))


def candidates(arena: Arena) -> Any:
    """Scores that are worst for the target: LightGCN is tested elsewhere."""

    def score(pairs: Pairs) -> np.ndarray:
        return np.tile(np.arange(pairs.width), len(pairs) // pairs.width)

    return score, {"split": "valid"}, 0.0


def answering(reply: Callable[[str], str], seen: list[str]) -> Any:
    def ask(prompts: Sequence[str], *_: Any, **__: Any) -> Any:
        seen.extend(prompts)
        answers = [Answer(reply(prompt), None, reasoned=False, cut=False) for prompt in prompts]
        return answers, {"note": ""}

    return ask


def listed(prompt: str) -> list[str]:
    return re.findall(r"^- (.+)$", prompt.split("Candidates:\n")[1], re.MULTILINE)


def test_a_model_that_knows_the_taste_reaches_what_the_protocol_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, seen = feedback(), list[str]()
    job = job_with(data, tmp_path, monkeypatch, chat_rows=5, history=12)

    def parity(prompt: str) -> str:
        """Names the candidates of the kind that the user likes first."""
        rated = re.findall(r"kind(\d) \((\d)\)", prompt)
        votes = [int(kind) if rating == "5" else 1 - int(kind) for kind, rating in rated]
        kind = int(sum(votes) > len(votes) / 2)
        best = sorted(listed(prompt), key=lambda title: not title.endswith(f"kind{kind}"))
        return "\n".join(f"{n}. {title} - suits" for n, title in enumerate(best, 1))

    monkeypatch.setattr(chatrec, "ask", answering(parity, seen))
    result = run_chatrec(job, candidates)
    assert result.metrics["test/auc"] > 0.7
    assert result.metrics["test/asked_users"] == 5
    columns = result.predictions
    assert len(set(columns["test/users"].tolist())) == 5
    assert result.metrics["test/auc"] == auc(columns["test/labels"], columns["test/scores"])
    again = ranks(columns["test/lists/scores"])
    assert result.metrics["test/ndcg@10"] == ndcg(again, 10)
    assert all(len(listed(prompt)) == 4 for prompt in seen)
    assert len(columns["test/labels"]) == 5 * 4  # all of each user's test rows
    assert result.data["answers"] == len(seen)
    assert result.data["candidates left out of answers"] == 0
    # The target, last by the recommender, was shown in no list of nine better ones.
    assert (columns["test/lists/scores"].argmin(1) == 0).all()


def test_the_auc_is_of_all_test_rows_of_a_user_whatever_sample_others_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data, seen = feedback(), list[str]()
    job = job_with(data, tmp_path, monkeypatch, chat_rows=3, rated_rows=12, shown=6)
    liked = {
        (f"u{u}", data.titles[i])
        for u, i, label in zip(data.users, data.items, data.labels, strict=True)
        if label
    }
    monkeypatch.setattr(chatrec, "profile", lambda data, row, *_: data.user_ids[data.users[row]])

    def oracle(prompt: str) -> str:
        user = prompt.split("\n\n")[1]
        best = sorted(listed(prompt), key=lambda title: (user, title) not in liked)
        return "\n".join(f"{n}. {title}" for n, title in enumerate(best, 1))

    monkeypatch.setattr(chatrec, "ask", answering(oracle, seen))
    result = run_chatrec(job, candidates)
    columns = result.predictions
    asked = sorted(set(columns["test/users"].tolist()))
    rows = [row for row in data.rows("test") if data.user_ids[data.users[row]] in asked]
    told = sorted(zip(columns["test/users"].tolist(), columns["test/items"].tolist(), strict=True))
    assert told == sorted(
        (data.user_ids[data.users[row]], data.item_ids[data.items[row]]) for row in rows
    )
    assert len(asked) == 3 and result.metrics["test/rows"] == 12
    assert result.metrics["test/auc"] > 0.9
    note = next(note for note in result.notes if note.startswith("AUC: reciprocal rank"))
    assert "all 12 rated test pairs" in note and "3 prompts of 6 candidates" in note
    assert "6 candidates are unrated" in note
    assert float(note.rpartition(" ")[2]) >= result.metrics["test/auc"] - 1e-4


def test_no_prompt_is_made_with_the_test_split_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = job_with(feedback(), tmp_path, monkeypatch, chat_rows=3)
    opened: list[bool] = []

    def watched(data: Feedback, *more: Any) -> str:
        opened.append(bool((data.labels[data.split == 2] >= 0).any()))
        return profile(data, *more)

    monkeypatch.setattr(chatrec, "profile", watched)
    monkeypatch.setattr(chatrec, "ask", answering(lambda prompt: "", []))
    run_chatrec(job, candidates)
    assert opened and not any(opened)


def test_what_a_tiny_random_llama_says_leaves_candidates_tied_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = job_with(feedback(), tmp_path, monkeypatch, chat_rows=2)
    result = run_chatrec(job, candidates)
    assert result.deviations == ("a tiny random Llama in place of gpt-3.5-turbo",)
    notes = " ".join(result.notes)
    assert "answers name no candidate" in notes and "asked about 2 of 11 users" in notes
    again = run_chatrec(job, candidates)
    for name, column in result.predictions.items():
        assert np.array_equal(column, again.predictions[name])


def test_without_a_key_nothing_is_trained_and_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("REPROKIT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    job = job_with(feedback(), tmp_path, monkeypatch, llm="endpoint:gpt-3.5-turbo")
    monkeypatch.setattr(recommending, "load", lambda job: pytest.fail("data were read"))
    with pytest.raises(Unavailable, match="nothing was sent") as stopped:
        run_chatrec(job, candidates)
    assert "\n" not in str(stopped.value)


def test_log_odds_of_yes_are_those_of_each_prompt_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    job = job_with(feedback(), tmp_path, monkeypatch, auc_by="yes", chat_rows=2)
    found = []

    def watch(model: Any, tokenizer: Any, prompts: list[str], *more: Any) -> np.ndarray:
        scores = yes_scores(model, tokenizer, prompts, *more)
        for prompt, score in zip(prompts, scores, strict=True):
            with torch.inference_mode():
                ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
                logits = model.llm(input_ids=ids).logits[0, -1].float()
            yes, no = model.answers
            assert score == pytest.approx(float(logits[yes] - logits[no]), abs=1e-4)
            found.append(prompt)
        return scores

    monkeypatch.setattr(chatrec, "yes_scores", watch)
    result = run_chatrec(job, candidates)
    assert len(found) == result.metrics["test/rows"]
    assert len(np.unique(result.predictions["test/scores"])) > len(found) / 2


def test_candidates_are_found_before_the_test_split_is_opened_and_with_the_rows_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from reprokit import tastes

    few = {**NO_LISTS, "negatives": 9, "valid_lists": 5, "chat_rows": 2, "shown": 4, "history": 5}
    chosen = CHATREC.configure("", "demo", few)
    job = job_with(feedback(), tmp_path, monkeypatch)
    job = dataclasses.replace(job, run=dataclasses.replace(job.run, settings=chosen))
    asked: list[Any] = []

    def trained(arena: Arena, settings: Any) -> Any:
        assert "test" not in vars(arena)  # a cached property
        asked.append(settings)
        return candidates(arena)

    monkeypatch.setattr(tastes, "train_lightgcn", trained)
    monkeypatch.setattr(chatrec, "ask", answering(lambda prompt: "", []))
    result = run_chatrec(job)
    assert result.selection == {"split": "valid"}
    rows = {**NO_LISTS, "negatives": 9, "valid_lists": 5}
    assert asked == [tastes.SYSTEMS["lightgcn"].configure("", "demo", rows)]


def test_another_recommender_is_another_run(monkeypatch: pytest.MonkeyPatch):
    from reprokit import tastes

    def made(preset: str = "demo", **chosen: Any) -> str:
        own = CHATREC.configure("ml-25m", preset, chosen)
        return Run("explainrec", "chatrec", "ml-25m", own, 0, "data", CHATREC.revision).id

    first, theirs = made(), tastes.SYSTEMS["lightgcn"]
    assert first == made() and first != made(cf_preset="small")
    presets = {**theirs.presets, "demo": {**theirs.presets["demo"], "lr": 0.123}}
    for other in ({"revision": theirs.revision + 1}, {"presets": presets}):
        changed = {**tastes.SYSTEMS, "lightgcn": dataclasses.replace(theirs, **other)}
        monkeypatch.setattr(tastes, "SYSTEMS", changed)
        assert made() != first
    stored = dataclasses.asdict(CHATREC.configure("ml-25m", "demo", {}))
    assert ChatRecSettings(**stored) == CHATREC.configure("ml-25m", "demo", {})


def test_cold_sets_need_no_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = job_with(feedback(groups=True), tmp_path, monkeypatch)
    monkeypatch.setattr(chatrec, "ask", answering(lambda prompt: "", []))
    result = run_chatrec(job, lambda arena: pytest.fail("trained for nothing"))
    assert result.metrics["test/auc"] == 0.5 == result.metrics["test/new_users/auc"]
    assert "test/ndcg@10" not in result.metrics


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"auc_by": "no"}, "auc_by must be"),
        ({"auc_by": "yes", "llm": "endpoint:x"}, "reads probabilities"),
        ({"shown": 0}, "shown"),
        ({"cf_preset": "large"}, "cf_preset must be"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        settings(**wrong)


def test_users_of_one_label_alone_are_no_ground_for_an_auc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = feedback()
    # All but one user like everything in the test split.
    labels = np.where((data.split == 2) & (data.users != 1), 1, data.labels).astype(np.int8)
    job = job_with(dataclasses.replace(data, labels=labels), tmp_path, monkeypatch, chat_rows=1)
    monkeypatch.setattr(chatrec, "asked_users", lambda arena, held: np.array([4]))
    with pytest.raises(RequestError, match=r"raise chatrec\.chat_rows"):
        run_chatrec(job, candidates)


def test_presets_and_estimates_hold_for_every_model():
    sizes = {"users": 300, "items": 200, "train": 5000}
    demo = CHATREC.configure("ml-25m", "demo", {})
    assert demo.llm == "tiny" and CHATREC.pretrained(demo) == {"llm": "tiny"}
    assert CHATREC.configure("ml-25m", "paper", {}).llm == "endpoint:gpt-3.5-turbo"
    for preset in ("demo", "small", "paper"):
        made = CHATREC.estimate(CHATREC.configure("ml-25m", preset, {}), sizes)
        assert min(made.seconds, made.memory, made.disk) > 0


def test_importing_the_module_loads_no_torch():
    code = "import sys, reprokit.chatrec; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"
