"""What any checkpoint holds: its tensors, those that share memory, those of equal content.

A safetensors file, a torch file, or a folder of shards with its index. Headers are read
first; tensors are streamed, so a checkpoint may be larger than memory. Nothing is unpickled
but by torch's own `weights_only`, and of a torch file no value is read for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from eadem.errors import RecordError
from eadem.maps.base import Shape, numel
from eadem.store.duplicates import constant, equal_sets, is_transpose, sampled
from eadem.store.layout import Places, Stored, TensorFile, loads
from eadem.store.records import PREFIX, Record
from eadem.store.schema import FORMAT, checked
from eadem.store.torchfile import TorchFile, is_torch_file

__all__ = ["Checkpoint", "Duplicate", "Held", "Shared", "checkpoint", "recorded_arrays"]

Progress = Callable[[int, int], None]
#: An index of shards, by how its name ends, and what is looked for without one.
_INDEX = (".safetensors.index.json", ".bin.index.json")
_ALONE = ("model.safetensors", "pytorch_model.bin")
_KINDS = ((".safetensors",), (".bin", ".pt", ".pth"))
_INDEX_BYTES = 100_000_000


@dataclass(frozen=True)
class Held:
    """A tensor of a checkpoint: its name, which of the files holds it, and where."""

    name: str
    file: int
    place: Stored

    @property
    def shape(self) -> Shape:
        """Its shape."""
        return self.place.shape

    @property
    def dtype(self) -> str:
        """The format's name of its type (`F32`)."""
        return self.place.dtype

    @property
    def nbytes(self) -> int:
        """The bytes from its first value to its last."""
        return self.place.nbytes

    @property
    def numel(self) -> int:
        """How many values it has."""
        return numel(self.shape)

    @property
    def width(self) -> int:
        """The bytes of one value, 1 for values of less."""
        return max(1, self.nbytes // max(1, self.numel))


@dataclass(frozen=True)
class Shared:
    """Names of a torch file whose tensors lie in the same memory.

    `whole`: each is all of it, so they are one tensor; else they overlap.
    """

    names: tuple[str, ...]
    nbytes: int
    whole: bool


@dataclass(frozen=True)
class Duplicate:
    """Names whose tensors hold the same bytes, and those that hold their transpose.

    `nbytes` is the size of one; `saved` is what one copy would save. `constant`: all values
    are the same number, so the equality says little.
    """

    names: tuple[str, ...]
    transposed: tuple[str, ...]
    shape: Shape
    nbytes: int
    constant: bool

    @property
    def saved(self) -> int:
        """The bytes of all copies but one."""
        return (len(self.names) + len(self.transposed) - 1) * self.nbytes


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: `files`, `tensors` without the arrays of a record, the `record` if it has
    one (and its `arrays` among the tensors' files), `shared` and `duplicates`.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: tuple[Held, ...]
    record: Record | None
    arrays: tuple[Held, ...]
    shared: tuple[Shared, ...]
    duplicates: tuple[Duplicate, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, those in shared memory once."""
        sizes = {t.name: t.nbytes for t in self.tensors}
        several = sum(sum(sizes.get(n, 0) for n in s.names) - s.nbytes for s in self.shared)
        return sum(sizes.values()) - several

    @property
    def numel(self) -> int:
        """The values of all tensors, by name: those in shared memory count each time."""
        return sum(t.numel for t in self.tensors)

    @property
    def saved(self) -> int:
        """What one copy of each duplicate would save, in bytes."""
        return sum(d.saved for d in self.duplicates)


def checkpoint(
    path: str | os.PathLike[str], progress: Progress | None = None, equal: bool = True
) -> Checkpoint:
    """Read what a checkpoint holds, and find what in it is equal.

    Args:
        path: a safetensors file, a torch file, an index of shards
            (`*.index.json`), or a folder of these.
        progress: is told the bytes settled and the bytes of all tensors that might be equal.
        equal: whether to look for tensors of equal content.

    Equal means to the byte, and of one type. Raises RecordError for a file that is missing,
    cut short, or of another kind. Memory stays below some 100 MB over that of the headers.

    >>> import tempfile, torch
    >>> from eadem.store.layout import write
    >>> file = Path(tempfile.mkdtemp()) / "x.safetensors"
    >>> w = torch.randn(3, 4)
    >>> write(file, {"a": w, "b": w.clone(), "c": w.t()}, {})
    >>> [(d.names, d.transposed) for d in checkpoint(file).duplicates]
    [(('a', 'b'), ('c',))]
    """
    path = Path(path)
    files, wanted = _located(path)
    opened: list[Places] = []
    try:
        held: list[Held] = []
        record: Record | None = None
        for i, file in enumerate(files):
            opened.append(TorchFile(file) if is_torch_file(file) else TensorFile(file))
            several = f"{file.name}:" if wanted is None and len(files) > 1 else ""
            held += [Held(several + n, i, s) for n, s in opened[-1].tensors.items()]
            record = record or _record_of(opened[-1])
        if wanted is not None:
            _as_indexed(held, wanted, files, path)
        if path.is_dir():
            record = record or _beside(path)
        shared = tuple(_shared([t for t in held if isinstance(opened[t.file], TorchFile)]))
        again = {n for s in shared for n in s.names[1:] if s.whole}
        own = PREFIX if record is not None else "\0"
        arrays = tuple(t for t in held if t.name.startswith(own))
        tensors = tuple(t for t in held if not t.name.startswith(own))
        alone = [
            t for t in tensors
            if t.name not in again and t.place.axes is not None and t.nbytes
        ]  # fmt: skip

        def read(t: Held, at: int, into: memoryview) -> None:
            opened[t.file].read(t.place.start + at, into)

        told = progress or (lambda done, total: None)
        found = tuple(_duplicates(alone, read, told)) if equal else ()
    finally:
        for each in opened:
            each.close()
    return Checkpoint(path, tuple(files), tensors, record, arrays, shared, found)


def recorded_arrays(found: Checkpoint) -> dict[str, Tensor]:
    """The arrays of a checkpoint's record, by hash. Raises RecordError."""
    arrays = {}
    for t in found.arrays:
        with TensorFile(found.files[t.file]) as file:
            name = t.name.rpartition(":")[2]
            arrays[name.removeprefix(PREFIX)] = file.tensor(name).clone()
    return arrays


# which files


def _located(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files of a checkpoint, and the file of each name where an index says it."""
    if path.is_file():
        if path.name.endswith(".json"):
            return _indexed(path)
        return [path], None
    if not path.is_dir():
        raise RecordError(f"there is no file or folder {path}")
    inside = sorted(p for p in path.iterdir() if p.is_file())
    for ending in _INDEX:
        indices = [p for p in inside if p.name.endswith(ending)]
        if len(indices) == 1:
            return _indexed(indices[0])
        if indices:
            raise RecordError(
                f"{path} holds several indices: {', '.join(p.name for p in indices)}; name one"
            )
    for name in _ALONE:
        if path / name in inside:
            return [path / name], None
    for endings in _KINDS:
        chosen = [p for p in inside if p.suffix in endings]
        if chosen:
            return chosen, None
    raise RecordError(
        f"{path} holds no checkpoint: no *.safetensors, *.bin, *.pt, *.pth and no index of them"
    )


def _indexed(path: Path) -> tuple[list[Path], dict[str, str]]:
    if path.stat().st_size > _INDEX_BYTES:
        raise RecordError(f"the index {path} has {path.stat().st_size} bytes; that is no index")
    try:
        found = loads(path.read_bytes(), f"the index {path}")
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not names:
        raise RecordError(f"{path} is no index of shards: it has no weight_map")
    for name, file in names.items():
        plain = type(file) is str and file.isprintable() and Path(file).name == file
        if not name.isprintable() or not plain or file in (".", ".."):
            raise RecordError(
                f"the index {path} is damaged: it puts {name!r:.80} into {file!r:.80}, which "
                "is no file beside it"
            )
    files = sorted(set(names.values()))
    missing = [f for f in files if not (path.parent / f).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RecordError(
            f"{path} names {len(files)} files, of which these are not there: "
            f"{', '.join(missing[:3])}{more}"
        )
    return [path.parent / f for f in files], names


def _as_indexed(
    held: Sequence[Held], wanted: Mapping[str, str], files: Sequence[Path], path: Path
) -> None:
    """Whether the shards hold what their index says. Raises RecordError."""
    there = {t.name: files[t.file].name for t in held}
    for name, file in wanted.items():
        if there.get(name) != file:
            raise RecordError(
                f"{path} does not fit its shards: it puts {name!r:.80} into {file}, where "
                "there is no such tensor"
            )


# what they hold


def _record_of(file: Places) -> Record | None:
    text = file.metadata.get(FORMAT)
    if text is None:
        return None
    return checked(loads(text, f"the record in {file.path}"), str(file.path))


def _beside(folder: Path) -> Record | None:
    """The record that `save_pretrained` of a tied model leaves in config.json."""
    config = folder / "config.json"
    try:
        about = loads(config.read_bytes(), str(config)).get("quantization_config")
    except (OSError, AttributeError, RecordError):
        return None  # none of ours, and not what was asked about
    if not isinstance(about, dict) or about.get("quant_method") != FORMAT:
        return None
    return checked(about.get("record"), f"the record in {config}")


def _shared(held: Sequence[Held]) -> Iterator[Shared]:
    """Tensors that lie in the same bytes."""
    groups: list[list[Held]] = []
    file, stop = -1, 0
    for t in sorted(held, key=lambda t: (t.file, t.place.start, -t.nbytes)):
        if not t.nbytes:
            continue
        if t.file == file and t.place.start < stop:
            groups[-1].append(t)
            stop = max(stop, t.place.stop)
        else:
            groups.append([t])
            file, stop = t.file, t.place.stop
    for group in groups:
        if len(group) > 1:
            dense = all(t.place.axes is not None for t in group)
            whole = dense and len({(t.place.start, t.place.stop, t.dtype) for t in group}) == 1
            nbytes = max(t.place.stop for t in group) - group[0].place.start
            yield Shared(tuple(t.name for t in group), nbytes, whole)


# what is equal


def _duplicates(
    held: Sequence[Held], read: Callable[[Held, int, memoryview], None], progress: Progress
) -> Iterator[Duplicate]:
    """Equal tensors, in the order of their names in the checkpoint."""
    buckets: dict[tuple[str, int], list[Held]] = {}
    for t in held:
        buckets.setdefault((t.dtype, t.nbytes), []).append(t)
    several = [b for b in buckets.values() if len(b) > 1]
    total = sum(t.nbytes for b in several for t in b)
    settled = 0

    def done(n: int) -> None:
        nonlocal settled
        settled += n
        progress(settled, total)

    place = {t.name: i for i, t in enumerate(held)}
    found: list[Duplicate] = []
    for bucket in several:
        layouts: dict[tuple[Any, ...], list[Held]] = {}
        for t in bucket:
            layouts.setdefault((t.shape, t.place.axes), []).append(t)
        classes: list[list[Held]] = []
        for alike in layouts.values():
            sets = list(equal_sets(alike, alike[0].nbytes, read, done))
            together = {t.name for s in sets for t in s}
            classes += sets + [[t] for t in alike if t.name not in together]
        found += _joined(sorted(classes, key=lambda c: place[c[0].name]), read)
    yield from sorted(found, key=lambda d: place[d.names[0]])


def _joined(
    classes: list[list[Held]], read: Callable[[Held, int, memoryview], None]
) -> Iterator[Duplicate]:
    """Classes of equal tensors, each with the class of its transpose if there is one."""
    waiting: dict[tuple[Shape, bytes], list[list[Held]]] = {}
    partner: dict[str, list[Held]] = {}
    shapes = {t.shape for c in classes for t in c[:1]}
    for c in classes:
        shape = c[0].shape
        width = c[0].width
        if len(shape) != 2 or min(shape) < 2 or c[0].place.axes != ():
            continue
        if width not in (1, 2, 4, 8) or c[0].nbytes != c[0].numel * width:
            continue
        rows, columns = shape
        if (columns, rows) not in shapes:
            continue
        mine = sampled(c[0], (rows, columns), width, read, turned=True)
        for other in waiting.get(((columns, rows), mine), []):
            if is_transpose(other[0], c[0], (columns, rows), width, read):
                partner[other[0].name] = c
                partner[c[0].name] = []
                break
        else:
            key = sampled(c[0], (rows, columns), width, read, turned=False)
            waiting.setdefault((shape, key), []).append(c)
    for c in classes:
        turned = partner.get(c[0].name)
        if turned == [] or (len(c) < 2 and not turned):
            continue
        yield Duplicate(
            tuple(t.name for t in c),
            tuple(t.name for t in turned or ()),
            c[0].shape,
            c[0].nbytes,
            constant(c[0], c[0].nbytes, c[0].width, read),
        )
