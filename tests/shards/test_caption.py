"""Where captions are: one place, a list under a JSON key, several places with probabilities; and what is no caption."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clipkit.errors import UserError
from clipkit.shards import Choice, Shards, caption_of, draw_caption, json_keys, json_object, members_for
from tests.samples import sample, write_shard

# Places


@pytest.mark.parametrize("caption", ["", "TXT", "json", "json:", "caption"])
def test_a_place_is_txt_or_a_json_key(caption: str) -> None:
    for choice in (caption, {caption: 1.0}, {"txt": 1.0, caption: 0.0}):
        with pytest.raises(UserError) as error:
            members_for(choice)
        assert str(error.value) == f"caption: 'txt' or 'json:KEY' is needed, got '{caption}'"


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("txt", ("txt",)),
        ("json:a", ("json",)),
        ({"json:a": 0.1}, ("json",)),
        ({"json:a": 0.1, "json:b": 0.2}, ("json",)),
        ({"txt": 3, "json:a": 1}, ("txt", "json")),
        ({"json:a": 1, "txt": 0}, ("json",)),
    ],
)
def test_a_sample_needs_one_member_that_can_hold_its_caption(caption: Choice, wanted: tuple[str, ...]) -> None:
    assert members_for(caption) == (("image",), wanted)


@pytest.mark.parametrize("caption", [{}, {"txt": 0.0}, {"txt": 0, "json:a": 0}])
def test_places_without_a_probability_are_refused(caption: dict[str, float]) -> None:
    with pytest.raises(UserError) as error:
        members_for(caption)
    wanted = "caption: a place with a probability above 0 is needed, such as {txt: 0.5, json:alt: 0.5}"
    assert str(error.value) == wanted


# Reading


def shards_of(folder: Path, members: dict[str, bytes | None]) -> Shards:
    one: dict[str, Any] = {name: data for name, data in sample(0, **members).items() if data is not None}  # type: ignore
    write_shard(folder / "a.tar", [one])
    return Shards(str(folder))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [('" a "', ["a"]), ('["a", " ", "b ", 3, null, [], ""]', ["a", "b"]), ('["\\ud83d\\ude00"]', ["😀"])],
)
def test_captions_come_stripped_from_a_text_or_a_list(tmp_path: Path, text: str, wanted: list[str]) -> None:
    source = shards_of(tmp_path, {"json": b'{"k": %s}' % text.encode()})
    assert caption_of(source, 0, 0, "json:k") == wanted


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    assert caption_of(shards_of(tmp_path, {"txt": b"\xef\xbb\xbf Katze\n"}), 0, 0, "txt") == ["Katze"]


@pytest.mark.parametrize(
    ("members", "caption", "reason"),
    [
        ({"txt": b" \n\t"}, "txt", "empty caption"),
        ({"txt": None}, "txt", "no txt"),
        ({"json": None}, "json:k", "no json"),
        ({"txt": "Käse".encode("latin-1")}, "txt", "caption is not UTF-8"),
        ({"json": b'{"other": "x"}'}, "json:k", "empty caption"),
        ({"json": b'{"k": null}'}, "json:k", "empty caption"),
        ({"json": b'{"k": []}'}, "json:k", "empty caption"),
        ({"json": b'{"k": 3}'}, "json:k", "empty caption"),
        ({"json": b'{"k": "\\ud83d"}'}, "json:k", "empty caption"),  # half a surrogate pair: no text
        ({"json": b'["k"]'}, "json:k", "empty caption"),
        ({"json": b"null"}, "json:k", "empty caption"),
        ({"json": b"{"}, "json:k", "broken json"),
        ({"json": b"[" * 100_000}, "json:k", "broken json"),
        ({"json": b'{"k": "\xff"}'}, "json:k", "broken json"),
    ],
)
def test_an_unusable_caption_is_a_value_error(
    tmp_path: Path, members: dict[str, bytes | None], caption: str, reason: str
) -> None:
    source = shards_of(tmp_path, members)
    for read in (lambda: caption_of(source, 0, 0, caption), lambda: drawn(source, {caption: 2.0})):
        with pytest.raises(ValueError, match=f"^{reason}$"):
            read()


def test_keys_are_those_of_a_readable_object(tmp_path: Path) -> None:
    for i, data in enumerate((b'{"b": 1, "a": 2}', b"[]", b"{", None)):
        (tmp_path / str(i)).mkdir()
        source = shards_of(tmp_path / str(i), {"json": data})
        assert json_keys(source, 0, 0) == ({"a", "b"} if i == 0 else set())
    assert json_object(b"[1]") == {} and json_object(b'{"a": 1}') == {"a": 1}


# Drawing


def drawn(source: Shards, caption: Choice, seed: int = 0) -> str:
    return draw_caption(source, 0, 0, caption, random.Random(seed))


ALT = json.dumps({"alt": ["x", "y"], "other": "z"}).encode()


def test_texts_are_drawn_by_their_place_and_then_evenly(tmp_path: Path) -> None:
    source = shards_of(tmp_path, {"txt": b"plain", "json": ALT})
    caption = {"txt": 0.5, "json:alt": 0.3, "json:other": 0.2, "json:nope": 0.0}
    counts = Counter(drawn(source, caption, seed) for seed in range(4000))
    for text, share in (("plain", 0.5), ("x", 0.15), ("y", 0.15), ("z", 0.2)):
        assert abs(counts.pop(text) - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5, text
    assert not counts
    assert Counter(drawn(source, "json:alt", seed) for seed in range(100)).keys() == {"x", "y"}
    assert [drawn(source, caption, seed) for seed in range(50)] == [drawn(source, caption, seed) for seed in range(50)]


@pytest.mark.parametrize("txt", [None, b" ", b"\xff"])
def test_what_a_place_lacks_the_others_share_by_their_probabilities(tmp_path: Path, txt: bytes | None) -> None:
    source = shards_of(tmp_path, {"txt": txt, "json": ALT})
    counts = Counter(drawn(source, {"txt": 98, "json:other": 0.5, "json:alt": 1.5}, seed) for seed in range(2000))
    assert set(counts) == {"x", "y", "z"} and abs(counts["z"] - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5


def test_where_no_place_has_a_caption_the_last_reason_is_told(tmp_path: Path) -> None:
    source = shards_of(tmp_path, {"txt": b" ", "json": b"{"})
    reasons = set()
    for seed in range(20):
        with pytest.raises(ValueError) as error:
            drawn(source, {"txt": 1, "json:alt": 1}, seed)
        reasons.add(str(error.value))
    assert reasons == {"empty caption", "broken json"}
