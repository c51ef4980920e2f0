"""Which shards a pattern means, what is said where it means none, and the folder of an index in place of shards."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.errors import UserError
from clipkit.shards.names import CATALOG, catalog, resolve, short

HINT = "give a folder, a glob or a {000..012} pattern"


def test_a_folder_a_glob_and_braces_name_the_same_shards(shards: Path) -> None:
    wanted = [str(shards / f"{i:03d}.tar") for i in range(4)]
    for pattern in (f"{shards}", f"{shards}/", f"{shards}/*.tar", f"{shards}/{{000..003}}.tar"):
        assert resolve(pattern) == wanted
    assert resolve(f"{shards}/{{00[01],002,00[3]}}.tar") == wanted
    assert resolve(f"{shards}/002.tar") == wanted[2:3]
    assert resolve(f"{shards}/{{003,000}}.tar") == [wanted[3], wanted[0]], "braces keep their order"


def test_plain_addresses_are_taken_as_they_are() -> None:
    assert resolve("https://host/{00..02}.tar") == [f"https://host/{i:02d}.tar" for i in range(3)]


def test_local_and_remote_shards_stand_beside_each_other(shards: Path) -> None:
    found = resolve(f"{{{shards}/00[01].tar,https://host/x.tar}}")
    assert found == [f"{shards}/000.tar", f"{shards}/001.tar", "https://host/x.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "empty",
            "empty: no .tar shards in this folder; give a folder, a glob or {000..012} pattern; "
            "`clipkit data pack` makes shards of pictures",
        ),
        (
            ".",
            ".: no .tar shards in this folder; there are some in train, val; give a folder, a glob or {000..012} "
            "pattern; `clipkit data pack` makes shards of pictures",
        ),
        ("train/{000..003}.tar", "train/{000..003}.tar: 2 of 4 shards are not there, the first is train/002.tar"),
        ("nope.tar", f"nope.tar: no such file or folder; {HINT.replace(' or a {', ' or a {')}"),
        ("nope", "nope: no such file or folder; " + HINT),
        ("x*.tar", "x*.tar: no shard matches; " + HINT),
        ("{000..3.tar", "{000..3.tar: Unbalanced braces: '{000..3.tar'; write a brace pattern as {000..012}"),
    ],
)
def test_a_pattern_that_names_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
) -> None:
    for name in ("empty/.keep", "train/000.tar", "train/001.tar", "val/000.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        resolve(pattern)
    assert str(error.value) == message


# The folder of an index


def listed(folder: Path, *lines: str) -> Path:
    (folder / CATALOG).write_text("".join(line + "\n" for line in lines))
    return folder


def test_a_folder_with_a_catalog_names_the_shards_that_it_lists(tmp_path: Path) -> None:
    entries = [{"name": name, "bytes": 3, "samples": 2} for name in ("s3://b/2.tar", "/data/1.tar")]
    (tmp_path / "own.tar").touch()
    listed(tmp_path, *map(json.dumps, entries))
    assert resolve(str(tmp_path)) == ["s3://b/2.tar", "/data/1.tar"] and catalog(tmp_path) == entries


@pytest.mark.parametrize(
    "lines",
    [["junk"], ["[]"], ["3"], ['{"samples": 3}'], ["", '{"name": "a", "samples": 1}'], ['{"name"'], [],
     ['{"name": "a"}'], ['{"name": "a", "samples": "many"}'], ['{"name": "a", "samples": -1}'], ["[" * 100_000]],
)  # fmt: skip
def test_a_damaged_catalog_says_what_makes_it_again(tmp_path: Path, lines: list[str]) -> None:
    listed(tmp_path, *lines)
    with pytest.raises(UserError) as error:
        resolve(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/shards.jsonl: damaged (")
    assert str(error.value).endswith("); `clipkit data index SRC --out` makes it again")


def test_a_catalog_may_not_name_a_command(tmp_path: Path) -> None:
    listed(tmp_path, json.dumps({"name": f"pipe:touch {tmp_path}/trapped", "samples": 1}))
    with pytest.raises(UserError) as error:
        resolve(str(tmp_path))
    wanted = "shards.jsonl: names a command (pipe:), which is only run where a person has typed it"
    assert str(error.value) == f"{tmp_path}/{wanted}"
    assert not (tmp_path / "trapped").exists()


# What shards are called wherever they lie


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["/a/b/0.tar", "/a/b/1.tar"], ["0.tar", "1.tar"]),
        (["/a/b/0.tar", "/a/c/0.tar"], ["b/0.tar", "c/0.tar"]),
        (["s3://x/0.tar", "s3://x/y/0.tar"], ["0.tar", "y/0.tar"]),
        (["/a/0.tar", "/b/0.tar"], ["a/0.tar", "b/0.tar"]),
        (["/a/b/0.tar"], ["0.tar"]),
        (["0.tar"], ["0.tar"]),
        ([], []),
    ],
)
def test_short_names_lack_the_folders_that_all_share(names: list[str], wanted: list[str]) -> None:
    assert short(names) == wanted


PARTS = st.lists(st.sampled_from(("a", "b", "c")), min_size=1, max_size=4)


@given(paths=st.lists(PARTS, min_size=1, max_size=6, unique_by=tuple), above=PARTS)
def test_short_names_are_distinct_ends_and_do_not_change_when_a_set_moves(
    paths: list[list[str]], above: list[str]
) -> None:
    names = ["/".join(path) for path in paths]
    found = short(names)
    assert len(set(found)) == len(names) and all(map(str.endswith, names, found))
    assert short(["/".join([*above, name]) for name in names]) == found
