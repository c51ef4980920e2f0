"""Words to tune an index of pictures with, where no captions are there or others are wanted, as unit rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipkit.errors import UserError
from clipkit.index import choose
from clipkit.log import say
from clipkit.vectors.joined import Rows

COUNT = 500


def of(rows: Rows, kinds: Sequence[str], file: str | Path | None) -> np.ndarray | None:
    """The lines of a file as rows [Q, D]; without one, and where pictures have no captions, prompts of ImageNet's
    classes. None where neither is needed, or where the model that made the vectors is not on this disk.

    Raises: UserError when there is a file, and it or the model cannot be had.
    """
    model, digest = rows.about.get("model"), rows.about.get("digest")
    if file is not None:
        texts = lines(Path(file))
        if not model:
            raise UserError(
                "--queries: the vectors do not say which model made them, so that queries cannot be embedded"
            )
        return embedded(model, digest, texts)
    needed = "image" in kinds and "text" not in rows.kinds and len(rows) > choose.EXACT
    if not (needed and model and Path(model).exists()):  # for this none is downloaded
        return None
    from open_clip import IMAGENET_CLASSNAMES

    names = IMAGENET_CLASSNAMES[:: len(IMAGENET_CLASSNAMES) // COUNT]
    try:
        return embedded(model, digest, [f"a photo of a {name}" for name in names])
    except UserError as error:
        say(f"no prompts to tune with: {error}")
        return None


def lines(path: Path) -> list[str]:
    """The lines of a text file without the empty ones.

    Raises: UserError when it cannot be read or has none.
    """
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"--queries {path}: a text file is needed, with a query a line ({why})") from None
    if not any(found):
        raise UserError(f"--queries {path}: is empty; a query a line is needed")
    return list(filter(None, found))


def embedded(model: str, digest: str | None, texts: list[str]) -> np.ndarray:
    """Texts as rows [Q, D] by the model of the vectors, which must be the one of `digest` still, where that is known.

    Raises: UserError.
    """
    from clipkit import models

    named = models.Named(model)
    if digest and named.identity != digest:
        raise UserError(f"{model}: is another model than when it made the vectors; embed again")
    return models.embed_texts(named.model, texts).numpy()
