"""Qdrant: a collection of points with named vectors and the metadata as payload, in a server or in a local folder.

Source: Qdrant's Python client, `create_collection`, `upsert`, `scroll`; ids are numbers, so that row i is point i.
"""

import os
from typing import Any

import numpy as np

from clipkit.errors import UserError
from clipkit.index import exports
from clipkit.index.exports.rows import Export, plain

AT_ONCE = 256
"""Points in a request: 5 MB of JSON at a width of 512; a server refuses more than 32."""
STALE = 1000


def write(rows: Export, place: str) -> list[str]:
    """Write a collection; gives how it is searched. Points of an earlier, longer export are removed at the end.

    Raises: UserError when the collection holds other vectors, or the server cannot be asked.
    """
    where, name = exports.split(place, f"qdrant:{place}", "collection")
    client = _client(where)
    try:
        fill(client, name, rows)
    except Exception as error:
        _raise_told(error, where)
        raise
    finally:
        client.close()
    return [
        f"qdrant: query_points({name!r}, VECTOR, using={kind!r}, search_params=SearchParams(hnsw_ef=512)); words lie "
        "apart from all pictures and need more than the default of 100"
        for kind in rows.columns
    ]


def _client(where: str) -> Any:
    from qdrant_client import QdrantClient

    if "://" in where:
        return QdrantClient(url=where, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60, check_compatibility=False)
    try:
        return QdrantClient(path=where)
    except RuntimeError as error:  # another process has the folder open
        raise UserError(f"--to qdrant:{where}: {error}") from None


def _raise_told(error: Exception, where: str) -> None:
    """Raise what the server said as something that the user can fix; return where it is none of the server's words."""
    from qdrant_client.http.exceptions import ApiException

    if isinstance(error, ApiException):
        raise UserError(f"--to qdrant:{where}: {str(error).strip().splitlines()[0]}") from None


def fill(client: Any, name: str, rows: Export) -> None:
    """Write all rows into the collection `name`, which is made where there is none.

    Raises: UserError when it holds other vectors.
    """
    from qdrant_client import models

    wanted = {kind: models.VectorParams(size=rows.width, distance=models.Distance.DOT) for kind in rows.columns}
    if not client.collection_exists(name):
        client.create_collection(name, vectors_config=wanted)
    there = client.get_collection(name).config.params.vectors
    if not isinstance(there, dict) or {k: (v.size, v.distance) for k, v in there.items()} != {
        k: (v.size, v.distance) for k, v in wanted.items()
    }:
        raise UserError(f"--to qdrant: the collection {name} is there and holds other vectors; give another name")
    for batch in rows.batches(AT_ONCE, "qdrant"):
        payloads = [plain(record) for record in batch.table.to_pylist()]
        points = [
            models.PointStruct(id=number, vector=_vectors(batch.vectors, i), payload=payload)
            for i, (number, payload) in enumerate(zip(batch.ids, payloads, strict=True))
        ]
        client.upsert(name, points, wait=True)
    _remove_from(client, name, len(rows))


def _vectors(rows: dict[str, np.ndarray], i: int) -> dict[str, Any]:
    """The vectors of one row by their kind, without those that are zeros."""
    return {kind: each[i].tolist() for kind, each in rows.items() if each[i].any()}


def _remove_from(client: Any, name: str, first: int) -> None:
    """Remove the points from number `first` on."""
    while True:
        points, _ = client.scroll(name, limit=STALE, offset=first, with_payload=False)
        if not points:
            return
        client.delete(name, [point.id for point in points], wait=True)
