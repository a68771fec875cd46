"""Orbits as a map: a site whose entries a group permutes, up to signs.

>>> from eadem.groups import Cyclic
>>> C4 = Cyclic(4)
>>> turned = Orbit(C4, C4.grid((3, 3))).bind((3, 3))
>>> turned.forward(torch.tensor([1.0, 2.0, 3.0]))
tensor([[1., 2., 1.],
        [2., 3., 2.],
        [1., 2., 1.]])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from eadem.errors import GroupError, NoEquivariantMap, ShapeError
from eadem.groups.group import Group
from eadem.groups.orbits import Places, components
from eadem.groups.representation import Representation
from eadem.groups.signed import Signed
from eadem.groups.written import group_from, representation_from
from eadem.maps.base import Shape, numel
from eadem.maps.index import Index, IndexMap

__all__ = ["Orbit", "signed_index"]


@dataclass(frozen=True, eq=False, repr=False)
class Orbit(IndexMap):
    """A site that its group leaves as it is: one free value for each orbit of its entries.

    `rep` acts on the site's entries, flat, by signed permutations; θ is one value for each
    orbit, in the order of their first entries. An entry that some element takes to its own
    negative is zero. Raises GroupError for a representation of another group or one that is
    not exact, and NoEquivariantMap where every entry is zero.
    """

    group: Group
    rep: Representation

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.group, Group) or not isinstance(self.rep, Representation):
            raise GroupError(
                f"Orbit takes a group and a representation of it, not {self.group!r:.60} and "
                f"{self.rep!r:.60}"
            )
        if self.rep.group != self.group:
            raise GroupError(f"{self.rep} is no representation of {self.group}")
        object.__setattr__(self, "_found", [])  # shared with the bound map

    def __repr__(self) -> str:
        return f"Orbit({self.group!r}, {self.rep!r})"

    def arguments(self) -> dict[str, Any]:
        """The group and the representation as plain data."""
        return {"group": self.group.spec, "rep": self.rep.form}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """The map that has these `arguments()`."""
        group = group_from(arguments["group"])
        return cls(group, representation_from(group, arguments["rep"]))

    def _orbits(self) -> tuple[Places, NDArray[np.int8] | None, int]:
        kept: list[tuple[Places, NDArray[np.int8] | None, int]] = self.__dict__["_found"]
        if not kept:
            signed = [i for i in self.rep.images if isinstance(i, Signed)]
            if len(signed) < len(self.rep.images):
                raise GroupError(
                    f"{self.rep} is not by signed permutations, so it has no orbits of "
                    "entries; use Equivariant, which finds a basis"
                )
            kept.append(components(signed))
        return kept[0]

    def infer(self, out_shape: Shape) -> Shape:
        """(number of orbits,)."""
        if numel(out_shape) != self.rep.size:
            raise ShapeError(
                f"{self!r} acts on {self.rep.size} entries; a site of shape {out_shape} has "
                f"{numel(out_shape)}"
            )
        count = self._orbits()[2]
        if count == 0:
            raise NoEquivariantMap(
                f"{self!r} takes every entry to its own negative: only zero is invariant. Use "
                "other signs, or Fixed(0.0) where zero is meant"
            )
        return (count,)

    def _index(self) -> Index:
        orbit, sign, count = self._orbits()
        return signed_index(orbit, sign, count)


def signed_index(orbit: Places, sign: NDArray[np.int8] | None, count: int) -> Index:
    """Orbits and signs as the coordinates of a map."""
    scale = None if sign is None else torch.from_numpy(sign.astype(np.float64))
    return Index(torch.from_numpy(orbit), count, scale)
