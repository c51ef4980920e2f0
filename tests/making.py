"""Small real things for tests: shards of coloured shapes, an architecture of a few thousand weights, a recipe, runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from clipkit import checkpoint, config, models
from clipkit.log import read_rows
from tests import samples as samples_of
from tests import warm

ROOT = Path(__file__).resolve().parents[1]


def picture(number: int) -> tuple[bytes, str]:
    """(JPEG, caption) of a shape."""
    image, caption = samples_of.shape(number)
    return samples_of.encoded(image), caption


def shards(folder: Path, counts: tuple[int, ...] = (20, 13, 0, 17), first: int = 0) -> Path:
    """WebDataset shards of `counts` samples: jpg, txt, json (colour, captions, number), cls (the colour)."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        numbers = range(first + sum(counts[:shard]), first + sum(counts[:shard]) + count)
        samples_of.write_shard(folder / f"{shard:05d}.tar", [_labelled(number) for number in numbers])
    return folder


def _labelled(number: int) -> dict[str, Any]:
    colour, caption = number % len(samples_of.COLORS), samples_of.shape(number)[1]
    facts = {"colour": samples_of.COLORS[colour], "captions": [caption, f"{caption}, again"], "number": number}
    return samples_of.sample(number, json=json.dumps(facts).encode(), cls=str(colour).encode())


def architecture(folder: Path, **text: Any) -> str:
    """A JSON file with a model of 32 pixels, width 32 and one layer; `text` changes its text tower."""
    sizes = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, **text}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    cfg = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": sizes, "custom_text": bool(text)}
    path = folder / "small.json"
    path.write_text(json.dumps(cfg))
    return str(path)


def saved(folder: Path, seed: int = 0, damage: bool = False) -> str:
    """A run folder `folder/run` with one checkpoint of random weights, or where `damage` of no numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = models.create(models.Settings(arch=architecture(folder)), 10.0, None)
    weights = model.net.state_dict()
    if damage:
        weights = {name: x * float("nan") if x.is_floating_point() else x for name, x in weights.items()}
    files = {"model.safetensors": weights, "model.yaml": config.to_yaml(model.spec)}
    checkpoint.save(folder / "run", 1, files, keep=1)
    return str(folder / "run")


def recipe(folder: Path, **more: Any) -> Path:
    """A recipe over shards made beside it, which logs every step and its samples."""
    data = folder / "data"
    if not data.exists():
        shards(data)
    tree = {
        "run": str(folder / "run"), "model": {"arch": architecture(folder)},
        "data": {"train": str(data), "batch": 8, "workers": 0, "window": 16}, "optim": {"lr": 1e-3, "warmup": 5},
        "steps": 20, "log_every": 1, "save_every": 7, "log_samples": True, **more,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    return path


def suite(folder: Path, data: Path) -> str:
    """A suite file of a retrieval and a zero-shot data set over the shards `data`."""
    facts = {
        "pairs": {"kind": "retrieval", "data": str(data), "caption": "json:captions"},
        "colours": {"kind": "zeroshot", "data": str(data), "label": "json:colour", "templates": ["a {c} square"]},
    }
    for name, tree in facts.items():
        (folder / f"{name}.yaml").write_text(json.dumps(tree))
    path = folder / "suite.yaml"
    path.write_text(json.dumps({"tasks": [str(folder / f"{name}.yaml") for name in facts]}))
    return str(path)


def environment(**more: str) -> dict[str, str]:
    """The environment of a child process, without what a launcher may have left in ours."""
    left = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {k: v for k, v in os.environ.items() if k not in left and not k.startswith("ACCELERATE_")}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def clipkit(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end, in a process that need not begin with imports."""
    command = [str(warm.folder() / "clipkit"), *arguments]
    return subprocess.run(command, env=environment(), cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(module: str, *arguments: str, options: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """Run a module on two ranks of this machine, as README says."""
    options = options or ("--multi_gpu", "--num_processes", "2", "--main_process_port", str(free_port()))
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", module, *arguments]
    env = environment(**{"ACCELERATE_USE_CPU": "true", **env})
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def samples(run: Path) -> dict[int, list[tuple[int, str]]]:
    """{step: sorted (position, key) of all ranks} of a run that logs its samples."""
    seen: dict[int, list[tuple[int, str]]] = {}
    for path in run.glob("samples-rank*.jsonl"):
        for row in read_rows(path):
            seen.setdefault(row["step"], []).extend(zip(row["position"], row["keys"], strict=True))
    return {step: sorted(pairs) for step, pairs in seen.items()}


def losses(run: Path) -> dict[int, float]:
    """{step: loss} of a run that logs every step."""
    return {row["step"]: row["loss"] for row in read_rows(run / "metrics.jsonl")}
