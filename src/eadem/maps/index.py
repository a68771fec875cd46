"""Index-and-scale maps: every site coordinate is one free value, times c, plus d.

`Index` is the arithmetic, on flat tensors; `IndexMap` is a map that is described by one.
Nothing here builds a matrix. Where most coordinates are constant (a locally connected
layer inside a dense one) the values are scattered into the constant instead of gathered,
so the cost is that of the free coordinates.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from eadem.errors import ShapeError
from eadem.maps.base import LinearMap, Shape, numel
from eadem.maps.constant import Constant, alike, outside

__all__ = ["Index", "IndexMap", "Indexed", "Reshape"]


class Index:
    """W[i] = scale[i]·θ[position[i]] + shift[i]; position −1 leaves shift[i] alone.

    `position` int64 (n,); `scale`, `shift` float64 (n,) or None (ones, zeros); `size` is the
    length of θ. A scale of zero is made a constant.
    """

    __slots__ = ("_forward", "position", "scale", "shift", "size")

    def __init__(
        self,
        position: Tensor,
        size: int,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        if position.dtype != torch.int64:
            position = position.to(torch.int64)
        if scale is not None:
            scale = scale.to(torch.float64)
            zero = scale == 0
            if bool(zero.any()):
                position = torch.where(zero, -1, position)
            if bool(((scale == 1) | (position < 0)).all()):
                scale = None
        if shift is not None:
            shift = shift.to(torch.float64)
            if not bool(shift.any()):
                shift = None
        self.position, self.scale, self.shift, self.size = position, scale, shift, size
        self._forward: _Plan | None = None

    def __len__(self) -> int:
        return self.position.numel()

    def __getstate__(self) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
        return (self.position, self.scale, self.shift, self.size)

    def __setstate__(self, state: tuple[Tensor, Tensor | None, Tensor | None, int]) -> None:
        self.position, self.scale, self.shift, self.size = state
        self._forward = None

    def scales(self) -> Tensor:
        """`scale` with ones written out; zero where there is no θ."""
        if self.scale is None:
            return (self.position >= 0).to(torch.float64)
        return torch.where(self.position >= 0, self.scale, 0.0)

    def shifts(self) -> Tensor:
        """`shift` with zeros written out."""
        return torch.zeros(len(self), dtype=torch.float64) if self.shift is None else self.shift

    def plan(self) -> _Plan:
        """The prepared arrays that `forward` and `adjoint` use."""
        if self._forward is None:
            with outside():
                self._forward = _Plan(self)
        return self._forward

    def gathered(self) -> Constant | None:
        """The positions, where W is θ at each of them and nothing else; otherwise None."""
        plan = self.plan()
        plain = plan.target is None and plan.scale is None and plan.shift is None
        return plan.source if plain and not plan.identity else None

    def forward(self, theta: Tensor) -> Tensor:
        """The linear part applied to flat θ: (size,) → (n,)."""
        return self.plan().forward(theta)

    def expand(self, theta: Tensor) -> Tensor:
        """With the shift: (size,) → (n,)."""
        return self.plan().expand(theta)

    def adjoint(self, grad: Tensor) -> Tensor:
        """The transpose of the linear part: (n,) → (size,)."""
        return self.plan().adjoint(grad)

    def gram_diagonal(self) -> Tensor:
        """Σ scale² over the coordinates of each free value, float64 (size,)."""
        if self.scale is None and self.plan().permutes:
            return torch.ones(1, dtype=torch.float64).expand(self.size)
        live = self._live()
        position = self.position if live is None else self.position[live]
        weights = None
        if self.scale is not None:
            weights = (self.scale if live is None else self.scale[live]) ** 2
        return torch.bincount(position, weights, minlength=self.size).to(torch.float64)

    def _live(self) -> Tensor | None:
        """The coordinates that depend on θ, or None where all do."""
        live = self.position >= 0
        return None if bool(live.all()) else live.nonzero().reshape(-1)

    def used(self) -> Tensor:
        """Which free values some coordinate uses, bool (size,)."""
        live = self._live()
        position = self.position if live is None else self.position[live]
        found = torch.zeros(self.size, dtype=torch.bool)
        found.numpy()[position.numpy()] = True  # several times torch's own scatter
        return found

    def lift(self, values: Tensor) -> Tensor:
        """The least-squares θ for `values` (n,); zero where a free value is not used.

        What one coordinate of each free value says, corrected by the least squares of what is
        left: values that come from a θ give it back exactly where the scale is a power of two.
        """
        wide = values.to(torch.promote_types(values.dtype, torch.float64))
        device = wide.device
        place = self._live()
        source = self.position if place is None else self.position[place]
        repeated = source.numel() > int(self.used().sum())
        if repeated:
            everywhere = torch.arange(len(self)) if place is None else place
            first = torch.full((self.size,), len(self))
            first.scatter_reduce_(0, source, everywhere, "amin")
            source = (first < len(self)).nonzero().reshape(-1)
            place = first[source]

        def at(whole: Tensor) -> Tensor:
            return whole if place is None else whole.index_select(0, place.to(whole.device))

        said = at(wide)
        if self.shift is not None:
            said = said - at(self.shift).to(device)
        if self.scale is not None:
            said = said / at(self.scale).to(device)
        source = source.to(device)
        theta = wide.new_zeros(self.size).index_copy_(0, source, said)
        if repeated:
            weight = self.gram_diagonal()
            weight = torch.where(weight > 0, weight, torch.inf).to(device)
            theta = theta + self.adjoint(wide - self.expand(theta)) / weight
        return theta.to(values.dtype)

    def after(self, inner: Index) -> Index:
        """The index of `self ∘ inner`: inner is applied to θ first."""
        position = inner.position
        live = self.position >= 0
        if not len(inner):
            return Index(self.position, inner.size, self.scale, self.shift)
        if bool(live.all()):
            where = self.position
            found = position.index_select(0, where)
        else:
            where = self.position.clamp(min=0)
            found = torch.where(live, position.index_select(0, where), -1)
        scale = self.scale
        if inner.scale is not None:
            picked = inner.scale.index_select(0, where)
            scale = picked if scale is None else scale * picked
        shift = self.shift
        if inner.shift is not None:
            moved = self.scales() * inner.shift.index_select(0, where)
            shift = moved if shift is None else shift + moved
        return Index(found, inner.size, scale, shift)


class _Plan:
    """An index made ready to run: gathered where dense, scattered where mostly constant."""

    __slots__ = (
        "identity",
        "length",
        "live",
        "permutes",
        "scale",
        "shift",
        "size",
        "source",
        "target",
    )

    def __init__(self, index: Index) -> None:
        live = index.position >= 0
        everywhere = bool(live.all())
        self.length, self.size = len(index), index.size
        self.target = None if everywhere else Constant(live.nonzero().reshape(-1))
        source = index.position if everywhere else index.position[live]
        self.identity = (
            everywhere
            and self.length == self.size
            and torch.equal(source, torch.arange(self.size))
        )
        #: every free value is used exactly once, so the adjoint need not accumulate
        self.permutes = everywhere and self.length == self.size and bool(index.used().all())
        self.live = source.numel()
        self.source = alike(source)
        if everywhere:
            index.position = self.source.master
        scale = index.scale
        self.scale = None if scale is None else Constant(scale if everywhere else scale[live])
        self.shift = None if index.shift is None else Constant(index.shift)

    def _values(self, theta: Tensor) -> Tensor:
        values = theta
        if not self.identity:
            values = theta.index_select(0, self.source.on(theta.device))
        if self.scale is not None:
            values = values * self.scale.on(theta.device, theta.dtype)
        return values

    def forward(self, theta: Tensor) -> Tensor:
        if self.target is None:
            return self._values(theta)
        empty = theta.new_zeros(self.length)
        if not self.live:
            return empty
        return empty.index_copy(0, self.target.on(theta.device), self._values(theta))

    def expand(self, theta: Tensor) -> Tensor:
        if self.shift is None:
            return self.forward(theta)
        shift = self.shift.on(theta.device, theta.dtype)
        if not self.live:
            return shift.clone()
        if self.target is None:
            return self._values(theta) + shift
        return shift.index_add(0, self.target.on(theta.device), self._values(theta))

    def adjoint(self, grad: Tensor) -> Tensor:
        if self.target is not None:
            grad = grad.index_select(0, self.target.on(grad.device))
        if self.scale is not None:
            grad = grad * self.scale.on(grad.device, grad.dtype)
        if self.identity:
            return grad
        if self.permutes:
            empty = grad.new_empty(self.size)
            return empty.index_copy(0, self.source.on(grad.device), grad)
        return grad.new_zeros(self.size).index_add(0, self.source.on(grad.device), grad)


@dataclass(frozen=True, eq=False)
class IndexMap(LinearMap):
    """A map given by coordinates: a subclass says `_index`; everything else follows."""

    @abstractmethod
    def _index(self) -> Index:
        """The coordinates of the bound map."""

    def index(self) -> Index:
        """The coordinates of the bound map, computed once."""
        found: Index | None = self.__dict__.get("_coordinates")
        if found is None:
            self._shapes()
            with outside():
                found = self._index()
            object.__setattr__(self, "_coordinates", found)
        return found

    def _prepare(self) -> None:
        object.__setattr__(self, "_coordinates", None)

    def ready(self) -> None:
        """Build the coordinates and the arrays that gather them."""
        self.index().plan()

    def forward(self, theta: Tensor) -> Tensor:
        """The gathered (and scaled) values, of `out_shape`."""
        return self.index().forward(theta.reshape(-1)).reshape(self.out_shape)

    def expand(self, theta: Tensor) -> Tensor:
        """The gathered values plus the offset, of `out_shape`."""
        return self.index().expand(theta.reshape(-1)).reshape(self.out_shape)

    def adjoint(self, grad: Tensor) -> Tensor:
        """Every free value's sum over its coordinates, of `in_shape`."""
        return self.index().adjoint(grad.reshape(-1)).reshape(self.in_shape)

    @property
    def offset(self) -> Tensor | None:
        """The constants, or None where all are zero."""
        shift = self.index().shift
        return None if shift is None else shift.reshape(self.out_shape)


@dataclass(frozen=True, eq=False)
class Indexed(IndexMap):
    """An index map from explicit arrays, as a resolved plan produces them.

    `position` (n,) into flat θ (−1: constant), `theta_shape`, `scale` and `shift` (n,) or None.
    """

    position: Tensor
    theta_shape: Shape
    scale: Tensor | None = None
    shift: Tensor | None = None

    @classmethod
    def of(cls, index: Index, out_shape: Shape, in_shape: Shape | None = None) -> Indexed:
        """A bound map with exactly these coordinates."""
        theta = (index.size,) if in_shape is None else in_shape
        bound = cls(index.position, theta, index.scale, index.shift).bind(out_shape)
        object.__setattr__(bound, "_coordinates", index)
        return bound

    def infer(self, out_shape: Shape) -> Shape:
        """`theta_shape`; the site must have as many values as `position`."""
        if numel(out_shape) != self.position.numel():
            raise ShapeError(
                f"an index of {self.position.numel()} coordinates cannot fill a site of shape "
                f"{out_shape}"
            )
        return tuple(self.theta_shape)

    def _index(self) -> Index:
        return Index(self.position.reshape(-1), numel(self.theta_shape), self.scale, self.shift)


@dataclass(frozen=True, eq=False)
class Reshape(IndexMap):
    """The same values in order, θ in `theta_shape`."""

    theta_shape: Shape

    def infer(self, out_shape: Shape) -> Shape:
        """`theta_shape`; it must hold as many values as the site."""
        if numel(out_shape) != numel(self.theta_shape):
            raise ShapeError(f"θ of shape {self.theta_shape} cannot fill a site of {out_shape}")
        return tuple(self.theta_shape)

    def _index(self) -> Index:
        size = numel(self.theta_shape)
        return Index(torch.arange(size), size)
