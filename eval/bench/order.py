"""Finding a global batch in a set of a billion samples: milliseconds and memory.

    python eval/bench/order.py --check

The order of the samples is a function of position, so that nothing is kept per sample. This times how long a rank takes
to find source, shard and row of all rows of one global batch of 32,768 in 1,000,000,000 samples of 100,000 shards: with
one lane, with 8, and as a mixture of 3 sources of that size. `first` is the first batch of a new epoch, for which the
shards are permuted; `warm` the median of the others. Memory is measured in a process of its own for each case, from
before the order is made to the most since. The bars: warm under 50 ms, and memory under 200 MB.
"""

import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import typer

from clipkit.data.mixture import Mixture, shares_of
from clipkit.data.order import Order

WARM_MS, MEMORY_MB = 50.0, 200.0
CASES = {"1 lane": (1, (1.0,)), "8 lanes": (8, (1.0,)), "3 sources": (1, (14825233.0, 10968539.0, 3318333.0))}
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Row:
    """What one case took."""

    case: str
    first_ms: float
    warm_ms: float
    memory_mb: float

    @property
    def ok(self) -> bool:
        """Is it within the bars?"""
        return self.warm_ms < WARM_MS and self.memory_mb < MEMORY_MB


def uneven(samples: int, shards: int) -> np.ndarray:
    """Counts of shards that differ by up to a tenth and add up to `samples`."""
    edges = np.linspace(0, samples, shards + 1)
    edges[1:-1] += np.random.default_rng(0).uniform(-0.05, 0.05, shards - 1) * samples / shards
    return np.diff(edges.astype(np.int64))


def mixture(weights: tuple[float, ...]) -> Mixture:
    """The mixture of sources with these weights."""
    return Mixture(tuple(shares_of({str(k): weight for k, weight in enumerate(weights)}).values()))


def position(samples: int, weights: tuple[float, ...], epoch: int) -> int:
    """A position at which every source is in an epoch that it was not in at those of lower numbers."""
    shares = mixture(weights).shares
    return (1 + epoch) * samples * -(-sum(shares) // min(shares))


def locator(samples: int, shards: int, lanes: int, weights: tuple[float, ...]) -> Callable[[np.ndarray], Found]:
    """positions -> (source, shard, row), as a training stream finds them."""
    sources = mixture(weights)
    orders = [Order(uneven(samples, shards), seed, 1 << 18, lanes) for seed in range(len(weights))]

    def locate(positions: np.ndarray) -> Found:
        which, place = sources.split(positions)
        shard, row = np.empty_like(place), np.empty_like(place)
        for k in np.unique(which).tolist():
            here = which == k
            shard[here], row[here] = orders[k].locate(place[here])
        return which, shard, row

    return locate


def measure(case: str, samples: int, shards: int, batch: int, calls: int) -> Row:
    """Times of single calls, and the growth of this process's memory."""
    lanes, weights = CASES[case]
    before = _most_mb()
    locate = locator(samples, shards, lanes, weights)

    def timed(step: int) -> float:
        began = time.perf_counter()
        locate(np.arange(step * batch, (step + 1) * batch))
        return 1000 * (time.perf_counter() - began)

    first, warm = [], []
    for epoch in range(3):
        start = position(samples, weights, epoch) // batch + 1
        first.append(timed(start))
        warm += [timed(start + 1 + 977 * call) for call in range(calls)]
    return Row(case, statistics.median(first), statistics.median(warm), _most_mb() - before)


def _most_mb() -> float:
    """The most memory that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: list[Row]) -> str:
    """The cases as text."""
    lines = ["case         first ms   warm ms       MB"]
    lines += [f"{r.case:<11}{r.first_ms:>10.1f}{r.warm_ms:>10.1f}{r.memory_mb:>9.1f}" for r in rows]
    return "\n".join(lines)


def verdict(rows: list[Row]) -> dict[str, Any]:
    """What the last line of output says."""
    cases = [{**asdict(row), "ok": row.ok} for row in rows]
    bars = {"warm_ms": WARM_MS, "memory_mb": MEMORY_MB}
    return {"bench": "order", "cases": cases, "bars": bars, "ok": all(row.ok for row in rows)}


def main(
    samples: Annotated[int, typer.Option(help="Samples of a source.", min=1)] = 1_000_000_000,
    shards: Annotated[int, typer.Option(help="Shards of a source.", min=1)] = 100_000,
    batch: Annotated[int, typer.Option(help="Rows of a global batch.", min=1)] = 32_768,
    calls: Annotated[int, typer.Option(help="Timed calls after the first, in each of 3 epochs.", min=1)] = 15,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a bar is missed.")] = False,
) -> None:
    """Milliseconds and memory to find a global batch in a set of a billion samples."""
    rows = []
    for case in CASES:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, case, samples, shards, batch, calls).result())
    print(table(rows))
    load = os.getloadavg()
    print(json.dumps({**verdict(rows), "samples": samples, "shards": shards, "batch": batch, "load": load}))
    raise typer.Exit(int(check and not all(row.ok for row in rows)))


if __name__ == "__main__":
    typer.run(main)
