"""A MODEL argument: a run folder, a checkpoint folder, `NAME/TAG` of open_clip, `hf-hub:...` or `local-dir:...`."""

from pathlib import Path

import torch

from clipkit import checkpoint, config, distributed
from clipkit.errors import UserError
from clipkit.log import say
from clipkit.models.create import LOCATIONS, Settings, create, rebuild
from clipkit.models.towers import DualEncoder

TEXT_FOLDER = "text_tower"


def load(name: str, device: torch.device | str | None = None) -> DualEncoder:
    """The model that `name` says, in evaluation mode on `device` (null: a GPU if there is one).

    A run with `ema` gives its averaged weights.
    Raises: UserError naming what was looked for when there is none.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = Path(name)
    if name.startswith(LOCATIONS):
        model = create(Settings(arch=name))
    elif path.is_dir():
        model = read(checkpoint.locate(path, say))
    else:
        import open_clip

        arch, _, tag = name.partition("/")
        if not tag or arch not in open_clip.list_models():
            raise UserError(
                f"{name}: no such run or checkpoint folder; give one, or an open_clip model as NAME/TAG "
                "(ViT-B-32/laion2b_s34b_b79k), hf-hub:NAME or local-dir:FOLDER"
            )
        model = create(Settings(arch=arch, pretrained=tag))
    model.dtype = distributed.best_dtype(device)
    return model.to(device).eval()


def read(place: Path) -> DualEncoder:
    """The model of a checkpoint folder, on the CPU."""
    text_folder = place / TEXT_FOLDER
    model = rebuild(config.read_yaml(place / "model.yaml"), text_folder if text_folder.is_dir() else None)
    averaged = place / "ema.safetensors"
    weights = checkpoint.tensors(averaged if checkpoint.holds(averaged) else place / "model.safetensors")
    model.net.load_state_dict(weights)
    return model
