"""The HTTP interface of clip-retrieval's back end, for programs that use its `ClipClient`.

Its client sends JSON without saying that it is JSON, every field every time, and reads lists. No address is fetched
for it: `image_url` is refused. There are no models here for its safety and aesthetic fields; they are accepted and do
nothing, as they do at a clip-retrieval that was started without such models.
"""

import json
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.exceptions import HTTPException

from clipkit.errors import UserError
from clipkit.search import Options, Part, Query
from clipkit.search.hits import Hit
from clipkit.serve import schemas
from clipkit.serve.requested import picture
from clipkit.serve.service import Service
from clipkit.serve.thumbnails import Missing

ALIKE = 0.94
"""The cosine from which its `deduplicate` leaves a picture out."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class KnnAsked(_Asked):
    """A text, a picture in base64, or an embedding. `num_result_ids` rows are found, and `num_images` told in full."""

    text: Annotated[str, StringConstraints(max_length=2000)] | None = None
    image: str | None = None
    image_url: str | None = None
    embedding_input: list[float] | None = Field(None, max_length=100_000)
    modality: Literal["image", "text"] = "image"
    num_images: int = Field(40, ge=1, le=schemas.MOST_HITS)
    num_result_ids: int | None = Field(None, ge=1, le=100_000)
    indice_name: str | None = None
    deduplicate: bool = False
    use_mclip: bool = False


class MetadataAsked(_Asked):
    """Numbers of rows."""

    ids: list[schemas.Number] = Field(max_length=schemas.MOST_HITS)
    indice_name: str | None = None


class ClipRetrieval:
    """`/knn-service`, `/metadata` and `/indices-list` of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def routes(self, failures: dict[int | str, dict[str, Any]]) -> APIRouter:
        """All three."""
        router = APIRouter(responses=failures, tags=["clip-retrieval"])
        for path, work, model in (("/knn-service", self.knn, KnnAsked), ("/metadata", self.metadata, MetadataAsked)):
            content = {"application/json": {"schema": model.model_json_schema()}}
            body = {"requestBody": {"required": True, "content": content}}
            router.add_api_route(path, work, methods=["POST"], openapi_extra=body, response_model=list[dict[str, Any]])
        router.add_api_route("/indices-list", self.names, methods=["GET"], response_model=list[str])
        return router

    async def names(self) -> list[str]:
        """The name of the index."""
        return [self.service.name]

    async def knn(self, request: Request) -> list[dict[str, Any]]:
        """The nearest rows. At most 500 ids come, where clip-retrieval gives any number."""
        asked = await _body(request, KnnAsked)
        self._check(asked.indice_name)
        if asked.use_mclip:
            raise UserError("use_mclip: there is no such model here; leave it off")
        count = max(asked.num_images, min(asked.num_result_ids or asked.num_images, schemas.MOST_HITS))
        options = Options(count, asked.modality, unique=ALIKE if asked.deduplicate else None)
        found = await self.service.search(Query((self._part(asked),)), options)
        address = str(request.base_url)
        return [
            {**(_told(hit, address) if i < asked.num_images else {}), "id": hit.id, "similarity": hit.score}
            for i, hit in enumerate(found.hits)
        ]

    async def metadata(self, request: Request) -> list[dict[str, Any]]:
        """What is known of rows."""
        asked = await _body(request, MetadataAsked)
        self._check(asked.indice_name)
        address = str(request.base_url)
        return [{"id": hit.id, "metadata": _told(hit, address)} for hit in await self.service.hits(asked.ids)]

    def _check(self, name: str | None) -> None:
        if name is not None and name != self.service.name:
            raise Missing(f"there is no index '{name[:100]}' here; its name is '{self.service.name}'")

    def _part(self, asked: KnnAsked) -> Part:
        """Raises: UserError when nothing is asked, or something that is not answered here."""
        if asked.image_url:
            raise UserError("image_url: addresses are not fetched; send the picture as base64 in image")
        if asked.text:
            return Part("text", asked.text)
        if asked.image:
            return Part("image", picture(asked.image))
        if asked.embedding_input is None:
            raise UserError("text, image or embedding_input is needed")
        return Part("vector", np.asarray(asked.embedding_input, np.float64))


def _told(hit: Hit, address: str) -> dict[str, Any]:
    """Metadata as clip-retrieval tells it. Where the record has no url, it is where this server shows the picture."""
    fields = hit.as_dict()["fields"]
    named = {"image_path": hit.key, "caption": hit.caption, "url": f"{address}api/picture/{hit.id}"}
    return {**named, **fields}


async def _body(request: Request, model: type[Any]) -> Any:
    """Raises: HTTPException when it is no JSON, or not of the schema."""
    try:
        return model.model_validate(json.loads(await request.body(), parse_constant=_refuse))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HTTPException(422, f"{where}: {first['msg']}" if where else first["msg"]) from None
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
