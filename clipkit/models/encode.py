"""Pictures and texts through a model, many at a time and in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit import images
from clipkit.errors import ClipkitError, from_worker
from clipkit.models.towers import DualEncoder
from clipkit.types import Preprocess

CPU_BATCH = 32  # pictures of ViT-S/32 take 13.6 ms each, and 15.4 by 64: what is between two layers leaves the cache

Item = TypeVar("Item")
Read = TypeVar("Read")
Done = TypeVar("Done")


class Pictures(Protocol):
    """What holds pictures by number, such as `shards.Shards` and `shards.Folder`."""

    def image(self, number: int) -> bytes:
        """The bytes of a picture."""
        ...


@dataclass(frozen=True)
class Views:
    """Pictures as the model takes them: the numbers of those that could be read, uint8 [n, 3, S, S], and why others
    could not."""

    good: list[int]
    pixels: Tensor
    bad: dict[int, OSError | ValueError]

    def pin_memory(self) -> "Views":
        """The same in memory that a GPU reads directly; the data loader's pinning thread calls this."""
        return replace(self, pixels=self.pixels.pin_memory())


Content = dict[int, bytes | OSError | ValueError]
"""Of each number the bytes of its picture, or why there are none."""


def read_pictures(source: Pictures, numbers: Sequence[int]) -> Content:
    """Pictures by their numbers, read and not decoded."""
    found: Content = {}
    for number in numbers:
        try:
            found[number] = source.image(number)
        except (OSError, ValueError) as error:
            found[number] = error
    return found


def decode_pictures(content: Content, shape: Preprocess, reduced: bool = False) -> Views:
    """The pictures at the size of a model; `reduced` as `images.eval_view` has it."""
    good, views, bad = [], [], {}
    for number, data in content.items():
        try:
            if isinstance(data, Exception):
                raise data
            views.append(images.eval_view(data, shape, reduced))
            good.append(number)
        except (OSError, ValueError) as error:
            bad[number] = error
    side = shape.size
    return Views(good, torch.stack(views) if views else torch.empty(0, 3, side, side, dtype=torch.uint8), bad)


@torch.inference_mode()
def embed_views(model: DualEncoder, pixels: Tensor) -> Tensor:
    """Embeddings float32 [n, D], on the CPU, of pictures uint8 [n, 3, S, S] on the CPU."""
    if not len(pixels):
        return torch.empty(0, model.width)
    parts = pixels.split(CPU_BATCH) if model.device.type == "cpu" else [pixels]
    return torch.cat([_image(model, part.to(model.device, non_blocking=True)).cpu() for part in parts])


def _image(model: DualEncoder, pixels: Tensor) -> Tensor:
    found = model(image=pixels).image
    assert found is not None
    return found


def embed_images(
    model: DualEncoder, source: Pictures, numbers: Sequence[int], batch: int = 128, workers: int = 0
) -> Iterator[tuple[list[int], Tensor, dict[int, str]]]:
    """Batch by batch in order: (numbers, their embeddings float32 [n, D] on the CPU, {number: why it was left out}).

    Before a GPU `workers` processes read and decode; on a CPU threads do, as many as torch has.
    """
    size = min(batch, CPU_BATCH) if model.device.type == "cpu" else batch
    batches = (numbers[start : start + size] for start in range(0, len(numbers), size))
    fetch, decode = partial(read_pictures, source), partial(decode_pictures, shape=model.shape)
    for views, rows in pipeline(model.device, batches, fetch, decode, partial(_with_rows, model), workers):
        yield views.good, rows, {number: _told(error) for number, error in views.bad.items()}


def _with_rows(model: DualEncoder, views: Views) -> tuple[Views, Tensor]:
    return views, embed_views(model, views.pixels)


def _told(error: OSError | ValueError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error)


def embed_texts(model: DualEncoder, texts: Sequence[str], batch: int = 512) -> Tensor:
    """Embeddings float32 [n, D] of the texts, on the CPU; each text is computed once, with others of its length."""
    unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if not unique:
        return torch.empty(0, model.width)
    rows = embed_tokens(model, model.tokenizer(list(unique)), batch)
    return rows[torch.tensor([unique[text] for text in texts])]


@torch.inference_mode()
def embed_tokens(model: DualEncoder, ids: Tensor, batch: int = 512) -> Tensor:
    """Embeddings float32 [n, D], on the CPU, of texts as the tokenizer's ids [n, context]."""
    lengths = (ids != model.tokenizer.pad).sum(1)
    out = torch.empty(len(ids), model.width)
    for rows in torch.argsort(lengths, stable=True).split(batch):
        if len(rows):
            text = model(text=model.tokenizer.trim(ids[rows]).to(model.device)).text
            assert text is not None
            out[rows] = text.cpu()
    return out


def pipeline(
    device: torch.device,
    items: Iterable[Item],
    fetch: Callable[[Item], Any],
    decode: Callable[[Any], Read],
    work: Callable[[Read], Done],
    workers: int = 0,
) -> Generator[Done, None, None]:
    """`work(decode(fetch(item)))` of each item in order, where `work` is a model's; items are taken a little ahead.

    Before a GPU `workers` processes fetch and decode. On a CPU one thread fetches, and as many as torch has decode and
    work, each on an item of its own: threads that share one product wait for one another at its end, and how its sums
    are rounded depends on how many they are.
    """
    if device.type == "cpu":
        yield from _by_threads(map(fetch, items), lambda read: work(decode(read)))
        return
    loader = DataLoader(
        _Ahead(fetch, decode), sampler=items, batch_size=None, num_workers=workers, pin_memory=device.type == "cuda"
    )
    yield from map(work, _read(loader))


@dataclass
class _Ahead(Dataset):
    fetch: Callable[[Any], Any]
    decode: Callable[[Any], Any]

    def __getitem__(self, item: Any) -> Any:
        return self.decode(self.fetch(item))


def _read(loader: DataLoader) -> Iterator[Any]:
    try:
        yield from loader
    except ClipkitError as error:
        raise from_worker(error) from None


def _by_threads(items: Iterable[Read], work: Callable[[Read], Done]) -> Iterator[Done]:
    threads = torch.get_num_threads()
    waiting: deque[Future[Done]] = deque()
    pool = ThreadPoolExecutor(threads, "clipkit embed", torch.set_num_threads, (1,))  # of this thread of the pool
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that begin later take the number that was set last
