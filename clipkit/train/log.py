"""What a training run tells, and the check that its numbers are still numbers."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from clipkit import checkpoint, config, distributed
from clipkit.errors import NonFinite
from clipkit.evals import Task
from clipkit.log import Progress, Rows, say
from clipkit.train.run import Run
from clipkit.train.settings import flat
from clipkit.types import Bad, Batch


class Log:
    """Progress for people, rows for metrics.jsonl, scores.jsonl and the trackers."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.progress = Progress("train", run.steps, run.step)
        self.began, self.waited, self.rows_seen = time.monotonic(), 0.0, 0
        self.bad: Rows | None = None
        self.norm: torch.Tensor | None = None
        self.samples = None
        if run.cfg.log_samples:
            self.samples = Rows(run.folder / f"samples-rank{distributed.rank()}.jsonl", run.step)
        if run.main:
            for path in [*run.folder.glob("samples-rank*.jsonl"), *run.folder.glob("bad-samples-rank*.jsonl")]:
                if int(path.stem.rpartition("rank")[2]) >= distributed.world() or path.name.startswith("bad"):
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
        self._note_bad(batch.replaced)
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
            **self._replaced(),
        }
        if len(epochs := run.stream.epochs(run.step)) > 1:
            row["epochs"] = {name: round(n, 6) for name, n in epochs.items()}
        if run.main:
            self.metrics.write(row)
        if run.cfg.log_with:
            run.accelerator.log({k: v for k, v in flat(row) if k != "step"}, step=run.step)
        text = f"loss {row['loss']:.3f}  {row['pairs_per_s']:.0f} pairs/s  data wait {row['wait_share']:.0%}"
        self.progress.update(run.step, text + (f"  {row['replaced']} samples replaced" if row["replaced"] else ""))
        self.began, self.waited, self.rows_seen, self.norm = time.monotonic(), 0.0, 0, None

    def _note_bad(self, found: list[Bad]) -> None:
        """Every unreadable sample goes to a file; some are told."""
        before = self.run.stream.guard.total.total() - len(found)
        for number, bad in enumerate(found, before + 1):
            if self.bad is None:
                name = f"bad-samples-rank{distributed.rank()}.jsonl"
                self.bad = Rows(self.run.folder / name, self.run.step)
            self.bad.write({"step": self.run.step, **bad._asdict()})
            if number <= 20 or number % 1000 == 0:
                say(f"unreadable sample {number}: {bad.sample}: {bad.reason}; another of its shard stands in for it")

    def _replaced(self) -> dict[str, Any]:
        """How many samples this start of the run has replaced, on all ranks, and why."""
        mine = {f"{source}: {reason}": n for (source, reason), n in self.run.stream.guard.total.items()}
        device = self.run.accelerator.device
        number = int(distributed.total(torch.tensor(sum(mine.values()), device=device)))
        if number == 0:
            return {"replaced": 0}
        because: Counter[str] = Counter()
        for text in distributed.gather_texts(json.dumps(mine)):
            because.update(json.loads(text))
        if self.run.step == self.run.steps:
            told = ", ".join(f"{what}: {n}" for what, n in sorted(because.items()))
            say(f"{number} unreadable samples were replaced by others of their shards ({told})")
        return {"replaced": number, "replaced_because": dict(sorted(because.items()))}

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
