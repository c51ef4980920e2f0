"""Captions in JSON: COCO's captions_val2017.json, and Karpathy's dataset_coco.json and dataset_flickr30k.json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipkit.errors import UserError
from clipkit.sets.files import Files, refuse_missing
from clipkit.sets.samples import About

SUFFIX = ".json"


def read(path: Path) -> Any:
    """What a JSON file holds.

    Raises: UserError when it is not there, no file, not JSON or not UTF-8, with the line.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: not a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}: broken JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{path}: broken JSON (nested too deeply)") from None


def open_captions(path: Path, tree: Any, images: str | None, split: str | None) -> Files:
    """The pictures of a captions file that have any, in its order, with the fields `captions` (list) and `id`.

    Without `images` the pictures are looked for where COCO and Flickr30k put them: beside the file, in its `images`,
    and in the folder beside its own that its name ends in (annotations/captions_val2017.json: val2017). Of Karpathy's
    files the `split` is read (null: all), all of COCO's: each of its files is a split.
    Raises: UserError when the file is of another kind, or no picture has a caption.
    """
    try:
        karpathy = "annotations" not in tree and "sentences" in tree["images"][0]
        shown = _karpathy(path, tree, split) if karpathy else _coco(tree)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        need = "COCO's have images and annotations, Karpathy's images with filename, sentences and split"
        raise UserError(f"{path}: not a file of captions ({type(error).__name__}: {error}); {need}") from None
    if not shown:
        raise UserError(f"{path}: no picture has a caption")
    folder = Path(images) if images else _folder(path, shown[0][0])
    paths = [folder / name for name, _ in shown]
    refuse_missing(paths[0], str(path))
    return Files(paths, [row for _, row in shown], About("retrieval", caption="captions"))


def _coco(tree: Any) -> list[tuple[str, dict[str, Any]]]:
    texts: dict[Any, list[str]] = {}
    for one in tree["annotations"]:
        texts.setdefault(one["image_id"], []).append(one["caption"])
    some = [one for one in tree["images"] if one["id"] in texts]
    return [(one["file_name"], {"captions": texts[one["id"]], "id": one["id"]}) for one in some]


def _karpathy(path: Path, tree: Any, split: str | None) -> list[tuple[str, dict[str, Any]]]:
    splits = dict.fromkeys(one["split"] for one in tree["images"])
    if split is not None and split not in splits:
        raise UserError(f"{path}: has no part '{split}'; split is one of: {', '.join(splits)}")
    return [
        (
            f"{one.get('filepath', '')}/{one['filename']}".lstrip("/"),
            {"captions": [sentence["raw"] for sentence in one["sentences"]], "id": one.get("imgid", one["filename"])},
        )
        for one in tree["images"]
        if split in (None, one["split"]) and one["sentences"]
    ]


def _folder(path: Path, first: str) -> Path:
    """The folder that holds the picture named `first`; the file's own where none does."""
    beside = path.resolve().parent
    places: Sequence[Path] = (
        beside, beside / "images", beside / f"{path.stem.rpartition('_')[2]}-images",
        beside.parent / path.stem.rpartition("_")[2], beside.parent, beside.parent / "images",
    )  # fmt: skip
    return next((place for place in places if (place / first).is_file()), path.parent)
