"""Evaluations: one kind a file, one data set a YAML file, a suite a YAML file that lists data sets.

A kind's file holds one settings class `Setting`: its fields are what a data set's YAML may say, calling it with a model
gives scores in 0..1. Each rank takes consecutive rows, so that every sample counts once on any number of them.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit import config
from clipkit.errors import UserError
from clipkit.models import DualEncoder
from clipkit.shards import resolve


@dataclass(frozen=True)
class Task:
    """A data set under its name, and the evaluation that it asks for."""

    name: str
    kind: str
    run: Callable[[DualEncoder, int], dict[str, float]]


def kinds() -> list[str]:
    """The kinds of evaluation that clipkit ships."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def suite(name: str, root: Path) -> list[Task]:
    """The tasks of a suite (`tasks: [name, ...]`), or the one task of a data set; relative data paths start at `root`.

    Raises: UserError when a file, a kind, or a setting is not to be had.
    """
    try:
        path = config.find("eval/suites", name)
    except UserError:
        path = config.find("eval/datasets", name)
    tree = config.read_yaml(path)
    if "tasks" not in tree:
        return [_task(path, tree, root)]
    if not isinstance(tree["tasks"], list) or not tree["tasks"]:
        raise UserError(f"{path}: tasks: a list of data sets is needed, got {tree['tasks']!r}")
    files = [config.find("eval/datasets", str(task)) for task in tree["tasks"]]
    return [_task(file, config.read_yaml(file), root) for file in files]


def _task(path: Path, tree: dict[str, Any], root: Path) -> Task:
    kind = tree.pop("kind", None)
    if kind not in kinds():
        raise UserError(f"{path}: kind: one of {', '.join(kinds())} is needed, got {kind!r}")
    if isinstance(tree.get("data"), str):
        tree["data"] = str(root / tree["data"])
        resolve(tree["data"])  # missing data is told before the hours of training, not after
    made = config.check(importlib.import_module(f"{__name__}.{kind}").Setting, tree, str(path))
    return Task(path.stem, kind, made)
