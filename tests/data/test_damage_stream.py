"""The whole corpus of damage through the training stream: nothing stops it, every reason is counted once a sample."""

from collections import Counter
from pathlib import Path

import pytest

from clipkit.data import Settings, Source, open_stream
from clipkit.types import Preprocess
from tests.samples import toy_tokenizer
from tests.shards import damage

SHAPE = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_the_corpus_reads_or_counts_every_sample(tmp_path: Path, workers: int) -> None:
    kinds = [kind for kind in damage.corpus(tmp_path) if kind.usable]
    assert len(kinds) > 100
    train = {kind.name: Source(shards=str(kind.path), caption=kind.caption) for kind in kinds}
    cfg = Settings(train=train, batch=40, workers=workers, max_bad=1.0)
    stream = open_stream(cfg, toy_tokenizer(), SHAPE, 0, 0, 1)
    assert all(source.shards.lost == kind.left_out for source, kind in zip(stream.rows.sources, kinds, strict=True))
    total = sum(len(kind.usable) + sum(kind.unreadable.values()) for kind in kinds)
    assert len(stream) == total
    steps = -(-total // 40)  # weighed by their sizes, all sources end their first epoch together
    keys: dict[str, set[str]] = {kind.name: set() for kind in kinds}
    bad: dict[str, set[tuple[str, str]]] = {kind.name: set() for kind in kinds}
    for batch in stream.batches(0, steps):
        which, _ = stream.rows.mixture.split(batch.position.numpy())
        for source, key in zip(which.tolist(), batch.keys, strict=True):
            keys[kinds[source].name].add(key)
        for one in batch.replaced:
            bad[one.source].add((one.sample, one.reason))
    for kind in kinds:
        assert keys[kind.name] == set(kind.usable), kind.name
        if len(set(kind.usable)) == len(kind.usable):  # kinds with duplicate keys have samples of one name
            assert Counter(reason for _, reason in bad[kind.name]) == kind.unreadable, kind.name
