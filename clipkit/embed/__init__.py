"""`clipkit embed MODEL SOURCE --out VECTORS`: the embeddings of a collection on disk, by any number of processes."""

import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from clipkit import distributed, hashing, models
from clipkit.embed.job import Job
from clipkit.embed.work import Encoded, Prepared, Read, Reader, Work, encode, finish, prepare, workers_of, write
from clipkit.log import Progress
from clipkit.vectors import parts

__all__ = [
    "Encoded", "Job", "Prepared", "Read", "Reader", "Work", "embed", "encode", "finish", "prepare", "run",
    "write",
]  # fmt: skip

LOOK_S = 2.0  # between looks at what other processes have done


def embed(model: str, source: str, out: str, **options: Any) -> dict[str, Any]:
    """Embed what a source holds into the folder `out`; `options` are those of `Job`. Gives the facts of vectors.json.

    The files depend on model, source and options alone: not on the number of processes, nor on how often it was killed
    and called again. Samples that cannot be read are left out, counted and told.
    Raises: UserError when the source or the model is not to be had, or `out` is whole or of another job; BadData above
    `max_bad`.
    """
    return run(Job(model, source, out, **options))


def run(job: Job, prepared: Prepared | None = None) -> dict[str, Any]:
    """As `embed`; on all processes that a launcher started, of which the first gives the facts and the others none.

    `prepared` is what `prepare(job)` has given, where that was called before.
    """
    distributed.join()
    place, first = Path(job.out), distributed.rank() == 0
    with ExitStack() as held:
        with distributed.together():
            if first:
                held.enter_context(parts.alone(place))
            prepared = prepared or prepare(job)
        for what in parts.compared(prepared.plan):
            of = parts.WORDS.get(what, what)
            distributed.agree(f"what to embed ({of})", int(hashing.of(prepared.plan[what])[:15], 16))
        with distributed.together():
            if first:
                parts.begin(place, prepared.plan)
        with distributed.together():
            work = Work(prepared, parts.seen(place, prepared.plan))
        with distributed.together():
            _embed(work)
        with distributed.together():
            return finish(work) if first else {}


def _embed(work: Work) -> None:
    """Embed parts as long as there are any, this process its share."""
    job, model, reader = work.prepared.job, work.prepared.model, work.reader
    done: list[Encoded] = []
    left_out = work.lost
    with distributed.claims(work.parts.count) as claimed, _Bar(work) as bar:
        batches = (batch for part in claimed if not work.parts.is_done(part) for batch in work.batches(part))
        workers = workers_of(job.workers)
        found = models.pipeline(model.device, batches, reader.fetch, reader.decode, partial(encode, model), workers)
        with closing(found):
            for encoded in found:
                done.append(encoded)
                number = encoded.numbers[0] // work.parts.plan["part"]
                if encoded.numbers[-1] + 1 == work.parts.span(number).stop:
                    left_out += write(work, number, done)
                    work.refuse_bad(left_out)
                    done = []
                bar.show(sum(len(each.numbers) for each in done))


class _Bar(Progress):
    """The samples that all processes have done, as far as the folder tells."""

    def __init__(self, work: Work) -> None:
        self._parts, self._done, self._looked = work.parts, work.parts.samples_done(), time.monotonic()
        super().__init__("embed", work.parts.plan["samples"], start=self._done)

    def show(self, begun: int) -> None:
        """Besides what lies in the folder, `begun` samples of a part are done here."""
        if self.quiet:
            return
        if begun == 0 or time.monotonic() - self._looked > LOOK_S:
            self._done, self._looked = self._parts.samples_done(), time.monotonic()
        self.update(min(self._done + begun, self.total))
