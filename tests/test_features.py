"""Embeddings of evaluation sets: equal on any number of ranks and workers, kept by content, resumed by parts."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit import evals, features, models
from clipkit.errors import UserError
from clipkit.evals import retrieval, zeroshot
from clipkit.features import Features
from clipkit.images import eval_view
from clipkit.sets import InShards, open_set
from tests import making, samples, two_ranks

COUNTS = (20, 0, 13)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> models.DualEncoder:
    return small(tmp_path_factory.mktemp("arch"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(making.shards(tmp_path_factory.mktemp("features"), COUNTS))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one checkpoint."""
    return Path(making.saved(tmp_path))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "ROWS", 8)


def small(folder: Path, seed: int = 0) -> models.DualEncoder:
    return of_arch(making.architecture(folder), seed)


def of_arch(arch: str, seed: int = 0) -> models.DualEncoder:
    torch.manual_seed(seed)
    return models.create(models.Settings(arch=arch), 10.0, None).eval()


def plain(model: models.DualEncoder, data: str) -> Tensor:
    """Picture by picture."""
    source = open_set(data)
    views = [eval_view(source.image(i), model.shape) for i in range(len(source))]
    with torch.inference_mode():
        return torch.cat([model(image=view[None]).image for view in views])


class Counting(InShards):
    """Shards that count how often each picture is read."""

    def __init__(self, pattern: str) -> None:
        super().__init__(pattern)
        self.read: Counter[int] = Counter()

    def image(self, number: int) -> bytes:
        self.read[number] += 1
        return super().image(number)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than the machine has cores
@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (7, 0), (256, 0), (7, 1), (5, 4)])
def test_rows_are_those_of_picture_by_picture(model: models.DualEncoder, data: str, batch: int, workers: int) -> None:
    rows = Features(model, workers=workers, batch=batch).images(open_set(data))
    assert rows.dtype == torch.float32 and torch.allclose(rows, plain(model, data), atol=1e-6)


def test_texts_keep_their_order_and_each_is_computed_once(
    model: models.DualEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def embed(model: models.DualEncoder, texts: Any) -> Tensor:
        seen.extend(texts)
        return models.embed_texts(model, texts)

    monkeypatch.setattr(features, "embed_texts", embed)
    texts = [f"{'long ' * (i % 5)}text {i % 11}" for i in range(40)]
    rows = Features(model).texts(texts)
    assert sorted(seen) == sorted(set(texts))
    with torch.inference_mode():
        wanted = torch.cat([model(text=model.tokenizer([text])).text for text in texts])
    assert torch.allclose(rows, wanted, atol=1e-6)
    assert Features(model).texts([]).shape[0] == 0


def test_each_picture_is_read_once_for_all_tasks_of_an_evaluation(model: models.DualEncoder, data: str) -> None:
    source, found = Counting(data), Features(model)
    for _ in range(3):
        found.images(source)
    assert source.read == Counter(range(sum(COUNTS)))


def scores(rank: int, arch: str, data: str, batch: int, workers: int) -> list[Tensor]:
    """All scores of both kinds, and how often each picture was read on this rank."""
    features.ROWS = 8
    torch.set_num_threads(1)
    source, found = Counting(data), Features(of_arch(arch), workers=workers, batch=batch)
    rows = found.images(source)
    pairs = retrieval.Setting(data=data, caption="json:captions")(found).scores()
    colours = zeroshot.Setting(data=data, label="json:colour")(found).scores()
    read = [source.read[i] for i in range(len(source))]
    return [rows, torch.tensor([*pairs.values(), *colours.values()], dtype=torch.float64), torch.tensor(read)]


@pytest.mark.parametrize(("world", "batch"), [(2, 7), (3, 256), (3, 1)])
def test_any_number_of_ranks_scores_the_same(tmp_path: Path, data: str, world: int, batch: int) -> None:
    arch = making.architecture(tmp_path)
    alone = scores(0, arch, data, 64, 0)
    ranks = two_ranks.run(scores, arch, data, batch, 0, world=world)
    for rows, values, _ in ranks:
        assert torch.allclose(rows, alone[0], atol=1e-6) and torch.equal(rows, ranks[0][0])
        assert torch.allclose(values, alone[1], atol=1e-6)
    assert torch.equal(sum(read for _, _, read in ranks), torch.ones(sum(COUNTS), dtype=torch.long))


def other_data(rank: int, arch: str, folder: str) -> Tensor:
    """Is it told on this rank that each has other pictures?"""
    try:
        Features(of_arch(arch)).images(open_set(f"{folder}/{rank}"))
    except UserError as error:
        return torch.tensor("the images to score: their data differ from machine to machine" in str(error))
    return torch.tensor(False)


def test_ranks_that_hold_other_pictures_are_told_and_do_not_mix_them(tmp_path: Path) -> None:
    for rank, count in enumerate((5, 6)):
        making.shards(tmp_path / str(rank), (count,))
    assert all(two_ranks.run(other_data, making.architecture(tmp_path), str(tmp_path)))


def test_what_is_kept_needs_no_model(run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(found: Features) -> list[Tensor]:
        return [found.images(open_set(data)), found.texts(["a cat", "a dog"]), torch.tensor(found.scale[0])]

    first = both(Features(models.Named(str(run)), tmp_path / "cache"))
    monkeypatch.setattr(models.Named, "model", property(lambda self: pytest.fail("the model was loaded")))
    for a, b in zip(first, both(Features(models.Named(str(run)), tmp_path / "cache")), strict=True):
        assert torch.equal(a, b)


def test_what_was_killed_goes_on_where_it_was(run: Path, data: str, tmp_path: Path) -> None:
    class Breaking(Counting):
        def image(self, number: int) -> bytes:
            if number == 20:
                raise KeyboardInterrupt
            return super().image(number)

    with pytest.raises(KeyboardInterrupt):
        Features(models.Named(str(run)), tmp_path / "cache").images(Breaking(data))
    source = Counting(data)
    rows = Features(models.Named(str(run)), tmp_path / "cache").images(source)
    assert set(source.read) == set(range(16, 33))  # two parts of eight were done
    assert torch.equal(rows, Features(models.Named(str(run))).images(open_set(data)))


def test_a_part_that_was_cut_short_is_made_again(run: Path, data: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    rows = Features(models.Named(str(run)), cache).images(open_set(data))
    part = next(cache.rglob("images-*/000001.npy"))
    part.write_bytes(part.read_bytes()[:-40])
    source = Counting(data)
    assert torch.equal(Features(models.Named(str(run)), cache).images(source), rows)
    assert set(source.read) == set(range(8, 16))


def test_other_weights_and_other_pictures_are_never_taken_for_the_kept_ones(tmp_path: Path) -> None:
    cache, data = tmp_path / "cache", making.shards(tmp_path / "data", (5,))
    runs = [Path(making.saved(making.shards(tmp_path / f"{seed}", (1,)), seed)) for seed in (0, 1)]
    first, other = (Features(models.Named(str(one)), cache).images(open_set(str(data))) for one in runs)
    assert not torch.allclose(first, other, atol=1e-3)
    making.shards(data, (5,), first=1)
    again = Features(models.Named(str(runs[0])), cache).images(open_set(str(data)))
    assert torch.allclose(again[:4], first[1:], atol=1e-6) and not torch.allclose(again, first, atol=1e-3)


def test_a_cache_that_cannot_be_written_costs_time_alone(
    run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    rows = Features(models.Named(str(run)), tmp_path / "cache").images(open_set(data))
    assert len(rows) == sum(COUNTS) and "not kept" in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_is_named(model: models.DualEncoder, tmp_path: Path) -> None:
    samples.write_shard(tmp_path / "0.tar", [samples.sample(0), samples.sample(1, jpg=b"nothing")])
    with pytest.raises(UserError, match="key 00001: not a picture"):
        Features(model).images(open_set(str(tmp_path)))


def test_an_embedding_that_is_no_number_is_named(data: str, tmp_path: Path) -> None:
    broken = small(tmp_path)
    with torch.no_grad():
        broken.net.visual.proj.fill_(float("nan"))
        broken.net.text_projection.fill_(float("nan"))
    with pytest.raises(UserError, match="key 00000: its embedding is not finite; the model is damaged"):
        Features(broken).images(open_set(data))
    with pytest.raises(UserError, match="text 'a cat': its embedding is not finite"):
        Features(broken).texts(["a cat"])


def test_a_suite_scores_by_the_kept_embeddings_as_without(run: Path, data: str, tmp_path: Path) -> None:
    tasks = evals.suite(making.suite(tmp_path, Path(data)), Path("."))
    fresh = [task.run(Features(models.Named(str(run)))).scores() for task in tasks]
    for _ in range(2):
        kept = Features(models.Named(str(run)), tmp_path / "cache")
        assert [task.run(kept).scores() for task in tasks] == fresh
    assert all(np.isfinite(list(one.values())).all() for one in fresh)
