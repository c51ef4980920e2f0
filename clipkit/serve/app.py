"""The HTTP interface: JSON to questions, answers to JSON, and the page with its pictures."""

import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipkit import __version__, images
from clipkit.errors import ClipkitError, UserError
from clipkit.log import say
from clipkit.search import Options
from clipkit.serve import requested, schemas
from clipkit.serve.batching import Full
from clipkit.serve.clip_retrieval import ClipRetrieval
from clipkit.serve.gate import Gate
from clipkit.serve.service import Service
from clipkit.serve.thumbnails import Missing, chunks, side_of

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.Failure, "description": why}
    for status, why in {
        400: "What is asked cannot be.", 401: "A token is needed.", 403: "Asked from another place.", 404: "Not there.",
        408: "The body came too slowly.", 413: "Too large.", 422: "Not of the schema.", 429: "Too many requests.",
        500: "A fault of the server.", 503: "Busy, or too slow.",
    }.items()
}  # fmt: skip
TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml", "png": "image/png",
}  # fmt: skip
PICTURE_POLICY = "default-src 'none'; sandbox"
RowNumber = Annotated[int, InPath(ge=0, lt=2**63)]
Known = Annotated[str | None, Header(alias="If-None-Match")]


class Api:
    """The routes of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        service.index.stored.records.closed = schemas.CLOSED
        self.files = dict(_page())

    def routes(self) -> APIRouter:
        """All of them but clip-retrieval's."""
        router = APIRouter(responses=FAILURES)

        def get(path: str, work: Callable[..., Any], kind: str | None = None, **more: Any) -> None:
            """A route that gives JSON, or something of another media type."""
            if kind is not None:
                more |= {"response_class": Response, "responses": {200: {"content": {kind: {}}}}}
            router.add_api_route(path, work, methods=["GET"], **more)

        get("/", self.front, "text/html", include_in_schema=False)
        get("/page/{name}", self.page, "text/html", include_in_schema=False)
        get("/health", self.health, response_model=schemas.Health)
        get("/metrics", self.metrics, "text/plain")
        get("/api/about", self.about, response_model=schemas.About)
        get("/api/item/{id}", self.item, response_model=schemas.ItemAnswer)
        get("/api/thumb/{id}", self.thumbnail, "image/jpeg")
        get("/api/picture/{id}", self.picture, "image/*")
        router.add_api_route("/api/search", self.search, methods=["POST"], response_model=schemas.SearchAnswer)
        router.add_api_route("/api/classify", self.classify, methods=["POST"], response_model=schemas.ClassifyAnswer)
        return router

    async def front(self, known: Known = None) -> Response:
        """The page."""
        return await self.page("index.html", known)

    async def page(self, name: str, known: Known = None) -> Response:
        """A file of the page."""
        if name not in self.files:
            raise Missing("there is no such page")
        data, etag = self.files[name]
        headers = {"etag": etag, "cache-control": "no-cache"}
        if known == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=TYPES[name.rpartition(".")[2]], headers=headers)

    async def health(self) -> schemas.Health:
        """Is it there?"""
        return schemas.Health(status="ok", rows=len(self.service.index))

    async def metrics(self) -> Response:
        """For Prometheus."""
        return Response(self.service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def about(self) -> schemas.About:
        """What is searched, by which model, and what may be asked."""
        service, stored = self.service, self.service.index.stored
        recalls = {kind: _recall(facts.get("recall")) for kind, facts in stored.about["kinds"].items()}
        return schemas.About(
            name=service.name,
            rows=len(service.index),
            model=service.model_name,
            width=stored.width,
            kinds=list(stored.kinds),
            columns={name: kind.upper() for name, kind in stored.records.columns.items() if name not in schemas.OURS},
            recall={kind: share for kind, share in recalls.items() if share is not None},
            limits=schemas.LimitsTold(
                upload_mb=service.limits.upload_mb, pixels=images.MAX_PIXELS, k=schemas.MOST_HITS
            ),
            examples=await service.examples(),
        )

    async def search(self, asked: schemas.SearchAsked) -> schemas.SearchAnswer:
        """The rows nearest to texts, pictures and other rows."""
        options = Options(asked.k, asked.kind, asked.where or None, asked.unique, asked.diverse)
        found = await self.service.search(requested.query(asked), options)
        hits = [schemas.Scored.of(hit, score=hit.score) for hit in found.hits]
        return schemas.SearchAnswer(hits=hits, of=found.of, ms=found.ms)

    async def classify(self, asked: schemas.ClassifyAsked) -> schemas.ClassifyAnswer:
        """How probable each label is for a picture."""
        labels = [label.strip() for label in asked.labels if label.strip()]
        if not labels:
            raise UserError("labels: the labels are empty")
        if len(labels) * len(asked.templates) > schemas.MOST_PROMPTS:
            raise UserError(f"labels: {schemas.MOST_PROMPTS} at most, times the templates")
        shares = await self.service.classify(requested.picture(asked.image), labels, asked.templates)
        told = [schemas.Share(label=label, probability=share) for label, share in shares.items()]
        return schemas.ClassifyAnswer(scores=told)

    async def item(self, id: RowNumber) -> schemas.ItemAnswer:
        """What is known of a row."""
        return schemas.ItemAnswer(record=schemas.Item.of(await self.service.hit(id)))

    async def thumbnail(
        self, id: RowNumber, side: Annotated[int, Query(ge=16, le=1024)] = 256, known: Known = None
    ) -> Response:
        """The picture of a row as a JPEG, at most `side` (or the next of 128, 256, 512 and 1024) wide and high."""
        place, side = await self.service.place(id), side_of(side)
        headers = {"etag": f'"{place.digest}-{side}"', "cache-control": "private, no-cache"}
        if known == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(await self.service.thumbnail(place, side), media_type="image/jpeg", headers=headers)

    async def picture(self, id: RowNumber) -> Response:
        """The picture of a row as its file is."""
        place = await self.service.place(id)
        kind = await self.service.media_type(place)
        headers = {
            "content-length": str(place.size),
            "content-disposition": "inline",
            "content-security-policy": PICTURE_POLICY,
            "cache-control": "private, no-cache",
        }

        async def read(start: int, most: int) -> bytes:
            return await self.service.read(place, place.read, start, most)

        return StreamingResponse(chunks(place.size, read), media_type=kind, headers=headers)


def build(service: Service, token: str | None = None) -> ASGIApp:
    """The whole application: routes behind their limits."""
    app = FastAPI(title="clipkit search", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(Api(service).routes())
    app.include_router(ClipRetrieval(service).routes(FAILURES))
    app.add_exception_handler(RequestValidationError, _not_of_the_schema)
    app.add_exception_handler(HTTPException, _http)
    for kind, status in ((UserError, 400), (Missing, 404), (Full, 503), (ClipkitError, 500), (Exception, 500)):
        app.add_exception_handler(kind, _failing(status))
    refused = service.metrics.refused
    return Gate(_Counted(app, service), service.limits, token, lambda status: refused.labels(str(status)).inc())


class _Counted:
    """The application, its requests counted by route."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")  # no address as it was asked: there is no end of them
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)


def _recall(found: Any) -> float | None:
    """As it was measured when the index was tuned."""
    value = found.get("value") if isinstance(found, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _page() -> Iterator[tuple[str, tuple[bytes, str]]]:
    """(name, (content, etag)) of each file of the page."""
    for file in (files("clipkit.serve") / "page").iterdir():
        if file.name.rpartition(".")[2] in TYPES:
            data = file.read_bytes()
            yield file.name, (data, f'"{hashlib.sha256(data).hexdigest()[:16]}"')


async def _not_of_the_schema(_: Request, error: Exception) -> Response:
    """The first fault in one line, without what was sent: that may be long, and NaN cannot be told in JSON."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(each) for each in first["loc"][1:])
    return JSONResponse({"error": f"{where}: {first['msg']}" if where else str(first["msg"])}, 422)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


def _failing(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Tells what the client can know; what went wrong inside is for the one who reads the server's stderr."""

    async def told(request: Request, error: Exception) -> Response:
        if isinstance(error, Full):
            return JSONResponse({"error": "busy: too many searches are waiting"}, status, {"retry-after": "1"})
        if status < 500:
            return JSONResponse({"error": str(error)}, status)
        if isinstance(error, ClipkitError):
            say(f"clipkit: {request.url.path}: {error}")
        return JSONResponse({"error": "the server has failed; it has told why on its stderr"}, status)

    return told
