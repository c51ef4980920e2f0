"""What the server answers is what Python gives, however many ask at once, and to those only who may ask."""

import asyncio
import io
import json
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipkit import classifier, images, serve
from clipkit.errors import StorageError, UserError
from clipkit.search import Index, Options, Part, Query, open_index, query
from tests import making
from tests.serve import attacking, serving
from tests.serve.serving import asked, client, encoded, picture

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from clipkit.serve import process  # noqa: E402
from clipkit.serve.app import build  # noqa: E402
from clipkit.serve.batching import Batcher, Full  # noqa: E402
from clipkit.serve.limits import Limits, Rate  # noqa: E402
from clipkit.serve.service import Service  # noqa: E402
from clipkit.serve.thumbnails import Place, Thumbnails  # noqa: E402

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def service(index: Index) -> Iterator[Service]:
    made = Service(index, name="shapes")
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(service: Service) -> Any:
    return build(service)


def found(response: Any) -> list[tuple[int, float]]:
    assert response.status_code == 200, response.text
    return [(hit["id"], pytest.approx(hit["score"], abs=1e-5)) for hit in response.json()["hits"]]


def told(hits: Any) -> list[tuple[int, float]]:
    return [(hit.id, hit.score) for hit in hits]


QUESTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"text": "a red circle"}, {"text": "a red circle"}),
    ({"text": ["a red circle", "gold"], "weights": [1, 2.5]}, {"text": ["a red circle", "gold"], "weights": [1, 2.5]}),
    ({"text": "a circle", "not": ["red"]}, {"text": "a circle", "without": "red"}),
    ({"image": encoded(picture(3))}, {"image": picture(3)}),
    ({"keys": ["00004"]}, {"key": "00004"}),
    ({"ids": [7, 8]}, {"id": [7, 8]}),
    ({"text": "gold", "where": "number > 20"}, {"text": "gold", "where": "number > 20"}),
    ({"text": "gold", "unique": 0.9}, {"text": "gold", "unique": 0.9}),
    ({"text": "gold", "diverse": 0.5}, {"text": "gold", "diverse": 0.5}),
    ({"text": "gold", "kind": "text"}, {"text": "gold", "kind": "text"}),
]


@pytest.mark.parametrize(("body", "arguments"), QUESTIONS, ids=[" ".join(body) for body, _ in QUESTIONS])
def test_the_server_finds_what_python_finds(
    app: Any, index: Index, body: dict[str, Any], arguments: dict[str, Any]
) -> None:
    response = asked(app, "POST", "/api/search", json={"k": 6, **body})
    assert told(index.search(**arguments, k=6)) == found(response)


def test_a_text_with_a_negative_weight_is_taken_away_like_one_in_not(app: Any) -> None:
    one = asked(app, "POST", "/api/search", json={"text": ["a circle", "red"], "weights": [1, -1]})
    other = asked(app, "POST", "/api/search", json={"text": "a circle", "not": ["red"]})
    assert one.json()["hits"] == other.json()["hits"]


def test_answers_do_not_wait_for_the_reader_to_acknowledge_the_one_before() -> None:
    """asyncio turns Nagle's delay off for sockets that name their protocol alone; it is 40 ms for each answer."""
    with process.bound("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_a_hit_tells_its_record_and_not_where_it_lies(app: Any) -> None:
    response = asked(app, "POST", "/api/search", json={"ids": [5], "k": 1, "where": "number = 6"})
    hit = response.json()["hits"][0]
    assert {name: hit[name] for name in ("id", "key", "width", "height")} == {
        "id": 6, "key": "00006", "width": 48, "height": 40,
    }  # fmt: skip
    assert hit["fields"]["colour"] == "black" and hit["fields"]["half"] == 3.0
    assert not {"shard", "offset", "size", "sha256"} & hit["fields"].keys()
    assert response.json()["of"] == 1 and set(response.json()["ms"]) == {"embed", "search", "records"}
    item = asked(app, "GET", "/api/item/6").json()["record"]
    assert item == {name: value for name, value in hit.items() if name != "score"}


@pytest.mark.parametrize("column", ["shard", "offset", "sha256", "image_path"])
def test_nobody_can_ask_where_a_picture_lies(app: Any, column: str) -> None:
    assert column not in asked(app, "GET", "/api/about").json()["columns"]
    for name in (column, column.upper(), f'"{column}"', f"[{column}]", f"`{column}`", f"items.{column}"):
        for condition in (f"{name} like '/%'", f"number < 3 or length({name}) > 9"):
            response = asked(app, "POST", "/api/search", json={"text": "a", "where": condition})
            assert response.status_code == 400, condition
            assert "no such column" in (error := response.json()["error"]) and "/data/" not in error
            assert "shard" not in error.partition("; ")[2]


def test_many_at_once_get_what_each_gets_alone(app: Any) -> None:
    shapes = [(colour, shape) for colour in ("red", "blue", "gold", "teal") for shape in ("circle", "square")]
    kinds = ("image", "text")
    bodies: list[Any] = [
        {"text": f"a {colour} {shape}", "k": 3 + i % 2, "kind": kinds[i % 2]}
        for i, (colour, shape) in enumerate(shapes)
    ]
    bodies += [{"image": encoded(picture(i)), "k": 4} for i in range(4)]
    bodies += [{"text": "red", "where": f"number < {i + 3}", "k": 4} for i in range(4)]
    alone = [asked(app, "POST", "/api/search", json=body) for body in bodies]

    async def together() -> list[Any]:
        async with client(app) as asking:
            return await asyncio.gather(*(asking.post("/api/search", json=body) for body in bodies))

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert [hit["id"] for hit in one.json()["hits"]] == [hit["id"] for hit in other.json()["hits"]]
        assert found(other) == [(hit["id"], hit["score"]) for hit in one.json()["hits"]]


def test_what_is_wrong_costs_nobody_else_an_answer(app: Any) -> None:
    broken = encoded(picture(1)[:300])
    bodies = [{"text": "red"}, {"image": broken}, {"keys": ["nowhere"]}, {"text": "red", "where": "nowhere > 1"}]

    async def together() -> list[Any]:
        async with client(app) as asking:
            return await asyncio.gather(*(asking.post("/api/search", json=body) for body in bodies))

    good, *bad = asyncio.run(together())
    assert good.status_code == 200
    assert [each.status_code for each in bad] == [400] * 3
    assert all(isinstance(each.json()["error"], str) for each in bad)


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({}, 400, "words, a picture or a key"),
        ({"text": " "}, 400, "the text is empty"),
        ({"text": ""}, 422, "text"),
        ({"text": 5}, 422, "text"),
        ({"text": "a", "k": 0}, 422, "k: "),
        ({"text": "a", "k": 501}, 422, "k: "),
        ({"text": "a", "k": "5"}, 422, "k: "),
        ({"text": "a", "unknown": 1}, 422, "unknown"),
        ({"text": "a", "weights": [1, 2]}, 400, "weights: as many as parts are needed: 1; got 2"),
        ({"text": "a", "weights": [0]}, 400, "weights are numbers other than 0"),
        ({"text": ["a"] * 17}, 422, "text"),
        ({"text": "a" * 2001}, 422, "text"),
        ({"image": "no base64!"}, 400, "image: a file in base64 is needed"),
        ({"image": encoded(b"<svg/>")}, 400, "image: not a picture; JPEG, PNG, WebP, GIF and BMP"),
        ({"ids": [30]}, 400, "30"),
        ({"ids": [-1]}, 422, "ids"),
        ({"ids": [2**70]}, 422, "ids"),
        ({"keys": ["../../etc/passwd"]}, 400, "passwd"),
        ({"text": "a", "where": "x; drop table items"}, 400, "where"),
        ({"text": "a", "kind": "sound"}, 422, "kind"),
        ({"text": "a", "unique": 2.0}, 422, "unique"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(app: Any, body: Any, status: int, part: str) -> None:
    response = asked(app, "POST", "/api/search", json=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"} and part in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_classes_are_told_as_python_tells_them(app: Any, index: Index, tmp_path: Path) -> None:
    labels = ["circle", "square", "triangle"]
    (tmp_path / "a.jpg").write_bytes(picture(2))
    expected = classifier.classify(index.model, tmp_path / "a.jpg", labels)[0]["scores"]
    for _ in range(2):  # once with labels that are embedded now, once with those that are kept
        response = asked(app, "POST", "/api/classify", json={"image": encoded(picture(2)), "labels": labels})
        scores = {each["label"]: each["probability"] for each in response.json()["scores"]}
        assert scores == pytest.approx(expected, abs=1e-5) and list(scores) == list(expected)
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "part"),
    [
        ({"labels": ["a"]}, 422, "image"),
        ({"image": encoded(picture(0)), "labels": []}, 422, "labels"),
        ({"image": encoded(picture(0)), "labels": [" "]}, 400, "labels: the labels are empty"),
        ({"image": encoded(picture(0)), "labels": ["a"] * 200, "templates": ["{c}"] * 3}, 400, "500 at most"),
        ({"image": encoded(picture(0)), "labels": ["a"], "templates": ["no place"]}, 400, "{c}"),
        ({"image": encoded(b"no picture"), "labels": ["a"]}, 400, "not a picture"),
    ],
)
def test_a_classification_that_cannot_be_is_refused(app: Any, body: Any, status: int, part: str) -> None:
    response = asked(app, "POST", "/api/classify", json=body)
    assert response.status_code == status and part in response.json()["error"]


def test_small_pictures_come_from_the_shard_and_are_not_sent_twice(app: Any) -> None:
    response = asked(app, "GET", "/api/thumb/3?side=100")
    assert response.headers["content-type"] == "image/jpeg"
    image = Image.open(io.BytesIO(response.content))
    assert max(image.size) <= 128
    etag = response.headers["etag"]
    again = asked(app, "GET", "/api/thumb/3?side=100", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    assert asked(app, "GET", "/api/thumb/4?side=100").headers["etag"] != etag
    assert asked(app, "GET", "/api/thumb/3?side=200").headers["etag"] != etag


def test_a_picture_comes_as_its_file_is_and_may_run_nothing(app: Any) -> None:
    response = asked(app, "GET", "/api/picture/3")
    assert response.content == picture(3) and response.headers["content-type"] == "image/jpeg"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-security-policy"] == "default-src 'none'; sandbox"


@pytest.mark.parametrize("path", ["/api/thumb/30", "/api/picture/30", "/api/item/30", "/page/nothing.js", "/nothing"])
def test_what_is_not_there_is_404(app: Any, path: str) -> None:
    response = asked(app, "GET", path)
    assert response.status_code == 404 and set(response.json()) == {"error"}


def test_pictures_that_are_gone_changed_or_none_are_told_of(tmp_path: Path) -> None:
    made = serving.make(tmp_path, 4)
    shard = tmp_path / "data" / "00000.tar"
    service = Service(open_index(made))
    app = build(service)
    content = shard.read_bytes()
    shard.write_bytes(content[:700])
    assert asked(app, "GET", "/api/thumb/3").json()["error"].endswith("has changed since it was embedded")
    shard.write_bytes(b"x" * len(content))
    for path in ("/api/thumb/1", "/api/picture/1"):
        response = asked(app, "GET", path)
        assert response.status_code == 404 and "cannot be read: not a picture" in response.json()["error"]
    shard.unlink()
    assert asked(app, "GET", "/api/thumb/1").json()["error"] == "the file of this picture is not there any more"
    service.close()


def test_small_pictures_in_memory_are_bounded(tmp_path: Path) -> None:
    places = []
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(picture(number))
        places.append(Place(str(tmp_path / f"{number}.jpg"), 0, len(picture(number))))
    one = len(Thumbnails().jpeg(places[0], 128))
    held = Thumbnails(most=3 * one)
    small = [held.jpeg(place, 128) for place in places]
    assert len(held._held) <= 3 and held._size == sum(map(len, held._held.values())) <= 3 * one
    assert [held.jpeg(place, 128) for place in places] == small


def test_about_tells_what_may_be_asked(app: Any, index: Index) -> None:
    about = asked(app, "GET", "/api/about").json()
    assert about["name"] == "shapes" and about["rows"] == serving.COUNT and about["kinds"] == ["image", "text"]
    assert about["model"] == "run" and about["width"] == 16
    assert about["columns"]["number"] == "INTEGER" and about["columns"]["half"] == "REAL"
    assert about["columns"]["colour"] == "TEXT" and not {"shard", "offset", "size"} & about["columns"].keys()
    assert about["limits"] == {"upload_mb": 20.0, "pixels": 50_000_000, "k": 500}
    captions = {record["caption"] for record in index.stored.records.get(range(len(index)))}
    assert 0 < len(about["examples"]) <= 6 and set(about["examples"]) <= captions


def test_metrics_count_requests_by_route(app: Any) -> None:
    asked(app, "GET", "/api/item/1")
    asked(app, "GET", "/api/item/2")
    asked(app, "POST", "/api/search", json={"text": "red"})
    asked(app, "GET", "/some/address/of/a/stranger")
    text = asked(app, "GET", "/metrics").text
    assert 'clipkit_requests_total{route="/api/item/{id}",status="200"}' in text
    assert f"clipkit_rows {float(serving.COUNT)}" in text and 'clipkit_model{name="run"} 1.0' in text
    for stage in ("embed", "search", "records"):
        assert f'clipkit_stage_seconds_count{{stage="{stage}"}}' in text
    assert "stranger" not in text


def test_each_file_of_the_page_is_served_with_its_type(app: Any) -> None:
    names = [file.name for file in (files("clipkit.serve") / "page").iterdir() if "." in file.name]
    assert "index.html" in names
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for name in names:
        response = asked(app, "GET", f"/page/{name}")
        assert response.headers["content-type"].startswith(types[name.rpartition(".")[2]])
        again = asked(app, "GET", f"/page/{name}", headers={"If-None-Match": response.headers["etag"]})
        assert again.status_code == 304
    front = asked(app, "GET", "/")
    assert front.content == asked(app, "GET", "/page/index.html").content
    assert "default-src 'self'" in front.headers["content-security-policy"]


def test_without_a_token_other_names_and_other_pages_are_refused(app: Any) -> None:
    for host in ("localhost", "127.0.0.1:8787", "[::1]:8787"):
        assert asked(app, "GET", "/health", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8787", "", "["):
        assert asked(app, "GET", "/api/about", headers={"Host": host}).status_code == 403
    body = {"text": "red"}
    for origin, status in (("http://localhost", 200), ("http://evil.example", 403), ("null", 403)):
        response = asked(app, "POST", "/api/search", json=body, headers={"Origin": origin})
        assert response.status_code == status


def test_with_a_token_only_the_empty_page_comes_without_it(service: Service) -> None:
    app = build(service, TOKEN)
    for path in ("/", "/page/index.html", "/health"):
        assert asked(app, "GET", path, headers={"Host": "any.example"}).status_code == 200
    for path in ("/api/about", "/api/thumb/1", "/api/picture/1", "/metrics", "/indices-list", "/openapi.json", "/x"):
        refused = asked(app, "GET", path)
        assert refused.status_code == 401 and "token" in refused.json()["error"]
        for given in (f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer", f"Basic {TOKEN}", "Bearer \xe9"):
            header = {"Authorization": given.encode("latin-1")}
            assert asked(app, "GET", path, headers=header).status_code == 401
    assert asked(app, "GET", "/api/about", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_address_with_the_token_leaves_a_cookie(service: Service) -> None:
    app = build(service, TOKEN)
    welcome = asked(app, "GET", f"/?token={TOKEN}")
    assert welcome.status_code == 303 and welcome.headers["location"] == "./"
    said = welcome.headers["set-cookie"]
    assert "HttpOnly" in said and "SameSite=Strict" in said
    cookie = said.partition(";")[0]
    assert asked(app, "GET", "/api/about", headers={"Cookie": cookie}).status_code == 200
    assert asked(app, "GET", "/api/about", headers={"Cookie": f"{cookie}x"}).status_code == 401
    assert asked(app, "GET", "/?token=another").status_code == 401
    assert asked(build(service), "GET", f"/?token={TOKEN}").status_code == 400


def test_a_person_with_an_old_address_comes_to_the_page_which_asks_for_the_token(service: Service) -> None:
    for app in (build(service, TOKEN), build(service)):
        led = asked(app, "GET", "/?token=another", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert (led.status_code, led.headers["location"]) == (303, "./") and "set-cookie" not in led.headers


def test_a_client_that_asks_too_often_waits() -> None:
    now = 0.0
    rate = Rate(10, 3, lambda: now)
    assert [rate.wait_s("a") for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
    assert rate.wait_s("b") == 0
    now = 0.1
    assert rate.wait_s("a") == 0 and rate.wait_s("a") > 0
    now = 100.0
    assert [rate.wait_s("a") > 0 for _ in range(4)] == [False, False, False, True]
    assert [Rate(0, 0).wait_s("a") for _ in range(100)] == [0] * 100


def test_all_addresses_of_one_network_are_one_client() -> None:
    rate = Rate(1, 1, lambda: 0.0)
    assert rate.wait_s("2001:db8::1") == 0 and rate.wait_s("2001:db8::2") > 0
    assert rate.wait_s("2001:db8:0:1::1") == 0 and rate.wait_s("::ffff:1.2.3.4") == 0 == rate.wait_s("::ffff:1.2.3.5")


def test_clients_that_are_remembered_are_bounded() -> None:
    rate = Rate(1, 1, lambda: 0.0)
    for number in range(Rate.CLIENTS + 100):
        rate.wait_s(str(number))
    assert len(rate._left) == Rate.CLIENTS


def test_too_many_requests_are_told_when_to_come_again(index: Index) -> None:
    service = Service(index, Limits(rate=1))
    app = build(service)

    async def many() -> list[Any]:
        async with client(app) as asking:
            return await asyncio.gather(*(asking.get("/api/item/1") for _ in range(20)))

    responses = asyncio.run(many())
    assert {each.status_code for each in responses} == {200, 429}
    refused = next(each for each in responses if each.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1 and refused.json() == {"error": "too many requests"}
    assert asked(app, "GET", "/health").status_code == 200
    service.close()


def test_questions_that_come_while_others_run_are_one_batch() -> None:
    batches: list[list[int]] = []
    started, go_on = threading.Event(), threading.Event()

    def work(questions: Any) -> list[int]:
        batches.append(list(questions))
        started.set()
        assert go_on.wait(10)
        return [each * each for each in questions]

    async def ask() -> list[int]:
        with ThreadPoolExecutor(1) as thread:
            batcher: Batcher[int, int] = Batcher(work, thread, most=4, waiting=7, gather_s=0)
            first = asyncio.create_task(batcher.ask(0))
            await asyncio.to_thread(started.wait, 10)
            others = [asyncio.create_task(batcher.ask(number)) for number in range(1, 8)]
            await asyncio.sleep(0)
            with pytest.raises(Full):
                await batcher.ask(8)
            others[1].cancel()  # number 2 has gone
            await asyncio.sleep(0)
            go_on.set()
            await first
            return [await each for each in others if not each.cancelled() and each is not others[1]]

    assert asyncio.run(ask()) == [1, 9, 16, 25, 36, 49]
    assert batches == [[0], [1, 3, 4, 5], [6, 7]]


def test_an_error_goes_to_the_one_whose_it_is_and_a_fault_to_all() -> None:
    def work(questions: Any) -> list[Any]:
        if 9 in questions:
            raise ZeroDivisionError
        return [UserError("odd") if each % 2 else each for each in questions]

    async def ask(*numbers: int) -> list[Any]:
        with ThreadPoolExecutor(1) as thread:
            batcher: Batcher[int, int] = Batcher(work, thread)
            return await asyncio.gather(*(batcher.ask(each) for each in numbers), return_exceptions=True)

    found = asyncio.run(ask(0, 1, 2))
    assert found[0] == 0 and isinstance(found[1], UserError) and found[2] == 2
    assert [type(each) for each in asyncio.run(ask(8, 9))] == [ZeroDivisionError] * 2


def test_queries_of_one_batch_are_embedded_together(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    service, sizes = Service(index), []
    plain = Index.embed_each

    def counting(self: Index, queries: Any, kind: str = "image") -> Any:
        sizes.append(len(queries))
        return plain(self, queries, kind)

    monkeypatch.setattr(Index, "embed_each", counting)
    questions = [(query(text=text), Options(k=k), []) for text, k in (("red", 2), ("blue", 3), ("gold", 2))]
    answers = service._search(questions)
    assert sizes == [3]
    for (wanted, options, _), answer in zip(questions, answers, strict=True):
        assert not isinstance(answer, Exception)
        assert [hit.id for hit in answer[0]] == [hit.id for hit in index.search_many([wanted], options)[0]]
    service.close()


def test_who_sends_a_picture_that_is_decoded_for_long_holds_up_nobody(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, plain = Service(index), images.eval_view
    begun, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return plain(*args)

    async def ask() -> Any:
        shown = asyncio.create_task(service.search(query(image=picture(1)), Options(3)))
        classified = asyncio.create_task(service.classify(picture(1), ["a", "b"], ["a {c}"]))
        await asyncio.to_thread(begun.wait, 10)
        async with asyncio.timeout(10):
            words = await service.search(query("red"), Options(3))
        assert not shown.done() and not classified.done()
        go_on.set()
        return words, await shown, await classified

    monkeypatch.setattr(images, "eval_view", slow)
    words, shown, classified = asyncio.run(ask())
    assert told(words.hits) == told(index.search("red", k=3)) and shown.hits[0].id == 1 and len(classified) == 2
    service.close()


def test_what_fails_inside_is_told_on_stderr_and_not_to_the_client(
    index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any) -> Any:
        raise StorageError("/a/place/of/ours: damaged")

    service = Service(index)
    monkeypatch.setattr(index, "numbers", failing)
    response = asked(build(service), "POST", "/api/search", json={"text": "red"})
    service.close()
    assert (response.status_code, set(response.json())) == (500, {"error"}) and "/a/place" not in response.text
    assert "clipkit: /api/search: /a/place/of/ours: damaged" in capsys.readouterr().err


def test_no_file_of_the_machine_is_opened_for_a_query(index: Index, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    service = Service(index)
    with pytest.raises(AssertionError):
        asyncio.run(service.search(Query((Part("image", str(tmp_path / "a.jpg")),)), Options()))
    service.close()


def test_a_stopped_server_ends_what_it_answers_and_exits_with_0(served: Path) -> None:
    body = json.dumps({"image": encoded(picture(1)), "labels": [f"label {i}" for i in range(500)]}).encode()
    with serving.running(served) as server:
        idle = socket.create_connection(("127.0.0.1", server.port), 30)
        with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
            connection.sendall(attacking.request("POST", "/api/classify", body))
            for _ in range(2):  # by then the other request is being answered
                assert attacking.ask(server.port, "GET", "/health")[0] == 200
            server.process.send_signal(signal.SIGTERM)
            status, content = attacking.parted(attacking.read(connection))
        assert status == 200 and len(json.loads(content)["scores"]) == 500
        assert server.process.wait(30) == 0
        idle.close()
        assert server.stderr().rstrip().endswith("stopped")


def test_where_others_can_reach_it_the_address_holds_a_token(served: Path) -> None:
    with serving.running(served, host="0.0.0.0") as server:
        assert "/?token=" in server.address
        local = f"http://127.0.0.1:{server.port}/"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{local}api/about", timeout=30)
        with refused.value:
            assert refused.value.code == 401
        token = server.address.partition("token=")[2]
        request = urllib.request.Request(f"{local}api/about", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["rows"] == serving.COUNT


def test_the_command_line_refuses_what_cannot_be(served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--token: 16 to 200 letters"):
        serve.serve(served, token="short")
    with pytest.raises(UserError, match=r"--host 203.0.113.1 --port 0: cannot be listened to"):
        serve.serve(served, host="203.0.113.1", port=0)
    with pytest.raises(UserError, match="no such folder"):
        serve.serve(tmp_path / "nothing", port=0)
    monkeypatch.setattr(serve, "NEEDED", ("fastapi", "a_package_that_is_not_there"))
    with pytest.raises(UserError, match=r"a_package_that_is_not_there missing; type: pip install 'clipkit\[serve\]'"):
        serve.serve(served)
    asked_for = making.clipkit("serve", "--help")
    assert asked_for.returncode == 0 and "--max-upload-mb" in asked_for.stdout
