"""`clipkit search INDEX "a red bicycle"`: the pictures of a collection that are nearest to words or to a picture."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipkit import models, shards, vectors
from clipkit.errors import UserError


@dataclass(frozen=True)
class Hit:
    """A picture that was found: its score (cosine), key and caption, and where its bytes lie."""

    score: float
    key: str
    caption: str
    shard: str
    offset: int
    size: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def image(self) -> bytes:
        """The bytes of the picture, read from where it lay when it was embedded."""
        return shards.read_span(self.shard, self.offset, self.size)


class Index:
    """An index folder, opened: `search` it by text or by picture. The model is loaded at the first search."""

    def __init__(self, folder: str | Path, model: str | None = None) -> None:
        self.folder = Path(folder)
        about = vectors.about(self.folder, vectors.INDEX_ABOUT)
        self.model_name = model or about["model"]
        self.table = vectors.records(self.folder)
        if not (self.folder / "image.index").is_file():
            raise UserError(f"{self.folder}: image.index is missing; build the index again")
        self.index = vectors.read_index(self.folder / "image.index")
        if self.index.ntotal != len(self.table):
            raise UserError(
                f"{self.folder}: {self.index.ntotal} vectors but metadata of {len(self.table)}; build it again"
            )
        self._model: models.DualEncoder | None = None

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def model(self) -> models.DualEncoder:
        """The model whose embeddings the index holds."""
        if self._model is None:
            self._model = models.load(self.model_name)
        return self._model

    def search(self, text: str | None = None, image: str | Path | None = None, k: int = 5) -> list[Hit]:
        """The `k` nearest pictures, best first, to a text or to a picture file.

        Raises: UserError when neither or both are given, or the picture cannot be read.
        """
        if (text is None) == (image is None):
            raise UserError("search: words or --image FILE are needed, and not both")
        if text is not None:
            if not text.strip():
                raise UserError("search: the text is empty")
            query = models.embed_texts(self.model, [text])
        else:
            query = self._embed_picture(Path(str(image)))
        if query.shape[1] != self.index.d:
            raise UserError(
                f"{self.model_name}: makes vectors of {query.shape[1]} numbers, the index has {self.index.d}"
            )
        scores, rows = vectors.search(self.index, query.numpy(), min(k, len(self)))
        found = self.table.take(rows[0]).to_pylist()
        return [_hit(float(score), record) for score, record in zip(scores[0], found, strict=True)]

    def _embed_picture(self, path: Path) -> Any:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        for _, rows, bad in models.embed_images(self.model, shards.Folder([path]), [0]):
            if bad:
                raise UserError(f"{path}: {bad[0]}; JPEG, PNG, WebP, GIF and BMP pictures can be read")
            return rows
        raise AssertionError("one picture gives one batch")


def _hit(score: float, record: dict[str, Any]) -> Hit:
    return Hit(score, record["image_path"], record["caption"], record["shard"], record["offset"], record["size"])


def open_index(folder: str | Path, model: str | None = None) -> Index:
    """Open the index that `clipkit index` has made; `model` overrides the one it names.

    Raises: UserError when a part of it is missing.
    """
    return Index(folder, model)
