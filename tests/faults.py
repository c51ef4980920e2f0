"""What a training on two ranks does when its machine fails it: `python -m tests.faults [CASE ...] [--check]`.

Each case breaks a run, and holds what comes out of it (by itself, or by the same command again) against a run that was
never broken: the same samples, bitwise the same losses, no process left, and an end within its timeout.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from clipkit import checkpoint
from clipkit.log import read_rows
from tests import making

STEPS, SAVES = 24, 6
TIMEOUT_S = 6.0
MARK = "FAULTS_CASE"
FREE_S = 300.0
"""A start takes 10 s on an idle machine and a minute on a busy one, and torchrun waits 30 s before it kills what does
not heed SIGTERM."""


class Broken:
    """A run on two ranks in a folder of its own, with the fault that will meet it."""

    def __init__(self, folder: Path, where: Path | None = None, **settings: Any) -> None:
        folder.mkdir(parents=True)
        self.folder, self.run = folder, (where or folder) / "run"
        making.shards(folder / "data", (12,) * 8)
        more = {"run": str(self.run), "steps": STEPS, "save_every": SAVES, "timeout_s": TIMEOUT_S, **settings}
        self.recipe = making.recipe(folder, objective="tests.faulty", **more)
        self.once = folder / "once"

    def start(self, fault: dict[str, Any] | None = None, restarts: int = 0) -> subprocess.Popen[str]:
        """Launch it."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", port, "--max_restarts", str(restarts)]
        command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "clipkit.train"]
        told = {**(fault or {}), "once": str(self.once), "data": str(self.folder / "data")}
        env = making.environment(
            ACCELERATE_USE_CPU="true", PYTHONPATH=str(making.ROOT), FAULT=json.dumps(told), **{MARK: str(self.folder)}
        )
        return subprocess.Popen([*command, str(self.recipe)], env=env, stderr=subprocess.PIPE, text=True)

    def end(self, child: subprocess.Popen[str]) -> str:
        """What it said until its end, which must come in bounded time and leave no process."""
        try:
            said = child.communicate(timeout=FREE_S)[1]
        except subprocess.TimeoutExpired:
            for process in self.left():
                os.kill(process, signal.SIGKILL)
            raise AssertionError(f"still running after {FREE_S:g} s: {child.communicate()[1][-2000:]}") from None
        deadline = time.monotonic() + 10
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, f"processes are left: {left}"
        return said

    def through(self, fault: dict[str, Any] | None = None, restarts: int = 0) -> str:
        """Launch it to an end that is a success."""
        child = self.start(fault, restarts)
        said = self.end(child)
        assert child.returncode == 0, said[-3000:]
        return said

    def fails(self, fault: dict[str, Any]) -> str:
        """Launch it to an end that is not."""
        child = self.start(fault)
        said = self.end(child)
        assert child.returncode, "it did not fail"
        return said

    def left(self) -> list[int]:
        """The processes of this run that live."""
        found, mark = [], f"{MARK}={self.folder}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found

    def exits(self) -> list[dict[str, Any]]:
        """What the ranks left behind."""
        return [json.loads(path.read_text()) for path in sorted(self.run.glob("exit-rank*.json"))]

    def equals(self, other: "Broken") -> None:
        """Raises: AssertionError unless both saw the same samples, and made the same losses."""
        mine, theirs = (making.samples(one.run) for one in (self, other))
        assert mine == theirs, f"other samples: {sorted(step for step in theirs if mine.get(step) != theirs[step])}"
        assert [at for _, pairs in sorted(mine.items()) for at, _ in pairs] == [*range(STEPS * 8)], "lost or repeated"
        assert making.losses(self.run) == making.losses(other.run), "other losses"


def unbroken(folder: Path) -> Broken:
    """The run that all but one of the others are held against."""
    run = Broken(folder / "unbroken")
    run.through()
    return run


def kill(folder: Path, whole: Broken) -> str:
    """SIGKILL of one rank of two, with --max_restarts 2"""
    run = Broken(folder / "kill")
    step = random.randrange(SAVES + 1, STEPS)
    said = run.through({"kill": [step], "rank": 1}, restarts=2)
    run.equals(whole)
    assert f"clipkit: another process is gone, after step {step - 1}" in said and "resumed at step" in said, said
    return f"at step {step}; finished by itself after a restart"


def stop(folder: Path, whole: Broken) -> str:
    """SIGSTOP of one rank of two, with --max_restarts 1"""
    run = Broken(folder / "stop")
    said = run.through({"stop": [9], "rank": 1}, restarts=1)
    run.equals(whole)
    assert f"clipkit (rank 0): training for more than {TIMEOUT_S:g} s after step 8" in said, said
    assert "Current thread" in said or "Thread 0x" in said
    return "the other rank ended it with its stacks; finished by itself after a restart"


def term(folder: Path, whole: Broken) -> str:
    """SIGTERM to the launcher"""
    run = Broken(folder / "term", steps=STEPS * 1000)
    child = run.start()
    log = run.run / "metrics.jsonl"
    while child.poll() is None and len(read_rows(log)) < 3:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    began = time.monotonic()
    run.end(child)
    first, second = run.exits()
    assert first["code"] == second["code"] == 75 and first["step"] == second["step"], (first, second)
    losses = making.losses(run.run)
    assert max(losses) == first["step"] == checkpoint.steps(run.run)[-1], "a finished step is lost"
    took = f"saved and gone {time.monotonic() - began:.0f} s later, no step lost"
    if first["step"] < STEPS:
        making.recipe(run.folder, **{**json.loads(run.recipe.read_text()), "steps": STEPS})
        run.through()
        run.equals(whole)
    return took


def nan(folder: Path, whole: Broken) -> str:
    """A gradient that is not finite, on one rank, at a step"""
    run = Broken(folder / "nan")
    run.through({"nan": [5], "rank": 1})
    rows = [read_rows(run.run / f"skipped-rank{rank}.jsonl") for rank in range(2)]
    assert [[row["step"] for row in mine] for mine in rows] == [[5], [5]]
    told = sorted((at, key) for (row,) in rows for at, key in zip(row["position"], row["keys"], strict=True))
    assert told == making.samples(run.run)[5] == making.samples(whole.run)[5]
    assert read_rows(run.run / "metrics.jsonl")[-1]["skipped"] == 1
    return "skipped on both ranks, counted, its samples written down"


def burst(folder: Path, whole: Broken) -> str:
    """A burst of them, and SIGKILL behind it"""
    fault = {"nan": [*range(8, 12)]}
    straight, killed = (Broken(folder / f"burst-{name}", max_skipped=3) for name in ("straight", "killed"))
    straight.through(fault)
    killed.through({**fault, "kill": [13]}, restarts=1)
    killed.equals(straight)
    (back,), again = (read_rows(one.run / "rollbacks.jsonl") for one in (straight, killed))
    assert [back] == again and (back["step"], back["back_to"]) == (10, SAVES), again
    return f"back to the weights of step {back['back_to']} at step {back['step']}, with a kill as without"


def full(folder: Path, whole: Broken) -> str:
    """A disk that is full while saving"""
    place = folder / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=27m", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        return "not tried: mounting a small tmpfs takes root"
    try:
        run = Broken(folder / "full", place, save_every=3, keep=9)
        run.fails({})
        assert {facts["code"] for facts in run.exits()} == {5}, run.exits()
        kept = checkpoint.steps(run.run)
        for step in kept:
            checkpoint.verify(checkpoint.folder(run.run, step))
        subprocess.run(["mount", "-o", "remount,size=400m", place], check=True)
        run.through()
        run.equals(whole)
        return f"ended with code 5, checkpoints {kept} whole; with room the same command finished"
    finally:
        subprocess.run(["umount", place], check=True)


def cut(folder: Path, whole: Broken) -> str:
    """A newest checkpoint that is truncated"""
    run = Broken(folder / "cut")
    run.fails({"kill": [15], "rank": 0})
    path = checkpoint.folder(run.run, 2 * SAVES) / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    said = run.through()
    run.equals(whole)
    assert "damaged checkpoint passed over" in said and f"resumed at step {SAVES}" in said, said
    return "named, and the one before it taken"


def lose(folder: Path, whole: Broken) -> str:
    """Shards that vanish during the run"""
    run = Broken(folder / "lose")
    said = run.fails({"lose": [7], "rank": 0})
    codes = sorted(facts["code"] for facts in run.exits())
    assert 3 in codes and set(codes) <= {3, 6}, run.exits()
    assert ".tar key" in said and "No such file" in said, said
    Path(f"{run.folder}/data.away").rename(run.folder / "data")
    run.through()
    run.equals(whole)
    return "ended with code 3 and the shard's name; with it back the same command finished"


CASES: dict[str, Callable[[Path, Broken], str]] = {
    case.__name__: case for case in (kill, stop, term, nan, burst, full, cut, lose)
}


def main(names: list[str] = typer.Argument(None), check: bool = False) -> None:  # noqa: B008
    """Break runs and print what became of them; all cases, or those that are named."""
    folder, bad, rows = Path(tempfile.mkdtemp(prefix="faults-")), 0, []
    whole = unbroken(folder)
    for name in names or CASES:
        case, began = CASES[name], time.monotonic()
        try:
            ended = case(folder, whole)
        except AssertionError as error:
            bad, ended = bad + 1, f"FAILED: {error}"
        seconds = round(time.monotonic() - began, 1)
        rows.append({"case": name, "seconds": seconds, "ended": ended})
        print(f"{case.__doc__:58} {seconds:6.1f} s  {ended}", flush=True)
    print(json.dumps({"failed": bad, "cases": rows}))
    shutil.rmtree(folder)
    if check and bad:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
