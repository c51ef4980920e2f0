"""`clipkit search INDEX "a red bicycle"`: what of a collection is nearest to words, pictures, or rows of its own."""

from clipkit.search.hits import Hit
from clipkit.search.index import Index, Options, open_index
from clipkit.search.query import Part, Query, query

__all__ = ["Hit", "Index", "Options", "Part", "Query", "open_index", "query"]
