"""Language models: names, loading, LoRA."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BROKEN_TORCHVISION, ROOT, refused
from hub_server import COMMIT, served
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from reprokit import backbones
from reprokit.backbones import add_lora, choose_dtype, identify, load, merged
from reprokit.homemade import RECIPES, SCRATCH, TINY, build_tokenizer
from reprokit.sizes import download_bytes, size_of

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "mistral": MistralConfig(**SHAPE, head_dim=16, sliding_window=8),
    "smollm": LlamaConfig(**SHAPE, tie_word_embeddings=True),
}
GENRES = ("Drama", "Comedy, Romance", "Horror", "Action, Thriller")
TEXTS = [f"The {a} {b} ({1950 + 7 * i % 50}), {GENRES[i % 4]}" for i, (a, b) in enumerate(
    (a, b) for a in ("Long", "Last", "Red", "Quiet", "Blue") for b in ("Night", "River", "Storm",
    "Garden", "Train", "Winter", "Song", "House")
)]  # fmt: skip
FRAME = [f"#Question: would the user enjoy the item? #Answer:{a}" for a in (" Yes", " No")]
__all__ = ["served"]  # the fixture


def spm_like() -> PreTrainedTokenizerFast:
    """BPE on words with a leading mark, the first one too, as Llama's; knows few characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS + FRAME, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    recipe = dataclasses.replace(RECIPES[TINY], vocabulary=300)
    bytes_of = {"qwen2", "smollm"}  # theirs knows every byte
    return build_tokenizer(recipe, TEXTS, FRAME) if kind in bytes_of else spm_like()


def save(kind: str, folder: Path) -> Any:
    """A random checkpoint of an architecture; returns the model that was saved."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    with backbones.quiet():
        model.save_pretrained(folder)
        tokenizer_of(kind).save_pretrained(folder)
    return model


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    save("llama", tmp_path / "llama")
    return tmp_path / "llama"


def cached(hub: Path, repo: str, revision: str = "main") -> Path:
    """Put a Llama into the hub cache, as the hub's client lays it out."""
    root = hub / f"models--{repo.replace('/', '--')}"
    (root / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(COMMIT)
    save("llama", root / "snapshots" / COMMIT)
    return root / "snapshots" / COMMIT


# --- names --------------------------------------------------------------------------------------
def test_importing_the_modules_loads_no_torch():
    code = (
        "import sys, reprokit.backbones as b, reprokit.homemade, reprokit.sizes as s\n"
        "b.identify('tiny'), s.size_of('lmsys/vicuna-7b-v1.5').memory(1, 9, 2, True)\n"
        "heavy = {'torch', 'transformers', 'peft', 'tokenizers', 'huggingface_hub'}\n"
        "print(heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_folder_is_known_by_its_content_and_not_by_its_place(llama: Path, tmp_path: Path):
    first = identify(str(llama))
    assert first.startswith("folder ") and identify(str(llama)) == first
    moved = llama.rename(tmp_path / "moved")
    assert identify(str(moved)) == first
    (moved / "reprokit.json").write_text("{}")  # what was measured decides nothing
    assert identify(str(moved)) == first
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert identify(str(moved)) != first


def test_digests_of_a_folder_are_kept(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "cache.json"
    first = identify(str(llama), cache)
    monkeypatch.setattr("reprokit.download.digest", lambda path: pytest.fail("read again"))
    assert identify(str(llama), cache) == first


def test_recipes_are_known_by_their_revision(monkeypatch: pytest.MonkeyPatch):
    assert identify(TINY) == f"tiny, recipe {backbones.REVISION}"
    monkeypatch.setattr(backbones, "REVISION", 99)
    assert identify(SCRATCH) == "scratch, recipe 99"


def test_a_hub_name_is_known_by_its_commit_in_the_local_cache(hub: Path):
    cached(hub, "org/model")
    cached(hub, "org/model", "refs/pr/3")
    assert identify("org/model") == f"hub org/model@{COMMIT}"
    assert identify("org/model@refs/pr/3", offline=True) == f"hub org/model@{COMMIT}"
    other = "f" * 40
    assert identify(f"org/model@{other}") == f"hub org/model@{other}"


def test_a_hub_that_cannot_be_reached_is_one_line(hub: Path, monkeypatch: pytest.MonkeyPatch):
    with refused("org/none", "did not name its commit", "`scratch` or `tiny`", "connect once"):
        identify("org/none")
    with refused("org/none", "offline", "connect once"):
        identify("org/none", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused("org/none", "offline"):
        identify("org/none")


def test_the_hub_names_the_commit_of_a_model_that_is_not_here(
    served: dict[str, dict[str, bytes]],
):
    served["org/safe"] = dict.fromkeys(("config.json", "model.safetensors", "a.bin"), b"x")
    served["org/pickled"] = {"config.json": b"x", "pytorch_model-00001-of-00002.bin": b"x"}
    assert identify("org/safe") == f"hub org/safe@{COMMIT}"
    with refused("org/pickled", "pytorch_model-00001", "nothing is read as a pickle", "convert"):
        identify("org/pickled")
    with refused("org/other", "did not name its commit"):
        identify("org/other")


def test_a_hub_model_is_downloaded_once_and_without_its_pickles(
    served: dict[str, dict[str, bytes]], hub: Path, llama: Path
):
    files = {path.name: path.read_bytes() for path in llama.iterdir()}
    served["org/model"] = {**files, "pytorch_model.bin": b"pickle", "notes.md": b"text"}
    backbone = load("org/model", "org/model")
    assert backbone.facts["commit"] == COMMIT
    snapshot = hub / "models--org--model" / "snapshots" / COMMIT
    assert {path.name for path in snapshot.iterdir()} == set(files)
    served.clear()
    assert identify("org/model", offline=True) == f"hub org/model@{COMMIT}"
    again = load("org/model", "org/model").model.state_dict()
    assert same(again, backbone.model.state_dict())


@pytest.mark.parametrize(
    "name", ["vicuna", "a/b/c", "org/../x", "org/name@", "~nobody/x", "./none", "/no/such", ""]
)
def test_a_name_that_stands_for_nothing_is_one_line(name: str, hub: Path):
    for ask in (identify, size_of, download_bytes):
        with refused("language model", "`scratch` or `tiny`"):
            ask(name)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with refused("holds no config.json"):
        identify(str(tmp_path))
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with refused("org/model holds no config.json"):
        identify("org/model")


# --- loading ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_checkpoint_loads_by_path_and_reads_out_the_same_logits(kind: str, tmp_path: Path):
    saved = save(kind, tmp_path)
    backbone = load(kind, str(tmp_path))
    ids = backbone.tokenizer("The Last River (1957), Drama", return_tensors="pt")["input_ids"]
    model = backbone.model
    with torch.no_grad():
        states = model.get_decoder()(ids).last_hidden_state
        torch.testing.assert_close(model.get_output_embeddings()(states), saved(ids).logits)
    if kind != "qwen2":  # the library splits digits as Qwen does, whatever the file says
        assert backbone.tokenizer(TEXTS)["input_ids"] == tokenizer_of(kind)(TEXTS)["input_ids"]
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert (backbone.name, backbone.source) == (kind, str(tmp_path))
    assert backbone.facts["dtype"] == "float32" and backbone.facts["unused_weights"] == 0
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (kind == "smollm")


def test_a_hub_name_loads_from_the_local_cache_without_a_hub(hub: Path):
    cached(hub, "org/model")
    backbone = load("org/model", "org/model")
    assert backbone.facts["commit"] == COMMIT
    assert backbone.model.config._name_or_path == "org/model"


def test_a_model_that_is_not_whole_and_not_to_be_had_is_one_line(hub: Path):
    with refused("org/none", "connect once"):
        load("org/none", "org/none")
    (cached(hub, "org/model") / "model.safetensors").unlink()
    with refused("org/model", "connect once"):
        load("org/model", "org/model")


def drop(folder: Path, *keys: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k: t for k, t in tensors.items() if k not in keys},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def test_missing_weights_are_an_error_and_tied_ones_are_not_missing(tmp_path: Path):
    save("llama", tmp_path / "llama")
    drop(tmp_path / "llama", "model.layers.1.mlp.up_proj.weight", "lm_head.weight")
    with refused("lacks 2 weights, such as lm_head.weight"):
        load("llama", str(tmp_path / "llama"))
    save("smollm", tmp_path / "smollm")
    load("smollm", str(tmp_path / "smollm"))  # its file has no output matrix
    drop(tmp_path / "smollm", "model.embed_tokens.weight")
    with refused("lacks", "weights"):
        load("smollm", str(tmp_path / "smollm"))


def test_weights_of_another_shape_are_an_error_and_left_over_ones_are_counted(llama: Path):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert load("llama", str(llama)).facts["unused_weights"] == 9
    (llama / "config.json").write_text(json.dumps({**config, "intermediate_size": 50}))
    with refused("6 weights of another shape", r"\(32, 48\), by its config.json \(32, 50\)"):
        load("llama", str(llama))


def test_pickled_weights_are_refused_unread(llama: Path):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    for ask in (identify, lambda name: load(name, name)):
        with refused("pytorch_model.bin", "nothing is read as a pickle; convert to safetensors"):
            ask(str(llama))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", '{"model_type": "nothing"}', ("cannot be loaded", "nothing")),
        ("config.json", "{", ("cannot be loaded",)),
        ("config.json", '{"model_type": "t5"}', ("cannot be loaded", "T5Config")),
        ("model.safetensors", "rubbish", ("cannot be loaded", "damaged")),
        ("tokenizer.json", "{}", ("tokenizer",)),
    ],
)
def test_a_damaged_checkpoint_is_one_line(
    file: str, content: str, words: tuple[str, ...], llama: Path
):
    (llama / file).write_text(content)
    with refused(*words):
        load("broken", str(llama))


def test_a_folder_without_weights_is_one_line_or_random_on_request(llama: Path):
    (llama / "model.safetensors").unlink()
    with refused("cannot be loaded", "model.safetensors"):
        load("llama", str(llama))
    first, second = (load("llama", str(llama), random_weights=True).model for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_sentencepiece_tokenizer_without_its_packages_is_one_line(
    llama: Path, monkeypatch: pytest.MonkeyPatch
):
    (llama / "tokenizer.json").rename(llama / "tokenizer.model")
    monkeypatch.setattr(backbones, "is_installed", lambda module: module != "google.protobuf")
    with refused("tokenizer.model", "pip install sentencepiece protobuf"):
        load("llama", str(llama))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": "float16"}, ("float16", "CPU")),
        ({"dtype": "int8"}, ("int8", "bfloat16")),
        ({"attention": "flash_attention_2"}, ("flash_attention_2", "sdpa")),
        ({"attention": "fast"}, ("fast", "sdpa, eager")),
    ],
)
def test_a_choice_that_cannot_be_is_one_line(
    arguments: dict[str, str], words: tuple[str, ...], llama: Path
):
    with refused(*words):
        load("llama", str(llama), **arguments)


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bfloat16_where_the_card_itself_has_it(has: bool, monkeypatch: pytest.MonkeyPatch):
    """Older cards emulate it, slowly."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has or including_emulation
    )
    wanted = torch.bfloat16 if has else torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == wanted


def test_dtype_and_attention_can_be_chosen(llama: Path):
    plain = load("llama", str(llama)).model
    eager = load("llama", str(llama), attention="eager").model
    half = load("llama", str(llama), dtype="bfloat16").model
    assert half.dtype == torch.bfloat16 and plain.dtype == torch.float32
    assert eager.config._attn_implementation == "eager"
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(eager(ids).logits, plain(ids).logits)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("gemma2", {"final_logit_softcapping": 30.0, "initializer_range": 0.01}),
    ],
)
def test_logits_that_are_scaled_or_capped_are_refused(
    kind: str, settings: dict[str, float], tmp_path: Path
):
    config = AutoConfig.for_model(kind, **{**SHAPE, "head_dim": 8, **settings})
    with backbones.quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        spm_like().save_pretrained(tmp_path)
    with refused("read-out", "not supported"):
        load(kind, str(tmp_path), attention="eager")


def test_weights_that_are_not_finite_are_refused(llama: Path):
    tensors = load_file(llama / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    with refused("not finite"):
        load("llama", str(llama))


def kept_for_backward(model: Any) -> int:
    """Bytes that training keeps of 8 prompts of 40 tokens, the weights left out."""
    weights = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    base = model.get_base_model()
    vectors = torch.randn(8, 40, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = base.get_decoder()(inputs_embeds=vectors.to(base.dtype), use_cache=False)
        logits = base.get_output_embeddings()(states.last_hidden_state[:, -1])
    logits.sum().backward()
    return sum(kept.values())


def test_checkpointing_keeps_less_and_changes_no_gradient(llama: Path):
    found, kept = [], []
    for checkpointing in (False, True):
        model = load("llama", str(llama), checkpointing=checkpointing).model
        model = add_lora(model, dropout=0.0, seed=1).train()
        kept.append(kept_for_backward(model))
        model.zero_grad()
        model(torch.arange(10)[None], use_cache=False).logits[0, -1, 5].backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert any(gradient.abs().max() > 0 for gradient in found[0])
    assert kept[1] < kept[0] / 4


MADE_HERE = """
from pathlib import Path
from reprokit.homemade import TINY, prepare
folder, _ = prepare(TINY, ["The Red Film", "Night"], ["the item Yes", "the item No"], Path("."))
"""
FROM_A_FOLDER = "folder = sys.argv[1]"
LOADED = """
from reprokit.backbones import add_lora, load, merged
model = add_lora(load("it", folder).model)
with merged(model):
    print(type(model).__name__)
"""


@pytest.mark.parametrize("origin", [MADE_HERE, FROM_A_FOLDER])
def test_a_torchvision_that_does_not_load_is_not_needed(origin: str, llama: Path, tmp_path: Path):
    program = f"{BROKEN_TORCHVISION}\n{origin}\n{LOADED}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(llama)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "PeftModelForCausalLM", done.stderr


# --- LoRA ---------------------------------------------------------------------------------------
def adapted(llama: Path, **options: Any) -> Any:
    """A Llama whose adapter does something."""
    model = add_lora(load("llama", str(llama), **options).model, seed=0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12)[None], use_cache=False).logits


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_only_the_adapter_is_trained_and_its_weights_are_float32(llama: Path):
    model = add_lora(load("llama", str(llama), dtype="bfloat16").model, r=4)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)
    assert all("q_proj" in name or "v_proj" in name for name in trained)
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert model.get_base_model().dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16


def test_a_seed_decides_the_adapter_and_nothing_else(llama: Path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    states = []
    for draw in (3, 4):
        torch.manual_seed(draw)
        model = load("llama", str(llama)).model
        states.append(state(add_lora(model, seed=7)))
        if draw == 3:
            assert torch.equal(torch.rand(2), expected)
    assert same(*states)
    assert not same(states[0], state(add_lora(load("llama", str(llama)).model, seed=8)))


def test_missing_targets_are_named_beside_the_layers_that_there_are(llama: Path):
    model = load("llama", str(llama)).model
    with refused("c_attn", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"):
        add_lora(model, targets=("q_proj", "c_attn"))
    with refused("no linear layer", "q_proj"):
        add_lora(model, targets=())
    assert not any("lora_" in name for name, _ in model.named_parameters())


def test_merging_changes_no_score_and_leaves_every_bit_in_place(llama: Path):
    model = adapted(llama)
    before, expected = state(model), logits(model)
    with model.disable_adapter():
        assert not torch.allclose(logits(model), expected, atol=1e-2)
    for _ in range(2):
        with merged(model):
            assert all(layer.merged for layer in model.modules() if hasattr(layer, "lora_A"))
            torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
            with merged(model):  # nothing more to merge
                torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
        assert same(state(model), before) and torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_back_after_an_error_while_merged(dtype: str, llama: Path):
    model = adapted(llama, dtype=dtype)
    before = state(model)
    with pytest.raises(KeyError), merged(model):
        raise KeyError
    assert same(state(model), before)
    assert not any(layer.merged for layer in model.modules() if hasattr(layer, "lora_A"))


def test_merging_without_an_adapter_does_nothing(llama: Path):
    model = load("llama", str(llama)).model
    before, expected = state(model), logits(model)
    with merged(model):
        assert torch.equal(logits(model), expected)
    assert same(state(model), before)
