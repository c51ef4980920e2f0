"""The parts of eval/bench/serve.py that need no long run."""

import asyncio
import importlib.util
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve import serving

BENCH = Path(__file__).parents[2] / "eval" / "bench" / "serve.py"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("serve_bench", BENCH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # dataclasses look their module up
        patch.setitem(sys.modules, "serve_bench", module)
        patch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(module)
        yield module


def test_no_text_is_asked_twice(bench: Any) -> None:
    asked = list(itertools.islice(bench.texts(0), 500)) + list(itertools.islice(bench.texts(1), 500))
    assert len(set(asked)) > 990 and all(4 <= len(text.split()) <= 10 for text in asked)


def test_clients_and_python_are_measured(bench: Any, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    index = serving.make(tmp_path)
    alone = bench.in_python(str(index), str(tmp_path / "run"), 20)
    assert (alone.clients, alone.answered, alone.errors) == (0, 20, 0) and 0 < alone.p50 <= alone.p95 <= alone.p99
    with bench.server(str(index), str(tmp_path / "run")) as (port, _):
        told = asyncio.run(bench.by_clients(port, 4, 1.0))
        assert told.answered > 0 and told.errors == 0
    gone = asyncio.run(bench.by_clients(port, 3, 1.0))
    assert (gone.answered, gone.errors) == (0, 3)


def test_percentiles_are_of_what_each_answer_took(bench: Any) -> None:
    told = bench.Told.of(8, [number / 1000 for number in range(1, 101)], 3, 2.0)
    assert (told.answered, told.errors, told.per_s) == (100, 3, 50.0)
    assert told.p50 == pytest.approx(50.5) and told.p95 == pytest.approx(95.05) and told.p99 == pytest.approx(99.01)


def test_a_missed_bar_and_an_error_are_told_in_the_verdict(bench: Any) -> None:
    good = bench.Told(0, 200, 0, 30.0, 30.0, 50.0, 60.0)
    many = bench.Told(32, 1000, 0, 90.0, 300.0, 400.0, 500.0)
    assert bench.verdict([good, many])["ok"]
    assert json.loads(json.dumps(bench.verdict([good, many])))["told"][1]["clients"] == 32
    assert not bench.verdict([bench.Told(0, 200, 0, 30.0, 60.0, 50.0, 60.0), many])["ok"]
    assert not bench.verdict([bench.Told(0, 200, 0, 30.0, 30.0, 150.0, 160.0), many])["ok"]
    assert not bench.verdict([good, bench.Told(32, 1000, 1, 90.0, 300.0, 400.0, 500.0)])["ok"]
    assert not bench.verdict([good, bench.Told.of(32, [], 0, 20.0)])["ok"]
    assert bench.table([good, many]).splitlines()[1].split()[0] == "python"
