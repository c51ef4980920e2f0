"""Any image-caption source as WebDataset shards.

    clipkit data pack photos/ data/photos        ->  data/photos/00000.tar ... pack.json left_out.jsonl

First the source is read once into a plan (`OUT/.pack/`), which fixes what each shard holds; then processes make the
shards, each whole or not at all. So a pack that was killed goes on with the shards that are missing, and ends with the
bytes of one that was not. Keys count places in the plan: what is left out leaves a gap.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from clipkit.datatools.pack.plan import PLAN, Plan, write_plan
from clipkit.datatools.pack.pool import make_all
from clipkit.datatools.pack.records import DONE, Tally, record_of, record_path, summarise
from clipkit.datatools.pack.rows import Options, Source
from clipkit.datatools.pack.sources import open_source
from clipkit.errors import BadData, StorageError, UserError
from clipkit.log import Progress, say

WORK = ".pack"
VERSION = 1  # of the plan: raise it when the same settings would make other shards


def pack(
    src: str,
    out: Path,
    *,
    captions: Literal["txt", "name"] | None = None,
    image: str | None = None,
    caption: str | None = None,
    root: str | None = None,
    split: str | None = None,
    size: int | None = None,
    resize: Literal["shortest", "longest", "none"] = "shortest",
    quality: int = 95,
    verify: Literal["header", "decode"] | None = None,
    per_shard: int = 10_000,
    seed: int | None = 0,
    val: float = 0.0,
    group: str | None = None,
    workers: int | None = None,
    max_bad: float = 0.01,
) -> dict[str, Any]:
    """Pack the source `src` into shards below `out`; what pack.json then holds: samples, shards and bytes of each
    split, what was left out by reason, what was passed over, facts about the captions, settings.

    Started again with the same arguments it goes on where it was killed; finished, it does nothing. `captions` says
    where a folder's captions are (texts beside the images, or their names); `image`, `caption` and `group` name
    columns of a table, `root` the folder that its paths start from, `split` one of a saved DatasetDict.
    `size` shrinks images whose `resize` side is longer, to JPEG; all others keep their bytes. `verify` checks headers,
    or decodes each image (as it does by itself with a `size`). `seed` None keeps the source's order. `val` is the
    share of the groups that goes into OUT/val, drawn by a hash of the group: that column, else the image's path
    without suffix, else its row. `workers` processes make the shards (default: one a core; 0 or 1: this process).
    A script that packs with several needs `if __name__ == "__main__":`.

    Raises: UserError for what the arguments or `out` need; BadData when more than `max_bad` of the rows (and 10 or
    all of them) are left out; StorageError when disk or network fail. After each of them it can be started again.
    """
    if verify is None:
        verify = "header" if size is None else "decode"
    settings: dict[str, Any] = {
        "source": os.path.abspath(src), "captions": captions, "image": image, "caption": caption,
        "root": None if root is None else os.path.abspath(root), "split": split, "group": group,
        "size": size, "resize": resize, "quality": quality, "verify": verify,
        "per_shard": per_shard, "seed": seed, "val": val, "version": VERSION,
    }  # fmt: skip
    _check(settings, workers, max_bad)
    out = Path(os.path.abspath(out))
    source = open_source(src, Options(captions, image, caption, root, split, group))
    done = _finished(out, settings, source)
    try:
        if done is None or (out / WORK).exists():
            with _own(out) as work:
                done = _finished(out, settings, source)  # another pack may have done it a moment ago
                if done is None:
                    plan = _planned(out, work, settings, source, max_bad)
                    _make(plan, out, _workers(workers), max_bad)
                    return summarise(plan, out)
    except OSError as error:
        what = f"{error.filename or out}: {error.strerror or error}"
        raise StorageError(f"{what}; mend that or make room, and start again: finished shards are kept") from error
    say(f"{out}: is packed already; nothing to do")
    return done


def _check(settings: Mapping[str, Any], workers: int | None, max_bad: float) -> None:
    """Raises: UserError for a value that none of the settings can have."""
    choices = {
        "captions": (None, "txt", "name"), "resize": ("shortest", "longest", "none"), "verify": ("header", "decode"),
    }  # fmt: skip
    for name, allowed in choices.items():
        if settings[name] not in allowed:
            need = " or ".join(f"'{one}'" for one in allowed if one)
            raise UserError(f"pack: --{name} must be {need}, got '{settings[name]}'")
    numbers: dict[str, tuple[float | None, float, float]] = {
        "size": (settings["size"], 2, 1 << 15), "quality": (settings["quality"], 1, 100),
        "per-shard": (settings["per_shard"], 1, 1 << 31), "seed": (settings["seed"], 0, (1 << 63) - 1),
        "workers": (workers, 0, 1024), "max-bad": (max_bad, 0, 1), "val": (settings["val"], 0, 0.999),
    }  # fmt: skip
    for name, (value, least, most) in numbers.items():
        if value is not None and not least <= value <= most:
            raise UserError(f"pack: --{name} must be from {least} to {most}, got {value}")


def _workers(wanted: int | None) -> int:
    return len(os.sched_getaffinity(0)) if wanted is None and hasattr(os, "sched_getaffinity") else wanted or 1


def _finished(out: Path, settings: Mapping[str, Any], source: Source) -> dict[str, Any] | None:
    """What a finished pack in `out` holds, if it is one of the same source and settings; None if none is there.

    Raises: UserError when it is another one, or `out` holds something else.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return None
    if not (out / DONE).is_file():
        if (out / WORK).is_dir():
            return None
        raise UserError(f"{out}: exists and is no pack; nothing was touched; give another folder")
    try:
        facts = json.loads((out / DONE).read_text(encoding="utf-8"))
        was = facts["settings"], facts["source"], facts["done"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{out / DONE}: is not what a pack writes; nothing was touched; give another folder") from None
    _compare(out, "packed", was[0], was[1], settings, source)
    return facts


def _compare(
    out: Path, how: str, old: Mapping[str, Any], stamp: Mapping[str, Any], new: Mapping[str, Any], source: Source
) -> None:
    """Raises: UserError that names the settings that differ, or says that the source does."""
    differ = [name for name in new if old.get(name) != new[name]]
    what = ""
    if differ:
        was, now = (", ".join(f"{name}={one.get(name)}" for name in differ) for one in (old, new))
        what = f"was {how} with {was}, now it is {now}"
    elif stamp != (facts := source.fingerprint()):
        was, now = (f"{one['files']} files of {one['bytes']} bytes" for one in (stamp, facts))
        what = f"was {how} from {was}, and the source has changed since ({now}, other names or times)"
    if what:
        raise UserError(f"{out}: {what}; give another folder, or start over: rm -r {out}")


@contextmanager
def _own(out: Path) -> Iterator[Path]:
    """The work folder in `out`, kept from other packs by a lock that the kernel frees if this process dies. If no
    plan came to be, it is removed again, and `out` too if it was empty.

    Raises: UserError when another pack is there.
    """
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(work / "lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"{out}: another process is packing into it; wait, or give another folder") from None
    with lock:
        for left in work.glob(".*.tmp"):  # of a pack that was killed
            left.unlink(missing_ok=True)
        try:
            yield work
        finally:
            if (out / DONE).is_file() or not (work / PLAN).is_file():
                shutil.rmtree(work, ignore_errors=True)
                with contextlib.suppress(OSError):  # it is not empty
                    out.rmdir()


def _planned(out: Path, work: Path, settings: dict[str, Any], source: Source, max_bad: float) -> Plan:
    """The plan in `work`: an earlier one of the same source and settings, or a new one.

    Raises: UserError, BadData.
    """
    if (work / PLAN).is_file():
        plan = Plan(work)
        _compare(out, "begun", plan.facts["settings"], plan.facts["source"], settings, source)
        return plan
    write_plan(source, work, {"settings": settings}, settings["val"])
    plan = Plan(work)
    try:
        Tally(plan, max_bad).bound("mend the source")
    except BadData:
        (work / PLAN).unlink()
        raise
    return plan


def _make(plan: Plan, out: Path, workers: int, max_bad: float) -> None:
    """Make the shards that are not there yet.

    Raises: BadData when too much is left out; the shards that left something out are then made again next time, when
    their images may have been mended.
    """
    jobs, tally = plan.jobs(plan.facts["settings"]["per_shard"]), Tally(plan, max_bad)
    waiting, done = [], 0
    for job in jobs:
        made = record_of(plan, out, job)
        if made is None:
            waiting.append(job)
        else:
            tally.add(made)
            done += job.stop - job.first
    if len(waiting) < len(jobs):
        say(f"{out}: {len(jobs) - len(waiting)} of {len(jobs)} shards are there; going on")
    total = sum(plan.facts["rows"].values())
    try:
        tally.bound("mend them")
        with Progress("pack", total, start=done) as bar:

            def show(rows: int) -> None:
                left_out = tally.reasons.total()
                bar.update(done + rows, f"{left_out} left out" if left_out else "")

            with contextlib.closing(make_all(plan, out, waiting, workers, show)) as news:
                for made in news:
                    tally.add(made)
                    tally.bound("mend them")
    except BadData:
        for job in jobs:
            if (made := record_of(plan, out, job)) is not None and made["left_out"]:
                record_path(plan.work, job).unlink()
        raise
