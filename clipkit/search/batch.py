"""Many queries from a file, answered in order as JSON lines."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import BadData, UserError
from clipkit.log import Progress, say
from clipkit.search.index import Index, Options
from clipkit.search.query import Query, from_fields

AT_ONCE = 128  # queries in the model and the index together

Asked = tuple[dict[str, Any], Query]
"""A query as it was written, and as it is understood."""


def read(path: Path) -> list[Asked]:
    """The queries of a file: `.jsonl` holds one object a line (text, image, key, id, not, weights), any other file a
    text a line. Empty lines are left out.

    Raises: UserError naming the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    found = [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{path}: holds no query; one a line is needed")
    return found


def _line(path: Path, number: int, line: str) -> Asked:
    try:
        fields = json.loads(line) if path.suffix == ".jsonl" else {"text": line.strip()}
        return fields, from_fields(fields)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: line {number}: not JSON ({error})") from None
    except UserError as error:
        raise UserError(f"{path}: line {number}: {error}") from None


def answers(index: Index, asked: list[Asked], options: Options) -> Iterator[dict[str, Any]]:
    """For each query in order {query, hits}; or {query, error} where what it names cannot be read.

    Raises: BadData behind the last when none could be answered.
    """
    failed = 0
    with Progress("search", len(asked), hush_s=2) as bar:
        for start in range(0, len(asked), AT_ONCE):
            some = asked[start : start + AT_ONCE]
            rows = index.embed_each([query for _, query in some], options.kind)
            good = [i for i, row in enumerate(rows) if isinstance(row, np.ndarray)]
            vectors = np.array([rows[i] for i in good], np.float32).reshape(len(good), index.stored.width)
            found = dict(zip(good, index.nearest(vectors, options, [index.own(some[i][1]) for i in good]), strict=True))
            for i, (fields, _) in enumerate(some):
                answer = {"hits": [hit.as_dict() for hit in found[i]]} if i in found else {"error": str(rows[i])}
                yield {"query": fields, **answer}
            failed += len(some) - len(good)
            bar.update(start + len(some))
    if failed == len(asked):
        raise BadData(f"search: none of {failed} queries could be answered; their lines say why")
    if failed:
        say(f"search: {failed} of {len(asked)} queries could not be answered; their lines say why")
