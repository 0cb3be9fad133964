"""A small Hugging Face Hub on loopback: repositories with commits, large files on a host of their own, and faults.

It answers what the real `huggingface_hub` client asks when heads and models are pulled and pushed. Requests for
anything else, and tokens that reach the storage host, are recorded as wrong.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep
from time import time as now
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from xet_store import XetFile, XetStore


@dataclass
class Repo:
    """Commits (name -> files) and branches (name -> commit) of one repository."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        """Add files to a branch; the new commit's name."""
        before = self.commits.get(self.branches.get(branch, ""), {})
        sha = hashlib.sha1(f"{len(self.commits)}{branch}{sorted(files)}{id(self)}".encode()).hexdigest()
        self.commits[sha] = {**before, **files}
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]


@dataclass
class Fault:
    """What happens instead of, or to, the next answers to matching requests."""

    pattern: str  # of "METHOD path"
    times: int  # how many answers it spoils
    status: int = 0  # another answer
    headers: dict[str, str] = field(default_factory=dict)
    reset: str = ""  # "before" the answer, "in" its body, "after" it, or once the work is "done"
    flip: bool = False  # one byte of the body differs
    pause: float = 0.0  # seconds before every quarter of the body
    hidden_length: bool = False  # a body that ends early and does not say so
    sent: int = 0


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".pth", ".bin"))


def etag_of(path: str, data: bytes | XetFile) -> str:
    """sha256 of a large file, git's own hash of another."""
    if isinstance(data, XetFile):
        return data.sha256
    return (
        hashlib.sha256(data).hexdigest()
        if is_large(path)
        else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )


class Hub:
    """The server and its state; `reset` between tests."""

    def __init__(self) -> None:
        self.xet = XetStore()  # never emptied: the client remembers which content it has sent
        self.reset()
        self._servers = [self._serve(is_storage) for is_storage in (False, True)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, str] = {"hf_secret": "me"}
        self.large: dict[str, bytes] = {}  # by sha256
        self.uploads: list[str] = []
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.wrong: list[str] = []
        self.absent: set[str] = set()  # repositories that a test expects to be asked for, and that are not there
        self.on_request: Callable[[str], Any] = lambda request: None  # called before each answer

    def repo(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        """Make a repository with one commit."""
        self.repos[name] = Repo(**options)
        self.repos[name].commit(files)
        return self.repos[name]

    def fail(self, pattern: str, times: int = 1_000, **what: Any) -> Fault:
        self.faults.append(Fault(pattern, times, **what))
        return self.faults[-1]

    def asked(self, pattern: str) -> list[str]:
        return [request for request in self.requests if re.search(pattern, request)]

    def _serve(self, is_storage: bool) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"hub": self, "is_storage": is_storage})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


XET_TOKEN = "xet_token"  # which the client gets for its token of the Hub
Answer = tuple[int, dict[str, str], bytes]


def as_json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def refusal(status: int, code: str, message: str = "", **headers: str) -> Answer:
    return status, {"X-Error-Code": code, "X-Error-Message": message or code, **headers}, b""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    is_storage: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        hub = self.hub
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self._read_body()
        request = f"{self.command} {unquote(url.path)}"
        hub.requests.append(request)
        hub.on_request(request)
        token = self._token()
        if self.is_storage and token and not (token == XET_TOKEN and url.path.startswith("/xet/")):
            hub.wrong.append(f"a token sent to the storage host: {request}")
        fault = next((f for f in hub.faults if f.sent < f.times and re.search(f.pattern, request)), None)
        if fault is not None:
            fault.sent += 1
        if fault is not None and fault.reset == "before":
            return self._hang_up()
        if fault is not None and fault.status:
            return self._answer((fault.status, fault.headers, b""), None)
        try:
            answer = self._route(unquote(url.path))
        except Exception as error:
            hub.wrong.append(f"{request}: {error!r}")
            answer = (418, {}, b"")
        if answer is None:
            hub.wrong.append(f"unexpected request: {request}")
            answer = (418, {}, b"")
        if fault is not None and fault.reset == "done":
            return self._hang_up()
        self._answer(answer, fault)
        return None

    do_HEAD = do_GET = do_POST = do_PUT = _handle  # noqa: N815

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _hang_up(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _answer(self, answer: Answer, fault: Fault | None) -> None:
        status, headers, body = answer
        fault = fault or Fault("", 0)
        if (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) and status == 200:
            start, end = int(span[1]), int(span[2] or len(body) - 1)
            headers = {**headers, "Content-Range": f"bytes {start}-{end}/{len(body)}"}
            status, body = 206, body[start : end + 1]
        if fault.flip and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault.hidden_length:
            body = body[: len(body) // 2]
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault.reset == "in":
            self.wfile.write(body[: len(body) // 2])
            sleep(0.05)  # for the half to arrive before the reset does
            return self._hang_up()
        quarter = len(body) // 4 + 1
        for start in range(0, len(body), quarter):
            sleep(fault.pause)
            self.wfile.write(body[start : start + quarter])
        if fault.reset == "after":
            sleep(0.05)
            return self._hang_up()
        return None

    def _route(self, path: str) -> Answer | None:
        for method, host, pattern, route in ROUTES:
            if (
                self.command in method
                and (host == "storage") == self.is_storage
                and (match := re.fullmatch(pattern, path))
            ):
                return route(self, *match.groups())
        return None

    # --- what may be read -------------------------------------------------------------------------------------------

    def _open(self, name: str, revision: str = "main") -> tuple[Repo, str] | Answer:
        """A repository and a commit of it, or why not."""
        repo = self.hub.repos.get(name)
        token = self._token()
        if repo is None and name not in self.hub.absent:
            self.hub.wrong.append(f"unexpected repository: {name}")
        if token and token not in self.hub.tokens:
            return refusal(401, "", "Invalid credentials in Authorization header")
        if repo is None or (repo.private and not token):
            return refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if repo.gated and not token:
            return refusal(401, "GatedRepo", "Access to this model is restricted")
        if repo.gated == "refused":
            return refusal(403, "GatedRepo", "Access to this model is restricted")
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, sha

    def resolve(self, name: str, revision: str, path: str) -> Answer:
        opened = self._open(name, revision)
        if len(opened) == 3:
            return opened
        repo, sha = opened
        if path not in repo.commits[sha]:
            return refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        data = repo.commits[sha][path]
        etag = etag_of(path, data)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if not is_large(path):
            return 200, headers, data
        if isinstance(data, XetFile):
            route = f"{self.hub.url}/api/models/{name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": data.xet_hash, "X-Xet-Refresh-Route": route}
        else:
            self.hub.large[etag] = data
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        return 302, {**headers, "Location": f"{self.hub.storage_url}/large/{etag}"}, b""

    def large(self, sha256: str) -> Answer:
        return 200, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}, self.hub.large[sha256]

    def info(self, name: str, revision: str | None) -> Answer:
        opened = self._open(name, revision or "main")
        if len(opened) == 3:
            return opened
        repo, sha = opened
        siblings = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        return as_json({"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def paths_info(self, name: str, revision: str) -> Answer:
        opened = self._open(name, revision)
        if len(opened) == 3:
            return opened
        files = opened[0].commits[opened[1]]
        wanted = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        return as_json([self._entry(path, files[path]) for path in wanted if path in files])

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": etag_of("x", data)}
        if is_large(path):
            entry["lfs"] = {"oid": etag_of(path, data), "size": len(data), "pointerSize": 130}
        return entry

    # --- what may be written ----------------------------------------------------------------------------------------

    def _may_write(self, name: str) -> Answer | None:
        user = self.hub.tokens.get(self._token())
        if user is None:
            return refusal(401, "", "Invalid username or password.")
        if user != name.partition("/")[0] and "create_pr" not in self.query:
            return refusal(403, "", "you do not have the rights")
        return None

    def create(self) -> Answer:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if refused := self._may_write(name):
            return refused
        if name in self.hub.repos:
            return as_json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repo(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=bool(private))
        return as_json({"url": f"{self.hub.url}/{name}", "id": name})

    def branch(self, name: str, branch: str) -> Answer:
        if refused := self._may_write(name):
            return refused
        repo = self.hub.repos[name]
        if branch in repo.branches:
            return as_json({"error": "Reference already exists"}, 409)
        repo.branches[branch] = repo.branches["main"]
        return as_json({})

    def validate_yaml(self) -> Answer:
        return as_json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> Answer:
        if refused := self._may_write(name):
            return refused
        opened = self._open(name, revision)
        if len(opened) == 3:
            return opened
        there = opened[0].commits[opened[1]]
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            oid = etag_of(path, there[path]) if path in there else None
            mode = "lfs" if is_large(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return as_json({"files": files})

    def batch(self, name: str) -> Answer:
        wanted = json.loads(self.body)
        if "ref" in wanted and (refused := self._may_write(name)):  # a pull request names no branch
            return refused
        objects = []
        for asked in wanted["objects"]:
            href = f"{self.hub.storage_url}/upload/{asked['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{self.hub.url}/{name}.git/verify"}}
            objects.append(asked if asked["oid"] in self.hub.large else {**asked, "actions": actions})
        return as_json({"transfer": "basic", "objects": objects})

    def upload(self, sha256: str) -> Answer:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            return 400, {}, b"hash mismatch"
        self.hub.uploads.append(sha256)
        self.hub.large[sha256] = self.body
        return 200, {}, b""

    def verify(self, name: str) -> Answer:
        asked = json.loads(self.body)
        found = len(self.hub.large.get(asked["oid"], b"")) == asked["size"]
        return as_json({}, 200 if found else 404)

    def commit(self, name: str, revision: str) -> Answer:
        if refused := self._may_write(name):
            return refused
        repo, files, header = self.hub.repos[name], {}, {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.hub.large.get(value["oid"]) or self.hub.xet.files[value["oid"]]
        if header.get("parentCommit") not in (None, repo.branches[revision]):
            return refusal(412, "", "A commit has happened since. Please refresh and try again.")
        branch, reply = revision, {}
        if "create_pr" in self.query:
            number = next(n for n in itertools.count(1) if f"refs/pr/{n}" not in repo.branches)
            branch = f"refs/pr/{number}"
            repo.branches[branch] = repo.branches[revision]
            reply["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
        sha = repo.commit(files, branch, header["summary"])
        return as_json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", **reply})

    # --- the xet store ----------------------------------------------------------------------------------------------

    def xet_token(self, name: str, kind: str, revision: str) -> Answer:
        if kind == "write" and (refused := self._may_write(name)):
            return refused
        where = {"casUrl": f"{self.hub.storage_url}/xet", "accessToken": XET_TOKEN, "exp": int(now()) + 3600}
        headers = {
            f"X-Xet-{key}": str(value)
            for key, value in zip(("Cas-Url", "Access-Token", "Token-Expiration"), where.values(), strict=True)
        }
        status, more, body = as_json(where)
        return status, {**more, **headers}, body

    def xet_store(self, path: str) -> Answer | None:
        return self.hub.xet.answer(self.command, path, self.body, self.hub.storage_url)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[tuple[str, ...], str, str, Callable[..., Answer | None]]] = [
    (("GET", "HEAD"), "hub", rf"/{NAME}/resolve/([^/]+|refs/pr/\d+)/(.+)", _Handler.resolve),
    (("GET", "HEAD"), "storage", r"/large/(\w+)", _Handler.large),
    (("GET",), "hub", rf"/api/models/{NAME}(?:/revision/(.+))?", _Handler.info),
    (("POST",), "hub", rf"/api/models/{NAME}/paths-info/(.+)", _Handler.paths_info),
    (("POST",), "hub", r"/api/repos/create", _Handler.create),
    (("POST",), "hub", rf"/api/models/{NAME}/branch/(.+)", _Handler.branch),
    (("POST",), "hub", r"/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), "hub", rf"/api/models/{NAME}/preupload/(.+)", _Handler.preupload),
    (("POST",), "hub", rf"/{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (("POST",), "hub", rf"/{NAME}\.git/verify", _Handler.verify),
    (("PUT",), "storage", r"/upload/(\w+)", _Handler.upload),
    (("POST",), "hub", rf"/api/models/{NAME}/commit/(.+)", _Handler.commit),
    (("GET",), "hub", rf"/api/models/{NAME}/xet-(read|write)-token/(.+)", _Handler.xet_token),
    (("GET", "HEAD", "POST", "PUT"), "storage", r"/xet(/.+)", _Handler.xet_store),
]
