"""ExplainRec's equations against plain loops, and that a part switched off is not in the graph."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_instructions import EVENTS, GENRES
from test_prompting import randomised, tiny_llm
from test_prompts import byte_level
from test_reasons import feedback
from torch import Tensor

from reprokit import explainer
from reprokit.backbones import add_lora
from reprokit.explainer import (
    ExplainRec,
    Fusion,
    adapted,
    attribution_terms,
    bernoulli_kl,
    explain,
    move_weights,
    multi_task_loss,
    positions,
    read_again,
    updated_weights,
    whole_text_loss,
)
from reprokit.instructions import AGAIN, BECAUSE, Instructions, read_words
from reprokit.prompting import TextModel

ROWS = np.array([1, 2, 6])
FEATURES = {
    "text": np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32),
    "visual": np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32),
}
FEATURES["text"][0] = FEATURES["visual"][0] = 0
FEATURES["visual"][3] = 0  # no picture
FEATURES["text"][5] = FEATURES["visual"][5] = 0  # nothing at all


def words() -> Any:
    return read_words(byte_level(), feedback(EVENTS, genres=GENRES).sealed(), {})


def prompts(**more: Any) -> Instructions:
    data = feedback(EVENTS, genres=GENRES).sealed()
    options: dict[str, Any] = {"reasons": True, "slots": True, "labels": data.labels[ROWS]}
    made = Instructions(words(), data, ROWS, data.items[ROWS], 3, **{**options, **more})
    made.patterns = np.random.default_rng(2).normal(size=(len(ROWS), 3)).astype(np.float32)
    return made


def model(**more: Any) -> ExplainRec:
    llm = add_lora(tiny_llm(), r=2, dropout=0.0, seed=0)
    found = words()
    options: dict[str, Any] = {"features": FEATURES, "dim": 6, "patterns": 3}
    return randomised(ExplainRec(llm, found.answers, found.again, **{**options, **more}))


def batch(made: Instructions) -> dict[str, Tensor]:
    every = np.arange(len(made))
    assert made.labels is not None and made.patterns is not None
    return {
        **made.training_batch(every),
        "labels": torch.from_numpy(made.labels),
        "stars": torch.tensor([0.5, -1.0, 1.5]),
        "patterns": torch.from_numpy(made.patterns),
    }


def read_by(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model itself reads of a batch."""
    other = ("labels", "stars", "patterns", "targets", "free")
    return {k: v for k, v in inputs.items() if k not in other}


def added(net: ExplainRec, inputs: dict[str, Tensor]) -> Tensor:
    return net.beside(inputs["patterns"], inputs["targets"], inputs["histories"])


def terms(net: ExplainRec, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return attribution_terms(
        net,
        net.trace(**read_by(inputs)),
        inputs["ids"],
        inputs["labels"],
        added(net, inputs),
        **positions(inputs),
    )


# --- equation 8 ---
def test_fusion_is_attention_over_the_modalities_that_an_item_has() -> None:
    torch.manual_seed(0)
    fusion = Fusion(FEATURES, 6)
    items, context = torch.tensor([1, 3, 5]), torch.randn(3, 6)
    found = fusion(items, context)
    for row, item in enumerate(items.tolist()):
        values, scores = [], []
        for name in ("text", "visual"):
            x = torch.from_numpy(FEATURES[name][item])
            if not x.any():
                continue
            value = fusion.maps[name].weight @ x
            values.append(value)
            q = fusion.query.weight @ context[row]
            scores.append((q @ (fusion.key.weight @ value)).item() / math.sqrt(6))
        total = sum(math.exp(score) for score in scores)
        wanted = torch.zeros(6)
        for score, value in zip(scores, values, strict=True):
            wanted += math.exp(score) / total * value
        torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-5)


def test_the_context_is_what_was_liked_less_what_was_disliked() -> None:
    fusion = Fusion(FEATURES, 6)
    histories = torch.tensor([[0, 1, 2, 0, 0, 4], [0, 0, 0, 0, 0, 0]])

    def value(item: int) -> Tensor:
        return sum(fusion.maps[n].weight @ torch.from_numpy(FEATURES[n][item]) for n in FEATURES)

    wanted = (value(1) + value(2)) / 2 - value(4)
    found = fusion.context(histories)
    torch.testing.assert_close(found[0], wanted)
    assert not found[1].any()


# --- equations 3 and 10 ---
def test_the_three_losses_equal_a_loop_over_rows_and_tokens() -> None:
    net, made = model(), prompts()
    inputs = batch(made)
    pred, reason, consistency = terms(net, inputs)
    beside, lm = added(net, inputs), net.causal
    for row in range(len(ROWS)):
        one = made.training_batch(np.array([row]))
        last, stop, end = (int(one[name]) for name in ("last", "stop", "end"))
        fields = ("ids", "items", "slots", "users", "histories")
        vectors = net.embed(**{name: one[name] for name in fields})
        # What is read at the answer and the reason: an ordinary forward pass, one row alone.
        plain = lm(inputs_embeds=vectors[:, :stop]).logits[0]
        prior = beside[row].item()
        yes, no = net.answers
        odds = plain[last, yes] - plain[last, no] + prior
        label = int(inputs["labels"][row])
        wanted = -F.logsigmoid(odds if label else -odds)
        torch.testing.assert_close(pred[row], wanted, atol=1e-5, rtol=1e-5)
        total = 0.0
        for at in range(last + 2, stop):
            total -= F.log_softmax(plain[at - 1], -1)[one["ids"][0, at]].item()
        assert reason[row].item() == pytest.approx(total / (stop - last - 2), abs=1e-4)
        # Read again with the answer hidden: a mask over keys, row of queries by row of queries.
        mask = torch.ones(end + 1, end + 1).tril().bool()
        mask[stop:, last + 1] = False
        hidden = lm(inputs_embeds=vectors, attention_mask=mask[None, None]).logits[0]
        again = hidden[end, net.again[0]] - hidden[end, net.again[1]] + prior
        p, q = (torch.sigmoid(x).item() for x in (odds, again))
        kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert consistency[row].item() == pytest.approx(kl, abs=1e-4)


def test_the_loss_is_the_weighted_sum_over_tasks() -> None:
    net = model(weights=(0.7, 0.4, 0.2))
    made = prompts(free=np.array([False, True, False]))
    net.task_weights.copy_(torch.tensor([0.5, 1.5, 0.8, 1.2]))
    inputs = batch(made)
    found = multi_task_loss(net, **dict(inputs))
    states = net.trace(**read_by(inputs))
    pred, reason, consistency = terms(net, inputs)
    for row in (0, 2):
        state = states[row, inputs["last"][row]]
        rating = 0.5 * (net.rating(state) - inputs["stars"][row]) ** 2
        told = 0.4 * reason[row] + 0.2 * consistency[row]
        wanted = 0.5 * 0.7 * pred[row] + 1.5 * told + 0.8 * rating[0]
        torch.testing.assert_close(found[row], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], 1.2 * pred[1], atol=1e-5, rtol=1e-5)


def test_padding_and_company_change_no_loss() -> None:
    net, made = model(), prompts()
    together = multi_task_loss(net, **batch(made))
    inputs = batch(made)
    for row in range(len(ROWS)):
        one = made.training_batch(np.array([row]))
        more = {name: inputs[name][row : row + 1] for name in ("labels", "stars", "patterns")}
        torch.testing.assert_close(
            multi_task_loss(net, **one, **more)[0], together[row], atol=1e-4, rtol=1e-4
        )


def test_the_second_reading_does_not_see_the_token_of_the_answer() -> None:
    net, made = model(), prompts()
    inputs = batch(made)
    rest = read_by(inputs)
    # With no reason between, the cue alone stands behind the answer: only the mask keeps it off.
    step = torch.arange(rest["ids"].shape[1])
    own = step == inputs["last"][:, None] + 1
    swapped = torch.where(own, net.answers[0] + net.answers[1] - rest["ids"], rest["ids"])
    rest["stop"] = inputs["last"] + 2
    first, second = net.trace(**rest), net.trace(**{**rest, "ids": swapped})
    every = torch.arange(len(ROWS))
    torch.testing.assert_close(first[every, inputs["end"]], second[every, inputs["end"]])
    assert not torch.allclose(first[every, inputs["last"] + 1], second[every, inputs["last"] + 1])


def test_kl_of_equal_answers_is_nothing_and_grows() -> None:
    odds = torch.tensor([0.3, -2.0])
    assert bernoulli_kl(odds, odds).abs().max() < 1e-6
    assert (bernoulli_kl(odds, odds + 1) > 0).all()


# --- equation 11 ---
def test_task_weights_follow_the_printed_rule_and_keep_their_sum() -> None:
    weights, losses = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0.5, 2.0, 1.0])
    found = updated_weights(weights, losses, 0.1)
    raw = [w * math.exp(-0.1 * x) for w, x in zip(weights.tolist(), losses.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(raw) * 4 / sum(raw))


@pytest.mark.parametrize(("direction", "raised"), [("needed", True), ("printed", False)])
def test_weight_goes_to_the_task_that_lags_or_as_printed_away_from_it(
    direction: str, raised: bool
) -> None:
    # Two tasks, each a number to be learnt; the second has a tenth of the step size, and lags.
    net = model(eta=0.05, direction=direction)
    values = torch.tensor([3.0, 3.0, 0.0, 0.0])
    counts = torch.tensor([1.0, 1.0, 0.0, 0.0])
    for _ in range(100):
        net.loss_sums += values**2
        net.row_counts += counts
        move_weights(net)
        values = values * (1 - torch.tensor([0.1, 0.01, 0.0, 0.0]) * net.task_weights)
    quick, slow, *absent = net.task_weights.tolist()
    assert (slow > quick) == raised
    assert quick + slow == pytest.approx(2, abs=1e-4) and absent == [1.0, 1.0]


def weights_after_steps(micro: int) -> tuple[Tensor, Tensor]:
    """Task weights and steps that were seen, with so many rows in memory at once."""
    net, made = model(eta=0.5).train(), prompts(free=np.array([False, True, False]))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    inputs = batch(made)
    for rows in [[0, 1, 2], [1, 2]] * 2:  # the last batch of a pass is smaller
        before = None
        for start in range(0, len(rows), micro):
            some = rows[start : start + micro]
            more = {name: inputs[name][some] for name in ("labels", "stars", "patterns")}
            losses = multi_task_loss(net, **made.training_batch(np.array(some)), **more)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            assert before is None or torch.equal(before, net.task_weights)
            before = net.task_weights.clone()
        optimizer.step()
        optimizer.zero_grad()
    return net.task_weights, net.steps_seen


def test_task_weights_move_once_a_step_whatever_is_in_memory_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(explainer, "FIRST", 1)
    (whole, seen), (parts, also) = weights_after_steps(3), weights_after_steps(1)
    assert seen.tolist() == also.tolist() == [3] * 4  # the last step is not made yet
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)
    assert (whole - 1).abs().max() > 0.01


def test_no_weight_leaves_its_bounds_and_a_large_rate_overflows_nothing() -> None:
    net = model(eta=1000.0)
    for step in range(20):
        net.loss_sums += torch.tensor([1.0 + max(0, step - 10), 1.0, 1.0, 1.0])
        net.row_counts += 1
        move_weights(net)
    assert net.task_weights.sum().item() == pytest.approx(4)
    assert net.task_weights.min() >= 0.25 - 1e-5 and net.task_weights.max() <= 4 + 1e-5
    assert net.task_weights.max() > 3
    raw = updated_weights(torch.ones(2), torch.tensor([1e4, 1.0]), 1000.0)
    torch.testing.assert_close(raw, torch.tensor([0.0, 2.0]))


# --- equations 5 and 6 ---
def test_the_knowledge_prior_is_added_to_the_log_odds() -> None:
    net, made = model(), prompts(labels=None)
    inputs = made.batch(np.arange(len(ROWS)))
    with torch.no_grad():
        whole = net.score(**inputs)
        bare = net.score(**{**inputs, "patterns": torch.zeros(len(ROWS), 3)})
    assert made.patterns is not None
    weight = net.prior.weight[0].detach().numpy()
    np.testing.assert_allclose((whole - bare).numpy(), made.patterns @ weight, atol=1e-5)


def test_the_agreement_of_the_target_with_the_context_is_added_too() -> None:
    net, made = model(patterns=0), prompts(labels=None)
    inputs = made.batch(np.arange(len(ROWS)))
    context = net.fusion.context(inputs["histories"])
    found = added(net, inputs)
    for row, item in enumerate(made.targets.tolist()):
        h = net.fusion(torch.tensor([item]), context[row : row + 1])[0]
        wanted = sum(net.agreement.weight[0, d] * h[d] * context[row, d] for d in range(6))
        torch.testing.assert_close(found[row], torch.as_tensor(wanted), atol=1e-5, rtol=1e-5)


def test_adaptation_is_one_gradient_step_and_leaves_no_trace() -> None:
    net, made = model(), prompts(labels=None)
    inputs = made.batch(np.arange(len(ROWS)))
    parameters = [p for n, p in net.named_parameters() if not n.startswith(("llm.", "rating."))]
    before = [p.detach().clone() for p in parameters]
    loss = F.softplus(-net.score(**inputs)).mean()
    wanted = torch.autograd.grad(F.softplus(-net.score(**inputs)).mean(), parameters)
    with adapted(parameters, loss, 0.003):
        for parameter, start, gradient in zip(parameters, before, wanted, strict=True):
            torch.testing.assert_close(parameter.detach(), start - 0.003 * gradient)
        assert F.softplus(-net.score(**inputs)).mean().item() < loss.item()
    assert all(torch.equal(p, start) for p, start in zip(parameters, before, strict=True))


# --- parts that are switched off ---
def reached(net: ExplainRec, made: Instructions) -> set[str]:
    """The modules that the loss has a gradient for."""
    net.zero_grad()
    multi_task_loss(net, **batch(made)).sum().backward()
    names = (n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().any())
    return {name.partition(".")[0] for name in names}


def test_all_parts_are_in_the_graph() -> None:
    own = {"fusion", "seen", "target", "agreement", "prior", "rating"}
    assert reached(model(), prompts()) == {"llm", *own}


@pytest.mark.parametrize(
    ("options", "row", "gone"),
    [
        ({"features": {}}, {"slots": False}, {"fusion", "seen", "target", "agreement"}),
        ({"patterns": 0}, {}, {"prior"}),
        ({"tasks": False}, {}, {"rating"}),
    ],
)
def test_a_part_switched_off_is_not_in_the_graph(options: Any, row: Any, gone: set[str]) -> None:
    net = model(**options)
    there = {name.partition(".")[0] for name, _ in net.named_parameters()}
    assert not there & gone
    assert reached(net, prompts(**row)) == there


def test_without_attribution_no_reason_is_read_or_learnt() -> None:
    net, made = model(attribution=False, tasks=False), prompts(reasons=False)
    text = byte_level().decode(made.training_batch(np.array([0]))["ids"][0].tolist())
    assert BECAUSE not in text and AGAIN not in text
    inputs = batch(made)
    pred, reason, consistency = terms(net, inputs)
    assert not reason.any() and not consistency.any()
    torch.testing.assert_close(multi_task_loss(net, **dict(inputs)), pred)


# --- whole texts and explanations ---
def test_the_whole_text_loss_is_the_mean_over_tokens() -> None:
    net = TextModel(tiny_llm(), words().answers)
    made = prompts(reasons=False, slots=False)
    found = made.training_batch(np.arange(len(ROWS)))
    ids, end = found["ids"], found["end"]
    losses = whole_text_loss(net, ids, end, torch.ones_like(end))
    for row in range(len(ROWS)):
        logits = net.causal(input_ids=ids[row : row + 1, : end[row] + 1]).logits[0]
        wanted = F.cross_entropy(logits[:-1], ids[row, 1 : end[row] + 1])
        torch.testing.assert_close(losses[row], wanted, atol=1e-5, rtol=1e-5)


def test_explanations_are_what_the_likeliest_tokens_say_one_by_one() -> None:
    net, made = model(), prompts(labels=None)
    inputs = made.batch(np.arange(len(ROWS)))
    beside = added(net, inputs).detach()
    found = words()
    begin = [int(t) for t in byte_level()(BECAUSE, add_special_tokens=False)["input_ids"]]
    answers = torch.tensor([found.answers[0], found.answers[1], found.answers[0]])
    written = explain(net, read_by(inputs), answers, begin, found.end, 6)
    for row, reason in enumerate(written):
        alone = read_by(made.batch(np.array([row])))
        last = int(alone.pop("last"))
        vectors = net.embed(**alone)[:, : last + 1]
        more = [int(answers[row]), *begin]
        wanted: list[int] = []
        while len(wanted) < 6:
            ids = torch.tensor([more + wanted])
            logits = net.causal(inputs_embeds=torch.cat([vectors, net.words(ids)], 1)).logits
            token = int(logits[0, -1].argmax())
            if token == found.end:
                break
            wanted.append(token)
        assert reason == wanted
    cue = [int(t) for t in byte_level()(AGAIN, add_special_tokens=False)["input_ids"]]
    odds = read_again(net, read_by(inputs), answers, written, begin, found.end, cue, beside)
    one = read_again(
        net,
        read_by(made.batch(np.array([1]))),
        answers[1:2],
        written[1:2],
        begin,
        found.end,
        cue,
        beside[1:2],
    )
    torch.testing.assert_close(odds[1], one[0], atol=1e-5, rtol=1e-5)
