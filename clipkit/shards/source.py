"""WebDataset shards as one sequence of samples, read by offset."""

import glob
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import UserError
from clipkit.shards.tar import MEMBERS, Index, index


def resolve(pattern: str) -> list[Path]:
    """The shards that a folder, a glob or a brace pattern (`{00000..00012}`) names, sorted.

    Raises: UserError when there are none, or one that a brace pattern names is not there.
    """
    import braceexpand

    if (folder := Path(pattern)).is_dir():
        found = sorted(folder.glob("*.tar"))
        if not found:
            raise UserError(f"{pattern}: no .tar shards in this folder; give a folder, a glob or {{000..012}} pattern")
        return found
    found = []
    try:
        names = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern}: {error}; write a brace pattern as {{000..012}}") from None
    for name in names:
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        found += [Path(match) for match in matches]
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise UserError(f"{pattern}: {len(missing)} of {len(found)} shards are not there, the first is {missing[0]}")
    if not found:
        raise UserError(f"{pattern}: no shard matches; give a folder, a glob or a {{000..012}} pattern")
    return found


class Shards:
    """All samples of some shards that hold the wanted members: `read` one by shard and row, or by its flat number.

    `counts` [shards] are the samples of each; `lost` what was left out, by reason; `fingerprint` changes with the
    names or the counts of the shards.
    """

    def __init__(self, pattern: str, wanted: Sequence[str] = ("image",)) -> None:
        self.pattern = pattern
        self.paths = resolve(pattern)
        self.lost: dict[str, int] = {}
        self._handles: OrderedDict[int, int] = OrderedDict()
        self._indexes: list[Index] = []
        suffixes: set[str] = set()
        for path in self.paths:
            made = index(path)
            has_all = np.all(made.places[:, [MEMBERS.index(name) for name in wanted], 1] > 0, axis=1)
            if not has_all.all():
                reason = f"no {' or '.join(name for name in wanted if name != 'image') or 'image'}"
                self.lost[reason] = self.lost.get(reason, 0) + int((~has_all).sum())
            for reason, count in made.lost.items():
                self.lost[reason] = self.lost.get(reason, 0) + count
            suffixes.update(made.suffixes)
            self._indexes.append(Index(made.places[has_all], made.keys[has_all]))
        self.counts = np.array([len(made) for made in self._indexes], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        if len(self) == 0:
            raise UserError(
                f"{pattern}: no sample has {' and '.join(wanted)}; the members that are there: "
                f"{', '.join(sorted(suffixes)) or 'none'}; data.caption chooses the caption: txt, or json:KEY"
            )
        facts = json.dumps([[path.name, int(count)] for path, count in zip(self.paths, self.counts, strict=True)])
        self.fingerprint = hashlib.sha1(facts.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, number: int) -> tuple[int, int]:
        """(shard, row) of the sample with this flat number."""
        shard = int(np.searchsorted(self._starts, number, side="right")) - 1
        return shard, int(number - self._starts[shard])

    def key(self, shard: int, row: int) -> str:
        """The sample's key in its shard."""
        return self._indexes[shard].keys[row].decode("utf-8", "replace")

    def span(self, shard: int, row: int, member: str) -> tuple[int, int]:
        """(offset, size) in bytes of a member in its shard; (-1, -1) when the sample lacks it."""
        offset, size = self._indexes[shard].places[row, MEMBERS.index(member)]
        return int(offset), int(size)

    def read(self, shard: int, row: int, member: str) -> bytes:
        """The bytes of a member.

        Raises: ValueError when the sample lacks it, OSError when the file no longer holds it.
        """
        offset, size = self.span(shard, row, member)
        if offset < 0:
            raise ValueError(f"no {member}")
        data = os.pread(self._handle(shard), size, offset)
        if len(data) != size:
            raise OSError(f"{self.paths[shard]}: cut short since it was indexed")
        return data

    def name(self, number: int) -> str:
        """Shard and key of the sample with this flat number, for messages."""
        shard, row = self.place(number)
        return f"{self.paths[shard]} key {self.key(shard, row)}"

    def told_lost(self) -> str:
        """`; left out: reason: count, ...` of what could not be used, or nothing."""
        lost = ", ".join(f"{reason}: {count}" for reason, count in sorted(self.lost.items()))
        return f"; left out: {lost}" if lost else ""

    def json_keys(self, shard: int, row: int) -> set[str]:
        """The keys of a sample's `.json`; none where it has no readable one."""
        try:
            return set(json.loads(self.read(shard, row, "json")))
        except (ValueError, TypeError, OSError):
            return set()

    def _handle(self, shard: int) -> int:
        if shard not in self._handles:
            if len(self._handles) >= 256:
                os.close(self._handles.popitem(last=False)[1])
            self._handles[shard] = os.open(self.paths[shard], os.O_RDONLY)
        self._handles.move_to_end(shard)
        return self._handles[shard]

    def image(self, number: int) -> bytes:
        """The picture of the sample with this flat number."""
        return self.read(*self.place(number), "image")

    def record(self, number: int, caption: str = "txt") -> dict[str, Any]:
        """What is known of a sample without its picture: key, caption, and where the picture's bytes lie."""
        shard, row = self.place(number)
        offset, size = self.span(shard, row, "image")
        try:
            text = caption_of(self, shard, row, caption)[0]
        except ValueError:
            text = ""
        where = {"shard": str(self.paths[shard].resolve()), "offset": offset, "size": size}
        return {"key": self.key(shard, row), "caption": text, **where}

    def __del__(self) -> None:
        for handle in self.__dict__.get("_handles", {}).values():
            os.close(handle)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict()}  # descriptors do not travel to other processes


def _member(caption: str) -> str:
    return "json" if caption.startswith("json:") else "txt"


def members_for(caption: str) -> tuple[str, str]:
    """The members that a sample needs when its caption is `txt` or `json:KEY`.

    Raises: UserError for any other text.
    """
    if caption != "txt" and not (caption.startswith("json:") and len(caption) > 5):
        raise UserError(f"caption: 'txt' or 'json:KEY' is needed, got '{caption}'")
    return "image", _member(caption)


def caption_of(source: Shards, shard: int, row: int, caption: str) -> list[str]:
    """The captions of a sample: the text of its `.txt`, or the text or list of texts under a key of its `.json`.

    Raises: ValueError when there is none, or it is empty or not UTF-8.
    """
    texts: list[Any]
    if caption == "txt":
        texts = [source.read(shard, row, "txt").decode("utf-8")]
    else:
        value = json_object(source.read(shard, row, "json")).get(caption[5:])
        texts = value if isinstance(value, list) else [value]
    good = [text.strip() for text in texts if isinstance(text, str) and text.strip() and _is_unicode(text)]
    if not good:
        raise ValueError("empty caption")
    return good


def json_object(data: bytes) -> dict[str, Any]:
    """A sample's `.json`; empty where it is something else than an object.

    Raises: ValueError when it is broken.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("broken json") from error
    return value if isinstance(value, dict) else {}


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no tokenizer can encode."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
