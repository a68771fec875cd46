"""Maps that only rearrange axes: equality, transposes, flips, rotations, scales.

They are elements of a small group (axis permutations with flips, times an affine change of
scale), so chains and cycles of whole sites are resolved by composing group elements, without
looking at a coordinate.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from eadem.errors import ShapeError
from eadem.maps.base import LinearMap, Shape, numel
from eadem.maps.index import Index, IndexMap

__all__ = [
    "Affine",
    "Flip",
    "Permute",
    "ReverseComplement",
    "Rotate",
    "Same",
    "Scale",
    "Transpose",
    "View",
    "ViewMap",
    "Viewed",
]


@dataclass(frozen=True)
class View:
    """W = scale·flip(permute(θ)) + shift: an element of the group that views form.

    `perm[i]` is the axis of θ that becomes axis i of W, reversed where `flips[i]`.
    """

    perm: tuple[int, ...]
    flips: tuple[bool, ...]
    scale: float = 1.0
    shift: float = 0.0

    @staticmethod
    @functools.cache
    def identity(ndim: int) -> View:
        """The element that changes nothing."""
        return View(tuple(range(ndim)), (False,) * ndim)

    @property
    def reorders(self) -> bool:
        """Whether any axis moves or turns round."""
        return any(self.flips) or self.perm != tuple(range(len(self.perm)))

    @property
    def is_identity(self) -> bool:
        """Whether W is θ."""
        return self.scale == 1.0 and self.shift == 0.0 and not self.reorders

    def after(self, inner: View) -> View:
        """`self ∘ inner`: inner is applied first."""
        return View(
            tuple(inner.perm[p] for p in self.perm),
            tuple(f != inner.flips[p] for p, f in zip(self.perm, self.flips, strict=True)),
            self.scale * inner.scale,
            self.scale * inner.shift + self.shift,
        )

    def inverse(self) -> View:
        """The element that undoes this one. The scale must not be zero."""
        perm = [0] * len(self.perm)
        flips = [False] * len(self.perm)
        for i, p in enumerate(self.perm):
            perm[p], flips[p] = i, self.flips[i]
        shift = 0.0 - self.shift / self.scale  # never −0.0: equal views are written alike
        return View(tuple(perm), tuple(flips), 1 / self.scale, shift)

    def shape(self, in_shape: Sequence[int]) -> Shape:
        """The shape of W for θ of `in_shape`."""
        return tuple(in_shape[p] for p in self.perm)

    def reorder(self, theta: Tensor) -> Tensor:
        """The axes moved and turned, without scale and shift. A view of θ unless it flips."""
        perm = self.perm
        if perm != tuple(range(len(perm))):
            theta = theta.t() if perm == (1, 0) else theta.permute(perm)
        if any(self.flips):
            theta = theta.flip([i for i, f in enumerate(self.flips) if f])
        return theta

    def linear(self, theta: Tensor) -> Tensor:
        """Without the shift."""
        theta = self.reorder(theta)
        return theta if self.scale == 1.0 else theta * self.scale

    def expand(self, theta: Tensor) -> Tensor:
        """W from θ."""
        theta = self.linear(theta)
        return theta if self.shift == 0.0 else theta + self.shift

    def lift(self, values: Tensor) -> Tensor:
        """θ from W: the shift taken away, the scale divided out, the axes moved back."""
        if self.shift != 0.0:
            values = values - self.shift
        if self.scale != 1.0:
            values = values / self.scale
        back = View(self.perm, self.flips).inverse().reorder(values)
        return back.clone(memory_format=torch.contiguous_format)

    def index(self, in_shape: Sequence[int]) -> Index:
        """The same as coordinates."""
        size = numel(in_shape)
        position = torch.arange(size).reshape(tuple(in_shape))
        position = self.reorder(position).reshape(-1)
        scale = shift = None
        if self.scale != 1.0:
            scale = torch.full((size,), self.scale, dtype=torch.float64)
        if self.shift != 0.0:
            shift = torch.full((size,), self.shift, dtype=torch.float64)
        return Index(position, size, scale, shift)


@dataclass(frozen=True, eq=False)
class ViewMap(IndexMap):
    """A map that is a `View` at every shape. A subclass says which, in `_view`."""

    @abstractmethod
    def _view(self, ndim: int) -> View:
        """The element, for a site of `ndim` axes. Raises ShapeError for an absent axis."""

    def infer(self, out_shape: Shape) -> Shape:
        """θ's shape: the axes moved back."""
        return self._view(len(out_shape)).inverse().shape(out_shape)

    def _prepare(self) -> None:
        super()._prepare()
        object.__setattr__(self, "_element", self._view(len(self.out_shape)))

    def view(self) -> View:
        """The group element of the bound map."""
        self._shapes()
        element: View = self.__dict__["_element"]
        return element

    def ready(self) -> None:
        """A view has nothing to build; its coordinates are made only where they are asked."""

    def _index(self) -> Index:
        return self.view().index(self.in_shape)

    def forward(self, theta: Tensor) -> Tensor:
        """The axes moved, times the scale."""
        return self.view().linear(theta)

    def expand(self, theta: Tensor) -> Tensor:
        """The axes moved, times the scale, plus the shift."""
        return self.view().expand(theta)

    def adjoint(self, grad: Tensor) -> Tensor:
        """The axes moved back, times the scale."""
        view = self.view()
        back = View(view.perm, view.flips).inverse().reorder(grad)
        return back if view.scale == 1.0 else back * view.scale

    def lift(self, values: Tensor) -> Tensor:
        """The shift taken away, the scale divided out, the axes moved back."""
        return self.view().lift(values)

    @property
    def offset(self) -> Tensor | None:
        """The shift, or None."""
        shift = self.view().shift
        if shift == 0.0:
            return None
        return torch.full(self.out_shape, shift, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Viewed(ViewMap):
    """The map that an element already is, as a resolved plan produces it."""

    element: View

    def _view(self, ndim: int) -> View:
        if len(self.element.perm) != ndim:
            raise ShapeError(f"{self.element} has other axes than a site of {ndim}")
        return self.element


def axis(dim: int, ndim: int, what: object) -> int:
    """`dim` as a non-negative axis of `ndim`; raises ShapeError naming `what`."""
    if not -ndim <= dim < ndim:
        raise ShapeError(f"{what!r} needs axis {dim}, but the site has {ndim} axes")
    return dim % ndim


def _with(perm: Sequence[int], flips: Sequence[int] = ()) -> View:
    return View(tuple(perm), tuple(i in flips for i in range(len(perm))))


@dataclass(frozen=True, eq=False)
class Same(ViewMap):
    """W = θ.

    >>> Same().bind((2, 3)).in_shape
    (2, 3)
    """

    def _view(self, ndim: int) -> View:
        return View.identity(ndim)


@dataclass(frozen=True, eq=False)
class Transpose(ViewMap):
    """W is θ with two axes exchanged; the value is a view of θ, never a copy.

    >>> Transpose().bind((2, 3)).in_shape
    (3, 2)
    """

    dim0: int = -2
    dim1: int = -1

    def _view(self, ndim: int) -> View:
        perm = list(range(ndim))
        a, b = axis(self.dim0, ndim, self), axis(self.dim1, ndim, self)
        perm[a], perm[b] = perm[b], perm[a]
        return _with(perm)


@dataclass(frozen=True, eq=False)
class Permute(ViewMap):
    """Axis i of W is axis dims[i] of θ, as in `torch.permute`.

    >>> Permute((2, 0, 1)).bind((5, 3, 4)).in_shape
    (3, 4, 5)
    """

    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dims", tuple(self.dims))

    def _view(self, ndim: int) -> View:
        dims = [axis(d, ndim, self) for d in self.dims]
        if sorted(dims) != list(range(ndim)):
            raise ShapeError(f"{self!r} must name each of the site's {ndim} axes once")
        return _with(dims)


@dataclass(frozen=True, eq=False, init=False)
class Flip(ViewMap):
    """W is θ reversed along `dims`.

    >>> Flip(-1).bind((3,)).forward(torch.tensor([1.0, 2.0, 3.0]))
    tensor([3., 2., 1.])
    """

    dims: tuple[int, ...]

    def __init__(self, *dims: int) -> None:
        super().__post_init__()
        object.__setattr__(self, "dims", tuple(dims) or (-1,))

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """The map that has these `arguments()`."""
        return cls(*arguments["dims"])

    def _view(self, ndim: int) -> View:
        return _with(range(ndim), [axis(d, ndim, self) for d in self.dims])


@dataclass(frozen=True, eq=False)
class Rotate(ViewMap):
    """W is θ turned k times by 90° in the plane of `dims`, as `torch.rot90` does.

    >>> Rotate(1).bind((2, 3)).in_shape
    (3, 2)
    """

    k: int = 1
    dims: tuple[int, int] = (-2, -1)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "dims", tuple(self.dims))

    def _view(self, ndim: int) -> View:
        if len(self.dims) != 2:
            raise ShapeError(f"{self!r} turns a plane: `dims` needs two axes")
        a, b = (axis(d, ndim, self) for d in self.dims)
        if a == b:
            raise ShapeError(f"{self!r} turns a plane: its two axes must differ")
        perm = list(range(ndim))
        perm[a], perm[b] = b, a
        quarter = _with(perm, [a])  # torch.rot90: transpose, then flip the first axis
        view = View.identity(ndim)
        for _ in range(self.k % 4):
            view = quarter.after(view)
        return view


@dataclass(frozen=True, eq=False)
class ReverseComplement(ViewMap):
    """W reads the other strand of DNA: positions reversed, A exchanged with T, C with G.

    The channels A, C, G, T are along `channel_dim`, positions along `dim`: the axes of the
    weight of an `nn.Conv1d`, and of a batch of one-hot sequences. In that order of channels
    the complement is their reversal.

    >>> strand = torch.eye(4)[:, [0, 0, 1]]  # AAC
    >>> ReverseComplement().bind((4, 3)).forward(strand).argmax(0)  # GTT
    tensor([2, 3, 3])
    """

    channel_dim: int = -2
    dim: int = -1

    def infer(self, out_shape: Shape) -> Shape:
        """The site's shape, with four channels."""
        channels = axis(self.channel_dim, len(out_shape), self)
        if out_shape[channels] != 4:
            raise ShapeError(
                f"{self!r} exchanges the channels A, C, G, T along axis {self.channel_dim}; a "
                f"site of shape {out_shape} has {out_shape[channels]} there"
            )
        return super().infer(out_shape)

    def _view(self, ndim: int) -> View:
        channels, along = axis(self.channel_dim, ndim, self), axis(self.dim, ndim, self)
        if channels == along:
            raise ShapeError(f"{self!r}: channels and positions must be two axes")
        return _with(range(ndim), [channels, along])


@dataclass(frozen=True, eq=False)
class Scale(ViewMap):
    """W = c·θ, for a number c other than zero.

    >>> Scale(2.0).bind((2,)).adjoint(torch.ones(2))
    tensor([2., 2.])
    """

    c: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite_factor(self, self.c)
        object.__setattr__(self, "c", float(self.c))

    def _view(self, ndim: int) -> View:
        return View(tuple(range(ndim)), (False,) * ndim, self.c)


def _finite_factor(what: LinearMap, factor: float) -> None:
    if not (-float("inf") < float(factor) < float("inf")) or float(factor) == 0.0:
        raise ShapeError(
            f"{type(what).__name__} needs a finite factor other than 0, not {factor!r}; "
            "to hold a site constant use Fixed(value)"
        )


@dataclass(frozen=True, eq=False)
class Affine(ViewMap):
    """W = a·θ + b, for numbers a ≠ 0 and b: "this width is twice that one, plus one".

    >>> Affine(2.0, 1.0).bind((2,)).expand(torch.zeros(2))
    tensor([1., 1.])
    """

    a: float
    b: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite_factor(self, self.a)
        for f in fields(self):
            object.__setattr__(self, f.name, float(getattr(self, f.name)))

    def _view(self, ndim: int) -> View:
        return View(tuple(range(ndim)), (False,) * ndim, self.a, self.b)
