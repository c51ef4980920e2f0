"""One model on several ranks: a copy on each (DDP), or its weights spread over all of them (FSDP2)."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clipkit import distributed
from clipkit.distributed import Sharding
from clipkit.errors import ClipkitError, UserError
from clipkit.models.create import rebuild
from clipkit.models.speed import stacked
from clipkit.models.towers import DualEncoder


def wrap(net: DualEncoder, sharding: Sharding | None) -> nn.Module:
    """What to train in place of `net`: a backward gives the mean of the gradients of all ranks.

    Under `sharding` shards (DTensor) take the place of the weights in `net`, so an optimizer is built afterwards. All
    else must be as it will be trained: frozen, compiled and on its device.
    Raises: UserError when the ranks cannot hold that many copies.
    """
    world = distributed.world()
    if world == 1:
        return net
    if sharding is None:
        ids = [net.device.index] if net.device.type == "cuda" else None
        # no buffer changes in training (batch normalisation is refused), so none needs to be sent at each forward
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # of torch < 2.15
        options: dict[str, Any] = {name: False}
        return nn.parallel.DistributedDataParallel(net, device_ids=ids, gradient_as_bucket_view=True, **options)
    if world % sharding.copies or world == sharding.copies:
        raise UserError(f"dp_replicate_size={sharding.copies}: {world} processes cannot be split into so many copies")
    _shard(net, sharding, world)
    return net


def _shard(net: DualEncoder, sharding: Sharding, world: int) -> None:
    """Block by block, then the rest as one: a block's weights come together when it runs.

    There is no mixed-precision policy: precision has one owner, the model, whose autocast keeps norms, scale and bias
    in float32, and a policy would round what it must not.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sizes, names = (world,), ("shard",)
    if sharding.copies > 1:
        sizes, names = (sharding.copies, world // sharding.copies), ("copy", "shard")
    mesh = init_device_mesh(net.device.type, sizes, mesh_dim_names=names)
    for block in stacked(net):
        fully_shard(block, mesh=mesh, reshard_after_forward=sharding.reshard)
    fully_shard(net, mesh=mesh, reshard_after_forward=sharding.reshard)


def is_sharded(net: nn.Module) -> bool:
    """Are the weights spread over the ranks?"""
    return any(isinstance(p, DTensor) for p in net.parameters())


def full(x: Tensor) -> Tensor:
    """`x` as a plain tensor, gathered from all ranks where it is spread over them; all ranks must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def clip(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """The norm [] of all gradients, a plain tensor equal on all ranks; gradients beyond `max_norm` are scaled to it."""
    parameters = list(parameters)
    norm = full(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def same_weights(net: nn.Module) -> None:
    """Make sure that all ranks hold bitwise the same weights, where each holds all of them.

    Raises: ClipkitError, on all ranks, naming the first weight that differs.
    """
    if distributed.world() == 1 or is_sharded(net):
        return
    names, weights = zip(*net.named_parameters(), strict=True)
    held = distributed.gather_uneven(torch.stack([_bits(weight) for weight in weights])[None])
    differing = (held != held[0]).any(0).nonzero()
    if len(differing):
        first = int(differing[0])
        raise ClipkitError(
            f"the processes' weights have parted: {len(differing)} of {len(names)} tensors differ, first "
            f"{names[first]} (checksums rank by rank: {held[:, first].tolist()}); nothing of it was saved. The same "
            "command goes on from the newest checkpoint; should it happen again, look for a faulty device"
        )


def _bits(x: Tensor) -> Tensor:
    """A checksum [] of the bits of `x`: their sum as whole numbers."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.detach().view(kind).sum(dtype=torch.int64)


def whole(net: DualEncoder) -> DualEncoder:
    """A model like `net` that lies whole on this rank, in evaluation mode, with weights for `fill` to replace.

    Ranks evaluate different numbers of batches, at which the collectives of spread weights would wait for ever.
    """
    copy = rebuild(net.spec, net.text_folder)
    copy.dtype = net.dtype
    return copy.to(net.device).eval()


@torch.no_grad()
def fill(copy: DualEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Give `copy` the tensors of a state dict of a `net.net` like its own, gathered one by one; all ranks must call."""
    for name, x in copy.net.state_dict().items():
        x.copy_(full(tensors[name]))
