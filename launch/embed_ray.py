"""`clipkit embed` on a Ray cluster: tasks on CPUs read and decode, an actor on each GPU embeds, this process writes.

python launch/embed_ray.py MODEL SOURCE --out VECTORS    (options as of `clipkit embed`; pip install 'clipkit[ray]')
ray job submit --address http://HEAD:8265 --working-dir launch -- python embed_ray.py MODEL SOURCE --out VECTORS

It writes the files that `clipkit embed` writes, and what was stopped goes on when the same is typed again. Every node
must have clipkit and see MODEL and SOURCE; VECTORS is for this process alone. A submitted job needs absolute paths: it
runs in a copy of the working directory, which Ray removes. Without GPUs each CPU does both.
Ray Data rather than bare tasks: it holds the decoding back while the GPUs are behind, and outlives nodes that go.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from clipkit import embed, errors, models
from clipkit.cli.embed import embed as command
from clipkit.cli.embed import told as told_of
from clipkit.embed.work import Prepared, prepare
from clipkit.errors import ClipkitError, UserError
from clipkit.log import Progress
from clipkit.vectors import parts

BLOCKS = 10_000
"""How many pieces Ray Data is given at most: it keeps an eye on each."""
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What `ray job submit` sets where it starts this."""
OTHERWISE = "a node computes otherwise than the one that began: another device, precision, or version of a package"
Row = dict[str, Any]


def told(work: Callable[[], Any], here: str) -> Any:
    """What `work` gives on some node, where relative paths mean what they mean here; or the expected error that it
    raises: Ray would hand on its text alone, without its kind."""
    with suppress(OSError):
        os.chdir(here)
    try:
        return work()
    except ClipkitError as error:
        return error


def prepared(job: embed.Job) -> Prepared:
    """What a job comes to where it is computed; without the model, which every actor loads for itself."""
    return replace(prepare(job), model=None)  # type: ignore[arg-type]


def read(row: Row, reader: embed.Reader, here: str) -> Row:
    """A batch of samples, read and decoded, on any CPU."""
    return {**row, "found": told(lambda: reader.read(range(row["start"], row["stop"])), here)}


class Encoder:
    """The model, on a GPU where the actor has one: batches to rows."""

    def __init__(self, name: str, made_by: str, here: str) -> None:
        self.here, self.model = here, told(lambda: self._loaded(name, made_by), here)

    def _loaded(self, name: str, made_by: str) -> models.DualEncoder:
        named = models.Named(name)
        if named.digest != made_by:
            raise UserError(f"{name}: {OTHERWISE}")
        if named.device.type == "cpu":
            torch.set_num_threads(1)  # as each of `clipkit embed`: how sums are rounded depends on it
        return named.model

    def __call__(self, row: Row) -> Row:
        failed = next((x for x in (row["found"], self.model) if isinstance(x, ClipkitError)), None)
        return {**row, "found": failed or told(lambda: embed.encode(self.model, row["found"]), self.here)}


def embedded(work: embed.Work, batches: list[Row], gpus: int, cpus: int) -> Iterator[Row]:
    """The batches with the rows that were `found`, as they are done.

    Raises: the ClipkitError that one ended with.
    """
    import ray.data

    plan, here = work.prepared.plan, os.getcwd()
    actors = ray.data.ActorPoolStrategy(min_size=1, max_size=max(gpus or cpus, 1))
    device = {"num_gpus": 1} if gpus else {"num_cpus": 1}
    blocks = ray.data.from_items(batches, override_num_blocks=min(len(batches), BLOCKS))
    decoded = blocks.map(read, fn_args=(work.reader, here), num_cpus=1)
    arguments = (work.prepared.job.model, plan["made_by"], here)
    for row in decoded.map(Encoder, fn_constructor_args=arguments, compute=actors, **device).iter_rows():
        if isinstance(row["found"], ClipkitError):
            raise row["found"]
        yield row


def connected() -> Any:
    """Ray, as part of the cluster that RAY_ADDRESS names, or of one that begins on this machine.

    Raises: UserError without Ray, or where no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # where it starts a cluster of its own: no telemetry
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("embed_ray: needs Ray; type: pip install 'clipkit[ray]'") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"at RAY_ADDRESS={os.environ['RAY_ADDRESS']}" if os.environ.get("RAY_ADDRESS") else "on this machine"
        raise UserError(f"embed_ray: no Ray cluster {where} ({str(error).splitlines()[0]})") from error
    return ray


def run(job: embed.Job) -> dict[str, Any]:
    """Embed what is missing on the cluster that RAY_ADDRESS names, or on this machine; the facts of vectors.json.

    Raises: as `embed.run`, and UserError without Ray, or where nodes differ in what decides the numbers.
    """
    place = Path(job.out)
    if SUBMITTED in os.environ and not place.is_absolute():
        raise UserError(f"--out {place}: an absolute path is needed: this job runs in a folder that Ray will remove")
    with parts.alone(place):
        ray = connected()
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        begin = ray.remote(told).options(num_gpus=1 if gpus else 0)
        found = ray.get(begin.remote(functools.partial(prepared, job), os.getcwd()))
        if isinstance(found, ClipkitError):
            raise found
        work = embed.Work(found, parts.begin(place, found.plan))
        spans = {part: work.batches(part) for part in work.missing()}
        batches = [{"part": part, "start": span.start, "stop": span.stop} for part in spans for span in spans[part]]
        if batches:
            write(work, spans, embedded(work, batches, gpus, cpus))
        return embed.finish(work)


def write(work: embed.Work, spans: dict[int, list[range]], found: Iterator[Row]) -> None:
    """Write each part when its last batch has come, whatever the order they come in."""
    open_parts: dict[int, dict[int, embed.Encoded]] = {}
    left_out = work.lost
    samples = work.prepared.plan["samples"]
    done = samples - sum(len(span) for part in spans.values() for span in part)
    with Progress("embed", samples, start=done) as bar:
        for row in found:
            batches = open_parts.setdefault(row["part"], {})
            batches[row["start"]] = row["found"]
            if len(batches) == len(spans[row["part"]]):
                left_out += embed.write(work, row["part"], [batches[start] for start in sorted(batches)])
                work.refuse_bad(left_out)
                del open_parts[row["part"]]
            done += row["stop"] - row["start"]
            bar.update(done)


@functools.wraps(command)
def main(**options: Any) -> None:
    job = embed.Job(**options)
    print(told_of(job.out, run(job)))


if __name__ == "__main__":
    errors.guard(lambda: typer.run(main))
