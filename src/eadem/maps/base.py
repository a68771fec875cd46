"""What a map is: φ takes the free values θ of a tie to the value at one site.

A map is declared without a shape (`Transpose()`) and becomes usable once bound to the
shape of a site (`Transpose().bind((3, 8))`), which fixes the shape of θ. A linear map
is W = Aθ + b: `forward` is A, `offset` is b, `expand` is both. Its `adjoint` is Aᵀ, which
carries gradients, counts and Jacobians back to θ.

A new linear map is a frozen dataclass with a `forward`:

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, eq=False)
... class Reverse(LinearMap):
...     def forward(self, theta):
...         return theta.flip(-1)
>>> Reverse().bind((3,)).adjoint(torch.tensor([1.0, 2.0, 3.0]))
tensor([3., 2., 1.])
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from eadem.errors import ShapeError, TooLarge
from eadem.maps.constant import outside

if TYPE_CHECKING:
    from eadem.maps.index import Index
    from eadem.maps.view import View

__all__ = [
    "DENSE_LIMIT",
    "Composed",
    "LinearComposed",
    "LinearMap",
    "Map",
    "Shape",
    "numel",
]

Shape = tuple[int, ...]

#: Largest side of a matrix that Eadem builds on its own (a 4096 × 4096 float64 is 128 MB).
DENSE_LIMIT = 4096

#: Singular values below this fraction of the largest count as zero, in `rank` and in `lift`.
RANK_RTOL = 1e-10


def numel(shape: Sequence[int]) -> int:
    """Number of values in a tensor of `shape`."""
    return math.prod(shape)


@dataclass(frozen=True, eq=False)
class Map:
    """Any map from θ to a site's value, linear or not. Subclasses are frozen dataclasses.

    Dataclass fields are the map's arguments; they are what a record stores. `in_shape`
    (of θ) and `out_shape` (of the site) exist once the map is bound. A map never changes, so
    a copy of a model shares its maps.
    """

    #: Whether W[i] is a non-linear function of θ[i] alone.
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "_bound", None)

    def infer(self, out_shape: Shape) -> Shape:
        """The shape of θ for a site of `out_shape`. Raises ShapeError if there is none."""
        return out_shape

    def bind(self, out_shape: Sequence[int], in_shape: Sequence[int] | None = None) -> Self:
        """This map for a site of `out_shape`; a bound map has `in_shape` and `out_shape`.

        `in_shape` asks for that shape of θ. Raises ShapeError where the map cannot give it.
        """
        out = tuple(int(n) for n in out_shape)
        asked = None if in_shape is None else tuple(int(n) for n in in_shape)
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        object.__setattr__(bound, "_bound", (self._join(out, asked), out))
        with outside():
            bound._prepare()
        return bound

    def _join(self, out_shape: Shape, in_shape: Shape | None) -> Shape:
        """The shape of θ for `out_shape`, where `in_shape` is asked for. Raises ShapeError."""
        inferred = tuple(self.infer(out_shape))
        if in_shape is not None and in_shape != inferred:
            raise ShapeError(
                f"{self!r} takes θ of shape {inferred} to a site of shape {out_shape}, but the "
                f"tie's θ has shape {in_shape}; use a map that joins these shapes"
            )
        return inferred

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a map is immutable; copies of a model share it

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.arguments(), self.__dict__.get("_bound")))

    def ready(self) -> None:
        """Build every constant that is built on first use, so that no trace has to."""
        for value in self.arguments().values():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Map):
                    part.ready()

    def _prepare(self) -> None:
        """Called once on a newly bound map: the place to build constants."""

    @property
    def in_shape(self) -> Shape:
        """Shape of θ."""
        return self._shapes()[0]

    @property
    def out_shape(self) -> Shape:
        """Shape of the site."""
        return self._shapes()[1]

    @property
    def bound(self) -> bool:
        """Whether `bind` has been called."""
        return self.__dict__.get("_bound") is not None

    def _shapes(self) -> tuple[Shape, Shape]:
        found: tuple[Shape, Shape] | None = self.__dict__.get("_bound")
        if found is None:
            raise ShapeError(f"{self!r} is not bound to a shape; call .bind(out_shape) first")
        return found

    @property
    def linear(self) -> bool:
        """Whether W = Aθ + b for a constant A and b."""
        return isinstance(self, LinearMap)

    @abstractmethod
    def expand(self, theta: Tensor) -> Tensor:
        """The site's value, of `out_shape`, from θ of `in_shape`."""

    @abstractmethod
    def linearize(self, theta: Tensor) -> LinearMap:
        """The linear map at θ: the Jacobian of `expand`, as a bound map."""

    @abstractmethod
    def lift(self, values: Tensor) -> Tensor:
        """θ whose expansion is nearest to `values` (least squares where the map is linear)."""

    def general(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """θ, or for a map whose rank depends on it, a drawn one: almost everywhere the rank is
        the same.
        """
        return theta

    def __matmul__(self, inner: Map) -> Map:
        """`f @ g` applies g to θ, then f."""
        if isinstance(self, LinearMap) and isinstance(inner, LinearMap):
            return LinearComposed(self, inner)
        return Composed(self, inner)

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments, by name: what a record stores."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> Self:
        """The map that has these `arguments()`."""
        return cls(**arguments)


def _rebuild(
    kind: type[Map], arguments: dict[str, Any], bound: tuple[Shape, Shape] | None
) -> Map:
    """A map from what `__reduce__` gave: its constants are made again, not stored."""
    found = kind.from_arguments(arguments)
    if bound is not None:
        object.__setattr__(found, "_bound", bound)
        with outside():
            found._prepare()
    return found


@dataclass(frozen=True, eq=False)
class LinearMap(Map):
    """W = Aθ + b. A subclass gives `forward`, and the rest where it can do better.

    Required: `forward(theta)`. With defaults: `infer` (θ has the site's shape), `adjoint`
    (from `forward`, by torch.func.vjp), `offset` (none), `gram`, `lift`, `rank`.
    """

    @abstractmethod
    def forward(self, theta: Tensor) -> Tensor:
        """Aθ, of `out_shape`."""

    @property
    def offset(self) -> Tensor | None:
        """b, a float64 CPU tensor of `out_shape`, or None where it is zero."""
        return None

    def expand(self, theta: Tensor) -> Tensor:
        """Aθ + b, of `out_shape`."""
        value = self.forward(theta)
        offset = self.offset
        return value if offset is None else value + offset.to(value)

    def adjoint(self, grad: Tensor) -> Tensor:
        """Aᵀ·grad, of `in_shape`, for `grad` of `out_shape`."""
        zero = grad.new_zeros(self.in_shape)
        pull: Any = torch.func.vjp(self.forward, zero)[1]
        pulled: Tensor = pull(grad)[0]
        return pulled

    def gram(self) -> Tensor:
        """AᵀA, float64, of shape (numel(in_shape), numel(in_shape)).

        Raises TooLarge above DENSE_LIMIT; `gram_diagonal` serves index maps of any size.
        """
        diagonal = self.gram_diagonal()
        size = numel(self.in_shape)
        if size > DENSE_LIMIT:
            raise TooLarge(
                f"the Gram matrix of {self!r} has {size}² entries; Eadem builds at most "
                f"{DENSE_LIMIT}²"
            )
        if diagonal is not None:
            return torch.diag(diagonal)
        matrix = self.dense()
        return matrix.T @ matrix

    def gram_diagonal(self) -> Tensor | None:
        """The diagonal of AᵀA, flat float64, where AᵀA is known to be diagonal; else None."""
        view = self.view()
        if view is not None:  # no coordinates for a whole site: they take more than its values
            one = torch.full((1,), view.scale**2, dtype=torch.float64)
            return one.expand(numel(self.in_shape))
        index = self.index()
        return None if index is None else index.gram_diagonal()

    def lift(self, values: Tensor) -> Tensor:
        """The θ of least ‖Aθ + b − values‖, of least norm where it is not unique."""
        view = self.view()
        if view is not None:
            return view.lift(values)
        index = self.index()
        if index is not None:
            return index.lift(values.reshape(-1)).reshape(self.in_shape)
        wide = values.to(torch.promote_types(values.dtype, torch.float64))
        offset = self.offset
        target = wide if offset is None else wide - offset.to(wide)
        diagonal = self.gram_diagonal()
        if diagonal is not None:
            weight = diagonal.to(wide.device).reshape(self.in_shape)
            pulled = self.adjoint(target) / torch.where(weight > 0, weight, torch.inf)
            return pulled.to(values.dtype)
        return _least_norm(self, target).to(values)

    @property
    def rank(self) -> int:
        """The dimension of range(A). Numerical, to RANK_RTOL, where it is not derived."""
        if self.view() is not None:
            return numel(self.in_shape)
        index = self.index()
        if index is not None:
            return int(index.used().sum())
        diagonal = self.gram_diagonal()
        if diagonal is not None:
            return int((diagonal > 0).sum())
        return int(torch.linalg.matrix_rank(self.dense(), rtol=RANK_RTOL))

    def dense(self) -> Tensor:
        """A as a float64 matrix (numel(out_shape), numel(in_shape)). Raises TooLarge."""
        columns, rows = numel(self.in_shape), numel(self.out_shape)
        if columns * rows > DENSE_LIMIT**2:
            raise TooLarge(
                f"{self!r} as a matrix is {rows} × {columns}; Eadem builds at most "
                f"{DENSE_LIMIT}² entries"
            )
        if columns == 0:
            return torch.zeros(rows, 0, dtype=torch.float64)
        with outside():
            eye = torch.eye(columns, dtype=torch.float64)
            images = [self.forward(row.reshape(self.in_shape)).reshape(-1) for row in eye]
            return torch.stack(images, dim=1)

    def linearize(self, theta: Tensor) -> LinearMap:
        """The map itself: it is linear everywhere."""
        return self

    def index(self) -> Index | None:
        """This map as coordinates W[i] = c·θ[j] + d, or None where it is not of that kind."""
        return None

    def view(self) -> View | None:
        """This map as an axis permutation with flips and a scale, or None."""
        return None


def _least_norm(phi: LinearMap, target: Tensor) -> Tensor:
    """θ of least ‖Aθ − target‖; dense if small, else LSMR (Fong & Saunders 2011)."""
    rows, columns = numel(phi.out_shape), numel(phi.in_shape)
    flat = target.detach().to(torch.float64).cpu().reshape(-1)
    if rows * columns <= DENSE_LIMIT**2:
        theta = torch.linalg.pinv(phi.dense(), rtol=RANK_RTOL) @ flat
    else:

        def matvec(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            theta = torch.as_tensor(v, dtype=torch.float64).reshape(phi.in_shape)
            return phi.forward(theta).reshape(-1).numpy()

        def rmatvec(v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            grad = torch.as_tensor(v, dtype=torch.float64).reshape(phi.out_shape)
            return phi.adjoint(grad).reshape(-1).numpy()

        operator = LinearOperator((rows, columns), matvec=matvec, rmatvec=rmatvec, dtype=float)
        found = lsmr(operator, flat.numpy(), atol=1e-14, btol=1e-14, maxiter=10 * columns)
        theta = torch.as_tensor(found[0])
    lifted: Tensor = theta.reshape(phi.in_shape).to(target)
    return lifted


@dataclass(frozen=True, eq=False)
class Composed(Map):
    """outer ∘ inner: θ goes through `inner`, its value through `outer`."""

    outer: Map
    inner: Map

    def infer(self, out_shape: Shape) -> Shape:
        """The inner map's θ, for the site that the outer map's θ is."""
        return self.inner.infer(self.outer.infer(out_shape))

    def _join(self, out_shape: Shape, in_shape: Shape | None) -> Shape:
        return self.inner._join(self.outer.infer(out_shape), in_shape)

    def _prepare(self) -> None:
        outer = self.outer.bind(self.out_shape)
        object.__setattr__(self, "outer", outer)
        object.__setattr__(self, "inner", self.inner.bind(outer.in_shape, self.in_shape))

    def expand(self, theta: Tensor) -> Tensor:
        """outer.expand(inner.expand(θ))."""
        return self.outer.expand(self.inner.expand(theta))

    def linearize(self, theta: Tensor) -> LinearMap:
        """The chain rule: outer's linear map at inner's value, after inner's at θ."""
        inner = self.inner.linearize(theta)
        outer = self.outer.linearize(self.inner.expand(theta))
        return LinearComposed(outer, inner).bind(self.out_shape, self.in_shape)

    def lift(self, values: Tensor) -> Tensor:
        """Lifted through the outer map, then through the inner one: nearest in the values
        between the two.
        """
        return self.inner.lift(self.outer.lift(values))


@dataclass(frozen=True, eq=False)
class LinearComposed(LinearMap):
    """outer ∘ inner of two linear maps.

    Two views compose to one view, two index maps to one index: neither runs twice, and the
    lift is that of the whole, since (AB)⁺ is not B⁺A⁺.
    """

    outer: LinearMap
    inner: LinearMap

    def infer(self, out_shape: Shape) -> Shape:
        """The inner map's θ, for the site that the outer map's θ is."""
        return self.inner.infer(self.outer.infer(out_shape))

    def _join(self, out_shape: Shape, in_shape: Shape | None) -> Shape:
        return self.inner._join(self.outer.infer(out_shape), in_shape)

    def _prepare(self) -> None:
        outer = self.outer.bind(self.out_shape)
        inner = self.inner.bind(outer.in_shape, self.in_shape)
        a, b = outer.view(), inner.view()
        object.__setattr__(self, "outer", outer)
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "_element", None if a is None or b is None else a.after(b))
        self.__dict__.pop("_coordinates", None)

    def index(self) -> Index | None:
        """The composed coordinates, computed once; None where one of the two has none."""
        self._shapes()
        if "_coordinates" not in self.__dict__:
            element = self.view()
            with outside():
                if element is not None:
                    found: Index | None = element.index(self.in_shape)
                else:
                    a, b = self.outer.index(), self.inner.index()
                    found = None if a is None or b is None else a.after(b)
            object.__setattr__(self, "_coordinates", found)
        index: Index | None = self.__dict__["_coordinates"]
        return index

    def view(self) -> View | None:
        """The composed element, or None where one of the two is none."""
        self._shapes()
        element: View | None = self.__dict__["_element"]
        return element

    def forward(self, theta: Tensor) -> Tensor:
        """outer.forward(inner.forward(θ))."""
        view = self.view()
        if view is not None:
            return view.linear(theta)
        index = self.index()
        if index is not None:
            return index.forward(theta.reshape(-1)).reshape(self.out_shape)
        return self.outer.forward(self.inner.forward(theta))

    def expand(self, theta: Tensor) -> Tensor:
        """outer.expand(inner.expand(θ))."""
        view = self.view()
        if view is not None:
            return view.expand(theta)
        index = self.index()
        if index is not None:
            return index.expand(theta.reshape(-1)).reshape(self.out_shape)
        return self.outer.expand(self.inner.expand(theta))

    def adjoint(self, grad: Tensor) -> Tensor:
        """inner.adjoint(outer.adjoint(grad))."""
        if self.view() is None:
            index = self.index()
            if index is not None:
                return index.adjoint(grad.reshape(-1)).reshape(self.in_shape)
        return self.inner.adjoint(self.outer.adjoint(grad))

    def _rearranges(self) -> bool:
        """Whether the outer map only moves values, and the inner one is no index map: what is
        known of the inner one then holds for both, since (PB)⁺ = B⁺Pᵀ.
        """
        if self.view() is not None or self.index() is not None:
            return False
        outer = self.outer.index()
        return outer is not None and outer.scale is None and outer.plan().permutes

    def gram_diagonal(self) -> Tensor | None:
        """That of the inner map, where the outer one only moves values."""
        if self._rearranges():
            return self.inner.gram_diagonal()
        return super().gram_diagonal()

    def lift(self, values: Tensor) -> Tensor:
        """The least-squares θ of the whole."""
        if self._rearranges():
            return self.inner.lift(self.outer.lift(values))
        return super().lift(values)

    @property
    def rank(self) -> int:
        """The dimension of range(A)."""
        return self.inner.rank if self._rearranges() else super().rank

    @property
    def offset(self) -> Tensor | None:
        """outer.forward(inner.offset) + outer.offset."""
        inner, outer = self.inner.offset, self.outer.offset
        if inner is None:
            return outer
        moved = self.outer.forward(inner)
        return moved if outer is None else moved + outer
