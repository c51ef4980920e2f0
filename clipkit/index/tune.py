"""Settings of an index for a wanted recall, found with queries like those that people ask.

The cheapest setting is taken that finds at least the wished share of the exact neighbours of half of the queries, by
one standard error more, and as much of the other half's. Pictures are asked with captions, captions with pictures.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipkit import distributed
from clipkit.config import write_atomic
from clipkit.index import choose
from clipkit.log import Progress, say
from clipkit.vectors import engine, exact
from clipkit.vectors.engine import Engine, Knobs
from clipkit.vectors.joined import Rows
from clipkit.vectors.stored import ABOUT, Stored

MAIN, SIDE, TIMED = 500, 100, 16
"""Queries of the other kind, of the same kind, and how many are timed one by one."""
LOOKED_AT = 1 << 16  # rows, to find so many that have a caption
FACTORS = (16, 32, 64, 128, 256)
"""Rows that are ranked again, for each answer that is wanted."""
EFS = (16, 32, 64, 128, 256, 512, 1024)
CODE_NS, RANK_NS = 10, 60  # to scan a row's codes, and to rank one again: for the order of settings only
FLAT = "Flat"
OTHER = {"image": "text", "text": "image"}
NAMES = {"text": "captions", "image": "pictures"}


@dataclass(frozen=True)
class Asked:
    """Unit rows: `main` [Q, D] chooses, `side` [S, D] of the index's own kind is told only; `on` names what main is.
    `like`: main is of the index's own kind too, because there is nothing else."""

    main: np.ndarray
    side: np.ndarray
    on: str
    like: bool = False


def queries(source: Rows, kind: str, prompts: np.ndarray | None = None) -> Asked:
    """What to ask an index of a kind: `prompts` where they are given, else rows of the other kind, else of its own."""
    side = _present(source, kind, SIDE, seed=2)
    if prompts is not None and kind == "image":
        return Asked(prompts, side, "prompts")
    if (other := OTHER[kind]) in source.kinds and len(rows := _present(source, other, MAIN, seed=1)):
        return Asked(rows, side, NAMES[other])
    return Asked(_present(source, kind, MAIN, seed=2), side[:0], NAMES[kind], like=True)


def _present(source: Rows, kind: str, count: int, seed: int) -> np.ndarray:
    """Up to `count` rows [n, D] drawn evenly from those that are there, in no order."""
    tried = count
    while True:
        _, rows = source.sample(kind, tried, seed)
        there = np.flatnonzero(rows.any(1))
        if len(there) >= count or tried >= min(len(source), LOOKED_AT):
            break
        tried = min(tried * 8, LOOKED_AT)
    return rows[np.random.default_rng(seed).permutation(there)[:count]]  # halves of them are alike


def truth(asked: np.ndarray, source: Rows, kind: str, k: int, without: np.ndarray | None = None) -> np.ndarray:
    """The numbers [Q, k] of the rows exactly nearest to `asked`, among all but those `without` (bool [n]); each rank
    looks through its share of the rows."""
    mine = distributed.share(len(source))
    with distributed.together():
        scores, numbers = exact.nearest(asked, _shown(source, kind, mine, without), k)
    parts = [distributed.gather_uneven(torch.from_numpy(each)).numpy() for each in (scores, numbers)]
    both = [part.reshape(-1, len(asked), k).swapaxes(0, 1).reshape(len(asked), -1) for part in parts]
    return exact.best(both[0], both[1], k)[1]


def _shown(source: Rows, kind: str, mine: range, without: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
    with Progress(f"exact neighbours ({kind})", max(len(mine), 1), hush_s=5.0) as bar:
        for first, rows in source.blocks(kind, mine.start, mine.stop):
            if without is not None:
                rows[without[first : first + len(rows)]] = 0
            yield first, rows
            bar.update(first + len(rows) - mine.start)


def settings(part: Engine, ranks: bool, k: int) -> list[Knobs]:
    """The settings to try, from the cheapest on; `ranks`: the best rows are ranked again."""
    found = [Knobs(k=k)]
    if part.graph:
        found = [Knobs(ef=max(ef, k), k=k) for ef in EFS]
    elif part.lists is not None:
        few = part.lists <= choose.FULL_LISTS
        probes = [part.lists] if few else sorted({max(part.lists >> shift, 1) for shift in range(9)})
        found = [Knobs(nprobe=nprobe, k=k) for nprobe in probes]
    if ranks:
        found = [replace(each, candidates=factor * k) for each in found for factor in FACTORS]

    def cost(knobs: Knobs) -> float:
        share = (knobs.nprobe or 1) / (part.lists or 1)
        return (knobs.ef or 0) + share * len(part) * CODE_NS + (knobs.candidates or 0) * RANK_NS

    return sorted(found, key=cost)


def measure(
    stored: Stored, source: Rows, kind: str, wish: float, k: int, prompts: np.ndarray | None = None
) -> dict[str, Any]:
    """What stands in index.json for a kind after its settings were chosen: knobs, recall and the table of what was
    tried. All ranks come here to find the true neighbours, and the first gets the facts. `source`: what was indexed.

    What would meet a wish that is not met is said.
    """
    k = min(k, len(source))
    if stored.about["kinds"][kind]["factory"] == FLAT:
        recall = {"k": k, "wish": wish, "met": True, "on": "all rows compared", "queries": 0, "value": 1.0}
        return {"knobs": Knobs(k=k).as_dict(), "recall": recall, "table": []}
    asked = queries(source, kind, prompts)
    true = truth(np.concatenate([asked.main, asked.side]), source, kind, k, stored.removed)
    return _chosen(_Trial(stored, kind, asked, true, k), wish) if distributed.rank() == 0 else {}


@dataclass(frozen=True)
class _Trial:
    """A kind of an index, and queries whose true neighbours [Q + S, k] are known."""

    stored: Stored
    kind: str
    asked: Asked
    true: np.ndarray
    k: int

    def of(self, knobs: Knobs) -> tuple[np.ndarray, dict[str, Any]]:
        """(the recall of each main query, a row of the table)."""
        _, found = self.stored.nearest(
            self.kind, np.concatenate([self.asked.main, self.asked.side]), self.k, knobs=knobs
        )
        main, side = np.split(exact.recall(found, self.true), [len(self.asked.main)])
        recall = {self.asked.on: _mean(main), **({NAMES[self.kind]: _mean(side)} if len(side) else {})}
        return main, {"knobs": knobs.as_dict(), "recall": recall, "ms": round(self._ms(knobs), 2)}

    def _ms(self, knobs: Knobs) -> float:
        """Milliseconds of CPU that a query takes alone."""
        some = self.asked.main[:TIMED]
        began = time.process_time()
        for query in some:
            self.stored.nearest(self.kind, query[None], self.k, knobs=knobs)
        return (time.process_time() - began) / len(some) * 1e3


def _chosen(trial: _Trial, wish: float) -> dict[str, Any]:
    part = max((part for _, part in trial.stored.parts[trial.kind]), key=len)
    facts = trial.stored.about["kinds"][trial.kind]
    table, best, met = [], (np.zeros(1), Knobs()), False
    for knobs in settings(part, part.ranks or facts["rerank"] == "rows", trial.k):
        each, row = trial.of(knobs)
        table.append(row)
        met = _reaches(each, wish)
        if met or each.mean() >= best[0].mean():
            best = each, knobs
        if met:
            break
    each, knobs = best
    if trial.asked.like:
        knobs = widened(knobs, part)
        table.append(trial.of(knobs)[1])
    told = {
        "k": trial.k, "wish": wish, "met": met, "on": trial.asked.on, "queries": len(each),
        "value": _mean(each[1::2] if len(each) > 1 else each),
    }  # fmt: skip
    _tell(trial, told)
    return {"knobs": knobs.as_dict(), "recall": told, "table": table}


def _reaches(each: np.ndarray, wish: float) -> bool:
    """Half of the queries find so much, by a standard error more, and the other half does not say otherwise."""
    first, second = each[::2], each[1::2]
    error = float(first.std()) / len(first) ** 0.5
    return bool(first.mean() >= min(wish + error, 1.0)) and (not len(second) or bool(second.mean() >= wish))


def widened(knobs: Knobs, part: Engine) -> Knobs:
    """Settings for queries of another kind than those they were measured with: twice as many rows are ranked again,
    four times as many lists or neighbours looked at."""
    return replace(
        knobs,
        nprobe=min(4 * knobs.nprobe, part.lists or 1) if knobs.nprobe else None,
        candidates=2 * knobs.candidates if knobs.candidates else None,
        ef=4 * knobs.ef if knobs.ef else None,
    )


def _tell(trial: _Trial, recall: dict[str, Any]) -> None:
    """Say what the wish needs where it is not met, and what was not there to measure with."""
    name = f"{trial.kind}.index"
    if trial.asked.like:
        say(
            f"{name}: tuned with {recall['on']} alone, and the effort doubled, because words find less than pictures; "
            "--queries FILE.txt, with a query a line, measures what they find"
        )
    if recall["met"]:
        return
    stored, facts = trial.stored, trial.stored.about["kinds"][trial.kind]
    larger = choose.more(facts["bytes"], len(stored), stored.width)
    knob = f"--memory {choose.told(larger * len(stored.kinds))}" if facts["bytes"] and larger else "--engine flat"
    say(
        f"{name}: of the {recall['k']} nearest {recall['value']:.3f} are found, where {recall['wish']:g} are wanted "
        f"({recall['queries']} {recall['on']}); the index works; type {knob} for more, "
        f"or ask for less: --recall {int(recall['value'] * 100) / 100:g}"
    )


def _mean(each: np.ndarray) -> float:
    return round(float(each.mean()), 4)


def retune(folder: Path, source: Rows, prompts: np.ndarray | None = None, **asked: Any) -> dict[str, Any]:
    """Measure all kinds of an index and keep the settings found, in index.json and in the FAISS files; gives what
    index.json says. `source`: the rows it was built of; `asked` changes what was asked of it (recall, k)."""
    stored = Stored(folder)
    about = stored.about
    about["asked"] = {**about["asked"], **asked}
    for kind in stored.kinds:
        facts = measure(stored, source, kind, about["asked"]["recall"], about["asked"]["k"], prompts)
        about["kinds"][kind] = {**about["kinds"][kind], **facts}
    del stored  # and with it its files, which are as large as what is read here
    if distributed.rank() == 0:
        for facts in about["kinds"].values():
            for name in facts["files"]:
                engine.settle_file(folder / name, Knobs(**facts["knobs"]))
        write_atomic(folder / ABOUT, json.dumps(about, indent=1))
    return about
