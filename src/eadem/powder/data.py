"""Measured powder patterns, and readers of the files that they come in.

Every reader gives `Data`: 2θ in degrees, counts and their standard deviations. A file that
cannot be read raises DataError with the line, and the column where there is one.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from eadem.errors import DataError

__all__ = ["Data", "read_counters", "read_csv", "read_steps", "read_xye"]

#: Lines of an xye file that begin so are comments.
COMMENTS = ("#", "!", "'", "/*", "*", ";")


@dataclass(frozen=True, eq=False)
class Data:
    """A powder pattern: `x`, 2θ in degrees, rising; `y` and its standard deviation `sigma`;
    all (points,), float64.

    Raises DataError where the three do not go together: lengths, order, or numbers.

    >>> Data(torch.tensor([10.0, 10.1]), torch.tensor([4.0, 9.0])).sigma.tolist()
    [2.0, 3.0]
    """

    x: Tensor
    y: Tensor
    sigma: Tensor

    def __init__(self, x: Tensor, y: Tensor, sigma: Tensor | None = None) -> None:
        counts = torch.as_tensor(y, dtype=torch.float64)
        if sigma is None:
            sigma = counts.clamp(min=1.0).sqrt()
        given = {"x": torch.as_tensor(x, dtype=torch.float64), "y": counts}
        given["sigma"] = torch.as_tensor(sigma, dtype=torch.float64)
        shapes = {k: tuple(v.shape) for k, v in given.items()}
        if any(v.ndim != 1 for v in given.values()) or len(set(shapes.values())) != 1:
            raise DataError(f"x, y and sigma have one dimension and one length, not {shapes}")
        for name, value in given.items():
            bad = (~torch.isfinite(value)).nonzero().reshape(-1).tolist()
            if bad:
                raise DataError(f"{name} is not finite at point {bad[0]}, of {len(bad)} such")
        if bool((given["x"].diff() <= 0).any()):
            at = int((given["x"].diff() <= 0).nonzero()[0])
            raise DataError(
                f"2θ must rise from point to point; after point {at} "
                f"({float(given['x'][at]):g}) comes {float(given['x'][at + 1]):g}"
            )
        if bool((given["sigma"] <= 0).any()):
            at = int((given["sigma"] <= 0).nonzero()[0])
            raise DataError(f"sigma must be positive; at point {at} it is not")
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.x)

    def without(self, *excluded: tuple[float, float]) -> Data:
        """The points outside of all regions (from, to), in degrees 2θ, ends included."""
        kept = torch.ones(len(self), dtype=torch.bool)
        for low, high in excluded:
            kept &= (self.x < low) | (self.x > high)
        return Data(self.x[kept], self.y[kept], self.sigma[kept])


@dataclass(frozen=True)
class _Row:
    """One line's numbers, each with the column where it begins (from 1)."""

    line: int
    values: tuple[float, ...]
    columns: tuple[int, ...]


def content(path: Path) -> str:
    """A text file's content, gzip or not. Raises DataError for a folder or a broken gzip
    file; FileNotFoundError.
    """
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, not a file") from None
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is a broken gzip file: {error}") from None
    return raw.decode("utf-8-sig", errors="replace")


def _lines(path: Path) -> list[str]:
    return content(path).splitlines()


def _number(path: Path, line: int, column: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{path}, line {line}, column {column}: {text[:40]!r} is not a finite number"
        )
    return value


def _fields(text: str, separator: str | None) -> Iterator[tuple[int, str]]:
    """The fields of a line with the columns where they begin."""
    at = 0
    for part in text.split(separator):
        if separator is None:
            at = text.index(part, at)
            yield at + 1, part
            at += len(part)
        else:
            yield at + 1 + len(part) - len(part.lstrip()), part.strip()
            at += len(part) + len(separator)


def _data(path: Path, rows: Sequence[_Row], width: int) -> Data:
    """Rows of x, y and, where `width` is 3, sigma."""
    if not rows:
        raise DataError(f"{path} holds no data")
    for before, row in pairwise(rows):
        if row.values[0] <= before.values[0]:
            raise DataError(
                f"{path}, line {row.line}, column {row.columns[0]}: 2θ must rise, but "
                f"{row.values[0]:g} follows {before.values[0]:g}"
            )
    for row in rows:
        if width > 2 and row.values[2] <= 0:
            raise DataError(
                f"{path}, line {row.line}, column {row.columns[2]}: the standard deviation "
                f"must be positive, not {row.values[2]:g}; exclude such points"
            )
    table = torch.tensor([row.values[:width] for row in rows], dtype=torch.float64)
    return Data(*table.unbind(1))


def read_xye(path: str | os.PathLike[str]) -> Data:
    """Columns 2θ, y and σ, separated by blanks; without a third column σ² = max(y, 1).

    Empty lines, comments (#, !, ', ;, /* */) and words before the first numbers are passed
    over. gzip files are read too. Raises DataError.
    """
    where = Path(path)
    rows: list[_Row] = []
    width = 0
    comment = False
    for number, line in enumerate(_lines(where), 1):
        text = line.strip()
        opens = text.startswith("/*")
        if comment or opens or not text or text.startswith(COMMENTS):
            comment = (comment or opens) and "*/" not in text
            continue
        fields = list(_fields(line, None))
        if not rows and not _is_number(fields[0][1]):
            continue
        if len(fields) < 2:
            if not rows:
                continue
            raise DataError(
                f"{where}, line {number}: 2θ and y are needed, and there is one field"
            )
        width = width or min(3, len(fields))
        if len(fields) < width:
            raise DataError(
                f"{where}, line {number}: {len(fields)} fields, where lines before have {width}"
            )
        kept = fields[:width]
        values = tuple(_number(where, number, column, part) for column, part in kept)
        rows.append(_Row(number, values, tuple(column for column, _ in kept)))
    return _data(where, rows, width)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_csv(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str | int] | None = None,
    separator: str = ",",
) -> Data:
    """Comma-separated 2θ, y and, if there is a third column, σ; without it σ² = max(y, 1).

    `columns`: the two or three columns, by their names in the first line or by number from 0;
    by default the first ones. A first line that is no numbers is a header. Raises DataError.
    """
    where = Path(path)
    lines = [(i, l) for i, l in enumerate(_lines(where), 1) if l.strip() and l[0] != "#"]
    if not lines:
        raise DataError(f"{where} holds no data")
    names = [part.strip("\"'") for _, part in _fields(lines[0][1], separator)]
    headed = not all(_is_number(n) for n in names[:2])
    wanted = range(min(3, len(names))) if columns is None else columns
    places = [_place(where, c, names, headed) for c in wanted]
    if len(places) not in (2, 3):
        raise DataError(f"{where}: 2θ, y and perhaps σ are needed, not {len(places)} columns")
    rows = []
    for number, line in lines[headed:]:
        fields = list(_fields(line, separator))
        if len(fields) <= max(places):
            raise DataError(
                f"{where}, line {number}: {len(fields)} fields, where {max(places) + 1} are "
                "needed"
            )
        kept = [fields[p] for p in places]
        values = tuple(_number(where, number, column, part) for column, part in kept)
        rows.append(_Row(number, values, tuple(column for column, _ in kept)))
    return _data(where, rows, len(places))


def _place(path: Path, column: str | int, names: Sequence[str], headed: bool) -> int:
    if isinstance(column, int):
        if 0 <= column < len(names):
            return column
        raise DataError(f"{path} has {len(names)} columns, and none of number {column}")
    if not headed or column not in names:
        raise DataError(
            f"{path}, line 1: no column is called {column!r}; "
            + (f"there are {list(names)}" if headed else "there is no header")
        )
    return list(names).index(column)


def read_counters(path: str | os.PathLike[str]) -> Data:
    """Records of FullProf's D1A format (Ins = 6): "number of counters, mean count" in (I2, F6).

    A title, a line with the step third, a line with the first 2θ, a line of monitor counts,
    then ten records a line up to one that is negative. σ² = y / counters. Raises DataError.
    """
    where = Path(path)
    lines = _lines(where)
    if len(lines) < 5:
        raise DataError(f"{where} has {len(lines)} lines; its header alone has four")
    step = _header(where, lines, 2, 2)
    first = _header(where, lines, 3, 0)
    y: list[float] = []
    counters: list[float] = []
    for number, line in enumerate(lines[4:], 5):
        if line.strip().startswith("-"):
            break
        for at in range(0, len(line.rstrip()), 8):
            count, mean = line[at : at + 2], line[at + 2 : at + 8]
            many = _number(where, number, at + 1, count.strip() or "1")
            value = _number(where, number, at + 3, mean.strip())
            if many < 1:
                raise DataError(
                    f"{where}, line {number}, column {at + 1}: {many:g} counters saw this "
                    "point; at least one must"
                )
            y.append(value)
            counters.append(many)
    if not y:
        raise DataError(f"{where} holds no records after its header")
    counts = torch.tensor(y, dtype=torch.float64)
    number_of = torch.tensor(counters, dtype=torch.float64)
    x = first + step * torch.arange(len(y), dtype=torch.float64)
    return Data(x, counts, (counts.clamp(min=1.0) / number_of).sqrt())


def read_steps(path: str | os.PathLike[str]) -> Data:
    """First 2θ, step and last 2θ in the first line, then counts (FullProf's Ins = 0).

    σ² = max(y, 1). Raises DataError, also where the number of counts is not what the range
    has.
    """
    where = Path(path)
    lines = _lines(where)
    first, step, last = (_header(where, lines, 1, i) for i in range(3))
    if not (step > 0 and last > first):
        raise DataError(f"{where}, line 1: from {first:g} to {last:g} by {step:g} is no range")
    y = [
        _number(where, number, column, part)
        for number, line in enumerate(lines[1:], 2)
        for column, part in _fields(line, None)
    ]
    wanted = round((last - first) / step) + 1
    if len(y) != wanted:
        raise DataError(
            f"{where}: {len(y)} counts, where line 1 announces {wanted} ({first:g} to {last:g} "
            f"by {step:g})"
        )
    counts = torch.tensor(y, dtype=torch.float64)
    return Data(first + step * torch.arange(len(y), dtype=torch.float64), counts)


def _header(path: Path, lines: Sequence[str], line: int, place: int) -> float:
    fields = list(_fields(lines[line - 1], None)) if len(lines) >= line else []
    if len(fields) <= place:
        raise DataError(f"{path}, line {line}: a header with {place + 1} numbers is needed")
    column, text = fields[place]
    return _number(path, line, column, text)
