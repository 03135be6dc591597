"""What a language model adds to titles: which prompts it is asked, and the text of an item."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Notes

from reprokit import asking
from reprokit.asking import ask
from reprokit.enrichment import TEMPLATE, command, enrich, item_text
from reprokit.homemade import TINY, prepare

TITLES = ["Red Fox", "The Long Night of the River", "Storm", "Blue Garden Kettle", "Iron Pan 26 cm"]
ITEMS = [(f"B{at}", "Movie" if at < 3 else "Kitchen", title) for at, title in enumerate(TITLES)]
SHORT: Any = {"max_new_tokens": 6, "batch": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama in a folder."""
    texts = [*TITLES, "Movie", "Kitchen"]
    return prepare(TINY, texts, [TEMPLATE], tmp_path_factory.mktemp("llama"))[0]


def record(folder: Path) -> list[dict[str, Any]]:
    (path,) = (folder / "asked").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- asking -------------------------------------------------------------------------------------
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


def test_each_item_gets_the_answer_to_its_prompt(llama: str, tmp_path: Path, progress: Notes):
    texts, facts = enrich(ITEMS, llama, tmp_path / "a", progress, "f", **SHORT)
    answers, told = ask(list(map(command, ITEMS)), llama, tmp_path / "b", progress, "f", **SHORT)
    assert texts == [answer.text for answer in answers] and any(texts)
    assert facts == {"items": 5, "untitled": 0} | {n: told[n] for n in told if n != "prompts"}
    assert {line["prompt"] for line in record(tmp_path / "a")} == set(map(command, ITEMS))
    again, known = enrich(ITEMS[::-1], llama, tmp_path / "a", progress, "f", **SHORT)
    assert again == texts[::-1] and known == {**facts, "asked": 0, "recorded": 5}


def test_an_item_with_another_title_is_asked_about_anew(
    llama: str, tmp_path: Path, progress: Notes
):
    enrich(ITEMS, llama, tmp_path, progress, "f", **SHORT)
    changed = [(ITEMS[0][0], ITEMS[0][1], "Red  Fox 2"), *ITEMS[1:]]
    _, facts = enrich(changed, llama, tmp_path, progress, "f", **SHORT)
    assert (facts["asked"], facts["recorded"]) == (1, 4)
    assert record(tmp_path)[-1]["prompt"] == command((*ITEMS[0][:2], "Red Fox 2"))


def test_items_with_the_same_title_and_domain_are_asked_about_once(
    llama: str, tmp_path: Path, progress: Notes
):
    twins = [ITEMS[0], ("B8", "Movie", " Red Fox"), ("B9", "Kitchen", "Red Fox")]
    texts, facts = enrich(twins, llama, tmp_path, progress, "f", **SHORT)
    assert texts[0] == texts[1] and (facts["items"], facts["asked"]) == (3, 2)


def test_items_without_a_title_are_not_asked_but_counted(
    llama: str, tmp_path: Path, progress: Notes
):
    items = [("B7", "Movie", " \n"), ITEMS[0], ("B8", "Movie", ""), ITEMS[1]]
    texts, facts = enrich(items, llama, tmp_path, progress, "f", **SHORT)
    assert texts[::2] == ["", ""] and facts["untitled"] == 2 and facts["asked"] == 2
    assert texts[1::2] == enrich(ITEMS[:2], llama, tmp_path, progress, "f", **SHORT)[0]
    assert len(record(tmp_path)) == 2
    texts, facts = enrich(items[:1], "org/never-loaded", tmp_path, progress)
    assert texts == [""] and facts["items"] == facts["untitled"] == 1


def test_the_model_made_here_is_made_from_template_titles_and_domains(
    tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    made: list[Any] = []

    def watched(*arguments: Any) -> Any:
        made.append(arguments)
        return prepare(*arguments)

    monkeypatch.setattr(asking, "prepare", watched)
    texts, facts = enrich(ITEMS, TINY, tmp_path, progress, **SHORT)
    ((_, corpus, frame, *_),) = made
    assert frame == [TEMPLATE] and set(corpus) == {TEMPLATE, "Movie", "Kitchen", *TITLES}
    assert len(texts) == 5 and "tiny has random weights" in facts["note"]
    again = enrich(ITEMS, TINY, tmp_path, progress, **SHORT)
    assert again[0] == texts and again[1]["asked"] == 0


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
