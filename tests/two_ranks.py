"""Runs a function on two gloo ranks of this machine and gives what each returned."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# ranks are forked from one process that has imported, and not computed, what takes 10 s of a core to import
multiprocessing.set_forkserver_preload(["torch.distributed.fsdp", "open_clip", "accelerate", "pytest", "clipkit.train"])


def run(work: Callable[..., Any], *args: Any, world: int = 2) -> list[Any]:
    """[work(rank, *args) of each rank]; results must be tensors in plain containers. Where the ranks do not find each
    other, which happens to gloo on a busy machine before any work is done, they are started once more."""
    try:
        return _run(work, args, world)
    except mp.ProcessRaisedException as error:
        if "connectFullMesh failed" not in str(error):
            raise
        return _run(work, args, world)


def _run(work: Callable[..., Any], args: tuple[Any, ...], world: int) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        context = (work, args, world, folder, dict(os.environ))
        mp.start_processes(_rank, context, nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(
    rank: int, work: Callable[..., Any], args: tuple[Any, ...], world: int, folder: str, environment: dict[str, str]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(work(rank, *args), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
