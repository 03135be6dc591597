"""Prompts: words, titles, limits and answers, with three kinds of tokenizer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reprokit import bench
from reprokit.data import CTRData
from reprokit.homemade import RECIPES, TINY, build_tokenizer
from reprokit.prompts import (
    COLLM_PROMPT,
    HISTORY,
    HYBRID,
    LIKED,
    PLAIN,
    SIMILAR,
    SLOTS,
    SOFT_PROMPT,
    TALLREC_PROMPT,
    TARGET,
    TEMPLATES,
    WITH_CF,
    Prompts,
    Vocabulary,
    answer_tokens,
    check_titles,
    encode_inside,
    frame,
    plain_ids,
    render,
    tokenise,
    wholes,
)
from reprokit.runs import RequestError
from reprokit.training import Order

ODD = ("<unk> and <user>", "[User_u]", "Yes", "No", "<history>", "Amélie", "M*A*S*H", "2 Fast, 2")
TITLES = ["", *ODD] + [
    " ".join(f"The {word} Film {number}" for word in ("Long", "Red", "Last")[: 1 + number % 3])
    for number in range(len(ODD) + 1, 31)
]
ROWS, READ, RECENT = 24, 4, 6
"""Rows of the toy prompts, titles of their histories, earlier positives for the CF models."""


# --- a small world ------------------------------------------------------------------------------
@functools.cache
def byte_level() -> Any:
    """BPE of bytes, spaces as they are, a token before each prompt."""
    recipe = dataclasses.replace(RECIPES[TINY], vocabulary=600)
    return build_tokenizer(recipe, [f" {title}" for title in TITLES], frame())


@functools.cache
def metaspace() -> Any:
    """As Llama's: a space is put before every text; knows few characters, adds no token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*TITLES[1:], *frame() * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@functools.cache
def whole_words() -> Any:
    """As that of our own models: each long stretch of fixed words is one token."""
    recipe = dataclasses.replace(RECIPES[TINY], vocabulary=600)
    return build_tokenizer(recipe, [f" {title}" for title in TITLES], frame(), wholes())


TOKENIZERS = {"byte-level": byte_level, "metaspace": metaspace, "whole words": whole_words}


def vocabulary_of(tokenizer: Any, titles: Sequence[str] = TITLES) -> Vocabulary:
    lists = [[], *encode_inside(tokenizer, [f" {title}" for title in titles[1:]])]
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in lists])])
    return Vocabulary(tokenizer, np.array([t for ids in lists for t in ids], np.int32), starts, 0)


def prompts_of(
    data: CTRData, template: tuple[str, ...], tokenizer: Any = None, limit: int = 700
) -> Prompts:
    """Prompts of the first test rows; the first row has no history."""
    every = np.arange(ROWS)
    histories, recent = (data.histories(data.test, every, length) for length in (READ, RECENT))
    histories[0] = recent[0] = 0
    similar = np.arange(3 * ROWS).reshape(ROWS, 3) % 30 + 1
    vocabulary = vocabulary_of(tokenizer or byte_level())
    rows = data.test.users[:ROWS], data.test.items[:ROWS]
    return Prompts(vocabulary, template, *rows, histories, recent, similar, limit)


# --- the same, slowly ---------------------------------------------------------------------------
Place = tuple[str, int, int]
"""Of one token: "word", "title" or the name of a slot; the token; the item."""


def places(template: Sequence[str], history: Sequence[int], target: int) -> list[Place]:
    """A prompt as a list, token by token, by the byte-level tokenizer alone."""

    def words(text: str, kind: str = "word", item: int = 0) -> list[Place]:
        ids = byte_level().encode(text, add_special_tokens=False)
        return [(kind, token, item) for token in ids]

    found = [("word", byte_level().bos_token_id, 0)]
    for segment in template:
        if segment == HISTORY:
            titles: list[Place] = []
            for item in [item for item in history if item]:
                titles += words(",") if titles else []
                titles += words(f" {TITLES[item]}", "title", item)
            found += titles or words(" unknown")
        elif segment == TARGET:
            found += words(f" {TITLES[target]}", "title", target)
        elif segment in SLOTS:
            found += [(segment, 0, target)] * (3 if "soft" in segment else 1)
        else:
            found += words(segment)
    return found


# --- words and titles ---------------------------------------------------------------------------
def sentence(prompts: Prompts, row: int) -> str:
    """What a row's tokens say, joined by their own marks of spaces; slots by name, once each."""
    batch = {name: value[0] for name, value in prompts.batch(np.array([row])).items()}
    names = {number: f" {text}" for text, number in SLOTS.items()}
    parts: list[str] = []
    waiting: list[int] = []
    for token, slot in zip(batch["ids"].tolist(), batch["slots"].tolist(), strict=True):
        if slot == 0:
            waiting.append(token)
            continue
        parts += [spelled(prompts.tokenizer, waiting), names[slot]] if waiting or not parts else []
        waiting = []
    return "".join([*parts, spelled(prompts.tokenizer, waiting)])


def spelled(tokenizer: Any, ids: list[int]) -> str:
    if tokenizer is not metaspace():
        return tokenizer.decode(ids)
    return "".join(tokenizer.convert_ids_to_tokens(ids)).replace("▁", " ")


def filled(template: Sequence[str], data: CTRData, row: int) -> str:
    history = data.histories(data.test, np.array([row]), READ)[0]
    liked = ", ".join(TITLES[item] for item in history if item and row)
    similar = ", ".join(TITLES[item % 30 + 1] for item in range(3 * row, 3 * row + 3))
    parts = {
        HISTORY: f" {liked or 'unknown'}",
        TARGET: f" {TITLES[data.test.items[row]]}",
        SIMILAR: f" {similar}",
        **{slot: f" {slot}" for slot in SLOTS},
    }
    return "".join(parts.get(segment, segment) for segment in template)


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_a_prompt_says_its_template_with_the_titles_filled_in(
    name: str, kind: str, click_data: CTRData
):
    template, tokenizer = TEMPLATES[name], TOKENIZERS[kind]()
    prompts = prompts_of(click_data, template, tokenizer)
    opens = "<s>" if kind != "metaspace" else " " * (template[0] not in SLOTS)
    for row in range(ROWS):
        wanted = opens + filled(template, click_data, row)
        assert sentence(prompts, row) == wanted
        assert kind == "metaspace" or prompts.text(row) == wanted


def test_the_prompt_of_the_paper_is_word_for_word_its_own(click_data: CTRData):
    text = filled(HYBRID, click_data, 5).replace("<user>", "[User_u]")
    liked = text.partition("items: ")[2].partition(". Additionally")[0]
    assert text == (
        f"#Question: A user has given high ratings to the following items: {liked}. Additionally, "
        "we have information about the user's preferences encoded in the feature [User_u]. Using "
        "all available information, make a prediction about whether the user would enjoy the item "
        f'{TITLES[click_data.test.items[5]]}. Answer with "Yes" or "No". #Answer:'
    )


def test_the_tokens_of_a_prompt_are_those_of_its_text(click_data: CTRData):
    """Where words split at spaces and marks: piece by piece is then the same as all at once."""
    for template in (PLAIN, WITH_CF, TALLREC_PROMPT):
        prompts = prompts_of(click_data, template)
        for row in range(ROWS):
            ids = prompts.batch(np.array([row]))["ids"][0].tolist()
            assert ids == byte_level()(filled(template, click_data, row))["input_ids"]


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_a_piece_is_tokenised_as_it_stands_inside_a_sentence(kind: str):
    tokenizer = TOKENIZERS[kind]()
    texts = [" The Red Film 12", ", 2", ".", "; would", "Film", " ", ""]
    found = encode_inside(tokenizer, texts)
    assert [spelled(tokenizer, ids) for ids in found] == texts
    alone = [spelled(tokenizer, ids) for ids in plain_ids(tokenizer, texts)]
    assert (alone == texts) == (kind != "metaspace")  # the other puts a space before


def by_hand(*merges: tuple[str, str]) -> Any:
    letters = ["<unk>", *"#x0\né,Yesaw▁"]
    vocabulary = letters + ["".join(merge) for merge in merges]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    model = models.BPE(numbers, list(merges), unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")


def test_an_anchor_that_merges_with_a_text_gives_way_to_another():
    tokenizer = by_hand(("#", ","), ("x", ","))
    assert plain_ids(tokenizer, ["#,", "x,"]) == [[13], [14]]
    assert encode_inside(tokenizer, [",", "Y"]) == plain_ids(tokenizer, [",", "Y"])
    merges_all = by_hand(*((anchor, ",") for anchor in "#x0\né"))
    with pytest.raises(RequestError, match="does not split ',' from what stands before it"):
        encode_inside(merges_all, ["Y", ","])


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_a_title_has_the_same_tokens_in_every_place(kind: str, click_data: CTRData):
    tokenizer = TOKENIZERS[kind]()
    found: dict[int, set[tuple[int, ...]]] = {}
    places_of: dict[int, set[int]] = {}
    prompts = prompts_of(click_data, WITH_CF, tokenizer)
    for row in range(ROWS):
        batch = prompts.batch(np.array([row]))
        ids, items = batch["ids"][0].numpy(), batch["items"][0].numpy()
        edges = np.flatnonzero(np.diff(items, prepend=-1))
        for at, part in zip(edges, np.split(ids, edges[1:]), strict=True):
            found.setdefault(items[at], set()).add(tuple(part))
            places_of.setdefault(items[at], set()).add(int(at))
    del found[0]
    alone = encode_inside(tokenizer, [f" {title}" for title in TITLES])
    assert found == {item: {tuple(alone[item])} for item in found}
    assert len(found) > 20 and all(len(places_of[item]) > 1 for item in found)


def test_histories_stand_oldest_first_and_an_empty_one_is_a_word():
    histories = np.array([[0, 0, 12, 9], [0, 0, 0, 0], [10, 11, 12, 9]])
    prompts = Prompts(
        vocabulary_of(byte_level()), PLAIN, np.arange(3), np.array([20, 21, 22]), histories
    )
    liked = [prompts.text(row).partition(LIKED)[2].partition(PLAIN[2])[0] for row in range(3)]
    assert liked[0] == f" {TITLES[12]}, {TITLES[9]}"
    assert liked[1] == " unknown"
    assert liked[2] == f" {TITLES[10]}, {TITLES[11]}, {TITLES[12]}, {TITLES[9]}"


@pytest.mark.parametrize("template", [PLAIN, WITH_CF])
def test_prompts_as_plain_text_are_those_of_the_tokens(
    template: tuple[str, ...], click_data: CTRData
):
    data, every = click_data, np.arange(len(click_data.test))
    similar = np.arange(3 * data.n_users).reshape(-1, 3) % 30 + 1
    histories = data.histories(data.test, every, READ)
    histories[0] = 0
    rows = data.test.users, data.test.items, histories
    texts = render(template, TITLES, data.test, histories, similar)
    prompts = Prompts(
        vocabulary_of(byte_level()), template, *rows, similar=similar[data.test.users]
    )
    assert [f"<s>{text}" for text in texts] == [prompts.text(row) for row in every]


def test_no_text_of_a_title_is_a_slot():
    """Titles that hold the names of slots, of special tokens, and the answers themselves."""
    titles = [*ODD, "</s>", "<s>", "<soft user>", "#Answer: Yes"]
    vocabulary = vocabulary_of(byte_level(), ["", *titles])
    items = np.arange(1, len(titles) + 1)
    none = np.zeros((len(items), 2), np.int64)
    slots_of = {PLAIN: {}, COLLM_PROMPT: {1: 1, 2: 1}, SOFT_PROMPT: {3: 3, 4: 3}}
    for template, wanted in slots_of.items():
        prompts = Prompts(vocabulary, template, items, items, np.stack([none[:, 0], items], 1))
        slots = prompts.batch(items - 1)["slots"]
        for row, title in enumerate(titles):
            found = {n: int((slots[row] == n).sum()) for n in range(1, 5)}
            assert found == {n: wanted.get(n, 0) for n in range(1, 5)}
            assert prompts.text(row).count(title) >= 2
            assert prompts.text(row).endswith(prompts.template[-1])


# --- the limit ----------------------------------------------------------------------------------
def kept_titles(prompts: Prompts, row: int) -> list[int]:
    """Items in the order in which their titles stand, the target last."""
    items = prompts.batch(np.array([row]))["items"][0].numpy()
    return [int(item) for item in items[np.flatnonzero(np.diff(items, prepend=0))] if item]


@pytest.mark.parametrize("limit", [75, 85, 95, 110, 700])
def test_the_limit_takes_the_oldest_titles_and_nothing_else(limit: int, click_data: CTRData):
    rng = np.random.default_rng(0)
    histories = rng.permuted(np.tile(np.arange(1, 31), (200, 1)), axis=1)[:, :10]
    histories[np.arange(10) < rng.integers(0, 11, 200)[:, None]] = 0
    targets = rng.integers(1, 31, 200)
    prompts = Prompts(vocabulary_of(byte_level()), PLAIN, targets, targets, histories, limit=limit)
    given = [[item for item in row if item] for row in histories.tolist()]
    kept = [kept_titles(prompts, row)[:-1] for row in range(200)]
    for row, (items, left) in enumerate(zip(given, kept, strict=True)):
        lost = len(items) - len(left)
        assert left == items[lost:]  # the newest
        assert prompts.lengths[row] == len(places(PLAIN, left, targets[row])) <= limit
        if lost:  # one more does not fit
            assert len(places(PLAIN, items[lost - 1 :], targets[row])) > limit
        assert prompts.text(row).startswith("<s>" + LIKED)
        assert prompts.text(row).endswith(f" {TITLES[targets[row]]}{PLAIN[-1]}")
    assert prompts.dropped == sum(map(len, given)) - sum(map(len, kept))
    assert prompts.shortened == sum(a != b for a, b in zip(given, kept, strict=True))
    assert (prompts.shortened == 0) == (limit == 700)


@pytest.mark.parametrize("template", [PLAIN, WITH_CF])
def test_a_prompt_as_long_as_the_limit_keeps_every_title(template: tuple[str, ...]):
    one, histories, similar = np.array([20]), np.array([[0, 10, 11]]), np.array([[13, 14]])

    def prompts(limit: int) -> Prompts:
        return Prompts(
            vocabulary_of(byte_level()), template, one, one, histories, None, similar, limit
        )

    whole = int(prompts(700).lengths[0])
    exact, less = prompts(whole), prompts(whole - 1)
    assert (exact.shortened, exact.dropped, int(exact.lengths[0])) == (0, 0, whole)
    assert (less.shortened, less.dropped) == (1, 1)
    # Without a title, a list is one word.
    bare = Prompts(vocabulary_of(byte_level()), template, one, one, np.zeros((1, 0), int))
    least = int(bare.lengths[0])
    assert int(prompts(least).lengths[0]) == least and prompts(least).text(0) == bare.text(0)
    with pytest.raises(RequestError, match=f"takes {least} tokens"):
        prompts(least - 1)


def test_similar_titles_go_before_liked_ones():
    # The newest title has more tokens than the word for none.
    histories, similar = np.array([[12, 10, 11]]), np.array([[13, 14, 15]])
    one = np.array([1])
    found: list[list[int]] = []
    for limit in range(200, 60, -1):
        try:
            prompts = Prompts(
                vocabulary_of(byte_level()), WITH_CF, one, one, histories, None, similar, limit
            )
        except RequestError:
            break
        kept = kept_titles(prompts, 0)[:-1]
        assert prompts.dropped == 6 - len(kept) and prompts.shortened == (len(kept) < 6)
        found += [kept] if kept not in found else []
    everything = [12, 10, 11, 13, 14, 15]
    steps = [everything[:end] for end in (6, 5, 4, 3)] + [[10, 11], [11], []]
    assert found == steps


def test_a_prompt_that_is_too_long_without_titles_is_one_line():
    histories, targets = np.array([[0, 9], [9, 10]]), np.array([9, 11])
    with pytest.raises(RequestError, match="raise max_tokens") as error:
        Prompts(vocabulary_of(byte_level()), PLAIN, targets, targets, histories, limit=40)
    assert "\n" not in str(error.value) and "limit of 40" in str(error.value)
    assert "id 11" in str(error.value)  # the longest


@pytest.mark.parametrize("template", [PLAIN, WITH_CF, COLLM_PROMPT, SOFT_PROMPT])
def test_the_longest_title_is_found_before_any_prompt_is_made(template: tuple[str, ...]):
    titles = [*TITLES, "A long\nlong title " * 20]
    vocabulary, last = vocabulary_of(byte_level(), titles), np.array([len(titles) - 1])
    need = int(Prompts(vocabulary, template, last, last, np.zeros((1, 0), int)).lengths[0])
    check_titles(vocabulary, template, titles, need)
    with pytest.raises(RequestError) as error:
        check_titles(vocabulary, template, titles, need - 1)
    line, tokens = str(error.value), int(np.diff(vocabulary.starts)[-1])
    assert "'A long long title A long long title " in line and "\n" not in line and len(line) < 300
    assert f"has {tokens} tokens" in line and f"limit of {need - 1}" in line
    assert line.endswith(f"raise max_tokens to {need}")


# --- answers ------------------------------------------------------------------------------------
def word_level(*words: str, normalizer: Any = None) -> Any:
    numbers = {word: number for number, word in enumerate(["<unk>", "▁#", "▁cue:", *words])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    if normalizer:
        tokenizer.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_the_answers_are_the_tokens_that_stand_behind_the_cue():
    for tokenizer in (byte_level(), metaspace(), whole_words()):
        yes, no = answer_tokens(tokenizer, PLAIN[-1])
        text = PLAIN[-1] + " Yes"
        assert tokenizer(text, add_special_tokens=False)["input_ids"][-1] == yes
        assert tokenizer.convert_ids_to_tokens([yes, no]) in (["▁Yes", "▁No"], ["ĠYes", "ĠNo"])
    assert answer_tokens(word_level("▁Yes", "▁No"), " cue:") == (3, 4)


SAME = normalizers.Replace("No", "Yes")


@pytest.mark.parametrize(
    ("tokenizer", "pieces"),
    [
        (by_hand(), "'Y', 'e', 's'"),
        (word_level("▁Yes", normalizer=SAME), "'▁Yes'"),
        (word_level(), "'<unk>'"),
        (word_level("▁Yes"), "'<unk>'"),
        (word_level("▁No"), "'<unk>'"),
    ],
    ids=["several pieces", "equal", "both unknown", "No unknown", "Yes unknown"],
)
def test_answers_that_cannot_be_read_at_one_place_are_shown_in_pieces(tokenizer: Any, pieces: str):
    with pytest.raises(RequestError, match="language model") as error:
        answer_tokens(tokenizer, " cue:")
    assert pieces in str(error.value) and "\n" not in str(error.value)


# --- titles on disk -----------------------------------------------------------------------------
class Mute:
    """A tokenizer that nobody may ask."""

    unk_token_id = 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the tokenizer was called")


def test_titles_are_tokenised_once_for_each_tokenizer_and_content(tmp_path: Path):
    first = tokenise(metaspace(), TITLES, "one", tmp_path)
    again = tokenise(Mute(), TITLES, "one", tmp_path)
    assert np.array_equal(first.tokens, again.tokens) and first.unknown == again.unknown
    assert np.array_equal(first.starts, again.starts) and first.n_items == len(TITLES)
    wanted = vocabulary_of(metaspace())
    assert np.array_equal(first.tokens, wanted.tokens)
    assert np.array_equal(first.starts, wanted.starts)
    for titles, backbone in ((TITLES, "two"), ([*TITLES[:-1], "Another"], "one")):
        with pytest.raises(AssertionError, match="was called"):
            tokenise(Mute(), titles, backbone, tmp_path)


def test_titles_with_unknown_characters_are_counted(tmp_path: Path):
    titles = ["", "The Red Film 12", "東京 東京", "Film", "Film 東"]
    for _ in range(2):  # made, then read
        assert tokenise(metaspace(), titles, "one", tmp_path).unknown == 2
    assert tokenise(byte_level(), titles, "two", tmp_path).unknown == 0


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda c: c[:-30], lambda c: c[: len(c) // 2], flipped, lambda c: b"", lambda c: b"{}"],
    ids=["end missing", "half", "one byte", "empty", "another file"],
)
def test_damaged_tokens_are_made_again(damage: Callable[[bytes], bytes], tmp_path: Path):
    first = tokenise(byte_level(), TITLES, "one", tmp_path)
    (path,) = (tmp_path / "tokens").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = tokenise(byte_level(), TITLES, "one", tmp_path)
    assert np.array_equal(first.tokens, again.tokens)
    assert np.array_equal(first.starts, again.starts)
    tokenise(Mute(), TITLES, "one", tmp_path)  # whole again


# --- rows ---------------------------------------------------------------------------------------
def test_a_sample_of_validation_rows_is_fixed_and_inside_its_split(click_data: CTRData):
    rows = click_data.valid
    part = bench.sample(rows, 40)
    names = [field.name for field in dataclasses.fields(rows)]
    every = list(zip(*(getattr(rows, name) for name in names), strict=True))
    found = list(zip(*(getattr(part, name) for name in names), strict=True))
    at = [every.index(row) for row in found]
    assert len(part) == 40 and at == sorted(set(at))  # whole rows, each once, in their order
    assert found == list(zip(*(vars(bench.sample(rows, 40))[n] for n in names), strict=True))
    assert bench.sample(rows, 0) is bench.sample(rows, len(rows)) is rows
    assert len(bench.sample(rows, 1)) == 1


@pytest.mark.parametrize("by_length", [False, True])
def test_each_pass_has_every_row_once_in_an_order_of_its_own(by_length: bool):
    lengths = np.random.default_rng(1).integers(20, 200, 1003) if by_length else None
    order = Order(7, 1003, 8, lengths)
    steps = -(-1003 // 8)
    passes = [np.concatenate([order[p * steps + at] for at in range(steps)]) for p in range(3)]
    assert all(sorted(one) == list(range(1003)) for one in passes)
    assert not np.array_equal(passes[0], passes[1])
    assert max(len(order[at]) for at in range(steps)) == 8
    for step in (200, 3, 130, 4):  # whatever was asked before
        assert np.array_equal(Order(7, 1003, 8, lengths)[step], order[step])
    assert not np.array_equal(Order(8, 1003, 8, lengths)[0], Order(7, 1003, 8, lengths)[0])


def test_batches_of_like_length_need_less_padding(click_data: CTRData):
    rng = np.random.default_rng(0)
    histories = rng.integers(1, 31, (640, 8)) * (np.arange(8) >= rng.integers(0, 9, 640)[:, None])
    targets = rng.integers(1, 31, 640)
    prompts = Prompts(vocabulary_of(byte_level()), PLAIN, targets, targets, histories)

    def padding(lengths: np.ndarray | None) -> int:
        order = Order(0, 640, 8, lengths)
        return sum(prompts.batch(order[at])["ids"].numel() for at in range(80)) - total

    total = int(prompts.lengths.sum())
    assert 0 <= padding(prompts.lengths) < padding(None) / 3
    order = Order(0, 640, 8, prompts.lengths)
    middle = [float(np.median(prompts.lengths[order[at]])) for at in range(80)]
    assert sorted(middle[:32]) != middle[:32]  # short ones do not all come first
