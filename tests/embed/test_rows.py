"""Rows are those of a plain loop over open_clip's own transforms, whatever the threads, parts and batches."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import models
from clipkit.embed import embed
from clipkit.errors import UserError
from clipkit.vectors import Vectors
from tests import making, samples
from tests.embed import laid


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return making.saved(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(laid.shards(tmp_path_factory.mktemp("data") / "shards", (20, 0, 13)))


@torch.inference_mode()
def plain(model: str, pictures: list[bytes], captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(images, texts), one by one by open_clip's transform, tokenizer and towers."""
    from open_clip import SimpleTokenizer
    from open_clip.transform import image_transform

    loaded = models.load(model)
    shape, net = loaded.shape, loaded.net
    view = image_transform(shape.size, False, shape.mean, shape.std)
    seen = [net.encode_image(view(Image.open(io.BytesIO(data)))[None]) for data in pictures]
    read = [net.encode_text(SimpleTokenizer(context_length=24)([text])) for text in captions]
    both = [torch.nn.functional.normalize(torch.cat(each), dim=1).numpy() for each in (seen, read)]
    return both[0], both[1]


def test_rows_are_those_of_open_clip_one_by_one(model: str, data: str, tmp_path: Path) -> None:
    facts = embed(model, data, str(tmp_path / "v"), dtype="float32", part=10)
    shown = [making.picture(number) for number in range(33)]
    image, text = plain(model, [jpg for jpg, _ in shown], [caption for _, caption in shown])
    assert facts["rows"] == 33 and facts["parts"] == 4 and facts["kinds"] == ["image", "text"]
    np.testing.assert_allclose(laid.rows(tmp_path / "v"), image, atol=1e-5)
    np.testing.assert_allclose(laid.rows(tmp_path / "v", "text_emb"), text, atol=1e-5)
    vectors = Vectors(tmp_path / "v")
    assert len(vectors) == 33 and vectors.column("caption") == [caption for _, caption in shown]


def test_half_precision_is_the_rounding_of_the_rows(model: str, data: str, tmp_path: Path) -> None:
    embed(model, data, str(tmp_path / "whole"), dtype="float32")
    embed(model, data, str(tmp_path / "half"))
    half = np.load(tmp_path / "half/img_emb/img_emb_000000.npy")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, laid.rows(tmp_path / "whole").astype(np.float16))


@pytest.mark.parametrize("threads", [1, 3])
def test_files_are_the_same_on_any_number_of_threads(model: str, data: str, tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    embed(model, data, str(tmp_path / "v"), part=10)
    torch.set_num_threads(threads)
    try:
        embed(model, data, str(tmp_path / "w"), part=10)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert laid.everything(tmp_path / "v") == laid.everything(tmp_path / "w")


def test_parts_and_batches_change_no_row(model: str, data: str, tmp_path: Path) -> None:
    embed(model, data, str(tmp_path / "one"), dtype="float32")
    for part, batch in ((1, 1), (7, 3), (33, 50), (1000, 5)):
        out = tmp_path / f"{part}"
        facts = embed(model, data, str(out), dtype="float32", part=part, batch=batch)
        assert facts["parts"] == -(-33 // part) == len(list((out / "img_emb").iterdir()))
        for kind in ("img_emb", "text_emb"):
            np.testing.assert_allclose(laid.rows(out, kind), laid.rows(tmp_path / "one", kind), atol=1e-6)
        assert laid.metadata(out) == laid.metadata(tmp_path / "one")


def test_metadata_say_what_a_row_is_and_where_its_picture_lies(model: str, data: str, tmp_path: Path) -> None:
    embed(model, data, str(tmp_path / "v"), fields="number, label")
    for number, row in enumerate(laid.metadata(tmp_path / "v")):
        jpg, caption = making.picture(number)
        assert row["key"] == row["image_path"] == f"{number:05d}" and row["caption"] == caption
        assert row["number"] == number and row["label"] == number % 3
        assert row["size"] == len(jpg) and row["sha256"] == hashlib.sha256(jpg).hexdigest()
        assert (row["width"], row["height"]) == Image.open(io.BytesIO(jpg)).size
        held = Path(row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert held == jpg and Path(row["shard"]).is_absolute()


def test_a_sample_without_a_caption_has_a_row_of_zeros(model: str, tmp_path: Path) -> None:
    folder = laid.pictures(tmp_path / "p", [f"{n}.jpg" for n in range(5)])
    (folder / "3.txt").unlink()
    (folder / "1.txt").write_text(" \n")
    facts = embed(model, str(folder), str(tmp_path / "v"))
    assert facts["rows"] == 5 and facts["captions"] == 3
    text = laid.rows(tmp_path / "v", "text_emb")
    assert [bool(row.any()) for row in text] == [True, False, True, False, True]
    assert [row["caption"] for row in laid.metadata(tmp_path / "v")][1::2] == ["", ""]
    assert len(list(Vectors(tmp_path / "v").blocks("text"))) == 1


@pytest.mark.parametrize(("what", "kinds"), [("images", ["image"]), ("texts", ["text"]), ("both", ["image", "text"])])
def test_one_kind_or_both_are_embedded(model: str, data: str, tmp_path: Path, what: str, kinds: list[str]) -> None:
    embed(model, data, str(tmp_path / "all"), dtype="float32")
    assert embed(model, data, str(tmp_path / "v"), what=what, dtype="float32")["kinds"] == kinds
    for kind, folder in (("image", "img_emb"), ("text", "text_emb")):
        assert (tmp_path / "v" / folder).exists() == (kind in kinds)
        if kind in kinds:
            np.testing.assert_allclose(
                laid.rows(tmp_path / "v", folder), laid.rows(tmp_path / "all", folder), atol=1e-6
            )
    assert Vectors(tmp_path / "v").kinds == tuple(kinds)


def test_fast_decoding_is_close_to_exact(model: str, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for number in range(3):
        image = samples.shape(number, 1200, 900)[0]
        (tmp_path / f"p/{number}.jpg").write_bytes(samples.encoded(image, quality=90))
    embed(model, str(tmp_path / "p"), str(tmp_path / "exact"), dtype="float32")
    embed(model, str(tmp_path / "p"), str(tmp_path / "fast"), dtype="float32", decode="fast")
    exact, fast = laid.rows(tmp_path / "exact"), laid.rows(tmp_path / "fast")
    assert not np.array_equal(exact, fast) and (exact * fast).sum(1).min() > 0.99


def test_a_damaged_model_is_told(data: str, tmp_path: Path) -> None:
    damaged = making.saved(tmp_path, damage=True)
    with pytest.raises(UserError, match=r"00000: its embedding is not finite; the model is damaged"):
        embed(damaged, data, str(tmp_path / "v"))
