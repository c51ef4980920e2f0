"""What each finished shard of a pack tells, and what that makes together."""

import importlib.metadata
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipkit.datatools.pack.plan import LEFT_OUT, Job, Plan, left_out_line, write_json
from clipkit.errors import BadData, StorageError, told

DONE = "pack.json"


def record_path(work: Path, job: Job) -> Path:
    """Where the record of a finished shard lies."""
    return work / f"done-{job.split or 'all'}-{job.number:05d}.json"


def record_of(plan: Plan, out: Path, job: Job) -> dict[str, Any] | None:
    """The record of a shard if it is finished and its file is still as long as it was."""
    try:
        made = json.loads(record_path(plan.work, job).read_text(encoding="utf-8"))
        return made if (out / job.name).stat().st_size == made["bytes"] else None
    except FileNotFoundError:
        return None


class Tally:
    """What has been left out, by the plan and by the shards made so far, and whether that is too much."""

    def __init__(self, plan: Plan, max_bad: float) -> None:
        self.source, self.max_bad = plan.facts["settings"]["source"], max_bad
        self.reasons = Counter[str](plan.facts["left_out"])
        self.total = sum(plan.facts["rows"].values()) + self.reasons.total()
        self.first = ("", plan.facts["first"])

    def add(self, made: Mapping[str, Any]) -> None:
        """Count what a shard, by its record, has left out."""
        self.reasons.update(row["reason"] for row in made["left_out"])
        if made["left_out"] and (not self.first[1] or made["shard"] < self.first[0]):
            self.first = made["shard"], "{id}: {reason}".format(**made["left_out"][0])

    def bound(self, mend: str) -> None:
        """Raises: BadData when it is too much of the whole."""
        bad = self.reasons.total()
        if bad > self.max_bad * self.total and (bad >= 10 or bad == self.total):
            raise BadData(
                f"{self.source}: {bad} of {self.total} samples cannot be used ({told(self.reasons)}), "
                f"--max-bad {self.max_bad} allows fewer; the first is {self.first[1]}; {mend}, or raise --max-bad, "
                "and start again"
            )


def summarise(plan: Plan, out: Path) -> dict[str, Any]:
    """Write left_out.jsonl and pack.json from the records of all shards; what pack.json holds."""
    facts = plan.facts
    reasons = Counter[str](facts["left_out"])
    splits = {split or "all": {"samples": 0, "shards": 0, "bytes": 0} for split in facts["rows"]}
    captions = {"samples": 0, "several": 0, "captions": 0, "characters": 0, "shortest": 0, "longest": 0}
    shutil.copyfile(plan.work / LEFT_OUT, temporary := plan.work / f".{LEFT_OUT}.tmp")
    with temporary.open("ab") as file:
        for job in plan.jobs(facts["settings"]["per_shard"]):
            made = record_of(plan, out, job)
            if made is None:
                raise StorageError(f"{out / job.name}: went away while it was packed; start again")
            for row in made["left_out"]:
                file.write(left_out_line(row["id"], row["reason"]))
                reasons[row["reason"]] += 1
            of = splits[job.split or "all"]
            for name, more in (("samples", made["captions"]["samples"]), ("shards", 1), ("bytes", made["bytes"])):
                of[name] += more
            _add(captions, made["captions"])
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(out / LEFT_OUT)
    told = {
        "done": True,
        "clipkit": _version(),
        "settings": facts["settings"],
        "source": facts["source"],
        "samples": captions.pop("samples"),
        "splits": splits,
        "left_out": reasons.total(),
        "left_out_because": dict(sorted(reasons.items())),
        "ignored": facts["ignored"],
        "captions": captions,
    }
    write_json(out / DONE, told)
    return told


def _version() -> str:
    try:
        return importlib.metadata.version("clipkit")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def _add(sums: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name in ("samples", "several", "captions", "characters"):
        sums[name] += more[name]
    if more["samples"]:
        sums["shortest"] = min(sums["shortest"] or more["shortest"], more["shortest"])  # no caption is empty
        sums["longest"] = max(sums["longest"], more["longest"])
