"""`clipkit classify MODEL PICTURES --classes a,b,c`: which of your words fits each picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit import models, shards
from clipkit.errors import BadData, UserError
from clipkit.evals.zeroshot import TEMPLATES, class_rows
from clipkit.features import Features
from clipkit.log import say

READABLE = "JPEG, PNG, WebP, GIF and BMP pictures can be read"


def classify(
    model: str | models.DualEncoder,
    pictures: str | Path | Sequence[str | Path],
    classes: str | Sequence[str],
    templates: Sequence[str] = TEMPLATES,
    top: int = 5,
) -> list[dict[str, Any]]:
    """For each picture {image, scores: {class: probability}}, best first, at most `top`. Folders give all they hold;
    `classes` may be one text with commas. A picture that cannot be read is told, and has no scores but an `error`.

    Raises: UserError when there is no picture or class; BadData when no picture can be read.
    """
    names = names_of(classes)
    given = [pictures] if isinstance(pictures, str | Path) else pictures
    source = shards.Folder([file for name in given for file in _files(str(name))])
    if not len(source):
        raise UserError("no pictures given; name files or folders")
    loaded = models.load(model) if isinstance(model, str) else model
    words = words_of(loaded, names, templates)
    results: dict[int, dict[str, Any]] = {}
    failed = 0
    for numbers, rows, bad in models.embed_images(loaded, source, range(len(source))):
        for number, reason in bad.items():
            say(f"{source.files[number]}: {reason}")
            results[number] = {"image": str(source.files[number]), "scores": {}, "error": reason}
        failed += len(bad)
        for number, shares in zip(numbers, probabilities(loaded, rows, words), strict=True):
            results[number] = {"image": str(source.files[number]), "scores": best(names, shares, top)}
    if failed == len(source):
        raise BadData(f"{failed} of {len(source)} pictures cannot be read; {READABLE}")
    if failed:
        say(f"{failed} of {len(source)} pictures cannot be read; {READABLE}")
    return [results[number] for number in range(len(source))]


def names_of(classes: str | Sequence[str]) -> list[str]:
    """The names, each once, without the empty ones; of a text those between its commas.

    Raises: UserError when there is none.
    """
    given = classes.split(",") if isinstance(classes, str) else classes
    if wanted := list(dict.fromkeys(name.strip() for name in given if name.strip())):
        return wanted
    raise UserError("classes: at least one name is needed, as in --classes 'cat,dog,bird' or --classes names.txt")


def words_of(model: models.DualEncoder, classes: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """The unit vectors float32 [C, D] of the classes said in the templates' words.

    Raises: UserError when a template has no place for the class.
    """
    return class_rows(Features(model), classes, templates)


@torch.inference_mode()
def probabilities(model: models.DualEncoder, rows: Tensor, words: Tensor) -> Tensor:
    """How likely each of the classes [C, D] is for each of the pictures [n, D], among them: float32 [n, C]."""
    return torch.softmax(model().scale.item() * rows @ words.T, 1)


def best(names: Sequence[str], shares: Tensor, top: int | None = None) -> dict[str, float]:
    """{name: share} of the `top` largest of shares [C], the largest first; None: of all."""
    order = shares.argsort(descending=True, stable=True)[:top]
    return {str(names[i]): float(shares[i]) for i in order.tolist()}


def _files(name: str) -> list[Path]:
    found = shards.open_source(name)
    if not isinstance(found, shards.Folder):
        raise UserError(f"{name}: pictures or folders of pictures are needed; for shards use clipkit embed")
    return found.files
