"""Class folders: FOLDER/cat/1.jpg, FOLDER/dog/2.jpg, or FOLDER/SPLIT/cat/1.jpg; pictures with texts beside them."""

import os
from pathlib import Path
from typing import Any

from clipkit.errors import UserError
from clipkit.sets.files import Files
from clipkit.sets.samples import About
from clipkit.sets.text import lines_in, lines_of, text_of
from clipkit.shards import IMAGE_SUFFIXES

SPLITS = ("train", "val", "valid", "validation", "dev", "test")
NAMES = ("classes.txt", "classnames.txt")
TEXTS = ("txt", "txt:lines")


class InFolders(Files):
    """The pictures below a folder, sorted by path.

    Fields: `folder`, the name of the class folder that a picture lies in; `class`, its number among the sorted class
    folders; `txt` and `txt:lines`, what the .txt of the same name holds. A classes.txt or classnames.txt in FOLDER or
    FOLDER/SPLIT names the classes: by the folders' own names, or as many others in the folders' order, such as
    ImageNet's words for its numbered folders.
    Raises: UserError when there is no picture, or the names are not as many as the folders.
    """

    def __init__(self, folder: Path, split: str) -> None:
        top = _top(folder, split)
        paths = pictures_below(top)
        if not paths:
            raise UserError(f"{top}: neither .tar shards nor pictures ({', '.join(IMAGE_SUFFIXES)}) in this folder")
        classes = sorted(each.name for each in top.iterdir() if each.is_dir() and not each.name.startswith("."))
        number = {name: i for i, name in enumerate(classes)}
        inside = [path.relative_to(top).parts for path in paths]
        rows = [{"folder": parts[0], "class": number[parts[0]]} if len(parts) > 1 else {} for parts in inside]
        captioned = paths[0].with_suffix(".txt").is_file()
        if any(rows):
            names, label = _names(folder, top, classes)
            about = About("zeroshot", names, None, label, "txt" if captioned else None)
        else:
            about = About("retrieval" if captioned else None, caption="txt" if captioned else None)
        super().__init__(paths, rows, about)

    def fields(self) -> list[str]:
        """The fields above."""
        return [*super().fields(), *TEXTS]

    def field(self, number: int, name: str) -> Any:
        """A field of the picture."""
        if name not in TEXTS:
            return super().field(number, name)
        try:
            text = text_of(self.paths[number].with_suffix(".txt").read_bytes(), "txt")
        except FileNotFoundError:
            return None
        return lines_of(text) if name == "txt:lines" else text


def _top(folder: Path, split: str) -> Path:
    """The folder that class folders lie in."""
    if (folder / split).is_dir():
        return folder / split
    there = [name for name in SPLITS if (folder / name).is_dir()]
    if there:
        raise UserError(f"{folder}: has no part '{split}'; split is one of: {', '.join(there)}")
    return folder


def pictures_below(top: Path) -> list[Path]:
    """All pictures below a folder; links to folders are followed, but for those to a folder that they lie in; hidden
    files and folders are left out."""
    found = []
    for place, folders, files in os.walk(top, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_back(Path(place, name), top)]
        suffixed = (name for name in files if name.lower().rpartition(".")[2] in IMAGE_SUFFIXES)
        found += [Path(place, name) for name in suffixed if not name.startswith(".")]
    return sorted(found)


def _leads_back(folder: Path, top: Path) -> bool:
    """Is this a link to a folder that it lies in, or was reached by?"""
    if not folder.is_symlink():
        return False
    to, by = folder.resolve(), (above for above in folder.parents if above.is_relative_to(top))
    return any(above.resolve().is_relative_to(to) for above in by)


def _names(folder: Path, top: Path, classes: list[str]) -> tuple[tuple[str, ...] | None, str]:
    """(names of the classes, or None; the field that holds the label)."""
    beside = [place / name for place in dict.fromkeys((top, folder)) for name in NAMES]
    file = next((path for path in beside if path.is_file()), None)
    if file is None:
        return None, "folder"
    names = lines_in(str(file)) or ()
    if set(classes) <= set(names):
        return names, "folder"
    if len(names) != len(classes):
        raise UserError(
            f"{file}: {len(names)} names for the {len(classes)} class folders of {top}; as many are needed, in the "
            "sorted order of the folders"
        )
    return names, "class"
