"""What a training run tells, and the check that its numbers are still numbers."""

import sys
import time
from collections.abc import Iterator

import torch

from clipkit import checkpoint, config, distributed
from clipkit.errors import NonFinite
from clipkit.evals import Task
from clipkit.log import Progress, Rows, say
from clipkit.train.run import Run
from clipkit.train.settings import flat
from clipkit.types import Batch


class Log:
    """Progress for people, rows for metrics.jsonl, scores.jsonl and the trackers."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.progress = Progress("train", run.steps, run.step)
        self.began, self.waited, self.rows_seen = time.monotonic(), 0.0, 0
        self.replaced: dict[str, int] = {}
        self.norm: torch.Tensor | None = None
        self.samples = None
        if run.cfg.log_samples:
            self.samples = Rows(run.folder / f"samples-rank{distributed.rank()}.jsonl", run.step)
        if run.main:
            for path in run.folder.glob("samples-rank*.jsonl"):
                if int(path.stem.removeprefix("samples-rank")) >= distributed.world():
                    Rows(path, run.step)
            checkpoint.clear_leftovers(run.folder)
            config.write_atomic(run.folder / "train.yaml", config.to_yaml(run.cfg))
            self.metrics = Rows(run.folder / "metrics.jsonl", run.step)
            self.table = Rows(run.folder / "scores.jsonl", run.step)
        if run.cfg.log_with:
            leaves = flat(config.to_tree(run.cfg))
            plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in leaves}
            run.accelerator.init_trackers(run.folder.name, plain)

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, timing how long each was waited for."""
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited += time.monotonic() - began
            yield batch

    def step(self, batch: Batch, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """One step is done."""
        run = self.run
        for reason, count in batch.replaced.items():
            self.replaced[reason] = self.replaced.get(reason, 0) + count
        if self.samples:
            self.samples.write({"step": run.step, "position": batch.position.tolist(), "keys": batch.keys})
        self.norm = norm if self.norm is None else self.norm + 0 * norm  # one NaN anywhere stays, without a sync
        self.rows_seen += run.cfg.data.batch
        if run.step % run.cfg.log_every and run.step != run.steps:
            return
        self.finite()
        seconds = max(time.monotonic() - self.began, 1e-9)
        row = {
            "step": run.step,
            "loss": distributed.mean(loss).item(),
            "lr": run.optimizer.param_groups[0]["lr"],
            "grad_norm": norm.item(),
            "scale": run.net.net.logit_scale.exp().item(),
            "pairs_per_s": self.rows_seen / seconds,
            "wait_share": self.waited / seconds,
            "replaced": int(distributed.total(torch.tensor(sum(self.replaced.values()), device=loss.device))),
        }
        if run.main:
            self.metrics.write(row)
        if run.cfg.log_with:
            run.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=run.step)
        text = f"loss {row['loss']:.3f}  {row['pairs_per_s']:.0f} pairs/s  data wait {row['wait_share']:.0%}"
        self.progress.update(run.step, text + (f"  {row['replaced']} samples replaced" if row["replaced"] else ""))
        self.began, self.waited, self.rows_seen, self.norm = time.monotonic(), 0.0, 0, None

    def finite(self, always: bool = False) -> None:
        """Raises: NonFinite when a gradient since the last call, or (`always`) a weight, is not a finite number."""
        bad = self.norm is not None and not bool(torch.isfinite(self.norm))
        if always and not bad:
            bad = not all(bool(torch.isfinite(p).all()) for p in self.run.net.parameters())
        if bad:
            raise NonFinite(
                f"{self.run.folder}: gradients or weights stopped being finite by step {self.run.step}; nothing of "
                "it was saved. Try a lower optim.lr, optim.clip=1.0, or precision=fp32"
            )

    def pause(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self.began += seconds

    def scores(self, task: Task, scores: dict[str, float]) -> None:
        """One evaluation is done."""
        run = self.run
        if run.main:
            self.table.write({"step": run.step, "task": task.name, "kind": task.kind, "scores": scores})
        if run.cfg.log_with:
            run.accelerator.log({f"{task.name}/{name}": value for name, value in scores.items()}, step=run.step)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.items() if isinstance(value, float))
        if sys.stderr.isatty() or run.step == run.steps:
            say(f"step {run.step}  {task.name}: {shown}")
