"""Shards in, batches out: the same batches for any number of ranks and workers, from any position on."""

from clipkit.data.guard import told
from clipkit.data.settings import Settings, Source
from clipkit.data.stream import Stream, open_stream

__all__ = ["Settings", "Source", "Stream", "open_stream", "told"]
