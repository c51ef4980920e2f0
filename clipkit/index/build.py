"""Building an index folder in bounded memory, on one process or on many that see the folder."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipkit import distributed
from clipkit.errors import UserError
from clipkit.index import choose, prompts, tune
from clipkit.index.choose import Plan
from clipkit.log import Progress, say
from clipkit.vectors import engine, placing, recording, records
from clipkit.vectors.joined import KEPT, Joined, Rows, write_metadata
from clipkit.vectors.stored import ABOUT, FORMAT, HIDDEN

WORKING = 700_000_000
"""Bytes that Python, torch, FAISS, a block of rows and the queries of the tuning take, whatever is built."""
LEAST = 1_000_000_000
"""Bytes that building may take where less is allowed: what is asked for bounds the index that is searched."""
GROWING = 3
"""FAISS copies its codes into twice the room when that is full."""
TRAINING = 4
"""A sample takes at most this part of the budget."""


def build(
    source: str | Path | Sequence[str | Path] | Rows,
    out: str | Path,
    *,
    recall: float = 0.95,
    memory: int | None = None,
    k: int = 10,
    kinds: Sequence[str] | None = None,
    engine: str = "auto",
    queries: str | Path | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Build the index folder `out` over vectors folders, and tune it to find the share `recall` of the `k` nearest;
    gives what its index.json says.

    `memory` (bytes; null: half of the machine's) bounds what searching takes for all `kinds` (null: those that are
    there), and what each process that builds takes, but for 1 GB that it may always take. `engine` is auto, flat,
    hnsw or a FAISS factory. `queries` is a file with a query a line, to tune with. `replace`: takes an
    index's place. Under `accelerate launch` each rank builds files of its own, where all see the folders, and the first
    gets the facts.
    Raises: UserError when the source is none, `out` exists, or the budget holds no index of so many rows.
    """
    distributed.join()
    place = Path(out)
    memory = memory or choose.usual_memory()
    with distributed.together():
        rows = _opened(source)
        placing.refuse(place, replace)
        chosen = _kinds(rows, kinds)
        asked = prompts.of(rows, chosen, queries)
        plan = choose.choose(len(rows), rows.width, memory, recall, engine, bool(rows.folders), len(chosen))
    with _beside(place, replace) as work:
        about = {
            "format": FORMAT, "model": rows.about.get("model"), "digest": rows.about.get("digest"), "rows": len(rows),
            "width": rows.width, "vectors": rows.folders,
            "asked": {"recall": recall, "memory": memory, "k": k, "engine": engine}, "kinds": {},
        }  # fmt: skip
        for kind in chosen:
            files = _files(rows, kind, plan, work, memory)
            about["kinds"][kind] = {**asdict(plan), "knobs": {}, "files": files}
        with distributed.together():
            if distributed.rank() == 0:
                _describe(rows, work, about)
        return tune.retune(work, rows, asked)


def _opened(source: str | Path | Sequence[str | Path] | Rows) -> Rows:
    rows = source if isinstance(source, Rows) else Joined([source] if isinstance(source, str | Path) else source)
    if not len(rows):
        raise UserError(f"{source}: holds no rows, there is nothing to index")
    return rows


def _kinds(rows: Rows, wanted: Sequence[str] | None) -> list[str]:
    if missing := [kind for kind in wanted or () if kind not in rows.kinds]:
        raise UserError(f"--kind {missing[0]}: the vectors are of {' and '.join(rows.kinds)}")
    return [kind for kind in rows.kinds if not wanted or kind in wanted]


@contextmanager
def _beside(place: Path, replace: bool) -> Iterator[Path]:
    """The folder to write into, which the first rank makes and puts into its place, for all ranks."""
    with ExitStack() as stack:
        work = None
        with distributed.together():
            if distributed.rank() == 0:
                work = stack.enter_context(placing.beside(place, replace))
        yield Path(distributed.gather_texts(str(work))[0])
        with distributed.together():  # nobody goes on before it is in its place
            stack.close()


def spans(count: int, bytes_each: float, memory: int, world: int = 1) -> list[range]:
    """The rows of each FAISS file: as few files as can be built in the memory, and one for each rank at least."""
    most = max(int((max(memory, LEAST) - WORKING) / (GROWING * bytes_each)), 1)
    files = min(max(ceil(count / most), world), count)
    return [range(i * count // files, (i + 1) * count // files) for i in range(files)]


def _files(rows: Rows, kind: str, plan: Plan, work: Path, memory: int) -> list[str]:
    """Build the FAISS files of a kind, each rank its own; gives all names."""
    parts = spans(len(rows), (plan.bytes or 5 * len(rows) * rows.width) / len(rows), memory, distributed.world())
    names = [f"{kind}.index" if i == 0 else f"{kind}.{i}.index" for i in range(len(parts))]
    trained = work / f".{kind}.trained"
    with distributed.together():
        if distributed.rank() == 0:
            engine.write(_trained(rows, kind, plan, memory), trained)
    nothing: list[np.ndarray] = []
    with distributed.together():
        for name, span in list(zip(names, parts, strict=True))[distributed.rank() :: distributed.world()]:
            index = engine.read(trained, mapped=False)
            engine.fill(index, _told(rows, kind, span, nothing))
            engine.write(index, work / name)
            del index
    absent = distributed.gather_uneven(torch.from_numpy(np.concatenate([*nothing, np.zeros(0, np.int64)])))
    if distributed.rank() == 0:
        trained.unlink()
        if len(absent):
            hidden = np.zeros(len(rows), bool)
            hidden[absent.numpy()] = True
            np.save(work / HIDDEN.format(kind=kind), hidden)
    return names


def _trained(rows: Rows, kind: str, plan: Plan, memory: int) -> Any:
    """An empty FAISS index, trained on a sample of the rows that are there."""
    most = max(memory, LEAST) // TRAINING // (4 * rows.width)

    def draw(count: int) -> np.ndarray:
        say(f"{kind}.index: training {plan.factory}")
        _, sample = rows.sample(kind, min(count, most))
        there = sample[sample.any(1)]
        if not len(there):
            raise UserError(f"the {kind} rows are all zeros; leave them out with --kind")
        return there

    return engine.make(plan.factory, rows.width, draw)


def _told(rows: Rows, kind: str, span: range, nothing: list[np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """The blocks of rows, with a bar; the numbers of rows of zeros are put into `nothing`."""
    with Progress(f"{kind}.index", max(len(span), 1), hush_s=5.0) as bar:
        for first, block in rows.blocks(kind, span.start, span.stop):
            nothing.append(first + np.flatnonzero(~block.any(1)))
            yield first, block
            bar.update(first + len(block) - span.start)


def _describe(rows: Rows, work: Path, about: dict[str, Any]) -> None:
    """Write all but the FAISS files."""
    write_metadata(rows, work / "metadata")
    recording.write(work / records.FILE, rows.tables())
    if rows.kept is not None:
        np.save(work / KEPT, np.asarray(rows.kept, np.int64))
    (work / ABOUT).write_text(json.dumps(about, indent=1), encoding="utf-8")
