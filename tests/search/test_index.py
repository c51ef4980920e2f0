"""An index that is asked equals NumPy over all rows: for every kind of query, under conditions, one by one or many."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import clipkit
from clipkit.errors import StorageError, UserError
from clipkit.search import Hit, Index, Options, Part, Query, open_index, query
from clipkit.vectors import Stored
from tests.search.given import LANGS, table, unit, vectors, write_index

N = 200


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return vectors(N)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    rows = vectors(N, seed=1)
    rows[7] = 0  # a sample without a caption
    return rows


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, image: np.ndarray, text: np.ndarray) -> Index:
    folder = write_index(tmp_path_factory.mktemp("index") / "i", {"image": image, "text": text})
    hidden = np.zeros(N, bool)
    hidden[7] = True
    np.save(folder / "text.hidden.npy", hidden)
    return open_index(folder)


def plain(rows: np.ndarray, asked: np.ndarray, k: int, among: np.ndarray | None = None) -> list[tuple[int, float]]:
    """(number, cosine) of the nearest, by sorting all of them."""
    scores = rows.astype(np.float64) @ asked.astype(np.float64)
    numbers = np.arange(len(rows)) if among is None else among
    return [(int(i), float(scores[i])) for i in numbers[np.argsort(-scores[numbers], kind="stable")][:k]]


def same(hits: Sequence[Hit], wanted: Sequence[tuple[int, float]]) -> None:
    assert [hit.id for hit in hits] == [number for number, _ in wanted]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in wanted], atol=1e-5)


@pytest.mark.parametrize("k", [1, 5, N, N + 50])
def test_a_vector_finds_what_sorting_finds(index: Index, image: np.ndarray, k: int) -> None:
    asked = vectors(3, seed=5)
    queries = [Query((Part("vector", 4 * row),)) for row in asked]  # of any length
    for hits, row in zip(index.search_many(queries, Options(k)), asked, strict=True):
        same(hits, plain(image, row, k))


def test_a_key_and_a_number_find_what_is_like_them_without_themselves(index: Index, image: np.ndarray) -> None:
    wanted = plain(image, image[42], 9, np.delete(np.arange(N), 42))
    same(index.search(key="k42", k=9), wanted)
    same(index.search(id=42, k=9), wanted)
    assert len(index.search(key="k42", k=N)) == N - 1


def test_captions_are_searched_by_their_own_rows_and_what_has_none_is_not_found(index: Index, text: np.ndarray) -> None:
    there = np.delete(np.arange(N), [3, 7])
    same(index.search(key="k3", k=N, kind="text"), plain(text, text[3], N, there))
    with pytest.raises(UserError) as error:
        index.search(id=7, kind="text")
    assert str(error.value) == f"{index.folder}: the row with the id '7' has no text"


def test_a_condition_is_filtering_first(index: Index, image: np.ndarray) -> None:
    for where, good in (
        ("lang = 'de'", lambda i: LANGS[i % 3] == "de"),
        ("width > 1500 and lang != 'fr'", lambda i: i > 150 and LANGS[i % 3] != "fr"),
        ("width = 30", lambda i: i == 3),
        ("width < 0", lambda i: False),
    ):
        among = np.array([i for i in range(N) if good(i) and i != 42], int)
        same(index.search(key="k42", k=20, where=where), plain(image, image[42], 20, among))
        assert index.rows_left(where) == sum(map(good, range(N)))
    assert index.rows_left() == N


def test_many_queries_equal_one_by_one(index: Index) -> None:
    queries = [query(key=f"k{i}", id=[i + 1], weights=[1, 0.5]) for i in range(0, 40, 3)]
    options = Options(6, where="width > 100", unique=0.97, diverse=0.2)
    many = index.search_many(queries, options)
    assert many == [index.search_many([each], options)[0] for each in queries]
    assert index.search_many([], options) == []
    assert index.embed([]).shape == (0, 12)


def test_one_bad_query_costs_no_other(index: Index) -> None:
    rows = index.embed_each([query(key="k1"), query(key="gone"), query(id=2)])
    assert isinstance(rows[1], UserError) and str(rows[1]) == f"{index.folder}: no row has the key 'gone'"
    np.testing.assert_array_equal(np.stack([rows[0], rows[2]]), index.embed([query(key="k1"), query(id=2)]))
    with pytest.raises(UserError, match="no row has the key 'gone'"):
        index.embed([query(key="k1"), query(key="gone")])


def slow_unique(rows: np.ndarray, order: Sequence[int], most: float, k: int) -> list[int]:
    kept: list[int] = []
    for number in order:
        if len(kept) < k and all(float(rows[number] @ rows[other]) < most - 1e-5 for other in kept):
            kept.append(number)
    return kept


@settings(max_examples=25)
@given(seed=st.integers(0, 50), groups=st.integers(1, 20), k=st.integers(1, 30), most=st.sampled_from([0.9, 0.99, 1.0]))
def test_unique_equals_its_slow_twin_and_is_refilled(seed: int, groups: int, k: int, most: float) -> None:
    """All rows of a group point almost the same way: as many are found as there are groups, however large they are."""
    dice = np.random.default_rng(seed)
    centres = unit(dice.normal(size=(groups, 24)))
    rows = unit(centres[dice.integers(0, groups, 300)] + 1e-4 * dice.normal(size=(300, 24)))
    rows[100:200] = rows[:100]  # and a third is the same to the bit
    found = in_memory(rows, unit(dice.normal(size=24)), Options(k, unique=most))
    order = [number for number, _ in plain(rows, found[0], 300)]
    wanted = slow_unique(rows, order, most, k)
    if most < 1:  # what is almost 1 is decided by rounding
        assert found[1] == wanted and len(wanted) <= min(k, groups)
    assert len(found[1]) == len(wanted)


def in_memory(rows: np.ndarray, asked: np.ndarray, options: Options) -> tuple[np.ndarray, list[int]]:
    """The query, and the numbers found by an index without a folder."""
    with tempfile.TemporaryDirectory() as folder:
        index = Index(write_index(Path(folder) / "i", {"image": rows}))
        return asked, index.numbers(asked[None], options)[0][1].tolist()


def slow_diverse(scores: Sequence[float], rows: np.ndarray, share: float, k: int) -> list[int]:
    cosines = [[float(one @ two) for two in rows] for one in rows]
    low, high = min(map(min, cosines)), max(map(max, cosines))
    worst, best = min(scores), max(scores)
    chosen: list[int] = []
    while len(chosen) < min(k, len(rows)):
        values = {
            i: (1 - share) * (scores[i] - worst) / (best - worst)
            - share * max(((cosines[i][j] - low) / (high - low) for j in chosen), default=0.0)
            for i in range(len(rows))
            if i not in chosen
        }
        chosen.append(max(values, key=lambda i: (values[i], -i)))
    return chosen


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_diverse_equals_its_slow_twin(index: Index, image: np.ndarray, share: float, k: int) -> None:
    asked = vectors(1, seed=9)[0]
    pool = plain(image, asked, max(4 * k, 64))
    numbers = [number for number, _ in pool]
    wanted = [numbers[i] for i in slow_diverse([score for _, score in pool], image[numbers], share, k)]
    hits = index.search_many([Query((Part("vector", asked),))], Options(k, diverse=share))[0]
    assert [hit.id for hit in hits] == wanted
    if share == 0:
        same(hits, pool[:k])


def test_diverse_and_unique_may_have_fewer_rows_than_they_choose_from(index: Index) -> None:
    for where, left in (("width < 30", 3), ("width = 30", 1), ("width < 0", 0)):
        for more in ({"diverse": 0.5}, {"unique": 0.999999}, {"unique": 0.999999, "diverse": 1.0}):
            assert len(index.search(key="k90", k=5, where=where, **more)) == left


def test_where_to_stop_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("clipkit.search.index.DEEPEST", 50)
    rows = np.repeat(vectors(2), 100, 0)
    index = Index(write_index(tmp_path / "i", {"image": rows}))
    assert len(index.search(id=0, k=3, unique=0.999)) == 1
    assert capsys.readouterr().err == "search: the 50 nearest hold 1 that differ; no more were looked at\n"


def test_what_was_removed_is_neither_found_nor_asked_by(tmp_path: Path, image: np.ndarray) -> None:
    folder = write_index(tmp_path / "i", {"image": image})
    removed = np.zeros(N, bool)
    removed[[3, 4]] = True
    np.save(folder / "removed.npy", removed)
    index = Index(folder)
    assert {hit.id for hit in index.search(id=5, k=N)} == set(range(N)) - {3, 4, 5}
    assert index.rows_left() == N - 2 and index.rows_left("width < 50") == 3
    for asked, said in (
        ({"key": "k3"}, "the row with the key 'k3' was removed"),
        ({"id": 4}, "the row with the id 4 was removed"),
        ({"key": "k5.jpg"}, "no row has the key 'k5.jpg'; did you mean 'k5'?"),
        ({"key": "k9999.jpg"}, "no row has the key 'k9999.jpg'$"),
    ):
        with pytest.raises(UserError, match=said):
            index.search(**asked)


def test_a_key_of_several_rows_is_asked_for_by_number(tmp_path: Path) -> None:
    rows = vectors(8)
    same_key = table(8).set_column(1, "key", [["a"] * 7 + ["b"]])
    index = Index(write_index(tmp_path / "i", {"image": rows}, same_key))
    with pytest.raises(UserError) as error:
        index.search(key="a")
    assert str(error.value) == f"{index.folder}: 7 rows have the key 'a'; name one by --id: 0, 1, 2, 3, 4, ..."
    assert index.search(key="b", k=1)[0].id < 7 and len(index.search(id=6, k=9)) == 7


NOTHING = "search: words, a picture or a key to search by are needed"
POSITIVE = "search: weights above 0 are needed, got {}; --not says what is not wanted"
REFUSED = {
    "nothing": ({}, NOTHING),
    "only not": ({"without": "x"}, f"{NOTHING}; --not takes away from them"),
    "number": ({"text": 3}, "search: text: a text is needed, got '3'"),
    "picture": ({"image": 3.5}, "search: image: a file, or its bytes, is needed, got '3.5'"),
    "empty text": ({"text": " "}, "search: the text is empty"),
    "empty not": ({"key": "k1", "without": ""}, "search: the text is empty"),
    "weights": ({"key": "k1", "weights": [1, 2]}, "search: as many weights as parts are needed: 1; got 2"),
    "weights of not": (
        {"key": "k1", "without": ["x", "y"], "weights": [1, 2]},
        "search: as many weights as parts are needed: 1, or 3 with those of --not; got 2",
    ),
    "negative": ({"key": "k1", "weights": [-1]}, POSITIVE.format(-1)),
    "nan": ({"key": "k1", "weights": [float("nan")]}, POSITIVE.format("nan")),
    "endless": ({"key": "k1", "weights": [float("inf")]}, "search: weights are numbers other than 0, got inf"),
    "k": ({"key": "k1", "k": 0}, "search: k of 1 or more is needed, got 0"),
    "unique": ({"key": "k1", "unique": 1.5}, "search: unique is a cosine above 0 and up to 1, got 1.5"),
    "unique nan": ({"key": "k1", "unique": float("nan")}, "search: unique is a cosine above 0 and up to 1, got nan"),
    "diverse": ({"key": "k1", "diverse": -0.1}, "search: diverse is a share from 0 to 1, got -0.1"),
    "many diverse": (
        {"key": "k1", "diverse": 0.5, "k": 1001},
        "search: k of at most 1000 is needed with diverse, got 1001",
    ),
    "kind": ({"key": "k1", "kind": "sound"}, "search: kind is image or text, got 'sound'"),
    "where": (
        {"key": "k1", "where": "wdth > 3"},
        "where 'wdth > 3': no such column: wdth; did you mean 'width'? there are: "
        "image_path, key, caption, shard, offset, size, width, lang",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_is_named(index: Index, case: str) -> None:
    asked, message = REFUSED[case]
    with pytest.raises(UserError) as error:
        index.search(**asked)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.ones(3), r"a vector of 12 numbers is needed, got \[3\]"),
        (np.ones((1, 12)), r"a vector of 12 numbers is needed, got \[1, 12\]"),
        (np.zeros(12), "a vector of finite numbers, not all of them 0, is needed"),
        (np.full(12, np.nan), "a vector of finite numbers, not all of them 0, is needed"),
    ],
)
def test_a_vector_that_is_none_is_refused(index: Index, vector: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        index.embed([Query((Part("vector", vector),))])


@pytest.mark.parametrize("number", [-1, N, 1 << 70])
def test_a_number_that_is_not_there_is_refused(index: Index, number: int) -> None:
    with pytest.raises(UserError) as error:
        index.search(id=number)
    assert str(error.value) == f"{index.folder}: no row has the id {number}; they go up to {N - 1}"


def test_a_kind_that_is_not_there_is_refused(tmp_path: Path, image: np.ndarray) -> None:
    index = Index(write_index(tmp_path / "i", {"image": image}))
    with pytest.raises(UserError) as error:
        index.search(id=1, kind="text")
    assert str(error.value) == f"{index.folder}: holds no text rows, only image"


def test_hits_tell_all_and_json_has_no_infinity(tmp_path: Path) -> None:
    metadata = table(2).append_column("score", [[float("inf"), 2.0]]).append_column("none", [[None, None]])
    index = clipkit.open_index(write_index(tmp_path / "i", {"image": vectors(2)}, metadata))
    hit = index.search(id=1)[0]
    assert hit == Hit(
        0, hit.score, "k0", "caption 0", "nowhere.tar", 0, 1, {"width": 0, "lang": "en", "score": float("inf")}
    )
    told = json.loads(json.dumps(hit.as_dict(), allow_nan=False))
    assert told["fields"] == {"width": 0, "lang": "en", "score": None} and told["key"] == "k0"
    with pytest.raises(StorageError, match=r"nowhere.tar: No such file"):
        hit.image()


def test_pictures_that_clip_retrieval_has_embedded_are_read_by_their_path(tmp_path: Path) -> None:
    import pyarrow as pa

    (tmp_path / "a.jpg").write_bytes(b"its bytes")
    keys = [str(tmp_path / "a.jpg"), "00001", "no path is so long" * 500]
    theirs = pa.table({"image_path": keys, "caption": ["one", None, "three"], "size": ["small", "large", None]})
    index = Index(write_index(tmp_path / "i", {"image": vectors(3)}, theirs))
    one, two, three = sorted(index.hits(index.numbers(vectors(1), Options(3)))[0], key=lambda hit: hit.id)
    assert one.image() == b"its bytes" and two.caption == "" and three.shard == ""
    assert [each.fields for each in (one, two, three)] == [{"size": "small"}, {"size": "large"}, {}]
    with pytest.raises(StorageError) as error:
        two.image()
    assert str(error.value) == "key '00001': its record does not tell in which file or shard its picture lies"


def test_no_part_opens_without_the_others(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(UserError, match="no such folder; `clipkit index"):
        open_index(tmp_path / "none")
    folder = write_index(tmp_path / "i", {"image": image})
    assert len(open_index(folder)) == len(Stored(folder)) == N
    (folder / "records.sqlite").unlink()
    with pytest.raises(StorageError, match=r"records.sqlite: missing"):
        open_index(folder)
