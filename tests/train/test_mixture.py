"""A run over several sources with damage in one: resumed with other weights, its epochs and losses of samples told."""

import json
from collections import Counter
from pathlib import Path

from clipkit.log import read_rows
from tests import making
from tests.samples import sample, write_shard


def test_weights_change_on_resume_and_unreadable_samples_are_told(tmp_path: Path) -> None:
    making.shards(tmp_path / "good", (12,))
    write_shard(tmp_path / "bad.tar", [sample(n, **({"jpg": b"<html>"} if n == 2 else {})) for n in range(4)])
    sources = {"good": {"shards": str(tmp_path / "good"), "weight": 3}, "web": {"shards": str(tmp_path / "bad.tar")}}
    data = {"train": sources, "batch": 8, "workers": 0, "augment": {"flip": 0.5, "jitter": 0.5}, "max_bad": 1}
    path = making.recipe(tmp_path, data=data, steps=6, save_every=3)
    first = making.clipkit("train", str(path), "data.train.web.weight=1")
    assert first.returncode == 0, first.stderr
    assert "bad.tar key 00002: not a picture; another of its shard stands in for it" in first.stderr
    run = tmp_path / "run"
    rows = read_rows(run / "metrics.jsonl")
    assert rows[-1]["epochs"] == {"good": 3.0, "web": 3.0}
    bad = read_rows(run / "bad-samples-rank0.jsonl")
    assert rows[-1]["replaced"] == len(bad) >= 3 and {one["source"] for one in bad} == {"web"}
    assert rows[-1]["replaced_because"] == {"web: not a picture": len(bad)}
    assert f"{len(bad)} unreadable samples were replaced by others of their shards (web: not a picture:" in first.stderr

    again = making.clipkit("train", str(path), "data.train.web.weight=5", "steps=8")
    assert again.returncode == 0, again.stderr
    assert "data.train: other sources or weights from sample 48 on; each source goes on where it stands" in again.stderr
    assert read_rows(run / "metrics.jsonl")[-1]["epochs"] == {"good": 3.5, "web": 5.5}
    kept = json.loads((run / "checkpoints/000000008/data.json").read_text())["phase"]
    assert kept == {"start": 48, "shares": {"good": 3, "web": 5}, "base": {"good": 36, "web": 12}}
    for start, end, wanted in ((1, 6, 3), (7, 8, None)):
        keys = Counter(key for step in range(start, end + 1) for _, key in making.samples(run)[step])
        assert wanted is None or min(keys.values()) >= 1


def test_a_source_that_is_no_mapping_is_refused_with_its_key(tmp_path: Path) -> None:
    path = making.recipe(tmp_path, data={"train": {"web": {"shard": "x"}}, "caption": 3})
    done = making.clipkit("train", str(path))
    assert done.returncode == 2
    assert "data.train.web.shard: unknown key; did you mean 'shards'?" in done.stderr
    assert "data.train.web.shards: is needed" in done.stderr
    assert "data.caption: txt, json:KEY or a mapping of these to their probabilities is needed, got 3" in done.stderr
