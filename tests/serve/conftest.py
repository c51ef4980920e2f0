"""A small index for all tests of the server; and for those of the page a server to look at and a browser that looks."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipkit.embed import embed
from clipkit.index.build import build
from clipkit.search import Index, open_index
from tests import making, samples
from tests.serve import browsing, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index folder of shapes."""
    return serving.make(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def index(served: Path) -> Index:
    """That index, opened."""
    return open_index(served)


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server over an index of 60 shapes of `browsing.sample`; it asks for TOKEN."""
    browsing.chromium()
    folder = tmp_path_factory.mktemp("page")
    (folder / "shards").mkdir()
    samples.write_shard(folder / "shards" / "0.tar", map(browsing.sample, range(browsing.COUNT)))
    embed(making.saved(folder), str(folder / "shards"), str(folder / "vectors"), fields="colour,number,note")
    build(folder / "vectors", folder / "index")
    with serving.running(folder / "index", token=browsing.TOKEN) as server:
        yield re.match(r"http://[^/]+/", server.address)[0]  # type: ignore[index]


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    """A browser."""
    with browsing.browser() as found:
        yield found


@pytest.fixture
def said() -> list[str]:
    """What the console of the page may say, as regular expressions: it says there that a request has failed."""
    return []


@pytest.fixture
def page(searched: str, chrome: Any, said: list[str]) -> Iterator[Any]:
    """The page, with the token given. In the end nothing was asked elsewhere, nothing of strangers was run, and the
    console is silent but for what a test has put into `said`."""
    context = chrome.new_context(viewport={"width": 1280, "height": 800})
    made = context.new_page()
    made.set_default_timeout(30_000)  # ms: the cores may be shared by many
    elsewhere: list[str] = []
    lines: list[str] = []
    made.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(searched) else None)
    made.on("console", lambda line: lines.append(line.text) if line.type in ("error", "warning") else None)
    made.on("pageerror", lambda error: lines.append(str(error)))
    made.goto(f"{searched}?token={browsing.TOKEN}")
    made.wait_for_selector("#examples button")
    yield made
    hurt = made.evaluate("window.hurt")
    context.close()
    assert hurt is None and elsewhere == []
    assert [line for line in lines if not any(re.search(pattern, line) for pattern in said)] == []
