"""What may be asked and what is answered, as OpenAPI describes it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from clipkit.evals.zeroshot import TEMPLATES
from clipkit.search import Hit

MOST_HITS = 500
MOST_PARTS = 16  # of a query
MOST_PROMPTS = 500  # labels times templates: as many texts go through the model
HIDDEN = ("sha256", "width", "height")
"""Columns that are no fields of a hit: clipkit's own, and those that have a place of theirs."""
CLOSED = frozenset({"image_path", "shard", "offset", "sha256"})
"""Columns that tell where a picture lies, or what its bytes are: conditions do not see them."""
OURS = CLOSED | {"id", "size"}
"""Columns that people have no conditions about."""

Words = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Base64 = Annotated[str, StringConstraints(min_length=1)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Weight = Annotated[float, Field(ge=-100, le=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class SearchAsked(_Strict):
    """Texts, pictures and rows of the index (by key or number) that are wanted together; `weights` are of these in
    this order, and negative for what is not wanted, as the texts in `not` are."""

    text: Words | Annotated[list[Words], Field(max_length=MOST_PARTS)] | None = None
    image: Base64 | Annotated[list[Base64], Field(max_length=4)] | None = Field(None, description="Files in base64.")
    keys: list[Words] = Field([], max_length=MOST_PARTS)
    ids: list[Number] = Field([], max_length=MOST_PARTS)
    without: list[Words] = Field([], alias="not", max_length=MOST_PARTS)
    weights: list[Weight] | None = Field(None, max_length=4 * MOST_PARTS)
    where: str | None = Field(None, max_length=2000, description="A condition over the columns, in SQL.")
    k: int = Field(24, ge=1, le=MOST_HITS)
    unique: float | None = Field(None, gt=0, le=1, description="Leave out what has this cosine with a better hit.")
    diverse: float | None = Field(None, ge=0, le=1, description="The say of differences between hits.")
    kind: Literal["image", "text"] = "image"


class ClassifyAsked(_Strict):
    """A picture, and the labels to tell it apart by."""

    image: Base64 = Field(description="A file in base64.")
    labels: list[Words] = Field(min_length=1, max_length=MOST_PROMPTS)
    templates: list[Words] = Field(list(TEMPLATES), min_length=1, max_length=100, description="With {c} for the label.")


class Failure(BaseModel):
    """Why there is no answer, in one line."""

    error: str


class Item(BaseModel):
    """A row of the index."""

    id: int
    key: str
    caption: str
    width: int | None
    height: int | None
    fields: dict[str, Any]

    @classmethod
    def of(cls, hit: Hit, **more: Any) -> Any:
        """What is told of a hit: nothing of where it lies."""
        told = hit.as_dict()["fields"]
        sides = {name: told[name] if isinstance(told.get(name), int) else None for name in ("width", "height")}
        fields = {name: value for name, value in told.items() if name not in HIDDEN}
        return cls(id=hit.id, key=hit.key, caption=hit.caption, fields=fields, **sides, **more)


class Scored(Item):
    """A row that was found, and its cosine with the query."""

    score: float


class SearchAnswer(BaseModel):
    """The best first, out of `of` rows that the condition has left; milliseconds are of all that ran together."""

    hits: list[Scored]
    of: int
    ms: dict[str, float]


class ItemAnswer(BaseModel):
    """A row of the index."""

    record: Item


class Share(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class ClassifyAnswer(BaseModel):
    """The most probable first."""

    scores: list[Share]


class LimitsTold(BaseModel):
    """How much may be sent and asked for."""

    upload_mb: float
    pixels: int
    k: int


class About(BaseModel):
    """The index, the model, and what may be asked of them."""

    name: str
    rows: int
    model: str
    width: int
    kinds: list[str]
    columns: dict[str, str]
    recall: dict[str, float]
    limits: LimitsTold
    examples: list[str]


class Health(BaseModel):
    """It lives."""

    status: str
    rows: int
