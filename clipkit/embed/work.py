"""The steps of an embedding, which may run in different processes: read, encode, write."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit import images, models
from clipkit.captions import Tokenizer
from clipkit.embed.collection import LOOKED_AT, Collection, has_captions, open_collection
from clipkit.embed.job import Job
from clipkit.embed.sources import InLines
from clipkit.errors import BadData, UserError, reason_of, told
from clipkit.log import say
from clipkit.types import Preprocess
from clipkit.vectors import parts
from clipkit.vectors.parts import Parts

FORMAT = 1
PART, LARGE_PART, LARGE = 10_000, 100_000, 10_000_000  # samples of a part, of a part of large collections, and these
GPU_BATCH = 256
FEW = 10
"""Fewer bad samples than this are borne in any collection, if not all are bad, but where none is to be."""


@dataclass(frozen=True)
class Fetched:
    """Samples that were read and not decoded: pictures by number (or why there is none), records, and token ids."""

    numbers: Sequence[int]
    content: models.Content
    records: dict[int, dict[str, Any]]
    ids: Tensor | None


@dataclass(frozen=True)
class Read:
    """The samples `numbers`: a record, a picture uint8 [n, 3, S, S] and token ids [n, T] of each that could be read,
    and (name, reason) of others."""

    numbers: Sequence[int]
    records: list[dict[str, Any]]
    pixels: Tensor | None
    ids: Tensor | None
    bad: list[tuple[str, str]]

    def pin_memory(self) -> "Read":
        """The same in memory that a GPU reads directly; the data loader's pinning thread calls this."""
        return self if self.pixels is None else replace(self, pixels=self.pixels.pin_memory())


@dataclass(frozen=True)
class Encoded:
    """The samples `numbers`: a record and rows float32 [n, D] of each that could be read, and (name, reason) of others.
    A sample without a caption has a row of zeros for its text."""

    numbers: Sequence[int]
    records: list[dict[str, Any]]
    image: np.ndarray | None
    text: np.ndarray | None
    bad: list[tuple[str, str]]


@dataclass(frozen=True)
class Reader:
    """Reads samples as a model takes them; it passes between processes."""

    collection: Collection
    kinds: tuple[str, ...]
    shape: Preprocess
    tokenizer: Tokenizer
    reduced: bool

    def read(self, numbers: Sequence[int]) -> Read:
        """These samples."""
        return self.decode(self.fetch(numbers))

    def fetch(self, numbers: Sequence[int]) -> Fetched:
        """These samples, not decoded."""
        with_image = "image" in self.kinds
        content: models.Content = dict.fromkeys(numbers, b"")
        if with_image:
            content = models.read_pictures(self.collection, numbers)
        records = {}
        for number, data in content.items():
            if isinstance(data, Exception):
                continue
            try:
                records[number] = self._record(number, data if with_image else None)
            except (ValueError, OSError) as error:
                content[number] = error
        captions = [each["caption"] for each in records.values()]
        return Fetched(numbers, content, records, self._ids(captions) if "text" in self.kinds else None)

    def _ids(self, captions: list[str]) -> Tensor:
        if not captions:
            return torch.zeros(0, self.tokenizer.context, dtype=torch.long)
        return self.tokenizer(captions)

    def _record(self, number: int, data: bytes | None) -> dict[str, Any]:
        record = self.collection.record(number)
        if data is None:
            if not record["caption"]:
                raise ValueError("no caption")
            return record
        width, height = images.size_of(data)
        found = hashlib.sha256(data).hexdigest()
        return {**record, "size": len(data), "sha256": found, "width": width, "height": height}

    def decode(self, fetched: Fetched) -> Read:
        """The same, decoded."""
        if "image" in self.kinds:
            views = models.decode_pictures(fetched.content, self.shape, self.reduced)
            good, pixels, errors = views.good, views.pixels, views.bad
        else:
            good, pixels = list(fetched.records), None
            errors = {number: error for number, error in fetched.content.items() if isinstance(error, Exception)}
        at = {number: row for row, number in enumerate(fetched.records)}
        rows = torch.tensor([at[number] for number in good], dtype=torch.long)
        ids = None if fetched.ids is None else fetched.ids[rows]
        bad = [(self.collection.name(number), reason_of(error)) for number, error in errors.items()]
        return Read(fetched.numbers, [fetched.records[number] for number in good], pixels, ids, bad)


def encode(model: models.DualEncoder, read: Read) -> Encoded:
    """The rows of samples.

    Raises: UserError when one is not finite: the model is damaged.
    """
    image = None if read.pixels is None else models.embed_views(model, read.pixels).numpy()
    text = None
    if read.ids is not None:
        worded = torch.tensor([bool(record["caption"]) for record in read.records], dtype=torch.bool)
        rows = torch.zeros(len(read.records), model.width)
        rows[worded] = models.embed_tokens(model, read.ids[worded])
        text = rows.numpy()
    for rows in (image, text):
        if rows is not None and not np.isfinite(rows).all():
            at = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise UserError(f"{read.records[at]['key']}: its embedding is not finite; the model is damaged")
    return Encoded(read.numbers, read.records, image, text, read.bad)


@dataclass(frozen=True)
class Prepared:
    """What a job comes to: the model, a reader, and the plan that embed.json keeps."""

    job: Job
    model: models.DualEncoder
    reader: Reader
    plan: dict[str, Any]


def prepare(job: Job) -> Prepared:
    """Open the source and the model of a job.

    Raises: UserError when one is not to be had, or the source has not what is asked for; BadData when too much of it is
    known to be lost.
    """
    found = open_collection(job.source, job.caption, job.names, job.images, job.what == "texts")
    _refuse_bad(job, found, found.lost)
    kinds = _kinds(job, found)
    named = models.Named(job.model)
    model = named.model
    reader = Reader(found, kinds, model.shape, model.tokenizer, job.decode == "fast")
    part = job.part or (PART if len(found) < LARGE else LARGE_PART)
    batch = job.batch or (models.CPU_BATCH if model.device.type == "cpu" else GPU_BATCH)
    plan = {
        "format": FORMAT, "model": _place(job.model), "digest": named.identity, "made_by": named.digest,
        "source": _place(job.source), "fingerprint": found.fingerprint, "samples": len(found), "kinds": kinds,
        "width": model.width, "dtype": job.dtype, "part": part, "batch": min(batch, part), "caption": found.caption,
        "fields": job.names, "decode": job.decode,
    }  # fmt: skip
    return Prepared(job, model, reader, plan)


def _kinds(job: Job, found: Collection) -> tuple[str, ...]:
    """What is embedded of image and text."""
    if isinstance(found, InLines):
        if job.what in ("images", "both"):
            raise UserError(f"{job.source}: --what {job.what}: a text file holds captions alone")
        return ("text",)
    if job.what == "images":
        return ("image",)
    captioned = has_captions(found)
    if not captioned and (job.what or job.caption):
        where = f" under '{found.caption}'" if found.caption else ""
        there = f"; it has: {', '.join(found.fields())}" if found.fields() else ""
        raise UserError(
            f"{job.source}: none of its first {min(LOOKED_AT, len(found))} samples has a caption{where}{there}; "
            "--caption says where captions are, --what images needs none"
        )
    if job.what == "texts":
        return ("text",)
    return ("image", "text") if captioned else ("image",)


def _place(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).exists() else name


@dataclass(frozen=True)
class Work:
    """A job whose folder has been begun."""

    prepared: Prepared
    parts: Parts

    @property
    def reader(self) -> Reader:
        """Reads its samples."""
        return self.prepared.reader

    def missing(self) -> list[int]:
        """The parts that are not done."""
        return self.parts.missing()

    def batches(self, part: int) -> list[range]:
        """The samples of a part that are read and encoded at once: whoever does it, the rows are the same."""
        span, size = self.parts.span(part), self.parts.plan["batch"]
        return [span[start : start + size] for start in range(0, len(span), size)]

    @property
    def lost(self) -> Counter[str]:
        """What the source holds besides and could not be used, by reason: the first of what is left out."""
        return Counter(self.reader.collection.lost)

    def refuse_bad(self, left_out: Mapping[str, int], rows: int | None = None) -> None:
        """Raises: BadData when more samples were left out than is borne of all, or no row came of them (`rows`)."""
        _refuse_bad(self.prepared.job, self.reader.collection, left_out, rows)


def _refuse_bad(job: Job, found: Collection, left_out: Mapping[str, int], rows: int | None = None) -> None:
    bad, whole = sum(left_out.values()), len(found) + sum(found.lost.values())
    few = bad < FEW and bad < whole and job.max_bad > 0
    if rows == 0 or (bad > job.max_bad * whole and not few):
        names = Path(job.out) / parts.PARTS
        named = f"; the files in {names} name them" if names.is_dir() else ""
        raise BadData(
            f"{job.source}: {bad} of {whole} samples are unreadable ({told(left_out)}), --max-bad {job.max_bad:g} "
            f"bears fewer{named}; mend them, or type the same again with a larger --max-bad"
        )


def write(work: Work, part: int, batches: Sequence[Encoded]) -> Counter[str]:
    """Write a part of the batches `work.batches(part)` in their order; gives what was left out of it, by reason."""
    records = [record for batch in batches for record in batch.records]
    bad = [each for batch in batches for each in batch.bad]
    rows = [
        np.concatenate([getattr(batch, kind) for batch in batches]) if kind in work.reader.kinds else None
        for kind in ("image", "text")
    ]
    work.parts.write(part, rows[0], rows[1], records, bad)
    return Counter(reason for _, reason in bad)


def finish(work: Work) -> dict[str, Any]:
    """Make the folder whole; what its vectors.json says.

    Raises: BadData above `max_bad`; StorageError when a part is not there.
    """
    made = list(work.parts.records())
    facts = work.parts.facts(made, work.lost)
    work.refuse_bad(facts["left_out"], facts["rows"])
    work.parts.finish(made, facts)
    if facts["left_out"]:
        named = f"; {parts.MANIFEST} names them" if Counter(facts["left_out"]) != work.lost else ""
        say(f"{work.prepared.job.source}: left out {told(facts['left_out'])}{named}")
    return facts


def workers_of(asked: int | None) -> int:
    """Processes that decode before a GPU: all cores, shared by the processes of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(32, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))) if asked is None else asked
