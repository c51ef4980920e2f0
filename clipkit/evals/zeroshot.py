"""Zero-shot classification: each picture goes to the class whose name, said in the templates' words, is nearest."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch.nn.functional import normalize

from clipkit import metrics
from clipkit.config import settings
from clipkit.errors import UserError
from clipkit.evals._rows import image_rows, open_whole, read_or_name, text_rows
from clipkit.models import DualEncoder
from clipkit.shards import Shards, json_object


@settings
class Setting:
    data: str
    """Shards of the pictures: a folder, a glob or a brace pattern."""
    label: str = "cls"
    """Where the class of a picture is: cls (a number that counts `classes` from 0) or json:KEY (its name)."""
    classes: Annotated[list[str], Field(min_length=2)] | None = None
    """Names of the classes; null takes the names that occur under json:KEY, sorted."""
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of a {c}.",)
    """Prompts; {c} stands for the class. Their embeddings are averaged."""

    def __call__(self, model: DualEncoder, workers: int = 0) -> dict[str, float]:
        """acc1, acc5 (from five classes on) and mean_per_class_recall over the pictures that have a label.

        Raises: UserError when no picture has one, or a label is not among the classes.
        """
        source = open_whole(self.data, ("image", "cls" if self.label == "cls" else "json"))
        labels = self._labels(source)
        classes = self.classes or sorted({str(label) for label in labels.values()})
        if len(classes) < 2:
            raise UserError(f"{self.data}: at least two classes are needed, found {classes}; see label and classes")
        numbers = list(labels)
        target = torch.tensor([self._class(labels[number], classes) for number in numbers])
        scores = image_rows(model, source, numbers, workers) @ class_rows(model, classes, self.templates).T
        first = metrics.top_k_hits(scores, target, 1)
        result = {"acc1": float(first.double().mean())}
        if len(classes) >= 5:
            result["acc5"] = float(metrics.top_k_hits(scores, target, 5).double().mean())
        result["mean_per_class_recall"] = metrics.mean_per_class(first, target)
        return {**result, "images": len(numbers), "classes": len(classes)}

    def _labels(self, source: Shards) -> dict[int, str | int]:
        """The label of every picture that has one, by the picture's number."""
        found: dict[int, str | int] = {}
        for number in range(len(source)):
            value = read_or_name(source, number, lambda shard, row: self._label(source, shard, row))
            if value is not None:
                found[number] = value
        if not found:
            raise UserError(f"{self.data}: no picture has a label under '{self.label}'")
        if self.label == "cls" and self.classes is None:
            raise UserError(f"{self.data}: label: cls needs the names of the classes, as a list under classes")
        return found

    def _label(self, source: Shards, shard: int, row: int) -> str | int | None:
        if self.label == "cls":
            return int(source.read(shard, row, "cls"))
        value = json_object(source.read(shard, row, "json")).get(self.label.removeprefix("json:"))
        return None if value is None else str(value)

    def _class(self, label: str | int, classes: list[str]) -> int:
        if isinstance(label, int) and 0 <= label < len(classes):
            return label
        if label not in classes:
            raise UserError(
                f"{self.data}: a picture has the label {label!r}, which is not among the {len(classes)} classes"
            )
        return classes.index(str(label))


def class_rows(model: DualEncoder, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """The unit vectors float32 [C, D] of the classes: the mean of each class's prompts, as CLIP builds its classifier.

    Raises: UserError when a template does not hold {c}.
    """
    for template in templates:
        if "{c}" not in template:
            raise UserError(
                f"template '{template}': {{c}} must stand where the class goes, as in 'a photo of a {{c}}.'"
            )
    prompts = [template.replace("{c}", name) for name in classes for template in templates]
    rows = text_rows(model, prompts).view(len(classes), len(templates), -1)
    return normalize(rows.mean(1), dim=-1)
