"""Evaluation inside of a training run: of the weights, and beside them of their average."""

from collections.abc import Iterator
from contextlib import contextmanager

from clipkit import models, parallel
from clipkit.train.log import Log
from clipkit.train.run import Run
from clipkit.train.watch import Watch


def evaluate(run: Run, log: Log, watch: Watch) -> None:
    """The tasks not yet scored at this step, on all ranks, with the weights (raw) and, where the run keeps it, their
    average (ema)."""
    kinds = ("raw", "ema") if run.ema else ("raw",)
    todo = {kind: [task for task in run.tasks if (run.step, task.name, kind) not in run.scored] for kind in kinds}
    if not any(todo.values()):
        return
    copy = parallel.whole(run.net) if parallel.is_sharded(run.net) else None
    for kind, tasks in todo.items():
        with _with(run, kind, copy) as model:
            for task in tasks:
                watch.beat(run.step, f"evaluating {task.name}", patient=True)
                log.scores(task, task.run(model, 0), kind)


@contextmanager
def _with(run: Run, kind: str, copy: models.DualEncoder | None) -> Iterator[models.DualEncoder]:
    """The model in evaluation mode with one kind of weights: the run's own, or a whole `copy` of a spread one."""
    if copy is not None:
        parallel.fill(copy, run.ema.average if run.ema and kind == "ema" else run.net.net.state_dict())
        yield copy
        return
    averaged = run.ema if kind == "ema" else None
    run.model.eval()
    if averaged:
        averaged.swap()
    yield run.net
    if averaged:
        averaged.swap()
    run.model.train()
