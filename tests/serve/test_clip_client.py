"""Programs that speak with clip-retrieval's back end are answered as they expect."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clipkit.search import Index
from tests.serve.serving import COUNT, asked, encoded, picture

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from clipkit.serve.app import build  # noqa: E402
from clipkit.serve.clip_retrieval import ALIKE  # noqa: E402
from clipkit.serve.service import Service  # noqa: E402

NAME = "shapes"


@pytest.fixture(scope="module")
def app(index: Index) -> Iterator[Any]:
    service = Service(index, name=NAME)
    yield build(service)
    service.close()


def knn(app: Any, **asks: Any) -> Any:
    """What clip-retrieval's client sends: all its fields each time, and no word of that it is JSON."""
    body = {
        "text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": False,
        "use_safety_model": True, "use_violence_detector": True, "indice_name": NAME, "use_mclip": False,
        "aesthetic_score": 9, "aesthetic_weight": 0.5, "modality": "image", "num_images": 5, "num_result_ids": 5,
        "verbose": False, **asks,
    }  # fmt: skip
    return asked(app, "POST", "/knn-service", content=json.dumps(body))


def told(hits: Any) -> list[tuple[int, Any]]:
    return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]


def pairs(response: Any) -> list[tuple[int, float]]:
    assert response.status_code == 200, response.text
    return [(each["id"], each["similarity"]) for each in response.json()]


def test_texts_pictures_and_embeddings_find_what_python_finds(app: Any, index: Index) -> None:
    assert pairs(knn(app, text="a red circle")) == told(index.search("a red circle"))
    assert pairs(knn(app, image=encoded(picture(2)))) == told(index.search(image=picture(2)))
    row = index.stored.rows("image", np.array([4]))[0]
    found = knn(app, embedding_input=(3 * row).tolist())  # of any length
    assert pairs(found)[0] == (4, pytest.approx(1, abs=1e-5))
    assert pairs(knn(app, text="gold", modality="text")) == told(index.search("gold", kind="text"))
    assert pairs(knn(app, text="gold", deduplicate=True)) == told(index.search("gold", unique=ALIKE))


def test_a_result_tells_its_metadata_and_where_its_picture_is(app: Any) -> None:
    first = knn(app, text="a red circle", num_images=1, num_result_ids=3).json()
    assert {"id", "similarity", "caption", "url", "image_path", "colour"} <= first[0].keys()
    assert first[0]["image_path"] == f"{first[0]['id']:05d}"
    assert asked(app, "GET", first[0]["url"]).content == picture(first[0]["id"])
    assert [set(each) for each in first[1:]] == [{"id", "similarity"}] * 2


def test_metadata_comes_in_the_order_of_the_ids(app: Any) -> None:
    response = asked(app, "POST", "/metadata", content=json.dumps({"ids": [7, 3, 7], "indice_name": NAME}))
    assert [each["id"] for each in response.json()] == [7, 3, 7]
    assert [each["metadata"]["image_path"] for each in response.json()] == ["00007", "00003", "00007"]
    assert asked(app, "POST", "/metadata", content='{"ids": [], "indice_name": "shapes"}').json() == []
    missing = asked(app, "POST", "/metadata", content=json.dumps({"ids": [COUNT]}))
    assert missing.status_code == 404


def test_the_name_of_the_index_is_told_and_asked_for(app: Any) -> None:
    assert asked(app, "GET", "/indices-list").json() == [NAME]
    assert pairs(knn(app, text="red", indice_name=None)) == pairs(knn(app, text="red"))
    other = knn(app, text="red", indice_name="laion5B")
    assert (other.status_code, other.json()["error"]) == (404, "there is no index 'laion5B' here; its name is 'shapes'")


def test_more_ids_than_are_given_at_once_are_no_fault(app: Any) -> None:
    """clip-retrieval's page asks for 3000 each time."""
    assert len(knn(app, text="red", num_result_ids=3000).json()) == COUNT


@pytest.mark.parametrize(
    ("asks", "status", "part"),
    [
        ({}, 400, "text, image or embedding_input is needed"),
        ({"image_url": "http://169.254.169.254/latest"}, 400, "image_url: addresses are not fetched"),
        ({"text": "a", "use_mclip": True}, 400, "use_mclip"),
        ({"embedding_input": [1.0, 2.0]}, 400, "a vector of 16 numbers is needed, got [2]"),
        ({"embedding_input": []}, 400, "a vector of 16 numbers is needed, got [0]"),
        ({"embedding_input": [0.0] * 16}, 400, "a vector of finite numbers, not all of them 0, is needed"),
        ({"embedding_input": [1e308] * 16}, 400, "a vector of finite numbers, not all of them 0, is needed"),
        ({"embedding_input": [float("nan")] * 16}, 400, "the body is no JSON"),
        ({"text": "a", "num_images": 501}, 422, "num_images"),
        ({"text": "a", "modality": "sound"}, 422, "modality"),
        ({"image": "%%%"}, 400, "base64"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(app: Any, asks: Any, status: int, part: str) -> None:
    response = knn(app, **asks)
    assert response.status_code == status and part in response.json()["error"]


def test_no_address_is_fetched(app: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg"
        assert knn(app, image_url=address).status_code == 400
        assert knn(app, image=address).status_code == 400
        with pytest.raises(TimeoutError):
            listener.accept()
