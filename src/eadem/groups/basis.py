"""Equivariant weights block by block: representations as copies of smaller ones.

A representation is a sum of copies of its parts, and so is what lies between two of them: a
pair of parts has one basis, or one set of orbits, which every pair of their copies uses. 32
regular features to 32 take no more to find than one to one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eadem.errors import NoEquivariantMap, ShapeError
from eadem.groups.forms import size_of
from eadem.groups.group import Group, same
from eadem.groups.invariants import BASIS, invariant_basis, nothing, trusted
from eadem.groups.orbit import signed_index
from eadem.groups.orbits import components
from eadem.groups.representation import Representation
from eadem.groups.signed import Signed
from eadem.maps.base import LinearMap, Shape
from eadem.maps.constant import Constant
from eadem.maps.index import Index

__all__ = ["Block", "Blockwise", "bases", "blocks", "exact_index"]

#: Entries of a basis above which irreducible parts are looked for instead.
DENSE = 2**18
#: Forms that are m copies, with m as their first argument.
_MULTIPLES = ("trivial", "regular", "points", "sign", "quotient", "vector")


@dataclass(frozen=True)
class Block:
    """`copies` of a representation, beginning at place `start`."""

    rep: Representation
    copies: int
    start: int

    @property
    def stop(self) -> int:
        """The place after its last."""
        return self.start + self.copies * self.rep.size


def blocks(rep: Representation) -> list[Block]:
    """A representation as copies of parts, one after the other."""
    found: list[Block] = []
    for form, copies in _parts(rep.group, rep.form):
        start = found[-1].stop if found else 0
        if found and same(found[-1].rep.form, form):
            last = found.pop()
            found.append(Block(last.rep, last.copies + copies, last.start))
        else:
            found.append(Block(Representation(rep.group, form), copies, start))
    return found


def _parts(group: Group, form: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
    kind, *args = form
    if size_of(group, form) == 0:
        return
    if kind in _MULTIPLES:
        yield (kind, 1, *args[1:]), args[0]
    elif kind == "sum":
        yield from _parts(group, args[0])
        yield from _parts(group, args[1])
    elif kind == "copies":
        inner = list(_parts(group, args[1]))
        if len(inner) == 1:
            yield inner[0][0], inner[0][1] * args[0]
        else:
            for _ in range(args[0]):
                yield from inner
    else:
        yield form, 1


def _pairs(rows: Representation, columns: Representation) -> list[tuple[Block, Block]]:
    return [(a, b) for a in blocks(rows) for b in blocks(columns)]


def exact_index(rows: Representation, columns: Representation, pixels: Representation) -> Index:
    """The orbits of (out, in, pixels), numbered by first entry. Raises NoEquivariantMap."""
    shape = (rows.size, columns.size, pixels.size)
    orbit = np.empty(shape, dtype=np.int64)
    first = np.zeros(shape, dtype=bool)
    sign = np.ones(shape, dtype=np.int8)
    plain, total = True, 0
    for a, b in _pairs(rows, columns):
        found, signs, count = _orbits(a.rep, b.rep, pixels)
        local = found.reshape(1, a.rep.size, 1, b.rep.size, pixels.size)
        copy = (np.arange(a.copies)[:, None] * b.copies + np.arange(b.copies)) * count
        moved = local + copy[:, None, :, None, None] + total
        here = np.s_[a.start : a.stop, b.start : b.stop]
        side = (a.stop - a.start, b.stop - b.start, pixels.size)
        orbit[here] = np.where(local < 0, -1, moved).reshape(side)
        leads = _leads(found, count).reshape(local.shape)
        first[here] = np.broadcast_to(leads, moved.shape).reshape(side)
        if signs is not None:
            plain = False
            sign[here] = np.broadcast_to(signs.reshape(local.shape), moved.shape).reshape(side)
        total += count * a.copies * b.copies
    if total == 0:
        raise nothing(rows, columns)
    flat = orbit.reshape(-1)
    number = np.empty(total + 1, dtype=np.int64)
    number[flat[first.reshape(-1)]] = np.arange(total)
    number[-1] = -1  # where −1, zero, looks
    return signed_index(number[flat], None if plain else sign.reshape(-1), total)


def _orbits(*reps: Representation) -> tuple[NDArray[np.int64], NDArray[np.int8] | None, int]:
    images = zip(*(r.images for r in reps), strict=True)
    return components(
        [Signed.product([i for i in each if isinstance(i, Signed)]) for each in images]
    )


def _leads(orbit: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Which entries are the first of their orbit."""
    live = np.flatnonzero(orbit >= 0)
    place = np.empty(count, dtype=np.int64)
    place[orbit[live[::-1]]] = live[::-1]
    first = np.zeros(len(orbit), dtype=bool)
    first[place] = True
    return first


def bases(
    rows: Representation,
    columns: Representation,
    pixels: Representation,
    stored: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """The canonical basis (a·b·pixels, dimension) of each pair of parts, float64.

    `stored` bases are verified and used as they are. Raises NoEquivariantMap where all are
    empty, TooLarge, ShapeError for stored ones that do not fit.
    """
    pairs = _pairs(rows, columns)
    if stored is not None:
        if len(stored) != len(pairs):
            raise ShapeError(f"{len(stored)} bases are stored where {len(pairs)} are needed")
        for (a, b), basis in zip(pairs, stored, strict=True):
            size = a.rep.size * b.rep.size * pixels.size
            if basis.ndim != 2 or len(basis) != size or basis.numel() > BASIS:
                raise ShapeError(
                    f"a stored basis has shape {tuple(basis.shape)}, not ({size}, k)"
                )
            trusted((a.rep, b.rep, pixels), basis)
        return stored
    found = []
    for a, b in pairs:
        parts = (a.rep, b.rep, pixels)
        try:
            found.append(invariant_basis(parts))
        except NoEquivariantMap:
            size = a.rep.size * b.rep.size * pixels.size
            found.append(torch.zeros(size, 0, dtype=torch.float64))
    if not any(f.shape[1] for f in found):
        raise nothing(rows, columns)
    return tuple(found)


def by_parts(rows: Representation, columns: Representation, pixels: Representation) -> bool:
    """Whether a basis of some pair of parts would be large, and irreducible parts will do."""
    if pixels.size > 1 or rows.group.algebra or not (rows.orthogonal and columns.orthogonal):
        return False
    order = rows.group.order
    return any(
        (a.rep.size * b.rep.size) ** 2 > DENSE * order
        for a, b in _pairs(rows, columns)
        if not (a.rep.exact and b.rep.exact)
    )


@dataclass(frozen=True, eq=False, repr=False)
class Blockwise(LinearMap):
    """W from coefficients (copies out, copies in, dimension) of each pair of parts, flat."""

    rows: Representation
    columns: Representation
    found: tuple[Tensor, ...]

    def _prepare(self) -> None:
        a, b = blocks(self.rows), blocks(self.columns)
        constants = [Constant(f.contiguous()) for f in self.found]
        object.__setattr__(self, "_grid", (a, b))
        object.__setattr__(self, "_bases", constants)

    def infer(self, out_shape: Shape) -> Shape:
        """(sum of copies out × copies in × dimension,)."""
        pairs = zip(_pairs(self.rows, self.columns), self.found, strict=True)
        return (sum(a.copies * b.copies * f.shape[1] for (a, b), f in pairs),)

    def _each(self) -> Iterator[tuple[Block, Block, Constant]]:
        a, b = self.__dict__["_grid"]
        constants = iter(self.__dict__["_bases"])
        return ((x, y, next(constants)) for x in a for y in b)

    def forward(self, theta: Tensor) -> Tensor:
        """The blocks, put together."""
        _, b = self.__dict__["_grid"]
        made, start = [], 0
        for x, y, constant in self._each():
            basis = constant.on(theta.device, theta.dtype)
            size = x.copies * y.copies * basis.shape[1]
            part = theta[start : start + size].reshape(x.copies * y.copies, -1) @ basis.T
            pixels = len(constant.master) // (x.rep.size * y.rep.size)
            part = part.reshape(x.copies, y.copies, x.rep.size, y.rep.size, pixels)
            side = (x.stop - x.start, y.stop - y.start, part.shape[-1])
            made.append(part.transpose(1, 2).reshape(side))
            start += size
        wide = [torch.cat(made[i : i + len(b)], 1) for i in range(0, len(made), len(b))]
        return torch.cat(wide).reshape(self.out_shape)

    def adjoint(self, grad: Tensor) -> Tensor:
        """Every block against its basis."""
        whole = grad.reshape(self.rows.size, self.columns.size, -1)
        found = []
        for x, y, constant in self._each():
            basis = constant.on(grad.device, grad.dtype)
            part = whole[x.start : x.stop, y.start : y.stop]
            part = part.reshape(x.copies, x.rep.size, y.copies, y.rep.size, -1).transpose(1, 2)
            found.append((part.reshape(x.copies * y.copies, -1) @ basis).reshape(-1))
        return torch.cat(found)

    def gram_diagonal(self) -> Tensor:
        """Ones: the basis is orthonormal."""
        return torch.ones(self.in_shape, dtype=torch.float64)
