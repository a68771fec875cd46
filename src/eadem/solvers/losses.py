"""Robust losses: how much a residual counts that is larger than its share.

The cost is Σ C²·ρ((r/C)²) with C the scale beyond which a residual is an outlier; ρ(z) = z is
least squares. The Gauss–Newton step minimises it with rows weighted as Triggs, McLauchlan,
Hartley & Fitzgibbon (Bundle adjustment, 2000, §4.3) do, the second derivative kept where it
leaves the weight positive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eadem.solvers.solution import SolverError

__all__ = ["LOSSES", "Loss"]


def _huber(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inside = z <= 1
    root = z.clamp(min=1).sqrt()
    return (
        torch.where(inside, z, 2 * root - 1),
        torch.where(inside, 1.0, 1 / root),
        torch.where(inside, 0.0, -0.5 / root**3),
    )


def _soft_l1(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    root = (1 + z).sqrt()
    return 2 * (root - 1), 1 / root, -0.5 / root**3


def _cauchy(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2


def _arctan(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    slope = 1 / (1 + z**2)
    return torch.atan(z), slope, -2 * z * slope**2


#: ρ(z), ρ′(z) and ρ″(z), by name; the same as scipy's.
LOSSES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "huber": _huber,
    "soft_l1": _soft_l1,
    "cauchy": _cauchy,
    "arctan": _arctan,
}


@dataclass(frozen=True)
class Loss:
    """A loss by `name` ("linear", or one of `LOSSES`) and its `scale` C, in units of the
    weighted residual.

    >>> Loss("huber", 1.0).cost(torch.tensor([0.5, 3.0]))
    5.25
    """

    name: str = "linear"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.name != "linear" and self.name not in LOSSES:
            raise SolverError(
                f"loss={self.name!r}; there are 'linear', {', '.join(map(repr, LOSSES))}"
            )
        if not self.scale > 0:
            raise SolverError(f"the scale of a loss is positive, not {self.scale!r}")

    @property
    def linear(self) -> bool:
        """Whether it is least squares."""
        return self.name == "linear"

    def cost(self, r: Tensor) -> float:
        """Σ C²·ρ((r/C)²)."""
        if self.linear:
            return float(r.square().sum())
        z = (r / self.scale).square()
        return self.scale**2 * float(LOSSES[self.name](z)[0].sum())

    def slopes(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """ρ′ and ρ″ at (r/C)²."""
        z = (r / self.scale).square()
        if self.linear:
            return torch.ones_like(z), torch.zeros_like(z)
        return LOSSES[self.name](z)[1:]

    def weights(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """What multiplies the rows of the Jacobian, and of the residual, for one step."""
        z = (r / self.scale).square()
        first, second = self.slopes(r)
        row = (first + 2 * second * z).clamp(min=torch.finfo(r.dtype).eps).sqrt()
        return row, first / row
