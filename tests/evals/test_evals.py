"""Scores equal plain arithmetic over the same model, and what a data set may say is checked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit import evals, models
from clipkit.errors import BadData, UserError
from clipkit.evals import retrieval, zeroshot
from clipkit.images import eval_view
from clipkit.shards import Shards
from tests import making, samples


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> models.DualEncoder:
    torch.manual_seed(0)
    arch = making.architecture(tmp_path_factory.mktemp("arch"))
    return models.create(models.Settings(arch=arch), 10.0, None).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(making.shards(tmp_path_factory.mktemp("evals"), (20, 0, 13)))


def images(model: models.DualEncoder, data: str) -> np.ndarray:
    """Embeddings [n, D] picture by picture."""
    source = Shards(data)
    views = [eval_view(source.image(i), model.shape) for i in range(len(source))]
    return np.concatenate([model(image=view[None]).image.detach().numpy() for view in views])


def texts(model: models.DualEncoder, words: list[str]) -> np.ndarray:
    return np.concatenate([model(text=model.tokenizer([word])).text.detach().numpy() for word in words])


def test_retrieval_equals_sorting_all_similarities(model: models.DualEncoder, data: str) -> None:
    scores = retrieval.Setting(data=data, caption="json:captions", recall_at=(1, 5, 40))(model)
    words, owner = [], []
    for number in range(33):
        caption = making.picture(number)[1]
        words += [caption, f"{caption}, again"]
        owner += [number, number]
    similar = images(model, data) @ texts(model, words).T
    own = np.array(owner)
    for k in (1, 5, 40):
        by_text = [own[j] in np.argsort(-similar[:, j], kind="stable")[:k] for j in range(66)]
        by_image = [i in own[np.argsort(-similar[i], kind="stable")[:k]] for i in range(33)]
        assert scores[f"image_retrieval_recall@{k}"] == pytest.approx(np.mean(by_text))
        assert scores[f"text_retrieval_recall@{k}"] == pytest.approx(np.mean(by_image))
        assert scores[f"mean_recall@{k}"] == pytest.approx((np.mean(by_text) + np.mean(by_image)) / 2)
    assert scores["image_retrieval_recall@40"] == 1.0 and scores["images"] == 33 and scores["captions"] == 66


def test_zero_shot_equals_the_nearest_mean_prompt(model: models.DualEncoder, data: str) -> None:
    classes, templates = list(samples.COLORS), ("a {c} square", "{c}")
    scores = zeroshot.Setting(data=data, label="json:colour", classes=classes, templates=templates)(model)
    weights = []
    for name in classes:
        rows = texts(model, [template.replace("{c}", name) for template in templates]).mean(0)
        weights.append(rows / np.linalg.norm(rows))
    order = np.argsort(-(images(model, data) @ np.stack(weights).T), axis=1, kind="stable")
    labels = np.arange(33) % 8
    first = order[:, 0] == labels
    assert scores["acc1"] == pytest.approx(first.mean())
    assert scores["acc5"] == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    assert scores["mean_per_class_recall"] == pytest.approx(np.mean([first[labels == c].mean() for c in range(8)]))


def test_labels_may_be_numbers_or_names(model: models.DualEncoder, data: str) -> None:
    named = zeroshot.Setting(data=data, label="json:colour", classes=list(samples.COLORS))(model)
    assert zeroshot.Setting(data=data, label="cls", classes=list(samples.COLORS))(model) == named


def test_names_that_occur_are_the_classes_when_none_are_given(model: models.DualEncoder, data: str) -> None:
    found = zeroshot.Setting(data=data, label="json:colour")(model)
    assert found == zeroshot.Setting(data=data, label="json:colour", classes=sorted(samples.COLORS))(model)


def test_a_broken_picture_is_named_instead_of_left_out(model: models.DualEncoder, tmp_path: Path) -> None:
    samples.write_shard(tmp_path / "0.tar", [samples.sample(0), samples.sample(1, jpg=b"nothing")])
    with pytest.raises(BadData, match="key 00001: not a picture"):
        retrieval.Setting(data=str(tmp_path))(model)


def test_a_sample_without_readable_caption_or_label_is_named(model: models.DualEncoder, tmp_path: Path) -> None:
    samples.write_shard(
        tmp_path / "0.tar", [samples.sample(0, cls=b"0"), samples.sample(1, txt=b" ", cls=b"x", json=b"{")]
    )
    with pytest.raises(BadData, match="0.tar key 00001: empty caption"):
        retrieval.Setting(data=str(tmp_path))(model)
    with pytest.raises(BadData, match="0.tar key 00001: invalid literal"):
        zeroshot.Setting(data=str(tmp_path), label="cls", classes=["a", "b"])(model)
    with pytest.raises(BadData, match="0.tar key 00001: broken json"):
        zeroshot.Setting(data=str(tmp_path), label="json:label")(model)


def test_what_a_shard_lost_is_told_with_the_score(
    model: models.DualEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples.write_tar(tmp_path / "0.tar", [("a.txt", b"only words")])
    making.shards(tmp_path / "more", (3,))
    (tmp_path / "more/00000.tar").rename(tmp_path / "1.tar")
    assert retrieval.Setting(data=str(tmp_path))(model)["images"] == 3
    assert "scored over 3 samples; left out: no image: 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "json:animal"}, "no picture has a label under 'json:animal'"),
        ({"label": "cls"}, "label: cls needs the names of the classes"),
        ({"label": "json:colour", "classes": ["red", "pink"]}, "has the label 'green', which is not among the 2"),
        ({"label": "cls", "classes": ["red", "pink"]}, "has the label 2, which is not among the 2 classes"),
        ({"label": "json:colour", "templates": ("a photo",)}, "must stand where the class goes"),
    ],
)
def test_what_cannot_be_scored_is_said(
    model: models.DualEncoder, data: str, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        zeroshot.Setting(data=data, **settings)(model)


def test_one_label_alone_is_no_classification(model: models.DualEncoder, tmp_path: Path) -> None:
    making.shards(tmp_path, (1,))
    with pytest.raises(UserError, match="at least two classes are needed, found"):
        zeroshot.Setting(data=str(tmp_path), label="json:colour")(model)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "retreival", "data": "d"}, "kind: one of retrieval, zeroshot is needed, got 'retreival'"),
        ({"kind": "retrieval", "data": "nothing"}, "nothing: no such file or folder"),
        ({"kind": "retrieval", "data": "d", "captions": "txt"}, "captions: unknown key; did you mean 'caption'"),
        ({"kind": "retrieval"}, "data: is needed"),
        ({"tasks": []}, "a list of data sets is needed"),
        ({"tasks": ["nothing"]}, "nothing: no such file"),
    ],
)
def test_a_suite_that_cannot_be_read_says_why(tmp_path: Path, tree: dict[str, object], message: str) -> None:
    making.shards(tmp_path / "d", (2,))
    (tmp_path / "s.yaml").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        evals.suite(str(tmp_path / "s.yaml"), tmp_path)
