"""Data files of a project: columns of numbers, with line and column where one is wrong.

A project reads files of its own folder only: no absolute paths, no `..`, and nothing that a
link leads out of it.
"""

from __future__ import annotations

import csv
import math
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from eadem.errors import nearest
from eadem.project.errors import ProjectError, at

__all__ = ["LARGEST", "Columns", "inside", "read_columns", "read_text"]

#: Bytes and rows above which a data file is refused.
LARGEST, ROWS = 64 * 1024**2, 1_000_000
_COMMENT = ("#", "!", "'", "%")
_DELIMITERS = (";", "\t", ",")
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Columns:
    """A file's columns: `names` (or "1", "2", …), `cells[i]` the text of one row with `lines`
    its number there, and the place of each cell in its line.
    """

    file: str
    names: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    places: tuple[tuple[int, ...], ...]
    lines: tuple[int, ...]

    def index(self, column: str | int) -> int:
        """Which column a name or a number from 1 is. Raises ProjectError."""
        if isinstance(column, int) and not isinstance(column, bool):
            if 1 <= column <= len(self.names):
                return column - 1
            raise at(
                self.file, what=f"there is no column {column}; there are {len(self.names)}"
            )
        if column not in self.names:
            raise at(
                self.file,
                what=f"there is no column {column!r}; {nearest(str(column), self.names)}",
            )
        return self.names.index(column)

    def numbers(self, column: str | int) -> Floats:
        """A column as float64. Raises ProjectError with line and column of a wrong cell."""
        k = self.index(column)
        found = np.empty(len(self.cells))
        for i, row in enumerate(self.cells):
            text = row[k].strip()
            try:
                found[i] = float(text)
            except ValueError:
                found[i] = math.nan
            if not math.isfinite(found[i]) or "_" in text:
                what = f"{text!r:.40} is not a number" if text else "a number is missing"
                raise at(
                    self.file,
                    self.lines[i],
                    self.places[i][k],
                    f"{what} (column {self.names[k]!r}); correct it, or leave the row out with "
                    "# before it",
                )
        return found


def inside(folder: Path, name: object) -> Path:
    """A file of the project's folder. Raises ProjectError for any other."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise ProjectError(f"a file is named by a string, not {name!r:.60}")
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    if windows.is_absolute() or windows.drive or name[0] in "/\\~" or ".." in windows.parts:
        raise ProjectError(
            f"the file {name!r:.80} is not in the project's folder; put it there and name it "
            "without / at the start and without .."
        )
    root = folder.resolve()
    path = root.joinpath(*parts)
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError):
        near = sorted(p.name for p in root.iterdir() if p.is_file())
        raise ProjectError(f"there is no file {name!r:.80}; {nearest(name, near)}") from None
    if not real.is_relative_to(root):
        raise ProjectError(
            f"the file {name!r:.80} is a link out of the project's folder; copy the file there"
        )
    if not stat.S_ISREG(mode):
        raise ProjectError(f"{name!r:.80} is not a file")
    return real


def read_text(path: Path, most: int, shown: str) -> str:
    """A text file in UTF-8. Raises ProjectError where it is none, or too large."""
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise at(shown, what=f"cannot be read: {error.strerror or error}") from None
    if len(raw) > most:
        raise at(shown, what=f"is larger than {most // 1024:,} kB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise at(
            shown, line, column, "is not text in UTF-8; save it as such (or as plain ASCII)"
        ) from None
    if "\0" in text:
        before = text[: text.index("\0")]
        raise at(
            shown,
            before.count("\n") + 1,
            len(before) - before.rfind("\n"),
            "holds a zero byte: it is not a text file",
        )
    return text


def read_columns(path: Path, shown: str) -> Columns:
    """A table of numbers: columns apart by commas, semicolons, tabs or blanks; a first line of
    names if it has any that is no number; lines that begin with # ! ' or % left out.
    """
    text = read_text(path, LARGEST, shown)
    numbered = [
        (i, line)
        for i, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith(_COMMENT)
    ]
    if len(numbered) > ROWS:
        raise at(shown, what=f"has more than {ROWS:,} rows")
    if not numbered:
        raise at(shown, what="has no rows")
    delimiter = next((d for d in _DELIMITERS if d in numbered[0][1]), "")
    first, places = _split(numbered[0][1], delimiter)
    named = not all(_is_number(c) for c in first)
    names = tuple(c.strip() for c in first) if named else _numbers(len(first))
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise at(shown, numbered[0][0], what=f"two columns are called {twice!r}")
    cells, spots, lines = [], [], []
    for i, line in numbered[1:] if named else numbered:
        row, places = _split(line, delimiter)
        if len(row) != len(names):
            raise at(
                shown,
                i,
                places[-1] if row else 1,
                f"has {len(row)} column{'s' * (len(row) != 1)} where the file has {len(names)}",
            )
        cells.append(tuple(row))
        spots.append(tuple(places))
        lines.append(i)
    if not cells:
        raise at(shown, what="has a line of names and no rows")
    return Columns(shown, names, tuple(cells), tuple(spots), tuple(lines))


def _split(line: str, delimiter: str) -> tuple[list[str], list[int]]:
    """The cells of a line, and the column that each begins at."""
    if not delimiter:
        found = list(re.finditer(r"\S+", line))
        return [m.group() for m in found], [m.start() + 1 for m in found]
    cells = next(csv.reader([line], delimiter=delimiter))
    places, start = [], 0
    for cell in cells:
        text = cell.strip()
        found_at = line.find(text, start) if text else start
        places.append(max(found_at, start) + 1)
        start = line.find(delimiter, max(found_at, start) + len(text)) + 1 or len(line)
    return cells, places


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(size: int) -> tuple[str, ...]:
    return tuple(str(i + 1) for i in range(size))
