"""Rows that are added are found as if they had been there from the start; a kill leaves the old index or the new."""

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.errors import UserError
from clipkit.index import choose, prompts, remeasure
from clipkit.index.add import add
from clipkit.index.build import build
from clipkit.index.compact import compact
from clipkit.index.remove import remove
from clipkit.vectors import Stored
from tests.index import kills
from tests.vectors import laying

CODED = "IVF4,PQ8x4fs,Refine(SQ8)"
QUERIES = laying.rows(20, 99)


def test_adding_equals_building_of_all(tmp_path: Path) -> None:
    a, b, c = (laying.ours(tmp_path / name, seed=i, first=50 * i) for i, name in enumerate("abc"))
    build(a, tmp_path / "grown")
    for more in (b, c):
        facts = add(more, tmp_path / "grown")
    build([a, b, c], tmp_path / "whole")
    assert laying.answers(tmp_path / "grown") == laying.answers(tmp_path / "whole")
    assert facts == Stored(tmp_path / "grown").about and facts["rows"] == 150
    assert [each["folder"] for each in facts["vectors"]] == [str(a), str(b), str(c)]
    names = [path.name for path in sorted((tmp_path / "grown" / "metadata").iterdir())]
    assert names == [f"metadata_{i:06d}.parquet" for i in range(6)]


def test_added_rows_are_found_in_a_coded_index(tmp_path: Path) -> None:
    a, b = laying.ours(tmp_path / "a", (300,)), laying.ours(tmp_path / "b", (100,), seed=1, first=300)
    build(a, tmp_path / "i", engine=CODED)
    before = Stored(tmp_path / "i")
    add(b, tmp_path / "i")
    stored = Stored(tmp_path / "i")
    assert len(stored) == 400 and stored.about["kinds"]["image"]["factory"] == CODED
    numbers = np.arange(400)
    for kind in ("image", "text"):
        _, found = stored.nearest(kind, stored.vectors.take(kind, numbers), 1)
        assert np.mean(found[:, 0] == numbers) > 0.95
    # the codes of the rows that were there are as they were
    assert np.array_equal(stored.rows("image", numbers[:300]), before.rows("image", numbers[:300]))


def test_what_was_removed_stays_removed(tmp_path: Path) -> None:
    a, b = laying.ours(tmp_path / "a"), laying.ours(tmp_path / "b", seed=1, first=50)
    build(a, tmp_path / "i")
    remove(tmp_path / "i", ["k3"])
    add(b, tmp_path / "i")
    stored = Stored(tmp_path / "i")
    assert stored.removed is not None and stored.removed.sum() == 1 and stored.removed[3]
    assert 3 not in stored.nearest("image", stored.vectors.take("image", np.array([3])), 50)[1]
    remove(tmp_path / "i", ["k60"])
    removed = Stored(tmp_path / "i").removed
    assert removed is not None and np.flatnonzero(removed).tolist() == [3, 60]


@pytest.mark.parametrize("old, new", [(False, True), (True, False), (True, True)])
def test_samples_without_a_caption_stay_hidden(tmp_path: Path, old: bool, new: bool) -> None:
    text = [laying.rows(50, seed) for seed in (5, 6)]
    for each, some in zip(text, (old, new), strict=True):
        if some:
            each[10:20] = 0
    folders = [laying.ours(tmp_path / n, seed=i, first=50 * i, text=text[i]) for i, n in enumerate("ab")]
    build(folders[0], tmp_path / "i")
    add(folders[1], tmp_path / "i")
    _, found = Stored(tmp_path / "i").nearest("text", QUERIES, 100)
    hidden = {*(range(10, 20) if old else ()), *(range(60, 70) if new else ())}
    for row in found:
        assert set(row[row >= 0].tolist()) == set(range(100)) - hidden


def test_new_columns_are_added_and_repeated_keys_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(laying.ours(tmp_path / "a"), tmp_path / "i")
    more = laying.theirs(tmp_path / "b", (60,), url=lambda i: f"https://x/{i}")
    for path in (more / "metadata").iterdir():
        path.unlink()
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image_path": [f"k{i}" for i in range(40, 100)], "url": [f"u{i}" for i in range(60)]})
    pq.write_table(table, more / "metadata" / "metadata_0.parquet")
    facts = add(more, tmp_path / "i")
    assert f"{more}: 10 of 60 keys are in {tmp_path / 'i'} already; both rows are found from now on" in (
        capsys.readouterr().err
    )
    stored = Stored(tmp_path / "i")
    assert stored.records.with_keys(["k45"]) == {"k45": [45, 55]}
    assert stored.records.where("url = 'u7'").tolist() == [57] and len(stored) == facts["rows"] == 110


def test_recall_that_fell_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dice = np.random.default_rng(3)
    # what is trained on lies in one corner of the space, what is added lies opposite to it
    corner = laying.unit(np.eye(16)[0] + 0.3 * dice.normal(size=(2000, 16)))
    away = laying.unit(-np.eye(16)[0] + 0.3 * dice.normal(size=(2000, 16)))
    a = laying.ours(tmp_path / "a", (2000,), image=corner, text=corner)
    b = laying.ours(tmp_path / "b", (2000,), first=2000, image=away, text=away)
    place = tmp_path / "i"
    build(a, place, engine=CODED, recall=0.9)
    assert Stored(place).about["kinds"]["image"]["recall"]["met"]
    capsys.readouterr()
    facts = add(b, place)
    assert facts["kinds"]["image"]["recall"]["met"] is False
    unmet = f"{place}: the recall of images that was asked for is not reached any more"
    assert f"{unmet}; `clipkit index {place} --compact` trains anew on all rows" in capsys.readouterr().err
    assert compact(place)["kinds"]["image"]["recall"]["met"]


def test_where_old_vectors_are_gone_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = laying.ours(tmp_path / "a"), laying.ours(tmp_path / "b", seed=1, first=50)
    build(a, tmp_path / "i")
    wanted = Stored(tmp_path / "i").about["kinds"]["image"]["knobs"]
    shutil.rmtree(a)
    facts = add(b, tmp_path / "i")
    told = capsys.readouterr().err
    assert f"{tmp_path / 'i'}: its vectors are not what they were ({a}: no such folder" in told
    assert "the recall over all rows is not measured, for which the vectors of all of them are needed" in told
    assert facts["kinds"]["image"]["recall"] == {} and facts["kinds"]["image"]["knobs"] == wanted
    assert len(Stored(tmp_path / "i")) == 100


def test_what_does_not_fit_is_refused_and_nothing_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, place = laying.ours(tmp_path / "a"), tmp_path / "i"
    build(a, place)
    before = laying.answers(place)
    narrow = laying.ours(tmp_path / "narrow", image=laying.rows(50, width=8))
    other = laying.ours(tmp_path / "other", digest="f" * 16, model="n")
    silent = laying.ours(tmp_path / "silent", text=False)
    empty = laying.ours(tmp_path / "empty", (0,))
    for folder, message in (
        (a, f"{a}: is in {place} already; a vectors folder is added once"),
        (narrow, f"{narrow}: width 8, that of {place} is 16; embed both with one model"),
        (
            other,
            f"{other}: made by another model (n) than {place} (m), their rows cannot be compared; embed with one model",
        ),
        (empty, f"{empty}: holds no rows, there is nothing to add"),
        (silent, f"{silent}: has no vectors of kind text, which {place} is searched by"),
    ):
        with pytest.raises(UserError) as error:
            add(folder, place)
        assert str(error.value) == message
    with pytest.raises(UserError, match="^.*: no such folder; `clipkit index VECTORS --out INDEX` makes one"):
        add(a, tmp_path / "none" / "deep")
    assert not (tmp_path / "none").exists()
    assert laying.answers(place) == before
    build(silent, tmp_path / "j")
    capsys.readouterr()
    add(a, tmp_path / "j")
    told = capsys.readouterr().err
    assert f"{a}: its vectors of kind text are left out, {tmp_path / 'j'} has none" in told


def test_two_changes_at_once_are_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    build(laying.ours(tmp_path / "a"), tmp_path / "i")
    b = laying.ours(tmp_path / "b", seed=1)
    for change in (lambda: add(b, tmp_path / "i"), lambda: remeasure(tmp_path / "i"), lambda: compact(tmp_path / "i")):
        with FileLock(tmp_path / ".i.lock"), pytest.raises(UserError) as error:
            change()
        told = f"{tmp_path / 'i'}: another process is changing this index; try again when it is done"
        assert str(error.value) == told


def test_pictures_alone_are_measured_with_prompts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "embedded", lambda model, digest, texts: laying.rows(len(texts), 3))
    monkeypatch.setattr(choose, "EXACT", 40)
    a, b = (
        laying.ours(tmp_path / n, seed=i, first=50 * i, text=False, model=str(tmp_path)) for i, n in enumerate("ab")
    )
    build(a, tmp_path / "i", engine="IVF1,SQ8")
    assert add(b, tmp_path / "i")["kinds"]["image"]["recall"]["on"] == "prompts"


def test_who_has_the_index_open_goes_on_with_the_old_one(tmp_path: Path) -> None:
    a, b = laying.ours(tmp_path / "a"), laying.ours(tmp_path / "b", seed=1, first=50)
    build(a, tmp_path / "i")
    before, reader = laying.answers(tmp_path / "i"), Stored(tmp_path / "i")
    add(b, tmp_path / "i")
    found: dict[str, Any] = {}

    def look() -> None:
        found["rows"] = reader.nearest("image", QUERIES, 9)[1].tolist()
        found["records"] = reader.records.get(range(50))

    for work in (look, lambda: _in_a_thread(look)):
        found.clear()
        work()
        assert found == {"rows": before["image 1"], "records": before["records"]}


def _in_a_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_kill_leaves_the_old_index_or_the_new_one(tmp_path: Path) -> None:
    a, b = laying.ours(tmp_path / "a"), laying.ours(tmp_path / "b", seed=1, first=50)
    place = tmp_path / "i"
    build(a, place)
    old = laying.answers(place)
    shutil.copytree(place, tmp_path / "copy")
    with kills.launcher(tmp_path / "log") as launcher:
        ended, touches = launcher.call("clipkit.index.add.add", b, tmp_path / "copy")
        assert ended == 0 and touches > 20
        new, seen = laying.answers(tmp_path / "copy"), set()
        for die in sorted({*np.linspace(1, touches, 15).astype(int).tolist(), *range(touches - 12, touches)}):
            ended, _ = launcher.call("clipkit.index.add.add", b, place, die=die)
            now = laying.answers(place)
            assert now in (old, new), die
            seen.add("new" if now == new else "old")
            if now == new:
                shutil.rmtree(place)
                shutil.copytree(tmp_path / "copy", place)
                break
        assert "old" in seen
        if "new" not in seen:
            assert launcher.call("clipkit.index.add.add", b, place)[0] == 0
    assert laying.answers(place) == new
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".i")) in ([".i.lock"], [])
