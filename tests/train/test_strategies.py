"""A run goes on from any checkpoint, whatever number of processes wrote it and however they held the weights."""

import os
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from clipkit import checkpoint, distributed, train
from clipkit.distributed import Sharding
from clipkit.errors import UserError
from clipkit.log import read_rows
from tests import making

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
SAMPLES = 50
STAGES: list[tuple[int, dict[str, str], int]] = [(2, {}, 5), (4, FSDP2, 10), (2, {}, 15), (1, {}, 20)]
"""(processes, what `accelerate launch` would tell them, the step at which they end)."""


def _train(rank: int, world: int, port: int, told: dict[str, str], recipe: str, steps: int) -> None:
    torch.set_num_threads(1)
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    for name in ("MASTER_PORT", *ranks):
        os.environ.pop(name, None)
    os.environ.update({"ACCELERATE_USE_CPU": "true", **(meet | ranks if world > 1 else {}), **told})
    train.main(recipe, [f"steps={steps}"])


def launch(world: int, told: dict[str, str], recipe: Path, steps: int) -> None:
    """What `accelerate launch` does, from a process that has imported already."""
    port = making.free_port()
    mp.start_processes(_train, (world, port, told, str(recipe), steps), nprocs=world, start_method="forkserver")


def test_a_run_changes_between_ddp_and_fsdp2_and_between_1_2_and_4_processes(tmp_path: Path) -> None:
    scored = {"suite": making.suite(tmp_path, making.shards(tmp_path / "held_out", (7, 4), first=100)), "every": 5}
    for name in ("unbroken", "changing"):
        (tmp_path / name).mkdir()
        # more steps would stretch another schedule, and a small eps make steps out of the rounding that is all the
        # gradient of attention's key biases
        rate = {"lr": 1e-3, "warmup": 5, "schedule": "constant", "eps": 1e-4}
        making.recipe(tmp_path / name, eval=scored, optim=rate, ema=0.9, save_every=5)
    launch(1, {}, tmp_path / "unbroken/recipe.yaml", 20)
    for world, told, steps in STAGES:
        launch(world, told, tmp_path / "changing/recipe.yaml", steps)
        sharded = (tmp_path / f"changing/run/checkpoints/{steps:09d}/model").is_dir()
        assert sharded == bool(told), "shards are saved as shards"

    one, other = tmp_path / "unbroken/run", tmp_path / "changing/run"
    assert making.losses(other) == pytest.approx(making.losses(one), rel=1e-5)
    assert making.samples(other) == making.samples(one)
    seen = [pair for _, pairs in sorted(making.samples(other).items()) for pair in pairs]
    assert [position for position, _ in seen] == [*range(20 * 8)], "every position once"
    for epoch in range(len(seen) // SAMPLES):
        keys = [key for position, key in seen if position // SAMPLES == epoch]
        assert Counter(keys) == Counter({f"{number:05d}": 1 for number in range(SAMPLES)})
    rows = [read_rows(run / "scores.jsonl") for run in (one, other)]
    assert [(row["step"], row["weights"]) for row in rows[0][-4:]] == [
        (20, "raw"),
        (20, "raw"),
        (20, "ema"),
        (20, "ema"),
    ]
    for a, b in zip(*rows, strict=True):
        assert (a["step"], a["task"], a["weights"]) == (b["step"], b["task"], b["weights"])
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-4)
    for name in ("model", "ema"):
        first, second = (checkpoint.tensors(run / f"checkpoints/{20:09d}/{name}.safetensors") for run in (one, other))
        for weight, x in first.items():
            torch.testing.assert_close(second[weight], x, rtol=1e-3, atol=1e-4, msg=f"{name} {weight}")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({**FSDP2, "FSDP_VERSION": "1"}, "FSDP: version 2 is needed; set `fsdp_version: 2`"),
        ({**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, "set `fsdp_offload_params: false`"),
        ({**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "and give clipkit checkpointing=true"),
        (
            {**FSDP2, "ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
            "only dp_replicate_size and dp_shard_size may be above 1",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "FSDP2 shards the same things: accelerate launch --config_file launch/"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM: not supported; use an accelerate configuration of"),
    ],
)
def test_what_clipkit_does_not_do_is_refused_before_it_starts(
    told: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(said)):
        distributed.start()


def test_how_weights_are_spread_is_read_from_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.sharding() is None
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    assert distributed.sharding() == Sharding(reshard=True, copies=1)
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "2")
    assert distributed.sharding() == Sharding(reshard=False, copies=2)
