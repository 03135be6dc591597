"""Sets of reviews, and what is said of them with and without a language model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from reprokit import summaries as module
from reprokit.lexicon import (
    LEXICONS,
    PRICE_PHRASES,
    blaming,
    has_content,
    prices_in,
    split_sentences,
    tokens,
    types_in,
)
from reprokit.progress import Progress
from reprokit.summaries import (
    PRICES,
    Asked,
    ReviewSets,
    parse_price,
    parse_types,
    price_tags,
    summaries,
    type_codes,
    type_names,
    vocabulary,
)
from reprokit.words import PRICE_WORDS, RESTAURANT_TYPES

QUIET = Progress(quiet=True)
NOWHERE = Path("nowhere")


def sets_of(texts: Sequence[str], *members: Sequence[int]) -> ReviewSets:
    starts = np.cumsum([0, *map(len, members)])
    return ReviewSets(texts, starts, np.array([at for some in members for at in some], np.int64))


def listed(sets: ReviewSets) -> list[list[int]]:
    return (
        [part.tolist() for part in np.split(sets.members, sets.starts[1:-1])] if len(sets) else []
    )


def summed(texts: Sequence[str], *members: Sequence[int], sentences: int = 3) -> list[str]:
    asked = Asked(sentences=sentences)
    return summaries(sets_of(texts, *members), "restaurant", asked, NOWHERE, QUIET)[0]


def everything(sets: ReviewSets) -> list[tuple[Any, ...]]:
    """Summary, price tag and types of each set, without a language model."""
    given = ("restaurant", Asked(), NOWHERE, QUIET)
    parts = summaries(sets, *given)[0], price_tags(sets, *given)[0], type_names(sets, *given)[0]
    return list(zip(parts[0], parts[1].tolist(), parts[2], strict=True))


# --- sets ---------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 4))
def test_leaving_one_out_is_what_its_definition_says(groups: list[int], most: int):
    texts = [f"review {at}" for at in range(len(groups))]
    sets, whole, without = ReviewSets.leave_one_out(texts, np.array(groups, np.int64), 5, most)
    of_group = [[at for at, g in enumerate(groups) if g == group] for group in range(5)]
    rests = [[at for at in of_group[g] if at != own] for own, g in enumerate(groups)]
    found = listed(sets)
    assert [found[at] for at in whole] == [some[: most or None] for some in of_group]
    assert [found[at] for at in without] == [some[: most or None] for some in rests]
    assert len(sets) == 5 + len(groups)


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=12),
    st.integers(0, 4),
)
def test_capped_sets_are_the_first_members_and_each_stands_once(members: Any, most: int):
    distinct, number, cut = sets_of("abcd", *members).capped(most)
    short = [some[: most or None] for some in members]
    found = listed(distinct)
    assert [found[at] for at in number] == short
    assert found == [list(some) for some in dict.fromkeys(map(tuple, short))]
    assert cut == (sum(len(some) > most for some in members) if most else 0)


def test_a_large_group_is_never_written_out_in_full():
    groups = np.arange(110_000) % 40_000
    groups[:3000] = 7
    texts = ["x"] * len(groups)
    sets, whole, without = ReviewSets.leave_one_out(texts, groups, 40_000, most=20)
    assert len(sets) == 150_000
    assert len(sets.members) <= 3001 * 20 + 3 * 150_000
    _, number, cut = sets.capped(20)
    assert cut == 0
    assert len(set(number[without[:3000]])) == 21, "leaving out one of the first 20, or a later one"
    assert number[whole[7]] == number[without[2999]]


@pytest.mark.parametrize(
    ("starts", "members", "said"),
    [
        ([1, 2], [0, 1], "starts must begin with 0"),
        ([0, 2, 1], [0], "never fall"),
        ([0, 1], [0, 1], "for 2 members"),
        ([0, 1], [2], "none of the 2 documents"),
        ([0, 1], [-1], "none of the 2 documents"),
    ],
)
def test_sets_that_cannot_be_are_refused(starts: list[int], members: list[int], said: str):
    with pytest.raises(ValueError, match=said):
        ReviewSets(["a", "b"], np.array(starts), np.array(members))


def test_an_empty_document_an_unknown_group_and_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="document 1 is empty"):
        sets_of(["a", " \n"], [0])
    with pytest.raises(ValueError, match="a group is none of the 2"):
        ReviewSets.leave_one_out(["a"], np.array([2]), 2)
    for one in (summaries, price_tags, type_names):
        with pytest.raises(ValueError, match="kind must be one of user, restaurant, product"):
            one(sets_of(["a"], [0]), "hotel", Asked(), NOWHERE, QUIET)
    with pytest.raises(ValueError, match="max_words must be 1 at least"):
        Asked(max_words=0)


# --- sentences ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Good food. Nice place", ["Good food.", "Nice place"]),
        ("Good food.The place is nice", ["Good food.", "The place is nice"]),
        ("Wow!Great!!! Really?!yes", ["Wow!", "Great!!!", "Really?!", "yes"]),
        ("Good food\nNice place\r\n\nBye", ["Good food", "Nice place", "Bye"]),
        ("It cost 4.50 at St. Louis, e.g. 9 a.m. today.", 1),
        ("Mr. B. Smith of www.yelp.com came", 1),
        ('He said "never again." So did I.', ['He said "never again."', "So did I."]),
        ("Well...that was it", ["Well...", "that was it"]),
        ("(Translated by Google) Good\n\n(Original)\nBueno", ["Good", "Bueno"]),
        ("(Original)", ["(Original)"]),
        ("- \n...\nGood", ["Good"]),
        ("\U0001f44d \U0001f44d", ["\U0001f44d \U0001f44d"]),
        ("很好。不错！", ["很好。", "不错！"]),  # noqa: RUF001
    ],
)
def test_texts_are_split_into_sentences(text: str, expected: list[str] | int):
    assert split_sentences(text) == ([text] if expected == 1 else expected)


def test_a_long_sentence_is_cut_into_pieces_of_40_words():
    words = [f"w{at}" for at in range(90)]
    assert [len(part.split()) for part in split_sentences(" ".join(words))] == [40, 40, 10]


# --- extractive summaries -----------------------------------------------------------------------
def test_the_summary_says_what_most_reviews_say_in_their_order():
    texts = [
        "We parked outside. The noodles were great.",
        "Great noodles and kind waiters. My cousin visited Denver.",
        "The waiters brought great noodles.",
    ]
    assert summed(texts, [0, 1, 2], sentences=1) == ["Great noodles and kind waiters."]
    both = summed(texts, [2, 1, 0], sentences=2)
    # the first two sentences have the same score: the earliest is said
    assert both == ["The waiters brought great noodles. My cousin visited Denver."]


def test_a_sentence_in_two_reviews_is_said_once_however_it_is_written():
    texts = ["Great noodles!", "great NOODLES", "Great noodles! Lovely waiters."]
    assert summed(texts, [0, 1, 2]) == ["Great noodles! Lovely waiters."]
    assert summed(["It was so.", "It was so."], [0, 1]) == ["It was so."]


def test_the_last_sentence_blames_where_none_did():
    praise, rant = "Great noodles. Lovely terrace.", "Somebody was rude."
    said = summed([praise, praise, rant], [0, 1, 2], [0, 1], [2, 0, 1], sentences=2)
    assert said == [f"Great noodles. {rant}", praise, f"{rant} Great noodles."]
    assert summed([praise, praise, "Somebody was not rude."], [0, 1, 2], sentences=2) == [praise]
    assert summed([praise, praise, rant], [0, 1, 2], sentences=1) == ["Great noodles."]
    assert summed([praise, praise, rant], [0, 1, 2]) == [f"{praise} {rant}"]


@pytest.mark.parametrize(
    ("sentence", "blamed"),
    [
        ("The food was cold", {"cold"}),
        ("The food was not cold", set()),
        ("The food wasn't good", {"good"}),
        ("Food isn't anything special", {"special"}),
        ("No complaints, rude staff", {"rude"}),
        ("I can't wait to come back", set()),
        ("Not only good but fresh", set()),
        ("I would never go there again", {"again"}),
        ("It was not cheap but good", set()),
    ],
)
def test_blame_is_told_from_praise_under_negation(sentence: str, blamed: set[str]):
    assert blaming(tokens(sentence)) == blamed


WORDS = "noodles waiters terrace great good cold rude not the was sushi pizza cheap expensive fair"
sentence_texts = st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=5).map(" ".join)
review_texts = st.lists(sentence_texts, min_size=1, max_size=4).map(". ".join)
member_lists = st.lists(st.lists(st.integers(0, 4), max_size=5, unique=True), max_size=6)


def plain_summary(texts: list[str], count: int) -> str:
    """The rule of `pick`, spelled out for one set."""
    sentences = []
    for number, text in enumerate(texts):
        for said in split_sentences(text):
            found = tokens(said)
            blamed = blaming(found)
            sentences.append(
                (number, said, {w for w in found if w in blamed or has_content(w)}, blamed)
            )
    holding = {w: {s[0] for s in sentences if w in s[2]} for s in sentences for w in s[2]}
    told: set[str] = set()
    taken: list[int] = []

    def score(at: int) -> float:
        _, _, content, blamed = sentences[at]
        total = sum(len(holding[w]) * (1 + (w in blamed)) for w in content - told)
        return total / (len(content) + 3)

    for turn in range(count):
        free = list(range(len(sentences)))
        new = [at for at in free if sentences[at][3] and score(at) > 0]
        if 0 < turn == count - 1 and new and not any(sentences[at][3] for at in taken):
            free = new
        best = max(free, key=score, default=None)  # the first of equals
        if best is not None and (turn == 0 or score(best) > 0):
            taken.append(best)
            told |= sentences[best][2]
    return " ".join(f"{sentences[at][1].rstrip('.')}." for at in sorted(taken))


@settings(deadline=None)
@given(st.lists(review_texts, min_size=5, max_size=5), member_lists, st.integers(1, 4))
def test_summaries_follow_the_rule_spelled_out_for_one_set(texts: Any, members: Any, count: int):
    said = summed(texts, *members, sentences=count)
    assert said == [plain_summary([texts[at] for at in some], count) for some in members]


@settings(deadline=None)
@given(
    st.lists(review_texts, min_size=5, max_size=5), member_lists, st.integers(0, 4), review_texts
)
def test_a_changed_review_changes_nothing_of_a_set_without_it(
    texts: Any, members: Any, at: int, fresh: str
):
    changed = [fresh if number == at else text for number, text in enumerate(texts)]
    before, after = everything(sets_of(texts, *members)), everything(sets_of(changed, *members))
    untouched = [number for number, some in enumerate(members) if at not in some]
    assert [before[number] for number in untouched] == [after[number] for number in untouched]


@settings(deadline=None)
@given(st.lists(review_texts, min_size=5, max_size=5), member_lists, st.randoms())
def test_neither_the_other_sets_nor_their_order_matter(texts: Any, members: Any, random: Any):
    together = everything(sets_of(texts, *members))
    assert everything(sets_of(texts, *members)) == together
    order = random.sample(range(len(members)), len(members))
    assert everything(sets_of(texts, *[members[at] for at in order])) == [
        together[at] for at in order
    ]
    assert [everything(sets_of(texts, some))[0] for some in members] == together


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch):
    texts = ["Great noodles. Cold soup!", "Rude waiters. Great soup", "It was so."]
    members = ([0, 1], [], [2], [1, 2], [2, 0, 1])
    together = summed(texts, *members)
    monkeypatch.setattr(module, "PORTION", 1)
    assert summed(texts, *members) == together
    assert together[1] == ""
    assert all(together[:1] + together[2:])


def test_facts_count_sets_and_say_that_no_model_was_asked():
    sets = sets_of(["Great noodles."], [0], [], [0])
    said, facts = summaries(sets, "user", Asked(), NOWHERE, QUIET)
    assert said == ["Great noodles.", "", "Great noodles."]
    assert (facts["model"], facts["sets"], facts["empty sets"]) == ("extractive", 3, 1)
    assert facts["asked"] == facts["shortened prompts"] == 0
    assert "without a language model" in facts["note"]
    none = sets_of(["a"])
    assert everything(none) == []
    assert everything(sets_of([], [], [])) == [("", 0, ())] * 2


# --- the lexicon --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cheap and CHEERFUL. Inexpensive!", ["cheap", "cheap"]),
        ("Not cheap, but good", []),
        ("It isn\u2019t expensive at all", ["fair"]),
        ("I wouldn't say it's overpriced", ["fair"]),
        ("Prices aren't reasonable", ["overpriced"]),
        ("not worth the price", ["overpriced"]),
        ("The prices were really fair", ["fair"]),
        ("Over-priced, a rip-off", ["overpriced", "overpriced"]),
        ("Not good. Cheap though", ["cheap"]),
        ("not good and overpriced", ["overpriced"]),
        ("Not only cheap", ["cheap"]),
        ("It won't break the bank", ["cheap"]),
        ("It feels cheap, cheap plastic", []),
        ("Cheapskates on an expensively made set", []),
    ],
)
def test_prices_are_whole_words_and_mind_negations(text: str, expected: list[str]):
    assert prices_in(text) == expected


def test_every_phrase_of_the_lexicons_is_found_under_its_name():
    for lexicon, types in LEXICONS.items():
        silent = types[""]
        for name, phrases in types.items():
            for phrase in (name, *phrases) if name else ():
                assert phrase in silent or name in types_in(f"The {phrase}!", lexicon), phrase
        assert not any(types_in(phrase, lexicon) for phrase in silent)
    for name, phrases in PRICE_PHRASES.items():
        for phrase in phrases:
            assert prices_in(phrase) == ([name] if name else []), phrase


def test_the_lexicons_know_the_synthetic_world():
    for name in RESTAURANT_TYPES:
        assert name.lower() in types_in(f"The usual {name} restaurant.", "restaurants")
    for level, texts in zip(PRICES[1:], PRICE_WORDS, strict=True):
        assert [prices_in(text) for text in texts] == [[level]] * len(texts)


def test_types_are_whole_words_in_both_numbers():
    assert types_in("French fries, Sushi & two PIZZAS", "restaurants") == {
        *("japanese", "sushi", "pizza"),
    }
    assert types_in("Thais thai-ed the Cafés", "restaurants") == {"thai", "cafe"}
    assert types_in("bakeries", "restaurants") == {"bakery"}
    assert types_in("A new capo, and drum sticks", "instruments") == {"capo", "drumsticks"}


def test_the_price_tag_is_what_most_mentions_say():
    texts = ["Cheap. A bargain!", "Overpriced.", "The price is fair.", "Nice."]
    members = ([0, 1], [1, 2], [1, 2, 1], [3], [], [0, 1, 2])
    codes, facts = price_tags(sets_of(texts, *members), "restaurant", Asked(), NOWHERE, QUIET)
    names = [PRICES[code] for code in codes]
    assert names == ["cheap", "none", "overpriced", "none", "none", "cheap"]
    assert codes.dtype == np.int8
    assert [facts[name] for name in (*PRICES, "unclear")] == [3, 2, 0, 1, 0]


def test_types_are_ordered_by_reviews_then_by_name_and_eleven_at_most():
    many = "Thai, Greek, Cuban, Irish, Korean, Polish, Indian, French, German, vegan, Persian, poke"
    texts = ["Pizza, pizza, pizza and Greek salad", "A Greek place", many]
    members = ([0, 1], [2], [], [1, 0, 2])
    names, facts = type_names(
        sets_of(texts, *members), "restaurant", Asked(), NOWHERE, QUIET, "restaurants"
    )
    assert names[0] == ("greek", "pizza", "salad")
    assert names[1] == tuple(sorted(part.strip().lower() for part in many.split(",")))[:11]
    assert names[2] == ()
    assert names[3][0] == "greek"
    assert len(names[3]) == 11
    assert facts["without types"] == 0
    with pytest.raises(ValueError, match="lexicon must be one of restaurants, instruments"):
        type_names(sets_of(texts, [0]), "product", Asked(), NOWHERE, QUIET, "books")


# --- answers of a language model ----------------------------------------------------------------
@pytest.mark.parametrize(
    ("answer", "tag"),
    [
        ("Fair price", "fair"),
        ("'over-priced'", "overpriced"),
        ("over-rice", "overpriced"),
        ("low price", "cheap"),
        ("Low", "cheap"),
        ("The price is fair.", "fair"),
        ("Overpriced", "overpriced"),
        ("**Category:** Fair Price", "fair"),
        ("expensive", "overpriced"),
        ("cheap", "cheap"),
        ("fairly expensive", "overpriced"),
        ("none", "none"),
        ("no clear indication", "none"),
        ("N/A", "none"),
        ("The reviews do not mention the price.", "none"),
        ("high quality food", ""),
        ("over-rice, fair price, low price", ""),
        ("fair price or low price", ""),
        ("Not overpriced", ""),
        ("blue", ""),
        ("", ""),
    ],
)
def test_a_price_answer_is_read_leniently_and_never_guessed(answer: str, tag: str):
    assert parse_price(answer) == (PRICES.index(tag) if tag else -1)


@pytest.mark.parametrize(
    ("answer", "names", "dropped"),
    [
        ("'Italian, Pizza'", ("italian", "pizza"), 0),
        ("Italian/pizza restaurant", ("italian", "pizza"), 0),
        ("This is a Thai restaurant.", ("thai",), 0),
        ("It\u2019s a casual Tex-Mex place", ("casual tex mex",), 0),
        ("The type of restaurant is 'Café'", ("cafe",), 0),
        ("- Thai\n- Sushi bar\n* thai food", ("thai", "sushi bar"), 0),
        ("1. **Fast food**\n2) Bar & Grill", ("fast food", "bar and grill"), 0),
        ('["Greek", "Greek cuisine"]', ("greek",), 0),
        ("Type: Japanese (ramen and sushi)", ("japanese", "ramen", "sushi"), 0),
        ("Based on the reviews, this is a diner.", ("diner",), 1),
        ("Thai. They also have a very large parking lot", ("thai",), 1),
        ("I cannot determine the type", (), 1),
        ("b c d e f", (), 1),
        ("unknown", (), 1),
        ("restaurant", (), 0),
        ("", (), 0),
    ],
)
def test_a_type_answer_is_taken_apart(answer: str, names: tuple[str, ...], dropped: int):
    assert parse_types(answer) == (names, dropped)


class Speaker:
    """In place of `reprokit.asking`: answers by a table, and keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *said: tuple[str, str]) -> None:
        self.said, self.prompts, self.options = said, [], {}
        stand_in: Any = ModuleType("reprokit.asking")
        stand_in.ask = self.ask
        monkeypatch.setitem(sys.modules, "reprokit.asking", stand_in)

    def ask(self, prompts: Sequence[str], *given: Any, **options: Any) -> Any:
        self.prompts, self.given, self.options = list(prompts), given, options
        texts = [next((text for key, text in self.said if key in prompt), "") for prompt in prompts]
        answers = [type("Answer", (), {"text": text})() for text in texts]
        return answers, {"model": given[0], "prompts": len(set(prompts)), "note": "said"}


LLM = Asked("some-model", "abc", max_new_tokens=9, batch=2)


def test_each_set_is_asked_about_once_and_empty_ones_never(monkeypatch: pytest.MonkeyPatch):
    speaker = Speaker(monkeypatch, ("Cold soup", " Cold\nsoup. "), ("Kind", "Kind."))
    texts = ["Cold\n\n soup.", "Kind waiters."]
    sets = sets_of(texts, [0, 1], [], [1], [0, 1])
    said, facts = summaries(sets, "user", LLM, NOWHERE, QUIET)
    assert said == ["Cold soup.", "", "Kind.", "Cold soup."]
    question = module.SUMMARY.replace("[of]", "written by the same user")
    assert speaker.prompts == [
        f"{question}\n- Cold soup.\n- Kind waiters.",
        f"{question}\n- Kind waiters.",
    ]
    assert speaker.given == ("some-model", NOWHERE, QUIET)
    assert {key: speaker.options[key] for key in ("fingerprint", "max_new_tokens", "batch")} == {
        **{"fingerprint": "abc", "max_new_tokens": 9, "batch": 2}
    }
    assert speaker.options["corpus"][1:] == ("Cold soup.", "Kind waiters.")
    assert (facts["sets"], facts["empty sets"], facts["prompts"]) == (4, 1, 2)
    assert (facts["model"], facts["note"]) == ("some-model", "said")


def test_the_papers_questions_are_asked_in_its_words(monkeypatch: pytest.MonkeyPatch):
    speaker = Speaker(monkeypatch)
    price_tags(sets_of(["Nice."], [0]), "restaurant", LLM, NOWHERE, QUIET)
    assert speaker.prompts == [
        "Can you tell me if the price is over-rice, fair price, low price from reviews for this "
        "restaurant. Give me just the category\n- Nice."
    ]
    type_names(sets_of(["Nice."], [0]), "product", LLM, NOWHERE, QUIET)
    assert speaker.prompts == [
        "can you tell me what kind of product this is from these reviews for the product. Return "
        "me in this format: 'type'\n- Nice."
    ]


def test_answers_become_tags_and_types_and_what_fits_nothing_is_counted(
    monkeypatch: pytest.MonkeyPatch,
):
    texts = ["one", "two", "three"]
    sets = sets_of(texts, [0], [1], [2], [], [1])
    Speaker(monkeypatch, ("one", "Fair price"), ("two", "high or low"), ("three", "none"))
    codes, facts = price_tags(sets, "restaurant", LLM, NOWHERE, QUIET)
    assert codes.tolist() == [2, 0, 0, 0, 0]
    assert [facts[name] for name in (*PRICES, "unclear")] == [4, 0, 1, 0, 2]
    Speaker(monkeypatch, ("one", "'Thai, Bar'"), ("two", "I do not know what this place could be"))
    names, facts = type_names(sets, "restaurant", LLM, NOWHERE, QUIET)
    assert names == [("thai", "bar"), (), (), (), ()]
    assert (facts["dropped pieces"], facts["without types"]) == (2, 3)


def test_a_long_prompt_loses_whole_reviews_from_the_end(monkeypatch: pytest.MonkeyPatch):
    speaker = Speaker(monkeypatch)
    texts = ["a b c", "d e", "f", "g h i j k l m"]
    sets = sets_of(texts, [0, 1, 2], [0, 1], [3, 2], [0, 1, 2])
    _, facts = summaries(sets, "user", replace(LLM, max_words=5), NOWHERE, QUIET)
    assert [prompt.split("\n- ")[1:] for prompt in speaker.prompts] == [
        ["a b c", "d e"],
        ["a b c", "d e"],
        ["g h i j k"],
    ]
    assert (facts["shortened prompts"], facts["cut reviews"]) == (3, 1)


@settings(deadline=None)
@given(st.lists(review_texts, min_size=5, max_size=5), member_lists, st.integers(0, 4))
def test_a_prompt_holds_the_reviews_of_its_set_alone(texts: Any, members: Any, at: int):
    changed = ["another" if number == at else text for number, text in enumerate(texts)]
    asked = []
    for some in (texts, changed):
        with pytest.MonkeyPatch.context() as patch:
            speaker = Speaker(patch)
            untouched = [one for one in members if at not in one]
            summaries(sets_of(some, *untouched), "user", LLM, NOWHERE, QUIET)
            asked.append(speaker.prompts)
    assert asked[0] == asked[1]


def test_a_model_made_on_the_spot_is_asked_and_asked_once(tmp_path: Path):
    sets = sets_of(["Cold soup.", "Kind waiters.", "Great noodles."], [0, 1], [], [2])
    asked = Asked("tiny", max_new_tokens=3)
    said, facts = summaries(sets, "restaurant", asked, tmp_path, QUIET)
    assert (facts["asked"], facts["empty sets"], said[1]) == (2, 1, "")
    _, priced = price_tags(sets, "restaurant", asked, tmp_path, QUIET)
    assert sum(priced[name] for name in PRICES) == 3
    again, facts = summaries(sets, "restaurant", asked, tmp_path, QUIET)
    assert (again, facts["asked"], facts["recorded"]) == (said, 0, 2)
    assert len(list((tmp_path / "models").iterdir())) == 1, "one model for all questions"


# --- types as codes -----------------------------------------------------------------------------
def test_the_vocabulary_is_the_most_frequent_types_ties_by_name():
    names = [("thai", "bar"), ("thai",), (), ("cafe", "deli"), ("bar", "thai")]
    assert vocabulary(names) == ["thai", "bar", "cafe", "deli"]
    assert vocabulary(names, 3) == ["thai", "bar", "cafe"]


def test_codes_are_padded_and_what_is_left_out_is_counted():
    names = [("thai", "new", "bar", "cafe"), (), ("bar",)]
    codes, facts = type_codes(names, ["bar", "cafe", "thai"], most=2)
    assert codes.tolist() == [[2, 0], [3, 3], [0, 3]]
    assert codes.dtype == np.int64
    assert facts == {"unknown types": 1, "beyond 2": 1}
    assert type_codes([], [], most=11)[0].shape == (0, 11)


def test_importing_the_module_loads_neither_torch_nor_transformers():
    code = (
        "import sys, reprokit.summaries\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'openai'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
