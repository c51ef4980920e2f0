"""A data set as `datasets.Dataset.save_to_disk` leaves it, read without that package."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit.datatools.pack.rows import Columns, Options, Row, choose, table_row
from clipkit.datatools.pack.tables import load_json, stamp
from clipkit.errors import BadData, UserError

if TYPE_CHECKING:
    import pyarrow


class Saved:
    """A saved Hugging Face data set: Arrow files, in which its images are found again by their offsets."""

    kind = "a saved data set"

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.options = path, options
        self.ignored: dict[str, int] = {}
        state = load_json(path / "state.json")
        if state.get("_indices_data_files"):
            raise UserError(f"{path}: holds a choice of rows beside them; save it after .flatten_indices()")
        names = [str(file.get("filename", "")) for file in state.get("_data_files", [])]
        missing = [name for name in names if os.path.basename(name) != name or not (path / name).is_file()]
        if missing or not names:
            raise UserError(f"{path}: {missing[0] if missing else 'data-*.arrow'} is not there; copy the whole folder")
        self.files = [path / name for name in names]
        self._stamp = stamp([path / "state.json", *self.files])
        self.columns = self._columns()

    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and times of the data files, as they were when it was opened."""
        return self._stamp

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        for path in self.files:
            row = 0
            for batch, start, end in _batches(path):
                images = batch.column(self.columns.image)
                for i, record in enumerate(batch.drop_columns([self.columns.image]).to_pylist()):
                    row += 1
                    yield self._row(f"{path.name} row {row}", record, images, i, (path, start, end))

    def _row(
        self, id: str, record: dict[str, Any], images: "pyarrow.Array", i: int, lies: tuple[Path, int, int]
    ) -> Row:
        """The row of `record`, whose image is number `i` of `images`, in a file that is mapped to addresses `lies`."""
        import pyarrow

        data, image = None, images[i]
        value: Any = None
        if image.is_valid and pyarrow.types.is_struct(images.type):
            data = image["bytes"].as_buffer()
            value = {"bytes": None if data is None else b"", "path": image["path"].as_py()}
        elif image.is_valid and _is_binary(images.type):
            data, value = image.as_buffer(), b""
        elif image.is_valid:
            value = image.as_py()
        row = table_row(id, {self.columns.image: value, **record}, self.columns, os.path.abspath(self.path), False)
        if row.problem or data is None:
            return row
        path, start, end = lies
        if not start <= data.address <= end - data.size:  # compressed: what was decompressed lies elsewhere
            return row._replace(data=data.to_pybytes())
        return row._replace(image=os.path.abspath(path), offset=data.address - start, size=data.size, data=None)

    def _columns(self) -> Columns:
        import pyarrow

        with _damage(self.files[0]), pyarrow.memory_map(str(self.files[0])) as file:
            schema = pyarrow.ipc.open_stream(file).schema
        images = [field.name for field in schema if _is_image(field.type)]
        wanted = self.options
        if wanted.image is None and len(images) == 1:
            wanted = replace(wanted, image=images[0])
        return choose(schema.names, wanted, str(self.path))


def _is_binary(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def _is_image(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return {kind.field(i).name for i in range(kind.num_fields)} == {"bytes", "path"}
    return _is_binary(kind)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise BadData(f"{path}: is damaged ({error}); copy it again") from error


def _batches(path: Path) -> Iterator[tuple["pyarrow.RecordBatch", int, int]]:
    """The record batches of an Arrow stream, and the addresses at which the whole file is mapped."""
    import pyarrow

    with _damage(path), pyarrow.memory_map(str(path)) as file:
        whole = file.read_buffer()
        for batch in pyarrow.ipc.open_stream(whole):
            yield batch, whole.address, whole.address + whole.size
