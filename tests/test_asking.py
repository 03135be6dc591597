"""What a language model answers to prompts: asked once, kept, replayed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Notes, never, refused
from test_endpoint import KEY, Server, completion

from reprokit import asking, homemade
from reprokit.asking import Answer, Record, ask, believe, without_reasoning
from reprokit.backbones import load, quiet
from reprokit.homemade import SCRATCH, TINY, prepare
from reprokit.runs import RequestError, Unavailable, digest

CORPUS = ["Say it short.", "Red Fox", "The Long Night of the River", "Storm", "Iron Pan 26 cm"]
PROMPTS = [f"Say it short. {text}" for text in (*CORPUS[1:], "The Long Storm of the Red Night Fox")]
SHORT: Any = {"max_new_tokens": 6, "batch": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama in a folder."""
    return prepare(TINY, CORPUS, CORPUS[:1], tmp_path_factory.mktemp("llama"))[0]


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
    (path,) = (folder / "asked").glob("*.jsonl")
    return path


def said(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The batches that a local model is asked from here on."""
    generate, batches = asking.Local.generate, []

    def watch(self: Any, backbone: Any, texts: list[str]) -> list[list[int]]:
        batches.append(list(texts))
        return generate(self, backbone, texts)

    monkeypatch.setattr(asking.Local, "generate", watch)
    return batches


# --- a model on this machine --------------------------------------------------------------------
def test_importing_the_module_loads_no_torch():
    code = "import sys, reprokit.asking; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


def test_answers_are_those_of_greedy_decoding_one_by_one(
    llama: str, tmp_path: Path, progress: Notes
):
    answers, facts = ask(PROMPTS, llama, tmp_path, progress, "f", max_new_tokens=6, batch=3)
    backbone = load("llama", llama)
    model, tokenizer = backbone.model, backbone.tokenizer
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made: list[int] = []
        for _ in range(6):
            whole = torch.cat([ids, torch.tensor([made], dtype=torch.long)], dim=1)
            made.append(int(model(input_ids=whole).logits[0, -1].argmax()))
            if made[-1] == tokenizer.eos_token_id:
                break
        ended = made[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(made, skip_special_tokens=True).strip()
        assert answer == Answer(text, len(made), reasoned=False, cut=not ended)
    expected = {"model": llama, "prompts": 5, "asked": 5, "recorded": 0, "reasoned": 0}
    assert expected.items() <= facts.items()
    assert facts["tokens"] == sum(answer.tokens or 0 for answer in answers)


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
    plain, _ = ask(PROMPTS, llama, tmp_path / "a", progress, "f", **SHORT)
    hot, _ = ask(PROMPTS, str(tmp_path / "hot"), tmp_path / "b", progress, "g", **SHORT)
    assert hot == plain


def test_a_chat_template_is_applied_and_its_open_reasoning_is_no_answer(
    llama: str, tmp_path: Path, progress: Notes, watched: list[list[str]]
):
    backbone = load("llama", llama)
    backbone.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}#{{ m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}#assistant: <think>\n{% endif %}"
    )
    with quiet():
        backbone.model.save_pretrained(tmp_path / "chat")
        backbone.tokenizer.save_pretrained(tmp_path / "chat")
    answers, facts = ask(PROMPTS, str(tmp_path / "chat"), tmp_path, progress, "f", **SHORT)
    texts = sorted(text for batch in watched for text in batch)
    assert texts == sorted(f"<s>#user: {prompt}#assistant: <think>\n" for prompt in PROMPTS)
    start = backbone.tokenizer.bos_token_id
    assert [row.count(start) for row in asking.tokens_of(backbone.tokenizer, texts)] == [1] * 5
    assert said(answers) == [""] * 5 and facts["reasoned"] == facts["empty"] == 5
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


def test_one_prompt_that_does_not_fit_is_refused_before_any_is_answered(
    llama: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asking.Local, "generate", never)
    monkeypatch.setattr(asking, "CHUNK", 2)
    tokenizer = load("llama", llama).tokenizer
    long = "Red Fox " * 700
    width = len(tokenizer(long)["input_ids"])
    with refused("reads 2048 tokens", f"longest prompt, of {width},", "6 new", "max_new_tokens"):
        ask([*PROMPTS, long, "Storm"], llama, tmp_path, progress, "f", **SHORT)
    widest = max(len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    with refused("reads 2048 tokens", f"of {widest},"):
        ask(PROMPTS, llama, tmp_path, progress, "f", max_new_tokens=2049 - widest)
    assert not (tmp_path / "asked").exists()


def test_a_prompt_that_just_fits_is_answered(llama: str, tmp_path: Path, progress: Notes):
    tokenizer = load("llama", llama).tokenizer
    prompt = "Storm"
    while len(tokenizer(f"{prompt} Fox")["input_ids"]) <= 2042:
        prompt += " Fox"
    room = 2048 - len(tokenizer(prompt)["input_ids"])
    _, facts = ask([prompt], llama, tmp_path, progress, "f", max_new_tokens=room)
    assert facts["asked"] == 1


def test_empty_prompts_and_half_characters_are_refused_in_one_line(tmp_path: Path, progress: Notes):
    for prompt in ("", " \n", "\ud800"):
        with refused("replies by org/never-loaded", "prompt 2 is empty, or no text"):
            ask(["x", prompt], "org/never-loaded", tmp_path, progress, what="replies")
    with refused("max_new_tokens and batch must be 1 at least, got 128 and 0"):
        ask(["x"], "org/never-loaded", tmp_path, progress, "f", batch=0)
    answers, facts = ask([], "org/never-loaded", tmp_path, progress)
    assert answers == [] and facts["prompts"] == facts["asked"] == 0 and facts["note"] == ""


def test_answers_cut_short_and_empty_ones_are_counted_and_named(
    llama: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    tokenizer = load("llama", llama).tokenizer
    end, word = tokenizer.eos_token_id, tokenizer("x")["input_ids"][-1]
    rows = iter([[end] + [0] * 5, [word] * 5 + [end], [word] * 6])
    monkeypatch.setattr(asking.Local, "generate", lambda self, _, texts: [next(rows)])
    answers, facts = ask(
        ["1", "22", "333"], llama, tmp_path, progress, "f", max_new_tokens=6, batch=1
    )
    assert [(answer.tokens, answer.cut) for answer in answers] == [
        (1, False),
        (6, False),
        (6, True),
    ]
    assert (facts["empty"], facts["cut"], facts["tokens"]) == (1, 1, 13)
    assert facts["note"] == "1 of 3 answers are empty; 1 of 3 answers were cut at 6 tokens"


# --- a model made here --------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("llm", "made"), [(TINY, "has random weights"), (SCRATCH, "was trained on a few texts alone")]
)
def test_a_model_made_here_says_that_it_knows_nothing_and_is_known_by_its_corpus(
    llm: str, made: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(homemade.RECIPES, llm, replace(homemade.RECIPES[llm], batch=1, steps=1))
    answers, facts = ask(PROMPTS, llm, tmp_path, progress, corpus=CORPUS, **SHORT)
    assert len(answers) == 5 and f"{llm} {made}: what it says carries nothing" in facts["note"]
    first = record(tmp_path)
    monkeypatch.setattr(asking, "prepare", never)  # nothing is missing: no model is made
    again = ask(PROMPTS, llm, tmp_path, progress, corpus=[*CORPUS[:1], *CORPUS[:0:-1]], **SHORT)
    assert again[0] == answers and again[1]["asked"] == 0
    monkeypatch.setattr(asking, "prepare", prepare)
    ask(PROMPTS[:1], llm, tmp_path, progress, corpus=CORPUS[:-1], **SHORT)
    (other,) = set((tmp_path / "asked").iterdir()) - {first}
    assert len(other.read_text().splitlines()) == 1


def test_a_model_made_here_needs_texts(tmp_path: Path, progress: Notes):
    with refused("'tiny' is made from texts", "2 differing ones at least, got 1"):
        ask(PROMPTS, TINY, tmp_path, progress, corpus=["x", "x"])


# --- the record ---------------------------------------------------------------------------------
def test_a_line_holds_the_prompt_the_answer_and_a_digest(
    llama: str, tmp_path: Path, progress: Notes
):
    prompt = "Say it short. \u96e8 \u2028 \U0001f327"
    (answer,), _ = ask([prompt], llama, tmp_path, progress, "f", **SHORT)
    (line,) = record(tmp_path).read_bytes().split(b"\n")[:-1]
    told = json.loads(line)
    assert told.pop("digest") == digest(told)
    assert told == {"key": digest(prompt), "prompt": prompt, **vars(answer)}
    assert "\u96e8" in line.decode()  # a person can read it


def test_equal_prompts_are_asked_once_and_recorded_ones_not_again(
    llama: str, tmp_path: Path, progress: Notes, watched: list[list[str]]
):
    answers, facts = ask([*PROMPTS, *PROMPTS[:2]], llama, tmp_path, progress, "f", **SHORT)
    assert answers[5:] == answers[:2] and (facts["prompts"], facts["asked"]) == (5, 5)
    assert len(record(tmp_path).read_text().splitlines()) == 5
    watched.clear()
    again, told = ask(PROMPTS[::-1], llama, tmp_path, progress, "f", **SHORT)
    assert again == answers[4::-1] and watched == []
    assert told == {**facts, "asked": 0, "recorded": 5}
    _, told = ask([*PROMPTS[1:], "Say more."], llama, tmp_path, progress, "f", **SHORT)
    assert watched == [["Say more."]] and (told["asked"], told["recorded"]) == (1, 4)
    watched.clear()
    ask(PROMPTS, llama, tmp_path, progress, "another", **SHORT)
    ask(PROMPTS, llama, tmp_path, progress, "f", max_new_tokens=5)
    assert sum(map(len, watched)) == 10 and len(list((tmp_path / "asked").iterdir())) == 3


def test_the_record_is_read_once_and_its_own_lines_never(
    llama: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    lines: list[bytes] = []
    monkeypatch.setattr(asking, "believe", lambda line: lines.append(line) or believe(line))
    ask(PROMPTS, llama, tmp_path, progress, "f", max_new_tokens=2, batch=1)
    assert lines == []
    ask([*PROMPTS, "a", "b", "c"], llama, tmp_path, progress, "f", max_new_tokens=2, batch=1)
    assert len(lines) == 5


class Killed(BaseException):
    pass


def test_a_killed_start_is_gone_on_with_and_ends_with_the_same_record(
    llama: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    whole, _ = ask(PROMPTS, llama, tmp_path / "whole", progress, "f", **SHORT)
    generate, batches = asking.Local.generate, []

    def killed(self: Any, backbone: Any, texts: list[str]) -> list[list[int]]:
        if batches:
            raise Killed
        batches.append(texts)
        return generate(self, backbone, texts)

    monkeypatch.setattr(asking.Local, "generate", killed)
    with pytest.raises(Killed):
        ask(PROMPTS, llama, tmp_path / "cut", progress, "f", **SHORT)
    assert len(record(tmp_path / "cut").read_text().splitlines()) == 2
    monkeypatch.setattr(asking.Local, "generate", generate)
    answers, facts = ask(PROMPTS[::-1], llama, tmp_path / "cut", progress, "f", **SHORT)
    assert answers == whole[::-1] and (facts["asked"], facts["recorded"]) == (3, 2)
    assert record(tmp_path / "cut").read_bytes() == record(tmp_path / "whole").read_bytes()


def test_batches_are_of_like_length_and_the_same_wherever_an_earlier_start_stopped(
    llama: str, tmp_path: Path, progress: Notes, watched: list[list[str]]
):
    ask(PROMPTS, llama, tmp_path, progress, "f", **SHORT)
    one, two, three = watched
    assert [*one, *two, *three] == sorted(PROMPTS, key=len) and len(one) == len(two) == 2
    first, *_ = record(tmp_path).read_bytes().splitlines(keepends=True)
    record(tmp_path).write_bytes(first)
    watched.clear()
    ask(PROMPTS[::-1], llama, tmp_path, progress, "f", **SHORT)
    assert watched == [one[1:], two, three]


@pytest.mark.parametrize("tail", [-1, -9, "}\n", '{"key": 5}\n', '{"key"'])
def test_a_damaged_last_line_is_dropped_and_its_prompt_asked_again(
    tail: int | str, llama: str, tmp_path: Path, progress: Notes
):
    answers, _ = ask(PROMPTS, llama, tmp_path, progress, "f", **SHORT)
    path = record(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:tail] if isinstance(tail, int) else whole + tail.encode())
    again, facts = ask(PROMPTS, llama, tmp_path, progress, "f", **SHORT)
    assert again == answers and facts["asked"] == (1 if isinstance(tail, int) else 0)
    ask([*PROMPTS, "One more"], llama, tmp_path, progress, "f", **SHORT)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6 and all(believe(line) for line in lines)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"reasoned": false', '"reasoned": true'), ('"tokens": ', '"tokens": 1'), ("}\n", "\n")],
)
def test_another_damaged_line_is_an_error_in_one_line(
    old: str, new: str, llama: str, tmp_path: Path, progress: Notes
):
    ask(PROMPTS, llama, tmp_path, progress, "f", **SHORT)
    path = record(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    damaged = lines[1].replace(old, new)
    assert damaged != lines[1]
    path.write_text("".join([lines[0], damaged, *lines[2:]]))
    with refused("line 2", "not as it was written", "asked again"):
        ask(PROMPTS, llama, tmp_path, progress, "f", **SHORT)


def test_other_processes_wait_for_the_first_one(
    llama: str, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    main = threading.current_thread()
    monkeypatch.setattr(asking, "first_process", lambda: threading.current_thread() is main)
    found: list[Any] = []
    other = threading.Thread(
        target=lambda: found.append(ask(PROMPTS, llama, tmp_path, Notes(), "f", **SHORT))
    )
    other.start()
    other.join(0.5)
    assert other.is_alive() and not (tmp_path / "asked").exists()
    ours, facts = ask(PROMPTS, llama, tmp_path, progress, "f", **SHORT)
    other.join(10)
    assert found == [(ours, facts)]


def answer(text: str) -> Answer:
    return Answer(text, 1, reasoned=False, cut=False)


def test_two_commands_that_ask_the_same_keep_both_their_answers(tmp_path: Path):
    asked = {digest(prompt): prompt for prompt in "abc"}
    a, b, c = asked
    one, two = Record(tmp_path / "r.jsonl", asked), Record(tmp_path / "r.jsonl", asked)
    one.read(), two.read()
    one.add([answer("one a"), answer("one b")], [a, b])
    two.add([answer("two b"), answer("two c")], [b, c])
    one.add([answer("one c")], [c])
    for told in (one, two, Record(tmp_path / "r.jsonl", asked)):
        told.read()
        texts = {asked[key]: known.text for key, known in told.known.items()}
        assert texts == {"a": "one a", "b": "one b", "c": "two c"}
    assert len(one.path.read_bytes().splitlines()) == 3


WRITER = """
import sys
from pathlib import Path
from reprokit.asking import Answer, Record
path, name = Path(sys.argv[1]), sys.argv[2]
keys = [f"{name}{at}" for at in range(200)]
record = Record(path, dict.fromkeys(keys, "x" * 5000))
for key in keys:
    record.add([Answer(key, 1, False, False)], [key])
"""


def test_processes_that_write_at_the_same_time_damage_nothing(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], cwd=ROOT) for name in "ab"
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    found = Record(path, {f"{name}{at}": "" for name in "ab" for at in range(200)})
    found.read()
    assert found.everything() and found.end == path.stat().st_size


def test_a_record_that_is_removed_while_in_use_is_an_error_in_one_line(tmp_path: Path):
    asked = {digest(prompt): prompt for prompt in "ab"}
    one = Record(tmp_path / "r.jsonl", asked)
    one.add([answer("a")], [digest("a")])
    one.path.unlink()
    with refused("r.jsonl was shortened while it was in use"):
        one.add([answer("b")], [digest("b")])


# --- an endpoint --------------------------------------------------------------------------------
def test_an_endpoint_is_asked_once_for_each_prompt_and_replays_its_calls(
    server: Server, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asking, "CHUNK", 2)
    more: Any = {"max_new_tokens": 9}
    answers, facts = ask([*PROMPTS, PROMPTS[0]], "endpoint:org/r1", tmp_path, progress, **more)
    assert said(answers[:5]) == [f"re: {prompt}" for prompt in PROMPTS]
    assert answers[5] == answers[0] == Answer(f"re: {PROMPTS[0]}", 2, reasoned=False, cut=False)
    assert (facts["asked"], facts["tokens"], facts["cut"], facts["note"]) == (5, 10, 0, "")
    assert {body["model"] for body in server.asked} == {"org/r1"}
    assert {body["max_tokens"] for body in server.asked} == {9}
    again, told = ask(PROMPTS, "endpoint:org/r1", tmp_path, progress, **more)
    assert again == answers[:5] and told["asked"] == 0 and len(server.asked) == 5
    record(tmp_path).unlink()  # the record of calls replays them
    monkeypatch.delenv("REPROKIT_API_KEY")
    again, told = ask(PROMPTS, "endpoint:org/r1", tmp_path, progress, **more)
    assert again == answers[:5] and told["tokens"] == 10 and len(server.asked) == 5
    assert (tmp_path / "calls" / "org_r1.jsonl").is_file()


def test_a_reasoning_of_an_endpoint_is_removed_and_half_a_character_replaced(
    server: Server, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    def thoughtful(model: str, said: str) -> dict[str, Any]:
        answer = completion(model, said)
        known = "Storm" in said
        text = "<think>well</think>\nKeywords: rain\ud83c" if known else "<think>well, let me"
        answer["choices"][0]["message"]["content"] = text
        answer["choices"][0]["finish_reason"] = "stop" if known else "length"
        return answer

    monkeypatch.setattr("test_endpoint.completion", thoughtful)
    answers, facts = ask(PROMPTS[1:3], "endpoint:r1", tmp_path, progress)
    assert said(answers) == ["", "Keywords: rain?"]
    assert (facts["reasoned"], facts["empty"], facts["cut"]) == (2, 1, 1)
    assert "1 of 2 answers hold a reasoning and nothing else" in facts["note"]
    assert "1 of 2 answers were cut at 128 tokens" in facts["note"]
    assert ask(PROMPTS[1:3], "endpoint:r1", tmp_path, progress)[0] == answers


def test_without_a_key_what_is_missing_is_said_and_the_record_serves(
    server: Server, tmp_path: Path, progress: Notes, monkeypatch: pytest.MonkeyPatch
):
    answers, _ = ask(PROMPTS[:2], "endpoint:r1", tmp_path, progress)
    monkeypatch.delenv("REPROKIT_API_KEY")
    assert ask(PROMPTS[:2], "endpoint:r1", tmp_path, progress)[0] == answers
    for first in (True, False):
        monkeypatch.setattr(asking, "first_process", lambda first=first: first)
        with pytest.raises(Unavailable) as caught:
            ask(PROMPTS, "endpoint:r1", tmp_path, progress)
        assert "REPROKIT_API_KEY" in str(caught.value) and "\n" not in str(caught.value)
    record(tmp_path).unlink()  # a process that does not write replays all the same
    assert ask(PROMPTS[:2], "endpoint:r1", tmp_path, progress)[0] == answers
    assert not list((tmp_path / "asked").iterdir())
    with pytest.raises(RequestError, match="model must be a name"):
        ask(PROMPTS, "endpoint:", tmp_path, progress)
