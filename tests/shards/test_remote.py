"""Remote shards: what names mean, and a cache that is right under failing servers, killed processes and forks."""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clipkit.errors import StorageError, UserError
from clipkit.shards import cache as cache_module
from clipkit.shards.cache import Cache, Prefetch, default_folder, name_of
from clipkit.shards.remote import PATIENCE, Patience, Refused, expand, is_remote, read_small, size_of
from tests import s3_server
from tests.shards.flaky_server import FlakyServer, body, fetch_for_ever, read_all

QUICK = Patience(tries=12, wait_s=0.01, longest_s=0.05, stall_s=1.0)
ONCE = dataclasses.replace(QUICK, tries=1)
SLOW = dataclasses.replace(QUICK, stall_s=60.0)


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, no credentials of this machine, no leave to run commands."""
    for name in (*s3_server.KEYS, "AWS_PROFILE", "AWS_ENDPOINT_URL", "CLIPKIT_ALLOW_PIPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder of a cache."""
    return tmp_path / "shards"


def left(folder: Path) -> list[str]:
    """Temporary files in a cache."""
    return sorted(path.name for path in folder.glob(".*") if path.name != ".locks")


def kept(folder: Path) -> set[str]:
    """The shards in a cache, by the last part of their addresses."""
    return {path.name.partition("-")[2] for path in folder.glob("[!.]*")}


def until(true: Callable[[], Any]) -> None:
    """Wait for something that another thread or process brings about."""
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def numbered(count: int, folder: str = "/set") -> dict[str, bytes]:
    return {f"{folder}/{i:03d}.tar": body(i) for i in range(count)}


# Names


def test_addresses_and_commands_are_remote_and_paths_are_not() -> None:
    remote = ("s3://b/x.tar", "gs://b/x", "hf://datasets/a/b/{0..3}.tar", "file:///x.tar", "pipe:cat x.tar")
    assert all(is_remote(name) for name in (*remote, "https://h/x.tar?key=1", "zip://a.tar::s3://b/a.zip"))
    assert not any(is_remote(name) for name in ("data/x.tar", "/x://y", "{000..003}.tar", "C:/x.tar", "~/x", "", "x:y"))


def test_equal_basenames_have_copies_of_their_own_and_names_are_safe() -> None:
    names = [name_of(url) for url in ("s3://a/0.tar", "s3://b/0.tar", "https://h/0.tar?sign=a/b", "https://h/0.tar")]
    assert len(set(names)) == 4 and all(name.endswith("-0.tar") and len(name) == 22 for name in names)
    assert name_of("pipe:aws s3 cp s3://b/../7.tar -").partition("-")[2] == "7.tar_-"
    assert name_of("s3://b/..").partition("-")[2] == "shard"
    assert len(name_of("s3://b/" + "x" * 500 + ".tar")) == 97


def test_the_default_folder_is_the_users_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Cache().folder == default_folder() == cache / "clipkit" / "shards" and default_folder().is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_folder() == Path("/home/me/.cache/clipkit/shards")


def test_a_file_address_is_globbed_and_copied(tmp_path: Path, place: Path) -> None:
    for i in (2, 0, 1):
        (tmp_path / f"{i}.tar").write_bytes(body(i))
    (tmp_path / "0.json").write_text("{}")
    wanted = [f"file://{tmp_path}/{i}.tar" for i in range(3)]
    assert expand(f"file://{tmp_path}/*.tar") == expand(f"file://{tmp_path}/") == expand(f"file://{tmp_path}") == wanted
    assert [size_of(url) for url in wanted] == [50_000, 50_001, 50_002]
    assert Cache(place).fetch(wanted[1]).read_bytes() == body(1)
    assert read_small(f"file://{tmp_path}/0.json") == b"{}" and read_small(f"file://{tmp_path}/no.json") is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "nosuch://b/*.tar",
            "nosuch://b/*.tar: Protocol not known: nosuch; a remote name is such as s3://bucket/folder/",
        ),
        ("fake://b/*.tar", "fake://b/*.tar: install that for fake"),
        (
            "s3://b/*.tar",
            "s3://b/*.tar: s3:// needs the package s3fs (no s3fs here); type: pip install 'clipkit[s3]'",
        ),
        ("gs://b/*.tar", "gs://b/*.tar: gs:// needs the package gcsfs (no gs); type: pip install 'clipkit[gcs]'"),
    ],
)
def test_a_missing_package_is_named(url: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")
    for name, text in (("fake", "install that for fake"), ("s3", "no s3fs here"), ("gs", "no gs")):
        known = {"class": "nosuchpackage.FileSystem", "err": text}
        monkeypatch.setitem(registry.known_implementations, name, known)
        monkeypatch.delitem(registry._registry, name, raising=False)
    for ask in (expand, size_of, read_small, Cache(place).fetch):
        with pytest.raises(UserError) as caught:
            ask(url)
        assert str(caught.value) == message


# S3


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """The environment of an S3 server with shards 0 to 3 in `bucket/set`."""
    with s3_server.serving() as environment:
        yield environment


@pytest.fixture
def s3(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system that this environment gives."""
    import s3fs

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    if not system.exists("bucket"):
        system.mkdir("bucket")
        for i in range(4):
            system.pipe_file(f"bucket/set/{i:03d}.tar", body(i))
        system.pipe_file("bucket/set/sizes.json", b'{"000.tar": 50000}')
        system.pipe_file("bucket/other/x.txt", b"x")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_names_sizes_small_files_and_shards(s3: Any, place: Path) -> None:
    urls = [f"s3://bucket/set/{i:03d}.tar" for i in range(4)]
    for pattern in ("s3://bucket/set/", "s3://bucket/set", "s3://bucket/set/*.tar", "s3://bucket/*/0*.tar"):
        assert expand(pattern) == urls
    assert expand("s3://bucket/set/00[13].tar") == [urls[1], urls[3]]
    assert expand("s3://bucket/set/not-asked.tar") == ["s3://bucket/set/not-asked.tar"]
    assert [size_of(url) for url in urls] == [50_000, 50_001, 50_002, 50_003]
    assert read_small("s3://bucket/set/sizes.json") == b'{"000.tar": 50000}'
    assert read_small("s3://bucket/set/no.json") is None and read_small("s3://bucket/set") is None
    with pytest.raises(
        UserError, match=r"s3://bucket/set/000.tar: has 50000 bytes; at most 100 are read of such a file"
    ):
        read_small(urls[0], most=100)
    cache = Cache(place, patience=QUICK)
    assert [cache.fetch(url).read_bytes() for url in urls] == [body(i) for i in range(4)]
    assert expand("s3://bucket/set/") == urls
    other = type(s3)(skip_instance_cache=True)
    try:
        other.pipe_file("bucket/set/003.tar", body(30))
        assert size_of(urls[3]) == 50_003  # by the listing
        assert cache.fetch(urls[3], 50_030).read_bytes() == body(30)
        other.pipe_file("bucket/set/003.tar", body(4))
        assert expand("s3://bucket/set/") == urls
        other.pipe_file("bucket/set/003.tar", body(3))
        cache.fetch(urls[3]).unlink()
        assert cache.fetch(urls[3]).read_bytes() == body(3)
    finally:
        other.pipe_file("bucket/set/003.tar", body(3))


def test_s3_says_at_once_what_is_not_there(s3: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = Cache(place)  # with waits that this test would notice
    for url in ("s3://bucket/set/9.tar", "s3://no-bucket/9.tar"):
        with pytest.raises(Refused, match=rf"{url}: is not there; check the name \(FileNotFoundError: "):
            cache.fetch(url)
        with pytest.raises(Refused, match="is not there"):
            cache.fetch(url, 7)
        with pytest.raises(UserError, match=f"{url}: is not there; check the name"):
            size_of(url)
    assert expand("s3://bucket/set/")
    with pytest.raises(UserError, match="s3://bucket/set/9.tar: is not there"):
        size_of("s3://bucket/set/9.tar")
    for pattern in ("s3://bucket/other/", "s3://bucket/none-*.tar", "s3://bucket/none/"):
        with pytest.raises(
            UserError, match=r"none|no .tar shards there; give a folder, a glob or a \{000..012\} pattern"
        ):
            expand(pattern)
    with pytest.raises(UserError, match=r"s3://no-bucket/: is not there; check the name"):
        expand("s3://no-bucket/")
    assert left(place) == [] and capsys.readouterr().err == ""


def test_s3_without_credentials_is_refused(s3: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    for name in s3_server.KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(place))
    s3fs.S3FileSystem.clear_instance_cache()
    hint = r"access is refused; set the storage's credentials, or FSSPEC_S3='\{\"anon\": true\}' if it is public"
    with pytest.raises(
        UserError, match=rf"s3://bucket/set/: {hint} \(NoCredentialsError: Unable to locate credentials"
    ):
        expand("s3://bucket/set/")
    with pytest.raises(Refused, match=hint):
        Cache(place).fetch("s3://bucket/set/000.tar")


@pytest.mark.parametrize("how", ["FSSPEC_S3_ENDPOINT_URL", "FSSPEC_S3"])
def test_s3_endpoints_are_named_by_the_environment_and_the_process_ends_in_silence(
    how: str, s3: Any, environment: dict[str, str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = environment["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(how, f'{{"endpoint_url": "{endpoint}", "anon": true}}' if how == "FSSPEC_S3" else endpoint)
    for i in range(2):
        s3.chmod(f"bucket/set/{i:03d}.tar", "public-read")
    code = (
        "import sys; from pathlib import Path; from clipkit.shards.cache import Cache, Prefetch\n"
        "cache = Cache(Path(sys.argv[1])); ahead = Prefetch(cache, [('s3://bucket/set/001.tar', None)], 2)\n"
        "print(len(cache.fetch('s3://bucket/set/000.tar').read_bytes()))"
    )
    command = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-c", code, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    noise = [
        line for line in done.stderr.splitlines() if "clipkit" in line or "unclosed" in line or "Traceback" in line
    ]
    assert (done.returncode, done.stdout, noise) == (0, "50000\n", []), done.stderr


# Web servers


def test_web_addresses_folders_globs_and_queries() -> None:
    with FlakyServer({**numbered(3), "/set/about.html": b"x"}) as server:
        urls = [f"{server.url}/set/{i:03d}.tar" for i in range(3)]
        assert expand(f"{server.url}/set/") == expand(f"{server.url}/set/*.tar") == urls
        assert expand(f"{server.url}/set/*2.tar") == urls[2:]
        for whole in (urls[0], f"{urls[0]}?sign=*[a]", f"{server.url}/download?id=7", "http://[::1]:9/x.tar"):
            assert expand(whole) == [whole]
        assert size_of(urls[2]) == 50_002 and size_of(f"{urls[2]}?sign=1") == 50_002
        assert read_small(f"{server.url}/set/about.html") == b"x" and read_small(f"{server.url}/no") is None
        with pytest.raises(UserError, match="no .tar shards there"):
            expand(f"{server.url}/set/*.zip")


def test_a_server_that_tells_no_size_is_read_all_the_same(place: Path) -> None:
    with FlakyServer(numbered(5)) as server:
        server.headers = {"Content-Length": ""}
        urls = [f"{server.url}{path}" for path in server.files]
        assert size_of(urls[1]) is None
        cache = Cache(place, 120_000, QUICK)
        assert [cache.fetch(url).read_bytes() for url in urls] == [body(i) for i in range(5)]
        assert kept(place) == {"003.tar", "004.tar"} and left(place) == []
        small = Cache(place, 40_000, QUICK)
        with pytest.raises(UserError, match=r"000.tar: has 50000 bytes, more than the shard cache may have \(40000\)"):
            small.fetch(urls[0])
        assert left(place) == []


def test_no_access_and_no_file_end_at_once_and_other_answers_after_the_last_try(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(place, patience=dataclasses.replace(QUICK, tries=4))
    with FlakyServer(numbered(4)) as server:
        urls = [f"{server.url}{path}" for path in server.files]
        server.answers = {"/set/001.tar": 403, "/set/002.tar": 503}
        for size in (None, 5):
            with pytest.raises(Refused, match=r"/set/no.tar: is not there; check the name"):
                cache.fetch(f"{server.url}/set/no.tar", size)
            with pytest.raises(Refused, match=r"/set/001.tar: access is refused; set the storage's credentials \("):
                cache.fetch(urls[1], size)
        assert server.asked["GET", "/set/001.tar"] == server.asked["GET", "/set/no.tar"] == 2
        assert read_small(urls[1]) is None
        with pytest.raises(UserError, match="is not there"):
            size_of(f"{server.url}/set/no.tar", QUICK)
        assert capsys.readouterr().err == ""
        with pytest.raises(StorageError, match=r"002.tar: not read \(tries: 4\); the last ended with .*503.*reachable"):
            cache.fetch(urls[2], len(body(2)))
        assert server.asked["GET", "/set/002.tar"] == 4
        told = capsys.readouterr().err.splitlines()
        assert [line.partition("ended")[0] for line in told] == [f"{urls[2]}: try {n} of 4 " for n in (2, 3)]
        with pytest.raises(
            StorageError, match=r"not read \(tries: 4\)"
        ) as caught:  # fsspec calls this FileNotFoundError
            cache.fetch(urls[2])
        assert not isinstance(caught.value, Refused)
    with pytest.raises(StorageError, match=r"000.tar: not read \(tries: 1\); the last ended with Client"):
        Cache(place, patience=ONCE).fetch(urls[0], 3)
    assert left(place) == [] and kept(place) == set()


def test_a_copy_of_another_size_is_fetched_again_and_a_wrong_size_is_told(place: Path) -> None:
    cache = Cache(place, patience=dataclasses.replace(QUICK, tries=3))
    with FlakyServer({"/a/0.tar": b"first", "/b/0.tar": b"other"}) as server:
        url = f"{server.url}/a/0.tar"
        assert cache.fetch(url).read_bytes() == b"first"
        assert cache.fetch(f"{server.url}/b/0.tar").read_bytes() == b"other"
        server.files["/a/0.tar"] = b"second"
        assert cache.fetch(url).read_bytes() == cache.fetch(url, 5).read_bytes() == b"first"
        assert cache.fetch(url, 6).read_bytes() == b"second" == cache.fetch(url).read_bytes()
        assert server.asked["GET", "/a/0.tar"] == 2
        text = r"\(tries: 3\); the last ended with OSError: 6 bytes came, not 7; if it was replaced, index it again"
        with pytest.raises(StorageError, match=text):
            cache.fetch(url, 7)
        assert cache.fetch(url, 6).read_bytes() == b"second" and left(place) == []


def test_a_connection_that_says_nothing_is_given_up(place: Path) -> None:
    with FlakyServer(numbered(1)) as server:
        server.slow.add("/set/000.tar")
        cache = Cache(place, patience=dataclasses.replace(ONCE, stall_s=0.2))
        with pytest.raises(StorageError, match=r"Timeout"):
            cache.fetch(f"{server.url}/set/000.tar", len(body(0)))
    assert left(place) == []


def test_four_processes_read_every_byte_right_through_a_server_that_fails(place: Path) -> None:
    count, limit = 12, 260_000  # five shards fit
    with FlakyServer(numbered(count), share=0.3, seed=1) as server:
        urls = [f"{server.url}{path}" for path in server.files]
        cache = pickle.loads(pickle.dumps(Cache(place, limit, QUICK)))
        processes = []
        for worker in range(4):
            order = random.Random(worker).sample(range(count), count)
            context = multiprocessing.get_context(("spawn", "fork")[worker % 2])
            processes.append(context.Process(target=read_all, args=(cache, urls, order, worker < 3)))
            processes[-1].start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 4
        assert set(server.faults) == {"drop", "cut", "503", "500", "stall"}
        assert server.asked.total() - server.faults.total() >= count
    assert left(place) == []
    sizes = [path.stat().st_size for path in place.glob("[!.]*")]
    assert limit - 60_000 < sum(sizes) <= limit and len(list((place / ".locks").iterdir())) <= 257


def test_a_process_killed_while_it_fetches_leaves_nothing_in_the_way(place: Path) -> None:
    with FlakyServer(numbered(2)) as server:
        urls = [f"{server.url}{path}" for path in server.files]
        server.slow.update(server.files)
        cache = Cache(place, patience=SLOW)
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=fetch_for_ever, args=(cache, url)) for url in urls]
        for process in processes:
            process.start()
        until(lambda: sorted(path.stat().st_size for path in place.glob(".*.part")) == [25_000, 25_000])
        Cache(place)
        assert len(left(place)) == 2  # they are alive, and so are their files
        for process in processes:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        server.slow.clear()
        assert cache.fetch(urls[0], len(body(0))).read_bytes() == body(0)
        assert kept(place) == {"000.tar"} and left(place) == []
    (place / f".{name_of('s3://b/x.tar')}.5.0123abcd.part").touch()
    (place / "notes.txt").touch()
    Cache(place)
    assert left(place) == [] and kept(place) == {"000.tar", ""}


def _fetch_in_child(cache: Cache, url: str, wanted: bytes) -> None:
    assert cache.fetch(url).read_bytes() == wanted and size_of(url) == len(wanted)


@pytest.mark.parametrize("kind", ["web", "s3"])
def test_a_fork_fetches_after_its_parent_has_and_the_parent_goes_on(
    kind: str, place: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        request.getfixturevalue("s3")
    with FlakyServer(numbered(4)) as server:
        start = f"{server.url}/set" if kind == "web" else "s3://bucket/set"
        cache = Cache(place, patience=QUICK)
        for i in (0, 2):
            assert cache.fetch(f"{start}/{i:03d}.tar").read_bytes() == body(i)
            arguments = (cache, f"{start}/{i + 1:03d}.tar", body(i + 1))
            child = multiprocessing.get_context("fork").Process(target=_fetch_in_child, args=arguments)
            child.start()
            child.join(30)
            assert child.exitcode == 0
        assert kept(place) == {f"{i:03d}.tar" for i in range(4)}


# The limit


@pytest.fixture
def three(place: Path) -> Iterator[SimpleNamespace]:
    """A cache with room for three shards, which holds 0, 1 and 2, used in the order 1, 2, 0; and the server."""
    with FlakyServer(numbered(6)) as server:
        cache = Cache(place, 150_020, QUICK)
        urls = [f"{server.url}{path}" for path in server.files]
        for age, i in enumerate((0, 2, 1)):
            os.utime(cache.fetch(urls[i]), (1000 - age, 1000 - age))
        yield SimpleNamespace(cache=cache, urls=urls, server=server)


def test_the_longest_unused_go_first_and_a_hit_counts_as_use(three: SimpleNamespace, place: Path) -> None:
    three.cache.fetch(three.urls[1])
    three.cache.fetch(three.urls[3])
    assert kept(place) == {"000.tar", "001.tar", "003.tar"}
    three.cache.fetch(three.urls[4])
    assert kept(place) == {"001.tar", "003.tar", "004.tar"}
    assert three.server.asked["GET", "/set/001.tar"] == 1


def test_an_evicted_shard_that_is_open_can_still_be_read(three: SimpleNamespace, place: Path) -> None:
    handle = three.cache.open(three.urls[1])
    try:
        for i in (3, 4, 5):
            three.cache.fetch(three.urls[i])
        assert kept(place) == {"003.tar", "004.tar", "005.tar"}
        assert os.pread(handle, 60_000, 0) == body(1) and not os.get_inheritable(handle)
    finally:
        os.close(handle)


def test_a_shard_larger_than_the_limit_names_the_setting(place: Path) -> None:
    with FlakyServer(numbered(1)) as server:
        cache = Cache(place, 49_999, QUICK)
        text = (
            r"000.tar: has 50000 bytes, more than the shard cache may have \(49999\); set data.cache_gb to at least 1"
        )
        for size in (None, 50_000):
            with pytest.raises(UserError, match=text):
                cache.fetch(f"{server.url}/set/000.tar", size)
        assert server.asked["GET", "/set/000.tar"] == 0


def test_a_full_disk_costs_old_shards_first(three: SimpleNamespace, place: Path, monkeypatch: Any) -> None:
    disk = cache_module.SPARE + 120_000

    def free(self: Cache) -> int:
        return disk - sum(path.stat().st_size for path in place.glob("*.tar"))

    monkeypatch.setattr(Cache, "_free", free)
    three.cache.fetch(three.urls[3])
    assert kept(place) == {"000.tar", "003.tar"}
    monkeypatch.setattr(Cache, "_free", lambda self: 20_000)
    with pytest.raises(StorageError, match=r"shards: 50004 bytes are needed and 20000 free; make room on this disk"):
        three.cache.fetch(three.urls[4])
    assert left(place) == []


def test_who_finds_the_room_taken_by_another_download_waits_for_it(place: Path) -> None:
    with FlakyServer(numbered(2)) as server:
        server.slow.add("/set/000.tar")
        cache = Cache(place, 60_000, dataclasses.replace(SLOW, tries=1))
        urls = [f"{server.url}{path}" for path in server.files]
        first = multiprocessing.get_context("fork").Process(target=fetch_for_ever, args=(cache, urls[0]))
        first.start()
        until(lambda: [path.stat().st_size for path in place.glob(".*.part")] == [25_000])
        second = threading.Thread(target=cache.fetch, args=(urls[1], len(body(1))))
        second.start()
        second.join(0.5)
        assert second.is_alive() and server.asked["GET", "/set/001.tar"] == 0
        os.kill(first.pid or 0, signal.SIGKILL)
        first.join()
        second.join(30)
        assert kept(place) == {"001.tar"} and left(place) == []


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/shards: the shard cache cannot be used \(.*Not a directory"):
        Cache(tmp_path / "file" / "shards")


# Commands


def test_commands_are_refused_unless_allowed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, url = Cache(place, patience=dataclasses.replace(QUICK, tries=2)), f"pipe:echo run >> {place}/ran; echo hello"
    text = "runs a command of this machine; set CLIPKIT_ALLOW_PIPE=1 if you trust this name"
    for ask in (expand, cache.fetch):
        with pytest.raises(UserError, match=text):
            ask(url)
    assert size_of(url) is None and read_small(url) is None and not (place / "ran").exists()
    monkeypatch.setenv("CLIPKIT_ALLOW_PIPE", "1")
    assert expand(url) == [url]
    assert cache.fetch(url).read_bytes() == cache.fetch(url, 6).read_bytes() == b"hello\n"
    assert (place / "ran").read_text() == "run\n"


@pytest.mark.parametrize(
    ("command", "size", "message"),
    [
        (
            "echo part; echo no such thing >&2; exit 3",
            None,
            "the command ended with status 3 after 5 bytes: no such thing",
        ),
        ("true", None, "the command ended with status 0 after 0 bytes"),
        ("echo hello", 7, "6 bytes came, not 7"),
        ("echo hello; sleep 60 | cat", 6, "TimeoutError: nothing came for 0.3 s"),
    ],
)
def test_commands_that_fail_are_tried_again(
    command: str, size: int | None, message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPKIT_ALLOW_PIPE", "1")
    cache = Cache(place, patience=dataclasses.replace(QUICK, tries=2, stall_s=0.3))
    with pytest.raises(StorageError, match=rf"not read \(tries: 2\); the last ended with .*{message}"):
        cache.fetch(f"pipe:echo run >> {place}/ran; {command}", size)
    assert (place / "ran").read_text() == "run\n" * 2 and left(place) == []


# Reading ahead


@contextlib.contextmanager
def prefetching(*arguments: Any) -> Iterator[Prefetch]:
    ahead = Prefetch(*arguments)
    try:
        yield ahead
    finally:
        ahead.close()
        assert not ahead._thread.is_alive()


def test_prefetch_stays_within_its_shards_and_duplicates_cost_nothing(place: Path) -> None:
    with FlakyServer(numbered(8)) as server:
        cache, drawn = Cache(place, patience=QUICK), []

        def sequence() -> Iterator[tuple[str, int | None]]:
            for number in (0, 0, 1, 0, 1, 1, 2, 0, 3, 4, 5, 6, 7):
                drawn.append(number)
                yield f"{server.url}/set/{number:03d}.tar", None

        def stops_with(count: int, last: int) -> None:
            until(lambda: len(kept(place)) == count and drawn[-1] == last)
            time.sleep(0.2)
            assert kept(place) == {f"{i:03d}.tar" for i in range(count)} and drawn[-1] == last

        with prefetching(cache, sequence(), 2) as ahead:
            stops_with(2, 2)  # 0 and 1, and knows that 2 comes next
            ahead.done(3)
            stops_with(2, 2)  # 0 is used again
            ahead.done(6)
            stops_with(3, 3)  # 0 comes again after 2, whose place is the one left
            ahead.done(11)
            until(lambda: kept(place) >= {"006.tar", "007.tar"})
        assert all(count == 1 for count in server.asked.values())


def test_prefetch_takes_half_of_the_cache_and_an_endless_sequence(place: Path) -> None:
    with FlakyServer(numbered(6)) as server:
        urls = [(f"{server.url}{path}", len(data)) for path, data in server.files.items()]
        with prefetching(Cache(place, 250_000, QUICK), urls, 100) as ahead:
            until(lambda: len(kept(place)) == 2)
            time.sleep(0.2)
            assert kept(place) == {"000.tar", "001.tar"}
            ahead.done(1)
            until(lambda: len(kept(place)) == 3)
        drawn = 0

        def for_ever() -> Iterator[tuple[str, int | None]]:
            nonlocal drawn
            while True:
                drawn += 1
                yield urls[0]

        with prefetching(Cache(place, patience=QUICK), for_ever(), 2) as ahead:
            until(lambda: drawn == 2 * Prefetch.FARTHEST + 1)
            ahead.done(10)
            until(lambda: drawn == 2 * Prefetch.FARTHEST + 11)


def test_prefetch_goes_on_after_a_failure_that_is_told_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FlakyServer(numbered(6)) as server:
        server.answers = {"/set/000.tar": 404, "/set/001.tar": 503, "/set/003.tar": 404}
        urls = [(f"{server.url}{path}", len(data)) for path, data in server.files.items()]
        with prefetching(Cache(place, patience=QUICK), urls, 100):
            until(lambda: kept(place) == {"002.tar", "004.tar", "005.tar"})
        assert server.asked["GET", "/set/001.tar"] == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and told.startswith(f"{urls[0][0]}: is not there")
        assert told.endswith("; a shard was not fetched ahead of its use, the reader will try again\n")


@pytest.mark.parametrize("where", ["body", "retry", "lock", "room"])
def test_prefetch_ends_promptly_wherever_it_is(where: str, place: Path) -> None:
    with FlakyServer(numbered(2)) as server:
        server.slow.add("/set/000.tar")
        server.answers = {"/set/001.tar": 503}
        cache = Cache(place, 60_000, dataclasses.replace(PATIENCE, wait_s=60.0, longest_s=60.0, stall_s=60.0))
        first, second = ((f"{server.url}{path}", len(data)) for path, data in server.files.items())
        with contextlib.ExitStack() as stack:
            if where in ("lock", "room"):
                stack.enter_context(prefetching(cache, [first], 1))
                until(lambda: server.asked["GET", "/set/000.tar"])
            wanted = {"body": first, "retry": second, "lock": first, "room": second}[where]
            stack.enter_context(prefetching(cache, [wanted], 1))
            if where in ("body", "retry"):
                until(lambda: server.asked.total())
            time.sleep(0.1)
    assert left(place) == []
