"""Batches on their way to the device."""

from collections.abc import Callable
from dataclasses import replace

from clipkit.data.augment import augment
from clipkit.train.run import Run
from clipkit.types import Batch


def placer(run: Run) -> Callable[[Batch], Batch]:
    """What brings pairs to where they are computed on, with their pictures augmented there. An augmentation is a
    function of the pair's position, so that it does not matter in how many pieces a batch arrives."""
    device, cfg = run.accelerator.device, run.cfg

    def place(part: Batch) -> Batch:
        moved = part.to(device)
        return replace(moved, images=augment(moved.images, part.position, cfg.seed, cfg.data.augment))

    return place
