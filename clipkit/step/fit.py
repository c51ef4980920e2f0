"""How many pairs fit: the largest chunk, from what a few pairs take and what is free."""

import gc
import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipkit import distributed
from clipkit.errors import UserError
from clipkit.log import say
from clipkit.types import Batch

MEASURED = 8  # pairs of the larger of two measurements
USED = 0.8  # of the free memory: fragmentation, communication buffers and the tiles of a loss take the rest
CGROUPS = Path("/sys/fs/cgroup")
GB, MB = 1e9, 1e6


def auto_chunk(model: nn.Module, sample: Callable[[int], Batch], pairs: int, reserve: int = 0) -> int | None:
    """The most pairs, of `pairs` a rank, that go through `model` forward and backward in the memory now free, as even
    chunks; None where all fit. Equal on all ranks, each of which must ask.

    `sample(n)` makes n pairs of the largest size, on the device, and `reserve` bytes are left for what comes later (an
    optimizer's moments). What grows by the pair and what does not is told apart by two small measurements, run without
    compiling, which takes rather more. On a GPU the result is then tried, and halved while it does not fit; weights
    spread by FSDP2 are not tried, since a rank that fails alone would leave the others waiting.
    Raises: UserError when a single pair does not fit.
    """
    bare = model.module if isinstance(model, DistributedDataParallel) else model  # no exchange between ranks
    device = next(bare.parameters()).device
    cards = [device] if device.type == "cuda" else []
    if pairs < 2:
        return None
    large = min(MEASURED, pairs)
    free = _free(device)
    with torch.compiler.set_stance("force_eager"), torch.random.fork_rng(cards):
        _take(bare, sample(large))  # the first pass makes workspaces that stay
        small, big = _take(bare, sample(large // 2)), _take(bare, sample(large))
        more = large - large // 2
        # with so few pairs the most is held when the last weights' gradients are made, so that it grows too slowly
        a_pair = max(1.0, (big.kept - small.kept) / more, (big.most - small.most) / more)
        reserve += int(max(0.0, big.kept - large * a_pair)) + _beside(bare, pairs, big.width)
        most = int(distributed.gather_uneven(torch.tensor([(USED * free - reserve) // a_pair])).min())
        chunk = min(pairs, max(1, most))
        if device.type == "cuda" and not _is_sharded(bare):
            chunk = _tried(bare, sample, chunk, reserve, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # the trial's peak is not the training's
    chunk = math.ceil(pairs / math.ceil(pairs / chunk))
    told = "the whole batch" if chunk == pairs else str(chunk)
    say(f"chunk: auto takes {told} of {pairs} pairs ({a_pair / MB:.1f} MB a pair, {free / GB:.1f} GB free)")
    return None if chunk == pairs else chunk


class _Taken(NamedTuple):
    """Bytes beyond what was there: kept by a forward for its backward, and the most at any time of both."""

    kept: int
    most: int
    width: int


def _take(model: nn.Module, batch: Batch) -> _Taken:
    """What a forward and backward take, of which nothing is left."""
    device = batch.images.device
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept, width = _pass(model, batch, lambda: torch.cuda.memory_allocated(device))
        return _Taken(kept - before, torch.cuda.max_memory_allocated(device) - before, width)
    with _Peak(model) as peak:
        kept, width = _pass(model, batch, lambda: peak.now)
    return _Taken(kept, peak.most, width)


def _pass(model: nn.Module, batch: Batch, look: Callable[[], int]) -> tuple[int, int]:
    """A forward and backward; (what `look` gives between them, width of the embeddings)."""
    try:
        image, text = model(image=batch.images, text=batch.text).pair()
        loss = image.sum() + text.sum()
        kept = look()
        loss.backward()
    finally:
        model.zero_grad(set_to_none=True)
    return kept, image.shape[1]


def _beside(model: nn.Module, pairs: int, width: int) -> int:
    """Bytes of a chunked step beside a chunk's graph: embeddings and their gradients, of this rank and gathered, in
    float32, and the whole gradients of the weights, which add up on each rank, under FSDP2 too."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return 16 * (1 + distributed.world()) * pairs * width + weights


def _is_sharded(model: nn.Module) -> bool:
    return hasattr(model, "set_requires_gradient_sync")


def _tried(model: nn.Module, sample: Callable[[int], Batch], chunk: int, reserve: int, device: torch.device) -> int:
    """`chunk`, or a half, a quarter ... of it: the first that fits on all ranks beside `reserve` bytes."""
    while True:
        failed = torch.tensor(float(not _fits(model, sample, chunk, reserve, device)), device=device)
        if distributed.total(failed) == 0:
            return chunk
        if chunk == 1:
            raise UserError("chunk: auto: not even one pair fits; a smaller model or picture, or FSDP2, is needed")
        chunk //= 2


def _fits(model: nn.Module, sample: Callable[[int], Batch], chunk: int, reserve: int, device: torch.device) -> bool:
    try:
        ballast = torch.empty(reserve, dtype=torch.uint8, device=device)
        _pass(model, sample(chunk), int)
        del ballast
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _free(device: torch.device) -> float:
    """Bytes that this rank may still take."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    import psutil

    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.world()))
    return min(psutil.virtual_memory().available, _left_to_job()) / ranks


def _left_to_job(groups: Path = CGROUPS, mine: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes that the control group of a container or a cluster's job leaves; cached files give way and do not count."""
    left = math.inf
    path = (
        next((line[4:] for line in mine.read_text().splitlines() if line.startswith("0::/")), "")
        if mine.exists()
        else ""
    )
    for folder in [groups / path, *(groups / path).parents]:
        limit = folder / "memory.max"
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            used = int((folder / "memory.current").read_text()) - int(facts["inactive_file"])
            left = min(left, int(most) - used)
    return left


class _Peak(TorchDispatchMode):
    """Counts, while entered, the bytes of tensors that come to be and pass away; `most` were alive at once."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, Any] = {p.untyped_storage()._cdata: None for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._meet(x.untyped_storage())
        return out

    def _meet(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return

        def gone(_: Any) -> None:
            del self.known[key]
            self.now -= size

        self.known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)
