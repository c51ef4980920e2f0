"""What a name stands for: a folder of images, a table, COCO captions, or a saved Hugging Face data set."""

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipkit.datatools.pack.folder import IMAGES, Folder
from clipkit.datatools.pack.rows import Options, Row, Source, clean, locate, shown, stem
from clipkit.datatools.pack.saved import Saved
from clipkit.datatools.pack.tables import SUFFIXES, Table, load_json, stamp
from clipkit.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
COCO_FOLDERS = ("train2014", "val2014", "test2014", "train2017", "val2017", "test2017", "test2015")
KINDS = "an image folder, .csv, .tsv, .jsonl, .parquet, COCO .json, or a saved Hugging Face data set"


def open_source(name: str, options: Options) -> Source:
    """What `name` stands for.

    Raises: UserError when there is no such thing, it is nothing that can be packed, or an option does not fit.
    """
    path = Path(name)
    source: Source
    if glob.has_magic(name) and not path.exists():
        source = _tables([Path(found) for found in sorted(glob.glob(name, recursive=True))], name, options)
    elif path.is_dir():
        source = _open_folder(path, options)
    elif path.is_file():
        source = _open_file(path, options)
    else:
        raise UserError(f"{name}: no such file or folder; give {KINDS}")
    fits = {
        "captions": isinstance(source, Folder),
        "split": isinstance(source, Saved),
        "image": isinstance(source, Table | Saved),
        "caption": isinstance(source, Table | Saved),
        "group": isinstance(source, Table | Saved),
        "root": isinstance(source, Coco) or (isinstance(source, Table) and source.absolute),
    }
    for option, fit in fits.items():
        if getattr(options, option) is not None and not fit:
            raise UserError(f"{name}: --{option} has no meaning for {source.kind}")
    return source


def _open_folder(path: Path, options: Options) -> Source:
    if (path / "dataset_dict.json").is_file():
        splits = load_json(path / "dataset_dict.json").get("splits", [])
        if options.split not in splits:
            got = f"--split {options.split}: no such split" if options.split else "holds several splits"
            raise UserError(f"{path}: {got}; there are {', '.join(splits) or 'none'}; type --split NAME")
        return Saved(path / str(options.split), options)
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return Saved(path, options)
    for name in METADATA:
        if (path / name).is_file() and options.captions is None:
            return Table([path / name], replace(options, image=options.image or "file_name"), absolute=False)
    names = [entry.name for entry in os.scandir(path)]
    if any(name.endswith(".tar") for name in names):
        raise UserError(f"{path}: holds .tar shards already, which need no packing")
    parquet = sorted(path.rglob("*.parquet")) if not any(name.lower().endswith(IMAGES) for name in names) else []
    return _tables(parquet, str(path), options) if parquet else Folder(path, options.captions)


def _open_file(path: Path, options: Options) -> Source:
    if path.suffix.lower() != ".json":
        return _tables([path], str(path), options)
    value = load_json(path)
    if isinstance(value, list):
        return Table([path], options)
    if isinstance(value, dict) and isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        return Coco(path, value, options.root)
    raise UserError(f"{path}: is neither COCO captions (images and annotations) nor a list of rows")


def _tables(files: list[Path], name: str, options: Options) -> Table:
    suffixes = sorted({path.suffix.lower() for path in files})
    if not files:
        raise UserError(f"{name}: no file matches; give {KINDS}")
    if len(suffixes) > 1:
        raise UserError(f"{name}: matches files of several kinds ({', '.join(suffixes)}); give one kind")
    if suffixes == [".tar"]:
        raise UserError(f"{name}: is a .tar shard already, which needs no packing")
    if suffixes[0] not in SUFFIXES:
        raise UserError(f"{name}: nothing that can be packed; give {KINDS}")
    return Table(files, options)


class Coco:
    """COCO captions: `images` and `annotations` in one JSON file; an image has all its captions, in their order."""

    kind = "COCO captions"

    def __init__(self, path: Path, value: Mapping[str, Any], root: str | None) -> None:
        self.path, self.value = path, value
        self.ignored: dict[str, int] = {}
        if not all(isinstance(one, dict) for part in ("images", "annotations") for one in value[part]):
            raise UserError(f"{path}: images or annotations hold something that is no object; mend the file")
        if not any("caption" in annotation for annotation in value["annotations"]):
            raise UserError(f"{path}: no annotation holds a 'caption'; give a captions_*.json of COCO")
        self.root = os.path.abspath(root) if root is not None else self._find()
        self._stamp = stamp([path])

    def fingerprint(self) -> dict[str, Any]:
        """Size and time of the JSON file."""
        return self._stamp

    def rows(self) -> Iterator[Row]:
        """A row per image, and one that is left out per annotation whose image is not in the list."""
        captions: dict[str, list[Any]] = {}
        for annotation in self.value["annotations"]:
            captions.setdefault(str(annotation.get("image_id")), []).append(annotation.get("caption"))
        for image in self.value["images"]:
            name, number = image.get("file_name"), image.get("id")
            id = f"image {number}: {shown(str(name))}"
            try:
                path = locate(name, self.root, absolute=False)
                texts = clean(captions.pop(str(number), []))
            except ValueError as error:
                yield Row(id, problem=str(error))
                continue
            about = {"image_id": number, **{key: value for key, value in image.items() if key != "id"}}
            yield Row(id, stem(str(name)), path, captions=texts, extra=about)
        listed = {str(image.get("id")) for image in self.value["images"]}
        for number, texts in captions.items():
            if number not in listed:
                for text in texts:
                    yield Row(f"annotation of image {number}: {text}", problem="no image of that id")

    def _find(self) -> str:
        """The folder in which the first images are.

        Raises: UserError when none of the usual places holds any of the first hundred.
        """
        beside = os.path.dirname(os.path.abspath(self.path))
        named = self.path.stem.split("_")[-1]
        below = ["", "images", named, *COCO_FOLDERS]
        below += [os.path.join("images", name) for name in below[2:]]
        places = [os.path.join(top, name) for top in (beside, os.path.dirname(beside)) for name in below]
        names = [image.get("file_name") for image in self.value["images"][:100]]
        for place in map(os.path.normpath, places):
            if any(isinstance(name, str) and os.path.isfile(os.path.join(place, name)) for name in names):
                return place
        first = next((name for name in names if name), "none")
        raise UserError(
            f"{self.path}: the images (the first is {first}) are not in its folder, the one above, or images/, "
            f"{named}/ there; type --root FOLDER"
        )
