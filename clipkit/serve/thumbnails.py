"""The pictures of an index: small ones, and their bytes as they are. Where they lie is told by records alone."""

import io
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from clipkit import hashing, images, shards
from clipkit.errors import ClipkitError, StorageError
from clipkit.search import Hit
from clipkit.shards import remote

SIDES = (128, 256, 512, 1024)
"""Longest sides of small pictures: what is asked for becomes the next of these."""
MOST = 64 * 10**6  # bytes of a picture's file
CHUNK = 256 * 1024
HELD = 64 * 10**6
"""Bytes of small pictures that stay in memory."""
KINDS = {
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
}  # fmt: skip


class Missing(Exception):
    """A picture that cannot be shown, and why."""


@dataclass(frozen=True)
class Place:
    """Where a picture's bytes lie."""

    file: str
    offset: int
    size: int

    @classmethod
    def of(cls, hit: Hit) -> "Place":
        """Of a hit.

        Raises: Missing when it is no regular file any more, or too large.
        """
        if not remote.is_remote(hit.shard) and not _is_file(hit.shard):  # so that no device and no pipe is opened
            raise Missing("the file of this picture is not there any more")
        if not 0 < hit.size <= MOST:
            raise Missing(f"the record says {hit.size} bytes; pictures of up to {MOST // 10**6} MB are shown")
        return cls(hit.shard, hit.offset, hit.size)

    def read(self, start: int = 0, most: int = MOST) -> bytes:
        """Up to `most` of the bytes from `start` on.

        Raises: Missing when they are gone.
        """
        try:
            return shards.read_span(self.file, self.offset + start, min(most, self.size - start))
        except ClipkitError as error:
            gone = "has changed since it was embedded" if isinstance(error, StorageError) else "cannot be read"
            raise Missing(f"the file of this picture is gone or {gone}") from error

    @property
    def digest(self) -> str:
        """Another one where the picture lies elsewhere."""
        return hashing.of(self.file, self.offset, self.size)


class Thumbnails:
    """Small JPEGs of pictures; the last ones stay in memory. Threads may share it."""

    def __init__(self, most: int = HELD) -> None:
        self._most, self._size, self._lock = most, 0, Lock()
        self._held: OrderedDict[tuple[Place, int], bytes] = OrderedDict()

    def jpeg(self, place: Place, side: int) -> bytes:
        """At most `side` pixels wide and high.

        Raises: Missing when it is gone, damaged or not allowed.
        """
        with self._lock:
            if (place, side) in self._held:
                self._held.move_to_end((place, side))
                return self._held[place, side]
        buffer = io.BytesIO()
        try:
            images.thumbnail(place.read(), side).save(buffer, "JPEG", quality=85)
        except ValueError as error:
            raise Missing(f"this picture cannot be read: {error}") from error
        self._keep((place, side), buffer.getvalue())
        return buffer.getvalue()

    def _keep(self, name: tuple[Place, int], data: bytes) -> None:
        with self._lock:
            self._size += len(data) - len(self._held.get(name, b""))
            self._held[name] = data
            while self._size > self._most:
                self._size -= len(self._held.popitem(last=False)[1])


def _is_file(name: str) -> bool:
    with suppress(OSError, ValueError):  # it may be longer than a path can be
        return Path(name).is_file()
    return False


def side_of(asked: int) -> int:
    """The next of SIDES."""
    return next((side for side in SIDES if side >= asked), SIDES[-1])


def kind_of(place: Place) -> str:
    """The media type of a picture that may be sent as it is.

    Raises: Missing when it is none of those that are known: records may name any file, and only pictures are shown.
    """
    head = place.read(most=1 << 20)
    try:
        images.safe_open_image(head)
    except ValueError as error:
        raise Missing(f"this picture cannot be read: {error}") from error
    return next(kind for magic, kind in KINDS.items() if head.startswith(magic))


async def chunks(size: int, read: Callable[[int, int], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    """`size` bytes in parts, of which a slow reader makes us hold one; `read` gives those from a place on."""
    for start in range(0, size, CHUNK):
        yield await read(start, CHUNK)
