"""A model hub on loopback that speaks the shapes Hugging Face and ModelScope document, and can misbehave.

`test_pulling.py` has huggingface_hub's own client read it, so that its shapes are not our invention.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"

WANTED = {
    "config.json",
    "tokenizer.json",
    "LICENSE",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}
"""What belongs to the model in `model_files` (conftest); the rest of its repository is not to be fetched."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Hub:
    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.cut_after: dict[str, list[int]] = {}
        """Per file: how many bytes to send before the connection is cut, one entry per request."""
        self.stall_after: dict[str, int] = {}
        """Per file: send so many bytes, then nothing more until `release`."""
        self.stalled, self.release = threading.Event(), threading.Event()
        self.claimed_size: dict[str, int] = {}
        self.token: str | None = None
        self.ignores_range = False
        self.requests: list[tuple[str, str | None]] = []
        """``(file, Range header)`` of each file request, in order."""
        self.url = ""

    def requested(self) -> Counter[str]:
        return Counter(file for file, _ in self.requests)

    @contextmanager
    def serve(self) -> Iterator[Hub]:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            self.release.set()
            server.shutdown()
            server.server_close()

    def size(self, path: str) -> int:
        return self.claimed_size.get(path, len(self.files[path]))

    def hugging_face_info(self) -> dict:
        """``GET /api/models/ORG/NAME/revision/REV?blobs=true``"""
        siblings = []
        for path, content in self.files.items():
            entry = {"rfilename": path, "size": self.size(path), "blobId": git_blob(content)}
            if path.endswith((".safetensors", ".gguf")):
                entry["lfs"] = {"sha256": sha256(content), "size": self.size(path), "pointerSize": 134}
            siblings.append(entry)
        return {"id": self.repo, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "apache-2.0"}, "tags": []}

    def modelscope_files(self) -> dict:
        """``GET /api/v1/models/ORG/NAME/repo/files?Revision=REV&Recursive=true``"""
        files = [{"Name": "onnx", "Path": "onnx", "Type": "tree", "Size": 0, "Sha256": ""}]
        for path, content in self.files.items():
            name = path.rsplit("/", 1)[-1]
            files.append(
                {"Name": name, "Path": path, "Type": "blob", "Size": self.size(path), "Sha256": sha256(content)}
            )
        return {"Code": 200, "Data": {"Files": files}, "Success": True}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        hub, url = self.hub, urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.json({"error": "gated"}, status=401)
        if path in (f"/api/models/{hub.repo}/revision/main", f"/api/models/{hub.repo}/revision/{COMMIT}"):
            return self.json(hub.hugging_face_info())
        if path == f"/api/v1/models/{hub.repo}/repo/files" and query.get("Recursive") == ["true"]:
            return self.json(hub.modelscope_files())
        if path == f"/api/v1/models/{hub.repo}":
            return self.json({"Code": 200, "Data": {"Name": hub.repo, "License": "Apache License 2.0"}})
        for revision in (COMMIT, "main", "master"):
            prefix = f"/{hub.repo}/resolve/{revision}/"
            file = path.removeprefix("/models").removeprefix(prefix)
            if path.removeprefix("/models").startswith(prefix) and file in hub.files:
                return self.file(file, body=body)
        self.json({"error": "not found"}, status=404)

    def json(self, content: dict, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def file(self, name: str, *, body: bool) -> None:
        hub, content = self.hub, self.hub.files[name]
        asked = None if hub.ignores_range else self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.send_header("ETag", f'"{sha256(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not body:
            return
        hub.requests.append((name, self.headers.get("Range")))
        rest = content[first:]
        if cuts := hub.cut_after.get(name):
            self.wfile.write(rest[: cuts.pop(0)])
            self.close_connection = True
            return
        if name in hub.stall_after and not hub.release.is_set():
            self.wfile.write(rest[: hub.stall_after[name]])
            self.wfile.flush()
            hub.stalled.set()
            hub.release.wait()
            rest = rest[hub.stall_after[name] :]
        try:
            self.wfile.write(rest)
        except OSError:  # The puller was killed.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass
