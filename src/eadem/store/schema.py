"""What a record may say: every node of one checked before anything is built from it.

A record comes from a file, and a file from anywhere. It is held to its own form here: known
keys, known types, finite numbers, and sizes within limits. What it means for a model (sites
that exist, indices within them, maps that fit) is asked afterwards.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from eadem.errors import RecordError

__all__ = ["INLINE_BYTES", "VERSION", "checked", "digests"]

#: The version of the record's layout. A file with a higher one is refused.
VERSION = 1
#: Arrays of more bytes than this are kept outside the record, under their hash.
INLINE_BYTES = 64 * 1024

FORMAT = "eadem"
#: Limits: characters in a name, axes of a shape, maps and lists inside each other.
NAME, RANK, DEPTH = 4096, 32, 64

_ARRAYS = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128,
    )
}  # fmt: skip
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OUTSIDE = ("nan", "inf", "-inf")


class _Damaged(Exception):
    """Where in the record, and what is wrong there."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.path: list[str] = []


def checked(found: Any, where: str = "the record") -> dict[str, Any]:
    """A record of a known version and of the form that `eadem.record` gives.

    Raises RecordError: foreign, newer, or damaged, and then at which place.
    """
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise RecordError(f"{where} is no record of Eadem's; eadem.record(model) makes one")
    version = found.get("version")
    if type(version) is not int or version < 1:
        raise RecordError(f"{where} has no version that any Eadem wrote: {version!r:.50}")
    if version > VERSION:
        raise RecordError(
            f"{where} has version {version}, and this Eadem reads up to {VERSION}; install a "
            "newer Eadem"
        )
    try:
        _record(found)
    except _Damaged as error:
        at = "".join(reversed(error.path)).lstrip(".") or "the top"
        raise RecordError(f"{where} is damaged at {at:.200}: {error}") from None
    return dict(found)


def digests(found: Any) -> Iterator[str]:
    """The hashes of the arrays that a checked record (or a part of one) names."""
    if isinstance(found, Mapping):
        about = found.get("array")
        if isinstance(about, Mapping) and "sha256" in about:
            yield about["sha256"]
        for value in found.values():
            yield from digests(value)
    elif isinstance(found, list):
        for value in found:
            yield from digests(value)


class _at:  # noqa: N801  (reads as a word: with _at(".sites"))
    """Adds its place to what is raised inside."""

    __slots__ = ("place",)

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _Damaged):
            error.path.append(self.place)


def _keys(value: Any, wanted: Sequence[str], more: Sequence[str] = ()) -> None:
    if not isinstance(value, Mapping):
        raise _Damaged(f"{value!r:.60} stands where {', '.join(wanted)} belong")
    missing = [k for k in wanted if k not in value]
    extra = [k for k in value if k not in wanted and k not in more]
    if missing or extra:
        what = [f"there is no {k!r}" for k in missing[:1]]
        what += [f"no version has a key {k!r:.60}" for k in extra[:1]]
        raise _Damaged("; ".join(what))


def _list(value: Any, what: str, least: int = 0) -> list[Any]:
    if type(value) is not list:
        raise _Damaged(f"{value!r:.60} stands where a list of {what} belongs")
    if len(value) < least:
        raise _Damaged(f"there is no {what}")
    return value


def _name(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= NAME or not value.isprintable():
        raise _Damaged(f"{value!r:.60} is no name")
    return value


def _shape(value: Any) -> int:
    """The number of values in a recorded shape."""
    sizes = _list(value, "sizes")
    if len(sizes) > RANK or not all(type(n) is int and n >= 0 for n in sizes):
        raise _Damaged(f"{value!r:.60} is no shape")
    if math.prod(n for n in sizes if n) >= 1 << 63:
        raise _Damaged(f"the shape {value!r:.60} is larger than any memory")
    return math.prod(sizes)


def _record(found: Mapping[str, Any]) -> None:
    _keys(found, ("format", "version", "sites", "ties"))
    sites = found["sites"]
    with _at(".sites"):
        if not isinstance(sites, Mapping):
            raise _Damaged(f"{sites!r:.60} stands where shapes by name belong")
        for name, shape in sites.items():
            with _at(f"[{name!r:.60}]"):
                _name(name)
                _shape(shape)
    tied: set[str] = set()
    with _at(".ties"):
        for i, tie in enumerate(_list(found["ties"], "ties")):
            with _at(f"[{i}]"):
                for j, run in enumerate(_list(tie, "sites", least=1)):
                    with _at(f"[{j}]"):
                        tied.update(_run(run))
    with _at(".sites"):
        if tied != set(sites):
            odd = min(tied ^ set(sites))
            raise _Damaged(f"{odd!r:.80} is tied or has a shape, but not both")


def _run(run: Any) -> Iterator[str]:
    """The parameters of the sites that one entry gives a map to."""
    _keys(run, ("sites", "map"))
    with _at(".map"):
        _map(run["map"], 0)
    with _at(".sites"):
        for site in _list(run["sites"], "sites", least=1):
            yield _name(site).partition("[")[0]


def _map(spec: Any, depth: int, nested: bool = False) -> None:
    _keys(spec, ("kind", "args"), ("shapes",) if nested else ())
    with _at(".kind"):
        _name(spec["kind"])
    if "shapes" in spec:
        with _at(".shapes"):
            shapes = _list(spec["shapes"], "shapes")
            if len(shapes) != 2:
                raise _Damaged("a map has the shape of θ and of its site")
            for shape in shapes:
                _shape(shape)
    if not isinstance(spec["args"], Mapping):
        raise _Damaged(f"the arguments of a map are {spec['args']!r:.60}")
    for name, value in spec["args"].items():
        with _at(f".{name!s:.60}"):
            _name(name)
            _value(value, depth + 1)


def _value(value: Any, depth: int) -> None:
    if depth > DEPTH:
        raise _Damaged(f"more than {DEPTH} lists and maps lie inside each other")
    if value is None or type(value) is bool:
        return
    if type(value) is int:
        if not -(1 << 63) <= value < 1 << 63:
            raise _Damaged("an integer has more than 64 bits")
    elif type(value) is float:
        if not math.isfinite(value):
            raise _Damaged(f"{value} is written as text in a record")
    elif type(value) is str:
        if len(value) > NAME:
            raise _Damaged(f"a text has {len(value)} characters")
    elif type(value) is list:
        for i, each in enumerate(value):
            with _at(f"[{i}]"):
                _value(each, depth + 1)
    elif isinstance(value, Mapping):
        _object(value, depth)
    else:
        raise _Damaged(f"{value!r:.60} is no value that JSON has")


def _object(value: Mapping[str, Any], depth: int) -> None:
    if "kind" in value:
        _map(value, depth, nested=True)
    elif "array" in value:
        _keys(value, ("array",))
        with _at(".array"):
            _array(value["array"])
    elif "float" in value:
        _keys(value, ("float",))
        if value["float"] not in _OUTSIDE:
            raise _Damaged(f"{value['float']!r:.60} is no float that JSON lacks")
    else:
        _keys(value, ("function",))
        _name(value["function"])


def _array(about: Any) -> None:
    outside = isinstance(about, Mapping) and "sha256" in about
    _keys(about, ("dtype", "shape", "sha256" if outside else "values"))
    name = about["dtype"]
    if type(name) is not str or name not in _ARRAYS:
        raise _Damaged(f"an array of the unknown type {name!r:.60}")
    dtype = _ARRAYS[name]
    with _at(".shape"):
        size = _shape(about["shape"])
    if outside:
        if type(about["sha256"]) is not str or not _DIGEST.fullmatch(about["sha256"]):
            raise _Damaged(f"{about['sha256']!r:.80} is no SHA-256")
        return
    values = _list(about["values"], "numbers")
    if len(values) != size:
        raise _Damaged(f"{len(values)} values fill no shape of {size}")
    if size * dtype.itemsize > INLINE_BYTES:
        raise _Damaged(f"an array of {size * dtype.itemsize} bytes is kept by its hash")
    with _at(".values"):
        _numbers(values, dtype)


def _numbers(values: list[Any], dtype: torch.dtype) -> None:
    if dtype is torch.bool:
        odd = [v for v in values if type(v) is not bool]
    elif dtype.is_floating_point:
        odd = [
            v
            for v in values
            if not (type(v) in (int, float) and abs(v) <= sys.float_info.max)
            and v not in _OUTSIDE
        ]
    else:
        info = torch.iinfo(dtype) if not dtype.is_complex else None
        odd = [
            v for v in values
            if info is None or type(v) is not int or not info.min <= v <= info.max
        ]  # fmt: skip
    if odd:
        raise _Damaged(f"{odd[0]!r:.60} is no value of {str(dtype).removeprefix('torch.')}")
