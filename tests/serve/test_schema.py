"""Whatever the schema allows, and much that it does not, is answered without a fault of the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from clipkit.search import open_index
from tests.serve.serving import asked

pytest.importorskip("fastapi", reason="the extra serve is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from clipkit.serve.app import build  # noqa: E402
from clipkit.serve.limits import Limits  # noqa: E402
from clipkit.serve.service import Service  # noqa: E402

TOKEN = "a-token-of-some-length"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
ROUTES = {
    "/health": "GET", "/metrics": "GET", "/api/about": "GET", "/api/search": "POST", "/api/classify": "POST",
    "/api/item/{id}": "GET", "/api/thumb/{id}": "GET", "/api/picture/{id}": "GET", "/knn-service": "POST",
    "/metadata": "POST", "/indices-list": "GET",
}  # fmt: skip


@pytest.fixture(scope="module")
def app(served: Path) -> Iterator[Any]:
    service = Service(open_index(served), Limits(rate=0))
    yield build(service, TOKEN)
    service.close()


@pytest.mark.parametrize("path", ROUTES)
def test_no_request_makes_the_server_fail(app: Any, path: str) -> None:
    """Without schemathesis' own fixtures, which pytest 9 breaks."""
    described = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)

    @hypothesis.given(described[path][ROUTES[path]].as_strategy())
    @hypothesis.settings(
        max_examples=15, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    def ask(case: Any) -> None:
        case.call_and_validate(headers=HEADERS, checks=CHECKS)

    ask()


def test_the_schema_describes_every_route(app: Any) -> None:
    paths = asked(app, "GET", "/openapi.json", headers=HEADERS).json()["paths"]
    assert {path: [method.upper() for method in routes] for path, routes in paths.items()} == {
        path: [method] for path, method in ROUTES.items()
    }
    for routes in paths.values():
        for facts in routes.values():
            assert facts["description"] and "400" in facts["responses"]
            failure = facts["responses"]["400"]["content"]["application/json"]["schema"]
            assert failure == {"$ref": "#/components/schemas/Failure"}
