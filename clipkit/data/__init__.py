"""Shards in, batches out: the same batches for any number of ranks and workers, from any position on."""

from clipkit.data.guard import told
from clipkit.data.settings import Settings, Source
from clipkit.data.stages import Stage, check_stages, stage_at
from clipkit.data.stream import Stream, open_stream

__all__ = ["Settings", "Source", "Stage", "Stream", "check_stages", "open_stream", "stage_at", "told"]
