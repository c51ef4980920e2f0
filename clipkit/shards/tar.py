"""Where the members of a tar lie: a header reader that steps over damage."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif")
MEMBERS = ("image", "txt", "json", "cls")
BLOCK = 512
LONGEST_EXTRA = 1 << 20  # bytes read of a long name or a pax header, whatever size the shard claims


@dataclass
class Index:
    """Where the members of a shard's samples lie: offset and size in bytes, [n, 4, 2] in the order of MEMBERS, -1
    where a sample lacks one; `keys` [n] as UTF-8 bytes; `lost` counts what could not be used, by reason; `suffixes`
    are all that were seen, for messages."""

    places: np.ndarray
    keys: np.ndarray
    lost: dict[str, int] = field(default_factory=dict)
    suffixes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)


def _headers(handle: int, size: int, lost: dict[str, int]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size in bytes) of each regular file of a tar; steps over damage to the next valid header."""
    at, long_name, damaged, ended = 0, None, False, False
    while at + BLOCK <= size:
        block = os.pread(handle, BLOCK, at)
        length = _length(block)
        ended = not any(block)
        if length is None:
            if not damaged and not ended:  # runs of zeros are padding; a stretch of rubble counts once
                lost["bad header"] = lost.get("bad header", 0) + 1
                damaged = True
            at += BLOCK
            continue
        damaged, kind, start = False, block[156:157], at + BLOCK
        if kind == b"L":
            long_name = os.pread(handle, min(length, LONGEST_EXTRA), start).split(b"\0")[0].decode("utf-8", "replace")
        elif kind == b"x":
            long_name = _pax_path(os.pread(handle, min(length, LONGEST_EXTRA), start)) or long_name
        elif kind in (b"0", b"\0", b"7"):
            yield long_name or _name(block), start, length
            long_name = None
        elif kind != b"g":
            long_name = None
        at = start + -(-length // BLOCK) * BLOCK
    if not ended and not damaged:  # the zeros that end a tar are not there: it may have held more
        lost.setdefault("truncated", 1)


def _length(block: bytes) -> int | None:
    """The size field of a tar header, or None when the block is no valid header."""
    try:
        if (
            len(block) < BLOCK
            or int(block[148:156].strip(b" \0") or b"-1", 8) != sum(block) - sum(block[148:156]) + 256
        ):
            return None
        if block[124] & 0x80:  # base-256, for files over 8 GB
            return int.from_bytes(block[125:136], "big")
        length = int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    return length if length >= 0 else None  # a negative size would lead back to this very header


def _name(block: bytes) -> str:
    name, prefix = block[:100].split(b"\0")[0], block[345:500].split(b"\0")[0]
    posix = block[257:263] == b"ustar\0"  # GNU's own format keeps other things in the place of the prefix
    return (prefix + b"/" + name if posix and prefix else name).decode("utf-8", "replace")


def _pax_path(data: bytes) -> str | None:
    """The path that a pax extended header gives to the next file, if any (records of `length key=value`)."""
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or len(digits) > 12 or int(digits) == 0:
            return None
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "replace")
        data = data[int(digits) :]
    return None


def scan(shard: Path) -> Index:
    """Read the headers of a shard: neighbouring members with the same key make a sample; one without image is lost."""
    lost: dict[str, int] = {}
    suffixes: set[str] = set()
    keys: list[bytes] = []
    rows: list[np.ndarray] = []
    key, row = "", np.full((len(MEMBERS), 2), -1, np.int64)

    def close() -> None:
        if key and row[0, 0] >= 0:
            keys.append(key.encode())
            rows.append(row)
        elif key:
            lost["no image"] = lost.get("no image", 0) + 1

    size = shard.stat().st_size
    handle = os.open(shard, os.O_RDONLY)
    try:
        for name, offset, length in _headers(handle, size, lost):
            folder, _, base = name.removeprefix("./").rpartition("/")
            stem, _, suffix = base.partition(".")
            suffix = suffix.lower()
            if not stem or not suffix:  # such as macOS's ._a.jpg between a.jpg and a.txt
                continue
            if offset + length > size:
                lost["truncated"] = lost.get("truncated", 0) + 1
                continue
            this = f"{folder}/{stem}" if folder else stem
            member = "image" if suffix in IMAGE_SUFFIXES else suffix
            repeated = member in MEMBERS and row[MEMBERS.index(member), 0] >= 0
            if this != key or repeated:
                close()
                key, row = this, np.full((len(MEMBERS), 2), -1, np.int64)
            suffixes.add(suffix)
            if member in MEMBERS:
                row[MEMBERS.index(member)] = offset, length
        close()
    finally:
        os.close(handle)
    places = np.stack(rows) if rows else np.empty((0, len(MEMBERS), 2), np.int64)
    return Index(places, np.array(keys, dtype=np.bytes_), lost, sorted(suffixes))
