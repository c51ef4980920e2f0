"""Where captions come from in a stream: one place, a list, or several places with probabilities."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clipkit.data import Source
from clipkit.types import Batch
from tests.data.streams import assert_same, joined, stream
from tests.samples import sample, shape, toy_tokenizer, write_shard

N = 24


def texts_of(number: int) -> dict[str, list[str]]:
    """The captions of a sample by place."""
    return {"txt": [f"plain number {number}"], "json:alt": [f"alt{i} number {number}" for i in range(3)]}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of twelve samples: every third lacks its txt, every third its alt, or its whole json."""
    folder = tmp_path_factory.mktemp("captioned")
    for i in range(2):
        write_shard(folder / f"{i}.tar", map(made, range(12 * i, 12 * i + 12)))
    return folder


def made(number: int) -> dict[str, Any]:
    texts = texts_of(number)
    one = sample(number, txt=texts["txt"][0].encode(), json=json.dumps({"alt": texts["json:alt"]}).encode())
    if number % 3 == 1:
        del one["txt"]
    if number % 6 == 2:
        del one["json"]
    if number % 6 == 5:
        one["json"] = b'{"alt": [], "other": "x"}'
    return one


def drawn(batches: list[Batch]) -> list[tuple[int, str, int]]:
    """(number, place, which of the texts there) of each sample, read off its tokens."""
    found = []
    for batch in batches:
        for key, text in zip(batch.keys, batch.text, strict=True):
            width = len(text)
            [(place, which)] = [
                (place, which)
                for place, texts in texts_of(int(key)).items()
                for which, one in enumerate(texts)
                if toy_tokenizer()([one])[0, :width].equal(text)
            ]
            found.append((int(key), place, which))
    return found


def test_places_are_drawn_by_their_probabilities(captioned: Path) -> None:
    batches = joined(captioned, 0, 150, batch=N, caption={"txt": 0.3, "json:alt": 0.7})
    assert not any(batch.replaced for batch in batches)
    counts = Counter((number % 3, place) for number, place, _ in drawn(batches))
    both, plain = counts[0, "json:alt"] + counts[0, "txt"], counts[0, "txt"]
    assert both == 150 * 8 and abs(plain / both - 0.3) < 4 * (0.3 * 0.7 / both) ** 0.5
    assert counts[1, "json:alt"] == 150 * 8 and counts[1, "txt"] == 0, "what lacks the drawn place takes the other"
    assert counts[2, "txt"] == 150 * 8 and counts[2, "json:alt"] == 0
    lists = Counter(which for _, place, which in drawn(batches) if place == "json:alt")
    assert set(lists) == {0, 1, 2} and max(lists.values()) - min(lists.values()) < 5 * sum(lists.values()) ** 0.5


def test_what_is_drawn_depends_on_the_position_alone(captioned: Path) -> None:
    change = {"batch": 12, "caption": {"txt": 1, "json:alt": 3}}
    wanted = joined(captioned, 0, 8, **change)
    assert_same(joined(captioned, 0, 8, 3, **change), wanted)
    assert_same(joined(captioned, 3, 8, 2, workers=1, **change), wanted[3:])
    first, again = drawn(joined(captioned, 0, 1, batch=N, caption=change["caption"])), drawn(wanted[2:4])
    assert sorted(first) != sorted(again), "another epoch draws anew"


def test_only_the_ratio_of_probabilities_counts(captioned: Path) -> None:
    few, many = ({"txt": 1.0, "json:alt": 3.0}, {"txt": 25, "json:alt": 75})
    assert_same(joined(captioned, 0, 4, caption=few), joined(captioned, 0, 4, caption=many))


def test_a_place_with_probability_zero_is_as_if_it_were_not_there(captioned: Path) -> None:
    alone, beside = joined(captioned, 0, 6), joined(captioned, 0, 6, caption={"txt": 1, "json:nope": 0})
    assert sorted({number for number, _, _ in drawn(alone)}) == [n for n in range(N) if n % 3 != 1]
    assert [batch.keys for batch in alone] == [batch.keys for batch in beside]
    assert len(stream(captioned)) == len(stream(captioned, caption={"txt": 1, "json:nope": 0})) == 16


def test_a_sample_with_a_caption_in_no_place_is_replaced(captioned: Path) -> None:
    batches = joined(captioned, 0, 3, batch=20, caption="json:alt", max_bad=1.0)
    replaced = {(bad.sample[-5:], bad.reason) for batch in batches for bad in batch.replaced}
    assert replaced == {(f"{n:05d}", "empty caption") for n in range(5, N, 6)}, "those without a json are left out"
    assert {number % 3 for number, _, _ in drawn(batches)} == {0, 1}


def test_a_source_may_have_a_place_of_its_own(captioned: Path, shards: Path) -> None:
    train = {"x": Source(shards=str(captioned), caption="json:alt"), "y": Source(shards=str(shards))}
    for batch in joined(train, 0, 4, batch=10, caption="json:texts", max_bad=1.0):
        which, _, _ = stream(train, caption="json:texts").rows.locate(batch.position.numpy())
        for key, text, source in zip(batch.keys, batch.text, which.tolist(), strict=True):
            caption = shape(int(key))[1]
            texts = texts_of(int(key))["json:alt"] if source == 0 else [caption, f"{caption}, again"]
            assert text.tolist() in toy_tokenizer()(texts)[:, : len(text)].tolist()


def test_the_order_in_which_places_are_written_changes_nothing(captioned: Path) -> None:
    one, two = {"txt": 0.3, "json:alt": 0.7}, {"json:alt": 0.7, "txt": 0.3}
    assert_same(joined(captioned, 0, 3, caption=one), joined(captioned, 0, 3, caption=two))
