"""A Hugging Face Hub on loopback, for the real client: repositories in memory, large files on a second origin, faults.

What the client asks is answered as the hub answers it, with its headers: `X-Error-Code` on every refusal,
`X-Repo-Commit` and ETags on files, for LFS files a redirect to an origin that refuses `Authorization`. Commit ids are
hashes of content. `HF_HUB_DISABLE_XET=1` keeps the client on this protocol. Every request is in `log`.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_PATTERNS = ("*.safetensors", "*.bin", "*.ckpt", "*.parquet", "*.tar", "*.npz", "*.onnx", "*.png", "*.jpg")
Json = Any


@dataclass(frozen=True)
class File:
    """A file in a commit."""

    content: bytes
    is_lfs: bool

    @property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id

    def entry(self, path: str) -> Json:
        lfs = {"lfs": {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}} if self.is_lfs else {}
        return {"type": "file", "path": path, "size": len(self.content), "oid": self.blob_id, **lfs}

    def sibling(self, path: str) -> Json:
        lfs = {"lfs": {"sha256": self.sha256, "size": len(self.content), "pointerSize": 134}} if self.is_lfs else {}
        return {"rfilename": path, "size": len(self.content), "blobId": self.blob_id, **lfs}


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    parent: str | None
    files: dict[str, File]


@dataclass
class Repo:
    kind: str  # "model" or "dataset"
    id: str
    is_private: bool = False
    is_gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)  # branch, tag or refs/… → commit
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(self, ref: str, title: str, files: dict[str, File], parent: str | None = None) -> Commit:
        """Adds a commit to a ref; a tree that is the parent's makes none."""
        parent = parent or self.refs.get(ref)
        if parent is not None and self.commits[parent].files == files:
            return self.commits[parent]
        tree = json.dumps([parent, title, sorted((path, file.sha256) for path, file in files.items())])
        made = Commit(hashlib.sha1(tree.encode()).hexdigest(), title, parent, files)
        self.commits[made.oid] = made
        self.refs[ref] = made.oid
        return made

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path has `path` in it.

    kind: "cut" (the connection ends after `after` bytes), "unavailable" (503), "corrupt" (100 bytes of the right number
    are others), "ignore_range" (the whole file in place of a part), "slow" (`after` milliseconds go by first).
    """

    kind: str
    path: str = ""
    after: int = 0
    times: int = 1


class RefusalError(Exception):
    """An error of the hub."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message or code


class LoopbackHub:
    """Two servers in threads: the hub at `endpoint`, and the origin of large files."""

    user, token, read_token = "tester", "hf_WriteTokenOfTheLoopbackHub", "hf_ReadTokenOfTheLoopbackHub"

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}  # sha256 → content, as uploaded
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []
        self.sent = 0  # bytes of files
        self.lock = threading.RLock()
        self._hub, self._origin = (self._serve(handler) for handler in (HubHandler, OriginHandler))
        self.endpoint, self.origin = (f"http://127.0.0.1:{s.server_address[1]}" for s in (self._hub, self._origin))

    def _serve(self, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.hub = self  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def close(self) -> None:
        for server in (self._hub, self._origin):
            server.shutdown()
            server.server_close()

    def reset(self) -> None:
        with self.lock:
            for held in (self.repos, self.large, self.faults, self.log):
                held.clear()

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "model", **options: Any) -> Repo:
        """A repository with one commit, made without a client."""
        repo = self.repos[kind, repo_id] = Repo(kind, repo_id, **options)
        repo.commit("main", "initial", {path: File(content, is_large(path)) for path, content in files.items()})
        self.large |= {file.sha256: file.content for file in repo.head.files.values() if file.is_lfs}
        return repo

    def fault(self, path: str, *kinds: str) -> Fault | None:
        """The fault that a request meets, used up by it."""
        with self.lock:
            found = next((f for f in self.faults if f.times > 0 and f.path in path and f.kind in kinds), None)
            if found is not None:
                found.times -= 1
            return found


def is_large(path: str) -> bool:
    return any(fnmatch.fnmatch(path, pattern) for pattern in LFS_PATTERNS)


class Handler(BaseHTTPRequestHandler):
    """What both servers do alike."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *args: Any) -> None:
        pass

    def dispatch(self) -> None:
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.log.append((self.command, unquote(self.url.path)))
        if slow := self.hub.fault(self.url.path, "slow"):
            time.sleep(slow.after / 1000)
        try:
            if self.hub.fault(self.url.path, "unavailable"):
                raise RefusalError(503, "Unavailable")
            self.answer()
        except RefusalError as refusal:
            self.reply({"error": refusal.message}, refusal.status, {"X-Error-Code": refusal.code})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch  # noqa: N815

    def answer(self) -> None:
        raise NotImplementedError

    def reply(self, body: Json = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", (headers or {}).get("X-Size", str(len(content))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_file(self, content: bytes, headers: dict[str, str]) -> None:
        """A file or a range of it, with the faults that it meets."""
        path, status, start, end = self.url.path, 200, 0, len(content)
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if found and not self.hub.fault(path, "ignore_range"):
            first, last = found.groups()
            start = int(first) if first else max(0, len(content) - int(last))
            end = min(end, int(last) + 1) if first and last else end
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        if self.command == "GET" and self.hub.fault(path, "corrupt"):
            middle = len(content) // 2
            changed = bytes(byte ^ 0xFF for byte in content[middle : middle + 100])
            content = content[:middle] + changed + content[middle + len(changed) :]
        part = content[start:end]
        cut = self.hub.fault(path, "cut") if self.command == "GET" else None
        self.send_response(status)
        for name, value in {**headers, "Accept-Ranges": "bytes", "Content-Length": str(len(part))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.sent += len(part)
        self.wfile.write(part[: cut.after] if cut else part)
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


class OriginHandler(Handler):
    """Where large files lie: addressed by their hash, no word of who asks."""

    def answer(self) -> None:
        if self.headers.get("Authorization"):
            raise RefusalError(400, "InvalidArgument", "Only one auth mechanism allowed.")
        sha256 = self.url.path.rsplit("/", 1)[-1]
        if self.command == "PUT":
            self.hub.large[sha256] = self.body
            return self.reply(b"")
        if sha256 not in self.hub.large:
            raise RefusalError(404, "NoSuchKey")
        self.send_file(self.hub.large[sha256], {"ETag": f'"{sha256}"'})


class HubHandler(Handler):
    """The hub's own API, as far as models and data sets go."""

    def answer(self) -> None:
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, self.url.path)
            if found and self.command in method.split("|"):
                groups = {name: unquote(value) for name, value in found.groupdict(default="").items()}
                return answer(self, **groups)
        raise RefusalError(404, "NotFound", f"no route for {self.command} {self.url.path}")

    # ------------------------------------------------------------------------------------------------ who and where

    @property
    def may(self) -> str:
        """What the token allows: "write", "read" or ""."""
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return {self.hub.token: "write", self.hub.read_token: "read"}.get(given, "")

    def need(self, right: str) -> None:
        if not self.may:
            raise RefusalError(401, "Unauthorized", "Invalid username or password.")
        if right == "write" and self.may != "write":
            raise RefusalError(403, "Forbidden", "You don't have the rights to write.")

    def repo(self, kind: str, repo_id: str) -> Repo:
        repo = self.hub.repos.get((kind.removesuffix("s") or "model", repo_id))
        if repo is None or (repo.is_private and not self.may):
            raise RefusalError(404 if self.may else 401, "RepoNotFound", "Repository not found")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision or "main")
        if commit is None:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ------------------------------------------------------------------------------------------ about repositories

    def whoami(self) -> None:
        self.need("read")
        self.reply({"type": "user", "name": self.hub.user, "orgs": [], "auth": {"accessToken": {"role": self.may}}})

    def create(self) -> None:
        self.need("write")
        asked = json.loads(self.body)
        repo_id, kind = f"{asked.get('organization') or self.hub.user}/{asked['name']}", asked.get("type") or "model"
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                return self.reply({"error": "You already created this repo", "url": url}, 409)
            is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
            repo = self.hub.repos[kind, repo_id] = Repo(kind, repo_id, is_private)
            repo.commit("main", "initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)})
        self.reply({"url": url, "id": repo_id})

    def delete(self) -> None:
        self.need("write")
        asked = json.loads(self.body)
        repo = self.repo(asked.get("type") or "model", f"{asked.get('organization') or self.hub.user}/{asked['name']}")
        del self.hub.repos[repo.kind, repo.id]
        self.reply({})

    def info(self, kind: str, repo_id: str, revision: str = "") -> None:
        repo = self.repo(kind, repo_id)
        commit = self.commit_of(repo, revision)
        siblings = [
            file.sibling(path) if self.query.get("blobs") else {"rfilename": path}
            for path, file in sorted(commit.files.items())
        ]
        facts = {"private": repo.is_private, "gated": "manual" if repo.is_gated else False, "disabled": False}
        about = {
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.oid,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        self.reply({**about, **facts, "siblings": siblings, "createdAt": "2026-01-01T00:00:00.000Z"})

    def tree(self, kind: str, repo_id: str, revision: str, path: str = "") -> None:
        files = self.commit_of(self.repo(kind, repo_id), revision).files
        below = f"{path}/" if path else ""
        is_deep = self.query.get("recursive", ["False"])[0].lower() in ("true", "1")
        entries: dict[str, Json] = {}
        for name, file in sorted(files.items()):
            if not name.startswith(below):
                continue
            parents = name[len(below) :].split("/")[:-1]
            for depth in range(1, len(parents) + 1 if is_deep else min(2, len(parents) + 1)):
                folder = below + "/".join(parents[:depth])
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
            if is_deep or not parents:
                entries[name] = file.entry(name)
        if path and not entries:
            raise RefusalError(404, "EntryNotFound", f"{path} does not exist")
        self.reply(list(entries.values()))

    def paths_info(self, kind: str, repo_id: str, revision: str) -> None:
        files = self.commit_of(self.repo(kind, repo_id), revision).files
        is_form = "json" not in self.headers.get("Content-Type", "")
        paths = parse_qs(self.body.decode()).get("paths", []) if is_form else json.loads(self.body)["paths"]
        found = [files[path].entry(path) for path in paths if path in files]
        folders = [path for path in paths if any(name.startswith(f"{path}/") for name in files)]
        self.reply(found + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders])

    def refs(self, kind: str, repo_id: str) -> None:
        listed: dict[str, list[Json]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        for ref, oid in self.repo(kind, repo_id).refs.items():
            group = {"refs/tags": "tags", "refs/convert": "converts", "refs/pr": "pullRequests"}.get(
                ref.rpartition("/")[0], "branches"
            )
            full = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
            listed[group].append({"name": ref.removeprefix("refs/tags/"), "ref": full, "targetCommit": oid})
        self.reply(listed)

    def commits(self, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id)
        commit: Commit | None = self.commit_of(repo, revision)
        listed = []
        while commit is not None:
            entry = {"id": commit.oid, "title": commit.title, "message": "", "date": "2026-01-01T00:00:00.000Z"}
            listed.append({**entry, "authors": [{"user": self.hub.user}]})
            commit = repo.commits.get(commit.parent or "")
        self.reply(listed)

    def make_ref(self, kind: str, repo_id: str, ref: str, group: str) -> None:
        self.need("write")
        repo = self.repo(kind, repo_id)
        asked = json.loads(self.body or b"{}")
        start = ref if group == "tag" else asked.get("startingPoint") or "main"
        name = asked["tag"] if group == "tag" else ref
        if name in repo.refs:
            raise RefusalError(409, "Conflict", "Reference already exists")
        repo.refs[name] = self.commit_of(repo, start).oid
        self.reply({})

    # ------------------------------------------------------------------------------------------------ what is pushed

    def preupload(self, kind: str, repo_id: str, revision: str) -> None:
        self.need("write")
        known = self.commit_of(self.repo(kind, repo_id), revision).files
        answers = []
        for asked in json.loads(self.body)["files"]:
            path, is_lfs = asked["path"], is_large(asked["path"]) or asked["size"] > 10_000_000
            oid = {"oid": known[path].etag} if path in known else {}
            answers.append({"path": path, "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, **oid})
        self.reply({"files": answers})

    def lfs_batch(self, kind: str, repo_id: str) -> None:
        self.need("write")
        self.repo(kind, repo_id)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            links = {
                "upload": {"href": f"{self.hub.origin}/{repo_id}/{asked['oid']}"},
                "verify": {"href": f"{self.hub.endpoint}/{repo_id}.git/info/lfs/objects/verify"},
            }
            objects.append({**asked, **({} if asked["oid"] in self.hub.large else {"actions": links})})
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_verify(self, repo_id: str) -> None:
        self.need("write")
        asked = json.loads(self.body)
        content = self.hub.large.get(asked["oid"])
        if content is None or hashlib.sha256(content).hexdigest() != asked["oid"] or len(content) != asked["size"]:
            raise RefusalError(400, "LfsMismatch", "what was uploaded is not what was announced")
        self.reply({})

    def make_commit(self, kind: str, repo_id: str, revision: str) -> None:
        self.need("write")
        repo = self.repo(kind, repo_id)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        with self.hub.lock:
            parent = self.commit_of(repo, revision)
            if header.get("parentCommit") not in (None, parent.oid):
                raise RefusalError(
                    412, "PreconditionFailed", "A commit has happened since. Please refresh and try again."
                )
            files = dict(parent.files)
            for line in lines:
                self.change(files, line["key"], line["value"])
            is_pr = bool(self.query.get("create_pr"))
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            ref = f"refs/pr/{number}" if is_pr else revision
            commit = repo.commit(ref, header["summary"], files, parent.oid)
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        url = f"{self.hub.endpoint}/{prefix}{repo.id}"
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        self.reply({**answer, **({"pullRequestUrl": f"{url}/discussions/{number}"} if is_pr else {})})

    def change(self, files: dict[str, File], key: str, value: Json) -> None:
        if key == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]), False)
        elif key == "lfsFile":
            files[value["path"]] = File(self.hub.large[value["oid"]], True)
        elif key == "deletedFile":
            files.pop(value["path"])
        elif key == "deletedFolder":
            for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
                del files[path]

    def validate_yaml(self) -> None:
        text = json.loads(self.body)["content"]
        found = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        try:
            yaml.safe_load(found[1] if found else "")
        except yaml.YAMLError as error:
            return self.reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
        self.reply({"errors": [], "warnings": []})

    # ------------------------------------------------------------------------------------------------ what is pulled

    def resolve(self, kind: str, repo_id: str, revision: str, path: str) -> None:
        repo = self.repo(kind, repo_id)
        if repo.is_gated and self.may != "write":
            raise RefusalError(403 if self.may else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        commit = self.commit_of(repo, revision)
        file, headers = commit.files.get(path), {"X-Repo-Commit": commit.oid}
        if file is None:
            return self.reply({"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{file.etag}"'
        if not file.is_lfs:
            return self.send_file(file.content, headers)
        linked = {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        location = f"{self.hub.origin}/{repo_id}/{path}/{file.sha256}"
        self.reply(b"", 302, {**headers, **linked, "Location": location})


_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_REV = r"(?P<revision>refs%2F[^/]+|refs/(?:pr|convert)/[^/]+|[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", HubHandler.whoami),
    ("POST", r"/api/repos/create", HubHandler.create),
    ("DELETE", r"/api/repos/delete", HubHandler.delete),
    ("POST", r"/api/validate-yaml", HubHandler.validate_yaml),
    ("GET", _API, HubHandler.info),
    ("GET", rf"{_API}/revision/{_REV}", HubHandler.info),
    ("GET", rf"{_API}/tree/{_REV}(?:/(?P<path>.*))?", HubHandler.tree),
    ("POST", rf"{_API}/paths-info/{_REV}", HubHandler.paths_info),
    ("GET", rf"{_API}/refs", HubHandler.refs),
    ("GET", rf"{_API}/commits/{_REV}", HubHandler.commits),
    ("POST", rf"{_API}/(?P<group>branch|tag)/(?P<ref>.+)", HubHandler.make_ref),
    ("POST", rf"{_API}/preupload/{_REV}", HubHandler.preupload),
    ("POST", rf"{_API}/commit/{_REV}", HubHandler.make_commit),
    ("POST", rf"/(?:(?P<kind>datasets)/)?{_REPO}\.git/info/lfs/objects/batch", HubHandler.lfs_batch),
    ("POST", rf"/(?:datasets/)?{_REPO}\.git/info/lfs/objects/verify", HubHandler.lfs_verify),
    ("GET|HEAD", rf"/(?:(?P<kind>datasets)/)?{_REPO}/resolve/{_REV}/(?P<path>.+)", HubHandler.resolve),
]
