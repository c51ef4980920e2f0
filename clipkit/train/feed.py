"""Batches on their way to the device."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from clipkit import step
from clipkit.data.augment import augment
from clipkit.train.run import Run
from clipkit.types import Batch


def placer(run: Run) -> Callable[[Batch], Batch]:
    """What brings pairs to where they are computed on, with their pictures augmented there. An augmentation is a
    function of the pair's position, so that it does not matter in how many pieces a batch arrives.

    On a GPU both happen on a stream of their own: the step never waits for the GPU, so that this is called while the
    pairs before are still being computed on, and what it waits for (the random draws' way over) are not those.
    """
    device, cfg = run.accelerator.device, run.cfg

    def place(part: Batch) -> Batch:
        moved = part.to(device)
        return replace(moved, images=augment(moved.images, part.position, cfg.seed, cfg.data.augment))

    if device.type != "cuda":
        return place
    side = torch.cuda.Stream(device)

    def place_aside(part: Batch) -> Batch:
        with torch.cuda.stream(side):
            placed = place(part)
        now = torch.cuda.current_stream(device)
        now.wait_stream(side)
        for x in (placed.images, placed.text, placed.position):
            x.record_stream(now)  # its memory goes to the next pairs only when this use of it is over
        return placed

    return place_aside


def chunk_of(run: Run) -> int | None:
    """Pairs of a rank inside the model at once, None for all; `chunk: auto` is measured, with captions that fill the
    context and an optimizer whose moments are still to come."""
    if not isinstance(run.chunk, str):
        return run.chunk
    net, device = run.net, run.accelerator.device
    caption = net.tokenizer(["a " * net.tokenizer.context])
    side = max([net.shape.size, *(stage.image_size or 0 for stage in run.cfg.data.stages)])

    def sample(pairs: int) -> Batch:
        pictures = torch.zeros((pairs, 3, side, side), dtype=torch.uint8)
        return Batch(pictures, caption.expand(pairs, -1), torch.arange(pairs), []).to(device)

    state = [x for entry in run.optimizer.state.values() for x in entry.values() if torch.is_tensor(x)]
    moments = max(0, 2 * _bytes(run.model.parameters()) - _bytes(state))
    return step.auto_chunk(run.model, sample, run.cfg.data.batch // run.accelerator.num_processes, moments)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """What this rank holds of them."""
    mine = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]
    return sum(x.numel() * x.element_size() for x in mine)
