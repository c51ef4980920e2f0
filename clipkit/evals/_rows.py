"""What the kinds of evaluation share: all pictures of a data set through a model, each rank its share."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.errors import BadData
from clipkit.log import say
from clipkit.models import DualEncoder, embed_images, embed_texts
from clipkit.shards import Shards, Wanted

T = TypeVar("T")


def open_whole(pattern: str, wanted: Wanted) -> Shards:
    """The shards of a data set; samples that they lost are told, since a score over fewer samples is another score."""
    source = Shards(pattern, wanted)
    if source.lost:
        say(f"{pattern}: scored over {len(source)} samples{source.told_lost()}")
    return source


def read_or_name(source: Shards, number: int, read: Callable[[int, int], T]) -> T:
    """`read(shard, row)` of a sample.

    Raises: BadData naming the sample when its caption or label cannot be read.
    """
    try:
        return read(*source.place(number))
    except (ValueError, OSError) as error:
        raise BadData(f"{source.name(number)}: {error}; mend or remove it") from None


def image_rows(model: DualEncoder, source: Shards, numbers: Sequence[int], workers: int) -> Tensor:
    """Embeddings float32 [len(numbers), D] on the CPU, the same on all ranks.

    Raises: BadData naming the first picture that cannot be read: a score over fewer samples is another score.
    """
    mine = [numbers[i] for i in distributed.share(len(numbers))]
    parts = [torch.empty(0, model.spec["model_cfg"]["embed_dim"])]
    for _, rows, bad in embed_images(model, source, mine, workers=workers):
        for number, reason in bad.items():
            raise BadData(f"{source.name(number)}: {reason}; mend or remove it")
        parts.append(rows)
    return distributed.gather_uneven(torch.cat(parts))


def text_rows(model: DualEncoder, texts: Sequence[str]) -> Tensor:
    """Embeddings float32 [len(texts), D] on the CPU, the same on all ranks."""
    return distributed.gather_uneven(embed_texts(model, [texts[i] for i in distributed.share(len(texts))]))
