"""Retrieval both ways: each caption finds its picture, each picture one of its captions."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipkit import distributed, metrics, vectors
from clipkit.config import settings
from clipkit.evals._rows import image_rows, open_whole, read_or_name, text_rows
from clipkit.models import DualEncoder
from clipkit.shards import caption_of, members_for


@settings
class Setting:
    data: str
    """Shards of the pairs: a folder, a glob or a brace pattern."""
    caption: str = "txt"
    """Where captions are: txt, or json:KEY for a text or a list of texts; all of a list count."""
    recall_at: tuple[Annotated[int, Field(gt=0)], ...] = (1, 5, 10)
    """The depths k of recall@k."""

    def __call__(self, model: DualEncoder, workers: int = 0) -> dict[str, float]:
        """`image_retrieval_recall@k` (mean over captions: is its picture among the first k), `text_retrieval_recall@k`
        (mean over pictures: is any of its captions) and the mean of both; source: CLIP_benchmark's zeroshot_retrieval.
        """
        source = open_whole(self.data, members_for(self.caption))
        texts: list[str] = []
        owner: list[int] = []
        for i in range(len(source)):
            captions = read_or_name(source, i, lambda shard, row: caption_of(source, shard, row, self.caption))
            texts += captions
            owner += [i] * len(captions)
        image = image_rows(model, source, range(len(source)), workers)
        text = text_rows(model, texts)
        owners = torch.tensor(owner)
        rows = torch.arange(len(source))
        scores: dict[str, float] = {}
        for name, queries, gallery, own, of in (
            ("image", text, image, owners, rows),
            ("text", image, text, rows, owners),
        ):
            for k, hits in self._hits(queries, gallery, own, of).items():
                scores[f"{name}_retrieval_recall@{k}"] = hits / len(queries)
        for k in self.recall_at:
            both = scores[f"image_retrieval_recall@{k}"] + scores[f"text_retrieval_recall@{k}"]
            scores[f"mean_recall@{k}"] = both / 2
        return {**scores, "images": len(source), "captions": len(texts)}

    def _hits(self, queries: Tensor, gallery: Tensor, own: Tensor, owner: Tensor) -> dict[int, int]:
        """How many queries find their own within each depth; every rank asks its share of them."""
        mine = list(distributed.share(len(queries)))
        _, found = vectors.search(vectors.flat_index(gallery.numpy()), queries[mine].numpy(), max(self.recall_at))
        hits = {k: metrics.found_at(torch.from_numpy(found), owner, own[mine], k).sum() for k in self.recall_at}
        return {k: int(distributed.total(count)) for k, count in hits.items()}
