"""Samples on disk: WebDataset shards read by offset, and plain folders of pictures.

A shard is indexed once (headers only, about 50 us a sample) and the index kept beside it; a sample is then one
`pread` (9 us where webdataset's tar iterator needs 380 us, LOG.md). Nothing read from a shard is ever executed.
"""

from clipkit.shards.folder import Folder, open_source, read_span
from clipkit.shards.source import Shards, caption_of, json_object, members_for, resolve

__all__ = ["Folder", "Shards", "caption_of", "json_object", "members_for", "open_source", "read_span", "resolve"]
