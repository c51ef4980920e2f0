"""A corpus of damaged, hostile and odd shards, each with what must come out of it, counted.

`python -m tests.shards.damage OUT` writes them with a manifest.json; the kinds are in four modules beside this one:
damaged_tars.py, odd_tars.py, damaged_captions.py and damaged_pictures.py.
"""

import dataclasses
import functools
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.samples import encoded, shape

Members = list[tuple[str, bytes]]
GOOD = ("g0", "g1", "g2", "g3")


@dataclass(frozen=True)
class Kind:
    """One shard: its keys that can be read, in their order; `left_out` {reason: count} is found by the index (with
    `no txt` or `no json` for samples without a caption), `unreadable` {reason: count} on reading."""

    name: str
    path: Path
    caption: str
    usable: tuple[str, ...]
    left_out: dict[str, int]
    unreadable: dict[str, int]


@dataclass(frozen=True)
class Recipe:
    """A kind before it is written."""

    make: Callable[[], bytes]
    usable: tuple[str, ...]
    left_out: dict[str, int]
    unreadable: dict[str, int]
    caption: str = "txt"


def good(*keys: str, suffixes: tuple[str, ...] = ("jpg", "txt")) -> Members:
    """The members of whole samples."""
    out: Members = []
    for key in keys:
        image, caption = shape(sum(key.encode()))
        files = {
            "jpg": encoded(image, quality=95),
            "txt": caption.encode(),
            "json": json.dumps({"alt": caption}).encode(),
        }
        out += [(f"{key}.{suffix}", files[suffix]) for suffix in suffixes]
    return out


def tar(members: Iterable[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> bytes:
    """The bytes of a tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members:
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            archive.addfile(facts, io.BytesIO(data))
    return file.getvalue()


@functools.cache
def recipes() -> dict[str, Recipe]:
    """Every kind by its name."""
    from tests.shards import damaged_captions, damaged_pictures, odd_tars

    out = dict(odd_tars.KINDS)
    for name, (caption, members, reason) in damaged_captions.all_captions().items():
        out[name] = _beside_good(name, members, reason, caption)
    for name, (data, reason) in damaged_pictures.all_pictures().items():
        out[name] = _beside_good(name, [("bad.jpg", data), ("bad.txt", b"a caption")], reason, "txt")
    return out


def _beside_good(name: str, members: Members, reason: str | None, caption: str) -> Recipe:
    """A sample `bad` between two good ones."""
    suffixes = ("jpg", "txt", "json")
    data = tar(good("g0", suffixes=suffixes) + members + good("g1", suffixes=suffixes))
    usable = ("g0", "g1") if reason else ("g0", "bad", "g1")
    found_by_index = reason is not None and reason.startswith("no ")
    left_out, unreadable = ({reason: 1}, {}) if found_by_index else ({}, {reason: 1} if reason else {})
    return Recipe(lambda: data, usable, left_out, unreadable, caption)  # type: ignore[arg-type]


def corpus(folder: Path) -> list[Kind]:
    """Write every kind as `NAME.tar` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = []
    for name, one in recipes().items():
        path = folder / f"{name}.tar"
        path.write_bytes(one.make())
        kinds.append(Kind(name, path, one.caption, one.usable, one.left_out, one.unreadable))
    return kinds


def main() -> None:
    """Write the corpus and its manifest."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.shards.damage OUT")
    out = Path(sys.argv[1])
    kinds = corpus(out)
    told = [{**dataclasses.asdict(kind), "path": kind.path.name} for kind in kinds]
    (out / "manifest.json").write_text(json.dumps(told, indent=1) + "\n")
    print(f"{len(kinds)} kinds in {out}")


if __name__ == "__main__":
    main()
