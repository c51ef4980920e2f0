"""What was found."""

import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipkit import shards
from clipkit.errors import StorageError

OWN, PLACE = ("id", "key", "caption", "image_path"), ("shard", "offset", "size")
"""Columns of the records that are attributes of a hit, and no `fields`; PLACE where the records are clipkit's."""


@dataclass(frozen=True)
class Hit:
    """A row that was found: its number in the index, its score (cosine with the query), key and caption, where its
    picture's bytes lie, and what else its record tells."""

    id: int
    score: float
    key: str
    caption: str
    shard: str
    offset: int
    size: int
    fields: dict[str, Any]

    @classmethod
    def of(cls, score: float, record: dict[str, Any]) -> "Hit":
        """The hit of a record (`Records.get`), which may lack all but its `id` and `key`; no rounding exceeds 1."""
        key, caption = str(record["key"]), str(record.get("caption") or "")
        if "shard" in record:
            shard, own = str(record["shard"] or ""), (*OWN, *PLACE)
            offset, size = (int(record.get(name) or 0) for name in ("offset", "size"))
        else:  # clip-retrieval's, whose key of a file is its path
            (shard, offset, size), own = _file(key), OWN
        fields = {name: value for name, value in record.items() if name not in own and value is not None}
        return cls(record["id"], min(float(score), 1.0), key, caption, shard, offset, size, fields)

    def image(self) -> bytes:
        """The bytes of the picture, read from where it lay when it was embedded.

        Raises: StorageError when it is not there any more, or the record does not tell where.
        """
        if not self.shard:
            raise StorageError(f"key '{self.key}': its record does not tell in which file or shard its picture lies")
        return shards.read_span(self.shard, self.offset, self.size)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinite numbers."""
        fields = {name: None if _is_endless(value) else value for name, value in self.fields.items()}
        return {**asdict(self), "fields": fields}


def _file(key: str) -> tuple[str, int, int]:
    """(path, 0, size in bytes) of the file that a key names; ("", 0, 0) where it names none."""
    path = Path(key)
    with suppress(OSError, ValueError):  # it may be longer than a path can be
        if path.is_file():
            return str(path.resolve()), 0, path.stat().st_size
    return "", 0, 0


def _is_endless(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
