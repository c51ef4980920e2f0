"""Processes that work together: starting them with Accelerate, and the few collectives that clipkit needs."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.errors import UserError

CPU_LAUNCH = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {n} -m clipkit.train ..."


def world() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def start(**options: Any) -> Any:
    """An `accelerate.Accelerator`, after making sure that the world is the one that was asked for.

    Raises: UserError where the launcher was asked for several processes and started independent ones, as
    `accelerate launch --cpu --num_processes 2` does without a word.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if by_accelerate and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        # accelerate's simple launcher names a meeting point only when it was asked for more than one process
        raise UserError(
            "accelerate was asked for several processes and started one; on CPUs type: "
            + CPU_LAUNCH.format(n=2)
            + " (for one process, unset MASTER_PORT)"
        )
    from accelerate import Accelerator

    try:
        accelerator = Accelerator(mixed_precision="no", **options)  # the model owns precision
    except ValueError as error:
        if not options.get("log_with"):
            raise
        raise UserError(f"log_with: {error}") from None
    if (kind := accelerator.distributed_type.value) in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"):
        raise UserError(f"{kind}: not supported yet; use an accelerate configuration of plain data parallelism (DDP)")
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != asked:
        raise UserError(
            f"the launcher started {asked} processes, but each would work alone; on CPUs type: "
            + CPU_LAUNCH.format(n=asked)
        )
    return accelerator


def join() -> None:
    """Take part in the processes that a launcher started, if one did; alone otherwise, without loading Accelerate.

    Raises: UserError as `start` does.
    """
    if "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        start()


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it faster than in float32, else float32.

    CPUs count only with AMX: without it bf16 is 2.7x slower than float32 (measured, LOG.md).
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
        return torch.bfloat16 if amx else torch.float32
    return torch.float32


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].clone(memory_format=torch.contiguous_format)  # autograd may hand the same tensor to others
        if grad.device.type == "cpu":  # gloo: reduce-scatter is 2.4x slower there (9.1 against 21.6 ms, 512 x 512)
            dist.all_reduce(grad)
            return grad[rank() * ctx.rows : (rank() + 1) * ctx.rows]
        out = grad.new_empty((ctx.rows, *grad.shape[1:]))
        scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        scatter(out, grad)
        return out


def _all_gather(x: Tensor) -> Tensor:
    out = x.new_empty((world() * len(x), *x.shape[1:]))
    collect = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    collect(out, x.contiguous())
    return out


def gather(x: Tensor) -> Tensor:
    """Stack the rows of `x` [b, ...] from all ranks into [world * b, ...], in rank order, with gradient.

    A row's gradient is the sum over the ranks that used it, so that the average DDP takes over ranks is the gradient
    of the mean of the ranks' losses. All ranks must hold the same b.
    """
    return x if world() == 1 else _Gather.apply(x)  # type: ignore[return-value]


def _within_reach(x: Tensor) -> Tensor:
    """`x` where the collectives can take it: NCCL moves nothing from the CPU."""
    return x.cuda() if dist.get_backend() == "nccl" else x


def gather_uneven(rows: Tensor) -> Tensor:
    """Stack the `rows` [b_rank, ...] of all ranks in rank order; b may differ; no gradient."""
    if world() == 1:
        return rows
    x = _within_reach(rows)
    counts = _all_gather(torch.tensor([len(x)], device=x.device)).tolist()
    if not any(counts):
        return rows
    padded = x.new_zeros((max(counts), *x.shape[1:]))
    padded[: len(x)] = x
    parts = _all_gather(padded).split(max(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.device)


def gather_texts(text: str) -> list[str]:
    """The `text` of every rank, in rank order."""
    letters = torch.tensor(list(text.encode() + b"\0"), dtype=torch.uint8)
    return bytes(gather_uneven(letters).tolist()).decode().split("\0")[:-1]


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over the ranks, without gradient."""
    return total(x) / world()


def total(x: Tensor) -> Tensor:
    """The sum of `x` over the ranks, without gradient."""
    if world() == 1:
        return x.detach()
    out = _within_reach(x.detach().clone())
    dist.all_reduce(out)
    return out.to(x.device)


def agree(what: str, *numbers: int) -> None:
    """Make sure that all ranks hold the same `numbers` before they start to work on them.

    Raises: UserError, on all ranks, with what each holds.
    """
    held = gather_uneven(torch.tensor([numbers]))
    if bool((held != held[0]).any()):
        raise UserError(f"the processes disagree about {what} (rank by rank: {held.tolist()})")


def share(n: int) -> range:
    """The rows of 0..n-1 that are this rank's: consecutive, sizes differing by at most one, nothing twice."""
    return range(rank() * n // world(), (rank() + 1) * n // world())


def close() -> None:
    """Leave the process group, so that the end of the program does not wait for anyone."""
    if dist.is_initialized():
        dist.destroy_process_group()
