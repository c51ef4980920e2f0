"""The benches beside clip_benchmark: their sets are what they say, and their verdicts are held to the bars."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit.sets import open_set
from tests import making, samples

sys.path.insert(0, str(making.ROOT / "eval/bench"))

import layouts  # noqa: E402
import parity  # noqa: E402
import peers  # noqa: E402

import eval as eval_bench  # noqa: E402

sys.path.pop(0)


@pytest.fixture
def shown(tmp_path: Path) -> list[layouts.Picture]:
    facts = [json.dumps({"rel": f"{'animals' if i % 2 else 'things'}/{i}.png"}).encode() for i in range(7)]
    path = samples.write_shard(tmp_path / "0.tar", [samples.sample(i, json=facts[i]) for i in range(7)])
    return list(layouts.pictures([path]))


def test_a_layout_is_read_as_the_set_that_it_was_made_of(shown: list[layouts.Picture], tmp_path: Path) -> None:
    classes = layouts.classification(tmp_path / "c", [(one, one.facts["rel"].split("/")[0]) for one in shown])
    found = open_set(str(classes))
    assert found.about.kind == "zeroshot" and found.about.classes == ("animals", "things")
    assert [found.field(i, "cls") for i in range(7)] == [1, 0, 1, 0, 1, 0, 1]
    assert [found.image(i) for i in range(7)] == [one.data for one in shown]
    words = open_set(str(layouts.multilabel(tmp_path / "m", shown)))
    assert words.about.kind == "multilabel" and len(words.about.classes or ()) == len(words.field(0, "npy"))
    named = dict(zip(words.about.classes or (), words.field(2, "npy").tolist(), strict=True))
    assert all(bool(there) == (word in shown[2].caption) for word, there in named.items())


def test_no_caption_stands_twice_in_a_set_of_retrieval(shown: list[layouts.Picture], tmp_path: Path) -> None:
    again = dataclasses.replace(shown[2], caption=shown[2].caption.upper())
    pairs = open_set(str(layouts.retrieval(tmp_path / "r", [*shown, again])))
    captions = [pairs.field(i, "txt:lines") for i in range(8)]
    assert pairs.about.kind == "retrieval" and [one[0] for one in captions[:7]] == [one.caption for one in shown]
    assert [len(one) for one in captions] == [3, 2, 2, 2, 2, 2, 2, 1]  # all begin with `a`
    assert captions[7] == [f"{again.caption}, number 7"]


def test_a_score_that_is_apart_fails_the_bench() -> None:
    rows = [parity.Row("m", "wds_d", "acc1", 0.5, 0.5 + apart) for apart in (0.0, 1e-8)]
    assert parity.verdict(rows)["ok"]
    assert not parity.verdict([*rows, parity.Row("m", "wds_d", "acc5", 0.5, 0.5001)])["ok"]
    assert "1.0e-04" in parity.table([parity.Row("m", "wds_d", "acc5", 0.5, 0.5001)])


@pytest.mark.parametrize(("clipkit", "again", "ok"), [(1.0, 0.15, True), (1.1, 0.15, False), (1.0, 0.16, False)])
def test_calls_that_are_too_slow_fail_the_bench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clipkit: float, again: float, ok: bool
) -> None:
    seconds = {"clip_benchmark": [3.1, 3.0, 9.0], "clipkit": [clipkit] * 3, "clipkit again": [again] * 3}
    monkeypatch.setattr(eval_bench, "sets", lambda *args: [])
    monkeypatch.setattr(parity, "untrained", lambda folder: None)
    monkeypatch.setattr(peers, "evaluator", lambda: "python")
    monkeypatch.setattr(eval_bench, "measured", lambda *args: {"seconds": seconds, "apart": 1e-9})
    app = eval_bench.typer.Typer()
    app.command()(eval_bench.main)
    done = CliRunner().invoke(app, ["--check"])
    assert done.exit_code == (0 if ok else 1), done.output
    told = json.loads(done.output.splitlines()[-1])
    assert told["ok"] == ok and told["first"] == pytest.approx(3.1 / clipkit, abs=0.01)
