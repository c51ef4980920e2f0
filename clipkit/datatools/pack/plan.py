"""The plan of a pack, on disk: every row with what it needs to become a sample, and which rows make which shard.

It is read by memory map, so that a hundred million rows need no memory; only what is asked for is turned into Python
objects. What a shard holds follows from the plan alone, so that shards can be made in any order, by any process.
"""

import hashlib
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from clipkit.datatools.pack.rows import Row, Source, encoded
from clipkit.errors import UserError
from clipkit.log import say

if TYPE_CHECKING:
    import pyarrow

PLAN, ROWS, BLOB, LEFT_OUT = "plan.json", "rows.arrow", "images.bin", "left_out.jsonl"
BATCH = 4096  # rows of a record batch: a row's batch follows from its number
EVERY_S = 10.0  # between two lines that tell how far the reading of the source is


class Job(NamedTuple):
    """A shard to make: samples first .. stop - 1 of a split; their keys are `keys` + those numbers."""

    split: str
    number: int
    first: int
    stop: int
    keys: int

    @property
    def name(self) -> str:
        """The shard's path below the output folder."""
        return f"{self.split}/{self.number:05d}.tar" if self.split else f"{self.number:05d}.tar"


class Record(NamedTuple):
    """A planned row: where the image lies (`size` bytes from `offset`; all of it where offset is -1), its captions or
    the file that holds one, and the rest as JSON."""

    id: str
    image: str
    offset: int
    size: int
    captions: list[str]
    caption_file: str
    extra: bytes


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is there whole, or not at all, whenever the process or the power ends."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def in_val(group: str, share: float) -> bool:
    """Whether a group belongs to the validation split: by its hash alone, the same in every run and any order."""
    draw = int.from_bytes(hashlib.sha1(group.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return draw < share * 2**64


def write_plan(source: Source, work: Path, facts: Mapping[str, Any], val: float) -> dict[str, Any]:
    """Read the whole source once and leave the plan in `work`; returns `facts` and the plan's own, as plan.json has
    them: rows of each split, "left_out" by reason and the "first" one, "ignored", "source".

    Raises: UserError when the source has no rows, or a split none.
    """
    where, splits = facts["settings"]["source"], ("train", "val") if val else ("",)
    names = [ROWS, BLOB, LEFT_OUT, *map(_numbers, splits)]
    files = {name: (work / name).open("wb") for name in names}
    counts, reasons, first = Counter(dict.fromkeys(splits, 0)), Counter[str](), ""
    try:
        rows = _Rows(files[ROWS], files[BLOB])
        told, seen = time.monotonic(), 0
        for seen, row in enumerate(source.rows(), start=1):
            if time.monotonic() - told > EVERY_S:
                told = time.monotonic()
                say(f"reading the source: {seen} rows so far")
            if row.problem:
                first = first or f"{row.id}: {row.problem}"
                reasons[row.problem] += 1
                files[LEFT_OUT].write(left_out_line(row.id, row.problem))
                continue
            split = ("val" if in_val(row.group, val) else "train") if val else ""
            files[_numbers(split)].write(rows.count.to_bytes(8, "little"))
            counts[split] += 1
            rows.add(row)
        rows.close()
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    finally:
        for file in files.values():
            file.close()
    if not seen:
        raise UserError(f"{where}: holds no rows; give another source")
    empty = [split for split, count in counts.items() if not count]
    if val and empty and counts.total():
        raise UserError(
            f"{where}: --val {val} leaves no sample for {empty[0]} (of {counts.total()}, drawn by group); "
            "type another share, or none"
        )
    own = {"rows": dict(counts), "left_out": dict(reasons), "first": first, "ignored": source.ignored}
    plan = {**facts, "source": source.fingerprint(), **own}
    write_json(work / PLAN, plan)
    return plan


def left_out_line(id: str, reason: str) -> bytes:
    """A line of left_out.jsonl."""
    return encoded({"id": id, "reason": reason}) + b"\n"


def _numbers(split: str) -> str:
    return f"{split or 'all'}.rows"


class _Rows:
    """Rows on their way into an Arrow file, batch by batch; images that lie in no file go into `blob`."""

    def __init__(self, file: BinaryIO, blob: BinaryIO) -> None:
        import pyarrow

        text, binary, number = pyarrow.string(), pyarrow.binary(), pyarrow.int64()
        kinds = (text, binary, number, number, pyarrow.list_(text), binary, binary)
        self.schema = pyarrow.schema(list(zip(Record._fields, kinds, strict=True)))
        self.writer = pyarrow.ipc.new_file(file, self.schema)
        self.blob, self.end, self.count = blob, 0, 0
        self.held: list[tuple[Any, ...]] = []

    def add(self, row: Row) -> None:
        image, offset, size = os.fsencode(row.image), row.offset, row.size
        if row.data is not None:
            image, offset, size = b"", self.end, len(row.data)
            self.blob.write(row.data)
            self.end += size
        extra = dict(row.extra)
        if len(row.captions) > 1:
            if "captions" in extra:
                extra["captions_column"] = extra["captions"]
            extra["captions"] = list(row.captions)
        text = list(row.captions)
        self.held.append((row.id, image, offset, size, text, os.fsencode(row.caption_file), encoded(extra)))
        self.count += 1
        if len(self.held) == BATCH:
            self._write()

    def _write(self) -> None:
        import pyarrow

        values = zip(*self.held, strict=True)
        columns = [pyarrow.array(column, kind) for column, kind in zip(values, self.schema.types, strict=True)]
        self.writer.write_batch(pyarrow.record_batch(columns, schema=self.schema))
        self.held = []

    def close(self) -> None:
        if self.held:
            self._write()
        self.writer.close()


class Plan:
    """The plan that `write_plan` left in `work`; `facts` is its plan.json."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.facts: dict[str, Any] = json.loads((work / PLAN).read_text(encoding="utf-8"))
        self._reader: pyarrow.RecordBatchFileReader | None = None

    def jobs(self, per_shard: int) -> list[Job]:
        """All shards: each split is cut into shards of equal size (up to one sample), at most `per_shard`."""
        jobs, keys = [], 0
        for split, count in self.facts["rows"].items():
            shards = -(-count // per_shard)
            edges = [count * i // shards for i in range(shards + 1)] if shards else []
            jobs += [Job(split, i, edges[i], edges[i + 1], keys) for i in range(shards)]
            keys += count
        return jobs

    def records(self, job: Job, order: Callable[[np.ndarray, int], np.ndarray]) -> Iterator[Record]:
        """The rows of a shard in the shard's order; `order` tells which row of a split of so many stands at a place."""
        count = self.facts["rows"][job.split]
        places = order(np.arange(job.first, job.stop, dtype=np.int64), count)
        numbers = np.memmap(self.work / _numbers(job.split), "<i8", "r", shape=(count,))[places]
        found: list[tuple[Any, ...]] = [()] * len(numbers)
        for batch in np.unique(numbers // BATCH):
            here = np.flatnonzero(numbers // BATCH == batch)
            rows = self._batch(int(batch)).take(_indices(numbers[here] % BATCH))
            for place, row in zip(
                here, zip(*(column.to_pylist() for column in rows.columns), strict=True), strict=True
            ):
                found[place] = row
        blob = str(self.work / BLOB)
        for id, image, offset, size, captions, caption_file, extra in found:
            path = os.fsdecode(image) if image else blob
            yield Record(id, path, offset, size, captions, os.fsdecode(caption_file), extra)

    def _batch(self, number: int) -> "pyarrow.RecordBatch":
        import pyarrow

        if self._reader is None:
            self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.work / ROWS)))
        return self._reader.get_batch(number)


def _indices(numbers: np.ndarray) -> "pyarrow.Array":
    """As pyarrow.array(numbers), which would import pandas (2 s) to ask whether that is one of its arrays."""
    import pyarrow

    return pyarrow.Array.from_buffers(pyarrow.int64(), len(numbers), [None, pyarrow.py_buffer(numbers)])
