"""Every file in launch/ is what its own tool reads, and the Slurm script requeues what was stopped and nothing else."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from kubeflow_trainer_api import models as kubeflow

from tests.making import ROOT

FOLDER = ROOT / "launch"
ACCELERATE = {
    "single": ("NO", 1, 1), "ddp8": ("MULTI_GPU", 8, 1), "fsdp2": ("FSDP", 8, 1), "nodes": ("MULTI_GPU", 16, 2),
    "cpu2": ("MULTI_GPU", 2, 1),
}  # fmt: skip
OTHERS = {"trainjob.yaml", "jobset.yaml", "sky.yaml", "train.sbatch", "embed_ray.py"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def test_every_file_has_its_test() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.yaml" for name in ACCELERATE} | OTHERS


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_reads_its_configurations(name: str) -> None:
    read_back = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert (read_back.distributed_type, read_back.num_processes, read_back.num_machines) == ACCELERATE[name]
    assert read_back.mixed_precision == "no" and read_back.use_cpu is False
    if name == "fsdp2":
        assert read_back.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize(
    ("name", "kind"), [("trainjob", "TrainerV1alpha1TrainJob"), ("jobset", "JobsetV1alpha2JobSet")]
)
def test_kubernetes_objects_hold_nothing_that_their_schema_does_not(name: str, kind: str) -> None:
    tree = read(f"{name}.yaml")
    parsed = getattr(kubeflow, kind).from_dict(tree)
    assert json.loads(json.dumps(parsed.to_dict())) == tree  # keys that the schema does not know would be lost
    assert "-m clipkit.train" in json.dumps(tree)


def test_sky_is_a_task_of_skypilot() -> None:
    """schema.json is `sky.utils.schemas.get_task_schema()` and `get_resources_schema()` of skypilot 0.14.1, which needs
    seventy packages to be asked."""
    task = read("sky.yaml")
    schema = json.loads((Path(__file__).parent / "sky-schema.json").read_text())
    jsonschema.validate(task, schema["task"])
    jsonschema.validate(task["resources"], schema["resources"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**task, "num_node": 2}, schema["task"])


SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$HERE/arguments"
echo $$ > "$HERE/pid"
[ -n "$WAITS" ] && { trap 'exit 1' TERM; touch "$HERE/began"; while true; do sleep 0.05; done; }
exit $CODE
"""
SCANCEL = '#!/bin/bash\necho "$@" > "$HERE/cancelled"\nkill -TERM $(cat "$HERE/pid")\n'
SCONTROL = '#!/bin/bash\n[ "$1" = show ] && printf "one\\ntwo\\n" || echo "$@" > "$HERE/requeued"\n'


STEP = '#!/bin/bash\nshift\nexec "$@"\n'  # srun on one node
ACCELERATE_LAUNCH = '#!/bin/bash\nprintf "%s\\n" "$@" > "$HERE/launched"\n'


def slurm(here: Path, code: int, stop: bool = False, srun: str = SRUN, **more: str) -> int:
    """The exit code of the script where srun ends with `code`, or with 1 by a signal to the script."""
    programs = {"srun": srun, "scancel": SCANCEL, "scontrol": SCONTROL, "accelerate": ACCELERATE_LAUNCH}
    for name, text in programs.items():
        (here / name).write_text(text)
        (here / name).chmod(0o755)
    facts = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "HERE": str(here), "CODE": str(code)}
    env = {**os.environ, **facts, **more, "WAITS": "yes" if stop else "", "PATH": f"{here}:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", str(FOLDER / "train.sbatch"), "openmoji", "run=a b"], env=env)
    while stop and not (here / "began").exists():
        time.sleep(0.02)
    if stop:
        job.send_signal(signal.SIGUSR1)
    return job.wait(timeout=60)


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (1, False), (4, False)])
def test_slurm_requeues_a_run_that_was_stopped(tmp_path: Path, code: int, requeued: bool) -> None:
    assert slurm(tmp_path, code) == code
    assert (tmp_path / "requeued").exists() == requeued
    assert (tmp_path / "arguments").read_text().splitlines()[-2:] == ["openmoji", "run=a b"]


def test_slurms_warning_stops_the_step_and_requeues_the_job(tmp_path: Path) -> None:
    assert slurm(tmp_path, 0, stop=True) == 1
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 7.0\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize(("more", "module"), [({}, "clipkit.train"), ({"MODULE": "clipkit.embed"}, "clipkit.embed")])
def test_slurms_step_launches_the_module_that_is_asked_for(tmp_path: Path, more: dict[str, str], module: str) -> None:
    facts = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "4"}
    assert slurm(tmp_path, 0, srun=STEP, **facts, **more) == 0
    words = (tmp_path / "launched").read_text().splitlines()
    assert words[-4:] == ["-m", module, "openmoji", "run=a b"]
    assert words[words.index("--num_processes") + 1] == "8" and words[words.index("--machine_rank") + 1] == "1"
