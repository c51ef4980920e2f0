"""A MODEL argument: a run folder, a checkpoint folder, `NAME/TAG` or `NAME/FILE` of open_clip, `hf-hub:...` or
`local-dir:...`."""

from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import torch

from clipkit import checkpoint, config, distributed, hashing
from clipkit.errors import UserError
from clipkit.log import say
from clipkit.models.create import LOCATIONS, Settings, create, rebuild
from clipkit.models.towers import DualEncoder

TEXT_FOLDER = "text_tower"
FORMAT = 1  # raise it when a model of the same files embeds otherwise


class Named:
    """A model that is loaded when it is first asked for, and known by `digest` before, where it lies in a folder."""

    def __init__(self, name: str, device: torch.device | str | None = None) -> None:
        self.name, self.device = name, _device(device)
        self._place = _place(name)

    @cached_property
    def model(self) -> DualEncoder:
        """The model, as `load` gives it."""
        return _load(self.name, self._place, self.device)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of all that an embedding depends on: `identity`, and the precision, device and
        packages that it is computed with."""
        made_by = [version(package) for package in ("open_clip_torch", "transformers", "tokenizers", "timm")]
        return hashing.of(FORMAT, str(distributed.best_dtype(self.device)), self.device.type, made_by, self.identity)

    @cached_property
    def identity(self) -> str:
        """Sixteen hexadecimal digits of what the model is, wherever it lies and runs: weights, architecture,
        preprocessing and tokenizer."""
        arch, _, tag = self.name.partition("/")
        if self._place is not None:
            text = _files(self._place / TEXT_FOLDER)
            return hashing.of_files([self._place / "model.yaml", *_weights(self._place), *text])
        if self.name.startswith("local-dir:"):
            return hashing.of_files(_files(Path(self.name.removeprefix("local-dir:"))))
        if not self.name.startswith(LOCATIONS) and Path(tag).is_file():
            return hashing.of(arch, hashing.of_files([Path(tag)]))
        tensors = self.model.net.state_dict()
        weights = [[name, hashing.of_bytes(_bytes(tensors[name]))] for name in sorted(tensors)]
        return hashing.of(self.name, weights, self.model.spec)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def load(name: str, device: torch.device | str | None = None) -> DualEncoder:
    """The model that `name` says, in evaluation mode on `device` (null: a GPU if there is one).

    A run with `ema` gives its averaged weights.
    Raises: UserError naming what was looked for when there is none.
    """
    return Named(name, device).model


def _bytes(x: torch.Tensor) -> bytes:
    return x.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _device(asked: torch.device | str | None) -> torch.device:
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def _place(name: str) -> Path | None:
    """The checkpoint that `name` means, if it is a folder."""
    path = Path(name)
    return checkpoint.locate(path, say) if path.is_dir() and not name.startswith(LOCATIONS) else None


def _load(name: str, place: Path | None, device: torch.device) -> DualEncoder:
    if name.startswith(LOCATIONS):
        model = create(Settings(arch=name))
    elif place:
        model = read(place)
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
    model.net.load_state_dict(checkpoint.tensors(_stored(place)))
    return model


def _stored(place: Path) -> Path:
    """What the weights are stored as: the averaged ones, where the run keeps them."""
    averaged = place / "ema.safetensors"
    return averaged if checkpoint.holds(averaged) else place / "model.safetensors"


def _weights(place: Path) -> list[Path]:
    """The files of the weights, one or one of each rank."""
    stored = _stored(place)
    return [stored] if stored.is_file() else sorted(stored.with_suffix("").iterdir())
