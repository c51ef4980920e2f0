"""Three small sources, whose samples tell by their number where they come from."""

from pathlib import Path

import pytest

from tests.samples import sample, write_shard

COUNTS = {"a": (5, 0, 8), "b": (4, 3), "c": (1, 4)}
FIRST = {"a": 0, "b": 100, "c": 200}


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{name: folder} of a with the samples 0 .. 12, b with 100 .. 106 and c with 200 .. 204."""
    top = tmp_path_factory.mktemp("sources")
    for name, counts in COUNTS.items():
        (top / name).mkdir()
        number = FIRST[name]
        for i, count in enumerate(counts):
            write_shard(top / name / f"{i}.tar", map(sample, range(number, number + count)))
            number += count
    return {name: top / name for name in COUNTS}
