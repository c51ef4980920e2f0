"""A web server that fails as storages do, and the processes that read from it."""

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from clipkit.shards.cache import Cache

FAULTS = ("drop", "cut", "503", "500", "stall")


class FlakyServer:
    """Serves `files` (path -> bytes) on a port of the loopback; a share of the requests, chosen by a hash, fails.

    `asked` counts the requests by (method, path), `faults` the failures by kind. `slow` are paths whose body stops
    half-way until the client goes; `answers` maps paths to a status that they always get.
    """

    def __init__(self, files: dict[str, bytes], share: float = 0.0, seed: int = 0, stall_s: float = 2.0) -> None:
        self.files, self.share, self.seed, self.stall_s = files, share, seed, stall_s
        self.asked: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self.slow: set[str] = set()
        self.answers: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.ending, self.lock = threading.Event(), threading.Lock()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"world": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def fault(self, method: str, path: str) -> str | None:
        """What goes wrong with this request, if anything; the same for the n-th request of a path in every run."""
        with self.lock:
            self.asked[method, path] += 1
            facts = f"{self.seed} {method} {path} {self.asked[method, path]}"
            number = int.from_bytes(hashlib.sha1(facts.encode()).digest()[:8], "big")
            if number % 10**6 >= self.share * 10**6:
                return None
            fault = FAULTS[number // 10**6 % len(FAULTS)]
            self.faults[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the play."""


class _Handler(BaseHTTPRequestHandler):
    world: FlakyServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, method: str) -> None:
        world, path = self.world, self.path.split("?")[0]
        fault = world.fault(method, path)
        data = world.files.get(path)
        if data is None and path.endswith("/"):
            links = (name for name in world.files if name.startswith(path))
            data = "".join(f'<a href="{name.removeprefix(path)}">x</a>\n' for name in links).encode() or None
        status = world.answers.get(path, 404 if data is None else 200)
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "stall":
            world.ending.wait(world.stall_s)
            self.close_connection = True
            return
        if fault in ("500", "503"):
            status = int(fault)
        body = data or b"" if status == 200 else b"no"
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if path.endswith("/") else "application/x-tar")
        for name, value in {"Content-Length": str(len(body)), **world.headers}.items():
            if value:
                self.send_header(name, value)
        if "Content-Length" in world.headers:
            self.close_connection = True
        self.end_headers()
        if method == "HEAD":
            return
        if fault == "cut" or path in world.slow:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if path in world.slow:
                world.ending.wait(60)
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing is said."""


def body(number: int, size: int = 50_000) -> bytes:
    """The bytes of shard `number`; no two are alike."""
    return hashlib.shake_128(str(number).encode()).digest(size + number)


def read_all(cache: Cache, urls: Sequence[str], order: Sequence[int], sized: bool) -> None:
    """Read the shards in that order through the cache; the process ends with status 1 when a byte is wrong."""
    for number in order:
        wanted = body(number)
        handle = cache.open(urls[number], len(wanted) if sized else None)
        try:
            assert os.pread(handle, len(wanted) + 1, 0) == wanted, number
        finally:
            os.close(handle)


def fetch_for_ever(cache: Cache, url: str) -> None:
    """A process to kill."""
    cache.fetch(url)
    time.sleep(60)
