"""Checkpoints: whole or absent, never in doubt about damage, and never the reason that an older one is lost."""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import checkpoint
from clipkit.checkpoint import pieces, reading, writing
from clipkit.errors import StorageError

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64), "none": torch.empty(0, 4)}
OUTSIDE = '{{"files": {{"{}": {{"bytes": 1, "crc32": 1}}}}}}'
FILES: dict[str, Any] = {"model.safetensors": WEIGHTS, "train.yaml": "lr: 1\n", "data.json": '{"samples": 5}'}


def save(run: Path, *steps: int, keep: int = 9, files: Mapping[str, Any] = FILES) -> Path:
    return [checkpoint.save(run, step, files, keep) for step in steps][-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def saved(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def quiet(text: str) -> None:
    raise AssertionError(text)


def damage(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


# Whole


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("vocab.json", "config.json", "model.safetensors", "pytorch_model.bin", ".hidden"):
        (tokenizer / name).write_text(name)
    strided = torch.arange(6.0).reshape(2, 3).T.requires_grad_()
    place = save(tmp_path, 7, files={**FILES, "optim.safetensors": {"x/y": strided}, "text": tokenizer})
    assert place == tmp_path / "checkpoints" / "000000007" == checkpoint.newest(tmp_path, quiet)
    read = checkpoint.tensors(place / "model.safetensors")
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], x) and read[name].dtype == x.dtype for name, x in WEIGHTS.items())
    assert torch.equal(checkpoint.tensors(place / "optim.safetensors")["x/y"], strided)
    assert checkpoint.facts(place / "data.json") == {"samples": 5} and (place / "train.yaml").read_text() == "lr: 1\n"
    assert sorted(path.name for path in (place / "text").iterdir()) == ["config.json", "vocab.json"]
    manifest = json.loads((place / "manifest.json").read_text())
    assert manifest["step"] == 7 and manifest["files"].keys() == contents(place).keys() - {"manifest.json"}


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path, quiet) is None
    (tmp_path / "checkpoints" / "notes").mkdir(parents=True)
    assert checkpoint.newest(tmp_path, quiet) is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 5, 10, 15, 20, keep=2)
    assert saved(tmp_path) == [15, 20]
    save(tmp_path, 25, keep=1)
    assert saved(tmp_path) == [25]
    save(tmp_path, 30, keep=0)
    assert saved(tmp_path) == [30], "the one just written is always kept"


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 5)
    place = save(tmp_path, 5, files={"train.yaml": "new"})
    assert contents(place).keys() == {"train.yaml", "manifest.json"} and checkpoint.newest(tmp_path, quiet) == place


def test_multiples_of_keep_every_are_kept_for_ever(tmp_path: Path) -> None:
    for step in range(5, 45, 5):
        checkpoint.save(tmp_path, step, FILES, keep=2, keep_every=15)
    assert saved(tmp_path) == [15, 30, 35, 40]


def test_a_file_of_plain_tensors_is_byte_for_byte_what_safetensors_writes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {
        f'{kind}/\u00e9 "{number}': torch.arange(9).reshape(3, 3)[:, :number].to(kind).contiguous()
        for kind in pieces.NAMES
        for number in (3, 1, 0)
    } | {"0-dim": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "theirs.safetensors")
    ours = save(tmp_path, 1, files={"x.safetensors": tensors}) / "x.safetensors"
    assert ours.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    facts = json.loads((ours.parent / "manifest.json").read_text())["files"]["x.safetensors"]
    assert facts == reading.facts_of(ours), "counted while it was written"


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_never_costs_the_one_just_written(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 10, 20, 30)
    for step in (20, 30):
        damage(checkpoint.folder(tmp_path, step) / "model.safetensors")
    assert checkpoint.newest(tmp_path, lambda _: None) == checkpoint.folder(tmp_path, 10)
    place = save(tmp_path, 12, keep=keep)
    assert checkpoint.newest(tmp_path, lambda _: None) == place


# Damaged


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    place = save(tmp_path, 1)
    for at in range((place / name).stat().st_size):
        damage(place / name, at)
        with pytest.raises(StorageError) as error:
            checkpoint.verify(place)
        assert str(error.value) == f"{place / name}: its checksum is not the one it was written with"
        damage(place / name, at)
    checkpoint.verify(place)


def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(tmp_path: Path) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer / "model.safetensors")
    told: list[str] = []
    assert checkpoint.newest(tmp_path, told.append) == older
    where = f"{newer}/model.safetensors: its checksum is not the one it was written with"
    assert told == [f"damaged checkpoint passed over: {where}"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda place: (place / "data.json").unlink(), "data.json: is missing"),
        (lambda place: os.truncate(place / "model.safetensors", 9), "model.safetensors: its checksum is not"),
        (lambda place: (place / "manifest.json").unlink(), "manifest.json: not readable"),
        (lambda place: (place / "manifest.json").write_text(""), "manifest.json: not readable"),
        (lambda place: (place / "manifest.json").write_text("{}"), "manifest.json: not readable"),
        (lambda place: (place / "manifest.json").write_text("[]"), "manifest.json: not readable"),
        (lambda place: (place / "manifest.json").write_bytes(b"\xff"), "manifest.json: not readable"),
        (lambda place: (place / "manifest.json").write_text(OUTSIDE.format("../x")), "manifest.json: not readable (it"),
        (lambda place: (place / "manifest.json").write_text(OUTSIDE.format("/x")), "manifest.json: not readable (it"),
    ],
)
def test_each_kind_of_damage_is_named(tmp_path: Path, harm: Any, message: str) -> None:
    place = save(tmp_path, 1)
    harm(place)
    with pytest.raises(StorageError) as error:
        checkpoint.verify(place)
    assert str(error.value).startswith(f"{place}/{message}")


def test_a_file_that_the_disk_refuses_to_read_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    facts = reading.facts_of

    def refuse(path: Path) -> dict[str, int]:
        if path == newer / "model.safetensors":
            raise OSError(5, "Input/output error")
        return facts(path)

    monkeypatch.setattr(reading, "facts_of", refuse)
    told: list[str] = []
    assert checkpoint.newest(tmp_path, told.append) == older
    assert told[0].endswith("model.safetensors: not readable ([Errno 5] Input/output error)")


def test_when_all_are_damaged_the_run_does_not_start_over(tmp_path: Path) -> None:
    for place in (save(tmp_path, 1), save(tmp_path, 2)):
        damage(place / "train.yaml")
    told: list[str] = []
    with pytest.raises(StorageError) as error:
        checkpoint.newest(tmp_path, told.append)
    assert str(error.value) == f"{tmp_path}/checkpoints: all 2 are damaged; move them away to start over"
    assert len(told) == 2


@pytest.mark.parametrize("content", [None, b"", b"junk", b"\xff" * 100])
def test_a_file_that_is_no_safetensors_says_so(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=f"^{path}: not a readable safetensors file"):
        checkpoint.tensors(path)


# Failed and killed

CALLS = [(pieces, "write"), (writing, "_sync"), (reading, "facts_of"), (writing, "_commit")]


@pytest.mark.parametrize(("module", "call"), CALLS)
@pytest.mark.parametrize("nth", range(5))
def test_a_save_that_fails_leaves_the_older_ones_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, call: str, nth: int
) -> None:
    older = save(tmp_path, 1, keep=1)
    before, original, calls = contents(older), getattr(module, call), iter(range(100))

    def full(*args: Any, **more: Any) -> Any:
        if next(calls) == min(nth, {"write": 0, "_sync": 5, "facts_of": 1, "_commit": 0}[call]):
            raise OSError(28, "No space left on device")
        return original(*args, **more)

    with monkeypatch.context() as patch, pytest.raises(StorageError) as error:
        patch.setattr(module, call, full)
        save(tmp_path, 2, keep=1)
    place = checkpoint.folder(tmp_path, 2)
    assert str(error.value).startswith(f"{place}: could not be written ([Errno 28] No space left on device); it takes ")
    assert "MB are free on that disk; older checkpoints are untouched. Make room there" in str(error.value)
    assert checkpoint.newest(tmp_path, quiet) == older and contents(older) == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [older.name], "nothing is left half written"
    assert saved(save(tmp_path, 2, keep=1).parents[1]) == [2]


def test_what_will_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = save(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=31_999_999))
    monkeypatch.setattr(writing, "_fill", lambda *args: pytest.fail("it was begun"))
    with pytest.raises(StorageError, match=r"No space left on device\); it takes 32.0 MB and 32.0 MB are free"):
        save(tmp_path, 2, files={"model.safetensors": {"x": torch.empty(8_000_000)}})
    assert checkpoint.newest(tmp_path, quiet) == older


def test_a_name_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(StorageError, match="could not be written"):
        save(tmp_path, 2, files={"missing/folder/x.safetensors": WEIGHTS})
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        save(tmp_path / "file/run", 2)
    assert saved(tmp_path) == [1]


def save_and_die(run: Path, module: Any, call: str, nth: int) -> int:
    """How the process ended that saved step 2 and was killed in the nth call of a function of the package."""
    child = os.fork()
    if child == 0:
        original, calls = getattr(module, call), iter(range(100))

        def die(*args: Any, **more: Any) -> Any:
            if next(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **more)

        setattr(module, call, die)
        try:
            save(run, 2, keep=1)
        finally:
            os._exit(0)  # never back into pytest
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("module", "call", "nth"),
    [
        (pieces, "write", 0),
        (pieces, "_bytes", 2),
        (reading, "facts_of", 1),
        (writing, "_commit", 0),
        (writing, "_sync", 4),
    ],
)
def test_a_killed_save_leaves_the_older_one_and_its_remains_are_cleared(
    tmp_path: Path, module: Any, call: str, nth: int
) -> None:
    older = save(tmp_path, 1)
    assert save_and_die(tmp_path, module, call, nth) == -signal.SIGKILL
    assert checkpoint.newest(tmp_path, quiet) == older and len(list(older.parent.iterdir())) == 2
    checkpoint.clear_leftovers(tmp_path)
    assert list(older.parent.iterdir()) == [older]
    checkpoint.clear_leftovers(tmp_path / "nothing")


def test_a_save_killed_after_its_rename_is_whole(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert (
        save_and_die(tmp_path, writing, "_sync", 5) == -signal.SIGKILL
    )  # the folder above, after 4 files and the folder
    assert checkpoint.newest(tmp_path, quiet) == checkpoint.folder(tmp_path, 2) and saved(tmp_path) == [1, 2]
