"""The headers of a tar, found over damage: what is not usable is counted by reason and never raises.

What a member's bytes are is not looked at; a member that is a tar itself is one file, unless its own header is
damaged, and then those inside it are found.
"""

import os
import zlib
from collections import Counter
from collections.abc import Iterator

BLOCK = 512
LONGEST_EXTRA = 1 << 20  # bytes of a pax header, whatever size the shard claims
LONGEST_NAME = 4096  # bytes of a path on Linux
PADDING = range(2, 22)  # blocks of zeros where a tar ends: two, and those that fill its last record of 20
WINDOW = 4096  # bytes read at once: the headers of captions lie near to each other
SEARCH = 1 << 20  # the most bytes searched at once for the next header
LOOKS = 4096  # places looked at among them; a file full of the word `ustar` would cost minutes

_ASCII = bytes(range(128))
_FOREIGN = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
    (b"PAR1", "parquet"),
    (b"version https://git-lfs", "git-lfs pointer"),
)


class Walk:
    """Goes from header to header of a tar, and over damage to the next valid one; `lost` counts the damage."""

    def __init__(self, handle: int) -> None:
        self.handle, self.size = handle, os.fstat(handle).st_size
        self.lost: Counter[str] = Counter()
        self.at = 0  # where the next header should be
        self.body, self.end = 0, 0  # where the bytes that belong to the last header begin and end
        self.zeros = 0  # blocks of zeros that were just passed
        self.closed = False  # are there zeros here, or is it told why not?
        self.held: tuple[bytes, int, int] | None = None  # the last file; the header behind it proves its size
        self.long: bytes | None = None  # name of the next file, empty if damaged
        self.claim: int | None = None  # its size
        self.sparse = False
        self._window, self._from = b"", 0

    def files(self) -> Iterator[tuple[bytes, int, int]]:
        """(name, offset, size in bytes) of each file; the offset of links, devices and sparse files is -1."""
        if self.size < BLOCK:
            self.lost["empty file" if self.size == 0 else _foreign(self._read(0, BLOCK)) or "truncated"] += 1
            return
        while self.at + BLOCK <= self.size:
            block = self._read(self.at, BLOCK)
            length = _length(block)
            if length is None:
                self._step_over(block)
                continue
            if self.held:
                yield self.held
            if self.zeros and self.zeros not in PADDING:
                self.lost["hole of zeros"] += 1
            self.held, self.zeros, self.closed, self.body = None, 0, False, self.at + BLOCK
            self._take(block, length)
        if self.held:
            yield self.held
        if self.zeros > PADDING[-1]:
            self.lost["hole of zeros"] += 1
        if not self.closed:
            self.lost["truncated"] += 1

    def _step_over(self, block: bytes) -> None:
        """Go on behind zeros, or to the next header behind anything else."""
        self._forget()
        self.closed = True
        if not block.strip(b"\0"):
            blocks = self._zeros(self.at)
            self.zeros += blocks
            self.at += blocks * BLOCK
            return
        self.zeros = 0
        found = self._search(self.body)
        if found < self.end:
            self.held = None
            self.lost["bad size"] += 1
        else:
            self.lost[(_foreign(block) if self.at == 0 else None) or "bad header"] += 1
        self.at = found

    def _take(self, block: bytes, length: int) -> None:
        """What a valid header says: of the next file, of a file, or of something that is none."""
        kind = block[156:157]
        if kind in b"123456":  # links, devices and folders have no bytes, whatever their headers say
            length = 0
        elif self.claim is not None and kind not in b"LKxXg":
            length = self.claim
        if self.body + length > self.size:
            self._forget()
            self.at, self.closed = self._search(self.body), True
            self.end = self.body
            self.lost["truncated" if self.at == self.size else "bad size"] += 1
            return
        self.end = self.body + length
        self.at = self.body + -(-length // BLOCK) * BLOCK
        if kind == b"L":
            name = self._read(self.body, min(length, LONGEST_NAME + 2)).partition(b"\0")[0]
            self.long = name if len(name) <= LONGEST_NAME else b""
        elif kind in b"xX":
            self._take_pax(self._read(self.body, min(length, LONGEST_EXTRA)))
        elif kind not in b"Kg":
            name = _name(block) if self.long is None else self.long
            if not name or b"\0" in name or len(name) > LONGEST_NAME:
                self.lost["bad name"] += 1
            elif kind in b"0\x007" and not self.sparse:
                self.held = name, self.body, length
            elif kind != b"5":
                self.held = name, -1, 0
            self._forget()

    def _take_pax(self, data: bytes) -> None:
        records = _pax(data)
        if records is None:
            self.long = b""
            return
        self.long = records.get(b"path") or self.long
        self.sparse = any(key.startswith(b"GNU.sparse.") for key in records)
        if (digits := records.get(b"size", b"")).isdigit() and len(digits) < 20:
            self.claim = int(digits)

    def _forget(self) -> None:
        """What was said of the next file must not be taken for another one behind it."""
        self.long, self.claim, self.sparse = None, None, False

    def _read(self, at: int, length: int) -> bytes:
        if at < self._from or at + length > self._from + len(self._window):
            self._window, self._from = os.pread(self.handle, max(length, WINDOW), at), at
        return self._window[at - self._from : at - self._from + length]

    def _zeros(self, at: int) -> int:
        """How many blocks of zeros begin here."""
        begin, length = at, WINDOW
        while chunk := os.pread(self.handle, length, at):
            rest = len(chunk.lstrip(b"\0"))
            at += len(chunk) - rest
            if rest:
                break
            length = min(2 * length, SEARCH)
        return (at - begin) // BLOCK or 1

    def _search(self, at: int) -> int:
        """Where the next valid header lies, or the file's size. It may be at any byte: what was inserted or is missing
        need not be whole blocks. Headers of before 1988, which lack the word, are not found."""
        length = WINDOW  # a shard full of lies must not cost a long read for each
        while at < self.size:
            chunk = os.pread(self.handle, length + BLOCK, at)
            word = 256
            for _ in range(LOOKS):
                word = chunk.find(b"ustar", word + 1)
                if word < 0:
                    break
                if _length(chunk[word - 257 : word - 257 + BLOCK]) is not None:
                    return at + word - 257
            at += length
            length = min(2 * length, SEARCH)
        return self.size


def _length(block: bytes) -> int | None:
    """The size field of a tar header, or None when the block is no valid header."""
    if len(block) < BLOCK:
        return None
    try:
        told = int(block[148:156].strip(b" \0"), 8)
        if block[124] & 0x80:  # base-256, for files over 8 GB; a second bit means a negative number
            length = -1 if block[124] & 0x40 else int.from_bytes(block[124:136], "big") & (1 << 94) - 1
        else:
            length = int(block[124:136].partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None
    # adler32 tells the sum of bytes modulo 65521, in a twelfth of the time that `sum` takes
    differs = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * ord(" ") - told
    if differs % 65521 and (differs - 256 * len(block.translate(None, _ASCII))) % 65521:  # once summed as signed bytes
        return None
    return length if told > 0 and length >= 0 else None  # a negative size would lead back to this very header


def _name(block: bytes) -> bytes:
    name, prefix = block[:100].partition(b"\0")[0], block[345:500].partition(b"\0")[0]
    posix = block[257:263] == b"ustar\0"  # GNU's own format keeps other things in the place of the prefix
    return prefix + b"/" + name if posix and prefix else name


def _pax(data: bytes) -> dict[bytes, bytes] | None:
    """What a pax extended header says of the next file (records of `length key=value`), or None when it is damaged."""
    records, at = {}, 0
    while at < len(data) and data[at]:
        blank = data.find(b" ", at, at + 13)
        digits = data[at:blank] if blank > 0 else b""
        end = at + int(digits) if digits.isdigit() else at
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            return None
        records[key] = value
        at = end
    return records


def _foreign(head: bytes) -> str | None:
    """What a file is that only calls itself a tar, if that can be told."""
    name = next((name for magic, name in _FOREIGN if head.startswith(magic)), None)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if name is None and text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        name = "web page"  # what a storage answers when it has no such shard, or none for you
    if name is None and text.startswith(b"{"):
        name = "json"
    return name and f"{name}, not tar"
