"""A stand-in for the Hub on this machine: it takes uploads, and tells what was uploaded."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import yaml


@dataclass
class Hub:
    """What a stand-in holds.

    Attributes:
        endpoint: Its address.
        repos: Files of each repository, by path.
        commits: Of each upload, its message and the files in it.
        tokens: What requests were signed with.
    """

    endpoint: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        """Answer what huggingface_hub asks on its way to a commit."""
        parts = path.partition("?")[0].strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repos.setdefault(name, {})
            return {"url": f"{self.endpoint}/{name}", "id": name, "name": name}
        if parts[:2] == ["api", "validate-yaml"]:
            text = json.loads(body)["content"].split("---\n")[1]
            assert isinstance(yaml.safe_load(text), dict)
            return {"errors": [], "warnings": []}
        name, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            files = json.loads(body)["files"]
            return {
                "files": [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in files
                ]
            }
        assert action == "commit", path
        return self._commit(name, [json.loads(line) for line in body.splitlines() if line])

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        header = next(line["value"] for line in lines if line["key"] == "header")
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        self.repos[name] |= files
        self.commits.append((header["summary"], files))
        number = str(len(self.commits))
        return {"commitUrl": f"{self.endpoint}/{name}/commit/{number}", "commitOid": number}


@contextmanager
def stand_in() -> Iterator[Hub]:
    """Serve a stand-in while the context lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hub.tokens.add(self.headers.get("Authorization"))
            self._answer(200, hub.post(self.path, body))

        def do_GET(self) -> None:
            self._answer(404, {"error": "not found"})

        do_HEAD = do_GET

        def _answer(self, code: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
