"""Which shards a pattern means: a folder, a glob, a brace pattern, addresses of a remote storage, an index folder."""

import glob
import json
from pathlib import Path

from clipkit.errors import UserError
from clipkit.shards import remote

CATALOG = "shards.jsonl"
"""The list of shards in a folder that `clipkit data index --out` has written."""


def resolve(pattern: str) -> list[str]:
    """The shards that a folder, a glob or a brace pattern (`{00000..00012}`) names, as paths or addresses, sorted
    where a folder or a glob is listed.

    Raises: UserError when there are none, or one that a brace pattern names is not there.
    """
    import braceexpand

    if pattern.startswith("pipe:"):
        return remote.expand(pattern)
    if (folder := Path(pattern)).is_dir():
        return _in_folder(folder)
    try:
        names = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{pattern}: {error}; write a brace pattern as {{000..012}}") from None
    if len(names) == 1 and not glob.has_magic(pattern) and not remote.is_remote(pattern) and not Path(pattern).exists():
        raise UserError(f"{pattern}: no such file or folder; give a folder, a glob or a {{000..012}} pattern")
    found: list[str] = []
    for name in names:
        if remote.is_remote(name):  # a plain address is taken as it is: asking for each of thousands would take minutes
            found += [name] if name.endswith(".tar") and not glob.has_magic(name) else remote.expand(name)
        else:
            found += sorted(glob.glob(name)) if glob.has_magic(name) else [name]
    missing = [name for name in found if not remote.is_remote(name) and not Path(name).is_file()]
    if missing:
        raise UserError(f"{pattern}: {len(missing)} of {len(found)} shards are not there, the first is {missing[0]}")
    if not found:
        raise UserError(f"{pattern}: no shard matches; give a folder, a glob or a {{000..012}} pattern")
    return found


def _in_folder(folder: Path) -> list[str]:
    if (folder / CATALOG).is_file():
        return [entry["name"] for entry in catalog(folder)]
    found = sorted(str(path) for path in folder.glob("*.tar"))
    if not found:
        inside = sorted({path.parent.name for path in folder.glob("*/*.tar")})
        hint = f"; there are some in {', '.join(str(folder / name) for name in inside[:3])}" if inside else ""
        raise UserError(
            f"{folder}: no .tar shards in this folder{hint}; give a folder, a glob or {{000..012}} pattern; "
            "`clipkit data pack` makes shards of pictures"
        )
    return found


def catalog(folder: Path) -> list[dict]:
    """The entries of an index folder: name, bytes and samples of each shard.

    Raises: UserError when it is damaged, or names a command to run.
    """
    try:
        entries = [json.loads(line) for line in (folder / CATALOG).read_text(encoding="utf-8").splitlines()]
        names = [str(entry["name"]) for entry in entries]
        if not names or min(int(entry["samples"]) for entry in entries) < 0:
            raise ValueError("no shards" if not names else "a shard of less than no samples")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{folder / CATALOG}: damaged ({error})"
        raise UserError(f"{what}; `clipkit data index SRC --out` makes it again") from None
    if any(name.startswith("pipe:") for name in names):
        raise UserError(f"{folder / CATALOG}: names a command (pipe:), which is only run where a person has typed it")
    return entries


def short(names: list[str]) -> list[str]:
    """The names without the folders that all of them share: what a shard is called wherever the set may lie."""
    parts = [name.split("/") for name in names]
    shared = 0
    least = min((len(part) for part in parts), default=1) - 1
    while shared < least and len({part[shared] for part in parts}) == 1:
        shared += 1
    return ["/".join(part[shared:]) for part in parts]
