"""What is wrong with a project or its data, and where."""

from __future__ import annotations

from pathlib import Path

from eadem.errors import EademError

__all__ = ["ProjectError", "at"]


class ProjectError(EademError, ValueError):
    """A project file, an expression in it or a data file cannot be used; says where."""


def at(
    file: Path | str, line: int | None = None, column: int | None = None, what: str = ""
) -> ProjectError:
    """An error with its place, in the form that editors can follow.

    >>> print(at("fit.toml", 3, 7, "no such key"))
    fit.toml:3:7: no such key
    """
    place = str(file)
    for number in (line, column):
        if number is None:
            break
        place += f":{number}"
    return ProjectError(f"{place}: {what}")
