"""`clipkit index VECTORS --out INDEX`: FAISS indexes over vectors folders, tuned to find a wanted share of the best."""

from pathlib import Path
from typing import Any

from clipkit import distributed
from clipkit.index import changes
from clipkit.index.build import build

__all__ = ["build", "remeasure"]


def remeasure(
    folder: str | Path, recall: float | None = None, k: int | None = None, queries: str | Path | None = None
) -> dict[str, Any]:
    """Find the settings of an index again, for what was asked of it or for another `recall` or `k`; gives what its
    index.json says then.

    Raises: UserError when it is none, its vectors are not where they were, or another process is changing it.
    """
    distributed.join()
    asked = {name: value for name, value in (("recall", recall), ("k", k)) if value is not None}
    with changes.alone(Path(folder)):
        return changes.measured(Path(folder), queries, **asked)
