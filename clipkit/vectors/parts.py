"""Writing a vectors folder part by part, from any number of processes: the folder alone says what is done.

VECTORS/embed.json: the plan, first; then the files of each part, and last of them parts/000000.json: that it is done
VECTORS/manifest.jsonl: those of all parts, when all are done; then vectors.json, which says that the folder is whole

No file holds a time, a machine or a process, so that the same plan always comes to the same bytes.
"""

import hashlib
import io
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError
from clipkit.log import say
from clipkit.vectors import metadata
from clipkit.vectors.folder import ABOUT, KINDS, PLAN

MANIFEST, PARTS, LOCK = "manifest.jsonl", "parts", ".lock"
FOLDERS = (*KINDS.values(), "metadata", PARTS)
PATIENCE_S = 90.0
"""How long a file that another host has written may take to be seen here: NFS looks again after 60 s at the latest."""
NOT_COMPARED = ("model", "source")
"""Facts of a plan that may differ when work goes on: the same model or data by another path."""
GROWN = " (of a source that has grown: embed what is new, and `clipkit index VECTORS --add INDEX`)"
WORDS = {"digest": "another model", "made_by": "another device or other packages", "fingerprint": "other data"}


class Parts:
    """A vectors folder on its way. Its plan holds `samples` of the source and of a `part`, `kinds` (of image and text),
    `dtype` (float16 or float32), `width` (D) and `fields` (names of more columns), beside what else it depends on."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder, self.plan = folder, dict(plan)
        self.count = -(-plan["samples"] // plan["part"])

    def span(self, number: int) -> range:
        """The samples of a part."""
        size = self.plan["part"]
        return range(number * size, min((number + 1) * size, self.plan["samples"]))

    def missing(self) -> list[int]:
        """The parts that are not done."""
        return [number for number in range(self.count) if not self.is_done(number)]

    def is_done(self, number: int) -> bool:
        """Whether all files of a part are there."""
        if (self.folder / MANIFEST).is_file():
            return True
        made = self._made(number)
        return made is not None and all(
            _holds(self.folder / name, each["bytes"]) for name, each in made["files"].items()
        )

    def samples_done(self) -> int:
        """How many samples the parts that are done have, by the names in the folder."""
        with suppress(OSError):
            done = sum(name.endswith(".json") and name[0] != "." for name in os.listdir(self.folder / PARTS))
            return min(done * self.plan["part"], self.plan["samples"])
        return 0

    def write(
        self, number: int, image: np.ndarray | None, text: np.ndarray | None, records: Sequence[Mapping[str, Any]],
        left_out: Sequence[tuple[str, str]],
    ) -> None:  # fmt: skip
        """Write a part: rows [n, D] of the plan's kinds (zeros where there is nothing), a record of each row, and
        (name, reason) of what was left out. A part without rows has no files.

        Raises: StorageError when the disk refuses.
        """
        rows = {"image": image, "text": text}
        given = {kind for kind, each in rows.items() if each is not None}
        assert given == set(self.plan["kinds"]), (given, self.plan["kinds"])
        assert all(len(each) == len(records) for each in rows.values() if each is not None), len(records)
        paths = {kind: self._path(kind, number) for kind in (*self.plan["kinds"], "metadata")}
        files = {}
        for kind, path in paths.items():
            if not records:
                (self.folder / path).unlink(missing_ok=True)  # of a try that was killed
                continue
            table = kind == "metadata"
            data = metadata.as_parquet(records, self.plan["fields"]) if table else _array(rows[kind], self.plan)
            _write(self.folder / path, data)
            files[path] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        captions = sum(bool(record.get("caption")) for record in records)
        told = {"part": number, "rows": len(records), "captions": captions, "left_out": left_out, "files": files}
        for folder in {Path(path).parent for path in paths.values()}:
            _sync(self.folder / folder)
        _write(self.folder / PARTS / self._name(number, ".json"), _json(told))
        _sync(self.folder / PARTS)

    def facts(self, made: Sequence[Mapping[str, Any]], lost: Mapping[str, int]) -> dict[str, Any]:
        """What vectors.json will say: the plan and the totals of the parts `made`, and of what the source holds besides
        its samples and could not be used, `lost`."""
        left_out = Counter(lost)
        for each in made:
            left_out.update(reason for _, reason in each["left_out"])
        counts = {name: sum(each[name] for each in made) for name in ("rows", "captions")} | {"parts": self.count}
        return {**self.plan, **counts, "left_out": dict(sorted((+left_out).items()))}

    def finish(self, made: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        """Write the manifest of all parts, and vectors.json, which says that the folder is whole."""
        _write(self.folder / MANIFEST, "".join(json.dumps(each) + "\n" for each in made).encode())
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        (self.folder / LOCK).unlink(missing_ok=True)
        _sync(self.folder)
        _write(self.folder / ABOUT, _json(facts))
        _sync(self.folder)

    def records(self) -> Iterator[dict[str, Any]]:
        """What is kept of each part, in order: rows, how many of them have captions, left_out [name, reason] and files
        {path: bytes and sha256}.

        Raises: StorageError when one is not there, or damaged.
        """
        if (text := _text(self.folder / MANIFEST)) is not None:
            yield from (json.loads(line) for line in text.splitlines())
            return
        until = time.monotonic() + PATIENCE_S
        for number in range(self.count):
            while (made := self._made(number)) is None:
                if time.monotonic() > until:
                    raise StorageError(
                        f"{self.folder}: part {number} is not there; do all hosts see this folder? type the same again"
                    )
                time.sleep(1)
                with suppress(OSError):
                    os.listdir(self.folder / PARTS)  # makes a network file system look again
            yield made

    def _made(self, number: int) -> dict[str, Any] | None:
        path = self.folder / PARTS / self._name(number, ".json")
        text = _text(path)
        try:
            return None if text is None else {**json.loads(text)}
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path}: damaged ({error}); remove it, and its part is made again") from None

    def _path(self, kind: str, number: int) -> str:
        folder, suffix = (kind, ".parquet") if kind == "metadata" else (KINDS[kind], ".npy")
        return f"{folder}/{folder}_{self._name(number, suffix)}"

    def _name(self, number: int, suffix: str) -> str:
        # as many digits everywhere: other readers sort the names as texts
        return f"{number:0{max(6, len(str(self.count - 1)))}d}{suffix}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process of ours embeds into the folder meanwhile.

    Raises: UserError when one does.
    """
    from filelock import FileLock, Timeout

    refuse_finished(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise UserError(f"{folder}: another process is embedding into it; wait, or give another --out") from None
    with lock:
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing has come of it
                (folder / LOCK).unlink()
                folder.rmdir()


def begin(folder: Path, plan: Mapping[str, Any]) -> Parts:
    """Write a plan into a folder, or go on with the same one that is there; within `alone`.

    Raises: UserError when the folder holds something else, or another plan of which parts are done already.
    """
    refuse_finished(folder)
    there, plan = _plan(folder), json.loads(_json(plan))
    if there is not None and (differing := _differing(there, plan)):
        if (folder / MANIFEST).is_file() or any((folder / PARTS).glob("*.json")):
            raise UserError(
                f"{folder}: was begun with other settings:\n"
                + "\n".join(f"  {line}" for line in differing)
                + "\ntype what was typed then, remove the folder, or give another --out"
            )
        there = None
        for name in FOLDERS:  # what no part has come of
            shutil.rmtree(folder / name, ignore_errors=True)
    for name in (".", *FOLDERS):
        for left in (folder / name).glob(".*.tmp"):  # by a process that was killed
            left.unlink()
    if there is None:
        there = plan
        _write(folder / PLAN, _json(there))  # before all that is not hidden: by it the folder is known to be ours
    for kind in there["kinds"]:
        (folder / KINDS[kind]).mkdir(exist_ok=True)
    (folder / "metadata").mkdir(exist_ok=True)
    (folder / PARTS).mkdir(exist_ok=True)
    _sync(folder)
    begun = Parts(folder, there)
    if done := begun.samples_done():
        say(f"{folder}: goes on after {done:,} of {there['samples']:,} samples")
    return begun


def seen(folder: Path, plan: Mapping[str, Any]) -> Parts:
    """The same folder from another process, perhaps on another host, after `begin` there.

    Raises: UserError when this host does not see it.
    """
    until, plan = time.monotonic() + PATIENCE_S, json.loads(_json(plan))
    while (there := _plan(folder)) is None or _differing(there, plan):
        if time.monotonic() > until:
            raise UserError(
                f"{folder}: this host does not see what the first process has written there; --out has to be a folder "
                "that all hosts share"
            )
        time.sleep(1)
    return Parts(folder, there)


def refuse_finished(folder: Path) -> None:
    """Raises: UserError when the folder is whole already, or holds something that is not of an embedding."""
    names = {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else set()
    if (folder.exists() and not folder.is_dir()) or ABOUT in names or (names and PLAN not in names):
        more = GROWN if {ABOUT, PLAN} <= names else ""
        raise UserError(f"{folder}: already exists and is left as it is; remove it, or give another --out{more}")


def compared(plan: Mapping[str, Any]) -> list[str]:
    """The names of what the files depend on."""
    return [name for name in plan if name not in NOT_COMPARED]


def _differing(there: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """What of a plan is not as it was, a line each."""
    lines = []
    for name in compared({**there, **plan}):
        one, other = there.get(name), plan.get(name)
        if name in WORDS and one != other:
            lines.append(f"{WORDS[name]}: {_of(there, name)} there, {_of(plan, name)} now")
        elif one != other:
            lines.append(f"{name}: {_told(one)} there, {_told(other)} now")
    return lines


def _of(plan: Mapping[str, Any], name: str) -> str:
    said = plan.get({"digest": "model", "fingerprint": "source"}.get(name, ""))
    return f"{said} ({plan.get(name)})" if said else str(plan.get(name))


def _told(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _plan(folder: Path) -> dict[str, Any] | None:
    text = _text(folder / PLAN)
    try:
        return None if text is None else {**json.loads(text)}
    except (ValueError, TypeError) as error:
        raise StorageError(f"{folder / PLAN}: damaged ({error}); remove the folder, or give another --out") from None


def _text(path: Path) -> str | None:
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8")
    return None


def _holds(path: Path, size: int) -> bool:
    with suppress(OSError):
        return path.stat().st_size == size
    return False


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _array(rows: np.ndarray | None, plan: Mapping[str, Any]) -> bytes:
    assert rows is not None and rows.shape[1:] == (plan["width"],), None if rows is None else rows.shape
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(rows, plan["dtype"]), allow_pickle=False)
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    """A file that is whole or not there; the name is on disk after `_sync` of its folder.

    Raises: StorageError when the disk refuses, which all ranks hear of.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
