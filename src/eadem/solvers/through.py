"""What a fit knows of φ: its value, and its Jacobian as entries."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from eadem.maps.base import LinearMap, Map, numel

__all__ = ["Through", "through"]


class Through(Protocol):
    """What is known of φ: its value and its Jacobian as entries, as `PlanArrays` has them."""

    free: int
    sites: int

    def expand(self, theta: Tensor) -> Tensor:
        """(free,) → (sites,)."""

    def entries(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, columns and values; the same rows and columns at every θ."""

    def curve(self, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The first and second derivative of `expand` along v."""


class _Whole:
    """Any map as `Through`, its Jacobian dense."""

    def __init__(self, phi: Map) -> None:
        self.phi = phi
        self.free, self.sites = numel(phi.in_shape), numel(phi.out_shape)
        grid = torch.arange(self.sites * self.free).reshape(self.sites, self.free)
        self.rows = (grid // max(1, self.free)).reshape(-1)
        self.columns = (grid % max(1, self.free)).reshape(-1)
        constant = phi.dense() if isinstance(phi, LinearMap) else None
        self.constant = None if constant is None else constant.reshape(-1)

    def expand(self, theta: Tensor) -> Tensor:
        return self.phi.expand(theta.reshape(self.phi.in_shape)).reshape(-1)

    def entries(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = self.constant
        if values is None:
            values = self.phi.linearize(theta.reshape(self.phi.in_shape)).dense().reshape(-1)
        return self.rows, self.columns, values

    def curve(self, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        def rate(at: Tensor) -> Tensor:
            found: Tensor = torch.func.jvp(self.expand, (at,), (v,))[1]
            return found

        if self.constant is not None:
            first = self.constant.reshape(self.sites, self.free) @ v
            return first, torch.zeros_like(first)
        derivatives: Any = torch.func.jvp(rate, (theta,), (v,))
        return derivatives[0].detach(), derivatives[1].detach()


def through(phi: Map) -> Through:
    """Any bound map, for `Problem`."""
    return _Whole(phi)
