"""FAISS indexes find what sorting the products of their rows finds, among all rows and among some."""

from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import StorageError, UserError
from clipkit.vectors import engine, exact
from clipkit.vectors.engine import Engine, Knobs
from tests.vectors import laying

N, K = 600, 5
KINDS = {
    "Flat": Knobs(),
    "IVF4,Flat": Knobs(nprobe=4),
    "OPQ8,IVF4,Flat": Knobs(nprobe=4),
    "IVF4,PQ8x4fs,Refine(SQ8)": Knobs(nprobe=4, candidates=N, k=K),
    "IVF4,PQ8x4fs,Refine(Flat)": Knobs(nprobe=4, candidates=N, k=K),
    "OPQ8,IVF4,PQ8x4fs,Refine(Flat)": Knobs(nprobe=4, candidates=N, k=K),
    "HNSW16": Knobs(ef=N),
}


def made(factory: str, rows: np.ndarray) -> Engine:
    index = engine.make(factory, rows.shape[1], lambda count: rows[:count])
    engine.fill(index, [(0, rows[:100]), (100, rows[100:])])
    return Engine(index, KINDS.get(factory, Knobs()))


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return {factory: made(factory, laying.rows(N)) for factory in KINDS}


@pytest.mark.parametrize("factory", KINDS)
@pytest.mark.parametrize("share", [None, 0.5, 0.02])
def test_what_looks_at_all_rows_finds_the_nearest(
    engines: dict[str, Engine], factory: str, share: float | None
) -> None:
    one, queries, rows = engines[factory], laying.rows(20, 1), laying.rows(N)
    allowed = None if share is None else np.random.default_rng(0).random(N) < share
    shown = rows if allowed is None else rows * allowed[:, None]
    scores, true = exact.nearest(queries, [(0, shown)], K)
    searches = [one.search(queries, K, allowed)] + ([] if allowed is None else [one.finest(queries, K, allowed)])
    for found_scores, found in searches:
        assert exact.recall(found, true).mean() >= (0.97 if "SQ8" in factory else 1.0)
        np.testing.assert_allclose(found_scores[:, 0], scores[:, 0], atol=0.02 if "SQ8" in factory else 1e-5)


@pytest.mark.parametrize("factory", KINDS)
def test_missing_answers_are_told_by_minus_one(engines: dict[str, Engine], factory: str) -> None:
    allowed = np.zeros(N, bool)
    allowed[[3, 500]] = True
    for scores, numbers in (
        engines[factory].search(laying.rows(2, 1), K, allowed),
        engines[factory].finest(laying.rows(2, 1), K, allowed),
    ):
        assert numbers.shape == scores.shape == (2, K)
        assert all(sorted(row[:2].tolist()) == [3, 500] for row in numbers)
        assert (numbers[:, 2:] == -1).all() and np.isneginf(scores[:, 2:]).all()


@pytest.mark.parametrize("factory", KINDS)
def test_rows_come_back_and_the_file_gives_the_same_index(
    engines: dict[str, Engine], factory: str, tmp_path: Path
) -> None:
    one, numbers = engines[factory], np.array([599, 0, 7])
    np.testing.assert_allclose(one.rows(numbers), laying.rows(N)[numbers], atol=0.02 if "SQ8" in factory else 1e-5)
    assert one.rows(numbers[:0]).shape == (0, laying.WIDTH)
    engine.write(one.index, tmp_path / "x.index")
    for mapped in (True, False):
        again = Engine(engine.read(tmp_path / "x.index", mapped), one.knobs)
        assert (len(again), again.width, again.lists, again.graph) == (N, laying.WIDTH, one.lists, one.graph)
        for found, wanted in zip(again.search(laying.rows(9, 1), K), one.search(laying.rows(9, 1), K), strict=True):
            np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(again.rows(numbers), one.rows(numbers))


def test_fewer_lists_find_less_and_a_choice_of_rows_widens_them(engines: dict[str, Engine]) -> None:
    one, queries = engines["IVF4,Flat"], laying.rows(50, 1)
    _, true = exact.nearest(queries, [(0, laying.rows(N))], K)
    recalls = [exact.recall(one.search(queries, K, knobs=Knobs(nprobe=n))[1], true).mean() for n in (1, 2, 4)]
    assert recalls[0] < recalls[1] < recalls[2] == 1
    allowed = np.random.default_rng(0).random(N) < 0.25
    _, true = exact.nearest(queries, [(0, laying.rows(N) * allowed[:, None])], K)
    assert exact.recall(one.search(queries, K, allowed, Knobs(nprobe=1))[1], true).mean() == 1


def test_more_answers_rank_more_rows() -> None:
    knobs = Knobs(nprobe=4, candidates=640, k=10)
    assert [knobs.ranked(k) for k in (1, 10, 40, 1000)] == [640, 640, 1280, 6400]
    assert Knobs().ranked(7) == 28
    assert knobs.as_dict() == {"nprobe": 4, "candidates": 640, "k": 10} and Knobs(**knobs.as_dict()) == knobs


def test_one_query_runs_on_one_thread_and_the_number_of_threads_stays(engines: dict[str, Engine]) -> None:
    import faiss

    usual = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        with engine._threads(1):
            assert faiss.omp_get_max_threads() == 1
        with engine._threads(2):
            assert faiss.omp_get_max_threads() == 2
        with engine._threads(9):
            assert faiss.omp_get_max_threads() == 3
        engines["Flat"].search(laying.rows(1), K)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(usual)


@pytest.mark.parametrize("factory", ["IVF4,PQ8x4fs,Refine(SQ8)", "OPQ8,IVF4,PQ8x4fs,Refine(Flat)", "HNSW16"])
def test_a_settled_file_searches_so_by_itself(engines: dict[str, Engine], factory: str, tmp_path: Path) -> None:
    import faiss

    one, knobs = engines[factory], Knobs(nprobe=2, candidates=40, ef=99, k=K)
    engine.write(one.index, tmp_path / "x.index")
    engine.settle_file(tmp_path / "x.index", knobs)
    written = (tmp_path / "x.index").stat().st_ino
    engine.settle_file(tmp_path / "x.index", knobs)
    assert (tmp_path / "x.index").stat().st_ino == written  # settled already
    alone = faiss.read_index(str(tmp_path / "x.index"))
    queries = laying.rows(20, 1)
    np.testing.assert_array_equal(alone.search(queries, K)[1], one.search(queries, K, knobs=knobs)[1])
    assert [path.name for path in tmp_path.iterdir()] == ["x.index"]


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("Nonsense", "knows no such index for width 16; auto, flat, hnsw or one such as IVF64"),
        ("IVF64,Flat", r"cannot train it with 30 rows of width 16 \("),
        ("PQ7", "knows no such index for width 16"),
    ],
)
def test_a_factory_that_does_not_fit_is_told(factory: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"^--engine {factory}: FAISS {why}"):
        engine.make(factory, 16, lambda count: laying.rows(30)[:count])


@pytest.mark.parametrize("content", [b"", b"junk" * 50])
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.index"
    with pytest.raises(StorageError, match=f"^{path}: missing; build the index again$"):
        engine.read(path)
    path.write_bytes(content)
    for mapped in (True, False):
        with pytest.raises(StorageError, match=f"^{path}: not a readable FAISS index"):
            engine.read(path, mapped)
    with pytest.raises(StorageError, match=f"^{tmp_path / 'none' / 'x'}: cannot be written"):
        engine.write(engine.make("Flat", 4, lambda count: laying.rows(0)), tmp_path / "none" / "x")
