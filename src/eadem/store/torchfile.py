"""A torch file as names and places: what `torch.save` wrote, without reading a value.

The file is a zip archive (since torch 1.6): one pickle of the structure, and one uncompressed
record for each storage. torch reads the pickle, weights only and onto the meta device; where
a storage lies is checked against the archive's own directory.
"""

from __future__ import annotations

import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eadem.errors import RecordError
from eadem.store.layout import DTYPES, Places, Stored

__all__ = ["TorchFile", "is_torch_file"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.complex128: "C128"}
#: Containers inside each other, and values in all, that are looked through.
DEPTH, MANY = 64, 10_000_000
#: A file in torch's old form is read whole, up to this size.
OLD_BYTES = 256 << 20


def is_torch_file(path: Path) -> bool:
    """Whether it begins as `torch.save` begins a file, today or before torch 1.6."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise RecordError(f"{path} cannot be opened: {error.strerror}") from error
    return head == b"PK\x03\x04" or head[:2] == b"\x80\x02"


class TorchFile(Places):
    """An open torch file; nested containers give dotted names.

    Raises RecordError for a file that torch does not read with `weights_only`.
    """

    kind = "a torch file of weights"

    def _places(self) -> dict[str, Stored]:
        try:
            if self._file.read(1) == b"\x80":
                self._renew()
            records = self._records()
            self._file.seek(0)
            found = torch.load(self._file, map_location="meta", weights_only=True)
            return {name: self._place(name, value, records) for name, value in _tensors(found)}
        except (RecordError, OSError):
            raise
        except Exception as error:
            # zipfile, pickle and torch each raise what they like on a damaged file
            said = (str(error).splitlines() or [""])[0]
            raise self._damaged(f"{type(error).__name__}: {said}") from error

    def _renew(self) -> None:
        """Go on with a copy of a file from before torch 1.6, whose values have no places."""
        if self.size > OLD_BYTES:
            raise RecordError(
                f"{self.path} is a torch file from before torch 1.6, which cannot be streamed, "
                f"and has {self.size >> 20} MB; write it again where there is memory for it: "
                "torch.save(torch.load(path, weights_only=True), path)"
            )
        self._file.seek(0)
        found = torch.load(self._file, map_location="cpu", weights_only=True)
        copy: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed as the file is
        self._file.close()
        self._file = copy
        torch.save(found, copy)
        self.size = copy.tell()

    def _records(self) -> dict[int, int]:
        """The size of every uncompressed record, by where its bytes begin."""
        found = {}
        with zipfile.ZipFile(self._file) as archive:
            for info in archive.infolist():
                self._file.seek(info.header_offset)
                local = self._file.read(30)
                if info.compress_type != zipfile.ZIP_STORED or len(local) < 30:
                    continue
                names, extra = struct.unpack("<HH", local[26:30])
                start = info.header_offset + 30 + names + extra
                if start + info.file_size <= self.size:
                    found[start] = info.file_size
        return found

    def _place(self, name: str, value: Tensor, records: dict[int, int]) -> Stored:
        dtype, shape = _NAMES.get(value.dtype), tuple(value.shape)
        if dtype is None or value.layout is not torch.strided:
            raise self._damaged(f"{name!r:.80} is of type {value.dtype}, {value.layout}")
        if not value.numel():
            return Stored(dtype, shape, 0, 0)
        begin = getattr(value.untyped_storage(), "_checkpoint_offset", None)
        if begin not in records:
            raise self._damaged(f"the values of {name!r:.80} are not in the archive")
        width, stride = value.element_size(), value.stride()
        reach = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1
        start = begin + value.storage_offset() * width
        stop = start + reach * width
        if stop > begin + records[begin]:
            raise self._damaged(f"{name!r:.80} reaches beyond its values")
        if value.is_contiguous():
            return Stored(dtype, shape, start, stop)
        axes = sorted(range(len(shape)), key=lambda i: (-stride[i], i))
        dense = value.permute(axes).is_contiguous()
        return Stored(dtype, shape, start, stop, tuple(axes) if dense else None)


def _tensors(found: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested containers, by the way to it."""
    work: list[tuple[str, Any, int]] = [("", found, 0)]
    names: set[str] = set()
    looked = 0
    while work:
        name, value, depth = work.pop()
        looked += 1
        if isinstance(value, Tensor):
            if not name.isprintable() or name in names:
                raise ValueError(f"{name!r:.80} is twice there, or cannot be printed")
            names.add(name)
            yield name or "tensor", value
            continue
        if isinstance(value, dict):
            inside = [(str(k), v) for k, v in value.items()]
        elif isinstance(value, list | tuple):
            inside = [(str(i), v) for i, v in enumerate(value)]
        else:
            continue
        if depth == DEPTH or looked > MANY:
            raise ValueError(f"containers lie inside each other without end, at {name!r:.80}")
        dot = f"{name}." if name else ""
        work += [(dot + k, v, depth + 1) for k, v in reversed(inside)]
