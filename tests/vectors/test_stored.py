"""An opened index folder finds what sorting the products finds, whatever it is made of, and says what is wrong."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipkit import index
from clipkit.errors import StorageError, UserError
from clipkit.vectors import Stored, Vectors, exact, stored
from tests.vectors import laying

N, K = 300, 7
ENGINES = ("flat", "IVF4,PQ8x4fs,Refine(Flat)", "outside", "hnsw")


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 samples, every third without a caption."""
    text = laying.rows(N, 1)
    text[::3] = 0
    return laying.ours(tmp_path_factory.mktemp("v") / "v", (200, 100), image=laying.rows(N), text=text)


@pytest.fixture(scope="module")
def folders(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An index of each engine, each of three FAISS files a kind."""
    place = tmp_path_factory.mktemp("indexes")
    with pytest.MonkeyPatch.context() as patch:
        parts = [range(0, 100), range(100, 101), range(101, N)]
        patch.setattr(sys.modules["clipkit.index.build"], "spans", lambda *_: parts)
        for name in ENGINES:
            outside = name == "outside"
            index.build(vectors, place / name, k=K, engine="IVF4,PQ16x4fs" if outside else name, recall=1.0)
            if outside:
                change(place / name, image={"rerank": "rows"}, text={"rerank": "rows"})
    return {name: place / name for name in ENGINES}


def change(folder: Path, **kinds: dict) -> None:
    about = json.loads((folder / "index.json").read_text())
    for kind, facts in kinds.items():
        about["kinds"][kind].update(facts)
    (folder / "index.json").write_text(json.dumps(about))


def true(
    vectors: Path, kind: str, queries: np.ndarray, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    rows = Vectors(vectors).take(kind, np.arange(N))
    return exact.nearest(queries, [(0, rows if allowed is None else rows * allowed[:, None])], K)


def wide(one: Stored, kind: str) -> stored.Knobs:
    """Knobs that look at all rows."""
    return (
        stored.Knobs(nprobe=4, candidates=N, ef=2 * N, k=K) if one.parts[kind][0][1].lists else stored.Knobs(ef=2 * N)
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("where", [None, "width < 250", "width < 120", "width < 103", "width < 0"])
@pytest.mark.parametrize("few", [0, 20_000])
def test_a_search_equals_sorting_the_products_of_what_is_left(
    vectors: Path, folders: dict[str, Path], engine: str, kind: str, where: str | None, few: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(stored, "FEW", few)
    monkeypatch.setattr(stored, "SHARE", 0.0)
    monkeypatch.setattr(stored, "ASKED", 4)
    one, queries = Stored(folders[engine]), laying.rows(11, 5)
    allowed = None if where is None else np.array(Vectors(vectors).column("width")) < int(where.split()[-1])
    given = one.allowed(where)
    assert given is allowed is None or np.array_equal(given, allowed)  # type: ignore[arg-type]
    scores, numbers = one.nearest(kind, queries, K, given, wide(one, kind))
    wanted = true(vectors, kind, queries, allowed)
    np.testing.assert_array_equal(numbers, wanted[1])
    np.testing.assert_allclose(scores, wanted[0], atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_come_back(vectors: Path, folders: dict[str, Path], engine: str) -> None:
    numbers = np.array([299, 0, 100, 7])
    found = Stored(folders[engine]).rows("image", numbers)
    np.testing.assert_allclose(found, Vectors(vectors).take("image", numbers), atol=1e-3)


def test_more_answers_than_rows_are_all_rows(folders: dict[str, Path]) -> None:
    scores, numbers = Stored(folders["flat"]).nearest("image", laying.rows(2, 5), 10 * N)
    assert numbers.shape == (2, N) and (np.sort(numbers) == np.arange(N)).all() and (np.diff(scores) <= 0).all()


def test_removed_rows_are_not_found(vectors: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    for engine in ENGINES:
        folder = shutil.copytree(folders[engine], tmp_path / engine)
        removed = np.random.default_rng(0).random(N) < 0.5
        np.save(folder / "removed.npy", removed)
        one, queries = Stored(folder), laying.rows(11, 5)
        wanted = true(vectors, "text", queries, ~removed)[1]
        for allowed in (None, one.allowed(), np.ones(N, bool)):
            np.testing.assert_array_equal(one.nearest("text", queries, K, allowed, wide(one, "text"))[1], wanted)
        np.testing.assert_array_equal(one.allowed("width < 250"), one.allowed("width < 250") & ~removed)


def test_threads_ask_at_once(folders: dict[str, Path]) -> None:
    one = Stored(folders["IVF4,PQ8x4fs,Refine(Flat)"])
    asked = [laying.rows(3, seed) for seed in range(40)]
    alone = [one.nearest("image", queries, K, one.allowed(f"width < {200 + i}"))[1] for i, queries in enumerate(asked)]
    fresh = Stored(one.folder)

    def ask(i: int) -> np.ndarray:
        return fresh.nearest("image", asked[i], K, fresh.allowed(f"width < {200 + i}"))[1]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, range(40)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_conditions_are_remembered_and_the_oldest_forgotten(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "CONDITIONS", 2)
    one = Stored(folders["flat"])
    first = one.allowed("width < 150")
    one.allowed("width < 151")
    assert one.allowed("width < 150") is first
    one.allowed("width < 152")
    assert one.allowed("width < 150") is first and len(one._conditions) == 2


def test_an_index_that_takes_its_place_meanwhile_is_opened_whole(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(folders["flat"], tmp_path / "i")
    other = shutil.copytree(folders["hnsw"], tmp_path / "j")
    (other / "index.json").write_text((other / "index.json").read_text().replace("image.index", "picture.index"))
    (other / "image.index").rename(other / "picture.index")
    read = stored.engine.read

    def swapping(path: Path, mapped: bool = True) -> object:
        if other.exists():
            place.rename(tmp_path / "old")
            other.rename(place)
        return read(path, mapped)

    monkeypatch.setattr(stored.engine, "read", swapping)
    assert Stored(place).about["kinds"]["image"]["files"][0] == "picture.index"


def test_an_index_is_opened_from_within(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders["flat"])
    assert len(Stored(".")) == N


def test_what_is_no_index_is_told(tmp_path: Path) -> None:
    made_by = "`clipkit index VECTORS --out INDEX` makes one"
    for name, told in (("none", f"no such folder; {made_by}"), (".", f"holds no index.json; {made_by}")):
        with pytest.raises(UserError) as error:
            Stored(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {told}"
    for content in ("{", "[]"):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(StorageError, match=f"^{tmp_path}/index.json: damaged"):
            Stored(tmp_path)
    (tmp_path / "index.json").write_text('{"kind": "Flat"}')
    with pytest.raises(UserError) as error:
        Stored(tmp_path)
    assert str(error.value) == f"{tmp_path}: is of another version of clipkit; build it again from its vectors"


def test_parts_that_do_not_fit_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["flat"], tmp_path / "i")
    whole = (folder / "image.2.index").read_bytes()
    (folder / "image.2.index").write_bytes((folder / "image.index").read_bytes())
    with pytest.raises(StorageError, match=f"^{folder}: 201 rows in image.index, 300 by index.json$"):
        Stored(folder)
    (folder / "image.2.index").unlink()
    with pytest.raises(StorageError, match=f"^{folder}/image.2.index: missing; build the index again$"):
        Stored(folder)
    (folder / "image.2.index").write_bytes(whole)
    np.save(folder / "removed.npy", np.zeros(3))
    with pytest.raises(StorageError) as error:
        Stored(folder)
    assert str(error.value) == f"{folder}/removed.npy: bool [300] is needed, got float64 [3]"
    (folder / "removed.npy").write_bytes(b"junk")
    with pytest.raises(StorageError, match=f"^{folder}/removed.npy: not a readable array of numbers"):
        Stored(folder)


def test_rows_on_disk_that_are_gone_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["outside"], tmp_path / "i")
    about = json.loads((folder / "index.json").read_text())
    about["vectors"][0]["folder"] = str(tmp_path / "gone")
    (folder / "index.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=f"^{tmp_path}/gone: no such folder"):
        Stored(folder).nearest("image", laying.rows(1), K)


def test_rows_on_disk_that_are_others_now_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["outside"], tmp_path / "i")
    about = json.loads((folder / "index.json").read_text())
    about["vectors"][0]["rows"] += 1
    (folder / "index.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=f"^{folder}: its vectors have other rows now .*; build it again$"):
        Stored(folder).nearest("image", laying.rows(1), K)
