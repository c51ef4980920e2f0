"""A compact index answers as one that was built without the removed rows."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import UserError
from clipkit.index.add import add
from clipkit.index.build import build
from clipkit.index.compact import Codes, compact
from clipkit.index.remove import remove
from clipkit.vectors import Stored
from clipkit.vectors.joined import KEPT, Joined
from tests.index import kills
from tests.vectors import laying

QUERIES = laying.rows(20, 99)


def test_compacting_equals_building_without_the_removed_rows(tmp_path: Path) -> None:
    a, b, c = (laying.ours(tmp_path / name, seed=i, first=50 * i) for i, name in enumerate("abc"))
    place, gone = tmp_path / "i", {0, 29, 30, 77, 149}
    build([a, b], place)
    add(c, place)
    remove(place, [f"k{i}" for i in gone])
    facts = compact(place)
    kept = np.array(sorted(set(range(150)) - gone))
    build(Joined([a, b, c], kept), tmp_path / "fresh")
    assert laying.answers(place) == laying.answers(tmp_path / "fresh")
    assert facts["rows"] == 145 and Stored(place).removed is None
    assert np.load(place / KEPT).tolist() == kept.tolist()
    # and again, with what came since
    d = laying.ours(tmp_path / "d", seed=3, first=150)
    add(d, place)
    remove(place, ["k1", "k150", "k199"])
    compact(place)
    kept = np.array(sorted(set(range(200)) - gone - {1, 150, 199}))
    build(Joined([a, b, c, d], kept), tmp_path / "fresher")
    assert laying.answers(place) == laying.answers(tmp_path / "fresher")
    assert Stored(place).vectors.column("key") == [f"k{i}" for i in kept]


def test_nothing_removed_trains_anew_and_keeps_the_numbers(tmp_path: Path) -> None:
    build(laying.ours(tmp_path / "a"), tmp_path / "i")
    before = laying.answers(tmp_path / "i")
    compact(tmp_path / "i")
    assert laying.answers(tmp_path / "i") == before and not (tmp_path / "i" / KEPT).exists()


def test_what_was_asked_for_is_asked_for_again(tmp_path: Path) -> None:
    engine = "IVF4,PQ8x4fs,Refine(SQ8)"
    build(laying.ours(tmp_path / "a", (300,)), tmp_path / "i", engine=engine, recall=0.7, k=5)
    asked = Stored(tmp_path / "i").about["asked"]
    remove(tmp_path / "i", ["k5"])
    facts = compact(tmp_path / "i")
    assert facts["asked"] == asked and facts["kinds"]["image"]["factory"] == engine


def test_without_vectors_the_codes_stand_in_and_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = laying.rows(300, 5)
    text[:100] = 0
    a = laying.ours(tmp_path / "a", (200, 100), text=text)
    build(a, tmp_path / "i", engine="IVF4,PQ8x4fs,Refine(SQ8)")
    remove(tmp_path / "i", ["k150"])
    shutil.rmtree(a)
    codes = Codes(Stored(tmp_path / "i"), np.arange(90, 110))
    lengths = np.linalg.norm(codes.take("text", np.arange(20)), axis=1)
    assert (lengths[:10] == 0).all() and np.allclose(lengths[10:], 1, atol=1e-5)
    capsys.readouterr()
    facts = compact(tmp_path / "i")
    told = capsys.readouterr().err
    assert f"{tmp_path / 'i'}: built of its own codes, for want of the vectors; their rounding counts twice now" in told
    assert f"{tmp_path / 'i'}: 1 removed rows are gone, the others have new numbers" in told
    assert facts["vectors"] == [] and facts["rows"] == 299
    stored = Stored(tmp_path / "i")
    assert [row["key"] for row in stored.records.get([149, 150])] == ["k149", "k151"]
    numbers = stored.nearest("text", text[200:], 1)[1][:, 0]
    assert np.mean(numbers == np.arange(199, 299)) > 0.9
    found = stored.nearest("text", QUERIES, 299)[1]
    assert {int(number) for number in found[found >= 0]} == set(range(100, 299))
    compact(tmp_path / "i")  # of codes of codes, without a word about folders that never were
    assert "not what they were" not in capsys.readouterr().err


def test_an_index_that_ranks_by_its_vectors_needs_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, place = laying.ours(tmp_path / "a"), tmp_path / "i"
    build(a, place)
    facts = json.loads((place / "index.json").read_text())
    facts["kinds"]["text"]["rerank"] = "rows"
    (place / "index.json").write_text(json.dumps(facts))
    shutil.rmtree(a)
    laying.ours(a, (30, 19))
    with pytest.raises(UserError) as error:
        compact(place)
    assert str(error.value) == f"{place}: ranks by its vectors, and these are needed; put them back where they were"
    assert f"{place}: its vectors have other rows now ([49])" in capsys.readouterr().err


def test_an_index_without_rows_is_refused(tmp_path: Path) -> None:
    build(laying.ours(tmp_path / "a", (2,)), tmp_path / "i")
    remove(tmp_path / "i", ["k0", "k1"])
    with pytest.raises(UserError) as error:
        compact(tmp_path / "i")
    assert str(error.value) == f"{tmp_path / 'i'}: all of its 2 rows are removed; delete the folder instead"


def test_who_has_the_index_open_keeps_its_numbers(tmp_path: Path) -> None:
    build(laying.ours(tmp_path / "a"), tmp_path / "i")
    remove(tmp_path / "i", ["k0"])
    reader, keys = Stored(tmp_path / "i"), []
    compact(tmp_path / "i")

    def look() -> None:
        _, numbers = reader.nearest("image", laying.rows(50)[[7]], 1)
        keys.append(reader.records.get(numbers[0].tolist())[0]["key"])

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert keys == ["k7", "k7"]


def test_a_link_to_an_index_stays_one(tmp_path: Path) -> None:
    build(laying.ours(tmp_path / "a"), tmp_path / "disk" / "i")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "i")
    remove(tmp_path / "link", ["k0"])
    assert compact(tmp_path / "link")["rows"] == 49
    assert (tmp_path / "link").is_symlink() and len(Stored(tmp_path / "disk" / "i")) == 49
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "disk", "link"]


def test_a_kill_leaves_the_old_index_or_the_new_one(tmp_path: Path) -> None:
    build(laying.ours(tmp_path / "a"), tmp_path / "i")
    remove(tmp_path / "i", ["k0", "k30"])
    old = laying.answers(tmp_path / "i")
    shutil.copytree(tmp_path / "i", tmp_path / "copy")
    with kills.launcher(tmp_path / "log") as launcher:
        ended, touches = launcher.call("clipkit.index.compact.compact", tmp_path / "copy")
        assert ended == 0
        new = laying.answers(tmp_path / "copy")
        for die in sorted({*np.linspace(1, touches, 8).astype(int).tolist(), *range(touches - 6, touches)}):
            launcher.call("clipkit.index.compact.compact", tmp_path / "i", die=die)
            now = laying.answers(tmp_path / "i")
            assert now in (old, new), die
            if now == new:
                break
        assert launcher.call("clipkit.index.compact.compact", tmp_path / "i")[0] == 0
    assert laying.answers(tmp_path / "i") == new
