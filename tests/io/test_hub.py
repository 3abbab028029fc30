"""``hf://`` inputs, against a small server that answers as the hub's API does."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest

from refinery.errors import ConfigError
from refinery.io.sources import InputSpec, RawDocument, plan_splits, read_split

hub_client = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
COMMIT = "c0ffee" * 6 + "c0ff"
REPO = "datasets/someone/laws"


class _Hub(BaseHTTPRequestHandler):
    """Repository facts, trees, paths, and files by range; `files` maps names to bytes."""

    files: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        named = {"Content-Type": kind, "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT}
        for name, value in (named | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200) -> None:
        headers = {} if status == 200 else {"X-Error-Code": "RepoNotFound"}
        self._send(status, json.dumps(value).encode(), "application/json", **headers)

    def _facts(self, name: str) -> dict[str, object]:
        oid = hashlib.sha1(self.files[name]).hexdigest()
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": oid}

    def _under(self, folder: str, *, recursive: bool) -> list[dict[str, object]]:
        inside = {n.removeprefix(f"{folder}/" if folder else ""): n for n in self.files if n.startswith(folder)}
        folders = {n.split("/")[0] for n in inside if "/" in n} if not recursive else set()
        start = f"{folder}/" if folder else ""
        found: list[dict[str, object]] = [{"type": "directory", "path": start + n, "oid": "0" * 40} for n in folders]
        return found + [self._facts(name) for short, name in inside.items() if recursive or "/" not in short]

    def do_GET(self) -> None:
        """Answer a question about the repository, or send a file or a range of it."""
        url = urlparse(self.path)
        path = unquote(url.path).lstrip("/")
        api = f"api/{REPO}"
        if path == api or path.startswith(f"{api}/revision/"):
            self._json({"id": "someone/laws", "sha": COMMIT, "siblings": [], "private": False})
        elif path.startswith(f"{api}/tree/"):
            folder = path.removeprefix(f"{api}/tree/").partition("/")[2]
            self._json(self._under(folder, recursive="recursive=True" in url.query))
        elif path.startswith(f"{REPO}/resolve/") and path.split("/", 5)[5] in self.files:
            body = self.files[path.split("/", 5)[5]]
            asked = self.headers.get("Range")
            if asked is None:
                self._send(200, body, "application/octet-stream", ETag="whole")
                return
            first, last = asked.removeprefix("bytes=").split("-")
            piece = body[int(first) : int(last) + 1 if last else None]
            self._send(206, piece, "application/octet-stream", Content_Range=f"bytes {first}-{last}/{len(body)}")
        else:
            self._json({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer which of the asked paths there are."""
        asked = unquote(self.rfile.read(int(self.headers["Content-Length"])).decode())
        paths = json.loads(asked)["paths"] if asked.startswith("{") else [p.partition("=")[2] for p in asked.split("&")]
        known = [self._facts(p) for p in paths if p in self.files]
        folders = [p for p in paths if p not in self.files and any(n.startswith(f"{p}/") for n in self.files)]
        self._json(known + [{"type": "directory", "path": p, "oid": "0" * 40} for p in folders])


def _lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def hub(monkeypatch):
    _Hub.files = {
        "README.md": b"# Laws",
        "data/a.jsonl": _lines("Article one.", "Article two."),
        "data/b.jsonl.gz": gzip.compress(_lines("第一条 为了规范民事关系。")),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    hub_client.HfFileSystem.clear_instance_cache()
    yield _Hub
    hub_client.HfFileSystem.clear_instance_cache()
    server.shutdown()


def _spec(path: str) -> InputSpec:
    return InputSpec(source="hub", domain="law", role="target", format="jsonl", paths=(path,))


def _texts(spec: InputSpec) -> list[str]:
    found = [record for split in plan_splits(spec, 1 << 20) for record in read_split(spec, split)]
    return [record.text for record in found if isinstance(record, RawDocument)]


@pytest.mark.parametrize("path", ["hf://datasets/someone/laws/data/*.jsonl*", "hf://datasets/someone/laws/data"])
def test_a_glob_or_a_folder_of_the_hub_is_read(hub, path):
    assert _texts(_spec(path)) == ["Article one.", "Article two.", "第一条 为了规范民事关系。"]


def test_a_file_that_changes_on_the_hub_is_another_input(hub):
    spec = _spec("hf://datasets/someone/laws/data/a.jsonl")
    [before] = plan_splits(spec, 1 << 20)[0].files
    hub.files = {**hub.files, "data/a.jsonl": _lines("Article 1st.", "Article 2nd.")}
    hub_client.HfFileSystem.clear_instance_cache()
    [after] = plan_splits(spec, 1 << 20)[0].files
    assert before.size_bytes == after.size_bytes
    assert before.version != after.version


def test_a_repository_that_is_not_there_is_named(hub):
    with pytest.raises(ConfigError, match="nobody/nothing"):
        plan_splits(_spec("hf://datasets/nobody/nothing/x.jsonl"), 1 << 20)
