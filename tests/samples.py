"""Small pictures, captions and shards that tests are made of."""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from clipkit.captions import Tokenizer

COLORS = ("red", "green", "blue", "gold", "purple", "orange", "black", "teal")
SHAPES = ("circle", "square", "triangle")
CLIPART = Path(__file__).parents[1] / ".." / "shared" / "data" / "clipart"
needs_clipart = pytest.mark.skipif(not CLIPART.is_dir(), reason=f"no real shards in {CLIPART}")


def shape(number: int, width: int = 48, height: int = 40) -> tuple[Image.Image, str]:
    """Picture and caption of sample `number`; the pictures of different numbers differ."""
    color, kind = COLORS[number % len(COLORS)], SHAPES[number // len(COLORS) % len(SHAPES)]
    image = Image.new("RGB", (width, height), (250 - number % 50, 250, 240))
    draw = ImageDraw.Draw(image)
    box = (width // 5 + number % 7, height // 5, width * 4 // 5, height * 4 // 5)
    if kind == "circle":
        draw.ellipse(box, fill=color)
    elif kind == "square":
        draw.rectangle(box, fill=color)
    else:
        draw.polygon([box[:2], box[2:], (box[0], box[3])], fill=color)
    return image, f"a {color} {kind}, number {number}"


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def sample(number: int, **members: bytes) -> dict[str, Any]:
    """A whole sample for `write_shard`; `members` replace or add to its jpg, txt and json."""
    image, caption = shape(number)
    about = {"texts": [caption, f"{caption}, again"], "label": number % 3, "number": number}
    usual = {"jpg": encoded(image), "txt": caption.encode(), "json": json.dumps(about).encode()}
    return {"__key__": f"{number:05d}", **usual, **members}


def write_shard(path: Path, samples: Iterable[dict[str, Any]]) -> Path:
    """A shard as webdataset's own writer makes it; members are bytes, written as they are."""
    import webdataset

    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for one in samples:
            writer.write(one)
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of the named members in the order given; a name that ends in `/` is a folder, in `@` a link."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            facts = tarfile.TarInfo(name)
            if name.endswith("/"):
                facts.type = tarfile.DIRTYPE
            elif name.endswith("@"):
                facts.type, facts.linkname = tarfile.SYMTYPE, "elsewhere/" * (1 if form == tarfile.USTAR_FORMAT else 15)
            else:
                facts.size = len(data)
            tar.addfile(facts, io.BytesIO(data) if facts.isreg() else None)
    return path


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.place,)


def spell(texts: list[str]) -> Tensor:
    """A toy encoding: one id per word, 1 at the end, 0 behind it."""
    out = torch.zeros(len(texts), 16, dtype=torch.long)
    for row, text in zip(out, texts, strict=True):
        ids = [2 + sum(word.encode()) % 1000 for word in text.split()][:15]
        row[: len(ids) + 1] = torch.tensor([*ids, 1])
    return out


def toy_tokenizer() -> Tokenizer:
    """A tokenizer that needs no vocabulary."""
    return Tokenizer(spell, 16, 0, True)
