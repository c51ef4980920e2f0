"""How long a search takes in Python, and from `clipkit serve` by 1, 8 and 32 clients.

    python eval/bench/serve.py --check
    python eval/bench/serve.py --index INDEX --model MODEL --clients 1,8,32 --seconds 20

A million rows modelled on the gap between pictures and texts (gap.py) are indexed by `clipkit index`, and asked with
words, none of them twice, by a ViT-B-32 of random weights: reading words and searching cost what they cost with any.
`python` is one search after another in a process: the text encoder, the index, the records of 24 hits. Each client of
the server, which runs in a process of its own on loopback, asks again as soon as it is answered; what is told is
measured at the clients, which share the machine with it. The bars: a search in Python has a median under 60 ms and a
95th percentile under 150 ms, and 32 clients see no error.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parent))
import gap  # noqa: E402

ROOT = Path(__file__).parents[2]
SEARCHES = 200  # in Python
HITS = 24  # of a page
BARS = {"p50": 60.0, "p95": 150.0}
"""Milliseconds of a search in Python."""
WORDS = (
    "red", "blue", "old", "small", "wooden", "bright", "quiet", "broken", "two", "many", "bicycle", "house", "dog",
    "boat", "tree", "street", "kitchen", "child", "market", "mountain", "painted", "empty", "flying", "sleeping",
    "under", "beside", "behind", "near", "with", "without", "at", "night", "in", "winter", "by", "the", "sea",
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """Searches by some clients (0: in Python): how many were answered and how many not, answers a second, and
    percentiles of the milliseconds that one took."""

    clients: int
    answered: int
    errors: int
    per_s: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, clients: int, seconds: list[float], errors: int, took: float) -> "Told":
        """Of the seconds that each answer took, all in `took` seconds."""
        ms = [1e3 * float(each) for each in np.percentile(seconds or [0.0], [50, 95, 99])]
        return cls(clients, len(seconds), errors, len(seconds) / took, *ms)


def texts(seed: int) -> Iterator[str]:
    """Queries without an end, of 4 to 10 words."""
    dice = random.Random(seed)
    while True:
        yield " ".join(dice.choices(WORDS, k=dice.randint(4, 10)))


def in_python(index: str, model: str, searches: int) -> Told:
    """One search after another in this process."""
    from clipkit.search import open_index

    opened, asked = open_index(index, model), texts(0)
    for _ in range(5):
        opened.search(next(asked), k=HITS)
    seconds, began = [], time.perf_counter()
    for _ in range(searches):
        start = time.perf_counter()
        opened.search(next(asked), k=HITS)
        seconds.append(time.perf_counter() - start)
    return Told.of(0, seconds, 0, time.perf_counter() - began)


async def by_clients(port: int, clients: int, seconds: float) -> Told:
    """So many clients at once, each with a connection of its own."""
    took, errors, ends = [], 0, time.perf_counter() + seconds
    began = time.perf_counter()

    async def client(number: int) -> None:
        nonlocal errors
        asked, writer = texts(1000 * clients + number), None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            while (start := time.perf_counter()) < ends:
                if await search(reader, writer, next(asked)) == 200:
                    took.append(time.perf_counter() - start)
                else:
                    errors += 1
        except (OSError, asyncio.IncompleteReadError):
            errors += 1
        finally:
            if writer is not None:
                writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return Told.of(clients, took, errors, time.perf_counter() - began)


async def search(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> int:
    """Ask, read the whole answer, and give its status."""
    body = json.dumps({"text": text, "k": HITS}).encode()
    head = (
        f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    writer.write(head.encode() + b"\r\n\r\n" + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    await reader.readexactly(length)
    return int(lines[0].split()[1])


@contextmanager
def server(index: str, model: str) -> Iterator[tuple[int, int]]:
    """(port, process) of `clipkit serve`; its rate is not limited, for all clients come from one address."""
    command = [sys.executable, "-m", "clipkit", "serve", index, "--model", model, "--port", "0", "--rate", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout
        address = process.stdout.readline().strip()
        if not address:
            raise SystemExit(f"the server has ended with {process.wait()}")
        try:
            yield int(address.rstrip("/").rpartition(":")[2]), process.pid
        finally:
            process.terminate()


def environment() -> dict[str, str]:
    """Of a process that runs this checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def make_model(folder: Path) -> str:
    """A run folder of a ViT-B-32 of random weights."""
    import torch

    from clipkit import checkpoint, config, models

    torch.manual_seed(0)
    model = models.create(models.Settings(arch="ViT-B-32"))
    files = {"model.safetensors": model.net.state_dict(), "model.yaml": config.to_yaml(model.spec)}
    checkpoint.save(folder, 1, files, keep=1)
    return str(folder)


def make_index(folder: Path, rows: int) -> str:
    """An index of synthetic vectors."""
    gap.write(folder / "vectors", gap.world(), rows)
    command = [sys.executable, "-m", "clipkit", "index", str(folder / "vectors"), "--out", str(folder / "index")]
    subprocess.run(command, check=True, env=environment(), stdout=sys.stderr)
    return str(folder / "index")


def table(told: list[Told]) -> str:
    """The measurements as text."""
    lines = [f"{'clients':>8}{'answered':>10}{'errors':>8}{'per s':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}"]
    for one in told:
        name = one.clients or "python"
        lines.append(
            f"{name:>8}{one.answered:>10}{one.errors:>8}{one.per_s:>8.1f}{one.p50:>9.1f}{one.p95:>9.1f}{one.p99:>9.1f}"
        )
    return "\n".join(lines)


def verdict(told: list[Told]) -> dict[str, Any]:
    """What the last line of output says; a search that failed or an answer that did not come misses the bar."""
    slow = [name for one in told if not one.clients for name, bar in BARS.items() if not getattr(one, name) < bar]
    failed = [one.clients for one in told if one.errors or not one.answered]
    return {"bench": "serve", "told": [asdict(one) for one in told], "bars": BARS, "ok": not slow and not failed}


def main(
    index: Annotated[str, typer.Option(help="An index that is there; default: one is made.")] = "",
    model: Annotated[str, typer.Option(help="A model for it; default: one of random weights is made.")] = "",
    rows: Annotated[int, typer.Option(help="Rows of the index that is made.", min=1)] = 1_000_000,
    clients: Annotated[str, typer.Option(help="Numbers of clients, with commas between.")] = "1,8,32",
    seconds: Annotated[float, typer.Option(help="Seconds for each number of clients.")] = 20.0,
    work: Annotated[str, typer.Option(help="Folder for what is made; default: a temporary one.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a bar is missed.")] = False,
    alone: Annotated[bool, typer.Option("--alone", hidden=True)] = False,
) -> None:
    """Latencies of searches, in Python and from the server."""
    if alone:
        print(json.dumps(asdict(in_python(index, model, SEARCHES))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(work or temporary)
        place.mkdir(parents=True, exist_ok=True)
        index = index or make_index(place, rows)
        model = model or make_model(place / "model")
        command = [sys.executable, __file__, "--alone", "--index", index, "--model", model]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment()).stdout
        told = [Told(**json.loads(out.splitlines()[-1]))]
        with server(index, model) as (port, process):
            asyncio.run(by_clients(port, 1, 1.0))
            told += [asyncio.run(by_clients(port, int(count), seconds)) for count in clients.split(",")]
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        peak_mb = next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    print(table(told))
    found = verdict(told)
    print(json.dumps({**found, "server_mb": round(peak_mb), "cores": os.cpu_count(), "load": os.getloadavg()}))
    raise typer.Exit(int(check and not found["ok"]))


if __name__ == "__main__":
    typer.run(main)
