"""One file of weights from a checkpoint, however many ranks have written it."""

import os
from collections.abc import Callable
from pathlib import Path

from clipkit.checkpoint import pieces, reading
from clipkit.errors import StorageError, UserError


def consolidate(model: Path, warn: Callable[[str], None], out: Path | None = None, raw: bool = False) -> Path:
    """Write the weights of a run folder's newest checkpoint, or of a checkpoint folder, to the safetensors file `out`
    (null: weights-STEP.safetensors in the run folder, or beside a checkpoint that is in none), the averaged ones where
    the run has them unless `raw`.

    Tensor by tensor, never more than two in memory. The checkpoint is verified first, and the file is complete
    or absent.
    Raises: UserError when there is no checkpoint or `out` exists; StorageError when it is damaged, or the disk refuses.
    """
    if not model.is_dir():
        raise UserError(f"{model}: no such run or checkpoint folder")
    place = reading.locate(model, warn)
    averaged = place / "ema.safetensors"
    stored = pieces.Stored(averaged if reading.holds(averaged) and not raw else place / "model.safetensors")
    beside = place.resolve().parent
    beside = beside.parent if beside.name == "checkpoints" else beside
    out = out or beside / f"weights-{place.resolve().name}.safetensors"
    if out.exists():
        raise UserError(f"{out}: exists; give another file with --out")
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        pieces.write(work, stored.parts())
        with work.open("rb") as file:
            os.fsync(file.fileno())
        work.rename(out)
    except (OSError, StorageError) as error:
        work.unlink(missing_ok=True)
        raise StorageError(f"{out}: could not be written ({error})") from error
    return out
