"""The kinds of sources: shards, files, tables of them, and lines of text."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipkit import hashing, sets, shards
from clipkit.errors import UserError

CAPTIONS = ".txt"


class InShards:
    """The samples of shards that hold a picture, and where `texts_only` a caption too."""

    def __init__(self, pattern: str, caption: str | None, names: Sequence[str], texts_only: bool) -> None:
        self.caption, self._names = caption or "txt", list(names)
        image, text = shards.members_for(self.caption)
        self.source = shards.Shards(pattern, [text if texts_only else image])
        self.lost: Mapping[str, int] = dict(self.source.lost)
        files = self.source.files
        facts = [[_stamp(name), int(n)] for name, n in zip(files.names, self.source.counts, strict=True)]
        self.fingerprint = hashing.of(facts, texts_only)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, number: int) -> str:
        """Shard and key."""
        return self.source.name(number)

    def image(self, number: int) -> bytes:
        """The bytes of a picture."""
        return self.source.image(number)

    def record(self, number: int) -> dict[str, Any]:
        """Key, caption, place of the picture in the shard, and keys of the sample's JSON."""
        shard, row = self.source.place(number)
        where = self.source.where(number)
        try:
            caption = shards.caption_of(self.source, shard, row, self.caption)[0]
        except (ValueError, OSError):
            caption = ""
        found = {"image_path": where["key"], "caption": caption, **where}
        if self._names:
            try:
                about = shards.json_object(self.source.read(shard, row, "json"))
            except (ValueError, OSError):
                about = {}
            found |= {name: about.get(name) for name in self._names}
        return found

    def fields(self) -> list[str]:
        """The keys of the first sample's JSON."""
        return sorted(shards.json_keys(self.source, *self.source.place(0)))


class InFiles(sets.Files):
    """Pictures that lie as files; a `.txt` of the same name is the caption. A key is the path in the folder, without
    its suffix where no other file differs in it alone."""

    caption: str | None = "txt"

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        super().__init__(paths, [])
        self.root = root.resolve()
        self.lost: Mapping[str, int] = {}
        self._inside = [path.relative_to(root).as_posix() for path in paths]
        self._twice = _twice(self._inside)
        self.fingerprint = hashing.of(str(self.root), self._inside)

    def record(self, number: int) -> dict[str, Any]:
        """Key, caption and path."""
        try:
            caption = _text(self.paths[number].with_suffix(CAPTIONS).read_bytes().decode("utf-8-sig", "replace"))
        except OSError:
            caption = ""
        path = f"{self.root}/{self._inside[number]}"
        key = _key(self._inside[number], self._twice)
        return {"image_path": path, "key": key, "caption": caption, **_whole(path)}


class InTable:
    """The rows of a table that `clipkit.sets` reads; pictures lie as files, or inside of Parquet."""

    def __init__(
        self, source: str, found: "sets.InParquet | sets.Files", caption: str | None, names: Sequence[str]
    ) -> None:
        self.source, self.samples, self._names = source, found, list(names)
        self.lost: Mapping[str, int] = dict(found.about.lost)
        self.caption = caption or found.about.caption
        self._here = Path.cwd()
        self._paths = [os.path.normpath(path).replace(os.sep, "/") for path in found.paths]
        self._root = _root(self._paths)
        self._twice = _twice([path[self._root :] for path in self._paths])
        files = found.files if isinstance(found, sets.InParquet) else _tables(source)
        self.fingerprint = hashing.of([_stamp(name) for name in files], self._paths[:1], len(found))

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, number: int) -> str:
        """File and row."""
        return self.samples.name(number)

    def image(self, number: int) -> bytes:
        """The bytes of a picture."""
        return self.samples.image(number)

    def record(self, number: int) -> dict[str, Any]:
        """Key, caption, path and columns; a picture inside of Parquet has no place in the file."""
        field = self.samples.field
        caption = _text(field(number, self.caption)) if self.caption else ""
        if self._paths:
            path = str(self._here / self.samples.paths[number])
            key = _key(self._paths[number][self._root :], self._twice)
            found = {"image_path": path, "key": key, "caption": caption, **_whole(path)}
        else:
            assert isinstance(self.samples, sets.InParquet)
            key = self.samples.key(number)
            found = {"image_path": key, "key": key, "caption": caption}
        return {**found, **{name: field(number, name) for name in self._names}}

    def fields(self) -> list[str]:
        """The columns."""
        return self.samples.fields()


class InLines:
    """The lines of a text file, each a caption; its number, from 1, is the key. Empty ones are left out and counted."""

    caption: str | None = None

    def __init__(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            lines = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{path}: line {line}: not UTF-8 text") from None
        self.path = path
        self._lines = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
        empty = len(lines) - len(self._lines) - (not lines[-1])
        self.lost: Mapping[str, int] = {"empty line": empty} if empty else {}
        self.fingerprint = hashing.of(str(path.resolve()), hashing.of_bytes(data))
        if not self._lines:
            raise UserError(f"{path}: holds no line of text; captions are needed, one a line")

    def __len__(self) -> int:
        return len(self._lines)

    def name(self, number: int) -> str:
        """File and line."""
        return f"{self.path} line {self._lines[number][0]}"

    def image(self, number: int) -> bytes:
        """Nothing."""
        raise ValueError("no picture")

    def record(self, number: int) -> dict[str, Any]:
        """Key and caption."""
        line, text = self._lines[number]
        return {"key": str(line), "caption": text}

    def fields(self) -> list[str]:
        """None."""
        return []


def _tables(source: str) -> list[str]:
    """The files that a table is read from."""
    if not os.path.isdir(source):
        return [source]
    return [path for name in sets.METADATA if os.path.isfile(path := os.path.join(source, name))]


def _stamp(name: str) -> list[Any]:
    """What changes with a local file; of a remote one its address."""
    if shards.is_remote(name):
        return [name]
    facts = os.stat(name)
    return [os.path.abspath(name), facts.st_size, facts.st_mtime_ns]


def _whole(path: str) -> dict[str, Any]:
    """Where a picture lies that is a file."""
    size = None
    with suppress(OSError):  # it will be met on reading, if it is read
        size = os.path.getsize(path)
    return {"shard": path, "offset": 0, "size": size}


def _text(value: Any) -> str:
    """A caption, of several the first; empty where there is none."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, str) and one.strip():
            return one.strip().encode("utf-8", "replace").decode()
    return ""


def _root(paths: Sequence[str]) -> int:
    """How many letters of all paths are the folder that they share."""
    if not paths:
        return 0
    shared = os.path.commonprefix([min(paths), max(paths)])
    return shared.rfind("/") + 1


def _twice(paths: Sequence[str]) -> frozenset[str]:
    """The paths without their suffix that several files have."""
    counts = Counter(os.path.splitext(path)[0] for path in paths)
    return frozenset(path for path, n in counts.items() if n > 1)


def _key(path: str, twice: frozenset[str]) -> str:
    stem = os.path.splitext(path)[0]
    return path if stem in twice else stem
