"""The safetensors layout: eight bytes of length, a header in JSON, the tensors' bytes.

Files are the same as those of the library of that name, both ways. Eadem reads and writes
them itself for what the library does not give: the place of every tensor, so that bytes are
streamed and compared in bounded memory; reading errors that are raised, where a mapped page
that cannot be read kills the process; and metadata of several entries in one order, so that
a file is the same to the byte. A header is checked in full before a tensor is looked at.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
>>> write(path, {"w": torch.zeros(2, 3)}, {"format": "pt"})
>>> with TensorFile(path) as file:
...     file.tensors["w"].shape, file.metadata, file.tensor("w").sum()
((2, 3), {'format': 'pt'}, tensor(0.))
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from eadem.errors import RecordError, Unsupported
from eadem.maps.base import Shape, numel

__all__ = ["BITS", "DTYPES", "Places", "Stored", "TensorFile", "loads", "write"]

#: Bits of a value, by the format's name of its type, in the library's order of types.
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8,
    "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64,
}  # fmt: skip
#: torch's type, for those that torch holds one value an element.
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {name: i for i, name in enumerate(BITS)}
#: Limits on what a header may say; the first is the library's own.
HEADER_BYTES = 100_000_000
RANK = 32
#: Bytes that are read, or written, at a time.
WINDOW = 16 << 20
#: Bytes that one thread reads at a time: long, so that threads seldom wait for each other.
PIECE = 32 << 20
#: Linux: read the pages of a mapping now; what cannot be read is an error, not a signal.
_POPULATE_READ = 22


def loads(text: str | bytes, what: str) -> Any:
    """JSON from outside: no key twice, no NaN, no depth that a reader cannot follow.

    Raises RecordError, with `what` as its subject.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError, MemoryError) as error:
        raise RecordError(f"{what} is damaged: {str(error) or 'too deep':.200}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file: its bytes are `start` to `stop` of the whole file.

    `dtype` is the format's name (`F32`); `axes`: () where its values lie in the order of its
    shape, its axes in the order in which they lie where that is another, None for a strided
    view, whose values do not lie together.
    """

    dtype: str
    shape: Shape
    start: int
    stop: int
    axes: tuple[int, ...] | None = ()

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.stop - self.start


def _read_at(file: BinaryIO, at: int, into: memoryview) -> int:
    """Read some bytes from `at` on; how many. Where the system can, threads may do so at
    once.
    """
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [into], at)
    file.seek(at)
    found = file.read(len(into))
    into[: len(found)] = found
    return len(found)


def _memory(target: Tensor) -> memoryview:
    """The bytes of a contiguous tensor."""
    return target.detach().reshape(-1).view(torch.uint8).numpy().data


def _written(target: Tensor) -> None:
    """Tell autograd that a tensor's memory was written."""
    if not target.is_inference():
        increment_version(target)


class Places:
    """An open file and the places of its tensors: `tensors` by name, `metadata`, `size`.

    A subclass reads them, in `_places`. Raises RecordError for a file that cannot be read.
    """

    kind: ClassVar[str]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        try:
            self._file: BinaryIO = self.path.open("rb", buffering=0)
        except OSError as error:
            raise RecordError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self.size = os.fstat(self._file.fileno()).st_size
            self.tensors = self._places()
        except OSError as error:
            self.close()
            raise self._unread(error) from error
        except BaseException:
            self.close()
            raise

    def _places(self) -> dict[str, Stored]:
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _unread(self, error: OSError) -> RecordError:
        return RecordError(f"{self.path} cannot be read: {error.strerror or error}")

    def _damaged(self, what: str) -> RecordError:
        return RecordError(
            f"{self.path} cannot be read as {self.kind}: {what:.300}; it is cut short, or of "
            "another kind"
        )

    def read(self, at: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `at` on. Raises RecordError."""
        try:
            while into:
                got = _read_at(self._file, at, into)
                if not got:
                    raise self._damaged("it became shorter while it was read")
                at, into = at + got, into[got:]
        except OSError as error:
            raise self._unread(error) from error


class TensorFile(Places):
    """An open safetensors file whose header is sound; `tensors` are in file order.

    Raises RecordError for a file that cannot be read, is cut short or is of another kind.
    """

    kind = "safetensors"

    def _places(self) -> dict[str, Stored]:
        head = self._file.read(8)
        if len(head) < 8:
            raise self._damaged(f"it has {len(head)} bytes")
        (length,) = struct.unpack("<Q", head)
        if length > min(self.size - 8, HEADER_BYTES):
            raise self._damaged(f"its header would take {length} of its {self.size} bytes")
        text = self._file.read(length)
        if len(text) < length or not text.startswith(b"{"):
            raise self._damaged("it has no header")
        found = loads(text, f"the header of {self.path}")
        metadata = found.pop("__metadata__", {})
        if not isinstance(metadata, dict) or any(type(v) is not str for v in metadata.values()):
            raise self._damaged("its metadata is not text by name")
        self.metadata = metadata
        tensors = {name: self._stored(name, about) for name, about in found.items()}
        data = 8 + length
        at = data
        ordered = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop))
        for name, stored in ordered:
            if stored.start + data != at:
                raise self._damaged(f"the bytes of {name!r:.80} do not follow on")
            at += stored.nbytes
        if at != self.size:
            raise self._damaged(f"its tensors end at byte {at}, the file at {self.size}")
        return {n: Stored(s.dtype, s.shape, s.start + data, s.stop + data) for n, s in ordered}

    def _stored(self, name: str, about: Any) -> Stored:
        if not name.isprintable():
            raise self._damaged(f"{name!r:.80} is no name that can be printed")
        if not isinstance(about, dict) or about.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._damaged(f"{name!r:.80} is not told by dtype, shape and data_offsets")
        dtype, shape, offsets = about["dtype"], about["shape"], about["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            raise self._damaged(f"{name!r:.80} has the unknown type {dtype!r:.40}")
        if not _counts(shape) or len(shape) > RANK:
            raise self._damaged(f"{name!r:.80} has the shape {shape!r:.80}")
        if not _counts(offsets) or len(offsets) != 2:
            raise self._damaged(f"{name!r:.80} lies at {offsets!r:.80}")
        start, stop = offsets
        if (stop - start) * 8 != numel(shape) * BITS[dtype]:
            raise self._damaged(
                f"{name!r:.80} of type {dtype} and shape {shape!r:.80} has {stop - start} bytes"
            )
        return Stored(dtype, tuple(shape), start, stop)

    def tensor(self, name: str) -> Tensor:
        """A tensor, read into memory. Raises RecordError."""
        shape = self.tensors[name].shape
        value = torch.empty(shape, dtype=self._dtype(name), device="cpu")
        self.into(name, value)
        return value

    def _dtype(self, name: str) -> torch.dtype:
        found = DTYPES.get(self.tensors[name].dtype)
        if found is None:
            raise RecordError(
                f"{name!r} in {self.path} is of type {self.tensors[name].dtype}, which torch "
                "does not hold"
            )
        return found

    def into(self, name: str, target: Tensor) -> None:
        """Read a tensor into another of its shape: straight into its memory, or a few
        megabytes at a time where its type or device is another. Raises RecordError.
        """
        stored, dtype = self.tensors[name], self._dtype(name)
        if not stored.nbytes:
            return
        if self._direct(name, target):
            self.read(stored.start, _memory(target))
            _written(target)
            return
        flat = target.reshape(-1) if target.is_contiguous() else None
        many = numel(stored.shape) if flat is None else WINDOW // dtype.itemsize
        for at in range(0, numel(stored.shape), many):
            stop = min(at + many, numel(stored.shape))
            held = bytearray((stop - at) * dtype.itemsize)
            self.read(stored.start + at * dtype.itemsize, memoryview(held))
            piece = torch.frombuffer(held, dtype=dtype)
            if flat is None:
                target.copy_(piece.reshape(stored.shape))
            else:
                flat[at:stop].copy_(piece)

    def _direct(self, name: str, target: Tensor) -> bool:
        """Whether a target takes the bytes of the file as they are."""
        lazy = target.is_neg() or target.is_conj()
        return (
            target.dtype == self._dtype(name)
            and target.is_cpu
            and target.is_contiguous()
            and not lazy
        )

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Read tensors into others of their shapes, with as many threads as torch has.

        Raises RecordError, when no thread writes any more.
        """
        direct = {n: t for n, t in targets.items() if t.numel() and self._direct(n, t)}
        for name, target in targets.items():
            if name not in direct:
                self.into(name, target)
        pieces = [
            (self.tensors[name].start + at, _memory(target)[at : at + PIECE])
            for name, target in direct.items()
            for at in range(0, self.tensors[name].nbytes, PIECE)
        ]
        threads = torch.get_num_threads() if hasattr(os, "preadv") else 1
        if threads < 2 or sum(len(into) for _, into in pieces) < 2 * PIECE:
            for at, into in pieces:
                self.read(at, into)
        else:
            with ThreadPoolExecutor(threads) as pool:
                for done in [pool.submit(self.read, at, into) for at, into in pieces]:
                    done.result()
        for target in direct.values():
            _written(target)

    def prefetch(self) -> None:
        """Read every byte once, so that whatever cannot be read is an error now.

        Raises RecordError. The bytes stay in the system's cache as far as that has room, and
        nowhere else.
        """
        scratch: memoryview | None = None
        try:
            with mmap.mmap(self._file.fileno(), self.size, access=mmap.ACCESS_READ) as pages:
                for start in range(0, self.size, WINDOW):
                    length = min(WINDOW, self.size - start)
                    if _populate(pages, start, length):
                        continue
                    scratch = scratch or memoryview(bytearray(length))
                    self.read(start, scratch[:length])
        except (OSError, ValueError) as error:
            raise RecordError(f"{self.path} cannot be mapped: {error}") from error


def _populate(pages: mmap.mmap, start: int, length: int) -> bool:
    """Read a window of a mapping and let it go again; False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        pages.madvise(_POPULATE_READ, start, length)
        pages.madvise(mmap.MADV_DONTNEED, start, length)
    except OSError:
        return False  # an old kernel, or bytes that cannot be read: then reading says which
    return True


def _counts(value: Any) -> bool:
    """Whether it is a list of whole numbers from 0 to 2⁶³ − 1."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file: the widest types first, then by name, as the library orders them.

    A tensor that is not contiguous, or not in memory, is copied while its turn lasts. Raises
    OSError, and Unsupported for a tensor that has no plain bytes.
    """
    order = sorted(tensors, key=lambda k: (-_rank(k, tensors[k]), k))
    header: dict[str, Any] = (
        {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    )
    at = 0
    for name in order:
        value = tensors[name]
        stop = at + value.numel() * value.element_size()
        header[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, stop],
        }
        at = stop
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb", buffering=0) as file:
        _all(file, memoryview(struct.pack("<Q", len(text)) + text))
        for name in order:
            for piece in _bytes(tensors[name]):
                _all(file, piece)


def _rank(name: str, value: Tensor) -> int:
    """Where a type stands in the library's order. Raises Unsupported."""
    plain = value.layout is torch.strided and type(value.detach()) is Tensor
    if not plain or value.dtype not in _NAMES or value.is_meta:
        raise Unsupported(
            f"{name!r} ({type(value).__name__}, {value.dtype}, {value.layout}, on "
            f"{value.device}) has no plain bytes to write; make it an ordinary dense tensor "
            "first"
        )
    return _ORDER[_NAMES[value.dtype]]


def _bytes(value: Tensor) -> Iterator[memoryview]:
    if not value.numel():
        return
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    yield plain.reshape(-1).view(torch.uint8).numpy().data


def _all(file: BinaryIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data[:WINDOW]) :]
