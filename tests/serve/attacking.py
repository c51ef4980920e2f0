"""Requests that no browser makes, over plain sockets, and pictures that no encoder writes."""

import io
import json
import select
import socket
import struct
import zlib
from contextlib import suppress
from typing import Any

from PIL import Image


def raw(port: int, data: bytes, timeout: float = 20.0, end: bool = False) -> bytes:
    """All that the server says to these bytes until it closes; `end` tells it that no more will come."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        with suppress(OSError):  # it may have closed already
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
        return read(connection)


def read(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def request(method: str, path: str, body: bytes | None = None, *headers: str) -> bytes:
    """The bytes of a request that ends its connection."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """(status, content) of a request; a body that is no bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    return parted(raw(port, request(method, path, data)))


def parted(response: bytes) -> tuple[int, bytes]:
    """(status, content); the status is 0 where the server has closed without a word."""
    head, _, content = response.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0), content


def pour(port: int, head: bytes, block: bytes, count: int) -> tuple[bytes, int]:
    """(what the server says, bytes it took) to a body that does not end before it says something."""
    with socket.create_connection(("127.0.0.1", port), 20) as connection:
        connection.sendall(head)
        sent = 0
        for _ in range(count):
            if select.select([connection], [], [], 0)[0]:
                break
            try:
                connection.sendall(block)
            except OSError:
                break
            sent += len(block)
        return read(connection), sent


def png(width: int, height: int, *chunks: tuple[bytes, bytes], rows: int | None = None) -> bytes:
    """A PNG that says it is so large, of black rows (as many as `rows` says; None: all), with more chunks."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    line = b"\0" * (1 + -(-width // 8))
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(line) for _ in range(height if rows is None else rows)) + packer.flush()
    whole = [(b"IHDR", header), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in whole)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(megabytes: int) -> bytes:
    """A zlib stream of some kilobytes that unpacks to so many megabytes."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def jpeg(image: Image.Image) -> bytes:
    """Its bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()
