"""One shard of a pack: its rows become samples, checked, shrunk if wanted, and written whole or not at all."""

import errno
import io
import os
import stat
import struct
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipkit import images
from clipkit.data.order import permute
from clipkit.datatools.pack.plan import Job, Plan, Record, write_json
from clipkit.datatools.pack.records import record_path
from clipkit.datatools.pack.rows import clean
from clipkit.errors import StorageError

LARGEST = 1 << 28  # bytes of an image file: none that MAX_PIXELS allows needs more
LONGEST = 1 << 20  # bytes of a caption file
PROFILE = 1 << 16  # bytes of a colour profile that a shrunk image keeps
ORIENTATION = 0x0112  # the EXIF tag that tells viewers which way is up
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
REFUSED = (errno.EACCES, errno.EPERM)


def write_shard(plan: Plan, out: Path, job: Job, tick: Callable[[int], None]) -> dict[str, Any]:
    """Make a shard below `out` and then its record in the plan's folder, which says that it is finished; the record.

    `tick(done)` is called after each row. The bytes depend on the plan alone.
    Raises: StorageError when the source does not answer; OSError when the disk refuses.
    """
    os.environ.setdefault("WDS_SECURE", "1")  # webdataset reads it when imported: no shell commands as addresses
    from webdataset.writer import TarWriter

    settings = plan.facts["settings"]
    left_out: list[dict[str, str]] = []
    told = {"samples": 0, "several": 0, "captions": 0, "characters": 0, "shortest": 0, "longest": 0}
    temporary = plan.work / f".{uuid.uuid4().hex}.tmp"
    path = out / job.name
    path.parent.mkdir(exist_ok=True)
    try:
        with temporary.open("wb") as file:
            with TarWriter(file, user="clipkit", group="clipkit", mtime=0, encoder=False) as tar:
                for place, record in enumerate(plan.records(job, _order(settings["seed"], job.split))):
                    try:
                        suffix, image, captions = _sample(record, settings)
                    except ValueError as error:
                        left_out.append({"id": record.id, "reason": str(error)})
                    else:
                        key = f"{job.keys + job.first + place:09d}"
                        text = captions[0].encode()
                        tar.write({"__key__": key, suffix: image, "txt": text, "json": record.extra})
                        _count(told, captions)
                    tick(place + 1)
            file.flush()
            os.fsync(file.fileno())
        size = temporary.stat().st_size
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    made = {"shard": job.name, "bytes": size, "captions": told, "left_out": left_out}
    write_json(record_path(plan.work, job), made)
    return made


def _order(seed: int | None, split: str) -> Callable[[np.ndarray, int], np.ndarray]:
    if seed is None:
        return lambda places, count: places
    return lambda places, count: permute(places, np.array(count), seed, int(split == "val"))


def _sample(record: Record, settings: Mapping[str, Any]) -> tuple[str, bytes, list[str]]:
    """(suffix, image, captions) of a row.

    Raises: ValueError with the reason to leave it out.
    """
    captions = record.captions
    if record.caption_file:
        data = read_part(record.caption_file, 0, -1, LONGEST, "caption")
        try:
            captions = clean(data.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise ValueError("caption is not UTF-8") from None
    data = read_part(record.image, max(record.offset, 0), record.size, LARGEST, "image")
    return *_checked(data, settings), captions


def read_part(path: str, offset: int, size: int, most: int, what: str) -> bytes:
    """`size` bytes of a file from `offset`, or all from there if it is negative.

    Raises: ValueError when there is no such file to be had; StorageError when the disk or the network failed.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe of that name must not block
    except OSError as error:
        if error.errno in GONE:
            raise ValueError(f"{what} file is missing") from None
        if error.errno in REFUSED:
            raise ValueError(f"{what} file may not be read") from None
        raise StorageError(f"{path}: {error.strerror}; start again with the same command, to go on") from error
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError(f"{what} is not a file")
        if size < 0:
            size = facts.st_size - offset
        if size > most:
            raise ValueError(f"{what} file is too large")
        if facts.st_size < offset + size:
            raise StorageError(f"{path}: is shorter than when it was planned; start over with the whole file")
        parts = []
        while size > 0 and (part := os.pread(handle, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}; start again with the same command, to go on") from error
    finally:
        os.close(handle)
    return b"".join(parts)


def _checked(data: bytes, settings: Mapping[str, Any]) -> tuple[str, bytes]:
    """(suffix, bytes) of an image that is allowed: as it is, or shrunk to a JPEG.

    Raises: ValueError when it is not.
    """
    if not data:
        raise ValueError("image file is empty")
    width, height = images.size_of(data)
    target = shrunk(width, height, settings["size"], settings["resize"])
    if target is not None:
        return "jpg", _jpeg(data, target, settings["quality"])
    if settings["verify"] == "decode":
        images.decode(data)
    return _suffix(data), data


def shrunk(width: int, height: int, size: int | None, mode: str) -> tuple[int, int] | None:
    """(width, height) at which the "shortest" or "longest" side is `size`; None where that would not shrink it."""
    if size is None or mode == "none":
        return None
    side = min(width, height) if mode == "shortest" else max(width, height)
    if side <= size:
        return None
    return max(1, round(width * size / side)), max(1, round(height * size / side))


def _jpeg(data: bytes, target: tuple[int, int], quality: int) -> bytes:
    """The image at size `target`, a JPEG that keeps colour profile and orientation.

    Decoded at no less than twice the size, where the decoder can do so: 1 of 255 from a full decode.
    """
    origin, least = images.safe_open_image(data), (2 * target[0], 2 * target[1])
    pixels = images.decode(data, least if least[0] < origin.width and least[1] < origin.height else None)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).resize(target, Image.Resampling.LANCZOS)
    about: dict[str, Any] = {}
    profile = origin.info.get("icc_profile")
    if origin.mode == "RGB" and isinstance(profile, bytes) and len(profile) < PROFILE:
        about["icc_profile"] = profile
    try:
        way = origin.getexif().get(ORIENTATION)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):  # rubble that calls itself EXIF
        way = None
    if isinstance(way, int) and 2 <= way <= 8:
        exif = Image.Exif()
        exif[ORIENTATION] = way
        about["exif"] = exif
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, **about)
    return file.getvalue()


def _suffix(data: bytes) -> str:
    """By content, whatever the file was called."""
    if data[:4] == b"RIFF":
        return "webp"
    starts = {b"\xff\xd8": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp"}
    return next(suffix for start, suffix in starts.items() if data.startswith(start))


def _count(told: dict[str, Any], captions: list[str]) -> None:
    lengths = [len(caption) for caption in captions]
    told["samples"] += 1
    told["several"] += len(captions) > 1
    told["captions"] += len(captions)
    told["characters"] += sum(lengths)
    told["shortest"] = min(told["shortest"] or lengths[0], *lengths)  # no caption is empty
    told["longest"] = max(told["longest"], *lengths)
