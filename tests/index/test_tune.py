"""Settings are found with queries that the index was not made of, and what they reach is measured, not hoped for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import UserError
from clipkit.index import choose, prompts, remeasure, tune
from clipkit.index.build import build
from clipkit.vectors import Stored, engine, exact
from clipkit.vectors.engine import Engine, Knobs
from clipkit.vectors.joined import Joined
from tests.vectors import laying

N, K, FACTORY = 2000, 5, "IVF8,PQ8x4fs,Refine(SQ8)"


def gapped(tmp_path: Path, captioned: int = N, **more: object) -> Path:
    """Pictures around one mean and captions around another, a little like their pictures."""
    dice = np.random.default_rng(0)
    means = 2 * dice.normal(size=(2, laying.WIDTH))
    own = dice.normal(size=(N, laying.WIDTH))
    image, text = laying.unit(means[0] + own), laying.unit(means[1] + own + dice.normal(size=own.shape))
    text[captioned:] = 0
    return laying.ours(tmp_path / "v", (N,), image=image, text=text if captioned else False, **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vectors `v` and an index of pictures `i`."""
    place = tmp_path_factory.mktemp("made")
    build(gapped(place), place / "i", engine=FACTORY, kinds=["image"], k=K)
    return place


def test_true_neighbours_are_those_of_all_products(made: Path) -> None:
    source, asked = Joined([made / "v"]), laying.rows(9)
    rows = source.take("image", np.arange(N))
    without = np.random.default_rng(0).random(N) < 0.5
    for mask, shown in ((None, rows), (without, rows * ~without[:, None])):
        wanted = exact.nearest(asked, [(0, shown)], K)[1]
        np.testing.assert_array_equal(tune.truth(asked, source, "image", K, mask), wanted)


def test_captions_ask_pictures_and_pictures_ask_captions(made: Path) -> None:
    source = Joined([made / "v"])
    for kind, other, name in (("image", "text", "captions"), ("text", "image", "pictures")):
        asked = tune.queries(source, kind)
        assert (asked.on, asked.like, len(asked.main), len(asked.side)) == (name, False, tune.MAIN, tune.SIDE)
        for rows, of in ((asked.main, other), (asked.side, kind)):
            there = {row.tobytes() for row in source.take(of, np.arange(N))}
            assert len({row.tobytes() for row in rows}) == len(rows) and {row.tobytes() for row in rows} <= there
    given = laying.rows(3)
    assert tune.queries(source, "image", given).on == "prompts"
    assert tune.queries(source, "text", given).on == "pictures"


def test_few_captions_are_all_asked_and_none_are_pictures(tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "none").mkdir()
    asked = tune.queries(Joined([gapped(tmp_path / "few", captioned=30)]), "image")
    assert len(asked.main) == 30 and asked.main.any(1).all() and asked.on == "captions"
    asked = tune.queries(Joined([gapped(tmp_path / "none", captioned=0)]), "image")
    assert (asked.on, asked.like, len(asked.main), len(asked.side)) == ("pictures", True, tune.MAIN, 0)


def test_settings_rise_in_cost() -> None:
    def part(factory: str) -> Engine:
        return Engine(engine.make(factory, 16, lambda count: laying.rows(5000)))

    assert tune.settings(part("Flat"), False, 5) == [Knobs(k=5)]
    assert [one.ef for one in tune.settings(part("HNSW8"), False, 50)] == [50, 50, 64, 128, 256, 512, 1024]
    scanned = tune.settings(part("IVF8,PQ8x4fs,Refine(SQ8)"), True, 5)
    assert [one.nprobe for one in scanned] == [8] * 5 and [one.candidates for one in scanned] == [
        80,
        160,
        320,
        640,
        1280,
    ]
    probed = tune.settings(part("IVF128,Flat"), False, 5)
    assert [one.nprobe for one in probed] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert len(tune.settings(part("IVF128,PQ8x4fs"), True, 5)) == 40


def test_the_cheapest_setting_that_reaches_the_wish_is_taken(made: Path) -> None:
    about = json.loads((made / "i" / "index.json").read_text())["kinds"]["image"]
    *others, taken = about["table"]
    assert taken["knobs"] == about["knobs"] and taken["recall"]["captions"] >= 0.95
    assert about["recall"]["met"] and about["recall"]["value"] >= 0.95 and about["recall"]["queries"] == tune.MAIN
    assert all(row["recall"]["captions"] < 0.97 for row in others)
    assert taken["recall"]["captions"] == pytest.approx(measured(made, Knobs(**about["knobs"])), abs=1e-4)


def measured(made: Path, knobs: Knobs) -> float:
    """The recall of the captions that the tuning asks."""
    source = Joined([made / "v"])
    asked = tune.queries(source, "image").main
    found = Stored(made / "i").nearest("image", asked, K, knobs=knobs)[1]
    return float(exact.recall(found, tune.truth(asked, source, "image", K)).mean())


def test_a_wish_is_reached_by_both_halves_and_by_the_first_with_a_margin() -> None:
    each = np.full(100, 0.95)
    assert tune._reaches(each, 0.95) and not tune._reaches(each, 0.951)
    each[1::2] = 0.94
    assert not tune._reaches(each, 0.95)
    first = np.repeat([0.9, 1.0], 50)
    each = np.ones(200)
    each[::2] = first
    assert first.mean() == 0.95 and not tune._reaches(each, 0.95) and tune._reaches(each, 0.945)
    assert tune._reaches(np.ones(1), 1.0) and not tune._reaches(np.zeros(1), 0.5)


def test_a_wish_that_is_not_met_is_told_with_what_would_meet_it(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "EXACT", 100)
    monkeypatch.setattr(choose, "FULL_LISTS", 8)
    monkeypatch.setattr(tune, "FACTORS", (1, 2))
    about = build(made / "v", tmp_path / "i", recall=0.99, kinds=["image"], memory=50_000)
    recall = about["kinds"]["image"]["recall"]
    assert not recall["met"] and recall["value"] < 0.99 and len(about["kinds"]["image"]["table"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == (
        f"image.index: of the 10 nearest {recall['value']:.3f} are found, where 0.99 are wanted (500 captions); "
        f"the index works; type --memory 52K for more, or ask for less: --recall {int(recall['value'] * 100) / 100:g}"
    )
    remeasure(tmp_path / "i", recall=0.05)
    assert "image.index: of the" not in capsys.readouterr().err
    assert Stored(tmp_path / "i").about["kinds"]["image"]["recall"]["met"]


def test_an_engine_by_hand_that_finds_too_little_names_flat(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(made / "v", tmp_path / "i", recall=0.99, kinds=["image"], engine="IVF8,PQ4x4fs")
    assert "; type --engine flat for more, or ask for less: --recall 0." in capsys.readouterr().err


def test_pictures_alone_are_tuned_with_pictures_and_twice_the_effort(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = build(gapped(tmp_path, captioned=0), tmp_path / "i", engine=FACTORY, k=K)["kinds"]["image"]
    *_, met, taken = about["table"]
    assert taken["knobs"] == about["knobs"] == {**met["knobs"], "candidates": 2 * met["knobs"]["candidates"]}
    assert about["recall"]["on"] == "pictures" and about["recall"]["met"]
    assert (
        "image.index: tuned with pictures alone, and the effort doubled, because words find less than pictures; "
        "--queries FILE.txt, with a query a line, measures what they find"
    ) in capsys.readouterr().err.splitlines()


def test_settings_are_widened_within_what_there_is() -> None:
    part = Engine(engine.make("IVF8,Flat", 16, lambda count: laying.rows(500)))
    assert tune.widened(Knobs(nprobe=1, candidates=80, k=5), part) == Knobs(nprobe=4, candidates=160, k=5)
    assert tune.widened(Knobs(nprobe=4, k=5), part) == Knobs(nprobe=8, k=5)
    assert tune.widened(Knobs(ef=16), part) == Knobs(ef=64) and tune.widened(Knobs(), part) == Knobs()


def test_queries_of_a_file_are_embedded_by_the_model_of_the_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, list[str]]] = []

    def embedded(model: str, digest: str | None, texts: list[str]) -> np.ndarray:
        asked.append((model, digest, texts))
        return laying.rows(len(texts), 3)

    monkeypatch.setattr(prompts, "embedded", embedded)
    (tmp_path / "q.txt").write_text("a red car\n\n  a dog \n")
    about = build(
        gapped(tmp_path), tmp_path / "i", engine=FACTORY, kinds=["image"], queries=tmp_path / "q.txt", recall=0.1
    )
    assert asked == [("m", "0123456789abcdef", ["a red car", "a dog"])]
    assert about["kinds"]["image"]["recall"]["on"] == "prompts" and about["kinds"]["image"]["recall"]["queries"] == 2


def test_pictures_without_captions_are_asked_with_prompts_where_the_model_lies_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "embedded", lambda model, digest, texts: laying.rows(len(texts), 3))
    monkeypatch.setattr(choose, "EXACT", 100)
    rows = Joined([gapped(tmp_path, captioned=0, model=str(tmp_path))])
    assert prompts.of(rows, ["image"], None).shape == (tune.MAIN, laying.WIDTH)
    shutil.rmtree(tmp_path / "v")
    rows = Joined([gapped(tmp_path, captioned=0, model="ViT-B-32/somewhere")])
    assert prompts.of(rows, ["image"], None) is None


def test_measuring_again_needs_the_vectors(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "i", tmp_path / "i")
    about = json.loads((folder / "index.json").read_text())
    about["vectors"][0]["folder"] = str(tmp_path / "gone")
    (folder / "index.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=f"^{tmp_path}/gone: no such folder"):
        remeasure(folder)


def test_faiss_alone_searches_by_the_settings_found(made: Path) -> None:
    import faiss

    alone, stored, queries = faiss.read_index(str(made / "i" / "image.index")), Stored(made / "i"), laying.rows(20)
    np.testing.assert_array_equal(alone.search(queries, K)[1], stored.nearest("image", queries, K)[1])


def test_a_model_that_is_another_one_now_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Named:
        identity = "other"

        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr("clipkit.models.Named", Named)
    monkeypatch.setattr(choose, "EXACT", 100)
    rows = Joined([gapped(tmp_path, captioned=0, model=str(tmp_path))])
    told = f"{tmp_path}: is another model than when it made the vectors; embed again"
    assert prompts.of(rows, ["image"], None) is None
    assert capsys.readouterr().err == f"no prompts to tune with: {told}\n"
    (tmp_path / "q.txt").write_text("a dog")
    with pytest.raises(UserError) as error:
        prompts.of(rows, ["image"], tmp_path / "q.txt")
    assert str(error.value) == told
