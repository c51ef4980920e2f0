"""Good tars and pictures, and damage to them that is made from a seed."""

import io
import random
import struct
import tarfile
import zlib
from functools import cache

import numpy as np
from PIL import Image

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
SIZES = (b"0" * 11, b"77777777777", b"-0000001000", b"\xff" * 12, b"\x80" + bytes(11), b"\x80" + b"\xff" * 11, b"")


def picture(side: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Waves and noise."""
    dice = np.random.default_rng(seed)
    x = np.linspace(0, 9, side)
    waves = 127 + 90 * np.sin(x[:, None, None] * (1 + seed) + x[None, :, None] * np.array([1.0, 2.0, 3.0]))
    return Image.fromarray(np.clip(waves + dice.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)).convert(mode)


def _saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _tar(form: int, stem: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for number in range(8):
            image = _saved(picture(32, seed=number), "JPEG")
            for suffix, data in (("jpg", image), ("json", b'{"alt": "waves"}'), ("txt", b"waves and noise")):
                facts = tarfile.TarInfo(f"{stem}{number:03d}.{suffix}")
                facts.size = len(data)
                archive.addfile(facts, io.BytesIO(data))
    return file.getvalue()


@cache
def originals(kind: str) -> list[bytes]:
    """Good files of a kind, in the forms that it has."""
    plain, grey, second = picture(96), picture(96, "L"), picture(96, "P", 1)
    moving: dict[str, object] = {"save_all": True, "append_images": [second]}
    grey16 = Image.fromarray(np.arange(96 * 96, dtype=np.uint16).reshape(96, 96) * 7)
    if kind == "tar":
        stems = ("", "long/" * 30)
        forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        return [_tar(form, stem) for form in forms for stem in (stems if form != tarfile.USTAR_FORMAT else stems[:1])]
    if kind == "jpeg":
        rest = [_saved(picture(96, "CMYK"), "JPEG"), _saved(plain, "JPEG", restart_marker_blocks=4)]
        return [*(_saved(plain, "JPEG", progressive=p) for p in (0, 1)), _saved(grey, "JPEG"), *rest]
    if kind == "png":
        return [_saved(picture(64, mode), "PNG") for mode in ("RGB", "RGBA", "LA", "P", "1")] + [_saved(grey16, "PNG")]
    if kind == "webp":
        return [
            _saved(plain, "WEBP"),
            _saved(picture(64, "RGBA"), "WEBP", lossless=True),
            _saved(plain, "WEBP", **moving),
        ]
    if kind == "gif":
        return [_saved(picture(64, "P"), "GIF"), _saved(second, "GIF", **moving)]
    return [_saved(picture(48, mode), "BMP") for mode in ("RGB", "P", "1")]


def flip(data: bytearray, kind: str, dice: random.Random) -> None:
    """Turn single bits over."""
    for _ in range(dice.choice((1, 1, 2, 8, 40))):
        data[_place(data, dice)] ^= 1 << dice.randrange(8)


def overwrite(data: bytearray, kind: str, dice: random.Random) -> None:
    """Put zeros, ones or noise over a stretch."""
    at, length = _place(data, dice), dice.choice((1, 4, 64, 512, 2000))
    length = min(length, len(data) - at)
    data[at : at + length] = dice.choice((bytes(length), b"\xff" * length, dice.randbytes(length)))


def cut(data: bytearray, kind: str, dice: random.Random) -> None:
    """Take the end away."""
    del data[_place(data, dice) :]


def take_out(data: bytearray, kind: str, dice: random.Random) -> None:
    """Take a stretch out."""
    at = _place(data, dice)
    del data[at : at + dice.choice((1, 7, 100, 512, 5000))]


def put_in(data: bytearray, kind: str, dice: random.Random) -> None:
    """Put noise in, or a stretch of the same file many times."""
    at, length = _place(data, dice), dice.choice((1, 7, 100, 512))
    new = dice.randbytes(length) if dice.random() < 0.5 else bytes(data[at : at + length]) * dice.choice((1, 2, 300))
    data[at:at] = new


def splice(data: bytearray, kind: str, dice: random.Random) -> None:
    """Go on with another good file, from any place of it."""
    other = dice.choice(originals(kind))
    data[_place(data, dice) :] = other[dice.randrange(len(other)) :]


def set_field(data: bytearray, kind: str, dice: random.Random) -> None:
    """Put an extreme number over a field of a header."""
    if kind == "tar":
        at = dice.randrange(max(1, len(data) // 512)) * 512
        begin, end = dice.choice(((0, 100), (124, 136), (148, 156), (156, 157), (257, 265), (345, 500)))
        new = dice.choice(SIZES) if begin == 124 else dice.choice((dice.randbytes(end - begin), bytes(end - begin)))
        data[at + begin : at + end] = new.ljust(end - begin, b"\0")[: end - begin]
    else:
        form = dice.choice("BHHHII")
        at = dice.randrange(min(len(data), 700))
        if (
            kind == "jpeg"
            and (marker := data.find(b"\xff\xc0") + 1 or data.find(b"\xff\xc2") + 1)
            and dice.random() < 0.5
        ):
            at = marker + dice.randrange(10)
        new = struct.pack(dice.choice("<>") + form, dice.choice(EXTREMES) & (1 << 8 * struct.calcsize(form)) - 1)
        data[at : at + len(new)] = new


DAMAGE = (flip, overwrite, cut, take_out, put_in, splice, set_field, set_field)


def _place(data: bytearray, dice: random.Random) -> int:
    """Any place, but often one in the first bytes, where headers are."""
    return dice.randrange(max(1, min(len(data), dice.choice((100, 1000, len(data), len(data), len(data))))))


def mended(data: bytearray, kind: str) -> bytearray:
    """The file with right checksums in its tar headers or PNG chunks."""
    if kind == "tar":
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at + 148 : at + 156] = b" " * 8
                data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    elif kind == "png":
        at = 8
        while at + 12 <= len(data):
            end = at + 8 + int.from_bytes(data[at : at + 4], "big")
            if end + 4 > len(data):
                break
            data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
            at = end + 4
    return data


def make(kind: str, seed: int, number: int) -> bytes:
    """The damaged file of this number."""
    dice = random.Random(f"{kind} {seed} {number}")
    data = bytearray(dice.choice(originals(kind)))
    for _ in range(dice.choice((1, 1, 2, 3))):
        if data:
            dice.choice(DAMAGE)(data, kind, dice)
    return bytes(mended(data, kind) if dice.random() < 0.6 else data)
