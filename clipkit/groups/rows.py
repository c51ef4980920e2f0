"""What both commands read: the rows of one kind, and the pictures behind them."""

from collections.abc import Callable

from clipkit import shards
from clipkit.errors import UserError
from clipkit.vectors import Vectors
from clipkit.vectors.in_shards import places


def rows_of_kind(folder: str, kind: str | None) -> tuple[Vectors, str]:
    """(the opened folder, the kind of rows that is meant: pictures where there are any, unless `kind` says).

    Raises: UserError when it has none of them.
    """
    source = Vectors(folder)
    kind = kind or source.kinds[0]
    if kind not in source.kinds:
        raise UserError(f"{folder}: holds no {kind} embeddings, only {', '.join(source.kinds)}")
    if not len(source):
        raise UserError(f"{folder}: holds no rows")
    return source, kind


def picture_of(source: Vectors) -> Callable[[int], bytes]:
    """A function that gives the bytes of the picture of a row.

    It raises StorageError when they are not to be had, ValueError where nobody knows where they lie.
    """
    found = places(source)

    def read(number: int) -> bytes:
        if found is None or found[1][number] < 0:
            raise ValueError("its place is not known")
        files, offsets, sizes = found
        return shards.read_span(files[number].as_py(), int(offsets[number]), int(sizes[number]))

    return read
