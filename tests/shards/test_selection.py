"""A selection: what is written is what is read, and never against shards that have changed since."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipkit.errors import UserError
from clipkit.shards import Selection, Shards, write_selection
from tests.conftest import COUNTS
from tests.samples import sample, write_shard, write_tar

N = sum(COUNTS)


def keys(source: Shards) -> list[int]:
    return [int(source.key(*source.place(i))) for i in range(len(source))]


@given(numbers=st.sets(st.integers(0, N - 1), min_size=1), shuffled=st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_a_selection_is_what_was_written(
    shards: Path, tmp_path_factory: pytest.TempPathFactory, numbers: set[int], shuffled: object
) -> None:
    path, given_numbers = tmp_path_factory.mktemp("kept") / "kept.parquet", list(numbers)
    shuffled.shuffle(given_numbers)  # type: ignore[attr-defined]
    whole = Shards(str(shards))
    write_selection(whole, np.array(given_numbers), path, {"where": "x > 1"})
    source = Shards(str(shards), select=str(path))
    assert keys(source) == sorted(numbers) and len(source) == len(numbers)
    assert source.counts.tolist() == [sum(whole.place(n)[0] == shard for n in numbers) for shard in range(4)]
    assert source.lost == ({"not selected": N - len(numbers)} if len(numbers) < N else {})
    for i, number in enumerate(sorted(numbers)):
        assert source.image(i) == sample(number)["jpg"]
    assert source.selection is not None
    about = source.selection.about
    assert (about["where"], about["kept"], about["of"]) == ("x > 1", len(numbers), N)
    assert about["had"] == {f"{i:03d}.tar": count for i, count in enumerate(COUNTS)}


def test_it_is_a_parquet_file_that_others_read_and_that_is_written_whole(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "kept.parquet"
    write_selection(Shards(str(shards)), np.array([24, 0, 7]), path, {})
    assert pq.read_table(path).to_pylist() == [
        {"shard": "000.tar", "row": 0, "key": "00000"},
        {"shard": "001.tar", "row": 0, "key": "00007"},
        {"shard": "003.tar", "row": 4, "key": "00024"},
    ]
    assert [one.name for one in path.parent.iterdir()] == ["kept.parquet"]


def test_a_selection_of_part_of_a_set_serves_what_it_names(shards: Path, tmp_path: Path) -> None:
    write_selection(Shards(f"{shards}/00[01].tar"), np.array([0, 8]), tmp_path / "kept", {})
    source = Shards(str(shards), select=str(tmp_path / "kept"))
    assert keys(source) == [0, 8] and source.counts.tolist() == [1, 1, 0, 0]
    assert source.lost == {"not selected": N - 2}
    assert keys(Shards(f"{shards}/{{001,000}}.tar", select=str(tmp_path / "kept"))) == [8, 0]


def test_rows_count_in_the_index_whatever_members_are_wanted(tmp_path: Path) -> None:
    members = [("0.jpg", b"p"), ("1.jpg", b"p"), ("1.txt", b"c"), ("2.jpg", b"p"), ("3.jpg", b"p"), ("3.txt", b"c")]
    write_tar(tmp_path / "a.tar", members)
    paired = Shards(str(tmp_path / "a.tar"), ("image", "txt"))
    write_selection(paired, np.array([1]), tmp_path / "last", {})
    assert keys(Shards(str(tmp_path / "a.tar"), select=str(tmp_path / "last"))) == [3]
    write_selection(Shards(str(tmp_path / "a.tar")), np.array([0, 1, 2]), tmp_path / "first", {})
    both = Shards(str(tmp_path / "a.tar"), ("image", "txt"), str(tmp_path / "first"))
    assert keys(both) == [1] and both.lost == {"no txt": 2, "not selected": 1}


def test_a_selection_of_a_selection_keeps_its_place(shards: Path, tmp_path: Path) -> None:
    write_selection(Shards(str(shards)), np.arange(0, N, 2), tmp_path / "even", {})
    even = Shards(str(shards), select=str(tmp_path / "even"))
    write_selection(even, np.arange(0, len(even), 3), tmp_path / "sixth", {})
    assert keys(Shards(str(shards), select=str(tmp_path / "sixth"))) == list(range(0, N, 6))


def test_a_set_may_move(shards: Path, tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "a.tar", map(sample, range(3)))
    write_selection(Shards(str(tmp_path / "here")), np.array([1]), tmp_path / "kept", {})
    assert keys(Shards(str(tmp_path / "there"), select=str(tmp_path / "kept"))) == [1]


# What is refused


def test_shards_that_changed_since_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", map(sample, range(3)))
    write_selection(Shards(str(tmp_path)), np.array([2]), tmp_path / "kept", {})
    write_shard(tmp_path / "a.tar", map(sample, range(2)))
    with pytest.raises(UserError) as error:
        Shards(str(tmp_path), select=str(tmp_path / "kept"))
    wanted = f"{tmp_path}/kept: was made when a.tar had 3 samples, now it has 2; make it again"
    assert str(error.value) == wanted


def test_other_shards_are_refused(shards: Path, tmp_path: Path) -> None:
    write_selection(Shards(str(shards)), np.array([2]), tmp_path / "kept", {})
    write_shard(tmp_path / "other.tar", map(sample, range(3)))
    with pytest.raises(UserError) as error:
        Shards(str(tmp_path), select=str(tmp_path / "kept"))
    assert str(error.value) == f"{tmp_path}/kept: selects from 000.tar, 001.tar, 002.tar, and not from these shards"


def test_a_selection_that_keeps_nothing_says_so(shards: Path, tmp_path: Path) -> None:
    write_selection(Shards(str(shards)), np.array([], np.int64), tmp_path / "none", {})
    with pytest.raises(UserError) as error:
        Shards(str(shards), select=str(tmp_path / "none"))
    wanted = f"{tmp_path}/none: keeps no sample of {shards}; make it again with a milder condition"
    assert str(error.value) == wanted


ABOUT = {"clipkit": json.dumps({"had": {f"{i:03d}.tar": count for i, count in enumerate(COUNTS)}})}


@pytest.mark.parametrize(
    ("rows", "shard_names", "about"),
    [
        (pa.array([0, 1], pa.int32()), ["000.tar"] * 2, {}),
        (pa.array([0, 1], pa.int32()), ["000.tar"] * 2, {"clipkit": "{"}),
        (pa.array([0, 1], pa.int32()), ["000.tar"] * 2, {"clipkit": "[]"}),
        (pa.array([0, 1], pa.int32()), ["000.tar"] * 2, {"clipkit": '{"had": 3}'}),
        (pa.array([0, 1], pa.int32()), ["000.tar"] * 2, {"clipkit": '{"had": {"000.tar": "7"}}'}),
        (pa.array([0, 7], pa.int32()), ["000.tar"] * 2, ABOUT),  # it has 7 samples
        (pa.array([-1, 1], pa.int32()), ["000.tar"] * 2, ABOUT),
        (pa.array([1, 1], pa.int32()), ["000.tar"] * 2, ABOUT),  # twice the same
        (pa.array([0, None], pa.int32()), ["000.tar"] * 2, ABOUT),
        (pa.array([0.0, 1.0]), ["000.tar"] * 2, ABOUT),
        (pa.array(["0", "1"]), ["000.tar"] * 2, ABOUT),
        (pa.array([0, 1], pa.int32()), [0, 1], ABOUT),
        (pa.array([0, 1], pa.int32()), ["000.tar", None], ABOUT),
        (pa.array([0, 1], pa.int32()), ["000.tar", "9.tar"], ABOUT),  # a shard that it says nothing of
    ],
)
def test_a_table_that_is_no_selection_of_these_shards_is_refused(
    shards: Path, tmp_path: Path, rows: pa.Array, shard_names: list[object], about: dict[str, str]
) -> None:
    table = pa.table({"shard": pa.array(shard_names), "row": rows}).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "kept")
    with pytest.raises(UserError) as error:
        Shards(str(shards), select=str(tmp_path / "kept"))
    assert str(error.value).startswith(f"{tmp_path}/kept: not a selection of `clipkit data filter` or `dedup` (")


@pytest.mark.parametrize("data", [b"", b"junk", b"PAR1" + bytes(100) + b"PAR1"])
def test_a_file_that_is_no_selection_is_refused(shards: Path, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "kept").write_bytes(data)
    with pytest.raises(UserError, match=r"/kept: not a selection of `clipkit data filter` or `dedup` \(\w+\)$"):
        Selection(str(tmp_path / "kept"), ["000.tar"])
    with pytest.raises(UserError) as error:
        Selection(str(tmp_path / "nope"), ["000.tar"])
    assert str(error.value) == f"{tmp_path}/nope: no such selection; `clipkit data filter` and `dedup` write one"


def test_a_cut_selection_is_refused(shards: Path, tmp_path: Path) -> None:
    write_selection(Shards(str(shards)), np.arange(N), tmp_path / "kept", {})
    whole = (tmp_path / "kept").read_bytes()
    for end in range(0, len(whole), 97):
        (tmp_path / "kept").write_bytes(whole[:end])
        with pytest.raises(UserError, match="not a selection of"):
            Selection(str(tmp_path / "kept"), ["000.tar"])
