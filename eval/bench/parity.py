"""clipkit's scores beside clip_benchmark's, of the same sets and weights.

    python eval/bench/parity.py --check

Sets in CLIP_benchmark's own layout, of the held-out clip art (classes: its folders; labels: frequent words; one to
three captions a picture, none twice: which of equals comes first CLIP_benchmark leaves open) and of OpenMoji (skin
tones; captions). Models: one that clipkit trains for some steps, with its weights exported to one file, and open_clip's
ViT-S-32-alt with random weights. clip_benchmark runs from its release in an environment of its own (`--num_workers 1
--no_amp`), clipkit as its command, on the CPU in float32. The bar: every score that both print is equal to 1e-6.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import layouts
import peers
import typer

BAR = 1e-6
CLIPART = peers.REPO.parent / "shared/data/clipart"
PEER = """
import sys, open_clip
if sys.argv[1]: open_clip.add_model_config(sys.argv[1])
from clip_benchmark.cli import main
sys.argv[1:] = sys.argv[2:]; main()"""
TASKS = {"classification": "zeroshot_classification", "multilabel": "zeroshot_classification"}
SMALL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 96, "layers": 3, "width": 128, "patch_size": 16, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 3},
}


@dataclass(frozen=True)
class Model:
    """Weights as both tools are given them: clipkit's MODEL, and open_clip's name, file and config (or nothing)."""

    name: str
    clipkit: str
    arch: str
    weights: Path
    config: str


@dataclass(frozen=True)
class Row:
    """A score that both print."""

    model: str
    data: str
    score: str
    clipkit: float
    peer: float

    @property
    def apart(self) -> float:
        """How far they are from one another."""
        return abs(self.clipkit - self.peer)


def run(command: list[str], cwd: Path) -> str:
    """The stdout of a command.

    Raises: SystemExit with what it said last when it fails.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    environment = {**kept, "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(cwd / "cache")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise SystemExit(f"{tail}\n{' '.join(command[:6])} ...: failed (exit {done.returncode})")
    return done.stdout


def trained(folder: Path, data: Path, steps: int) -> Model:
    """A small model that clipkit has trained for some steps."""
    arch = folder / "parity-small.json"
    arch.write_text(json.dumps(SMALL))
    settings = [f"run={folder}/run", f"model.arch={arch}", f"data.train={data}/train-*.tar", "data.batch=64"]
    settings += [f"steps={steps}", "eval.suite=null", "precision=fp32"]
    recipe = str(peers.REPO / "configs/openmoji.yaml")
    run([sys.executable, "-m", "clipkit", "train", recipe, *settings], folder)
    weights = folder / "small.safetensors"
    run([sys.executable, "-m", "clipkit", "consolidate", f"{folder}/run", "--out", str(weights)], folder)
    return Model("trained", f"{folder}/run", arch.stem, weights, str(arch))


def untrained(folder: Path, arch: str = "ViT-S-32-alt") -> Model:
    """open_clip's model of that name with random weights."""
    weights = folder / "random.pt"
    make = f"torch.save(open_clip.create_model({arch!r}).state_dict(), {str(weights)!r})"
    code = f"import open_clip, torch; torch.manual_seed(0); {make}"
    run([sys.executable, "-c", code], folder)
    return Model("random", f"{arch}/{weights}", arch, weights, "")


def sets(folder: Path, clipart: Path, openmoji: Path | None) -> Iterator[Path]:
    """The sets, made in `folder`."""
    shown = list(layouts.pictures(sorted(clipart.glob("test-*.tar"))))
    in_folders = [(one, one.facts["rel"].split("/")[0]) for one in shown]
    yield layouts.classification(folder / "wds_clipart-classes", in_folders)
    yield layouts.multilabel(folder / "wds_clipart-words", shown)
    yield layouts.retrieval(folder / "wds_clipart-captions", shown)
    if openmoji:
        emoji = list(layouts.pictures(sorted((openmoji / "test").glob("*.tar"))))
        toned = [(one, one.facts["skin_tone"]) for one in emoji if one.facts.get("skin_tone")]
        yield layouts.classification(folder / "wds_openmoji-tones", toned)
        yield layouts.retrieval(folder / "wds_openmoji-captions", emoji)


def by_peer(python: str, model: Model, data: Path, folder: Path) -> dict[str, float]:
    """clip_benchmark's scores of a set."""
    out = folder / "peer.json"
    command = [python, "-c", PEER, model.config, "eval", "--dataset", f"wds/{data.name.removeprefix('wds_')}"]
    command += ["--dataset_root", str(data), "--model", model.arch, "--pretrained", str(model.weights)]
    kind = (data / "dataset_type.txt").read_text() if (data / "dataset_type.txt").exists() else "classification"
    task = TASKS.get(kind, "zeroshot_retrieval")
    command += ["--task", task, "--num_workers", "1", "--no_amp", "--recall_k", "1", "5", "10", "--output", str(out)]
    run(command, folder)
    return json.loads(out.read_text())["metrics"]


def by_clipkit(model: Model, data: Path, folder: Path) -> dict[str, float]:
    """clipkit's scores of a set."""
    command = [sys.executable, "-m", "clipkit", "eval", model.clipkit, data.name, "--root", str(data.parent), "--json"]
    return json.loads(run(command, folder))["scores"]


def table(rows: list[Row]) -> str:
    """All rows as text."""
    lines = ["model     set                  score                        clipkit  clip_benchmark     apart"]
    for r in rows:
        lines.append(f"{r.model:<10}{r.data:<21}{r.score:<26}{r.clipkit:>10.6f}{r.peer:>16.6f}{r.apart:>10.1e}")
    return "\n".join(lines)


def compared(models: list[Model], places: list[Path], python: str, folder: Path) -> list[Row]:
    """Every score that both print of every model and set."""
    rows: list[Row] = []
    for model in models:
        for data in places:
            ours, theirs = by_clipkit(model, data, folder), by_peer(python, model, data, folder)
            shared = [name for name, value in theirs.items() if name in ours and value == value]  # not NaN
            assert shared, (ours, theirs)
            rows += [Row(model.name, data.name[4:], name, ours[name], theirs[name]) for name in shared]
            print(table(rows[-len(shared) :]).partition("\n")[2], file=sys.stderr, flush=True)
    return rows


def main(
    data: Annotated[Path, typer.Option(help="Folder with train-*.tar and test-*.tar.")] = CLIPART,
    openmoji: Annotated[str, typer.Option(help="What `clipkit data openmoji` has made; made when not given.")] = "",
    steps: Annotated[int, typer.Option(help="Training steps of the model that is not random.", min=1)] = 60,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 unless the bar is met.")] = False,
) -> None:
    """Score the same sets with clipkit and with clip_benchmark."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emoji = Path(openmoji).resolve() if openmoji else folder / "openmoji"
        if not openmoji:
            run([sys.executable, "-m", "clipkit", "data", "openmoji", str(emoji)], folder)
        models = [trained(folder, data.resolve(), steps), untrained(folder)]
        rows = compared(models, list(sets(folder, data.resolve(), emoji)), peers.evaluator(), folder)
    print(table(rows))
    print(json.dumps(verdict(rows)))
    raise typer.Exit(int(check and not verdict(rows)["ok"]))


def verdict(rows: list[Row]) -> dict[str, Any]:
    """What the last line of output says."""
    worst = max(row.apart for row in rows)
    return {"bench": "parity", "scores": len(rows), "worst": worst, "bar": BAR, "ok": worst <= BAR}


if __name__ == "__main__":
    typer.run(main)
