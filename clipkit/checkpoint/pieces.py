"""Named tensors in safetensors files: one file of whole tensors, or a folder with a file of the parts of each rank.

x/model.safetensors, or x/model/{00001-of-00002.safetensors, 00002-of-00002.safetensors}

A part's place in its tensor stands in the header, as torch's HuggingFaceStorageReader (torch.distributed.checkpoint)
expects it. Its writer is not used: it plans every save by collectives, which a thread beside the training could only
make in a process group of its own, and where a rank fails it leaves the others waiting.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.errors import StorageError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}  # in the order in which the format lays them down, last first
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ORDER = {dtype: -number for number, dtype in enumerate(DTYPES.values())}
OFFSETS = "DCP_SHARDING_INFO"  # torch.distributed.checkpoint._hf_utils.CUSTOM_METADATA_KEY

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a part lies in its tensor: its offset and its size along each dimension."""


@dataclass(frozen=True)
class Part:
    """A box of a tensor, and how to get it when it is written."""

    name: str
    dtype: torch.dtype
    box: Box
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Its size in a file."""
        return torch.Size(self.box[1]).numel() * self.dtype.itemsize


def is_split(x: Tensor | None) -> bool:
    """Is it a DTensor? Asked by name: its module takes seconds to import, which evaluating can do without."""
    return type(x).__name__ == "DTensor"


def whole(x: Tensor) -> Box:
    """The box of all of `x`."""
    return (0,) * x.ndim, tuple(x.shape)


def box_of(x: Any) -> Box:
    """The box of the DTensor `x` that this rank holds; of size 0 where there is less of it than ranks."""
    (chunk,) = x.__create_chunk_list__()
    return tuple(chunk.offsets), tuple(chunk.sizes)


def is_first(x: Any) -> bool:
    """Is this rank the first of those that hold the same part of the DTensor `x`?"""
    at = x.device_mesh.get_coordinate() or ()
    return all(number == 0 for number, placed in zip(at, x.placements, strict=True) if placed.is_replicate())


def write(path: Path, parts: Iterable[Part], shards: bool = False) -> dict[str, int]:
    """Write a safetensors file, one part after the other; gives its size and CRC32.

    Of whole tensors it is byte for byte what `safetensors.torch.save_file` writes, without a second copy in memory.
    """
    ordered = sorted(parts, key=lambda part: (ORDER[part.dtype], part.name))
    header: dict[str, Any] = {}
    if shards:
        offsets = {part.name: {"saved_offsets": part.box[0]} for part in ordered}
        header["__metadata__"] = {OFFSETS: json.dumps(offsets)}
    end = 0
    for part in ordered:
        begin, end = end, end + part.bytes
        header[part.name] = {"dtype": NAMES[part.dtype], "shape": part.box[1], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    crc = size = 0
    with path.open("wb") as file:
        for data in chain([len(text).to_bytes(8, "little") + text], map(_bytes, ordered)):
            file.write(data)
            crc, size = zlib.crc32(data, crc), size + len(data)
    return {"bytes": size, "crc32": crc}


def _bytes(part: Part) -> memoryview:
    x = part.read().detach().cpu().contiguous()
    assert x.dtype == part.dtype and tuple(x.shape) == part.box[1], (part, x.dtype, x.shape)
    return x.reshape(-1).view(torch.uint8).numpy().data


class Stored:
    """The tensors of a safetensors file `x.safetensors`, or of the folder of shards `x/` in its place, read in parts.

    Raises: StorageError when there is neither, or it is damaged or incomplete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path if path.is_file() else path.with_suffix("")
        self.pieces: dict[str, list[tuple[Any, Box]]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for file in self._files():
            self._open(file)

    def _files(self) -> Sequence[Path]:
        if self.path.is_file():
            return [self.path]
        files = sorted(self.path.glob("*-of-*.safetensors"))
        if not files:
            raise StorageError(f"{self.path}.safetensors: not a readable safetensors file (No such file or directory)")
        wanted = int(files[0].stem.rpartition("-of-")[2])
        if len(files) != wanted:
            raise StorageError(f"{self.path}: {len(files)} of {wanted} shards are there")
        return files

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(path, "pt")
            places = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                view = file.get_slice(name)
                size = tuple(view.get_shape())
                offset = tuple(places[name]["saved_offsets"]) if name in places else (0,) * len(size)
                self.pieces.setdefault(name, []).append((file, (offset, size)))
                self.dtypes[name] = DTYPES[view.get_dtype()]
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise StorageError(f"{path}: not a readable safetensors file ({error})") from error

    def box(self, name: str) -> Box:
        """The box of the whole tensor."""
        ends = [[a + b for a, b in zip(offset, size, strict=True)] for _, (offset, size) in self.pieces[name]]
        shape = tuple(max(end) for end in zip(*ends, strict=True))
        return (0,) * len(shape), shape

    def part(self, name: str, box: Box) -> Tensor:
        """What lies in a box of a tensor, from as many files as hold some of it."""
        for file, there in self.pieces[name]:
            if there == box:
                return file.get_tensor(name)
        offset, size = box
        out = torch.empty(size, dtype=self.dtypes[name])
        missing = out.numel()
        for file, (first, extent) in self.pieces[name]:
            low = [max(a, b) for a, b in zip(offset, first, strict=True)]
            high = [min(a + m, b + n) for a, m, b, n in zip(offset, size, first, extent, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                found = file.get_slice(name)[
                    tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))
                ]
                out[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offset, strict=True))] = found
                missing -= found.numel()
        if missing:
            raise StorageError(f"{self.path}: {missing} numbers of {name} are in none of its shards")
        return out

    def get(self, name: str, like: Any = None) -> Tensor:
        """The tensor `name`; where `like` is a DTensor of its shape, a DTensor split in the same way, of which this
        rank reads its own part."""
        box = self.box(name)
        if not is_split(like) or tuple(like.shape) != box[1]:
            return self.part(name, box)
        from torch.distributed.tensor import DTensor

        local = self.part(name, box_of(like)).to(like.device)
        shape = {"shape": like.shape, "stride": like.stride()}
        return DTensor.from_local(local, like.device_mesh, like.placements, run_check=False, **shape)

    def parts(self) -> list[Part]:
        """All tensors, whole, each read when it is written."""
        return [
            Part(name, self.dtypes[name], self.box(name), lambda name=name: self.part(name, self.box(name)))
            for name in self.pieces
        ]
