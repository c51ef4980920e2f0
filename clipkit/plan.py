"""What a training run will need, before it starts: weights, arithmetic, memory, steps, hours and money."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from clipkit import config, data, distributed, objectives, optim
from clipkit.data.rows import Rows
from clipkit.errors import UserError
from clipkit.models import gpus
from clipkit.models.create import outline
from clipkit.models.flops import TRAINED, Imagined
from clipkit.models.speed import speed_up, stacked
from clipkit.objectives._tiles import CUDA_SIDE
from clipkit.shards import draw_caption
from clipkit.train import Settings
from clipkit.train.settings import total_steps

FLOAT = 4  # bytes
GB = 1e9
READ = 1000  # captions, to know how long they are
USED = 0.9  # of a GPU's memory: its driver, communication and fragmentation take the rest


@dataclass(frozen=True)
class Facts:
    """What is known of the data: samples, columns of text in a batch, and why something is not."""

    samples: int | None = None
    columns: int | None = None
    unknown: str = ""


def plan(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    ranks: int = 1,
    gpu: str | None = None,
    mfu: float = 0.4,
    price: float | None = None,
    samples: int | None = None,
    sharded: bool = False,
) -> dict[str, Any]:
    """{parameters, gflop_per_pair, memory_gb, run, checks} of a recipe on `ranks` GPUs of a kind, each busy with `mfu`
    of its peak, at `price` for one GPU and hour.

    Data is looked at where it is on this machine and `samples` is not given; nothing is trained and no device is used.
    `sharded` spreads weights, gradients, moments and averages over the ranks (FSDP2).
    Raises: UserError for a recipe that could not be trained, and for a GPU that is not known.
    """
    cfg = config.load(Settings, config.find("configs", recipe), overrides)
    kind = gpus.find(gpu) if gpu else None
    if gpu and kind is None:
        raise UserError(f"--gpu {gpu}: not known; one of {', '.join(gpus.GPUS)} is needed")
    if cfg.data.batch % ranks:
        fitting = max(cfg.data.batch // ranks, 1) * ranks
        raise UserError(f"data.batch: {ranks} ranks must divide it evenly, got {cfg.data.batch}; try {fitting}")
    objective = objectives.build(cfg.objective)  # type: ignore[arg-type]
    net = Imagined(lambda: outline(cfg.model, objective.bias_init is not None))
    net.net.dtype = _precision(cfg, kind)
    side = max([net.net.shape.size, *(stage.image_size or 0 for stage in cfg.data.stages)])
    held = net.kept(side)
    if cfg.checkpointing:
        speed_up(net.net, False, True)
        held = _recomputed(held, net.kept(side), len(stacked(net.net)) / 2)
    facts = _look(cfg, net, ranks) if samples is None else Facts(samples, unknown="captions were not looked at")
    data.check_stages(cfg.data.stages, net.net.tokenizer, net.net.patch)
    flops = _flops(cfg, net, facts)
    memory = _memory(cfg, net, (held[0] + 3 * side**2, held[1]), ranks, sharded, kind)
    run = {
        "pairs_per_step": cfg.data.batch,
        "ranks": ranks,
        "pairs_per_rank": cfg.data.batch // ranks,
        "first_loss": first_loss(objective, cfg.data.batch),
        "samples": facts.samples,
        **_duration(cfg, facts.samples, flops["trained"] * 1e9, ranks, kind, mfu, price),
    }
    return {
        "parameters": _parameters(net),
        "gflop_per_pair": flops,
        "memory_gb": memory,
        "run": run,
        "checks": list(_checks(cfg, facts, memory, kind)),
    }


def first_loss(objective: objectives.Objective, batch: int) -> float | None:
    """The loss to expect of random embeddings, whose similarities are near 0: ln(N) for softmax; for sigmoid the mean
    over the images of a yes and N - 1 noes at the first bias; None for an objective that is neither."""
    name = type(objective).__module__.rpartition(".")[2]
    if name == "softmax":
        return math.log(batch)
    if name == "sigmoid" and objective.bias_init is not None:
        bias = objective.bias_init
        return math.log1p(math.exp(-bias)) + (batch - 1) * math.log1p(math.exp(bias))
    return None


def _precision(cfg: Settings, kind: gpus.Gpu | None) -> torch.dtype:
    """That of the towers: all GPUs that are known are faster in bf16."""
    if cfg.precision == "auto":
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.bfloat16 if kind else distributed.best_dtype(here)
    return torch.bfloat16 if cfg.precision == "bf16" else torch.float32


def _parameters(net: Imagined) -> dict[str, int]:
    """Weights of the towers, and of the scale, the bias and whatever else there is."""
    whole = net.net.net
    image = sum(p.numel() for p in whole.visual.parameters())
    total = sum(p.numel() for p in whole.parameters())
    rest = sum(p.numel() for name, p in whole.named_parameters() if name in ("logit_scale", "logit_bias"))
    return {"image_tower": image, "text_tower": total - image - rest, "rest": rest, "total": total}


def _flops(cfg: Settings, net: Imagined, facts: Facts) -> dict[str, float]:
    """GFLOP of one pair: forward of each tower, and all of training it. `plain` is open_clip's, over all tokens of the
    context; the others are what clipkit computes on a GPU, averaged over the stages, at the texts of the data where
    these are known."""
    image = text = before = 0.0
    for stage in [*cfg.data.stages, data.Stage(until=1.0)]:
        columns = min((n for n in (stage.context, facts.columns) if n), default=None)
        of_image, of_text = net.flops(stage.image_size, columns, stage.patch_dropout)
        image += (stage.until - before) * of_image
        text += (stage.until - before) * of_text
        before = stage.until
    counts = {
        "plain": TRAINED * net.plain_flops(),
        "at_context": TRAINED * sum(net.flops()),
        "image_forward": image,
        "text_forward": text,
        "trained": TRAINED * (image + text),
    }
    return {name: count / 1e9 for name, count in counts.items()}


def _recomputed(whole: tuple[float, float], kept: tuple[float, float], blocks: float) -> tuple[float, float]:
    """Bytes (of each pair, once) where blocks are computed again: what is kept of all, and the inside of one."""
    of_pair, once = ((a - b) / blocks + b for a, b in zip(whole, kept, strict=True))
    return of_pair, once


def _memory(
    cfg: Settings, net: Imagined, held: tuple[float, float], ranks: int, sharded: bool, kind: gpus.Gpu | None
) -> dict[str, float | int | None]:
    """GB by part on one device at its fullest moment, when backward begins, and the pairs inside the model then; `held`
    are bytes for each of them and, once, for weights in bf16."""
    trainable = [p for p in net.net.net.parameters() if p.requires_grad]
    weights = FLOAT * sum(p.numel() for p in net.net.net.parameters())
    gradients = FLOAT * sum(p.numel() for p in trainable)
    spread = ranks if sharded else 1
    a_pair, copies = held
    mine, width = cfg.data.batch // ranks, net.net.spec["model_cfg"]["embed_dim"]
    chunked = cfg.chunk == "auto" or (cfg.chunk or mine) < mine
    parts: dict[str, float] = {
        "weights": weights / spread,
        "gradients": gradients / (1 if sharded and chunked else spread),  # whole ones add up until the last chunk
        "moments": _moments(cfg, net) / spread,
        "ema": weights / spread if cfg.ema else 0.0,
        "weights_in_bf16": copies,
        # both sides with their gradients, of this rank and of all; and the tiles of the logits
        "loss": FLOAT * 4 * ((mine + cfg.data.batch) * width + min(CUDA_SIDE, mine) * min(CUDA_SIDE, cfg.data.batch)),
    }
    pairs = _pairs_inside(cfg, mine, a_pair, sum(parts.values()), kind)
    parts["activations"] = pairs * a_pair
    total = sum(parts.values())
    told = {name: size / GB for name, size in parts.items()}
    return {**told, "total": total / GB, "a_pair": a_pair / GB, "pairs_inside": pairs}


def _pairs_inside(cfg: Settings, mine: int, a_pair: float, rest: float, kind: gpus.Gpu | None) -> int:
    """Pairs of which activations are held at once; `chunk: auto` takes what fits beside the `rest`."""
    if cfg.chunk is None or isinstance(cfg.chunk, int):
        return min(cfg.chunk or mine, mine)
    if kind is None:
        return mine
    fitting = max(1, int((USED * kind.memory_gb * GB - rest) / a_pair))
    return math.ceil(mine / math.ceil(mine / min(fitting, mine)))


def _moments(cfg: Settings, net: Imagined) -> int:
    """Bytes that the optimizer keeps, found by one step of it on fake gradients; two moments where that cannot be."""
    with net.mode:
        optimizer = optim.build(cfg.optim, net.net.net)
        for p in net.net.net.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        try:
            optimizer.step()
        except DataDependentOutputException:  # it looks at numbers, which fake tensors have not
            return 2 * FLOAT * sum(p.numel() for p in net.net.net.parameters() if p.requires_grad)
        net.net.zero_grad()
    kept = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in kept)


def _look(cfg: Settings, net: Imagined, ranks: int) -> Facts:
    """The samples and the length of the texts of the data, where it is on this machine."""
    if any("://" in one.shards for one in cfg.data.sources.values()):
        return Facts(unknown="the data is remote and was not looked at; give --samples")
    try:
        stream = data.open_stream(cfg.data, net.net.tokenizer, net.net.shape, cfg.seed, 0, ranks)
    except UserError as error:
        return Facts(unknown=f"the data was not found: {error}")
    texts = _texts(stream.rows)
    ids = net.net.tokenizer(texts)
    return Facts(len(stream), net.net.tokenizer.trim(ids).shape[1] if texts else None)


def _texts(rows: Rows) -> list[str]:
    """Captions of the first rank's first batch."""
    texts = []
    for which, shard, row in zip(*(x.tolist() for x in rows.locate(rows.positions(0)[:READ])), strict=True):
        source = rows.sources[which]
        try:
            texts.append(draw_caption(source.shards, shard, row, source.caption, random.Random(row)))
        except (ValueError, OSError):  # training replaces such a sample
            continue
    return texts


def _duration(
    cfg: Settings,
    samples: int | None,
    flop: float,
    ranks: int,
    kind: gpus.Gpu | None,
    mfu: float,
    price: float | None,
) -> dict[str, float | int | None]:
    """steps, epochs, pairs_per_s, hours and cost, each None where it cannot be known."""
    steps = total_steps(cfg, samples or 1) if samples or cfg.steps else None
    pairs = steps * cfg.data.batch if steps else None
    speed = ranks * kind.peak * mfu / flop if kind else None
    hours = pairs / speed / 3600 if pairs and speed else None
    return {
        "steps": steps,
        "pairs": pairs,
        "epochs": pairs / samples if pairs and samples else None,
        "pairs_per_s": speed,
        "hours": hours,
        "cost": hours * ranks * price if hours is not None and price is not None else None,
    }


def _checks(cfg: Settings, facts: Facts, memory: dict[str, Any], kind: gpus.Gpu | None) -> list[str]:
    """What to look at before the start, a sentence each."""
    said = [facts.unknown] if facts.unknown else []
    if (cfg.steps is None) == (cfg.epochs is None):
        said.append("steps, epochs: exactly one is needed; for example epochs=10")
    if facts.samples and facts.samples < cfg.data.batch:
        said.append(
            f"data.batch: {cfg.data.batch} pairs of {facts.samples} samples: some are in a batch more than once"
        )
    if kind and memory["total"] > USED * kind.memory_gb:
        said.append(
            f"{memory['total']:.0f} GB do not fit into {kind.memory_gb:g} GB; try chunk=auto, more GPUs, or --sharded"
        )
    bias = objectives.build(cfg.objective).bias_init  # type: ignore[arg-type]
    fitting = -math.log(max(cfg.data.batch - 1, 1))
    if bias is not None and abs(bias - fitting) > math.log(4):
        said.append(f"objective.bias_init={bias:g}: for batches of {cfg.data.batch} about {fitting:.1f} is fitting")
    return said
