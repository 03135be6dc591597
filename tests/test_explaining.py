"""How ExplainRec and TALLRec are run: what is refused before training, and what decides a score."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_explainer import model, words
from test_instructions import EVENTS, GENRES
from test_prompting import tiny_llm
from test_reasons import feedback

from reprokit import backbones, explaining, tuning
from reprokit.backbones import add_lora
from reprokit.explainer import ExplainRec
from reprokit.explaining import Explaining, ExplainRecSettings
from reprokit.feedback import GROUPS, Feedback
from reprokit.patterns import KnowledgeBase
from reprokit.progress import Progress
from reprokit.recommending import Pairs
from reprokit.runs import RequestError, Unavailable
from reprokit.tuning import Bench, TALLRecSettings

JOB = SimpleNamespace(progress=Progress(quiet=True), run=SimpleNamespace(seed=0))


class Process:
    """One of some processes; what the others found is zero here."""

    device = torch.device("cpu")

    def __init__(self, index: int, count: int) -> None:
        self.process_index, self.num_processes = index, count

    def reduce(self, scores: torch.Tensor, how: str) -> torch.Tensor:
        return scores


def cold() -> Feedback:
    data = feedback(EVENTS, genres=GENRES).sealed()
    held = data.split > 0
    return replace(data, group=np.where(held, GROUPS.index("new_users"), 0).astype(np.int8))


def run(process: Process, **more: Any) -> Explaining:
    """A run with neither pictures nor texts, as it stands before it is trained."""
    made = Explaining.__new__(Explaining)
    made.data, made.settings = cold(), ExplainRecSettings(without="multi-modal", **more)
    made.knowledge, made.features = KnowledgeBase(made.data), {}
    bench: Any = Bench.__new__(Bench)
    bench.job, bench.settings, bench.data, bench.words = JOB, made.settings, made.data, words()
    bench.counts, bench.accelerator = {}, process
    made.bench = bench
    return made


def net(dropout: float = 0.0) -> ExplainRec:
    llm = add_lora(tiny_llm(), r=2, dropout=dropout, seed=0)
    return ExplainRec(llm, words().answers, words().again, {}, patterns=3)


# --- scores ---
def test_a_model_that_comes_from_a_kept_stage_is_asked_without_dropout() -> None:
    made, kept = run(Process(0, 1)), net(dropout=0.9)
    for parameter in kept.adapter():
        torch.nn.init.normal_(parameter)
    prompts = made.asked(Pairs(np.array([4, 7]), np.array([5, 1])))
    expected = kept.eval().score(**prompts.batch(np.arange(2))).detach().numpy()
    np.testing.assert_allclose(made.ask(kept.train(), prompts), expected, atol=1e-5)


def test_adapted_scores_and_counts_do_not_hang_on_the_number_of_processes() -> None:
    pairs = Pairs(np.array([7, 4, 3, 4]), np.array([1, 5, 4, 2]))
    whole = run(Process(0, 1), max_tokens=300)
    limit = int(whole.asked(pairs).lengths.max()) - 1
    found = []
    for index, count in ((0, 1), (0, 2), (1, 2)):
        made = run(Process(index, count), max_tokens=limit)
        found.append((made.adapted_scores(net(), pairs, 0.1)[0], made.bench.counts))
    np.testing.assert_array_equal(found[0][0], found[1][0] + found[2][0])
    assert found[0][1] == found[1][1] == found[2][1] and found[0][1]["prompts cut"]


def test_where_nobody_has_a_support_event_scores_are_those_of_no_step() -> None:
    made, pairs = run(Process(0, 1)), Pairs(np.array([0, 5]), np.array([1, 2]))
    found, without = made.adapted_scores(net(), pairs, 0.1)
    np.testing.assert_allclose(found, made.ask(net(), made.asked(pairs)), atol=1e-5)
    assert without == 2


# --- what decides a stage ---
def test_another_encoder_of_the_same_name_makes_another_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def keep(self: Bench, what: dict[str, Any], *_: Any) -> None:
        asked.append(what)

    monkeypatch.setattr(Bench, "stage_two", keep)
    for content in ("1", "2"):
        made = run(Process(0, 1))
        made.settings = ExplainRecSettings()
        pretrained = {"llm": "x", "text": f"folder {content}", "image": "y"}
        made.bench.job = SimpleNamespace(run=SimpleNamespace(seed=0, pretrained=pretrained))
        made.bench.__dict__["train_rows"] = np.array([1, 2])
        empty = SimpleNamespace(patterns=np.zeros((2, 3), np.float32))
        made.__dict__["instructions"] = (empty, empty)
        made.train(model(), "")
    assert asked[0]["encoders"] == {"text": "folder 1", "image": "y"} != asked[1]["encoders"]


# --- errors come before training ---
def test_rows_of_one_label_are_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = feedback([(1, item, 1, "train") for item in range(1, 6)]).sealed()
    monkeypatch.setattr(tuning, "Arena", lambda job: SimpleNamespace(sealed=data))
    monkeypatch.setattr(backbones, "load", lambda *_: pytest.fail("a model is loaded"))
    job: Any = SimpleNamespace(run=SimpleNamespace(seed=0, settings=TALLRecSettings(stage1="none")))
    with pytest.raises(Unavailable, match="are all liked, or all disliked"):
        Bench(job)


def test_step_sizes_are_not_chosen_by_rows_of_one_label() -> None:
    made = run(Process(0, 1), adapt_rows=1)
    pairs = Pairs(np.array([3, 4]), np.array([4, 5]))
    held = SimpleNamespace(pairs=pairs, labels=np.array([1, 0]))
    made.bench.arena = SimpleNamespace(valid=held)  # type: ignore[assignment]
    with pytest.raises(Unavailable, match=r"the 1 validation rows .* raise adapt_rows"):
        _ = made.tried
    made = run(Process(0, 1), adapt_rows=2)
    made.bench.arena = SimpleNamespace(valid=held)  # type: ignore[assignment]
    assert made.tried[1].tolist() == [1, 0]


def test_a_prompt_that_is_too_long_is_refused_before_the_first_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RequestError("a prompt is too long")

    data = cold()
    bench = SimpleNamespace(
        data=data, train_rows=np.array([1, 2]), stage_one=lambda: pytest.fail("trained")
    )
    monkeypatch.setattr(tuning, "Bench", lambda job: bench)
    monkeypatch.setattr(tuning, "instructions", refuse)
    job: Any = SimpleNamespace(run=SimpleNamespace(settings=TALLRecSettings()))
    with pytest.raises(RequestError, match="a prompt is too long"):
        tuning.run_tallrec(job)
    made = run(Process(0, 1))
    made.bench.__dict__["train_rows"] = np.array([1, 2])
    monkeypatch.setattr(made.bench, "stage_one", lambda: pytest.fail("trained"))
    monkeypatch.setattr(explaining, "Explaining", lambda job: made)
    monkeypatch.setattr(explaining, "instructions", refuse)
    with pytest.raises(RequestError, match="a prompt is too long"):
        explaining.run_explainrec(job)


def test_prompts_longer_than_the_model_reads_are_refused() -> None:
    made = run(Process(0, 1)).bench
    made.backbone = SimpleNamespace(model=tiny_llm())  # type: ignore[assignment]
    room = made.backbone.model.config.max_position_embeddings
    made.check_room(room - 40, 40)
    with pytest.raises(RequestError, match=rf"reads {room:,} tokens: .* Lower max_tokens"):
        made.check_room(room - 40, 41)
    rows = np.array([1, 2])
    made.backbone.model.config.max_position_embeddings = 30
    with pytest.raises(RequestError, match="reads 30 tokens"):
        tuning.instructions(made, rows, made.data.items[rows], labels=made.data.labels[rows])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"adapt_lr": "0,nan"}, "a step size is not finite"),
        ({"adapt_lr": "inf"}, "a step size is not finite"),
        ({"smoothing": 0.0}, "smoothing"),
    ],
)
def test_a_setting_that_would_fail_later_is_refused(setting: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExplainRecSettings(**setting)
