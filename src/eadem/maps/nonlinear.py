"""Maps that are not linear: positive values, bounded values, any differentiable function.

Such a map has `expand` and `lift`, and `linearize(θ)`: the linear map that it is at θ, which
solvers, tests and counts use. None of them builds a Jacobian: that of an elementwise map is a
diagonal, that of a function a pair of products.

>>> rate = Positive().bind((2,))
>>> theta = rate.lift(torch.tensor([0.1, 3.0]))
>>> rate.expand(theta)
tensor([0.1000, 3.0000])
>>> rate.linearize(theta).rank
2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from eadem.errors import ShapeError, TieConflict, Unsupported
from eadem.maps.base import LinearMap, Map, Shape, numel
from eadem.maps.constant import Constant
from eadem.maps.index import Index, IndexMap

__all__ = ["Bounded", "Diagonal", "Elementwise", "Function", "Jacobian", "Positive"]

TensorFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Diagonal(IndexMap):
    """W = slope·θ, one factor for each value: what an elementwise map is at a point."""

    slope: Tensor

    def __repr__(self) -> str:
        return f"Diagonal(<slope {tuple(self.slope.shape)}>)"

    def infer(self, out_shape: Shape) -> Shape:
        """The site's shape, which must be the slope's."""
        if tuple(self.slope.shape) != out_shape:
            raise ShapeError(f"{self!r} cannot fill a site of shape {out_shape}")
        return out_shape

    def _prepare(self) -> None:
        super()._prepare()
        object.__setattr__(self, "_slope", Constant(self.slope))

    def _index(self) -> Index:
        size = numel(self.out_shape)
        slope = self.slope.detach().cpu().reshape(-1)
        return Index(torch.arange(size), size, slope)

    def forward(self, theta: Tensor) -> Tensor:
        """slope·θ."""
        slope: Constant = self.__dict__["_slope"]
        return theta * slope.on(theta.device, theta.dtype)

    def expand(self, theta: Tensor) -> Tensor:
        """slope·θ."""
        return self.forward(theta)

    def adjoint(self, grad: Tensor) -> Tensor:
        """slope·grad."""
        return self.forward(grad)


@dataclass(frozen=True, eq=False)
class Elementwise(Map):
    """W[i] = f(θ[i]). A subclass gives `expand` and `lift`."""

    elementwise: ClassVar[bool] = True

    def linearize(self, theta: Tensor) -> LinearMap:
        """The diagonal of derivatives at θ."""
        at = _point(theta)
        pull: Any = torch.func.vjp(self.expand, at)[1]
        return Diagonal(pull(torch.ones_like(at))[0].detach()).bind(self.out_shape)


def _point(theta: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return theta.detach().clone()


def _refuse(bad: Tensor, values: Tensor, message: str) -> None:
    if not values.is_meta and bool(bad.any()):
        first = values[bad].reshape(-1)[0].item()
        raise TieConflict(f"{message}; {int(bad.sum())} values are not, the first is {first:g}")


@dataclass(frozen=True, eq=False)
class Positive(Elementwise):
    """W > 0: W = log(1 + exp θ), the softplus.

    It is linear for large θ, so it never overflows, and it never returns zero: below the
    smallest normal number of the dtype W stays there. `lift` is exact for every positive
    value, and raises TieConflict for any other.
    """

    def expand(self, theta: Tensor) -> Tensor:
        """softplus(θ), without the cut-off at 20 of `F.softplus`."""
        return (-logsigmoid(-theta)).clamp(min=torch.finfo(theta.dtype).tiny)

    def lift(self, values: Tensor) -> Tensor:
        """log(exp W − 1) = W + log(1 − exp(−W))."""
        bad = ~((values > 0) & values.isfinite())
        _refuse(bad, values, "Positive needs finite values above 0")
        return values + torch.log(-torch.expm1(-values))


@dataclass(frozen=True, eq=False)
class Bounded(Elementwise):
    """lo ≤ W ≤ hi: W = lo + (hi − lo)·sigmoid(θ).

    `lift` raises TieConflict for a value that is not strictly between the bounds: no finite θ
    reaches them.
    """

    lo: float
    hi: float

    def __post_init__(self) -> None:
        super().__post_init__()
        lo, hi = float(self.lo), float(self.hi)
        if not (math.isfinite(lo) and math.isfinite(hi) and lo < hi):
            raise TieConflict(
                f"Bounded needs finite bounds with lo < hi, not ({self.lo!r}, {self.hi!r}); "
                "for one bound use Affine(1.0, lo) @ Positive()"
            )
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    def expand(self, theta: Tensor) -> Tensor:
        """lo + (hi − lo)·sigmoid(θ); the clamp undoes rounding past a bound."""
        value = self.lo + (self.hi - self.lo) * torch.sigmoid(theta)
        return value.clamp(self.lo, self.hi)

    def lift(self, values: Tensor) -> Tensor:
        """log(W − lo) − log(hi − W)."""
        bad = ~((values > self.lo) & (values < self.hi))
        _refuse(bad, values, f"{self!r} needs values strictly between its bounds")
        return torch.log(values - self.lo) - torch.log(self.hi - values)


@dataclass(frozen=True, eq=False, repr=False)
class Jacobian(LinearMap):
    """The derivative of `f` at a point, as products with vectors (jvp and vjp)."""

    f: TensorFunction
    at: Tensor

    def __repr__(self) -> str:
        return f"Jacobian({_name(self.f)}, at=<θ {tuple(self.at.shape)}>)"

    def infer(self, out_shape: Shape) -> Shape:
        """The shape of the point."""
        return tuple(self.at.shape)

    def forward(self, theta: Tensor) -> Tensor:
        """The directional derivative along θ."""
        at = self.at.to(theta)
        tangent: Tensor = torch.func.jvp(self.f, (at,), (theta,))[1]
        return tangent

    def adjoint(self, grad: Tensor) -> Tensor:
        """The gradient at the point of ⟨f, grad⟩."""
        pull: Any = torch.func.vjp(self.f, self.at.to(grad))[1]
        pulled: Tensor = pull(grad)[0]
        return pulled


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Function(Map):
    """W = f(θ), for any differentiable f from a tensor of `in_shape` to the site's shape.

    `inverse(values)` gives θ where a tie starts or is loaded; without it Gauss–Newton steps
    look for the nearest values, and raise Unsupported where they do not settle. A record
    names f as "module:name", so f must be defined at the top of a module to be recorded.

    >>> unit = Function(lambda t: t / t.norm(), inverse=lambda w: w).bind((2,))
    >>> unit.expand(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """

    f: TensorFunction
    inverse: TensorFunction | None
    theta_shape: Shape | None

    def __init__(
        self,
        f: TensorFunction,
        inverse: TensorFunction | None = None,
        in_shape: Sequence[int] | None = None,
    ) -> None:
        super().__post_init__()
        if not callable(f) or not (inverse is None or callable(inverse)):
            raise Unsupported("Function needs a callable f, and a callable inverse or None")
        shape = None if in_shape is None else tuple(int(n) for n in in_shape)
        object.__setattr__(self, "f", f)
        object.__setattr__(self, "inverse", inverse)
        object.__setattr__(self, "theta_shape", shape)

    def __repr__(self) -> str:
        return f"Function({_name(self.f)})"

    def arguments(self) -> dict[str, Any]:
        """`f`, `inverse` and `in_shape`."""
        return {"f": self.f, "inverse": self.inverse, "in_shape": self.theta_shape}

    def infer(self, out_shape: Shape) -> Shape:
        """`in_shape`, or the site's shape."""
        return out_shape if self.theta_shape is None else self.theta_shape

    def expand(self, theta: Tensor) -> Tensor:
        """f(θ), in θ's dtype. Raises ShapeError where it has not the site's shape."""
        return self._checked(self.f(theta), theta, self.out_shape, "f")

    def _checked(self, value: object, like: Tensor, shape: Shape, what: str) -> Tensor:
        if not isinstance(value, Tensor):
            raise Unsupported(f"{self!r}: {what} must return a tensor, not {value!r}")
        if tuple(value.shape) != shape:
            raise ShapeError(
                f"{self!r}: {what} takes {tuple(like.shape)} to {tuple(value.shape)}, but "
                f"{shape} is needed; give Function the in_shape of θ, or correct {what}"
            )
        return value.to(like.dtype)

    def linearize(self, theta: Tensor) -> LinearMap:
        """The Jacobian at θ, matrix-free."""
        return Jacobian(self.expand, _point(theta)).bind(self.out_shape)

    def lift(self, values: Tensor) -> Tensor:
        """inverse(values), or by Gauss–Newton from zeros, then from ones."""
        if self.inverse is not None:
            return self._checked(self.inverse(values), values, self.in_shape, "inverse")
        target = _point(values)
        found = [_gauss_newton(self, target, float(start)) for start in (0, 1)]
        settled = [(misfit, theta) for misfit, theta in found if theta is not None]
        if not settled:
            raise Unsupported(
                f"{self!r} has no inverse, and Gauss–Newton from zeros and ones did not "
                f"settle; give Function(f, inverse=…)"
            )
        return min(settled, key=lambda pair: pair[0])[1]


def _gauss_newton(phi: Function, target: Tensor, start: float) -> tuple[float, Tensor | None]:
    """(misfit, θ) where halved Gauss–Newton steps settle, else (inf, None)."""
    theta = target.new_full(phi.in_shape, start)
    rest = target - phi.expand(theta)
    misfit = float(rest.norm())
    if not math.isfinite(misfit):
        return math.inf, None
    small = math.sqrt(torch.finfo(target.dtype).eps)
    for _ in range(50):
        step = phi.linearize(theta).lift(rest)
        if not bool(step.isfinite().all()):
            return math.inf, None
        size = float(step.norm())
        if size <= 1e-3 * small * (1 + float(theta.norm())):
            return misfit, theta
        for halvings in range(30):
            tried = theta + step / 2**halvings
            after = target - phi.expand(tried)
            if float(after.norm()) < misfit:
                break
        else:
            settled = size <= small * (1 + float(theta.norm()))
            return (misfit, theta) if settled else (math.inf, None)
        theta, rest, misfit = tried, after, float(after.norm())
    return math.inf, None


def _name(f: TensorFunction) -> str:
    return str(getattr(f, "__qualname__", type(f).__name__))
