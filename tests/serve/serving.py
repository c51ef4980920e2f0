"""A small index with its model, the application over it, and a server of it in a process of its own."""

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit import models, shards
from clipkit.index.build import build
from tests import making, samples

COUNT = 30
SECRET = "the secret beside the index"
SERVE = (
    "import json, sys; from clipkit.errors import guard; from clipkit.serve import serve; "
    "from clipkit.serve.limits import Limits; more = json.loads(sys.argv[2]); "
    "guard(lambda: serve(sys.argv[1], port=0, limits=Limits(**more.pop('limits', {})), **more))"
)


def make(folder: Path, count: int = COUNT, captions: Callable[[int], str] | None = None) -> Path:
    """An index of `count` coloured shapes in a shard, by an untrained model; a text file with a secret lies beside."""
    data = making.shards(folder / "data", (count,))
    model, source = models.load(making.saved(folder)), shards.open_source(str(data))
    found = [shards.record(source, number) for number in range(count)]
    for number, record in enumerate(found):
        record["caption"] = captions(number) if captions else record["caption"]
        record |= {"image_path": record["key"], "width": 48, "height": 40, "number": number, "half": number / 2}
        record["colour"] = samples.COLORS[number % len(samples.COLORS)]
    image = np.concatenate([rows.numpy() for _, rows, _ in models.embed_images(model, source, range(count))])
    text = models.embed_texts(model, [record["caption"] for record in found]).numpy()
    place = folder / "vectors"
    for name, rows in (("img_emb", image), ("text_emb", text)):
        (place / name).mkdir(parents=True)
        np.save(place / name / f"{name}_000000.npy", rows)
    (place / "metadata").mkdir()
    pq.write_table(pa.Table.from_pylist(found), place / "metadata" / "metadata_000000.parquet")
    named = models.Named(str(folder / "run"))
    (place / "vectors.json").write_text(json.dumps({"model": named.name, "digest": named.identity, "rows": count}))
    build(place, folder / "index", engine="flat")
    (folder / "secret.txt").write_text(SECRET)
    return folder / "index"


def client(app: Any, **more: Any) -> Any:
    """An httpx client of an application, without a network."""
    httpx = pytest.importorskip("httpx")
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost", **more)


def asked(app: Any, method: str, path: str, **more: Any) -> Any:
    """The response to one request."""

    async def ask() -> Any:
        async with client(app) as asking:
            return await asking.request(method, path, **more)

    return asyncio.run(ask())


def picture(number: int) -> bytes:
    """The JPEG of a row of `make`."""
    return making.picture(number)[0]


def encoded(data: bytes) -> str:
    """In base64."""
    return base64.b64encode(data).decode()


@dataclass
class Server:
    """A server that runs."""

    address: str
    process: "subprocess.Popen[str]"
    told: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.address.split("/")[2].rpartition(":")[2])

    def mb(self) -> float:
        """Megabytes of its memory that are not shared."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000

    def stderr(self) -> str:
        """What it has told."""
        return self.told.read_text()


@contextmanager
def running(index: Path, **more: Any) -> Iterator[Server]:
    """A server with these arguments of `serve`, `limits` as a dict; it is ended at the end."""
    told = index.parent / f"stderr-{len(list(index.parent.glob('stderr-*')))}.txt"
    command = [sys.executable, "-c", SERVE, str(index), json.dumps(more)]
    with told.open("w") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, text=True, env=making.environment(), cwd=making.ROOT
        )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, told.read_text()
        yield Server(address, process, told)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
