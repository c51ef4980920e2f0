"""Dual encoders: built from names and files, fed, saved and built again."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from clipkit import checkpoint, config, models
from clipkit.errors import StorageError, UserError
from clipkit.models.load import TEXT_FOLDER
from tests.making import architecture

TEXTS = ["a cat", "two dogs on a red sofa", "x", "the quick brown fox jumps over the lazy dog!"]


def tiny(**more: Any) -> models.DualEncoder:
    torch.manual_seed(0)
    return models.create(models.Settings(**{"arch": "tiny", **more}), 10.0, None).eval()


@pytest.mark.parametrize("text", [{}, {"pool_type": "eos", "eos_id": 49407}, {"proj_bias": True}])
def test_a_causal_tower_gives_the_same_for_trimmed_text(tmp_path: Path, text: dict[str, Any]) -> None:
    model = tiny(arch=architecture(tmp_path, **text))
    ids = model.tokenizer(TEXTS)
    cut = model.tokenizer.trim(ids)
    assert cut.shape[1] == 16 < ids.shape[1] == 24
    whole = torch.nn.functional.normalize(model.net.encode_text(ids), dim=-1)
    torch.testing.assert_close(model(text=cut).text, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(text=cut[:1, :8]).text, whole[:1], rtol=1e-5, atol=1e-6)


def test_a_tower_that_looks_at_padding_is_never_given_trimmed_text(tmp_path: Path) -> None:
    model = tiny(arch=architecture(tmp_path, no_causal_mask=True, pool_type="last"))
    ids = model.tokenizer(TEXTS)
    assert model.tokenizer.trim(ids).shape == ids.shape


def test_pictures_and_texts_come_out_as_unit_rows_of_float32() -> None:
    model = tiny()
    out = model(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), model.tokenizer(TEXTS[:2]))
    for side in out.pair():
        assert side.shape == (2, 128) and side.dtype == torch.float32
        torch.testing.assert_close(side.norm(dim=1), torch.ones(2))
    assert out.scale.shape == () and out.scale.item() == pytest.approx(10) and out.bias is None


def test_bf16_towers_give_float32_embeddings_near_those_of_float32() -> None:
    model = tiny()
    exact = model(text=model.tokenizer(TEXTS)).text
    model.dtype = torch.bfloat16
    rough = model(text=model.tokenizer(TEXTS)).text
    assert rough.dtype == torch.float32
    assert (exact - rough).abs().max() < 0.05 and not torch.equal(exact, rough)


def test_the_scale_stays_between_1_and_100() -> None:
    model = tiny()
    for wanted, given in ((100.0, 300.0), (1.0, 0.1), (20.0, 20.0)):
        with torch.no_grad():
            model.net.logit_scale.fill_(torch.tensor(given).log())
        model.clamp_scale()
        assert model().scale.item() == pytest.approx(wanted)


def save(model: models.DualEncoder, run: Path, **more: Any) -> Path:
    files: dict[str, Any] = {
        "model.safetensors": model.net.state_dict(),
        "model.yaml": config.to_yaml(model.spec),
        **more,
    }
    if model.text_folder:
        files[TEXT_FOLDER] = model.text_folder
    return checkpoint.save(run, 1, files, keep=1)


def same(one: models.DualEncoder, two: models.DualEncoder) -> bool:
    pixels = torch.randint(0, 256, (2, 3, one.shape.size, one.shape.size), dtype=torch.uint8)
    a, b = (m(pixels, m.tokenizer(TEXTS[:2])).pair() for m in (one, two))
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_checkpoint_explains_itself(tmp_path: Path) -> None:
    model = tiny(arch=architecture(tmp_path), image_size=48, context=16)
    save(model, tmp_path / "run")
    (tmp_path / "small.json").unlink()
    for name in (tmp_path / "run", tmp_path / "run/checkpoints/000000001"):
        again = models.load(str(name), "cpu")
        assert same(model, again) and again.shape == model.shape and again.shape.size == 48
        assert again.tokenizer.context == 16


def test_averaged_weights_are_the_ones_that_load(tmp_path: Path) -> None:
    model = tiny(arch=architecture(tmp_path))
    average = {name: torch.zeros_like(x) for name, x in model.net.state_dict().items()}
    save(model, tmp_path / "run", **{"ema.safetensors": average})
    assert all((x == 0).all() for x in models.load(str(tmp_path / "run"), "cpu").net.state_dict().values())


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    place = save(tiny(arch=architecture(tmp_path)), tmp_path / "run")
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    with pytest.raises(StorageError, match=r"model\.safetensors: its checksum"):
        models.load(str(place), "cpu")


def test_an_open_clip_folder_is_a_model(tmp_path: Path) -> None:
    model = tiny(arch=architecture(tmp_path))
    cfg = {"model_cfg": model.spec["model_cfg"], "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(cfg))
    from safetensors.torch import save_file

    state = {k: x.reshape(()) if k == "logit_scale" else x for k, x in model.net.state_dict().items()}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    found = models.load(f"local-dir:{tmp_path}", "cpu")
    peer = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    ids = model.tokenizer(TEXTS)
    torch.testing.assert_close(found(text=ids).text, peer.encode_text(ids, normalize=True), rtol=1e-6, atol=1e-6)
    assert found.shape.mean == (0.1, 0.2, 0.3)


def test_a_bias_is_kept_from_a_folder_and_dropped_where_the_objective_has_none(tmp_path: Path) -> None:
    arch = architecture(tmp_path)
    model = models.create(models.Settings(arch=arch), 10.0, -4.0)
    assert model().bias.item() == -4.0 and model().scale.item() == pytest.approx(10)
    place = save(model, tmp_path / "run")
    assert models.load(str(place), "cpu")().bias.item() == -4.0
    cfg = {"model_cfg": {**model.spec["model_cfg"], "init_logit_bias": -7.0}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(cfg))
    shutil.copy(place / "model.safetensors", tmp_path / "open_clip_model.safetensors")
    kept = models.load(f"local-dir:{tmp_path}", "cpu")
    assert kept().bias.item() == -4.0
    fresh = models.Settings(arch=f"local-dir:{tmp_path}")
    assert models.create(fresh, 14.0, None)().bias is None


def test_an_open_clip_name_is_an_architecture() -> None:
    model = tiny(arch="ViT-S-32-alt")
    assert model.shape.size == 224 and model.tokenizer.trims
    assert model.spec["model_cfg"]["embed_dim"] == 256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/none", "no such run or checkpoint folder"),
        ("ViT-B-32/no_such_tag", "no_such_tag"),
        ("local-dir:/nowhere", "open_clip_config.json|nowhere"),
    ],
)
def test_a_model_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.load(name, "cpu")


def test_an_empty_run_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        models.load(str(tmp_path), "cpu")


def test_an_unknown_architecture_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean 'tiny'"):
        tiny(arch="tiyn")


def test_a_file_that_is_no_architecture_says_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match="embed_dim, vision_cfg and text_cfg"):
        tiny(arch=str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        tiny(arch=str(tmp_path / "a.json"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a small BERT and a word-piece tokenizer of a few words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "two", "dogs", "on", "red", "sofa", "x", "the"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).eval().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_a_text_tower_from_a_hugging_face_folder_sees_words_and_no_padding(
    bert: Path, tmp_path: Path, pool: str
) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = tiny(arch=architecture(tmp_path), text=str(bert), text_pool=pool)
    ids = model.tokenizer(TEXTS[:2])
    assert (ids == -1).any() and model.tokenizer.trim(ids).shape[1] == 8
    peer, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    for i, text in enumerate(TEXTS[:2]):
        states: Tensor = peer(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pool]
        wanted = torch.nn.functional.normalize(model.net.text.projection(pooled), dim=-1)
        for given in (ids, model.tokenizer.trim(ids)):
            torch.testing.assert_close(model(text=given).text[i], wanted, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_with_such_a_tower_stands_without_the_folder(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    shutil.copytree(bert, folder)
    model = tiny(arch=architecture(tmp_path), text=str(folder))
    place = save(model, tmp_path / "run")
    shutil.rmtree(folder)
    assert not list((place / TEXT_FOLDER).glob("*.safetensors"))
    assert same(model, models.load(str(tmp_path / "run"), "cpu"))


def test_a_text_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.text needs a folder that transformers has saved"):
        tiny(arch=architecture(tmp_path), text=str(tmp_path))


def test_texts_are_embedded_in_the_order_given(tmp_path: Path) -> None:
    model = tiny(arch=architecture(tmp_path))
    many = [TEXTS[i % 4] + str(i % 3) for i in range(30)]
    rows = models.embed_texts(model, many, batch=4)
    for text, row in zip(many, rows, strict=True):
        torch.testing.assert_close(row, model(text=model.tokenizer([text])).text[0].detach(), rtol=1e-5, atol=1e-6)
    assert models.embed_texts(model, []).shape == (0, 16)


def test_ema_is_the_weighted_mean_and_swaps(tmp_path: Path) -> None:
    model = tiny(arch=architecture(tmp_path)).net
    first = {k: x.clone() for k, x in model.state_dict().items()}
    ema = models.Ema(model, 0.9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update()
    key = "visual.conv1.weight"
    torch.testing.assert_close(ema.average[key], first[key] + 0.1)
    ema.swap()
    torch.testing.assert_close(model.state_dict()[key], first[key] + 0.1)
    ema.swap()
    torch.testing.assert_close(model.state_dict()[key], first[key] + 1)
