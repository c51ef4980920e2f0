"""The server's process: where it listens, and how it ends."""

import errno
import os
import signal
import socket
from types import FrameType

import uvicorn
from PIL import Image

from clipkit.errors import UserError
from clipkit.log import say
from clipkit.serve.app import build
from clipkit.serve.connections import within
from clipkit.serve.service import Service

BLOCK = 64 * 2**20
"""Bytes that Pillow asks for at once. Of its usual 16 MB, glibc keeps those that are freed: 250 MB for each thread that
has decoded 49 megapixels, and nothing of what is over 32 MB."""


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address; nobody can connect before the server listens.

    Raises: UserError when the address is none of this machine's, or taken.
    """
    found = None
    try:
        first, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = first
        found = socket.socket(family, kind, socket.IPPROTO_TCP)  # named: else asyncio lets answers wait 40 ms (Nagle)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        more = "; --port 0 takes one that is free" if error.errno == errno.EADDRINUSE else ""
        raise UserError(f"--host {host} --port {port}: cannot be listened to ({error.strerror}){more}") from None
    return found


def address_of(listener: socket.socket, token: str | None) -> str:
    """What a browser opens, with the token where there is one."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{f'?token={token}' if token else ''}"


def run(service: Service, listener: socket.socket, token: str | None) -> None:
    """Answer until SIGTERM or SIGINT; then no more is taken, and what runs has `Limits.stop_s` to end."""
    Image.core.set_block_size(BLOCK)
    config = uvicorn.Config(
        build(service, token),
        http=within(service.limits),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,  # whom a request is said to be forwarded for, its sender may have made up
        server_header=False,
        timeout_graceful_shutdown=service.limits.stop_s,
    )
    # uvicorn raises the signal that has stopped it once more at its end
    before = {each: signal.signal(each, _passed) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        _Server(config, address_of(listener, token)).run([listener])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    say("stopped")
    if not service.close(service.limits.stop_s):
        os._exit(0)  # Python would wait for a thread that reads from a disk or a network which does not answer


class _Server(uvicorn.Server):
    """One that tells its address on stdout when it can be asked."""

    def __init__(self, config: uvicorn.Config, address: str) -> None:
        super().__init__(config)
        self.address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        print(self.address, flush=True)


def _passed(_: int, __: FrameType | None) -> None:
    pass
