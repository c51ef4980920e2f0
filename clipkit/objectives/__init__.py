"""Losses, one a file. An objective is chosen by its file's name, or by the dotted path of a module of your own.

A file holds one settings class `Setting` that is also the loss: its fields are the hyperparameters, calling it with
(Embeddings, Batch) gives the loss of this rank's pairs against all pairs of the global batch. The mean over the ranks
is the loss of one process that holds them all, and so is the gradient. `scale_init` and `bias_init` declare how the
model's scale and bias start (`bias_init = None`: the objective has no bias).
"""

import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Mapping
from typing import Any, Protocol

import pydantic
from torch import Tensor

from clipkit import config
from clipkit.errors import UserError
from clipkit.types import Batch, Embeddings


class Objective(Protocol):
    """What a `Setting` class of this package offers."""

    @property
    def scale_init(self) -> float: ...

    @property
    def bias_init(self) -> float | None: ...

    def __call__(self, out: Embeddings, batch: Batch) -> Tensor:
        """The loss [] of this rank's pairs."""
        ...


def names() -> list[str]:
    """The objectives that clipkit ships."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def setting_class(name: str) -> Any:
    """The `Setting` class of the objective of that name or dotted path.

    Raises: UserError when there is none.
    """
    path = name if "." in name else f"{__name__}.{name}"
    if "." in name and os.getcwd() not in sys.path:  # as `python -m` has it, so that both ways to train find one's own
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(path).Setting
    except (ModuleNotFoundError, AttributeError) as error:
        missing = getattr(error, "name", "")
        if isinstance(error, ModuleNotFoundError) and missing and not path.startswith(missing):
            raise  # the user's module was found, and imports something that is not there
        raise UserError(
            f"no objective '{name}'; one of {', '.join(names())}, or the dotted path of a module with a class Setting"
        ) from None


def parse(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """The full form {name: ..., every field: ...} of `softmax` or `{name: softmax, label_smoothing: 0.1}`.

    Raises: ValueError when the name or a field is wrong; pydantic turns it into one line per mistake.
    """
    fields = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = fields.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"a name is needed, one of {', '.join(names())}; or {{name: ..., and its settings}}")
    try:
        cls = setting_class(name)
    except UserError as error:
        raise ValueError(str(error)) from None
    try:
        made = pydantic.TypeAdapter(cls).validate_json(json.dumps(fields))
    except pydantic.ValidationError as error:
        raise config.Nested(cls, error) from None
    return {"name": name, **config.to_tree(made)}


def build(spec: Mapping[str, Any]) -> Objective:
    """The objective of a full form, as `parse` gives it."""
    fields = dict(spec)
    return config.check(setting_class(fields.pop("name")), fields, "objective")
