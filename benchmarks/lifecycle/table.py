"""All rows of the table, in order."""

from __future__ import annotations

import functools

from . import (
    rows_distributed,
    rows_libraries,
    rows_models,
    rows_modules,
    rows_sites,
    rows_trainers,
    rows_training,
)
from .rows import Row

__all__ = ["rows"]

_FILES = (
    rows_models,
    rows_training,
    rows_sites,
    rows_distributed,
    rows_modules,
    rows_libraries,
    rows_trainers,
)


@functools.cache
def rows() -> tuple[Row, ...]:
    """The rows of every file, by number."""
    return tuple(sorted((r for f in _FILES for r in f.ROWS), key=lambda r: r.number))
