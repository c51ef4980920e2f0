"""What `clipkit plan` says, against sums worked out by hand, and what it refuses."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipkit import cli, objectives
from clipkit.errors import UserError
from clipkit.plan import first_loss, plan
from tests import making


def test_a_vit_b32_is_planned_to_the_figures_that_are_known_of_it() -> None:
    asked = ["model.arch=ViT-B-32", "data.batch=2048", "precision=bf16", "data.train=/nowhere", "ema=0.999"]
    facts = plan("vit_b32", asked, ranks=8, gpu="h100", mfu=0.4, price=2.5, samples=10_000_000)
    parameters, flops, memory, run = (facts[name] for name in ("parameters", "gflop_per_pair", "memory_gb", "run"))
    assert parameters == {"image_tower": 87849216, "text_tower": 63428096, "rest": 1, "total": 151277313}
    assert flops["plain"] == pytest.approx(44.3, rel=0.03) and flops["trained"] < flops["plain"]
    assert memory["weights"] == memory["gradients"] == memory["ema"] == pytest.approx(0.605, rel=0.01)
    assert memory["moments"] == pytest.approx(1.21, rel=0.01) and memory["pairs_inside"] == 256
    # torch's own memory tracker, 256 pairs in bf16 without an average: 9.9 GiB
    assert memory["total"] - memory["ema"] == pytest.approx(9.9 * 1.0737, rel=0.1)
    assert run["first_loss"] == math.log(2048) and run["steps"] == math.ceil(10 * 10_000_000 / 2048)
    assert run["pairs_per_s"] == pytest.approx(8 * 989e12 * 0.4 / (flops["trained"] * 1e9))
    assert run["hours"] == pytest.approx(run["pairs"] / run["pairs_per_s"] / 3600)
    assert run["cost"] == pytest.approx(run["hours"] * 8 * 2.5)

    spread = plan("vit_b32", [*asked, "chunk=64"], ranks=8, gpu="h100", samples=10_000_000, sharded=True)["memory_gb"]
    assert spread["weights"] == memory["weights"] / 8 and spread["gradients"] == memory["gradients"]
    assert spread["activations"] == pytest.approx(memory["activations"] / 4)

    whole = plan("vit_b32", ["data.batch=65536", "chunk=auto"], gpu="l4", samples=10_000_000)
    assert whole["memory_gb"]["total"] < 0.9 * 24 and 100 < whole["memory_gb"]["pairs_inside"] < 800
    tight = plan("vit_b32", ["data.batch=65536"], gpu="l4", samples=10_000_000)
    assert any("do not fit into 24 GB; try chunk=auto" in text for text in tight["checks"])


def test_data_that_is_there_is_counted_and_stages_cost_less(tmp_path: Path) -> None:
    recipe = str(making.recipe(tmp_path))
    there = plan(recipe)
    assert there["run"]["samples"] == 50 and there["run"]["epochs"] == 20 * 8 / 50 and there["checks"] == []
    assert there["run"]["hours"] is None and there["run"]["cost"] is None
    assert there["gflop_per_pair"]["trained"] < there["gflop_per_pair"]["at_context"]  # captions of a few words
    half = plan(recipe, ["data.stages=[{until: 0.5, context: 8}]"])["gflop_per_pair"]
    assert half["text_forward"] < there["gflop_per_pair"]["text_forward"]
    assert half["image_forward"] == there["gflop_per_pair"]["image_forward"]
    gone = plan(recipe, ["data.train=nowhere", "objective=sigmoid", "steps=null", "epochs=1"])
    assert gone["run"]["steps"] is None and gone["checks"][0].startswith("the data was not found: nowhere")
    assert "objective.bias_init=-10: for batches of 8 about -1.9 is fitting" in gone["checks"]
    remote = plan(recipe, ["data.train=s3://bucket/00000.tar"])
    assert remote["checks"] == ["the data is remote and was not looked at; give --samples"]


def test_the_first_loss_is_that_of_similarities_of_zero() -> None:
    assert first_loss(objectives.build(objectives.parse("softmax")), 4096) == math.log(4096)
    sigmoid = objectives.build(objectives.parse({"name": "sigmoid", "bias_init": -2.0}))
    yes, no = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))
    assert first_loss(sigmoid, 5) == pytest.approx(-math.log(yes) - 4 * math.log(no))


def test_the_command_prints_a_table_or_json_and_says_what_is_wrong(tmp_path: Path) -> None:
    recipe, runner = str(making.recipe(tmp_path)), CliRunner()
    shown = runner.invoke(cli.app, ["plan", recipe, "steps=5", "--gpu", "a100", "--price", "1"])
    assert shown.exit_code == 0 and "loss at the start (random weights)\t2.08" in shown.output
    told = runner.invoke(cli.app, ["plan", recipe, "steps=5", "--json"])
    assert json.loads(told.output)["run"]["steps"] == 5
    for arguments, message in (
        ((recipe, "data.batch=9", "--gpus", "2"), "data.batch: 2 ranks must divide it evenly, got 9; try 8"),
        ((recipe, "--gpu", "abacus"), "--gpu abacus: not known; one of A10, "),
        ((recipe, "steps=none"), "steps: a whole number is needed"),
    ):
        refused = runner.invoke(cli.app, ["plan", *arguments])
        assert isinstance(refused.exception, UserError) and message in str(refused.exception)
