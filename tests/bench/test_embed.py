"""eval/bench/embed.py at a size that says nothing about speed: both sides make the same rows."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import making, samples

BENCH = making.ROOT / "eval" / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH))  # as Python does for the script
    yield importlib.import_module("embed")
    sys.path.remove(str(BENCH))


def test_the_same_pictures_are_laid_for_both_sides(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for shard in range(2):
        several = map(samples.sample, range(5 * shard, 5 * shard + 5))
        samples.write_shard(tmp_path / f"data/{shard}.tar", several)
    assert bench.lay(tmp_path, tmp_path / "data", 7) == 7
    from clipkit.shards import Shards

    held = Shards(str(tmp_path / "shards"))
    files = sorted((tmp_path / "files").iterdir())
    assert [held.image(n) for n in range(7)] == [path.read_bytes() for path in files]


def test_both_sides_make_the_same_rows(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    samples.write_shard(tmp_path / "data/0.tar", map(samples.sample, range(3)))
    assert bench.lay(tmp_path, tmp_path / "data", 9) == 3
    model = bench.parity.untrained(tmp_path, "ViT-S-32-alt")
    rows = {name: bench.side(name, model, tmp_path, 2) for name in ("loop0", "exact")}
    assert all(seconds > 0 for seconds, _ in rows.values())
    assert abs(rows["loop0"][1] - rows["exact"][1]).max() <= bench.EQUAL


def test_the_bars_are_the_pictures_a_second_and_the_rows(bench: Any) -> None:
    seconds = {"loop0": [3.0, 3.1, 9.0], "loop1": [4.0] * 3, "loop2": [5.0] * 3, "exact": [2.0] * 3, "fast": [1.0] * 3}
    found = {"seconds": seconds, "apart": 1e-6, "cosine": 0.999}
    told = bench.verdict(found, 60)
    assert told["ok"] and told["faster"]["exact"] == 1.55 and told["pictures_per_s"]["fast"] == 60.0
    assert not bench.verdict({**found, "apart": 2e-5}, 60)["ok"]
    assert not bench.verdict({**found, "seconds": {**seconds, "exact": [2.2] * 3}}, 60)["ok"]
