"""`clipkit dedup VECTORS` and `clipkit cluster VECTORS`: rows that belong together, and selections of them."""

from clipkit.groups.cluster import cluster
from clipkit.groups.dedup import dedup

__all__ = ["cluster", "dedup"]
