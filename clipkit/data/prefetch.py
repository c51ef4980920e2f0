"""Fetching remote shards before the order asks for their samples."""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clipkit.data.rows import Rows, Source
from clipkit.shards.cache import Prefetch


@contextmanager
def prefetch(rows: Rows, first: int, end: int) -> Iterator[Callable[[int], None]]:
    """Fetch the remote shards of steps first .. end - 1 before they are needed; gives what to call with the position
    that is reached."""
    far = [k for k, source in enumerate(rows.sources) if source.shards.files.cache]
    if not far:
        yield lambda position: None
        return
    files = rows.sources[far[0]].shards.files
    assert files.cache is not None
    begun: deque[int] = deque()
    ahead = sum(_shards_of_two_windows(rows.sources[k]) for k in far)
    fetcher = Prefetch(files.cache, _needed(rows, far, first, end, begun), ahead)
    count = 0

    def reached(position: int) -> None:
        nonlocal count
        while begun and begun[0] <= position:
            begun.popleft()
            count += 1
        fetcher.done(count)

    try:
        yield reached
    finally:
        fetcher.close()


def _shards_of_two_windows(source: Source) -> int:
    order = source.order
    window = order.window or order.run
    return min(len(order.counts), 2 * order.lanes * (-(-window * len(order.counts) // order.total) + 1))


def _needed(rows: Rows, far: list[int], first: int, end: int, begun: deque[int]) -> Iterator[tuple[str, int | None]]:
    """(address, bytes) of the remote shards of this rank's rows, in the order in which they are read."""
    batch, mixture = rows.settings.batch, rows.mixture
    used = mixture.used(max(first * batch, mixture.start))

    def of(k: int) -> Iterator[tuple[int, int, int]]:
        order = rows.sources[k].order
        low, high = rows.rank * order.lanes // rows.world, -(-(rows.rank + 1) * order.lanes // rows.world)
        for place, shard in order.needs(used[k], range(low, high)):
            position = mixture.reached(k, place)
            if position >= end * batch:
                return
            yield position, k, shard

    for position, k, shard in heapq.merge(*(of(k) for k in far)):
        files = rows.sources[k].shards.files
        begun.append(position)
        yield files.names[shard], files.size(shard)
