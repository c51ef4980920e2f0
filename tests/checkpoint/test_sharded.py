"""Checkpoints that several ranks write together: whatever wrote them, they read as the whole tensors they stand for."""

import json
import math
import os
import signal
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipkit import checkpoint
from clipkit.checkpoint import Ranks, pieces
from clipkit.errors import StorageError, UserError
from tests import two_ranks


def full() -> dict[str, Tensor]:
    """Tensors whose first dimension two ranks share unevenly, or one of them not at all; of many kinds."""
    dice = torch.Generator().manual_seed(0)
    return {
        "uneven": torch.randn(5, 3, generator=dice),
        "scale": torch.randn(1, generator=dice),
        "exp_avg/a.b": torch.randn(7, generator=dice).bfloat16(),
        "ids": torch.arange(9),
        "columns": torch.randn(2, 5, generator=dice).double(),
        "none": torch.empty(0, 4),
        "copied": torch.randn(3, generator=dice),
        "step": torch.tensor(3.0),
    }


def quiet(text: str) -> None:
    raise AssertionError(text)


def same(read: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return read.keys() == wanted.keys() and all(
        read[name].dtype == x.dtype and torch.equal(read[name], x) for name, x in wanted.items()
    )


# Two ranks that hold DTensors


def split() -> dict[str, Any]:
    """`full`, spread over the ranks as FSDP2 does; `columns` by its second dimension, `step` as a plain tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh, copies = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    placed: dict[str, Any] = {}
    for name, x in full().items():
        where = {"columns": (mesh, [Shard(1)]), "copied": (copies, [Replicate(), Shard(0)])}
        placed[name] = distribute_tensor(x, *where.get(name, (mesh, [Shard(0)]))) if x.ndim else x
    return placed


def two(rank: int, folder: str) -> dict[str, Tensor]:
    """What went wrong on a rank, told as {what: empty tensor}."""
    import torch.distributed as dist

    run, state, wrong = Path(folder), split(), {}
    files = {"model.safetensors": state, "data.json": "{}", "alone.safetensors": {"x": torch.ones(2)}}
    checkpoint.save(run, 1, files, keep=2, ranks=Ranks(rank, 2, "a"))
    dist.barrier()  # the first rank is the last to be done
    for path in (run / "checkpoints/000000001/model.safetensors", run / "whole.safetensors"):
        back = checkpoint.tensors(path, {name: torch.zeros_like(x) for name, x in state.items()}.get)
        for name, x in state.items():
            ours, theirs = (
                (y.to_local(), y.placements) if hasattr(y, "to_local") else (y, ()) for y in (back[name], x)
            )
            if not (torch.equal(ours[0], theirs[0]) and ours[1] == theirs[1] and back[name].dtype == x.dtype):
                wrong[f"{path.name}: {name}"] = torch.empty(0)

    # one rank's disk is full, then one rank does not come at all: both times the older checkpoint stays as it is
    write = pieces.write
    pieces.write = full_disk if rank else write
    try:
        checkpoint.save(run, 2, files, keep=1, ranks=Ranks(rank, 2, "b"))
        wrong["a full disk"] = torch.empty(0)
    except StorageError as error:
        if ("rank 1: [Errno 28]" if rank == 0 else "[Errno 28] No space left") not in str(error):
            wrong[str(error)] = torch.empty(0)
    pieces.write = write
    dist.barrier()
    if rank == 0:
        try:
            checkpoint.save(run, 3, files, keep=1, ranks=Ranks(0, 2, "c", wait_s=0.2))
            wrong["a missing rank"] = torch.empty(0)
        except StorageError as error:
            if "no files came from rank 1 within 0.2 s" not in str(error):
                wrong[str(error)] = torch.empty(0)
    return wrong


def full_disk(*args: Any, **more: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoint two ranks have written."""
    run = tmp_path_factory.mktemp("two") / "run"
    run.mkdir()
    save_file(full(), run / "whole.safetensors")
    assert two_ranks.run(two, str(run)) == [{}, {}]
    return run


def test_two_ranks_write_what_one_process_reads_whole(written: Path) -> None:
    place = checkpoint.newest(written, quiet)
    assert place is not None and [path.name for path in place.parent.iterdir()] == ["000000001"], "nothing half written"
    assert same(checkpoint.tensors(place / "model.safetensors"), full())
    assert same(checkpoint.tensors(place / "alone.safetensors"), {"x": torch.ones(2)})
    shards = [f"model/0000{rank}-of-00002.safetensors" for rank in (1, 2)]
    there = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert there == {*shards, "alone.safetensors", "data.json", "manifest.json"}
    assert json.loads((place / "manifest.json").read_text())["files"].keys() == there - {"manifest.json"}
    held = [x.numel() for name in shards for x in load_file(place / name).values()]
    assert sum(held) == sum(x.numel() for x in full().values()), "nothing is written twice"


def test_torchs_own_reader_reads_it_too(written: Path) -> None:
    from torch.distributed import checkpoint as dcp

    state = {name: torch.zeros_like(x) for name, x in full().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = dcp.HuggingFaceStorageReader(str(checkpoint.folder(written, 1) / "model"))
        dcp.load(state, storage_reader=reader, no_dist=True)
    assert same(state, full())


# Ranks as threads: any number, without a process group


def blocks(rows: int, world: int) -> list[range]:
    """The rows of each rank, as torch.chunk shares them."""
    each = math.ceil(rows / world)
    return [range(min(rows, rank * each), min(rows, (rank + 1) * each)) for rank in range(world)]


def staged(rank: int, world: int, token: str) -> checkpoint.Staged:
    """What rank `rank` of `world` has to write of `full`."""
    parts = []
    for name, x in full().items():
        mine = blocks(len(x), world)[rank] if x.ndim else range(rank, 1)
        if len(mine) or (rank == 0 and x.numel() == 0):
            piece = x[mine.start : mine.stop] if x.ndim else x
            box = ((mine.start, *(0,) * (x.ndim - 1)), tuple(piece.shape)) if x.ndim else ((), ())
            parts.append(pieces.Part(name, x.dtype, box, lambda piece=piece: piece))
    files: dict[str, Any] = {f"model/{rank + 1:05d}-of-{world:05d}.safetensors": parts}
    if rank == 0:
        files["model.yaml"] = ""
    return checkpoint.Staged(files, Ranks(rank, world, token, wait_s=20), sharded=True)


def save(run: Path, step: int, world: int) -> Path:
    threads = [
        threading.Thread(target=checkpoint.write, args=(run, step, staged(rank, world, f"t{step}"), 9))
        for rank in range(world)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return checkpoint.folder(run, step)


@pytest.mark.parametrize("world", [1, 3, 8])
def test_any_number_of_ranks_writes_the_same_tensors(tmp_path: Path, world: int) -> None:
    place = save(tmp_path, 1, world)
    assert checkpoint.newest(tmp_path, quiet) == place
    assert same(checkpoint.tensors(place / "model.safetensors"), full())


@pytest.fixture(scope="module")
def by_three(tmp_path_factory: pytest.TempPathFactory) -> pieces.Stored:
    return pieces.Stored(save(tmp_path_factory.mktemp("three"), 1, 3) / "model.safetensors")


@given(rows=st.tuples(st.integers(0, 5), st.integers(0, 5)), columns=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_any_part_is_that_part_of_the_whole(by_three: pieces.Stored, rows: Any, columns: Any) -> None:
    (a, b), (c, d) = sorted(rows), sorted(columns)
    assert torch.equal(by_three.part("uneven", ((a, c), (b - a, d - c))), full()["uneven"][a:b, c:d])


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_damaged_shard_of_another_rank_costs_the_newest_checkpoint_alone(tmp_path: Path, harm: str) -> None:
    older, newer = save(tmp_path, 1, 3), save(tmp_path, 2, 3)
    shard = newer / "model/00003-of-00003.safetensors"
    os.truncate(shard, 99) if harm == "cut" else shard.unlink()
    told: list[str] = []
    assert checkpoint.newest(tmp_path, told.append) == older
    wrong = "its checksum is not the one it was written with" if harm == "cut" else "is missing"
    assert told == [f"damaged checkpoint passed over: {shard}: {wrong}"]
    with pytest.raises(StorageError, match="not a readable safetensors file" if harm == "cut" else "2 of 3 shards"):
        checkpoint.tensors(newer / "model.safetensors")


def test_a_hole_between_shards_is_named(tmp_path: Path) -> None:
    place = save(tmp_path, 1, 3)
    second = place / "model/00002-of-00003.safetensors"
    pieces.write(second, [], shards=True)
    with pytest.raises(StorageError, match="1 numbers of copied are in none of its shards"):
        checkpoint.tensors(place / "model.safetensors")


def test_a_rank_killed_while_it_writes_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    older = save(tmp_path, 1, 2)
    child = os.fork()
    if child == 0:
        try:
            pieces._bytes = lambda part: os.kill(os.getpid(), signal.SIGKILL)
            checkpoint.write(tmp_path, 2, staged(1, 2, "x"), 9)
        finally:
            os._exit(0)  # never back into pytest
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    first = staged(0, 2, "x")
    with pytest.raises(StorageError, match=r"no files came from rank 1 within 0.1 s\); it takes"):
        checkpoint.write(tmp_path, 2, checkpoint.Staged(first.files, Ranks(0, 2, "x", wait_s=0.1), sharded=True), 9)
    assert checkpoint.newest(tmp_path, quiet) == older and list(older.parent.iterdir()) == [older]


# One file of all


def test_the_consolidated_file_is_the_one_a_single_process_writes(tmp_path: Path) -> None:
    place = save(tmp_path / "run", 7, 3)
    save_file(full(), tmp_path / "wanted.safetensors")
    for model in (tmp_path / "run", place):
        out = checkpoint.consolidate(model, quiet)
        assert out == (tmp_path / "run/weights-000000007.safetensors").resolve()
        assert out.read_bytes() == (tmp_path / "wanted.safetensors").read_bytes()
        with pytest.raises(UserError, match=f"^{out}: exists; give another file"):
            checkpoint.consolidate(model, quiet)
        out.unlink()


def test_tensors_are_written_one_by_one(tmp_path: Path) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def read() -> Tensor:
        assert sum(x() is not None for x in alive) <= 1
        alive.append(weakref.ref(x := torch.ones(4)))
        return x

    pieces.write(tmp_path / "x", [pieces.Part(f"{i}", torch.float32, ((0,), (4,)), read) for i in range(9)])
    assert len(alive) == 9


def test_averaged_weights_are_consolidated_unless_raw_ones_are_asked_for(tmp_path: Path) -> None:
    files = {f"{name}.safetensors": {"w": torch.full((3,), x)} for name, x in (("model", 1.0), ("ema", 2.0))}
    checkpoint.save(tmp_path, 1, files, keep=1)
    for raw, wanted in ((False, 2.0), (True, 1.0)):
        out = checkpoint.consolidate(tmp_path, quiet, tmp_path / f"{raw}.safetensors", raw)
        assert torch.equal(checkpoint.tensors(out)["w"], torch.full((3,), wanted))


def test_what_cannot_be_consolidated_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run or checkpoint folder"):
        checkpoint.consolidate(tmp_path / "none", quiet)
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.consolidate(tmp_path, quiet)
    save(tmp_path, 1, 2)
    with pytest.raises(StorageError, match="could not be written"):
        checkpoint.consolidate(tmp_path, quiet, tmp_path / "no/such/folder/x.safetensors")
    os.truncate(checkpoint.folder(tmp_path, 1) / "model/00001-of-00002.safetensors", 20)
    with pytest.raises(StorageError, match="all 1 are damaged"):
        checkpoint.consolidate(tmp_path, lambda text: None)
