"""A TOML file with the places of its keys, so that an error names line and column."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eadem.errors import nearest
from eadem.project.data import read_text
from eadem.project.errors import ProjectError, at

__all__ = ["Document", "Path_", "read"]

#: Bytes above which a project file is refused.
LARGEST = 1024**2
#: Keys, and the number of a table among those of one array.
Path_ = tuple[str | int, ...]
_BARE = r"""(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_DOTTED = rf"{_BARE}(?:[ \t]*\.[ \t]*{_BARE})*"
_KEY = re.compile(rf"^[ \t]*({_DOTTED})[ \t]*=")
_TABLE = re.compile(rf"^[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")


@dataclass(frozen=True)
class Document:
    """A parsed TOML file: `file` as it is shown, its `text`, and the tree `top`."""

    file: str
    text: str
    top: dict[str, Any] = field(repr=False)

    def error(self, path: Path_, what: str) -> ProjectError:
        """An error at the place of a key, or of the nearest one above it that is written."""
        places = _places(self.text)
        for end in range(len(path), 0, -1):
            if path[:end] in places:
                return at(self.file, *places[path[:end]], what)
        return at(self.file, what=what)

    def table(self, value: object, path: Path_) -> dict[str, Any]:
        """A value that must be a table. Raises ProjectError."""
        if not isinstance(value, dict):
            raise self.error(path, f"{_said(path)} must be a table, not {value!r:.40}")
        return value

    def only(self, table: Mapping[str, Any], allowed: Collection[str], path: Path_) -> None:
        """Raises ProjectError for a key that is not among those allowed."""
        for key in table:
            if key not in allowed:
                raise self.error(
                    (*path, key), f"there is no key {key!r:.60}; {nearest(key, allowed)}"
                )

    def number(self, value: object, path: Path_) -> float:
        """A value that must be a number. Raises ProjectError."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(path, f"{_said(path)} must be a number, not {value!r:.40}")
        try:
            return float(value)
        except OverflowError:
            raise self.error(path, f"{_said(path)} is too large a number") from None

    def strings(self, value: object, path: Path_) -> tuple[str, ...]:
        """A string or a list of strings. Raises ProjectError."""
        each = [value] if isinstance(value, str) else value
        if not isinstance(each, list) or not all(isinstance(v, str) for v in each) or not each:
            raise self.error(path, f"{_said(path)} must be a name or a list of names")
        return tuple(each)

    def flat(self, value: object, path: Path_, depth: int = 4) -> dict[str, tuple[Any, Path_]]:
        """A table whose keys may be dotted: values by dotted name, with the path of each."""
        found: dict[str, tuple[Any, Path_]] = {}
        for key, inner in self.table(value, path).items():
            here = (*path, key)
            if isinstance(inner, dict):
                if depth == 0:
                    raise self.error(here, "a name of too many parts")
                for name, item in self.flat(inner, here, depth - 1).items():
                    found[f"{key}.{name}"] = item
            else:
                found[key] = (inner, here)
        return found


def _said(path: Path_) -> str:
    """A path as it is written.

    >>> _said(("data", "a", "file"))
    'data.a.file'
    """
    return ".".join(str(p) for p in path if isinstance(p, str))


def read(path: Path) -> Document:
    """Read a project file. Raises ProjectError: not there, not UTF-8, not TOML (and where)."""
    shown = str(path)
    if not path.is_file():
        raise ProjectError(f"there is no project file {shown}; give the path of a TOML file")
    text = read_text(path, LARGEST, shown)
    try:
        return Document(shown, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        place = re.search(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$", reason)
        if place is None:
            raise at(shown, what=f"is not TOML: {reason}") from None
        reason = reason[: place.start()]
        if place.group(1) is None:
            lines = text.split("\n")
            raise at(shown, len(lines), len(lines[-1]) + 1, f"{reason}, at the end") from None
        raise at(shown, int(place.group(1)), int(place.group(2)), reason) from None
    except (RecursionError, ValueError):
        raise at(shown, what="is nested too deeply, or holds too long a number") from None


def _places(text: str) -> dict[Path_, tuple[int, int]]:
    """Line and column of each key and table, as far as lines tell."""
    found: dict[Path_, tuple[int, int]] = {}
    counts: dict[Path_, int] = {}
    table: Path_ = ()
    for i, line in enumerate(text.split("\n"), 1):
        head = _TABLE.match(line)
        if head:
            table = _parts(head.group(2))
            if head.group(1) == "[[":
                number = counts.get(table, 0)
                counts[table] = number + 1
                found.setdefault(table, (i, head.start(2) + 1))
                table = (*table, number)
            found.setdefault(table, (i, head.start(2) + 1))
            continue
        key = _KEY.match(line)
        if key:
            whole = (*table, *_parts(key.group(1)))
            for end in range(len(table) + 1, len(whole) + 1):
                found.setdefault(whole[:end], (i, key.start(1) + 1))
    return found


def _parts(dotted: str) -> Path_:
    return tuple(p.strip("\"'") for p in re.findall(_BARE, dotted))
