"""Which FAISS index for how many rows, in how much memory, for which recall: LOG.md has the measurements.

Words lie apart from all pictures, so that an index which looks at a part of the rows only (IVF with few probes, graphs)
finds less for words than for pictures. Up to SCANNED rows all codes are scanned, which has no such gap.
"""

import re
from dataclasses import dataclass, replace
from math import log2

import psutil

from clipkit.errors import UserError

EXACT = 20_000
"""Up to so many rows are compared one by one: at most 5 ms of CPU a query."""
SCANNED = 3_000_000
"""Up to so many rows all codes are scanned: 10 ms of CPU for a million."""
FULL_LISTS = 64
"""Lists of an index of which all are probed: they are there because FAISS filters lists only."""
PROBED_BY_GRAPH = 50_000_000
"""From so many rows on the lists are so many that a graph finds those to probe."""
FINE_LIMIT = 0.98
"""The most that 8-bit codes reach is 0.985: a higher wish takes 16-bit ones."""
SHARE = 0.5
"""Of the machine's memory, where no budget is given."""
UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
ID, LINKS = 8, 2 * 32 * 4 + 16  # bytes a row: its number, its neighbours in HNSW32


@dataclass(frozen=True)
class Plan:
    """A FAISS factory; what ranks its best rows again (`inside`: finer codes, `rows`: the vectors on disk, `none`); the
    bytes of memory that searching it takes, 0 where they are not known; and why it was chosen."""

    factory: str
    rerank: str
    bytes: int
    why: str


def memory_of(text: str) -> int:
    """Bytes of a size such as 600M or 4G, by thousands.

    Raises: UserError.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--memory {text}: a size is needed, such as 600M or 4G")
    return int(float(found[1]) * UNITS[found[2].upper()])


def told(size: float) -> str:
    """Bytes for people and for --memory, rounded up: 72M, 1.8G."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if size >= unit:
            tenths = -(-size * 10 // unit) / 10
            return f"{tenths:g}{letter}" if tenths < 10 else f"{-(-size // unit):.0f}{letter}"
    return f"{size:.0f}"


def usual_memory() -> int:
    """The budget where none is given: half of the machine's memory."""
    return int(psutil.virtual_memory().total * SHARE)


def choose(
    rows: int, width: int, memory: int, recall: float = 0.95, engine: str = "auto", on_disk: bool = True, kinds: int = 1
) -> Plan:
    """A plan for rows of D = `width` that can reach `recall` and takes, once for each of `kinds`, at most `memory`
    bytes to search. `engine` is auto, flat, hnsw, or a factory string of FAISS; `on_disk` says that the vectors stay
    where they are, to be read.

    Raises: UserError when the budget holds none, with the least that does.
    """
    if engine != "auto":
        return _by_hand(rows, width, engine)
    plans = [plan for plan in _plans(rows, width, recall) if on_disk or plan.rerank != "rows"]
    for plan in plans:
        if kinds * plan.bytes <= memory:
            return plan
    least = kinds * min(plan.bytes for plan in plans)
    both = ", pictures and texts," if kinds > 1 else ""
    raise UserError(
        f"--memory {told(memory)}: {rows} rows of width {width}{both} take {told(least)} at the least; "
        f"type --memory {told(least)}, or index fewer rows"
    )


def more(size: int, rows: int, width: int) -> int | None:
    """The bytes of the plan that finds more than one of `size` bytes; None where there is none."""
    plans = _plans(rows, width, recall=1.0) + [_flat(rows, width)]
    return min((plan.bytes for plan in plans if plan.bytes > size), default=None)


def _by_hand(rows: int, width: int, engine: str) -> Plan:
    if engine.lower() == "flat":
        return replace(_flat(rows, width), why="by hand: each row is compared")
    if engine.lower() == "hnsw":
        return Plan("HNSW32", "none", rows * (4 * width + LINKS), "by hand: a graph of 32 neighbours a row")
    rerank = "inside" if "Refine" in engine or "RFlat" in engine else "none"
    return Plan(engine, rerank, 0, "by hand")


def _flat(rows: int, width: int) -> Plan:
    return Plan("Flat", "none", 4 * rows * width, "so few rows that each is compared")


def _plans(rows: int, width: int, recall: float) -> list[Plan]:
    """From the best to the smallest."""
    lists, how = _lists(rows)
    small, large = _pieces(width, 4), _pieces(width, 2)
    plans = [_flat(rows, width)] if rows <= EXACT else []
    for codes, size in (("SQfp16", 2 * width), ("SQ8", width)):
        if codes == "SQ8" or recall > FINE_LIMIT:
            again = f"{how}, the best ranked again by {8 * size // width}-bit ones"
            factory = f"{lists},PQ{small}x4fs,Refine({codes})"
            plans.append(Plan(factory, "inside", rows * (small // 2 + ID + size), again))
    for pieces in (large, small):
        again = f"{how}, the best ranked again by the vectors on disk"
        plans.append(Plan(f"{lists},PQ{pieces}x4fs", "rows", rows * (pieces // 2 + ID), again))
    return plans


def _lists(rows: int) -> tuple[str, str]:
    """(FAISS's name of the lists, in words)."""
    if rows <= SCANNED:
        lists = FULL_LISTS if rows > EXACT else 1
        return f"IVF{lists}", "all 4-bit codes are scanned"
    lists = 2 ** round(log2(4 * rows**0.5))
    if rows <= PROBED_BY_GRAPH:
        return f"IVF{lists}", f"4-bit codes in {lists} lists"
    return f"IVF{lists}_HNSW32", f"4-bit codes in {lists} lists, found by a graph"


def _pieces(width: int, each: int) -> int:
    """How many pieces of about `each` numbers a row is cut into: of equal length, as PQ needs them."""
    return next(width // size for size in range(each, 0, -1) if width % size == 0)
