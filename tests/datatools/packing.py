"""What the tests of packing share: folders of small captioned pictures, and shards read back."""

import json
from pathlib import Path
from typing import Any

from clipkit.datatools.pack import pack
from clipkit.shards import Shards
from tests.samples import encoded, shape

NASTY = ['one, two; "three"', "first line\nsecond line", "a 😀 flag 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "tab\there", "Ünïcödé — 漢字", "\\n 'x' {y}"]


def picture(number: int) -> bytes:
    """A JPEG that no other number has."""
    return encoded(shape(number)[0])


def folder(top: Path, count: int, texts: bool = True) -> Path:
    """A folder with `count` pictures in two subfolders and beside them."""
    for number in range(count):
        path = top / ("", "a", "a/b")[number % 3] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
        if texts:
            path.with_suffix(".txt").write_text(shape(number)[1], encoding="utf-8")
    return top


def packed(src: Path | str, out: Path, **options: Any) -> dict[str, Any]:
    """Pack in this process, few samples per shard."""
    return pack(str(src), out, **{"workers": 1, "per_shard": 4, **options})


def read(out: Path) -> dict[str, tuple[bytes, str, dict[str, Any]]]:
    """Key -> (image, caption, json) of all shards of a folder, in their order."""
    source, found = Shards(str(out), ("image", "txt", "json")), {}
    assert source.lost == {}
    for number in range(len(source)):
        shard, row = source.place(number)
        image, text, about = (source.read(shard, row, member) for member in ("image", "txt", "json"))
        found[source.key(shard, row)] = image, text.decode(), json.loads(about)
    return found


def pairs(out: Path) -> list[tuple[bytes, str]]:
    """(image, caption) of all samples, sorted by image."""
    return sorted((image, text) for image, text, _ in read(out).values())


def left_out(out: Path) -> list[tuple[str, str]]:
    """(id, reason) of all lines of left_out.jsonl."""
    lines = (out / "left_out.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["id"], row["reason"]) for row in map(json.loads, lines)]


def everything(out: Path) -> dict[str, bytes]:
    """Path -> bytes of all that a pack left in `out`, without the indexes that readers keep there."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and not path.name.endswith(".npz"))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}
