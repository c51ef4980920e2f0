"""What is embedded: pictures with their captions and fields, or captions alone, by number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from clipkit import sets, shards
from clipkit.embed.sources import CAPTIONS, InFiles, InLines, InShards, InTable
from clipkit.errors import UserError
from clipkit.vectors.metadata import COLUMNS

LOOKED_AT = 100  # samples that tell whether there are captions, and whether a field is there at all


class Collection(Protocol):
    """Samples 0..len-1."""

    @property
    def fingerprint(self) -> str:
        """Changes with the samples, as far as names, sizes and times tell."""
        ...

    @property
    def lost(self) -> Mapping[str, int]:
        """What the source holds besides and could not be used, by reason."""
        ...

    @property
    def caption(self) -> str | None:
        """Where captions are taken from, as `--caption` says it."""
        ...

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """What a sample is called in messages."""
        ...

    def image(self, number: int) -> bytes:
        """The bytes of a picture.

        Raises: ValueError or OSError when it is not to be had.
        """
        ...

    def record(self, number: int) -> dict[str, Any]:
        """What is known of a sample without its picture, by the names of metadata.COLUMNS and of the fields; `caption`
        is empty where there is none.

        Raises: ValueError or OSError when it is not to be had.
        """
        ...

    def fields(self) -> list[str]:
        """The names that captions and fields may be asked for by, for messages."""
        ...


def open_collection(
    source: str, caption: str | None = None, names: Sequence[str] = (), images: str | None = None,
    texts_only: bool = False,
) -> Collection:  # fmt: skip
    """The samples of shards, of a folder of pictures or one picture, of a table (CSV, TSV, JSON lines, Parquet,
    captions in JSON), or of a text file of captions.

    `caption` (null: the source's own) is `txt` or `json:KEY` for shards, a column for tables; `names` are keys of the
    samples' JSON, or columns, that records hold too; `images` is the folder that pictures named by a table lie in.
    Raises: UserError when there is nothing of the kind, or it has no such caption or field.
    """
    for name in names:
        if name.lower() in COLUMNS:
            raise UserError(f"--fields {name}: all samples have this name already, as they have {', '.join(COLUMNS)}")
    source = sets.address(source)
    found = _opened(source, caption, names, images, texts_only)
    if isinstance(found, InTable):
        return _checked(found, source, caption, names)
    if images is not None:
        raise UserError(f"{source}: --images: is for tables, whose rows name pictures; here is none")
    if isinstance(found, InShards):
        return _in_json(found, source, names)
    if names:
        raise UserError(f"{source}: --fields: keys of the .json of shards, or columns of a table; here is neither")
    if caption not in (None, found.caption):
        there = "its lines" if isinstance(found, InLines) else "the .txt beside each picture"
        raise UserError(f"{source}: --caption {caption}: is for shards and tables; captions are {there} here")
    return found


def _opened(
    source: str, caption: str | None, names: Sequence[str], images: str | None, texts_only: bool
) -> InLines | InFiles | InTable | InShards:
    path = Path(source)
    if path.is_file() and path.suffix.lower() == CAPTIONS:
        return InLines(path)
    if path.is_dir():
        if any(path.glob("*.tar")) or (path / shards.CATALOG).is_file():
            return InShards(source, caption, names, texts_only)
        described = any((path / name).is_file() for name in sets.METADATA)
        if not described and (pictures := sets.pictures_below(path)):
            return InFiles(path, pictures)
    if (table := sets.open_table(source, images)) is not None:
        return InTable(source, table, caption, names)
    if path.is_dir():
        kinds = ", ".join(shards.IMAGE_SUFFIXES)
        raise UserError(f"{source}: neither .tar shards nor pictures ({kinds}) in this folder, nor a table of them")
    if path.is_file() and path.suffix.lower() != ".tar":
        return InFiles(path.parent, [path])
    return InShards(source, caption, names, texts_only)


def has_captions(found: Collection) -> bool:
    """Is there a caption among the first samples?"""
    return any(_first(found, "caption"))


def _checked(found: InTable, source: str, caption: str | None, names: Sequence[str]) -> InTable:
    """The same, if it has the columns that are asked for."""
    for option, name in [*(("--fields", name) for name in names), *([("--caption", caption)] if caption else [])]:
        if name not in found.fields():
            there = sets.suggested(name, found.fields())
            raise UserError(f"{source}: no column '{name}', which {option} names; {there}")
    return found


def _in_json(found: InShards, source: str, names: Sequence[str]) -> InShards:
    """The same, if its samples have the fields that are asked for."""
    for name in names:
        if all(value is None for value in _first(found, name)):
            seen, there = min(LOOKED_AT, len(found)), sets.suggested(name, found.fields())
            raise UserError(
                f"{source}: none of its first {seen} samples has '{name}' in its .json, which --fields names; {there}"
            )
    return found


def _first(found: Collection, name: str) -> list[Any]:
    """What the first samples hold under a name."""
    values = []
    for number in range(min(LOOKED_AT, len(found))):
        try:
            values.append(found.record(number)[name])
        except (ValueError, OSError):  # it will be met again, and counted
            continue
    return values
