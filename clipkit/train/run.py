"""Everything a training step touches, put together from settings and the newest checkpoint."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from clipkit import checkpoint, data, distributed, evals, models, objectives, optim
from clipkit.errors import UserError
from clipkit.log import read_rows, say
from clipkit.train.settings import Settings, refuse_other, total_steps


@dataclass
class Run:
    """The state of a training run: `step` steps are done, (step, task) of `scored` are evaluated, and `stop` names the
    signal that asks it to end."""

    cfg: Settings
    accelerator: Any
    net: models.DualEncoder
    model: torch.nn.Module
    objective: objectives.Objective
    optimizer: torch.optim.AdamW
    stream: data.Stream
    steps: int
    tasks: list[evals.Task]
    ema: models.Ema | None = None
    step: int = 0
    scored: set[tuple[int, str]] = field(default_factory=set)
    stop: str = ""

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
    place = checkpoint.newest(folder, say)
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
    stream = data.open_stream(
        cfg.data, net.tokenizer, net.shape, cfg.seed, accelerator.process_index, accelerator.num_processes
    )
    steps = total_steps(cfg, len(stream))
    if place:
        net.net.load_state_dict(checkpoint.tensors(place / "model.safetensors"))
    net.to(accelerator.device)
    wanted = {"bf16": torch.bfloat16, "fp32": torch.float32}
    net.dtype = wanted.get(cfg.precision) or distributed.best_dtype(accelerator.device)
    optimizer = optim.build(cfg.optim, net.net)
    ema = models.Ema(net.net, cfg.ema) if cfg.ema else None
    model = accelerator.prepare_model(net)
    run = Run(cfg, accelerator, net, model, objective, optimizer, stream, steps, tasks, ema)
    if place:
        run.step = stream.resume(checkpoint.facts(place / "data.json"))
        optim.load_state(optimizer, net.net, checkpoint.tensors(place / "optim.safetensors"))
        if ema:
            ema.load(checkpoint.tensors(place / "ema.safetensors"))
        rows = read_rows(folder / "scores.jsonl")
        run.scored = {(row["step"], row["task"]) for row in rows if row["step"] <= run.step}  # later ones come again
        say(f"{folder}: resumed at step {run.step}")
    facts = run.step, steps, stream.fingerprint
    distributed.agree("step, steps or shards; do all nodes see the run folder and the data?", *facts)
    _introduce(run)
    return run


def _introduce(run: Run) -> None:
    """One line that says what is about to run, before hours of it."""
    weights = sum(p.numel() for p in run.net.parameters())
    ranks, device = run.accelerator.num_processes, run.accelerator.device.type
    where = f"{device}, {str(run.net.dtype).removeprefix('torch.')}" + (f", {ranks} processes" if ranks > 1 else "")
    say(
        f"{run.folder}: {weights / 1e6:.1f} M parameters on {where}; {run.steps} steps of {run.cfg.data.batch} pairs "
        f"from {len(run.stream):,} samples, {run.steps * run.cfg.data.batch / len(run.stream):.1f} epochs"
    )
