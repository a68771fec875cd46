"""Observations as one array with the bounds of its sequences, and the errors of bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eadem.errors import EademError, ShapeError

__all__ = ["Data", "HMMError", "NotFitted", "observations"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class HMMError(EademError, ValueError):
    """Observations, parameters or options that a hidden Markov model cannot use."""


class NotFitted(HMMError, AttributeError):
    """A value was asked for that has neither been set nor fitted."""


@dataclass(frozen=True)
class Data:
    """Rows of observations (rows, features), and which row each frame has.

    Sequence i is the frames bounds[i]:bounds[i + 1]. With `x` frames share rows (symbols,
    counts); without, frame t has row t. `seen` (rows, features) is false where an observation
    is missing, None where none is; missing values are zero in `rows`. `centre` was taken off
    them.
    """

    rows: Any
    bounds: Ints
    x: Ints | None = None
    seen: npt.NDArray[np.bool_] | None = None
    centre: Any = 0.0

    @property
    def frames(self) -> int:
        """The number of frames."""
        return int(self.bounds[-1])

    def present(self) -> Floats:
        """How many observations each feature has, (features,)."""
        if self.seen is None:
            return np.full(self.rows.shape[1], float(len(self.rows)))
        found: Floats = self.seen.sum(0).astype(np.float64)
        return found

    def about(self, centre: Floats) -> Data:
        """The same observations about another centre."""
        rows = self.rows + (self.centre - centre)
        if self.seen is not None:
            rows = np.where(self.seen, rows, 0.0)
        return replace(self, rows=rows, centre=centre)


def observations(X: Any, lengths: Sequence[int] | None = None) -> tuple[npt.NDArray[Any], Ints]:
    """An array (frames, features) and the bounds of its sequences.

    `X` is such an array, with `lengths` where it holds several sequences; a list of arrays, one
    a sequence; or a pair (X, lengths). Raises ShapeError and HMMError.

    >>> observations([np.array([0, 1]), np.array([2])])[1]
    array([0, 2, 3])
    """
    if isinstance(X, tuple) and len(X) == 2 and lengths is None:
        X, lengths = X
    if isinstance(X, Sequence) and X and all(_is_array(s) for s in X):
        if lengths is not None:
            raise HMMError("give either a list of sequences or one array with lengths")
        parts = [_array(s) for s in X]
        widths = {p.shape[1] for p in parts}
        if len(widths) > 1:
            raise ShapeError(f"the sequences have {sorted(widths)} features; they must agree")
        lengths, array = [len(p) for p in parts], np.concatenate(parts)
    else:
        array = _array(X)
    given = [len(array)] if lengths is None else [int(n) for n in _flat(lengths)]
    if not len(array):
        raise HMMError("there are no observations: X is empty")
    if min(given) < 1 or sum(given) != len(array):
        raise HMMError(
            f"lengths must be positive and add up to the {len(array)} rows of X; they add up "
            f"to {sum(given)}, and the least is {min(given)}"
        )
    return array, np.concatenate([[0], np.cumsum(given)]).astype(np.int64)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor) and value.ndim > 0


def _flat(lengths: Any) -> list[Any]:
    found: list[Any] = np.asarray(lengths).reshape(-1).tolist()
    return found


def _array(X: Any) -> npt.NDArray[Any]:
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu().numpy()
    found = np.asarray(X)
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2:
        raise ShapeError(
            f"X has shape {found.shape}; give (frames, features), several sequences one after "
            "the other with lengths=, or a list of sequences"
        )
    if found.dtype.kind not in "biuf":
        raise HMMError(f"X holds {found.dtype}; observations must be numbers")
    if found.dtype.kind == "f" and np.isinf(found).any():
        raise HMMError("X holds infinite values; a missing observation is NaN")
    return found
