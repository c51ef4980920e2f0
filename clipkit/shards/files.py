"""The shards of a set as files: where their indexes are, and open descriptors to read from, local or remote."""

import contextlib
import json
import multiprocessing
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from clipkit.errors import StorageError
from clipkit.log import Progress
from clipkit.shards import names, remote
from clipkit.shards.cache import Cache
from clipkit.shards.index import Kept, cache_place, facts, index, known, read

OPEN_FILES = 256
OPEN_REMOTE = 32  # a copy that has left the cache keeps its place on the disk while it is open
OPEN_INDEXES = 1024  # mapped, so that they cost address space and not memory
DOWNLOADS = 8


class Files:
    """Shards by number: index, descriptor and size of each; remote ones come through the cache when they are asked for.

    `cache_gb` bounds the local copies of remote shards; null takes the cache's own limit.
    """

    def __init__(self, pattern: str, cache_gb: float | None = None) -> None:
        self.pattern, self.names = pattern, names.resolve(pattern)
        folder = Path(pattern)
        self.folder = folder if (folder / names.CATALOG).is_file() else None
        far = any(remote.is_remote(name) for name in self.names)
        self.cache = _cache(cache_gb) if far else None
        self._handles: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self.names)

    def is_remote(self, shard: int) -> bool:
        """Does this shard lie somewhere else?"""
        return remote.is_remote(self.names[shard])

    def kept(self, shard: int) -> Kept:
        """The index of a shard, made now if there is none.

        Raises: StorageError when a remote shard is not to be had.
        """
        found = self._indexes.get(shard)
        if found is None:
            found = self._indexes[shard] = self._find_index(shard)
            if len(self._indexes) > OPEN_INDEXES:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(shard)
        return found

    def _find_index(self, shard: int) -> Kept:
        name = self.names[shard]
        if not self.is_remote(shard):
            return index(Path(name), self._index_place(shard) if self.folder else None)
        place = self._index_place(shard)
        kept = read(place)
        while kept is None:
            assert self.cache is not None
            with contextlib.suppress(FileNotFoundError):  # another process needed the room just now
                kept = index(self.cache.fetch(name), place, name)
        return kept

    def _index_place(self, shard: int) -> Path:
        name = self.names[shard]
        place = cache_place(name)
        return self.folder / place.name if self.folder else place

    def size(self, shard: int) -> int | None:
        """Bytes of a remote shard, where its index is there to tell."""
        about = facts(self._index_place(shard))
        return None if about is None else about["bytes"]

    def about(self, shard: int) -> dict[str, Any]:
        """What is known of a shard as a whole (`Kept.about`), without opening its index where there is one."""
        return self._known(shard) or self.kept(shard).about

    def _known(self, shard: int) -> dict[str, Any] | None:
        if self.is_remote(shard):
            return facts(self._index_place(shard))
        return known(Path(self.names[shard]), self._index_place(shard) if self.folder else None)

    def handle(self, shard: int) -> int:
        """A descriptor to read the shard by; it stays open while it is among the last used.

        Raises: OSError or StorageError when the file is not to be had.
        """
        found = self._handles.get(shard)
        if found is None:
            name = self.names[shard]
            if self.is_remote(shard):
                assert self.cache is not None
                found = self.cache.open(name, self.kept(shard).about["bytes"])
            else:
                found = os.open(name, os.O_RDONLY)
            self._handles[shard] = found
            if len(self._handles) > (OPEN_REMOTE if self.is_remote(shard) else OPEN_FILES):
                os.close(self._handles.popitem(last=False)[1])
        self._handles.move_to_end(shard)
        return found

    def claims(self) -> dict[int, int]:
        """Samples of remote shards by the word of img2dataset's NAME_stats.json beside them.

        So a set of terabytes need not be fetched before the first step; a claim that proves too high is met as
        unreadable samples. It counts also where there is an index by now, so that a resumed run sees the same counts.
        Shards of which nobody says anything are absent, as are those of an index folder, which knows better.
        """
        if self.folder:
            return {}
        far = [i for i in range(len(self)) if self.is_remote(i) and self.names[i].endswith(".tar")]
        if not far or remote.read_small(_stats_of(self.names[far[0]])) is None:
            return {}
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            told = pool.map(_successes, (self.names[i] for i in far))
            return {i: n for i, n in zip(far, told, strict=True) if n is not None}

    def prepare(self, wanted: Iterable[int], workers: int | None = None) -> None:
        """Make the indexes that are not there yet, many at a time, with a progress bar; ranks of one machine share the
        work by starting at different places."""
        missing = [i for i in wanted if self._known(i) is None]
        rank, ranks = (int(os.environ.get(name, d)) for name, d in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
        start = len(missing) * rank // ranks
        missing = missing[start:] + missing[:start]
        if not missing:
            return
        with Progress("index", len(missing), hush_s=3.0) as bar:
            for done, _ in enumerate(self._make(missing, workers or max(1, (os.cpu_count() or 1) // ranks)), 1):
                bar.update(done)

    def _make(self, missing: list[int], workers: int) -> Iterator[Any]:
        near = [i for i in missing if not self.is_remote(i)]
        if self.folder or workers == 1 or len(near) < 4 * workers:
            yield from (self._find_index(i) for i in near)
        else:
            try:
                with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
                    yield from pool.map(_index_one, [self.names[i] for i in near], chunksize=4)
            except BrokenProcessPool:
                raise StorageError(f"{self.pattern}: a process that indexes was killed; is memory short?") from None
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            yield from pool.map(self._find_index, [i for i in missing if self.is_remote(i)])

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the program's end `os` may be gone
        for handle in self.__dict__.get("_handles", {}).values():
            close(handle)

    def __getstate__(self) -> dict[str, Any]:
        # neither descriptors nor mapped files travel to other processes
        return {**self.__dict__, "_handles": OrderedDict(), "_indexes": OrderedDict()}


def _index_one(name: str) -> None:
    index(Path(name))


def _stats_of(name: str) -> str:
    return name.removesuffix(".tar") + "_stats.json"


def _successes(name: str) -> int | None:
    """What img2dataset says of one of its shards."""
    told = remote.read_small(_stats_of(name))
    try:
        count = json.loads(told)["successes"] if told else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return count if type(count) is int and 0 <= count < 1 << 31 else None


def _cache(cache_gb: float | None) -> Cache:
    return Cache() if cache_gb is None else Cache(limit=round(cache_gb * 1e9))
