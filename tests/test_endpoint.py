"""The endpoint and its record, against a small chat server on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from reprokit import endpoint
from reprokit.endpoint import Endpoint, Reply, parse_answer, write_finetune
from reprokit.runs import RequestError, Unavailable, digest

KEY = "sk-secret-0123456789"


class Server:
    """Answers "re: <last message>"; `faults` are answered first, once per entry."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.faults: list[tuple[int, str]] = []
        """(status, message)."""
        self.refuses: dict[str, tuple[int, str]] = {}
        """By last message: refused every time."""
        self.retry_after = ""
        self.pauses: dict[str, float] = {}
        """By last message: seconds before the answer."""
        self.page = False
        """Answer with a web page."""
        self.busy = self.busiest = 0
        self.together: threading.Barrier | None = None
        """Requests wait until this many are here."""
        self.closing = threading.Event()
        self.times: list[float] = []
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                said = body["messages"][-1]["content"]
                with lock:
                    outer.asked.append(body)
                    outer.times.append(time.monotonic())
                    outer.keys.add(self.headers["Authorization"])
                    fault = outer.faults.pop(0) if outer.faults else outer.refuses.get(said)
                    outer.busy += 1
                    outer.busiest = max(outer.busiest, outer.busy)
                if outer.together:
                    outer.together.wait(10)
                outer.closing.wait(outer.pauses.get(said, 0.0))
                with lock:
                    outer.busy -= 1
                if fault:
                    self.answer(fault[0], {"error": {"message": fault[1]}})
                elif outer.page or self.path != "/v1/chat/completions":
                    self.answer(200, "<html>", "text/html")
                else:
                    self.answer(200, completion(body["model"], said))

            def answer(self, status: int, body: Any, kind: str = "application/json") -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                if status == 429 and outer.retry_after:
                    self.send_header("Retry-After", outer.retry_after)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a client that gave up
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


def completion(model: str, said: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": f"re: {said}"}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": f"{model}-2024-01-01",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.closing.set()
    one.http.shutdown()
    one.http.server_close()


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "replies" / "gpt.jsonl"


def talk(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": text}] for text in texts]


def texts(replies: list[Reply]) -> list[str]:
    return [reply.text for reply in replies]


def at(server: Server, record: Path, **more: Any) -> Endpoint:
    return Endpoint("gpt", record, **{"base_url": server.url, "key": KEY, **more})


# --- asking -------------------------------------------------------------------------------------
def test_replies_keep_the_order_when_the_first_question_takes_longest(server, record):
    questions = [str(number) for number in range(12)]
    server.pauses = {text: 0.02 * (12 - int(text)) for text in questions}
    server.together = threading.Barrier(2)  # no answer before two requests are here
    replies = at(server, record, workers=4, retries=0).ask(talk(*questions))
    assert replies == [Reply(f"re: {text}", "gpt-2024-01-01", False) for text in questions]
    assert 2 <= server.busiest <= 4


def test_equal_conversations_are_asked_once_and_every_request_carries_the_settings(server, record):
    asked = at(server, record, max_tokens=7, temperature=0.5, seed=3)
    assert texts(asked.ask(talk("a", "b", "a", "a"))) == ["re: a", "re: b", "re: a", "re: a"]
    assert sorted(body["messages"][0]["content"] for body in server.asked) == ["a", "b"]
    settings = {"model": "gpt", "max_tokens": 7, "temperature": 0.5, "seed": 3}
    assert all(settings.items() <= body.items() for body in server.asked)
    assert server.keys == {f"Bearer {KEY}"}


def test_a_seed_that_is_not_set_is_not_sent(server, record):
    at(server, record).ask(talk("a"))
    assert "seed" not in server.asked[0]


def test_a_replay_sends_nothing_and_says_and_counts_the_same(server, record):
    first = at(server, record)
    asked = first.ask(talk("a", "b"))
    again = Endpoint("gpt", record)  # no key, no address
    assert first.has_key and not again.has_key
    assert texts(again.ask(talk("b", "a"))) == ["re: b", "re: a"]
    assert again.ask(talk("a", "b")) == [Reply(r.text, r.model, True) for r in asked]
    assert len(server.asked) == 2
    tokens = {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}
    assert again.usage == first.usage == tokens


def test_other_settings_are_another_request_and_another_host_is_not(server, record):
    at(server, record).ask(talk("a"))
    elsewhere = at(server, record, base_url="https://elsewhere.invalid/v1")
    assert elsewhere.ask(talk("a"))[0].cached
    for more in ({"max_tokens": 5}, {"temperature": 1.0}, {"seed": 1}):
        assert not at(server, record, **more).ask(talk("a"))[0].cached
    assert not Endpoint("other", record, server.url, KEY).ask(talk("a"))[0].cached
    assert len(server.asked) == 5


def test_progress_starts_at_what_the_record_has(server, record):
    at(server, record).ask(talk("a"))
    seen: list[tuple[int, int]] = []
    at(server, record).ask(talk("a", "b", "c", "c"), lambda *step: seen.append(step))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_environment_gives_key_and_address_and_ours_come_first(server, record, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert Endpoint.from_environment("gpt", record).base_url == "http://127.0.0.1:9/v1"
    monkeypatch.setenv("REPROKIT_API_KEY", KEY)
    monkeypatch.setenv("REPROKIT_API_BASE", server.url)
    Endpoint.from_environment("gpt", record, max_tokens=9).ask(talk("a"))
    assert server.keys == {f"Bearer {KEY}"} and server.asked[0]["max_tokens"] == 9


# --- faults -------------------------------------------------------------------------------------
def test_a_rate_limit_is_waited_for_as_long_as_the_server_asks(server, record):
    server.faults, server.retry_after = [(429, "slow down")], "0.7"
    assert texts(at(server, record).ask(talk("a"))) == ["re: a"]
    first, second = server.times
    assert second - first >= 0.7  # by itself the client tries again after 0.5 s at most


def test_a_server_error_is_tried_again(server, record):
    server.faults = [(503, "overloaded")]
    assert texts(at(server, record).ask(talk("a"))) == ["re: a"]


@pytest.mark.parametrize(
    ("status", "told"),
    [(400, "context too long"), (401, "key that is valid"), (403, "region"), (404, "no model gpt")],
)
def test_a_refusal_stops_at_once_with_one_line_and_keeps_earlier_replies(
    server, record, status, told
):
    server.refuses = {"c": (status, f"{told}\nkey {KEY} of\x1b[1m you")}
    with pytest.raises(RequestError) as caught:
        at(server, record, workers=1).ask(talk("a", "b", "c", "d", "e"))
    line = str(caught.value)
    assert told in line and f"({status})" in line and "2 of 5 replies are kept" in line
    assert "\n" not in line and "\x1b" not in line and KEY not in line
    assert ("it says" in line) == (status != 401)  # there, servers quote parts of the key
    assert len(server.asked) == 3
    assert texts(Endpoint("gpt", record).ask(talk("a", "b"))) == ["re: a", "re: b"]


@pytest.mark.parametrize("variable", ["REPROKIT_API_KEY", "OPENAI_API_KEY"])
@pytest.mark.parametrize(
    ("status", "told"),
    [(401, "was refused, set it to a key that is valid at 127.0.0.1"), (403, "has access to gpt")],
)
def test_a_rejected_key_is_asked_with_once_and_named_by_its_variable(
    server, record, monkeypatch, variable, status, told
):
    for name in ("REPROKIT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("REPROKIT_API_BASE", server.url)
    server.refuses = {"a": (status, "go away")}
    with pytest.raises(RequestError) as caught:
        Endpoint.from_environment("gpt", record).ask(talk("a"))
    line = str(caught.value)
    assert variable in line and told in line and "\n" not in line
    assert len(server.asked) == 1


def test_replies_under_way_when_a_fault_comes_are_kept(server, record):
    server.refuses, server.pauses = {"a": (401, "")}, {"b": 0.3}
    server.together = threading.Barrier(2)
    with pytest.raises(RequestError, match="1 of 3 replies are kept"):
        at(server, record, workers=2).ask(talk("a", "b", "c"))
    assert texts(Endpoint("gpt", record).ask(talk("b"))) == ["re: b"]


def test_retries_end_and_the_line_says_so(server, record):
    server.refuses = {"a": (429, "quota"), "b": (500, "broken")}
    with pytest.raises(RequestError, match=r"rate limit or the quota .*quota \(429\)"):
        at(server, record, retries=0).ask(talk("a"))
    with pytest.raises(RequestError, match=r"the server failed, it says: broken \(500\)"):
        at(server, record, retries=0).ask(talk("b"))


def test_a_server_that_does_not_answer_is_one_line(server, record):
    server.pauses = {"a": 0.4}
    with pytest.raises(RequestError, match=r"no answer within 0\.1 s, after 0 retries"):
        at(server, record, retries=0, timeout=0.1).ask(talk("a"))
    with pytest.raises(RequestError, match=r"no connection after 0 retries .*refused"):
        at(server, record, retries=0, base_url="http://127.0.0.1:9/v1").ask(talk("a"))


def test_a_web_page_in_place_of_a_reply_is_one_line(server, record):
    server.page = True
    with pytest.raises(RequestError, match="no chat completion, check REPROKIT_API_BASE"):
        at(server, record).ask(talk("a"))
    assert record.read_bytes() == b""


def test_without_a_key_nothing_is_sent_and_the_line_says_what_is_missing(server, record):
    at(server, record).ask(talk("a"))
    with pytest.raises(Unavailable) as caught:
        at(server, record, key=" ").ask(talk("a", "b", "c", "b"))
    assert "2 of 3 replies" in str(caught.value) and "REPROKIT_API_KEY" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1


def test_without_the_openai_package_a_record_still_replays(server, record, monkeypatch):
    at(server, record).ask(talk("a"))
    monkeypatch.setitem(sys.modules, "openai", None)
    assert texts(at(server, record).ask(talk("a"))) == ["re: a"]
    with pytest.raises(RequestError, match=r"pip install 'reprokit\[api\]'"):
        at(server, record).ask(talk("b"))


def test_offline_is_one_line_at_once_and_allows_this_machine(server, record):
    program = f"""
import sys, time
from reprokit.cli import close_network
from reprokit.endpoint import Endpoint
from reprokit.runs import RequestError
close_network()
question = [[{{"role": "user", "content": "a"}}]]
print(Endpoint("gpt", sys.argv[1], {server.url!r}, "k").ask(question)[0].text)
start = time.monotonic()
try:
    Endpoint("other", sys.argv[1], "https://api.example.com/v1", "k").ask(question)
except RequestError as error:
    print(error, time.monotonic() - start < 5)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(record)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first == "re: a"
    assert "--offline: connection to api.example.com refused" in second and second.endswith("True")


def test_the_key_is_nowhere_but_in_the_header(server, record, caplog):
    caplog.set_level("DEBUG")
    server.refuses = {"b": (403, f"Bearer {KEY}")}
    one = at(server, record, retries=1)
    with pytest.raises(RequestError) as caught:
        one.ask(talk("a", "b"))
    texts_left = [str(caught.value), repr(caught.value), repr(one), caplog.text]
    texts_left += [path.read_text() for path in record.parent.iterdir()]
    assert server.keys == {f"Bearer {KEY}"}
    assert not any(KEY in text for text in texts_left)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"key": "sk-one two"}, "the key has a space"),
        ({"key": "sk-one\u2026"}, "outside ASCII"),
        ({"base_url": "user:word@localhost:8000/v1"}, "must look like https://host/v1"),
        ({"base_url": "http://localhost:port/v1"}, "must look like https://host/v1"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, got nan"),
    ],
)
def test_settings_that_cannot_be_are_one_line_without_secrets(server, record, more, told):
    with pytest.raises(RequestError) as caught:
        at(server, record, **more)
    assert told in str(caught.value)
    assert "sk-one" not in str(caught.value) and "word" not in str(caught.value)


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": "\ud83d"}])
def test_a_message_that_cannot_be_sent_is_refused_before_anything_is(server, record, message):
    with pytest.raises(RequestError, match="a role and a content, both text, got one with role"):
        at(server, record).ask([*talk("a"), [message]])
    assert not server.asked


# --- the record ---------------------------------------------------------------------------------
def test_a_line_of_the_record_says_what_was_asked_and_what_came_back(server, record):
    at(server, record).ask(talk("“a”"))
    (line,) = record.read_text().splitlines()
    entry = json.loads(line)
    request = {
        "model": "gpt",
        "messages": [{"role": "user", "content": "“a”"}],
        "max_tokens": 4,
        "temperature": 0.0,
        "seed": None,
    }
    assert entry["request"] == request and entry["key"] == digest(request)
    assert entry["reply"] == "re: “a”" and entry["answered_by"] == "gpt-2024-01-01"
    assert entry["finish"] == "stop" and entry["usage"]["total_tokens"] == 12
    assert entry["time"].endswith("+00:00")


def test_a_torn_last_line_is_counted_and_what_follows_stands_on_a_line_of_its_own(server, record):
    at(server, record, workers=1).ask(talk("a", "b"))
    record.write_bytes(record.read_bytes()[:-20])
    again = at(server, record)
    assert [reply.cached for reply in again.ask(talk("a", "b", "c"))] == [True, False, False]
    assert again.damaged == 1 and len(server.asked) == 4
    later = Endpoint("gpt", record)
    assert all(reply.cached for reply in later.ask(talk("a", "b", "c")))
    assert later.damaged == 1 and record.read_bytes().endswith(b"}\n")


def test_a_line_that_lacks_only_its_end_is_whole(server, record):
    at(server, record, workers=1).ask(talk("a", "b"))
    record.write_bytes(record.read_bytes()[:-1])
    again = at(server, record)
    assert [reply.cached for reply in again.ask(talk("a", "b", "c"))] == [True, True, False]
    assert again.damaged == 0 and len(record.read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    "edit", [("re: a", "re: A"), ('"content": "a"', '"content": "z"'), ("2024", "2025")]
)
def test_an_edited_line_is_ignored_counted_and_asked_again(server, record, edit):
    at(server, record, workers=1).ask(talk("a", "b"))
    edited = record.read_text()
    assert edit[0] in edited
    record.write_text(edited.replace(*edit, 1))
    without_key = Endpoint("gpt", record)
    with pytest.raises(Unavailable, match=r"1 of 2 replies .*\(damaged lines ignored: 1\)"):
        without_key.ask(talk("a", "b"))
    again = at(server, record)
    assert texts(again.ask(talk("a", "b"))) == ["re: a", "re: b"]
    assert without_key.damaged == again.damaged == 1 and len(server.asked) == 3


def test_a_killed_process_keeps_every_reply_that_arrived(server, record):
    server.pauses = {"stuck": 30.0}
    program = """
import sys
from reprokit.endpoint import Endpoint
questions = [[{"role": "user", "content": text}] for text in ("a", "b", "stuck")]
Endpoint("gpt", sys.argv[1], sys.argv[2], "k", workers=1).ask(
    questions, lambda done, total: print(done, flush=True))
"""
    command = [sys.executable, "-c", program, str(record), server.url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        process.kill()
    assert texts(Endpoint("gpt", record).ask(talk("a", "b"))) == ["re: a", "re: b"]


class Disk:
    """A file that notes what each write is given, and takes no more than `room` bytes of it."""

    def __init__(self, file: Any, room: int = 10**9) -> None:
        self.file, self.room = file, room
        self.written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.written.append(data)
        return self.file.write(data[: self.room])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def answer_to(number: int) -> dict[str, Any]:
    request = {"n": number}
    return {"key": digest(request), "request": request, "reply": "x" * 200, "usage": {}}


def test_writers_beside_each_other_do_not_break_a_line(record):
    def write(numbers: range) -> list[bytes]:
        with closing(endpoint.Writer(record)) as writer:
            writer.file = disk = Disk(writer.file)
            for number in numbers:
                writer.append(answer_to(number))
        return disk.written

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(write, (range(start, 200, 4) for start in range(4))))
    assert all(len(writes) == 50 for writes in written)  # one write per line: it cannot be split
    found, damaged = endpoint.read_record(record)
    assert damaged == 0 and found.keys() == {digest({"n": number}) for number in range(200)}


def test_a_full_disk_is_an_error_and_the_next_line_stands_on_its_own(record):
    with closing(endpoint.Writer(record)) as writer:
        writer.append(answer_to(1))
        writer.file = disk = Disk(writer.file, room=30)
        with pytest.raises(OSError, match="No space left") as caught:
            writer.append(answer_to(2))
        assert caught.value.filename == str(record)
        disk.room = 10**9
        writer.append(answer_to(3))
    found, damaged = endpoint.read_record(record)
    assert damaged == 1 and list(found) == [digest({"n": 1}), digest({"n": 3})]


def test_a_line_under_the_key_of_another_request_is_not_believed(record):
    with closing(endpoint.Writer(record)) as writer:
        writer.append({"key": digest({"n": 1}), "request": {"n": 2}, "reply": "x"})
    assert endpoint.read_record(record) == ({}, 1)


def test_of_two_replies_to_one_request_the_first_stands(record):
    both = [
        {"key": digest({}), "request": {}, "reply": text, "answered_by": "m", "usage": {}}
        for text in ("first", "second")
    ]
    with closing(endpoint.Writer(record)) as writer:
        for answer in both:
            writer.append(answer)
    assert [a["reply"] for a in endpoint.read_record(record)[0].values()] == ["first"]


# --- answers and fine-tuning files --------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, 1.0) for text in ("Yes", "yes.", "YES", "**Yes**", ' "Yes"', "_Yes_", "> yes")),
        *((text, 1.0) for text in ("Yes, the user", "Yes.\n\nThe", "Yes\u2014as", "“Yes”")),
        *((text, 0.0) for text in ("No", "no.", "`No`", "- No", "**No**, because", "\nNO\n")),
        *((text, None) for text in ("", "Maybe", "Not", "nope", "Yesterday", "None", "no-one")),
        *((text, None) for text in ("Yes/No", "Yes / No", "The answer is yes", "1. Yes", "No1")),
    ],
)
def test_an_answer_is_its_first_word(text, value):
    assert parse_answer(text) == value


def test_a_finetuning_file_has_one_conversation_with_its_answer_per_line(tmp_path):
    path = tmp_path / "train.jsonl"
    system = {"role": "system", "content": "é\u2028"}
    write_finetune(path, [[system, *talk("a")[0]], *talk("b")], ["Yes", "No"])
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    answer = {"role": "assistant", "content": "Yes"}
    assert first == {"messages": [system, {"role": "user", "content": "a"}, answer]}
    assert second["messages"][-1]["content"] == "No"
    with pytest.raises(RequestError, match="2 conversations, 1 answers"):
        write_finetune(path, talk("a", "b"), ["Yes"])
    assert len(path.read_text().splitlines()) == 2


def test_the_module_loads_neither_openai_nor_torch():
    program = "import sys, reprokit.endpoint; print({'openai', 'torch'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
