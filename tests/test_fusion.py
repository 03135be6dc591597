"""CCFLLM against a plain loop over rows and tokens; what trains, what stays, what is saved."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import load_file, save_file
from test_prompting import (
    answers,
    close,
    labels_of,
    randomised,
    read,
    row_places,
    scored_in_every_way,
    scores,
    tiny_llm,
    two_layers,
)
from test_prompts import RECENT, ROWS, TITLES, byte_level, prompts_of, vocabulary_of
from torch import Tensor, nn

from reprokit.backbones import add_lora, load
from reprokit.collaborative import MF, LightGCN
from reprokit.data import CTRData
from reprokit.fusion import CCFLLM, GATES, pair_loss, pair_loss_of
from reprokit.homemade import TINY, prepare
from reprokit.prompting import TextModel
from reprokit.prompts import HYBRID, PLAIN, Prompts, frame
from reprokit.sequential import SASRec


def encoder(kind: str, data: CTRData) -> Any:
    if kind == "mf":
        return MF(data.n_users, data.n_items, 8, 0.1)
    if kind == "sasrec":
        return SASRec(data.n_items, 12, 0.1, max_len=RECENT, blocks=2, heads=2, dropout=0.5)
    liked = data.train.labels == 1
    edges = data.train.users[liked], data.train.items[liked]
    return LightGCN(data.n_users, data.n_items, 8, 0.1, 2, *edges)


def ccf_llm(
    data: CTRData,
    kinds: str = "mf",
    gate: str = "dimension",
    llm: Any = None,
    std: float = 0.3,
) -> CCFLLM:
    """All weights but the language model's random, so that every gate is open."""
    encoders = [encoder(kind, data) for kind in kinds.split("+")]
    return randomised(CCFLLM(llm or tiny_llm(), answers(), encoders, gate, factor=3), std)


# --- equations 2 to 5 and 7, slowly -------------------------------------------------------------
def vectors_of(model: CCFLLM, data: CTRData, row: int) -> list[tuple[Tensor, Tensor, Any]]:
    """For each CF model: the user's vector, all items' vectors, its fusion networks."""
    recent = data.histories(data.test, np.array([row]), RECENT) * (row > 0)
    user = int(data.test.users[row])
    found = []
    for cf, fusion in zip(model.encoders, model.fusions, strict=True):
        if isinstance(cf, SASRec):
            found.append((cf.encode(torch.from_numpy(recent))[0], cf.items.weight, fusion))
        else:
            of_users, of_items = cf.vectors()
            found.append((of_users[user], of_items, fusion))
    return found


def fused_prompt(model: CCFLLM, prompts: Prompts, data: CTRData, row: int) -> list[Tensor]:
    """Section 3.3, rules 1 to 3, with equations 2, 3, 4 and 7."""
    table = model.llm.get_input_embeddings().weight
    sources = vectors_of(model, data, row)
    sequence = []
    for kind, token, item in row_places(prompts, data, row):
        if kind == "word":
            sequence.append(table[token])  # rule 1
        elif kind == "<user>":  # rule 2, a sum over the CF models
            parts = [two_layers(fusion.align, of_user) for of_user, _, fusion in sources]
            sequence.append(torch.stack(parts).sum(0))
        else:  # rule 3
            text = table[token]
            fused = text.clone()
            for _, of_items, fusion in sources:
                aligned = two_layers(fusion.align, of_items[item])  # eq. 2
                if fusion.gate in ("dimension", "scalar"):  # eq. 3
                    alpha = two_layers(fusion.gate_cf, aligned) + two_layers(
                        fusion.gate_token, text
                    )
                else:
                    alpha = torch.tensor({"one": 1.0, "none": 0.0}[fusion.gate])
                fused = fused + alpha * aligned  # eq. 4, 7
            sequence.append(fused)
    return sequence


def plain_pair_loss(logits: Tensor, y: float, k: float) -> Tensor:
    """Equation 5 from the probabilities of the two answers."""
    p = logits.double().softmax(-1)
    p_yes, p_no = (p[token] for token in answers())
    sign = 1.0 if y == 1 else -1.0
    bce_yes = F.binary_cross_entropy(p_yes, torch.tensor(y).double())
    bce_no = F.binary_cross_entropy(p_no, torch.tensor(1 - y).double())
    return bce_yes + bce_no - k * torch.log(torch.sigmoid(sign * torch.log(p_yes / p_no)))


WHAT = [
    *(("mf", gate, "llama") for gate in GATES),
    ("lightgcn", "dimension", "qwen2"),
    ("mf+sasrec", "dimension", "llama"),
    ("sasrec+lightgcn", "scalar", "qwen2"),
]


@pytest.mark.parametrize(("kinds", "gate", "llm"), WHAT)
def test_scores_and_losses_are_those_of_the_equations(
    kinds: str, gate: str, llm: str, click_data: CTRData
):
    model = ccf_llm(click_data, kinds, gate, tiny_llm(llm))
    prompts, labels = prompts_of(click_data, HYBRID), labels_of(click_data)
    with torch.no_grad():
        logits = [read(model, fused_prompt(model, prompts, click_data, r)) for r in range(ROWS)]
    yes, no = model.answers
    p = [row.double().softmax(-1) for row in logits]
    close(scores(model, prompts).double(), [float((row[yes] / row[no]).log()) for row in p])
    for k in (0.0, 2.0):
        wanted = [plain_pair_loss(row, float(y), k) for row, y in zip(logits, labels, strict=True)]
        with torch.no_grad():
            loss = pair_loss(k)(model, labels, **prompts.batch(np.arange(ROWS)))
        close(loss.double(), torch.stack(wanted))


def test_gates_have_one_weight_for_each_dimension_or_one_for_each_token(click_data: CTRData):
    sizes = {"dimension": 32, "scalar": 1}
    for gate in GATES:
        (fusion,) = ccf_llm(click_data, gate=gate).fusions
        assert fusion.align[0].weight.shape == (3 * 8, 8)  # factor x D
        assert fusion.align[2].weight.shape == (32, 3 * 8)
        assert hasattr(fusion, "gate_cf") == hasattr(fusion, "gate_token") == (gate in sizes)
        if gate in sizes:
            assert fusion.gate_cf[2].weight.shape == (sizes[gate], 32 // 4)
    with pytest.raises(ValueError, match="gate must be one of dimension, scalar"):
        ccf_llm(click_data, gate="soft")


def test_fusion_starts_at_the_pure_titles(click_data: CTRData):
    """The GATE's last layers are zero: only the user's slot has an aligned vector."""
    torch.manual_seed(2)
    fresh = CCFLLM(tiny_llm(), answers(), [encoder("mf", click_data)])
    batch = prompts_of(click_data, HYBRID).batch(np.arange(ROWS))
    names = ("ids", "items", "slots", "users", "histories")
    vectors = fresh.embed(**{name: batch[name] for name in names})
    titles = (batch["items"] > 0) & (batch["slots"] == 0)
    assert titles.sum() > 100 and torch.equal(vectors[titles], fresh.words(batch["ids"])[titles])
    last = {name: p for name, p in fresh.named_parameters() if "gate" in name and ".2." in name}
    assert len(last) == 4 and not any(parameter.any() for parameter in last.values())


def test_the_pair_loss_is_cross_entropy_twice_and_a_ranking_part():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 600) * 3, torch.arange(50) % 2
    for k in (0.0, 0.5, 2.0):
        wanted = [plain_pair_loss(row, float(y), k) for row, y in zip(logits, labels, strict=True)]
        close(pair_loss_of(logits, answers(), labels, k).double(), torch.stack(wanted))


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("sure", [0, 1])
def test_the_pair_loss_is_finite_and_exact_where_a_probability_is_almost_one(sure: int, y: int):
    """p = 1 - 1e-12, which float32 cannot hold."""
    p, other = 1 - 1e-12, 1e-12 / 599
    logits = torch.zeros(1, 600)
    logits[0, answers()[sure]] = math.log(p / other)
    exact = logits.double()
    for values in (logits, exact):
        values.requires_grad_()
        pair_loss_of(values, answers(), torch.tensor([y]), 2.0).sum().backward()
        assert values.grad is not None and values.grad.isfinite().all()
    assert logits.grad is not None and torch.allclose(logits.grad.double(), exact.grad, atol=1e-5)
    right = sure == 1 - y  # the first answer is Yes
    bce = -math.log1p(-1e-12 if right else -p) - (math.log1p(-other) if right else math.log(other))
    bpr = math.log1p(other / p) if right else math.log1p(p / other)
    ours = float(pair_loss_of(logits.detach(), answers(), torch.tensor([y]), 2.0))
    assert ours == pytest.approx(bce + 2 * bpr, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kinds", ["mf", "sasrec"])
def test_vectors_of_items_are_means_over_the_tokens_of_their_titles(
    kinds: str, click_data: CTRData
):
    model, vocabulary = ccf_llm(click_data, kinds), vocabulary_of(byte_level())
    items = torch.tensor([3, 20, 9])
    titles = [torch.from_numpy(ids) for ids in np.split(vocabulary.tokens, vocabulary.starts[1:-1])]
    titles = [titles[item].long() for item in items]
    assert [byte_level().decode(ids) for ids in titles] == [f" {TITLES[i]}" for i in items]
    (fusion,), table = model.fusions, model.llm.get_input_embeddings().weight
    wanted: dict[str, list[Tensor]] = {"aligned CF": [], "LLM": [], "fused": []}
    for item, ids in zip(items, titles, strict=True):
        aligned = two_layers(fusion.align, model.encoders[0].items.weight[item])
        gate = two_layers(fusion.gate_cf, aligned)
        fused = [table[t] + (gate + two_layers(fusion.gate_token, table[t])) * aligned for t in ids]
        wanted["aligned CF"].append(aligned)
        wanted["LLM"].append(table[ids].mean(0))
        wanted["fused"].append(torch.stack(fused).mean(0))
    for name, found in model.item_vectors(items, titles).items():
        close(found, torch.stack(wanted.pop(name)).detach())
    assert not wanted


# --- what a score depends on --------------------------------------------------------------------
def test_other_cf_vectors_give_other_scores(click_data: CTRData):
    prompts, model = prompts_of(click_data, HYBRID), ccf_llm(click_data, std=1.0)
    before = scores(model, prompts)
    for table in (model.encoders[0].users, model.encoders[0].items):
        kept = table.weight.detach().clone()
        table.weight.data = kept.roll(1, 0)
        assert (scores(model, prompts) - before).abs().min() > 1e-4
        table.weight.data = kept
    assert torch.equal(scores(model, prompts), before)


@pytest.mark.parametrize("gate", GATES)
def test_equal_texts_are_told_apart_by_the_cf_vectors_alone(gate: str, click_data: CTRData):
    """Two users and two items of one text, in all four pairs; "none" knows no items."""
    vocabulary = vocabulary_of(byte_level(), ["", "Film", "Film", "Another"])
    users, items = np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2])
    prompts = Prompts(vocabulary, HYBRID, users, items, np.full((4, 2), 3))
    model = ccf_llm(click_data, gate=gate, std=1.0)
    found = scores(model, prompts)
    assert (found[:2] - found[2:]).abs().min() > 1e-4
    items_differ = (found[::2] - found[1::2]).abs()
    assert (items_differ < 1e-5).all() if gate == "none" else items_differ.min() > 1e-4
    for table in (model.encoders[0].users, model.encoders[0].items):
        nn.init.zeros_(table.weight)
    assert len(set(scores(model, prompts).tolist())) == 1


@pytest.mark.parametrize(
    ("kinds", "llm"), [("mf", "llama"), ("lightgcn+sasrec", "llama"), ("sasrec", "qwen2")]
)
def test_batches_padding_sharing_and_merging_change_no_score(
    kinds: str, llm: str, click_data: CTRData
):
    model = ccf_llm(click_data, kinds, llm=add_lora(tiny_llm(llm), r=4))
    prompts = prompts_of(click_data, HYBRID)
    assert len(prompts.batch(np.arange(ROWS), share=True)["prefix_ids"]) < ROWS
    scored_in_every_way(model, prompts)


def test_equal_titles_of_two_histories_are_not_shared(click_data: CTRData):
    """SASRec reads further back than the titles: what it reads there differs."""
    users, targets, histories = np.array([5] * 6), np.arange(1, 7), np.full((6, 1), 9)
    recent = np.tile([0, 0, 0, 7, 8, 9], (6, 1))
    recent[3:, 2] = 3
    arguments = vocabulary_of(byte_level()), HYBRID, users, targets, histories, recent
    prompts, model = Prompts(*arguments), ccf_llm(click_data, "sasrec", std=1.0)
    shared = prompts.batch(np.arange(6), share=True)
    assert len(shared["prefix_ids"]) == 2
    scored_in_every_way(model, prompts)


# --- what trains --------------------------------------------------------------------------------
def lora_layers(llm: Any) -> dict[str, Any]:
    return {name: module for name, module in llm.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize(("r", "alpha"), [(8, 16), (4, 6)])
def test_lora_stands_on_queries_and_values_and_adds_its_scaled_product(
    r: int, alpha: int, click_data: CTRData
):
    bare = tiny_llm()
    model = randomised(TextModel(add_lora(copy.deepcopy(bare), r, alpha), answers()))
    layers = lora_layers(model.llm)
    parts = {tuple(name.split(".")[-3:]) for name in layers}
    assert parts == {(str(n), "self_attn", p) for n in range(2) for p in ("q_proj", "v_proj")}
    assert len(model.adapter()) == 2 * len(layers) == 8
    plain = TextModel(bare, answers())
    before = scores(plain, prompts_of(click_data, PLAIN))
    with torch.no_grad():
        for name, layer in layers.items():
            assert layer.scaling["default"] == alpha / r
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert a.shape[0] == b.shape[1] == r
            weight = bare.get_submodule(name.removeprefix("base_model.model.")).weight
            weight += alpha / r * b @ a
    found = scores(model, prompts_of(click_data, PLAIN))
    close(found, scores(plain, prompts_of(click_data, PLAIN)))
    assert (found - before).abs().max() > 0.1


def moved(model: CCFLLM, data: CTRData) -> set[str]:
    """Names of the parameters that one step of training changes."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prompts, labels = prompts_of(data, HYBRID), labels_of(data)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    pair_loss(2.0)(model, labels, **prompts.batch(np.arange(ROWS))).mean().backward()
    optimizer.step()
    model.eval()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


STAGES = {
    "first": ((True, False, False), ("lora_",)),
    "second": ((False, True, True), ("fusions.", "encoders.")),
    "second, frozen encoder": ((False, True, False), ("fusions.",)),
    "joint": ((True, True, True), ("lora_", "fusions.", "encoders.")),
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_each_stage_moves_its_own_weights_and_no_other(stage: str, click_data: CTRData):
    model = ccf_llm(click_data, "mf+sasrec", llm=add_lora(tiny_llm(), r=4))
    chosen, parts = STAGES[stage]
    model.train_only(*chosen)
    wanted = {name for name, _ in model.named_parameters() if any(part in name for part in parts)}
    assert moved(model, click_data) == wanted
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted


@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_encoder_has_no_dropout_and_no_gradient(trained: bool, click_data: CTRData):
    model, prompts = ccf_llm(click_data, "mf+sasrec"), prompts_of(click_data, HYBRID)
    model.train_only(adapter=False, fusion=True, encoders=trained)
    resting = scores(model, prompts)
    model.train()
    assert model.training and model.fusions.training
    assert {module.training for module in model.encoders.modules()} == {trained}
    assert torch.equal(scores(model, prompts), resting) != trained  # its dropout is one half
    pair_loss(2.0)(model, labels_of(click_data), **prompts.batch(np.arange(ROWS))).sum().backward()
    assert {p.grad is not None for p in model.encoders.parameters()} == {trained}
    assert all(p.grad is not None and p.grad.any() for p in model.fusions.parameters())
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("gate", GATES)
def test_every_weight_that_is_trained_has_a_gradient(gate: str, click_data: CTRData):
    """Several processes wait for the gradient of each."""
    model = ccf_llm(click_data, "mf", gate)
    model.train_only(adapter=False, fusion=True, encoders=True)
    prompts = prompts_of(click_data, HYBRID)
    inputs = prompts.batch(np.arange(ROWS))
    pair_loss()(model, labels_of(click_data), **inputs).mean().backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_a_frozen_graph_is_propagated_once_and_a_trained_one_after_every_step(click_data: CTRData):
    model, prompts = ccf_llm(click_data, "lightgcn"), prompts_of(click_data, HYBRID)
    first = scores(model, prompts)
    kept = model.encoders[0].propagate
    with torch.no_grad():
        assert kept() is kept()
    model.train_only(adapter=False, fusion=False, encoders=True)
    moved(model, click_data)
    after = scores(model, prompts)
    fresh = ccf_llm(click_data, "lightgcn")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(after, scores(fresh, prompts)) and not torch.equal(after, first)


# --- saving and loading -------------------------------------------------------------------------
KINDS = ["mf", "lightgcn", "sasrec", "lightgcn+mf"]


@pytest.mark.parametrize("stage", ["adapter", "fusion"])
def test_recomputed_activations_give_the_same_gradients(stage: str, click_data: CTRData):
    """In the second stage the language model is frozen, and its layers are recomputed all the same.

    A layer is entered twice, forward and again on the way back.
    """
    gradients, entered = [], []
    for checkpointing in (False, True):
        bare = tiny_llm()
        if checkpointing:
            bare.gradient_checkpointing_enable({"use_reentrant": False})
        model = ccf_llm(click_data, llm=add_lora(bare, dropout=0.0, seed=0))
        model.train_only(stage == "adapter", stage == "fusion", stage == "fusion")
        model.train()
        calls: list[int] = []
        first = model.causal.get_decoder().layers[0].input_layernorm
        first.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        labels = labels_of(click_data)
        inputs = prompts_of(click_data, HYBRID).batch(np.arange(len(labels)))
        pair_loss()(model, labels=labels, **inputs).mean().backward()
        entered.append(len(calls))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert entered == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=0, msg=name)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def no_pickles(folder: Path) -> None:
    suffixes = {Path(name).suffix for name in files(folder)}
    assert suffixes <= {".json", ".safetensors", ".md"}
    for name in files(folder):
        if name.endswith(".json"):
            json.loads((folder / name).read_text())
        if name.endswith(".safetensors"):
            load_file(folder / name)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kinds", KINDS)
def test_a_saved_model_scores_the_same(
    kinds: str, adapted: bool, click_data: CTRData, tmp_path: Path
):
    """The language model stands in memory only: it is written too, and read again."""
    llm = add_lora(tiny_llm(), r=4, alpha=6) if adapted else tiny_llm()
    model, prompts = ccf_llm(click_data, kinds, "scalar", llm), prompts_of(click_data, HYBRID)
    wanted = scores(model, prompts)
    model.save_pretrained(tmp_path / "saved")
    no_pickles(tmp_path / "saved")
    loaded = CCFLLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(scores(loaded, prompts), wanted)
    assert torch.equal(scores(model, prompts), wanted)  # saving changes nothing
    other = CCFLLM.from_pretrained(tmp_path / "saved", tiny_llm())  # given, not read
    assert torch.equal(scores(other, prompts), wanted)
    assert not any(module.training for module in loaded.modules())
    assert len(loaded.adapter()) == len(model.adapter())


@pytest.mark.parametrize("with_llm", [None, True])
def test_a_language_model_from_a_folder_is_named_and_written_on_request(
    with_llm: bool | None, click_data: CTRData, tmp_path: Path
):
    source, _ = prepare(TINY, TITLES[1:], frame(), tmp_path)
    backbone = load(TINY, source)
    encoders = [encoder("sasrec", click_data)]
    model = randomised(CCFLLM(add_lora(backbone.model, r=4), answers(), encoders))
    prompts = prompts_of(click_data, HYBRID, backbone.tokenizer)
    wanted = scores(model, prompts)
    model.save_pretrained(tmp_path / "saved", with_llm)
    no_pickles(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["llm"] == source) != bool(with_llm)
    assert (tmp_path / "saved" / "llm").is_dir() == bool(with_llm)
    if with_llm:
        Path(source).rename(tmp_path / "gone")
        (tmp_path / "saved").rename(tmp_path / "moved")
    folder = tmp_path / ("moved" if with_llm else "saved")
    assert torch.equal(scores(CCFLLM.from_pretrained(folder), prompts), wanted)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON or safetensors file as a dictionary."""
    as_json = path.suffix == ".json"
    content = json.loads(path.read_text()) if as_json else load_file(path)
    change(content)
    path.unlink()
    path.write_text(json.dumps(content)) if as_json else save_file(content, path)


MODEL = "model.safetensors"
WEIGHT, ADAPTED = "fusions.0.align.0.weight", "adapter/adapter_model.safetensors"
LORA = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
WRONG: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "a weight is missing": (MODEL, lambda c: c.pop(WEIGHT)),
    "a weight is left over": (MODEL, lambda c: c.update(more=torch.ones(1))),
    "another shape": (MODEL, lambda c: c.update({WEIGHT: torch.ones(2, 8)})),
    "the graph is missing": (MODEL, lambda c: c.pop("graphs.0.users")),
    "a graph is left over": (MODEL, lambda c: c.update({"graphs.1.users": c[WEIGHT] + 1})),
    "LoRA is missing": (ADAPTED, lambda c: c.pop(LORA)),
    "LoRA is left over": (ADAPTED, lambda c: c.update({LORA.replace(".1.", ".7."): c[LORA] + 1})),
    "another shape of LoRA": (ADAPTED, lambda c: c.update({LORA: torch.ones(3, 32)})),
    "another model": ("config.json", lambda c: c.update(model="Other")),
    "no kind of model": ("config.json", lambda c: c.pop("model")),
    "a setting is missing": ("config.json", lambda c: c.pop("gate")),
    "an unknown CF model": ("config.json", lambda c: c["encoders"][0].update(kind="VAE")),
    "an unknown setting": ("config.json", lambda c: c["encoders"][0].update(depth=2)),
}


def saved(data: CTRData, folder: Path) -> Path:
    ccf_llm(data, "lightgcn", llm=add_lora(tiny_llm(), r=4)).save_pretrained(folder)
    return folder


def refused(folder: Path, llm: Any = None) -> str:
    with pytest.raises(ValueError) as error:
        CCFLLM.from_pretrained(folder, llm or tiny_llm())
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.parametrize("wrong", list(WRONG))
def test_what_does_not_fit_is_one_line(wrong: str, click_data: CTRData, tmp_path: Path):
    folder = saved(click_data, tmp_path / "saved")
    file, change = WRONG[wrong]
    edit(folder / file, change)
    refused(folder)


@pytest.mark.parametrize("file", ["config.json", MODEL, ADAPTED])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_file_that_is_not_whole_is_one_line(
    file: str, damage: str, click_data: CTRData, tmp_path: Path
):
    path = saved(click_data, tmp_path / "saved") / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    refused(tmp_path / "saved")


def test_an_adapter_of_another_language_model_is_one_line(click_data: CTRData, tmp_path: Path):
    folder = saved(click_data, tmp_path / "saved")
    wider = copy.deepcopy(tiny_llm().config)
    wider.num_attention_heads, wider.head_dim = 8, 8
    deeper = copy.deepcopy(tiny_llm().config)
    deeper.num_hidden_layers = 3
    for config in (wider, deeper):
        refused(folder, type(tiny_llm())(config))


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path):
    refused(tmp_path / "nowhere")
    refused(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    refused(tmp_path)


# --- imports ------------------------------------------------------------------------------------
def test_the_module_of_the_paper_offers_the_model_and_loads_torch_only_then():
    code = (
        "import sys, reprokit.ccf_llm\n"
        "print(sorted({'torch', 'transformers', 'peft', 'accelerate'} & set(sys.modules)))\n"
        "from reprokit.ccf_llm import CCFLLM\n"
        "print(CCFLLM.__module__, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["[]", "reprokit.fusion True"], done.stderr
