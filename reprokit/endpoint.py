"""Ask a chat model behind an OpenAI-compatible endpoint, and keep every reply.

The record is a text file that only grows, one JSON object per line. Whoever has it gets the same
replies again without a key, a network or the `openai` package:

- `key`: SHA-256 of the request. The address is not part of it: a record moves between hosts.
- `request`: model, messages, max_tokens, temperature, seed.
- `reply`, `answered_by` (the model that the server names), `finish`, `usage`, `time` (UTC).
- `digest`: SHA-256 of all of the above. A line that was cut off by a kill or edited by hand is not
  believed: it is counted, and its request is asked again.
"""

from __future__ import annotations

import errno
import json
import math
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from reprokit.runs import RequestError, Unavailable, atomic, digest

Conversation = Sequence[Mapping[str, str]]
"""Messages, each with a `role` and a `content`."""

TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
SYNC_SECONDS = 1.0
"""Between two flushes of the record to the disk; a kill loses nothing, a power cut this much."""
GRACE_SECONDS = 5.0
"""How long replies still under way are waited for once a fault has stopped the asking."""

HINTS = {
    400: "the request was refused",
    401: "{key} was refused, set it to a key that is valid at {host}",
    403: "{key} may not do this, use one that has access to {model}",
    404: "no such model or address, check the model's name and REPROKIT_API_BASE",
    429: "the rate limit or the quota is used up",
}
"""By status: what the user should look at. Only rate limits and faults of the server or the
connection are tried again."""


@dataclass(frozen=True)
class Reply:
    text: str
    model: str
    """The model that the server says answered."""
    cached: bool
    """From the record; nothing was sent."""


class Endpoint:
    """One model with its settings, and the record of what it answered.

    A plain class on purpose: no generated method can print, copy or save the key.
    """

    def __init__(
        self,
        model: str,
        record: Path,
        base_url: str = "",
        key: str = "",
        max_tokens: int = 4,
        temperature: float = 0.0,
        workers: int = 8,
        timeout: float = 60.0,
        retries: int = 6,
        seed: int | None = None,
        key_name: str = "the key",
    ) -> None:
        """`base_url`: such as http://127.0.0.1:8000/v1; empty for the default of `openai`.
        `key_name`: what messages call the key, such as the variable that it comes from."""
        self.model, self.record = model, Path(record)
        self.base_url, self._key, self.key_name = base_url.strip(), key.strip(), key_name
        self.max_tokens, self.temperature, self.seed = max_tokens, float(temperature), seed
        self.workers, self.timeout, self.retries = workers, timeout, retries
        self.damaged = 0
        """Lines of the record that are not as they were written, at the last `ask`."""
        self._used: dict[str, Mapping[str, Any]] = {}
        self._host = ""
        self._check()

    @classmethod
    def from_environment(cls, model: str, record: Path, **more: Any) -> Endpoint:
        """Key and address from REPROKIT_API_KEY and REPROKIT_API_BASE, else from OPENAI_API_KEY
        and OPENAI_BASE_URL."""
        name = "REPROKIT_API_KEY" if os.environ.get("REPROKIT_API_KEY") else "OPENAI_API_KEY"
        key = os.environ.get(name, "")
        base = os.environ.get("REPROKIT_API_BASE") or os.environ.get("OPENAI_BASE_URL") or ""
        return cls(model, record, **{"key": key, "base_url": base, "key_name": name, **more})

    def _check(self) -> None:
        wrong = [
            f"{name} must be {wanted}, got {value!r}"
            for name, value, wanted, right in (
                ("model", self.model, "a name", bool(self.model)),
                ("max_tokens", self.max_tokens, "at least 1", self.max_tokens >= 1),
                ("temperature", self.temperature, "0 or more", 0 <= self.temperature < math.inf),
                ("workers", self.workers, "at least 1", self.workers >= 1),
                ("timeout", self.timeout, "above 0", 0 < self.timeout < math.inf),
                ("retries", self.retries, "0 or more", self.retries >= 0),
            )
            if not right
        ]
        # The values of these two are not shown: a key may stand in either by mistake.
        if not all("!" <= letter <= "~" for letter in self._key):
            wrong.append(f"{self.key_name} has a space or a character outside ASCII, copy it again")
        if self.base_url and not is_address(self.base_url):
            wrong.append("the base URL must look like https://host/v1, check REPROKIT_API_BASE")
        if wrong:
            raise RequestError(f"endpoint: {wrong[0]}")

    @property
    def has_key(self) -> bool:
        """Whether a reply that is not in the record could be asked for."""
        return bool(self._key)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of all replies so far, each request once: a replay counts as the first time."""
        counted = {name: [used.get(name) for used in self._used.values()] for name in TOKENS}
        return {name: sum(n for n in ns if isinstance(n, int)) for name, ns in counted.items()}

    # --- asking ---------------------------------------------------------------------------------
    def ask(
        self,
        conversations: Sequence[Conversation],
        advance: Callable[[int, int], None] | None = None,
    ) -> list[Reply]:
        """The replies, in order. Equal conversations are asked once, recorded ones not again.

        Args:
            advance: called with (requests answered, requests in all), equal ones counted once.

        Raises:
            Unavailable: replies are missing and there is no key; nothing was sent.
            RequestError: the endpoint refuses or fails; what it answered before is recorded.
        """
        keyed = [(digest(request), request) for request in map(self._request, conversations)]
        requests = dict(keyed)
        recorded, self.damaged = read_record(self.record)
        answers = {key: recorded[key] for key in requests if key in recorded}
        self._used.update((key, answer["usage"]) for key, answer in answers.items())
        missing = {key: request for key, request in requests.items() if key not in answers}
        if advance:
            advance(len(answers), len(requests))
        if missing:
            answers |= self._ask_missing(missing, len(requests), advance)
        return [
            Reply(answers[key]["reply"], answers[key]["answered_by"], key not in missing)
            for key, _ in keyed
        ]

    def _request(self, conversation: Conversation) -> dict[str, Any]:
        messages = [dict(message) for message in conversation]
        for message in messages:
            if not all(is_text(message.get(name)) for name in ("role", "content")):
                raise RequestError(
                    f"a message to {self.model} needs a role and a content, both text, "
                    f"got one with {', '.join(map(str, message)) or 'nothing'}"
                )
        return {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def _ask_missing(
        self,
        missing: Mapping[str, dict[str, Any]],
        total: int,
        advance: Callable[[int, int], None] | None,
    ) -> dict[str, dict[str, Any]]:
        """Ask, and record each reply when it arrives. Only this thread writes."""
        if not self._key:
            raise Unavailable(
                f"{self.model}: {len(missing):,} of {total:,} replies are not in {self.record}"
                f"{f' (damaged lines ignored: {self.damaged:,})' if self.damaged else ''}; set "
                "REPROKIT_API_KEY to ask for them (REPROKIT_API_BASE for another endpoint)"
            )
        answers: dict[str, dict[str, Any]] = {}
        # The record is opened before anything is sent: a reply that cannot be kept costs nothing.
        with (
            self._client() as client,
            closing(Writer(self.record)) as writer,
            closing(self._arrivals(client, missing)) as arrivals,
        ):
            try:
                for answer in arrivals:
                    writer.append(answer)
                    answers[answer["key"]] = answer
                    self._used[answer["key"]] = answer["usage"]
                    if advance:
                        advance(total - len(missing) + len(answers), total)
            except RequestError as fault:
                have = total - len(missing) + len(answers)
                raise RequestError(
                    f"{fault}; {have:,} of {total:,} replies are kept in {self.record}"
                ) from None
        return answers

    def _client(self) -> Any:
        try:
            import openai
        except ImportError:
            raise RequestError(
                f"asking {self.model} needs the openai package: pip install 'reprokit[api]'"
            ) from None
        client = openai.OpenAI(
            api_key=self._key,
            base_url=self.base_url or None,
            timeout=self.timeout,
            max_retries=self.retries,
        )
        self._host = client.base_url.host
        if not self._host:  # the package reads this variable by itself
            raise RequestError("OPENAI_BASE_URL must look like https://host/v1, or be unset")
        refusal = refused(self._host)
        if refusal:
            raise RequestError(f"{self.model}: {refusal}; replies in {self.record} need none")
        return client

    def _arrivals(
        self, client: Any, requests: Mapping[str, dict[str, Any]]
    ) -> Generator[dict[str, Any]]:
        """Answers as they arrive. The first fault stops the asking; it is raised once the answers
        under way are in, or have taken too long.

        The threads are daemons: a stopped command ends at once and not when the last of them has
        waited for its retries, as those of a ThreadPoolExecutor do.
        """
        waiting: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        arrived: queue.SimpleQueue[dict[str, Any] | BaseException] = queue.SimpleQueue()
        stop = threading.Event()
        for entry in requests.items():
            waiting.put(entry)

        def work() -> None:
            while not stop.is_set():
                try:
                    key, request = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    arrived.put(self._send(client, key, request))
                except BaseException as fault:  # raised again in the thread that asked
                    stop.set()
                    arrived.put(fault)

        threads = [
            threading.Thread(target=work, daemon=True)
            for _ in range(min(self.workers, len(requests)))
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in requests:
                answer = arrived.get()
                if isinstance(answer, BaseException):
                    yield from settle(threads, arrived)
                    raise answer
                yield answer
        finally:
            stop.set()

    def _send(self, client: Any, key: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """One request; rate limits, server and connection faults are retried by the client."""
        import openai

        given = {name: value for name, value in request.items() if value is not None}
        try:
            completion = client.chat.completions.create(**given)
            said = contents(completion)
        except openai.OpenAIError as error:
            raise RequestError(f"{self.model} at {self._host}: {self._explain(error)}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, NotACompletion):
            raise RequestError(
                f"{self.model} at {self._host}: what came back is no chat completion, "
                "check REPROKIT_API_BASE (it often ends in /v1)"
            ) from None
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {"key": key, "request": request, **said, "time": now}

    def _explain(self, error: Exception) -> str:
        """What went wrong, in a part of one line, without the key."""
        import openai

        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self.timeout:g} s, after {self.retries} retries"
        if isinstance(error, openai.APIConnectionError):
            cause = self._public(str(error.__cause__ or error))
            return f"no connection after {self.retries} retries ({cause})"
        if not isinstance(error, openai.APIStatusError):
            return self._public(str(error))
        status = error.status_code
        hint = HINTS.get(status, "the server failed" if status >= 500 else "refused")
        parts = [hint.format(key=self.key_name, host=self._host, model=self.model)]
        wait = error.response.headers.get("retry-after")
        if wait:
            parts.append(self._public(f"Retry-After: {wait}"))
        if status != 401:  # servers quote parts of the key in this one
            body = error.body
            told = body.get("message") if isinstance(body, dict) else None
            parts.append(f"it says: {self._public(str(told or error.message))}")
        return f"{', '.join(parts)} ({status})"

    def _public(self, text: str) -> str:
        """Another program's text, fit for one line: short, printable, without the key."""
        text = text.replace(self._key, "***")
        text = "".join(letter if letter.isprintable() else " " for letter in text)
        text = " ".join(text.split())
        return text if len(text) <= 200 else f"{text[:200]}..."


class NotACompletion(Exception):
    """A server answered with something else, such as a web page."""


def contents(completion: Any) -> dict[str, Any]:
    """What is kept of a completion. The client checks nothing: any field may be missing."""
    try:
        choice, usage = completion.choices[0], completion.usage
        said = {
            "reply": choice.message.content or "",
            "answered_by": completion.model or "",
            "finish": choice.finish_reason or "",
            "usage": usage.model_dump(mode="json", exclude_none=True) if usage else {},
        }
    except (AttributeError, TypeError, LookupError):
        raise NotACompletion from None
    if not all(isinstance(said[name], str) for name in ("reply", "answered_by", "finish")):
        raise NotACompletion
    return said


def settle(
    threads: Sequence[threading.Thread], arrived: queue.SimpleQueue[Any]
) -> Generator[dict[str, Any]]:
    """The answers under way when a fault came; later faults say nothing new."""
    end = time.monotonic() + GRACE_SECONDS
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    while not arrived.empty():
        answer = arrived.get()
        if not isinstance(answer, BaseException):
            yield answer


def is_text(value: Any) -> bool:
    """A string that can be sent: UTF-8 has no half of a surrogate pair."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # reading the port raises where it is no number
        return False


def refused(host: str) -> str:
    """Why `--offline` forbids a host; empty where it may be tried.

    Asked before anything is sent: the client would take the refusal for a fault of the network and
    try again for minutes. Connecting a datagram socket sends nothing. The first address is
    reserved for documentation: where it is not refused, `--offline` is not set, and the host is
    not even looked up.
    """
    reason = ""
    for address in ("192.0.2.1", host):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, 9))
                return ""
            except OSError as error:
                reason = str(error)
        if not reason.startswith("--offline"):
            return ""
    return reason


# --- the record ---------------------------------------------------------------------------------
def read_record(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Answers by the key of their request, and how many lines are not as they were written.

    Where two processes asked the same, the first answer in the file stands for good.
    """
    answers: dict[str, dict[str, Any]] = {}
    damaged = 0
    try:
        with path.open("rb") as lines:
            for line in lines:
                answer = believe(line)
                if answer:
                    answers.setdefault(answer["key"], answer)
                elif line.strip():
                    damaged += 1
    except FileNotFoundError:
        pass
    return answers, damaged


def believe(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it is what was written."""
    try:
        answer = json.loads(line)
        claimed = answer.pop("digest")
        if claimed != digest(answer) or answer["key"] != digest(answer.pop("request")):
            return None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return dict(answer)


class Writer:
    """Appends to a record, each line in one write: other processes may append to it as well."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.file = path.open("a+b", buffering=0)
        self.synced = time.monotonic()

    def append(self, answer: Mapping[str, Any]) -> None:
        line = json.dumps({**answer, "digest": digest(answer)}).encode() + b"\n"
        if self.torn():
            line = b"\n" + line
        if self.file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        if time.monotonic() - self.synced > SYNC_SECONDS:
            os.fsync(self.file.fileno())
            self.synced = time.monotonic()

    def torn(self) -> bool:
        """Whether the file ends within a line: some process was killed while it wrote."""
        if not self.file.seek(0, os.SEEK_END):
            return False
        self.file.seek(-1, os.SEEK_END)
        return self.file.read(1) != b"\n"

    def close(self) -> None:
        os.fsync(self.file.fileno())
        self.file.close()


# --- answers ------------------------------------------------------------------------------------
def parse_answer(text: str) -> float | None:
    """1.0 for a reply whose first word is yes, 0.0 for no, whatever quotes, punctuation or
    Markdown stand before it; None otherwise, as for "yes/no" and "no-one"."""
    found = re.match(r"[\W_]*(yes|no)(?!\s*/|[-'\u2019]?[^\W_])", text, re.IGNORECASE)
    return float(found[1].lower() == "yes") if found else None


def write_finetune(
    path: Path, conversations: Sequence[Conversation], answers: Sequence[str]
) -> None:
    """The file that chat models are fine-tuned on: one conversation with its answer per line."""
    if len(conversations) != len(answers):
        raise RequestError(f"{path}: {len(conversations)} conversations, {len(answers)} answers")
    with atomic(path) as file:
        for conversation, answer in zip(conversations, answers, strict=True):
            messages = [*map(dict, conversation), {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
