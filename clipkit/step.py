"""From a batch to gradients, in one piece or in chunks, with the same result."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from clipkit.types import Batch, Embeddings

Loss = Callable[[Embeddings, Batch], Tensor]
Place = Callable[[Batch], Batch]


def gradients(
    model: nn.Module, objective: Loss, batch: Batch, chunk: int | None = None, place: Place = lambda part: part
) -> Tensor:
    """Add the gradient of the objective over the whole global batch to `.grad`; gives this rank's loss [].

    `chunk` bounds how many pairs are inside the model at once, so that a batch need not fit into memory; `place` brings
    pairs to the model's device.
    """
    batch = place(batch)
    if chunk is None or chunk >= len(batch):
        loss = objective(model(image=batch.images, text=batch.text), batch)
        loss.backward()
        return loss.detach()
    return _by_chunks(model, objective, batch, chunk)


def _by_chunks(model: nn.Module, objective: Loss, batch: Batch, chunk: int) -> Tensor:
    """The gradient cache: embed all chunks without a graph, take the loss's gradient at the embeddings, then embed
    chunk by chunk again, with the same random numbers, and send each row's gradient back.

    The first chunk keeps its graph from the first pass, which saves embedding it again. Ranks exchange gradients at
    the last chunk alone.
    Source: arXiv 2101.06983.
    """
    parts = [batch.rows(i, min(i + chunk, len(batch))) for i in range(0, len(batch), chunk)]
    dice: list[tuple[Tensor, Tensor | None]] = []
    with _no_sync(model):
        kept = model(image=parts[0].images, text=parts[0].text)
        outs: list[Embeddings] = [kept]
        with torch.no_grad():
            for part in parts[1:]:
                dice.append(_dice(batch.images.device))
                outs.append(model(image=part.images, text=part.text))
    after = _dice(batch.images.device)

    image, text = (
        torch.cat([side.detach() for side in sides]).requires_grad_()
        for sides in zip(*(out.pair() for out in outs), strict=True)
    )
    scale = kept.scale.detach().requires_grad_()
    bias = None if kept.bias is None else kept.bias.detach().requires_grad_()
    loss = objective(Embeddings(image, text, scale, bias), batch)
    loss.backward()

    with _no_sync(model):
        _send_back(kept, image, text, slice(0, chunk))
    for i, part in enumerate(parts[1:], 1):
        last = i == len(parts) - 1
        with nullcontext() if last else _no_sync(model):
            _throw(dice[i - 1], batch.images.device)
            out = model(image=part.images, text=part.text)
            rows = slice(i * chunk, i * chunk + len(part))
            _send_back(out, image, text, rows, (scale, bias) if last else None)
    _throw(after, batch.images.device)
    return loss.detach()


def _send_back(
    out: Embeddings, image: Tensor, text: Tensor, rows: slice, scalars: tuple[Tensor, Tensor | None] | None = None
) -> None:
    """Backward through one chunk from the gradients gathered at its embeddings; the scalars' once, with the last chunk,
    so that all parameters take part in the backward in which ranks exchange gradients."""
    assert image.grad is not None and text.grad is not None
    seen, read = out.pair()
    total = (seen * image.grad[rows]).sum() + (read * text.grad[rows]).sum()
    for now, leaf in zip((out.scale, out.bias), scalars or (None, None), strict=True):
        if now is not None and leaf is not None and leaf.grad is not None:
            total = total + now * leaf.grad
    total.backward()


def _no_sync(model: nn.Module) -> AbstractContextManager[None]:
    return model.no_sync() if hasattr(model, "no_sync") else nullcontext()  # type: ignore[operator]


def _dice(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of the random numbers that a forward on `device` may draw (dropout, dropped patches)."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _throw(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
