"""Evaluation sets as they lie about: shards, CLIP_benchmark's layout, class folders, tables and COCO captions.

`open_set` finds out which it is and gives `Samples`: pictures by number and fields by name. Nothing is copied but what
lies elsewhere, and nothing is read before it is asked for but names, tables and the headers of shards.
"""

import re
from pathlib import Path

from clipkit.errors import UserError
from clipkit.sets import captions, in_shards, parquet, tables
from clipkit.sets.files import Files
from clipkit.sets.folders import InFolders, pictures_below
from clipkit.sets.in_shards import InShards
from clipkit.sets.parquet import InParquet
from clipkit.sets.samples import About, Samples, no_field, suggested
from clipkit.sets.tables import InTable
from clipkit.shards import CATALOG, is_remote

__all__ = [
    "METADATA", "About", "Files", "InParquet", "InShards", "Samples", "address", "no_field", "open_set", "open_table",
    "pictures_below", "rooted", "suggested",
]  # fmt: skip

METADATA = ("metadata.csv", "metadata.jsonl")
"""Tables that describe the pictures of their folder, as Hugging Face's image folders have them."""
_PAGE = re.compile(r"https://huggingface\.co/datasets/([^/]+/[^/?#]+)(?:/tree/([^/?#]+)(/[^?#]+)?)?/?")
_HUB = re.compile(r"hf://datasets/[^/]+/([^/@]+)(?:@[^/]+)?/?")


def open_set(
    data: str, split: str = "test", images: str | None = None, label: str | None = None, prefix: str | None = None
) -> Samples:
    """The samples of `data`: a folder, an address, a glob or brace pattern of shards, a table, or captions in JSON.

    `split` chooses among the parts of a layout that has them (ROOT/test, ROOT/train, a column of that name), `images`
    is the folder that pictures named by a table or by captions lie in (null: the file's own). `label` is the field
    whose classes are wanted where a set has several, `prefix` chooses among the classes and templates of a set whose
    lines begin with one (`gender:`).
    Raises: UserError when nothing is there that can be read as a set.
    """
    data = address(data)
    found = _in_file(data, split, images, label)
    if found is None:
        found = _in_shards(data, split, prefix)
    if found is None:
        found = _in_tables(Path(data), split, images, label)
    if found is None:
        found = InFolders(Path(data), split)
    if prefix and not (isinstance(found, InShards) and found.about.kind):
        raise UserError(f"{data}: prefix chooses among lines of classnames.txt; this set has none")
    return found


def open_table(data: str, images: str | None = None) -> InTable | InParquet | Files | None:
    """All rows of a table, whatever their split: of a file, or of the table that describes the pictures of a folder, or
    of the Parquet files in it; None where `data` is nothing of the kind. `images` as in `open_set`.

    Raises: UserError as `open_set` does.
    """
    found = _in_file(data, None, images, None)
    if found is None and Path(data).is_dir():
        found = _in_tables(Path(data), None, images, None)
    return found


def _in_file(data: str, split: str | None, images: str | None, label: str | None) -> InTable | InParquet | Files | None:
    """What a table or captions hold; None where `data` is no such file."""
    suffix = Path(data).suffix.lower()
    if suffix == parquet.SUFFIX:
        return InParquet(parquet.resolve(data), images, split, label)
    if suffix not in (*tables.SUFFIXES, captions.SUFFIX):
        return None
    if is_remote(data):
        raise UserError(
            f"{data}: tables are read from local files, only shards and Parquet from elsewhere; copy it here"
        )
    path = Path(data)
    if suffix != captions.SUFFIX:
        return InTable(path, tables.rows(path), images, split, label)
    tree = captions.read(path)
    if isinstance(tree, list):
        return InTable(path, tables.objects(path, tree), images, split, label)
    return captions.open_captions(path, tree, images, split)


def _in_shards(data: str, split: str, prefix: str | None) -> InShards | None:
    """What shards hold; None where `data` is a folder without any."""
    folder = Path(data)
    far = is_remote(data) and not data.startswith("pipe:")
    if folder.is_dir() or (far and not data.endswith(".tar") and not re.search(r"[*?\[{]", data)):
        root = data.rstrip("/") or "/"
        if (found := in_shards.layout(root, split, prefix)) is not None:
            return found
    if folder.is_dir():
        places = (folder, folder / split)
        place = next((p for p in places if any(p.glob("*.tar")) or (p / CATALOG).is_file()), None)
        return InShards(str(place)) if place else None
    return InShards(data)


def _in_tables(folder: Path, split: str | None, images: str | None, label: str | None) -> InTable | InParquet | None:
    """What Parquet files or a table of metadata hold in a folder; None where there are none."""
    if files := parquet.in_folder(folder, split):
        return InParquet(files, images, split, label)
    places = (folder,) if split is None else (folder / split, folder)
    beside = (place / name for place in places for name in METADATA)
    if table := next((path for path in beside if path.is_file()), None):
        return InTable(table, tables.rows(table), images, split, label)
    return None


def address(data: str) -> str:
    """The page of a data set on the Hugging Face Hub as an `hf://` address, which knows about tokens; else `data`."""
    page = _PAGE.fullmatch(data)
    if page is None:
        return data
    name, branch, inside = page.groups()
    return f"hf://datasets/{name}" + (f"@{branch}" if branch else "") + (inside or "")


def rooted(data: str, root: Path) -> str:
    """`data` below `root`, or as it is when it is absolute or an address.

    A data set of the Hub, of which a folder of its name lies in `root`, is read there: so CLIP_benchmark and DataComp
    download them.
    """
    if not is_remote(data):
        return str(root / data)
    hub = _HUB.fullmatch(address(data))
    return str(root / hub[1]) if hub and (root / hub[1]).is_dir() else data
