"""Which index is chosen for how many rows in how much memory, and what is told where none fits."""

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipkit.errors import UserError
from clipkit.index import choose
from clipkit.vectors import engine
from tests.vectors import laying

G = 1_000_000_000
TABLE = [
    (5_000, 512, 16 * G, 0.95, "Flat", "none"),
    (20_000, 512, 16 * G, 0.95, "Flat", "none"),
    (20_000, 512, 20_000_000, 0.95, "IVF1,PQ128x4fs,Refine(SQ8)", "inside"),
    (1_000_000, 512, 16 * G, 0.95, "IVF64,PQ128x4fs,Refine(SQ8)", "inside"),
    (1_000_000, 512, 16 * G, 0.99, "IVF64,PQ128x4fs,Refine(SQfp16)", "inside"),
    (1_000_000, 512, G, 0.99, "IVF64,PQ128x4fs,Refine(SQ8)", "inside"),
    (1_000_000, 512, 300_000_000, 0.95, "IVF64,PQ256x4fs", "rows"),
    (1_000_000, 512, 100_000_000, 0.95, "IVF64,PQ128x4fs", "rows"),
    (3_000_000, 512, 4 * G, 0.95, "IVF64,PQ128x4fs,Refine(SQ8)", "inside"),
    (10_000_000, 768, 16 * G, 0.95, "IVF16384,PQ192x4fs,Refine(SQ8)", "inside"),
    (100_000_000, 512, 16 * G, 0.95, "IVF32768_HNSW32,PQ256x4fs", "rows"),
    (1_000_000_000, 512, 128 * G, 0.95, "IVF131072_HNSW32,PQ128x4fs", "rows"),
]


@pytest.mark.parametrize(("rows", "width", "memory", "recall", "factory", "rerank"), TABLE)
def test_the_table(rows: int, width: int, memory: int, recall: float, factory: str, rerank: str) -> None:
    plan = choose.choose(rows, width, memory, recall)
    assert (plan.factory, plan.rerank) == (factory, rerank)
    assert 0 < plan.bytes <= memory


def test_a_million_rows_take_what_was_measured() -> None:
    assert choose.choose(1_000_000, 512, 16 * G).bytes == 584_000_000
    assert choose.choose(1_000_000, 512, 300_000_000).bytes == 136_000_000


@given(width=st.integers(1, 200), rows=st.integers(1, 10**9), memory=st.integers(1, 10**12))
def test_a_plan_fits_its_budget_or_the_least_that_does_is_told(width: int, rows: int, memory: int) -> None:
    try:
        assert choose.choose(rows, width, memory).bytes <= memory
    except UserError as error:
        least = choose.memory_of(str(error).split("type --memory ")[1].split(",")[0])
        assert least > memory and choose.choose(rows, width, least).bytes <= least


@pytest.mark.parametrize("width", [1, 7, 16, 30, 512])
@pytest.mark.parametrize("memory", [10**9, 0])
def test_faiss_makes_what_is_chosen_for_any_width(width: int, memory: int) -> None:
    rows = 30_000
    least = min(plan.bytes for plan in choose._plans(rows, width, 0.95))
    plan = choose.choose(rows, width, max(memory, least))
    factory = plan.factory.replace("IVF64", "IVF1")  # which needs fewer rows
    index = engine.make(factory, width, lambda count: laying.rows(100, width=width))
    index.add(laying.rows(10, 1, width))
    assert index.ntotal == 10


def test_without_the_vectors_on_disk_nothing_is_ranked_by_them() -> None:
    with pytest.raises(UserError) as error:
        choose.choose(1_000_000, 512, 300_000_000, on_disk=False)
    assert str(error.value) == (
        "--memory 300M: 1000000 rows of width 512 take 584M at the least; type --memory 584M, or index fewer rows"
    )


def test_a_budget_is_for_all_kinds_and_so_is_what_is_advised() -> None:
    with pytest.raises(UserError) as error:
        choose.choose(1_000_000, 512, 100_000_000, kinds=2)
    assert str(error.value) == (
        "--memory 100M: 1000000 rows of width 512, pictures and texts, take 144M at the least; "
        "type --memory 144M, or index fewer rows"
    )
    assert choose.choose(1_000_000, 512, 144_000_000, kinds=2).bytes == 72_000_000


def test_an_engine_by_hand() -> None:
    plans = [
        choose.choose(1000, 16, 1, engine=name) for name in ("flat", "hnsw", "IVF4,PQ8x4fs,Refine(Flat)", "IVF4,Flat")
    ]
    assert [plan.factory for plan in plans] == ["Flat", "HNSW32", "IVF4,PQ8x4fs,Refine(Flat)", "IVF4,Flat"]
    assert [plan.rerank for plan in plans] == ["none", "none", "inside", "none"]
    assert plans[0].bytes == 64_000 and plans[1].bytes == 1000 * (64 + 272) and plans[2].bytes == 0


def test_the_next_better_plan() -> None:
    sizes, size = [], 0
    while (larger := choose.more(size, 1_000_000, 512)) is not None:
        sizes.append(size := larger)
    assert sizes == [72_000_000, 136_000_000, 584_000_000, 1_096_000_000, 2_048_000_000]


@pytest.mark.parametrize(
    ("text", "size"),
    [("600M", 600e6), ("4G", 4e9), ("4GB", 4e9), ("1.5g", 1.5e9), ("64K", 64e3), ("77", 77), ("2TiB", 2e12)],
)
def test_sizes_are_read(text: str, size: float) -> None:
    assert choose.memory_of(text) == size


@pytest.mark.parametrize("text", ["", "much", "-4G", "0", "4X", "4 4", "1e9"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        choose.memory_of(text)
    assert str(error.value) == f"--memory {text}: a size is needed, such as 600M or 4G"


@given(st.integers(1, 10**13))
def test_what_is_told_is_enough_and_no_tenth_more(size: int) -> None:
    told = choose.memory_of(choose.told(size))
    assert size <= told <= size * 1.1 + 1


def test_the_usual_budget_is_half_of_the_memory() -> None:
    assert choose.usual_memory() == psutil.virtual_memory().total // 2
