"""Filters turned by angles that pixels do not know: interpolated between them.

A turned filter is read off its base filter by multilinear interpolation about the centre,
zero outside. That is no group action, only nearly one: the map's `error` says how nearly.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eadem.errors import GroupError
from eadem.groups.group import Matrix
from eadem.groups.representation import Representation
from eadem.groups.signed import Signed
from eadem.maps.base import LinearMap, Shape, numel
from eadem.maps.constant import Constant

__all__ = ["Interpolated", "is_interpolated", "turned"]

Floats = NDArray[np.float64]


def is_interpolated(pixels: Representation) -> bool:
    """Whether the group turns these pixels by an angle that is no multiple of 90°.

    Raises ShapeError where the grid's sides do not allow an exact turn.
    """
    group, (_, shape, form) = pixels.group, pixels.form
    space = Representation(group, ("space", len(shape)) if form is None else form)
    if max(shape) > 1 and any(
        np.abs(m - np.round(m)).max() > 1e-9
        for m in (i.matrix() if isinstance(i, Signed) else i for i in space.images)
    ):
        return True
    _ = pixels.images
    return False


def turned(shape: Shape, matrix: Matrix) -> Floats:
    """The matrix (pixels, pixels) that turns an image of `shape` by `matrix`: (T f)(p) is
    f(matrix⁻¹ p), interpolated linearly along each axis, about the centre.
    """
    size = numel(shape)
    centre = (np.array(shape) - 1) / 2
    place = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    source = np.linalg.inv(matrix) @ (place.reshape(len(shape), -1) - centre[:, None])
    source = source + centre[:, None]
    near = np.round(source)
    source = np.where(np.abs(source - near) < 1e-9, near, source)
    low = np.floor(source)
    found = np.zeros((size, size))
    for corner in itertools.product((0, 1), repeat=len(shape)):
        at = (low + np.array(corner)[:, None]).astype(np.int64)
        weight = np.where(np.array(corner)[:, None], source - low, 1 - source + low).prod(0)
        inside = ((at >= 0) & (at < np.array(shape)[:, None])).all(0)
        flat = np.ravel_multi_index(tuple(at[:, inside]), shape)
        found[np.flatnonzero(inside), flat] += weight[inside]
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Interpolated(LinearMap):
    """W[(m, g), ρ_in(g) j] is θ[m, j] turned by g: the filters at the identity are free."""

    rows: Representation
    columns: Representation
    space: Representation | None

    def infer(self, out_shape: Shape) -> Shape:
        """(rows / |G|, in, *kernel)."""
        group = self.rows.group
        if self.rows.form[0] != "regular" or not self.columns.exact:
            raise GroupError(
                f"{group} turns this kernel by angles that are no multiple of 90°, where Eadem "
                f"interpolates filters onto out_rep={group}.regular(m) alone, from an in_rep "
                "of signed permutations; use those, or a group such as Cyclic(4)"
            )
        return (out_shape[0] // group.order, *out_shape[1:])

    def _prepare(self) -> None:
        group, shape = self.rows.group, self.out_shape[2:]
        space = group.space(len(shape)) if self.space is None else self.space
        turns, place, sign = [], [], []
        for word, column in zip(group.words(), self.columns.elements, strict=True):
            turns.append(turned(shape, space.matrix(word)))
            assert isinstance(column, Signed)
            back = column.inverse()
            place.append(back.place)
            sign.append(back.signs())
        stacked = np.stack(turns)  # (g, to, from)
        object.__setattr__(self, "_turns", stacked)
        object.__setattr__(
            self, "_all", Constant(torch.from_numpy(stacked.reshape(-1, numel(shape))))
        )
        index = torch.from_numpy(np.stack(place)).reshape(-1)
        signs = torch.from_numpy(np.stack(sign)).to(torch.float64)
        object.__setattr__(self, "_place", Constant(index))
        object.__setattr__(self, "_sign", None if bool((signs > 0).all()) else Constant(signs))
        gram = np.einsum("gts,gtu->su", stacked, stacked)
        object.__setattr__(self, "_inverse", Constant(torch.from_numpy(np.linalg.inv(gram))))
        object.__setattr__(self, "_space", space)

    def _sides(self) -> tuple[int, int, int, int]:
        order = self.rows.group.order
        return self.in_shape[0], order, self.in_shape[1], numel(self.in_shape[2:])

    def forward(self, theta: Tensor) -> Tensor:
        """The filters, turned by every element; the channels that it moves, moved."""
        m, g, n, p = self._sides()
        turns: Constant = self.__dict__["_all"]
        made = theta.reshape(m * n, p) @ turns.on(theta.device, theta.dtype).T
        made = made.reshape(m, n, g, p).transpose(1, 2)  # (m, g, j, pixels)
        place: Constant = self.__dict__["_place"]
        at = place.on(theta.device).reshape(1, g, n, 1).expand(m, g, n, p)
        moved = torch.gather(made, 2, at)
        sign: Constant | None = self.__dict__["_sign"]
        if sign is not None:
            moved = moved * sign.on(theta.device, theta.dtype)[None, :, :, None]
        return moved.reshape(self.out_shape)

    def adjoint(self, grad: Tensor) -> Tensor:
        """Every filter turned back and summed."""
        m, g, n, p = self._sides()
        pulled = grad.reshape(m, g, n, p)
        sign: Constant | None = self.__dict__["_sign"]
        if sign is not None:
            pulled = pulled * sign.on(grad.device, grad.dtype)[None, :, :, None]
        place: Constant = self.__dict__["_place"]
        at = place.on(grad.device).reshape(1, g, n, 1).expand(m, g, n, p)
        back = torch.zeros_like(pulled).scatter(2, at, pulled)
        turns: Constant = self.__dict__["_all"]
        flat = back.transpose(1, 2).reshape(m * n, g * p)
        return (flat @ turns.on(grad.device, grad.dtype)).reshape(self.in_shape)

    def lift(self, values: Tensor) -> Tensor:
        """The least squares over all turns: one small matrix, the same for every filter."""
        wide = values.to(torch.promote_types(values.dtype, torch.float64))
        inverse: Constant = self.__dict__["_inverse"]
        pulled = self.adjoint(wide).reshape(-1, numel(self.in_shape[2:]))
        theta = pulled @ inverse.on(wide.device, wide.dtype)
        return theta.reshape(self.in_shape).to(values.dtype)

    @property
    def rank(self) -> int:
        """All of θ: the identity turns nothing."""
        return numel(self.in_shape)

    @property
    def error(self) -> float:
        """The largest, over generators s, of ‖T_s T_g − T_sg‖ / ‖T_g‖, over all g together."""
        turns: Floats = self.__dict__["_turns"]
        group = self.rows.group
        whole = float((turns**2).sum())
        worst: float = 0.0
        for row, s in zip(group.table, range(len(group.generators)), strict=True):
            step = turns[group.table[s][0]]
            worst = max(worst, float(((step @ turns - turns[row]) ** 2).sum()) / whole)
        return math.sqrt(worst)
