"""Checkpoints at another address: complete or absent there too, fetched whole or not at all."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch

from clipkit import checkpoint
from clipkit.errors import StorageError, UserError
from clipkit.shards.remote import Patience
from clipkit.train.copies import Copies, newest
from clipkit.train.save import Saver
from tests import s3_server
from tests.checkpoint.test_saver import advance, running

QUICK = Patience(tries=2, wait_s=0.0, stall_s=5.0)


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of `memory://`, empty."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 server with an empty bucket."""
    import s3fs

    with s3_server.serving() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        yield system


def save(run: Path, step: int) -> Path:
    files = {"model.safetensors": {"w": torch.full((9,), float(step))}, "data.json": str(step)}
    place = checkpoint.save(run, step, files, keep=9)
    (run / "metrics.jsonl").write_text(f'{{"step": {step}}}\n')
    return place


def send(url: str, run: Path, *steps: int, keep: int = 9, keep_every: int | None = None) -> Copies:
    copies = Copies(url, QUICK)
    for step in steps:
        copies.send(save(run, step), keep, keep_every)
    return copies


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def goes_there_and_back(url: str, folder: Path) -> None:
    copies = send(url, folder / "here", 5, 10, 15, 20, keep=2, keep_every=10)
    assert copies.steps() == {10, 15, 20}
    place = copies.fetch_newer(folder / "new", -1)
    assert place == checkpoint.folder(folder / "new", 20)
    assert contents(place) == contents(checkpoint.folder(folder / "here", 20))
    assert (folder / "new/metrics.jsonl").read_text() == '{"step": 20}\n'
    assert copies.fetch_newer(folder / "new", 20) is None
    assert [path.name for path in place.parent.iterdir()] == ["000000020"]


def test_checkpoints_go_to_memory_and_back(tmp_path: Path, memory: Any) -> None:
    goes_there_and_back("memory://bucket/run/", tmp_path)


def test_checkpoints_go_to_a_folder_and_back(tmp_path: Path) -> None:
    goes_there_and_back(f"file://{tmp_path}/there", tmp_path)


def test_checkpoints_go_to_s3_and_back(tmp_path: Path, s3: Any) -> None:
    goes_there_and_back("s3://bucket/runs/one", tmp_path)
    with pytest.raises(StorageError):  # a bucket is not made because a name was mistyped
        send("s3://buckett/run", tmp_path / "here", 25)
    assert s3.ls("") == ["bucket"]


def test_what_was_half_sent_is_no_checkpoint_and_is_cleared(tmp_path: Path, memory: Any) -> None:
    copies = send("memory://run", tmp_path / "here", 5, 10)
    memory.rm_file("/run/checkpoints/000000010/manifest.json")
    assert copies.steps() == {5}
    assert copies.fetch_newer(tmp_path / "new", -1) == checkpoint.folder(tmp_path / "new", 5)
    copies.send(save(tmp_path / "here", 15), 9, None)
    assert copies.steps() == {5, 15} and not memory.exists("/run/checkpoints/000000010")


@pytest.mark.parametrize("harm", ["changed", "missing", "outside"])
def test_a_damaged_copy_is_named_and_the_one_before_fetched(
    tmp_path: Path, memory: Any, capfd: pytest.CaptureFixture[str], harm: str
) -> None:
    copies = send("memory://run", tmp_path / "here", 5, 10)
    there = "/run/checkpoints/000000010"
    if harm == "changed":
        memory.pipe_file(f"{there}/data.json", b"11")
    elif harm == "missing":
        memory.rm_file(f"{there}/data.json")
    else:
        memory.pipe_file(f"{there}/manifest.json", b'{"files": {"../../../x": {"bytes": 1, "crc32": 1}}}')
    assert copies.fetch_newer(tmp_path / "new", -1) == checkpoint.folder(tmp_path / "new", 5)
    assert [path.name for path in (tmp_path / "new/checkpoints").iterdir()] == ["000000005"]
    assert "damaged checkpoint passed over: memory://run/checkpoints/000000010" in capfd.readouterr().err
    memory.rm_file("/run/checkpoints/000000005/data.json")
    with pytest.raises(StorageError, match="^memory://run: all 2 checkpoints are damaged"):
        copies.fetch_newer(tmp_path / "other", -1)


def test_a_storage_that_does_not_answer_is_not_taken_for_an_empty_one(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = send("memory://run", tmp_path / "here", 5, 10)

    def down(*args: Any, **more: Any) -> Any:
        raise ConnectionError("no route")

    monkeypatch.setattr(copies.system, "get_file", down)
    with pytest.raises(StorageError, match=r"tries: 2\); the last ended with ConnectionError: no route"):
        copies.fetch_newer(tmp_path / "new", -1)
    assert not list((tmp_path / "new/checkpoints").iterdir())


def test_a_request_that_fails_is_made_again(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put, calls = type(memory).put_file, iter(range(99))

    def flaky(self: Any, *args: Any, **more: Any) -> Any:
        if next(calls) % 2 == 0:
            raise ConnectionError("once")
        return put(self, *args, **more)

    monkeypatch.setattr(type(memory), "put_file", flaky)
    assert send("memory://run", tmp_path, 5).steps() == {5}


# In a run


def test_a_copy_that_fails_is_told_and_made_good_by_the_end(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = running(tmp_path / "run", monkeypatch, save_to="memory://run")
    kind = type(memory)

    def down(*args: Any, **more: Any) -> Any:
        raise PermissionError("no")

    with Saver(run) as saver:
        with monkeypatch.context() as patch:
            patch.setattr(kind, "put_file", down)
            for _ in range(2):
                advance(run, saver)
            saver.settle()
        said = capfd.readouterr().err
        assert "000000002 is not copied (failures in a row: 2): memory://run: access is refused" in said
    assert Copies("memory://run").steps() == {2}

    monkeypatch.setattr(kind, "put_file", down)
    message = "^memory://run: the last checkpoint is not there; the run folder has it"
    with pytest.raises(StorageError, match=message), Saver(run) as saver:
        advance(run, saver)
    assert checkpoint.folder(run.folder, 3).is_dir()


def test_a_run_goes_on_from_the_newest_of_both_places(tmp_path: Path, memory: Any) -> None:
    def look(folder: str, **more: Any) -> str | None:
        cfg = {"run": str(tmp_path / folder), "save_to": "memory://run", "save_every": 5, "keep_every": None, **more}
        place = newest(SimpleNamespace(**cfg, eval=SimpleNamespace(best=None)), main=True)  # type: ignore[arg-type]
        return place.name if place else None

    assert look("new") is None and look("new", save_to=None) is None
    send("memory://run", tmp_path / "here", 5, 10)
    save(tmp_path / "here", 15)
    assert look("here") == "000000015" and look("new") == "000000010"
    (checkpoint.folder(tmp_path / "new", 10) / "data.json").write_text("damaged")
    assert look("new") == "000000010", "fetched again where all that the folder has is damaged"
    with pytest.raises(UserError, match="keep_every=12: must be a multiple of save_every=5"):
        look("new", keep_every=12)
    with pytest.raises(UserError, match="^nothing://x: Protocol not known: nothing"):
        look("new", save_to="nothing://x")
