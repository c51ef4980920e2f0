"""Embedding on a Ray cluster of two nodes: the files are those of `clipkit embed`.

Ray is told that one node has a GPU, so that decoding and embedding are apart; torch finds none and uses the CPU."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipkit.errors import UserError
from tests import making, samples

ray = pytest.importorskip("ray", reason="needs the extra ray")
STORE = 80 << 20
"""Bytes of each node's object store, of which Ray asks for 75 MB at least."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in making.environment(RAY_USAGE_STATS_ENABLED="0", PYTHONPATH=str(making.ROOT)).items():
            patch.setenv(name, value)
        patch.delenv("CUDA_VISIBLE_DEVICES")  # Ray sets it for each actor
        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        nodes.add_node(num_cpus=1, num_gpus=1, object_store_memory=STORE)
        yield str(nodes.address)
        nodes.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, shards of 45 samples of which one picture is unreadable, and their vectors by `embed`."""
    folder = tmp_path_factory.mktemp("ray")
    assert making.clipkit("train", str(making.recipe(folder, steps=2))).returncode == 0
    broken = samples.sample(44, jpg=making.picture(44)[0][:200])
    making.shards(folder / "mine", (20, 24))
    samples.write_shard(folder / "mine" / "00002.tar", [broken])
    done = making.clipkit("embed", "run", "mine", "--out", "plain", *OPTIONS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


OPTIONS = ("--part", "10", "--fields", "colour")


def embed(folder: Path, cluster: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(making.ROOT / "launch/embed_ray.py"), *arguments]
    env = making.environment(RAY_ADDRESS=cluster, PYTHONPATH=str(making.ROOT))
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_cluster_writes_the_files_of_embed_and_does_no_part_twice(place: Path, cluster: str) -> None:
    far = place / "far"
    shutil.copytree(place / "plain", far)
    made, kept = (far / "manifest.jsonl").read_text().splitlines(), (1, 3)
    (far / "parts").mkdir()  # what a kill leaves
    for number in range(len(made)):
        if number in kept:
            (far / f"parts/{number:06d}.json").write_text(made[number])
        else:
            for path in far.rglob(f"*_{number:06d}.*"):
                path.unlink()
    (far / "vectors.json").unlink()
    (far / "manifest.jsonl").unlink()
    before = {path: path.stat().st_mtime_ns for number in kept for path in far.rglob(f"*_{number:06d}.*")}

    done = embed(place, cluster, "run", "mine", "--out", "far", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "goes on after 20 of 45 samples" in done.stderr and "left out" in done.stderr
    assert len(made) == 5 and files(far) == files(place / "plain")
    assert len(before) == 6 and {path: path.stat().st_mtime_ns for path in before} == before


def test_a_cluster_that_is_not_there_and_a_folder_that_will_go_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = importlib.util.spec_from_file_location("embed_ray", making.ROOT / "launch/embed_ray.py")
    assert place is not None and place.loader is not None
    script = importlib.util.module_from_spec(place)
    place.loader.exec_module(script)
    monkeypatch.chdir(tmp_path)
    job = script.embed.Job("run", "mine", "out")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1")  # without its port
    with pytest.raises(UserError, match=r"no Ray cluster at RAY_ADDRESS=10.0.0.1 \(Invalid address format: 10.0.0.1\)"):
        script.run(job)
    monkeypatch.setenv(script.SUBMITTED, "{}")
    with pytest.raises(UserError, match=r"--out out: an absolute path is needed: this job runs in a folder that Ray"):
        script.run(job)
    assert not (tmp_path / "out").exists()


def test_an_error_on_a_node_is_told_as_it_is_without_a_cluster(place: Path, cluster: str) -> None:
    done = embed(place, cluster, "run", "nowhere", "--out", "none")
    assert done.returncode == 2 and "nowhere: no such file or folder" in done.stderr
    assert os.listdir(place / "none") == [] if (place / "none").exists() else True
