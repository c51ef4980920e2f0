"""A server that is attacked refuses, tells no secrets, holds little memory, and goes on answering."""

import base64
import json
import os
import random
import shutil
import socket
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clipkit.search import open_index
from tests.serve import attacking, serving
from tests.serve.attacking import ask, parted, png, pour, raw, request, zeros
from tests.serve.serving import SECRET, Server, asked, encoded, picture

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")

LIMITS = {"upload_mb": 2, "rate": 300, "header_s": 2, "body_s": 2, "connections": 60}
UP = (
    "../", "../../../../../../etc/passwd", "..\\..\\secret.txt", "%2e%2e%2fsecret.txt", "/etc/passwd", "file:///etc/passwd",
    "....//....//secret.txt", "secret.txt\0.jpg", "../secret.txt",
)  # fmt: skip
SQL = (
    "1; drop table items", "1) union select 1 --", "1 union select sql from sqlite_master",
    "load_extension('/tmp/a.so')",
    "(select count(*) from sqlite_master) > 0", "id in (select id from items)", "1 /*", "1 --",
    "attach database 'a' as b",
    "pragma_table_info('items')", "readfile('/etc/passwd') = ''", "randomblob(1000000000) = 1",
    "zeroblob(2000000000) = 1",
    "pg_sleep(10)", "exists (with recursive c(x) as (select 1 union all select x + 1 from c) select 1 from c)",
    "printf('%.*c', 1000000000, 'a') = ''", "1" + " or 1" * 900, "(" * 500 + "1" + ")" * 500, "'", '"', "1\0", "é = 1",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(served: Path) -> Iterator[Server]:
    with serving.running(served, limits=LIMITS) as made:
        yield made
        assert ask(made.port, "GET", "/health")[0] == 200, "it answers after all of it"
        assert "Traceback" not in made.stderr()


@pytest.fixture(autouse=True)
def still_well(server: Server) -> Iterator[None]:
    """Each attack leaves the server answering, and its memory as it was."""
    before = server.mb()
    yield
    assert ask(server.port, "GET", "/health") == (200, b'{"status":"ok","rows":30}')
    assert server.mb() < before + 150


def fine(status: int, content: bytes) -> bool:
    """No fault of the server, and no secret."""
    assert SECRET.encode() not in content and b"root:" not in content and b"CREATE TABLE" not in content
    return 200 <= status < 500


def test_an_upload_of_100_mb_is_refused_before_it_is_read(server: Server) -> None:
    head = (
        request("POST", "/api/search", b"")[:-2].replace(b"Content-Length: 0", b"Content-Length: 104857600") + b"\r\n"
    )
    answer, sent = pour(server.port, head, bytes(1 << 20), 100)
    assert parted(answer)[0] in (413, 0) and sent < 50 << 20
    assert parted(raw(server.port, head))[0] == 413


def test_an_upload_without_an_end_is_refused_at_the_limit(server: Server) -> None:
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    block = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    answer, sent = pour(server.port, head, block, 100)
    assert parted(answer)[0] in (413, 0) and sent < 50 << 20
    assert parted(raw(server.port, head + 4 * block))[0] == 413


def test_base64_that_is_no_picture_is_refused(server: Server) -> None:
    body = b'{"image": "' + base64.b64encode(random.Random(0).randbytes(1_900_000)) + b'"}'
    for _ in range(10):
        status, content = ask(server.port, "POST", "/api/search", body)
        assert status == 400 and b"not a picture" in content


def test_many_large_uploads_at_once_hold_little_memory(server: Server) -> None:
    body = b'{"image": "' + b"A" * 2_500_000
    head = request("POST", "/api/search", body)[: -len(body)].replace(b"2500011", b"2600000")
    with_room = []
    for _ in range(12):
        connection = socket.create_connection(("127.0.0.1", server.port), 20)
        connection.settimeout(20)
        with suppress(OSError):
            connection.sendall(head + body)
        with_room.append(connection)
    statuses = Counter(parted(attacking.read(each))[0] for each in with_room)
    for each in with_room:
        each.close()
    assert statuses[503] >= 6 and statuses[408] >= 1 and set(statuses) <= {503, 408, 0}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (png(40_000, 40_000, rows=1), "too many pixels"),
        (png(20_000, 1, rows=1), "too small"),
        (png(20_000, 30, rows=1), "too long for its width"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"PK\x03\x04" + bytes(100), "not a picture"),
        (b"GIF89a", "not a picture"),
        (b"", "base64"),
    ],
    ids=["pixels", "one row", "long", "svg", "eps", "zip", "cut", "empty"],
)
def test_pictures_that_no_decoder_should_see_are_refused(server: Server, data: bytes, why: str) -> None:
    for path, more in (("/api/search", {}), ("/api/classify", {"labels": ["a"]})):
        status, content = ask(server.port, "POST", path, {"image": encoded(data), **more})
        assert status in (400, 422) and (why in json.loads(content)["error"] or not data)


@pytest.mark.parametrize(
    "chunk",
    [(b"iCCP", b"a\0\0" + zeros(300)), (b"zTXt", b"a\0\0" + zeros(300)), (b"iTXt", b"a\0\1\0\0\0" + zeros(300))],
    ids=["profile", "text", "text of any language"],
)
def test_what_is_small_and_unpacks_to_300_mb_is_not_unpacked(server: Server, chunk: tuple[bytes, bytes]) -> None:
    status, content = ask(server.port, "POST", "/api/search", {"image": encoded(png(64, 64, chunk))})
    assert fine(status, content)


def test_a_black_picture_of_a_few_kilobytes_is_decoded_within_bounds(server: Server) -> None:
    data = png(7000, 7000)
    assert len(data) < 20_000
    status, _ = ask(server.port, "POST", "/api/search", {"image": encoded(data), "k": 1})
    assert status == 200
    assert ask(server.port, "POST", "/api/search", {"image": encoded(png(64, 64, rows=3))})[0] in (200, 400)


@pytest.mark.parametrize("path", UP)
def test_no_path_leads_out_of_the_index(server: Server, path: str) -> None:
    plain = path.replace("\0", "%00").replace("\\", "%5c")
    for prefix in ("/", "/page/", "/page/%2e%2e/", "/api/thumb/", "/api/picture/", "/api/item/", "/static/"):
        status, content = parted(raw(server.port, request("GET", prefix + plain)))
        assert fine(status, content) and status in (400, 404, 422)
    for body in (
        {"keys": [path]}, {"text": path}, {"image": path}, {"text": "a", "where": f"key = '{path}'"},
        {"text": "a", "where": path}, {"text": "a", "kind": path}, {"text": "a", "not": [path]}, {path: path},
    ):  # fmt: skip
        assert fine(*ask(server.port, "POST", "/api/search", body))
    for body in (
        {"indice_name": path, "text": "a"},
        {"image_url": path},
        {"image": path},
        {"image_url": f"file:{path}"},
    ):
        status, content = ask(server.port, "POST", "/knn-service", body)
        assert fine(status, content) and status in (400, 404)
    assert fine(*ask(server.port, "POST", "/metadata", {"ids": [path]}))
    assert fine(*ask(server.port, "POST", "/api/classify", {"image": encoded(picture(0)), "labels": [path]}))
    assert fine(*ask(server.port, "GET", f"/?token={plain}"))


@pytest.mark.parametrize("where", SQL)
def test_a_condition_is_a_condition_and_nothing_else(server: Server, where: str) -> None:
    status, content = ask(server.port, "POST", "/api/search", {"text": "a", "where": where})
    assert fine(status, content)
    if status == 200:
        assert where.startswith("1 or") or where.startswith("((")
    whole = json.loads(ask(server.port, "POST", "/api/search", {"text": "a", "where": "1", "k": 50})[1])
    assert whole["of"] == serving.COUNT == len(whole["hits"])


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "a", "unique": NaN}', b'{"text": "a", "weights": [Infinity]}', b'{"text": "a", "diverse": 1e999}',
        b'{"text": "a", "weights": [-Infinity]}', b'{"text": NaN}', b'{"text": "a", "k": 1e3}',
        b'{"text": "a", "k": NaN}',
        b"NaN", b"[" * 100_000, b'{"text":' * 50_000, b'{"text": "a", "k": ' + b"9" * 10_000 + b"}", b"\xff\xfe\x00",
        b'{"text": "\xed\xa0\x80"}', b'{"text": "\\ud800"}', b'{"text": "a"', b"null", b"[]", b'"text"', b"", b"0",
        b'{"text": "a", "text": "b", "k": {}}', b'{"__proto__": {"a": 1}, "text": "a"}', b'{"text": ["a", null]}',
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_json_that_is_none_is_refused(server: Server, body: bytes) -> None:
    for path in ("/api/search", "/api/classify", "/metadata"):
        status, content = ask(server.port, "POST", path, body)
        assert status in (400, 422) and set(json.loads(content)) == {"error"}
    status, content = ask(server.port, "POST", "/knn-service", body)  # which knows no `k`, and lets unknown fields pass
    assert fine(status, content) and (status in (400, 422) or not any(word in body for word in (b"NaN", b"Infinity")))


def test_other_media_types_and_methods_are_refused(server: Server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "image/png"):
        data = request("POST", "/api/search", b'{"text": "a"}').replace(b"application/json", kind.encode())
        assert parted(raw(server.port, data))[0] == 422
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "NOTHING"):
        assert parted(raw(server.port, request(method, "/api/search", b"{}")))[0] == 405


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), b"\r\n\r\n\r\n", b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: " + b"b" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\nabc",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\nabc",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n"
        b"\r\n5\r\nabcde\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\x00\xff" * 100,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + bytes(100),
        b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT a.example:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health?a=\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=range(20),
)  # fmt: skip
def test_what_is_no_http_ends_the_connection(server: Server, data: bytes) -> None:
    status, content = parted(raw(server.port, data, end=True))
    assert status == 0 or fine(status, content) or status == 503


def test_noise_ends_the_connection(server: Server) -> None:
    dice = random.Random(0)
    for _ in range(50):
        assert parted(raw(server.port, b"POST /api/search HTTP/1.1\r\n" + dice.randbytes(300), end=True))[0] in (0, 400)


def test_requests_in_one_connection_are_answered_in_their_order(server: Server) -> None:
    one = request("GET", "/api/item/{}", None).replace(b"Connection: close\r\n", b"")
    data = b"".join(one.replace(b"{}", str(number).encode()) for number in range(20))
    answers = raw(server.port, data + request("GET", "/health"))
    keys = [line.split(b'"key":"')[1][:5] for line in answers.split(b"\n") if b'"key":"' in line]
    assert keys == [f"{number:05d}".encode() for number in range(20)]


def test_who_sends_headers_slowly_is_cut_off(server: Server) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(100)]  # 60 may be open
    for each in slow:
        with suppress(OSError):
            each.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
    answers = [attacking.read(each) for each in slow]
    for each in slow:
        each.close()
    statuses = Counter(parted(each)[0] for each in answers)
    assert set(statuses) == {0, 503}


def test_who_sends_a_header_now_and_then_is_cut_off(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        ended = threading.Event()

        def drip() -> None:
            while not ended.wait(0.2):
                try:
                    connection.sendall(b"a: b\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = attacking.read(connection)
        ended.set()
        thread.join()
    assert parted(answer)[0] in (0, 400)


def test_who_sends_a_body_slowly_is_told_so(server: Server) -> None:
    head = request("POST", "/api/search", b"x" * 1000)[:-990]
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(head)
        answer = attacking.read(connection)
    assert parted(answer) == (408, b'{"error": "the body did not come within 2 s"}')


def test_who_does_not_read_is_cut_off(server: Server) -> None:
    one = request("GET", "/openapi.json").replace(b"Connection: close\r\n", b"")
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(ConnectionError):
            while True:
                connection.sendall(one * 100)


def test_who_leaves_before_the_answer_costs_little(server: Server) -> None:
    body = {"image": encoded(picture(0)), "labels": [f"label {i}" for i in range(500)]}
    data = request("POST", "/api/classify", json.dumps(body).encode())
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
            connection.sendall(data)
    assert ask(server.port, "POST", "/api/search", {"text": "red"})[0] == 200


def test_ten_thousand_requests_in_a_burst_are_answered_or_refused(server: Server) -> None:
    statuses, lock = Counter[int](), threading.Lock()

    def burst(number: int) -> None:
        one = request("GET", f"/api/item/{number % 30}").replace(b"Connection: close\r\n", b"")
        own = Counter[int]()
        for _ in range(10):
            answers = raw(server.port, 49 * one + request("GET", "/api/item/1"))
            own.update(int(each[:3]) for each in answers.split(b"HTTP/1.1 ")[1:])
        with lock:
            statuses.update(own)

    threads = [threading.Thread(target=burst, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 429, 503} and statuses[200] >= 100


@pytest.fixture
def hostile(served: Path, tmp_path: Path) -> Any:
    """An application over an index whose records were written by a stranger: place -> app."""
    from clipkit.serve.app import build
    from clipkit.serve.service import Service

    services = []

    def made(shard: str, offset: int, size: int, caption: str = "") -> Any:
        folder = tmp_path / f"index{len(services)}"
        shutil.copytree(served, folder)
        connection = sqlite3.connect(folder / "records.sqlite")
        values = (shard, offset, size, caption)
        connection.execute("update items set shard = ?, offset = ?, size = ?, caption = ?", values)
        connection.commit()
        connection.close()
        services.append(Service(open_index(folder)))
        return build(services[-1])

    yield made
    for service in services:
        service.close()


def test_records_of_a_stranger_show_no_file_but_pictures(hostile: Any, served: Path, tmp_path: Path) -> None:
    secret = served.parent / "secret.txt"
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "late.txt").write_bytes(SECRET.encode() + picture(0))
    places = [
        (str(secret), 0, secret.stat().st_size), ("/etc/passwd", 0, 100), ("/dev/zero", 0, 1000),
        (str(tmp_path), 0, 10),
        (str(tmp_path / "pipe"), 0, 10), (str(tmp_path / "late.txt"), 0, 500), ("a\0b", 0, 10), (str(secret), -5, 10),
        (str(secret), 0, -1), (str(secret), 2**62, 10), (str(secret), 0, 2**40),
    ]  # fmt: skip
    for place in places:
        app = hostile(*place)
        for path in ("/api/thumb/1", "/api/picture/1"):
            response = asked(app, "GET", path)
            assert response.status_code == 404 and set(response.json()) == {"error"}, (place, response.text)
            assert SECRET not in response.text and "root:" not in response.text


def test_a_picture_that_takes_for_ever_is_given_up(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipkit.serve import thumbnails
    from clipkit.serve.app import build
    from clipkit.serve.limits import Limits
    from clipkit.serve.service import Service

    gone = threading.Event()
    monkeypatch.setattr(thumbnails.shards, "read_span", lambda *_: gone.wait(30) and b"")
    service = Service(open_index(served), Limits(answer_s=0.5))
    try:
        response = asked(build(service), "GET", "/api/thumb/1")
        said = response.status_code, response.json()["error"]
        late = (503, "no answer within 0.5 s")  # where finding the record has taken more than the tenth that is left
        assert said in ((404, "the file of this picture takes too long to read"), late)
        assert not service.close(0.1)
    finally:
        gone.set()
    assert service.close()


def test_captions_of_a_stranger_are_told_as_they_are(hostile: Any) -> None:
    caption = "<script>alert(1)</script> \u202e \x00 \x1b[31m " + "x" * 100_000
    app = hostile("nowhere", 0, 1, caption)
    response = asked(app, "POST", "/api/search", json={"ids": [1], "k": 2})
    assert response.status_code == 200 and response.json()["hits"][0]["caption"] == caption
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_token_is_not_found_by_trying(served: Path) -> None:
    from clipkit.serve.app import build
    from clipkit.serve.limits import Limits
    from clipkit.serve.service import Service

    service = Service(open_index(served), Limits(rate=1))
    app = build(service, "the-token-of-the-test")
    tried = [asked(app, "GET", "/api/about", headers={"Authorization": f"Bearer {i:021d}"}) for i in range(10)]
    assert Counter(each.status_code for each in tried)[429] >= 4
    assert {each.status_code for each in tried} == {401, 429}
    service.close()
