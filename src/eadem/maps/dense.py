"""The map that is a matrix: what a plan keeps where only a basis will do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eadem.errors import ShapeError
from eadem.maps.base import LinearMap, Shape, numel
from eadem.maps.constant import Constant

__all__ = ["Dense"]


@dataclass(frozen=True, eq=False)
class Dense(LinearMap):
    """W = matrix·θ + shift, flat; `matrix` (n, k) float64, `shift` (n,) or None.

    >>> Dense(torch.tensor([[1.0], [2.0]])).bind((2,)).forward(torch.ones(1))
    tensor([1., 2.])
    """

    matrix: Tensor
    shift: Tensor | None = None

    def infer(self, out_shape: Shape) -> Shape:
        """One value for each column."""
        if self.matrix.ndim != 2 or self.matrix.shape[0] != numel(out_shape):
            raise ShapeError(
                f"a matrix of shape {tuple(self.matrix.shape)} cannot fill a site of shape "
                f"{out_shape}: it needs {numel(out_shape)} rows"
            )
        return (self.matrix.shape[1],)

    def _prepare(self) -> None:
        object.__setattr__(self, "_matrix", Constant(self.matrix.to(torch.float64)))
        shift = None if self.shift is None else Constant(self.shift.to(torch.float64))
        object.__setattr__(self, "_shift", shift)

    def forward(self, theta: Tensor) -> Tensor:
        """The matrix times θ."""
        matrix: Constant = self.__dict__["_matrix"]
        return (matrix.on(theta.device, theta.dtype) @ theta).reshape(self.out_shape)

    def adjoint(self, grad: Tensor) -> Tensor:
        """The transposed matrix times the flat gradient."""
        matrix: Constant = self.__dict__["_matrix"]
        return matrix.on(grad.device, grad.dtype).T @ grad.reshape(-1)

    @property
    def offset(self) -> Tensor | None:
        """The shift, or None."""
        return None if self.shift is None else self.shift.reshape(self.out_shape)

    def expand(self, theta: Tensor) -> Tensor:
        """The matrix times θ, plus the shift."""
        value = self.forward(theta)
        shift: Constant | None = self.__dict__["_shift"]
        if shift is None:
            return value
        return value + shift.on(theta.device, theta.dtype).reshape(self.out_shape)

    def dense(self) -> Tensor:
        """The matrix itself."""
        return self.matrix.to(torch.float64)
