"""What was observed: x, y and σ of one data set, from the columns of its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eadem.project.data import Columns, inside, read_columns
from eadem.project.document import Document, Path_
from eadem.project.errors import ProjectError, at

__all__ = ["Observed", "observed"]

Floats = NDArray[np.float64]
#: Endings of files whose third column is σ without being told.
_XYE = (".xye",)


@dataclass(frozen=True, eq=False)
class Observed:
    """x, y and sigma (n,) of the rows that are fitted, and their lines in `file`; `left_out`:
    x and y of the other rows; `gaps`: the stretches of x that were left out.
    """

    file: str
    x: Floats
    y: Floats
    sigma: Floats
    lines: tuple[int, ...]
    left_out: tuple[Floats, Floats]
    gaps: tuple[tuple[float, float], ...]
    x_label: str
    y_label: str
    errors: str

    @property
    def sorted_x(self) -> Floats:
        """x in increasing order."""
        return self.x[np.argsort(self.x, kind="stable")]

    @property
    def sorted_y(self) -> Floats:
        """y in the order of x."""
        return self.y[np.argsort(self.x, kind="stable")]


def observed(
    document: Document, folder: Path, path: Path_, table: Mapping[str, Any]
) -> Observed:
    """Read what a data set's table asks for. Raises ProjectError with the place."""
    try:
        real = inside(folder, table["file"])
    except ProjectError as error:
        raise document.error((*path, "file"), str(error)) from None
    columns = read_columns(real, table["file"])
    names = [_column(document, path, table, columns, key, i) for i, key in enumerate("xy")]
    x, y = (columns.numbers(n) for n in names)
    sigma, errors = _sigma(document, path, table, columns, y)
    gaps = _gaps(document, path, table)
    kept = np.ones(len(x), dtype=bool)
    for low, high in gaps:
        kept &= ~((x >= low) & (x <= high))
    if not kept.any():
        raise document.error(path, "the ranges leave no observation")
    wrong = np.flatnonzero(kept & ~(sigma > 0))
    if len(wrong):
        line = columns.lines[wrong[0]]
        raise at(columns.file, line, what=f"σ is {sigma[wrong[0]]:g}; it must be above zero")
    shown = [columns.names[columns.index(n)] for n in names]
    labels = [n if n != str(i + 1) else "xy"[i] for i, n in enumerate(shown)]
    return Observed(
        columns.file,
        x[kept],
        y[kept],
        sigma[kept],
        tuple(int(columns.lines[i]) for i in np.flatnonzero(kept)),
        (x[~kept], y[~kept]),
        gaps,
        labels[0],
        labels[1],
        errors,
    )


def _column(
    document: Document,
    path: Path_,
    table: Mapping[str, Any],
    columns: Columns,
    key: str,
    i: int,
) -> str | int:
    """The column that is x or y: as told, or the first and the second."""
    name = table.get(key, i + 1)
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise document.error(
            (*path, key), f"{key} is the name of a column, or its number from 1"
        )
    try:
        columns.index(name)
    except ProjectError as error:
        raise document.error((*path, key), str(error)) from None
    return name


def _sigma(
    document: Document, path: Path_, table: Mapping[str, Any], columns: Columns, y: Floats
) -> tuple[Floats, str]:
    """σ of every row, and in words where it is from."""
    xye = columns.file.lower().endswith(_XYE) and len(columns.names) > 2
    rule = table.get("sigma", 3 if xye else "none")
    here = (*path, "sigma")
    if isinstance(rule, float):
        if not (rule > 0 and math.isfinite(rule)):
            raise document.error(here, f"a constant σ is above zero, not {rule:g}")
        return np.full(len(y), rule), f"σ = {rule:g}"
    if rule == "none" and rule not in columns.names:
        return np.ones(len(y)), "no weights"
    if rule == "sqrt" and rule not in columns.names:
        below = np.flatnonzero(y < 0)
        if len(below):
            line = columns.lines[below[0]]
            raise at(columns.file, line, what=f"a count of {y[below[0]]:g} has no square root")
        return np.sqrt(np.maximum(y, 1.0)), "σ = √counts (1 where there are none)"
    if isinstance(rule, bool) or not isinstance(rule, (str, int)):
        raise document.error(
            here, "sigma is a column, 'sqrt' (of counts), 'none', or a number with a point"
        )
    try:
        index = columns.index(rule)
    except ProjectError as error:
        hint = ", 'sqrt', 'none', or a number with a point as 2.0"
        raise document.error(here, f"{error}{hint}") from None
    return columns.numbers(rule), f"σ from column {columns.names[index]!r}"


def _gaps(
    document: Document, path: Path_, table: Mapping[str, Any]
) -> tuple[tuple[float, float], ...]:
    """The stretches of x that are left out: `exclude`, and what is outside of `range`."""
    found = [
        _pair(document, (*path, "exclude"), each)
        for each in _pairs(document, (*path, "exclude"), table.get("exclude", []))
    ]
    if "range" in table:
        low, high = _pair(document, (*path, "range"), table["range"])
        found += [
            (-math.inf, np.nextafter(low, -math.inf)),
            (np.nextafter(high, math.inf), math.inf),
        ]
    return tuple(found)


def _pairs(document: Document, path: Path_, value: object) -> list[object]:
    if not isinstance(value, list):
        raise document.error(path, "exclude is a list of [from, to]")
    flat = len(value) == 2 and not any(isinstance(v, list) for v in value)
    return [value] if flat else value


def _pair(document: Document, path: Path_, value: object) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise document.error(path, f"a range of x is [from, to], not {value!r:.40}")
    low, high = (document.number(v, path) for v in value)
    if not low < high:
        raise document.error(path, f"the range [{low:g}, {high:g}] has nothing in it")
    return low, high
