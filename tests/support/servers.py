"""Small real servers on this machine, that fail when they are told to: files, a hub, and a proxy."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

HANG = 30.0
FAULTS = ("503", "429", "truncate", "short", "flip", "stall", "reset")


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    target: str


@dataclass(frozen=True)
class Response:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Answer = Callable[[Request], Response]


class Server:
    """An HTTP server around one function, that logs its requests and injects faults into answers.

    ``truncate`` closes the connection in the middle of a body, ``short`` sends half a body as if it were
    whole, ``flip`` changes one byte, ``stall`` goes silent in the middle, ``reset`` breaks the connection
    before any answer.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[str] = []
        self._faults: list[list[Any]] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                server._handle(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one

            def log_message(self, format: str, *args: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._http.shutdown()
        self._http.server_close()

    def fail(self, fault: str, on: str, times: int = 1) -> None:
        """Answer the next ``times`` requests that match ``on`` ("GET /path", a regex) with ``fault``."""
        assert fault in FAULTS
        self._faults.append([fault, re.compile(on), times])

    def reset(self) -> None:
        self.requests.clear()
        self._faults.clear()

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in self.requests)

    def wait_for(self, pattern: str, times: int = 1, timeout: float = 20) -> None:
        end = time.monotonic() + timeout
        while self.count(pattern) < times:
            assert time.monotonic() < end, f"no request {pattern}: {self.requests}"
            time.sleep(0.02)

    def _handle(self, http: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(http.path)
        body = http.rfile.read(int(http.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in http.headers.items()}
        query = parse_qs(parts.query, keep_blank_values=True)
        request = Request(http.command, unquote(parts.path), query, headers, body, http.path)
        fault = self._next_fault(f"{request.method} {request.path}")
        try:
            self._send(http, self.answer(request), fault)
        except OSError:
            http.close_connection = True

    def _next_fault(self, line: str) -> str | None:
        with self._lock:
            self.requests.append(line)
            for entry in self._faults:
                if entry[2] and entry[1].search(line):
                    entry[2] -= 1
                    return str(entry[0])
        return None

    def _send(self, http: BaseHTTPRequestHandler, response: Response, fault: str | None) -> None:
        body, headers = response.body, dict(response.headers)
        if fault == "reset":
            http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            http.connection.close()
            raise OSError("reset")
        if fault in ("503", "429"):
            wait = {"Retry-After": "1"} if fault == "429" else {}
            response, body, headers = Response(int(fault)), b"", wait
        if fault == "flip":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if fault == "short":
            body = body[: len(body) // 2]
        http.send_response(response.status)
        length = headers.pop("Content-Length", str(len(body)))
        for name, value in {**headers, "Content-Length": length}.items():
            if value:
                http.send_header(name, value)
        http.close_connection |= not length
        http.end_headers()
        if http.command == "HEAD":
            return
        if fault in ("truncate", "stall"):
            http.wfile.write(body[: len(body) // 2])
            http.wfile.flush()
            if fault == "stall":
                self._stopped.wait(HANG)
            http.close_connection = True
        else:
            http.wfile.write(body)


def files(content: dict[str, bytes], *, etags: bool = False, ranges: bool = True) -> Answer:
    """A web server's files by path; with ``etags`` it sends a strong ETag of each."""

    def answer(request: Request) -> Response:
        body = content.get(request.path)
        if body is None:
            return Response(404)
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()[:8]}"'} if etags else {}
        return ranged(request, body, headers) if ranges else Response(200, body, headers)

    return answer


def ranged(request: Request, body: bytes, headers: dict[str, str]) -> Response:
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not asked or request.method == "HEAD":
        return Response(200, body, headers)
    first = int(asked[1]) if asked[1] else max(0, len(body) - int(asked[2]))
    last = min(int(asked[2]) if asked[1] and asked[2] else len(body) - 1, len(body) - 1)
    where = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
    return Response(206, body[first : last + 1], headers | where)


def forward(url: str) -> Answer:
    """Whatever the server at ``url`` answers."""
    host = urlsplit(url).netloc

    def answer(request: Request) -> Response:
        connection = http.client.HTTPConnection(host, timeout=HANG)
        hop = ("connection", "host", "content-length", "transfer-encoding")
        headers = {name: value for name, value in request.headers.items() if name not in hop}
        connection.request(request.method, request.target, request.body, headers)
        response = connection.getresponse()
        body = response.read()
        kept = {
            name: value
            for name, value in response.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server", "content-length")
        }
        if request.method == "HEAD" and (length := response.getheader("Content-Length")):
            kept["Content-Length"] = length
        connection.close()
        return Response(response.status, body, kept)

    return answer


@dataclass
class Hub:
    """As much of a Hugging Face hub as its client needs to read one dataset."""

    repo: str
    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]

    def __call__(self, request: Request) -> Response:
        api, resolve = f"/api/datasets/{self.repo}", f"/datasets/{self.repo}/resolve/"
        if request.path.startswith(resolve):
            revision, _, path = request.path.removeprefix(resolve).partition("/")
            return self._resolve(request, revision, path)
        if not request.path.startswith(api):
            return Response(401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"})
        verb, _, rest = request.path.removeprefix(api).strip("/").partition("/")
        revision, _, path = rest.partition("/")
        commit = self._commit(revision or "main")
        if commit is None:
            return Response(
                404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no revision"}
            )
        if verb == "paths-info":
            return _json(
                [self._entry(commit, name) for name in _paths(request) if name in self.commits[commit]]
            )
        if verb == "tree":
            return _json(self._tree(commit, path, request))
        return _json({"id": self.repo, "sha": commit, "siblings": [], "tags": [], "private": False})

    def _commit(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def _resolve(self, request: Request, revision: str, path: str) -> Response:
        commit = self._commit(revision)
        body = self.commits.get(commit or "", {}).get(path)
        if commit is None or body is None:
            return Response(404, b"", {"X-Error-Code": "EntryNotFound" if commit else "RevisionNotFound"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        return ranged(request, body, headers)

    def _tree(self, commit: str, path: str, request: Request) -> list[dict[str, Any]]:
        recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{path}/" if path else ""
        below = [name for name in self.commits[commit] if name.startswith(prefix)]
        entries, folders = [], set()
        for name in below:
            parts = name.removeprefix(prefix).split("/")
            folders |= {prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))}
            entries += [self._entry(commit, name)] if recursive or len(parts) == 1 else []
        shown = folders if recursive else {name for name in folders if "/" not in name.removeprefix(prefix)}
        return [{"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(shown)] + entries

    def _entry(self, commit: str, path: str) -> dict[str, Any]:
        body = self.commits[commit][path]
        blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        entry = {"type": "file", "path": path, "size": len(body), "oid": blob}
        if path.endswith(".parquet"):
            entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        return entry


def _paths(request: Request) -> list[str]:
    if "json" in request.headers.get("content-type", ""):
        return list(json.loads(request.body)["paths"])
    return parse_qs(request.body.decode())["paths"]


def _json(value: Any) -> Response:
    return Response(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
