"""Runs a function on two gloo ranks of this machine and gives what each returned."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(work: Callable[..., Any], *args: Any, world: int = 2) -> list[Any]:
    """[work(rank, *args) of each rank]; results must be tensors in plain containers."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (work, args, world, folder), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(rank: int, work: Callable[..., Any], args: tuple[Any, ...], world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(work(rank, *args), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
