"""Evaluation inside of a training run."""

from clipkit.train.log import Log
from clipkit.train.run import Run


def evaluate(run: Run, log: Log) -> None:
    """The tasks not yet scored at this step, on all ranks, with the averaged weights where the run keeps them."""
    todo = [task for task in run.tasks if (run.step, task.name) not in run.scored]
    if run.ema:
        run.ema.swap()
    run.net.eval()
    for task in todo:
        log.scores(task, task.run(run.net, 0))
    run.model.train()
    if run.ema:
        run.ema.swap()
