"""The parts of eval/bench/gap.py and index.py that need no long run."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clipkit import index
from clipkit.vectors import Vectors

BENCH = Path(__file__).parents[2] / "eval" / "bench"


@pytest.fixture(scope="module")
def benches() -> Iterator[tuple[ModuleType, ModuleType]]:
    """(gap, index)."""
    with pytest.MonkeyPatch.context() as patch:  # dataclasses look their module up
        patch.setattr(sys, "path", list(sys.path))
        made = []
        for name in ("gap", "index"):
            spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
            made.append(module)
        yield made[0], made[1]


@pytest.fixture(scope="module")
def small(benches: tuple[ModuleType, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 3,000 pictures of width 64."""
    gap, _ = benches
    folder = tmp_path_factory.mktemp("gap") / "3000" / "vectors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gap, "BLOCK", 1300)
        gap.write(folder, gap.world(64, 300, 20), 3000, captioned=0.2)
    return folder


def test_pictures_and_texts_lie_apart_as_measured(benches: tuple[ModuleType, ModuleType]) -> None:
    gap, _ = benches
    world, dice = gap.world(256, 3000, 100), np.random.default_rng(3)
    image = gap.pictures(world, gap.concepts_of(world, 1500, dice), dice)
    text = gap.texts(world, gap.concepts_of(world, 1500, dice), dice)
    for rows in (image, text):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    apart = np.triu_indices(1500, 1)
    assert (image @ image.T)[apart].mean() == pytest.approx(0.51, abs=0.03)
    assert (image @ text.T).mean() == pytest.approx(0.08, abs=0.02)
    spread = np.linalg.svd(image - image.mean(0), compute_uv=False) ** 2
    needed = int(np.searchsorted(np.cumsum(spread) / spread.sum(), 0.9)) + 1
    assert 0.5 < needed / 256 < 0.75


def test_a_text_is_nearer_to_pictures_of_its_concept(benches: tuple[ModuleType, ModuleType]) -> None:
    gap, _ = benches
    world, dice = gap.world(256, 3000, 100), np.random.default_rng(3)
    of = np.arange(500)
    image, text = gap.pictures(world, of, dice), gap.texts(world, of, dice)
    own, any_ = np.einsum("nd,nd->n", image, text), (image @ text.T).mean()
    assert 0.1 < own.mean() - any_ < 0.3


def test_the_collection_is_the_same_each_time_and_a_part_of_it_has_captions(
    benches: tuple[ModuleType, ModuleType], small: Path, tmp_path: Path
) -> None:
    gap, _ = benches
    opened = Vectors(small)
    assert len(opened) == 3000 and opened.width == 64 and opened.kinds == ("image", "text")
    texts = opened.take("text", np.arange(3000)).any(1)
    assert texts.sum() == 600 and [bool(caption) for caption in opened.column("caption")] == texts.tolist()
    gap.write(tmp_path / "again", gap.world(64, 300, 20), 1000, captioned=0.2)
    again = Vectors(tmp_path / "again")
    gap.write(tmp_path / "more", gap.world(64, 300, 20), 1000, captioned=0.2)
    np.testing.assert_array_equal(
        again.take("image", np.arange(1000)), Vectors(tmp_path / "more").take("image", np.arange(1000))
    )


def test_the_sides_tell_recall_speed_and_filters(
    benches: tuple[ModuleType, ModuleType], small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gap, bench = benches
    world = gap.world(64, 300, 20)
    monkeypatch.setattr(gap, "world", lambda: world)
    monkeypatch.setattr(bench, "QUERIES", 40)
    monkeypatch.setattr(bench, "ALONE", 3)
    monkeypatch.setattr(bench, "PICTURES", 20)
    index.build(small, tmp_path / "i", kinds=["image"])
    told = bench.clipkit_side(small, tmp_path / "i")
    assert told["text"] == told["image"] == 1  # so few rows are compared one by one
    assert all(told[f"filter {name}"] == 1 for name in bench.FILTERS)
    assert told["qps"] > 0 and told["metadata_ms"] > 0
    exact = bench.faiss_side(small, tmp_path / "none")
    assert exact["text"] == exact["image"] == 1
    alone = bench.faiss_side(small, tmp_path / "i" / "image.index")
    assert alone["text"] == 1
    assert len(list(small.parent.glob("truth-*.npy"))) == 2 + len(bench.FILTERS)


def case(**changes: Any) -> dict[str, Any]:
    good = {
        "rows": 1_000_000, "side": "clipkit", "mb": 584.0, "build_s": 50.0, "text": 0.96, "image": 0.98, "ms": 10.0,
        "qps": 250.0, "metadata_ms": 0.7, "filter 50%": 0.96, "filter 10%": 0.96, "filter 1%": 0.98,
        "filter 0.1%": 0.98,
    }  # fmt: skip
    return {**good, **changes}


def test_missed_bars_are_named(benches: tuple[ModuleType, ModuleType]) -> None:
    _, bench = benches
    exact = {**case(side="exact", qps=71.0), "mb": 2048.0}
    cases = bench.with_speedup([case(), exact])
    assert cases[0]["speedup"] == pytest.approx(250 / 71) and bench.missed(cases[0]) == [] and bench.missed(exact) == []
    assert bench.missed(case()) == ["speedup"]  # not measured
    bad = case(text=0.94, ms=15.1, mb=651.0, build_s=61.0, metadata_ms=2.0, speedup=2.9, **{"filter 1%": 0.94})
    assert bench.missed(bad) == ["text", "ms", "mb", "build_s", "metadata_ms", "speedup", "filter 1%"]
    assert bench.missed(case(rows=3_000_000, ms=40.0)) == []
    assert bench.missed(case(rows=3_000_000, text=0.9, tuned={"met": True})) == ["text"]
    assert bench.missed(case(rows=3_000_000, text=0.9, tuned={"met": False})) == []
    assert bench.missed(case(rows=3_000_000, budget_mb=4000.0, peak_mb=4001.0)) == ["peak_mb"]
    assert json.dumps(cases) and bench.table(cases).splitlines()[1].split()[:4] == ["1000000", "clipkit", "584", "50.0"]


def test_a_process_tells_its_cpu_and_memory(benches: tuple[ModuleType, ModuleType]) -> None:
    _, bench = benches
    told, seconds, peak = bench.run([sys.executable, "-c", "print(len(bytearray(50_000_000)))"], 1)
    assert told == "50000000\n" and seconds > 0 and peak > 50
    with pytest.raises(SystemExit, match="ended with 3"):
        bench.run([sys.executable, "-c", "raise SystemExit(3)"], 1)
