"""Batches on their way to a model: in order, in threads or processes, and nothing left behind by an error."""

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from clipkit.errors import StorageError
from clipkit.models import pipeline

CPU, OTHER = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def threads() -> Iterator[int]:
    """Three threads of torch, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 17])
def test_results_come_in_the_order_of_the_items(threads: int, count: int) -> None:
    def work(item: int) -> tuple[int, int]:
        time.sleep(0.002 * (item % 3))
        return item, torch.get_num_threads()

    found = list(pipeline(CPU, range(count), lambda item: item + 1, lambda item: 2 * item, work))
    assert found == [(2 * (item + 1), 1) for item in range(count)], "each in one thread"
    assert torch.get_num_threads() == threads


def test_reading_is_one_threads_and_a_little_ahead(threads: int) -> None:
    readers: list[int] = []

    def fetch(item: int) -> int:
        readers.append(threading.get_ident())
        return item

    found = pipeline(CPU, range(1000), fetch, abs, abs)
    assert next(found) == 0 and len(readers) <= 2 * threads + 1
    found.close()
    assert set(readers) == {threading.get_ident()} and torch.get_num_threads() == threads


@pytest.mark.parametrize("where", ["fetch", "decode", "work"])
def test_an_error_is_raised_where_its_result_would_be(threads: int, where: str) -> None:
    def stage(name: str, item: int) -> int:
        if name == where and item == 5:
            raise ValueError("mine")
        return item

    steps = [lambda item, name=name: stage(name, item) for name in ("fetch", "decode", "work")]
    found = pipeline(CPU, range(100), *steps)
    seen = []
    with pytest.raises(ValueError, match="mine"):
        for each in found:
            seen.append(each)
    assert seen == list(range(len(seen))) and len(seen) <= 5 and torch.get_num_threads() == threads


def doubled(numbers: range) -> tuple[list[int], int]:
    return [2 * number for number in numbers], os.getpid()


def same(numbers: range) -> range:
    return numbers


def missing(numbers: range) -> range:
    if 5 in numbers:
        raise StorageError("s3://bucket/0.tar: is gone")
    return numbers


@pytest.mark.parametrize("workers", [0, 2])
def test_before_another_device_processes_fetch_and_decode(workers: int) -> None:
    batches = (range(start, start + 2) for start in range(0, 14, 2))
    rows, by = zip(*pipeline(OTHER, batches, same, doubled, tuple, workers), strict=True)
    assert [number for row in rows for number in row] == list(range(0, 28, 2))
    assert (os.getpid() in by) == (workers == 0) and len(set(by)) == max(workers, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_expected_error_of_such_a_process_is_told_as_it_is(workers: int) -> None:
    batches = (range(start, start + 2) for start in range(0, 14, 2))
    found = pipeline(OTHER, batches, missing, doubled, tuple, workers)
    assert next(found)[0] == [0, 2] and next(found)[0] == [4, 6]
    with pytest.raises(StorageError, match=r"^s3://bucket/0\.tar: is gone$"):
        next(found)
