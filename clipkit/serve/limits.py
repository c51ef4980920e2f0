"""How much the server bears, and who asks too often."""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

SMALL = 64 * 1024  # bytes of a body that no room is kept for: a query in words has some hundred


@dataclass(frozen=True)
class Limits:
    """What one server takes at most."""

    upload_mb: float = 20.0
    """The largest picture that may be sent; bodies may be a third larger, as base64 is."""
    rate: float = 200.0
    """Requests a second of one client on average, and five times as many at once. 0: any number."""
    running: int = 128
    """Requests that are answered at the same time."""
    waiting: int = 64
    """Of these, searches that wait for the model."""
    connections: int = 512
    """Connections that are open at the same time."""
    header_s: float = 10.0
    """Seconds in which a request's headers must come, and in which who reads an answer must get on."""
    body_s: float = 30.0
    """Seconds in which a request's body must come."""
    answer_s: float = 30.0
    """Seconds until an answer must begin."""
    stop_s: int = 10
    """Seconds that requests get to end when the server is stopped."""

    @property
    def body_bytes(self) -> int:
        """The most bytes of a request's body."""
        return int(self.upload_mb * 1e6 * 4 / 3) + SMALL

    @property
    def held_bytes(self) -> int:
        """The most bytes of bodies over SMALL at the same time."""
        return 4 * self.body_bytes


class Refused(Exception):
    """A request that is not answered: its status, one line of why, and seconds after which to ask again."""

    def __init__(self, status: int, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.after_s = status, why, after_s


class Rate:
    """A bucket of `burst` requests for each client, filled by `per_s` a second. An IPv6 network of 64 bits has one, for
    any machine may have all of its addresses."""

    CLIENTS = 4096  # that are remembered; who was forgotten begins with a full bucket

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s, self.burst, self.clock = per_s, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str) -> float:
        """Seconds until this client may ask; 0, and one request less in its bucket, when it may now."""
        if self.per_s <= 0:
            return 0.0
        name, now = _network(client), self.clock()
        left, then = self._left.pop(name, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.per_s)
        allowed = left >= 1
        self._left[name] = (left - allowed, now)
        if len(self._left) > self.CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self.per_s


def _network(client: str) -> str:
    with suppress(ValueError):
        address = ipaddress.ip_address(client)
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return client
