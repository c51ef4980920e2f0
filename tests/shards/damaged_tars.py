"""Tars that are cut, overwritten, spliced, or lie in their headers; what must come of each stands above it."""

import tarfile
from collections.abc import Callable

from tests.samples import encoded
from tests.shards.damage import GOOD, Recipe, good, tar
from tests.shards.damaged_pictures import photo

KINDS: dict[str, Recipe] = {}
RUBBLE = b"rubble! " * 64
SIZE, KIND, MAGIC = 124, 156, 257  # places of fields in a header


def kind(
    *usable: str, unreadable: dict[str, int] | None = None, **left_out: int
) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Add a kind: the keys that can be read, and the counts by reason, with `_` for blanks."""

    def add(make: Callable[[], bytes]) -> Callable[[], bytes]:
        reasons = {reason.replace("_", " "): n for reason, n in left_out.items()}
        KINDS[make.__name__] = Recipe(make, usable, reasons, unreadable or {})
        return make

    return add


def whole() -> bytes:
    """A tar of four good samples."""
    return tar(good(*GOOD))


def at(data: bytes, name: str) -> int:
    """Where the header of a member is."""
    return data.index(name.encode() + b"\0")


def put(data: bytes, place: int, new: bytes) -> bytes:
    """The bytes with some of them overwritten."""
    return data[:place] + new + data[place + len(new) :]


def header(data: bytes, name: str, place: int, new: bytes) -> bytes:
    """The tar with a field of a member's header changed, and its checksum right again."""
    begin = at(data, name)
    block = put(put(data[begin : begin + 512], place, new), 148, b" " * 8)
    return put(data, begin, put(block, 148, b"%06o\0 " % sum(block)))


def bad(*members: tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of some members between two good samples."""
    return tar([*good("g0"), *members, *good("g1")], form)


def entry(name: str, kind: bytes, link: str = "", size: int = 0) -> bytes:
    """A header alone."""
    facts = tarfile.TarInfo(name)
    facts.type, facts.linkname, facts.size = kind, link, size
    return facts.tobuf(tarfile.GNU_FORMAT)


def between(*blocks: bytes) -> bytes:
    """Some blocks between two good samples."""
    data = tar(good("g0", "g1"))
    return data[: at(data, "g1.jpg")] + b"".join(blocks) + data[at(data, "g1.jpg") :]


def padded(data: bytes) -> bytes:
    """The data of a member in whole blocks."""
    return data + bytes(-len(data) % 512)


# Cut


@kind("g0", "g1", truncated=1, no_txt=1)
def cut_in_header() -> bytes:
    return whole()[: at(whole(), "g2.txt") + 100]


@kind("g0", "g1", truncated=1)
def cut_in_picture() -> bytes:
    return whole()[: at(whole(), "g2.jpg") + 700]


@kind("g0", "g1", truncated=1)
def cut_in_picture_at_block() -> bytes:
    return whole()[: at(whole(), "g2.jpg") + 1024]


@kind("g0", "g1", truncated=1, no_txt=1)
def cut_in_caption() -> bytes:
    return whole()[: at(whole(), "g2.txt") + 513]


@kind("g0", "g1", truncated=1, no_txt=1)
def cut_between_members() -> bytes:
    return whole()[: at(whole(), "g2.txt")]


@kind("g0", "g1", truncated=1)
def cut_between_samples() -> bytes:
    return whole()[: at(whole(), "g2.jpg")]


@kind(*GOOD, truncated=1)
def cut_end_blocks() -> bytes:
    return whole()[: at(whole(), "g3.txt") + 1024]


@kind(*GOOD, truncated=1)
def cut_in_last_padding() -> bytes:
    return whole()[: at(whole(), "g3.txt") + 512 + 100]


@kind(truncated=1)
def cut_in_first_header() -> bytes:
    return whole()[:300]


@kind(empty_file=1)
def empty_file() -> bytes:
    return b""


@kind()
def empty_tar() -> bytes:
    return tar([])


# Overwritten


@kind("g0", "g2", "g3", bad_header=1, no_image=1)
def header_of_picture_overwritten() -> bytes:
    return put(whole(), at(whole(), "g1.jpg"), RUBBLE)


@kind("g0", "g2", "g3", bad_header=1, no_txt=1)
def header_of_caption_overwritten() -> bytes:
    return put(whole(), at(whole(), "g1.txt"), RUBBLE)


@kind("g1", "g2", "g3", bad_header=1, no_image=1)
def first_header_overwritten() -> bytes:
    return put(whole(), 0, RUBBLE)


@kind("g0", "g2", "g3", bad_header=1, no_image=1)
def checksum_flipped() -> bytes:
    place = at(whole(), "g1.jpg") + 150
    return put(whole(), place, bytes([whole()[place] ^ 1]))


@kind("g0", "g2", "g3", bad_header=1, no_image=1)
def name_flipped() -> bytes:
    return put(whole(), at(whole(), "g1.jpg"), b"h")


@kind("g0", "g2", "g3", bad_header=1, no_image=1)
def header_zeroed() -> bytes:
    return put(whole(), at(whole(), "g1.jpg"), bytes(512))


@kind("g0", "g2", "g3", unreadable={"not a picture": 1})
def picture_zeroed() -> bytes:
    begin = at(whole(), "g1.jpg") + 512
    return put(whole(), begin, bytes(at(whole(), "g1.txt") - begin))


@kind("g0", "g3", bad_header=1, no_txt=1)
def hole_from_picture_to_picture() -> bytes:
    begin = at(whole(), "g1.jpg") + 1000  # the picture of g1 keeps its header, that of g2 only its end
    data = put(whole(), begin, bytes(at(whole(), "g2.jpg") + 700 - begin))
    return put(data, at(whole(), "g2.txt"), bytes(1024))


@kind("g0", "g3", hole_of_zeros=1)
def hole_of_whole_members() -> bytes:
    big = [("g1.png", encoded(photo(), "PNG")), ("g1.txt", b"noise"), *good("g2")]
    data = tar([*good("g0"), *big, *good("g3")])
    return put(data, at(data, "g1.png"), bytes(at(data, "g3.jpg") - at(data, "g1.png")))


@kind("g0", "g1", hole_of_zeros=1, no_txt=1)
def tail_of_zeros() -> bytes:
    return whole()[: at(whole(), "g2.jpg") + 700] + bytes(50_000)  # room was made, the rest never came


@kind(hole_of_zeros=1)
def nothing_but_zeros() -> bytes:
    return bytes(100_000)


@kind("g0", "g3", bad_header=1)
def rubble_over_two_samples() -> bytes:
    begin, end = at(whole(), "g1.jpg"), at(whole(), "g3.jpg")
    return put(whole(), begin, (RUBBLE * 99)[: end - begin])


# Inserted, missing, spliced


@kind(*GOOD, bad_header=1)
def block_inserted_between_members() -> bytes:
    return whole()[: at(whole(), "g1.txt")] + RUBBLE + whole()[at(whole(), "g1.txt") :]


@kind(*GOOD, bad_header=1)
def seven_bytes_inserted_between_members() -> bytes:
    return whole()[: at(whole(), "g1.txt")] + RUBBLE[:7] + whole()[at(whole(), "g1.txt") :]


@kind("g0", "g2", "g3", bad_header=1, unreadable={"broken picture": 1})
def bytes_inserted_in_picture() -> bytes:
    place = at(whole(), "g1.jpg") + 512 + 900
    return whole()[:place] + b"\xff\x00\xff\xc4\x01" + RUBBLE[:100] + whole()[place:]


@kind("g0", "g2", "g3", bad_size=1, no_image=1)
def bytes_missing_in_picture() -> bytes:
    place = at(whole(), "g1.jpg") + 900
    return whole()[:place] + whole()[place + 600 :]


@kind("g0", "g3", bad_size=1, no_image=1)
def bytes_missing_from_picture_to_picture() -> bytes:
    return whole()[: at(whole(), "g1.jpg") + 700] + whole()[at(whole(), "g2.txt") - 99 :]


@kind(*GOOD, bad_header=1)
def rubble_behind_the_end() -> bytes:
    return whole() + RUBBLE * 3


@kind(*GOOD, "h0", "h1")
def two_tars_in_one_file() -> bytes:
    return whole() + tar(good("h0", "h1"))


@kind(*GOOD, *GOOD)
def two_tars_of_the_same_keys() -> bytes:
    return whole() + whole()


@kind("g0", "h0", "h1", bad_size=1)
def a_cut_tar_and_another() -> bytes:
    return whole()[: at(whole(), "g1.jpg") + 900] + tar(good("h0", "h1"))


@kind("g2", "g3", **{"web page, not tar": 1})
def a_web_page_and_the_rest_of_a_tar() -> bytes:
    page = b"<html>503 Service Unavailable</html>\n" * 9  # and then the download was taken up from there
    return page + whole()[at(whole(), "g2.jpg") :]


# Lying headers


@kind("g0", "g2", "g3", bad_header=1, no_image=1)
def size_negative() -> bytes:
    return header(whole(), "g1.jpg", SIZE, b"-0000001000\0")


@kind("g0", "g2", "g3", bad_header=1, no_image=1)
def size_negative_base_256() -> bytes:
    return header(whole(), "g1.jpg", SIZE, b"\xff" * 12)


@kind("g0", "g2", "g3", bad_size=1, no_image=1)
def size_huge_base_256() -> bytes:
    return header(whole(), "g1.jpg", SIZE, b"\x80" + b"\xff" * 11)


@kind("g0", "g2", "g3", bad_size=1, no_image=1)
def size_beyond_the_end() -> bytes:
    return header(whole(), "g1.jpg", SIZE, b"77777777777\0")


@kind("g0", "g1", "g2", truncated=1, no_txt=1)
def size_of_last_beyond_the_end() -> bytes:
    return header(whole(), "g3.txt", SIZE, b"00000100000\0")


@kind("g0", "g2", "g3", bad_size=1, no_image=1)
def size_into_the_next_member() -> bytes:
    size = at(whole(), "g1.txt") - at(whole(), "g1.jpg")  # one block too many, its own header's
    return header(whole(), "g1.jpg", SIZE, b"%011o\0" % size)


@kind("g0", "g2", "g3", bad_header=1, unreadable={"not a picture": 1})
def size_too_small() -> bytes:
    return header(whole(), "g1.jpg", SIZE, b"%011o\0" % 100)


@kind("g0", "g2", "g3", bad_header=1, no_image=1)
def size_not_octal() -> bytes:
    return header(whole(), "g1.jpg", SIZE, b"0000000999x\0")


@kind(*GOOD)
def size_in_base_256() -> bytes:
    size = len(good("g1")[0][1])
    return header(whole(), "g1.jpg", SIZE, b"\x80" + size.to_bytes(11, "big"))


@kind("g0", "g2", "g3", bad_name=1, no_image=1)
def name_empty() -> bytes:
    return header(whole(), "g1.jpg", 0, bytes(100))


LONG = "long/" * 30 + "bad"


@kind("g0", LONG, "g1")
def name_long() -> bytes:
    return bad(*good(LONG))


@kind("g0", LONG, "g1")
def name_long_pax() -> bytes:
    return bad(*good(LONG), form=tarfile.PAX_FORMAT)


@kind("g0", "g1", bad_name=1, no_image=1)
def name_long_zeroed() -> bytes:
    data = bad(*good(LONG))
    return put(data, data.index(LONG.encode()), bytes(512))


@kind("g0", "g1", bad_size=1, no_image=1)
def name_long_of_8_gb() -> bytes:
    return header(bad(*good(LONG)), "././@LongLink", SIZE, b"77777777777\0")


@kind("g0", "g1", "h", bad_header=1, no_image=1)
def name_long_then_bad_header() -> bytes:
    data = tar([*good("g0"), *good(LONG), *good("g1"), *good("h")])  # the name must not go to the file behind
    return put(data, data.index(LONG.encode()) + 512, RUBBLE)


@kind("g0", "g1", bad_name=1, no_image=1)
def pax_damaged() -> bytes:
    data = bad(*good(LONG), form=tarfile.PAX_FORMAT)
    return put(data, data.index(b" path=") - 3, b"9z9")


@kind("g0", "g1", bad_name=1, no_image=1)
def pax_cut_record() -> bytes:
    data = bad(*good(LONG), form=tarfile.PAX_FORMAT)
    return put(data, data.index(b".jpg\n") + 4, b"x")


@kind("g0", "g1", bad_name=1, no_image=1)
def pax_name_with_zero_byte() -> bytes:
    data = bad(*good(LONG), form=tarfile.PAX_FORMAT)
    return put(data, data.index(b".jpg\n") - 1, b"\0")


def pax(name: str, records: bytes, size: bytes, data: bytes) -> list[bytes]:
    """The blocks of a file whose pax header says these things of it."""
    begin = entry("x", b"x", size=len(records)) + padded(records)
    return [begin, header(entry(name, b"0"), name, SIZE, size), padded(data)]


@kind("g0", "bad", "g1")
def pax_size() -> bytes:
    (name, data), (_, text) = good("bad")
    digits = b"%d" % len(data)
    record = b"%d size=%s\n" % (9 + len(digits), digits)
    return between(*pax(name, record, b"%011o\0" % 0, data), entry("bad.txt", b"0", size=len(text)), padded(text))


@kind("g0", "g1", not_a_plain_file=1, no_image=1)
def pax_sparse() -> bytes:
    (name, data), (_, text) = good("bad")
    blocks = pax(name, b"22 GNU.sparse.major=1\n", b"%011o\0" % len(data), data)
    return between(*blocks, entry("bad.txt", b"0", size=len(text)), padded(text))
