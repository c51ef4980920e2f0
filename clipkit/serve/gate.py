"""The gate before the application: whom it answers, what it takes, and how long it waits.

A page of another place must not use the server of the person who looks at it. So without a token only loopback names
are answered (a name that was made to lead to 127.0.0.1 is another one), and what changes or reveals anything, a POST,
must come from the server's own page.
"""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipkit.serve.limits import SMALL, Limits, Rate, Refused

OPEN = ("/", "/health")  # and /page/: answered without a token, for they tell nothing of what is in the index
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every response that does not say otherwise."""


class Gate:
    """The application `app` behind its limits. With a `token`, all but the empty page asks for it; without one, only
    loopback names are answered. `refused` is told the status of what was turned away."""

    def __init__(
        self, app: ASGIApp, limits: Limits, token: str | None = None, refused: Callable[[int], None] = lambda _: None
    ) -> None:
        self.app, self.limits, self.token, self.refused = app, limits, token, refused
        self._rate = Rate(limits.rate, 5 * limits.rate)
        self._running = self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer, headers = _Answer(send), Headers(scope=scope)
        try:
            self._check(scope, headers)
            if (token := _given(scope)) is not None:
                await self._welcome(token, scope, headers, answer)
                return
            with self._place(scope, headers) as most:
                body = await self._body(receive, most)
                if body is not None:
                    await self._answered(scope, receive, answer, body)
        except Refused as refused:
            self.refused(refused.status)
            if not answer.started:
                await _send_refusal(refused, answer)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises: Refused when this client may not ask this."""
        client = scope["client"][0] if scope.get("client") else ""
        if scope["path"] != "/health" and (wait_s := self._rate.wait_s(client)):
            raise Refused(429, "too many requests", wait_s)
        host = headers.get("host", "")
        if self.token is None and not _is_loopback(_name_of(host)):
            raise Refused(403, "only asked by the name localhost or 127.0.0.1 when there is no token")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, "asked by a page of another place")
        if self.token is not None and not self._may(scope, headers):
            raise Refused(401, "a token is needed: open the address that `clipkit serve` has printed")

    def _may(self, scope: Scope, headers: Headers) -> bool:
        path = scope["path"]
        if path in OPEN or path.startswith("/page/"):
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._is_token(given.strip())
        return self._is_token(cookie_parser(headers.get("cookie", "")).get(_cookie(scope), ""))

    def _is_token(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    async def _welcome(self, token: str, scope: Scope, headers: Headers, answer: "_Answer") -> None:
        """`/?token=T` keeps the token in a cookie and leads to `/`, so that no address holds it any longer. A person
        with an old address is led there too: the page asks for the token."""
        more = {"location": "./"}
        if self._is_token(token):
            more["set-cookie"] = f"{_cookie(scope)}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000"
        elif "text/html" not in headers.get("accept", ""):
            if self.token is None:
                raise Refused(400, "this server asks for no token")
            raise Refused(401, "another token is needed: open the address that `clipkit serve` has printed")
        await _send(answer, 303, b"", more)

    @contextmanager
    def _place(self, scope: Scope, headers: Headers) -> Iterator[int]:
        """A place among the requests that run, and room for the body, of which it gives the most bytes."""
        length, most = headers.get("content-length"), self.limits.body_bytes
        if length is not None and not length.isdecimal():
            raise Refused(400, "Content-Length: a number of bytes is needed")
        size = int(length) if length is not None else most if "transfer-encoding" in headers else 0
        if length is not None and size > most:
            raise Refused(413, f"at most {self.limits.upload_mb:g} MB may be sent")
        kept = size if size > SMALL else 0
        full = self._running >= self.limits.running and scope["path"] != "/health"
        if full or (kept and self._held + kept > max(self.limits.held_bytes, kept)):
            raise Refused(503, "busy", 1)
        self._running, self._held = self._running + 1, self._held + kept
        try:
            yield most
        finally:
            self._running, self._held = self._running - 1, self._held - kept

    async def _body(self, receive: Receive, most: int) -> bytes | None:
        """The whole body; None when the client has gone."""
        body = bytearray()  # and no list of parts: they may be of one byte each
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise Refused(413, f"at most {self.limits.upload_mb:g} MB may be sent")
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self.limits.body_s:g} s") from None

    async def _answered(self, scope: Scope, receive: Receive, answer: "_Answer", body: bytes) -> None:
        """Let the application answer, unless the client goes away before, or it takes too long."""
        gone = asyncio.ensure_future(receive())  # behind the body comes nothing but the end of the connection
        left = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            if left:
                return left.pop()
            await asyncio.wait({gone})
            return {"type": "http.disconnect"}

        work = asyncio.ensure_future(self.app(scope, again, answer))
        try:
            await asyncio.wait({work, gone}, timeout=self.limits.answer_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or answer.started:
                await work
            elif not gone.done():
                raise Refused(503, f"no answer within {self.limits.answer_s:g} s", 1)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


class _Answer:
    """`send` with the headers that every response has."""

    def __init__(self, send: Send) -> None:
        self._send, self.started = send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            said = {name.lower() for name, _ in message.get("headers", [])}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in said]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await self._send(message)


async def _send_refusal(refused: Refused, answer: _Answer) -> None:
    headers = {"content-type": "application/json", "connection": "close"}
    if refused.after_s is not None:
        headers["retry-after"] = str(max(1, round(refused.after_s)))
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    await _send(answer, refused.status, json.dumps({"error": refused.why}).encode(), headers)


async def _send(answer: _Answer, status: int, body: bytes, headers: dict[str, str]) -> None:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await answer({"type": "http.response.start", "status": status, "headers": pairs})
    await answer({"type": "http.response.body", "body": body})


def _given(scope: Scope) -> str | None:
    """The token of `/?token=T`."""
    if scope["path"] != "/" or not scope["query_string"]:
        return None
    found = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=None)
    return found["token"][0] if "token" in found else None


def _cookie(scope: Scope) -> str:
    """Its name: servers at several ports of a machine share their cookies."""
    return f"clipkit-{scope['server'][1]}" if scope.get("server") else "clipkit"


def _name_of(host: str) -> str:
    """A Host header without its port."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
