"""Numbers that ranks take from one counter: each once, and none any more after an error of one."""

import time

import pytest
import torch
from torch import Tensor

from clipkit import distributed
from clipkit.errors import UserError
from tests import two_ranks


def twice(rank: int) -> Tensor:
    """The numbers that a rank got, of two calls; -1 between them."""
    found = []
    for count in (7, 0, 4):
        with distributed.claims(count) as numbers:
            for number in numbers:
                found.append(number)
                time.sleep(0.01 * rank)
        found.append(-1)
    return torch.tensor(found)


def test_each_number_is_one_ranks() -> None:
    first, second = ([part.tolist() for part in _split(found)] for found in two_ranks.run(twice))
    assert [sorted(one + other) for one, other in zip(first, second, strict=True)] == [[*range(7)], [], [*range(4)]]


def _split(found: Tensor) -> list[Tensor]:
    ends = (found == -1).nonzero().flatten().tolist()
    starts = [0, *(end + 1 for end in ends)]
    return [found[start:end] for start, end in zip(starts, ends, strict=False)]


def failing(rank: int) -> Tensor:
    """How many numbers a rank got before rank 1 failed at its second, and whether it heard of it."""
    got = 0
    try:
        with distributed.together(), distributed.claims(10_000) as numbers:
            for _ in numbers:
                got += 1
                time.sleep(0.01)
                if rank == 1 and got == 2:
                    raise UserError("mine")
    except UserError as error:
        return torch.tensor([got, str(error) == "mine"])
    return torch.tensor([got, False])


def test_an_error_of_one_rank_ends_the_numbers_of_all() -> None:
    (first, heard), (second, raised) = (found.tolist() for found in two_ranks.run(failing))
    assert second == 2 and raised and heard and first < 1000


def test_one_process_has_all_numbers() -> None:
    with distributed.claims(3) as numbers:
        assert list(numbers) == [0, 1, 2]
    with pytest.raises(UserError, match="mine"), distributed.claims(3) as numbers:
        raise UserError(f"mine {next(numbers)}")
