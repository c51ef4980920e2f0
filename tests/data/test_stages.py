"""Stages of a run: what each batch is like, where they end, and what is refused before the first step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.captions import Tokenizer
from clipkit.config import load
from clipkit.data import Stage, check_stages, stage_at
from clipkit.data.stages import shorten
from clipkit.errors import UserError
from clipkit.train.settings import Settings
from tests.data.streams import assert_same, stream
from tests.making import recipe
from tests.samples import spell, toy_tokenizer

STAGES = [Stage(until=0.3, image_size=8, context=4, patch_dropout=0.5), Stage(until=0.7, image_size=12)]


def test_a_stage_ends_at_its_share_of_the_steps_and_the_rest_is_the_models() -> None:
    found = [stage_at(STAGES, step, 10) for step in range(10)]
    assert found == [STAGES[0]] * 3 + [STAGES[1]] * 4 + [Stage(until=1.0)] * 3
    assert stage_at([], 0, 10) == Stage(until=1.0) == stage_at([Stage(until=0.1)], 0, 2)
    assert stage_at([Stage(until=1.0, context=5)], 9, 10).context == 5


def test_batches_are_made_as_their_stage_says_and_hold_the_samples_that_they_would(shards: Path) -> None:
    plain = list(stream(shards).batches(0, 10))
    staged = list(stream(shards, stages=STAGES).batches(0, 10))
    assert [one.keys for one in staged] == [one.keys for one in plain]
    assert [one.images.shape[2:] for one in staged] == [(8, 8)] * 3 + [(12, 12)] * 4 + [(16, 16)] * 3
    assert all(one.text.shape == (8, 4) for one in staged[:3])
    assert_same(staged[7:], plain[7:])


def test_a_resumed_run_and_a_run_of_workers_meet_the_same_stages(shards: Path) -> None:
    whole = list(stream(shards, stages=STAGES).batches(0, 10))
    assert_same(list(stream(shards, stages=STAGES).batches(2, 4, 10)), whole[2:4])
    assert_same(list(stream(shards, stages=STAGES, workers=2).batches(1, 10)), whole[1:])


def test_a_text_that_is_cut_keeps_its_end() -> None:
    text = torch.tensor([[1, 5, 6, 7, 8, 2, 0], [1, 5, 2, 0, 0, 0, 0], [1, 5, 6, 2, 0, 0, 0], [0] * 7])
    assert shorten(text, 4, 0).tolist() == [[1, 5, 6, 2], [1, 5, 2, 0], [1, 5, 6, 2], [0] * 4]
    assert shorten(text, 7, 0) is text and shorten(text[:0], 3, 0).shape == (0, 3)
    assert shorten(torch.tensor([[4, 0, 9, -1, -1]]), 2, -1).tolist() == [[4, 9]]
    assert text[0, 3] == 7, "the whole is left as it was"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"until": 0.5}, {"until": 0.5}], r"data.stages.1.until: more than 0.5 is needed, .* got 0.5"),
        (
            [{"until": 1, "image_size": 100}],
            r"stages.0.image_size: a multiple of .* 16 pixels is needed, got 100; try 96",
        ),
        ([{"until": 1, "context": 17}], r"data.stages.0.context: at most the model's 16 is needed, got 17"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_stages([Stage(**stage) for stage in stages], toy_tokenizer(), 16)


def test_what_a_tower_cannot_do_is_refused() -> None:
    for setting in ({"image_size": 32}, {"patch_dropout": 0.5}):
        with pytest.raises(UserError, match=rf"data.stages.0.{next(iter(setting))}: the image tower has to be a ViT"):
            check_stages([Stage(until=1.0, **setting)], toy_tokenizer(), None)
    with pytest.raises(UserError, match=r"data.stages.0.context: the text tower of this model takes texts of its own"):
        check_stages([Stage(until=1.0, context=8)], Tokenizer(spell, 16, 0, False), 16)
    check_stages([Stage(until=1.0, context=8)], toy_tokenizer(), None)


def test_stages_are_written_in_a_recipe_or_on_the_command_line(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    cfg = load(Settings, path, ["data.stages=[{until: 0.3, image_size: 16}, {until: 0.9, patch_dropout: 0.5}]"])
    assert cfg.data.stages == [Stage(until=0.3, image_size=16), Stage(until=0.9, patch_dropout=0.5)]
    with pytest.raises(UserError, match=r"data.stages.0.image_siez: unknown key"):
        load(Settings, path, ["data.stages=[{until: 0.3, image_siez: 16}]"])
