"""`clipkit data index SRC`: where each sample lies, found before training asks, and on wish whether it can be read."""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipkit.config import write_atomic
from clipkit.errors import StorageError, UserError
from clipkit.log import Progress
from clipkit.shards.cache import Cache
from clipkit.shards.index import LEVELS, Kept, cache_place, index, index_places, read, write
from clipkit.shards.names import CATALOG, resolve
from clipkit.shards.remote import is_remote, size_of

Level = Literal["none", "header", "decode"]


@dataclass(frozen=True)
class Told:
    """What is known of one shard after indexing."""

    name: str
    bytes: int
    samples: int
    lost: dict[str, int]


@dataclass(frozen=True)
class _Task:
    name: str
    out: Path | None
    verify: Level
    cache: Cache

    def __call__(self) -> Told:
        place = self.out / cache_place(self.name).name if self.out else None
        kept = self._index(place)
        if LEVELS.index(kept.about["verified"] or "none") < LEVELS.index(self.verify):
            kept = self._verify(kept, place)
        return Told(self.name, kept.about["bytes"], len(kept), kept.about["lost"])

    def _index(self, place: Path | None) -> Kept:
        if not is_remote(self.name):
            return index(Path(self.name), place)
        place = place or cache_place(self.name)
        kept, now = read(place), size_of(self.name)
        if kept is not None and now in (None, kept.about["bytes"]):
            return kept
        return index(self.cache.fetch(self.name, now), place, self.name)

    def _verify(self, kept: Kept, place: Path | None) -> Kept:
        """Look at every picture, and keep an index of those that can be read."""
        from clipkit import images

        bad: dict[int, str] = {}
        sides = np.zeros((len(kept), 2), np.int32)
        far = is_remote(self.name)
        handle = self.cache.open(self.name, kept.about["bytes"]) if far else os.open(self.name, os.O_RDONLY)
        try:
            for row in range(len(kept)):
                offset, size = (int(column[row]) for column in kept.spans["image"])
                data = os.pread(handle, size, offset)
                try:
                    sides[row] = images.size_of(data)
                    if self.verify == "decode":
                        images.decode(data)
                except ValueError as error:
                    bad[row] = str(error)
        finally:
            os.close(handle)
        table = kept.verified(bad, self.verify, {"width": sides[:, 0], "height": sides[:, 1]})
        usual = [cache_place(self.name)] if far else index_places(Path(self.name))
        for path in [place] if place else usual:
            if write(table, path) and (again := read(path)):
                return again
        raise StorageError(f"{self.name}: its index could not be written; free some space, or give a folder with --out")


def index_all(
    source: str, out: str | None = None, verify: Level = "none", workers: int | None = None
) -> dict[str, Any]:
    """Index all shards of a source; with `verify` also read every picture's header, or decode it, and leave out what
    cannot be read. The indexes lie beside the shards (those of remote ones in the user's cache), or in the folder
    `out`, which can then be given in place of the shards. Gives the counts.

    Raises: UserError when there are no shards or `verify` is unknown, StorageError when nothing can be written.
    """
    if verify not in LEVELS:
        raise UserError(f"--verify: one of {', '.join(LEVELS)} is needed, got '{verify}'")
    names = resolve(source)
    folder = Path(out) if out else None
    if verify != "none" and not folder and any(is_remote(name) for name in names):
        raise UserError(
            f"{source}: --verify of remote shards needs --out FOLDER, which then stands for them on every machine; "
            "in the cache of one machine it would give the others other samples"
        )
    if folder:
        if any(folder.glob("*.tar")):
            raise UserError(f"--out {folder}: holds shards; give a folder of its own, which then stands for the shards")
        names = [name if is_remote(name) else str(Path(name).resolve()) for name in names]
        folder.mkdir(parents=True, exist_ok=True)
    cache = Cache()
    told: list[Told] = []
    with Progress("index", len(names)) as bar:
        for one in _run([_Task(name, folder, verify, cache) for name in names], workers or os.cpu_count() or 1):
            told.append(one)
            bar.update(len(told), f"{sum(t.samples for t in told):,} samples")
    if folder:
        lines = [{"name": t.name, "bytes": t.bytes, "samples": t.samples, "lost": t.lost} for t in told]
        write_atomic(folder / CATALOG, "".join(json.dumps(line) + "\n" for line in lines))
    lost = sum((Counter(t.lost) for t in told), Counter[str]())
    return {
        "shards": len(told),
        "samples": sum(t.samples for t in told),
        "bytes": sum(t.bytes for t in told),
        "left_out": dict(sorted(lost.items())),
    }


def _run(tasks: list[_Task], workers: int) -> Iterator[Told]:
    if workers == 1 or len(tasks) == 1:
        yield from (task() for task in tasks)
        return
    try:
        with ProcessPoolExecutor(min(workers, len(tasks)), multiprocessing.get_context("fork")) as pool:
            yield from pool.map(_call, tasks)
    except BrokenProcessPool:
        raise StorageError("a process that indexes was killed; is memory short? try --workers 1") from None


def _call(task: _Task) -> Told:
    return task()
