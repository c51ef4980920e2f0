"""What the changes of an index share: one at a time, and files of the old folder in the new one."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clipkit import distributed
from clipkit.errors import UserError
from clipkit.index import prompts, tune
from clipkit.log import say
from clipkit.vectors import Stored
from clipkit.vectors.joined import Joined
from clipkit.vectors.stored import HIDDEN, about


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Keep other processes than the ranks of this run from changing the index `place` while inside.

    Raises: UserError when one is at it, or there is no index.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as stack:
        with distributed.together():
            if distributed.rank() == 0:
                about(place)
                real = place.resolve()
                try:
                    stack.enter_context(FileLock(real.with_name(f".{real.name}.lock"), timeout=0))
                except Timeout:
                    told = "another process is changing this index; try again when it is done"
                    raise UserError(f"{place}: {told}") from None
        yield


def measured(place: Path, queries: str | Path | None = None, **asked: Any) -> dict[str, Any]:
    """Find the settings of an index again over all of its rows, whose vectors must be there; gives what its index.json
    says then. `queries` and `asked`: as `tune.retune` and `prompts.of` take them."""
    stored = Stored(place)
    rows = stored.vectors
    return tune.retune(place, rows, prompts.of(rows, stored.kinds, queries), **asked)


def link(source: Path, target: Path) -> None:
    """Give a file of an index a second name: they are never written again, and need no second copy on the disk."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def joined(stored: Stored) -> Joined | None:
    """The vectors that an index was built of; None, and said, where they are not what they were."""
    if not stored.about["vectors"]:
        return None
    try:
        return stored.vectors
    except UserError as error:
        say(f"{stored.folder}: its vectors are not what they were ({error})")
        return None


def flags(parts: Sequence[tuple[np.ndarray | None, int]]) -> np.ndarray | None:
    """Flags of rows behind each other: of each part a mask (bool; None: all false) and how many rows it has; None where
    no part has a mask."""
    if all(mask is None for mask, _ in parts):
        return None
    return np.concatenate([np.zeros(count, bool) if mask is None else mask for mask, count in parts])


def hidden(stored: Stored, kind: str) -> np.ndarray | None:
    """Which rows of an index have nothing of a kind, bool [n]; None: all have."""
    path = stored.folder / HIDDEN.format(kind=kind)
    return np.load(path, allow_pickle=False) if path.is_file() else None
