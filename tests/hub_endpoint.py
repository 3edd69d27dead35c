"""A hub on this computer: what huggingface_hub asks of one over HTTP, kept on disk, with faults on demand.

Repositories are commits in memory; files lie by their hash, as the real hub keeps them: by SHA-256 where they
are large or binary ("lfs"), else by git's hash. Written from the requests that huggingface_hub 1.33 makes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import unquote, urlsplit

TOKEN, OWNER = "hf_" + "secretsecretsecretsecretsecretsecr", "ann"
LFS_NAMES = (".parquet", ".mp4", ".safetensors", ".png", ".jpg")


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=dict)  # id → path → hash
    order: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, str], title: str) -> str:
        text = json.dumps([files, title, len(self.order)])
        oid = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[oid] = files
        self.order.append(oid)
        return oid

    def find(self, revision: str) -> str | None:
        revision = {"main": self.order[-1]}.get(revision, revision)
        revision = self.tags.get(revision, revision)
        return revision if revision in self.commits else None


@dataclass
class Faults:
    """Each is spent when it strikes."""

    status: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Part of "METHOD path" → (status, how often)."""
    cut_upload: int = 0  # connections to break within a PUT
    cut_download: int = 0  # connections to break within a GET of a file
    corrupt: set[str] = field(default_factory=set)  # paths that are sent with a byte that is another


class HubEndpoint:
    """`with HubEndpoint(folder) as hub:` `hub.url`. requests: "METHOD path" of all. bodies: of the POSTs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults = folder, Faults()
        self.repos: dict[str, Repo] = {}
        self.stopped = False
        self.requests: list[str] = []
        self.uploads: list[str] = []
        self.ranges: list[str] = []
        self.created: list[dict[str, Any]] = []
        (folder / "blobs").mkdir(parents=True)

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer no more. Connections that are open go on until whoever holds them closes them."""
        if not self.stopped:
            self.stopped = True
            self.server.shutdown()
            self.server.server_close()

    def files(self, key: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository ("datasets/ann/x", "models/ann/x") holds."""
        repo = self.repos[key]
        commit = repo.find(revision)
        assert commit is not None
        return {p: (self.folder / "blobs" / h).read_bytes() for p, h in repo.commits[commit].items()}

    def put(self, data: bytes, lfs: bool) -> str:
        plain = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False)
        name = hashlib.sha256(data).hexdigest() if lfs else plain.hexdigest()
        (self.folder / "blobs" / name).write_bytes(data)
        return name


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[HubEndpoint]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        path, faults = unquote(urlsplit(self.path).path), self.hub.faults
        self.hub.requests.append(f"{self.command} {path}")
        for part, (status, times) in list(faults.status.items()):
            if part in f"{self.command} {path}" and times > 0:
                faults.status[part] = (status, times - 1)
                self._body()
                return self._json({"error": f"as told, to {self.headers.get('authorization')}"}, status)
        segments = path.strip("/").split("/")
        if segments[0] == "lfs-storage":
            return self._upload(segments[1])
        if segments[0] != "api" and "resolve" not in segments and ".git" not in path:
            return self._json({"error": "not found"}, 404)
        if self.headers.get("authorization") not in (None, f"Bearer {TOKEN}"):
            self._body()
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/whoami-v2":
            return self._json({"name": OWNER, "type": "user", "orgs": []} if self._known() else {}, 200)
        if path == "/api/validate-yaml":
            self._body()
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(self._body()))
        if segments[0] == "api":
            return self._api(segments[1], "/".join(segments[2:4]), segments[4:])
        kind = "datasets" if segments[0] == "datasets" else "models"
        rest = segments[1:] if kind == "datasets" else segments
        repo = "/".join(rest[:2]).removesuffix(".git")
        if rest[2] == "info":
            return self._batch(f"{kind}/{repo}")
        return self._file(f"{kind}/{repo}", rest[3], "/".join(rest[4:]))

    def _known(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _repo(self, key: str) -> Repo | None:
        """None, and answered, where it is not shown."""
        repo = self.hub.repos.get(key)
        if repo is None or (repo.private and not self._known()):
            self._body()
            self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._known():
            return self._json({"error": "no token"}, 401)
        owner = asked.get("organization") or OWNER
        if owner != OWNER:
            return self._json({"error": f"You don't have the rights under {owner}"}, 403)
        self.hub.created.append(asked)
        kind = f"{asked.get('type', 'model')}s"
        repo = Repo(asked.get("visibility") == "private" or asked.get("private") is True)
        repo.commit({".gitattributes": self.hub.put(b"*.mp4 filter=lfs\n", False)}, "initial commit")
        self.hub.repos[f"{kind}/{owner}/{asked['name']}"] = repo
        self._json(
            {"url": f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{owner}/{asked['name']}"}
        )
        return None

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        if (repo := self._repo(f"{kind}/{name}")) is None:
            return None
        what = rest[0] if rest else "revision"
        if what == "refs":
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in repo.tags.items()]
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.order[-1]}
            return self._json({"branches": [main], "converts": [], "tags": tags})
        if what == "tag":
            return self._tag(repo, "/".join(rest[1:]))
        commit = repo.find(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            self._body()
            return self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = repo.commits[commit]
        if what == "preupload":
            asked = json.loads(self._body())["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LFS_NAMES) else "regular",
                    "shouldIgnore": False,
                    "oid": files.get(f["path"]),
                }
                for f in asked
            ]
            return self._json({"files": modes})
        if what == "commit":
            return self._commit(repo, dict(files), f"{kind}/{name}")
        if what == "tree":
            return self._json([self._entry(p, h) for p, h in files.items()])
        siblings = [{"rfilename": p} for p in files]
        info = {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}
        return self._json(info)

    def _entry(self, path: str, name: str) -> dict[str, Any]:
        size = (self.hub.folder / "blobs" / name).stat().st_size
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": name[:40], "size": size}
        if len(name) == 64:
            entry["lfs"] = {"oid": name, "size": size, "pointerSize": 130}
        return entry

    def _tag(self, repo: Repo, name: str) -> None:
        body = self._body()
        if not self._known():
            return self._json({"error": "no token"}, 401)
        if self.command == "DELETE":
            if repo.tags.pop(name, None) is None:
                return self._json({"error": "no tag"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return self._json({})
        repo.tags[json.loads(body)["tag"]] = repo.find(name) or repo.order[-1]
        return self._json({})

    def _commit(self, repo: Repo, files: dict[str, str], key: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        if not self._known():
            return self._json({"error": "no write access"}, 403)
        title = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = self.hub.put(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if not (self.hub.folder / "blobs" / value["oid"]).exists():
                    return self._json({"error": f"lfs object of {value['path']} was not uploaded"}, 400)
                files[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(files, title)
        return self._json({"commitUrl": f"{self.hub.url}/{key}/commit/{oid}", "commitOid": oid})

    def _batch(self, key: str) -> None:
        if self._repo(key) is None:
            return None
        objects = []
        for asked in json.loads(self._body())["objects"]:
            entry = dict(asked)
            if not (self.hub.folder / "blobs" / asked["oid"]).exists():
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs-storage/{asked['oid']}"}}
            objects.append(entry)
        return self._json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        if self.hub.faults.cut_upload > 0:
            self.hub.faults.cut_upload -= 1
            self.rfile.read(int(self.headers["content-length"]) // 2)
            return self._cut()
        data = self._body()
        if hashlib.sha256(data).hexdigest() != oid:
            return self._json({"error": "its hash differs"}, 400)
        self.hub.uploads.append(oid)
        self.hub.put(data, True)
        return self._json({})

    def _file(self, key: str, revision: str, path: str) -> None:
        if (repo := self._repo(key)) is None:
            return None
        commit = repo.find(revision)
        if commit is None or path not in repo.commits[commit]:
            code = "RevisionNotFound" if commit is None else "EntryNotFound"
            headers = {"X-Error-Code": code} | ({"X-Repo-Commit": commit} if commit else {})
            return self._json({"error": code}, 404, headers)
        name = repo.commits[commit][path]
        data = (self.hub.folder / "blobs" / name).read_bytes()
        if path in self.hub.faults.corrupt and self.command == "GET":
            self.hub.faults.corrupt.discard(path)
            data = bytes([data[0] ^ 1]) + data[1:]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
        if len(name) == 64:
            headers |= {"X-Linked-Etag": f'"{name}"', "X-Linked-Size": str(len(data))}
        start, status = 0, 200
        if (asked := self.headers.get("range")) is not None:
            self.hub.ranges.append(asked)
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send_response(status)
        for field_name, value in headers.items():
            self.send_header(field_name, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.hub.faults.cut_download > 0 and len(name) == 64 and not start:
            self.hub.faults.cut_download -= 1
            self.wfile.write(data[: len(data) // 2])
            return self._cut()
        self.wfile.write(data[start:])
        return None

    def _cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        if (self.headers.get("transfer-encoding") or "") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextlib.contextmanager
def hub_here(folder: Path, monkeypatch: Any) -> Iterator[HubEndpoint]:
    """The hub, which this process and those that it starts take for theirs; with a token, and a cache of
    their own."""
    from huggingface_hub import constants

    with HubEndpoint(folder / "hub") as hub:
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_CACHE": str(folder / "hub-cache"),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub
