"""Everything a training step touches, put together from settings and the newest checkpoint."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from clipkit import checkpoint, data, distributed, evals, models, objectives, optim, parallel
from clipkit.errors import UserError
from clipkit.log import read_rows, say
from clipkit.models.speed import speed_up
from clipkit.train.copies import newest
from clipkit.train.health import Health
from clipkit.train.settings import Settings, refuse_other, total_steps


@dataclass
class Run:
    """The state of a training run: `step` steps are done, (step, task, weights) of `scored` are evaluated, and `stop`
    names the signal that asks it to end. `model` is what trains: `net`, as the ranks hold it together, `chunk` of a
    rank's pairs at once (None: all; auto: to be found)."""

    cfg: Settings
    accelerator: Any
    net: models.DualEncoder
    model: torch.nn.Module
    objective: objectives.Objective
    optimizer: torch.optim.Optimizer
    stream: data.Stream
    steps: int
    tasks: list[evals.Task]
    ema: models.Ema | None = None
    step: int = 0
    scored: set[tuple[int, str, str]] = field(default_factory=set)
    stop: str = ""
    chunk: int | str | None = None
    health: Health = field(default_factory=Health)

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.cfg.run)

    @property
    def main(self) -> bool:
        """Is this the process that writes?"""
        return self.accelerator.is_main_process


def prepare(cfg: Settings, accelerator: Any) -> Run:
    """All parts of the run, from its newest checkpoint if it has one; the cheap checks come first."""
    folder = Path(cfg.run)
    if len(getattr(accelerator, "log_with", [])) < len(cfg.log_with):
        raise UserError(f"log_with: a tracker of {cfg.log_with} is not installed, or not known to Accelerate")
    place = newest(cfg, accelerator.is_main_process)
    if place:
        refuse_other(cfg, place / "train.yaml")
    tasks = evals.suite(cfg.eval.suite, Path(cfg.eval.root)) if cfg.eval.suite else []
    torch.manual_seed(cfg.seed)
    objective = objectives.build(cfg.objective)  # type: ignore[arg-type]
    net = models.create(cfg.model, objective.scale_init, objective.bias_init)
    if (cfg.chunk or accelerator.num_processes > 1) and any(isinstance(m, _BatchNorm) for m in net.modules()):
        raise UserError(
            f"model.arch={cfg.model.arch}: normalises over the batch, which no split of it (chunk, processes) computes "
            "exactly; train it in one process without chunk, or choose an architecture without batch normalisation"
        )
    data.check_stages(cfg.data.stages, net.tokenizer, net.patch)
    with distributed.together():
        stream = data.open_stream(
            cfg.data, net.tokenizer, net.shape, cfg.seed, accelerator.process_index, accelerator.num_processes
        )
    steps = total_steps(cfg, len(stream))
    net.to(accelerator.device)
    wanted = {"bf16": torch.bfloat16, "fp32": torch.float32}
    net.dtype = wanted.get(cfg.precision) or distributed.best_dtype(accelerator.device)
    speed_up(net, cfg.compile if cfg.compile != "auto" else accelerator.device.type == "cuda", cfg.checkpointing)
    model = parallel.wrap(net, distributed.sharding())
    optimizer = optim.build(cfg.optim, net.net)  # over the shards, where `wrap` has put them in the weights' place
    ema = models.Ema(net.net, cfg.ema) if cfg.ema else None
    run = Run(cfg, accelerator, net, model, objective, optimizer, stream, steps, tasks, ema, chunk=cfg.chunk)
    if place:
        run.step = stream.resume(checkpoint.facts(place / "data.json"))
        if (kept := place / "survival.json").is_file():  # older checkpoints have none
            run.health = Health.of(checkpoint.facts(kept))
        restore(run, place)
        if cfg.chunk == "auto" and (kept := place / "chunk.json").is_file():
            found = checkpoint.facts(kept)  # another chunk would round otherwise
            run.chunk = found["chunk"] if found["world"] == accelerator.num_processes else cfg.chunk
        # read by one, since file systems show the nodes different ages of a file, and all must evaluate the same
        mine = read_rows(folder / "scores.jsonl") if run.main else []
        rows = json.loads(distributed.gather_texts(json.dumps(mine))[0])
        before = "ema" if ema else "raw"  # the only weights that rows told of when they did not say
        done = [row for row in rows if row["step"] <= run.step]  # later ones come again
        run.scored = {(row["step"], row["task"], row.get("weights", before)) for row in done}
        say(f"{folder}: resumed at step {run.step}")
    facts = run.step, steps, stream.fingerprint
    distributed.agree("step, steps or shards; do all nodes see the run folder and the data?", *facts)
    _introduce(run)
    return run


def restore(run: Run, place: Path) -> None:
    """Put back the weights, moments and averages of a checkpoint, however many ranks have written it and whether they
    held whole weights or shards; of shards a rank reads its own.

    Raises: StorageError where the files are damaged.
    """
    net, weights = run.net.net, dict(run.net.net.named_parameters())
    net.load_state_dict(checkpoint.tensors(place / "model.safetensors", net.state_dict().get))
    moments = checkpoint.tensors(place / "optim.safetensors", lambda key: weights.get(key.partition("/")[2]))
    optim.load_state(run.optimizer, net, moments)
    if run.ema:
        run.ema.load(checkpoint.tensors(place / "ema.safetensors", run.ema.average.get))


def _introduce(run: Run) -> None:
    """One line that says what is about to run, before hours of it."""
    weights = sum(p.numel() for p in run.net.parameters())
    ranks, device = run.accelerator.num_processes, run.accelerator.device.type
    where = f"{device}, {str(run.net.dtype).removeprefix('torch.')}"
    if ranks > 1:
        where += f", {ranks} processes ({'FSDP2' if parallel.is_sharded(run.net) else 'DDP'})"
    say(
        f"{run.folder}: {weights / 1e6:.1f} M parameters on {where}; {run.steps} steps of {run.cfg.data.batch} pairs "
        f"from {len(run.stream):,} samples, {run.steps * run.cfg.data.batch / len(run.stream):.1f} epochs"
    )
    if run.cfg.optim.warmup >= run.steps:
        say(f"optim.warmup: {run.cfg.optim.warmup} of {run.steps} steps: the rate never reaches optim.lr")
