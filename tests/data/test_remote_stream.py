"""Training from a storage that fails: every sample once, byte for byte, with less room than the set needs."""

import functools
import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from clipkit.data import Settings, open_stream
from clipkit.errors import StorageError
from clipkit.shards import files
from clipkit.shards.cache import Cache
from clipkit.shards.remote import Patience
from clipkit.types import Preprocess
from tests.samples import sample, toy_tokenizer, write_shard
from tests.shards.flaky_server import FlakyServer

SHAPE = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SHARDS, EACH, WORLD = 12, 8, 4
PATIENT = Patience(tries=12, wait_s=0.02, longest_s=0.2, stall_s=1.0)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards as a server holds them."""
    folder = tmp_path_factory.mktemp("set")
    out = {}
    for i in range(SHARDS):
        path = write_shard(folder / f"{i:03d}.tar", [sample(n) for n in range(i * EACH, (i + 1) * EACH)])
        out[f"/set/{path.name}"] = path.read_bytes()
    return out


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "Cache", functools.partial(Cache, patience=PATIENT))


def settings(place: str, **change: Any) -> Settings:
    usual: dict[str, Any] = {"train": place, "batch": 16, "workers": 0, "window": 24, "lanes": 2}
    return Settings(**{**usual, **change})


def read(place: str, rank: int, world: int, out: Path | None = None, **change: Any) -> list[tuple[str, str]]:
    """(key, hash of the picture and its tokens) of this rank's samples of one epoch."""
    stream = open_stream(settings(place, **change), toy_tokenizer(), SHAPE, 5, rank, world)
    seen = []
    for batch in stream.batches(0, SHARDS * EACH // 16):
        assert not batch.replaced, batch.replaced
        for i, key in enumerate(batch.keys):
            text = batch.text[i].numpy()
            seen.append((key, hashlib.sha1(batch.images[i].numpy().tobytes() + text[text > 0].tobytes()).hexdigest()))
    if out:
        out.write_text(json.dumps(seen))
    return seen


def test_four_ranks_read_every_sample_once_from_a_failing_server_through_a_small_cache(
    bodies: dict[str, bytes], tmp_path: Path, cache: Path
) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for name, data in bodies.items():
        (local / Path(name).name).write_bytes(data)
    wanted = read(str(local), 0, 1)
    gigabytes = 4.5 * max(map(len, bodies.values())) / 1e9  # of twelve shards
    with FlakyServer(bodies, share=0.3, stall_s=0.3) as server:
        place = f"{server.url}/set/{{000..{SHARDS - 1:03d}}}.tar"
        fork = multiprocessing.get_context("fork")
        ranks = [
            fork.Process(
                target=read,
                args=(place, r, WORLD, tmp_path / f"{r}.json"),
                kwargs={"cache_gb": gigabytes, "workers": r % 2},
            )
            for r in range(WORLD)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
        assert [rank.exitcode for rank in ranks] == [0] * WORLD
        assert sum(server.faults.values()) > 5
    found = [tuple(one) for r in range(WORLD) for one in json.loads((tmp_path / f"{r}.json").read_text())]
    assert sorted(found) == sorted(wanted) and len({key for key, _ in found}) == SHARDS * EACH
    kept = [path for path in (cache / "clipkit" / "shards").iterdir() if path.is_file()]
    assert not [path for path in kept if path.name.startswith(".") and "lock" not in path.name]
    assert 0 < sum(path.stat().st_size for path in kept) <= gigabytes * 1e9


def test_counts_that_img2dataset_wrote_spare_the_first_reading_of_every_shard(bodies: dict[str, bytes]) -> None:
    stats = {name.replace(".tar", "_stats.json"): json.dumps({"successes": EACH}).encode() for name in bodies}
    with FlakyServer({**bodies, **stats}) as server:
        place = f"{server.url}/set/{{000..{SHARDS - 1:03d}}}.tar"
        stream = open_stream(settings(place), toy_tokenizer(), SHAPE, 5, 0, 1)
        assert len(stream) == SHARDS * EACH
        assert sum(n for (method, path), n in server.asked.items() if method == "GET" and path.endswith(".tar")) < 3
        keys = [key for batch in stream.batches(0, SHARDS * EACH // 16) for key in batch.keys]
    assert sorted(keys) == [f"{n:05d}" for n in range(SHARDS * EACH)]


def test_a_count_that_claims_too_much_is_met_as_unreadable_samples(bodies: dict[str, bytes]) -> None:
    name, data = next(iter(bodies.items()))
    stats = {name.replace(".tar", "_stats.json"): json.dumps({"successes": EACH + 2}).encode()}
    with FlakyServer({name: data, **stats}) as server:
        stream = open_stream(settings(f"{server.url}{name}", batch=EACH + 2, lanes=1), toy_tokenizer(), SHAPE, 5, 0, 1)
        batch = next(iter(stream.batches(0, 1)))
    assert len(stream) == EACH + 2 and {bad.reason for bad in batch.replaced} == {"fewer samples than claimed"}
    assert len(batch.replaced) >= 2 and {key for key in batch.keys} <= {f"{n:05d}" for n in range(EACH)}


def test_a_shard_that_is_gone_ends_the_run_with_its_address(
    bodies: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    with FlakyServer(dict(bodies)) as server:
        place = f"{server.url}/set/{{000..{SHARDS - 1:03d}}}.tar"
        open_stream(settings(place), toy_tokenizer(), SHAPE, 5, 0, 1)  # indexes all, and keeps the copies
        for path in Cache().folder.glob("*.tar"):
            path.unlink()
        del server.files["/set/003.tar"]
        stream = open_stream(settings(place, workers=1), toy_tokenizer(), SHAPE, 5, 0, 1)
        with pytest.raises(StorageError, match=r"/set/003.tar: is not there; check the name"):
            list(stream.batches(0, SHARDS * EACH // 16))
