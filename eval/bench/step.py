"""A training step of clipkit and of open_clip_train in one process on the CPU: the same pairs, the same weights.

    python eval/bench/step.py --check

Both get the same architecture, weights, pairs and rates in fp32. open_clip's side is the step of its trainer: pictures
already floats, texts padded to the context, `ClipLoss`, backward, AdamW as its main builds it, scale clamped; clipkit's
is its training loop's: uint8 pictures, texts as the stream cuts them, the norm of the gradient. Steps alternate, and
medians are compared. The bars: losses equal to 1e-5 at each of 20 steps, and 1.8 times the pairs per second, by the
clock and by the CPU. The model is small (96 pixels, both towers of width 192 and 6 layers), so that texts are two
thirds of what open_clip computes; in ViT-B/32 they are two fifths, in ViT-L/14 a twelfth, and the gain is smaller.
"""

import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor
from trainers import RECIPE

if TYPE_CHECKING:
    from clipkit.models import DualEncoder
    from clipkit.types import Batch

LOSSES, FASTER, WARM = 1e-5, 1.8, 2
WORDS = ("red", "small", "old", "round", "wooden", "cat", "dog", "house", "tree", "boat", "car", "bird", "man", "star")
Step = Callable[[Any, int], Tensor]


@dataclass(frozen=True)
class Sizes:
    """The towers: width, blocks and 64 wide heads of both, pixels of a picture and a patch, tokens of a text."""

    width: int = 192
    layers: int = 6
    side: int = 96
    patch: int = 16
    context: int = 77

    def config(self) -> dict[str, Any]:
        """As open_clip's model configs have it."""
        vision = {"image_size": self.side, "layers": self.layers, "width": self.width, "patch_size": self.patch}
        text = {"context_length": self.context, "vocab_size": 49408, "width": self.width, "layers": self.layers}
        return {"embed_dim": self.width, "vision_cfg": vision, "text_cfg": {**text, "heads": self.width // 64}}


def models(sizes: Sizes) -> "tuple[DualEncoder, Any]":
    """(clipkit's, open_clip's) model with the same weights."""
    import open_clip

    from clipkit.models import Settings, create

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench-step.json"
        path.write_text(json.dumps(sizes.config()))
        torch.manual_seed(0)
        ours = create(Settings(arch=str(path)), 1 / 0.07, None).train()
        open_clip.add_model_config(path)
        peer = open_clip.create_model("bench-step", output_dict=True, load_weights=False).train()
    peer.load_state_dict({**ours.net.state_dict(), "logit_scale": ours.net.logit_scale.detach().reshape(())})
    return ours, peer


def pairs(model: "DualEncoder", data: str | None, batch: int, count: int) -> "list[Batch]":
    """`count` batches with texts of the whole context: of the shards `data`, or noise with captions of 6 to 22 words
    where there are none."""
    from clipkit.data import Settings, open_stream
    from clipkit.types import Batch

    if data is None:
        dice, rows, side = random.Random(0), torch.arange(batch), model.shape.size
        torch.manual_seed(0)
        pictures = [torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8) for _ in range(count)]
        captions = [[" ".join(dice.choices(WORDS, k=dice.randint(6, 22))) for _ in range(batch)] for _ in range(count)]
        return [Batch(p, model.tokenizer(c), rows, [""] * batch) for p, c in zip(pictures, captions, strict=True)]
    cfg = Settings(train=data, batch=batch, workers=0, crop=RECIPE["crop"])
    stream = open_stream(cfg, model.tokenizer, model.shape, 0, 0, 1)
    found = []
    for made in stream.batches(0, count):
        whole = torch.zeros(batch, model.tokenizer.context, dtype=torch.long)
        whole[:, : made.text.shape[1]] = made.text
        found.append(Batch(made.images, whole, made.position, made.keys))
    return found


def rate(step: int) -> float:
    """The learning rate of both sides."""
    return RECIPE["lr"] * min(1.0, (step + 1) / RECIPE["warmup"])


def clipkit_step(model: "DualEncoder") -> Step:
    """(batch, number of the step) -> the loss, as clipkit trains."""
    from dataclasses import replace

    from clipkit import objectives, optim, parallel
    from clipkit.step import gradients

    facts = {name: RECIPE[name] for name in ("lr", "weight_decay", "betas", "eps")}
    cfg, objective = optim.Settings(**facts), objectives.build({"name": "softmax"})
    optimizer = optim.build(cfg, model.net)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step(batch: "Batch", number: int) -> Tensor:
        batch = replace(batch, text=model.tokenizer.trim(batch.text))
        optim.set_lr(optimizer, rate(number))
        optimizer.zero_grad()
        loss = gradients(model, objective, batch)
        optim.update(optimizer, parallel.clip(parameters, None))
        model.clamp_scale()
        return loss

    return step


def open_clip_step(model: Any) -> Step:
    """((pictures, texts), number of the step) -> the loss, as open_clip_train trains in fp32 on one device."""
    from open_clip import ClipLoss

    def spared(name: str, p: Tensor) -> bool:
        return p.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if spared(name, p)], "weight_decay": 0.0},
        {"params": [p for name, p in named if not spared(name, p)], "weight_decay": RECIPE["weight_decay"]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RECIPE["lr"], betas=RECIPE["betas"], eps=RECIPE["eps"])
    objective = ClipLoss(cache_labels=True)

    def step(batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate(number)
        optimizer.zero_grad()
        losses = objective(**model(*batch), output_dict=True)
        total = sum(losses.values())
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return total.detach()

    return step


def measure(sizes: Sizes, data: str | None, batch: int, steps: int) -> dict[str, Any]:
    """Losses of both sides, and median seconds of a step by the clock and by the CPU, after WARM steps."""
    from clipkit.images import normalize

    ours, peer = models(sizes)
    batches = pairs(ours, data, batch, steps)
    sides: dict[str, Step] = {"clipkit": clipkit_step(ours), "open_clip": open_clip_step(peer)}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    clock: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for number, made in enumerate(batches):
        given = {"clipkit": made, "open_clip": (normalize(made.images, ours.mean, ours.std), made.text)}
        for name in list(sides)[:: 1 if number % 2 else -1]:
            began, used = time.perf_counter(), time.process_time()
            loss = sides[name](given[name], number)
            clock[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - used)
            losses[name].append(loss.item())
        told = ", ".join(f"{name} {losses[name][-1]:.6f} in {clock[name][-1]:.2f} s" for name in sides)
        print(f"step {number + 1} of {steps}: {told}", file=sys.stderr, flush=True)
    used = torch.cat([made.text for made in batches]).ne(0).sum(1).float()
    return {
        "tokens": round(used.mean().item(), 1),
        "apart": max(abs(a - b) for a, b in zip(losses["clipkit"], losses["open_clip"], strict=True)),
        "clock_s": {name: round(statistics.median(times[WARM:]), 4) for name, times in clock.items()},
        "cpu_s": {name: round(statistics.median(times[WARM:]), 4) for name, times in cpu.items()},
    }


def verdict(found: dict[str, Any], batch: int) -> dict[str, Any]:
    """What was measured with the ratios and whether they pass."""
    ratio = {what: round(found[what]["open_clip"] / found[what]["clipkit"], 3) for what in ("clock_s", "cpu_s")}
    pairs_per_s = {name: round(batch / seconds, 1) for name, seconds in found["clock_s"].items()}
    ok = found["apart"] <= LOSSES and min(ratio.values()) >= FASTER
    return {"bench": "step", **found, "pairs_per_s": pairs_per_s, "faster": ratio, "bar": FASTER, "ok": ok}


def main(
    data: Annotated[str | None, typer.Option(help="Shards, folder or glob; without it pairs are made up.")] = None,
    batch: Annotated[int, typer.Option(help="Pairs of a step.", min=2)] = 128,
    steps: Annotated[int, typer.Option(help=f"Steps of each side; {WARM} of them are not timed.", min=WARM + 1)] = 22,
    context: Annotated[int, typer.Option(help="Tokens that open_clip pads texts to.", min=4)] = 77,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; all cores without it.", min=1)] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a bar is missed.")] = False,
) -> None:
    """Pairs per second of a training step of clipkit and of open_clip_train."""
    if threads:
        torch.set_num_threads(threads)
    result = verdict(measure(Sizes(context=context), data, batch, steps), batch)
    print("side        loss equal   s a step   CPU s   pairs/s")
    for name in ("open_clip", "clipkit"):
        seconds, cpu, speed = result["clock_s"][name], result["cpu_s"][name], result["pairs_per_s"][name]
        print(f"{name:<10}  {result['apart']:10.1e}  {seconds:9.3f}  {cpu:6.3f}  {speed:8.1f}")
    print(f"captions of {result['tokens']} tokens in {context}: {result['faster']['cpu_s']:.2f} times open_clip")
    print(json.dumps({**result, "batch": batch, "steps": steps, "context": context}))
    raise typer.Exit(int(check and not result["ok"]))


if __name__ == "__main__":
    typer.run(main)
