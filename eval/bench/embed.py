"""`clipkit embed` beside a plain open_clip loop over the same pictures, on the CPU in float32.

    python eval/bench/embed.py --check

The pictures are clip art (256 pixels, JPEG), in shards for clipkit and as files for the loop; the model is open_clip's
ViT-S-32-alt with random weights at 224 pixels. The loop is what people write: a Dataset that opens each file with
Pillow and applies the model's own transform, a DataLoader, `encode_image` under `torch.inference_mode`, `np.save`; it
runs with 0, 1 and 2 workers, and the best of these counts. clipkit is `clipkit.embed.embed` with its defaults, but for
float32 rows; it also decodes, and hashes, and writes metadata. Each side runs in a process of its own, one after
another, in turns; what counts are the seconds from the opened model to the written rows. The bars: 1.5 times the
pictures a second, and rows equal to 1e-5. `--decode fast` is shown beside, with its cosine to the exact rows.
"""

import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import parity
import typer

BAR, EQUAL = 1.5, 1e-5
WORKERS = (0, 1, 2)


def loop(arch: str, weights: str, folder: str, out: str, workers: int, batch: int) -> float:
    """Seconds of the plain loop over the files of a folder, and its rows in `out`."""
    import open_clip
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    model, _, transform = open_clip.create_model_and_transforms(arch, pretrained=weights)
    model.eval()
    paths = sorted(Path(folder).iterdir())

    class Pictures(Dataset):
        """One after another, as open_clip's README has it."""

        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, number: int) -> Any:
            return transform(Image.open(paths[number]).convert("RGB"))

    began, rows = time.monotonic(), []
    with torch.inference_mode():
        for pictures in DataLoader(Pictures(), batch_size=batch, num_workers=workers):
            rows.append(model.encode_image(pictures, normalize=True).numpy())
    np.save(out, np.concatenate(rows))
    return time.monotonic() - began


def ours(arch: str, weights: str, shards: str, out: str, decode: str) -> float:
    """Seconds of `clipkit embed` with its defaults, without those of loading the model."""
    from clipkit import embed

    job = embed.Job(f"{arch}/{weights}", shards, out, dtype="float32", what="images", decode=decode)
    prepared = embed.prepare(job)
    began = time.monotonic()
    embed.run(job, prepared)
    return time.monotonic() - began


def side(name: str, model: parity.Model, folder: Path, batch: int) -> tuple[float, np.ndarray]:
    """(seconds, rows) of one side in a process of its own."""
    out = folder / f"{name}.npy"
    if name.startswith("loop"):
        call = f"loop({model.arch!r}, {str(model.weights)!r}, {f'{folder}/files'!r}, {str(out)!r}, {name[4:]}, {batch})"
    else:
        place = tempfile.mkdtemp(dir=folder)
        call = f"ours({model.arch!r}, {str(model.weights)!r}, {f'{folder}/shards'!r}, {place!r}, {name!r})"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import embed; print(embed.{call})"
    seconds = float(parity.run([sys.executable, "-c", code], folder).splitlines()[-1])
    if name.startswith("loop"):
        return seconds, np.load(out)
    return seconds, np.concatenate([np.load(path) for path in sorted(Path(place, "img_emb").glob("*.npy"))])


def lay(folder: Path, clipart: Path, most: int) -> int:
    """Write the same pictures as shards and as files in their order; gives how many there are."""
    count = 0
    (folder / "shards").mkdir()
    (folder / "files").mkdir()
    for shard in sorted(clipart.glob("*.tar")):
        with tarfile.open(shard) as tar, tarfile.open(folder / "shards" / shard.name, "w") as kept:
            for facts in tar:
                if not facts.name.endswith(".jpg") or count >= most:
                    continue
                data = tar.extractfile(facts)
                assert data is not None
                content = data.read()
                (folder / "files" / f"{count:06d}.jpg").write_bytes(content)
                data.seek(0)
                kept.addfile(facts, data)
                count += 1
        if count >= most:
            break
    return count


def measured(model: parity.Model, folder: Path, turns: int, batch: int) -> dict[str, Any]:
    """{seconds: {side: of each turn}, apart: the largest difference of a row's element, cosine: of fast, the least}."""
    names = [*(f"loop{workers}" for workers in WORKERS), "exact", "fast"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, np.ndarray] = {}
    for turn in range(turns):
        for name in names if turn % 2 == 0 else names[::-1]:
            took, rows[name] = side(name, model, folder, batch)
            seconds[name].append(took)
            print(f"{name}: {took:.1f} s", file=sys.stderr, flush=True)
    apart = float(np.abs(rows["exact"] - rows["loop0"]).max())
    return {"seconds": seconds, "apart": apart, "cosine": float((rows["exact"] * rows["fast"]).sum(1).min())}


def verdict(found: dict[str, Any], pictures: int) -> dict[str, Any]:
    """What was measured with medians, pictures a second, the ratio to the best loop, and whether the bars are met."""
    median = {name: statistics.median(each) for name, each in found["seconds"].items()}
    best = min(value for name, value in median.items() if name.startswith("loop"))
    faster = {name: round(best / median[name], 2) for name in median}
    ok = faster["exact"] >= BAR and found["apart"] <= EQUAL
    speed = {name: round(pictures / value, 1) for name, value in median.items()}
    return {
        "bench": "embed",
        "pictures": pictures,
        "pictures_per_s": speed,
        "faster": faster,
        "bar": BAR,
        **found,
        "ok": ok,
    }


def main(
    data: Annotated[Path, typer.Option(help="Folder with shards of JPEGs.")] = parity.CLIPART,
    pictures: Annotated[int, typer.Option(help="At most so many.", min=10)] = 1500,
    turns: Annotated[int, typer.Option(help="Runs of each side.", min=1)] = 3,
    batch: Annotated[int, typer.Option(help="Pictures of a batch of the loop.", min=1)] = 64,
    arch: Annotated[str, typer.Option(help="open_clip's model.")] = "ViT-S-32-alt",
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a bar is missed.")] = False,
) -> None:
    """Pictures a second of `clipkit embed` and of a plain open_clip loop."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = lay(folder, data.resolve(), pictures)
        result = verdict(measured(parity.untrained(folder, arch), folder, turns, batch), count)
    print("side     pictures/s   times the best loop")
    for one, speed in result["pictures_per_s"].items():
        print(f"{one:<8}{speed:>11.1f}{result['faster'][one]:>22.2f}")
    print(f"rows apart by {result['apart']:.1e} at most; fast decoding: cosine {result['cosine']:.5f} at least")
    print(json.dumps({**result, "batch": batch, "arch": arch, "cores": os.cpu_count(), "load": os.getloadavg()}))
    raise typer.Exit(int(check and not result["ok"]))


if __name__ == "__main__":
    typer.run(main)
