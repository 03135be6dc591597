"""The closed-source rows of CCF-LLM's Table 2: what is asked, replayed, left to the provider."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click_runs import execute, few

from reprokit.runs import Unavailable

__all__ = ["few"]  # the fixture


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """An OpenAI-compatible server on 127.0.0.1: Yes to prompts of even length, No to others."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append(asked)
            text = asked["messages"][-1]["content"]
            answer = "Yes." if len(text) % 2 == 0 else "No"
            reply = {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": "stand-in-1",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": answer},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("REPROKIT_API_BASE", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("REPROKIT_API_KEY", "secret")
    yield seen
    server.shutdown()
    server.server_close()


def test_closed_models_are_asked_once_per_row_and_replayed(
    tmp_path: Path, few: Any, chat_server: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("openai")
    result = execute("chat", "demo-ml-1m", tmp_path, tmp_path)
    asked = [one["messages"][-1]["content"] for one in chat_server]
    assert 0 < len(asked) <= 120 and len(set(asked)) == len(asked)
    assert all(text.startswith("#Question: A user has given high ratings") for text in asked)
    assert set(result.predictions["test/scores"]) == {0.0, 1.0}
    assert "valid/scores" not in result.predictions
    assert result.deviations == ("stand-in-1 in place of gpt-3.5-turbo-0613",)
    monkeypatch.delenv("REPROKIT_API_KEY")
    again = execute("chat", "demo-ml-1m", tmp_path, tmp_path)
    assert len(chat_server) == len(asked) and again.metrics == result.metrics


def test_without_a_key_nothing_is_sent_and_the_row_says_so(
    tmp_path: Path, few: Any, chat_server: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    for name in ("REPROKIT_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Unavailable, match="REPROKIT_API_KEY"):
        execute("chat", "demo-ml-1m", tmp_path, tmp_path)
    assert chat_server == []


@pytest.mark.parametrize("key", ["secret", "", "not a key"])
def test_tuning_a_closed_model_writes_the_providers_file_and_asks_for_its_name(
    key: str,
    tmp_path: Path,
    few: Any,
    chat_server: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("REPROKIT_API_KEY", key)
    with pytest.raises(Unavailable, match="tuned_model"):
        execute("chat", "demo-ml-1m", tmp_path, tmp_path, tuned=True, with_cf=True)
    (path,) = (tmp_path / "calls").glob("finetune-*.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(few.train) and chat_server == []
    answers = [line["messages"][-1]["content"] for line in lines]
    assert answers == ["Yes" if label else "No" for label in few.train.labels]
