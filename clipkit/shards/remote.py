"""Shards that lie elsewhere: every address that fsspec knows, and the output of commands.

`s3://bucket/x.tar`, `gs://`, `hf://datasets/user/name/`, `https://`, any other protocol of fsspec; `pipe:COMMAND` is
what a shell command writes to its stdout. Credentials come from where each protocol's package looks (for S3, where the
`aws` command does). An endpoint of one's own (MinIO, Ceph, R2) is named by `AWS_ENDPOINT_URL` or
`FSSPEC_S3_ENDPOINT_URL`, and a public bucket is read without credentials by `FSSPEC_S3='{"anon": true}'` or
`FSSPEC_GS='{"token": "anon"}'`; any option of a file system can be set this way, or in a file under `~/.config/fsspec`.
Proxies and passwords for https come from the environment and `~/.netrc`.
"""

import asyncio
import glob
import os
import random
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clipkit.errors import ClipkitError, StorageError, UserError
from clipkit.log import say

T = TypeVar("T")
PIPE = "pipe:"
WEB = ("http://", "https://")
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp", "hf": "huggingface_hub"}
EXTRAS = {"s3fs": "'clipkit[s3]'", "gcsfs": "'clipkit[gcs]'"}
PUBLIC = {"s3": """FSSPEC_S3='{"anon": true}'""", "gs": """FSSPEC_GS='{"token": "anon"}'"""}
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_in_use: dict[int, Any] = {}


@dataclass(frozen=True)
class Patience:
    """How often a request is tried, the wait in between (doubling, with jitter), and how long it may say nothing."""

    tries: int = 8
    wait_s: float = 0.5
    longest_s: float = 30.0
    stall_s: float = 30.0


PATIENCE = Patience()


class Refused(StorageError):
    """The server says no and would say it again: no such file or bucket, or no right to read it."""


class Closed(ClipkitError):
    """What was being fetched is no longer wanted."""


def is_remote(name: str) -> bool:
    """Whether a name is an address (`s3://...`, `file://` too) or `pipe:COMMAND`, and not a path."""
    return name.startswith(PIPE) or re.match(r"[A-Za-z][\w+.-]*(://|::)", name) is not None


def expand(pattern: str, patience: Patience = PATIENCE) -> list[str]:
    """The addresses of the shards a remote name means: what a glob matches, a folder's `*.tar`, or itself; sorted.

    One that ends in `.tar` (a web address: in anything but `/`) is taken at its word, without asking the server.
    Raises: UserError when nothing matches, access is refused or the protocol's package is missing; StorageError when
    the server does not answer.
    """
    if pattern.startswith(PIPE):
        _allow_pipe(pattern)
        return [pattern]
    web = pattern.startswith(WEB)
    bare = pattern.split("?")[0] if web else pattern  # in a web address `?` begins a query, and `[` an IPv6 address
    magic = "*" in bare if web else glob.has_magic(pattern)
    if not magic and (not bare.endswith("/") if web else bare.endswith(".tar")):
        return [pattern]
    system, path = filesystem(pattern, patience.stall_s)

    def listed() -> list[str]:
        system.invalidate_cache()
        if magic:
            return [name for name, facts in system.glob(path, detail=True).items() if facts["type"] == "file"]
        names = [facts["name"] for facts in system.ls(path, detail=True)]
        return [name for name in names if name.split("?")[0].endswith(".tar")]

    names = _or_user_error(listed, pattern, patience)
    if not names:
        raise UserError(f"{pattern}: no .tar shards there; give a folder, a glob or a {{000..012}} pattern")
    whole, tail = pattern.rstrip("/"), path.rstrip("/")
    if whole.endswith(tail):  # what comes before the path, such as `s3://` or `sftp://host`, belongs to each name
        return sorted(whole.removesuffix(tail) + name for name in names)
    return sorted(system.unstrip_protocol(name) for name in names)


def size_of(url: str, patience: Patience = PATIENCE) -> int | None:
    """Bytes of a remote file by its server's word; None where it does not tell, as for a command.

    Raises: UserError when it is not there or access is refused; StorageError when the server does not answer.
    """
    return _or_user_error(lambda: announced(url, patience.stall_s), url, patience)


def read_small(url: str, most: int = 1 << 20, patience: Patience = PATIENCE) -> bytes | None:
    """A small file that may lie beside the shards; None where it does not.

    A server that refuses it counts as not having it: S3 answers 403 for a missing file to those who may not list.
    Raises: UserError when it has more than `most` bytes; StorageError when the server does not answer.
    """
    if url.startswith(PIPE):
        return None
    system, path = filesystem(url, patience.stall_s)

    def read() -> bytes:
        size = announced(url, patience.stall_s)
        data = b"" if size is not None and size > most else system.cat_file(path)
        if max(size or 0, len(data)) > most:
            raise UserError(f"{url}: has {max(size or 0, len(data))} bytes; at most {most} are read of such a file")
        return data

    try:
        return retried(read, url, patience)
    except Refused:
        return None


def announced(url: str, stall_s: float, fresh: bool = False) -> int | None:
    """What the server says that a file's size is, asked once: `fresh` now, or in a listing that is at hand."""
    if url.startswith(PIPE):
        return None
    system, path = filesystem(url, stall_s)
    if fresh:
        system.invalidate_cache()
    facts = system.info(path)
    if facts.get("type") == "directory":  # so s3fs calls what a listing that it keeps does not have
        raise FileNotFoundError("no such file")
    return None if facts.get("size") is None else int(facts["size"])


def download(url: str, path: Path, stall_s: float, stop: threading.Event | None = None) -> None:
    """Write a remote file, or a command's output, over the file `path`; errors come as the file system raises them.

    Raises: TimeoutError when nothing comes for `stall_s` seconds; Closed soon after `stop` is set.
    """
    if url.startswith(PIPE):
        _allow_pipe(url)
        _run(url.removeprefix(PIPE), path, stall_s, stop)
        return
    system, where = filesystem(url, stall_s)
    if not system.async_impl:
        answer: Future[Any] = Future()
        threading.Thread(target=_answer, args=(answer, system.get_file, where, str(path)), daemon=True).start()
    else:
        # in parts at once these would keep 500 MB in memory, and their first byte would come late to the file
        one = {"max_concurrency": 1} if url.startswith(("s3://", "s3a://")) else {}
        one |= {"concurrency": 1} if hasattr(system, "_get_file_concurrent") else {}
        answer = asyncio.run_coroutine_threadsafe(system._get_file(where, str(path), **one), system.loop)
    try:
        _watch(lambda seconds: bool(wait([answer], seconds).done), path, stall_s, stop)
        answer.result()
    finally:
        answer.cancel()


def filesystem(url: str, stall_s: float = PATIENCE.stall_s) -> tuple[Any, str]:
    """The file system of an address, made once in each process, and the path in it.

    Raises: UserError when the protocol is unknown, its package is missing, or its configuration is wrong.
    """
    import fsspec
    from fsspec.config import conf

    protocol = re.split("://|::", url, maxsplit=1)[0]
    options: dict[str, Any] = {}
    try:
        if url.startswith((*WEB, "gs://", "gcs://")):
            import aiohttp

            # gcsfs would ask for a bucket's type by gRPC first, which does not live through a fork
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            name = "client_kwargs" if url.startswith(WEB) else "session_kwargs"
            # aiohttp by itself ends any download after five minutes, and looks for no proxy
            limits = aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)
            options[name] = {"timeout": limits, "trust_env": True, **(conf.get(protocol, {}).get(name) or {})}
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = PACKAGES.get(protocol, "")
        need = f"{protocol}:// needs the package {package} ({error}); type: pip install {EXTRAS.get(package, package)}"
        raise UserError(f"{url}: {need if package else error}") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}; a remote name is such as s3://bucket/folder/") from error
    # one of before a fork must not be collected after it: closing its connections would close the parent's, whose
    # poll set the child shares
    _in_use[id(system)] = system
    return system, path


def retried(work: Callable[[], T], url: str, patience: Patience = PATIENCE, stop: threading.Event | None = None) -> T:
    """What `work` returns, tried again with growing waits while it fails.

    Raises: Refused at once where another try is no use; StorageError after the last try, with what ended it.
    """
    for attempt in range(1, patience.tries + 1):
        try:
            return work()
        except ClipkitError:
            raise
        except Exception as error:  # each file system raises errors of its own; only some of them are OSError
            what = " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(": ")
            if said := _refusal(error, url):
                raise Refused(f"{url}: {said} ({what})") from error
            if attempt == patience.tries:
                text = f"{url}: not read (tries: {attempt}); the last ended with {what}; is the storage reachable?"
                raise StorageError(text) from error
            if attempt > 1:
                say(f"{url}: try {attempt} of {patience.tries} ended with {what}")
        pause = min(patience.wait_s * 2 ** (attempt - 1), patience.longest_s)
        pause *= random.SystemRandom().uniform(0.5, 1.5)  # the state of `random` belongs to the run
        if stop is None:
            time.sleep(pause)
        elif stop.wait(pause):
            raise Closed(f"{url}: no longer wanted")
    raise AssertionError(patience)


def _or_user_error(work: Callable[[], T], url: str, patience: Patience) -> T:
    """As `retried`; what is refused while names are being resolved is the user's to fix."""
    try:
        return retried(work, url, patience)
    except Refused as error:
        raise UserError(str(error)) from error


def _refusal(error: BaseException, url: str) -> str | None:
    """Why another try is of no use, None when it may be of some."""
    cause = error.__cause__
    status = _status(error) or (_status(cause) if cause is not None else None)
    refused = isinstance(error, PermissionError) or type(error).__name__ in NO_CREDENTIALS
    if refused or status in (401, 403) or str(error).startswith("Forbidden"):  # gcsfs has but a text for it
        public = PUBLIC.get(url.partition("://")[0])
        return "access is refused; set the storage's credentials" + (f", or {public} if it is public" if public else "")
    # fsspec says that a web page does not exist whatever went wrong when it asked; the cause knows better
    if status in (404, 410) or (isinstance(error, FileNotFoundError) and cause is None):
        return "is not there; check the name"
    return None


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp, botocore, gcsfs or huggingface_hub."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for holder, name in ((error, "status"), (error, "code"), (response, "status_code")):
        if str(value := getattr(holder, name, None)).isdigit():  # in this order, for aiohttp warns of its `code`
            return int(str(value))
    return None


def _answer(answer: Future[Any], work: Callable[..., Any], *args: Any) -> None:
    """Let `answer` tell how `work(*args)` ended."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(work(*args))
    except BaseException as error:  # it is raised again by the thread that waits for it
        answer.set_exception(error)


def _watch(ended: Callable[[float], bool], path: Path, stall_s: float, stop: threading.Event | None) -> None:
    """Wait until `ended(seconds to wait)`, or raise once nothing has been written to `path` for `stall_s` seconds."""
    before, since = None, time.monotonic()
    while not ended(min(0.25, stall_s / 4)):
        if stop is not None and stop.is_set():
            raise Closed(f"{path.name}: no longer wanted")
        # the time as well as the size: some clients give the file its full length at once
        now = None
        with suppress(FileNotFoundError):  # some clients remove it when they fail
            now = (path.stat().st_size, path.stat().st_mtime_ns)
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > stall_s:
            raise TimeoutError(f"nothing came for {stall_s:g} s")


def _allow_pipe(url: str) -> None:
    if os.environ.get("CLIPKIT_ALLOW_PIPE") != "1":
        raise UserError(f"{url}: runs a command of this machine; set CLIPKIT_ALLOW_PIPE=1 if you trust this name")


def _run(command: str, path: Path, stall_s: float, stop: threading.Event | None) -> None:
    """Write what a shell command says on its stdout to `path`; the status is that of a pipeline's last command."""

    def ended(seconds: float) -> bool:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    with path.open("wb") as out, tempfile.TemporaryFile() as talk:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": talk}
        process = subprocess.Popen(command, shell=True, start_new_session=True, **options)
        try:
            _watch(ended, path, stall_s, stop)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode or out.tell() == 0:
            talk.seek(0)
            last = talk.read()[-1000:].decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise OSError(f"the command ended with status {process.returncode} after {out.tell()} bytes: {last}")
