"""`clipkit eval MODEL SUITE`: scores of a model on every data set of a suite, on any number of processes."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit import distributed, errors, evals, models
from clipkit.errors import UserError
from clipkit.log import Progress


def evaluate(model: str, suite: str, root: str = ".", workers: int = 0, out: str | None = None) -> list[dict[str, Any]]:
    """A row {model, task, kind, scores} for each data set of `suite`, whose relative paths start at `root`; also
    appended to the JSON-lines file `out`, if one is given.

    Raises: UserError when the model, the suite or its data is not to be had; BadData when a picture cannot be read.
    """
    distributed.join()
    tasks = evals.suite(suite, Path(root))
    loaded = models.load(model)
    rows = []
    with Progress("eval", len(tasks)) as bar:
        for number, task in enumerate(tasks, 1):
            rows.append({"model": model, "task": task.name, "kind": task.kind, "scores": task.run(loaded, workers)})
            bar.update(number, task.name)
    if out and distributed.rank() == 0:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with Path(out).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def from_arguments(arguments: Sequence[str]) -> None:
    """`MODEL SUITE [ROOT]`, as `accelerate launch -m clipkit.evaluate` passes them; prints JSON lines."""
    if not 2 <= len(arguments) <= 3:
        raise UserError("evaluate: MODEL SUITE [ROOT] is needed; `clipkit eval --help` tells more")
    rows = evaluate(arguments[0], arguments[1], arguments[2] if len(arguments) == 3 else ".")
    if distributed.rank() == 0:
        for row in rows:
            print(json.dumps(row))
    distributed.close()


if __name__ == "__main__":
    errors.guard(from_arguments, sys.argv[1:])
