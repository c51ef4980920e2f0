"""`clipkit index VECTORS --to DATABASE`: the rows of a vectors folder in a database, for those who run one."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from clipkit.errors import UserError
from clipkit.index.exports.rows import Export
from clipkit.vectors.joined import Joined

WHERE = ("lancedb:FOLDER/TABLE", "qdrant:http://HOST:6333/COLLECTION", "postgresql://USER@HOST/DATABASE?table=NAME")


def export(source: str | Path, to: str) -> dict[str, Any]:
    """Write all rows of a vectors folder with their metadata to a database; gives how many they are, `rows`, and lines
    that tell how to `search` there. Row i gets the id i: the same export again changes nothing, and one that was cut
    short is repeated.

    Raises: UserError when the address is none, a package is missing, or the database refuses.
    """
    scheme, _, place = to.partition(":")
    if scheme == "lancedb":
        name, package = "lancedb", "lancedb"
    elif scheme == "qdrant":
        name, package = "qdrant", "qdrant_client"
    elif scheme in ("postgresql", "postgres"):
        name, package, place = "pgvector", "psycopg", to
    else:
        raise UserError(f"--to {scheme}: one of {', '.join(WHERE)} is needed")
    writer = _needed(name, package)
    rows = Export(Joined([source]))
    return {"rows": len(rows), "search": writer(rows, place)}


def _needed(name: str, package: str) -> Any:
    """The function `write` of a module here, whose package must be there."""
    try:
        import_module(package)
    except ImportError:
        raise UserError(f"--to: the package {package} is missing; type: pip install 'clipkit[{name}]'") from None
    return import_module(f"clipkit.index.exports.{name}").write


def split(place: str, to: str, what: str) -> tuple[str, str]:
    """(where, name) of an address whose last part is the name of a table.

    Raises: UserError when a part is missing, or the name holds other than letters, digits, `_` and `-`.
    """
    where, _, name = place.rpartition("/")
    if not where or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"--to {to}: an address and the name of a {what} after a slash are needed")
    return where, name
