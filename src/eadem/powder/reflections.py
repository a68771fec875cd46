"""Which reflections a space group has down to a spacing, and how often each occurs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eadem.errors import TooLarge
from eadem.powder.symmetry import SpaceGroup, metric

__all__ = ["LIMIT", "reflections"]

#: Indices that are looked at, before symmetry.
LIMIT = 2**24

Integers = NDArray[np.int64]


def reflections(
    group: SpaceGroup, cell: Sequence[float], dmin: float
) -> tuple[Integers, Integers]:
    """One index (n, 3) of each set that the Laue class makes equal, with d ≥ `dmin` in Å, by
    falling d, without systematic absences; and the multiplicities (n,), h and −h together.

    Raises TooLarge where the cell has more than LIMIT indices down to `dmin`.

    >>> hkl, multiplicity = reflections(SpaceGroup.of("F m -3 m"), [4.0] * 3 + [90.0] * 3, 1.4)
    >>> hkl.tolist(), multiplicity.tolist()
    ([[1, 1, 1], [2, 0, 0], [2, 2, 0]], [8, 6, 12])
    """
    lengths = np.asarray(cell[:3], dtype=np.float64)
    most = np.floor(lengths / dmin).astype(np.int64) + 1
    if np.prod(2.0 * most + 1) > LIMIT:
        raise TooLarge(
            f"a cell of {', '.join(f'{v:g}' for v in lengths)} Å has more than {LIMIT} indices "
            f"down to d = {dmin:g} Å; shorten the range of the pattern"
        )
    axes = [np.arange(-m, m + 1) for m in most]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    inverse = np.linalg.inv(metric(cell))
    inverse_d2 = np.einsum("hi,ij,hj->h", hkl, inverse, hkl)
    near = (inverse_d2 > 0) & (inverse_d2 <= 1 / dmin**2)
    hkl, inverse_d2 = hkl[near], inverse_d2[near]
    keys = np.stack([_key(hkl @ np.array(r) * s) for r in group.rotations for s in (1, -1)], 1)
    mine = _key(hkl)
    first = (mine == keys.max(1)) & ~_absent(group, hkl)
    chosen, keys = hkl[first], np.sort(keys[first], 1)
    multiplicity = 1 + (np.diff(keys, axis=1) != 0).sum(1)
    order = np.lexsort((-mine[first], inverse_d2[first].round(10)))
    return chosen[order], multiplicity[order]


def _key(hkl: Integers) -> Integers:
    """One number for each index, rising with h, then k, then l."""
    found: Integers = ((hkl[..., 0] << 40) + (hkl[..., 1] << 20)) + hkl[..., 2]
    return found


def _absent(group: SpaceGroup, hkl: Integers) -> NDArray[np.bool_]:
    """Where an operation keeps h and turns its phase, so that F is zero."""
    found = np.zeros(len(hkl), dtype=bool)
    for centre in group.centring:
        found |= _broken(hkl, centre)
    for op in group.operations:
        kept = (hkl @ np.array(op.rotation) == hkl).all(1)
        for centre in group.centring:
            shift = [t + c for t, c in zip(op.shift, centre, strict=True)]
            found |= kept & _broken(hkl, shift)
    return found


def _broken(hkl: Integers, shift: Sequence[object]) -> NDArray[np.bool_]:
    """Where h·t is no integer."""
    turns = hkl @ np.array([float(t) for t in shift])  # type: ignore[arg-type]
    away: NDArray[np.bool_] = np.abs(turns - np.round(turns)) > 1e-6
    return away
