"""What filter and dedup share: the samples that are left, why others are not, and the selection of them."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import StorageError, UserError
from clipkit.shards import Shards, write_selection
from clipkit.vectors.selection import refuse_existing

__all__ = ["drop_unreadable", "placed", "refuse_existing", "write_kept"]


def drop_unreadable(path: Path, numbers: np.ndarray, dropped: Counter[str], pictures: bool = False) -> np.ndarray:
    """The numbers of the samples that the table says can be read, or just their pictures; the others are counted."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["problem", "width"])
    bad = table.column("problem").is_valid().to_numpy()
    if pictures:
        bad &= table.column("width").is_null().to_numpy()
    gone = numbers[bad[numbers]]
    dropped.update(f"unreadable: {reason}" for reason in table.column("problem").take(gone).to_pylist())
    return numbers[~bad[numbers]]


def write_kept(
    held: Shards, start: np.ndarray, numbers: np.ndarray, out: str, dropped: Counter[str], made_by: dict[str, Any]
) -> dict[str, Any]:
    """Write the `numbers` that are left of `start` as the selection `out`; gives the counts, which add up.

    Raises: UserError when nothing is left, StorageError when it cannot be written.
    """
    told = {reason: int(count) for reason, count in sorted(dropped.items()) if count}
    assert len(start) == len(numbers) + sum(told.values()), (len(start), len(numbers), told)
    if not len(numbers):
        reasons = ", ".join(f"{reason}: {count}" for reason, count in told.items())
        raise UserError(f"{held.pattern}: none of {len(start)} samples would be kept ({reasons}); nothing is written")
    about = {**made_by, "source": held.pattern, "dropped": told}
    try:
        write_selection(held, numbers, Path(out), about)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from error
    return {
        "of": len(start), "kept": len(numbers), "dropped": told, "left_out": dict(held.lost), "out": out,
    }  # fmt: skip


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """The hidden name beside `path` under which a file is to be written; it is then moved into its place.

    Raises: StorageError when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror or error})") from error
