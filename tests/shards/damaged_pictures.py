"""Pictures that are broken, hostile, unusual, or none at all: name -> (bytes, what reading them must say, or None)."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from tests.samples import encoded, shape

Picture = tuple[bytes, str | None]


def photo(side: int = 64, mode: str = "RGB") -> Image.Image:
    """A picture with detail, so that its bytes go on to the end of its file."""
    noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    return Image.blend(Image.fromarray(noise), shape(3, side, side)[0], 0.7).convert(mode)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG with its right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int = 8, color: int = 0, extra: bytes = b"", lines: int | None = None) -> bytes:
    """A black PNG of any size in pixels; `lines` of it are there."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    line = b"\0" * (1 + (width * bits * channels + 7) // 8)
    packer = zlib.compressobj()
    pixels = b"".join(packer.compress(line) for _ in range(height if lines is None else lines)) + packer.flush()
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def interlaced_png() -> bytes:
    """A PNG of 2 x 2 pixels in Adam7's order: the first, the second, and then the lower line."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1))
    pixels = zlib.compress(b"\0\x10" + b"\0\x20" + b"\0\x30\x40")
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def bmp(width: int, height: int, bits: int, compression: int, data: bytes) -> bytes:
    """A BMP whose header says this of its pixels."""
    palette = bytes(4 * 256) if bits == 8 else b""
    start = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    about = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return head + about + palette + data


def marked(data: bytes, old: bytes, new: bytes) -> bytes:
    """The bytes with the first `old` replaced, which must be there."""
    assert data.count(old) >= 1 and len(old) == len(new)
    return data.replace(old, new, 1)


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times."""
    data = encoded(photo(), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def gif_with_huge_frame() -> bytes:
    """A GIF of 10 x 10 pixels whose frame is 60,000 wide and high."""
    data = bytearray(encoded(Image.new("P", (10, 10)), "GIF"))
    at = data.index(b"\x2c")
    data[at + 5 : at + 9] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


def text_bomb(kind: bytes) -> bytes:
    """A PNG of 3 x 3 pixels whose text chunk unpacks to 60 MB."""
    packed = zlib.compress(b"\0" * 60_000_000)
    head = b"a\0\0" if kind == b"zTXt" else b"a\0\x01\0\0\0"
    return png(3, 3, extra=png_chunk(kind, head + packed))


def texts(count: int) -> bytes:
    """A PNG of 3 x 3 pixels with many text chunks of 1 MB each when unpacked."""
    packed = zlib.compress(b" " * 1_000_000)
    return png(3, 3, extra=b"".join(png_chunk(b"zTXt", b"k%d\0\0" % i + packed) for i in range(count)))


def half(data: bytes) -> bytes:
    """The first half of a file."""
    return data[: len(data) // 2]


def with_orientation() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return encoded(photo(), exif=exif)


def jpegs() -> dict[str, Picture]:
    """What calls itself a JPEG, and mostly is one."""
    plain, cmyk = encoded(photo()), encoded(photo(mode="CMYK"))
    sof = b"\xff\xc0\x00\x11\x08"
    return {
        "jpeg_good": (plain, None),
        "jpeg_progressive": (encoded(photo(), progressive=True), None),
        "jpeg_grey": (encoded(photo(mode="L")), None),
        "jpeg_cmyk": (cmyk, None),
        "jpeg_ycck": (marked(cmyk, b"Adobe\0\x64\0\0\0\0\0", b"Adobe\0\x64\0\0\0\0\x02"), None),
        "jpeg_with_orientation": (with_orientation(), None),
        "jpeg_of_many_pictures": (encoded(photo(), "MPO", save_all=True, append_images=[photo(32)]), None),
        "jpeg_with_rubble_behind": (plain + b"rubble" * 500, None),
        "jpeg_of_1_pixel": (encoded(Image.new("RGB", (1, 1))), "too small"),
        "jpeg_cut_in_half": (half(plain), "broken picture"),
        "jpeg_cut_in_header": (plain[:100], "not a picture"),
        "jpeg_of_3_bytes": (plain[:3], "not a picture"),
        "jpeg_with_rubble_behind_header": (plain[:700] + b"rubble" * 500, "broken picture"),
        "jpeg_that_is_a_web_page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not a picture"),
        "jpeg_of_zeros": (bytes(5000), "not a picture"),
        "jpeg_with_hole": (plain[:900] + bytes(400) + plain[1300:], None),  # zeros are a code like others
        "jpeg_12_bit": (marked(plain, sof, b"\xff\xc1\x00\x11\x0c"), "broken picture"),
        "jpeg_lossless": (marked(plain, sof, b"\xff\xc3\x00\x11\x08"), "broken picture"),
        "jpeg_arithmetic": (marked(plain, sof, b"\xff\xc9\x00\x11\x08"), "broken picture"),
        "jpeg_65500_wide": (marked(plain, sof + b"\0\x40\0\x40", sof + b"\xff\xdc\xff\xdc"), "too many pixels"),
        "jpeg_of_zero_height": (marked(plain, sof + b"\0\x40", sof + b"\0\0"), "not a picture"),
        "jpeg_of_many_scans": (many_scans(3000), "too many scans"),
    }


def pngs() -> dict[str, Picture]:
    """PNGs, most of them in a form that a plain reader stumbles over."""
    plain, info = encoded(photo(), "PNG"), PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 5000)
    grey16 = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)
    see_through = photo(mode="P")
    see_through.info["transparency"] = bytes(range(256))
    return {
        "png_good": (plain, None),
        "png_16_bit": (encoded(grey16, "PNG"), None),
        "png_grey": (encoded(photo(mode="L"), "PNG"), None),
        "png_grey_and_alpha": (encoded(photo(mode="LA"), "PNG"), None),
        "png_rgba": (encoded(photo(mode="RGBA"), "PNG"), None),
        "png_palette_see_through": (encoded(see_through, "PNG", transparency=bytes(range(256))), None),
        "png_1_bit": (encoded(photo(mode="1"), "PNG"), None),
        "png_interlaced": (interlaced_png(), None),
        "png_with_text": (encoded(photo(), "PNG", pnginfo=info), None),
        "png_bomb": (png(13_300, 13_300, 1), "too many pixels"),
        "png_claims_2_to_the_31": (png(2**31 - 1, 2**31 - 1, 1, lines=0), "too many pixels"),
        "png_1x1": (png(1, 1), "too small"),
        "png_40000x2": (png(40_000, 2), "too long for its width"),
        "png_1x20000": (png(1, 20_000), "too small"),
        "png_0x0": (png(0, 0), "not a picture"),
        "png_cut_in_half": (half(plain), "broken picture"),
        "png_of_8_bytes": (plain[:8], "not a picture"),
        "png_bad_crc_of_header": (plain[:29] + b"\0\0\0\0" + plain[33:], "not a picture"),
        "png_bad_crc_of_pixels": (plain[:-16] + b"\0\0\0\0" + plain[-12:], None),  # Pillow does not look at it
        "png_no_pixels": (png(64, 64, lines=0), "broken picture"),
        "png_text_bomb": (text_bomb(b"zTXt"), "not a picture"),
        "png_international_text_bomb": (text_bomb(b"iTXt"), "not a picture"),
        "png_text_of_90_mb": (texts(90), "not a picture"),
    }


def others() -> dict[str, Picture]:
    """Moving pictures, BMPs, and formats that are not allowed whatever their name says."""
    frames: dict[str, Any] = {"save_all": True, "append_images": [photo(mode="P"), shape(5, 64, 64)[0].convert("P")]}
    webp = encoded(photo(), "WEBP", quality=90)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
    ico = io.BytesIO()
    photo().save(ico, "ICO")
    none = "not a picture"
    return {
        "gif_moving": (encoded(shape(4, 64, 64)[0].convert("P"), "GIF", **frames), None),
        "gif_huge_frame": (gif_with_huge_frame(), "too many pixels"),
        "gif_cut": (half(encoded(photo(mode="P"), "GIF")), "broken picture"),
        "webp_good": (webp, None),
        "webp_lossless": (encoded(photo(), "WEBP", lossless=True), None),
        "webp_moving": (encoded(photo(), "WEBP", save_all=True, append_images=[shape(5, 64, 64)[0]]), None),
        "webp_cut": (half(webp), "not a picture"),
        "bmp_good": (encoded(photo(), "BMP"), None),
        "bmp_run_lengths": (bmp(8, 2, 8, 1, b"\x08\x01\0\0\x08\x02\0\0\0\x01"), None),
        "bmp_runs_out_of_it": (bmp(8, 2, 8, 1, b"\0\x02\xff\xff" * 2000), None),
        "bmp_claims_20000x20000": (bmp(20_000, 20_000, 24, 0, b""), "too many pixels"),
        "bmp_cut": (half(encoded(photo(), "BMP")), "broken picture"),
        "tiff": (encoded(photo(), "TIFF"), none),
        "eps": (encoded(photo(), "EPS"), none),
        "ico": (ico.getvalue(), none),
        "pdf": (encoded(photo(), "PDF"), none),
        "ppm": (encoded(photo(), "PPM"), none),
        "svg": (svg, none),
        "psd": (b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 64, 64, 8, 3) + bytes(12 + 2 + 3 * 64 * 64), none),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400), none),
        "avif": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(400), none),
        "pickle": (b"\x80\x04\x95\x1d\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", none),
    }


def all_pictures() -> dict[str, Picture]:
    """Every kind."""
    return jpegs() | pngs() | others()
