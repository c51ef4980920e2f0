"""A connection that ends when the other side is too slow: the application sees a request when its headers are there,
and its answers go into a buffer, so that neither end of them is its to watch."""

import asyncio
import json

from uvicorn.protocols.http.h11_impl import H11Protocol

from clipkit.serve.limits import Limits

LEAST = 16 * 1024
"""Bytes of an answer that a reader must take in `Limits.header_s`."""
_BUSY = json.dumps({"error": "too many connections"}).encode()
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BUSY), _BUSY)
)


class Connection(H11Protocol):
    """uvicorn's, with a bound for the number of connections, for how long a request's headers may take, and for how
    long an answer may wait to be read. `within` gives one of other limits."""

    limits = Limits()
    _timer: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Turn it away when there are too many."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.limits.connections:
            transport.write(FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The clock runs from the first byte of a request until its headers are there."""
        if self._idle() and self._timer is None:
            self._watch()
        super().data_received(data)
        if not self._idle() and not self.flow.write_paused:
            self._unwatch()

    def on_response_complete(self) -> None:
        """What is unread of the answer, and of a body that nobody wanted, has its time too."""
        super().on_response_complete()
        if self._idle():
            self._watch()

    def pause_writing(self) -> None:
        """The reader is behind."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()
        if not self._idle():
            self._unwatch()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        self._unwatch()
        self._unread = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(self.limits.header_s, self._late)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread and unread <= self._unread - LEAST:
            self._watch()
        else:
            self.transport.abort()


def within(limits: Limits) -> type[Connection]:
    """The class of connections with these limits."""
    return type("Connection", (Connection,), {"limits": limits})
