"""A hub on this machine, as far as `huggingface_hub` needs one: repositories with commits, gates and new names, behind
HF_ENDPOINT, which counts the bytes of every file that it hands out."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

Files = dict[str, bytes]


@dataclass
class Hub:
    """By kind and name ("datasets/owner/name"), the files of every commit; branches are names of commits."""

    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    gated: dict[str, int] = field(default_factory=dict)
    """The status that a repository's files are refused with: 401 or 403."""
    renamed: dict[str, str] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files that were sent, by SHA-256."""
    refuses_uploads: bool = False
    is_down: bool = False
    sent: Counter[str] = field(default_factory=Counter)
    """Bytes of files, by repository and file."""
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def put(self, name: str, files: Files, branch: str = "main") -> str:
        """A new commit of a repository ("datasets/owner/name", or "models/owner/name")."""
        content = repr(sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items()))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits.setdefault(name, {})[commit] = files
        self.branches.setdefault(name, {})[branch] = commit
        return commit

    def put_folder(self, name: str, folder: Path) -> str:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return self.put(name, {file.relative_to(folder).as_posix(): file.read_bytes() for file in files})

    def bytes_of(self, name: str) -> int:
        return sum(count for file, count in self.sent.items() if file.startswith(f"{name}/"))

    def find(self, name: str, revision: str) -> tuple[str, Files] | None:
        commit = self.branches[name].get(revision, revision)
        files = self.commits[name].get(commit)
        return None if files is None else (commit, files)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def send(self, code: int, body: bytes = b"", **headers: Any) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, values: Any) -> None:
        self.send(200, json.dumps(values).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        body = self.read_body()
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.is_down:
            return self.send(503)
        if path == "/api/whoami-v2":
            return self.say({"name": "me"}) if "Authorization" in self.headers else self.send(401)
        if path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if match := re.fullmatch(r"/upload/(\w{64})", path):
            return self.take_object(match[1], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.offer_uploads(json.loads(body)["objects"])
        if match := re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+)(/.*)?", path):
            return self.api(f"{match[1]}/{match[2]}", match[3] or "", body)
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "datasets" if match[1] else "models"
            return self.file(f"{kind}/{match[2]}", match[3], match[4])
        return self.send(404)

    def moved(self, name: str) -> bool:
        """Whether the answer was that it has another name, or that there is none of it."""
        if name in self.hub.renamed:
            new = self.hub.renamed[name]
            old, new = (n.removeprefix("models/") if "/resolve/" in self.path else n for n in (name, new))
            self.send(307, Location=self.path.replace(old, new, 1))
            return True
        if name not in self.hub.commits:
            self.send(404 if "Authorization" in self.headers else 401, X_Error_Code="RepoNotFound")
            return True
        return False

    def create(self, asked: Mapping[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if f"models/{name}" in self.hub.commits:
            return self.send(409, json.dumps({"url": f"{self.hub.address}/{name}"}).encode())
        self.hub.put(f"models/{name}", {".gitattributes": b""})
        if asked.get("visibility") == "private":
            self.hub.private.add(f"models/{name}")
        return self.say({"url": f"{self.hub.address}/{name}"})

    def take_object(self, oid: str, body: bytes) -> None:
        if self.hub.refuses_uploads or hashlib.sha256(body).hexdigest() != oid:
            return self.send(403)
        self.hub.objects[oid] = body
        return self.send(200)

    def offer_uploads(self, objects: list[dict[str, Any]]) -> None:
        offers = [
            {**one, "actions": {"upload": {"href": f"{self.hub.address}/upload/{one['oid']}"}}} for one in objects
        ]
        self.say({"transfer": "basic", "objects": offers})

    def commit(self, name: str, lines: list[bytes]) -> None:
        """Files by their content, large ones by the name of what was sent before."""
        _, files = self.hub.find(name, "main") or ("", {})
        files = dict(files)
        for line in lines:
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        commit = self.hub.put(name, files)
        page = f"{self.hub.address}/{name.partition('/')[2]}/commit/{commit}"
        self.say({"commitUrl": page, "commitOid": commit})

    def api(self, name: str, rest: str, body: bytes) -> None:
        if self.moved(name):
            return None
        if rest == "/preupload/main":
            asked = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            told = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in asked
            ]
            return self.say({"files": told})
        if rest == "/commit/main":
            return self.commit(name, body.splitlines())
        if rest == "/auth-check":
            return self.send(self.hub.gated[name], X_Error_Code="GatedRepo") if name in self.hub.gated else self.say({})
        match = re.fullmatch(r"(?:/(revision|tree|paths-info)/([^/]+)(?:/.*)?)?", rest)
        found = self.hub.find(name, (match and match[2]) or "main")
        if match is None or found is None:
            return self.send(404, X_Error_Code="RevisionNotFound")
        commit, files = found
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]
        if match[1] == "tree":
            return self.say(entries)
        if match[1] == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
            return self.say([entry for entry in entries if entry["path"] in wanted])
        siblings = [{"rfilename": path} for path in files]
        is_private = name in self.hub.private
        return self.say({"id": name.partition("/")[2], "sha": commit, "private": is_private, "siblings": siblings})

    def file(self, name: str, revision: str, path: str) -> None:
        if self.moved(name):
            return None
        if name in self.hub.gated:
            return self.send(self.hub.gated[name], X_Error_Code="GatedRepo")
        found = self.hub.find(name, revision)
        if found is None:
            return self.send(404, X_Error_Code="RevisionNotFound")
        commit, files = found
        if path not in files:
            return self.send(404, X_Error_Code="EntryNotFound")
        data, code, more = files[path], 200, {}
        if (match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")) and self.command == "GET":
            first, last = int(match[1]), min(int(match[2]), len(data) - 1)
            more["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            data, code = data[first : last + 1], 206
        if self.command == "GET":
            self.hub.sent[f"{name}/{path}"] += len(data)
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        return self.send(code, data, ETag=etag, X_Repo_Commit=commit, Accept_Ranges="bytes", **more)


@contextlib.contextmanager
def played_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Played", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def go(monkeypatch: pytest.MonkeyPatch, hub: Hub | None, cache: Path) -> None:
    """Let this process see that hub (None: nothing, as with HF_HUB_OFFLINE) and that cache."""
    from huggingface_hub import constants

    from ray_unlearn.models import hub as reader

    address = hub.address if hub else "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", hub is None)
    monkeypatch.setenv("RAY_UNLEARN_CACHE", str(cache / "ours"))
    reader.forget_answers()
