"""A folder of images and their captions as a stream of rows."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from clipkit.datatools.pack.rows import Row, clean, shown, stem, words
from clipkit.errors import UserError

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
TEXTS = (".txt",)


class _Entry(NamedTuple):
    """A file: its path from the folder on, whether it is an image, and the neighbour text (image) of the same stem."""

    path: str
    is_image: bool
    neighbour: str


class Folder:
    """A folder of images: each with a `.txt` of the same stem, or (`captions="name"`) a name that says what it shows.

    Searched with its subfolders, sorted; names that begin with a dot are passed over.
    """

    kind = "a folder of images"

    def __init__(self, path: Path, captions: str | None) -> None:
        self.path, self.captions = path, captions
        self.ignored: dict[str, int] = {}
        self._facts: dict[str, Any] | None = None

    def fingerprint(self) -> dict[str, Any]:
        """Count, bytes and a digest of names, sizes and times of all images and texts."""
        if self._facts is None:
            for _ in self._entries():
                pass
        assert self._facts is not None
        return self._facts

    def rows(self) -> Iterator[Row]:
        """A row per image.

        Raises: UserError when there is no image, or no caption file and no word that names are meant.
        """
        root, images, texts = os.path.abspath(self.path), 0, 0
        ignored: Counter[str] = Counter()
        for entry in self._entries():
            base = os.path.basename(entry.path)
            if not entry.is_image:
                suffix = _suffix(base)
                if suffix != ".txt" or (not entry.neighbour and self.captions != "name"):
                    ignored["text without image" if suffix == ".txt" else suffix or base] += 1
                continue
            images, texts = images + 1, texts + bool(entry.neighbour)
            row = Row(shown(entry.path), stem(entry.path), os.path.join(root, entry.path), extra={"path": entry.path})
            if self.captions == "name":
                try:
                    yield row._replace(captions=clean(words(os.path.splitext(base)[0])))
                except ValueError as error:
                    yield row._replace(problem=str(error))
            elif entry.neighbour:
                folder = os.path.dirname(row.image)
                yield row._replace(caption_file=os.path.join(folder, entry.neighbour))
            else:
                yield row._replace(problem="no caption file")
        self.ignored = dict(sorted(ignored.items()))
        if not images:
            raise UserError(f"{self.path}: no images ({', '.join(IMAGES)}) in this folder; give another one")
        if not texts and self.captions is None:
            raise UserError(
                f"{self.path}: no image has a caption file (photo.txt beside photo.jpg) and there is no metadata.csv; "
                "if the file names say what the images show, type --captions name"
            )

    def _entries(self) -> Iterator[_Entry]:
        """All files but hidden ones, folder by folder."""
        digest, files, total = hashlib.sha1(), 0, 0
        for folder, names in _walk(str(self.path)):
            images, texts = (
                {os.path.splitext(n)[0]: n for n, _, _ in names if _suffix(n) in s} for s in (IMAGES, TEXTS)
            )
            for name, size, time in names:
                path, suffix = f"{folder}{name}", _suffix(name)
                if suffix in IMAGES + TEXTS:
                    digest.update(f"{path}\0{size}\0{time}\n".encode("utf-8", "surrogateescape"))
                    files, total = files + 1, total + size
                others = texts if suffix in IMAGES else images
                yield _Entry(path, suffix in IMAGES, others.get(os.path.splitext(name)[0], ""))
        self._facts = {"files": files, "bytes": total, "digest": digest.hexdigest()[:16]}


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _walk(top: str) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """(folder from `top` on, ending in a slash or empty; its files' name, size, time), sorted; a linked folder that
    holds itself is entered once. One folder's names are in memory at a time: 300 bytes a file."""
    waiting = [("", frozenset[tuple[int, int]]())]
    while waiting:
        folder, above = waiting.pop()
        here = os.path.join(top, folder)
        facts = os.stat(here)
        inside = above | {(facts.st_dev, facts.st_ino)}
        files, folders = [], []
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(entry.name)
                    else:
                        files.append(_stat(entry))
        except OSError as error:
            raise UserError(f"{here}: cannot be read ({error.strerror}); mend that or move it out") from error
        yield folder, sorted(files)
        for name in sorted(folders, reverse=True):
            facts = os.stat(os.path.join(here, name))
            if (facts.st_dev, facts.st_ino) not in inside:
                waiting.append((f"{folder}{name}/", inside))


def _stat(entry: os.DirEntry[str]) -> tuple[str, int, int]:
    try:
        facts = entry.stat()
    except OSError:  # a link that leads nowhere: it is a row, and counted as missing when it is read
        return entry.name, 0, 0
    return entry.name, facts.st_size, facts.st_mtime_ns
