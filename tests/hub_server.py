"""A hub on this machine, with the models that a test puts there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""Of every model that it has."""


@pytest.fixture
def served(hub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    """A hub with the models of this dictionary: content by file, by name."""
    known: dict[str, dict[str, bytes]] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].split("/")
            if path[1:3] == ["api", "models"]:
                repo = "/".join(path[3:5])
                files = known.get(repo, {})
                value: Any = {"id": repo, "sha": COMMIT}
                value["siblings"] = [{"rfilename": name} for name in files]
                if "tree" in path:
                    value = [
                        {"type": "file", "path": name, "size": len(body), "oid": oid(body)}
                        for name, body in files.items()
                    ]
                self.answer(json.dumps(value).encode() if files else None)
            else:  # /org/name/resolve/commit/file
                self.answer(known.get("/".join(path[1:3]), {}).get(path[-1]))

        def answer(self, body: bytes | None) -> None:
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{oid(body or b"")}"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    def oid(body: bytes) -> str:
        return hashlib.sha1(body).hexdigest()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True).start()
    at = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", at)
    template = f"{at}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield known
    server.shutdown()
    server.server_close()
