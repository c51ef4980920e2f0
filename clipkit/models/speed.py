"""What makes training faster or smaller and leaves its results as they are."""

from typing import Any

from torch import nn

from clipkit.errors import UserError
from clipkit.models.towers import DualEncoder

SHAPES = 64  # kinds of a block (tower, last or not, with gradient or not) times sizes of batches; torch stops at 8


def speed_up(net: DualEncoder, compile: bool, checkpointing: bool, backend: str = "inductor") -> None:
    """Compile the blocks of both towers, in place, so that weights keep their names; and with `checkpointing` compute
    what is inside of them again in backward instead of keeping it.

    Raises: UserError when a tower cannot be checkpointed.
    """
    if checkpointing:
        for side, tower in (("image", net.net.visual), ("text", getattr(net.net, "text", net.net))):
            if not _checkpoint(tower):
                raise UserError(
                    f"checkpointing: the {side} tower of model.arch={net.spec['arch']} cannot be computed again in "
                    "backward; set checkpointing=false, and chunk=... to save memory"
                )
    if compile:
        import torch._dynamo

        torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
        for block in stacked(net):
            block.compile(backend=backend)


def stacked(net: nn.Module) -> list[nn.Module]:
    """The blocks of all towers: the members of lists of at least two modules of one class that hold no such list."""
    found: list[nn.Module] = []
    for module in net.modules():
        is_list = isinstance(module, nn.ModuleList | nn.Sequential)
        if is_list and len({type(part) for part in module}) == 1 < len(module):
            found += [part for part in module if any(True for _ in part.parameters())]
    inside = {id(part) for part in found}
    return [block for block in found if not any(id(m) in inside for m in block.modules() if m is not block)]


def _checkpoint(tower: Any) -> bool:
    """Whether the tower could be told to."""
    transformer: Any = getattr(tower, "transformer", None)
    trunk: Any = getattr(tower, "trunk", None)
    if hasattr(transformer, "grad_checkpointing"):  # open_clip's, which our forward heeds too
        transformer.grad_checkpointing = True
    elif getattr(transformer, "supports_gradient_checkpointing", False):  # transformers'
        transformer.gradient_checkpointing_enable({"use_reentrant": False})
    elif hasattr(trunk, "set_grad_checkpointing"):  # timm's
        trunk.set_grad_checkpointing(True)
    else:
        return False
    return True
