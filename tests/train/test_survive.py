"""Bad gradients are skipped, a bad stretch is passed over, and a run that was stopped between does the same."""

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import checkpoint, train
from clipkit.errors import NonFinite, RankLost
from clipkit.log import read_rows
from clipkit.train.health import Health
from clipkit.train.watch import Watch, watched
from tests import making

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # a run leaves its logs to the end of the program


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more take ten times as long for models this small, where others work too
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


def fit(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], *overrides: str, **more: Any) -> Path:
    """Train in this process, going on as often as the fault `raise` ends it; the run's folder."""
    folder.mkdir(exist_ok=True)
    recipe = making.recipe(folder, objective="tests.faulty", ema=0.9, **more)
    monkeypatch.setenv("FAULT", json.dumps({**fault, "once": str(folder / "once")}))
    for _ in range(len(fault.get("raise", ())) + 1):
        try:
            train.main(str(recipe), overrides)
        except InterruptedError:
            continue
        break
    return folder / "run"


def weights(run: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    return checkpoint.tensors(checkpoint.folder(run, step) / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def test_a_step_without_finite_gradients_changes_nothing_and_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(tmp_path / "a", monkeypatch, {"nan": [3]}, steps=4, save_every=1, keep=9, log_every=2)
    assert same(weights(run, 2), weights(run, 3)) and not same(weights(run, 3), weights(run, 4))
    assert same(weights(run, 2, "optim"), weights(run, 3, "optim"))
    assert [row["skipped"] for row in read_rows(run / "metrics.jsonl")] == [0, 1]
    (row,) = read_rows(run / "skipped-rank0.jsonl")
    assert row["step"] == 3 and list(zip(row["position"], row["keys"], strict=True)) == making.samples(run)[3]


NAN = [4, 9, 10, 11, 12, 19]


def test_a_burst_goes_back_to_a_checkpoint_and_kills_do_not_change_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"steps": 24, "save_every": 7, "log_every": 2, "max_skipped": 3}
    straight = fit(tmp_path / "a", monkeypatch, {"nan": NAN}, **settings)
    (back,) = read_rows(straight / "rollbacks.jsonl")
    assert back == {"step": 12, "back_to": 7, "why": "gradients that were not finite in the last 4 steps"}
    killed = fit(tmp_path / "b", monkeypatch, {"nan": NAN, "raise": [6, 11, 13, 20]}, **settings)
    for name in ("rollbacks", "skipped-rank0"):
        assert read_rows(killed / f"{name}.jsonl") == read_rows(straight / f"{name}.jsonl")
    assert [row["step"] for row in read_rows(killed / "skipped-rank0.jsonl")] == NAN
    assert making.losses(killed) == making.losses(straight), "bitwise"
    assert [pair for _, pairs in sorted(making.samples(killed).items()) for pair, _ in pairs] == [*range(24 * 8)]
    for name in ("model", "ema", "optim"):
        assert same(weights(killed, 24, name), weights(straight, 24, name))
    assert json.loads((checkpoint.folder(killed, 24) / "survival.json").read_text())["rollbacks"] == 1


def test_a_run_goes_back_so_often_and_then_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"steps": 30, "save_every": 3, "max_skipped": 2, "max_rollbacks": 2}
    with pytest.raises(NonFinite, match="at step 10; the run went back to a checkpoint 2 times, .*max_rollbacks.*Try"):
        fit(tmp_path / "a", monkeypatch, {"nan": [*range(5, 30)]}, **settings)
    run = tmp_path / "a/run"
    assert [(row["step"], row["back_to"]) for row in read_rows(run / "rollbacks.jsonl")] == [(6, 3), (8, 6)]
    facts = json.loads((run / "exit-rank0.json").read_text())
    assert facts["code"] == 4 and facts["step"] == 10 and "max_rollbacks" in facts["error"]
    with pytest.raises(NonFinite, match="at step 2; there is no checkpoint to go back to. Try"):
        fit(tmp_path / "b", monkeypatch, {"nan": [*range(30)]}, **settings)


def test_a_leap_of_the_loss_goes_back_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"steps": 30, "save_every": 12, "log_every": 4}
    run = fit(tmp_path / "a", monkeypatch, {"leap": [27]}, "spike=20", **settings)
    (back,) = read_rows(run / "rollbacks.jsonl")
    assert (back["step"], back["back_to"]) == (28, 24) and "at step 27, after a mean of" in back["why"]
    assert not (run / "exit-rank0.json").exists()


def test_a_spike_is_measured_in_deviations_of_the_recent_losses() -> None:
    health = Health()
    losses = [1.0, 3.0] * 10  # mean 2, deviation 1
    assert not any(health.see(step, loss, 1.0, 2.0) for step, loss in enumerate(losses))
    health.see(20, 4.0, 1.0, 2.0)
    assert health.trouble(1) == "" and health.recent[-1] == 4.0, "on the bound is within it"
    health = Health.of({**Health().state(), "recent": losses})
    health.see(20, 4.1, 1.0, 2.0)
    assert health.trouble(1).startswith("a loss of 4.1 at step 20, after a mean of 2 and a deviation of 1")
    health.back(Health(recent=[5.0], rollbacks=7).state())
    assert health == Health(recent=[5.0]), "what it used up stays its own"


def test_only_a_streak_that_lasts_is_trouble() -> None:
    health = Health()
    skipped = [health.see(step, 1.0, norm) for step, norm in enumerate([math.nan, math.inf, 1.0, math.inf])]
    assert skipped == [True, True, False, True]
    assert (health.skipped, health.streak, health.trouble(2)) == (3, 1, "")


def _hang(folder: Path, beats: int, said: str) -> None:
    sys.stderr = (folder / said).open("w")
    with watched(folder, 0.4) as watch:
        for step in range(beats):
            watch.beat(step)
            time.sleep(0.1)
        time.sleep(60)


def test_a_process_without_steps_ends_itself_with_its_stacks(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").touch()
    child = multiprocessing.get_context("fork").Process(target=_hang, args=(tmp_path, 8, "stderr"))
    child.start()
    child.join(30)
    assert child.exitcode == 6
    said = (tmp_path / "stderr").read_text()
    assert "in _hang" in said and "clipkit (rank 0): training for more than 0.4 s after step 7: this process" in said
    facts = json.loads((tmp_path / "exit-rank0.json").read_text())
    assert facts["code"] == 6 and facts["step"] == 7


def test_a_process_that_cannot_say_why_ends_itself_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").touch()
    child = multiprocessing.get_context("fork").Process(target=_hang, args=(tmp_path, 1, "/dev/full"))
    child.start()
    child.join(30)
    assert child.exitcode == 6 and json.loads((tmp_path / "exit-rank0.json").read_text())["code"] == 6


def test_a_collective_that_failed_is_told_as_a_lost_process(tmp_path: Path) -> None:
    wanted = "another process is gone, after step 5 .training.; its own message says why"
    with pytest.raises(RankLost, match=wanted), watched(tmp_path, 100) as watch:
        watch.beat(5)
        raise RuntimeError("[gloo/transport/tcp/pair.cc:545] Connection closed by peer")
    assert not (tmp_path / "exit-rank0.json").exists(), "nothing is written where nothing was trained"
    with pytest.raises(RuntimeError, match="shapes"), watched(tmp_path, 100):
        raise RuntimeError("shapes do not match")


def test_patience_is_longer_where_more_is_done(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 100)
    assert watch.limit == math.inf
    watch.beat(1, "saving", patient=True)
    assert watch.limit == 600
    watch.beat(1)
    assert watch.limit == 100
