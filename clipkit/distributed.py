"""Processes that work together: starting them with Accelerate, and the few collectives that clipkit needs."""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from clipkit import errors
from clipkit.errors import ClipkitError, UserError

CPU_LAUNCH = "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {n} -m clipkit.train ..."
OTHERS = "{kind}: not supported; use an accelerate configuration of MULTI_GPU, or of FSDP with fsdp_version 2"
START_HOURS = 2
"""How long a collective may wait: one rank may list and index its shards for long before the first step."""
_calls = itertools.count()


@dataclass(frozen=True)
class Sharding:
    """That the weights are spread over the ranks (FSDP2): whether a block's are freed between forward and backward, and
    how many whole copies the ranks hold together (more than one: HSDP)."""

    reshard: bool = True
    copies: int = 1


def world() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def sharding() -> Sharding | None:
    """What `accelerate launch` was told by `distributed_type: FSDP`; None where each rank holds all weights.

    Raises: UserError for what clipkit does not do, with what to type.
    """
    if not _asked("ACCELERATE_USE_FSDP"):
        return None
    if os.environ.get("FSDP_VERSION") != "2":
        raise UserError("FSDP: version 2 is needed; set `fsdp_version: 2` under fsdp_config, or pass --fsdp_version 2")
    if _asked("FSDP_OFFLOAD_PARAMS"):
        raise UserError("FSDP: weights cannot be offloaded to the CPU; set `fsdp_offload_params: false` in fsdp_config")
    if _asked("FSDP_ACTIVATION_CHECKPOINTING"):
        raise UserError(
            "FSDP: checkpointing is a setting of the model; set `fsdp_activation_checkpointing: false` under "
            "fsdp_config, and give clipkit checkpointing=true"
        )
    sizes = {name: 1 for name in ("DP_REPLICATE", "TP", "CP", "SP")}
    if _asked("ACCELERATE_USE_PARALLELISM_CONFIG"):
        sizes = {name: int(os.environ.get(f"PARALLELISM_CONFIG_{name}_SIZE", "1")) for name in sizes}
    copies = sizes.pop("DP_REPLICATE")
    spread = int(os.environ.get("PARALLELISM_CONFIG_DP_SHARD_SIZE", "1"))
    if copies > 1 and spread > 1 and copies * spread != (processes := int(os.environ.get("WORLD_SIZE", "1"))):
        raise UserError(
            f"parallelism_config: dp_replicate_size {copies} times dp_shard_size {spread} is not the number of "
            f"processes, {processes}; give sizes whose product it is"
        )
    if any(size > 1 for size in sizes.values()):
        raise UserError("parallelism_config: only dp_replicate_size and dp_shard_size may be above 1")
    return Sharding(reshard=_asked("FSDP_RESHARD_AFTER_FORWARD", "true"), copies=copies)


def _asked(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() in ("true", "1")


@contextmanager
def _plain() -> Iterator[None]:
    """While inside, Accelerate sees a launch of plain data parallelism: it drops FSDP on CPUs without a word, and
    elsewhere it insists on wrapping model and optimizer in its own way. `parallel.wrap` does it for all devices."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _meeting_place() -> str | None:
    """Where a process that torchrun started again meets the others: in the launcher's store, by names of this start.

    The store outlives the processes, and with it the addresses of those that died, which the new ones would call.
    Source: pytorch issue 135712. Between several launchers the count of starts may differ; there it is left to torch.
    """
    starts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if starts == "0" or os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return None

    def meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Any, int, int]]:
        store, rank, world = next(rendezvous("env://", timeout=timeout))
        yield PrefixStore(f"start {starts}", store), rank, world

    register_rendezvous_handler("again", meet)
    return "again://"


def start(**options: Any) -> Any:
    """An `accelerate.Accelerator`, after making sure that the world is the one that was asked for.

    Raises: UserError where the launcher was asked for several processes and started independent ones, as
    `accelerate launch --cpu --num_processes 2` does without a word; or for what clipkit does not do.
    """
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ
    if by_accelerate and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        # accelerate's simple launcher names a meeting point only when it was asked for more than one process
        raise UserError(
            "accelerate was asked for several processes and started one; on CPUs type: "
            + CPU_LAUNCH.format(n=2)
            + " (for one process, unset MASTER_PORT)"
        )
    sharding()  # what it refuses is told before anything waits for other ranks
    if _asked("ACCELERATE_USE_MEGATRON_LM"):
        raise UserError(OTHERS.format(kind="Megatron-LM"))
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "DeepSpeed: not supported, its engine runs backward and step itself, which the gradient cache does here; "
            "FSDP2 shards the same things: accelerate launch --config_file launch/fsdp2.yaml -m clipkit.train ..."
        )
    from accelerate import Accelerator, InitProcessGroupKwargs

    patience = InitProcessGroupKwargs(init_method=_meeting_place(), timeout=timedelta(hours=START_HOURS))
    try:
        with _plain():
            # the model owns precision
            accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[patience], **options)
    except ValueError as error:
        if not options.get("log_with"):
            raise
        raise UserError(f"log_with: {error}") from None
    if accelerator.distributed_type.value == "XLA":
        raise UserError(OTHERS.format(kind="XLA"))
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
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return scatter_sum(grads[0].clone(memory_format=torch.contiguous_format))  # others may hold the same tensor


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


def scatter_sum(x: Tensor) -> Tensor:
    """This rank's rows [b, ...] of the sum of `x` [world * b, ...] over the ranks; `x` is written over; no gradient."""
    if world() == 1:
        return x
    rows = len(x) // world()
    if x.device.type == "cpu":  # gloo: reduce-scatter is 2.4x slower there (9.1 against 21.6 ms, 512 x 512)
        dist.all_reduce(x)
        return x[rank() * rows : (rank() + 1) * rows].clone()
    out = x.new_empty((rows, *x.shape[1:]))
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    scatter(out, x)
    return out


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
    return _reduced(x, dist.ReduceOp.SUM)


def largest(x: Tensor) -> Tensor:
    """The largest of `x` over the ranks, element by element, without gradient."""
    return _reduced(x, dist.ReduceOp.MAX)


def _reduced(x: Tensor, how: Any) -> Tensor:
    if world() == 1:
        return x.detach()
    out = _within_reach(x.detach().clone())
    dist.all_reduce(out, how)
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


@contextmanager
def claims(count: int) -> Iterator[Iterator[int]]:
    """The numbers 0..count-1, each for one rank, the next for whoever asks: a slow rank holds nobody up. All ranks must
    come here; an error of one ends the numbers of all."""
    if world() == 1:
        yield iter(range(count))
        return
    store, name = _get_default_store(), f"clipkit claims {next(_calls)}"
    try:
        yield itertools.takewhile(lambda number: number < count, (store.add(name, 1) - 1 for _ in itertools.count()))
    except BaseException:
        store.add(name, count)
        raise


@contextmanager
def together() -> Iterator[None]:
    """An expected error that one rank meets inside is raised on all of them, which would wait for it otherwise.

    No collective may be called inside, and all ranks must come here.
    """
    mine: ClipkitError | None = None
    try:
        yield
    except ClipkitError as error:
        mine = error
    told = gather_texts(json.dumps([type(mine).__name__, str(mine)] if mine else []))
    if mine:
        raise mine
    for name, text in filter(None, map(json.loads, told)):
        raise getattr(errors, name)(text)


def close() -> None:
    """Leave the process group, so that the end of the program does not wait for anyone."""
    if dist.is_initialized():
        dist.destroy_process_group()
