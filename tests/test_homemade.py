"""Language models made here: the same content makes the same bytes, of a size as announced."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from test_backbones import FRAME, TEXTS
from transformers import PreTrainedTokenizerFast

from reprokit import homemade
from reprokit.backbones import load
from reprokit.homemade import RECIPES, SCRATCH, TINY, build_tokenizer, prepare
from reprokit.prompts import TEMPLATES, answer_tokens, frame, plain_ids, wholes
from reprokit.sizes import size_of

WHOLES = (
    "#Question: would the user enjoy the item",
    "#Question: would the user enjoy the item titled",  # begins like another one
    "? #Answer:",
)
STRANGE = ("Amélie (2001)", "七人の侍", "naïve \U0001f3ac, tab\tand  two spaces")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """`scratch` in a second: narrower, and few small steps."""
    small = dataclasses.replace(
        RECIPES[SCRATCH],
        hidden=32,
        layers=2,
        intermediate=64,
        steps=30,
        batch=2,
        block=128,
        lr=1e-2,
    )
    monkeypatch.setitem(RECIPES, SCRATCH, small)


def content(folder: str | Path) -> dict[str, bytes]:
    """All files but the facts, which hold a time."""
    return {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.name != "reprokit.json"}


def test_the_tokenizer_made_here_makes_a_token_of_each_word_of_the_frame(tmp_path: Path):
    source, facts = prepare(TINY, TEXTS, FRAME, tmp_path)
    backbone = load(TINY, source)
    tokenizer = backbone.tokenizer
    assert len(tokenizer) == facts["vocabulary"] <= 4096
    for text in FRAME:
        words = re.findall(r" ?(?:\w+|[^\w\s]+)", text)
        assert tokenizer.tokenize(text) == [word.replace(" ", "Ġ") for word in words]
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    for text in (*TEXTS, *STRANGE):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
    special = ("pad_token", "unk_token", "bos_token", "eos_token")
    assert len({getattr(tokenizer, f"{name}_id") for name in special}) == 4


def test_tiny_has_the_size_that_is_announced(tmp_path: Path):
    source, facts = prepare(TINY, TEXTS, FRAME, tmp_path)
    model = load(TINY, source).model
    announced = size_of(TINY)
    assert dataclasses.replace(announced, vocab=int(facts["vocabulary"])) == dataclasses.replace(
        size_of(source), head_dim=0
    )
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["steps"] == 0 and facts["perplexity"] == facts["perplexity_before"]


def test_preparing_twice_reuses_what_is_there(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
):
    told: list[str] = []
    source, facts = prepare(SCRATCH, TEXTS, FRAME, tmp_path, told.append)
    assert len(told) == 1 and "perplexity on 2 held-out texts" in told[0]
    monkeypatch.setattr(homemade, "build", lambda *_: pytest.fail("made again"))
    again = prepare(SCRATCH, [*reversed(TEXTS), TEXTS[0]], FRAME, tmp_path, told.append)
    assert again == (source, facts) and len(told) == 1
    assert [path.name for path in (tmp_path / "models").iterdir()] == [Path(source).name]
    assert prepare("org/model", TEXTS, FRAME, tmp_path) == ("org/model", {})


def test_other_texts_another_frame_or_another_seed_make_another_checkpoint(tmp_path: Path):
    sources = {
        prepare(TINY, texts, frame, tmp_path, seed=seed)[0]
        for texts, frame, seed in (
            (TEXTS, FRAME, 0),
            (TEXTS[1:], FRAME, 0),
            (TEXTS, FRAME[1:], 0),
            (TEXTS, FRAME, 1),
        )
    }
    assert len(sources) == 4
    with pytest.raises(ValueError, match="at least 2"):
        prepare(TINY, ["one", "one"], FRAME, tmp_path)


@pytest.mark.parametrize("damage", ["half", "cut", "no facts"])
def test_a_damaged_checkpoint_is_made_again(damage: str, tmp_path: Path):
    source = Path(prepare(TINY, TEXTS, FRAME, tmp_path)[0])
    whole = content(source)
    if damage == "half":
        (source / "tokenizer.json").unlink()
    if damage == "cut":
        (source / "model.safetensors").write_bytes(whole["model.safetensors"][:-4])
    if damage == "no facts":
        (source / "reprokit.json").unlink()
    assert prepare(TINY, TEXTS, FRAME, tmp_path)[0] == str(source)
    assert content(source) == whole
    assert list((tmp_path / "models").iterdir()) == [source]


def test_a_checkpoint_never_shows_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", broken)
    with pytest.raises(OSError, match="no room"):
        prepare(TINY, TEXTS, FRAME, tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_two_processes_make_the_same_bytes(tmp_path: Path, short: None):
    code = (
        "import dataclasses, json, sys\nfrom pathlib import Path\n"
        "from reprokit import homemade as h\n"
        "folder, recipe, texts, frame, wholes = json.load(sys.stdin)\n"
        "h.RECIPES[h.SCRATCH] = h.Recipe(**recipe)\n"
        "for name in (h.TINY, h.SCRATCH):\n"
        "    h.prepare(name, texts, frame, Path(folder), wholes=wholes)\n"
    )
    recipe = dataclasses.asdict(RECIPES[SCRATCH])
    subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([str(tmp_path / "there"), recipe, TEXTS, FRAME, WHOLES]),
        text=True,
        cwd=ROOT,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    for name in (TINY, SCRATCH):
        here = Path(prepare(name, TEXTS, FRAME, tmp_path / "here", wholes=WHOLES)[0])
        assert content(here) == content(tmp_path / "there" / "models" / here.name)


def test_making_a_model_leaves_the_generators_as_they_were(tmp_path: Path, short: None):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    prepare(SCRATCH, TEXTS, FRAME, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_training_lowers_the_perplexity_of_texts_that_it_does_not_see(
    tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []
    pretrain = homemade.pretrain

    def spy(model: Any, tokenizer: Any, recipe: Any, texts: list[str], *rest: Any) -> None:
        seen.extend(texts)
        pretrain(model, tokenizer, recipe, texts, *rest)

    monkeypatch.setattr(homemade, "pretrain", spy)
    source, facts = prepare(SCRATCH, TEXTS, FRAME, tmp_path)
    assert len(seen) == len(set(seen)) == 38 and facts["held_out"] == 2
    assert facts["perplexity"] < facts["perplexity_before"] / 5
    backbone = load(SCRATCH, source)
    held_out = sorted({f" {text}" for text in TEXTS} - set(seen))
    assert len(held_out) == 2
    found = homemade.perplexity(backbone.model, backbone.tokenizer, held_out)
    assert found == pytest.approx(facts["perplexity"], rel=1e-4)


def test_each_pass_has_every_text_once_and_both_answers_equally_often():
    recipe = dataclasses.replace(RECIPES[SCRATCH], batch=1, block=60, frame_share=0.5)
    rows = [[number] * 4 for number in range(10)]
    frame = [[100] * 5, [200] * 5]
    found = next(homemade.blocks(rows, frame, recipe, 0)).ravel().tolist()  # 40 + 2 * 2 * 5
    assert [found.count(number) for number in (*range(10), 100, 200)] == [4] * 10 + [10, 10]
    both = [next(homemade.blocks(rows, frame, recipe, seed)).tolist() for seed in (0, 1)]
    assert both[0] == [found] != both[1]


def test_perplexity_is_that_of_each_text_alone(tmp_path: Path):
    backbone = load(TINY, prepare(TINY, TEXTS, FRAME, tmp_path)[0])
    losses = []
    for text in ("The Red Storm", "Song"):
        ids = torch.tensor(homemade.documents(backbone.tokenizer, [text]))
        ends = backbone.tokenizer.bos_token_id, backbone.tokenizer.eos_token_id
        assert (ids[0, 0], ids[0, -1]) == ends
        with torch.no_grad():
            logits = backbone.model(ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    expected = torch.cat(losses).mean().exp().item()
    got = homemade.perplexity(backbone.model, backbone.tokenizer, ["The Red Storm", "Song"])
    assert got == pytest.approx(expected, rel=1e-4)


# --- fixed words as whole tokens ----------------------------------------------------------------
def test_each_fixed_text_is_one_token_wherever_it_stands(tmp_path: Path):
    source, facts = prepare(TINY, TEXTS, FRAME, tmp_path, wholes=WHOLES)
    tokenizer = load(TINY, source).tokenizer
    tokens = [ids for (ids,) in plain_ids(tokenizer, list(WHOLES))]
    assert len(set(tokens)) == len(WHOLES)
    assert len(tokenizer) == facts["vocabulary"] == size_of(source).vocab == max(tokens) + 1
    around = ["", "x", "#", " ", " The Last River (1957)", " Amélie", ", 七", WHOLES[0]]
    for text, token in zip(WHOLES, tokens, strict=True):
        for before in around:
            for after in around:
                one, ids, other = plain_ids(tokenizer, [before, before + text + after, after])
                assert ids == [*one, token, *other]
                assert tokenizer.decode(ids) == before + text + after


def test_titles_keep_their_tokens_beside_fixed_texts():
    titles = [f" {text}" for text in (*TEXTS, *STRANGE, "The User and the Item titled 2? #Answer")]
    without, beside = (build_tokenizer(RECIPES[TINY], titles, FRAME, few) for few in ((), WHOLES))
    assert beside(titles)["input_ids"] == without(titles)["input_ids"]
    old, new = without.get_vocab(), beside.get_vocab()
    assert new.keys() - old.keys() == set(WHOLES) and old.items() <= new.items()


def test_the_order_of_fixed_texts_decides_nothing_and_the_texts_do(tmp_path: Path):
    one, other, fewer, none = (
        Path(prepare(TINY, TEXTS, FRAME, tmp_path / str(at), wholes=some)[0])
        for at, some in enumerate((WHOLES, WHOLES[::-1], WHOLES[1:], ()))
    )
    assert one.name == other.name and content(one) == content(other)
    assert len({one.name, fewer.name, none.name}) == 3


def test_both_answers_are_one_token_behind_fixed_words_that_end_with_the_cue(tmp_path: Path):
    source, _ = prepare(TINY, TEXTS, frame(), tmp_path, wholes=wholes())
    tokenizer = load(TINY, source).tokenizer
    for cue in {template[-1] for template in TEMPLATES.values()}:
        [whole], with_yes, with_no = plain_ids(tokenizer, [cue, cue + " Yes", cue + " No"])
        yes, no = answer_tokens(tokenizer, cue)
        assert (with_yes, with_no) == ([whole, yes], [whole, no])
        assert tokenizer.convert_ids_to_tokens([yes, no]) == ["ĠYes", "ĠNo"]
