"""Sites that are nearly tied: what is shared, and a remainder of the site's own.

`LowRank(r)` and `Near(λ)` stand in a tie like any other map, W = φθ + R, but R has free values
that the site holds itself: a matrix of low rank, or any values under a penalty.

>>> import eadem
>>> from torch import nn
>>> model = nn.ModuleList([nn.Linear(8, 6, bias=False) for _ in range(3)])
>>> t = eadem.tie(model, {"0.weight": Same(), "1.weight": Same(), "2.weight": LowRank(1)})
>>> [(name, tuple(p.shape)) for name, p in model.named_parameters()]
[('0.weight', (6, 8)), ('2.weight', (1, 14))]
>>> eadem.counts(model).free, eadem.counts(model).stored
(61, 62)
"""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from eadem.errors import ShapeError, TieConflict
from eadem.maps.algebra import added
from eadem.maps.base import LinearMap, Map, Shape, numel
from eadem.maps.index import Reshape
from eadem.maps.view import Same

__all__ = ["FactorJacobian", "Factors", "Loose", "LowRank", "Near"]


@dataclass(frozen=True, eq=False)
class Factors(Map):
    """A matrix of rank r from its factors: W = UᵀV, θ = [U V] of shape (r, rows + columns).

    A site of more dimensions is a matrix with its first axis as rows.
    """

    rank: int

    def infer(self, out_shape: Shape) -> Shape:
        """(r, rows + columns). Raises ShapeError for a vector, or r above what W can have."""
        if len(out_shape) < 2:
            raise ShapeError(
                f"a site of shape {out_shape} is no matrix, so a remainder of low rank is all "
                "of it; untie the site, or keep it near with Near(weight)"
            )
        rows, columns = _sides(out_shape)
        if self.rank > min(rows, columns):
            raise ShapeError(
                f"rank {self.rank} is more than a site of shape {out_shape} can have "
                f"({min(rows, columns)}); untie the site, or keep it near with Near(weight)"
            )
        return (self.rank, rows + columns)

    def _split(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = _sides(self.out_shape)
        u, v = theta.split([rows, columns], dim=1)
        return u, v

    def expand(self, theta: Tensor) -> Tensor:
        """UᵀV, in the site's shape."""
        u, v = self._split(theta)
        return (u.T @ v).reshape(self.out_shape)

    def linearize(self, theta: Tensor) -> LinearMap:
        """dU, dV ↦ dUᵀV + UᵀdV."""
        with torch.inference_mode(False):
            at = theta.detach().clone()
        return FactorJacobian(at).bind(self.out_shape)

    def lift(self, values: Tensor) -> Tensor:
        """The nearest matrix of this rank (Eckart & Young 1936): the rows of V orthonormal,
        those of U scaled by the singular values, so that U is zero where W is.
        """
        wide = values.detach().reshape(_sides(self.out_shape))
        wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
        u, s, v = torch.linalg.svd(wide, full_matrices=False)
        r = self.rank
        found: Tensor = torch.cat([(u[:, :r] * s[:r]).T, v[:r]], dim=1).to(values.dtype)
        return found

    def general(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Factors of full rank."""
        return torch.randn(self.in_shape, generator=generator, dtype=torch.float64).to(theta)

    def start(self, generator: torch.Generator) -> Tensor:
        """Factors of the zero matrix from which gradients flow: U = 0, V with orthonormal rows,
        uniformly drawn. The first gradient step then moves W by the step it would take without
        the constraint, projected on those rows. float64.
        """
        rows, columns = _sides(self.out_shape)
        drawn = torch.randn(columns, self.rank, generator=generator, dtype=torch.float64)
        v = torch.linalg.qr(drawn).Q.T
        return torch.cat([torch.zeros(self.rank, rows, dtype=torch.float64), v], dim=1)


def _sides(shape: Shape) -> tuple[int, int]:
    return shape[0], numel(shape[1:])


@dataclass(frozen=True, eq=False, repr=False)
class FactorJacobian(LinearMap):
    """The derivative of UᵀV at factors (r, rows + columns)."""

    at: Tensor

    def __repr__(self) -> str:
        return f"FactorJacobian(<factors {tuple(self.at.shape)}>)"

    def infer(self, out_shape: Shape) -> Shape:
        """The shape of the factors."""
        return tuple(self.at.shape)

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = _sides(self.out_shape)
        u, v = self.at.to(like).split([rows, columns], dim=1)
        return u, v

    def forward(self, theta: Tensor) -> Tensor:
        """dUᵀV + UᵀdV."""
        u, v = self._factors(theta)
        du, dv = theta.split([u.shape[1], v.shape[1]], dim=1)
        moved: Tensor = du.T @ v + u.T @ dv
        return moved.reshape(self.out_shape)

    def adjoint(self, grad: Tensor) -> Tensor:
        """[V·gradᵀ  U·grad]."""
        u, v = self._factors(grad)
        matrix = grad.reshape(_sides(self.out_shape))
        return torch.cat([v @ matrix.T, u @ matrix], dim=1)

    @property
    def rank(self) -> int:
        """a·columns + b·rows − a·b for factors of ranks a and b: what is changed lies in the
        rows of V or in the columns of Uᵀ.
        """
        u, v = self._factors(self.at.to(torch.float64))
        a, b = (int(torch.linalg.matrix_rank(x, rtol=1e-10)) for x in (u, v))
        return a * v.shape[1] + b * u.shape[1] - a * b


@dataclass(frozen=True, eq=False, repr=False)
class Loose(Map):
    """W = φθ + R: `shared` is φ, and R has free values of the site's own.

    In a tie, θ is that of the other sites, and R stands in the parameter of the site. By
    itself, as a map, it takes both, flat, one after the other. A subclass says `remainder`.
    """

    shared: Map = field(default_factory=Same, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.shared, Map) or isinstance(self.shared, Loose):
            raise TieConflict(
                f"shared={self.shared!r}; it is a map without a remainder, as Transpose()"
            )

    def __repr__(self) -> str:
        said = ", ".join(f"{n}={v!r}" for n, v in self.arguments().items() if n != "shared")
        inner = "" if type(self.shared) is Same else f" @ {self.shared!r}"
        return f"{type(self).__name__}({said}){inner}"

    @abstractmethod
    def remainder(self, out_shape: Shape) -> Map:
        """The bound map from the site's own free values to R."""

    def infer(self, out_shape: Shape) -> Shape:
        """θ and the site's own values, flat."""
        own = self.remainder(out_shape).in_shape
        return (numel(self.shared.infer(out_shape)) + numel(own),)

    def _prepare(self) -> None:
        parts = (self.shared.bind(self.out_shape), self.remainder(self.out_shape))
        object.__setattr__(self, "_whole", added(parts))

    def expand(self, theta: Tensor) -> Tensor:
        """φθ + R."""
        whole: Map = self.__dict__["_whole"]
        return whole.expand(theta)

    def linearize(self, theta: Tensor) -> LinearMap:
        """Both parts linearized."""
        whole: Map = self.__dict__["_whole"]
        return whole.linearize(theta)

    def lift(self, values: Tensor) -> Tensor:
        """θ nearest to the values, and the nearest R to what is left."""
        shared, rest = self.shared.bind(self.out_shape), self.remainder(self.out_shape)
        theta = shared.lift(values)
        own = rest.lift(values - shared.expand(theta))
        return torch.cat([theta.reshape(-1), own.reshape(-1)])

    def __matmul__(self, inner: Map) -> Map:
        """The shared values go through `inner` first; the remainder stays what it is."""
        plain = type(self.shared) is Same
        return replace(self, shared=inner if plain else self.shared @ inner)

    def arguments(self) -> dict[str, Any]:
        """The constructor arguments; `shared` where it says something."""
        found = super().arguments()
        if type(self.shared) is Same:
            del found["shared"]
        return found


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Loose):
    """W = φθ + UᵀV with U (rank, rows), V (rank, columns): shared, and a remainder of low rank.

    `LowRank(2) @ Transpose()` is Wᵀ = θ but for rank 2. The site's parameter holds [U V], of
    shape (rank, rows + columns). A convolution's weight is a matrix with a row for each
    output. The remainder has rank·(rows + columns − rank) degrees of freedom: rank² of the
    values that are stored only choose among the factors of one matrix. Its general use is that
    of LoRA (Hu et al. 2022), with the shared values trained as well, as in relaxed recursive
    transformers (Bae et al. 2025).
    """

    rank: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ShapeError(
                f"LowRank needs a rank of 1 or more, not {self.rank!r}; without a remainder a "
                "site is Same()"
            )

    def remainder(self, out_shape: Shape) -> Map:
        """UᵀV."""
        return Factors(self.rank).bind(out_shape)


@dataclass(frozen=True, eq=False, repr=False)
class Near(Loose):
    """W = φθ + R with any R, and ½·weight·‖R‖² to be added to the loss: soft sharing.

    The penalty is half the weight times the squared distance of the site from its tie (Nowlan
    & Hinton 1992; between whole networks, Duong et al. 2015): `eadem.penalty(model)` gives it.
    The site's parameter holds R, as (1, *shape), so its weight decay is the same thing.
    """

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.weight, numbers.Real) and not isinstance(self.weight, bool)
        if not (number and math.isfinite(self.weight) and self.weight >= 0):
            raise TieConflict(f"Near needs a finite weight of 0 or more, not {self.weight!r}")
        object.__setattr__(self, "weight", float(self.weight))

    def remainder(self, out_shape: Shape) -> Map:
        """R itself."""
        return Reshape((1, *out_shape)).bind(out_shape)
