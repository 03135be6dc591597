"""Instructions name what came before, with reasons and slots where asked, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_prompts import byte_level
from test_reasons import feedback

from reprokit.feedback import Feedback
from reprokit.instructions import AGAIN, CUE, SEEN, Instructions, read_words
from reprokit.prompts import ITEM, SLOTS
from reprokit.reasons import reasons
from reprokit.runs import RequestError

EVENTS = [
    (1, 1, 1, "train"),
    (1, 2, 0, "train"),
    (1, 3, 1, "train"),
    (1, 4, 1, "valid"),
    (1, 5, 0, "test"),
    (2, 2, 1, "train"),
    (2, 5, 1, "train"),
    (2, 1, 0, "test"),
]
GENRES: list[tuple[str, ...]] = [(), ("Action",), ("Drama",), ("Action", "War"), ("War",), ()]


def data() -> Feedback:
    return feedback(EVENTS, genres=GENRES).sealed()


def made(rows: list[int], history: int = 3, **more: Any) -> Instructions:
    toy = data()
    at = np.array(rows)
    words = read_words(byte_level(), toy, {"War": "Action"})
    return Instructions(words, toy, at, toy.items[at], history, **more)


def test_a_prompt_lists_liked_and_disliked_titles_then_the_target() -> None:
    text = made([3]).text(0)
    assert "Liked: Title 1; Title 3;" in text and "Disliked: Title 2;" in text
    assert text.endswith(f"New film: Title 4{CUE}")


def test_an_empty_history_says_so() -> None:
    text = made([5]).text(0)
    assert "Liked: nothing" in text and "Disliked: nothing" in text


def test_a_test_row_reads_validation_and_no_test_event() -> None:
    text = made([4]).text(0)
    assert "Title 4" in text.split("New film")[0]
    assert "Title 5" not in text.split("New film")[0]


def test_each_history_item_has_its_reason_and_slot() -> None:
    prompts = made([3], reasons=True, slots=True, described=True)
    found = reasons(prompts.data, np.array([0, 2, 1]))
    first, second, third = (found.texts[at] for at in found.index)
    text = prompts.text(0)
    assert f"Title 1 <seen> because {first}; Title 3 <seen> because {second};" in text
    assert f"Title 2 <seen> because {third};" in text
    assert text.endswith(f"Title 4 (War) <item>{CUE}")
    batch = prompts.batch(np.array([0]))
    slots, items = batch["slots"][0], batch["items"][0]
    assert items[slots == SEEN].tolist() == [1, 3, 2]
    assert items[slots == SLOTS[ITEM]].tolist() == [4]


def test_the_oldest_items_go_first_and_are_counted() -> None:
    whole = made([3])
    short = made([3], limit=int(whole.lengths[0]) - 1)
    assert "Title 1" not in short.text(0) and "Title 3" in short.text(0)
    assert (short.shortened, short.dropped) == (1, 1)
    with pytest.raises(RequestError, match="raise max_tokens"):
        made([3], limit=10)


def test_a_domain_free_row_names_genres_of_the_trained_domain_alone() -> None:
    text = made([3, 3], reasons=True, slots=True, free=np.array([True, False])).text(0)
    text = text.removeprefix("<s>")
    assert "Title" not in text and "<" not in text and "because" not in text
    assert "Liked: Action; Action;" in text and text.endswith(f"New film: Action{CUE}")


def test_a_training_row_answers_gives_its_reason_and_is_read_again() -> None:
    prompts = made([2, 1], reasons=True, labels=np.array([1, 0]))
    batch = prompts.training_batch(np.arange(2))
    tokenizer = prompts.tokenizer
    for row, answer in enumerate((" Yes", " No")):
        last, stop, end = (int(batch[name][row]) for name in ("last", "stop", "end"))
        ids = batch["ids"][row].tolist()
        assert tokenizer.decode(ids[: last + 1]).endswith(CUE)
        assert tokenizer.decode(ids[last + 1 : last + 2]) == answer
        own = reasons(prompts.data, prompts.rows[row : row + 1]).texts[0]
        assert tokenizer.decode(ids[last + 2 : stop - 1]) == f" because {own}"
        assert ids[stop - 1] == prompts.words.end
        assert tokenizer.decode(ids[stop : end + 1]) == AGAIN
    assert prompts.training_lengths.tolist() == (batch["end"] + 1).tolist()


def test_prompts_with_one_prefix_share_it() -> None:
    toy = data()
    words = read_words(byte_level(), toy, {})
    rows, items = np.array([3, 3, 3]), np.array([4, 5, 2])
    prompts = Instructions(words, toy, rows, items, 3, reasons=True, slots=True)
    prompts.patterns = np.arange(6, dtype=np.float32).reshape(3, 2)
    batch = prompts.batch(np.arange(3), share=True)
    assert len(batch["prefix_ids"]) == 1 and batch["group"].tolist() == [0, 0, 0]
    assert batch["patterns"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_what_is_hidden_or_later_changes_no_prompt() -> None:
    changed = [*EVENTS]
    changed[4] = (1, 5, 1, "test")
    changed[7] = (2, 1, 1, "test")
    at = np.array([0, 2, 3])
    texts = []
    for events in (EVENTS, changed):
        toy = feedback(events, genres=GENRES).sealed()
        words = read_words(byte_level(), toy, {})
        prompts = Instructions(words, toy, at, toy.items[at], 3, reasons=True)
        texts.append([prompts.text(row) for row in range(3)])
    assert texts[0] == texts[1]
