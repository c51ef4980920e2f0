"""`clipkit eval`: rows and what lies beside them, a second run that loads nothing, comparisons, and bad data."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit import certainty, evals, models, sets
from clipkit.errors import UserError
from clipkit.evals import Outcome
from clipkit.evaluate import comparison, evaluate, results, score
from clipkit.log import read_rows
from tests import making, samples
from tests.conftest import Typed


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> str:
    return making.saved(tmp_path_factory.mktemp("one"), 0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return making.saved(tmp_path_factory.mktemp("other"), 1)


@pytest.fixture
def suite(tmp_path: Path) -> str:
    """Retrieval and zero-shot classification of 33 pictures."""
    return making.suite(tmp_path, making.shards(tmp_path / "data", (20, 0, 13)))


def test_a_table_has_a_row_of_each_score_with_its_interval(typed: Typed, one: str, suite: str) -> None:
    code, out, _ = typed("eval", one, suite)
    head, *rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and head == ["data set", "score", "value", "interval"]
    told = {(task, name): (value, interval) for task, name, value, interval in rows}
    value, interval = told["colours", "acc1"]
    low, high = map(float, interval.split("-"))
    assert low < float(value) < high and len(value) == 6
    assert {task for task, _ in told} == {"pairs", "colours"} and ("pairs", "mean_recall@5") in told


def test_a_row_says_what_was_scored_and_its_files_lie_beside_it(
    typed: Typed, one: str, suite: str, tmp_path: Path
) -> None:
    out = tmp_path / "out/scores.jsonl"
    code, printed, _ = typed("eval", one, suite, "--out", out, "--json")
    rows = read_rows(out)
    assert code == 0 and list(map(json.loads, printed.splitlines())) == rows
    assert [(row["model"], row["task"], row["kind"], row["main"]) for row in rows] == [
        (one, "pairs", "retrieval", "mean_recall@1"),
        (one, "colours", "zeroshot", "acc1"),
    ]
    for row in rows:
        assert (row["dataset"], row["pretrained"], row["metrics"]) == (row["task"], "", row["scores"])
        statistics = certainty.load(out.parent / row["outcomes"])
        assert set(statistics) == set(row["intervals"]) <= set(row["scores"])
        for name, statistic in statistics.items():
            low, high = row["intervals"][name]
            assert (
                row["scores"][name] == pytest.approx(certainty.value(statistic)) and low <= row["scores"][name] <= high
            )
        held = row["provenance"]
        assert held["model_digest"] == models.Named(one).digest and held["precision"] in ("float32", "bfloat16")
        assert held["setting"]["data"] == str(tmp_path / "data") and held["torch"] == str(torch.__version__)
        assert held["data_digest"] == sets.open_set(str(tmp_path / "data")).digest
    assert held["prompts_digest"] and rows[1]["level"] == 0.95


def test_a_data_set_that_cannot_be_scored_does_not_stop_the_others(typed: Typed, one: str, tmp_path: Path) -> None:
    data = str(making.shards(tmp_path / "data", (9,)))
    wrong = {"kind": "zeroshot", "data": data, "label": "json:nothing"}
    tasks = [{"name": "a", **wrong}, {"name": "b", "kind": "retrieval", "data": data}, {"name": "c", **wrong}]
    (tmp_path / "s.yaml").write_text(json.dumps({"tasks": tasks, "average": True}))
    code, out, said = typed("eval", one, tmp_path / "s.yaml", "--json")
    assert code == 2 and [json.loads(line)["task"] for line in out.splitlines()] == ["b"]
    assert "2 of 2 evaluations" not in said and "2 of 3 evaluations cannot be done" in said
    assert f"  {one}: a: " in said and f"  {one}: c: " in said and "average" not in out
    code, out, _ = typed("eval", one, tmp_path / "s.yaml")
    assert code == 2 and "b\tmean_recall@1" in out and "median_rank (less is better)" in out


def test_classes_without_a_picture_are_told(typed: Typed, one: str, tmp_path: Path) -> None:
    data = making.shards(tmp_path / "data", (6,))
    tree = {"kind": "zeroshot", "data": str(data), "label": "cls", "classes": [*samples.COLORS]}
    (tmp_path / "colours.yaml").write_text(json.dumps(tree))
    code, _, said = typed("eval", one, tmp_path / "colours.yaml")
    assert code == 0 and "colours: 2 of 8 classes have no picture" in said


def test_a_results_file_that_was_cut_short_says_so(typed: Typed, one: str, suite: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    typed("eval", one, suite, "--out", path)
    path.write_bytes(path.read_bytes()[:-40])
    assert len(results.read(path)) == 1
    _, _, said = typed("eval", "--compare", path, path)
    assert "scores.jsonl: its last line is cut short and is left out" in said


def test_tables_know_where_their_pictures_lie(typed: Typed, one: str, suite: str, tmp_path: Path) -> None:
    typed("eval", one, suite, "--out", tmp_path / "scores.jsonl")
    row = read_rows(tmp_path / "scores.jsonl")[1]
    kept = json.loads((tmp_path / row["tables"]).read_text())
    shown = [item["number"] for kind in ("right", "wrong") for item in kept["tables"]["examples"][kind]]
    assert shown and set(map(str, shown)) <= set(kept["pictures"])
    samples_ = sets.open_set(str(tmp_path / "data"))
    assert all(where == samples_.where(int(number)) for number, where in kept["pictures"].items())


def test_samples_that_could_not_be_used_are_counted_in_the_row(one: str, suite: str, tmp_path: Path) -> None:
    assert all("left_out" not in row["facts"] for row in evaluate(one, suite))
    samples.write_tar(tmp_path / "data/9.tar", [("a.txt", b"only words"), ("b.txt", b"more")])
    for row in evaluate(one, suite):
        assert row["facts"]["left_out"] == {"no image": 2} and row["facts"]["images"] == 33


def test_numbers_of_pictures_are_found_wherever_tables_hold_them() -> None:
    tables = {
        "found": [{"number": 3, "nearest": [4, 5]}, {"number": 6, "nearest": ["a text"]}],
        "confusions": [{"true": "a", "n": 9, "examples": [7, 8]}],
        "examples": {"right": [{"number": 1, "rank": 2}]},
    }
    assert sorted(results._numbers(tables)) == [1, 3, 4, 5, 6, 7, 8]


def test_a_second_run_loads_no_model_and_writes_no_second_row(one: str, suite: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "clipkit",
        "eval",
        one,
        suite,
        "--out",
        str(tmp_path / "s.jsonl"),
    ]
    environment = making.environment(XDG_CACHE_HOME=str(tmp_path / "cache"))
    first, again = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert first.stdout == again.stdout
    assert len(read_rows(tmp_path / "s.jsonl")) == 2
    loaded = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines() if line.startswith("import time:")}
    assert "clipkit.evaluate" in loaded
    assert not loaded & {"open_clip", "torchvision", "transformers", "accelerate", "sklearn", "matplotlib"}


def test_what_was_stopped_goes_on(typed: Typed, one: str, suite: str, tmp_path: Path) -> None:
    out, colours = tmp_path / "s.jsonl", tmp_path / "colours.yaml"
    good = colours.read_text()
    colours.write_text(json.dumps({**json.loads(good), "classes": ["red", "green"]}))
    code, _, said = typed("eval", one, suite, "--out", out)
    assert code == 2 and "which is not among the 2 classes" in said
    assert [row["task"] for row in read_rows(out)] == ["pairs"]
    with out.open("a") as file:
        file.write('{"model": "cut sh')  # what a kill leaves
    colours.write_text(good)
    code, _, _ = typed("eval", one, suite, "--out", out)
    assert code == 0 and [row["task"] for row in read_rows(out)] == ["pairs", "colours"]
    typed("eval", one, suite, "--out", tmp_path / "whole.jsonl")
    assert [row["scores"] for row in read_rows(out)] == [row["scores"] for row in read_rows(tmp_path / "whole.jsonl")]


def test_cache_and_batch_and_level_change_no_score(typed: Typed, one: str, suite: str, cache: Path) -> None:
    plain = evaluate(one, suite, cache=False, batch=7)
    assert not (cache / "clipkit/features").exists()
    kept = evaluate(one, suite, level=0.8)
    assert (cache / "clipkit/features").exists()
    for a, b in zip(plain, kept, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-6)
        assert all(a["intervals"][name][0] <= b["intervals"][name][0] for name in a["intervals"])
        assert any(a["intervals"][name][1] > b["intervals"][name][1] for name in a["intervals"])


def test_several_models_are_scored_and_compared(typed: Typed, one: str, other: str, suite: str, tmp_path: Path) -> None:
    out = tmp_path / "s.jsonl"
    code, printed, _ = typed("eval", one, other, suite, "--compare", "--json", "--out", out)
    found = list(map(json.loads, printed.splitlines()))
    rows, told = [row for row in found if "model" in row], [row for row in found if "first" in row]
    assert code == 0 and [row["model"] for row in rows] == [one, one, other, other]
    by_score = {(row["task"], row["score"]): row for row in told}
    acc = by_score["colours", "acc1"]
    assert acc["values"] == [rows[1]["scores"]["acc1"], rows[3]["scores"]["acc1"]] and acc["test"] == "McNemar"
    assert acc["difference"] == pytest.approx(acc["values"][1] - acc["values"][0])
    assert acc["interval"][0] < acc["difference"] < acc["interval"][1] and (acc["first"], acc["second"]) == (one, other)
    code, printed, _ = typed("eval", "--compare", out, "--json")
    assert code == 0 and list(map(json.loads, printed.splitlines())) == told
    code, printed, _ = typed("eval", one, other, suite, "--compare")
    assert code == 0 and "model\tdata set\tscore" in printed
    assert "data set\tscore\tfirst\tsecond\tdifference\tinterval\tp\tbetter" in printed


def test_results_of_one_name_are_told_apart_by_their_files(typed: Typed, one: str, suite: str, tmp_path: Path) -> None:
    places = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for place in places:
        typed("eval", one, suite, "--out", place)
    code, printed, _ = typed("eval", "--compare", *places, "--json")
    row = json.loads(printed.splitlines()[0])
    assert code == 0 and (row["first"], row["second"]) == tuple(f"{place}: {one}" for place in places)
    assert row["difference"] == 0 and row["p"] == 1 and row["better"] is None


def side(name: str, first: float, **more: Any) -> comparison.Side:
    statistics = {name: certainty.mean(torch.arange(400) < first * 400) for name in ("acc1", "calibration_error")}
    scores = {name: certainty.value(one) for name, one in statistics.items()}
    row = {"model": name, "scores": scores, "provenance": {"data_digest": "same"}, **more}
    return comparison.Side(name, {"task": results.Result(row, statistics)})


def test_the_better_one_is_named_where_the_difference_is_no_chance() -> None:
    told = comparison.compare([side("a", 0.5), side("b", 0.6), side("c", 0.505)])
    assert [(row["second"], row["score"], row["better"]) for row in told] == [
        ("b", "acc1", "b"),
        ("b", "calibration_error", "a"),
        ("c", "acc1", None),
        ("c", "calibration_error", None),
    ]


def test_no_model_is_better_whose_difference_may_be_none() -> None:
    within, beyond = (certainty.Difference(0.2, low, 0.5, 0.03, "bootstrap") for low in (-0.1, 0.1))
    assert comparison._better("a", "b", "acc1", within, 0.95) is None
    assert comparison._better("a", "b", "acc1", beyond, 0.95) == "b"


def test_other_pictures_are_not_compared() -> None:
    with pytest.raises(UserError, match=r"task: a and b were scored over different pictures \(same and new\)"):
        comparison.compare([side("a", 0.5), side("b", 0.5, provenance={"data_digest": "new"})])
    with pytest.raises(UserError, match="task: a and b were scored with other settings: label"):
        settings = [{"data_digest": "same", "setting": {"data": name, "label": name}} for name in "ab"]
        comparison.compare([side(name, 0.5, provenance=one) for name, one in zip("ab", settings, strict=True)])
    with pytest.raises(UserError, match="a and b have no score in common"):
        comparison.compare([side("a", 0.5), comparison.Side("b", {})])


def test_an_average_is_the_plain_mean_and_its_doubt_that_of_independent_sets() -> None:
    def one(value: float | None, low: float, high: float) -> results.Result:
        row = {"model": "m", "main": "acc1", "scores": {"acc1": value}, "intervals": {"acc1": [low, high]}}
        return results.Result({**row, "seconds": 1.0, "key": f"{value}"}, {})

    found = results.average([one(0.4, 0.37, 0.45), one(0.8, 0.76, 0.92)], 0.95)
    assert found is not None and found.row["scores"]["average"] == pytest.approx(0.6)
    assert found.row["intervals"]["average"] == pytest.approx([0.6 - 0.05 / 2, 0.6 + 0.13 / 2])
    assert results.average([one(0.4, 0.3, 0.5), one(None, 0, 1)], 0.95) is None


def test_a_suite_that_asks_for_it_ends_with_its_average(typed: Typed, one: str, suite: str, tmp_path: Path) -> None:
    Path(suite).write_text(json.dumps({**json.loads(Path(suite).read_text()), "average": True}))
    rows = [result.row for result in score([one], suite, out=str(tmp_path / "s.jsonl"))]
    assert rows[-1]["task"] == "average" and rows[-1]["facts"] == {"tasks": 2}
    mains = [row["scores"][row["main"]] for row in rows[:2]]
    assert rows[-1]["scores"]["average"] == pytest.approx(sum(mains) / 2)
    assert [row["task"] for row in read_rows(tmp_path / "s.jsonl")] == ["pairs", "colours", "average"]
    code, printed, said = typed("eval", "--compare", tmp_path / "s.jsonl", "--json")
    assert code == 2 and not printed and "--compare: two models, or results of two models, are needed" in said


def test_scores_that_are_no_numbers_are_null(tmp_path: Path, one: str) -> None:
    outcome = Outcome("acc1", {"acc1": certainty.Mean(torch.zeros(3), torch.zeros(3))}, plain={"loss": float("inf")})
    data = making.shards(tmp_path / "data", (3,))
    (tmp_path / "t.yaml").write_text(json.dumps({"kind": "retrieval", "data": str(data), "main": "acc1"}))
    task = evals.suite(str(tmp_path / "t.yaml"), tmp_path)[0]
    found = results.result(models.Named(one), task, outcome, 1.0, 0.95)
    assert found.row["scores"] == {"acc1": None, "loss": None} and found.row["intervals"] == {"acc1": [None, None]}
    assert "NaN" not in json.dumps(found.row)


def bad_sets(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """Data sets that cannot be scored, and what is to be said of each."""
    data = str(making.shards(folder / "data", (9,)))
    layout = making.shards(folder / "layout/test", (9,))
    (layout / "00000.tar").rename(layout / "0.tar")
    (layout / "nshards.txt").write_text("1")
    (folder / "layout/classnames.txt").write_text("red\ngreen\nblue\n")
    (folder / "missing.csv").write_text("image,caption\nnowhere.jpg,a cat\n")
    samples.write_shard(folder / "none.tar", [])
    (folder / "broken").mkdir()
    samples.write_shard(folder / "broken/0.tar", [samples.sample(0), samples.sample(1, jpg=b"nothing")])
    zeroshot = {"kind": "zeroshot", "templates": ["a {c}"]}
    return {
        "label": ({**zeroshot, "data": data, "label": "cls", "classes": ["red", "green"]}, "label 2"),
        "classes": ({**zeroshot, "data": str(folder / "layout")}, "not among the 3 classes"),
        "missing": ({"kind": "retrieval", "data": str(folder / "missing.csv")}, "nowhere.jpg"),
        "broken": ({"kind": "retrieval", "data": str(folder / "broken")}, "key 00001"),
        "empty": ({"kind": "retrieval", "data": str(folder / "none.tar")}, "none.tar"),
        "main": ({"kind": "retrieval", "data": data, "main": "acc1"}, "mean_recall@1"),
    }


@pytest.mark.parametrize("case", ["label", "classes", "missing", "broken", "empty", "main"])
def test_bad_data_is_one_line_and_exit_code_2(typed: Typed, one: str, tmp_path: Path, case: str) -> None:
    tree, message = bad_sets(tmp_path)[case]
    (tmp_path / "t.yaml").write_text(json.dumps(tree))
    code, out, said = typed("eval", one, tmp_path / "t.yaml")
    lines = [line for line in said.splitlines() if line.startswith("clipkit: ")]
    assert code == 2 and not out and len(lines) == 1 and message in lines[0], said
    assert "Traceback" not in said and said.endswith(lines[0] + "\n")


def test_a_model_that_embeds_no_numbers_is_named(typed: Typed, suite: str, tmp_path: Path) -> None:
    code, out, said = typed("eval", making.saved(tmp_path / "nan", 0, damage=True), suite)
    assert code == 2 and not out and "its embedding is not finite; the model is damaged" in said.splitlines()[-1]


BAD = {
    "no model": (("eval", "suite.yaml"), "eval: a model and a suite are needed, got 'suite.yaml' alone"),
    "one model": (("eval", "a", "suite.yaml", "--compare"), "--compare: two models are needed"),
    "no file": (("eval", "--compare", "no.jsonl"), "no.jsonl: no such results file; `clipkit eval MODEL SUITE --out"),
    "no results": (("eval", "--compare", "odd.jsonl"), "odd.jsonl: not a results file of `clipkit eval --out`"),
    "no outcomes": (("eval", "--compare", "bare.jsonl"), "bare.jsonl: t: has no outcomes beside it"),
    "no outcome file": (("eval", "--compare", "gone.jsonl"), "gone/t-1.npz: no such file"),
    "name": (
        ("eval", "a", "suite.yaml", "--out", "scores.txt"),
        "--out scores.txt: a name that ends in .jsonl is needed",
    ),
    "out": (("eval", "a", "suite.yaml", "--out", "odd.jsonl"), "odd.jsonl: not a results file of `clipkit eval --out`"),
    "run": (("eval", "nothing", "suite.yaml"), "nothing: no such run or checkpoint folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(
    typed: Typed, suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.jsonl").write_text('{"step": 1}\n')
    row = {"model": "m", "task": "t", "scores": {}}
    (tmp_path / "bare.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "gone.jsonl").write_text(json.dumps({**row, "outcomes": "gone/t-1.npz"}) + "\n")
    arguments, message = BAD[case]
    code, out, said = typed(*arguments)
    assert code == 2 and not out and message in said and "Traceback" not in said, said
