"""Every error Eadem raises: what was asked, what was found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DataError",
    "EademError",
    "GroupError",
    "MissingPackage",
    "NoEquivariantMap",
    "NoSuchSite",
    "NotAParameter",
    "NotARepresentation",
    "OutOfRange",
    "RecordError",
    "ShapeError",
    "SymmetryBroken",
    "TieBroken",
    "TieConflict",
    "TooLarge",
    "Unsupported",
    "nearest",
]


class EademError(Exception):
    """Base of all errors raised by Eadem."""


class DataError(EademError, ValueError):
    """A file of data that cannot be understood; the message names the place, by line and
    column where there are any.
    """


class NoSuchSite(EademError, LookupError):
    """A name or pattern matches no parameter of the model."""


class NotAParameter(EademError, AttributeError):
    """A parameter was asked for by the name of a site that has none of its own."""


class ShapeError(EademError, ValueError):
    """A map cannot join these shapes."""


class TieConflict(EademError, ValueError):
    """The declarations contradict each other: no value of θ satisfies all of them."""


class TieBroken(EademError, RuntimeError):
    """Something outside Eadem took a tied value away or wrote what the tie cannot hold."""


class TooLarge(EademError, ValueError):
    """A dense computation was asked for above its stated size."""


class Unsupported(EademError, TypeError):
    """The model or value is of a kind that a tie refuses, with the way out."""


class GroupError(EademError, ValueError):
    """Generators that do not make the group asked for, or not within its stated size."""


class NotARepresentation(EademError, ValueError):
    """Matrices that break a relation of their group; the message says which and by how much."""


class NoEquivariantMap(EademError, ValueError):
    """Two representations between which zero is the only equivariant map."""


class SymmetryBroken(EademError, ValueError):
    """A layer's geometry or non-linearity does not respect the symmetry its weights have."""


class OutOfRange(EademError, ValueError):
    """A number or a choice that is none of those allowed."""


class RecordError(EademError, ValueError):
    """A record or checkpoint is truncated, foreign, or newer than this version."""


class MissingPackage(EademError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The three names closest to `name`, as a phrase for an error message.

    >>> nearest("encoder.wieght", ["encoder.weight", "head.bias"])
    'nearest: encoder.weight'
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6) or sorted(names)[:3]
    return "nearest: " + ", ".join(close) if close else "there are none"
