"""What is to be embedded, and how."""

from dataclasses import dataclass

from clipkit.errors import UserError

WHAT, DTYPES, DECODE = ("images", "texts", "both"), ("float16", "float32"), ("exact", "fast")


@dataclass(frozen=True)
class Job:
    """The arguments of `clipkit embed`, as plain values: they pass between processes.

    `model`, `source` and `out` as on the command line. `caption` says where captions are (null: the source's own),
    `fields` which keys of the .json of shards or columns of a table the metadata keep (separated by commas), `images`
    where the pictures lie that a table names, `what` is embedded of images, texts and both (null: texts where there are
    captions), `dtype` how rows are kept, `part` how many samples one file has, `decode` whether pictures are decoded
    whole (exact), `batch` how many samples are in the model at once. These decide the files; `workers` processes decode
    before a GPU, and `max_bad` is the share of unreadable samples that is borne.
    """

    model: str
    source: str
    out: str
    caption: str | None = None
    fields: str = ""
    images: str | None = None
    what: str | None = None
    dtype: str = "float16"
    part: int | None = None
    decode: str = "exact"  # what every other tool computes
    batch: int | None = None
    workers: int | None = None
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        for name, value, there in (
            ("what", self.what or "both", WHAT), ("dtype", self.dtype, DTYPES), ("decode", self.decode, DECODE)
        ):  # fmt: skip
            if value not in there:
                raise UserError(f"--{name}: one of {', '.join(there)} is needed, got '{value}'")

    @property
    def names(self) -> list[str]:
        """The fields."""
        return list(dict.fromkeys(name.strip() for name in self.fields.split(",") if name.strip()))
