"""Captions that are broken, odd or not there: name -> (where the caption is said to be, members of the sample, what
reading it must say, or None)."""

import json

from tests.samples import Trap
from tests.shards.damage import Members, good

Caption = tuple[str, Members, str | None]
PICTURE = good("bad", suffixes=("jpg",))


def _text(data: bytes, reason: str | None) -> Caption:
    return "txt", [*PICTURE, ("bad.txt", data)], reason


def _json(data: bytes, reason: str | None) -> Caption:
    return "json:alt", [*PICTURE, ("bad.json", data)], reason


def all_captions() -> dict[str, Caption]:
    """Every kind."""
    empty, broken = "empty caption", "broken json"
    return {
        "caption_missing": ("txt", PICTURE, "no txt"),
        "caption_of_no_bytes": _text(b"", "no txt"),
        "caption_of_white_space": _text(b" \n\t\r\n\xc2\xa0\xe3\x80\x80", empty),
        "caption_not_utf8": _text("ein Bär".encode("latin-1"), "caption is not UTF-8"),
        "caption_utf16": _text("a bear".encode("utf-16"), "caption is not UTF-8"),
        "caption_of_1_mb": _text(b"many words " * 100_000, None),
        "caption_with_zero_byte": _text(b"a\0bear", None),
        "caption_with_mark": _text(b"\xef\xbb\xbfa bear", None),
        "caption_of_mark_alone": _text(b"\xef\xbb\xbf", empty),
        "caption_of_surrogates": _text(b"\xed\xa0\x80", "caption is not UTF-8"),
        "caption_of_rubble": _text(bytes(range(256)) * 9, "caption is not UTF-8"),
        "json_good": _json(b'{"alt": "a bear"}', None),
        "json_missing": ("json:alt", [*PICTURE, ("bad.txt", b"a bear")], "no json"),
        "json_of_no_bytes": _json(b"", "no json"),
        "json_broken": _json(b'{"alt": "a bear"', broken),
        "json_single_quotes": _json(b"{'alt': 'a bear'}", broken),
        "json_not_utf8": _json(b'{"alt": "B\xe4r"}', broken),
        "json_utf16": _json('{"alt": "a bear"}'.encode("utf-16"), None),
        "json_with_mark": _json(b'\xef\xbb\xbf{"alt": "a bear"}', None),
        "json_list": _json(b'["a bear"]', empty),
        "json_text": _json(b'"a bear"', empty),
        "json_null": _json(b"null", empty),
        "json_too_deep": _json(b'{"alt": "a bear", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", broken),
        "json_half_surrogate": _json(b'{"alt": "\\ud83d"}', empty),
        "json_half_surrogate_beside_good": _json(b'{"alt": ["\\ud83d", "a bear"]}', None),
        "json_huge_number": _json(b'{"alt": "a bear", "x": ' + b"9" * 5000 + b"}", broken),
        "json_huge_exponent": _json(b'{"alt": "a bear", "x": 1e99999}', None),
        "json_nan": _json(b'{"alt": "a bear", "similarity": NaN}', None),
        "json_alt_is_nan": _json(b'{"alt": NaN}', empty),
        "json_key_missing": _json(b'{"title": "a bear"}', empty),
        "json_key_null": _json(b'{"alt": null}', empty),
        "json_key_number": _json(b'{"alt": 7}', empty),
        "json_key_object": _json(b'{"alt": {"en": "a bear"}}', empty),
        "json_key_empty_list": _json(b'{"alt": []}', empty),
        "json_key_list_of_blanks": _json(b'{"alt": ["", " ", null, 7]}', empty),
        "json_key_twice": _json(b'{"alt": "", "alt": "a bear"}', None),
        "json_is_a_pickle": _json(_pickled(), broken),
        "json_of_1_mb": _json(json.dumps({"alt": "a bear", "x": "y" * 1_000_000}).encode(), None),
    }


def _pickled() -> bytes:
    """What makes a folder where it is unpickled."""
    import pickle
    from pathlib import Path

    return pickle.dumps(Trap(Path("unpickled")))
