"""Stage 1: the release as it is published, questions about a catalogue, and both as tokens."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_prompts import byte_level
from test_reasons import feedback
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from reprokit import alpaca
from reprokit.alpaca import ANSWER, Examples, catalogue, read_alpaca
from reprokit.datasets import DataError
from reprokit.feedback import Feedback

PLAIN = {"instruction": "Name a colour.", "input": "", "output": "Red.\n"}
LONGER = {"instruction": "Translate.", "input": "chat", "output": "cat"}


def release(data_dir: Path, text: str) -> Path:
    path = data_dir / "alpaca/alpaca_data.json"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def shop(n_items: int = 41) -> Feedback:
    """Items of three genres; one has none, one has all."""
    names = ("Action", "Drama", "War")
    genres: list[tuple[str, ...]] = [(), *((names[item % 3],) for item in range(1, n_items))]
    genres[7], genres[8] = (), names
    events = [(1, item, item % 2, "train") for item in range(1, n_items)]
    return feedback(events, genres=genres)


# --- the release --------------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [False, True])
def test_each_entry_is_a_task_with_its_input_and_an_answer(tmp_path: Path, packed: bool):
    path = release(tmp_path, json.dumps([PLAIN, LONGER]))
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert read_alpaca(tmp_path) == [
        (f"Task: Name a colour.{ANSWER}", " Red."),
        (f"Task: Translate.\nchat{ANSWER}", " cat"),
    ]


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ({"instruction": "Name a colour.", "output": "Red."}, "no input"),
        ({**PLAIN, "output": 3}, "an answer that is no text"),
        (["Name a colour."], "a list"),
        (None, "nothing"),
    ],
)
def test_a_damaged_entry_is_named_with_its_file_and_number(tmp_path: Path, entry: Any, what: str):
    path = release(tmp_path, json.dumps([PLAIN, entry, LONGER]))
    with pytest.raises(DataError) as error:
        read_alpaca(tmp_path)
    assert str(error.value) == f"{path}, entry 2: not an instruction with input and output", what


@pytest.mark.parametrize("text", ["{", "{}", "[]", "\udce9", "[" * 100_000])
def test_a_file_that_is_no_list_of_instructions_is_named(tmp_path: Path, text: str):
    path = release(tmp_path, "")
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="not ") as error:
        read_alpaca(tmp_path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_missing_release_says_how_to_get_it(tmp_path: Path):
    with pytest.raises(DataError, match=r"alpaca_data.json is missing.*data fetch alpaca"):
        read_alpaca(tmp_path)


# --- the catalogue ------------------------------------------------------------------------------
def asked_and_told(pairs: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(title, genre, answer) of the questions with Yes or No."""
    found = []
    for question, answer in pairs:
        if question.startswith("Task: tell whether the film "):
            body = question.removeprefix("Task: tell whether the film ").removesuffix(f".{ANSWER}")
            title, genre = body.split(" is of the genre ")
            found.append((title, genre, answer))
    return found


def test_every_item_with_genres_is_asked_about_twice():
    data = shop()
    pairs = catalogue(data)
    assert len(pairs) == 2 * 39
    listed = [answer for question, answer in pairs if "name the genres" in question]
    named = [genres for genres in data.genres[1:] if genres]
    assert listed == [f" {', '.join(genres)}" for genres in named]
    assert len(asked_and_told(pairs)) == 39
    assert not any(data.titles[7] + "." in q or f"{data.titles[7]} is" in q for q, _ in pairs)


def test_yes_and_no_are_balanced_and_right():
    data = shop()
    told = asked_and_told(catalogue(data))
    genres = dict(zip(data.titles, data.genres, strict=True))
    assert all((genre in genres[title]) == (answer == " Yes") for title, genre, answer in told)
    counts = Counter(answer for *_, answer in told)
    assert set(counts) == {" Yes", " No"} and abs(counts[" Yes"] - counts[" No"]) <= 2
    asked = {genre for _, genre, answer in told if answer == " No"}
    assert asked == {"Action", "Drama", "War"}


def test_no_user_and_no_rating_has_a_say_in_the_catalogue():
    data = shop()
    other = feedback(
        [(user, item, 1, "train") for user in (1, 2) for item in range(1, 41)], genres=data.genres
    )
    pairs = catalogue(data)
    assert catalogue(replace(other, reviews=["Loved it."] * len(other))) == pairs
    assert not any(f"u{user}" in text for pair in pairs for text in pair for user in (0, 1))


def test_of_a_large_catalogue_a_fixed_part_is_asked_about(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(alpaca, "MOST", 10)
    pairs = catalogue(shop())
    assert len(pairs) == 20 and pairs == catalogue(shop())


def test_a_catalogue_without_a_genre_cannot_be_asked_about():
    data = shop()
    with pytest.raises(DataError, match="toy: no item has a genre"):
        catalogue(replace(data, genres=[()] * data.n_items))


# --- tokens -------------------------------------------------------------------------------------
PAIRS = [
    (f"Task: one.{ANSWER}", " Yes"),
    (f"Task: {'tell it at length, ' * 20}.{ANSWER}", " No"),
    (f"Task: name two films.{ANSWER}", " The Long Film, The Red Film"),
]


def test_the_answer_begins_at_first_and_ends_with_the_end_token():
    tokenizer = byte_level()
    examples = Examples(tokenizer, PAIRS, 1000)
    batch = examples.batch(np.array([2, 0, 1]))
    for row, at in enumerate((2, 0, 1)):
        question, answer = PAIRS[at]
        ids = batch["ids"][row].tolist()
        first, end = int(batch["first"][row]), int(batch["end"][row])
        assert ids[0] == tokenizer.bos_token_id and ids[end] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[1:first]) == question
        assert tokenizer.decode(ids[first:end]) == answer
        assert not any(ids[end + 1 :]) and end + 1 == examples.lengths[at]
    assert batch["ids"].shape[1] == examples.lengths.max()


def test_examples_that_are_too_long_are_left_out_and_the_rest_stays():
    every = Examples(byte_level(), PAIRS, 1000)
    limit = int(every.lengths[[0, 2]].max())
    kept = Examples(byte_level(), PAIRS, limit)
    assert len(every) == 3 and len(kept) == 2
    assert kept.lengths.tolist() == every.lengths[[0, 2]].tolist()
    mine, all_of_them = kept.batch(np.array([1])), every.batch(np.array([2]))
    assert all((mine[name] == all_of_them[name]).all() for name in mine)
    assert len(Examples(byte_level(), PAIRS, limit - 1)) == 1
    assert len(Examples(byte_level(), PAIRS, 2)) == 0


def test_a_tokenizer_that_opens_no_text_gets_no_opening_token():
    class Bare:
        """The same without the token before each text."""

        bos_token_id, eos_token_id = byte_level().bos_token_id, byte_level().eos_token_id

        def __call__(self, texts: Any, **more: Any) -> Any:
            return byte_level()(texts, add_special_tokens=False)

    bare, opened = (Examples(one, PAIRS, 1000) for one in (Bare(), byte_level()))
    assert (opened.lengths - bare.lengths).tolist() == [1, 1, 1]
    assert (opened.first - bare.first).tolist() == [1, 1, 1]


def test_an_answer_has_the_tokens_that_it_has_behind_its_cue():
    """As Llama's: a space before whatever is tokenised, so that " Yes" alone has two."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "Y", "#", "Q", "▁Y", "▁#", "▁Q"]
    merges = [("▁", "Y"), ("▁", "#"), ("▁", "Q")]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocab=numbers, merges=merges, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    assert tokenizer.tokenize(" Y") == ["▁", "▁Y"] and tokenizer.tokenize("Q Y") == ["▁Q", "▁Y"]
    ids = Examples(tokenizer, [("Q", " Y")], 100).tokens.tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁Q", "▁Y", "</s>"]


def test_the_digest_follows_the_content():
    other = [*PAIRS[:2], (PAIRS[2][0], " The Last Film")]
    digests = [Examples(byte_level(), pairs, 1000).digest for pairs in (PAIRS, PAIRS, other)]
    assert digests[0] == digests[1] != digests[2]
