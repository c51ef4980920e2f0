"""Pictures that lie as files, and the choice between them and shards."""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit.errors import StorageError, UserError
from clipkit.shards.source import Shards
from clipkit.shards.tar import IMAGE_SUFFIXES


class Folder:
    """Pictures that lie as files, in the order given or sorted; a `.txt` of the same name is the caption."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def image(self, number: int) -> bytes:
        """The bytes of the picture with this number."""
        return self.files[number].read_bytes()

    def record(self, number: int, caption: str = "txt") -> dict[str, Any]:
        """What is known of a picture without opening it; `caption` can only be its neighbour `.txt`."""
        path = self.files[number]
        text = path.with_suffix(".txt")
        found = text.read_text(encoding="utf-8", errors="replace").strip() if text.is_file() else ""
        return {
            "key": path.stem,
            "caption": found,
            "shard": str(path.resolve()),
            "offset": 0,
            "size": path.stat().st_size,
        }


def open_source(name: str) -> Shards | Folder:
    """Shards or pictures, whichever the folder, file, glob or brace pattern names.

    Raises: UserError when there is neither.
    """
    path = Path(name)
    if path.is_file() and path.suffix != ".tar":
        return Folder([path])
    if path.is_dir() and not any(path.glob("*.tar")):
        files = sorted(file for file in path.rglob("*") if file.suffix.lower().lstrip(".") in IMAGE_SUFFIXES)
        if not files:
            raise UserError(f"{name}: neither .tar shards nor pictures ({', '.join(IMAGE_SUFFIXES)}) in this folder")
        return Folder(files)
    if not path.exists() and not glob.has_magic(name) and "{" not in name:
        raise UserError(f"{name}: no such file or folder")
    return Shards(name)


def read_span(path: str | Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset`, as a record of `Shards` or `Folder` names them.

    Raises: StorageError when the file is gone or shorter now.
    """
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if len(data) != size:
        raise StorageError(f"{path}: holds no {size} bytes at {offset}; it has changed since it was embedded")
    return data
