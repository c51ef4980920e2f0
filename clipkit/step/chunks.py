"""The gradient cache: a batch that does not fit goes through the model in chunks, under a loss over all of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.types import Batch, Embeddings

Loss = Callable[[Embeddings, Batch], Tensor]
Place = Callable[[Batch], Batch]
Dice = tuple[Tensor, Tensor | None]


def gradients(
    model: nn.Module,
    objective: Loss,
    batch: Batch,
    chunk: int | None = None,
    place: Place = lambda part: part,
    on_host: bool = False,
) -> Tensor:
    """Add the gradient of the objective over the whole global batch to `.grad`; gives this rank's loss [].

    `chunk` bounds how many pairs are inside the model at once, so that a batch need not fit into memory; `place` brings
    the pairs that are about to be embedded to the model's device, while the objective sees the batch as it came, on the
    host. `on_host` holds, between the passes, the embeddings and their gradients there too: on the device they are then
    never beside a chunk's graph (16 B D bytes less at the peak, one chunk more to embed).
    """
    if chunk is None or chunk >= len(batch):
        part = place(batch)
        loss = objective(model(image=part.images, text=part.text), batch)
        loss.backward()
        return loss.detach()
    return _by_chunks(model, objective, batch, chunk, place, on_host)


def _by_chunks(model: nn.Module, objective: Loss, batch: Batch, chunk: int, place: Place, on_host: bool) -> Tensor:
    """Embed all chunks, take the loss's gradient at the embeddings, then embed chunk by chunk again, with the same
    random numbers, and send each row's gradient back.

    The last chunk keeps its graph from the first pass, which saves embedding it again, and is done with before another
    graph is made. Ranks exchange gradients at the end alone; until then each adds up whole ones, under FSDP too.
    Source: arXiv 2101.06983.
    """
    # of even sizes: of a small last one little would be kept, and it would compile anew
    pieces = -(-len(batch) // chunk)
    spans = [slice(*ends) for ends in pairwise(len(batch) * i // pieces for i in range(pieces + 1))]
    twice = spans if on_host else spans[:-1]
    device = next(model.parameters()).device
    dice: list[Dice] = []
    rooms: list[Tensor] = []
    out: Any = None

    def embed(span: slice) -> Embeddings:
        part = place(batch.rows(span.start, span.stop))
        return model(image=part.images, text=part.text)

    with _alone(model):
        for i, span in enumerate(spans):
            dice.append(_dice(device))
            with torch.set_grad_enabled(i >= len(twice)):
                out = embed(span)
            rooms = rooms or [_room(side, len(batch), on_host) for side in out.pair()]
            for room, side in zip(rooms, out.pair(), strict=True):
                room[span].copy_(side.detach(), non_blocking=True)
    after = _dice(device)

    image, text = (room.to(device, non_blocking=True).requires_grad_() for room in rooms)
    scale = out.scale.detach().requires_grad_()
    bias = None if out.bias is None else out.bias.detach().requires_grad_()
    loss = objective(Embeddings(image, text, scale, bias), batch)
    loss.backward()
    grads = _gradients_of(image, text, rooms if on_host else None)
    del image, text, rooms  # of the embeddings only their gradients are needed from here on

    if not on_host:
        with _alone(model):
            _send_back(out, grads, spans[-1])
    for i, span in enumerate(twice):
        last = i == len(twice) - 1
        with nullcontext() if last else _alone(model):
            _throw(dice[i], device)
            out = embed(span)
            _send_back(out, grads, span, (scale.grad, None if bias is None else bias.grad) if last else (None, None))
    _throw(after, device)
    return loss.detach()


def _room(side: Tensor, rows: int, on_host: bool) -> Tensor:
    """For the embeddings of the whole batch [rows, D]; on the host, where a GPU reads and writes it directly."""
    if not on_host:
        return side.new_empty((rows, side.shape[1]))
    return torch.empty((rows, side.shape[1]), dtype=side.dtype, pin_memory=side.is_cuda)


@torch.no_grad()
def _gradients_of(image: Tensor, text: Tensor, rooms: list[Tensor] | None) -> list[Tensor]:
    """The gradients at both sides' embeddings, which take the place of the embeddings in `rooms`, if there are any."""
    assert image.grad is not None and text.grad is not None, "the objective leaves one side of the pairs out"
    grads = [image.grad, text.grad]
    if rooms is None:
        return grads
    return [room.detach().copy_(grad, non_blocking=True) for room, grad in zip(rooms, grads, strict=True)]


def _send_back(
    out: Embeddings,
    grads: list[Tensor],
    span: slice,
    scalars: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    """Backward through one chunk from the gradients at its embeddings; the scalars' once, with the last chunk, so that
    all parameters take part in the backward in which ranks exchange gradients."""
    sides = [(x, grad[span].to(x.device, non_blocking=True)) for x, grad in zip(out.pair(), grads, strict=True)]
    starts = [*sides, *zip((out.scale, out.bias), scalars, strict=True)]
    used = [(x, grad) for x, grad in starts if x is not None and x.requires_grad and grad is not None]
    torch.autograd.backward([x for x, _ in used], [grad for _, grad in used])


@contextmanager
def _alone(model: Any) -> Iterator[None]:
    """While inside, a backward adds to this rank's gradients alone, under DDP and under FSDP2."""
    if hasattr(model, "no_sync"):
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_gradient_sync"):
        # each backward still counts as a last one, after which FSDP2 forgets the order of the forwards: it would fetch
        # weights ahead by an order that holds forwards without a backward
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield


def _dice(device: torch.device) -> Dice:
    """The state of the random numbers that a forward on `device` may draw (dropout, dropped patches)."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _throw(state: Dice, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
