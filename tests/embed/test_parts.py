"""A vectors folder on its way: what is written when, what goes on and what is refused."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.errors import StorageError, UserError
from clipkit.vectors import Vectors, parts
from tests.embed import laid

PLAN = {
    "model": "m", "digest": "1", "made_by": "2", "source": "s", "fingerprint": "3", "samples": 7, "part": 3,
    "kinds": ("image", "text"), "width": 2, "dtype": "float32", "fields": ["n"],
}  # fmt: skip


def unit(count: int) -> np.ndarray:
    """Unit rows [count, 2]."""
    angles = np.arange(count, dtype=np.float32)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def fill(made: parts.Parts, numbers: list[int], without: int | None = None) -> None:
    for number in numbers:
        some = [n for n in made.span(number) if n != without]
        records = [{"key": str(n), "caption": "c", "n": n} for n in some]
        left_out = [] if len(some) == len(made.span(number)) else [("same name", "broken")]
        made.write(number, unit(len(some)), unit(len(some)), records, left_out)


def finished(made: parts.Parts, lost: dict[str, int] | None = None) -> dict[str, Any]:
    records = list(made.records())
    facts = made.facts(records, lost or {})
    made.finish(records, facts)
    return facts


def test_a_folder_is_whole_when_all_parts_are_there(tmp_path: Path) -> None:
    place = tmp_path / "v"
    with parts.alone(place):
        made = parts.begin(place, PLAN)
        assert made.count == 3 and [len(made.span(n)) for n in range(3)] == [3, 3, 1] and made.missing() == [0, 1, 2]
        fill(made, [2, 0])
        assert made.missing() == [1] and made.samples_done() == 6
        with pytest.raises(UserError, match="its embedding was cut short"):
            Vectors(place)
        fill(made, [1], without=4)
        facts = finished(made, {"no image": 2})
    assert facts["rows"] == facts["captions"] == 6 and facts["parts"] == 3
    assert facts["left_out"] == {"broken": 1, "no image": 2}
    assert sorted(path.name for path in place.iterdir()) == [
        "embed.json", "img_emb", "manifest.jsonl", "metadata", "text_emb", "vectors.json",
    ]  # fmt: skip
    vectors = Vectors(place)
    assert (
        len(vectors) == 6
        and vectors.column("n") == [0, 1, 2, 3, 5, 6]
        and vectors.about == json.loads(json.dumps(facts))
    )


def test_a_part_whose_files_are_gone_is_made_again(tmp_path: Path) -> None:
    made = parts.begin(tmp_path / "v", PLAN) if (tmp_path / "v").mkdir() is None else None
    assert made is not None
    fill(made, [0, 1, 2])
    assert parts.begin(tmp_path / "v", PLAN).missing() == []
    (tmp_path / "v/text_emb/text_emb_000001.npy").write_bytes(b"short")
    (tmp_path / "v/metadata/metadata_000002.parquet").unlink()
    assert parts.begin(tmp_path / "v", PLAN).missing() == [1, 2]


@pytest.mark.parametrize("gone", [(), ("vectors.json",), ("vectors.json", "parts/000000.json", "parts/000002.json")])
def test_an_end_that_was_cut_short_is_made_again(tmp_path: Path, gone: tuple[str, ...]) -> None:
    for name in ("v", "w"):
        (tmp_path / name).mkdir()
        made = parts.begin(tmp_path / name, PLAN)
        fill(made, [0, 1, 2])
        kept = shutil.copytree(tmp_path / name / "parts", tmp_path / f"{name}-parts")
        finished(made)
        if name == "w" and gone:
            shutil.copytree(kept, tmp_path / "w/parts")
            for path in gone:
                (tmp_path / "w" / path).unlink()
            again = parts.begin(tmp_path / "w", PLAN)
            assert again.missing() == []
            finished(again)
    assert laid.everything(tmp_path / "v") == laid.everything(tmp_path / "w")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    parts.begin(tmp_path / "v", PLAN)
    for name in (".embed.json.1.tmp", "img_emb/.img_emb_000000.npy.2.tmp", "parts/.000000.json.3.tmp"):
        (tmp_path / "v" / name).write_text("half")
    parts.begin(tmp_path / "v", PLAN)
    assert list(laid.everything(tmp_path / "v")) == ["embed.json"]


def test_a_disk_that_refuses_is_told_and_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v").mkdir()
    made = parts.begin(tmp_path / "v", PLAN)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # names no file, as that of a write

    monkeypatch.setattr(parts.os, "fsync", full)
    with pytest.raises(StorageError, match=r"img_emb_000000.npy: cannot be written \(No space left on device\)"):
        fill(made, [0])
    assert list(laid.everything(tmp_path / "v")) == ["embed.json"]


def test_another_plan_is_refused_by_what_differs(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    fill(parts.begin(tmp_path / "v", PLAN), [0])
    assert parts.begin(tmp_path / "v", {**PLAN, "model": "moved", "source": "moved"}).plan["model"] == "m"
    before = laid.everything(tmp_path / "v")
    other = {
        **PLAN,
        "model": "n",
        "digest": "9",
        "made_by": "8",
        "fingerprint": "7",
        "part": 4,
        "fields": [],
    }
    with pytest.raises(UserError) as told:
        parts.begin(tmp_path / "v", other)
    assert str(told.value).splitlines() == [
        f"{tmp_path}/v: was begun with other settings:",
        "  another model: m (1) there, n (9) now",
        "  another device or other packages: 2 there, 8 now",
        "  other data: s (3) there, s (7) now",
        "  part: 3 there, 4 now",
        "  fields: n there, none now",
        "type what was typed then, remove the folder, or give another --out",
    ]
    assert laid.everything(tmp_path / "v") == before


def test_a_plan_of_which_nothing_is_done_yet_may_change(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    parts.begin(tmp_path / "v", PLAN)
    (tmp_path / "v/img_emb/img_emb_000002.npy").write_bytes(b"of a part that was not done")
    made = parts.begin(tmp_path / "v", {**PLAN, "part": 4, "kinds": ["image"]})
    assert made.count == 2 and not list((tmp_path / "v/img_emb").iterdir()) and not (tmp_path / "v/text_emb").exists()


def test_what_is_not_ours_or_whole_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes").write_text("")
    (tmp_path / "whole").mkdir()
    made = parts.begin(tmp_path / "whole", PLAN)
    fill(made, [0, 1, 2])
    finished(made)
    for name in ("file", "other", "whole"):
        with pytest.raises(UserError, match=rf"{name}: already exists and is left as it is; remove it, or give"):
            parts.alone(tmp_path / name).__enter__()
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["notes"]


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    message = r"v: another process is embedding into it; wait, or give another --out"
    with parts.alone(tmp_path / "v"), pytest.raises(UserError, match=message):
        parts.alone(tmp_path / "v").__enter__()
    assert not (tmp_path / "v").exists()


def test_a_host_that_does_not_see_the_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PATIENCE_S", 0.0)
    with pytest.raises(
        UserError, match=r"v: this host does not see what the first process has written there; --out has"
    ):
        parts.seen(tmp_path / "v", PLAN)
    (tmp_path / "v").mkdir()
    made = parts.begin(tmp_path / "v", PLAN)
    assert parts.seen(tmp_path / "v", PLAN).plan == made.plan
    fill(made, [0, 2])
    with pytest.raises(
        StorageError, match=r"v: part 1 is not there; do all hosts see this folder\? type the same again"
    ):
        list(made.records())


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    fill(parts.begin(tmp_path / "v", PLAN), [0])
    (tmp_path / "v/parts/000000.json").write_text("{")
    with pytest.raises(StorageError, match=r"parts/000000.json: damaged \(.*\); remove it, and its part is made again"):
        parts.begin(tmp_path / "v", PLAN).missing()
    (tmp_path / "v/embed.json").write_text("[]")
    with pytest.raises(StorageError, match=r"embed.json: damaged \(.*\); remove the folder, or give another --out"):
        parts.begin(tmp_path / "v", PLAN)


def test_numbers_have_as_many_digits_everywhere(tmp_path: Path) -> None:
    made = parts.Parts(tmp_path, {**PLAN, "samples": 10_000_001, "part": 1})
    assert made._path("image", 7) == "img_emb/img_emb_00000007.npy"
    assert parts.Parts(tmp_path, PLAN)._path("metadata", 2) == "metadata/metadata_000002.parquet"
