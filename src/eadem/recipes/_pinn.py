"""A solution of a differential equation: drawn units, learned weights, periodic or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.nn import Periodic
from eadem.recipes._pde import LENGTH, Equation

__all__ = ["EDGES", "HARMONICS", "SPREAD", "WEIGHT", "Boundary", "Drawn", "Sizes", "Solution"]


@dataclass(frozen=True)
class Sizes:
    """Values learned, points inside, times at the ends, repeats, steps."""

    values: int
    inside: int
    ends: int
    repeats: int
    steps: int


SPREAD, HARMONICS, EDGES, WEIGHT = 3.0, 2, 12, 10.0


class Drawn(nn.Module):
    """A layer of tanh whose weights are drawn and kept: (…, inputs) → (…, width)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, width: int, spread: float) -> None:
        super().__init__()
        self.register_buffer("weight", spread * (2 * torch.rand(width, inputs) - 1).double())
        self.register_buffer("bias", spread * (2 * torch.rand(width) - 1).double())

    def forward(self, x: Tensor) -> Tensor:
        """The units' values."""
        return torch.tanh(nn.functional.linear(x, self.weight, self.bias))


class Boundary(nn.Module):
    """The value and the slope at the boundary, over time."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, len(drawn.bias), dtype=torch.float64))

    def forward(self, units: Tensor) -> Tensor:
        """Units (times, EDGES) → (2, times)."""
        return self.weight @ units.T


class Solution(nn.Module):
    """u(t, x) = start(x) + t·network(t, x), by one of WAYS."""

    def __init__(self, equation: Equation, way: str, size: Sizes) -> None:
        super().__init__()
        self.equation, self.way = equation, way
        hard = Periodic(2, LENGTH, harmonics=HARMONICS)
        inputs = hard.out_features if way == "hard" else 2
        self.features = hard if way == "hard" else nn.Identity()
        self.drawn = Drawn(inputs, size.values, SPREAD / (2.0 if way == "hard" else 1.0))
        self.weight = nn.Parameter(torch.zeros(size.values, dtype=torch.float64))
        sobol = torch.quasirandom.SobolEngine(2, scramble=True)
        unit = sobol.draw(size.inside, dtype=torch.float64)
        self.inside = self._along(unit[:, 0], unit[:, 1] * LENGTH)
        times = torch.linspace(0, 1, size.ends, dtype=torch.float64)
        ends = (torch.zeros_like(times), torch.full_like(times, LENGTH))
        self.ends = [self._along(times, x) for x in ends]
        if way.startswith("soft"):
            edge = Drawn(1, EDGES, SPREAD)
            self.units = edge(2 * times.unsqueeze(1) - 1)
            self.left, self.right = Boundary(edge), Boundary(edge)
            if way == "soft":
                eadem.tie_modules(self, "left", "right")

    def _basis(self, t: Tensor, x: Tensor) -> Tensor:
        """What the weights multiply, with a first column that they do not: 1 + values."""
        scaled = x if self.way == "hard" else 2 * x / LENGTH - 1
        units = self.drawn(self.features(torch.stack([2 * t - 1, scaled])))
        return torch.cat([self.equation.start(x).reshape(1), t * units])

    def _along(self, t: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """The basis of u, u_t, u_x, u_xx at points (n,): four of (n, 1 + values)."""

        def one(t: Tensor, x: Tensor) -> tuple[Tensor, ...]:
            def slope(at: Tensor) -> Any:
                return torch.func.jvp(lambda p: self._basis(t, p), (at,), (unit,))

            unit = torch.ones_like(x)
            twice: Any = torch.func.jvp(slope, (x,), (unit,))
            (u, u_x), (_, u_xx) = twice
            u_t = torch.func.jvp(lambda s: self._basis(s, x), (t,), (unit,))[1]
            return u, u_t, u_x, u_xx

        found: tuple[Tensor, ...] = torch.func.vmap(one)(t, x)
        return found

    def _times(self, basis: Tensor) -> Tensor:
        return basis[:, 0] + basis[:, 1:] @ self.weight

    def residual(self) -> Tensor:
        """The equation inside, and what the ends are not but should be; each a mean square."""
        inside = self.equation.residual(*(self._times(b) for b in self.inside))
        parts = [inside / len(inside) ** 0.5]
        if self.way != "hard":
            parts.append(WEIGHT * self.edges().reshape(-1) / len(self.ends[0][0]) ** 0.5)
        return torch.cat(parts)

    def edges(self) -> Tensor:
        """What the ends are not but should be: (2, times), or (4, times) if soft."""
        left, right = (
            torch.stack([self._times(end[0]), self._times(end[2])]) for end in self.ends
        )
        if self.way == "penalty" or self.way == "hard":
            return left - right
        return torch.cat([left - self.left(self.units), right - self.right(self.units)])

    @torch.no_grad()
    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """u at points (n,)."""
        return self._times(torch.func.vmap(self._basis)(t, x))
