"""What a language model adds to titles: asked once, kept, put in order."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from test_backbones import refused
from test_encoders import Notes
from test_endpoint import KEY, Server, completion

from reprokit import enrichment
from reprokit.backbones import load, quiet
from reprokit.enrichment import TEMPLATE, command, enrich, item_text, without_reasoning
from reprokit.homemade import TINY, prepare
from reprokit.runs import RequestError, Unavailable

TITLES = ["Red Fox", "The Long Night of the River", "Storm", "Blue Garden Kettle", "Iron Pan 26 cm"]
ITEMS = [(f"B{at}", "Movie" if at < 3 else "Kitchen", title) for at, title in enumerate(TITLES)]
SHORT = {"max_new_tokens": 6, "batch": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama in a folder."""
    texts = [*TITLES, "Movie", "Kitchen"]
    return prepare(TINY, texts, [TEMPLATE], tmp_path_factory.mktemp("llama"))[0]


@pytest.fixture
def progress() -> Notes:
    return Notes()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    one = Server()
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REPROKIT_API_KEY", KEY)
    monkeypatch.setenv("REPROKIT_API_BASE", one.url)
    yield one
    one.closing.set()
    one.http.shutdown()
    one.http.server_close()


def record(folder: Path) -> Path:
    (path,) = (folder / "enrichment").glob("*.jsonl")
    return path


def never(*_: Any) -> Any:
    pytest.fail("asked again")


# --- prompts ------------------------------------------------------------------------------------
def test_the_template_is_filled_with_domain_and_title():
    asked = command(("B1", "Movie", "Tricky [domain] \\1"))
    assert asked.startswith("Generate additional contextual information for an item which is type ")
    assert "type of Movie with Tricky [domain] \\1. Provide detailed insights" in asked
    assert TEMPLATE.count("[domain]") == TEMPLATE.count("[title]") == 1


def test_importing_the_module_loads_no_torch():
    code = "import sys, reprokit.enrichment; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


def test_answers_are_those_of_greedy_decoding_one_by_one(
    llama: str, tmp_path: Path, progress: Notes
):
    texts, facts = enrich(ITEMS, llama, tmp_path, progress, "f", max_new_tokens=6, batch=3)
    backbone = load("llama", llama)
    model, tokenizer = backbone.model, backbone.tokenizer
    for item, text in zip(ITEMS, texts, strict=True):
        ids = tokenizer(command(item), return_tensors="pt")["input_ids"]
        made: list[int] = []
        for _ in range(6):
            whole = torch.cat([ids, torch.tensor([made], dtype=torch.long)], dim=1)
            best = int(model(input_ids=whole).logits[0, -1].argmax())
            if best == tokenizer.eos_token_id:
                break
            made.append(best)
        assert text == tokenizer.decode(made, skip_special_tokens=True).strip()
    expected = {"items": 5, "untitled": 0, "asked": 5, "recorded": 0, "reasoned": 0, "model": llama}
    assert expected.items() <= facts.items() and 5 <= facts["tokens"] <= 30


def test_a_checkpoint_that_suggests_sampling_is_decoded_greedily(
    llama: str, tmp_path: Path, progress: Notes
):
    backbone = load("llama", llama)
    backbone.model.generation_config.do_sample = True
    backbone.model.generation_config.temperature = 5.0
    backbone.model.generation_config.no_repeat_ngram_size = 1
    with quiet():
        backbone.model.save_pretrained(tmp_path / "hot")
        backbone.tokenizer.save_pretrained(tmp_path / "hot")
    plain, _ = enrich(ITEMS, llama, tmp_path / "a", progress, "f", **SHORT)
    hot, _ = enrich(ITEMS, str(tmp_path / "hot"), tmp_path / "b", progress, "g", **SHORT)
    assert hot == plain


def test_a_chat_template_is_applied_and_its_open_reasoning_is_no_answer(
    llama: str, tmp_path: Path, progress: Notes
):
    backbone = load("llama", llama)
    backbone.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}#{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}#assistant: <think>\n{% endif %}"
    )
    texts, opened = enrichment.prompts(backbone, ITEMS[:1])
    assert texts == [f"<s>#user: {command(ITEMS[0])}#assistant: <think>\n"] and opened
    with quiet():
        backbone.model.save_pretrained(tmp_path / "chat")
        backbone.tokenizer.save_pretrained(tmp_path / "chat")
    said, facts = enrich(ITEMS, str(tmp_path / "chat"), tmp_path, progress, "f", **SHORT)
    assert said == [""] * 5
    assert facts["reasoned"] == facts["empty"] == 5
    assert "5 of 5 answers hold a reasoning and nothing else: 6 tokens" in facts["note"]


@pytest.mark.parametrize(
    ("text", "opened", "answer", "reasoned"),
    [
        ("plain words", False, "plain words", False),
        ("<think>\nhm\n</think>\n\nsaid", False, "said", True),
        ("<think>\n\n</think>\n\nsaid", False, "said", False),
        ("hm, so\n</think>\nsaid", True, "said", True),
        ("a</think>b</think> said", True, "said", True),
        ("<think> without an end", False, "", True),
        ("still at it", True, "", True),
    ],
)
def test_a_reasoning_is_removed(text: str, opened: bool, answer: str, reasoned: bool):
    assert without_reasoning(text, opened) == (answer, reasoned)


def test_a_prompt_that_does_not_fit_is_refused_in_one_line(
    llama: str, tmp_path: Path, progress: Notes
):
    with refused("reads 2048 tokens", "max_new_tokens"):
        enrich(ITEMS, llama, tmp_path, progress, "f", max_new_tokens=2040)


def test_the_model_made_here_says_that_it_knows_nothing(tmp_path: Path, progress: Notes):
    texts, facts = enrich(ITEMS, TINY, tmp_path, progress, **SHORT)
    assert len(texts) == 5 and "tiny has random weights" in facts["note"]
    again = enrich(ITEMS, TINY, tmp_path, progress, **SHORT)
    assert again[0] == texts and again[1]["asked"] == 0


# --- the record ---------------------------------------------------------------------------------
def test_nothing_is_asked_twice_and_what_changed_is_asked_anew(
    llama: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    texts, facts = enrich(ITEMS, llama, tmp_path, progress, "f", **SHORT)
    lines = [json.loads(line) for line in record(tmp_path).read_text().splitlines()]
    by_item = {(line["item"], line["domain"], line["title"]): line for line in lines}
    assert [by_item[item]["text"] for item in ITEMS] == texts
    assert sum(line["tokens"] for line in lines) == facts["tokens"]
    generate = enrichment.Local.generate
    monkeypatch.setattr(enrichment.Local, "generate", never)
    again, told = enrich(ITEMS[::-1], llama, tmp_path, progress, "f", **SHORT)
    assert again == texts[::-1]
    assert told == {**facts, "asked": 0, "recorded": 5}
    asked: list[str] = []

    def watched(self: Any, backbone: Any, prompts: list[str]) -> list[list[int]]:
        asked.extend(prompts)
        return generate(self, backbone, prompts)

    monkeypatch.setattr(enrichment.Local, "generate", watched)
    changed = [(ITEMS[0][0], ITEMS[0][1], "Red  Fox 2"), *ITEMS[1:]]
    _, told = enrich(changed, llama, tmp_path, progress, "f", **SHORT)
    assert asked == [command((*ITEMS[0][:2], "Red Fox 2"))]
    assert (told["asked"], told["recorded"]) == (1, 4)
    enrich(ITEMS, llama, tmp_path, progress, "another", **SHORT)
    enrich(ITEMS, llama, tmp_path, progress, "f", max_new_tokens=5)
    assert len(asked) == 11 and len(list((tmp_path / "enrichment").iterdir())) == 3


class Killed(BaseException):
    pass


def test_a_killed_start_is_gone_on_with_and_ends_with_the_same_record(
    llama: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    whole, _ = enrich(ITEMS, llama, tmp_path / "whole", progress, "f", **SHORT)
    generate, asked = enrichment.Local.generate, []

    def watched(self: Any, backbone: Any, prompts: list[str]) -> list[list[int]]:
        if len(asked) == 2:
            raise Killed
        asked.extend(prompts)
        return generate(self, backbone, prompts)

    monkeypatch.setattr(enrichment.Local, "generate", watched)
    with pytest.raises(Killed):
        enrich(ITEMS, llama, tmp_path / "cut", progress, "f", **SHORT)
    assert len(record(tmp_path / "cut").read_text().splitlines()) == 2
    monkeypatch.setattr(enrichment.Local, "generate", generate)
    texts, facts = enrich(ITEMS, llama, tmp_path / "cut", progress, "f", **SHORT)
    assert texts == whole and (facts["asked"], facts["recorded"]) == (3, 2)
    assert record(tmp_path / "cut").read_bytes() == record(tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("tail", [-1, -9, "}\n", '{"item": 5}\n'])
def test_a_damaged_last_line_is_dropped_and_its_item_asked_again(
    tail: int | str, llama: str, tmp_path: Path, progress: Notes
):
    texts, _ = enrich(ITEMS, llama, tmp_path, progress, "f", **SHORT)
    path = record(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:tail] if isinstance(tail, int) else whole + tail.encode())
    again, facts = enrich(ITEMS, llama, tmp_path, progress, "f", **SHORT)
    assert again == texts and facts["asked"] == (1 if isinstance(tail, int) else 0)
    enrich([*ITEMS, ("B9", "Movie", "One more")], llama, tmp_path, progress, "f", **SHORT)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6 and all(enrichment.believe(line) for line in lines)


def test_another_damaged_line_is_an_error_in_one_line(llama: str, tmp_path: Path, progress: Notes):
    enrich(ITEMS, llama, tmp_path, progress, "f", **SHORT)
    path = record(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:-7] + "\n", *lines[2:]]))
    with refused("line 2", "not as it was written", "asked again"):
        enrich(ITEMS, llama, tmp_path, progress, "f", **SHORT)


def test_items_without_a_title_are_not_asked_but_counted(
    llama: str, tmp_path: Path, progress: Notes
):
    items = [ITEMS[0], ("B7", "Movie", " \n"), ("B8", "Movie", "")]
    texts, facts = enrich(items, llama, tmp_path, progress, "f", **SHORT)
    assert texts[1:] == ["", ""] and facts["untitled"] == 2 and facts["asked"] == 1
    assert len(record(tmp_path).read_text().splitlines()) == 1
    texts, facts = enrich(items[1:], "org/never-loaded", tmp_path, progress)
    assert texts == ["", ""] and facts["items"] == facts["untitled"] == 2


def test_other_processes_wait_for_the_first_one(
    llama: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    main = threading.current_thread()
    monkeypatch.setattr(enrichment, "first_process", lambda: threading.current_thread() is main)
    found: list[Any] = []
    other = threading.Thread(
        target=lambda: found.append(enrich(ITEMS, llama, tmp_path, Notes(), "f", **SHORT))
    )
    other.start()
    other.join(0.5)
    assert other.is_alive() and not (tmp_path / "enrichment").exists()
    ours, facts = enrich(ITEMS, llama, tmp_path, progress, "f", **SHORT)
    other.join(10)
    assert found == [(ours, facts)]


# --- an endpoint --------------------------------------------------------------------------------
def test_an_endpoint_is_asked_once_for_each_item(server: Server, tmp_path: Path, progress: Notes):
    texts, facts = enrich(ITEMS, "endpoint:org/r1", tmp_path, progress, max_new_tokens=9)
    assert texts == [f"re: {command(item)}" for item in ITEMS]
    assert facts["asked"] == 5 and facts["tokens"] == 10 and facts["cut"] == 0
    assert {body["model"] for body in server.asked} == {"org/r1"}
    assert {body["max_tokens"] for body in server.asked} == {9}
    again, told = enrich(ITEMS, "endpoint:org/r1", tmp_path, progress, max_new_tokens=9)
    assert again == texts and told["asked"] == 0 and len(server.asked) == 5
    record(tmp_path).unlink()  # the record of calls replays them
    again, told = enrich(ITEMS, "endpoint:org/r1", tmp_path, progress, max_new_tokens=9)
    assert again == texts and told["tokens"] == 10 and len(server.asked) == 5


def test_a_reasoning_of_an_endpoint_is_removed(
    server: Server, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    def thoughtful(model: str, said: str) -> dict[str, Any]:
        answer = completion(model, said)
        known = "Storm" in said
        text = "<think>well</think>\nKeywords: rain" if known else "<think>well, let me"
        answer["choices"][0]["message"]["content"] = text
        answer["choices"][0]["finish_reason"] = "stop" if known else "length"
        return answer

    monkeypatch.setattr("test_endpoint.completion", thoughtful)
    texts, facts = enrich(ITEMS[1:3], "endpoint:r1", tmp_path, progress)
    assert texts == ["", "Keywords: rain"]
    assert (facts["reasoned"], facts["empty"], facts["cut"]) == (2, 1, 1)
    assert "1 of 2 answers hold a reasoning and nothing else" in facts["note"]


def test_without_a_key_the_cells_stay_empty_and_the_record_serves(
    server: Server, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    texts, _ = enrich(ITEMS[:2], "endpoint:r1", tmp_path, progress)
    monkeypatch.delenv("REPROKIT_API_KEY")
    assert enrich(ITEMS[:2], "endpoint:r1", tmp_path, progress)[0] == texts
    for first in (True, False):
        monkeypatch.setattr(enrichment, "first_process", lambda first=first: first)
        with pytest.raises(Unavailable) as caught:
            enrich(ITEMS, "endpoint:r1", tmp_path, progress)
        assert "REPROKIT_API_KEY" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="model must be a name"):
        enrich(ITEMS, "endpoint:", tmp_path, progress)


# --- the text of an item ------------------------------------------------------------------------
CHATTY = """
# The Red Fox

The Red Fox is a quiet film about a winter.
It was **well received**.

## Specific Attributes:
- **Genre:** Drama
- **Length:** 90 minutes

### Potential Users
1. Families
2. People who like `nature`

**Keywords:** fox, winter, _quiet_ film

---
Overall, a film to remember.
"""


def test_keywords_and_attributes_come_before_prose():
    assert item_text(" The  Red Fox ", CHATTY) == (
        "The Red Fox. fox, winter, quiet film. Genre: Drama. Length: 90 minutes. Families. "
        "People who like nature. The Red Fox is a quiet film about a winter. "
        "It was well received. Overall, a film to remember"
    )


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ("", "Pan"),
        ("  \n\n", "Pan"),
        ("A pan.", "Pan. A pan"),
        ("Prose.\nKeywords: iron, pan", "Pan. iron, pan. Prose"),
        ("Prose.\n\n**Keywords**\n\n* iron\n* pan\n\nMore.", "Pan. iron. pan. Prose. More"),
        ("Keywords:\n- iron\nUsers: cooks\n- pan", "Pan. iron. pan. Users: cooks"),
        ("1. **Attributes**\n   - Weight: 2 kg\n2. **Potential users**\n   - cooks",
         "Pan. Weight: 2 kg. cooks"),
        ("**Cast iron**\nFeatures: heavy", "Pan. Features: heavy. Cast iron"),
        ("| Genre | Drama |\n|---|---|", "Pan. Genre Drama"),
        ("See [the page](http://x.y/z) <b>now</b>!", "Pan. See the page now!"),
        ("A_b stays, 3.5 mm too: 12 pans", "Pan. A_b stays, 3.5 mm too: 12 pans"),
        ("What people who cook a lot say of its features: good\n- short",
         "Pan. short. What people who cook a lot say of its features: good"),
    ],
)  # fmt: skip
def test_what_matters_comes_first(extra: str, text: str):
    assert item_text("Pan", extra) == text == item_text("Pan", extra)


def test_an_item_without_a_title_is_what_was_said_of_it():
    assert item_text("", "Keywords: pan") == "pan" and item_text(" ", "") == ""
