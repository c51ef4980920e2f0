"""Fixtures for all tests: nothing is written outside pytest's temporary folders, and one small set of shards."""

import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from clipkit import cli
from tests import samples

COUNTS = (7, 12, 1, 5)
Typed = Callable[..., tuple[int, str, str]]
hypothesis.settings.register_profile("clipkit", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("clipkit")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, in a temporary folder."""
    place = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four shards of 7, 12, 1 and 5 coloured shapes; a sample's key is its number."""
    folder, number = tmp_path_factory.mktemp("shards"), 0
    for i, count in enumerate(COUNTS):
        samples.write_shard(folder / f"{i:03d}.tar", map(samples.sample, range(number, number + count)))
        number += count
    return folder


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Calls the program with arguments in this process; gives (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipkit", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        torch.set_flush_denormal(False)  # which training has set for this whole process
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
