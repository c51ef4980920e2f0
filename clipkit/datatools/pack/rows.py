"""One image and its captions as any source tells of them, and what a table's columns mean."""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from clipkit.errors import UserError

IMAGE_COLUMNS = ("image", "image_path", "path", "filepath", "file_path", "file_name", "filename", "file", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "title", "description", "txt", "sentence", "sentences")
URL_COLUMNS = ("url", "urls", "image_url", "img_url", "link")
_JSON = json.JSONEncoder(ensure_ascii=False)
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


@dataclass(frozen=True)
class Options:
    """What the user says about a source: where captions are, which columns, folder and split are meant."""

    captions: str | None = None
    image: str | None = None
    caption: str | None = None
    root: str | None = None
    split: str | None = None
    group: str | None = None


class Row(NamedTuple):
    """One sample to be. The image lies in the file `image`: all of it, or `size` bytes from `offset`; or it is `data`.

    `id` tells people where it was found; samples of one `group` stay on one side of a split; a row with a `problem`
    is left out for that reason.
    """

    id: str
    group: str = ""
    image: str = ""
    offset: int = -1
    size: int = -1
    data: bytes | None = None
    captions: Sequence[str] = ()
    caption_file: str = ""
    extra: Mapping[str, Any] = {}
    problem: str = ""


class Source(Protocol):
    """Something that can be packed; `kind` names its sort in messages; `ignored`
    counts what lies there and is no sample, known when rows() has ended."""

    kind: str
    ignored: dict[str, int]

    def rows(self) -> Iterable[Row]:
        """All rows, always in the same order."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Facts that change when the source does."""
        ...


class Columns(NamedTuple):
    """The columns of a table that hold image, caption and group; no group column means: the image's path."""

    image: str
    caption: str
    group: str | None


def choose(there: Sequence[str], options: Options, where: str) -> Columns:
    """The columns that the options name, else those with a usual name.

    Raises: UserError when one is not there, or none or several have a usual name; it names all that are there.
    """
    listed = f"the columns are: {', '.join(there) or 'none'}"

    def pick(option: str, wanted: str | None, usual: Sequence[str]) -> str:
        if wanted is not None:
            if wanted not in there:
                raise UserError(f"{where}: --{option} {wanted}: no such column; {listed}")
            return wanted
        found = [name for name in there if name.lower() in usual]
        if len(found) == 1:
            return found[0]
        addresses = [name for name in there if name.lower() in URL_COLUMNS]
        if option == "image" and not found and addresses:
            raise UserError(_addresses(where, addresses[0]))
        what = f"several columns could be the {option} ({', '.join(found)})" if found else f"no column for the {option}"
        raise UserError(f"{where}: {what}; {listed}; type --{option} COLUMN")

    image = pick("image", options.image, IMAGE_COLUMNS)
    caption = pick("caption", options.caption, CAPTION_COLUMNS)
    return Columns(image, caption, pick("group", options.group, ()) if options.group is not None else None)


def _addresses(where: str, column: str) -> str:
    return (
        f"{where}: column '{column}' holds addresses and nothing is downloaded here; "
        "download with img2dataset, whose shards need no packing"
    )


def check_no_address(value: Any, column: str, where: str) -> None:
    """Raises: UserError when the first row of a table names its image by an address."""
    if isinstance(value, str) and ADDRESS.match(value):
        raise UserError(_addresses(where, column))


def table_row(id: str, record: Mapping[str, Any], columns: Columns, root: str, absolute: bool) -> Row:
    """The row that a table's `record` tells of; paths start from `root`, absolute ones only count if `absolute`."""
    value = record.get(columns.image)
    data, path = None, value
    if isinstance(value, Mapping) and "bytes" in value:
        data, path = value["bytes"], value.get("path")
    elif isinstance(value, bytes):
        data, path = value, None
    extra = dict(plain({key: v for key, v in record.items() if key not in (columns.image, columns.caption)}))
    group = record.get(columns.group) if columns.group else None
    if group is None:
        group = stem(path) if data is None and isinstance(path, str) else id
    if isinstance(path, str) and path:
        extra = {columns.image: path, **extra}
        id = f"{id}: {shown(path)}"
    try:
        image = "" if data is not None else locate(path, root, absolute)
        captions = clean(record.get(columns.caption))
    except ValueError as error:
        return Row(id, problem=str(error))
    return Row(id, str(group), image, data=data, captions=captions, extra=extra)


def locate(path: Any, root: str, absolute: bool) -> str:
    """Where the image lies that a source calls `path`.

    Raises: ValueError when it is none, an address, or outside of `root`; whether it exists is asked later.
    """
    if not isinstance(path, str) or not path:
        raise ValueError("no image")
    if ADDRESS.match(path):
        raise ValueError("an address, not a file")
    whole = os.path.normpath(os.path.join(root, path))
    try:
        if b"\0" in os.fsencode(whole):
            raise ValueError("no such file")
    except UnicodeEncodeError:
        raise ValueError("no such file") from None
    if os.path.isabs(path) and absolute:
        return whole
    if not whole.startswith(os.path.join(os.path.normpath(root), "")):
        raise ValueError("outside the folder")
    return whole


def stem(path: str) -> str:
    """A path without its suffix: what stands for an image where nothing else groups samples."""
    return os.path.splitext(os.path.normpath(path))[0]


def shown(path: str) -> str:
    """A file's name as text, also where it is no UTF-8."""
    return path.encode("utf-8", "backslashreplace").decode()


def clean(value: Any) -> list[str]:
    """The captions in a text or a list of texts, without blanks around them, without empty ones.

    Raises: ValueError when there is none, or one is not text or not UTF-8.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    if any(text is not None and not isinstance(text, str) for text in texts):
        raise ValueError("caption is not text")
    found = [text.strip() for text in texts if text and text.strip()]
    if not found:
        raise ValueError("empty caption")
    try:
        for text in found:
            text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, or a byte that a file's reader could not decode
        raise ValueError("caption is not UTF-8") from None
    return found


def words(name: str) -> str:
    """The caption that a file's name is: "red_apple-012" is "red apple"."""
    parts = re.split(r"[\s_\-]+", name)
    while parts and (not parts[-1].strip("()") or parts[-1].strip("()").isdecimal()):
        parts.pop()
    return " ".join([*parts[:-1], parts[-1].rstrip("0123456789")]).strip() if parts else ""


def plain(value: Any) -> Any:
    """The value as JSON can hold it: dates and decimals as text, numbers that are none as null, bytes left away."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items() if not isinstance(v, bytes)}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value if not isinstance(v, bytes)]
    return str(value)


def encoded(record: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8; in ASCII where it holds letters that are no Unicode."""
    try:
        return _JSON.encode(record).encode()
    except UnicodeEncodeError:
        return json.dumps(record).encode()
