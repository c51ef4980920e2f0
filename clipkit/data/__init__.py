"""Shards in, batches out: the same batches for any number of ranks and workers, from any position on."""

from clipkit.data.loader import Settings, Stream, open_stream

__all__ = ["Settings", "Stream", "open_stream"]
