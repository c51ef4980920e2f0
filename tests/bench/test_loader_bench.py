"""The parts of eval/bench/loader.py, sides.py and pictures.py that need neither the peer nor a long run."""

import importlib
import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.samples import encoded, toy_tokenizer, write_shard
from tests.test_images import photo

BENCH = Path(__file__).parents[2] / "eval" / "bench"


def imported(name):
    sys.path.insert(0, str(BENCH))  # as Python does for the script
    yield importlib.import_module(name)
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def loader():
    yield from imported("loader")


@pytest.fixture(scope="module")
def sides():
    yield from imported("sides")


@pytest.fixture(scope="module")
def pictures():
    yield from imported("pictures")


@pytest.fixture(scope="module")
def small(pictures, tmp_path_factory):
    """(folder, kind, files) of a set of ten pictures."""
    kind, folder = pictures.Kind(96, 64, 95, 3.0), tmp_path_factory.mktemp("sets") / "set"
    return folder, kind, pictures.write_set(folder, kind, [photo(200, 150), photo(90, 150)], ["one", "two", "3"], 10)


def test_a_set_is_written_once_and_holds_pictures_of_its_size_and_the_captions(small, pictures):
    folder, kind, files = small
    assert len(files) == 10 == len(set(files))
    assert {Image.open(io.BytesIO(data)).size for data in files} == {(96, 64)}
    assert pictures.captions_in(folder) == ["one", "two", "3"] * 3 + ["one"]
    assert [path.name for path in sorted(folder.parent.iterdir())] == ["set"]
    assert len(list(folder.glob("*.tar"))) == pictures.SHARDS
    assert pictures.write_set(folder, kind, [], [], 10) == files, "what is there is read"
    assert pictures.bits_per_pixel([bytes(96 * 64 // 8), bytes(96 * 64 * 3 // 8)], kind) == 2.0


def test_crops_come_from_photographs_that_are_large_enough_or_are_four_side_by_side(pictures):
    red, blue = Image.new("RGB", (80, 60), "red"), Image.new("RGB", (300, 10), "blue")
    for seed in range(20):
        assert pictures.crop_of([red, blue], 60, 50, random.Random(seed)).getcolors() == [(3000, (255, 0, 0))]
        wide = pictures.crop_of([red, blue], 101, 30, random.Random(seed))
        assert wide.size == (101, 30) and {color for _, color in wide.getcolors()} == {(255, 0, 0)}
    whole = photo(40, 30)
    found = {pictures.crop_of([whole], 40, 30, random.Random(seed)).tobytes() for seed in range(9)}
    assert found == {whole.tobytes(), whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()}


def test_photographs_are_taken_from_a_folder_or_asked_for(pictures, tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(20, 10)))
    (tmp_path / "b.PNG").write_bytes(encoded(Image.new("L", (5, 5)), "PNG"))
    (tmp_path / "notes.txt").touch()
    assert [p.mode for p in pictures.photographs(tmp_path, tmp_path, "")] == ["RGB", "RGB"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=r"empty: no .jpg or .png photographs; give a folder of some with --photos"):
        pictures.photographs(tmp_path / "empty", tmp_path, "")
    with pytest.raises(SystemExit, match=r"empty: no shards with .txt captions; give a folder of some with --captions"):
        pictures.captions_in(tmp_path / "empty")


def test_packages_without_their_photographs_are_told(pictures, tmp_path):
    package = tmp_path / "packages" / "sklearn" / "datasets" / "images"
    package.mkdir(parents=True)
    with pytest.raises(SystemExit, match="no .jpg or .png photographs"):
        pictures.photographs(None, tmp_path, "")
    (package / "china.jpg").write_bytes(encoded(photo(30, 20)))
    assert [p.size for p in pictures.photographs(None, tmp_path, "")] == [(30, 20)]


def test_clipkits_side_gives_batches_of_a_set_without_end(small, sides, monkeypatch):
    monkeypatch.setattr(sides, "clipkit_tokenizer", toy_tokenizer)
    batches = sides.clipkit_batches(small[0], 0, 4)
    cost = sides.taken(batches, 3)
    assert cost.samples == 12 and cost.ms > 0 and cost.worker_mb == 0


@pytest.mark.parametrize("name", ["bytes", "float32"])
def test_a_hand_over_is_served_line_by_line_with_its_workers_share(name, sides, monkeypatch, capsys):
    monkeypatch.setattr(sides, "BATCH", 8)
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n3\n"))
    sides.main(name, "", "1", "1")
    ready, *answers = capsys.readouterr().out.splitlines()
    costs = [json.loads(answer) for answer in answers]
    assert ready == "ready" and [cost["samples"] for cost in costs] == [16, 24]
    assert all(cost["ms"] > 0 and cost["worker_mb"] > 10 for cost in costs)


FAKE = """
import sys
print("ready", flush=True)
for line in sys.stdin:
    print('{"samples": %d, "ms": MS, "worker_mb": 5.5}' % int(line), flush=True)
"""


def test_sides_take_turns_and_the_ratio_is_of_the_pairs(loader, tmp_path):
    commands = {
        name: [sys.executable, "-c", FAKE.replace("MS", ms)] for name, ms in (("open_clip", "6"), ("clipkit", "2"))
    }
    costs = loader.turns_of(commands, 3, 7, tmp_path)
    assert {name: [cost.samples for cost in found] for name, found in costs.items()} == dict.fromkeys(commands, [7] * 3)
    costs["clipkit"][0] = loader.Cost(7, 1.0, 9.0)
    found = loader.summary(costs)
    assert found["ratio"] == 3 and found["ratios"] == [3, 6] and found["clipkit"] == {"ms": 2, "worker_mb": 5.5}


def test_a_side_that_ends_shows_what_it_said(loader, tmp_path):
    command = [sys.executable, "-c", "raise KeyError('fname')"]
    with pytest.raises(SystemExit, match=r"KeyError: 'fname'(?s:.*)the side above ended \(exit 1\)"):
        loader.turns_of({"open_clip": command}, 1, 1, tmp_path)


def test_evaluation_pixels_and_tokenizers_are_compared(small, loader, monkeypatch):
    mean, worst = loader.pixel_difference(small[2][:3] + [encoded(photo(300, 200), "PNG")])
    assert mean <= worst and mean < 0.3, "the set's pictures are enlarged"
    monkeypatch.setattr(loader, "clipkit_tokenizer", toy_tokenizer)
    found = loader.tokenizer_us(["a photo of a cat"] * 5)
    assert len(found) == 3 and all(us > 0 for one in found.values() for us in one.values())


def result_of(loader, ratio=4.0, mean=0.01, bytes_ms=0.1):
    side = {"ms": 3.2, "worker_mb": 900.0}
    one = {"bar": 3.5, "bits_per_pixel": 3.6, "ratio": ratio, "ratios": [3.9, 4.4], "open_clip": side, "clipkit": side}
    over, us = {"bytes": bytes_ms, "float32": 0.9}, {"clipkit": {"cold": 9.0, "warm": 2.0}}
    return {"sets": {"256": one}, "pixels": {"256": [mean, 0.2]}, "hand_over_ms": over, "tokenizer_us": us}


def test_missed_bars_are_named(loader):
    assert loader.missed(result_of(loader)) == []
    assert loader.missed(result_of(loader, ratio=3.4)) == ["256: ratio 3.40"]
    assert loader.missed(result_of(loader, mean=0.06)) == ["pixels of 256: 0.060"]
    assert loader.missed(result_of(loader, bytes_ms=0.21)) == ["hand-over: 0.210 ms"]


def test_the_tables_show_every_number(loader):
    text = loader.told(result_of(loader, ratio=4.12))
    for number in ("3.60", "3.20", "4.12", "3.90-4.40", "900", "0.010", "0.200", "0.100", "0.900", "9.0", "2.0"):
        assert number in text
    lines = text.splitlines()
    assert lines[0].index("ratio") + len("ratio") == lines[1].index("4.12") + 4


def test_a_whole_run_makes_its_sets_and_asks_both_sides(loader, pictures, tmp_path, monkeypatch):
    asked = []

    def turns_of(commands, turns, batches, folder):
        asked.append([command[1:3] for command in commands.values()])
        return {name: [loader.Cost(8, 6.0 if name == "open_clip" else 0.5, 1.0)] * turns for name in commands}

    monkeypatch.setattr(loader, "turns_of", turns_of)
    monkeypatch.setattr(loader, "clipkit_tokenizer", toy_tokenizer)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encoded(photo(300, 260), "PNG"))
    write_shard(tmp_path / "0.tar", [{"__key__": "0", "txt": b"words"}])
    plan, kinds = loader.Plan(samples=4, batches=1, turns=2, warm=1), pictures.KINDS[:2]
    result = loader.measured(plan, kinds, 1, tmp_path / "data", tmp_path, tmp_path / "photos", "/peer/python")
    assert [[name for _, name in pair] for pair in asked] == [["open_clip", "clipkit"]] * 2 + [["bytes", "float32"]]
    assert {one["ratio"] for one in result["sets"].values()} == {12.0} and len(result["pixels"]) == 3
    assert loader.missed(result) == ["hand-over: 0.500 ms"]
    assert json.loads(json.dumps(result))["photographs"] == 1 and loader.told(result)
    assert np.all([one["bits_per_pixel"] > 0.5 for one in result["sets"].values()])
