"""The baselines that read a prompt, against plain loops over rows and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_prompts import READ, ROWS, Place, byte_level, places, prompts_of, vocabulary_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from reprokit.backbones import add_lora, merged
from reprokit.collaborative import MF
from reprokit.data import CTRData
from reprokit.prompting import CoLLM, Softprompt, TextModel, answer_loss, yes_loss
from reprokit.prompts import COLLM_PROMPT, HYBRID, PLAIN, SOFT_PROMPT, Prompts, answer_tokens


# --- a small world ------------------------------------------------------------------------------
def labels_of(data: CTRData) -> Tensor:
    labels = torch.from_numpy(data.test.labels[:ROWS])
    assert set(labels.tolist()) == {0, 1}
    return labels


def tiny_llm(kind: str = "llama") -> Any:
    """Random weights, large enough that every token moves the answer."""
    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](
        vocab_size=len(byte_level()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=kind == "qwen2",
    )
    return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def answers() -> tuple[int, int]:
    return answer_tokens(byte_level(), HYBRID[-1])


def randomised(model: nn.Module, std: float = 0.3) -> Any:
    """The model with random values in all that is not the language model's own."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("llm.") or "lora_" in name:
                parameter.normal_(std=std)
    return model.eval()


# --- the same, slowly ---------------------------------------------------------------------------
def row_places(prompts: Prompts, data: CTRData, row: int) -> list[Place]:
    history = data.histories(data.test, np.array([row]), READ)[0] * (row > 0)
    return places(prompts.template, history.tolist(), int(data.test.items[row]))


def read(model: Any, vectors: Sequence[Tensor]) -> Tensor:
    """Logits (V,) behind the last of some vectors, by the whole language model."""
    return model.llm(inputs_embeds=torch.stack(list(vectors))[None], use_cache=False).logits[0, -1]


def two_layers(network: Any, x: Tensor) -> Tensor:
    first, _, last = network
    return last.weight @ (first.weight @ x + first.bias).clamp(min=0) + last.bias


def close(ours: Any, theirs: Any) -> None:
    """Equal to 1e-5, and not because nothing moves."""
    ours, theirs = (torch.as_tensor(values).double() for values in (ours, theirs))
    assert ours.shape == theirs.shape and ours.std() > 0.02
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def scores(model: Any, prompts: Prompts, index: Sequence[int] | None = None) -> Tensor:
    with torch.no_grad():
        return model.score(**prompts.batch(np.arange(len(prompts)) if index is None else index))


def scored_in_every_way(model: Any, prompts: Prompts) -> None:
    """One by one, all at once, with shared prefixes, in batches by length, with LoRA merged."""
    one_by_one = torch.cat([scores(model, prompts, np.array([row])) for row in range(len(prompts))])
    close(scores(model, prompts), one_by_one)
    for order in (np.arange(len(prompts)), prompts.scoring_order):
        assert sorted(order) == list(range(len(prompts)))
        with torch.no_grad(), merged(model.llm):
            for size in (7, len(prompts)):
                parts = [order[start : start + size] for start in range(0, len(order), size)]
                found = [model.score(**prompts.batch(part, share=True)) for part in parts]
                close(torch.cat(found), one_by_one[order])


# --- models -------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_text_model_is_the_language_model_read_behind_the_cue(kind: str, click_data: CTRData):
    llm, (yes, no) = tiny_llm(kind), answers()
    prompts, labels = prompts_of(click_data, PLAIN), labels_of(click_data)
    model = TextModel(llm, (yes, no))
    table = llm.get_input_embeddings().weight
    logits = [
        read(model, [table[token] for _, token, _ in row_places(prompts, click_data, row)])
        for row in range(ROWS)
    ]
    log_p = [row.softmax(-1).log() for row in logits]
    close(scores(model, prompts), [float(row[yes] - row[no]) for row in log_p])
    close(scores(TextModel(llm, (yes, no), "yes"), prompts), [float(row[yes]) for row in logits])
    inputs = prompts.batch(np.arange(ROWS))
    wanted = [-row[yes if y else no] for row, y in zip(log_p, labels, strict=True)]
    close(answer_loss(model, labels, **inputs), torch.stack(wanted))
    p = torch.stack([torch.sigmoid(row[yes]) for row in logits])
    wanted = F.binary_cross_entropy(p, labels.float(), reduction="none")
    close(yes_loss(model, labels, **inputs), wanted)


def collm(std: float = 0.3) -> CoLLM:
    return randomised(CoLLM(tiny_llm(), answers(), MF(41, 31, 8, 0.1), factor=3), std)


def test_collm_puts_one_mapping_of_user_and_item_into_two_slots(click_data: CTRData):
    model, prompts, labels = collm(), prompts_of(click_data, COLLM_PROMPT), labels_of(click_data)
    table, (yes, _) = model.llm.get_input_embeddings().weight, model.answers
    wanted = []
    for row, user in enumerate(click_data.test.users[:ROWS]):
        vectors = []
        for kind, token, item in row_places(prompts, click_data, row):
            if kind == "<user>":
                vectors.append(two_layers(model.mapping, model.encoders[0].users.weight[user]))
            elif kind == "<item>":
                vectors.append(two_layers(model.mapping, model.encoders[0].items.weight[item]))
            else:
                vectors.append(table[token])
        wanted.append(read(model, vectors)[yes])
    close(scores(model, prompts), torch.stack(wanted).detach())
    bce = F.binary_cross_entropy(torch.stack(wanted).sigmoid(), labels.float(), reduction="none")
    close(yes_loss(model, labels, **prompts.batch(np.arange(ROWS))), bce)


def test_softprompt_puts_six_learned_vectors_into_every_prompt(click_data: CTRData):
    model = randomised(Softprompt(tiny_llm(), answers()))
    assert model.virtual.shape == (2, 3, 32)
    prompts, table = prompts_of(click_data, SOFT_PROMPT), model.llm.get_input_embeddings().weight
    wanted = []
    for row in range(ROWS):
        first, last = iter(model.virtual[0]), iter(model.virtual[1])
        vectors = []
        for kind, token, _ in row_places(prompts, click_data, row):
            virtual = {"<soft user>": first, "<soft item>": last}.get(kind)
            vectors.append(next(virtual) if virtual else table[token])
        wanted.append(read(model, vectors)[model.answers[0]])
    close(scores(model, prompts), torch.stack(wanted).detach())


def test_swapping_the_slots_of_collm_changes_its_score(click_data: CTRData):
    prompts, model = prompts_of(click_data, COLLM_PROMPT), collm(1.0)
    before = scores(model, prompts)
    user, item = COLLM_PROMPT.index("<user>"), COLLM_PROMPT.index("<item>")
    swapped = list(COLLM_PROMPT)
    swapped[user], swapped[item] = swapped[item], swapped[user]
    after = scores(model, prompts_of(click_data, tuple(swapped)))
    assert (before - after).abs().min() > 1e-3


def same_texts() -> Prompts:
    """Two users and two items, whose texts are the same, in all four pairs."""
    titles = ["", "Film", "Film", "Another"]
    users, items = np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2])
    histories = np.full((4, 2), 3)
    return Prompts(vocabulary_of(byte_level(), titles), COLLM_PROMPT, users, items, histories)


def test_collm_tells_equal_texts_apart_by_the_cf_vectors_alone():
    prompts, model = same_texts(), collm(1.0)
    found = scores(model, prompts)
    apart = (found[:, None] - found[None]).abs() + torch.eye(4)
    assert apart.min() > 1e-4
    for table in (model.encoders[0].users, model.encoders[0].items):
        nn.init.zeros_(table.weight)
    assert len(set(scores(model, prompts).tolist())) == 1


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("template", [PLAIN, COLLM_PROMPT, SOFT_PROMPT])
def test_batches_padding_sharing_and_merging_change_no_score(
    template: tuple[str, ...], kind: str, click_data: CTRData
):
    llm = add_lora(tiny_llm(kind), r=4)
    if template == COLLM_PROMPT:
        model: Any = CoLLM(llm, answers(), MF(41, 31, 8, 0.1), factor=3)
    else:
        model = Softprompt(llm, answers()) if template == SOFT_PROMPT else TextModel(llm, answers())
    prompts = prompts_of(click_data, template)
    assert len(set(prompts.lengths.tolist())) > 5  # so there is padding
    shared = prompts.batch(np.arange(ROWS), share=True)
    assert len(shared["prefix_ids"]) < ROWS == len(shared["ids"])
    scored_in_every_way(randomised(model), prompts)


def test_a_hundred_candidates_of_one_user_read_their_history_once():
    users, targets = np.full(100, 5), np.arange(100) % 30 + 1
    histories = np.tile([3, 20, 9], (100, 1))
    prompts = Prompts(vocabulary_of(byte_level()), COLLM_PROMPT, users, targets, histories)
    shared, whole = (prompts.batch(np.arange(100), share=share) for share in (True, False))
    assert len(shared["prefix_ids"]) == 1 and len(shared["users"]) == 1
    assert len(shared["ids"]) == 100 and shared["ids"].numel() < whole["ids"].numel() / 2
    users[50:] = 6  # another user with the same titles
    two = Prompts(vocabulary_of(byte_level()), COLLM_PROMPT, users, targets, histories)
    assert len(two.batch(np.arange(100), share=True)["prefix_ids"]) == 2
