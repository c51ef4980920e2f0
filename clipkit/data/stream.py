"""From shards to the batches of this rank. The only state is the position of the next sample.

Global batch s holds positions s*B .. s*B + B - 1 of the order, of which each rank has an equal part. A `DataLoader`
over a map-style dataset delivers in order, so that neither the number of workers nor their speed can change what a
step sees. It never goes through `accelerator.prepare`, which would drop half of the samples (LOG.md).
"""

import os
import signal
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from clipkit.captions import Tokenizer
from clipkit.data.guard import Guard
from clipkit.data.mixture import Mixture, shares_of
from clipkit.data.prefetch import prefetch
from clipkit.data.rows import Rows, Source, make_source
from clipkit.data.settings import Settings
from clipkit.errors import ClipkitError, UserError, from_worker
from clipkit.log import say
from clipkit.shards import Shards, caption_of, json_keys, members_for
from clipkit.types import Bad, Batch, Preprocess

LISTED = 2000  # shards of a source that a checkpoint names one by one, to say which of them changed


class Stream:
    """The batches of this rank from a step on, and the facts by which a resumed run knows its data again."""

    def __init__(self, rows: Rows, workers: int) -> None:
        self.rows, self.workers = rows, workers
        self.guard = Guard(rows.settings.max_bad)
        # sources of earlier phases that are no longer there: how far they were, and what they were
        self.gone: dict[str, tuple[int, dict[str, Any]]] = {}

    def __len__(self) -> int:
        """Samples of all sources together, which is what an epoch of the run is."""
        return sum(len(source.shards) for source in self.rows.sources)

    @property
    def fingerprint(self) -> int:
        """A number that differs where the shards or the shares do."""
        facts = [int(source.shards.fingerprint, 16) for source in self.rows.sources]
        return hash((*facts, *self.rows.mixture.shares, self.rows.mixture.start)) & ((1 << 62) - 1)

    def epochs(self, step: int) -> dict[str, float]:
        """How often each source has been seen before `step`."""
        used = self.rows.mixture.used(step * self.rows.settings.batch)
        return {source.name: n / len(source.shards) for source, n in zip(self.rows.sources, used, strict=True)}

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps: the samples handed out before `step`, and what to check them against."""
        cfg, mixture, sources = self.rows.settings, self.rows.mixture, self.rows.sources
        base = mixture.base or (0,) * len(sources)
        return {
            "version": 2,
            "samples": step * cfg.batch,
            "seed": self.rows.seed,
            "window": cfg.window,
            "lanes": cfg.lanes,
            "phase": {
                "start": mixture.start,
                "shares": {source.name: share for source, share in zip(sources, mixture.shares, strict=True)},
                "base": {
                    **{name: n for name, (n, _) in self.gone.items()},
                    **{source.name: n for source, n in zip(sources, base, strict=True)},
                },
            },
            "sources": {
                **{name: facts for name, (_, facts) in self.gone.items()},
                **{source.name: _facts(source) for source in sources},
            },
        }

    def resume(self, state: dict[str, Any]) -> int:
        """The step to go on from. Other weights, a new source or one less begin a new phase: each source goes on where
        it stands.

        Raises: UserError when the data is no longer what the checkpoint was made with.
        """
        pattern = self.rows.sources[0].shards.pattern
        if state.get("version") != 2:
            raise UserError(f"{pattern}: the run's data.json is of another version of clipkit; start a new run")
        now = self.state(0)
        for fact in ("seed", "window", "lanes"):
            if state[fact] != now[fact]:
                what = f"{fact} {state[fact]}, now it is {now[fact]}"
                raise UserError(f"{pattern}: the run saw {what}; give it the same, or start a new run")
        for source in self.rows.sources:
            before = state["sources"].get(source.name)
            if before is not None:
                _hold(source, before)
        if state["samples"] % (batch := self.rows.settings.batch):
            raise UserError(
                f"data.batch: the run stands at sample {state['samples']:,}, which batches of {batch} do not meet; "
                "give the batch that it had"
            )
        self._enter(state)
        return state["samples"] // batch

    def _enter(self, state: dict[str, Any]) -> None:
        """Take up the phase of a checkpoint, or begin a new one at its position."""
        phase, names = state["phase"], [source.name for source in self.rows.sources]
        shares = dict(zip(names, self.rows.mixture.shares, strict=True))
        if phase["shares"] == shares:  # written in the order of the recipe: that of the checkpoint makes the schedule
            self.rows.sources.sort(key=lambda source: list(phase["shares"]).index(source.name))
            names = list(phase["shares"])
            start, base = phase["start"], phase["base"]
        else:
            before = Mixture(
                tuple(phase["shares"].values()), phase["start"], tuple(phase["base"][name] for name in phase["shares"])
            )
            start = state["samples"]
            base = {**phase["base"], **dict(zip(phase["shares"], before.used(start), strict=True))}
            say(f"data.train: other sources or weights from sample {start:,} on; each source goes on where it stands")
        mixture = Mixture(tuple(shares[name] for name in names), start, tuple(base.get(name, 0) for name in names))
        self.rows = replace(self.rows, mixture=mixture, _steps=OrderedDict())
        self.gone = {name: (n, state["sources"][name]) for name, n in base.items() if name not in names}

    def batches(self, first: int, end: int, steps: int | None = None) -> Iterator[Batch]:
        """The batches of steps first .. end - 1 in a run of `steps` (null: of `end`); text is cut to few columns more
        than the longest caption of each where the tower allows it.

        Raises: BadData when more samples are unreadable than `data.max_bad` allows, StorageError when a remote shard
        is not to be had.
        """
        parts = self.rows.parts
        loader = DataLoader(
            replace(self.rows, steps=steps or end, _steps=OrderedDict()),
            sampler=range(first * parts, end * parts),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=_outlive_one_signal,
        )
        held: list[Batch] = []
        made = iter(loader)  # the workers are forked here
        with prefetch(self.rows, first, end) as reached:
            for part in _plainly(made):
                held.append(part)
                if len(held) == parts:
                    batch = _join(held, self.rows.tokenizer)
                    held = []
                    self.guard.see(batch)
                    reached(int(batch.position.max()) if len(batch) else 0)
                    yield batch
                    self.guard.check()  # after the batch, so that its unreadable samples are written down


def _facts(source: Source) -> dict[str, Any]:
    shards = source.shards
    facts = {"shards": len(shards.names), "samples": len(shards), "fingerprint": shards.fingerprint}
    caption = source.caption if isinstance(source.caption, str) else dict(source.caption)
    listed = dict(zip(shards.names, shards.counts.tolist(), strict=True)) if len(shards.names) <= LISTED else None
    return {**facts, "caption": caption, "counts": listed}


def _hold(source: Source, before: dict[str, Any]) -> None:
    """Raises: UserError, naming the shards, where a source is not what it was."""
    now, pattern = _facts(source), source.shards.pattern
    if before["fingerprint"] != now["fingerprint"]:
        changed = _changed(before["counts"] or {}, now["counts"] or {})
        raise UserError(
            f"{pattern}: the run saw {before['samples']} samples in {before['shards']} shards, now there are "
            f"{now['samples']} in {now['shards']} ({changed}); give it the same shards, or start a new run"
        )
    if before["caption"] != now["caption"]:
        raise UserError(
            f"{pattern}: the run read captions from {before['caption']}, now from {now['caption']}; start a new run"
        )


def _changed(then: dict[str, int], now: dict[str, int]) -> str:
    """The first shards that make the difference."""
    found = [f"{name} is missing" for name in sorted(then.keys() - now.keys())]
    found += [f"{name} is new" for name in sorted(now.keys() - then.keys())]
    both = sorted(name for name in then.keys() & now.keys() if then[name] != now[name])
    found += [f"{name} had {then[name]} samples, now {now[name]}" for name in both]
    return ", ".join(found[:3]) or "names, counts or the selection differ"


def _outlive_one_signal(worker: int) -> None:
    """Ctrl-C, Slurm and torch's launcher signal the whole group, maybe more than once; the workers, in a group of their
    own, go on feeding the step that the main process still ends and saves. Of the signals that reach them all the same
    the second, by which torch gets rid of a stuck worker, ends them."""
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: signal.signal(number, signal.SIG_DFL) and None)


def _plainly(loader: Iterator[Batch]) -> Iterator[Batch]:
    """The loader's parts; a worker's error arrives wrapped in its traceback, and leaves as its own one line.

    The workers are ended at the end, and at that of the program if it comes first: left to the garbage collector after
    an error they would keep it for 10 s, and left to the interpreter, whose one signal they outlive, for ever.
    """
    parts = iter(loader)
    many = isinstance(parts, _MultiProcessingDataLoaderIter)
    end = Finalize(None, parts._shutdown_workers, exitpriority=100) if many else None
    try:
        yield from parts
    except ClipkitError as error:
        raise from_worker(error) from None
    finally:
        if end:
            end()


def _join(parts: list[Batch], tokenizer: Tokenizer) -> Batch:
    bad: list[Bad] = [one for part in parts for one in part.replaced]
    text = tokenizer.trim(_cat([part.text for part in parts]))
    return Batch(
        _cat([part.images for part in parts]),
        text.pin_memory() if parts[0].text.is_pinned() else text,
        _cat([part.position for part in parts]),
        [key for part in parts for key in part.keys],
        bad,
    )


def _cat(parts: list[Tensor]) -> Tensor:
    """All rows, in pinned memory where those of the parts are: a GPU copies from there while the host goes on."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    shape, order = (sum(map(len, parts)), *first.shape[1:]), first.dim_order()  # decoders lay pictures out their way
    rows = torch.empty([shape[i] for i in order], dtype=first.dtype, pin_memory=first.is_pinned())
    return torch.cat(parts, out=rows.permute([order.index(i) for i in range(len(order))]))


def _read_some(source: Source, tries: int = 100) -> None:
    """Read a few captions before the first step, so that a wrong key is told at once and not as many bad samples.

    Raises: UserError naming the keys that are there when a place of captions holds none.
    """
    shards, keys = source.shards, set()
    caption = {source.caption: 1.0} if isinstance(source.caption, str) else source.caption
    for place in (place for place, share in caption.items() if share > 0):
        for number in range(min(tries, len(shards))):
            # neighbours of a remote set: each shard of it would have to be fetched
            apart = 1 if shards.files.cache else len(shards) // min(tries, len(shards))
            shard, row = shards.place(number * apart)
            try:
                caption_of(shards, shard, row, place)
                break
            except (ValueError, OSError):
                keys |= json_keys(shards, shard, row)
        else:
            there = f"; the .json files have {', '.join(sorted(keys))}" if keys else ""
            raise UserError(f"{shards.pattern}: data.caption={place} finds no caption in the samples tried{there}")


def open_stream(cfg: Settings, tokenizer: Tokenizer, shape: Preprocess, seed: int, rank: int, world: int) -> Stream:
    """The training stream of this rank.

    Raises: UserError when there are no shards, no sample has the wanted members, or `world` does not divide the batch.
    """
    if cfg.batch % world:
        raise UserError(
            f"data.batch: {world} ranks must divide it evenly, got {cfg.batch}; "
            f"try {max(cfg.batch // world, 1) * world}"
        )
    if cfg.crop[0] > cfg.crop[1]:
        raise UserError(f"data.crop: the least share comes first, got {list(cfg.crop)}")
    sources = [_open_source(name, cfg, seed) for name in cfg.sources]
    chosen = {name: one.weight for name, one in cfg.sources.items()}
    if None in chosen.values() and any(chosen.values()):
        bare = ", ".join(name for name, weight in chosen.items() if weight is None)
        raise UserError(
            f"data.train: give every source a weight, or none of them (which counts samples): {bare} has none"
        )
    weights = {source.name: chosen[source.name] or float(len(source.shards)) for source in sources}
    mixture = Mixture(tuple(shares_of(weights).values()))
    if len(sources) > 1:
        total = sum(mixture.shares)
        parts = zip(sources, mixture.shares, strict=True)
        say("data.train: " + ", ".join(f"{source.name} {share / total:.1%}" for source, share in parts))
    rows = Rows(sources, mixture, cfg, tokenizer, shape, seed, rank, world)
    if len(stream := Stream(rows, _workers(cfg))) < cfg.batch:
        say(f"data.batch: {cfg.batch} pairs of {len(stream)} samples: a batch holds some of them more than once")
    return stream


def _open_source(name: str, cfg: Settings, seed: int) -> Source:
    one = cfg.sources[name]
    caption = one.caption or cfg.caption
    shards = Shards(one.shards, members_for(caption), one.select or cfg.select, cfg.cache_gb)
    source = make_source(name, shards, caption, cfg, seed)
    _read_some(source)
    if shards.lost:
        say(f"{one.shards}: {len(shards)} samples are usable{shards.told_lost()}")
    return source


def _workers(cfg: Settings) -> int:
    if cfg.workers is not None:
        return cfg.workers
    return max(1, min(8, (os.cpu_count() or 1) // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))
