"""The first case of `python -m tests.faults`; the others take minutes."""

from pathlib import Path

from tests import faults


def test_a_killed_rank_is_started_again_and_no_sample_is_lost_or_repeated(tmp_path: Path) -> None:
    faults.kill(tmp_path, faults.unbroken(tmp_path))
